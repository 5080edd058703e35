"""Features and best classes that are recorded while training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from labelers import HEADS, N, Wrapped, batches, faulty, features_of, make_inputs, make_labeler, make_model

from otlabel.selflabel import Argmax, KMeans, OptimalTransport, TensorStore


def test_the_last_recorded_best_class_counts() -> None:
    labeler = make_labeler(labeling=Argmax())
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="nothing was recorded"):
        labeler.update(make_model())
    logits = [torch.randn(N, k, generator=rng) for k in HEADS]
    for part in torch.randperm(N, generator=rng).split(13):
        labeler.record(part, [torch.randn(len(part), k, generator=rng) for k in HEADS])
    for part in torch.randperm(N, generator=rng).split(13):
        labeler.record(part, [one[part] for one in logits])
    labeler.update(make_model())
    for labels, one in zip(labeler.labels, logits, strict=True):
        assert torch.equal(labels, one.argmax(1))
    with pytest.raises(ValueError, match="nothing was recorded"):
        labeler.update(make_model())
    before = labeler.labels.clone()
    labeler.record(torch.arange(60), [-one[:60] for one in logits])  # a sampler need not draw all of them
    labeler.update(make_model())
    assert torch.equal(labeler.labels[:, 60:], before[:, 60:])
    for labels, one in zip(labeler.labels, logits, strict=True):
        assert torch.equal(labels[:60], one[:60].argmin(1))
    labeler.record(torch.arange(N), logits)
    labeler.labeling = OptimalTransport()
    with pytest.raises(RuntimeError, match="nothing but best classes was recorded"):
        labeler.update(make_model())


@pytest.mark.parametrize("labeling", [OptimalTransport(), KMeans(), Argmax()], ids=lambda labeling: type(labeling))
@pytest.mark.parametrize("on_disk", [False, True])
def test_recorded_features_give_the_labels_of_an_extraction(labeling: Any, on_disk: bool, tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    expected = make_labeler(labeling=labeling, store=TensorStore("float16" if on_disk else "float32"))
    expected.update(copy.deepcopy(model), batches(inputs))
    labeler = make_labeler(labeling=labeling, store=tmp_path / "features.h5" if on_disk else None)
    features = torch.from_numpy(features_of(model, inputs))
    parts = torch.randperm(N, generator=torch.Generator().manual_seed(0)).split(32)
    for part in parts[:2]:
        labeler.record(part, features=features[part])
    with pytest.raises(ValueError, match="26 of 90 samples never came"):
        labeler.update(model)
    with pytest.raises(ValueError, match="written before"):
        labeler.record(parts[0], features=features[parts[0]])
    labeler.record(parts[2], features=features[parts[2]])
    labeler.labeling = faulty(RuntimeError("stop"))
    with pytest.raises(RuntimeError, match="stop"):
        labeler.update(model)
    labeler.labeling = labeling
    labeler.update(model)
    assert torch.equal(labeler.labels, expected.labels)


def test_recordings_do_not_mix_with_extractions_or_with_those_of_a_run_that_was_killed(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    features = torch.from_numpy(features_of(model, inputs))
    labeler = make_labeler(store=tmp_path / "features.h5")
    labeler.record(torch.arange(50), features=features[:50])
    labeler.store.close()  # killed here
    labeler = make_labeler(store=tmp_path / "features.h5")
    labeler.record(torch.arange(30, 60), features=features[30:60])
    with pytest.raises(ValueError, match="60 of 90 samples never came"):
        labeler.update(model)
    with pytest.raises(ValueError, match="out of range"):
        labeler.update(model, [*batches(inputs)[:1], (torch.tensor([N]), inputs[:1])])
    labeler.record(torch.arange(N), features=features)  # the extraction that failed has ended the recording before
    labeler.update(model)
    expected = make_labeler(store=TensorStore("float16"))
    expected.update(model, batches(inputs))
    assert torch.equal(labeler.labels, expected.labels)
    labeler.record(torch.arange(N), features=features)
    with pytest.raises(ValueError, match="shows no heads"):
        labeler.update(Wrapped(model, list))


def test_best_classes_recorded_with_features_are_what_argmax_takes() -> None:
    model, inputs = make_model(), make_inputs()
    logits = [torch.randn(N, k, generator=torch.Generator().manual_seed(k)) for k in HEADS]
    labeler = make_labeler(labeling=Argmax())
    labeler.record(torch.arange(N), logits, features=torch.from_numpy(features_of(model, inputs)))
    labeler.update(model)
    for labels, one in zip(labeler.labels, logits, strict=True):
        assert torch.equal(labels, one.argmax(1))
