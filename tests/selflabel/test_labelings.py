"""k-means and UIC as labellings: whitening, heads drawn anew, no class left empty."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelers import (
    D,
    N,
    Wrapped,
    assert_unchanged,
    batches,
    fix_weights,
    log_probabilities,
    make_inputs,
    make_labeler,
    make_model,
    snapshot,
    view_of,
)
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from otlabel.errors import SelfLabelWarning
from otlabel.selflabel import Argmax, KMeans, MultiHead, SelfLabeler
from otlabel.selflabel.methods import fill_empty, whitened
from otlabel.sources import open_scores


@given(
    n=st.integers(8, 60),
    d=st.integers(1, 8),
    rank=st.integers(1, 8),
    shift=st.sampled_from([0.0, 100.0]),
    kept=st.integers(1, 10),
    seed=st.integers(0, 100),
)
def test_whitening_is_that_of_scikit_learn(n: int, d: int, rank: int, shift: float, kept: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = min(rank, d)
    scales = np.linspace(1, 3, rank)
    rows = rng.normal(size=(n, rank)) * scales @ np.linalg.qr(rng.normal(size=(d, d)))[0][:rank] + shift
    n_kept = min(rank, kept, n - 1)
    expected = normalize(PCA(n_kept, whiten=True, svd_solver="full").fit_transform(rows))
    found = whitened(open_scores(rows), kept)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)  # also where signs differ
    np.testing.assert_allclose(np.abs((found * expected).sum(0)), (expected**2).sum(0), atol=1e-3 * n)


def test_whitening_of_equal_rows() -> None:
    assert (whitened(open_scores(np.full((9, 4), 3.0)), 256) == 0).all()


@pytest.mark.parametrize("with_faiss", [True, False])
def test_kmeans_finds_clear_clusters_and_draws_heads_anew(with_faiss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_faiss:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    rng = np.random.default_rng(0)
    truth = np.arange(N) % 3
    inputs = torch.from_numpy(rng.normal(size=(3, 5))[truth] * 10 + rng.normal(size=(N, 5)) * 0.1).float()
    found = []
    for disturbance in (0, 3):
        model = MultiHead(nn.Linear(5, D), D, [3, 3])
        fix_weights(model)
        old = [head.weight.clone() for head in model.heads]
        labeler = SelfLabeler(N, [3, 3], labeling=KMeans(), truth=truth)
        torch.manual_seed(disturbance)
        torch.rand(disturbance)
        state = torch.get_rng_state()
        records = labeler.update(model, batches(inputs))
        assert torch.equal(torch.get_rng_state(), state)
        assert [record["nmi"] for record in records] == pytest.approx([1, 1])
        assert all(not torch.equal(head.weight, weight) for head, weight in zip(model.heads, old, strict=True))
        assert not torch.equal(model.heads[0].weight, model.heads[1].weight)
        found.append((labeler.labels, [head.weight.detach().clone() for head in model.heads]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


class LogitsAlone(nn.Module):
    """Shows neither features nor heads, but can draw a head anew."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(5, D), nn.Linear(D, 3), nn.Linear(D, 3)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [self.first(self.body(inputs)), self.second(self.body(inputs))]

    def reset_head(self, number: int) -> None:
        (self.first, self.second)[number].reset_parameters()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("make", [lambda: MultiHead(nn.Linear(5, D), D, [3, 3]), LogitsAlone], ids=["heads", "logits"])
