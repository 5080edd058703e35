"""Where the potentials of all rows will be, and how far from there: what a sample of the rows says before a reading."""

from __future__ import annotations

import numpy as np

from otlabel.solver.monitor import Monitor
from otlabel.solver.objective import Objective
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rungs import LAST_TOLERANCE, RUNG_TOLERANCE, finest, ladder, solve_at_epsilon, zero
from otlabel.solver.samples import restricted
from otlabel.solver.shortlist import NEAR, Aim, drift, width_for

FAR_OFF = 0.5  # class error on the sample from which on given potentials are of no use


def aim(sample: Problem, stretch: int, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> Aim:
    """Given potentials if these are of use, else those of a sample by falling epsilon, and a width for lists at them.

    Its rows lie in stretches of so many. Potentials of every second of these are about as far from those of the whole
    sample as those are from those of all rows. Given ones may be much nearer than that: what a sample lacks of some
    class by chance moves its potential far where no other rows are near.
    """
    if init is not None and _error(sample, solver, init, monitor) <= FAR_OFF:
        return _aim(init, sample, solver, NEAR * solver.epsilon)
    *rungs, last = ladder(sample.spread, solver.epsilon, finest(sample))
    g = zero(sample)
    for epsilon in rungs:
        g = solve_at_epsilon(sample, solver, epsilon, RUNG_TOLERANCE, g, monitor).potentials
    g = solve_at_epsilon(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
    half = restricted(sample, sample.sampled[sample.sampled // stretch % 2 == 0])
    of_half = solve_at_epsilon(half, solver, last, LAST_TOLERANCE, g, monitor).potentials
    return _aim(g, sample, solver, drift(of_half, g))


def _aim(g: np.ndarray, sample: Problem, solver: Solver, moves: float) -> Aim:
    return Aim(g, g + solver.epsilon * sample.rule.log_mass, width_for(sample.n_classes, solver, moves))


def _error(sample: Problem, solver: Solver, g: np.ndarray, monitor: Monitor) -> float:
    return Objective(sample, solver, solver.epsilon, solver.tol, g, monitor, newton=False).at(g).error
