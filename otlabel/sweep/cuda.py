"""One block of rows on a CUDA device, by Triton: the backend of contract.py without temporaries of the block's size.

Up to FUSED_CLASSES classes a sweep reads each score once: a program holds whole rows in registers, and the sums of
its columns beside them. Beyond that, or where rows may leave their mass, a first kernel reads a row tile by tile with a
running maximum (an online softmax), and a second one reads the scores again for the column sums.

Nothing is added by atomic operations but whole numbers: each program writes the column sums of its own rows, and these
are added in one order, in float64, by a further kernel: torch would copy them to float64 first. Results have the same
bits from run to run.

Source: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import numpy as np
import torch
import triton

from otlabel.sweep import reference
from otlabel.sweep.contract import Ready, Waiting
from otlabel.sweep.cuda_kernels import (
    add_up_kernel,
    collect_kernel,
    columns_kernel,
    factors_kernel,
    fused_kernel,
    inspect_kernel,
    label_kernel,
    online_kernel,
    total_kernel,
)
from otlabel.sweep.reference import upload

FUSED_CLASSES = {torch.float32: 8192, torch.float64: 4096}  # by precision: what registers hold beside the column sums
TILE = 2048  # scores that a program of four warps works on at a time
ROWS_A_TILE = 4  # at least
ROWS_A_PROGRAM = 256  # at most; sums of programs are then few beside scores: with 64, a sweep took 1.4 times as long
PROGRAMS = 2048  # wanted at least: several for each multiprocessor
CHUNK_ENTRIES = 1 << 24  # scores at a time where plain torch makes temporaries of them
VECTOR = 16  # what Triton is told that strides are multiples of, at most: eight halves are one wide read
FEW_CLASSES = 64  # up to here it is told nothing: time is short, and one compiled kernel serves for all
NARROWEST = 16  # columns of a tile
ADDED = 1024, 64  # rows whose numbers a program adds up at a time, and of how many programs' sums
COUNTED_CLASSES = 256  # up to here a program counts labels before it adds them: many rows would wait for few places
CUT = 128  # columns of a piece where a row is cut at all
PIECES = 8  # of a row, at most
HELD = {torch.float32: 48, torch.float64: 16}  # scores of a thread, by precision: half of its registers, or a quarter
STAGES = 3  # rows that are on their way from memory, the present one counted


class _Block(NamedTuple):
    """A block as kernels take it: sizes in units of `vector`, so that they know what these are multiples of."""

    scores: torch.Tensor
    n_rows: int
    n_classes: int
    stride: int
    vector: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What every kernel is told after its pointers."""
        return self.n_rows, self.n_classes // self.vector, self.stride // self.vector


def sweep_block(block, potentials, inverse_epsilon, weights, row_exponent, labels, row_mass, mass, counts):
    """Where `counts` is empty no row's best class is looked for; where `labels` is empty they stay on the device."""
    device, precision = block.device, _torch_type(potentials.dtype)
    with _on(device):
        view = _view(block)
        scale = float(inverse_epsilon) * math.log2(math.e)
        constants = upload(np.append(potentials, scale).astype(potentials.dtype), device)
        weight = None if weights.size == 0 else upload(weights, device)
        tops, totals = _per_row(view, precision, 2)
        best = torch.empty(view.n_rows if counts.size else 0, dtype=torch.int32, device=device)
        own_mass = None
        if row_exponent or view.n_classes > FUSED_CLASSES[precision]:
            _find_rows(view, constants, tops, totals, best)
            if row_exponent:
                soft = tops.double() + totals.double().log() / float(inverse_epsilon)
                own_mass = torch.exp(row_exponent * soft)
                own_mass = own_mass if weight is None else weight * own_mass
            shares = (1.0 if weight is None else weight) if own_mass is None else own_mass
            partial = _add_columns(view, constants, tops, (shares / totals.double()).to(precision))
        else:
            partial = _reduce_once(view, constants, weight, tops, totals, best)
        found = [torch.cat([_added_up(partial), *_totalled(view.n_classes, weight, tops, totals, best)])]
        found += [best] if labels.size else []
        found += [own_mass] if row_exponent else []
        fetched, n_classes = _Fetched(found), view.n_classes  # alone: who waits must not keep the block

    def finish() -> tuple[float, float]:
        packed, *of_rows = fetched.arrays()
        mass[:] += packed[:n_classes]
        counts[:] += packed[n_classes:-2].astype(np.int64)
        for array, values in zip(([labels] if labels.size else []) + [row_mass], of_rows, strict=False):
            array[:] = values
        return float(packed[-2]), float(packed[-1])

    return Waiting(finish)


