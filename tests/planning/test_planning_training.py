"""What a training run will take: told by a moment of it and by its relabellings, with nothing written."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ran
from PIL import Image

from otlabel.planning.training import estimate_training
from otlabel.training.config import config_of
from otlabel.training.data import load_images
from otlabel.training.measuring import repeated

TINY = ("model.options={widths=[4],strides=[4]}", "model.backbone=small_convnet", "model.heads=[5,5]")
WORDS = [word for change in (*TINY, "data.size=16", "train.batch_size=8") for word in ("--set", change)]


@pytest.fixture
def run(run: Callable[..., Ran]) -> Callable[..., Ran]:
    """A function that runs `otlabel plan` in this process."""
    return functools.partial(run, "plan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(24):
        path = made / "train" / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return made


def test_a_recipe_is_told_by_a_moment_of_it(run, folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*"))
    words = [*WORDS, "--set", f"data.name={folder}", "--seconds", "0.1"]
    ran = run("sela_imagenet_alexnet", *words, "--set", "data.workers=0", "-o", tmp_path / "run", "--rows", 40_000)
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    told = " ".join(ran.out.split())
    for words_of_it in (
        "40,000 samples, 400 epochs, 100 relabellings of 2 heads",
        "samples/s trained on",
        "read for labels",
        "to label",
        "features take",
        "there is room",
        "rates are of fewer samples",
    ):
        assert words_of_it in told
    assert sorted(folder.rglob("*")) == files
    assert not (tmp_path / "run").exists()


def test_hours_are_samples_by_rates_and_labellings(folder: Path) -> None:
    given: dict[str, Any] = {
        "data": {"name": str(folder), "size": 16, "workers": 0},
        "model": {"backbone": "small_convnet", "options": {"widths": [4], "strides": [4]}, "heads": [5, 5]},
        "labels": {"n_relabels": 8, "schedule": "linear", "store": "hdf5"},
        "train": {"epochs": 4, "batch_size": 8},
    }
    images = load_images(folder, size=16)
    found = estimate_training(config_of(given), images, seconds=0.05, n_samples=8000, n_processes=2)
    assert found.relabellings == {"images": 8}
    assert found.rates.read is not None
    assert found.train_seconds == pytest.approx(4 * 8000 / found.rates.trained / 2)
    assert found.read_seconds == pytest.approx(8 * 8000 / found.rates.read / 2)
    assert found.seconds == pytest.approx(found.train_seconds + found.read_seconds + found.label_seconds)
    assert found.disk["features"] == 3 * 2 * 8000 * found.rates.feature_dim  # of before, on their way, and in a file
    assert found.peak_memory == sum(found.memory.values()) > found.memory["network, batches and data"] > 0
    argmax = config_of(given | {"labels": {"method": "argmax", "store": "hdf5"}})
    told = estimate_training(argmax, images, seconds=0.05)
    assert (told.relabellings, told.read_seconds, told.label_seconds) == ({"recorded": 3}, 0, 0)
    assert "features" not in told.disk


def test_few_files_stand_for_many(folder: Path) -> None:
    images = load_images(folder)
    many = repeated(images, 1000)
    assert (len(many.train), many.train.shape[1:]) == (1000, images.train.shape[1:])
    assert many.train.path(24 * 7 + 5) == images.train.path(5)
    assert int(many.train_labels[24 * 7 + 5]) == int(images.train_labels[5])  # type: ignore[index]
    assert len(repeated(images, 10**9).train) == 1 << 17
    assert repeated(images, 24) is images


def test_data_with_k_are_those_of_train(run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32))
    told = json.loads(run(tmp_path / "x.npy", "-k", 4, "--set", "train.epochs=3", "--seconds", "0.05", "--json").out)
    assert (told["n_samples"], told["epochs"], told["n_heads"]) == (200, 3, 4)
    assert sum(told["relabellings"].values()) == 5  # 6 times, of which the last lies past the end
    assert told["seconds"] > 0
    assert told["label_seconds"] < 4  # twenty solves of milliseconds, which the model of large ones calls seconds
    assert os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("digits", "--dim", "5"), "--dim is for assign"),
        (("digits", "--memory-limit", "5"), "--memory-limit is for assign"),
        (("digits", "--device", "h200"), "--device is for assign"),
        (("--rows", "5", "--classes", "2", "--set", "train.epochs=3"), "--set is for training"),
        (("--rows", "5", "--classes", "2", "--seconds", "3"), "--seconds is for training"),
        (("digits", "--seconds", "0"), "not a positive number"),
        (("none.toml",), "no file and no recipe"),
        (("digits", "--set", "train.epoch=3"), "did you mean 'epochs'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(run, argv: tuple[str, ...], told: str) -> None:
    ran = run(*argv)
    assert ran.code == 2
    assert told in ran.err
