"""BalancedKMeans: exact sizes, optimal steps, scikit-learn's own checks, and features that lie anywhere."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import even_counts, hungarian_labels
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

import otlabel
from otlabel import BalancedKMeans, sweep
from otlabel.cluster import alternation, estimator
from otlabel.errors import InvalidScoresError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::sklearn.exceptions.ConvergenceWarning")


def points(n: int = 300, d: int = 4, *, seed: int = 0, uneven: bool = True) -> np.ndarray:
    """Clusters of very different sizes: what plain k-means and balance disagree on."""
    rng = np.random.default_rng(seed)
    sizes = rng.dirichlet(np.ones(5)) if uneven else np.full(5, 0.2)
    return 3 * rng.normal(size=(5, d))[rng.choice(5, n, p=sizes)] + rng.normal(size=(n, d))


def distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared, in float64."""
    return np.square(x[:, None, :].astype(np.float64) - centres.astype(np.float64)).sum(2)


def inertia(x: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> float:
    return float(distances(x, centres)[np.arange(len(x)), labels].sum())


@parametrize_with_checks([BalancedKMeans(n_clusters=3), BalancedKMeans(n_clusters=3, metric="cosine")])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


# ---- sizes ----


@pytest.mark.parametrize(("n", "k"), [(300, 7), (12, 12), (50, 1), (101, 100)])
def test_sizes_are_even(n: int, k: int, there) -> None:
    model = there(BalancedKMeans(k, random_state=0).fit, points(n))
    np.testing.assert_array_equal(model.sizes_, even_counts(n, k))
    np.testing.assert_array_equal(np.bincount(model.labels_, minlength=k), model.sizes_)
    assert abs(model.gap_) < 1e-9 * model.inertia_ + 1e-9


@pytest.mark.parametrize("sizes", [[100, 100, 100], [1, 2, 297], [0, 150, 150], (300, 0, 0)])
def test_sizes_are_those_asked_for(sizes) -> None:
    model = BalancedKMeans(3, sizes=sizes, random_state=0).fit(points())
    np.testing.assert_array_equal(model.sizes_, sizes)
    assert np.isfinite(model.cluster_centers_).all()


def test_bounds_that_leave_no_choice_are_exact_sizes() -> None:
    x = points()
    even = BalancedKMeans(6, random_state=0).fit(x)
    for bounds in ({"size_min": 50}, {"size_max": 50}, {"size_min": 50, "size_max": 50}):
        np.testing.assert_array_equal(BalancedKMeans(6, random_state=0, **bounds).fit(x).labels_, even.labels_)


# ---- optimality ----


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_labels_are_the_best_for_the_centres(there, seed: int, k: int, more: int, single: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(k + more, 3)).astype(np.float32 if single else np.float64)
    sizes = rng.multinomial(k + more, np.full(k, 1 / k))
    model = there(BalancedKMeans(k, sizes=sizes, random_state=0, max_iter=int(rng.integers(1, 5))).fit, x)
    cost = distances(x, model.cluster_centers_)
    best = float(cost[np.arange(len(x)), hungarian_labels(-cost, sizes)].sum())
    found = inertia(x, model.labels_, model.cluster_centers_)
    assert found == pytest.approx(best, rel=1e-5 if single else 1e-12, abs=1e-5 if single else 1e-12)
    assert model.inertia_ == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_many_starts_find_the_best_clustering_of_all(seed: int) -> None:
    """Brute force over every balanced labelling of eight points."""
    x = np.random.default_rng(seed).normal(size=(8, 2))

    def cost(members: tuple[int, ...]) -> float:
        parts = np.isin(np.arange(8), members)
        return sum(float(np.square(part - part.mean(0)).sum()) for part in (x[parts], x[~parts]))

    best = min(map(cost, itertools.combinations(range(8), 4)))
    model = BalancedKMeans(2, n_init=30, random_state=0, tol=0).fit(x)
    assert model.inertia_ == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_inertia_never_rises(metric: str, dtype: type) -> None:
    x = points(2000, 8).astype(dtype)
    runs = [BalancedKMeans(12, metric=metric, tol=0, max_iter=i, random_state=1).fit(x) for i in range(1, 15)]
    inertias = np.array([run.inertia_ for run in runs])
    assert (np.diff(inertias) <= inertias[:-1] * (1e-14 if dtype is np.float64 else 1e-6)).all()
    assert inertias[-1] < inertias[0]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_at_the_end_centres_are_means_and_labels_optimal(metric: str, there) -> None:
    x = points(500, 5)
    model = there(BalancedKMeans(6, metric=metric, tol=0, random_state=0).fit, x)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    means = np.stack([rows[model.labels_ == k].mean(0) for k in range(6)])
    if metric == "cosine":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        assert model.inertia_ == pytest.approx((1 - (rows * means[model.labels_]).sum(1)).sum(), rel=1e-12)
    else:
        assert model.inertia_ == pytest.approx(inertia(rows, model.labels_, means), rel=1e-12)
    np.testing.assert_allclose(model.cluster_centers_, means, atol=1e-12)
    np.testing.assert_array_equal(model.labels_, hungarian_labels(-distances(rows, means), model.sizes_))


def test_the_length_of_rows_does_not_matter_to_cosine() -> None:
    x = points(200, 5)
    lengths = np.random.default_rng(0).uniform(0.01, 100, (200, 1))
    init = x[:4]
    a, b = (BalancedKMeans(4, metric="cosine", init=init).fit(rows) for rows in (x, lengths * x))
    np.testing.assert_array_equal(a.labels_, b.labels_)
    assert a.inertia_ == pytest.approx(b.inertia_, rel=1e-12)


# ---- invariances ----


def test_order_of_rows_does_not_matter() -> None:
    x, order = points(), np.random.default_rng(1).permutation(300)
    a, b = BalancedKMeans(5, init=x[:5]).fit(x), BalancedKMeans(5, init=x[:5]).fit(x[order])
    np.testing.assert_array_equal(a.labels_[order], b.labels_)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e4), (1e3, -1e6)])
