"""One pass over all rows: blocks go to the CPU's or the reference's reduction, and sums come back in float64.

The only place that chooses a device. Blocks depend on (N, K) alone, and sums of them are rounded once, so that a pass
gives the same bits whoever reduces which blocks: at every thread count, and over any number of ranks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse import csr_array

from otlabel.sweep.blocks import Batch, Room, cut, device_rows
from otlabel.sweep.contract import Backend, Handle, Immediate, Ready, Waiting
from otlabel.sweep.pool import run_tasks

if TYPE_CHECKING:
    import torch

    from otlabel.ranks.rowset import RowSet
    from otlabel.ranks.wire import Arrays
    from otlabel.sources import Source
    from otlabel.sources.listed import ListedSource

HASH_SEED = 20_200_427  # any constant: equal rows must get equal hashes in every process
HASHED_SCORES = 32  # of each row, at a first look
PRODUCT_ROWS, PRODUCT_ENTRIES = 1 << 14, 1 << 25  # of plans multiplied at once: halves hold sums of so many rows
BLOCKS_ASKED = 2  # of a device, beyond the one it works on
OUT_OF_MEMORY = "CUBLAS_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED", "out of memory"
WAITING_PARTS = 64  # sums of blocks that are added at once
TRITON_NAMES = "triton", "pytorch-triton", "triton-windows"  # it comes as one of these
OLDEST_TRITON = 3, 3  # whose compiler takes the kernels
READERS = 1  # threads beyond the processors: while they wait for a file, the others compute


@dataclass(frozen=True, eq=False)
class Sweep:
    """The semi-dual's sums at one g over the rows of all ranks, which weigh 1 in total; by row, of the rows here."""

    mass: np.ndarray  # (K,) c(g): what each class takes of the entropic plan
    linear: float  # mean over rows of max_k (s + g)
    entropic: float  # mean over rows of log sum_k exp((s + g - max) / epsilon)
    labels: np.ndarray  # (N,) int32: the best class of s + g; empty where nobody asked for it
    counts: np.ndarray  # (K,) int64: how many units have that label; empty where no device was asked to look for it
    row_mass: np.ndarray  # (N,) what each row takes where rows may leave their weight, else empty
    plan: csr_array | None = None  # (R, K) of the rows that were asked for, as from `sparse_plan`


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a first look at the scores shows, of the rows here and in total over all ranks."""

    n_bad: int  # scores that are NaN or +inf
    n_forbidden: int  # scores that are -inf
    hashes: np.ndarray  # (N,) uint64: equal for equal rows, and for rows that are constant; else as a rule not
    tops: np.ndarray  # (N,) largest score of each row
    bottoms: np.ndarray  # (N,) smallest finite score of each row


@dataclass(frozen=True, eq=False)
class Candidates:
    """The rows that may still move and where to: classes and scores, row after row, sizes[r] for the r-th of them."""

    rows: np.ndarray  # (R,) int64
    sizes: np.ndarray  # (R,) int64
    classes: np.ndarray  # (E,) int32
    scores: np.ndarray  # (E,) float64


def _backend(scores: Source) -> Backend:
    from otlabel.sources.listed import ListedSource

    if isinstance(scores, ListedSource):
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


def _run_blocks(rows: RowSet, reduce_block: Callable[[Backend, Any, int, int], Handle[Any]]) -> list[Any]:
    """What the handles of reduce_block(backend, block, start, stop) give, in the order of the blocks of rows."""
    source = rows.source
    backend = _backend(source)
    with rows.reading():
        if source.device is not None:
            return _run_on_device(source, source.device, rows.room, functools.partial(reduce_block, backend))
        batches = rows.batches
        results: list[list[Any]] = [[] for _ in batches]

        def task(number: int) -> None:
            batch = batches[number]
            for (start, stop), block in zip(batch, source.read(batch), strict=True):
                results[number].append(reduce_block(backend, block, start, stop).result())

        run_tasks(task, len(batches), READERS if source.reads_files else 0)
    return list(itertools.chain.from_iterable(results))


def device_blocks(source: Source) -> Batch:
    """Blocks for a device: what lies there as large as a sweep that copies nothing can take, else as it is read."""
    in_place = source.device is not None and source.device.type == "cuda" and has_triton()
    n_rows, n_classes = source.shape
    return cut(n_rows, device_rows(n_classes, in_place=in_place) if source.grain == 1 else source.grain)


def _run_on_device(
    source: Source, device: torch.device, room: Room, reduce_block: Callable[[Any, int, int], Handle[Any]]
) -> list[Any]:
    """Blocks one after the other, of half as many rows from where the device's memory does not suffice.

    A block is waited for once the device has much more to do. All are read together, so that each is on its way while
    the one before it is reduced.
    """
    import torch

    blocks = device_blocks(source)
    waiting, handles = deque(room.fitted([blocks] if blocks else [])), deque[Handle[Any]]()
    results = list[Any]()
    asked = _Asked(device)
    while waiting:
        batch, n_done = waiting.popleft(), 0
        try:
            for (start, stop), block in zip(batch, source.read(batch), strict=True):
                handles.append(reduce_block(block, start, stop))
                n_done += 1
                asked.add()
                if len(handles) > WAITING_PARTS:
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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory left; cuBLAS and cuSOLVER say so in words of their own."""
    import torch

    told = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in told for words in OUT_OF_MEMORY)


