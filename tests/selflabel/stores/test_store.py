"""Stores of extracted rows: they hold what was written, whoever kills the writer, and nothing that was not."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command import names
from hypothesis import given
from hypothesis import strategies as st

import otlabel
from otlabel import linear_scores, sinkhorn_assign
from otlabel.errors import ExtractionError, FileFormatError, FingerprintError, InvalidScoresError, SelfLabelWarning
from otlabel.selflabel.stores import FeatureStore, Part, Store, TensorStore, extraction, finished, hdf5
from otlabel.selflabel.stores.checks import DTYPES
from otlabel.sources import open_scores, read_rows
from otlabel.sources.base import as_numbers

ABOUT = {"data": "d0", "model": "m0", "kind": "features"}
OTHER = ABOUT | {"model": "m1"}
KINDS = ["memory", "file"]


def rows_of(n_samples: int, n_columns: int, seed: int = 0, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_samples, n_columns)).astype(dtype)


def make(kind: str, folder: Path, dtype: str = "float16") -> Store:
    return TensorStore(dtype) if kind == "memory" else FeatureStore(folder / "features.h5", dtype=dtype)


def extract(store: Store, rows: np.ndarray, about: dict[str, str] = ABOUT) -> None:
    store.begin(*rows.shape, about)
    store.write(np.arange(len(rows)), rows)
    store.finish()


def stored(store: Store) -> np.ndarray:
    source = open_scores(store.source())
    return as_numbers(read_rows(source.source, 0, source.shape[0]), source.dtype)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return make(request.param, tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


@pytest.fixture
def eager_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write is marked in the journal at once."""
    monkeypatch.setattr(extraction, "MARK_BYTES", 0)


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
    refused = writer(path, rows, about=OTHER)
    assert refused.wait() == 1
    assert "ExtractionError: another extraction" in refused.stderr.read()
    refused.stderr.close()
    store.write(np.arange(3, 6), rows[3:])
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)
    extract(FeatureStore(path), rows, OTHER)  # and is not refused any more


# ---- a writer that is killed ----

WRITER = """
import json, os, sys, time
import numpy as np
from otlabel.selflabel.stores import FeatureStore, extraction, finished
path, rows_file, log_file, about, ending = sys.argv[1:]
extraction.MARK_BYTES = 0
if ending == "slow":
    plain = finished._Disk.write
    def slow(disk, content):
        time.sleep(0.05)
        return plain(disk, content)
    finished._Disk.write = slow
    finished.CHUNK_BYTES = 4096
rows = np.load(rows_file)
store = FeatureStore(path)
there = store.begin(*rows.shape, json.loads(about))
log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, f"begin {there.sum()}\\n".encode())
todo = np.random.default_rng(0).permutation(len(rows))
todo = todo[~there[todo]]
for start in range(0, len(todo), 5):
    batch = todo[start : start + 5]
    os.write(log, f"write {len(batch)}\\n".encode())
    store.write(batch, rows[batch])
    time.sleep(0.003)
time.sleep(60 * (ending == "never"))
store.finish()
os.write(log, b"finished\\n")
"""


