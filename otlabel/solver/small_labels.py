"""Exact labels of scores that stay in the cache, compiled as a whole: samples moved along shortest paths over classes.

What `rounding.py` and `repair.py` do for samples that count one each, where few are to be moved: a search looks at all
members of each class that it comes to.

Source: Ahuja, Magnanti, Orlin, "Network Flows" (1993), section 9.7.
"""

from __future__ import annotations

import numpy as np

from otlabel.solver.small_blocks import LANES, following, narrowed, near, part, score, whole
from otlabel.sweep.numerics import LOWEST, larger, smaller

NONE, NEW, SETTLED = -1, -1, -2
CLASS, ROW, ENTRY = 0, 1, 2  # rows of `pairs`
ROOM = 4  # times the entries that there are, for lists of pairs: classes whose members change get new ones
LEAST_LOOKS, LOOKS_A_SCORE = 1 << 16, 3  # of all searches, before this gives up: rows that are tied need other means
SETTLINGS = 8  # what is between two classes that may not move comes free when these have
WIDER, TRIES = 2.0, 10  # times as wide a slack where candidates do not suffice, and how often


@part()
def _find(
    blocks, known, stored, features, factor, g, single, slack, labels, n_rows, tops, floors, n_near, total, at,
    start, stop, rows, classes, below, counts,
):  # fmt: skip
    """The rows with more than one class within `slack` of their label, and these; the best class where there is none.

    Of each of them `below` says how far it is below the label, which is entry at[r] of the r-th such row, whose entries
    are start[r] to stop[r]. Returns how many rows and entries there are, and how many other classes are as good as a
    label.
    """
    n_blocks, n_classes, n_found, n_entries, n_tied = blocks.shape[0], g.size, 0, 0, 0
    for k in range(n_classes):
        counts[k] = 0
    largest = narrowed(g, single)
    for block in range(n_blocks):
        near(blocks, block, known, single, np.float32(slack), largest, tops, floors, n_near, total)
        for lane in range(LANES):
            row, k = lane * n_blocks + block, np.int32(0)
            if row >= n_rows:
                break
            start[row] = n_entries
            if n_near[lane] == 1 and (labels[row] < 0 or labels[row] == total[lane]):
                labels[row] = total[lane]
            else:
                is_missing = labels[row] >= 0
                for n_left in range(n_near[lane], 0, -1):
                    k = following(blocks, block, lane, single, floors, k, n_left, total[lane])
                    classes[n_entries] = k
                    is_missing &= k != labels[row]
                    total[lane] -= k
                    n_entries += 1
                    k += np.int32(1)
                if is_missing:  # of a label only rounding does that
                    classes[n_entries] = labels[row]
                    n_entries += 1
            stop[row] = n_entries
    for row in range(n_rows):  # in the order in which features lie
        first, size, label, own = start[row], 0, labels[row], -np.inf
        for entry in range(first, stop[row]):
            k = classes[entry]
            below[entry] = score(stored, features, factor, row, k) + g[k]
            if k == label or (labels[row] < 0 and (below[entry] > own or label < 0)):
                own, label = below[entry], k
        labels[row] = label
        counts[label] += 1
        floor, tied = larger(own - slack, LOWEST), -1
        for entry in range(first, stop[row]):
            if below[entry] >= floor:
                k, value = classes[entry], below[entry]
                if k == label:
                    at[n_found] = first + size
                tied += value == own
                classes[first + size], below[first + size] = k, smaller(value - own, 0.0)
                size += 1
        if size > 1:
            rows[n_found], start[n_found], stop[n_found] = row, first, first + size
            n_tied += tied
            n_found += 1
    return n_found, n_entries, n_tied


@part()
def _add_free(g, free, labels, n_rows, n_found, n_entries, at, start, stop, rows, classes, below, counts, targets):
    """One more row for each of some classes, whose unit is in the class, or in the hub beside it at a score of zero.

    Where it has no label yet it goes where the class's potential says, in ties to a class that has room.
    """
    hub = g.size
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
        n_entries += 2
        stop[n_found] = n_entries
        n_found += 1
    return n_found, n_entries