def test_scale_and_place_do_not_matter(scale: float, shift: float) -> None:
    x = points()
    a = BalancedKMeans(5, init=x[:5]).fit(x)
    b = BalancedKMeans(5, init=scale * x[:5] + shift).fit(scale * x + shift)
    np.testing.assert_array_equal(a.labels_, b.labels_)
    assert b.inertia_ == pytest.approx(scale**2 * a.inertia_, rel=1e-9)


def test_far_from_zero_float32_still_tells_rows_apart() -> None:
    x = points().astype(np.float32)
    far = x + np.float32(1000)
    near = far - np.float32(1000)  # exactly what is left of x
    a, b = BalancedKMeans(5, init=near[:5]).fit(near), BalancedKMeans(5, init=far[:5]).fit(far)
    assert b.inertia_ == pytest.approx(a.inertia_, rel=1e-5)


def test_random_state_gives_the_same_again_and_x_stays_as_it_was() -> None:
    x = points()
    before = x.copy()
    a, b = (BalancedKMeans(5, n_init=3, random_state=4).fit(x) for _ in range(2))
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)
    np.testing.assert_array_equal(x, before)


def test_the_best_start_is_kept() -> None:
    x = points(uneven=False)
    random = np.random.RandomState(0)
    singles = [BalancedKMeans(8, random_state=random).fit(x).inertia_ for _ in range(4)]
    assert BalancedKMeans(8, n_init=4, random_state=np.random.RandomState(0)).fit(x).inertia_ == min(singles)


# ---- prediction ----


