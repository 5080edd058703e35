"""Rows kept in memory: no file, and nothing that outlives the process."""

from __future__ import annotations

import numpy as np

from otlabel.errors import ExtractionError
from otlabel.selflabel.stores.checks import (
    Contents,
    check_about,
    check_whole,
    checked_contents,
    checked_dtype,
    checked_kept,
    checked_rows,
    nothing_yet,
)


class TensorStore:
    """Rows in memory, for small data.

    Args:
        dtype: "float32", or "float16" for half the memory.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, dtype: str = "float32") -> None:
        self._dtype = checked_dtype(dtype)
        self._finished: tuple[Contents, np.ndarray] | None = None
        self._extraction: tuple[Contents, np.ndarray] | None = None
        self._written = np.zeros(0, bool)  # rows of the extraction that are there
        self._parts: dict[tuple[int, int], TensorPart] = {}

    def part(self, rank: int, n_ranks: int) -> TensorPart:
        """The store of one of several processes, the same each time."""
        return self._parts.setdefault((rank, n_ranks), TensorPart(self._dtype))

    def begin(self, n_samples: int, n_columns: int, about: dict[str, str]) -> np.ndarray:
        """As `Store.begin`; the rows of before are kept until `finish`."""
        contents = checked_contents(n_samples, n_columns, self._dtype, about)
        if self._extraction is None or self._extraction[0] != contents:
            self._extraction = contents, self._room(contents)
            self._written = np.zeros(n_samples, bool)
        return self._written.copy()

    def write(self, index: np.ndarray, rows: np.ndarray) -> None:
        """As `Store.write`."""
        contents, stored = self._begun()
        ordered, checked = checked_rows(index, rows, self._written, contents)
        stored[ordered] = checked
        self._written[ordered] = True

    def finish(self) -> None:
        """As `Store.finish`."""
        begun = self._begun()
        check_whole(np.arange(len(self._written)), self._written)
        self._finished, self._extraction = begun, None

    def close(self) -> None:
        """Nothing is open; rows stay in memory."""

    def source(self) -> np.ndarray:
        """The rows, (N, D), the array itself."""
        if self._finished is None:
            raise ExtractionError(nothing_yet("the store in memory", self._extraction is not None))
        return self._finished[1]

    @property
    def about(self) -> dict[str, str] | None:
        """As `Store.about`."""
        return None if self._finished is None else dict(self._finished[0].about)

    def check(self, about: dict[str, str]) -> None:
        """As `Store.check`."""
        self.source()
        check_about("the store in memory", self.about, about)

    def _room(self, contents: Contents) -> np.ndarray:
        """For the rows of an extraction."""
        return np.zeros(contents.shape, contents.dtype)

    def _begun(self) -> tuple[Contents, np.ndarray]:
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
        ordered, checked = checked_rows(index, rows, self._written, self._begun()[0])
        self._came.append((ordered, checked.copy()))
        self._written[ordered] = True

    def finish(self, kept: np.ndarray | None = None) -> None:
        """As `Part.finish`."""
        contents, _ = self._begun()
        kept = checked_kept(kept, self._written)
        places = np.full(contents.shape[0], -1)
        places[kept] = np.arange(len(kept))
        rows = np.empty((len(kept), contents.shape[1]), contents.dtype)
        for index, some in self._came:
            wanted = places[index] >= 0
            rows[places[index[wanted]]] = some[wanted]
        self._finished, self._extraction, self._came = (contents, rows), None, []

    def _room(self, contents: Contents) -> np.ndarray:
        self._came = []
        return np.zeros((0, contents.shape[1]), contents.dtype)