def writer(path: Path, rows: np.ndarray, *, about: dict[str, str] = ABOUT, ending: str = "at once") -> Any:
    """A process of its own that extracts to the path; what it does is in `log` beside it."""
    folder = path.parent / "in"
    folder.mkdir(exist_ok=True)
    np.save(folder / "rows.npy", rows)
    words = [path, folder / "rows.npy", folder / "log", json.dumps(about), ending]
    environment = os.environ | {"PYTHONPATH": str(Path(otlabel.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *map(str, words)], env=environment, stderr=subprocess.PIPE, text=True
    )


def log_of(path: Path) -> list[list[str]]:
    log = path.parent / "in" / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition: Callable[[], bool], process: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


def kill(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def largest_leftover(folder: Path) -> int:
    sizes = [0]
    for entry in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # the one that tries whether the folder takes files
            sizes.append(entry.stat().st_size)
    return max(sizes)


def uninterrupted(folder: Path, rows: np.ndarray, about: dict[str, str] = ABOUT) -> bytes:
    """The bytes of the file that an extraction in one go makes."""
    folder.mkdir()
    extract(FeatureStore(folder / "other.h5"), rows, about)
    return without_times(folder / "other.h5")


def without_times(path: Path) -> bytes:
    """The bytes of a file; when it was made, which h5py before 3.15 writes down, and the checksum of that are zeros."""
    content = bytearray(path.read_bytes())
    times = content.index(b"OHDR") + 6
    flags = content[times - 1]
    if flags & 0x20:
        size = times + (20 if flags & 0x10 else 16)
        messages = size + (1 << (flags & 3))
        checksum = messages + int.from_bytes(content[size:messages], "little")
        content[times : times + 16], content[checksum : checksum + 4] = bytes(16), bytes(4)
    return bytes(content)


def test_an_extraction_that_is_killed_again_and_again_goes_on(path: Path) -> None:
    rows, old = rows_of(1000, 16), rows_of(4, 2, seed=1)
    extract(FeatureStore(path), old, OTHER)
    luck, n_kills = random.Random(0), 4
    for number in range(n_kills):
        process = writer(path, rows, ending="never")
        wait_for(lambda number=number: sum(line[0] == "begin" for line in log_of(path)) > number, process)
        time.sleep(luck.uniform(0.01, 0.12))
        kill(process)
        np.testing.assert_array_equal(stored(FeatureStore(path)), old)
    process = writer(path, rows)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    assert without_times(path) == uninterrupted(path.parent / "one", rows)
    log = log_of(path)
    assert log[-1] == ["finished"]
    begun = [int(line[1]) for line in log if line[0] == "begin"]
    assert len(begun) == n_kills + 1
    assert begun[0] == 0
    assert all(before <= after for before, after in itertools.pairwise(begun))
    n_written = sum(int(line[1]) for line in log if line[0] == "write")
    assert len(rows) <= n_written <= len(rows) + 5 * n_kills  # a batch under way, at most, is lost with its writer
    assert names(path.parent) == ["features.h5", "in", "one"]


def test_a_finish_that_is_killed_is_done_again(path: Path) -> None:
    rows, old = rows_of(600, 64), rows_of(4, 2, seed=1)
    extract(FeatureStore(path), old, OTHER)
    process = writer(path, rows, ending="slow")
    wait_for(lambda: largest_leftover(path.parent) > 8192, process)
    kill(process)
    np.testing.assert_array_equal(stored(FeatureStore(path)), old)
    store = FeatureStore(path)
    assert store.begin(*rows.shape, ABOUT).all()
    assert list(path.parent.glob(".*.tmp")) == []
    store.finish()
    assert without_times(path) == uninterrupted(path.parent / "one", rows)


def test_a_kill_between_the_rename_and_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, store = rows_of(9, 4), FeatureStore(path)
    monkeypatch.setattr(hdf5.Extraction, "remove", lambda extraction: extraction.close())
    extract(store, rows)
    monkeypatch.undo()
    np.testing.assert_array_equal(stored(store), rows)
    assert store.begin(9, 4, ABOUT).all()
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)
    assert names(path.parent) == ["features.h5"]


# ---- the journal ----


def half_done(path: Path) -> np.ndarray:
    """An extraction of 40 rows that was left after 4 records of 5 rows."""
    rows, store = rows_of(40, 3), FeatureStore(path)
    store.begin(40, 3, ABOUT)
    for start in range(0, 20, 5):
        store.write(np.arange(start, start + 5), rows[start : start + 5])
    store.close()
    return rows


@pytest.mark.usefixtures("eager_marks")
def test_a_journal_cut_anywhere_gives_its_whole_records(path: Path) -> None:
    half_done(path)
    journal = path.with_name(".features.h5.journal")
    content = journal.read_bytes()
    header = content.index(b"\n") + 1
    record = (len(content) - header) // 4
    for length in (*range(0, header, 20), *range(header, len(content) + 1)):
        journal.write_bytes(content[:length])
        rows_file = path.with_name(".features.h5.rows").read_bytes()
        store = FeatureStore(path)
        n_there = np.count_nonzero(store.begin(40, 3, ABOUT))
        store.close()
        assert n_there == (5 * ((length - header) // record) if length >= header else 0)
        path.with_name(".features.h5.rows").write_bytes(rows_file)


@pytest.mark.usefixtures("eager_marks")
@pytest.mark.parametrize(
    "tail",
    [b"\0" * 64, b"\xff" * 64, b"\1\0\0\0garbage", b"\1\0\0\0" + b"\0" * 20],
    ids=["zeros", "ones", "cut", "wrong"],
)
def test_an_extraction_goes_on_after_a_corrupt_tail(path: Path, tail: bytes) -> None:
    rows = half_done(path)
    journal = path.with_name(".features.h5.journal")
    content = journal.read_bytes()
    journal.write_bytes(content + tail)
    store = FeatureStore(path)
    np.testing.assert_array_equal(np.flatnonzero(store.begin(40, 3, ABOUT)), np.arange(20))
    assert journal.read_bytes() == content
    store.write(np.arange(20, 30), rows[20:30])
    store.close()
    np.testing.assert_array_equal(np.flatnonzero(store.begin(40, 3, ABOUT)), np.arange(30))
    store.write(np.arange(30, 40), rows[30:])
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)


@pytest.mark.usefixtures("eager_marks")
def test_a_flipped_bit_in_the_journal_loses_rows_but_invents_none(path: Path) -> None:
    half_done(path)
    journal, scratch = path.with_name(".features.h5.journal"), path.with_name(".features.h5.rows")
    content, rows_file = journal.read_bytes(), scratch.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        journal.write_bytes(damaged)
        store = FeatureStore(path)
        there = np.flatnonzero(store.begin(40, 3, ABOUT))
        store.close()
        assert len(there) < 20
        np.testing.assert_array_equal(there, np.arange(len(there)))
        scratch.write_bytes(rows_file)


@pytest.mark.usefixtures("eager_marks")
@pytest.mark.parametrize("fate", ["removed", "shortened"])
def test_a_journal_without_its_rows_starts_over(path: Path, fate: str) -> None:
    rows = half_done(path)
    scratch = path.with_name(".features.h5.rows")
    if fate == "removed":
        scratch.unlink()
    else:
        scratch.write_bytes(scratch.read_bytes()[:-1])
    store = FeatureStore(path)
    for _ in range(2):  # the journal must not speak of the old rows to the next one either
        assert not store.begin(40, 3, ABOUT).any()
        store.close()
    store.begin(40, 3, ABOUT)
    store.write(np.arange(40), rows)
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)


def test_rows_cut_short_under_way_are_noticed(path: Path) -> None:
    store = FeatureStore(path)
    store.begin(40, 3, ABOUT)
    store.write(np.arange(40), rows_of(40, 3))
    os.truncate(path.with_name(".features.h5.rows"), 100)
    with pytest.raises(FileFormatError, match=r"\.features\.h5\.rows was cut short"):
        store.finish()
    store.close()
    assert not path.exists()


def test_rows_are_on_the_disk_before_the_journal_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, by_number = [], {}
    plain_sync, plain_write = os.fdatasync, extraction.write_at

    def sync(descriptor: int) -> None:
        calls.append(("sync", by_number[descriptor]))
        plain_sync(descriptor)

    def write(descriptor: int, content: Any, place: int) -> None:
        by_number[descriptor] = Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix
        calls.append(("write", by_number[descriptor]))
        plain_write(descriptor, content, place)

    store = FeatureStore(path)
    store.begin(6, 3, ABOUT)
    monkeypatch.setattr(extraction, "write_at", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    store.write(np.arange(3), rows_of(3, 3))
    assert calls == [("write", ".rows")]  # a few rows are not worth waiting for the disk
    monkeypatch.setattr(extraction, "MARK_SECONDS", 0)
    store.write(np.array([5]), rows_of(1, 3))
    marked = [("write", ".rows"), ("sync", ".rows"), ("write", ".journal"), ("sync", ".journal")]
    assert calls[1:] == marked
    monkeypatch.undo()
    store.close()


def test_rows_that_the_disk_lost_count_as_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rows = FeatureStore(path), rows_of(6, 3)
    store.begin(6, 3, ABOUT)
    store.write(np.arange(6), rows)

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match=r"\.features\.h5\.rows"):
        store.finish()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="6 of 6 rows are missing"):
        store.finish()
    store.write(np.arange(6), rows)
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)


