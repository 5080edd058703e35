"""Extracted rows as the tests of stores make them, and writers in processes of their own that can be killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ranks import KILLED, Started, alone

from otlabel.selflabel.stores import FeatureStore, Store, TensorStore, extraction, finished
from otlabel.sources import open_scores, read_rows
from otlabel.sources.base import as_numbers

ABOUT = {"data": "d0", "model": "m0", "kind": "features"}
OTHER = ABOUT | {"model": "m1"}
KINDS = ["memory", "file"]


def rows_of(n_samples: int, n_columns: int, seed: int = 0, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_samples, n_columns)).astype(dtype)


def make(kind: str, folder: Path, dtype: str = "float16") -> Store:
    return TensorStore(dtype) if kind == "memory" else FeatureStore(folder / "features.h5", dtype=dtype)


def extract(store: Store, rows: np.ndarray, about: dict[str, str] = ABOUT) -> None:
    store.begin(*rows.shape, about)
    store.write(np.arange(len(rows)), rows)
    store.finish()


def stored(store: Store) -> np.ndarray:
    source = open_scores(store.source())
    return as_numbers(read_rows(source.source, 0, source.shape[0]), source.dtype)


def _write(path: Path, rows: np.ndarray, log_file: Path, about: dict[str, str], ending: str) -> None:
    extraction.MARK_BYTES = 0
    if ending == "slow":
        plain = finished._Disk.write

        def slow(disk: Any, content: Any) -> int:
            time.sleep(0.05)
            return plain(disk, content)

        finished._Disk.write = slow  # type: ignore[method-assign]
        finished.CHUNK_BYTES = 4096
    store = FeatureStore(path)
    there = store.begin(*rows.shape, about)
    with log_file.open("ab", buffering=0) as log:
        log.write(f"begin {there.sum()}\n".encode())
        todo = np.random.default_rng(0).permutation(len(rows))
        todo = todo[~there[todo]]
        for start in range(0, len(todo), 5):
            batch = todo[start : start + 5]
            log.write(f"write {len(batch)}\n".encode())
            store.write(batch, rows[batch])
            time.sleep(0.003)
        time.sleep(60 * (ending == "never"))
        store.finish()
        log.write(b"finished\n")


def writer(path: Path, rows: np.ndarray, *, about: dict[str, str] = ABOUT, ending: str = "at once") -> Started:
    """A process of its own that extracts to the path; what it does is in `log` beside it."""
    folder = path.parent / "in"
    folder.mkdir(exist_ok=True)
    return alone(_write, path, rows, folder / "log", about, ending)


def log_of(path: Path) -> list[list[str]]:
    log = path.parent / "in" / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition: Callable[[], bool], writing: Started) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        assert writing.process.is_alive(), writing.answer()
        time.sleep(0.001)


def kill(writing: Started) -> None:
    writing.process.kill()
    assert writing.answer() == KILLED


def largest_leftover(folder: Path) -> int:
    sizes = [0]
    for entry in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # the one that tries whether the folder takes files
            sizes.append(entry.stat().st_size)
    return max(sizes)


def uninterrupted(folder: Path, rows: np.ndarray, about: dict[str, str] = ABOUT) -> bytes:
    """The bytes of the file that an extraction in one go makes."""
    folder.mkdir()
    extract(FeatureStore(folder / "other.h5"), rows, about)
    return without_times(folder / "other.h5")


def without_times(path: Path) -> bytes:
    """The bytes of a file; when it was made, which h5py before 3.15 writes down, and the checksum of that are zeros."""
    content = bytearray(path.read_bytes())
    times = content.index(b"OHDR") + 6
    flags = content[times - 1]
    if flags & 0x20:
        size = times + (20 if flags & 0x10 else 16)
        messages = size + (1 << (flags & 3))
        checksum = messages + int.from_bytes(content[size:messages], "little")
        content[times : times + 16], content[checksum : checksum + 4] = bytes(16), bytes(4)
    return bytes(content)
