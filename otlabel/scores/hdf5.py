"""Scores in an HDF5 file: contiguous or chunked, compressed or not, with checksums or without.

Whole chunks are read, each once a pass: what a batch leaves over of its last chunk is kept for the next batch. HDF5
does one thing at a time, so reads take turns; while one thread reads, the others compute.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from otlabel.errors import FileFormatError, InvalidScoresError
from otlabel.scores.base import as_numbers, check_shape, storage_array, storage_type
from otlabel.scores.files import Stamp, StoredScores

if TYPE_CHECKING:
    import h5py

LARGEST_CHUNK = 1 << 30  # bytes of a row of chunks: each thread holds one in memory
MOST_LEFTOVERS = 8  # rows of chunks kept for the next batch: one for each thread at work, as a rule
LEFTOVER_BYTES = 32 << 20  # or more of them in so much memory, for a thread that others overtake
LISTED = 20  # data sets that an error names
KEEP_OPEN = "keep its file open while it is read, or pass FILE::/NAME as a text"


class HDF5Scores(StoredScores):
    """An (N, K) data set, named by file and path within it, or opened by the caller."""

    def __init__(self, dataset: h5py.Dataset, path: Path | None = None) -> None:
        if not dataset:
            raise FileFormatError(f"the data set was closed; {KEEP_OPEN}")
        file = Path(dataset.file.filename)
        self.name = f"{file}::{dataset.name}"
        self._path, self._inner = path, dataset.name
        self._stamp = Stamp(file) if file.exists() else None  # an open file may have been removed, or be in memory
        check_stored(dataset, self.name)
        self.shape = check_shape(dataset.shape or (), f"scores in {self.name}")
        self.dtype = storage_type(dataset.dtype, f"scores in {self.name}")
        self._converted = dataset.dtype.kind == "b"  # which HDF5 does not turn into numbers
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

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What is left over is of use within a pass only."""
        self._forget()
        try:
            yield
        finally:
            self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._leftovers.clear()

    def close(self) -> None:
        """Close the file unless it is the caller's."""
        with self._lock:
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
        stored = np.empty(into.shape, bool) if self._converted else into
        # By h5py's lower layer: the upper one drops objects right after a read, and Python loses an interrupt that came
        # during the read in the callback for that. Here they live on, so that it is raised in this very function.
        room, kind = h5py.h5s.create_simple(stored.shape), h5py.h5t.py_create(stored.dtype)
        rows = dataset.id.get_space()
        rows.select_hyperslab((start, 0), stored.shape)
        try:
            dataset.id.read(room, rows, stored, kind)
            if stored is not into:
                into[:] = stored
        except OSError as error:
            if self._stamp is not None:
                self._stamp.check()
            self._blame_chunk(dataset, start, stop, error)
        self.bytes_read += int(out.nbytes * self._compression * dataset.dtype.itemsize / into.dtype.itemsize)

    def _blame_chunk(self, dataset: h5py.Dataset, start: int, stop: int, error: OSError) -> NoReturn:
        """Find the chunk that cannot be read and name it."""
        tall, wide = dataset.chunks or (stop - start, self.shape[1])
        for row in range(start, stop, tall):
            for column in range(0, self.shape[1], wide):
                try:
                    dataset[row : min(row + tall, stop), column : column + wide]
                except OSError as cause:
                    where = f"chunk ({row // tall}, {column // wide})" if dataset.chunks else "its data"
                    raise FileFormatError(
                        f"{self.name} is damaged in {where}, rows {row} to {min(row + tall, stop) - 1}: {cause}"
                    ) from cause
        raise FileFormatError(f"{self.name} cannot be read, rows {start} to {stop - 1}: {error}") from error

    def _dataset(self) -> h5py.Dataset:
        """The data set as this process has it open."""
        if self._path is not None and (self._opened is None or self._opened[0] != os.getpid()):
            self._opened = os.getpid(), find_dataset(open_hdf5(self._path), self._path, self._inner)
        if self._opened is None or not self._opened[1]:
            raise FileFormatError(f"{self.name} was closed; {KEEP_OPEN}")
        return self._opened[1]


def open_hdf5_scores(path: Path, name: str) -> HDF5Scores:
    """The data set of a file; no name will do where there is only one."""
    with open_hdf5(path) as handle:
        return HDF5Scores(find_dataset(handle, path, name), path)


