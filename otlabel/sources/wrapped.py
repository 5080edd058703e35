"""Sources that are made of another one, which moves the bytes: as it is, or each row after a change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from otlabel.sources.base import Source, Span, as_float
from otlabel.sources.listed import ListedSource
from otlabel.sources.opened import Opened
from otlabel.sweep.blocks import device_rows

LOWEST = -float(np.finfo(np.float64).max)
LEAST, LARGEST = 2.0**-450, 2.0**450  # lengths whose squares are numbers; others are brought there first
STEP = 2.0**600  # by which, as a power of two rounds nothing

Change = Callable[[Any, str], Any]  # rows in storage form, and their type: the rows after the change


class Wrapped(Source):
    """A source made of another one."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.shape, self.dtype, self.device = source.shape, source.dtype, source.device

    @property
    def grain(self) -> int:  # type: ignore[override]
        """As the source."""
        return self.source.grain

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """If the source does."""
        return self.source.reads_files

    def close(self) -> None:
        """As the source does."""
        self.source.close()


class Changed(Wrapped):
    """A source each of whose rows is changed by itself."""

    def __init__(
        self, source: Source, change: Change, *, n_columns: int | None = None, dtype: str | None = None
    ) -> None:
        super().__init__(source)
        self.shape = source.shape[0], n_columns or source.shape[1]
        self.dtype, self._change = dtype or source.dtype, change

    @property
    def grain(self) -> int:  # type: ignore[override]
        """As the source; on a device no more than may be copied at a time."""
        return self.source.grain if self.device is None else max(self.source.grain, device_rows(self.shape[1]))

    def of(self, source: Source) -> Changed:
        """Another source with the same change."""
        return Changed(source, self._change, n_columns=self.shape[1], dtype=self.dtype)

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """The source's rows, changed."""
        return (self._change(rows, self.source.dtype) for rows in self.source.read(spans))

    def take(self, rows: np.ndarray) -> Source:
        """The given rows of the source, to be changed."""
        return self.of(self.source.take(rows))


# ---- one more class, whose score is zero for everyone: the choice of taking none ----


def with_column(opened: Opened) -> Opened:
    """Scores with a last column of zeros, with which a constant in a row is to be compared."""

    def widened(source: Source) -> Source:
        if isinstance(source, ListedSource):
            return source.with_column()
        return Changed(source, _widened, n_columns=source.shape[1] + 1)

    wider = opened.mapped(widened)
    return replace(wider, bare=wider.fine, class_names=None)


def _widened(block: Any, dtype: str) -> Any:
    if isinstance(block, np.ndarray):  # a zero has the same bits in every storage form
        wider = np.zeros((block.shape[0], block.shape[1] + 1), block.dtype)
        wider[:, :-1] = block
        return wider
    import torch

    return torch.nn.functional.pad(block, (0, 1))


# ---- moved towards zero in float64, before anything is added ----


def moved(opened: Opened, constant: float | None = None) -> Opened:
    """Scores less a constant, or less the largest score of each row, in float64.

    Differences of stored numbers that lie close together are exact, so that what a large constant in a row would hide
    from sums with potentials is not lost. Rows whose largest score is no such constant, as most others are far smaller,
    stay as they are: they would lose the digits of these.
    """
    change = functools.partial(_moved, constant=constant)

    def there(source: Source) -> Source:
        return source.moved(constant) if isinstance(source, ListedSource) else Changed(source, change, dtype="float64")

    return replace(opened.mapped(there), by_row=opened.finest_rows)


def _moved(block: Any, dtype: str, constant: float | None) -> Any:
    if isinstance(block, np.ndarray):
        numbers = as_float(block, dtype).astype(np.float64)
        if constant is not None:
            return np.subtract(numbers, constant, out=numbers)
        by = np.maximum(numbers.max(1, keepdims=True), LOWEST)  # a row of -inf stays one
        n_small = (np.abs(numbers) < np.abs(by) / 2).sum(1, keepdims=True)
        n_large = (numbers >= LOWEST).sum(1, keepdims=True) - n_small
        return np.subtract(numbers, np.where(n_small < n_large, by, 0), out=numbers)
    numbers = block.double()
    if constant is not None:
        return numbers - constant
    by = numbers.amax(1, keepdim=True).clamp(min=LOWEST)
    n_small = (numbers.abs() < by.abs() / 2).sum(1, keepdim=True)
    n_large = (numbers >= LOWEST).sum(1, keepdim=True) - n_small
    return numbers - by.where(n_small < n_large, 0)


# ---- columns in another order ----


def reordered(opened: Opened, order: np.ndarray) -> Opened:
    """Scores with their columns in the given order: column k is the source's column `order[k]`."""
    change = functools.partial(_reordered, order=order)
    names = None if opened.class_names is None else [opened.class_names[at] for at in order]
    return replace(opened.mapped(lambda source: Changed(source, change)), class_names=names)


def _reordered(block: Any, dtype: str, order: np.ndarray) -> Any:
    if isinstance(block, np.ndarray):
        return np.take(block, order, axis=1)
    return block[:, order.tolist()].contiguous()


# ---- rows of length 1 ----


def unit_rows(opened: Opened) -> Opened:
    """Rows of length 1, a row of zeros as it is: quotients are float64's, which the source rounds to float32."""
    stored = opened.source
    fine = rounded = Changed(stored, functools.partial(_unit, to="float64"), dtype="float64")
    if stored.dtype != "float64":
        rounded = Changed(stored, functools.partial(_unit, to="float32"), dtype="float32")
    return replace(opened.only(rounded), fine=fine, bare=fine)


def _unit(rows: Any, dtype: str, to: str) -> Any:
    if not isinstance(rows, np.ndarray):
        import torch

        wide = rows.double()
        lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        if dtype == "float64":
            steps = torch.ones_like(lengths)
            steps[lengths < LEAST], steps[lengths > LARGEST] = STEP, 1 / STEP
            wide = wide * steps
            lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        return (wide / lengths.where(lengths > 0, 1)).to(getattr(torch, to))
    # In float64, where squares of float32 numbers neither overflow nor vanish.
    numbers = as_float(rows, dtype).astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
        extreme = np.flatnonzero((lengths < LEAST) | (lengths > LARGEST))
        if len(extreme):
            numbers[extreme] *= np.where(lengths[extreme] < LEAST, STEP, 1 / STEP)[:, None]
            lengths[extreme] = np.sqrt(np.square(numbers[extreme]).sum(1))
    return (numbers / np.where(lengths > 0, lengths, 1)[:, None]).astype(to)
