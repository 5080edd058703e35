"""Networks: shapes, sizes known from the papers, gradients everywhere, and standardised features at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from otlabel.training.networks import alexnet, mlp, network, small_convnet, small_resnet

CASES = {
    "convnet": (lambda: small_convnet(1), (1, 8, 8), 128),
    "convnet wide": (lambda: small_convnet(3, (4, 6), (2, 1)), (3, 9, 7), 6),
    "resnet": (lambda: small_resnet(3), (3, 32, 32), 128),
    "resnet narrow": (lambda: small_resnet(1, width=4), (1, 28, 28), 32),
    "alexnet": (lambda: alexnet(3), (3, 63, 63), 4096),
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
    assert n_weights(alexnet(3)) == 61_100_840 - (4096 * 1000 + 1000) + sum(convolutions)


def test_alexnet_at_its_own_size_keeps_six_by_six_places() -> None:
    model = alexnet(3, widths=(2, 3, 4, 3, 2))
    shapes = []
    pooling = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)][-1]
    pooling.register_forward_hook(lambda module, given, result: shapes.append(tuple(result.shape)))
    model.eval()
    model(torch.zeros(1, 3, 224, 224))
    assert shapes == [(1, 2, 6, 6)]


def test_alexnet_refuses_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="32 x 32 pixels"):
        alexnet(3, widths=(2, 2, 2, 2, 2))(torch.zeros(2, 3, 32, 32))


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
    with pytest.raises(ValueError, match="small_convnet, small_resnet, alexnet, mlp"):
        network("resnet50", 3)
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
