"""Of each row only the classes near its best one, in CSR: what a solve goes on with after it has read all scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from otlabel.sources.base import Source, Span


class Lists(NamedTuple):
    """Lists of some rows: row i has the entries from `starts[i]` up to `starts[i + 1]`."""

    starts: np.ndarray  # (n + 1,) int64
    classes: np.ndarray  # (E,) int32, rising in each row
    scores: np.ndarray  # (E,) in storage form
    quantum: float  # of masses, a power of two: sums of its multiples have the same bits in any order


class ListedSource(Source):
    """Lists of all rows, in memory; the scores of all other classes count as -inf."""

    def __init__(self, lists: Lists, n_classes: int, dtype: str) -> None:
        self.lists, self.dtype = lists, dtype
        self.shape = len(lists.starts) - 1, n_classes

    @property
    def n_listed(self) -> int:
        """Entries of all lists."""
        return int(self.lists.starts[-1])

    def read(self, spans: Sequence[Span]) -> Iterator[Lists]:
        """Views."""
        starts = self.lists.starts
        return (self.lists._replace(starts=starts[first : last + 1]) for first, last in spans)

    def take(self, rows: np.ndarray) -> ListedSource:
        """A copy of the given rows."""
        starts, classes, scores, quantum = self.lists
        sizes = starts[rows + 1] - starts[rows]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(starts[rows] - ends[:-1], sizes) + np.arange(ends[-1])
        return ListedSource(Lists(ends, classes[entries], scores[entries], quantum), self.shape[1], self.dtype)
