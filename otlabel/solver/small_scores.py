"""Scores that stay in the cache: of float32 for what looks at all of them, of float64 for single ones.

Rows are dealt out to blocks like cards, so that any few blocks are a sample that is spread over all rows, and lie
beside one another in a block: its loops run over LANES rows at once, however few the classes are. What float32 cannot
tell apart is looked up, or made of features, in float64.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from otlabel.compiling import njit
from otlabel.ranks.rowset import RowSet
from otlabel.solver.posing import FAR
from otlabel.sources import ArraySource, LinearScores, Products, as_float
from otlabel.sweep.numerics import FAST, larger, smaller
from otlabel.sweep.pool import blas_on_one_thread

LANES, TILE = 128, 16  # rows of a block, and those that are dealt out together
SPREAD_ROWS = 1024  # that tell the spread of a row
MOST_NUMBERS = 1 << 23  # of features that are kept in float64 and float32
DEEP = 4  # roundings of a product beside those of its sum: of both numbers, of what is subtracted, of the sum's start
UNSURE, COARSE = 0.125, 0.05  # of epsilon, and of the class error that a plan may have: what products may be wrong by
EPS, FLOAT32_EPS = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)
LARGEST = 1e30  # products up to here are numbers of float32

part = functools.partial(
    njit, nogil=True, error_model="numpy", fastmath=FAST, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
whole = functools.partial(njit, nogil=True, error_model="numpy", fastmath=FAST, _nrt=False, no_cfunc_wrapper=True)
NOTHING = np.empty((0, 0))


@dataclass(frozen=True, eq=False)
class Table:
    """Scores in float32, how far these may be from those of float64, and what the latter are."""

    blocks: np.ndarray  # (B, K, LANES) float32: row i is in block i % B
    weights: np.ndarray  # (B, LANES) float32: 1, or 0 of lanes that no row fills
    known: np.ndarray  # (B, LANES) float32: by how much blocks may be wrong beside the rounding to float32
    tops: np.ndarray  # (N,) float64: the largest score of each row
    extents: np.ndarray  # (N,) float64: how far its smallest finite one is below that
    least: float  # score of all
    stored: np.ndarray  # (N, K) float64, or nothing: then scores are products of
    features: np.ndarray  # (N, D) float64
    factor: np.ndarray  # (K, D) float64

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.tops)

    @functools.cached_property
    def spread(self) -> float:
        """The median extent of some rows."""
        return middle(self.extents[:: -(-self.n_rows // SPREAD_ROWS)])

    @functools.cached_property
    def magnitude(self) -> float:
        """Of the largest score."""
        return float(np.abs(self.tops).max())

    @functools.cached_property
    def top(self) -> float:
        """The largest score."""
        return float(self.tops.max())

    @functools.cached_property
    def extent(self) -> float:
        """Of the widest row."""
        return float(self.extents.max())

    @property
    def is_far(self) -> bool:
        """Whether what is large in all of a row hides what tells its classes apart."""
        return self.magnitude > FAR * self.spread

    @property
    def of_float64(self) -> tuple[np.ndarray, ...]:
        """What single scores are looked up in, or made of."""
        return self.stored, self.features, self.factor

    def lowered(self) -> Table:
        """The same, each row of stored scores less its largest one, which then takes no digits."""
        return replace(self, stored=self.stored - self.tops[:, None])


@dataclass(frozen=True, eq=False)
class Dealt:
    """Features of all rows with a one behind them, as they are and dealt out."""

    centre: np.ndarray  # (D,) that is taken off
    rows: np.ndarray  # (N, D + 1) float64
    blocks: np.ndarray  # (B, D + 1, LANES) float32
    weights: np.ndarray  # (B, LANES) float32
    lengths: np.ndarray  # (B, LANES) float32: of rows
    length: float  # the usual one

    @classmethod
    def of(cls, rows: np.ndarray, centre: np.ndarray) -> Dealt | None:
        """None where some are no numbers."""
        n_rows, n_blocks = len(rows), -(-len(rows) // LANES)
        padded = np.zeros((LANES * n_blocks, rows.shape[1]))
        padded[:n_rows] = rows
        lengths = np.sqrt(np.einsum("ij,ij->i", padded, padded))
        if not lengths.max() < LARGEST:
            return None
        blocks = np.ascontiguousarray(padded.reshape(LANES, n_blocks, -1).transpose(1, 2, 0), np.float32)
        lanes = (column.reshape(LANES, n_blocks).T.astype(np.float32) for column in (padded[:, -1], lengths))
        usual = middle(lengths[:n_rows])
        return cls(centre, padded[:n_rows], blocks, *(np.ascontiguousarray(each) for each in lanes), usual)


def table_of(rows: RowSet, epsilon: float, tol: float) -> Table | None:
    """All scores of all ranks, for a plan of this epsilon and tolerance; None where some are NaN or infinite."""
    opened = rows.opened
    if isinstance(opened, LinearScores) and rows.n_rows * (opened.features.opened.shape[1] + 1) <= MOST_NUMBERS:
        table = _of_products(rows, opened, epsilon, tol)
        if table is not None:
            return table
    scores = _read(rows)
    if not scores.max() < np.inf:
        return None
    n_blocks = -(-len(scores) // LANES)
    blocks = np.empty((n_blocks, scores.shape[1], LANES), np.float32)
    weights, known = np.empty((2, n_blocks, LANES), np.float32)
    tops, extents = np.empty((2, len(scores)))
    least = deal_out(scores, blocks, weights, known, tops, extents)
    return Table(blocks, weights, known, tops, extents, least, scores, NOTHING, NOTHING)


def _of_products(rows: RowSet, opened: LinearScores, epsilon: float, tol: float) -> Table | None:
    """Of a head; None where float32 says too little of its products."""
    features, fine = opened.features, rows.fine.source
    assert isinstance(fine, Products)
    dealt = features.dealt
    if dealt is None or np.linalg.norm(fine.centre - dealt.centre) > dealt.length:
        with rows.fine.reading():
            here = fine.centred(0, rows.shape[0])
        dealt = Dealt.of(rows.concat("features", here)[0], fine.centre)
        features.dealt = dealt if features.fixed else None
    if dealt is None:
        return None
    factor = opened.head.factor(dealt.centre)
    longest = float(np.sqrt(np.square(factor).sum(1).max()))  # NaN where some are no numbers
    rounding = (factor.shape[1] + DEEP) * FLOAT32_EPS * longest
    unsure = rounding * dealt.length
    is_coarse = unsure > UNSURE * epsilon or unsure > COARSE * tol * epsilon * math.sqrt(factor.shape[1])
    if is_coarse or not longest * float(dealt.lengths.max()) < LARGEST:
        return None
    with blas_on_one_thread():
        blocks = np.matmul(factor.astype(np.float32), dealt.blocks)
    known = dealt.lengths * np.float32(rounding)
    tops, extents = np.empty((2, len(dealt.rows)))
    least = look(blocks, tops, extents, *np.empty((2, LANES), np.float32))
    table = Table(blocks, dealt.weights, known, tops, extents, least, NOTHING, dealt.rows, factor)
    return None if table.is_far else table


def _read(rows: RowSet) -> np.ndarray:
    """All scores (N, K) of all ranks as float64."""
    fine = rows.fine
    if isinstance(fine.source, ArraySource):
        scores = as_float(fine.source.array, fine.source.dtype)
    else:
        scores = np.empty(rows.shape)
        with fine.reading():
            for (start, stop), block in fine.blocks():
                scores[start:stop] = block
    of_all = scores if rows.communicator.world_size == 1 else rows.concat("scores", scores)[0]
    return np.ascontiguousarray(of_all, np.float64)


def middle(values: np.ndarray) -> float:
    """The median, or the upper one of two."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


