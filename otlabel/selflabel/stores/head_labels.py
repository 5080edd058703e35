"""Labels of all heads on disk. Any reader of HDF5 can use them: `"labels.h5::/heads/0/labels"` is one head's.

The layout, version 1:

    /heads/0/labels   (N,) int8 ... int64, the smallest that holds K; -1: none; in chunks with checksums (fletcher32)
    /heads/0/counts   (K,) int64: samples in each class
    /heads/1/...      the same of the other heads
    attributes        format = "otlabel.heads", format_version = 1, complete = True, n_classes = JSON list of K a head,
                      data = what the data set is told by, seed (int64), records = JSON list: the last relabelling,
                      texts_crc32 (uint32): of all texts among them, as JSON with sorted names; texts are UTF-8 of
                      fixed length, or of variable length in files of before
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.sources.hdf5_guard import (
    DAMAGE,
    check_complete,
    check_texts,
    find_dataset,
    open_hdf5,
    read_attributes,
    said,
    write_attributes,
)
from otlabel.storage.atomic import replacing
from otlabel.storage.label_files import create_labels, hdf5_image, read_dataset
from otlabel.storage.texts import check_format

if TYPE_CHECKING:
    import h5py

FORMAT = "otlabel.heads"
FORMAT_VERSION = 1
ATTRIBUTES = ("format", "format_version", "complete", "seed", "n_classes", "records", "data")


@dataclass(frozen=True, eq=False)
class HeadLabels:
    """What a file of labels holds."""

    labels: np.ndarray  # (T, N) int64, -1 for a sample without one
    n_classes: list[int]  # K of each head
    data: str | None  # what the data set was told by
    seed: int
    records: list[dict[str, Any]]  # of the relabelling that these labels are from, one a head


def save_labels(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    n_classes: list[int],
    *,
    data: str | None = None,
    seed: int = 0,
    records: list[dict[str, Any]] | None = None,
) -> None:
    """Write (T, N) labels whole or not at all.

    Raises:
        ValueError: the name does not end in .h5 or .hdf5.
        OSError: the file cannot be written.
    """
    if Path(path).suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(
            f"{os.fspath(path)} does not end in .h5 or .hdf5, which is what labels of heads are written to"
        )
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, "complete": True, "seed": seed}
    about |= {"n_classes": json.dumps(n_classes), "records": json.dumps(records or [])}
    if data is not None:
        about["data"] = data
    with hdf5_image() as (image, handle):
        for head, k in enumerate(n_classes):
            group = handle.create_group(f"heads/{head}")
            create_labels(group, labels[head], np.bincount(labels[head][labels[head] >= 0], minlength=k))
        write_attributes(handle, about)
    with replacing(path) as file:
        file.write(image.getbuffer())


def load_labels(path: str | os.PathLike[str]) -> HeadLabels:
    """Read what `save_labels` wrote; nothing is unpickled, no link is followed.

    Raises:
        FileFormatError: a file that is unfinished, damaged, of another kind or of a newer version.
        FileNotFoundError: there is none.
    """
    with _opened(path) as (handle, about, n_classes):
        room = Path(path).stat().st_size
        heads = [_read_head(handle, head, k, room) for head, k in enumerate(n_classes)]
        records = [dict(record) for record in json.loads(about["records"])]
        if len({len(labels) for labels in heads}) != 1:
            raise ValueError("its heads have labels of different numbers of samples")
        return HeadLabels(np.stack(heads), n_classes, about.get("data"), int(about["seed"]), records)


def described(path: str | os.PathLike[str]) -> tuple[int, list[int], str | None]:
    """Samples, classes of each head, and data of labels that are not read: there may be many, and of other data.

    Raises:
        FileFormatError, FileNotFoundError: as `load_labels`.
    """
    with _opened(path) as (handle, about, n_classes):
        (n_samples,) = find_dataset(handle, Path(path), "heads/0/labels").shape
        return n_samples, n_classes, about.get("data")


def load_labels_of(path: str | os.PathLike[str], n_samples: int, n_classes: list[int], data: str | None) -> np.ndarray:
    """(T, N) labels that `save_labels` wrote of these samples, classes and data; None: whatever data.

    Raises:
        FingerprintError: they are of others; nothing was read.
        FileFormatError, FileNotFoundError: as `load_labels`.
    """
    theirs = described(path)
    ours = (n_samples, n_classes, data if theirs[2] is not None else None)
    if theirs != ours and not (data is None and theirs[:2] == ours[:2]):
        raise FingerprintError(
            f"{os.fspath(path)} holds labels of other data: (samples, classes, data) are {theirs}, here {ours}"
        )
    return load_labels(path).labels


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[h5py.File, dict[str, Any], list[int]]]:
    """A file, its attributes and the classes of its heads; what is wrong in it by then is an error about it."""
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        with open_hdf5(file) as handle:
            about = read_attributes(handle, ATTRIBUTES)
            check_format((about.get("format"), about.get("format_version")), FORMAT, FORMAT_VERSION)
            check_complete(about)
            check_texts(handle, about)
            if not isinstance(about.get("data"), (str, NoneType)):
                raise ValueError(f"its data is a {type(about['data']).__name__}")
            yield handle, about, [int(k) for k in json.loads(about["n_classes"])]
    except (*DAMAGE, AttributeError, RecursionError) as error:
        if isinstance(error, PermissionError):
            raise
        raise FileFormatError(f"{file} is no usable file of labels: {said(error)}") from error


def _read_head(handle: Any, head: int, k: int, room: int) -> np.ndarray:
    labels = read_dataset(handle, f"heads/{head}/labels", "i", room).astype(np.int64)
    counts = read_dataset(handle, f"heads/{head}/counts", "i", room)
    if len(counts) != k:
        raise ValueError(f"head {head} has {len(counts)} counts for {k} classes")
    if labels.min(initial=0) < -1 or labels.max(initial=-1) >= k:
        raise ValueError(f"labels of head {head} are not from 0 to {k - 1}, or -1")
    if not np.array_equal(np.bincount(labels[labels >= 0], minlength=k), counts):
        raise ValueError(f"counts of head {head} are not those of its labels")
    return labels
