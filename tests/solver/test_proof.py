"""What is called proven: optimal labels whatever the units and constants of scores, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from oracles import can_gain, hungarian_labels
from problems import normal

from otlabel import KL, Assignment, Range, certify, report, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError, InvalidScoresError
from otlabel.solver.outcome import Certificate

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

SCORES = normal(np.random.default_rng(0), 200, 10)
ARBITRARY = np.arange(200) % 10
CHANGES = {
    "as_they_are": lambda x: x,
    "constant": lambda x: x + 1e10,
    "constants_in_rows": lambda x: x + 1e8 * np.arange(200)[:, None],
    "float32_and_constant": lambda x: (x + 1e4).astype(np.float32),
    "small": lambda x: 1e-10 * x,
    "smaller": lambda x: 1e-290 * x,
    "subnormal": lambda x: (1e-40 * x).astype(np.float32),
    "large": lambda x: 1e12 * x,
    "stand_in_for_minus_infinity": lambda x: np.where(x < -1.5, -1e9, x),
    "tensor": lambda x: torch.from_numpy(x + 1e10),
}


def differences(scores) -> np.ndarray:
    """How far each score is below its row's best, in units of order 1; of stored numbers close together it is exact."""
    scores = np.asarray(scores, dtype=np.float64)
    below = scores - scores.max(1, keepdims=True)
    return below / np.abs(below).max()


@pytest.mark.parametrize("change", CHANGES)
def test_only_optimal_labels_are_proven(change: str) -> None:
    scores = CHANGES[change](SCORES)
    below = differences(scores)
    result = sinkhorn_assign(scores)
    labels, best = np.asarray(result.labels), hungarian_labels(below, np.full(10, 20))
    rows = np.arange(200)
    assert abs(below[rows, labels].sum() - below[rows, best].sum()) <= 1e-12 * 200
    assert result.proof.proven
    assert "proven optimal" in result.summary()
    for potentials in (None, result.potentials):
        assert certify(scores, labels, potentials=potentials).proven
        arbitrary = certify(scores, ARBITRARY, potentials=potentials)
        assert not arbitrary.proven
        assert "proven" not in arbitrary.summary()
        assert arbitrary.gap > 0


@pytest.mark.parametrize("change", ["as_they_are", "constant", "small"])
def test_two_labels_exchanged_are_not_proven(change: str) -> None:
    """A single pair of 200 that loses little: by how much is known exactly."""
    scores = CHANGES[change](SCORES)
    below = scores - scores.max(1, keepdims=True)
    result = sinkhorn_assign(scores)
    labels = result.labels.copy()
    own = below[np.arange(200), labels]
    loss = own[:, None] + own - below[:, labels] - below[:, labels].T
    i, j = np.unravel_index(np.argmin(np.where(labels[:, None] != labels, loss, np.inf)), loss.shape)
    labels[[i, j]] = labels[[j, i]]
    proof = certify(scores, labels, potentials=result.potentials)
    assert proof.gap == pytest.approx(loss[i, j] / 200, rel=1e-6)
    assert not proof.proven


@pytest.mark.parametrize("constant", [0.0, 1e10])
def test_abstaining_is_proven_whatever_the_constant(constant: float) -> None:
    plain = sinkhorn_assign(SCORES, abstain=0.25)
    result = sinkhorn_assign(SCORES + constant, abstain=0.25)
    assert result.proof.proven
    # The sum decides up to what is left of scores that a constant was added to.
    moved = (SCORES + constant) - constant
    kept, labelled = result.labels, np.flatnonzero(result.labels >= 0)
    other = np.flatnonzero(plain.labels >= 0)
    assert moved[labelled, kept[labelled]].sum() >= moved[other, plain.labels[other]].sum() - 1e-9
    assert result.value == pytest.approx(plain.value + 0.75 * constant, rel=1e-6)
    clear = np.abs((SCORES + constant + result.potentials).max(1) - result.threshold) > 1e-5
    np.testing.assert_array_equal((result.predict(SCORES + constant) < 0)[clear], (result.labels < 0)[clear])
    assert np.count_nonzero(~clear) <= 10  # no more than classes: each may have one sample at the threshold
    assert certify(SCORES + constant, result.labels).proven
    worse = result.labels.copy()
    worse[np.flatnonzero(worse < 0)[0]], worse[labelled[0]] = worse[labelled[0]], -1
    assert not certify(SCORES + constant, worse).proven


