"""One pass over all rows: blocks go to the CPU's or the reference's reduction, and sums come back in float64.

Blocks depend on (N, K) alone, and sums of them are rounded once, so that a pass gives the same bits whoever reduces
which blocks: at every thread count, and over any number of ranks.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse import csr_array

from otlabel.sweep.contract import Backend, DeviceBackend, Handle, Ready, Waiting
from otlabel.sweep.running import backend_of, is_out_of_memory, run_blocks

if TYPE_CHECKING:
    import torch

    from otlabel.ranks.rowset import RowSet
    from otlabel.ranks.wire import Arrays
    from otlabel.sources.listed import ListedSource
    from otlabel.sweep.packed import PackedLists

HASH_SEED = 20_200_427  # any constant: equal rows must get equal hashes in every process
HASHED_SCORES = 32  # of each row, at a first look
PRODUCT_ROWS, PRODUCT_ENTRIES = 1 << 14, 1 << 25  # of plans multiplied at once: halves hold sums of so many rows
WAITING_PARTS = 64  # sums of blocks that are added at once


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
class Listing:
    """Lists of the classes near each row's best, and what else one reading brings."""

    source: ListedSource | PackedLists
    rounding: float  # how far the scores that decided what is listed may be from the listed ones, of the rows here
    inspection: Inspection | None  # where it was asked for


@dataclass(frozen=True, eq=False)
class Candidates:
    """The rows that may still move and where to: classes and scores, row after row, sizes[r] for the r-th of them."""

    rows: np.ndarray  # (R,) int64
    sizes: np.ndarray  # (R,) int64
    classes: np.ndarray  # (E,) int32
    scores: np.ndarray  # (E,) float64
    taken: np.ndarray  # (E,) bool: which of them a row has; empty where it has one, its label


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

    Without labels none are brought; a device then does not look for a row's best class, and brings no counts either.
    For `plan_rows` (sorted) it brings their `sparse_plan` too, so that a file need not be read again for it. With a
    `row_exponent`, rows take mass exp(row_exponent * epsilon * logsumexp(u / epsilon)) times their weight.
    """
    n_rows, n_classes = rows.shape
    on_device = rows.source.device is not None
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)
    labels = np.empty(n_rows if with_labels else 0, np.int32)
    no_weights = np.empty(0)
    row_mass = np.empty(n_rows if row_exponent else 0)
    n_counted = 0 if on_device and not with_labels else n_classes
    added = _Sums(n_classes + 3, n_counted)

    def reduce_block(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        counted, counts = np.zeros(n_classes + 3), np.zeros(n_counted, np.int64)
        block_weights = no_weights if weights is None else weights[start:stop]
        here = slice(start, stop)
        of_block = labels[here] if with_labels or on_device else np.empty(stop - start, np.int32)
        sums = backend.sweep_block(
            block, g, inverse, block_weights, row_exponent, of_block, row_mass[here], counted[3:], counts
        )
        plan: Handle[Any] = Ready(None)
        if plan_rows is not None:
            plan = backend.sparse_plan_block(block, _within(plan_rows, start, stop), g, inverse, plan_share)

        def finish() -> Any:  # which must not keep the block
            counted[:2] = sums.result()
            added.add(counted, counts)
            return plan.result()

        return Waiting(finish)

    plans = run_blocks(rows, reduce_block)
    of_weights = np.zeros(n_classes + 3)
    of_weights[2] = rows.labels_per_row * (n_rows if weights is None else weights.sum())
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
    looks = _Looks(rows, every_score=every_score)
    looks.counts = run_blocks(rows, looks.look)
    return looks.result()


class _Looks:
    """What a first look writes down, block by block."""

    def __init__(self, rows: RowSet, *, every_score: bool) -> None:
        n_rows, n_classes = rows.shape
        number = np.float64 if rows.source.dtype == "float64" else np.float32
        rng = np.random.default_rng(HASH_SEED)
        self._rows, self._every_score = rows, every_score
        self._multipliers = rng.integers(0, 2**64, n_classes, dtype=np.uint64) | np.uint64(1)
        self._step = 1 if every_score else max(1, n_classes // HASHED_SCORES)
        self._hashes = np.empty(n_rows, np.uint64)
        self._tops, self._bottoms = np.empty(n_rows, number), np.empty(n_rows, number)
        self.counts: list[tuple[int, int]] = []  # of each block: bad scores, forbidden ones

    def look(self, backend: Backend, block: Any, start: int, stop: int) -> Handle[tuple[int, int]]:
        """Look at one block."""
        here = slice(start, stop)
        hashes, tops, bottoms = self._hashes[here], self._tops[here], self._bottoms[here]
        return backend.inspect_block(block, self._multipliers, self._step, hashes, tops, bottoms)

    def result(self) -> Inspection:
        """What all blocks show, those of all ranks."""
        (found,) = self._rows.sum("inspect", np.array(self.counts, np.int64).reshape(-1, 2).sum(0))
        if found[0] and self._rows.fine is not self._rows:  # float32 may have overflowed
            return inspect(self._rows.fine, every_score=self._every_score)
        return Inspection(int(found[0]), int(found[1]), self._hashes, self._tops, self._bottoms)


def label(
    rows: RowSet, potentials: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64, of each row: its label (the given one, or the best class), max_k u_k, and u at the label.

    Of rows that take several classes each is (N, k): the labels in the order of their scores, and the k largest u.
    """
    labels = np.full(rows.of_labels, -1, np.int32) if labels is None else labels.astype(np.int32)
    best, own = np.empty(rows.of_labels), np.empty(rows.of_labels)

    def label_rows(backend: Backend, block: Any, start: int, stop: int) -> Handle[None]:
        return backend.label_block(block, potentials, labels[start:stop], best[start:stop], own[start:stop])

    run_blocks(rows.fine, label_rows)
    return labels, best, own


