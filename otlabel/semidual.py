"""The smooth solve: minimise the semi-dual F(g) over the K class potentials, from coarse to fine.

    F(g) = sum_i a_i epsilon logsumexp_k((s_ik + g_k) / epsilon) + sum_k phi_k(-g_k)

Where rows may leave their mass at a price rho KL, a row's part is (rho + epsilon) (exp(L_i / (rho + epsilon)) - 1) in
place of L_i = epsilon logsumexp, and its mass the derivative of that. Where the plan is regularised relative to class
masses b, epsilon log b_k is added to the scores of class k.

Epsilon falls in steps on a small sample of the rows, then larger samples and at last all rows polish the result, so
that few passes read everything. Every step is accepted by the value of F.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, cg

from otlabel import sweep
from otlabel.errors import InvalidScoresError
from otlabel.marginals import Rule
from otlabel.monitor import Monitor
from otlabel.problem import Problem, Solver
from otlabel.ranks.rowset import RowSet
from otlabel.result import Status
from otlabel.sources import draw_rows
from otlabel.sweep.pool import blas_on_one_thread

if TYPE_CHECKING:
    import torch

COARSE_ROWS = 20  # rows a class in the first sample; its class masses are then off by about 1 / sqrt(20)
FEWEST_ROWS = 4096  # a smaller sample saves no time
GROWTH = 6  # how much larger each further sample is
SAMPLE_ENTRIES = 1 << 29  # scores of the largest sample: all of it is in memory
EPSILON_STEP = 4.0  # how fast epsilon falls; each level then needs one or two Newton steps
LEVEL_TOLERANCE = 0.1  # class error at which a level on the way is good enough
LAST_TOLERANCE = 0.025  # the same at the epsilon that was asked for, before more rows take over
STARVED = 0.1  # share of its mass under which a class counts as lost on the way: its own error would hide among many
WARM_PASSES = 12  # within which a given start must lead to the end; a fresh one takes about as many
FRESH_PASSES = 30  # the same for the start that samples of the rows lead to
LEVEL_STEPS = 40  # passes a level on the way may take
SINKHORN_STEPS = 2  # plain steps that open a level: they bring in classes far from their mass, where Newton errs
NEAR = 0.25  # class error from which on Newton needs no such opening
CURVATURE_ROWS = 80  # rows a class that the curvature is taken from: its error is what a Newton step leaves over
CURVATURE_ENTRIES = 8_000_000  # plan entries kept for it: where plans are flat, fewer rows say as much
PROBE_ROWS = 256  # rows that tell how flat plans are
SLOW_STEP = 0.4  # a Newton step that leaves more of the error than this wants a curvature from more rows
CURVATURE_SHARE = 1e-3  # of a row's largest plan entry; smaller ones do not matter to the curvature
DENSE_CLASSES = 512  # up to here a K x K factorisation costs less than conjugate gradients
DEVICE_CLASSES = 8192  # the same on a device
DENSE_PLAN = 0.1  # share of entries from which on a sampled plan is multiplied as a dense matrix
ACTIVE_SETS = 12  # times that the step is solved for, to find which limits bind at its end
RIDGE = 1e-3  # of the class mass, added to the curvature: F is flat along constants and in empty directions
LEAST_CURVATURE = 1e-300  # of soft classes that nothing goes to
LONGEST_STEP = 8.0  # in units of epsilon: how far the quadratic model is trusted at first ...
TRUST_STEP = 4.0  # ... and how much farther after a step of that length that held
HALVINGS = 6  # before a Newton step is given up for a plain Sinkhorn step
STALL_STEPS = 12  # Newton steps without a smaller error: the working precision is used up
PATIENCE = 15  # passes within which the error is to halve where exact labels wait, which do not need the plan
SERVING_PASSES = 100  # that a fresh start may take there in all: what is left over is for the repair ...
UNEVEN_PASSES = 40  # ... and where some rows are so much wider than most that plans of a small epsilon are staircases
UNEVEN = 100.0  # times the spread of most rows
SERVING_SHARE = 2  # each level on the way takes at most one in so many of what is left
RESOLUTION_SHARE = 0.05  # of the tolerance that float32's rounding may take before float64 is used
FLOAT32_REACH = 1e30  # what float32 holds with room for a few factors, upwards; downwards, its reciprocal
LARGEST_EXPONENT = 40.0  # of row masses in float32
FINE_TOLERANCE = 1e-5  # from here down float64 is used in any case


@dataclass(frozen=True, eq=False)
class Point:
    """Where the solve stands: potentials, value of F, what a sweep found there, and how far it is from the target."""

    potentials: np.ndarray
    plan_potentials: np.ndarray  # the same with epsilon log b where the plan is relative to b
    swept_potentials: np.ndarray  # those of the sweep itself, before the best constant was added
    value: float
    sweep: sweep.Sweep
    residual: np.ndarray  # (K,) demand - c(g) = -grad F
    error: float  # sum_k |c_k - demand_k|, of what all classes take
    curvature_rows: np.ndarray  # sorted: rows here to take the curvature from
    precision: type  # of the sweep


@dataclass(frozen=True, eq=False)
class Solution:
    """The end of a solve: the point with the smallest class error, and why it ended there."""

    point: Point
    status: Status


class Objective:
    """F on one set of rows at one epsilon, in float32 where its rounding is far below the tolerance."""

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        epsilon: float,
        tol: float,
        near: np.ndarray,
        monitor: Monitor,
        least: float = 0.0,
        newton: bool = True,
    ):
        finite = near[np.isfinite(near)]
        self.magnitude = problem.magnitude + float(np.abs(finite).max(initial=0.0))
        rounding = float(np.finfo(np.float32).eps) * self.magnitude / epsilon
        double = problem.rows.source.dtype == "float64" or rounding > RESOLUTION_SHARE * tol or tol < FINE_TOLERANCE
        double |= not 1 / FLOAT32_REACH < epsilon < FLOAT32_REACH or self.magnitude > FLOAT32_REACH
        double |= problem.magnitude > LARGEST_EXPONENT * (problem.row_rho + epsilon)  # or masses of rows would overflow
        self.precision: type = np.float64 if double else np.float32
        self.noise = 8 * float(np.finfo(self.precision).eps) * max(epsilon, self.magnitude)  # of a value of F
        self.problem, self.epsilon, self.tol, self.least, self.monitor = problem, epsilon, tol, least, monitor
        self.newton = newton
        self.patience = PATIENCE if newton and solver.rounding == "exact" else sys.maxsize
        self.row_scale = problem.row_rho + epsilon  # inf where rows are exact
        self.centred = problem.rule.shift_free and math.isinf(self.row_scale)
        self.rng = np.random.default_rng(solver.seed)
        self.rows_a_class = CURVATURE_ROWS  # for the curvature
        self.longest_step = LONGEST_STEP
        self.n_passes = 0

    def at(self, potentials: np.ndarray) -> Point:
        """F, its gradient and all else that one sweep gives; potentials are centred first, which F does not see."""
        problem, rule = self.problem, self.problem.rule
        finite = np.isfinite(potentials)
        if self.centred:
            potentials = np.where(finite, potentials - potentials[finite].mean(), potentials)
        shifted = potentials + self.epsilon * rule.log_mass
        rows = self._curvature_rows(shifted) if self.newton else np.empty(0, np.int64)
        later = (
            problem.rows.source.random_access or self.on_device or not self.newton
        )  # else a look at some rows would read all again
        found = sweep.sweep(
            problem.rows, shifted, self.epsilon, problem.weights, self.precision,
            None if later else rows, CURVATURE_SHARE, 1.0 / self.row_scale, with_labels=False,
        )  # fmt: skip
        swept = shifted
        level = 0.0 if self.centred else self._level(rule, potentials, found)
        if level:  # what a constant does is known without another sweep
            with np.errstate(over="ignore", invalid="ignore"):
                factor = np.exp(level / self.row_scale)
                found = replace(found, mass=found.mass * factor, row_mass=found.row_mass * factor)
            potentials, shifted = potentials + level, shifted + level
        if not np.isfinite(found.mass).all():
            raise InvalidScoresError(
                f"scores of up to {problem.magnitude:.3g} at rho={problem.row_rho:g} ask for a plan of more mass than "
                "numbers can hold; raise rho, or divide the scores by a constant"
            )
        residual = rule.demand(potentials, found.mass) - found.mass
        of_rows, total = found.linear + level + self.epsilon * found.entropic, 1.0
        if math.isfinite(self.row_scale):
            total = float(found.mass.sum())
            of_rows = self.row_scale * (total - 1)
        if not total > 0:
            raise InvalidScoresError(
                f"scores of up to {problem.top:.3g} at rho={problem.row_rho:g} ask for a plan of less mass than "
                "numbers can hold; raise rho, divide the scores by a constant, or add one to them"
            )
        error = float(np.abs(residual).sum()) / total
        self.n_passes += 1
        self.monitor.saw("solve", problem.n_rows, self.epsilon, error, shifted)
        value = of_rows + rule.term(potentials)
        return Point(potentials, shifted, swept, value, found, residual, error, rows, self.precision)

    def _level(self, rule: Rule, potentials: np.ndarray, found: sweep.Sweep) -> float:
        """The best constant to add to all potentials."""
        total = float(found.mass.sum())
        return rule.level(potentials, total, 1.0 / self.row_scale) if 0 < total < math.inf else 0.0

    def plan_of(self, point: Point) -> csr_array:
        """Rows sqrt(a_i) q_i of a sample of all ranks' rows at a point of Newton's, weighing 1 or so in total."""
        rows, plan = point.curvature_rows, point.sweep.plan
        if plan is None:
            plan = self._sparse_plan(self.problem.rows, rows, point.swept_potentials)
        sizes, roots = np.diff(plan.indptr), np.sqrt(self._shares(point)).astype(np.float32)
        here = plan.data * np.repeat(roots, sizes), plan.indices.astype(np.int32), sizes
        data, indices, sizes = self.problem.rows.concat("curvature", *here)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return csr_array((data, indices, starts), shape=(len(sizes), plan.shape[1]))

    def products_of(self, point: Point) -> tuple[torch.Tensor, np.ndarray]:
        """Sums of a_i q_i q_i^T, left on the device, and of a_i q_i over the same rows."""
        rows, g = self.problem.rows, point.swept_potentials
        products, mass = sweep.products(
            rows, point.curvature_rows, self._shares(point), g, self.epsilon, self.precision
        )
        return rows.sum_tensor("curvature", products), rows.sum("curvature", mass)[0]

    @property
    def on_device(self) -> bool:
        """Whether the curvature is made where the scores are: a device that can take rows without reading files."""
        scores = self.problem.rows.source
        return not scores.on_cpu and not scores.reads_files and scores.shape[1] <= DEVICE_CLASSES

    def _shares(self, point: Point) -> np.ndarray:
        """What the curvature's rows here weigh, 1 or so in total over all ranks."""
        rows, weights = point.curvature_rows, self.problem.weights
        units = np.ones(len(rows)) if weights is None else weights[rows]
        (total,) = self.problem.rows.sum("curvature", units.sum())
        return (point.sweep.row_mass[rows] / self.size_of(point) if len(point.sweep.row_mass) else units) / total

    def size_of(self, point: Point) -> float:
        """What all rows take: 1, but where they may leave their mass it can be beyond float32, as can its curvature."""
        return float(point.sweep.mass.sum()) if math.isfinite(self.row_scale) else 1.0

    def _curvature_rows(self, potentials: np.ndarray) -> np.ndarray:
        """Rows here for the curvature: so many a class, but fewer where flat plans would take much room."""
        n_rows, n_classes = self.problem.n_rows, self.problem.n_classes
        size = min(n_rows, max(FEWEST_ROWS, self.rows_a_class * n_classes))
        if size * n_classes > CURVATURE_ENTRIES and not self.on_device:
            n_probed = self._probe.shape[0]
            n_entries = self._sparse_plan(self._probe, np.arange(n_probed), potentials).nnz
            n_probed, n_entries = self.problem.rows.sum("probe", np.array([n_probed, n_entries]))[0]
            entries_a_row = n_entries / n_probed
            size = min(size, max(FEWEST_ROWS // 4, int(CURVATURE_ENTRIES / entries_a_row)))
        return self.problem.rows.local(draw_rows(n_rows, size, self.rng))

    @functools.cached_property
    def _probe(self) -> RowSet:
        """A few rows, evenly spread."""
        sampled = self.problem.sampled
        return self.problem.rows.subset(sampled[draw_rows(len(sampled), PROBE_ROWS, np.random.default_rng(0))])

    def _sparse_plan(self, rows: RowSet, chosen: np.ndarray, potentials: np.ndarray) -> csr_array:
        return sweep.sparse_plan(rows, chosen, potentials, self.epsilon, CURVATURE_SHARE, self.precision)

    def met(self, point: Point) -> bool:
        """Whether the class error is within the tolerance and, where asked for, no class is starved."""
        if point.error > self.tol:
            return False
        demand, negligible = point.residual + point.sweep.mass, self.tol / len(point.residual)
        return not self.least or bool((point.sweep.mass + negligible >= self.least * demand).all())


def solve(problem: Problem, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> Solution:
    """Potentials whose class masses are within solver.tol (L1) of what is asked, or the nearest that was reached."""
    wanted = problem.rule.wanted
    level = 0.0 if math.isinf(problem.row_rho) else -problem.top  # or the best row would take exp(top / epsilon)
    g = np.where(wanted, level if init is None else init, -np.inf)
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
    solution = _descend(problem, solver, np.where(wanted, level, -np.inf), monitor)
    if solution.status is Status.MAX_SWEEPS and monitor.n_sweeps < most:
        return replace(solution, status=Status.STALLED)
    return solution


def _descend(problem: Problem, solver: Solver, g: np.ndarray, monitor: Monitor) -> Solution:
    """Through falling epsilon on a sample of the rows, then through larger samples to all rows."""
    samples = list(_samples(problem, np.random.default_rng(solver.seed)))
    finest = float(np.finfo(np.float64).eps) * problem.magnitude  # what scores and potentials are known to
    *ladder, last = _ladder(problem.spread, solver.epsilon, finest)
    for epsilon in ladder:
        g = _level(samples[0] if samples else problem, solver, epsilon, LEVEL_TOLERANCE, g, monitor).potentials
    for sample in samples:
        g = _level(sample, solver, last, LAST_TOLERANCE, g, monitor).potentials
    solution = _finish(problem, solver, g, FRESH_PASSES, monitor)
    done = solution.status is Status.CONVERGED or monitor.n_sweeps >= solver.max_sweeps
    if done or solver.epsilon < finest:
        return solution
    # At a tiny epsilon F is a staircase, and a class of few samples is more than a sample of the rows can place:
    # falling epsilon on all rows, each level to the end, finds the way.
    for epsilon in ladder:
        g = _level(problem, solver, epsilon, solver.tol, g, monitor).potentials
    return _finish(problem, solver, g, solver.max_sweeps, monitor)


def _finish(problem: Problem, solver: Solver, g: np.ndarray, max_passes: int, monitor: Monitor) -> Solution:
    """The last level, on all rows, within what is left of the passes."""
    newton = solver.method == "auto"
    objective = Objective(problem, solver, solver.epsilon, solver.tol, g, monitor, newton=newton)
    left = max(1, min(max_passes, solver.max_sweeps - monitor.n_sweeps))
    return _minimise(objective, g, left)


def sharpen(problem: Problem, solver: Solver, epsilon: float, g: np.ndarray, monitor: Monitor) -> Point:
    """One level at a smaller epsilon on all rows, to where class masses are about right: a start for rounding."""
    return _level(problem, solver, epsilon, LAST_TOLERANCE, g, monitor)


def _level(problem: Problem, solver: Solver, epsilon: float, tol: float, g: np.ndarray, monitor: Monitor) -> Point:
    objective = Objective(problem, solver, epsilon, tol, g, monitor, least=STARVED)
    left = max(1, min(LEVEL_STEPS, (solver.max_sweeps - monitor.n_sweeps) // SERVING_SHARE))
    return _minimise(objective, g, left).point


def _ladder(spread: float, epsilon: float, finest: float) -> list[float]:
    """Falling values of epsilon, from where the plan is nearly uniform to the one asked for; none is too fine."""
    levels = [epsilon]
    while levels[-1] * EPSILON_STEP < spread / EPSILON_STEP:
        levels.append(levels[-1] * EPSILON_STEP)
    return [level for level in levels[:0:-1] if level > finest] + [epsilon]


def sample_sizes(n_rows: int, n_classes: int) -> list[int]:
    """Sizes of ever larger samples of the rows, while they are well below all rows."""
    size, most, much_less = max(FEWEST_ROWS, COARSE_ROWS * n_classes), SAMPLE_ENTRIES // n_classes, 2
    size, sizes = min(size, max(most, FEWEST_ROWS)), list[int]()
    while much_less * size < n_rows and (not sizes or size <= most):
        sizes.append(size)
        size, much_less = GROWTH * size, GROWTH  # a further sample must save passes enough to pay for its copy
    return sizes


def draw_sampled(n_rows: int, n_classes: int, seed: int) -> np.ndarray:
    """The rows from which all samples are taken."""
    sizes = sample_sizes(n_rows, n_classes) or sample_sizes(sys.maxsize, n_classes)[:1]
    return draw_rows(n_rows, sizes[-1], np.random.default_rng(seed))


def _samples(problem: Problem, rng: np.random.Generator) -> Iterator[Problem]:
    """Ever larger samples of the rows."""
    for size in sample_sizes(problem.n_rows, problem.n_classes):
        yield _restricted(problem, problem.sampled[draw_rows(len(problem.sampled), size, rng)])


def _restricted(problem: Problem, chosen: np.ndarray) -> Problem:
    """The same problem on some of the rows (sorted)."""
    rows, weights = problem.rows.subset(chosen), problem.weights
    if weights is not None:
        (taken,) = problem.rows.concat("sample", weights[problem.rows.local(chosen)])
        weights = taken[rows.first : rows.stop]
    return replace(problem, rows=rows, weights=weights, sampled=np.arange(len(chosen)))


def _minimise(objective: Objective, g: np.ndarray, max_passes: int) -> Solution:
    """Newton steps, or Sinkhorn steps alone, until the class error is within the objective's tolerance."""
    point = best = objective.at(g)
    opening = 0 if point.error < NEAR else SINKHORN_STEPS
    n_steps = n_idle = 0
    halved, to_halve = 0, point.error  # the pass that halved the error last, and from what
    while not objective.met(best):
        if objective.n_passes >= max_passes:
            return Solution(best, Status.MAX_SWEEPS)
        if n_idle >= STALL_STEPS or objective.n_passes - halved > objective.patience:
            return Solution(best, Status.STALLED)
        following = _newton_step(objective, point, max_passes) if objective.newton and n_steps >= opening else None
        if following is not None and following.error > SLOW_STEP * point.error:
            objective.rows_a_class *= 2
        if following is None and objective.n_passes >= max_passes:
            continue
        following = following or objective.at(_sinkhorn_step(objective, point))
        # A plain step lowers F each time, if by little; there only rounding can end its progress.
        progress = following.value < point.value - objective.noise
        n_idle = 0 if progress or following.error < best.error else n_idle + 1
        point = following
        best = point if point.error <= best.error else best
        if best.error < 0.5 * to_halve:
            halved, to_halve = objective.n_passes, best.error
        n_steps += 1
    return Solution(best, Status.CONVERGED)


def _sinkhorn_step(objective: Objective, point: Point) -> np.ndarray:
    """g + epsilon log(demand / c), which never raises F; where demand falls with g, as far less as that takes."""
    rule = objective.problem.rule
    tiny = float(np.finfo(np.float32).tiny)  # what the compiled exponential returns for anything smaller
    wanted = np.isfinite(point.potentials)
    mass = point.sweep.mass[wanted]
    ratio = np.maximum(mass + point.residual[wanted], tiny) / np.maximum(mass, tiny)
    g = point.potentials.copy()
    g[wanted] += np.log(ratio) / (1 / objective.epsilon + 1 / rule.rho[wanted])
    return rule.step(point.potentials, g)


def _newton_step(objective: Objective, point: Point, max_passes: int) -> Point | None:
    """A damped Newton step that lowers F, or None where the quadratic model does not lead down."""
    rule = objective.problem.rule
    direction = objective.epsilon * _newton_direction(objective, point)
    slope = -float(point.residual @ direction)
    length = 1.0
    for _ in range(HALVINGS if slope < 0 else 0):
        if objective.n_passes >= max_passes:
            break
        aim = rule.step(point.potentials, point.potentials + length * direction)
        following = objective.at(aim)
        moved = aim[np.isfinite(aim)] - point.potentials[np.isfinite(aim)]
        promised = -float(point.residual[np.isfinite(aim)] @ moved)
        fell = following.value <= point.value + 1e-4 * promised
        indistinct = following.value <= point.value + objective.noise and following.error < point.error
        if (fell and promised < 0) or indistinct:
            if length < 1:
                objective.longest_step = max(LONGEST_STEP, length * objective.longest_step)
            elif np.abs(direction).max() >= objective.longest_step * objective.epsilon:
                objective.longest_step *= TRUST_STEP
            return following
        # F is convex: where its slope has turned upwards, the least value on the way is near the secant's zero.
        slope_there = -float(following.residual @ direction)
        length *= float(np.clip(slope / (slope - slope_there), 0.1, 0.5)) if slope_there > slope else 0.5
    return None


def _newton_direction(objective: Objective, point: Point) -> np.ndarray:
    """Solve (diag(c) - sum_i a_i q_i q_i^T) y = demand - c over the classes with mass; y is in units of epsilon.

    Soft classes add their own curvature to the diagonal; where rows may leave their mass, less is subtracted. The
    second term comes from a sample of the rows. Scaling both its sides by sqrt(c / c_sample) makes its diagonal
    agree with all rows and keeps the whole positive semi-definite, which exchanging the diagonal alone would not.
    """
    rule, epsilon = objective.problem.rule, objective.epsilon
    active = np.flatnonzero(np.isfinite(point.potentials))
    sampled, curvature = _sampled_curvature(objective, point, active)
    size = objective.size_of(point)
    mass, residual = point.sweep.mass[active] / size, point.residual[active] / size
    scale = np.sqrt(mass / np.maximum(sampled, 0.1 * mass + 1e-300))
    with np.errstate(over="ignore"):
        own = epsilon * rule.curvature(point.potentials, point.sweep.mass)[active] / size
    # What charges for mass holds itself; a ridge of more than its own would hold back classes of little mass.
    least = np.where(np.isfinite(rule.rho[active]), 0.0, 1.0 / len(active))
    diagonal = np.maximum(sampled * scale**2 + own + RIDGE * (mass + least), LEAST_CURVATURE)
    scale *= np.sqrt(1 - epsilon / objective.row_scale)
    y = np.zeros(len(point.potentials))
    total = float(point.sweep.mass.sum())

    def level(step: np.ndarray) -> float:
        potentials = point.potentials.copy()
        potentials[active] += epsilon * step
        return rule.level(potentials, total, 1.0 / objective.row_scale) / epsilon

    lo, hi = rule.lo[active] / size, rule.hi[active] / size
    with np.errstate(over="ignore"):  # of an epsilon that potentials are beyond all reach of
        start = point.potentials[active] / epsilon
    limits = Limits(rule.ranged[active], lo, hi, start, level)
    y[active] = _solve_within(curvature(scale, diagonal), limits, mass, residual)
    return np.clip(y, -objective.longest_step, objective.longest_step)


def _sampled_curvature(
    objective: Objective, point: Point, active: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], Curvature]]:
    """Over the active classes, the mass of a sample of the rows, and what makes a curvature of scale and diagonal."""
    if point.sweep.plan is None and objective.on_device:
        products, sampled = objective.products_of(point)
        if len(active) < len(sampled):
            products = products[active][:, active]
        return sampled[active], functools.partial(DeviceCurvature, products)
    plan = objective.plan_of(point)
    root_weights = plan.sum(1)  # q sums to 1 but for the entries left out; over classes that are held too
    plan = plan if len(active) == plan.shape[1] else plan[:, active]
    kind = DenseCurvature if len(active) <= DENSE_CLASSES else SparseCurvature
    return plan.T @ root_weights, functools.partial(kind, plan)


@dataclass(frozen=True, eq=False)
class Limits:
    """Classes whose mass may be anything between two limits, and their potentials in units of epsilon."""

    ranged: np.ndarray  # bool
    lo: np.ndarray
    hi: np.ndarray
    potentials: np.ndarray
    level: Callable[[np.ndarray], float]  # the constant to add to a step, so that classes ask for what there is


def _solve_within(curvature: Curvature, limits: Limits, mass: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """The step to where each ranged class meets a limit, or has potential zero and a mass between.

    Source: Hintermueller, Ito, Kunisch, "The primal-dual active set strategy as a semismooth Newton method", SIAM
    Journal on Optimization 13 (2002).
    """
    y, ahead, before = np.zeros(len(mass)), mass, None
    may_be_low, may_be_high = limits.ranged & (limits.potentials >= 0), limits.ranged & (limits.potentials <= 0)
    for _ in range(ACTIVE_SETS):
        there = limits.potentials + y
        # A potential that passes zero stops there for this step: jumps from limit to limit may go on for ever.
        with np.errstate(over="ignore", invalid="ignore"):  # of classes that next to nothing goes to
            low = may_be_low & (there + (limits.lo - ahead) / curvature.diagonal > 0)
            high = may_be_high & (there + (limits.hi - ahead) / curvature.diagonal < 0)
        free = ~limits.ranged | low | high
        if before is not None and np.array_equal(before, low.astype(int) - high):
            break
        before = low.astype(int) - high
        aim = np.where(low, limits.lo - mass, np.where(high, limits.hi - mass, residual))
        near, y = y, np.where(free, 0.0, -limits.potentials)
        y[free] = curvature.solve((aim - curvature.apply(y))[free], free, near[free])
        if limits.ranged.any():  # else which limits bind would swing to and fro with a constant that little else fixes
            y += limits.level(y)
        ahead = mass + curvature.apply(y)
    return y


class Curvature(Protocol):
    """diag(d) - S, however it is held."""

    diagonal: np.ndarray

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """What gives the residual over the free classes, the others being held; it may be near to `near`."""


class DenseCurvature:
    """diag(d) - S as a matrix, in float64, since at a small epsilon it is nearly singular."""

    def __init__(self, plan: csr_array, scale: np.ndarray, diagonal: np.ndarray) -> None:
        self.diagonal = diagonal
        with blas_on_one_thread():
            if plan.nnz > DENSE_PLAN * plan.shape[0] * plan.shape[1]:
                rows = plan.toarray()
                products = (rows.T @ rows).astype(np.float64)
            else:
                products = (plan.T @ plan).toarray().astype(np.float64)
        self._matrix = -products * scale * scale[:, None]
        self._matrix[np.diag_indices_from(self._matrix)] += diagonal

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""
        return self._matrix @ y if y.any() else np.zeros_like(y)

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """By Cholesky, over the free classes."""
        matrix = self._matrix if free.all() else self._matrix[np.ix_(free, free)]
        with blas_on_one_thread():
            try:
                return cho_solve(cho_factor(matrix, check_finite=False), residual, check_finite=False)
            except LinAlgError:  # rounding made it indefinite; its diagonal alone gives the Sinkhorn direction
                return residual / self.diagonal[free]


class DeviceCurvature:
    """The same on a device, where a matrix of a few thousand classes is no burden."""

    def __init__(self, products: torch.Tensor, scale: np.ndarray, diagonal: np.ndarray) -> None:
        self.diagonal, self._device = diagonal, products.device
        factors = self._there(scale)
        self._matrix = -products * factors * factors[:, None]
        self._matrix.diagonal().add_(self._there(diagonal))

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""
        return (self._matrix @ self._there(y)).cpu().numpy() if y.any() else np.zeros_like(y)

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """By Cholesky, over the free classes."""
        import torch

        chosen = self._there(free)
        matrix = self._matrix if free.all() else self._matrix[chosen][:, chosen]
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):  # rounding made it indefinite, as above
            return residual / self.diagonal[free]
        return torch.cholesky_solve(self._there(residual)[:, None], factor)[:, 0].cpu().numpy()

    def _there(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self._device)


class SparseCurvature:
    """diag(d) - S by its products; for many classes."""

    def __init__(self, plan: csr_array, scale: np.ndarray, diagonal: np.ndarray) -> None:
        self.diagonal = diagonal
        self._plan, self._transposed, self._scale = plan, plan.T.tocsr(), scale

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""
        scaled = (self._scale * y).astype(np.float32)
        return self.diagonal * y - self._scale * (self._transposed @ (self._plan @ scaled))

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """By conjugate gradients over the free classes; a rough solution will do, as the curvature is rough itself."""
        size, diagonal = len(residual), self.diagonal[free]

        def apply(part: np.ndarray) -> np.ndarray:
            y = np.zeros(len(free))
            y[free] = part
            return self.apply(y)[free]

        curvature = LinearOperator((size, size), matvec=apply, dtype=np.float64)
        jacobi = LinearOperator((size, size), matvec=lambda y: y / diagonal, dtype=np.float64)
        solution, _ = cg(curvature, residual, near, rtol=0.02, maxiter=200, M=jacobi)
        return solution
