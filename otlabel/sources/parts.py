"""Several sources as one, the rows of the first, then those of the second, and so on; and some rows of one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import Source, as_float
from otlabel.sources.files import FileSource
from otlabel.sources.memory import ArraySource

MOST_OPEN = 64  # parts whose files stay open: a system allows a process about a thousand


def rows_between(source: Source, first: int, stop: int) -> Source:
    """Consecutive rows of a source as one of their own."""
    if isinstance(source, FileSource):
        return RowRange(source, first, stop)
    if isinstance(source, ArraySource):
        return ArraySource(source.array[first:stop], source.dtype)
    return source.take(np.arange(first, stop))


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

    def reading(self) -> contextlib.AbstractContextManager[object]:
        """The source's own."""
        return self._source.reading()

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

    def __init__(self, parts: Sequence[Source], name: str, what: str = "scores") -> None:
        self.name, self._parts, self._what = name, list(parts), what
        first = next((part for part in self._parts if isinstance(part, FileSource)), self._parts[0])
        for number, part in enumerate(self._parts):
            same_type = part.dtype == first.dtype or not isinstance(part, FileSource)
            if part.shape[1] != first.shape[1] or not same_type or not part.on_cpu:
                raise InvalidScoresError(self._difference(self._parts.index(first), number))
        self._ends = np.cumsum([part.shape[0] for part in self._parts])
        self.shape = int(self._ends[-1]), first.shape[1]
        types = {part.dtype for part in self._parts}
        self.dtype = types.pop() if len(types) == 1 else "float64" if "float64" in types else "float32"
        self.least_rows = max(getattr(part, "least_rows", 1) for part in self._parts)
        self.reads_files = any(part.reads_files for part in self._parts)
        self._start_over()

    def _difference(self, one: int, other: int) -> str:
        """How two parts do not fit together, and what to do."""
        columns = "classes" if self._what.startswith("scores") else "columns"
        told = [
            f"{self._name_of(number)}{' holds' * (number == one)} {part.dtype} {self._what} of {part.shape[1]}"
            for number, part in ((one, self._parts[one]), (other, self._parts[other]))
        ]
        stored = any(isinstance(self._parts[number], FileSource) for number in (one, other))
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

    def reading(self) -> contextlib.AbstractContextManager[object]:
        """Each part's own."""
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.reading())
            return stack.pop_all()

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """From each part that has some of the rows."""
        at = start
        while at < stop:
            number, begin = self._find(at)
            part, end = self._parts[number], min(stop, int(self._ends[number]))
            rows = out[at - start : end - start]
            if isinstance(part, FileSource) and part.dtype == self.dtype:
                part.read_into(at - begin, end - begin, rows)
            elif part.dtype == self.dtype:
                rows[:] = part.read(at - begin, end - begin)
            else:
                rows[:] = as_float(part.read(at - begin, end - begin), part.dtype)
            if isinstance(part, FileSource):
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
        part = None if oldest is None else self._parts[oldest]
        if isinstance(part, FileSource):
            part.close()

    def place(self, row: int) -> str:
        """The row's number in all, and in its part."""
        number, begin = self._find(row)
        part = self._parts[number]
        there = part.place(row - begin)
        return f"row {row} ({there if isinstance(part, FileSource) else f'{there} of part {number}'})"

    def _find(self, row: int) -> tuple[int, int]:
        """Which part has a row, and the part's first row."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, int(self._ends[number]) - self._parts[number].shape[0]

    def _name_of(self, number: int) -> str:
        return getattr(self._parts[number], "name", f"part {number}")
