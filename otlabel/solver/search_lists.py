"""Shortest paths where each class has a list of its members, in the order of their cheapest moves.

Costs are never negative. Potentials only fall, so that a move costs at least what it did when the list was sorted, less
what the class's own potential has fallen since: a search looks at the head of the list. That holds for rows whose
entries are capped, too: an entry that was full gets room by a move that costs nothing, so that coming to it costs as
much as coming to where that move led.

Source: Dijkstra, Numerische Mathematik 1 (1959).
"""

from __future__ import annotations

import numpy as np

from otlabel.solver.board import (
    AT,
    ENTERS,
    FIRST,
    FOUND,
    FRESH,
    HEAP,
    HOPS,
    LEAVES,
    LOOKED,
    MOVES,
    NONE,
    PLACE,
    SETTLED,
    UNLISTED,
    cost_of,
    has_room,
    part,
    whole,
)

LOOKS_AT_ONCE = 64  # moves out of a class before the next class has its turn, if that is nearer
LOOKS_A_SORT = 4  # times all moves out of a class that are looked at before its members are sorted anew


@part
def search(board, work, slack, tie, step, least):
    """Dijkstra from all overfull classes at once to the nearest underfull ones.

    The heap holds classes to settle and, as node K + k, the rest of settled class k's members, which cost at least
    what the next of them does: only moves that are shorter than the way to the found ones are looked at.
    Beyond the nearest it goes on for as much work again: one search then serves many paths. Of ways equally long the
    one of fewest moves counts. Returns how many it found, the distance up to which all classes are settled,
    and moves looked at.
    """
    nodes, distance, n_classes = work.nodes, work.distance, board.counts.size
    size, n_settled, n_found, n_looked, n_enough, farthest = 0, 0, 0, 0, np.inf, 0.0
    radius = whole(slack, step)
    for node in range(n_classes):
        distance[node], nodes[SETTLED, node], nodes[LEAVES, node], nodes[PLACE, node] = np.inf, NONE, NONE, NONE
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
            nodes[SETTLED, node] = n_settled
            n_settled += 1
            if board.targets[node] - board.counts[node] >= least:
                nodes[FOUND, n_found] = node
                n_found += 1
                farthest = reached
                if n_found == 1:
                    n_enough = 2.0 * n_looked + n_classes
            radius = min(radius, reached + whole(slack - work.dropped[node], step))
            if nodes[LOOKED, node] >= LOOKS_A_SORT * nodes[MOVES, node]:
                _sort(board, work, node, least)
            size, n_more = _reach_out(board, work, node, FRESH, radius, tie, step, least, size)
            n_looked += n_more
            nodes[AT, node] = NONE
        size, n_more = _reach_out(board, work, node % n_classes, FIRST, radius, tie, step, least, size)
        n_looked += n_more
    return n_found, (farthest if n_found > 0 else radius), n_looked


@part
def _reach_out(board, work, node, which, radius, tie, step, least, size):
    """Shorten the ways to other classes by the moves out of one; returns the heap's size, and moves looked at.

    Of the sorted members it takes those that are nearer than all else in the heap, and a few more.
    """
    nodes, distance, level, after = work.nodes, work.distance, work.level, work.after
    classes, scores, potentials = board.classes, board.scores, board.potentials
    reached, own, hops, n_looked = distance[node], potentials[node], nodes[HOPS, node] + 1, 0
    nearest = reached + own - 2 * tie
    last = nodes[AT, node] if which == FIRST else NONE
    entry = nodes[which, node] if last < 0 else after[last]
    while entry >= 0:
        if which == FIRST:
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
                if scores[other] + level[classes[other]] > mark and has_room(board, other):  # the first rules most out
                    second, cost = np.int64(classes[other]), cost_of(board, entry, other)
                    through = reached + (whole(cost, step) if cost > tie else 0.0)
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
                nodes[which, node] = following
            else:
                after[last] = following
        entry = following
    nodes[LOOKED, node] += n_looked
    return size, n_looked


@part
def _sort(board, work, node, least):
    """Put the members of a class in the order of their cheapest moves."""
    nodes, after, n_moves, first = work.nodes, work.after, 0, np.int64(NONE)
    for which in (FIRST, FRESH):
        entry = nodes[which, node]
        while entry >= 0:
            following = after[entry]
            after[entry] = UNLISTED
            if board.units[entry] >= least:
                row, cheapest = board.row_of[entry], np.inf
                for other in range(board.start[row], board.start[row + 1]):
                    if other != entry and has_room(board, other):
                        gained = board.scores[entry] - board.scores[other]
                        cheapest = min(cheapest, gained - board.potentials[board.classes[other]])
                n_moves += board.start[row + 1] - board.start[row]
                work.bound[entry], after[entry], first = cheapest, first, entry
            entry = following
    nodes[FIRST, node], nodes[FRESH, node] = _sorted_list(first, after, work.bound), NONE
    nodes[LOOKED, node], nodes[MOVES, node] = 0, n_moves


@part
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


@part
def _is_nearer(work, one, other):
    if work.distance[one] != work.distance[other]:
        return work.distance[one] < work.distance[other]
    return work.nodes[HOPS, one] < work.nodes[HOPS, other]


@part
def _rise(work, node):
    """Let a class that has come nearer rise in the heap from its place there."""
    nodes = work.nodes
    place = nodes[PLACE, node]
    while place > 0 and _is_nearer(work, node, nodes[HEAP, (place - 1) >> 1]):
        parent = nodes[HEAP, (place - 1) >> 1]
        nodes[HEAP, place], nodes[PLACE, parent] = parent, place
        place = (place - 1) >> 1
    nodes[HEAP, place], nodes[PLACE, node] = node, place


@part
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
