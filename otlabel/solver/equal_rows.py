"""Equal rows, of which there may be many: solved as one row with their weight, then told apart again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.solver.monitor import Monitor
from otlabel.solver.movable import Placement
from otlabel.solver.problem import Problem
from otlabel.solver.samples import SAMPLE_ENTRIES, draw_sampled

DISTINCT_SHARE = 0.5  # solve equal rows as one where at most this share of the rows is distinct
HASHES = 1 << 17  # of rows that are looked at to tell: sorting them is to cost little


def merge_equal_rows(
    problem: Problem, hashes: np.ndarray, monitor: Monitor, seed: int
) -> tuple[Problem, np.ndarray | None]:
    """Where most rows repeat others, the problem on distinct rows with weights, and for each row which one it is.

    Equal rows are tied in every class, so one by one they would make as many moves of cost zero. The distinct ones
    are to be in memory: more of them than that allows are left where they are, one by one.
    """
    several = problem.rows.labels_per_row > 1
    if several or problem.weights is not None or mostly_distinct(hashes, problem.rows):
        return problem, None
    rows = problem.rows.fine  # what float32 has made alike may differ
    hashes = sweep.inspect(rows, every_score=True).hashes
    monitor.record("inspect", rows.n_rows)
    if mostly_distinct(hashes, rows):
        return problem, None
    here, first, members, times = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    seen, first, times = rows.concat("hashes", here, first + rows.first, times)
    seen, at, same = np.unique(seen, return_index=True, return_inverse=True)  # the first of equal ones
    first, times = first[at], np.bincount(same, times, len(seen))
    (from_files,) = rows.max("hashes", rows.source.grain > 1)
    if from_files and len(first) * problem.n_classes > SAMPLE_ENTRIES:
        return problem, None
    order = np.argsort(first)
    distinct = rows.subset(first[order])
    weights = times[order][distinct.first : distinct.stop]
    sampled = draw_sampled(len(first), problem.n_classes, seed, rows.columns)
    merged = replace(problem, rows=distinct, weights=weights, sampled=sampled)
    return merged, np.argsort(order)[np.searchsorted(seen, here)[members]]


def mostly_distinct(hashes: np.ndarray, rows: RowSet) -> bool:
    """Whether most rows of all ranks differ, judged where there are many by those with small hashes."""
    share = min(1.0, HASHES / rows.n_rows)
    if share < 1:
        hashes = hashes[hashes < np.uint64(share * 2**64)]
    (some,) = rows.concat("hashes", _distinct(hashes))
    return len(_distinct(some)) > DISTINCT_SHARE * share * rows.n_rows


def _distinct(hashes: np.ndarray) -> np.ndarray:
    """Each hash once, in order; by sorting, which is several times quicker here than np.unique's table."""
    hashes = np.sort(hashes)
    return hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]


def unmerged(placement: Placement, members: np.ndarray | None, rows: RowSet, rng: np.random.Generator) -> np.ndarray:
    """Labels of all rows here: equal rows in random order take the classes of the row they were merged into."""
    if members is None:
        return placement.labels
    labels = rows.concat("labels", placement.labels)[0][members]
    if len(placement.split_rows):
        split = np.flatnonzero(np.isin(members, placement.split_rows))
        all_split, positions = rows.concat("labels", members[split], rows.first + split)
        before = int(np.searchsorted(positions, rows.first))  # split rows of the ranks before
        order = rng.permutation(len(all_split))
        order = order[np.argsort(all_split[order], kind="stable")]
        classes = np.empty(len(order), labels.dtype)
        classes[order] = np.repeat(placement.split_classes, placement.split_units)
        labels[split] = classes[before : before + len(split)]
    return labels
