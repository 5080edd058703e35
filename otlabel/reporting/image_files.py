"""Images as people have them: an array in a file, a folder of image files, or a text that names these line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources import load_array
from otlabel.sources.npy import read_header
from otlabel.storage.texts import read_lines
from otlabel.text import local_path
from otlabel.training.images import files_in, read_pixels

SIDE = 64  # pixels of a picture, at most


class ImageFiles(Sequence[np.ndarray]):
    """Image files as (64, 64, 3) uint8, the square in their middle, of which only those that are asked for are read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        return np.broadcast_to(read_pixels(self._files[index], SIDE), (SIDE, SIDE, 3))


def read_images(text: str) -> Any:
    """What a path leads to; an array is mapped where it can be."""
    path = Path(local_path(text))
    if path.is_dir() and path.suffix.lower() != ".zarr":
        return ImageFiles([path / name for name in files_in(path)[0]])
    if path.suffix.lower() == ".txt":
        return ImageFiles([path.parent / local_path(line) for line in read_lines(path)])
    if path.suffix.lower() != ".npy":
        return load_array(text)
    shape, _, dtype, _ = read_header(path)
    if not math.prod(shape) * dtype.itemsize or not shape:
        raise FileFormatError(f"{text} holds {dtype} of shape {shape}, no images")
    return np.load(path, mmap_mode="r", allow_pickle=False)
