"""Exact labels of scores that stay in the cache, compiled as a whole: samples moved along shortest paths over classes.

What `rounding.py` and `repair.py` do for samples that count one each, where few are to be moved: a search looks at all
members of each class that it comes to.

Source: Ahuja, Magnanti, Orlin, "Network Flows" (1993), section 9.7.
"""

from __future__ import annotations

import numpy as np

from otlabel.compiling import njit
from otlabel.solver.small_plan import part
from otlabel.sweep.numerics import FAST, LOWEST, larger, smaller

NONE, NEW, SETTLED = -1, -1, -2
LEAST_LOOKS, LOOKS_A_SCORE = 1 << 16, 3  # of all searches, before this gives up: rows that are tied need other means
SETTLINGS = 8  # what is between two classes that may not move comes free when these have
WIDER, TRIES = 4.0, 6  # times as wide a slack where candidates do not suffice, and how often


@part()
def _find(scores, g, slack, labels, u, at, start, rows, classes, below, counts):
    """The rows with more than one class within `slack` of their label, and these; the best class where there is none.

    Of each of them `below` says how far it is below the label, which is entry at[r] of the r-th such row. Returns how
    many rows there are, and how many other classes are as good as a label.
    """
    n_classes, n_found, n_entries, n_tied = g.size, 0, 0, 0
    for k in range(n_classes):
        counts[k] = 0
    for i in range(scores.shape[0]):
        top = -np.inf
        for k in range(n_classes):
            value = scores[i, k] + g[k]
            u[k] = value
            top = larger(top, value)
        if labels[i] < 0:
            labels[i] = 0
            while u[labels[i]] < top:
                labels[i] += 1
        own = u[labels[i]]
        counts[labels[i]] += 1
        floor, size = larger(own - slack, LOWEST), 0
        for k in range(n_classes):
            size += u[k] >= floor
        if size < 2:
            continue
        rows[n_found], start[n_found] = i, n_entries
        for k in range(n_classes):
            if u[k] >= floor:
                if k == labels[i]:
                    at[n_found] = n_entries
                classes[n_entries], below[n_entries] = k, smaller(u[k] - own, 0.0)
                n_tied += u[k] == own
                n_entries += 1
        n_found += 1
    start[n_found] = n_entries
    return n_found, n_tied - n_found


@part()
def _add_free(g, free, labels, n_rows, n_found, at, start, rows, classes, below, counts, targets):
    """One more row for each of some classes, whose unit is in the class, or in the hub beside it at a score of zero.

    Where it has no label yet it goes where the class's potential says, in ties to a class that has room.
    """
    hub, n_entries = g.size, start[n_found]
    counts[hub] = 0
    for i in range(free.size):
        k = free[i]
        if labels[n_rows + i] < 0:
            labels[n_rows + i] = k if g[k] > 0 or (g[k] == 0 and counts[k] < targets[k]) else hub
        inside = labels[n_rows + i] == k
        counts[k if inside else hub] += 1
        rows[n_found], start[n_found], at[n_found] = n_rows + i, n_entries, n_entries + (not inside)
        classes[n_entries], classes[n_entries + 1] = k, hub
        below[n_entries] = 0.0 if inside else smaller(g[k], 0.0)
        below[n_entries + 1] = smaller(-g[k], 0.0) if inside else 0.0
        n_found, n_entries = n_found + 1, n_entries + 2
    start[n_found] = n_entries
    return n_found


@part()
def _search(counts, targets, fallen, start, classes, below, at, head, after, distance, by_row, by, heap, where, radius):
    """The nearest underfull class, or -1, how far it is from overfull ones, and how many moves were looked at.

    `where` is then SETTLED on the way.
    """
    size, n_looked = 0, 0
    for k in range(counts.size):
        distance[k], where[k], by_row[k] = np.inf, NEW, NONE
        if counts[k] > targets[k]:
            distance[k], where[k], heap[size] = 0.0, size, k
            size += 1
    while size > 0:
        node = heap[0]
        reached = distance[node]
        if reached >= radius:
            break
        where[node] = SETTLED
        size -= 1
        last, hole = heap[size], 0
        while 2 * hole + 1 < size:
            child = 2 * hole + 1
            if child + 1 < size and distance[heap[child + 1]] < distance[heap[child]]:
                child += 1
            if distance[heap[child]] >= distance[last]:
                break
            heap[hole] = heap[child]
            where[heap[hole]] = hole
            hole = child
        if size > 0:
            heap[hole], where[last] = last, hole
        if counts[node] < targets[node]:
            return node, reached, n_looked
        row = head[node]
        while row >= 0:
            n_looked += start[row + 1] - start[row]
            from_here = reached + below[at[row]] - fallen[node]
            for entry in range(start[row], start[row + 1]):
                k = classes[entry]
                through = larger(from_here - (below[entry] - fallen[k]), reached)
                if through < distance[k]:
                    distance[k], by_row[k], by[k] = through, row, entry
                    if where[k] == NEW:
                        where[k] = size
                        size += 1
                    hole = where[k]
                    while hole > 0 and distance[heap[(hole - 1) >> 1]] > through:
                        heap[hole] = heap[(hole - 1) >> 1]
                        where[heap[hole]] = hole
                        hole = (hole - 1) >> 1
                    heap[hole], where[k] = k, hole
            row = after[row]
    return NONE, radius, n_looked


