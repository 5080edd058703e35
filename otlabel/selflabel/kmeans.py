"""k-means by whatever is there: faiss, on its GPUs if it has any, scikit-learn, or plain torch on any device."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import numpy as np
import torch

from otlabel.errors import OtlabelError

CHUNK_ENTRIES = 1 << 24  # distances at once


def k_means(features: np.ndarray, n_clusters: int, n_iter: int, seed: int, device: str) -> tuple[np.ndarray, float]:
    """Labels (N,) int64 of float32 features (N, D), and the sum of squared distances to the centres.

    device: "auto" takes faiss, or else scikit-learn, or else torch on the CPU; "cpu" the same without GPUs; any other
    is torch's name of a device, on which faiss is used where it can be.
    """
    faiss = _faiss()
    on_gpu = device not in ("auto", "cpu")
    if faiss is not None and (not on_gpu or faiss.get_num_gpus()):
        return _by_faiss(faiss, features, n_clusters, n_iter, seed, gpu=device != "cpu" and faiss.get_num_gpus() > 0)
    if not on_gpu:
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            device = "cpu"
        else:
            found = KMeans(n_clusters, n_init=1, max_iter=n_iter, random_state=seed % (1 << 31)).fit(features)
            return found.labels_.astype(np.int64), float(found.inertia_)
    return by_torch(torch.from_numpy(features).to(device), n_clusters, n_iter, seed)


def _faiss() -> Any:
    """The module, or None where it is not installed; two builds of it side by side are an error."""
    builds = [name for name in _installed() if name.startswith("faiss-")]
    if any("gpu" in name for name in builds) and any("cpu" in name for name in builds):
        raise OtlabelError(
            f"{' and '.join(sorted(builds))} are both installed, and break each other: each brings a module "
            f"named faiss; pip uninstall {' '.join(sorted(builds))}, then install the one you want"
        )
    try:
        import faiss
    except ImportError:
        return None
    return faiss


@functools.cache  # a look at every package's metadata; nobody installs faiss while a model trains
def _installed() -> set[str]:
    return {(one.metadata["Name"] or "").lower().replace("_", "-") for one in importlib.metadata.distributions()}


def _by_faiss(
    faiss: Any, features: np.ndarray, n_clusters: int, n_iter: int, seed: int, *, gpu: bool
) -> tuple[np.ndarray, float]:
    kmeans = faiss.Kmeans(
        features.shape[1], n_clusters, niter=n_iter, seed=seed % (1 << 31), gpu=gpu,
        min_points_per_centroid=1, max_points_per_centroid=len(features),
    )  # fmt: skip
    kmeans.train(features)
    distances, nearest = kmeans.index.search(features, 1)
    return nearest[:, 0].astype(np.int64), float(distances.sum(dtype=np.float64))


def by_torch(features: torch.Tensor, n_clusters: int, n_iter: int, seed: int) -> tuple[np.ndarray, float]:
    """Lloyd's iterations from random samples; empty clusters take the samples that are farthest from their centres."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(features), generator=generator)[:n_clusters]
    centres = features[drawn.to(features.device)].clone()
    for _ in range(n_iter):
        labels, distances = _nearest(features, centres)
        empty = (torch.bincount(labels, minlength=n_clusters) == 0).nonzero()[:, 0]
        labels[distances.topk(len(empty)).indices] = empty
        sizes = torch.bincount(labels, minlength=n_clusters)
        sums = torch.zeros_like(centres, dtype=torch.float64).index_add_(0, labels, features.double())
        centres = (sums / sizes.clamp(min=1)[:, None]).to(features.dtype)
    labels, distances = _nearest(features, centres)
    return labels.cpu().numpy(), float(distances.sum(dtype=torch.float64))


def _nearest(features: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest centre of each row and the squared distance to it, without N x K distances at once."""
    squares = centres.square().sum(1)
    labels, distances = [], []
    for part in features.split(max(1, CHUNK_ENTRIES // len(centres))):
        least, nearest = torch.addmm(squares, part, centres.T, alpha=-2).min(1)
        labels.append(nearest)
        distances.append((least + part.square().sum(1)).clamp(min=0))
    return torch.cat(labels), torch.cat(distances)