def load_dataset(path: Path, name: str) -> np.ndarray:
    """A whole data set of any dimension, for small arrays."""
    with open_hdf5(path) as handle:
        dataset = find_dataset(handle, path, name)
        check_stored(dataset, f"{path}::{dataset.name}")
        try:
            return np.asarray(dataset[()])
        except OSError as error:
            raise FileFormatError(f"{path}::{dataset.name} is damaged: {error}") from error


def open_hdf5(path: Path) -> h5py.File:
    """The file, for reading."""
    import h5py

    with path.open("rb"):  # tells what is wrong with a path better than HDF5 does
        pass
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FileFormatError(f"{path} is not a readable HDF5 file: {error}") from error


def find_dataset(handle: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """The data set of that name, found without following any link out of the file or around in it."""
    import h5py

    if not name:
        found = _datasets(handle)
        if len(found) != 1:
            remedy = "; name one as FILE::/NAME" if found else ""
            raise FileFormatError(f"{path} holds {_listed(found)}{remedy}")
        name = found[0].name
    node: Any = handle
    for part in name.split("/"):
        if part in ("", "."):
            continue
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            raise FileFormatError(
                f"{path} has {kind} link at {part!r} of {name!r}, to {link.path!r}; links are not followed, name the "
                "data set itself"
            )
        if link is None:
            raise FileFormatError(f"{path} holds no {name!r}. It holds: {_listed(_datasets(handle))}")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise FileFormatError(f"{path}::{name} is no data set. The file holds: {_listed(_datasets(handle))}")
    return node


def check_stored(dataset: h5py.Dataset, name: str) -> None:
    """Refuse what lies in other files, and shapes that the file does not hold the numbers for."""
    if dataset.is_virtual or dataset.external:
        raise FileFormatError(f"{name} lies in other files, which are not followed; name those files themselves")
    if dataset.shape is None or not dataset.size:
        return  # the shape itself is refused where a matrix is wanted
    if _type_of(dataset) is None or dataset.dtype.kind == "O":
        raise InvalidScoresError(f"{name} has dtype {_type_of(dataset) or 'unknown'}; numbers are needed")
    if dataset.chunks:
        wanted = math.prod(-(-length // step) for length, step in zip(dataset.shape, dataset.chunks, strict=True))
        stored = dataset.id.get_num_chunks()
        missing = f"{stored:,} of its {wanted:,} chunks are there" if stored < wanted else ""
    else:
        wanted, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
        missing = f"{stored:,} of its {wanted:,} bytes are there" if stored < wanted else ""
    if missing:
        raise FileFormatError(f"{name} claims the shape {dataset.shape}, but only {missing}: it was never finished")
    if dataset.chunks:
        _check_chunks(dataset, name)


def _check_chunks(dataset: h5py.Dataset, name: str) -> None:
    """Refuse chunks too large to be read whole, and compression that the HDF5 library here cannot undo."""
    import h5py

    row_of_chunks = min(dataset.chunks[0], dataset.shape[0]) * math.prod(dataset.shape[1:])
    if max(row_of_chunks, math.prod(dataset.chunks)) * dataset.dtype.itemsize > LARGEST_CHUNK:
        raise FileFormatError(
            f"{name} is stored in chunks of {dataset.chunks}, of which a row takes more than "
            f"{LARGEST_CHUNK >> 30} GiB of memory; store it in chunks of about 1 MiB"
        )
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, *_, label = properties.get_filter(number)
        if not h5py.h5z.filter_avail(code) and not dataset.id.get_chunk_info(0).filter_mask >> number & 1:
            called = f"{code} ({label.decode(errors='replace')})" if label else f"{code}"
            raise FileFormatError(
                f"{name} is stored through the HDF5 filter {called}, which is not installed here; import the package "
                "that brings it (hdf5plugin has most) before, or store it with gzip"
            )


def _type_of(dataset: h5py.Dataset) -> np.dtype | None:
    """The type, if NumPy has it."""
    try:
        return dataset.dtype
    except TypeError:
        return None


def _datasets(handle: h5py.File) -> list[h5py.Dataset]:
    """All data sets; `visititems` follows no links."""
    import h5py

    found: list[h5py.Dataset] = []
    handle.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def _listed(datasets: list[h5py.Dataset]) -> str:
    names = [f"{dataset.name} {_about(dataset)}" for dataset in datasets[:LISTED]]
    more = [f"and {len(datasets) - LISTED} more"] if len(datasets) > LISTED else []
    return ", ".join(names + more) or "no data set at all"


def _about(dataset: h5py.Dataset) -> str:
    if dataset.is_virtual or dataset.external:
        return "in other files"  # even to ask for its shape may open these
    return f"{dataset.shape} {_type_of(dataset) or 'of unknown type'}"
