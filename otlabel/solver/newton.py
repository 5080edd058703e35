"""Newton steps on F, each accepted by its value, and plain Sinkhorn steps where they do not lead down."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from otlabel.solver.curvature import DENSE_CLASSES, Curvature, DenseCurvature, DeviceCurvature, SparseCurvature
from otlabel.solver.objective import LONGEST_STEP, Objective, Point
from otlabel.solver.outcome import Status
from otlabel.solver.shortlist import Shortlist
from otlabel.sweep.running import WithinMemory

SINKHORN_STEPS = 2  # plain steps that open a rung: they bring in classes far from their mass, where Newton errs
NEAR = 0.25  # class error from which on Newton needs no such opening
SLOW_STEP = 0.4  # a Newton step that leaves more of the error than this wants a curvature from more rows
ACTIVE_SETS = 12  # times that the step is solved for, to find which limits bind at its end
RIDGE = 1e-3  # of the class mass, added to the curvature: F is flat along constants and in empty directions
LEAST_CURVATURE = 1e-300  # of soft classes that nothing goes to
TRUST_STEP = 4.0  # ... and how much farther after a step of that length that held
HALVINGS = 6  # before a Newton step is given up for a plain Sinkhorn step
STALL_STEPS = 12  # Newton steps without a smaller error: the working precision is used up


@dataclass(frozen=True, eq=False)
class Solution:
    """The end of a solve: the point with the smallest class error, and why it ended there."""

    point: Point
    status: Status
    shortlist: Shortlist | None = None  # on which it was solved


def minimise(objective: Objective, g: np.ndarray, max_passes: int) -> Solution:
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
    direction = objective.epsilon * _direction_with_room(objective, point)
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


def _direction_with_room(objective: Objective, point: Point) -> np.ndarray:
    """Newton's; where a device has no memory for the curvature, from now on by that of the host."""
    if objective.on_device and objective.problem.rows.communicator.world_size == 1:  # else others wait for its sums
        with WithinMemory():
            return _newton_direction(objective, point)
        objective.on_device = False
    return _newton_direction(objective, point)


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
    if objective.has_several:  # whose diagonal is not the mass
        scale = np.ones(len(mass))
    with np.errstate(over="ignore"):
        own = epsilon * rule.curvature(point.potentials, point.sweep.mass)[active] / size
    # What charges for mass holds itself; a ridge of more than its own would hold back classes of little mass.
    least = np.where(np.isfinite(rule.rho[active]), 0.0, 1.0 / len(active))
    diagonal = np.maximum(sampled * scale**2 + own + RIDGE * (mass + least), LEAST_CURVATURE)
    scale *= np.sqrt(1 - epsilon / objective.row_scale)
    y = np.zeros(len(point.potentials))
    total = float(point.sweep.mass.sum())

    def best_shift(step: np.ndarray) -> float:
        potentials = point.potentials.copy()
        potentials[active] += epsilon * step
        return rule.best_shift(potentials, total, 1.0 / objective.row_scale) / epsilon

    lo, hi = rule.lo[active] / size, rule.hi[active] / size
    with np.errstate(over="ignore"):  # of an epsilon that potentials are beyond all reach of
        start = point.potentials[active] / epsilon
    limits = Limits(rule.ranged[active], lo, hi, start, best_shift)
    y[active] = _solve_within(curvature(scale, diagonal), limits, mass, residual, objective.longest_step)
    return np.clip(y, -objective.longest_step, objective.longest_step)


def _sampled_curvature(
    objective: Objective, point: Point, active: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], Curvature]]:
    """Over the active classes, the mass of a sample of the rows, and what makes a curvature of scale and diagonal."""
    if point.sweep.plan is None and objective.on_device:
        products = objective.products_of(point)
        sampled = products.sum(1).cpu().numpy()  # for q sums to 1
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
    best_shift: Callable[[np.ndarray], float]  # the constant to add to a step, so that classes ask for what there is


def _solve_within(
    curvature: Curvature, limits: Limits, mass: np.ndarray, residual: np.ndarray, longest: float
) -> np.ndarray:
    """The step to where each ranged class meets a limit, or has potential zero and a mass between.

    Source: Hintermueller, Ito, Kunisch, "The primal-dual active set strategy as a semismooth Newton method", SIAM
    Journal on Optimization 13 (2002).
    """
    y, ahead, before = np.zeros(len(mass)), mass, None
    may_be_low, may_be_high = limits.ranged & (limits.potentials >= 0), limits.ranged & (limits.potentials <= 0)
    # A potential that passes zero stops there for this step: jumps from limit to limit may go on for ever.
    least = np.where(may_be_low & ~may_be_high, np.maximum(-limits.potentials, -longest), -longest)
    most = np.where(may_be_high & ~may_be_low, np.minimum(-limits.potentials, longest), longest)
    for _ in range(ACTIVE_SETS):
        there = limits.potentials + y
        with np.errstate(over="ignore", invalid="ignore"):  # of classes that next to nothing goes to
            low = may_be_low & (there + (limits.lo - ahead) / curvature.diagonal > 0)
            high = may_be_high & (there + (limits.hi - ahead) / curvature.diagonal < 0)
        binding = low.astype(int) - high
        if before is not None:
            binding[binding * before < 0] = 0
            if np.array_equal(before, binding):
                break
        before, low, high = binding, binding > 0, binding < 0
        free = ~limits.ranged | low | high
        aim = np.where(low, limits.lo - mass, np.where(high, limits.hi - mass, residual))
        near, y = y, np.where(free, 0.0, -limits.potentials)
        y[free] = curvature.solve((aim - curvature.apply(y))[free], free, near[free])
        if limits.ranged.any():  # else which limits bind would swing to and fro with a constant that little else fixes
            y = np.clip(y, least, most)
            y += limits.best_shift(y)
        ahead = mass + curvature.apply(y)
    return y
