"""Successive shortest paths over K classes, compiled: how units move from overfull to underfull classes.

A row (or several equal rows) holds units; an entry is a class that it may take. Moving a unit of a row from entry e to
entry f costs (scores[e] - scores[f]) + (g[class of e] - g[class of f]), which is never negative at the start and is
kept so: potentials fall by what the shortest path leaves over. Between two classes the order of all moves is thus that
of their scores' differences whatever the potentials are. The moves out of a class are sorted once, and a search looks
at the cheap ones; where searches have looked at many, they are kept in heaps, one for each class that they enter, and
a search looks at the cheapest of each only. Costs are sums in float64, `tie` apart means equal.

Source: Ahuja, Magnanti, Orlin, "Network Flows" (1993), section 9.7 (successive shortest paths with potentials);
Fredman, Sedgewick, Sleator, Tarjan, "The pairing heap", Algorithmica 1 (1986).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit

SCANS_A_HEAP = 8.0  # times that all moves out of a class are looked at, which costs about as much as heaps of them
SCANS_A_SORT = 32.0  # times all pairs of classes that may be looked at before they are sorted anew
SPARE_MOVES = 1 << 14  # fewest that may be added before all are collected anew
HASH = np.uint64(0x9E3779B97F4A7C15)


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


class Moves(NamedTuple):
    """Every move of a unit from an entry that has one to another of its row.

    Those found at first lie together by the class that they leave, and are sorted when a search first gets there. Of
    some classes, moves are in a heap for each pair of classes instead. Entries that get a unit later are listed, or
    their moves are added to the heaps. Moves of entries without a unit stay until somebody comes across them.
    """

    begin: np.ndarray  # (K + 1,) int64: room of each class for moves begin[j] to begin[j + 1]
    end: np.ndarray  # (K,) int64: where its moves end
    cost: np.ndarray  # float64: of these moves, at first
    others: np.ndarray  # int32: the class that they enter
    potentials: np.ndarray  # (K,) float64, at first
    is_sorted: np.ndarray  # (K,) bool
    known: np.ndarray  # (E,) bool: entries whose moves are among these or that are listed
    newest: np.ndarray  # (K,) int64: entries listed of each class, -1 for none
    older: np.ndarray  # (E,) int64: and the one after it
    n_looked: np.ndarray  # (K,) int64: moves out of each class that searches looked at
    in_heaps: np.ndarray  # (K,) bool: classes whose moves are in heaps
    key: np.ndarray  # (M,) float64: scores[leaves] - scores[enters]
    leaves: np.ndarray  # (M,) int64: entry
    enters: np.ndarray  # (M,) int64: entry
    child: np.ndarray  # (M,) int32: the first of those below it in the heap, -1 for none
    sibling: np.ndarray  # (M,) int32: the next beside it
    whole: np.ndarray  # (E,) bool: all moves out of this entry are in the heaps
    table: np.ndarray  # hash table of pairs, -1 where it is empty
    number: np.ndarray  # (4,) int64: of moves, of pairs, whether there was no room for some, and pairs looked at
    first: np.ndarray  # (P,) int32: class that moves of a pair leave
    second: np.ndarray  # (P,) int32: class that they enter
    top: np.ndarray  # (P,) int32: the cheapest move, -1 for none


class Sorted(NamedTuple):
    """The pairs of each class, the one with the cheapest move first.

    Potentials only fall, so a move out of class j costs at least what it did when pairs were sorted, less what the
    potential of j has fallen since: a search need look at few of them. Pairs that a new move made cheaper are listed
    apart.
    """

    begin: np.ndarray  # (K + 1,) int64: pairs begin[j] to begin[j + 1] leave class j
    pairs: np.ndarray  # int64
    others: np.ndarray  # int32: the class that they enter
    cost: np.ndarray  # float64, when sorted
    potentials: np.ndarray  # (K,) float64, when sorted
    key: np.ndarray  # (P,) float64: of each pair's cheapest move, when sorted; inf for none
    listed: np.ndarray  # (P,) bool
    newest: np.ndarray  # (K,) int64: the pairs listed of each class, -1 for none
    older: np.ndarray  # (P,) int64: and the one after it


class Search(NamedTuple):
    """Dijkstra's state for each class."""

    distance: np.ndarray  # (K,) float64
    settled: np.ndarray  # (K,) bool
    leaves: np.ndarray  # (K,) int64: entry by which the path there leaves the class before, -1 where it begins
    enters: np.ndarray  # (K,) int64: and the one by which it enters
    nearer: np.ndarray  # (K,) int64: classes that have come nearer by the moves out of one
    is_nearer: np.ndarray  # (K,) bool
    found: np.ndarray  # (K,) int64: underfull classes, the nearest first
    queue: (
        np.ndarray
    )  # (K,) int64: classes as far as the one that is looked at, in the order in which they were reached


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
        np.empty(n_classes), np.empty(n_classes, np.bool_), np.empty(n_classes, np.int64),
        np.empty(n_classes, np.int64), np.empty(n_classes, np.int64), np.zeros(n_classes, np.bool_),
        np.empty(n_classes, np.int64), np.empty(n_classes, np.int64),
    )  # fmt: skip
    moves = _collected(board, np.zeros(n_classes, np.int64), np.zeros(n_classes, np.bool_))
    ordered, n_paths = _sorted_pairs(board, moves), 0
    while not stop[0]:
        if moves.number[2]:
            moves = _collected(board, moves.n_looked, moves.in_heaps)
            ordered = _sorted_pairs(board, moves)
        elif moves.number[3] > SCANS_A_SORT * max(moves.number[1], n_classes):
            ordered = _sorted_pairs(board, moves)
        n_found, radius = _search(board, moves, ordered, search, dropped, slack, tie)
        for node in range(n_classes):
            if search.settled[node] and search.distance[node] < radius:
                board.potentials[node] -= radius - search.distance[node]
                dropped[node] += radius - search.distance[node]
        if n_found == 0:
            break
        for target in search.found[:n_found]:
            n_paths += _move_along(board, moves, ordered, search, target, tie)
    return n_paths


