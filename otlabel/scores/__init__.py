"""Where scores come from: anything a user hands over becomes a source, which gives row blocks in storage form."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.scores.base import (
    ITEM_BYTES,
    Batch,
    Scores,
    WrappedScores,
    as_float,
    block_rows,
    draw_rows,
    partition,
    row_blocks,
)
from otlabel.scores.column import WithColumn
from otlabel.scores.device import DeviceScores, on_device
from otlabel.scores.factored import Features, LinearScores, checked_head
from otlabel.scores.files import StoredScores
from otlabel.scores.hdf5 import HDF5Scores
from otlabel.scores.kept import KeptRows, KeptWhole, default_limit, free_memory
from otlabel.scores.memory import ArrayScores, TensorScores, as_array, is_tensor, open_array, open_tensor
from otlabel.scores.moved import MovedScores
from otlabel.scores.parts import Parts, rows_between
from otlabel.scores.paths import load_array, matches, open_path
from otlabel.scores.sharded import Rows, gathered, part_of_all, take_rows

if TYPE_CHECKING:
    import torch

__all__ = [
    "ITEM_BYTES", "ArrayScores", "Batch", "DeviceScores", "LinearScores", "MovedScores", "Rows", "Scores",
    "TensorScores", "WithColumn", "WrappedScores", "as_array", "as_float", "block_rows", "default_limit", "draw_rows",
    "free_memory", "gathered", "is_stored", "is_tensor", "keep", "keep_whole", "linear_scores", "load_array", "matches",
    "on_device", "open_part", "open_scores", "part_of_all", "partition", "row_blocks", "rows_between", "take_rows",
]  # fmt: skip


def open_scores(scores: Any, *, device: str = "auto") -> Scores:
    """Whatever holds an (N, K) matrix (array, tensor, nested lists, files) as a source, without copying if possible."""
    if device != "auto":
        chosen = _checked_device(device)
        if is_tensor(scores) and scores.device.type != "cpu":
            return open_tensor(scores.to(chosen))
        opened = open_scores(scores)
        if chosen.type == "cpu" or not opened.on_cpu:
            return opened
        return opened.on(chosen) if isinstance(opened, LinearScores) else on_device(opened, chosen)
    if is_tensor(scores):
        return open_tensor(scores)
    source = _open_stored(scores)
    if source is None and isinstance(scores, (list, tuple)) and scores:
        _check_same_device(scores)
        parts = [_open_stored(part) for part in scores]
        if any(part is not None for part in parts):
            sources = [open_scores(rows) if part is None else part for rows, part in zip(scores, parts, strict=True)]
            return Parts(sources, f"{len(parts)} parts")
    return open_array(_as_matrix(scores)) if source is None else source


def open_part(scores: Any, *, device: str = "auto") -> Scores:
    """The same for one rank's rows, of which there may be none."""
    shape: tuple[int, ...] = tuple(getattr(scores, "shape", ()))
    if len(shape) != 2 or shape[0] or not shape[1] or isinstance(scores, Scores):
        return open_scores(scores, device=device)
    return open_scores(np.zeros((1, shape[1]), np.float32)).take(np.empty(0, np.int64))


def keep(scores: Scores, rows: np.ndarray, memory_limit: int | None = None) -> Scores:
    """Scores for many passes: kept in memory by the first if `memory_limit` bytes hold them, else but for `rows`.

    rows (sorted) are those that samples will be taken from. No limit: half of the memory that is free.
    """
    limit = _checked_limit(memory_limit)
    if isinstance(scores, DeviceScores):
        kept = DeviceScores(keep(scores.source, rows, limit), scores.device)
        kept.own_share = scores.own_share
        return kept
    whole = keep_whole(scores, limit)
    if whole.random_access or whole.keeps_all or not whole.on_cpu:
        return whole
    return KeptRows(whole, rows)


def keep_whole(scores: Scores, memory_limit: int | None = None) -> Scores:
    """A file's scores, or features, such that the first pass leaves all in memory, if so many bytes hold them."""
    limit = _checked_limit(memory_limit)
    if isinstance(scores, LinearScores):
        scores.keep_features(limit)
    if not isinstance(scores, StoredScores):
        return scores
    return KeptWhole(scores) if scores.n_bytes <= limit else scores


