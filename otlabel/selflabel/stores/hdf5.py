"""Rows that a model gives, one a sample (features, as a rule): kept in memory, or in one HDF5 file.

An extraction writes rows in any order and shows them once all are there; until then what was extracted before stays as
it is. The HDF5 layout, version 1:

    /features    (N, D) float16 or float32, in chunks of about 1 MiB of whole rows with checksums (fletcher32)
    attributes   format = "otlabel.features", format_version = 1, complete = True, dtype (text)
                 about: a JSON text, what the rows are of
                 texts_crc32 (uint32): of all texts among them, as JSON with sorted names
                 texts are UTF-8 of fixed length, or of variable length in files of before

Two files beside it hold an extraction under way, so that it goes on where it was killed:

    .NAME.rows      the bytes of every row at its place
    .NAME.journal   a line of JSON (version, shape, dtype, about), then records of rows on the disk for certain:
                    the number of runs and a CRC-32, both uint32; for each run its first row and the row after its
                    last one, both int64. A record that was cut off does not count, nor does what follows one.

Where several processes have the samples, each has a part: NAME.rank0-of-2.h5, of the same layout with

    /features_index    (n,) int64: which samples its rows are of, in rising order
    attributes         n_samples = N, of all parts

In the .rows of a part, rows lie in the order in which they came, which its journal tells.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from otlabel.errors import ExtractionError, FileFormatError, FingerprintError, InvalidScoresError, SelfLabelWarning
from otlabel.files import check_writable, clear_leftovers, replacing
from otlabel.sources.hdf5 import (
    DAMAGE,
    LIBVER,
    check_stored,
    check_texts,
    find_dataset,
    read_attribute,
    read_attributes,
    reading_hdf5,
    write_attributes,
)

if TYPE_CHECKING:
    import h5py

FORMAT = "otlabel.features"
FORMAT_VERSION = 1
TEXTS = ("format", "dtype", "about")
DTYPES = ("float16", "float32")
ENDINGS = (".h5", ".hdf5")
CHUNK_BYTES = 1 << 20
HDF5_HEADER_BYTES, HDF5_BYTES_A_CHUNK = 96 << 10, 256  # more than its structures take
MOST_ABOUT_BYTES = 32 << 10  # HDF5 has room for an attribute of 64 KiB
MARK_BYTES, MARK_SECONDS = 64 << 20, 5.0  # rows are marked in the journal once there are so many, or after so long
RECORD = struct.Struct("<II")
INDEX_BYTES = 8  # of a row's number, in a part
NAMED = 5  # rows that an error names


class Store(Protocol):
    """Where the rows of an extraction go, and where they are read from afterwards.

    A store of your own may have `part(rank, n_ranks)` as the stores here: a `Part` for the samples that one of several
    processes has. Without that, the first process keeps all rows.
    """

    def begin(self, n_samples: int, n_columns: int, about: dict[str, str]) -> np.ndarray:
        """Start an extraction, or go on with one that was interrupted.

        Args:
            n_samples: N.
            n_columns: D.
            about: what the rows are of, such as {"data": fingerprint, "model": hash of the weights}. An interrupted
                extraction goes on if this, the shape and the dtype are the very same; else it starts over.

        Returns:
            (N,) bool, True for rows that are there already.
        """
        ...

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Add rows, in any order and number.

        Args:
            index: (B,) integers, the samples that the rows are of, 0 to N - 1; each comes once in an extraction.
            rows: (B, D) finite numbers.

        Raises:
            ValueError: an index out of range or seen before, or rows of the wrong shape; nothing was written.
            InvalidScoresError: NaN, infinity, or a number too large for the dtype; nothing was written.
        """
        ...

    def finish(self) -> None:
        """Let the new rows take the place of the old ones.

        Raises:
            ValueError: some rows were never written. Write them, then finish.
        """
        ...

    def close(self) -> None:
        """Leave off for now: an extraction under way stays as it is for the next `begin`."""
        ...

    def source(self) -> Any:
        """The finished rows as `sinkhorn_assign` and `linear_scores` take them.

        Raises:
            ExtractionError: there are none yet.
        """
        ...

    @property
    def about(self) -> dict[str, str] | None:
        """What the finished rows are of; None if there are none."""
        ...

    def check(self, about: dict[str, str]) -> None:
        """Make sure that the finished rows are of exactly this.

        Raises:
            FingerprintError: they are of something else.
            ExtractionError: there are none yet.
        """
        ...


