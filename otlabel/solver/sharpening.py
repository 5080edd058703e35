"""Between the plan and the labels: potentials whose best classes come near the sizes, so that little is to be moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from otlabel import sweep
from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution
from otlabel.solver.objective import Point
from otlabel.solver.outcome import Status
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rungs import EPSILON_STEP, LAST_TOLERANCE, solve_at_epsilon
from otlabel.solver.shortlist import FEW_LISTED
from otlabel.sweep.packed import PackedLists

EXCESS_SHARE = 0.02  # share of samples to move from which on a smaller epsilon is tried before moving them one by one
CHEAP_SHARE = 0.003  # the same where a pass takes little beside the repair ...
SHORT = 16  # ... on lists of at most one in so many classes, or on a device
SMALLEST_EPSILON = 1e-5  # of a row's spread: the end of that
SHARP_EPSILON = 1 / 256  # of a row's spread: from here on each step should bring the sizes nearer
WORTHWHILE = 0.7  # share of the excess that may be left after such a step, or it was the last
CONTESTED = 0.6  # units for each class of one at most: where there are fewer, plans of equal masses say little
SHARPENING_PASSES = 24  # that all of these steps may take: what is left over is for the repair


def few_contested(problem: Problem) -> bool:
    """Whether units are so few that most classes get none, and others one."""
    lo, hi = problem.bounds
    return problem.rule.most is not None and problem.n_units < CONTESTED * int(np.count_nonzero(lo < hi))


def near_integer(problem: Problem, solver: Solver, solution: Solution, monitor: Monitor) -> Point:
    """Potentials whose argmax comes near the class sizes: at a large epsilon that takes a smaller one first."""
    point = solution.point
    if solution.status is Status.STALLED:
        return point  # what did not get on at this epsilon would not at a smaller one
    takers = problem.bounds[1] > 0
    rule = problem.rule if problem.rule.most is not None else problem.rule.with_units(problem.n_units)
    integer = replace(problem, rule=rule)
    excess = _excess(point, integer)
    # Above the spread scores hardly matter: potentials are epsilon times the logarithms of what classes ask for.
    epsilon = min(solver.epsilon, problem.spread or solver.epsilon)
    g = point.potentials * (epsilon / solver.epsilon)
    # More is of ties, which another epsilon would only break up.
    cheap = excess <= EXCESS_SHARE and _passes_take_little(problem)
    enough = max(CHEAP_SHARE if cheap else EXCESS_SHARE, np.count_nonzero(takers) / problem.n_rows)
    tol = enough if cheap else LAST_TOLERANCE
    best, least = point, excess
    solver = replace(solver, max_sweeps=monitor.n_sweeps + SHARPENING_PASSES)
    while excess > enough and epsilon > SMALLEST_EPSILON * problem.spread > 0 and monitor.n_sweeps < solver.max_sweeps:
        epsilon /= EPSILON_STEP
        g = np.where(takers, g, -np.inf)
        point = solve_at_epsilon(integer, solver, epsilon, tol, g, monitor)
        g = point.potentials
        before, excess = excess, _excess(point, integer)
        if excess < least:
            best, least = point, excess
        if excess > WORTHWHILE * before and epsilon < SHARP_EPSILON * problem.spread:
            break  # equal rows move together: their classes stay uneven at any epsilon
    return best


def _passes_take_little(problem: Problem) -> bool:
    source = problem.rows.source
    if isinstance(source, PackedLists):
        return problem.n_classes >= SHORT * FEW_LISTED
    if problem.is_listed:
        return SHORT * problem.rows.columns <= problem.n_classes
    return source.device is not None and source.grain == 1 and problem.rows.labels_per_row == 1


def _excess(point: Point, problem: Problem) -> float:
    """Share of the units that would have to leave their argmax label, or come to one."""
    counts = point.sweep.counts
    if not len(counts):  # a device has not looked for them
        counts = sweep.sweep(problem.rows, point.plan_potentials, 1.0, problem.weights, point.precision).counts
    shares = counts / problem.n_units
    missing = problem.rule.demand(point.potentials, shares) - shares
    return float(max(np.maximum(missing, 0).sum(), np.maximum(-missing, 0).sum()))
