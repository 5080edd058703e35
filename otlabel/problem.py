"""What to solve (Problem) and how (Solver); only these two travel from the front door inwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from otlabel.marginals import Exact, Marginal

if TYPE_CHECKING:
    from otlabel.scores import Scores

EXACT = Exact()
Rounding = Literal["exact", "argmax"]
Method = Literal["auto", "sinkhorn"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Scores (N, K) to be maximised, how often each row counts, and what each class is to take."""

    scores: Scores
    class_mass: np.ndarray  # (K,) float64 shares, sum 1
    targets: np.ndarray  # (K,) int64 class sizes
    spread: float  # how far apart a row's scores typically are
    extent: float  # how far apart a row's finite scores are at most
    magnitude: float  # the largest score of any row, by size: what rounding is relative to
    sampled: np.ndarray  # (R,) sorted: rows from which all samples are taken, in memory whatever the source is
    weights: np.ndarray | None = None  # (N,) whole numbers as float64: how many equal rows one row stands for
    marginal: Marginal = EXACT

    def sample(self, rows: np.ndarray) -> Problem:
        """The same problem on some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, scores=self.scores.take(rows), weights=weights, sampled=np.arange(len(rows)))


@dataclass(frozen=True)
class Solver:
    """The settings of one solve, as given to the front door."""

    epsilon: float = 0.04
    rounding: Rounding = "exact"
    tol: float = 1e-2
    max_sweeps: int = 1000
    method: Method = "auto"
    seed: int = 0