@njit(cache=True, nogil=True)
def _search(board, moves, ordered, search, dropped, slack, tie):
    """Dijkstra from all overfull classes at once to the nearest underfull ones.

    Beyond the nearest it goes on for as much work again: one search then serves many paths. Among classes equally far
    those reached by fewest moves come first, or ties between rows of many units would pass a few to and fro for ever
    (Edmonds and Karp). Returns how many it found, and the distance up to which all classes are settled.
    """
    n_classes = board.counts.size
    keys, items, size = np.empty(2 * n_classes), np.empty(2 * n_classes, np.int64), 0
    search.distance[:], search.settled[:], search.leaves[:] = np.inf, False, -1
    first, last, reached = 0, 0, 0.0  # of the queue
    for node in range(n_classes):
        if board.counts[node] > board.targets[node]:
            search.distance[node] = 0.0
            search.queue[last] = node
            last += 1
    n_found, n_scanned, n_enough, farthest, radius = 0, 0, np.inf, 0.0, slack
    while first < last or size > 0:
        if first < last:
            node = search.queue[first]
            first += 1
        else:
            size = _pop(keys, items, size)
            reached, node = keys[size], items[size]
        if search.settled[node] or reached > search.distance[node]:
            continue
        if reached >= radius or n_scanned > n_enough:
            radius = min(radius, reached)
            return n_found, radius
        search.settled[node] = True
        if board.counts[node] < board.targets[node]:
            search.found[n_found] = node
            n_found += 1
            farthest = reached
            if n_found == 1:
                n_enough = 2.0 * n_scanned + n_classes
        radius = min(radius, reached + slack - dropped[node])
        n_nearer, n_looked = _reach_out(board, moves, ordered, search, node, radius, tie)
        n_scanned += n_looked
        while keys.size < size + n_nearer:
            keys, items = _grown(keys), _grown(items)
        for other in search.nearer[:n_nearer]:
            search.is_nearer[other] = False
            if search.distance[other] == reached:
                search.queue[last] = other
                last += 1
            else:
                size = _push(keys, items, size, search.distance[other], other)
    return n_found, (farthest if n_found else radius)


