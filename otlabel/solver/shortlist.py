"""Of each row only the classes near its best: read once, then solved, rounded and proven without another reading.

The best class of a row under the final potentials g is nearly always one of a few: of those that may be the best where
each potential moves from what a sample of the rows gives, g0, by a reach r of its own. Class k is left out where

    s_k + (g0 + r)_k < max_j s_j + (g0 - r)_j,    and is nobody's best under g while    max_k |g - g0 - c|_k <= r_k

for some shift c of all potentials: then s_k + g_k < max_j s_j + g_j. So what the lists say of labels and of the bound
is what all scores would say. Left-out classes carry little of the entropic plan: see `Shortlist.left_out`. Reaches are
of different lengths because potentials of classes that hardly any rows may leave or come to move much farther.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from otlabel import sweep
from otlabel.marginals import Rule
from otlabel.ranks.rowset import RowSet
from otlabel.solver.monitor import Monitor
from otlabel.solver.problem import Problem, Solver
from otlabel.sources import ITEM_BYTES, DeviceSource, LinearScores, Opened, draw_rows
from otlabel.sources.base import n_bytes
from otlabel.sources.free import free_memory
from otlabel.sources.listed import ListedSource, quantum_of

FEWEST_SCORES, FEWEST_CLASSES = 1 << 22, 32  # fewer are read again as quickly
PROBE_ROWS = 1024  # rows that tell how long lists will be
FEW_LISTED = 6.0  # classes a row in the mean: fewer cost no less; of packed lists, the most that are worth making anew
MOST_LISTED = 0.25  # share of the classes that lists may hold: where plans are flat, all scores are as good
MEMORY_SHARE = 0.25  # of what is free that they may take, ...
DATA_SHARE = 2.0  # ... and of what they are made of, or else so much:
LEAST_ROOM, LEAST_STATED_ROOM = 1 << 30, 1 << 28  # bytes; where a smaller limit is stated
JOINED = 2  # times the bytes of scores: what takes most while lists are put together
MARGIN, MARGIN_OF_PLAN = 1.6, 0.5  # times the estimate of how far potentials will move: for labels, and where ...
LEFT_OUT = 0.25  # ... the plan's error by what lists leave out is to stay below this share of the tolerance
NEAR = 4.0  # times epsilon: how far potentials are taken to be that are about right on all rows
USUAL = 1.0  # times the median of how far potentials are apart: so far others most likely are
MUCH_SLACK = 3  # times the usual width of lists: more slack finds too few of its candidates there
LEAST_SHARE = 1e-300  # of which there is a logarithm
ROUNDING = 4.0  # roundings of the numbers added, by which a class may have been judged wrongly


@dataclass(frozen=True, eq=False)
class Aim:
    """What a sample of the rows says of the potentials of all."""

    start: np.ndarray  # (K,) g to go on from
    origin: np.ndarray  # (K,) the same with the logarithms of what classes are asked for, as scores are raised by them
    reach: np.ndarray  # (K,) by which each may move: of lists that will most likely do


@dataclass(frozen=True, eq=False)
class Listed:
    """Lists of all rows, and how sure it is what they left out."""

    rows: RowSet
    origin: np.ndarray  # (K,) g0, as it was added
    reach: np.ndarray  # (K,) r
    rounding: float  # of one sum that decided, in parts of the largest number in it
    of_scores: float  # by which scores that decided may differ from those that are listed
    probe: RowSet  # rows of this process that tell how long lists will be
    inspection: sweep.Inspection | None = None


@dataclass(frozen=True, eq=False)
class Shortlist:
    """A problem on lists, and which potentials these speak for."""

    problem: Problem
    origin: np.ndarray  # (K,) g0
    reach: np.ndarray  # (K,) r, less what rounding may have taken
    probe: RowSet

    @classmethod
    def of(cls, listed: Listed, problem: Problem) -> Shortlist:
        """Lists of a problem's rows."""
        rounding = listed.rounding * _largest(problem.magnitude, problem.extent, listed.origin + listed.reach)
        (of_scores,) = problem.rows.max("lists", listed.of_scores)
        reach = listed.reach - (rounding / 2 + of_scores)
        return cls(replace(problem, rows=listed.rows), listed.origin, reach, listed.probe)

    def room(self, potentials: np.ndarray) -> float:
        """The most slack that rounding may ask for here; none where lists speak for these potentials no more.

        As a rule the way is not all of the slack: that there may be better candidates beyond the lists is no reason to
        end, as long as few are missed.
        """
        return self.usual_slack if self.covers(potentials) else 0.0

    @property
    def usual_slack(self) -> float:
        """The most that is worth it where most classes have the usual reach."""
        return MUCH_SLACK * 2 * float(np.median(self.reach))

    def covers(self, potentials: np.ndarray) -> bool:
        """Whether no class that was left out can be the best of any row."""
        is_open = np.isfinite(potentials)
        if not np.array_equal(np.isfinite(self.origin), is_open):
            return False
        moved, reach = potentials[is_open] - self.origin[is_open], self.reach[is_open]
        return bool((moved - reach).max() <= (moved + reach).min())

    def left_out(self, potentials: np.ndarray, epsilon: float) -> float:
        """The most that the classes left out can have of the plan; twice that is its error.

        Of a row where class t kept the most, class k has at most exp((m_k - r_k - m_t - r_t) / epsilon), where m is how
        far potentials have moved. Where rows take several classes each, each row says by itself: see `sweep.left_out`.
        """
        is_open = np.isfinite(potentials)
        if not np.array_equal(np.isfinite(self.origin), is_open):
            return math.inf
        if self.problem.rows.labels_per_row > 1:
            width = 2 * float(self.reach.min())
            return sweep.left_out(self.problem.rows, potentials, self.origin, epsilon, width)
        moved, reach = potentials[is_open] - self.origin[is_open], self.reach[is_open]
        log_shares = np.log(np.maximum(self.best_shares[is_open], LEAST_SHARE))
        log_total = logsumexp((moved - reach) / epsilon) + logsumexp(log_shares - (moved + reach) / epsilon)
        return math.exp(min(log_total, 0.0))

    @functools.cached_property
    def best_shares(self) -> np.ndarray:
        """(K,) of the mass, in rows of which each class keeps the most."""
        problem = self.problem
        low = self.origin - self.reach
        return sweep.sweep(problem.rows, low, 1.0, problem.weights, with_labels=False).counts / problem.n_units


