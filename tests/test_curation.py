"""Curating: as many distinct samples as asked, as even as clusters allow, the same again from the same seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from sklearn.metrics import pairwise_distances_argmin

from otlabel import curate, curation
from otlabel.commands.main import main
from otlabel.errors import InvalidScoresError, MissingPackageError
from otlabel.ranks.rowset import RowSet
from otlabel.sources import open_scores


def blobs(sizes: list[int], seed: int = 0, n_features: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features in blobs far from each other, and which blob each row is from."""
    rng = np.random.default_rng(seed)
    own = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 1000 * np.eye(max(len(sizes), n_features))[: len(sizes)]
    return centres[own] + rng.normal(size=(len(own), centres.shape[1])), own


def filled(n: int, room: np.ndarray) -> np.ndarray:
    """Parts by handing out one after the other, the smallest part that has room first; sorted."""
    parts = np.zeros_like(room)
    for _ in range(n):
        parts[np.flatnonzero(parts < room)[parts[parts < room].argmin()]] += 1
    return parts


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.data())
def test_parts_are_those_of_handing_out_one_by_one(room: list[int], data: Any) -> None:
    n = data.draw(st.integers(0, sum(room)))
    parts = curation._shared(n, np.array(room), np.random.default_rng(0))
    assert parts.sum() == n
    assert (parts <= room).all()
    np.testing.assert_array_equal(np.sort(parts), np.sort(filled(n, np.array(room))))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.data())
def test_as_many_distinct_samples_as_asked(n_rows: int, data: Any) -> None:
    n, k = data.draw(st.integers(1, n_rows)), data.draw(st.none() | st.integers(1, n_rows))
    seed = data.draw(st.integers(0, 1000))
    features = np.random.default_rng(seed).integers(0, 4, (n_rows, 2)).astype(float)  # equal rows, empty clusters
    found = curate(features, n, n_clusters=k, seed=seed)
    assert found.indices.shape == (n,)
    assert (np.diff(found.indices) > 0).all()
    assert 0 <= found.indices[0] <= found.indices[-1] < n_rows
    np.testing.assert_array_equal(np.bincount(found.clusters, minlength=len(found.sizes)), found.sizes)
    np.testing.assert_array_equal(np.bincount(found.clusters[found.indices], minlength=len(found.sizes)), found.quotas)
    if not found.groups:
        np.testing.assert_array_equal(np.sort(found.quotas), np.sort(filled(n, found.sizes)))


def test_rare_blobs_are_taken_whole_and_others_evenly() -> None:
    sizes = [2000, 500, 100, 10, 3]
    features, own = blobs(sizes)
    found = curate(features, 313, n_clusters=5)
    assert np.bincount(own[found.indices]).tolist() == [100, 100, 100, 10, 3]
    assert max(np.bincount(own[curate(features, 200, n_clusters=5).indices])) in (62, 63)