@njit(cache=True, nogil=True)
def _reach_out(board, moves, ordered, search, node, radius, tie):
    """Shorten the ways to other classes by the moves out of one; returns how many came nearer, and moves looked at."""
    if not moves.in_heaps[node]:
        if moves.n_looked[node] <= SCANS_A_HEAP * (moves.end[node] - moves.begin[node] + board.counts.size):
            n_nearer, n_looked = _reach_out_by_moves(board, moves, search, node, radius, tie)
            moves.n_looked[node] += n_looked
            return n_nearer, n_looked
        _keep_in_heaps(board, moves, ordered, node)
    reached = search.distance[node]
    fallen = ordered.potentials[node] - board.potentials[node] + tie
    limit = radius - reached + fallen
    n_nearer, n_looked = 0, 0
    for at in range(ordered.begin[node], ordered.begin[node + 1]):
        n_looked += 1
        if ordered.cost[at] >= limit:
            break
        other = ordered.others[at]  # most pairs are ruled out by what lies side by side in memory
        least = reached + ordered.cost[at] - fallen + (ordered.potentials[other] - board.potentials[other])
        if least < search.distance[other]:
            n_nearer = _come_nearer_by_pair(board, moves, search, reached, ordered.pairs[at], radius, tie, n_nearer)
    pair = ordered.newest[node]
    while pair >= 0:
        n_looked += 1
        n_nearer = _come_nearer_by_pair(board, moves, search, reached, pair, radius, tie, n_nearer)
        pair = ordered.older[pair]
    moves.number[3] += n_looked
    return n_nearer, n_looked


@njit(cache=True, nogil=True)
def _reach_out_by_moves(board, moves, search, node, radius, tie):
    """The same by going through the moves out of the class, the cheap ones first."""
    if not moves.is_sorted[node]:
        _sort_moves(moves, node)
    reached = search.distance[node]
    fallen = moves.potentials[node] - board.potentials[node] + tie
    limit = radius - reached + fallen
    n_nearer, n_looked = 0, 0
    for move in range(moves.begin[node], moves.end[node]):
        n_looked += 1
        if moves.cost[move] >= limit:
            break
        other = moves.others[move]  # most moves are ruled out by what lies side by side in memory
        least = reached + moves.cost[move] - fallen + (moves.potentials[other] - board.potentials[other])
        if least < search.distance[other] and board.units[moves.leaves[move]] > 0:
            leaves, enters = moves.leaves[move], moves.enters[move]
            n_nearer = _come_nearer(board, search, reached, leaves, enters, radius, tie, n_nearer)
    entry = moves.newest[node]
    while entry >= 0:
        if board.units[entry] > 0:
            row = board.row_of[entry]
            for other in range(board.start[row], board.start[row + 1]):
                if other != entry:
                    n_nearer = _come_nearer(board, search, reached, entry, other, radius, tie, n_nearer)
            n_looked += board.start[row + 1] - board.start[row]
        entry = moves.older[entry]
    return n_nearer, n_looked


@njit(cache=True, nogil=True)
def _come_nearer_by_pair(board, moves, search, reached, pair, radius, tie, n_nearer):
    """Take a pair's cheapest move if it is the shortest way so far."""
    move = -1 if search.settled[moves.second[pair]] else _cheapest(board, moves, pair)
    if move < 0:
        return n_nearer
    return _come_nearer(board, search, reached, moves.leaves[move], moves.enters[move], radius, tie, n_nearer)


