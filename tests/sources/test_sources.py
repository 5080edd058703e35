"""Files and shards as scores: labels, potentials and proof are those of the array in memory, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from kept_as import KEPT, WAYS, all_rows, assert_same, hdf5_file, npy, pattern, storable
from oracles import assert_proven
from problems import KINDS, clusters, draw, normal, ties

from otlabel import certify, lp_assign, sinkhorn_assign
from otlabel.commands.main import main
from otlabel.doctor import diagnose
from otlabel.errors import InvalidScoresError
from otlabel.sources import files, open_scores
from otlabel.sources.parts import Parts
from otlabel.storage.label_files import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


# ---- the same answer from everywhere ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_pieces")
def test_every_kind_of_problem_from_files(tmp_path, kind: str) -> None:
    """Each from those that are kept, and from three of the other kinds, which take turns."""
    scores, class_mass, counts = draw(kind, 11)
    array = storable(scores)
    expected = sinkhorn_assign(array, class_mass=class_mass)
    assert_proven(expected, array, counts)
    turn = list(KINDS).index(kind) % 4
    for name in (*KEPT, *[name for name in WAYS if name not in KEPT][turn::4]):
        source = WAYS[name](tmp_path / name.replace(" ", "-"), array)
        for memory_limit in (0, None) if name in KEPT else (0,):
            result = sinkhorn_assign(source, class_mass=class_mass, memory_limit=memory_limit)
            try:
                assert_same(result, expected)
            except AssertionError as error:
                error.add_note(f"{name}, memory_limit={memory_limit}")
                raise


TYPES = ["float16", "float32", "float64", "longdouble", "int8", "uint8", "int16", "uint16", "int32", "uint64", "bool"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("small_pieces")
def test_every_type_is_read_as_it_is_in_memory(tmp_path, dtype: str) -> None:
    numbers = 40 * np.abs(normal(np.random.default_rng(4), 83, 5))
    array = (numbers > 30) if dtype == "bool" else (numbers * 1e17 if dtype == "uint64" else numbers).astype(dtype)
    expected = open_scores(array)
    for number, (name, store) in enumerate(WAYS.items()):
        opened = open_scores(store(tmp_path / f"{number}", array))
        assert (opened.shape, opened.dtype) == (expected.shape, expected.dtype), name
        np.testing.assert_array_equal(all_rows(opened), all_rows(expected), err_msg=name, strict=True)


def test_named_whole_numbers_are_numbers(tmp_path) -> None:
    array = np.arange(12).reshape(4, 3) % 3
    source = hdf5_file(tmp_path / "scores", array, dtype=h5py.enum_dtype({"A": 0, "B": 1, "C": 2}, basetype="i4"))
    np.testing.assert_array_equal(all_rows(open_scores(source)), array)


@pytest.mark.parametrize("way", ["npy", "gzip", "list"])
@pytest.mark.parametrize("make", [clusters, ties])
def test_more_rows_than_a_block_and_a_sample(tmp_path, monkeypatch, make, way: str) -> None:
    """Real block sizes, and rows beyond the coarse solve's sample."""
    monkeypatch.setattr(files, "BATCH_BYTES", 1 << 18)
    array = make(np.random.default_rng(3), 30_011, 20).astype(np.float32)
    source = WAYS[way](tmp_path / "scores", array)
    expected = sinkhorn_assign(array)
    assert_same(sinkhorn_assign(source, memory_limit=0), expected)
    assert_same(sinkhorn_assign(source), expected)


@pytest.mark.parametrize("way", ["npy", "chunked", "pattern"])
@pytest.mark.parametrize("memory_limit", [0, None])
@pytest.mark.usefixtures("small_pieces")
def test_thread_count_does_not_change_a_bit(tmp_path, num_threads, way: str, memory_limit: int | None) -> None:
    array = clusters(np.random.default_rng(7), 900, 6).astype(np.float32)
    source, found = WAYS[way](tmp_path / "scores", array), []
    for count in (1, 2, 5):
        num_threads(count)
        found.append(sinkhorn_assign(source, memory_limit=memory_limit))
    for result in found[1:]:
        assert_same(result, found[0])


@pytest.mark.parametrize("scores_at", ["memory", "file"])
def test_argmax_labels_and_plain_iterations_from_files(tmp_path, scores_at: str) -> None:
    array = clusters(np.random.default_rng(1), 300, 5)
    settings: dict[str, Any] = {"rounding": "argmax", "method": "sinkhorn", "tol": 1e-4}
    source = array if scores_at == "memory" else npy(tmp_path / "scores", array)
    result = sinkhorn_assign(source, memory_limit=0, **settings)
    np.testing.assert_array_equal(result.labels, (array + result.plan_potentials).argmax(1))


