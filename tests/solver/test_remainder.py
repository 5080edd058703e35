"""Shares that are no whole sizes: one sample more where that is worth most, over all sizes that there may be."""

from __future__ import annotations

import contextlib
from itertools import combinations

import numpy as np
import pytest
from constrained import lp_best, worth
from oracles import even_counts, hungarian_labels, value_of

from otlabel import Range, certify, lp_assign, sinkhorn_assign, sinkhorn_assign_batch
from otlabel.errors import InfeasibleError
from otlabel.solver import small

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")


@pytest.fixture(params=["short way", "long way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "long way":
        monkeypatch.setattr(small, "MOST_SCORES", 0)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """Scores, some tied and some forbidden, shares, and the fewest and most samples of each class."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(2, 25)), int(rng.integers(2, 10))
    scores = rng.normal(size=(n, k))
    scores = np.round(scores, 1) if seed % 4 == 0 else scores
    if seed % 5 == 0:
        scores[rng.random(scores.shape) < 0.3] = -np.inf
        scores[np.isneginf(scores).all(1), 0] = 0
    mass = None if seed % 3 else rng.dirichlet(np.ones(k))
    exact = np.round(n * (np.full(k, 1 / k) if mass is None else mass), 9)
    return scores, mass, np.floor(exact).astype(int), np.ceil(exact).astype(int)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seeds", [range(first, first + 20) for first in range(0, 80, 20)])
def test_against_highs(seeds: range) -> None:
    """80 problems, each both ways; never below what the first classes give."""
    for seed in seeds:
        scores, mass, lo, hi = drawn(seed)
        try:
            best = lp_best(scores, lo, hi)
        except AssertionError:  # there is no assignment
            for remainder in ("best", "first"):
                with pytest.raises(InfeasibleError):
                    sinkhorn_assign(scores, class_mass=mass, remainder=remainder)
            continue
        result = sinkhorn_assign(scores, class_mass=mass)
        assert (lo <= result.counts).all()
        assert (result.counts <= hi).all()
        assert worth(scores, result.labels) == pytest.approx(best, abs=1e-9 * len(scores)), seed
        assert result.proof.proven, seed
        assert certify(scores, result.labels, potentials=result.potentials).gap <= 1e-12
        with contextlib.suppress(InfeasibleError):  # sizes of the first classes may leave no assignment
            assert result.value >= sinkhorn_assign(scores, class_mass=mass, remainder="first").value - 1e-12


@pytest.mark.usefixtures("way")
def test_against_every_choice_of_sizes() -> None:
    """Brute force: all classes that may take one sample more."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, k = int(rng.integers(5, 16)), int(rng.integers(2, 6))
        if n % k == 0:
            continue
        scores = rng.normal(size=(n, k))
        values = []
        for more in combinations(range(k), n % k):
            counts = np.full(k, n // k)
            counts[list(more)] += 1
            values.append(value_of(scores, hungarian_labels(scores, counts)))
        result = sinkhorn_assign(scores)
        assert result.value == pytest.approx(max(values), abs=1e-12)
        assert lp_assign(scores).value == pytest.approx(max(values), abs=1e-12)


@pytest.mark.usefixtures("way")
def test_fewer_samples_than_classes() -> None:
    """Which classes exist is what is best: a rectangular assignment problem."""
    rng = np.random.default_rng(0)
    for n, k in ((5, 9), (30, 200), (64, 70), (40, 2000)):
        scores = rng.normal(size=(n, k)) + 3 * rng.normal(size=k)
        result = sinkhorn_assign(scores)
        assert result.counts.max() == 1
        chosen = hungarian_labels(np.r_[scores, np.zeros((k - n, k))], np.ones(k, int))[:n]
        assert result.value == pytest.approx(value_of(scores, chosen), abs=1e-12)
        assert result.proof.proven
        same = sinkhorn_assign(scores, classes=Range(0, 1))
        assert result.value == pytest.approx(same.value, abs=1e-12)
        assert np.isfinite(result.potentials).all()


@pytest.mark.usefixtures("way")
def test_a_class_that_all_want_is_the_one_that_takes_more() -> None:
    scores = np.random.default_rng(0).normal(size=(100, 7))
    scores[:, 6] += 5
    assert sinkhorn_assign(scores).counts[6] == 15
    assert sinkhorn_assign(scores, remainder="first").counts.tolist() == even_counts(100, 7).tolist()
    assert sinkhorn_assign(scores, class_mass=even_counts(100, 7)).counts.tolist() == even_counts(100, 7).tolist()
    shares = np.array([0.155, 0.155, 0.155, 0.155, 0.155, 0.115, 0.11])
    assert sinkhorn_assign(scores, class_mass=shares).counts[6] == 11  # a share that is whole stays
    again = sinkhorn_assign(scores)
    np.testing.assert_array_equal(again.labels, sinkhorn_assign(scores).labels)
    batch = sinkhorn_assign_batch(np.stack([scores, -scores]))
    assert batch[0].counts[6] == 15
    assert sinkhorn_assign_batch(scores[None], remainder="first")[0].counts[6] == 14


def test_forbidden_pairs_profit() -> None:
    """By the largest remainder the first two classes would take a sample more each, which are closed to most."""
    scores = np.zeros((10, 4))
    scores[2:, :2] = -np.inf
    scores[0, 1:] = scores[1, 0] = -np.inf
    scores[:2, 2:] = -np.inf
    with pytest.raises(InfeasibleError):
        sinkhorn_assign(scores, class_mass=[0.15, 0.15, 0.35, 0.35], remainder="first")
    result = sinkhorn_assign(scores, class_mass=[0.15, 0.15, 0.35, 0.35])
    assert result.counts.tolist() == [1, 1, 4, 4]


@pytest.mark.parametrize("abstain", [0.13, 0.4])
def test_with_those_who_stay_unlabelled(abstain: float) -> None:
    scores = np.random.default_rng(1).normal(size=(50, 4))
    unlabelled = round(50 * abstain)
    each = (50 - unlabelled) / 4
    result = sinkhorn_assign(scores, abstain=abstain)
    best = lp_best(scores, [np.floor(each)] * 4, [np.ceil(each)] * 4, unlabelled=unlabelled)
    assert worth(scores, result.labels) == pytest.approx(best, abs=1e-9)
    assert (result.labels < 0).sum() == unlabelled
    assert result.proof.proven


def test_equal_rows_and_scores_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 4)) + 1e9
    scores = rows[rng.integers(0, 7, 250)]
    result = sinkhorn_assign(scores)
    assert sorted(result.counts.tolist()) == [62, 62, 63, 63]
    assert worth(scores, result.labels) == pytest.approx(lp_best(scores - 1e9, [62] * 4, [63] * 4) + 250e9, abs=1e-4)
    assert result.proof.proven


@pytest.mark.parametrize("several", [1, 2])
def test_a_certificate_of_shares_is_of_all_sizes_that_they_may_become(several: int) -> None:
    for seed in range(0, 12, 2):
        scores, mass, _, _ = drawn(seed)
        (n, k), scores = scores.shape, np.where(np.isneginf(scores), -9, scores)
        shares = np.full(k, 1 / k) if mass is None or several > 1 else mass
        if k < several:
            continue
        result = sinkhorn_assign(scores, class_mass=shares, labels_per_sample=several)
        for potentials in (result.potentials, None):
            certificate = certify(scores, result.labels, class_mass=shares, potentials=potentials)
            assert certificate.size_error == 0
            assert certificate.gap == pytest.approx(0, abs=1e-12)
        g = np.random.default_rng(seed).normal(size=k)
        assert certify(scores, result.labels, class_mass=shares, potentials=g).bound >= result.value - 1e-12
        if several == 1:
            first = sinkhorn_assign(scores, class_mass=shares, remainder="first")
            bound = certify(scores, first.labels, class_mass=shares, potentials=result.potentials).bound
            assert bound == pytest.approx(result.value, abs=1e-12)
        alone = np.zeros((n, several), int) + np.arange(several)
        assert certify(scores, alone if several > 1 else alone[:, 0], class_mass=shares).size_error > 0 or k == several


def test_a_class_that_nobody_may_have_takes_none_of_the_remainder() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 6))
    scores[:, 4] = -np.inf
    result = sinkhorn_assign(scores)
    certificate = certify(scores, result.labels, class_mass=np.full(6, 1 / 6), potentials=result.potentials)
    assert certificate.gap == pytest.approx(0, abs=1e-12)
    assert certificate.size_error == 0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="remainder is 'last'; choose one of 'best', 'first'"):
        sinkhorn_assign(np.zeros((3, 2)), remainder="last")  # type: ignore[arg-type]