class Part(Store, Protocol):
    """Where one of several processes has its rows."""

    def finish(self, kept: np.ndarray | None = None) -> None:
        """Let the new rows take the place of the old ones.

        Args:
            kept: (n,) which samples to keep, in rising order, possibly none; others have the rest. None: all that came.

        Raises:
            ValueError: some of them were never written. Write them, then finish.
        """
        ...


class TensorStore:
    """Rows in memory, for small data.

    Args:
        dtype: "float32", or "float16" for half the memory.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, dtype: str = "float32") -> None:
        self._dtype = _checked_dtype(dtype)
        self._finished: tuple[_Contents, np.ndarray] | None = None
        self._extraction: tuple[_Contents, np.ndarray] | None = None
        self._written = np.zeros(0, bool)  # rows of the extraction that are there
        self._parts: dict[tuple[int, int], TensorPart] = {}

    def part(self, rank: int, n_ranks: int) -> TensorPart:
        """The store of one of several processes, the same each time."""
        return self._parts.setdefault((rank, n_ranks), TensorPart(self._dtype))

    def begin(self, n_samples: int, n_columns: int, about: dict[str, str]) -> np.ndarray:
        """As `Store.begin`; the rows of before are kept until `finish`."""
        contents = _checked_contents(n_samples, n_columns, self._dtype, about)
        if self._extraction is None or self._extraction[0] != contents:
            self._extraction = contents, self._room(contents)
            self._written = np.zeros(n_samples, bool)
        return self._written.copy()

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        """As `Store.write`."""
        contents, stored = self._begun()
        ordered, checked = _checked_rows(index, rows, self._written, contents)
        stored[ordered] = checked
        self._written[ordered] = True

    def finish(self) -> None:
        """As `Store.finish`."""
        begun = self._begun()
        _check_whole(np.arange(len(self._written)), self._written)
        self._finished, self._extraction = begun, None

    def close(self) -> None:
        """Nothing is open; rows stay in memory."""

    def source(self) -> np.ndarray:
        """The rows, (N, D), the array itself."""
        if self._finished is None:
            raise ExtractionError(_nothing("the store in memory", self._extraction is not None))
        return self._finished[1]

    @property
    def about(self) -> dict[str, str] | None:
        """As `Store.about`."""
        return None if self._finished is None else dict(self._finished[0].about)

    def check(self, about: dict[str, str]) -> None:
        """As `Store.check`."""
        self.source()
        _check_about("the store in memory", self.about, about)

    def _room(self, contents: _Contents) -> np.ndarray:
        """For the rows of an extraction."""
        return np.zeros(contents.shape, contents.dtype)

    def _begun(self) -> tuple[_Contents, np.ndarray]:
        if self._extraction is None:
            raise ExtractionError("no extraction was begun; call begin before write and finish")
        return self._extraction


class TensorPart(TensorStore):
    """The samples that one of several processes has, in memory; `source` gives them in rising order, (n, D)."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self._came: list[tuple[np.ndarray, np.ndarray]] = []  # indices and their rows

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        """As `Store.write`."""
        ordered, checked = _checked_rows(index, rows, self._written, self._begun()[0])
        self._came.append((ordered, checked.copy()))
        self._written[ordered] = True

    def finish(self, kept: np.ndarray | None = None) -> None:
        """As `Part.finish`."""
        contents, _ = self._begun()
        kept = _checked_kept(kept, self._written)
        places = np.full(contents.shape[0], -1)
        places[kept] = np.arange(len(kept))
        rows = np.empty((len(kept), contents.shape[1]), contents.dtype)
        for index, some in self._came:
            wanted = places[index] >= 0
            rows[places[index[wanted]]] = some[wanted]
        self._finished, self._extraction, self._came = (contents, rows), None, []

    def _room(self, contents: _Contents) -> np.ndarray:
        self._came = []
        return np.zeros((0, contents.shape[1]), contents.dtype)


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
        self._dtype, self._name = _checked_dtype(dtype), name
        if "::" in str(self._path) or self._path.suffix.lower() not in ENDINGS:
            raise ValueError(f"path is {os.fspath(path)!r}; it must end in {' or '.join(ENDINGS)} and be free of '::'")
        if not name or "/" in name or name == ".":
            raise ValueError(f"name is {name!r}; pass a plain name without '/'")
        self._extraction: _Extraction | None = None

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
        contents = _checked_contents(n_samples, n_columns, self._dtype, about, self._n_parts)
        self.close()
        _check_ours(self._path)
        clear_leftovers(self._path)  # of a finish that was killed: they take up room
        if self._rank == 0:
            _tell_of_others(self._whole_path, self._n_parts)
        _check_space(self._path, contents)
        check_writable(self._path)
        self._extraction = _Extraction(self._path, contents)
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
        _check_whole(kept, extraction.written)
        self._replace(extraction, kept)

    def _replace(self, extraction: _Extraction, kept: np.ndarray) -> None:
        extraction.mark()
        _check_ours(self._path)
        _write_hdf5(self._path, self._name, extraction, kept)
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
            return _read_about(handle, self._path)

    def check(self, about: dict[str, str]) -> None:
        """As `Store.check`."""
        self.source()
        _check_about(str(self._path), self.about, about)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        """The finished file, once it is seen to be one."""
        if not self._path.exists():
            raise ExtractionError(_nothing(str(self._path), _rows_path(self._path).exists()))
        with reading_hdf5(self._path) as handle:
            _check_format(handle, self._path)
            yield handle

    def _begun(self) -> _Extraction:
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
        self._replace(extraction, _checked_kept(kept, extraction.written))

    def source(self) -> Any:
        """As `FeatureStore.source`; where there are no rows, an array (0, D)."""
        place = super().source()
        with self._opened() as handle:
            dataset = handle[self._name]
            return place if len(dataset) else np.empty(dataset.shape, dataset.dtype)