def moves_of(potentials: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(K,) how far potentials are from others, up to what all have moved; no class that usual ones say is nearer."""
    is_open = np.isfinite(potentials) & np.isfinite(origin)
    moved = potentials[is_open] - origin[is_open]
    moved = np.abs(moved - np.median(moved))
    moves = np.full(len(potentials), min(USUAL * float(np.median(moved)), moved.max()))
    moves[is_open] = np.maximum(moves[is_open], moved)
    return moves


def may_be_listed(rows: RowSet, rule: Rule, most: np.ndarray, solver: Solver, row_rho: float) -> bool:
    """Whether lists could spare readings: exact labels, and many scores that are costly to read again.

    Those on a device are not, but where they come there block by block, or rows take several classes each, whose plans
    are those of lists. Of each class, so many units at most.
    """
    if solver.rounding != "exact" or solver.method != "auto" or not math.isinf(row_rho):
        return False
    n_classes = rows.shape[1]
    shut = rule.wanted & (most == 0)  # of the plan, but of no label: lists might hold no others
    large = n_classes >= FEWEST_CLASSES and rows.n_rows * n_classes >= FEWEST_SCORES
    quick = rows.source.device is not None and rows.labels_per_row == 1 and not isinstance(rows.source, DeviceSource)
    return large and not shut.any() and not quick and not isinstance(rows.source, ListedSource)


def room_for(opened: Opened, memory_limit: int | None) -> float:
    """Bytes that lists of these rows may take: the limit, or by default as much as a few copies of the data."""
    if memory_limit is not None:
        return max(float(memory_limit), LEAST_STATED_ROOM)
    stored = opened.features.opened.source if isinstance(opened, LinearScores) else opened.source
    return max(DATA_SHARE * n_bytes(stored), LEAST_ROOM)


def reach_for(solver: Solver, moves: np.ndarray) -> np.ndarray:
    """A reach for potentials that may move so far (K,), at which lists also hold the plan."""
    of_plan = solver.epsilon * math.log(2 * len(moves) / (LEFT_OUT * solver.tol)) / 2
    reach: np.ndarray = np.maximum(MARGIN * moves, MARGIN_OF_PLAN * moves + of_plan)
    return reach


def shorten(
    problem: Problem,
    potentials: np.ndarray,
    reach: np.ndarray,
    monitor: Monitor,
    probe: RowSet | None = None,
    *,
    packed: bool = False,
) -> Shortlist | None:
    """Lists of a problem's rows in one reading, or None where they would be long."""
    if probe is None:
        probe = probe_of(problem.rows, problem.sampled)
    listed = list_rows(problem.rows, potentials, reach, replace(problem, rows=probe), packed=packed)
    if listed is None:
        return None
    monitor.record("list", problem.n_rows)
    return Shortlist.of(listed, problem)


def probe_of(rows: RowSet, sampled: np.ndarray) -> RowSet:
    """A few of the sampled rows, of which each process has its own."""
    return rows.taken(sampled[draw_rows(len(sampled), PROBE_ROWS, np.random.default_rng(0))])


def list_rows(
    rows: RowSet,
    potentials: np.ndarray,
    reach: np.ndarray,
    like: Problem,
    *,
    inspecting: bool = False,
    packed: bool = False,
) -> Listed | None:
    """Lists of all rows, or None where those of a few, `like` all, are long, or there is no room for all of them.

    Packed ones need none: what there is no room for is made anew in every pass.
    """
    probe = like.rows
    fine = rows.opened.fine
    kind: type = np.float32
    if rows.labels_per_row > 1:
        reach = np.full_like(reach, reach.max())
    size = _largest(like.magnitude, like.extent, potentials + reach)
    if fine.dtype == "float64" and rows.opened.few is None:
        kind = np.float64
    if ROUNDING * float(np.finfo(kind).eps) * size > float(reach.min()) / 8:
        kind = np.float64
    origin: np.ndarray = potentials.astype(kind)

    def length(reach: np.ndarray) -> float:
        """Of a list in the mean."""
        found = sweep.listed(probe, origin, reach.astype(kind), 1.0).source.n_listed
        n_listed, n_probed = rows.sum("lists", np.array([found, probe.shape[0]]))[0]
        return float(n_listed / n_probed)

    def is_large(n_listed: float) -> bool:
        """Whether some rank lacks room for so many entries a row."""
        asked = rows.shape[0] * (8 + n_listed * (4 + JOINED * ITEM_BYTES[fine.dtype]))
        return bool(rows.max("lists", float(asked > min(like.room, MEMORY_SHARE * free_memory())))[0])

    n_listed, most = length(reach), FEW_LISTED if packed else MOST_LISTED * rows.shape[1]
    if n_listed > most or (not packed and is_large(n_listed)):
        return None
    while not packed and n_listed < FEW_LISTED and 2 * float(reach.max()) < size:
        wider = length(2 * reach)
        if wider > most or is_large(wider):
            break
        reach, n_listed = 2 * reach, wider
    as_added: np.ndarray = reach.astype(kind)
    if packed:
        listing = sweep.listed_within(rows, origin, as_added, quantum_of(like.n_units), like.room)
    else:
        listing = sweep.listed(rows, origin, as_added, quantum_of(like.n_units), inspecting=inspecting)
    listed = rows.over(Opened.of(listing.source))
    if isinstance(listing.source, ListedSource):
        listed.columns = listing.source.columns
    rounding = ROUNDING * float(np.finfo(kind).eps)
    origin, as_added = origin.astype(np.float64), as_added.astype(np.float64)
    return Listed(listed, origin, as_added, rounding, listing.rounding, probe, listing.inspection)


def _largest(magnitude: float, extent: float, potentials: np.ndarray) -> float:
    """The largest number that a sum of a score and a potential is made of."""
    return magnitude + extent + float(np.abs(potentials[np.isfinite(potentials)]).max(initial=0.0))
