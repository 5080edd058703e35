"""The README's code runs as it stands, and its picture is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def log_probabilities() -> np.ndarray:
    """What the README calls log_probs: a model's output for 1000 samples and 10 classes."""
    logits = np.random.default_rng(0).normal(size=(1000, 10))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {
        "np": np,
        "log_probs": log_probabilities(),
        "weight": rng.normal(size=(10, 16)),
        "bias": rng.normal(size=10),
        "torch": torch,
        "logits": torch.from_numpy(rng.normal(size=(64, 10))),
        "DataLoader": DataLoader,
        "dataset": TensorDataset(torch.from_numpy(rng.normal(size=(600, 8)).astype(np.float32))),
        "backbone": torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16, affine=False)),
    }
    with h5py.File("scores.h5", "w") as scores, h5py.File("features.h5", "w") as features:
        scores["log_probs"] = names["log_probs"]
        names["features"] = rng.normal(size=(1000, 16)).astype(np.float16)
        features["features"] = names["features"]
    exec(code, names)
    if "result" in names:
        assert names["result"].counts.sum() in (800, 1000)  # a fifth may be left unlabelled
        assert abs(names["result"].gap) < 1e-12
    elif "codes" in names:
        np.testing.assert_allclose(names["codes"].sum(1), 1, atol=1e-6)
    elif "labeler" in names:
        assert all(np.bincount(labels).tolist() == [60] * 10 for labels in names["labeler"].labels)
    else:
        assert names["model"].sizes_.tolist() == [100] * 10


def test_pictures_and_files_that_are_named_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (README.parent / target).exists(), target
