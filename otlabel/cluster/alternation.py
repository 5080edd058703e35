"""Labels and centres in turn: each start of a fit, and the potentials that its labels end with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from otlabel import sweep
from otlabel.assign import sinkhorn_assign
from otlabel.cluster.moments import EPSILON_SHARE, moments
from otlabel.errors import OtlabelWarning
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment
from otlabel.solver.small import MOST_SCORES
from otlabel.sources import (
    ArraySource,
    Features,
    LinearScores,
    Opened,
    as_array,
    as_float,
    closeness,
    cosines,
    read_rows,
)

GAP_CLUSTERS = 8  # how far apart the best clusters of a row are, up to this one
GAP_EPSILONS, MUCH_FINER = 64.0, 32.0  # epsilon in this, but not so much smaller than otherwise
PLAN_TOLERANCE = 0.01  # class error at which the plan is left to the repair, which moves the rest one by one
DISTINCT = 1e-20  # of the data's variance: a row at this squared distance from its centre is at its centre
STEP = float(np.finfo(np.float64).eps)  # of a distance: by which rounding moves a centre that comes from there
CENTRING_ROUNDS = 50  # of potentials towards the middle of where they may be; each halves what is left, nearly


@dataclass(frozen=True, eq=False)
class Fit:
    """The data of a fit, what each cluster is to take, and when to stop."""

    rows: RowSet
    features: Features  # these rows, for the heads of all steps
    cosine: bool
    demand: dict[str, Any]  # as `sinkhorn_assign` wants it
    variance: float  # mean squared distance from the mean
    dtype: type  # of centres
    tol: float
    max_iter: int
    group: Any  # whose ranks have rows, too
    told: Callable[[float, float], None]  # after each iteration: inertia before it, and how far centres moved
    memory_limit: int | None = None  # of `sinkhorn_assign`
    gap: float = math.nan  # by which a usual row prefers its best cluster to the eighth best, where it is known

    @property
    def may_fill(self) -> bool:
        """Whether an empty cluster may take a row: not where its size is stated."""
        return "classes" in self.demand

    @property
    def epsilon(self) -> float:
        """Of the entropic plans, in the units of the scores."""
        scale = self.variance / 2 if self.cosine else self.variance
        if not scale > 0:
            return 1.0
        share = EPSILON_SHARE if math.isnan(self.gap) else self.gap / scale / GAP_EPSILONS
        return scale * min(max(share, EPSILON_SHARE / MUCH_FINER), EPSILON_SHARE)


@dataclass(frozen=True, eq=False)
class Clustering:
    """Where one start has led; the labels are the best for the centres."""

    assignment: Assignment
    centres: np.ndarray
    inertia: float
    n_iter: int
    converged: bool


def alternate(fit: Fit, centres: np.ndarray, seed: int, start: Any = None) -> Clustering:
    """Labels and centres in turn until neither changes any more; labels of nearly these centres are a start."""
    n_features, dtype = fit.rows.shape[1], fit.dtype
    centres = _unit(centres).astype(dtype) if fit.cosine else centres.astype(dtype)
    fit = replace(fit, gap=_usual_gap(fit, centres))
    enough = fit.tol * fit.variance / n_features
    assignment, moved, n_iter = assigned(fit, centres, seed, start), np.inf, 0
    while True:
        labels, counts = as_array(assignment.labels), as_array(assignment.counts)
        sums, squares = moments(fit.rows, labels, centres)
        empty = np.flatnonzero(counts == 0) if fit.may_fill else np.empty(0, np.int64)
        far = far_rows(fit, labels, centres, len(empty)) if len(empty) else np.empty((0, n_features))
        if (moved <= enough and not len(far)) or n_iter == fit.max_iter:
            break
        at, labels = centres, labels.astype(np.int32)
        means = centres + sums / np.maximum(counts, 1)[:, None]  # a cluster that is to be empty stays where it is
        means[empty[: len(far)]] = far
        centres = (_unit(means) if fit.cosine else means).astype(dtype)
        moved = float(np.square(centres - at, dtype=np.float64).sum())
        n_iter += 1
        fit.told(inertia_of(squares, at, counts, fit.cosine), moved)
        start = _expected(fit, assignment, at, centres)
        del assignment  # of many rows, much memory
        assignment = assigned(fit, centres, seed, start)
        n_changed = np.count_nonzero(labels != as_array(assignment.labels))
        is_same = not int(fit.rows.sum("changed", np.array(n_changed))[0])
        if is_same and STEP**2 * moved <= DISTINCT * fit.variance:  # else not yet at the means: rounding
            moved = 0.0
    return Clustering(assignment, centres, inertia_of(squares, centres, counts, fit.cosine), n_iter, moved <= enough)


def far_rows(
    fit: Fit, labels: np.ndarray, centres: np.ndarray, number: int, random: np.random.Generator | None = None
) -> np.ndarray:
    """Up to so many rows of all ranks', (n, D) float64, of those that are not at their centres: the farthest.

    The next is the one farthest from its centre and from those before it, so that not all are from one place. With
    `random` they are drawn in proportion to the squares of these distances: the most of what they are in exponential
    draws (Efraimidis, Spirakis, Information Processing Letters 97, 2006). A cluster that moves to such a row can take
    it: if it was empty, the inertia is less.
    """
    rows, source = fit.rows, fit.rows.source
    draws = np.ones(rows.n_rows) if random is None else random.exponential(size=rows.n_rows)
    draws, distances = draws[rows.first : rows.stop], np.full(source.shape[0], np.inf)
    found = np.empty((0, rows.shape[1]))
    nearest, own = centres.astype(np.float64), labels
    while len(found) < number:
        with rows.reading():
            for (start, stop), block in rows.blocks():
                to_nearest = np.square(block - nearest[own[start:stop]]).sum(1)
                np.minimum(distances[start:stop], to_nearest, out=distances[start:stop])
        farthest = np.argsort(-distances / draws, kind="stable")[:1]
        farthest = farthest[distances[farthest] > DISTINCT * fit.variance]
        taken = as_float(read_rows(source.take(farthest), 0, len(farthest)), source.dtype).astype(np.float64)
        of_ranks, taken = rows.concat("farthest", (distances / draws)[farthest], taken)
        if not len(taken):
            break
        nearest, own = taken[[of_ranks.argmax()]], np.zeros(source.shape[0], np.int64)
        found = np.concatenate([found, nearest])
    return found


def _expected(fit: Fit, before: Assignment, at: np.ndarray, centres: np.ndarray) -> Assignment:
    """An answer to start from where centres have moved: to the means of their rows, or nearly.

    In the mean over its rows the square of the distance falls by that of the move, and so may the cluster's potential.
    """
    if fit.may_fill:  # most potentials are zero, whatever moves
        return before
    if fit.rows.n_rows * len(centres) > MOST_SCORES:  # plans of far more rows a cluster are found as quickly, or sooner
        return before
    nearer = np.square(centres - at, dtype=np.float64).sum(1)
    falls = nearer / 2 if fit.cosine else nearer
    potentials, plan_potentials = (as_array(each) - falls for each in (before.potentials, before.plan_potentials))
    return replace(before, potentials=potentials, plan_potentials=plan_potentials)


def _usual_gap(fit: Fit, centres: np.ndarray) -> float:
    """Of a few rows, by how much the best score is above the eighth best, in the median.

    Plans of an epsilon well below have few clusters for each row, so that lists of these are short; of one far below,
    they come to be as hard as the labels themselves.
    """
    some = fit.rows.few()
    scores = scores_of(Opened.of(ArraySource(some, "float64")), centres, fit.cosine).fine
    sorted_ones = np.sort(read_rows(scores, 0, len(some)), axis=1)
    return float(np.median(sorted_ones[:, -1] - sorted_ones[:, -min(GAP_CLUSTERS, len(centres))]))


def assigned(fit: Fit, centres: np.ndarray, seed: int, start: Any = None) -> Assignment:
    """The best labels for these centres. What `sinkhorn_assign` warns of concerns its plan, or is no surprise here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OtlabelWarning)
        return sinkhorn_assign(
            scores_of(fit.features, centres, fit.cosine),
            **fit.demand,
            epsilon=fit.epsilon,
            tol=PLAN_TOLERANCE,
            init=start,
            seed=seed,
            memory_limit=fit.memory_limit,
            group=fit.group,
        )


