"""Exact labels of samples with masses: whole ones are repeated rows, real ones are near the bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from constrained import drawn, kl_prices, lp_best, lp_plan, room_for, worth
from oracles import float64
from problems import normal
from scipy.special import kl_div

from otlabel import KL, Assignment, Range, sinkhorn_assign

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


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
