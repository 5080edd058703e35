"""Files of all kinds, damaged at random: read as before or refused; where a checksum could tell, never otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ranks import alone

from otlabel import FeatureStore, load_labels
from otlabel.errors import FileFormatError
from otlabel.selflabel import save_labels
from otlabel.sources import load_array, open_scores, read_rows
from otlabel.storage.label_files import Receipt, StoredLabels, holds_labels, read_labels, write_labels

ROOT = Path(__file__).parents[2]


def test_a_few_hundred_mutations() -> None:
    """No process that ends, no traceback, no other values where a checksum covers them."""
    script = ROOT / "benchmarks" / "mutations.py"
    if not script.is_file():
        pytest.skip("the benchmarks are not here")
    ran = subprocess.run(
        [sys.executable, str(script), "--number", "228", "--first", "8", "--show"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "228 mutations" in ran.stdout
    assert "; 0 wrong" in ran.stdout


# ---- the index of chunks of the oldest format, which has no checksums ----


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Chunks of 4 rows in a B-tree of two levels."""
    array = np.random.default_rng(0).standard_normal((396, 5)).astype(np.float32)
    with h5py.File(tmp_path / "old.h5", "w") as handle:
        handle.create_dataset("x", data=array, chunks=(4, 5), fletcher32=True)
    return tmp_path / "old.h5", array


KEY_BYTES = 8 + 3 * 8  # of a key: size, filters left out, and where the chunk begins, the item's bytes counted too
NODE_BYTES = 24  # before the keys of a node: signature, type, level, entries, neighbours


def nodes(data: bytes, level: int) -> list[int]:
    """Where the nodes of that level begin, of trees of chunks."""
    mark = b"TREE\x01" + bytes([level])
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def set_number(path: Path, at: int, number: int, n_bytes: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + n_bytes] = number.to_bytes(n_bytes, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "at", "number", "n_bytes", "told"),
    [
        ("size of nothing", 0, 0, 4, "is said to have 0 bytes"),
        ("size below the checksum's", 0, 3, 4, "is said to have 3 bytes .* but takes 80 before its filters"),
        ("size beyond the file", 0, 1 << 31, 4, "bytes from .* on, in a file of"),
        ("checksum left out", 4, 1, 4, "but takes 80"),
        ("place between chunks", 8, 2, 8, "is damaged"),
        ("place of another chunk", 8, 4 * 70, 8, "99 chunks are needed, and its index has 98"),
        ("offset beyond the file", KEY_BYTES, 1 << 40, 8, "in a file of"),
        ("offset that is none", KEY_BYTES, (1 << 64) - 1, 8, "damaged"),
    ],
)
def test_an_index_that_lies_is_refused(old, what: str, at: int, number: int, n_bytes: int, told: str) -> None:
    path, _ = old
    leaf = nodes(path.read_bytes(), 0)[0]
    set_number(path, leaf + NODE_BYTES + at, number, n_bytes)
    for read in (open_scores, load_array):
        with pytest.raises(FileFormatError, match=rf"old\.h5::/x .*{told}"):
            read(f"{path}::/x")


def test_two_chunks_at_one_place(old) -> None:
    path, _ = old
    data = path.read_bytes()
    first = nodes(data, 0)[0] + NODE_BYTES + KEY_BYTES
    second = first + 8 + KEY_BYTES
    set_number(path, second, int.from_bytes(data[first : first + 8], "little"), 8)
    with pytest.raises(FileFormatError, match=r"chunk \(\d+, 0\) is said to have 84 bytes .* where another one lies"):
        open_scores(f"{path}::/x")


def test_a_key_above_the_leaves_that_hides_chunks(old) -> None:
    """HDF5 takes chunks for missing that it does not find, and gives zeros in their place."""
    path, array = old
    (root,) = nodes(path.read_bytes(), 1)
    second_key = root + NODE_BYTES + KEY_BYTES + 8
    set_number(path, second_key + 8, 4 * 3, 8)  # the first leaf would end at chunk 3
    with h5py.File(path) as handle:
        assert not np.array_equal(handle["x"][()], array)  # no error of HDF5's
    opened = open_scores(f"{path}::/x")
    with pytest.raises(FileFormatError, match=r"x is damaged: its index of chunks does not lead to chunk \(\d+, 0\)"):
        read_rows(opened.source, 0, len(array))
    with pytest.raises(FileFormatError, match="its index of chunks does not lead to chunk"):
        load_array(f"{path}::/x")


@pytest.mark.parametrize("fill", [0.0, np.nan, 7.0])
def test_chunks_of_the_fill_value_are_read(tmp_path: Path, fill: float) -> None:
    array = np.full((50, 6), 7.0)
    array[20:] = 0.0
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle.create_dataset("x", data=array, chunks=(7, 4), fillvalue=fill, compression="gzip")
    opened = open_scores(f"{tmp_path}/x.h5::/x")
    np.testing.assert_array_equal(read_rows(opened.source, 0, 50), array)
    np.testing.assert_array_equal(read_rows(opened.source, 5, 31), array[5:31])


