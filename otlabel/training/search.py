"""`otlabel train DATA -k K --time 10m`: a few settings are tried on a part of the data, the best trains on all.

Successive halving: all settings of a small, stated set train for some epochs on up to 2000 samples; the better half
trains anew for twice as many; the best of these, by `quality` and never by true classes, trains on all data in what is
left of the time. What was tried is in search.json, which is also what an interrupted search goes on from: trials are
runs in folders of their own, each with its checkpoint.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.storage.atomic import replacing
from otlabel.storage.texts import read_json_lines
from otlabel.training.config import Config, config_of
from otlabel.training.data import Images, part_of
from otlabel.training.run import Report, Run, train

PART = 2000  # samples that settings are tried on, at most
SEARCHING = 0.4  # of the time
RUNGS = (1, 2)  # epochs of each, in units that the time allows
TRIAL_EPOCHS = (2, 20)  # in the first rung
LAST_EPOCHS = (5, 200)  # on all data
KEPT_BACK = 0.9  # of what is left is planned for the last run: labels and features are judged after it
NAME = "search.json"

# What is tried: changes of the settings that suit the data, as `suited` has them.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "as suits": {},
    "a third of the rate": {"train": {"lr": 1 / 3}},
    "three times the rate": {"train": {"lr": 3.0}},
    "relabelled twice as often": {"labels": {"n_relabels": 2.0}},
    "stronger views": {"augment": {"stronger": 1.5}},
    "milder views": {"augment": {"stronger": 0.6}},
}
UNITS = {"s": 1, "m": 60, "h": 3600, "": 1}


def seconds_of(text: str) -> float:
    """Seconds that a text such as 90, 90s, 10m or 1.5h says.

    Raises:
        ValueError: it says no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is no time: give 90s, 10m or 1.5h")
    return float(found[1]) * UNITS[found[2]]


