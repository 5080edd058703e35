"""The rows that may still move, their units and their classes: read in one pass, and laid out as the repair's board."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.solver.board import UNCAPPED, Board
from otlabel.solver.free_places import FreePlaces
from otlabel.solver.precision import TIE
from otlabel.solver.problem import ROWS_AT_ONCE, Problem
from otlabel.sweep.blocks import cut

MOST_JUDGED = 1 << 18  # entries whose median says what numbers are usual; beyond, every second, third, ... of them


@dataclass(frozen=True, eq=False)
class Placement:
    """Where every unit of every row goes: a label a row here, and a list for the rows of all that are split."""

    labels: np.ndarray  # (N,) int32; of a split row, the class that has most of it. (N, k) where a row takes several
    split_rows: np.ndarray  # (S,) int64, sorted: one entry for each class of each split row
    split_classes: np.ndarray  # (S,) int32
    split_units: np.ndarray  # (S,) int64

    @classmethod
    def of_nothing(cls, shape: tuple[int, ...]) -> Placement:
        """No row has a label yet."""
        none = np.empty(0, np.int64)
        return cls(np.full(shape, -1, np.int32), none, none.astype(np.int32), none)


@dataclass(frozen=True, eq=False)
class Movable:
    """What all ranks need know of the rows that may still move, and of the others."""

    found: sweep.Candidates  # rows are numbered over all ranks
    labels: np.ndarray  # (R,) of these rows, or (R, k)
    weights: np.ndarray  # (R,) int64
    fixed: np.ndarray  # (K,) units that have each label and cannot move: of all other rows, or that are no candidates
    row_of: np.ndarray  # (E,) which of these rows each entry belongs to


def movable_rows(
    problem: Problem, g: np.ndarray, labels: np.ndarray, weights: np.ndarray, slack: float, tie: float
) -> Movable:
    """One pass over the rows here, then what other ranks found; labels that fall short are replaced."""
    n_classes = problem.n_classes
    found = sweep.candidates(problem.rows, g, labels, slack, tie)
    if labels.ndim > 1:
        of_fixed = np.bincount(labels.ravel(), minlength=n_classes) - np.bincount(
            found.classes[found.taken], minlength=n_classes
        )
    else:
        of_fixed = -np.bincount(labels[found.rows], weights[found.rows], n_classes).astype(np.int64)
        for start, stop in cut(len(labels), ROWS_AT_ONCE):  # of many rows, copies take much memory
            of_fixed += np.bincount(labels[start:stop], weights[start:stop], n_classes).astype(np.int64)
    rows = found.rows + problem.rows.first
    here = rows, found.sizes, found.classes, found.scores, found.taken, labels[found.rows], weights[found.rows]
    rows, sizes, classes, values, taken, own_labels, own_weights = problem.rows.concat("round", *here)
    (counts,) = problem.rows.sum("round", of_fixed)
    row_of = np.repeat(np.arange(len(rows)), sizes)
    return Movable(sweep.Candidates(rows, sizes, classes, values, taken), own_labels, own_weights, counts, row_of)


def units_of(movable: Movable, placement: Placement, n_classes: int) -> np.ndarray:
    """How many units of its row each candidate has: all at the label, but for rows that were split before."""
    found, row_of = movable.found, movable.row_of
    if movable.labels.ndim > 1:
        return found.taken.astype(np.int64)
    rows = found.rows[row_of]
    units = np.where(found.classes == movable.labels[row_of], movable.weights[row_of], 0)
    if len(placement.split_rows):
        keys = rows * n_classes + found.classes
        split_keys = placement.split_rows * n_classes + placement.split_classes
        at = np.minimum(np.searchsorted(keys, split_keys), len(keys) - 1)
        lost = placement.split_rows[keys[at] != split_keys]  # rows whose other classes have become worse
        kept = ~np.isin(placement.split_rows, lost)
        units[np.isin(rows, placement.split_rows[kept])] = 0
        units[at[kept]] = placement.split_units[kept]
    return units


def placed(movable: Movable, units: np.ndarray, labels: np.ndarray, potentials: np.ndarray, rows: RowSet) -> Placement:
    """Labels after a repair, and the rows that it left in several classes."""
    found, row_of = movable.found, movable.row_of
    taken = np.flatnonzero(units)
    here = (found.rows >= rows.first) & (found.rows < rows.stop)
    if labels.ndim > 1:
        return replace(Placement.of_nothing((0,)), labels=_exchanged(movable, taken, labels, rows, here))
    chosen_classes = movable.labels.copy()
    chosen_classes[row_of[taken]] = found.classes[taken]
    times = np.bincount(row_of[taken], minlength=len(found.rows))
    idle = times == 0  # rows without mass, which no repair moves
    if idle.any():
        u = found.scores + potentials[found.classes]
        best = row_tops(found, u)
        chosen = np.flatnonzero(idle[row_of] & (u == best[row_of]))
        chosen_classes[row_of[chosen]] = found.classes[chosen]
    split = taken[times[row_of[taken]] > 1]
    rising = split[np.argsort(units[split], kind="stable")]
    chosen_classes[row_of[rising]] = found.classes[rising]  # the last to be written counts: most units
    labels = labels.copy()
    labels[found.rows[here] - rows.first] = chosen_classes[here]
    return Placement(labels, found.rows[row_of[split]], found.classes[split], units[split])


def _exchanged(movable: Movable, taken: np.ndarray, labels: np.ndarray, rows: RowSet, here: np.ndarray) -> np.ndarray:
    """Labels (N, k) whose candidates have given way to the entries that are taken: of each row as many as before."""
    found, row_of, n_classes = movable.found, movable.row_of, rows.shape[1]
    keys = row_of * n_classes + found.classes  # rising, as rows do, and classes in each
    own = movable.labels[here]
    own_keys = np.flatnonzero(here)[:, None] * n_classes + own
    at = np.minimum(np.searchsorted(keys, own_keys), max(len(keys) - 1, 0))
    if len(keys):
        own[keys[at] == own_keys] = found.classes[taken[here[row_of[taken]]]]
    labels = labels.copy()
    labels[found.rows[here] - rows.first] = own
    return labels


def below_best(movable: Movable, units: np.ndarray, potentials: np.ndarray) -> tuple[np.ndarray, float]:
    """By how much each entry's score + potential is below the best of its row, (E,), and what counts as nothing.

    Of rows that take several classes it is below, or above, the least of those that they have, which have units.
    Numbers that lie close together are subtracted exactly. So what is large in a class or a row, and in them alone,
    takes no digits from the others: two entries are tied where they differ by less than *their* numbers are known to.
    """
    found, row_of = movable.found, movable.row_of
    u, sizes = totals(found, potentials)
    if not len(u):
        return u, 0.0
    below = u
    below -= levels(found, u, units > 0)[row_of]
    np.minimum(sizes, row_tops(found, np.where(below == 0, sizes, 0.0))[row_of], out=sizes)
    below[np.abs(below) <= TIE * sizes] = 0.0
    every = max(1, len(u) // MOST_JUDGED)
    sizes, gaps = sizes[::every], np.abs(below[::every])
    usual = np.concatenate([sizes[sizes > 0], gaps[gaps > 0]])
    return below, TIE * float(np.median(usual)) if len(usual) else 0.0


def totals(found: sweep.Candidates, potentials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score + potential of each entry, and how large the two are."""
    g = potentials[found.classes]
    return found.scores + g, np.abs(found.scores) + np.abs(g)


