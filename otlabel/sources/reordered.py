"""Scores whose columns are put in another order, that of the classes of an earlier solve."""

from __future__ import annotations

from typing import Any

import numpy as np

from otlabel.sources.base import ChangedSource, Source


class ReorderedScores(ChangedSource):
    """A source with its columns in the given order: column k is the source's column `order[k]`."""

    def __init__(self, source: Source, order: np.ndarray) -> None:
        super().__init__(source)
        self._order = order
        names = source.class_names
        self.class_names = None if names is None else [names[at] for at in order]
        self.row_names = source.row_names

    @property
    def bare(self) -> Source:
        """The source's, in the same order."""
        return self._likewise(self.source.bare)

    def _of(self, source: Source) -> Source:
        return ReorderedScores(source, self._order)

    def _changed(self, block: Any) -> Any:
        if isinstance(block, np.ndarray):
            return np.take(block, self._order, axis=1)
        return block[:, self._order.tolist()].contiguous()
