"""Labels of the largest total score with exact class sizes, of which no group of rows may use a class too often.

    max_labels  sum_i s[i, labels_i]    subject to    #{i : labels_i = k} = size_k,
                                                      #{i in group p : labels_i = k} <= capacity

With potentials g of the classes the groups part: each has its own best labels for s + g. Then units move from classes
that have too many to such that have too few, along shortest paths over classes, each step of which is the cheapest way,
in any group, to have one row less in one class and one more in another. Groups are optimal for s + g all the way, so
that g proves the end.

Source: Murota, "Valuated matroid intersection", SIAM Journal on Discrete Mathematics 9 (1996): labels of a group are a
valuated matroid over the classes that it uses, and of shortest paths those with the fewest steps can be walked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit
from otlabel.sweep.pool import run_tasks, thread_count

TASKS_A_THREAD = 8  # groups differ in size
PATHS_A_CALL = 256  # after which an interrupt is heard
NONE = -1

kernel = njit(nogil=True, cache=True, error_model="numpy")
part = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


class Groups(NamedTuple):
    """Rows group by group, and what they have come to."""

    scores: np.ndarray  # (N, K) float64
    starts: np.ndarray  # (P + 1,) int64: where groups begin
    of_row: np.ndarray  # (N,) int64: group of each row
    labels: np.ndarray  # (N,) int64
    capacity: int  # rows of a group that a class may have


class Path(NamedTuple):
    """Of a search over classes."""

    distance: np.ndarray  # (K,) float64
    mover: np.ndarray  # (K,) int64: the row that comes in
    before: np.ndarray  # (K,) int64: where it comes from; NONE from outside
    queued: np.ndarray  # (K,) bool


class Steps(NamedTuple):
    """The cheapest step from each class to each other one, in each group that can make it, and in all."""

    losses: np.ndarray  # (N, K) float64: of group p in the places that its rows have, one for each class that it uses
    leaves: np.ndarray  # (N,) int64: the class of each of these places, or NONE
    least: np.ndarray  # (K, K) float64
    group: np.ndarray  # (K, K) int64: who makes it


def distinct_labels(
    scores: np.ndarray, groups: np.ndarray, capacity: int, sizes: np.ndarray, potentials: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels (N,), the potentials (K,) that prove them, and by how much others could gain at most: zero but rounding.

    Args:
        scores: (N, K) float64, finite.
        groups: (N,) whole numbers from 0 to P - 1. No group may have more than K capacity rows.
        capacity: rows of a group that a class may have, at least 1.
        sizes: (K,) whole numbers that sum to N.
        potentials: (K,) to start from; those of labels without capacities are near.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max(initial=-1) + 2))
    n_rows, n_classes = scores.shape
    there = Groups(scores[order], starts, groups[order], np.full(n_rows, NONE), capacity)
    g = potentials.astype(np.float64)
    n_groups = len(starts) - 1
    n_tasks = min(n_groups, TASKS_A_THREAD * thread_count())
    ends = [number * n_groups // n_tasks for number in range(n_tasks + 1)]
    run_tasks(lambda number: _fill(there, g, ends[number], ends[number + 1]), n_tasks)
    least = np.full((n_classes, n_classes), np.inf)
    steps = Steps(np.full(scores.shape, np.inf), np.full(n_rows, NONE), least, np.full(least.shape, NONE))
    run_tasks(lambda number: _find_steps(there, steps, ends[number], ends[number + 1]), n_tasks)
    _join(there, steps)
    excess = np.bincount(there.labels, minlength=n_classes) - sizes
    while _walk(there, steps, excess, g, PATHS_A_CALL):
        pass
    gaps = np.zeros(n_tasks)

    def judge(number: int) -> None:
        gaps[number] = _judge(there, steps, g, ends[number], ends[number + 1])

    run_tasks(judge, n_tasks)
    labels = np.empty(n_rows, np.int64)
    labels[order] = there.labels
    return labels, g, float(gaps.sum())


# ---- a group by itself ----


@kernel
def _fill(there, g, first, last):
    """The best labels for s + g of each of some groups: one row after the other comes in, along a shortest path."""
    n_classes = there.scores.shape[1]
    counts, path = np.empty(n_classes, np.int64), _no_path(n_classes)
    for group in range(first, last):
        counts[:] = 0
        start = there.starts[group]
        for row in range(start, there.starts[group + 1]):
            for k in range(n_classes):
                path.distance[k], path.mover[k], path.before[k] = -(there.scores[row, k] + g[k]), row, NONE
                path.queued[k] = counts[k] >= there.capacity
            enters = _search(there, g, start, row, counts, path)
            counts[enters] += 1
            _move_along(there, path, enters, NONE)


@part
def _no_path(n_classes):
    whole = np.empty(n_classes, np.int64)
    return Path(np.empty(n_classes), whole, whole.copy(), np.empty(n_classes, np.bool_))


@part
def _search(there, g, start, stop, counts, path):
    """The class with room that is the nearest of all, by way of full ones: one of those in it makes room, and so on."""
    scores, best = there.scores, NONE
    distance, mover, before, queued = path.distance, path.mover, path.before, path.queued
    for k in range(counts.size):
        if counts[k] < there.capacity and (best < 0 or distance[k] < distance[best]):
            best = k
    while True:
        nearest = NONE
        for k in range(counts.size):
            if queued[k] and (nearest < 0 or distance[k] < distance[nearest]):
                nearest = k
        if nearest < 0 or (best >= 0 and distance[nearest] >= distance[best]):
            return best  # since to leave a full class costs something
        queued[nearest] = False
        for other in range(start, stop):
            if there.labels[other] != nearest:
                continue
            base = distance[nearest] + (scores[other, nearest] + g[nearest])
            for k in range(counts.size):
                reached = base - (scores[other, k] + g[k])
                if reached < distance[k] and k != nearest and not _comes_from(before, nearest, k):
                    distance[k], mover[k], before[k] = reached, other, nearest
                    if counts[k] >= there.capacity:
                        queued[k] = True
                    elif best < 0 or reached < distance[best]:
                        best = k


@part
def _move_along(there, path, enters, first):
    """Each row of a path takes the class that the one after it leaves, from the end back to the first class."""
    while enters != first:
        there.labels[path.mover[enters]], enters = enters, path.before[enters]


@part
def _comes_from(before, node, other):
    """Whether the path to a node leads through another one: only rounding could make a circle shorter."""
    while node >= 0:
        if node == other:
            return True
        node = before[node]
    return False


@part
def _steps_of(there, group, places, losses):
    """What a group's labels lose at least where it has one row less in one class it uses and one more in another.

    In between, rows may move through classes that are full. Each class has a place in `places`, or NONE, and each
    place a row in `losses`. Returns how many are used.
    """
    scores, labels = there.scores, there.labels
    n_classes, n_used = scores.shape[1], 0
    counts = np.zeros(n_classes, np.int64)
    places[:] = NONE
    for row in range(there.starts[group], there.starts[group + 1]):
        own = labels[row]
        if places[own] < 0:
            places[own] = n_used
            losses[n_used, :] = np.inf
            n_used += 1
        counts[own] += 1
        for k in range(n_classes):
            losses[places[own], k] = min(losses[places[own], k], scores[row, own] - scores[row, k])
    for between in range(n_classes):
        if counts[between] < there.capacity:
            continue
        through = places[between]
        for place in range(n_used):
            to_there = losses[place, between]
            if place != through:
                for k in range(n_classes):
                    losses[place, k] = min(losses[place, k], to_there + losses[through, k])
    for own in range(n_classes):
        if places[own] >= 0:
            losses[places[own], own] = np.inf
    return n_used


@part
def _keep_steps(there, steps, group, places, losses, n_used):
    """Steps that end where there is room are what others see."""
    start = there.starts[group]
    counts = np.zeros(places.size, np.int64)
    for row in range(start, there.starts[group + 1]):
        counts[there.labels[row]] += 1
        steps.leaves[row] = NONE
    for own in range(places.size):
        if places[own] >= 0:
            steps.leaves[start + places[own]] = own
    for place in range(n_used):
        for k in range(places.size):
            has_room = counts[k] < there.capacity
            steps.losses[start + place, k] = losses[place, k] if has_room else np.inf


@kernel
def _find_steps(there, steps, first, last):
    """Those of some groups."""
    n_classes = there.scores.shape[1]
    places = np.empty(n_classes, np.int64)
    losses = np.empty((n_classes, n_classes))
    for group in range(first, last):
        n_used = _steps_of(there, group, places, losses)
        _keep_steps(there, steps, group, places, losses, n_used)


# ---- all groups ----


@kernel
def _join(there, steps):
    """The cheapest steps of all."""
    for row in range(steps.leaves.size):
        if steps.leaves[row] >= 0:
            _take_least(there, steps, row, steps.leaves[row])


@part
def _renew(there, steps, group):
    """A group has moved: its steps are others now."""
    n_classes = there.scores.shape[1]
    places = np.empty(n_classes, np.int64)
    losses = np.empty((n_classes, n_classes))
    n_used = _steps_of(there, group, places, losses)
    _keep_steps(there, steps, group, places, losses, n_used)
    is_lost = steps.group == group
    for own in range(n_classes):
        for k in range(n_classes):
            if is_lost[own, k]:
                steps.least[own, k], steps.group[own, k] = np.inf, NONE
    for row in range(there.starts[group], there.starts[group + 1]):
        if steps.leaves[row] >= 0:
            _take_least(there, steps, row, steps.leaves[row])
    has_lost = np.empty(n_classes, np.bool_)
    for own in range(n_classes):
        has_lost[own] = is_lost[own].any()
    for other in range(there.starts.size - 1):
        for row in range(there.starts[other], there.starts[other + 1]):
            own = steps.leaves[row]
            if own < 0:  # nor has any place after it a class
                break
            if has_lost[own]:
                for k in range(n_classes):
                    if is_lost[own, k] and steps.losses[row, k] < steps.least[own, k]:
                        steps.least[own, k], steps.group[own, k] = steps.losses[row, k], other


@part
def _take_least(there, steps, row, own):
    """Steps from the class of a place, where they are the cheapest so far."""
    for k in range(steps.least.shape[0]):
        if steps.losses[row, k] < steps.least[own, k]:
            steps.least[own, k], steps.group[own, k] = steps.losses[row, k], there.of_row[row]


@part
def _make_step(there, g, group, leaves, enters):
    """The group's cheapest way from one class to another; whether there is one."""
    n_classes, start, stop = there.scores.shape[1], there.starts[group], there.starts[group + 1]
    counts, path = np.zeros(n_classes, np.int64), _no_path(n_classes)
    for row in range(start, stop):
        counts[there.labels[row]] += 1
    if counts[enters] >= there.capacity or not counts[leaves]:
        return False
    for k in range(n_classes):
        path.distance[k], path.before[k], path.queued[k] = np.inf, NONE, k == leaves
        if k != enters:
            counts[k] = there.capacity  # so that the path ends there, though others have room
    path.distance[leaves] = 0.0
    _search(there, g, start, stop, counts, path)
    _move_along(there, path, enters, leaves)
    return True


