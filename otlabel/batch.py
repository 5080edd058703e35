"""Many problems of one shape in one call: heads, positions, codebooks, views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from otlabel.assign import sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError, InvalidScoresError
from otlabel.interrupts import interruptible
from otlabel.marginals import KL, Exact, Range
from otlabel.result import Assignment
from otlabel.solver.problem import EXACT, Method, Remainder, Rounding
from otlabel.sources import as_array, is_series, is_tensor
from otlabel.sweep.pool import run_tasks


@dataclass(frozen=True, eq=False)
class BatchAssignment:
    """The assignments of H problems: each by its number, and what all have in common as stacked arrays or tensors."""

    heads: tuple[Assignment, ...]

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, head: int) -> Assignment:
        return self.heads[head]

    def __iter__(self) -> Iterator[Assignment]:
        return iter(self.heads)

    @property
    def labels(self) -> Any:
        """(H, N) int64, -1 for samples that are left unlabelled."""
        return self._stacked("labels")

    @property
    def counts(self) -> Any:
        """(H, K) int64, class sizes."""
        return self._stacked("counts")

    @property
    def potentials(self) -> Any:
        """(H, K), which prove the labels."""
        return self._stacked("potentials")

    @property
    def plan_potentials(self) -> Any:
        """(H, K), of the entropic plans."""
        return self._stacked("plan_potentials")

    @property
    def value(self) -> np.ndarray:
        """(H,) mean score of the labels."""
        return np.array([head.value for head in self.heads])

    @property
    def gap(self) -> np.ndarray:
        """(H,) bound less value."""
        return np.array([head.gap for head in self.heads])

    @property
    def proven(self) -> bool:
        """Whether the labels of all heads are optimal."""
        return all(head.proof.proven for head in self.heads)

    def _stacked(self, name: str) -> Any:
        parts = [getattr(head, name) for head in self.heads]
        if not is_tensor(parts[0]):
            return np.stack(parts)
        import torch

        return torch.stack(parts)

    def __repr__(self) -> str:
        return f"BatchAssignment({len(self)} heads of {len(self[0].labels)} samples, {len(self[0].counts)} classes)"


@interruptible
def sinkhorn_assign_batch(
    scores: Any,
    *,
    class_mass: Any = None,
    classes: Exact | KL | Range = EXACT,
    abstain: float = 0.0,
    remainder: Remainder = "best",
    epsilon: float = 0.04,
    rounding: Rounding = "exact",
    tol: float = 1e-2,
    max_sweeps: int = 1000,
    method: Method = "auto",
    init: BatchAssignment | Any = None,
    seed: int = 0,
) -> BatchAssignment:
    """Label every sample in each of H problems of one shape: `sinkhorn_assign` of each, on all threads.

        labels[h] = sinkhorn_assign(scores[h]).labels

    Args:
        scores: (H, N, K) array or tensor, the larger the better: of H heads for the same samples, of H positions or
            codebooks of a batch. Problems know nothing of one another.
        class_mass: (K,) what each class takes in every problem, or (H, K); shares that sum to 1, or integers that sum
            to N. None: 1/K each.
        classes: the rule on class masses of every problem; this and what follows as for `sinkhorn_assign`.
        abstain: share of the samples of each problem to leave unlabelled.
        remainder: which sizes shares become that are no whole ones.
        epsilon: regularisation of the plans, in units of the scores.
        rounding: "exact", or "argmax" of the plans.
        tol: largest error of each plan's class masses.
        max_sweeps: passes that each plan may take.
        method: "auto" or "sinkhorn".
        init: what this returned for scores of a little before, or (H, K) plan potentials: fewer passes.
        seed: of each problem's samples, and of the choice among equally good labels.

    Returns:
        BatchAssignment with labels (H, N); `result[h]` is the `Assignment` of a problem. torch in, torch out on the
        same device; everything else gives NumPy.

    Raises:
        InvalidScoresError, InvalidMassError, InfeasibleError: as for `sinkhorn_assign`; the message names the head.

    Source: that of `sinkhorn_assign`.
    """
    shape = np.shape(scores) if getattr(scores, "shape", None) is None else tuple(scores.shape)
    if len(shape) != 3 or 0 in shape:
        raise InvalidScoresError(
            f"scores have shape {shape}; pass (H, N, K), a matrix for each head (np.stack or torch.stack joins them); "
            "of a single matrix, sinkhorn_assign"
        )
    given = scores if hasattr(scores, "shape") else np.asarray(scores)
    n_heads = shape[0]
    masses = _by_head(class_mass, n_heads, "class_mass", InvalidMassError)
    starts = list(init) if isinstance(init, BatchAssignment) else _by_head(init, n_heads, "init", ValueError)
    if len(starts) != n_heads:
        raise ValueError(f"init has {len(starts)} heads, scores have {n_heads}")
    found: list[Any] = [None] * n_heads

    def solve(head: int) -> None:
        try:
            found[head] = sinkhorn_assign(
                given[head], class_mass=masses[head], classes=classes, abstain=abstain, remainder=remainder,
                epsilon=epsilon, rounding=rounding, tol=tol, max_sweeps=max_sweeps, method=method, init=starts[head],
                seed=seed,
            )  # fmt: skip
        except (InvalidScoresError, InvalidMassError, InfeasibleError) as error:
            raise type(error)(f"head {head}: {error}") from None

    if is_tensor(given) and str(given.device) != "cpu":
        for head in range(n_heads):
            solve(head)
    else:
        run_tasks(solve, n_heads)
    return BatchAssignment(tuple(found))


def _by_head(values: Any, n_heads: int, what: str, error: type[Exception]) -> list[Any]:
    """One value a head: a row of a matrix, else the same for all."""
    if values is None or isinstance(values, Mapping) or is_series(values):
        return [values] * n_heads
    array = as_array(values, what, error)
    if array.ndim < 2:
        return [array] * n_heads
    if len(array) != n_heads:
        raise error(f"{what} has shape {array.shape}, scores have {n_heads} heads; pass (K,) for all, or (H, K)")
    return list(array)
