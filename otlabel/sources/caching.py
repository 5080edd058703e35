"""What a solve keeps in memory of rows that it would else read again: all of them where they fit, or a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from otlabel.sources.base import Source, Span, n_bytes, storage_array
from otlabel.sources.device import DeviceSource
from otlabel.sources.files import FileSource
from otlabel.sources.free import free_memory
from otlabel.sources.linear import LinearScores
from otlabel.sources.listed import ListedSource
from otlabel.sources.memory import ArraySource
from otlabel.sources.opened import Opened
from otlabel.sources.wrapped import Wrapped

CACHE_SHARE = 0.5  # of the memory that is free may hold a copy of the scores where no limit is stated
MADE_BYTES = 64 << 20  # scores that are kept once they are made, whatever they are made of
MADE_SHARE = 0.125  # of it may hold what is made of scores that are in memory themselves


class KeptMade(Wrapped):
    """Rows that are made of others in memory, and stay there once they are."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._kept = storage_array(self.shape, self.dtype)
        self._present = np.zeros(self.shape[0], bool)

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """From memory, after making what is not there yet."""
        for start, stop in spans:
            if not self._present[start:stop].all():
                self._kept[start:stop] = next(iter(self.source.read([(start, stop)])))
                self._present[start:stop] = True
            yield self._kept[start:stop]

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows."""
        return ArraySource(self._kept[rows], self.dtype) if self._present.all() else self.source.take(rows)


class KeptWhole(KeptMade):
    """A file's rows, which stay in memory once they are read."""

    source: FileSource

    @property
    def grain(self) -> int:  # type: ignore[override]
        """As the source, or any rows once all are in memory."""
        return 1 if self._present.all() else self.source.grain

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """Until all is in memory."""
        return not self._present.all()

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """From memory, after reading what is not there yet."""
        first, last = spans[0][0], spans[-1][1]
        if not self._present[first:last].all():
            self.source.read_into(first, last, self._kept[first:last])
            self._present[first:last] = True
        return (self._kept[start:stop] for start, stop in spans)


class KeptRows(Wrapped):
    """A source that each pass reads anew, but for some rows, which the first pass leaves in memory to sample from."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        super().__init__(source)
        self._rows = rows
        self._kept = storage_array((len(rows), self.shape[1]), self.dtype)
        self._present = np.zeros(len(rows), bool)

    @property
    def grain(self) -> int:  # type: ignore[override]
        """As the source; more than 1, since rows that are not kept cost a pass."""
        return max(self.source.grain, 2)

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """By the source; on the way, what is to be kept is copied."""
        for (start, stop), block in zip(spans, self.source.read(spans), strict=True):
            first, last = np.searchsorted(self._rows, (start, stop))
            if not self._present[first:last].all():
                self._kept[first:last] = block[self._rows[first:last] - start]
                self._present[first:last] = True
            yield block

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows, from memory where all of them are there."""
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if not self._present.all() or not np.array_equal(self._rows[at], rows):
            return self.source.take(rows)
        return ArraySource(self._kept if len(at) == len(self._rows) else self._kept[at], self.dtype)


def cached(opened: Opened, memory_limit: int | None = None, rows: np.ndarray | None = None) -> Opened:
    """The same such that the first pass leaves in memory, within so many bytes, what others would read again.

    That is all of a file, or of the features of a head; else the given rows (sorted), from which samples will be taken.
    A device then makes all scores of a head at once if they fit there. No limit: half of the memory that is free.
    """
    limit = _checked_limit(memory_limit)
    if isinstance(opened, LinearScores):
        opened.features.change(lambda features: cached(features, limit))
        features = opened.features.opened.source
        opened = opened if rows is None else opened.made()
        if rows is not None and _is_little(opened, features):
            opened = replace(opened.mapped(KeptMade), few=opened.few, by_row=opened.by_row)
        source = opened.source
    else:
        source = _kept(opened.source, limit, rows)
    if rows is not None and source.device is None and source.grain > 1 and not isinstance(source, KeptMade):
        source = KeptRows(source, rows)
    return opened if source is opened.source else opened.over(source)


def _is_little(made: Opened, features: Source) -> bool:
    """Whether all scores that are made of features in memory take little of it, or no more than these do."""
    in_memory = made.source.device is None and (features.grain == 1 or isinstance(features, KeptWhole))
    if not in_memory or n_bytes(made.fine) <= MADE_BYTES:
        return in_memory
    return n_bytes(made.fine) <= min(n_bytes(features), MADE_SHARE * free_memory())


def made_once(opened: Opened) -> Opened:
    """What is made of rows in memory, kept there as well where that is little of what is free."""
    source = opened.source
    in_memory = source.device is None and source.grain == 1 and not source.reads_files
    if isinstance(source, ListedSource) or not in_memory or n_bytes(source) > MADE_SHARE * free_memory():
        return opened
    return opened.over(KeptMade(source))


def _kept(source: Source, limit: int | None, rows: np.ndarray | None) -> Source:
    """A file's rows kept whole where they fit; of what is moved to a device, on the host."""
    if isinstance(source, DeviceSource):
        inner = Opened.of(source.source)
        kept = cached(inner, limit, rows)
        return source if kept is inner else source.over(kept.source)
    if not isinstance(source, FileSource):
        return source
    return KeptWhole(source) if n_bytes(source) <= (default_limit() if limit is None else limit) else source


def default_limit() -> int:
    """Bytes that may hold a copy of the rows where no limit is stated."""
    return int(CACHE_SHARE * free_memory())


def _checked_limit(limit: Any) -> int | None:
    """Bytes that may hold a copy of the rows, or None where nobody says: looking for what is free takes a while."""
    if limit is not None and not (isinstance(limit, Real) and float(limit) >= 0):
        raise ValueError(f"memory_limit is {limit!r}; pass a number of bytes, 0 to keep nothing, or None")
    return limit  # type: ignore[return-value]