def test_sizes_that_are_off_are_no_proof() -> None:
    """A sample that cannot be split goes where most of it went, so that a class takes too much."""
    result = sinkhorn_assign(np.array([[5.0, 0], [0, 0]]), sample_mass=[3, 1])
    assert result.gap == pytest.approx(2 / 4 * 5 - 3 / 4 * 5)  # two thirds of it may count
    assert result.size_error == pytest.approx(0.25)
    assert "sizes are off by 25.00% of the mass, so this is no proof" in result.summary()
    scores = np.array([[0.0, 5, 1], [1, 0, 2], [3, 1, 0]])
    one_of_all = sinkhorn_assign(scores, sample_mass=[98, 1, 1])
    assert one_of_all.size_error == pytest.approx(0.65)  # 98 in place of a third
    assert "sizes are off by 65.00% of the mass" in one_of_all.summary().replace("\n          ", " ")
    assert "proven" not in one_of_all.summary()
    other = certify(SCORES, SCORES.argmax(1), class_mass=[20] * 10)
    assert other.gap < 0
    assert other.size_error == pytest.approx(np.maximum(20 - other.counts, 0).sum() / 200)
    assert "no proof" in other.summary()
    even = sinkhorn_assign(np.repeat(scores, 2, 0), sample_mass=[2, 2, 2, 3, 3, 3])
    assert even.proof.proven <= (even.size_error == 0)


UNPROVEN = [(2e-9, 1e-9, 0.0), (-2e-9, 1e-9, 0.0), (0.0, 1e-9, 0.1), (1e-300, 0.0, 0.0), (1e-12, np.nan, 0.0)]
PROVEN = [(0.0, np.nan), (0.0, 0.0), (1e-9, 1e-9), (-1e-9, 1e-9), (1e-20, 1e-19)]


@pytest.mark.parametrize(("gap", "rounding", "size_error"), UNPROVEN)
def test_what_is_not_proven(gap: float, rounding: float, size_error: float) -> None:
    assert not Certificate(1.0, 1.0 + gap, np.array([1]), gap, rounding, size_error).proven


@pytest.mark.parametrize(("gap", "rounding"), PROVEN)
def test_what_is_proven(gap: float, rounding: float) -> None:
    assert Certificate(1e10, 1e10 + gap, np.array([1]), gap, rounding).proven


def one_row_far(scores: np.ndarray) -> np.ndarray:
    scores[0, 0] = 1e12
    return scores


def one_class_far(scores: np.ndarray) -> np.ndarray:
    scores[:, 3] += 1e10
    return scores


def half_of_the_rows_large(scores: np.ndarray) -> np.ndarray:
    scores[::2] *= 1e10
    return scores


def stand_ins_for_minus_infinity(scores: np.ndarray) -> np.ndarray:
    return np.where(scores < -0.5, -1e12, scores)


@pytest.mark.parametrize("change", [one_row_far, one_class_far, half_of_the_rows_large, stand_ins_for_minus_infinity])
def test_what_is_large_somewhere_hides_nothing_elsewhere(change) -> None:
    """Two ordinary samples that change places lose far more than rounding, whatever others are like."""
    scores = change(SCORES.copy())
    result = sinkhorn_assign(scores)
    assert result.gap < 1e-3
    rows = np.flatnonzero(np.abs(scores).max(1) < 1e3) if change is half_of_the_rows_large else np.arange(100, 200)
    labels = np.asarray(result.labels).copy()
    first = rows[0]
    second = rows[labels[rows] != labels[first]][0]
    labels[[first, second]] = labels[[second, first]]
    worse = certify(scores, labels, potentials=result.potentials)
    assert worse.gap > 1e-3
    assert not worse.proven
    assert not certify(scores, labels).proven


