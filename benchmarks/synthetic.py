"""Synthetic scores whose right answers, or whose difficulty, are known.

Run as a script, it writes one of them into a cache folder, in a process whose memory nobody measures.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

CHUNK_ENTRIES = 4_000_000  # scores held in float32 at a time beside the matrix itself
HDF5_CHUNK = 1 << 20  # bytes
SPARE_DISK = 10**9  # bytes to leave free


@dataclass(frozen=True, eq=False)
class ZipfHead:
    """A random linear head on k // 2 Gaussian clusters of Zipf size; see `zipf_scores`."""

    clusters: np.ndarray  # (n,) cluster ids
    centres: np.ndarray  # (k // 2, dim) float32
    weight: np.ndarray  # (dim, k) float32
    offset: np.ndarray  # (k,) float32
    random: np.random.Generator  # where it stands once the above is drawn: the features come next

    @classmethod
    def draw(
        cls,
        n: int,
        k: int,
        *,
        dim: int = 64,
        temperature: float = 1.0,
        zipf: float = 1.0,
        bias: float = 0.5,
        seed: int = 0,
    ) -> ZipfHead:
        """All of it but the features, which are the larger part."""
        random = np.random.default_rng(seed)
        n_clusters = max(1, k // 2)
        centres = random.standard_normal((n_clusters, dim), dtype=np.float32)
        shares = 1.0 / np.arange(1, n_clusters + 1) ** zipf
        clusters = random.choice(n_clusters, size=n, p=shares / shares.sum())
        weight = random.standard_normal((dim, k), dtype=np.float32) * np.float32(temperature / np.sqrt(dim))
        offset = random.standard_normal(k, dtype=np.float32) * np.float32(temperature * bias)
        return cls(clusters, centres, weight, offset, random)

    def features(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Which rows, and their features in float32, chunk by chunk; only once, since the random stream moves on."""
        dim, k = self.weight.shape
        chunk = max(1, CHUNK_ENTRIES // max(k, dim))
        for start in range(0, len(self.clusters), chunk):
            ids = self.clusters[start : start + chunk]
            features = self.random.standard_normal((len(ids), dim), dtype=np.float32)
            features += self.centres[ids]
            features *= np.sqrt(dim) / np.linalg.norm(features, axis=1, keepdims=True)
            yield slice(start, start + len(ids)), features

    def scores(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Which rows, and their log-softmax scores in float32."""
        for rows, features in self.features():
            logits = features @ self.weight
            logits += self.offset
            yield rows, _log_softmax_in_place(logits)


def zipf_scores(
    n: int,
    k: int,
    *,
    dim: int = 64,
    temperature: float = 1.0,
    zipf: float = 1.0,
    bias: float = 0.5,
    seed: int = 0,
    dtype: npt.DTypeLike = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-softmax scores (n, k) of a random linear head on k // 2 Gaussian clusters of Zipf size, and the cluster ids.

    A larger `temperature` makes the rows more peaked, a larger `zipf` the clusters more unequal, a larger `bias` the
    classes more unequally liked. Chunks share one random stream, so their size changes nothing but rounding.
    """
    head = ZipfHead.draw(n, k, dim=dim, temperature=temperature, zipf=zipf, bias=bias, seed=seed)
    scores = np.empty((n, k), dtype=dtype)  # (N, K)
    for rows, chunk in head.scores():
        scores[rows] = chunk
    return scores, head.clusters


def peaked(n: int, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a sure model: nearly all of a row's mass on one class."""
    return zipf_scores(n, k, temperature=3.0, seed=seed)


def flat(n: int, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of an unsure model: every row spread over many classes."""
    return zipf_scores(n, k, temperature=0.3, seed=seed)


def duplicates(n: int, k: int, m: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n rows of which only m are distinct, each repeated n / m times to within one (ties everywhere)."""
    scores, clusters = zipf_scores(m, k, seed=seed)
    row = np.arange(n) % m
    return scores[row], clusters[row]


def all_equal(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that say nothing: log(1 / k) everywhere."""
    return np.full((n, k), -np.log(k), dtype=np.float32), np.zeros(n, dtype=np.int64)


def default_cache() -> Path:
    """The user's cache folder on any platform."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "otlabel-bench"


def cached_scores(cache: Path, n: int, k: int, seed: int = 0) -> Path:
    """The .npy file of `zipf_scores(n, k, seed=seed)`, written first if it is not there."""
    path = cache / f"zipf-{n}x{k}-seed{seed}.npy"

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, zipf_scores(n, k, seed=seed)[0])

    return _written(path, 4 * n * k, write)


def cached_hdf5(cache: Path, n: int, k: int, seed: int = 0, *, fletcher32: bool = False) -> Path:
    """The same scores in float16 as `/log_probs` of an HDF5 file, which are never in memory as a whole."""
    path = cache / f"zipf-{n}x{k}-seed{seed}-float16{'-fletcher32' if fletcher32 else ''}.h5"

    def write(partial: Path) -> None:
        head = ZipfHead.draw(n, k, seed=seed)
        _write_hdf5(partial, "log_probs", (n, k), head.scores(), fletcher32=fletcher32)

    return _written(path, 2 * n * k, write)


def cached_features(cache: Path, n: int, dim: int, k: int, seed: int = 0) -> Path:
    """`/features` (n, dim) of an HDF5 file in float16; beside it, in .npz, weight (k, dim) and bias (k,) in float32."""
    path = cache / f"features-{n}x{dim}x{k}-seed{seed}-float16.h5"

    def write(partial: Path) -> None:
        head = ZipfHead.draw(n, k, dim=dim, seed=seed)
        np.savez(path.with_suffix(".npz"), weight=np.ascontiguousarray(head.weight.T), bias=head.offset)
        _write_hdf5(partial, "features", (n, dim), head.features())

    return _written(path, 2 * n * dim, write)


def _written(path: Path, n_bytes: int, write: Callable[[Path], None]) -> Path:
    """The file, written under another name first: a run cut short leaves nothing that is taken for data."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes + SPARE_DISK:
        raise OSError(f"{path.name} takes {n_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB left")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_hdf5(
    path: Path,
    name: str,
    shape: tuple[int, int],
    chunks: Iterator[tuple[slice, np.ndarray]],
    *,
    fletcher32: bool = False,
) -> None:
    """A float16 dataset in chunks of whole rows and about 1 MiB."""
    import h5py

    rows_a_chunk = min(shape[0], max(1, HDF5_CHUNK // (2 * shape[1])))
    with h5py.File(path, "w", rdcc_nbytes=64 * HDF5_CHUNK) as file:  # room for chunks that are written in two parts
        dataset = file.create_dataset(
            name, shape, np.float16, chunks=(rows_a_chunk, shape[1]), fletcher32=fletcher32 or None
        )
        for rows, chunk in chunks:
            dataset[rows] = chunk.astype(np.float16)


def parse_size(text: str) -> tuple[int, ...]:
    """(n, k) from "100000x300"."""
    return tuple(map(int, text.lower().split("x")))


def _log_softmax_in_place(logits: np.ndarray) -> np.ndarray:
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def main() -> None:
    """Write one file into the cache and print where it lies."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("size", type=parse_size, help="rows x classes, 100000x300; of features rows x length x classes")
    parser.add_argument("--form", choices=("npy", "hdf5", "features"), default="npy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fletcher32", action="store_true", help="checksums in the HDF5 file")
    parser.add_argument("--cache", type=Path, default=default_cache())
    arguments = parser.parse_args()
    if arguments.form == "npy":
        path = cached_scores(arguments.cache, *arguments.size, seed=arguments.seed)
    elif arguments.form == "hdf5":
        path = cached_hdf5(arguments.cache, *arguments.size, seed=arguments.seed, fletcher32=arguments.fletcher32)
    else:
        path = cached_features(arguments.cache, *arguments.size, seed=arguments.seed)
    print(path)


if __name__ == "__main__":
    main()
