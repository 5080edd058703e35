"""A search for settings within a time: what is tried, what trains on all data, and going on after an interrupt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otlabel.commands.main import main
from otlabel.errors import FingerprintError
from otlabel.reporting.sources import find
from otlabel.training import search as searching
from otlabel.training.data import Images, load_images
from otlabel.training.search import SETTINGS, search, seconds_of
from otlabel.training.suited import suited

N, K = 240, 3


def make_images(folder: Path) -> Images:
    rng = np.random.default_rng(0)
    truth = np.arange(N) % K
    np.save(folder / "x.npy", (3 * np.eye(K).repeat(6, 1)[truth] + rng.normal(size=(N, 6 * K))).astype(np.float32))
    return load_images(folder / "x.npy")


def settings(images: Images) -> dict[str, Any]:
    given = {"data": {"name": images.name}, "evaluation": {"knn": 0, "probe": False}} | suited(images.train.shape, K)
    given["model"]["options"] = {"width": 16}
    given["train"]["threads"] = 1
    return given


def test_times_are_read() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "10m", "1.5h")] == [90, 90, 600, 5400]
    for wrong in ("", "ten", "-3m", "0", "5d"):
        with pytest.raises(ValueError, match="is no time"):
            seconds_of(wrong)


def test_the_best_of_the_settings_trains_on_all_data_after_an_interrupt_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PART", 100)
    monkeypatch.setattr(searching, "TRIAL_EPOCHS", (2, 2))
    monkeypatch.setattr(searching, "LAST_EPOCHS", (1, 4))
    images, said = make_images(tmp_path), []

    def interrupting(text: str) -> None:
        said.append(text)
        if len([one for one in said if one.startswith("trying")]) == 3:
            raise KeyboardInterrupt

    given = settings(images)
    with pytest.raises(KeyboardInterrupt):
        search(given, images, 6000, tmp_path / "run", say=interrupting)
    before = len(json.loads((tmp_path / "run" / "search.json").read_text())["tried"])
    assert before == 2
    again: list[str] = []
    run = search(given, images, 6000, tmp_path / "run", say=again.append)
    state = json.loads((tmp_path / "run" / "search.json").read_text())
    assert len([text for text in again if text.startswith("trying")]) == len(state["tried"]) - before
    first, second = ([one for one in state["tried"] if one["rung"] == rung] for rung in (0, 1))
    assert [one["name"] for one in first] == list(SETTINGS)
    best = sorted(first, key=lambda one: -one["quality"])[: len(SETTINGS) // 2]
    assert {one["name"] for one in second} == {one["name"] for one in best}
    assert state["last"]["name"] == max(second, key=lambda one: one["quality"])["name"]
    assert {one["samples"] for one in state["tried"]} == {100}
    assert len(run.images.train) == N
    assert run.epoch == state["last"]["epochs"] == 4
    assert any("Tried on a part of the data" in text for text in find(tmp_path / "run").about)
    with pytest.raises(FingerprintError, match="a search for other"):
        search(given, images, 500, tmp_path / "run")


def test_whoever_interrupts_is_told_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(searching, "PART", 60)
    monkeypatch.setattr(searching, "TRIAL_EPOCHS", (1, 1))
    make_images(tmp_path)
    trained = searching.train

    def interrupted(*given: Any, **named: Any) -> Any:
        trained(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "train", interrupted)
    command = ["train", str(tmp_path / "x.npy"), "-k", "3", "-o", str(tmp_path / "run"), "--time", "5m"]
    assert main(command) == 130
    said = capsys.readouterr()
    assert said.err.splitlines() == ["Stopped; the same command goes on from here.", "otlabel: error: interrupted"]
    assert "240 vectors of 18 numbers, in 3 classes" in said.out
    assert "epochs, " not in said.out.splitlines()[1]


def test_too_little_time_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path)
    command = ["train", str(tmp_path / "x.npy"), "-k", "3", "-o", str(tmp_path / "run")]
    assert main([*command, "--time", "0.001s"]) == 2
    assert "too few" in capsys.readouterr().err
    assert main([*command, "--time", "soon"]) == 2
    assert main(["train", "digits", "-o", str(tmp_path / "run"), "--time", "5m"]) == 2
    assert "with -k" in capsys.readouterr().err
