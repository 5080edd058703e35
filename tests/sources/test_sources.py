"""Files, shards and features as scores: labels, potentials and proof are those of the array in memory, bit for bit."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_proven, float64
from problems import KINDS, clusters, draw, normal, ties
from scipy.special import log_softmax

from otlabel import Assignment, assign, certify, linear_scores, lp_assign, sinkhorn_assign, sweep
from otlabel.commands.main import main
from otlabel.doctor import diagnose
from otlabel.errors import FileFormatError, InvalidScoresError
from otlabel.ranks.rowset import RowSet
from otlabel.sources import ArraySource, Opened, as_float, files, hdf5, linear, open_scores, parts, read_rows
from otlabel.sources.files import FileSource
from otlabel.sources.hdf5 import HDF5Source
from otlabel.sources.parts import Parts
from otlabel.storage.label_files import fingerprint
from otlabel.sweep import blocks

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

Way = Callable[[Path, np.ndarray], Any]


def set_pieces(
    patch: pytest.MonkeyPatch, block_entries: tuple[int, int], batch_bytes: int, feature_bytes: int = 600
) -> None:
    """Blocks and batches of such sizes, so that small matrices have many of them."""
    patch.setattr(blocks, "BLOCK_ENTRIES", block_entries)
    patch.setattr(files, "BATCH_BYTES", batch_bytes)
    patch.setattr(linear, "FEATURE_BYTES", feature_bytes)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    set_pieces(monkeypatch, (300, 300), 3000)


# ---- ways to store a matrix ----


def npy(file: Path, array: np.ndarray) -> str:
    np.save(file.with_suffix(".npy"), np.ascontiguousarray(array))
    return str(file.with_suffix(".npy"))


def hdf5_file(file: Path, array: np.ndarray, **settings: Any) -> str:
    with h5py.File(file.with_suffix(".h5"), "w") as handle:
        handle.create_dataset("deep/scores", data=array, **settings)
    return f"{file.with_suffix('.h5')}::/deep/scores"


def swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def odd_chunks(array: np.ndarray) -> tuple[int, int]:
    """Chunks that divide neither blocks nor columns."""
    return min(7, len(array)), -(-2 * array.shape[1] // 3)


def cut(array: np.ndarray) -> list[np.ndarray]:
    """Uneven parts, the first and the last of one row."""
    ends = sorted({1, max(1, len(array) // 3), max(1, len(array) - 1)} - {len(array)})
    return np.split(array, ends)


def mixed_parts(file: Path, array: np.ndarray) -> list[Any]:
    """One matrix as a list: a file of each kind, an open data set, a mapped file."""
    ways = itertools.cycle([npy, chunked, hdf5_file, data_set, mapped])
    return [
        way(file.with_name(f"{file.name}-{n}"), part)
        for n, (way, part) in enumerate(zip(ways, cut(array), strict=False))
    ]


def pattern(file: Path, array: np.ndarray) -> str:
    """Parts that only the order of numbers puts in order."""
    for n, part in enumerate(cut(array)):
        hdf5_file(file.with_name(f"{file.name}-part-{7 + n}"), part, chunks=odd_chunks(part))
    return f"{file}-part-*.h5::/deep/scores"


def mapped(file: Path, array: np.ndarray) -> np.ndarray:
    return np.load(npy(file, array), mmap_mode="r")


def data_set(file: Path, array: np.ndarray) -> h5py.Dataset:
    path, _, name = hdf5_file(file, array, chunks=odd_chunks(array)).partition("::")
    return h5py.File(path, "r")[name]


def chunked(file: Path, array: np.ndarray) -> str:
    return hdf5_file(file, array, chunks=odd_chunks(array))


WAYS: dict[str, Way] = {
    "npy": npy,
    "npy of other byte order": lambda file, array: npy(file, swapped(array)),
    "memory map": mapped,
    "contiguous": hdf5_file,
    "chunked": chunked,
    "chunks of one row": lambda file, array: hdf5_file(file, array, chunks=(1, array.shape[1])),
    "gzip": lambda file, array: hdf5_file(file, array, chunks=odd_chunks(array), compression="gzip", shuffle=True),
    "fletcher32": lambda file, array: hdf5_file(file, array, chunks=(min(7, len(array)), 1), fletcher32=True),
    "hdf5 of other byte order": lambda file, array: hdf5_file(file, swapped(array)),
    "room to grow": lambda file, array: hdf5_file(file, array, chunks=(50, 20), maxshape=(None, None)),
    "h5py.Dataset": data_set,
    "list": mixed_parts,
    "pattern": pattern,
}

KEPT = ("npy", "chunked")  # tried with a copy in memory too, which is made of all alike


def storable(scores: Any) -> np.ndarray:
    """Scores of any kind as an array that files can hold."""
    if isinstance(scores, torch.Tensor):
        return (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()
    return np.asarray(scores)


def assert_same(result: Assignment, expected: Assignment) -> None:
    """Every number of the answer, bit for bit, and as many passes for it."""
    for name in ("labels", "counts", "potentials", "plan_potentials", "class_mass"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name, strict=True)
    for name in ("value", "bound", "marginal_error", "status", "n_sweeps"):
        assert getattr(result, name) == getattr(expected, name), name


def all_rows(scores: Opened) -> np.ndarray:
    return as_float(read_rows(scores.source, 0, scores.shape[0]), scores.dtype)


# ---- the same answer from everywhere ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_pieces")
def test_every_kind_of_problem_from_every_kind_of_file(tmp_path, kind: str) -> None:
    scores, class_mass, counts = draw(kind, 11)
    array = storable(scores)
    expected = sinkhorn_assign(array, class_mass=class_mass)
    assert_proven(expected, array, counts)
    for number, (name, store) in enumerate(WAYS.items()):
        source = store(tmp_path / f"{number}", array)
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


# ---- reading ----


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 7))
PIECES = {
    "shape": SHAPES,
    "chunks": SHAPES,
    "batch_bytes": st.integers(1, 1500),
    "block_entries": st.integers(1, 200),
    "seed": st.integers(0, 2**32 - 1),
}


@given(**PIECES, n_parts=st.integers(1, 6))
def test_pieces_of_any_size_join_to_the_matrix(
    tmp_path_factory, shape, chunks, batch_bytes, block_entries, seed, n_parts
) -> None:
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("pieces")
    array = rng.standard_normal(shape).astype(np.float16)
    chunks = min(chunks[0], shape[0]), min(chunks[1], shape[1])
    ends = np.unique(rng.integers(1, shape[0] + 1, n_parts - 1))
    pieces = [piece for piece in np.split(array, ends) if len(piece)]
    sources = {
        "npy": open_scores(npy(folder / "whole", array)),
        "chunked": open_scores(hdf5_file(folder / "whole", array, chunks=chunks)),
        "parts": open_scores(
            [
                hdf5_file(folder / f"{n}", piece, chunks=(min(chunks[0], len(piece)), chunks[1]))
                if n % 2
                else npy(folder / f"{n}", piece)
                for n, piece in enumerate(pieces)
            ]
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        set_pieces(patch, (block_entries, block_entries), batch_bytes)
        for name, opened in sources.items():
            rows, source = RowSet(opened), opened.source
            batches, low, high = rows.batches, *np.sort(rng.integers(0, shape[0] + 1, 2)).tolist()
            assert list(itertools.chain(*batches)) == rows.spans == RowSet(open_scores(array)).spans, name
            np.testing.assert_array_equal(read_rows(source, low, high), array[low:high].view(np.uint16), err_msg=name)
            for batch in rng.permutation(np.array(batches, object)) if len(batches) > 1 else batches:
                for (start, stop), block in zip(batch, source.read(list(batch)), strict=True):
                    np.testing.assert_array_equal(block, array[start:stop].view(np.uint16), err_msg=name)
            some = np.flatnonzero(rng.random(shape[0]) < 0.4)
            np.testing.assert_array_equal(source.take(some).array, array[some].view(np.uint16), err_msg=name)


@given(**PIECES, in_order=st.booleans())
def test_every_chunk_is_read_once_a_pass(
    tmp_path_factory, shape, chunks, batch_bytes, block_entries, seed, in_order: bool
) -> None:
    rng = np.random.default_rng(seed)
    chunks = min(chunks[0], shape[0]), min(chunks[1], shape[1])
    file = tmp_path_factory.mktemp("once") / "scores"
    rows = RowSet(open_scores(hdf5_file(file, rng.standard_normal(shape), chunks=chunks)))
    source = rows.source
    fetch, fetched = HDF5Source._fetch, []

    def count(self: HDF5Source, dataset: h5py.Dataset, start: int, stop: int, out: np.ndarray) -> None:
        fetched.extend(range(start, stop))
        assert start % chunks[0] == 0
        assert stop % chunks[0] == 0 or stop == shape[0]
        fetch(self, dataset, start, stop, out)

    with pytest.MonkeyPatch.context() as patch:
        set_pieces(patch, (block_entries, block_entries), batch_bytes)
        patch.setattr(HDF5Source, "_fetch", count)
        batches = rows.batches
        read_rows(source, 0, 1)  # what was read before the pass is not part of it
        fetched.clear()
        with rows.reading():
            for number in range(len(batches)) if in_order else rng.permutation(len(batches)):
                for _ in source.read(batches[number]):
                    pass
        assert sorted(fetched) == list(range(shape[0]))
        assert not source._leftovers  # type: ignore[attr-defined]


def test_leftovers_stay_few(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hdf5, "LEFTOVER_BYTES", 1000)
    source = open_scores(hdf5_file(tmp_path / "scores", np.zeros((2000, 3)), chunks=(10, 3))).source
    for row in range(5, 2000, 10):
        read_rows(source, row, row + 1)
    assert len(source._leftovers) == hdf5.MOST_LEFTOVERS  # type: ignore[attr-defined]
    sweep.inspect(RowSet(source))
    assert not source._leftovers  # type: ignore[attr-defined]


@pytest.mark.parametrize("n_threads", [2, 5])
def test_threads_read_every_chunk_once(tmp_path, monkeypatch, num_threads, n_threads: int) -> None:
    set_pieces(monkeypatch, (40, 40), 400)
    source = open_scores(hdf5_file(tmp_path / "scores", np.zeros((500, 4)), chunks=(13, 3)))
    fetch, fetched = HDF5Source._fetch, []

    def count(self: HDF5Source, dataset: h5py.Dataset, start: int, stop: int, out: np.ndarray) -> None:
        fetched.extend(range(start, stop))
        fetch(self, dataset, start, stop, out)

    monkeypatch.setattr(HDF5Source, "_fetch", count)
    num_threads(n_threads)
    for _ in range(10):
        fetched.clear()
        sweep.inspect(RowSet(source))
        assert sorted(fetched) == list(range(500))


# ---- how much is read ----


class Counted(FileSource):
    """An array that is read like a file, and counts what is read of it."""

    def __init__(self, array: np.ndarray) -> None:
        self._inside = open_scores(array).source
        self.name, self.shape, self.dtype = "counted", self._inside.shape, self._inside.dtype
        self.rows_read, self._lock = 0, threading.Lock()

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        out[:] = read_rows(self._inside, start, stop)
        with self._lock:
            self.rows_read += stop - start


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_pieces")
def test_no_pass_is_hidden(monkeypatch, kind: str) -> None:
    """A streamed solve reads what it says; merging equal rows takes two looks, a copy of at most all, and the proof."""
    merge, merged = assign.merge_equal_rows, list[bool]()

    def spy(*words: Any) -> Any:
        problem, members = merge(*words)
        merged.append(members is not None)
        return problem, members

    monkeypatch.setattr(assign, "merge_equal_rows", spy)
    for seed in range(3):
        scores, class_mass, _ = draw(kind, seed)
        array = storable(scores)
        source, n_rows = Counted(array), len(array)
        result = sinkhorn_assign(source, class_mass=class_mass, memory_limit=0)
        # The search for classes that all rows forbid ends where each is seen to be allowed.
        looks = [record["rows"] for record in result.history if record["stage"] == "inspect"]
        if merged.pop():
            assert source.rows_read <= sum(looks) + 2 * n_rows
        else:
            assert source.rows_read == result.n_sweeps * n_rows + sum(rows for rows in looks if rows < n_rows)


def test_larger_streamed_solve_reads_what_it_says() -> None:
    array = clusters(np.random.default_rng(2), 40_000, 20).astype(np.float32)
    for settings in ({}, {"rounding": "argmax"}, {"method": "sinkhorn"}, {"epsilon": 5.0}, {"epsilon": 1e-3}):
        source = Counted(array)
        result = sinkhorn_assign(source, memory_limit=0, **settings)
        assert source.rows_read == result.n_sweeps * 40_000


def test_kept_scores_are_read_once() -> None:
    source = Counted(clusters(np.random.default_rng(2), 9000, 20))
    assert sinkhorn_assign(source).n_sweeps > 1
    assert source.rows_read == 9000


@pytest.mark.parametrize(
    ("use", "most"),
    [
        (lambda source, result: certify(source, result.labels, potentials=result.potentials), 2),
        (lambda source, result: certify(source, result.labels), 2),
        (lambda source, result: result.predict(source), 2),
        (lambda source, result: result.plan(source), 2),
        (lambda source, result: result.soft_labels(source), 2),
        (lambda source, _: diagnose(source), 6),
        (lambda source, _: fingerprint(open_scores(source), "memory"), 0.1),
    ],
    ids=["certify by potentials", "certify", "predict", "plan", "soft_labels", "doctor", "fingerprint"],
)
def test_passes_of_all_else(use, most: float) -> None:
    array = clusters(np.random.default_rng(2), 3000, 5)
    source, result = Counted(array), sinkhorn_assign(array)
    use(source, result)
    assert source.rows_read <= most * 3000


@pytest.mark.parametrize("way", ["npy", "npy of other byte order", "contiguous", "whole chunks", "list of npy"])
@pytest.mark.usefixtures("small_pieces")
def test_bytes_read(tmp_path, way: str) -> None:
    array, file = normal(np.random.default_rng(0), 280, 6).astype(np.float32), tmp_path / "scores"
    source: Any
    if way == "whole chunks":  # chunks that reach beyond the matrix are stored in full
        source = hdf5_file(file, array, chunks=(7, 3))
    elif way == "list of npy":
        source = [npy(tmp_path / f"{n}", part) for n, part in enumerate(cut(array))]
    else:
        source = WAYS[way](file, array)
    streamed = sinkhorn_assign(source, memory_limit=0)
    assert streamed.bytes_read == streamed.n_sweeps * array.nbytes
    assert sinkhorn_assign(source).bytes_read == array.nbytes
    assert sinkhorn_assign(source, memory_limit=array.nbytes).bytes_read == array.nbytes
    assert sinkhorn_assign(source, memory_limit=array.nbytes - 1).bytes_read == streamed.bytes_read
    assert f"{streamed.bytes_read / 1000:.3g} kB read from files" in streamed.summary()


def test_bytes_read_are_those_of_the_file(tmp_path) -> None:
    """Compressed ones are counted as they lie on the disk, arrays not at all, parts together."""
    array = normal(np.random.default_rng(0), 3000, 6)
    assert sinkhorn_assign(array).bytes_read == 0
    assert sinkhorn_assign(np.asarray(array)[::-1]).bytes_read == 0
    path = hdf5_file(tmp_path / "small", np.round(array, 1), chunks=(100, 6), compression="gzip", shuffle=True)
    with h5py.File(tmp_path / "small.h5") as handle:
        stored = handle["deep/scores"].id.get_storage_size()
    assert stored < 0.5 * array.nbytes
    assert sinkhorn_assign(path).bytes_read == pytest.approx(stored, rel=1e-3)
    whole = npy(tmp_path / "large", array)
    together = sinkhorn_assign([path, whole, array])
    assert together.bytes_read == pytest.approx(stored + array.nbytes, rel=1e-3)


@pytest.mark.parametrize("limit", ["4GB", -1, float("nan")])
def test_memory_limit_that_is_none(limit) -> None:
    with pytest.raises(ValueError, match="memory_limit"):
        sinkhorn_assign(normal(np.random.default_rng(0), 30, 4), memory_limit=limit)


# ---- features ----


class Head:
    """Features and weights, and the scores that they stand for in float64."""

    def __init__(self, n_rows: int = 700, n_features: int = 9, n_classes: int = 6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.features = rng.standard_normal((n_rows, n_features))
        self.weight, self.bias = rng.standard_normal((n_classes, n_features)), rng.standard_normal(n_classes)

    def dense(self, features: Any = None, bias: bool = True, normalize: bool = True) -> np.ndarray:
        rows = self.features if features is None else float64(features)
        logits = rows @ self.weight.T + (self.bias if bias else 0.0)
        return log_softmax(logits, axis=1) if normalize else logits


FEATURES: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "array": lambda _, array: array,
    "torch": lambda _, array: torch.from_numpy(array),
    "torch.bfloat16": lambda _, array: torch.from_numpy(array).bfloat16(),
    "npy": npy,
    "chunked": chunked,
    "h5py.Dataset": data_set,
    "list": mixed_parts,
    "pattern": pattern,
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("way", FEATURES)
@pytest.mark.usefixtures("small_pieces")
def test_features_give_the_labels_of_the_dense_scores(tmp_path, way, dtype, bias, normalize) -> None:
    head = Head()
    features = FEATURES[way](tmp_path / "features", head.features.astype(dtype))
    stored = features if way.startswith("torch.") else head.features.astype(dtype)
    dense = head.dense(stored, bias, normalize)
    expected = sinkhorn_assign(dense)
    for memory_limit in (0, None):
        scores = linear_scores(features, head.weight, head.bias if bias else None, normalize=normalize)
        assert scores.dtype == ("float64" if dtype == "float64" and way != "torch.bfloat16" else "float32")
        result = sinkhorn_assign(scores, memory_limit=memory_limit)
        assert isinstance(result.labels, torch.Tensor) == way.startswith("torch")
        np.testing.assert_array_equal(np.asarray(result.labels), expected.labels)
        assert result.value == pytest.approx(expected.value, abs=1e-12)
        assert result.gap == pytest.approx(0, abs=1e-9)
        assert_proven(result, dense, expected.counts)  # of float64's scores, whatever products on the way were


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_of_scores_has_the_same_bits_however_it_is_read(monkeypatch, num_threads, n_threads, normalize) -> None:
    set_pieces(monkeypatch, (90, 90), 900)
    num_threads(n_threads)
    head = Head(n_rows=411, n_features=70, n_classes=13)
    scores = linear_scores(head.features.astype(np.float32), head.weight, head.bias, normalize=normalize)
    rows = RowSet(scores)
    with rows.reading():
        whole = np.concatenate([block.copy() for _, block in rows.blocks()])
    rng = np.random.default_rng(5)
    for low, high in np.sort(rng.integers(0, 412, (30, 2)), axis=1):
        if low < high:
            np.testing.assert_array_equal(read_rows(scores.source, int(low), int(high)), whole[low:high], strict=True)
    some = np.flatnonzero(rng.random(411) < 0.3)
    taken = scores.source.take(some)
    assert isinstance(taken, ArraySource)
    np.testing.assert_array_equal(taken.array, whole[some], strict=True)


@pytest.mark.usefixtures("library_threads")
def test_large_products_have_the_same_bits_outside_of_a_pass() -> None:
    """Large enough for a linear algebra library to share a product out to threads."""
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((6000, 200), np.float32), rng.standard_normal((300, 200), np.float32)
    scores = linear_scores(features, weight, normalize=False)
    rows = RowSet(scores)
    with rows.reading():
        whole = np.concatenate([block.copy() for _, block in rows.blocks()])
    np.testing.assert_array_equal(read_rows(scores.source, 0, 6000), whole)


@pytest.mark.usefixtures("small_pieces")
def test_thread_count_does_not_change_a_bit_of_products(tmp_path, num_threads) -> None:
    head, found = Head(n_rows=900), []
    for count in (1, 2, 5):
        num_threads(count)
        features = npy(tmp_path / f"{count}", head.features.astype(np.float32))
        found.append(sinkhorn_assign(linear_scores(features, head.weight, head.bias), memory_limit=0))
    for result in found[1:]:
        assert_same(result, found[0])


@pytest.mark.parametrize("biases", [None, "given"])
def test_heads_share_one_copy_of_the_features(tmp_path, biases) -> None:
    heads = [Head(seed=seed) for seed in range(3)]
    path = chunked(tmp_path / "features", heads[0].features)
    size = heads[0].features.nbytes
    weights = [head.weight for head in heads]
    many = linear_scores(path, weights, None if biases is None else [head.bias for head in heads])
    read = []
    for head, scores in zip(heads, many, strict=True):
        result = sinkhorn_assign(scores)
        read.append(result.bytes_read)
        expected = sinkhorn_assign(head.dense(heads[0].features, bias=biases is not None))
        np.testing.assert_array_equal(result.labels, expected.labels)
    assert read[0] >= size
    assert read[1:] == [0, 0]


def test_streamed_features_are_read_in_each_pass(tmp_path) -> None:
    head = Head()
    scores = linear_scores(npy(tmp_path / "features", head.features), head.weight)
    result = sinkhorn_assign(scores, memory_limit=0)
    assert result.bytes_read == result.n_sweeps * head.features.nbytes
    assert sinkhorn_assign(scores).bytes_read == head.features.nbytes


@pytest.mark.parametrize("way", ["array", "torch", "chunked"])
def test_features_are_taken_wherever_scores_are(tmp_path, way: str) -> None:
    head = Head(n_rows=200)
    dense = head.dense()
    scores = linear_scores(FEATURES[way](tmp_path / "features", head.features), head.weight, head.bias)
    result = sinkhorn_assign(dense)
    proof = certify(scores, result.labels)
    assert proof.value == pytest.approx(result.value, abs=1e-12)
    assert proof.gap == pytest.approx(0, abs=1e-12)
    for method, room in ((result.predict, 0), (result.plan, 1e-12), (result.soft_labels, 1e-9)):
        found = method(scores)
        assert isinstance(found, torch.Tensor) == (way == "torch")
        np.testing.assert_allclose(np.asarray(found), method(dense), atol=room)
    np.testing.assert_array_equal(np.asarray(lp_assign(scores).labels), result.labels)
    assert diagnose(scores).argmax_sizes == diagnose(dense).argmax_sizes


def test_features_of_one_class() -> None:
    head = Head(n_classes=1)
    result = sinkhorn_assign(linear_scores(head.features, head.weight))
    assert result.counts.tolist() == [700]
    assert result.value == 0.0


def test_forbidden_classes_of_a_head() -> None:
    head = Head()
    head.bias[2] = -np.inf
    mass = [140, 140, 0, 140, 140, 140]
    result = sinkhorn_assign(linear_scores(head.features, head.weight, head.bias), class_mass=mass)
    np.testing.assert_array_equal(result.labels, sinkhorn_assign(head.dense(), class_mass=mass).labels)


@pytest.mark.parametrize(
    ("weight", "bias", "told"),
    [
        (np.zeros((9, 6)), None, r"weight has shape \(9, 6\), .*did you mean weight\.T\?"),
        (np.zeros((6, 8)), None, r"weight has shape \(6, 8\), for 8 features a sample; there are 9$"),
        (np.zeros(9), None, r"weight has shape \(9,\)"),
        (np.zeros((0, 9)), None, r"weight has shape \(0, 9\)"),
        (np.zeros((6, 9), complex), None, "complex128"),
        (np.zeros((6, 9)), np.zeros(5), r"bias has shape \(5,\).*\(6,\)"),
        (np.zeros((6, 9)), np.zeros((6, 1)), r"bias has shape \(6, 1\)"),
    ],
)
def test_heads_that_do_not_fit(weight, bias, told: str) -> None:
    with pytest.raises(InvalidScoresError, match=told):
        linear_scores(Head().features, weight, bias)


def test_biases_that_do_not_pair_with_weights() -> None:
    with pytest.raises(ValueError, match="2 weights and 1 biases"):
        linear_scores(Head().features, [Head().weight] * 2, [Head().bias])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("way", ["array", "npy", "list"])
@pytest.mark.usefixtures("small_pieces")
def test_nan_in_features_is_located(tmp_path, way: str, normalize: bool) -> None:
    head = Head()
    head.features[457, 3] = np.nan
    features = FEATURES[way](tmp_path / "features", head.features)
    with pytest.raises(InvalidScoresError, match=r"row 457 .*\(of the features\)"):
        sinkhorn_assign(linear_scores(features, head.weight, normalize=normalize), memory_limit=0)


# ---- other processes, other threads ----


@pytest.mark.parametrize("way", ["npy", "chunked", "pattern"])
def test_a_source_by_path_may_be_sent_elsewhere(tmp_path, way: str) -> None:
    array = normal(np.random.default_rng(0), 60, 4)
    source = open_scores(WAYS[way](tmp_path / "scores", array))
    read_rows(source.source, 0, 9)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(all_rows(again), array)
    np.testing.assert_array_equal(all_rows(source), array)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_right(tmp_path, method: str) -> None:
    array = normal(np.random.default_rng(0), 60, 4)
    ways = ["npy", "chunked", "pattern"]
    sources = [open_scores(WAYS[way](tmp_path / f"{n}", array)).source for n, way in enumerate(ways)]
    for source in sources:
        read_rows(source, 3, 30)  # opens the file here first
    with multiprocessing.get_context(method).Pool(1) as pool:
        for source in sources:
            np.testing.assert_array_equal(pool.apply(read_rows, (source, 5, 58)), array[5:58])
            np.testing.assert_array_equal(read_rows(source, 5, 58), array[5:58])


@pytest.mark.parametrize("wrap", [lambda dataset: dataset, lambda dataset: [dataset, dataset]])
def test_a_callers_own_data_set_stays_with_him(tmp_path, wrap) -> None:
    dataset = data_set(tmp_path / "scores", np.zeros((5, 3)))
    with pytest.raises(TypeError, match=r"scores\.h5::/deep/scores was opened by the caller.*pass it as a text"):
        pickle.dumps(open_scores(wrap(dataset)))


def test_a_closed_file_is_told(tmp_path) -> None:
    dataset = data_set(tmp_path / "scores", normal(np.random.default_rng(0), 50, 3))
    opened = open_scores(dataset)
    dataset.file.close()
    with pytest.raises(FileFormatError, match=r"scores\.h5::/deep/scores was closed; keep its file open"):
        sinkhorn_assign(opened)
    with pytest.raises(FileFormatError, match="closed; keep its file open"):
        sinkhorn_assign(dataset)


def test_data_sets_in_memory() -> None:
    array = normal(np.random.default_rng(0), 50, 3)
    with h5py.File(io.BytesIO(), "w") as handle:
        handle["scores"] = array
        assert_same(sinkhorn_assign(handle["scores"], memory_limit=0), sinkhorn_assign(array))


def test_a_callers_file_stays_open(tmp_path) -> None:
    dataset = data_set(tmp_path / "scores", normal(np.random.default_rng(0), 50, 3))
    sinkhorn_assign([dataset] * 3)
    open_scores(dataset).source.close()
    assert dataset


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """A process that may open only so many files more than it has open."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(list(Path("/proc/self/fd").iterdir())) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, usual[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.mark.parametrize("way", ["npy", "chunked"])
def test_more_parts_than_files_may_be_open(tmp_path, monkeypatch, way: str, request) -> None:
    monkeypatch.setattr(parts, "MOST_OPEN", 5)
    array = normal(np.random.default_rng(0), 60, 3)
    sources = [WAYS[way](tmp_path / f"{n}", array[n : n + 1]) for n in range(60)]
    expected = sinkhorn_assign(array)
    request.getfixturevalue("few_open_files")
    assert_same(sinkhorn_assign(sources, memory_limit=0), expected)


def test_two_solves_at_once_share_a_source(tmp_path) -> None:
    array = clusters(np.random.default_rng(0), 3000, 5)
    source, found = open_scores(chunked(tmp_path / "scores", array)), list[Assignment]()
    threads = [threading.Thread(target=lambda: found.append(sinkhorn_assign(source, memory_limit=0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        np.testing.assert_array_equal(result.labels, sinkhorn_assign(array).labels)
    assert len(found) == 3


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


def test_linear_scores_can_be_sent_elsewhere(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", rng.normal(size=(300, 8)).astype(np.float32))
    scores = linear_scores(str(tmp_path / "features.npy"), rng.normal(size=(5, 8)))
    sent = pickle.loads(pickle.dumps(scores))
    np.testing.assert_array_equal(sinkhorn_assign(sent).labels, sinkhorn_assign(scores).labels)


def test_float8_is_read_as_the_numbers_it_stands_for() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 4))).to(torch.float8_e4m3fn)
    found, expected = sinkhorn_assign(scores), sinkhorn_assign(scores.float())
    assert torch.equal(found.labels, expected.labels)
    assert found.value == expected.value
