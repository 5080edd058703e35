"""Scores that are features times weights: each block is made where it is needed, the whole matrix never exists."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import ITEM_BYTES, Batch, Source, as_float, few_rows, grouped
from otlabel.sources.device import has_room, on_device
from otlabel.sources.given import as_array, is_frame
from otlabel.sources.memory import ArraySource, TensorSource
from otlabel.sources.names import by_class, by_column
from otlabel.sweep import cpu, is_out_of_memory
from otlabel.sweep.pool import blas_on_one_thread

if TYPE_CHECKING:
    import torch

DEVICE_ENTRIES = 1 << 26  # float32 scores that a device makes at a time: products large enough to keep it busy
MADE_SHARE = 0.5  # of a device's free memory that may hold all scores of a head while they are solved
FEATURE_BYTES = 1 << 20  # read at once: batches enough that all threads are done at about the same time


class Features:
    """What several heads read: one source, kept in memory by the first of them if it fits."""

    def __init__(
        self, source: Source, torch_device: torch.device | None = None, centre: np.ndarray | None = None
    ) -> None:
        self.source, self.torch_device = source, torch_device
        self._lock = threading.Lock()
        self._moved: dict[torch.device, Features] = {}
        self._centre = centre

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "torch_device": self.torch_device}  # copies on devices stay behind

    @property
    def centre(self) -> np.ndarray:
        """(D,) float64, the mean of a few rows, unless another one was given."""
        with self._lock:
            if self._centre is None:
                self._centre = mean_of_finite(read_stretches(self.source, few_rows(self.source.shape[0])))
            return self._centre

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def change(self, change: Callable[[Source], Source]) -> None:
        """Let all heads read another source of the same rows from now on."""
        with self._lock:
            self.source = change(self.source)

    def on(self, device: torch.device) -> Features:
        """The features on a device, the same for all heads: they stay there as long as these live."""
        with self._lock:
            if device not in self._moved:
                self._moved[device] = Features(on_device(self.source, device), self.torch_device)
            return self._moved[device]


class LinearScores(Source):
    """<features - centre, weight> + bias, or its log-softmax, in float32 (float64 where features are).

    The centre, near all rows, keeps numbers small before anything is rounded. Without one the bias is that of
    uncentred features, as heads have it; a centre is then found where products are of float32.
    """

    def __init__(
        self,
        features: Features,
        weight: np.ndarray,
        bias: np.ndarray | None,
        normalize: bool,
        *,
        centre: np.ndarray | None = None,
        double: bool = False,
    ) -> None:
        source = features.source
        self.features, self._normalize = features, normalize
        self.shape = (source.shape[0], weight.shape[0])
        self.dtype = "float64" if double or source.dtype == "float64" else "float32"
        self.on_cpu = source.on_cpu
        if not source.on_cpu:
            self.device = source.device
        self._weight, self._bias, self._given_centre = weight, bias, centre
        self._fine: LinearScores | None = None
        self._factor_on_device: tuple[torch.Tensor, ...] | None = None
        self._made: TensorSource | None = None  # all scores, where a device keeps them
        self._normalizers = np.full(self.shape[0], np.nan, self.dtype)  # log sum exp of each row seen so far

    @property
    def needs_centre(self) -> bool:
        """Whether the features' own centre is taken off: products of float32 that nobody gave another one for."""
        return self._given_centre is None and self.features.source.dtype != "float64"

    @functools.cached_property
    def _centre(self) -> np.ndarray:
        """(D,) that is subtracted from rows, in numbers of the features' own precision: differences are then exact."""
        precision = np.float64 if self.features.source.dtype == "float64" else np.float32
        if self._given_centre is not None:
            largest = np.finfo(precision).max  # no row of this precision lies beyond
            return np.clip(self._given_centre, -largest, largest).astype(precision).astype(np.float64)
        if precision is np.float64:
            return np.zeros(self.features.source.shape[1])
        return self.features.centre.astype(precision).astype(np.float64)

    @functools.cached_property
    def _factor(self) -> np.ndarray:
        """(D + 1, K): rows get a last column of ones, so that the product adds the bias."""
        weight = self._weight.astype(np.float64)
        bias = np.zeros(self.shape[1]) if self._bias is None else self._bias.astype(np.float64)
        moved = self._centre if self._given_centre is None else self._centre - self._given_centre
        with np.errstate(invalid="ignore", over="ignore"):  # what is no number then shows in the scores
            return np.concatenate([weight.T, (bias + weight @ moved)[None]]).astype(self.dtype)

    @property
    def fine(self) -> LinearScores:
        """The same products in float64, of features as float64 makes them."""
        source = self.features.source
        if self.dtype == "float64" and source.fine is source:
            return self
        if self._fine is None or self._fine.all_rows != self.all_rows:
            features = self.features if source.fine is source else Features(source.fine, self.features.torch_device)
            self._fine = LinearScores(
                features, self._weight, self._bias, self._normalize, centre=self._given_centre, double=True
            )
            self._fine.all_rows = self.all_rows
        return self._fine

    @property
    def bare(self) -> LinearScores:
        """The products alone: of small ones, what normalises them hides digits."""
        if not self._normalize:
            return self
        double = self.dtype == "float64"
        bare = LinearScores(self.features, self._weight, self._bias, False, centre=self._given_centre, double=double)
        bare.all_rows = self.all_rows
        return bare

    @property
    def torch_device(self) -> torch.device | None:
        """Where the features are, if they are a tensor: results then are as well."""
        return self.features.torch_device

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """Whether a device waits for the features' file; on the CPU the products take longer than any."""
        return not self.on_cpu and self._made is None and self.features.source.reads_files

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """Of the features."""
        return self.features.source.bytes_read

    @property
    def random_access(self) -> bool:  # type: ignore[override]
        """Where a device keeps all scores."""
        return self._made is not None

    @property
    def whole(self) -> torch.Tensor | None:  # type: ignore[override]
        """Where a device keeps all scores, these."""
        return None if self._made is None else self._made.tensor

    def made(self) -> LinearScores:
        """The same head, its scores in the device's memory if they fit: one product then serves all passes."""
        if self.on_cpu or self._made is not None or not has_room(self.device, self.n_bytes, MADE_SHARE):
            return self
        import torch

        made = copy.copy(self)  # which goes when the solve ends; the caller's may be one of many
        try:
            whole = torch.empty(self.shape, dtype=getattr(torch, self.dtype), device=self.device)
            with self.reading():
                for batch in self.batches():
                    for (start, stop), block in zip(batch, self.read_blocks(batch), strict=True):
                        whole[start:stop] = block
        except RuntimeError as error:  # free, but in pieces
            if not is_out_of_memory(error):
                raise
            return self
        made._made = TensorSource(whole)
        return made

    def on(self, device: torch.device) -> LinearScores:
        """The same head on features that are moved to a device, or streamed to it, and made into scores there."""
        return self.over(self.features.on(device))

    def over(self, features: Features) -> LinearScores:
        """The same head on other features."""
        return LinearScores(features, self._weight, self._bias, self._normalize, centre=self._given_centre)

    @property
    def partitioned_rows(self) -> int:
        """As the features have it."""
        return self.all_rows or self.features.source.partitioned_rows

    def blocks(self) -> Batch:
        """Larger ones on a device, which makes them at once."""
        if self.on_cpu:
            return super().blocks()
        if self._made is not None:
            return self._made.blocks()
        size = max(1, DEVICE_ENTRIES // (self.shape[1] * ITEM_BYTES[self.dtype] // ITEM_BYTES["float32"]))
        return [(start, min(start + size, self.shape[0])) for start in range(0, self.shape[0], size)]

    def batches(self) -> list[Batch]:
        """Blocks whose features are read together."""
        if self._made is not None:
            return self._made.batches()
        source = self.features.source
        rows = max(getattr(source, "least_rows", 1), FEATURE_BYTES * source.shape[0] // max(source.n_bytes, 1))
        return grouped(self.blocks(), rows)

    def device_batches(self) -> list[Batch]:
        """As a tensor's where all scores are one."""
        return self.batches() if self._made is None else self._made.device_batches()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Products on one thread each: blocks are what threads share, and sums then have the same bits everywhere."""
        with self.features.source.reading(), blas_on_one_thread():
            yield

    def read_blocks(self, batch: Batch) -> Iterator[Any]:
        """Scores of each block, in memory that the next block uses again."""
        if self._made is not None:
            yield from self._made.read_blocks(batch)
            return
        first = batch[0][0]
        features = self.features.source.read(first, batch[-1][1])
        longest = max(stop - start for start, stop in batch)
        if not self.on_cpu:
            yield from (self._on_device(features[start - first : stop - first]) for start, stop in batch)
            return
        rows = np.ones((batch[-1][1] - first, len(self._factor)), self.dtype)
        cpu.centre_block(features, self._centre.astype(self.dtype), rows)
        room = np.empty((longest, self.shape[1]), self.dtype)
        for start, stop in batch:
            yield self._block(rows[start - first : stop - first], start, stop, room[: stop - start])

    def read(self, start: int, stop: int) -> Any:
        """By whole blocks, so that a row has the same bits however it is read."""
        if self._made is not None:
            return self._made.read(start, stop)
        parts = []
        with blas_on_one_thread():
            for block in self.blocks():
                if block[0] < stop and block[1] > start:
                    rows = next(iter(self.read_blocks([block])))
                    parts.append(rows[max(start - block[0], 0) : stop - block[0]])
        return np.concatenate(parts) if self.on_cpu else _concatenated(parts)

    def take(self, rows: np.ndarray) -> Source:
        """Scores of the given rows, as a matrix in memory."""
        if self._made is not None:
            return self._made.take(rows)
        if not self.on_cpu:
            features = self.features.source.take(rows)
            return TensorSource(self._on_device(features.read(0, len(rows))))
        parts = []
        with self.reading():
            for batch in self.batches():
                if np.diff(np.searchsorted(rows, (batch[0][0], batch[-1][1]))):
                    for (start, stop), block in zip(batch, self.read_blocks(batch), strict=True):
                        first, last = np.searchsorted(rows, (start, stop))
                        parts.append(block[rows[first:last] - start])
        return ArraySource(np.concatenate(parts) if parts else np.empty((0, self.shape[1]), self.dtype), self.dtype)

    def place(self, row: int) -> str:
        """The features' own."""
        return f"{self.features.source.place(row)} (of the features)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_factor_on_device": None, "_fine": None, "_made": None}

    def _block(self, rows: np.ndarray, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # float32 may overflow where `fine` does not
            np.matmul(rows, self._factor, out=out)
        if self._normalize:
            normalizers = self._normalizers[start:stop]
            if np.isnan(normalizers).any():
                cpu.log_sum_exp_block(out, normalizers)
            out -= normalizers[:, None]
        return out

    def _on_device(self, features: torch.Tensor) -> torch.Tensor:
        import torch

        if self._factor_on_device is None:
            parts = self._factor, self._centre.astype(self.dtype)
            self._factor_on_device = tuple(torch.from_numpy(part).to(features.device) for part in parts)
        factor, centre = self._factor_on_device
        scores = torch.addmm(factor[-1], features.to(factor.dtype) - centre, factor[:-1])
        return torch.log_softmax(scores, 1) if self._normalize else scores


def _concatenated(parts: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(parts)


def closeness(source: Source, centres: np.ndarray, unit: float = 1.0) -> LinearScores:
    """-||x - mu_k||^2 + ||x - m||^2 = <x - m, 2 (mu_k - m)> - ||mu_k - m||^2 with m, in the middle of the centres mu.

    A median, for a mean would follow one centre far away, from where the others can hardly be told apart. All is
    divided by `unit`: with one of the size of the differences, no square is beyond what float64 holds.
    """
    wide = centres.astype(np.float64)
    middle = np.median(wide, axis=0)
    wide -= middle
    return LinearScores(Features(source), wide / unit * 2, -(wide * (wide / unit)).sum(1), False, centre=middle)


def cosines(source: Source, centres: np.ndarray) -> LinearScores:
    """<x, mu_k> of unit rows and centres of length 1 or 0, up to a constant in each row: -||x - mu_k||^2 / 2.

    A centre that rounding has made longer than 1 would gain by it in all products alike, which may be more than what
    tells rows apart that lie close together; the distances change by the square of that.
    """
    wide = centres.astype(np.float64)
    middle = np.median(wide, axis=0)
    lengths = np.where(wide.any(1), 0.0, 1.0)  # what a centre at zero lacks: its distance is 1, its cosine is 0
    wide -= middle
    return LinearScores(Features(source), wide, -(np.square(wide).sum(1) + lengths) / 2, False, centre=middle)


def read_stretches(source: Source, rows: np.ndarray) -> np.ndarray:
    """The given rows (sorted) as float64, by one read for each stretch of neighbours."""
    parts = [np.empty((0, source.shape[1]))]
    with source.reading():
        for stretch in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(stretch):
                stored = source.read(int(stretch[0]), int(stretch[-1]) + 1)
                parts.append(as_float(stored, source.dtype).astype(np.float64))
    return np.concatenate(parts)


def mean_of_finite(some: np.ndarray) -> np.ndarray:
    """(D,) means of what is finite in each column of (n, D)."""
    finite = np.isfinite(some)
    with np.errstate(over="ignore"):
        mean = np.where(finite, some, 0).sum(0) / np.maximum(finite.sum(0), 1)
    return np.where(np.isfinite(mean), mean, 0)


def checked_head(
    weight: Any, bias: Any, features: Source
) -> tuple[np.ndarray, np.ndarray | None, Sequence[Any] | None]:
    """A head's weight (K, D) and bias (K,) as arrays of numbers, and its classes' names; or InvalidScoresError."""
    matrix, names, n_features = as_array(weight, "weight", InvalidScoresError), None, features.shape[1]
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiu":
        raise InvalidScoresError(
            f"weight has shape {matrix.shape} of {matrix.dtype}; pass (K, D) numbers, a row a class"
        )
    if matrix.shape[1] != n_features:
        hint = "; did you mean weight.T?" if matrix.shape[0] == n_features else ""
        raise InvalidScoresError(
            f"weight has shape {matrix.shape}, for {matrix.shape[1]} features a sample; there are {n_features}{hint}"
        )
    matrix = by_column(weight, features.class_names, "weight", InvalidScoresError)
    if is_frame(weight) and hasattr(weight, "index"):
        names = weight.index.tolist()
    if bias is None:
        return matrix, None, names
    vector = by_class(bias, len(matrix), names, "bias", InvalidScoresError)
    if vector.shape != (matrix.shape[0],) or vector.dtype.kind not in "fiu":
        raise InvalidScoresError(f"bias has shape {vector.shape} of {vector.dtype}; pass ({matrix.shape[0]},) numbers")
    return matrix, vector, names
