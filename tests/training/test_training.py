"""Training runs: the same bits after any kill, refused changes, what is written, and the commands."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn")

from otlabel import metrics
from otlabel.commands.main import main
from otlabel.commands.train import _Table
from otlabel.errors import FileFormatError, FingerprintError, SelfLabelWarning
from otlabel.selflabel import load_labels, save_labels
from otlabel.selflabel.quality import common_view
from otlabel.training import loaders, setup
from otlabel.training.augment import plain
from otlabel.training.config import Config, config_of, read_config
from otlabel.training.data import Images, load_images
from otlabel.training.evaluate import features_of
from otlabel.training.run import Run, train

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "data": {"name": "digits", "n_samples": 300},
    "model": {"backbone": "small_convnet", "options": {"widths": [8, 16], "strides": [2, 2]}, "heads": [10, 7]},
    "labels": {"n_relabels": 12},
    "augment": {"rotate": 20, "shift": 0.1},
    "train": {"epochs": 4, "batch_size": 64, "lr": 0.1, "threads": 1, "seed": 3},
}


def config(**changes: Any) -> Config:
    return config_of(SMALL).with_values(**changes)


def end_of(run: Run) -> tuple[np.ndarray, list[torch.Tensor]]:
    return run.labeler.labels.numpy(), [tensor.clone() for tensor in run.model.state_dict().values()]


def assert_same(run: Run, other: Run) -> None:
    (labels, weights), (their_labels, their_weights) = end_of(run), end_of(other)
    np.testing.assert_array_equal(labels, their_labels)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, their_weights, strict=True))


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
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    """Stopped in the middle of an epoch and after one, each time in new objects."""
    wanted = config(**VARIANTS[name])
    whole = train(wanted)
    for n_epochs in (1, 2):
        part = Run(wanted, tmp_path)
        part.resume()
        while part.epoch < n_epochs:
            part.train_epoch()
        drawn = iter(part._drawn())  # the next epoch's beginning, which is lost
        for step, size in enumerate(part._batch_sizes()):
            part._relabel(part.epoch + step / 5)
            index = torch.tensor(list(islice(drawn, size)))
            part._step(index, torch.Generator().manual_seed(0), part.epoch + step / 5)
    resumed = train(wanted, tmp_path)
    assert_same(whole, resumed)
    assert whole.result == resumed.result
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


PROGRAM = """
import sys
from otlabel.training.config import read_config
from otlabel.training.run import train
print("ready", flush=True)
train(read_config(sys.argv[1]), sys.argv[2])
"""


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    rng, n_killed = random.Random(0), 0
    whole = train(read_config(str(path)), tmp_path / "whole")
    for _ in range(30):
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(path), str(tmp_path / "killed")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.1, 0.1 + 0.15 * n_killed))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
        n_killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0 or n_killed == 4:
            break
    assert n_killed >= 3
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
        patch.setattr(Run, "_step", failing)
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
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match=r"checkpoint\.pt is damaged"):
        train(config(train__epochs=1), tmp_path)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config(train__epochs=1, data__n_samples=60), folder)
    return folder


def _momentum(state: dict[str, Any], value: Any) -> None:
    state["optimizer"]["state"][0]["momentum_buffer"] = value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: torch.zeros(3), "is a Tensor without 'weights', 'optimizer'"),
        (lambda state: state["weights"], "is a OrderedDict without 'weights'"),
        (lambda state: state.pop("labeler") and None, "is a dict without 'labeler'"),
        (lambda state: state.update(weights=7), "weights|state_dict"),
        (lambda state: state["weights"].popitem() and None, "Missing key"),
        (lambda state: state["weights"].update({"0.backbone": 7}), "Unexpected key"),
        (lambda state: state.update(optimizer=[]), "list indices"),
        (lambda state: state["optimizer"]["param_groups"][0].update(lr="fast"), "lr of its optimiser is 'fast'"),
        (lambda state: state["optimizer"]["param_groups"][0].update(lr=float("nan")), "lr of its optimiser is nan"),
        (
            lambda state: state["optimizer"]["param_groups"][0].update(momentum=None),
            "momentum of its optimiser is None",
        ),
        (lambda state: _momentum(state, torch.zeros(3)), "momentum 0 of its optimiser is no tensor of the shape"),
        (lambda state: _momentum(state, "text"), "momentum 0 of its optimiser is no tensor of the shape"),
        (lambda state: state["optimizer"]["state"].update({99: {"momentum_buffer": None}}), "index out of range"),
        (lambda state: state.update(epoch="one"), "interpreted as an integer"),
        (lambda state: state.update(epoch=5), "it is of epoch 5, of 1"),
        (lambda state: state.update(untrained=3), "not iterable"),
        (lambda state: state.update(untrained={"knn": torch.zeros(2)}), "not JSON serializable"),
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


class Writer:
    """In place of TensorBoard's."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str) -> None:
        self.folder, self.scalars, self.flushed, self.closed = folder, [], 0, False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed = len(self.scalars)

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_one_file_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])

    def interrupted(line: dict[str, Any]) -> None:
        assert Writer.made[0].flushed == len(Writer.made[0].scalars) == len(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(train__epochs=3), tmp_path, report=interrupted)
    lines: list[dict[str, Any]] = []
    train(config(train__epochs=3), tmp_path, report=lines.append)
    train(config(train__epochs=3), tmp_path)  # nothing is left to do
    first, second = Writer.made
    assert first.closed
    assert second.closed
    assert first.folder == second.folder == str(tmp_path / "tensorboard")
    assert {step for *_, step in first.scalars} == {1}
    assert second.scalars == [(name, value, line["epoch"]) for line in lines for name, value in line.items()]


