"""Metrics against scikit-learn, brute force and plain NumPy; and that they stay small where data are large."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from otlabel import metrics
from otlabel.errors import InvalidScoresError
from otlabel.metrics import neighbours, table
from otlabel.metrics.probe import L2_GRID

pytestmark = pytest.mark.filterwarnings("error")

MEASURES = {
    "nmi": oracle.normalized_mutual_info_score,
    "ami": oracle.adjusted_mutual_info_score,
    "ari": oracle.adjusted_rand_score,
}


@st.composite
def labelings(draw: st.DrawFn, least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two labelings of some samples by any whole numbers: one cluster, a few, or all distinct."""
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))

    def side() -> np.ndarray:
        k = draw(st.sampled_from([1, 2, 5, n]))
        names = rng.choice(np.array([*range(70), -7, 10**12, -(2**63), 2**63 - 1]), k, replace=False)
        codes = rng.permutation(n) if k == n else rng.integers(k, size=n)
        labels = np.where(rng.random(n) < draw(st.sampled_from([0, 0.3])), -1, names[codes])
        labels[0] = names[0]
        return labels

    return side(), side()


def labelled(truth: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = (truth != -1) & (labels != -1)
    return truth[both], labels[both]


def best_match(truth: np.ndarray, labels: np.ndarray) -> float:
    """By trying every one-to-one naming."""
    rows, columns = (np.unique(side, return_inverse=True)[1] for side in (truth, labels))
    counts = np.zeros((rows.max() + 1, columns.max() + 1), int)
    np.add.at(counts, (rows, columns), 1)
    counts = counts if len(counts) <= len(counts.T) else counts.T
    some = itertools.permutations(range(len(counts.T)), len(counts))
    return max(counts[range(len(counts)), list(names)].sum() for names in some) / len(truth)


# ---- agreement ----


@pytest.mark.parametrize("name", MEASURES)
@given(labelings())
def test_as_scikit_learn(name: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    both = labelled(*pair)
    # Clusters of one sample each on both sides agree wholly; adjusting them is 0/0, which older scikit-learn calls 0.
    are_apart = all(len(np.unique(side)) == len(side) for side in both)
    expected = 1.0 if are_apart else MEASURES[name](*both)
    assert getattr(metrics, name)(*pair) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 400), st.integers(2, 60), st.integers(1, 12))
def test_uneven_sizes_as_scikit_learn(seed: int, n: int, k: int, repeats: int) -> None:
    rng = np.random.default_rng(seed)
    truth, labels = (np.repeat((k * rng.random(n) ** 3).astype(int), repeats) for _ in range(2))
    for name, measure in MEASURES.items():
        assert getattr(metrics, name)(truth, labels) == pytest.approx(measure(truth, labels), abs=1e-9), name


def test_adjustment_of_large_clusters_as_scikit_learn() -> None:
    """So large that the sum leaves out what is too improbable to count."""
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=20_000)
    labels = np.where(rng.random(20_000) < 0.1, truth, rng.integers(200, size=20_000))
    assert metrics.ami(truth, labels) == pytest.approx(oracle.adjusted_mutual_info_score(truth, labels), abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6), st.integers(1, 40))
