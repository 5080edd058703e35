"""Where clusterings start and how they go on: first centres, empty clusters, swaps, what is told, bounds in predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from oracles import hungarian_labels
from sklearn.cluster import KMeans

from otlabel import BalancedKMeans
from otlabel.errors import InvalidScoresError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(sizes: tuple[int, ...] = (100, 100, 100, 100), d: int = 2, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middles = 10 * rng.permutation(np.eye(max(d, len(sizes))))[: len(sizes), :d]
    middles[:, 0] += 10 * np.arange(len(sizes))
    return np.repeat(middles, sizes, axis=0) + 0.1 * rng.normal(size=(sum(sizes), d))


def distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.square(x[:, None] - centres).sum(2)


# ---- first centres ----


def test_random_centres_are_rows_and_start_ten_times() -> None:
    x, starts = blobs(), set()
    BalancedKMeans(4, init="random", random_state=0, verbose=lambda record: starts.add(record["start"])).fit(x)
    assert starts == set(range(1, 11))
    models = [BalancedKMeans(4, init="random", n_init=1, max_iter=1, random_state=seed).fit(x) for seed in range(8)]
    assert len({model.inertia_ for model in models}) > 1
    assert all(model.sizes_.tolist() == [100] * 4 for model in models)


@pytest.mark.parametrize(("metric", "place"), [("euclidean", "array"), ("cosine", "file"), ("euclidean", "tensor")])
def test_a_function_may_choose_the_centres(metric: str, place: str, tmp_path: Path) -> None:
    x, given = blobs().astype(np.float32), []

    def chosen(rows, n_clusters, random_state):
        given.append(rows)
        return rows[random_state.permutation(len(rows))[:n_clusters]].tolist()

    np.save(tmp_path / "x.npy", x)
    where = {"array": x, "file": str(tmp_path / "x.npy"), "tensor": torch.from_numpy(x)}[place]
    model = BalancedKMeans(4, init=chosen, n_init=2, metric=metric, random_state=1).fit(where)
    assert len(given) == 2
    expected = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    np.testing.assert_allclose(given[0], expected, rtol=1e-6)
    again = BalancedKMeans(4, init=chosen, n_init=2, metric=metric, random_state=1).fit(where)
    np.testing.assert_array_equal(model.labels_, again.labels_)


def test_given_centres_start_once_whatever_n_init_is() -> None:
    x, starts = blobs(), set()
    BalancedKMeans(4, init=x[:4], n_init=5, verbose=lambda record: starts.add(record["start"])).fit(x)
    assert starts == {1}


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix, scipy.sparse.coo_array])
def test_sparse_rows_are_told_what_to_do(kind) -> None:
    with pytest.raises(InvalidScoresError, match=r"sparse .*TruncatedSVD\(200\)\.fit_transform\(features\)"):
        BalancedKMeans(4).fit(kind(blobs()))


# ---- empty clusters ----


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("bounds", [{"size_max": 400}, {"size_min": 0}, {"size_max": 250}])
@pytest.mark.parametrize("n_far", [1, 2, 3])
def test_a_centre_far_from_all_rows_comes_back(metric: str, bounds: dict, n_far: int) -> None:
    """As in scikit-learn; without that, a blob too few is told apart and the inertia is a thousand times as large."""
    x = blobs((100, 100, 100, 100), 5)
    init = x[50::100].copy()
    init[-n_far:] = -1000 * np.ones((n_far, 5)) - np.arange(n_far)[:, None]
    model = BalancedKMeans(4, init=init, metric=metric, **bounds).fit(x)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    best = KMeans(4, init=rows[50::100], n_init=1).fit(rows).inertia_
    assert model.sizes_.tolist() == [100] * 4
    assert model.inertia_ == pytest.approx(best / 2 if metric == "cosine" else best, rel=1e-3)


# ---- swaps ----


def test_swaps_lead_out_of_a_local_minimum() -> None:
    """Two centres in one blob and one between two: iterations alone stay there, as sizes may be anything."""
    x = blobs()
    init = np.stack([x[:100].mean(0) + 0.05, x[:100].mean(0) - 0.05, x[100:200].mean(0), x[200:].mean(0)])
    settings = {"init": init, "size_min": 1, "random_state": 0}
    stuck, free = BalancedKMeans(4, **settings).fit(x), BalancedKMeans(4, n_swaps=20, **settings).fit(x)
    assert stuck.inertia_ > 100 * free.inertia_
    assert free.sizes_.tolist() == [100] * 4
    assert abs(free.gap_) <= 1e-9 * free.inertia_


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_swaps_never_do_harm_and_leave_the_best_labels(metric: str) -> None:
    x = np.random.default_rng(0).normal(size=(240, 3))
    plain = BalancedKMeans(8, metric=metric, random_state=0).fit(x)
    model = BalancedKMeans(8, metric=metric, random_state=0, n_swaps=8).fit(x)
    assert model.inertia_ <= plain.inertia_
    assert model.n_iter_ > plain.n_iter_
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    cost = distances(rows, model.cluster_centers_)
    np.testing.assert_array_equal(model.labels_, hungarian_labels(-cost, model.sizes_))
    again = BalancedKMeans(8, metric=metric, random_state=0, n_swaps=8).fit(x)
    np.testing.assert_array_equal(again.labels_, model.labels_)


def test_rows_that_are_all_at_their_centres_need_no_swaps() -> None:
    x = np.repeat(np.eye(3), 4, axis=0)
    model = BalancedKMeans(3, n_swaps=5, random_state=0).fit(x)
    assert model.inertia_ == 0
    assert BalancedKMeans(2, n_swaps=5, random_state=0).fit(np.ones((6, 2))).sizes_.tolist() == [3, 3]


# ---- what is told ----


def test_each_iteration_is_told() -> None:
    records: list[dict] = []
    x = np.random.default_rng(0).normal(size=(300, 3))
    model = BalancedKMeans(5, tol=0, random_state=0, verbose=records.append).fit(x)
    assert [record["iteration"] for record in records] == list(range(1, model.n_iter_ + 1))
    assert {record["start"] for record in records} == {1}
    inertia = [record["inertia"] for record in records]
    assert sorted(inertia, reverse=True) == inertia
    assert inertia[-1] >= model.inertia_ > 0
    assert all(record["moved"] >= 0 and record["seconds"] > 0 for record in records)


def test_a_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(300, 3))
    BalancedKMeans(5, n_init=2, random_state=0, verbose=1).fit(x)
    out, err = capsys.readouterr()
    assert out == ""
    assert "start 2 of 2, inertia" in err
    BalancedKMeans(5, random_state=0).fit(x)
    assert capsys.readouterr() == ("", "")


# ---- bounds in predict ----


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("low", "high"), [(3, 5), (4, 4), (None, 4), (2, None)])
def test_predict_keeps_bounds_in_the_best_way(metric: str, low: int | None, high: int | None) -> None:
    rng = np.random.default_rng(0)
    model = BalancedKMeans(3, metric=metric, random_state=0).fit(rng.normal(size=(60, 3)))
    new = rng.normal(size=(12, 3)) + 0.7
    labels = model.predict(new, size_min=low, size_max=high)
    counts = np.bincount(labels, minlength=3)
    low, high = low or 0, high or 12
    assert low <= counts.min() <= counts.max() <= high
    rows = new / np.linalg.norm(new, axis=1, keepdims=True) if metric == "cosine" else new
    cost = distances(rows, model.cluster_centers_)
    every = [(a, b, 12 - a - b) for a in range(13) for b in range(13 - a)]
    allowed = [sizes for sizes in every if low <= min(sizes) and max(sizes) <= high]
    best = min(float(cost[np.arange(12), hungarian_labels(-cost, np.array(sizes))].sum()) for sizes in allowed)
    assert cost[np.arange(12), labels].sum() == pytest.approx(best, rel=1e-12)


def test_predict_refuses_bounds_that_cannot_be_kept() -> None:
    model = BalancedKMeans(4, random_state=0).fit(blobs())
    with pytest.raises(ValueError, match="size_max=2 in 4 clusters leaves room for 8 rows, 2 fewer than the 10"):
        model.predict(blobs()[:10], size_max=2)
    with pytest.raises(ValueError, match="size_min=3"):
        model.predict(blobs()[:10], size_min=3)
    assert np.bincount(model.predict(blobs()[:10], size_max=3), minlength=4).max() == 3
    assert len(set(model.predict(blobs()[:10]))) == 1
    assert model.predict(blobs()[:1], size_min=0).shape == (1,)