@overload
def linear_scores(
    features: Any, weight: list[Any] | tuple[Any, ...], bias: Any = None, *, normalize: bool = True
) -> list[LinearScores]: ...
@overload
def linear_scores(features: Any, weight: Any, bias: Any = None, *, normalize: bool = True) -> LinearScores: ...
def linear_scores(
    features: Any, weight: Any, bias: Any = None, *, normalize: bool = True
) -> LinearScores | list[LinearScores]:
    """Scores of a linear head, made block by block from features: the (N, K) matrix never exists in full.

        s_ik = <features_i, weight_k> + bias_k,    if normalize less  log sum_j exp(<features_i, weight_j> + bias_j)

    Args:
        features: (N, D), from any of the places that `sinkhorn_assign` takes scores from: array, tensor, mapped file,
            h5py dataset, "features.h5::/features", shards. Of a file they are kept in memory, in the type they are
            stored in, if the memory limit of the first solve allows it; else each pass reads them.
        weight: (K, D) of the head, NumPy or torch; or a list of them, one for each of several heads, which then share
            one copy of the features: the first solve reads them for all.
        bias: (K,), or a list of them; None for none.
        normalize: True gives log-probabilities (log-softmax), False the logits. The labels and the plan are the same,
            since a constant in a row changes nothing; the value is the mean log-probability or the mean logit.

    Returns:
        What `sinkhorn_assign`, `certify` and `predict` take as scores; a list of them for a list of heads. Products
        are in float32, or in float64 where the features are.

    Raises:
        InvalidScoresError: shapes that do not fit together.
    """
    source = open_part(features)
    shared = Features(source, features.device if is_tensor(features) else None)

    def head(weight: Any, bias: Any) -> LinearScores:
        return LinearScores(shared, *checked_head(weight, bias, source.shape[1]), normalize)

    if not isinstance(weight, (list, tuple)) or np.ndim(as_array(weight[0])) != 2:
        return head(weight, bias)
    biases = [None] * len(weight) if bias is None else bias
    if len(biases) != len(weight):
        raise ValueError(f"{len(weight)} weights and {len(biases)} biases were given; pass one bias a head, or None")
    return [head(*pair) for pair in zip(weight, biases, strict=True)]


def is_stored(scores: Any) -> bool:
    """Whether this names or is a file, a data set or a source, or is a list of such."""
    if isinstance(scores, (list, tuple)) and scores:
        return all(map(is_stored, scores))
    h5py = sys.modules.get("h5py")
    stored = (Scores, str, os.PathLike) if h5py is None else (Scores, str, os.PathLike, h5py.Dataset)
    return isinstance(scores, stored)


def _open_stored(scores: Any) -> Scores | None:
    """A source, a file or a data set that is open; None for what is none of these."""
    if isinstance(scores, Scores):
        return scores
    if isinstance(scores, (str, os.PathLike)):
        return open_path(os.fspath(scores))
    h5py = sys.modules.get("h5py")
    return HDF5Scores(scores) if h5py is not None and isinstance(scores, h5py.Dataset) else None


def _checked_limit(limit: Any) -> int:
    """Bytes that may hold a copy of scores; half of what is free where nobody says."""
    if limit is None:
        return default_limit()
    if not (isinstance(limit, Real) and float(limit) >= 0):
        raise ValueError(f"memory_limit is {limit!r}; pass a number of bytes, 0 to keep nothing, or None")
    return limit  # type: ignore[return-value]


def _as_matrix(scores: Any) -> np.ndarray:
    """Whatever NumPy makes an array of."""
    try:
        return np.asarray(scores)
    except ValueError as error:
        raise InvalidScoresError(f"scores are no matrix (N, K): {error}") from error


def _check_same_device(parts: Sequence[Any]) -> None:
    """Refuse parts that are tensors in different places, or on a device beside files, which are read to the host."""
    places = [str(part.device) if is_tensor(part) else "cpu" for part in parts]
    if set(places) != {"cpu"}:
        other = next((number for number, place in enumerate(places) if place != places[0]), None)
        if other is None:
            raise InvalidScoresError(f"{len(parts)} parts are tensors on {places[0]}; pass one: torch.cat(parts)")
        raise InvalidScoresError(
            f"part 0 is on {places[0]}, part {other} on {places[other]}; move all parts to one device first, and pass "
            "tensors on a device as one: torch.cat(parts)"
        )


def _checked_device(device: str) -> torch.device:
    import torch

    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not one that torch knows; use 'auto', 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        reason = "this torch build has no CUDA" if torch.version.cuda is None else "no CUDA driver or card was found"
        raise ValueError(f"device {device!r} was asked for, but {reason}; use device='auto' or 'cpu'")
    if chosen.type == "cuda":
        index = chosen.index if ":" in str(chosen) else torch.cuda.current_device()
        if index >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise ValueError(f"device {device!r} was asked for, but the last card is 'cuda:{last}'; use that or 'cuda'")
        chosen = torch.device("cuda", index)
    return chosen
