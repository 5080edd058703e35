"""What a solve keeps in memory of scores that it would else read again: all of them where they fit, or a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.scores.base import Batch, Scores, storage_array
from otlabel.scores.files import StoredScores
from otlabel.scores.memory import ArrayScores

CACHE_SHARE = 0.5  # of the memory that is free may hold a copy of the scores where no limit is stated


class KeptWhole(Scores):
    """A file's scores, which stay in memory once they are read."""

    def __init__(self, source: StoredScores) -> None:
        self._source = source
        self.shape, self.dtype = source.shape, source.dtype
        self._kept = storage_array(self.shape, self.dtype)
        self._present = np.zeros(self.shape[0], bool)

    @property
    def random_access(self) -> bool:  # type: ignore[override]
        """Once all is in memory."""
        return bool(self._present.all())

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """Until all is in memory."""
        return not self.random_access

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """By the source."""
        return self._source.bytes_read

    def batches(self) -> list[Batch]:
        """As the source reads them, or by single blocks once all is in memory."""
        return super().batches() if self.random_access else self._source.batches()

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """The source's own."""
        return self._source.reading()

    def read(self, start: int, stop: int) -> np.ndarray:
        """From memory, after reading what is not there yet."""
        rows = self._kept[start:stop]
        if not self._present[start:stop].all():
            self._source.read_into(start, stop, rows)
            self._present[start:stop] = True
        return rows

    def take(self, rows: np.ndarray) -> Scores:
        """A copy of the given rows."""
        return ArrayScores(self._kept[rows], self.dtype) if self.random_access else self._source.take(rows)

    def place(self, row: int) -> str:
        """As the source names it."""
        return self._source.place(row)


class KeptRows(Scores):
    """A source that each pass reads anew, but for some rows, which the first pass leaves in memory to sample from."""

    def __init__(self, source: Scores, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.shape, self.dtype = source.shape, source.dtype
        self._kept = storage_array((len(rows), self.shape[1]), self.dtype)
        self._missing = {start for start, _ in self.blocks()}

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """By the source."""
        return self._source.bytes_read

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """If the source does."""
        return self._source.reads_files

    def batches(self) -> list[Batch]:
        """As the source reads them."""
        return self._source.batches()

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """The source's own."""
        return self._source.reading()

    def read(self, start: int, stop: int) -> np.ndarray:
        """By the source."""
        return self._source.read(start, stop)

    def read_blocks(self, batch: Batch) -> Iterator[np.ndarray]:
        """By the source; on the way, what is to be kept is copied."""
        for (start, stop), block in zip(batch, self._source.read_blocks(batch), strict=True):
            if start in self._missing:
                first, last = np.searchsorted(self._rows, (start, stop))
                self._kept[first:last] = block[self._rows[first:last] - start]
                self._missing.discard(start)
            yield block

    def take(self, rows: np.ndarray) -> Scores:
        """A copy of the given rows, from memory where all of them are there."""
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if self._missing or not np.array_equal(self._rows[at], rows):
            return self._source.take(rows)
        return ArrayScores(self._kept if len(at) == len(self._rows) else self._kept[at], self.dtype)

    def place(self, row: int) -> str:
        """As the source names it."""
        return self._source.place(row)


def default_limit() -> int:
    """Bytes that may hold a copy of the scores where no limit is stated."""
    return int(CACHE_SHARE * free_memory())


def free_memory() -> int:
    """Bytes that this process may still take: what the system has free, or what its control group leaves."""
    free = 1 << 62
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return max(free, 0)
