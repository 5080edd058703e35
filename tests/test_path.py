"""The path from the best class of each sample to exact sizes: its ends are known, and it goes one way."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import hungarian_labels
from problems import clusters

from otlabel import KL, balance_path, sinkhorn_assign

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    return clusters(np.random.default_rng(0), 600, 8)


def test_ends_are_the_best_class_and_exact_sizes(scores) -> None:
    path = balance_path(scores, n_steps=7)
    rows = np.arange(len(scores))
    assert (path.rho[0], path.rho[-1]) == (0.0, np.inf)
    assert path.value[0] == pytest.approx(scores.max(1).mean(), abs=1e-12)
    best = scores[rows, hungarian_labels(scores, np.full(8, 75))].mean()
    assert path.value[-1] == pytest.approx(best, abs=1e-12)
    assert (path.imbalance[-1], path.changed[0], path.lost[0]) == (0, 0, 0)
    np.testing.assert_array_equal(path.sizes[0], np.bincount(scores.argmax(1), minlength=8))
    np.testing.assert_array_equal(path.sizes.sum(1), 600)


def test_more_balance_never_gains(scores) -> None:
    """Of a sum of two terms, the optimum's one term falls and its other term grows as the other's price does."""
    mass = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    path = balance_path(scores, class_mass=mass, n_steps=12)
    shares = path.sizes / 600
    divergence = np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300) / mass), 0).sum(1)
    assert (np.diff(path.rho) > 0).all()
    assert (np.diff(path.value) <= 1e-12).all()
    assert (np.diff(divergence) <= 1e-12).all()
    assert 0 < path.knee < 11


def test_steps_are_those_of_the_rule(scores) -> None:
    path = balance_path(scores, n_steps=5)
    for step in (1, 2, 3):
        alone = sinkhorn_assign(scores, classes=KL(path.rho[step]))
        assert path.value[step] == pytest.approx(alone.value, abs=1e-12)
        np.testing.assert_array_equal(path.sizes[step], alone.counts)


def test_scores_that_are_balanced_anyway_have_no_price() -> None:
    path = balance_path(np.eye(4)[np.arange(40) % 4], n_steps=4)
    assert not path.lost.any()
    assert not path.changed.any()
    assert path.knee == 3


def test_table_and_picture(scores) -> None:
    path = balance_path(scores, n_steps=4)
    table = path.summary().splitlines()
    assert max(map(len, table)) <= 80
    assert sum("<- knee" in line for line in table) == 1
    axes = path.plot().axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), path.lost)


def test_two_ends_alone_are_no_path(scores) -> None:
    with pytest.raises(ValueError, match="n_steps is 2"):
        balance_path(scores, n_steps=2)
