"""Potentials where every class has its size, however far the last units must go: paths over all rows' cheapest moves.

A repair of candidates within a slack is quick while units go to classes nearby. The last ones may have to go far, to
where more slack brings most scores of most rows. What a search for paths needs to know of all these is one number for
each two classes, the cheapest move: so all scores are read once, the few cheapest are kept, and only what a path has
used is made anew. Labels are left to a repair at these potentials, which finds each unit close to its place: losses
here are rounded.

Source: as `repair`.
"""

from __future__ import annotations

import functools

import numpy as np

from otlabel.solver.board import NONE
from otlabel.solver.cheapest import Cheapest, add_rows, forget, join, n_bytes, no_moves, take_out
from otlabel.solver.free_places import free_places
from otlabel.solver.monitor import Monitor
from otlabel.solver.precision import normalised
from otlabel.solver.problem import Problem
from otlabel.solver.rounding import Rounded
from otlabel.solver.search_cheapest import ENTERED, NOBODY, ROW, State, nothing_found, search
from otlabel.solver.shortlist import FEWEST_SCORES
from otlabel.solver.slack import Slack
from otlabel.sources import Opened
from otlabel.sources.opened import AnyRows
from otlabel.sweep.blocks import cut
from otlabel.sweep.pool import run_tasks

FEW_NEAR, MOST_NEAR = 0.0005, 0.004  # share of all scores that are candidates: from where on others are looked at ...
STILL_LEFT = 0.5  # ... if more than so much of the surplus stays, and in any case
MOST_CLASSES = 1024  # whose pairs are so many that a search over all of them is as long as one over candidates
ENTRIES = 1 << 21  # scores that are made at once
MOST_MADE = 64.0  # times all rows: whose scores are made anew before it ends where it is


