"""Successive shortest paths over K classes, compiled: how units move from overfull to underfull classes.

A row (or several equal rows) holds units; an entry is a class that it may take. Moving units of a row from entry e to
entry f costs (scores[e] - scores[f]) + (g[class of e] - g[class of f]), which is never negative at the start and is
kept so: potentials fall by what the shortest path leaves over. The entries of a class that hold units are its members,
in a list in the order of their cheapest moves when it was sorted. Potentials only fall, so that a move costs at least
what it did then, less what the class's own potential has fallen since: a search looks at the head of the list. Costs
are sums in float64, `tie` apart means equal.

Paths of many units come first. Only entries with `least` units or more are members, and `least` falls to one; each
path then moves that many, and how many paths there are does not depend on how many units there are.

Source: Ahuja, Magnanti, Orlin, "Network Flows" (1993), sections 9.7 (successive shortest paths with potentials) and
10.2 (capacity scaling); Dinic, Soviet Math. Doklady 11 (1970) for the many paths of one search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit

EPS = float(np.finfo(np.float64).eps)
_part = njit(
    nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # of what Python calls: kept with that

SCALE = 8  # by which `least` falls
LOOKS_AT_ONCE = 64  # moves out of a class before the next class has its turn, if that is nearer
LOOKS_A_SORT = 4  # times all moves out of a class that are looked at before its members are sorted anew
NONE, UNLISTED = -1, -2  # in place of an entry: the end of a list, in no list

# Rows of `Work.nodes`: numbers of each class.
FIRST, FRESH = 0, 1  # entry: the first of its sorted members, and of those that came since
LOOKED, MOVES = 2, 3  # moves looked at since its members were sorted, and how many there were then
RANK = 4  # when a search settled it, -1 for never
HOPS = 5  # moves on the way there
LEAVES, ENTERS = 6, 7  # entries: the last of these moves
PLACE, HEAP = 8, 9  # place in the heap of classes to settle, and this heap
FOUND = 10  # underfull classes, the nearest first
AT, OTHER = 11, 12  # entries: the move that the search for more paths has come to
PART = 13  # and in which of the two lists
PATH = 14  # classes on its way
N_FIELDS = 15


class Board(NamedTuple):
    """Rows, classes and units; the solver moves `units` and lowers `potentials`, and keeps the rest in step."""

    start: np.ndarray  # (R + 1,) int64: entries start[r] to start[r + 1] belong to row r
    row_of: np.ndarray  # (E,) int64
    classes: np.ndarray  # (E,) int32
    scores: np.ndarray  # (E,) float64
    units: np.ndarray  # (E,) int64: how many units of the row have this class now
    potentials: np.ndarray  # (K,) float64
    counts: np.ndarray  # (K,) int64: units in each class, those of rows that cannot move included
    targets: np.ndarray  # (K,) int64


class Work(NamedTuple):
    """What the solver keeps beside the board."""

    after: np.ndarray  # (E,) int64: the member after this one
    bound: np.ndarray  # (E,) float64: its cheapest move when sorted, but for its own class's potential
    nodes: np.ndarray  # (N_FIELDS, 2 K) int64: of each class, then of the rest of its members
    distance: np.ndarray  # (2 K,) float64
    level: np.ndarray  # (K,) float64: this and the potential, at most `slack` of it
    dropped: np.ndarray  # (K,) float64: how far potentials have fallen


class Done(NamedTuple):
    """What a repair took."""

    n_paths: int
    n_looked: int  # moves looked at by searches


def repair(board: Board, slack: float, tie: float, stop: np.ndarray) -> Done:
    """Move units along shortest paths until every class has its target, no path is short enough, or stop[0] is set.

    No potential falls by more than `slack`, so that a class further than that below a row's own, which is no entry,
    cannot have become the better one.
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
    return Done(*_repair(board, work, slack, tie, step, stop))