def levels(found: sweep.Candidates, values: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The value of each row that its other entries are below: the largest, or of several that are taken the least."""
    if not len(found.taken):
        return row_tops(found, values)
    return -row_tops(found, np.where(taken, -values, -np.inf))


def row_tops(found: sweep.Candidates, values: np.ndarray) -> np.ndarray:
    """The largest value among the entries of each row; no row is without any."""
    return np.maximum.reduceat(values, np.cumsum(found.sizes) - found.sizes)


def board_of(
    movable: Movable, below: np.ndarray, units: np.ndarray, free: FreePlaces, potentials: np.ndarray, counts: np.ndarray
) -> Board:
    """Samples that may move, then the room that may, with the hub as one more class; potentials begin at zero."""
    found = movable.found
    hub, n_rows, n_spare = len(counts), len(found.rows), len(free.classes)
    sizes = np.concatenate([found.sizes, np.full(n_spare, 2)])
    classes = np.concatenate([found.classes, np.stack([free.classes, np.full(n_spare, hub)], 1).ravel()])
    worth = free.prices + potentials[free.classes]
    scores = np.concatenate([below, np.stack([worth, np.zeros(n_spare)], 1).ravel()])
    in_hub = free.units - free.inside
    filled = counts + np.bincount(free.classes, free.inside, hub).astype(np.int64)
    total = counts.sum() + free.units.sum()
    return Board(
        start=np.concatenate([[0], np.cumsum(sizes)]),
        row_of=np.concatenate([movable.row_of, np.repeat(np.arange(n_rows, n_rows + n_spare), 2)]),
        caps=np.repeat([1 if movable.labels.ndim > 1 else UNCAPPED, UNCAPPED], [n_rows, n_spare]),
        classes=classes.astype(np.int32),
        scores=scores,
        units=np.concatenate([units, np.stack([free.inside, in_hub], 1).ravel()]),
        potentials=np.append(np.where(np.isfinite(potentials), 0.0, -np.inf), 0.0),
        counts=np.append(filled, in_hub.sum()),
        targets=np.append(free.places, total - free.places.sum()),
    )
