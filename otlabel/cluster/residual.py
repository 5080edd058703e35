"""Codes of several parts: balanced k-means of what the level before left over, and codes that no two rows share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from otlabel.cluster.alternation import scores_of
from otlabel.cluster.distinct import distinct_labels
from otlabel.cluster.estimator import BalancedKMeans, FeatureEstimator
from otlabel.cluster.moments import moments
from otlabel.cluster.settings import is_whole
from otlabel.interrupts import interruptible
from otlabel.ranks.communicator import communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import predict
from otlabel.sources import Opened, Source, as_array, as_float, made_once
from otlabel.sources.base import Span
from otlabel.sources.wrapped import Wrapped
from otlabel.storage.archives import reading_archive, save_archive

FORMAT = "otlabel.ResidualBalancedKMeans"
FORMAT_VERSION = 1
SETTINGS: dict[str, Callable[[Any], Any]] = {  # that a file keeps, and as what
    "levels": lambda levels: list(_checked_levels(levels)), "unique": bool, "max_iter": int, "tol": float,
    "n_init": lambda n_init: n_init if isinstance(n_init, str) else int(n_init), "n_swaps": int,
}  # fmt: skip
OF_ALL = ("codes", "inertia", "gap")  # what a fit leaves
OF_LEVELS = ("cluster_centers", "potentials", "sizes")  # of each level


def _left_over(opened: Opened, codes: np.ndarray, centres: Sequence[np.ndarray]) -> Opened:
    """What the levels before have left over of the rows."""
    if not centres:
        return opened
    residual = Residual(opened.source, codes, centres)
    return made_once(Opened(residual, residual, residual, opened.place))


class Residual(Wrapped):
    """Rows less the centres of their codes so far."""

    def __init__(self, source: Source, codes: np.ndarray, centres: Sequence[np.ndarray]) -> None:
        super().__init__(source)
        self.dtype = "float64" if source.dtype == "float64" else "float32"
        self._codes, self._centres = codes, centres

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """The source's rows, differences taken in float64."""
        for (start, stop), rows in zip(spans, self.source.read(spans), strict=True):
            taken = decoded(self._codes[start:stop], self._centres)
            if isinstance(rows, np.ndarray):
                yield (as_float(rows, self.source.dtype) - taken).astype(self.dtype)
            else:
                import torch

                yield (rows.double() - torch.from_numpy(taken).to(rows.device)).to(getattr(torch, self.dtype))

    def take(self, rows: np.ndarray) -> Source:
        """The given rows of the source, less what belongs to them."""
        return Residual(self.source.take(rows), self._codes[rows], self._centres)


def decoded(codes: np.ndarray, centres: Sequence[np.ndarray]) -> np.ndarray:
    """(N, D) float64 sums of the centres of codes (N, l), of the first l levels."""
    total = np.zeros((len(codes), centres[0].shape[1]))
    for level in range(codes.shape[1]):
        total += centres[level][codes[:, level]]
    return total


