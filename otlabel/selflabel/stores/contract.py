"""What a store of rows is: the protocols that every store here follows, and that one of your own may follow."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


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
