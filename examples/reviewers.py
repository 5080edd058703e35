"""
Three reviewers for each paper
==============================

Papers are rows, reviewers are classes, and a score says how well a reviewer knows what a paper is about. Each paper
takes three different reviewers, nobody reviews more than six papers or fewer than two, and whoever has a conflict of
interest is forbidden by a score of minus infinity::

    result = sinkhorn_assign(scores, labels_per_sample=3, classes=Range(2, 6))    # labels (N, 3), the best first

The loads are what they may be, the total score is the best that there is, and the proof says so. Paper after paper with
the best reviewers who are left, as it is often done, costs those who come last. Chairs who then change some by hand ask
`certify` what it has cost.

Run: python examples/reviewers.py    (a second)
"""

import numpy as np

from otlabel import Range, certify, sinkhorn_assign

N_PAPERS, N_REVIEWERS, N_TOPICS = 500, 252, 40
EACH, FEWEST, MOST = 3, 2, 6  # reviewers of a paper, and papers of a reviewer


def conference(rng: np.random.Generator) -> np.ndarray:
    """(500, 252) similarity of topics, -inf for authors of the paper and those who share a department with one."""
    popular = rng.dirichlet(np.full(N_TOPICS, 0.5))
    papers, reviewers = (rng.dirichlet(8 * popular, size) for size in (N_PAPERS, N_REVIEWERS))
    scores = np.sqrt(papers) @ np.sqrt(reviewers).T  # of Bhattacharyya: 1 where topics are the same
    departments = rng.integers(0, 40, N_REVIEWERS)
    for paper in range(N_PAPERS):
        authors = rng.choice(N_REVIEWERS, 2, replace=False, p=scores[paper] / scores[paper].sum())
        scores[paper, np.isin(departments, departments[authors])] = -np.inf
    return scores


def one_after_the_other(scores: np.ndarray) -> np.ndarray:
    """(N, 3) the best who are left for each paper in turn; -1 where nobody is."""
    left, labels = np.full(N_REVIEWERS, MOST), np.full((len(scores), EACH), -1)
    for paper, of_paper in enumerate(scores):
        order = np.argsort(-np.where(left > 0, of_paper, -np.inf), kind="stable")[:EACH]
        chosen = order[(left[order] > 0) & (of_paper[order] > -np.inf)]
        labels[paper, : len(chosen)] = chosen
        left[chosen] -= 1
    return labels


def main() -> dict[str, float]:
    """Assign all in both ways, and change one by hand."""
    scores = conference(np.random.default_rng(0))
    result = sinkhorn_assign(scores, labels_per_sample=EACH, classes=Range(FEWEST, MOST))
    print(result.proof.summary())

    found = {"gap": result.gap, "proven": result.proof.proven, "least load": result.counts.min()}
    found["largest load"] = result.counts.max()
    print("\n                     total  worst paper  places unfilled  papers of a reviewer")
    for name, labels in [("one after the other", one_after_the_other(scores)), ("all at once", result.labels)]:
        known = np.where(labels >= 0, np.take_along_axis(scores, np.maximum(labels, 0), 1), 0.0)
        loads = np.bincount(labels[labels >= 0], minlength=N_REVIEWERS)
        unfilled = int((labels < 0).sum())
        found |= {f"{name}: total": known.sum(), f"{name}: worst": known.sum(1).min(), f"{name}: unfilled": unfilled}
        told = f"{known.sum():>7.1f} {known.sum(1).min():>12.2f} {unfilled:>16} {loads.min():>12} to {loads.max()}"
        print(f"{name:<19} {told}")

    changed = result.labels.copy()  # two papers exchange the last of their reviewers
    first, second = next(
        (i, j) for i in range(N_PAPERS) for j in range(i)
        if result.labels[i, 2] not in result.labels[j] and result.labels[j, 2] not in result.labels[i]
        and np.isfinite(scores[i, result.labels[j, 2]] + scores[j, result.labels[i, 2]])
    )  # fmt: skip
    changed[[first, second], 2] = changed[[second, first], 2]
    found["by hand: gap"] = certify(scores, changed, potentials=result.potentials).gap * N_PAPERS
    print(f"\npapers {second} and {first} exchange a reviewer: {found['by hand: gap']:.3f} of the total is lost")
    return found


if __name__ == "__main__":
    main()