@part()
def _pair(
    node, start, stop, classes, below, at, head, after, first, last, pairs, losses, slot, end, limit
):  # fmt: skip
    """List the cheapest move from a class to each other one, behind `end`; returns how far the list goes.

    Rows of pairs (3, P): the class, the sample and its entry. If there is no room, all lists are to be made anew.
    """
    n_entries, row = 0, head[node]
    while row >= 0:
        n_entries += stop[row] - start[row]
        row = after[row]
    if end + n_entries > limit:
        end = 0
        for k in range(first.size):
            first[k] = NONE
    first[node], row = end, head[node]
    while row >= 0:
        own = below[at[row]]
        for entry in range(start[row], stop[row]):
            k, loss = classes[entry], own - below[entry]
            if entry == at[row]:
                continue
            pair = slot[k]
            if pair < 0:
                slot[k] = pair = end
                pairs[CLASS, pair], losses[pair] = k, np.inf
                end += 1
            if loss < losses[pair]:
                losses[pair], pairs[ROW, pair], pairs[ENTRY, pair] = loss, row, entry
        row = after[row]
    for pair in range(first[node], end):
        slot[pairs[CLASS, pair]] = NONE
    last[node] = end
    return end


@part()
def _search(
    counts, targets, fallen, start, stop, classes, below, at, head, after, first, last, pairs, losses, slot, end, limit,
    distance, by_row, by, origin, heap, where, radius,
):  # fmt: skip
    """The nearest underfull class, or -1, how far it is from overfull ones, and how many moves were looked at.

    `where` is then SETTLED on the way. Last comes how far the lists of pairs go.
    """
    size, n_looked = 0, 0
    for k in range(counts.size):
        distance[k], where[k], origin[k] = np.inf, NEW, NONE
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
        final, hole = heap[size], 0
        while 2 * hole + 1 < size:
            child = 2 * hole + 1
            if child + 1 < size and distance[heap[child + 1]] < distance[heap[child]]:
                child += 1
            if distance[heap[child]] >= distance[final]:
                break
            heap[hole] = heap[child]
            where[heap[hole]] = hole
            hole = child
        if size > 0:
            heap[hole], where[final] = final, hole
        if counts[node] < targets[node]:
            return node, reached, n_looked, end
        if first[node] < 0:
            end = _pair(
                node, start, stop, classes, below, at, head, after, first, last, pairs, losses, slot, end, limit
            )
        n_looked += last[node] - first[node]
        from_here = reached - fallen[node]
        for pair in range(first[node], last[node]):
            k = pairs[CLASS, pair]
            through = larger(from_here + losses[pair] + fallen[k], reached)
            if through < distance[k]:
                distance[k], by_row[k], by[k], origin[k] = through, pairs[ROW, pair], pairs[ENTRY, pair], node
                if where[k] == NEW:
                    where[k] = size
                    size += 1
                hole = where[k]
                while hole > 0 and distance[heap[(hole - 1) >> 1]] > through:
                    heap[hole] = heap[(hole - 1) >> 1]
                    where[heap[hole]] = hole
                    hole = (hole - 1) >> 1
                heap[hole], where[k] = k, hole
    return NONE, radius, n_looked, end


@part()
def _move(target, counts, by_row, by, origin, at, head, after, prior, first):
    """One sample down each move of the path that leads to a class."""
    node = target
    counts[target] += 1
    while origin[node] >= 0:
        row, source = by_row[node], origin[node]
        if prior[row] >= 0:
            after[prior[row]] = after[row]
        else:
            head[source] = after[row]
        if after[row] >= 0:
            prior[after[row]] = prior[row]
        at[row], after[row], prior[row] = by[node], head[node], NONE
        if head[node] >= 0:
            prior[head[node]] = row
        head[node], first[node] = row, NONE
        node = source
    counts[node] -= 1
    first[node] = NONE


@part()
def _settle(first, last, pairs, losses, fallen, rise, fall, room):
    """Move potentials towards the middle of where they may be, none further than `room`: labels are then no ties.

    A class may fall by what its members are ahead of their next class, and rise by what others' are ahead of it; all
    may take half of that at once.
    """
    for k in range(fallen.size):
        rise[k], fall[k] = room, room
    for node in range(fallen.size):
        for pair in range(first[node], last[node]):
            k = pairs[CLASS, pair]
            ahead = larger(losses[pair] - fallen[node] + fallen[k], 0.0)
            rise[k], fall[node] = smaller(rise[k], ahead), smaller(fall[node], ahead)
    for k in range(fallen.size):
        fallen[k] -= 0.5 * (rise[k] - fall[k])


