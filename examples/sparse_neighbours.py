"""
Even lists from nearest neighbours
==================================

With many classes a full matrix of scores is out of reach, and not needed: a nearest-neighbour index gives each sample
its few nearest centres, and these are all that it may belong to. Here 40,000 vectors go to 2,000 centres in lists of
at most 24, where the nearest centre alone makes one of 58. What the index leaves out is no nearer than the last, so
``missing="at most the least"`` lets the bound speak of all centres: the gap says what the short lists may have cost,
without a look at any other distance.

Run: python examples/sparse_neighbours.py    (a few seconds on one core)
"""

import time

import numpy as np

from otlabel import Range, sinkhorn_assign, top_scores


def drawn(n: int, n_centres: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around many places of uneven popularity, and centres that are some of them."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(n_centres // 2, dim))
    popularity = 1 / np.arange(1, len(places) + 1) ** 0.5
    chosen = rng.choice(len(places), n, p=popularity / popularity.sum())
    vectors = (places[chosen] + 0.7 * rng.normal(size=(n, dim))).astype(np.float32)
    return vectors, vectors[rng.choice(n, n_centres, replace=False)]


def nearest(vectors: np.ndarray, centres: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The m nearest centres of each vector and minus their squared distances; in place of FAISS or any other index."""
    found = []
    for block in np.array_split(vectors, len(vectors) // 2000):
        scores = 2 * block @ centres.T - (centres**2).sum(1) - (block**2).sum(1, keepdims=True)
        best = np.argpartition(-scores, m, axis=1)[:, :m]
        found.append((best, np.take_along_axis(scores, best, 1)))
    classes, values = (np.concatenate(part) for part in zip(*found, strict=True))
    return classes, values


def main(n: int = 40_000, n_centres: int = 2000, dim: int = 8) -> dict[str, float]:
    """Lists of the nearest centre alone, and even ones from ever more neighbours."""
    vectors, centres = drawn(n, n_centres, dim)
    classes, values = nearest(vectors, centres, 10)
    order = np.argsort(-values, axis=1)
    classes, values = np.take_along_axis(classes, order, 1), np.take_along_axis(values, order, 1)
    sizes = np.bincount(classes[:, 0], minlength=n_centres)
    free = float(values[:, 0].mean())
    print(f"nearest centre: lists of {sizes.min()} to {sizes.max()}, mean squared distance {-free:.3f}")
    found = {"longest, nearest": float(sizes.max()), "distance, nearest": -free}
    for m in (3, 5, 10):
        begun = time.perf_counter()
        scores = top_scores(classes[:, :m], values[:, :m], n_centres, missing="at most the least")
        result = sinkhorn_assign(scores, classes=Range(0, 6 * n // (5 * n_centres)), epsilon=0.1)
        seconds = time.perf_counter() - begun
        print(
            f"{m} neighbours: lists of {result.counts.min()} to {result.counts.max()}, {-result.value:.3f}, "
            f"at most {result.gap:.3g} above the best of all centres, {seconds:.1f} s"
        )
        found |= {f"longest, {m}": float(result.counts.max()), f"distance, {m}": -result.value, f"gap, {m}": result.gap}
    return found


if __name__ == "__main__":
    main()
