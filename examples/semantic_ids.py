"""
Semantic IDs that no two texts share
====================================

A semantic ID is a code of a few parts, such as 7-21-30, that a sequence model writes in place of a name: texts that
mean something alike begin alike. Residual k-means makes them, level by level, of what the level before left over; some
codes then stand for dozens of texts, most for none. Balanced levels use every part equally often. With ``unique=True``
no two texts share a code, at the least cost there is for the last level's centres, with a proof.

Balance alone does not prevent collisions, and unique codes say a little less of each vector: rows that would share a
code get farther ones. Where codes may collide, plain residual k-means stays nearest to the vectors.

The texts are those of ``text.py``, whose page says where to get them.

Run: python examples/semantic_ids.py    (needs "otlabel[examples]"; less than a minute)
"""

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from text import embedded, glosses

from otlabel import ResidualBalancedKMeans


def plain_codes(features: np.ndarray, levels: Sequence[int], seed: int) -> tuple[np.ndarray, float]:
    """(N, L) residual k-means with clusters of any size, and the squared distances that it leaves."""
    left, parts = features, []
    for k in levels:
        model = KMeans(k, n_init=1, max_iter=10, random_state=seed).fit(left)
        parts.append(model.labels_)
        left = left - model.cluster_centers_[model.labels_]
    return np.stack(parts, 1), float(np.square(left).sum())


def main(n: int = 20_000, levels: Sequence[int] = (32, 32, 32), seed: int = 0) -> dict[str, float]:
    """Codes of n texts in three ways, and what they have in common."""
    texts, _ = glosses(n)
    features = embedded(texts)
    spread = float(np.square(features - features.mean(0)).sum())
    options = {"max_iter": 10, "random_state": seed}
    balanced = ResidualBalancedKMeans(levels, **options).fit(features)
    unique = ResidualBalancedKMeans(levels, unique=True, **options).fit(features)

    found: dict[str, float] = {}
    print(f"{n:,} texts, {np.prod(levels):,} codes\n")
    print("codes               sizes of level 1  of level 3  texts that share  most of one  left over")
    for name, codes, left in [
        ("k-means", *plain_codes(features, levels, seed)),
        ("balanced", balanced.codes_, float(balanced.inertia_[-1])),
        ("balanced, unique", unique.codes_, float(unique.inertia_[-1])),
    ]:
        sizes = [np.bincount(part, minlength=k) for part, k in zip(codes.T, levels, strict=True)]
        times = np.unique(codes, axis=0, return_counts=True)[1]
        shared = int(times[times > 1].sum())
        found |= {f"{name}: shared": shared / n, f"{name}: most": int(times.max()), f"{name}: left": left / spread}
        found |= {f"{name}: smallest": min(map(min, sizes)), f"{name}: largest": max(map(max, sizes))}
        first, last = (f"{one.min():,} to {one.max():,}" for one in (sizes[0], sizes[-1]))
        print(f"{name:<18} {first:>16} {last:>13} {shared / n:>15.1%} {times.max():>12,} {left / spread:>10.1%}")
    found["gap"] = float(unique.gap_.max() / unique.inertia_[-1])

    # Texts whose codes begin alike, and then differ.
    codes = unique.codes_
    begin, times = np.unique(codes[:, :2], axis=0, return_counts=True)
    print("\nsome codes that begin alike:")
    for row in np.flatnonzero((codes[:, :2] == begin[times.argmax()]).all(1))[:6]:
        print(f"  {'-'.join(map(str, codes[row])):<10} {texts[row]:.90}")
    return found


if __name__ == "__main__":
    main()
