"""Loops over scores in blocks of float32, compiled; what float32 cannot tell apart is made in float64.

Rows are dealt out to blocks like cards, so that any few blocks are a sample that is spread over all rows, and lie
beside one another in a block: its loops run over LANES rows at once, however few the classes are.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from otlabel.compiling import njit
from otlabel.sweep.numerics import FAST, larger, smaller

LANES = 128  # rows of a block
EPS, FLOAT32_EPS = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)

whole = functools.partial(njit, nogil=True, error_model="numpy", fastmath=FAST, _nrt=False, no_cfunc_wrapper=True)
part = functools.partial(whole, no_cpython_wrapper=True)


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
