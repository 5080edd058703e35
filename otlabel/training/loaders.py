"""How samples come: in batches to train on, and all of them in their order, as they are or as views, to be labelled.

Where samples stay in files, processes of a DataLoader read them, and cut out of an image what `Crop` says; colours are
changed batch by batch on the device. What is drawn for a sample follows from the seed, the epoch (or relabelling) and
the sample alone, whoever reads it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from otlabel.errors import FileFormatError
from otlabel.selflabel.quality import common_view
from otlabel.training.augment import Augmentation, plain
from otlabel.training.data import Samples, Streamed
from otlabel.training.images import Crop, ImageFiles

FULL_BATCH = 512  # samples at once where nothing is trained
BATCH_BYTES = 1 << 23  # of images that come from files: each process that reads has two batches in hand
MANY = 4096  # image files from which on processes of their own read them
MOST_WORKERS = 8


def worker_count(asked: int | None, samples: Samples | None, n_samples: int | None = None) -> int:
    """How many processes read image files; as many as there are CPUs, at most 8, and none for a few images.

    `n_samples` says how many there are if these are a part.
    """
    if asked is not None:
        return asked
    if not isinstance(samples, ImageFiles) or (n_samples or len(samples)) < MANY:
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def seed_of(*numbers: int) -> int:
    """A seed that differs wherever a number does."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# ---- all samples, in their order ----


def in_order(samples: Samples, *, workers: int = 0, share: tuple[int, int] = (0, 1)) -> Iterable[tuple[Any, Any]]:
    """All samples as they are: (index, samples), images in uint8 where they come from files.

    Args:
        samples: of any kind.
        workers: processes that read image files.
        share: (rank, number of ranks) that each go through a part; parts come one after the other.
    """
    if isinstance(samples, Streamed):
        return samples.batches
    first, stop = _share(len(samples), share)
    if isinstance(samples, ImageFiles):
        return _reading(FileSamples(samples[first:stop], first), samples, workers)
    return AsTheyAre(samples, first, stop)


def as_views(
    samples: Samples,
    augment: Augmentation,
    seed: int,
    draw: int,
    device: torch.device,
    *,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterable[tuple[Any, Any]]:
    """A view of each image, and the image as it is: the one is labelled, quality looks at the other.

    Labels of views are those of what the network is trained on. They differ a little each time, so that it learns what
    is common to an image's views, rather than its labels by heart.

    Args:
        samples: images of any kind.
        augment: makes the views.
        seed: of the run.
        draw: the number of the relabelling: views follow from both.
        device: where views of images in memory are made.
        workers: processes that read image files.
        share: as for `in_order`.
    """
    first, stop = _share(len(samples), share)
    if isinstance(samples, ImageFiles):
        dataset = FileSamples(samples[first:stop], first, augment.cut, seed, draw)
        return _reading(dataset, samples, workers)
    generator = torch.Generator(device).manual_seed(seed_of(seed, draw, 4, *([first] if first else [])))
    return Views(in_order(samples, share=share), samples, augment, generator)


def _share(n_samples: int, share: tuple[int, int]) -> tuple[int, int]:
    rank, n_ranks = share
    return n_samples * rank // n_ranks, n_samples * (rank + 1) // n_ranks


class AsTheyAre:
    """Samples in memory as they are, batch by batch in their order."""

    def __init__(self, pixels: Tensor, first: int = 0, stop: int | None = None) -> None:
        self._pixels, self._first, self._stop = pixels, first, len(pixels) if stop is None else stop

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(self._first, self._stop).split(FULL_BATCH):
            images = self._pixels[index[0] : index[-1] + 1]
            yield index, images if images.ndim == 2 else plain(images)


class Views:
    """Of images in memory, or that pass by: (index, [view, image])."""

    def __init__(
        self, loader: Iterable[tuple[Any, Any]], samples: Any, augment: Augmentation, generator: torch.Generator
    ) -> None:
        self._loader, self._samples, self._augment, self._generator = loader, samples, augment, generator

    def __iter__(self) -> Iterator[tuple[Any, list[Tensor]]]:
        for index, images in self._loader:
            if isinstance(self._samples, Tensor):
                part = self._samples[index[0] : index[-1] + 1]
            else:
                part = images.to(self._generator.device)
            yield index, [self._augment(part, self._generator), images]


class FileSamples(Dataset):
    """Images of files: (index, pixels); with a crop (index, [view, image, (draw, index)]).

    Args:
        files: the images.
        first: the index of the first of them.
        crop: a view is cut out so, beside the image as it is. None: no view.
        seed, draw: what is cut out follows from these and the index.
    """

    def __init__(
        self, files: ImageFiles, first: int = 0, crop: Crop | None = None, seed: int = 0, draw: int = 0
    ) -> None:
        self._files, self._first, self._crop, self._seed, self._draw = files, first, crop, seed, draw

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        index, image = self._first + place, self._files.read(place)
        if self._crop is None:
            return index, image
        rng = np.random.default_rng((self._seed, self._draw, index))
        return index, [self._files.read(place, self._crop, rng), image, torch.tensor([self._draw, index])]


class FileViews(Dataset):
    """Views of image files: of (epoch, index), (index, pixels), which follow from these and the seed."""

    def __init__(self, files: ImageFiles, crop: Crop, seed: int) -> None:
        self._files, self._crop, self._seed = files, crop, seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, Tensor]:
        epoch, index = item
        rng = np.random.default_rng((self._seed, epoch, index))
        return index, self._files.read(index, self._crop, rng)