@whole(cache=True)
def deal_out(scores, blocks, weights, known, tops, extents):
    """Write scores (N, K) float64 less the largest of their row as blocks (B, K, LANES) float32, with what rows count.

    Also of each row its largest score, how far its smallest finite one is below that, and by how much float64 may be
    wrong. Row i is in block i % B. Returns the least score of all.
    """
    n_rows, n_classes = scores.shape
    n_blocks, least = blocks.shape[0], np.inf
    for block in range(n_blocks):
        for lane in range(LANES):
            row = lane * n_blocks + block
            weights[block, lane], known[block, lane] = np.float32(row < n_rows), np.float32(0)
            if row >= n_rows:
                for k in range(n_classes):
                    blocks[block, k, lane] = np.float32(0)
                continue
            top, bottom = -np.inf, np.inf
            for k in range(n_classes):
                value = scores[row, k]
                top = larger(top, value)
                least = smaller(least, value)
                bottom = smaller(bottom, value if value > -np.inf else np.inf)
            for k in range(n_classes):
                blocks[block, k, lane] = np.float32(scores[row, k] - top)
            tops[row], extents[row], known[block, lane] = top, top - bottom, np.float32(4 * EPS * math.fabs(top))
    return least


@whole(cache=True)
def look(blocks, tops, extents, high, low):
    """Write the largest score of each row, and how far its smallest one is below that; returns the least of all."""
    n_blocks, n_classes, least = blocks.shape[0], blocks.shape[1], np.inf
    for block in range(n_blocks):
        for lane in range(LANES):
            high[lane], low[lane] = np.float32(-np.inf), np.float32(np.inf)
        for k in range(n_classes):
            for lane in range(LANES):
                value = blocks[block, k, lane]
                high[lane], low[lane] = larger(high[lane], value), smaller(low[lane], value)
        for lane in range(LANES):
            row = lane * n_blocks + block
            if row < tops.size:
                tops[row], extents[row] = np.float64(high[lane]), np.float64(high[lane]) - np.float64(low[lane])
                least = smaller(least, np.float64(low[lane]))
    return least


