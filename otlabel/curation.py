"""`curate`: a smaller set of samples that is spread evenly over all there is, which may be crowded in places."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Generic, TypedDict, Unpack, overload

import numpy as np

from otlabel import sweep
from otlabel.errors import InvalidScoresError, MissingPackageError
from otlabel.interrupts import interruptible
from otlabel.ranks.communicator import communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import like
from otlabel.solver.outcome import ArrayT
from otlabel.solver.posing import check_finite
from otlabel.solver.problem import LARGEST_SCORE
from otlabel.sources import (
    Opened,
    cached,
    closeness,
    draw_rows,
    open_scores,
)

if TYPE_CHECKING:
    from torch import Tensor

ROWS, ITERATIONS = 20_000, 20  # rows that k-means finds its centres from
PRODUCTS = 3_000_000_000  # rows x clusters x features, at most: fewer rows where that is more
FEW = 64  # clusters that need no groups above them
EXPONENT = 1020  # of a power of two that is an ordinary number, as is its inverse


@dataclass(frozen=True, eq=False)
class Curated(Generic[ArrayT]):
    """Which samples were chosen, and of which clusters."""

    indices: ArrayT  # (n,) int64, ascending and distinct; a tensor where features were one; with a group, of own rows
    clusters: np.ndarray  # (N,) int64: cluster of each sample; with a group, of own rows
    sizes: np.ndarray  # (K,) int64: samples in each cluster
    quotas: np.ndarray  # (K,) int64: how many of them were chosen
    groups: tuple[np.ndarray, ...]  # (K,): group of each cluster; then of each group; ... empty if clusters are few

    def summary(self) -> str:
        """What was chosen, in two lines of at most 80 columns."""
        there, taken = self.sizes[self.sizes > 0], self.quotas[self.sizes > 0]
        return (
            f"chosen    {self.quotas.sum():,} of {self.sizes.sum():,} samples\n"
            f"clusters  {len(there):,} of {there.min():,} to {there.max():,}; chosen {taken.min():,} to {taken.max():,}"
        )


class _Options(TypedDict, total=False):
    """What `curate` takes besides features and a number; the defaults are its own."""

    n_clusters: int | None
    levels: Any
    resample: int
    seed: int
    memory_limit: int | None
    group: Any


@overload
def curate(features: Tensor | Sequence[Tensor], n: int, **options: Unpack[_Options]) -> Curated[Tensor]: ...
@overload
def curate(features: Any, n: int, **options: Unpack[_Options]) -> Curated[np.ndarray]: ...
@interruptible
def curate(
    features: Any,
    n: int,
    *,
    n_clusters: int | None = None,
    levels: Any = None,
    resample: int = 0,
    seed: int = 0,
    memory_limit: int | None = None,
    group: Any = None,
) -> Curated[Any]:
    """Choose n samples that are spread as evenly over clusters as these allow.

    Samples go to the nearest of K centres, which k-means finds. Of cluster k, with size_k samples,

        quota_k = min(size_k, t)    with t such that    sum_k quota_k = n

    are drawn at random; quotas of clusters that are not used up differ by one at most. Beyond 64 clusters, their
    centres are clustered in turn into about sqrt(K) groups, and so on; n is then shared out evenly among groups, in
    each group among its clusters. That matters since k-means puts more centres where there are more samples, in
    proportion to their density to the power of D / (D + 2).

    `resample` evens that out: of each cluster as many samples are drawn, k-means finds new centres from these, and so
    on. Each time takes a pass over all rows and k-means of at most 20,000, and brings the power down by the same
    factor, so that centres become evenly spread over all places where there are samples, however few.

    Args:
        features: (N, D), from any of the places that `sinkhorn_assign` takes scores from. Euclidean distances count.
        n: samples to choose, 1 to N.
        n_clusters: K, up to N. None: sqrt(N), rounded up, but no more than n.
        levels: instead of n_clusters, how many clusters, groups of these, groups of groups, ...; each at most as many
            as there are of the one before, such as (1000, 300).
        resample: how often each level is clustered anew from as many samples of each of its clusters. 5 to 10 where
            what is rare is to be kept; 0 where crowds are to count a little.
        seed: of k-means, of the rows that it sees (20,000, or fewer where K D is large), and of the draws.
        memory_limit: bytes that may hold a copy of what is read from files, which else is read in each of three
            passes. None: half of the memory that is free.
        group: a torch.distributed group whose ranks call this together, each with its own features (maybe none); n,
            n_clusters and seed are to be the same. Each rank's clusters (4 bytes a sample) and the rows that k-means
            sees travel once. None: this process has all rows.

    Returns:
        Curated with the indices of the n samples, ascending; with a group, of those among this rank's rows.

    Raises:
        ValueError: n, n_clusters, levels or resample out of range.
        InvalidScoresError: features that are no matrix, or hold NaN or infinity.
        MissingPackageError: scikit-learn is not installed.

    Source: Vo et al., "Automatic data curation for self-supervised learning: a clustering-based approach",
        arXiv:2405.15613, 2024, sections 3.2 and 3.3, where those nearest to the centres are taken, not drawn. The
        power: Zador, "Asymptotic quantization error of continuous signals", IEEE Transactions on Information Theory
        28, 1982.
    """
    with communicator_of(group) as communicator:
        opened = open_scores(features, what="features", may_be_empty=communicator.world_size > 1)
        rows = RowSet.as_given(cached(opened, memory_limit), communicator)
        settings = {"n": n, "n_clusters": n_clusters, "levels": levels, "resample": resample, "seed": seed}
        communicator.check_alike(**settings, n_features=rows.shape[1])
        _check_number("n", n, rows.n_rows)
        numbers = _checked_levels(n, n_clusters, levels, rows.n_rows)
        return _curated(rows, n, numbers, _checked_times(resample), seed, features)


def _checked_times(resample: Any) -> int:
    if not isinstance(resample, Integral) or int(resample) < 0:
        raise ValueError(f"resample is {resample!r}; pass a whole number of at least 0")
    return int(resample)


def _checked_levels(n: int, n_clusters: Any, levels: Any, n_rows: int) -> tuple[int, tuple[int, ...] | None]:
    """Clusters, and groups on each level above; None where these depend on how many are above them."""
    if levels is None:
        n_clusters = min(int(np.ceil(np.sqrt(n_rows))), n) if n_clusters is None else n_clusters
        _check_number("n_clusters", n_clusters, n_rows)
        return int(n_clusters), None
    if n_clusters is not None:
        raise ValueError("levels begin with the number of clusters; leave out n_clusters")
    if not isinstance(levels, (tuple, list, np.ndarray)) or not len(levels):
        raise ValueError(f"levels is {levels!r}; pass the clusters of each level, such as (1000, 300)")
    most = n_rows
    for number, level in enumerate(levels):
        _check_number(f"levels[{number}]", level, most, "samples" if not number else "clusters below")
        most = int(level)
    return int(levels[0]), tuple(map(int, levels[1:]))


def _curated(
    rows: RowSet, n: int, levels: tuple[int, tuple[int, ...] | None], resample: int, seed: int, features: Any
) -> Curated[Any]:
    found = sweep.inspect(rows)
    check_finite(rows, found, "features")
    if found.n_forbidden:
        raise InvalidScoresError(f"{found.n_forbidden} features are -inf; pass finite numbers")
    (largest,) = rows.max("features", max(float(found.tops.max(initial=0)), -float(found.bottoms.min(initial=0))))
    if largest > LARGEST_SCORE:
        raise InvalidScoresError(f"features are so large, {largest:.1g}, that sums overflow; divide them by a constant")
    rng = np.random.default_rng(seed)
    n_clusters, above = levels
    centres, clusters = _clustered(rows, n_clusters, resample, seed)
    (of_all,) = rows.concat("clusters", clusters.astype(np.int32))
    sizes = np.bincount(of_all, minlength=n_clusters)
    groups = _groups(centres, above, resample, seed)
    quotas = _quotas(n, sizes, groups, rng)
    chosen = rows.local(_drawn(of_all, quotas, rng))
    return Curated(like(chosen, features), clusters, sizes, quotas, groups)


def _clustered(rows: RowSet, n_clusters: int, resample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, D) centres, anew from as many rows of each cluster so many times; and which one each row is nearest to."""
    centres, _ = k_means(rows, n_clusters, seed, "cluster")
    clusters, rng = nearest(rows.opened, centres), np.random.default_rng(seed)
    half = max(1, round(rows.n_rows / n_clusters / 2))  # of the mean: from all clusters but the smallest alike
    most = min(half, max(1, _most_rows(n_clusters, rows.shape[1]) // n_clusters))
    for _ in range(resample):
        (of_all,) = rows.concat("clusters", clusters.astype(np.int32))
        quotas = np.minimum(np.bincount(of_all, minlength=n_clusters), most)
        sample = rows.gathered(_drawn(of_all, quotas, rng))
        if len(sample) < n_clusters:  # equal rows leave clusters empty
            break
        centres = _centres_of(sample, n_clusters, seed, "cluster")
        clusters = nearest(rows.opened, centres)
    return centres, clusters


def k_means(features: RowSet, n_clusters: int, seed: int, extra: str) -> tuple[np.ndarray, int]:
    """(K, D) centres that k-means finds from a sample of the rows of all ranks, and how many rows that are.

    `extra` is what to install where scikit-learn is missing.
    """
    most = _most_rows(n_clusters, features.shape[1])
    rows = draw_rows(features.n_rows, min(most, features.n_rows), np.random.default_rng(seed))
    return _centres_of(features.gathered(rows), n_clusters, seed, extra), len(rows)


def _most_rows(n_clusters: int, n_features: int) -> int:
    return max(min(ROWS, PRODUCTS // (n_clusters * n_features)), 2 * n_clusters)


def _centres_of(sample: np.ndarray, n_clusters: int, seed: int, extra: str) -> np.ndarray:
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise MissingPackageError("scikit-learn", extra) from error
    moved, middle, unit = centred(sample)
    model = KMeans(n_clusters, n_init=1, max_iter=ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # where fewer rows are distinct, some centres are equal
        model.fit(moved)
    return model.cluster_centers_.astype(np.float64) * unit + middle


def centred(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(sample - middle) / unit, (n, D) in its own precision, its median `middle` (D,), and a power of two.

    The largest number is about 1, whose square is a number in float32, too. A mean would follow a row far away.
    """
    wide = sample.astype(np.float64)
    middle = np.median(wide, axis=0)
    wide -= middle
    unit = _power_of_two(wide)
    return (wide / unit).astype(sample.dtype), middle, unit


def _power_of_two(numbers: np.ndarray) -> float:
    """Of the size of the largest of them; 1 where all are zero."""
    largest = float(np.abs(numbers).max(initial=0))
    exponent = min(max(math.frexp(largest)[1], -EXPONENT), EXPONENT)
    return 2.0**exponent if largest else 1.0


def nearest(features: Opened, centres: np.ndarray) -> np.ndarray:
    """(N,) int64: the centre that each row is nearest to."""
    unit = _power_of_two(centres - np.median(centres, axis=0))
    labels, _, _ = sweep.label(RowSet(closeness(features, centres, unit)), np.zeros(len(centres)))
    return labels.astype(np.int64)


def _groups(centres: np.ndarray, numbers: tuple[int, ...] | None, resample: int, seed: int) -> tuple[np.ndarray, ...]:
    """Upwards: the group of each cluster, the group of each group, so many on each level, or until there are few."""
    levels: list[np.ndarray] = []
    while len(levels) < len(numbers) if numbers is not None else len(centres) > FEW:
        number = round(len(centres) ** 0.5) if numbers is None else numbers[len(levels)]
        centres, of_each = _clustered(RowSet(open_scores(centres)), number, resample, seed)
        levels.append(of_each)
    return tuple(levels)


def _quotas(n: int, sizes: np.ndarray, groups: tuple[np.ndarray, ...], rng: np.random.Generator) -> np.ndarray:
    """Of each cluster: n shared out among the groups at the top, then downwards."""
    room = [sizes]
    for level in groups:
        room.append(np.bincount(level, room[-1], level.max() + 1).astype(np.int64))
    quotas = _shared(n, room[-1], rng)
    for level, below in zip(groups[::-1], room[-2::-1], strict=True):
        upper, quotas = quotas, np.zeros(len(below), np.int64)
        for group, quota in enumerate(upper.tolist()):
            members = np.flatnonzero(level == group)
            quotas[members] = _shared(quota, below[members], rng)
    return quotas


def _shared(n: int, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """n in whole parts, none larger than its room, and otherwise as equal as can be; what is left over by lot."""
    low, high = 0, int(room.max(initial=0))  # the largest part that all can have, as far as there is room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(room, middle).sum() <= n else (low, middle - 1)
    parts = np.minimum(room, low)
    more = np.flatnonzero(room > low)
    parts[rng.permutation(more)[: n - int(parts.sum())]] += 1
    return parts


def _drawn(clusters: np.ndarray, quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many rows of each cluster as its quota, at random, ascending."""
    order = rng.permutation(len(clusters))
    order = order[np.argsort(clusters[order], kind="stable")]
    starts = np.searchsorted(clusters[order], np.arange(len(quotas)))
    place = np.arange(len(order)) - starts[clusters[order]]
    return np.sort(order[place < quotas[clusters[order]]])


def _check_number(name: str, number: Any, most: int, of_what: str = "samples") -> None:
    if not (isinstance(number, Integral) and 1 <= int(number) <= most):
        raise ValueError(f"{name} is {number!r}, for {most:,} {of_what}; pass a whole number from 1 to {most:,}")
