"""What a config says, made: data, labeler, optimiser; whatever is wrong in it is refused before anything is written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otlabel.errors import FileFormatError
from otlabel.marginals import KL, Range
from otlabel.selflabel import Argmax, FeatureStore, KMeans, MultiHead, OptimalTransport, SelfLabeler
from otlabel.selflabel.model import forward_only
from otlabel.training.augment import Augmentation, four_turns, with_channels
from otlabel.training.config import Config
from otlabel.training.data import Images, Samples, Streamed, images_of, load_images
from otlabel.training.entry import Input
from otlabel.training.images import ImageFiles
from otlabel.training.loaders import Reading, standardised
from otlabel.training.networks import NAMES, network
from otlabel.training.timetable import Timetable


def loaded(config: Config) -> Images:
    """The data of a config.

    Raises:
        FileFormatError: a setting that is not for these data.
        ValueError, OSError: as `load_images`, `thinned` and `validation`.
    """
    images = images_of(config.data)
    check_data(config, images)
    return images


def check_data(config: Config, images: Images) -> None:
    """Refuse settings that are not for these data."""
    of_vectors = images.train.ndim == 2
    wrong = Augmentation(swap=config.augment.swap) if of_vectors else dataclasses.replace(config.augment, swap=0.0)
    if config.augment != wrong:
        raise FileFormatError(
            "[augment] has what is for images; these data are feature vectors, for which there is swap"
            if of_vectors
            else "[augment] swap is for feature vectors; these data are images"
        )
    if len(images.train) < 2:
        raise ValueError("one sample cannot be trained on")
    asked = {
        "[labels] augmented": config.labels.of_views,
        "[train] rotation": config.train.rotation,
        "[model] sobel": config.model.sobel,
    }
    for name, is_asked in asked.items():
        if is_asked and of_vectors:
            raise FileFormatError(f"{name} is for images; these data are feature vectors")
    if config.train.rotation:  # what cannot be turned
        four_turns(torch.empty(1, *images.train.shape[1:]))


def other_images(config: Config, images: Images) -> Images | None:
    """The other data set that features are judged on, in the channels of the first."""
    wanted = config.evaluation
    if not wanted.other:
        return None
    data = config.data
    other = load_images(
        wanted.other, n_samples=wanted.other_samples, seed=data.seed, size=data.size, centre=data.centre
    )
    if other.train_labels is None or other.test is None or other.test_labels is None:
        raise ValueError(f"[evaluation] other = {wanted.other!r} has no true labels and test images to judge by")
    n_channels = images.train.shape[1]
    if other.train.ndim != images.train.ndim:
        raise ValueError(f"[evaluation] other = {wanted.other!r} holds images, but these data are feature vectors")
    try:
        train, test = (in_channels(part, n_channels) for part in (other.train, other.test))
    except ValueError as error:
        raise ValueError(f"[evaluation] other = {wanted.other!r}: {error}") from error
    return dataclasses.replace(other, train=train, test=test)


def in_channels(samples: Samples, n_channels: int) -> Samples:
    """Images in as many channels as a network wants."""
    if isinstance(samples, ImageFiles):
        return dataclasses.replace(samples, channels=n_channels)
    assert not isinstance(samples, Streamed)
    return with_channels(samples, n_channels)


def made_model(config: Config, heads: list[int], taken: Input, *, allow_code: bool = False) -> MultiHead:
    """Backbone and heads of a config, for what they are given.

    Raises:
        ValueError, ImportError: as `network`.
    """
    given = config.model
    backbone: Any = network(given.backbone, taken.channels, allow_code=allow_code, **given.options)
    if taken.entry is not None:
        backbone.register_forward_pre_hook(taken.entry)
    return MultiHead(backbone, backbone.feature_dim, heads, hidden=given.hidden)


def first_of(samples: Samples, count: int) -> Tensor:
    """A few samples, in memory."""
    if isinstance(samples, ImageFiles):
        return samples[:count].all()
    if isinstance(samples, Streamed):
        return next(iter(samples.batches))[1][:count]
    return samples[:count]


def try_backbone(name: str, model: MultiHead, images: Tensor) -> None:
    """Refuse a backbone that cannot take a few of these data, before anything is written."""
    of_vectors = images.ndim == 2
    batch = standardised(images)
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


def labeler_of(config: Config, images: Images, folder: Path | None, amp: torch.dtype | None = None) -> SelfLabeler:
    """Labels of the method that the config names; the folder is where features may be kept, `amp` their precision."""
    labels, n_samples = config.labels, len(images.train)
    labeling: Any = {"kmeans": KMeans(), "argmax": Argmax()}.get(labels.method)
    if labels.method == "sinkhorn":
        labeling = _transport(config)
    store = None
    if labels.store == "hdf5":
        if folder is None:
            raise ValueError("store = 'hdf5' needs a folder for the run")
        store = FeatureStore(folder / "features.h5")
    reading = Reading(config.augment, config.train.seed)
    labeler = SelfLabeler(
        n_samples,
        head_sizes(config, images),
        features=reading.features,
        heads=reading.heads,
        views=None if images.train.ndim == 2 else reading.common_view,
        labeling=labeling,
        schedule=Timetable(config).schedule,
        store=store,
        data=images.identity,
        truth=None if images.train_labels is None else images.train_labels.numpy(),
        mode=labels.mode,
        amp=amp,
        in_turn=labels.in_turn,
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