def far_column(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scores[:, 1] -= 1e16
    return scores


def far_row(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scores[3] *= 1e14
    return scores


def far_row_and_wide_column(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scores[3] *= 1e14
    scores[:, 0] *= 1e10
    return scores


def rows_of_all_scales(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return scores * 10.0 ** rng.integers(-6, 9, len(scores))[:, None]


def columns_of_all_scales(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return scores * 10.0 ** rng.integers(-6, 9, scores.shape[1])


SCALES = [far_column, far_row, far_row_and_wide_column, rows_of_all_scales, columns_of_all_scales]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", SCALES)
def test_what_is_large_takes_no_digits_from_what_is_small(scale, seed: int) -> None:
    """Optimal in exact numbers; and proven, unless float64 has no potential between those that change labels."""
    rng = np.random.default_rng(seed)
    scores = scale(rng.normal(size=(rng.integers(20, 80), rng.integers(3, 7))), rng)
    n = len(scores)
    result = sinkhorn_assign(scores)
    assert can_gain(scores, result.labels) == 0
    assert result.proof.proven or scale is far_column
    proof = certify(scores, result.labels, potentials=result.potentials)
    assert proof.proven == result.proof.proven
    free = sinkhorn_assign(scores, classes=Range(0, n))
    np.testing.assert_array_equal(scores[np.arange(n), free.labels], scores.max(1))
    mass = rng.integers(1, 9, n)
    weighted = sinkhorn_assign(scores, sample_mass=mass)
    if not weighted.size_error:
        assert can_gain(scores.repeat(mass, 0), weighted.labels.repeat(mass)) == 0
    swapped = result.labels.copy()
    for first in range(4, 10):
        second = first + np.flatnonzero(swapped[first:] != swapped[first])[0]
        swapped[[first, second]] = swapped[[second, first]]
        if can_gain(scores, swapped):
            assert not certify(scores, swapped, potentials=result.potentials).proven
        swapped[[first, second]] = swapped[[second, first]]


def test_a_gap_within_the_rounding_of_other_rows_is_told() -> None:
    """One row of 1e16 does not hide what two usual ones lose by changing places; nor does one when some abstain."""
    scores = normal(np.random.default_rng(0), 60, 5)
    scores[7] *= 1e16
    for settings in ({}, {"abstain": 0.2}):
        result = sinkhorn_assign(scores, **settings)
        others = np.delete(np.arange(60), 7)
        counts = result.counts - np.bincount(result.labels[[7]], minlength=5)
        unlabelled = np.r_[counts, 59 - counts.sum()]
        best = hungarian_labels(np.c_[scores[others], np.zeros(59)], unlabelled)
        own = np.where(result.labels[others] < 0, 5, result.labels[others])
        value = np.c_[scores[others], np.zeros(59)][np.arange(59), own].sum()
        assert value == pytest.approx(np.c_[scores[others], np.zeros(59)][np.arange(59), best].sum(), abs=1e-12)
        assert result.proof.proven


def test_small_losses_among_many_samples_are_told() -> None:
    """Three swaps that lose 1e-5 each, or so, of 50,000 samples: far more than float64 rounds."""
    scores = normal(np.random.default_rng(1), 50_000, 4)
    result = sinkhorn_assign(scores)
    assert result.proof.proven
    labels = np.asarray(result.labels).copy()
    u = scores + result.potentials
    loss = u[np.arange(len(u)), labels] - np.where(np.arange(4) == 0, u, -np.inf).max(1)
    near = np.flatnonzero(labels == 1)[np.argsort(loss[labels == 1])[1:4]]
    back = u[:, 0] - u[:, 1]
    others = np.flatnonzero(labels == 0)[np.argsort(back[labels == 0])[1:4]]
    labels[near], labels[others] = 0, 1
    proof = certify(scores, labels, potentials=result.potentials)
    assert 1e-12 < proof.gap < 1e-7
    assert not proof.proven


@pytest.mark.parametrize("potentials", [np.full(10, 1e190), 1e16 * np.arange(10), np.full(10, 1e12)])
def test_the_value_does_not_depend_on_potentials(potentials: np.ndarray) -> None:
    proof = certify(SCORES, ARBITRARY, potentials=potentials)
    assert proof.value == pytest.approx(SCORES[np.arange(200), ARBITRARY].mean(), rel=1e-12)
    assert proof.gap > 0.1
    assert not proof.proven
    with pytest.raises(ValueError, match="potentials reach 1e\\+300"):
        certify(SCORES, ARBITRARY, potentials=1e300 * np.arange(2).repeat(5))


def test_labels_on_forbidden_pairs_are_said_to_be() -> None:
    scores = np.where(SCORES < -1, -np.inf, SCORES)
    proof = certify(scores, ARBITRARY, potentials=np.zeros(10))
    assert (proof.value, proof.gap) == (-np.inf, np.inf)
    assert "forbidden pairs" in proof.summary()


def test_report_and_summary_say_the_same() -> None:
    """Of labels that are optimal, that are not, and whose sizes are off."""
    for result, told in (
        (sinkhorn_assign(1e-10 * SCORES), "the labels are proven optimal"),
        (sinkhorn_assign(SCORES, sample_mass=np.r_[np.full(199, 1), 300]), "sizes are off by"),
    ):
        assert told in report(result)
        assert ("proven optimal" in result.summary()) == ("proven optimal" in report(result))
    labels = certify(1e-10 * SCORES, ARBITRARY)
    assert "proven" not in labels.summary()
    assert "proven optimal" not in report(ARBITRARY, scores=1e-10 * SCORES)


def test_saving_keeps_what_the_proof_goes_by(tmp_path) -> None:
    result = sinkhorn_assign(SCORES + 1e10, sample_mass=np.arange(1, 201))
    result.save(tmp_path / "a.npz")
    loaded = Assignment.load(tmp_path / "a.npz")
    for name in ("gap", "rounding", "size_error", "weighted"):
        assert getattr(loaded, name) == getattr(result, name)
    assert loaded.summary() == result.summary()


def test_files_of_earlier_releases_prove_by_a_gap_of_zero(tmp_path) -> None:
    result = sinkhorn_assign(SCORES)
    result.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header")))
    for name in ("gap", "rounding", "size_error", "weighted"):
        del header[name]
    np.savez(tmp_path / "b.npz", header=np.array(json.dumps(header)), **arrays)
    loaded = Assignment.load(tmp_path / "b.npz")
    assert loaded.gap == loaded.bound - loaded.value
    assert loaded.proof.proven == (loaded.gap == 0)
    assert not dataclasses.replace(loaded, bound=loaded.bound + 1e-3, gap=np.nan).proof.proven
    arrays["potentials"][3] = np.nan
    np.savez(tmp_path / "c.npz", header=np.array(json.dumps(header)), **arrays)
    with pytest.raises(ValueError, match="potentials is nan for class 3"):
        Assignment.load(tmp_path / "c.npz")


# ---- scores and settings of any size ----


@pytest.mark.parametrize(
    "rule", [{}, {"rounding": "argmax"}, {"classes": KL(1.0)}, {"abstain": 0.25}, {"classes": Range(3, 9)}]
)
@pytest.mark.parametrize("epsilon", [1e-200, 1e-39, 0.04, 1e150])
@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e-320, 1e-45, 1e15, 1e190])
def test_scores_of_any_size_are_solved(scale: float, epsilon: float, rule: dict) -> None:
    scores = scale * SCORES[:24, :4]
    result = sinkhorn_assign(scores, epsilon=epsilon, max_sweeps=60, **rule)
    assert np.isfinite(result.gap)
    assert np.isfinite(result.plan(scores)).all()
    if "classes" not in rule or isinstance(rule["classes"], Range):
        assert result.proof.proven
    if not rule and scale:
        below = differences(scores)
        best = hungarian_labels(below, np.full(4, 6))
        rows = np.arange(24)
        assert abs(below[rows, result.labels].sum() - below[rows, best].sum()) <= 1e-9


def test_what_is_beyond_numbers_is_refused() -> None:
    scores = SCORES[:24, :4]
    for scale in (1e210, 1e300, 1e307):
        with pytest.raises(InvalidScoresError, match="divide them by a constant"):
            sinkhorn_assign(scale * scores)
    with pytest.raises(InvalidScoresError, match="use -inf to forbid"):
        sinkhorn_assign(np.where(scores < -1, np.finfo(np.float64).min, scores))
    for epsilon in (5e-324, 1e-310, 1e-250, 1e300):
        with pytest.raises(ValueError, match="epsilon"):
            sinkhorn_assign(scores, epsilon=epsilon)
    with pytest.raises(ValueError, match="rho"):
        KL(1e-310)


# ---- classes without samples, plans with masses ----


@pytest.mark.parametrize("abstain", [0.0, 0.2])
@pytest.mark.parametrize("constant", [0.0, 1e9])
def test_a_class_without_samples_is_just_not_entered(constant: float, abstain: float) -> None:
    """The price at which a first sample would enter, computed here from its definition."""
    scores = SCORES[:10].repeat(2, 1)[:, :12] + 0.1 * normal(np.random.default_rng(1), 10, 12) + constant
    mass = np.r_[0.0, np.full(11, 1 / 11)]
    result = sinkhorn_assign(scores, class_mass=mass, abstain=abstain)
    assert np.isneginf(result.potentials[0])
    assert np.isfinite(result.potentials[1:]).all()
    empty = np.flatnonzero((result.counts == 0) & (mass > 0))
    assert len(empty) >= 1
    u = np.where(result.counts > 0, scores + result.potentials, -np.inf)
    best = np.maximum(u.max(1), result.threshold)
    entering = (scores[:, empty] + result.potentials[empty] - best[:, None]).max(0)
    resolution = 64 * np.finfo(np.float64).eps * (5 + constant)
    assert (entering <= resolution).all()
    assert (entering >= -resolution).all()
    ordered = np.sort(np.hstack([u, np.full((10, 1), result.threshold)]), 1)
    clear = ordered[:, -1] > ordered[:, -2] + 2 * resolution
    predicted = result.predict(scores)
    np.testing.assert_array_equal(predicted[clear], result.labels[clear])
    assert result.counts[predicted[predicted >= 0]].all()
    assert certify(scores, result.labels, potentials=result.potentials).gap <= resolution


def test_new_samples_go_to_classes_that_had_none() -> None:
    rng = np.random.default_rng(0)
    result = sinkhorn_assign(normal(rng, 10, 12))
    assert np.bincount(result.predict(normal(rng, 9000, 12)), minlength=12).min() > 0


def test_no_pass_more_without_such_classes() -> None:
    stages = [record["stage"] for record in sinkhorn_assign(SCORES).history]
    assert "prices" not in stages
    assert [record["stage"] for record in sinkhorn_assign(SCORES[:8]).history].count("prices") == 1


def test_a_plan_after_weights_asks_for_them() -> None:
    weights = np.arange(1, 31)
    result = sinkhorn_assign(SCORES[:30, :3], sample_mass=weights, tol=1e-9)
    with pytest.raises(ValueError, match="sample_mass"):
        result.plan(SCORES[:30, :3])
    for given in (weights, weights / weights.sum(), torch.from_numpy(weights)):
        plan = result.plan(SCORES[:30, :3], sample_mass=given)
        np.testing.assert_allclose(plan.sum(1), weights / weights.sum(), rtol=1e-12)
        np.testing.assert_allclose(plan.sum(0), 1 / 3, atol=1e-8)
    with pytest.raises(ValueError, match=r"sample_mass has shape \(3,\)"):
        result.plan(SCORES[:30, :3], sample_mass=[1, 2, 3])
    np.testing.assert_allclose(result.soft_labels(SCORES[:30, :3]).sum(1), 1.0)
    assert sinkhorn_assign(SCORES, sample_mass=np.full(200, 2)).plan(SCORES).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("mass", [None, [50, 50, 50, 50, 0, 0, 0, 0, 0, 0]])
def test_rows_without_a_class_are_named(mass) -> None:
    result = sinkhorn_assign(SCORES, class_mass=mass)
    new = SCORES[:9].copy()
    new[7, : (10 if mass is None else 4)] = -np.inf
    for method in (result.predict, result.plan, result.soft_labels):
        with pytest.raises(InfeasibleError, match=r"1 rows .* row 7;"):
            method(new)
    free = sinkhorn_assign(SCORES, class_mass=mass, abstain=0.1)
    assert free.predict(new)[7] == -1
    assert not free.plan(new)[7].any()


# ---- messages ----


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"classes": Range(0.05, 1)}, InvalidMassError, "hi is the integer 1, .* but lo is a share; write 1.0"),
        ({"classes": Range(0.0, 1)}, InfeasibleError, "at most 10, 190 too few, .*abstain=0.95.*one sample"),
        ({"classes": Range(0, 0)}, InfeasibleError, "at most 0, 200 too few"),
        ({"classes": Range(0.0, 0.0), "rounding": "argmax"}, InfeasibleError, "no class may take anything"),
        ({"classes": Range(0.0, 0.0), "samples": KL(1.0)}, InfeasibleError, "no class may take anything"),
        ({"classes": Range([21] * 10, [21] * 10)}, InfeasibleError, "at least 210, 10 too many, of 200 samples"),
        ({"classes": Range([20] * 9 + [21], [20] * 9 + [21])}, InfeasibleError, "at least 201, 1 too many"),
        ({"classes": Range([0.105] * 10, [0.105] * 10)}, InfeasibleError, "at least 210, 10 too many"),
        ({"classes": Range(0, 0.104)}, None, ""),
        ({"classes": Range(0, 0.1001), "abstain": 0.005}, None, ""),
        ({"classes": Range(0, 15)}, InfeasibleError, "150, 50 too few.*or leave 50 unlabelled by abstain=0.25"),
        ({"classes": Range(0, 0.05), "rounding": "argmax"}, InfeasibleError, "at most 0.5 of all samples"),
        ({"classes": Range(0, 0.05), "sample_mass": [3] + [1] * 199}, InfeasibleError, "most 0.495.*the sample mass"),
    ],
)  # fmt: skip
def test_what_is_said_of_bounds(settings: dict, error: type[Exception] | None, said: str) -> None:
    if error is None:
        assert sinkhorn_assign(SCORES, **settings).counts.sum() <= 200
        return
    with pytest.raises(error, match=said):
        sinkhorn_assign(SCORES, **settings)


