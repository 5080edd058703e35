"""The README's code runs as it stands, its commands exist, its links lead somewhere (its figures: test_docs)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from otlabel import IndexedDataset, MultiHead
from otlabel.commands.main import build_parser

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def log_probabilities() -> np.ndarray:
    """What the README calls log_probs: a model's output for 1000 samples and 10 classes."""
    logits = np.random.default_rng(0).normal(size=(1000, 10))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = TensorDataset(torch.from_numpy(np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)))
    backbone = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16, affine=False))
    model = MultiHead(backbone, feature_dim=16, n_classes=[10] * 4)
    names: dict[str, Any] = {
        "log_probs": log_probabilities(),
        "dataset": dataset,
        "model": model,
        "loader": DataLoader(IndexedDataset(dataset), 64, shuffle=True),
        "full_loader": DataLoader(IndexedDataset(dataset), 64),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
    }
    with h5py.File("scores.h5", "w") as scores:
        scores["log_probs"] = names["log_probs"]
    exec(code, names)
    if "result" in names:
        assert names["result"].counts.tolist() == [100] * 10
        assert abs(names["result"].gap) < 1e-12
    else:
        assert all(np.bincount(labels).tolist() == [60] * 10 for labels in names["labeler"].labels)


def test_pictures_and_files_that_are_named_exist() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (README.parent / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (README.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def test_commands_are_taken_as_they_are_written() -> None:
    commands = re.findall(r"^(otlabel .*?)(?:  |$)", TEXT, re.MULTILINE) + re.findall(r"`(otlabel [^`]+)`", TEXT)
    assert len(commands) >= 3
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])
