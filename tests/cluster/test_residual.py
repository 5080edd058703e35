"""ResidualBalancedKMeans: balanced parts, what is left over, unique codes, and files without pickle."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import even_counts
from sklearn.utils.estimator_checks import parametrize_with_checks

from otlabel import BalancedKMeans, ResidualBalancedKMeans
from otlabel.errors import FileFormatError, InvalidScoresError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::sklearn.exceptions.ConvergenceWarning")


def points(n: int = 500, d: int = 5, *, seed: int = 0) -> np.ndarray:
    """A few crowded places, so that codes collide."""
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(6, d))[rng.choice(6, n, p=rng.dirichlet(np.ones(6)))] + rng.normal(size=(n, d))


def n_distinct(codes: np.ndarray) -> int:
    return len(np.unique(codes, axis=0))


@parametrize_with_checks([ResidualBalancedKMeans((3, 2))])
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


# ---- balanced parts ----


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("levels", [(8, 8, 8), (500,), (1, 30, 17)])
def test_each_part_is_used_equally_often(levels: tuple[int, ...], unique: bool) -> None:
    x = points()
    coder = ResidualBalancedKMeans(levels, unique=unique, random_state=0, max_iter=3).fit(x)
    assert coder.codes_.shape == (500, len(levels))
    for level, k in enumerate(levels):
        np.testing.assert_array_equal(np.bincount(coder.codes_[:, level], minlength=k), even_counts(500, k))
        np.testing.assert_array_equal(coder.sizes_[level], even_counts(500, k))
    left = np.square(
        x[:, None] - np.stack([coder.decode(coder.codes_[:, :level]) for level in range(1, len(levels) + 1)], 1)
    )
    np.testing.assert_allclose(coder.inertia_, left.sum((0, 2)), rtol=1e-9, atol=1e-9)
    assert (np.abs(coder.gap_) <= 1e-9 * np.maximum(coder.inertia_, 1)).all()
    if unique:
        assert n_distinct(coder.codes_) == 500


def test_the_first_level_is_balanced_k_means_and_the_next_that_of_the_rest() -> None:
    x = points()
    coder = ResidualBalancedKMeans((7, 5), random_state=3).fit(x)
    first = BalancedKMeans(7, random_state=3).fit(x)
    np.testing.assert_array_equal(coder.codes_[:, 0], first.labels_)
    second = BalancedKMeans(5, random_state=3).fit(x - first.cluster_centers_[first.labels_])
    np.testing.assert_array_equal(coder.codes_[:, 1], second.labels_)
    np.testing.assert_allclose(coder.decode(coder.codes_[:, :1]), first.cluster_centers_[first.labels_])


def test_encode_gives_codes_back() -> None:
    x = points()
    coder = ResidualBalancedKMeans((8, 8, 8), random_state=0).fit(x)
    np.testing.assert_array_equal(coder.encode(x), coder.codes_)
    np.testing.assert_array_equal(coder.predict(x[:9]), coder.codes_[:9])
    new = coder.encode(points(2000))
    left = np.square(points(2000) - coder.decode(new)).sum() / 2000
    assert left < 2 * coder.inertia_[-1] / 500
    assert all(np.bincount(part, minlength=8).max() < 450 for part in new.T)


# ---- codes that no two rows share ----


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.booleans())
def test_unique_codes_are_the_best_for_the_last_centres(seed: int, equal: bool) -> None:
    """Brute force over all ways to give the last part, for the codes of the levels before."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (6, 2)).astype(float) if equal else rng.normal(size=(6, 2)) ** 3
    coder = ResidualBalancedKMeans((2, 3), unique=True, random_state=0, max_iter=3).fit(x)
    left = x - coder.cluster_centers_[0][coder.codes_[:, 0]]
    cost = np.square(left[:, None] - coder.cluster_centers_[1]).sum(2)
    ways = (
        way for way in itertools.product(range(3), repeat=6)
        if np.bincount(way, minlength=3).tolist() == [2, 2, 2] and n_distinct(np.c_[coder.codes_[:, 0], way]) == 6
    )  # fmt: skip
    best = min(sum(cost[row, part] for row, part in enumerate(way)) for way in ways)
    assert n_distinct(coder.codes_) == 6
    assert coder.inertia_[1] == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_rows_that_are_equal_get_other_codes() -> None:
    x = np.repeat(points(20), 6, axis=0)
    plain = ResidualBalancedKMeans((4, 8, 8), random_state=0).fit(x)
    coder = ResidualBalancedKMeans((4, 8, 8), unique=True, random_state=0).fit(x)
    assert n_distinct(plain.codes_) < 120 == n_distinct(coder.codes_)
    assert ResidualBalancedKMeans((5, 4, 6), unique=True, random_state=0).fit(np.ones((120, 3))).inertia_[-1] == 0


def test_as_many_codes_as_rows() -> None:
    """Every code is taken, so that no limit has room anywhere."""
    x = points(64)
    coder = ResidualBalancedKMeans((4, 4, 4), unique=True, random_state=0).fit(x)
    assert n_distinct(coder.codes_) == 64
    assert coder.gap_.max() < 1e-9
    with pytest.raises(ValueError, match=r"levels=\(4, 4, 4\) make 64 codes, fewer than the 65 rows"):
        ResidualBalancedKMeans((4, 4, 4), unique=True).fit(points(65))


# ---- where features lie ----


