"""A trained backbone as a file of tensors, by the names that torchvision gives them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from otlabel.errors import MissingPackageError
from otlabel.selflabel.model import MultiHead
from otlabel.storage.atomic import replacing
from otlabel.training.augment import IMAGENET_MEAN
from otlabel.training.config import Config
from otlabel.training.entry import Entry, Input, input_of
from otlabel.training.networks.common import Backbone, absorbed

OF_TORCHVISION = {"alexnet": "classifier.6", "vgg16_bn": "classifier.6", "resnet18": "fc", "resnet50": "fc"}
ITS_ALEXNET = [64, 192, 384, 256, 256]


class Exported(NamedTuple):
    """What was written."""

    n_tensors: int
    n_numbers: int
    told: str  # how they are to be read


def backbone_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """A backbone's weights and averages, without the standardisation of its features and by the names of its layers.

    Batch norms of AlexNet are absorbed into its convolutions, for torchvision's has none; in evaluation mode it gives
    the same.
    """
    layers = absorbed(backbone.layers) if isinstance(backbone, Backbone) else backbone
    return {name: one.detach().cpu().contiguous() for name, one in layers.state_dict().items()}


def export(model: MultiHead, path: str | os.PathLike[str], config: Config, taken: Input | None = None) -> Exported:
    """Write the backbone of a run to a .safetensors file, whole or not at all.

    Args:
        model: the run's.
        path: of the file.
        config: of the run; what it says of the network goes into the file's metadata.
        taken: what its network is given. None: images in colour, as the config says.

    Raises:
        MissingPackageError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MissingPackageError("safetensors", "export") from error
    weights = backbone_weights(model.backbone)
    channels = _input_shape(model.state_dict())[0]
    if taken is None:
        taken = input_of(config.augment.normalise, config.model.sobel, torch.empty(0, len(IMAGENET_MEAN), 1, 1))
    entry = taken.entry
    about = {
        "format": "pt",
        "made_by": "otlabel",
        "backbone": config.model.backbone,
        "options": json.dumps(config.model.options),
        "channels": str(channels),
        "entry": json.dumps(None if entry is None else asdict(entry)),  # of `otlabel.training.entry`
        "read_by": _told(config, channels, entry),
    }
    content = save(weights, about)
    with replacing(path) as file:
        file.write(content)
    return Exported(len(weights), sum(one.numel() for one in weights.values()), about["read_by"])


def _input_shape(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """Channels and kernel of the backbone's first convolution, or how many numbers its first linear layer takes."""
    return next(
        tuple(one.shape[1:]) for name, one in weights.items() if name.startswith("backbone.") and one.ndim in (2, 4)
    )


def _told(config: Config, channels: int, entry: Entry | None) -> str:
    """Which network of torchvision takes them, what of it has to be changed, and what images it sees."""
    sees = {"half": "", "data": "", "imagenet": "; images standardised by ImageNet's constants"}
    if config.augment.normalise == "data" and entry is not None:
        mean, spread = (", ".join(f"{one:.4f}" for one in of) for of in (entry.mean, entry.spread))
        sees["data"] = f"; images between 0 and 1 standardised by the data's own mean {mean} and deviation {spread}"
    slopes = "; slopes of grey images (Sobel) in place of colours" if config.model.sobel else ""
    return _reader(config, channels) + sees[config.augment.normalise] + slopes


def _reader(config: Config, channels: int) -> str:
    name, options = config.model.backbone, config.model.options
    library, _, theirs = name.partition(":")
    if library == "torchvision" and theirs:
        return f"torchvision.models.{theirs}(), less its last layer"
    if name not in OF_TORCHVISION:
        return f"the layers of {name}"
    own = {key: value for key, value in options.items() if key != "size"}
    if own.get("widths") == ITS_ALEXNET:
        own.pop("widths")
    if own:
        return f"{name} with the options {own}, by torchvision's names; its own network has other widths"
    last = f"torchvision.models.{name}(), less {OF_TORCHVISION[name]}"
    return last if channels == 3 else f"{last}, with a first convolution of {channels} channels in place of 3"