def test_without_tensorboard_it_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sought = []

    class Finder:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "torch.utils.tensorboard":
                sought.append(name)
                raise ModuleNotFoundError(name)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    train(config(train__epochs=3), tmp_path)
    assert len(sought) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_full_disk_keeps_the_old_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(config(), None)
    before = run.labeler.labels.clone()

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "features.h5")

    monkeypatch.setattr(run.labeler.store, "begin", no_room)
    with pytest.warns(SelfLabelWarning, match="training goes on with the old labels"):
        line = run.train_epoch()
    assert line["relabellings"] == 0
    assert torch.equal(before, run.labeler.labels)


def test_features_get_better_than_those_of_the_untrained_network() -> None:
    run = train(config(data__n_samples=None, train__epochs=6, evaluation__baseline=True))
    assert run.result["probe"] > run.result["untrained"]["probe"]
    assert run.result["labels"]["nmi"] > 0.4
    assert run.labeler.labels.shape == (2, 1297)
    np.testing.assert_array_equal(np.sort(np.bincount(run.labeler.labels[0])), [129] * 3 + [130] * 7)


def test_features_of_thinned_images_are_judged_by_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on other data, in the channels of the first."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 3, 9, 9)).astype(np.uint8)
    labels = np.arange(60) % 2
    colours[labels == 1, :, :4] //= 4
    other = Images("", *map(torch.from_numpy, (colours[:40], labels[:40], colours[40:], labels[40:])))
    monkeypatch.setattr(setup, "load_images", lambda name, **given: other)
    wanted = config(data__imbalance="heavy", train__epochs=1, evaluation__other="cifar10", evaluation__baseline=True)
    run = train(wanted)
    whole = load_images("digits", n_samples=300)
    assert run.images.test is not None
    known, test = (features_of(run.model, part, torch.device("cpu")) for part in (whole.train, run.images.test))
    assert run.result["knn"] == metrics.knn_accuracy(known, whole.train_labels, test, run.images.test_labels, k=50)
    assert {"other_knn", "other_probe"} <= run.result.keys() & run.result["untrained"].keys()
    assert run.result["other_probe"] > 0.8
    other = Images("", other.train, other.train_labels)
    with pytest.raises(ValueError, match="'cifar10' has no true labels and test images"):
        train(wanted)


