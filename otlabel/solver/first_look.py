"""The one reading of all scores: whether they are usable, how large they are, and lists of each row's best classes.

A sample of the rows is solved before; it says which classes may matter. Where lists are of no use, or the sample shows
scores of another kind (too coarse, far from zero, mostly equal rows), nothing is listed, and rows are looked at alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.solver.aiming import aim
from otlabel.solver.asking import Asked
from otlabel.solver.equal_rows import mostly_distinct
from otlabel.solver.monitor import Monitor
from otlabel.solver.posing import is_far, measured, too_coarse
from otlabel.solver.problem import Problem, Solver
from otlabel.solver.samples import draw_sampled, draw_stretches, restricted, sample_sizes
from otlabel.solver.shortlist import Listed, Shortlist, list_rows, may_be_listed, probe_of
from otlabel.sources import cached, draw_rows


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
    n_classes = rows.shape[1]
    start = None
    most = None if asked.sizes is None or asked.abstain else asked.sizes[1]
    if most is not None and may_be_listed(rows, asked.rule, most, solver, asked.row_rho):
        looked = _listed(rows, asked, solver, init, monitor)
        if looked is not None and looked.listed is not None:
            return looked
        start = None if looked is None else looked.start
    sampled = draw_sampled(rows.n_rows, n_classes, solver.seed)
    return FirstLook(rows.over(cached(rows.opened, memory_limit, rows.local(sampled))), sampled, start)


def _listed(rows: RowSet, asked: Asked, solver: Solver, init: np.ndarray | None, monitor: Monitor) -> FirstLook | None:
    """Lists by one reading, or None where a sample says that these rows are none for it."""
    drawn = _drawn(rows, solver.seed)
    if drawn is None:
        return None
    sampled, chosen, stretch = drawn
    unseen = Problem(rows, asked.rule, asked.n_units, 0.0, 0.0, 0.0, sampled, asked.weights)
    sample = restricted(unseen, chosen)
    inspection = sweep.inspect(sample.rows)
    if inspection.n_bad or not mostly_distinct(inspection.hashes, sample.rows):
        return None
    size, top, _ = measured(sample.rows, inspection)
    if is_far(size) or too_coarse(rows, inspection, solver.epsilon) or not size.extent:
        return None
    if inspection.n_forbidden and not _all_allowed(sample.rows):
        return None
    sample = replace(sample, spread=size.spread, extent=size.extent, magnitude=size.magnitude, top=top)
    half = restricted(sample, sample.sampled[sample.sampled // stretch % 2 == 0])
    aimed = aim(sample, half, solver, init, monitor)
    probe = probe_of(sample.rows, sample.sampled)
    listed = list_rows(rows, aimed.origin, aimed.width, sample, probe, inspecting=True)
    if listed is not None:
        monitor.record("list", rows.n_rows)
    return FirstLook(rows, sampled, aimed.start, listed)


def _drawn(rows: RowSet, seed: int) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Rows that samples are taken from, those of the first sample, and how many of them are neighbours; None: too few.

    Rows that are read together with many others are taken whole stretches at a time.
    """
    n_rows, n_classes = rows.n_rows, rows.shape[1]
    sizes = sample_sizes(n_rows, n_classes)
    if not sizes:
        return None
    rng = np.random.default_rng(seed)
    (grain,) = rows.max("grain", float(rows.source.grain))
    if grain == 1:
        sampled = draw_sampled(n_rows, n_classes, seed)
        return sampled, sampled[draw_rows(len(sampled), sizes[0], rng)], 1
    stretch = rows.stretch(int(grain))
    stretches = draw_stretches(n_rows, sizes[0], stretch, rng)
    return None if stretches is None else (stretches, stretches, stretch)


def _all_allowed(rows: RowSet) -> bool:
    """Whether each class may have some of the rows."""
    allowed = np.zeros(rows.shape[1], bool)
    for _, block in rows.blocks():
        allowed |= (block > -np.inf).any(0)
    (n_allowing,) = rows.sum("allowed", allowed.astype(np.int64))
    return bool(n_allowing.all())
