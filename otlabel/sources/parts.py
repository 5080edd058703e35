"""Several sources as one, the rows of the first, then those of the second, and so on; and some rows of one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import as_float, read_rows
from otlabel.sources.files import FileSource
from otlabel.sources.given import shown
from otlabel.sources.listed import ListedSource, stacked
from otlabel.sources.memory import ArraySource
from otlabel.sources.opened import Opened

MOST_OPEN = 64  # parts whose files stay open: a system allows a process about a thousand


def rows_between(opened: Opened, first: int, stop: int) -> Opened:
    """Consecutive rows by themselves."""
    source = opened.source
    if isinstance(source, FileSource):
        return Opened.of(RowRange(source, first, stop))
    if isinstance(source, ArraySource):
        return Opened.of(ArraySource(source.array[first:stop], source.dtype))
    return Opened.of(source.take(np.arange(first, stop)))


def joined(parts: Sequence[Opened], name: str, what: str = "scores") -> Opened:
    """Rows one after the other, under the names that the columns have, if any, which are to be the same in all."""
    listed = [part.source for part in parts if isinstance(part.source, ListedSource)]
    if listed:
        return Opened.of(_stacked(listed, [part.shape for part in parts], what))
    source = Parts(parts, name, what)
    named = [part.class_names for part in parts if part.class_names is not None]
    for names in named:
        if names != named[0]:
            raise InvalidScoresError(
                f"parts of {what} have other columns, or others' in another order: {shown(named[0])} and "
                f"{shown(names)}; pass all with the same, such as part[parts[0].columns]"
            )
    indexes = [part.row_names for part in parts]
    row_names = None
    if all(index is not None for index in indexes):
        index = indexes[0].append(indexes[1:])
        row_names = index if index.is_unique else None  # each batch may count its own rows
    return Opened.of(source, named[0] if named else None, row_names)


def _stacked(listed: Sequence[ListedSource], shapes: Sequence[tuple[int, int]], what: str) -> ListedSource:
    """Lists one after the other, where all parts of these shapes are lists, and of the same classes."""
    if len(listed) < len(shapes) or len({n_classes for _, n_classes in shapes}) > 1:
        kinds = f"{len(listed)} of {len(shapes)} parts of {what} are sparse, and they have the shapes"
        raise InvalidScoresError(f"{kinds} {shown(shapes)}; pass all as sparse ones with the same columns")
    return stacked(listed)


class RowRange(FileSource):
    """Rows of a source in files from one row up to another."""

    def __init__(self, source: FileSource, first: int, stop: int) -> None:
        self._source, self._first = source, first
        self.name, self.dtype, self.least_rows = source.name, source.dtype, source.least_rows
        self.shape = (stop - first, source.shape[1])

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """By the source."""
        return self._source.bytes_read

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """By the source."""
        self._source.read_into(self._first + start, self._first + stop, out)

    def close(self) -> None:
        """As the source does."""
        self._source.close()

    def place(self, row: int) -> str:
        """As the source names it."""
        return self._source.place(self._first + row)


class Parts(FileSource):
    """Row-concatenated sources with the same classes; files are also of one type, what is in memory is widened."""

    def __init__(self, parts: Sequence[Opened], name: str, what: str = "scores") -> None:
        self.name, self._parts, self._what = name, list(parts), what
        sources = [part.source for part in parts]
        first = next((source for source in sources if isinstance(source, FileSource)), sources[0])
        for number, source in enumerate(sources):
            same_type = source.dtype == first.dtype or not isinstance(source, FileSource)
            if source.shape[1] != first.shape[1] or not same_type or source.device is not None:
                raise InvalidScoresError(self._difference(sources.index(first), number))
        self._ends = np.cumsum([source.shape[0] for source in sources])
        self.shape = int(self._ends[-1]), first.shape[1]
        types = {source.dtype for source in sources}
        self.dtype = types.pop() if len(types) == 1 else "float64" if "float64" in types else "float32"
        self.least_rows = max(getattr(source, "least_rows", 1) for source in sources)
        self.reads_files = any(source.reads_files for source in sources)
        self._start_over()

    def _difference(self, one: int, other: int) -> str:
        """How two parts do not fit together, and what to do."""
        columns = "classes" if self._what.startswith("scores") else "columns"
        told = [
            f"{self._name_of(number)}{' holds' * (number == one)} {part.source.dtype} {self._what} of {part.shape[1]}"
            for number, part in ((one, self._parts[one]), (other, self._parts[other]))
        ]
        stored = any(isinstance(self._parts[number].source, FileSource) for number in (one, other))
        remedy = (
            "store all parts alike" if stored else "only parts with the same columns can be joined, as torch.cat does"
        )
        told[1] = told[1].replace(f" {self._what} of", " of")
        return f"parts differ: {told[0]} {columns}, {told[1]}; {remedy}"

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[int, None] = {}  # parts that may be open, the last used last

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_recent")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_over()

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """Of all parts."""
        return sum(part.bytes_read for part in self._parts)

    def close(self) -> None:
        """Of all parts."""
        for part in self._parts:
            part.source.close()

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """From each part that has some of the rows."""
        at = start
        while at < stop:
            number, begin = self._find(at)
            source, end = self._parts[number].source, min(stop, int(self._ends[number]))
            rows = out[at - start : end - start]
            if isinstance(source, FileSource) and source.dtype == self.dtype:
                source.read_into(at - begin, end - begin, rows)
            elif source.dtype == self.dtype:
                rows[:] = read_rows(source, at - begin, end - begin)
            else:
                rows[:] = as_float(read_rows(source, at - begin, end - begin), source.dtype)
            if isinstance(source, FileSource):
                self._close_others(number)
            at = end

    def _close_others(self, number: int) -> None:
        """Close the part that was not read for longest where more than a few are open."""
        with self._lock:
            self._recent.pop(number, None)
            self._recent[number] = None
            oldest = next(iter(self._recent)) if len(self._recent) > MOST_OPEN else None
            if oldest is not None:
                del self._recent[oldest]
        if oldest is not None:
            self._parts[oldest].source.close()

    def place(self, row: int) -> str:
        """The row's number in all, and in its part."""
        number, begin = self._find(row)
        part = self._parts[number]
        there = part.place(row - begin)
        return f"row {row} ({there if isinstance(part.source, FileSource) else f'{there} of part {number}'})"

    def _find(self, row: int) -> tuple[int, int]:
        """Which part has a row, and the part's first row."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, int(self._ends[number]) - self._parts[number].shape[0]

    def _name_of(self, number: int) -> str:
        return getattr(self._parts[number].source, "name", f"part {number}")