class _Asked:
    """What a device was asked for and has perhaps not begun: few blocks, since each of them keeps its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._ends = device, deque[Any]()

    def add(self) -> None:
        """All that was asked for so far is one more block; wait until the device is at one of the last."""
        if self._device.type != "cuda":
            return
        import torch

        self._ends.append(torch.cuda.current_stream(self._device).record_event())
        if len(self._ends) > BLOCKS_ASKED:
            self._ends.popleft().synchronize()


def sweep(
    rows: RowSet,
    potentials: np.ndarray,
    epsilon: float,
    weights: np.ndarray | None = None,
    precision: type = np.float64,
    plan_rows: np.ndarray | None = None,
    plan_share: float = 0.0,
    row_exponent: float = 0.0,
    *,
    with_labels: bool = True,
) -> Sweep:
    """One pass at potentials g (K,): everything that F(g), its gradient and the linear bound are made of.

    Without labels a device does not look for a row's best class, and brings no counts of them either.
    For `plan_rows` (sorted) it brings their `sparse_plan` too, so that a file need not be read again for it. With a
    `row_exponent`, rows take mass exp(row_exponent * epsilon * logsumexp(u / epsilon)) times their weight.
    """
    n_rows, n_classes = rows.shape
    with_labels |= rows.source.device is None
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)
    labels = np.empty(n_rows if with_labels else 0, np.int32)
    no_weights = np.empty(0)
    row_mass = np.empty(n_rows if row_exponent else 0)
    n_counted = n_classes if with_labels else 0
    added = _Sums(n_classes + 3, n_counted)

    def reduce_block(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        counted, counts = np.zeros(n_classes + 3), np.zeros(n_counted, np.int64)
        block_weights = no_weights if weights is None else weights[start:stop]
        here = slice(start, stop)
        sums = backend.sweep_block(
            block, g, inverse, block_weights, row_exponent, labels[here], row_mass[here], counted[3:], counts
        )
        plan: Handle[Any] = Ready(None)
        if plan_rows is not None:
            plan = backend.sparse_plan_block(block, _within(plan_rows, start, stop), g, inverse, plan_share)

        def finish() -> Any:  # which must not keep the block
            counted[:2] = sums.result()
            added.add(counted, counts)
            return plan.result()

        return Waiting(finish)

    plans = _run_blocks(rows, reduce_block)
    of_weights = np.zeros(n_classes + 3)
    of_weights[2] = n_rows if weights is None else weights.sum()
    added.add(of_weights, np.zeros(n_counted, np.int64))
    sums, counts = added.over_ranks(rows)
    linear, entropic, total = sums[:3].tolist()
    plan = None if plan_rows is None else _joined(plans, n_classes)
    return Sweep(sums[3:] / total, linear / total, entropic / total, labels, counts, row_mass, plan)


class _Sums:
    """Sums of the parts that blocks give, of which few wait at a time; rounded once, whatever their order."""

    def __init__(self, length: int, n_counted: int) -> None:
        self._sums = np.zeros((2, length))  # with what their rounding left
        self._counts = np.zeros(n_counted, np.int64)
        self._parts: list[np.ndarray] = []
        self._lock = threading.Lock()

    def add(self, part: np.ndarray, counts: np.ndarray) -> None:
        """Add one block's."""
        with self._lock:
            self._parts.append(part)
            self._counts += counts
            if len(self._parts) == WAITING_PARTS:
                self._add_up()

    def over_ranks(self, rows: RowSet) -> tuple[np.ndarray, np.ndarray]:
        """The sums, and the counts, of all ranks: none where a rank has none."""
        from otlabel.sweep.cpu import add_up

        def merge(of_ranks: list[Arrays]) -> Arrays:
            sums = add_up(np.concatenate([of_rank["sums"] for of_rank in of_ranks]))
            counts = [of_rank["counts"] for of_rank in of_ranks]
            return {"sums": sums[0], "counts": np.sum(counts, 0) if all(map(len, counts)) else counts[0][:0]}

        self._add_up()
        if rows.communicator.world_size == 1:
            return self._sums[0], self._counts
        total = rows.communicator.allreduce_with("sweep", {"sums": self._sums, "counts": self._counts}, merge)
        return total["sums"], total["counts"]

    def _add_up(self) -> None:
        from otlabel.sweep.cpu import add_up

        self._sums = add_up(np.stack([*self._sums, *self._parts]))
        self._parts = []


