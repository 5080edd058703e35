"""The estimator as scikit-learn knows it: what a user may ask for, and what a fit leaves."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from otlabel.cluster.alternation import (
    Clustering,
    Fit,
    alternate,
    assigned,
    centred_potentials,
    inertia_of,
    missing,
    scores_of,
)
from otlabel.cluster.moments import is_far, mean_and_variance, moments
from otlabel.cluster.progress import Progress, watched
from otlabel.cluster.settings import check_settings, checked_centres, demand_of, is_beyond_float32, number_of_starts
from otlabel.cluster.starts import first_centres, swapped
from otlabel.errors import InvalidScoresError, MissingPackageError
from otlabel.interrupts import interruptible
from otlabel.ranks.communicator import Communicator, communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import predict
from otlabel.solver.outcome import Certificate
from otlabel.sources import (
    Features,
    Opened,
    as_array,
    cached,
    check_kind,
    is_foreign,
    is_list_of_parts,
    is_stored,
    is_tensor,
    open_scores,
    unit_rows,
)

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingPackageError("scikit-learn 1.6 or newer", "cluster") from error

NUMBERS = (np.float64, np.float32, np.float16)  # read as they are; anything else becomes the first


class FeatureEstimator(BaseEstimator):
    """An estimator with a `device`, which keeps how many features it was fitted to, and their names."""

    device: str
    memory_limit: int | None

    def _opened(self, X: Any, reset: bool = False, may_be_empty: bool = False) -> Opened:
        """Features from any place; what scikit-learn knows about is checked by it."""
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
        return cached(opened, self.memory_limit)


class BalancedKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, FeatureEstimator):
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
        init: "k-means++", on a sample of the rows where there are more than 20,000 and 20 K; "random", rows; (K, D)
            centres; or a function that is called with the rows of that sample (n, D), n_clusters and random_state=, and
            returns centres.
        n_init: how often to start anew; the smallest inertia wins. "auto": 10 times from random rows or a function's
            centres, once with k-means++. Given centres are started from once.
        max_iter: iterations of one start.
        tol: stop once the squared distances that the centres move sum to at most tol x the features' mean variance, or
            if no label changes. 0 waits for the latter.
        n_swaps: how often, at the end of a start, to put one centre at a row that is far from its own and see in eight
            iterations whether the inertia falls. It leads out of local minima; K / 2 bring more than as much time spent
            on n_init.
        random_state: of starts, swaps and the choice among equally good labels; an integer gives the same result again.
        device: "auto" works where tensors are and on the CPU with everything else; or "cpu", "cuda", ...
        memory_limit: bytes that may hold a copy of a file's features, and about as many lists of the clusters near each
            row (256 MB at least): what does not fit is read, or made, anew in each pass; labels are as good. None: half
            of the memory that is free, and lists up to 1 GB or twice the data.
        verbose: True for a bar, or a function that is called after each iteration with a dict of start, iteration
            (swaps' counted, too), inertia, moved (squared distances that centres moved) and seconds.

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
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        n_swaps: int = 0,
        random_state: Any = None,
        device: str = "auto",
        memory_limit: int | None = None,
        verbose: Any = 0,
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
        self.n_swaps = n_swaps
        self.random_state = random_state
        self.device = device
        self.memory_limit = memory_limit
        self.verbose = verbose

    @interruptible
    def fit(self, X: Any, y: Any = None, *, group: Any = None) -> BalancedKMeans:
        """Find centres and labels.

        Args:
            X: (N, D) features. Anything that scikit-learn takes as a dense matrix; or any other place that
                `sinkhorn_assign` takes scores from: a tensor, an h5py dataset, "features.h5::/features", shards, a list
                of batches. A file is kept in memory if `memory_limit` holds it, else each pass reads it. Never
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
        check_settings(self.get_params(deep=False))
        opened = self._opened(X, reset=True, may_be_empty=communicator.world_size > 1)
        rows = RowSet.as_given(opened, communicator)
        n_rows, shape = rows.n_rows, (int(self.n_clusters), rows.shape[1])
        if n_rows < shape[0]:
            raise ValueError(f"n_samples={n_rows} should be >= n_clusters={self.n_clusters}")
        demand = demand_of(n_rows, shape[0], self.size_min, self.size_max, self.sizes)
        init, n_starts = self.init, number_of_starts(self.init, self.n_init)
        if not (isinstance(init, str) or callable(init)):
            init = checked_centres(init, shape, getattr(self, "feature_names_in_", None))
        random, best = check_random_state(self.random_state), None
        with watched(0 if communicator.rank else self.verbose, n_starts) as progress:
            fit = self._fit_of(rows, demand, group, progress)
            for _ in range(n_starts):
                own = np.array(random.randint(np.iinfo(np.int32).max))
                seed = int(communicator.broadcast("seed", {"seed": own})["seed"])
                centres = first_centres(rows, shape[0], init, seed)
                if not isinstance(init, str) and is_beyond_float32(centres):
                    fit = replace(fit, dtype=np.float64)
                progress.begin()
                found = swapped(fit, alternate(fit, centres, seed), int(self.n_swaps), seed)
                best = found if best is None or found.inertia < best.inertia else best
        assert best is not None
        self._warn_of(best, fit.may_fill)
        self.labels_, self.cluster_centers_ = best.assignment.labels, best.centres
        self.sizes_, self.inertia_, self.n_iter_ = best.assignment.counts, best.inertia, best.n_iter
        self.gap_ = n_rows * best.assignment.gap
        value, gap = -best.inertia / n_rows, best.assignment.gap
        self.proof_ = Certificate(value, value + gap, self.sizes_, gap, best.assignment.rounding)
        self.potentials_ = centred_potentials(fit, best)
        return self

    def _fit_of(self, rows: RowSet, demand: dict[str, Any], group: Any, progress: Progress) -> Fit:
        cosine = self.metric == "cosine"
        mean, variance = mean_and_variance(rows, cosine)
        # What float32 makes of a length would count in <x, mu_k>, though not in the distance.
        is_wide = cosine or rows.source.dtype == "float64" or is_far(mean, variance)
        dtype = np.float64 if is_wide else np.float32
        features = Features(rows.opened, fixed=True)
        limits = float(self.tol), int(self.max_iter)
        return Fit(rows, features, cosine, demand, variance, dtype, *limits, group, progress.tell, self.memory_limit)

    def _warn_of(self, best: Clustering, may_fill: bool) -> None:
        if not best.converged:
            warnings.warn(
                f"labels still change after max_iter={self.max_iter} iterations; their sizes are exact and they are "
                "optimal for these centres all the same. Raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=5,
            )
        n_empty = np.count_nonzero(as_array(best.assignment.counts) == 0) if may_fill else 0
        if n_empty:
            warnings.warn(
                f"{n_empty} of {self.n_clusters} clusters are empty: as many rows are equal to others, or max_iter="
                f"{self.max_iter} iterations were too few to fill them. Ask for fewer clusters, or pass size_min=1",
                ConvergenceWarning,
                stacklevel=5,
            )

    @interruptible
    def predict(self, X: Any, *, size_min: int | None = None, size_max: int | None = None) -> np.ndarray:
        """The cluster of each row by the rule that the labels follow, argmax_k s_k + potentials_k, (M,) int64.

        With s_k = -||x - mu_k||^2, or half of it for "cosine". The rows that were fitted get their labels back, except
        that of rows that are equally good in several clusters each gets the same one. New rows are balanced as far
        as they are distributed alike. Where no bound binds, all potentials are equal: the nearest centre.

        With bounds, rows get the labels of the least inertia for these centres that keep them, all rows at once: what
        a row gets depends on the others, and the potentials of the fit have no say.

        Args:
            X: (M, D) features, as for `fit`.
            size_min: fewest of these M rows in a cluster. None: no bound.
            size_max: most of these M rows in a cluster. None: no bound.

        Raises:
            ValueError: X of other columns; bounds that no M rows can keep.
        """
        opened = self._opened(X)
        if size_min is None and size_max is None:
            return self._predicted(opened)
        rows = RowSet(opened)
        demand = demand_of(rows.n_rows, len(self.cluster_centers_), size_min, size_max)
        fit = self._fit_of(rows, demand, None, Progress(None))
        return as_array(assigned(fit, self.cluster_centers_, 0).labels)

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
                distances += missing(rows)[:, None] + missing(centres)
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
        _, squares = moments(RowSet(opened), labels, self.cluster_centers_)
        counts = np.bincount(labels, minlength=len(self.cluster_centers_))
        return -inertia_of(squares, self.cluster_centers_, counts, self.metric == "cosine")

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _predicted(self, opened: Opened) -> np.ndarray:
        scores = scores_of(opened, self.cluster_centers_, self.metric == "cosine")
        return as_array(predict(scores, self.potentials_))

    def _opened(self, X: Any, reset: bool = False, may_be_empty: bool = False) -> Opened:
        """Features, of length 1 for "cosine"."""
        opened = super()._opened(X, reset, may_be_empty)
        return unit_rows(opened) if self.metric == "cosine" else opened
