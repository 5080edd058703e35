"""What is opened once and read in several forms, and what is kept of it on the way."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from otlabel import linear_scores
from otlabel.ranks.rowset import RowSet
from otlabel.sources import Opened, as_float, cached, moved, open_scores, read_rows, unit_rows, with_column
from otlabel.sources.names import in_order_of


def numbers(opened: Opened, form: str) -> np.ndarray:
    source = getattr(opened, form)
    return as_float(read_rows(source, 0, opened.shape[0]), source.dtype).astype(np.float64)


def head(n: int = 50, k: int = 4) -> Opened:
    rng = np.random.default_rng(n)
    return linear_scores(rng.standard_normal((n, 3), np.float32), rng.standard_normal((k, 3)))


def test_a_form_that_is_no_other_stays_none() -> None:
    stored = open_scores(np.eye(5, 3))
    assert stored.fine is stored.bare is stored.source
    for changed in (moved(stored, 2.0), with_column(stored), in_order_of(stored, ["a", "b", "c"])):
        assert changed.fine is changed.bare is changed.source
    rounded = unit_rows(open_scores(np.eye(5, 3, dtype=np.float32)))
    assert (rounded.source.dtype, rounded.fine.dtype) == ("float32", "float64")


def test_each_form_is_changed_alike() -> None:
    opened, shifted = head(), moved(head(), 2.0)
    assert len({id(form) for form in (opened.source, opened.fine, opened.bare)}) == 3
    for form in ("source", "fine", "bare"):
        np.testing.assert_allclose(numbers(shifted, form), numbers(opened, form) - 2.0, atol=1e-12)
    wider = with_column(opened)
    assert wider.bare is wider.fine  # a constant in a row counts, beside a score that is 0 for everyone
    np.testing.assert_array_equal(numbers(wider, "fine")[:, :-1], numbers(opened, "fine"))
    difference = numbers(opened, "fine") - numbers(opened, "bare")
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-12)


def test_one_more_column_leaves_the_blocks_as_they_are() -> None:
    rows = RowSet(open_scores(np.random.default_rng(0).standard_normal((40_000, 7))))
    wider = rows.over(with_column(rows.opened))
    assert wider.shape == (40_000, 8)
    assert wider.spans == rows.spans
    assert wider.subset(np.arange(30_000)).spans == rows.subset(np.arange(30_000)).spans
    assert RowSet(wider.opened).spans != rows.spans


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_rows_are_kept_in_whatever_spans_they_are_read(tmp_path: Path, size: int) -> None:
    array = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float16)
    np.save(tmp_path / "scores.npy", array)
    chosen = np.array([0, 3, 63, 64, 65, 250, 499])
    kept = cached(open_scores(tmp_path / "scores.npy"), 0, chosen)
    ends = [*range(0, 500, size), 500]
    for start, stop in itertools.pairwise(ends):
        (block,) = kept.source.read([(start, stop)])
        np.testing.assert_array_equal(block.view(np.float16), array[start:stop])
    before = kept.bytes_read
    assert before == array.nbytes
    for some in (chosen, chosen[2:5]):
        taken = kept.source.take(some)
        np.testing.assert_array_equal(read_rows(taken, 0, len(some)).view(np.float16), array[some])
    assert kept.bytes_read == before
    kept.source.take(np.array([1, 2]))  # which are not among them
    assert kept.bytes_read > before


def test_a_pass_ends_with_the_file_closed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "scores.h5", "w") as handle:
        handle["scores"] = np.eye(30, 4)
    rows = RowSet(open_scores(f"{tmp_path}/scores.h5::/scores"))
    with rows.reading():
        assert sum(len(block) for _, block in rows.blocks()) == 30
    with h5py.File(tmp_path / "scores.h5", "a") as handle:  # nobody holds it
        handle.attrs["seen"] = True
