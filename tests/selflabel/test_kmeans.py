"""k-means by every package that can do it, and which of them is taken."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from otlabel.errors import OtlabelError
from otlabel.selflabel import kmeans
from otlabel.selflabel.kmeans import by_torch, k_means


def blobs(n_rows: int = 600, n_blobs: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_blobs, n_rows)
    return (4 * rng.normal(size=(n_blobs, 5))[truth] + rng.normal(size=(n_rows, 5))).astype(np.float32), truth


@pytest.mark.parametrize("seed", range(4))
def test_torch_takes_the_steps_of_scikit_learn(seed: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    features, _ = blobs(seed=seed)
    labels, inertia = by_torch(torch.from_numpy(features), 6, 25, seed)
    start = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:6]]
    theirs = cluster.KMeans(6, init=start, n_init=1, max_iter=25, tol=0).fit(features)
    np.testing.assert_array_equal(labels, theirs.labels_)
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.from_numpy(blobs()[0])
    whole = by_torch(features, 7, 10, 0)
    monkeypatch.setattr(kmeans, "CHUNK_ENTRIES", 100)
    parts = by_torch(features, 7, 10, 0)
    np.testing.assert_array_equal(whole[0], parts[0])
    assert whole[1] == pytest.approx(parts[1], rel=1e-6)


def test_empty_clusters_are_filled() -> None:
    """All but one centre begin on equal rows."""
    features = torch.cat([torch.zeros(500, 3), torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 9])
    labels, _ = by_torch(features, 8, 60, 3)
    assert len(np.unique(labels[500:])) >= 4


def blocked(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("missing", [(), ("faiss",), ("faiss", "sklearn.cluster")], ids=["faiss", "sklearn", "torch"])
def test_whatever_is_there_finds_clear_clusters(missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if "faiss" not in missing:
        pytest.importorskip("faiss")
    blocked(monkeypatch, *missing)
    best = min((k_means(blobs()[0], 6, 25, seed, "auto") for seed in range(5)), key=lambda found: found[1])
    found, truth = best[0], blobs()[1]
    table = np.zeros((6, 6), int)
    np.add.at(table, (found, truth), 1)
    assert table.max(0).sum() >= 0.97 * len(truth)
    same = k_means(blobs()[0], 6, 25, 0, "auto")
    np.testing.assert_array_equal(same[0], k_means(blobs()[0], 6, 25, 0, "auto")[0])


def test_a_device_is_served_by_torch_where_faiss_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watched(features: torch.Tensor, *rest: Any) -> tuple[np.ndarray, float]:
        seen.append(features.device.type)
        return np.zeros(len(features), np.int64), 0.0

    monkeypatch.setattr(kmeans, "by_torch", watched)
    monkeypatch.setattr(kmeans, "_faiss", lambda: SimpleNamespace(get_num_gpus=lambda: 0))
    k_means(blobs()[0], 6, 5, 0, "meta")
    assert seen == ["meta"]


def test_two_builds_of_faiss_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_installed", lambda: {"faiss-cpu", "faiss-gpu-cu12", "numpy"})
    with pytest.raises(OtlabelError, match="pip uninstall faiss-cpu faiss-gpu-cu12, then install the one you want"):
        k_means(blobs()[0], 6, 5, 0, "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_steps_on_a_device() -> None:
    features = torch.from_numpy(blobs()[0])
    ours, theirs = by_torch(features.cuda(), 6, 25, 0), by_torch(features, 6, 25, 0)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
