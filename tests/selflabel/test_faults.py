"""What happens to labels when something goes wrong: all heads change or none, and a full disk is named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from labelers import (
    HEADS,
    D,
    N,
    Wrapped,
    assert_unchanged,
    batches,
    faulty,
    make_inputs,
    make_labeler,
    make_model,
    snapshot,
)
from torch import Tensor, nn

from otlabel.errors import FileFormatError, FingerprintError, InvalidScoresError
from otlabel.selflabel import EveryEpochs


def with_nan(inputs: Tensor) -> Tensor:
    inputs = inputs.clone()
    inputs[41, 2] = torch.nan
    return inputs


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (lambda x: [x[:5]], TypeError, "wrap the data set in otlabel.IndexedDataset"),
        (lambda x: [(x[:5], x[:5])], TypeError, "no indices of samples"),
        (lambda x: [(torch.arange(5), x[:5], x[:5])], TypeError, "a tuple of 3"),
        (lambda x: [(torch.tensor([0, N]), x[:2])], ValueError, "index 90 is out of range"),
        (lambda x: [(torch.tensor([0, -1]), x[:2])], ValueError, "index -1 is out of range"),
        (lambda x: [*batches(x), (torch.tensor([7]), x[7:8])], ValueError, "sample 7 came twice"),
        (lambda x: [(torch.tensor([7, 8, 7]), x[:3])], ValueError, "sample 7 came twice"),
        (lambda x: batches(x)[:-1], ValueError, "26 of 90 samples never came: 64, 65, 66, 67, 68, ..."),
        (lambda x: [], ValueError, "the loader is empty"),
        (lambda x: [(torch.arange(3), x[:2])], ValueError, "for a batch of 3"),
        (lambda x: batches(with_nan(x)), InvalidScoresError, "sample 41"),
    ],
)
def test_bad_loaders(loader: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler()
    labeler.update(model, batches(inputs))
    before = snapshot(labeler)
    with pytest.raises(error, match=message):
        labeler.update(model, loader(inputs))
    assert_unchanged(labeler, before)
    labeler.update(model, batches(inputs))
    assert labeler.n_updates == 2


@pytest.mark.parametrize(
    ("labeling", "error", "message"),
    [
        (faulty(np.zeros(3, int)), ValueError, r"int64 of shape \(3,\) for head 1"),
        (faulty(np.zeros(N)), ValueError, "float64 of shape"),
        (faulty(np.full(N, 5)), ValueError, "from 5 to 5 for head 1"),
        (faulty(np.full(N, -2)), ValueError, "from -2 to -2"),
        (faulty("nonsense"), ValueError, "of shape \\(\\) for head 1"),
        (faulty(RuntimeError("stop")), RuntimeError, "stop"),
        (faulty(KeyboardInterrupt("now")), KeyboardInterrupt, "now"),
        (faulty(MemoryError("no room")), MemoryError, "no room"),
    ],
)
def test_all_heads_change_or_none(labeling: Any, error: type[BaseException], message: str) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(schedule=EveryEpochs(1))
    assert labeler.due(0)
    labeler.update(model, batches(inputs))
    before, good = snapshot(labeler), labeler.labeling
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labeler.labeling = labeling
    assert labeler.due(1)
    with pytest.raises(error, match=message):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert labeler.due(1)  # it is still to be done
    labeler.labeling = good
    labeler.update(model, batches(inputs))
    assert not labeler.due(1)


def test_an_interrupt_while_features_are_extracted_and_what_then_is_left_to_do(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler(store=tmp_path / "whole.h5")
    expected.update(model, batches(inputs))

    def interrupted() -> Iterator[Any]:
        yield from batches(inputs)[:2]
        raise KeyboardInterrupt

    labeler = make_labeler(store=tmp_path / "features.h5")
    before = snapshot(labeler)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        labeler.update(model, interrupted())
    assert model.training
    assert_unchanged(labeler, before)

    sizes = []
    model.backbone.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    labeler.store.close()
    labeler = make_labeler(store=tmp_path / "features.h5")  # another process, as it were
    labeler.update(model, batches(inputs))
    assert sizes == [32, 26]  # the first tells the width; the second was there; the third was not
    assert torch.equal(labeler.labels, expected.labels)
    with torch.no_grad():
        model.heads[0].bias += 1  # other weights: all is to be computed again
    sizes.clear()
    with pytest.raises(KeyboardInterrupt):
        labeler.update(model, interrupted())
    with torch.no_grad():
        model.heads[0].bias -= 1
    labeler.update(model, batches(inputs))
    assert sizes == [32, 32, 32, 32, 26]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_model(), make_inputs()
    labeler = make_labeler(store=tmp_path / "features.h5")
    labeler.update(model, batches(inputs))
    before = snapshot(labeler)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with torch.no_grad():
        model.heads[0].weight.mul_(-1)
    with pytest.raises(OSError, match="make room or write elsewhere"):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)
    assert labeler.loss([torch.zeros(2, k) for k in HEADS], [0, 1]).isfinite()
    monkeypatch.undo()
    labeler.update(model, batches(inputs))
    assert labeler.n_updates == 2
    assert not torch.equal(labeler.labels[0], before["labels"][0])


@pytest.mark.parametrize("hidden", [None, 7])
def test_weights_that_have_diverged_and_heads_that_do_not_fit(hidden: int | None) -> None:
    model, inputs = make_model(hidden), make_inputs()
    labeler = make_labeler()
    before = snapshot(labeler)
    good = copy.deepcopy(model.heads)
    with torch.no_grad():
        next(model.heads[1].parameters())[0, 0] = torch.nan
    with pytest.raises(InvalidScoresError, match="weights of head 1 hold NaN"):
        labeler.update(model, batches(inputs))
    model.heads = nn.ModuleList([good[0], good[0], good[2]])
    with pytest.raises(ValueError, match=r"head 1 of the model .*(3 classes|\(90, 3\)).* 5"):
        labeler.update(model, batches(inputs))
    model.heads = good[:2]
    with pytest.raises(ValueError, match="the model has 2 heads; the labeler was made for 3"):
        labeler.update(model, batches(inputs))
    assert_unchanged(labeler, before)
    with pytest.raises(InvalidScoresError, match="sample 41"):
        labeler.update(Wrapped(make_model(hidden), list), batches(with_nan(inputs)))
    with pytest.raises(ValueError, match="logits of 2 heads"):
        labeler.update(Wrapped(model, list), batches(inputs))


def test_features_of_another_run_are_not_overwritten(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    make_labeler(store=tmp_path / "features.h5", data="flowers").update(model, batches(inputs))
    content = (tmp_path / "features.h5").read_bytes()
    labeler = make_labeler(store=tmp_path / "features.h5", data="birds")
    for action in (
        lambda: labeler.update(model, batches(inputs)),
        lambda: labeler.record(torch.arange(2), features=torch.zeros(2, D)),
    ):
        with pytest.raises(FingerprintError, match="'flowers', these are 'birds'"):
            action()
    (tmp_path / "other.h5").write_bytes(b"not ours")
    labeler = make_labeler(store=tmp_path / "other.h5")
    with pytest.raises(FileFormatError):
        labeler.update(model, batches(inputs))
    assert (tmp_path / "features.h5").read_bytes() == content
    assert (tmp_path / "other.h5").read_bytes() == b"not ours"
