"""Training runs: the same bits after any kill, refused changes, damage by name, and what is written."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import alone
from small_runs import assert_same, config

from otlabel.errors import FileFormatError, FingerprintError, SelfLabelWarning
from otlabel.selflabel import load_labels
from otlabel.training.config import read_config
from otlabel.training.folder import FILES
from otlabel.training.module import LabelModule
from otlabel.training.run import Run, train

VARIANTS = {
    "sinkhorn": {},
    "k-means": {"labels__method": "kmeans"},
    "argmax": {"labels__method": "argmax"},
    "settled": {"labels__method": "argmax", "labels__fixed_epochs": 2, "train__decay": "linear"},
    "one head of k-means": {"labels__method": "kmeans", "model__heads": [12]},
    "rotation": {"train__rotation": 1.0, "train__decay": "steps", "train__drops": [1, 3]},
    "train mode": {"labels__mode": "train"},
    "labels of views": {"labels__augmented": True},
    "deep heads": {"model__hidden": 9, "labels__schedule": "linear"},
    "uneven": {"labels__range": (0.5, 2.0), "data__imbalance": "heavy"},
    "abstaining": {"labels__abstain": 0.2, "labels__kl": 1.0},
    "a head at a time": {"labels__in_turn": True, "augment__blur": 0.5, "augment__normalise": "data"},
    "argmax as they are": {"labels__method": "argmax", "labels__augmented": False, "model__sobel": True},
}


class StoppedError(Exception):
    """In place of a kill."""


def stop_at(run: Run, time: float) -> None:
    """End a run before its labels of a time, in epochs."""
    relabel = run.relabel

    def stopping(progress: float, optimizers: Any) -> None:
        if progress >= time:
            raise StoppedError
        relabel(progress, optimizers)

    run.relabel = stopping  # type: ignore[method-assign]


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    """Stopped in the middle of an epoch and after one, each time in new objects."""
    wanted = config(**VARIANTS[name])
    whole = train(wanted)
    for n_epochs in (1, 2):
        part = Run(wanted, tmp_path)
        part.resume()
        stop_at(part, n_epochs + 0.5)  # what was trained since the last checkpoint is lost
        with pytest.raises(StoppedError):
            part.fit()
    resumed = train(wanted, tmp_path)
    assert_same(whole, resumed)
    assert whole.result == resumed.result
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


def killed_again_and_again(path: Path, folder: Path) -> int:
    """How often it was, before it came to its end; each run is a process of its own, which is forked here."""
    warnings.simplefilter("ignore")

    def started(folder: Path) -> int:
        process = os.fork()
        if not process:
            train(read_config(str(path)), folder)
            os._exit(0)
        return process

    begun = time.perf_counter()
    os.waitpid(started(folder.with_name("timed")), 0)
    seconds = time.perf_counter() - begun
    rng, n_killed = random.Random(0), 0
    while n_killed < 5:
        process = started(folder)
        time.sleep(rng.uniform(0.05, 0.3) * seconds)
        os.kill(process, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            break
        n_killed += 1
    return n_killed


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL while extracting to HDF5, while labelling, while a checkpoint is written: whatever the moment hits."""
    text = """
[data]
name = "digits"
n_samples = 400
[model]
backbone = "small_convnet"
heads = [10, 10]
options = {widths = [8, 16], strides = [2, 2]}
[labels]
n_relabels = 60
store = "hdf5"
[augment]
rotate = 10
[train]
epochs = 6
lr = 0.1
threads = 1
"""
    path = tmp_path / "config.toml"
    path.write_text(text)
    whole = train(read_config(str(path)), tmp_path / "whole")
    assert alone(killed_again_and_again, path, tmp_path / "killed").answer() >= 3
    killed = train(read_config(str(path)), tmp_path / "killed")
    assert_same(whole, killed)
    np.testing.assert_array_equal(
        load_labels(tmp_path / "killed" / "labels.h5").labels, load_labels(tmp_path / "whole" / "labels.h5").labels
    )
    left = {path.name for path in (tmp_path / "killed").iterdir()} - {"tensorboard"}
    assert left == {"checkpoint.pt", "config.json", "features.h5", "labels.h5", "metrics.jsonl", "result.json"}