@part()
def _move(target, counts, by_row, by, classes, at, head, after, prior):
    """One sample down each move of the path that leads to a class."""
    node = target
    counts[target] += 1
    while by_row[node] >= 0:
        row, source = by_row[node], np.int64(classes[at[by_row[node]]])
        if prior[row] >= 0:
            after[prior[row]] = after[row]
        else:
            head[source] = after[row]
        if after[row] >= 0:
            prior[after[row]] = prior[row]
        at[row], after[row], prior[row] = by[node], head[node], NONE
        if head[node] >= 0:
            prior[head[node]] = row
        head[node] = row
        node = source
    counts[node] -= 1


@part()
def _settle(n_found, start, classes, below, at, fallen, rise, fall, room):
    """Move potentials towards the middle of where they may be, none further than `room`: labels are then no ties.

    A class may fall by what its members are ahead of their next class, and rise by what others' are ahead of it; all
    may take half of that at once.
    """
    for k in range(fallen.size):
        rise[k], fall[k] = room, room
    for row in range(n_found):
        label = classes[at[row]]
        own = below[at[row]] - fallen[label]
        for entry in range(start[row], start[row + 1]):
            k = classes[entry]
            if k != label:
                ahead = larger(own - (below[entry] - fallen[k]), 0.0)
                rise[k], fall[label] = smaller(rise[k], ahead), smaller(fall[label], ahead)
    for k in range(fallen.size):
        fallen[k] -= 0.5 * (rise[k] - fall[k])


@njit(nogil=True, error_model="numpy", fastmath=FAST, _nrt=False, no_cfunc_wrapper=True, cache=True)
def place(
    scores, g, free, slack, most, order, labels, u, fallen, distance, counts, targets, head, by_row, by, heap,
    where, at, start, rows, after, prior, classes, below,
):  # fmt: skip
    """Move samples from their best classes until these have the target sizes, if at most so many are to be moved.

    Labels that are -1 become the best class of scores (N, K) + g (K,), and g what proves the labels. Returns how many
    are not where they belong yet, how often scores were looked through, how many paths there were, and whether nothing
    was done because rows have several best classes, of which chance is to choose. Of equal rows the first in `order`,
    row numbers, is moved. The classes in `free` may have one less than their target, such that the last target, that of
    the hub, is met too: each of them has one row more, at the end of the labels.
    """
    hub, n_tries, n_paths, n_looked, surplus = g.size, 0, 0, 0, 1
    while surplus > 0 and n_tries < TRIES:
        n_found, n_tied = _find(scores, g, slack, labels, u, at, start, rows, classes, below, counts)
        n_found = _add_free(g, free, labels, scores.shape[0], n_found, at, start, rows, classes, below, counts, targets)
        n_tries += 1
        surplus = 0
        for k in range(counts.size):
            if counts[k] > targets[k]:
                surplus += counts[k] - targets[k]
            fallen[k], head[k] = 0.0, NONE
        if surplus > most or (n_tied > 0 and n_tries == 1):
            return surplus, n_tries, n_paths, n_tied > 0
        for row in order:  # of equal rows the first one moves
            if row >= n_found:
                continue
            k = classes[at[row]]
            after[row], prior[row] = head[k], NONE
            if head[k] >= 0:
                prior[head[k]] = row
            head[k] = row
        furthest, target = 0.0, 0
        while surplus > 0 and target >= 0:
            target, radius, n_more = _search(
                counts, targets, fallen, start, classes, below, at, head, after, distance, by_row, by, heap, where,
                slack - furthest,
            )  # fmt: skip
            n_looked += n_more
            if n_looked > LEAST_LOOKS + LOOKS_A_SCORE * scores.size:
                return surplus, n_tries, n_paths, False
            for k in range(counts.size):
                if where[k] == SETTLED and distance[k] < radius:
                    fallen[k] += radius - distance[k]
                    furthest = larger(furthest, fallen[k])
            if target >= 0:
                _move(target, counts, by_row, by, classes, at, head, after, prior)
                n_paths += 1
                surplus -= 1
        if surplus == 0:
            for _ in range(SETTLINGS):
                _settle(n_found, start, classes, below, at, fallen, distance, u, (slack - furthest) / SETTLINGS)
        for row in range(n_found):
            labels[rows[row]] = classes[at[row]]
        for k in range(g.size):
            g[k] -= fallen[k] - fallen[hub]
        slack *= WIDER
    return surplus, n_tries, n_paths, False


@njit(nogil=True, error_model="numpy", fastmath=FAST, _nrt=False, no_cfunc_wrapper=True, cache=True)
def prove(scores, g, labels, best, own):
    """Write the largest score + potential of each row, and that at its label: of -1, which becomes it, the best one."""
    for i in range(scores.shape[0]):
        top, label = -np.inf, 0
        for k in range(g.size):
            top = larger(top, scores[i, k] + g[k])
        if labels[i] < 0:
            while scores[i, label] + g[label] < top:
                label += 1
            labels[i] = label
        best[i], own[i] = top, scores[i, labels[i]] + g[labels[i]]
