"""The smooth solve, from coarse to fine.

Epsilon falls in steps on a small sample of the rows. What that says goes on on lists of each row's best classes where
these are short; else larger samples and at last all rows polish it, so that few passes read everything. Every step is
accepted by the value of F.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from otlabel.solver.aiming import WARM_PASSES, aim
from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution, minimise
from otlabel.solver.objective import Objective
from otlabel.solver.outcome import Status
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rungs import LAST_TOLERANCE, RUNG_TOLERANCE, finest, ladder, solve_at_epsilon, zero
from otlabel.solver.samples import half_of, samples_of
from otlabel.solver.shortlist import Shortlist, may_be_listed, probe_of, shorten, width_for

FRESH_PASSES = 30  # within which a start that samples of the rows lead to must lead to the end
SERVING_PASSES = 100  # that a fresh start may take there in all: what is left over is for the repair ...
UNEVEN_PASSES = 24  # ... and where some rows are so much wider than most that plans of a small epsilon are staircases
UNEVEN = 100.0  # times the spread of most rows


def solve(
    problem: Problem,
    solver: Solver,
    init: np.ndarray | None,
    monitor: Monitor,
    shortlist: Shortlist | None = None,
    begun: np.ndarray | None = None,
) -> Solution:
    """Potentials whose class masses are within solver.tol (L1) of what is asked, or the nearest that was reached.

    From lists if there are any, which hold what they were made at; `begun` is what a sample of the rows led to.
    """
    wanted = problem.rule.wanted
    start = zero(problem) if init is None else np.where(wanted, init, -np.inf)
    if solver.method == "sinkhorn":
        return _finish(problem, solver, start, solver.max_sweeps, monitor)
    if shortlist is None and begun is None:
        shortlist, begun = _shortlist(problem, solver, init, monitor)
    if shortlist is None and init is not None:
        solution = _polish(problem, solver, start, WARM_PASSES, monitor)
        if solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps:
            return solution  # else the start given was too far off to be of use
    most = solver.max_sweeps
    if solver.rounding == "exact" and math.isinf(problem.row_rho):
        serving = UNEVEN_PASSES if problem.extent > UNEVEN * problem.spread else SERVING_PASSES
        solver = replace(solver, max_sweeps=min(most, monitor.n_sweeps + serving))
    if shortlist is not None and begun is not None:
        solution = _on_lists(problem, shortlist, solver, begun, monitor)
    else:
        solution = _descend(problem, solver, begun, monitor)
    if solution.status is Status.MAX_SWEEPS and monitor.n_sweeps < most:
        return replace(solution, status=Status.STALLED)
    return solution


def _shortlist(
    problem: Problem, solver: Solver, init: np.ndarray | None, monitor: Monitor
) -> tuple[Shortlist | None, np.ndarray | None]:
    """Lists of all rows, if they are to be had, and the potentials to go on from, if a sample was looked at."""
    sample = next(samples_of(problem, np.random.default_rng(solver.seed)), None)
    if sample is None or not _is_listable(problem, solver):
        return None, None
    aimed = aim(sample, half_of(sample), solver, init, monitor)
    return shorten(problem, aimed.origin, aimed.width, monitor, probe_of(sample.rows, sample.sampled)), aimed.start


def _descend(problem: Problem, solver: Solver, begun: np.ndarray | None, monitor: Monitor) -> Solution:
    """Through falling epsilon on a sample of the rows, then through larger samples to all rows."""
    samples = list(samples_of(problem, np.random.default_rng(solver.seed)))
    *rungs, last = ladder(problem, solver.epsilon)
    g = zero(problem) if begun is None else begun
    for epsilon in rungs if begun is None else ():
        g = solve_at_epsilon(samples[0] if samples else problem, solver, epsilon, RUNG_TOLERANCE, g, monitor).potentials
    for sample in samples:
        g = solve_at_epsilon(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
    solution = _polish(problem, solver, g, FRESH_PASSES, monitor)
    done = solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps
    if done or solver.epsilon < finest(problem):
        return solution
    # At a tiny epsilon F is a staircase, and a class of few samples is more than a sample of the rows can place:
    # falling epsilon on all rows, each rung to the end, finds the way.
    for epsilon in rungs:
        g = solve_at_epsilon(problem, solver, epsilon, solver.tol, g, monitor).potentials
    return _finish(problem, solver, g, solver.max_sweeps, monitor)


def _polish(problem: Problem, solver: Solver, g: np.ndarray, most: int, monitor: Monitor) -> Solution:
    """The last rung on all rows: to where potentials are about right, and from there on lists if these are short."""
    if _is_listable(problem, solver):
        point = solve_at_epsilon(problem, solver, solver.epsilon, LAST_TOLERANCE, g, monitor, most)
        g = point.potentials
        if point.error <= LAST_TOLERANCE:
            shortlist = shorten(problem, point.plan_potentials, width_for(problem.n_classes, solver, 0.0), monitor)
            if shortlist is not None:
                return _on_lists(problem, shortlist, solver, g, monitor)
    return _finish(problem, solver, g, most, monitor)


def _is_listable(problem: Problem, solver: Solver) -> bool:
    return may_be_listed(problem.rows, problem.rule, problem.bounds[1], solver, problem.row_rho)


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
