"""Sparse scores solved: every rule against HiGHS, what is missing in bound and gap, and over ranks."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from constrained import assert_proven, kl_charge, kl_prices, lp_best, room_for, worth
from ranks import on_ranks

from otlabel import KL, Range, certify, sinkhorn_assign, top_scores
from otlabel.errors import InfeasibleError
from otlabel.sources.listed import ListedSource

pytestmark = [
    pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning"),
    pytest.mark.usefixtures("long_way"),
]


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates (N, M) and scores, some of them equal, and the full matrix; there is an assignment of equal sizes."""
    rng = np.random.default_rng(seed)
    n_classes, size, m = int(rng.integers(3, 9)), int(rng.integers(2, 9)), 3
    n = n_classes * size
    own = rng.permutation(n)[:, None] % n_classes
    others = own + np.sort(rng.permuted(np.tile(np.arange(1, n_classes), (n, 1)), axis=1)[:, : m - 1], axis=1)
    classes = np.concatenate([own, others % n_classes], 1)
    values = rng.normal(size=(n, m))
    values = np.round(values, 1) if seed % 3 == 0 else values
    full = np.full((n, n_classes), -np.inf)
    np.put_along_axis(full, classes, values, 1)
    return classes, values, full


@pytest.mark.parametrize("seed", range(12))
def test_exact_sizes_and_ranges(seed: int) -> None:
    classes, values, full = drawn(seed)
    (n, k), scores = full.shape, top_scores(classes, values, full.shape[1])
    even = np.full(k, n // k)
    result = sinkhorn_assign(scores)
    assert n * result.value == pytest.approx(lp_best(full, even, even), abs=n * room_for(full))
    assert_proven(result, full, even, even)
    lo, hi = even - 1, even + 1 + seed % 3
    result = sinkhorn_assign(scores, classes=Range(lo, hi))
    assert n * result.value == pytest.approx(lp_best(full, lo, hi), abs=n * room_for(full))
    assert_proven(result, full, lo, hi)


@pytest.mark.parametrize("seed", range(6))
def test_prices_abstention_and_masses(seed: int) -> None:
    classes, values, full = drawn(seed)
    (n, k), scores = full.shape, top_scores(classes, values, full.shape[1])
    rho, mass = 0.3, np.full(k, 1 / k)
    result = sinkhorn_assign(scores, classes=KL(rho))
    empty = kl_charge(np.zeros(k), n, mass, rho)  # from which prices count
    net = worth(full, result.labels) - kl_charge(result.counts, n, mass, rho) + empty
    everything = np.full(k, n)
    assert net == pytest.approx(
        lp_best(full, np.zeros(k), everything, prices=kl_prices(n, mass, rho)), abs=n * room_for(full)
    )
    free = k * (n // (2 * k))
    result = sinkhorn_assign(scores, abstain=(n - free) / n)
    even = np.full(k, free // k)
    assert n * result.value == pytest.approx(lp_best(full, even, even, unlabelled=n - free), abs=n * room_for(full))
    assert result.gap <= room_for(full)
    dense = sinkhorn_assign(full, classes=KL(1.0), samples=KL(1.0), tol=1e-6)
    free_rows = sinkhorn_assign(scores, classes=KL(1.0), samples=KL(1.0), tol=1e-6)
    np.testing.assert_allclose(free_rows.class_mass, dense.class_mass, rtol=1e-4)
    np.testing.assert_allclose(free_rows.plan(scores).toarray(), free_rows.plan(full), atol=1e-12)
    weights = np.random.default_rng(seed).integers(1, 4, n)
    wide = Range(0.5 / k, 3 / k)
    heavy, expected = (sinkhorn_assign(one, sample_mass=weights, classes=wide) for one in (scores, full))
    assert heavy.bound == pytest.approx(expected.bound, abs=room_for(full))


@pytest.mark.parametrize("seed", range(12))
def test_what_is_missing_in_bound_and_gap(seed: int) -> None:
    """The bound is above the best labels of all matrices that have no more than the least where nothing is listed."""
    classes, values, full = drawn(seed)
    n, k = full.shape
    if seed % 2:
        values = values - values.min(1, keepdims=True) * (seed % 4 == 1) + 2 * (classes == 0)  # a class that all want
        np.put_along_axis(full, classes, values, 1)
    even = np.full(k, n // k)
    scores = top_scores(classes, values, k, missing="at most the least")
    listed = sinkhorn_assign(top_scores(classes, values, k))
    result = sinkhorn_assign(scores)
    most = np.where(np.isinf(full), values.min(1, keepdims=True), full)
    best = lp_best(most, even, even) / n
    np.testing.assert_array_equal(result.labels, listed.labels)
    assert result.value == listed.value
    assert result.bound >= best - room_for(full)
    g = result.potentials
    assert result.bound == pytest.approx((most + g).max(1).mean() - g.mean(), abs=room_for(full, g))
    assert certify(scores, result.labels, potentials=g).gap == pytest.approx(result.gap, abs=room_for(full, g))
    assert certify(scores, result.labels).gap >= result.gap - room_for(full, g)
    half = sinkhorn_assign(scores, abstain=0.5, classes=Range(0, 1.0))
    assert half.bound >= sinkhorn_assign(most, abstain=0.5, classes=Range(0, 1.0)).value - room_for(full)


def test_what_is_missing_of_some_parts_only() -> None:
    """Parts of a list of which some forbid what is missing, and some say that it is at most the least."""
    for seed in range(6):
        classes, values, full = drawn(seed)
        n, k = full.shape
        half = n // 2
        parts = [top_scores(classes[:half], values[:half], k, missing="at most the least")]
        parts.append(top_scores(classes[half:], values[half:], k))
        most = full.copy()
        most[:half] = np.where(np.isinf(full), values.min(1, keepdims=True), full)[:half]
        even = np.full(k, n // k)
        result = sinkhorn_assign(parts)
        assert result.value == sinkhorn_assign(top_scores(classes, values, k)).value
        assert result.bound >= lp_best(most, even, even) / n - room_for(full)
        assert certify(parts, result.labels).bound >= lp_best(most, even, even) / n - room_for(full)


def test_the_bound_allows_for_classes_that_no_row_lists() -> None:
    scores = top_scores(np.zeros((2, 1), int), np.zeros((2, 1)), 2, missing="at most the least")
    charged = sinkhorn_assign(scores, classes=KL(1.0))  # one row may be as good in the other class
    assert charged.gap >= np.log(2) - 1e-12
    rng = np.random.default_rng(0)
    for m in (1, 2, 3):
        full = rng.normal(size=(8, 6)) + 2 * (np.arange(6) < 2)
        classes = np.argsort(-full, 1)[:, :m]
        values = np.take_along_axis(full, classes, 1)
        scores = top_scores(classes, values, 6, missing="at most the least")
        most = np.maximum(values.min(1, keepdims=True), full)
        for lo, hi in ((0, 8), (0, 5)):
            with contextlib.suppress(InfeasibleError):
                result = sinkhorn_assign(scores, classes=Range(lo, hi))
                assert result.bound >= lp_best(most, [lo] * 6, [hi] * 6) / 8 - 1e-12


def test_a_forbidden_candidate_is_not_the_least() -> None:
    classes, values = np.array([[0, 1], [0, 1], [1, 0]]), np.array([[9.0, -np.inf], [9.0, 1.0], [1.0, -np.inf]])
    scores = top_scores(classes, values, 3, missing="at most the least")
    result = sinkhorn_assign(scores, classes=Range(0, 2))
    most = np.array([[9.0, -np.inf, 9.0], [9.0, 1.0, 1.0], [-np.inf, 1.0, 1.0]])
    assert result.bound >= lp_best(most, [0, 0, 0], [2, 2, 2]) / 3 - 1e-12
    again = certify(scores, result.labels, class_mass=[1, 1, 1], potentials=np.zeros(3))
    assert again.bound >= lp_best(most, [1] * 3, [1] * 3) / 3 - 1e-12


def test_several_labels_have_no_bound_where_what_is_missing_is_not_forbidden() -> None:
    scores = top_scores(np.array([[0, 1, 2], [1, 2, 0]]), np.ones((2, 3)), 4, missing="at most the least")
    for potentials in (None, np.zeros(4)):
        with pytest.raises(ValueError, match='missing="at most the least" with labels_per_sample=2'):
            certify(scores, np.array([[0, 1], [1, 2]]), potentials=potentials)


@pytest.mark.parametrize("n", [2, 4])
def test_prices_of_classes_of_no_sample_allow_for_what_is_missing(n: int) -> None:
    """So that the potentials prove what the result says."""
    for seed in range(8):
        full = np.random.default_rng(seed).normal(size=(n, 7))
        classes = np.argsort(-full, 1)[:, :4]
        values = np.take_along_axis(full, classes, 1)
        scores = top_scores(classes, values, 7, missing="at most the least")
        result = sinkhorn_assign(scores)
        assert certify(scores, result.labels, potentials=result.potentials).bound <= result.bound + 1e-12


def test_classes_of_no_sample_have_prices_for_new_ones() -> None:
    """As a full matrix has them."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=(60, 5))
    full[rng.random(full.shape) < 0.3] = -np.inf
    full[:, 0] = rng.normal(size=60)
    row, column = np.nonzero(full > -np.inf)
    scores = sp.csr_array(sp.coo_array((full[row, column], (row, column)), shape=full.shape))
    mass = [0.997, 0.001, 0.001, 0.001, 0.0]
    sparse, dense = sinkhorn_assign(scores, class_mass=mass), sinkhorn_assign(full, class_mass=mass)
    np.testing.assert_allclose(sparse.potentials, dense.potentials, atol=1e-12)


def test_equal_rows_are_told_from_rows_that_list_others() -> None:
    """A listed zero is no missing one, and the same scores of other classes are another row."""
    classes = np.array([[0, 1], [1, 2], [0, 2]]).repeat(40, 0)
    values = np.zeros((120, 2))
    result = sinkhorn_assign(top_scores(classes, values, 3))
    assert result.counts.tolist() == [40, 40, 40]
    assert all(label in row for label, row in zip(result.labels.tolist(), classes.tolist(), strict=True))
    values[:, 0] = 1
    uneven = top_scores(classes, values, 3)
    full = np.full((120, 3), -np.inf)
    np.put_along_axis(full, classes, values, 1)
    assert sinkhorn_assign(uneven).value == pytest.approx(lp_best(full, [40] * 3, [40] * 3) / 120)


def on_a_rank(group: Any, classes: np.ndarray, values: np.ndarray, ends: list[int], rules: list[dict[str, Any]]) -> Any:
    begin, end = ends[group.rank()], ends[group.rank() + 1]
    scores = top_scores(classes[begin:end], values[begin:end], 40, missing="at most the least")
    results = [sinkhorn_assign(scores, group=group, **part(rule, begin, end)) for rule in rules]
    return [(result.labels, result.value, result.gap, result.potentials) for result in results]


def part(rule: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {name: value[begin:end] if name == "sample_mass" else value for name, value in rule.items()}


def test_over_ranks() -> None:
    rng = np.random.default_rng(0)
    n, k = 2000, 40
    classes = rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1)[:, :6]
    values = rng.normal(size=classes.shape)
    classes[1850:], values[1850:] = classes[1850], values[1850]  # equal rows
    rules = [{}, {"classes": Range(0.01, 0.04)}, {"abstain": 0.2}, {"sample_mass": rng.integers(1, 4, n)}]
    whole = top_scores(classes, values, k, missing="at most the least")
    assert isinstance(whole, ListedSource)
    expected = [sinkhorn_assign(whole, **rule) for rule in rules]
    found = on_ranks(on_a_rank, 3, classes, values, [0, 0, 1200, n], rules)
    for number, single in enumerate(expected):
        np.testing.assert_array_equal(np.concatenate([rank[number][0] for rank in found]), single.labels)
        for rank in found:
            assert rank[number][1] == pytest.approx(single.value, abs=1e-12)
            assert rank[number][2] == pytest.approx(single.gap, abs=1e-12)
            np.testing.assert_allclose(rank[number][3], single.potentials, atol=1e-9)