def _power_of_two(number: float) -> float:
    """The largest that is no more than a number."""
    return float(np.ldexp(0.5, np.frexp(max(number, np.nextafter(0, 1)))[1]))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def spread_ties(board, order, tie):
    """Share the units of rows that have several best classes out to those with the most room: all are optimal."""
    classes, scores, units, counts = board.classes, board.scores, board.units, board.counts
    for row in order:
        begin, end = board.start[row], board.start[row + 1]
        best, n_best, left = -np.inf, 0, 0
        for entry in range(begin, end):
            best = max(best, scores[entry] + board.potentials[classes[entry]])
        for entry in range(begin, end):
            n_best += scores[entry] + board.potentials[classes[entry]] >= best - tie
        if n_best < 2:
            continue
        for entry in range(begin, end):
            left += units[entry]
            counts[classes[entry]] -= units[entry]
            units[entry] = 0
        while left > 0:
            chosen, most = -1, 0
            for entry in range(begin, end):
                if scores[entry] + board.potentials[classes[entry]] >= best - tie:
                    room = board.targets[classes[entry]] - counts[classes[entry]]
                    if chosen < 0 or room > most:
                        chosen, most = entry, room
            amount = min(left, most) if most > 0 else left
            units[chosen] += amount
            counts[classes[chosen]] += amount
            left -= amount


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _repair(board, work, slack, tie, step, stop):
    """All levels of `least`.

    Each path lessens the surplus by `least` or more. Once none is left, each entry lets less than `least` through, and
    joining the next ones adds less than that for each: so a level has at most 2 SCALE E paths, and there are at most
    21 levels of int64 units. The first one's surplus is at most SCALE (E + K) `least`.
    """
    potentials, counts, targets = board.potentials, board.counts, board.targets
    n_paths, surplus, least, before, n_idle, n_wait, n_looked = 0, 0, 1, np.iinfo(np.int64).max, 0, 0, 0
    for node in range(counts.size):
        surplus += max(0, counts[node] - targets[node])
    while least * SCALE <= surplus // (board.start.size + counts.size):
        least *= SCALE
    while True:
        _join(board, work, least, before, tie)
        n_found = 1
        while n_found > 0 and not stop[0]:
            n_found, radius, n_more = _search(board, work, slack, tie, step, least)
            n_looked += n_more
            if n_found == 0 and least > 1:
                break
            for node in range(counts.size):
                if work.nodes[RANK, node] >= 0 and work.distance[node] < radius:
                    potentials[node] -= radius - work.distance[node]
                    work.dropped[node] += radius - work.distance[node]
            if n_found > 0:
                n_made, n_left = _move_along_tree(board, work, n_found, least)
                n_paths += n_made
                if n_left > 0 and n_idle >= n_wait:
                    n_more = _move_for_free(board, work, least, tie)
                    n_paths += n_more
                    n_idle, n_wait = 0, (2 * n_wait + 1 if n_more < n_made else 0)  # it takes as long as a search
                else:
                    n_idle += 1
        if least == 1 or stop[0]:
            return n_paths, n_looked
        before, least = least, least // SCALE


@_part
def _join(board, work, least, before, tie):
    """Make members of the entries of `least` to `before` units; those that are not the best of their row move there."""
    for entry in range(board.classes.size):
        if board.units[entry] < least or board.units[entry] >= before or work.after[entry] != UNLISTED:
            continue
        row, best, cheapest = board.row_of[entry], entry, -tie
        for other in range(board.start[row], board.start[row + 1]):
            cost = _cost(board, entry, other)
            if cost < cheapest:
                best, cheapest = other, cost
        if best == entry:
            _list(board, work, entry)
        else:
            amount = board.units[entry]
            board.counts[board.classes[entry]] -= amount
            board.counts[board.classes[best]] += amount
            _move(board, work, entry, best, amount, least)


@_part
def _list(board, work, entry):
    """Make a member of an entry."""
    node = board.classes[entry]
    work.after[entry] = work.nodes[FRESH, node]
    work.nodes[FRESH, node] = entry


@_part
def _cost(board, leaves, enters):
    """What a move from one entry to another of its row loses now."""
    gained = board.potentials[board.classes[leaves]] - board.potentials[board.classes[enters]]
    return (board.scores[leaves] - board.scores[enters]) + gained


@_part
def _move(board, work, leaves, enters, amount, least):
    """Let `amount` units go from one entry to another of the same row."""
    board.units[leaves] -= amount
    board.units[enters] += amount
    if board.units[enters] >= least and work.after[enters] == UNLISTED:
        _list(board, work, enters)


# ---- shortest paths ----


