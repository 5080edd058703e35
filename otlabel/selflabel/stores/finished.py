"""The finished HDF5 file of a store: written chunk by chunk, whole or not at all, and refused where it is none.

The layout, version 1:

    /features    (N, D) float16 or float32, in chunks of about 1 MiB of whole rows with checksums (fletcher32)
    attributes   format = "otlabel.features", format_version = 1, complete = True, dtype (text)
                 about: a JSON text, what the rows are of
                 texts_crc32 (uint32): of all texts among them, as JSON with sorted names
                 texts are UTF-8 of fixed length, or of variable length in files of before

Where several processes have the samples, each has a part: NAME.rank0-of-2.h5, of the same layout with

    /features_index    (n,) int64: which samples its rows are of, in rising order
    attributes         n_samples = N, of all parts
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import ExtractionError, FileFormatError
from otlabel.selflabel.stores.checks import Contents, nothing_yet
from otlabel.selflabel.stores.raw import read_at, write_at
from otlabel.sources.hdf5_guard import (
    DAMAGE,
    LIBVER,
    check_texts,
    read_attribute,
    read_attributes,
    reading_hdf5,
    write_attributes,
)
from otlabel.storage.atomic import replacing

if TYPE_CHECKING:
    import h5py

FORMAT = "otlabel.features"
FORMAT_VERSION = 1
TEXTS = ("format", "dtype", "about")
CHUNK_BYTES = 1 << 20
HDF5_HEADER_BYTES, HDF5_BYTES_A_CHUNK = 96 << 10, 256  # more than its structures take
INDEX_BYTES = 8  # of a row's number, in a part


def file_bytes(contents: Contents) -> int:
    """More than the file will take, where parts are of equal sizes."""
    step = _chunk_rows(contents, contents.n_rows)
    chunk_bytes = step * (contents.row_bytes + (INDEX_BYTES if contents.n_parts else 0)) + HDF5_BYTES_A_CHUNK
    return HDF5_HEADER_BYTES + -(-contents.n_rows // step) * chunk_bytes


def _chunk_rows(contents: Contents, n_rows: int) -> int:
    """Rows of a chunk: all are of about equal size, since each is stored in full."""
    n_chunks = -(-n_rows * contents.row_bytes // CHUNK_BYTES)
    return max(1, -(-n_rows // max(n_chunks, 1)))


def write_rows(
    path: Path, name: str, contents: Contents, kept: np.ndarray, read: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The file with the rows of the samples `kept`, which `read` gives for some of them at a time."""
    import h5py

    n_rows, step = len(kept), _chunk_rows(contents, len(kept))
    with replacing(path) as file, open(file.name, "r+b", buffering=0) as opened:
        disk = _Disk(opened.fileno())
        try:
            with h5py.File(disk, "w", libver=LIBVER) as handle:
                shape = n_rows, contents.shape[1]
                stored: dict[str, Any] = {"chunks": (step, shape[1]), "fletcher32": True} if n_rows else {}
                dataset = handle.create_dataset(name, shape, contents.dtype, **stored)
                for start in range(0, n_rows, step):
                    stop = min(start + step, n_rows)
                    dataset[start:stop] = read(kept[start:stop])
                    disk.check()
                if contents.n_parts:
                    handle.create_dataset(f"{name}_index", data=kept, **(stored and stored | {"chunks": (step,)}))
                    handle.attrs.update(n_samples=contents.shape[0])
                about = {"format": FORMAT, "format_version": FORMAT_VERSION, "dtype": contents.dtype}
                about |= {"about": json.dumps(contents.about, sort_keys=True), "complete": True}
                write_attributes(handle, about)
        finally:
            disk.check()  # says more than what HDF5 makes of it


class _Disk:
    """A file as HDF5 writes it, which keeps the first error to itself until it is asked for.

    HDF5 that meets a full disk while it closes a file can neither close it nor go on: it never hears of one.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._place = self._size = 0
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the error that came first."""
        if self._error is not None:
            raise self._error

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._place = place + (self._size if whence == os.SEEK_END else self._place if whence == os.SEEK_CUR else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if self._error is None:
            try:
                write_at(self._descriptor, view, self._place)
            except BaseException as error:  # an interrupt, too, would be lost in there
                self._error = error
        self._place += len(view)
        self._size = max(self._size, self._place)
        return len(view)

    def readinto(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        n_read = read_at(self._descriptor, view, self._place)
        view[n_read:] = bytes(len(view) - n_read)  # of what was never written
        self._place += len(view)
        return len(view)

    def read(self, n_bytes: int) -> bytes:
        content = bytearray(n_bytes)
        self.readinto(content)
        return bytes(content)

    def truncate(self, size: int) -> int:
        self._size = size
        if self._error is None:
            try:
                os.ftruncate(self._descriptor, size)
            except BaseException as error:
                self._error = error
        return size

    def flush(self) -> None:
        """Whoever opened the file flushes it."""


def check_ours(path: Path) -> None:
    """Refuse to replace a file unless a store made it, whatever its version."""
    if not os.path.lexists(path):
        return
    ours = False
    if path.is_file():
        with contextlib.suppress(FileFormatError), reading_hdf5(path) as handle:
            ours = _attribute(handle, "format") == FORMAT
    if not ours:
        raise FileFormatError(f"{path} is no file of {FORMAT} and is not replaced; remove it or write elsewhere")


@contextlib.contextmanager
def reading_finished(path: Path, under_way: Path) -> Iterator[h5py.File]:
    """The finished file, once it is seen to be one; where a file `under_way` is there, an extraction is."""
    if not path.exists():
        raise ExtractionError(nothing_yet(str(path), under_way.exists()))
    with reading_hdf5(path) as handle:
        _check_format(handle, path)
        yield handle


def _check_format(handle: h5py.File, path: Path) -> None:
    """Refuse a file unless it says that it is a finished one of a version known here."""
    if _attribute(handle, "format") != FORMAT:
        raise FileFormatError(f"{path} is no file of {FORMAT}: its attribute 'format' says otherwise, or is not there")
    version = _attribute(handle, "format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(f"{path} is of version {version}; version {FORMAT_VERSION} is read here, update otlabel")
    if _attribute(handle, "complete") is not True:
        raise FileFormatError(f"{path} was never finished; extract again")


def read_about(handle: h5py.File, path: Path) -> dict[str, str]:
    """What the rows are of, as the file says."""
    try:
        about = json.loads(_attribute(handle, "about"))
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{path} does not say what its rows are of, or that is damaged: {error}") from error
    if not isinstance(about, dict):
        raise FileFormatError(f"{path} does not say what its rows are of: 'about' is no dictionary")
    check_texts(handle, read_attributes(handle, TEXTS))
    return about


def _attribute(handle: h5py.File, name: str) -> Any:
    """A single value; None for what is not there, cannot be read or is an array."""
    try:
        value = read_attribute(handle, name)
    except DAMAGE:
        return None
    return value.item() if isinstance(value, np.generic) else None if isinstance(value, np.ndarray) else value
