"""What balance does to clusters whose true classes are not equal: Fashion-MNIST, thinned to a long tail.

The same features and starts for everybody; the truth is used for thinning and for scoring only.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
from machine import describe_machine, machine_line, table, write_json
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from otlabel import KL, BalancedKMeans, balance_path, sinkhorn_assign

HERE = Path(__file__).resolve().parent
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
HOW_TO_GET = "apt-get install dataset-fashion-mnist (Debian), or pass --data FOLDER with its *-ubyte.gz files"
PACKAGES = ("otlabel", "numpy", "scipy", "scikit-learn")
N_CLASSES, N_FEATURES, LARGEST = 10, 50, 3000
RATIOS = (1, 10, 100)
ROUNDS = 30


def long_tail(folder: Path, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the images and their classes, the largest `ratio` times the smallest."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        classes = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(N_CLASSES)  # which class is large is a matter of chance
    sizes = (LARGEST * ratio ** (-np.arange(N_CLASSES) / (N_CLASSES - 1))).astype(int)
    rows = [rng.choice(np.flatnonzero(classes == k), n, replace=False) for k, n in zip(order, sizes, strict=True)]
    kept = np.concatenate(rows)
    features = PCA(N_FEATURES, random_state=seed).fit_transform(images[kept] / np.float32(255))
    return features.astype(np.float32), classes[kept]


def kl_kmeans(features: np.ndarray, centres: np.ndarray, rho: float | None) -> np.ndarray:
    """K-means whose assignment step prefers equal clusters at a price; None takes the knee of the price of balance."""
    labels = None
    for _ in range(ROUNDS):
        scores = 2 * features @ centres.T - (centres**2).sum(1)
        if rho is None:
            path = balance_path(scores)
            rho = float(path.rho[path.knee])
        found = sinkhorn_assign(scores, classes=KL(rho), epsilon=0.02 * float(features.var(0).sum())).labels
        if labels is not None and np.array_equal(found, labels):
            break
        labels = found
        centres = np.stack([features[labels == k].mean(0) if (labels == k).any() else centres[k] for k in range(10)])
    assert labels is not None
    return labels


def score(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well clusters are classes; accuracy under the best pairing of the two."""
    together = np.zeros((N_CLASSES, N_CLASSES), int)
    np.add.at(together, (truth, labels), 1)
    sizes = np.bincount(labels, minlength=N_CLASSES)
    return {
        "nmi": normalized_mutual_info_score(truth, labels),
        "ari": adjusted_rand_score(truth, labels),
        "accuracy": together[linear_sum_assignment(-together)].sum() / len(truth),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
    }


def measure(folder: Path, ratio: float, seeds: range) -> list[dict]:
    """The mean over seeds, each with its own sample and start, of every method."""
    found: dict[str, list[dict]] = {}
    for seed in seeds:
        features, truth = long_tail(folder, ratio, seed)
        plain = KMeans(N_CLASSES, n_init=1, random_state=seed).fit(features)
        start, fair = plain.cluster_centers_, len(truth) / N_CLASSES
        bounds = {"size_min": int(0.5 * fair), "size_max": int(np.ceil(2 * fair))}
        everyone = {
            "k-means": plain.labels_,
            "exact sizes": BalancedKMeans(N_CLASSES, init=start).fit(features).labels_,
            "range, half to twice": BalancedKMeans(N_CLASSES, init=start, **bounds).fit(features).labels_,
            "KL at the knee": kl_kmeans(features, start, None),
        }
        sizes = sizes_near(start, features, truth)
        everyone["true sizes"] = BalancedKMeans(N_CLASSES, init=start, sizes=sizes).fit(features).labels_
        for name, labels in everyone.items():
            found.setdefault(name, []).append(score(truth, labels))
    keys = ("nmi", "ari", "accuracy", "smallest", "largest")
    return [
        {"method": name, "ratio": ratio} | {key: float(np.mean([run[key] for run in runs])) for key in keys}
        for name, runs in found.items()
    ]


def sizes_near(centres: np.ndarray, features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The true class sizes, given to clusters in the order of what k-means found: the best that a prior can say."""
    found = np.bincount((2 * features @ centres.T - (centres**2).sum(1)).argmax(1), minlength=N_CLASSES)
    sizes = np.empty(N_CLASSES, np.int64)
    sizes[np.argsort(found)] = np.sort(np.bincount(truth, minlength=N_CLASSES))
    return sizes


def to_markdown(report: dict) -> str:
    """One table a ratio."""
    header = ["method", "NMI", "ARI", "accuracy", "cluster sizes"]
    lines = [
        "# Clusters of uneven classes",
        "",
        f"Fashion-MNIST, {N_FEATURES} principal components, largest class {LARGEST} images, means over "
        f"{report['n_seeds']} samples and starts (k-means' own centres). {machine_line(report['machine'])}",
    ]
    for ratio in RATIOS:
        rows = [row for row in report["rows"] if row["ratio"] == ratio]
        cells = []
        for row in rows:
            scores = [f"{row[key]:.3f}" for key in ("nmi", "ari", "accuracy")]
            cells.append([row["method"], *scores, f"{row['smallest']:.0f} to {row['largest']:.0f}"])
        lines += ["", f"## Largest to smallest class: {ratio}", "", *table(header, cells)]
    return "\n".join([*lines, "", *NOTES, ""])


NOTES = [
    "- **exact sizes**: every cluster N / 10. **range**: sizes between half and twice that. **KL at the knee**: the "
    "price of imbalance is where `balance_path` bends, at the first iteration. **true sizes**: the classes' "
    "own, as a prior.",
]


def main() -> int:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SYSTEM, help="folder of the *-ubyte.gz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if not (arguments.data / "train-images-idx3-ubyte.gz").exists():
        print(f"Fashion-MNIST is not in {arguments.data}: {HOW_TO_GET}", file=sys.stderr)
        return 2
    rows = [row for ratio in RATIOS for row in measure(arguments.data, ratio, range(arguments.seeds))]
    report = {"machine": describe_machine(PACKAGES), "n_seeds": arguments.seeds, "rows": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "long_tail.json", report)
    page = to_markdown(report)
    (arguments.output / "long_tail.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
