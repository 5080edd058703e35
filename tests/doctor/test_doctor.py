"""The doctor: matrices with planted faults are diagnosed, and the suggested epsilon fits scores of every scale."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Ran
from oracles import hungarian_labels
from problems import KINDS, clusters, draw, normal
from scipy.special import log_softmax, softmax

import otlabel
from otlabel import sinkhorn_assign
from otlabel.doctor import Diagnosis, diagnose
from otlabel.errors import InvalidMassError, InvalidScoresError, MissingPackageError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def topics(diagnosis: Diagnosis, severity: str) -> set[str]:
    return {finding.topic for finding in diagnosis.findings if finding.severity == severity}


# ---- planted faults ----


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bad_scores_are_counted_by_kind_and_their_rows_left_out(rng, dtype) -> None:
    scores = normal(rng, 500, 6).astype(dtype)
    clean = diagnose(np.delete(scores, [3, 4, 7], axis=0))
    scores[3, :2] = np.nan
    scores[4, 5] = np.inf
    scores[7, 1], scores[7, 2] = np.nan, np.inf
    found = diagnose(scores)
    assert (found.n_nan, found.n_plus_inf, found.n_minus_inf, found.n_bad_rows) == (3, 2, 0, 3)
    assert "finite" in topics(found, "problem")
    for name in ("argmax_sizes", "effective_classes", "spread", "epsilon", "changed_share", "score_lost"):
        assert getattr(found, name) == getattr(clean, name), name


def test_forbidden_pairs_and_closed_rows(rng) -> None:
    scores = normal(rng, 300, 5)
    scores[10] = -np.inf
    scores[11, :3] = -np.inf
    found = diagnose(scores)
    assert (found.n_minus_inf, found.n_closed_rows, found.n_bad_rows) == (8, 1, 0)
    assert "forbidden" in topics(found, "problem") & topics(found, "note")


def test_nothing_usable_is_still_a_diagnosis() -> None:
    found = diagnose(np.full((4, 3), np.nan))
    assert (found.n_nan, found.n_bad_rows, found.epsilon, found.argmax_sizes) == (12, 4, None, ())
    assert found.severity == "problem"
    json.dumps(found.to_dict(), allow_nan=False)


PROBABLE = softmax(3 * np.random.default_rng(0).normal(size=(200, 5)), 1)


@pytest.mark.parametrize(
    ("scores", "alike"),
    [
        (PROBABLE, True),
        (PROBABLE.astype(np.float16), True),
        ((0.97 * PROBABLE).astype(np.float16), False),  # by more than halves round
        (PROBABLE / 2, False),
        (np.eye(5)[PROBABLE.argmax(1)], False),  # votes
        (np.log(PROBABLE), False),
    ],
    ids=["float64", "float16", "float16 off", "half of it", "votes", "logarithms"],
)
def test_the_doctor_and_assign_know_probabilities_alike(scores: np.ndarray, alike: bool) -> None:
    assert (diagnose(scores).kind == "probabilities") == alike
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sinkhorn_assign(scores)
    assert any("like probabilities" in str(one.message) for one in told) == alike


def test_no_possible_balance_is_a_finding(rng) -> None:
    scores = normal(rng, 40, 4)
    scores[:30, 1:] = -np.inf
    found = diagnose(scores)
    assert "balance" in topics(found, "problem")
    assert found.changed_share is None


def test_duplicate_and_constant_rows(rng) -> None:
    scores = normal(rng, 200, 5)
    scores[100:120] = scores[:20]
    scores[120:130] = 3.5
    found = diagnose(scores)
    assert found.duplicate_share == pytest.approx((20 + 9) / 200)
    assert found.n_constant_rows == 10
    assert {"duplicates", "constant"} <= topics(found, "note")


def test_a_row_with_one_class_allowed_is_not_constant(rng) -> None:
    scores = normal(rng, 60, 4)
    scores[0, 1:] = -np.inf
    scores[1] = 2.0
    assert diagnose(scores).n_constant_rows == 1


def test_all_equal_scores_say_nothing() -> None:
    found = diagnose(np.zeros((50, 4)))
    assert {"constant", "duplicates"} <= topics(found, "problem")
    assert found.epsilon is None


def test_dead_and_greedy_classes_are_named(rng) -> None:
    scores = normal(rng, 1000, 10)
    scores[:, 7] -= 100.0
    scores[:600, 2] += 100.0
    found = diagnose(scores)
    assert (found.dead_classes, found.greedy_classes) == ((7,), (2,))
    assert found.argmax_sizes == tuple(np.bincount(scores.argmax(1), minlength=10).tolist())
    assert "unwanted" not in topics(found, "note")
    scores[:, 7] -= 1e4
    assert "unwanted" in topics(diagnose(scores), "note")


def test_a_class_that_is_to_stay_empty_is_not_dead(rng) -> None:
    scores = normal(rng, 200, 4)
    scores[:, 3] -= 100.0
    assert diagnose(scores, class_mass=[100, 50, 50, 0]).dead_classes == ()


def test_effective_classes_by_hand() -> None:
    scores = np.zeros((8, 4))
    scores[np.arange(8), [0, 0, 0, 0, 1, 1, 1, 1]] = 1.0
    scores += np.arange(8)[:, None]
    assert diagnose(scores).effective_classes == pytest.approx(2.0)


def test_spread_and_margins_by_hand() -> None:
    scores = np.array([[0.0, 1.0, 5.0], [2.0, 9.0, 8.0], [4.0, 1.0, -np.inf]])
    found = diagnose(scores)
    assert found.spread == 5.0  # of 5, 7, 3
    assert (found.margin_low, found.margin_median, found.margin_high) == pytest.approx((1.4, 3.0, 3.8))  # of 4, 1, 3


# ---- what the scores look like ----


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities", "similarities", "non-positive", "logits"])
def test_kinds_of_scores_are_told_apart(rng, kind, dtype) -> None:
    raw = 2 * normal(rng, 400, 30)
    made = {
        "probabilities": softmax(raw, 1),
        "log-probabilities": log_softmax(raw, 1),
        "similarities": np.tanh(raw) * 0.99,
        "non-positive": -(raw**2) - 1,
        "logits": raw,
    }[kind]
    found = diagnose(torch.from_numpy(made).to(getattr(torch, dtype)))
    assert found.kind == kind
    assert ("kind" in topics(found, "problem")) == (kind == "probabilities")


def test_distances_passed_as_scores_are_noted(rng) -> None:
    found = diagnose(normal(rng, 300, 8) ** 2 + 0.1)
    assert found.kind == "non-negative"
    assert "kind" in topics(found, "note")


@pytest.mark.parametrize("make", [log_softmax, softmax])
def test_transposed_matrices_are_recognised(rng, make) -> None:
    upright = make(normal(rng, 700, 12), 1)
    assert not diagnose(upright).transposed
    found = diagnose(upright.T)
    assert found.transposed
    assert "shape" in topics(found, "problem")


def test_a_wide_matrix_of_logits_is_suspicious_by_its_shape_alone(rng) -> None:
    assert "shape" in topics(diagnose(normal(rng, 5, 100)), "problem")
    assert "shape" in topics(diagnose(normal(rng, 30, 40)), "note")
    assert "shape" not in topics(diagnose(normal(rng, 40, 30)), "note")


# ---- what balance costs ----


def test_cost_of_balance_is_that_of_the_best_labels(rng) -> None:
    scores = clusters(rng, 120, 6)
    best = hungarian_labels(scores, np.full(6, 20))
    found = diagnose(scores)
    rows = np.arange(120)
    assert found.changed_share == pytest.approx(np.mean(best != scores.argmax(1)))
    assert found.score_lost == pytest.approx(np.mean(scores.max(1) - scores[rows, best]), abs=1e-9)
    assert found.n_assessed == 120


def test_cost_for_given_class_sizes(rng) -> None:
    scores = normal(rng, 100, 4)
    sizes = np.bincount(scores.argmax(1), minlength=4)
    found = diagnose(scores, class_mass=sizes)
    assert found.balanced_sizes == tuple(sizes.tolist())
    assert (found.changed_share, found.score_lost) == (0.0, pytest.approx(0.0, abs=1e-12))


def test_large_matrices_are_assessed_on_a_stated_sample(rng, monkeypatch) -> None:
    scores = clusters(rng, 6000, 10)
    whole = diagnose(scores)
    monkeypatch.setattr("otlabel.doctor.looking.ASSESSED_ENTRIES", 20_000)
    sampled = diagnose(scores)
    assert (whole.n_assessed, sampled.n_assessed) == (6000, 2000)
    assert "random sample of 2,000 rows" in " ".join(sampled.summary().split())
    assert sampled.argmax_sizes == whole.argmax_sizes
    assert sampled.changed_share == pytest.approx(whole.changed_share, abs=0.05)
    assert sampled.score_lost == pytest.approx(whole.score_lost, rel=0.1)
    assert sampled == diagnose(scores)


def test_scores_are_read_by_blocks_and_never_written(rng) -> None:
    scores = clusters(rng, 500, 7)
    before = scores.copy()
    scores.flags.writeable = False
    diagnose(scores)
    np.testing.assert_array_equal(scores, before)


# ---- epsilon ----

SCALED = ["ordinary", "clusters", "log_probabilities", "negative_distances", "row_offset", "class_offset", "float32"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("make", ["logits", "log-probabilities", "similarities", "dead class", "two classes"])
def test_suggested_epsilon_gives_a_balanced_plan_of_sensible_sharpness(rng, make, scale) -> None:
    scores = {
        "logits": normal(rng, 3000, 20),
        "log-probabilities": clusters(rng, 3000, 20),
        "similarities": np.tanh(normal(rng, 3000, 20) / 4),
        "dead class": np.where(np.arange(20) == 4, -1e4, normal(rng, 3000, 20)),
        "two classes": normal(rng, 3000, 2),
    }[make] * scale
    epsilon = diagnose(scores).epsilon
    assert epsilon is not None
    result = sinkhorn_assign(scores, epsilon=epsilon, tol=1e-3)
    sharpness = np.asarray(result.soft_labels(scores)).max(1).mean()
    assert 0.85 <= sharpness <= 0.95
    assert result.marginal_error <= 1e-3


@pytest.mark.parametrize("kind", SCALED)
def test_suggested_epsilon_scales_with_the_scores_and_ignores_row_shifts(kind) -> None:
    scores = np.asarray(draw(kind, 1).scores, np.float64)
    epsilon = diagnose(scores).epsilon
    assert epsilon is not None
    assert diagnose(1024.0 * scores).epsilon == pytest.approx(1024.0 * epsilon, rel=0.06)  # two digits are given
    shifted = scores - scores.mean(1, keepdims=True)
    assert diagnose(shifted).epsilon == pytest.approx(epsilon, rel=0.06)


# ---- every kind of problem ----


@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_gets_a_diagnosis(kind) -> None:
    scores, class_mass, counts = draw(kind, 0)
    found = diagnose(scores, class_mass=class_mass)
    assert found.balanced_sizes == tuple(counts.tolist())
    assert sum(found.argmax_sizes) == found.n_rows
    assert 0 <= found.changed_share <= 1
    assert found.score_lost >= 0
    assert max(map(len, found.summary().splitlines())) <= 80
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["severity"] == found.severity


def test_what_is_no_matrix_is_refused(rng) -> None:
    with pytest.raises(InvalidScoresError, match="matrix"):
        diagnose(np.zeros(5))
    with pytest.raises(InvalidMassError, match="sums to 3"):
        diagnose(normal(rng, 8, 2), class_mass=[1, 2])


# ---- the command ----


@pytest.fixture
def run(run: Callable[..., Ran]) -> Callable[..., Ran]:
    """A function that runs `otlabel doctor` in this process."""
    return functools.partial(run, "doctor")


@pytest.fixture
def file(tmp_path: Path, rng) -> Path:
    np.save(tmp_path / "scores.npy", clusters(rng, 400, 8))
    return tmp_path / "scores.npy"


def test_command_prints_findings_or_json(run, file) -> None:
    ran = run(file)
    assert (ran.code, ran.err) == (0, "")
    assert "Suggested epsilon" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    told = json.loads(run(file, "--json", "--class-mass", "50,50,50,50,50,50,100,0").out)
    assert told["balanced_sizes"] == [50, 50, 50, 50, 50, 50, 100, 0]
    assert told["findings"][0] == {
        "severity": "ok", "topic": "finite", "sentence": "No score is NaN or +inf.", "remedy": ""
    }  # fmt: skip


def test_problems_are_no_failure_of_the_command(run, tmp_path) -> None:
    np.save(tmp_path / "scores.npy", np.full((5, 3), np.nan))
    ran = run(tmp_path / "scores.npy")
    assert (ran.code, ran.err) == (0, "")
    assert "15 scores NaN" in ran.out


def test_what_cannot_be_read_is_a_failure(run, tmp_path) -> None:
    ran = run(tmp_path / "absent.npy")
    assert (ran.code, ran.out) == (2, "")
    assert "absent.npy does not exist" in ran.err


def test_plot_is_a_picture_and_replaces_nothing_unasked(run, file) -> None:
    picture = file.with_name("sizes.png")
    assert run(file, "--plot", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    ran = run(file, "--plot", picture)
    assert (ran.code, ran.out) == (2, "")
    assert "--force" in ran.err
    assert run(file, "--plot", picture, "--force").code == 0
    assert run(file, "--plot", file.with_name("sizes.jpg")).code == 2
    assert sorted(path.name for path in file.parent.iterdir()) == ["scores.npy", "sizes.png"]


def test_missing_matplotlib_is_told_before_the_work(run, file, monkeypatch) -> None:
    def missing() -> None:
        raise MissingPackageError("matplotlib", "report")

    monkeypatch.setattr("otlabel.doctor.require_matplotlib", missing)
    monkeypatch.setattr("otlabel.doctor.diagnose", lambda *_, **__: pytest.fail("looked first"))
    ran = run(file, "--plot", file.with_name("sizes.png"))
    assert ran.code == 1
    assert 'pip install "jinja2' in ran.err


def test_diagnose_is_a_public_name() -> None:
    assert otlabel.diagnose is diagnose
