"""Shortest paths where each pair of classes has a heap of the moves from one to the other, the cheapest on top.

What a move loses beside the two potentials never changes, so that the heaps stay in order while potentials fall: a
search looks at K^2 numbers, however many members classes have: what the top of each heap loses, which no move of that
pair is below. They take a place for each move and 2 K^2 for their tops. A move whose entry has lost its units leaves
its heap when it is at the top and would be taken.

Source: skew heaps, Sleator, Tarjan, SIAM Journal on Computing 15 (1986).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.solver.board import ENTERS, FIRST, FOUND, FRESH, HOPS, LEAVES, NONE, SETTLED, UNLISTED, enlist, part, whole

# Rows of `Pairs.moves`.
FROM, TO = 0, 1  # entries
LEFT, RIGHT = 2, 3  # moves below it in its heap; of a free place, LEFT is the next free one
AGE = 4  # of its entry when it came in
N_LINKS = 5


class Pairs(NamedTuple):
    """The heaps of all pairs of classes."""

    tops: np.ndarray  # (K, K) int32
    least: np.ndarray  # (K, K) float64: what the top loses, infinite where there is none
    moves: np.ndarray  # (N_LINKS, M) int32
    losses: np.ndarray  # (M,) float64: scores of the entry that is left, less that of the one that is entered
    age: np.ndarray  # (E,) int32: how often an entry has left the heaps
    free: np.ndarray  # (2,) int64: the first free place of those that were taken before, and the first never taken


def no_pairs(n_classes: int, n_entries: int, n_moves: int) -> Pairs:
    """Heaps with nothing in them, and places for so many moves."""
    return Pairs(
        np.full((n_classes, n_classes), NONE, np.int32),
        np.full((n_classes, n_classes), np.inf),
        np.empty((N_LINKS, n_moves), np.int32),
        np.empty(n_moves),
        np.zeros(n_entries, np.int32),
        np.array([NONE, 0]),
    )


@part
def search_pairs(board, work, pairs, slack, tie, step, least):
    """As `search`, over the cheapest moves of all pairs; it finds -1 classes where there is no place for a move."""
    nodes, distance, potentials, n_classes = work.nodes, work.distance, board.potentials, board.counts.size
    n_settled, n_found, n_enough, farthest = 0, 0, n_classes, 0.0
    radius = whole(slack, step)
    for node in range(n_classes):
        nodes[SETTLED, node], nodes[LEAVES, node], nodes[HOPS, node] = NONE, NONE, 0
        distance[node] = 0.0 if board.counts[node] - board.targets[node] >= least else np.inf
    while n_settled < n_enough:
        node = -1
        for other in range(n_classes):
            if nodes[SETTLED, other] < 0 and distance[other] < radius and _is_nearer(work, other, node):
                node = other
        if node < 0:
            break
        nodes[SETTLED, node] = n_settled
        n_settled += 1
        reached = distance[node]
        if board.targets[node] - board.counts[node] >= least:
            nodes[FOUND, n_found] = node
            n_found += 1
            farthest = reached
            if n_found == 1:
                n_enough = min(n_classes, 2 * n_settled + 1)
        radius = min(radius, reached + whole(slack - work.dropped[node], step))
        if not _take_in(board, work, pairs, node, FIRST, least) or not _take_in(board, work, pairs, node, FRESH, least):
            return -1, radius, n_settled
        ahead = reached + potentials[node] - 2 * tie  # of what is added in another order
        for second in range(n_classes):
            before = distance[second]
            if (
                pairs.least[node, second] + ahead - potentials[second] > min(before, radius)
                or nodes[SETTLED, second] >= 0
            ):
                continue
            top = _cheapest(board, work, pairs, node, second, least)
            if top >= 0:
                cost = pairs.losses[top] + (potentials[node] - potentials[second])
                through = reached + (whole(cost, step) if cost > tie else 0.0)
                hops = nodes[HOPS, node] + 1
                nearer = through < before or (through == before and hops < nodes[HOPS, second])
                if nearer and through < radius:
                    distance[second], nodes[HOPS, second] = through, hops
                    nodes[LEAVES, second] = pairs.moves[FROM, top]
                    nodes[ENTERS, second] = pairs.moves[TO, top]
    return n_found, (farthest if n_found > 0 else radius), n_settled


@part
def _is_nearer(work, one, other):
    """Of ways equally long the one of fewest moves counts; -1 is farther than all."""
    if other < 0 or work.distance[one] != work.distance[other]:
        return other < 0 or work.distance[one] < work.distance[other]
    return work.nodes[HOPS, one] < work.nodes[HOPS, other]


@part
def empty_out(board, work, pairs):
    """Take all moves out of the heaps, and say how many places they need; what was in has to be taken in anew."""
    n_moves = 0
    pairs.tops[:] = NONE
    pairs.least[:] = np.inf
    pairs.free[0], pairs.free[1] = NONE, 0
    work.nodes[FIRST, :] = NONE
    work.nodes[FRESH, :] = NONE
    for entry in range(board.classes.size):
        if work.after[entry] != UNLISTED:
            enlist(board, work, entry)
            row = board.row_of[entry]
            n_moves += board.start[row + 1] - board.start[row] - 1
    return n_moves


@part
def _take_in(board, work, pairs, node, which, least):
    """Put the moves of a class's listed members into the heaps; False where there are no places left."""
    nodes, after = work.nodes, work.after
    while nodes[which, node] >= 0:
        entry = nodes[which, node]
        row = board.row_of[entry]
        begin, end = board.start[row], board.start[row + 1]
        if board.units[entry] < least:
            nodes[which, node], after[entry] = after[entry], UNLISTED
            continue
        if pairs.free[1] + (end - begin) > pairs.losses.size and not _has_free(pairs, end - begin):
            return False
        nodes[which, node], after[entry] = after[entry], NONE
        for other in range(begin, end):
            if other != entry:
                _push(board, pairs, node, entry, other)
    return True