class ResidualBalancedKMeans(FeatureEstimator):
    """Codes of L parts for each row: every part used equally often, and if asked for no code used twice.

        residual_1 = x,    code_l = balanced cluster of residual_l,    residual_{l+1} = residual_l - mu_{l, code_l}

    so that x is about sum_l mu_{l, code_l}: residual quantisation, as for semantic IDs and vector indexes, with
    clusters of equal size on each level (N / K_l rows, and the first N mod K_l one more). Plain residual k-means fills
    some codes with many rows, others with none; here the parts are even, and yet codes may collide, as rows that are
    close together have reason to share one.

    With unique=True no two rows have the same code, rows that are equal included: of the rows that share their first l
    parts, no part of level l + 1 takes more than there are codes below it, and on the last level one. Labels of each
    level are the best for its centres under this, and `gap_` proves it. What it costs: rows that would collide get
    farther centres (compare `inertia_`), and a level where anything collides needs its N x K_l scores in memory twice,
    as float64 (with ranks, on each of them), and time that grows with the number of collisions.

    Args:
        levels: clusters of each level.
        unique: whether no two rows may share a code; there must be as many codes, prod(levels), as rows.
        n_init, max_iter, tol, n_swaps, device, memory_limit, verbose: of `BalancedKMeans`, on each level.
        random_state: of all levels; an integer gives the same result again.

    Attributes:
        codes_: (N, L) int64, from 0 to K_l - 1 on level l.
        cluster_centers_: L arrays (K_l, D).
        sizes_: L arrays (K_l,) int64, rows with each part.
        inertia_: (L,) float64, sum_i ||residual_{l+1, i}||^2: what is left over after each level.
        gap_: (L,) float64, by how much other labels of a level, with the same sizes, centres and limits, could lower
            its inertia at most; zero up to rounding.
        potentials_: L arrays (K_l,) float64, by which `encode` finds the codes of any rows.
        n_features_in_: D.

    Raises:
        ValueError: levels that are no whole numbers, fewer rows than clusters of a level, fewer codes than rows.
        InvalidScoresError: features in files or tensors that are no matrix, or hold NaN or infinity.
        MissingPackageError: scikit-learn is not installed; on import of this class.

    Warns:
        sklearn.exceptions.ConvergenceWarning: a level's max_iter was reached, though its sizes are exact all the same.

    Example:
        coder = ResidualBalancedKMeans((64, 64, 64), unique=True, random_state=0).fit(features)
        coder.codes_                       # (N, 3), all different
        coder.decode(coder.codes_)         # (N, D), near the features

    Source: Lee, Kim, Kim, Cho, Han, "Autoregressive image generation using residual quantization", CVPR 2022;
        semantic IDs: Rajput et al., "Recommender systems with generative retrieval", NeurIPS 2023, where collisions are
        told apart by a further part that says nothing.
    """

    def __init__(
        self,
        levels: Sequence[int] = (256, 256, 256),
        *,
        unique: bool = False,
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        n_swaps: int = 0,
        random_state: Any = None,
        device: str = "auto",
        memory_limit: int | None = None,
        verbose: Any = 0,
    ) -> None:
        self.levels = levels
        self.unique = unique
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.n_swaps = n_swaps
        self.random_state = random_state
        self.device = device
        self.memory_limit = memory_limit
        self.verbose = verbose

    @interruptible
    def fit(self, X: Any, y: Any = None, *, group: Any = None) -> ResidualBalancedKMeans:
        """Find centres and codes, level by level.

        Args:
            X: (N, D) features, from any place as for `BalancedKMeans.fit`. Never modified.
            y: ignored.
            group: a torch.distributed group whose ranks call this together, each with its own rows (maybe none); then
                `codes_` are of this rank's rows, and everything else is of all rows. None: this process has all rows.

        Returns:
            The estimator itself. Whatever X is, all attributes are NumPy's.
        """
        levels = _checked_levels(self.levels)
        with communicator_of(group) as communicator:
            opened = self._opened(X, reset=True, may_be_empty=communicator.world_size > 1)
            n_rows = RowSet.as_given(opened, communicator).n_rows
            if self.unique and math.prod(levels) < n_rows:
                raise ValueError(
                    f"levels={levels} make {math.prod(levels):,} codes, fewer than the {n_rows:,} rows; for unique "
                    "codes add a level, or make levels larger"
                )
            settings = {name: value for name, value in self.get_params().items() if name not in ("levels", "unique")}
            codes, kept = np.empty((opened.shape[0], 0), np.int64), list[BalancedKMeans]()
            for level, n_clusters in enumerate(levels):
                left = _left_over(opened, codes, [model.cluster_centers_ for model in kept])
                model = BalancedKMeans(n_clusters, **settings).fit(left, group=group)
                if self.unique:
                    _keep_apart(model, RowSet.as_given(left, communicator), codes, math.prod(levels[level + 1 :]))
                codes = np.column_stack([codes, model.labels_])
                kept.append(model)
        self.codes_ = codes
        self.cluster_centers_ = [model.cluster_centers_ for model in kept]
        self.potentials_ = [model.potentials_ for model in kept]
        self.sizes_ = [model.sizes_ for model in kept]
        self.inertia_ = np.array([model.inertia_ for model in kept])
        self.gap_ = np.array([model.gap_ for model in kept])
        return self

    @interruptible
    def encode(self, X: Any) -> np.ndarray:
        """Codes of any rows by the rule of each level's labels, argmax_k potentials_k - ||residual - mu_k||^2.

        The rows that were fitted get `codes_` back, but for ties. With unique=True also but for those that were kept
        apart from others: each row is looked at by itself here, so that two of them may get the same code.

        Args:
            X: (M, D) features, as for `fit`.

        Returns:
            (M, L) int64.
        """
        opened = self._opened(X)
        codes = np.empty((opened.shape[0], 0), np.int64)
        for level, (centres, potentials) in enumerate(zip(self.cluster_centers_, self.potentials_, strict=True)):
            scores = scores_of(_left_over(opened, codes, self.cluster_centers_[:level]), centres, cosine=False)
            codes = np.column_stack([codes, as_array(predict(scores, potentials))])
        return codes

    predict = encode

    def decode(self, codes: Any) -> np.ndarray:
        """Sums of the centres of codes, (M, D): what they say of the rows that have them.

        Args:
            codes: (M, l) whole numbers, of all levels or of the first l.

        Raises:
            ValueError: codes of another shape, or that a level does not have.
        """
        check_is_fitted(self)
        given, sizes = as_array(codes, "codes"), [len(centres) for centres in self.cluster_centers_]
        if given.ndim != 2 or given.dtype.kind not in "iu" or not 1 <= given.shape[1] <= len(sizes):
            raise ValueError(
                f"codes have shape {given.shape} of {given.dtype}; pass (M, l) whole numbers, l from 1 to {len(sizes)}"
            )
        for level in range(given.shape[1]):
            part = given[:, level]
            if len(part) and not 0 <= part.min() <= part.max() < sizes[level]:
                raise ValueError(
                    f"codes of level {level} are {part.min()} to {part.max()}; it has codes 0 to {sizes[level] - 1}"
                )
        return decoded(given, self.cluster_centers_).astype(np.result_type(*self.cluster_centers_))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write codes, centres and settings to one .npz file without pickle; the file is whole or absent."""
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", None)
        header = {name: plain(getattr(self, name)) for name, plain in SETTINGS.items()}
        header["feature_names"] = None if names is None else list(names)
        arrays = {name: getattr(self, f"{name}_") for name in OF_ALL}
        for name in OF_LEVELS:
            arrays |= {f"{name}_{level}": array for level, array in enumerate(getattr(self, f"{name}_"))}
        save_archive(path, FORMAT, FORMAT_VERSION, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResidualBalancedKMeans:
        """Read what `save` wrote; nothing is unpickled. Settings that no file keeps are the defaults.

        Raises:
            FileFormatError: the file is damaged, of another kind or of a newer version.
        """
        with reading_archive(path, FORMAT, FORMAT_VERSION) as (header, arrays):
            names = header.pop("feature_names")
            loaded = cls(**header)
            loaded.levels = _checked_levels(loaded.levels)
            for name in OF_ALL:
                setattr(loaded, f"{name}_", arrays[name])
            for name in OF_LEVELS:
                setattr(loaded, f"{name}_", [arrays[f"{name}_{level}"] for level in range(len(loaded.levels))])
            loaded.n_features_in_ = loaded.cluster_centers_[0].shape[-1]
            if names is not None:
                loaded.feature_names_in_ = np.array(names, dtype=object)
            _check_loaded(loaded)
        return loaded


def _checked_levels(levels: Any) -> tuple[int, ...]:
    if isinstance(levels, (str, bytes)) or not hasattr(levels, "__iter__"):
        raise ValueError(f"levels is {levels!r}; pass the clusters of each level, such as (256, 256, 256)")
    found = tuple(levels)
    if not found or not all(is_whole(number) and number >= 1 for number in found):
        raise ValueError(f"levels is {levels!r}; each is to be a whole number of clusters, at least 1")
    return tuple(map(int, found))


def _keep_apart(model: BalancedKMeans, rows: RowSet, codes: np.ndarray, most: int) -> None:
    """Let a level's labels be the best of which no more than so many rows of all ranks share them and their codes."""
    (of_all,) = rows.concat("codes", np.column_stack([codes, model.labels_]))
    prefixes = np.unique(of_all[:, :-1], axis=0, return_inverse=True)[1].reshape(-1) if codes.shape[1] else None
    groups = np.zeros(len(of_all), np.int64) if prefixes is None else prefixes
    if np.unique(of_all, axis=0, return_counts=True)[1].max() <= most:
        return
    scores = rows.over(scores_of(rows.opened, model.cluster_centers_, cosine=False)).fine
    here = np.empty((rows.shape[0], len(model.sizes_)))
    with scores.reading():
        for (start, stop), block in scores.blocks():
            here[start:stop] = block
    (scores_of_all,) = rows.concat("scores", here)
    labels, _, gap = distinct_labels(scores_of_all, groups, most, as_array(model.sizes_), model.potentials_)
    model.labels_, model.gap_ = labels[rows.first : rows.stop], gap
    _, model.inertia_ = moments(rows, model.labels_, model.cluster_centers_)


