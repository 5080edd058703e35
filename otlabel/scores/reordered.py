"""Scores whose columns are put in another order, that of the classes of an earlier solve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from otlabel.scores.base import Batch, Scores, WrappedScores


class ReorderedScores(WrappedScores):
    """A source with its columns in the given order: column k is the source's column `order[k]`."""

    def __init__(self, source: Scores, order: np.ndarray) -> None:
        super().__init__(source)
        self._order = order
        names = source.class_names
        self.class_names = None if names is None else [names[at] for at in order]
        self.row_names = source.row_names

    @property
    def fine(self) -> Scores:
        """The fine source, in the same order."""
        if self.source.fine is self.source:
            return self
        fine = ReorderedScores(self.source.fine, self._order)
        fine.own_share = self.own_share
        return fine

    def read(self, start: int, stop: int) -> Any:
        """The source's rows, in order."""
        return self._ordered(self.source.read(start, stop))

    def read_blocks(self, batch: Batch) -> Iterator[Any]:
        """The source's blocks, one by one."""
        return map(self._ordered, self.source.read_blocks(batch))

    def take(self, rows: np.ndarray) -> Scores:
        """The given rows of the source."""
        return ReorderedScores(self.source.take(rows), self._order)

    def _ordered(self, block: Any) -> Any:
        if isinstance(block, np.ndarray):
            return np.take(block, self._order, axis=1)
        return block[:, self._order.tolist()].contiguous()
