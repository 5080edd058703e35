"""Scores with one more class, whose score is zero for everyone: the choice of taking none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from otlabel.scores.base import Batch, Scores


class WithColumn(Scores):
    """A source with a last column of zeros."""

    def __init__(self, source: Scores) -> None:
        self._source = source
        self.shape, self.dtype, self.on_cpu = (source.shape[0], source.shape[1] + 1), source.dtype, source.on_cpu
        if not source.on_cpu:
            self.device = source.device

    @property
    def random_access(self) -> bool:  # type: ignore[override]
        """As the source."""
        return self._source.random_access

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """As the source."""
        return self._source.reads_files

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """By the source."""
        return self._source.bytes_read

    def blocks(self) -> Batch:
        """Those of the source."""
        return self._source.blocks()

    def batches(self) -> list[Batch]:
        """Those of the source."""
        return self._source.batches()

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """The source's own."""
        return self._source.reading()

    def read(self, start: int, stop: int) -> Any:
        """The source's rows, and a zero, which has the same bits in every storage form."""
        return _widened(self._source.read(start, stop))

    def read_blocks(self, batch: Batch) -> Iterator[Any]:
        """The source's blocks, widened one by one."""
        return map(_widened, self._source.read_blocks(batch))

    def take(self, rows: np.ndarray) -> Scores:
        """The given rows of the source."""
        return WithColumn(self._source.take(rows))

    def place(self, row: int) -> str:
        """As the source names it."""
        return self._source.place(row)


def _widened(block: Any) -> Any:
    if isinstance(block, np.ndarray):
        wider = np.zeros((block.shape[0], block.shape[1] + 1), block.dtype)
        wider[:, :-1] = block
        return wider
    import torch

    return torch.nn.functional.pad(block, (0, 1))
