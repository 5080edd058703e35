"""What came in, looked at once: settings, scores, masses, labels. Everything inside may then trust them."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import numpy as np

from otlabel import sweep
from otlabel.errors import (
    InvalidMassError,
    InvalidScoresError,
)
from otlabel.marginals import (
    KL,
    MASS_TOLERANCE,
    MASS_UNITS,
    Exact,
    Range,
    class_shares,
    class_sizes,
    one_number,
    one_whole_number,
)
from otlabel.problem import Demand, Method, Rounding, Solver
from otlabel.ranks.rowset import RowSet
from otlabel.sources import Opened, as_array, by_class, class_mass_of, sample_mass_of

FAR = 1e3  # times the usual spread of a row: scores as large hide from sums what tells classes apart
LARGEST_SCORE, LEAST_EPSILON = 1e200, 1e-200  # sums and quotients of what lies between are numbers


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
    max_sweeps, seed = one_whole_number(max_sweeps, "max_sweeps", 1), one_whole_number(seed, "seed", 0)
    return Solver(epsilon, rounding, tol, max_sweeps, method, seed)


def check_demand(
    scores: Opened, class_mass: Any, sample_mass: Any, classes: Exact | KL | Range, samples: Exact | KL, abstain: Any
) -> Demand:
    """What is asked for, with names put in the order of the classes and rows; sums are looked at when it is posed."""
    abstain = one_number(abstain, "abstain")
    if not isinstance(samples, (Exact, KL)):
        raise TypeError(f"samples is {samples!r}; pass Exact() or KL(rho)")
    if not 0 <= abstain < 1:
        raise ValueError(f"abstain is {abstain}; pass the share of samples to leave unlabelled, from 0 to below 1")
    mass, of_samples = class_mass_of(class_mass, scores), sample_mass_of(sample_mass, scores)
    if isinstance(classes, Range):
        n_classes, names = scores.shape[1], scores.class_names
        lo, hi = (
            by_class(bound, n_classes, names, f"Range: {name}", InvalidMassError)
            for name, bound in (("lo", classes.lo), ("hi", classes.hi))
        )
        classes = Range(lo, hi)
    return Demand(mass, of_samples, classes, samples, abstain)


def check_sample_mass(sample_mass: Any, n_rows: int) -> tuple[np.ndarray | None, int]:
    """How many units each row has (None for one each), and their sum."""
    if sample_mass is None:
        return None, n_rows
    given = as_array(sample_mass)
    if given.shape != (n_rows,) or given.dtype.kind not in "iuf":
        raise InvalidMassError(f"sample_mass has shape {given.shape} of {given.dtype}; pass one number for each row")
    mass, whole = given.astype(np.float64), given.dtype.kind in "iu"
    if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
        worst = int(np.argmax(~np.isfinite(mass) | (mass < 0)))
        raise InvalidMassError(f"sample_mass[{worst}] is {mass[worst]}; masses must be finite, not negative, not all 0")
    if not whole and abs(mass.sum() - 1) > MASS_TOLERANCE:
        raise InvalidMassError(
            f"sample_mass sums to {mass.sum():.9g}; pass shares that sum to 1 (sample_mass / sample_mass.sum()) or "
            "integers"
        )
    if (mass == mass[0]).all():
        return None, n_rows
    if whole:
        return mass, int(given.sum())
    return class_sizes(mass / mass.sum(), MASS_UNITS).astype(np.float64), MASS_UNITS


def check_finite(rows: RowSet, inspection: sweep.Inspection, what: str = "scores") -> None:
    """Raise InvalidScoresError that names the first NaN or +inf, if there is one."""
    if not inspection.n_bad:
        return
    rows, found = rows.fine, ""
    for (start, _), values in rows.blocks([span] for span in rows.spans):
        bad = np.isnan(values) | (values == np.inf)
        if bad.any():
            row, cls = np.argwhere(bad)[0]
            column = "class" if what == "scores" else "column"
            found = f"{rows.opened.place(start + int(row))}, {column} {cls} ({values[row, cls]})"
            break
    where = rows.communicator.first_text("bad scores", found)
    remedy = "mend them, or use -inf to forbid a pair" if what == "scores" else "mend them, or leave these rows out"
    raise InvalidScoresError(
        f"{inspection.n_bad} of {rows.n_rows * rows.shape[1]} {what} are NaN or +inf, the first at {where}; {remedy}"
    )


def check_mass(class_mass: Any, n_rows: int, n_classes: int) -> np.ndarray:
    """Class masses as (K,) shares, from shares, sizes or nothing."""
    return class_shares(None if class_mass is None else as_array(class_mass), n_rows, n_classes)


def check_number_of_labels(labels: Any, n_rows: int) -> None:
    """Refuse what says itself that it has another shape than (N,): a data set in a file, of which nothing is read."""
    if labels is None:
        raise ValueError(f"labels is None; pass {n_rows} integers, one a row")
    shape = getattr(labels, "shape", None)
    if isinstance(shape, tuple) and tuple(shape) != (n_rows,):
        joined = "; np.concatenate joins those of batches" if len(shape) > 1 else ""
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise ValueError(f"labels must be {n_rows} integers, one a row; got shape {tuple(shape)} of {kind}{joined}")


def class_numbers(given: np.ndarray, what: str) -> np.ndarray:
    """Numbers of classes in any integer type as (N,) int64: from 0 up, or -1 for none.

    Raises:
        ValueError: anything else; of a number that can be none, the sample is told.
    """
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"{what} must be (N,) integers; got {given.dtype} of shape {given.shape}")
    wrong = np.flatnonzero(given < -1 if given.dtype.kind == "i" else given > np.iinfo(np.int64).max)
    if len(wrong):
        raise ValueError(
            f"{what}[{wrong[0]}] is {given[wrong[0]]} ({len(wrong):,} such samples), which is no class: these count "
            "from 0, and -1 stands for none"
        )
    return np.ascontiguousarray(given, np.int64)


def check_labels(labels: Any, n_rows: int, n_classes: int) -> np.ndarray:
    """Labels as (N,) int64, each of them a class, or -1 for none."""
    given = as_array(labels)
    check_number_of_labels(given, n_rows)
    if given.dtype.kind not in "iu":
        raise ValueError(f"labels must be {n_rows} integers, one a row; got shape {given.shape} of {given.dtype}")
    outside = np.flatnonzero((given < -1) | (given >= n_classes))
    if len(outside):
        raise ValueError(
            f"{len(outside)} labels are outside of 0 ... {n_classes - 1} (-1 for none), the first is "
            f"labels[{outside[0]}] = {given[outside[0]]}"
        )
    return given.astype(np.int64)


def check_vector(values: Any, n_classes: int, name: str) -> np.ndarray:
    """One number a class as (K,) float64; -inf is legal, it keeps a class empty."""
    vector = as_array(values).astype(np.float64)
    if vector.shape != (n_classes,):
        raise ValueError(f"{name} has shape {vector.shape}; pass {n_classes} numbers, one a class")
    bad = np.flatnonzero(np.isnan(vector) | (vector == np.inf))
    if len(bad):
        raise ValueError(
            f"{name} is {vector[bad[0]]} for class {bad[0]} ({len(bad)} such classes); none may be NaN or +inf"
        )
    return vector


def warn(category: type[Warning], message: str) -> None:
    """Warn at the line that called otlabel."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("otlabel."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
