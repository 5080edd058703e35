"""What control groups leave of the memory, in trees of files made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from otlabel.sources.free import free_memory

GB, MB = 10**9, 10**6
TOTAL = 64 * GB // 1024 * 1024


class Machine:
    """Files as a kernel shows them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:   {TOTAL // 1024} kB\n")

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def joined(self, own: str, mounts: str = "") -> None:
        self.write("proc/self/cgroup", own)
        self.write("proc/self/mountinfo", mounts)

    def v2(self, path: str, limit: object = "max", used: int = 0, high: object = "max", cached: int = 0) -> None:
        folder = f"sys/fs/cgroup/{path}".rstrip("/")
        for name, value in {"max": limit, "high": high, "current": used}.items():
            self.write(f"{folder}/memory.{name}", f"{value}\n")
        self.write(f"{folder}/memory.stat", f"anon {used - cached}\ninactive_file {cached - 3}\nactive_file 3\n")

    def v1(self, path: str, limit: int, used: int = 0, cached: int = 0, above: int = (1 << 63) - 4096) -> None:
        folder = f"sys/fs/cgroup/memory/{path}".rstrip("/")
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        told = f"cache {cached}\nhierarchical_memory_limit {min(limit, above)}\n"
        self.write(f"{folder}/memory.stat", f"{told}total_inactive_file {cached}\ntotal_active_file 0\n")

    @property
    def free(self) -> int:
        return free_memory(self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


MOUNT_V2 = "31 23 0:28 {inside} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = "33 31 0:32 {inside} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
NO_LIMIT_V1 = 9223372036854771712


def test_without_groups_the_system_tells(machine) -> None:
    assert machine.free == TOTAL
    machine.joined("0::/\n")
    assert machine.free == TOTAL
    (machine.root / "proc/meminfo").unlink()
    assert machine.free > 1 << 60


@pytest.mark.parametrize("place", ["a.slice", "a.slice/b.service", "a.slice/b.service/c"])
@pytest.mark.parametrize("mounted", [True, False])
def test_the_least_limit_of_nested_groups_counts(machine, place: str, mounted: bool) -> None:
    """Wherever it is; what files keep cached is free."""
    machine.joined("0::/a.slice/b.service/c\n", MOUNT_V2.format(inside="/") if mounted else "")
    for path in ("a.slice", "a.slice/b.service", "a.slice/b.service/c"):
        machine.v2(path, limit=8 * GB if path != place else 550 * MB, used=150 * MB, cached=50 * MB)
    assert machine.free == 450 * MB


def test_high_counts_as_a_limit(machine) -> None:
    machine.joined("0::/a\n", MOUNT_V2.format(inside="/"))
    machine.v2("a", limit=8 * GB, high=3 * GB, used=GB)
    assert machine.free == 2 * GB
    machine.v2("a", limit=8 * GB, high=3 * GB, used=5 * GB)
    assert machine.free == 0


@pytest.mark.parametrize("path", ["/", "/../..", "/docker/abc", "/gone"])
def test_a_container_that_sees_its_own_group_as_the_root(machine, path: str) -> None:
    machine.joined(f"0::{path}\n", MOUNT_V2.format(inside="/docker/abc" if path == "/docker/abc" else "/"))
    machine.v2("", limit=2 * GB, used=GB)
    assert machine.free == GB


def test_a_group_within_a_container(machine) -> None:
    machine.joined("0::/docker/abc/x\n", MOUNT_V2.format(inside="/docker/abc"))
    machine.v2("", limit=2 * GB, used=GB)
    machine.v2("x", limit=GB, used=600 * MB)
    assert machine.free == 400 * MB


def test_limits_of_version_1(machine) -> None:
    machine.joined("9:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n", MOUNT_V2.format(inside="/") + MOUNT_V1.format(inside="/"))
    machine.v1("", NO_LIMIT_V1, used=30 * GB)
    machine.v1("a", 3 * GB, used=2 * GB, cached=GB)
    machine.v1("a/b", NO_LIMIT_V1, used=GB)
    assert machine.free == 2 * GB
    machine.v1("a/b", 550 * MB, used=100 * MB)
    assert machine.free == 450 * MB


def test_a_limit_of_version_1_above_what_is_seen(machine) -> None:
    machine.joined("4:memory:/lxc/a\n", MOUNT_V1.format(inside="/lxc/a"))
    machine.v1("", NO_LIMIT_V1, used=GB, above=4 * GB)
    assert machine.free == 3 * GB


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "x:y\n"])
def test_files_of_another_kind_are_no_error(machine, text: str) -> None:
    machine.joined(text, text)
    assert machine.free == TOTAL
