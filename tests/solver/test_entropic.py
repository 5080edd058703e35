"""The entropic plan: against POT and SeLa's loop in float64, and by its own optimality conditions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from oracles import entropic_plan, even_counts, hungarian_labels, pot, sela_loop, semidual
from problems import clusters, dead_class, normal
from scipy.special import log_softmax

from otlabel import Status, sinkhorn_assign
from otlabel.errors import ConvergenceWarning

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def pot_plan(scores: np.ndarray, class_mass: np.ndarray, epsilon: float) -> np.ndarray:
    """POT's log-domain Sinkhorn, run until nothing moves any more."""
    rows = np.full(len(scores), 1.0 / len(scores))
    return pot().bregman.sinkhorn_log(rows, class_mass, -scores, epsilon, numItermax=100_000, stopThr=1e-14)


@pytest.mark.parametrize("epsilon", [1.0, 0.3, 0.1, 0.04, 0.02, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_plan_of_pot(epsilon: float, seed: int, there) -> None:
    rng = np.random.default_rng(seed)
    scores, shares = rng.random((40, 6)), rng.dirichlet(np.full(6, 2.0))
    result = there(sinkhorn_assign, scores, class_mass=shares, epsilon=epsilon, tol=1e-12)
    theirs = pot_plan(scores, shares, epsilon)
    assert np.abs(theirs.sum(0) - shares).sum() < 1e-11, "the oracle did not converge"
    np.testing.assert_allclose(40 * there(result.plan, scores), 40 * theirs, rtol=0, atol=1e-8)
    np.testing.assert_allclose(result.class_mass, shares, rtol=0, atol=1e-11)


def test_plan_of_pot_by_plain_iterations(there) -> None:
    scores = np.random.default_rng(1).random((60, 5))
    result = there(sinkhorn_assign, scores, epsilon=0.05, tol=1e-12, method="sinkhorn", max_sweeps=20_000)
    theirs = pot_plan(scores, np.full(5, 0.2), 0.05)
    np.testing.assert_allclose(60 * there(result.plan, scores), 60 * theirs, rtol=0, atol=1e-8)
    assert result.status is Status.CONVERGED


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n_samples", "n_classes"), [(80, 5), (400, 12), (150, 3)])
def test_parity_with_sela(n_samples: int, n_classes: int, seed: int, there) -> None:
    """Lambda 25 on log-probabilities: the same class scaling up to a constant, and the same argmax labels."""
    rng = np.random.default_rng(seed)
    log_probabilities = log_softmax(0.7 * normal(rng, n_samples, n_classes), axis=1)
    scaling, _, labels = sela_loop(log_probabilities)
    result = there(sinkhorn_assign, log_probabilities, epsilon=1 / 25, rounding="argmax", tol=1e-13)
    ours, theirs = 25 * result.plan_potentials, np.log(scaling)
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), rtol=0, atol=25e-9)
    np.testing.assert_array_equal(result.labels, labels)


def test_alive_where_sela_dies_on_an_unwanted_class(there) -> None:
    scores = dead_class(np.random.default_rng(0), 90, 3)
    log_probabilities = log_softmax(scores, axis=1)
    with np.errstate(all="ignore"):
        scaling, _, _ = sela_loop(log_probabilities, max_iterations=50)
    assert not np.isfinite(scaling).all(), "the loop was expected to die here"
    result = there(sinkhorn_assign, log_probabilities, epsilon=1 / 25)
    assert result.counts.tolist() == [30, 30, 30]
    assert result.marginal_error <= 1e-2
    np.testing.assert_allclose(entropic_plan(log_probabilities, result.plan_potentials, 0.04).sum(0), 1 / 3, atol=1e-2)