def test_accuracy_is_that_of_the_best_names(seed: int, n_classes: int, n_clusters: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth, labels = rng.integers(n_classes, size=n), rng.integers(n_clusters, size=n)
    assert metrics.accuracy(truth, labels) == pytest.approx(best_match(truth, labels), abs=1e-12)
    assert metrics.churn(truth, labels, matched=True) == pytest.approx(1 - best_match(truth, labels), abs=1e-12)


@given(labelings())
def test_purity_and_entropy_by_cluster(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, labels = labelled(*pair)
    clusters, sizes = np.unique(labels, return_counts=True)
    shares = [
        np.unique(truth[labels == c], return_counts=True)[1] / size for c, size in zip(clusters, sizes, strict=True)
    ]
    entropy = [-(share * np.log(share)).sum() for share in shares]
    found = metrics.class_entropy(*pair)
    np.testing.assert_array_equal(found.clusters, clusters)
    np.testing.assert_array_equal(found.sizes, sizes)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-12)
    assert metrics.mean_class_entropy(*pair) == pytest.approx(np.average(entropy, weights=sizes), abs=1e-12)
    purity = sum(share.max() * size for share, size in zip(shares, sizes, strict=True)) / len(truth)
    assert metrics.purity(*pair) == pytest.approx(purity, abs=1e-12)


@given(labelings())
def test_new_names_change_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, labels = labelled(*pair)
    names = np.random.default_rng(0).permutation(200)
    renamed = names[np.unique(labels, return_inverse=True)[1]]
    assert metrics.compare(truth, renamed) == pytest.approx(metrics.compare(truth, labels), abs=1e-12)
    assert metrics.churn(labels, renamed, matched=True) == 0


@given(labelings())
def test_churn_is_the_share_that_changed(pair: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = labelled(*pair)
    assert metrics.churn(*pair) == pytest.approx((before != after).mean(), abs=1e-12)
    assert metrics.churn(before, before) == 0


@given(labelings())
def test_compare_is_all_of_them(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = metrics.compare(*pair)
    assert found.pop("n_samples") == len(labelled(*pair)[0])
    assert found == {name: getattr(metrics, name)(*pair) for name in ("nmi", "ami", "ari", "accuracy", "purity")}


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    truth, labels = rng.integers(-1, 20, 1000), rng.choice([5, -1, 10**9, 7], 1000)
    truth[:100] = -1  # whole chunks without a label
    whole, entropy = metrics.compare(truth, labels), metrics.class_entropy(truth, labels).entropy
    monkeypatch.setattr(table, "CHUNK", 17)
    assert metrics.compare(truth, labels) == whole
    np.testing.assert_array_equal(metrics.class_entropy(truth, labels).entropy, entropy)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.int8, np.uint8, np.uint64])
def test_labels_of_every_kind(kind: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(2)
    truth, labels = rng.integers(5, size=99), rng.integers(7, size=99)
    assert metrics.compare(kind(truth), kind(labels)) == metrics.compare(truth, labels)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_narrow_types_and_truth_values_are_labels_too(dtype: type) -> None:
    truth = np.repeat(np.delete(np.arange(-128, 128), 127), 3)  # without -1
    for labels in (truth, truth[truth >= 0], truth[truth < -1]):
        assert metrics.compare(labels.astype(dtype), np.arange(len(labels)) // 3)["nmi"] == pytest.approx(1)
    assert metrics.compare(truth > 0, truth > 0)["accuracy"] == 1


def test_memory_does_not_grow_with_the_samples() -> None:
    rng = np.random.default_rng(3)
    truth, labels = (rng.integers(k, size=2_000_000, dtype=np.int32) for k in (300, 1000))
    tracemalloc.start()
    found = metrics.compare(truth, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["n_samples"] == 2_000_000
    assert peak < 64 * table.CHUNK  # 64 bytes a sample of one chunk, the 300,000 pairs included


def test_pairs_of_many_samples_do_not_overflow() -> None:
    """800,000 samples: the products of numbers of pairs have 77 bits."""
    sizes = [300_000, 100_000, 50_000, 350_000]
    pair = np.repeat([0, 0, 1, 1], sizes), np.repeat([0, 1, 0, 1], sizes)
    assert metrics.ari(*pair) == pytest.approx(oracle.adjusted_rand_score(*pair), abs=1e-12)


def test_many_small_clusters_are_matched() -> None:
    """Tables that no dense array would hold."""
    n = 100_000
    order = np.random.default_rng(4).permutation(n)
    assert metrics.accuracy(order, order[::-1]) == 1
    assert metrics.accuracy(order % 10, order) == metrics.accuracy(order, order % 10) == 10 / n


@pytest.mark.parametrize(
    ("truth", "labels", "message"),
    [
        ([0, 1], [0, 1, 2], r"truth have shape \(2,\), labels \(3,\)"),
        ([], [], "truth are empty"),
        ([0, 1], [0.0, 1.0], "labels have dtype float64"),
        ([[0, 1]], [0, 1], r"truth have shape \(1, 2\)"),
        ([0, -1], [-1, 1], "no sample has a label other than -1 in both truth and labels"),
    ],
)
def test_labels_that_are_refused(truth: Any, labels: Any, message: str) -> None:
    for measure in (metrics.compare, metrics.nmi, metrics.accuracy, metrics.class_entropy):
        with pytest.raises(ValueError, match=message):
            measure(truth, labels)


def test_churn_names_its_own_arguments() -> None:
    with pytest.raises(ValueError, match=r"before have shape \(2,\), after \(3,\)"):
        metrics.churn([0, 1], [0, 1, 2])


# ---- nearest neighbours ----


def plain_knn(x: np.ndarray, y: np.ndarray, new: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Word for word, all at once; for numbers without ties."""
    cosines = normalize(new) @ normalize(x).T
    near = np.argsort(-cosines, 1)[:, :k]
    votes = np.exp(np.take_along_axis(cosines, near, 1) / temperature)
    classes = np.unique(y)
    totals = [(votes * (y[near] == c)).sum(1) for c in classes]
    return classes[np.argmax(totals, 0)]


def points(seed: int, n: int = 200, m: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, new_y = rng.integers(4, size=n), rng.integers(4, size=m)
    centres = rng.normal(size=(4, 6))
    return centres[y] + rng.normal(size=(n, 6)), 10 * y - 3, centres[new_y] + rng.normal(size=(m, 6)), 10 * new_y - 3


@given(st.integers(0, 10**6), st.sampled_from([1, 7, 50, 200, 999]), st.sampled_from([0.01, 0.1, 1.0]))
def test_neighbours_as_plain_numpy(seed: int, k: int, temperature: float) -> None:
    x, y, new, new_y = points(seed)
    found = metrics.knn_predict(x, y, new, k=k, temperature=temperature)
    np.testing.assert_array_equal(found, plain_knn(x, y, new, k, temperature))
    assert found.dtype == np.int64
    share = metrics.knn_accuracy(x, y, new, new_y, k=k, temperature=temperature)
    assert share == pytest.approx((found == new_y).mean())


def test_neighbours_as_scikit_learn() -> None:
    x, y = load_digits(return_X_y=True)
    model = KNeighborsClassifier(50, weights=lambda d: np.exp((1 - d) / 0.1), metric="cosine", algorithm="brute")
    expected = model.fit(x[:1000], y[:1000]).score(x[1000:], y[1000:])
    assert metrics.knn_accuracy(x[:1000], y[:1000], x[1000:], y[1000:]) == pytest.approx(expected)


def test_blocks_of_neighbours_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, new, _ = points(5)
    y[::3] = -1
    expected = plain_knn(x[y != -1], y[y != -1], new, 20, 0.1)
    monkeypatch.setattr(neighbours, "TRAIN_ROWS", 7)
    np.testing.assert_array_equal(metrics.knn_predict(x, y, new, k=20, batch=3), expected)


@pytest.mark.parametrize("rows", [2, 3, 100])
def test_the_first_of_equally_near_rows_count(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows point the same way: the first k vote, wherever blocks end."""
    monkeypatch.setattr(neighbours, "TRAIN_ROWS", rows)
    x, y = np.ones((8, 2)), np.array([9, 4, 4, 9, 4, 4, 4, 4])
    found = [int(metrics.knn_predict(x, y, [[2.0, 2.0]], k=k)[0]) for k in range(1, 7)]
    assert found == [9, 4, 4, 4, 4, 4]  # with two and with four votes it is a draw, which the smaller class wins


def test_unlabelled_rows_neither_vote_nor_count() -> None:
    x, y, new, new_y = points(6)
    y[::2] = -1
    new_y[:10] = -1
    found = metrics.knn_predict(x, y, new)
    np.testing.assert_array_equal(found, metrics.knn_predict(x[1::2], y[1::2], new))
    assert metrics.knn_accuracy(x, y, new, new_y) == pytest.approx((found == new_y)[10:].mean())


def test_small_and_large_temperatures() -> None:
    x, y, new, _ = points(7)
    nearest = metrics.knn_predict(x, y, new, k=1)
    np.testing.assert_array_equal(metrics.knn_predict(x, y, new, temperature=1e-6), nearest)
    counted = [np.bincount(y[row] + 3).argmax() - 3 for row in np.argsort(-normalize(new) @ normalize(x).T, 1)[:, :9]]
    np.testing.assert_array_equal(metrics.knn_predict(x, y, new, k=9, temperature=1e300), counted)


def test_features_from_everywhere(tmp_path: Path) -> None:
    x, y, new, new_y = points(8)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["x"] = x
    stored = f"{tmp_path / 'features.h5'}::/x"
    for kind in (x, x.tolist(), torch.from_numpy(x), stored):
        assert metrics.knn_accuracy(kind, y, new, new_y) == metrics.knn_accuracy(x, y, new, new_y)
        assert metrics.linear_probe(kind, y, new, new_y) == metrics.linear_probe(x, y, new, new_y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_the_device() -> None:
    x, y, new, new_y = points(9)
    on_device = torch.from_numpy(x).cuda(), y, torch.from_numpy(new).cuda(), torch.from_numpy(new_y).cuda()
    assert metrics.knn_accuracy(*on_device) == metrics.knn_accuracy(x, y, new, new_y)
    assert metrics.linear_probe(*on_device) == pytest.approx(metrics.linear_probe(x, y, new, new_y), abs=0.005)


# ---- linear probe ----


def regression(x: np.ndarray, y: np.ndarray, new: np.ndarray, l2: float) -> np.ndarray:
    """Predictions of scikit-learn for the same objective."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=5000, tol=1e-6).fit(scaler.transform(x), y)
    return model.predict(scaler.transform(new))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-4])
def test_probe_as_scikit_learn(l2: float, dtype: type) -> None:
    x, y = load_digits(return_X_y=True)
    x = x.astype(dtype)
    found = metrics.linear_probe(x[:1000], y[:1000], x[1000:], y[1000:], l2=l2, max_iter=1000)
    assert found == pytest.approx((regression(x[:1000], y[:1000], x[1000:], l2) == y[1000:]).mean(), abs=0.005)


def test_probe_chooses_on_held_out_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    y = rng.integers(2, size=150)
    x = np.where(y[:, None] == 1, 0.4, -0.4) * (np.arange(100) < 5) + rng.normal(size=(150, 100))
    chosen = metrics.linear_probe(x[:80], y[:80], x[80:], y[80:], l2=None, seed=3)
    order = np.random.default_rng(3).permutation(80)
    held, rest = order[:16], order[16:]
    right = [(regression(x[rest], y[rest], x[held], l2) == y[held]).sum() for l2 in L2_GRID]
    best = L2_GRID[int(np.argmax(right))]
    assert chosen == metrics.linear_probe(x[:80], y[:80], x[80:], y[80:], l2=best)
    assert chosen == metrics.linear_probe(x[:80], y[:80], x[80:], y[80:], l2=None, seed=3)


def test_probe_of_scaled_shifted_and_constant_features() -> None:
    """Standardising takes units out; a constant feature, whatever its rounding, adds nothing."""
    x, y, new, new_y = points(11)
    expected = metrics.linear_probe(x, y, new, new_y)
    wide, wide_new = (np.c_[1e3 * side + 1e4, np.full(len(side), 0.1)] for side in (x, new))
    assert metrics.linear_probe(wide, y, wide_new, new_y) == expected


def test_probe_leaves_out_what_has_no_label() -> None:
    x, y, new, new_y = points(12)
    y[::2], new_y[:20] = -1, -1
    expected = metrics.linear_probe(x[1::2], y[1::2], new[20:], new_y[20:])
    assert metrics.linear_probe(x, y, new, new_y) == expected


def test_probe_under_no_grad_and_input_kept() -> None:
    x, y, new, new_y = (torch.from_numpy(part) for part in points(13))
    before = x.clone()
    with torch.no_grad():
        under = metrics.linear_probe(x, y, new, new_y)
    assert under == metrics.linear_probe(x, y, new, new_y)
    assert torch.equal(x, before)


def test_probe_of_nothing_but_constants() -> None:
    y = np.array([3, 3, 8])
    assert metrics.linear_probe(np.ones((3, 2)), y, np.ones((3, 2)), y, l2=0) == pytest.approx(2 / 3)


def test_classes_that_training_lacks_are_wrong() -> None:
    x, _, new, _ = points(14)
    for measure in (metrics.knn_accuracy, metrics.linear_probe):
        assert measure(x, np.full(len(x), 5), new, np.arange(len(new)) % 2 * 5) == 0.5


@pytest.mark.parametrize("measure", [metrics.knn_accuracy, metrics.linear_probe])
def test_features_that_are_refused(measure: Callable[..., float]) -> None:
    x, y, new, new_y = points(15)
    with pytest.raises(ValueError, match=r"train_features have shape \(200, 5\), test_features \(50, 6\)"):
        measure(x[:, :5], y, new, new_y)
    with pytest.raises(ValueError, match=r"train_features have shape \(200, 6\), train_labels \(199,\)"):
        measure(x, y[1:], new, new_y)
    with pytest.raises(ValueError, match=r"test_features have shape \(50, 6\), test_labels \(49,\)"):
        measure(x, y, new, new_y[1:])
    with pytest.raises(ValueError, match="no row has a label other than -1 in train_labels"):
        measure(x, np.full(200, -1), new, new_y)
    for name, side in (("train_features", x), ("test_features", new)):
        side[17, 2] = np.nan
        with pytest.raises(InvalidScoresError, match=f"{name} hold NaN or infinity, the first at row 17"):
            measure(x, y, new, new_y)
        side[17, 2] = 0


@pytest.mark.parametrize("setting", [{"k": 0}, {"temperature": 0.0}, {"batch": 0}, {"temperature": float("nan")}])
def test_settings_of_neighbours_that_are_refused(setting: dict[str, Any]) -> None:
    x, y, new, _ = points(16)
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is .*; it must be positive"):
        metrics.knn_predict(x, y, new, **setting)


@pytest.mark.parametrize("setting", [{"l2": -1.0}, {"l2": float("nan")}, {"max_iter": 0}])
def test_settings_of_the_probe_that_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is "):
        metrics.linear_probe(*points(17), **setting)
