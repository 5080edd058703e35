"""Images that stay in their files: which there are, and how one is read and cut to size; memory is flat in number.

What is kept of an image is its name. Workers of a DataLoader read it when its batch comes: JPEGs are decoded no larger
than they are needed, and a view is cut out and resized in one step, so that its aspect ratio is that of the crop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, MissingPackageError

if TYPE_CHECKING:
    import torch

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # whatever a name says: others may start programs
LOOKED_AT = 64  # files that tell whether a folder's images are in grey
SIZED = 1024  # files whose lengths are in the fingerprint: to ask for all takes minutes on a network's disk
ATTEMPTS = 10  # to draw a crop that lies within the image
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Names(Sequence[str]):
    """Paths of files below a folder, in a few bytes each and none of Python's objects.

    Workers share these bytes with the process that has started them; objects they would copy as they count references.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


@dataclass(frozen=True, eq=False)
class Crop:
    """A random part of an image, drawn by a seed.

    Args:
        area: (lo, hi), its share of the image's. None: the square in the middle.
        aspect: (lo, hi), its width divided by its height, uniform in the logarithm. What no part of an image can have
            after ten draws, as of a very long one, gives the square in the middle, too.
        flip: whether half of the views are mirrored.
    """

    area: tuple[float, float] | None
    aspect: tuple[float, float]
    flip: bool

    def draw(self, width: int, height: int, rng: np.random.Generator, centre: float) -> tuple[Box, bool]:
        """Where the part is, and whether it is mirrored."""
        mirrored = bool(self.flip and rng.random() < 0.5)
        if self.area is not None:
            logarithms = np.log(self.aspect)
            for _ in range(ATTEMPTS):
                area = rng.uniform(*self.area) * width * height
                aspect = math.exp(rng.uniform(*logarithms))
                across, down = math.sqrt(area * aspect), math.sqrt(area / aspect)
                if across <= width and down <= height:
                    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
                    return (left, top, left + across, top + down), mirrored
        return middle(width, height, centre), mirrored


def middle(width: int, height: int, share: float) -> Box:
    """The square in the middle, whose side is a share of the shorter one's: as if resized, then cropped."""
    side = share * min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images of a folder, (N, C, size, size) uint8 once they are read; a part of them is of this kind again.

    Args:
        folder: where they are.
        names: of the files, below it.
        size: pixels of a side.
        channels: 1 (grey) or 3.
        centre: share of the shorter side that the square has which is cut out of the middle: 0.875 is what is left
            where the shorter side is resized to 256 and 224 pixels are cropped.
        rows: which of the names these are, (N,). None: all.
    """

    folder: Path
    names: Names
    size: int
    channels: int
    centre: float = 1.0
    rows: np.ndarray | None = None

    ndim = 4

    def __len__(self) -> int:
        return len(self.names) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, size, size)."""
        return len(self), self.channels, self.size, self.size

    def __getitem__(self, part: Any) -> ImageFiles:
        """Some of them: a slice, indices or a mask."""
        rows = np.arange(len(self.names)) if self.rows is None else self.rows
        return dataclasses.replace(self, rows=rows[part])

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / self.names[index if self.rows is None else self.rows[index]]

    def paths(self) -> Iterator[str]:
        """Where they are below the folder, one after the other."""
        return (self.names[row] for row in (range(len(self.names)) if self.rows is None else self.rows))

    def read(self, index: int, crop: Crop | None = None, rng: np.random.Generator | None = None) -> torch.Tensor:
        """(C, size, size) uint8 of one image: the square in its middle, or a part that is drawn.

        Raises:
            FileFormatError: it cannot be read.
        """
        import torch

        def cut(width: int, height: int) -> tuple[Box, bool]:
            if crop is None or rng is None:
                return middle(width, height, self.centre), False
            return crop.draw(width, height, rng, self.centre)

        pixels = _resized(self.path(index), self.size, "L" if self.channels == 1 else "RGB", cut)
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    def all(self) -> torch.Tensor:
        """All of them at once, in memory."""
        import torch

        return torch.stack([self.read(index) for index in range(len(self))])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, in their order, and a few digits more of the lengths of up to 1024 files.

        Pixels have no part in it, nor has the size that they are cut to: labels serve a network of another input size.
        """
        digest, lengths = hashlib.sha256(), hashlib.sha256()
        for name in self.paths():
            digest.update(os.fsencode(name) + b"\0")
        for index in np.unique(np.linspace(0, len(self) - 1, min(SIZED, len(self))).astype(int)):
            lengths.update(b"%d " % self.path(index).stat().st_size)
        return f"{digest.hexdigest()}-{lengths.hexdigest()[:16]}"


def files_in(folder: Path) -> tuple[list[str], np.ndarray | None, list[str]]:
    """The images of a folder in the order of their names, whose they are, and the names of the classes.

    Each folder in it that holds images is a class. Without such, there are no classes.

    Raises:
        FileNotFoundError: no images.
        FileFormatError: images beside folders of images.
    """
    flat = _images(folder)
    there = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = {name: files for name in there if (files := _images(folder / name))}
    if flat and classes:
        raise FileFormatError(
            f"{folder} holds images ({flat[0]}) beside folders of images ({next(iter(classes))}): images either all "
            "lie in it, or all in one folder a class"
        )
    names = flat or [f"{group}/{file}" for group, members in classes.items() for file in members]
    if not names:
        told = f"; give {folder / 'train'}" if (folder / "train").is_dir() else ""  # which a report is asked about
        raise FileNotFoundError(f"{folder} holds no images ({', '.join(ENDINGS)}), nor do the folders in it{told}")
    labels = None if flat else np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()])
    return names, labels, list(classes)


def _images(folder: Path) -> list[str]:
    """Names of the image files in it, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".") and entry.is_file()
        )


