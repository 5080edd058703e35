"""Networks of torchvision and timm, where these import: without their last layer, with random weights."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from torch import nn

from otlabel.text import one_line
from otlabel.training.networks.common import Backbone

LIBRARIES = ("torchvision", "timm")
NAME = r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?"  # no address of a hub, from where weights would be fetched
FETCHED = ("pretrained", "checkpoint", "weights", "cache")  # how options begin that read files or the network


def of_library(library: str, name: str, channels: int, options: dict[str, Any], *, allow_code: bool) -> Backbone:
    """A network of a library by its name, such as resnet50.

    Args:
        library: "torchvision" or "timm".
        name: as the library has it.
        channels: of the images.
        options: further arguments of the library's function.
        allow_code: whether options may name weights to be read or fetched: a recipe may be a stranger's.

    Raises:
        ImportError: the library cannot be imported; says what to install.
        ValueError: it has no such network, or options that are not allowed.
    """
    backbone = f"{library}:{name}"
    fetched = [option for option in options if option.startswith(FETCHED)]
    if fetched and not allow_code:
        raise ValueError(
            f"backbone = {backbone!r} has an option {fetched[0]!r}, which would read or fetch weights; if you trust "
            "whoever wrote that, pass --allow-code (in Python, allow_code=True)"
        )
    if re.fullmatch(NAME, name) is None:
        raise ValueError(f"backbone = {backbone!r} is no name of {library}'s list of models, such as resnet50")
    try:
        module = importlib.import_module(library)
    except Exception as error:  # one that is of another version of torch raises what it likes
        raise ImportError(
            f"backbone = {backbone!r} needs {library}, which cannot be imported here ({one_line(error)}): pip install "
            f"{library}, of a version that fits torch {torch.__version__}"
        ) from error
    try:
        make = _of_torchvision if library == "torchvision" else _of_timm
        layers, feature_dim = make(module, name, channels, options)
    except Exception as error:  # likewise
        raise ValueError(f"{backbone} cannot be made with the options {options}: {one_line(error)}") from error
    children = dict(layers.named_children())
    return Backbone(layers, feature_dim, {stage: stage for stage in children if stage.startswith(("layer", "stage"))})


def _of_timm(timm: Any, name: str, channels: int, options: dict[str, Any]) -> tuple[nn.Module, int]:
    model = timm.create_model(name, num_classes=0, in_chans=channels, **options)
    return model, int(getattr(model, "head_hidden_size", model.num_features))


def _of_torchvision(torchvision: Any, name: str, channels: int, options: dict[str, Any]) -> tuple[nn.Module, int]:
    model = importlib.import_module("torchvision.models").get_model(name, **{"weights": None, **options})
    last = _found(model, nn.Linear, -1)
    feature_dim = model.get_submodule(last).in_features
    _put(model, last, nn.Identity())
    first = _found(model, nn.Conv2d, 0)
    convolution = model.get_submodule(first)
    if convolution.in_channels != channels:
        names = ("out_channels", "kernel_size", "stride", "padding", "dilation")
        same = {one: getattr(convolution, one) for one in names}
        _put(model, first, nn.Conv2d(channels, **same, bias=convolution.bias is not None))
    return model, feature_dim


def _found(model: nn.Module, kind: type[nn.Module], place: int) -> str:
    """The name of the first or last layer of a kind."""
    names = [name for name, module in model.named_modules() if isinstance(module, kind)]
    if not names:
        raise ValueError(f"it has no {kind.__name__}")
    return names[place]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Another module in the place of one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
