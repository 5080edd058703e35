"""Of each two classes the cheapest moves from one to the other, among all rows and all scores: compiled.

Row i of class j loses (s_ij + g_j) - (s_ik + g_k) by a move to class k, at potentials g that stay as they are. Kept are
the few moves of each pair that lose least, and a bound that no other is below. A row that moves takes its moves out of
one class and brings its own into another; where all that is kept of a pair is used up, its class is looked at anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit
from otlabel.solver.board import part as unmanaged
from otlabel.sweep.numerics import FAST, FLAGS, larger

FEWEST_KEPT, MOST_KEPT = 4, 32  # moves of a pair
KEPT = 1 << 23  # moves of all pairs, as far as these numbers allow


class Cheapest(NamedTuple):
    """The moves between all pairs of classes, those of each pair in order of their losses."""

    losses: np.ndarray  # (K, K, T) float32
    rows: np.ndarray  # (K, K, T) int32: which of all rows
    numbers: np.ndarray  # (K, K) int32: how many there are
    bounds: np.ndarray  # (K, K) float32: no other move loses less
    least: np.ndarray  # (K, K) float32: what no move loses less than


def no_moves(n_classes: int) -> Cheapest:
    """Of classes without rows."""
    n_kept, pairs = _n_kept(n_classes), (n_classes, n_classes)
    return Cheapest(
        np.empty((*pairs, n_kept), np.float32),
        np.empty((*pairs, n_kept), np.int32),
        np.zeros(pairs, np.int32),
        np.full(pairs, np.inf, np.float32),
        np.full(pairs, np.inf, np.float32),
    )


def n_bytes(n_classes: int) -> int:
    """That the moves between so many classes take."""
    return n_classes**2 * (8 * _n_kept(n_classes) + 12)


def _n_kept(n_classes: int) -> int:
    """T."""
    return int(np.clip(KEPT // n_classes**2, FEWEST_KEPT, MOST_KEPT))


def forget(cheapest: Cheapest, label: int) -> None:
    """All moves out of a class."""
    cheapest.numbers[label] = 0
    cheapest.bounds[label] = cheapest.least[label] = np.inf


def add_rows(
    cheapest: Cheapest, scores: np.ndarray, potentials: np.ndarray, rows: np.ndarray, labels: np.ndarray, *, best: bool
) -> np.ndarray:
    """Bring in the moves of rows (n,) from their labels, by their scores (n, K), in the precision of the potentials.

    Where labels are to be the best at these, others are replaced, and such rows are not brought in; returns which.
    """
    near, others = np.zeros(-(-len(potentials) // FLAGS) * FLAGS, np.uint8), np.zeros(len(rows), np.bool_)
    losses = np.empty_like(potentials)
    _add(cheapest, scores, potentials, rows, labels, best, losses, near, near.view(np.uint64), others)
    return others


@njit(fastmath=FAST, nogil=True, cache=True, _nrt=False)
def _add(cheapest, scores, potentials, rows, labels, best, losses, near, words, others):
    n_rows, n_classes = scores.shape
    for i in range(n_rows):
        label = labels[i]
        own, top = scores[i, label] + potentials[label], -np.inf
        for k in range(n_classes):
            value = scores[i, k] + potentials[k]
            losses[k] = own - value
            near[k] = losses[k] < cheapest.bounds[label, k]
            top = larger(top, value)
        if best and own < top:
            label = 0
            while scores[i, label] + potentials[label] < top:
                label += 1
            labels[i], others[i] = label, True
            continue
        near[label] = 0
        for word in range(words.size):
            if words[word]:
                for k in range(word * FLAGS, word * FLAGS + FLAGS):
                    if near[k]:
                        _insert(cheapest, label, k, rows[i], np.float32(losses[k]))


@unmanaged
def _insert(cheapest, label, other, row, loss):
    """Put a move in its place; of those that lose as much the first to come are kept."""
    losses, rows, bounds = cheapest.losses, cheapest.rows, cheapest.bounds
    at = cheapest.numbers[label, other]
    if loss >= bounds[label, other]:
        return
    if at == losses.shape[2]:
        if loss >= losses[label, other, at - 1]:
            bounds[label, other] = loss
            return
        at -= 1
        bounds[label, other] = losses[label, other, at]
    cheapest.numbers[label, other] = at + 1
    while at > 0 and losses[label, other, at - 1] > loss:
        losses[label, other, at], rows[label, other, at] = losses[label, other, at - 1], rows[label, other, at - 1]
        at -= 1
    losses[label, other, at], rows[label, other, at] = loss, row
    cheapest.least[label, other] = losses[label, other, 0]


@njit(nogil=True, cache=True, _nrt=False)
def take_out(cheapest, label, row):
    """The moves of a row that leaves a class."""
    losses, rows, numbers = cheapest.losses, cheapest.rows, cheapest.numbers
    for other in range(cheapest.least.shape[1]):
        number, at = numbers[label, other], 0
        while at < number and rows[label, other, at] != row:
            at += 1
        if at == number:
            continue
        for after in range(at + 1, number):
            losses[label, other, after - 1], rows[label, other, after - 1] = (
                losses[label, other, after],
                rows[label, other, after],
            )
        numbers[label, other] = number - 1
        cheapest.least[label, other] = losses[label, other, 0] if number > 1 else cheapest.bounds[label, other]


@njit(nogil=True, cache=True, _nrt=False)
def join(cheapest, others):
    """Bring in the moves of other rows, which come after those of all that there are."""
    n_classes = cheapest.least.shape[0]
    for label in range(n_classes):
        for other in range(n_classes):
            for at in range(others.numbers[label, other]):
                _insert(cheapest, label, other, others.rows[label, other, at], others.losses[label, other, at])
            bound, number = others.bounds[label, other], cheapest.numbers[label, other]
            if bound < cheapest.bounds[label, other]:
                cheapest.bounds[label, other] = bound
                while number > 0 and cheapest.losses[label, other, number - 1] > bound:
                    number -= 1
                cheapest.numbers[label, other] = number
                cheapest.least[label, other] = cheapest.losses[label, other, 0] if number > 0 else bound
