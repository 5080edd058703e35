"""`otlabel train`: a whole self-labelling run that survives being killed at any moment.

Everything random follows from the seed and the epoch. So a run that goes on from its last checkpoint, written after
each epoch, repeats what it lost and ends with the same bits, on a CPU with the same number of threads. A checkpoint
holds weights, optimiser, the labeler's labels, potentials and history, and the number of the epoch; torch's own random
state is set anew from (seed, epoch) when an epoch begins.

The run's folder: config.json (what was asked for), metrics.jsonl (a line an epoch), checkpoint.pt (tensors and plain
values only), labels.h5 and result.json (at the end), features.h5 (while it runs, if asked for).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import logging
import math
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otlabel.errors import FileFormatError, FingerprintError, SelfLabelWarning
from otlabel.files import check_apart, replacing, working_in
from otlabel.interrupts import interruptible
from otlabel.marginals import KL, Range
from otlabel.selflabel import (
    Argmax,
    ClassUniformSampler,
    EveryEpochs,
    FeatureStore,
    KMeans,
    LinearSchedule,
    LogarithmicSchedule,
    MultiHead,
    OptimalTransport,
    QuadraticSchedule,
    SelfLabeler,
)
from otlabel.selflabel.model import forward_only
from otlabel.selflabel.quality import common_view
from otlabel.sources.paths import load_plain
from otlabel.text import one_line
from otlabel.training.augment import Augmentation, four_turns, plain, with_channels
from otlabel.training.config import Config
from otlabel.training.data import Images, images_of, load_images
from otlabel.training.evaluate import evaluate
from otlabel.training.networks import NAMES, network

logger = logging.getLogger("otlabel")

FULL_BATCH = 512  # images at once where nothing is trained
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "quadratic": QuadraticSchedule,
    "logarithmic": LogarithmicSchedule,
    "linear": LinearSchedule,
}
FILES = ("metrics.jsonl", "checkpoint.pt", "labels.h5", "result.json", "config.json", "features.h5")
BEGUN = FILES[:4]  # there are some of them once an epoch has been trained
LONGEST_TOLD = 300  # characters of what torch says of weights, which may name every layer
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
Report = Callable[[dict[str, Any]], None]


@interruptible
def train(
    config: Config,
    folder: str | os.PathLike[str] | None = None,
    *,
    report: Report | None = None,
    allow_code: bool = False,
    images: Images | None = None,
) -> Run:
    """Train by self-labelling, going on where an earlier run in the folder was interrupted.

    Args:
        config: the whole run.
        folder: where its files go, made if needed. None: nothing is written, and nothing can be resumed.
        report: called after each epoch with its line of metrics.jsonl.
        allow_code: whether a backbone "module:function" may be imported and called: whoever wrote the config then runs
            code here.
        images: what `loaded(config)` gives, where that is there already. None: they are loaded.

    Returns:
        The finished run: `model`, `labeler`, `images`, `result`.

    Raises:
        ValueError: settings that make no sense; a backbone that there is not, that cannot take these data, or whose
            code is not allowed. Nothing has been written then.
        FingerprintError: the folder holds a run of another config or of other data.
        FileExistsError: the folder holds files of somebody else's that the run would replace.
        BlockingIOError: another process trains in the folder.
        OSError: no room on the disk for a checkpoint.
    """
    place = None if folder is None else Path(folder)
    with contextlib.ExitStack() as stack:
        if place is not None:
            own_data = config.data.name if config.data.name.endswith(".npy") else None  # else a name, as of a recipe
            read = {"[data] name": own_data, "[labels] file": config.labels.file}
            check_apart({f"the run's {name}": place / name for name in FILES}, read)
            stack.enter_context(working_in(place))
        run = stack.enter_context(contextlib.closing(Run(config, place, allow_code=allow_code, images=images)))
        run.resume()
        while run.epoch < config.train.epochs:
            line = run.train_epoch()
            if report is not None:
                report(line)
        run.finish()
    return run


class Run:
    """One training run and all of its state."""

    def __init__(
        self, config: Config, folder: Path | None, *, allow_code: bool = False, images: Images | None = None
    ) -> None:
        self.config, self.folder = config, folder
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.device = _device(config.train.device)
        self.images = loaded(config) if images is None else images
        self._other = _other(config, self.images)
        torch.manual_seed(_seed(config.train.seed, 0))
        channels = self.images.train.shape[1]
        backbone: Any = network(config.model.backbone, channels, allow_code=allow_code, **config.model.options)
        heads = _heads(config, self.images)
        self.model = MultiHead(backbone, backbone.feature_dim, heads, hidden=config.model.hidden)
        self.turn_head = nn.Linear(self.model.feature_dim, 4) if config.train.rotation else None
        self._trained = nn.ModuleList([self.model] + ([self.turn_head] if self.turn_head else [])).to(self.device)
        for data in filter(None, (self.images, self._other)):
            _try(config.model.backbone, self.model, data.train[:2].to(self.device))
        self.optimizer = torch.optim.SGD(
            self._trained.parameters(),
            config.train.lr,
            momentum=config.train.momentum,
            nesterov=config.train.nesterov,
            weight_decay=config.train.weight_decay,
        )
        self.labeler = _labeler(config, self.images, folder)
        uniform = config.train.uniform
        uniform = config.labels.method in ("kmeans", "argmax") if uniform is None else uniform
        # Samples can be drawn so that one head's classes come equally often; those of several count equally much.
        self._draws_evenly = uniform and len(heads) == 1
        self._class_weight = "balanced" if uniform and len(heads) > 1 else None
        # Epochs after which labels stay: the last relabelling is then.
        fixed_epochs = config.labels.fixed_epochs
        self._settled_at = config.train.epochs - fixed_epochs if fixed_epochs else math.inf
        self.untrained: dict[str, float] = {}
        self.best: dict[str, Tensor] | None = None  # weights at the relabelling of the highest quality
        self.epoch = 0
        self.result: dict[str, Any] = {}
        self._pixels = self.images.train.to(self.device)
        self._events = None if folder is None else _Events(folder / "tensorboard")
        self._is_claimed = False  # whether the folder's config.json is that of this run

    # ---- one epoch ----

    def train_epoch(self) -> dict[str, Any]:
        """Train on all samples once, label anew where it is time, write a checkpoint; returns the epoch's figures."""
        config, started = self.config.train, time.perf_counter()
        if self.epoch == 0 and self.config.evaluation.baseline:
            self.untrained = self._judged()
        torch.manual_seed(_seed(config.seed, self.epoch, 1))  # for layers that draw, such as dropout
        generator = torch.Generator(self.device).manual_seed(_seed(config.seed, self.epoch, 2))
        before = self.labeler.n_updates
        self.model.train()
        total = torch.zeros((), device=self.device)
        sizes, drawn = self._batch_sizes(), iter(self._drawn())
        for step, size in enumerate(sizes):
            progress = self.epoch + step / len(sizes)
            self._relabel(progress)  # and then draw: by the labels that the batch is trained on
            total += self._step(torch.tensor(list(itertools.islice(drawn, size))), generator, progress)
        self.epoch += 1
        is_over = self.epoch == config.epochs < self._settled_at
        if is_over and self.config.labels.augmented and self.labeler.schedule is not None:
            self._update(self._samples(as_they_are=True))
        line = {
            "epoch": self.epoch,
            "loss": float(total) / len(sizes),
            "lr": self.optimizer.param_groups[0]["lr"],
            "relabellings": self.labeler.n_updates - before,
            **self._last_labels(),
            "seconds": time.perf_counter() - started,
        }
        self._save(line)
        return line

    def _batch_sizes(self) -> list[int]:
        """Of all batches of an epoch; none is of a single sample, which has no variance."""
        n_whole, rest = divmod(len(self._pixels), self.config.train.batch_size)
        sizes = [self.config.train.batch_size] * n_whole + ([rest] if rest else [])
        return [*sizes[:-2], sum(sizes[-2:])] if rest == 1 and n_whole else sizes

    def _drawn(self) -> Iterable[int]:
        """Samples in the order of an epoch, by its number, the seed and, where they are drawn by it, the labels."""
        config = self.config.train
        if self._draws_evenly:
            sampler = ClassUniformSampler(self.labeler, seed=config.seed)
            sampler.set_epoch(self.epoch)
            return sampler
        generator = torch.Generator().manual_seed(_seed(config.seed, self.epoch, 3))
        return torch.randperm(len(self._pixels), generator=generator).tolist()

    def _step(self, index: Tensor, generator: torch.Generator, progress: float) -> Tensor:
        config = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(self.config, progress)
        images = self._pixels[index.to(self.device)]
        views = self.config.augment(images, generator)
        if self.turn_head is not None:
            views, turns = four_turns(views)
        features = self.model.features(views)
        upright = features[: len(index)]  # labels are of images as they are; the turned ones have but their turn
        logits = [head(upright) for head in self.model.heads]
        loss = self.labeler.loss(logits, index, weight=self._class_weight)
        if self.turn_head is not None:
            loss = loss + config.rotation * F.cross_entropy(self.turn_head(features), turns)
        if self.config.labels.method == "argmax":
            self.labeler.record(index, logits)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _relabel(self, progress: float) -> None:
        due, settling = self.labeler.due(progress), self.labeler.schedule is not None and progress == self._settled_at
        if progress > self._settled_at or not (due or settling):
            return
        recorded = self.config.labels.method == "argmax" and not settling
        if recorded and progress < 1:
            return  # nothing has been recorded yet: the first epoch trains on random labels
        self._update(None if recorded else self._samples(as_they_are=settling))

    def _samples(self, *, as_they_are: bool) -> Iterable[tuple[Tensor, Any]]:
        """What is labelled: all samples, or a view of each, which follows from the seed and the relabelling."""
        if not self.config.labels.augmented:
            return _Plain(self._pixels)
        generator = torch.Generator(self.device)
        generator.manual_seed(_seed(self.config.train.seed, self.labeler.n_updates, 4))
        return _Views(self._pixels, None if as_they_are else self.config.augment, generator)

    def _update(self, loader: Iterable[tuple[Tensor, Any]] | None) -> None:
        try:
            self.labeler.update(self.model, loader, optimizer=self.optimizer)
            if self.labeler.best_update == self.labeler.n_updates:
                self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Days of training are worth more than one relabelling.
            told = f"no relabelling, training goes on with the old labels: {error}"
            warnings.warn(told, SelfLabelWarning, stacklevel=2)

    def _last_labels(self) -> dict[str, Any]:
        """Means over heads of what the last relabelling has found."""
        last = self.labeler.history[-len(self.labeler.n_classes) :]
        names = [name for name in ("quality", "nmi", "churn", "entropy", "gap") if last and name in last[0]]
        return {name: float(np.mean([record[name] for record in last])) for name in names}

    # ---- files ----

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one; refuse a folder of other runs or other makers."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / "config.json"
        theirs = _read_config(known) if known.exists() else None
        begun = [name for name in BEGUN if (self.folder / name).exists()]
        if begun and theirs is None:
            raise FileExistsError(
                f"{self.folder} holds {', '.join(begun)}, which a run would replace, but no config.json of a run; give "
                "another folder"
            )
        if begun and theirs is not None:  # else a start that failed, which keeps nobody from starting otherwise
            _check_same(theirs, json.loads(self._asked()), self.folder)
        path = self.folder / "checkpoint.pt"
        if path.exists():
            self._load(path)
        log = self.folder / "metrics.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines()
            _write_text(log, "".join(f"{line}\n" for line in lines[: self.epoch]))

    def _load(self, path: Path) -> None:
        try:
            state = load_plain(path, self.device, ("weights", "optimizer", "labeler", "epoch", "untrained"))
            self._trained.load_state_dict(state["weights"])
            _check_optimizer(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(state["optimizer"])
            self.labeler.load_state_dict(state["labeler"])
            self.epoch, self.untrained = operator.index(state["epoch"]), dict(state["untrained"])
            self.best = _checked_weights(state.get("best"), self.model)
            if not 0 <= self.epoch <= self.config.train.epochs:
                raise ValueError(f"it is of epoch {self.epoch}, of {self.config.train.epochs}")
            json.dumps(self.untrained)
        except (OSError, MemoryError, FingerprintError):
            raise
        except Exception as error:  # damage may show up as nearly any of them
            told = one_line(error)[:LONGEST_TOLD]
            raise FileFormatError(
                f"{path} is damaged, or is no checkpoint of this run: {told}; remove it to start anew"
            ) from error
        logger.info("resumed after epoch %d", self.epoch)

    def _asked(self) -> str:
        return json.dumps({"config": self.config.to_dict(), "data": self.images.fingerprint}, indent=2)

    def _claim(self, folder: Path) -> None:
        """Say whose the folder is, before anything else is written to it."""
        if not self._is_claimed:
            _write_text(folder / "config.json", self._asked())
        self._is_claimed = True

    def _save(self, line: dict[str, Any]) -> None:
        """The checkpoint of this epoch, and its line; a line too many is cut off on resume."""
        if self.folder is None:
            return
        self._claim(self.folder)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        state = {
            "weights": self._trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "labeler": self.labeler.state_dict(),
            "epoch": self.epoch,
            "untrained": self.untrained,
            "best": self.best,
        }
        image = io.BytesIO()
        torch.save(state, image)
        with replacing(self.folder / "checkpoint.pt") as file:
            file.write(image.getbuffer())
        if self._events is not None:
            self._events.add(line)

    def close(self) -> None:
        """Let go of what is open."""
        if self._events is not None:
            self._events.close()

    def _judged(self) -> dict[str, float]:
        """What features are worth on these data, and on the others."""
        wanted = self.config.evaluation
        found = evaluate(self.model, self.images, wanted, self.device)
        if self._other is not None:
            others = evaluate(self.model, self._other, wanted, self.device)
            found |= {f"other_{name}": value for name, value in others.items()}
        return found

    def finish(self) -> None:
        """Judge labels and features, and write both down; labels are those of the highest quality."""
        config = self.config
        found: dict[str, Any] = self._judged()
        if self.untrained:
            found["untrained"] = self.untrained
        labels = self.labeler.best_labels.cpu()
        if self.labeler.n_updates:
            found |= self._told(labels)
        truth = self.images.train_labels
        if truth is not None and config.labels.method != "truth":
            from otlabel import metrics

            heads = [metrics.compare(truth, one) for one in labels]
            found["labels"] = {name: float(np.mean([head[name] for head in heads])) for name in heads[0]}
        self.result = found
        if self.folder is not None:
            self._claim(self.folder)
            self.labeler.save_labels(self.folder / "labels.h5", best=True)
            _write_text(self.folder / "result.json", json.dumps(found, indent=2))

    def _told(self, labels: Tensor) -> dict[str, Any]:
        """What is known of labels without the truth: quality, sizes of each head's classes, change at the end."""
        found: dict[str, Any] = {}
        if self.labeler.best_quality is not None:
            found = {"quality": self.labeler.best_quality, "quality_at_the_end": self.labeler.quality}
            found["relabelling"] = self.labeler.best_update
        last = self.labeler.history[-len(labels) :]
        found["churn"] = float(np.mean([record["churn"] for record in last]))
        found["sizes"] = [
            torch.bincount(one[one >= 0], minlength=k).tolist()
            for one, k in zip(labels, self.labeler.n_classes, strict=True)
        ]
        return found


class _Plain:
    """All samples as they are, batch by batch in their order: what is labelled."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(len(self._pixels)).split(FULL_BATCH):
            images = self._pixels[index[0] : index[-1] + 1]
            yield index, images if images.ndim == 2 else plain(images)


class _Views:
    """A view of each image, and the image as it is: the one is labelled, quality looks at the other.

    Labels of views are those of what the network is trained on. They differ a little each time, so that it learns what
    is common to an image's views, rather than its labels by heart.

    Args:
        pixels: (N, C, H, W) uint8.
        augment: makes the views. None: what is labelled are the images as they are.
        generator: of the views.
    """

    def __init__(self, pixels: Tensor, augment: Augmentation | None, generator: torch.Generator) -> None:
        self._pixels, self._augment, self._generator = pixels, augment, generator

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        for index, images in _Plain(self._pixels):
            part = self._pixels[index[0] : index[-1] + 1]
            yield index, [images if self._augment is None else self._augment(part, self._generator), images]

    # How a labeler reads these.

    @staticmethod
    def features(model: Any, inputs: list[Tensor]) -> Tensor:
        """Of what is to be labelled."""
        return model.features(inputs[0])

    @staticmethod
    def heads(model: Any) -> Any:
        return model.heads

    @staticmethod
    def common_view(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Of the images as they are."""
        return [common_view(inputs[1], generator)]


# ---- what a config says ----


def loaded(config: Config) -> Images:
    """The data of a config.

    Raises:
        FileFormatError: an augmentation that is not for these data.
        ValueError, OSError: as `load_images`, `thinned` and `validation`.
    """
    images = images_of(config.data)
    wrong = (
        Augmentation(swap=config.augment.swap)
        if images.train.ndim == 2
        else dataclasses.replace(config.augment, swap=0.0)
    )
    if config.augment != wrong:
        of_vectors = images.train.ndim == 2
        raise FileFormatError(
            "[augment] has what is for images; these data are feature vectors, for which there is swap"
            if of_vectors
            else "[augment] swap is for feature vectors; these data are images"
        )
    if len(images.train) < 2:
        raise ValueError("one sample cannot be trained on")
    if config.labels.augmented and images.train.ndim == 2:
        raise FileFormatError("[labels] augmented is for images; these data are feature vectors")
    if config.train.rotation:
        if images.train.ndim == 2:
            raise FileFormatError("[train] rotation is for images; these data are feature vectors")
        four_turns(images.train[:1])  # refuses what cannot be turned before anything is written
    return images


def _other(config: Config, images: Images) -> Images | None:
    """The other data set that features are judged on, in the channels of the first."""
    wanted = config.evaluation
    if not wanted.other:
        return None
    other = load_images(wanted.other, n_samples=wanted.other_samples, seed=config.data.seed, size=config.data.size)
    if other.train_labels is None or other.test is None or other.test_labels is None:
        raise ValueError(f"[evaluation] other = {wanted.other!r} has no true labels and test images to judge by")
    n_channels = images.train.shape[1]
    if other.train.ndim != images.train.ndim:
        raise ValueError(f"[evaluation] other = {wanted.other!r} holds images, but these data are feature vectors")
    try:
        train, test = (with_channels(part, n_channels) for part in (other.train, other.test))
    except ValueError as error:
        raise ValueError(f"[evaluation] other = {wanted.other!r}: {error}") from error
    return dataclasses.replace(other, train=train, test=test)


def _try(name: str, model: MultiHead, images: Tensor) -> None:
    """Refuse a backbone that cannot take a few of these data, before anything is written."""
    of_vectors = images.ndim == 2
    batch = images if of_vectors else plain(images)
    with torch.random.fork_rng(devices=[]), forward_only(model):
        try:
            shape = model.features(batch).shape
        except Exception as error:  # whatever a module of somebody's own may raise
            told = f"backbone = {name!r} cannot take data of shape {('N', *images.shape[1:])}: {error}".partition("\n")[
                0
            ]
            if name in NAMES and (name == "mlp") != of_vectors:
                those = ", ".join(other for other in NAMES if (other == "mlp") == of_vectors)
                told += f"; for {'feature vectors' if of_vectors else 'images'} there is {those}"
            raise ValueError(told) from error
    if shape != (len(batch), model.feature_dim):
        raise ValueError(f"backbone = {name!r} gives features of shape {tuple(shape)}, not (B, {model.feature_dim})")


def _heads(config: Config, images: Images) -> list[int]:
    if config.labels.method == "truth":
        if images.train_labels is None:
            raise ValueError(f"{config.data.name} has no true labels to train on")
        return [int(images.train_labels.max()) + 1]
    if config.labels.method == "fixed":
        from otlabel.selflabel.stores.head_labels import described

        return described(config.labels.file)[1]
    return config.model.heads


def _labeler(config: Config, images: Images, folder: Path | None) -> SelfLabeler:
    labels, n_samples = config.labels, len(images.train)
    if labels.fixed_epochs >= config.train.epochs:
        raise ValueError(f"[labels] fixed_epochs is {labels.fixed_epochs}, of {config.train.epochs} epochs in all")
    relabels = labels.method in ("sinkhorn", "kmeans", "argmax") and labels.n_relabels > 0
    schedule = None
    if relabels:
        schedule = SCHEDULES[labels.schedule](config.train.epochs, labels.n_relabels)
        if labels.method == "argmax":  # its labels are those that an epoch has recorded
            schedule = EveryEpochs(1)
    labeling: Any = {"kmeans": KMeans(), "argmax": Argmax()}.get(labels.method)
    if labels.method == "sinkhorn":
        labeling = _transport(config)
    store = None
    if labels.store == "hdf5":
        if folder is None:
            raise ValueError("store = 'hdf5' needs a folder for the run")
        store = FeatureStore(folder / "features.h5")
    reading: dict[str, Any] = {}
    if labels.augmented:
        reading = {"features": _Views.features, "heads": _Views.heads, "views": _Views.common_view}
    labeler = SelfLabeler(
        n_samples,
        _heads(config, images),
        **reading,
        labeling=labeling,
        schedule=schedule,
        store=store,
        data=images.fingerprint,
        truth=None if images.train_labels is None else images.train_labels.numpy(),
        mode=labels.mode,
        seed=config.train.seed,
    )
    if labels.method == "truth":
        assert images.train_labels is not None
        labeler.labels[0] = images.train_labels
    elif labels.method == "fixed":
        labeler.load_labels(labels.file)
    return labeler


def _transport(config: Config) -> OptimalTransport:
    labels = config.labels
    rule: dict[str, Any] = {}
    if labels.range is not None and labels.kl is not None:
        raise FileFormatError("[labels] has range and kl; classes follow one rule")
    if labels.range is not None:
        low, high = labels.range
        rule = {"classes": [Range(low / k, min(high / k, 1.0)) for k in config.model.heads]}
    elif labels.kl is not None:
        rule = {"classes": KL(labels.kl)}
    return OptimalTransport(labels.epsilon, abstain=labels.abstain, rounding=labels.rounding, **rule)


def _rate(config: Config, progress: float) -> float:
    """The learning rate at a time in epochs."""
    train = config.train
    if train.decay == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * progress / train.epochs))
    if train.decay == "linear":
        return train.lr * (1 - progress / train.epochs)
    if train.decay == "steps":
        return train.lr * 0.1 ** sum(progress >= drop for drop in train.drops)
    return train.lr


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        told = str(error).partition("\n")[0]
        raise ValueError(
            f"[train] device is {name!r}, which cannot be used here: {told}; give 'auto' or 'cpu'"
        ) from error
    return device


