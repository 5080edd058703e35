"""What is asked for (Demand) and how (Solver), and the problem that these and the rows make."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from otlabel.marginals import KL, Exact, Range, Rule

if TYPE_CHECKING:
    from otlabel.ranks.rowset import RowSet

EXACT = Exact()
Rounding = Literal["exact", "argmax"]
Method = Literal["auto", "sinkhorn"]


@dataclass(frozen=True, eq=False)
class Demand:
    """What classes take and how much rows count, in the order of the classes and rows; no score has been looked at."""

    class_mass: np.ndarray | None = None  # (K,) shares or sizes; None: the same for all
    sample_mass: np.ndarray | None = None  # (N,) shares or whole numbers, of this rank's rows; None: the same for all
    classes: Exact | KL | Range = EXACT
    samples: Exact | KL = EXACT
    abstain: float = 0.0  # share of the rows that stay unlabelled

    @property
    def settings(self) -> dict[str, Any]:
        """What is to be the same on all ranks."""
        lo, hi = getattr(self.classes, "lo", None), getattr(self.classes, "hi", None)
        mass, weighted = self.class_mass, self.sample_mass is not None
        alike = {"class_mass": mass, "classes": self.classes, "lo": lo, "hi": hi, "samples": self.samples}
        return {**alike, "abstain": self.abstain, "weighted": weighted}


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows of scores (N, K) to be maximised, how much each row counts, and what each class may take.

    Where several ranks have rows, weights are of those here, and all other numbers of all.
    """

    rows: RowSet
    rule: Rule  # on class masses, which are shares of all units
    n_units: int  # of mass that exact labels share out: the samples, or whole numbers that stand for sample masses
    spread: float  # how far apart a row's scores typically are
    extent: float  # how far apart a row's finite scores are at most
    magnitude: float  # the largest score of any row, by size: what rounding is relative to
    sampled: np.ndarray  # (R,) sorted: rows of all from which samples are taken, in memory whatever the source is
    weights: np.ndarray | None = None  # (N,) of the rows here: their units, whole numbers as float64; None for one each
    row_rho: float = math.inf  # price of leaving a row's mass, KL; inf where rows are exact
    for_new: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (K,) classes that may take new samples
    weighted: bool = False  # whether units are parts of the samples' own masses, not samples
    stored_magnitude: float = 0.0  # the same as magnitude, before scores were moved to be near zero
    lowered: float = 0.0  # by how much scores of labelled units were moved to be near zero, in the mean
    top: float = 0.0  # the largest score of all, 0 where staying unlabelled is the best

    @property
    def n_rows(self) -> int:
        """N."""
        return self.rows.n_rows

    @property
    def n_classes(self) -> int:
        """K, and one more where samples may stay unlabelled."""
        return self.rows.shape[1]

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Fewest and most units (K,) int64 of each class."""
        return self.rule.unit_bounds(self.n_units, weighted=self.weighted)


@dataclass(frozen=True)
class Solver:
    """The settings of one solve, as given to the front door."""

    epsilon: float = 0.04
    rounding: Rounding = "exact"
    tol: float = 1e-2
    max_sweeps: int = 1000
    method: Method = "auto"
    seed: int = 0
