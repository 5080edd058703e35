"""The examples that the help of each command gives: all of them run, in the order that a user would take."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from otlabel import sinkhorn_assign
from otlabel.commands import warmup
from otlabel.commands.main import build_parser, main

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

SMALL = ("train.epochs=1", "data.n_samples=120", "train.threads=1", "evaluation.probe=false")
OF_TRAINING = [word for change in SMALL for word in ("--set", change)]
QUICK = {"train": OF_TRAINING, "transfer": OF_TRAINING, "probe": ["--epochs", "2"]}
ORDER = (
    "assign", "cluster", "predict", "certify", "plan", "warmup", "doctor", "curate", "train", "transfer", "report",
    "probe", "labels", "export",
)  # fmt: skip


def examples() -> Iterator[tuple[str, list[str]]]:
    """The name of each command and the words of each of its examples."""
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        for example in re.findall(r"otlabel ([^;]+)", command.epilog or ""):
            yield name, shlex.split(example)


def test_every_command_with_arguments_has_an_example_of_its_own() -> None:
    assert {name for name, _ in examples()} == set(ORDER)
    assert all(words[0] == name for name, words in examples())


def test_every_example_of_the_help_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warmup, "N_ROWS", 2000)  # what these need is compiled
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 5))
    np.save("scores.npy", scores)
    np.save("new.npy", scores[:40])
    np.save("features.npy", scores)
    sinkhorn_assign(scores).save("result.npz")
    with h5py.File("features.h5", "w") as file:
        file["features"] = rng.normal(size=(50_500, 1)).astype(np.float32)
    Path("my-images").mkdir()
    for number, pixels in enumerate(rng.integers(0, 255, (120, 8, 8), dtype=np.uint8)):
        Image.fromarray(pixels).save(f"my-images/{number}.png")
    for name, words in sorted(examples(), key=lambda example: ORDER.index(example[0])):
        code = main([*words, *QUICK.get(name, [])])
        assert code == 0, (words, capsys.readouterr().err)
        if "-o" in words and name != "plan":
            assert Path(words[words.index("-o") + 1]).exists()
