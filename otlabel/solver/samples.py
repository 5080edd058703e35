"""Samples of the rows: ever larger ones, on which a solve begins before it looks at all rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from otlabel.solver.problem import Problem
from otlabel.sources import draw_rows

COARSE_ROWS = 20  # rows a class in the first sample; its class masses are then off by about 1 / sqrt(20)
FEWEST_ROWS = 4096  # a smaller sample saves no time
GROWTH = 6  # how much larger each further sample is
LOOK_ROWS, LOOK_ROWS_A_CLASS = 4096, 4  # of a few rows for first looks
FEWEST_STRETCHES, MUCH_LESS = 8, 4  # of neighbouring rows in a sample, and how much less than all rows this is
SAMPLE_ENTRIES = 1 << 29  # scores of the largest sample: all of it is in memory, ...
ENTRY_BYTES = 4  # ... each of which takes about so much


def sample_sizes(n_rows: int, n_classes: int, columns: int | None = None, room: float = math.inf) -> list[int]:
    """Sizes of ever larger samples of the rows, of so many entries each, while they are well below all rows.

    All but the first have room in so many bytes.
    """
    size, most, much_less = max(FEWEST_ROWS, COARSE_ROWS * n_classes), SAMPLE_ENTRIES // (columns or n_classes), 2
    size, sizes = min(size, max(most, FEWEST_ROWS)), list[int]()
    most = int(min(most, room / ENTRY_BYTES / (columns or n_classes)))
    while much_less * size < n_rows and (not sizes or size <= most):
        sizes.append(size)
        size, much_less = GROWTH * size, GROWTH  # a further sample must save passes enough to pay for its copy
    return sizes


def draw_sampled(
    n_rows: int, n_classes: int, seed: int, columns: int | None = None, room: float = math.inf
) -> np.ndarray:
    """The rows from which all samples are taken."""
    sizes = sample_sizes(n_rows, n_classes, columns, room) or sample_sizes(sys.maxsize, n_classes, columns)[:1]
    return draw_rows(n_rows, sizes[-1], np.random.default_rng(seed))


def draw_stretches(n_rows: int, size: int, stretch: int, rng: np.random.Generator) -> np.ndarray | None:
    """Sorted rows, at least so many, in whole stretches; None where a few of these would be most of the rows."""
    n_stretches, n_drawn = -(-n_rows // stretch), max(FEWEST_STRETCHES, -(-size // stretch))
    if n_drawn * stretch * MUCH_LESS > n_rows:
        return None
    drawn = draw_rows(n_stretches, n_drawn, rng)
    rows: np.ndarray = (drawn[:, None] * stretch + np.arange(stretch)).ravel()
    return rows[rows < n_rows]


def samples_of(problem: Problem, rng: np.random.Generator) -> Iterator[Problem]:
    """Ever larger samples of the rows."""
    sizes = sample_sizes(problem.n_rows, problem.n_classes, problem.rows.columns)
    for size in [size for size in sizes if size <= len(problem.sampled)] or sizes[:1]:
        yield restricted(problem, problem.sampled[draw_rows(len(problem.sampled), size, rng)])


def restricted(problem: Problem, chosen: np.ndarray) -> Problem:
    """The same problem on some of the rows (sorted)."""
    rows, weights = problem.rows.subset(chosen), problem.weights
    if weights is not None:
        (taken,) = problem.rows.concat("sample", weights[problem.rows.local(chosen)])
        weights = taken[rows.first : rows.stop]
    return replace(problem, rows=rows, weights=weights, sampled=np.arange(len(chosen)))


def few_sampled(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """A few of the rows (sorted) that samples are taken from, for first looks."""
    n_takers = int(np.count_nonzero(problem.bounds[1]))
    size = min(len(problem.sampled), max(LOOK_ROWS, LOOK_ROWS_A_CLASS * n_takers))
    return problem.sampled[draw_rows(len(problem.sampled), size, rng)]
