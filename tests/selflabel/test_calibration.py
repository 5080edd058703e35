"""BatchNorm's averages made anew: against batch statistics by hand, whatever the loader, and nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SubsetRandomSampler, TensorDataset

from otlabel.errors import InvalidScoresError
from otlabel.selflabel import IndexedDataset, MultiHead, SelfLabeler, TensorStore, calibration

N, D, K = 90, 6, 3
TRAINED = 1000  # batches, after which nothing is left of what a layer began with


def make_model(dropout: float = 0.3, batches: int = TRAINED) -> MultiHead:
    """Its running averages are far off what its weights give."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, D), nn.BatchNorm1d(D)
        )
        model = MultiHead(backbone, D, [K, K])
    for layer in (backbone[1], backbone[5]):
        layer.running_mean += 2
        layer.running_var *= 5
        layer.num_batches_tracked += batches
    return model.train()


def make_inputs(n: int = N) -> Tensor:
    """In the order of classes that are far apart, as images of a folder are."""
    drawn = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    return drawn + 6 * (torch.arange(n) * 4 // n)[:, None]


def in_lists(inputs: Tensor, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return [(index, inputs[index]) for index in torch.arange(len(inputs)).split(size)]


class Anew:
    """Goes through its batches, in another order each time."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.times = items, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(self.items if self.times % 2 else self.items[::-1])


LOADERS: dict[str, Callable[[Tensor], Any]] = {
    "list": in_lists,
    "iterator": lambda x: iter(in_lists(x)),
    "anew": lambda x: Anew(in_lists(x, 7)),
    "single samples": lambda x: in_lists(x, 1),
    "DataLoader": lambda x: DataLoader(IndexedDataset(TensorDataset(x)), 16),
    "shuffled": lambda x: DataLoader(
        IndexedDataset(TensorDataset(x)), 16, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "workers": lambda x: DataLoader(IndexedDataset(TensorDataset(x)), 40, num_workers=1),
    "a sampler": lambda x: DataLoader(IndexedDataset(TensorDataset(x)), 16, sampler=SubsetRandomSampler(range(len(x)))),
    "batches of samplers": lambda x: DataLoader(
        IndexedDataset(TensorDataset(x)), batch_sampler=list(BatchSampler(range(len(x)), 20, False))
    ),
    "whole batches": lambda x: DataLoader(in_lists(x), batch_size=None),
}


def rows_of(model: nn.Module, loader: Any, n: int = N, **options: Any) -> np.ndarray:
    store = TensorStore()
    SelfLabeler(n, [K, K], store=store, **options).update(model, loader)
    return np.array(store.source())


def by_hand(model: MultiHead, inputs: Tensor) -> np.ndarray:
    """In evaluation mode, with the mean and the unbiased variance of all inputs at each layer."""
    model = copy.deepcopy(model).eval()
    x = inputs
    with torch.no_grad():
        for layer in model.backbone:
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean, layer.running_var = x.mean(0), x.var(0)
                x = (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + layer.eps)  # its scale is 1, its shift 0
            else:
                x = layer(x)
        return model.features(inputs).numpy()


@pytest.mark.parametrize("loader", LOADERS)
def test_features_have_the_averages_of_plain_samples(loader: str) -> None:
    model, inputs = make_model(), make_inputs()
    expected = by_hand(model, inputs)
    np.testing.assert_allclose(rows_of(model, LOADERS[loader](inputs)), expected, atol=1e-5)
    assert np.abs(rows_of(model, LOADERS[loader](inputs), mode="eval") - expected).max() > 0.5


@pytest.mark.parametrize("batches", [0, calibration.UNTRAINED - 1])
def test_untrained_layers_stay_as_they_are(batches: int) -> None:
    inputs, model = make_inputs(), make_model(batches=batches)
    as_it_is = rows_of(model, in_lists(inputs), mode="eval")
    loader = Anew(in_lists(inputs))
    np.testing.assert_array_equal(rows_of(model, loader), as_it_is)
    assert loader.times == 1  # and cost nothing
    for layer in (model.backbone[1], model.backbone[5]):
        layer.num_batches_tracked += calibration.UNTRAINED - batches
    np.testing.assert_allclose(rows_of(model, in_lists(inputs)), by_hand(model, inputs), atol=1e-5)


def test_of_trained_and_untrained_layers_each_is_treated_as_what_it_is() -> None:
    inputs, model = make_inputs(), make_model()
    model.backbone[5].num_batches_tracked.zero_()  # as new layers on top of a network that was trained elsewhere
    own = model.backbone[5].running_mean.clone()
    expected = copy.deepcopy(model).eval()
    first = expected.backbone[0](inputs).detach()
    expected.backbone[1].running_mean, expected.backbone[1].running_var = first.mean(0), first.var(0)
    np.testing.assert_allclose(rows_of(model, in_lists(inputs)), expected.features(inputs).detach(), atol=1e-5)
    assert torch.equal(model.backbone[5].running_mean, own)


def state_of(model: nn.Module) -> list[Any]:
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    return [*tensors, *(m.training for m in model.modules()), *(layer.momentum for layer in layers)]


def assert_same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(loader: str, fails: bool) -> None:
    model, inputs = make_model(), make_inputs()
    before, items = state_of(model), LOADERS[loader](inputs)
    own = getattr(items, "generator", None)
    labeler = SelfLabeler(N - fails, [K, K])  # too few for the last index
    torch.manual_seed(4)
    if fails:
        with pytest.raises(ValueError, match="out of range"):
            labeler.update(model, items)
    else:
        labeler.update(model, items)
    after, after_own = torch.get_rng_state(), None if own is None else own.get_state()
    assert_same(before, state_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    # What one extraction draws, and no more.
    items = LOADERS[loader](inputs)
    torch.manual_seed(4)
    if fails:
        with pytest.raises(ValueError, match="out of range"):
            SelfLabeler(N - 1, [K, K], mode="eval").update(model, items)
    else:
        SelfLabeler(N, [K, K], mode="eval").update(model, items)
    assert torch.equal(torch.get_rng_state(), after)
    assert after_own is None or torch.equal(items.generator.get_state(), after_own)


def test_large_data_are_drawn_from_evenly_and_not_all_loaded() -> None:
    inputs, asked = make_inputs(12_000), []

    class Counted(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    model = make_model()
    first = model.backbone[0](inputs).detach()
    for loader in (DataLoader(IndexedDataset(Counted(inputs)), 500), Anew(in_lists(inputs, 500))):
        seen: list[tuple[Tensor, Tensor]] = []
        layer = model.backbone[1]

        def look(module: Any, *_: Any, seen: list[Any] = seen) -> None:
            if not module.training:
                seen.append((module.running_mean.clone(), module.running_var.clone()))

        handle = layer.register_forward_hook(look)
        rows_of(model, loader, 12_000)
        handle.remove()
        mean, variance = seen[-1]
        spread = first.std(0)
        assert ((mean - first.mean(0)).abs() < 5 * spread / np.sqrt(2560)).all()
        assert ((variance / first.var(0) - 1).abs() < 0.1).all()  # batches of one class would have a tenth of it
    assert len(asked) == 12_000 + calibration.N_BATCHES * calibration.BATCH


def test_a_frozen_layer_and_other_normalisations_stay_as_they_are() -> None:
    inputs, model = make_inputs(), make_model()
    for layer in (model.backbone[1], model.backbone[5]):
        layer.eval()
    np.testing.assert_array_equal(rows_of(model, in_lists(inputs)), rows_of(model, in_lists(inputs), mode="eval"))
    other = MultiHead(
        nn.Sequential(nn.Linear(5, D), nn.LayerNorm(D), nn.BatchNorm1d(D, track_running_stats=False)), D, [K, K]
    )
    loader = Anew(in_lists(inputs))
    rows_of(other, loader)
    assert loader.times == 1
    # A model that is in evaluation mode as a whole has not frozen anything.
    model.eval()
    np.testing.assert_allclose(rows_of(model, in_lists(inputs)), by_hand(model, inputs), atol=1e-5)


def test_heads_with_batch_normalisation_and_models_read_by_logits() -> None:
    inputs = make_inputs()
    torch.manual_seed(0)
    body = nn.Linear(5, D)
    head = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, K))
    whole = nn.Sequential(body, head)
    head[1].running_mean += 3
    head[1].num_batches_tracked += TRAINED
    shown: dict[str, Any] = {"features": lambda m, x: m[0](x), "heads": lambda m: [m[1]]}
    labelers = [SelfLabeler(N, K, **how) for how in (shown, {})]
    for labeler in labelers:
        labeler.update(whole.train(), in_lists(inputs))
    expected = copy.deepcopy(whole)
    with torch.no_grad():
        expected[1][1].momentum = 1.0
        expected(inputs)
    by_eval = SelfLabeler(N, K, mode="eval")
    by_eval.update(expected, in_lists(inputs))
    assert torch.equal(labelers[0].labels, by_eval.labels)
    assert torch.equal(labelers[1].labels, by_eval.labels)
    assert torch.equal(head[1].running_mean, torch.full((4,), 3.0))


class Keyed(nn.Module):
    """Takes tokens by name, with what is one for all samples; each batch may be padded to a length of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, K)

    def forward(self, tokens: Tensor, scale: Tensor, name: str | None = None) -> Tensor:
        return self.head(self.norm((self.table(tokens) * scale * (tokens > 0)[:, :, None]).sum(1)))


@pytest.mark.parametrize("padded", [False, True])
def test_inputs_of_several_parts_and_of_different_lengths(padded: bool) -> None:
    torch.manual_seed(0)
    model, tokens = Keyed(), torch.randint(1, 9, (N, 6))
    model.norm.running_mean += 4
    model.norm.num_batches_tracked += TRAINED
    given = {"scale": torch.ones(4) * 2, "name": "text"}
    items = [
        (index, given | {"tokens": nn.functional.pad(tokens[index], (0, number * padded))})
        for number, index in enumerate(torch.arange(N).split(30))
    ]
    labeler = SelfLabeler(N, K)
    labeler.update(model, items)
    expected = copy.deepcopy(model)
    expected.norm.momentum = None
    expected.norm.reset_running_stats()
    with torch.no_grad():
        for _, part in items if padded else [(0, given | {"tokens": tokens})]:
            expected(**part)
    by_eval = SelfLabeler(N, K, mode="eval")
    by_eval.update(expected, items)
    assert torch.equal(labeler.labels, by_eval.labels)


def test_a_sample_that_is_not_finite_is_named_by_its_number() -> None:
    inputs = make_inputs()
    inputs[41, 2] = float("nan")
    with pytest.raises(InvalidScoresError, match="sample 41"):
        SelfLabeler(N, [K, K]).update(make_model(), in_lists(inputs))


def on_two(group: Any, how: str) -> tuple[list[Any], list[float]]:
    import torch.distributed as dist

    rank, inputs, model = dist.get_rank(group), make_inputs(), make_model()
    data = IndexedDataset(TensorDataset(inputs))
    if how == "sampler":
        loader: Any = DataLoader(data, 16, sampler=DistributedSampler(data, 2, rank))
    else:
        loader = in_lists(inputs)[rank::2]
    seen: list[Tensor] = []
    model.backbone[1].register_forward_hook(lambda layer, *_: seen.append(layer.running_mean.clone()))
    labeler = SelfLabeler(N, [K, K])
    labeler.update(model, loader)
    return labeler.labels.tolist(), seen[-1].tolist()


def on_two_one_ahead(group: Any) -> tuple[list[Any], bool]:
    import torch.distributed as dist

    rank, model = dist.get_rank(group), make_model(batches=calibration.UNTRAINED - 1 + dist.get_rank(group))
    own, seen = model.backbone[1].running_mean.clone(), list[Tensor]()
    model.backbone[1].register_forward_hook(lambda layer, *_: seen.append(layer.running_mean.clone()))
    labeler = SelfLabeler(N, [K, K])
    labeler.update(model, in_lists(make_inputs())[rank::2])
    return labeler.labels.tolist(), bool((seen[-1] != own).all())


def test_processes_agree_on_what_is_trained_though_one_is_a_batch_ahead() -> None:
    one, other = on_ranks(on_two_one_ahead, 2)
    assert tuple(one) == tuple(other)
    assert one[1]


@pytest.mark.parametrize("how", ["sampler", "parts"])
def test_processes_have_the_averages_of_all(how: str) -> None:
    (labels, mean), other = on_ranks(on_two, 2, how)
    assert (labels, mean) == tuple(other)
    model, inputs = make_model(), make_inputs()
    whole = model.backbone[0](inputs).detach()
    parts = [torch.cat([x for _, x in in_lists(inputs)[rank::2]]) for rank in range(2)]
    of_parts = torch.stack([model.backbone[0](part).detach().mean(0) for part in parts]).mean(0)
    np.testing.assert_allclose(mean, whole.mean(0) if how == "sampler" else of_parts, rtol=1e-5)
    if how == "sampler":
        labeler = SelfLabeler(N, [K, K])
        labeler.update(model, in_lists(inputs))
        assert labels == labeler.labels.tolist()