@njit(cache=True, nogil=True)
def _come_nearer(board, search, reached, leaves, enters, radius, tie, n_nearer):
    """Take a move if it is the shortest way so far."""
    other = board.classes[enters]
    cost = _cost(board, leaves, enters)
    through = reached + (cost if cost > tie else 0.0)
    if search.settled[other] or not through < search.distance[other] or through >= radius:
        return n_nearer
    search.distance[other], search.leaves[other], search.enters[other] = through, leaves, enters
    if search.is_nearer[other]:
        return n_nearer
    search.is_nearer[other] = True
    search.nearer[n_nearer] = other
    return n_nearer + 1


@njit(cache=True, nogil=True)
def _cost(board, leaves, enters):
    """What a move from one entry to another of its row loses now."""
    gained = board.potentials[board.classes[leaves]] - board.potentials[board.classes[enters]]
    return (board.scores[leaves] - board.scores[enters]) + gained


@njit(cache=True, nogil=True)
def _move_along(board, moves, ordered, search, target, tie):
    """Pass units down the path that ends at `target`, again while moves of no cost are left; returns how often."""
    n_times = 0
    while board.counts[target] < board.targets[target]:
        amount, node = board.targets[target] - board.counts[target], target
        while search.leaves[node] >= 0:
            leaves = search.leaves[node]
            if board.units[leaves] == 0:  # it went with a path before
                move = _cheapest_between(board, moves, board.classes[leaves], node)
                if move < 0 or _cost(board, moves.leaves[move], moves.enters[move]) > tie:
                    return n_times
                leaves = moves.leaves[move]
                search.leaves[node], search.enters[node] = leaves, moves.enters[move]
            amount = min(amount, board.units[leaves])
            node = board.classes[leaves]
        amount = min(amount, board.counts[node] - board.targets[node])
        if amount <= 0:
            return n_times
        board.counts[node] -= amount
        board.counts[target] += amount
        node = target
        while search.leaves[node] >= 0:
            _move(board, moves, ordered, search.leaves[node], search.enters[node], amount)
            node = board.classes[search.leaves[node]]
        n_times += 1
    return n_times


@njit(cache=True, nogil=True)
def _move(board, moves, ordered, leaves, enters, amount):
    """Let `amount` units go from one entry to another of the same row."""
    board.units[leaves] -= amount
    board.units[enters] += amount
    first = board.classes[enters]
    if not moves.in_heaps[first]:
        if not moves.known[enters]:
            moves.known[enters] = True
            moves.older[enters] = moves.newest[first]
            moves.newest[first] = enters
    elif not moves.whole[enters]:
        _add_moves(board, moves, enters)
        row = board.row_of[enters]
        for other in range(board.start[row], board.start[row + 1]):
            pair = _pair_of(moves, first, board.classes[other], board.counts.size, False)
            known = pair >= 0 and not ordered.listed[pair] and moves.top[pair] >= 0
            if known and moves.key[moves.top[pair]] < ordered.key[pair]:
                _list_pair(ordered, first, pair)


# ---- all moves ----


