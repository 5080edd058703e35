"""Signs that self-labelling goes wrong, read off the history, in plain words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STUCK_LOSS = 0.98  # of log K: what a model that has learned nothing pays
TRAINED, RELABELLED = 5, 3  # epochs and relabellings before anything but a loss that is not finite means something
CHURNING = 0.9  # of what random labels change
FROZEN = 1e-4  # share of labels that change
COLLAPSED_CLASS = 0.9  # share of the samples that one class would take
COLLAPSED_FEATURES = 0.99  # length of the mean of features of length 1


def raised(history: list[dict[str, Any]], n_classes: list[int]) -> dict[str, str]:
    """What is wrong after the last relabelling, in plain words, by its kind; nothing, as a rule."""
    n_heads = len(n_classes)
    last = history[-n_heads:]
    loss = last[0]["loss"]
    if loss is not None and not math.isfinite(loss):
        return {"diverged": "the loss is not finite: training has diverged; lower the learning rate"}
    if last[0]["epochs_trained"] < TRAINED or last[0]["update"] < RELABELLED:
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


def told(records: list[dict[str, Any]]) -> str:
    """One line about a relabelling, of at most 80 columns or so."""

    def mean(name: str) -> float | None:
        values = [record[name] for record in records if name in record]
        return float(np.mean(values)) if values else None

    parts = [f"{len(records)} heads", f"churn {mean('churn'):.3f}"]
    parts += [f"{name} {value:.3g}" for name in ("value", "gap", "nmi") if (value := mean(name)) is not None]
    seconds = records[0]["seconds_extract"] + sum(record["seconds"] for record in records)
    return ", ".join([*parts, f"{seconds:.2f} s"])
