"""Small networks that give features: every one has `feature_dim` and ends in features of mean 0 and variance 1.

That last batch normalisation has no weights of its own. Features of one scale suit linear heads, whose scores are then
on one scale as well from the first labelling on.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

NAMES = ("small_convnet", "small_resnet", "alexnet", "mlp")
ALEXNET_STRIDES = 63  # the smallest side that its strides leave a pixel of


class Backbone(nn.Module):
    """Layers that end in (B, feature_dim), and a batch normalisation without weights after them.

    Args:
        layers: from a batch to (B, feature_dim).
        feature_dim: how many features they give.
    """

    def __init__(self, layers: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.layers = layers
        self.standardise = nn.BatchNorm1d(feature_dim, affine=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, feature_dim) of a batch. In training mode a batch has at least two samples."""
        features: torch.Tensor = self.standardise(self.layers(images))
        return features


def network(name: str, channels: int, *, allow_code: bool = False, **options: Any) -> nn.Module:
    """A network by its name.

    Args:
        name: "small_convnet", "small_resnet", "alexnet", "mlp"; or "module:function" for a function of one's own, which
            takes the number of channels and returns a module with `feature_dim`, from the working folder or Python's
            path.
        channels: of the images; for "mlp" the number of features.
        allow_code: whether "module:function" may be imported and called. A name may come from a stranger's recipe, and
            any function of any module is code that runs here.
        options: further arguments of that function, such as `width`.

    Raises:
        ValueError: there is no such name, it has no such options, what the function returns is no such module, or code
            is named that is not allowed.
        ImportError: there is no such module.
    """
    module, separator, function = name.partition(":")
    if separator:
        return _made_by_code(name, module, function, channels, options, allow_code=allow_code)
    if name not in NAMES:
        raise ValueError(f"there is no network {name!r}: give one of {', '.join(NAMES)}, or module:function")
    factory: Callable[..., nn.Module] = globals()[name]
    known = list(inspect.signature(factory).parameters)[1:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    try:
        return factory(channels, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made with the options {options}: {error}") from error


def _made_by_code(
    name: str, module: str, function: str, channels: int, options: dict[str, Any], *, allow_code: bool
) -> nn.Module:
    if not allow_code:
        raise ValueError(
            f"backbone = {name!r} would import the module {module!r} and call its function {function!r}; if you trust "
            "whoever wrote that, pass --allow-code (in Python, allow_code=True)"
        )
    with _working_folder_first():
        factory: Callable[..., Any] | None = getattr(importlib.import_module(module), function, None)
        if not callable(factory):
            raise ValueError(f"{module} has no function {function!r}")
        made = factory(channels, **options)
    if not isinstance(made, nn.Module) or not isinstance(getattr(made, "feature_dim", None), int):
        raise ValueError(f"{name} returned {type(made).__name__}: it must be an nn.Module with an integer feature_dim")
    return made


@contextlib.contextmanager
def _working_folder_first() -> Iterator[None]:
    """Let modules be found in the working folder, as `python` itself does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have changed the path
            sys.path.remove(folder)


def small_convnet(channels: int, widths: Sequence[int] = (32, 64, 128), strides: Sequence[int] = (1, 2, 2)) -> Backbone:
    """Blocks of a 3 x 3 convolution, batch normalisation and ReLU, then the mean over the image.

    Args:
        channels: of the images, of any size.
        widths: channels after each block; the last is `feature_dim`.
        strides: of each block.

    Raises:
        ValueError: not as many strides as widths.
    """
    if len(widths) != len(strides) or not widths:
        raise ValueError(f"{len(widths)} widths and {len(strides)} strides: each block has one of either")
    incoming = [channels, *widths[:-1]]
    blocks = [_block(*step) for step in zip(incoming, widths, strides, strict=True)]
    return Backbone(nn.Sequential(*blocks, *_pooled()), widths[-1])


def small_resnet(channels: int, width: int = 16) -> Backbone:
    """ResNet-18 for small images: a 3 x 3 convolution at full size in place of the stem, then eight residual blocks.

    Args:
        channels: of the images, of any size; made for 32 x 32.
        width: channels at full size; they double with each halving, so that `feature_dim` is 8 width. ResNet-18 has
            64; 16 is what a CPU trains in minutes.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, sections 3.3 and 4.2.
    """
    layers: list[nn.Module] = [_block(channels, width, 1), _Residual(width, width, 1), _Residual(width, width, 1)]
    for n_in in (width, 2 * width, 4 * width):
        layers += [_Residual(n_in, 2 * n_in, 2), _Residual(2 * n_in, 2 * n_in, 1)]
    return Backbone(nn.Sequential(*layers, *_pooled()), 8 * width)


def alexnet(channels: int, widths: Sequence[int] = (64, 192, 384, 256, 256)) -> Backbone:
    """AlexNet with batch normalisation after each convolution; 4096 features, of its second hidden layer.

    Args:
        channels: of the images, at least 63 x 63; made for 224 x 224.
        widths: of the five convolutions. The default is the smaller AlexNet, of one group (Krizhevsky 2014);
            (96, 256, 384, 384, 256) is the one of 2012.

    Raises:
        ValueError: not five widths; or on use, images that its strides leave nothing of.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS
        2012, section 3.5; Krizhevsky, arXiv:1404.5997. With batch normalisation, it is what Asano, Rupprecht, Vedaldi,
        ICLR 2020, train, in both widths.
    """
    if len(widths) != 5:
        raise ValueError(f"{len(widths)} widths: AlexNet has five convolutions")
    first, second, third, fourth, fifth = widths
    layers = nn.Sequential(
        _AtLeast(ALEXNET_STRIDES),
        _block(channels, first, 4, kernel=11, padding=2),
        nn.MaxPool2d(3, 2),
        _block(first, second, 1, kernel=5, padding=2),
        nn.MaxPool2d(3, 2),
        _block(second, third, 1),
        _block(third, fourth, 1),
        _block(fourth, fifth, 1),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6),  # changes nothing at 224 x 224
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36 * fifth, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
    )
    return Backbone(layers, 4096)


def mlp(n_features: int, width: int = 512, depth: int = 2) -> Backbone:
    """Layers of linear maps, batch normalisation and ReLU, for vectors; their features are standardised first.

    Args:
        n_features: D of the (B, D) input.
        width: of each hidden layer; `feature_dim`.
        depth: hidden layers.

    Raises:
        ValueError: no layer.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}: give at least one layer")
    layers: list[nn.Module] = [nn.BatchNorm1d(n_features, affine=False)]
    for n_in in [n_features] + [width] * (depth - 1):
        layers += [nn.Linear(n_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return Backbone(nn.Sequential(*layers), width)


def _block(n_in: int, n_out: int, stride: int, kernel: int = 3, padding: int = 1) -> nn.Sequential:
    """A convolution that leaves the offset to the batch normalisation, which would take it away."""
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU())


def _pooled() -> tuple[nn.Module, nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()


class _Residual(nn.Module):
    """Two convolutions, added to what they are given, or to its projection where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        second = nn.Sequential(nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out))
        self.change = nn.Sequential(_block(n_in, n_out, stride), second)
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(images) + self.change(images))


class _AtLeast(nn.Module):
    """Refuse images of which the strides would leave nothing."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[2:]) < self.side:
            raise ValueError(
                f"images are {images.shape[2]} x {images.shape[3]} pixels, AlexNet needs {self.side} x {self.side}: "
                "resize them, or take small_convnet or small_resnet"
            )
        return images
