"""Writers of features that are killed, and the journal: an extraction goes on, and no row is invented."""

from __future__ import annotations

import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import names
from extractions import (
    ABOUT,
    OTHER,
    extract,
    kill,
    largest_leftover,
    log_of,
    rows_of,
    stored,
    uninterrupted,
    wait_for,
    without_times,
    writer,
)

from otlabel.errors import FileFormatError
from otlabel.selflabel.stores import FeatureStore, extraction, hdf5


def test_an_extraction_that_is_killed_again_and_again_goes_on(path: Path) -> None:
    rows, old = rows_of(1000, 16), rows_of(4, 2, seed=1)
    extract(FeatureStore(path), old, OTHER)
    luck, n_kills = random.Random(0), 4
    for number in range(n_kills):
        writing = writer(path, rows, ending="never")
        wait_for(lambda number=number: sum(line[0] == "begin" for line in log_of(path)) > number, writing)
        time.sleep(luck.uniform(0.01, 0.12))
        kill(writing)
        np.testing.assert_array_equal(stored(FeatureStore(path)), old)
    assert writer(path, rows).answer() is None
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
    writing = writer(path, rows, ending="slow")
    wait_for(lambda: largest_leftover(path.parent) > 8192, writing)
    kill(writing)
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
