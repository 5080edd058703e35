"""Disks that are full and folders that take no files: named, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import names
from extractions import ABOUT, OTHER, extract, make, rows_of, stored, uninterrupted
from hypothesis import given
from hypothesis import strategies as st

import otlabel
from otlabel.selflabel.stores import FeatureStore, finished

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
