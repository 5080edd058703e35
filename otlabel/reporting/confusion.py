"""Who is taken for whom: a table of true classes against classes, where there are as many of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

MOST = 40  # classes of a table that can be read


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of samples, with classes in the order in which they match the true ones best."""

    true_classes: np.ndarray  # (K,) ascending
    classes: np.ndarray  # (K,) that go with them
    counts: np.ndarray  # (K, K) int64: rows are true classes
    shares: np.ndarray  # (K, K) of each true class


def confusion_of(truth: np.ndarray, labels: np.ndarray, n_classes: int) -> Confusion | None:
    """The table, of samples with a label and a true class; None where numbers differ or there are too many."""
    known = (truth >= 0) & (labels >= 0)
    true_classes, codes = np.unique(truth[known], return_inverse=True)
    if len(true_classes) != n_classes or n_classes > MOST:
        return None
    counts = np.bincount(codes * n_classes + labels[known], minlength=n_classes**2).reshape(n_classes, n_classes)
    _, order = linear_sum_assignment(counts, maximize=True)
    counts = counts[:, order]
    return Confusion(true_classes, order, counts, counts / counts.sum(1, keepdims=True))
