"""What a config says, made: data, labeler, optimiser; whatever is wrong in it is refused before anything is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otlabel.errors import FileFormatError
from otlabel.marginals import KL, Range
from otlabel.selflabel import (
    Argmax,
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
from otlabel.training.augment import Augmentation, four_turns, plain, with_channels
from otlabel.training.config import Config
from otlabel.training.data import Images, images_of, load_images
from otlabel.training.loaders import Views
from otlabel.training.networks import NAMES

SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "quadratic": QuadraticSchedule,
    "logarithmic": LogarithmicSchedule,
    "linear": LinearSchedule,
}


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


def other_images(config: Config, images: Images) -> Images | None:
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


def try_backbone(name: str, model: MultiHead, images: Tensor) -> None:
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


def head_sizes(config: Config, images: Images) -> list[int]:
    """Classes of each head."""
    if config.labels.method == "truth":
        if images.train_labels is None:
            raise ValueError(f"{config.data.name} has no true labels to train on")
        return [int(images.train_labels.max()) + 1]
    if config.labels.method == "fixed":
        from otlabel.selflabel.stores.head_labels import described

        return described(config.labels.file)[1]
    return config.model.heads


def labeler_of(config: Config, images: Images, folder: Path | None) -> SelfLabeler:
    """Labels of the method that the config names; the folder is where features may be kept."""
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
        reading = {"features": Views.features, "heads": Views.heads, "views": Views.common_view}
    labeler = SelfLabeler(
        n_samples,
        head_sizes(config, images),
        **reading,
        labeling=labeling,
        schedule=schedule,
        store=store,
        data=images.identity,
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


def learning_rate(config: Config, progress: float) -> float:
    """The learning rate at a time in epochs."""
    train = config.train
    if train.decay == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * progress / train.epochs))
    if train.decay == "linear":
        return train.lr * (1 - progress / train.epochs)
    if train.decay == "steps":
        return train.lr * 0.1 ** sum(progress >= drop for drop in train.drops)
    return train.lr


def seed_of(*numbers: int) -> int:
    """A seed that differs wherever a number does."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def device_of(name: str) -> torch.device:
    """A device that can be used here."""
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
