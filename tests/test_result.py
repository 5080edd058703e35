"""Assignment: what it holds, what it predicts, and how it is kept on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import FLOAT64_EPS, entropic_plan, value_of
from problems import clusters, dead_class, normal

import otlabel
from otlabel import Assignment, Status, certify, lp_assign, sinkhorn_assign
from otlabel.errors import FileFormatError

SCALARS = ("value", "bound", "gap", "epsilon", "marginal_error", "status", "n_sweeps", "seconds")
ARRAYS = ("labels", "counts", "class_mass", "potentials", "plan_potentials")


@pytest.fixture
def scores() -> np.ndarray:
    return clusters(np.random.default_rng(0), 400, 6)


@pytest.fixture
def result(scores: np.ndarray) -> Assignment:
    return sinkhorn_assign(scores, class_mass=[100, 100, 100, 50, 50, 0])


def test_types_of_numpy(result: Assignment) -> None:
    for name in ARRAYS:
        assert type(getattr(result, name)) is np.ndarray, name
    assert result.labels.dtype == result.counts.dtype == np.int64
    assert result.labels.shape == (400,)
    assert result.counts.shape == result.class_mass.shape == result.potentials.shape == (6,)
    assert result.class_mass.dtype == result.potentials.dtype == np.float64
    assert isinstance(result.status, Status)
    for name in SCALARS:
        if name != "status":
            assert type(getattr(result, name)) in (int, float), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_in_torch_out(scores: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(scores).to(dtype)
    result = sinkhorn_assign(tensor)
    for name in ARRAYS:
        assert isinstance(getattr(result, name), torch.Tensor), name
    assert result.labels.dtype == result.counts.dtype == torch.int64
    same = sinkhorn_assign(tensor.double().numpy())
    assert result.value == pytest.approx(same.value, abs=1e-12)
    for method in ("predict", "plan", "soft_labels"):
        assert isinstance(getattr(result, method)(tensor), torch.Tensor)
        assert isinstance(getattr(result, method)(tensor.double().numpy()), np.ndarray)
    assert result.predict(tensor).dtype == torch.int64


def test_half_precision_tensor_and_array_agree(scores: np.ndarray) -> None:
    half = scores.astype(np.float16)
    array, tensor = sinkhorn_assign(half), sinkhorn_assign(torch.from_numpy(half))
    np.testing.assert_array_equal(array.labels, tensor.labels.numpy())
    np.testing.assert_array_equal(array.potentials, tensor.potentials.numpy())


def test_result_does_not_hold_or_share_the_scores(scores: np.ndarray) -> None:
    result = sinkhorn_assign(scores)
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray):
            assert value.size < scores.size
            assert not np.shares_memory(value, scores)


def test_frozen(result: Assignment) -> None:
    for name in ("labels", "value", "status", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, name, None)


def test_history_tells_every_pass(result: Assignment) -> None:
    assert len(result.history) > 0
    assert all(isinstance(record, dict) for record in result.history)
    assert json.loads(json.dumps(list(result.history))) == list(result.history)


def test_predict_repeats_the_labels_but_for_ties(there) -> None:
    """A vertex of the transport polytope ties at most K - 1 samples between classes."""
    scores = clusters(np.random.default_rng(1), 3000, 12)
    result = there(sinkhorn_assign, scores)
    predicted = there(result.predict, scores)
    different = predicted != result.labels
    assert different.sum() <= 11
    u = scores + result.potentials
    rows = np.flatnonzero(different)
    room = 64 * FLOAT64_EPS * np.abs(u).max()
    np.testing.assert_allclose(u[rows, predicted[rows]], u[rows, result.labels[rows]], rtol=0, atol=room)


def test_predict_new_data_is_the_best_class_of_scores_plus_potentials(there) -> None:
    rng = np.random.default_rng(2)
    result = there(sinkhorn_assign, clusters(rng, 500, 7))
    fresh = clusters(rng, 900, 7)
    np.testing.assert_array_equal(there(result.predict, fresh), (fresh + result.potentials).argmax(1))
    np.testing.assert_array_equal(there(result.predict, fresh[:1]), (fresh[:1] + result.potentials).argmax(1))


def test_predict_gives_nothing_to_a_class_without_mass(scores: np.ndarray, result: Assignment) -> None:
    assert not (result.predict(scores + 100.0 * (np.arange(6) == 5)) == 5).any()


def test_balance_carries_over_to_data_alike() -> None:
    """Sizes on fresh samples of the same distribution come within sampling error of equal."""
    rng = np.random.default_rng(3)
    result = sinkhorn_assign(clusters(rng, 20_000, 5))
    shares = np.bincount(result.predict(clusters(rng, 20_000, 5)), minlength=5) / 20_000
    assert np.abs(shares - 0.2).max() <= 6 * np.sqrt(0.2 * 0.8 / 20_000 * 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_plan_and_soft_labels_are_the_softmax(scores: np.ndarray, dtype: type, there) -> None:
    stored = scores.astype(dtype)
    result = there(sinkhorn_assign, stored)
    plan, soft = there(result.plan, stored), there(result.soft_labels, stored)
    assert plan.sum() == pytest.approx(1.0, abs=1e-5 if dtype is not np.float64 else 1e-12)
    np.testing.assert_allclose(soft.sum(1), 1.0, rtol=0, atol=1e-5 if dtype is not np.float64 else 1e-12)
    exact = entropic_plan(stored, result.plan_potentials, result.epsilon)
    np.testing.assert_allclose(400 * plan, 400 * exact, rtol=0, atol=1e-5 if dtype is not np.float64 else 1e-12)
    np.testing.assert_allclose(soft, 400 * plan, rtol=1e-6)


def test_value_is_the_mean_score_of_the_labels(scores: np.ndarray, result: Assignment) -> None:
    assert result.value == pytest.approx(value_of(scores, result.labels), abs=1e-12)


@pytest.mark.parametrize("suffix", [".npz", ".assignment", ""])
def test_save_and_load(scores: np.ndarray, result: Assignment, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"result{suffix}"
    result.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "exactly the file asked for, nothing beside it"
    loaded = Assignment.load(path)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name), strict=True)
    for name in SCALARS:
        assert getattr(loaded, name) == getattr(result, name), name
    assert list(loaded.history) == list(result.history)
    assert loaded.summary() == result.summary()
    np.testing.assert_array_equal(loaded.predict(scores), result.predict(scores))


def test_save_and_load_of_tensors_and_text_paths(scores: np.ndarray, tmp_path: Path) -> None:
    result = sinkhorn_assign(torch.from_numpy(scores))
    result.save(str(tmp_path / "result.npz"))
    loaded = Assignment.load(str(tmp_path / "result.npz"))
    np.testing.assert_array_equal(np.asarray(loaded.labels), result.labels.numpy())
    np.testing.assert_array_equal(np.asarray(loaded.potentials), result.potentials.numpy())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("value", math.nan), ("bound", "3"), ("epsilon", True), ("seconds", None), ("gap", [0]), ("n_sweeps", math.inf),
        ("n_samples", 2.5), ("bytes_read", "3"), ("notes", {"a": 1}), ("notes", [3]), ("history", [3]), ("status", 1),
    ],
)  # fmt: skip
def test_header_of_other_kinds_is_refused(result: Assignment, tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "result.npz"
    result.save(path)
    arrays = dict(np.load(path))
    header = json.loads(str(arrays["header"])) | {name: value}
    np.savez(path, **arrays | {"header": np.array(json.dumps(header))})
    with pytest.raises(FileFormatError, match=r"result\.npz is not a saved Assignment") as caught:
        Assignment.load(path)
    assert str(caught.value).isprintable()


def test_loaded_result_starts_another_solve(scores: np.ndarray, result: Assignment, tmp_path: Path) -> None:
    result.save(tmp_path / "result.npz")
    again = sinkhorn_assign(scores, class_mass=result.counts, init=Assignment.load(tmp_path / "result.npz"))
    np.testing.assert_array_equal(again.labels, result.labels)


def test_saving_replaces_the_old_file_as_a_whole(scores: np.ndarray, result: Assignment, tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    sinkhorn_assign(scores[:50]).save(path)
    result.save(path)
    np.testing.assert_array_equal(Assignment.load(path).labels, result.labels)


def test_failed_save_leaves_the_old_file(
    scores: np.ndarray, result: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.npz"
    result.save(path)
    before = path.read_bytes()

    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        sinkhorn_assign(scores).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_nothing_is_pickled(result: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    result.save(tmp_path / "result.npz")
    np.testing.assert_array_equal(Assignment.load(tmp_path / "result.npz").labels, result.labels)


def test_a_saved_file_holds_its_header_and_its_arrays_alone(result: Assignment, tmp_path: Path) -> None:
    """Whatever NumPy wrote it: an argument that np.savez does not know becomes an array of the file."""
    result.save(tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz", allow_pickle=False) as archive:
        assert archive.files == ["header", *otlabel.result.ARRAYS]


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_pickled_array_in_a_saved_file_is_refused(result: Assignment, tmp_path: Path) -> None:
    result.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz", allow_pickle=False) as archive:
        entries = {name: archive[name] for name in archive.files}
    for name in entries:
        bomb = np.array([Bomb(tmp_path / "exploded")], dtype=object)
        np.savez(tmp_path / "bad.npz", **{**entries, name: bomb})
        with pytest.raises(FileFormatError, match=r"bad\.npz is not .* pickled objects, which are never loaded$"):
            Assignment.load(tmp_path / "bad.npz")
    assert not (tmp_path / "exploded").exists()


def foreign_files(folder: Path) -> list[Path]:
    """Files that are no saved Assignment, of many kinds."""
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.npz").write_text("labels: 1 2 3")
    (folder / "junk.npz").write_bytes(np.random.default_rng(0).bytes(300))
    (folder / "pickle.npz").write_bytes(pickle.dumps({"labels": [1, 2]}))
    np.save(folder / "array.npy", np.arange(5))
    np.savez(folder / "other.npz", labels=np.arange(5))
    with zipfile.ZipFile(folder / "zip.npz", "w") as archive:
        archive.writestr("labels.npy", "no array")
    return sorted(folder.iterdir())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    for path in foreign_files(tmp_path):
        with pytest.raises(FileFormatError, match=path.name) as caught:
            Assignment.load(path)
        assert "pickle" not in str(caught.value).replace(path.name, "")  # NumPy's advice is how to unpickle them


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_refused(result: Assignment, tmp_path: Path, share: float) -> None:
    path = tmp_path / "result.npz"
    result.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileFormatError, match=path.name):
        Assignment.load(path)


def test_flipped_bytes_are_refused_or_harmless(result: Assignment, tmp_path: Path) -> None:
    """One flipped byte anywhere: an error of ours, or the same arrays (padding and time stamps carry nothing)."""
    path = tmp_path / "result.npz"
    result.save(path)
    whole = path.read_bytes()
    refused = 0
    for position in np.random.default_rng(4).choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = Assignment.load(path)
        except FileFormatError:
            refused += 1
        else:
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
    assert refused > 100


def resaved(result: Assignment, path: Path, **changed: np.ndarray) -> Path:
    """The saved file with some of its arrays exchanged."""
    result.save(path)
    with np.load(path, allow_pickle=False) as archive:
        entries = {name: archive[name] for name in archive.files}
    assert set(changed) <= set(entries)
    np.savez(path, **{**entries, **changed})
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"potentials": np.zeros(5)},
        {"plan_potentials": np.zeros((6, 1))},
        {"labels": np.zeros((400, 2), np.int64)},
        {"labels": np.full(400, 99)},
        {"counts": np.zeros(7, np.int64)},
        {"potentials": np.array(["a"] * 6)},
    ],
    ids=lambda changed: f"{next(iter(changed))}{next(iter(changed.values())).shape}",
)
def test_arrays_that_do_not_belong_together_are_refused(result: Assignment, tmp_path: Path, changed) -> None:
    path = resaved(result, tmp_path / "mixed.npz", **changed)
    with pytest.raises(FileFormatError, match=r"mixed\.npz"):
        Assignment.load(path)


@pytest.mark.parametrize("name", ["potentials", "plan_potentials"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_potentials_that_are_no_numbers_are_refused_and_the_class_named(
    result: Assignment, tmp_path: Path, name: str, value: float
) -> None:
    spoiled = np.asarray(getattr(result, name)).copy()
    spoiled[4] = value
    path = resaved(result, tmp_path / "spoiled.npz", **{name: spoiled})
    told = rf"{name} is {value} for class 4 \(1 such classes\)"
    with pytest.raises(FileFormatError, match=rf"spoiled\.npz .*: {told}"):
        Assignment.load(path)
    scores = np.random.default_rng(0).normal(size=(12, 6))
    for call in (
        lambda: sinkhorn_assign(scores, init=spoiled),
        lambda: certify(scores, np.arange(12) % 6, potentials=spoiled),
    ):
        with pytest.raises(ValueError, match=rf"is {value} for class 4 \(1 such classes\)"):
            call()


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.update(threshold=np.nan),
        lambda header: header.update(plan_threshold=np.inf),
        lambda header: header.update(status="finished"),
        lambda header: header.update(format="other.Format"),
        lambda header: header.update(version=99),
        lambda header: header.pop("value"),
        lambda header: header.pop("history"),
        lambda header: header.update(history=7),
        lambda header: header.update(surplus=1),
        lambda header: header.update(value="high"),
        lambda header: header.update(epsilon=None),
    ],
    ids=[
        "threshold",
        "plan threshold",
        "status",
        "format",
        "version",
        "no value",
        "no history",
        "history",
        "surplus",
        "value",
        "epsilon",
    ],
)
def test_headers_that_make_no_sense_are_refused(result: Assignment, tmp_path: Path, edit) -> None:
    result.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz", allow_pickle=False) as archive:
        header = json.loads(str(archive["header"]))
    edit(header)
    path = resaved(result, tmp_path / "edited.npz", header=np.array(json.dumps(header)))
    with pytest.raises(FileFormatError, match=r"edited\.npz"):
        Assignment.load(path)


@pytest.mark.parametrize("text", ["", "7", "[]", "null", "{", '"labels"'])
def test_headers_that_are_no_table_are_refused(result: Assignment, tmp_path: Path, text: str) -> None:
    path = resaved(result, tmp_path / "edited.npz", header=np.array(text))
    with pytest.raises(FileFormatError, match=r"edited\.npz"):
        Assignment.load(path)


def test_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Assignment.load(tmp_path / "nothing.npz")


def test_summary_fits_a_terminal_and_shows_the_figures(result: Assignment) -> None:
    text = result.summary()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "400" in text
    assert f"{result.value:.4g}"[:5] in text
    assert "converged" in text.lower()


def test_summary_of_large_numbers_fits_too(result: Assignment) -> None:
    large = dataclasses.replace(
        result, value=-123456.7890123456, bound=-123456.7890123455, n_sweeps=1000, seconds=123456.789,
        counts=np.full(20_000, 1_234_567), status=Status.MAX_SWEEPS, marginal_error=1.23456e-5,
    )  # fmt: skip
    assert max(len(line) for line in large.summary().splitlines()) <= 80
    assert Status.MAX_SWEEPS.remedy.split()[0] in large.summary()


def test_summary_notes_a_class_that_nobody_wants() -> None:
    scores = dead_class(np.random.default_rng(5), 300, 6)
    plain = sinkhorn_assign(normal(np.random.default_rng(5), 300, 6))
    result = sinkhorn_assign(scores)
    assert result.counts.tolist() == [50] * 6
    assert "1 class" in result.summary()
    assert len(result.summary().splitlines()) > len(plain.summary().splitlines())
    assert max(len(line) for line in result.summary().splitlines()) <= 80


def test_summary_of_the_linear_program(scores: np.ndarray) -> None:
    text = lp_assign(scores).summary()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "nan" not in text.lower()


def test_repr_is_one_short_line(result: Assignment) -> None:
    assert "\n" not in repr(result)
    assert len(repr(result)) <= 160
    assert "400" in repr(result)


def test_every_status_says_what_to_do() -> None:
    for status in Status:
        assert len(status.remedy) > 5
        assert status.remedy.endswith(".")


def test_progress_callable_hears_of_every_pass(scores: np.ndarray) -> None:
    heard: list[dict] = []
    result = sinkhorn_assign(scores, progress=heard.append)
    told = [record.pop("potentials", None) for record in heard]
    assert heard == list(result.history)
    last = next(potentials for potentials in reversed(told) if potentials is not None)
    assert last.shape == (scores.shape[1],)
    assert sinkhorn_assign(scores, init=last).n_sweeps < result.n_sweeps


def test_progress_bar_writes_to_stderr_only(scores: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    sinkhorn_assign(scores, progress=True)
    assert capsys.readouterr().out == ""
    sinkhorn_assign(scores)
    assert capsys.readouterr() == ("", "")


PEAK = "from otlabel.solver.monitor import Monitor; print(Monitor(1).peak_memory)"
LARGE = f"""
import subprocess, sys
held = b"." * 600_000_000
subprocess.run([sys.executable, "-c", {PEAK!r}], check=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it without the parent's")
def test_peak_memory_is_without_that_of_the_parent() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(otlabel.__file__).parents[1])}
    alone, child = (
        int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
        for code in (PEAK, LARGE)
    )
    assert 0.9 * alone < child < min(1.1 * alone, 600_000_000)
