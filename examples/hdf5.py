"""
Scores in files, larger than memory
===================================

The scores of all samples need never be in memory at once: they are read block by block in each of about ten passes,
and what fits into ``memory_limit`` is read only once. The labels are the same, whatever the limit is. If the scores are
those of a linear head, they need not be on the disk either: features and the head's weights are enough.

The same on the command line::

    otlabel plan scores.h5::/log_probs --memory-limit 4MB
    otlabel assign scores.h5::/log_probs -o labels.h5 --memory-limit 4MB
    otlabel predict new.h5::/log_probs --potentials labels.h5 -o new-labels.npy

Run: python examples/hdf5.py    (a few seconds; 70 MB in a temporary folder)
"""

import tempfile
from pathlib import Path

import h5py
import numpy as np

from otlabel import Assignment, linear_scores, sinkhorn_assign
from otlabel.planning import estimate

K, D, CHUNK = 200, 32, 1000  # classes, features, rows that are written at once
MEMORY_LIMIT = 4 << 20  # bytes of scores that may be kept


def write(path: Path, n: int, weight: np.ndarray, seed: int) -> None:
    """Features of uneven clusters and the log-probabilities of a linear head, chunk by chunk."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, K + 1)
    with h5py.File(path, "w", libver=("v110", "latest")) as file:  # with checksums of the structures, too
        features = file.create_dataset("features", (n, D), np.float32, chunks=(CHUNK, D), fletcher32=True)
        log_probs = file.create_dataset("log_probs", (n, K), np.float16, chunks=(CHUNK, K), fletcher32=True)
        for start in range(0, n, CHUNK):
            clusters = rng.choice(K, min(CHUNK, n - start), p=shares / shares.sum())
            rows = weight[clusters] + 0.7 * rng.normal(size=(len(clusters), D))
            logits = rows @ weight.T
            features[start : start + len(rows)] = rows
            log_probs[start : start + len(rows)] = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def main(n: int = 150_000) -> dict[str, float]:
    """Label n samples from one file, and a fifth as many from another."""
    weight = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "scores.h5", n, weight, seed=1)
        write(folder / "new.h5", n // 5, weight, seed=2)

        print(estimate((n, K), "float16", memory_limit=MEMORY_LIMIT).summary())
        streamed = sinkhorn_assign(f"{folder / 'scores.h5'}::/log_probs", memory_limit=MEMORY_LIMIT)
        print(f"\n{streamed.summary()}")
        streamed.save(folder / "labels.npz")

        cached = sinkhorn_assign(f"{folder / 'scores.h5'}::/log_probs")  # the same, read once
        # Without the matrix on the disk: 12 MB of features where the scores take 60.
        factored = sinkhorn_assign(linear_scores(f"{folder / 'scores.h5'}::/features", weight))
        new_labels = Assignment.load(folder / "labels.npz").predict(f"{folder / 'new.h5'}::/log_probs")

    sizes = np.bincount(new_labels, minlength=K)
    found = {
        "smallest": int(streamed.counts.min()),
        "largest": int(streamed.counts.max()),
        "gap": streamed.gap,
        "bytes read, streamed": streamed.bytes_read,
        "bytes read, cached": cached.bytes_read,
        "same labels": float((streamed.labels == cached.labels).mean()),
        "same labels from features": float((streamed.labels == factored.labels).mean()),
        "new, class error": float(np.abs(sizes / len(new_labels) - 1 / K).sum()),
    }
    print(f"\nread in all: {streamed.bytes_read:,} bytes streamed, {cached.bytes_read:,} with room for the scores")
    print(f"the same labels: {found['same labels']:.1%}; from features: {found['same labels from features']:.1%}")
    print(
        f"{len(new_labels):,} new samples: {sizes.min()} to {sizes.max()} a class; {len(new_labels) // K} would be even"
    )
    return found


if __name__ == "__main__":
    main()
