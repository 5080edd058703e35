"""Scores in an HDF5 file: contiguous or chunked, compressed or not, with checksums or without.

Whole chunks are read, each once a pass: what a batch leaves over of its last chunk is kept for the next batch. HDF5
does one thing at a time, so reads take turns; while one thread reads, the others compute.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import math
import os
import re
import struct
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from otlabel.errors import FileFormatError, InvalidScoresError, OtlabelError
from otlabel.sources.base import as_numbers, check_shape, check_whole, storage_array, storage_type
from otlabel.sources.files import FileSource, Stamp
from otlabel.sources.free import free_memory
from otlabel.text import printable

if TYPE_CHECKING:
    import h5py

LARGEST_CHUNK = 1 << 30  # bytes of a row of chunks: each thread holds one in memory
MOST_LEFTOVERS = 8  # rows of chunks kept for the next batch: one for each thread at work, as a rule
LEFTOVER_BYTES = 32 << 20  # or more of them in so much memory, for a thread that others overtake
LISTED = 20  # data sets that an error names
MOST_LOOKED_AT = 10_000  # groups and data sets of a file that are looked at to list them
DEEPEST = 100  # groups in one another; HDF5 takes a time that grows as the square of it
# What is written: structures with checksums (the oldest format has none), as every HDF5 from 1.10 on reads them.
LIBVER = ("v110", "latest")
TEXTS_SUM = "texts_crc32"  # attribute with a checksum of the other ones that are texts, which old files lack
SHUFFLE, FLETCHER32, SUM_BYTES = 2, 3, 4  # HDF5's numbers of filters that change no sizes, or by the checksum alone
LARGEST_NUMBER = (1 << 63) - 1
HEAP, HEAP_HEAD = re.compile(rb"GCOL\x01"), 16  # how a heap of texts begins; bytes before its objects, and each of them
HEAP_OBJECT = struct.Struct("<HH4xQ")  # number, references, bytes
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


def open_hdf5_source(path: Path, name: str) -> HDF5Source:
    """The data set of a file; no name will do where there is only one."""
    with reading_hdf5(path) as handle:
        return HDF5Source(find_dataset(handle, path, name), path)


def load_dataset(path: Path, name: str) -> np.ndarray:
    """A whole data set of any dimension, for small arrays."""
    with reading_hdf5(path) as handle:
        dataset = find_dataset(handle, path, name)
        place = f"{path}::{printable(dataset.name)}"
        with told_by(place):
            check_stored(dataset, place)
            if dataset.size and dataset.size * dataset.dtype.itemsize > (free := free_memory()):
                raise MemoryError(
                    f"{place} holds {_about(dataset)}, more than the {free:,} bytes of memory that are free"
                )
            values = np.asarray(dataset[()])
            check_found(dataset, values, 0, place)
            return values


def stored_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of a data set, of which nothing is read."""
    with reading_hdf5(path) as handle:
        return tuple(find_dataset(handle, path, name).shape or ())


# What h5py makes of what libhdf5 says of a damaged file.
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, SystemError, OverflowError)


@contextlib.contextmanager
def told_by(name: str | Path) -> Iterator[None]:
    """Whatever h5py raises while it reads is an error about that file or data set, and so says."""
    try:
        yield
    except OtlabelError:
        raise
    except DAMAGE as error:
        raise FileFormatError(f"{name} is damaged: {said(error)}") from error


def said(error: Exception) -> str:
    """What an error says, in one line; a KeyError puts it into quotes."""
    return printable(str(error.args[0] if isinstance(error, KeyError) and error.args else error))


def write_attributes(handle: h5py.File, about: Mapping[str, Any]) -> None:
    """Attributes of the file, texts in the room of the attribute itself, and a checksum of them.

    Texts of variable length would lie in a heap without checksums, in which HDF5, once it is damaged, has no end.
    """
    import h5py

    for name, value in about.items():
        if isinstance(value, str):
            text = value.encode(errors="surrogateescape")
            handle.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(len(text), 1)))
        else:
            handle.attrs[name] = value
    handle.attrs[TEXTS_SUM] = np.uint32(_texts_sum(about))


def read_attributes(handle: h5py.File, names: Iterable[str]) -> dict[str, Any]:
    """Those attributes that are there, as `write_attributes` wrote them; no other is looked at."""
    return {name: read_attribute(handle, name) for name in names if name in handle.attrs}