def is_grey(files: ImageFiles) -> bool:
    """Whether all of some of the images are in grey; they are opened, and not decoded."""
    for index in np.unique(np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int)):
        with _opened(files.path(index)) as image:
            if image.mode not in ("1", "L", "LA"):
                return False
    return True


def read_pixels(path: Path, size: int | None = None) -> np.ndarray:
    """(H, W, 1) uint8 of an image in grey, (H, W, 3) of one in colour; the square in its middle if a size is given.

    Raises:
        FileFormatError: it cannot be read.
    """
    if size is not None:
        return _resized(path, size, None, lambda width, height: (middle(width, height, 1.0), False))
    with _opened(path) as image:
        return _array(image.convert(_mode(image)))


def _mode(image: Any) -> str:
    return "L" if image.mode in ("1", "L", "LA") else "RGB"


def _array(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _resized(path: Path, size: int, mode: str | None, cut: Callable[[int, int], tuple[Box, bool]]) -> np.ndarray:
    """(size, size, C) uint8 of a part; `cut` takes width and height to where it is, and whether it is mirrored."""
    from PIL import Image

    with _opened(path) as image:
        mode, (width, height) = mode or _mode(image), image.size
        box, mirrored = cut(width, height)
        # JPEGs can be decoded at a half, a quarter or an eighth of their size: never smaller than the view needs.
        scale = min(box[2] - box[0], box[3] - box[1]) / size
        if scale >= 2:
            image.draft(mode, (math.ceil(width / scale), math.ceil(height / scale)))
        across, down = image.size[0] / width, image.size[1] / height
        left, top = box[0] * across, box[1] * down
        right, bottom = min(box[2] * across, image.size[0]), min(box[3] * down, image.size[1])  # up to rounding
        x, y = math.floor(left), math.floor(top)
        part = image.crop((x, y, math.ceil(right), math.ceil(bottom)))  # nothing of what is around gets in
        within = (left - x, top - y, right - x, bottom - y)
        view = part.convert(mode).resize((size, size), Image.Resampling.BILINEAR, box=within)
        return _array(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else view)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image, of which whatever goes wrong is told with its name; Pillow tells damage by many types."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("Pillow", "training") from error
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path} cannot be read as an image: {error}") from error