@whole(cache=True)
def place(
    blocks, known, stored, features, factor, g, free, slack, most, order, labels, single, tops, floors, n_near, total,
    fallen, distance, swing, counts, targets, head, by_row, by, origin, first, last, slot, heap, where, at, start,
    stop, rows, after, prior, classes, below, pairs, losses,
):  # fmt: skip
    """Move samples from their best classes until these have the target sizes, if at most so many are to be moved.

    Labels that are -1 become the best class of scores + g (K,), and g what proves the labels. Returns how many
    are not where they belong yet, how often scores were looked through, how many paths there were, and whether nothing
    was done because rows have several best classes, of which chance is to choose. Of equal rows the first in `order`,
    row numbers, is moved. The classes in `free` may have one less than their target, such that the last target, that of
    the hub, is met too: each of them has one row more, at the end of the labels.
    """
    hub, n_rows, n_tries, n_paths, n_looked, surplus = g.size, labels.size - free.size, 0, 0, 0, 1
    while surplus > 0 and n_tries < TRIES:
        n_found, n_entries, n_tied = _find(
            blocks, known, stored, features, factor, g, single, slack, labels, n_rows, tops, floors, n_near, total, at,
            start, stop, rows, classes, below, counts,
        )  # fmt: skip
        n_found, n_entries = _add_free(
            g, free, labels, n_rows, n_found, n_entries, at, start, stop, rows, classes, below, counts, targets
        )
        n_tries += 1
        surplus = 0
        for k in range(counts.size):
            if counts[k] > targets[k]:
                surplus += counts[k] - targets[k]
            fallen[k], head[k], first[k], slot[k] = 0.0, NONE, NONE, NONE
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
        furthest, target, end, limit = 0.0, 0, 0, min(ROOM * n_entries, losses.size)
        while surplus > 0 and target >= 0:
            target, radius, n_more, end = _search(
                counts, targets, fallen, start, stop, classes, below, at, head, after, first, last, pairs, losses, slot,
                end, limit, distance, by_row, by, origin, heap, where, slack - furthest,
            )  # fmt: skip
            n_looked += n_more
            if n_looked > LEAST_LOOKS + LOOKS_A_SCORE * n_rows * g.size:
                return surplus, n_tries, n_paths, False
            for k in range(counts.size):
                if where[k] == SETTLED and distance[k] < radius:
                    fallen[k] += radius - distance[k]
                    furthest = larger(furthest, fallen[k])
            if target >= 0:
                _move(target, counts, by_row, by, origin, at, head, after, prior, first)
                n_paths += 1
                surplus -= 1
        if surplus == 0:
            for _ in range(2):  # if there is no room for lists that are left out, all begin anew, and fit
                for k in range(counts.size):
                    if first[k] < 0:
                        end = _pair(
                            k,
                            start,
                            stop,
                            classes,
                            below,
                            at,
                            head,
                            after,
                            first,
                            last,
                            pairs,
                            losses,
                            slot,
                            end,
                            limit,
                        )
            for _ in range(SETTLINGS):
                _settle(first, last, pairs, losses, fallen, distance, swing, (slack - furthest) / SETTLINGS)
        for row in range(n_found):
            labels[rows[row]] = classes[at[row]]
        for k in range(g.size):
            g[k] -= fallen[k] - fallen[hub]
        slack *= WIDER
    return surplus, n_tries, n_paths, False


@whole(cache=True)
def prove(
    blocks, known, stored, features, factor, g, labels, best, own, chosen, single, tops, floors, n_near, total
):  # fmt: skip
    """Write the largest score + potential of each row, that at its label, and the score there.

    A label of -1 becomes the best one.
    """
    n_blocks, largest = blocks.shape[0], narrowed(g, single)
    for block in range(n_blocks):
        near(blocks, block, known, single, np.float32(0), largest, tops, floors, n_near, total)
        for lane in range(LANES):
            row = lane * n_blocks + block
            if row >= labels.size:
                break
            label, best[row], k = labels[row], -np.inf, np.int32(0)
            if n_near[lane] == 1 and (label < 0 or label == total[lane]):
                labels[row] = total[lane]
                continue
            for n_left in range(n_near[lane], 0, -1):
                k = following(blocks, block, lane, single, floors, k, n_left, total[lane])
                if k != label:
                    value = score(stored, features, factor, row, k) + g[k]
                    if label < 0 and (value > best[row] or labels[row] < 0):
                        labels[row] = k
                    best[row] = larger(best[row], value)
                total[lane] -= k
                k += np.int32(1)
    for row in range(labels.size):  # in the order in which features lie
        chosen[row] = score(stored, features, factor, row, labels[row])
        own[row] = chosen[row] + g[labels[row]]
        best[row] = larger(best[row], own[row])
