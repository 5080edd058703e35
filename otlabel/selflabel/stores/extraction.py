"""An extraction to a file that is under way, so that it goes on where it was killed: two files beside that file.

    .NAME.rows      the bytes of every row at its place
    .NAME.journal   a line of JSON (version, shape, dtype, about), then records of rows on the disk for certain:
                    the number of runs and a CRC-32, both uint32; for each run its first row and the row after its
                    last one, both int64. A record that was cut off does not count, nor does what follows one.

In the .rows of a part, rows lie in the order in which they came, which its journal tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.selflabel.stores.checks import Contents, checked_rows
from otlabel.selflabel.stores.finished import FORMAT, FORMAT_VERSION
from otlabel.selflabel.stores.raw import naming, open_locked, open_raw, read_at, write_at

MARK_BYTES, MARK_SECONDS = 64 << 20, 5.0  # rows are marked in the journal once there are so many, or after so long
RECORD = struct.Struct("<II")


class Extraction:
    """Rows at their places in a raw file, and the journal of those that are on the disk; locked against others."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents, self.process = path, contents, os.getpid()
        self.written = np.zeros(contents.shape[0], bool)
        # Where each row lies: at its own place, or in a part, which has but some of them, in the order they came in.
        self._places = np.full(contents.shape[0], -1) if contents.n_parts else np.arange(contents.shape[0])
        self._n_placed = 0
        self._pending: list[np.ndarray] = []  # indices of rows that the journal does not have
        self._pending_bytes, self._marked = 0, time.monotonic()
        self._header = _header(contents)
        with contextlib.ExitStack() as opened:
            self._journal = opened.enter_context(open_locked(journal_path(path)))
            self._rows = opened.enter_context(open_raw(rows_path(path)))
            with naming(journal_path(path)):
                self._journal_end = self._replayed()
                if not self._journal_end:
                    self._start_over()
            opened.pop_all()

    def _replayed(self) -> int:
        """Take over what the journal of the same extraction has; where its good records end, 0 if it is of another."""
        header, content = self._header, self._journal.readall()
        if not content.startswith(header) or os.fstat(self._rows.fileno()).st_size != self.contents.n_bytes:
            return 0
        end = len(header)
        while end + RECORD.size <= len(content):
            n_runs, checksum = RECORD.unpack_from(content, end)
            runs = content[end + RECORD.size : end + RECORD.size + 16 * n_runs]
            if len(runs) < 16 * n_runs or zlib.crc32(runs, zlib.crc32(header)) != checksum:
                break
            for first, stop in np.frombuffer(runs, "<i8").reshape(-1, 2).tolist():
                self._place(np.arange(first, stop))
            end += RECORD.size + len(runs)
        self._journal.truncate(end)  # or the rest of it would follow the next record
        return end

    def _start_over(self) -> None:
        header = self._header
        self._journal.truncate(0)  # before its rows go
        os.fdatasync(self._journal.fileno())
        with naming(rows_path(self.path)):
            self._rows.truncate(self.contents.n_bytes)
        write_at(self._journal.fileno(), header, 0)
        os.fdatasync(self._journal.fileno())
        self._journal_end = len(header)

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        """As `Store.write`."""
        index, stored = checked_rows(index, rows, self.written, self.contents)
        places = self._free_places(index)
        with naming(rows_path(self.path)):
            for first, stop in _runs(places).tolist():
                place = int(places[first]) * self.contents.row_bytes
                write_at(self._rows.fileno(), stored[first:stop].reshape(-1).view(np.uint8).data, place)
        self._place(index)
        self._pending.append(index)
        self._pending_bytes += stored.nbytes
        if self._pending_bytes >= MARK_BYTES or time.monotonic() >= self._marked + MARK_SECONDS:
            self.mark()

    def _free_places(self, index: np.ndarray) -> np.ndarray:
        """Where rows that come now are to lie."""
        return self._n_placed + np.arange(len(index)) if self.contents.n_parts else index

    def _place(self, index: np.ndarray) -> None:
        """Take note of rows that lie there."""
        self._places[index] = self._free_places(index)
        self._n_placed += len(index)
        self.written[index] = True

    def mark(self) -> None:
        """Send rows to the disk, then say in the journal that they are there."""
        index = np.concatenate([np.zeros(0, np.int64), *self._pending])
        if not len(index):
            return
        if not self.contents.n_parts:  # a part's places are told by the order
            index.sort()
        try:
            with naming(rows_path(self.path)):
                os.fdatasync(self._rows.fileno())
        except OSError:
            self.written[index] = False  # nobody knows which of them are there, and a second call would not tell
            self._n_placed -= len(index)
            self._forget_pending()
            raise
        positions = _runs(index)
        runs = np.stack([index[positions[:, 0]], index[positions[:, 1] - 1] + 1], axis=1).astype("<i8").tobytes()
        checksum = zlib.crc32(runs, zlib.crc32(self._header))
        record = RECORD.pack(len(positions), checksum) + runs
        with naming(journal_path(self.path)):
            write_at(self._journal.fileno(), record, self._journal_end)  # over what a write that failed has left
            os.fdatasync(self._journal.fileno())
        self._journal_end += len(record)
        self._forget_pending()

    def _forget_pending(self) -> None:
        self._pending, self._pending_bytes, self._marked = [], 0, time.monotonic()

    def read(self, index: np.ndarray) -> np.ndarray:
        """The rows of samples that are there."""
        rows = np.empty((len(index), self.contents.shape[1]), self.contents.dtype)
        places = self._places[index]
        with naming(rows_path(self.path)):
            for first, stop in _runs(places).tolist():
                memory = rows[first:stop].reshape(-1).view(np.uint8).data
                n_read = read_at(self._rows.fileno(), memory, int(places[first]) * self.contents.row_bytes)
                if n_read < len(memory):
                    raise FileFormatError(f"{rows_path(self.path)} was cut short; remove it and extract again")
        return rows

    def close(self) -> None:
        """Mark what can be marked and give the lock back."""
        with self._journal, self._rows:
            self.mark()

    def remove(self) -> None:
        """Remove both files, the journal last: it is the lock."""
        with self._journal, self._rows:
            rows_path(self.path).unlink(missing_ok=True)
            journal_path(self.path).unlink(missing_ok=True)


def _header(contents: Contents) -> bytes:
    """The first line of a journal."""
    told = {"format": f"{FORMAT}.journal", "format_version": FORMAT_VERSION, "shape": contents.shape}
    told |= {"dtype": contents.dtype, "about": contents.about}
    if contents.n_parts:
        told["n_parts"] = contents.n_parts
    return json.dumps(told, sort_keys=True).encode() + b"\n"


def rows_path(path: Path) -> Path:
    """Where the rows for a file are until it is whole."""
    return path.with_name(f".{path.name}.rows")


def journal_path(path: Path) -> Path:
    """Where it says which of them are on the disk."""
    return path.with_name(f".{path.name}.journal")


def _runs(index: np.ndarray) -> np.ndarray:
    """Positions (n, 2), first and after the last, of the runs of consecutive numbers in an index."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    ends = np.concatenate([breaks, [len(index)]] if len(index) else [breaks])
    return np.stack([np.concatenate([[0], breaks])[: len(ends)], ends], axis=1)
