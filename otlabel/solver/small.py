"""Problems that fit the cache: solved in four compiled calls, or left to the long way where anything is unusual.

The long way cuts rows into blocks for threads, takes samples and steers each pass from Python: most of the time of a
small problem. Here one of exact masses is read once, dealt out, descended on and rounded by code that knows nothing of
threads, files, ranks or devices; each rank does all of it. What it does not solve and prove, it does not answer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from otlabel.errors import FewSamplesWarning, warn
from otlabel.marginals import Exact, Rule, rule_of
from otlabel.ranks.rowset import RowSet
from otlabel.solver.answer import Answer
from otlabel.solver.continuation import WARM_PASSES
from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution
from otlabel.solver.objective import FINE_TOLERANCE, RESOLUTION_SHARE, Point
from otlabel.solver.outcome import Certificate, Status
from otlabel.solver.precision import TIE, normalised
from otlabel.solver.problem import Demand, Problem, Solver
from otlabel.solver.proof import priced, shortfall
from otlabel.solver.rungs import EPSILON_STEP, LAST_TOLERANCE, RUNG_TOLERANCE, STARVED, ladder
from otlabel.solver.sharpening import CONTESTED, EXCESS_SHARE, WORTHWHILE
from otlabel.solver.small_blocks import FLOAT32_EPS, LANES
from otlabel.solver.small_labels import place, prove
from otlabel.solver.small_plan import descend
from otlabel.solver.small_scores import Table, middle, table_of
from otlabel.sources import LinearScores
from otlabel.sources.listed import least_of
from otlabel.sweep import Sweep
from otlabel.validate import check_mass, check_sample_mass

MOST_SCORES = 1 << 22  # with rows that fill up the last block
MOST_PASSES, RUNG_PASSES, LAST_PASSES = 100, 16, 30  # of all rungs, of one on the way, of the last
COARSE_ROWS, FEWEST_ROWS = 40, 1024  # rows a class, and rows, of the sample on which epsilon falls
NEARER = 0.25  # times the tolerance: one more step, once they are short, for a plan that other ways come to as well
SLACK = 2.0  # times epsilon: how far below its best classes of a row are looked at, before more are
TINY, WIDE = 0.25, 1e4  # times epsilon: the least and the largest spread of a row
FARTHEST, UNEVEN = 1e9, 1e3  # times the spread: how large scores, and how wide single rows, may be
LEAST_EPSILON = 1e-20  # and its reciprocal the largest: float32 then holds all that matters
MOST_MOVED = 0.25  # share of the samples: where more are to be moved, equal rows do


def is_small(rows: RowSet, demand: Demand, solver: Solver) -> bool:
    """Whether a problem is of the kind and size that is solved in the cache."""
    return (
        -(-rows.n_rows // LANES) * LANES * rows.shape[1] <= MOST_SCORES
        and rows.shape[1] > 1
        and rows.source.device is None
        and not (isinstance(rows.opened, LinearScores) and rows.opened.head.normalize)  # digits are left out there
        and least_of(rows.source) is None  # of lists: what else scores may be counts in the bound
        and isinstance(demand.classes, Exact)
        and isinstance(demand.samples, Exact)
        and not demand.abstain
        and demand.labels_per_sample == 1
        and solver.method == "auto"
        and solver.max_sweeps >= MOST_PASSES
        and solver.tol >= FINE_TOLERANCE
        and LEAST_EPSILON < solver.epsilon < 1 / LEAST_EPSILON
    )


def solve_small(
    rows: RowSet,
    demand: Demand,
    solver: Solver,
    init: np.ndarray | None,
    ahead: np.ndarray | None,
    monitor: Monitor,
) -> Answer | None:
    """The answer, or None where the long way is to look: weights, unusual scores, ties, no convergence, no proof.

    From plan potentials `init`, and `ahead` that is to be added to them for labels, where these are known.
    """
    n_rows, n_classes = rows.n_rows, rows.shape[1]
    shares = check_mass(demand.class_mass, n_rows, n_classes)
    if check_sample_mass(rows.of_all("sample_mass", demand.sample_mass), n_rows)[0] is not None:
        return None
    rule = rule_of(demand.classes, shares, n_rows)
    if demand.remainder == "best":
        rule = rule.with_free_remainder(n_rows)
    sizes, most = rule.unit_bounds(n_rows)
    table = table_of(rows, solver.epsilon, solver.tol)
    if table is None or (table.least == -np.inf and not sizes.all()) or (table.top <= 1 and table.least >= 0):
        return None  # no scores, too few choices, or perhaps probabilities
    descent = _Descent(table)
    if not descent.is_usual(solver.epsilon) or not descent.solved(solver, shares, init):
        return None
    plan = descent.point(shares)
    if not FLOAT32_EPS * 2 * np.ptp(plan.potentials[shares > 0]) < RESOLUTION_SHARE * solver.tol * solver.epsilon:
        return None
    if table.is_far and not sizes.all():
        return None
    placed = _placed(table, descent, plan, ahead, solver, rule, sizes, most)
    if placed is None:
        return None
    problem = Problem(
        rows=rows,
        rule=rule,
        n_units=n_rows,
        spread=table.spread,
        extent=table.extent,
        magnitude=table.magnitude,
        sampled=np.empty(0, np.int64),
        for_new=shares > 0,
        stored_magnitude=table.magnitude,
        top=table.top,
    )
    proof = placed.certificate(rule if solver.rounding == "exact" else None)
    if not proof.proven:
        return None
    if n_rows < n_classes and demand.class_mass is None:
        warn(FewSamplesWarning, f"{n_rows} samples for {n_classes} classes: sizes are 0 or 1")
    descent.tell(monitor)
    placed.tell(monitor, n_rows)
    here = slice(rows.first, rows.stop)
    potentials = priced(problem, placed.potentials, placed.best[here], placed.counts, monitor)
    return Answer(problem, Solution(plan, Status.CONVERGED), placed.labels[here], proof, placed.counts, potentials)


class _Descent:
    """Scores, and what finds potentials on them."""

    def __init__(self, table: Table) -> None:
        self._table, self.n_rows = table, table.n_rows
        n_blocks, n_classes, _ = table.blocks.shape
        self.potentials, self._mass, self._tried = np.zeros((3, n_classes))
        self.epsilon, self._error, self._passes = 0.0, math.inf, list[tuple[int, float, float, np.ndarray]]()
        self._work: tuple[np.ndarray, ...] = (
            *np.empty((8, n_classes)),
            np.empty(n_classes, np.float32),
            np.empty((n_classes, LANES), np.float32),
            *np.empty((2, LANES), np.float32),
            np.empty((n_blocks * n_classes, LANES), np.float32),
            np.empty(n_blocks * n_classes, np.int32),
            np.empty(n_blocks, np.int64),
        )

    def is_usual(self, epsilon: float) -> bool:
        """Whether scores are of a size that float32 and few steps of epsilon are made for, in all rows."""
        table = self._table
        fits = TINY * epsilon <= table.spread <= WIDE * epsilon
        return fits and table.magnitude <= FARTHEST * table.spread and table.extent <= UNEVEN * table.spread

    def solved(self, solver: Solver, shares: np.ndarray, init: np.ndarray | None) -> bool:
        """Whether the plan for class masses is met; from given potentials (K,) where there are some that lead there."""
        n_blocks, n_classes = len(self._table.blocks), len(shares)
        last = (solver.epsilon, NEARER * solver.tol, 0.0, n_blocks, self.n_rows)
        if init is not None and (self.descended(init, shares, [(*last, WARM_PASSES)]) or self._error <= solver.tol):
            return True
        n_coarse = -(-max(FEWEST_ROWS, COARSE_ROWS * n_classes) // LANES)
        n_coarse, *on_the_way, _ = min(n_coarse, n_blocks), *ladder(self._table.spread, solver.epsilon, 0.0)
        sample = n_coarse, float(self._table.weights[:n_coarse].sum()), RUNG_PASSES
        rungs = [(epsilon, RUNG_TOLERANCE, STARVED, *sample) for epsilon in on_the_way]
        if n_coarse < n_blocks:
            rungs.append((solver.epsilon, LAST_TOLERANCE, STARVED, *sample))
        self.descended(np.zeros(n_classes), shares, [*rungs, (*last, LAST_PASSES)])
        return self._error <= solver.tol

    def sharpened(self, shares: np.ndarray) -> bool:
        """Whether potentials are met at a smaller epsilon, too."""
        rung = self.epsilon / EPSILON_STEP, LAST_TOLERANCE, STARVED, len(self._table.blocks), self.n_rows, RUNG_PASSES
        return self.descended(self.potentials, shares, [rung])

    def descended(self, start: np.ndarray, shares: np.ndarray, rungs: list[tuple[float, ...]]) -> bool:
        """Whether the last of the rungs is met, for class masses `shares`."""
        self.potentials = np.where(shares > 0, start, -np.inf)
        trail, errors = np.empty((MOST_PASSES, len(shares))), np.empty((MOST_PASSES, 2))
        work = *self._work, trail, errors
        n_passes, met = descend(
            self._table.blocks,
            self._table.weights,
            np.array(rungs),
            shares,
            self.potentials,
            self._mass,
            self._tried,
            *work,
        )
        for (rung, error), potentials in zip(errors[:n_passes].tolist(), trail[:n_passes], strict=True):
            epsilon, _, _, _, n_used, _ = rungs[int(rung)]
            self._passes.append((int(n_used), epsilon, error, potentials))
        self.epsilon, self._error = rungs[-1][0], float(np.abs(shares - self._mass).sum())  # may be NaN
        return bool(met)

    def point(self, shares: np.ndarray) -> Point:
        """Where the plan stands."""
        open_classes = shares > 0
        g = self.potentials - self.potentials[open_classes].mean()
        residual = shares - self._mass
        none = np.empty(0)
        found = Sweep(self._mass.copy(), math.nan, math.nan, none, none, none)
        return Point(g, g, g, math.nan, found, residual, self._error, np.empty(0, np.int64), np.float32)

    def tell(self, monitor: Monitor) -> None:
        """Record the passes, which nobody could hear of while compiled code made them."""
        monitor.record("inspect", self.n_rows)
        for n_used, epsilon, error, potentials in self._passes:
            monitor.record("solve", n_used, epsilon, error, potentials, listed=True)


@dataclass(frozen=True, eq=False)
class _Placed:
    """Labels of all rows, potentials that prove them, and what they come to."""

    labels: np.ndarray  # (N,)
    potentials: np.ndarray  # (K,)
    best: np.ndarray  # (N,) the largest score + potential of each row
    own: np.ndarray  # (N,) that at its label
    chosen: np.ndarray  # (N,) the score there
    n_looks: int

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(K,) class sizes."""
        return np.bincount(self.labels, minlength=len(self.potentials))

    def certificate(self, rule: Rule | None) -> Certificate:
        """Value, bound and gap among labels of the same sizes, or of all that a rule allows."""
        n_rows, of_classes = len(self.labels), 0.0
        value = float(self.chosen.sum()) / n_rows
        if rule is not None and rule.most is not None:
            of_classes = float(rule.shortfall(self.potentials, self.counts, n_rows).sum())
        if (self.best == self.own).all() and not of_classes:
            return Certificate(value, value, self.counts, 0.0, 0.0)
        short, known = shortfall(self.best, self.own, self.potentials[self.labels], self.potentials)
        gap = (float(short.sum()) + of_classes) / n_rows
        return Certificate(value, value + gap, self.counts, gap, float(np.minimum(short, known).sum()) / n_rows)

    def tell(self, monitor: Monitor, n_rows: int) -> None:
        """Record the looks at all rows."""
        for _ in range(self.n_looks):
            monitor.record("round", n_rows, listed=True)
            monitor.record("repair", 0)
        monitor.record("certify", n_rows, listed=True)


