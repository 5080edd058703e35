"""Of each row a few classes only, in CSR: sparse scores, and what a solve goes on with after it has read all scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from otlabel.sources.base import Source, Span, as_float
from otlabel.sources.memory import MINUS_INF_BITS

if TYPE_CHECKING:
    import torch

QUANTUM_BITS = 50  # of all mass: what float64 adds up without rounding, with room


class Lists(NamedTuple):
    """Lists of some rows: row i has the entries from `starts[i]` up to `starts[i + 1]`."""

    starts: np.ndarray  # (n + 1,) int64
    classes: np.ndarray  # (E,) int32, rising in each row
    scores: np.ndarray  # (E,) in storage form
    quantum: float  # of masses, a power of two: sums of its multiples have the same bits in any order

    @property
    def sizes(self) -> np.ndarray:
        """(n,) entries of each row."""
        return np.diff(self.starts)

    @property
    def row_of(self) -> np.ndarray:
        """(E,) the row of each entry, counted from the first here; of lists from their own beginning."""
        return np.repeat(np.arange(len(self.starts) - 1), self.sizes)

    def row_at(self, entry: int) -> int:
        """The row of one entry."""
        return int(np.searchsorted(self.starts, entry, side="right")) - 1


class ListedSource(Source):
    """Lists of all rows, in memory; the scores of all other classes count as -inf, or as no more than `least`."""

    torch_device: torch.device | None = None  # where results are to be tensors

    def __init__(self, lists: Lists, n_classes: int, dtype: str, least: np.ndarray | None = None) -> None:
        self.lists, self.dtype, self.least = lists, dtype, least  # (N,) float64: what is not listed is at most that
        self.shape = len(lists.starts) - 1, n_classes

    @property
    def n_listed(self) -> int:
        """Entries of all lists."""
        return int(self.lists.starts[-1])

    @property
    def columns(self) -> int:
        """Entries of a row in the mean, one at least."""
        return max(1, self.n_listed // max(1, self.shape[0]))

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
        lists = Lists(ends, classes[entries], scores[entries], quantum)
        return ListedSource(lists, self.shape[1], self.dtype, None if self.least is None else self.least[rows])

    def adding(self, n_units: float) -> ListedSource:
        """The same lists, of so much mass in all."""
        lists = self.lists._replace(quantum=quantum_of(n_units))
        return ListedSource(lists, self.shape[1], self.dtype, self.least)

    def with_column(self) -> ListedSource:
        """The same with one more class, which every row lists with a score of zero."""
        starts, classes, scores, quantum = self.lists
        n_rows, n_classes = self.shape
        ends = starts[1:]
        lists = Lists(
            starts + np.arange(n_rows + 1), np.insert(classes, ends, n_classes), np.insert(scores, ends, 0), quantum
        )
        return ListedSource(lists, n_classes + 1, self.dtype, self.least)

    def moved(self, constant: float | None) -> ListedSource:
        """Scores less a constant, or less the largest score of each row, in float64."""
        numbers = as_float(self.lists.scores, self.dtype).astype(np.float64)
        by = np.full(self.shape[0], constant or 0.0)
        if constant is None:
            filled = self.lists.sizes > 0
            by[filled] = np.maximum.reduceat(numbers, self.lists.starts[:-1][filled])
            by[by == -np.inf] = 0.0
        numbers -= np.repeat(by, self.lists.sizes)
        least = None if self.least is None else self.least - by
        return ListedSource(self.lists._replace(scores=numbers), self.shape[1], "float64", least)


class Filled(Source):
    """Rows of lists as of any other matrix, -inf for what is not listed: for looks at a few of them."""

    def __init__(self, source: ListedSource) -> None:
        self.source, self.shape, self.dtype = source, source.shape, source.dtype

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """Copies of just these rows, in storage form."""
        minus_inf = MINUS_INF_BITS.get(self.dtype, -np.inf)
        for lists in self.source.read(spans):
            begin, end = lists.starts[0], lists.starts[-1]
            block = np.full((len(lists.starts) - 1, self.shape[1]), minus_inf, lists.scores.dtype)
            block[lists.row_of, lists.classes[begin:end]] = lists.scores[begin:end]
            yield block

    def take(self, rows: np.ndarray) -> Filled:
        """A copy of the given rows."""
        return Filled(self.source.take(rows))


def least_of(source: Source) -> np.ndarray | None:
    """Of each row what a class that is not listed scores at most, (N,); None where such classes are forbidden."""
    return source.least if isinstance(source, ListedSource) else None


def quantum_of(n_units: float) -> float:
    """The quantum of masses that are so many units in all."""
    return float(2.0 ** (math.ceil(math.log2(n_units)) - QUANTUM_BITS))


def stacked(sources: Sequence[ListedSource]) -> ListedSource:
    """Lists of the same classes one after the other."""
    numbers = [as_float(source.lists.scores, source.dtype) for source in sources]
    scores = np.concatenate(numbers)
    sizes = np.concatenate([source.lists.sizes for source in sources])
    classes = np.concatenate([source.lists.classes for source in sources])
    leasts = [np.full(source.shape[0], -np.inf) if source.least is None else source.least for source in sources]
    least = None if all(source.least is None for source in sources) else np.concatenate(leasts)
    lists = Lists(np.append(0, np.cumsum(sizes)), classes, scores, quantum_of(max(1, len(sizes))))
    return ListedSource(lists, sources[0].shape[1], str(scores.dtype), least)