# ---- everything else takes them too ----


@pytest.mark.parametrize("way", ["npy", "chunked", "h5py.Dataset", "list", "pattern"])
def test_every_function_takes_files(tmp_path, way: str) -> None:
    array = clusters(np.random.default_rng(5), 240, 5)
    source, result = WAYS[way](tmp_path / "scores", array), sinkhorn_assign(array)
    assert_same(sinkhorn_assign(source), result)
    assert certify(source, result.labels, potentials=result.potentials).gap == result.gap
    assert certify(source, result.labels).value == result.value
    for method in (result.predict, result.plan, result.soft_labels):
        np.testing.assert_array_equal(method(source), method(array), strict=True)
    np.testing.assert_array_equal(lp_assign(source).labels, lp_assign(array).labels)
    assert diagnose(source) == diagnose(array)


def test_columns_are_counted_before_anything_is_read(tmp_path) -> None:
    result = sinkhorn_assign(normal(np.random.default_rng(0), 30, 4))
    with pytest.raises(InvalidScoresError, match=r"5.*4"):
        result.predict(npy(tmp_path / "scores", np.full((30, 5), np.nan)))


@pytest.mark.parametrize("way", ["npy", "chunked", "pattern"])
def test_every_command_takes_files(tmp_path, capsys, way: str) -> None:
    array = clusters(np.random.default_rng(5), 240, 5)
    result = sinkhorn_assign(array)
    text, labels, new = WAYS[way](tmp_path / "scores", array), tmp_path / "labels.h5", tmp_path / "new.npy"

    def told(*words: Any) -> dict[str, Any]:
        assert main([*map(str, words), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    for limit in ("0", "500MB", "1e3kB"):
        ran = told("assign", text, "-o", labels, "--memory-limit", limit, "--force")
        assert (ran["value"], ran["bound"], ran["n_sweeps"]) == (result.value, result.bound, result.n_sweeps)
    with h5py.File(labels) as handle:
        np.testing.assert_array_equal(handle["labels"], result.labels)
        assert json.loads(handle.attrs["input"]) == fingerprint(open_scores(text), text)
    assert told("certify", text, labels, "--potentials", labels)["gap"] == result.gap
    assert told("predict", text, "--potentials", labels, "-o", new)["n_samples"] == 240
    np.testing.assert_array_equal(np.load(new), result.predict(array))
    plan = told("plan", text, "--memory-limit", "0")
    assert (plan["n_rows"], plan["n_classes"], plan["cached"]) == (240, 5, False)
    assert told("doctor", text)["argmax_sizes"] == list(diagnose(array).argmax_sizes)


def test_fingerprint_of_shards(tmp_path) -> None:
    """The files of all parts together, and the rows of the whole: the same as of one file."""
    array = normal(np.random.default_rng(0), 100, 3)
    text = pattern(tmp_path / "scores", array)
    told = fingerprint(open_scores(text), text)
    found = list(tmp_path.glob("scores-part-*.h5"))
    assert (told["files"], told["bytes"]) == (len(found), sum(file.stat().st_size for file in found))
    assert told["modified_ns"] == max(file.stat().st_mtime_ns for file in found)
    assert told["shape"] == [100, 3]
    assert told["sha256"] == fingerprint(open_scores(array), "memory")["sha256"]
    assert told["sha256"] != fingerprint(open_scores(array[::-1]), "memory")["sha256"]


def test_parts_of_a_list_may_be_arrays_and_tensors(tmp_path) -> None:
    array = normal(np.random.default_rng(0), 50, 3)
    opened = open_scores([npy(tmp_path / "a", array[:20]), array[20:30], torch.from_numpy(array[30:])])
    assert isinstance(opened.source, Parts)
    np.testing.assert_array_equal(all_rows(opened), array)


def test_lists_that_are_no_matrix() -> None:
    with pytest.raises(InvalidScoresError, match="no matrix"):
        sinkhorn_assign([[1.0, 2.0], [3.0]])


def test_float8_is_read_as_the_numbers_it_stands_for() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 4))).to(torch.float8_e4m3fn)
    found, expected = sinkhorn_assign(scores), sinkhorn_assign(scores.float())
    assert torch.equal(found.labels, expected.labels)
    assert found.value == expected.value
