"""Value and bound of labels of a problem, by one pass in float64, and prices for classes that take none of its rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from otlabel import sweep
from otlabel.marginals import Rule
from otlabel.solver.monitor import Monitor
from otlabel.solver.outcome import Certificate
from otlabel.solver.precision import rounding_of
from otlabel.solver.problem import ROWS_AT_ONCE, Problem
from otlabel.sources.listed import ListedSource
from otlabel.sweep.blocks import cut

PRICE_ROOM = 8 * float(np.finfo(np.float64).eps)  # relative: more than rounding leaves between a price and a tie
MOST_LOOKS = 64  # at rows, for one that does not list a class


def certified(
    problem: Problem,
    labels: np.ndarray | None,
    potentials: np.ndarray,
    monitor: Monitor,
    *,
    by_rule: bool,
    enough: Problem | None = None,
) -> tuple[np.ndarray, Certificate, np.ndarray, np.ndarray]:
    """Labels (the argmax where none are given), value and bound from one pass in float64, and units of each class.

    The bound holds for all labels that the problem's rule allows, or for all of the same class sizes. Last come the
    potentials, with those of classes that take no sample here but may take new ones. Lists may be `enough` to read.
    """
    within = enough or problem
    labels_of_rows, tops, own = sweep.label(within.rows, potentials, labels)
    n_classes, n_units, per_row = problem.n_classes, problem.n_units, problem.rows.labels_per_row
    monitor.record("certify", problem.n_rows, listed=within.is_listed)
    best = tops.ravel()
    rule, prices = _with_unlisted_classes(problem, potentials, best) if by_rule else (problem.rule, potentials)
    best = sweep.with_unlisted(within.rows, prices, best)
    totals, sizes, counts, known = problem.rows.sum(
        "certify", *_totals(problem, labels_of_rows.ravel(), best, own.ravel(), potentials)
    )
    fell_short, scored, rounded = totals.tolist()
    size_error, n_given = 0.0, len(problem.for_new)
    labelled = int(sizes[:n_given].sum())
    scored += problem.lowered * labelled
    if by_rule:
        of_classes = rule.shortfall(prices, sizes, n_units)
        fell_short += float(of_classes.sum())
        rounded += float(np.minimum(of_classes, known).sum())
        if n_given < n_classes:  # weighted samples may be too large to leave just so much unlabelled
            fell_short += problem.lowered * (n_units - int(problem.bounds[0][-1]) - labelled)
        lo, hi = problem.bounds
        soft = np.isfinite(problem.rule.rho)
        off = np.maximum(lo - sizes, 0), np.where(soft, 0, np.maximum(sizes - hi, 0))
        size_error = float(max(part.sum() for part in off)) / n_units
    gap, value, rounding = (per_row * total / n_units for total in (fell_short, scored, rounded))
    proof = Certificate(value, value + gap, counts, gap, rounding, size_error, per_row)
    last = tops.reshape(len(tops), per_row).min(1)
    return labels_of_rows, proof, sizes, priced(problem, potentials, last, sizes, monitor)


def _totals(
    problem: Problem, labels: np.ndarray, best: np.ndarray, own: np.ndarray, potentials: np.ndarray
) -> list[np.ndarray]:
    """Of the rows here: what they fall short by, score and may round, (3,); of classes units, rows and rounding."""
    parts = []
    for start, stop in cut(len(labels), ROWS_AT_ONCE) or [(0, 0)]:
        here = slice(start, stop)
        chosen, weights = labels[here].astype(np.intp), None if problem.weights is None else problem.weights[here]
        g = potentials[chosen]
        short, known = shortfall(best[here], own[here], g, potentials)
        of_rows = [short, own[here] - g, np.minimum(short, known), known]
        if weights is not None:
            of_rows = [each * weights for each in of_rows]
        counts = np.bincount(chosen, minlength=problem.n_classes)
        units = counts if weights is None else np.bincount(chosen, weights, problem.n_classes)
        sums = np.array([each.sum() for each in of_rows[:3]])
        parts.append((sums, units, counts, np.bincount(chosen, of_rows[3], problem.n_classes)))
    return [np.sum(part, axis=0) for part in zip(*parts, strict=True)]


def shortfall(
    best: np.ndarray, own: np.ndarray, own_potentials: np.ndarray, potentials: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By how much each row's label falls short of its best class, inf on a forbidden pair, and what may be rounding."""
    fits = own > -np.inf
    if fits.all():
        return best - own, rounding_of(best, own, own_potentials, potentials)
    short, known = np.full(len(own), np.inf), np.zeros(len(own))
    short[fits] = best[fits] - own[fits]
    known[fits] = rounding_of(best[fits], own[fits], own_potentials[fits], potentials)
    return short, known


