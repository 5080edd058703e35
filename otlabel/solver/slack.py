"""How far below its label a class may be to count as a candidate: little at first, more where that does not suffice."""

from __future__ import annotations

import numpy as np

from otlabel import sweep
from otlabel.solver.movable import levels, totals
from otlabel.solver.precision import TIE
from otlabel.solver.problem import Problem
from otlabel.solver.repair import Done
from otlabel.solver.samples import few_sampled
from otlabel.sweep.packed import PackedLists

MOVES_A_ROW, MOVES_A_CLASS = 0.25, 16  # candidate moves to read at first: more than a repair needs, as a rule
FIRST_SLACK = 1 / 64  # of a row's spread: where the search for the first begins
SOFT_SLACK = 2.0  # times rho: how far around its price places of soft classes count at first; they grow as its exp
STEP = 2.0  # how much wider the next pass looks where the candidates did not suffice
FEW_MORE = 1.5  # times as many candidates: where so few come, the slack widens faster ...
STILL_LEFT = 0.8  # ... as where so much of the surplus stays
MUCH_WIDER = 8  # times as many candidates, all there are, are taken for the last units once as many have been read
MOVE_BYTES, AMPLE = 400, 1 << 30  # that a repair takes for each of them; with so much room nothing is spared
MOST_STAYS, PACKED_STAYS = 16, 128  # passes of one slack where more candidates lack room; on lists these take little
LOOKS_AN_ENTRY = 10.0  # moves that a repair looks at while a pass finds one candidate


class Slack:
    """The slack of each pass of a rounding, `now`; potentials that fall by it must not move `first` and `widest`.

    Of the last one: how many candidates there were, `n_moves`, and what was left of the surplus, `share_left`.
    """

    def __init__(self, problem: Problem, potentials: np.ndarray, rng: np.random.Generator, least: float = 0.0) -> None:
        self._problem, self._rng, self._least = problem, rng, least
        self._n_all = problem.n_rows * problem.n_classes
        self.n_moves, self._n_read, self._step, self._n_stays = 0, 0, STEP, 0
        self.begin(potentials)

    def begin(self, potentials: np.ndarray) -> None:
        """From the first slack of these potentials on."""
        first, self._widest = first_slack(self._problem, potentials, self._rng)
        self.first = max(first, self._least)
        self.begin_again()

    def begin_again(self) -> None:
        """From the first slack on."""
        self.now, self._left, self.share_left = self.first, self._problem.n_units + 1, 0.0

    def widen(self, n_entries: int, surplus: int, done: Done, least: float) -> None:
        """After a repair of so many candidates that left a surplus; to `least` or more, or not at all.

        What a repair looks at grows with the candidates, so that where that was much another pass of as many is
        cheaper. All that there are, an infinite slack, are taken where no more can count, or soon would.
        """
        n_classes = self._problem.n_classes
        self._n_read += n_entries
        self.share_left = surplus / self._left
        if done.n_looked > self._n_all + LOOKS_AN_ENTRY * n_entries and surplus < self._left:
            self._left = surplus
            return
        most_stays = PACKED_STAYS if isinstance(self._problem.rows.source, PackedLists) else MOST_STAYS
        if n_entries > most_moves(self._problem) and self._n_stays < most_stays:
            self._n_stays += 1  # potentials have fallen by the slack: as many other candidates count now
            return
        in_vain = n_entries < FEW_MORE * self.n_moves or surplus > STILL_LEFT * self._left
        self._step = 2.0 * self._step if in_vain else STEP
        self.n_moves, self._left = n_entries, min(self._left, surplus)
        self.now = max(self._step * self.now, least)
        few_left = surplus <= max(n_classes, LOOKS_AN_ENTRY * self._n_all / n_classes**2)
        if self.now > self._widest or (few_left and self._n_read > self._n_all <= MUCH_WIDER * n_entries):
            self.now = np.inf


def most_moves(problem: Problem) -> float:
    """Candidates that there is room for."""
    return problem.room / MOVE_BYTES if problem.room < AMPLE else np.inf


def first_slack(problem: Problem, g: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The slack that gives few candidates, judged by a sample, and how far apart two classes can be for any row."""
    n_takers = int(np.count_nonzero(problem.bounds[1]))
    rows = few_sampled(problem, rng)
    sample = problem.rows.taken(rows)
    a_row = max(MOVES_A_ROW, MOVES_A_CLASS * n_takers / problem.n_rows)
    wanted = int(len(rows) * min(a_row, most_moves(problem) / problem.n_rows)) + 1
    most, widest = SOFT_SLACK * float(problem.rule.rho.min()), problem.extent + float(np.ptp(g[np.isfinite(g)]))
    slack = max((problem.spread or widest) * FIRST_SLACK, 1e-300)
    while True:
        near = sweep.candidates(sample, g, np.full(sample.of_labels, -1, np.int32), slack, 0.0)
        u, sizes = totals(near, g)
        costs = np.repeat(levels(near, u, near.taken), near.sizes) - u if len(u) else u
        costs = np.sort(problem.rows.concat("slack", costs[costs > TIE * sizes])[0])  # what is less is rounding
        if len(costs) >= wanted:
            return min(float(costs[wanted - 1]), most), widest
        if slack > widest:
            return min(slack, most), widest
        slack *= STEP