def test_two_clusters_meet_in_the_middle_between_their_rows() -> None:
    """Potentials that move at once, and only against one another, do not go back and forth."""
    x = np.square(np.linspace(0, 1, 2000))[:, None]
    model = BalancedKMeans(2, init=x[[500, 1500]], random_state=0).fit(x)
    gains = (model.potentials_ - np.square(x - model.cluster_centers_.T)) @ [1.0, -1.0]
    assert gains[999] > 0
    assert gains[999] == pytest.approx(-gains[1000], rel=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("seed", range(5))
def test_predict_gives_the_labels_back(metric: str, seed: int, there) -> None:
    x = points(400, 3, seed=seed)
    model = there(BalancedKMeans(9, metric=metric, random_state=0).fit, x)
    np.testing.assert_array_equal(there(model.predict, x), model.labels_)
    np.testing.assert_array_equal(there(pickle.loads(pickle.dumps(model)).predict, x), model.labels_)
    assert there(model.score, x) == pytest.approx(-model.inertia_, rel=1e-12)


def test_new_rows_are_nearly_balanced() -> None:
    x = points(4000, 3)
    model = BalancedKMeans(8, random_state=0).fit(x[:2000])
    assert np.bincount(model.predict(x[2000:]), minlength=8).max() < 1.3 * 250


def test_equal_rows_are_split_and_predicted_alike() -> None:
    x = np.repeat([[0.0, 0.0], [1.0, 1.0]], [7, 3], axis=0)
    model = BalancedKMeans(2, random_state=0).fit(x)
    assert sorted(model.sizes_) == [5, 5]
    assert len(set(model.predict(x[:7]))) == 1


def test_all_rows_equal() -> None:
    model = BalancedKMeans(3, random_state=0).fit(np.ones((9, 2)))
    assert model.inertia_ == 0
    np.testing.assert_array_equal(model.sizes_, [3, 3, 3])


def test_transform_is_distances() -> None:
    x = points().astype(np.float32)
    model = BalancedKMeans(4, random_state=0)
    found = model.fit_transform(x)
    assert found.dtype == model.cluster_centers_.dtype == np.float32
    np.testing.assert_allclose(found, np.sqrt(distances(x, model.cluster_centers_)), rtol=1e-4)
    cosine = BalancedKMeans(4, metric="cosine", random_state=0).fit(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine.transform(x), 1 - unit @ cosine.cluster_centers_.T, atol=1e-6)


# ---- where features lie ----


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_files_and_tensors_give_the_labels_of_arrays(
    metric: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = points(3000, 6).astype(dtype)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", x)
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(100, 6), compression="gzip")
    for number in range(2):
        with h5py.File(f"part-{number}.h5", "w") as file:
            file["x"] = x[1500 * number : 1500 * (number + 1)]
    expected = BalancedKMeans(7, metric=metric, random_state=0).fit(x)
    np.testing.assert_array_equal(expected.predict(x), expected.labels_)
    places = ["x.npy", Path("x.npy"), np.load("x.npy", mmap_mode="r"), "x.h5::/x", "part-*.h5::/x"]
    places += [["part-0.h5::/x", "part-1.h5::/x"], torch.from_numpy(x)]
    with h5py.File("x.h5") as file:
        for place in [*places, file["x"]]:
            model = BalancedKMeans(7, metric=metric, random_state=0).fit(place)
            np.testing.assert_array_equal(model.labels_, expected.labels_)
            assert isinstance(model.labels_, np.ndarray)
            assert model.inertia_ == expected.inertia_
            np.testing.assert_array_equal(model.predict(place), expected.labels_)
            np.testing.assert_array_equal(model.transform(place), expected.transform(x))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_streaming_gives_the_same(metric: str, tmp_path: Path) -> None:
    x = points(3000, 6).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(128, 6))
    name = f"{tmp_path / 'x.h5'}::/x"
    kept = BalancedKMeans(7, metric=metric, random_state=0).fit(name)
    streamed = BalancedKMeans(7, metric=metric, random_state=0, memory_limit=0).fit(name)
    np.testing.assert_array_equal(streamed.labels_, kept.labels_)
    np.testing.assert_array_equal(streamed.cluster_centers_, kept.cluster_centers_)


def test_a_file_is_read_once_where_memory_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(3000, 6)
    np.save(tmp_path / "x.npy", x)
    opened = []
    monkeypatch.setattr(estimator, "cached", lambda *given: opened.append(cluster_keep(*given)) or opened[-1])
    BalancedKMeans(3, init=x[:3]).fit(tmp_path / "x.npy")
    assert x.nbytes <= opened[0].bytes_read < 1.1 * x.nbytes


cluster_keep = estimator.cached


