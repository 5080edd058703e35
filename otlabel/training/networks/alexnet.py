"""AlexNet in both widths, with batch normalisation; its weights have torchvision's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from otlabel.training.networks.common import Backbone, Enlarged, NormedConv

LEAST = 63  # the smallest side that its strides leave a pixel of


class AlexNet(nn.Module):
    """Five convolutions and two hidden layers. Without its batch norms (`absorbed`) it is torchvision's."""

    def __init__(self, channels: int, widths: Sequence[int], size: int | None, hidden: int) -> None:
        super().__init__()
        first, second, third, fourth, fifth = widths
        self.resize = Enlarged(size, LEAST)
        self.features = nn.Sequential(
            NormedConv(channels, first, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            NormedConv(first, second, 5, 1, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            NormedConv(second, third, 3, 1, 1),
            nn.ReLU(),
            NormedConv(third, fourth, 3, 1, 1),
            nn.ReLU(),
            NormedConv(fourth, fifth, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # changes nothing at 224 x 224
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(36 * fifth, hidden), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU(),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, hidden) of a batch."""
        maps = self.avgpool(self.features(self.resize(images)))
        features: torch.Tensor = self.classifier(maps.flatten(1))
        return features


def alexnet(
    channels: int,
    widths: Sequence[int] = (64, 192, 384, 256, 256),
    size: int | None = None,
    hidden: int = 4096,
) -> Backbone:
    """AlexNet with batch normalisation after each convolution; 4096 features, of its second hidden layer.

    Args:
        channels: of the images; made for 224 x 224.
        widths: of the five convolutions. The default is the smaller AlexNet, of one group (Krizhevsky 2014), which is
            torchvision's; (96, 256, 384, 384, 256) is the one of 2012, SeLa's.
        size: images with a side of less pixels are resized to so many, at least 63. None: to 224, as SeLa does it for
            CIFAR, where the strides would leave nothing of them (below 63 pixels); others stay as they are.
        hidden: width of both hidden layers; `feature_dim`.

    Raises:
        ValueError: not five widths, or a size below 63.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS
        2012, section 3.5; Krizhevsky, arXiv:1404.5997. With batch normalisation, it is what Asano, Rupprecht, Vedaldi,
        ICLR 2020, train, in both widths.
    """
    if len(widths) != 5:
        raise ValueError(f"{len(widths)} widths: AlexNet has five convolutions")
    stages = {f"conv{number}": f"features.{place}" for number, place in enumerate((1, 4, 7, 9, 11), 1)}
    return Backbone(AlexNet(channels, widths, size, hidden), hidden, stages)
