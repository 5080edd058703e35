"""Tensors of a `.safetensors` file: a header in JSON, and after it the numbers, read where they lie."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources.base import as_float
from otlabel.sources.files import Stamp, chosen
from otlabel.sources.npy import FlatSource
from otlabel.text import printable

LONGEST_HEADER = 100_000_000  # bytes that the format allows
STORED = {f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "FIU" for bits in (16, 32, 64)}
STORED |= {"I8": "i1", "U8": "u1", "BOOL": "?", "BF16": "<i2"}  # the last as its bits


class _Found(NamedTuple):
    stamp: Stamp
    name: str
    shape: tuple[int, ...]
    stored: np.dtype
    offset: int
    dtype: str  # "bfloat16", which NumPy lacks; else empty


def open_safetensors(path: Path, name: str) -> FlatSource:
    """A matrix of the file, which is read in each pass."""
    return FlatSource(*_find(path, name))


def load_safetensors(path: Path, name: str) -> np.ndarray:
    """A whole tensor of any dimension."""
    found = _find(path, name)
    array = np.fromfile(path, found.stored, math.prod(found.shape), offset=found.offset).reshape(found.shape)
    found.stamp.check()
    return as_float(array, found.dtype) if found.dtype else array


def _find(path: Path, name: str) -> _Found:
    """A tensor, once its place is seen to be inside of the file and as large as its shape says."""
    stamp = Stamp(path)
    tensors, first = _header(path, stamp.size)
    name = chosen(path, name, list(tensors))
    kind, shape, (begin, end) = tensors[name]
    place = f"{path}::{printable(name)}"
    if kind not in STORED:
        raise FileFormatError(f"{place} holds {printable(kind)[:20]}; save it as float16, bfloat16 or float32")
    stored = np.dtype(STORED[kind])
    if math.prod(shape) * stored.itemsize != end - begin or first + end > stamp.size:
        raise FileFormatError(
            f"{place} claims to hold {kind} of shape {shape} in bytes {begin:,} to {end:,} of {stamp.size - first:,}: "
            "the file was cut short, or its header is wrong"
        )
    return _Found(stamp, place, shape, stored, first + begin, "bfloat16" if kind == "BF16" else "")


def _header(path: Path, size: int) -> tuple[dict[str, tuple[str, tuple[int, ...], tuple[int, int]]], int]:
    """Type, shape and bytes of each tensor, and where the first of these bytes is in the file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST_HEADER, size - 8):
                raise ValueError(f"its header of {length:,} bytes does not end within the {size:,} bytes of the file")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        return {name: _entry(entry) for name, entry in entries.items()}, 8 + length
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a usable .safetensors file: {printable(str(error))[:200]}") from error


def _entry(entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape {shape} and bytes {begin} to {end} describe no tensor")
    return str(entry["dtype"]), shape, (begin, end)