def test_other_config_or_data_is_refused(tmp_path: Path) -> None:
    train(config(train__epochs=1), tmp_path)
    with pytest.raises(FingerprintError, match=r"\[train\] epochs = 1, now it is 2"):
        train(config(train__epochs=2), tmp_path)
    known = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(known | {"data": "0" * 64}))
    with pytest.raises(FingerprintError, match=f"other data: {'0' * 64}, these are [0-9a-f]{{64}}"):
        train(config(train__epochs=1), tmp_path)


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    """The second is refused at once, before it reads its data, and the first comes to its end."""
    refused = []

    def second(_: dict[str, Any]) -> None:
        with pytest.raises(BlockingIOError, match=rf"{tmp_path} is in use by process {os.getpid()} on .+; wait"):
            train(config(data__name="absent.npy"), tmp_path)
        refused.append(True)

    train(config(train__epochs=1), tmp_path, report=second)
    assert refused == [True]
    names = {path.name for path in tmp_path.iterdir()} - {"tensorboard"}
    assert names == {"checkpoint.pt", "config.json", "labels.h5", "metrics.jsonl", "result.json"}


def test_start_that_fails_leaves_the_folder_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it fails in the first epoch or was killed there by an otlabel that wrote down its config at once."""

    def failing(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(LabelModule, "loss", failing)
        with pytest.raises(MemoryError):
            train(config(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    other = {"config": config(train__epochs=9).to_dict(), "data": "other"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(other))
    train(config(train__epochs=1), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["train"]["epochs"] == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.pt", "labels.h5", "result.json", "config.json"])
def test_files_of_others_are_not_taken_for_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"precious": 1}')
    told = "config.json is not that of a run" if name == "config.json" else f"holds {name}, which a run would replace"
    with pytest.raises((FileExistsError, FileFormatError), match=told):
        train(config(train__epochs=1), tmp_path)
    assert (tmp_path / name).read_text() == '{"precious": 1}'
    assert os.listdir(tmp_path) == [name]


def test_labels_that_are_trained_on_are_not_written_over(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(config(train__epochs=1), first)
    before = (first / "labels.h5").read_bytes()
    second.mkdir()
    os.link(first / "labels.h5", second / "labels.h5")
    fixed = config(labels__method="fixed", labels__file=str(first / "labels.h5"))
    for folder in (first, second):
        with pytest.raises(ValueError, match=r"the run's labels\.h5 .+ and \[labels\] file .+ are the same file"):
            train(fixed, folder)
        assert (folder / "labels.h5").read_bytes() == before


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(config(train__epochs=1), tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for size in (1000, len(whole) // 2):  # of the latter torch says "Invalid argument"
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"checkpoint\.pt is damaged"):
            train(config(train__epochs=1), tmp_path)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config(train__epochs=1, data__n_samples=60), folder)
    return folder


def _momentum(state: dict[str, Any], value: Any) -> None:
    state["optimizer_states"][0]["state"][0]["momentum_buffer"] = value


def _group(state: dict[str, Any], **values: Any) -> None:
    state["optimizer_states"][0]["param_groups"][0].update(values)


def _own(state: dict[str, Any]) -> dict[str, Any]:
    return state["callbacks"]["otlabel"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: torch.zeros(3), "is a Tensor without 'state_dict', 'optimizer_states'"),
        (lambda state: state["state_dict"], "is a OrderedDict without 'state_dict'"),
        (lambda state: state.pop("callbacks") and None, "is a dict without 'callbacks'"),
        (lambda state: _own(state).pop("labeler") and None, "labeler"),
        (lambda state: state.update(state_dict=7), "state_dict"),
        (lambda state: state["state_dict"].popitem() and None, "Missing key"),
        (lambda state: state["state_dict"].update({"0.backbone": 7}), "Unexpected key"),
        (lambda state: state.update(optimizer_states=[]), "not enough values"),
        (lambda state: state.update(optimizer_states=[[]]), "list indices"),
        (lambda state: _group(state, lr="fast"), "lr of its optimiser is 'fast'"),
        (lambda state: _group(state, lr=float("nan")), "lr of its optimiser is nan"),
        (lambda state: _group(state, momentum=None), "momentum of its optimiser is None"),
        (lambda state: _momentum(state, torch.zeros(3)), "momentum 0 of its optimiser is no tensor of the shape"),
        (lambda state: _momentum(state, "text"), "momentum 0 of its optimiser is no tensor of the shape"),
        (
            lambda state: state["optimizer_states"][0]["state"].update({99: {"momentum_buffer": None}}),
            "index out of range",
        ),
        (lambda state: state.update(loops={"fit_loop": 3}), "counts of epochs and steps are not those of a Trainer"),
        (
            lambda state: state["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed="two"),
            "a count of its epochs and steps is 'two'",
        ),
        (lambda state: state.update(epoch="one"), "interpreted as an integer"),
        (lambda state: state.update(epoch=4), "it is of epoch 5, of 1"),
        (lambda state: _own(state).update(untrained=3), "not iterable"),
        (lambda state: _own(state).update(untrained={"knn": torch.zeros(2)}), "not JSON serializable"),
    ],
)
def test_checkpoints_of_others_are_told_in_one_line(a_run: Path, tmp_path: Path, change, told: str) -> None:
    shutil.copytree(a_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    changed = change(state)
    torch.save(state if changed is None else changed, path)
    with pytest.raises(FileFormatError, match=rf"checkpoint\.pt is damaged, or is no checkpoint .*({told})") as caught:
        train(config(train__epochs=1, data__n_samples=60), tmp_path / "run")
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("; remove it to start anew")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"config": {"data": 3}, "data": "x"}', '{"config": 7, "data": ""}', "\x00"]
)
def test_a_config_of_others_is_told_in_one_line(a_run: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(a_run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"config\.json is not that of a run, or is damaged") as caught:
        train(config(train__epochs=1, data__n_samples=60), tmp_path / "run")
    assert str(caught.value).isprintable()


def test_loggers_are_lightnings_and_get_a_line_an_epoch(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    train(config(train__epochs=2, trainer__logger="CSVLogger"), tmp_path, report=lines.append)
    with next(tmp_path.rglob("metrics.csv")).open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(one["loss"]) for one in written] == [one["loss"] for one in lines]
    train(config(train__epochs=2), tmp_path / "none")
    assert not {path.name for path in (tmp_path / "none").iterdir()} - {*FILES, "tensorboard"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"precison": "bf16-mixed"},
            "'precison', which is no argument of Lightning's Trainer; did you mean 'precision'",
        ),
        ({"max_epochs": 3}, r"'max_epochs', but \[train\] epochs says how long a run is"),
        ({"max_epoch": 3}, r"'max_epoch', which is no .* Trainer; \[train\] epochs says how long"),
        ({"limit_train_batches": 3}, "an epoch of a run is all of its samples"),
        ({"precision": "half"}, "not accepted by Lightning: .*Precision 'half' is invalid"),
        ({"accelerator": "abacus"}, "not accepted by Lightning: .*abacus"),
        ({"logger": "Abacus"}, "logger is 'Abacus'; give true, false, one of"),
    ],
)
def test_mistakes_in_the_section_of_the_trainer_are_told_before_anything_is_written(
    tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        train(config(**{f"trainer__{name}": value for name, value in asked.items()}), tmp_path / "run")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "run").exists()


def test_lightning_keeps_quiet_and_an_interrupt_stays_one(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config(), report=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr() == ("", "")


def test_mixed_precision_trains_and_labels(tmp_path: Path) -> None:
    wanted = config(
        train__epochs=2, trainer__precision="bf16-mixed", model__options={"widths": [8, 8], "strides": [2, 2]}
    )
    run = train(wanted, tmp_path)
    assert run.labeler._extractor.amp is torch.bfloat16
    np.testing.assert_array_equal(np.bincount(run.labeler.labels[0]), [30] * 10)
    assert all(tensor.dtype == torch.float32 for tensor in run.model.parameters())


def test_labels_are_written_before_features_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def too_much(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("otlabel.training.run.evaluate", too_much)
    with pytest.raises(MemoryError):
        train(config(train__epochs=1, data__n_samples=60), tmp_path)
    assert load_labels(tmp_path / "labels.h5").labels.shape == (2, 60)


def test_full_disk_keeps_the_old_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(config(train__epochs=1), None)
    before = run.labeler.labels.clone()

    lines: list[dict[str, Any]] = []

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "features.h5")

    monkeypatch.setattr(run.labeler.store, "begin", no_room)
    with pytest.warns(SelfLabelWarning, match="training goes on with the old labels"):
        run.fit(lines.append)
    assert lines[0]["relabellings"] == 0
    assert torch.equal(before, run.labeler.labels)