def inspect(rows: RowSet, *, every_score: bool = False) -> Inspection:
    """The first pass: is every score usable, how large are they, which rows may be equal.

    Hashes are of a few scores of each row, which is quicker and tells most rows apart, or of every score.
    """
    n_rows, n_classes = rows.shape
    rng = np.random.default_rng(HASH_SEED)
    multipliers = rng.integers(0, 2**64, n_classes, dtype=np.uint64) | np.uint64(1)
    number = np.float64 if rows.source.dtype == "float64" else np.float32
    step = 1 if every_score else max(1, n_classes // HASHED_SCORES)
    hashes, tops, bottoms = np.empty(n_rows, np.uint64), np.empty(n_rows, number), np.empty(n_rows, number)

    def look(backend: Backend, block: Any, start: int, stop: int) -> Handle[tuple[int, int]]:
        here = slice(start, stop)
        return backend.inspect_block(block, multipliers, step, hashes[here], tops[here], bottoms[here])

    counts = np.array(_run_blocks(rows, look), np.int64).reshape(-1, 2).sum(0)
    (found,) = rows.sum("inspect", counts)
    if found[0] and rows.fine is not rows:  # float32 may have overflowed
        return inspect(rows.fine, every_score=every_score)
    return Inspection(int(found[0]), int(found[1]), hashes, tops, bottoms)


def label(
    rows: RowSet, potentials: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64, of each row: its label (the given one, or the best class), max_k u_k, and u at the label."""
    n_rows = rows.shape[0]
    labels = np.full(n_rows, -1, np.int32) if labels is None else labels.astype(np.int32)
    best, own = np.empty(n_rows), np.empty(n_rows)

    def label_rows(backend: Backend, block: Any, start: int, stop: int) -> Handle[None]:
        return backend.label_block(block, potentials, labels[start:stop], best[start:stop], own[start:stop])

    _run_blocks(rows.fine, label_rows)
    return labels, best, own


def candidates(rows: RowSet, potentials: np.ndarray, labels: np.ndarray, slack: float, tie: float) -> Candidates:
    """The rows here with more than one class within `slack` of their label; labels that fall short are replaced."""

    def find(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        near = backend.candidates_block(block, potentials, labels[start:stop], slack, tie)

        def from_start() -> Any:
            movable, *rest = near.result()
            return movable + start, *rest

        return Waiting(from_start)

    found = _run_blocks(rows.fine, find) or [(np.empty(0, np.int64),) * 2 + (np.empty(0, np.int32), np.empty(0))]
    return Candidates(*(np.concatenate(part) for part in zip(*found, strict=True)))


def listed(rows: RowSet, potentials: np.ndarray, width: float, quantum: float) -> ListedSource:
    """Of each row here the classes whose u = scores + potentials, in the potentials' precision, is near its best."""
    from otlabel.sources.base import storage_array
    from otlabel.sources.listed import ListedSource, Lists
    from otlabel.sweep.lists import list_block

    def choose(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        return Ready(list_block(block, potentials, width))

    nothing = np.empty(0, np.int32), np.empty(0, np.int32), storage_array((0,), rows.source.dtype)
    sizes, classes, scores = map(np.concatenate, zip(*(_run_blocks(rows, choose) or [nothing]), strict=True))
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return ListedSource(Lists(starts, classes, scores, quantum), rows.shape[1], rows.source.dtype)


def plan(rows: RowSet, potentials: np.ndarray, epsilon: float, precision: type = np.float64) -> np.ndarray:
    """softmax_k((s + g) / epsilon) of every row, (N, K): the rows of the entropic plan before they are weighted."""
    out: np.ndarray = np.empty(rows.shape, precision)
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)

    def fill(backend: Backend, block: Any, start: int, stop: int) -> Handle[None]:
        return backend.plan_block(block, g, inverse, out[start:stop])

    _run_blocks(rows, fill)
    return out


def sparse_plan(
    rows: RowSet, chosen: np.ndarray, potentials: np.ndarray, epsilon: float, share: float, precision: type = np.float64
) -> csr_array:
    """Some rows (sorted) of the entropic plan, (R, K) float32, without entries under `share` of the row's largest."""
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)

    def keep(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        return backend.sparse_plan_block(block, _within(chosen, start, stop), g, inverse, share)

    return _joined(_run_blocks(rows, keep), rows.shape[1])


def products(
    rows: RowSet,
    chosen: np.ndarray,
    weights: np.ndarray,
    potentials: np.ndarray,
    epsilon: float,
    precision: type = np.float64,
) -> tuple[torch.Tensor, np.ndarray]:
    """On a device, sums of w q q^T, (K, K) left there, and of w q, (K,), over some rows here (sorted) q of the plan."""
    import torch

    from otlabel.sweep import reference

    n_classes, device, largest = rows.shape[1], rows.source.device, float(weights.max(initial=0.0)) or 1.0
    inverse = precision(1.0 / epsilon)
    g = torch.from_numpy(potentials.astype(precision)).to(device)
    roots = torch.from_numpy(np.sqrt(weights[:, None] / largest)).to(device)
    total = torch.zeros((n_classes, n_classes), dtype=torch.float64, device=device)
    mass = torch.zeros(n_classes, dtype=torch.float64, device=device)
    size, start = max(1, min(PRODUCT_ROWS, PRODUCT_ENTRIES // n_classes)), 0

    def of_some(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        (block,) = rows.source.take(chosen[part]).read([(0, len(chosen[part]))])
        return reference.products_block(block, g, inverse, roots[part])

    while start < len(chosen):
        try:
            of_part, part_mass = of_some(slice(start, start + size))
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        else:
            total += of_part
            mass += part_mass
            start += size
            continue
        size = -(-size // 2)  # outside of the handler, which would keep alive what takes the memory
        torch.cuda.empty_cache()
    return total.mul_(largest), largest * mass.cpu().numpy()


def _within(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Those of the sorted rows that are in a block, counted from its start."""
    first, last = np.searchsorted(rows, (start, stop))
    return rows[first:last] - start


def _joined(parts: list[Any], n_classes: int) -> csr_array:
    """Sparse rows of all blocks as one matrix."""
    parts = parts or [(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))]
    sizes, classes, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return csr_array((values, classes, starts), shape=(len(sizes), n_classes))
