"""Settings from the shape of data alone, and the command that needs no config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from otlabel.commands.main import main
from otlabel.selflabel import load_labels
from otlabel.training.config import config_of
from otlabel.training.networks import network
from otlabel.training.suited import suited


def field_of_view(layers: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """Pixels of a side that one place of the last map depends on."""
    images = torch.zeros(1, *shape, requires_grad=True)
    found = images
    for layer in layers:
        if isinstance(layer, torch.nn.AdaptiveAvgPool2d):
            break
        found = layer(found)
    with torch.no_grad():
        middle = found.shape[2] // 2
    found[0, :, middle, middle].sum().backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().ravel()
    return int(rows.max() - rows.min()) + 1


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (1, 28), (3, 32), (3, 64), (4, 96)])
def test_networks_see_all_of_an_image(channels: int, side: int) -> None:
    config = config_of({"data": {"name": "x"}} | suited((5000, channels, side, side), 7))
    torch.manual_seed(0)
    made = network(config.model.backbone, channels, **config.model.options).eval()
    for module in made.modules():  # so that nothing is cut off by chance
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1e-2)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 1.0)
    assert field_of_view(made.layers, (channels, side, side)) >= 0.9 * side
    assert config.model.heads == [7] * len(config.model.heads)
    assert config.augment.flip == (channels == 3)
    assert config.augment.swap == 0
    assert made(torch.rand(2, channels, side, side)).shape == (2, made.feature_dim)


@pytest.mark.parametrize(("shape", "of_views"), [((3, 32, 32), True), ((1, 28, 40), True), ((1, 16, 16), False)])
def test_labels_are_of_views_where_images_are_large_enough_for_them(shape: tuple[int, ...], of_views: bool) -> None:
    config = config_of({"data": {"name": "x"}} | suited((5000, *shape), 10))
    assert config.labels.augmented == of_views
    assert (config.model.hidden is not None) == of_views
    few = config_of({"data": {"name": "x"}} | suited((500, *shape), 10))
    assert few.train.epochs > config.train.epochs
    assert config.labels.n_relabels >= config.train.epochs


def test_vectors_and_sizes_of_data() -> None:
    config = config_of({"data": {"name": "x"}} | suited((700, 30), 5))
    assert (config.model.backbone, config.augment.flip) == ("mlp", False)
    assert 0 < config.augment.swap < 1
    epochs = [suited((n, 1, 28, 28), 10)["train"]["epochs"] for n in (100, 5000, 60_000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)
    with pytest.raises(ValueError, match="1 classes: give at least 2"):
        suited((100, 5), 1)


FEW = ["--set", "train.epochs=2", "--set", "labels.n_relabels=3", "--set", "train.threads=1"]


def test_a_folder_without_labels_needs_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(90):
        Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(images / f"{number}.png")
    command = ["train", str(images), "-k", "3", "-o", str(tmp_path / "run"), "--set", "data.size=16", *FEW]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "90 images of 16 x 16 pixels, in grey, in 3 classes" in said
    assert "not mirrored" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["quality"] <= 1
    assert 0 <= result["churn"] <= 1
    assert result["sizes"] == [[30] * 3] * 4
    assert load_labels(tmp_path / "run" / "labels.h5").labels.shape == (4, 90)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["quality"] <= 1 for line in lines)
    assert "quality" in said
    assert main(command) == 0  # nothing is left to do
    assert main([*command[:3], "4", *command[4:]]) == 2
    assert "[model] heads" in capsys.readouterr().err


def test_vectors_in_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 4
    np.save(tmp_path / "x.npy", (4 * np.eye(4).repeat(5, 1)[truth] + rng.normal(size=(200, 20))).astype(np.float32))
    command = ["train", str(tmp_path / "x.npy"), "-k", "4", "-o", str(tmp_path / "run"), "--json"]
    assert main([*command, *FEW[2:], "--set", "train.epochs=8", "--set", "labels.n_relabels=24"]) == 0
    labels = load_labels(tmp_path / "run" / "labels.h5").labels
    from otlabel import metrics

    assert np.mean([metrics.nmi(truth, one) for one in labels]) > 0.9


def test_what_is_data_and_what_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text("[data]\nname = 'digits'\n")
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    assert "say how many classes" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "r.toml"), "-k", "3", "-o", str(tmp_path / "run")]) == 2
    assert "leave -k out" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_what_is_announced_is_what_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32))
    command = ["train", str(tmp_path / "x.npy"), "-k", "4", "-o", str(tmp_path / "run"), "--set", "train.threads=1"]
    assert main([*command, "--set", "train.epochs=3"]) == 0
    said = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    done = sum(line["relabellings"] for line in lines)
    assert f"3 epochs, {done} relabellings." in " ".join(said.split())
    assert done <= 6
    assert main([*command[:5], str(tmp_path / "none"), "--set", "train.epochs=0"]) == 2
    assert "epochs is 0; give at least 1" in capsys.readouterr().err
