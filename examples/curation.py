"""
A balanced subset of a long-tailed collection
=============================================

A collection is crowded in places: here there are twenty times as many zeros as nines. A random subset is crowded
likewise. ``curate`` finds clusters and draws as evenly from them as they allow. It knows nothing of the classes, and
brings the subset a third of the way to equal shares: a common class has more clusters than a rare one, since it is more
varied. Small clusters get the farther.

Run: python examples/curation.py    (needs scikit-learn; a few seconds)
"""

import numpy as np
from sklearn.datasets import load_digits

from otlabel import curate


def long_tailed(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Digits with so many times more zeros than nines."""
    images, digits = load_digits(return_X_y=True)
    kept = [np.flatnonzero(digits == k)[: round(170 * ratio ** (-k / 9))] for k in range(10)]
    rows = np.concatenate(kept)
    return images[rows], digits[rows]


def main(n: int = 100, n_seeds: int = 10) -> dict[str, float]:
    """Choose n samples at random and by `curate`, and count the classes of both."""
    features, digits = long_tailed(ratio=20)
    print(curate(features, n).summary())

    print(f"\nshare of each class, mean of {n_seeds} draws{'':>43}farthest from 1/10"[:110])
    found: dict[str, float] = {}
    for name, n_clusters in [
        ("all", 0),
        ("random", 0),
        ("curated", None),
        ("100 clusters", 100),
        ("200 clusters", 200),
    ]:
        shares = []
        for seed in range(n_seeds):
            rows = np.arange(len(digits))
            if name == "random":
                rows = np.random.default_rng(seed).choice(rows, n, replace=False)
            elif name != "all":
                rows = curate(features, n, n_clusters=n_clusters, seed=seed).indices
            shares.append(np.bincount(digits[rows], minlength=10) / len(rows))
        # Total variation: the share of the subset that would have to be exchanged.
        found[name] = float(np.mean([np.abs(one - 0.1).sum() / 2 for one in shares]))
        found[f"{name}: rarer half"] = float(np.mean(shares, axis=0)[5:].sum())
        print(f"{name:<13}", " ".join(f"{share:6.1%}" for share in np.mean(shares, axis=0)), f"{found[name]:>8.3f}")
    return found


if __name__ == "__main__":
    main()
