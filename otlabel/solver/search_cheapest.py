"""Shortest paths over the cheapest moves of each two classes: what a search settles, and which rows then move."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit
from otlabel.solver.board import NONE, part

NOBODY = -2  # in place of a row: a place that a class may leave free
ROW, LEFT, ENTERED = 0, 1, 2  # columns of moves
A_PATH = 4  # moves that there is room for, a class


class State(NamedTuple):
    """The classes and, after them, the hub that places which stay free are in."""

    falls: np.ndarray  # (K + 1,) float64: potentials, less those that losses are of
    counts: np.ndarray  # (K + 1,) int64
    targets: np.ndarray  # (K + 1,) int64
    widths: np.ndarray  # (K,) int64: places that a class may leave free ...
    inside: np.ndarray  # (K,) int64: ... of which so many are filled by nobody


class Found(NamedTuple):
    """What a search leaves for the next one to use again, and the moves that it found."""

    distances: np.ndarray  # (K + 1,)
    before: np.ndarray  # (K + 1,) the class that each is reached from
    settled: np.ndarray  # (K + 1,) bool
    passed: np.ndarray  # (K + 1,) bool: on a path that is taken
    ends: np.ndarray  # (K + 1,) underfull classes, the nearest first
    moves: np.ndarray  # (M, 3) row, the class it leaves, the class it enters


def nothing_found(n_nodes: int) -> Found:
    """Room for what a search finds."""
    return Found(
        np.empty(n_nodes),
        np.empty(n_nodes, np.int64),
        np.empty(n_nodes, np.bool_),
        np.empty(n_nodes, np.bool_),
        np.empty(n_nodes, np.int64),
        np.empty((A_PATH * n_nodes, 3), np.int64),
    )


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def search(cheapest, state, found):
    """Dijkstra from all overfull classes at once to underfull ones; potentials then fall by what paths leave over.

    Beyond the nearest it goes on for as much work again: one search then serves many paths, of which those are taken
    that share no move. Where the way leads over a pair of which no move is known, it ends there. Returns the number of
    moves, and the class to be looked at anew, or -1.
    """
    falls, counts, targets = state.falls, state.counts, state.targets
    distances, before, settled = found.distances, found.before, found.settled
    n_nodes = falls.size
    hub = n_nodes - 1
    for node in range(n_nodes):
        distances[node] = 0.0 if counts[node] > targets[node] else np.inf
        before[node], settled[node], found.passed[node] = NONE, False, False
    n_settled, n_ends, n_enough, radius, unknown = 0, 0, n_nodes, 0.0, NONE
    while n_settled < n_enough:
        node, reached = NONE, np.inf
        for other in range(n_nodes):
            if not settled[other] and distances[other] < reached:
                node, reached = other, distances[other]
        if node == NONE:
            break
        radius = reached
        source = before[node]
        if source >= 0 and source != hub and node != hub and cheapest.numbers[source, node] == 0:
            unknown = source
            break
        settled[node] = True
        n_settled += 1
        if counts[node] < targets[node]:
            found.ends[n_ends] = node
            n_ends += 1
            if n_ends == 1:
                n_enough = min(n_nodes, 2 * n_settled + 1)
        ahead = reached + falls[node]
        if node == hub:
            for other in range(hub):
                if state.inside[other] < state.widths[other]:
                    _reach(found, node, other, max(reached, ahead - falls[other]))
            continue
        least = cheapest.least[node]
        for other in range(hub):
            through = max(reached, ahead + least[other] - falls[other])
            if through < distances[other] and not settled[other]:
                distances[other], before[other] = through, node
        if state.inside[node] > 0:
            _reach(found, node, hub, max(reached, ahead - falls[hub]))
    for node in range(n_nodes):
        if settled[node] and distances[node] < radius:
            falls[node] -= radius - distances[node]
    return _taken(cheapest, state, found, n_ends), unknown


@part
def _reach(found, node, other, through):
    if through < found.distances[other] and not found.settled[other]:
        found.distances[other], found.before[other] = through, node


@part
def _taken(cheapest, state, found, n_ends):
    """The moves of paths that share none; counts follow."""
    counts, targets, before, moves = state.counts, state.targets, found.before, found.moves
    hub, n_moves = counts.size - 1, 0
    for end in found.ends[:n_ends]:
        node, n_after, is_free = end, n_moves, True
        while before[node] >= 0 and is_free and n_after < len(moves):
            left = before[node]
            row = NOBODY if hub in (left, node) else cheapest.rows[left, node, 0]
            is_free = not found.passed[node]
            for at in range(n_after):
                is_free = is_free and (moves[at, ROW] != row or row == NOBODY)
            moves[n_after, ROW], moves[n_after, LEFT], moves[n_after, ENTERED] = row, left, node
            n_after += 1
            node = left
        if not is_free or before[node] >= 0 or counts[node] <= targets[node] or counts[end] >= targets[end]:
            continue
        for at in range(n_moves, n_after):
            found.passed[moves[at, ENTERED]] = True
            if moves[at, ENTERED] == hub:
                state.inside[moves[at, LEFT]] -= 1
            elif moves[at, LEFT] == hub:
                state.inside[moves[at, ENTERED]] += 1
        counts[node] -= 1
        counts[end] += 1
        n_moves = n_after
    return n_moves
