"""What a solve keeps in memory of scores that it would else read again: all of them where they fit, or a sample."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np

from otlabel.sources.base import Batch, Source, WrappedSource, storage_array
from otlabel.sources.device import DeviceSource
from otlabel.sources.files import FileSource
from otlabel.sources.free import free_memory
from otlabel.sources.linear import LinearScores
from otlabel.sources.memory import ArraySource

CACHE_SHARE = 0.5  # of the memory that is free may hold a copy of the scores where no limit is stated


class KeptWhole(WrappedSource):
    """A file's scores, which stay in memory once they are read."""

    keeps_all = True
    source: FileSource

    def __init__(self, source: FileSource) -> None:
        super().__init__(source)
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

    def batches(self) -> list[Batch]:
        """As the source reads them, or by single blocks once all is in memory."""
        return [[block] for block in self.blocks()] if self.random_access else self.source.batches()

    def read(self, start: int, stop: int) -> np.ndarray:
        """From memory, after reading what is not there yet."""
        rows = self._kept[start:stop]
        if not self._present[start:stop].all():
            self.source.read_into(start, stop, rows)
            self._present[start:stop] = True
        return rows

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows."""
        return ArraySource(self._kept[rows], self.dtype) if self.random_access else self.source.take(rows)


class KeptRows(WrappedSource):
    """A source that each pass reads anew, but for some rows, which the first pass leaves in memory to sample from."""

    random_access = False

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        super().__init__(source)
        self._rows = rows
        self._kept = storage_array((len(rows), self.shape[1]), self.dtype)
        self._missing = {start for start, _ in self.blocks()}

    @property
    def fine(self) -> Source:
        """The source's, unless that is what is read here."""
        return self if self.source.fine is self.source else self.source.fine

    @property
    def bare(self) -> Source:
        """The source's, unless that is what is read here."""
        return self if self.source.bare is self.source else self.source.bare

    def read(self, start: int, stop: int) -> np.ndarray:
        """By the source."""
        return self.source.read(start, stop)

    def read_blocks(self, batch: Batch) -> Iterator[np.ndarray]:
        """By the source; on the way, what is to be kept is copied."""
        for (start, stop), block in zip(batch, self.source.read_blocks(batch), strict=True):
            if start in self._missing:
                first, last = np.searchsorted(self._rows, (start, stop))
                self._kept[first:last] = block[self._rows[first:last] - start]
                self._missing.discard(start)
            yield block

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows, from memory where all of them are there."""
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if self._missing or not np.array_equal(self._rows[at], rows):
            return self.source.take(rows)
        return ArraySource(self._kept if len(at) == len(self._rows) else self._kept[at], self.dtype)


def cached(source: Source, memory_limit: int | None = None, rows: np.ndarray | None = None) -> Source:
    """The source such that its first pass leaves in memory, within so many bytes, what others would read again.

    That is all of a file, or of the features of a head; else the given rows (sorted), from which samples will be taken.
    A device then makes all scores of a head at once if they fit there. No limit: half of the memory that is free.
    """
    limit = _checked_limit(memory_limit)
    if isinstance(source, LinearScores):
        source.features.change(lambda features: cached(features, limit))
        source = source if rows is None else source.made()
    elif isinstance(source, DeviceSource):
        source = source.over(cached(source.source, limit, rows))
    elif isinstance(source, FileSource) and source.n_bytes <= limit:
        source = KeptWhole(source)
    in_memory = source.random_access or source.keeps_all
    return source if rows is None or in_memory or not source.on_cpu else KeptRows(source, rows)


def default_limit() -> int:
    """Bytes that may hold a copy of the rows where no limit is stated."""
    return int(CACHE_SHARE * free_memory())


def _checked_limit(limit: Any) -> int:
    """Bytes that may hold a copy of the rows; half of what is free where nobody says."""
    if limit is None:
        return default_limit()
    if not (isinstance(limit, Real) and float(limit) >= 0):
        raise ValueError(f"memory_limit is {limit!r}; pass a number of bytes, 0 to keep nothing, or None")
    return limit  # type: ignore[return-value]
