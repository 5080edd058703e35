"""Exact labels from lists where these prove them, else from all scores."""

from __future__ import annotations

from otlabel.errors import InfeasibleError
from otlabel.monitor import Monitor
from otlabel.problem import Problem, Solver
from otlabel.solver.newton import Solution
from otlabel.solver.rounding import Rounded, round_exact
from otlabel.solver.sharpening import near_integer
from otlabel.solver.shortlist import MARGIN, shorten

MOST_LISTS = 2  # that are made before all scores are read in each pass


def exact_labels(problem: Problem, solver: Solver, solution: Solution, monitor: Monitor) -> tuple[Rounded, Problem]:
    """The best assignment, and the problem on rows that are enough to prove it: lists, or all scores."""
    shortlist = solution.shortlist
    near = problem if shortlist is None else shortlist.problem
    g = near_integer(near, solver, solution, monitor).potentials
    for _ in range(MOST_LISTS):
        if shortlist is None:
            break
        try:
            rounded = round_exact(shortlist.problem, g, solver.seed, monitor)
        except InfeasibleError:  # of what lists leave out, some may be the way
            break
        if shortlist.covers(rounded.potentials):
            return rounded, shortlist.problem
        g = rounded.potentials
        shortlist = shorten(problem, g, max(shortlist.reach, MARGIN * shortlist.moved(g)), monitor)
    return round_exact(problem, g, solver.seed, monitor), problem
