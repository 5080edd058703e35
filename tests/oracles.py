"""Answers that owe nothing to otlabel: POT, HiGHS, the Hungarian method, and the formulas in plain float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import log_softmax, logsumexp

FLOAT64_EPS = float(np.finfo(np.float64).eps)


def pot() -> Any:
    """The package POT; without it, as on machines that are there for their card, the test is skipped."""
    return pytest.importorskip("ot")


def float64(scores) -> np.ndarray:
    """The stored scores as float64 numbers, whatever array type holds them (bfloat16 included)."""
    if hasattr(scores, "detach"):
        return scores.detach().cpu().double().numpy()
    return np.asarray(scores, dtype=np.float64)


def losses(scores) -> np.ndarray:
    """How much worse each class is than the row's best (N, K); the same optimum, without the row offsets."""
    scores = float64(scores)
    return scores.max(1, keepdims=True) - scores


def loss_of(scores, labels) -> float:
    """The mean loss of the labels against free choice, summed without rounding."""
    rows = losses(scores)
    return math.fsum(rows[np.arange(len(rows)), np.asarray(labels)]) / len(rows)


def value_of(scores, labels) -> float:
    """The mean score of the labels, summed without rounding."""
    scores = float64(scores)
    return math.fsum(scores[np.arange(len(scores)), np.asarray(labels)]) / len(scores)


def tolerance(scores, loss: float) -> float:
    """1e-9 of the loss or of a typical row's range, whichever is larger, and what float64 itself leaves uncertain."""
    scores, rows = float64(scores), losses(scores)
    finite = np.where(np.isfinite(rows), rows, 0.0)
    largest = np.abs(scores[np.isfinite(scores)]).max()
    return 1e-9 * max(loss, float(np.median(finite.max(1)))) + 16 * FLOAT64_EPS * float(largest)