def _part_path(path: Path, rank: str, n_ranks: str) -> Path:
    return path.with_name(f"{path.stem}.rank{rank}-of-{n_ranks}{path.suffix}")


# ---- what is handed over ----


@dataclass(frozen=True)
class _Contents:
    """What tells one extraction from another."""

    shape: tuple[int, int]
    dtype: str
    about: dict[str, str]
    n_parts: int = 0  # 0: all rows are here

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def n_rows(self) -> int:
        """How many are to be expected here, where parts are of equal sizes."""
        return -(-self.shape[0] // max(self.n_parts, 1))

    def chunk_rows(self, n_rows: int) -> int:
        """Rows of a chunk: all are of about equal size, since each is stored in full."""
        n_chunks = -(-n_rows * self.row_bytes // CHUNK_BYTES)
        return max(1, -(-n_rows // max(n_chunks, 1)))

    def header(self) -> bytes:
        """The first line of a journal."""
        told = {"format": f"{FORMAT}.journal", "format_version": FORMAT_VERSION, "shape": self.shape}
        told |= {"dtype": self.dtype, "about": self.about}
        if self.n_parts:
            told["n_parts"] = self.n_parts
        return json.dumps(told, sort_keys=True).encode() + b"\n"


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; pass {' or '.join(map(repr, DTYPES))}")
    return dtype


def _checked_contents(n_samples: int, n_columns: int, dtype: str, about: dict[str, str], n_parts: int = 0) -> _Contents:
    sizes: dict[str, Any] = {"n_samples": n_samples, "n_columns": n_columns}
    for name, value in sizes.items():
        if type(value) is bool or not isinstance(value, Integral) or int(value) < 1:
            raise ValueError(f"{name} is {value!r}; pass a whole number from 1 up")
    texts: Any = about
    if not isinstance(texts, dict) or not all(isinstance(text, str) for pair in texts.items() for text in pair):
        raise ValueError(f"about is {about!r}; pass a dictionary of texts")
    n_bytes = len(json.dumps(about))
    if n_bytes > MOST_ABOUT_BYTES:
        raise ValueError(f"about takes {n_bytes:,} bytes, more than {MOST_ABOUT_BYTES:,}; pass hashes of what is long")
    return _Contents((int(n_samples), int(n_columns)), dtype, dict(about), n_parts)


def _checked_rows(
    index: np.ndarray, rows: np.ndarray, written: np.ndarray, contents: _Contents
) -> tuple[np.ndarray, np.ndarray]:
    """Index (B,) int64 in rising order, and its rows (B, D) in the type they are stored in."""
    index, rows = np.asarray(index), np.asarray(rows)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise ValueError(f"index has shape {index.shape} of {index.dtype}; pass (B,) integers")
    if rows.ndim != 2 or rows.shape[1] != contents.shape[1] or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"rows have shape {rows.shape} of {rows.dtype}; the extraction was begun for {contents.shape[1]} columns "
            f"of numbers, pass (B, {contents.shape[1]})"
        )
    if len(rows) != len(index):
        raise ValueError(f"there are {len(rows)} rows for {len(index)} indices; pass one for each")
    outside = (index < 0) | (index >= len(written))
    if outside.any():
        raise ValueError(f"index {index[outside][0]} is out of range; samples are 0 to {len(written) - 1}")
    index = index.astype(np.int64)  # a copy: a caller may use the same array again
    if (index[1:] <= index[:-1]).any():
        order = np.argsort(index, kind="stable")
        index, rows = index[order], rows[order]
    seen = written[index]
    seen[1:] |= index[1:] == index[:-1]
    if seen.any():
        raise ValueError(
            f"index {index[seen][0]} was written before; pass every index once. Where a distributed sampler repeats "
            "samples to even out its parts, drop the repetitions first; where begin returned True, the row is there"
        )
    with np.errstate(over="ignore"):
        stored = rows.astype(contents.dtype, order="C", copy=False)
    if not np.isfinite(stored).all():
        _blame_sample(index, rows, stored)
    return index, stored


def _blame_sample(index: np.ndarray, rows: np.ndarray, stored: np.ndarray) -> None:
    """Name the first sample whose row cannot be stored."""
    row, column = np.argwhere(~np.isfinite(stored))[0]
    value, where = rows[row, column], f"in column {column} of sample {index[row]}"
    if not np.isfinite(value):
        raise InvalidScoresError(f"{value} {where}; rows must be finite")
    remedy = 'pass dtype="float32"' if stored.dtype == np.float16 else "scale the rows down"
    raise InvalidScoresError(f"{value} {where} is too large for {stored.dtype}; {remedy}")


def _check_whole(wanted: np.ndarray, written: np.ndarray) -> None:
    missing = wanted[~written[wanted]]
    if len(missing):
        named = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise ValueError(f"{len(missing):,} of {len(wanted):,} rows are missing: {named}; write them, then finish")


def _checked_kept(kept: np.ndarray | None, written: np.ndarray) -> np.ndarray:
    """The samples that a part is to keep, in rising order, each of which has come."""
    if kept is None:
        return np.flatnonzero(written)
    if kept.ndim != 1 or kept.dtype.kind not in "iu" or (np.diff(kept) <= 0).any():
        raise ValueError(f"kept has shape {kept.shape} of {kept.dtype}; pass (n,) integers in rising order")
    _check_whole(kept, written)
    return kept


def _check_about(name: str, found: dict[str, str] | None, wanted: dict[str, str]) -> None:
    if found != wanted:
        texts = [json.dumps(about, sort_keys=True) for about in (found, wanted)]
        raise FingerprintError(f"{name} is of {texts[0]}, not of {texts[1]}; extract again, or name another store")


def _nothing(name: str, under_way: bool) -> str:
    """Why there are no rows yet."""
    if under_way:
        return f"the extraction to {name} is unfinished; begin again with the same arguments, write the rest and finish"
    return f"nothing was extracted to {name} yet; call begin, write and finish first"


# ---- an extraction on its way, on the disk ----


def _rows_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.rows")


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


def _tell_of_others(path: Path, n_parts: int) -> None:
    """Warn of what another number of processes has left of an extraction."""
    pattern = rf"\.{re.escape(path.stem)}\.rank\d+-of-(\d+){re.escape(path.suffix)}\.journal"
    left = set()
    with contextlib.suppress(OSError):  # a folder that may be written but not listed
        found = [re.fullmatch(pattern, entry.name) for entry in os.scandir(path.parent)]
        left = {int(one[1]) for one in found if one is not None}
    if _journal_path(path).exists():
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


def _check_space(path: Path, contents: _Contents) -> None:
    """Raise OSError unless the disk has room for the rows on their way and for the file that they end in."""
    n_rows, chunk_rows = contents.n_rows, contents.chunk_rows(contents.n_rows)
    n_chunks = -(-n_rows // chunk_rows)
    chunk_bytes = chunk_rows * (contents.row_bytes + (INDEX_BYTES if contents.n_parts else 0)) + HDF5_BYTES_A_CHUNK
    taken = 0  # by rows of an extraction before, whose room these will have
    with contextlib.suppress(FileNotFoundError):
        taken = 512 * _rows_path(path).stat().st_blocks
    needed = max(0, n_rows * contents.row_bytes - taken) + HDF5_HEADER_BYTES + n_chunks * chunk_bytes
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            f"{path} needs {needed:,} bytes, for the rows on their way and for the file itself, and its disk has "
            f"{free:,} free; make room or write elsewhere"
        )


class _Extraction:
    """Rows at their places in a raw file, and the journal of those that are on the disk; locked against others."""

    def __init__(self, path: Path, contents: _Contents) -> None:
        self.path, self.contents, self.process = path, contents, os.getpid()
        self.written = np.zeros(contents.shape[0], bool)
        # Where each row lies: at its own place, or in a part, which has but some of them, in the order they came in.
        self._places = np.full(contents.shape[0], -1) if contents.n_parts else np.arange(contents.shape[0])
        self._n_placed = 0
        self._pending: list[np.ndarray] = []  # indices of rows that the journal does not have
        self._pending_bytes, self._marked = 0, time.monotonic()
        with contextlib.ExitStack() as opened:
            self._journal = opened.enter_context(_locked(_journal_path(path)))
            self._rows = opened.enter_context(_open(_rows_path(path)))
            with _naming(_journal_path(path)):
                self._journal_end = self._replayed()
                if not self._journal_end:
                    self._start_over()
            opened.pop_all()

    def _replayed(self) -> int:
        """Take over what the journal of the same extraction has; where its good records end, 0 if it is of another."""
        header, content = self.contents.header(), self._journal.readall()
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
        header = self.contents.header()
        self._journal.truncate(0)  # before its rows go
        os.fdatasync(self._journal.fileno())
        with _naming(_rows_path(self.path)):
            self._rows.truncate(self.contents.n_bytes)
        _write_at(self._journal.fileno(), header, 0)
        os.fdatasync(self._journal.fileno())
        self._journal_end = len(header)

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        index, stored = _checked_rows(index, rows, self.written, self.contents)
        places = self._free_places(index)
        with _naming(_rows_path(self.path)):
            for first, stop in _runs(places).tolist():
                place = int(places[first]) * self.contents.row_bytes
                _write_at(self._rows.fileno(), stored[first:stop].reshape(-1).view(np.uint8).data, place)
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
            with _naming(_rows_path(self.path)):
                os.fdatasync(self._rows.fileno())
        except OSError:
            self.written[index] = False  # nobody knows which of them are there, and a second call would not tell
            self._n_placed -= len(index)
            self._forget_pending()
            raise
        positions = _runs(index)
        runs = np.stack([index[positions[:, 0]], index[positions[:, 1] - 1] + 1], axis=1).astype("<i8").tobytes()
        checksum = zlib.crc32(runs, zlib.crc32(self.contents.header()))
        record = RECORD.pack(len(positions), checksum) + runs
        with _naming(_journal_path(self.path)):
            _write_at(self._journal.fileno(), record, self._journal_end)  # over what a write that failed has left
            os.fdatasync(self._journal.fileno())
        self._journal_end += len(record)
        self._forget_pending()

    def _forget_pending(self) -> None:
        self._pending, self._pending_bytes, self._marked = [], 0, time.monotonic()

    def read(self, index: np.ndarray) -> np.ndarray:
        """The rows of samples that are there."""
        rows = np.empty((len(index), self.contents.shape[1]), self.contents.dtype)
        places = self._places[index]
        with _naming(_rows_path(self.path)):
            for first, stop in _runs(places).tolist():
                memory = rows[first:stop].reshape(-1).view(np.uint8).data
                n_read = _read_at(self._rows.fileno(), memory, int(places[first]) * self.contents.row_bytes)
                if n_read < len(memory):
                    raise FileFormatError(f"{_rows_path(self.path)} was cut short; remove it and extract again")
        return rows

    def close(self) -> None:
        """Mark what can be marked and give the lock back."""
        with self._journal, self._rows:
            self.mark()

    def remove(self) -> None:
        """Remove both files, the journal last: it is the lock."""
        with self._journal, self._rows:
            _rows_path(self.path).unlink(missing_ok=True)
            _journal_path(self.path).unlink(missing_ok=True)


def _runs(index: np.ndarray) -> np.ndarray:
    """Positions (n, 2), first and after the last, of the runs of consecutive numbers in an index."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    ends = np.concatenate([breaks, [len(index)]] if len(index) else [breaks])
    return np.stack([np.concatenate([[0], breaks])[: len(ends)], ends], axis=1)


def _open(path: Path) -> Any:
    """A file for reading and writing, made if it is not there, without a buffer."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


def _locked(path: Path) -> Any:
    """The journal, which one extraction at a time may hold."""
    while True:
        file = _open(path)
        if not _is_free(file):
            file.close()
            raise ExtractionError(
                f"another extraction holds {path}, in another process (or a worker that it left behind) or another "
                "store; wait for it, close it, or write elsewhere"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # removed by the one that held it, in the moment before it was locked


def _is_free(file: Any) -> bool:
    """Lock a file unless somebody else has; where there are no locks, nobody has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _write_at(descriptor: int, content: Any, place: int) -> None:
    """All of the bytes: the system may take a part of them, and tells why at the next."""
    view = memoryview(content)
    while len(view):
        n_written = os.pwrite(descriptor, view, place)
        view, place = view[n_written:], place + n_written


def _read_at(descriptor: int, content: memoryview, place: int) -> int:
    """Fill the memory; returns how many bytes there were."""
    n_read = 0
    while n_read < len(content):
        n_more = os.preadv(descriptor, [content[n_read:]], place + n_read)
        if not n_more:
            break
        n_read += n_more
    return n_read


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system say which file they are about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


# ---- the finished file ----


def _write_hdf5(path: Path, name: str, extraction: _Extraction, kept: np.ndarray) -> None:
    """The file with the rows of some samples, chunk by chunk, whole or not at all."""
    import h5py

    contents = extraction.contents
    n_rows, step = len(kept), contents.chunk_rows(len(kept))
    with replacing(path) as file, open(file.name, "r+b", buffering=0) as opened:
        disk = _Disk(opened.fileno())
        try:
            with h5py.File(disk, "w", libver=LIBVER) as handle:
                shape = n_rows, contents.shape[1]
                stored: dict[str, Any] = {"chunks": (step, shape[1]), "fletcher32": True} if n_rows else {}
                dataset = handle.create_dataset(name, shape, contents.dtype, **stored)
                for start in range(0, n_rows, step):
                    stop = min(start + step, n_rows)
                    dataset[start:stop] = extraction.read(kept[start:stop])
                    disk.check()
                if contents.n_parts:
                    handle.create_dataset(f"{name}_index", data=kept, **(stored and stored | {"chunks": (step,)}))
                    handle.attrs.update(n_samples=contents.shape[0])
                about = {"format": FORMAT, "format_version": FORMAT_VERSION, "dtype": contents.dtype}
                about |= {"about": json.dumps(contents.about, sort_keys=True), "complete": True}
                write_attributes(handle, about)
        finally:
            disk.check()  # says more than what HDF5 makes of it


class _Disk:
    """A file as HDF5 writes it, which keeps the first error to itself until it is asked for.

    HDF5 that meets a full disk while it closes a file can neither close it nor go on: it never hears of one.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._place = self._size = 0
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the error that came first."""
        if self._error is not None:
            raise self._error

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._place = place + (self._size if whence == os.SEEK_END else self._place if whence == os.SEEK_CUR else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if self._error is None:
            try:
                _write_at(self._descriptor, view, self._place)
            except BaseException as error:  # an interrupt, too, would be lost in there
                self._error = error
        self._place += len(view)
        self._size = max(self._size, self._place)
        return len(view)

    def readinto(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        n_read = _read_at(self._descriptor, view, self._place)
        view[n_read:] = bytes(len(view) - n_read)  # of what was never written
        self._place += len(view)
        return len(view)

    def read(self, n_bytes: int) -> bytes:
        content = bytearray(n_bytes)
        self.readinto(content)
        return bytes(content)

    def truncate(self, size: int) -> int:
        self._size = size
        if self._error is None:
            try:
                os.ftruncate(self._descriptor, size)
            except BaseException as error:
                self._error = error
        return size

    def flush(self) -> None:
        """Whoever opened the file flushes it."""


def _check_ours(path: Path) -> None:
    """Refuse to replace a file unless a store made it, whatever its version."""
    if not os.path.lexists(path):
        return
    ours = False
    if path.is_file():
        with contextlib.suppress(FileFormatError), reading_hdf5(path) as handle:
            ours = _attribute(handle, "format") == FORMAT
    if not ours:
        raise FileFormatError(f"{path} is no file of {FORMAT} and is not replaced; remove it or write elsewhere")


def _check_format(handle: h5py.File, path: Path) -> None:
    """Refuse a file unless it says that it is a finished one of a version known here."""
    if _attribute(handle, "format") != FORMAT:
        raise FileFormatError(f"{path} is no file of {FORMAT}: its attribute 'format' says otherwise, or is not there")
    version = _attribute(handle, "format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(f"{path} is of version {version}; version {FORMAT_VERSION} is read here, update otlabel")
    if _attribute(handle, "complete") is not True:
        raise FileFormatError(f"{path} was never finished; extract again")


def _read_about(handle: h5py.File, path: Path) -> dict[str, str]:
    try:
        about = json.loads(_attribute(handle, "about"))
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{path} does not say what its rows are of, or that is damaged: {error}") from error
    if not isinstance(about, dict):
        raise FileFormatError(f"{path} does not say what its rows are of: 'about' is no dictionary")
    check_texts(handle, read_attributes(handle, TEXTS))
    return about


def _attribute(handle: h5py.File, name: str) -> Any:
    """A single value; None for what is not there, cannot be read or is an array."""
    try:
        value = read_attribute(handle, name)
    except DAMAGE:
        return None
    return value.item() if isinstance(value, np.generic) else None if isinstance(value, np.ndarray) else value
