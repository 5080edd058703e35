"""What sources that lie in files share: reading by batches, and seeing whether a file is still the one that was opened.

A file is opened where it is first read, by each process for itself, so that a source may be sent to another one.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.sources.base import ITEM_BYTES, Source, Span, read_rows, storage_array
from otlabel.sources.memory import ArraySource
from otlabel.sweep.blocks import cut
from otlabel.text import printable

BATCH_BYTES = 8 << 20  # read at once: the disk is asked for much, and a few threads' batches take little memory


class FileSource(Source):
    """Rows that are read where they lie; `read_into` is all that a kind of file has to say."""

    reads_files = True
    name: str  # as a user would write it: FILE or FILE::NAME
    least_rows = 1  # that are to be read at a time: less would be wasteful
    bytes_read = 0  # so far

    @property
    def grain(self) -> int:  # type: ignore[override]
        """Rows that make up BATCH_BYTES."""
        return max(self.least_rows, BATCH_BYTES // (self.shape[1] * ITEM_BYTES[self.dtype]), 2)

    @abstractmethod
    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write rows start to stop in storage form to `out`."""

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """By one read, in memory of their own."""
        first, last = spans[0][0], spans[-1][1]
        out = storage_array((last - first, self.shape[1]), self.dtype)
        self.read_into(first, last, out)
        return (out[start - first : stop - first] for start, stop in spans)

    def take(self, rows: np.ndarray) -> ArraySource:
        """The given rows (sorted), by one read of what lies between the first and the last of them in each grain."""
        out = storage_array((len(rows), self.shape[1]), self.dtype)
        with contextlib.closing(self):
            for start, stop in cut(self.shape[0], self.grain):
                first, last = np.searchsorted(rows, (start, stop))
                if first < last:
                    low, high = int(rows[first]), int(rows[last - 1]) + 1
                    out[first:last] = read_rows(self, low, high)[rows[first:last] - low]
        return ArraySource(out, self.dtype)

    def place(self, row: int) -> str:
        """The row's number and the file."""
        return f"row {row} of {self.name}"


class Stamp:
    """What a file was when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size, *self._rest = self._now()

    def _now(self) -> tuple[int, ...]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev

    def check(self) -> None:
        """Raise FileFormatError if the file is another one now."""
        try:
            size, *rest = self._now()
        except FileNotFoundError:
            raise FileFormatError(f"{self.path} was removed while it was being read") from None
        if (size, rest) != (self.size, self._rest):
            raise FileFormatError(
                f"{self.path} was changed or replaced while it was being read: {self.size:,} bytes when it was opened, "
                f"{size:,} now; start again once it is no longer written to"
            )


def chosen(file: Path, name: str, found: list[str]) -> str:
    """The array asked for, or the only one there is."""
    if not name and len(found) == 1:
        return found[0]
    if name in found:
        return name
    if not found:
        raise FileFormatError(f"{file} holds no array at all")
    wanted = f"no {name!r}" if name else "more than one array; name one as FILE::NAME"
    raise FileFormatError(f"{file} holds {wanted}. It holds: {', '.join(map(printable, found))}")
