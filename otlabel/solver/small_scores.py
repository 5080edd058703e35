"""Scores that stay in the cache: of float32 for what looks at all of them, of float64 for single ones.

The latter are looked up, or made of features that are kept.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from otlabel.ranks.rowset import RowSet
from otlabel.solver.posing import FAR
from otlabel.solver.small_blocks import FLOAT32_EPS, LANES, deal_out, look
from otlabel.sources import ArraySource, LinearScores, Products, as_float
from otlabel.sweep.pool import blas_on_one_thread

SPREAD_ROWS = 1024  # that tell the spread of a row
MOST_NUMBERS = 1 << 23  # of features that are kept in float64 and float32
DEEP = 4  # roundings of a product beside those of its sum: of both numbers, of what is subtracted, of the sum's start
UNSURE, COARSE = 0.125, 0.25  # of epsilon, and of the class error that a plan may have: what products may be wrong by
LARGEST = 1e30  # products up to here are numbers of float32

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
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.sqrt(np.einsum("ij,ij->i", padded, padded))
        if not lengths.max() < LARGEST:
            return None
        blocks = np.ascontiguousarray(padded.reshape(LANES, n_blocks, -1).transpose(1, 2, 0), np.float32)
        ones, of_lanes = (
            np.ascontiguousarray(column.reshape(LANES, n_blocks).T, np.float32) for column in (padded[:, -1], lengths)
        )
        return cls(centre, padded[:n_rows], blocks, ones, of_lanes, middle(lengths[:n_rows]))


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
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number shows in `longest`
        longest = float(np.sqrt(np.square(factor).sum(1).max()))
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
