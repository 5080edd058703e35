"""`otlabel train`: a whole self-labelling run that survives being killed at any moment.

Lightning's Trainer runs the epochs. Everything random follows from the seed and the epoch. So a run that goes on from
its last checkpoint, written after each epoch, repeats what it lost and ends with the same bits, on a CPU with the same
number of threads. A checkpoint is Lightning's own, which has weights, optimiser and counts, and under its callbacks the
labeler's labels, potentials and history; torch's own random state is set anew from (seed, epoch) when an epoch begins.
Three things Lightning cannot promise, and a run does itself: it writes a checkpoint whole or not at all, looks through
one that it reads, which may be anybody's, before any of it is taken over, and keeps a folder to one run.

The run's folder: config.json (what was asked for), metrics.jsonl (a line an epoch), checkpoint.pt (tensors and plain
values only), labels.h5 and result.json (at the end), features.h5 (while it runs, if asked for).
"""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from otlabel.errors import FileFormatError, FingerprintError, SelfLabelWarning
from otlabel.interrupts import interruptible
from otlabel.progress import progress as shown_progress
from otlabel.selflabel import ClassUniformSampler
from otlabel.selflabel.alarms import mean_of
from otlabel.sources.paths import load_plain
from otlabel.storage.atomic import NO_ROOM, working_in
from otlabel.storage.outputs import check_apart
from otlabel.text import one_line
from otlabel.training.config import Config
from otlabel.training.data import Images
from otlabel.training.entry import input_of
from otlabel.training.evaluate import evaluate
from otlabel.training.folder import (
    FILES,
    RunFolder,
    check_loops,
    check_optimizer,
    checked_weights,
    rank_of_process,
)
from otlabel.training.images import ImageFiles
from otlabel.training.loaders import TrainingBatches, as_views, errors_of_readers, in_order, seed_of, worker_count
from otlabel.training.setup import (
    first_of,
    head_sizes,
    labeler_of,
    loaded,
    made_model,
    other_images,
    try_backbone,
)
from otlabel.training.timetable import Basis, Timetable

logger = logging.getLogger("otlabel")

LONGEST_TOLD = 300  # characters of what torch says of weights, which may name every layer
WORTH_SHOWING = 0.5  # seconds that getting ready or judging takes
Report = Callable[[dict[str, Any]], None]


@interruptible
def train(
    config: Config,
    folder: str | os.PathLike[str] | None = None,
    *,
    report: Report | None = None,
    allow_code: bool = False,
    images: Images | None = None,
    progress: bool = False,
) -> Run:
    """Train by self-labelling, going on where an earlier run in the folder was interrupted.

    Under torchrun, processes share the samples of each batch and label together; the first one writes.

    Args:
        config: the whole run.
        folder: where its files go, made if needed. None: nothing is written, and nothing can be resumed.
        report: called after each epoch with its line of metrics.jsonl, by the first process alone.
        allow_code: whether a backbone "module:function" may be imported and called: whoever wrote the config then runs
            code here.
        images: what `loaded(config)` gives, where that is there already, or data of one's own, such as `Streamed`.
            None: they are loaded.
        progress: whether to show Lightning's bar on stderr.

    Returns:
        The finished run: `model`, `labeler`, `images`, `result`.

    Raises:
        ValueError: settings that make no sense; a backbone that there is not, that cannot take these data, or whose
            code is not allowed. Nothing has been written then.
        MissingPackageError: Lightning is not installed.
        FingerprintError: the folder holds a run of another config or of other data.
        FileExistsError: the folder holds files of somebody else's that the run would replace.
        BlockingIOError: another process trains in the folder.
        OSError: no room on the disk for a checkpoint.
    """
    place = None if folder is None else Path(folder)
    with contextlib.ExitStack() as stack:
        if place is not None and rank_of_process() == 0:
            own_data = config.data.name if config.data.name.endswith(".npy") else None  # else a name, as of a recipe
            read = {"[data] name": own_data, "[labels] file": config.labels.file}
            check_apart({f"the run's {name}": place / name for name in FILES}, read)
            stack.enter_context(working_in(place))
        given: dict[str, Any] = {"allow_code": allow_code, "images": images, "progress": progress}
        watched = progress and rank_of_process() == 0
        with shown_progress("reading data and checkpoint", shown=watched, delay=WORTH_SHOWING):
            run = stack.enter_context(contextlib.closing(Run(config, place, **given)))
            run.resume()
        run.fit(report)
        run.finish()
    return run


