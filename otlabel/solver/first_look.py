"""The one reading of all scores: whether they are usable, how large they are, and lists of each row's best classes.

A sample of the rows is solved before; it says which classes may matter. Given potentials say so themselves. Where lists
are of no use, or the sample shows scores of another kind (too coarse, far from zero, mostly equal rows), nothing is
listed, and rows are only looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.solver.aiming import aim
from otlabel.solver.asking import Asked
from otlabel.solver.equal_rows import mostly_distinct
from otlabel.solver.monitor import Monitor
from otlabel.solver.posing import allowing, is_far, measured, too_coarse
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.samples import draw_sampled, draw_stretches, restricted, sample_sizes
from otlabel.solver.shortlist import Listed, Shortlist, list_rows, may_be_listed, probe_of
from otlabel.sources import cached, draw_rows
from otlabel.sources.listed import ListedSource


@dataclass(frozen=True, eq=False)
class FirstLook:
    """The rows to pose a problem on, and what is known of them."""

    rows: RowSet
    sampled: np.ndarray  # (R,) sorted rows of all, from which samples are taken
    start: np.ndarray | None = None  # (K,) potentials that a sample leads to
    listed: Listed | None = None

    @property
    def inspection(self) -> sweep.Inspection | None:
        """Of all rows, if they were read."""
        return None if self.listed is None else self.listed.inspection

    def shortlist(self, problem: Problem) -> Shortlist | None:
        """The lists of a problem's rows, if it is still the rows that were read."""
        return None if self.listed is None or problem.rows is not self.rows else Shortlist.of(self.listed, problem)


def first_look(
    rows: RowSet, asked: Asked, solver: Solver, init: np.ndarray | None, memory_limit: int | None, monitor: Monitor
) -> FirstLook:
    """One reading with lists where it is worth it, else none yet."""
    if isinstance(rows.source, ListedSource):
        rows = rows.over(rows.opened.over(rows.source.adding(asked.n_units)))
    start, most = None, None if asked.sizes is None or asked.abstain else asked.sizes[1]
    sizes = sample_sizes(rows.n_rows, rows.shape[1])
    if most is not None and sizes and may_be_listed(rows, asked.rule, most, solver, asked.row_rho):
        drawn = _drawn(rows, sizes[0], solver.seed)
        sample = None if drawn is None else _seen(rows, asked, solver, drawn[0])
        if drawn is not None and sample is not None:
            sampled, stretch = drawn
            aimed = aim(sample, stretch, solver, init, monitor)
            # The rest of the sample is not needed in memory any more.
            sample = replace(sample, rows=probe_of(sample.rows, sample.sampled))
            listed = list_rows(rows, aimed.origin, aimed.reach, sample, inspecting=True)
            if listed is not None:
                monitor.record("list", rows.n_rows)
                return FirstLook(rows, sampled, aimed.start, listed)
            start = aimed.start
    (less,) = rows.max("room", -math.inf if memory_limit is None else -solver.room)
    sampled = draw_sampled(rows.n_rows, rows.shape[1], solver.seed, rows.columns, -less)
    return FirstLook(rows.over(cached(rows.opened, memory_limit, rows.local(sampled))), sampled, start)


def _seen(rows: RowSet, asked: Asked, solver: Solver, chosen: np.ndarray) -> Problem | None:
    """The problem on some of the rows; None where these show scores that are to be changed or merged first."""
    unseen = Problem(rows, asked.rule, asked.n_units, 0.0, 0.0, 0.0, chosen, asked.weights, room=solver.room)
    some = restricted(unseen, chosen)
    inspection = sweep.inspect(some.rows)
    if inspection.n_bad or not mostly_distinct(inspection.hashes, some.rows):
        return None
    size, top, _ = measured(some.rows, inspection)
    if is_far(size) or too_coarse(rows, inspection, solver.epsilon) or not size.extent:
        return None
    if inspection.n_forbidden and not allowing(some.rows)[0].all():
        return None
    return replace(some, spread=size.spread, extent=size.extent, magnitude=size.magnitude, top=top)


def _drawn(rows: RowSet, size: int, seed: int) -> tuple[np.ndarray, int] | None:
    """About so many rows (sorted), and how many of them are neighbours; None where these are most of all.

    Rows that are read together with many others are taken whole stretches at a time.
    """
    rng = np.random.default_rng(seed)
    grain, from_files = rows.max("grain", float(rows.source.grain), float(rows.source.reads_files))
    if grain == 1:
        return draw_rows(rows.n_rows, size, rng), 1
    stretch = rows.stretch(int(grain) if from_files else 1)
    drawn = draw_stretches(rows.n_rows, size, stretch, rng)
    return None if drawn is None else (drawn, stretch)
