"""The smooth solve, from coarse to fine.

Epsilon falls in steps on a small sample of the rows. What that says goes on on lists of each row's best classes where
these are short; else larger samples and at last all rows polish it, so that few passes read everything. Every step is
accepted by the value of F.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from otlabel.solver.aiming import aim
from otlabel.solver.monitor import Monitor
from otlabel.solver.newton import Solution, minimise
from otlabel.solver.objective import Objective
from otlabel.solver.outcome import Status
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.rungs import LAST_TOLERANCE, RUNG_TOLERANCE, finest, ladder, solve_at_epsilon, zero
from otlabel.solver.samples import samples_of
from otlabel.solver.shortlist import NEAR, Shortlist, may_be_listed, moves_of, probe_of, reach_for, shorten

WARM_PASSES = 12  # within which a given start must lead to the end; a fresh one takes about as many
MOST_LISTS = 4  # that are made before all scores are read in each pass
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
    start = zero(problem) if init is None else init
    if solver.method == "sinkhorn":
        return _finish(problem, solver, start, solver.max_sweeps, monitor)
    if shortlist is None and begun is None and is_listable(problem, solver):
        shortlist, begun = _shortlist(problem, solver, init, monitor)
    if init is not None and (begun is None or begun is init):
        if shortlist is None:
            solution = _finish(problem, solver, start, WARM_PASSES, monitor)
        else:
            solution = _on_lists(problem, shortlist, solver, start, WARM_PASSES, monitor)
        if solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps:
            return solution  # else the start given was too far off to be of use
        shortlist = begun = None
    most = solver.max_sweeps
    if solver.rounding == "exact" and math.isinf(problem.row_rho):
        serving = UNEVEN_PASSES if problem.extent > UNEVEN * problem.spread else SERVING_PASSES
        solver = replace(solver, max_sweeps=min(most, monitor.n_sweeps + serving))
    if shortlist is not None and begun is not None:
        solution = _on_lists(problem, shortlist, solver, begun, FRESH_PASSES, monitor)
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
    if sample is None:
        return None, None
    aimed = aim(sample, 1, solver, init, monitor)
    return shorten(problem, aimed.origin, aimed.reach, monitor, probe_of(sample.rows, sample.sampled)), aimed.start


def _descend(problem: Problem, solver: Solver, begun: np.ndarray | None, monitor: Monitor) -> Solution:
    """Through falling epsilon on a sample of the rows, then through larger samples to all rows."""
    samples = list(samples_of(problem, np.random.default_rng(solver.seed)))
    *rungs, last = ladder(problem.spread, solver.epsilon, finest(problem))
    g = zero(problem) if begun is None else begun
    for epsilon in rungs if begun is None else ():
        g = solve_at_epsilon(samples[0] if samples else problem, solver, epsilon, RUNG_TOLERANCE, g, monitor).potentials
    for sample in samples:
        g = solve_at_epsilon(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
    solution = _finish(problem, solver, g, FRESH_PASSES, monitor)
    done = solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps
    if done or solver.epsilon < finest(problem):
        return solution
    # At a tiny epsilon F is a staircase, and a class of few samples is more than a sample of the rows can place:
    # falling epsilon on all rows, each rung to the end, finds the way.
    for epsilon in rungs:
        g = solve_at_epsilon(problem, solver, epsilon, solver.tol, g, monitor).potentials
    return _finish(problem, solver, g, solver.max_sweeps, monitor)


def lists_near(problem: Problem, solver: Solver, potentials: np.ndarray, monitor: Monitor) -> Shortlist | None:
    """Lists at potentials that are about right, or None where these would be long."""
    return shorten(problem, potentials, reach_for(solver, np.full(problem.n_classes, NEAR * solver.epsilon)), monitor)


def is_listable(problem: Problem, solver: Solver) -> bool:
    """Whether lists of a problem's rows could spare readings."""
    if solver.rounding != "exact":
        return False  # whole sizes may not even exist
    return may_be_listed(problem.rows, problem.rule, problem.bounds[1], solver, problem.row_rho)


def _on_lists(
    problem: Problem, shortlist: Shortlist, solver: Solver, g: np.ndarray, most: int, monitor: Monitor
) -> Solution:
    """The last rung on lists; on others, or on all scores, where these hold too little of the plan."""
    for n_made in range(1, MOST_LISTS + 1):
        solution = _finish(shortlist.problem, solver, g, most, monitor)
        point = solution.point
        left_out = 2 * shortlist.left_out(point.plan_potentials, solver.epsilon)
        error = point.error + left_out
        converged = solution.status is Status.CONVERGED
        if error <= solver.tol or (left_out <= solver.tol and not converged) or monitor.n_sweeps >= solver.max_sweeps:
            return replace(solution, point=replace(point, error=error), shortlist=shortlist)
        g, reach = point.potentials, reach_for(solver, moves_of(point.plan_potentials, shortlist.origin))
        if n_made == MOST_LISTS:
            break
        wider = shorten(problem, point.plan_potentials, reach, monitor, shortlist.probe)
        if wider is None:
            break
        shortlist = wider
    return replace(_finish(problem, solver, g, most, monitor), shortlist=shortlist)


def _finish(problem: Problem, solver: Solver, g: np.ndarray, max_passes: int, monitor: Monitor) -> Solution:
    """The last rung, on all rows, within what is left of the passes."""
    newton = solver.method == "auto"
    objective = Objective(problem, solver, solver.epsilon, solver.tol, g, monitor, newton=newton)
    left = max(1, min(max_passes, solver.max_sweeps - monitor.n_sweeps))
    return minimise(objective, g, left)
