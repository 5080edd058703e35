"""Scores with labels that are allowed, the optimum of HiGHS under every rule, and what exact labels must hold."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse
from oracles import FLOAT64_EPS, float64
from problems import duplicates, normal, ties
from scipy.optimize import linprog
from scipy.special import kl_div

from otlabel import Assignment

SCORES = {
    "normal": normal,
    "peaked": lambda *a: 30.0 * normal(*a),
    "ties": ties,
    "two_values": lambda rng, n, k: rng.integers(0, 2, (n, k)).astype(np.float64),
    "duplicates": duplicates,
    "equal": lambda rng, n, k: np.full((n, k), 1.5),
    "dominant": lambda rng, n, k: normal(rng, n, k) + 20.0 * (np.arange(k) == rng.integers(k)),
    "negative": lambda rng, n, k: normal(rng, n, k) - 3.0,
    "float32": lambda *a: normal(*a).astype(np.float32),
    "float16": lambda *a: normal(*a).astype(np.float16),
    "forbidden": normal,
    "forbidden_ties": ties,
}


class Drawn(NamedTuple):
    """Scores, and labels that are allowed, -1 among them where samples are to stay unlabelled."""

    scores: np.ndarray
    hidden: np.ndarray


def drawn(kind: str, seed: int, share_unlabelled: float = 0.0) -> Drawn:
    rng = np.random.default_rng([seed, *kind.encode()])
    n_classes = int(rng.integers(1, 9))
    n_samples = int(rng.integers(2, 61))
    scores = SCORES[kind](rng, n_samples, n_classes)
    hidden = rng.choice(n_classes, n_samples, p=rng.dirichlet(np.full(n_classes, 0.7)))
    hidden[rng.permutation(n_samples)[: round(share_unlabelled * n_samples)]] = -1
    if kind.startswith("forbidden"):
        shut = rng.random(scores.shape) < 0.45
        labelled = np.flatnonzero(hidden >= 0)
        shut[labelled, hidden[labelled]] = False
        scores[shut] = -np.inf
    return Drawn(scores, hidden)


def sizes_of(labels, n_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    return np.bincount(labels[labels >= 0], minlength=n_classes)


def lp_best(scores, lo, hi, **settings) -> float:
    """The value of `lp_plan`."""
    return lp_plan(scores, lo, hi, **settings)[0]


def lp_plan(scores, lo, hi, *, units=None, unlabelled: float = 0, prices=None) -> tuple[float, np.ndarray]:
    """HiGHS: the largest sum of scores over plans with class masses between lo and hi, less prices; and that plan.

    `prices` (K, M) are those of the first, second, ... unit of each class; they rise, so that a linear program fills
    the places in their order. `unlabelled` units go to a class of score zero.
    """
    scores = float64(scores)
    n_samples, n_classes = scores.shape
    units = np.ones(n_samples) if units is None else np.asarray(units, dtype=np.float64)
    lo, hi = np.append(np.asarray(lo, float), unlabelled), np.append(np.asarray(hi, float), unlabelled)
    u = np.hstack([scores, np.zeros((n_samples, 1))])
    row, column = np.nonzero(np.isfinite(u))
    n_pairs = len(row)
    pairs = np.arange(n_pairs)
    row_sums = scipy.sparse.coo_array((np.ones(n_pairs), (row, pairs)), shape=(n_samples, n_pairs))
    class_sums = scipy.sparse.coo_array((np.ones(n_pairs), (column, pairs)), shape=(n_classes + 1, n_pairs))
    masses = -scipy.sparse.eye_array(n_classes + 1)
    blocks = [[row_sums, None], [class_sums, masses]]
    cost, low, high = [-u[row, column], np.zeros(n_classes + 1)], [np.zeros(n_pairs), lo], [units[row], hi]
    right = [units, np.zeros(n_classes + 1)]
    if prices is not None:
        n_places = prices.shape[1]
        filled = scipy.sparse.hstack([scipy.sparse.eye_array(n_classes), scipy.sparse.csr_array((n_classes, 1))])
        places = -scipy.sparse.kron(scipy.sparse.eye_array(n_classes), np.ones((1, n_places)))
        blocks = [[row_sums, None, None], [class_sums, masses, None], [None, filled, places]]
        cost.append(prices.ravel())
        low.append(np.zeros(prices.size))
        high.append(np.ones(prices.size))
        right.append(np.zeros(n_classes))
    costs = np.concatenate(cost)
    unit = max(np.abs(costs).max(), 1e-300)  # HiGHS' tolerances are absolute
    solved = linprog(
        costs / unit,
        A_eq=scipy.sparse.block_array(blocks, format="csr"),
        b_eq=np.concatenate(right),
        bounds=np.stack([np.concatenate(low), np.concatenate(high)], 1),
        method="highs",
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    assert solved.success, solved.message
    plan = np.zeros(u.shape)
    plan[row, column] = solved.x[:n_pairs]
    return -math.fsum((costs * solved.x).tolist()), plan


def room_for(scores, *vectors) -> float:
    """What 1e-8 of a typical score and float64's rounding of scores and potentials leave uncertain."""
    numbers = np.concatenate([float64(scores).ravel(), *(np.atleast_1d(float64(v)) for v in vectors)])
    return (1e-8 + 64 * FLOAT64_EPS) * float(np.abs(numbers[np.isfinite(numbers)]).max(initial=1e-9))


