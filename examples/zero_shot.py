"""
Zero-shot labels, with what is known of class sizes
===================================================

Texts are labelled by nothing but the names of classes: WordNet's explanations of nouns, and the words in which its
authors describe their 26 classes. Scores are cosines of vectors. The best name of each text gives small classes far
too much: no class has less than 531 of 40,000 texts, where the smallest should have 19. Equal sizes are worse still.
What helps is to know sizes roughly, and a hundred labelled texts tell them well enough for most of the gain; small
classes pay for it, as the mean of classes shows. The potentials that balance the first half of the texts then label
the other half, each text by itself, just as well.

The texts and the vectors are those of ``text.py``, which says where they are from.

Run: python examples/zero_shot.py    (needs "otlabel[examples,report]" and WordNet; some seconds)
"""

import numpy as np
from text import embedded, glosses

from otlabel import KL, Range, sinkhorn_assign

NAMES = [  # of the manual page lexnames(5)
    "unique beginner for nouns", "acts or actions", "animals", "man-made objects", "attributes of people and objects",
    "body parts", "cognitive processes and contents", "communicative processes and contents", "natural events",
    "feelings and emotions", "foods and drinks", "groupings of people or objects", "spatial position", "goals",
    "natural objects", "people", "natural phenomena", "plants", "possession and transfer of possession",
    "natural processes", "quantities and units of measure", "relations between people or things or ideas",
    "two and three dimensional shapes", "stable states of affairs", "substances", "time and temporal relations",
]  # fmt: skip
HANDFUL = 100  # texts whose classes are known, drawn at random
PRIOR = 0.5  # texts of each class that are taken to be known besides, so that none is thought to have nothing


def main(n: int = 40_000) -> dict[str, dict[str, float]]:
    """Label n texts in several ways, and compare with the truth."""
    texts, truth = glosses(n)
    scores = embedded(texts) @ embedded(NAMES).T  # (N, 26)
    n_classes = len(NAMES)
    counts = np.bincount(truth, minlength=n_classes)
    shares = counts / n
    rng = np.random.default_rng(0)
    estimate = np.bincount(truth[rng.choice(n, HANDFUL, replace=False)], minlength=n_classes) + PRIOR
    estimate = estimate / estimate.sum()

    def near(sizes: np.ndarray) -> Range:
        return Range(lo=sizes / 2, hi=np.minimum(2 * sizes, 1))

    half = rng.permutation(n)
    first, second = np.sort(half[: n // 2]), np.sort(half[n // 2 :])
    balanced = sinkhorn_assign(scores[first], class_mass=estimate)
    one_by_one = np.empty(n, np.int64)
    one_by_one[first], one_by_one[second] = balanced.labels, balanced.predict(scores[second])

    labels = {
        "best name of each": scores.argmax(1),
        "equal sizes": sinkhorn_assign(scores).labels,
        "the true sizes": sinkhorn_assign(scores, class_mass=counts).labels,
        "half to twice true": sinkhorn_assign(scores, classes=near(shares)).labels,
        "100 labelled: sizes": sinkhorn_assign(scores, class_mass=estimate).labels,
        "100 labelled: half to twice": sinkhorn_assign(scores, classes=near(estimate)).labels,
        "100 labelled: KL, rho .05": sinkhorn_assign(scores, class_mass=estimate, classes=KL(0.05)).labels,
        "... on half, then each alone": one_by_one,
    }
    found = {}
    print(f"{n:,} texts in {n_classes} classes of {counts.min()} to {counts.max():,}\n")
    print("labels                        sizes          accuracy  mean of classes")
    for name, one in labels.items():
        right, sizes = one == truth, np.bincount(one, minlength=n_classes)
        by_class = np.bincount(truth, right, n_classes) / counts
        found[name] = {"accuracy": float(right.mean()), "mean of classes": float(by_class.mean())}
        print(f"{name:<28} {sizes.min():>5} to {sizes.max():<7} {right.mean():>8.3f} {by_class.mean():>12.3f}")
    return found


if __name__ == "__main__":
    main()
