"""Masses, labels and potentials that came in, looked at once: everything inside may then trust them."""

from __future__ import annotations

from typing import Any

import numpy as np

from otlabel.errors import (
    InvalidMassError,
)
from otlabel.marginals import (
    MASS_TOLERANCE,
    MASS_UNITS,
    class_shares,
    class_sizes,
)
from otlabel.sources import as_array


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


def check_mass(class_mass: Any, n_rows: int, n_classes: int, labels_per_sample: int = 1) -> np.ndarray:
    """Class masses as (K,) shares, from shares, sizes or nothing."""
    return class_shares(None if class_mass is None else as_array(class_mass), n_rows, n_classes, labels_per_sample)


def check_number_of_labels(labels: Any, n_rows: int) -> None:
    """Refuse what says itself that it is neither (N,) nor (N, k): a data set in a file, of which nothing is read."""
    if labels is None:
        raise ValueError(f"labels is None; pass {n_rows} integers, one a row")
    shape = getattr(labels, "shape", None)
    if isinstance(shape, tuple) and tuple(shape) != (n_rows,) and not _are_several(shape, n_rows):
        joined = "; np.concatenate joins those of batches" if len(shape) > 1 else ""
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise ValueError(f"labels must be {n_rows} integers, one a row; got shape {tuple(shape)} of {kind}{joined}")


def _are_several(shape: tuple[int, ...], n_rows: int) -> bool:
    """Whether they are those of labels of which each row has several."""
    return len(shape) == 2 and shape[0] == n_rows and shape[1] > 1


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
    """Labels as (N,) int64, each of them a class, or -1 for none; or as (N, k), different classes in each row."""
    given = as_array(labels)
    check_number_of_labels(given, n_rows)
    if given.dtype.kind not in "iu":
        raise ValueError(f"labels must be {n_rows} integers, one a row; got shape {given.shape} of {given.dtype}")
    least, none = (-1, " (-1 for none)") if given.ndim == 1 else (0, "")
    outside = np.argwhere((given < least) | (given >= n_classes))
    if len(outside):
        at = tuple(outside[0])
        raise ValueError(
            f"{len(outside)} labels are outside of 0 ... {n_classes - 1}{none}, the first is "
            f"labels[{', '.join(map(str, at))}] = {given[at]}"
        )
    given = given.astype(np.int64)
    if given.ndim > 1:
        check_different(given)
    return given


def check_different(labels: np.ndarray) -> None:
    """Refuse labels (N, k) of which a row has one twice."""
    ordered = np.sort(labels, 1)
    twice = np.argwhere(ordered[:, 1:] == ordered[:, :-1])
    if len(twice):
        row, at = twice[0]
        raise ValueError(
            f"labels[{row}] has class {ordered[row, at]} twice ({len(np.unique(twice[:, 0]))} such rows); a class "
            "takes a sample once"
        )


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
