"""Exact labels: the true optimum, the exact class sizes, and a proof that stands up to recomputation."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from oracles import (
    assert_proven,
    emd_loss,
    even_counts,
    float64,
    highs_loss,
    hungarian_labels,
    loss_of,
    prove,
    round_shares,
    tolerance,
    value_of,
)
from problems import KINDS, clusters, dead_class, draw, duplicates, normal, ties

from otlabel import Assignment, sinkhorn_assign

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


def assert_labels_are_best(result: Assignment, scores) -> None:
    """Every label is the best class of scores + potentials, up to ties."""
    u = float64(scores) + float64(result.potentials)
    labels = np.asarray(result.labels)
    short = u.max(1) - u[np.arange(len(u)), labels]
    assert short.max() <= len(u) * tolerance(scores, loss_of(scores, labels))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_optimum_of_three_solvers(kind: str, seed: int, there) -> None:
    scores, class_mass, counts = draw(kind, seed)
    result = there(sinkhorn_assign, scores, class_mass=class_mass)
    best = loss_of(scores, hungarian_labels(scores, counts))
    room = tolerance(scores, best)
    assert abs(loss_of(scores, result.labels) - best) <= room
    assert abs(emd_loss(scores, counts) - best) <= room
    assert abs(highs_loss(scores, counts) - best) <= room
    assert_proven(result, scores, counts)
    assert_labels_are_best(result, scores)


@pytest.mark.parametrize("make", [normal, clusters, ties, duplicates, dead_class])
@pytest.mark.parametrize(("n_samples", "n_classes"), [(500, 40), (400, 400), (300, 700)])
def test_middle_sizes_against_the_hungarian_method(make, n_samples: int, n_classes: int, there) -> None:
    scores = make(np.random.default_rng(n_samples), n_samples, n_classes)
    counts = even_counts(n_samples, n_classes)
    result = there(sinkhorn_assign, scores, remainder="first")
    best = loss_of(scores, hungarian_labels(scores, counts))
    assert abs(loss_of(scores, result.labels) - best) <= tolerance(scores, best)
    assert_proven(result, scores, counts)


@pytest.mark.parametrize("seed", range(3))
def test_skewed_middle_sizes_against_network_simplex(seed: int, there) -> None:
    rng = np.random.default_rng(seed)
    scores = clusters(rng, 2000, 30).astype(np.float32)
    counts = rng.multinomial(2000, rng.dirichlet(np.full(30, 0.3)))
    result = there(sinkhorn_assign, scores, class_mass=counts)
    best = emd_loss(scores, counts)
    assert abs(loss_of(scores, result.labels) - best) <= tolerance(scores, best)
    assert_proven(result, scores, counts)


@pytest.mark.parametrize("make", [normal, clusters, ties, duplicates, dead_class])
def test_beyond_the_subsample(make, there) -> None:
    """More rows than the coarse solve looks at: the certificate itself is the oracle."""
    scores = make(np.random.default_rng(5), 40_000, 20).astype(np.float32)
    assert_proven(there(sinkhorn_assign, scores), scores, even_counts(40_000, 20))


@pytest.mark.parametrize("levels", [2, 5, 40])
def test_many_ties_stay_quick(levels: int) -> None:
    """Scores of few levels tie most rows in many classes; ordinary scores of this size take a fiftieth of a second."""
    scores = np.random.default_rng(levels).integers(0, levels, (20_000, 50)).astype(np.float32)
    sinkhorn_assign(scores)  # compiles, where nothing is in the cache yet
    begun = time.process_time()
    result = sinkhorn_assign(scores)
    assert time.process_time() - begun < 3.0
    assert_proven(result, scores, even_counts(20_000, 50))


def test_all_equal_beyond_the_subsample(there) -> None:
    scores = np.zeros((40_000, 30), dtype=np.float32)
    assert_proven(there(sinkhorn_assign, scores, remainder="first"), scores, even_counts(40_000, 30))


@pytest.mark.parametrize(("n_samples", "n_classes"), [(3000, 1500), (64, 20_000)])
def test_many_classes(n_samples: int, n_classes: int, there) -> None:
    scores = clusters(np.random.default_rng(1), n_samples, n_classes).astype(np.float32)
    result = there(sinkhorn_assign, scores, remainder="first")
    assert_proven(result, scores, even_counts(n_samples, n_classes))


@pytest.mark.parametrize("epsilon", [10.0, 1.0, 0.04, 1e-3, 1e-4])
@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_epsilon_and_method_do_not_move_the_optimum(epsilon: float, method: str, there) -> None:
    scores = clusters(np.random.default_rng(2), 200, 8)
    result = there(sinkhorn_assign, scores, epsilon=epsilon, method=method, max_sweeps=50)
    np.testing.assert_array_equal(result.labels, hungarian_labels(scores, even_counts(200, 8)))
    assert_proven(result, scores, even_counts(200, 8))


def test_random_shares_follow_largest_remainder() -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        n_samples, n_classes = int(rng.integers(1, 60)), int(rng.integers(1, 9))
        shares = rng.dirichlet(np.ones(n_classes))
        result = sinkhorn_assign(normal(rng, n_samples, n_classes), class_mass=shares, remainder="first")
        np.testing.assert_array_equal(result.counts, round_shares(n_samples, shares))


@pytest.mark.parametrize(
    ("n_samples", "shares", "counts"),
    [
        (10, [0.25, 0.25, 0.5], [3, 2, 5]),
        (3, [0.25, 0.25, 0.25, 0.25], [1, 1, 1, 0]),
        (7, [0.5, 0.5, 0.0], [4, 3, 0]),
        (2, [0.125, 0.125, 0.25, 0.25, 0.25], [0, 0, 1, 1, 0]),
        (5, [1.0], [5]),
    ],
)
def test_known_shares(n_samples: int, shares: list[float], counts: list[int], there) -> None:
    scores = normal(np.random.default_rng(0), n_samples, len(shares))
    assert there(sinkhorn_assign, scores, class_mass=shares, remainder="first").counts.tolist() == counts


@pytest.mark.parametrize("wrap", [list, tuple, np.asarray, torch.tensor, lambda c: np.asarray(c, dtype=np.int32)])
def test_counts_in_any_container(wrap) -> None:
    scores = normal(np.random.default_rng(0), 9, 3)
    result = sinkhorn_assign(scores, class_mass=wrap([5, 0, 4]))
    np.testing.assert_array_equal(result.labels, hungarian_labels(scores, [5, 0, 4]))


def test_hand_worked_example(there) -> None:
    """Both samples like class 0; sample 1 loses less by moving."""
    result = there(sinkhorn_assign, np.array([[5.0, 0.0], [5.0, 4.0]]))
    assert result.labels.tolist() == [0, 1]
    assert result.value == 4.5
    assert result.gap == pytest.approx(0.0, abs=1e-15)


def test_chain_of_moves(there) -> None:
    """One surplus sample at one end and one empty class at the other: the whole chain must shift."""
    n_classes = 60
    scores = np.full((n_classes, n_classes), -np.inf)
    scores[0, 0] = 0.0
    for i in range(1, n_classes):
        scores[i, i - 1], scores[i, i] = 1.0, 0.0
    result = there(sinkhorn_assign, scores)
    assert result.labels.tolist() == list(range(n_classes))
    assert result.value == 0.0


def test_argmax_rounding_is_the_best_class_of_the_plan(there) -> None:
    scores = clusters(np.random.default_rng(4), 500, 7)
    result = there(sinkhorn_assign, scores, rounding="argmax")
    np.testing.assert_array_equal(result.labels, (scores + result.plan_potentials).argmax(1))
    np.testing.assert_array_equal(result.counts, np.bincount(result.labels, minlength=7))
    assert result.value == pytest.approx(value_of(scores, result.labels), rel=1e-12)
    assert result.gap == pytest.approx(result.bound - result.value, abs=1e-15)


def test_memory_map_is_read_in_place(tmp_path) -> None:
    scores = normal(np.random.default_rng(6), 300, 5).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    result = sinkhorn_assign(mapped)
    assert type(result.labels) is np.ndarray
    np.testing.assert_array_equal(result.labels, hungarian_labels(scores, even_counts(300, 5)))


def test_nested_lists_are_scores_too() -> None:
    assert sinkhorn_assign([[1.0, 0.0], [3.0, 0.0]]).labels.tolist() == [1, 0]


def test_tensor_that_requires_grad() -> None:
    scores = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    result = sinkhorn_assign(scores)
    assert not result.potentials.requires_grad
    np.testing.assert_array_equal(result.labels.numpy(), hungarian_labels(scores, even_counts(40, 4)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_device_gives_the_value_of_the_cpu(dtype: torch.dtype) -> None:
    scores = torch.from_numpy(clusters(np.random.default_rng(8), 5000, 40)).to(dtype)
    on_cpu, on_device = sinkhorn_assign(scores), sinkhorn_assign(scores.cuda())
    assert on_device.labels.is_cuda
    assert on_device.labels.dtype == torch.int64
    assert abs(on_device.value - on_cpu.value) <= on_device.gap + on_cpu.gap + 1e-12
    np.testing.assert_array_equal(on_device.counts.cpu(), even_counts(5000, 40))
    assert abs(prove(scores, on_device.labels.cpu(), on_device.potentials).gap) <= 1e-9


@pytest.mark.parametrize("epsilon", [100.0, 10.0, 1.0])
def test_large_epsilon_is_sharpened_before_rounding(epsilon: float, there) -> None:
    """A flat plan says little about sizes: without smaller epsilons in between, thousands of moves would be left."""
    scores = 3 * np.random.default_rng(5).normal(size=(20_000, 40))
    flat, sharp = there(sinkhorn_assign, scores, epsilon=epsilon), there(sinkhorn_assign, scores)
    assert flat.counts.tolist() == [500] * 40
    assert flat.value == pytest.approx(sharp.value, rel=1e-12)
    assert sum(record["stage"] == "round" for record in flat.history) <= 2
