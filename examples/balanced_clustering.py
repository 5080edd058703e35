"""
Clusters of equal size
======================

k-means whose assignment step is the exact balanced one. The least inertia that is possible grows with every bound on
the sizes, but from a single start k-means ends in all kinds of local minima, and with bounds mostly in the same one.
Digits come in nearly equal numbers, and clusters that have to be as large follow them better; elsewhere they may not.
The features may lie in a file, and new samples are labelled by the same rule.

Run: python examples/balanced_clustering.py    (needs scikit-learn; a few seconds)
"""

import tempfile
from pathlib import Path

import h5py
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from otlabel import BalancedKMeans, metrics


def main(n_starts: int = 10) -> dict[str, float]:
    """Cluster digits with and without equal sizes, from so many starts each."""
    images, digits = load_digits(return_X_y=True)
    features, digits, new, new_digits = images[:1500], digits[:1500], images[1500:], digits[1500:]

    found: dict[str, float] = {}
    print("clusters             sizes   least inertia    mean  accuracy    NMI")
    for name, estimator, options in [
        ("k-means", KMeans, {"n_init": 1}),
        ("equal sizes", BalancedKMeans, {}),
        ("120 to 180", BalancedKMeans, {"size_min": 120, "size_max": 180}),
    ]:
        models = [estimator(10, random_state=seed, **options).fit(features) for seed in range(n_starts)]
        sizes = np.array([np.bincount(model.labels_, minlength=10) for model in models])
        inertia = [model.inertia_ for model in models]
        told = [metrics.compare(digits, model.labels_) for model in models]
        accuracy, nmi = (np.mean([one[key] for one in told]) for key in ("accuracy", "nmi"))
        found |= {f"{name}: smallest": int(sizes.min()), f"{name}: largest": int(sizes.max())}
        found |= {f"{name}: least inertia": float(min(inertia)), f"{name}: accuracy": float(accuracy)}
        print(
            f"{name:<16} {sizes.min():>4} to {sizes.max():<4} {min(inertia):>13,.0f} {np.mean(inertia):>9,.0f}", end=""
        )
        print(f" {accuracy:>7.3f} {nmi:>6.3f}")

    # Features in a file: every pass reads it block by block, or keeps it where half of the free memory holds it.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with h5py.File(path, "w") as file:
            file["features"] = features
        model = BalancedKMeans(10, random_state=0).fit(f"{path}::/features")
    again = BalancedKMeans(10, random_state=0).fit(features)
    found["same labels from the file"] = float((model.labels_ == again.labels_).mean())
    found["gap"] = float(model.gap_)  # what other labels with these sizes could still win of the inertia
    print(f"\nfrom a file: {found['same labels from the file']:.0%} the same labels; gap {abs(model.gap_):.1e}")

    # New samples are balanced as far as they are distributed alike.
    predicted = model.predict(new)
    sizes = np.bincount(predicted, minlength=10)
    found["new, accuracy"] = metrics.accuracy(new_digits, predicted)
    print(f"{len(new)} new samples: {sizes.min()} to {sizes.max()} a cluster, accuracy {found['new, accuracy']:.3f}")
    return found


if __name__ == "__main__":
    main()
