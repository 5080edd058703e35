"""Sparse scores: whatever lists a few classes a row becomes lists, which are never made a full matrix."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
from scipy.sparse import csc_array, csr_array, issparse

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import check_shape, check_whole, storage_type
from otlabel.sources.given import as_array, as_matrix, is_tensor
from otlabel.sources.listed import ListedSource, Lists, quantum_of

MOST_CLASSES = np.iinfo(np.int32).max
SPARSE_LAYOUTS = "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_coo"
Missing = Literal["forbidden", "at most the least"]


def is_sparse(scores: Any) -> bool:
    """Whether scores are a matrix of SciPy or a tensor that holds few of its entries."""
    if is_tensor(scores):
        return str(scores.layout) in SPARSE_LAYOUTS and not scores.is_nested
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and issparse(scores)


def open_sparse(scores: Any, what: str = "scores") -> ListedSource:
    """A sparse matrix or tensor as lists, without a copy of a CSR matrix that is in order; duplicates are added up."""
    shape = tuple(scores.shape)
    if len(shape) != 2 or 0 in shape[1:]:
        check_shape(shape, what)
    if is_tensor(scores):
        return _open_tensor(scores, shape, what)
    if scores.format == "csr":
        return listed(scores.indptr, scores.indices, scores.data, shape, what)
    values = scores.tocoo().data
    dtype = storage_type(values.dtype, what)
    check_whole(values.reshape(-1, 1), f"entries of {what}")
    compressed = scores.astype(dtype).tocsr()  # which adds up what a COO matrix has twice
    return listed(compressed.indptr, compressed.indices, compressed.data, shape, what)


def top_scores(classes: Any, values: Any, n_classes: int, *, missing: Missing = "forbidden") -> ListedSource:
    """Scores of a few candidate classes a row, as a nearest-neighbour index or a router gives them.

        s[i, classes[i, j]] = values[i, j];  all others are -inf, or at most min_j values[i, j]

    Args:
        classes: (N, m) integers from 0 to K - 1, none twice in a row; -1 stands for no candidate.
        values: (N, m) scores, the larger the better; of any floating type or integers. -inf forbids a pair.
        n_classes: K.
        missing: "forbidden": a pair that is not listed is not allowed, and the lists are the whole problem. "at most
            the least": it scores no better than the row's worst candidate that is allowed, as what an exact index
            leaves out does.
            Labels are then the best among the candidates, and bound and gap allow for all others: a gap above zero says
            by how much labels from outside of the lists might be better.

    Returns:
        What `sinkhorn_assign`, `certify` and `predict` take as scores; labels are tensors where values are one.

    Raises:
        InvalidScoresError: shapes that do not fit together, classes outside of -1 ... K - 1 or twice in a row.
    """
    if missing not in ("forbidden", "at most the least"):
        raise ValueError(f"missing is {missing!r}; choose 'forbidden' or 'at most the least'")
    home = values.device if is_tensor(values) else None
    chosen, numbers = as_matrix(classes, "classes"), as_array(values, "values", InvalidScoresError)
    if chosen.dtype.kind not in "iu":
        raise InvalidScoresError(f"classes have dtype {chosen.dtype}; pass integers, from 0 to {n_classes - 1}")
    if chosen.ndim != 2 or chosen.shape != numbers.shape:
        raise InvalidScoresError(
            f"classes have shape {chosen.shape}, values {numbers.shape}; pass two (N, m) matrices, one candidate each"
        )
    check_shape((max(1, len(chosen)), n_classes))  # a rank may have no rows
    outside = np.argwhere((chosen < -1) | (chosen >= n_classes)) if chosen.size else np.empty((0, 2), np.int64)
    if len(outside):
        row, at = outside[0]
        raise InvalidScoresError(
            f"classes[{row}, {at}] is {chosen[row, at]} ({len(outside)} are outside of 0 ... {n_classes - 1}, -1 for "
            "none); is n_classes right?"
        )
    taken = chosen >= 0
    sizes = taken.sum(1)
    if not taken.all():
        chosen, numbers = chosen[taken], numbers[taken]
    starts = np.append(0, np.cumsum(sizes))
    source = listed(starts, chosen.ravel(), numbers.ravel(), (len(sizes), n_classes), "scores", may_repeat=False)
    if missing != "forbidden":
        source.least = np.full(len(sizes), -np.inf)
        filled, scores = sizes > 0, source.lists.scores
        allowed = np.where(scores == -np.inf, np.inf, scores)  # a pair that is forbidden says nothing of others
        least = np.minimum.reduceat(allowed, source.lists.starts[:-1][filled]) if filled.any() else 0.0
        source.least[filled] = np.where(least == np.inf, -np.inf, least)
    source.torch_device = home
    return source


def listed(
    starts: Any, classes: Any, values: Any, shape: tuple[int, ...], what: str, *, may_repeat: bool = True
) -> ListedSource:
    """The rows of a CSR matrix, sorted and without duplicates, which are added up if they may be; without any if not.

    Raises:
        InvalidScoresError: what is no such matrix.
    """
    n_rows, n_classes = shape
    if n_classes > MOST_CLASSES:
        raise InvalidScoresError(f"{what} have {n_classes} classes; at most {MOST_CLASSES} are possible")
    numbers = _numbers(values, what)
    try:
        rows = csr_array((numbers, as_array(classes), as_array(starts)), shape=(n_rows, n_classes))
        rows.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise InvalidScoresError(f"{what} are no CSR matrix of shape {tuple(shape)}: {error}") from error
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sort_indices()
        if not may_repeat and not rows.has_canonical_format:
            row, k = _first_repeated(rows)
            raise InvalidScoresError(f"row {row} lists class {k} twice; keep the larger of the two scores")
        rows.sum_duplicates()
    lists = Lists(
        rows.indptr.astype(np.int64, copy=False), rows.indices.astype(np.int32, copy=False), rows.data,
        quantum_of(max(1, n_rows)),
    )  # fmt: skip
    return ListedSource(lists, n_classes, str(numbers.dtype))


def listed_columns(starts: Any, rows: Any, values: Any, shape: tuple[int, ...], what: str) -> ListedSource:
    """The same of a CSC matrix."""
    try:
        columns = csc_array((_numbers(values, what), as_array(rows), as_array(starts)), shape=shape)
        columns.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise InvalidScoresError(f"{what} are no CSC matrix of shape {tuple(shape)}: {error}") from error
    compressed = columns.tocsr()
    return listed(compressed.indptr, compressed.indices, compressed.data, shape, what)


def _open_tensor(tensor: Any, shape: tuple[int, ...], what: str) -> ListedSource:
    tensor = tensor.detach().cpu()
    if str(tensor.layout) == "torch.sparse_coo":
        tensor = tensor.coalesce().to_sparse_csr()
    if tensor.values().ndim != 1:
        raise InvalidScoresError(
            f"{what}: got a sparse tensor whose entries are {tensor.values().ndim - 1}-D; pass (N, K)"
        )
    if str(tensor.layout) == "torch.sparse_csc":
        return listed_columns(tensor.ccol_indices(), tensor.row_indices(), tensor.values(), shape, what)
    return listed(tensor.crow_indices(), tensor.col_indices(), tensor.values(), shape, what)


def _numbers(values: Any, what: str) -> np.ndarray:
    """Scores of entries (E,) in float32 or float64; of halves, float32 has all."""
    array = as_array(values, what, InvalidScoresError)
    dtype = storage_type(array.dtype, what)
    check_whole(array.reshape(-1, 1), f"entries of {what}")
    return array.astype("float64" if dtype == "float64" else "float32", copy=False)


def _first_repeated(rows: csr_array) -> tuple[int, int]:
    """The first row, sorted, that has a class twice, and the class."""
    same = np.append(False, rows.indices[1:] == rows.indices[:-1])
    same[rows.indptr[:-1][rows.indptr[:-1] < len(same)]] = False
    at = int(np.argmax(same))
    return int(np.searchsorted(rows.indptr, at, side="right")) - 1, int(rows.indices[at])
