"""What features are worth by their neighbours: a weighted vote of the nearest training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.metrics.features import TRAIN_ROWS, Features, features_of, labels_of, mask_of

if TYPE_CHECKING:
    import torch


def knn_predict(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    *,
    k: int = 50,
    temperature: float = 0.1,
    batch: int = 1024,
) -> np.ndarray:
    """Classes by a weighted vote of the k nearest training rows, (M,) int64.

        argmax_c  sum_{i among the k largest cos(x, x_i)}  exp(cos(x, x_i) / temperature) [label_i = c]

    The search is exact and compares block with block: neither the products nor all features at once are held beside
    the input. Of equally near rows the first count, of classes with equal votes the smallest wins.

    Args:
        train_features: (N, D), from any of the places that `sinkhorn_assign` takes scores from. Rows are scaled to
            length 1; a row of zeros has cosine 0 with everything.
        train_labels: (N,) classes; rows with -1 are left out.
        test_features: (M, D), likewise. The work is done where the tensors are, on the CPU with everything else.
        k: voters; all training rows where there are fewer.
        temperature: the smaller, the more the nearest ones count.
        batch: test rows in a block; memory grows with it.

    Raises:
        ValueError: shapes that do not fit together, no labelled row, k, temperature or batch that is not positive.
        InvalidScoresError: features that are no matrix, or a row with NaN or infinity.

    Source: Wu, Xiong, Yu, Lin, "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018,
        section 3.4; k and temperature as in Asano, Rupprecht, Vedaldi, ICLR 2020.
    """
    train, test = features_of(train_features, test_features)
    return _knn(train, train_labels, test, k, temperature, batch)


def knn_accuracy(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    k: int = 50,
    temperature: float = 0.1,
    batch: int = 1024,
) -> float:
    """Share of test rows that `knn_predict` gets right.

    Args:
        train_features: (N, D), as all others but the next as for `knn_predict`.
        train_labels: (N,) classes.
        test_features: (M, D).
        test_labels: (M,) classes; rows with -1 do not count.
        k: voters.
        temperature: of their weights.
        batch: test rows in a block.

    Raises:
        ValueError: as for `knn_predict`; or no test row has a label.
        InvalidScoresError: as for `knn_predict`.

    Source: as for `knn_predict`.
    """
    train, test = features_of(train_features, test_features)
    truth, known = labels_of(test, test_labels)
    return float((_knn(train, train_labels, test, k, temperature, batch) == truth)[known].mean())


def _knn(train: Features, train_labels: Any, test: Features, k: int, temperature: float, batch: int) -> np.ndarray:
    for name, value in (("k", k), ("temperature", temperature), ("batch", batch)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    labels, labelled = labels_of(train, train_labels)
    k = min(k, int(labelled.sum()))
    predicted = np.empty(test.n_rows, np.int64)
    for start, block in test.blocks(batch):
        cosines, rows = _nearest(_unit(block), train, labelled, k)
        predicted[start : start + len(block)] = _elected(cosines, labels[rows], temperature)
    return predicted


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; those of zeros stay as they are."""
    import torch

    # In float64, where squares of float32 numbers neither overflow nor vanish.
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return (rows / lengths.where(lengths > 0, 1)).to(rows.dtype)


def _nearest(block: torch.Tensor, train: Features, labelled: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest cosines of each row of a block with labelled training rows, (m, k), and which rows these are."""
    import torch

    best = block.new_empty((len(block), 0))
    best_rows = torch.empty(best.shape, dtype=torch.int64, device=block.device)
    for start, rows in train.blocks(TRAIN_ROWS):
        here = mask_of(labelled, start, rows)
        cosines, places = _largest(block @ _unit(rows[here]).T, k)
        best = torch.cat([best, cosines], 1)
        best_rows = torch.cat([best_rows, start + here.nonzero()[:, 0][places]], 1)
        best, places = _largest(best, k)
        best_rows = best_rows.gather(1, places)
    return best.double().cpu().numpy(), best_rows.cpu().numpy()


def _largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, or all, in the order of the columns, and their columns; of equal ones the first."""
    k = min(k, values.shape[1])
    if not k:
        return values, values.long()
    top, places = values.topk(k, 1)
    least = top.amin(1, keepdim=True)
    tied = (values >= least).sum(1) > k  # where topk had a choice, which it makes as it likes
    if tied.any():
        some, least = values[tied], least[tied]
        above, level = some > least, some == least
        missing = k - above.sum(1, keepdim=True)
        places[tied] = (above | (level & (level.cumsum(1) <= missing))).nonzero()[:, 1].view(-1, k)
    places = places.sort(1).values
    return values.gather(1, places), places


def _elected(cosines: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """The label with the most votes in each row of (m, k) voters; of equal ones the smallest."""
    # The nearest one's vote is 1: a common factor, which keeps exp from overflowing.
    votes = np.exp((cosines - cosines.max(1, keepdims=True)) / temperature)
    order = np.argsort(labels, 1, kind="stable")
    labels, votes = np.take_along_axis(labels, order, 1), np.take_along_axis(votes, order, 1)
    begins = np.ones(labels.shape, bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    places = np.flatnonzero(begins)  # of each row's labels, once each, ascending
    sums = np.full(labels.shape, -1.0)
    sums[begins] = np.add.reduceat(votes.ravel(), places)
    return np.take_along_axis(labels, sums.argmax(1)[:, None], 1)[:, 0]
