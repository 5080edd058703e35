"""Scores of heads from stored rows: log-probabilities, kept in memory, in a nameless file, or made in each pass."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from otlabel.errors import InvalidScoresError
from otlabel.ranks.communicator import SINGLE_PROCESS, Communicator
from otlabel.ranks.rowset import RowSet
from otlabel.selflabel.model import FEATURES, ModelReader, forward_only, linear_parts
from otlabel.sources import Opened, free_memory, linear_scores
from otlabel.sweep.pool import run_tasks

MATRIX_SHARE = 0.25  # of the free memory may hold one head's (N, K) scores


def scores_of_heads(
    reader: ModelReader,
    opened: Opened | None,
    n_classes: list[int],
    limit: int | None = None,
    *,
    kept: bool = True,
    communicator: Communicator = SINGLE_PROCESS,
) -> Iterator[Callable[[], Any]]:
    """For each head a function that gives its (N, K) log-probabilities; forget one before asking for the next.

    Args:
        reader: of the model, for its heads.
        opened: (N, D) features or (N, sum of K) logits, as they were stored; None: nothing is stored.
        n_classes: K of each head.
        limit: bytes that one head's scores may take. None: a quarter of the free memory.
        kept: whether scores of linear heads may be kept in memory, else they are made anew in each pass.
        communicator: processes that do this together, each with rows of its own.
    """
    if opened is None:
        yield from [_nothing_stored] * len(n_classes)
    elif reader.kind == FEATURES:
        _check_heads(reader, n_classes)
        parts = list(linear_parts(reader.heads))
        linear = [part for part in parts if part is not None]
        ready = iter(linear_scores(opened, [w for w, _ in linear], [b for _, b in linear]) if linear else [])
        for head, part in enumerate(parts):
            if part is None:
                yield _Matrix(opened, reader.heads[head], head, n_classes[head], limit)
            else:
                scores = next(ready)
                yield partial(_kept, scores, limit if kept else 0, communicator)
    else:
        for head, k in enumerate(n_classes):
            yield _Matrix(opened, _columns(head, n_classes), head, k, limit)


def _nothing_stored() -> Any:
    raise RuntimeError("nothing but best classes was recorded; pass a loader to update for a labeling that needs more")


def _check_heads(reader: ModelReader, n_classes: list[int]) -> None:
    if len(reader.heads) != len(n_classes):
        raise ValueError(
            f"the model has {len(reader.heads)} heads; the labeler was made for {len(n_classes)}. It takes them from "
            "model.heads, or from heads= where that is passed"
        )
    for number, (head, part, k) in enumerate(zip(reader.heads, linear_parts(reader.heads), n_classes, strict=True)):
        if part is not None and part[0].shape[0] != k:
            raise ValueError(f"head {number} of the model has {part[0].shape[0]} classes; the labeler was made for {k}")
        weights = head.parameters() if isinstance(head, torch.nn.Module) else part or ()
        if not all(bool(weight.isfinite().all()) for weight in weights if weight is not None):
            raise InvalidScoresError(f"weights of head {number} hold NaN or infinity; training has diverged")


def _columns(head: int, n_classes: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    start = sum(n_classes[:head])
    return lambda rows: rows[:, start : start + n_classes[head]]


def _kept(scores: Opened, limit: int | None, communicator: Communicator) -> Any:
    """A linear head's scores, all in memory if they fit: to read them costs far less than a product in each pass.

    Ranks do the same: scores travel between them, or else features.
    """
    if communicator.allreduce_max("room", not _fits(scores.shape, limit))[0]:
        return scores
    made = np.empty(scores.shape, scores.dtype)
    rows = RowSet(scores)
    batches = rows.batches

    def make(number: int) -> None:
        for (start, stop), block in rows.blocks([batches[number]]):
            made[start:stop] = block

    with rows.reading():
        run_tasks(make, len(batches))
    return made


def _fits(shape: tuple[int, int], limit: int | None) -> bool:
    free = int(MATRIX_SHARE * free_memory())
    return 4 * shape[0] * shape[1] <= (free if limit is None else min(limit, free))


class _Matrix:
    """Scores of a head that is no linear one, made once when first asked for: in memory, or in a file if too large."""

    def __init__(
        self, opened: Opened, head: Callable[[torch.Tensor], torch.Tensor], number: int, k: int, limit: int | None
    ) -> None:
        self._opened, self._head, self._number, self._limit = opened, head, number, limit
        self._shape = (opened.shape[0], k)
        self._made: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._made is None:
            made = room_for(self._shape, self._limit)
            with _evaluated(self._head) as where:
                for (start, stop), block in RowSet(self._opened).blocks():
                    logits = self._head(torch.from_numpy(np.array(block)).to(**where))
                    if logits.shape != (stop - start, self._shape[1]):
                        raise ValueError(
                            f"head {self._number} of the model gives {tuple(logits.shape)} for {stop - start} samples; "
                            f"the labeler was made for {self._shape[1]} classes"
                        )
                    made[start:stop] = torch.log_softmax(logits.float(), 1).cpu().numpy()
            self._made = made
        return self._made


def room_for(shape: tuple[int, int], limit: int | None = None) -> np.ndarray:
    """An empty float32 matrix: in memory, or in a file if it is too large for the limit, or a quarter of what is free.

    Raises:
        OSError: too large for the disk, too.
    """
    return np.empty(shape, np.float32) if _fits(shape, limit) else _on_disk(shape)


def _on_disk(shape: tuple[int, int]) -> np.ndarray:
    """An empty float32 matrix in a nameless file, which goes away with it."""
    with tempfile.TemporaryFile(prefix="otlabel-") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])  # a full disk is an error here, later a crash
        return np.memmap(file, np.float32, "r+", shape=shape)


@contextmanager
def _evaluated(head: Any) -> Iterator[dict[str, Any]]:
    """A head in evaluation mode, and the device and type of its weights; a function has no mode."""
    if not isinstance(head, torch.nn.Module):
        yield {"dtype": torch.float32}
        return
    with forward_only(head):
        weight = next(head.parameters(), torch.empty(0))
        yield {"device": weight.device, "dtype": weight.dtype}