def test_alive_where_sela_dies_on_small_probabilities(there) -> None:
    """Probabilities under 1e-13 vanish when raised to the 25th power: whole classes are lost to the loop."""
    rng = np.random.default_rng(1)
    logits = normal(rng, 100, 4)
    logits[:, 0] += 60.0
    log_probabilities = log_softmax(logits, axis=1)
    assert np.exp(log_probabilities[:, 1:]).max() < 1e-13
    with np.errstate(all="ignore"):
        scaling, _, _ = sela_loop(log_probabilities, max_iterations=50)
    assert not np.isfinite(scaling).all(), "the loop was expected to die here"
    result = there(sinkhorn_assign, log_probabilities, epsilon=1 / 25)
    np.testing.assert_array_equal(result.labels, hungarian_labels(log_probabilities, even_counts(100, 4)))
    assert result.marginal_error <= 1e-2


@pytest.mark.parametrize("make", [normal, clusters])
@pytest.mark.parametrize("relative_epsilon", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("n_classes", [2, 10, 200])
def test_class_masses_are_met(make, relative_epsilon: float, dtype: type, n_classes: int, there) -> None:
    """From epsilon = the range of the scores down to 1e-4 of it, recomputed in float64 from the potentials."""
    rng = np.random.default_rng(2)
    scores, shares = make(rng, 3000, n_classes).astype(dtype), rng.dirichlet(np.full(n_classes, 2.0))
    epsilon = relative_epsilon * float(np.ptp(scores.astype(np.float64)))
    result = there(sinkhorn_assign, scores, class_mass=shares, epsilon=epsilon, tol=1e-3)
    reached = entropic_plan(scores, result.plan_potentials, epsilon).sum(0)
    assert result.status is Status.CONVERGED
    assert np.abs(reached - shares).sum() <= 1e-3 * (1 + 1e-3)
    assert abs(result.marginal_error - np.abs(reached - shares).sum()) <= 1e-5
    np.testing.assert_allclose(result.class_mass, reached, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("seed", [0, 1, 6, 9])
def test_few_classes_at_a_small_epsilon(n_classes: int, dtype: type, seed: int, there) -> None:
    """1e-4 of the range, very unequal shares, a tight tolerance: nearly a step function of one to four unknowns."""
    rng = np.random.default_rng(seed)
    scores = normal(rng, 12_000, n_classes).astype(dtype)
    shares = rng.dirichlet(np.full(n_classes, 0.3))
    result = there(sinkhorn_assign, scores, class_mass=shares, epsilon=8e-4, tol=1e-4, rounding="argmax")
    assert result.status is Status.CONVERGED
    assert np.abs(entropic_plan(scores, result.plan_potentials, 8e-4).sum(0) - shares).sum() <= 1.01e-4


def test_potentials_minimise_the_semidual(there) -> None:
    """F at the reported potentials is below F at every point around them."""
    rng = np.random.default_rng(3)
    scores, shares = normal(rng, 200, 6), rng.dirichlet(np.ones(6))
    g = there(sinkhorn_assign, scores, class_mass=shares, epsilon=0.1, tol=1e-11).plan_potentials
    least = semidual(scores, g, 0.1, shares)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            assert semidual(scores, g + size * rng.standard_normal(6), 0.1, shares) > least


def test_marginal_error_of_float64_is_exact(there) -> None:
    scores = clusters(np.random.default_rng(4), 700, 9)
    result = there(sinkhorn_assign, scores, tol=1e-4)
    reached = entropic_plan(scores, result.plan_potentials, 0.04).sum(0)
    assert result.marginal_error == pytest.approx(np.abs(reached - 1 / 9).sum(), abs=1e-12)
    np.testing.assert_allclose(result.class_mass, reached, rtol=0, atol=1e-13)


def test_default_tolerance_beyond_the_subsample(there) -> None:
    scores = clusters(np.random.default_rng(5), 50_000, 30).astype(np.float32)
    result = there(sinkhorn_assign, scores)
    reached = entropic_plan(scores, result.plan_potentials, 0.04).sum(0)
    assert np.abs(reached - 1 / 30).sum() <= 1e-2
    assert abs(result.marginal_error - np.abs(reached - 1 / 30).sum()) <= 1e-5
    assert result.n_sweeps <= 20


def test_integer_counts_are_the_target_shares() -> None:
    scores = normal(np.random.default_rng(6), 100, 3)
    result = sinkhorn_assign(scores, class_mass=[50, 30, 20], tol=1e-10)
    np.testing.assert_allclose(entropic_plan(scores, result.plan_potentials, 0.04).sum(0), [0.5, 0.3, 0.2], atol=1e-10)


def test_empty_class_gets_nothing(there) -> None:
    scores = normal(np.random.default_rng(7), 100, 3)
    result = there(sinkhorn_assign, scores, class_mass=[0.5, 0.0, 0.5], tol=1e-10)
    plan = there(result.plan, scores)
    assert plan[:, 1].max() == 0.0
    np.testing.assert_allclose(plan.sum(0), [0.5, 0.0, 0.5], rtol=0, atol=1e-10)
    np.testing.assert_allclose(100 * plan[:, ::2], 100 * pot_plan(scores[:, ::2], np.full(2, 0.5), 0.04), atol=1e-8)


def test_forbidden_pair_gets_nothing(there) -> None:
    scores = normal(np.random.default_rng(8), 60, 4)
    scores[np.random.default_rng(9).random(scores.shape) < 0.2] = -np.inf
    scores[:, 0] = 0.0
    result = there(sinkhorn_assign, scores, epsilon=0.1, tol=1e-10)
    plan = there(result.plan, scores)
    assert plan[np.isneginf(scores)].max() == 0.0
    np.testing.assert_allclose(plan, entropic_plan(scores, result.plan_potentials, 0.1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), 0.25, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_stopping_short_is_said_and_labels_stay_exact(method: str) -> None:
    scores = clusters(np.random.default_rng(10), 300, 8)
    with pytest.warns(ConvergenceWarning, match="sweep") as caught:
        result = sinkhorn_assign(scores, tol=1e-12, max_sweeps=2, method=method, remainder="first")
    assert caught[0].filename == __file__
    assert result.status is Status.MAX_SWEEPS
    assert result.marginal_error > 1e-12
    reached = entropic_plan(scores, result.plan_potentials, 0.04).sum(0)
    assert result.marginal_error == pytest.approx(np.abs(reached - 1 / 8).sum(), abs=1e-9)
    np.testing.assert_array_equal(result.labels, hungarian_labels(scores, even_counts(300, 8)))


def test_converged_solve_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = sinkhorn_assign(clusters(np.random.default_rng(11), 300, 8))
    assert result.status is Status.CONVERGED
    assert result.marginal_error <= 1e-2


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize("n_samples", [2000, 40_000])
def test_warm_start_needs_fewer_sweeps(method: str, n_samples: int) -> None:
    scores = clusters(np.random.default_rng(12), n_samples, 10).astype(np.float32)
    cold = sinkhorn_assign(scores, method=method, rounding="argmax", epsilon=0.1)
    warm = sinkhorn_assign(scores, method=method, rounding="argmax", epsilon=0.1, init=cold)
    by_potentials = sinkhorn_assign(scores, method=method, rounding="argmax", epsilon=0.1, init=cold.plan_potentials)
    assert warm.n_sweeps < cold.n_sweeps
    assert by_potentials.n_sweeps < cold.n_sweeps
    assert warm.marginal_error <= 1e-2


def test_warm_start_of_changed_scores_is_still_exact(there) -> None:
    rng = np.random.default_rng(13)
    scores = clusters(rng, 400, 7)
    changed = scores + 0.1 * normal(rng, 400, 7)
    result = there(sinkhorn_assign, changed, init=there(sinkhorn_assign, scores))
    np.testing.assert_array_equal(result.labels, hungarian_labels(changed, even_counts(400, 7)))


def test_absurd_warm_start_is_still_exact(there) -> None:
    scores = clusters(np.random.default_rng(14), 200, 5)
    result = there(sinkhorn_assign, scores, init=np.array([1e6, -1e6, 0.0, 1e3, 0.0]))
    np.testing.assert_array_equal(result.labels, hungarian_labels(scores, even_counts(200, 5)))
    assert result.marginal_error <= 1e-2
