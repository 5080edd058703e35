"""What float64 knows of scores, potentials and their sums, row by row."""

from __future__ import annotations

import numpy as np

from otlabel.marginals import Rule

EPS = float(np.finfo(np.float64).eps)
TIE = 4 * EPS  # relative difference below which two float64 sums count as equal
ROUNDED = 64 * EPS  # of the size of what is added: a gap up to this is rounding
JUMP = 1e6  # from a usual potential to one that is not: what is then taken for rounding is below 2e-8 of the usual


def rounding_of(best: np.ndarray, own: np.ndarray, own_potentials: np.ndarray, potentials: np.ndarray) -> np.ndarray:
    """By how much rows may fall short for no other reason than that float64 rounds, from s + g at best and label.

    Their own numbers alone excuse it: what is large in other rows is no reason, nor is the potential of a class that is
    far above all usual ones, for stored numbers of that size are as exact as others.
    """
    known, usual = own - own_potentials, np.abs(own)
    np.abs(known, out=known)  # in place: of many rows, each array anew is most of the time
    known += np.abs(own_potentials)
    usual += 2 * largest_usual(potentials)
    np.minimum(known, usual, out=known)
    known += np.abs(best, out=usual)
    known *= ROUNDED
    return known


def largest_usual(potentials: np.ndarray) -> float:
    """The largest potential, by size, below which there is no jump from the middle ones on."""
    sizes = np.sort(np.abs(potentials[np.isfinite(potentials) & (potentials != 0)]))
    above = sizes[max(len(sizes) - 1, 0) // 2 :]
    jumps = np.flatnonzero(above[1:] > JUMP * above[:-1])
    return float(above[jumps[0]]) if len(jumps) else float(above.max(initial=0.0))


def normalised(potentials: np.ndarray, fall: np.ndarray, rule: Rule) -> np.ndarray:
    """Potentials that have fallen, with the median at zero where a constant says nothing.

    Unlike a mean, it is where most are: these keep their digits, whatever others are like. What is rounded is rounded
    down, so that no class becomes dearer than it was for the samples of others.
    """
    finite = np.isfinite(potentials)
    g, change = potentials[finite], -fall[finite]
    if rule.shift_free:
        change -= np.median(g + change)
    total = g + change
    result = potentials.copy()
    result[finite] = np.where((total - g == change) & (total - change == g), total, np.nextafter(total, -np.inf))
    return result