def scores_of(features: Opened | Features, centres: np.ndarray, cosine: bool) -> LinearScores:
    """-||x - mu_k||^2, or half of it, up to a constant in each row, which changes nothing."""
    return cosines(features, centres) if cosine else closeness(features, centres)


def inertia_of(squares: float, centres: np.ndarray, counts: np.ndarray, cosine: bool) -> float:
    """What a fit lowers: of squared distances to centres, their sum or half of it."""
    return (squares + float(missing(centres) @ counts)) / 2 if cosine else squares


def missing(vectors: np.ndarray) -> np.ndarray:
    """1 - ||v||^2 of vectors of length 1 or 0, (n,): what turns the square of a distance into 2 (1 - <x, mu>)."""
    return np.where(vectors.any(1), 0.0, 1.0)


def _unit(centres: np.ndarray) -> np.ndarray:
    """Directions; a centre at zero stays there."""
    lengths = np.linalg.norm(centres.astype(np.float64), axis=1, keepdims=True)
    return centres / np.where(lengths > 0, lengths, 1)


def centred_potentials(fit: Fit, found: Clustering) -> np.ndarray:
    """Potentials of the same labels, each in the middle of where it may be, so that `predict` gives labels back.

    Those that the repair ends with leave a row of each class tied with another class: they are on the border of all
    potentials whose argmax are these labels. Let room_jk be by how much class k may rise over class j until the first
    row of j would rather be in k. All potentials may move at once, each half of the way to the middle of its bounds at
    most, and still none is passed; only rows that are tied whatever the potentials remain so.
    """
    assignment, slack = found.assignment, fit.epsilon
    labels, g = as_array(assignment.labels), as_array(assignment.potentials)
    rows = fit.rows
    scores = scores_of(rows.opened, found.centres, fit.cosine)
    scores = scores.reading(scores.features, rows.n_rows)
    rows = RowSet(scores, rows.communicator, rows.first, rows.n_rows)
    room = fit.rows.min("room", sweep.nearest(rows, g, labels, slack))
    # Of clusters with bounds, only those at a bound have a potential.
    movable = np.isfinite(g) & ((g != 0) | (not fit.may_fill))
    moved = np.zeros(len(g))
    for _ in range(CENTRING_ROUNDS):
        middle = ((moved[:, None] + room).min(0) + (moved - room).max(1)) / 2
        moved = np.where(movable, (moved + middle) / 2, 0.0)
    return g + moved
