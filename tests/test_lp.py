"""lp_assign and certify: the exact program through POT, and the proof for anybody's labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import float64, hungarian_labels, loss_of, prove, tolerance, value_of
from problems import clusters, draw, normal, ties

from otlabel import Status, certify, lp_assign, sinkhorn_assign

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

LP_KINDS = ["ordinary", "ties_counts", "skewed_shares", "zero_targets", "forbidden", "tightly_forbidden", "one_class",
            "one_sample", "fewer_samples_than_classes", "very_peaked_counts", "all_equal", "float16", "bfloat16",
            "dead_class", "row_offset"]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", LP_KINDS)
def test_lp_assign_is_optimal_and_proven(kind: str, seed: int) -> None:
    scores, class_mass, counts = draw(kind, seed)
    result = lp_assign(scores, class_mass=class_mass)
    best = loss_of(scores, hungarian_labels(scores, counts))
    room = tolerance(scores, best)
    assert abs(loss_of(scores, result.labels) - best) <= room
    assert abs(prove(scores, result.labels, result.potentials).gap) <= room
    assert abs(result.gap) <= room
    np.testing.assert_array_equal(np.asarray(result.counts), counts)
    np.testing.assert_array_equal(np.bincount(result.labels, minlength=len(counts)), counts)


def test_lp_assign_agrees_with_sinkhorn_assign() -> None:
    scores = clusters(np.random.default_rng(0), 600, 12)
    np.testing.assert_array_equal(lp_assign(scores).labels, sinkhorn_assign(scores).labels)


def test_lp_assign_never_solves_a_smooth_problem() -> None:
    assert lp_assign(normal(np.random.default_rng(0), 12, 3)).status is Status.NOT_RUN


def test_lp_assign_refuses_large_problems() -> None:
    scores = normal(np.random.default_rng(0), 30, 4)
    with pytest.raises(ValueError, match=r"(?s)120.*max_entries|max_entries.*120"):
        lp_assign(scores, max_entries=119)
    assert sorted(lp_assign(scores, max_entries=120).counts.tolist()) == [7, 7, 8, 8]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("make", [normal, ties, clusters])
def test_certify_finds_the_tight_bound_of_any_labels(make, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = make(rng, 60, 5)
    labels = rng.integers(0, 5, 60)
    counts = np.bincount(labels, minlength=5)
    best = value_of(scores, hungarian_labels(scores, counts))
    found = certify(scores, labels)
    room = tolerance(scores, loss_of(scores, labels))
    assert found.value == pytest.approx(value_of(scores, labels), abs=room)
    assert abs(found.bound - best) <= room
    assert found.gap == pytest.approx(found.bound - found.value, abs=room)
    np.testing.assert_array_equal(np.asarray(found.counts), counts)


def test_certify_with_given_potentials() -> None:
    rng = np.random.default_rng(1)
    scores, labels, potentials = normal(rng, 200, 6), rng.integers(0, 6, 200), rng.standard_normal(6)
    found, proof = certify(scores, labels, potentials=potentials), prove(scores, labels, potentials)
    assert found.value == pytest.approx(proof.value, abs=1e-12)
    assert found.bound == pytest.approx(proof.bound, abs=1e-12)


def test_certify_accepts_the_proof_of_sinkhorn_assign() -> None:
    scores = clusters(np.random.default_rng(2), 300, 6).astype(np.float16)
    result = sinkhorn_assign(scores, class_mass=[100, 0, 50, 50, 50, 50])
    found = certify(scores, result.labels, potentials=result.potentials)
    assert found.gap + 1e-12 >= 0
    assert found.gap <= 1e-9
    assert found.relative_gap <= 1e-9


def test_certify_for_other_class_masses() -> None:
    """The bound then holds for every assignment of the stated masses, whatever the labels' own."""
    scores = normal(np.random.default_rng(3), 90, 3)
    greedy = scores.argmax(1)
    best = value_of(scores, hungarian_labels(scores, [30, 30, 30]))
    assert certify(scores, greedy, class_mass=[30, 30, 30]).bound == pytest.approx(best, abs=1e-9)
    assert certify(scores, greedy, class_mass=[1 / 3] * 3).bound == pytest.approx(best, abs=1e-9)


def test_certify_wrong_labels_by_a_known_amount() -> None:
    """Swapping two labels of the optimum costs what the four scores say."""
    scores = normal(np.random.default_rng(4), 50, 4)
    labels = sinkhorn_assign(scores).labels.copy()
    first, second = 0, int(np.flatnonzero(labels != labels[0])[0])
    labels[[first, second]] = labels[[second, first]]
    rows = float64(scores)[[first, second]]
    loss = rows[[0, 1], labels[[second, first]]].sum() - rows[[0, 1], labels[[first, second]]].sum()
    assert certify(scores, labels).gap == pytest.approx(loss / 50, abs=1e-12)


def test_certify_tensors_and_lists() -> None:
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert certify(scores, torch.tensor([1, 0])).gap == pytest.approx(0.0, abs=1e-12)
    assert certify(scores.numpy(), [0, 1]).gap == pytest.approx(1.0, abs=1e-12)


def test_greedy_labels_are_optimal_for_their_own_sizes() -> None:
    scores = normal(np.random.default_rng(5), 100, 5)
    assert certify(scores, scores.argmax(1), potentials=np.zeros(5)).gap == pytest.approx(0.0, abs=1e-12)
