"""Features and heads as scores: the labels of the dense scores, the same bits however they are read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_as import assert_same, chunked, data_set, mixed_parts, npy, pattern, set_pieces
from oracles import assert_proven, float64
from scipy.special import log_softmax

from otlabel import certify, linear_scores, lp_assign, sinkhorn_assign
from otlabel.doctor import diagnose
from otlabel.errors import InvalidScoresError
from otlabel.ranks.rowset import RowSet
from otlabel.sources import ArraySource, read_rows

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


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


def test_linear_scores_can_be_sent_elsewhere(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", rng.normal(size=(300, 8)).astype(np.float32))
    scores = linear_scores(str(tmp_path / "features.npy"), rng.normal(size=(5, 8)))
    sent = pickle.loads(pickle.dumps(scores))
    np.testing.assert_array_equal(sinkhorn_assign(sent).labels, sinkhorn_assign(scores).labels)
