"""Exact labels from lists where these prove them, else from all scores."""

from __future__ import annotations

from otlabel.errors import InfeasibleError
from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rounding import Rounded, round_exact
from otlabel.solver.sharpening import near_integer
from otlabel.solver.shortlist import MARGIN, shorten

MOST_LISTS = 2  # that are made before all scores are read in each pass
WIDER = 4.0  # times as wide, where lists leave no assignment


def exact_labels(problem: Problem, solver: Solver, solution: Solution, monitor: Monitor) -> tuple[Rounded, Problem]:
    """The best assignment, and the problem on rows that are enough to prove it: lists, or all scores."""
    shortlist = solution.shortlist
    near = problem if shortlist is None else shortlist.problem
    g = near_integer(near, solver, solution, monitor).potentials
    for n_made in range(1, MOST_LISTS + 1):
        if shortlist is None:
            break
        try:
            rounded = round_exact(shortlist.problem, g, solver.seed, monitor)
        except InfeasibleError:  # of what lists leave out, some may be the way
            width = WIDER * shortlist.reach
        else:
            if shortlist.covers(rounded.potentials):
                return rounded, shortlist.problem
            g = rounded.potentials
            width = max(shortlist.reach, MARGIN * shortlist.drift(g))
        shortlist = shorten(problem, g, width, monitor, shortlist.probe) if n_made < MOST_LISTS else None
    return round_exact(problem, g, solver.seed, monitor), problem
