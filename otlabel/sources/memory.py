"""Scores that are in memory already: NumPy arrays (mapped files too) and tensors, read in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import MOST_WHOLE, Source, Span, check_shape, check_whole, storage_type
from otlabel.sources.given import plain_tensor, tensor_array, widened
from otlabel.sweep.blocks import cut, device_rows
from otlabel.sweep.running import WithinMemory

if TYPE_CHECKING:
    import torch

MINUS_INF_BITS = {"float16": 0xFC00, "bfloat16": -0x80}  # as halves are stored: unsigned, and signed
MAPPED_ROWS = 2  # are read together at least: a mapped file is read where it is touched, by pages


class ArraySource(Source):
    """A NumPy array in any layout; float16 is held as its uint16 bits, bfloat16 as its int16 bits."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array = array
        self.shape = (array.shape[0], array.shape[1])
        self.dtype = dtype
        self.grain = MAPPED_ROWS if _is_mapped(array) else 1

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """Views where rows are contiguous, otherwise copies of just these rows."""
        return (np.ascontiguousarray(self.array[start:stop]) for start, stop in spans)

    def take(self, rows: np.ndarray) -> ArraySource:
        """A copy of the given rows."""
        return ArraySource(np.ascontiguousarray(self.array[rows]), self.dtype)


class TensorSource(Source):
    """A torch tensor, reduced on the device that it is on."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.device = tensor, tensor.device
        self.shape = (tensor.shape[0], tensor.shape[1])
        self.dtype = str(tensor.dtype).removeprefix("torch.")

    @property
    def grain(self) -> int:  # type: ignore[override]
        """Any rows, but where they lie in columns as many as may be copied at a time."""
        return 1 if self.tensor.stride(1) == 1 else max(device_rows(self.shape[1]), 2)

    def read(self, spans: Sequence[Span]) -> Iterator[torch.Tensor]:
        """Views."""
        return (self.tensor[start:stop] for start, stop in spans)

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows on the same device; where its memory is short, in the host's, to be streamed."""
        return taken(self._gathered, rows, self.shape[1])

    def _gathered(self, rows: np.ndarray) -> torch.Tensor:
        import torch

        return self.tensor[torch.from_numpy(rows).to(self.device)]


def taken(gathered: Callable[[np.ndarray], torch.Tensor], rows: np.ndarray, n_columns: int) -> Source:
    """What a device makes of the given rows, there; where its memory is short, in the host's, to be streamed."""
    with WithinMemory():
        return TensorSource(gathered(rows))
    import torch

    from otlabel.sources.device import DeviceSource

    parts = []
    for start, stop in cut(len(rows), device_rows(n_columns)):
        part = gathered(rows[start:stop])
        parts.append(part.cpu())
    return DeviceSource(open_tensor(torch.cat(parts)), part.device)


class Masked(Source):
    """An array some of whose pairs are masked, which forbids them; rows are copied where they are read."""

    def __init__(self, source: ArraySource, mask: np.ndarray) -> None:
        self.shape, self.dtype, self.grain = source.shape, source.dtype, source.grain
        self._array, self._mask = source.array, mask
        self._forbidden = MINUS_INF_BITS.get(source.dtype, -np.inf)

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """Copies of just these rows, with -inf where they are masked."""
        return (self._filled(self._array[start:stop], self._mask[start:stop]) for start, stop in spans)

    def take(self, rows: np.ndarray) -> Source:
        """A copy of the given rows."""
        return ArraySource(self._filled(self._array[rows], self._mask[rows]), self.dtype)

    def _filled(self, block: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.where(mask, np.array(self._forbidden, block.dtype), block))


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
