"""The self-labeller's labels against independent answers, and what an update leaves alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from labelers import (
    HEADS,
    Backbone,
    D,
    N,
    assert_unchanged,
    batches,
    features_of,
    log_probabilities,
    make_inputs,
    make_labeler,
    make_model,
    snapshot,
)
from oracles import even_counts, hungarian_labels, sela_loop, value_of
from torch.utils.data import DataLoader

from otlabel.errors import FewSamplesWarning
from otlabel.selflabel import (
    FeatureStore,
    HeadView,
    IndexedDataset,
    KMeans,
    MultiHead,
    NewLabels,
    OptimalTransport,
    SelfLabeler,
    TensorStore,
    head_scores,
)
from otlabel.sources import LinearScores

# ---- the labels ----


def test_first_labels_are_random_and_balanced() -> None:
    labeler = make_labeler(seed=3)
    for labels, k in zip(labeler.labels, HEADS, strict=True):
        assert np.bincount(labels, minlength=k).tolist() == even_counts(N, k).tolist()
    assert torch.equal(labeler.labels, make_labeler(seed=3).labels)
    assert not torch.equal(labeler.labels, make_labeler(seed=4).labels)


@pytest.mark.parametrize("hidden", [None, 7])
def test_labels_are_those_of_selas_loop(hidden: int | None, device: str) -> None:
    model, inputs = make_model(hidden, scale=1.0), make_inputs()
    labeler = make_labeler(labeling=OptimalTransport(rounding="argmax", tol=1e-8, device=device))
    labeler.update(model, batches(inputs))
    model.eval()
    with torch.no_grad():
        logits = model(inputs)
    for labels, one in zip(labeler.labels, logits, strict=True):
        _, _, expected = sela_loop(torch.log_softmax(one.double(), 1), 25.0)
        np.testing.assert_array_equal(labels, expected)


def test_exact_labels_are_the_best_for_every_head(device: str) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(truth=np.arange(N) % 3, labeling=OptimalTransport(device=device))
    records = labeler.update(model, batches(inputs))
    assert [record["head"] for record in records] == [0, 1, 2]
    assert records == labeler.history
    for head, scores in enumerate(log_probabilities(model, inputs)):
        labels = labeler.labels[head].numpy()
        counts = even_counts(N, HEADS[head])
        assert np.bincount(labels).tolist() == counts.tolist()
        best = value_of(scores, hungarian_labels(scores, counts))
        assert value_of(scores, labels) == pytest.approx(best, abs=1e-6)  # scores are made in float32
        assert abs(records[head]["gap"]) < 1e-6
        assert records[head]["value"] == pytest.approx(scores[np.arange(N), labels].mean(), abs=1e-6)
        assert 0 <= records[head]["nmi"] <= 1


@pytest.mark.parametrize("store", ["memory", "features.h5"])
@pytest.mark.parametrize("memory_limit", [None, 0])
def test_all_heads_come_from_one_read(store: str, memory_limit: int | None, tmp_path: Path) -> None:
    """Of a file; without room in memory there are more reads, and the very same labels."""
    model, inputs = make_model(), make_inputs()
    solve, seen = OptimalTransport(memory_limit=memory_limit), []

    class Counting(OptimalTransport):
        def __call__(self, head: HeadView) -> NewLabels:
            new = solve(head)
            seen.append(head.rows)
            return new

    where = TensorStore() if store == "memory" else FeatureStore(tmp_path / store, dtype="float32")
    labeler = make_labeler(store=where, labeling=Counting(memory_limit=memory_limit))
    labeler.update(model, batches(inputs))
    n_read = seen[-1].bytes_read
    if store == "memory":
        assert n_read == 0
    elif memory_limit is None:
        with h5py.File(tmp_path / store) as handle:
            assert n_read == handle["features"].id.get_storage_size()  # the last look at a sample included
    else:
        assert n_read > len(HEADS) * 4 * N * D
    expected = make_labeler()
    expected.update(model, batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_any_order_and_batch_size_give_the_same_labels(dtype: str, in_memory: bool, tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    found = []
    for number, size in enumerate((1, 7, 32, N)):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(number))
        store = TensorStore(dtype) if in_memory else FeatureStore(tmp_path / f"{number}.h5", dtype=dtype)
        # Rows of a batch depend a little on its size in torch itself: give every sample's features as they are.
        labeler = make_labeler(store=store, features=lambda model, rows: rows, heads=lambda model: list(model.heads))
        labeler.update(model, batches(torch.from_numpy(features_of(model, inputs)), size, order))
        found.append(labeler.labels)
    assert all(torch.equal(found[0], other) for other in found)


def test_data_loaders_and_workers() -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler()
    expected.update(model, batches(inputs, 16))
    dataset = IndexedDataset([(one, 0) for one in inputs])
    labeler = make_labeler()
    labeler.update(model, DataLoader(dataset, batch_size=16, shuffle=True, num_workers=1))
    assert torch.equal(labeler.labels, expected.labels)


def test_scores_on_the_disk_give_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_model(hidden=7), make_inputs()
    found = []
    for share in (0.25, 0.0):
        monkeypatch.setattr(head_scores, "MATRIX_SHARE", share)
        labeler = make_labeler()
        labeler.update(model, batches(inputs))
        found.append(labeler.labels)
    assert torch.equal(*found)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head_scores.os, "posix_fallocate", full)
    before = snapshot(labeler)
    with pytest.raises(OSError, match="No space left"):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)


def test_class_masses_abstention_and_warm_starts() -> None:
    model, inputs = make_model(), make_inputs()
    masses = [np.array([60, 20, 10]), np.array([50, 10, 10, 10, 10]), np.array([30, 30, 20, 10])]
    labeler = make_labeler(labeling=OptimalTransport(class_mass=masses))
    labeler.update(model, batches(inputs))
    for labels, mass in zip(labeler.labels, masses, strict=True):
        np.testing.assert_array_equal(np.bincount(labels), mass)
    first = [record["n_sweeps"] for record in labeler.history]
    labeler.update(model, batches(inputs))
    again = labeler.history[len(HEADS) :]
    assert sum(record["n_sweeps"] for record in again) < sum(first)
    assert [record["churn"] for record in again] == [0, 0, 0]

    labeler = make_labeler(labeling=OptimalTransport(abstain=0.2))
    labeler.update(model, batches(inputs))
    assert (labeler.labels < 0).sum(1).tolist() == [18, 18, 18]
    labeler.update(model, batches(inputs))
    assert labeler.history[-1]["unlabelled"] == 18


def test_more_classes_than_samples() -> None:
    model = MultiHead(Backbone(), D, 12)
    labeler = SelfLabeler(8, 12)
    with pytest.warns(FewSamplesWarning):
        labeler.update(model, batches(make_inputs(8)))
    assert np.bincount(labeler.labels[0]).max() == 1
    with pytest.raises(ValueError, match="12 clusters of 8 samples"):
        SelfLabeler(8, 12, labeling=KMeans()).update(model, batches(make_inputs(8)))


def test_a_labeling_of_ones_own() -> None:
    """The dozen lines that the documentation shows."""

    def nearest_mean(head: HeadView) -> NewLabels:
        features = head.read_features()
        means = np.stack([features[head.before == k].mean(0) for k in range(head.n_classes)])
        distances = ((features[:, None] - means) ** 2).sum(2)
        return NewLabels(distances.argmin(1), {"means": means}, {"value": -distances.min(1).mean()})

    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(labeling=nearest_mean)
    before = labeler.labels.clone()
    labeler.update(model, batches(inputs))
    features = features_of(model, inputs)
    means = np.stack([features[before[2] == k].mean(0) for k in range(4)])
    np.testing.assert_array_equal(labeler.labels[2], ((features[:, None] - means) ** 2).sum(2).argmin(1))
    np.testing.assert_allclose(labeler._state.states[2]["means"], means, rtol=1e-6)


@pytest.mark.parametrize(("device", "kind"), [("cpu", np.ndarray), ("auto", np.ndarray), ("cuda", LinearScores)])
def test_scores_are_made_where_the_labeling_wants_them(device: str, kind: type) -> None:
    """In memory once for passes on the CPU; for a device the features, which are moved there, and the weights."""
    seen = []

    @dataclass
    class Looking:
        device: str

        def __call__(self, head: HeadView) -> NewLabels:
            seen.append(head.scores())
            return NewLabels(np.arange(N) % head.n_classes)

    make_labeler(labeling=Looking(device)).update(make_model(), batches(make_inputs()))
    assert [type(scores) for scores in seen] == [kind] * len(HEADS)


# ---- what an update leaves alone ----


def test_modes_weights_and_random_numbers_stay() -> None:
    model, inputs = make_model(dropout=0.5), make_inputs()
    model.train()
    model.backbone.layers[1].eval()  # one that the user has frozen
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labeler = make_labeler()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    labeler.update(model, batches(inputs))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    labeler.update(model, DataLoader(IndexedDataset(list(inputs)), batch_size=32))
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.empty((), dtype=torch.int64).random_()  # the seed that a DataLoader draws for its workers
    assert torch.equal(torch.get_rng_state(), drawn)

    with pytest.raises(ValueError, match="out of range"):
        labeler.update(model, [(torch.tensor([0, N]), inputs[:2])])
    assert [module.training for module in model.modules()] == modes


def test_train_mode_uses_batch_statistics() -> None:
    model, inputs = make_model(), make_inputs()
    store = TensorStore()
    make_labeler(mode="train", store=store).update(model, batches(inputs, N))
    model.train()
    with torch.no_grad():
        expected = model.features(inputs)
    np.testing.assert_allclose(store.source(), expected, atol=1e-6)
    assert model.backbone.layers[1].num_batches_tracked == 2
