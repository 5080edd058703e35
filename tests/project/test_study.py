"""The self-labelling study: which runs there are, what they are known by, and which settings are chosen."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def study() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "selflabel" / "study.py"
    spec = importlib.util.spec_from_file_location("selflabel_study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(study, "LABELS", tmp_path)
    arguments = {"data": "cifar10", "only": "labels,transfer", "samples": 100, "epochs": 8, "seeds": 2, "choose": True}
    return study.Study(Namespace(**arguments, small=True, jobs=1))


def test_every_method_gets_the_same_effort(study: Any, asked: Any) -> None:
    counts: dict[tuple[str, int], int] = {}
    for one in asked.to_choose().values():
        name = (one["labels"]["method"], one["model"]["heads"][0])
        counts[name] = counts.get(name, 0) + 1
        assert one["train"]["seed"] == study.CHOOSING_SEED
    assert set(counts.values()) == {4}
    assert len(counts) == 9  # five methods with ten classes, four with more
    assert asked.to_measure(False) == {}  # all wait for their settings


def test_runs_have_the_settings_of_the_highest_quality_and_labels_are_there_before_others_train_on_them(
    study: Any, asked: Any
) -> None:
    for key, one in asked.to_choose().items():
        quality = float(one["train"]["lr"] == 0.15)
        asked.records[key] = {"key": key, "settings": one, "result": {"quality": quality, "nmi": 0.0}, "seconds": 1.0}
    first, second = asked.to_measure(False), asked.to_measure(True)
    assert {one["train"]["lr"] for one in (first | second).values()} == {0.15}
    assert {one["train"]["seed"] for one in first.values()} == {0, 1}
    assert len(first) == 2 * 9  # "own labels" is the run of Sinkhorn labels with ten classes
    assert {one["labels_of"] for one in second.values()} <= first.keys()
    for key, one in first.items():  # labels are no records: they may be gone
        asked.records[key] = {"key": key, "settings": one, "result": {}, "seconds": 1.0}
    assert asked.to_measure(False).keys() == {one["labels_of"] for one in second.values()}


def test_runs_of_before_are_found_and_differ_in_nothing_that_they_had(study: Any) -> None:
    for name, *_ in study.MENDED:
        pairs = study._before(name)
        assert [old["settings"]["train"]["seed"] for old, _ in pairs] == [0, 1, 2], name
        for old, now in pairs:
            for section, values in old["settings"].items():
                if isinstance(values, dict):
                    for key, value in values.items():
                        found = now[section][key]
                        assert (list(found) if isinstance(found, tuple) else found) == value, (name, section, key)


@pytest.mark.parametrize(
    ("differences", "told"),
    [([0.1, 0.11, 0.09], "ahead"), ([-0.1, -0.11, -0.09], "behind"), ([0.1, -0.1, 0.05], "no difference")],
)
def test_sentences_say_no_more_than_the_seeds_allow(study: Any, differences: list[float], told: str) -> None:
    assert study._compared(differences).startswith(told)
