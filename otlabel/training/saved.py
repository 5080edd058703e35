"""A run of `otlabel train`, read again from its folder: what it was asked for, and its network."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.selflabel.model import MultiHead
from otlabel.storage.texts import read_json
from otlabel.text import one_line
from otlabel.training.config import Config, config_of
from otlabel.training.data import Images, load_images
from otlabel.training.entry import Input, input_of
from otlabel.training.folder import kept_beside, trained_weights
from otlabel.training.setup import in_channels, loaded, made_model


class SavedRun:
    """The folder of a run.

    Args:
        folder: that `otlabel train` wrote.

    Raises:
        FileNotFoundError: there is no run in it, or none that has trained an epoch.
        FileFormatError: its config is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        for name in ("config.json", "checkpoint.pt"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{self.folder} has no {name}; give a folder of `otlabel train`")
        self.config, self._data = asked_of(self.folder / "config.json")

    def images(self) -> Images:
        """The data that it was trained on.

        Raises:
            FingerprintError: others are there now.
            FileNotFoundError, ValueError: as `load_images`.
        """
        images = loaded(self.config)
        if images.fingerprint != self._data:
            raise FingerprintError(f"{self.folder} is a run on other data than {self.config.data.name} holds now")
        return images

    def other_images(self, name: str) -> Images:
        """Another data set, in the channels of the run's own; a folder's images get the size of the run's.

        Raises:
            FileNotFoundError, ValueError: as `load_images`; or images where the run's are vectors, or vectors.
        """
        other = load_images(name, size=self.config.data.size, centre=self.config.data.centre)
        if other.train.ndim != 1 + len(self.input.shape):
            kind = "images" if other.train.ndim == 4 else "vectors"
            raise ValueError(f"{name} holds {kind}, which the run's network cannot take")
        if other.train.ndim == 2:
            return other
        n_channels = self.input.shape[0]
        test = None if other.test is None else in_channels(other.test, n_channels)
        return dataclasses.replace(other, train=in_channels(other.train, n_channels), test=test)

    @functools.cached_property
    def input(self) -> Input:
        """What its network is given; of a run of an earlier version, as its data tell it.

        Raises:
            FileFormatError: the checkpoint is damaged.
            FingerprintError, FileNotFoundError: as `images`.
        """
        path = self.folder / "checkpoint.pt"
        kept = kept_beside(path).get("input")
        if kept is None:
            return input_of(self.config.augment.normalise, self.config.model.sobel, self.images().train)
        try:
            return Input.of_plain(kept)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {one_line(error)}") from error

    def model(self, *, best: bool | None = False, allow_code: bool = False) -> MultiHead:
        """Its network, on the CPU, as last saved or as it was at the relabelling of the highest quality.

        Args:
            best: whether as it was then. None: if there was one: the network whose labels labels.h5 has.
            allow_code: whether its backbone may be code.

        Raises:
            FileFormatError: the checkpoint is damaged.
            ValueError: there are no weights of a best relabelling; or the backbone is code, which is not allowed.
        """
        path = self.folder / "checkpoint.pt"
        kept = kept_beside(path).get("best")
        if kept is not None and not isinstance(kept, dict):
            raise FileFormatError(f"{path} is damaged: its best weights are {type(kept).__name__}")
        if best and kept is None:
            raise ValueError(f"{path} has no weights of a best relabelling; leave --best out")
        weights = trained_weights(path) if kept is None or best is False else kept
        return model_of(self.config, weights, self.input, allow_code=allow_code)


def asked_of(path: Path) -> tuple[Config, str]:
    """The config in a run's config.json, and what its data are told by."""
    asked = read_json(path)
    try:
        given = {
            section: {key: value for key, value in values.items() if value is not None}
            for section, values in asked["config"].items()
        }
        data = asked["data"]
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is not that of a run: {error!r}") from error
    return config_of(given, str(path)), data


def model_of(config: Config, weights: dict[str, Tensor], taken: Input, *, allow_code: bool = False) -> MultiHead:
    """The network of a config with these weights, whose shapes tell the classes of its heads.

    Raises:
        FileFormatError: they are of another network.
        ValueError, ImportError: as `network`.
    """
    if not all(torch.is_tensor(one) for one in weights.values()):
        raise FileFormatError("the checkpoint's weights are no tensors")
    heads = {}  # by number, the classes of the last layer
    for name, one in weights.items():
        if name.startswith("heads.") and name.endswith(".weight"):
            heads[int(name.split(".")[1])] = len(one)
    if not heads:
        raise FileFormatError("the checkpoint has no weights of heads")
    n_classes = [heads[number] for number in sorted(heads)]
    model = made_model(config, n_classes, taken, allow_code=allow_code)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise FileFormatError(f"the checkpoint's weights are of another network than its run's: {error}") from error
    return model