def _check_loaded(loaded: ResidualBalancedKMeans) -> None:
    """Raise ValueError unless what a file holds belongs together."""
    levels, n_features, codes = loaded.levels, loaded.n_features_in_, loaded.codes_
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        "codes_": ((len(codes), len(levels)), loaded.codes_),
        "inertia_": ((len(levels),), loaded.inertia_),
        "gap_": ((len(levels),), loaded.gap_),
    }
    for level, n_clusters in enumerate(levels):
        expected |= {
            f"cluster_centers_{level}": ((n_clusters, n_features), loaded.cluster_centers_[level]),
            f"potentials_{level}": ((n_clusters,), loaded.potentials_[level]),
            f"sizes_{level}": ((n_clusters,), loaded.sizes_[level]),
        }
    for name, (shape, array) in expected.items():
        kinds = "iu" if name.startswith(("codes", "sizes")) else "f"
        if (
            array.shape != shape
            or array.dtype.kind not in kinds
            or (name[:7] == "cluster" and not np.isfinite(array).all())
        ):
            raise ValueError(f"its {name} have shape {array.shape} and dtype {array.dtype}, for levels {levels}")
    if len(codes) and ((codes < 0).any() or (codes >= levels).any()):
        raise ValueError(f"its codes are not from 0 to {max(levels) - 1}")
