"""Lists of the classes near each row's best, compiled by numba: how they are made, and the backend that reduces them.

Where rows keep their mass, what a class takes is rounded to multiples of a quantum before it is added. So sums have the
same bits however rows are cut into blocks, of which lists may have far fewer than the scores that they come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from otlabel.compiling import njit
from otlabel.sources.listed import Lists
from otlabel.sweep.numerics import (
    FAST,
    FLAGS,
    LOWEST,
    append_near,
    bits_of,
    exp,
    grown,
    infinity,
    larger,
    magnitude,
    part,
    widen,
)

LISTED = np.uint64(0x9E3779B97F4A7C15)  # any large constant: it tells a listed zero from what is not listed
LOWEST_LISTED = -float(np.finfo(np.float32).max)  # above it everything is a legal score of what is listed in float32


def sweep_block(
    block: Lists,
    potentials: np.ndarray,
    inverse_epsilon: Any,
    weights: np.ndarray,
    row_exponent: float,
    labels: np.ndarray,
    row_mass: np.ndarray,
    mass: np.ndarray,
    counts: np.ndarray,
) -> tuple[float, float]:
    """As the contract says."""
    starts, classes, scores, quantum = block
    return _sweep(
        starts, classes, scores, quantum, potentials, inverse_epsilon, weights, row_exponent, labels, row_mass, mass,
        counts,
    )  # fmt: skip


def inspect_block(
    block: Lists, multipliers: np.ndarray, step: int, hashes: np.ndarray, tops: np.ndarray, bottoms: np.ndarray
) -> tuple[int, int]:
    """As the contract says; a hash is of all that is listed."""
    return _inspect(block.starts, block.classes, block.scores, multipliers, hashes, tops, bottoms)


def label_block(block: Lists, potentials: np.ndarray, labels: np.ndarray, best: np.ndarray, own: np.ndarray) -> None:
    """As the contract says; u is -inf at a label that is not listed."""
    _label(block.starts, block.classes, block.scores, potentials, labels, best, own)


def candidates_block(block: Lists, potentials: np.ndarray, labels: np.ndarray, slack: float, tie: float) -> Any:
    """As the contract says."""
    return _candidates(block.starts, block.classes, block.scores, potentials, labels, slack, tie)


def sparse_plan_block(
    block: Lists, rows: np.ndarray, potentials: np.ndarray, inverse_epsilon: Any, share: float
) -> Any:
    """As the contract says."""
    return _sparse_plan(block.starts, block.classes, block.scores, rows, potentials, inverse_epsilon, share)


def plan_of(block: Lists, potentials: np.ndarray, inverse_epsilon: Any) -> np.ndarray:
    """The plan's entries (E,) at what is listed, float64: softmax(u / epsilon) of each row."""
    return _plan(block.starts, block.classes, block.scores, potentials, inverse_epsilon)


def raise_unlisted(
    block: Lists, least: np.ndarray, potentials: np.ndarray, order: np.ndarray, best: np.ndarray
) -> None:
    """Raises best (N,) to what a class that is not listed may reach, least + potential; order: the largest first."""
    _raise_unlisted(block.starts, block.classes, least, potentials, order, best)


