"""Agreement of labels with the truth, or with earlier labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.special import xlogy

from otlabel.metrics.table import Table, table_of

TAIL = 42.0  # the expected mutual information leaves out what has a probability below 2 exp(-TAIL) = 1e-18
PAIR_SIZES = 64  # sizes of clusters for which it is summed at once


def compare(truth: Any, labels: Any) -> dict[str, float]:
    """All measures of how labels agree with the truth, from one table.

    Args:
        truth: (N,) true class of each sample, -1 where unknown.
        labels: (N,) cluster of each sample, -1 where unlabelled.

    Returns:
        "nmi", "ami", "ari", "accuracy", "purity" as the functions of these names have them, and "n_samples", how many
        samples they are about.

    Raises:
        ValueError: different lengths, labels that are no whole numbers, or no sample with a label on both sides.
    """
    table = table_of(truth, labels)
    return {
        "nmi": _nmi(table),
        "ami": _ami(table),
        "ari": _ari(table),
        "accuracy": _accuracy(table),
        "purity": _purity(table),
        "n_samples": table.n_samples,
    }


def nmi(truth: Any, labels: Any) -> float:
    """Normalised mutual information, I(truth, labels) / ((H(truth) + H(labels)) / 2), from 0 to 1.

    1 where both sides put all samples together.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.

    Source: Strehl, Ghosh, "Cluster ensembles", JMLR 3, 2002; normalised by the arithmetic mean as in scikit-learn.
    """
    return _nmi(table_of(truth, labels))


def ami(truth: Any, labels: Any) -> float:
    """Adjusted mutual information, (I - E[I]) / ((H(truth) + H(labels)) / 2 - E[I]): 0 on average for random labels.

    E[I] is the mean over all labels with the same class and cluster sizes. 1 where the partitions are the same.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.

    Source: Vinh, Epps, Bailey, "Information theoretic measures for clusterings comparison", JMLR 11, 2010; normalised
        by the arithmetic mean as in scikit-learn.
    """
    return _ami(table_of(truth, labels))


def ari(truth: Any, labels: Any) -> float:
    """Adjusted Rand index: the share of pairs on which both sides agree, less chance; 0 on average for random labels.

    1 where the partitions are the same.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.

    Source: Hubert, Arabie, "Comparing partitions", Journal of Classification 2, 1985.
    """
    return _ari(table_of(truth, labels))


def accuracy(truth: Any, labels: Any) -> float:
    """Share of samples that are right under the best one-to-one naming of clusters by classes (Hungarian accuracy).

        max_m  #{i : m(labels_i) = truth_i} / N

    Where there are more clusters than classes the samples of clusters without a name are wrong.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.

    Source: Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics Quarterly 2, 1955; solved
        on the pairs that occur only.
    """
    return _accuracy(table_of(truth, labels))


def purity(truth: Any, labels: Any) -> float:
    """Share of samples that have the most frequent true class of their cluster; grows with the number of clusters.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.

    Source: Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, section 16.3.
    """
    return _purity(table_of(truth, labels))


@dataclass(frozen=True, eq=False)
class ClassEntropy:
    """How mixed each cluster is; clusters without a sample do not occur."""

    clusters: np.ndarray  # (K,) labels of the clusters, ascending
    sizes: np.ndarray  # (K,) int64, samples in each
    entropy: np.ndarray  # (K,) float64, in nats: 0 for a single class, log C for C equally frequent ones

    @property
    def mean(self) -> float:
        """Weighted by size: the entropy of the true class of a sample whose cluster is known, H(truth | labels)."""
        return float(self.entropy @ self.sizes / self.sizes.sum())


def class_entropy(truth: Any, labels: Any) -> ClassEntropy:
    """Entropy of the true classes in each cluster, -sum_c p_c log p_c with p_c the share of class c in it, in nats.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.
    """
    table = table_of(truth, labels)
    counts, sizes = table.counts.tocsc(), table.cluster_sizes
    share = counts.data / np.repeat(sizes, np.diff(counts.indptr))
    entropy = np.add.reduceat(xlogy(share, 1 / share), counts.indptr[:-1])
    return ClassEntropy(table.clusters, sizes, entropy)


def mean_class_entropy(truth: Any, labels: Any) -> float:
    """Entropy of the true classes in a cluster, averaged over clusters by their sizes, in nats: 0 for pure clusters.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.
    """
    return class_entropy(truth, labels).mean


def churn(before: Any, after: Any, *, matched: bool = False) -> float:
    """Share of samples whose label changed, among those that are labelled both times.

    Args:
        before: (N,) labels, -1 where unlabelled.
        after: (N,) labels of the same samples.
        matched: False: a label is its number. True: clusters after are first renamed, one to one, such that as few
            samples as possible change; what is left is movement between clusters.

    Raises:
        ValueError: as for `compare`.
    """
    table = table_of(before, after, ("before", "after"))
    if matched:
        return 1.0 - _accuracy(table)
    pairs = table.counts.tocoo()
    same = table.classes[pairs.row] == table.clusters[pairs.col]
    return 1.0 - int(pairs.data[same].sum()) / table.n_samples


# ---- measures from the table ----


def _nmi(table: Table) -> float:
    normaliser = (_entropy(table.class_sizes) + _entropy(table.cluster_sizes)) / 2
    return min(_mutual_information(table) / normaliser, 1.0) if normaliser > 0 else 1.0


def _ami(table: Table) -> float:
    if _same_partition(table):  # otherwise the denominator is positive
        return 1.0
    expected = _expected_information(table.class_sizes, table.cluster_sizes)
    normaliser = (_entropy(table.class_sizes) + _entropy(table.cluster_sizes)) / 2
    return (_mutual_information(table) - expected) / (normaliser - expected)


def _ari(table: Table) -> float:
    if _same_partition(table):
        return 1.0
    # Python's whole numbers: pairs of ten million samples fit into 64 bits, their products do not.
    both, classes, clusters = map(_n_pairs, (table.counts.data, table.class_sizes, table.cluster_sizes))
    pairs = _n_pairs(np.array([table.n_samples]))
    return 2 * (both * pairs - classes * clusters) / ((classes + clusters) * pairs - 2 * classes * clusters)


def _accuracy(table: Table) -> float:
    if _same_partition(table):
        return 1.0
    fewer_rows = table.counts if len(table.classes) <= len(table.clusters) else table.counts.T
    pairs = fewer_rows.tocoo()  # time may grow with the square of its rows
    n_rows, n_columns = pairs.shape
    # Each row may also take a column of its own that is worth nothing, so that all can be matched. One more for every
    # pair changes no choice, and keeps such a pair from being no entry at all.
    own = np.arange(n_rows)
    worth = np.append(pairs.data + 1.0, np.ones(n_rows))
    rows, columns = np.append(pairs.row, own), np.append(pairs.col, n_columns + own)
    places = rows.astype(np.int32), columns.astype(np.int32)  # SciPy 1.14 matches with these alone
    graph = csr_array((worth, places), shape=(n_rows, n_columns + n_rows))
    chosen = min_weight_full_bipartite_matching(graph, maximize=True)
    return float((graph[chosen] - 1.0).sum()) / table.n_samples


def _purity(table: Table) -> float:
    counts = table.counts.tocsc()
    return int(np.maximum.reduceat(counts.data, counts.indptr[:-1]).sum()) / table.n_samples


def _same_partition(table: Table) -> bool:
    return table.counts.nnz == len(table.classes) == len(table.clusters)


def _n_pairs(sizes: np.ndarray) -> int:
    """Pairs of samples in groups of these sizes; below 2^63 for up to 3 billion samples."""
    return int((sizes * (sizes - 1) // 2).sum())


def _entropy(sizes: np.ndarray) -> float:
    share = sizes / sizes.sum()
    return float(-(share * np.log(share)).sum())


def _mutual_information(table: Table) -> float:
    pairs, n = table.counts.tocoo(), table.n_samples
    expected = table.class_sizes[pairs.row] / n * table.cluster_sizes[pairs.col]
    return max(float((pairs.data / n * np.log(pairs.data / expected)).sum()), 0.0)


def _expected_information(class_sizes: np.ndarray, cluster_sizes: np.ndarray) -> float:
    """The mean mutual information of labels drawn at random with these sizes.

    sum over classes and clusters of E[m / N log(N m / (a b))], m their common samples: hypergeometric, so that only
    sizes matter. Equal ones are summed once, and each m only as far from its mean as Bernstein's bound lets it get.
    """
    n = int(class_sizes.sum())
    few, many = sorted((np.unique(sizes, return_counts=True) for sizes in (class_sizes, cluster_sizes)), key=_length)
    total = 0.0
    for a, a_times in zip(few[0].astype(np.float64), few[1], strict=True):
        for start in range(0, len(many[0]), PAIR_SIZES):
            b = many[0][start : start + PAIR_SIZES].astype(np.float64)[:, None]
            mean = a * b / n
            variance = mean * (n - a) / n * (n - b) / max(n - 1, 1)
            reach = TAIL / 3 + np.sqrt((TAIL / 3) ** 2 + 2 * TAIL * variance)
            first = np.maximum(np.floor(mean - reach), np.maximum(a + b - n, 0))
            last = np.minimum(np.ceil(mean + reach), np.minimum(a, b))
            m = first + np.arange(int((last - first).max()) + 1)
            with np.errstate(divide="ignore"):  # beyond the smaller size nothing is left, and so ever after
                ratio = np.log(np.maximum(a - m, 0) * np.maximum(b - m, 0) / ((m + 1) * (n - a - b + m + 1)))
            logs = np.cumsum(np.append(np.zeros_like(b), ratio[:, :-1], 1), 1)
            chance = np.exp(logs - logs.max(1, keepdims=True))
            information = (chance * xlogy(m / n, m / mean)).sum(1) / chance.sum(1)
            total += float(a_times * (information @ many[1][start : start + PAIR_SIZES]))
    return total


def _length(sizes: tuple[np.ndarray, np.ndarray]) -> int:
    return len(sizes[0])
