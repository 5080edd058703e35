"""Scores that lie row after row in a file, as in `.npy`; by plain reads, for a mapped file that shrinks is fatal."""

from __future__ import annotations

import io
import math
import os
import threading
import tokenize
from pathlib import Path
from typing import IO, Any

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources.base import as_numbers, check_shape, check_whole, storage_type
from otlabel.sources.files import FileSource, Stamp
from otlabel.system import read_some
from otlabel.text import printable

# What NumPy makes of a header that is wrong: a Python literal, cut off, or of brackets in brackets.
HEADER_DAMAGE = (
    ValueError, EOFError, tokenize.TokenError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError,
    MemoryError,
)  # fmt: skip
LONGEST_HEADER = 10_000  # bytes that NumPy reads; the header of a matrix takes 118


class FlatSource(FileSource):
    """An (N, K) array in C order that begins at some byte of a file; bfloat16 as its int16 bits, under that name."""

    def __init__(
        self, stamp: Stamp, name: str, shape: tuple[int, ...], stored: np.dtype, offset: int, dtype: str = ""
    ) -> None:
        self.name, self._stamp, self._dtype, self._offset = name, stamp, stored, offset
        self.shape = check_shape(shape, f"scores in {name}")
        self.dtype = dtype or storage_type(stored, f"scores in {name}")
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """By positioned reads, which threads may do at the same time; opened for each, so that few files are open."""
        self._stamp.check()
        into = as_numbers(out, self.dtype)
        stored = into if into.dtype == self._dtype else np.empty(into.shape, self._dtype)
        room = stored.view(np.uint8).reshape(-1).data
        at, done = self._offset + start * self.shape[1] * self._dtype.itemsize, 0
        try:
            with open(self._stamp.path, "rb", buffering=0) as file:
                while done < len(room):
                    n_read = read_some(file.fileno(), room[done:], at + done)
                    if not n_read:
                        raise FileFormatError(f"{self.name} ended before row {stop}: it shrank while it was being read")
                    done += n_read
        except OSError as error:
            error.filename = error.filename or self.name  # a failing disk does not say which file it is about
            raise
        self._stamp.check()  # what was read is of the file as it was opened
        if stored is not into:
            check_whole(stored, f"scores in {self.name}", start)
            into[:] = stored
        with self._lock:
            self.bytes_read += done


def open_npy(path: Path) -> FlatSource:
    """A `.npy` file of any version."""
    stamp = Stamp(path)
    shape, fortran_order, dtype, offset = read_header(path)
    source = FlatSource(stamp, str(path), shape, dtype, offset)
    if fortran_order:
        raise FileFormatError(
            f"{path} holds the matrix column by column (Fortran order), so that rows cannot be read in one piece; "
            "save it by np.save(path, np.ascontiguousarray(scores)), or pass np.load(path, mmap_mode='r')"
        )
    return source


def read_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is in Fortran order, type, and where the numbers begin; all checked against the file's size."""
    with path.open("rb") as file:
        return parse_header(file, os.fstat(file.fileno()).st_size, str(path))


def parse_header(file: IO[bytes], size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """The same of anything that holds an array in this format in `size` bytes."""
    try:
        version = np.lib.format.read_magic(file)
        header = _header(file, 2 if version == (1, 0) else 4, size)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(io.BytesIO(header))
    except HEADER_DAMAGE as error:
        plain = isinstance(error, (ValueError, EOFError))  # others are of Python's parser, about what it was doing
        told = printable(str(error)) if plain else "its header is no description of an array"
        raise FileFormatError(f"{name} is not a usable .npy file: {told or type(error).__name__}") from error
    offset = file.tell()
    if not all(type(length) is int and length >= 0 for length in shape):
        raise FileFormatError(f"{name} claims to hold an array of shape {shape}, which none has: its header is wrong")
    if dtype.hasobject:
        raise FileFormatError(f"{name} holds pickled Python objects, which are never loaded; save plain numbers")
    claimed = offset + math.prod(shape) * dtype.itemsize
    if claimed > size:
        raise FileFormatError(
            f"{name} claims to hold {dtype} of shape {shape}, which takes {claimed:,} bytes, but has {size:,}: it was "
            "cut short, or its header is wrong"
        )
    return tuple(shape), fortran_order, dtype, offset


def _header(file: IO[bytes], width: int, size: int) -> bytes:
    """What follows the magic string: a length of so many bytes, and a header that is no longer than it may be."""
    head = file.read(width)
    length = int.from_bytes(head, "little")
    if len(head) < width or file.tell() + length > size:
        raise ValueError(f"its header of {length:,} bytes does not end within the {size:,} bytes of the file")
    if length > LONGEST_HEADER:
        raise ValueError(
            f"its header takes {length:,} bytes, and that of an array of numbers at most {LONGEST_HEADER:,}"
        )
    return head + file.read(length)
