"""What a training run will take: images a second as measured, labellings as planned for solves.

training   epochs x samples / (samples a second that are trained on)
reading    relabellings x samples / (samples a second whose features are taken); judging at the end as one more
labelling  relabellings x heads x what a solve takes, by the model of solves; k-means by its sweeps
memory     of the process as measured, what reads files, features, labels, and what a solve adds
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.assign import sinkhorn_assign
from otlabel.planning.model import estimate
from otlabel.planning.rates import measure_sweep_rate
from otlabel.sources import ITEM_BYTES, free_memory
from otlabel.sources.caching import CACHE_SHARE
from otlabel.text import bytes_text, duration, with_noun

if TYPE_CHECKING:
    from otlabel.training.config import Config
    from otlabel.training.data import Images
    from otlabel.training.measuring import Rates
    from otlabel.training.timetable import Basis

TRIED = 1 << 22  # scores up to which a solve is tried: under a second, of which the model of solves knows too little
STORED = {"memory": "float32", "hdf5": "float16"}  # features, by where they are kept
COPIES = 3  # on disk of features, and 2 in memory: of before, those that come, and the file that they become
LABEL_BYTES, WEIGHT_BYTES = 24, 12  # of a label now, before and at its best; of a weight, its momentum, and at its best


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """What a run will take: seconds as they pass, memory of each process."""

    n_samples: int
    epochs: int
    n_processes: int
    n_heads: int
    relabellings: dict[Basis, int]  # by what is labelled: "views", "images", or what training has "recorded"
    rates: Rates  # as measured in one process
    train_seconds: float
    read_seconds: float  # for labels, and to judge features at the end
    label_seconds: float | None  # None: one does not fit, or takes nobody knows how long
    seconds: float | None
    memory: dict[str, int]  # a process, by what it is for
    peak_memory: int
    memory_suffices: bool
    disk: dict[str, int]  # of the run's folder at its largest, by what it is for
    findings: tuple[str, ...]

    def summary(self) -> str:
        """A few lines for people, at most 80 columns."""
        rates, n_labelled = self.rates, sum(self.relabellings.values())
        relabelled = with_noun(n_labelled, "relabelling") if n_labelled else "no relabelling"
        done = f"{rates.trained:.3g} samples/s trained on"
        done += "" if rates.read is None else f", {rates.read:.3g} read for labels"
        reading = f", {with_noun(rates.n_workers, 'process')} reading files" if rates.n_workers else ""
        parts = {
            "to train": self.train_seconds,
            "to read for labels": self.read_seconds,
            "to label": self.label_seconds,
        }
        spent = ", ".join(f"{duration(taken)} {what}" for what, taken in parts.items() if taken)
        whole = "not told in all" if self.seconds is None else f"about {duration(self.seconds)}"
        largest = max(self.memory, key=self.memory.__getitem__)
        room = "" if self.memory_suffices else ", MORE THAN THERE IS"
        lines = [
            ("training", f"{self.n_samples:,} samples, {with_noun(self.epochs, 'epoch')}, {relabelled} of "
                         f"{with_noun(self.n_heads, 'head')}, in {with_noun(self.n_processes, 'process')}"),
            ("measured", f"{done}, in {duration(rates.seconds)} of one process on {rates.device}{reading}"),
            ("time", f"{whole}: {spent}"),
            ("memory", f"{bytes_text(self.peak_memory)} a process at its peak, most of it for {largest} "
                       f"({bytes_text(self.memory[largest])}){room}"),
            *([("card", f"{bytes_text(rates.card_memory)} at its peak")] if rates.card_memory else []),
            ("disk", " and ".join(f"{name} take {bytes_text(size)}" for name, size in self.disk.items())),
            *(("note", finding) for finding in self.findings),
        ]  # fmt: skip
        return "\n".join(
            textwrap.fill(f"{name:10s}{text}", 80, subsequent_indent=" " * 10, break_on_hyphens=False)
            for name, text in lines
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON."""
        return asdict(self)


