"""What a solve minimises: the semi-dual F(g) over the K class potentials.

    F(g) = sum_i a_i epsilon logsumexp_k((s_ik + g_k) / epsilon) + sum_k phi_k(-g_k)

Where rows may leave their mass at a price rho KL, a row's part is (rho + epsilon) (exp(L_i / (rho + epsilon)) - 1) in
place of L_i = epsilon logsumexp, and its mass the derivative of that. Where the plan is regularised relative to class
masses b, epsilon log b_k is added to the scores of class k.

Where a row takes k classes its part is min_t k t + epsilon sum_k log(1 + exp((s_ik + g_k - t) / epsilon)), all are
divided by k, and the plan's rows are the capped softmax, 1 / (1 + exp((t - s_ik - g_k) / epsilon)).
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from otlabel import sweep
from otlabel.errors import InvalidScoresError
from otlabel.marginals import Rule
from otlabel.ranks.rowset import RowSet
from otlabel.solver.monitor import Monitor
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.samples import FEWEST_ROWS
from otlabel.sources import draw_rows

if TYPE_CHECKING:
    import torch

CURVATURE_ROWS = 80  # rows a class that the curvature is taken from: its error is what a Newton step leaves over
CURVATURE_ENTRIES = 8_000_000  # plan entries kept for it: where plans are flat, fewer rows say as much
PROBE_ROWS = 256  # rows that tell how flat plans are
CURVATURE_SHARE = 1e-3  # of a row's largest plan entry; smaller ones do not matter to the curvature
DEVICE_CLASSES = 8192  # the same on a device
LONGEST_STEP = 8.0  # in units of epsilon: how far the quadratic model is trusted at first ...
PATIENCE = 15  # passes within which the error is to halve where exact labels wait, which do not need the plan
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
            problem.rows.source.grain == 1 or self.on_device or not self.newton
        )  # else a look at some rows would read all again
        found = sweep.sweep(
            problem.rows, shifted, self.epsilon, problem.weights, self.precision,
            None if later else rows, CURVATURE_SHARE, 1.0 / self.row_scale, with_labels=False,
        )  # fmt: skip
        swept = shifted
        shift = 0.0 if self.centred else self._best_shift(rule, potentials, found)
        if shift:  # what a constant does is known without another sweep
            with np.errstate(over="ignore", invalid="ignore"):
                factor = np.exp(shift / self.row_scale)
                found = replace(found, mass=found.mass * factor, row_mass=found.row_mass * factor)
            potentials, shifted = potentials + shift, shifted + shift
        if not np.isfinite(found.mass).all():
            raise InvalidScoresError(
                f"scores of up to {problem.magnitude:.3g} at rho={problem.row_rho:g} ask for a plan of more mass than "
                "numbers can hold; raise rho, or divide the scores by a constant"
            )
        residual = rule.demand(potentials, found.mass) - found.mass
        of_rows, total = found.linear + shift + self.epsilon * found.entropic, 1.0
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
        self.monitor.record("solve", problem.n_rows, self.epsilon, error, shifted, listed=problem.is_listed)
        value = of_rows + rule.term(potentials)
        return Point(potentials, shifted, swept, value, found, residual, error, rows, self.precision)

    def _best_shift(self, rule: Rule, potentials: np.ndarray, found: sweep.Sweep) -> float:
        """The best constant to add to all potentials."""
        total = float(found.mass.sum())
        return rule.best_shift(potentials, total, 1.0 / self.row_scale) if 0 < total < math.inf else 0.0

    def plan_of(self, point: Point) -> csr_array:
        """Rows sqrt(a_i) q_i of a sample of all ranks' rows at a point of Newton's, weighing 1 or so in total.

        Where rows take several classes it is what takes the place of q: see `curvature_lists`.
        """
        rows, plan = point.curvature_rows, point.sweep.plan
        if plan is None:
            plan = self._sparse_plan(self.problem.rows, rows, point.swept_potentials)
        sizes, roots = np.diff(plan.indptr), np.sqrt(self._shares(point)).astype(np.float32)
        here = plan.data * np.repeat(roots, sizes), plan.indices.astype(np.int32), sizes
        data, indices, sizes = self.problem.rows.concat("curvature", *here)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return csr_array((data, indices, starts), shape=(len(sizes), plan.shape[1]))

    def products_of(self, point: Point) -> torch.Tensor:
        """The sum of a_i q_i q_i^T over the same rows, left on the device."""
        rows, g = self.problem.rows, point.swept_potentials
        products = sweep.products(rows, point.curvature_rows, self._shares(point), g, self.epsilon, self.precision)
        return rows.sum_tensor("curvature", products)

    @functools.cached_property
    def on_device(self) -> bool:
        """Whether the curvature is made where the scores are: a device that can take rows without reading files."""
        scores = self.problem.rows.source
        is_there = scores.device is not None and not scores.reads_files and scores.shape[1] <= DEVICE_CLASSES
        return is_there and not self.has_several

    @property
    def has_several(self) -> bool:
        """Whether rows take several classes each: their curvature is made of q (1 - q) in place of q."""
        return self.problem.rows.labels_per_row > 1

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
        return self.problem.rows.taken(sampled[draw_rows(len(sampled), PROBE_ROWS, np.random.default_rng(0))])

    def _sparse_plan(self, rows: RowSet, chosen: np.ndarray, potentials: np.ndarray) -> csr_array:
        return sweep.sparse_plan(rows, chosen, potentials, self.epsilon, CURVATURE_SHARE, self.precision)

    def met(self, point: Point) -> bool:
        """Whether the class error is within the tolerance and, where asked for, no class is starved."""
        if point.error > self.tol:
            return False
        demand, negligible = point.residual + point.sweep.mass, self.tol / len(point.residual)
        return not self.least or bool((point.sweep.mass + negligible >= self.least * demand).all())
