"""How many samples have which class and which cluster: what all measures of agreement are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array

from otlabel.sources import as_array, in_one_order

UNLABELLED = -1
CHUNK = 1 << 20  # samples that are counted at once


@dataclass(frozen=True, eq=False)
class Table:
    """How many samples have which class and which cluster; no class and no cluster is empty."""

    counts: csr_array  # (C, K) int64, pairs that occur
    classes: np.ndarray  # (C,) labels of the rows, ascending
    clusters: np.ndarray  # (K,) labels of the columns, ascending

    @property
    def class_sizes(self) -> np.ndarray:
        """(C,) int64."""
        return np.asarray(self.counts.sum(1))

    @property
    def cluster_sizes(self) -> np.ndarray:
        """(K,) int64."""
        return np.asarray(self.counts.sum(0))

    @property
    def n_samples(self) -> int:
        """How many have both."""
        return int(self.counts.data.sum())


def table_of(truth: Any, labels: Any, names: tuple[str, str] = ("truth", "labels")) -> Table:
    """The table of two sides of the same samples, counted in chunks; ValueError where there are none."""
    sides = in_one_order(truth, labels, names)
    rows, columns = checked_labels(sides[0], names[0]), checked_labels(sides[1], names[1])
    if len(rows) != len(columns):
        raise ValueError(
            f"{names[0]} have shape {rows.shape}, {names[1]} {columns.shape}; pass one label a sample each"
        )
    classes, clusters = (_distinct(_labelled_chunks(rows, columns), side) for side in (0, 1))
    if not len(classes):
        raise ValueError(f"no sample has a label other than {UNLABELLED} in both {names[0]} and {names[1]}")
    counts = csr_array((len(classes), len(clusters)), dtype=np.int64)
    for row, column in _labelled_chunks(rows, columns):
        places = _codes(row, classes), _codes(column, clusters)
        counts = counts + coo_array((np.ones(len(row), np.int64), places), shape=counts.shape).tocsr()
    return Table(counts, classes, clusters)


def checked_labels(labels: Any, name: str) -> np.ndarray:
    """Labels as an array, once they are seen to be (N,) whole numbers."""
    array = as_array(labels, name)
    if array.ndim != 1:
        raise ValueError(f"{name} have shape {array.shape}; pass (N,) labels")
    if not len(array):
        raise ValueError(f"{name} are empty; pass at least one label")
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} have dtype {array.dtype}; pass whole numbers, {UNLABELLED} for unlabelled samples")
    return array


def _labelled_chunks(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunk by chunk, both labels of the samples that have two."""
    for start in range(0, len(rows), CHUNK):
        pair = rows[start : start + CHUNK], columns[start : start + CHUNK]
        both = (pair[0] != UNLABELLED) & (pair[1] != UNLABELLED)
        yield pair[0][both], pair[1][both]


def _distinct(chunks: Iterator[tuple[np.ndarray, np.ndarray]], side: int) -> np.ndarray:
    """Labels that occur on one side, ascending."""
    names: np.ndarray | None = None
    for chunk in chunks:
        found = np.unique(chunk[side])
        names = found if names is None else np.union1d(names, found)
    assert names is not None
    return names


def _codes(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The place of each label among all names."""
    if int(names[-1]) - int(names[0]) == len(names) - 1:  # consecutive, as most are: no search
        return labels.astype(np.int64) - names[:1].astype(np.int64)
    return np.searchsorted(names, labels)
