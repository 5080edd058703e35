"""Problems of several labels a sample, drawn from a seed, and what is right about an answer: by HiGHS, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from oracles import float64
from scipy.optimize import linprog

from otlabel import Assignment, Range

KINDS = ("normal", "ties", "equal rows", "class offsets", "float32", "row offsets")
RULES = ("equal", "counts", "range of counts", "range of shares")


@dataclass(frozen=True, eq=False)
class Several:
    """Scores, how many labels each sample takes, the arguments beside them, and the sizes that these allow."""

    scores: np.ndarray
    k: int
    lo: np.ndarray
    hi: np.ndarray
    arguments: dict[str, Any]


def draw(seed: int, most_rows: int = 60, most_classes: int = 12) -> Several:
    """N x K scores of some kind, fewer rows than classes among them, for which labels (N, k) most likely exist.

    Class masses are those of hidden labels, even or skewed; of a third of the problems two pairs in five are forbidden.
    """
    rng = np.random.default_rng([seed, 21])
    n_classes = int(rng.integers(1, most_classes + 1))
    k, n_rows = int(rng.integers(1, min(5, n_classes) + 1)), int(rng.integers(1, most_rows))
    scores = _scores(rng, KINDS[seed % len(KINDS)], n_rows, n_classes)
    shares = rng.dirichlet(np.full(n_classes, rng.choice([1.0, 10.0])))
    hidden = np.argsort(-(np.log(shares) + rng.gumbel(size=scores.shape)), 1)[:, :k]
    counts = np.bincount(hidden.ravel(), minlength=n_classes)
    rule = RULES[rng.integers(len(RULES))]
    if rng.random() < 0.35:
        shut = rng.random(scores.shape) < 0.4
        np.put_along_axis(shut, hidden, False, 1)
        scores[shut] = -np.inf
    if rule == "equal":
        floor, left = np.full(n_classes, k * n_rows // n_classes), k * n_rows % n_classes
        even = floor + (np.arange(n_classes) < left)
        if rng.random() < 0.5:
            return Several(scores, k, even, even, {"remainder": "first"})
        return Several(scores, k, floor, floor + bool(left), {})
    if rule == "counts":
        return Several(scores, k, counts, counts, {"class_mass": counts})
    if rule == "range of counts":
        lo = np.maximum(counts - rng.integers(0, 4, n_classes), 0)
        hi = np.minimum(counts + rng.integers(0, 4, n_classes), n_rows)
        return Several(scores, k, lo, hi, {"classes": Range(lo, hi)})
    most = np.full(n_classes, counts.max())
    return Several(scores, k, 0 * most, most, {"classes": Range(0.0, float(counts.max() / n_rows))})


def _scores(rng: np.random.Generator, kind: str, n_rows: int, n_classes: int) -> np.ndarray:
    scores = rng.standard_normal((n_rows, n_classes)) * 10.0 ** rng.integers(-2, 3)
    if kind == "ties":
        return rng.integers(-2, 3, scores.shape).astype(np.float64)
    if kind == "equal rows":
        return scores[rng.integers(0, max(1, n_rows // 4), n_rows)]
    if kind == "class offsets":
        return scores + 5 * rng.standard_normal(n_classes)
    if kind == "row offsets":
        return scores + 1e4 * rng.standard_normal((n_rows, 1))
    return scores.astype(np.float32) if kind == "float32" else scores


def best_total(scores: Any, k: int, lo: np.ndarray, hi: np.ndarray) -> float | None:
    """The optimum by HiGHS, the sum over all labels: k different classes a row, lo to hi rows a class.

    None: there is no assignment.
    """
    scores = float64(scores)
    rows, classes = np.nonzero(np.isfinite(scores))
    tops = np.where(np.isfinite(scores), scores, -np.inf).max(1)
    tops = np.where(np.isfinite(tops), tops, 0.0)
    here = np.arange(len(rows))
    of_rows = scipy.sparse.csr_array((np.ones(len(rows)), (rows, here)), (len(scores), len(rows)))
    of_classes = scipy.sparse.csr_array((np.ones(len(rows)), (classes, here)), (scores.shape[1], len(rows)))
    found = linprog(
        tops[rows] - scores[rows, classes],
        A_ub=scipy.sparse.vstack([of_classes, -of_classes]), b_ub=np.concatenate([hi, -lo]),
        A_eq=of_rows, b_eq=np.full(len(scores), k), bounds=(0, 1), method="highs",
    )  # fmt: skip
    return None if found.status == 2 else k * float(tops.sum()) - found.fun


def faults(drawn: Several, result: Assignment) -> list[str]:
    """What is wrong with an answer, nothing taken from it but labels, potentials and the numbers that it claims."""
    scores, k = float64(drawn.scores), drawn.k
    n_rows, n_classes = scores.shape
    labels = np.asarray(result.labels).reshape(n_rows, k)
    wrong = []
    if any(len(set(row)) < k for row in labels.tolist()):
        wrong.append("a class twice in a row")
    of_labels = np.take_along_axis(scores, labels, 1)
    falls = np.diff(of_labels, axis=1)
    if (falls > 0).any() or (np.diff(labels, axis=1)[falls == 0] < 0).any():
        wrong.append("a row is not in the order of its scores and classes")
    sizes = np.bincount(labels.ravel(), minlength=n_classes)
    if (sizes < drawn.lo).any() or (sizes > drawn.hi).any() or (sizes != np.asarray(result.counts)).any():
        wrong.append(f"sizes {sizes}")
    near = 1e-9 * k * max(np.abs(scores[np.isfinite(scores)]).max(), 1e-300)
    value = math.fsum(of_labels.ravel()) / n_rows
    best = best_total(scores, k, drawn.lo, drawn.hi)
    if best is None or abs(value - best / n_rows) > near:
        wrong.append(f"value {value} of {None if best is None else best / n_rows}")
    if abs(value - result.value) > 1e-3 * near:
        wrong.append(f"value is {value}, said to be {result.value}")
    bound = bound_at(drawn, float64(result.potentials))
    if abs(bound - result.bound) > near or abs(result.bound - result.value - result.gap) > near:
        wrong.append(f"bound is {bound}, said to be {result.bound}, the gap {result.gap}")
    if not result.proof.proven or result.gap < 0:
        wrong.append(f"gap {result.gap} of rounding {result.rounding}")
    return wrong


def bound_at(drawn: Several, potentials: np.ndarray) -> float:
    """mean_i (the k largest of s_ik + g_k) - sum_k (the size at which class k pays most) g_k / N."""
    used = (drawn.hi > 0) & np.isfinite(drawn.scores).any(0)
    g = np.where(used, potentials, 0.0)
    sums = np.sort(np.where(used, float64(drawn.scores) + g, -np.inf), 1)[:, ::-1][:, : drawn.k]
    return math.fsum([*sums.ravel(), *(-np.where(g > 0, drawn.lo, drawn.hi) * g)]) / len(drawn.scores)
