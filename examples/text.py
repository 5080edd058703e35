"""
Labels for texts of uneven classes
==================================

WordNet explains 82,115 meanings of nouns in a line each, and its authors sorted them into 26 files, such as food and
feelings, of 42 to 11,587 meanings. Scores are cosines with the mean of twenty labelled explanations a class. Equal
sizes make labels worse than no balance at all, since classes are not equal. What is known of the sizes, exactly or
roughly, makes more labels right, but takes from small classes: the mean accuracy over classes falls.

The texts are from Debian's package wordnet-base, sought in ``$OTLABEL_DATA/wordnet`` and ``/usr/share/wordnet``:
``apt-get install wordnet-base``, or without root ``apt-get download wordnet-base && dpkg-deb -x wordnet-base*.deb
FOLDER``, and ``FOLDER/usr/share/wordnet`` is then to be ``$OTLABEL_DATA/wordnet``. The vectors are from wordllama, a
package on PyPI that brings its model along.

Run: python examples/text.py    (needs "otlabel[examples,report]"; some seconds; writes glosses.html)
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from otlabel import KL, Range, report, sinkhorn_assign

# Lexicographer files 3 to 28 in their order, as the man page lexnames(5) has them.
CLASSES = [
    "top", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
]  # fmt: skip
N_SEEDS = 20  # labelled texts a class, or half of those there are


def glosses(n: int) -> tuple[list[str], np.ndarray]:
    """So many explanations at random, without their examples of use, and their classes."""
    home = os.environ.get("OTLABEL_DATA")
    places = [*([Path(home) / "wordnet"] if home else []), Path("/usr/share/wordnet")]
    found = [place / "data.noun" for place in places if (place / "data.noun").is_file()]
    if not found:
        raise FileNotFoundError(
            f"no data.noun in {' or '.join(map(str, places))}. On Debian and Ubuntu: apt-get install wordnet-base; or "
            "apt-get download wordnet-base && dpkg-deb -x wordnet-base*.deb FOLDER, and let $OTLABEL_DATA/wordnet be "
            "FOLDER/usr/share/wordnet"
        )
    lines = [line for line in found[0].read_text(encoding="utf-8").splitlines() if line[0] != " "]  # no licence
    lines = [lines[row] for row in np.sort(np.random.default_rng(0).permutation(len(lines))[:n])]
    texts = [line.split(" | ", 1)[1].split('; "')[0].strip() for line in lines]
    return texts, np.array([int(line.split()[1]) - 3 for line in lines])


def embedded(texts: list[str]) -> np.ndarray:
    """(N, 256) vectors of length 1: means of token vectors, from a file that comes with the package."""
    import wordllama

    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return model.embed(texts, norm=True)


def main(n: int = 40_000, page: str | os.PathLike[str] = "glosses.html") -> dict[str, dict[str, float]]:
    """Label n texts in several ways, compare with the truth, write a page about the best labels."""
    texts, truth = glosses(n)
    features = embedded(texts)
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(truth == k) for k in range(len(CLASSES))]
    seeds = [rng.choice(rows, min(N_SEEDS, len(rows) // 2), replace=False) for rows in members]
    centres = np.stack([features[rows].mean(0) for rows in seeds])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rest = np.setdiff1d(np.arange(len(texts)), np.concatenate(seeds))  # judged without those that were given
    scores, truth = features[rest] @ centres.T, truth[rest]  # (N, 26)
    counts = np.bincount(truth, minlength=len(CLASSES))
    shares = counts / len(truth)

    results = {
        "equal sizes": sinkhorn_assign(scores),
        "KL to equal, rho .05": sinkhorn_assign(scores, classes=KL(0.05)),
        "half to twice true": sinkhorn_assign(scores, classes=Range(lo=shares / 2, hi=np.minimum(2 * shares, 1))),
        "KL to true, rho .05": sinkhorn_assign(scores, class_mass=shares, classes=KL(0.05)),
        "true sizes": sinkhorn_assign(scores, class_mass=counts),
    }
    found: dict[str, dict[str, float]] = {}
    print(f"{len(truth):,} texts, {n - len(truth)} labelled ones; classes of {counts.min()} to {counts.max():,}\n")
    print("labels                   sizes         accuracy  mean of classes")
    for name, labels in {"best class of each": scores.argmax(1), **{k: r.labels for k, r in results.items()}}.items():
        right, sizes = labels == truth, np.bincount(labels, minlength=len(CLASSES))
        by_class = np.bincount(truth, right) / counts
        found[name] = {"accuracy": float(right.mean()), "mean of classes": float(by_class.mean())}
        print(f"{name:<22} {sizes.min():>5} to {sizes.max():<6} {right.mean():>9.3f} {by_class.mean():>11.3f}")

    shown = [texts[row] for row in rest]
    names: dict[str, Any] = {"names": CLASSES, "true_names": CLASSES, "title": "Meanings of nouns"}
    report(results["true sizes"], scores=scores, texts=shown, truth=truth, path=page, **names)
    print(f"\nwhat the labels of the true sizes look like: {page}")
    return found


if __name__ == "__main__":
    main()