# ---- disks and folders ----

FULL = """
import resource, sys
import h5py
import numpy as np
from otlabel.selflabel.stores import FeatureStore
path, rows = sys.argv[1], np.load(sys.argv[2])
usual = resource.getrlimit(resource.RLIMIT_FSIZE)
old = open(path, "rb").read()
store = FeatureStore(path)

def limited(n_bytes, call):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, usual[1]))
    try:
        call()
        print("no error")
    except OSError as error:
        print(error.errno, error.filename, "whole" if open(path, "rb").read() == old else "damaged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)

limited(rows.nbytes - 1, lambda: store.begin(*rows.shape, {"model": "new"}))
store.begin(*rows.shape, {"model": "new"})
limited(4096, lambda: store.write(np.arange(len(rows)), rows))
assert not store.begin(*rows.shape, {"model": "new"}).any()
store.write(np.arange(len(rows)), rows)
limited(8, store.finish)
for limit in map(int, sys.argv[3:]):
    limited(limit, store.finish)
n_open = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET)
print(n_open, "objects open")  # HDF5 has let go of every file that failed
store.finish()
"""


def test_a_full_disk_is_named_and_costs_nothing(path: Path) -> None:
    """The limit on the size of a file stands for it, at the first byte, in the midst and in the last structures."""
    rows, old = rows_of(5000, 200), rows_of(4, 2, seed=1)
    expected = uninterrupted(path.parent / "one", rows, {"model": "new"})
    extract(FeatureStore(path), old, {"model": "old"})
    np.save(path.parent / "rows.npy", rows)
    limits = [1024, rows.nbytes // 2, rows.nbytes, len(expected) - 400, len(expected) - 1]
    environment = os.environ | {"PYTHONPATH": str(Path(otlabel.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, path.parent / "rows.npy", *map(str, limits)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scratch, journal = (str(path.with_name(f".features.h5.{ending}")) for ending in ("rows", "journal"))
    failed = [f"27 {scratch}", f"27 {scratch}", f"27 {journal}", *[f"27 {path}"] * len(limits)]
    assert done.stdout.splitlines() == [*(f"{line} whole" for line in failed), "0 objects open"]
    assert done.stderr == ""
    np.testing.assert_array_equal(stored(FeatureStore(path)), rows)
    assert len(path.read_bytes()) == len(expected)
    assert names(path.parent) == ["features.h5", "one", "rows.npy"]


@pytest.mark.parametrize("at", [1, 3, 9])
def test_an_interrupted_finish_can_be_done_again(path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(finished, "CHUNK_BYTES", 300)
    rows, old, store = rows_of(100, 10), rows_of(4, 2, seed=1), FeatureStore(path)
    extract(store, old, OTHER)
    store.begin(*rows.shape, ABOUT)
    store.write(np.arange(100), rows)
    calls, plain = itertools.count(1), finished.write_at

    def interrupted(descriptor: int, content: Any, place: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix == ".tmp" and next(calls) == at:
            raise KeyboardInterrupt
        plain(descriptor, content, place)

    monkeypatch.setattr(finished, "write_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.finish()
    np.testing.assert_array_equal(stored(store), old)
    assert names(path.parent) == [".features.h5.journal", ".features.h5.rows", "features.h5"]
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)


def test_no_room_is_told_before_anything_is_touched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(1000, 300)
    extract(FeatureStore(path), rows_of(4, 2))
    before = path.read_bytes()
    usage = shutil.disk_usage(path.parent)

    def with_free(n_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=n_bytes))

    with_free(1_234_567)
    with pytest.raises(OSError, match=r"needs 1,2\d\d,\d{3} bytes.* 1,234,567 free"):
        FeatureStore(path).begin(1000, 300, OTHER)
    assert names(path.parent) == ["features.h5"]
    assert path.read_bytes() == before
    with_free(1_400_000)
    store = FeatureStore(path)
    store.begin(1000, 300, OTHER)
    store.write(np.arange(1000), rows)
    store.close()
    with_free(800_000)  # the rows that are there need no room any more
    assert store.begin(1000, 300, OTHER).all()
    store.close()
    with_free(600_000)  # for the file alone
    with pytest.raises(OSError, match="600,000 free"):
        store.begin(1000, 300, OTHER)
    monkeypatch.undo()
    assert store.begin(1000, 300, OTHER).all()
    store.finish()
    np.testing.assert_array_equal(stored(store), rows)


@given(n_samples=st.integers(1, 3000), n_columns=st.integers(1, 40), chunk_bytes=st.sampled_from([64, 1000, 1 << 20]))
def test_no_file_is_larger_than_the_room_asked_for(n_samples: int, n_columns: int, chunk_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(finished, "CHUNK_BYTES", max(chunk_bytes, n_samples * n_columns // 100))
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        store, rows = make("file", Path(folder)), rows_of(n_samples, n_columns)
        with pytest.raises(OSError, match="needs") as caught:
            store.begin(n_samples, n_columns, ABOUT)
        needed = int(str(caught.value).split("needs ")[1].split(" ")[0].replace(",", ""))
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, needed))
        extract(store, rows)
        assert rows.nbytes + (Path(folder) / "features.h5").stat().st_size <= needed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_no_files(path: Path) -> None:
    path.parent.chmod(0o500)
    with pytest.raises(PermissionError):
        FeatureStore(path).begin(4, 2, ABOUT)
    path.parent.chmod(0o700)
    assert names(path.parent) == []


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FeatureStore(tmp_path / "nowhere" / "f.h5").begin(4, 2, ABOUT)


# ---- parts, where several processes have the samples ----


def stored_part(part: Part) -> np.ndarray:
    source = open_scores(part.source(), may_be_empty=True)
    return as_numbers(read_rows(source.source, 0, source.shape[0]), source.dtype)


@given(data=st.data())
def test_a_part_keeps_what_it_is_to_keep(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    n_samples, n_columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    rows = rows_of(n_samples, n_columns, data.draw(st.integers(0, 99)))
    came = np.array(data.draw(st.permutations(range(n_samples))))[: data.draw(st.integers(0, n_samples))]
    kept = np.sort(came)[np.array(data.draw(st.lists(st.booleans(), min_size=len(came), max_size=len(came))), bool)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(came)), max_size=5)))
    pauses = data.draw(st.sets(st.integers(0, len(cuts)))) if kind == "file" else set()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(finished, "CHUNK_BYTES", data.draw(st.sampled_from([1, 64, 300, 1 << 20])))
        patch.setattr(extraction, "MARK_BYTES", data.draw(st.sampled_from([0, 100, 1 << 20])))
        whole = make(kind, Path(folder))
        part = whole.part(1, 3)
        part.begin(n_samples, n_columns, ABOUT)
        written = np.zeros(n_samples, bool)
        for number, some in enumerate(np.split(came, cuts)):
            part.write(some, rows[some])
            written[some] = True
            if number in pauses:
                part.close()
                part = whole.part(1, 3)
                np.testing.assert_array_equal(part.begin(n_samples, n_columns, ABOUT), written)
        part.finish(kept)
        np.testing.assert_array_equal(stored_part(whole.part(1, 3)), rows[kept])
        assert whole.part(1, 3).about == ABOUT
        assert whole.about is None
        if kind == "file":
            assert names(Path(folder)) == ["features.rank1-of-3.h5"]
            with h5py.File(Path(folder) / "features.rank1-of-3.h5") as handle:
                np.testing.assert_array_equal(handle["features_index"], kept)
                assert handle.attrs["n_samples"] == n_samples


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_refuses_to_keep_what_never_came(kind: str, tmp_path: Path) -> None:
    part, rows = make(kind, tmp_path).part(0, 2), rows_of(6, 3)
    part.begin(6, 3, ABOUT)
    part.write(np.array([4, 0]), rows[[4, 0]])
    with pytest.raises(ValueError, match="1 of 2 rows are missing: 3"):
        part.finish(np.array([0, 3]))
    with pytest.raises(ValueError, match="in rising order"):
        part.finish(np.array([4, 0]))
    part.finish()
    np.testing.assert_array_equal(stored_part(part), rows[[0, 4]])


@pytest.mark.usefixtures("eager_marks")
def test_a_part_whose_writer_is_killed_goes_on_and_takes_no_more_room_than_its_rows(path: Path) -> None:
    rows, own = rows_of(4000, 256), np.arange(1, 4000, 2)
    child = os.fork()
    if not child:
        try:
            part = FeatureStore(path).part(1, 2)
            part.begin(*rows.shape, ABOUT)
            part.write(own[:700][::-1], rows[own[:700][::-1]])
            part.write(own[900:1000], rows[own[900:1000]])
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    part = FeatureStore(path).part(1, 2)
    there = part.begin(*rows.shape, ABOUT)
    np.testing.assert_array_equal(np.flatnonzero(there), np.concatenate([own[:700], own[900:1000]]))
    rest = np.setdiff1d(own, np.flatnonzero(there))
    part.write(rest, rows[rest])
    n_bytes = 512 * path.with_name(".features.rank1-of-2.h5.rows").stat().st_blocks
    assert rows[own].nbytes <= n_bytes < 1.1 * rows[own].nbytes
    part.finish(own)
    np.testing.assert_array_equal(stored_part(part), rows[own])


def test_a_part_asks_for_the_room_of_its_share(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    needed = []
    for store in (FeatureStore(path), FeatureStore(path).part(0, 4)):
        with pytest.raises(OSError, match="needs") as caught:
            store.begin(4000, 1000, ABOUT)
        needed.append(int(str(caught.value).split("needs ")[1].split(" ")[0].replace(",", "")))
    assert 0.25 < needed[1] / needed[0] < 0.3


def test_another_number_of_processes_does_not_go_on_and_says_so(path: Path) -> None:
    one, two, three = ".features.h5.rows", ".features.rank*-of-2.h5.rows", ".features.rank*-of-3.h5.rows"
    for number, others in [(1, []), (2, [one]), (3, [one, two]), (1, [two, three]), (2, [one, three])]:
        for rank in range(number):
            store = FeatureStore(path) if number == 1 else FeatureStore(path).part(rank, number)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                store.begin(6, 3, ABOUT)
            assert {warning.category for warning in caught} <= {SelfLabelWarning}
            found = [str(warning.message) for warning in caught]
            assert [text.split("Its files ")[1].split(" ")[0] for text in found] == (others if rank == 0 else [])
            assert all(f"by {number if number > 1 else 'one'}: rows are extracted anew" in text for text in found)
            store.close()


# ---- files of others, and damaged ones ----


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
