"""Balanced k-means: the assignment step is the exact one, each cluster takes as many rows as it is asked to.

An iteration labels all rows by `sinkhorn_assign`, from where the last one ended, and moves each centre to the mean of
its rows in one further pass. Neither step raises the inertia, so it falls until nothing moves any more. Rows are only
ever looked at block by block: they may lie in files and need not fit into memory.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from otlabel import sweep
from otlabel.assign import sinkhorn_assign
from otlabel.curation import centred
from otlabel.errors import InvalidScoresError, MissingPackageError, OtlabelWarning
from otlabel.interrupts import interruptible
from otlabel.marginals import Range
from otlabel.ranks.communicator import Communicator, communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment, Certificate, predict
from otlabel.sources import (
    LinearScores,
    Opened,
    Source,
    as_array,
    as_float,
    by_class,
    by_column,
    cached,
    check_kind,
    closeness,
    cosines,
    draw_rows,
    is_foreign,
    is_list_of_parts,
    is_stored,
    is_tensor,
    open_scores,
    read_rows,
    unit_rows,
)
from otlabel.sweep.pool import run_tasks
from otlabel.validate import LARGEST_SCORE, LEAST_EPSILON

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    from sklearn.cluster import kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingPackageError("scikit-learn 1.6 or newer", "cluster") from error

EPSILON_SHARE = 0.02  # of the data's variance: a plan that is cheap to solve, whose argmax nearly has the sizes
PLAN_TOLERANCE = 0.02  # class error at which the plan is left to the repair, which moves the rest one by one
STRETCHES = 16  # of the rows, whose sums are added in this order whoever makes them
DEVICE_ENTRIES = 1 << 24  # differences, or places in clusters, that a device makes at once
CACHED_ENTRIES = 1 << 17  # differences made at once, in float64: they stay in the processor's cache
INIT_ROWS, INIT_ROWS_A_CLUSTER = 20_000, 20  # sample that k-means++ draws centres from
FAR = 1e-7  # of the data's variance: what squares of the steps between float32 numbers may sum to
DISTINCT = 1e-20  # of the data's variance: a row at this squared distance from its centre is at its centre
STEP = float(np.finfo(np.float64).eps)  # of a distance: by which rounding moves a centre that comes from there
CENTRING_ROUNDS = 50  # of potentials towards the middle of where they may be; each halves what is left, nearly
NUMBERS = (np.float64, np.float32, np.float16)  # read as they are; anything else becomes the first


class BalancedKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """K-means with exact cluster sizes, or bounds on them: every assignment step is optimal, and says so.

        min_{labels, mu}  sum_i ||x_i - mu_{labels_i}||^2    subject to    size_min <= #{i : labels_i = k} <= size_max

    or #{i : labels_i = k} = sizes_k; by alternation, to a local minimum as k-means. With metric="cosine" this is
    spherical k-means: rows are scaled to length 1, the sum is of 1 - <x_i, mu_k>, and centres have length 1. It is
    computed as ||x_i - mu_k||^2 / 2, the same but for what rounding makes of the centres' lengths.

    An empty cluster that may have rows moves to the row that is farthest from its centre.

    For the centres as they are stored, labels, `inertia_` and `gap_` are what float64 makes of the features, however
    far from zero these lie. There are no sample weights, since the copies that a weighted row stands for may belong to
    several clusters: repeat the row instead.

    Args:
        n_clusters: K.
        size_min: fewest rows of a cluster. None: no bound, if size_max is given.
        size_max: most rows of a cluster. None: no bound, if size_min is given.
        sizes: (K,) integers that sum to N, the rows of each cluster (a Series by its index, 0 ... K - 1, or a dict by
            its keys); excludes size_min and size_max. If none of the three is given, every cluster gets N / K rows, and
            the first N mod K one more.
        metric: "euclidean", or "cosine". A row of zeros has no direction: with "cosine" it fits anywhere.
        init: "k-means++", on a sample of the rows where there are many; or (K, D) centres.
        n_init: how often to start anew; the smallest inertia wins. Given centres are started from once.
        max_iter: iterations of one start.
        tol: stop once the squared distances that the centres move sum to at most tol x the features' mean variance, or
            if no label changes. 0 waits for the latter.
        random_state: of k-means++ and of the choice among equally good labels; an integer gives the same result again.
        device: "auto" works where tensors are and on the CPU with everything else; or "cpu", "cuda", ...

    Attributes:
        labels_: (N,) int64, optimal for `cluster_centers_` among all labels with sizes that are allowed.
        cluster_centers_: (K, D), float32 for features of float16, bfloat16 and float32, unless these lie so far from
            zero that float32 would move their means (dates, timestamps); float64 otherwise, and for "cosine", whose
            centres have length 1 to within 1e-15.
        sizes_: (K,) int64, rows in each cluster.
        inertia_: sum_i ||x_i - mu_{labels_i}||^2, or for "cosine" half of it, which is sum_i 1 - <x_i, mu_{labels_i}>.
        gap_: by how much labels with these sizes and these centres could at most lower the inertia; zero up to
            rounding, by the bound of `certify`.
        proof_: the `Certificate` of this, a row: value is minus the mean of what `inertia_` sums, `proven` the verdict.
        potentials_: (K,) float64, what is added to the scores -||x - mu_k||^2 (half of it for "cosine") by `predict`.
        n_iter_: iterations of the start that won.
        n_features_in_: D.

    Raises:
        ValueError: sizes that no N rows can have, fewer rows than clusters, settings that make no sense.
        InvalidScoresError: features in files or tensors that are no matrix, or hold NaN or infinity.
        MissingPackageError: scikit-learn is not installed; on import of this class.

    Warns:
        sklearn.exceptions.ConvergenceWarning: max_iter was reached, though sizes are exact all the same; or clusters
            that may have rows are empty.

    Source: Bradley, Bennett, Demiriz, "Constrained k-means clustering", MSR-TR-2000-65; Hornik, Feinerer, Kober,
        Buchta, "Spherical k-means clustering", Journal of Statistical Software 50(10), 2012.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        size_min: int | None = None,
        size_max: int | None = None,
        sizes: Any = None,
        metric: str = "euclidean",
        init: Any = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.size_min = size_min
        self.size_max = size_max
        self.sizes = sizes
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.device = device

    @interruptible
    def fit(self, X: Any, y: Any = None, *, group: Any = None) -> BalancedKMeans:
        """Find centres and labels.

        Args:
            X: (N, D) features. Anything that scikit-learn takes as a dense matrix; or any other place that
                `sinkhorn_assign` takes scores from: a tensor, an h5py dataset, "features.h5::/features", shards, a list
                of batches. A file is kept in memory if half of what is free holds it, else each pass reads it. Never
                modified.
            y: ignored.
            group: a torch.distributed group whose ranks call this together, each with its own rows (maybe none). Then
                `labels_` are of this rank's rows, and everything else is of all rows and the same on all ranks; sums
                are rounded differently than in one process. None: this process has all rows.

        Returns:
            The estimator itself. Whatever X is, all attributes are NumPy's.
        """
        with communicator_of(group) as communicator:
            return self._fitted(X, communicator, group)

    def _fitted(self, X: Any, communicator: Communicator, group: Any) -> BalancedKMeans:
        _check_settings(self)
        opened = self._opened(X, reset=True, may_be_empty=communicator.world_size > 1)
        rows = RowSet.as_given(opened, communicator)
        n_rows, n_features = rows.n_rows, rows.shape[1]
        if n_rows < self.n_clusters:
            raise ValueError(f"n_samples={n_rows} should be >= n_clusters={self.n_clusters}")
        demand = _demand(self, n_rows)
        given = None if isinstance(self.init, str) else _checked_centres(self, n_features)
        cosine, tol, max_iter = self.metric == "cosine", float(self.tol), int(self.max_iter)
        mean, variance = _mean_and_variance(rows, cosine)
        # What float32 makes of a length would count in <x, mu_k>, though not in the distance.
        is_wide = cosine or rows.source.dtype == "float64" or _is_far(mean, variance)
        if given is not None:
            is_wide |= _is_beyond_float32(given)
        dtype = np.float64 if is_wide else np.float32
        fit = _Fit(rows, cosine, demand, variance, dtype, tol, max_iter, group)
        random = check_random_state(self.random_state)
        best: _Clustering | None = None
        for _ in range(self.n_init if given is None else 1):
            own = np.array(random.randint(np.iinfo(np.int32).max))
            seed = int(communicator.broadcast("seed", {"seed": own})["seed"])
            found = _cluster(fit, _drawn_centres(rows, self.n_clusters, seed) if given is None else given, seed)
            best = found if best is None or found.inertia < best.inertia else best
        assert best is not None
        if not best.converged:
            warnings.warn(
                f"labels still change after max_iter={self.max_iter} iterations; their sizes are exact and they are "
                "optimal for these centres all the same. Raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        n_empty = np.count_nonzero(as_array(best.assignment.counts) == 0) if fit.may_fill else 0
        if n_empty:
            warnings.warn(
                f"{n_empty} of {self.n_clusters} clusters are empty: as many rows are equal to others, or max_iter="
                f"{self.max_iter} iterations were too few to fill them. Ask for fewer clusters, or pass size_min=1",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.labels_, self.cluster_centers_ = best.assignment.labels, best.centres
        self.sizes_, self.inertia_, self.n_iter_ = best.assignment.counts, best.inertia, best.n_iter
        self.gap_ = n_rows * best.assignment.gap
        value, gap = -best.inertia / n_rows, best.assignment.gap
        self.proof_ = Certificate(value, value + gap, self.sizes_, gap, best.assignment.rounding)
        self.potentials_ = _centred_potentials(fit, best)
        return self

    @interruptible
    def predict(self, X: Any) -> np.ndarray:
        """The cluster of each row by the rule that the labels follow, argmax_k s_k + potentials_k, (M,) int64.

        With s_k = -||x - mu_k||^2, or half of it for "cosine". The rows that were fitted get their labels back, except
        that of rows that are equally good in several clusters each gets the same one. New rows are balanced as far
        as they are distributed alike. Where no bound binds, all potentials are equal: the nearest centre.

        Args:
            X: (M, D) features, as for `fit`.
        """
        return self._predicted(self._opened(X))

    @interruptible
    def transform(self, X: Any) -> np.ndarray:
        """Distances ||x_i - mu_k|| to all centres, or 1 - <x_i, mu_k> for "cosine", (M, K).

        Args:
            X: (M, D) features, as for `fit`.
        """
        features = RowSet(self._opened(X)).fine
        out = np.empty((features.shape[0], len(self.cluster_centers_)), self.cluster_centers_.dtype)
        centres = self.cluster_centers_.astype(np.float64)
        middle = np.median(centres, axis=0)
        for (start, stop), block in features.blocks():
            rows = block.astype(np.float64)
            # Numbers are small near the middle, and squares of small numbers cancel little.
            distances = euclidean_distances(rows - middle, centres - middle, squared=self.metric == "cosine")
            if self.metric == "cosine":
                distances += _missing(rows)[:, None] + _missing(centres)
                distances /= 2
            out[start:stop] = distances
        return out

    @interruptible
    def score(self, X: Any, y: Any = None) -> float:
        """Minus the inertia of the predicted labels, the larger the better.

        Args:
            X: (M, D) features, as for `fit`.
            y: ignored.
        """
        opened = self._opened(X)
        labels = self._predicted(opened)
        _, squares = _moments(RowSet(opened), labels, self.cluster_centers_)
        counts = np.bincount(labels, minlength=len(self.cluster_centers_))
        return -_inertia(squares, self.cluster_centers_, counts, self.metric == "cosine")

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _predicted(self, opened: Opened) -> np.ndarray:
        scores = _scores(opened, self.cluster_centers_, self.metric == "cosine")
        return as_array(predict(scores, self.potentials_))

    def _opened(self, X: Any, reset: bool = False, may_be_empty: bool = False) -> Opened:
        """Features, of length 1 for "cosine"; what scikit-learn knows about is checked by it."""
        if not reset:
            check_is_fitted(self)
        if is_tensor(X) or is_stored(X) or is_list_of_parts(X):
            given = os.fspath(X) if isinstance(X, os.PathLike) else X
            opened = open_scores(given, device=self.device, what="features", may_be_empty=may_be_empty)
            if reset:
                self.n_features_in_ = opened.shape[1]
                with contextlib.suppress(AttributeError):  # of an earlier fit to a data frame
                    del self.feature_names_in_
            elif opened.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {opened.shape[1]} features, but {type(self).__name__} was fitted to {self.n_features_in_}"
                )
        else:
            least = 0 if may_be_empty else 1
            check_kind(X, "features")
            if isinstance(X, np.ma.MaskedArray) or is_foreign(X):  # of which scikit-learn sees no mask, or no numbers
                X = as_array(X, "features", InvalidScoresError)
            checked = validate_data(self, X, reset=reset, dtype=NUMBERS, ensure_min_samples=least)
            opened = open_scores(checked, device=self.device, what="features", may_be_empty=True)
        opened = cached(opened)
        return unit_rows(opened) if self.metric == "cosine" else opened


@dataclass(frozen=True, eq=False)
class _Fit:
    """The data of a fit, what each cluster is to take, and when to stop."""

    rows: RowSet
    cosine: bool
    demand: dict[str, Any]  # as `sinkhorn_assign` wants it
    variance: float  # mean squared distance from the mean
    dtype: type  # of centres
    tol: float
    max_iter: int
    group: Any  # whose ranks have rows, too

    @property
    def may_fill(self) -> bool:
        """Whether an empty cluster may take a row: not where its size is stated."""
        return "classes" in self.demand

    @property
    def epsilon(self) -> float:
        """Of the entropic plans, in the units of the scores."""
        scale = self.variance / 2 if self.cosine else self.variance
        return EPSILON_SHARE * scale if scale > 0 else 1.0


@dataclass(frozen=True, eq=False)
class _Clustering:
    """Where one start has led; the labels are the best for the centres."""

    assignment: Assignment
    centres: np.ndarray
    inertia: float
    n_iter: int
    converged: bool


def _cluster(fit: _Fit, centres: np.ndarray, seed: int) -> _Clustering:
    """Labels and centres in turn until neither changes any more."""
    n_features, dtype = fit.rows.shape[1], fit.dtype
    centres = _unit(centres).astype(dtype) if fit.cosine else centres.astype(dtype)
    enough = fit.tol * fit.variance / n_features
    assignment, moved, n_iter = _assigned(fit, centres, seed), np.inf, 0
    while True:
        labels, counts = as_array(assignment.labels), as_array(assignment.counts)
        sums, squares = _moments(fit.rows, labels, centres)
        empty = np.flatnonzero(counts == 0) if fit.may_fill else np.empty(0, np.int64)
        far = _farthest(fit, labels, centres, len(empty)) if len(empty) else np.empty((0, n_features))
        if (moved <= enough and not len(far)) or n_iter == fit.max_iter:
            break
        before, at = assignment, centres
        means = centres + sums / np.maximum(counts, 1)[:, None]  # a cluster that is to be empty stays where it is
        means[empty[: len(far)]] = far
        centres = (_unit(means) if fit.cosine else means).astype(dtype)
        moved = float(np.square(centres - at, dtype=np.float64).sum())
        n_iter += 1
        assignment = _assigned(fit, centres, seed, before)
        n_changed = np.count_nonzero(labels != as_array(assignment.labels))
        is_same = not int(fit.rows.sum("changed", np.array(n_changed))[0])
        if is_same and STEP**2 * moved <= DISTINCT * fit.variance:  # else not yet at the means: rounding
            moved = 0.0
    return _Clustering(assignment, centres, _inertia(squares, centres, counts, fit.cosine), n_iter, moved <= enough)


def _farthest(fit: _Fit, labels: np.ndarray, centres: np.ndarray, number: int) -> np.ndarray:
    """Up to so many rows of all ranks', (n, D) float64: those farthest from their centres, of any that are not there.

    A cluster that moves to such a row can take it: then it is no longer empty, and the inertia is less.
    """
    source, wide = fit.rows.source, centres.astype(np.float64)
    distances = np.empty(source.shape[0])
    with fit.rows.reading():
        for (start, stop), block in fit.rows.blocks():
            distances[start:stop] = np.square(block - wide[labels[start:stop]]).sum(1)
    away = np.flatnonzero(distances > DISTINCT * fit.variance)
    chosen = np.sort(away[np.argsort(-distances[away], kind="stable")[:number]])
    taken = as_float(read_rows(source.take(chosen), 0, len(chosen)), source.dtype).astype(np.float64)
    distances, found = fit.rows.concat("farthest", distances[chosen], taken)
    return found[np.argsort(-distances, kind="stable")[:number]]


def _assigned(fit: _Fit, centres: np.ndarray, seed: int, start: Assignment | None = None) -> Assignment:
    """The best labels for these centres. What `sinkhorn_assign` warns of concerns its plan, or is no surprise here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OtlabelWarning)
        return sinkhorn_assign(
            _scores(fit.rows.opened, centres, fit.cosine),
            **fit.demand,
            epsilon=fit.epsilon,
            tol=PLAN_TOLERANCE,
            init=start,
            seed=seed,
            group=fit.group,
        )


def _scores(features: Opened, centres: np.ndarray, cosine: bool) -> LinearScores:
    """-||x - mu_k||^2, or half of it, up to a constant in each row, which changes nothing."""
    return cosines(features, centres) if cosine else closeness(features, centres)


def _moments(rows: RowSet, labels: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums over each cluster of x_i - mu_k, (K, D), and over all rows of its squared length; float64, in one pass.

    Differences instead of the rows themselves: nothing cancels where the data is far from zero.
    """
    fine = rows.fine
    source, batches = fine.source, fine.batches
    n_tasks = max(1, min(STRETCHES, len(batches)))
    ends = [number * len(batches) // n_tasks for number in range(n_tasks + 1)]
    sums = np.zeros((n_tasks, *centres.shape))
    squares = np.zeros(n_tasks)
    wide = centres.astype(np.float64)

    def add(number: int) -> None:
        room = np.empty((max(1, CACHED_ENTRIES // centres.shape[1]), centres.shape[1]))
        for (start, stop), block in fine.blocks(batches[ends[number] : ends[number + 1]]):
            for first in range(start, stop, len(room)):
                last = min(first + len(room), stop)
                chosen, differences = labels[first:last], room[: last - first]
                np.take(wide, chosen, axis=0, out=differences, mode="clip")  # "raise" would fill a copy first
                np.subtract(block[first - start : last - start], differences, out=differences)
                one_each = np.ones(last - first), chosen, np.arange(last - first + 1)
                sums[number] += csc_array(one_each, shape=(len(wide), last - first)) @ differences
                squares[number] += np.vdot(differences, differences)

    with fine.reading():
        if source.device is None:
            run_tasks(add, n_tasks, int(source.reads_files))
            of_rows = sums.sum(0), squares.sum()
        else:
            of_rows = _moments_on_device(source, labels, wide)
    sums, squares = rows.sum("moments", *of_rows)
    return sums, float(squares)


def _moments_on_device(source: Source, labels: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same where the rows are: sums over clusters are products, whose order of adding is the same in every run."""
    import torch

    n_clusters, device, blocks = len(centres), source.device, sweep.device_blocks(source)
    size = max(1, DEVICE_ENTRIES // max(centres.shape))
    wide, chosen = (torch.from_numpy(array).to(device) for array in (centres, labels.astype(np.int64)))
    sums, squares = torch.zeros_like(wide), 0.0
    for (start, stop), block in zip(blocks, source.read(blocks), strict=True):
        for first in range(start, stop, size):
            last = min(first + size, stop)
            of_rows = chosen[first:last]
            differences = block[first - start : last - start].double() - wide[of_rows]
            belongs = wide.new_zeros((n_clusters, last - first)).scatter_(0, of_rows[None], 1.0)
            sums.addmm_(belongs, differences)
            squares += float(differences.square().sum())  # which waits, so that no blocks pile up
    return sums.cpu().numpy(), np.array(squares)


def _inertia(squares: float, centres: np.ndarray, counts: np.ndarray, cosine: bool) -> float:
    return (squares + float(_missing(centres) @ counts)) / 2 if cosine else squares


def _missing(vectors: np.ndarray) -> np.ndarray:
    """1 - ||v||^2 of vectors of length 1 or 0, (n,): what turns the square of a distance into 2 (1 - <x, mu>)."""
    return np.where(vectors.any(1), 0.0, 1.0)


def _mean_and_variance(rows: RowSet, cosine: bool) -> tuple[np.ndarray, float]:
    """The rows' mean (D,), and their mean squared distance from it.

    InvalidScoresError where they are not finite, or their squares beyond what float64 holds.
    """
    source, n_here, n_rows = rows.source, rows.shape[0], rows.n_rows
    head = as_float(read_rows(source, 0, min(1, n_here)), source.dtype).astype(np.float64)
    first = rows.concat("first", head)[0][:1]
    with np.errstate(invalid="ignore", over="ignore"):
        sums, squares = _moments(rows, np.zeros(n_here, np.int64), first)
        variance = max(squares / n_rows - float(np.square(sums / n_rows).sum()), 0.0)
    if squares < LARGEST_SCORE:
        if variance < LEAST_EPSILON / EPSILON_SHARE * 2 and (widest := _widest(rows, first[0])) > 0:
            remedy = 'pass their differences with metric="euclidean"' if cosine else "multiply them by a constant"
            raise InvalidScoresError(
                f"features{' of length 1' if cosine else ''} differ by so little, {widest:.1g} at most, that squares "
                f"of it vanish; {remedy}"
            )
        return first[0] + sums[0] / n_rows, variance
    found = ""
    for (start, _), block in rows.blocks():
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, feature = bad[0]
            found = f"{rows.opened.place(start + int(row))}, feature {feature}"
            break
    if where := rows.communicator.first_text("bad features", found):
        raise InvalidScoresError(f"features hold NaN or infinity, the first at {where}")
    raise InvalidScoresError("features are so large that their squares overflow; divide them by a constant")


def _widest(rows: RowSet, first: np.ndarray) -> float:
    """The largest difference of a feature from that of the first row."""
    fine, most = rows.fine, 0.0
    with fine.reading():
        for _, block in fine.blocks():
            most = max(most, float(np.abs(block - first).max(initial=0)))
    return rows.max("widest", most)[0]


def _is_far(mean: np.ndarray, variance: float) -> bool:
    """Whether centres near the mean would be moved noticeably by being rounded to float32."""
    return bool(np.square(np.spacing(np.abs(mean).astype(np.float32)), dtype=np.float64).sum() > FAR * variance)


def _drawn_centres(rows: RowSet, n_clusters: int, seed: int) -> np.ndarray:
    """Centres by k-means++, on a sample where there are many rows: it looks at all of them for each centre."""
    n_rows = rows.n_rows
    size = min(n_rows, max(INIT_ROWS, INIT_ROWS_A_CLUSTER * n_clusters))
    sample = rows.gathered(draw_rows(n_rows, size, np.random.default_rng(seed)))
    moved, middle, unit = centred(sample)
    centres, _ = kmeans_plusplus(moved, n_clusters, random_state=seed)
    return centres.astype(np.float64) * unit + middle


def _unit(centres: np.ndarray) -> np.ndarray:
    """Directions; a centre at zero stays there."""
    lengths = np.linalg.norm(centres.astype(np.float64), axis=1, keepdims=True)
    return centres / np.where(lengths > 0, lengths, 1)


def _centred_potentials(fit: _Fit, found: _Clustering) -> np.ndarray:
    """Potentials of the same labels, each in the middle of where it may be, so that `predict` gives labels back.

    Those that the repair ends with leave a row of each class tied with another class: they are on the border of all
    potentials whose argmax are these labels. Let room_jk be by how much class k may rise over class j until the first
    row of j would rather be in k. All potentials may move at once, each half of the way to the middle of its bounds at
    most, and still none is passed; only rows that are tied whatever the potentials remain so.
    """
    assignment, slack = found.assignment, fit.epsilon
    labels, g = as_array(assignment.labels), as_array(assignment.potentials)
    rows = fit.rows
    scores = _scores(rows.opened, found.centres, fit.cosine)
    scores = scores.reading(scores.features, rows.n_rows)
    rows = RowSet(scores, rows.communicator, rows.first, rows.n_rows)
    near = sweep.candidates(rows, g, labels.astype(np.int32), slack, 0.0)
    row_of = np.repeat(np.arange(len(near.rows)), near.sizes)
    classes, own_classes = near.classes, labels[near.rows][row_of]
    totals, own = near.scores + g[near.classes], np.zeros(len(near.rows))
    is_own = classes == own_classes
    own[row_of[is_own]] = totals[is_own]
    room = np.full((len(g), len(g)), slack)
    others = ~is_own
    np.minimum.at(room, (own_classes[others], classes[others]), np.maximum(own[row_of[others]] - totals[others], 0.0))
    room = fit.rows.min("room", room)
    # Of clusters with bounds, only those at a bound have a potential.
    movable = np.isfinite(g) & ((g != 0) | (not fit.may_fill))
    moved = np.zeros(len(g))
    for _ in range(CENTRING_ROUNDS):
        middle = ((moved[:, None] + room).min(0) + (moved - room).max(1)) / 2
        moved = np.where(movable, middle, 0.0)
    return g + moved


# ---- what a user may ask for ----


def _check_settings(estimator: BalancedKMeans) -> None:
    """Raise ValueError for settings that make no sense whatever the data is."""
    for name in ("n_clusters", "n_init", "max_iter"):
        value = getattr(estimator, name)
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if not 0 <= estimator.tol < np.inf:
        raise ValueError(f"tol is {estimator.tol!r}; it must be a number of at least 0")
    if estimator.metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric is {estimator.metric!r}; choose 'euclidean' or 'cosine'")
    if isinstance(estimator.init, str) and estimator.init != "k-means++":
        raise ValueError(f"init is {estimator.init!r}; choose 'k-means++' or pass centres, (n_clusters, n_features)")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _demand(estimator: BalancedKMeans, n_rows: int) -> dict[str, Any]:
    """The arguments of `sinkhorn_assign` that say how many rows each cluster takes, once N rows can be so many."""
    n_clusters, low, high = estimator.n_clusters, estimator.size_min, estimator.size_max
    if estimator.sizes is not None:
        if low is not None or high is not None:
            raise ValueError("sizes are exact; leave out size_min and size_max, or pass these two alone")
        return {"class_mass": _checked_sizes(estimator.sizes, n_clusters, n_rows)}
    if low is None and high is None:
        return {}
    for name, bound in (("size_min", low), ("size_max", high)):
        if bound is not None and (not _is_whole(bound) or bound < 0):
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
        return {}
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


def _is_beyond_float32(init: np.ndarray) -> bool:
    """Whether initial centres are; or ValueError where their squares are beyond float64, too."""
    largest, reach = float(np.abs(init.astype(np.float64)).max()), LARGEST_SCORE**0.5
    if largest > reach:
        raise ValueError(f"init holds numbers of up to {largest:.1g}; squares overflow beyond {reach:g}")
    return largest > float(np.finfo(np.float32).max)


def _checked_centres(estimator: BalancedKMeans, n_features: int) -> np.ndarray:
    init, n_clusters = estimator.init, estimator.n_clusters
    centres = by_column(init, getattr(estimator, "feature_names_in_", None), "init")
    if centres.shape != (n_clusters, n_features) or centres.dtype.kind not in "fiu":
        raise ValueError(
            f"init has shape {centres.shape} of {centres.dtype}; pass {n_clusters} centres of {n_features} features"
        )
    if not np.isfinite(centres).all():
        raise ValueError("init holds NaN or infinity")
    return centres
