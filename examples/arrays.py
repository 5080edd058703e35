"""
Labels from an array of scores
==============================

A classifier has seen five images of each digit and scores all others. The three lines are::

    from otlabel import sinkhorn_assign
    result = sinkhorn_assign(log_probs)
    result.labels, result.counts, result.gap

The rest shows what can be asked besides: other sizes, new samples, a warm start, labels of others put to the proof.
A gap belongs to sizes: the best class of each sample is optimal for the sizes that it happens to have (gap zero), and
that is no praise of these sizes.

Run: python examples/arrays.py    (needs scikit-learn; a few seconds)
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from otlabel import Range, certify, sinkhorn_assign

N_SEEN = 5  # images of each digit with a label


def main(n: int = 1400) -> dict[str, float]:
    """Label n images in every way, and the remaining ones as new."""
    images, digits = load_digits(return_X_y=True)
    images = images / 16
    seen = np.concatenate([np.flatnonzero(digits == k)[:N_SEEN] for k in range(10)])
    rest = np.setdiff1d(np.arange(len(digits)), seen)
    old, new = rest[:n], rest[n:]
    classifier = LogisticRegression(max_iter=1000).fit(images[seen], digits[seen])
    log_probs = classifier.predict_log_proba(images[old])  # (N, 10), higher is better
    best = log_probs.argmax(1)  # the best class of each sample, without any balance
    centres = images[seen].reshape(10, N_SEEN, -1).mean(1)
    nearest = ((images[old][:, None] - centres) ** 2).sum(2).argmin(1)  # as k-means labels

    result = sinkhorn_assign(log_probs)
    print(result.summary())

    counts = np.bincount(digits[old], minlength=10)  # known here; else `Range`, or an estimate
    counted = sinkhorn_assign(log_probs, class_mass=counts)
    ranged = sinkhorn_assign(log_probs, classes=Range(lo=0.08, hi=0.12))
    surest = sinkhorn_assign(log_probs, abstain=0.2)  # a fifth stays unlabelled: -1
    kept = surest.labels >= 0

    found = {}
    print("\nlabels                     sizes        gap  accuracy")
    for name, labels, gap in [
        ("best class of each", best, certify(log_probs, best).gap),
        ("nearest centre", nearest, certify(log_probs, nearest).gap),
        ("equal sizes", result.labels, result.gap),
        ("the true sizes", counted.labels, counted.gap),
        ("between 8 % and 12 %", ranged.labels, ranged.gap),
        ("the surest 80 %", surest.labels[kept], surest.gap),
    ]:
        truth = digits[old][kept] if name.startswith("the surest") else digits[old]
        sizes = np.bincount(labels, minlength=10)
        found[name], found[f"{name}: gap"] = float((labels == truth).mean()), float(gap)
        print(f"{name:<22} {sizes.min():>4} to {sizes.max():<4} {abs(gap):>9.1e} {found[name]:>9.3f}")

    # New samples: the class potentials are all that is kept of the old ones.
    new_log_probs = classifier.predict_log_proba(images[new])
    found["new, best class"] = float((new_log_probs.argmax(1) == digits[new]).mean())
    found["new, predicted"] = float((result.predict(new_log_probs) == digits[new]).mean())
    print(f"\n{len(new)} new samples: best class {found['new, best class']:.3f}, ", end="")
    print(f"by the potentials of the old ones {found['new, predicted']:.3f}")

    # The model has moved a little: start from where the last solve has ended.
    moved = log_probs + 0.01 * np.random.default_rng(0).normal(size=log_probs.shape)
    cold, warm = sinkhorn_assign(moved), sinkhorn_assign(moved, init=result)
    found["passes, cold"], found["passes, warm"] = cold.n_sweeps, warm.n_sweeps
    print(
        f"scores moved a little: {cold.n_sweeps} passes from nothing, {warm.n_sweeps} from the old potentials, ", end=""
    )
    print(f"values {cold.value:.6f} and {warm.value:.6f}")
    return found


if __name__ == "__main__":
    main()
