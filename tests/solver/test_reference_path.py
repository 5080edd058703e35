"""The whole method on tensors of a device without a compiled sweep, with the CPU's memory standing in for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import float64, hungarian_labels, loss_of, prove, tolerance
from problems import clusters, draw

import otlabel.assign
import otlabel.result
from otlabel import sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidScoresError
from otlabel.sources import Opened, TensorSource

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

KINDS = ["ordinary", "ties_counts", "very_peaked_counts", "flat", "skewed_shares", "zero_targets", "forbidden",
         "tightly_forbidden", "few_choices", "one_class", "one_sample", "fewer_samples_than_classes", "dead_class",
         "duplicates_counts", "all_equal_counts", "same_row", "powers_of_two", "float32_rounds_alike", "float32",
         "float16", "bfloat16", "row_offset"]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_compiled_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_on_device(scores, **options: Any) -> Opened:
        return Opened.of(TensorSource(torch.as_tensor(scores)))

    monkeypatch.setattr(otlabel.assign, "open_scores", open_on_device)
    monkeypatch.setattr(otlabel.result, "open_scores", open_on_device)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_optimum(kind: str, seed: int) -> None:
    scores, class_mass, counts = draw(kind, seed)
    scores = torch.as_tensor(scores)
    result = sinkhorn_assign(scores, class_mass=class_mass)
    best = loss_of(scores, hungarian_labels(scores, counts))
    room = tolerance(scores, best)
    assert abs(loss_of(scores, result.labels) - best) <= room
    np.testing.assert_array_equal(np.bincount(result.labels, minlength=len(counts)), counts)
    potentials = float64(result.potentials)
    largest = np.abs(potentials[np.isfinite(potentials)]).max()
    assert abs(prove(scores, result.labels, potentials).gap) <= room + 16 * np.finfo(np.float64).eps * largest


def test_same_answer_as_the_compiled_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.from_numpy(clusters(np.random.default_rng(0), 20_000, 12))
    by_reference = sinkhorn_assign(scores, tol=1e-6)
    soft = by_reference.soft_labels(scores)
    monkeypatch.undo()
    compiled = sinkhorn_assign(scores, tol=1e-6)
    assert torch.equal(by_reference.labels, compiled.labels)
    assert by_reference.value == pytest.approx(compiled.value, abs=1e-12)
    np.testing.assert_allclose(soft, compiled.soft_labels(scores), rtol=0, atol=1e-4)


def test_predict_and_plan_stay_tensors() -> None:
    scores = torch.from_numpy(clusters(np.random.default_rng(1), 300, 5))
    result = sinkhorn_assign(scores)
    u = float64(scores) + float64(result.potentials)
    np.testing.assert_array_equal(result.predict(scores).numpy(), u.argmax(1))
    assert float(result.plan(scores).sum()) == pytest.approx(1.0, abs=1e-12)


def test_bad_scores_are_located() -> None:
    scores = torch.zeros(40, 3)
    scores[17, 2] = torch.nan
    with pytest.raises(InvalidScoresError, match=r"row 17, class 2"):
        sinkhorn_assign(scores)


def test_forbidden_rows_and_classes() -> None:
    scores = torch.zeros(40, 3)
    scores[5] = -torch.inf
    with pytest.raises(InfeasibleError, match="row 5"):
        sinkhorn_assign(scores)
    scores = torch.zeros(40, 3)
    scores[:, 1] = -torch.inf
    with pytest.raises(InfeasibleError, match="class 1"):
        sinkhorn_assign(scores)