def round_shares(n_samples: int, shares) -> np.ndarray:
    """Largest remainder in exact arithmetic; ties to the lower class."""
    exact = [n_samples * Fraction(float(share)) for share in shares]
    counts = [math.floor(mass) for mass in exact]
    by_remainder = sorted(range(len(counts)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: n_samples - sum(counts)]:
        counts[k] += 1
    return np.array(counts, dtype=np.int64)


def even_counts(n_samples: int, n_classes: int) -> np.ndarray:
    """N samples over K classes as evenly as can be; the first N mod K classes hold one more."""
    return np.array([n_samples // n_classes + (k < n_samples % n_classes) for k in range(n_classes)], dtype=np.int64)


def hungarian_labels(scores, counts) -> np.ndarray:
    """The best labels of the given class sizes: each class repeated as often as it has places."""
    places = np.repeat(np.arange(len(counts)), counts)
    rows, columns = linear_sum_assignment(losses(scores)[:, places])
    labels = np.empty(len(places), dtype=np.int64)
    labels[rows] = places[columns]
    return labels


def _plan_loss(plan: np.ndarray, rows: np.ndarray) -> float:
    """The mean loss of an integer plan (a vertex of the transport polytope)."""
    whole = np.rint(plan)
    assert np.abs(plan - whole).max() < 1e-6, "the oracle's plan is no vertex"
    chosen = whole > 0
    return math.fsum((whole[chosen] * rows[chosen]).tolist()) / len(rows)


def emd_loss(scores, counts) -> float:
    """POT's network simplex; forbidden pairs at a prohibitive cost."""
    rows = losses(scores)
    finite = rows[np.isfinite(rows)]
    cost = np.where(np.isfinite(rows), rows, 10 * len(rows) * (finite.max() + 1.0))
    plan = pot().emd(np.ones(len(rows)), np.asarray(counts, dtype=np.float64), cost, numItermax=10_000_000)
    return _plan_loss(plan, rows)


def highs_loss(scores, counts) -> float:
    """SciPy's HiGHS (dual simplex) on the linear program itself."""
    rows = losses(scores)
    n_samples, n_classes = rows.shape
    row_sums = scipy.sparse.kron(scipy.sparse.eye_array(n_samples), np.ones((1, n_classes)))
    class_sums = scipy.sparse.kron(np.ones((1, n_samples)), scipy.sparse.eye_array(n_classes))
    allowed = np.isfinite(rows).ravel()
    cost = np.where(allowed, rows.ravel(), 0.0)
    unit = np.median(cost[cost > 0]) if cost.any() else 1.0  # HiGHS' tolerances are absolute
    solved = linprog(
        cost / unit,
        A_eq=scipy.sparse.vstack([row_sums, class_sums]),
        b_eq=np.concatenate([np.ones(n_samples), counts]),
        bounds=np.stack([np.zeros(allowed.size), allowed], axis=1),
        method="highs-ds",
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    assert solved.success, solved.message
    return _plan_loss(solved.x.reshape(rows.shape), rows)


@dataclass(frozen=True)
class Proof:
    """The linear certificate, recomputed: `bound` holds for every assignment of the labels' class sizes."""

    value: float
    bound: float

    @property
    def gap(self) -> float:
        return self.bound - self.value


def prove(scores, labels, potentials) -> Proof:
    """Weak duality in float64: mean_i max_k (s_ik + g_k) - <counts / N, g> bounds the value from above."""
    scores, potentials, labels = float64(scores), float64(potentials), np.asarray(labels)
    counts = np.bincount(labels, minlength=scores.shape[1])
    used = counts > 0
    best = math.fsum((scores + potentials).max(1)) / len(scores)
    charge = math.fsum(counts[used] * potentials[used]) / len(scores)
    return Proof(value_of(scores, labels), best - charge)


def entropic_plan(scores, potentials, epsilon: float) -> np.ndarray:
    """Q_ik = 1/N softmax_k((s_ik + g_k) / epsilon)."""
    scores = float64(scores)
    return np.exp(log_softmax((scores + float64(potentials)) / epsilon, axis=1)) / len(scores)


def semidual(scores, potentials, epsilon: float, class_mass) -> float:
    """F(g) of the design, in float64."""
    soft_max = epsilon * logsumexp((float64(scores) + float64(potentials)) / epsilon, axis=1)
    return math.fsum(soft_max) / len(soft_max) - math.fsum(np.asarray(class_mass) * float64(potentials))


def sela_loop(log_probabilities, lam: float = 25.0, max_error: float = 1e-13, max_iterations: int = 20_000):
    """SeLa's own fixed-point loop on softmax ** lam: class scaling (K,), sample scaling (N,), and its labels.

    Asano et al., "Self-labelling via simultaneous clustering and representation learning": written from the
    description of their float64 loop; it divides by sums that reach zero when no sample wants a class.
    """
    powers = np.exp(float64(log_probabilities)) ** lam  # (N, K)
    n_samples, n_classes = powers.shape
    samples = np.full(n_samples, 1.0 / n_samples)
    for iteration in range(max_iterations):
        classes = (1.0 / n_classes) / (samples @ powers)
        renewed = (1.0 / n_samples) / (powers @ classes)
        error = np.abs(samples / renewed - 1.0).sum()
        samples = renewed
        if iteration % 10 == 0 and not error > max_error * n_samples:
            break
    return classes, samples, (powers * classes).argmax(1)


def can_gain(scores: np.ndarray, labels: np.ndarray) -> Fraction:
    """0 if labels are optimal for their sizes: no cycle of moves between classes gains. Else more, yet not how much.

    In exact numbers, without potentials, by the method of Bellman and Ford.
    """
    n_classes = scores.shape[1]
    least: dict[tuple[int, int], Fraction] = {}  # what moving one sample from a class to another costs
    for row, own in zip(scores, labels, strict=True):
        for other in range(n_classes):
            if other != own and row[other] > -np.inf:
                cost = Fraction(row[own]) - Fraction(row[other])
                least[own, other] = min(cost, least.get((own, other), cost))
    distance = [Fraction(0)] * n_classes
    for _ in range(n_classes):
        for (j, k), cost in least.items():
            distance[k] = min(distance[k], distance[j] + cost)
    return -min([distance[j] + cost - distance[k] for (j, k), cost in least.items()] + [Fraction(0)])


def assert_proven(result, scores, counts) -> None:
    """Exact sizes, a proof recomputed in float64 with no gap left, and the reported figures equal to it."""
    labels, potentials = np.asarray(result.labels), float64(result.potentials)
    rounding = 16 * FLOAT64_EPS * np.abs(potentials[np.isfinite(potentials)]).max()
    room = tolerance(scores, loss_of(scores, labels)) + float(rounding)
    np.testing.assert_array_equal(np.bincount(labels, minlength=len(counts)), counts)
    np.testing.assert_array_equal(np.asarray(result.counts), counts)
    proof = prove(scores, labels, potentials)
    assert -room <= proof.gap <= room
    assert abs(result.value - proof.value) <= room
    assert abs(result.bound - proof.bound) <= room
    assert abs(result.gap - (result.bound - result.value)) <= room
