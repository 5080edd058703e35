"""Sparse scores in every form that they come in: the same as a full matrix with -inf for what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from otlabel import certify, diagnose, lp_assign, sinkhorn_assign, top_scores
from otlabel.errors import FileFormatError, InfeasibleError, InvalidScoresError
from otlabel.sources import open_scores
from otlabel.sources.listed import Filled, ListedSource

N, K, M = 120, 7, 3


@pytest.fixture(scope="module")
def full() -> np.ndarray:
    """Three scores a row, one of them zero in the first rows, in float32."""
    rng = np.random.default_rng(0)
    scores = np.full((N, K), -np.inf, np.float32)
    classes = rng.permuted(np.tile(np.arange(K), (N, 1)), axis=1)[:, :M]
    np.put_along_axis(scores, classes, rng.normal(size=(N, M)).astype(np.float32), 1)
    scores[np.arange(9), classes[:9, 0]] = 0
    return scores


def csr_of(full: np.ndarray) -> sp.csr_array:
    """With zeros that are scores."""
    row, column = np.nonzero(full > -np.inf)
    starts = np.append(0, np.cumsum((full > -np.inf).sum(1)))
    return sp.csr_array((full[row, column], column, starts), shape=full.shape)


def candidates_of(full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes and scores, the best first, as an index gives them."""
    classes = np.argsort(-full, axis=1, kind="stable")[:, :M]
    return classes, np.take_along_axis(full, classes, 1)


def unsorted(rows: sp.csr_array) -> sp.csr_array:
    order = np.concatenate([np.arange(*rows.indptr[row : row + 2])[::-1] for row in range(rows.shape[0])])
    return sp.csr_array((rows.data[order], rows.indices[order], rows.indptr), shape=rows.shape)


def tensor_of(rows: sp.csr_array, layout: torch.layout) -> torch.Tensor:
    parts = (torch.from_numpy(part.astype(np.int64)) for part in (rows.indptr, rows.indices))
    csr = torch.sparse_csr_tensor(*parts, torch.from_numpy(rows.data), rows.shape, check_invariants=True)
    if layout == torch.sparse_csr:
        return csr
    if layout == torch.sparse_coo:
        return csr.to_sparse_coo()
    columns = rows.tocsc()
    parts = (torch.from_numpy(part.astype(np.int64)) for part in (columns.indptr, columns.indices))
    return torch.sparse_csc_tensor(*parts, torch.from_numpy(columns.data), rows.shape, check_invariants=True)


KINDS: dict[str, Callable[[sp.csr_array], Any]] = {
    "csr_array": lambda rows: rows,
    "csr_matrix": sp.csr_matrix,
    "csc_array": sp.csc_array,
    "csc_matrix": sp.csc_matrix,
    "coo_array": sp.coo_array,
    "coo_matrix": sp.coo_matrix,
    "unsorted": unsorted,
    "long indices": lambda rows: sp.csr_array((rows.data, rows.indices.astype(np.int64), rows.indptr), rows.shape),
    "float64": lambda rows: rows.astype(np.float64),
    "parts": lambda rows: [rows[:50], rows[50:50], rows[50:]],
    "tensor csr": lambda rows: tensor_of(rows, torch.sparse_csr),
    "tensor csc": lambda rows: tensor_of(rows, torch.sparse_csc),
    "tensor coo": lambda rows: tensor_of(rows, torch.sparse_coo),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("long_way")
def test_every_kind_is_the_full_matrix(kind: str, full, monkeypatch) -> None:
    expected = sinkhorn_assign(full)
    monkeypatch.setattr(Filled, "read", lambda self, spans: pytest.fail("made a full matrix"))
    scores = KINDS[kind](csr_of(full))
    result = sinkhorn_assign(scores)
    assert torch.is_tensor(result.labels) == kind.startswith("tensor")
    np.testing.assert_array_equal(np.asarray(result.labels), expected.labels)
    assert result.value == expected.value
    assert result.gap <= 1e-15
    np.testing.assert_array_equal(np.asarray(result.predict(scores)), result.predict(full))
    assert certify(scores, result.labels, potentials=result.potentials).gap <= 1e-15
    soft = result.soft_labels(scores)
    soft = soft.to_dense().numpy() if torch.is_tensor(soft) else soft.toarray()
    np.testing.assert_allclose(soft, result.soft_labels(full), atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_sparse_tensors_of_a_card_get_labels_there(layout: torch.layout, full) -> None:
    expected, scores = sinkhorn_assign(full), tensor_of(csr_of(full), layout).cuda()
    result = sinkhorn_assign(scores)
    assert result.labels.is_cuda
    np.testing.assert_array_equal(result.labels.cpu(), expected.labels)
    assert torch.equal(result.predict(scores), result.labels)
    on_host = sinkhorn_assign(csr_of(full), device="cuda")  # lists are reduced on the CPU, whatever is asked for
    np.testing.assert_array_equal(on_host.labels, expected.labels)


def test_small_ones_go_the_short_way(full) -> None:
    expected = sinkhorn_assign(full)
    result = sinkhorn_assign(csr_of(full))
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert (result.value, result.gap, result.n_readings) == (expected.value, expected.gap, expected.n_readings)
    assert lp_assign(csr_of(full)).value == pytest.approx(result.value, abs=1e-12)
    assert diagnose(csr_of(full)).n_minus_inf == N * (K - M)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, bool, np.float64])