class Watched(Run):
    """Notes what each batch was trained on: its samples, and all labels at that time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[tuple[int, np.ndarray, np.ndarray]] = []

    def _step(self, index: torch.Tensor, *given: Any) -> torch.Tensor:
        self.steps.append((self.epoch, index.numpy(), self.labeler.labels[0].numpy().copy()))
        return super()._step(index, *given)


def watched(wanted: Config) -> Watched:
    run = Watched(wanted, None)
    while run.epoch < wanted.train.epochs:
        run.train_epoch()
    return run


@pytest.mark.parametrize("changes", [
    {"labels__method": "kmeans"},  # relabelled within epochs, too
    {"labels__method": "argmax"},
    {"labels__method": "truth", "train__uniform": True, "data__imbalance": "heavy"},
    {"labels__range": (0.1, 5.0), "train__uniform": True},
], ids=["k-means", "argmax", "truth", "Sinkhorn"])  # fmt: skip
def test_batches_are_balanced_by_the_labels_they_are_trained_on(changes: dict[str, Any]) -> None:
    run = watched(config(**{"model__heads": [12]} | changes))
    parts: dict[tuple[int, bytes], list[np.ndarray]] = {}
    for epoch, index, labels in run.steps:
        parts.setdefault((epoch, labels.tobytes()), []).append(index)
    biggest = 0.0
    for (_, stored), batches in parts.items():
        labels = np.frombuffer(stored, np.int64)
        sizes = np.bincount(labels)
        counts = np.bincount(labels[np.concatenate(batches)], minlength=len(sizes))[sizes > 0]
        fair = counts.sum() / len(counts)
        whole = counts.sum() == len(labels)  # else a draw without repetition from an epoch that is balanced
        assert np.abs(counts - fair).max() <= 1 + (not whole) * 4 * np.sqrt(fair), (sizes, counts)
        biggest = max(biggest, sizes.max() / sizes[sizes > 0].min())
    assert biggest > 1.5  # classes of unequal sizes were balanced


def test_fixed_labels_are_balanced_where_that_is_asked_for(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [210, 60, 30])
    save_labels(tmp_path / "labels.h5", labels[None], [3])
    fixed = {"labels__method": "fixed", "labels__file": str(tmp_path / "labels.h5"), "train__epochs": 1}
    drawn = np.concatenate([index for _, index, _ in watched(config(**fixed, train__uniform=True)).steps])
    np.testing.assert_array_equal(np.bincount(labels[drawn]), 100)
    drawn = np.concatenate([index for _, index, _ in watched(config(**fixed)).steps])
    np.testing.assert_array_equal(np.sort(drawn), np.arange(300))


@pytest.mark.parametrize("method", ["kmeans", "argmax", "sinkhorn"])
def test_of_several_heads_each_is_balanced_by_weights(method: str) -> None:
    uniform = True if method == "sinkhorn" else None
    run = watched(config(labels__method=method, train__epochs=1, train__uniform=uniform))
    assert run._class_weight == "balanced"
    np.testing.assert_array_equal(np.sort(np.concatenate([index for _, index, _ in run.steps])), np.arange(300))


def test_rotation_beside_labels_is_judged_on_all_turns_and_labels_on_upright_images_alone() -> None:
    wanted = config(train__rotation=0.5, augment__rotate=0.0, augment__shift=0.0)
    run = Run(wanted, None)
    assert run.turn_head is not None
    images = plain(run._pixels[:40])
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    run.model.train()
    with torch.no_grad():
        features = run.model.features(turned)
        loss = (
            sum(
                F.cross_entropy(head(features[:40]), run.labeler.labels[t, :40])
                for t, head in enumerate(run.model.heads)
            )
            / 2
        )
        loss = loss + 0.5 * F.cross_entropy(run.turn_head(features), torch.arange(160) // 40)
    found = run._step(torch.arange(40), torch.Generator().manual_seed(0), 0.0)
    assert float(found) == pytest.approx(float(loss), rel=1e-5)


def test_what_cannot_be_turned_is_refused_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((9, 8, 12), np.uint8))
    np.save(tmp_path / "vectors.npy", np.zeros((9, 12), np.float32))
    for name, told in (("wide", "square"), ("vectors", "feature vectors")):
        given = {"data": {"name": str(tmp_path / f"{name}.npy")}, "train": {"rotation": 1.0}}
        with pytest.raises(ValueError, match=told):
            train(config_of(given), tmp_path / name)


@pytest.mark.parametrize("method", ["argmax", "sinkhorn"])
def test_labels_stay_in_the_last_epochs(method: str) -> None:
    """They are of the weights and images as they are when these epochs begin."""
    run = Run(config(labels__method=method, labels__fixed_epochs=2, model__heads=[4]), None)
    seen: list[list[int]] = []
    update = run.labeler.update

    def watched(model: Any, loader: Any, **given: Any) -> Any:
        seen.append([run.epoch, loader is not None])
        return update(model, loader, **given)

    run.labeler.update = watched  # type: ignore[method-assign]
    labels = []
    while run.epoch < 4:
        run.train_epoch()
        labels.append(run.labeler.labels.clone())
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[1], labels[2])
    assert torch.equal(labels[2], labels[3])
    assert seen[-1] == [2, True]
    if method == "argmax":
        assert seen == [[1, False], [2, True]]
    with pytest.raises(ValueError, match="fixed_epochs is 4, of 4 epochs in all"):
        Run(config(labels__fixed_epochs=4), None)


@pytest.mark.parametrize("fixed", [0, 1])
def test_labels_of_views_and_in_the_end_of_images_as_they_are(fixed: int) -> None:
    """Views are new ones each time; quality looks at views of the images as they are, however they are labelled."""
    run = Run(config(labels__augmented=True, labels__n_relabels=3, train__epochs=3, labels__fixed_epochs=fixed), None)
    as_they_are, seen, update = plain(run.images.train), [], run.labeler.update

    def watched(model: Any, loader: Any, **given: Any) -> Any:
        index, inputs = (list(parts) for parts in zip(*loader, strict=True))
        views, images = (torch.cat([one[place] for one in inputs]) for place in range(2))
        torch.testing.assert_close(torch.cat(index), torch.arange(300))
        torch.testing.assert_close(images, as_they_are)
        seen.append(views)
        return update(model, loader, **given)

    run.labeler.update = watched  # type: ignore[method-assign]
    while run.epoch < 3:
        run.train_epoch()
    *before, last = seen
    torch.testing.assert_close(last, as_they_are)
    assert len(before) == 2
    for number, views in enumerate(before):
        assert not any(torch.equal(views, other) for other in [*before[:number], as_they_are])
    view = loaders.Views.common_view([before[0], as_they_are], torch.Generator().manual_seed(1))
    torch.testing.assert_close(view[0], common_view(as_they_are, torch.Generator().manual_seed(1)))


def test_labels_of_views_are_of_sinkhorn_and_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="augmented is of method = 'sinkhorn', this is 'kmeans'"):
        config(labels__augmented=True, labels__method="kmeans")
    np.save(tmp_path / "vectors.npy", np.zeros((9, 12), np.float32))
    given = {"data": {"name": str(tmp_path / "vectors.npy")}, "labels": {"augmented": True}}
    with pytest.raises(FileFormatError, match="augmented is for images; these data are feature vectors"):
        train(config_of(given), None)


def test_time_to_go_is_told_once_by_an_epoch_that_labels_as_the_others_do(capsys: pytest.CaptureFixture[str]) -> None:
    table = _Table(config(train__epochs=50, labels__n_relabels=50))
    for epoch, relabellings, seconds in ((1, 7, 40.0), (2, 3, 20.0), (3, 1, 10.0), (4, 1, 10.0)):
        line = {"epoch": epoch, "loss": 1.0, "lr": 0.1, "relabellings": relabellings, "seconds": seconds}
        table(line)
    lines = capsys.readouterr().out.splitlines()
    assert [number for number, text in enumerate(lines) if "to go" in text] == [4]
    assert lines[4] == "About 8 min to go: 50 epochs."
    assert max(map(len, lines)) <= 80


def test_a_rate_that_falls_linearly() -> None:
    run = Run(config(train__decay="linear"), None)
    assert [run.train_epoch()["lr"] for _ in range(4)] == pytest.approx([0.1 * (1 - (e + 0.8) / 4) for e in range(4)])


def test_labels_that_do_not_change() -> None:
    for method in ("random", "truth"):
        run = Run(config(labels__method=method), None)
        before = run.labeler.labels.clone()
        run.train_epoch()
        assert torch.equal(before, run.labeler.labels)
        assert run.labeler.history == []
    assert run.images.train_labels is not None
    assert torch.equal(before[0], run.images.train_labels)


def test_feature_vectors_need_no_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(5, 12))
    np.save(tmp_path / "x.npy", (centres[rng.integers(5, size=200)] + rng.normal(size=(200, 12))).astype(np.float32))
    given = {
        "data": {"name": str(tmp_path / "x.npy")},
        "model": {"backbone": "mlp", "options": {"width": 16}, "heads": [5]},
        "train": {"epochs": 2, "threads": 1},
    }
    run = train(config_of(given))
    np.testing.assert_array_equal(np.bincount(run.labeler.labels[0]), [40] * 5)
    assert run.result["sizes"] == [[40] * 5]  # what can be told without truth
    assert run.result["churn"] == run.labeler.history[-1]["churn"]
    assert run.result["quality"] == run.labeler.best_quality
    with pytest.raises(FileFormatError, match="feature vectors"):
        train(config_of(given | {"augment": {"flip": True}}))


# ---- configs ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, r"section \[trian\], which is not known; did you mean 'train'"),
        ({"train": {"epoch": 3}}, "key 'epoch', which is not known; did you mean 'epochs'"),
        ({"train": {"epochs": "many"}}, "epochs is 'many'; give an int"),
        ({"train": {"epochs": True}}, "epochs is True; give an int"),
        ({"labels": {"method": "sinkhorm"}}, "choose one of 'sinkhorn'"),
        ({"model": {"heads": [10, "ten"]}}, "heads is 'ten'; give an int"),
        ({"augment": {"crop": [0.3]}}, "list of two numbers"),
        ({"augment": {"crop": [0.9, 0.3]}}, r"crop is \(0.9, 0.3\)"),
        ({"train": 3}, r"must be a section, \[train\]"),
        ({"train": {"batch_size": 1}}, r"\[train\]: batch_size is 1; a batch needs 2"),
        ({"train": {"threads": 0}}, "threads is 0; give at least 1"),
        ({"train": {"seed": -1}}, "seed is -1; give a whole number from 0 up"),
        ({"train": {"lr": float("nan")}}, "lr is nan; give a number from 0 up"),
        ({"data": {"name": "digits", "seed": -1}}, r"\[data\]: seed is -1"),
        ({"model": {"hidden": 0}}, "hidden is 0"),
        ({"labels": {"epsilon": 0}}, "epsilon is 0.0; give a positive number"),
        ({"labels": {"kl": -1}}, "kl is -1.0"),
        ({"labels": {"range": [2, 3]}}, r"range is \[2.0, 3.0\]"),
        ({"labels": {"abstain": 1}}, "abstain is 1.0"),
        ({"labels": {"method": "fixed"}}, "'fixed', but no file is given"),
        ({"evaluation": {"knn": -1}}, "knn is -1"),
    ],
)
def test_mistakes_in_a_config_are_told_by_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        config_of(SMALL | change)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["model.backbone=mlp", "model.options={}"], "; for images there is small_convnet, small_resnet, alexnet"),
        (["data.name=vectors.npy"], "'small_convnet' cannot take data of shape ('N', 5): "),
        (["data.name=vectors.npy"], "; for feature vectors there is mlp"),
        (["model.backbone=small_resnet"], "small_resnet has no option 'widths'; its options are width"),
        (["model.options={widths=3}"], "small_convnet cannot be made with the options {'widths': 3}"),
        (["model.options={channels=3}"], "options has a key 'channels', which is no option"),
        (["model.options={allow_code=true}"], "options has a key 'allow_code', which is no option"),
        (["model.backbone=alexnet", "model.options={widths=[4,4,4,4,4]}"], "AlexNet needs 63 x 63"),
        (["train.device=abacus"], "device is 'abacus', which cannot be used here"),
        (["labels.range=[0,0]"], "widen the range"),
        (["labels.method=fixed", "labels.file=absent.h5"], "absent.h5 does not exist"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line_and_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", np.random.default_rng(0).normal(size=(120, 5)))
    lines = ['[data]\nname = "digits"\nn_samples = 100\n[model]\nheads = [4]\nbackbone = "small_convnet"']
    Path("recipe.toml").write_text("\n".join([*lines, "options = { widths = [4], strides = [2] }"]))
    assert main(["train", "recipe.toml", "-o", "runs/a", *(w for change in changes for w in ("--set", change))]) == 2
    ran = capsys.readouterr()
    assert ran.out == ""
    assert ran.err.startswith("otlabel: error: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert sorted(os.listdir()) == ["recipe.toml", "vectors.npy"]


def test_config_needs_data_and_an_existing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no section \[data\]"):
        config_of({})
    with pytest.raises(FileNotFoundError, match=r"the recipes are .*digits"):
        read_config("digitz")
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(FileFormatError, match="is no TOML"):
        read_config(str(tmp_path / "bad.toml"))


def test_every_recipe_can_be_read() -> None:
    recipes = sorted((ROOT / "otlabel" / "training" / "recipes").glob("*.toml"))
    assert len(recipes) >= 3
    for recipe in recipes:
        assert read_config(recipe.stem).data.name


# ---- commands ----


def test_train_and_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        '[data]\nname = "digits"\nn_samples = 300\n[model]\nbackbone = "small_convnet"\nheads = [10]\n'
        "[train]\nepochs = 2\nthreads = 1\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", str(path), "-o", str(first), "--set", "train.lr=0.1"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.replace(str(first), "").splitlines())) <= 80
    assert printed.count("\n") >= 6
    labels = load_labels(first / "labels.h5")
    np.testing.assert_array_equal(np.bincount(labels.labels[0]), [30] * 10)

    change = ["--set", "model.backbone=small_resnet", "--set", "model.options={width=4}"]
    assert main(["transfer", str(path), str(first / "labels.h5"), "-o", str(second), "--json", *change]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["knn"] <= 1
    np.testing.assert_array_equal(load_labels(second / "labels.h5").labels, labels.labels)

    assert main(["train", str(path), "-o", str(first), "--set", "train.lr=0.2"]) == 2
    assert "lr = 0.1, now it is 0.2" in capsys.readouterr().err
    assert main(["train", str(path), "-o", str(first), "--set", "lr=0.2"]) == 2
    assert "SECTION.KEY=VALUE" in capsys.readouterr().err
    assert main(["transfer", str(path), str(tmp_path / "none.h5"), "-o", str(second)]) == 2
    assert "none.h5 does not exist" in capsys.readouterr().err


CODE = """
from torch import nn
open("mark", "w").close()
def tiny(channels, n):
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, n))
    model.feature_dim = n
    return model
