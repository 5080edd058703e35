"""Scores with one more class, whose score is zero for everyone: the choice of taking none."""

from __future__ import annotations

from typing import Any

import numpy as np

from otlabel.sources.base import ChangedSource, Source


class WithColumn(ChangedSource):
    """A source with a last column of zeros."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.shape = (source.shape[0], source.shape[1] + 1)

    def _of(self, source: Source) -> Source:
        return WithColumn(source)

    def _changed(self, block: Any) -> Any:
        if isinstance(block, np.ndarray):  # a zero has the same bits in every storage form
            wider = np.zeros((block.shape[0], block.shape[1] + 1), block.dtype)
            wider[:, :-1] = block
            return wider
        import torch

        return torch.nn.functional.pad(block, (0, 1))
