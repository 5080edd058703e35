"""Results in one .npz file: named arrays, and a header of numbers and texts as JSON. Nothing is ever pickled."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources.paths import load_archive
from otlabel.storage.atomic import replacing
from otlabel.storage.texts import check_format

DAMAGED = (  # what a damaged archive may raise, by where the damage is
    zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, TypeError, AttributeError, RuntimeError,
    OverflowError,
)  # fmt: skip


def save_archive(
    path: str | os.PathLike[str], name: str, version: int, header: Mapping[str, Any], arrays: dict[str, Any]
) -> None:
    """Write a file that is whole or absent, of the format `name`."""
    text = json.dumps({"format": name, "version": version, **header})
    with replacing(path) as file:  # numbers and a text, never pickled; NumPy 1 would store allow_pickle as an array
        np.savez(file, header=np.array(text), **arrays)


@contextlib.contextmanager
def reading_archive(
    path: str | os.PathLike[str], name: str, version: int
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The header and all arrays of such a file; what the body finds wrong in them is FileFormatError."""
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # of other files NumPy says how to unpickle them
                raise ValueError("it is no .npz archive, or is cut off")
        arrays = load_archive(Path(path))
        header = json.loads(str(arrays.pop("header")))
        check_format((header.pop("format"), header.pop("version")), name, version)
        yield header, arrays
    except DAMAGED as error:
        told = "it holds pickled objects, which are never loaded" if "pickled" in str(error) else error
        raise FileFormatError(f"{path} is not a saved {name.removeprefix('otlabel.')}: {told}") from error
