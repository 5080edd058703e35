"""Parts of a store, where several processes have the samples."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import names
from extractions import ABOUT, KINDS, make, rows_of
from hypothesis import given
from hypothesis import strategies as st

from otlabel.errors import SelfLabelWarning
from otlabel.selflabel.stores import FeatureStore, Part, extraction, finished
from otlabel.sources import open_scores, read_rows
from otlabel.sources.base import as_numbers


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
