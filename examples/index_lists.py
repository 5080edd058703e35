"""
Lists of equal length for a search index
========================================

An inverted-file index keeps vectors in lists, one for each centre, and compares a query with those of a few. How long
that takes is how long these lists are: with k-means the longest may be ten times as long as the mean, and popular ones
are also those that queries probe most. With balanced clusters all are equally long: the most that a query can cost is
then known, and lists fit into blocks or shards of one size.

What it costs: a list that must not be longer gives vectors away, so that as many probes find a little less; compare at
as many vectors looked at. Queries are to probe lists by the rule that rows were put into them, distances less
potentials, which faiss takes by ``search_preassigned``.

Vectors on the border of two lists are found more often if both have them: ``labels_per_sample=2`` puts each vector into
two different lists, at the least sum of squared distances of all ways that keep lists equally long, with the proof.
That pays where each probe costs, as a read from a disk or a call of another machine does; at as many vectors looked at,
more probes of single lists find a little more, and take half the memory.

Run: python examples/index_lists.py [FEATURES.npy]    (needs "otlabel[kmeans]"; less than a minute)

Without a file: Fashion-MNIST, from Debian's dataset-fashion-mnist or ``$OTLABEL_DATA/fashion-mnist``.
"""

import sys
import time

import faiss
import numpy as np
from faiss.contrib.ivf_tools import add_preassigned, search_preassigned

from otlabel import BalancedKMeans, linear_scores, sinkhorn_assign
from otlabel.training.data import load_images

N_FOUND = 10  # nearest neighbours sought


def filled(x: np.ndarray, centres: np.ndarray, labels: np.ndarray) -> faiss.IndexIVFFlat:
    """An index whose list k holds the rows of cluster k; labels (N,), or (N, 2) of rows that are in two lists."""
    quantizer = faiss.IndexFlatL2(x.shape[1])
    quantizer.add(centres)
    index = faiss.IndexIVFFlat(quantizer, x.shape[1], len(centres))
    index.is_trained = True
    numbers = np.arange(len(x))
    for lists in labels.reshape(len(x), -1).T:
        add_preassigned(index, x, np.ascontiguousarray(lists), numbers)
    return index


def in_two_lists(x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's two lists (N, 2), all lists equally long, and the potentials of the lists."""
    closeness = linear_scores(x, 2 * centres, -np.square(centres).sum(1), normalize=False)  # less ||x||^2
    found = sinkhorn_assign(closeness, labels_per_sample=2, epsilon=float(x.var(0).sum()) / 25)
    return found.labels, found.potentials


def first_ones(found: np.ndarray) -> np.ndarray:
    """(M, N_FOUND) of neighbours (M, 2 N_FOUND), the nearest first, of which those in two lists are there twice."""
    again = np.zeros(found.shape, bool)
    again[:, 1:] = found[:, 1:] == found[:, :-1]  # at the same distance, so beside each other
    return np.take_along_axis(found, np.argsort(again, axis=1, kind="stable"), 1)[:, :N_FOUND]


def probed(queries: np.ndarray, centres: np.ndarray, potentials: np.ndarray, n_probes: int) -> tuple[np.ndarray, ...]:
    """The lists that each query is to look at, the best first, (M, n_probes), and its distances from their centres."""
    distances = np.square(centres).sum(1) - 2 * queries @ centres.T + np.square(queries).sum(1, keepdims=True)
    costs = distances - potentials
    lists = np.argpartition(costs, n_probes - 1, axis=1)[:, :n_probes]
    lists = np.take_along_axis(lists, np.take_along_axis(costs, lists, 1).argsort(1), 1)
    return lists.astype(np.int64), np.take_along_axis(distances, lists, 1).astype(np.float32)


def main(x: np.ndarray | None = None, n_lists: int = 128, n_queries: int = 1000, seed: int = 0) -> dict[str, float]:
    """Search for neighbours of held-out vectors in lists by faiss's k-means and in balanced ones."""
    faiss.omp_set_num_threads(1)  # times that do not depend on who else is at work
    if x is None:
        x = load_images("fashion-mnist", n_samples=20_000).train.reshape(-1, 28 * 28)
    x = np.ascontiguousarray(np.random.default_rng(seed).permutation(x), dtype=np.float32)
    queries, x = x[:n_queries], x[n_queries:]
    exact = faiss.IndexFlatL2(x.shape[1])
    exact.add(x)
    nearest = exact.search(queries, N_FOUND)[1]

    begun = time.perf_counter()
    free = faiss.Kmeans(x.shape[1], n_lists, niter=10, seed=seed, max_points_per_centroid=len(x))
    free.train(x)
    labels = free.index.search(x, 1)[1][:, 0]
    built = {"faiss": time.perf_counter() - begun}
    begun = time.perf_counter()
    even = BalancedKMeans(n_lists, init=free.centroids, max_iter=10, random_state=seed).fit(x)
    built["balanced"] = time.perf_counter() - begun
    centres = np.ascontiguousarray(even.cluster_centers_, np.float32)
    begun = time.perf_counter()
    twice, of_twice = in_two_lists(x, centres)
    built["two lists"] = time.perf_counter() - begun
    kinds = {
        "faiss": (free.centroids, np.zeros(n_lists), labels),
        "balanced": (centres, even.potentials_, even.labels_),
        "two lists": (centres, of_twice, twice),
    }

    found: dict[str, float] = {}
    print(f"{len(x):,} vectors of {x.shape[1]} numbers, {n_lists} lists, {n_queries} queries, {N_FOUND} neighbours\n")
    print("lists     probes   longest  vectors looked at, mean and most   recall  ms a query")
    for name, (centres, potentials, of_rows) in kinds.items():
        index, sizes = filled(x, centres, of_rows), np.bincount(of_rows.ravel(), minlength=n_lists)
        found |= {f"{name}: longest": int(sizes.max()), f"{name}: seconds to build": built[name]}
        for n_probes in (1, 2, 4, 8, 16):
            begun = time.perf_counter()
            lists, distances = probed(queries, centres, potentials, n_probes)
            index.nprobe = n_probes
            got = first_ones(search_preassigned(index, queries, 2 * N_FOUND, lists, distances)[1])
            took = (time.perf_counter() - begun) * 1000 / n_queries
            looked = sizes[lists].sum(1)
            recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(nearest, got, strict=True)]))
            found |= {f"{name}, {n_probes}: recall": recall, f"{name}, {n_probes}: mean": float(looked.mean())}
            found |= {f"{name}, {n_probes}: most": int(looked.max()), f"{name}, {n_probes}: ms": took}
            print(f"{name:<9} {n_probes:>6} {sizes.max():>9,} {looked.mean():>18,.0f} {looked.max():>14,}", end="")
            print(f" {recall:>8.3f} {took:>11.3f}")
    print(
        f"\nto build: {built['faiss']:.1f} s by faiss on one thread, then {built['balanced']:.1f} s for equal lengths, "
        f"{built['two lists']:.1f} s for two lists each"
    )
    return found


if __name__ == "__main__":
    main(*map(np.load, sys.argv[1:2]))
