"""Exact labels from lists where these prove them, else from all scores."""

from __future__ import annotations

import functools
import math

import numpy as np

from otlabel.errors import InfeasibleError
from otlabel.solver.continuation import MOST_LISTS, is_listable, lists_near
from otlabel.solver.far_moves import FarLook
from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rounding import Rounded, round_exact
from otlabel.solver.sharpening import few_contested, near_integer
from otlabel.solver.shortlist import moves_of, shorten
from otlabel.solver.slack import Slack

NEAR_LABELS = 1.0  # times epsilon: about as far as potentials move between the plan and its labels
MOST_PACKED = 8  # narrow lists that are made, each from where the last led to
WIDER = 2.0  # times the reach, where lists leave no assignment, or rounding needs more slack


def exact_labels(problem: Problem, solver: Solver, solution: Solution, monitor: Monitor) -> tuple[Rounded, Problem]:
    """The best assignment, and the problem on rows that are enough to prove it: lists, or all scores."""
    shortlist = solution.shortlist
    plan = solution.point.plan_potentials
    few = few_contested(problem)
    if few:  # most classes that get a row have it at no price
        plan = np.where(problem.bounds[1] > 0, 0.0, -np.inf)
    if is_listable(problem, solver) and (shortlist is None or not shortlist.covers(plan)):
        shortlist = lists_near(problem, solver, plan, monitor)
        if shortlist is None:  # labels need much less than the plan
            shortlist = shorten(
                problem, plan, np.full(problem.n_classes, NEAR_LABELS * solver.epsilon), monitor, packed=True
            )
    near = problem if shortlist is None else shortlist.problem
    g = plan if few else near_integer(near, solver, solution, monitor).potentials
    if shortlist is not None and not shortlist.covers(g):
        g = plan  # lists that lack too much of some class ask any price for it
    slack, n_made, look = 0.0, 0, FarLook(problem)

    def room(g: np.ndarray, last: Slack) -> float:
        """The most slack that is worth it."""
        if look.is_due(last):
            return 0.0
        return math.inf if shortlist is None else shortlist.room(g)

    while shortlist is not None:
        reach = WIDER * shortlist.reach
        try:
            rounded = round_exact(shortlist.problem, g, solver.seed, monitor, room, slack)
        except InfeasibleError:  # of what lists leave out, some may be the way
            pass
        else:
            g, slack = rounded.potentials, 0.0 if rounded.is_done else rounded.slack
            if rounded.is_done and shortlist.covers(g):
                return rounded, shortlist.problem
            far = None if rounded.is_done else look.potentials(rounded, monitor)
            if far is not None:
                g, slack, reach = far, 0.0, np.full_like(reach, NEAR_LABELS * solver.epsilon)
            else:
                if rounded.is_done or (slack <= shortlist.usual_slack and not shortlist.problem.is_listed):
                    reach = shortlist.reach  # near where potentials are by now
                reach = np.maximum(reach, moves_of(g, shortlist.origin))
        n_made += 1
        again = functools.partial(shorten, problem, g, reach, monitor, shortlist.probe)
        if n_made >= (MOST_LISTS if shortlist.problem.is_listed else MOST_PACKED):
            break
        shortlist = again() or again(packed=True)
    shortlist = None  # all scores from here on, which have room for any slack
    rounded = round_exact(problem, g, solver.seed, monitor, room, slack if math.isfinite(slack) else 0.0)
    far = None if rounded.is_done else look.potentials(rounded, monitor)
    return (rounded if far is None else round_exact(problem, far, solver.seed, monitor)), problem