@njit(fastmath=FAST, nogil=True, cache=True)
def list_block(scores, potentials, spans):
    """The classes of each row of a dense block whose u = scores + potentials is no less than any u - span.

    In the precision of the potentials. Returns how many each row has, and, row after row, classes and stored scores.
    """
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, potentials.dtype)
    near = np.zeros(-(-n_classes // FLAGS) * FLAGS, np.uint8)
    words = near.view(np.uint64)
    sizes, n_entries = np.empty(n_rows, np.int32), 0
    classes, values = (
        np.empty(16 * n_rows + 2 * n_classes, np.int32),
        np.empty(16 * n_rows + 2 * n_classes, scores.dtype),
    )
    for i in range(n_rows):
        top = np.float32(-np.inf)
        for k in range(n_classes):
            value = widen(scores[i, k]) + potentials[k]
            u[k] = value
            top = larger(top, value - spans[k])
        floor = max(top, np.float32(LOWEST_LISTED))
        before = n_entries
        while n_entries + n_classes + FLAGS > classes.size:
            classes, values = grown(classes), grown(values)
        n_entries = append_near(u, floor, near, words, classes, n_entries)
        for entry in range(before, n_entries):
            values[entry] = scores[i, classes[entry]]
        sizes[i] = n_entries - before
    return sizes, classes[:n_entries], values[:n_entries]


@njit(fastmath=FAST, nogil=True, cache=True)
def _inspect(starts, classes, scores, multipliers, hashes, tops, bottoms):
    """As `cpu.inspect_block`, with what is not listed among the forbidden pairs."""
    value = np.empty(1, tops.dtype)
    n_classes, n_bad, n_forbidden = multipliers.size, 0, 0
    for i in range(starts.size - 1):
        top, bottom, digest, finite = np.float32(-np.inf), np.float32(np.inf), np.uint64(0), 0
        for entry in range(starts[i], starts[i + 1]):
            value[0] = widen(scores[entry])
            if magnitude(scores[entry]) < infinity(scores[entry]):  # by bits: comparisons assume that there is no NaN
                finite += 1
                top, bottom = max(top, value[0]), min(bottom, value[0])
            elif magnitude(scores[entry]) != infinity(scores[entry]) or value[0] > 0:
                n_bad += 1
                n_forbidden -= 1
            bits = np.uint64(bits_of(value[0]))
            bits ^= bits >> np.uint64(32)
            bits ^= bits >> np.uint64(16)
            digest += (bits + LISTED) * multipliers[classes[entry]]  # a score of zero is no missing one
        n_forbidden += n_classes - finite
        hashes[i] = np.uint64(0) if finite == 0 or (finite == n_classes and top == bottom) else digest
        tops[i], bottoms[i] = top, bottom
    return n_bad, n_forbidden


@njit(fastmath=FAST, nogil=True, cache=True)
def _plan(starts, classes, scores, potentials, inverse_epsilon):
    plan = np.empty(starts[-1] - starts[0])
    for i in range(starts.size - 1):
        begin, end, top, total = starts[i] - starts[0], starts[i + 1] - starts[0], -np.inf, 0.0
        for at in range(begin, end):
            plan[at] = np.float64(widen(scores[starts[0] + at])) + potentials[classes[starts[0] + at]]
            top = max(top, plan[at])
        for at in range(begin, end):
            plan[at] = np.exp((plan[at] - top) * inverse_epsilon) if top > -np.inf else 0.0
            total += plan[at]
        for at in range(begin, end):
            plan[at] /= total if total > 0 else 1.0
    return plan


@njit(fastmath=FAST, nogil=True, cache=True)
def _raise_unlisted(starts, classes, least, potentials, order, best):
    """Few classes of the largest potentials are listed: a look or two finds one that is not."""
    for i in range(starts.size - 1):
        begin, end = starts[i], starts[i + 1]
        for k in order:
            at = begin + np.searchsorted(classes[begin:end], k)
            if at == end or classes[at] != k:
                best[i] = max(best[i], least[i] + potentials[k])
                break


@njit(fastmath=FAST, nogil=True, cache=True)
def _sweep(
    starts, classes, scores, quantum, potentials, inverse_epsilon, weights, row_exponent, labels, row_mass, mass, counts
):
    """Sums over rows, as `cpu.sweep_block`."""
    n_rows, longest = starts.size - 1, 1
    for i in range(n_rows):
        longest = max(longest, starts[i + 1] - starts[i])
    u = np.empty(longest, potentials.dtype)
    weighted = weights.size > 0
    rounded = row_exponent == 0.0  # masses that rows may leave are of any size
    linear, entropic, weight, quanta = 0.0, 0.0, 1.0, 1.0 / quantum if rounded else 1.0
    for i in range(n_rows):
        begin, size = starts[i], starts[i + 1] - starts[i]
        top, best = np.float32(-np.inf), 0
        for at in range(size):
            value = widen(scores[begin + at]) + potentials[classes[begin + at]]
            u[at] = value
            best = at if value > top else best
            top = max(top, value)
        if weighted:
            weight = weights[i]
        if top == -np.inf:  # no class is allowed, and none takes anything
            labels[i] = 0
            if row_exponent != 0.0:
                row_mass[i] = 0.0
            continue
        total = np.float32(0)
        for at in range(size):
            e = exp((u[at] - top) * inverse_epsilon)
            u[at] = e
            total += e
        own_mass = weight
        if row_exponent != 0.0:
            own_mass *= np.exp(row_exponent * (np.float64(top) + np.log(np.float64(total)) / inverse_epsilon))
            row_mass[i] = own_mass
        factor = own_mass * quanta / total
        for at in range(size):
            taken = u[at] * factor
            mass[classes[begin + at]] += np.rint(taken) if rounded else taken
        labels[i] = classes[begin + best]
        counts[labels[i]] += np.int64(weight)
        linear += weight * top
        entropic += weight * np.log(np.float64(total))
    if rounded:
        for k in range(mass.size):
            mass[k] *= quantum
    return linear, entropic


@part()
def _best(starts, classes, scores, potentials, row, label):
    """In float64: the largest u of a row, its class (the lowest of several), and u at a label, -inf if not listed."""
    top, chosen, at_label = -np.inf, np.int32(0), -np.inf
    for entry in range(starts[row], starts[row + 1]):
        k = classes[entry]
        value = np.float64(widen(scores[entry])) + potentials[k]
        if value > top:
            top, chosen = value, k
        if k == label:
            at_label = value
    return top, chosen, at_label


@njit(fastmath=FAST, nogil=True, cache=True)
def _label(starts, classes, scores, potentials, labels, best, own):
    for i in range(starts.size - 1):
        top, chosen, at_label = _best(starts, classes, scores, potentials, i, labels[i])
        if labels[i] < 0:
            labels[i], at_label = chosen, top
        best[i], own[i] = top, at_label


@njit(fastmath=FAST, nogil=True, cache=True)
def _candidates(starts, classes, scores, potentials, labels, slack, tie):
    n_rows = starts.size - 1
    rows, sizes, n_found = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64), 0
    found, values, n_entries = np.empty(4 * n_rows + 64, labels.dtype), np.empty(4 * n_rows + 64, np.float64), 0
    for i in range(n_rows):
        top, chosen, at_label = _best(starts, classes, scores, potentials, i, labels[i])
        if labels[i] < 0 or at_label < top - tie:
            labels[i], at_label = chosen, top
        floor, before = max(at_label - slack, LOWEST), n_entries
        while n_entries + starts[i + 1] - starts[i] > found.size:
            found, values = grown(found), grown(values)
        for entry in range(starts[i], starts[i + 1]):
            score = np.float64(widen(scores[entry]))
            if score + potentials[classes[entry]] >= floor:
                found[n_entries], values[n_entries] = classes[entry], score
                n_entries += 1
        if n_entries - before < 2:
            n_entries = before
            continue
        rows[n_found], sizes[n_found] = i, n_entries - before
        n_found += 1
    return rows[:n_found], sizes[:n_found], found[:n_entries], values[:n_entries]


@njit(fastmath=FAST, nogil=True, cache=True)
def _sparse_plan(starts, classes, scores, rows, potentials, inverse_epsilon, share):
    sizes, n_entries = np.empty(rows.size, np.int64), 0
    found, values = np.empty(8 * rows.size + 64, np.int32), np.empty(8 * rows.size + 64, np.float32)
    for number in range(rows.size):
        begin, end = starts[rows[number]], starts[rows[number] + 1]
        top = np.float32(-np.inf)
        for entry in range(begin, end):
            top = max(top, widen(scores[entry]) + potentials[classes[entry]])
        while n_entries + end - begin > found.size:
            found, values = grown(found), grown(values)
        total, before = np.float32(0), n_entries
        for entry in range(begin, end):
            e = exp((widen(scores[entry]) + potentials[classes[entry]] - top) * inverse_epsilon)
            total += e
            if e > share:
                found[n_entries], values[n_entries] = classes[entry], e
                n_entries += 1
        for entry in range(before, n_entries):
            values[entry] /= total
        sizes[number] = n_entries - before
    return sizes, found[:n_entries], values[:n_entries]
