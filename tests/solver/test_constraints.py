"""Exact labels under every rule on masses: the optimum of the linear program, bounds met exactly, and a proof."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from constrained import (
    SCORES,
    assert_labels_follow,
    assert_proven,
    assert_zero_unless_bound,
    drawn,
    drawn_bounds,
    lp_best,
    room_for,
    sizes_of,
    worth,
)
from oracles import even_counts, float64, round_shares
from problems import normal

from otlabel import KL, Assignment, Exact, Range, certify, sinkhorn_assign
from otlabel.errors import InfeasibleError

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


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
    even = sinkhorn_assign(scores, abstain=share, remainder="first")
    np.testing.assert_array_equal(even.counts, even_counts(n_samples - unlabelled, 4))
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    skewed = sinkhorn_assign(scores, class_mass=shares, abstain=share, remainder="first")
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
    assert abs(worth(scores, result.labels) - lp_best(scores, [10] * 5, [11] * 5, unlabelled=6)) <= 1e-7
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


@pytest.mark.parametrize("seed", range(4))
def test_new_samples_within_what_is_left_of_limits(seed: int) -> None:
    """The best labels that keep old and new samples together within limits, given those that the old ones have."""
    rng = np.random.default_rng(seed)
    old, new = normal(rng, 60, 5), normal(rng, 33, 5) + np.linspace(0, 2, 5)
    result = sinkhorn_assign(old)
    least, most = 15, 24
    lo, hi = np.maximum(least - result.counts, 0), most - result.counts
    more = sinkhorn_assign(new, classes=Range(lo, hi), init=result)
    sizes = result.counts + more.counts
    assert ((least <= sizes) & (sizes <= most)).all()
    assert worth(new, more.labels) == pytest.approx(lp_best(new, lo, hi), abs=1e-7)
    assert more.proof.proven
    with pytest.raises(InfeasibleError, match="12 too few"):
        sinkhorn_assign(normal(rng, 72, 5), classes=Range(0, hi))
