"""Going on where a run was left: the same run again, and states that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelers import HEADS, N, assert_unchanged, batches, make_inputs, make_labeler, make_model, snapshot
from torch import Tensor

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.selflabel import (
    Argmax,
    AtTimes,
    EveryEpochs,
    HeadView,
    KMeans,
    MultiHead,
    NewLabels,
    OptimalTransport,
    SelfLabeler,
)


def train(labeling: Any, path: Path | None) -> tuple[Tensor, list[Tensor], list[dict[str, Any]]]:
    """Six epochs with relabellings in the middle of some; with a path all objects are made anew each epoch."""
    inputs = make_inputs()
    argmax, kmeans = isinstance(labeling, Argmax), isinstance(labeling, KMeans)
    schedule = AtTimes([0, 1.5, 3.5, 5.5] if argmax else [0, 0.4, 1.7, 2.5, 4.5, 4.9])

    def fresh() -> tuple[MultiHead, torch.optim.Optimizer, SelfLabeler]:
        model = make_model(scale=1.0)
        labeler = make_labeler(labeling=labeling, schedule=schedule, data="toy", truth=np.arange(N) % 3)
        return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), labeler

    model, optimizer, labeler = fresh()
    for epoch in range(6):
        if path is not None and epoch:
            model, optimizer, labeler = fresh()
            for part, state in zip((model, optimizer, labeler), torch.load(path, weights_only=True), strict=True):
                part.load_state_dict(state)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        for number, (index, rows) in enumerate(batches(inputs, 9, order)):
            if not kmeans and labeler.due(samples=epoch * N + number * 9):
                labeler.update(model, None if argmax and epoch else batches(inputs))
            model.train()
            features = model.features(rows)
            logits = [head(features) for head in model.heads]
            if kmeans:
                labeler.record(index, features=features)
            if argmax:
                labeler.record(index, logits)
            loss = labeler.loss(logits, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if kmeans:  # features that were recorded are not saved
            labeler.update(model)
        if path is not None:
            torch.save([part.state_dict() for part in (model, optimizer, labeler)], path)
    return labeler.labels, list(model.state_dict().values()), labeler.history


@pytest.mark.filterwarnings("ignore::otlabel.errors.SelfLabelWarning")
@pytest.mark.parametrize("labeling", [OptimalTransport(), KMeans(), Argmax()], ids=lambda labeling: type(labeling))
def test_a_resumed_run_is_the_same_run(labeling: Any, tmp_path: Path) -> None:
    labels, weights, history = train(labeling, None)
    resumed = train(labeling, tmp_path / "state.pt")
    assert torch.equal(labels, resumed[0])
    assert all(torch.equal(*pair) for pair in zip(weights, resumed[1], strict=True))
    seconds = ("seconds", "seconds_extract")
    without = [[{key: value for key, value in one.items() if key not in seconds} for one in part] for part in
               (history, resumed[2])]  # fmt: skip
    assert without[0] == without[1]


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = make_labeler(data="flowers").state_dict()
    labeler = make_labeler(data="birds")
    before = snapshot(labeler)
    with pytest.raises(FingerprintError, match=r"data is 'flowers', this labeler's is 'birds'"):
        labeler.load_state_dict(state)
    with pytest.raises(FingerprintError, match=r"n_classes is \[3, 5, 4\], this labeler's is \[3, 5\]"):
        SelfLabeler(N, HEADS[:2], data="flowers").load_state_dict(state)
    with pytest.raises(FingerprintError, match="n_samples is 90, this labeler's is 91"):
        SelfLabeler(91, HEADS, data="flowers").load_state_dict(state)
    for nothing, told in (({}, "version None"), (None, "version 'NoneType'")):
        with pytest.raises(FingerprintError, match=told):
            labeler.load_state_dict(nothing)
    assert_unchanged(labeler, before)
    make_labeler().load_state_dict(state)  # without a name, only N tells
    make_labeler(data="birds").load_state_dict(make_labeler().state_dict())


def _changed(name: str, at: tuple[int, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[name][at] = value

    return change


def _given(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(values)


def _potentials(values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["states"][1].update(potentials=values)


DAMAGED_STATES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "too large a label": (_changed("labels", (1, 7), 99), "labels of head 1 have 99 at sample 7 .1 such labels.; .* 4"),
    "a class of another head": (_changed("labels", (0, 3), 3), "labels of head 0 have 3 at sample 3 .*from 0 to 2"),
    "a negative label": (_changed("labels", (2, 0), -5), "labels of head 2 have -5 at sample 0"),
    "labels as floats": (lambda state: state.update(labels=state["labels"].double()), "float64 .* whole numbers"),
    "labels as bools": (lambda state: state.update(labels=state["labels"] > 0), "bool .* whole numbers"),
    "labels cut short": (lambda state: state.update(labels=state["labels"][:, 1:]), r"shape \(3, 89\).*\(3, 90\)"),
    "labels of a head less": (lambda state: state.update(labels=state["labels"][:2]), r"shape \(2, 90\)"),
    "labels as a text": (_given(labels="0 1 2"), "labels are .* whole numbers"),
    "no labels": (lambda state: state.pop("labels"), "no 'labels'"),
    "what was recorded": (_changed("recorded", (0, 5), 17), "recorded of head 0 have 17 at sample 5"),
    "a state less": (lambda state: state["states"].pop(), "2 states for 3 heads"),
    "no states": (_given(states=[{}, 3, {}]), "damaged"),
    "NaN": (_potentials(torch.tensor([0.0, 1, 2, float("nan"), 0])), "head 1, potentials is nan for class 3"),
    "infinite": (_potentials(np.array([0, np.inf, 2, 0, 0])), "head 1, potentials is inf for class 1"),
    "potentials cut short": (_potentials(torch.zeros(4)), r"head 1, potentials has shape \(4,\)"),
    "potentials as texts": (_potentials(np.array(["a"] * 5)), "no numbers"),
    "a negative count": (_given(n_updates=-1), "n_updates is -1"),
    "half a count": (_given(n_trained=1.5), "n_trained is 1.5"),
    "no time": (_given(progress=float("nan")), "progress is nan"),
    "losses": (_given(loss_sum=torch.zeros(3)), "loss_sum is"),
    "a history of nothing": (_given(history=[{}]), "no 'head'"),
    "a history of numbers": (_given(history=[1]), "damaged"),
    "a history of other heads": (_given(history=[{"head": 3, "churn": 0.1}]), "head 3"),
}


@pytest.mark.parametrize("numpy", [False, True], ids=["torch", "numpy"])
@pytest.mark.parametrize("damage", DAMAGED_STATES)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str, numpy: bool) -> None:
    labeler, model = make_labeler(), make_model()
    labeler.update(model, batches(make_inputs()))
    labeler.record(np.arange(4), model(make_inputs()[:4]))
    state = labeler.state_dict()
    change, told = DAMAGED_STATES[damage]
    change(state)
    if numpy:
        state = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in state.items()}
    other = make_labeler(seed=1)
    other.record(np.arange(9), model(make_inputs()[:9]))
    before, attributes = snapshot(other), repr(vars(other))
    with pytest.raises(FileFormatError, match=told):
        other.load_state_dict(state)
    assert_unchanged(other, before)
    assert repr(vars(other)) == attributes


def test_a_state_in_numpy_is_as_good_and_shares_nothing() -> None:
    labeler, model = make_labeler(), make_model()
    labeler.update(model, batches(make_inputs()))
    labeler.record(np.arange(4), model(make_inputs()[:4]))
    labeler.loss(model(make_inputs()[:4]), np.arange(4))
    state = labeler.state_dict()
    plain = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in state.items()}
    plain |= {"n_classes": np.array(HEADS), "n_updates": np.int64(1), "labels": plain["labels"].astype(np.int64)}
    plain["states"] = [{name: value.numpy().copy() for name, value in one.items()} for one in state["states"]]
    other = make_labeler(seed=1)
    other.load_state_dict(plain)
    plain["labels"][:] = 0
    plain["states"][0]["potentials"][:] = 0
    again = other.state_dict()
    assert again.keys() == state.keys()
    for name, value in state.items():
        same = torch.equal(value, again[name]) if isinstance(value, Tensor) else repr(value) == repr(again[name])
        assert same, name


def test_states_of_a_labeling_of_ones_own_are_its_own() -> None:
    def means(head: HeadView) -> NewLabels:
        return NewLabels(head.before, {"potentials": np.full((2, 2), np.nan)})

    labeler, other = make_labeler(labeling=means), make_labeler(labeling=means)
    labeler.update(make_model(), batches(make_inputs()))
    other.load_state_dict(labeler.state_dict())
    assert np.isnan(other._state.states[0]["potentials"]).all()


def test_a_state_holds_plain_values_whatever_times_were_given_in(tmp_path: Path) -> None:
    labeler = make_labeler(schedule=EveryEpochs(1))
    assert labeler.due(np.float32(0.0))
    labeler.update(make_model(), batches(make_inputs()))
    for time in ({"samples": np.int64(7)}, {"samples": torch.tensor(7)}, {"epoch": np.float64(2)}):
        labeler.due(**time)
        torch.save(labeler.state_dict(), tmp_path / "state.pt")
        torch.load(tmp_path / "state.pt", weights_only=True)
