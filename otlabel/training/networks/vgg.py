"""VGG-16 with batch normalisation; its weights have torchvision's names."""

from __future__ import annotations

import torch
from torch import nn

from otlabel.training.networks.common import Backbone, Enlarged, draw_as_the_papers

BLOCKS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # times the width, convolutions; after each the side is halved
LEAST = 32  # the smallest side that five halvings leave a pixel of


class VGG(nn.Module):
    """Thirteen convolutions and two hidden layers."""

    def __init__(self, channels: int, width: int, size: int | None, hidden: int) -> None:
        super().__init__()
        self.resize = Enlarged(size, LEAST)
        layers: list[nn.Module] = []
        n_in = channels
        for times, n_convolutions in BLOCKS:
            for _ in range(n_convolutions):
                layers += [nn.Conv2d(n_in, times * width, 3, padding=1), nn.BatchNorm2d(times * width), nn.ReLU()]
                n_in = times * width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)  # changes nothing at 224 x 224
        self.classifier = nn.Sequential(
            nn.Linear(49 * n_in, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()
        )
        draw_as_the_papers(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, hidden) of a batch."""
        maps = self.avgpool(self.features(self.resize(images)))
        features: torch.Tensor = self.classifier(maps.flatten(1))
        return features


def vgg16_bn(channels: int, width: int = 64, size: int | None = None, hidden: int = 4096) -> Backbone:
    """VGG-16 with batch normalisation; 4096 features, of its second hidden layer.

    Args:
        channels: of the images; made for 224 x 224.
        width: of the first convolutions.
        size: images with a side of less pixels are resized to so many, at least 32. None: to 224 where the strides
            would leave nothing of them (below 32 pixels); others stay as they are.
        hidden: width of both hidden layers; `feature_dim`.

    Raises:
        ValueError: a size below 32.

    Source: Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table
        1, column D.
    """
    made = VGG(channels, width, size, hidden)
    places = [place for place, layer in enumerate(made.features) if isinstance(layer, nn.ReLU)]
    stages = {f"conv{number}": f"features.{place}" for number, place in enumerate(places, 1)}
    return Backbone(made, hidden, stages)