def priced(
    problem: Problem, potentials: np.ndarray, best: np.ndarray, sizes: np.ndarray, monitor: Monitor
) -> np.ndarray:
    """Potentials with those of classes that take no sample here, but may take new ones, in place of -inf.

    They are the largest at which no sample here would enter, g_k = min_i (best_i - s_ik), where best_i is the largest
    score + potential of the row, or the last of several that it takes. A class that is forbidden to all samples tells
    nothing: it gets the least of others.
    """
    if problem.rule.most is not None:  # such as might have taken one are no other
        potentials = np.where(sizes == 0, -np.inf, potentials)
    classes = np.flatnonzero(problem.for_new & np.isneginf(potentials[: len(problem.for_new)]))
    finite = potentials[np.isfinite(potentials)]
    if not len(classes) or not len(finite):
        return potentials
    rows = problem.rows.fine
    room = np.full(len(classes), np.inf)
    if isinstance(rows.source, ListedSource):
        lists = rows.source.lists
        at = np.flatnonzero(np.isin(lists.classes, classes))
        of_rows = best[np.searchsorted(lists.starts, at, side="right") - 1]
        np.minimum.at(room, np.searchsorted(classes, lists.classes[at]), of_rows - lists.scores[at])
        if rows.source.least is not None:
            room = np.minimum(room, _unlisted_room(rows.source, best, classes))
    else:
        with rows.reading():
            for (start, stop), block in rows.blocks():
                room = np.minimum(room, (best[start:stop, None] - block[:, classes]).min(0))
    monitor.record("prices", problem.n_rows)
    room = problem.rows.min("prices", room)
    room = np.where(room < np.inf, room, finite.min())
    size = problem.stored_magnitude + np.abs(room) + float(np.abs(finite).max())
    below = PRICE_ROOM * size  # so that none ties either
    priced = potentials.copy()
    priced[classes] = room - below
    return priced


def _with_unlisted_classes(problem: Problem, potentials: np.ndarray, best: np.ndarray) -> tuple[Rule, np.ndarray]:
    """The rule and potentials of a bound among whose classes are those that no row lists, though rows might take them.

    At its price no row would; a class of hard bounds has none below zero, at which it would ask for rows.
    """
    rule, source = problem.rule, problem.rows.source
    if not isinstance(source, ListedSource) or source.least is None:
        return rule, potentials
    is_shut = np.isneginf(potentials) & (rule.hi == 0)
    if rule.most is None:
        is_shut &= ~rule.exact  # whose size is 0
    shut = np.flatnonzero(problem.for_new & is_shut[: len(problem.for_new)])
    room = problem.rows.min("unlisted", _unlisted_room(source, best, shut))
    shut, room = shut[room < np.inf], room[room < np.inf]
    prices, hi = potentials.copy(), rule.hi.copy()
    prices[shut] = np.where(np.isinf(rule.rho[shut]), np.maximum(room, 0.0), room)
    hi[shut] = 1.0
    return replace(rule, hi=hi), prices


def _unlisted_room(source: ListedSource, best: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The same of rows that do not list a class: the least of best - least among them, or less where many rows list it.

    A class is listed by few rows: a look or two finds one that does not.
    """
    starts, left = source.lists.starts, np.ones(len(classes), bool)
    gaps = np.where(source.lists.sizes < source.shape[1], best - source.least, np.inf)
    room = np.full(len(classes), np.inf)
    for row in np.argsort(gaps, kind="stable")[:MOST_LOOKS]:
        room[left] = gaps[row]
        left &= np.isin(classes, source.lists.classes[starts[row] : starts[row + 1]])
    if len(gaps) <= MOST_LOOKS:
        room[left] = np.inf  # every row lists it
    return room