"""


def test_code_in_a_recipe_runs_only_where_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny_networks.py").write_text(CODE)
    Path("r.toml").write_text(
        '[data]\nname = "digits"\nn_samples = 64\n[model]\nbackbone = "tiny_networks:tiny"\noptions = { n = 5 }\n'
        "heads = [4]\n[train]\nepochs = 1\nthreads = 1\n"
    )
    for command in (["train", "r.toml"], ["train", "digits", "--set", "model.backbone=tiny_networks:tiny"]):
        assert main([*command, "-o", "run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "'tiny_networks:tiny' would import" in line
        assert "--allow-code" in line
    assert not Path("mark").exists()
    assert not Path("run").exists()
    with pytest.raises(ValueError, match="allow_code=True"):
        train(read_config("r.toml"))
    assert main(["train", "r.toml", "-o", "run", "--allow-code"]) == 0
    assert Path("mark").exists()
    capsys.readouterr()
    assert main(["train", "r.toml", "-o", "run"]) == 2  # to go on takes the same trust
    assert main(["transfer", "r.toml", "run/labels.h5", "-o", "other"]) == 2
    assert main(["transfer", "r.toml", "run/labels.h5", "-o", "other", "--allow-code"]) == 0
    assert main(["train", "digits", "-o", "none", "--set", "model.backbone=no_such:f", "--allow-code"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "otlabel: error: No module named 'no_such'"


MISTAKES = {
    "options of another": (["model.backbone=mlp"], "mlp has no option 'widths'; its options are width, depth"),
    "images for vectors": (["model.backbone=mlp", "model.options={}"], "backbone = 'mlp' cannot take data of shape"),
    "too small": (["model.backbone=alexnet", "model.options={}"], "AlexNet needs 63 x 63"),
    "a wrong type": (["model.options={widths=[1.5], strides=[1]}"], "cannot be made with the options"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_failed_start_is_one_line_and_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    changes, told = MISTAKES[mistake]
    words = ["train", "digits", "-o", str(tmp_path / "run"), "--set", "train.epochs=1", "--set", "data.n_samples=64"]
    assert main([*words, *(word for change in changes for word in ("--set", change))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_start_that_trained_nothing_does_not_occupy_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(run: Run, index: Any, *_: Any) -> None:
        raise RuntimeError("the first step")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", fail)
        with pytest.raises(RuntimeError, match="first step"):
            train(config(train__epochs=1), tmp_path)
    run = train(config(train__epochs=1, train__lr=0.2), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["train"]["lr"] == 0.2
    assert run.epoch == 1


def test_vectors_for_a_network_of_images_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32))
    given = {"data": {"name": str(tmp_path / "x.npy")}, "model": {"heads": [4]}}
    with pytest.raises(ValueError, match=r"'small_resnet' cannot take data of shape \('N', 12\)") as raised:
        train(config_of(given), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_labels_of_other_data_are_refused(tmp_path: Path) -> None:
    train(config(train__epochs=1), tmp_path)
    other = config(data__n_samples=299, labels__method="fixed", labels__file=str(tmp_path / "labels.h5"))
    with pytest.raises(FingerprintError, match="labels of other data"):
        train(other)


def test_the_page_about_configs_names_every_key_and_default() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, section in config_of({"data": {"name": "digits"}}).to_dict().items():
        part = page.partition(f"| `[{name}]` |")[2].partition("\n\n")[0]
        assert part, name
        for key in section:
            assert f"`{key}`" in part, (name, key)
