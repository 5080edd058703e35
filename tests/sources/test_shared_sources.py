"""Sources in other processes and threads, and files that others opened."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from kept_as import WAYS, all_rows, assert_same, chunked, data_set
from problems import clusters, normal

from otlabel import Assignment, sinkhorn_assign
from otlabel.errors import FileFormatError
from otlabel.sources import open_scores, parts, read_rows

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


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
