"""What features are worth where a class is known by a few samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from otlabel.metrics.features import features_of, labels_of

NORMAL = 1.96  # standard errors to either side that hold 95 % of the means


class FewShot(NamedTuple):
    """Accuracy over episodes."""

    mean: float
    interval: float  # half the width of a 95 % interval of the mean, from the episodes' spread


def few_shot(
    features: Any,
    labels: Any,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> FewShot:
    """Accuracy of the nearest class mean, from a few samples of each of a few classes.

        class of x  =  argmin_k || x - mean of the shots of class k ||

    Each episode draws classes, and of each shots and queries, which never are the same samples.

    Args:
        features: (N, D), from any of the places that `sinkhorn_assign` takes scores from; read into memory.
        labels: (N,) classes; rows with -1 are left out.
        ways: classes of an episode.
        shots: samples that a class is known by.
        queries: samples of each class that are classified.
        episodes: how many.
        seed: of the draws.

    Raises:
        ValueError: fewer than `ways` classes with as many samples as shots and queries together; numbers below 1.
        InvalidScoresError: features that are no matrix, or a row with NaN or infinity.

    Source: Snell, Swersky, Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017; on frozen features as
        Chen et al. have it in "Unsupervised image classification for deep representation learning", 2020 (UIC).
    """
    if min(ways - 1, shots, queries, episodes) < 1:
        raise ValueError(
            f"ways is {ways}, shots {shots}, queries {queries}, episodes {episodes}: give at least 2 ways and 1 of "
            "the rest"
        )
    rows, _ = features_of(features, features)
    truth, labelled = labels_of(rows, labels)
    x, truth = rows.rows(labelled).double().cpu().numpy(), truth[labelled]
    classes, sizes = np.unique(truth, return_counts=True)
    usable = classes[sizes >= shots + queries]
    if len(usable) < ways:
        raise ValueError(
            f"{len(usable)} of {len(classes)} classes have the {shots} + {queries} samples of an episode, ways is "
            f"{ways}: ask for fewer ways, shots or queries"
        )
    members = {k: np.flatnonzero(truth == k) for k in usable}
    random = np.random.default_rng(seed)
    right = np.empty(episodes)
    for episode in range(episodes):
        chosen = random.choice(usable, ways, replace=False)
        drawn = np.stack([random.choice(members[k], shots + queries, replace=False) for k in chosen])
        means = x[drawn[:, :shots]].mean(1)  # (ways, D)
        asked = x[drawn[:, shots:]]  # (ways, queries, D)
        distances = (means**2).sum(1) - 2 * asked @ means.T  # less what is the same for all means
        right[episode] = (distances.argmin(2) == np.arange(ways)[:, None]).mean()
    spread = float(right.std(ddof=1)) if episodes > 1 else float("nan")
    return FewShot(float(right.mean()), NORMAL * spread / episodes**0.5)