@pytest.mark.parametrize("libver", ["earliest", ("v110", "latest")])
@pytest.mark.parametrize(
    "settings",
    [
        {"chunks": (7, 4)},
        {"chunks": (7, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (7, 4), "compression": "lzf", "maxshape": (None, None)},
        {"chunks": (7, 4), "scaleoffset": 3},
        {"chunks": (50, 6), "fletcher32": True},
        {"chunks": (1, 6)},
        {},
    ],
)
@pytest.mark.parametrize("block", [0, 512])
def test_good_files_of_all_layouts_are_read(tmp_path: Path, libver, settings, block: int) -> None:
    """Also while their writer has them open, and where other things lie before the file proper."""
    array = np.random.default_rng(0).integers(0, 9, (50, 6)).astype(np.float64)
    array[:14] = np.random.default_rng(1).standard_normal((14, 6)).round(3)  # what compression is left out of
    with h5py.File(tmp_path / "x.h5", "w", libver=libver, userblock_size=block) as handle:
        data = handle.create_dataset("x", data=array, **settings)
        handle.flush()
        np.testing.assert_allclose(read_rows(open_scores(data).source, 0, 50), array, atol=1e-3)
    np.testing.assert_allclose(read_rows(open_scores(f"{tmp_path}/x.h5").source, 0, 50), array, atol=1e-3)


# ---- what is written ----


def test_labels_have_checksums_everywhere(tmp_path: Path) -> None:
    """No byte of the numbers can change unseen, and every HDF5 from 1.10 on can read the file."""
    labels = np.arange(300) % 7
    path = tmp_path / "labels.h5"
    potentials = np.random.default_rng(0).standard_normal(7)
    write_labels(path, StoredLabels(labels, np.bincount(labels), potentials))
    with h5py.File(path) as handle:
        assert handle.id.get_create_plist().get_version()[0] == 3  # the superblock of 1.10
        assert all(handle[name].fletcher32 for name in ("labels", "counts", "potentials"))
    good = path.read_bytes()
    for value in (potentials[3], 43):
        place = good.index(np.array(value).tobytes())
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(FileFormatError, match=r"labels\.h5::/(potentials|counts) is damaged in chunk 0"):
            read_labels(path)


# ---- texts, which were of variable length before: in a heap without checksums ----


RECEIPT = Receipt({"source": "x.npy"}, {"class_mass": list(range(30_000))}, {"otlabel": "1"}, status="CONVERGED")


def three_files(folder: Path) -> list[Path]:
    """One of each kind that has texts; of the first, one takes more than 64 KiB."""
    labels = np.arange(30) % 3
    write_labels(folder / "labels.h5", StoredLabels(labels, np.bincount(labels), np.zeros(3), RECEIPT))
    save_labels(folder / "heads.h5", labels[None], [3], data="Größe \u2192 1", records=[{"nmi": 0.5}])
    store = FeatureStore(folder / "features.h5")
    store.begin(30, 2, {"data": "Größe", "model": ""})
    store.write(np.arange(30), np.ones((30, 2)))
    store.finish()
    return [folder / name for name in ("labels.h5", "heads.h5", "features.h5")]


def texts_of(files: list[Path]) -> list[object]:
    heads = load_labels(files[1])
    return [read_labels(files[0]).receipt, heads.data, heads.records, FeatureStore(files[2]).about]


TEXTS = [RECEIPT, "Größe \u2192 1", [{"nmi": 0.5}], {"data": "Größe", "model": ""}]


def in_heaps(files: list[Path]) -> None:
    """As they were written before."""
    for path in files:
        with h5py.File(path, "r+") as handle:
            for name, value in dict(handle.attrs).items():
                if isinstance(value, bytes) and len(value) < 60_000:
                    del handle.attrs[name]
                    handle.attrs[name] = value.decode()


def test_texts_lie_where_checksums_are(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    assert not any(b"GCOL" in path.read_bytes() for path in files)
    assert texts_of(files) == TEXTS
    in_heaps(files)
    assert all(b"GCOL" in path.read_bytes() for path in files)
    assert texts_of(files) == TEXTS


def refusals(files: list[Path]) -> list[str]:
    found = []
    for read, path in zip((read_labels, load_labels, lambda path: FeatureStore(path).source()), files, strict=True):
        try:
            read(path)
        except ValueError as error:
            found.append(str(error))
    return found


def test_a_heap_without_end_is_refused(tmp_path: Path) -> None:
    """HDF5 goes round in it for ever; in a process of its own, which can be ended."""
    files = three_files(tmp_path)
    in_heaps(files)
    for path in files:
        data = bytearray(path.read_bytes())
        first = data.index(b"GCOL") + 16
        data[first : first + 16] = bytes(16)
        path.write_bytes(data)
    lines = alone(refusals, files).answer()
    assert len(lines) == 3, lines
    assert "its heap of texts at byte" in lines[0]
    assert "its heap of texts at byte" in lines[1]
    assert "is no file of otlabel.features" in lines[2]
    assert not holds_labels(files[0])


def test_attributes_of_others_are_let_be(tmp_path: Path) -> None:
    """Whoever adds a note to a file of labels does not damage it."""
    path = three_files(tmp_path)[0]
    with h5py.File(path, "r+") as handle:
        handle.attrs.update(note="of the third run", list=[1, 2, 3])
    assert read_labels(path).receipt == RECEIPT
