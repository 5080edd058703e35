"""Successive shortest paths over K classes, compiled: how units move from overfull to underfull classes.

A row (or several equal rows) holds units; an entry is a class that it may take. Moving a unit of a row from entry e to
entry f costs (scores[e] + g[class of e]) - (scores[f] + g[class of f]), which is never negative at the start and is
kept so: potentials fall by what the shortest path leaves over. Costs are sums in float64, `tie` apart means equal.

Source: Ahuja, Magnanti, Orlin, "Network Flows" (1993), section 9.7 (successive shortest paths with potentials).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit

SCANS_A_SORT = 32.0  # times all arcs that may be looked at before they are sorted anew, which costs about as much


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


class Arcs(NamedTuple):
    """Every move of a unit from an entry that has one to another of its row, by class and the cheapest first.

    Potentials only fall, so a move out of class j costs at least what it did when arcs were sorted, less what the
    potential of j has fallen since: a search need look at few of them. Entries that had no unit then are listed apart.
    """

    begin: np.ndarray  # (K + 1,) int64: arcs begin[j] to begin[j + 1] leave class j
    leaves: np.ndarray  # (A,) int64: entry
    enters: np.ndarray  # (A,) int64: entry
    others: np.ndarray  # (A,) int32: its class
    cost: np.ndarray  # (A,) float64, when sorted
    potentials: np.ndarray  # (K,) float64, when sorted
    known: np.ndarray  # (E,) bool: entries whose arcs are sorted or that are listed
    newest: np.ndarray  # (K,) int64: the entries listed of each class, -1 for none
    older: np.ndarray  # (E,) int64: and the one after it


class Search(NamedTuple):
    """Dijkstra's state for each class."""

    distance: np.ndarray  # (K,) float64
    settled: np.ndarray  # (K,) bool
    leaves: np.ndarray  # (K,) int64: entry by which the path there leaves the class before
    enters: np.ndarray  # (K,) int64: and the one by which it enters
    nearer: np.ndarray  # (K,) int64: classes that have come nearer by the arcs of one class
    is_nearer: np.ndarray  # (K,) bool


class Scan(NamedTuple):
    """Where the scan of each class's arcs stands, and the arc that it found last."""

    arc: np.ndarray  # (K,) int64: next of the sorted arcs
    listed: np.ndarray  # (K,) int64: next of the entries listed apart, -1 at the end
    leaves: np.ndarray  # (K,) int64: entry
    enters: np.ndarray  # (K,) int64: entry


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def repair(board, dropped, slack, tie, stop):
    """Move units along shortest paths until every class has its target, no path is short enough, or stop[0] is set.

    `dropped` (K,) counts how far each potential has fallen. It stays within `slack`, so that a class further than that
    below a row's own, which is no entry, cannot have become the better one. Returns how many paths there were.
    """
    if np.all(board.counts == board.targets):
        return 0
    n_classes = board.counts.size
    search = Search(
        np.empty(n_classes), np.empty(n_classes, np.bool_), np.full(n_classes, -1), np.full(n_classes, -1),
        np.empty(n_classes, np.int64), np.zeros(n_classes, np.bool_),
    )  # fmt: skip
    keys, items = np.empty(n_classes), np.empty(n_classes, np.int64)
    arcs, n_scanned, n_paths = _sorted_arcs(board), 0, 0
    for source in range(n_classes):
        while board.counts[source] > board.targets[source] and not stop[0]:
            if n_scanned > SCANS_A_SORT * arcs.cost.size:
                arcs, n_scanned = _sorted_arcs(board), 0
            # Dijkstra from the overfull class to the nearest underfull one.
            search.distance[:], search.settled[:] = np.inf, False
            search.distance[source] = 0.0
            target, radius = -1, slack
            size = _push(keys, items, 0, 0.0, source)
            while size > 0:
                size = _pop(keys, items, size)
                reached, node = keys[size], items[size]
                if search.settled[node] or reached > search.distance[node]:
                    continue
                if reached >= radius:
                    break
                if board.counts[node] < board.targets[node]:
                    target, radius = node, reached
                    break
                search.settled[node] = True
                radius = min(radius, reached + slack - dropped[node])
                n_nearer, n_looked = _reach_out(board, arcs, search, node, radius, tie)
                n_scanned += n_looked
                while keys.size < size + n_nearer:
                    keys, items = _grown(keys), _grown(items)
                for other in search.nearer[:n_nearer]:
                    search.is_nearer[other] = False
                    size = _push(keys, items, size, search.distance[other], other)
            for node in range(n_classes):
                if search.settled[node] and search.distance[node] < radius:
                    board.potentials[node] -= radius - search.distance[node]
                    dropped[node] += radius - search.distance[node]
            if target < 0:
                break
            _move_along(board, arcs, search, source, target)
            n_paths += 1
            if board.counts[source] > board.targets[source]:
                n_paths += _move_for_free(board, arcs, source, tie)
    return n_paths


