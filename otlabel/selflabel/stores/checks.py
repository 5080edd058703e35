"""What is handed to a store, looked at before anything is written; the same for every kind of store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from otlabel.errors import FingerprintError, InvalidScoresError

DTYPES = ("float16", "float32")
MOST_ABOUT_BYTES = 32 << 10  # HDF5 has room for an attribute of 64 KiB
NAMED = 5  # rows that an error names


@dataclass(frozen=True)
class Contents:
    """What tells one extraction from another."""

    shape: tuple[int, int]
    dtype: str
    about: dict[str, str]
    n_parts: int = 0  # 0: all rows are here

    @property
    def row_bytes(self) -> int:
        """Of one row as it is stored."""
        return self.shape[1] * np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        """Of the rows of all samples."""
        return self.shape[0] * self.row_bytes

    @property
    def n_rows(self) -> int:
        """How many are to be expected here, where parts are of equal sizes."""
        return -(-self.shape[0] // max(self.n_parts, 1))


def checked_dtype(dtype: str) -> str:
    """A type that rows may be stored in."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; pass {' or '.join(map(repr, DTYPES))}")
    return dtype


def checked_contents(n_samples: int, n_columns: int, dtype: str, about: dict[str, str], n_parts: int = 0) -> Contents:
    """What an extraction is of, if it is of anything."""
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
    return Contents((int(n_samples), int(n_columns)), dtype, dict(about), n_parts)


def checked_rows(
    index: np.ndarray, rows: np.ndarray, written: np.ndarray, contents: Contents
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


def check_whole(wanted: np.ndarray, written: np.ndarray) -> None:
    """Refuse to finish while rows of the wanted samples are missing."""
    missing = wanted[~written[wanted]]
    if len(missing):
        named = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise ValueError(f"{len(missing):,} of {len(wanted):,} rows are missing: {named}; write them, then finish")


def checked_kept(kept: np.ndarray | None, written: np.ndarray) -> np.ndarray:
    """The samples that a part is to keep, in rising order, each of which has come."""
    if kept is None:
        return np.flatnonzero(written)
    if kept.ndim != 1 or kept.dtype.kind not in "iu" or (np.diff(kept) <= 0).any():
        raise ValueError(f"kept has shape {kept.shape} of {kept.dtype}; pass (n,) integers in rising order")
    check_whole(kept, written)
    return kept


def check_about(name: str, found: dict[str, str] | None, wanted: dict[str, str]) -> None:
    """Refuse rows that are of something else."""
    if found != wanted:
        texts = [json.dumps(about, sort_keys=True) for about in (found, wanted)]
        raise FingerprintError(f"{name} is of {texts[0]}, not of {texts[1]}; extract again, or name another store")


def nothing_yet(name: str, under_way: bool) -> str:
    """Why there are no rows yet."""
    if under_way:
        return f"the extraction to {name} is unfinished; begin again with the same arguments, write the rest and finish"
    return f"nothing was extracted to {name} yet; call begin, write and finish first"
