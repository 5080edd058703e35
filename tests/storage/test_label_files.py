"""Files of labels, receipts and texts that are none: refused by name."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from otlabel import report
from otlabel.errors import FileFormatError, OtlabelWarning
from otlabel.storage.label_files import Receipt, StoredLabels, read_labels, write_labels

# ---- what readers refuse ----


def _edit(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as handle:
            change(handle)

    return spoil


def _flip(path: Path) -> None:
    """One bit of the labels, which end in a run of one class."""
    data = bytearray(path.read_bytes())
    place = data.find(b"\x04" * 500)
    assert place > 0
    data[place + 100] ^= 1
    path.write_bytes(data)


def _replaced(name: str, value: Any) -> Callable[[Path], None]:
    def change(handle: h5py.File) -> None:
        del handle[name]
        handle[name] = value

    return _edit(change)


def _absurd(handle: h5py.File) -> None:
    del handle["labels"]
    handle.create_dataset("labels", (1 << 50,), np.int8, chunks=(1 << 20,))


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "no usable file"),
    "empty": (lambda path: os.truncate(path, 0), "no usable file"),
    "flipped bit": (_flip, "/labels is damaged in chunk 0"),
    "unfinished": (_edit(lambda handle: handle.attrs.update(complete=False)), "never finished"),
    "newer": (_edit(lambda handle: handle.attrs.update(format_version=2)), "version 1"),
    "foreign": (_edit(lambda handle: handle.attrs.pop("format")), "no otlabel.labels"),
    "missing": (_edit(lambda handle: handle.pop("counts")), "holds no '/counts'"),
    "soft link": (_replaced("labels", h5py.SoftLink("/counts")), "a soft link at 'labels'"),
    "external link": (_replaced("labels", h5py.ExternalLink("other.h5", "/labels")), "an external link at 'labels'"),
    "absurd shape": (_edit(_absurd), "/labels claims"),
    "other counts": (_edit(lambda handle: handle["counts"].write_direct(np.arange(5))), "not those of its labels"),
    "short potentials": (_replaced("potentials", np.zeros(3)), "3 potentials for 5 classes"),
    "NaN": (_replaced("potentials", np.array([0, 1, np.nan, 3, np.nan])), "/potentials is nan for class 2 .2 such"),
    "threshold": (_edit(lambda handle: handle.attrs.update(threshold=np.nan)), "threshold is nan"),
    "floats": (_replaced("labels", np.zeros(1000)), "/labels claims to be float64"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_spoiled_files_are_refused_by_name(tmp_path, fault) -> None:
    path = tmp_path / "labels.h5"
    labels = np.sort(np.arange(5000) % 5)
    write_labels(path, StoredLabels(labels, np.bincount(labels), np.zeros(5)))
    spoil, told = SPOILED[fault]
    spoil(path)
    with pytest.raises(FileFormatError, match=told) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [np.zeros(4), np.zeros((2, 2), int), np.array([0, -2]), np.zeros(0, int), np.array([[0, 1], [-1, 1]]),
     np.zeros((2, 1), int), np.zeros((1, 2, 2), int)],
)  # fmt: skip
def test_npy_that_holds_no_labels(tmp_path, array) -> None:
    np.save(tmp_path / "labels.npy", array)
    with pytest.raises(FileFormatError, match=r"labels\.npy is no usable"):
        read_labels(tmp_path / "labels.npy")


# ---- receipts and texts that are none ----


def _labels_with_receipt(path: Path) -> Path:
    labels = np.arange(20) % 4
    receipt = Receipt({"source": "scores.npy"}, {"epsilon": 0.04}, {"otlabel": "1"}, value=0.5)
    write_labels(path, StoredLabels(labels, np.bincount(labels), np.zeros(4), receipt))
    return path


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "[" * 100_000, "{", "\udcff", '{"labels_sha256": HASH}'])
def test_receipts_that_are_none(tmp_path: Path, text: str) -> None:
    path = _labels_with_receipt(tmp_path / "labels.npy")
    receipt = path.with_name("labels.npy.json")
    digest = json.dumps(json.loads(receipt.read_text())["labels_sha256"])
    receipt.write_bytes(text.replace("HASH", digest).encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=r"labels\.npy is no usable file of labels|labels\.npy has a receipt"):
        read_labels(path)


def test_labels_of_another_receipt_are_told(tmp_path: Path) -> None:
    """A checksum can tell, so nothing changes silently."""
    path = _labels_with_receipt(tmp_path / "labels.npy")
    np.save(path, np.arange(20) % 3)
    with pytest.warns(OtlabelWarning, match=r"labels\.npy\.json is a receipt of other labels"):
        assert read_labels(path).receipt is None


ATTRIBUTES = ["value", "bound", "gap", "rounding", "seed", "threshold", "complete", "texts_crc32", "format", "input"]


@pytest.mark.parametrize("name", [*ATTRIBUTES, "format_version"])
@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.zeros(1), h5py.Empty("f8"), np.nan])
def test_attributes_that_are_no_number_are_named(tmp_path: Path, name: str, value: Any) -> None:
    path = _labels_with_receipt(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as handle:
        handle.attrs[name] = value
    told = name if isinstance(value, (np.ndarray, h5py.Empty)) or name in ATTRIBUTES[:4] else ""
    if (name, told) == ("seed", ""):
        told = "seed"
    with pytest.raises(FileFormatError, match=rf"labels\.h5 .*{told}") as caught:
        read_labels(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["value", "bound", "gap", "rounding", "seed"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_of_a_receipt_that_are_none(tmp_path: Path, name: str, value: float) -> None:
    path = _labels_with_receipt(tmp_path / "labels.npy")
    receipt = path.with_name("labels.npy.json")
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {name: value}))
    with pytest.raises(FileFormatError, match=rf"labels\.npy is no usable file of labels: the {name} of its receipt"):
        read_labels(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "newer"])
def test_receipts_of_other_kinds(tmp_path: Path, kind: str) -> None:
    path = _labels_with_receipt(tmp_path / "labels.npy")
    receipt = path.with_name("labels.npy.json")
    told = json.loads(receipt.read_text())
    receipt.unlink()
    match kind:
        case "pipe":
            os.mkfifo(receipt)
        case "folder":
            receipt.mkdir()
        case "newer":
            receipt.write_text(json.dumps(told | {"format_version": 2}))
    with pytest.raises(FileFormatError, match=r"labels\.npy has a receipt, labels\.npy\.json, that is no"):
        read_labels(path)


@pytest.mark.parametrize("stored", [np.zeros(20), np.array([b"1"] * 20)])
def test_labels_that_are_no_whole_numbers(tmp_path: Path, stored: np.ndarray) -> None:
    path = _labels_with_receipt(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as handle:
        del handle["labels"]
        handle["labels"] = stored
    with pytest.raises(FileFormatError, match=r"labels\.h5 .*/labels claims to be .*, and whole numbers .* are wanted"):
        read_labels(path)


@pytest.mark.parametrize("name", ["value", "seed", "threshold", "input", "status", "complete"])
@pytest.mark.parametrize("value", ["text", b"text", [1, 2], "[1]", '{"a": 1}'])
def test_attributes_of_other_kinds(tmp_path: Path, name: str, value: Any) -> None:
    """An error of ours or a file that reads, never a traceback of another kind."""
    path = _labels_with_receipt(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as handle:
        handle.attrs[name] = value
        del handle.attrs["texts_crc32"]  # as if made by others
    with contextlib.suppress(FileFormatError):
        found = read_labels(path)
        assert isinstance(found.threshold, float)
        assert found.receipt is not None
        assert isinstance(found.receipt.value, float)
        assert isinstance(found.receipt.input, dict)


def test_texts_of_labels_have_a_checksum(tmp_path: Path) -> None:
    """HDF5's own; and ours, where it has none: in the heap that held texts before."""
    path = _labels_with_receipt(tmp_path / "labels.h5")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"scores.npy", b"scores.npz"))
    with pytest.raises(FileFormatError, match=r"labels\.h5 is no usable file of labels: .* checksum"):
        read_labels(path)
    path.write_bytes(good)
    with h5py.File(path, "r+") as handle:
        text = handle.attrs["input"].decode()
        del handle.attrs["input"]
        handle.attrs["input"] = text
    assert read_labels(path).receipt is not None
    good = path.read_bytes()
    path.write_bytes(good[: good.index(b"GCOL")] + good[good.index(b"GCOL") :].replace(b"scores.npy", b"scores.npz"))
    with pytest.raises(FileFormatError, match=r"labels\.h5 is damaged: the texts among its attributes"):
        read_labels(path)


@pytest.mark.parametrize("largest", [1 << 60, 1_500_000_000])
def test_one_large_label_takes_no_memory(tmp_path: Path, largest: int) -> None:
    labels = np.arange(60) % 4
    labels[7] = largest
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(FileFormatError, match=rf"label {largest:,} of sample 7 is far beyond"):
        read_labels(tmp_path / "labels.npy")
    with pytest.raises(ValueError, match="far beyond"):
        report(labels, path=tmp_path / "page.html")