@part
def _has_free(pairs, number):
    """Whether there are as many places that were taken before."""
    place = pairs.free[0]
    while place >= 0 and number > 0:
        place = pairs.moves[LEFT, place]
        number -= 1
    return number <= 0


@part
def _push(board, pairs, node, entry, other):
    """Put a move into the heap of its pair."""
    moves = pairs.moves
    place = pairs.free[0]
    if place >= 0:
        pairs.free[0] = moves[LEFT, place]
    else:
        place = pairs.free[1]
        pairs.free[1] += 1
    moves[FROM, place], moves[TO, place], moves[AGE, place] = entry, other, pairs.age[entry]
    moves[LEFT, place], moves[RIGHT, place] = NONE, NONE
    pairs.losses[place] = board.scores[entry] - board.scores[other]
    second = board.classes[other]
    pairs.tops[node, second] = _merged(pairs, pairs.tops[node, second], place)
    pairs.least[node, second] = min(pairs.least[node, second], pairs.losses[place])


@part
def _cheapest(board, work, pairs, node, second, least):
    """The cheapest move of a pair whose entry has the units, or -1."""
    moves = pairs.moves
    top = np.int64(pairs.tops[node, second])
    while top >= 0:
        entry = moves[FROM, top]
        if moves[AGE, top] == pairs.age[entry]:
            if board.units[entry] >= least:
                break
            pairs.age[entry] += 1  # its other moves are void, too, so that it may be listed anew
            work.after[entry] = UNLISTED
        below = _merged(pairs, moves[LEFT, top], moves[RIGHT, top])
        moves[LEFT, top], pairs.free[0] = pairs.free[0], top
        top = below
    pairs.tops[node, second] = top
    pairs.least[node, second] = pairs.losses[top] if top >= 0 else np.inf
    return top


@part
def _merged(pairs, one, other):
    """The top of two heaps made one: along their right sides, whose places are exchanged with the left ones."""
    moves, losses = pairs.moves, pairs.losses
    one, other = np.int64(one), np.int64(other)
    if one < 0:
        return other
    if other < 0:
        return one
    if losses[other] < losses[one]:
        one, other = other, one
    top = one
    while True:
        right = np.int64(moves[RIGHT, one])
        moves[RIGHT, one] = moves[LEFT, one]
        if right < 0:
            moves[LEFT, one] = other
            return top
        if losses[other] < losses[right]:
            right, other = other, right
        moves[LEFT, one] = right
        one = right