def label_block(block, potentials, labels, best, own):
    """The kernel is that of candidates, which corrects no label here."""
    with _on(block.device):
        constants = np.append(potentials.astype(np.float64), [0.0, 0.0])
        found = _find_labels(_view(block), constants, labels, may_correct=False)[:3]
        return _filling(_Fetched(found), (labels, best, own))


def candidates_block(block, potentials, labels, slack, tie):
    """One kernel counts classes, another one writes those of rows with several: between them it waits for how many."""
    with _on(block.device):
        view = _view(block)
        constants = np.append(potentials.astype(np.float64), [slack, tie])
        chosen, _, own, sizes = _find_labels(view, constants, labels, may_correct=True)
        rows = (sizes > 1).nonzero()[:, 0]
        sizes = sizes[rows].long()
        ends = sizes.cumsum(0)
        n_entries = int(ends[-1]) if len(rows) else 0
        classes = torch.empty(n_entries, dtype=torch.int32, device=block.device)
        values = torch.empty(n_entries, dtype=torch.float64, device=block.device)
        if n_entries:
            width, at_once = _tile(view.n_classes)
            collect_kernel[(triton.cdiv(len(rows), at_once),)](
                view.scores, upload(constants, block.device), rows, own, ends - sizes, classes, values, len(rows),
                *view.sizes[1:], VECTOR=view.vector, ROWS=at_once, WIDTH=width, STAGES=STAGES,
            )  # fmt: skip
        fetched = _Fetched([chosen, rows, sizes, classes, values])

    def finish() -> tuple[np.ndarray, ...]:
        labels[:], *found = fetched.arrays()
        return tuple(found)

    return Waiting(finish)


def factors_block(block, rows, potentials, inverse_epsilon, roots):
    """In halves, whose products are ten times as fast as those of float32."""
    with _on(block.device):
        view = _view(block)
        scale = float(inverse_epsilon) * math.log2(math.e)
        constants = np.append(potentials, scale).astype(potentials.dtype)
        factors = torch.empty((len(rows), view.n_classes), dtype=torch.half, device=block.device)
        width, at_once = _tile(view.n_classes)
        factors_kernel[(triton.cdiv(len(rows), at_once),)](
            view.scores, upload(constants, block.device), rows, roots, factors, len(rows), *view.sizes[1:],
            VECTOR=view.vector, ROWS=at_once, WIDTH=width, STAGES=STAGES,
        )  # fmt: skip
    return Ready(factors)


def inspect_block(block, multipliers, step, hashes, tops, bottoms):
    """One kernel; the counts of its programs are added up by torch."""
    with _on(block.device):
        view = _view(block)
        device, number = block.device, _torch_type(tops.dtype)
        chosen = np.ascontiguousarray(multipliers[::step].view(np.int64))
        digests = torch.empty(view.n_rows, dtype=torch.int64, device=device)
        largest, smallest = _per_row(view, number, 2)
        bad, forbidden = _per_row(view, torch.int32, 2)
        width, rows = _tile(view.n_classes)
        inspect_kernel[(triton.cdiv(view.n_rows, rows),)](
            view.scores, upload(chosen, device), digests, largest, smallest, bad, forbidden, *view.sizes,
            len(chosen), step, VECTOR=view.vector, ROWS=rows, WIDTH=width, HASHED=min(_width(len(chosen)), width),
            STAGES=STAGES, DOUBLE=number == torch.float64,
        )  # fmt: skip
        numbers = torch.stack([bad.sum(), forbidden.sum()])
        fetched = _Fetched([digests, largest, smallest, numbers])
        fill = _filling(fetched, (hashes.view(np.int64), tops, bottoms))

    def finish() -> tuple[int, int]:
        fill.result()
        n_bad, n_forbidden = fetched.arrays()[-1].tolist()
        return n_bad, n_forbidden

    return Waiting(finish)


