"""Probes of layers: pools of the paper, agreement with another solver of the same problem, and what must not matter."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from otlabel import linear_probes, metrics
from otlabel.selflabel import MultiHead
from otlabel.training.crops import Batches, fixed_crops, random_crops
from otlabel.training.networks import small_convnet
from otlabel.training.probes import _Probes, pooled, stages_of


def loader(x: Tensor, y: Tensor, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = small_convnet(1, (8, 16), (2, 2))
    model(torch.randn(64, 1, 8, 8))  # for averages that are not those of a start
    return model


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """Classes that the first pixels tell."""
    rng = torch.Generator().manual_seed(1)
    y = torch.randint(3, (192,), generator=rng)
    x = torch.randn(192, 1, 8, 8, generator=rng)
    x[:, 0, 2:6, 2:6] += y[:, None, None].float() * 2
    return x, y


# ---- pools ----


@pytest.mark.parametrize(("channels", "side", "pool", "numbers"), [
    (96, 55, (6, 6, 3), 9600), (256, 27, (4, 4, 0), 9216), (384, 13, (3, 3, 1), 9600), (256, 13, (2, 2, 0), 9216),
])  # fmt: skip
def test_alexnets_pools_are_the_papers(channels: int, side: int, pool: tuple[int, int, int], numbers: int) -> None:
    maps = torch.randn(2, channels, side, side)
    found = pooled(maps, 9600)
    assert found.shape == (2, numbers)
    assert torch.equal(found, functional.max_pool2d(maps, *pool).flatten(1))


@pytest.mark.parametrize("channels", [1, 7, 24, 200])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (14, 15), (33, 32), (56, 56), (100, 41)])
def test_pools_keep_as_many_numbers_as_they_may(channels: int, shape: tuple[int, int]) -> None:
    maps = torch.randn(1, channels, *shape)
    found = pooled(maps, 96)
    side = max(1, math.isqrt(96 // channels))
    assert found.shape[1] == channels * min(side, shape[0]) * min(side, shape[1])
    assert set(found[0, :50].tolist()) <= set(maps.flatten().tolist())


def test_tokens_are_averaged_and_nothing_is_shared() -> None:
    tokens = torch.randn(3, 5, 7)
    torch.testing.assert_close(pooled(tokens, 9600), tokens.mean(1))
    vectors = torch.randn(3, 5)
    found = pooled(vectors, 9600)
    vectors.relu_()
    assert found.min() < 0


# ---- training ----


def test_the_last_layers_probe_agrees_with_metrics_linear_probe() -> None:
    """Stochastic gradients and L-BFGS on one problem: within a percent."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, digits = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(digits)
    torch.manual_seed(0)
    model = small_convnet(1, (32, 64, 128), (1, 2, 2))
    head = nn.Linear(128, 10)
    optimiser = torch.optim.SGD([*model.parameters(), *head.parameters()], 0.1, momentum=0.9)
    for batch, classes in loader(x[:600], y[:600], 50):
        optimiser.zero_grad()
        functional.cross_entropy(head(model(batch)), classes).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        features = model(x)
    wanted = metrics.linear_probe(features[:1200], y[:1200], features[1200:], y[1200:])
    val = [(features[1200:], y[1200:])]
    train = Batches(features[:1200], y[:1200], 32, flip=False, seed=0)
    (found,) = linear_probes(nn.Identity(), [""], train, val, epochs=30, lr=0.03, n_classes=10)
    assert found.top1 == pytest.approx(wanted, abs=0.01)
    assert wanted > 0.85
    assert 1 >= found.top5 > found.top1
    # And what the network gives is what the probe of its last layer sees.
    (last,) = linear_probes(model, ["standardise"], loader(x, y), loader(x, y), epochs=2)
    (alone,) = linear_probes(nn.Identity(), [""], loader(features, y), loader(features, y), epochs=2)
    assert (last.n_features, last.top1) == (128, alone.top1)


