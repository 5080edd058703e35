"""Exact labels where sizes have a price: the optimum of the linear program, and what no rule may change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from constrained import SCORES, assert_labels_follow, drawn, kl_charge, kl_prices, lp_best, room_for, worth
from hypothesis import given
from hypothesis import strategies as st
from oracles import float64
from problems import normal

from otlabel import KL, Assignment, Range, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


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
