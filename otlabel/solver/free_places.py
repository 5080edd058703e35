"""Room that classes may leave free, as rows of the repair's board: bounds of a `Range`, prices of `KL`.

A unit of such a row is in its class, or in the hub, a node after the last class. So sizes that are free are one more
thing that paths move, and the optimum over sizes and labels is found at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otlabel.solver.problem import Problem

MOST_LEVELS = 1 << 18  # of all soft classes: beyond, as with real sample masses, neighbouring ones count as alike


@dataclass(frozen=True, eq=False)
class FreePlaces:
    """Rows of the board for what classes may leave free.

    A class of lo to hi samples has hi places and hi - lo units that may fill them at no cost; a soft one has a unit for
    each place whose price is near to what the place is worth now (of very many, neighbours share a row and a price).
    The hub, a node after the last class, holds the rest.
    """

    classes: np.ndarray  # (V,) int64
    prices: np.ndarray  # (V,) saved where a unit fills a place
    units: np.ndarray  # (V,) int64
    inside: np.ndarray  # (V,) int64: those of them in the class
    places: np.ndarray  # (K,) int64: of each class

    @property
    def any_room(self) -> bool:
        """Whether any size is free."""
        return len(self.classes) > 0


def free_places(problem: Problem, potentials: np.ndarray, counts: np.ndarray, slack: float, tie: float) -> FreePlaces:
    """The room that counts and potentials leave now; in ties, as much as makes up the places."""
    rule, n_units = problem.rule, problem.n_units
    lo, hi = problem.bounds
    soft = np.flatnonzero(np.isfinite(rule.rho) & rule.wanted)
    ranged = np.flatnonzero(np.isinf(rule.rho) & (lo < hi))
    below = rule.places_below(soft, -potentials[soft] - slack, n_units)
    places = hi.copy()
    places[soft] = rule.places_below(soft, -potentials[soft] + slack, n_units)
    number = places[soft] - below
    width = max(1, -(-int(number.sum()) // MOST_LEVELS))  # levels that are one row, at their mean price
    n_pieces = -(-number // width)
    piece = np.arange(n_pieces.sum()) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    widths = np.minimum(np.repeat(number, n_pieces) - piece * width, width)
    levels = np.repeat(below, n_pieces) + piece * width + widths
    of_levels = np.repeat(soft, n_pieces)
    classes = np.concatenate([ranged, of_levels])
    prices = np.concatenate([np.zeros(len(ranged)), rule.prices(of_levels, levels, n_units, widths)])
    units = np.concatenate([(hi - lo)[ranged], widths])
    gain = prices + potentials[classes]
    least = np.bincount(classes, np.where(gain > tie, units, 0), len(counts))
    most = np.bincount(classes, np.where(gain >= -tie, units, 0), len(counts))
    wanted = np.clip(places - counts, least, most).astype(np.int64)
    # The dearest places, which come last of their class, are the ones to fill.
    after = np.bincount(classes, units, len(counts))[classes] - _running(classes, units)
    return FreePlaces(classes, prices, units, np.clip(wanted[classes] - after, 0, units).astype(np.int64), places)


def _running(classes: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sum of the units of each row and of those before it of its class; rows of a class lie together."""
    total = np.cumsum(units)
    first = np.flatnonzero(np.diff(classes, prepend=-1))
    before = np.repeat(total[first] - units[first], np.diff(np.append(first, len(classes)))) if len(classes) else total
    return total - before
