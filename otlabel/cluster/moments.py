"""Sums over clusters in one pass, on the processor or on a device; mean and variance are those of one cluster."""

from __future__ import annotations

import numpy as np

from otlabel.compiling import njit
from otlabel.errors import InvalidScoresError
from otlabel.ranks.rowset import RowSet
from otlabel.solver.problem import LARGEST_SCORE, LEAST_EPSILON
from otlabel.sources import Source, as_float, read_rows
from otlabel.sweep.pool import run_tasks
from otlabel.sweep.running import WithinMemory, device_blocks

EPSILON_SHARE = 0.02  # of the data's variance: a plan that is cheap to solve, whose argmax nearly has the sizes
STRETCHES = 16  # of the rows, whose sums are added in this order whoever makes them
DEVICE_ENTRIES = 1 << 24  # differences, or places in clusters, that a device makes at once
FAR = 1e-7  # of the data's variance: what squares of the steps between float32 numbers may sum to


def moments(rows: RowSet, labels: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums over each cluster of x_i - mu_k, (K, D), and over all rows of its squared length; float64, in one pass.

    Differences instead of the rows themselves: nothing cancels where the data is far from zero.
    """
    fine = rows.fine
    source, batches = fine.source, fine.batches
    n_tasks = max(1, min(STRETCHES, len(batches)))
    ends = [number * len(batches) // n_tasks for number in range(n_tasks + 1)]
    sums = np.zeros((n_tasks, *centres.shape))
    squares = np.zeros(n_tasks)
    wide = centres.astype(np.float64)

    def add(number: int) -> None:
        for (start, stop), block in fine.blocks(batches[ends[number] : ends[number + 1]]):
            squares[number] += _add_block(block, labels[start:stop], wide, sums[number])

    with fine.reading():
        of_rows = None
        if source.device is not None:
            with WithinMemory():
                of_rows = _moments_on_device(source, labels, wide)
        if of_rows is None:
            run_tasks(add, n_tasks, int(source.reads_files))
            of_rows = sums.sum(0), squares.sum()
    sums, squares = rows.sum("moments", *of_rows)
    return sums, float(squares)


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})  # NaN is to show in the sums
def _add_block(block: np.ndarray, labels: np.ndarray, centres: np.ndarray, sums: np.ndarray) -> float:
    """Add x_i - mu_k of a block (n, D) to the sums (K, D) over clusters; returns the sum of their squared lengths."""
    squares = 0.0
    for i in range(block.shape[0]):
        k = labels[i]
        for j in range(block.shape[1]):
            difference = block[i, j] - centres[k, j]
            sums[k, j] += difference
            squares += difference * difference
    return squares


def _moments_on_device(source: Source, labels: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same where the rows are: sums over clusters are products, whose order of adding is the same in every run."""
    import torch

    n_clusters, device, blocks = len(centres), source.device, device_blocks(source)
    size = max(1, DEVICE_ENTRIES // max(centres.shape))
    wide, chosen = (torch.from_numpy(array).to(device) for array in (centres, labels.astype(np.int64)))
    sums, squares = torch.zeros_like(wide), 0.0
    for (start, stop), block in zip(blocks, source.read(blocks), strict=True):
        for first in range(start, stop, size):
            last = min(first + size, stop)
            of_rows = chosen[first:last]
            differences = block[first - start : last - start].double() - wide[of_rows]
            belongs = wide.new_zeros((n_clusters, last - first)).scatter_(0, of_rows[None], 1.0)
            sums.addmm_(belongs, differences)
            squares += float(differences.square().sum())  # which waits, so that no blocks pile up
    return sums.cpu().numpy(), np.array(squares)


def mean_and_variance(rows: RowSet, cosine: bool) -> tuple[np.ndarray, float]:
    """The rows' mean (D,), and their mean squared distance from it.

    InvalidScoresError where they are not finite, or their squares beyond what float64 holds.
    """
    source, n_here, n_rows = rows.source, rows.shape[0], rows.n_rows
    head = as_float(read_rows(source, 0, min(1, n_here)), source.dtype).astype(np.float64)
    first = rows.concat("first", head)[0][:1]
    with np.errstate(invalid="ignore", over="ignore"):
        sums, squares = moments(rows, np.zeros(n_here, np.int64), first)
        variance = max(squares / n_rows - float(np.square(sums / n_rows).sum()), 0.0)
    if squares < LARGEST_SCORE:
        if variance < LEAST_EPSILON / EPSILON_SHARE * 2 and (widest := _widest(rows, first[0])) > 0:
            remedy = 'pass their differences with metric="euclidean"' if cosine else "multiply them by a constant"
            raise InvalidScoresError(
                f"features{' of length 1' if cosine else ''} differ by so little, {widest:.1g} at most, that squares "
                f"of it vanish; {remedy}"
            )
        return first[0] + sums[0] / n_rows, variance
    found = ""
    for (start, _), block in rows.blocks():
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, feature = bad[0]
            found = f"{rows.opened.place(start + int(row))}, feature {feature}"
            break
    if where := rows.communicator.first_text("bad features", found):
        raise InvalidScoresError(f"features hold NaN or infinity, the first at {where}")
    raise InvalidScoresError("features are so large that their squares overflow; divide them by a constant")


def _widest(rows: RowSet, first: np.ndarray) -> float:
    """The largest difference of a feature from that of the first row."""
    fine, most = rows.fine, 0.0
    with fine.reading():
        for _, block in fine.blocks():
            most = max(most, float(np.abs(block - first).max(initial=0)))
    return rows.max("widest", most)[0]


def is_far(mean: np.ndarray, variance: float) -> bool:
    """Whether centres near the mean would be moved noticeably by being rounded to float32."""
    return bool(np.square(np.spacing(np.abs(mean).astype(np.float32)), dtype=np.float64).sum() > FAR * variance)
