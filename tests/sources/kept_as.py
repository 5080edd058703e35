"""The ways to store a matrix, and what must not depend on them."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from otlabel import Assignment
from otlabel.sources import Opened, as_float, files, linear, read_rows
from otlabel.sweep import blocks

Way = Callable[[Path, np.ndarray], Any]


def set_pieces(
    patch: pytest.MonkeyPatch, block_entries: tuple[int, int], batch_bytes: int, feature_bytes: int = 600
) -> None:
    """Blocks and batches of such sizes, so that small matrices have many of them."""
    patch.setattr(blocks, "BLOCK_ENTRIES", block_entries)
    patch.setattr(files, "BATCH_BYTES", batch_bytes)
    patch.setattr(linear, "FEATURE_BYTES", feature_bytes)


def npy(file: Path, array: np.ndarray) -> str:
    np.save(file.with_suffix(".npy"), np.ascontiguousarray(array))
    return str(file.with_suffix(".npy"))


def safetensors(file: Path, array: np.ndarray) -> str:
    """As the format's own package writes it, one more tensor before the one that is meant."""
    if array.itemsize > 8:  # long doubles, which the format lacks
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("<"))
    kind = "BOOL" if array.dtype == bool else f"{array.dtype.kind.upper()}{8 * array.itemsize}"
    content, before = np.ascontiguousarray(array).tobytes(), np.arange(3, dtype=np.int64).tobytes()
    described = {
        "__metadata__": {"format": "np"},
        "before": {"dtype": "I64", "shape": [3], "data_offsets": [0, len(before)]},
        "scores": {
            "dtype": kind, "shape": array.shape, "data_offsets": [len(before), len(before) + len(content)],
        },
    }  # fmt: skip
    header = json.dumps(described).encode()
    path = file.with_suffix(".safetensors")
    path.write_bytes(struct.pack("<Q", len(header)) + header + before + content)
    return f"{path}::scores"


def hdf5_file(file: Path, array: np.ndarray, **settings: Any) -> str:
    with h5py.File(file.with_suffix(".h5"), "w") as handle:
        handle.create_dataset("deep/scores", data=array, **settings)
    return f"{file.with_suffix('.h5')}::/deep/scores"


def swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def odd_chunks(array: np.ndarray) -> tuple[int, int]:
    """Chunks that divide neither blocks nor columns."""
    return min(7, len(array)), -(-2 * array.shape[1] // 3)


def cut(array: np.ndarray) -> list[np.ndarray]:
    """Uneven parts, the first and the last of one row."""
    ends = sorted({1, max(1, len(array) // 3), max(1, len(array) - 1)} - {len(array)})
    return np.split(array, ends)


def mixed_parts(file: Path, array: np.ndarray) -> list[Any]:
    """One matrix as a list: a file of each kind, an open data set, a mapped file."""
    ways = itertools.cycle([npy, chunked, hdf5_file, data_set, mapped])
    return [
        way(file.with_name(f"{file.name}-{n}"), part)
        for n, (way, part) in enumerate(zip(ways, cut(array), strict=False))
    ]


def pattern(file: Path, array: np.ndarray) -> str:
    """Parts that only the order of numbers puts in order."""
    for n, part in enumerate(cut(array)):
        hdf5_file(file.with_name(f"{file.name}-part-{7 + n}"), part, chunks=odd_chunks(part))
    return f"{file}-part-*.h5::/deep/scores"


def mapped(file: Path, array: np.ndarray) -> np.ndarray:
    return np.load(npy(file, array), mmap_mode="r")


def data_set(file: Path, array: np.ndarray) -> h5py.Dataset:
    path, _, name = hdf5_file(file, array, chunks=odd_chunks(array)).partition("::")
    return h5py.File(path, "r")[name]


def chunked(file: Path, array: np.ndarray) -> str:
    return hdf5_file(file, array, chunks=odd_chunks(array))


WAYS: dict[str, Way] = {
    "npy": npy,
    "npy of other byte order": lambda file, array: npy(file, swapped(array)),
    "safetensors": safetensors,
    "memory map": mapped,
    "contiguous": hdf5_file,
    "chunked": chunked,
    "chunks of one row": lambda file, array: hdf5_file(file, array, chunks=(1, array.shape[1])),
    "gzip": lambda file, array: hdf5_file(file, array, chunks=odd_chunks(array), compression="gzip", shuffle=True),
    "fletcher32": lambda file, array: hdf5_file(file, array, chunks=(min(7, len(array)), 1), fletcher32=True),
    "hdf5 of other byte order": lambda file, array: hdf5_file(file, swapped(array)),
    "room to grow": lambda file, array: hdf5_file(file, array, chunks=(50, 20), maxshape=(None, None)),
    "h5py.Dataset": data_set,
    "list": mixed_parts,
    "pattern": pattern,
}

KEPT = ("npy", "chunked")  # tried with a copy in memory too, which is made of all alike


def storable(scores: Any) -> np.ndarray:
    """Scores of any kind as an array that files can hold."""
    if isinstance(scores, torch.Tensor):
        return (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()
    return np.asarray(scores)


def assert_same(result: Assignment, expected: Assignment) -> None:
    """Every number of the answer, bit for bit, and as many passes for it."""
    for name in ("labels", "counts", "potentials", "plan_potentials", "class_mass"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name, strict=True)
    for name in ("value", "bound", "marginal_error", "status", "n_sweeps"):
        assert getattr(result, name) == getattr(expected, name), name


def all_rows(scores: Opened) -> np.ndarray:
    return as_float(read_rows(scores.source, 0, scores.shape[0]), scores.dtype)
