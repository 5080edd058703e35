"""A small model, inputs, and labelers as the tests of self-labelling make them; what their labels should be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from otlabel.selflabel import HeadView, MultiHead, NewLabels, SelfLabeler

N, D, HEADS = 90, 6, [3, 5, 4]
STATE = ("labels", "n_updates", "n_passed", "history", "states")


class Backbone(nn.Module):
    """Small, with what training mode changes: batch statistics and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, D))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def make_model(hidden: int | None = None, seed: int = 0, scale: float = 4.0, dropout: float = 0.0) -> MultiHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultiHead(Backbone(dropout), D, HEADS, hidden=hidden)
        with torch.no_grad():
            for head in model.heads:
                for weight in head.parameters():
                    weight.mul_(scale)
    return model


def make_inputs(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def batches(inputs: Tensor, size: int = 32, order: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    order = torch.arange(len(inputs)) if order is None else order
    return [(part, inputs[part]) for part in order.split(size)]


def make_labeler(**options: Any) -> SelfLabeler:
    """By the running averages, as `features_of` has them, and without a look at views."""
    return SelfLabeler(N, HEADS, **{"mode": "eval", "views": lambda inputs, generator: None, **options})


def features_of(model: MultiHead, inputs: Tensor) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model.features(inputs).numpy()


def log_probabilities(model: MultiHead, inputs: Tensor) -> list[np.ndarray]:
    """Of all heads in float64, from the float32 features."""
    features = features_of(model, inputs).astype(np.float64)
    found = []
    for head in model.heads:
        logits = features @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
        found.append(torch.log_softmax(torch.from_numpy(logits), 1).numpy())
    return found


def snapshot(labeler: SelfLabeler) -> dict[str, Any]:
    return copy.deepcopy({name: getattr(labeler._state, name) for name in STATE})


def assert_unchanged(labeler: SelfLabeler, before: dict[str, Any]) -> None:
    assert torch.equal(labeler.labels, before["labels"])
    for name in STATE[1:4]:
        assert getattr(labeler._state, name) == before[name]
    for one, other in zip(labeler._state.states, before["states"], strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


def view_of(scores: np.ndarray, head: int = 0, **options: Any) -> HeadView:
    n, k = scores.shape
    given = {"number": head, "n_classes": k, "n_samples": n, "before": np.full(n, -1), "state": {}, "seed": 0}
    return HeadView(**{**given, "rows": scores, "make_scores": lambda: scores, **options})


class Wrapped(nn.Module):
    """A model of one's own, whose logits or parts are what is known of it."""

    def __init__(self, inner: MultiHead, returns: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.inner, self._returns = inner, returns

    def forward(self, inputs: Tensor, shift: Tensor | float = 0.0) -> Any:
        return self._returns(self.inner(inputs + shift))


def faulty(value: Any) -> Callable[[HeadView], NewLabels]:
    """A labeling that fails at the second of three heads."""

    def labeling(head: HeadView) -> NewLabels:
        if head.number != 1:
            return NewLabels(np.zeros(head.n_samples, np.int64), {"new": np.ones(1)})
        if isinstance(value, BaseException):
            raise value
        return NewLabels(value)

    return labeling


def fix_weights(model: nn.Module) -> None:
    """Weights that depend on nothing."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            rng = torch.Generator().manual_seed(number)
            weight.copy_(torch.randn(weight.shape, generator=rng))
