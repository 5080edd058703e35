"""How much memory is free: what the system has, or what the control groups of this process leave of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from otlabel.system import available_memory

if TYPE_CHECKING:
    import numpy as np

NO_LIMIT = 1 << 62
V1, V2 = "cgroup", "cgroup2"  # file systems of the two sorts of control groups
MOUNTED = {V1: "/sys/fs/cgroup/memory", V2: "/sys/fs/cgroup"}  # where nothing tells
LIMITS = {V1: ("memory.limit_in_bytes",), V2: ("memory.max", "memory.high")}
USED = {V1: "memory.usage_in_bytes", V2: "memory.current"}
CACHED = {V1: ("total_inactive_file", "total_active_file"), V2: ("inactive_file", "active_file")}


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take; root is where /proc and /sys are.

    Each group that the process is in, up to the root of their tree, has a limit of its own. What files keep cached
    counts as free, for the system gives it back on demand.
    """
    try:
        free = 1024 * _table(root / "proc/meminfo")["MemAvailable"]
    except (OSError, KeyError, ValueError):
        free = (available_memory() if root == Path("/") else None) or NO_LIMIT
    for version, top, own in _trees(root):
        for folder in (own, *own.parents):
            free = min(free, _left(folder, version))
            if folder == top:
                break
    return max(free, 0)


def check_room(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """Raise MemoryError before memory is taken for more than there is."""
    n_bytes, free = math.prod(shape) * dtype.itemsize, free_memory()
    if n_bytes > free:
        raise MemoryError(f"{name} holds {dtype} of shape {shape}, {n_bytes:,} bytes, and {free:,} are free")


def _left(folder: Path, version: str) -> int:
    """What one group's limit leaves; a file that is missing sets none."""
    limit = NO_LIMIT
    for name in LIMITS[version]:
        with contextlib.suppress(OSError, ValueError):  # "max": there is none
            limit = min(limit, int((folder / name).read_text(encoding="ascii")))
    told: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        told = _table(folder / "memory.stat")
    limit = min(limit, told.get("hierarchical_memory_limit", NO_LIMIT))  # of groups above that are out of sight, too
    if limit >= NO_LIMIT:
        return NO_LIMIT
    used = 0
    with contextlib.suppress(OSError, ValueError):
        used = int((folder / USED[version]).read_text(encoding="ascii"))
    return limit - max(used - sum(told.get(name, 0) for name in CACHED[version]), 0)


def _trees(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Of each tree that limits memory: its sort, its top folder, and this process' own."""
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            version = V1 if controllers else V2
            inside, top = _mount(root, version)
            within = path.removeprefix(inside) if inside != "/" else path
            own = top / within.lstrip("/")
            yield version, top, own if own.is_dir() and ".." not in own.parts else top


def _mount(root: Path, version: str) -> tuple[str, Path]:
    """Which group is mounted, and where."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            place, _, kind = line.partition(" - ")
            words, (sort, *_, options) = place.split(), kind.split()
            if sort == version and (version == V2 or "memory" in options.split(",")):
                return words[3], root / words[4].lstrip("/")
    return "/", root / MOUNTED[version].lstrip("/")


def _table(file: Path) -> dict[str, int]:
    """The first number of each line, by its name."""
    lines = [line.replace(":", " ").split() for line in file.read_text(encoding="ascii").splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