def candidates(rows: RowSet, potentials: np.ndarray, labels: np.ndarray, slack: float, tie: float) -> Candidates:
    """The rows here with more than one class within `slack` of their label; labels that fall short are replaced."""

    def find(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        near = backend.candidates_block(block, potentials, labels[start:stop], slack, tie)

        def from_start() -> Any:
            movable, *rest = near.result()
            return movable + start, *rest

        return Waiting(from_start)

    found = run_blocks(rows.fine, find) or [(np.empty(0, np.int64),) * 2 + (np.empty(0, np.int32), np.empty(0))]
    movable, sizes, classes, scores, *taken = (np.concatenate(part) for part in zip(*found, strict=True))
    return Candidates(movable, sizes, classes, scores, taken[0].astype(bool) if taken else np.empty(0, bool))


def nearest(rows: RowSet, potentials: np.ndarray, labels: np.ndarray, slack: float) -> np.ndarray:
    """In float64, of the rows here with each label, the least that u there is above u of each class; `slack` at most.

    (K, K). A label below another class counts as tied with it.
    """
    n_classes = rows.shape[1]
    least = np.full((n_classes, n_classes), slack)
    lock = threading.Lock()

    def find(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        given = labels[start:stop]
        near = backend.candidates_block(block, potentials, given.astype(np.int32), slack, 0.0)

        def reduce() -> None:
            numbers, sizes, classes, scores = near.result()
            row_of, labels_of_rows = np.repeat(np.arange(len(numbers)), sizes), given[numbers]
            of_entries = labels_of_rows[row_of]
            totals, own, is_own = scores + potentials[classes], np.zeros(len(numbers)), classes == of_entries
            own[row_of[is_own]] = totals[is_own]
            above = np.maximum(own[row_of] - totals, 0.0)[~is_own]
            with lock:
                np.minimum.at(least, (of_entries[~is_own], classes[~is_own]), above)

        return Waiting(reduce)

    run_blocks(rows.fine, find)
    return least


def listed(
    rows: RowSet, potentials: np.ndarray, reach: np.ndarray, quantum: float, *, inspecting: bool = False
) -> Listing:
    """Of each row here the classes that may be its best where each potential moves by its `reach` (K,) at most.

    These are those whose u = scores + potentials + reach, in the potentials' precision, is no less than what any class
    keeps, its u - 2 reach. What is listed are the fine scores; where these are costly to make, those of passes say
    which ones.
    """
    from otlabel.sources.base import storage_array
    from otlabel.sources.listed import ListedSource, Lists
    from otlabel.sweep.packed import chooser

    read, choose = chooser(rows, potentials, reach)
    looks = _Looks(read, every_score=False) if inspecting else None

    def look(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        counts = (0, 0) if looks is None else looks.look(backend, block, start, stop).result()
        return Ready((*choose(block, start, stop), counts))

    dtype = rows.opened.fine.dtype
    nothing = np.empty(0, np.int32), np.empty(0, np.int32), storage_array((0,), dtype), 0.0, (0, 0)
    *lists, roundings, counts = zip(*(run_blocks(read, look) or [nothing]), strict=True)
    sizes, classes, scores = map(np.concatenate, lists)
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    source = ListedSource(Lists(starts, classes, scores, quantum), rows.shape[1], dtype)
    if looks is not None:
        looks.counts = list(counts)
    return Listing(source, max(roundings), None if looks is None else looks.result())


def listed_within(rows: RowSet, potentials: np.ndarray, reach: np.ndarray, quantum: float, room: float) -> Listing:
    """The same lists, of which `room` bytes are kept and the others made anew in every pass."""
    from otlabel.sources import Opened
    from otlabel.sweep.packed import PackedLists, chooser

    read, choose = chooser(rows, potentials, reach)
    source = PackedLists(read.source, choose, rows.opened.fine.dtype, quantum, room)
    run_blocks(rows.over(Opened.of(source)), lambda *block: Ready(None))
    return Listing(source, source.rounding, None)


def left_out(rows: RowSet, potentials: np.ndarray, origin: np.ndarray, epsilon: float, reach: float) -> float:
    """The most of the plan at some potentials, as a share, that lists lack which were made at an origin.

    Of rows that take several classes each; lists of all ranks have what is within `reach` of each row's last.
    """

    def bound(backend: Any, block: Any, start: int, stop: int) -> Handle[float]:
        of_block: Handle[float] = backend.left_out_block(block, potentials, origin, 1.0 / epsilon, reach)
        return of_block

    (total,) = rows.sum("left out", np.array(sum(run_blocks(rows, bound))))
    return float(total) / (rows.labels_per_row * rows.n_rows)


def with_unlisted(rows: RowSet, potentials: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The best u of each row, (N,), among all classes: one that is not listed may reach its row's least + potential."""
    from otlabel.sources.listed import least_of
    from otlabel.sweep.lists import raise_unlisted

    least = least_of(rows.source)
    if least is None:
        return best
    best = best.copy()
    order = np.argsort(-potentials, kind="stable")
    order = order[: np.count_nonzero(potentials > -np.inf)].astype(np.int32)

    def look(backend: Backend, block: Any, start: int, stop: int) -> Handle[None]:
        raise_unlisted(block, least[start:stop], potentials, order, best[start:stop])
        return Ready(None)

    run_blocks(rows, look)
    return best


def plan(rows: RowSet, potentials: np.ndarray, epsilon: float, precision: type = np.float64) -> np.ndarray | csr_array:
    """softmax_k((s + g) / epsilon) of every row, (N, K): the rows of the entropic plan before they are weighted.

    Of lists it is a CSR matrix of the same entries, in float64.
    """
    from otlabel.sources.listed import ListedSource
    from otlabel.sweep.lists import plan_of

    if isinstance(rows.source, ListedSource):
        lists = rows.source.lists

        def entries(backend: Any, block: Any, start: int, stop: int) -> Handle[np.ndarray]:
            of_block = plan_of if rows.labels_per_row == 1 else backend.plan_of
            return Ready(of_block(block, potentials, 1.0 / epsilon))

        parts = run_blocks(rows, entries)
        return csr_array((np.concatenate(parts), lists.classes, lists.starts), shape=rows.shape)
    out: np.ndarray = np.empty(rows.shape, precision)
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)

    def fill(backend: Backend, block: Any, start: int, stop: int) -> Handle[None]:
        return backend.plan_block(block, g, inverse, out[start:stop])

    run_blocks(rows, fill)
    return out


def sparse_plan(
    rows: RowSet, chosen: np.ndarray, potentials: np.ndarray, epsilon: float, share: float, precision: type = np.float64
) -> csr_array:
    """Some rows (sorted) of the entropic plan, (R, K) float32, without entries under `share` of the row's largest."""
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)

    def keep(backend: Backend, block: Any, start: int, stop: int) -> Handle[Any]:
        return backend.sparse_plan_block(block, _within(chosen, start, stop), g, inverse, share)

    return _joined(run_blocks(rows, keep), rows.shape[1])


def products(
    rows: RowSet,
    chosen: np.ndarray,
    weights: np.ndarray,
    potentials: np.ndarray,
    epsilon: float,
    precision: type = np.float64,
) -> torch.Tensor:
    """On a device, the sum of w q q^T over some rows here (sorted) q of the plan: (K, K) float64, left there.

    Rows sum to 1, so that its own rows sum to what each class has of w q. Nothing waits for the device.
    """
    import torch

    from otlabel.sources.memory import TensorSource
    from otlabel.sweep import reference

    source, n_classes = rows.source, rows.shape[1]
    backend = cast(DeviceBackend, backend_of(source))
    largest = float(weights.max(initial=0.0)) or 1.0
    g: np.ndarray = potentials.astype(precision)
    inverse = precision(1.0 / epsilon)
    total = torch.zeros((n_classes, n_classes), dtype=torch.float64, device=source.device)
    roots = reference.upload(np.sqrt(weights / largest).astype(precision), total.device)
    listed = reference.upload(chosen, total.device)
    size, start = max(1, min(PRODUCT_ROWS, PRODUCT_ENTRIES // n_classes)), 0

    def of_some(part: slice) -> torch.Tensor:
        if isinstance(source, TensorSource) and source.grain == 1:  # rows are gathered where they are used
            (block,), at = source.read([(0, source.shape[0])]), listed[part]
        else:
            (block,) = source.take(chosen[part]).read([(0, len(chosen[part]))])
            at = torch.arange(len(block), device=total.device)
        return reference.products_of(backend.factors_block(block, at, g, inverse, roots[part]).result())

    while start < len(chosen):
        try:
            total += of_some(slice(start, start + size))
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        else:
            start += size
            continue
        size = -(-size // 2)  # outside of the handler, which would keep alive what takes the memory
        torch.cuda.empty_cache()
    return total.mul_(largest)


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
