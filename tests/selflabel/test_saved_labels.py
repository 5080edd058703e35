"""Labels on the disk: they come back, others read them, and damage is told."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from labelers import HEADS, N, batches, make_inputs, make_labeler, make_model

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.selflabel import OptimalTransport, SelfLabeler, load_labels, save_labels
from otlabel.sources import load_array


def saved(path: Path) -> SelfLabeler:
    labeler = make_labeler(data="flowers", seed=4, labeling=OptimalTransport(abstain=0.1))
    labeler.update(make_model(), batches(make_inputs()))
    labeler.save_labels(path)
    return labeler


def test_labels_come_back_and_are_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    labeler = saved(path)
    found = load_labels(path)
    np.testing.assert_array_equal(found.labels, labeler.labels)
    assert (found.n_classes, found.data, found.seed) == (HEADS, "flowers", 4)
    assert found.records == labeler.history
    for head in range(len(HEADS)):
        np.testing.assert_array_equal(load_array(f"{path}::/heads/{head}/labels"), labeler.labels[head])
    other = make_labeler(data="flowers")
    other.load_labels(path)
    assert torch.equal(other.labels, labeler.labels)
    make_labeler().load_labels(path)
    for wrong in (make_labeler(data="birds"), SelfLabeler(91, HEADS), SelfLabeler(N, [3, 5, 5])):
        before = wrong.labels.clone()
        with pytest.raises(FingerprintError, match="holds labels of other data"):
            wrong.load_labels(path)
        assert torch.equal(wrong.labels, before)
    with pytest.raises(ValueError, match="does not end in"):
        labeler.save_labels(tmp_path / "labels.npy")
    with pytest.raises(FileNotFoundError):
        load_labels(tmp_path / "nothing.h5")


def test_damaged_labels_are_told(tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    saved(path)
    content = path.read_bytes()
    with h5py.File(path) as handle:
        chunk = handle["heads/1/labels"].id.get_chunk_info(0)
    for place in (*range(chunk.byte_offset, chunk.byte_offset + chunk.size, 9), 0, 3):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"damaged in chunk 0|file signature not found"):
            load_labels(path)
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError):
            load_labels(path)


def _change(handle: h5py.File, what: str) -> None:
    labels = handle["heads/0/labels"][:]
    match what:
        case "kind":
            handle.attrs["format"] = "otlabel.labels"
        case "version":
            handle.attrs["format_version"] = 2
        case "unfinished":
            handle.attrs["complete"] = False
        case "soft link":
            del handle["heads/0/labels"]
            handle["heads/0/labels"] = h5py.SoftLink("/heads/0/counts")
        case "external link":
            del handle["heads/0"]
            handle["heads/0"] = h5py.ExternalLink("other.h5", "/heads/0")
        case "range":
            labels[0] = 100
            handle["heads/0/labels"][:] = labels
        case "counts":
            handle["heads/0/counts"][0] += 1
        case "length":
            del handle["heads/0/labels"]
            handle["heads/0/labels"] = labels[:-1]
            handle["heads/0/counts"][:] = np.bincount(labels[:-1][labels[:-1] >= 0])
        case "classes":
            handle.attrs["n_classes"] = "[1000000000000, 5, 4]"
        case "no heads":
            handle.attrs["n_classes"] = "[]"
        case "text":
            handle.attrs["n_classes"] = "three"
        case "records":
            handle.attrs["records"] = "7"


@pytest.mark.parametrize(
    "what",
    ["kind", "version", "unfinished", "soft link", "external link", "range", "counts", "length", "classes", "no heads",
     "text", "records"],
)  # fmt: skip
def test_files_that_are_not_what_they_claim(what: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.h5"
    saved(path)
    (tmp_path / "other.h5").write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as handle:
        _change(handle, what)
    with pytest.raises(FileFormatError, match="no usable file of labels"):
        load_labels(path)


def test_save_labels_of_any_width(tmp_path: Path) -> None:
    labels = np.stack([np.arange(300) - 1, np.arange(300) % 2])
    save_labels(tmp_path / "labels.hdf5", labels, [40_000, 2])
    found = load_labels(tmp_path / "labels.hdf5")
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.data, found.seed, found.records) == (None, 0, [])
    with h5py.File(tmp_path / "labels.hdf5") as handle:
        assert [handle[f"heads/{head}/labels"].dtype for head in range(2)] == [np.int32, np.int8]
