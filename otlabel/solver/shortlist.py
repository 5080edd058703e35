"""Of each row only the classes near its best: read once, then solved, rounded and proven without another reading.

The best class of a row under the final potentials g is nearly always one of a few: of those within a width w of the
best under potentials g0 that a sample of the rows gives. If

    max_k (g - g0)_k - min_k (g - g0)_k <= w

no class that was left out is any row's best under g: its score + g stays below top0 - w + max(g - g0), which is no
more than top0 + min(g - g0), a lower bound of the row's best. So what the lists say of labels and of the bound is what
all scores would say. Left-out classes carry at most K exp(-(w - osc(g - g0)) / epsilon) of a row's entropic mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from otlabel import sweep
from otlabel.solver.monitor import Monitor
from otlabel.solver.problem import Problem, Solver
from otlabel.sources import ITEM_BYTES, Opened, draw_rows
from otlabel.sources.free import free_memory

FEWEST_SCORES, FEWEST_CLASSES = 1 << 22, 32  # fewer are read again as quickly
PROBE_ROWS = 1024  # rows that tell how long lists will be
MOST_LISTED = 0.25  # share of the classes that lists may hold: where plans are flat, all scores are as good
MEMORY_SHARE = 0.25  # of what is free that they may take
MARGIN, MARGIN_OF_PLAN = 1.6, 1.2  # times the estimate of how far potentials will move: for labels, and where ...
LEFT_OUT = 0.25  # ... the plan's error by what lists leave out is to stay below this share of the tolerance
QUANTUM_BITS = 50  # of all mass: what float64 adds up without rounding, with room
ROUNDING = 4.0  # roundings of the numbers added, by which a class may have been judged wrongly


@dataclass(frozen=True, eq=False)
class Shortlist:
    """A problem on lists, and which potentials these speak for."""

    problem: Problem
    origin: np.ndarray  # (K,) g0
    reach: float  # the width, less what rounding may have taken

    def moved(self, potentials: np.ndarray) -> float:
        """osc(g - g0): how far potentials are from those that the lists were made at."""
        open_classes = np.isfinite(potentials)
        if not np.isfinite(self.origin[open_classes]).all():
            return math.inf
        return float(np.ptp(potentials[open_classes] - self.origin[open_classes]))

    def covers(self, potentials: np.ndarray) -> bool:
        """Whether no class that was left out can be the best of any row."""
        return self.moved(potentials) <= self.reach

    def left_out(self, potentials: np.ndarray, epsilon: float) -> float:
        """The most that the classes left out can have of a row's plan; twice that is its error."""
        room = (self.reach - self.moved(potentials)) / epsilon
        return self.problem.n_classes * math.exp(-room) if room > 0 else math.inf


def may_be_listed(problem: Problem, solver: Solver) -> bool:
    """Whether lists could spare readings: exact labels of rows on the CPU, and many scores."""
    rows = problem.rows
    wanted = solver.rounding == "exact" and solver.method == "auto" and math.isinf(problem.row_rho)
    if not wanted:
        return False
    shut = problem.rule.wanted & (problem.bounds[1] == 0)  # of the plan, but of no label: lists might hold no others
    large = problem.n_classes >= FEWEST_CLASSES and problem.n_rows * problem.n_classes >= FEWEST_SCORES
    return large and not shut.any() and rows.source.device is None


def width_for(problem: Problem, solver: Solver, moves: float) -> float:
    """A width for potentials that may move so far, at which lists also hold the plan."""
    of_plan = solver.epsilon * math.log(2 * problem.n_classes / (LEFT_OUT * solver.tol))
    return max(MARGIN * moves, MARGIN_OF_PLAN * moves + of_plan)


def shorten(problem: Problem, potentials: np.ndarray, width: float, monitor: Monitor) -> Shortlist | None:
    """Lists of all rows in one reading, or None where those of a sample are long."""
    rows, finite = problem.rows.fine, np.isfinite(potentials)  # what decides, so that lists need no other form
    size = problem.magnitude + problem.extent + float(np.abs(potentials[finite]).max(initial=0.0))
    rounding = ROUNDING * float(np.finfo(np.float32).eps) * size
    precision: type = np.float64 if rows.source.dtype == "float64" or rounding > width / 16 else np.float32
    origin: np.ndarray = potentials.astype(precision)
    probe = rows.taken(problem.sampled[draw_rows(len(problem.sampled), PROBE_ROWS, np.random.default_rng(0))])
    of_probe = sweep.listed(probe, origin, width, 1.0).n_listed
    n_listed, n_probed = rows.sum("lists", np.array([of_probe, probe.shape[0]]))[0]
    entry_bytes = 4 + ITEM_BYTES[rows.source.dtype]
    n_entries = n_listed / n_probed * rows.shape[0]
    (too_large,) = rows.max("lists", float(n_entries * entry_bytes > MEMORY_SHARE * free_memory()))
    if n_listed > MOST_LISTED * n_probed * problem.n_classes or too_large:
        return None
    quantum = 2.0 ** (math.ceil(math.log2(problem.n_units)) - QUANTUM_BITS)
    lists = sweep.listed(rows, origin, width, quantum)
    monitor.record("list", problem.n_rows)
    rounding = ROUNDING * float(np.finfo(precision).eps) * size
    listed = rows.over(Opened.of(lists))
    listed.columns = max(1, lists.n_listed // max(1, lists.shape[0]))
    return Shortlist(replace(problem, rows=listed), origin.astype(np.float64), width - rounding)
