"""Scores moved towards zero in float64, by a constant for all or for each row, before anything is added to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from otlabel.sources.base import ChangedSource, Source, as_float

LOWEST = -float(np.finfo(np.float64).max)


class MovedScores(ChangedSource):
    """A source less a constant, or less the largest score of each row, in float64.

    Differences of stored numbers that lie close together are exact, so that what a large constant in a row would hide
    from sums with potentials is not lost. Rows whose largest score is no such constant, as most others are far smaller,
    stay as they are: they would lose the digits of these.
    """

    def __init__(self, source: Source, constant: float | None = None) -> None:
        super().__init__(source)
        self.dtype, self._constant = "float64", constant

    def _of(self, source: Source) -> Source:
        return MovedScores(source, self._constant)

    def _changed(self, block: Any) -> Any:
        if isinstance(block, np.ndarray):
            numbers = as_float(block, self.source.dtype).astype(np.float64)
            if self._constant is not None:
                return np.subtract(numbers, self._constant, out=numbers)
            by = np.maximum(numbers.max(1, keepdims=True), LOWEST)  # a row of -inf stays one
            n_small = (np.abs(numbers) < np.abs(by) / 2).sum(1, keepdims=True)
            n_large = (numbers >= LOWEST).sum(1, keepdims=True) - n_small
            return np.subtract(numbers, np.where(n_small < n_large, by, 0), out=numbers)
        numbers = block.double()
        if self._constant is not None:
            return numbers - self._constant
        by = numbers.amax(1, keepdim=True).clamp(min=LOWEST)
        n_small = (numbers.abs() < by.abs() / 2).sum(1, keepdim=True)
        n_large = (numbers >= LOWEST).sum(1, keepdim=True) - n_small
        return numbers - by.where(n_small < n_large, 0)
