"""Opening: whatever a user hands over becomes a source and its names, without a copy if possible."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import Source, check_shape
from otlabel.sources.device import on_device
from otlabel.sources.given import as_array, as_matrix, is_frame, is_tensor, n_dimensions, plain_tensor
from otlabel.sources.hdf5 import HDF5Source
from otlabel.sources.hdf5_sparse import open_group
from otlabel.sources.linear import Features, Head, LinearScores, checked_head
from otlabel.sources.listed import ListedSource
from otlabel.sources.memory import open_array, open_tensor
from otlabel.sources.opened import Opened, as_opened
from otlabel.sources.parts import joined
from otlabel.sources.paths import open_path
from otlabel.sources.sparse import is_sparse, open_sparse

if TYPE_CHECKING:
    import torch


def open_scores(scores: Any, *, device: str = "auto", what: str = "scores", may_be_empty: bool = False) -> Opened:
    """Whatever holds an (N, K) matrix (array, tensor, nested lists, files) as one, without copying if possible.

    `what` names it in messages; only "scores" may have masked entries, since they have -inf for a forbidden pair. One
    of several ranks may have no rows.
    """
    if what.startswith("scores") and is_sparse(scores):
        scores = open_sparse(scores, what)
    if isinstance(scores, ListedSource) and not may_be_empty:
        check_shape(scores.shape, what)
    if may_be_empty and (n_columns := _columns_of_none(scores)):
        return Opened.of(open_array(np.zeros((1, n_columns), np.float32)).take(np.empty(0, np.int64)))
    if str(device) != "auto":
        chosen = _checked_device(device)
        if is_tensor(scores) and scores.device.type != "cpu":
            return Opened.of(open_tensor(plain_tensor(scores, what).to(chosen), what))
        opened = open_scores(scores, what=what)
        on_cpu = isinstance(opened.source, ListedSource)  # lists are for the CPU alone
        if chosen.type == "cpu" or opened.source.device is not None or on_cpu:
            return opened
        if isinstance(opened, LinearScores):
            return opened.on(chosen)
        return opened.only(on_device(opened.source, chosen))
    if is_tensor(scores):
        return Opened.of(open_tensor(scores, what))
    opened_already = _open_stored(scores)
    if opened_already is not None:
        return opened_already
    if is_list_of_parts(scores):
        return _open_parts(scores, what)
    names = (list(scores.columns), getattr(scores, "index", None)) if is_frame(scores) else (None, None)
    return Opened.of(open_array(as_matrix(scores, what), what), *names)


def _columns_of_none(scores: Any) -> int:
    """The columns of what has no rows; 0 where there are some, or no columns, or it is not known."""
    if isinstance(scores, (Source, Opened)):
        return 0
    parts = scores if is_list_of_parts(scores) else [scores]
    n_columns = {part.shape[1] if n_dimensions(part) == 2 and not part.shape[0] else 0 for part in parts}
    return n_columns.pop() if len(n_columns) == 1 else 0


def is_list_of_parts(scores: Any) -> bool:
    """Whether scores are a list of matrices, files or sources, such as the outputs of a model's batches."""
    if not isinstance(scores, (list, tuple)) or hasattr(scores, "_fields"):  # a model's named outputs are no batches
        return False
    return any((n_dimensions(part) or 0) > 1 or is_stored(part) or getattr(part, "is_nested", False) for part in scores)


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
        features: (N, D), from any of the places that `sinkhorn_assign` takes scores from: array, tensor, data frame,
            mapped file, h5py dataset, "features.h5::/features", shards, a list of batches. Of a file they are kept in
            memory, in the type they are stored in, if the memory limit of the first solve allows it; else each pass
            reads them.
        weight: (K, D) of the head, NumPy or torch; or a list of them, one for each of several heads, which then share
            one copy of the features: the first solve reads them for all. In a data frame, rows have the classes' names,
            and columns those of the features' where these are a data frame, too.
        bias: (K,), or a list of them; None for none.
        normalize: True gives log-probabilities (log-softmax), False the logits. The labels and the plan are the same,
            since a constant in a row changes nothing; the value is the mean log-probability or the mean logit. With
            `abstain` it decides who is labelled: where logits differ by 1e-8 or less, the normaliser, about log K,
            then hides digits, and by 1e-16 all; pass False.

    Returns:
        What `sinkhorn_assign`, `certify` and `predict` take as scores; a list of them for a list of heads. Products
        are in float32 of features less their mean, or in float64 where the features are; what decides between labels,
        and value and bound, are those of float64.

    Raises:
        InvalidScoresError: shapes or names that do not fit together, masked features.
    """
    opened = open_scores(features, what="features", may_be_empty=True)
    shared = Features(opened, home_of(features))

    def head(weight: Any, bias: Any) -> LinearScores:
        matrix, vector, names = checked_head(weight, bias, opened)
        return LinearScores.made_of(shared, Head(matrix, vector, normalize), names)

    if not isinstance(weight, (list, tuple)) or not weight or np.ndim(as_array(weight[0], "weight")) != 2:
        return head(weight, bias)
    biases = [None] * len(weight) if bias is None else bias
    if len(biases) != len(weight):
        raise ValueError(f"{len(weight)} weights and {len(biases)} biases were given; pass one bias a head, or None")
    return [head(*pair) for pair in zip(weight, biases, strict=True)]


def home_of(scores: Any) -> torch.device | None:
    """Where results are to be tensors: where scores are one, or a list of them; None where they are to be arrays."""
    parts = scores if isinstance(scores, (list, tuple)) and scores else [scores]
    homes = [part.device if is_tensor(part) else getattr(part, "torch_device", None) for part in parts]
    return None if None in homes else homes[0]


def is_stored(scores: Any) -> bool:
    """Whether this names or is a file, a data set or a source, or is a list of such."""
    if isinstance(scores, (list, tuple)) and scores:
        return all(map(is_stored, scores))
    h5py = sys.modules.get("h5py")
    stored = Source, Opened, str, os.PathLike
    return isinstance(scores, stored if h5py is None else (*stored, h5py.Dataset, h5py.Group))


def _open_stored(scores: Any) -> Opened | None:
    """What is a source, a file or a data set, or open already; None for what is none of these."""
    if isinstance(scores, (Source, Opened)):
        return as_opened(scores)
    if isinstance(scores, (str, os.PathLike)):
        return open_path(os.fspath(scores))
    h5py = sys.modules.get("h5py")
    if h5py is not None and isinstance(scores, h5py.Group):
        return Opened.of(open_group(scores))
    return Opened.of(HDF5Source(scores)) if h5py is not None and isinstance(scores, h5py.Dataset) else None


def _open_parts(parts: Sequence[Any], what: str) -> Opened:
    """Matrices, files and sources one after the other; a batch of no rows is left out."""
    _check_same_device(parts)
    for number, part in enumerate(parts):
        if n_dimensions(part) not in (None, 2):
            raise InvalidScoresError(
                f"part {number} of {what} has shape {tuple(part.shape)}; parts are matrices that are joined row after "
                "row: make it one, or join all yourself with np.concatenate or torch.cat"
            )
    filled = [part for part in parts if is_stored(part) or n_dimensions(part) is None or part.shape[0]] or parts[:1]
    sources = [open_scores(part, what=f"{what}[{number}]") for number, part in enumerate(filled)]
    return joined(sources, f"{len(sources)} parts", what)


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
    except (RuntimeError, TypeError) as error:
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