@njit(cache=True, nogil=True)
def _collected(board, n_looked, in_heaps):
    """All moves at the present units, those of some classes in heaps, with room for more."""
    n_classes, n_entries = board.counts.size, board.classes.size
    begin = np.zeros(n_classes + 1, np.int64)
    for entry in range(n_entries):
        if board.units[entry] > 0:
            row = board.row_of[entry]
            begin[board.classes[entry] + 1] += board.start[row + 1] - board.start[row] - 1
    begin = np.cumsum(begin)
    n_moves = begin[-1]
    room = n_moves + max(n_moves // 4, SPARE_MOVES)
    most_pairs = min(n_classes * n_classes, room)
    n_slots = 2
    while n_slots < 2 * most_pairs:
        n_slots *= 2
    moves = Moves(
        begin, begin[:-1].copy(), np.empty(n_moves), np.empty(n_moves, np.int32), board.potentials.copy(),
        np.zeros(n_classes, np.bool_), board.units > 0, np.full(n_classes, -1), np.empty(n_entries, np.int64),
        n_looked, in_heaps, np.empty(room), np.empty(room, np.int64), np.empty(room, np.int64),
        np.empty(room, np.int32), np.empty(room, np.int32), np.zeros(n_entries, np.bool_),
        np.full(n_slots, -1, np.int32), np.zeros(4, np.int64), np.empty(most_pairs, np.int32),
        np.empty(most_pairs, np.int32), np.full(most_pairs, -1, np.int32),
    )  # fmt: skip
    for entry in range(n_entries):
        if board.units[entry] > 0:
            row, node = board.row_of[entry], board.classes[entry]
            for other in range(board.start[row], board.start[row + 1]):
                cost = _cost(board, entry, other)
                if other != entry and cost < np.inf:  # no other is allowed
                    at = moves.end[node]
                    moves.key[at] = board.scores[entry] - board.scores[other]
                    moves.leaves[at], moves.enters[at] = entry, other
                    moves.others[at], moves.cost[at] = board.classes[other], cost
                    moves.end[node] += 1
    moves.number[0] = n_moves
    for node in range(n_classes):
        if in_heaps[node]:
            _put_in_heaps(board, moves, node)
    return moves


@njit(cache=True, nogil=True)
def _sort_moves(moves, node):
    """Put the moves out of a class in order of cost."""
    moves.is_sorted[node] = True
    part = slice(moves.begin[node], moves.end[node])
    order = np.argsort(moves.cost[part])
    moves.cost[part], moves.others[part] = moves.cost[part][order], moves.others[part][order]
    moves.key[part] = moves.key[part][order]
    moves.leaves[part], moves.enters[part] = moves.leaves[part][order], moves.enters[part][order]


@njit(cache=True, nogil=True)
def _put_in_heaps(board, moves, node):
    """Make heaps of the moves out of a class: sorted ones of a pair are a heap, each below the one before."""
    if not moves.is_sorted[node]:
        _sort_moves(moves, node)
    moves.in_heaps[node] = True
    last = np.full(board.counts.size, -1)  # the last move to each class
    for move in range(moves.begin[node], moves.end[node]):
        if board.units[moves.leaves[move]] > 0:
            moves.whole[moves.leaves[move]] = True
            moves.child[move] = moves.sibling[move] = -1
            other = moves.others[move]
            if last[other] < 0:
                moves.top[_pair_of(moves, node, other, board.counts.size, True)] = move
            else:
                moves.child[last[other]] = move
            last[other] = move
    entry = moves.newest[node]
    while entry >= 0:
        if board.units[entry] > 0:
            _add_moves(board, moves, entry)
        entry = moves.older[entry]


@njit(cache=True, nogil=True)
def _list_pair(ordered, node, pair):
    """Add a pair to those of its first class that are not in order."""
    ordered.listed[pair] = True
    ordered.older[pair] = ordered.newest[node]
    ordered.newest[node] = pair


@njit(cache=True, nogil=True)
def _keep_in_heaps(board, moves, ordered, node):
    """From now on keep the moves out of a class in heaps."""
    n_pairs = moves.number[1]
    _put_in_heaps(board, moves, node)
    for pair in range(n_pairs, moves.number[1]):
        _list_pair(ordered, node, pair)


@njit(cache=True, nogil=True)
def _add_moves(board, moves, leaves):
    """Put all moves out of an entry into the heaps, if there is room."""
    row, first = board.row_of[leaves], board.classes[leaves]
    begin, end = board.start[row], board.start[row + 1]
    if moves.number[0] + end - begin > moves.key.size:
        moves.number[2] = 1
        return
    moves.whole[leaves] = True
    for enters in range(begin, end):
        key, second = board.scores[leaves] - board.scores[enters], board.classes[enters]
        if enters == leaves or not key < np.inf or board.potentials[second] == -np.inf:
            continue  # no move, or one that is forbidden
        move = moves.number[0]
        moves.number[0] += 1
        moves.key[move], moves.leaves[move], moves.enters[move] = key, leaves, enters
        moves.child[move] = moves.sibling[move] = -1
        pair = _pair_of(moves, first, second, board.counts.size, True)
        moves.top[pair] = move if moves.top[pair] < 0 else _joined(moves, moves.top[pair], move)


@njit(cache=True, nogil=True)
def _pair_of(moves, first, second, n_classes, add):
    """The number of a pair of classes; -1 for one not seen yet, or it is added."""
    mask = np.uint64(moves.table.size - 1)
    mixed = np.uint64(np.int64(first) * n_classes + second) * HASH
    slot = (mixed ^ (mixed >> np.uint64(32))) & mask
    while True:
        pair = moves.table[slot]
        if pair < 0:
            break
        if moves.first[pair] == first and moves.second[pair] == second:
            return np.int64(pair)
        slot = (slot + np.uint64(1)) & mask
    if not add:
        return np.int64(-1)
    pair = moves.number[1]
    moves.number[1] += 1
    moves.table[slot] = pair
    moves.first[pair], moves.second[pair] = first, second
    return np.int64(pair)


@njit(cache=True, nogil=True)
def _cheapest(board, moves, pair):
    """The cheapest move of a pair whose entry has a unit, or -1; others before it are dropped."""
    move = moves.top[pair]
    while move >= 0 and board.units[moves.leaves[move]] == 0:
        moves.whole[moves.leaves[move]] = False
        move = _without_top(moves, move)
    moves.top[pair] = move
    return move


@njit(cache=True, nogil=True)
def _cheapest_between(board, moves, first, second):
    """The same for two classes; -1 too where their moves are in no heap."""
    pair = _pair_of(moves, first, second, board.counts.size, False) if moves.in_heaps[first] else -1
    return _cheapest(board, moves, pair) if pair >= 0 else -1


@njit(cache=True, nogil=True)
def _joined(moves, one, other):
    """Two heaps as one; returns its top."""
    if moves.key[other] < moves.key[one]:
        one, other = other, one
    moves.sibling[other] = moves.child[one]
    moves.child[one] = other
    return one


@njit(cache=True, nogil=True)
def _without_top(moves, move):
    """What is left of a heap: those below its top, joined in twos and then from the last to the first."""
    below, twos = moves.child[move], np.int32(-1)
    while below >= 0:
        other = moves.sibling[below]
        after = moves.sibling[other] if other >= 0 else np.int32(-1)
        two = _joined(moves, below, other) if other >= 0 else below
        moves.sibling[two] = twos
        twos, below = two, after
    left = np.int32(-1)
    while twos >= 0:
        after = moves.sibling[twos]
        moves.sibling[twos] = -1
        left = twos if left < 0 else _joined(moves, left, twos)
        twos = after
    return left


@njit(cache=True, nogil=True)
def _sorted_pairs(board, moves):
    """The pairs at the present potentials."""
    n_classes, n_pairs = board.counts.size, moves.number[1]
    moves.number[3] = 0
    begin, key = np.zeros(n_classes + 1, np.int64), np.full(moves.first.size, np.inf)
    for pair in range(n_pairs):
        move = _cheapest(board, moves, pair)
        if move >= 0:
            key[pair] = moves.key[move]
            begin[moves.first[pair] + 1] += 1
    begin = np.cumsum(begin)
    pairs, cost, end = np.empty(begin[-1], np.int64), np.empty(begin[-1]), begin[:-1].copy()
    for pair in range(n_pairs):
        if key[pair] < np.inf:
            at = end[moves.first[pair]]
            move = moves.top[pair]
            pairs[at], cost[at] = pair, _cost(board, moves.leaves[move], moves.enters[move])
            end[moves.first[pair]] += 1
    for node in range(n_classes):
        part = slice(begin[node], begin[node + 1])
        order = np.argsort(cost[part])
        pairs[part], cost[part] = pairs[part][order], cost[part][order]
    return Sorted(
        begin, pairs, moves.second[pairs], cost, board.potentials.copy(), key, np.zeros(key.size, np.bool_),
        np.full(n_classes, -1), np.full(key.size, -1),
    )  # fmt: skip


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
