"""What a user may ask of a clustering: settings, sizes and first centres, looked at before anything is computed."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from otlabel.marginals import Range
from otlabel.solver.problem import LARGEST_SCORE
from otlabel.sources import by_class, by_column

INITS = ("k-means++", "random")
STARTS_AT_RANDOM = 10  # that n_init="auto" makes, as in scikit-learn, where centres are not chosen with care


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError for settings of `BalancedKMeans` that make no sense whatever the data is."""
    for name in ("n_clusters", "n_init", "max_iter", "n_swaps"):
        value, least = settings[name], int(name != "n_swaps")
        if name == "n_init" and value == "auto":
            continue
        if not is_whole(value) or value < least:
            or_auto = ", or 'auto'" * (name == "n_init")
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}{or_auto}")
    if not 0 <= settings["tol"] < np.inf:
        raise ValueError(f"tol is {settings['tol']!r}; it must be a number of at least 0")
    if settings["metric"] not in ("euclidean", "cosine"):
        raise ValueError(f"metric is {settings['metric']!r}; choose 'euclidean' or 'cosine'")
    init = settings["init"]
    if isinstance(init, str) and init not in INITS:
        raise ValueError(
            f"init is {init!r}; choose 'k-means++' or 'random', or pass centres, (n_clusters, n_features), or a "
            "function of rows, n_clusters and random_state that makes some"
        )


def number_of_starts(init: Any, n_init: Any) -> int:
    """How often a fit starts: from given centres once."""
    if not (isinstance(init, str) or callable(init)):
        return 1
    if n_init == "auto":
        return 1 if isinstance(init, str) and init == "k-means++" else STARTS_AT_RANDOM
    return int(n_init)


EVEN = {"remainder": "first"}  # sizes that stay the same from step to step: exact ones, without a price on any of them


def is_whole(value: Any) -> bool:
    """Whether value is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def demand_of(n_rows: int, n_clusters: int, low: Any = None, high: Any = None, sizes: Any = None) -> dict[str, Any]:
    """The arguments of `sinkhorn_assign` that say how many rows each cluster takes, once N rows can be so many."""
    if sizes is not None:
        if low is not None or high is not None:
            raise ValueError("sizes are exact; leave out size_min and size_max, or pass these two alone")
        return {"class_mass": _checked_sizes(sizes, n_clusters, n_rows)}
    if low is None and high is None:
        return EVEN
    for name, bound in (("size_min", low), ("size_max", high)):
        if bound is not None and (not is_whole(bound) or bound < 0):
            raise ValueError(f"{name} is {bound!r}; it must be a whole number of rows")
    low, high = int(low or 0), n_rows if high is None else min(int(high), n_rows)
    if low > high:
        raise ValueError(f"size_min={low} is larger than size_max={high}")
    if low * n_clusters > n_rows:
        raise ValueError(
            f"size_min={low} in {n_clusters} clusters takes {low * n_clusters} rows, "
            f"{low * n_clusters - n_rows} more than the {n_rows} there are; at most {n_rows // n_clusters} is possible"
        )
    if high * n_clusters < n_rows:
        raise ValueError(
            f"size_max={high} in {n_clusters} clusters leaves room for {high * n_clusters} rows, "
            f"{n_rows - high * n_clusters} fewer than the {n_rows} there are; at least {-(-n_rows // n_clusters)} is "
            "needed"
        )
    if n_rows in (low * n_clusters, high * n_clusters):  # no choice is left
        return EVEN
    return {"classes": Range(low, high)}


def _checked_sizes(sizes: Any, n_clusters: int, n_rows: int) -> np.ndarray:
    given = by_class(sizes, n_clusters, None, "sizes")
    if given.shape != (n_clusters,) or given.dtype.kind not in "iu" or (given < 0).any():
        raise ValueError(
            f"sizes must be {n_clusters} whole numbers of rows, one a cluster; got shape {given.shape} of {given.dtype}"
        )
    total = int(given.sum())
    if total != n_rows:
        by_how_much = f"{abs(total - n_rows)} {'more' if total > n_rows else 'fewer'}"
        raise ValueError(f"sizes sum to {total}, {by_how_much} than the {n_rows} rows there are")
    return given.astype(np.int64)


def is_beyond_float32(init: np.ndarray) -> bool:
    """Whether initial centres are; or ValueError where their squares are beyond float64, too."""
    largest, reach = float(np.abs(init.astype(np.float64)).max()), LARGEST_SCORE**0.5
    if largest > reach:
        raise ValueError(f"init holds numbers of up to {largest:.1g}; squares overflow beyond {reach:g}")
    return largest > float(np.finfo(np.float32).max)


def checked_centres(init: Any, shape: tuple[int, int], names: Any) -> np.ndarray:
    """First centres of this shape, whose columns go by the names of the features', if these have some."""
    centres = by_column(init, names, "init")
    if centres.shape != shape or centres.dtype.kind not in "fiu":
        raise ValueError(
            f"init has shape {centres.shape} of {centres.dtype}; pass {shape[0]} centres of {shape[1]} features"
        )
    if not np.isfinite(centres).all():
        raise ValueError("init holds NaN or infinity")
    return centres
