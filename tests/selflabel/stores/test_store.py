"""Stores of extracted rows: they hold what was written, refuse what is wrong, and start over or go on."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import tempfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command import names
from extractions import ABOUT, KINDS, OTHER, extract, make, rows_of, stored, writer
from hypothesis import given
from hypothesis import strategies as st

from otlabel import linear_scores, sinkhorn_assign
from otlabel.errors import ExtractionError, FileFormatError, FingerprintError, InvalidScoresError
from otlabel.selflabel.stores import FeatureStore, Store, TensorStore, extraction, finished
from otlabel.selflabel.stores.checks import DTYPES
from otlabel.sources import open_scores

# ---- what is written is there ----


@given(data=st.data())
def test_rows_come_back_in_the_order_of_the_index(data: st.DataObject) -> None:
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(DTYPES))
    n_samples, n_columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    given_as = data.draw(st.sampled_from(["float16", "float32", "float64", "int8"]))
    rows = (10 * rows_of(n_samples, n_columns, data.draw(st.integers(0, 99)), "float64")).astype(given_as)
    index = np.array(data.draw(st.permutations(range(n_samples))), data.draw(st.sampled_from(["int64", "uint8"])))
    if data.draw(st.booleans()):
        index = np.sort(index)
    cuts = sorted(data.draw(st.lists(st.integers(0, n_samples), max_size=5)))
    pauses = data.draw(st.sets(st.integers(0, len(cuts)))) if kind == "file" else set()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(finished, "CHUNK_BYTES", data.draw(st.sampled_from([1, 64, 300, 1 << 20])))
        patch.setattr(extraction, "MARK_BYTES", data.draw(st.sampled_from([0, 100, 1 << 20])))
        store = make(kind, Path(folder), dtype)
        store.begin(n_samples, n_columns, ABOUT)
        written = np.zeros(n_samples, bool)
        for number, part in enumerate(np.split(index, cuts)):
            store.write(part, rows[part])
            written[part] = True
            if number in pauses:  # left off, and taken up by a new object
                store.close()
                store = make(kind, Path(folder), dtype)
                np.testing.assert_array_equal(store.begin(n_samples, n_columns, ABOUT), written)
        store.finish()
        assert open_scores(store.source()).dtype == dtype
        np.testing.assert_array_equal(stored(store), rows.astype(dtype))
        assert store.about == ABOUT
        assert names(Path(folder)) == (["features.h5"] if kind == "file" else [])


TEXTS = ("about", "dtype", "format")  # attributes that a checksum covers


def test_the_layout_of_the_file(path: Path) -> None:
    rows = rows_of(3000, 512)
    extract(FeatureStore(path), rows)
    with h5py.File(path, "r") as handle:
        assert list(handle) == ["features"]
        data = handle["features"]
        assert data.dtype == np.float16
        assert data.fletcher32
        assert data.chunks == (1000, 512)  # 3 MB in three chunks of equal size
        told = {name: one.decode() if isinstance(one, bytes) else one for name, one in handle.attrs.items()}
    assert told.pop("texts_crc32") == zlib.crc32(json.dumps({n: told[n] for n in sorted(told) if n in TEXTS}).encode())
    assert json.loads(told.pop("about")) == ABOUT
    assert told == {"format": "otlabel.features", "format_version": 1, "complete": True, "dtype": "float16"}


def test_labels_are_those_of_the_array_in_memory(tmp_path: Path) -> None:
    rows, head = rows_of(400, 12), rows_of(7, 12, seed=1, dtype="float32")
    file, memory = make("file", tmp_path), make("memory", tmp_path)
    for store in (file, memory):
        extract(store, rows)
    expected = sinkhorn_assign(linear_scores(rows, head)).labels
    for store in (file, memory):
        np.testing.assert_array_equal(sinkhorn_assign(linear_scores(store.source(), head)).labels, expected)


def test_another_name_and_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("f.hdf5", name="deep")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = rows_of(5, 2)
    extract(store, rows)
    assert store.source() == f"{tmp_path / 'f.hdf5'}::/deep"
    np.testing.assert_array_equal(stored(store), rows)
    with pytest.raises(FileFormatError, match="holds no 'features'"):
        FeatureStore(tmp_path / "f.hdf5").source()


def test_a_store_can_be_sent_elsewhere(path: Path) -> None:
    rows = rows_of(20, 3)
    store = FeatureStore(path)
    extract(store, rows)
    n_open = len(os.listdir("/proc/self/fd"))
    np.testing.assert_array_equal(stored(store), rows)
    assert store.about == ABOUT
    assert len(os.listdir("/proc/self/fd")) == n_open
    store.begin(20, 3, OTHER)
    sent = pickle.loads(pickle.dumps(store))  # while an extraction is under way
    np.testing.assert_array_equal(stored(sent), rows)
    with pytest.raises(ExtractionError, match="call begin before"):
        sent.write(np.arange(20), rows)
    store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_reads_but_does_not_write(path: Path) -> None:
    rows = rows_of(20, 3)
    store = FeatureStore(path)
    extract(store, rows)
    store.begin(20, 3, OTHER)
    child = os.fork()
    if not child:
        code = 1
        try:
            np.testing.assert_array_equal(stored(store), rows)
            with pytest.raises(ExtractionError, match="process that began it"):
                store.write(np.arange(20), rows)
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(ExtractionError, match="another extraction"):  # the child gave nothing back
        FeatureStore(path).begin(20, 3, OTHER)
    store.write(np.arange(20), rows)
    store.finish()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("index", "rows", "error", "words"),
    [
        ([0, 6], rows_of(2, 3), ValueError, "index 6 is out of range; samples are 0 to 5"),
        ([-1], rows_of(1, 3), ValueError, "index -1 is out of range"),
        ([4, 2, 4], rows_of(3, 3), ValueError, "index 4 was written before; pass every index once"),
        ([5, 1], rows_of(2, 3), ValueError, "index 1 was written before.*distributed sampler"),
        ([2], rows_of(1, 4), ValueError, r"shape \(1, 4\).* 3 columns"),
        ([2], rows_of(2, 3)[0], ValueError, r"shape \(3,\).* 3 columns"),
        ([2], [["a", "b", "c"]], ValueError, "of numbers"),
        ([2, 3], rows_of(1, 3), ValueError, "1 rows for 2 indices"),
        ([2.0], rows_of(1, 3), ValueError, "float64; pass .B,. integers"),
        ([5, 2], [[0, 0, 0], [0, np.nan, 0]], InvalidScoresError, "nan in column 1 of sample 2"),
        ([5, 2], [[0, 0, -np.inf], [0, 0, 0]], InvalidScoresError, "-inf in column 2 of sample 5"),
        ([3], [[1, 2, 7e4]], InvalidScoresError, '70000.0 in column 2 of sample 3 .* pass dtype="float32"'),
        ([3], [[70_000, 2, 3]], InvalidScoresError, '70000 in column 0 of sample 3 .* pass dtype="float32"'),
    ],
)
@pytest.mark.filterwarnings("error")
def test_rows_that_are_refused_leave_no_trace(store: Store, index: Any, rows: Any, error: Any, words: str) -> None:
    whole = rows_of(6, 3)
    store.begin(6, 3, ABOUT)
    store.write(np.array([1]), whole[1:2])
    with pytest.raises(error, match=words):
        store.write(np.array(index), np.array(rows))
    rest = np.array([5, 0, 2, 4, 3])
    store.write(rest, whole[rest])
    store.finish()
    np.testing.assert_array_equal(stored(store), whole)


def test_float32_holds_what_float16_does_not(tmp_path: Path) -> None:
    for kind in KINDS:
        store = make(kind, tmp_path, "float32")
        extract(store, np.array([[7e4, 1e-30]]))
        np.testing.assert_array_equal(stored(store), np.array([[7e4, 1e-30]], np.float32))
        store.begin(1, 1, OTHER)
        with pytest.raises(InvalidScoresError, match="too large for float32; scale"):
            store.write(np.array([0]), np.array([[1e300]]))
        store.close()


def test_missing_rows_are_counted_and_named(store: Store) -> None:
    store.begin(1000, 2, ABOUT)
    store.write(np.array([0, 2, 4]), rows_of(3, 2))
    with pytest.raises(ValueError, match=r"997 of 1,000 rows are missing: 1, 3, 5, 6, 7, \.\.\.;"):
        store.finish()
    rest = np.setdiff1d(np.arange(1000), [0, 2, 4])
    store.write(rest, rows_of(997, 2))
    store.finish()


def test_nothing_is_there_before_it_is_finished(store: Store) -> None:
    assert store.about is None
    for ask in (store.source, lambda: store.check(ABOUT)):
        with pytest.raises(ExtractionError, match="nothing was extracted"):
            ask()
    for misused in (store.finish, lambda: store.write(np.array([0]), rows_of(1, 2))):
        with pytest.raises(ExtractionError, match="call begin before"):
            misused()
    store.begin(4, 2, ABOUT)
    assert store.about is None
    with pytest.raises(ExtractionError, match="unfinished; begin again"):
        store.source()
    store.close()


def test_check_shows_both_fingerprints(store: Store) -> None:
    extract(store, rows_of(4, 2))
    store.check(dict(reversed(ABOUT.items())))
    for other in (OTHER, {}, ABOUT | {"more": "x"}):
        with pytest.raises(FingerprintError) as caught:
            store.check(other)
        assert json.dumps(ABOUT, sort_keys=True) in str(caught.value)
        assert json.dumps(other, sort_keys=True) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 2, ABOUT), "n_samples is 0"),
        ((True, 2, ABOUT), "n_samples is True"),
        ((2, 1.5, ABOUT), "n_columns is 1.5"),
        ((2, 2, {"a": 1}), "dictionary of texts"),
        ((2, 2, {"a": "x" * 40_000}), "pass hashes"),
    ],
)
def test_wrong_beginnings(store: Store, tmp_path: Path, arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        store.begin(*arguments)
    assert names(tmp_path) == []


def test_wrong_settings(tmp_path: Path) -> None:
    for build in (lambda: TensorStore("float64"), lambda: FeatureStore(tmp_path / "f.h5", dtype="int8")):
        with pytest.raises(ValueError, match="dtype is"):
            build()
    for path in ("f.npy", "a::b.h5", "f"):
        with pytest.raises(ValueError, match="must end in"):
            FeatureStore(tmp_path / path)
    for name in ("", "a/b", "."):
        with pytest.raises(ValueError, match="plain name"):
            FeatureStore(tmp_path / "f.h5", name=name)


def test_the_largest_about_fits(path: Path) -> None:
    about = {"a": "ä" * 5000}
    extract(FeatureStore(path), rows_of(2, 2), about)
    assert FeatureStore(path).about == about


# ---- one extraction and the next ----


def test_old_rows_stay_until_the_new_ones_are_finished(store: Store, tmp_path: Path) -> None:
    old, new = rows_of(30, 4), rows_of(50, 3, seed=1)
    extract(store, old)
    store.begin(50, 3, OTHER)
    for start in range(0, 50, 10):
        store.write(np.arange(start, start + 10), new[start : start + 10])
        np.testing.assert_array_equal(stored(store), old)
        store.check(ABOUT)
    store.finish()
    np.testing.assert_array_equal(stored(store), new)
    store.check(OTHER)
    assert len(names(tmp_path)) <= 1


@pytest.mark.parametrize(
    ("kind", "change"),
    [*itertools.product(KINDS, ["about", "n_samples", "n_columns"]), ("file", "dtype")],  # a TensorStore has one dtype
)
def test_an_extraction_of_something_else_starts_over(kind: str, change: str, tmp_path: Path) -> None:
    store = make(kind, tmp_path)
    store.begin(6, 3, ABOUT)
    store.write(np.arange(6), rows_of(6, 3))
    store.close()
    shape = (6 + (change == "n_samples"), 3 + (change == "n_columns"))
    about = OTHER if change == "about" else ABOUT
    store = FeatureStore(tmp_path / "features.h5", dtype="float32") if change == "dtype" else store
    assert not store.begin(*shape, about).any()
    new = rows_of(*shape, seed=1)
    store.write(np.arange(len(new)), new)
    store.finish()
    np.testing.assert_array_equal(stored(store), new)
    assert store.about == about


def test_an_extraction_goes_on(store: Store, tmp_path: Path) -> None:
    rows = rows_of(40, 3)
    assert not store.begin(40, 3, ABOUT).any()
    store.write(np.arange(7, 20), rows[7:20])
    there = store.begin(40, 3, dict(reversed(ABOUT.items())))
    np.testing.assert_array_equal(np.flatnonzero(there), np.arange(7, 20))
    there[:] = True  # the caller's to change
    with pytest.raises(ValueError, match=r"index 7 was written before.*where begin returned True"):
        store.write(np.array([7]), rows[7:8])
    rest = np.setdiff1d(np.arange(40), np.arange(7, 20))
    store.write(rest, rows[rest])
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)
    assert not store.begin(40, 3, ABOUT).any()  # what is finished is not what was interrupted
    store.close()


def test_a_second_writer_is_refused(path: Path) -> None:
    store, rows = FeatureStore(path), rows_of(6, 3)
    store.begin(6, 3, ABOUT)
    store.write(np.arange(3), rows[:3])
    with pytest.raises(ExtractionError, match=r"another extraction holds .*\.features\.h5\.journal"):
        FeatureStore(path).begin(6, 3, OTHER)
    refused = writer(path, rows, about=OTHER).answer()
    assert isinstance(refused, ExtractionError)
    assert str(refused).startswith("another extraction")
    store.write(np.arange(3, 6), rows[3:])
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)
    extract(FeatureStore(path), rows, OTHER)  # and is not refused any more