def _placed(
    table: Table,
    descent: _Descent,
    plan: Point,
    ahead: np.ndarray | None,
    solver: Solver,
    rule: Rule,
    sizes: np.ndarray,
    most: np.ndarray,
) -> _Placed | None:
    """Labels of these class sizes, or of any where the plan's best classes are asked for; None where that fails."""
    n_rows, n_classes = table.n_rows, len(sizes)
    free = np.flatnonzero(sizes < most)  # a unit beside the rows fills one place of each of them, or is in the hub
    n_units, n_nodes, n_entries = n_rows + len(free), n_classes + 1, n_rows * n_classes + 2 * len(free)
    lanes = np.empty(n_classes, np.float32), *np.empty((2, LANES), np.float32), *np.empty((2, LANES), np.int32)
    blocks, known = table.blocks, table.known
    stored = table.stored - table.tops[:, None] if table.is_far else table.stored  # takes digits

    def proven(labels: np.ndarray, g: np.ndarray, n_looks: int) -> _Placed:
        best, own, chosen = np.empty((3, n_rows))
        prove(blocks, known, stored, table.features, table.factor, g, labels, best, own, chosen, *lanes)
        if table.is_far:
            chosen += table.tops
        return _Placed(labels, g, best, own, chosen, n_looks)

    if solver.rounding != "exact":
        return proven(np.full(n_rows, -1), plan.potentials, 0)
    order = np.random.default_rng(solver.seed).permutation(n_units)
    labels, targets = np.full(n_units, -1), np.append(most, n_rows - sizes.sum())
    work = (
        *lanes, *np.empty((3, n_nodes)), np.empty(n_nodes, np.int64), targets, *np.empty((9, n_nodes), np.int64),
        *np.empty((6, n_units), np.int64), np.empty(n_entries, np.int32), np.empty(n_entries),
        np.empty((3, n_entries), np.int32), np.empty(n_entries),
    )  # fmt: skip
    enough, before = max(EXCESS_SHARE, np.count_nonzero(most) / n_rows) * n_rows, math.inf
    while True:
        near = descent.potentials if ahead is None else descent.potentials + ahead
        g = np.where(most > 0, 0.0 if n_rows < CONTESTED * len(free) else near, -np.inf)
        g -= np.partition(g[free], targets[-1] - 1)[targets[-1] - 1] if len(free) else middle(g[g > -np.inf])
        surplus, n_looks, _, is_tied = place(
            blocks, known, stored, table.features, table.factor,
            g, free, SLACK * descent.epsilon, enough, order, labels, *work,
        )  # fmt: skip
        if not surplus:
            if len(free):
                g[np.abs(g) <= TIE * (table.magnitude + np.abs(g[most > 0]).max())] = 0.0  # less is rounding
            else:
                g = normalised(g, np.zeros(n_classes), rule)
            return proven(labels[:n_rows], g, n_looks)
        labels[:] = -1
        if ahead is not None and not is_tied:  # of scores that have little to do with these
            ahead = None
            continue
        if is_tied or surplus <= enough:
            return None
        if surplus > WORTHWHILE * before:  # no smaller epsilon helps
            if surplus > MOST_MOVED * n_rows:
                return None
            enough = surplus
        elif not descent.sharpened(rule.mass if len(free) else sizes / n_rows):
            return None
        before = surplus