@_part
def _search(board, work, slack, tie, step, least):
    """Dijkstra from all overfull classes at once to the nearest underfull ones.

    The heap holds classes to settle and, as node K + k, the rest of settled class k's members, which cost at least
    what the next of them does: only moves that are shorter than the way to the found ones are looked at.
    Beyond the nearest it goes on for as much work again: one search then serves many paths. Of ways equally long the
    one of fewest moves counts. Returns how many it found, the distance up to which all classes are settled,
    and moves looked at.
    """
    nodes, distance, n_classes = work.nodes, work.distance, board.counts.size
    size, n_settled, n_found, n_looked, n_enough, farthest = 0, 0, 0, 0, np.inf, 0.0
    radius = _whole(slack, step)
    for node in range(n_classes):
        distance[node], nodes[RANK, node], nodes[LEAVES, node], nodes[PLACE, node] = np.inf, NONE, NONE, NONE
        if board.counts[node] - board.targets[node] >= least:
            distance[node], nodes[HOPS, node], nodes[PLACE, node], nodes[HEAP, size] = 0.0, 0, size, node
            size += 1
        work.level[node] = board.potentials[node] + min(distance[node], slack)
    while size > 0:
        node = nodes[HEAP, 0]
        reached = distance[node]
        if reached >= radius or n_looked > n_enough:
            break
        size -= 1
        _sink(work, nodes[HEAP, size], size)
        if node < n_classes:
            nodes[RANK, node] = n_settled
            n_settled += 1
            if board.targets[node] - board.counts[node] >= least:
                nodes[FOUND, n_found] = node
                n_found += 1
                farthest = reached
                if n_found == 1:
                    n_enough = 2.0 * n_looked + n_classes
            radius = min(radius, reached + _whole(slack - work.dropped[node], step))
            if nodes[LOOKED, node] >= LOOKS_A_SORT * nodes[MOVES, node]:
                _sort(board, work, node, least)
            size, n_more = _reach_out(board, work, node, FRESH, radius, tie, step, least, size)
            n_looked += n_more
            nodes[AT, node] = NONE
        size, n_more = _reach_out(board, work, node % n_classes, FIRST, radius, tie, step, least, size)
        n_looked += n_more
    return n_found, (farthest if n_found > 0 else radius), n_looked


@_part
def _reach_out(board, work, node, part, radius, tie, step, least, size):
    """Shorten the ways to other classes by the moves out of one; returns the heap's size, and moves looked at.

    Of the sorted members it takes those that are nearer than all else in the heap, and a few more.
    """
    nodes, distance, level, after = work.nodes, work.distance, work.level, work.after
    classes, scores, potentials = board.classes, board.scores, board.potentials
    reached, own, hops, n_looked = distance[node], potentials[node], nodes[HOPS, node] + 1, 0
    nearest = reached + own - 2 * tie
    last = nodes[AT, node] if part == FIRST else NONE
    entry = nodes[part, node] if last < 0 else after[last]
    while entry >= 0:
        if part == FIRST:
            through = work.bound[entry] + nearest
            if through >= radius:
                break
            if n_looked > LOOKS_AT_ONCE and size > 0 and through > distance[nodes[HEAP, 0]]:
                rest = distance.size // 2 + node
                distance[rest], nodes[HOPS, rest], nodes[HEAP, size], nodes[PLACE, rest] = through, 0, rest, size
                nodes[AT, node] = last
                size += 1
                _rise(work, rest)
                break
        following = after[entry]
        if board.units[entry] >= least:
            row, last, mark = board.row_of[entry], entry, scores[entry] + own + reached + 0.5 * tie
            n_looked += board.start[row + 1] - board.start[row]
            for other in range(board.start[row], board.start[row + 1]):
                if scores[other] + level[classes[other]] > mark:  # rules most out
                    second, cost = np.int64(classes[other]), _cost(board, entry, other)
                    through = reached + (_whole(cost, step) if cost > tie else 0.0)
                    if through < distance[second] and through < radius:
                        distance[second], level[second] = through, through + potentials[second]
                        nodes[HOPS, second], nodes[LEAVES, second], nodes[ENTERS, second] = hops, entry, other
                        if nodes[PLACE, second] < 0:
                            nodes[PLACE, second] = size
                            size += 1
                        _rise(work, second)
        else:
            after[entry] = UNLISTED
            if last < 0:
                nodes[part, node] = following
            else:
                after[last] = following
        entry = following
    nodes[LOOKED, node] += n_looked
    return size, n_looked


