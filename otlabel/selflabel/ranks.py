"""Several processes that train one model and label its samples together: who has which samples, and what they tell.

The messages are those of `otlabel.ranks`. Rows stay where they were extracted, in each process's own store; for a
labeling that needs all of them at once they are sent to rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch.distributed as dist

from otlabel.ranks.communicator import SINGLE_PROCESS, Communicator
from otlabel.ranks.wire import Arrays

Batch = tuple[np.ndarray, np.ndarray]  # indices (B,) int64, rows (B, D) float32

PULSE = 1.0  # seconds after which a rank that extracts hears of the others: whether one has failed


def training_group(group: Any) -> Any:
    """The torch.distributed group of those who train together, the default one where none is named; None for one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return None
    return dist.group.WORLD if group is None else group


@dataclass(frozen=True, eq=False)
class Holders:
    """Which rank holds which samples: each is held by one of them, the first that has extracted it."""

    n_samples: int  # N
    owner: np.ndarray | None = None  # (N,) rank, as many as there are where nobody has the sample; None: all are here
    n_columns: int = 0  # of the rows; 0: nobody has any
    communicator: Communicator = SINGLE_PROCESS
    group: Any = None

    @classmethod
    def settled(cls, communicator: Communicator, group: Any, came: np.ndarray, n_columns: int) -> Holders:
        """Who keeps what, once each rank tells which samples came (N,), and the columns of its rows, 0 for no rows."""

        def merge(parts: list[Arrays]) -> Arrays:
            owner = np.full(len(came), communicator.world_size, np.min_scalar_type(communicator.world_size))
            for rank, part in reversed(list(enumerate(parts))):
                owner[np.unpackbits(part["came"], count=len(came)).astype(bool)] = rank
            return {"owner": owner, "columns": np.array([part["columns"] for part in parts])}

        told = communicator.allreduce_with(
            "samples", {"came": np.packbits(came), "columns": np.array(n_columns)}, merge
        )
        found = told["columns"]
        widest = int(found.argmax())
        for rank, number in enumerate(found):
            if number not in (0, found[widest]):
                raise ValueError(
                    f"the model gives {found[widest]} columns on rank {widest}, {number} on rank {rank}; all processes "
                    "must have the same model"
                )
        return cls(len(came), told["owner"], int(found[widest]), communicator, group)

    @cached_property
    def index(self) -> np.ndarray:
        """(n,) samples that are here, in rising order."""
        return np.arange(self.n_samples) if self.owner is None else np.flatnonzero(self.owner == self.communicator.rank)

    def joined(self, name: str, values: np.ndarray) -> np.ndarray:
        """Of one value (or row of them) for each sample here, those of all samples, (N, ...), on all ranks."""
        if self.owner is None:
            return values
        (told,) = self.communicator.allgather(name, values)
        found = np.empty_like(told)
        found[np.argsort(self.owner, kind="stable")] = told
        return found


def in_step(batches: Iterator[Batch], communicator: Communicator) -> Iterator[Batch]:
    """This rank's batches, until all ranks are through with theirs; an error of one is soon raised by all."""
    heard = time.monotonic()
    for batch in batches:
        yield batch
        if time.monotonic() > heard + PULSE:
            communicator.allreduce("extraction", np.array(1))
            heard = time.monotonic()
    while communicator.allreduce("extraction", np.array(0))[0]:  # how many have more
        pass


def gathered(batches: Iterator[Batch], communicator: Communicator) -> Iterator[Batch]:
    """The batches of all ranks, on rank 0; the others send theirs and get none.

    Ranks may have different numbers of batches, and batches different lengths.
    """
    more = True
    while more:
        heard, more = _heard(next(batches, None), communicator)
        yield from heard


def _heard(own: Batch | None, communicator: Communicator) -> tuple[list[Batch], bool]:
    """On rank 0 a batch of each rank that has another; and whether one has."""
    index, rows = (np.empty(0, np.int64), np.empty((0, 0), np.float32)) if own is None else own
    heard: list[Batch] = []

    def keep(parts: list[Arrays]) -> Arrays:
        heard.extend((part["index"], part["rows"]) for part in parts if len(part["index"]))
        return {"more": np.array(any(part["more"] for part in parts))}

    told = communicator.allreduce_with("rows", {"index": index, "rows": rows, "more": np.array(own is not None)}, keep)
    return heard, bool(told["more"])