@njit(cache=True, nogil=True)
def _sorted_arcs(board):
    """All arcs at the present units and potentials."""
    n_classes, n_entries = board.counts.size, board.classes.size
    begin = np.zeros(n_classes + 1, np.int64)
    for entry in range(n_entries):
        if board.units[entry] > 0:
            row = board.row_of[entry]
            begin[board.classes[entry] + 1] += board.start[row + 1] - board.start[row] - 1
    begin = np.cumsum(begin)
    leaves, enters, cost = np.empty(begin[-1], np.int64), np.empty(begin[-1], np.int64), np.empty(begin[-1])
    end = begin[:-1].copy()
    for entry in range(n_entries):
        if board.units[entry] > 0:
            row, node = board.row_of[entry], board.classes[entry]
            for other in range(board.start[row], board.start[row + 1]):
                if other != entry:
                    at = end[node]
                    leaves[at], enters[at], cost[at] = entry, other, _cost(board, entry, other)
                    end[node] += 1
    for node in range(n_classes):
        part = slice(begin[node], begin[node + 1])
        order = np.argsort(cost[part])
        leaves[part], enters[part], cost[part] = leaves[part][order], enters[part][order], cost[part][order]
    others = board.classes[enters]
    lists = np.full(n_classes, -1), np.empty(n_entries, np.int64)
    return Arcs(begin, leaves, enters, others, cost, board.potentials.copy(), board.units > 0, *lists)


@njit(cache=True, nogil=True)
def _cost(board, leaves, enters):
    """What a move from one entry to another of its row loses now."""
    own = board.scores[leaves] + board.potentials[board.classes[leaves]]
    return own - (board.scores[enters] + board.potentials[board.classes[enters]])


@njit(cache=True, nogil=True)
def _fallen(board, arcs, node):
    """By how much less than when arcs were sorted a move out of a class may cost."""
    potential = board.potentials[node]
    return arcs.potentials[node] - potential if potential > -np.inf else 0.0


@njit(cache=True, nogil=True)
def _reach_out(board, arcs, search, node, radius, tie):
    """Shorten the ways to other classes by the arcs of one; returns how many came nearer, and the arcs looked at."""
    reached = search.distance[node]
    fallen = _fallen(board, arcs, node) + tie
    limit = radius - reached + fallen
    n_nearer, n_looked, last = 0, 0, arcs.begin[node + 1]
    for arc in range(arcs.begin[node], last):
        n_looked += 1
        if arcs.cost[arc] >= limit:
            break
        other = arcs.others[arc]  # most arcs are ruled out by what lies side by side in memory
        least = reached + arcs.cost[arc] - fallen + (arcs.potentials[other] - board.potentials[other])
        if least < search.distance[other] and board.units[arcs.leaves[arc]] > 0:
            n_nearer = _come_nearer(board, search, reached, arcs.leaves[arc], arcs.enters[arc], radius, n_nearer)
    entry = arcs.newest[node]
    while entry >= 0:
        if board.units[entry] > 0:
            row = board.row_of[entry]
            for other in range(board.start[row], board.start[row + 1]):
                n_looked += 1
                n_nearer = _come_nearer(board, search, reached, entry, other, radius, n_nearer)
        entry = arcs.older[entry]
    return n_nearer, n_looked


@njit(cache=True, nogil=True)
def _come_nearer(board, search, reached, leaves, enters, radius, n_nearer):
    """Take an arc if it is the shortest way so far."""
    other = board.classes[enters]
    through = reached + max(0.0, _cost(board, leaves, enters))
    if search.settled[other] or through >= search.distance[other] or through >= radius:
        return n_nearer
    search.distance[other], search.leaves[other], search.enters[other] = through, leaves, enters
    if search.is_nearer[other]:
        return n_nearer
    search.is_nearer[other] = True
    search.nearer[n_nearer] = other
    return n_nearer + 1


