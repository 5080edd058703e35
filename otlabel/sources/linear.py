"""Scores that are features times weights: each block is made where it is needed, the whole matrix never exists."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError
from otlabel.sources.base import ITEM_BYTES, Source, Span, as_float, few_rows, n_bytes, read_rows
from otlabel.sources.device import has_room, kept_whole, on_device
from otlabel.sources.given import as_array, is_frame
from otlabel.sources.memory import ArraySource, taken
from otlabel.sources.names import by_class, by_column
from otlabel.sources.opened import AnyRows, FewScores, Opened, as_opened
from otlabel.sweep import cpu
from otlabel.sweep.blocks import block_rows, cut, grouped
from otlabel.sweep.pool import blas_on_one_thread

if TYPE_CHECKING:
    import torch

DEVICE_ENTRIES = 1 << 26  # float32 scores that a device makes at a time: products large enough to keep it busy
MADE_SHARE = 0.5  # of a device's free memory that may hold all scores of a head while they are solved
FEATURE_BYTES = 1 << 20  # read at once: batches enough that all threads are done at about the same time


@dataclass(frozen=True, eq=False)
class Head:
    """<features - centre, weight> + bias, or its log-softmax.

    The centre, near all rows, keeps numbers small before anything is rounded. Without one the bias is that of
    uncentred features, as heads have it; a centre is then found where products are of float32.
    """

    weight: np.ndarray  # (K, D)
    bias: np.ndarray | None  # (K,)
    normalize: bool
    centre: np.ndarray | None = None  # (D,)

    def factor(self, centre: np.ndarray) -> np.ndarray:
        """(K, D + 1) float64, weights and bias for features that another centre is taken off."""
        weight = self.weight.astype(np.float64)
        bias = np.zeros(len(weight)) if self.bias is None else self.bias.astype(np.float64)
        offset = centre if self.centre is None else centre - self.centre
        with np.errstate(invalid="ignore", over="ignore"):  # what is no number then shows in the scores
            return np.column_stack([weight, bias + weight @ offset])


class Features:
    """What several heads read: rows that the first of them keeps in memory if they fit.

    `fixed` ones do not change as long as this lives: what is made of them stays in `dealt`.
    """

    def __init__(
        self,
        opened: Opened,
        torch_device: torch.device | None = None,
        centre: np.ndarray | None = None,
        *,
        fixed: bool = False,
    ) -> None:
        self.opened, self.torch_device, self.fixed = opened, torch_device, fixed
        self.dealt: Any = None
        self._lock = threading.Lock()
        self._moved: dict[torch.device, Features] = {}
        self._centre = centre

    def __getstate__(self) -> dict[str, Any]:
        return {"opened": self.opened, "torch_device": self.torch_device}  # copies stay behind

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def centre(self) -> np.ndarray:
        """(D,) float64, the mean of a few rows, unless another one was given."""
        with self._lock:
            if self._centre is None:
                source = self.opened.source
                self._centre = mean_of_finite(read_stretches(source, few_rows(source.shape[0])))
            return self._centre

    def change(self, change: Callable[[Opened], Opened]) -> None:
        """Let all heads read the same rows from elsewhere from now on."""
        with self._lock:
            self.opened = change(self.opened)

    def on(self, device: torch.device) -> Features:
        """The features on a device, the same for all heads: they stay there as long as these live."""
        with self._lock:
            if device not in self._moved:
                there = self.opened.only(on_device(self.opened.source, device))
                self._moved[device] = Features(there, self.torch_device)
            return self._moved[device]


class Products(Source):
    """Scores of a head in float32 or float64, made where they are read: whole products, so that rows keep their bits.

    Of several ranks' rows, products are of as many as all of them make.
    """

    def __init__(self, features: Features, head: Head, n_rows: int | None, *, double: bool) -> None:
        self._features, self._head, self._double = features, head, double
        stored = self.stored
        self.shape, self.device = (stored.shape[0], head.weight.shape[0]), stored.device
        self.dtype = "float64" if double or stored.dtype == "float64" else "float32"
        self._rows = block_rows(n_rows or self.shape[0], self.shape[1])  # of a product
        self._factor_on_device: tuple[torch.Tensor, ...] | None = None
        n_normalized = self.shape[0] if head.normalize and self.device is None else 0
        self._normalizers = np.full(n_normalized, np.nan, self.dtype)  # log sum exp of each row that was made so far

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_factor_on_device": None}

    @property
    def stored(self) -> Source:
        """The features, as float64 makes them where products are double."""
        return self._features.opened.fine if self._double else self._features.opened.source

    @property
    def grain(self) -> int:  # type: ignore[override]
        """Rows whose features are read together; on a device, rows of a product."""
        if self.device is not None:
            return max(2, DEVICE_ENTRIES // (self.shape[1] * ITEM_BYTES[self.dtype] // ITEM_BYTES["float32"]))
        return max(2, FEATURE_BYTES // (self.stored.shape[1] * ITEM_BYTES[self.stored.dtype]))

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """Whether a device waits for the features' file; on the CPU the products take longer than any."""
        return self.device is not None and self.stored.reads_files

    def close(self) -> None:
        """As the features."""
        self.stored.close()

    @functools.cached_property
    def centre(self) -> np.ndarray:
        """(D,) that is subtracted from rows, in numbers of the features' own precision: differences are then exact."""
        stored, given = self.stored, self._head.centre
        precision = np.float64 if stored.dtype == "float64" else np.float32
        if given is not None:
            largest = np.finfo(precision).max  # no row of this precision lies beyond
            return np.clip(given, -largest, largest).astype(precision).astype(np.float64)
        if precision is np.float64:
            return np.zeros(stored.shape[1])
        return self._features.centre.astype(precision).astype(np.float64)

    @functools.cached_property
    def _factor(self) -> np.ndarray:
        """(D + 1, K): rows get a last column of ones, so that the product adds the bias."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.ascontiguousarray(self._head.factor(self.centre).T.astype(self.dtype))

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """Rows in memory that the next span uses again."""
        if self.device is not None:
            yield from map(self._on_device, self.stored.read(spans))
            return
        size, n_rows = self._rows, self.shape[0]
        low, high = spans[0][0] // size * size, min(-(-spans[-1][1] // size) * size, n_rows)
        rows = np.ones((high - low, len(self._factor)), self.dtype)
        cpu.centre_block(read_rows(self.stored, low, high), self.centre.astype(self.dtype), rows)
        room = np.empty((min(size, high - low), self.shape[1]), self.dtype)
        with blas_on_one_thread():
            for start, stop in spans:
                products = [(begin, min(begin + size, n_rows)) for begin in range(start // size * size, stop, size)]
                if products == [(start, stop)]:
                    yield self._product(rows[start - low : stop - low], start, stop, room[: stop - start])
                    continue
                out = np.empty((stop - start, self.shape[1]), self.dtype)
                for begin, end in products:
                    made = self._product(rows[begin - low : end - low], begin, end, room[: end - begin])
                    first, last = max(begin, start), min(end, stop)
                    out[first - start : last - start] = made[first - begin : last - begin]
                yield out

    def take(self, rows: np.ndarray) -> Source:
        """Scores of the given rows, as a matrix in memory."""
        if self.device is not None:
            return taken(self._made, rows, self.shape[1])
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        with contextlib.closing(self):
            for batch in grouped(cut(self.shape[0], self._rows), self.grain):
                ends = np.searchsorted(rows, [batch[0][0], *(stop for _, stop in batch)])
                if ends[0] == ends[-1]:
                    continue
                for (start, _), block, first, last in zip(batch, self.read(batch), ends[:-1], ends[1:], strict=True):
                    out[first:last] = block[rows[first:last] - start]
        return ArraySource(out, self.dtype)

    def few(self, start: int, stop: int, sizes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, float]:
        """Scores before they are normalised, and the length of the longest row; a row has a one for the bias, too."""
        rows, scores = self.centred(start, stop), np.empty(len(classes))
        square = cpu.few_products(rows, self._weights, sizes, classes, scores)
        return scores, math.sqrt(square)

    def each(self, stored: np.ndarray) -> np.ndarray:
        """(n, K), scores of rows of features before they are normalised; the same bits whichever these are."""
        factor, n_rows = self._whole_factor, len(stored)
        numbers = np.ones((n_rows + n_rows % cpu.PRODUCT_ROWS, len(factor)), self.dtype)
        cpu.centre_block(stored, self.centre.astype(self.dtype), numbers)
        products = np.empty((len(numbers), self.shape[1]), self.dtype)
        cpu.row_products(numbers, factor, products)
        return products[:n_rows]

    @functools.cached_property
    def _whole_factor(self) -> np.ndarray:
        """The factor with rows of zeros, as many as `row_products` takes at once."""
        n_more = -len(self._factor) % cpu.PRODUCT_TERMS
        return np.concatenate([self._factor, np.zeros((n_more, self.shape[1]), self.dtype)])

    def centred(self, start: int, stop: int) -> np.ndarray:
        """(n, D + 1) float64, rows less the centre and a one for the bias."""
        rows = np.ones((stop - start, len(self._factor)))
        if start < stop:
            cpu.centre_block(read_rows(self.stored, start, stop), self.centre, rows)
        return rows

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        """(K, D + 1), the factor's columns one after the other."""
        return np.ascontiguousarray(self._factor.T)

    @functools.cached_property
    def rounding(self) -> float:
        """Of a score of float32, for a row of length 1: it is a sum of D + 1 products of numbers rounded before."""
        longest = float(np.sqrt(np.square(self._factor, dtype=np.float64).sum(0).max()))
        return (len(self._factor) + 3) * float(np.finfo(np.float32).eps) * longest

    def _product(self, rows: np.ndarray, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # float32 may overflow where float64 does not
            np.matmul(rows, self._factor, out=out)
        if self._head.normalize:
            normalizers = self._normalizers[start:stop]
            if np.isnan(normalizers).any():
                cpu.log_sum_exp_block(out, normalizers)
            out -= normalizers[:, None]
        return out

    def _made(self, rows: np.ndarray) -> torch.Tensor:
        return self._on_device(read_rows(self.stored.take(rows), 0, len(rows)))

    def _on_device(self, features: torch.Tensor) -> torch.Tensor:
        import torch

        if self._factor_on_device is None:
            parts = self._factor, self.centre.astype(self.dtype)
            self._factor_on_device = tuple(torch.from_numpy(part).to(features.device) for part in parts)
        factor, centre = self._factor_on_device
        scores = torch.addmm(factor[-1], features.to(factor.dtype) - centre, factor[:-1])
        return torch.log_softmax(scores, 1) if self._head.normalize else scores


@dataclass(frozen=True)
class AnyProducts(AnyRows):
    """The same of a head, from the features of these rows alone."""

    source: Products
    fine: Products

    @property
    def finest(self) -> AnyProducts:
        """Products in float64."""
        return replace(self, source=self.fine)

    @property
    def are_at_hand(self) -> bool:
        """Whether the features are."""
        return AnyRows(self.source.stored).are_at_hand

    def of(self, rows: np.ndarray) -> np.ndarray:
        """As of what is stored."""
        return self.source.each(read_rows(self.source.stored.take(rows), 0, len(rows)))


@dataclass(frozen=True, eq=False)
class LinearScores(Opened):
    """Scores of a linear head over features that others may share; the fine ones are products in float64.

    The bare ones are the products alone: of small ones, what normalises them hides digits.
    """

    features: Features = field(kw_only=True)
    head: Head = field(kw_only=True)

    @classmethod
    def made_of(
        cls, features: Features, head: Head, names: Sequence[Any] | None = None, n_rows: int | None = None
    ) -> LinearScores:
        """The scores; `n_rows` of all ranks, where these have others."""
        stored = features.opened
        source = Products(features, head, n_rows, double=False)
        fine = source if source.dtype == "float64" else Products(features, head, n_rows, double=True)
        bare = fine
        if head.normalize:
            bare = Products(features, replace(head, normalize=False), n_rows, double=True)
        few = None if head.normalize or fine is source or fine.device is not None else _few(source, fine)
        about = functools.partial(_of_features, stored.place), stored.files, names, stored.row_names
        return cls(source, fine, bare, *about, AnyProducts(source, fine), few, features=features, head=head)

    @property
    def torch_device(self) -> torch.device | None:
        """Where the features are, if they are a tensor: results then are as well."""
        return self.features.torch_device

    @property
    def needs_centre(self) -> bool:
        """Whether the features' own centre is taken off: products of float32 that nobody gave another one for."""
        return self.head.centre is None and self.features.opened.source.dtype != "float64"

    def on(self, device: torch.device) -> LinearScores:
        """The same head on features that are moved to a device, or streamed to it, and made into scores there."""
        return self.reading(self.features.on(device))

    def reading(self, features: Features, n_rows: int | None = None) -> LinearScores:
        """The same head on other features, of so many rows on all ranks."""
        return LinearScores.made_of(features, self.head, self.class_names, n_rows)

    def made(self) -> Opened:
        """The same, the scores in the device's memory if they fit: one product then serves all passes."""
        source = self.source
        if source.device is None or not has_room(source.device, n_bytes(source), MADE_SHARE):
            return self
        whole = kept_whole(source)
        return self if whole is source else self.over(whole)


def _few(source: Products, fine: Products) -> FewScores:
    """Products in float64 where the others are of float32; normalised scores would need all classes."""

    def scores(start: int, stop: int, sizes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, float]:
        found, longest_row = fine.few(start, stop, sizes, classes)
        return found, source.rounding * longest_row

    return scores


def _of_features(place: Callable[[int], str], row: int) -> str:
    return f"{place(row)} (of the features)"


def closeness(features: Opened | Source | Features, centres: np.ndarray, unit: float = 1.0) -> LinearScores:
    """-||x - mu_k||^2 + ||x - m||^2 = <x - m, 2 (mu_k - m)> - ||mu_k - m||^2 with m, in the middle of the centres mu.

    A median, for a mean would follow one centre far away, from where the others can hardly be told apart. All is
    divided by `unit`: with one of the size of the differences, no square is beyond what float64 holds.
    """
    wide = centres.astype(np.float64)
    middle = np.median(wide, axis=0)
    wide -= middle
    head = Head(wide / unit * 2, -(wide * (wide / unit)).sum(1), normalize=False, centre=middle)
    return LinearScores.made_of(_as_features(features), head)


def cosines(features: Opened | Source | Features, centres: np.ndarray) -> LinearScores:
    """<x, mu_k> of unit rows and centres of length 1 or 0, up to a constant in each row: -||x - mu_k||^2 / 2.

    A centre that rounding has made longer than 1 would gain by it in all products alike, which may be more than what
    tells rows apart that lie close together; the distances change by the square of that.
    """
    wide = centres.astype(np.float64)
    middle = np.median(wide, axis=0)
    lengths = np.where(wide.any(1), 0.0, 1.0)  # what a centre at zero lacks: its distance is 1, its cosine is 0
    wide -= middle
    head = Head(wide, -(np.square(wide).sum(1) + lengths) / 2, normalize=False, centre=middle)
    return LinearScores.made_of(_as_features(features), head)


def _as_features(rows: Opened | Source | Features) -> Features:
    return rows if isinstance(rows, Features) else Features(as_opened(rows))


def read_stretches(source: Source, rows: np.ndarray) -> np.ndarray:
    """The given rows (sorted) as float64, by one read for each stretch of neighbours."""
    parts = [np.empty((0, source.shape[1]))]
    with contextlib.closing(source):
        for stretch in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(stretch):
                stored = read_rows(source, int(stretch[0]), int(stretch[-1]) + 1)
                parts.append(as_float(stored, source.dtype).astype(np.float64))
    return np.concatenate(parts)


def mean_of_finite(some: np.ndarray) -> np.ndarray:
    """(D,) means of what is finite in each column of (n, D)."""
    finite = np.isfinite(some)
    with np.errstate(over="ignore"):
        mean = np.where(finite, some, 0).sum(0) / np.maximum(finite.sum(0), 1)
    return np.where(np.isfinite(mean), mean, 0)


def checked_head(
    weight: Any, bias: Any, features: Opened
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
