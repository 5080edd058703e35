"""What a user handed over, once it is opened: a source of its rows, finer forms of them, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from otlabel.sources.base import Source, as_float, read_rows
from otlabel.sources.files import FileSource


def row_number(row: int) -> str:
    """The name of a row that has no other."""
    return f"row {row}"


class FewScores(Protocol):
    """Scores that are made where they are read, of some classes only."""

    def __call__(self, start: int, stop: int, sizes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, float]:
        """The fine scores (E,) float64 of the classes of rows start to stop, row after row, sizes (stop - start,) each.

        And how far the source's may be from these.
        """


@dataclass(frozen=True)
class AnyRows:
    """Scores of any rows, up to a constant in each; the same bits whichever others are asked for."""

    source: Source

    @property
    def are_at_hand(self) -> bool:
        """Whether a few, in the host's memory, cost little more than their share of a reading."""
        return self.source.grain == 1 and not self.source.reads_files and self.source.device is None

    @property
    def finest(self) -> AnyRows:
        """As float64 makes them."""
        return self

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(n, K) numbers, of the given rows (sorted)."""
        taken = self.source.take(rows)
        return as_float(read_rows(taken, 0, len(rows)), taken.dtype)


@dataclass(frozen=True, eq=False)
class Opened:
    """The same rows in three forms, and their names."""

    source: Source  # what passes read
    fine: Source  # as float64 makes them of what is stored, for what decides; the source where it is stored
    bare: Source  # the fine ones up to a constant in each row, where these are known to more digits; else the fine ones
    place: Callable[[int], str] = row_number  # a row's name for people
    files: tuple[FileSource, ...] = ()  # that are read
    class_names: Sequence[Any] | None = None  # where they came with some: the columns of a data frame
    row_names: Any = None  # likewise: its index
    by_row: AnyRows | None = None  # where the rows of a source are made together, but a few could be by themselves
    few: FewScores | None = None  # fine scores of a few classes a row, where these cost much less than all of them

    @classmethod
    def of(cls, source: Source, class_names: Sequence[Any] | None = None, row_names: Any = None) -> Opened:
        """A source that is stored as it is."""
        if isinstance(source, FileSource):
            return Opened(source, source, source, source.place, (source,), class_names, row_names)
        return Opened(source, source, source, class_names=class_names, row_names=row_names)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), of the rows here."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """The type that rows are read in."""
        return self.source.dtype

    @property
    def bytes_read(self) -> int:
        """From files, so far."""
        return sum(file.bytes_read for file in self.files)

    @property
    def finest_rows(self) -> AnyRows | None:
        """Those that are made by themselves, for forms whose digits count."""
        return None if self.by_row is None else self.by_row.finest

    @property
    def refined(self) -> Opened:
        """The fine form, for passes to read."""
        return replace(self.only(self.fine), bare=self.bare, by_row=self.finest_rows)

    @property
    def stripped(self) -> Opened:
        """The bare form, for passes to read."""
        return replace(self.only(self.bare), by_row=self.finest_rows)

    def over(self, source: Source) -> Opened:
        """The same rows read from another source; forms that were no others stay so."""
        fine = source if self.fine is self.source else self.fine
        bare = fine if self.bare is self.fine else self.bare
        return replace(self.only(source), fine=fine, bare=bare, few=self.few, by_row=self.by_row)

    def only(self, source: Source) -> Opened:
        """The same rows in no other form than a source."""
        return Opened(source, source, source, self.place, self.files, self.class_names, self.row_names)

    def mapped(self, change: Callable[[Source], Source]) -> Opened:
        """Each form after the same change."""
        source = change(self.source)
        fine = source if self.fine is self.source else change(self.fine)
        bare = fine if self.bare is self.fine else change(self.bare)
        return replace(self.only(source), fine=fine, bare=bare)


def as_opened(rows: Opened | Source) -> Opened:
    """A source by itself is what is stored."""
    return rows if isinstance(rows, Opened) else Opened.of(rows)
