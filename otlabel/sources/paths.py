"""What a text names: `FILE`, `FILE::NAME`, or a pattern such as `part-*.h5::/NAME` for several files as one.

A file may be written with ~ for the home folder, or as an address, file:///folder/FILE.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import lzma
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources import tables
from otlabel.sources.base import Source
from otlabel.sources.files import chosen
from otlabel.sources.free import check_room
from otlabel.sources.given import as_array
from otlabel.sources.hdf5 import load_dataset
from otlabel.sources.hdf5_sparse import open_hdf5_source
from otlabel.sources.memory import open_array, open_tensor
from otlabel.sources.npy import HEADER_DAMAGE, open_npy, parse_header, read_header
from otlabel.sources.opened import Opened
from otlabel.sources.parts import joined
from otlabel.sources.safetensors import load_safetensors, open_safetensors
from otlabel.sources.sparse import listed, listed_columns
from otlabel.sources.zarr_arrays import ZarrSource, load_zarr
from otlabel.text import local_path, printable

SAVED_SPARSE = {"data", "indices", "indptr", "shape", "format"}  # members of an archive by scipy.sparse.save_npz
ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".pt", ".pth", ".safetensors", *tables.ENDINGS, ".zarr")


def open_path(text: str) -> Opened:
    """The scores that a text names."""
    pattern, _, name = text.partition("::")
    parts = [_open_file(file, name) for file in matches(pattern)]
    return parts[0] if len(parts) == 1 else joined(parts, text)


def matches(pattern: str) -> list[Path]:
    """The file of that name, or all files that a pattern fits, in the order of their names and of numbers in them."""
    pattern = local_path(pattern)
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [Path(pattern)]
    found = [Path(file) for file in glob.glob(pattern)]
    if not found:
        raise FileNotFoundError(f"no file fits the pattern {pattern}")
    return sorted(found, key=_natural)


def _natural(file: Path) -> list[tuple[int, str]]:
    """part-2 before part-10, as their writer counted them."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", str(file))]


def load_array(text: str) -> np.ndarray:
    """A whole array of any dimension: labels, class masses."""
    file_text, _, name = text.partition("::")
    file = Path(local_path(file_text))
    ending = _ending(file)
    if ending == ".npy":
        _check_nameless(file, name)
        return load_npy(file)
    return as_array(_LOADERS.get(ending, load_dataset)(file, name))


def load_npy(file: Path) -> np.ndarray:
    """The array of a `.npy` file in memory; nothing is unpickled, no more taken than it has."""
    shape, _, dtype, _ = read_header(file)
    check_room(shape, dtype, str(file))
    return np.load(file, allow_pickle=False)


def _open_file(file: Path, name: str) -> Opened:
    match _ending(file):
        case ".npy":
            _check_nameless(file, name)
            return Opened.of(open_npy(file))
        case ".npz":
            return Opened.of(_open_npz(file, name))
        case ".pt" | ".pth":
            return Opened.of(open_tensor(_load_torch(file, name), f"scores in {file}"))
        case ".safetensors":
            return Opened.of(open_safetensors(file, name))
        case ".zarr":
            return Opened.of(ZarrSource(file, name))
        case ending if ending in tables.ENDINGS:
            return tables.open_table(file, name)
    return Opened.of(open_hdf5_source(file, name))


def _ending(file: Path) -> str:
    """What a file says that it is, once it is seen to exist."""
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if not file.is_file() and not file.is_dir():  # a folder is told by whoever opens it; a pipe would be waited for
        raise FileFormatError(f"{file} is no regular file; scores are read more than once")
    if file.suffix.lower() not in ENDINGS:
        raise FileFormatError(f"{file} ends in {file.suffix!r}; known endings are {', '.join(ENDINGS)}")
    return file.suffix.lower()


def _check_nameless(file: Path, name: str) -> None:
    if name:
        raise FileFormatError(f"{file} holds one array and no names; leave out '::{name}'")


def _open_npz(file: Path, name: str) -> Source:
    """One array of an archive, or the sparse matrix that SciPy saved as one."""
    with _archive(file) as (archive, members):
        if name or not SAVED_SPARSE.issubset(members):
            return open_array(_member(file, archive, members[chosen(file, name, list(members))]), f"scores in {file}")
        parts = {part: _member(file, archive, members[part]) for part in SAVED_SPARSE}
    kind, shape = parts["format"].item(), tuple(parts["shape"].tolist())
    if kind not in (b"csr", b"csc", "csr", "csc") or len(shape) != 2:
        raise FileFormatError(f"{file} holds a sparse matrix of format {kind!r}; save it as CSR: matrix.tocsr()")
    opener = listed if kind in (b"csr", "csr") else listed_columns
    return opener(parts["indptr"], parts["indices"], parts["data"], shape, f"scores in {file}")


