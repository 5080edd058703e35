"""Several sources as one, the rows of the first, then those of the second, and so on; and some rows of one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.scores.base import Scores
from otlabel.scores.files import StoredScores
from otlabel.scores.memory import ArrayScores

MOST_OPEN = 64  # parts whose files stay open: a system allows a process about a thousand


def rows_between(source: Scores, first: int, stop: int) -> Scores:
    """Consecutive rows of a source as one of their own."""
    if isinstance(source, StoredScores):
        return RowRange(source, first, stop)
    if isinstance(source, ArrayScores):
        return ArrayScores(source.array[first:stop], source.dtype)
    return source.take(np.arange(first, stop))


class RowRange(StoredScores):
    """Rows of a source in files from one row up to another."""

    def __init__(self, source: StoredScores, first: int, stop: int) -> None:
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


class Parts(StoredScores):
    """Row-concatenated sources with the same classes and type."""

    def __init__(self, parts: Sequence[Scores], name: str) -> None:
        self.name, self._parts = name, list(parts)
        first = self._parts[0]
        for number, part in enumerate(self._parts):
            if (part.shape[1], part.dtype) != (first.shape[1], first.dtype) or not part.on_cpu:
                raise InvalidScoresError(
                    f"parts differ: {self._name_of(0)} holds {first.dtype} scores of {first.shape[1]} classes, "
                    f"{self._name_of(number)} {part.dtype} of {part.shape[1]}; store all parts alike"
                )
        self._ends = np.cumsum([part.shape[0] for part in self._parts])
        self.shape, self.dtype = (int(self._ends[-1]), first.shape[1]), first.dtype
        self.least_rows = max(getattr(part, "least_rows", 1) for part in self._parts)
        self._start_over()

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
            if isinstance(part, StoredScores):
                part.read_into(at - begin, end - begin, rows)
                self._close_others(number)
            else:
                rows[:] = part.read(at - begin, end - begin)
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
        if isinstance(part, StoredScores):
            part.close()

    def place(self, row: int) -> str:
        """The row's number in all, and in its part."""
        number, begin = self._find(row)
        return f"row {row} ({self._parts[number].place(row - begin)})"

    def _find(self, row: int) -> tuple[int, int]:
        """Which part has a row, and the part's first row."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, int(self._ends[number]) - self._parts[number].shape[0]

    def _name_of(self, number: int) -> str:
        return getattr(self._parts[number], "name", f"part {number}")
