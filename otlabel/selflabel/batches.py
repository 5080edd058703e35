"""What a loader yields, taken apart: which samples a batch is of, and what the model is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

REMEDY = (
    "say which parts are index and input, as batch=('index', 'image') or batch=(2, 0), or by a function; or wrap the "
    "data set in otlabel.IndexedDataset"
)

Parted = Callable[[Any], tuple[np.ndarray, Any]]  # what a loader yields -> indices (B,) int64, inputs


def parting(batch: Any) -> Parted:
    """A function that takes what a loader yields to index and input.

    Args:
        batch: None: it is a pair (index, input); (at, at): where either is, a key or a position, for the input also a
            list of them, of which the model is then given a dict or a tuple; or a function that returns (index, input).

    Raises:
        TypeError: none of these.
    """
    if batch is None:
        return parted
    if callable(batch):
        return partial(_by_function, batch)
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(map(_names_parts, batch))):
        raise TypeError(
            f"batch is {batch!r}; pass where index and input are in what the loader yields, as ('index', 'image') or "
            "(2, 0), or a function that returns (index, input)"
        )
    return partial(_by_places, tuple(batch))


def _names_parts(at: Any) -> bool:
    return all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in (at if _is_list(at) else [at]))


def _is_list(at: Any) -> bool:
    return isinstance(at, (list, tuple)) and len(at) > 0


def parted(item: Any) -> tuple[np.ndarray, Any]:
    """Index and input of what a loader yields, where it yields pairs of them."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(f"the loader yields {described(item)}, not (index, input); {REMEDY}")
    return whole_numbers(item[0], "the first of what the loader yields", REMEDY), item[1]


def _by_function(batch: Callable[[Any], Any], item: Any) -> tuple[np.ndarray, Any]:
    found = batch(item)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"the function batch returns {described(found)}; it must return (index, input)")
    return whole_numbers(found[0], "the first of what the function batch returns"), found[1]


def _by_places(batch: tuple[Any, Any], item: Any) -> tuple[np.ndarray, Any]:
    at, inputs_at = batch
    index = whole_numbers(_part(item, at, batch), f"what the loader yields at {at!r}")
    if not _is_list(inputs_at):
        return index, _part(item, inputs_at, batch)
    parts = [_part(item, one, batch) for one in inputs_at]
    return index, dict(zip(inputs_at, parts, strict=True)) if isinstance(item, Mapping) else tuple(parts)


def _part(item: Any, at: Any, batch: tuple[Any, Any]) -> Any:
    try:
        return item[at]
    except (KeyError, IndexError, TypeError) as error:
        raise TypeError(f"batch={batch!r} names {at!r}, but the loader yields {described(item)}") from error


def whole_numbers(index: Any, what: str = "the index", remedy: str = "") -> np.ndarray:
    """Indices of samples, (B,) int64."""
    array = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        if array.ndim == 0 and array.dtype.kind in "iu":
            remedy = "that is of a single sample; pass a DataLoader of the data set, whose batches have (B,)"
        raise TypeError(
            f"{what} is {array.dtype} of shape {array.shape}, no indices of samples" + (f"; {remedy}" if remedy else "")
        )
    return array.astype(np.int64)


def check_range(index: np.ndarray, n_samples: int) -> None:
    """Raise ValueError for an index that is no sample's."""
    if len(index) and (index.min() < 0 or index.max() >= n_samples):
        wrong = int(index[(index < 0) | (index >= n_samples)][0])
        raise ValueError(f"index {wrong} is out of range; the labeler was made for {n_samples} samples, 0 to N - 1")


def described(item: Any) -> str:
    """What it is, and of what parts."""
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} of {', '.join(map(repr, item))}"
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    return type(item).__name__