def test_heads_drawn_anew_are_new_to_the_optimizer(make: Callable[[], nn.Module], kind: Any) -> None:
    model = make()
    labeler = SelfLabeler(N, [3, 3], labeling=KMeans())
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    inputs = make_inputs()

    def step() -> None:
        optimizer.zero_grad()
        labeler.loss(model(inputs), torch.arange(N)).backward()
        optimizer.step()

    step()
    assert len(optimizer.state) == 6
    body = {name: copy.deepcopy(optimizer.state[weight]) for name, weight in list(model.named_parameters())[:2]}
    labeler.update(model, batches(inputs))
    assert len(optimizer.state) == 6  # nobody said whose it is
    labeler.update(model, batches(inputs), optimizer=[optimizer])
    assert len(optimizer.state) == 2
    for name, weight in list(model.named_parameters())[:2]:
        for key, value in body[name].items():
            assert torch.equal(torch.as_tensor(optimizer.state[weight][key]), torch.as_tensor(value))
    step()
    first = list(model.named_parameters())[2][1]
    if kind is torch.optim.SGD:  # as in a first step
        assert first.grad is not None
        assert torch.equal(optimizer.state[first]["momentum_buffer"], first.grad)
    else:
        assert float(optimizer.state[first]["step"]) == 1


def test_labels_that_keep_their_meaning_leave_the_optimizer_alone() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    labeler = make_labeler()
    labeler.loss(model(make_inputs()), torch.arange(N)).backward()
    optimizer.step()
    n_states = len(optimizer.state)
    labeler.update(model, batches(make_inputs()), optimizer=optimizer)
    assert len(optimizer.state) == n_states
    before = snapshot(labeler)
    with pytest.raises(TypeError, match="optimizer is a int; pass the torch"):
        labeler.update(model, batches(make_inputs()), optimizer=3)
    assert_unchanged(labeler, before)


@pytest.mark.parametrize("with_faiss", [True, False])
@pytest.mark.parametrize("n_distinct", [1, 4, 30])
def test_kmeans_leaves_no_cluster_empty(with_faiss: bool, n_distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_faiss:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    rows = np.random.default_rng(0).normal(size=(n_distinct, 4)).astype(np.float32)[np.arange(120) % n_distinct]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, about fewer distinct rows than clusters
        new = KMeans()(view_of(rows, n_classes=30))
    assert np.bincount(new.labels, minlength=30).min() > 0
    assert new.new_classes


def test_kmeans_says_when_a_head_cannot_be_drawn_anew() -> None:
    labeler = make_labeler(labeling=KMeans())
    with pytest.warns(SelfLabelWarning, match=r"Wrapped has no reset_head\(number\)") as caught:
        labeler.update(Wrapped(make_model(), list), batches(make_inputs()))
    assert len(caught) == 1


@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array),
    n_classes=st.integers(10, 70),
    seed=st.integers(0, 5),
)
def test_empty_classes_are_filled_from_the_largest(labels: np.ndarray, n_classes: int, seed: int) -> None:
    filled = fill_empty(labels, n_classes, np.random.default_rng(seed))
    before, after = (np.bincount(one, minlength=n_classes) for one in (labels, filled))
    moved = filled != labels
    assert (before[filled[moved]] == 0).all()  # only to classes that were empty
    assert np.count_nonzero(after) == min(n_classes, len(labels))
    assert (after[before > 0] > 0).all()
    assert after[before > 0].max() <= max(before.max(), 1)
    if (before > 0).all():
        assert not moved.any()
    one_empty = np.count_nonzero(before == 0) == 1
    if one_empty and before.max() > 1:
        assert moved.sum() == before.max() // 2
    np.testing.assert_array_equal(filled, fill_empty(labels, n_classes, np.random.default_rng(seed)))


def test_argmax_of_stored_scores() -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(labeling=Argmax())
    labeler.update(model, batches(inputs))
    for labels, scores in zip(labeler.labels, log_probabilities(model, inputs), strict=True):
        best = scores.argmax(1)
        if len(np.unique(best)) == scores.shape[1]:
            np.testing.assert_array_equal(labels, best)


def test_features_are_whitened_once_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any) -> np.ndarray:
        calls.append(args)
        return whitened(*args)

    monkeypatch.setattr("otlabel.selflabel.methods.whitened", counted)
    labeler = make_labeler(labeling=KMeans())
    for number in (1, 2):
        labeler.update(make_model(), batches(make_inputs()))
        assert len(calls) == number
