"""Rows that move to the rank where their block begins, so that sums over blocks have the bits of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from otlabel.ranks.communicator import Communicator
from otlabel.sources.base import Source, Span, read_rows, storage_array
from otlabel.sources.memory import ArraySource
from otlabel.sources.wrapped import Wrapped


class Redistribution:
    """Who has which rows, in the order of ranks, and who works on which: whole blocks.

    A block belongs to the rank where it begins; the few rows of it that other ranks have are sent there.
    """

    def __init__(self, communicator: Communicator, counts: np.ndarray, block_rows: int) -> None:
        self._communicator = communicator
        self._ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.n_rows = int(self._ends[-1])  # of all ranks
        self._begun = np.minimum(-(-self._ends // block_rows) * block_rows, self.n_rows)
        self._begun[0], self._begun[-1] = 0, self.n_rows
        rank = communicator.rank
        self.given = int(self._ends[rank]), int(self._ends[rank + 1])  # from where to where this rank has rows ...
        self.worked = int(self._begun[rank]), int(self._begun[rank + 1])  # ... and works on rows
        self.n_sent = min(self.worked[0], self.given[1]) - self.given[0]  # rows at its beginning that another works on
        self.n_received = max(self.worked[1] - max(self.given[1], self.worked[0]), 0)  # that come from others

    def place(self, row: int, place: Callable[[int], str]) -> str:
        """The name of a row that is worked on here: its number in its rank, or what that is called where it is here."""
        rank = int(np.searchsorted(self._ends, self.worked[0] + row, side="right")) - 1
        there = self.worked[0] + row - int(self._ends[rank])
        return f"{place(there) if rank == self._communicator.rank else f'row {there}'} of rank {rank}"

    def received(self, name: str, head: np.ndarray) -> np.ndarray:
        """The rows that come from others, once they have been sent, for the `n_sent` first rows here."""
        tail = np.empty((self.n_received, *head.shape[1:]), head.dtype)
        at = max(self.given[1], self.worked[0])
        outgoing = [(rank, head[low - self.given[0] : high - self.given[0]]) for rank, low, high in self._to_others()]
        incoming = [(rank, tail[low - at : high - at]) for rank, low, high in self._from_others()]
        self._communicator.exchange(name, outgoing, incoming)
        return tail

    def returned(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Of something for each row worked on here, (M, ...), what belongs to each row that this rank has."""
        head = np.empty((self.n_sent, *rows.shape[1:]), rows.dtype)
        at = self.worked[0]
        outgoing = [(rank, rows[low - at : high - at]) for rank, low, high in self._from_others()]
        incoming = [(rank, head[low - self.given[0] : high - self.given[0]]) for rank, low, high in self._to_others()]
        self._communicator.exchange(name, outgoing, incoming)
        kept = min(self.given[1], self.worked[1]) - at
        return np.concatenate([head, rows[: max(kept, 0)]])

    def _to_others(self) -> Iterator[tuple[int, int, int]]:
        """Ranks that work on rows of this one, and from which row to which."""
        return self._overlaps(self.given, self._begun)

    def _from_others(self) -> Iterator[tuple[int, int, int]]:
        """Ranks that have rows which this one works on."""
        return self._overlaps(self.worked, self._ends)

    def _overlaps(self, here: tuple[int, int], ends: np.ndarray) -> Iterator[tuple[int, int, int]]:
        for rank in range(self._communicator.world_size):
            low, high = max(here[0], int(ends[rank])), min(here[1], int(ends[rank + 1]))
            if rank != self._communicator.rank and low < high:
                yield rank, low, high


class RedistributedRows(Wrapped):
    """Rows of a source that are worked on here, followed by those that came from other ranks, which are in memory."""

    def __init__(self, source: Source, tail: np.ndarray, redistribution: Redistribution) -> None:
        super().__init__(source)
        self._skip, self._tail = redistribution.n_sent, tail
        first, stop = redistribution.worked
        self.shape = stop - first, source.shape[1]
        self._n_own = self.shape[0] - len(tail)

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """From the source, or from memory."""
        first = spans[0][0]
        rows = self._rows(first, spans[-1][1])
        return (rows[start - first : stop - first] for start, stop in spans)

    def _rows(self, start: int, stop: int) -> Any:
        end = min(stop, self._n_own)
        if start >= end:
            return self._tail[start - self._n_own : stop - self._n_own]
        rows = read_rows(self.source, self._skip + start, self._skip + end)
        return rows if stop == end else np.concatenate([rows, self._tail[: stop - end]])

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows."""
        number = int(np.searchsorted(rows, self._n_own))
        out = storage_array((len(rows), self.shape[1]), self.dtype)
        if number:
            out[:number] = read_rows(self.source.take(rows[:number] + self._skip), 0, number)
        out[number:] = self._tail[rows[number:] - self._n_own]
        return ArraySource(out, self.dtype)
