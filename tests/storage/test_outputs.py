"""Files of labels: what they hold, which samples they are of, and what commands make of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import names

import otlabel
from otlabel import Assignment, sinkhorn_assign
from otlabel.errors import FingerprintError
from otlabel.sources import ArraySource, Opened, open_scores
from otlabel.storage.label_files import Receipt, StoredLabels, fingerprint, read_labels, stored_bytes, write_labels

N_SAMPLES, N_CLASSES = 60, 5


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(N_SAMPLES, N_CLASSES))


@pytest.fixture
def file(tmp_path: Path, scores: np.ndarray) -> Path:
    np.save(tmp_path / "scores.npy", scores)
    return tmp_path / "scores.npy"


# ---- what is written ----


@pytest.mark.parametrize("ending", ["h5", "hdf5", "H5"])
def test_hdf5_holds_all_that_was_found(run, file, scores, ending) -> None:
    output = file.with_name(f"labels.{ending}")
    assert run("assign", file, "-o", output, "--epsilon", ".1", "--seed", "7").code == 0
    expected = sinkhorn_assign(scores, epsilon=0.1, seed=7)
    with h5py.File(output, "r") as handle:
        assert set(handle) == {"labels", "counts", "potentials"}
        assert handle["labels"].dtype == np.int8
        assert handle["labels"].fletcher32
        np.testing.assert_array_equal(handle["labels"][:], expected.labels)
        np.testing.assert_array_equal(handle["counts"][:], expected.counts)
        np.testing.assert_array_equal(handle["potentials"][:], expected.potentials)
        told = {name: one.decode() if isinstance(one, bytes) else one for name, one in handle.attrs.items()}
    assert (told["format"], told["format_version"], bool(told["complete"])) == ("otlabel.labels", 1, True)
    assert (told["value"], told["bound"], told["gap"]) == (expected.value, expected.bound, expected.gap)
    assert (told["seed"], told["status"]) == (7, "converged")
    assert json.loads(told["parameters"])["epsilon"] == 0.1
    assert json.loads(told["versions"])["otlabel"] == otlabel.__version__
    assert json.loads(told["input"])["shape"] == [N_SAMPLES, N_CLASSES]
    assert names(file.parent) == sorted([output.name, "scores.npy"])


@pytest.mark.parametrize(("n_classes", "kind"), [(128, np.int8), (129, np.int16), (32768, np.int16), (32769, np.int32)])
def test_labels_take_the_smallest_type_that_holds_them(tmp_path, n_classes, kind) -> None:
    labels = np.array([n_classes - 1, 0, n_classes - 1])
    counts = np.bincount(labels, minlength=n_classes)
    write_labels(tmp_path / "labels.h5", StoredLabels(labels, counts, np.zeros(n_classes)))
    with h5py.File(tmp_path / "labels.h5", "r") as handle:
        assert handle["labels"].dtype == kind
    read = read_labels(tmp_path / "labels.h5").labels
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_several_labels_a_sample(tmp_path, name) -> None:
    labels = np.stack([np.arange(300_000) % 7, np.arange(300_000) % 7 + 7], 1)
    path = tmp_path / name
    write_labels(path, StoredLabels(labels, np.bincount(labels.ravel()), np.zeros(14)))
    stored = read_labels(path)
    np.testing.assert_array_equal(stored.labels, labels)
    np.testing.assert_array_equal(stored.counts, np.bincount(labels.ravel()))
    assert stored.labels_per_sample == 2
    assert path.stat().st_size <= stored_bytes(path, labels.size, 14)


@pytest.mark.parametrize(("n_rows", "n_classes"), [(1, 1), (10, 3), (3_000_000, 300)])
@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_room_that_is_asked_for_is_enough_and_not_far_more(tmp_path, name, n_rows, n_classes) -> None:
    labels = np.arange(n_rows) % n_classes
    receipt = Receipt(input={"source": "a" * 500}, versions={"python": "3"}, value=0.0)
    write_labels(
        tmp_path / name, StoredLabels(labels, np.bincount(labels, minlength=n_classes), np.zeros(n_classes), receipt)
    )
    taken = (tmp_path / name).stat().st_size
    assert taken <= stored_bytes(tmp_path / name, n_rows, n_classes) <= 1.001 * taken + 20_000


def test_receipt_of_npy_lies_beside_it_only_on_request(run, file) -> None:
    output = file.with_name("labels.npy")
    assert run("assign", file, "-o", output).code == 0
    assert names(file.parent) == ["labels.npy", "scores.npy"]
    assert read_labels(output).receipt is None
    assert run("assign", file, "-o", output, "--receipt", "--force").code == 0
    assert names(file.parent) == ["labels.npy", "labels.npy.json", "scores.npy"]
    receipt = read_labels(output).receipt
    assert receipt is not None
    assert receipt.input["source"] == str(file)
    assert receipt.gap == pytest.approx(0, abs=1e-12)
    ran = run("assign", file, "-o", file.with_name("labels.npy"), "--receipt")
    assert (ran.code, ran.out) == (2, "")


def test_receipt_of_other_labels_is_not_taken_for_theirs(run, file) -> None:
    output = file.with_name("labels.npy")
    assert run("assign", file, "-o", output, "--receipt").code == 0
    assert run("assign", file, "-o", output, "--force", "--class-mass", "20,10,10,10,10").code == 0
    assert read_labels(output).receipt is None


def test_existing_receipt_survives_unless_forced(run, file) -> None:
    output = file.with_name("labels.npy")
    file.with_name("labels.npy.json").write_text("precious")
    ran = run("assign", file, "-o", output, "--receipt")
    assert (ran.code, ran.out) == (2, "")
    assert "labels.npy.json exists already" in ran.err
    assert names(file.parent) == ["labels.npy.json", "scores.npy"]


def test_existing_hdf5_survives_unless_forced(run, file) -> None:
    output = file.with_name("labels.h5")
    output.write_bytes(b"precious")
    assert run("assign", file, "-o", output).code == 2
    assert output.read_bytes() == b"precious"
    assert run("assign", file, "-o", output, "--force").code == 0
    assert read_labels(output).counts.tolist() == [12] * 5


def test_fingerprints_tell_inputs_apart(tmp_path, scores) -> None:
    def of(array: Any, name: str = "a.npy") -> dict[str, Any]:
        np.save(tmp_path / name, np.asarray(array))
        os.utime(tmp_path / name, ns=(0, 0))
        return fingerprint(open_scores(array), str(tmp_path / name))

    changed = scores.copy()
    changed[17, 3] += 1e-9
    assert of(scores) == of(scores.copy())
    assert of(scores)["sha256"] == of(np.asfortranarray(scores))["sha256"]
    assert of(scores)["sha256"] != of(changed)["sha256"]
    assert of(scores)["dtype"] != of(scores.astype(np.float32))["dtype"]
    assert (of(scores)["bytes"], of(scores)["modified_ns"]) == (scores.nbytes + 128, 0)
    assert fingerprint(open_scores(torch.from_numpy(scores)), "")["sha256"] == of(scores)["sha256"]


def test_fingerprint_reads_little(scores) -> None:
    class Watched(ArraySource):
        shape = 1_000_000, N_CLASSES
        rows_read = 0

        def __init__(self) -> None:
            self.dtype = "float64"

        def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
            self.rows_read += sum(stop - start for start, stop in spans)
            return iter([scores[:1]])

    watched = Watched()
    told = fingerprint(Opened.of(watched), "memory")
    assert watched.rows_read == told["rows_hashed"] == 64


# ---- predict and certify ----


@pytest.mark.parametrize("saved", ["result.npz", "labels.h5"])
@pytest.mark.parametrize("output", ["new.npy", "new.h5"])
def test_predict_applies_saved_potentials(run, file, scores, saved, output) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels, "--potentials", file.with_name("result.npz")).code == 0
    new = np.random.default_rng(8).normal(size=(33, N_CLASSES))
    np.save(file.with_name("new-scores.npy"), new)
    ran = run(
        "predict", file.with_name("new-scores.npy"), "--potentials", file.with_name(saved), "-o", file.with_name(output)
    )
    assert (ran.code, ran.err) == (0, "")
    expected = Assignment.load(file.with_name("result.npz")).predict(new)
    np.testing.assert_array_equal(read_labels(file.with_name(output)).labels, expected)
    np.testing.assert_array_equal(expected, (new + read_labels(labels).potentials).argmax(1))


def test_predict_refuses_other_classes_and_writes_nothing(run, file) -> None:
    assert run("assign", file, "-o", file.with_name("labels.h5")).code == 0
    np.save(file.with_name("narrow.npy"), np.zeros((4, 3)))
    words = ("--potentials", file.with_name("labels.h5"), "-o", file.with_name("new.npy"))
    ran = run("predict", file.with_name("narrow.npy"), *words)
    assert (ran.code, ran.out) == (2, "")
    assert "3 columns" in ran.err
    assert not file.with_name("new.npy").exists()


def test_certify_takes_hdf5_labels_and_potentials(run, file) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels).code == 0
    told = json.loads(run("certify", file, labels, "--potentials", labels, "--json").out)
    assert abs(told["gap"]) <= 1e-12
    assert told == json.loads(run("certify", file, f"{labels}::/labels", "--potentials", labels, "--json").out)


def test_predict_json(run, file) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels).code == 0
    ran = run("predict", file, "--potentials", labels, "-o", file.with_name("new.npy"), "--json")
    assert json.loads(ran.out)["counts"] == [12] * 5


# ---- the number of labels is known before they are read ----


MANY = 1_000_000_000  # in files with a hole in place of them


def _many_labels(path: Path, form: str) -> str:
    """Labels of a thousand million samples, of which the file has the size."""
    if form == "npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|i1", "fortran_order": False, "shape": (MANY,)})
            file.truncate(file.tell() + MANY)
        return str(path)
    name = {"labels": "labels", "heads": "heads/0/labels", "foreign": "deep/y"}[form]
    with h5py.File(path, "w") as handle:
        handle.create_dataset(name, (MANY,), np.int8)[-1] = 1
        if form != "foreign":
            handle.attrs.update(format=f"otlabel.{form}", format_version=1, complete=True, n_classes="[3]", seed=0)
    return f"{path}::/{name}" if form == "foreign" else str(path)


@pytest.mark.parametrize(
    ("command", "form"),
    [("certify", "npy"), ("certify", "labels"), ("certify", "foreign"), ("report", "npy"), ("report", "labels"),
     ("report", "heads"), ("report", "foreign"), ("truth", "npy")],
)  # fmt: skip
def test_labels_of_other_samples_are_not_read(run, file, command: str, form: str) -> None:
    ending = ".npy" if form == "npy" else ".h5"
    many = _many_labels(file.with_name(f"many{ending}"), form)
    page = file.with_name("page.html")
    few = file.with_name("few.npy")
    np.save(few, np.arange(N_SAMPLES) % N_CLASSES)
    begun = time.monotonic()
    ran = {
        "certify": lambda: run("certify", file, many),
        "report": lambda: run("report", many, "--scores", file, "-o", page),
        "truth": lambda: run("report", few, "--scores", file, "--truth", many, "-o", page),
    }[command]()
    assert ran.code == 2
    assert f"holds {MANY:,} labels, but there are {N_SAMPLES:,} samples" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert time.monotonic() - begun < 20  # a dozen times what it takes


def test_parts_of_labels_of_other_samples_are_not_read(run, file) -> None:
    folder = file.with_name("parts")
    folder.mkdir()
    for number in range(2):
        _many_labels(folder / f"part-0000{number}-of-00002.h5", "labels")
    ran = run("certify", file, folder)
    assert ran.code == 2
    assert f"parts holds {2 * MANY:,} labels, but there are {N_SAMPLES:,} samples" in ran.err


def test_a_data_set_of_other_samples_is_not_read(file) -> None:
    told = rf"labels must be {N_SAMPLES} integers, .* got shape \({MANY},\)"
    with h5py.File(_many_labels(file.with_name("many.h5"), "heads")) as handle, pytest.raises(ValueError, match=told):
        otlabel.certify(np.load(file), handle["heads/0/labels"])
    labeler = otlabel.SelfLabeler(n_samples=N_SAMPLES, n_classes=[3], labeling=otlabel.Argmax())
    with pytest.raises(FingerprintError, match=rf"are \({MANY}, \[3\], None\), here \({N_SAMPLES}, \[3\], None\)"):
        labeler.load_labels(file.with_name("many.h5"))
