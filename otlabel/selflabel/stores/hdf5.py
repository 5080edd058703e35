"""Rows in one HDF5 file, which appears when it is whole (`finished.py`); until then beside it (`extraction.py`).

Where several processes have the samples, each has a file of its own, such as features.rank0-of-2.h5.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import ExtractionError, SelfLabelWarning
from otlabel.selflabel.stores.checks import (
    Contents,
    check_about,
    check_whole,
    checked_contents,
    checked_dtype,
    checked_kept,
)
from otlabel.selflabel.stores.extraction import Extraction, journal_path, rows_path
from otlabel.selflabel.stores.finished import check_ours, file_bytes, read_about, reading_finished, write_rows
from otlabel.sources.hdf5_guard import check_stored, find_dataset
from otlabel.storage.atomic import check_writable, clear_leftovers

ENDINGS = (".h5", ".hdf5")


class FeatureStore:
    """Rows in one HDF5 file, which appears when it is whole; an interrupted extraction goes on where it was.

    The file is opened when it is asked about, never kept open: the store may be pickled and forked. An extraction
    belongs to the process and the object that began it.

    Args:
        path: the file, which ends in .h5 or .hdf5; its folder must be there.
        dtype: "float16", or "float32" where numbers exceed 65504 or need more than 3 digits.
        name: of the data set in the file.

    Raises:
        ValueError: another dtype, or a path or name that cannot be written as FILE::/NAME.
    """

    _rank, _n_parts = 0, 0  # of a part, and how many there are; 0: this is none

    def __init__(self, path: str | os.PathLike[str], *, dtype: str = "float16", name: str = "features") -> None:
        self._path = Path(os.path.abspath(path))  # another process may have another working folder
        self._whole_path = self._path
        self._dtype, self._name = checked_dtype(dtype), name
        if "::" in str(self._path) or self._path.suffix.lower() not in ENDINGS:
            raise ValueError(f"path is {os.fspath(path)!r}; it must end in {' or '.join(ENDINGS)} and be free of '::'")
        if not name or "/" in name or name == ".":
            raise ValueError(f"name is {name!r}; pass a plain name without '/'")
        self._extraction: Extraction | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_extraction": None}

    def part(self, rank: int, n_ranks: int) -> FeaturePart:
        """The store of one of several processes: a file beside this one, such as features.rank0-of-2.h5."""
        return FeaturePart(self._path, rank, n_ranks, dtype=self._dtype, name=self._name)

    def begin(self, n_samples: int, n_columns: int, about: dict[str, str]) -> np.ndarray:
        """As `Store.begin`; a finished file stays whole and readable until `finish`.

        Raises:
            FileFormatError: the path holds a file that no FeatureStore made; it is left alone.
            OSError: the disk has no room for the rows on their way and the file itself, or the folder takes no files.
            ExtractionError: another extraction to the same file is under way.

        Warns:
            SelfLabelWarning: another number of processes has left an extraction unfinished; it is not gone on with.
        """
        contents = checked_contents(n_samples, n_columns, self._dtype, about, self._n_parts)
        self.close()
        check_ours(self._path)
        clear_leftovers(self._path)  # of a finish that was killed: they take up room
        if self._rank == 0:
            _tell_of_others(self._whole_path, self._n_parts)
        _check_space(self._path, contents)
        check_writable(self._path)
        self._extraction = Extraction(self._path, contents)
        return self._extraction.written.copy()

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        """As `Store.write`.

        Raises:
            OSError: the disk is full, say. Make room, and ask `begin` which rows are there.
        """
        self._begun().write(index, rows)

    def finish(self) -> None:
        """As `Store.finish`: write the file in the order of the index and rename it to its place.

        Raises:
            FileFormatError: the path holds a file now that no FeatureStore made.
            OSError: the disk is full, say. The old file is whole, and so is the extraction: make room and finish.
        """
        extraction = self._begun()
        kept = np.arange(len(extraction.written))
        check_whole(kept, extraction.written)
        self._replace(extraction, kept)

    def _replace(self, extraction: Extraction, kept: np.ndarray) -> None:
        extraction.mark()
        check_ours(self._path)
        write_rows(self._path, self._name, extraction.contents, kept, extraction.read)
        extraction.remove()
        self._extraction = None

    def close(self) -> None:
        """Leave off for now and let others go on: what was written stays for the next `begin`."""
        extraction, self._extraction = self._extraction, None
        if extraction is not None and extraction.process == os.getpid():
            extraction.close()

    def source(self) -> str:
        """The rows as a text, "FILE::/NAME".

        Raises:
            FileFormatError: a file that is foreign, unfinished, damaged or of a newer version.
        """
        with self._opened() as handle:
            dataset = find_dataset(handle, self._path, self._name)
            check_stored(dataset, f"{self._path}::{dataset.name}")
        return f"{self._path}::/{self._name}"

    @property
    def about(self) -> dict[str, str] | None:
        """As `Store.about`, read from the file.

        Raises:
            FileFormatError: a file that is foreign, unfinished, damaged or of a newer version.
        """
        if not self._path.exists():
            return None
        with self._opened() as handle:
            return read_about(handle, self._path)

    def check(self, about: dict[str, str]) -> None:
        """As `Store.check`."""
        self.source()
        check_about(str(self._path), self.about, about)

    def _opened(self) -> Any:
        """The finished file, once it is seen to be one."""
        return reading_finished(self._path, rows_path(self._path))

    def _begun(self) -> Extraction:
        if self._extraction is None:
            raise ExtractionError(f"no extraction to {self._path} was begun; call begin before write and finish")
        if self._extraction.process != os.getpid():
            raise ExtractionError(f"the extraction to {self._path} belongs to the process that began it; write there")
        return self._extraction


class FeaturePart(FeatureStore):
    """The samples that one of several processes has, in a file of their own; as `FeatureStore`, but for `finish`."""

    def __init__(self, path: Path, rank: int, n_ranks: int, *, dtype: str, name: str) -> None:
        super().__init__(_part_path(path, str(rank), str(n_ranks)), dtype=dtype, name=name)
        self._whole_path, self._rank, self._n_parts = path, rank, n_ranks

    def finish(self, kept: np.ndarray | None = None) -> None:
        """As `Part.finish` and `FeatureStore.finish`."""
        extraction = self._begun()
        self._replace(extraction, checked_kept(kept, extraction.written))

    def source(self) -> Any:
        """As `FeatureStore.source`; where there are no rows, an array (0, D)."""
        place = super().source()
        with self._opened() as handle:
            dataset = handle[self._name]
            return place if len(dataset) else np.empty(dataset.shape, dataset.dtype)


def _part_path(path: Path, rank: str, n_ranks: str) -> Path:
    return path.with_name(f"{path.stem}.rank{rank}-of-{n_ranks}{path.suffix}")


def _tell_of_others(path: Path, n_parts: int) -> None:
    """Warn of what another number of processes has left of an extraction."""
    pattern = rf"\.{re.escape(path.stem)}\.rank\d+-of-(\d+){re.escape(path.suffix)}\.journal"
    left = set()
    with contextlib.suppress(OSError):  # a folder that may be written but not listed
        found = [re.fullmatch(pattern, entry.name) for entry in os.scandir(path.parent)]
        left = {int(one[1]) for one in found if one is not None}
    if journal_path(path).exists():
        left.add(0)
    for number in sorted(left - {n_parts}):
        name = _part_path(path, "*", str(number)).name if number else path.name
        warnings.warn(
            f"an extraction to {path} by {number or 'one'} process{'es' if number else ''} was left unfinished; it is "
            f"not gone on with by {n_parts or 'one'}: rows are extracted anew. Its files .{name}.rows and "
            f".{name}.journal can be removed",
            SelfLabelWarning,
            stacklevel=3,
        )


def _check_space(path: Path, contents: Contents) -> None:
    """Raise OSError unless the disk has room for the rows on their way and for the file that they end in."""
    taken = 0  # by rows of an extraction before, whose room these will have
    with contextlib.suppress(FileNotFoundError):
        taken = 512 * rows_path(path).stat().st_blocks
    needed = max(0, contents.n_rows * contents.row_bytes - taken) + file_bytes(contents)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            f"{path} needs {needed:,} bytes, for the rows on their way and for the file itself, and its disk has "
            f"{free:,} free; make room or write elsewhere"
        )
