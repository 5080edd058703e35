"""Signs that self-labelling goes wrong, read off the history, in plain words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STUCK_LOSS = 0.98  # of log K: what a model that has learned nothing pays
# Before so many epochs, or a quarter of the training and one epoch, and so many relabellings nothing but a loss that is
# not finite means anything. Loaders that drop the last batch show a little less of five epochs.
TRAINED, RELABELLED = 4.5, 3
CHURNING = 0.9  # of what random labels change
FROZEN = 1e-4  # share of labels that change
POOR = 0.05  # quality, once a quarter of the training is over, or FAR epochs where its end is not known
QUARTER, FAR = 0.25, 10
KNOWN, UNSEEN = 0.5, 0.55  # probability of the labels in training; share of it that quality has at least
UNSEEN_OF_VECTORS = 0.1  # the same where views may be of no class
FALLEN, WORTH = 0.75, 0.3  # of the best quality; which was worth something
STILL = 0.05  # relative change of features since the first relabelling that counts
COLLAPSED_CLASS = 0.9  # share of the samples that one class would take
COLLAPSED_FEATURES = 0.99  # length of the mean of features of length 1


def raised(
    history: list[dict[str, Any]], n_classes: list[int], share_done: float | None = None, views_keep: bool = True
) -> dict[str, str]:
    """What is wrong after the last relabelling, in plain words, by its kind; nothing, as a rule.

    Args:
        history: records of all relabellings, one a head.
        n_classes: K of each head.
        share_done: of the training. None: not known.
        views_keep: whether views surely keep what classes are, as those of images do; a vector that half of its
            numbers are taken from may be of no class, however well a model has learned.
    """
    n_heads = len(n_classes)
    last = history[-n_heads:]
    loss = last[0]["loss"]
    if loss is not None and not math.isfinite(loss):
        return {"diverged": "the loss is not finite: training has diverged; lower the learning rate"}
    least = 1 if share_done is not None and share_done >= QUARTER else TRAINED
    if last[0]["epochs_trained"] < least or last[0]["update"] < RELABELLED:
        return {}  # at the beginning everything looks like this
    found = {}
    log_k = float(np.mean(np.log(n_classes)))
    if loss is not None and log_k > 0 and loss > STUCK_LOSS * log_k:
        found["stuck"] = (
            f"the loss is {loss:.3g}, no better than log K = {log_k:.3g} of a guess: labels are not learned; "
            "check the learning rate, that index and input belong together, and that relabellings are not too frequent"
        )
    recent = history[-RELABELLED * n_heads :]
    if all(record["churn"] > CHURNING * (1 - 1 / n_classes[record["head"]]) for record in recent):
        found["churning"] = (
            f"labels change each time as random ones would (last time {last[0]['churn']:.0%} of them): they are not "
            "learned in between; relabel less often, or train faster"
        )
    if all(record["churn"] < FROZEN for record in recent):
        found["frozen"] = "labels have stopped changing: more relabellings are a waste of time"
    if last[0].get("feature_drift", 1.0) < STILL:
        found["still"] = (
            f"features are those of the first relabelling but for {last[0]['feature_drift']:.0%}: only the heads "
            "learn. Pass the weights below the heads to the optimiser, and let them have gradients"
        )
    found |= _of_quality(history, n_heads, share_done, views_keep)
    for record in last:
        share = record.get("best_class_share", 0.0)
        if n_classes[record["head"]] > 2 and share > COLLAPSED_CLASS:
            found[f"collapsed head {record['head']}"] = (
                f"before balancing, one class of head {record['head']} would take {share:.0%} of the samples: its "
                "logits hardly depend on the input"
            )
    alignment = last[0].get("feature_alignment", 0.0)
    if alignment > COLLAPSED_FEATURES:
        found["collapsed features"] = (
            f"features of different samples are nearly parallel (mean direction of length {alignment:.3f}): they have "
            "collapsed, or need centring, as by a BatchNorm before the heads"
        )
    return found


def _of_quality(
    history: list[dict[str, Any]], n_heads: int, share_done: float | None, views_keep: bool
) -> dict[str, str]:
    """Labels that mean little, or less than they did."""
    last = history[-1]
    course = [mean_of(history[start : start + n_heads], "quality") for start in range(0, len(history), n_heads)]
    known = [one for one in course if one is not None]
    if not known or course[-1] is None:
        return {}
    best, now = max(known), course[-1]
    if best >= WORTH and all(one is not None and one < FALLEN * best for one in course[-2:]):
        return {
            "ruined": f"quality has fallen from {best:.2f}, after relabelling {course.index(best) + 1}, to {now:.2f}: "
            "the training ruins what it had found. The labels of then are in best_labels; lower the learning rate, or "
            "relabel less often"
        }
    probability = 0.0 if last["loss"] is None else math.exp(-last["loss"])
    if probability > KNOWN and now < (UNSEEN if views_keep else UNSEEN_OF_VECTORS) * probability:
        return {
            "by heart": f"the loss is {last['loss']:.2g}, but quality is {now:.2f}: the model knows its samples by "
            "heart, and views of them tell it little. Augment what it trains on, or augment more"
        }
    over = share_done >= QUARTER if share_done is not None else last["epochs_trained"] >= FAR
    if over and now < POOR:
        return {
            "poor": f"quality is {now:.2f}: from views of the samples, heads hardly tell each other's labels, which "
            "then mean little. Take a network whose field of view covers the sample, augmentation that leaves classes "
            "as they are, another learning rate (start from 0.05), or relabel more often"
        }
    return {}


def mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    """Of a figure, over the records that have it; None where none has."""
    values = [record[name] for record in records if name in record]
    return float(np.mean(values)) if values else None


def told(records: list[dict[str, Any]]) -> str:
    """One line about a relabelling, of at most 80 columns or so."""
    parts = [f"{len(records)} heads", f"churn {mean_of(records, 'churn'):.3f}"]
    parts += [
        f"{name} {value:.3g}"
        for name in ("value", "gap", "quality", "nmi")
        if (value := mean_of(records, name)) is not None
    ]
    seconds = records[0]["seconds_extract"] + sum(record["seconds"] for record in records)
    return ", ".join([*parts, f"{seconds:.2f} s"])
