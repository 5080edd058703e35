"""Scores that lie in host memory or in files and are swept on a device: moved there once, or block by block."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from otlabel.sources.base import ITEM_BYTES, Source, Span, as_stored, n_bytes, read_rows
from otlabel.sources.memory import TensorSource
from otlabel.sources.wrapped import Wrapped
from otlabel.sweep.blocks import cut
from otlabel.sweep.pool import run_tasks
from otlabel.sweep.running import WithinMemory

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 256 << 20  # moved at once: a copy's fixed costs are hidden, and three blocks take little of a device
PIECE_BYTES = 2 << 20  # that a thread puts into a buffer at a time
MEMORY_SHARE = 0.75  # of the device's free memory may hold a copy of the scores; samples and sums need some, too


class DeviceSource(Wrapped):
    """A source whose rows are moved to a device as a pass needs them, through two pinned buffers."""

    device: torch.device

    def __init__(self, source: Source, device: torch.device) -> None:
        super().__init__(source)
        self.device = device

    @property
    def grain(self) -> int:  # type: ignore[override]
        """Rows that make up BLOCK_BYTES, a number of whole grains of the source."""
        rows = BLOCK_BYTES // (self.shape[1] * ITEM_BYTES[self.dtype])
        return max(rows - rows % self.source.grain, self.source.grain, 2)

    def read(self, spans: Sequence[Span]) -> Iterator[torch.Tensor]:
        """Moved to the device one after the other, each of them while the one before it is in use."""
        import torch

        longest = max(stop - start for start, stop in spans)
        mover = _Mover(self.device, (longest, self.shape[1]), getattr(torch, self.dtype))
        coming = self._send(mover, *spans[0])
        for following in [*spans[1:], None]:
            block = mover.received(coming)
            if following is not None:
                coming = self._send(mover, *following)
            yield block

    def over(self, source: Source) -> DeviceSource:
        """Another source of the same rows, moved likewise."""
        return DeviceSource(source, self.device)

    def take(self, rows: np.ndarray) -> Source:
        """The given rows, moved to the device if it has room for them."""
        return kept_whole(DeviceSource(self.source.take(rows), self.device))

    def _send(self, mover: _Mover, start: int, stop: int) -> _Parcel:
        """Fill a buffer on all threads, and have it copied."""
        buffer = mover.buffer(stop - start)
        out = as_stored(buffer)
        pieces = cut(stop - start, max(PIECE_BYTES // out[:1].nbytes, self.source.grain, 1))

        def fill(number: int) -> None:
            first, last = pieces[number]
            out[first:last] = read_rows(self.source, start + first, start + last)

        run_tasks(fill, len(pieces), int(self.source.reads_files))
        return mover.send(buffer)


class _Parcel(NamedTuple):
    """A tensor on its way to a device, and the event of its arrival (None where it is there)."""

    tensor: torch.Tensor
    arrived: torch.cuda.Event | None


class _Mover:
    """Two buffers in pinned memory, filled and copied in turn on a stream of their own."""

    def __init__(self, device: torch.device, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._device, self._shape, self._dtype = device, shape, dtype
        self._stream = _copy_stream(device) if device.type == "cuda" else None
        self._buffers: list[torch.Tensor] = []  # the one that waits longest first
        self._arrivals: list[torch.cuda.Event | None] = []  # of what they held; the tensors are for users to free

    def buffer(self, n_rows: int) -> torch.Tensor:
        """Room for so many rows, which no copy reads any more."""
        import torch

        if len(self._buffers) < 2:
            buffer = torch.empty(self._shape, dtype=self._dtype, pin_memory=self._stream is not None)
        else:
            buffer, arrived = self._buffers.pop(0), self._arrivals.pop(0)
            if arrived is not None:
                arrived.synchronize()
        self._buffers.append(buffer)
        return buffer[:n_rows]

    def send(self, rows: torch.Tensor) -> _Parcel:
        """Begin the copy."""
        import torch

        if self._stream is None:
            parcel = _Parcel(rows.to(self._device, copy=True), None)
        else:
            with torch.cuda.stream(self._stream):
                parcel = _Parcel(rows.to(self._device, non_blocking=True), self._stream.record_event())
        self._arrivals.append(parcel.arrived)
        return parcel

    def received(self, parcel: _Parcel) -> torch.Tensor:
        """The tensor, for work that is asked for from now on."""
        import torch

        if parcel.arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(parcel.arrived)
            parcel.tensor.record_stream(stream)
        return parcel.tensor


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: torch keeps the memory that a stream's tensors leave behind for that stream alone."""
    import torch

    return torch.cuda.Stream(device)


def on_device(source: Source, device: torch.device) -> Source:
    """A source on the CPU as one on a device: copied whole if it fits there, else block by block in every pass."""
    streamed = DeviceSource(source, device)
    return kept_whole(streamed) if has_room(device, n_bytes(source), MEMORY_SHARE) else streamed


def has_room(device: torch.device, wanted: float, share: float) -> bool:
    """Whether so many bytes are no more than this share of the device's free memory."""
    return wanted <= share * _free_memory(device)


def kept_whole(source: Source) -> Source:
    """One tensor on a source's device, which blocks are put into as they come; as it was where memory is short."""
    import torch

    spans = cut(source.shape[0], source.grain)
    with WithinMemory():  # which may be free, but in pieces
        whole = torch.empty(source.shape, dtype=getattr(torch, source.dtype), device=source.device)
        with contextlib.closing(source):
            for (start, stop), rows in zip(spans, source.read(spans), strict=True):
                whole[start:stop] = rows
        return TensorSource(whole)
    return source


def _free_memory(device: torch.device) -> float:
    """Bytes that tensors on the device may still take."""
    if device.type != "cuda":
        return math.inf
    import torch

    free = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