def test_each_probe_is_as_if_it_were_alone(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    train, val = loader(x[:128], y[:128]), loader(x[128:], y[128:])
    together = linear_probes(net, {**net.stages, "features": "standardise"}, train, val, epochs=3)
    assert [one.layer for one in together] == ["conv1", "conv2", "features"]
    assert [one.n_features for one in together] == [8 * 16, 16 * 4, 16]
    for one in together:
        assert linear_probes(net, [dict(net.stages, features="standardise")[one.layer]], train, val, epochs=3)[0] == (
            type(one)(dict(net.stages, features="standardise")[one.layer], *list(vars(one).values())[1:])
        )
    assert together[0].top1 > 0.5
    assert all(one.top5 == 1 for one in together), "of three classes, one of the best five is right"


def test_the_network_and_the_random_state_stay_as_they_were(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    net.train()
    net.layers[0].eval()
    before, modes, state = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], torch.get_rng_state()
    linear_probes(net, None, loader(*data), loader(*data), epochs=2)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_samples_without_a_class_do_not_count(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    known = torch.arange(len(y)) % 4 > 0
    some = torch.where(known, y, -1)
    kept = [(a[b >= 0], b[b >= 0]) for a, b in loader(x, some)]
    found = linear_probes(net, None, loader(x, some), loader(x, some), epochs=2)
    assert found == linear_probes(net, None, kept, kept, epochs=2, n_classes=3)


def test_views_are_averaged(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    alone = linear_probes(net, None, loader(x, y), loader(x, y), epochs=2)
    same = linear_probes(net, None, loader(x, y), loader(x[:, None].expand(-1, 3, -1, -1, -1), y), epochs=2)
    assert alone == same
    # Of two views in three the class decides.
    y = torch.arange(90) % 3
    points = 6 * torch.eye(3)[y] + torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    others = 6 * torch.eye(3)[(y + 1) % 3]
    for views, right in (([points, others, points], 1), ([others, points, others], 0)):
        (found,) = linear_probes(nn.Identity(), [""], loader(points, y), loader(torch.stack(views, 1), y), epochs=20)
        assert found.top1 == right


def test_stages_that_models_tell_of(net: nn.Module) -> None:
    assert list(stages_of(MultiHead(net, 16, [3, 3]))) == ["conv1", "conv2", "features"]
    deep = MultiHead(net, 16, [3, 3], hidden=9)
    names = stages_of(deep)
    assert list(names) == ["conv1", "conv2", "features", "hidden"]
    with torch.no_grad():
        hidden = deep.heads[0][:2](deep.eval().features(torch.randn(4, 1, 8, 8)))
    assert isinstance(deep.get_submodule(names["hidden"]), nn.ReLU)
    assert hidden.shape == (4, 9)


class Once:
    def __init__(self, batches: list[Any]) -> None:
        self._left = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self._left


def test_what_cannot_be_probed(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    batches = loader(*data)
    twice = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), relu := nn.ReLU(), nn.Linear(64, 64), relu)
    unused = nn.Sequential(nn.Flatten())
    unused.other = nn.Linear(2, 2)
    unused.forward = lambda x: x.flatten(1)  # type: ignore[method-assign]
    for model, layers, train, message in (
        (net, ["conv9"], batches, "has no layer 'conv9'; there are conv1, conv2"),
        (net, "conv1", batches, "pass a list"),
        (twice, None, batches, "does not say which its stages are"),
        (twice, ["2"], batches, "used twice in one pass"),
        (unused, ["other"], batches, "was not used"),
        (net, None, Once(batches), "gave no batch of at least two .* read again"),
        (net, None, [(data[0], data[1].float())], r"\(B,\) integers"),
        (net, None, [data[0]], "must be a pair"),
        (net, None, loader(data[0], torch.full_like(data[1], -1)), "no sample with a class"),
        (nn.LSTM(8, 4), [""], [(data[0][:, 0], data[1])], "gives tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_probes(model, layers, train, batches, epochs=2)
    with pytest.raises(ValueError, match=r"gave no batch of at least two .* read again"):
        linear_probes(net, None, Once(batches), batches, epochs=2, n_classes=3)
    with pytest.raises(ValueError, match="train has classes 0 to 2; n_classes is 2"):
        linear_probes(net, None, batches, batches, epochs=2, n_classes=2)
    with pytest.raises(ValueError, match="'conv1' gave 128 numbers at first and 72 now"):
        linear_probes(net, None, batches, loader(data[0][..., 1:7, 1:7], data[1]), epochs=1)
    with pytest.raises(ValueError, match="val has no sample"):
        linear_probes(net, None, batches, [], epochs=1)
    broken = copy.deepcopy(net)
    broken.layers[1][0].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="probe of layer 'conv2' gives NaN"):
        linear_probes(broken, ["conv1", "conv2"], batches, batches, epochs=1)
    assert not any(m._forward_hooks for m in [*net.modules(), *twice.modules()]), "whatever went wrong"


# ---- crops ----


def test_random_crops_are_windows_of_the_image_with_its_border_continued() -> None:
    images = torch.randint(256, (40, 3, 28, 42), dtype=torch.uint8)
    bordered = functional.pad(images.float(), (3, 3, 2, 2), mode="replicate")
    seen = set()
    for image, crop in zip(bordered, random_crops(images, torch.Generator().manual_seed(0), flip=True), strict=True):
        fits = [
            (top, left, mirrored)
            for top in range(5) for left in range(7) for mirrored in (False, True)
            if torch.equal(image[:, top : top + 28, left : left + 42].flip(2) if mirrored
                           else image[:, top : top + 28, left : left + 42], crop.float())
        ]  # fmt: skip
        assert len(fits) == 1
        seen.add(fits[0])
    assert {top for top, _, _ in seen} == set(range(5))
    assert {left for _, left, _ in seen} == set(range(7))
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    small = images[:, :, :13, :13]
    assert torch.equal(random_crops(small, torch.Generator(), flip=False), small)


def test_ten_crops_are_the_middle_the_corners_and_these_mirrored() -> None:
    images = torch.randint(256, (4, 3, 28, 28), dtype=torch.uint8)
    assert torch.equal(fixed_crops(images, 1, flip=True), images)
    ten = fixed_crops(images, 10, flip=True)
    assert ten.shape == (4, 10, 3, 28, 28)
    bordered = functional.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    for number, (top, left) in enumerate(((2, 2), (0, 0), (0, 4), (4, 0), (4, 4))):
        wanted = bordered[:, :, top : top + 28, left : left + 28]
        assert torch.equal(ten[:, number].float(), wanted)
        assert torch.equal(ten[:, number + 5].float(), wanted.flip(3))
    assert fixed_crops(images, 10, flip=False).shape == (4, 5, 3, 28, 28)


def test_batches_have_each_sample_once_an_epoch_in_a_new_order() -> None:
    x, y = torch.arange(100.0)[:, None], torch.arange(100)
    batches = Batches(x, y, 32, flip=False, seed=0)
    epochs = [torch.cat([classes for _, classes in batches]) for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(100)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert all(torch.equal(inputs[:, 0].long(), classes) for inputs, classes in batches)
    again = Batches(x, y, 32, flip=False, seed=0)
    assert torch.equal(torch.cat([classes for _, classes in again]), epochs[0])
    assert torch.equal(torch.cat([classes for _, classes in Batches(x, y, 32, flip=False)]), y)


# ---- few shots ----


@pytest.mark.parametrize(
    ("epochs", "lengths"), [(36, [10, 10, 10, 6]), (1, [1]), (3, [1, 1, 1]), (72, [20, 20, 20, 12])]
)
def test_the_rate_falls_at_the_papers_epochs(
    epochs: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch, data: tuple[Tensor, Tensor]
) -> None:
    rates: list[float] = []
    step = _Probes.step
    monkeypatch.setattr(_Probes, "step", lambda self, found, y, of: (rates.append(of[0]), step(self, found, y, of)))
    linear_probes(nn.Flatten(), [""], [data], [data], epochs=epochs, n_classes=3)
    wanted = [0.1 ** (2 + drop) for drop, length in enumerate(lengths) for _ in range(length)]
    assert rates == pytest.approx(wanted)


def test_few_samples_get_as_many_steps_as_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(200, 1), torch.arange(200) % 2
    for steps, wanted in ((400, 40), (300, 36), (999, 45)):  # of ten batches each
        told: list[tuple[int, int]] = []
        monkeypatch.setattr("otlabel.training.probes.LEAST_STEPS", steps)
        monkeypatch.setattr("otlabel.training.probes.MOST_EPOCHS", 45)
        train = loader(x, y, 20)
        linear_probes(nn.Identity(), [""], train, [(x, y)], progress=lambda *of, told=told: told.append(of))
        assert told == [(epoch, wanted) for epoch in range(1, wanted + 1)]


def test_few_shots_by_hand() -> None:
    """Against distances to means one by one, with the same draws."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 120)
    x = rng.normal(size=(120, 3)) + truth[:, None]
    found = metrics.few_shot(x, truth, ways=3, shots=2, queries=4, episodes=20, seed=5)
    draws, right = np.random.default_rng(5), []
    for _ in range(20):
        chosen = draws.choice(np.arange(4), 3, replace=False)
        drawn = [draws.choice(np.flatnonzero(truth == k), 6, replace=False) for k in chosen]
        means = [x[one[:2]].mean(0) for one in drawn]
        hits = [np.argmin([np.linalg.norm(x[i] - mean) for mean in means]) == way
                for way, one in enumerate(drawn) for i in one[2:]]  # fmt: skip
        right.append(np.mean(hits))
    assert found.mean == pytest.approx(np.mean(right), abs=1e-12)
    assert found.interval == pytest.approx(1.96 * np.std(right, ddof=1) / 20**0.5)
    far = metrics.few_shot(x + 100.0, np.where(truth == 3, -1, truth), ways=3, shots=2, queries=4, episodes=20)
    assert far == metrics.few_shot(x[truth < 3] + 100.0, truth[truth < 3], ways=3, shots=2, queries=4, episodes=20)


def test_few_shots_where_all_or_nothing_is_known() -> None:
    truth = np.repeat(np.arange(5), 30)
    assert metrics.few_shot(np.eye(5)[truth], truth, shots=1, episodes=50) == (1.0, 0.0)
    noise = metrics.few_shot(
        np.random.default_rng(0).normal(size=(150, 8)), np.random.default_rng(1).permutation(truth)
    )
    assert abs(noise.mean - 0.2) < 0.03
    for options, message in (
        ({"shots": 20}, r"0 of 5 classes have the 20 \+ 15 samples"),
        ({"ways": 6}, "ways is 6"),
        ({"ways": 1}, "at least 2 ways"),
        ({"episodes": 0}, "episodes 0"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.few_shot(np.eye(5)[truth], truth, **options)
