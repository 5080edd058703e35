"""Scores that are in memory already: NumPy arrays (mapped files too) and tensors, read in place."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.scores.base import BLOCK_ENTRIES, Batch, Scores, check_shape, storage_type
from otlabel.sweep import has_triton

if TYPE_CHECKING:
    import torch

SPAN_ENTRIES = 1 << 30  # scores that one call reduces on a device: few calls, and partial sums that stay small


class ArrayScores(Scores):
    """A NumPy array in any layout; float16 is held as its uint16 bits, bfloat16 as its int16 bits."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array = array
        self.shape = (array.shape[0], array.shape[1])
        self.dtype = dtype
        self.random_access = not _is_mapped(array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A view where rows are contiguous, otherwise a copy of just this block."""
        return np.ascontiguousarray(self.array[start:stop])

    def take(self, rows: np.ndarray) -> ArrayScores:
        """A copy of the given rows."""
        return ArrayScores(np.ascontiguousarray(self.array[rows]), self.dtype)


class TensorScores(Scores):
    """A torch tensor, reduced on the device that it is on."""

    on_cpu = False
    random_access = True

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.device = tensor, tensor.device
        self.shape = (tensor.shape[0], tensor.shape[1])
        self.dtype = str(tensor.dtype).removeprefix("torch.")

    def blocks(self) -> Batch:
        """Larger blocks than on a CPU: a device wants much work a call."""
        return self._cut(16 * BLOCK_ENTRIES[1])

    def device_batches(self) -> list[Batch]:
        """As much as a sweep that copies nothing can take; but scores in columns are copied to be read by rows."""
        in_place = self.device.type == "cuda" and has_triton() and self.tensor.stride(1) == 1
        return [[block] for block in (self._cut(SPAN_ENTRIES) if in_place else self.blocks())]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """A view."""
        return self.tensor[start:stop]

    def take(self, rows: np.ndarray) -> TensorScores:
        """A copy of the given rows on the same device."""
        import torch

        return TensorScores(self.tensor[torch.from_numpy(rows).to(self.device)])

    def _cut(self, entries: int) -> Batch:
        size = max(1, entries // self.shape[1])
        return [(start, min(start + size, self.shape[0])) for start in range(0, self.shape[0], size)]


def open_array(array: np.ndarray, what: str = "scores") -> ArrayScores:
    """An array as a source, without a copy where its type can be read in place."""
    check_shape(array.shape, what)
    dtype = storage_type(array.dtype, what)
    if array.dtype != dtype:  # whole numbers, long doubles, numbers in another byte order
        array = array.astype(dtype)
    return ArrayScores(array.view(np.uint16) if dtype == "float16" else array, dtype)


def open_tensor(tensor: torch.Tensor, what: str = "scores") -> ArrayScores | TensorScores:
    """A tensor as a source, where it is."""
    import torch

    check_shape(tuple(tensor.shape), what)
    if tensor.is_complex():
        raise InvalidScoresError(f"{what} have dtype {tensor.dtype}; pass real numbers (float16, float32, float64)")
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.itemsize == 1:  # float8
        tensor = tensor.float()
    if tensor.device.type != "cpu":
        return TensorScores(tensor if tensor.is_floating_point() else tensor.double())
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        return ArrayScores(tensor.view(torch.int16).numpy(), "bfloat16")
    return open_array(tensor.numpy(), what)


def is_tensor(value: Any) -> bool:
    """Whether value is a torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(values: Any) -> np.ndarray:
    """Numbers of any kind as a NumPy array; tensors from any device."""
    if is_tensor(values):
        values = values.detach().cpu()
        if values.is_floating_point() and str(values.dtype).startswith(("torch.bfloat16", "torch.float8")):
            values = values.float()  # NumPy has none
    return np.asarray(values)


def _is_mapped(array: np.ndarray) -> bool:
    """Whether the array, or what it is a view of, lies in a mapped file."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False
