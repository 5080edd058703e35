"""The self-labeller: labels against independent answers, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import even_counts, hungarian_labels, sela_loop, value_of
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch import Tensor, nn
from torch.utils.data import DataLoader

from otlabel.errors import (
    FewSamplesWarning,
    FileFormatError,
    FingerprintError,
    InvalidScoresError,
    SelfLabelWarning,
)
from otlabel.selflabel import (
    Argmax,
    AtTimes,
    EveryEpochs,
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
    load_labels,
    save_labels,
)
from otlabel.selflabel.methods import fill_empty, whitened
from otlabel.sources import LinearScores, load_array, open_scores

N, D, HEADS = 90, 6, [3, 5, 4]
STATE = ("labels", "n_updates", "n_passed", "history", "states")


class Backbone(nn.Module):
    """Small, with what training mode changes: batch statistics and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, D))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def make_model(hidden: int | None = None, seed: int = 0, scale: float = 4.0, dropout: float = 0.0) -> MultiHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultiHead(Backbone(dropout), D, HEADS, hidden=hidden)
        with torch.no_grad():
            for head in model.heads:
                for weight in head.parameters():
                    weight.mul_(scale)
    return model


def make_inputs(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def batches(inputs: Tensor, size: int = 32, order: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    order = torch.arange(len(inputs)) if order is None else order
    return [(part, inputs[part]) for part in order.split(size)]


def make_labeler(**options: Any) -> SelfLabeler:
    """By the running averages, as `features_of` has them, and without a look at views."""
    return SelfLabeler(N, HEADS, **{"mode": "eval", "views": lambda inputs, generator: None, **options})


def features_of(model: MultiHead, inputs: Tensor) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model.features(inputs).numpy()


def log_probabilities(model: MultiHead, inputs: Tensor) -> list[np.ndarray]:
    """Of all heads in float64, from the float32 features."""
    features = features_of(model, inputs).astype(np.float64)
    found = []
    for head in model.heads:
        logits = features @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
        found.append(torch.log_softmax(torch.from_numpy(logits), 1).numpy())
    return found


def snapshot(labeler: SelfLabeler) -> dict[str, Any]:
    return copy.deepcopy({name: getattr(labeler._state, name) for name in STATE})


def assert_unchanged(labeler: SelfLabeler, before: dict[str, Any]) -> None:
    assert torch.equal(labeler.labels, before["labels"])
    for name in STATE[1:4]:
        assert getattr(labeler._state, name) == before[name]
    for one, other in zip(labeler._state.states, before["states"], strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


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


def view_of(scores: np.ndarray, head: int = 0, **options: Any) -> HeadView:
    n, k = scores.shape
    given = {"number": head, "n_classes": k, "n_samples": n, "before": np.full(n, -1), "state": {}, "seed": 0}
    return HeadView(**{**given, "rows": scores, "make_scores": lambda: scores, **options})


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


# ---- the loss ----


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


# ---- models ----


class Wrapped(nn.Module):
    """A model of one's own, whose logits or parts are what is known of it."""

    def __init__(self, inner: MultiHead, returns: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.inner, self._returns = inner, returns

    def forward(self, inputs: Tensor, shift: Tensor | float = 0.0) -> Any:
        return self._returns(self.inner(inputs + shift))


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize(
    "returns", [list, tuple, lambda found: {"logits": found}, lambda found: dict(enumerate(found))]
)
def test_models_read_by_their_logits(hidden: int | None, returns: Callable[[list[Tensor]], Any]) -> None:
    model, inputs = make_model(hidden), make_inputs()
    expected, labeler = make_labeler(), make_labeler()
    expected.update(model, batches(inputs))
    records = labeler.update(Wrapped(model, returns), batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)
    for record, other in zip(records, expected.history, strict=True):
        assert record["value"] == pytest.approx(other["value"], abs=1e-5)


def test_a_single_tensor_and_inputs_of_several_parts() -> None:
    inner, inputs = make_model(), make_inputs()
    shift = torch.linspace(-1, 1, N)[:, None]
    expected = SelfLabeler(N, HEADS[0])
    expected.update(Wrapped(inner, lambda found: found[0]), batches(inputs + shift))
    for together in (lambda *both: both, lambda *both: dict(zip(("inputs", "shift"), both, strict=True))):
        labeler = SelfLabeler(N, HEADS[0])
        loader = [(part, together(inputs[part], shift[part])) for part in torch.arange(N).split(32)]
        labeler.update(Wrapped(inner, lambda found: found[0]), loader)
        assert torch.equal(labeler.labels, expected.labels)


@pytest.mark.parametrize("pairs", [True, False])
def test_functions_that_show_features_and_heads(pairs: bool) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler()
    expected.update(model, batches(inputs))

    def heads(model: Wrapped) -> list[Any]:
        return [(head.weight, head.bias) if pairs else head for head in model.inner.heads]

    labeler = make_labeler(features=lambda model, inputs: model.inner.features(inputs), heads=heads)
    labeler.update(Wrapped(model, list), batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)
    with pytest.raises(ValueError, match="belong together"):
        make_labeler(heads=heads)


def test_linear_layers_that_do_more_than_their_name_says() -> None:
    class Cosine(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 8 * F.normalize(inputs, dim=1) @ F.normalize(self.weight, dim=1).T

    model, inputs = make_model(), make_inputs()
    model.heads = nn.ModuleList(Cosine(D, k) for k in HEADS)
    expected, labeler = make_labeler(), make_labeler()
    expected.update(Wrapped(model, list), batches(inputs))
    labeler.update(model, batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)


def test_wrapped_and_compiled_models_are_the_same_models() -> None:
    model, inputs = make_model(), make_inputs()
    expected, labeler = make_labeler(labeling=KMeans()), make_labeler(labeling=KMeans())
    other = copy.deepcopy(model)
    expected.update(model, batches(inputs))
    labeler.update(torch.compile(nn.DataParallel(other)), batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_backbones_that_return_more_than_features() -> None:
    class Vision(nn.Module):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"last_hidden_state": inputs[:, None], "pooler_output": 2 * inputs}

    class Silent(nn.Module):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"last_hidden_state": inputs}

    inputs = make_inputs(4)
    torch.testing.assert_close(MultiHead(Vision(), 5, 3).features(inputs), 2 * inputs)
    pooled = MultiHead(Silent(), 5, 3, pool=lambda output: output["last_hidden_state"])
    torch.testing.assert_close(pooled.features(inputs), inputs)
    with pytest.raises(TypeError, match="pass pool="):
        MultiHead(Silent(), 5, 3)(inputs)
    with pytest.raises(ValueError, match="feature_dim says 4"):
        MultiHead(nn.Identity(), 4, 3)(inputs)
    assert MultiHead(nn.Identity(), 20, 3).features(torch.zeros(2, 5, 2, 2)).shape == (2, 20)


@pytest.mark.parametrize("hidden", [None, 7])
def test_half_precision(hidden: int | None) -> None:
    model, inputs = make_model(hidden), make_inputs()
    store = TensorStore()
    make_labeler(amp=torch.bfloat16, store=store).update(model, batches(inputs))
    features = store.source()
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features, torch.from_numpy(features).bfloat16().float())  # it was in effect
    np.testing.assert_allclose(features, features_of(model, inputs), atol=0.05)
    labeler = make_labeler()
    labeler.update(model.bfloat16(), batches(inputs.bfloat16()))
    for labels, k in zip(labeler.labels, HEADS, strict=True):
        assert np.bincount(labels).tolist() == even_counts(N, k).tolist()


@pytest.mark.parametrize("n_classes", [[], 0, [3, 0], 2.5, [3, 2.5], "3"])
def test_numbers_of_classes_that_make_no_sense(n_classes: Any) -> None:
    with pytest.raises(ValueError, match="pass a whole number, or a list"):
        SelfLabeler(10, n_classes)


def test_other_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="n_samples is 0"):
        SelfLabeler(0, 3)
    with pytest.raises(ValueError, match="choose one of 'calibrated', 'eval', 'train'"):
        SelfLabeler(5, 3, mode="test")
    with pytest.raises(ValueError, match="truth has shape"):
        SelfLabeler(5, 3, truth=[1, 2])
    assert SelfLabeler(5, np.int64(3)).n_classes == [3]


# ---- what people's loops hand over ----


class Triples(torch.utils.data.Dataset):
    """(image, label, index), as the data sets of SeLa's and many others' programs give them."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.inputs[index], index % 7, index


def named(x: Tensor) -> list[dict[str, Any]]:
    return [{"image": part, "target": index % 7, "idx": index} for index, part in batches(x)]


class Named(nn.Module):
    """Takes its input as keywords, or as two arguments."""

    def __init__(self, model: MultiHead) -> None:
        super().__init__()
        self.model = model

    def forward(self, left: Tensor, right: Tensor) -> list[Tensor]:
        return self.model(torch.cat([left, right], 1))


def halves(x: Tensor) -> list[dict[str, Tensor]]:
    return [{"left": part[:, :2], "right": part[:, 2:], "idx": index, "labels": index} for index, part in batches(x)]


@pytest.mark.parametrize(
    ("make", "batch", "wrap"),
    [
        (lambda x: DataLoader(Triples(x), 20), (2, 0), None),
        (lambda x: DataLoader(Triples(x), 20, shuffle=True), [-1, 0], None),
        (lambda x: [(part, index) for index, part in batches(x)], (1, 0), None),
        (named, ("idx", "image"), None),
        (named, lambda item: (item["idx"], item["image"]), None),
        (lambda x: [SimpleNamespace(idx=i, x=part) for i, part in batches(x)], lambda item: (item.idx, item.x), None),
        (halves, ("idx", ["left", "right"]), Named),
        (lambda x: [tuple(one.values()) for one in halves(x)], (2, [0, 1]), Named),
        (lambda x: [(i.tolist(), part) for i, part in batches(x)], None, None),
    ],
    ids=["triples", "shuffled", "swapped", "dicts", "function", "objects", "keywords", "arguments", "pairs"],
)
def test_loaders_of_any_make(make: Callable[[Tensor], Any], batch: Any, wrap: Any) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler()
    expected.update(model, batches(inputs))
    labeler = make_labeler(batch=batch)
    labeler.update(model if wrap is None else wrap(model), make(inputs))
    assert torch.equal(labeler.labels, expected.labels)


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (
            lambda x: DataLoader(Triples(x), 20),
            None,
            r"a list of 3, not \(index, input\); say which .* batch=\('index'",
        ),
        (named, None, "a dict of 'image', 'target', 'idx', not"),
        (lambda x: [(part, index) for index, part in batches(x)], None, "float32 of shape .32, 5., no indices.*batch="),
        (named, ("index", "image"), "batch=.'index', 'image'. names 'index', but the loader yields a dict of 'image'"),
        (named, (0, 1), "names 0, but the loader yields a dict"),
        (lambda x: DataLoader(Triples(x), 20), (3, 0), "names 3, but the loader yields a list of 3"),
        (lambda x: DataLoader(Triples(x), 20), ("idx", 0), "names 'idx', but the loader yields a list of 3"),
        (lambda x: DataLoader(Triples(x), 20), (0, 1), "at 0 is float32 of shape"),
        (named, lambda item: item["image"], "function batch returns Tensor; it must return"),
        (named, lambda item: (item["image"], item["idx"]), "function batch returns is float32"),
        (lambda x: Triples(x), (2, 0), "single sample; pass a DataLoader"),
        (lambda x: [(["a.png", "b.png"], x[:2])], None, "no indices of samples"),
    ],
)
def test_loaders_that_batch_does_not_fit(make: Callable[[Tensor], Any], batch: Any, message: str) -> None:
    model, labeler = make_model(), make_labeler(batch=batch)
    before = snapshot(labeler)
    with pytest.raises(TypeError, match=message):
        labeler.update(model, make(make_inputs()))
    assert_unchanged(labeler, before)


@pytest.mark.parametrize("batch", ["index", 3, (1,), (0, 1, 2), (0.5, 1), (None, "image"), (0, []), ((0, {}), 1)])
def test_a_batch_that_names_no_parts(batch: Any) -> None:
    with pytest.raises(TypeError, match="pass where index and input are"):
        make_labeler(batch=batch)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda x: x.astype(np.int8)])
def test_labels_to_start_from(kind: Callable[[np.ndarray], Any]) -> None:
    labels = np.stack([np.arange(N) % k for k in HEADS])
    labels[1, 4] = -1
    assert make_labeler(labels=kind(labels)).labels.tolist() == labels.tolist()
    alike = make_labeler(labels=kind(labels[0]))
    assert alike.labels.tolist() == [labels[0].tolist()] * 3
    alike.labels[1, 0] = 2  # each head has its own
    assert alike.labels[0, 0] == labels[0, 0]
    model = make_model()
    assert torch.isfinite(make_labeler(labels=kind(labels)).loss(model(make_inputs()), torch.arange(N)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, N), int), r"shape \(2, 90\); labels are whole numbers of shape \(3, 90\)"),
        (np.zeros(N - 1, int), r"shape \(89,\)"),
        (np.zeros((N, 3), int), r"shape \(90, 3\)"),
        (np.zeros(N), "float64"),
        (np.full(N, 3), "head 0 have 3 at sample 0 .*from 0 to 2, or -1"),
        (np.full(N, -2), "head 0 have -2"),
    ],
)
def test_labels_that_nothing_starts_from(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_labeler(labels=labels)


class FeaturesOnly(nn.Module):
    """A backbone that nobody has given heads."""

    def __init__(self, returns: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.layer, self.returns = nn.Linear(5, D), returns

    def forward(self, inputs: Tensor) -> Any:
        return self.returns(self.layer(inputs))


@pytest.mark.parametrize(
    ("returns", "options", "message"),
    [
        (lambda x: x, {}, "pass features= and heads= to SelfLabeler"),
        (lambda x: "text", {}, "pass features= and heads= to SelfLabeler"),
        (lambda x: [x, x, x], {}, "read by its logits unless it is a MultiHead"),
        (lambda x: (x, x), {"heads": lambda m: [m.layer] * 3}, "features of the model are a tuple of 2;.*features="),
        (lambda x: x[:, :, None], {"heads": lambda m: [m.layer] * 3}, "features= may pool and flatten"),
        (lambda x: x, {"heads": lambda m: m.layer}, "the model has 1 heads; .* made for 3.*heads= where"),
        (lambda x: x, {"heads": lambda m: 7}, "heads= returns a int; it must return a list of heads"),
    ],
    ids=["features", "text", "three", "tuple", "maps", "one head", "no heads"],
)  # fmt: skip
def test_models_that_cannot_be_read_are_told_how(returns: Callable[[Tensor], Any], options: Any, message: str) -> None:
    if options:
        options["features"] = lambda model, inputs: model(inputs)
    labeler = make_labeler(**options)
    before = snapshot(labeler)
    with pytest.raises((TypeError, ValueError), match=message):
        labeler.update(FeaturesOnly(returns), batches(make_inputs()))
    assert_unchanged(labeler, before)


@pytest.mark.parametrize("heads", [
    lambda model: model.heads[0], lambda model: nn.Sequential(model.heads[0]),
    lambda model: (model.heads[0].weight, model.heads[0].bias),
], ids=["module", "Sequential", "pair"])  # fmt: skip
def test_one_head_alone_needs_no_list(heads: Any) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler()
    expected.update(model, batches(inputs))
    labeler = SelfLabeler(N, HEADS[0], features=lambda model, x: model.features(x), heads=heads, mode="eval")
    labeler.update(model, batches(inputs))
    assert torch.equal(labeler.labels[0], expected.labels[0])


# ---- faults ----


def with_nan(inputs: Tensor) -> Tensor:
    inputs = inputs.clone()
    inputs[41, 2] = torch.nan
    return inputs


def faulty(value: Any) -> Callable[[HeadView], NewLabels]:
    """A labeling that fails at the second of three heads."""

    def labeling(head: HeadView) -> NewLabels:
        if head.number != 1:
            return NewLabels(np.zeros(head.n_samples, np.int64), {"new": np.ones(1)})
        if isinstance(value, BaseException):
            raise value
        return NewLabels(value)

    return labeling


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (lambda x: [x[:5]], TypeError, "wrap the data set in otlabel.IndexedDataset"),
        (lambda x: [(x[:5], x[:5])], TypeError, "no indices of samples"),
        (lambda x: [(torch.arange(5), x[:5], x[:5])], TypeError, "a tuple of 3"),
        (lambda x: [(torch.tensor([0, N]), x[:2])], ValueError, "index 90 is out of range"),
        (lambda x: [(torch.tensor([0, -1]), x[:2])], ValueError, "index -1 is out of range"),
        (lambda x: [*batches(x), (torch.tensor([7]), x[7:8])], ValueError, "sample 7 came twice"),
        (lambda x: [(torch.tensor([7, 8, 7]), x[:3])], ValueError, "sample 7 came twice"),
        (lambda x: batches(x)[:-1], ValueError, "26 of 90 samples never came: 64, 65, 66, 67, 68, ..."),
        (lambda x: [], ValueError, "the loader is empty"),
        (lambda x: [(torch.arange(3), x[:2])], ValueError, "for a batch of 3"),
        (lambda x: batches(with_nan(x)), InvalidScoresError, "sample 41"),
    ],
)
def test_bad_loaders(loader: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler()
    labeler.update(model, batches(inputs))
    before = snapshot(labeler)
    with pytest.raises(error, match=message):
        labeler.update(model, loader(inputs))
    assert_unchanged(labeler, before)
    labeler.update(model, batches(inputs))
    assert labeler.n_updates == 2


@pytest.mark.parametrize(
    ("labeling", "error", "message"),
    [
        (faulty(np.zeros(3, int)), ValueError, r"int64 of shape \(3,\) for head 1"),
        (faulty(np.zeros(N)), ValueError, "float64 of shape"),
        (faulty(np.full(N, 5)), ValueError, "from 5 to 5 for head 1"),
        (faulty(np.full(N, -2)), ValueError, "from -2 to -2"),
        (faulty("nonsense"), ValueError, "of shape \\(\\) for head 1"),
        (faulty(RuntimeError("stop")), RuntimeError, "stop"),
        (faulty(KeyboardInterrupt("now")), KeyboardInterrupt, "now"),
        (faulty(MemoryError("no room")), MemoryError, "no room"),
    ],
)
def test_all_heads_change_or_none(labeling: Any, error: type[BaseException], message: str) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(schedule=EveryEpochs(1))
    assert labeler.due(0)
    labeler.update(model, batches(inputs))
    before, good = snapshot(labeler), labeler.labeling
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labeler.labeling = labeling
    assert labeler.due(1)
    with pytest.raises(error, match=message):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert labeler.due(1)  # it is still to be done
    labeler.labeling = good
    labeler.update(model, batches(inputs))
    assert not labeler.due(1)


def test_an_interrupt_while_features_are_extracted_and_what_then_is_left_to_do(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler(store=tmp_path / "whole.h5")
    expected.update(model, batches(inputs))

    def interrupted() -> Iterator[Any]:
        yield from batches(inputs)[:2]
        raise KeyboardInterrupt

    labeler = make_labeler(store=tmp_path / "features.h5")
    before = snapshot(labeler)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        labeler.update(model, interrupted())
    assert model.training
    assert_unchanged(labeler, before)

    sizes = []
    model.backbone.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    labeler.store.close()
    labeler = make_labeler(store=tmp_path / "features.h5")  # another process, as it were
    labeler.update(model, batches(inputs))
    assert sizes == [32, 26]  # the first tells the width; the second was there; the third was not
    assert torch.equal(labeler.labels, expected.labels)
    with torch.no_grad():
        model.heads[0].bias += 1  # other weights: all is to be computed again
    sizes.clear()
    with pytest.raises(KeyboardInterrupt):
        labeler.update(model, interrupted())
    with torch.no_grad():
        model.heads[0].bias -= 1
    labeler.update(model, batches(inputs))
    assert sizes == [32, 32, 32, 32, 26]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(store=tmp_path / "features.h5")
    labeler.update(model, batches(inputs))
    before = snapshot(labeler)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with torch.no_grad():
        model.heads[0].weight.mul_(-1)
    with pytest.raises(OSError, match="make room or write elsewhere"):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)
    assert labeler.loss([torch.zeros(2, k) for k in HEADS], [0, 1]).isfinite()
    monkeypatch.undo()
    labeler.update(model, batches(inputs))
    assert labeler.n_updates == 2
    assert not torch.equal(labeler.labels[0], before["labels"][0])


@pytest.mark.parametrize("hidden", [None, 7])
def test_weights_that_have_diverged_and_heads_that_do_not_fit(hidden: int | None) -> None:
    model, inputs = make_model(hidden), make_inputs()
    labeler = make_labeler()
    before = snapshot(labeler)
    good = copy.deepcopy(model.heads)
    with torch.no_grad():
        next(model.heads[1].parameters())[0, 0] = torch.nan
    with pytest.raises(InvalidScoresError, match="weights of head 1 hold NaN"):
        labeler.update(model, batches(inputs))
    model.heads = nn.ModuleList([good[0], good[0], good[2]])
    with pytest.raises(ValueError, match=r"head 1 of the model .*(3 classes|\(90, 3\)).* 5"):
        labeler.update(model, batches(inputs))
    model.heads = good[:2]
    with pytest.raises(ValueError, match="the model has 2 heads; the labeler was made for 3"):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)
    with pytest.raises(InvalidScoresError, match="sample 41"):
        labeler.update(Wrapped(make_model(hidden), list), batches(with_nan(inputs)))
    with pytest.raises(ValueError, match="logits of 2 heads"):
        labeler.update(Wrapped(model, list), batches(inputs))


def test_features_of_another_run_are_not_overwritten(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    make_labeler(store=tmp_path / "features.h5", data="flowers").update(model, batches(inputs))
    content = (tmp_path / "features.h5").read_bytes()
    labeler = make_labeler(store=tmp_path / "features.h5", data="birds")
    for action in (
        lambda: labeler.update(model, batches(inputs)),
        lambda: labeler.record(torch.arange(2), features=torch.zeros(2, D)),
    ):
        with pytest.raises(FingerprintError, match="'flowers', these are 'birds'"):
            action()
    (tmp_path / "other.h5").write_bytes(b"not ours")
    labeler = make_labeler(store=tmp_path / "other.h5")
    with pytest.raises(FileFormatError):
        labeler.update(model, batches(inputs))
    assert (tmp_path / "features.h5").read_bytes() == content
    assert (tmp_path / "other.h5").read_bytes() == b"not ours"


# ---- recorded while training ----


def test_the_last_recorded_best_class_counts() -> None:
    labeler = make_labeler(labeling=Argmax())
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="nothing was recorded"):
        labeler.update(make_model())
    logits = [torch.randn(N, k, generator=rng) for k in HEADS]
    for part in torch.randperm(N, generator=rng).split(13):
        labeler.record(part, [torch.randn(len(part), k, generator=rng) for k in HEADS])
    for part in torch.randperm(N, generator=rng).split(13):
        labeler.record(part, [one[part] for one in logits])
    labeler.update(make_model())
    for labels, one in zip(labeler.labels, logits, strict=True):
        assert torch.equal(labels, one.argmax(1))
    with pytest.raises(ValueError, match="nothing was recorded"):
        labeler.update(make_model())
    before = labeler.labels.clone()
    labeler.record(torch.arange(60), [-one[:60] for one in logits])  # a sampler need not draw all of them
    labeler.update(make_model())
    assert torch.equal(labeler.labels[:, 60:], before[:, 60:])
    for labels, one in zip(labeler.labels, logits, strict=True):
        assert torch.equal(labels[:60], one[:60].argmin(1))
    labeler.record(torch.arange(N), logits)
    labeler.labeling = OptimalTransport()
    with pytest.raises(RuntimeError, match="nothing but best classes was recorded"):
        labeler.update(make_model())


@pytest.mark.parametrize("labeling", [OptimalTransport(), KMeans(), Argmax()], ids=lambda labeling: type(labeling))
@pytest.mark.parametrize("on_disk", [False, True])
def test_recorded_features_give_the_labels_of_an_extraction(labeling: Any, on_disk: bool, tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler(labeling=labeling, store=TensorStore("float16" if on_disk else "float32"))
    expected.update(copy.deepcopy(model), batches(inputs))
    labeler = make_labeler(labeling=labeling, store=tmp_path / "features.h5" if on_disk else None)
    features = torch.from_numpy(features_of(model, inputs))
    parts = torch.randperm(N, generator=torch.Generator().manual_seed(0)).split(32)
    for part in parts[:2]:
        labeler.record(part, features=features[part])
    with pytest.raises(ValueError, match="26 of 90 samples never came"):
        labeler.update(model)
    with pytest.raises(ValueError, match="written before"):
        labeler.record(parts[0], features=features[parts[0]])
    labeler.record(parts[2], features=features[parts[2]])
    labeler.labeling = faulty(RuntimeError("stop"))
    with pytest.raises(RuntimeError, match="stop"):
        labeler.update(model)
    labeler.labeling = labeling
    labeler.update(model)
    assert torch.equal(labeler.labels, expected.labels)


def test_recordings_do_not_mix_with_extractions_or_with_those_of_a_run_that_was_killed(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    features = torch.from_numpy(features_of(model, inputs))
    labeler = make_labeler(store=tmp_path / "features.h5")
    labeler.record(torch.arange(50), features=features[:50])
    labeler.store.close()  # killed here
    labeler = make_labeler(store=tmp_path / "features.h5")
    labeler.record(torch.arange(30, 60), features=features[30:60])
    with pytest.raises(ValueError, match="60 of 90 samples never came"):
        labeler.update(model)
    with pytest.raises(ValueError, match="out of range"):
        labeler.update(model, [*batches(inputs)[:1], (torch.tensor([N]), inputs[:1])])
    labeler.record(torch.arange(N), features=features)  # the extraction that failed has ended the recording before
    labeler.update(model)
    expected = make_labeler(store=TensorStore("float16"))
    expected.update(model, batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)
    labeler.record(torch.arange(N), features=features)
    with pytest.raises(ValueError, match="shows no heads"):
        labeler.update(Wrapped(model, list))


def test_best_classes_recorded_with_features_are_what_argmax_takes() -> None:
    model, inputs = make_model(), make_inputs()
    logits = [torch.randn(N, k, generator=torch.Generator().manual_seed(k)) for k in HEADS]
    labeler = make_labeler(labeling=Argmax())
    labeler.record(torch.arange(N), logits, features=torch.from_numpy(features_of(model, inputs)))
    labeler.update(model)
    for labels, one in zip(labeler.labels, logits, strict=True):
        assert torch.equal(labels, one.argmax(1))


# ---- k-means and UIC ----


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
        _fixed(model)
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


def _fixed(model: nn.Module) -> None:
    """Weights that depend on nothing."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            rng = torch.Generator().manual_seed(number)
            weight.copy_(torch.randn(weight.shape, generator=rng))


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


# ---- going on where a run was left ----


def train(labeling: Any, path: Path | None) -> tuple[Tensor, list[Tensor], list[dict[str, Any]]]:
    """Six epochs with relabellings in the middle of some; with a path all objects are made anew each epoch."""
    inputs = make_inputs()
    argmax, kmeans = isinstance(labeling, Argmax), isinstance(labeling, KMeans)
    schedule = AtTimes([0, 1.5, 3.5, 5.5] if argmax else [0, 0.4, 1.7, 2.5, 4.5, 4.9])

    def fresh() -> tuple[MultiHead, torch.optim.Optimizer, SelfLabeler]:
        model = make_model(scale=1.0)
        labeler = make_labeler(labeling=labeling, schedule=schedule, data="toy", truth=np.arange(N) % 3)
        return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), labeler

    model, optimizer, labeler = fresh()
    for epoch in range(6):
        if path is not None and epoch:
            model, optimizer, labeler = fresh()
            for part, state in zip((model, optimizer, labeler), torch.load(path, weights_only=True), strict=True):
                part.load_state_dict(state)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        for number, (index, rows) in enumerate(batches(inputs, 9, order)):
            if not kmeans and labeler.due(samples=epoch * N + number * 9):
                labeler.update(model, None if argmax and epoch else batches(inputs))
            model.train()
            features = model.features(rows)
            logits = [head(features) for head in model.heads]
            if kmeans:
                labeler.record(index, features=features)
            if argmax:
                labeler.record(index, logits)
            loss = labeler.loss(logits, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if kmeans:  # features that were recorded are not saved
            labeler.update(model)
        if path is not None:
            torch.save([part.state_dict() for part in (model, optimizer, labeler)], path)
    return labeler.labels, list(model.state_dict().values()), labeler.history


@pytest.mark.filterwarnings("ignore::otlabel.errors.SelfLabelWarning")
@pytest.mark.parametrize("labeling", [OptimalTransport(), KMeans(), Argmax()], ids=lambda labeling: type(labeling))
def test_a_resumed_run_is_the_same_run(labeling: Any, tmp_path: Path) -> None:
    labels, weights, history = train(labeling, None)
    resumed = train(labeling, tmp_path / "state.pt")
    assert torch.equal(labels, resumed[0])
    assert all(torch.equal(*pair) for pair in zip(weights, resumed[1], strict=True))
    seconds = ("seconds", "seconds_extract")
    without = [[{key: value for key, value in one.items() if key not in seconds} for one in part] for part in
               (history, resumed[2])]  # fmt: skip
    assert without[0] == without[1]


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = make_labeler(data="flowers").state_dict()
    labeler = make_labeler(data="birds")
    before = snapshot(labeler)
    with pytest.raises(FingerprintError, match=r"data is 'flowers', this labeler's is 'birds'"):
        labeler.load_state_dict(state)
    with pytest.raises(FingerprintError, match=r"n_classes is \[3, 5, 4\], this labeler's is \[3, 5\]"):
        SelfLabeler(N, HEADS[:2], data="flowers").load_state_dict(state)
    with pytest.raises(FingerprintError, match="n_samples is 90, this labeler's is 91"):
        SelfLabeler(91, HEADS, data="flowers").load_state_dict(state)
    for nothing, told in (({}, "version None"), (None, "version 'NoneType'")):
        with pytest.raises(FingerprintError, match=told):
            labeler.load_state_dict(nothing)
    assert_unchanged(labeler, before)
    make_labeler().load_state_dict(state)  # without a name, only N tells
    make_labeler(data="birds").load_state_dict(make_labeler().state_dict())


def _changed(name: str, at: tuple[int, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[name][at] = value

    return change


def _given(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(values)


def _potentials(values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["states"][1].update(potentials=values)


DAMAGED_STATES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "too large a label": (_changed("labels", (1, 7), 99), "labels of head 1 have 99 at sample 7 .1 such labels.; .* 4"),
    "a class of another head": (_changed("labels", (0, 3), 3), "labels of head 0 have 3 at sample 3 .*from 0 to 2"),
    "a negative label": (_changed("labels", (2, 0), -5), "labels of head 2 have -5 at sample 0"),
    "labels as floats": (lambda state: state.update(labels=state["labels"].double()), "float64 .* whole numbers"),
    "labels as bools": (lambda state: state.update(labels=state["labels"] > 0), "bool .* whole numbers"),
    "labels cut short": (lambda state: state.update(labels=state["labels"][:, 1:]), r"shape \(3, 89\).*\(3, 90\)"),
    "labels of a head less": (lambda state: state.update(labels=state["labels"][:2]), r"shape \(2, 90\)"),
    "labels as a text": (_given(labels="0 1 2"), "labels are .* whole numbers"),
    "no labels": (lambda state: state.pop("labels"), "no 'labels'"),
    "what was recorded": (_changed("recorded", (0, 5), 17), "recorded of head 0 have 17 at sample 5"),
    "a state less": (lambda state: state["states"].pop(), "2 states for 3 heads"),
    "no states": (_given(states=[{}, 3, {}]), "damaged"),
    "NaN": (_potentials(torch.tensor([0.0, 1, 2, float("nan"), 0])), "head 1, potentials is nan for class 3"),
    "infinite": (_potentials(np.array([0, np.inf, 2, 0, 0])), "head 1, potentials is inf for class 1"),
    "potentials cut short": (_potentials(torch.zeros(4)), r"head 1, potentials has shape \(4,\)"),
    "potentials as texts": (_potentials(np.array(["a"] * 5)), "no numbers"),
    "a negative count": (_given(n_updates=-1), "n_updates is -1"),
    "half a count": (_given(n_trained=1.5), "n_trained is 1.5"),
    "no time": (_given(progress=float("nan")), "progress is nan"),
    "losses": (_given(loss_sum=torch.zeros(3)), "loss_sum is"),
    "a history of nothing": (_given(history=[{}]), "no 'head'"),
    "a history of numbers": (_given(history=[1]), "damaged"),
    "a history of other heads": (_given(history=[{"head": 3, "churn": 0.1}]), "head 3"),
}


@pytest.mark.parametrize("numpy", [False, True], ids=["torch", "numpy"])
@pytest.mark.parametrize("damage", DAMAGED_STATES)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str, numpy: bool) -> None:
    labeler, model = make_labeler(), make_model()
    labeler.update(model, batches(make_inputs()))
    labeler.record(np.arange(4), model(make_inputs()[:4]))
    state = labeler.state_dict()
    change, told = DAMAGED_STATES[damage]
    change(state)
    if numpy:
        state = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in state.items()}
    other = make_labeler(seed=1)
    other.record(np.arange(9), model(make_inputs()[:9]))
    before, attributes = snapshot(other), repr(vars(other))
    with pytest.raises(FileFormatError, match=told):
        other.load_state_dict(state)
    assert_unchanged(other, before)
    assert repr(vars(other)) == attributes


def test_a_state_in_numpy_is_as_good_and_shares_nothing() -> None:
    labeler, model = make_labeler(), make_model()
    labeler.update(model, batches(make_inputs()))
    labeler.record(np.arange(4), model(make_inputs()[:4]))
    labeler.loss(model(make_inputs()[:4]), np.arange(4))
    state = labeler.state_dict()
    plain = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in state.items()}
    plain |= {"n_classes": np.array(HEADS), "n_updates": np.int64(1), "labels": plain["labels"].astype(np.int64)}
    plain["states"] = [{name: value.numpy().copy() for name, value in one.items()} for one in state["states"]]
    other = make_labeler(seed=1)
    other.load_state_dict(plain)
    plain["labels"][:] = 0
    plain["states"][0]["potentials"][:] = 0
    again = other.state_dict()
    assert again.keys() == state.keys()
    for name, value in state.items():
        same = torch.equal(value, again[name]) if isinstance(value, Tensor) else repr(value) == repr(again[name])
        assert same, name


def test_states_of_a_labeling_of_ones_own_are_its_own() -> None:
    def means(head: HeadView) -> NewLabels:
        return NewLabels(head.before, {"potentials": np.full((2, 2), np.nan)})

    labeler, other = make_labeler(labeling=means), make_labeler(labeling=means)
    labeler.update(make_model(), batches(make_inputs()))
    other.load_state_dict(labeler.state_dict())
    assert np.isnan(other._state.states[0]["potentials"]).all()


def test_a_state_holds_plain_values_whatever_times_were_given_in(tmp_path: Path) -> None:
    labeler = make_labeler(schedule=EveryEpochs(1))
    assert labeler.due(np.float32(0.0))
    labeler.update(make_model(), batches(make_inputs()))
    for time in ({"samples": np.int64(7)}, {"samples": torch.tensor(7)}, {"epoch": np.float64(2)}):
        labeler.due(**time)
        torch.save(labeler.state_dict(), tmp_path / "state.pt")
        torch.load(tmp_path / "state.pt", weights_only=True)


# ---- alarms ----


def alarms_of(
    n_epochs: int, *, lr: float = 0.01, break_it: Callable[[MultiHead, int], None] | None = None, shuffled: bool = False
) -> list[str]:
    """What is said while a small model trains on clear clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 5)) * 2
    inputs = torch.from_numpy(centres[np.arange(N) % 6] + rng.normal(size=(N, 5)) * 0.3).float()
    model = MultiHead(Backbone(), D, [6, 6])
    _fixed(model.backbone.layers[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    labeler = SelfLabeler(N, [6, 6], schedule=EveryEpochs(1), views=lambda inputs, generator: None)
    said: list[str] = []
    n_lasting = 0
    for epoch in range(n_epochs):
        if break_it is not None:
            break_it(model, epoch)
        if labeler.due(epoch):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                records = labeler.update(model, batches(inputs))
            texts = [str(one.message) for one in caught if issubclass(one.category, SelfLabelWarning)]
            told = records[0]["alarms"]
            assert set(texts) <= set(told)
            assert bool(texts) == (len(told) > n_lasting)  # what lasts is told once
            said, n_lasting = said + told, len(told)
        model.train()
        for index, rows in batches(inputs, 10, torch.randperm(N, generator=torch.Generator().manual_seed(epoch))):
            index = (index + epoch) % N if shuffled else index
            loss = labeler.loss(model(rows), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return said


def test_a_healthy_run_is_silent_until_nothing_changes_any_more() -> None:
    assert set(alarms_of(14)) == {"labels have stopped changing: more relabellings are a waste of time"}


def draw_anew(model: MultiHead, epoch: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(epoch)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


def silence_heads(model: MultiHead, epoch: int) -> None:
    with torch.no_grad():
        model.heads[1].weight.mul_(1e-3)
        model.heads[1].bias.copy_(torch.arange(6.0))


def push_features(model: MultiHead, epoch: int) -> None:
    with torch.no_grad():
        model.backbone.layers[-1].bias.fill_(1e3)


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        ({"shuffled": True, "lr": 0.01}, "no better than log K = 1.79 of a guess"),
        ({"break_it": draw_anew, "lr": 1e-4}, "labels change each time as random ones would"),
        ({"break_it": silence_heads, "lr": 1e-4}, "one class of head 1 would take 100%"),
        ({"break_it": push_features, "lr": 0.0}, "features of different samples are nearly parallel"),
    ],
)
def test_what_goes_wrong_is_said(situation: dict[str, Any], message: str) -> None:
    assert alarms_of(5, **situation) == []  # too early to tell
    assert any(message in text for text in alarms_of(8, **situation))


def test_a_schedule_of_one_time() -> None:
    model = make_model()
    labeler = make_labeler(schedule=AtTimes([0]))
    assert labeler.due(0)
    labeler.update(model, batches(make_inputs()))
    assert not labeler.due(5)


def test_a_loss_that_is_not_finite_is_said_at_once() -> None:
    labeler, model = make_labeler(), make_model()
    labeler.loss([torch.zeros(2, k) for k in HEADS], [0, 1])
    labeler.loss([torch.full((2, k), torch.inf) for k in HEADS], [0, 1])
    with pytest.warns(SelfLabelWarning, match="not finite: training has diverged"):
        labeler.update(model, batches(make_inputs()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labeler.update(model, batches(make_inputs()))


# ---- labels on the disk ----


def saved(path: Path) -> SelfLabeler:
    labeler = make_labeler(data="flowers", seed=4, labeling=OptimalTransport(abstain=0.1))
    labeler.update(make_model(), batches(make_inputs()))
    labeler.save_labels(path)
    return labeler


def test_labels_come_back_and_are_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    labeler = saved(path)
    found = load_labels(path)
    np.testing.assert_array_equal(found.labels, labeler.labels)
    assert (found.n_classes, found.data, found.seed) == (HEADS, "flowers", 4)
    assert found.records == labeler.history
    for head in range(len(HEADS)):
        np.testing.assert_array_equal(load_array(f"{path}::/heads/{head}/labels"), labeler.labels[head])
    other = make_labeler(data="flowers")
    other.load_labels(path)
    assert torch.equal(other.labels, labeler.labels)
    make_labeler().load_labels(path)
    for wrong in (make_labeler(data="birds"), SelfLabeler(91, HEADS), SelfLabeler(N, [3, 5, 5])):
        before = wrong.labels.clone()
        with pytest.raises(FingerprintError, match="holds labels of other data"):
            wrong.load_labels(path)
        assert torch.equal(wrong.labels, before)
    with pytest.raises(ValueError, match="does not end in"):
        labeler.save_labels(tmp_path / "labels.npy")
    with pytest.raises(FileNotFoundError):
        load_labels(tmp_path / "nothing.h5")


def test_damaged_labels_are_told(tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    saved(path)
    content = path.read_bytes()
    with h5py.File(path) as handle:
        chunk = handle["heads/1/labels"].id.get_chunk_info(0)
    for place in (*range(chunk.byte_offset, chunk.byte_offset + chunk.size, 9), 0, 3):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"damaged in chunk 0|file signature not found"):
            load_labels(path)
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError):
            load_labels(path)


def _change(handle: h5py.File, what: str) -> None:
    labels = handle["heads/0/labels"][:]
    match what:
        case "kind":
            handle.attrs["format"] = "otlabel.labels"
        case "version":
            handle.attrs["format_version"] = 2
        case "unfinished":
            handle.attrs["complete"] = False
        case "soft link":
            del handle["heads/0/labels"]
            handle["heads/0/labels"] = h5py.SoftLink("/heads/0/counts")
        case "external link":
            del handle["heads/0"]
            handle["heads/0"] = h5py.ExternalLink("other.h5", "/heads/0")
        case "range":
            labels[0] = 100
            handle["heads/0/labels"][:] = labels
        case "counts":
            handle["heads/0/counts"][0] += 1
        case "length":
            del handle["heads/0/labels"]
            handle["heads/0/labels"] = labels[:-1]
            handle["heads/0/counts"][:] = np.bincount(labels[:-1][labels[:-1] >= 0])
        case "classes":
            handle.attrs["n_classes"] = "[1000000000000, 5, 4]"
        case "no heads":
            handle.attrs["n_classes"] = "[]"
        case "text":
            handle.attrs["n_classes"] = "three"
        case "records":
            handle.attrs["records"] = "7"


@pytest.mark.parametrize(
    "what",
    ["kind", "version", "unfinished", "soft link", "external link", "range", "counts", "length", "classes", "no heads",
     "text", "records"],
)  # fmt: skip
def test_files_that_are_not_what_they_claim(what: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    saved(path)
    (tmp_path / "other.h5").write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as handle:
        _change(handle, what)
    with pytest.raises(FileFormatError, match="no usable file of labels"):
        load_labels(path)


def test_save_labels_of_any_width(tmp_path: Path) -> None:
    labels = np.stack([np.arange(300) - 1, np.arange(300) % 2])
    save_labels(tmp_path / "labels.hdf5", labels, [40_000, 2])
    found = load_labels(tmp_path / "labels.hdf5")
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.data, found.seed, found.records) == (None, 0, [])
    with h5py.File(tmp_path / "labels.hdf5") as handle:
        assert [handle[f"heads/{head}/labels"].dtype for head in range(2)] == [np.int32, np.int8]


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