@kernel
def _walk(there, steps, excess, g, most):
    """Up to so many units along shortest paths to where they lack; whether some are left."""
    n_classes = excess.size
    distance, hops = np.empty(n_classes), np.empty(n_classes, np.int64)
    before, settled = np.empty(n_classes, np.int64), np.empty(n_classes, np.bool_)
    for _ in range(most):
        for k in range(n_classes):
            is_source = excess[k] > 0
            distance[k], hops[k], before[k], settled[k] = 0.0 if is_source else np.inf, 0, NONE, False
        target = NONE
        while True:
            node = NONE
            for k in range(n_classes):
                if settled[k] or distance[k] == np.inf:
                    continue
                if node < 0 or distance[k] < distance[node] or (distance[k] == distance[node] and hops[k] < hops[node]):
                    node = k
            if node < 0:
                break
            settled[node] = True
            if excess[node] < 0:
                target = node
                break
            for k in range(n_classes):
                if settled[k] or steps.least[node, k] == np.inf:
                    continue
                reached = distance[node] + max(steps.least[node, k] + (g[node] - g[k]), 0.0)
                if reached < distance[k] or (reached == distance[k] and hops[node] + 1 < hops[k]):
                    distance[k], hops[k], before[k] = reached, hops[node] + 1, node
        if target < 0:
            return False
        farthest = distance[target]
        for k in range(n_classes):
            g[k] += min(distance[k], farthest)
        _follow(there, steps, excess, g, before, target)
    return True