def test_types_of_numbers(dtype, full) -> None:
    """Whole numbers are summed as such, where one pair comes twice, and not modulo their size."""
    whole = np.where(full > -np.inf, np.abs(np.nan_to_num(full, neginf=0)) * 40, 0).astype(dtype)
    row, column = np.nonzero(full > -np.inf)
    twice = (np.append(whole[row, column], whole[row, column]), (np.append(row, row), np.append(column, column)))
    scores = np.where(full > -np.inf, 2.0 * whole, -np.inf)
    expected = sinkhorn_assign(scores)
    coo = sp.coo_array(twice, shape=full.shape)
    row_order = np.argsort(twice[1][0], kind="stable")
    starts = np.append(0, np.cumsum(np.bincount(twice[1][0], minlength=N)))
    csr = sp.csr_array((twice[0][row_order], twice[1][1][row_order], starts), shape=full.shape)
    before = csr.data.copy()
    for kind in (csr, coo) if dtype not in (np.int8, bool) else (csr,):
        assert sinkhorn_assign(kind).value == pytest.approx(expected.value, abs=1e-12)
    np.testing.assert_array_equal(csr.data, before)  # inputs are never modified


def test_candidates(full) -> None:
    classes, values = candidates_of(full)
    expected = sinkhorn_assign(full)
    for dtype in (np.int16, np.int32, np.int64, np.uint8):
        np.testing.assert_array_equal(
            sinkhorn_assign(top_scores(classes.astype(dtype), values, K)).labels, expected.labels
        )
    wider = np.pad(classes, ((0, 0), (1, 1)), constant_values=-1), np.pad(values, ((0, 0), (1, 1)), constant_values=9)
    np.testing.assert_array_equal(sinkhorn_assign(top_scores(*wider, K)).labels, expected.labels)
    result = sinkhorn_assign(top_scores(torch.from_numpy(classes), torch.from_numpy(values).bfloat16(), K))
    assert torch.is_tensor(result.labels)
    assert result.value == pytest.approx(expected.value, abs=1e-2)
    assert torch.is_tensor(sinkhorn_assign([top_scores(classes, torch.from_numpy(values), K)] * 2).labels)
    many = top_scores(np.stack([np.arange(5), np.full(5, 39_999)], 1), np.ones((5, 2)), 40_000)
    assert many.lists.classes.max() == 39_999
    forbidden = values.copy()
    forbidden[:, 0] = -np.inf
    again = np.where(full == values[:, :1], -np.inf, full)
    assert sinkhorn_assign(top_scores(classes, forbidden, K)).value == pytest.approx(sinkhorn_assign(again).value)


