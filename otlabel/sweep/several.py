"""The backend of rows that take several classes each: of any block, lists of the classes near each row's k-th best.

What lies farther below has next to nothing of the plan, can be no label and no candidate. So dense blocks, in memory
or on a device, and lists that were made before are reduced by the same code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from otlabel.sources.listed import Lists, quantum_of
from otlabel.sweep.contract import Arrays, Backend, Handle, Ready
from otlabel.sweep.several_kernels import (
    candidates_lists,
    curvature_lists,
    label_lists,
    left_out_lists,
    near_block,
    plan_lists,
    sweep_lists,
)

REACH = {np.dtype(np.float32): 40.0, np.dtype(np.float64): 80.0}  # times epsilon: what has anything of a plan. The
# threshold may be as low as half way down to the next class, so that this is twice what one exponential needs.
NO_LABELS = np.empty((0, 0), np.int32)


class Several:
    """What the contract says, of rows that take k classes each and weigh one; labels, best and own are (N, k)."""

    def __init__(self, k: int, plain: Backend) -> None:
        self._k, self._plain = k, plain

    def inspect_block(self, *arguments: Any) -> Handle[tuple[int, int]]:
        """As the backend of rows that take one."""
        return self._plain.inspect_block(*arguments)

    def sweep_block(
        self,
        block: Any,
        potentials: np.ndarray,
        inverse_epsilon: Any,
        weights: np.ndarray,
        row_exponent: float,
        labels: np.ndarray,
        row_mass: np.ndarray,
        mass: np.ndarray,
        counts: np.ndarray,
    ) -> Handle[tuple[float, float]]:
        """Sums over rows of their k largest u, and of what the plan adds; neither weights nor labels are looked at."""
        starts, classes, scores, quantum = self._of_plan(block, potentials, inverse_epsilon)
        counted = counts if counts.size else np.zeros(mass.size, np.int64)
        return Ready(sweep_lists(starts, classes, scores, quantum, potentials, inverse_epsilon, self._k, mass, counted))

    def label_block(
        self, block: Any, potentials: np.ndarray, labels: np.ndarray, best: np.ndarray, own: np.ndarray
    ) -> Handle[None]:
        """As `label_lists` says."""
        starts, classes, scores, _ = self._near(block, potentials, 0.0, labels)
        return Ready(label_lists(starts, classes, scores, potentials, labels, best, own))

    def candidates_block(
        self, block: Any, potentials: np.ndarray, labels: np.ndarray, slack: float, tie: float
    ) -> Handle[Arrays]:
        """As `candidates_lists` says: after the contract's, which of the entries are labels."""
        starts, classes, scores, _ = self._near(block, potentials, slack + tie, labels)
        return Ready(candidates_lists(starts, classes, scores, potentials, labels, slack, tie))

    def plan_block(self, block: Any, potentials: np.ndarray, inverse_epsilon: Any, plan: np.ndarray) -> Handle[None]:
        """Sets plan (N, K) to the capped softmax, whose rows sum to k."""
        near = self._near(block, potentials, math.inf)
        plan[:] = 0.0
        plan[near.row_of, near.classes] = self.plan_of(near, potentials, inverse_epsilon)
        return Ready(None)

    def plan_of(self, block: Lists, potentials: np.ndarray, inverse_epsilon: Any) -> np.ndarray:
        """The same at what is listed, (E,)."""
        entries: np.ndarray = plan_lists(*block[:3], potentials, inverse_epsilon, self._k)
        return entries

    def sparse_plan_block(
        self, block: Any, rows: np.ndarray, potentials: np.ndarray, inverse_epsilon: Any, share: float
    ) -> Handle[Arrays]:
        """As `curvature_lists` says: what a plan's rows are to the curvature where each takes one class."""
        if not isinstance(block, Lists):
            block, rows = _taken(block, rows), np.arange(len(rows))
        starts, classes, scores, _ = self._of_plan(block, potentials, inverse_epsilon)
        return Ready(curvature_lists(starts, classes, scores, rows, potentials, inverse_epsilon, self._k, share))

    def left_out_block(
        self, block: Lists, potentials: np.ndarray, origin: np.ndarray, inverse_epsilon: float, reach: float
    ) -> Handle[float]:
        """As `left_out_lists` says."""
        return Ready(left_out_lists(*block, potentials, origin, inverse_epsilon, reach, self._k))

    def list_block(
        self, block: Any, potentials: np.ndarray, spans: float | np.ndarray, labels: np.ndarray = NO_LABELS
    ) -> Arrays:
        """As `near_block` says, of a dense block; of one on a device only what is near leaves it.

        Here the width is the largest of spans; there each class has its own, as in `lists.list_block`.
        """
        if isinstance(block, np.ndarray):
            found: Arrays = near_block(block, potentials, self._k, float(np.max(spans)), labels)
            return found
        from otlabel.sweep import reference

        return reference.near_block(block, potentials, self._k, spans, labels)

    def _of_plan(self, block: Any, potentials: np.ndarray, inverse_epsilon: Any) -> Lists:
        return self._near(block, potentials, REACH[potentials.dtype] / float(inverse_epsilon))

    def _near(self, block: Any, potentials: np.ndarray, width: float, labels: np.ndarray = NO_LABELS) -> Lists:
        """Lists as they are; of a dense block, what is within a width of each row's k-th best and of its labels."""
        if isinstance(block, Lists):
            return block
        sizes, classes, scores = self.list_block(block, potentials, width, labels)
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return Lists(starts, classes, scores, quantum_of(max(1, len(sizes))))


def _taken(block: Any, rows: np.ndarray) -> Any:
    """Some rows of a dense block."""
    if isinstance(block, np.ndarray):
        return block[rows]
    import torch

    return block[torch.from_numpy(rows).to(block.device)]
