"""The loss of a labeler: the mean of cross-entropies, whatever models return and labels miss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from labelers import HEADS, N, make_labeler

from otlabel.selflabel import SelfLabeler


@given(seed=st.integers(0, 50), weighted=st.booleans(), missing=st.sampled_from([0.0, 0.4]))
def test_loss_is_the_mean_of_the_heads_cross_entropies(seed: int, weighted: bool, missing: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    labeler = make_labeler()
    labeler.labels[torch.rand(labeler.labels.shape, generator=rng) < missing] = -1
    index = torch.randperm(N, generator=rng)[:20]
    logits = [torch.randn(20, k, generator=rng, requires_grad=True) for k in HEADS]
    weights = [torch.rand(k, generator=rng) + 0.1 for k in HEADS] if weighted else None
    loss = labeler.loss(logits, index, weight=weights)
    pairs = zip(logits, labeler.labels[:, index], weights or [None] * len(HEADS), strict=True)
    expected = torch.stack([F.cross_entropy(*pair[:2], pair[2], ignore_index=-1) for pair in pairs]).mean()
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(one, other)


def test_balanced_loss_is_the_mean_over_classes_of_their_means() -> None:
    """Of all samples at once; by the labels as they are now, also where these were changed in place."""
    labeler = SelfLabeler(60, [3, 4])
    logits = [torch.randn(60, k, generator=torch.Generator().manual_seed(k)) for k in (3, 4)]
    for split in (10, 25):
        labeler.labels[0] = (torch.arange(60) >= split).long() * 2  # nothing in class 1
        labeler.labels[1] = (torch.arange(60) // 4).clamp(max=3)
        labeler.labels[1, 50:] = -1
        wanted = []
        for one, labels in zip(logits, labeler.labels, strict=True):
            each = F.cross_entropy(one, labels, reduction="none", ignore_index=-1)
            wanted.append(torch.stack([each[labels == k].mean() for k in labels.unique() if k >= 0]).mean())
        found = labeler.loss(logits, torch.arange(60), weight="balanced")
        assert float(found) == pytest.approx(float(sum(wanted)) / 2, rel=1e-5)
    labeler.labels[0] = -1
    assert float(labeler.loss(logits, torch.arange(60), weight="balanced")) > 0  # of the other head
    with pytest.raises(ValueError, match="'balanced' or None"):
        labeler.loss(logits, torch.arange(60), weight="even")


def test_loss_without_a_label_is_zero_with_gradients() -> None:
    labeler = make_labeler()
    labeler.labels[:] = -1
    logits = [torch.randn(4, k, requires_grad=True) for k in HEADS]
    loss = labeler.loss(logits, torch.arange(4))
    loss.backward()
    assert loss.item() == 0
    assert all((one.grad == 0).all() for one in logits)
    weights = [torch.zeros(k) for k in HEADS]
    assert make_labeler().loss(logits, torch.arange(4), weight=weights).item() == 0


def test_loss_takes_what_models_return() -> None:
    labeler, one = make_labeler(), SelfLabeler(N, 3)
    logits = [torch.randn(4, k) for k in HEADS]
    index = torch.tensor([3, 0, 7, 7])
    expected = labeler.loss(logits, index)
    assert labeler.loss(tuple(logits), index) == expected
    assert labeler.loss({"logits": logits}, index) == expected
    assert labeler.loss({"a": logits[0], "b": logits[1], "c": logits[2]}, index) == expected
    assert labeler.loss(logits, index.tolist()) == expected
    assert one.loss(logits[0], index) == one.loss({"logits": logits[0]}, index)
    halves = [torch.full((4, k), 3e4).half() for k in HEADS]
    assert labeler.loss(halves, index).isfinite()


@pytest.mark.parametrize(
    ("logits", "index", "error", "message"),
    [
        ([torch.zeros(2, 3)], [0, 1], ValueError, "logits of 1 heads; the labeler was made for 3"),
        ([torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4)], [0, 1], ValueError, "head 1 are \\(2, 4\\)"),
        ([torch.zeros(2, k) for k in HEADS], [0, N], ValueError, "index 90 is out of range"),
        ([torch.zeros(2, k) for k in HEADS], [-1, 0], ValueError, "index -1 is out of range"),
        ([torch.zeros(2, k) for k in HEADS], [0.0, 1.0], TypeError, "no indices of samples"),
        (None, [0, 1], TypeError, "no logits are found"),
        ({"features": 3}, [0, 1], TypeError, "no logits are found"),
    ],
)
def test_loss_refuses(logits: Any, index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_labeler().loss(logits, index)
