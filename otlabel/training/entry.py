"""What a network's input goes through before its first layer: other constants, and slopes in place of colours.

It hangs on the backbone, whose weights keep their names, and so comes along wherever that is run.
"""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from otlabel.training.augment import IMAGENET_MEAN, IMAGENET_SPREAD, MEAN, SPREAD
from otlabel.training.data import Samples, Streamed
from otlabel.training.images import ImageFiles

LOOKED_AT = 1024  # images that the data's own constants are of
SLOPES = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))  # Sobel's, across; down is its transpose
OF_SLOPES = 2  # channels


@dataclass(frozen=True)
class Entry:
    """A hook on a backbone, before its forward pass.

    Args:
        mean, spread: by channel, of pixels between 0 and 1; the images come by (x - 0.5) / 0.25.
        sobel: whether the network gets the slopes of the grey image, across and down.

    Source: Sobel filters: Caron, Bojanowski, Joulin, Douze, "Deep clustering for unsupervised learning of visual
        features", ECCV 2018, section 4; the border of an image is continued here.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    sobel: bool = False

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        """(B, C, H, W), or (B, 2, H, W) slopes."""
        (images,) = inputs
        mean, spread = (images.new_tensor(one)[:, None, None] for one in (self.mean, self.spread))
        images = (images * SPREAD + MEAN - mean) / spread
        return (slopes(images),) if self.sobel else (images,)


def slopes(images: Tensor) -> Tensor:
    """(B, 2, H, W): how fast the mean of the channels changes, across and down, by Sobel's filters."""
    across = images.new_tensor(SLOPES)
    grey = functional.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), "replicate")
    return functional.conv2d(grey, torch.stack([across, across.T])[:, None])


@dataclass(frozen=True)
class Input:
    """What a run's network is given.

    Args:
        shape: (C, H, W) of images, or (D,), of a sample.
        entry: what these go through before the first layer; None: they go in as they come.
    """

    shape: tuple[int, ...]
    entry: Entry | None = None

    @property
    def channels(self) -> int:
        """That the first layer takes, or numbers."""
        return OF_SLOPES if self.entry is not None and self.entry.sobel else self.shape[0]

    def to_plain(self) -> dict[str, Any]:
        """As a checkpoint can hold it."""
        return {"shape": list(self.shape), "entry": None if self.entry is None else asdict(self.entry)}

    @classmethod
    def of_plain(cls, kept: Any) -> Input:
        """The same again.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        shape, entry = tuple(operator.index(length) for length in kept["shape"]), kept["entry"]
        if len(shape) not in (1, 3):
            raise ValueError(f"samples of shape {shape}")
        if entry is not None:
            mean, spread = (tuple(map(float, entry[name])) for name in ("mean", "spread"))
            if not (
                len(mean) == len(spread) == shape[0] and all(map(math.isfinite, mean + spread)) and min(spread) > 0
            ):
                raise ValueError(f"constants {mean} and {spread} for {shape[0]} channels")
            entry = Entry(mean, spread, bool(entry["sobel"]))
        return cls(shape, entry)


def input_of(normalise: str, sobel: bool, samples: Samples) -> Input:
    """What a network is given of these samples.

    Raises:
        ValueError: as `entry_of`.
    """
    entry = entry_of(normalise, sobel, samples) if samples.ndim == 4 else None
    return Input(tuple(samples.shape[1:]), entry)


def entry_of(normalise: str, sobel: bool, samples: Samples) -> Entry | None:
    """What is to hang on a backbone for these images; None where they go in as they come.

    Raises:
        ValueError: ImageNet's constants for images that are not of three channels; data that cannot be looked at.
    """
    channels = samples.shape[1]
    if normalise == "half":
        return Entry((MEAN,) * channels, (SPREAD,) * channels, sobel) if sobel else None
    if normalise == "imagenet":
        if channels != len(IMAGENET_MEAN):
            raise ValueError(f"[augment] normalise is 'imagenet', of 3 channels; these images have {channels}")
        return Entry(IMAGENET_MEAN, IMAGENET_SPREAD, sobel)
    return Entry(*_constants(samples), sobel)


def _constants(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of images evenly spaced over the data."""
    if isinstance(samples, Streamed):
        raise ValueError("[augment] normalise is 'data', but samples only pass by; give 'half' or 'imagenet'")
    some = np.unique(np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int))
    counts = torch.zeros(samples.shape[1], 256, dtype=torch.float64)  # of each value, so that few images are in memory
    for index in some.tolist():
        image = samples.read(index) if isinstance(samples, ImageFiles) else samples[index].cpu()
        counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in image])
    values, n_pixels = torch.arange(256) / 255.0, counts[0].sum()
    mean = counts @ values.double() / n_pixels
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (n_pixels - 1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1e-3).tolist())