@njit(cache=True, nogil=True)
def _move_along(board, arcs, search, source, target):
    """Pass as many units as possible down the path that ends at `target`, each node entered from its predecessor."""
    amount = min(board.counts[source] - board.targets[source], board.targets[target] - board.counts[target])
    node = target
    while node != source:
        amount = min(amount, board.units[search.leaves[node]])
        node = board.classes[search.leaves[node]]
    board.counts[source] -= amount
    board.counts[target] += amount
    node = target
    while node != source:
        before = board.classes[search.leaves[node]]
        _move(board, arcs, search.leaves[node], search.enters[node], amount)
        node = before


@njit(cache=True, nogil=True)
def _move_for_free(board, arcs, source, tie):
    """Move surplus along paths that cost nothing, depth first: where rows tie, one search lets many units go.

    Each class scans its arcs once: one that leads nowhere stays `seen`, and where a scan stopped it goes on.
    """
    n_classes = board.counts.size
    scan = Scan(
        arcs.begin[:-1].copy(), arcs.newest.copy(), np.empty(n_classes, np.int64), np.empty(n_classes, np.int64)
    )
    seen, stack = np.zeros(n_classes, np.bool_), np.empty(n_classes, np.int64)
    n_paths, depth = 0, 1
    stack[0], seen[source] = source, True
    while depth > 0 and board.counts[source] > board.targets[source]:
        found = _next_free(board, arcs, scan, stack[depth - 1], seen, tie)
        if found < 0:
            depth -= 1
        elif board.counts[found] >= board.targets[found]:
            seen[found] = True
            stack[depth] = found
            depth += 1
        else:
            amount = min(board.counts[source] - board.targets[source], board.targets[found] - board.counts[found])
            for level in range(depth):
                amount = min(amount, board.units[scan.leaves[stack[level]]])
            board.counts[source] -= amount
            board.counts[found] += amount
            for level in range(depth):
                node = stack[level]
                _move(board, arcs, scan.leaves[node], scan.enters[node], amount)
                seen[node] = level == 0
            depth = 1
            n_paths += 1
    return n_paths


@njit(cache=True, nogil=True)
def _next_free(board, arcs, scan, node, seen, tie):
    """The next class not seen that a unit of `node` may go to at no cost, or -1; `scan` then holds the arc."""
    limit = _fallen(board, arcs, node) + 2 * tie
    while scan.arc[node] < arcs.begin[node + 1] and arcs.cost[scan.arc[node]] <= limit:
        leaves, enters = arcs.leaves[scan.arc[node]], arcs.enters[scan.arc[node]]
        other = board.classes[enters]
        if board.units[leaves] > 0 and not seen[other] and _cost(board, leaves, enters) <= tie:
            scan.leaves[node], scan.enters[node] = leaves, enters
            return other
        scan.arc[node] += 1
    while scan.listed[node] >= 0:
        leaves = scan.listed[node]
        if board.units[leaves] > 0:
            row = board.row_of[leaves]
            for enters in range(board.start[row], board.start[row + 1]):
                other = board.classes[enters]
                if not seen[other] and _cost(board, leaves, enters) <= tie:
                    scan.leaves[node], scan.enters[node] = leaves, enters
                    return other
        scan.listed[node] = arcs.older[leaves]
    return -1


@njit(cache=True, nogil=True)
def _move(board, arcs, leaves, enters, amount):
    """Let `amount` units go from one entry to another of the same row."""
    board.units[leaves] -= amount
    board.units[enters] += amount
    if not arcs.known[enters]:
        node = board.classes[enters]
        arcs.older[enters] = arcs.newest[node]
        arcs.newest[node] = enters
        arcs.known[enters] = True


@njit(cache=True, nogil=True)
def _grown(array):
    larger = np.empty(2 * array.size, array.dtype)
    larger[: array.size] = array
    return larger


@njit(cache=True, nogil=True)
def _push(keys, items, size, key, item):
    """Add to a binary heap; the caller sees to its room. Returns the new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if keys[parent] <= key:
            break
        keys[at], items[at] = keys[parent], items[parent]
        at = parent
    keys[at], items[at] = key, item
    return size + 1


@njit(cache=True, nogil=True)
def _pop(keys, items, size):
    """Take the smallest key out of a binary heap and leave it just behind the end. Returns the new size."""
    size -= 1
    key, item = keys[size], items[size]
    keys[size], items[size] = keys[0], items[0]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[at], items[at] = keys[child], items[child]
        at = child
    if size > 0:
        keys[at], items[at] = key, item
    return size
