"""A run's files in one folder: claimed for it, written whole, taken up again; and what a checkpoint holds, checked."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.sources.paths import load_plain
from otlabel.storage.atomic import replacing

FILES = ("metrics.jsonl", "checkpoint.pt", "labels.h5", "result.json", "config.json", "features.h5")
BEGUN = FILES[:4]  # there are some of them once an epoch has been trained


def rank_of_process() -> int:
    """Which of the processes that train together this is, as torchrun, Slurm or Lightning itself have said it."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return int(os.environ.get("LOCAL_RANK", 0)) + int(os.environ.get("NODE_RANK", 0))  # 0 is the first all the same


class RunFolder:
    """The folder of one run. Before an epoch has been trained nothing is written to it.

    Args:
        path: of the folder.
        asked: what the run was asked for, its config and what its data are told by: a run of another is refused.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path, self._asked = path, json.dumps(asked, indent=2)
        self._is_claimed = False  # whether config.json is that of this run

    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from, if there is one; folders of other runs or other makers are refused.

        Raises:
            FileExistsError: there are files that the run would replace, and nothing says that a run made them.
            FingerprintError: they are of another config or other data.
            FileFormatError: what says whose they are is damaged.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.path / "config.json"
        theirs = _read_config(known) if known.exists() else None
        begun = [name for name in BEGUN if (self.path / name).exists()]
        if begun and theirs is None:
            raise FileExistsError(
                f"{self.path} holds {', '.join(begun)}, which a run would replace, but no config.json of a run; give "
                "another folder"
            )
        if begun and theirs is not None:  # else a start that failed, which keeps nobody from starting otherwise
            _check_same(theirs, json.loads(self._asked), self.path)
        path = self.path / "checkpoint.pt"
        return path if path.exists() else None

    def cut_log(self, n_epochs: int) -> None:
        """Forget lines of epochs that no checkpoint has."""
        log = self.path / "metrics.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines()
            _write_text(log, "".join(f"{line}\n" for line in lines[:n_epochs]))

    def claim(self) -> None:
        """Say whose the folder is, before anything else is written to it."""
        if not self._is_claimed:
            _write_text(self.path / "config.json", self._asked)
        self._is_claimed = True

    def log(self, line: dict[str, Any]) -> None:
        """The line of an epoch, before the checkpoint after it; a line too many is cut off on resume."""
        self.claim()
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def write_result(self, result: dict[str, Any]) -> None:
        """What the run has come to."""
        _write_text(self.path / "result.json", json.dumps(result, indent=2))


def _read_config(path: Path) -> dict[str, Any]:
    """What a run was asked for."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for section in found["config"].values():
            dict(section)
        str(found["data"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not that of a run, or is damaged ({error!r}); give another folder") from error
    return dict(found)


def _check_same(theirs: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with another config or other data, and say what differs."""
    if theirs.get("data") != ours["data"]:
        raise FingerprintError(
            f"{folder} holds a run on other data: {theirs.get('data')}, these are {ours['data']}; put back what was "
            "added, taken away, renamed or changed, or give another folder"
        )
    for section, keys in ours["config"].items():
        before = theirs["config"].get(section, {})
        for key in keys | (before if section == "trainer" else {}):  # others have all of their keys
            old, value = before.get(key), keys.get(key)
            if old != value:
                raise FingerprintError(
                    f"{folder} holds a run with [{section}] {key} = {old!r}, now it is {value!r}; give another folder, "
                    "or remove that one"
                )


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


# ---- what a checkpoint holds ----


def trained_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the model (a `MultiHead`: backbone and heads) in a run's checkpoint.

    Raises:
        FileFormatError: it is none, or is damaged.
    """
    state = load_plain(path, keys=("state_dict",))["state_dict"]
    prefix = "model."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def kept_beside(path: Path) -> dict[str, Any]:
    """What a run's checkpoint holds beside weights and optimiser, by name; of an earlier version, less of it.

    Raises:
        FileFormatError: it is none, or is damaged.
    """
    state = load_plain(path, keys=("callbacks",))
    try:
        return dict(state["callbacks"]["otlabel"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged, or is no checkpoint of a run: {error!r}") from error


def check_loops(found: Any, own: Any) -> None:
    """Refuse counts of epochs and steps that are not of the form of this Trainer's."""
    if isinstance(own, dict):
        if not isinstance(found, dict) or not set(own) <= set(found):
            raise ValueError("its counts of epochs and steps are not those of a Trainer")
        for name, value in own.items():
            check_loops(found[name], value)
    elif type(found) is not type(own):
        raise ValueError(f"a count of its epochs and steps is {found!r}")


def checked_weights(weights: Any, model: nn.Module) -> dict[str, Tensor] | None:
    """Weights of the model's shapes; None where there are none, as in files of earlier versions."""
    if weights is None:
        return None
    own = model.state_dict()
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise ValueError("the weights of the best relabelling are not of the shapes of this model's")
    return dict(weights)


def check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what torch would take over, only to stumble over it in a later step."""
    for given, own in zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        for name, value in own.items():  # all but the rate are those of the config
            found = given.get(name, value)
            if not (isinstance(found, (int, float)) and math.isfinite(found) if name == "lr" else found == value):
                raise ValueError(f"{name} of its optimiser is {found!r}, not {value!r}")
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for number, kept in state["state"].items():
        buffer, parameter = kept.get("momentum_buffer"), parameters[number]
        if buffer is not None and (not isinstance(buffer, torch.Tensor) or buffer.shape != parameter.shape):
            shape = tuple(parameter.shape)
            raise ValueError(f"momentum {number} of its optimiser is no tensor of the shape {shape} of its parameter")