@_part
def _sort(board, work, node, least):
    """Put the members of a class in the order of their cheapest moves."""
    nodes, after, n_moves, first = work.nodes, work.after, 0, np.int64(NONE)
    for part in (FIRST, FRESH):
        entry = nodes[part, node]
        while entry >= 0:
            following = after[entry]
            after[entry] = UNLISTED
            if board.units[entry] >= least:
                row, cheapest = board.row_of[entry], np.inf
                for other in range(board.start[row], board.start[row + 1]):
                    if other != entry:
                        gained = board.scores[entry] - board.scores[other]
                        cheapest = min(cheapest, gained - board.potentials[board.classes[other]])
                n_moves += board.start[row + 1] - board.start[row]
                work.bound[entry], after[entry], first = cheapest, first, entry
            entry = following
    nodes[FIRST, node], nodes[FRESH, node] = _sorted_list(first, after, work.bound), NONE
    nodes[LOOKED, node], nodes[MOVES, node] = 0, n_moves


@_part
def _sorted_list(first, after, key):
    """Merge sort of a linked list: runs of one, two, four, ... are merged; returns its first."""
    length, n_runs = 1, 2
    while n_runs > 1:
        one, first, last, n_runs = first, NONE, NONE, 0
        while one >= 0:
            other, n_one, n_other = one, 0, length
            while n_one < length and other >= 0:
                n_one += 1
                other = after[other]
            while n_one > 0 or (n_other > 0 and other >= 0):
                if n_one > 0 and (n_other == 0 or other < 0 or key[one] <= key[other]):
                    chosen, one = one, after[one]
                    n_one -= 1
                else:
                    chosen, other = other, after[other]
                    n_other -= 1
                if last < 0:
                    first = chosen
                else:
                    after[last] = chosen
                last = chosen
            one = other
            n_runs += 1
        if last >= 0:
            after[last] = NONE
        length *= 2
    return first


@_part
def _whole(number, step):
    """The largest multiple of a step that is no more than a number."""
    return number - number % step if number < np.inf else number


@_part
def _is_nearer(work, one, other):
    if work.distance[one] != work.distance[other]:
        return work.distance[one] < work.distance[other]
    return work.nodes[HOPS, one] < work.nodes[HOPS, other]


@_part
def _rise(work, node):
    """Let a class that has come nearer rise in the heap from its place there."""
    nodes = work.nodes
    place = nodes[PLACE, node]
    while place > 0 and _is_nearer(work, node, nodes[HEAP, (place - 1) >> 1]):
        parent = nodes[HEAP, (place - 1) >> 1]
        nodes[HEAP, place], nodes[PLACE, parent] = parent, place
        place = (place - 1) >> 1
    nodes[HEAP, place], nodes[PLACE, node] = node, place


@_part
def _sink(work, node, size):
    """Put a class in place of the heap's top, and let it sink."""
    nodes, place = work.nodes, 0
    while 2 * place + 1 < size:
        below = 2 * place + 1
        if below + 1 < size and _is_nearer(work, nodes[HEAP, below + 1], nodes[HEAP, below]):
            below += 1
        child = nodes[HEAP, below]
        if not _is_nearer(work, child, node):
            break
        nodes[HEAP, place], nodes[PLACE, child] = child, place
        place = below
    nodes[HEAP, place], nodes[PLACE, node] = node, place


# ---- what moves ----


@_part
def _move_along_tree(board, work, n_found, least):
    """Pass units down the paths of a search where they do not get in one another's way.

    Returns how many did, and how many of the underfull classes still are.
    """
    nodes, n_paths, n_left = work.nodes, 0, 0
    for target in nodes[FOUND, :n_found]:
        amount, node = board.targets[target] - board.counts[target], target
        while nodes[LEAVES, node] >= 0:
            amount = min(amount, board.units[nodes[LEAVES, node]])
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
            _move(board, work, leaves, nodes[ENTERS, node], amount, least)
            node = board.classes[leaves]
        n_paths += 1
    return n_paths, n_left


@_part
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
        while depth > 0 and nodes[RANK, source] >= 0 and counts[source] - targets[source] >= least:
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
                _move(board, work, nodes[AT, node], nodes[OTHER, node], amount, least)
            n_paths += 1
            depth = 1
    return n_paths


@_part
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
            if leads_on and nodes[RANK, second] > nodes[RANK, node] and _cost(board, entry, other) <= tie:
                nodes[OTHER, node] = other
                return second
            other += 1
        nodes[AT, node], nodes[OTHER, node] = after[entry], NONE