class FarLook:
    """Whether a look far pays, of which one is made."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._n_scores, self._is_made = problem, problem.n_rows * problem.n_classes, False

    @functools.cached_property
    def _may_be(self) -> bool:
        """Many scores, of rows at hand that count alike, and classes that have sizes, not prices."""
        problem, rows, rule = self._problem, self._problem.rows, self._problem.rule
        is_plain = problem.weights is None and rows.labels_per_row == 1 and not problem.is_listed
        is_plain = is_plain and bool(np.isinf(rule.rho[rule.wanted]).all())
        is_large = self._n_scores >= FEWEST_SCORES and problem.n_rows <= np.iinfo(np.int32).max
        fits = problem.n_classes <= MOST_CLASSES and n_bytes(problem.n_classes) <= problem.room
        if not (is_plain and is_large and fits):
            return False
        any_rows = any_rows_of(rows.opened)
        return -rows.max("far", -float(any_rows is not None and any_rows.are_at_hand))[0] > 0

    def is_due(self, last: Slack) -> bool:
        """Whether it is worth more than a wider slack."""
        share = FEW_NEAR if last.share_left > STILL_LEFT else MOST_NEAR
        return not self._is_made and last.n_moves > share * self._n_scores and self._may_be

    def potentials(self, rounded: Rounded, monitor: Monitor) -> np.ndarray | None:
        """Potentials from where a rounding ended early; None where no look is to be made."""
        if self._is_made or not self._may_be:
            return None
        self._is_made = True
        return far_potentials(self._problem, rounded.potentials, rounded.placement.labels, monitor)


def any_rows_of(opened: Opened) -> AnyRows | None:
    """Scores of any rows, of heads alone: among tied labels, which others have, it would depend on where they are."""
    return opened.by_row


def far_potentials(problem: Problem, potentials: np.ndarray, labels: np.ndarray, monitor: Monitor) -> np.ndarray:
    """(K,) at which each class is the best of as many rows as it takes, up to ties; from others and their labels."""
    rows, n_classes, labels = problem.rows, problem.n_classes, labels.copy()
    cheapest = _read(problem, potentials, labels)
    monitor.record("round", problem.n_rows)
    (counts,) = rows.sum("far", np.bincount(labels, minlength=n_classes))
    state = _state(problem, potentials, counts)
    found, n_left = nothing_found(n_classes + 1), MOST_MADE * problem.n_rows
    while n_left > 0 and not np.array_equal(state.counts, state.targets):
        n_moves, unknown = search(cheapest, state, found)
        if not n_moves and unknown == NONE:
            break  # no way: who needs labels will say so
        moved = found.moves[:n_moves]
        moved = moved[moved[:, ROW] != NOBODY]
        moved = moved[np.argsort(moved[:, ROW])]
        for row, left, _ in moved:
            take_out(cheapest, left, row)
        here = (moved[:, ROW] >= rows.first) & (moved[:, ROW] < rows.stop)
        labels[moved[here, ROW] - rows.first] = moved[here, ENTERED]
        n_left -= _made(problem, cheapest, potentials, labels, moved[here, ROW] - rows.first)
        if unknown != NONE:
            forget(cheapest, unknown)
            n_left -= _made(problem, cheapest, potentials, labels, np.flatnonzero(labels == unknown))
    monitor.record("repair", 0)
    return normalised(potentials, state.falls[-1] - state.falls[:-1], problem.rule)


def _at_hand(problem: Problem) -> AnyRows:
    any_rows = any_rows_of(problem.rows.opened)
    assert any_rows is not None
    return any_rows


def _read(problem: Problem, potentials: np.ndarray, labels: np.ndarray) -> Cheapest:
    """The cheapest moves of all rows, one class after the other; labels that are not the best ones are replaced."""
    rows, n_classes = problem.rows, problem.n_classes
    here, members = no_moves(n_classes), np.argsort(labels, kind="stable")
    stops = np.cumsum(np.bincount(labels, minlength=n_classes))
    others, any_rows = np.zeros(len(labels), np.bool_), _at_hand(problem)

    def read(label: int) -> None:
        own = members[stops[label - 1] if label else 0 : stops[label]]
        for start, stop in cut(len(own), max(1, ENTRIES // n_classes)):
            some = own[start:stop]
            scores, of_some = any_rows.of(some), labels[some]
            g = potentials.astype(scores.dtype)
            others[some] = add_rows(here, scores, g, some + rows.first, of_some, best=True)
            labels[some] = of_some

    run_tasks(read, n_classes)
    cheapest = here
    if rows.communicator.world_size > 1:
        cheapest = no_moves(n_classes)
        for of_rank in rows.communicator.allgather_by_rank("far", here._asdict()):
            join(cheapest, Cheapest(**of_rank))
    late = np.flatnonzero(others)
    (any_late,) = rows.max("far", float(len(late)))
    for start, stop in cut(problem.n_rows if any_late else 0, max(1, ENTRIES // n_classes)):
        low, high = np.searchsorted(late, (start - rows.first, stop - rows.first))
        _made(problem, cheapest, potentials, labels, late[low:high])
    return cheapest


def _state(problem: Problem, potentials: np.ndarray, counts: np.ndarray) -> State:
    """The classes, and the places that they may leave free: in the class where that is worth more than nothing."""
    free = free_places(problem, potentials, counts, 0.0, 0.0)
    widths, inside = (np.zeros(len(counts), np.int64) for _ in range(2))
    widths[free.classes], inside[free.classes] = free.units, free.inside
    total = int(counts.sum() + widths.sum())
    return State(
        np.zeros(len(counts) + 1),
        np.append(counts + inside, (widths - inside).sum()),
        np.append(free.places, total - free.places.sum()),
        widths,
        inside,
    )


def _made(problem: Problem, cheapest: Cheapest, potentials: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> int:
    """Bring in the moves of chosen rows of all ranks, by their scores; returns how many rows these are."""
    rows = problem.rows
    scores = _at_hand(problem).of(chosen)
    numbers, scores, own = rows.concat("far", chosen + rows.first, scores, labels[chosen])
    add_rows(cheapest, scores, potentials.astype(scores.dtype), numbers, own, best=False)
    return len(numbers)
