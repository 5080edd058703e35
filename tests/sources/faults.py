"""Ways to break files, and the errors that tell of it."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from kept_as import hdf5_file

from otlabel.errors import FileFormatError, InvalidScoresError

MOST_SECONDS, MOST_BYTES = 1.0, 8 << 20  # that a refusal may take


def with_bytes(name: str, change: Callable[[bytes], bytes] = bytes) -> Callable[[Path, np.ndarray], str]:
    """A file of that ending, well made, then changed."""

    def make(folder: Path, array: np.ndarray) -> str:
        path = folder / name
        if path.suffix == ".npy":
            np.save(path, array)
        elif path.suffix == ".npz":
            np.savez_compressed(path, scores=array)
        elif path.suffix == ".pt":
            torch.save(torch.from_numpy(array), path)
        else:
            with h5py.File(path, "w") as handle:
                handle["scores"] = array
        path.write_bytes(change(path.read_bytes()))
        return str(path)

    return make


def in_hdf5(fill: Callable[[h5py.File], Any], inner: str = "::/x") -> Callable[[Path, np.ndarray], str]:
    """An HDF5 file that a function fills."""

    def make(folder: Path, _: np.ndarray) -> str:
        with h5py.File(folder / "scores.h5", "w") as handle:
            fill(handle)
        return f"{folder / 'scores.h5'}{inner}"

    return make


def npy_header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue()


def member(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


def stored(value: Any) -> bytes:
    image = io.BytesIO()
    torch.save(value, image)
    return image.getvalue()


def saved(array: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    """Garbage in the middle."""
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 16 + content[middle + 16 :]


def partly_written(handle: h5py.File) -> None:
    data = handle.create_dataset("x", (100, 6), "f4", chunks=(10, 3))
    data[:70] = 1.0


def compressed(shape: tuple[int, int], chunks: tuple[int, int]) -> Callable[[h5py.File], None]:
    """A small file whose chunks are large once they are read."""

    def fill(handle: h5py.File) -> None:
        data = handle.create_dataset("x", shape, "f4", maxshape=(None, None), chunks=chunks, compression="gzip")
        for column in range(0, shape[1], chunks[1]):
            data.id.write_direct_chunk((0, column), zlib.compress(b"0"))

    return fill


def behind_unknown_filter(handle: h5py.File) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((3, 4))
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    data = h5py.h5d.create(handle.id, b"x", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((6, 4)), settings)
    for row in (0, 3):
        data.write_direct_chunk((row, 0), bytes(96))


def virtual(handle: h5py.File) -> None:
    layout = h5py.VirtualLayout((10, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (10, 3))
    handle.create_virtual_dataset("x", layout)


def growing_virtual(handle: h5py.File) -> None:
    """Its shape is asked of the other file."""
    layout = h5py.VirtualLayout((10, 3), "f8", maxshape=(None, 3))
    source = h5py.VirtualSource("other.h5", "x", (10, 3), maxshape=(None, 3))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    handle.create_virtual_dataset("x", layout)


def of_type(kind: Any) -> Callable[[h5py.File], Any]:
    return lambda handle: handle.create_dataset("x", (3, 2), dtype=kind)


def of_time(handle: h5py.File) -> None:
    h5py.h5d.create(handle.id, b"x", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4, 3)))


def linked(handle: h5py.File, name: str, link: Any) -> None:
    handle["group/y"] = np.zeros((3, 2))
    handle[name] = link


def shards(*kinds: tuple[int, str]) -> Callable[[Path, np.ndarray], str]:
    def make(folder: Path, _: np.ndarray) -> str:
        for number, (n_classes, kind) in enumerate(kinds):
            hdf5_file(folder / f"part-{number}", np.zeros((4, n_classes), kind))
        return f"{folder}/part-*.h5::/deep/scores"

    return make


def folder_named(name: str) -> Callable[[Path, np.ndarray], str]:
    def make(folder: Path, _: np.ndarray) -> str:
        (folder / name).mkdir()
        return str(folder / name)

    return make


def at(text: str) -> Callable[[Path, np.ndarray], str]:
    return lambda folder, _: f"{folder}/{text}"


HUGE = (10**12, 10**6)
FORMAT, SCORES = FileFormatError, InvalidScoresError


class Once:
    """A function for `progress` that does something after the first pass."""

    def __init__(self, change: Callable[[], Any]) -> None:
        self.change, self.n_calls = change, 0

    def __call__(self, _: dict[str, Any]) -> None:
        self.n_calls += 1
        if self.n_calls == 1:
            self.change()