def check_texts(handle: h5py.File, about: Mapping[str, Any]) -> None:
    """Refuse a file whose texts, all among these attributes, are not those written; old ones have no sum of them."""
    if TEXTS_SUM in handle.attrs and read_attribute(handle, TEXTS_SUM) != _texts_sum(about):
        raise FileFormatError(
            f"{handle.filename} is damaged: the texts among its attributes are not those that were written"
        )


def read_attribute(handle: h5py.File, name: str) -> Any:
    """One attribute: numbers as h5py gives them, a text as str."""
    import h5py

    kind = h5py.h5a.open(handle.id, name.encode()).get_type()
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():  # of before
        with _Watched(handle.filename) as file, h5py.File(file, "r") as watched:
            value = watched.attrs[name]
    elif not isinstance(kind, (h5py.h5t.TypeStringID, h5py.h5t.TypeAtomicID, h5py.h5t.TypeEnumID)):
        raise ValueError(f"its attribute {name!r} is neither a number nor a text")
    else:
        value = handle.attrs[name]
    if isinstance(value, np.ndarray):
        raise ValueError(f"its attribute {name!r} is an array of shape {value.shape}, not one number or text")
    if isinstance(value, h5py.Empty):
        raise ValueError(f"its attribute {name!r} is empty")
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def check_complete(about: Mapping[str, Any]) -> None:
    """Refuse a file that does not say of itself that it was written to its end."""
    complete = about.get("complete", False)
    if not isinstance(complete, (bool, np.bool_)):
        raise ValueError(f"its attribute 'complete' is {printable(repr(complete))[:80]}, neither true nor false")
    if not complete:
        raise ValueError("it was never finished")


def _texts_sum(attributes: Mapping[str, Any]) -> int:
    """CRC-32 of the texts among attributes: written as TEXTS_SUM."""
    texts = {name: value for name, value in attributes.items() if isinstance(value, str)}
    return zlib.crc32(json.dumps(texts, sort_keys=True).encode())


