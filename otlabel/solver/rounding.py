"""Exact labels: move surplus from overfull to underfull classes, with a proof at the end.

Labels that are the argmax of s + g are optimal for their own class sizes. Moving one member i of class j to class k
costs r = (s_ij + g_j) - (s_ik + g_k) >= 0. A shortest path from an overfull to an underfull class, and potentials
lowered by the distances, keep every label an argmax: so the end is the optimum of the linear program, and g proves it.

Only rows with a second class within `slack` of their label can move at all while potentials fall by less than
`slack`. Those few candidates are read in one pass and repaired in memory; if they do not suffice, potentials have
fallen by `slack` and the next pass reads the candidates that count now.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from otlabel import sweep
from otlabel.errors import InfeasibleError
from otlabel.solver.board import Board
from otlabel.solver.free_places import FreePlaces, free_places
from otlabel.solver.lifting import lifted, starved_classes
from otlabel.solver.monitor import Monitor
from otlabel.solver.movable import (
    Movable,
    Placement,
    below_best,
    board_of,
    movable_rows,
    placed,
    row_tops,
    totals,
    units_of,
)
from otlabel.solver.precision import JUMP, TIE, largest_usual, normalised, rounding_of
from otlabel.solver.problem import Problem
from otlabel.solver.repair import Done, repair, spread_ties
from otlabel.solver.slack import Slack

FINER = 1e-6  # times what counts as nothing for most rows: in passes for those that it is much for
ROUNDER = 64.0  # times what counts as nothing: the grid of potentials that are to be round
REFINED_PASSES = 4  # of those that mend what potentials lost of small rows' digits while they fell by much


@dataclass(frozen=True, eq=False)
class Rounded:
    """Exact labels with the potentials that prove them."""

    placement: Placement
    potentials: np.ndarray  # (K,) -inf for classes that are to stay empty
    n_paths: int
    slack: float = math.inf  # that was needed, if it ended before sizes were right
    is_done: bool = True


def round_exact(
    problem: Problem,
    potentials: np.ndarray,
    seed: int,
    monitor: Monitor,
    room: Callable[[np.ndarray, Slack], float] | None = None,
    least_slack: float = 0.0,
) -> Rounded:
    """The best assignment whose class sizes obey problem.rule, from potentials near the optimum.

    Any start will do; the nearer the argmax comes to the sizes, the less is left to move. It ends early where more
    slack is needed than there is `room` for, at its potentials. Raises InfeasibleError where forbidden pairs leave no
    assignment.
    """
    n_classes, rule, rng = problem.n_classes, problem.rule, np.random.default_rng(seed)
    if rule.most is not None:
        rule = rule.with_units(problem.n_units)
    reach = n_classes * problem.extent  # larger ones, from an epsilon far above the scores, would hide these in sums
    g = np.clip(np.where(np.isfinite(potentials), potentials, 0.0), -reach, reach)
    g = normalised(np.where(problem.bounds[1] > 0, g, -np.inf), np.zeros(n_classes), rule)
    if rule is not problem.rule:
        g -= _level(problem, g)
    tie, coarsest = 0.0, TIE * (problem.magnitude + float(np.abs(g[np.isfinite(g)]).max()))
    n_here = problem.rows.shape[0]
    weights = np.broadcast_to(np.int64(1), n_here) if problem.weights is None else problem.weights.astype(np.int64)
    placement = unlabelled = Placement.of_nothing(problem.rows.of_labels)
    n_paths, n_refined, is_first, may_lift = 0, 0, True, not problem.is_listed
    slack = Slack(problem, g, rng, least_slack)
    while True:
        movable = movable_rows(problem, g, placement.labels, weights, slack.now, tie)
        monitor.record("round", problem.n_rows, listed=problem.is_listed)
        units = units_of(movable, placement, n_classes)
        counts = movable.fixed + np.bincount(movable.found.classes, units, n_classes).astype(np.int64)
        starved = starved_classes(problem, counts) if may_lift else np.empty(0, np.int64)
        may_lift = False
        if len(starved):
            g = normalised(lifted(problem, g, starved, rng), np.zeros(n_classes), rule)
            placement = unlabelled
            slack.begin(g)
            continue
        below, tie = below_best(movable, units, g)
        free = free_places(problem, g, counts, slack.now, tie)
        board = board_of(movable, below, units, free, g, counts)
        if is_first:
            spread_ties(board, rng.permutation(len(board.start) - 1), tie)
            is_first = False
        done = _repaired(board, slack.now, tie * FINER if n_refined else tie)
        n_paths += done.n_paths
        monitor.record("repair", 0)
        is_done = np.array_equal(board.counts, board.targets)
        if not is_done and slack.now == np.inf:
            raise _infeasible(problem, board, free, len(units))
        units = board.units[: len(units)]
        g = normalised(g, (board.potentials[-1] if free.any_room else 0.0) - board.potentials[:-1], rule)
        placement = placed(movable, units, placement.labels, g, problem.rows)
        if not is_done:
            surplus = int(np.maximum(board.counts - board.targets, 0).sum())
            slack.widen(len(units), surplus, done, coarsest)  # scores may be far smaller than the prices of places
            if room is not None and slack.now > room(g, slack):
                return Rounded(placement, g, n_paths, slack.now, is_done=False)
            continue
        g = np.where(np.abs(g) <= tie, 0.0, g)  # less is left of rounding
        if problem.rule.shift_free and problem.rows.labels_per_row == 1:
            g = _settled(problem, movable, units, g, slack.now, placement.labels, monitor)
        if not _falls_short(movable, units, g):
            return Rounded(placement, g, n_paths)
        if n_refined == REFINED_PASSES:
            return Rounded(placement, _rounder(movable, units, g, tie), n_paths)
        n_refined += 1
        slack.begin_again()


def _repaired(board: Board, slack: float, tie: float) -> Done:
    """Compiled code hears no interrupt, so it works on a thread of its own and this one waits for either."""
    stop = np.zeros(1, np.bool_)
    with ThreadPoolExecutor(1) as worker:
        try:
            return worker.submit(repair, board, slack, tie, stop).result()
        except BaseException:
            stop[0] = True  # the thread is then waited for, but only to the end of a path
            raise


def _falls_short(movable: Movable, units: np.ndarray, potentials: np.ndarray) -> bool:
    """Whether the class of some row is below its best one by more than the rounding of its own numbers."""
    found = movable.found
    own_potentials = potentials[found.classes]
    u = found.scores + own_potentials
    if not len(u):
        return False
    taken = np.flatnonzero(units)
    best = row_tops(found, np.where(units > 0, -np.inf, u) if len(found.taken) else u)
    best = best[movable.row_of[taken]]
    return bool((best - u[taken] > rounding_of(best, u[taken], own_potentials[taken], potentials)).any())


def _rounder(movable: Movable, units: np.ndarray, potentials: np.ndarray, tie: float) -> np.ndarray:
    """The potentials as round numbers where these prove the labels: of scores that are round, what is tied then is."""
    with np.errstate(divide="ignore"):
        grid = 2.0 ** np.ceil(np.log2(ROUNDER * tie))
    g = np.rint(potentials / grid) * grid if grid > 0 else potentials
    return potentials if _falls_short(movable, units, g) else g


def _level(problem: Problem, potentials: np.ndarray) -> float:
    """The constant to take off: so many classes are then below zero, and take their most, as take one unit more.

    Of all that do, the nearest to where most are, that these lose no digits by another one that is far away.
    """
    fewest, most = problem.bounds
    rising = np.concatenate([[-np.inf], np.sort(potentials[fewest < most]), [np.inf]])
    n_below = problem.n_units - int(fewest.sum())
    middle = np.median(potentials[np.isfinite(potentials)])
    return float(np.clip(middle, rising[n_below], rising[n_below + 1]))


def _settled(
    problem: Problem,
    movable: Movable,
    units: np.ndarray,
    potentials: np.ndarray,
    slack: float,
    labels: np.ndarray,
    monitor: Monitor,
) -> np.ndarray:
    """Potentials of the same labels, those that are unusually large in the middle of where they may be.

    A repair ends where one more step would change a label. There the rounding of a large potential is what rows of
    usual size fall short by; between the borders it is nothing. Further than a repair looks, what is no entry may come
    in: so they are taken only where they prove as much.
    """
    found, row_of, g = movable.found, movable.row_of, potentials.copy()
    far = np.flatnonzero(np.isfinite(g) & (np.abs(g) > JUMP * largest_usual(g)))
    if not len(far) or not len(row_of):
        return g
    elsewhere = np.bincount(row_of, units, len(found.sizes))[row_of] > units
    u = totals(found, g)[0]
    tops = row_tops(found, u)[row_of]
    others = row_tops(found, np.where(u == tops, -np.inf, u))[row_of]
    tied = np.bincount(row_of, u == tops, len(found.sizes))[row_of] > 1
    ahead = u - np.where((u == tops) & ~tied, others, tops)
    order = np.argsort(found.classes, kind="stable")
    starts = np.searchsorted(found.classes[order], np.arange(len(g) + 1))
    for k in far:
        own = order[starts[k] : starts[k + 1]]
        down = min(ahead[own][units[own] > 0].min(initial=np.inf), slack)
        up = min(-ahead[own][elsewhere[own]].max(initial=-np.inf), slack)
        if np.isfinite([up, down]).all():
            g[k] += (up - down) / 2
    g = np.where(np.sign(g) == np.sign(potentials), g, potentials)  # where sizes are free, signs say which
    if (g == potentials).all():
        return g
    before, after = (_shortfall(problem, labels, tried, monitor) for tried in (potentials, g))
    return g if after <= before else potentials


def _shortfall(problem: Problem, labels: np.ndarray, potentials: np.ndarray, monitor: Monitor) -> float:
    """By how much the labels are below the best ones at some potentials, in total."""
    _, best, own = sweep.label(problem.rows, potentials, labels)
    monitor.record("round", problem.n_rows, listed=problem.is_listed)
    return float(problem.rows.sum("borders", (best - own)[own > -np.inf].sum())[0])


def _infeasible(problem: Problem, board: Board, free: FreePlaces, n_entries: int) -> InfeasibleError:
    """Name the classes that some samples cannot leave: all that an overfull class can pass a member on to."""
    lo, hi = problem.bounds
    filled = np.bincount(free.classes, board.units[n_entries::2], problem.n_classes).astype(np.int64)
    counts = board.counts[:-1] - filled
    inside = board.counts > board.targets
    while True:
        movable = np.zeros(len(board.start) - 1, bool)
        movable[board.row_of[(board.units > 0) & inside[board.classes]]] = True
        wider = inside.copy()
        wider[board.classes[movable[board.row_of] & (board.units < board.caps[board.row_of])]] = True
        if np.array_equal(wider, inside):
            break
        inside = wider
    shut = np.flatnonzero(~inside[:-1]) if inside[-1] else np.flatnonzero(inside[:-1])
    named = [str(k) if k < len(problem.for_new) else "staying unlabelled (abstain)" for k in shut[:10]]
    shown = ", ".join(named) + (", ..." if len(shut) > 10 else "")

    def amount(units: int) -> str:
        return f"{units / problem.n_units:.6g}" if problem.weighted else f"{units}"

    units = amount(counts[shut].sum())
    kind = "samples" if problem.rows.labels_per_row == 1 else "labels of samples"
    what = f"samples of {units} of the mass" if problem.weighted else f"{units} {kind}"
    if inside[-1]:  # what classes may leave free reaches all of these: others lack samples
        finding, remedy = f"only {what} may go to the", "less"
        wanted = amount(lo[shut].sum())
    else:
        finding, remedy = f"{what} may only go to the", "more"
        wanted = amount(hi[shut].sum())
    return InfeasibleError(
        f"{finding} {len(shut)} classes {shown}, which are to take {wanted}; allow more pairs (scores of -inf forbid "
        f"them) or give these classes {remedy} mass"
    )
