"""The smooth solve, from coarse to fine.

Epsilon falls in steps on a small sample of the rows, then larger samples and at last all rows polish the result, so
that few passes read everything. Every step is accepted by the value of F.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution, minimise
from otlabel.solver.objective import Objective, Point
from otlabel.solver.outcome import Status
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.samples import half_of, samples_of
from otlabel.solver.shortlist import Shortlist, may_be_listed, shorten, width_for

EPSILON_STEP = 4.0  # how fast epsilon falls; each rung then needs one or two Newton steps
RUNG_TOLERANCE = 0.1  # class error at which a rung on the way is good enough
LAST_TOLERANCE = 0.025  # the same at the epsilon that was asked for, before more rows take over
STARVED = 0.1  # share of its mass under which a class counts as lost on the way: its own error would hide among many
WARM_PASSES = 12  # within which a given start must lead to the end; a fresh one takes about as many
FRESH_PASSES = 30  # the same for the start that samples of the rows lead to
RUNG_PASSES = 40  # passes a rung on the way may take
SERVING_PASSES = 100  # that a fresh start may take there in all: what is left over is for the repair ...
UNEVEN_PASSES = 24  # ... and where some rows are so much wider than most that plans of a small epsilon are staircases
UNEVEN = 100.0  # times the spread of most rows
SERVING_SHARE = 2  # each rung on the way takes at most one in so many of what is left


def solve(problem: Problem, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> Solution:
    """Potentials whose class masses are within solver.tol (L1) of what is asked, or the nearest that was reached."""
    wanted = problem.rule.wanted
    least = 0.0 if math.isinf(problem.row_rho) else -problem.top  # or the best row would take exp(top / epsilon)
    g = np.where(wanted, least if init is None else init, -np.inf)
    if solver.method == "sinkhorn":
        return _finish(problem, solver, g, solver.max_sweeps, monitor)
    if init is not None:
        solution = _finish(problem, solver, g, WARM_PASSES, monitor)
        if solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps:
            return solution  # else the start given was too far off to be of use
    most = solver.max_sweeps
    if solver.rounding == "exact" and math.isinf(problem.row_rho):
        serving = UNEVEN_PASSES if problem.extent > UNEVEN * problem.spread else SERVING_PASSES
        solver = replace(solver, max_sweeps=min(most, monitor.n_sweeps + serving))
    solution = _descend(problem, solver, np.where(wanted, least, -np.inf), monitor)
    if solution.status is Status.MAX_SWEEPS and monitor.n_sweeps < most:
        return replace(solution, status=Status.STALLED)
    return solution


def _descend(problem: Problem, solver: Solver, g: np.ndarray, monitor: Monitor) -> Solution:
    """Through falling epsilon on a sample of the rows, then through larger samples to all rows."""
    samples = list(samples_of(problem, np.random.default_rng(solver.seed)))
    finest = float(np.finfo(np.float64).eps) * problem.magnitude  # what scores and potentials are known to
    *ladder, last = falling(problem.spread, solver.epsilon, finest)
    for epsilon in ladder:
        g = solve_at_epsilon(samples[0] if samples else problem, solver, epsilon, RUNG_TOLERANCE, g, monitor).potentials
    if samples and may_be_listed(problem, solver):
        g = solve_at_epsilon(samples[0], solver, last, LAST_TOLERANCE, g, monitor).potentials
        shortlist = _shortlist(problem, samples[0], solver, g, monitor)
        if shortlist is not None:
            return _on_lists(problem, shortlist, solver, g, monitor)
    for sample in samples:
        g = solve_at_epsilon(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
    solution = _finish(problem, solver, g, FRESH_PASSES, monitor)
    done = solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps
    if done or solver.epsilon < finest:
        return solution
    # At a tiny epsilon F is a staircase, and a class of few samples is more than a sample of the rows can place:
    # falling epsilon on all rows, each rung to the end, finds the way.
    for epsilon in ladder:
        g = solve_at_epsilon(problem, solver, epsilon, solver.tol, g, monitor).potentials
    return _finish(problem, solver, g, solver.max_sweeps, monitor)


def _shortlist(problem: Problem, sample: Problem, solver: Solver, g: np.ndarray, monitor: Monitor) -> Shortlist | None:
    """Lists at potentials of a sample; half of it tells how far these may still be from those of all rows.

    Potentials of a half are about as far from those of the whole as these are from those of all.
    """
    of_half = solve_at_epsilon(half_of(sample), solver, solver.epsilon, LAST_TOLERANCE, g, monitor).potentials
    open_classes = np.isfinite(g)
    moves = float(np.ptp(of_half[open_classes] - g[open_classes]))
    shifted = g + solver.epsilon * problem.rule.log_mass
    return shorten(problem, shifted, width_for(problem, solver, moves), monitor)


def _on_lists(problem: Problem, shortlist: Shortlist, solver: Solver, g: np.ndarray, monitor: Monitor) -> Solution:
    """The last rung on lists; on all scores where these hold too little of the plan."""
    solution = _finish(shortlist.problem, solver, g, FRESH_PASSES, monitor)
    point = solution.point
    error = point.error + 2 * shortlist.left_out(point.plan_potentials, solver.epsilon)
    if solution.status is Status.CONVERGED and error > solver.tol and monitor.n_sweeps < solver.max_sweeps:
        return replace(_finish(problem, solver, point.potentials, FRESH_PASSES, monitor), shortlist=shortlist)
    return replace(solution, point=replace(point, error=error), shortlist=shortlist)


def _finish(problem: Problem, solver: Solver, g: np.ndarray, max_passes: int, monitor: Monitor) -> Solution:
    """The last rung, on all rows, within what is left of the passes."""
    newton = solver.method == "auto"
    objective = Objective(problem, solver, solver.epsilon, solver.tol, g, monitor, newton=newton)
    left = max(1, min(max_passes, solver.max_sweeps - monitor.n_sweeps))
    return minimise(objective, g, left)


def sharpen(problem: Problem, solver: Solver, epsilon: float, g: np.ndarray, monitor: Monitor) -> Point:
    """One rung at a smaller epsilon on all rows, to where class masses are about right: a start for rounding."""
    return solve_at_epsilon(problem, solver, epsilon, LAST_TOLERANCE, g, monitor)


def solve_at_epsilon(
    problem: Problem, solver: Solver, epsilon: float, tol: float, g: np.ndarray, monitor: Monitor
) -> Point:
    """One rung of the ladder: to where class masses are within tol, and no class is starved."""
    objective = Objective(problem, solver, epsilon, tol, g, monitor, least=STARVED)
    left = max(1, min(RUNG_PASSES, (solver.max_sweeps - monitor.n_sweeps) // SERVING_SHARE))
    return minimise(objective, g, left).point


def falling(spread: float, epsilon: float, finest: float) -> list[float]:
    """Falling values of epsilon, from where the plan is nearly uniform to the one asked for; none is too fine."""
    rungs = [epsilon]
    while rungs[-1] * EPSILON_STEP < spread / EPSILON_STEP:
        rungs.append(rungs[-1] * EPSILON_STEP)
    return [rung for rung in rungs[:0:-1] if rung > finest] + [epsilon]
