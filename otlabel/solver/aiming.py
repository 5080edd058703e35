"""Where the potentials of all rows will be, and how far from there: what a sample of the rows says before a reading."""

from __future__ import annotations

import numpy as np

from otlabel.solver.monitor import Monitor
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rungs import LAST_TOLERANCE, RUNG_TOLERANCE, ladder, solve_at_epsilon, zero
from otlabel.solver.shortlist import Aim, drift, width_for

WARM_PASSES = 12  # within which a given start must lead to the end on the sample
NEARER = 1.5  # times how far off a sample is: within that of it, a given start is taken to be nearer


def aim(sample: Problem, half: Problem, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> Aim:
    """Potentials of a sample, or the given ones where these are as near, and a width for lists of all rows at them.

    Potentials of half the sample are about as far from those of the whole as these are from those of all rows.
    """
    epsilon = solver.epsilon
    g = _of_sample(sample, solver, init, monitor)
    of_half = solve_at_epsilon(half, solver, epsilon, LAST_TOLERANCE, g, monitor).potentials
    moves = drift(of_half, g)
    if init is not None:
        off = drift(g, init)
        if off <= NEARER * moves:
            g, moves = init, off
    return Aim(g, g + epsilon * sample.rule.log_mass, width_for(sample.n_classes, solver, moves))


def _of_sample(sample: Problem, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> np.ndarray:
    """Potentials of the sample: from a given start if that leads there, else by falling epsilon."""
    if init is not None:
        point = solve_at_epsilon(sample, solver, solver.epsilon, LAST_TOLERANCE, init, monitor, WARM_PASSES)
        if point.error <= LAST_TOLERANCE:
            return point.potentials
    *rungs, last = ladder(sample, solver.epsilon)
    g = zero(sample)
    for epsilon in rungs:
        g = solve_at_epsilon(sample, solver, epsilon, RUNG_TOLERANCE, g, monitor).potentials
    return solve_at_epsilon(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
