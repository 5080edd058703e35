"""Features and their labels on either side of a test of what features are worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.metrics.table import UNLABELLED, checked_labels
from otlabel.sources import Opened, as_float, by_row, home_of, open_scores, read_rows

if TYPE_CHECKING:
    import torch

TRAIN_ROWS = 1 << 14  # rows that are read at once, and that a block of test rows is compared with


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of a matrix as tensors where and as the work is to be done."""

    opened: Opened
    name: str
    device: torch.device
    dtype: torch.dtype

    @property
    def n_rows(self) -> int:
        """N."""
        return self.opened.shape[0]

    def blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Each `size` rows with where they begin; raises InvalidScoresError at a row that is not finite."""
        import torch

        source = self.opened.source
        with contextlib.closing(source):
            for start in range(0, self.n_rows, size):
                stored = read_rows(source, start, min(start + size, self.n_rows))
                if source.device is None:
                    stored = torch.from_numpy(np.array(as_float(stored, source.dtype)))
                block = stored.to(self.device, self.dtype)
                bad = ~block.isfinite().all(1)
                if bad.any():
                    place = self.opened.place(start + int(bad.nonzero()[0]))
                    raise InvalidScoresError(f"{self.name} hold NaN or infinity, the first at {place}")
                yield start, block

    def rows(self, wanted: np.ndarray) -> torch.Tensor:
        """A copy of the rows where `wanted` is true."""
        import torch

        blocks = self.blocks(TRAIN_ROWS)
        return torch.cat([block[mask_of(wanted, start, block)] for start, block in blocks])


def features_of(train: Any, test: Any) -> tuple[Features, Features]:
    """Both sides, where the first tensor is, in float64 if one of them is."""
    import torch

    opened = open_scores(train, what="train_features"), open_scores(test, what="test_features")
    shapes = [one.shape for one in opened]
    if shapes[0][1] != shapes[1][1]:
        raise ValueError(f"train_features have shape {shapes[0]}, test_features {shapes[1]}; pass the same D features")
    device = next(filter(None, map(home_of, (train, test))), torch.device("cpu"))
    dtype = torch.float64 if "float64" in {one.dtype for one in opened} else torch.float32
    return Features(opened[0], "train_features", device, dtype), Features(opened[1], "test_features", device, dtype)


def labels_of(features: Features, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The label of each row, and whether it has one."""
    name = features.name.replace("features", "labels")
    array = checked_labels(by_row(labels, features.n_rows, features.opened.row_names, name), name)
    if len(array) != features.n_rows:
        raise ValueError(
            f"{features.name} have shape {features.opened.shape}, {name} {array.shape}; pass one label a row"
        )
    labelled = array != UNLABELLED
    if not labelled.any():
        raise ValueError(f"no row has a label other than {UNLABELLED} in {name}")
    return array.astype(np.int64), labelled


def mask_of(wanted: np.ndarray, start: int, block: torch.Tensor) -> torch.Tensor:
    """Which rows of a block are wanted, of all rows of which it has those from `start` on."""
    import torch

    return torch.from_numpy(wanted[start : start + len(block)]).to(block.device)
