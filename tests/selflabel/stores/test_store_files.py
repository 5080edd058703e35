"""Files of others, and damaged ones: never replaced, never read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command import names
from extractions import ABOUT, extract, rows_of, stored

from otlabel import linear_scores, sinkhorn_assign
from otlabel.errors import FileFormatError
from otlabel.selflabel.stores import FeatureStore, finished


def foreign(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "no HDF5":
        path.write_bytes(b"a thesis")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        with h5py.File(path, "w") as handle:
            handle["features"] = np.ones((3, 2))
            if kind == "other format":
                handle.attrs["format"] = "otlabel.labels"
            elif kind == "array format":
                handle.attrs["format"] = ["otlabel.features"] * 2


FOREIGN = ["folder", "dangling link", "pipe", "no HDF5", "empty", "plain HDF5", "other format", "array format"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_others_are_never_replaced(path: Path, kind: str) -> None:
    foreign(path, kind)
    before = (path.lstat(), path.read_bytes() if path.is_file() else None)
    with pytest.raises(FileFormatError, match=r"features\.h5 is no file of otlabel\.features and is not replaced"):
        FeatureStore(path).begin(4, 2, ABOUT)
    path_after = (path.lstat(), path.read_bytes() if path.is_file() else None)
    assert path_after[0].st_mtime_ns == before[0].st_mtime_ns
    assert path_after[1] == before[1]
    assert names(path.parent) == ["features.h5"]


def test_a_file_that_came_during_the_extraction_is_not_replaced(path: Path) -> None:
    store = FeatureStore(path)
    store.begin(4, 2, ABOUT)
    store.write(np.arange(4), rows_of(4, 2))
    path.write_bytes(b"a thesis")
    with pytest.raises(FileFormatError, match="is not replaced"):
        store.finish()
    assert path.read_bytes() == b"a thesis"
    path.unlink()
    store.finish()
    np.testing.assert_array_equal(stored(store), rows_of(4, 2))


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda handle: handle.attrs.__setitem__(name, value)


def linked(link: Callable[[], Any]) -> Callable[[h5py.File], None]:
    def change(handle: h5py.File) -> None:
        handle.move("features", "real")
        handle["features"] = link()

    return change


def hollow(handle: h5py.File) -> None:
    del handle["features"]
    handle.create_dataset("features", (900, 4), "f2", chunks=(100, 4))[:300] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (attribute("format", "otlabel.labels"), "is no file of otlabel.features"),
        (attribute("format_version", 2), "is of version 2; version 1 is read here, update otlabel"),
        (attribute("complete", False), "was never finished"),
        (lambda handle: handle.attrs.__delitem__("complete"), "was never finished"),
        (linked(lambda: h5py.SoftLink("/real")), "a soft link at 'features'"),
        (linked(lambda: h5py.ExternalLink("other.h5", "/real")), "an external link at 'features'"),
        (hollow, "only 3 of its 9 chunks are there"),
    ],
)
def test_files_that_are_not_read(path: Path, change: Callable[[h5py.File], None], words: str) -> None:
    extract(FeatureStore(path), rows_of(6, 4))
    with h5py.File(path, "r+") as handle:
        change(handle)
    for ask in (FeatureStore(path).source, lambda: FeatureStore(path).check(ABOUT)):
        with pytest.raises(FileFormatError, match=words):
            ask()


@pytest.mark.parametrize("about", ["no JSON", "[1]", 7, None])
def test_a_file_that_does_not_say_what_it_is_of(path: Path, about: Any) -> None:
    extract(FeatureStore(path), rows_of(6, 4))
    with h5py.File(path, "r+") as handle:
        del handle.attrs["about"]
        if about is not None:
            handle.attrs["about"] = about
    with pytest.raises(FileFormatError, match="does not say what its rows are of"):
        _ = FeatureStore(path).about


def test_files_of_ours_are_replaced_whatever_their_version(path: Path) -> None:
    extract(FeatureStore(path), rows_of(6, 4))
    with h5py.File(path, "r+") as handle:
        handle.attrs.update(format_version=9, complete=False)
    extract(FeatureStore(path), rows_of(5, 3))
    np.testing.assert_array_equal(stored(FeatureStore(path)), rows_of(5, 3))


@pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")
def test_a_flipped_bit_is_told_by_its_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished, "CHUNK_BYTES", 1000)
    rows = rows_of(500, 10)  # in 10 chunks of 50 rows
    extract(FeatureStore(path), rows)
    content = bytearray(path.read_bytes())
    content[content.index(rows[170:171].tobytes())] ^= 1
    path.write_bytes(content)
    source = FeatureStore(path).source()
    for read in (lambda: sinkhorn_assign(source), lambda: sinkhorn_assign(linear_scores(source, rows_of(4, 10)))):
        with pytest.raises(FileFormatError, match=r"features is damaged in chunk \(3, 0\), rows 150 to 199"):
            read()


def test_a_file_cut_anywhere_is_not_read(path: Path) -> None:
    extract(FeatureStore(path), rows_of(500, 10))
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"features\.h5"):
            FeatureStore(path).source()
        with pytest.raises(FileFormatError, match=r"features\.h5"):
            FeatureStore(path).begin(6, 4, ABOUT)  # nobody knows whose it was
