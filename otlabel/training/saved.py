"""A run of `otlabel train`, read again from its folder: what it was asked for, and its network."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.selflabel.model import MultiHead
from otlabel.sources.paths import load_plain
from otlabel.storage.texts import read_json
from otlabel.text import one_line
from otlabel.training.augment import with_channels
from otlabel.training.config import Config, config_of
from otlabel.training.data import Images, load_images
from otlabel.training.networks import network
from otlabel.training.setup import loaded

OF_MODEL = "0."  # how the names of the model's weights begin in a checkpoint, beside those of a rotation head


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

    def other_images(self, name: str, model: MultiHead) -> Images:
        """Another data set, in the channels that its network takes; a folder's images get the size of the run's.

        Raises:
            FileNotFoundError, ValueError: as `load_images`; or images where the network takes vectors, or vectors.
        """
        other = load_images(name, size=self.config.data.size)
        (n_channels, *kernel), found = input_shape(model.state_dict()), other.train.ndim
        if (found == 4) != bool(kernel):
            raise ValueError(
                f"{name} holds {'images' if found == 4 else 'vectors'}, which the run's network cannot take"
            )
        if found == 2:
            return other
        test = None if other.test is None else with_channels(other.test, n_channels)
        return dataclasses.replace(other, train=with_channels(other.train, n_channels), test=test)

    def model(self, *, best: bool | None = False, allow_code: bool = False) -> MultiHead:
        """Its network, on the CPU, as last saved or as it was at the relabelling of the highest quality.

        None: the latter, if there was one: the network whose labels labels.h5 has.

        Raises:
            FileFormatError: the checkpoint is damaged.
            ValueError: there are no weights of a best relabelling; or the backbone is code, which is not allowed.
        """
        path = self.folder / "checkpoint.pt"
        state = load_plain(path, keys=("weights",))
        best = bool(state.get("best")) if best is None else best
        if best and not state.get("best"):
            raise ValueError(f"{path} has no weights of a best relabelling; leave --best out")
        try:
            weights = dict(state["best"] if best else state["weights"])
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged, or is no checkpoint of a run: {one_line(error)}") from error
        if not best:
            weights = weights_of_model(weights)
        return model_of(self.config, weights, allow_code=allow_code)


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


def input_shape(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """Channels and kernel of the backbone's first convolution, or how many numbers its first linear layer takes."""
    for name, one in weights.items():
        if name.startswith("backbone.") and one.ndim in (2, 4):
            return tuple(one.shape[1:])
    raise FileFormatError("the checkpoint has no weights of a backbone")


def weights_of_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of all that a checkpoint has, those of the model, by its own names."""
    return {name[len(OF_MODEL) :]: one for name, one in weights.items() if name.startswith(OF_MODEL)}


def model_of(config: Config, weights: dict[str, Tensor], *, allow_code: bool = False) -> MultiHead:
    """The network of a config with these weights, whose shapes tell its channels and the classes of its heads.

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
    backbone: Any = network(
        config.model.backbone, input_shape(weights)[0], allow_code=allow_code, **config.model.options
    )
    n_classes = [heads[number] for number in sorted(heads)]
    model = MultiHead(backbone, backbone.feature_dim, n_classes, hidden=config.model.hidden)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise FileFormatError(f"the checkpoint's weights are of another network than its run's: {error}") from error
    return model
