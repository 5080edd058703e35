"""What a run labels: its samples as they are, or a view of each, batch by batch in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from otlabel.selflabel.quality import common_view
from otlabel.training.augment import Augmentation, plain

FULL_BATCH = 512  # images at once where nothing is trained


class AsTheyAre:
    """All samples as they are, batch by batch in their order: what is labelled."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(len(self._pixels)).split(FULL_BATCH):
            images = self._pixels[index[0] : index[-1] + 1]
            yield index, images if images.ndim == 2 else plain(images)


class Views:
    """A view of each image, and the image as it is: the one is labelled, quality looks at the other.

    Labels of views are those of what the network is trained on. They differ a little each time, so that it learns what
    is common to an image's views, rather than its labels by heart.

    Args:
        pixels: (N, C, H, W) uint8.
        augment: makes the views. None: what is labelled are the images as they are.
        generator: of the views.
    """

    def __init__(self, pixels: Tensor, augment: Augmentation | None, generator: torch.Generator) -> None:
        self._pixels, self._augment, self._generator = pixels, augment, generator

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        for index, images in AsTheyAre(self._pixels):
            part = self._pixels[index[0] : index[-1] + 1]
            yield index, [images if self._augment is None else self._augment(part, self._generator), images]

    # How a labeler reads these.

    @staticmethod
    def features(model: Any, inputs: list[Tensor]) -> Tensor:
        """Of what is to be labelled."""
        return model.features(inputs[0])

    @staticmethod
    def heads(model: Any) -> Any:
        """Of the model itself."""
        return model.heads

    @staticmethod
    def common_view(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Of the images as they are."""
        return [common_view(inputs[1], generator)]