def test_nothing_is_made_full(monkeypatch) -> None:
    """What would be 800 MB of float64."""
    monkeypatch.setattr(Filled, "read", lambda self, spans: pytest.fail("made a full matrix"))
    rng = np.random.default_rng(0)
    n, k = 20_000, 5_000
    own = rng.permutation(n)[:, None] % k  # so that there is an assignment
    classes = np.concatenate([own, own + rng.integers(1, k // 5, (n, 4)) * 5 + np.arange(4)], 1) % k
    result = sinkhorn_assign(top_scores(classes, rng.normal(size=classes.shape), k))
    assert set(result.counts.tolist()) == {4}
    assert result.proof.proven


def write_group(group: h5py.Group, matrix: Any, **attributes: Any) -> None:
    for name in ("data", "indices", "indptr"):
        group.create_dataset(name, data=getattr(matrix, name), chunks=True, fletcher32=True)
    group.attrs.update(attributes)


def test_files(full, tmp_path: Path, run) -> None:
    rows = csr_of(full)
    expected = sinkhorn_assign(full).labels
    square = rows[:K]
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        write_group(file.create_group("X"), rows, **{"encoding-type": "csr_matrix", "shape": rows.shape})
        write_group(file.create_group("columns"), rows.tocsc(), **{"encoding-type": "csc_matrix", "shape": rows.shape})
        write_group(file.create_group("old"), rows.tocsc(), h5sparse_format="csc", h5sparse_shape=rows.shape)
        write_group(file.create_group("plain"), rows.tocsc(), shape=rows.shape)
        write_group(file.create_group("square"), square.tocsc(), **{"encoding-type": "csc_matrix", "shape": (K, K)})
        tenx = file.create_group("matrix")  # features x barcodes, column by column
        write_group(tenx, rows)
        tenx["shape"], tenx["barcodes"] = rows.shape[::-1], np.arange(N)
        for name in ("X", "columns", "old", "plain", "matrix"):
            np.testing.assert_array_equal(sinkhorn_assign(file[name]).labels, expected)
    for name in ("X", "/columns", "old", "plain", "/matrix"):
        np.testing.assert_array_equal(sinkhorn_assign(f"{tmp_path}/cells.h5::{name}").labels, expected)
    source = open_scores(f"{tmp_path}/cells.h5::square").source
    assert isinstance(source, ListedSource)
    np.testing.assert_array_equal(next(Filled(source).read([(0, K)])), full[:K])
    parts = [f"{tmp_path}/cells.h5::X", rows, top_scores(*candidates_of(full), K)]
    assert sinkhorn_assign(parts).value == sinkhorn_assign(np.concatenate([full] * 3)).value
    for kind in (sp.csr_matrix, sp.csc_array):
        sp.save_npz(tmp_path / "saved.npz", kind(rows))
        np.testing.assert_array_equal(sinkhorn_assign(f"{tmp_path}/saved.npz").labels, expected)
    done = run("assign", f"{tmp_path}/cells.h5::/X", "-o", tmp_path / "labels.npy")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)
    assert run("certify", f"{tmp_path}/cells.h5::/X", tmp_path / "labels.npy").code == 0
    refused = run("plan", f"{tmp_path}/cells.h5::/X")
    assert refused.code == 2
    assert "holds a sparse matrix of 360 entries" in refused.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda group: group.pop("indptr"), "without indptr"),
        (lambda group: group.attrs.pop("shape"), "does not say its shape"),
        (lambda group: group.attrs.create("shape", [N]), "no two numbers"),
        (lambda group: group.attrs.modify("shape", (N + 1, K)), "no CSR matrix of shape"),
        (lambda group: group["indices"].write_direct(np.full(N * M, K, np.int32)), "no CSR matrix of shape"),
        (lambda group: group["indptr"].write_direct(np.arange(N, -1, -1, np.int32)), "no CSR matrix of shape"),
    ],
)
def test_damaged_groups(change, said: str, full, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_group(file.create_group("X"), csr_of(full), **{"encoding-type": "csr_matrix", "shape": full.shape})
        change(file["X"])
    with pytest.raises((FileFormatError, InvalidScoresError), match=said):
        sinkhorn_assign(f"{tmp_path}/x.h5::X")


def changed(full: np.ndarray, row: int, value: float) -> sp.csr_array:
    rows = csr_of(full)
    rows.data = rows.data.copy()
    rows.data[rows.indptr[row]] = value
    return rows


def test_bad_numbers(full) -> None:
    rows = csr_of(full)
    for value in (np.nan, np.inf):
        cls = rows.indices[rows.indptr[11]]
        with pytest.raises(InvalidScoresError, match=rf"1 of {N * K} scores.*row 11, class {cls} \({value}\)"):
            sinkhorn_assign(changed(full, 11, value))
    allowed = sinkhorn_assign(changed(full, 11, -np.inf))
    assert allowed.labels[11] in rows.indices[rows.indptr[11] + 1 : rows.indptr[12]]
    empty = rows.tolil()
    empty[[3, 40]] = 0
    empty = empty.tocsr()
    empty.eliminate_zeros()
    with pytest.raises(InfeasibleError, match=r"rows have no class allowed.*first is row 3"):
        sinkhorn_assign(empty)
    with pytest.raises(InfeasibleError, match="row 3"):
        sinkhorn_assign(full).predict(empty)
    with pytest.raises(InfeasibleError, match="class 2 is to take"):
        sinkhorn_assign(csr_of(np.where(np.arange(K) == 2, -np.inf, full)))
    with pytest.raises(InvalidScoresError, match="complex"):
        sinkhorn_assign(rows.astype(complex))
    with pytest.raises(InvalidScoresError, match="1 of 2 parts of scores are sparse"):
        sinkhorn_assign([rows, full])


@pytest.mark.parametrize(
    ("classes", "values", "said"),
    [
        ([[0, 0]], [[1.0, 2.0]], "row 0 lists class 0 twice"),
        ([[0, 1], [2, 1], [1, 1]], np.ones((3, 2)), "row 2 lists class 1 twice"),
        ([[0, 3]], [[1.0, 2.0]], r"classes\[0, 1\] is 3"),
        ([[0, -2]], [[1.0, 2.0]], r"classes\[0, 1\] is -2"),
        ([[0.0, 1.0]], [[1.0, 2.0]], "pass integers"),
        ([[0, 1]], [[1.0]], r"shape \(1, 2\), values \(1, 1\)"),
        ([0, 1], [1.0, 1.0], "two .N, m. matrices"),
    ],
)
def test_bad_candidates(classes, values, said: str) -> None:
    with pytest.raises(InvalidScoresError, match=said):
        top_scores(np.asarray(classes), np.asarray(values), 3)


def test_missing_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="missing is 'zero'"):
        top_scores(np.zeros((1, 1), int), np.ones((1, 1)), 1, missing="zero")  # type: ignore[arg-type]
