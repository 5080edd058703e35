"""Labels of which no group uses a class too often: the optimum of the linear program, and a proof of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import even_counts
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array, vstack

pytest.importorskip("sklearn")

from otlabel.cluster.distinct import distinct_labels


def least(scores: np.ndarray, groups: np.ndarray, capacity: int, sizes: np.ndarray) -> float:
    """The largest total score, by HiGHS."""
    (n, k), ones = scores.shape, np.ones(scores.size)
    rows, classes, places = np.repeat(np.arange(n), k), np.tile(np.arange(k), n), np.arange(n * k)
    equal = [coo_array((ones, (index, places)), shape=(size, n * k)) for index, size in ((rows, n), (classes, k))]
    n_groups = groups.max() + 1
    most = coo_array((ones, (groups[rows] * k + classes, places)), shape=(n_groups * k, n * k))
    found = linprog(
        -scores.ravel(), A_eq=vstack(equal).tocsr(), b_eq=np.concatenate([np.ones(n), sizes]), A_ub=most.tocsr(),
        b_ub=np.full(n_groups * k, capacity), method="highs",
    )  # fmt: skip
    assert found.status == 0
    return -found.fun


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_labels_are_the_best_there_are(seed: int, ties: bool, skewed: bool) -> None:
    rng = np.random.default_rng(seed)
    k, capacity = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    of_groups = rng.integers(1, k * capacity + 1, rng.integers(1, 6))
    groups = rng.permutation(np.repeat(np.arange(len(of_groups)), of_groups))
    n = len(groups)
    scores = rng.integers(0, 3, (n, k)).astype(float) if ties else rng.normal(size=(n, k))
    scores += 3 * rng.normal(size=k) * skewed
    sizes = even_counts(n, k)
    labels, potentials, gap = distinct_labels(scores, groups, capacity, sizes, rng.normal(size=k) * skewed)
    np.testing.assert_array_equal(np.bincount(labels, minlength=k), sizes)
    assert np.bincount(groups * k + labels).max() <= capacity
    best = least(scores, groups, capacity, sizes)
    assert scores[np.arange(n), labels].sum() == pytest.approx(best, abs=1e-9)
    assert 0 <= gap < 1e-9
    assert np.isfinite(potentials).all()


def test_all_rows_alike_in_many_groups() -> None:
    scores, groups = np.zeros((600, 8)), np.arange(600) // 8
    labels, _, gap = distinct_labels(scores, groups, 1, np.full(8, 75), np.zeros(8))
    assert np.bincount(groups * 8 + labels, minlength=600).tolist() == [1] * 600
    assert gap == 0


@pytest.mark.parametrize("capacity", [1, 5])
def test_a_bound_that_others_find(capacity: int) -> None:
    """Larger than HiGHS likes: weak duality, by prices from nowhere else, bounds what any labels can reach."""
    rng = np.random.default_rng(capacity)
    groups = rng.permutation(np.repeat(np.arange(40), 30 * capacity // 2))
    n, k = len(groups), 30
    scores = rng.normal(size=(n, 4)) @ rng.normal(size=(4, k)) - 2 * np.arange(k) / k
    sizes = even_counts(n, k)
    labels, g, gap = distinct_labels(scores, groups, capacity, sizes, np.zeros(k))
    np.testing.assert_array_equal(np.bincount(labels, minlength=k), sizes)
    assert np.bincount(groups * k + labels).max() <= capacity
    assert gap < 1e-9 * n
    value, bound = scores[np.arange(n), labels].sum(), -float(g @ sizes)
    for group in range(40):
        wide = np.repeat(scores[groups == group] + g, capacity, axis=1)
        bound += wide[linear_sum_assignment(wide, maximize=True)].sum()
    assert value == pytest.approx(bound, rel=1e-12)
