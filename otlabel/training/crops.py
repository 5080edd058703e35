"""Images as probes see them: random crops to train on, one crop or ten to be judged by.

Images in memory have the size that the network was trained on, 224 pixels, say. A crop has this size as well: it is cut
from the image with its border continued, to 256 pixels then, so that it is the image, moved by up to 16 of 224 pixels.
Images below 14 pixels are not moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from otlabel.training.augment import plain
from otlabel.training.data import Samples
from otlabel.training.images import ImageFiles
from otlabel.training.loaders import FileSamples

MARGIN = 14  # a side is this many times the margin: 224 / 16


def random_crops(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """A crop of each image, anywhere in it; mirrored for half of them if `flip`.

    Args:
        images: (B, C, H, W).
        generator: of the draws.
        flip: whether left and right mean the same in these images.

    Returns:
        (B, C, H, W).
    """
    n, channels = images.shape[:2]
    place: list[Tensor] = [torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]]
    for axis, length in enumerate(images.shape[2:]):
        most = _most(length)
        moved = torch.randint(-most, most + 1, (n,), generator=generator)
        index = (torch.arange(length) + moved[:, None]).clamp(0, length - 1)
        if axis and flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            index = torch.where(mirrored[:, None], index.flip(1), index)
        place.append(index[:, None, None, :] if axis else index[:, None, :, None])
    return images[tuple(place)]


def fixed_crops(images: Tensor, n_crops: int, *, flip: bool) -> Tensor:
    """The middle of each image, which is all of it; or its middle and corners, and these mirrored.

    Args:
        images: (B, C, H, W).
        n_crops: 1 or 10.
        flip: whether left and right mean the same in these images. If not, ten crops are five.

    Returns:
        (B, C, H, W) of one crop, (B, V, C, H, W) of V = 5 or 10.

    Source: ten crops: Krizhevsky, Sutskever, Hinton, NeurIPS 2012, section 4.1.
    """
    if n_crops == 1:
        return images
    down, right = (_most(length) for length in images.shape[2:])
    places = [(0, 0), (-down, -right), (-down, right), (down, -right), (down, right)]
    views = [_moved(_moved(images, one, 2), other, 3) for one, other in places]
    return torch.stack(views + [view.flip(3) for view in views] if flip else views, 1)


def _most(length: int) -> int:
    """By how many pixels a crop is moved at most."""
    return length // MARGIN


def _moved(images: Tensor, by: int, axis: int) -> Tensor:
    length = images.shape[axis]
    return images.index_select(axis, (torch.arange(length) + by).clamp(0, length - 1))


class Batches:
    """Batches of samples and their classes, as `linear_probes` reads them, in a new order in each epoch of training.

    Args:
        samples: (N, C, H, W) uint8 in memory or in files, of which crops are made; or (N, D), which stay as they are.
        classes: (N,) int64.
        size: samples of a batch.
        flip: whether images may be mirrored.
        seed: of order and crops in training; None: not for training, in order.
        n_crops: 1 or 10, where it is not for training.
        workers: processes that read files.
    """

    def __init__(
        self,
        samples: Samples,
        classes: Tensor,
        size: int,
        *,
        flip: bool,
        seed: int | None = None,
        n_crops: int = 1,
        workers: int = 0,
    ) -> None:
        self._samples, self._classes, self._size, self._workers = samples, classes, size, workers
        self._flip, self._n_crops = flip, n_crops
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_samples, generator = len(self._samples), self._generator
        order = torch.arange(n_samples) if generator is None else torch.randperm(n_samples, generator=generator)
        for index, samples in self._read(order):
            yield self._cropped(samples) if samples.ndim == 4 else samples, self._classes[index]

    def _read(self, order: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        if not isinstance(self._samples, ImageFiles):
            return ((index, self._samples[index]) for index in order.split(self._size))
        sampler: Any = order.tolist()
        return DataLoader(
            FileSamples(self._samples),
            self._size,
            sampler=sampler,
            num_workers=self._workers,
            generator=torch.Generator(),
        )

    def _cropped(self, images: Tensor) -> Tensor:
        if self._generator is not None:
            return plain(random_crops(images, self._generator, flip=self._flip))
        views = fixed_crops(images, self._n_crops, flip=self._flip)
        return plain(views) if views.ndim == 4 else plain(views.flatten(0, 1)).unflatten(0, views.shape[:2])
