"""What is asked for (Demand) and how (Solver), and the problem that these and the rows make."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from otlabel.errors import InfeasibleError, InvalidMassError
from otlabel.marginals import KL, Exact, Range, Rule, one_number
from otlabel.sources import Opened, by_class, class_mass_of, sample_mass_of
from otlabel.sources.listed import ListedSource, least_of

if TYPE_CHECKING:
    from otlabel.ranks.rowset import RowSet

LARGEST_SCORE, LEAST_EPSILON = 1e200, 1e-200  # sums and quotients of what lies between are numbers
ROWS_AT_ONCE = 1 << 20  # that sums over rows in memory are made of: what these take meanwhile is little
EXACT = Exact()
Rounding = Literal["exact", "argmax"]
Remainder = Literal["best", "first"]
Method = Literal["auto", "sinkhorn"]


@dataclass(frozen=True, eq=False)
class Demand:
    """What classes take and how much rows count, in the order of the classes and rows; no score has been looked at."""

    class_mass: np.ndarray | None = None  # (K,) shares or sizes; None: the same for all
    sample_mass: np.ndarray | None = None  # (N,) shares or whole numbers, of this rank's rows; None: the same for all
    classes: Exact | KL | Range = EXACT
    samples: Exact | KL = EXACT
    abstain: float = 0.0  # share of the rows that stay unlabelled
    labels_per_sample: int = 1  # classes that each row takes
    remainder: Remainder = "best"  # which classes take what whole sizes leave over of shares

    @property
    def settings(self) -> dict[str, Any]:
        """What is to be the same on all ranks."""
        lo, hi = getattr(self.classes, "lo", None), getattr(self.classes, "hi", None)
        mass, weighted = self.class_mass, self.sample_mass is not None
        alike = {"class_mass": mass, "classes": self.classes, "lo": lo, "hi": hi, "samples": self.samples}
        settings = {"abstain": self.abstain, "weighted": weighted, "labels_per_sample": self.labels_per_sample}
        return {**alike, **settings, "remainder": self.remainder}


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows of scores (N, K) to be maximised, how much each row counts, and what each class may take.

    Where several ranks have rows, weights are of those here, and all other numbers of all.
    """

    rows: RowSet
    rule: Rule  # on class masses, which are shares of all units
    n_units: int  # of mass that exact labels share out: the samples, or whole numbers that stand for sample masses; of
    # samples that take several classes each, the places of all
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
    room: float = math.inf  # bytes that lists of the rows here may take, and as much the rows that a repair moves

    @property
    def is_listed(self) -> bool:
        """Whether rows are the lists of their best classes, so that passes read none of the scores."""
        return isinstance(self.rows.source, ListedSource)

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
    room: float = math.inf  # of `Problem`, the least of all ranks


def check_solver(epsilon: Any, rounding: Rounding, tol: Any, max_sweeps: Any, method: Method, seed: Any) -> Solver:
    """The settings as plain numbers, once each is seen to make sense."""
    epsilon, tol = one_number(epsilon, "epsilon"), one_number(tol, "tol")
    for name, number in (("epsilon", epsilon), ("tol", tol)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number}; it must be a positive number")
    if not LEAST_EPSILON <= epsilon <= LARGEST_SCORE:
        raise ValueError(f"epsilon is {epsilon:g}; beyond {LEAST_EPSILON:g} to {LARGEST_SCORE:g} sums are no numbers")
    for name, value, choices in (("rounding", rounding, ("exact", "argmax")), ("method", method, ("auto", "sinkhorn"))):
        if str(value) not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
    max_sweeps, seed = _whole_number(max_sweeps, "max_sweeps", 1), _whole_number(seed, "seed", 0)
    return Solver(epsilon, rounding, tol, max_sweeps, method, seed)


def check_demand(
    scores: Opened,
    class_mass: Any,
    sample_mass: Any,
    classes: Exact | KL | Range,
    samples: Exact | KL,
    abstain: Any,
    remainder: Remainder,
    labels_per_sample: Any = 1,
) -> Demand:
    """What is asked for, with names put in the order of the classes and rows; sums are looked at when it is posed."""
    abstain, several = one_number(abstain, "abstain"), _whole_number(labels_per_sample, "labels_per_sample", 1)
    if not isinstance(samples, (Exact, KL)):
        raise TypeError(f"samples is {samples!r}; pass Exact() or KL(rho)")
    if not 0 <= abstain < 1:
        raise ValueError(f"abstain is {abstain}; pass the share of samples to leave unlabelled, from 0 to below 1")
    if several > 1:
        _check_several(several, scores, samples, abstain)
    if str(remainder) not in ("best", "first"):
        raise ValueError(f"remainder is {remainder!r}; choose one of 'best', 'first'")
    mass, of_samples = class_mass_of(class_mass, scores), sample_mass_of(sample_mass, scores)
    if isinstance(classes, Range):
        n_classes, names = scores.shape[1], scores.class_names
        lo, hi = (
            by_class(bound, n_classes, names, f"Range: {name}", InvalidMassError)
            for name, bound in (("lo", classes.lo), ("hi", classes.hi))
        )
        classes = Range(lo, hi)
    return Demand(mass, of_samples, classes, samples, abstain, several, remainder)


def _check_several(several: int, scores: Opened, samples: Exact | KL, abstain: float) -> None:
    """Refuse what does not go with several labels a sample."""
    n_classes = scores.shape[1]
    if several > n_classes:
        raise InfeasibleError(
            f"labels_per_sample is {several}, but there are {n_classes} classes, and none takes a sample twice; pass "
            f"at most {n_classes}"
        )
    if abstain:
        raise ValueError(
            f"abstain is {abstain:g} with labels_per_sample={several}: a sample would be left without some of its "
            "labels or all; leave samples out by hand, or give classes room by Range"
        )
    check_listed(scores, several)
    if isinstance(samples, KL):
        raise ValueError(f"samples is {samples!r} with labels_per_sample={several}; samples are exact there: Exact()")


def check_listed(scores: Opened, several: int) -> None:
    """Refuse several labels a sample where what is not listed is not forbidden."""
    if several > 1 and least_of(scores.source) is not None:
        raise ValueError(
            f'missing="at most the least" with labels_per_sample={several}: the bound is known for one label a sample; '
            'pass missing="forbidden", or more classes of each sample'
        )


def _whole_number(given: Any, name: str, least: int) -> int:
    """A setting as a whole number, of whatever kind, that is not below the least; or ValueError."""
    try:
        number = operator.index(given)
    except (TypeError, ValueError, RuntimeError):  # a float may be whole all the same
        real = one_number(given, name)
        number = int(real) if real.is_integer() else least - 1
    if number < least:
        raise ValueError(f"{name} is {given}; pass a whole number, at least {least}")
    return number
