"""Lists of rows in few bytes: those of each batch as long as there is room, the others made anew in every pass.

Unlike lists in one piece they are never joined, and what is not kept is read again where it lies. So lists may be had
of any number of rows in any memory, and labels are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.sources.base import Source, Span
from otlabel.sources.listed import Lists
from otlabel.sweep.lists import list_block
from otlabel.sweep.several import Several

if TYPE_CHECKING:
    from otlabel.ranks.rowset import RowSet

Packed = tuple[np.ndarray, ...]  # of a block: sizes, classes and scores
Choose = Callable[[Any, int, int], tuple[np.ndarray, np.ndarray, np.ndarray, float]]


def chooser(rows: RowSet, potentials: np.ndarray, reach: np.ndarray) -> tuple[RowSet, Choose]:
    """What lists of rows are made of, and how: sizes, classes and scores of a block, and by how much these may err.

    See `listed` for what is listed.
    """
    from otlabel.sweep.running import backend_of

    few, several = rows.opened.few, rows.labels_per_row
    read = rows.fine if few is None else rows
    lists = Several(several, backend_of(read.source)).list_block
    highest, spans = potentials + reach, 2 * reach

    def choose(block: Any, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        choose_classes = list_block if several == 1 and isinstance(block, np.ndarray) else lists
        sizes, classes, scores = choose_classes(block, highest, spans)
        rounding = 0.0
        if few is not None:
            scores, rounding = few(start, stop, sizes, classes)
        return sizes, classes, scores, rounding

    return read, choose


class PackedLists(Source):
    """Lists that are made of dense rows where they are read, and kept within so many bytes."""

    def __init__(self, scores: Source, choose: Choose, dtype: str, quantum: float, room: float) -> None:
        self.shape, self.dtype = scores.shape, dtype
        self.grain = max(scores.grain, 2)  # more than 1, since lists that are not kept cost a pass
        self.n_listed, self.rounding = 0, 0.0  # of all lists, once they have been read: entries; see `chooser`
        self._scores, self._choose, self._quantum, self._room = scores, choose, quantum, room
        self._small = np.min_scalar_type(self.shape[1])  # what holds numbers of classes
        self._kept: dict[tuple[Span, ...], list[Packed] | None] = {}
        self._lock = threading.Lock()

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """Where lists are made."""
        return self._scores.reads_files

    def close(self) -> None:
        """As the dense rows."""
        self._scores.close()

    def read(self, spans: Sequence[Span]) -> Iterator[Lists]:
        """Each with starts of its own."""
        kept = self._kept.get(tuple(spans))
        if kept is not None:
            yield from map(self._unpacked, kept)
            return
        packed, largest = list[Packed](), 0.0
        for (start, stop), block in zip(spans, self._scores.read(spans), strict=True):
            sizes, classes, scores, rounding = self._choose(block, start, stop)
            scores = scores if scores.base is None else scores.copy()  # else all that was set aside for them would stay
            of_block = sizes.astype(self._small), classes.astype(self._small), scores
            packed.append(of_block)
            largest = max(largest, rounding)
            yield self._unpacked(of_block)
        self._keep(tuple(spans), packed, largest)

    def take(self, rows: np.ndarray) -> Source:
        """All scores of the given rows."""
        return self._scores.take(rows)

    def _unpacked(self, packed: Packed) -> Lists:
        sizes, classes, scores = packed
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return Lists(starts, classes.astype(np.int32), scores, self._quantum)

    def _keep(self, spans: tuple[Span, ...], packed: list[Packed], rounding: float) -> None:
        n_bytes = sum(part.nbytes for of_block in packed for part in of_block)
        with self._lock:
            if spans not in self._kept:  # read for the first time
                self.n_listed += sum(len(scores) for *_, scores in packed)
                self.rounding = max(self.rounding, rounding)
                fits = n_bytes <= self._room
                self._kept[spans] = packed if fits else None
                self._room -= n_bytes * fits
