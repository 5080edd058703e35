"""How good labels are: against the truth, against earlier labels, and by what features are worth without fine-tuning.

Measures of agreement all come from one table of how many samples have which class and which cluster. It holds only the
pairs that occur and is built in chunks: ten million samples in thousands of clusters are no matter. Labels are whole
numbers of any kind, in arrays, tensors or lists; a sample with the label -1 on either side is unlabelled and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.special import xlogy

from otlabel.errors import InvalidScoresError
from otlabel.sources import Source, as_array, as_float, by_row, home_of, in_one_order, open_scores

if TYPE_CHECKING:
    import torch

UNLABELLED = -1
CHUNK = 1 << 20  # samples that are counted at once
TAIL = 42.0  # the expected mutual information leaves out what has a probability below 2 exp(-TAIL) = 1e-18
PAIR_SIZES = 64  # sizes of clusters for which it is summed at once
TRAIN_ROWS = 1 << 14  # rows that a block of test rows is compared with at once
L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # that linear_probe chooses from; of equally good ones the first
GRADIENT_TOLERANCE = 1e-5  # largest entry of the gradient at which the linear probe is fitted
RIDGE = 1e-4  # of the mean curvature, at least: features that hang together can be solved for in float32


# ---- agreement of labels ----


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
    table = _table(truth, labels)
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
    return _nmi(_table(truth, labels))


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
    return _ami(_table(truth, labels))


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
    return _ari(_table(truth, labels))


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
    return _accuracy(_table(truth, labels))


def purity(truth: Any, labels: Any) -> float:
    """Share of samples that have the most frequent true class of their cluster; grows with the number of clusters.

    Args:
        truth: (N,) true classes, -1 where unknown.
        labels: (N,) clusters, -1 where unlabelled.

    Raises:
        ValueError: as for `compare`.

    Source: Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, section 16.3.
    """
    return _purity(_table(truth, labels))


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
    table = _table(truth, labels)
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
    table = _table(before, after, ("before", "after"))
    if matched:
        return 1.0 - _accuracy(table)
    pairs = table.counts.tocoo()
    same = table.classes[pairs.row] == table.clusters[pairs.col]
    return 1.0 - int(pairs.data[same].sum()) / table.n_samples


# ---- worth of features ----


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
    train, test = _features(train_features, test_features)
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
    train, test = _features(train_features, test_features)
    truth, known = _labels_of(test, test_labels)
    return float((_knn(train, train_labels, test, k, temperature, batch) == truth)[known].mean())


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    l2: float | None = 1e-3,
    max_iter: int = 200,
    seed: int = 0,
) -> float:
    """Accuracy of multinomial logistic regression on frozen features, by a recipe without anything left to choose.

        min_{W, b}  mean_i -log softmax(W x_i + b)_{label_i}  +  l2 / 2 ||W||^2

    Features are standardised by the mean and the standard deviation of the training rows (a constant one becomes 0).
    L-BFGS starts from zero, with ten pairs and a strong Wolfe search, in coordinates of the weights in which the
    curvature at the start is about the identity. It stops when no entry of the gradient in them is larger than 1e-5,
    after max_iter iterations, or when a step changes next to nothing. Numbers are float32, or float64 where features
    on either side are. Memory holds a few copies of the training rows.

    Args:
        train_features: (N, D), from any of the places that `sinkhorn_assign` takes scores from.
        train_labels: (N,) classes; rows with -1 are left out.
        test_features: (M, D), likewise.
        test_labels: (M,) classes; rows with -1 do not count, classes that training rows do not have are always wrong.
        l2: weight of the penalty; scikit-learn's C is 1 / (l2 N). None: of .1, .01, ..., 1e-5 the one that is most
            accurate on a fifth of the training rows after fitting to the others, the larger of equally good ones.
        max_iter: most iterations of one fit.
        seed: of the draw of that fifth; without a meaning where l2 is given.

    Raises:
        ValueError: shapes that do not fit together, no labelled row on either side, a negative l2, max_iter below 1;
            fewer than two labelled training rows where l2 is None.
        InvalidScoresError: features that are no matrix, or a row with NaN or infinity.

    Source: Zhang, Isola, Efros, "Colorful image colorization", ECCV 2016, section 3.2, for the idea of the test; Liu,
        Nocedal, "On the limited memory BFGS method", Mathematical Programming 45, 1989, for the optimiser.
    """
    if l2 is not None and not 0 <= l2 < np.inf:
        raise ValueError(f"l2 is {l2}; pass a number from 0 up, or None to choose one on held-out training rows")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}; it must be at least 1")
    train, test = _features(train_features, test_features)
    train_truth, labelled = _labels_of(train, train_labels)
    truth, known = _labels_of(test, test_labels)
    classes, codes = np.unique(train_truth[labelled], return_inverse=True)
    import torch

    x, y = train.rows(labelled), torch.from_numpy(codes).to(train.device)
    if l2 is None:
        l2 = _chosen_l2(x, y, len(classes), max_iter, seed)
    predicted = _fitted(x, y, len(classes), l2, max_iter).predict(test.rows(known))
    return float((classes[predicted] == truth[known]).mean())


# ---- the table ----


@dataclass(frozen=True, eq=False)
class _Table:
    """How many samples have which class and which cluster; no class and no cluster is empty."""

    counts: csr_array  # (C, K) int64, pairs that occur
    classes: np.ndarray  # (C,) labels of the rows, ascending
    clusters: np.ndarray  # (K,) labels of the columns, ascending

    @property
    def class_sizes(self) -> np.ndarray:
        return np.asarray(self.counts.sum(1))

    @property
    def cluster_sizes(self) -> np.ndarray:
        return np.asarray(self.counts.sum(0))

    @property
    def n_samples(self) -> int:
        return int(self.counts.data.sum())


def _table(truth: Any, labels: Any, names: tuple[str, str] = ("truth", "labels")) -> _Table:
    sides = in_one_order(truth, labels, names)
    rows, columns = _checked_labels(sides[0], names[0]), _checked_labels(sides[1], names[1])
    if len(rows) != len(columns):
        raise ValueError(
            f"{names[0]} have shape {rows.shape}, {names[1]} {columns.shape}; pass one label a sample each"
        )
    classes, clusters = (_distinct(_labelled_chunks(rows, columns), side) for side in (0, 1))
    if not len(classes):
        raise ValueError(f"no sample has a label other than {UNLABELLED} in both {names[0]} and {names[1]}")
    counts = csr_array((len(classes), len(clusters)), dtype=np.int64)
    for row, column in _labelled_chunks(rows, columns):
        places = _codes(row, classes), _codes(column, clusters)
        counts = counts + coo_array((np.ones(len(row), np.int64), places), shape=counts.shape).tocsr()
    return _Table(counts, classes, clusters)


def _checked_labels(labels: Any, name: str) -> np.ndarray:
    array = as_array(labels, name)
    if array.ndim != 1:
        raise ValueError(f"{name} have shape {array.shape}; pass (N,) labels")
    if not len(array):
        raise ValueError(f"{name} are empty; pass at least one label")
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} have dtype {array.dtype}; pass whole numbers, {UNLABELLED} for unlabelled samples")
    return array


def _labelled_chunks(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunk by chunk, both labels of the samples that have two."""
    for start in range(0, len(rows), CHUNK):
        pair = rows[start : start + CHUNK], columns[start : start + CHUNK]
        both = (pair[0] != UNLABELLED) & (pair[1] != UNLABELLED)
        yield pair[0][both], pair[1][both]


