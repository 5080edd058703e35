"""What looks at an HDF5 file before libhdf5 may trust it: indices of chunks, heaps of texts, links, attributes.

Whatever reads or writes HDF5 opens its files and finds its data sets here, and names damage in the same words.
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
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, InvalidScoresError, OtlabelError
from otlabel.text import printable

if TYPE_CHECKING:
    import h5py

LARGEST_CHUNK = 1 << 30  # bytes of a row of chunks: each thread holds one in memory
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


def read_attribute(handle: h5py.Group, name: str) -> Any:
    """One attribute of a file or a group: numbers as h5py gives them, a text as str."""
    import h5py

    kind = h5py.h5a.open(handle.id, name.encode()).get_type()
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():  # of before
        with _Watched(handle.file.filename) as file, h5py.File(file, "r") as watched:
            value = watched[handle.name].attrs[name]
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
    """The data set of that name, or the only one."""
    import h5py

    if not name:
        found = _datasets(handle)
        if len(found) != 1:
            remedy = "; name one as FILE::/NAME" if found else ""
            raise FileFormatError(f"{path} holds {_listed(found)}{remedy}")
        name = found[0].name
    node = find_node(handle, path, name)
    if not isinstance(node, h5py.Dataset):
        raise FileFormatError(f"{path}::{name} is no data set. The file holds: {_listed(_datasets(handle))}")
    return node


def find_node(handle: h5py.File, path: Path, name: str) -> h5py.Dataset | h5py.Group:
    """What has that name, found without following any link out of the file or around in it."""
    import h5py

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
    names = [f"{printable(dataset.name)} {about(dataset)}" for dataset in datasets[:LISTED]]
    more = [f"and {len(datasets) - LISTED} more"] if len(datasets) > LISTED else []
    return ", ".join(names + more) or "no data set at all"


def about(dataset: h5py.Dataset) -> str:
    """Shape and type, for people."""
    if dataset.is_virtual or dataset.external:
        return "in other files"  # even to ask for its shape may open these
    return f"{dataset.shape} {_type_of(dataset) or 'of unknown type'}"
