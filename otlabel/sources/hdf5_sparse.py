"""Sparse matrices in an HDF5 file: groups of `data`, `indices` and `indptr`, as anndata and 10x Genomics store them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources.base import Source
from otlabel.sources.hdf5 import HDF5Source, loaded
from otlabel.sources.hdf5_guard import find_dataset, find_node, read_attribute, reading_hdf5, told_by
from otlabel.sources.listed import ListedSource
from otlabel.sources.sparse import listed, listed_columns
from otlabel.text import printable

if TYPE_CHECKING:
    import h5py

PARTS = "data", "indices", "indptr"
SHAPES, FORMATS = ("shape", "h5sparse_shape"), ("encoding-type", "h5sparse_format")  # attributes, old ones last
CELLS = "barcodes"  # in a group of 10x Genomics: its rows, one after the other, though it states features x barcodes


def open_hdf5_source(path: Path, name: str) -> Source:
    """The data set of a file, or the sparse matrix of a group; no name will do where there is one data set only."""
    import h5py

    with reading_hdf5(path) as handle:
        node = find_node(handle, path, name) if name else None
        if isinstance(node, h5py.Group) and any(part in node for part in PARTS):
            return open_group(node)
        return HDF5Source(find_dataset(handle, path, name), path)


def open_group(group: h5py.Group) -> ListedSource:
    """The matrix of a group, in memory.

    Raises:
        FileFormatError: a group that is none, or is damaged.
    """
    path = Path(group.file.filename)
    place = f"{path}::{printable(group.name)}"
    missing = [part for part in PARTS if part not in group]
    if missing:
        raise FileFormatError(
            f"{place} is a group, without {', '.join(missing)}; name a data set as FILE::/NAME, or a sparse "
            f"matrix's group, which has {', '.join(PARTS)}"
        )
    data, indices, starts = (
        loaded(find_dataset(group.file, path, f"{group.name}/{part}"), f"{place}/{part}") for part in PARTS
    )
    shape = _shape(group, place)
    what = f"scores in {place}"
    if CELLS in group:
        return listed(starts, indices, data, shape[::-1], what)
    by_column = len(starts) - 1 == shape[1] and (shape[0] != shape[1] or _says_columns(group, place))
    return (listed_columns if by_column else listed)(starts, indices, data, shape, what)


def _shape(group: h5py.Group, place: str) -> tuple[int, int]:
    """(N, K), as an attribute or a data set of the group says."""
    named = [name for name in SHAPES if name in group.attrs]
    with told_by(place):
        if named:
            numbers = np.asarray(group.attrs[named[0]])
        elif "shape" in group:
            numbers = loaded(group["shape"], f"{place}/shape")
        else:
            raise FileFormatError(
                f"{place} does not say its shape; store it as an attribute: group.attrs['shape'] = N, K"
            )
    if numbers.shape != (2,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise FileFormatError(f"{place} has a shape of {printable(str(numbers))[:60]}, no two numbers")
    return int(numbers[0]), int(numbers[1])


def _says_columns(group: h5py.Group, place: str) -> bool:
    """Whether a square matrix is one of columns, as an attribute says."""
    name = next((name for name in FORMATS if name in group.attrs), None)
    with told_by(place):
        if name is None or group.file.mode != "r":  # a file that is being written is not what lies on the disk
            return name is not None and str(group.attrs[name]).startswith("csc")
        return str(read_attribute(group, name)).startswith("csc")
