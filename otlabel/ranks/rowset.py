"""Rows of one matrix: a source of those that are here, who has the others, and which of all rows these are."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidMassError, InvalidScoresError, RankError
from otlabel.ranks.communicator import SINGLE_PROCESS, Communicator
from otlabel.ranks.redistribution import RedistributedRows, Redistribution
from otlabel.sources import ArraySource, LinearScores, Opened, Source, as_array, as_float, as_opened, read_rows
from otlabel.sources.base import as_stored, few_rows, storage_array
from otlabel.sources.linear import Features, mean_of_finite, read_stretches
from otlabel.sources.listed import Filled, ListedSource
from otlabel.sources.wrapped import Changed
from otlabel.sweep.blocks import Batch, Room, Span, block_rows, cut, device_rows, grouped
from otlabel.sweep.pool import blas_on_one_thread

if TYPE_CHECKING:
    import torch


class RowSet:
    """Rows `first` up to `stop` of the `n_rows` of all ranks, which are numbered from 0 on where they are.

    In one process these are all rows, and what is summed or joined over ranks stays as it is. Blocks are those of a
    matrix of so many columns: as many as there were before one was added, or, of sparse rows, as a row lists.
    """

    def __init__(
        self,
        rows: Opened | Source,
        communicator: Communicator = SINGLE_PROCESS,
        first: int = 0,
        n_rows: int | None = None,
        columns: int | None = None,
        redistribution: Redistribution | None = None,
    ) -> None:
        self.opened, self.communicator, self.first = as_opened(rows), communicator, first
        self.n_rows = self.shape[0] if n_rows is None else n_rows
        source = self.opened.source
        self.columns = columns or (source.columns if isinstance(source, ListedSource) else source.shape[1])
        self.room, self.labels_per_row = Room(), 1
        self._redistribution = redistribution

    @classmethod
    def as_given(cls, opened: Opened, communicator: Communicator) -> RowSet:
        """A rank's rows, all of them and no others."""
        if communicator.world_size == 1:
            return cls(opened)
        (counts,) = communicator.allgather("rows", np.array([opened.shape[0]]))
        _check_any(counts)
        n_rows = int(counts.sum())
        if isinstance(opened, LinearScores):
            opened = opened.reading(opened.features, n_rows)
        return cls(opened, communicator, int(counts[: communicator.rank].sum()), n_rows)

    @classmethod
    def in_blocks(cls, rows: Opened | Source, communicator: Communicator, columns: int | None = None) -> RowSet:
        """Whole blocks of the partition of all rows, so that sums have the same bits on any number of ranks.

        A few rows move from rank to rank; of a linear head, its features do. On a device all rows stay, since blocks
        are those of the device, and sums depend on them a little.
        """
        opened = as_opened(rows)
        if communicator.world_size == 1:
            return cls(opened, columns=columns)
        if isinstance(opened.source, ListedSource):  # whose sums have the same bits in any blocks
            _checked_alike(opened.source, communicator)
            return cls.as_given(opened, communicator)
        if not isinstance(opened, LinearScores):
            return _redistributed(opened, communicator, columns or opened.shape[1])
        features = opened.features.opened
        change = features.source if isinstance(features.source, Changed) else None
        stored = features if change is None else features.only(change.source)
        moved = _redistributed(stored, communicator, opened.shape[1])
        if change is not None:
            forms = features.mapped(lambda form: form.of(moved.source) if isinstance(form, Changed) else form)
            moved = moved.over(replace(forms, place=moved.opened.place))
        centre = moved.centre() if opened.needs_centre else None
        return moved.over(opened.reading(Features(moved.opened, opened.torch_device, centre), moved.n_rows))

    @property
    def source(self) -> Source:
        """What passes read."""
        return self.opened.source

    @property
    def shape(self) -> tuple[int, int]:
        """Of the rows here."""
        return self.opened.shape

    @property
    def stop(self) -> int:
        """The row of all after the last one here."""
        return self.first + self.shape[0]

    @property
    def fine(self) -> RowSet:
        """The same rows as float64 makes them of what is stored; itself where it is stored."""
        return self if self.opened.fine is self.source else self.over(self.opened.refined)

    @property
    def filled(self) -> RowSet:
        """The same rows, of lists with -inf for what these leave out: to be looked at block by block."""
        if not isinstance(self.source, ListedSource):
            return self
        rows = self.over(self.opened.only(Filled(self.source)))
        rows.columns = self.shape[1]
        return rows

    def over(self, opened: Opened) -> RowSet:
        """The same rows in another form."""
        rows = copy.copy(self)
        rows.opened = opened
        return rows

    def taking(self, labels_per_row: int) -> RowSet:
        """The same rows, each of which takes so many classes."""
        rows = copy.copy(self)
        rows.labels_per_row = labels_per_row
        return rows

    @property
    def of_labels(self) -> tuple[int, ...]:
        """The shape of the labels of the rows here: (N,), or (N, k) where a row takes several classes."""
        return self.shape[:1] if self.labels_per_row == 1 else (self.shape[0], self.labels_per_row)

    # ---- all rows here, block by block ----

    @property
    def spans(self) -> list[Span]:
        """The partition of the rows; ranks have whole blocks of the partition of all rows."""
        if self.source.device is not None:
            return cut(self.shape[0], device_rows(self.shape[1]) if self.source.grain == 1 else self.source.grain)
        return cut(self.shape[0], block_rows(self.n_rows, self.columns))

    def stretch(self, grain: int) -> int:
        """How many rows are in so many whole blocks as are read together."""
        size = block_rows(self.n_rows, self.columns)
        return size * max(1, grain // size)

    @property
    def batches(self) -> list[Batch]:
        """The blocks in the groups that are read together, in order."""
        return grouped(self.spans, self.source.grain)

    def blocks(self, batches: Iterable[Batch] | None = None) -> Iterator[tuple[Span, np.ndarray]]:
        """Each block with its span, as float32 or float64 numbers; each is to be used before the next is asked for."""
        rows = self.filled
        for batch in rows.batches if batches is None else batches:
            for span, block in zip(batch, rows.source.read(batch), strict=True):
                yield span, as_float(block, rows.source.dtype)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """To be entered around a pass: what a source holds for the next read is of use within one only.

        Products are on one thread each: blocks are what threads share, and sums then have the same bits everywhere.
        """
        self.source.close()
        with contextlib.closing(self.source), blas_on_one_thread():
            yield

    # ---- some of the rows ----

    def local(self, rows: np.ndarray) -> np.ndarray:
        """Those of the sorted rows of all that are here, counted from the first here."""
        low, high = np.searchsorted(rows, (self.first, self.stop))
        return rows[low:high] - self.first

    def taken(self, rows: np.ndarray) -> RowSet:
        """Those of the sorted rows of all that are here, as rows of this process alone."""
        return RowSet(self._some(rows), columns=self.columns).taking(self.labels_per_row)

    def subset(self, rows: np.ndarray) -> RowSet:
        """The given rows (sorted) of all ranks, of which each rank again has whole blocks."""
        return RowSet.in_blocks(self._some(rows), self.communicator, self.columns).taking(self.labels_per_row)

    def _some(self, rows: np.ndarray) -> Source:
        """Those that are here; in host memory if they take several classes each, since its threads are what does that.

        Of all rows a device makes lists; for a few, a call there costs more than it spares.
        """
        taken = self.source.take(self.local(rows))
        if self.labels_per_row == 1 or taken.device is None:
            return taken
        return ArraySource(as_stored(read_rows(taken, 0, taken.shape[0]).cpu()), taken.dtype)

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """The given rows (sorted) of all ranks as float32 or float64 numbers, on all ranks."""
        taken = self.taken(rows).filled.source
        return self.concat("gathered", as_float(read_rows(taken, 0, taken.shape[0]), taken.dtype))[0]

    def centre(self) -> np.ndarray:
        """(D,) float64, the mean of a few rows of all ranks."""
        return mean_of_finite(self.few())

    def few(self) -> np.ndarray:
        """(n, D) float64, a few rows of all ranks, in stretches: so few reads that files do not mind."""
        return self.concat("few", read_stretches(self.source, self.local(few_rows(self.n_rows))))[0]

    # ---- one number, or more, for each of the rows ----

    def of_all(self, name: str, values: Any) -> Any:
        """One number for each row that this rank was given, as those of all ranks' rows."""
        if self.communicator.world_size == 1 or values is None:
            return values
        first, stop = (0, self.shape[0]) if self._redistribution is None else self._redistribution.given
        n_given = stop - first
        numbers = as_array(values)
        if numbers.shape != (n_given,):
            raise InvalidMassError(f"{name} has shape {numbers.shape}; pass one number for each of {n_given} rows")
        return self.concat(name, numbers)[0]

    def restore(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the rows here, as those of the rows that this rank was given."""
        if self._redistribution is None or self.source.device is not None:
            return labels
        return self._redistribution.returned("labels", labels)

    # ---- over all ranks ----

    def sum(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums of each array over ranks; the name tells steps apart in errors."""
        return self.communicator.allreduce(name, *arrays)

    def sum_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The same of a tensor, which stays where it is."""
        return self.communicator.allreduce_tensor(name, tensor)

    def max(self, name: str, *numbers: float) -> tuple[float, ...]:
        """The largest of each number over ranks."""
        return self.communicator.allreduce_max(name, *numbers)

    def min(self, name: str, array: np.ndarray) -> np.ndarray:
        """The smallest of each number of an array over ranks."""
        return self.communicator.allreduce_min(name, array)

    def median(self, name: str, values: np.ndarray) -> float:
        """The median of one value (float64, not negative) for each row, or for some, of all ranks."""
        return self.communicator.median(name, values)

    def concat(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each array followed by those of the ranks after, along the first axis."""
        return self.communicator.allgather(name, *arrays)


def _redistributed(opened: Opened, communicator: Communicator, columns: int) -> RowSet:
    """Rows here, of blocks that are cut for so many columns."""
    source = opened.source
    counts, dtype = _checked_alike(source, communicator)
    n_rows = int(counts.sum())
    redistribution = Redistribution(communicator, counts, block_rows(n_rows, columns))
    if source.device is not None:
        return RowSet(opened, communicator, redistribution.given[0], n_rows, columns, redistribution)
    if not source.shape[0]:
        source = ArraySource(storage_array(source.shape, dtype), dtype)
    head = np.ascontiguousarray(read_rows(source, 0, redistribution.n_sent))
    rows = RedistributedRows(source, redistribution.received("shards", head), redistribution)
    place = functools.partial(redistribution.place, place=opened.place)
    there = replace(opened.only(rows), place=place)
    return RowSet(there, communicator, redistribution.worked[0], n_rows, columns, redistribution)


def _checked_alike(source: Source, communicator: Communicator) -> tuple[np.ndarray, str]:
    """How many rows each rank has, and their type; RankError where these are of other columns or types."""
    own = {"shape": np.array(source.shape), "dtype": np.frombuffer(source.dtype.encode().ljust(8), np.uint8)}
    of_ranks = communicator.allgather_by_rank("shards", own)
    counts = np.array([of_rank["shape"][0] for of_rank in of_ranks])
    filled = [rank for rank, count in enumerate(counts) if count] or [0]
    kinds = [(int(of_rank["shape"][1]), of_rank["dtype"].tobytes().decode().strip()) for of_rank in of_ranks]
    expected = kinds[filled[0]]
    for rank, kind in enumerate(kinds):
        if kind[0] != expected[0] or (counts[rank] and kind != expected):
            raise RankError(
                f"rank {filled[0]} has {expected[1]} scores of {expected[0]} columns, rank {rank} {kind[1]} of "
                f"{kind[0]}; pass the same to all ranks"
            )
    _check_any(counts)
    return counts, expected[1]


def _check_any(counts: np.ndarray) -> None:
    if not counts.any():
        raise InvalidScoresError(f"none of the {len(counts)} ranks has a row; some may be without, but not all")
