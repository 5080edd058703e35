"""Classes that get next to none of what they are to have, brought in before anything moves."""

from __future__ import annotations

import numpy as np

from otlabel import sweep
from otlabel.solver.problem import Problem
from otlabel.solver.samples import few_sampled

STARVED = 0.1  # share of the fewest units of a class under which it is brought in
LEAST_STARVED = 8  # samples that it is to have: of fewer, some classes have none by chance
COLUMNS_AT_ONCE = 64  # of such classes: of all rows of a sample


def starved_classes(problem: Problem, counts: np.ndarray) -> np.ndarray:
    """Classes that get next to none of the samples they are to have."""
    fewest = problem.bounds[0]
    return np.flatnonzero((counts < STARVED * fewest) & (fewest >= LEAST_STARVED * problem.n_units / problem.n_rows))


def lifted(problem: Problem, potentials: np.ndarray, starved: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Potentials that are raised, class by class, to where a sample says that a class gets about what it is to have.

    The smooth solve and the repair come there in steps of epsilon and of slack: too many for a class far from all rows.
    """
    g = potentials.copy()
    rows = few_sampled(problem, rng)
    sample = problem.rows.taken(rows)
    units = np.ones(sample.n_rows) if problem.weights is None else problem.weights[problem.rows.local(rows)]
    _, tops, _ = sweep.label(sample, potentials)
    tops, units = problem.rows.concat("lift", tops.reshape(len(tops), problem.rows.labels_per_row), units)
    wanted = problem.bounds[0] * (units.sum() * tops.shape[1] / problem.n_units)
    for some in np.array_split(starved, -(-len(starved) // COLUMNS_AT_ONCE)):
        here = [block[:, some] for _, block in sample.fine.blocks()]
        (columns,) = problem.rows.concat("lift", np.concatenate(here or [np.empty((0, len(some)))]).astype(np.float64))
        for k, column in zip(some, columns.T, strict=True):
            best = tops.min(1)  # the last one that a row takes
            order = np.argsort(best - column)
            last = min(int(np.searchsorted(np.cumsum(units[order]), wanted[k])), len(order) - 1)
            borders = (best - column)[order[last : last + 2]]  # of the last that is to come in, and of the next
            borders = borders[borders < np.inf]
            if len(borders):
                g[k] = max(g[k], borders.mean())
                tops[np.arange(len(tops)), tops.argmin(1)] = np.maximum(best, column + g[k])
    return g
