"""Tables in files (Parquet, Feather, CSV): a matrix of their columns of numbers, or of one column of lists of numbers.

Which columns these are can be said as FILE::NAME, several with commas or by a pattern: FILE::a,b or FILE::f*.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError, MissingPackageError
from otlabel.sources.files import Stamp
from otlabel.sources.free import check_room
from otlabel.sources.memory import open_array
from otlabel.sources.opened import Opened
from otlabel.text import printable

ENDINGS = (".parquet", ".feather", ".csv", ".tsv")
SHOWN = 8  # columns that a message lists
INDEX = "__index_level_"  # what pandas calls an index that it stores as a column


def open_table(file: Path, name: str) -> Opened:
    """The matrix, in memory; columns of numbers name the classes."""
    array, names = _read(file, name)
    return Opened.of(open_array(array, f"scores in {file}"), names)


def load_table(file: Path, name: str) -> np.ndarray:
    """The matrix, or the only column there is: labels, masses."""
    array, names = _read(file, name)
    return array[:, 0] if names is not None and array.shape[1] == 1 else array


def _read(file: Path, name: str) -> tuple[np.ndarray, list[str] | None]:
    """The numbers, and the names of the columns where they have any."""
    stamp = Stamp(file)
    read = _csv(file, name) if file.suffix.lower() in (".csv", ".tsv") else _arrow(file, name)
    stamp.check()
    return read


def _choose(file: Path, name: str, kinds: dict[str, str]) -> list[str]:
    """The columns asked for, or all; `kinds` says of each what it holds instead, or nothing where it holds numbers."""
    patterns = name.split(",") if name else ["*"]
    found = [[one for one in kinds if one == pattern or fnmatchcase(one, pattern)] for pattern in patterns]
    if not all(found):
        missing = patterns[found.index([])]
        raise FileFormatError(f"{file} has no column {printable(missing)!r}. It has: {_listed(list(kinds))}")
    columns = list(dict.fromkeys(one for matching in found for one in matching))
    if wrong := [f"{printable(one)} ({kinds[one]})" for one in columns if kinds[one]]:
        raise FileFormatError(
            f"{file} has columns that are no numbers: {_listed(wrong)}. Name those that are: {file}::NAME, or several: "
            f"'{file}::a,b', '{file}::f*'"
        )
    return columns


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more


# ---- CSV ----


def _csv(file: Path, name: str) -> tuple[np.ndarray, list[str] | None]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            delimiter = _delimiter(file, lines.readline())
            lines.seek(0)
            head = [row for row, _ in zip(csv.reader(lines, delimiter=delimiter), range(2), strict=False)]
        if not head or not head[0]:
            raise ValueError("it is empty")
        has_names = not all(map(_is_number, head[0]))
        names = head[0] if has_names else [str(k) for k in range(len(head[0]))]
        kinds = {one: "" if _is_number(text) else "text" for one, text in zip(names, head[-1], strict=True)}
        if len(kinds) < len(names):
            raise ValueError("two columns have the same name")
        if has_names and not names[0]:
            del kinds[""]  # the index that pandas writes
        columns = _choose(file, name, kinds)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*input contained no data")
            array = np.loadtxt(
                file,
                delimiter=delimiter,
                skiprows=int(has_names),
                usecols=[names.index(one) for one in columns],
                comments=None,
                quotechar='"',
                encoding="utf-8-sig",
                ndmin=2,
            )
    except FileFormatError:
        raise
    except (ValueError, csv.Error, UserWarning) as error:
        raise FileFormatError(f"{file} is not a usable table: {printable(str(error))}") from error
    if array.shape[1] == 1 and _are_whole(array):  # labels, counts
        array = array.astype(np.int64)
    return array, columns if has_names else None


def _delimiter(file: Path, line: str) -> str:
    """A comma or a tab, as the name says, but where the first line has only semicolons or tabs."""
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    return next((one for one in (usual, ";", "\t") if one in line), usual)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _are_whole(array: np.ndarray) -> bool:
    return bool((np.abs(array) < 1 << 53).all()) and bool((array == np.rint(array)).all())


# ---- Parquet and Feather ----


def _arrow(file: Path, name: str) -> tuple[np.ndarray, list[str] | None]:
    try:
        import pyarrow
        from pyarrow import feather, ipc, parquet
    except ImportError as error:
        raise MissingPackageError("pyarrow", "tables") from error
    is_parquet = file.suffix.lower() == ".parquet"
    try:
        if is_parquet:
            with parquet.ParquetFile(file) as opened:
                schema, n_rows = opened.schema_arrow, opened.metadata.num_rows
        else:
            with pyarrow.memory_map(str(file)) as content, ipc.open_file(content) as opened:
                schema, n_rows = opened.schema, 0
        kinds = {field.name: _kind(field.type, pyarrow.types) for field in schema if not field.name.startswith(INDEX)}
        lists = [one for one, kind in kinds.items() if kind == "lists"]
        if name in lists or (not name and len(lists) == 1):
            columns = [name or lists[0]]
        else:
            columns = _choose(file, name, kinds)
            check_room((n_rows, len(columns)), np.dtype(np.float64), str(file))
        read = parquet.ParquetFile(file).read if is_parquet else lambda columns: feather.read_table(str(file), columns)
        table = read(columns=columns)
    except pyarrow.ArrowException as error:
        raise FileFormatError(f"{file} is not a usable table: {printable(str(error))[:200]}") from error
    if kinds[columns[0]] == "lists":
        return _joined_lists(table.column(0).combine_chunks(), f"{file}::{printable(columns[0])}"), None
    arrays = [table.column(one).to_numpy() for one in columns]
    return np.stack(arrays, 1), columns


def _kind(kind: Any, types: Any) -> str:
    """What a column holds, or nothing where that is numbers."""
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "lists" if not _kind(kind.value_type, types) else str(kind)
    return "" if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) else str(kind)


def _joined_lists(column: Any, name: str) -> np.ndarray:
    """A column of lists of numbers as a matrix."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != lengths[:1])
    if column.null_count or len(wrong):
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) if column.null_count else int(wrong[0])
        told = "is missing" if column.null_count else f"has {lengths[row]} numbers, row 0 has {lengths[0]}"
        raise FileFormatError(f"row {row} of {name} {told}; all rows of a matrix have as many")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(lengths), -1) if len(lengths) else values.reshape(0, 0)