@part
def _follow(there, steps, excess, g, before, target):
    """The steps of a path, the last first: each leaves its group with other steps than before."""
    node = target
    while before[node] >= 0:
        leaves = before[node]
        group = steps.group[leaves, node]
        if group < 0 or not _make_step(there, g, group, leaves, node):
            return
        excess[leaves] -= 1
        excess[node] += 1
        _renew(there, steps, group)
        node = leaves


@kernel
def _judge(there, steps, g, first, last):
    """By how much labels of some groups could gain at most, by g and the prices of the places in full classes.

    The price is what it loses at least to have one row less there, and one more where there is room.
    """
    n_classes, gap = there.scores.shape[1], 0.0
    places, prices = np.empty(n_classes, np.int64), np.empty(n_classes)
    losses = np.empty((n_classes, n_classes))
    counts = np.empty(n_classes, np.int64)
    for group in range(first, last):
        _steps_of(there, group, places, losses)
        counts[:] = 0
        for row in range(there.starts[group], there.starts[group + 1]):
            counts[there.labels[row]] += 1
        is_full = counts.min() >= there.capacity
        for own in range(n_classes):
            prices[own] = 0.0
            if counts[own] < there.capacity or (is_full and own == 0):
                continue
            prices[own] = np.inf
            for k in range(n_classes):
                if counts[k] < there.capacity or (is_full and k == 0):
                    prices[own] = min(prices[own], losses[places[own], k] + (g[own] - g[k]))
        for row in range(there.starts[group], there.starts[group + 1]):
            own, best = there.labels[row], 0.0
            for k in range(n_classes):
                gain = (there.scores[row, k] - there.scores[row, own]) + ((g[k] - prices[k]) - (g[own] - prices[own]))
                best = max(best, gain)
            gap += best
    return gap
