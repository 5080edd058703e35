"""Scores that are in memory already: NumPy arrays (mapped files too) and tensors, read in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import (
    BLOCK_ENTRIES,
    MOST_WHOLE,
    Batch,
    Source,
    WrappedSource,
    check_shape,
    check_whole,
    storage_type,
)
from otlabel.sources.given import plain_tensor, tensor_array, widened
from otlabel.sweep import has_triton

if TYPE_CHECKING:
    import torch

MINUS_INF_BITS = {"float16": 0xFC00, "bfloat16": -0x80}  # as halves are stored: unsigned, and signed
SPAN_ENTRIES = 1 << 32  # scores that one call reduces on a device: few calls, and partial sums that stay small


class ArraySource(Source):
    """A NumPy array in any layout; float16 is held as its uint16 bits, bfloat16 as its int16 bits."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array = array
        self.shape = (array.shape[0], array.shape[1])
        self.dtype = dtype
        self.random_access = not _is_mapped(array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A view where rows are contiguous, otherwise a copy of just this block."""
        return np.ascontiguousarray(self.array[start:stop])

    def take(self, rows: np.ndarray) -> ArraySource:
        """A copy of the given rows."""
        return ArraySource(np.ascontiguousarray(self.array[rows]), self.dtype)


class TensorSource(Source):
    """A torch tensor, reduced on the device that it is on."""

    on_cpu = False
    random_access = True

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.device = tensor, tensor.device
        self.whole = tensor
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

    def take(self, rows: np.ndarray) -> TensorSource:
        """A copy of the given rows on the same device."""
        import torch

        return TensorSource(self.tensor[torch.from_numpy(rows).to(self.device)])

    def _cut(self, entries: int) -> Batch:
        size = max(1, entries // self.shape[1])
        return [(start, min(start + size, self.shape[0])) for start in range(0, self.shape[0], size)]


class Masked(WrappedSource):
    """An array some of whose pairs are masked, which forbids them; a block is copied where it is read."""

    def __init__(self, source: ArraySource, mask: np.ndarray) -> None:
        super().__init__(source)
        self._mask = mask
        self._forbidden = MINUS_INF_BITS.get(source.dtype, -np.inf)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of just this block, with -inf where it is masked."""
        return self._filled(self.source.read(start, stop), self._mask[start:stop])

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows."""
        return ArraySource(self._filled(self.source.take(rows).read(0, len(rows)), self._mask[rows]), self.dtype)

    def _filled(self, block: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask, np.array(self._forbidden, block.dtype), block)


def open_array(array: np.ndarray, what: str = "scores") -> Source:
    """An array as a source, without a copy where its type can be read in place; masked pairs of scores are -inf."""
    check_shape(array.shape, what)
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array) else None
    if mask is not None and not what.startswith("scores"):
        row, column = np.argwhere(mask)[0]
        raise InvalidScoresError(
            f"{int(mask.sum())} of {mask.size} {what} are masked, the first at row {row}, column {column}; a masked "
            f"number is none: put one there ({what}.filled(value)) or leave these rows out"
        )
    array = np.asarray(np.ma.getdata(array))
    if array.dtype.name == "bfloat16":
        source = ArraySource(array.view(np.int16), "bfloat16")
    else:
        array = widened(array)
        dtype = storage_type(array.dtype, what)
        if array.dtype != dtype:  # whole numbers, long doubles, numbers in another byte order
            check_whole(array, what)
            array = array.astype(dtype)
        source = ArraySource(array.view(np.uint16) if dtype == "float16" else array, dtype)
    return source if mask is None else Masked(source, mask)


def open_tensor(tensor: torch.Tensor, what: str = "scores") -> Source:
    """A tensor as a source, where it is."""
    import torch

    tensor = plain_tensor(tensor, what)
    check_shape(tuple(tensor.shape), what)
    if tensor.is_complex():
        raise InvalidScoresError(f"{what} have dtype {tensor.dtype}; pass real numbers (float16, float32, float64)")
    if tensor.device.type != "cpu":
        if tensor.itemsize == 1 and tensor.is_floating_point():  # float8
            tensor = tensor.float()
        if not tensor.is_floating_point():
            check_whole(tensor_array(tensor, what) if _has_large(tensor) else np.empty((0, 0)), what)
            tensor = tensor.double()
        return TensorSource(tensor)
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        return ArraySource(tensor.view(torch.int16).numpy(), "bfloat16")
    return open_array(tensor_array(tensor, what), what)


def _has_large(tensor: torch.Tensor) -> bool:
    """Whether a tensor of whole numbers has any that float64 may not hold."""
    if tensor.dtype.itemsize < 8:
        return False
    return not tensor.dtype.is_signed or int(tensor.min()) < -MOST_WHOLE or int(tensor.max()) > MOST_WHOLE


def _is_mapped(array: np.ndarray) -> bool:
    """Whether the array, or what it is a view of, lies in a mapped file."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False