@pytest.mark.parametrize("unique", [False, True])
def test_files_and_tensors_give_the_codes_of_arrays(
    unique: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = points().astype(np.float16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(100, 5))
    name = f"{tmp_path}/x.h5::/x"
    settings = {"unique": unique, "random_state": 0, "max_iter": 5}
    expected = ResidualBalancedKMeans((8, 8, 8), **settings).fit(x)
    for place in (name, torch.from_numpy(x), [x[:200], x[200:]]):
        coder = ResidualBalancedKMeans((8, 8, 8), **settings).fit(place)
        np.testing.assert_array_equal(coder.codes_, expected.codes_)
        np.testing.assert_array_equal(coder.encode(place), expected.encode(x))
    monkeypatch.setattr("otlabel.sources.caching.default_limit", lambda: 0)
    monkeypatch.setattr("otlabel.sources.caching.MADE_SHARE", 0.0)
    streamed = ResidualBalancedKMeans((8, 8, 8), **settings).fit(name)
    np.testing.assert_array_equal(streamed.codes_, expected.codes_)


# ---- files ----


def test_save_and_load(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(points(), columns=list("abcde"))
    coder = ResidualBalancedKMeans([8, 6], unique=False, random_state=0, n_init=np.int64(2)).fit(x)
    coder.save(tmp_path / "coder.npz")
    loaded = ResidualBalancedKMeans.load(tmp_path / "coder.npz")
    assert (loaded.levels, loaded.unique, loaded.n_init) == ((8, 6), False, 2)
    for name in ("codes_", "inertia_", "gap_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(coder, name))
    np.testing.assert_array_equal(loaded.encode(x), coder.codes_)
    np.testing.assert_array_equal(loaded.decode(coder.codes_), coder.decode(coder.codes_))
    with pytest.raises(ValueError, match="feature names"):
        loaded.encode(x[list("edcba")])
    with np.load(tmp_path / "coder.npz", allow_pickle=False) as file:
        assert json.loads(str(file["header"]))["format"] == "otlabel.ResidualBalancedKMeans"


def resaved(path: Path, **changed: np.ndarray | None) -> Path:
    with np.load(path) as file:
        arrays = {**file, **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"codes": np.full((60, 2), 8)},
        {"codes": np.zeros((60, 3), int)},
        {"codes": np.zeros((60, 2))},
        {"cluster_centers_1": np.zeros((6, 4))},
        {"cluster_centers_0": np.full((8, 5), np.nan)},
        {"potentials_0": np.zeros(7)},
        {"sizes_1": None},
        {"gap": np.array([{}], dtype=object)},
    ],
    ids=str,
)
def test_files_that_do_not_fit_together_are_refused(changed: dict, tmp_path: Path) -> None:
    path = tmp_path / "coder.npz"
    ResidualBalancedKMeans((8, 6), random_state=0, max_iter=1).fit(points(60)).save(path)
    with pytest.raises(FileFormatError, match=r"is not a saved ResidualBalancedKMeans|not a usable"):
        ResidualBalancedKMeans.load(resaved(path, **changed))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "coder.npz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileFormatError, match=r"it is no \.npz archive"):
        ResidualBalancedKMeans.load(path)
    ResidualBalancedKMeans((8, 6), random_state=0, max_iter=1).fit(points(60)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"coder\.npz"):
        ResidualBalancedKMeans.load(path)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "levels is"),
        (64, "levels is 64; pass the clusters of each level"),
        ((8, 0), "at least 1"),
        ((8, 2.5), "whole number"),
        ("88", "levels is"),
        ((True, 3), "whole number"),
        ((600, 2), "n_samples=500 should be >= n_clusters=600"),
        ((2, 501), "n_samples=500 should be >= n_clusters=501"),
    ],
)
def test_bad_levels(levels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualBalancedKMeans(levels).fit(points())


def test_bad_codes_and_features() -> None:
    coder = ResidualBalancedKMeans((4, 3), random_state=0).fit(points(60))
    for codes, message in (
        ([[0, 3]], "level 1 are 3 to 3; it has codes 0 to 2"),
        ([[-1, 0]], "level 0 are -1"),
        ([0, 1], r"shape \(2,\)"),
        ([[0.0, 1.0]], "float64"),
        ([[0, 0, 0]], "l from 1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            coder.decode(codes)
    assert coder.decode(np.empty((0, 2), int)).shape == (0, 5)
    bad = points(60)
    bad[3, 1] = np.nan
    with pytest.raises(InvalidScoresError, match="row 3, feature 1"):
        ResidualBalancedKMeans((4, 3)).fit(torch.from_numpy(bad))
    with pytest.raises(ValueError, match="4 features"):
        coder.encode(points(9, 4))
    for method in (coder.__class__((4, 3)).save, coder.__class__((4, 3)).decode, coder.__class__((4, 3)).encode):
        with pytest.raises(ValueError, match="not fitted yet"):
            method(points(9))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_on_a_card() -> None:
    """Codes that are as good, and just as balanced and distinct; not always the same, as sums are rounded otherwise."""
    x = points().astype(np.float32)
    expected = ResidualBalancedKMeans((20, 30), unique=True, random_state=0).fit(x)
    for features, options in ((torch.from_numpy(x).cuda(), {}), (x, {"device": "cuda"})):
        coder = ResidualBalancedKMeans((20, 30), unique=True, random_state=0, **options).fit(features)
        codes = np.asarray(torch.as_tensor(coder.codes_).cpu())
        assert n_distinct(codes) == 500
        for level, k in enumerate((20, 30)):
            np.testing.assert_array_equal(np.bincount(codes[:, level], minlength=k), even_counts(500, k))
        np.testing.assert_allclose(coder.inertia_, expected.inertia_, rtol=0.05)
