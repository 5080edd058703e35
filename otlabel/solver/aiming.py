"""Where the potentials of all rows will be, and how far from there: what a sample of the rows says before a reading."""

from __future__ import annotations

import numpy as np

from otlabel.solver.monitor import Monitor
from otlabel.solver.objective import Objective
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rungs import LAST_TOLERANCE, RUNG_TOLERANCE, finest, ladder, solve_at_epsilon, zero
from otlabel.solver.samples import restricted
from otlabel.solver.shortlist import NEAR, Aim, moves_of, reach_for

NEARLY, FAR_OFF = 0.2, 1.0  # class error on the sample up to which given potentials are right, or of use
CHANCE = 1.5  # times as far from the sample's as those of half of it are


def aim(sample: Problem, stretch: int, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> Aim:
    """Given potentials if these are of use, else those of a sample by falling epsilon, and a reach for lists at them.

    Its rows lie in stretches of so many. Potentials of every second of these are about as far from those of the whole
    sample as those are from those of all rows. Given ones may be much nearer than that: what a sample lacks of some
    class by chance moves its potential far where no other rows are near. So lists are made at those if the sample's are
    hardly farther from them than may be chance.
    """
    if init is not None:
        error = _error(sample, solver, init, monitor)
        if error <= NEARLY:
            return _aim(init, sample, solver, np.full(sample.n_classes, NEAR * solver.epsilon))
        if error > FAR_OFF:
            init = None
    *rungs, last = ladder(sample.spread, solver.epsilon, finest(sample))
    g = zero(sample) if init is None else init
    for epsilon in rungs if init is None else ():
        g = solve_at_epsilon(sample, solver, epsilon, RUNG_TOLERANCE, g, monitor).potentials
    g = solve_at_epsilon(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
    half = restricted(sample, sample.sampled[sample.sampled // stretch % 2 == 0])
    of_half = solve_at_epsilon(half, solver, last, LAST_TOLERANCE, g, monitor).potentials
    moves = moves_of(of_half, g)
    if init is not None:
        from_init = moves_of(init, g)
        if np.median(from_init) <= CHANCE * np.median(moves):
            return _aim(init, sample, solver, from_init)
    return _aim(g, sample, solver, moves)


def _aim(g: np.ndarray, sample: Problem, solver: Solver, moves: np.ndarray) -> Aim:
    return Aim(g, g + solver.epsilon * sample.rule.log_mass, reach_for(solver, moves))


def _error(sample: Problem, solver: Solver, g: np.ndarray, monitor: Monitor) -> float:
    return Objective(sample, solver, solver.epsilon, solver.tol, g, monitor, newton=False).at(g).error
