"""Arrays of zarr, read chunk by chunk where they lie."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError, MissingPackageError
from otlabel.sources.base import as_numbers, check_shape, check_whole, storage_type
from otlabel.sources.files import FileSource, chosen
from otlabel.sources.free import check_room
from otlabel.text import printable


class ZarrSource(FileSource):
    """An (N, K) array of a folder of zarr; a chunk that is not there stands for its fill value, as zarr has it."""

    def __init__(self, path: Path, name: str) -> None:
        self._array, self.name = _find(path, name)
        self.shape = check_shape(self._array.shape, f"scores in {self.name}")
        self.dtype = storage_type(self._array.dtype, f"scores in {self.name}")
        self.least_rows = int(self._array.chunks[0])
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """The chunks that these rows are in; each is read by whom needs it."""
        stored = _read(self._array, slice(start, stop), self.name)
        check_whole(stored, f"scores in {self.name}", start)
        as_numbers(out, self.dtype)[:] = stored
        with self._lock:
            self.bytes_read += stored.nbytes


def load_zarr(path: Path, name: str) -> np.ndarray:
    """A whole array of any dimension."""
    array, place = _find(path, name)
    check_room(array.shape, array.dtype, place)
    return _read(array, ..., place)


def _find(path: Path, name: str) -> tuple[Any, str]:
    """The array asked for, or the only one there is, and what to call it."""
    try:
        import zarr
        from zarr.storage import LocalStore
    except ImportError as error:
        raise MissingPackageError("zarr 3.1 or newer", "tables") from error
    place = f"{path}::{printable(name)}" if name else str(path)
    try:
        node: Any = zarr.open(LocalStore(path, read_only=True), mode="r")
        if hasattr(node, "members"):
            arrays = {one: array for one, array in node.members(None) if hasattr(array, "shape")}
            name = chosen(path, name.strip("/"), list(arrays))
            node, place = arrays[name], f"{path}::{printable(name)}"
        elif name:
            raise FileFormatError(f"{path} holds one array and no names; leave out '::{name}'")
        described = node.metadata.to_dict()
    except FileFormatError:
        raise
    except Exception as error:  # damage may show up as nearly any of them
        raise FileFormatError(f"{path} is not a usable zarr folder: {printable(str(error))[:200]}") from error
    if any("pickle" in text.lower() for text in _texts(described)):
        raise FileFormatError(f"{place} holds pickled Python objects, which are never loaded; save plain numbers")
    return node, place


def _texts(described: Any) -> Iterator[str]:
    """All texts in what describes an array, its codecs' names among them; what people wrote about it left out."""
    if isinstance(described, dict):
        for name, value in described.items():
            if name != "attributes":
                yield from _texts(value)
    elif isinstance(described, (list, tuple)):
        for value in described:
            yield from _texts(value)
    else:
        yield str(getattr(described, "codec_id", described))


def _read(array: Any, rows: Any, place: str) -> np.ndarray:
    try:
        return np.asarray(array[rows])
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise FileFormatError(f"{place} cannot be read: {printable(str(error))[:200]}") from error
