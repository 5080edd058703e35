"""Several processes that train one model: rank 0 stores and labels, all others send it rows and get labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

Batch = tuple[np.ndarray, np.ndarray]  # indices (B,) int64, rows (B, D) float32


class Ranks:
    """The processes of a torch.distributed group; one alone where nothing is distributed."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.number = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        self.is_first = self.number == 1 or dist.get_rank(group) == 0
        self._failed_together = False

    def gathered(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of all ranks, on rank 0; the others take part and get nothing.

        Ranks may have different numbers of batches, and batches different lengths. An error of one is raised by all.
        """
        if self.number == 1:
            yield from batches
            return
        while True:
            batch, failure = None, None
            try:
                batch = next(batches, None)
            except Exception as error:  # told to the others, who would else wait for ever
                failure = error
            index, rows = (np.empty(0, np.int64), np.empty((0, 0), np.float32)) if batch is None else batch
            heads = self._told(failure, len(index), rows.shape[1], batch is not None)
            if not any(head[2] for head in heads):
                return
            longest, width = max(int(head[0]) for head in heads), max(int(head[1]) for head in heads)
            indices = self._all(_padded(index, (longest,)))
            parts = self._all(_padded(np.ascontiguousarray(rows, np.float32), (longest, width)))
            if self.is_first:
                for head, one_index, one_rows in zip(heads, indices, parts, strict=True):
                    if head[0]:
                        yield one_index[: head[0]], one_rows[: head[0]]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work after which all ranks go on, or none: who fails raises its own error, the others that another has."""
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.number > 1 and not self._failed_together:
            self._told(failure)
        if failure is not None:
            raise failure

    def _told(self, failure: Exception | None, *numbers: int) -> list[np.ndarray]:
        """Three numbers of every rank, and whether all is well with it."""
        told = self._all(np.array([*(numbers or (0, 0, 0)), failure is None], np.int64))
        if all(one[3] for one in told):
            return told
        self._failed_together = True
        raise failure or RuntimeError("another process failed while samples were labelled; its own error says why")

    def _all(self, array: np.ndarray) -> list[np.ndarray]:
        """The same array of every rank, all of one shape."""
        tensor = torch.from_numpy(array).to(self._device())
        parts = [torch.empty_like(tensor) for _ in range(self.number)]
        dist.all_gather(parts, tensor, group=self._group)
        return [part.cpu().numpy() for part in parts]

    def shared(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What rank 0 has, on all ranks."""
        if self.number == 1:
            return arrays
        box: list[Any] = [{key: (value.shape, value.dtype.str) for key, value in arrays.items()}]
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(box, src=first, group=self._group, device=self._device())
        found = {}
        for key, (shape, kind) in box[0].items():
            array = np.array(arrays[key], kind).reshape(shape) if self.is_first else np.empty(shape, kind)
            tensor = torch.from_numpy(array).to(self._device())
            dist.broadcast(tensor, src=first, group=self._group)
            found[key] = tensor.cpu().numpy()
        return found

    def _device(self) -> torch.device:
        """Where the group's backend wants its tensors."""
        return torch.device("cuda" if dist.get_backend(self._group) == "nccl" else "cpu")


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape == shape:
        return array
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(0, length) for length in array.shape)] = array
    return padded
