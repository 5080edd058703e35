"""
Labelling more and more, the surest first
=========================================

Deep clustering of uneven classes in small: label the surest tenth first, then more and more, sizes only preferred.

The schedule is that of Zhang, Ren, He, "P2OT: Progressive partial optimal transport for deep imbalanced clustering"
(ICLR 2024): the mass that is labelled ramps up from a tenth to all, classes keep to their mass at a price (KL).
A real model trains where this script moves cluster centres. On raw pixels plain k-means does as well: the ramp is for
features that are still being learned. What shows here too is what exact sizes do to classes that are not equal.

Run: python examples/progressive_mass.py    (needs scikit-learn; a few seconds)
"""

import math

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

from otlabel import KL, sinkhorn_assign

ROUNDS = 30


def long_tailed_digits(ratio: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """Digits with ten times more zeros than nines, as unit vectors."""
    images, digits = load_digits(return_X_y=True)
    kept = [np.flatnonzero(digits == k)[: int(170 * ratio ** (-k / 9))] for k in range(10)]
    rows = np.concatenate(kept)
    features = images[rows] - images[rows].mean(0)
    return features / np.linalg.norm(features, axis=1, keepdims=True), digits[rows]


def main(n_rounds: int = ROUNDS) -> dict[str, float]:
    """Cluster with and without the ramp and compare with the truth."""
    features, digits = long_tailed_digits()
    kmeans = KMeans(10, n_init=1, random_state=0).fit(features)
    centres, result = kmeans.cluster_centers_, None

    for step in range(n_rounds):
        scores = features @ centres.T
        # The three lines: how much to label now, label it, start the next round from here.
        mass = 0.1 + 0.9 * math.exp(-5 * (1 - step / (n_rounds - 1)) ** 2)
        result = sinkhorn_assign(scores, classes=KL(0.05), abstain=1 - mass, init=result, epsilon=0.02)
        labels = result.labels  # -1: not yet

        sums = np.stack([features[labels == k].sum(0) for k in range(10)])
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    found = {
        "k-means": normalized_mutual_info_score(digits, kmeans.labels_),
        "ramped mass, KL": normalized_mutual_info_score(digits, labels),
        "exact sizes": normalized_mutual_info_score(digits, sinkhorn_assign(scores).labels),
    }
    for name, value in found.items():
        print(f"{name:<16} NMI {value:.3f}")
    print("class sizes", np.bincount(labels, minlength=10), "of", np.bincount(digits))
    return found


if __name__ == "__main__":
    main()