def _load_npz(file: Path, name: str) -> np.ndarray:
    """One array of an archive."""
    with _archive(file) as (archive, members):
        return _member(file, archive, members[chosen(file, name, list(members))])


def load_archive(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a small archive."""
    with _archive(file) as (archive, members):
        return {name: _member(file, archive, member) for name, member in members.items()}


@contextlib.contextmanager
def _archive(file: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An archive and its arrays, and an error of ours for whatever is wrong in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = [one for one in archive.infolist() if one.filename.endswith(".npy")]
            yield archive, {one.filename.removesuffix(".npy"): one for one in listed}
    except FileFormatError:
        raise
    except (*HEADER_DAMAGE, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, struct.error) as error:
        if type(error) is MemoryError:
            raise
        told = printable(str(error)) or type(error).__name__
        raise FileFormatError(f"{file} is not a usable .npz file: {told}") from error


def _member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, its header checked before memory is taken for what it claims, read to the end for the checksum."""
    name = f"{file}::{printable(member.filename.removesuffix('.npy'))}"
    with archive.open(member) as stream:
        shape, _, dtype, offset = parse_header(stream, member.file_size, name)
        n_bytes = offset + math.prod(shape) * dtype.itemsize
        if n_bytes != member.file_size:
            raise FileFormatError(f"{name} is damaged: it takes {n_bytes:,} bytes, and {member.file_size:,} are there")
        check_room(shape, dtype, name)
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # the end itself: only there is the checksum looked at
        return array


def _load_torch(file: Path, name: str) -> Any:
    import torch

    loaded = load_plain(file)
    if isinstance(loaded, dict):
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise FileFormatError(f"{file} is a dict without a tensor; save one, or a dict of them, by torch.save")
        loaded = tensors[chosen(file, name, list(tensors))]
    elif name:
        raise FileFormatError(f"{file} holds one tensor and no names; leave out '::{name}'")
    if not isinstance(loaded, torch.Tensor):
        raise FileFormatError(
            f"{file} holds a {type(loaded).__name__}, not a tensor; save one, or a dict of them, by torch.save"
        )
    for what, remedy in {
        "on the device meta, without numbers": "" if loaded.device.type != "meta" else "save the one with its numbers",
        "nested": "save t.to_padded_tensor(-float('inf'))" if loaded.is_nested else "",
        "quantised": "save t.dequantize()" if loaded.is_quantized else "",
        "sparse": "save t.to_dense()" if not loaded.is_nested and loaded.layout != torch.strided else "",
    }.items():
        if remedy:
            raise FileFormatError(f"{file} holds a tensor that is {what}; {remedy}")
    return loaded


def load_plain(file: Path, device: Any = "cpu", keys: Sequence[str] = ()) -> Any:
    """What torch saved, tensors and plain values alone; with keys, a dictionary that has all of them.

    The archive's checksums, which torch does not look at, hold.

    Raises:
        FileFormatError: anything else.
    """
    import torch

    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                # torch.serialization.set_crc32_options(False) leaves all of them out.
                damaged = archive.testzip() if any(member.CRC for member in archive.infolist()) else None
            if damaged is not None:
                raise FileFormatError(f"{file} is damaged: the checksum of {printable(damaged)!r} in it does not hold")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own ways to store, which whoever reads can do nothing about
            loaded = torch.load(file, map_location=device, weights_only=True)
    except (OSError, MemoryError, FileFormatError) as error:
        if (
            isinstance(error, OSError) and error.errno == errno.EINVAL
        ):  # torch looks for what would lie before its start
            raise FileFormatError(f"{file} is damaged: it ends too early") from error
        raise
    except Exception as error:  # damage may show up as nearly any of them
        told = printable(str(error).partition("\n")[0])
        # torch advises to unpickle what was refused, which is never to be done with a stranger's file.
        pickled = "eights only" in told or "weights_only" in told
        why = "it holds more than that" if pickled else told or type(error).__name__
        raise FileFormatError(f"{file} is not a file of plain tensors: {why}") from error
    missing = [key for key in keys if not isinstance(loaded, dict) or key not in loaded]
    if missing:
        raise FileFormatError(f"{file} is a {type(loaded).__name__} without {', '.join(map(repr, missing))}")
    return loaded


_LOADERS: dict[str, Callable[[Path, str], Any]] = {
    ".npz": _load_npz,
    ".pt": _load_torch,
    ".pth": _load_torch,
    ".safetensors": load_safetensors,
    ".zarr": load_zarr,
    **dict.fromkeys(tables.ENDINGS, tables.load_table),
}
