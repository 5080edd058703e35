"""A small config, a small folder of images, and when two runs are the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otlabel.training.config import Config, config_of
from otlabel.training.run import Run

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "n_samples": 300},
    "model": {"backbone": "small_convnet", "options": {"widths": [8, 16], "strides": [2, 2]}, "heads": [10, 7]},
    "labels": {"n_relabels": 12},
    "augment": {"rotate": 20, "shift": 0.1},
    "train": {"epochs": 4, "batch_size": 64, "lr": 0.1, "threads": 1, "seed": 3},
}


def config(**changes: Any) -> Config:
    return config_of(SMALL).with_values(**changes)


def make_images(folder: Path, n_images: int, n_val: int, sides: tuple[int, int]) -> Path:
    """JPEGs in twenty classes, so many in each, all of other sizes: as `benchmarks/image_folder.py` makes them."""
    path = Path(__file__).parents[2] / "benchmarks" / "image_folder.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    maker.make(folder, 20, n_images, n_val, sides=sides)
    return folder


def end_of(run: Run) -> tuple[np.ndarray, list[torch.Tensor]]:
    return run.labeler.labels.numpy(), [tensor.clone() for tensor in run.model.state_dict().values()]


def assert_same(run: Run, other: Run) -> None:
    (labels, weights), (their_labels, their_weights) = end_of(run), end_of(other)
    np.testing.assert_array_equal(labels, their_labels)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, their_weights, strict=True))
