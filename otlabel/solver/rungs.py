"""One epsilon after the other on the way down: which ones, and how far each is taken."""

from __future__ import annotations

import numpy as np

from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import minimise
from otlabel.solver.objective import Objective, Point
from otlabel.solver.problem import Problem, Solver

EPSILON_STEP = 4.0  # how fast epsilon falls; each rung then needs one or two Newton steps
RUNG_TOLERANCE = 0.1  # class error at which a rung on the way is good enough
LAST_TOLERANCE = 0.025  # the same at the epsilon that was asked for, before more rows take over
STARVED = 0.1  # share of its mass under which a class counts as lost on the way: its own error would hide among many
RUNG_PASSES = 40  # passes a rung on the way may take
SERVING_SHARE = 2  # each rung on the way takes at most one in so many of what is left


def solve_at_epsilon(
    problem: Problem, solver: Solver, epsilon: float, tol: float, g: np.ndarray, monitor: Monitor
) -> Point:
    """One rung of the ladder: to where class masses are within tol, and no class is starved."""
    objective = Objective(problem, solver, epsilon, tol, g, monitor, least=STARVED)
    left = max(1, min(RUNG_PASSES, (solver.max_sweeps - monitor.n_sweeps) // SERVING_SHARE))
    return minimise(objective, g, left).point


def ladder(spread: float, epsilon: float, finest: float) -> list[float]:
    """Falling values of epsilon, from where the plan is nearly uniform to the one asked for; none is too fine."""
    rungs = [epsilon]
    while rungs[-1] * EPSILON_STEP < spread / EPSILON_STEP:
        rungs.append(rungs[-1] * EPSILON_STEP)
    return [rung for rung in rungs[:0:-1] if rung > finest] + [epsilon]


def finest(problem: Problem) -> float:
    """What scores and potentials are known to."""
    return float(np.finfo(np.float64).eps) * problem.magnitude


def zero(problem: Problem) -> np.ndarray:
    """The potentials that a solve begins with where none are given."""
    least = 0.0 if np.isinf(problem.row_rho) else -problem.top  # or the best row would take exp(top / epsilon)
    return np.where(problem.rule.wanted, least, -np.inf)
