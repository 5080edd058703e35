"""Blocks of rows handed to a backend: which one, on which threads, and what to do where a device's memory is short."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from otlabel.sweep.blocks import Batch, Room, cut, device_rows
from otlabel.sweep.contract import Backend, Handle, Immediate
from otlabel.sweep.pool import run_tasks

if TYPE_CHECKING:
    from otlabel.ranks.rowset import RowSet
    from otlabel.sources import Source

BLOCKS_ASKED = 2  # of a device at once, before one of them is waited for: each keeps its memory
OUT_OF_MEMORY = "CUBLAS_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED", "out of memory"
TRITON_NAMES = "triton", "pytorch-triton", "triton-windows"  # it comes as one of these
OLDEST_TRITON = 3, 3  # whose compiler takes the kernels
READERS = 1  # threads beyond the processors: while they wait for a file, the others compute


def backend_of(scores: Source) -> Backend:
    """The only place that chooses one."""
    from otlabel.sources.listed import ListedSource
    from otlabel.sweep.packed import PackedLists

    if isinstance(scores, (ListedSource, PackedLists)):
        from otlabel.sweep import lists

        return cast(Backend, Immediate(lists))
    if scores.device is None:
        from otlabel.sweep import cpu

        return cast(Backend, Immediate(cpu))
    if scores.device.type == "cuda" and has_triton():
        from otlabel.sweep import cuda

        return cuda
    from otlabel.sweep import reference

    return cast(Backend, Immediate(reference))


@functools.cache
def has_triton() -> bool:
    """Whether cards have a sweep of their own, which makes no copy of the scores; else the reference does it."""
    if importlib.util.find_spec("triton") is None:
        return False
    for name in TRITON_NAMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            numbers = re.findall(r"\d+", importlib.metadata.version(name))
            return tuple(int(number) for number in numbers[:2]) >= OLDEST_TRITON
    return False


def run_blocks(rows: RowSet, reduce_block: Callable[[Backend, Any, int, int], Handle[Any]]) -> list[Any]:
    """What the handles of reduce_block(backend, block, start, stop) give, in the order of the blocks of rows."""
    source = rows.source
    backend = backend_of(source)
    if rows.labels_per_row > 1:
        from otlabel.sweep.several import Several

        backend = Several(rows.labels_per_row, backend)
    with rows.reading():
        if source.device is not None:
            blocks = device_blocks(source, may_be_in_place=rows.labels_per_row == 1)
            return _run_on_device(source, blocks, rows.room, functools.partial(reduce_block, backend))
        batches = rows.batches
        results: list[list[Any]] = [[] for _ in batches]

        def task(number: int) -> None:
            batch = batches[number]
            for (start, stop), block in zip(batch, source.read(batch), strict=True):
                results[number].append(reduce_block(backend, block, start, stop).result())

        run_tasks(task, len(batches), READERS if source.reads_files else 0)
    return list(itertools.chain.from_iterable(results))


def device_blocks(source: Source, *, may_be_in_place: bool = True) -> Batch:
    """Blocks for a device: what lies there as large as a sweep that copies nothing can take, else as it is read."""
    in_place = may_be_in_place and source.device is not None and source.device.type == "cuda" and has_triton()
    n_rows, n_classes = source.shape
    return cut(n_rows, device_rows(n_classes, in_place=in_place) if source.grain == 1 else source.grain)


def _run_on_device(
    source: Source, blocks: Batch, room: Room, reduce_block: Callable[[Any, int, int], Handle[Any]]
) -> list[Any]:
    """Blocks one after the other, of half as many rows from where the device's memory does not suffice.

    A block is waited for once the device has others to do. All are read together, so that each is on its way while the
    one before it is reduced.
    """
    import torch

    waiting, handles = deque(room.fitted([blocks] if blocks else [])), deque[Handle[Any]]()
    results = list[Any]()
    while waiting:
        batch, n_done = waiting.popleft(), 0
        try:
            for (start, stop), block in zip(batch, source.read(batch), strict=True):
                handles.append(reduce_block(block, start, stop))
                n_done += 1
                if len(handles) > BLOCKS_ASKED:
                    results.append(handles.popleft().result())
        except RuntimeError as error:
            longest = max(stop - start for start, stop in batch)
            if longest == 1 or not is_out_of_memory(error):
                raise
        else:
            longest = 0
        if longest:  # outside of the handler, which would keep alive what takes the memory
            block = None
            room.most_rows = -(-longest // 2)
            torch.cuda.empty_cache()
            waiting = deque(room.fitted([batch[n_done:], *waiting]))
    return results + [handle.result() for handle in handles]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory left; cuBLAS and cuSOLVER say so in words of their own."""
    import torch

    told = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in told for words in OUT_OF_MEMORY)


class WithinMemory:
    """Work on a device that is given up where its memory is short; what follows it does without.

    It follows outside of any handler, which would keep alive what takes the memory.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        return isinstance(error, RuntimeError) and is_out_of_memory(error)
