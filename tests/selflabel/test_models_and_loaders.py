"""What people's loops hand over: models of any make, loaders of any make, labels to start from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelers import (
    HEADS,
    D,
    N,
    Wrapped,
    assert_unchanged,
    batches,
    features_of,
    make_inputs,
    make_labeler,
    make_model,
    snapshot,
)
from oracles import even_counts
from torch import Tensor, nn
from torch.utils.data import DataLoader

from otlabel.selflabel import KMeans, MultiHead, SelfLabeler, TensorStore


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
