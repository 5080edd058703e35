"""Small networks: convolutions for images of any size, layers for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from otlabel.training.networks.common import Backbone


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
    stages = {f"conv{number + 1}": str(number) for number in range(len(blocks))}
    return Backbone(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], stages)


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
    return Backbone(
        nn.Sequential(*layers), width, {f"layer{number}": str(3 * number) for number in range(1, depth + 1)}
    )


def _block(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    """A convolution that leaves the offset to the batch normalisation, which would take it away."""
    convolution = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU())
