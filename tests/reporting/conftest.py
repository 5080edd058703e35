"""Labels with all that a report may know of them, and the folder of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import D, K, N
from scipy.special import log_softmax

from otlabel import sinkhorn_assign


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, K, N)
    features = rng.normal(size=(N, D)) + 2 * rng.normal(size=(K, D))[truth]
    scores = log_softmax(rng.normal(size=(N, K)) + 2 * np.eye(K)[truth], 1)
    return {
        "scores": scores,
        "labels": sinkhorn_assign(scores).labels,
        "truth": truth,
        "features": features,
        "images": rng.integers(0, 256, (N, 9, 7), dtype=np.uint8),
    }


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny training run with two heads."""
    from otlabel.training.config import config_of
    from otlabel.training.run import train

    small: dict[str, Any] = {
        "data": {"name": "digits", "n_samples": 200, "imbalance": "light", "validation": 0.1},
        "model": {"backbone": "small_convnet", "options": {"widths": [4], "strides": [2]}, "heads": [10, 4]},
        "labels": {"n_relabels": 4},
        "train": {"epochs": 3, "batch_size": 50, "threads": 1},
    }
    folder = tmp_path_factory.mktemp("runs") / "tiny <run>"
    train(config_of(small), folder)
    return folder