class _Watched(io.FileIO):
    """A file whose heaps of texts of variable length are looked through on their way to HDF5.

    HDF5 goes from object to object by the sizes that are told there, and never ends at one of size 0.
    """

    def readinto(self, content: Any) -> int:
        """As that of the file."""
        place = self.tell()
        n_read = super().readinto(content) or 0
        for found in HEAP.finditer(memoryview(content)[:n_read]):
            self._check_heap(place + found.start())
        return n_read

    def _check_heap(self, place: int) -> None:
        size = int.from_bytes(os.pread(self.fileno(), 8, place + 8), "little")
        heap = os.pread(self.fileno(), min(size, os.fstat(self.fileno()).st_size - place), place)
        at, whole = HEAP_HEAD, len(heap) == size
        while whole and at + HEAP_HEAD <= size:
            index, _, n_bytes = HEAP_OBJECT.unpack_from(heap, at)
            step = HEAP_HEAD + -(-n_bytes // 8) * 8 if index else n_bytes  # object 0 is the room that is left
            whole = HEAP_HEAD <= step <= size - at
            at += step
        if not whole:
            raise FileFormatError(f"{self.name} is damaged: its heap of texts at byte {place:,} is not whole")


@contextlib.contextmanager
def reading_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file while it is read; all that h5py raises by then is about the file."""
    with open_hdf5(path) as handle, told_by(path):
        yield handle


def open_hdf5(path: Path) -> h5py.File:
    """The file, for reading."""
    import h5py

    with path.open("rb"):  # tells what is wrong with a path better than HDF5 does
        pass
    try:
        return h5py.File(path, "r")
    except DAMAGE as error:
        if isinstance(error, BlockingIOError) or "unable to lock file" in str(error):
            raise FileFormatError(
                f"{path} is open for writing elsewhere (it is locked): wait until it is closed there, or copy it"
            ) from error
        if "already open for write" in str(error):
            raise FileFormatError(
                f"{path} is open for writing elsewhere, or was never closed by what wrote it: write it anew, or clear "
                "its flags by h5clear -s if it is known to be whole"
            ) from error
        raise FileFormatError(f"{path} is not a readable HDF5 file: {said(error)}") from error


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
    n_bytes, room = dataset.size * dataset.dtype.itemsize, LARGEST_NUMBER
    if dataset.file.mode == "r":  # a caller's file that is being written may not have grown to its size yet
        room = dataset.file.id.get_filesize()
    if dataset.chunks:
        wanted = math.prod(-(-length // step) for length, step in zip(dataset.shape, dataset.chunks, strict=True))
        stored = _count_chunks(dataset, wanted, room)
        missing = f"{stored:,} of its {wanted:,} chunks are there" if stored < wanted else ""
    else:
        wanted, stored, at = n_bytes, dataset.id.get_storage_size(), dataset.id.get_offset()
        missing = f"{stored:,} of its {wanted:,} bytes are there" if stored < wanted else ""
        if not missing and at is not None and at + wanted > room:
            raise FileFormatError(
                f"{name} is damaged: its {wanted:,} bytes are said to begin at {at:,}, in a file of {room:,} bytes"
            )
    if missing:
        raise FileFormatError(f"{name} claims the shape {dataset.shape}, but only {missing}: it was never finished")
    if dataset.chunks:
        _check_chunks(dataset, name, wanted, room)


def check_found(dataset: h5py.Dataset, values: np.ndarray, start: int, name: str) -> None:
    """Refuse fill values in place of a chunk that is there, but that an index of damaged keys does not lead to.

    values are what was read of the rows from `start`, where a chunk begins. HDF5 takes such a chunk for one that was
    never written, and says nothing.
    """
    if not dataset.chunks or not values.size or values.dtype.kind not in "fiub":
        return
    fill = np.asarray(dataset.fillvalue)
    corners = values[tuple(slice(None, None, step) for step in dataset.chunks)]
    for place in np.argwhere(_same(corners, fill)).tolist():
        first = [at * step for at, step in zip(place, dataset.chunks, strict=True)]
        chunk = tuple(slice(at, at + step) for at, step in zip(first, dataset.chunks, strict=True))
        if _same(values[chunk], fill).all():
            first[0] += start
            with contextlib.suppress(*DAMAGE):
                dataset.id.read_direct_chunk(tuple(first))
                continue
            at = tuple(at // step for at, step in zip(first, dataset.chunks, strict=True))
            raise FileFormatError(f"{name} is damaged: its index of chunks does not lead to chunk {at}, which is there")


def _same(values: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Where values are the one they are filled with, which may be NaN."""
    if fill.dtype.kind == "f" and np.isnan(fill):
        return np.isnan(values)
    with np.errstate(over="ignore"):
        return values == fill.astype(values.dtype)


def _count_chunks(dataset: h5py.Dataset, wanted: int, room: int) -> int:
    """Chunks that are there; where they are all said to lie in one piece, a claim that HDF5 would count one by one."""
    import h5py

    properties = dataset.id.get_create_plist()
    fit = room // (math.prod(dataset.chunks) * dataset.dtype.itemsize)
    in_one_piece = properties.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY and not properties.get_nfilters()
    return fit if in_one_piece and fit < wanted else dataset.id.get_num_chunks()


def _check_chunks(dataset: h5py.Dataset, name: str, wanted: int, room: int) -> None:
    """Refuse chunks too large to be read whole, filters that are not here, and chunks that lie where none can be."""
    row_of_chunks = min(dataset.chunks[0], dataset.shape[0]) * math.prod(dataset.shape[1:])
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if max(row_of_chunks * dataset.dtype.itemsize, chunk_bytes) > LARGEST_CHUNK:
        raise FileFormatError(
            f"{name} is stored in chunks of {dataset.chunks}, of which a row takes more than "
            f"{LARGEST_CHUNK >> 30} GiB of memory; store it in chunks of about 1 MiB"
        )
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    found = _chunk_table(dataset)
    firsts, masks, begin, size = found[:, :-3], found[:, -3], found[:, -2], found[:, -1]
    for number, (code, *_, label) in enumerate(filters):
        if not (masks >> number & 1).all():
            _check_filter(code, label, name)
    _check_grid(dataset, name, firsts, wanted)

    def blame(wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            first = int(wrong.argmax())
            at = tuple(int(one) // step for one, step in zip(firsts[first], dataset.chunks, strict=True))
            raise FileFormatError(
                f"{name} is damaged: chunk {at} is said to have {size[first]:,} bytes from {begin[first]:,} on, {what}"
            )

    blame((begin < 0) | (size <= 0) | (begin > room - size), f"in a file of {room:,} bytes")
    codes = np.array([code for code, *_ in filters], int)
    used = ~masks[:, None] >> np.arange(len(codes)) & 1 == 1  # (chunks, filters)
    sums = SUM_BYTES * (used & (codes == FLETCHER32)).sum(1)
    compressed = (used & (codes != FLETCHER32) & (codes != SHUFFLE)).any(1)
    edge = (firsts + dataset.chunks > dataset.shape).any(1)  # may be stored without filters
    fits = (size == chunk_bytes + sums) | (compressed & (size > sums)) | (edge & (size == chunk_bytes))
    blame(~fits, f"but takes {chunk_bytes:,} before its filters")
    order = np.argsort(begin, kind="stable")
    overlap = np.zeros(len(found), bool)
    overlap[order[1:]] = begin[order[1:]] < (begin + size)[order[:-1]]
    blame(overlap, "where another one lies")


def _check_grid(dataset: h5py.Dataset, name: str, firsts: np.ndarray, wanted: int) -> None:
    """Refuse chunks that begin where none does, or twice at one place, so that rows would lack theirs."""
    inside = (firsts < dataset.shape).all(1)
    grid = [-(-length // step) for length, step in zip(dataset.shape, dataset.chunks, strict=True)]
    n_found = len(np.unique(np.ravel_multi_index(tuple((firsts[inside] // dataset.chunks).T), grid)))
    if (firsts[inside] % dataset.chunks).any() or n_found < wanted:
        raise FileFormatError(
            f"{name} is damaged: {wanted:,} chunks are needed, and its index has {n_found:,} at places of their own"
        )


def _chunk_table(dataset: h5py.Dataset) -> np.ndarray:
    """(chunks, dimensions + 3) whole numbers: where a chunk begins in the array, filters left out, offset, size."""
    flat = array("q")

    def add(chunk: Any) -> None:
        flat.extend(chunk.chunk_offset)
        begin = -1 if chunk.byte_offset is None else chunk.byte_offset
        flat.extend((chunk.filter_mask, min(begin, LARGEST_NUMBER), min(chunk.size, LARGEST_NUMBER)))

    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(add)
    else:  # HDF5 older than 1.10.10, which takes n steps to find the nth
        for number in range(dataset.id.get_num_chunks()):
            add(dataset.id.get_chunk_info(number))
    return np.frombuffer(flat, np.int64).reshape(-1, dataset.ndim + 3)


def _check_filter(code: int, label: bytes, name: str) -> None:
    """Refuse compression that the HDF5 library here cannot undo, with or without the package that has most."""
    import h5py

    if not h5py.h5z.filter_avail(code):
        with contextlib.suppress(ImportError):
            importlib.import_module("hdf5plugin")  # which tells HDF5 of its filters
    if not h5py.h5z.filter_avail(code):
        called = f"{code} ({printable(label.decode(errors='replace'))})" if label else f"{code}"
        raise FileFormatError(
            f"{name} is stored through the HDF5 filter {called}, which is not installed here: pip install hdf5plugin "
            "(it has most, and is used where it is there), or store it with gzip"
        )


def _type_of(dataset: h5py.Dataset) -> np.dtype | None:
    """The type, if NumPy has it."""
    try:
        return dataset.dtype
    except TypeError:
        return None


def _datasets(handle: h5py.File) -> list[h5py.Dataset]:
    """The first data sets, by hard links alone and none twice, of a file that may be made to keep us busy."""
    import h5py

    found: list[h5py.Dataset] = []
    seen: set[int] = set()

    def walk(group: h5py.Group, depth: int) -> None:
        for name in itertools.islice(group, MOST_LOOKED_AT):
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            node = group[name]
            place = h5py.h5o.get_info(node.id).addr
            if place in seen or len(seen) >= MOST_LOOKED_AT:
                continue
            seen.add(place)
            if isinstance(node, h5py.Dataset):
                found.append(node)
            elif isinstance(node, h5py.Group) and depth < DEEPEST:
                walk(node, depth + 1)

    walk(handle["/"], 0)
    return found


def _listed(datasets: list[h5py.Dataset]) -> str:
    names = [f"{printable(dataset.name)} {_about(dataset)}" for dataset in datasets[:LISTED]]
    more = [f"and {len(datasets) - LISTED} more"] if len(datasets) > LISTED else []
    return ", ".join(names + more) or "no data set at all"


def _about(dataset: h5py.Dataset) -> str:
    if dataset.is_virtual or dataset.external:
        return "in other files"  # even to ask for its shape may open these
    return f"{dataset.shape} {_type_of(dataset) or 'of unknown type'}"