class Run:
    """One training run and all of its state."""

    def __init__(
        self,
        config: Config,
        folder: Path | None,
        *,
        allow_code: bool = False,
        images: Images | None = None,
        progress: bool = False,
    ) -> None:
        from otlabel.training.module import Labelling, LabelModule, SampleData
        from otlabel.training.trainer import MIXED, quiet, trainer_of

        self.config, self._progress = config, progress
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self._labelling = Labelling(self)
        with quiet():
            self.trainer = trainer_of(config.trainer, config.train.epochs, folder, [self._labelling], progress)
        self.device: torch.device = self.trainer.strategy.root_device
        self._share = self.trainer.global_rank, self.trainer.world_size
        self.images = loaded(config) if images is None else images
        self._other = other_images(config, self.images)
        self.workers = worker_count(config.data.workers, self.images.train)
        self.samples = self.images.train
        if isinstance(self.samples, Tensor):
            self.samples = self.samples.to(self.device)
        heads = head_sizes(config, self.images)
        torch.manual_seed(seed_of(config.train.seed, 0))
        self.input = input_of(config.augment.normalise, config.model.sobel, self.samples)
        self.model = made_model(config, heads, self.input, allow_code=allow_code)
        turn_head = nn.Linear(self.model.feature_dim, 4) if config.train.rotation else None
        amp = MIXED.get(str(self.trainer.precision))
        self.labeler = labeler_of(config, self.images, folder, amp)
        uniform = config.train.uniform
        uniform = config.labels.method in ("kmeans", "argmax") if uniform is None else uniform
        # Samples can be drawn so that one head's classes come equally often; those of several count equally much.
        self._draws_evenly = uniform and len(heads) == 1
        augment = config.augment.uncut if isinstance(self.samples, ImageFiles) else config.augment
        class_weight = "balanced" if uniform and len(heads) > 1 else None
        self.module = LabelModule(config, self.model, turn_head, self.labeler, augment, class_weight)
        self.module.to(self.device)
        for data in filter(None, (self.images, self._other)):
            try_backbone(config.model.backbone, self.model, first_of(data.train, 2).to(self.device))
        self._batches = TrainingBatches(
            self.samples,
            config.train.batch_size,
            order=self.order,
            epoch=lambda: self.trainer.current_epoch,
            version=lambda: self.labeler.n_updates if self._draws_evenly else 0,
            crop=config.augment.cut,
            seed=config.train.seed,
            workers=self.workers,
            share=self._share,
        )
        self._data = SampleData(self._batches)
        self._timetable = Timetable(config)
        self.untrained: dict[str, float] = {}
        self.best: dict[str, Tensor] | None = None  # weights at the relabelling of the highest quality
        self.epoch = 0
        self.result: dict[str, Any] = {}
        self._checkpoint: Path | None = None  # to go on from
        asked = {"config": config.to_dict(), "data": self.images.fingerprint}
        self._files = None if folder is None else RunFolder(folder, asked)

    # ---- epochs ----

    def fit(self, report: Report | None = None) -> None:
        """Train what is left of the epochs, telling of each."""
        from otlabel.training.trainer import interrupts_kept, quiet

        if self.epoch >= self.config.train.epochs:
            return
        if self.epoch == 0 and self.config.evaluation.baseline and self.trainer.is_global_zero:
            self.untrained = self._judged()
        self._labelling.report = report
        with quiet(), interrupts_kept(), errors_of_readers():
            self.trainer.fit(self.module, datamodule=self._data, ckpt_path=self._checkpoint)
        self.module.to(self.device)

    def order(self, epoch: int) -> Iterable[int]:
        """Samples in the order of an epoch, by its number, the seed and, where they are drawn by it, the labels."""
        seed = self.config.train.seed
        if self._draws_evenly:
            sampler = ClassUniformSampler(self.labeler, seed=seed)
            sampler.set_epoch(epoch)
            return sampler
        generator = torch.Generator().manual_seed(seed_of(seed, epoch, 3))
        return torch.randperm(len(self.samples), generator=generator).tolist()

    def relabel(self, progress: float, optimizers: list[torch.optim.Optimizer]) -> None:
        """Label anew if it is time, in epochs; what is drawn after that is drawn by the new labels."""
        basis = self._timetable.at(progress, self.labeler.due(progress))
        if basis is not None:
            self._update(self.to_label(basis), optimizers)

    def relabel_at_the_end(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Labels of views become those of the samples as they are, once the last epoch is over."""
        if self.epoch == self.config.train.epochs and self._timetable.at_the_end:
            self._update(self.to_label("images"), optimizers)

    def to_label(self, basis: Basis) -> Iterable[tuple[Any, Any]] | None:
        """What is labelled: all samples, or a view of each, which follows from the seed and the relabelling."""
        given: dict[str, Any] = {"workers": self.workers, "share": self._share}
        if basis == "recorded":
            return None
        if basis == "images":
            return in_order(self.samples, **given)
        seed, draw = self.config.train.seed, self.labeler.n_updates
        return as_views(self.samples, self.config.augment, seed, draw, self.device, **given)

    def _update(self, loader: Iterable[tuple[Any, Any]] | None, optimizers: list[torch.optim.Optimizer]) -> None:
        try:
            self.labeler.update(self.model, loader, optimizer=optimizers)
            if self.labeler.best_update == self.labeler.n_updates:
                self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Days of training are worth more than one relabelling.
            told = f"no relabelling, training goes on with the old labels: {error}"
            warnings.warn(told, SelfLabelWarning, stacklevel=2)

    def last_labels(self) -> dict[str, Any]:
        """Means over heads of what the last relabelling has found."""
        last = self.labeler.history[-len(self.labeler.n_classes) :]
        names = "quality", "nmi", "churn", "entropy", "gap"
        return {name: value for name in names if (value := mean_of(last, name)) is not None}

    # ---- files ----

    def save(self, line: dict[str, Any]) -> None:
        """Write the line of an epoch, and the checkpoint after it."""
        if self._files is None:
            return
        if self.trainer.is_global_zero:
            self._files.log(line)
        self.labeler.share_recorded()
        self.trainer.save_checkpoint(self._files.path / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one; refuse a folder of other runs or other makers."""
        if self._files is None:
            return
        self._checkpoint = self._files.checkpoint()
        if self._checkpoint is not None:
            self._load(self._checkpoint)
        if self.trainer.is_global_zero:
            self._files.cut_log(self.epoch)

    def _load(self, path: Path) -> None:
        """Look through a checkpoint; what Lightning does not take over itself is taken over here."""
        try:
            state = load_plain(path, self.device, ("state_dict", "optimizer_states", "callbacks", "loops", "epoch"))
            self.module.load_state_dict(state["state_dict"])
            (optimizer,), own = state["optimizer_states"], self.module.configure_optimizers()
            check_optimizer(optimizer, own)
            own.load_state_dict(optimizer)
            check_loops(state["loops"]["fit_loop"], self.trainer.fit_loop.state_dict())
            more = state["callbacks"][self._labelling.state_key]
            self.labeler.load_state_dict(more["labeler"])
            self.epoch, self.untrained = operator.index(state["epoch"]) + 1, dict(more["untrained"])
            self.best = checked_weights(more["best"], self.model)
            if not 0 <= self.epoch <= self.config.train.epochs:
                raise ValueError(f"it is of epoch {self.epoch}, of {self.config.train.epochs}")
            json.dumps(self.untrained)
        except (OSError, MemoryError, FingerprintError):
            raise
        except Exception as error:  # damage may show up as nearly any of them
            told = one_line(error).removeprefix(f"{path} is damaged: ")[:LONGEST_TOLD]
            raise FileFormatError(
                f"{path} is damaged, or is no checkpoint of this run: {told}; remove it to start anew"
            ) from error
        logger.info("resumed after epoch %d", self.epoch)

    def close(self) -> None:
        """Let go of the processes that read images."""
        self._batches.close()

    # ---- the end ----

    def _judged(self) -> dict[str, float]:
        """What features are worth on these data, and on the others."""
        wanted = self.config.evaluation
        found: dict[str, float] = {}
        shown = shown_progress("judging the features", shown=self._progress, delay=WORTH_SHOWING)
        with shown, errors_of_readers():
            for prefix, data in (("", self.images), ("other_", self._other)):
                if data is not None:
                    figures = evaluate(self.model, data, wanted, self.device, self.workers)
                    found |= {f"{prefix}{name}": value for name, value in figures.items()}
        return found

    def finish(self) -> None:
        """Write the labels, those of the highest quality, then judge them and the features, and write that down."""
        if not self.trainer.is_global_zero:
            return
        config = self.config
        if self._files is not None:  # first, for judging may take more time and memory than there is
            self._files.claim()
            self.labeler.save_labels(self._files.path / "labels.h5", best=True)
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
