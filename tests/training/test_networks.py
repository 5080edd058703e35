"""Networks: shapes, sizes known from the papers, gradients everywhere, and standardised features at the end."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_weights
from torch import nn

from otlabel.training.networks import (
    alexnet,
    mlp,
    network,
    resnet18,
    resnet50,
    small_convnet,
    small_resnet,
    vgg16_bn,
)
from otlabel.training.networks.common import NormedConv, absorbed

CASES = {
    "convnet": (lambda: small_convnet(1), (1, 8, 8), 128),
    "convnet wide": (lambda: small_convnet(3, (4, 6), (2, 1)), (3, 9, 7), 6),
    "resnet": (lambda: small_resnet(3), (3, 32, 32), 128),
    "resnet narrow": (lambda: small_resnet(1, width=4), (1, 28, 28), 32),
    "resnet18 narrow": (lambda: resnet18(3, width=4), (3, 40, 32), 32),
    "resnet50 narrow": (lambda: resnet50(1, width=2), (1, 48, 48), 64),
    "alexnet": (lambda: alexnet(3, hidden=64), (3, 63, 63), 64),
    "vgg16 narrow": (lambda: vgg16_bn(3, width=2, hidden=24), (3, 32, 32), 24),
    "mlp": (lambda: mlp(20), (20,), 512),
    "mlp deep": (lambda: mlp(5, width=7, depth=4), (5,), 7),
}


def made(case: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor, int]:
    make, shape, feature_dim = CASES[case]
    torch.manual_seed(seed)
    return make(), torch.randn(6, *shape, generator=torch.Generator().manual_seed(1)), feature_dim


def n_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_gradients(case: str) -> None:
    model, batch, feature_dim = made(case)
    features = model(batch)
    assert model.feature_dim == feature_dim
    assert features.shape == (6, feature_dim)
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (features * weight).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


@pytest.mark.parametrize("case", CASES)
def test_features_of_a_batch_are_standardised(case: str) -> None:
    model, batch, _ = made(case)
    features = model(batch)
    alive = features.std(0) > 0  # a ReLU may be zero on all six
    torch.testing.assert_close(features.mean(0), torch.zeros(features.shape[1]), rtol=0, atol=1e-3)
    assert alive.float().mean() > 0.5
    # The epsilon of the normalisation lowers the variance of features that hardly vary.
    assert features.var(0, unbiased=False).max() <= 1 + 1e-4


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides(case: str) -> None:
    first, batch, _ = made(case)
    again, _, _ = made(case)
    other, _, _ = made(case, seed=1)
    first.eval(), again.eval(), other.eval()
    assert torch.equal(first(batch), again(batch))
    assert not torch.equal(first(batch), other(batch))


@pytest.mark.parametrize("case", CASES)
def test_in_evaluation_a_sample_does_not_depend_on_its_batch(case: str) -> None:
    model, batch, _ = made(case)
    model(batch)
    model.eval()
    torch.testing.assert_close(model(batch[:1]), model(batch)[:1], rtol=1e-4, atol=1e-4)


def test_resnet_of_width_64_has_the_size_of_resnet_18() -> None:
    """11,689,512 weights with a 7 x 7 stem and 1000 classes (as torchvision counts them), which are not here."""
    stem, head = 3 * 64 * (49 - 9), 512 * 1000 + 1000
    assert n_weights(small_resnet(3, width=64)) == 11_689_512 - stem - head


def test_alexnet_has_the_size_of_the_paper() -> None:
    """61,100,840 weights with 1000 classes (as torchvision counts the one of 2014); here offsets come with the norm."""
    convolutions = (64, 192, 384, 256, 256)
    with torch.device("meta"):
        model = alexnet(3)
    assert n_weights(model) == 61_100_840 - (4096 * 1000 + 1000) + sum(convolutions)


def test_alexnet_at_its_own_size_keeps_six_by_six_places() -> None:
    model = alexnet(3, widths=(2, 3, 4, 3, 2))
    shapes = []
    pooling = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)][-1]
    pooling.register_forward_hook(lambda module, given, result: shapes.append(tuple(result.shape)))
    model.eval()
    model(torch.zeros(1, 3, 224, 224))
    assert shapes == [(1, 2, 6, 6)]


@pytest.mark.parametrize(("size", "shape", "found"), [
    (None, (32, 32), (224, 224)), (None, (63, 80), (63, 80)), (64, (63, 50), (64, 64)), (64, (64, 80), (64, 80)),
])  # fmt: skip
def test_small_images_are_enlarged(size: int | None, shape: tuple[int, int], found: tuple[int, int]) -> None:
    """As a constant image stays constant, and a ramp rises from its first value to its last."""
    model = alexnet(3, widths=(2, 2, 2, 2, 2), size=size, hidden=4).eval()
    ramp = torch.linspace(-1, 1, shape[1]).expand(2, 3, *shape)
    enlarged = model.layers.resize(ramp)
    assert enlarged.shape == (2, 3, *found)
    assert (enlarged[..., 0] == -1).all()
    assert (enlarged[..., -1] == 1).all()
    assert (enlarged.diff(dim=3) >= -1e-6).all()
    assert model(ramp).shape == (2, 4)


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn", "resnet18", "resnet50"])
def test_weights_have_the_names_and_shapes_of_torchvisions(name: str) -> None:
    with torch.device("meta"):
        layers = network(name, 3).layers
    wanted = getattr(torchvision_weights, name)()
    if name == "alexnet":  # whose batch norms are absorbed
        for place in (0, 3, 6, 8, 10):
            wanted[f"features.{place}.norm.weight"] = wanted.pop(f"features.{place}.bias")
        found = {key: tuple(value.shape) for key, value in layers.state_dict().items()}
        rest = {f"features.{place}.norm.{one}" for place in (0, 3, 6, 8, 10)
                for one in ("bias", "running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
        assert {key: shape for key, shape in found.items() if key not in rest} == wanted
    else:
        assert {key: tuple(value.shape) for key, value in layers.state_dict().items()} == wanted


def test_absorbed_batch_norms_change_nothing_but_names() -> None:
    torch.manual_seed(0)
    layers = alexnet(3, widths=(4, 6, 8, 6, 6), hidden=16).layers
    images = torch.randn(8, 3, 80, 80) * 3 + 1
    for _ in range(3):
        layers(images)
    with torch.no_grad():
        for module in layers.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    plain = absorbed(layers.eval())
    assert not any(isinstance(module, (nn.BatchNorm2d, NormedConv)) for module in plain.modules())
    assert {key for key in plain.state_dict() if key.startswith("features.3.")} == {
        "features.3.weight", "features.3.bias"}  # fmt: skip
    assert any(isinstance(module, NormedConv) for module in layers.modules()), "the first is left as it was"
    torch.testing.assert_close(plain(images), layers(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["convnet", "resnet", "resnet50 narrow", "alexnet", "vgg16 narrow", "mlp deep"])
def test_stages_are_layers_after_their_relu(case: str) -> None:
    model, batch, _ = made(case)
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, name in model.stages.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, given, result, stage=stage: shapes.update(
                {stage: (result.shape[1], float(result.data.min()))}
            )
        )
    model(batch)
    channels = [channels for channels, _ in shapes.values()]
    assert all(least >= 0 for _, least in shapes.values())
    assert (list(shapes), channels) == {
        "convnet": (["conv1", "conv2", "conv3"], [32, 64, 128]),
        "resnet": (["conv1", "layer1", "layer2", "layer3", "layer4"], [16, 16, 32, 64, 128]),
        "resnet50 narrow": (["conv1", "layer1", "layer2", "layer3", "layer4"], [2, 8, 16, 32, 64]),
        "alexnet": ([f"conv{n}" for n in range(1, 6)], [64, 192, 384, 256, 256]),
        "vgg16 narrow": ([f"conv{n}" for n in range(1, 14)], [2, 2, 4, 4, 8, 8, 8] + [16] * 6),
        "mlp deep": ([f"layer{n}" for n in range(1, 5)], [7] * 4),
    }[case]


class Theirs(nn.Module):
    """What a library may return: a first convolution of three channels, stages, a last layer of 1000 classes."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, 2, 1, bias=False)
        self.layer1 = nn.Sequential(nn.Conv2d(6, 9, 3), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(9, n_classes) if n_classes else nn.Identity()
        self.num_features = 9

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.layer1(self.conv1(images))))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for torchvision and timm, and what they were asked for."""
    asked: dict[str, Any] = {}

    def get_model(name: str, **options: Any) -> nn.Module:
        asked["torchvision"] = (name, options)
        if name == "none":
            raise ValueError("Unknown model none")
        return Theirs(3, 1000)

    def create_model(name: str, num_classes: int, in_chans: int, **options: Any) -> nn.Module:
        asked["timm"] = (name, options)
        return Theirs(in_chans, num_classes)

    models = types.SimpleNamespace(get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    return asked


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_networks_of_libraries(library: str, libraries: dict[str, Any]) -> None:
    model = network(f"{library}:some_net", 1, drop=0.5)
    assert libraries[library] == ("some_net", {"drop": 0.5} | ({"weights": None} if library == "torchvision" else {}))
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, model.feature_dim) == (2, 9)
    assert model.stages == {"layer1": "layers.layer1"}
    assert set(model.layers.state_dict()) == {"conv1.weight", "layer1.0.weight", "layer1.0.bias"}
    for option in ("pretrained", "checkpoint_path", "weights"):
        with pytest.raises(ValueError, match=f"option '{option}', which would read or fetch .* --allow-code"):
            network(f"{library}:some_net", 1, **{option: "x"})
    for name in ("hf-hub:somebody/net", "../net", ""):
        with pytest.raises(ValueError, match="is no name of"):
            network(f"{library}:{name}", 3, allow_code=True)


def test_what_a_library_refuses_or_cannot_do(libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"torchvision:none cannot be made with the options .*Unknown model"):
        network("torchvision:none", 3)
    network("timm:some_net", 3, allow_code=True, pretrained=True)
    assert libraries["timm"] == ("some_net", {"pretrained": True})
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"'timm:some_net' needs timm, which cannot be imported .* pip install timm"):
        network("timm:some_net", 3)


@pytest.mark.parametrize("name", ["small_convnet", "small_resnet", "mlp"])
def test_networks_have_names(name: str) -> None:
    torch.manual_seed(0)
    model = network(name, 2)
    torch.manual_seed(0)
    same = getattr(sys.modules["otlabel.training.networks"], name)(2)
    assert [p.shape for p in model.parameters()] == [p.shape for p in same.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from torch import nn
def wide(channels):
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, 11))
    model.feature_dim = 11
    return model
def unsized(channels):
    return nn.Identity()
def text(channels):
    return "network"
number = 3
"""
    (tmp_path / "own_networks.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    model = network("own_networks:wide", 2, allow_code=True)
    assert sys.path == before
    assert model(torch.zeros(3, 2, 4, 4)).shape == (3, model.feature_dim)
    for name in ("unsized", "text"):
        with pytest.raises(ValueError, match="feature_dim"):
            network(f"own_networks:{name}", 2, allow_code=True)
    for name in ("missing", "number", ""):
        with pytest.raises(ValueError, match="no function"):
            network(f"own_networks:{name}", 2, allow_code=True)
    with pytest.raises(ImportError):
        network("no_such_module:wide", 2, allow_code=True)


@pytest.mark.parametrize(
    "name", ["own_side_effects:wide", "pydoc:pipepager", "otlabel.training.networks:mlp", "os:", ":"]
)
def test_code_is_neither_imported_nor_called_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "own_side_effects.py").write_text("open('mark', 'w').close()")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"backbone = '{name}' would import .* --allow-code"):
        network(name, 2)
    assert not (tmp_path / "mark").exists()
    assert "own_side_effects" not in sys.modules


def test_names_and_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="small_convnet, small_resnet, resnet18, resnet50, alexnet, vgg16_bn, mlp"):
        network("resnet34", 3)
    with pytest.raises(ValueError, match="size is 40: of less than 63"):
        network("alexnet", 3, size=40)
    with pytest.raises(ValueError, match="strides"):
        small_convnet(1, (8, 8), (1,))
    with pytest.raises(ValueError, match="strides"):
        small_convnet(1, (), ())
    with pytest.raises(ValueError, match="five"):
        alexnet(3, (8, 8))
    with pytest.raises(ValueError, match="depth"):
        mlp(3, depth=0)
    with pytest.raises(ValueError, match="small_resnet has no option 'depth'; its options are width"):
        network("small_resnet", 3, depth=2)
    for width in (-1, "wide"):
        with pytest.raises(ValueError, match="cannot be made with the options"):
            network("small_resnet", 3, width=width)
