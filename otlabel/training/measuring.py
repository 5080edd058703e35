"""How fast a run trains and reads what it labels, measured by its own batches for some time; nothing is written."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from otlabel.selflabel.model import forward_only, to_device
from otlabel.system import peak_memory, peak_of_children
from otlabel.training.config import Config
from otlabel.training.data import Images
from otlabel.training.images import ImageFiles
from otlabel.training.loaders import Reading, errors_of_readers
from otlabel.training.run import Run
from otlabel.training.timetable import Basis
from otlabel.training.trainer import MIXED, pl

TRAINING = 0.75  # of the time; the rest goes to what is read to be labelled
NO_END = 10**9  # epochs
MANY = 1 << 17  # files that come again and again, so that what begins each time does not count


@dataclass(frozen=True)
class Rates:
    """What one process has done."""

    trained: float  # samples a second, forward and back
    read: float | None  # and read for labels, forward alone; None: not asked
    seconds: float  # that it was measured for
    feature_dim: int
    n_weights: int
    n_workers: int  # processes that read image files
    memory: int  # bytes of the process at its peak
    worker_memory: int  # of the largest that reads
    device: str
    card_memory: int  # at its peak; 0 without a card


class _Clock:
    """Samples a second from the end of the first batch on: the first has what is slow only once."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._seconds, self._device = seconds, device
        self._begun: float | None = None
        self.n_samples, self.passed = 0, 0.0

    def is_over(self, n_samples: int) -> bool:
        """Whether the time has passed with this batch."""
        if self._begun is None:
            self._begun = self._now()
            return False
        self.n_samples += n_samples
        if time.perf_counter() - self._begun < self._seconds:
            return False
        self.passed = self._now() - self._begun
        return True

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.n_samples / self.passed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Stop(pl.Callback):
    """Ends a training when the time is over."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        trainer.should_stop = trainer.should_stop or self._clock.is_over(len(batch[0]))


def repeated(images: Images, n_samples: int) -> Images:
    """As many image files as a run will have, up to 131,072, by naming each several times; other data as they are."""
    if not isinstance(images.train, ImageFiles) or n_samples <= len(images.train):
        return images
    again = np.arange(min(n_samples, max(MANY, len(images.train)))) % len(images.train)
    labels = None if images.train_labels is None else images.train_labels[again]
    return dataclasses.replace(images, train=images.train[again], train_labels=labels)


def measure(config: Config, images: Images, seconds: float, basis: Basis | None, *, allow_code: bool = False) -> Rates:
    """Train on random labels, then read what is labelled, for so many seconds together and at least two batches each.

    Args:
        config: of the run, whose batches, workers, precision and device these are; one process, whatever it says.
        images: its data.
        seconds: how long.
        basis: what is read to be labelled. None or "recorded": nothing.
        allow_code: as for `train`.

    Raises:
        ValueError, MissingPackageError: as `train`.
    """
    config = config.with_values(
        labels__n_relabels=0,
        labels__store="memory",
        train__epochs=NO_END,
        evaluation__baseline=False,
        evaluation__other="",
        trainer__devices=1,
        trainer__num_nodes=1,
        trainer__strategy="auto",
        trainer__logger=False,
    )
    reads = basis in ("views", "images")
    with contextlib.closing(Run(config, None, images=images, allow_code=allow_code)) as run:
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        trained = _Clock(seconds * (TRAINING if reads else 1.0), run.device)
        run.trainer.callbacks.append(_Stop(trained))
        run.fit()
        read = _read(run, basis, seconds * (1 - TRAINING)) if reads and basis else None
        n_workers = run.workers
    return Rates(
        trained=trained.rate,
        read=None if read is None else read.rate,
        seconds=trained.passed + (0.0 if read is None else read.passed),
        feature_dim=run.model.feature_dim,
        n_weights=sum(one.numel() for one in run.module.parameters()),
        n_workers=n_workers,
        memory=peak_memory(),
        worker_memory=peak_of_children() if n_workers else 0,
        device=torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        card_memory=torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else 0,
    )


def _read(run: Run, basis: Basis, seconds: float) -> _Clock:
    """Take features of what is labelled, as often as it takes."""
    clock, config, amp = _Clock(seconds, run.device), run.config, MIXED.get(str(run.trainer.precision))
    reading = Reading(config.augment, config.train.seed)
    mixed = torch.autocast(run.device.type, amp, enabled=amp is not None)
    with errors_of_readers(), forward_only(run.model, training=config.labels.mode == "train"), mixed:
        while True:
            loader: Iterable[tuple[Any, Any]] = run.to_label(basis) or ()
            for index, inputs in loader:
                reading.features(run.model, to_device(inputs, run.device)).float().cpu()
                if clock.is_over(len(index)):
                    return clock
