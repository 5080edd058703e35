"""Residual networks of any depth; their weights have torchvision's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from otlabel.training.networks.common import Backbone, draw_as_the_papers


class Residual(nn.Module):
    """Two convolutions, or three with a bottleneck, added to what they are given, or to its projection.

    Args:
        n_in: channels.
        width: of its 3 x 3 convolution; with a bottleneck four times as many come out.
        stride: of the first 3 x 3 convolution.
        bottleneck: whether 1 x 1 convolutions are before and after it.
    """

    def __init__(self, n_in: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        n_out = 4 * width if bottleneck else width
        shapes = [(n_in, width, 3, stride), (width, n_out, 3, 1)]
        if bottleneck:
            shapes = [(n_in, width, 1, 1), (width, width, 3, stride), (width, n_out, 1, 1)]
        self._names = []
        for number, (before, after, kernel, step) in enumerate(shapes, 1):
            convolution = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
            self._names.append((f"conv{number}", f"bn{number}"))
        self.downsample: nn.Module | None = None
        if n_in != n_out or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, n_out, H, W) of a batch."""
        change = images
        for number, (convolution, norm) in enumerate(self._names):
            change = torch.relu(change) if number else change
            change = self.get_submodule(norm)(self.get_submodule(convolution)(change))
        return torch.relu((images if self.downsample is None else self.downsample(images)) + change)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and the mean over the image.

    Args:
        channels: of the images.
        depths: blocks of each stage.
        width: of the first stage; it doubles with each.
        bottleneck: of the blocks.
        small_images: the stem is a 3 x 3 convolution at full size, in place of a 7 x 7 one and pooling.
    """

    def __init__(self, channels: int, depths: Sequence[int], width: int, bottleneck: bool, small_images: bool) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        n_in = width
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential()
            for number in range(depth):
                blocks.append(Residual(n_in, width << stage, 2 if stage and not number else 1, bottleneck))
                n_in = (width << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.stages = [f"layer{stage + 1}" for stage in range(len(depths))]
        self.n_out = n_in

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, n_out) of a batch."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            maps = self.get_submodule(stage)(maps)
        features: torch.Tensor = self.avgpool(maps).flatten(1)
        return features


def _backbone(made: ResNet) -> Backbone:
    return Backbone(made, made.n_out, {"conv1": "relu"} | {stage: stage for stage in made.stages})


def small_resnet(channels: int, width: int = 16) -> Backbone:
    """ResNet-18 for small images: a 3 x 3 convolution at full size in place of the stem, then eight residual blocks.

    Args:
        channels: of the images, of any size; made for 32 x 32.
        width: channels at full size; they double with each halving, so that `feature_dim` is 8 width. ResNet-18 has
            64; 16 is what a CPU trains in minutes.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, sections 3.3 and 4.2.
    """
    return _backbone(ResNet(channels, (2, 2, 2, 2), width, bottleneck=False, small_images=True))


def resnet18(channels: int, width: int = 64) -> Backbone:
    """ResNet-18; 512 features, the mean over the image of its last stage.

    Args:
        channels: of the images, of any size; made for 224 x 224. For small ones take `small_resnet`, with width = 64.
        width: of the first stage; `feature_dim` is 8 width.

    Source: as for `small_resnet`; table 1.
    """
    return _large((2, 2, 2, 2), channels, width, bottleneck=False)


def resnet50(channels: int, width: int = 64) -> Backbone:
    """ResNet-50, which halves images in the 3 x 3 convolutions, as torchvision's; 2048 features.

    Args:
        channels: of the images, of any size; made for 224 x 224.
        width: of the first stage; `feature_dim` is 32 width.

    Source: as for `small_resnet`; table 1.
    """
    return _large((3, 4, 6, 3), channels, width, bottleneck=True)


def _large(depths: Sequence[int], channels: int, width: int, *, bottleneck: bool) -> Backbone:
    made = ResNet(channels, depths, width, bottleneck, small_images=False)
    draw_as_the_papers(made)
    return _backbone(made)
