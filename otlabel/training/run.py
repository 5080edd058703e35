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
import itertools
import json
import logging
import math
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otlabel.errors import FileFormatError, FingerprintError, SelfLabelWarning
from otlabel.interrupts import interruptible
from otlabel.selflabel import ClassUniformSampler, MultiHead
from otlabel.selflabel.alarms import mean_of
from otlabel.sources.paths import load_plain
from otlabel.storage.atomic import NO_ROOM, working_in
from otlabel.storage.outputs import check_apart
from otlabel.text import one_line
from otlabel.training.augment import four_turns
from otlabel.training.config import Config
from otlabel.training.data import Images
from otlabel.training.evaluate import evaluate
from otlabel.training.folder import FILES, RunFolder, check_optimizer, checked_weights
from otlabel.training.loaders import AsTheyAre, Views
from otlabel.training.networks import network
from otlabel.training.setup import (
    device_of,
    head_sizes,
    labeler_of,
    learning_rate,
    loaded,
    other_images,
    seed_of,
    try_backbone,
)

logger = logging.getLogger("otlabel")

LONGEST_TOLD = 300  # characters of what torch says of weights, which may name every layer
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
        self.device = device_of(config.train.device)
        self.images = loaded(config) if images is None else images
        self._other = other_images(config, self.images)
        torch.manual_seed(seed_of(config.train.seed, 0))
        channels = self.images.train.shape[1]
        backbone: Any = network(config.model.backbone, channels, allow_code=allow_code, **config.model.options)
        heads = head_sizes(config, self.images)
        self.model = MultiHead(backbone, backbone.feature_dim, heads, hidden=config.model.hidden)
        self.turn_head = nn.Linear(self.model.feature_dim, 4) if config.train.rotation else None
        self._trained = nn.ModuleList([self.model] + ([self.turn_head] if self.turn_head else [])).to(self.device)
        for data in filter(None, (self.images, self._other)):
            try_backbone(config.model.backbone, self.model, data.train[:2].to(self.device))
        self.optimizer = torch.optim.SGD(
            self._trained.parameters(),
            config.train.lr,
            momentum=config.train.momentum,
            nesterov=config.train.nesterov,
            weight_decay=config.train.weight_decay,
        )
        self.labeler = labeler_of(config, self.images, folder)
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
        asked = {"config": config.to_dict(), "data": self.images.fingerprint}
        self._files = None if folder is None else RunFolder(folder, asked)

    # ---- one epoch ----

    def train_epoch(self) -> dict[str, Any]:
        """Train on all samples once, label anew where it is time, write a checkpoint; returns the epoch's figures."""
        config, started = self.config.train, time.perf_counter()
        if self.epoch == 0 and self.config.evaluation.baseline:
            self.untrained = self._judged()
        torch.manual_seed(seed_of(config.seed, self.epoch, 1))  # for layers that draw, such as dropout
        generator = torch.Generator(self.device).manual_seed(seed_of(config.seed, self.epoch, 2))
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
        if self._files is not None:
            self._files.save(line, self._state())
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
        generator = torch.Generator().manual_seed(seed_of(config.seed, self.epoch, 3))
        return torch.randperm(len(self._pixels), generator=generator).tolist()

    def _step(self, index: Tensor, generator: torch.Generator, progress: float) -> Tensor:
        config = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, progress)
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
            return AsTheyAre(self._pixels)
        generator = torch.Generator(self.device)
        generator.manual_seed(seed_of(self.config.train.seed, self.labeler.n_updates, 4))
        return Views(self._pixels, None if as_they_are else self.config.augment, generator)

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
        names = "quality", "nmi", "churn", "entropy", "gap"
        return {name: value for name in names if (value := mean_of(last, name)) is not None}

    # ---- files ----

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one; refuse a folder of other runs or other makers."""
        if self._files is None:
            return
        checkpoint = self._files.checkpoint()
        if checkpoint is not None:
            self._load(checkpoint)
        self._files.cut_log(self.epoch)

    def _load(self, path: Path) -> None:
        try:
            state = load_plain(path, self.device, ("weights", "optimizer", "labeler", "epoch", "untrained"))
            self._trained.load_state_dict(state["weights"])
            check_optimizer(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(state["optimizer"])
            self.labeler.load_state_dict(state["labeler"])
            self.epoch, self.untrained = operator.index(state["epoch"]), dict(state["untrained"])
            self.best = checked_weights(state.get("best"), self.model)
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

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "weights": self._trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "labeler": self.labeler.state_dict(),
            "epoch": self.epoch,
            "untrained": self.untrained,
            "best": self.best,
        }

    def close(self) -> None:
        """Let go of what is open."""
        if self._files is not None:
            self._files.close()

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
        if self._files is not None:
            self._files.claim()
            self.labeler.save_labels(self._files.path / "labels.h5", best=True)
            self._files.write_result(found)

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
