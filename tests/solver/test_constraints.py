"""Exact labels under every rule on masses: the optimum of the linear program, bounds met exactly, and a proof."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import FLOAT64_EPS, even_counts, float64, round_shares
from problems import duplicates, normal, ties
from scipy.optimize import linprog
from scipy.special import kl_div

from otlabel import KL, Assignment, Exact, Range, certify, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

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


@pytest.mark.parametrize("form", ["sizes", "shares", "lists", "scalar_lo", "scalar_hi"])
@pytest.mark.parametrize("kind", SCORES)
def test_range_is_the_optimum_of_highs(kind: str, form: str, there) -> None:
    for seed in range(5):
        scores, hidden = drawn(kind, seed)
        n_samples, n_classes = scores.shape
        lo, hi = drawn_bounds(np.random.default_rng([seed, len(form)]), sizes_of(hidden, n_classes))
        given_lo: Any = lo
        given_hi: Any = hi
        if form == "scalar_lo":
            lo = np.full(n_classes, lo.min())
            given_lo = int(lo[0])
        elif form == "scalar_hi":
            hi = np.full(n_classes, hi.max())
            given_hi = int(hi[0])
        elif form == "shares":
            given_lo, given_hi = lo / n_samples, np.minimum(hi / n_samples, 1.0)
        elif form == "lists":
            given_lo, given_hi = lo.tolist(), torch.from_numpy(hi)
        result = there(sinkhorn_assign, scores, classes=Range(given_lo, given_hi))
        best = lp_best(scores, lo, hi)
        assert abs(worth(scores, result.labels) - best) <= n_samples * room_for(scores)
        assert_proven(result, scores, lo, hi)
        assert_labels_follow(result, scores)
        if (lo < hi).any():
            assert_zero_unless_bound(result, lo, hi)


@pytest.mark.parametrize("seed", range(3))
def test_range_of_middle_sizes(seed: int, there) -> None:
    rng = np.random.default_rng(seed)
    scores = (2.0 * normal(rng, 1200, 20) + 2.0 * normal(rng, 1, 20)).astype(np.float32)
    result = there(sinkhorn_assign, scores, classes=Range(0.03, 0.08))
    lo, hi = np.full(20, 36), np.full(20, 96)
    assert abs(worth(scores, result.labels) - lp_best(scores, lo, hi)) <= 1200 * room_for(scores)
    assert_proven(result, scores, lo, hi)
    assert_zero_unless_bound(result, lo, hi)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0, 10**6), (0.0, 3000), (0.0, np.inf), (None, None)])
def test_range_without_limits_is_the_best_class(bounds: tuple) -> None:
    scores = normal(np.random.default_rng(0), 3000, 7)
    result = sinkhorn_assign(scores, classes=Range() if bounds[0] is None else Range(*bounds))
    np.testing.assert_array_equal(result.labels, scores.argmax(1))
    assert result.potentials.tolist() == [0.0] * 7
    assert result.gap == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "forbidden", "float16"])
def test_range_from_b_to_b_is_exact(kind: str) -> None:
    for seed in range(4):
        scores, hidden = drawn(kind, seed)
        sizes = sizes_of(hidden, scores.shape[1])
        exact = sinkhorn_assign(scores, class_mass=sizes)
        ranged = sinkhorn_assign(scores, classes=Range(sizes, sizes))
        np.testing.assert_array_equal(ranged.counts, sizes)
        assert worth(scores, ranged.labels) == pytest.approx(worth(scores, exact.labels), rel=1e-12, abs=1e-12)


def test_range_of_shares_between_whole_sizes_is_rounded_inwards() -> None:
    """Of 10 samples, shares from 0.11 to 0.49 leave 2 to 4; equal shares of a third follow the largest remainder."""
    scores = normal(np.random.default_rng(1), 10, 3) + np.array([9.0, 0.0, -9.0])
    result = sinkhorn_assign(scores, classes=Range(0.11, 0.49))
    assert result.counts.tolist() == [4, 4, 2]
    assert sinkhorn_assign(scores, classes=Range(1 / 3, 1 / 3)).counts.tolist() == [4, 3, 3]
    with pytest.raises(InfeasibleError, match="class 0"):
        sinkhorn_assign(scores, classes=Range(0.31, 0.39))


@pytest.mark.parametrize("share", [0.05, 0.26, 0.5, 0.9])
@pytest.mark.parametrize("kind", SCORES)
def test_abstaining_is_the_optimum_of_highs(kind: str, share: float, there) -> None:
    """As many stay unlabelled as the share says, the others balanced, and no other choice of them is better."""
    for seed in range(3):
        scores, hidden = drawn(kind, seed, share)
        n_samples, n_classes = scores.shape
        unlabelled = round(share * n_samples)
        given_mass = sizes_of(hidden, n_classes) / max(n_samples - unlabelled, 1)
        if not given_mass.any() or not 0 < unlabelled < n_samples:
            continue
        sizes = sizes_of(hidden, n_classes)
        result = there(sinkhorn_assign, scores, class_mass=given_mass, abstain=share)
        best = lp_best(scores, sizes, sizes, unlabelled=unlabelled)
        np.testing.assert_array_equal(result.counts, sizes)
        assert abs(worth(scores, result.labels) - best) <= n_samples * room_for(scores)
        assert_proven(result, scores, sizes, sizes, unlabelled)
        assert_labels_follow(result, scores)
        assert (np.asarray(result.labels)[np.isneginf(float64(scores)).all(1)] == -1).all()


@pytest.mark.parametrize("share", [0.1, 0.24, 0.26, 1 / 3, 0.77])
@pytest.mark.parametrize("n_samples", [7, 10, 11, 53, 100])
def test_sizes_of_those_who_are_labelled(n_samples: int, share: float) -> None:
    """The unlabelled are rounded first; the rest is shared out by the largest remainder."""
    unlabelled = round(share * n_samples)
    scores = normal(np.random.default_rng(n_samples), n_samples, 4)
    even = sinkhorn_assign(scores, abstain=share)
    np.testing.assert_array_equal(even.counts, even_counts(n_samples - unlabelled, 4))
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    skewed = sinkhorn_assign(scores, class_mass=shares, abstain=share)
    np.testing.assert_array_equal(skewed.counts, round_shares(n_samples - unlabelled, shares))
    ranged = sinkhorn_assign(scores, classes=Range(0.0, 1.0), abstain=share)
    assert (ranged.labels == -1).sum() == unlabelled
    soft = sinkhorn_assign(scores, classes=KL(1.0), abstain=share)
    assert (soft.labels == -1).sum() == unlabelled


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("kind", SCORES)
def test_abstaining_within_ranges(kind: str, share: float, there) -> None:
    for seed in range(4):
        scores, hidden = drawn(kind, seed, share)
        n_samples, n_classes = scores.shape
        unlabelled = int((hidden < 0).sum())
        lo, hi = drawn_bounds(np.random.default_rng(seed), sizes_of(hidden, n_classes))
        if not unlabelled or unlabelled == n_samples:
            continue
        result = there(sinkhorn_assign, scores, classes=Range(lo, hi), abstain=share)
        best = lp_best(scores, lo, hi, unlabelled=unlabelled)
        assert abs(worth(scores, result.labels) - best) <= n_samples * room_for(scores)
        assert_proven(result, scores, lo, hi, unlabelled)
        assert_labels_follow(result, scores)


def test_abstaining_without_limits_leaves_out_the_lowest_best_scores(there) -> None:
    scores = normal(np.random.default_rng(2), 500, 6)
    result = there(sinkhorn_assign, scores, classes=Range(), abstain=0.2)
    worst = np.argsort(scores.max(1))[:100]
    assert set(np.flatnonzero(result.labels < 0)) == set(worst)
    kept = result.labels >= 0
    np.testing.assert_array_equal(result.labels[kept], scores[kept].argmax(1))
    cut = np.sort(scores.max(1))[99:101]
    assert cut[0] <= result.threshold <= cut[1]


def test_wholly_forbidden_rows_are_left_unlabelled(there) -> None:
    scores = normal(np.random.default_rng(3), 60, 5)
    closed = [3, 17, 41]
    scores[closed] = -np.inf
    result = there(sinkhorn_assign, scores, abstain=0.1)
    assert (result.labels[closed] == -1).all()
    assert (result.labels == -1).sum() == 6
    assert abs(worth(scores, result.labels) - lp_best(scores, *[even_counts(54, 5)] * 2, unlabelled=6)) <= 1e-7
    with pytest.raises(InfeasibleError, match=r"row|3 "):
        there(sinkhorn_assign, scores, abstain=2 / 60)


@pytest.mark.parametrize("seed", range(6))
def test_certify_labels_with_unlabelled_samples(seed: int, there) -> None:
    rng = np.random.default_rng(seed)
    scores = normal(rng, 40, 4)
    result = there(sinkhorn_assign, scores, abstain=0.3)
    for potentials in (None, result.potentials):
        proof = there(certify, scores, result.labels, potentials=potentials)
        assert proof.gap == pytest.approx(0.0, abs=1e-12)
        assert proof.value == pytest.approx(result.value, abs=1e-15)
        np.testing.assert_array_equal(proof.counts, result.counts)
    worse = result.labels.copy()
    kept, left = np.flatnonzero(worse >= 0)[0], np.flatnonzero(worse < 0)[0]
    worse[[kept, left]] = worse[[left, kept]]
    best = lp_best(scores, *[result.counts] * 2, unlabelled=12) / 40
    assert there(certify, scores, worse).bound == pytest.approx(best, abs=1e-12)
    assert there(certify, scores, worse, potentials=rng.normal(size=4)).bound >= best - 1e-12
    assert there(certify, scores, worse).gap == pytest.approx(best - worth(scores, worse) / 40, abs=1e-12)


def test_unlabelled_samples_survive_save_and_load(tmp_path) -> None:
    scores = normal(np.random.default_rng(4), 80, 4)
    result = sinkhorn_assign(scores, abstain=0.25, samples=KL(2.0), rounding="argmax")
    for number, answer in enumerate((sinkhorn_assign(scores, abstain=0.25), result)):
        answer.save(tmp_path / f"{number}.npz")
        loaded = Assignment.load(tmp_path / f"{number}.npz")
        np.testing.assert_array_equal(loaded.labels, answer.labels)
        np.testing.assert_array_equal(loaded.label_mass, answer.label_mass)
        np.testing.assert_array_equal(loaded.predict(scores), answer.predict(scores))
        np.testing.assert_array_equal(loaded.plan(scores), answer.plan(scores))
        figures = ("threshold", "plan_threshold", "sample_rho", "value", "bound")
        assert [getattr(loaded, name) for name in figures] == [getattr(answer, name) for name in figures]


def test_summary_counts_the_unlabelled() -> None:
    assert "25 left unlabelled" in sinkhorn_assign(normal(np.random.default_rng(4), 100, 4), abstain=0.25).summary()


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "float32", "forbidden"])
def test_defaults_spelled_out_change_no_bit(kind: str) -> None:
    scores, hidden = drawn(kind, 5)
    n_samples, n_classes = scores.shape
    mass = sizes_of(hidden, n_classes)
    plain = sinkhorn_assign(scores, class_mass=mass)
    spelled = dict(abstain=0.0, classes=Exact(), samples=Exact())
    for weights in (None, np.full(n_samples, 1 / n_samples), np.ones(n_samples, np.int64), np.full(n_samples, 7)):
        other = sinkhorn_assign(scores, class_mass=mass, sample_mass=weights, **spelled)
        for name in ("labels", "counts", "class_mass", "potentials", "plan_potentials", "label_mass"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name), strict=True)
        assert (other.value, other.bound, other.n_sweeps) == (plain.value, plain.bound, plain.n_sweeps)


def kl_charge(sizes, n_samples: int, mass, rho: float) -> float:
    """rho KL(sizes / N | b) of SciPy, in total over samples."""
    return n_samples * rho * math.fsum(kl_div(np.asarray(sizes) / n_samples, mass).tolist())


def kl_prices(n_samples: int, mass, rho: float) -> np.ndarray:
    """What the first, second, ... sample of each class costs (K, N)."""
    charges = n_samples * rho * kl_div(np.arange(n_samples + 1)[None, :] / n_samples, np.asarray(mass)[:, None])
    return np.diff(charges, axis=1)


@pytest.mark.parametrize("rho", [0.01, 0.3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "duplicates", "dominant", "float16", "forbidden"])
def test_kl_against_every_labelling(kind: str, rho: float, there) -> None:
    for seed in range(4):
        rng = np.random.default_rng([seed, *kind.encode()])
        n_samples, n_classes = int(rng.integers(1, 7)), int(rng.integers(2, 4))
        scores = SCORES[kind](rng, n_samples, n_classes)
        if kind == "forbidden":
            shut = rng.random(scores.shape) < 0.4
            shut[np.arange(n_samples), rng.integers(0, n_classes, n_samples)] = False
            scores[shut] = -np.inf
        mass = rng.dirichlet(np.ones(n_classes))
        rows = float64(scores)
        best = max(
            sum(rows[i, k] for i, k in enumerate(labels))
            - kl_charge(np.bincount(labels, minlength=n_classes), n_samples, mass, rho)
            for labels in itertools.product(range(n_classes), repeat=n_samples)
        )
        result = there(sinkhorn_assign, scores, class_mass=mass, classes=KL(rho))
        ours = worth(scores, result.labels) - kl_charge(result.counts, n_samples, mass, rho)
        room = n_samples * (room_for(scores) + 1e-13 * rho)
        assert ours == pytest.approx(best, abs=room)
        assert abs(result.gap) <= room / n_samples


@pytest.mark.parametrize("abstain", [0.0, 0.3])
@pytest.mark.parametrize("rho", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "dominant", "float32", "forbidden", "forbidden_ties"])
def test_kl_is_the_optimum_of_highs(kind: str, rho: float, abstain: float, there) -> None:
    """The charge is convex, so that a linear program with a column for each place of a class has the same optimum."""
    for seed in range(3):
        scores, _ = drawn(kind, seed, 0.0)
        n_samples, n_classes = scores.shape
        unlabelled = round(abstain * n_samples)
        mass = np.random.default_rng(seed).dirichlet(np.full(n_classes, 2.0))
        asked = mass * (1 - abstain)
        result = there(sinkhorn_assign, scores, class_mass=mass, classes=KL(rho), abstain=abstain)
        prices = kl_prices(n_samples, asked, rho)
        none = n_samples * rho * asked.sum()  # the charge of empty classes, from which prices count
        best = lp_best(scores, np.zeros(n_classes), np.full(n_classes, n_samples), unlabelled=unlabelled, prices=prices)
        ours = worth(scores, result.labels) - kl_charge(result.counts, n_samples, asked, rho)
        room = n_samples * (room_for(scores, result.potentials) + 1e-11 * rho)
        assert ours == pytest.approx(best - none, abs=room)
        assert abs(result.gap) <= 1e-4 * room / n_samples + 1e-13 * rho
        assert (np.asarray(result.labels) < 0).sum() == unlabelled
        assert_labels_follow(result, scores)


def test_kl_between_free_choice_and_exact_masses() -> None:
    """At a tiny price every class takes what it likes, at a huge one its mass; in between the sizes move over."""
    scores = normal(np.random.default_rng(6), 400, 5) + np.array([1.0, 0.5, 0.0, -0.5, -1.0])
    free = sinkhorn_assign(scores, classes=KL(1e-9))
    np.testing.assert_array_equal(free.labels, scores.argmax(1))
    exact, dear = sinkhorn_assign(scores), sinkhorn_assign(scores, classes=KL(1e7))
    np.testing.assert_array_equal(dear.counts, exact.counts)
    assert worth(scores, dear.labels) == pytest.approx(worth(scores, exact.labels), rel=1e-12)
    far = [np.abs(sinkhorn_assign(scores, classes=KL(rho)).counts - 80).sum() for rho in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert far == sorted(far, reverse=True)
    assert far[0] > 2 * far[2] > 0


def test_kl_leaves_a_class_without_mass_empty() -> None:
    scores = normal(np.random.default_rng(7), 50, 4) + np.array([9.0, 0.0, 0.0, 0.0])
    result = sinkhorn_assign(scores, class_mass=[0.0, 0.5, 0.25, 0.25], classes=KL(0.1))
    assert result.counts[0] == 0
    assert result.gap == pytest.approx(0.0, abs=1e-12)


def test_class_that_no_sample_may_take_is_left_out_of_soft_and_ranged_rules() -> None:
    scores = normal(np.random.default_rng(7), 50, 4)
    scores[:, 1] = -np.inf
    prices = kl_prices(50, np.full(4, 0.25), 0.4)
    soft = sinkhorn_assign(scores, classes=KL(0.4))
    best = lp_best(scores, np.zeros(4), np.full(4, 50), prices=prices) - 50 * 0.4
    assert worth(scores, soft.labels) - kl_charge(soft.counts, 50, 0.25, 0.4) == pytest.approx(best, abs=1e-8)
    ranged = sinkhorn_assign(scores, classes=Range(0.0, 0.4))
    assert worth(scores, ranged.labels) == pytest.approx(lp_best(scores, np.zeros(4), [20, 0, 20, 20]), abs=1e-8)
    for result in (soft, ranged):
        assert result.counts[1] == 0
        assert result.gap == pytest.approx(0.0, abs=1e-12)


def test_class_mass_of_zero_closes_a_class_of_a_range() -> None:
    scores = normal(np.random.default_rng(7), 50, 3)
    result = sinkhorn_assign(scores, class_mass=[0.0, 0.5, 0.5], classes=Range(0.0, 1.0))
    np.testing.assert_array_equal(result.labels, 1 + scores[:, 1:].argmax(1))
    assert result.gap == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(InvalidMassError, match=r"lo is 0\.1 for class 0, whose class_mass is 0"):
        sinkhorn_assign(scores, class_mass=[0.0, 0.5, 0.5], classes=Range(0.1, 1.0))


def test_shares_that_round_to_none_or_all() -> None:
    scores = normal(np.random.default_rng(9), 20, 4)
    plain, rounded = sinkhorn_assign(scores), sinkhorn_assign(scores, abstain=0.01)
    np.testing.assert_array_equal(rounded.labels, plain.labels)
    assert rounded.threshold == plain.threshold == -np.inf
    with pytest.raises(ValueError, match="none of the 20 samples"):
        sinkhorn_assign(scores, abstain=0.99)
    assert (sinkhorn_assign(scores, abstain=0.95).labels >= 0).sum() == 1


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "float32", "forbidden"])
def test_whole_sample_masses_are_repeated_rows(kind: str, there) -> None:
    """The bound is the optimum of the program on repeated rows; labels are off by what the split samples cost."""
    for seed in range(6):
        scores, hidden = drawn(kind, seed)
        rng = np.random.default_rng(seed)
        n_samples, n_classes = scores.shape
        times = rng.integers(0, 5, n_samples)
        times[0] += 1
        sizes = np.bincount(hidden, times, n_classes)
        total = int(times.sum())
        result = there(sinkhorn_assign, scores, sample_mass=times, class_mass=sizes / total)
        best = lp_best(np.repeat(scores, times, axis=0), sizes, sizes)
        assert result.bound * total == pytest.approx(best, abs=total * room_for(scores, result.potentials))
        assert_near_the_bound(result, scores, times / total, sizes / total, best / total)


def assert_near_the_bound(result: Assignment, scores, weights, mass, best: float) -> None:
    """At most K - 1 samples are split; they cost no more than their masses times how far their scores lie apart."""
    n_classes = len(mass)
    labels = np.asarray(result.labels)
    label_mass = np.bincount(labels, weights, n_classes)
    rows = float64(scores)
    spread = np.where(np.isfinite(rows), rows, -np.inf).max(1) - np.where(np.isfinite(rows), rows, np.inf).min(1)
    np.testing.assert_allclose(result.label_mass, label_mass, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(result.counts, np.bincount(labels, minlength=n_classes))
    heaviest, dearest = np.sort(weights)[::-1], np.sort(weights * spread)[::-1]
    assert np.abs(label_mass - mass).sum() <= 2 * heaviest[: n_classes - 1].sum() + 1e-11
    value = float((weights * rows[np.arange(len(rows)), labels]).sum())
    room = room_for(scores, result.potentials)
    assert value >= best - dearest[: n_classes - 1].sum() - room
    assert result.value == pytest.approx(value, abs=room)


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "float32", "float16", "forbidden"])
def test_real_sample_masses_against_highs(kind: str, there) -> None:
    for seed in range(6):
        scores, hidden = drawn(kind, seed)
        rng = np.random.default_rng(seed)
        n_samples, n_classes = scores.shape
        weights = rng.dirichlet(np.full(n_samples, 0.5))
        mass = np.bincount(hidden, weights, n_classes)
        result = there(sinkhorn_assign, scores, sample_mass=weights, class_mass=mass)
        best = lp_best(scores, mass, mass, units=weights)
        assert result.bound == pytest.approx(best, abs=room_for(scores, result.potentials))
        assert_near_the_bound(result, scores, weights, mass, best)


@pytest.mark.parametrize("seed", range(6))
def test_split_samples_go_where_most_of_them_went(seed: int, there) -> None:
    """Scores in general position: the linear program has one plan, and labels are its largest entries."""
    rng = np.random.default_rng(seed)
    scores, weights = normal(rng, 40, 6), rng.dirichlet(np.full(40, 0.7))
    result = there(sinkhorn_assign, scores, sample_mass=weights)
    _, plan = lp_plan(scores, np.full(6, 1 / 6), np.full(6, 1 / 6), units=weights)
    assert ((plan[:, :6] > 1e-9).sum(1) > 1).any(), "the problem was to split samples"
    np.testing.assert_array_equal(result.labels, plan[:, :6].argmax(1))


@pytest.mark.parametrize("rule", ["range", "kl", "abstain"])
def test_sample_masses_under_other_rules(rule: str, there) -> None:
    for seed in range(5):
        scores, hidden = drawn("normal", seed, 0.3 if rule == "abstain" else 0.0)
        n_samples, n_classes = scores.shape
        times = np.random.default_rng(seed).integers(1, 5, n_samples)
        total, repeated = int(times.sum()), np.repeat(scores, times, axis=0)
        room = total * room_for(scores)
        if rule == "range":
            lo, hi = np.floor(0.5 * total / n_classes), np.ceil(1.2 * total / n_classes)
            result = there(sinkhorn_assign, scores, sample_mass=times, classes=Range(lo / total, min(hi / total, 1.0)))
            best = lp_best(repeated, np.full(n_classes, lo), np.full(n_classes, hi))
        elif rule == "kl":
            mass = np.full(n_classes, 1 / n_classes)
            result = there(sinkhorn_assign, scores, sample_mass=times, classes=KL(0.7))
            charged = total * 0.7 * math.fsum(kl_div(np.asarray(result.label_mass), mass).tolist())
            best = lp_best(repeated, [0] * n_classes, [total] * n_classes, prices=kl_prices(total, mass, 0.7))
            best += charged - total * 0.7
        else:
            sizes = np.bincount(hidden[hidden >= 0], times[hidden >= 0], n_classes)
            left = total - int(sizes.sum())
            if not 0 < left < total:
                continue
            result = there(
                sinkhorn_assign, scores, sample_mass=times, class_mass=sizes / sizes.sum(), abstain=left / total
            )
            best = lp_best(repeated, sizes, sizes, unlabelled=left)
        assert result.bound * total == pytest.approx(best, abs=room)


def test_samples_without_mass_are_labelled_all_the_same(there) -> None:
    scores = normal(np.random.default_rng(8), 60, 4)
    times = np.where(np.arange(60) % 3 == 0, 0, 2)
    result = there(sinkhorn_assign, scores, sample_mass=times)
    alone = there(sinkhorn_assign, scores[times > 0])
    assert worth(scores[times > 0], result.labels[times > 0]) == pytest.approx(worth(scores[times > 0], alone.labels))
    np.testing.assert_array_equal(result.labels[times == 0], (scores + result.potentials)[times == 0].argmax(1))
    np.testing.assert_allclose(result.label_mass, 0.25, rtol=0, atol=1e-15)


problems = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 7))
rules = st.sampled_from([Range(0.0, 0.3), Range(0.1, 1.0), Range(0.1, 0.4), KL(0.1), KL(3.0)])
shares_left = st.sampled_from([0.0, 0.25])


def solved(scores, mass, rule, share) -> Assignment | None:
    """The answer, or None where the bounds leave no sizes."""
    try:
        return sinkhorn_assign(scores, class_mass=mass, classes=rule, abstain=share)
    except InfeasibleError:
        return None


@given(problems, rules, shares_left)
def test_permuting_classes_and_rows_keeps_the_value(problem, rule, share: float) -> None:
    seed, n_samples, n_classes = problem
    rng = np.random.default_rng(seed)
    scores, mass = normal(rng, n_samples, n_classes), rng.dirichlet(np.full(n_classes, 3.0))
    rows, columns = rng.permutation(n_samples), rng.permutation(n_classes)
    plain, permuted = solved(scores, mass, rule, share), solved(scores[rows][:, columns], mass[columns], rule, share)
    assert (plain is None) == (permuted is None)
    if plain is not None and permuted is not None:
        assert permuted.value - permuted.bound == pytest.approx(plain.value - plain.bound, abs=1e-12)
        charge = kl_charge(plain.counts, n_samples, mass * (1 - share), rule.rho) if isinstance(rule, KL) else 0.0
        other = kl_charge(permuted.counts, n_samples, mass[columns] * (1 - share), rule.rho) if charge else 0.0
        assert n_samples * permuted.value - other == pytest.approx(n_samples * plain.value - charge, abs=1e-9)


@given(problems, rules, st.floats(-100, 100))
def test_shifting_rows_changes_nothing_where_all_are_labelled(problem, rule, size: float) -> None:
    seed, n_samples, n_classes = problem
    rng = np.random.default_rng(seed)
    scores, mass = normal(rng, n_samples, n_classes), rng.dirichlet(np.full(n_classes, 3.0))
    shift = size * rng.standard_normal((n_samples, 1))
    plain, shifted = solved(scores, mass, rule, 0.0), solved(scores + shift, mass, rule, 0.0)
    if plain is not None and shifted is not None:
        np.testing.assert_array_equal(shifted.labels, plain.labels)
        assert shifted.value == pytest.approx(plain.value + shift.mean(), abs=1e-9)


@given(problems, rules, shares_left, st.integers(-10, 10))
def test_other_units_of_scores_and_prices(problem, rule, share: float, power: int) -> None:
    seed, n_samples, n_classes = problem
    scores, scale = normal(np.random.default_rng(seed), n_samples, n_classes), 2.0**power
    plain = solved(scores, None, rule, share)
    if plain is not None:
        dearer = KL(scale * rule.rho) if isinstance(rule, KL) else rule
        scaled = sinkhorn_assign(scale * scores, classes=dearer, abstain=share, epsilon=scale * 0.04)
        np.testing.assert_array_equal(scaled.labels, plain.labels)
        assert scaled.value == pytest.approx(scale * plain.value, rel=1e-12, abs=1e-12 * scale)


def plain(n_samples: int = 30, n_classes: int = 4) -> np.ndarray:
    return normal(np.random.default_rng(0), n_samples, n_classes)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Range(8, 30), r"at least 32, 2 too many, of 30"),
        (Range(0.3, 1.0), r"at least 36, 6 too many, of 30"),
        (Range(0, 7), r"at most 28, 2 too few, of 30"),
        (Range(0.0, [0.1, 0.1, 0.2, 0.2]), r"at most 18, 12 too few, of 30"),
    ],
)
def test_bounds_that_do_not_add_up(rule: Range, said: str) -> None:
    with pytest.raises(InfeasibleError, match=said):
        sinkhorn_assign(plain(), classes=rule)


def test_bounds_that_do_not_add_up_with_the_unlabelled() -> None:
    with pytest.raises(InfeasibleError, match="of 30 samples"):
        sinkhorn_assign(plain(), classes=Range(7, 30), abstain=0.2)
    with pytest.raises(InfeasibleError, match="of 30 samples"):
        sinkhorn_assign(plain(), classes=Range(0, 5), abstain=0.2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Range(0.5, 0.25), r"lo is above hi for class 0"),
        (Range([0, 0, 9, 0], [9, 9, 8, 9]), r"lo is above hi for class 2"),
        (Range([0.1, 0.1]), r"\(2,\).*4"),
        (Range(0.0, np.full((4, 1), 0.5)), r"\(4, 1\)"),
        (Range(0.0, 1.5), r"hi is 1\.5 for class 0"),
        (Range([0.0, 1.5, 0.0, 0.0], 1.0), r"lo is 1\.5 for class 1"),
        (Range(-0.1, 1.0), r"lo is -0\.1"),
        (Range(0, [5, 5, -1, 50]), r"hi is -.* for class 2"),
        (Range(np.nan, 1.0), r"lo is nan"),
        (Range(np.inf, 1.0), r"lo is above hi for class 0"),
        (Range("few", "many"), r"lo is the text 'few'"),
    ],
)
def test_ranges_that_cannot_be(rule: Range, said: str) -> None:
    with pytest.raises(InvalidMassError, match=said):
        sinkhorn_assign(plain(), classes=rule)


@pytest.mark.parametrize("rho", [0, 0.0, -1.0, math.inf, math.nan])
def test_price_must_be_positive(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        KL(rho)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_share_of_the_unlabelled_must_be_one(share: float) -> None:
    with pytest.raises(ValueError, match=f"abstain is {re.escape(str(share))}"):
        sinkhorn_assign(plain(), abstain=share)


@pytest.mark.parametrize("rule", ["exact", None, KL, 0.5, Exact])
def test_rules_of_no_known_kind(rule) -> None:
    with pytest.raises(TypeError, match="classes is"):
        sinkhorn_assign(plain(), classes=rule)
    with pytest.raises(TypeError, match="samples is"):
        sinkhorn_assign(plain(), samples=rule)


def test_range_is_no_rule_for_samples() -> None:
    with pytest.raises(TypeError, match="samples is"):
        sinkhorn_assign(plain(), samples=Range())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mass", "said"),
    [
        (np.full(30, 0.1) + 0.01 * np.arange(30), r"sums to 7\.35"),
        (np.full(29, 1 / 29), r"\(29,\)"),
        (np.r_[-1, np.ones(29, int)], r"sample_mass\[0\] is -1"),
        (np.r_[np.ones(29) / 29, np.nan], r"sample_mass\[29\] is nan"),
        (np.zeros(30), r"not all 0"),
        (["a"] * 30, r"sample_mass has"),
    ],
)
def test_sample_masses_that_cannot_be(mass, said: str) -> None:
    with pytest.raises(InvalidMassError, match=said):
        sinkhorn_assign(plain(), sample_mass=mass)


def test_uniform_shares_of_a_wrong_sum_are_refused() -> None:
    with pytest.raises(InvalidMassError, match=r"sums to 15"):
        sinkhorn_assign(plain(), sample_mass=np.full(30, 0.5))


def test_range_whose_scores_are_all_forbidden() -> None:
    scores = plain()
    scores[:, 2] = -np.inf
    with pytest.raises(InfeasibleError, match="class 2 is to take 3 samples"):
        sinkhorn_assign(scores, classes=Range(3, 20))
    assert sinkhorn_assign(scores, classes=Range(0, 20)).counts[2] == 0
    with pytest.raises(InfeasibleError):
        sinkhorn_assign(np.full((30, 4), -np.inf), classes=Range())


def test_too_few_choices_for_ranges() -> None:
    """16 of 30 rows may only go to classes 0 and 1, which take at most 15; class 3 cannot get its 12 of 11."""
    scores = plain()
    scores[:16, 2:] = -np.inf
    with pytest.raises(InfeasibleError, match=r"16 samples may only go to the 2 classes 0, 1, which are to take 15"):
        sinkhorn_assign(scores, classes=Range(0, [8, 7, 30, 30]))
    scores = plain()
    scores[:19, 3] = -np.inf
    with pytest.raises(InfeasibleError, match=r"only 11 samples may go to the 1 classes 3, which are to take 12"):
        sinkhorn_assign(scores, classes=Range([0, 0, 0, 12], 30))


@pytest.mark.parametrize("rho", [0.01, 0.3])
def test_preferred_sizes_of_weights_in_many_units(rho: float) -> None:
    """Ten million times the weight of every sample is the same problem; so are their shares."""
    rng = np.random.default_rng(5)
    scores, weights = rng.normal(size=(60, 5)), rng.integers(1, 4, 60)
    few = sinkhorn_assign(scores, classes=KL(rho), sample_mass=weights)
    assert abs(few.gap) < 0.1
    for many in (10_000_000 * weights, weights / weights.sum()):
        result = sinkhorn_assign(scores, classes=KL(rho), sample_mass=many)
        assert result.bound == pytest.approx(few.bound, abs=0.05)
        u = (scores + result.potentials).max(1) @ (weights / weights.sum())
        bound = u + rho * (0.2 * np.expm1(-result.potentials / rho)).sum()  # the semi-dual, of a mass in any units
        charge = rho * (lambda c: c * np.log(c / 0.2) - c + 0.2)(np.asarray(result.label_mass)).sum()
        assert result.bound - charge == pytest.approx(bound, abs=1e-6)
        assert result.gap >= -1e-9
