"""What is read of files, and how much: pieces that join to the matrix, every chunk once a pass, no pass hidden."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_as import WAYS, cut, hdf5_file, npy, set_pieces, storable
from problems import KINDS, clusters, draw, normal

from otlabel import assign, certify, sinkhorn_assign, sweep
from otlabel.doctor import diagnose
from otlabel.ranks.rowset import RowSet
from otlabel.sources import hdf5, open_scores, read_rows
from otlabel.sources.files import FileSource
from otlabel.sources.hdf5 import HDF5Source
from otlabel.storage.label_files import fingerprint

pytestmark = [
    pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning"),
    pytest.mark.usefixtures("long_way"),  # small problems are read once
]


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