# ---- small things about files ----


def _checked_weights(weights: Any, model: nn.Module) -> dict[str, Tensor] | None:
    """Weights of the model's shapes; None where there are none, as in files of earlier versions."""
    if weights is None:
        return None
    own = model.state_dict()
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise ValueError("the weights of the best relabelling are not of the shapes of this model's")
    return dict(weights)


def _check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
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
        raise FingerprintError(f"{folder} holds a run on other data: {theirs.get('data')}, these are {ours['data']}")
    for section, keys in ours["config"].items():
        for key, value in keys.items():
            old = theirs["config"].get(section, {}).get(key)
            if old != value:
                raise FingerprintError(
                    f"{folder} holds a run with [{section}] {key} = {old!r}, now it is {value!r}; give another folder, "
                    "or remove that one"
                )


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


class _Events:
    """TensorBoard's events of one run, in one file; none without its package: metrics.jsonl has the same figures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_open = False
        self._writer: Any = None

    def add(self, line: dict[str, Any]) -> None:
        """Write the figures of an epoch, at once: the run may be killed."""
        if not self._is_open:  # with the first line, so that a run with nothing left to do leaves no file
            self._is_open, self._writer = True, self._opened()
        if self._writer is not None:
            for name, value in line.items():
                self._writer.add_scalar(name, value, line["epoch"])
            self._writer.flush()

    def _opened(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self._folder))

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if self._writer is not None:
            self._writer.close()
