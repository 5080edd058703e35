"""Successive shortest paths over K classes, compiled: how units move from overfull to underfull classes.

A row (or several equal rows) holds units; an entry is a class that it may take. Moving units of a row from entry e to
entry f costs (scores[e] - scores[f]) + (g[class of e] - g[class of f]), which is never negative at the start and is
kept so: potentials fall by what the shortest path leaves over. The entries of a class that hold units are its members.
Where a row takes several classes, it has a unit for each, and an entry may hold one at most.
Costs are sums in float64, `tie` apart means equal. Searches begin in lists of members; where few classes have many,
and looking through these takes long, heaps of the moves between each two classes take over.

Paths of many units come first. Only entries with `least` units or more are members, and `least` falls to one; each
path then moves that many, and how many paths there are does not depend on how many units there are.

Source: Ahuja, Magnanti, Orlin, "Network Flows" (1993), sections 9.7 (successive shortest paths with potentials) and
10.2 (capacity scaling); Dinic, Soviet Math. Doklady 11 (1970) for the many paths of one search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit
from otlabel.solver.board import (
    AT,
    ENTERS,
    FIRST,
    FOUND,
    FRESH,
    LEAVES,
    N_FIELDS,
    NONE,
    OTHER,
    PART,
    PATH,
    SETTLED,
    UNCAPPED,
    UNLISTED,
    Board,
    Work,
    cost_of,
    enlist,
    has_room,
    move,
    part,
)
from otlabel.solver.search_lists import search
from otlabel.solver.search_pairs import empty_out, no_pairs, search_pairs

EPS = float(np.finfo(np.float64).eps)
SCALE = 8  # by which `least` falls
MOST_PAIRED = 1024  # classes whose pairs may have heaps
LOOKS_BEFORE_PAIRS = 4  # times all entries that searches in lists look at first: heaps take about as long to fill
PLACES_AN_ENTRY = 2.0  # of the heaps: as a rule a move for each entry, and as many again that came since
FULL = 0.75  # share of the places that moves may take when heaps are filled anew
LOOKS_A_PAIR = 0.05  # times all pairs that such a search has looked at: then heaps are worth it


class Done(NamedTuple):
    """What a repair took."""

    n_paths: int
    n_looked: int  # moves looked at by searches


def repair(
    board: Board,
    slack: float,
    tie: float,
    stop: np.ndarray,
    patience: float = 1.0,
    places: float = PLACES_AN_ENTRY,
) -> Done:
    """Move units along shortest paths until every class has its target, no path is short enough, or stop[0] is set.

    No potential falls by more than `slack`, so that a class further than that below a row's own, which is no entry,
    cannot have become the better one. `patience` is how much longer lists are kept to than seems best: 0 takes heaps
    after one search, infinity never; heaps have so many `places` an entry.
    """
    if np.array_equal(board.counts, board.targets):
        return Done(0, 0)
    n_classes, n_entries = board.counts.size, board.classes.size
    finite = np.isfinite(board.potentials)
    largest = float(np.abs(board.potentials[finite]).max(initial=0.0))
    step = _power_of_two(min(EPS * (largest + slack), tie / 4))  # sums of it are exact, so that no error grows
    board.potentials[finite] -= np.remainder(board.potentials[finite], step)
    work = Work(
        np.full(n_entries, UNLISTED),
        np.empty(n_entries),
        np.zeros((N_FIELDS, 2 * n_classes), np.int64),
        np.empty(2 * n_classes),
        np.empty(n_classes),
        np.zeros(n_classes),
    )
    work.nodes[: FRESH + 1] = NONE
    is_capped = board.caps.min(initial=UNCAPPED) < UNCAPPED  # heaps know of no move that may come back
    if n_classes > MOST_PAIRED or n_entries > np.iinfo(np.int32).max / places or is_capped:
        patience = np.inf
    n_paths, n_looked, heaps_pay, least = _repair_by_lists(board, work, slack, tie, step, stop, patience)
    if heaps_pay:
        pairs = no_pairs(n_classes, n_entries, int(places * n_entries))
        n_more, is_full = _repair_by_heaps(board, work, pairs, slack, tie, step, stop, least)
        n_paths += n_more
        if is_full:
            n_more, n_more_looked, _, _ = _repair_by_lists(board, work, slack, tie, step, stop, np.inf)
            n_paths, n_looked = n_paths + n_more, n_looked + n_more_looked
    return Done(n_paths, n_looked)


def _power_of_two(number: float) -> float:
    """The largest that is no more than a number."""
    return float(np.ldexp(0.5, np.frexp(max(number, np.nextafter(0, 1)))[1]))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def spread_ties(board, order, tie):
    """Share the units of rows that have several best classes out to those with the most room: all are optimal.

    Of capped rows, those of the entries that are tied with the least one that is held.
    """
    classes, scores, units, counts = board.classes, board.scores, board.units, board.counts
    for row in order:
        begin, end = board.start[row], board.start[row + 1]
        best, least, n_best, left = -np.inf, np.inf, 0, 0
        for entry in range(begin, end):
            best = max(best, scores[entry] + board.potentials[classes[entry]])
            if units[entry] > 0:
                least = min(least, scores[entry] + board.potentials[classes[entry]])
        above = np.inf
        if board.caps[row] < UNCAPPED:
            best, above = least, least + tie
        for entry in range(begin, end):
            n_best += best - tie <= scores[entry] + board.potentials[classes[entry]] <= above
        if n_best < 2:
            continue
        for entry in range(begin, end):
            if scores[entry] + board.potentials[classes[entry]] <= above:
                left += units[entry]
                counts[classes[entry]] -= units[entry]
                units[entry] = 0
        while left > 0:
            chosen, most = -1, 0
            for entry in range(begin, end):
                if best - tie <= scores[entry] + board.potentials[classes[entry]] <= above and has_room(board, entry):
                    room = board.targets[classes[entry]] - counts[classes[entry]]
                    if chosen < 0 or room > most:
                        chosen, most = entry, room
            amount = min(min(left, most) if most > 0 else left, board.caps[row])
            units[chosen] += amount
            counts[classes[chosen]] += amount
            left -= amount


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _repair_by_lists(board, work, slack, tie, step, stop, patience):
    """All levels of `least`, with searches in lists; returns paths, moves looked at, whether heaps are better, `least`.

    Each path lessens the surplus by `least` or more. Once none is left, each entry lets less than `least` through, and
    joining the next ones adds less than that for each: so a level has at most 2 SCALE E paths, and there are at most
    21 levels of int64 units. The first one's surplus is at most SCALE (E + K) `least`.
    """
    counts, targets = board.counts, board.targets
    n_paths, surplus, least, before, n_idle, n_wait, n_looked = 0, 0, 1, np.iinfo(np.int64).max, 0, 0, 0
    n_enough = 0.0
    for node in range(counts.size):
        surplus += max(0, counts[node] - targets[node])
    while least * SCALE <= surplus // (board.start.size + counts.size):
        least *= SCALE
    while True:
        _join(board, work, least, before, tie)
        n_found = 1
        while n_found > 0 and not stop[0]:
            n_found, radius, n_more = search(board, work, slack, tie, step, least)
            n_looked += n_more
            n_enough += LOOKS_A_PAIR * counts.size**2
            if n_found == 0 and least > 1:
                break
            _lower(board, work, radius)
            if n_found > 0:
                n_made, n_left = _move_along_tree(board, work, n_found, least)
                n_paths += n_made
                if n_left > 0 and n_idle >= n_wait:
                    n_more = _move_for_free(board, work, least, tie)
                    n_paths += n_more
                    n_idle, n_wait = 0, (2 * n_wait + 1 if n_more < n_made else 0)  # it takes as long as a search
                else:
                    n_idle += 1
            if n_looked > patience * max(n_enough, LOOKS_BEFORE_PAIRS * board.classes.size):
                return n_paths, n_looked, True, least
        if least == 1 or stop[0]:
            return n_paths, n_looked, False, least
        before, least = least, least // SCALE


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _repair_by_heaps(board, work, pairs, slack, tie, step, stop, least):
    """The levels from `least` on, with searches in heaps; returns paths, and whether there is no place for moves."""
    n_paths, before, n_before = 0, np.iinfo(np.int64).max, -1
    while True:
        _join(board, work, least, before, tie)
        n_found = 1
        while n_found != 0 and not stop[0]:
            n_found, radius, _ = search_pairs(board, work, pairs, slack, tie, step, least)
            if n_found < 0:
                if empty_out(board, work, pairs) > FULL * pairs.losses.size or n_paths == n_before:
                    return n_paths, True
                n_before = n_paths
                continue
            if n_found == 0 and least > 1:
                break
            _lower(board, work, radius)
            n_made, _ = _move_along_tree(board, work, n_found, least)
            n_paths += n_made
        if least == 1 or stop[0]:
            return n_paths, False
        before, least = least, least // SCALE


@part
def _lower(board, work, radius):
    """Let the potentials of settled classes fall by what they are nearer than a radius."""
    for node in range(board.counts.size):
        if work.nodes[SETTLED, node] >= 0 and work.distance[node] < radius:
            board.potentials[node] -= radius - work.distance[node]
            work.dropped[node] += radius - work.distance[node]


@part
def _join(board, work, least, before, tie):
    """Make members of the entries of `least` to `before` units; those that are not the best of their row move there."""
    for entry in range(board.classes.size):
        if board.units[entry] < least or board.units[entry] >= before or work.after[entry] != UNLISTED:
            continue
        row, best, cheapest = board.row_of[entry], entry, -tie
        for other in range(board.start[row], board.start[row + 1]):
            cost = cost_of(board, entry, other)
            if cost < cheapest and has_room(board, other):
                best, cheapest = other, cost
        if best == entry:
            enlist(board, work, entry)
        else:
            amount = board.units[entry]
            board.counts[board.classes[entry]] -= amount
            board.counts[board.classes[best]] += amount
            move(board, work, entry, best, amount, least)


@part
def _move_along_tree(board, work, n_found, least):
    """Pass units down the paths of a search where they do not get in one another's way.

    Returns how many did, and how many of the underfull classes still are.
    """
    nodes, n_paths, n_left = work.nodes, 0, 0
    for target in nodes[FOUND, :n_found]:
        amount, node = board.targets[target] - board.counts[target], target
        while nodes[LEAVES, node] >= 0:
            amount = min(amount, board.units[nodes[LEAVES, node]])
            amount = amount if has_room(board, nodes[ENTERS, node]) else 0
            node = board.classes[nodes[LEAVES, node]]
        amount = min(amount, board.counts[node] - board.targets[node])
        n_left += board.targets[target] - board.counts[target] - max(amount, 0) >= least
        if amount < least:
            continue
        board.counts[node] -= amount
        board.counts[target] += amount
        node = target
        while nodes[LEAVES, node] >= 0:
            leaves = nodes[LEAVES, node]
            move(board, work, leaves, nodes[ENTERS, node], amount, least)
            node = board.classes[leaves]
        n_paths += 1
    return n_paths, n_left


@part
def _move_for_free(board, work, least, tie):
    """Move surplus along the paths that now cost nothing, depth first; returns how many there were.

    Each move leads to a class that the search settled later. A class goes through its moves once, and one that leads
    nowhere is not entered again.
    """
    nodes, counts, targets, n_paths = work.nodes, board.counts, board.targets, 0
    for node in range(counts.size):
        nodes[AT, node] = UNLISTED  # not begun
    for source in range(counts.size):
        depth, nodes[PATH, 0] = 1, source
        while depth > 0 and nodes[SETTLED, source] >= 0 and counts[source] - targets[source] >= least:
            found = _next_free(board, work, nodes[PATH, depth - 1], least, tie)
            if found < 0:
                depth -= 1
                continue
            nodes[PATH, depth] = found
            if targets[found] - counts[found] < least:
                depth += 1
                continue
            amount = min(counts[source] - targets[source], targets[found] - counts[found])
            for node in nodes[PATH, :depth]:
                amount = min(amount, board.units[nodes[AT, node]])
            counts[source] -= amount
            counts[found] += amount
            for node in nodes[PATH, :depth]:
                move(board, work, nodes[AT, node], nodes[OTHER, node], amount, least)
            n_paths += 1
            depth = 1
    return n_paths


@part
def _next_free(board, work, node, least, tie):
    """The next class that units of `node` may go to at no cost, or -1."""
    nodes, after, units, start = work.nodes, work.after, board.units, board.start
    if nodes[AT, node] == UNLISTED:
        nodes[PART, node], nodes[AT, node], nodes[OTHER, node] = FRESH, nodes[FRESH, node], NONE
    limit = 2 * tie - board.potentials[node]
    while True:
        entry, other = nodes[AT, node], nodes[OTHER, node]
        if entry < 0 or (nodes[PART, node] == FIRST and work.bound[entry] > limit):
            if nodes[PART, node] == FIRST:
                nodes[AT, node] = NONE
                return NONE
            nodes[PART, node], nodes[AT, node], nodes[OTHER, node] = FIRST, nodes[FIRST, node], NONE
            continue
        row = board.row_of[entry]
        if other == NONE:
            other = start[row]
        while other < start[row + 1] and units[entry] >= least:
            second = board.classes[other]
            leads_on = nodes[AT, second] != NONE or board.targets[second] - board.counts[second] >= least
            later = leads_on and nodes[SETTLED, second] > nodes[SETTLED, node] and has_room(board, other)
            if later and cost_of(board, entry, other) <= tie:
                nodes[OTHER, node] = other
                return second
            other += 1
        nodes[AT, node], nodes[OTHER, node] = after[entry], NONE
