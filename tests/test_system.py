"""Where the system is not Linux: as far as that can be simulated here, everything works and gives the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from otlabel import read_labels, sinkhorn_assign
from otlabel.system import available_memory, lock_now, peak_memory, read_some, write_some

# What a fresh interpreter runs first. macOS has no /proc and no affinity; Windows lacks much more.
MACOS = """
import builtins, io, os, pathlib, sys
known = io.open
def opened(path, *rest, **more):
    if str(path).startswith(("/proc", "/sys")) and not str(path).endswith("/maps"):  # which numba looks at on Linux
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return known(path, *rest, **more)
io.open = builtins.open = opened
del os.sched_getaffinity
sys.modules["psutil"] = None  # Linux's own, which reads /proc
"""
WINDOWS = """
import os, signal, subprocess, sys, types  # subprocess looks for msvcrt, too
for name in ("preadv", "pwrite", "O_NOFOLLOW", "O_CLOEXEC", "sysconf"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "setitimer"):
    delattr(signal, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
held = set()
def locking(descriptor, how, n_bytes):
    status = os.fstat(descriptor)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 20, "what is read would be locked"
    key = status.st_dev, status.st_ino, descriptor
    if any(one[:2] == key[:2] and one[2] != descriptor for one in held):
        raise PermissionError(13, "Permission denied")
    held.add(key)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
"""
RUN = """
from otlabel.commands.main import main
codes = [main(line.split()) for line in sys.stdin.read().splitlines()]
print(codes)
"""


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_commands_work_on_other_systems(system: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 4))
    np.save(tmp_path / "scores.npy", scores)
    np.save(tmp_path / "features.npy", rng.normal(size=(120, 4)).astype(np.float32))
    commands = [
        "assign scores.npy -o labels.h5 --memory-limit 0",
        "certify scores.npy labels.h5",
        "plan scores.npy",
        "cluster features.npy -k 4 -o clusters.h5",
    ]
    if system == "windows":  # the store of features has locks, and bytes at places
        commands.append("train features.npy -k 4 -o run --set train.epochs=2 --set train.threads=1")
    simulated = MACOS if system == "macos" else WINDOWS
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", simulated + RUN],
        input="\n".join(commands), capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == [str([0] * len(commands))], done.stdout + done.stderr
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.h5").labels, sinkhorn_assign(scores).labels)
    assert (tmp_path / "run" / "labels.h5").exists() == (system == "windows")


def test_a_lock_is_one_process_alone(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as one, open(tmp_path / "a", "wb") as other:
        lock_now(one)
        with pytest.raises(BlockingIOError):
            lock_now(other)


@pytest.mark.parametrize("has_own", [True, False])
def test_bytes_at_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_own: bool) -> None:
    """By several threads at once, each its own part."""
    if not has_own:
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "pwrite")
    content = np.random.default_rng(0).bytes(1 << 16)
    descriptor = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    found = bytearray(len(content))

    def move(start: int) -> None:
        for at in range(start, start + (1 << 14), 512):
            assert write_some(descriptor, memoryview(content)[at : at + 512], at) == 512
            assert read_some(descriptor, memoryview(found)[at : at + 512], at) == 512

    threads = [threading.Thread(target=move, args=(start,)) for start in range(0, 1 << 16, 1 << 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    assert bytes(found) == content == (tmp_path / "a").read_bytes()


def test_memory_is_told_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    by_proc = peak_memory()
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert by_proc / 2 < peak_memory() < 4 * by_proc
    for module in ("psutil", "resource"):
        monkeypatch.setitem(sys.modules, module, None)
        assert 1e8 < available_memory() < 1e14
    assert peak_memory() == 0