@pytest.mark.usefixtures("long_way")
def test_a_limit_on_memory_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read in each pass, lists are narrow, and the clusters are the same."""
    x = points(12_000, 8, seed=3).astype(np.float16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = x
    made: list[float] = []
    listing = sweep.listed_within
    monkeypatch.setattr(sweep, "listed_within", lambda *given: made.append(given[2]) or listing(*given))
    monkeypatch.setattr("otlabel.solver.shortlist.FEWEST_SCORES", 0)
    monkeypatch.setattr("otlabel.solver.shortlist.LEAST_STATED_ROOM", 100_000)
    settings = {"max_iter": 2, "random_state": 0}
    expected = BalancedKMeans(40, **settings).fit(x)
    found = BalancedKMeans(40, memory_limit=0, **settings).fit(f"{tmp_path}/x.h5::/x")
    assert made
    assert found.proof_.proven
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-9)
    np.testing.assert_array_equal(found.sizes_, expected.sizes_)


def test_bfloat16() -> None:
    x = torch.from_numpy(points()).to(torch.bfloat16)
    wide = x.float().numpy()
    a, b = BalancedKMeans(4, init=wide[:4]).fit(x), BalancedKMeans(4, init=wide[:4]).fit(wide)
    np.testing.assert_array_equal(a.labels_, b.labels_)


# ---- speed ----


def test_a_warm_start_takes_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: dict[bool, list[int]] = {True: [], False: []}
    original = alternation.sinkhorn_assign

    def watched(scores, **options):
        result = original(scores, **options)
        if options["init"] is not None:
            passes[True].append(len(result.history))
            passes[False].append(len(original(scores, **(options | {"init": None})).history))
        return result

    monkeypatch.setattr(alternation, "sinkhorn_assign", watched)
    BalancedKMeans(40, max_iter=10, tol=0, random_state=0).fit(points(8000, 8))
    assert len(passes[True]) == 10
    warm, cold = (sum(passes[is_warm][2:]) for is_warm in (True, False))  # centres drawn at random move far at first
    assert warm < 0.7 * cold


# ---- what is refused, and warned of ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": 0}, "n_clusters"),
        ({"n_clusters": 2.5}, "n_clusters"),
        ({"n_clusters": 301}, "n_samples=300 should be >= n_clusters=301"),
        ({"n_init": 0}, "n_init"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"init": "kmeans++"}, "kmeans\\+\\+"),
        ({"n_init": "often"}, "n_init"),
        ({"n_swaps": -1}, "n_swaps"),
        ({"n_swaps": 1.5}, "n_swaps"),
        ({"init": lambda x, k, random_state: x[:3]}, r"\(3, 4\)"),
        ({"init": lambda x, k, random_state: np.full((k, 4), np.inf)}, "infinity"),
        ({"init": np.zeros((8, 3))}, r"\(8, 3\)"),
        ({"init": np.full((8, 4), np.nan)}, "NaN"),
        ({"sizes": [100, 200]}, "8 whole numbers"),
        ({"sizes": [0.125] * 8}, "whole numbers"),
        ({"sizes": [38] * 8}, "sum to 304, 4 more"),
        ({"sizes": [37] * 8}, "sum to 296, 4 fewer"),
        ({"sizes": [-1, 1] + [50] * 6}, "whole numbers"),
        ({"sizes": [38] * 4 + [37] * 4, "size_min": 3}, "leave out"),
        ({"size_min": 38}, "304 rows, 4 more than the 300 .* at most 37"),
        ({"size_max": 37}, "296 rows, 4 fewer than the 300 .* at least 38"),
        ({"size_min": 30, "size_max": 20}, "larger"),
        ({"size_min": -1}, "size_min"),
        ({"size_max": 40.5}, "size_max"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BalancedKMeans(**settings).fit(points())


def test_bad_features_name_the_place(tmp_path: Path) -> None:
    x = points()
    x[17, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InvalidScoresError, match=r"row 17 of .*x\.npy, feature 2"):
        BalancedKMeans(3).fit(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="NaN"):
        BalancedKMeans(3).fit(x)
    model = BalancedKMeans(3).fit(points())
    with pytest.raises(ValueError, match="5 features"):
        model.predict(torch.zeros(3, 5))
    with pytest.raises(InvalidScoresError, match="overflow"):
        BalancedKMeans(2).fit(torch.tensor([[1e300], [-1e300], [0.0]], dtype=torch.float64))


def test_no_sample_weights() -> None:
    with pytest.raises(TypeError, match="sample_weight"):
        BalancedKMeans(3).fit(points(), sample_weight=np.ones(300))


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_a_warning_where_iterations_did_not_suffice() -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        model = BalancedKMeans(8, max_iter=1, tol=0, random_state=0).fit(points())
    np.testing.assert_array_equal(model.sizes_, even_counts(300, 8))
    assert BalancedKMeans(8, random_state=0).fit(points()).n_iter_ > 1


def test_without_scikit_learn() -> None:
    """The name is not listed then, and asking for it says what to install."""
    script = """