@part()
def score(stored, features, factor, row, k):
    """One score as float64 makes it."""
    if stored.size > 0:
        return stored[row, k]
    total = 0.0
    for j in range(features.shape[1]):
        total += features[row, j] * factor[k, j]
    return total


@part()
def narrowed(g, single):
    """Write potentials as float32; returns the largest by size."""
    largest = np.float32(0)
    for k in range(g.size):
        single[k] = np.float32(g[k])
        largest = larger(largest, np.float32(math.fabs(g[k])) if g[k] > -np.inf else np.float32(0))
    return largest


@part()
def near(blocks, block, known, single, slack, largest, tops, floors, n_near, total):
    """For each row of a block how many classes are within `slack` of the best, and their sum: one is the class itself.

    Not below `floors` is whatever may be one of these, for potentials up to `largest` in float32, `single`.
    """
    for lane in range(LANES):
        tops[lane], n_near[lane], total[lane] = np.float32(-np.inf), np.int32(0), np.int32(0)
    for k in range(single.size):
        for lane in range(LANES):
            tops[lane] = larger(tops[lane], blocks[block, k, lane] + single[k])
    for lane in range(LANES):
        unsure = np.float32(2 * FLOAT32_EPS) * (np.float32(math.fabs(tops[lane])) + slack + largest)
        floors[lane] = tops[lane] - slack - np.float32(2) * (known[block, lane] + unsure)
    for k in range(single.size):
        for lane in range(LANES):
            is_near = np.int32(blocks[block, k, lane] + single[k] >= floors[lane])
            n_near[lane] += is_near
            total[lane] += is_near * np.int32(k)


@part()
def following(blocks, block, lane, single, floors, k, n_left, left):
    """The next class of a row that is near, from k on, of so many that are left, whose sum is `left`."""
    if n_left == 1:
        return left
    while blocks[block, k, lane] + single[k] < floors[lane]:
        k += np.int32(1)
    return k
