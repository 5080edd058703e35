"""Scores with one more class, whose score is zero for everyone: the choice of taking none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from otlabel.scores.base import Batch, Scores, WrappedScores


class WithColumn(WrappedScores):
    """A source with a last column of zeros."""

    def __init__(self, source: Scores) -> None:
        super().__init__(source)
        self.shape = (source.shape[0], source.shape[1] + 1)

    @property
    def fine(self) -> Scores:
        """The fine source with the same column."""
        if self.source.fine is self.source:
            return self
        fine = WithColumn(self.source.fine)
        fine.own_share = self.own_share
        return fine

    def read(self, start: int, stop: int) -> Any:
        """The source's rows, and a zero, which has the same bits in every storage form."""
        return _widened(self.source.read(start, stop))

    def read_blocks(self, batch: Batch) -> Iterator[Any]:
        """The source's blocks, widened one by one."""
        return map(_widened, self.source.read_blocks(batch))

    def take(self, rows: np.ndarray) -> Scores:
        """The given rows of the source."""
        return WithColumn(self.source.take(rows))


def _widened(block: Any) -> Any:
    if isinstance(block, np.ndarray):
        wider = np.zeros((block.shape[0], block.shape[1] + 1), block.dtype)
        wider[:, :-1] = block
        return wider
    import torch

    return torch.nn.functional.pad(block, (0, 1))