def _reading(dataset: FileSamples, files: ImageFiles, workers: int) -> DataLoader[Any]:
    size = max(1, min(FULL_BATCH, BATCH_BYTES // int(np.prod(files.shape[1:]))))
    return DataLoader(dataset, size, num_workers=workers, generator=torch.Generator(), pin_memory=_pins())


@contextlib.contextmanager
def errors_of_readers() -> Iterator[None]:
    """An image that cannot be read is told in a line, also by a process of its own, of which torch tells all it can."""
    try:
        yield
    except FileFormatError as error:
        told = str(error)
        if not told.startswith("Caught "):
            raise
        raise FileFormatError(told.strip().rpartition(f"{FileFormatError.__name__}: ")[2]) from error


def _pins() -> bool:
    return torch.cuda.is_available()


# ---- how a labeler reads these ----


@dataclass(frozen=True)
class Reading:
    """What the loaders above yield, as a model takes it.

    Args:
        augment: what is left of it for the device where views were cut out of files.
        seed: of the run.
    """

    augment: Augmentation
    seed: int

    def features(self, model: Any, inputs: Any) -> Tensor:
        """Of what is to be labelled."""
        dtype = next((one.dtype for one in model.parameters()), torch.float32)
        features: Tensor = model.features(self.seen(inputs).to(dtype))
        return features

    def heads(self, model: Any) -> Any:
        """Of the model itself."""
        return model.heads

    def seen(self, inputs: Any) -> Tensor:
        """A batch, ready for the network."""
        if not isinstance(inputs, (list, tuple)):
            return standardised(inputs)
        if inputs[0].dtype != torch.uint8:
            return inputs[0]
        draw, first = inputs[2][0].tolist()
        generator = torch.Generator(inputs[0].device).manual_seed(seed_of(self.seed, draw, 4, first))
        return self.augment.uncut(inputs[0], generator)

    def common_view(self, inputs: Any, generator: torch.Generator) -> Any:
        """Of the images as they are."""
        image = inputs[1] if isinstance(inputs, (list, tuple)) else inputs
        return common_view(standardised(image), generator)


def standardised(inputs: Tensor) -> Tensor:
    """Images as a network takes them; features, and what is standardised already, as it is."""
    return plain(inputs) if inputs.dtype == torch.uint8 else inputs


# ---- batches to train on ----


class TrainingBatches:
    """The batches of an epoch, each time anew: (index, samples), those of this process.

    Batches are those of one process, of which each takes its part. None is of a single sample, which has no variance.

    Args:
        samples: of any kind; in memory, they are on the device.
        size: samples of a batch, over all processes.
        order: takes an epoch to the samples in its order, one by one. As it is gone through while the epoch is, it may
            depend on labels that change meanwhile.
        epoch: tells which epoch it is.
        version: changes when the order does: what processes have read ahead is read anew then.
        crop: what is cut out of image files.
        seed: of the run.
        workers: processes that read image files.
        share: (rank, number of ranks).
    """

    def __init__(
        self,
        samples: Samples,
        size: int,
        *,
        order: Callable[[int], Iterable[int]],
        epoch: Callable[[], int],
        version: Callable[[], int],
        crop: Crop,
        seed: int,
        workers: int,
        share: tuple[int, int],
    ) -> None:
        self._samples, self._order, self._epoch, self._version, self._share = samples, order, epoch, version, share
        self.sizes = batch_sizes(len(samples), size, share[1])
        self._asked = _Asked()
        self._loader: DataLoader[Any] | None = None
        if isinstance(samples, ImageFiles):
            self._loader = DataLoader(
                FileViews(samples, crop, seed),
                batch_sampler=self._asked,
                num_workers=workers,
                persistent_workers=workers > 0,
                generator=torch.Generator(),
                pin_memory=_pins(),
            )
        if isinstance(samples, Streamed) and share[1] > 1:
            raise ValueError("samples that only pass by are for one process; give several a folder or an array")

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._epoch()  # as it is when the first batch is asked for
        if isinstance(self._samples, Tensor):
            device = self._samples.device
            yield from ((index, self._samples[index.to(device)]) for index in self._indices(epoch, 0))
        elif isinstance(self._samples, Streamed):
            yield from _rebatched(self._samples, self.sizes)
        elif self._loader is not None:
            yield from self._read(epoch, self._loader)

    def _indices(self, epoch: int, first: int) -> Iterator[Tensor]:
        """Samples of the batches from one on."""
        rank, n_ranks = self._share
        drawn = itertools.islice(iter(self._order(epoch)), sum(self.sizes[:first]), None)
        for size in self.sizes[first:]:
            batch = np.fromiter(itertools.islice(drawn, size), np.int64)
            if n_ranks > 1:  # a few come twice where they cannot be shared equally
                batch = np.resize(batch, -(-size // n_ranks) * n_ranks)[rank::n_ranks]
            yield torch.from_numpy(batch)

    def _read(self, epoch: int, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        while done < len(self):
            version = self._version()
            self._asked.batches = (
                [(epoch, number) for number in index.tolist()] for index in self._indices(epoch, done)
            )
            for batch in loader:
                yield batch
                done += 1
                if self._version() != version:
                    break

    def close(self) -> None:
        """Let go of the processes that read."""
        self._loader = None


class _Asked:
    """What a loader is asked for next."""

    batches: Iterable[list[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


def batch_sizes(n_samples: int, size: int, n_ranks: int = 1) -> list[int]:
    """Of all batches of an epoch; what is left is one more, or part of the last where a process got one sample."""
    n_whole, rest = divmod(n_samples, size)
    sizes = [size] * n_whole + ([rest] if rest else [])
    return [*sizes[:-2], sum(sizes[-2:])] if 0 < rest < 2 * n_ranks and n_whole else sizes


def _rebatched(samples: Streamed, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples that pass by, in batches of these sizes."""
    held: list[tuple[Tensor, Tensor]] = []
    n_held = n_seen = 0
    wanted = iter(sizes)
    size = next(wanted, None)
    for given, part in samples.batches:
        index = torch.as_tensor(given)
        held.append((index, part))
        n_held, n_seen = n_held + len(index), n_seen + len(index)
        while size is not None and n_held >= size:
            indices, parts = torch.cat([one for one, _ in held]), torch.cat([one for _, one in held])
            yield indices[:size], parts[:size]
            held, n_held = [(indices[size:], parts[size:])], n_held - size
            size = next(wanted, None)
    if size is not None or n_held:
        raise ValueError(f"{samples.name} yielded {n_seen:,} samples, not the {len(samples):,} that its shape says")
