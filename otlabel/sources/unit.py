"""Rows of another source, each divided by its length."""

from __future__ import annotations

from typing import Any

import numpy as np

from otlabel.sources.base import ChangedSource, Source, as_float

LEAST, LARGEST = 2.0**-450, 2.0**450  # lengths whose squares are numbers; others are brought there first
STEP = 2.0**600  # by which, as a power of two rounds nothing


class UnitRows(ChangedSource):
    """Rows of length 1; a row of zeros stays as it is. Lengths and quotients are float64's, then rounded to `dtype`."""

    def __init__(self, source: Source, *, double: bool = False) -> None:
        super().__init__(source)
        self.dtype = "float64" if double or source.dtype == "float64" else "float32"
        self.least_rows = getattr(source, "least_rows", 1)

    @property
    def fine(self) -> UnitRows:
        """The same rows without the last rounding."""
        if self.dtype == "float64":
            return self
        fine = UnitRows(self.source, double=True)
        fine.all_rows = self.all_rows
        return fine

    def _of(self, source: Source) -> UnitRows:
        return UnitRows(source, double=self.dtype == "float64")

    def _changed(self, rows: Any) -> Any:
        if not self.on_cpu:
            import torch

            wide = rows.double()
            lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
            if self.source.dtype == "float64":
                steps = torch.ones_like(lengths)
                steps[lengths < LEAST], steps[lengths > LARGEST] = STEP, 1 / STEP
                wide = wide * steps
                lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
            return (wide / lengths.where(lengths > 0, 1)).to(getattr(torch, self.dtype))
        # In float64, where squares of float32 numbers neither overflow nor vanish.
        numbers = as_float(rows, self.source.dtype).astype(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
            extreme = np.flatnonzero((lengths < LEAST) | (lengths > LARGEST))
            if len(extreme):
                numbers[extreme] *= np.where(lengths[extreme] < LEAST, STEP, 1 / STEP)[:, None]
                lengths[extreme] = np.sqrt(np.square(numbers[extreme]).sum(1))
        return (numbers / np.where(lengths > 0, lengths, 1)[:, None]).astype(self.dtype)