def search(
    given: dict[str, Any],
    images: Images,
    seconds: float,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    report: Report | None = None,
) -> Run:
    """Try settings, then train on all data by those of the highest quality; goes on where it was interrupted.

    Args:
        given: all sections of a config, which suits the data.
        images: all data.
        seconds: for all of it.
        folder: where the run's files go; trials are in `tried` in it.
        say: is told what is being done.
        report: as for `train`, of the last run.

    Raises:
        FingerprintError: the folder holds a search for something else.
        ValueError: too little time for so many samples.
    """
    asked = {"given": given, "data": images.fingerprint, "seconds": seconds}
    state = _read(folder, asked)
    started = time.monotonic() - state["spent"]

    def save(**more: Any) -> None:
        state.update(more, spent=time.monotonic() - started)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / NAME) as file:
            file.write(json.dumps(state, indent=2).encode())

    part = part_of(images, min(PART, len(images.train)))
    if state["epoch"] is None:
        seconds_of_epochs: list[float] = []  # in the first is what is slow only once
        first = Run(_config(given, "as suits", 2, is_trial=True), None, images=part)
        first.fit(lambda line: seconds_of_epochs.append(line["seconds"]))
        save(epoch=seconds_of_epochs[1])
    unit = _unit(state["epoch"], len(images.train) / len(part.train), seconds, len(images.train))
    names = list(SETTINGS)
    for rung, epochs in enumerate(unit * factor for factor in RUNGS):
        for number, name in enumerate(names):
            if any(one["name"] == name and one["rung"] == rung for one in state["tried"]):
                continue
            left = seconds - (time.monotonic() - started)
            say(f"trying {name}: {epochs} epochs on {len(part.train):,} samples, {left:.0f} s left")
            place = _place(folder, rung, name)
            place.mkdir(parents=True, exist_ok=True)
            run = train(_config(given, name, epochs, is_trial=True), place, images=part)
            quality = run.labeler.best_quality
            say(f"  {number + 1} of {len(names)}: quality {quality or 0:.3f}")
            tried = {
                "name": name,
                "rung": rung,
                "epochs": epochs,
                "samples": len(part.train),
                "quality": quality or 0.0,
            }
            save(tried=[*state["tried"], tried])
        ranked = {one["name"]: one["quality"] for one in state["tried"] if one["rung"] == rung}
        names = sorted(names, key=lambda name: -ranked[name])[: max(1, len(names) // 2)]
    if state["last"] is None:
        left = KEPT_BACK * (seconds - (time.monotonic() - started))
        # By the epochs of its own trial: some settings take longer than those that suit, on which the plan was made.
        last_epoch = _epoch_seconds(_place(folder, len(RUNGS) - 1, names[0])) * len(images.train) / len(part.train)
        epochs = min(max(int(left / last_epoch), LAST_EPOCHS[0]), LAST_EPOCHS[1])
        save(last={"name": names[0], "epochs": epochs})
    last = state["last"]
    say(f"training by {last['name']!r}: {last['epochs']} epochs on all {len(images.train):,} samples")
    config = _config(given, last["name"], last["epochs"], is_trial=False)
    return train(config, folder, report=report, images=images)


def _unit(epoch: float, ratio: float, seconds: float, n_samples: int) -> int:
    """Epochs of a trial in the first rung, where one takes so long, and one on all data `ratio` times as long.

    Raises:
        ValueError: too little time for the fewest that mean anything.
    """
    low, high = TRIAL_EPOCHS
    n_trials = sum(RUNGS[rung] * len(SETTINGS) / 2**rung for rung in range(len(RUNGS)))
    unit = min(max(int(SEARCHING * seconds / epoch / n_trials), low), high)
    needed = unit * n_trials * epoch + LAST_EPOCHS[0] * epoch * ratio
    if needed > seconds and unit == low:
        raise ValueError(f"{seconds:g} s are too few for {n_samples:,} samples here; give about {needed:.0f} s")
    return unit


def told(state: dict[str, Any]) -> list[str]:
    """A sentence on what was tried."""
    tried = [f"{one['name']} {one['quality']:.3f} ({one['epochs']} epochs)" for one in state["tried"]]
    return [f"Tried on a part of the data, by quality: {'; '.join(tried)}."] if tried else []


def _place(folder: Path, rung: int, name: str) -> Path:
    """The folder of a trial."""
    return folder / "tried" / f"{rung}-{list(SETTINGS).index(name)}"


def _epoch_seconds(place: Path) -> float:
    """The mean over the epochs of a trial, however often it was interrupted."""
    lines = read_json_lines(place / "metrics.jsonl")
    return sum(line["seconds"] for line in lines) / len(lines)


def _read(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    path = folder / NAME
    if not path.is_file():
        return {"asked": asked, "spent": 0.0, "epoch": None, "tried": [], "last": None}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        there = {"asked", "spent", "epoch", "tried", "last"} <= set(state)
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{path} is damaged: {error}; remove the folder to start anew") from error
    if not there:
        raise FileFormatError(f"{path} is not that of a search; give another folder")
    if state["asked"] != json.loads(json.dumps(asked)):
        raise FingerprintError(f"{folder} holds a search for other data, settings or time; give another folder")
    return dict(state)


def _config(given: dict[str, Any], name: str, epochs: int, *, is_trial: bool) -> Config:
    """Settings by their name: factors of those that suit. Trials are judged by quality alone."""
    sections = copy.deepcopy(given)
    change = SETTINGS[name]
    often = sections["labels"]["n_relabels"] / sections["train"]["epochs"]
    sections["train"] |= {"epochs": epochs, "lr": sections["train"]["lr"] * change.get("train", {}).get("lr", 1.0)}
    sections["labels"]["n_relabels"] = max(1, round(often * epochs * change.get("labels", {}).get("n_relabels", 1)))
    if "augment" in change:
        sections["augment"] = _stronger(sections["augment"], change["augment"]["stronger"])
    if is_trial:
        sections["evaluation"] = {"knn": 0, "probe": False}
    return config_of(sections, "the search")


def _stronger(augment: dict[str, Any], factor: float) -> dict[str, Any]:
    """Views that are further from the samples, or nearer to them."""
    changed = dict(augment)
    for name, most in (("jitter", 1.0), ("grayscale", 0.5), ("rotate", 45.0), ("shift", 0.3), ("swap", 0.7)):
        if changed.get(name):
            changed[name] = min(most, changed[name] * factor)
    if changed.get("crop"):
        low, high = changed["crop"]
        changed["crop"] = [max(0.08, 1 - (1 - low) * factor), high]
    if changed.get("zoom"):
        low, high = changed["zoom"]
        changed["zoom"] = [low**factor, high**factor]
    return changed
