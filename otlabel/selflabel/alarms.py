"""Signs that self-labelling goes wrong, read off the history, in plain words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STUCK_LOSS = 0.98  # of log K: what a model that has learned nothing pays
LASTING = 3  # relabellings that show the same before it means anything
ENOUGH_STEPS = 200  # of training: before, everything looks wrong
CHURNING, FROZEN = 0.95, 1e-4  # shares of labels that change
COLLAPSED_CLASS = 0.9  # share of the samples that one class would take
COLLAPSED_FEATURES = 0.99  # length of the mean of features of length 1


def raised(history: list[dict[str, Any]], n_classes: list[int]) -> dict[str, str]:
    """What has been wrong for some time, by kind; nothing, as a rule."""
    n_heads = len(n_classes)
    recent = history[-LASTING * n_heads :]
    found = {}
    loss = recent[-1]["loss"]
    if loss is not None and not math.isfinite(loss):
        found["diverged"] = "the loss is not finite: training has diverged; lower the learning rate"
    if len(recent) < LASTING * n_heads or sum(record["steps"] for record in history[::n_heads]) < ENOUGH_STEPS:
        return found
    log_k = float(np.mean(np.log(n_classes)))
    if log_k > 0 and all(one["loss"] is not None and one["loss"] > STUCK_LOSS * log_k for one in recent):
        found["stuck"] = (
            f"the loss is stuck at {loss:.3g}, near log K = {log_k:.3g}: the model learns nothing from its labels; "
            "check the learning rate, that index and input belong together, and that relabellings are not too frequent"
        )
    churn = [record["churn"] for record in recent]
    if min(churn) > CHURNING:
        found["churning"] = (
            f"more than {CHURNING:.0%} of the labels change each time: they are not learned in between; relabel less "
            "often, or train faster"
        )
    if max(churn) < FROZEN:
        found["frozen"] = "labels have stopped changing: more relabellings are a waste of time"
    for head, k in enumerate(n_classes):
        shares = [record.get("best_class_share", 0.0) for record in recent[head::n_heads]]
        if k > 2 and min(shares) > COLLAPSED_CLASS:
            found[f"collapsed head {head}"] = (
                f"before balancing, one class of head {head} would take {shares[-1]:.0%} of the samples: its logits "
                "hardly depend on the input"
            )
    alignment = [record.get("alignment", 0.0) for record in recent]
    if min(alignment) > COLLAPSED_FEATURES:
        found["collapsed features"] = (
            f"features of different samples are nearly parallel (mean direction of length {alignment[-1]:.3f}): they "
            "have collapsed, or need centring, as by a BatchNorm before the heads"
        )
    return found


def told(records: list[dict[str, Any]]) -> str:
    """One line about a relabelling, of at most 80 columns or so."""
    if not records:
        return "labels received"

    def mean(name: str) -> float | None:
        values = [record[name] for record in records if name in record]
        return float(np.mean(values)) if values else None

    parts = [f"{len(records)} heads", f"churn {mean('churn'):.3f}"]
    parts += [f"{name} {value:.3g}" for name in ("value", "gap", "nmi") if (value := mean(name)) is not None]
    seconds = records[0]["seconds_extract"] + sum(record["seconds"] for record in records)
    return ", ".join([*parts, f"{seconds:.2f} s"])