def _filling(fetched, arrays):
    """A handle of tensors, the first of which are copied to arrays."""

    def fill() -> None:
        for array, values in zip(arrays, fetched.arrays(), strict=False):
            array[:] = values

    return Waiting(fill)


def plan_block(block, potentials, inverse_epsilon, plan):
    """By the reference, some rows at a time."""
    size = max(1, CHUNK_ENTRIES // block.shape[1])
    for start in range(0, len(block), size):
        part = slice(start, start + size)
        reference.plan_block(block[part], potentials, inverse_epsilon, plan[part])
    return Ready(None)


def sparse_plan_block(block, rows, potentials, inverse_epsilon, share):
    """By the reference, some rows at a time."""
    size = max(1, CHUNK_ENTRIES // block.shape[1])
    parts = [
        reference.sparse_plan_block(block, rows[start : start + size], potentials, inverse_epsilon, share)
        for start in range(0, max(len(rows), 1), size)
    ]
    return Ready(tuple(np.concatenate(part) for part in zip(*parts, strict=True)))


class _Fetched:
    """Tensors on their way to the host; asking for them waits."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        device = tensors[0].device
        self._there = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # pinned, as torch makes them
        self._arrived = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def arrays(self) -> list[np.ndarray]:
        """All of them, complete."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._there]


def _on(device):
    """Kernels run on the current device: the block's."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _torch_type(dtype):
    return torch.float64 if dtype == np.float64 else torch.float32


def _view(block):
    n_rows, n_classes = block.shape
    if block.stride(1) != 1 and n_classes > 1:
        block = block.contiguous()
    stride = block.stride(0) if n_rows > 1 else n_classes
    vector = math.gcd(stride, n_classes, VECTOR) if n_classes > FEW_CLASSES else 1
    return _Block(block, n_rows, n_classes, stride, vector)


def _per_row(view, dtype, number):
    """Room for results, each by itself: a kernel is compiled anew for a pointer that is aligned otherwise."""
    return [torch.empty(view.n_rows, dtype=dtype, device=view.scores.device) for _ in range(number)]


def _width(n_classes):
    return max(triton.next_power_of_2(n_classes), NARROWEST)


def _tile(n_classes):
    """Columns and rows of a tile where rows are read piece by piece: several, so that more is on its way at a time."""
    width = min(_width(n_classes), max(TILE // ROWS_A_TILE, NARROWEST))
    return width, TILE // width


def _rows_each(n_rows, step):
    """Rows of one program: a number of whole steps that depends on the shape alone, as sums do on it."""
    wanted = min(triton.cdiv(n_rows, PROGRAMS), ROWS_A_PROGRAM)
    return triton.cdiv(max(wanted, 1), step) * step


class Shape(NamedTuple):
    """How the kernel that reads once cuts its rows, and what it is given."""

    width: int  # columns of a piece
    pieces: int  # of a row
    rows: int  # at a time
    warps: int
    stages: int  # rows on their way while one is worked on


def fused_shape(n_classes, precision):
    """Few warps, whose threads hold much of a row and exchange little; pieces that fill columns best, the widest."""
    held = HELD[precision]  # a thread, at most
    warps = triton.next_power_of_2(triton.cdiv(n_classes, 32 * held))
    widths = [min(_width(n_classes), 256 * warps)]  # eight scores a thread are one wide read of halves
    while widths[-1] > CUT and triton.cdiv(n_classes, widths[-1] // 2) <= PIECES:
        widths.append(widths[-1] // 2)
    width = min(widths, key=lambda width: triton.cdiv(n_classes, width) * width)
    pieces = triton.cdiv(n_classes, width)
    columns = width * pieces
    while columns > 32 * held * warps:
        warps *= 2
    rows = 1 << (32 * held * warps // columns).bit_length() - 1
    return Shape(width, pieces, rows, warps, STAGES)


def _reduce_once(view, constants, weight, tops, totals, best):
    """Write what there is to say of each row, its label where there is room; return column sums of programs (P, K)."""
    shape = fused_shape(view.n_classes, constants.dtype)
    each = _rows_each(view.n_rows, shape.rows)
    n_programs = triton.cdiv(view.n_rows, each)
    partial = torch.empty((n_programs, view.n_classes), dtype=constants.dtype, device=best.device)
    fused_kernel[(n_programs,)](
        view.scores, constants, best if weight is None else weight, tops, totals, best, partial, *view.sizes, each,
        VECTOR=view.vector, ROWS=shape.rows, WIDTH=shape.width, PIECES=shape.pieces, STAGES=shape.stages,
        WEIGHTED=weight is not None, LABELLED=len(best) > 0, num_warps=shape.warps,
    )  # fmt: skip
    return partial


def _find_rows(view, constants, tops, totals, best):
    width, rows = _tile(view.n_classes)
    online_kernel[(triton.cdiv(view.n_rows, rows),)](
        view.scores, constants, tops, totals, best, *view.sizes,
        VECTOR=view.vector, ROWS=rows, WIDTH=width, STAGES=STAGES, LABELLED=len(best) > 0,
    )  # fmt: skip


def _add_columns(view, constants, tops, shares):
    """Column sums (P, K) of shares * exp((u - top) / epsilon)."""
    width, rows = _tile(view.n_classes)
    each = _rows_each(view.n_rows, rows)
    grid = triton.cdiv(view.n_rows, each), triton.cdiv(view.n_classes, width)
    partial = torch.empty((grid[0], view.n_classes), dtype=constants.dtype, device=tops.device)
    columns_kernel[grid](
        view.scores, constants, tops, shares, partial, *view.sizes, each,
        VECTOR=view.vector, ROWS=rows, WIDTH=width, STAGES=STAGES,
    )  # fmt: skip
    return partial


def _added_up(partial):
    """Column sums (K,) in float64 of what programs have written (P, K)."""
    n_programs, n_classes = partial.shape
    sums = torch.empty(n_classes, dtype=torch.float64, device=partial.device)
    width, rows = 2 * NARROWEST, ADDED[1]
    add_up_kernel[(triton.cdiv(n_classes, width),)](
        partial, sums, n_programs, n_classes, ROWS=rows, WIDTH=width, STAGES=STAGES
    )
    return sums


def _totalled(n_classes, weight, tops, totals, best):
    """Units of each label (K,) if there are any, and sums of weight * top and weight * log total (2,), in float64."""
    n_rows, rows = len(tops), ADDED[0]
    n_programs = triton.cdiv(n_rows, rows)
    sums = torch.empty((n_programs, 2), dtype=torch.float64, device=best.device)
    counts = torch.zeros(n_classes if len(best) else 0, dtype=torch.int64, device=best.device)
    counted = n_classes <= COUNTED_CLASSES and weight is None
    total_kernel[(n_programs,)](
        tops, totals, best, best if weight is None else weight, sums, counts, n_rows, n_classes,
        ROWS=rows, CLASSES=_width(n_classes) if counted else 0, WEIGHTED=weight is not None, LABELLED=len(best) > 0,
    )  # fmt: skip
    return counts.double(), sums.sum(0)


def _find_labels(view, constants, labels, *, may_correct):
    """Labels, max u, u at the label, and how many classes are within the slack, of each row."""
    device = view.scores.device
    chosen = upload(labels, device)
    best, own = _per_row(view, torch.float64, 2)
    sizes = torch.empty(view.n_rows, dtype=torch.int32, device=device)
    width, rows = _tile(view.n_classes)
    label_kernel[(triton.cdiv(view.n_rows, rows),)](
        view.scores, upload(constants, device), chosen, best, own, sizes, *view.sizes,
        VECTOR=view.vector, ROWS=rows, WIDTH=width, STAGES=STAGES, CORRECT=may_correct,
    )  # fmt: skip
    return chosen, best, own, sizes