def estimate_training(
    config: Config,
    images: Images,
    *,
    seconds: float = 60.0,
    n_samples: int | None = None,
    n_processes: int = 1,
    allow_code: bool = False,
) -> TrainingEstimate:
    """What a run will take, measured for some time on its data, or on some like them.

    Args:
        config: of the run.
        images: its data, as `loaded(config)` gives them.
        seconds: how long to measure; at least two batches are waited for.
        n_samples: of the run, where the data are but a few like those. None: as many as there are.
        n_processes: that train together, each as fast as this one with its part of a batch.
        allow_code: as for `train`.

    Raises:
        ValueError, MissingPackageError: as `train`, before anything starts.
    """
    from otlabel.training.loaders import batch_sizes, worker_count
    from otlabel.training.measuring import measure, repeated
    from otlabel.training.setup import head_sizes
    from otlabel.training.timetable import Timetable

    n_samples = len(images.train) if n_samples is None else n_samples
    batch = config.train.batch_size
    relabellings = Timetable(config).count(len(batch_sizes(n_samples, batch, n_processes)))
    n_read = relabellings["views"] + relabellings["images"] + _judgements(config, images)
    measured = config.with_values(
        train__batch_size=max(2, -(-batch // n_processes)),
        data__workers=worker_count(config.data.workers, images.train, n_samples),
    )
    basis: Basis | None = "views" if relabellings["views"] else "images" if n_read else None
    heads, at_once = head_sizes(config, images), n_samples / n_processes
    if config.labels.method == "fixed" and n_samples > len(images.train):  # the labels are of others
        measured = measured.with_values(labels__method="random", model__heads=heads)
    rates = measure(measured, repeated(images, n_samples), seconds, basis, allow_code=allow_code)
    one = _labelling(config, heads, n_samples, n_processes, rates.feature_dim)
    times = relabellings["views"] + relabellings["images"]
    label_seconds = None if one.seconds is None else one.seconds * times
    train_seconds = config.train.epochs * at_once / rates.trained
    read_seconds = 0.0 if rates.read is None else n_read * at_once / rates.read
    a_copy = int(at_once * rates.feature_dim * ITEM_BYTES[STORED[config.labels.store]]) if times else 0
    on_disk = config.labels.store == "hdf5"
    memory = {
        "network, batches and data": rates.memory,
        "processes that read": rates.n_workers * rates.worker_memory,
        "features": min(a_copy, int(CACHE_SHARE * free_memory())) if on_disk else min(times, 2) * a_copy,
        "labels": LABEL_BYTES * len(heads) * n_samples,
        "labelling": one.memory if times else 0,
    }
    return TrainingEstimate(
        n_samples=n_samples,
        epochs=config.train.epochs,
        n_processes=n_processes,
        n_heads=len(heads),
        relabellings=dict(relabellings),
        rates=rates,
        train_seconds=train_seconds,
        read_seconds=read_seconds,
        label_seconds=label_seconds,
        seconds=None if label_seconds is None else train_seconds + read_seconds + label_seconds,
        memory=memory,
        peak_memory=sum(memory.values()),
        memory_suffices=sum(memory.values()) - rates.memory <= free_memory(),
        disk={
            **({"features": min(times + 1, COPIES) * a_copy * n_processes} if on_disk and times else {}),
            "checkpoints": 2 * (WEIGHT_BYTES * rates.n_weights + LABEL_BYTES * len(heads) * n_samples),
        },
        findings=tuple(_findings(config, n_samples > len(images.train), n_processes, one.finding if times else "")),
    )


def _judgements(config: Config, images: Images) -> int:
    """How often all samples are read to judge the features."""
    wanted = config.evaluation
    can = images.train_labels is not None and images.test_labels is not None
    return (1 + wanted.baseline) * (can and bool(wanted.knn or wanted.probe))


@dataclass(frozen=True)
class _Labelling:
    """All heads once, by features that are there; or one of them, where they take turns."""

    seconds: float | None
    memory: int
    finding: str = ""


def _labelling(config: Config, heads: list[int], n_samples: int, n_processes: int, dim: int) -> _Labelling:
    labels = config.labels
    share = 1 / len(heads) if labels.in_turn else 1.0
    planned: dict[str, Callable[[int], _Labelling]] = {
        "sinkhorn": lambda k: _solve(config, (n_samples, k), n_processes, dim),
        "kmeans": lambda k: _k_means(n_samples, k, dim),
        "argmax": lambda k: _Labelling(n_samples * k / measure_sweep_rate(k, "float32", dim) / n_processes, 0),
    }
    if labels.method not in planned:
        return _Labelling(0.0, 0)
    by_size = {k: planned[labels.method](k) for k in set(heads)}
    each = [by_size[k] for k in heads]
    seconds = [one.seconds for one in each if one.seconds is not None]
    return _Labelling(
        share * math.fsum(seconds) if len(seconds) == len(each) else None,
        max(one.memory for one in each),
        each[0].finding,
    )


def _solve(config: Config, shape: tuple[int, int], n_ranks: int, dim: int) -> _Labelling:
    """By scores that are made once and kept where they fit, as of heads that are not linear, or made in each pass."""
    from otlabel.selflabel.head_scores import MATRIX_SHARE

    (n_samples, k), stored, rounding = shape, STORED[config.labels.store], config.labels.rounding
    making = measure_sweep_rate(k, stored, dim)
    is_kept = config.model.hidden is not None or 4 * n_samples * k / n_ranks <= MATRIX_SHARE * free_memory()
    if is_kept:
        found = estimate(shape, "float32", n_ranks, rounding=rounding, sweep_rate=measure_sweep_rate(k, "float32"))
    else:
        found = estimate(shape, stored, n_ranks, rounding=rounding, dim=dim, sweep_rate=making)
    there = ("interpreter", "features and head")  # what is measured, and what is counted as features
    seconds = found.seconds
    if n_samples * k <= TRIED:
        seconds = _timed(shape, config)
    if seconds is not None and is_kept:
        seconds += n_samples * k / n_ranks / making
    memory = sum(size for name, size in found.memory.items() if name not in there)
    return _Labelling(seconds, memory, next((one for one in found.findings if "DOES NOT FIT" in one), ""))


def _timed(shape: tuple[int, int], config: Config) -> float:
    """Seconds of a solve of random scores."""
    scores = np.random.default_rng(0).standard_normal(shape, np.float32)
    for _ in range(2):  # compiled, if that was still to do
        begun = time.perf_counter()
        sinkhorn_assign(scores, epsilon=config.labels.epsilon, rounding=config.labels.rounding)
    return time.perf_counter() - begun


def _k_means(n_samples: int, k: int, dim: int) -> _Labelling:
    """The products of its iterations, and of principal components; one process does it for all."""
    from otlabel.selflabel import KMeans

    settings = KMeans()
    width = min(dim, settings.n_components)
    seconds = (settings.n_iter + 1) * n_samples * k / measure_sweep_rate(k, "float32", width)
    seconds += 2 * n_samples * dim / measure_sweep_rate(dim, "float32", dim)
    finding = f"k-means is counted as {settings.n_iter + 1} sweeps on these CPUs; faiss on a GPU takes far less"
    return _Labelling(seconds, 4 * n_samples * (width + dim), finding)


def _findings(config: Config, is_sample: bool, n_processes: int, finding: str) -> list[str]:
    found = [finding] if finding else []
    if is_sample:
        found.append("rates are of fewer samples, whose files the system may keep in memory")
    if n_processes > 1:
        found.append("processes are counted as if none waited for another, or for the same disk and CPUs")
    if config.evaluation.other:
        found.append("what [evaluation] other takes is left out")
    return found