def _distinct(chunks: Iterator[tuple[np.ndarray, np.ndarray]], side: int) -> np.ndarray:
    """Labels that occur on one side, ascending."""
    names: np.ndarray | None = None
    for chunk in chunks:
        found = np.unique(chunk[side])
        names = found if names is None else np.union1d(names, found)
    assert names is not None
    return names


def _codes(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The place of each label among all names."""
    if int(names[-1]) - int(names[0]) == len(names) - 1:  # consecutive, as most are: no search
        return labels.astype(np.int64) - names[:1].astype(np.int64)
    return np.searchsorted(names, labels)


# ---- measures from the table ----


def _nmi(table: _Table) -> float:
    normaliser = (_entropy(table.class_sizes) + _entropy(table.cluster_sizes)) / 2
    return min(_mutual_information(table) / normaliser, 1.0) if normaliser > 0 else 1.0


def _ami(table: _Table) -> float:
    if _same_partition(table):  # otherwise the denominator is positive
        return 1.0
    expected = _expected_information(table.class_sizes, table.cluster_sizes)
    normaliser = (_entropy(table.class_sizes) + _entropy(table.cluster_sizes)) / 2
    return (_mutual_information(table) - expected) / (normaliser - expected)


def _ari(table: _Table) -> float:
    if _same_partition(table):
        return 1.0
    # Python's whole numbers: pairs of ten million samples fit into 64 bits, their products do not.
    both, classes, clusters = map(_n_pairs, (table.counts.data, table.class_sizes, table.cluster_sizes))
    pairs = _n_pairs(np.array([table.n_samples]))
    return 2 * (both * pairs - classes * clusters) / ((classes + clusters) * pairs - 2 * classes * clusters)


def _accuracy(table: _Table) -> float:
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


def _purity(table: _Table) -> float:
    counts = table.counts.tocsc()
    return int(np.maximum.reduceat(counts.data, counts.indptr[:-1]).sum()) / table.n_samples


def _same_partition(table: _Table) -> bool:
    return table.counts.nnz == len(table.classes) == len(table.clusters)


def _n_pairs(sizes: np.ndarray) -> int:
    """Pairs of samples in groups of these sizes; below 2^63 for up to 3 billion samples."""
    return int((sizes * (sizes - 1) // 2).sum())


def _entropy(sizes: np.ndarray) -> float:
    share = sizes / sizes.sum()
    return float(-(share * np.log(share)).sum())


def _mutual_information(table: _Table) -> float:
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


# ---- features ----


@dataclass(frozen=True, eq=False)
class _Features:
    """Rows of a matrix as tensors where and as the work is to be done."""

    source: Source
    name: str
    device: torch.device
    dtype: torch.dtype

    @property
    def n_rows(self) -> int:
        return self.source.shape[0]

    def blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Each `size` rows with where they begin; raises InvalidScoresError at a row that is not finite."""
        import torch

        with self.source.reading():
            for start in range(0, self.n_rows, size):
                stored = self.source.read(start, min(start + size, self.n_rows))
                if self.source.on_cpu:
                    stored = torch.from_numpy(np.array(as_float(stored, self.source.dtype)))
                block = stored.to(self.device, self.dtype)
                bad = ~block.isfinite().all(1)
                if bad.any():
                    place = self.source.place(start + int(bad.nonzero()[0]))
                    raise InvalidScoresError(f"{self.name} hold NaN or infinity, the first at {place}")
                yield start, block

    def rows(self, wanted: np.ndarray) -> torch.Tensor:
        """A copy of the rows where `wanted` is true."""
        import torch

        blocks = self.blocks(TRAIN_ROWS)
        return torch.cat([block[_mask(wanted, start, block)] for start, block in blocks])


def _features(train: Any, test: Any) -> tuple[_Features, _Features]:
    """Both sides, where the first tensor is, in float64 if one of them is."""
    import torch

    sources = open_scores(train, what="train_features"), open_scores(test, what="test_features")
    shapes = [source.shape for source in sources]
    if shapes[0][1] != shapes[1][1]:
        raise ValueError(f"train_features have shape {shapes[0]}, test_features {shapes[1]}; pass the same D features")
    device = next(filter(None, map(home_of, (train, test))), torch.device("cpu"))
    dtype = torch.float64 if "float64" in {source.dtype for source in sources} else torch.float32
    return _Features(sources[0], "train_features", device, dtype), _Features(sources[1], "test_features", device, dtype)


def _labels_of(features: _Features, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The label of each row, and whether it has one."""
    name = features.name.replace("features", "labels")
    array = _checked_labels(by_row(labels, features.n_rows, features.source.row_names, name), name)
    if len(array) != features.n_rows:
        raise ValueError(
            f"{features.name} have shape {features.source.shape}, {name} {array.shape}; pass one label a row"
        )
    labelled = array != UNLABELLED
    if not labelled.any():
        raise ValueError(f"no row has a label other than {UNLABELLED} in {name}")
    return array.astype(np.int64), labelled


def _mask(wanted: np.ndarray, start: int, block: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(wanted[start : start + len(block)]).to(block.device)


# ---- nearest neighbours ----


def _knn(train: _Features, train_labels: Any, test: _Features, k: int, temperature: float, batch: int) -> np.ndarray:
    for name, value in (("k", k), ("temperature", temperature), ("batch", batch)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    labels, labelled = _labels_of(train, train_labels)
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


def _nearest(block: torch.Tensor, train: _Features, labelled: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest cosines of each row of a block with labelled training rows, (m, k), and which rows these are."""
    import torch

    best = block.new_empty((len(block), 0))
    best_rows = torch.empty(best.shape, dtype=torch.int64, device=block.device)
    for start, rows in train.blocks(TRAIN_ROWS):
        here = _mask(labelled, start, rows)
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


# ---- linear probe ----


@dataclass(frozen=True, eq=False)
class _Probe:
    """A linear head on standardised features."""

    mean: torch.Tensor  # (D,)
    deviation: torch.Tensor  # (D,)
    weight: torch.Tensor  # (C, D)
    bias: torch.Tensor  # (C,)

    def predict(self, x: torch.Tensor) -> np.ndarray:
        """The class of each row, (M,) int64."""
        logits = (x - self.mean) / self.deviation @ self.weight.T + self.bias
        return logits.argmax(1).cpu().numpy()


def _chosen_l2(x: torch.Tensor, y: torch.Tensor, n_classes: int, max_iter: int, seed: int) -> float:
    """The penalty of the grid that is most accurate on a fifth of the rows."""
    import torch

    if len(x) < 2:
        raise ValueError("l2=None needs at least two labelled training rows; pass a number")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))).to(x.device)
    held, rest = order[: max(len(x) // 5, 1)], order[max(len(x) // 5, 1) :]
    truth = y[held].cpu().numpy()

    def right(l2: float) -> int:
        return int((_fitted(x[rest], y[rest], n_classes, l2, max_iter).predict(x[held]) == truth).sum())

    return max(L2_GRID, key=right)


def _fitted(x: torch.Tensor, y: torch.Tensor, n_classes: int, l2: float, max_iter: int) -> _Probe:
    """The head with the smallest penalised loss."""
    import torch

    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    centred = x - mean
    deviation = torch.linalg.vector_norm(centred, dim=0, dtype=torch.float64) / len(x) ** 0.5
    # What is left of a constant feature is rounding.
    deviation = deviation.where(deviation > 10 * torch.finfo(x.dtype).eps * mean.abs(), 1).to(x.dtype)
    standard = centred.div_(deviation)
    # In coordinates in which the curvature at the start is about the identity, far fewer iterations are needed.
    curvature = (standard.T @ standard).double() / (len(x) * n_classes)
    curvature.diagonal().add_(max(l2, RIDGE * float(curvature.diagonal().mean())) or 1.0)  # 0: nothing but constants
    factor = torch.linalg.cholesky(curvature)
    change = torch.linalg.solve_triangular(factor.T, torch.eye(len(factor)).to(factor), upper=True).to(x.dtype)
    eased = standard @ change
    # (C, D), not (D, C): the product that is its gradient then takes a tenth of the time.
    eased_weight = x.new_zeros((n_classes, x.shape[1]), requires_grad=True)
    bias = x.new_zeros(n_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [eased_weight, bias],
        max_iter=max_iter,
        max_eval=25 * max_iter,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=torch.finfo(x.dtype).eps,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        fit = torch.nn.functional.cross_entropy(torch.nn.functional.linear(eased, eased_weight, bias), y)
        value = fit + l2 / 2 * (eased_weight @ change.T).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return _Probe(mean, deviation, eased_weight.detach() @ change.T, bias.detach())