import sys, importlib.util
sys.modules["sklearn"] = None
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "sklearn" else found(name, *rest)
from otlabel import *
import otlabel
assert "sinkhorn_assign" in globals() and "BalancedKMeans" not in [*globals(), *dir(otlabel)]
try:
    otlabel.BalancedKMeans
except ImportError as error:
    print(type(error).__name__, error)
"""
    folder = str(Path(otlabel.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder)
    assert done.stderr == ""
    assert done.stdout.startswith("MissingPackageError scikit-learn")
    assert 'pip install "scikit-learn' in done.stdout


# ---- bounds on sizes ----


@pytest.mark.parametrize("bounds", [(20, 60), (None, 45), (35, None), (0, 300)])
def test_sizes_stay_within_bounds(bounds: tuple) -> None:
    low, high = bounds
    model = BalancedKMeans(8, size_min=low, size_max=high, random_state=0).fit(points())
    assert model.sizes_.min() >= (low or 0)
    assert model.sizes_.max() <= (high or 300)
    assert abs(model.gap_) < 1e-9 * model.inertia_
    np.testing.assert_array_equal(model.predict(points()), model.labels_)


@pytest.mark.parametrize("seed", range(5))
def test_bounds_are_used_as_well_as_can_be(seed: int) -> None:
    x = points(14, 2, seed=seed)
    model = BalancedKMeans(3, size_min=3, size_max=7, random_state=0).fit(x)
    cost = distances(x, model.cluster_centers_)
    allowed = [(a, b, 14 - a - b) for a in range(3, 8) for b in range(3, 8) if 3 <= 14 - a - b <= 7]
    best = min(float(cost[np.arange(14), hungarian_labels(-cost, sizes)].sum()) for sizes in allowed)
    assert model.inertia_ == pytest.approx(best, rel=1e-12)


def test_bounds_that_do_not_bind_leave_plain_k_means() -> None:
    x = points(uneven=False)
    init = x[:5]
    plain = KMeans(5, init=init, n_init=1, tol=0).fit(x)
    model = BalancedKMeans(5, init=init, size_min=1, tol=0).fit(x)
    np.testing.assert_array_equal(model.labels_, plain.labels_)
    assert model.inertia_ == pytest.approx(plain.inertia_, rel=1e-12)
    rows = points(seed=3)
    np.testing.assert_array_equal(model.predict(rows), plain.predict(rows))


def test_looser_bounds_are_never_worse_for_the_same_centres() -> None:
    x = points()
    settings = {"n_clusters": 6, "init": x[:6], "max_iter": 1}
    inertias = [BalancedKMeans(size_min=low, size_max=high, **settings).fit(x).inertia_
                for low, high in ((50, 50), (40, 60), (10, 150))]  # fmt: skip
    assert inertias[0] > inertias[1] > inertias[2]


@pytest.mark.parametrize("far", ["times", "plus"])
def test_one_far_row_takes_no_proof_from_the_others(far: str) -> None:
    """A cluster has to take it and is far from the others then; labels are the optimum, and proven, all the same."""
    features = np.random.default_rng(0).normal(size=(1500, 8))
    plain = BalancedKMeans(15, random_state=0, max_iter=3).fit(features)
    features[7] = features[7] * 1e6 if far == "times" else features[7] + 1e6
    model = BalancedKMeans(15, random_state=0, max_iter=3).fit(features)
    assert model.gap_ <= 1e-9 * plain.inertia_
    distances = np.square(features[:, None] - model.cluster_centers_).sum(2)
    slots = np.repeat(np.arange(15), 100)
    rows, columns = linear_sum_assignment(distances[:, slots])
    least = distances[:, slots][rows, columns].sum()
    assert np.isclose(distances[np.arange(1500), model.labels_].sum(), least, rtol=1e-12)
