"""Files that change while they are read, and interrupts meanwhile: noticed, and nothing is left."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import COMMAND, assert_interrupted_at_once, names, python
from faults import Once
from kept_as import WAYS, chunked, hdf5_file, npy

from otlabel import linear_scores, sinkhorn_assign
from otlabel.errors import FileFormatError
from otlabel.solver.monitor import Monitor
from otlabel.sources import open_scores, read_rows
from otlabel.sources.hdf5 import HDF5Source

pytestmark = [
    pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning"),
    pytest.mark.usefixtures("long_way"),  # small problems are read once
]


# ---- files that change while they are read ----


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def rewrite(path: Path) -> None:
    """The same bytes again, as a writer that is still at work leaves them."""
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path: Path) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(path.read_bytes())
    status = path.stat()
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns))
    beside.rename(path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "grows": grow,
    "shrinks": lambda path: os.truncate(path, path.stat().st_size - 500),
    "is emptied": lambda path: os.truncate(path, 0),
    "is rewritten": rewrite,
    "is replaced": replace,
    "is removed": lambda path: path.unlink(),
}
READ_ANEW = ["npy", "contiguous", "chunked", "gzip", "h5py.Dataset"]


def told_of(change: str) -> str:
    return r" was removed while it was being read" if change == "is removed" else r" was changed or replaced while"


def main_file(folder: Path) -> Path:
    """The file that holds the scores, or the last of its parts."""
    return sorted(folder.glob("scores*.*"))[-1]


@pytest.mark.parametrize("way", [*READ_ANEW, "pattern"])
@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changes_between_passes(tmp_path, array, way: str, change: str) -> None:
    source = WAYS[way](tmp_path / "scores", array)
    path = main_file(tmp_path)
    fault = Once(lambda: CHANGES[change](path))
    with pytest.raises(FileFormatError, match=re.escape(str(path)) + told_of(change)):
        sinkhorn_assign(source, memory_limit=0, progress=fault)
    assert fault.n_calls == 1


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_in_memory_needs_no_file(tmp_path, array, change: str) -> None:
    text = npy(tmp_path / "scores", array)
    result = sinkhorn_assign(text, progress=Once(lambda: CHANGES[change](tmp_path / "scores.npy")))
    np.testing.assert_array_equal(result.labels, sinkhorn_assign(array).labels)


@pytest.mark.parametrize("way", ["npy", "chunked", "pattern"])
@pytest.mark.parametrize("change", CHANGES)
def test_command_on_a_file_that_changes(tmp_path, array, refused, monkeypatch, way: str, change: str) -> None:
    text, saw = WAYS[way](tmp_path / "scores", array), Monitor.record
    path = main_file(tmp_path)
    fault = Once(lambda: CHANGES[change](path))

    def spoil(self: Monitor, *words: Any, **settings: Any) -> None:
        saw(self, *words, **settings)
        fault({})

    monkeypatch.setattr(Monitor, "record", spoil)
    refused(text, f"{path} was", "while it was being read")
    assert fault.n_calls == 1


@pytest.mark.parametrize("change", ["grows", "is rewritten", "is replaced", "is removed"])
@pytest.mark.parametrize("way", ["npy", "chunked"])
def test_change_during_the_last_read_is_noticed(tmp_path, array, monkeypatch, way: str, change: str) -> None:
    """A file that changes after it was looked at and before its bytes came."""
    source = open_scores(WAYS[way](tmp_path / "scores", array))
    path, preadv, fetch = main_file(tmp_path), os.preadv, HDF5Source._fetch
    fault = Once(lambda: CHANGES[change](path))

    def late_preadv(*words: Any) -> int:
        n_read = preadv(*words)
        fault({})
        return n_read

    def late_fetch(self: HDF5Source, *words: Any) -> None:
        fetch(self, *words)
        fault({})

    monkeypatch.setattr(os, "preadv", late_preadv)
    monkeypatch.setattr(HDF5Source, "_fetch", late_fetch)
    with pytest.raises(FileFormatError, match=told_of(change)):
        read_rows(source.source, 0, 120)


def test_file_that_shrinks_within_a_read(tmp_path, array, monkeypatch) -> None:
    """The system gives fewer bytes, then none: no endless loop, no stale memory."""
    source, preadv = open_scores(npy(tmp_path / "scores", array)), os.preadv

    def short(number: int, rooms: list[memoryview], place: int) -> int:
        os.truncate(tmp_path / "scores.npy", 1000)
        return preadv(number, [rooms[0][:300]], place)

    monkeypatch.setattr(os, "preadv", short)
    with pytest.raises(FileFormatError, match=r"scores\.npy ended before row 120: it shrank while it was being read"):
        read_rows(source.source, 0, 120)


@pytest.mark.parametrize("change", ["grows", "is removed"])
def test_features_that_change(tmp_path, array, change: str) -> None:
    scores = linear_scores(chunked(tmp_path / "scores", array), np.eye(5)[:3])
    with pytest.raises(FileFormatError, match=told_of(change)):
        sinkhorn_assign(scores, memory_limit=0, progress=Once(lambda: CHANGES[change](tmp_path / "scores.h5")))


# ---- interrupts ----


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("way", ["npy", "chunked", "list"])
def test_interrupt_between_passes_leaves_no_thread_and_a_usable_source(tmp_path, array, way: str) -> None:
    source = open_scores(WAYS[way](tmp_path / "scores", array))
    expected = sinkhorn_assign(source, memory_limit=0)
    before = n_threads()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sinkhorn_assign(source, memory_limit=0, progress=Once(interrupt))
    deadline = time.perf_counter() + 2
    while n_threads() > before and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert n_threads() <= before
    np.testing.assert_array_equal(sinkhorn_assign(source, memory_limit=0).labels, expected.labels)


@pytest.mark.parametrize("kind", ["f4", "bool"])
def test_interrupt_during_a_read_is_raised_after_it(tmp_path, kind: str) -> None:
    """One interrupt, not repeated: Python would lose it in any callback between the read and our own code."""
    array = np.random.default_rng(0).standard_normal((20_000, 200), np.float32)
    array = array > 0 if kind == "bool" else array
    source = open_scores(hdf5_file(tmp_path / "scores", array, chunks=(7, 134), compression="gzip"))
    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # by far most of the time is spent in the library
            with pytest.raises(KeyboardInterrupt):
                read_rows(source.source, 0, 20_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    np.testing.assert_array_equal(read_rows(source.source, 0, 20_000), array)


@pytest.mark.parametrize("way", ["npy", "gzip"])
def test_interrupt_while_streaming_ends_at_once_and_leaves_nothing(tmp_path, way: str) -> None:
    array = np.random.default_rng(0).standard_normal((20_000, 200), np.float32)
    text, folder = WAYS[way](tmp_path / "scores", array), tmp_path / "out"
    folder.mkdir()
    settings = "--memory-limit 0 --method sinkhorn --epsilon .001 --tol 1e-12 --max-sweeps 1000000 --progress"
    process = python(COMMAND, "assign", text, "-o", folder / "labels.h5", *settings.split())
    assert process.stderr is not None
    process.stderr.read(1)  # the bar shows up with the first pass
    time.sleep(0.3)
    assert_interrupted_at_once(process)
    assert names(folder) == []