def test_the_same_seed_gives_the_same_samples() -> None:
    features, _ = blobs([300, 100, 50])
    first, again, other = (curate(features, 60, n_clusters=3, seed=seed).indices for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_and_one() -> None:
    features, _ = blobs([20, 10])
    assert curate(features, 30).indices.tolist() == list(range(30))
    assert len(curate(features, 1).sizes) == len(curate(features, 1).indices) == 1


def test_groups_share_evenly_where_clusters_are_many() -> None:
    """Clusters crowd where samples do: 19 of 20 samples are in one blob, which groups above the clusters see."""
    features, own = blobs([9500, 250, 250])
    found = curate(features, 600, n_clusters=200)
    (level,) = found.groups
    assert level.shape == (200,)
    taken = np.bincount(level[found.clusters[found.indices]])
    room = np.bincount(level, found.sizes).astype(int)
    np.testing.assert_array_equal(np.sort(taken), np.sort(filled(600, room)))
    for group in range(len(room)):
        members = level == group
        wanted = filled(int(taken[group]), found.sizes[members])
        np.testing.assert_array_equal(np.sort(found.quotas[members]), np.sort(wanted))
    assert np.bincount(own[found.indices]).max() < 0.95 * 600


def rings(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rings of one area and of many or few samples, and which one each is from."""
    rng = np.random.default_rng(seed)
    own, angle = np.repeat(np.arange(len(sizes)), sizes), rng.uniform(0, 2 * np.pi, sum(sizes))
    radius = rng.uniform(0.7, 1.0, len(own))
    return np.column_stack([radius * np.cos(angle) + 2.5 * own, radius * np.sin(angle)]), own


def test_resampling_finds_what_is_rare() -> None:
    """Places of one size get as many samples, though some have a hundred times as many."""
    features, own = rings([10_000, 100, 1000])
    far = {}
    for resample in (0, 6):
        found = curate(features, 240, levels=(300, 60), resample=resample)
        assert [len(level) for level in found.groups] == [300]
        assert len(np.unique(found.groups[0])) == 60
        far[resample] = np.abs(np.bincount(own[found.indices], minlength=3) - 80).sum()
    assert far[6] < 0.5 * far[0]
    assert far[6] < 75


def test_levels_are_as_asked_for() -> None:
    features, _ = blobs([300, 100, 50])
    found = curate(features, 40, levels=[30, 10, 3], resample=2)
    assert [len(level) for level in found.groups] == [30, 10]
    assert [int(level.max()) < k for level, k in zip(found.groups, (10, 3), strict=True)] == [True, True]
    assert curate(features, 40, levels=(5,)).groups == ()
    same = curate(features, 40, n_clusters=5), curate(features, 40, levels=np.array([5]))
    np.testing.assert_array_equal(same[0].indices, same[1].indices)
    assert len(curate(np.ones((20, 2)), 7, levels=(6, 2), resample=3).indices) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (5,), "n_clusters": 5}, "leave out n_clusters"),
        ({"levels": ()}, "pass the clusters of each level"),
        ({"levels": 5}, "pass the clusters of each level"),
        ({"levels": (11,)}, r"levels\[0\] is 11, for 10 samples"),
        ({"levels": (5, 6)}, r"levels\[1\] is 6, for 5 clusters below"),
        ({"levels": (5, 2.5)}, r"levels\[1\] is 2.5"),
        ({"resample": -1}, "resample is -1"),
        ({"resample": 1.5}, "resample is 1.5"),
    ],
)
def test_levels_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curate(np.zeros((10, 2)), 5, **options)


def test_rows_go_to_the_nearest_centre() -> None:
    features = np.random.default_rng(0).normal(size=(500, 7))
    centres, n_rows = curation.k_means(RowSet(open_scores(features)), 9, 0, "cluster")
    assert n_rows == 500
    found = curation.nearest(open_scores(features), centres)
    np.testing.assert_array_equal(found, pairwise_distances_argmin(features, centres))


def test_chosen_samples_are_drawn_at_random() -> None:
    features = np.zeros((40, 2))
    times = np.zeros(40)
    for seed in range(300):
        times[curate(features, 10, n_clusters=1, seed=seed).indices] += 1
    assert abs(times - 75).max() < 5 * np.sqrt(300 * 0.25 * 0.75)


def test_features_from_anywhere(tmp_path: Path) -> None:
    features = blobs([300, 100, 50])[0].astype(np.float32)
    wanted = curate(features, 40, n_clusters=3).indices
    np.save(tmp_path / "features.npy", features)
    with h5py.File(tmp_path / "features.h5", "w") as handle:
        handle["x"] = features
    for source in (features.tolist(), tmp_path / "features.npy", f"{tmp_path}/features.h5::/x"):
        np.testing.assert_array_equal(curate(source, 40, n_clusters=3).indices, wanted)
    streamed = curate(f"{tmp_path}/features.h5::/x", 40, n_clusters=3, memory_limit=0)
    np.testing.assert_array_equal(streamed.indices, wanted)
    tensor = curate(torch.from_numpy(features), 40, n_clusters=3).indices
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), wanted)


@pytest.mark.parametrize("numbers", [{"n": 0}, {"n": 11}, {"n": 2.5}, {"n_clusters": 0}, {"n_clusters": 11}])
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pass a whole number from 1 to 10"):
        curate(np.zeros((10, 2)), **({"n": 5} | numbers))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features = np.zeros((10, 2))
    features[3, 1] = bad
    with pytest.raises(InvalidScoresError):
        curate(features, 5)


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingPackageError, match=r"otlabel\[cluster\]"):
        curate(np.zeros((10, 2)), 5)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    features, _ = blobs([300, 100, 50])
    np.save("features.npy", features)
    assert main(["curate", "features.npy", "-n", "40", "-o", "chosen.npy", "--clusters", "3", "--seed", "5"]) == 0
    found = curate(features, 40, n_clusters=3, seed=5)
    np.testing.assert_array_equal(np.load("chosen.npy"), found.indices)
    out = capsys.readouterr().out
    assert out == f"{found.summary()}\nIndices written to chosen.npy\n"
    assert "chosen    40 of 450 samples" in out
    assert "clusters  3 of 50 to 300; chosen 13 to 14" in out
    assert main(["curate", "features.npy", "-n", "40", "-o", "chosen.npy"]) == 2
    ask = [
        "curate",
        "features.npy",
        "-n",
        "40",
        "-o",
        "levels.npy",
        "--levels",
        "9",
        "3",
        "--resample",
        "2",
        "--seed",
        "5",
    ]
    assert main(ask) == 0
    by_levels = curate(features, 40, levels=(9, 3), resample=2, seed=5)
    np.testing.assert_array_equal(np.load("levels.npy"), by_levels.indices)
    assert main(["curate", "features.npy", "-n", "451", "-o", "other.npy"]) == 2
    assert not Path("other.npy").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_a_card() -> None:
    features, own = blobs([200, 20, 80])
    chosen = curate(torch.from_numpy(features).cuda(), 30, n_clusters=3)
    assert chosen.indices.is_cuda
    assert np.bincount(own[chosen.indices.cpu().numpy()]).tolist() == [10, 10, 10]