def test_bounds_that_only_shares_can_meet() -> None:
    scores = normal(np.random.default_rng(0), 90, 50)
    with pytest.raises(InfeasibleError, match=r"1\.818 of them, so 1\), or take rounding=\"argmax\""):
        sinkhorn_assign(scores, classes=Range(0, 0.0202))
    result = sinkhorn_assign(scores, classes=Range(0, 0.0202), rounding="argmax")
    assert (result.class_mass <= 0.0202 + 0.01).all()
    assert result.class_mass.sum() == pytest.approx(1.0)


@pytest.mark.filterwarnings("default::otlabel.errors.OtlabelWarning")
def test_votes_are_no_probabilities(recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(0)
    sinkhorn_assign(np.eye(4)[rng.integers(0, 4, 80)])
    assert not recwarn.list
    sinkhorn_assign(rng.multinomial(5, [0.25] * 4, 80) / 5)
    assert "np.log(np.maximum(p, 1e-9)), as some are 0" in str(recwarn.pop().message)


def closed_rows(n_samples: int, n_closed: int) -> np.ndarray:
    scores = np.random.default_rng(0).standard_normal((n_samples, 3))
    scores[:n_closed] = -np.inf
    return scores


@pytest.mark.parametrize(
    ("scores", "settings"),
    [
        (closed_rows(3_000, 0), {"classes": Range(0, [1_000, 500, 499])}),
        (closed_rows(70, 0), {"classes": Range(0, [10, 20, 17])}),
        (closed_rows(70, 0), {"classes": Range(0.0, [0.1, 0.2, 1 / 3])}),
        (closed_rows(70, 0), {"classes": Range(0.0, [0.1, 0.2, 1 / 3]), "rounding": "argmax"}),
        (closed_rows(70, 3), {}),
        (closed_rows(300, 1), {"abstain": 0.001}),
        (closed_rows(70, 3), {"abstain": 0.02}),
        (closed_rows(70, 3), {"sample_mass": np.arange(70) + 1}),
        (closed_rows(70, 3), {"sample_mass": (np.arange(70) + 1) / 2485, "abstain": 1e-4}),
    ],
)
def test_the_remedy_by_abstain_works(scores: np.ndarray, settings: dict[str, Any]) -> None:
    with pytest.raises(InfeasibleError) as caught:
        sinkhorn_assign(scores, **settings)
    share = float(re.search(r"abstain=([\d.e-]+)", str(caught.value))[1])
    result = sinkhorn_assign(scores, **settings | {"abstain": share})
    assert (result.labels[np.isneginf(scores[:, 0])] == -1).all()
    assert (result.labels >= 0).any()


def test_large_sizes_are_told_in_full() -> None:
    scores = np.zeros((3_000_000, 2), np.float32)
    with pytest.raises(InfeasibleError, match=f"at most 2000001, 999999 too few.*abstain={999_999 / 3_000_000!r}"):
        sinkhorn_assign(scores, classes=Range([10**6, 10**6 + 1], [10**6, 10**6 + 1]))


def test_rows_of_classes_whose_share_rounds_to_nothing() -> None:
    scores = np.zeros((3, 8))
    scores[:, :3] = -np.inf  # three samples make sizes 1, 1, 1, 0, ...
    with pytest.raises(InfeasibleError, match=r"whole sizes as class_mass, or classes=Range\(0.0, 1.0\)"):
        sinkhorn_assign(scores, remainder="first")
    for settings in ({}, {"class_mass": [0, 0, 0, 1, 1, 1, 0, 0]}, {"classes": Range(0.0, 1.0)}):
        assert (sinkhorn_assign(scores, **settings).labels >= 3).all()


@pytest.mark.parametrize("abstain", [0.0, 0.3])
def test_tiny_scores_take_no_more_passes_than_large_ones(abstain: float) -> None:
    scores = normal(np.random.default_rng(0), 600, 12).astype(np.float64)
    plain = sinkhorn_assign(scores, abstain=abstain)
    for scale in (2.0**-40, 2.0**-400, 2.0**-900):
        result = sinkhorn_assign(scores * scale, abstain=abstain)
        assert result.proof.proven
        assert result.value == pytest.approx(scale * plain.value, rel=1e-9)
        assert result.n_sweeps < 40
