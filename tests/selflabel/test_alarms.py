"""A healthy run is silent, and what goes wrong is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from labelers import HEADS, Backbone, D, N, batches, fix_weights, make_inputs, make_labeler, make_model
from torch import nn

from otlabel.errors import SelfLabelWarning
from otlabel.selflabel import AtTimes, EveryEpochs, MultiHead, SelfLabeler


def alarms_of(
    n_epochs: int, *, lr: float = 0.01, break_it: Callable[[MultiHead, int], None] | None = None, shuffled: bool = False
) -> list[str]:
    """What is said while a small model trains on clear clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 5)) * 2
    inputs = torch.from_numpy(centres[np.arange(N) % 6] + rng.normal(size=(N, 5)) * 0.3).float()
    model = MultiHead(Backbone(), D, [6, 6])
    fix_weights(model.backbone.layers[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    labeler = SelfLabeler(N, [6, 6], schedule=EveryEpochs(1), views=lambda inputs, generator: None)
    said: list[str] = []
    n_lasting = 0
    for epoch in range(n_epochs):
        if break_it is not None:
            break_it(model, epoch)
        if labeler.due(epoch):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                records = labeler.update(model, batches(inputs))
            texts = [str(one.message) for one in caught if issubclass(one.category, SelfLabelWarning)]
            told = records[0]["alarms"]
            assert set(texts) <= set(told)
            assert bool(texts) == (len(told) > n_lasting)  # what lasts is told once
            said, n_lasting = said + told, len(told)
        model.train()
        for index, rows in batches(inputs, 10, torch.randperm(N, generator=torch.Generator().manual_seed(epoch))):
            index = (index + epoch) % N if shuffled else index
            loss = labeler.loss(model(rows), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return said


def test_a_healthy_run_is_silent_until_nothing_changes_any_more() -> None:
    assert set(alarms_of(14)) == {"labels have stopped changing: more relabellings are a waste of time"}


def draw_anew(model: MultiHead, epoch: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(epoch)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


def silence_heads(model: MultiHead, epoch: int) -> None:
    with torch.no_grad():
        model.heads[1].weight.mul_(1e-3)
        model.heads[1].bias.copy_(torch.arange(6.0))


def push_features(model: MultiHead, epoch: int) -> None:
    with torch.no_grad():
        model.backbone.layers[-1].bias.fill_(1e3)


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        ({"shuffled": True, "lr": 0.01}, "no better than log K = 1.79 of a guess"),
        ({"break_it": draw_anew, "lr": 1e-4}, "labels change each time as random ones would"),
        ({"break_it": silence_heads, "lr": 1e-4}, "one class of head 1 would take 100%"),
        ({"break_it": push_features, "lr": 0.0}, "features of different samples are nearly parallel"),
    ],
)
def test_what_goes_wrong_is_said(situation: dict[str, Any], message: str) -> None:
    assert alarms_of(5, **situation) == []  # too early to tell
    assert any(message in text for text in alarms_of(8, **situation))


def test_a_schedule_of_one_time() -> None:
    model = make_model()
    labeler = make_labeler(schedule=AtTimes([0]))
    assert labeler.due(0)
    labeler.update(model, batches(make_inputs()))
    assert not labeler.due(5)


def test_a_loss_that_is_not_finite_is_said_at_once() -> None:
    labeler, model = make_labeler(), make_model()
    labeler.loss([torch.zeros(2, k) for k in HEADS], [0, 1])
    labeler.loss([torch.full((2, k), torch.inf) for k in HEADS], [0, 1])
    with pytest.warns(SelfLabelWarning, match="not finite: training has diverged"):
        labeler.update(model, batches(make_inputs()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labeler.update(model, batches(make_inputs()))