def worth(scores, labels) -> float:
    """The sum of the labels' scores; zero for a sample left unlabelled."""
    labels = np.asarray(labels)
    labelled = np.flatnonzero(labels >= 0)
    return math.fsum(float64(scores)[labelled, labels[labelled]].tolist())


def assert_proven(result: Assignment, scores, lo, hi, unlabelled: int = 0) -> None:
    """Bounds met, potentials that obey the signs of a dual solution, and no gap once all of it is recomputed."""
    labels, g, lo, hi = np.asarray(result.labels), float64(result.potentials), np.asarray(lo), np.asarray(hi)
    n_samples, n_classes = scores.shape
    sizes = sizes_of(labels, n_classes)
    room = room_for(scores, g) / 1e4  # that is a few units in the last place of potentials: a proof, not a comparison
    np.testing.assert_array_equal(result.counts, sizes)
    assert (labels == -1).sum() == unlabelled
    assert (lo <= sizes).all()
    assert (sizes <= hi).all()
    threshold = result.threshold if unlabelled else -np.inf
    best = np.maximum((float64(scores) + g).max(1), threshold)
    taken = np.where(g > 0, lo, hi)
    used = (taken > 0) & (g != 0)
    charge = math.fsum((g[used] * taken[used]).tolist()) + (threshold * unlabelled if unlabelled else 0.0)
    bound = (math.fsum(best.tolist()) - charge) / n_samples
    value = worth(scores, labels) / n_samples
    assert abs(bound - value) <= room
    assert abs(result.value - value) <= room
    assert abs(result.bound - bound) <= room
    assert result.gap == pytest.approx(result.bound - result.value, abs=room)
    np.testing.assert_allclose(result.label_mass, sizes / n_samples, rtol=0, atol=1e-15)


def assert_zero_unless_bound(result: Assignment, lo, hi) -> None:
    """A class inside of its range has a potential of exactly zero, others the sign of the limit that binds."""
    g, sizes = float64(result.potentials), np.asarray(result.counts)
    room = 1e-12 * max(1.0, float(np.abs(g[np.isfinite(g)]).max(initial=0.0)))
    assert (np.abs(g[(sizes > lo) & (sizes < hi)]) <= room).all()
    assert (g[(sizes == lo) & (sizes < hi)] >= -room).all()
    assert (g[(sizes == hi) & (sizes > lo)] <= room).all()


def assert_labels_follow(result: Assignment, scores) -> None:
    """Every label is the best of scores + potentials, and what is unlabelled below the threshold, ties aside."""
    labels, g = np.asarray(result.labels), float64(result.potentials)
    u = np.hstack([float64(scores) + g, np.full((len(labels), 1), result.threshold)])
    own, predicted = u[np.arange(len(u)), labels], np.asarray(result.predict(scores))
    room = room_for(scores, g) / 1e4
    assert (own >= u.max(1) - room).all()
    assert (u[np.arange(len(u)), predicted] >= u.max(1) - room).all()
    ordered = np.sort(u, axis=1)
    clear = ordered[:, -1] > ordered[:, -2] + room
    np.testing.assert_array_equal(predicted[clear], labels[clear])


def drawn_bounds(rng: np.random.Generator, hidden_sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that the hidden sizes meet: some exact, some that close a class, some wide."""
    n_classes, n_samples = len(hidden_sizes), int(hidden_sizes.sum())
    lo = np.maximum(hidden_sizes - rng.integers(0, 6, n_classes), 0)
    hi = hidden_sizes + rng.integers(0, 6, n_classes)
    exact, wide = rng.random(n_classes) < 0.2, rng.random(n_classes) < 0.15
    lo, hi = np.where(exact, hidden_sizes, lo), np.where(exact, hidden_sizes, hi)
    lo, hi = np.where(wide, 0, lo), np.where(wide, n_samples, hi)
    return lo, np.where((hidden_sizes == 0) & (rng.random(n_classes) < 0.5), 0, hi)


def kl_charge(sizes, n_samples: int, mass, rho: float) -> float:
    """rho KL(sizes / N | b) of SciPy, in total over samples."""
    return n_samples * rho * math.fsum(kl_div(np.asarray(sizes) / n_samples, mass).tolist())


def kl_prices(n_samples: int, mass, rho: float) -> np.ndarray:
    """What the first, second, ... sample of each class costs (K, N)."""
    charges = n_samples * rho * kl_div(np.arange(n_samples + 1)[None, :] / n_samples, np.asarray(mass)[:, None])
    return np.diff(charges, axis=1)
