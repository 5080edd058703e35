"""What training on labels costs: the cross-entropy of all heads, and weights by which their classes count the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from otlabel.selflabel.state import NO_LABEL


def cross_entropy(logits: list[Tensor], targets: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    """The mean over heads of that over samples, but those without a label; zero where there are no others.

    Args:
        logits: one tensor (B, K) a head.
        targets: (T, B) labels, -1 for none.
        weights: (K,) of the classes of each head, or None.
    """
    losses = []
    for scores, labels, weight in zip(logits, targets, weights, strict=True):
        scores = scores.float() if scores.dtype.itemsize < 4 else scores  # the sum of a batch may be too much for half
        weight = None if weight is None else weight.to(scores)
        total = F.cross_entropy(scores, labels, weight, ignore_index=NO_LABEL, reduction="sum")
        counted = labels >= 0 if weight is None else weight[labels.clamp(min=0)] * (labels >= 0)
        # Where nothing is counted the sum is 0, and stays so.
        losses.append(total / counted.sum().clamp(min=torch.finfo(total.dtype).tiny))
    return torch.stack(losses).mean()


class ClassWeights:
    """Weights of classes in the loss; those that balance them are worked out anew where labels have changed."""

    def __init__(self) -> None:
        self._of: tuple[int, Tensor | None] = -1, None
        self._balanced: list[Tensor] = []

    def of(self, weight: Any, labels: Tensor, n_classes: list[int]) -> list[Tensor | None]:
        """(K,) or None of each head.

        Args:
            weight: (K,) for all heads, a list of them, None, or "balanced": N_t / (K n_k) by the labels.
            labels: (T, N).
            n_classes: K of each head.

        Raises:
            ValueError: another text.
        """
        if not isinstance(weight, str):
            return list(weight) if isinstance(weight, (list, tuple)) else [weight] * len(n_classes)
        if weight != "balanced":
            raise ValueError(f"weight is {weight!r}; pass weights of the classes, 'balanced' or None")
        version = labels._version  # rises with each change in place
        if self._of[0] != version or self._of[1] is not labels:
            self._of = version, labels
            self._balanced = [_balanced(one, k) for one, k in zip(labels, n_classes, strict=True)]
        return list(self._balanced)


def _balanced(labels: Tensor, n_classes: int) -> Tensor:
    """(K,) by which every class that has samples counts the same, and a labelled sample 1 in the mean."""
    sizes = torch.bincount(labels[labels >= 0], minlength=n_classes)
    return sizes.sum() / ((sizes > 0).sum().clamp(min=1) * sizes.clamp(min=1))
