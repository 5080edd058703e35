"""Many problems of one shape in one call: each as by itself, errors that name the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from otlabel import Range, sinkhorn_assign, sinkhorn_assign_batch
from otlabel.errors import InfeasibleError, InvalidMassError, InvalidScoresError

SCORES = 3 * np.random.default_rng(0).standard_normal((5, 120, 8))


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("options", [{}, {"rounding": "argmax"}, {"classes": Range(0.05, 0.3)}, {"abstain": 0.1}])
def test_each_head_is_solved_as_by_itself(options: dict, threads: str, monkeypatch) -> None:
    monkeypatch.setenv("OTLABEL_NUM_THREADS", threads)
    batch = sinkhorn_assign_batch(SCORES, **options)
    assert len(batch) == 5
    for head, result in enumerate(batch):
        alone = sinkhorn_assign(SCORES[head], **options)
        np.testing.assert_array_equal(batch.labels[head], alone.labels)
        np.testing.assert_array_equal(batch.potentials[head], alone.potentials)
        np.testing.assert_array_equal(batch.counts[head], result.counts)
        assert (batch.value[head], batch.gap[head]) == (alone.value, alone.gap)
    assert batch.labels.shape == (5, 120)
    assert batch.proven == all(result.proof.proven for result in batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_come_back_as_tensors(dtype: torch.dtype) -> None:
    scores = torch.from_numpy(SCORES).to(dtype).requires_grad_()
    batch = sinkhorn_assign_batch(scores)
    assert batch.labels.shape == (5, 120)
    assert batch.labels.dtype == torch.int64
    assert batch.plan_potentials.shape == (5, 8)
    for head in range(5):
        assert torch.equal(batch.labels[head], sinkhorn_assign(scores[head]).labels)


def test_class_masses_for_all_or_by_head() -> None:
    sizes = np.random.default_rng(1).multinomial(120, np.full(8, 1 / 8), 5)
    np.testing.assert_array_equal(sinkhorn_assign_batch(SCORES, class_mass=sizes).counts, sizes)
    for given in (sizes[0], sizes[0] / 120, {k: int(size) for k, size in enumerate(sizes[0])}):
        np.testing.assert_array_equal(sinkhorn_assign_batch(SCORES, class_mass=given).counts, np.tile(sizes[0], (5, 1)))


def test_warm_start_from_the_batch_before() -> None:
    before = sinkhorn_assign_batch(SCORES + 0.01)
    for init in (before, before.plan_potentials, before[0].plan_potentials):
        batch = sinkhorn_assign_batch(SCORES, init=init)
        np.testing.assert_allclose(batch.value, sinkhorn_assign_batch(SCORES).value, rtol=1e-12)
    solves = [[record["stage"] for record in result.history].count("solve") for result in before]
    again = sinkhorn_assign_batch(SCORES, init=before)
    assert all([record["stage"] for record in result.history].count("solve") == 1 for result in again)
    assert min(solves) > 1


def test_errors_name_the_head() -> None:
    scores = SCORES.copy()
    scores[3, 7, 2] = np.nan
    with pytest.raises(InvalidScoresError, match=r"head 3: 1 of 960 scores .* row 7, class 2"):
        sinkhorn_assign_batch(scores)
    scores[3, 7], scores[2, :, 4] = 0.0, -np.inf
    with pytest.raises(InfeasibleError, match="head 2: class 4"):
        sinkhorn_assign_batch(scores)
    masses = np.full((5, 8), 1 / 8)
    masses[1, 0] = 1.0
    with pytest.raises(InvalidMassError, match=r"head 1: class_mass sums to 1\.875"):
        sinkhorn_assign_batch(SCORES, class_mass=masses)


def test_shapes_that_do_not_fit_are_told() -> None:
    for scores in (SCORES[0], SCORES[:0], SCORES[None]):
        with pytest.raises(InvalidScoresError, match=r"pass \(H, N, K\)"):
            sinkhorn_assign_batch(scores)
    with pytest.raises(InvalidMassError, match=r"\(3, 8\), scores have 5 heads"):
        sinkhorn_assign_batch(SCORES, class_mass=np.full((3, 8), 1 / 8))
    with pytest.raises(ValueError, match="init has 2 heads, scores have 5"):
        sinkhorn_assign_batch(SCORES, init=sinkhorn_assign_batch(SCORES[:2]))
