"""Scores in an HDF5 file: contiguous or chunked, compressed or not, with checksums or without.

Whole chunks are read, each once a pass: what a batch leaves over of its last chunk is kept for the next batch. HDF5
does one thing at a time, so reads take turns; while one thread reads, the others compute.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources.base import as_numbers, check_shape, check_whole, storage_array, storage_type
from otlabel.sources.files import FileSource, Stamp
from otlabel.sources.free import free_memory
from otlabel.sources.hdf5_guard import (
    DAMAGE,
    about,
    check_found,
    check_stored,
    find_dataset,
    open_hdf5,
    reading_hdf5,
    told_by,
)
from otlabel.text import printable

if TYPE_CHECKING:
    import h5py

MOST_LEFTOVERS = 8  # rows of chunks kept for the next batch: one for each thread at work, as a rule
LEFTOVER_BYTES = 32 << 20  # or more of them in so much memory, for a thread that others overtake
KEEP_OPEN = "keep its file open while it is read, or pass FILE::/NAME as a text"


class HDF5Source(FileSource):
    """An (N, K) data set, named by file and path within it, or opened by the caller."""

    def __init__(self, dataset: h5py.Dataset, path: Path | None = None) -> None:
        if not dataset:
            raise FileFormatError(f"the data set was closed; {KEEP_OPEN}")
        file = Path(dataset.file.filename)
        with told_by(file):
            self.name = f"{file}::{printable(dataset.name)}"
            self._path, self._inner = path, dataset.name
        self._stamp = Stamp(file) if file.exists() else None  # an open file may have been removed, or be in memory
        with told_by(self.name):
            check_stored(dataset, self.name)
            self.shape = check_shape(dataset.shape or (), f"scores in {self.name}")
            self.dtype = storage_type(dataset.dtype, f"scores in {self.name}")
            wide = dataset.dtype.kind in "iu" and dataset.dtype.itemsize == 8  # which float64 may not hold
            # HDF5 does not turn truth values into numbers, and does not say where others are rounded.
            self._read_as = dataset.dtype.newbyteorder("=") if wide or dataset.dtype.kind == "b" else None
            self.least_rows = min(dataset.chunks[0], self.shape[0]) if dataset.chunks else 1
            self._compression = dataset.id.get_storage_size() / (dataset.size * dataset.dtype.itemsize)
        self._start_over(None if path is not None else dataset)

    def _start_over(self, dataset: h5py.Dataset | None) -> None:
        self._opened = None if dataset is None else (os.getpid(), dataset)
        self._lock = threading.Lock()
        self._leftovers: dict[int, tuple[np.ndarray, int]] = {}  # by first row: rows of chunks, how many are to come

    def __getstate__(self) -> dict[str, Any]:
        if self._path is None:
            raise TypeError(f"{self.name} was opened by the caller and cannot be sent elsewhere; pass it as a text")
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_lock", "_leftovers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_over(None)

    def close(self) -> None:
        """Forget what is left over, and close the file unless it is the caller's."""
        with self._lock:
            self._leftovers.clear()
            if self._path is not None and self._opened is not None and self._opened[0] == os.getpid():
                self._opened[1].file.close()
                self._opened = None

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """Whole chunks straight to their place, the first and the last by way of what is left over of them."""
        with self._lock:
            if self._stamp is not None:
                self._stamp.check()
            dataset, at = self._dataset(), start
            while at < stop:
                first = at - at % self.least_rows
                whole = stop - stop % self.least_rows
                if at == first and whole > at:
                    self._fetch(dataset, at, whole, out[at - start : whole - start])
                    at = whole
                else:
                    end = min(first + self.least_rows, self.shape[0])
                    rows, n_left = self._leftovers.pop(first, (None, end - first))
                    if rows is None:
                        rows = storage_array((end - first, self.shape[1]), self.dtype)
                        self._fetch(dataset, first, end, rows)
                    upto = min(stop, end)
                    out[at - start : upto - start] = rows[at - first : upto - first]
                    if n_left > upto - at:  # threads may come for the end of a chunk before its beginning
                        self._keep(first, rows, n_left - (upto - at))
                    at = upto
            if self._stamp is not None:
                self._stamp.check()  # what was read is of the file as it was opened

    def _keep(self, first: int, rows: np.ndarray, n_left: int) -> None:
        while len(self._leftovers) >= max(MOST_LEFTOVERS, LEFTOVER_BYTES // rows.nbytes):
            del self._leftovers[next(iter(self._leftovers))]
        self._leftovers[first] = rows, n_left

    def _fetch(self, dataset: h5py.Dataset, start: int, stop: int, out: np.ndarray) -> None:
        import h5py

        into = as_numbers(out, self.dtype)
        stored = into if self._read_as is None else np.empty(into.shape, self._read_as)
        # By h5py's lower layer: the upper one drops objects right after a read, and Python loses an interrupt that came
        # during the read in the callback for that. Here they live on, so that it is raised in this very function.
        room, kind = h5py.h5s.create_simple(stored.shape), h5py.h5t.py_create(stored.dtype)
        try:
            rows = dataset.id.get_space()
            rows.select_hyperslab((start, 0), stored.shape)
            dataset.id.read(room, rows, stored, kind)
        except DAMAGE as error:
            if self._stamp is not None:
                self._stamp.check()
            self._blame_chunk(dataset, start, stop, error)
        check_found(dataset, stored, start, self.name)
        if stored is not into:
            check_whole(stored, f"scores in {self.name}", start)
            into[:] = stored
        self.bytes_read += int(out.nbytes * self._compression * dataset.dtype.itemsize / into.dtype.itemsize)

    def _blame_chunk(self, dataset: h5py.Dataset, start: int, stop: int, error: Exception) -> NoReturn:
        """Find the chunk that cannot be read and name it."""
        tall, wide = dataset.chunks or (stop - start, self.shape[1])
        for row in range(start, stop, tall):
            for column in range(0, self.shape[1], wide):
                try:
                    dataset[row : min(row + tall, stop), column : column + wide]
                except DAMAGE as cause:
                    where = f"chunk ({row // tall}, {column // wide})" if dataset.chunks else "its data"
                    raise FileFormatError(
                        f"{self.name} is damaged in {where}, rows {row} to {min(row + tall, stop) - 1}: {cause}"
                    ) from cause
        raise FileFormatError(f"{self.name} cannot be read, rows {start} to {stop - 1}: {error}") from error

    def _dataset(self) -> h5py.Dataset:
        """The data set as this process has it open."""
        if self._path is not None and (self._opened is None or self._opened[0] != os.getpid()):
            handle = open_hdf5(self._path)
            with told_by(self.name):
                self._opened = os.getpid(), find_dataset(handle, self._path, self._inner)
        if self._opened is None or not self._opened[1]:
            raise FileFormatError(f"{self.name} was closed; {KEEP_OPEN}")
        return self._opened[1]


def load_dataset(path: Path, name: str) -> np.ndarray:
    """A whole data set of any dimension, for small arrays."""
    with reading_hdf5(path) as handle:
        dataset = find_dataset(handle, path, name)
        return loaded(dataset, f"{path}::{printable(dataset.name)}")


def loaded(dataset: h5py.Dataset, place: str) -> np.ndarray:
    """The same of one that is open."""
    with told_by(place):
        check_stored(dataset, place)
        if dataset.size and dataset.size * dataset.dtype.itemsize > (free := free_memory()):
            raise MemoryError(f"{place} holds {about(dataset)}, more than the {free:,} bytes of memory that are free")
        values = np.asarray(dataset[()])
        check_found(dataset, values, 0, place)
        return values


def stored_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of a data set, of which nothing is read."""
    with reading_hdf5(path) as handle:
        return tuple(find_dataset(handle, path, name).shape or ())
