"""Rows that take several classes each, compiled by numba: the classes near each row's k-th best, and sums over lists.

The entropic plan of such a row is the capped softmax q = 1 / (1 + exp((t - u) / epsilon)), with t such that it sums to
k. With e = exp(u / epsilon) and X = exp(t / epsilon), up to a common factor, q = e / (e + X): no exponential is taken
while X is looked for. What the k best classes lack of one is then what all others have: log of the one over the other
rises with log X, nearly as a straight line, so that Newton's steps find its zero from anywhere.
"""

from __future__ import annotations

import numpy as np

from otlabel.compiling import njit
from otlabel.sweep.lists import LOWEST_LISTED
from otlabel.sweep.numerics import FAST, FLAGS, LOWEST, append_near, exp, grown, part, widen

CEILING = 20.0, 40.0  # in float32 and float64: where exp(-x) is nothing beside one
STEPS = 40  # of Newton's, far more than it takes
LONGEST_STEP = 20.0  # of log X
ENOUGH = 1e-3, 1e-7  # a step that long is followed by one of no more than its square: rounding
SMALL_PRODUCT = 1e-150  # of which the logarithm is taken before it falls on


@part()
def _largest(u, number, tops):
    """Fill `tops` with the largest of the first so many of u, from large to small; -inf where there are too few."""
    last = tops.size - 1
    for j in range(tops.size):
        tops[j] = -np.inf
    for at in range(number):
        value = u[at]
        if value > tops[last]:
            j = last
            while j > 0 and tops[j - 1] < value:
                tops[j] = tops[j - 1]
                j -= 1
            tops[j] = value


@njit(fastmath=FAST, nogil=True, cache=True)
def near_block(scores, potentials, k, width, labels):
    """The classes of each row of a dense block whose u = scores + potentials is within `width` of its k-th largest.

    In the precision of the potentials; those of the labels (n, k) as well, if there are any, and what lies between.
    Returns how many each row has, and, row after row, classes and stored scores.
    """
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, potentials.dtype)
    tops = np.empty(k, potentials.dtype)
    near = np.zeros(-(-n_classes // FLAGS) * FLAGS, np.uint8)
    words = near.view(np.uint64)
    reach = np.empty(1, potentials.dtype)
    reach[0] = width
    lowest = LOWEST_LISTED if u.itemsize == 4 else LOWEST
    sizes, n_entries = np.empty(n_rows, np.int32), 0
    classes = np.empty(16 * n_rows + 2 * n_classes, np.int32)
    values = np.empty(16 * n_rows + 2 * n_classes, scores.dtype)
    for i in range(n_rows):
        for at in range(n_classes):
            u[at] = widen(scores[i, at]) + potentials[at]
        _largest(u, n_classes, tops)
        floor = tops[k - 1] - reach[0]
        for j in range(labels.shape[1]):
            if labels[i, j] >= 0:
                floor = min(floor, u[labels[i, j]])
        floor = max(floor, u.dtype.type(lowest))
        before = n_entries
        while n_entries + n_classes + FLAGS > classes.size:
            classes, values = grown(classes), grown(values)
        n_entries = append_near(u, floor, near, words, classes, n_entries)
        for entry in range(before, n_entries):
            values[entry] = scores[i, classes[entry]]
        sizes[i] = n_entries - before
    return sizes, classes[:n_entries], values[:n_entries]


@part()
def _sums(starts, classes, scores, potentials, row, u):
    """Write u = scores + potentials of a row; returns how many there are."""
    begin, number = starts[row], starts[row + 1] - starts[row]
    for at in range(number):
        u[at] = widen(scores[begin + at]) + potentials[classes[begin + at]]
    return number


@part()
def _longest(starts):
    longest = 1
    for i in range(starts.size - 1):
        longest = max(longest, starts[i + 1] - starts[i])
    return longest


@part()
def _capped(u, number, k, inverse_epsilon, tops, e):
    """Write e of one row, and return X: its plan is e / (e + X). `tops` (k + 1,) gets its largest u."""
    _largest(u, number, tops)
    zero, one, ceiling = u.dtype.type(0), u.dtype.type(1), u.dtype.type(CEILING[0] if u.itemsize == 4 else CEILING[1])
    if number <= k:
        for at in range(number):
            e[at] = one
        return zero
    kth, more = tops[k - 1], -k  # classes that are as good as the k-th
    for at in range(number):  # what is far above the k-th has all but exp(-ceiling) of its one
        e[at] = exp(min((u[at] - kth) * inverse_epsilon, ceiling) - ceiling)
        more += u[at] >= kth
    apart = (kth - tops[k]) * inverse_epsilon
    log_x = -ceiling - min(apart / 2, ceiling)
    enough = u.dtype.type(ENOUGH[0] if u.itemsize == 4 else ENOUGH[1])
    for _ in range(STEPS if apart < 2 * ceiling else 0):
        x = np.exp(log_x)
        lacked, had, of_tops, of_rest = zero, u.dtype.type(more), zero, zero
        for at in range(number):
            share = one / (e[at] + x)
            is_top, w = u[at] >= kth, e[at] * x * share * share
            lacked += x * share if is_top else zero
            of_tops += w if is_top else zero
            had += zero if is_top else e[at] * share
            of_rest += zero if is_top else w
        off = np.log(lacked / had)
        step = off / (of_tops / lacked + of_rest / had)
        log_x -= min(max(step, u.dtype.type(-LONGEST_STEP)), u.dtype.type(LONGEST_STEP))
        if abs(off) <= enough:
            break
    return np.exp(log_x)


@njit(fastmath=FAST, nogil=True, cache=True)
def sweep_lists(starts, classes, scores, quantum, potentials, inverse_epsilon, k, mass, counts):
    """Add what each class has of the plan to mass, rounded to multiples of a quantum, and to counts (K,) the k best.

    Of equal classes the lower ones count. Returns the sums over rows of the k largest u, and of what the row's part of
    the semi-dual is above that, in units of epsilon: sum_k log(1 + exp((u_k - t) / epsilon)) - (u_k - t) / epsilon over
    the k best, and without the second term over all others.
    """
    longest = _longest(starts)
    u, e = np.empty((2, longest), potentials.dtype)
    tops = np.empty(k + 1, potentials.dtype)
    linear, entropic, quanta = 0.0, 0.0, 1.0 / quantum
    for i in range(starts.size - 1):
        begin, number = starts[i], _sums(starts, classes, scores, potentials, i, u)
        x = _capped(u, number, k, inverse_epsilon, tops, e)
        kth, n_tied, n_others, product, of_best = tops[k - 1], 0, 0, 1.0, 1.0
        for j in range(k):
            n_tied += tops[j] == kth
            linear += tops[j]
        for at in range(number):
            cls = classes[begin + at]
            mass[cls] += np.rint(e[at] / (e[at] + x) * quanta)
            is_best = u[at] > kth
            if u[at] == kth and n_tied > 0:
                n_tied -= 1
                is_best = True
            if is_best:
                counts[cls] += 1
                of_best *= e[at]
            else:
                n_others += 1
            product *= e[at] + x
            if product < SMALL_PRODUCT or of_best < SMALL_PRODUCT:
                entropic += np.log(product) - np.log(of_best)
                product, of_best = 1.0, 1.0
        entropic += np.log(product) - np.log(of_best)
        if n_others > 0:
            entropic -= n_others * np.log(np.float64(x))
    for cls in range(mass.size):
        mass[cls] *= quantum
    return linear, entropic


@part()
def _mark_best(u, number, tops, marked):
    """Mark the best of a row, as many as `tops` has room for, of equal ones the first."""
    _largest(u, number, tops)
    last, n_tied = tops[tops.size - 1], 0
    for j in range(tops.size):
        n_tied += tops[j] == last
    for at in range(number):
        marked[at] = u[at] > last
        if u[at] == last and n_tied > 0:
            n_tied -= 1
            marked[at] = True


@njit(fastmath=FAST, nogil=True, cache=True)
def label_lists(starts, classes, scores, potentials, labels, best, own):
    """In float64: labels (n, k) in the order of their scores, the best first, of equal ones the lower class.

    Where they are -1 they are set to the k best classes. `own` is u at each label. `best` has the k largest u of the
    row: its own where a label is among these classes, else one of those that are no label, the largest first.
    """
    longest, k = _longest(starts), labels.shape[1]
    u, marked = np.empty(longest), np.empty(longest, np.bool_)
    tops, where = np.empty(k), np.empty(k, np.int64)
    row_of_label = np.full(potentials.size, -1)  # the last row that has a class among its labels
    for i in range(starts.size - 1):
        begin, number_set = starts[i], 0
        number = _sums(starts, classes, scores, potentials, i, u)
        _mark_best(u, number, tops, marked)
        is_given = labels[i, 0] >= 0
        for j in range(k):
            where[j] = -1
            if is_given:
                row_of_label[labels[i, j]] = i
        for at in range(number):
            if row_of_label[classes[begin + at]] == i if is_given else marked[at]:
                j = number_set
                while j > 0 and widen(scores[begin + where[j - 1]]) < widen(scores[begin + at]):
                    where[j] = where[j - 1]
                    j -= 1
                where[j] = at
                number_set += 1
        if number_set < k:
            _put_last(labels[i], classes, begin, where, number_set)
        for j in range(k):
            if where[j] < 0:
                own[i, j], best[i, j] = -np.inf, np.inf
                continue
            labels[i, j], own[i, j] = classes[begin + where[j]], u[where[j]]
            best[i, j] = own[i, j] if marked[where[j]] else np.inf
            marked[where[j]] = False
        for j in range(k):
            if best[i, j] == np.inf:
                following = -1
                for at in range(number):
                    if marked[at] and (following < 0 or u[at] > u[following]):
                        following = at
                best[i, j] = u[following] if following >= 0 else -np.inf
                if following >= 0:
                    marked[following] = False


@part()
def _put_last(labels, classes, begin, where, number):
    """Put those labels of a row that no list has, being forbidden, behind the first ones."""
    given = labels.copy()
    for j in range(labels.size):
        is_listed = False
        for other in range(number):
            is_listed |= given[j] == classes[begin + where[other]]
        if not is_listed and number < labels.size:
            labels[number] = given[j]
            number += 1


@njit(fastmath=FAST, nogil=True, cache=True)
def candidates_lists(starts, classes, scores, potentials, labels, slack, tie):
    """The classes that a row may come to or leave while potentials fall by less than `slack`, in float64.

    Those are the classes it has not that are within slack of the least it has, and those it has that are within slack
    of the best it has not. Labels (n, k) that are -1, or of which one is short of the k-th largest by more than `tie`,
    are replaced by the k best classes first. Returns rows, sizes, classes, scores, and which of these the row has.
    """
    n_rows, longest, k = starts.size - 1, _longest(starts), labels.shape[1]
    u, marked, tops = np.empty(longest), np.empty(longest, np.bool_), np.empty(k)
    row_of_label = np.full(potentials.size, -1)  # the last row that has a class among its labels
    rows, sizes, n_found = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64), 0
    room = 4 * n_rows + 64
    found, values, held, n_entries = np.empty(room, labels.dtype), np.empty(room), np.empty(room, np.uint8), 0
    for i in range(n_rows):
        begin, n_labels = starts[i], 0
        number = _sums(starts, classes, scores, potentials, i, u)
        _largest(u, number, tops)
        for j in range(k):
            if labels[i, j] >= 0:
                row_of_label[labels[i, j]] = i
        for at in range(number):
            marked[at] = row_of_label[classes[begin + at]] == i and u[at] >= tops[k - 1] - tie
            n_labels += marked[at]
        if n_labels < k:
            _mark_best(u, number, tops, marked)
            j = 0
            for at in range(number):
                if marked[at]:
                    labels[i, j] = classes[begin + at]
                    j += 1
        least, most = np.inf, -np.inf
        for at in range(number):
            if marked[at]:
                least = min(least, u[at])
            else:
                most = max(most, u[at])
        if most == -np.inf or most < least - slack:
            continue
        while n_entries + number > found.size:
            found, values, held = grown(found), grown(values), grown(held)
        before = n_entries
        for at in range(number):
            if (u[at] <= most + slack) if marked[at] else (u[at] >= least - slack):
                found[n_entries], held[n_entries] = classes[begin + at], marked[at]
                values[n_entries] = widen(scores[begin + at])
                n_entries += 1
        rows[n_found], sizes[n_found] = i, n_entries - before
        n_found += 1
    return rows[:n_found], sizes[:n_found], found[:n_entries], values[:n_entries], held[:n_entries]


@njit(fastmath=FAST, nogil=True, cache=True)
def curvature_lists(starts, classes, scores, rows, potentials, inverse_epsilon, k, share):
    """Of the given rows, r with r r^T = w w^T / (k sum w) and r sum(r) = w / k, where w = q (1 - q).

    The curvature of a row's part of the semi-dual is the diagonal of w less that. Entries above `share` of the row's
    largest: sizes, classes and values float32.
    """
    longest = _longest(starts)
    u, e = np.empty((2, longest), potentials.dtype)
    tops = np.empty(k + 1, potentials.dtype)
    sizes, n_entries = np.empty(rows.size, np.int64), 0
    found, values = np.empty(8 * rows.size + 64, np.int32), np.empty(8 * rows.size + 64, np.float32)
    for place in range(rows.size):
        row, total, largest, before = rows[place], 0.0, 0.0, n_entries
        number = _sums(starts, classes, scores, potentials, row, u)
        x = np.float64(_capped(u, number, k, inverse_epsilon, tops, e))
        for at in range(number):
            w = e[at] * x / ((e[at] + x) * (e[at] + x))
            total += w
            largest = max(largest, w)
        while n_entries + number > found.size:
            found, values = grown(found), grown(values)
        scale = 1.0 / np.sqrt(k * max(total, 1e-300))
        for at in range(number):
            w = e[at] * x / ((e[at] + x) * (e[at] + x))
            if w > share * largest:
                found[n_entries], values[n_entries] = classes[starts[row] + at], w * scale
                n_entries += 1
        sizes[place] = n_entries - before
    return sizes, found[:n_entries], values[:n_entries]


@njit(fastmath=FAST, nogil=True, cache=True)
def left_out_lists(starts, classes, scores, quantum, potentials, origin, inverse_epsilon, reach, k):
    """The most that classes have of the plan which no list of these rows has: the sum of multiples of a quantum.

    Lists have what is within `reach` of each row's k-th best by the origin. With T and T0 the k-th best u now and
    there, and t the threshold that lists give, which the true one is not below, class j has no more than
    exp((T0 - reach + g_j - g0_j - t) / epsilon); l is the sum of these over all j. Where the true threshold is s
    higher, they have l exp(-s / epsilon), and no more than what the k best lack then, k exp((t + s - T) / epsilon): so,
    of the two, at most sqrt(l k exp((t - T) / epsilon)).
    """
    longest = _longest(starts)
    u, e = np.empty((2, longest), potentials.dtype)
    tops = np.empty(k + 1)
    highest, total, result = -np.inf, 0.0, 0.0
    for j in range(potentials.size):
        if potentials[j] > -np.inf:
            highest = max(highest, potentials[j] - origin[j])
    for j in range(potentials.size):
        if potentials[j] > -np.inf:
            total += np.exp((potentials[j] - origin[j] - highest) * inverse_epsilon)
    for i in range(starts.size - 1):
        number = _sums(starts, classes, scores, origin, i, u)
        _largest(u, number, tops[:k])
        before = tops[k - 1]
        number = _sums(starts, classes, scores, potentials, i, u)
        x = _capped(u, number, k, inverse_epsilon, tops, e)
        at_kth = np.log(total) + (before - reach + highest - tops[k - 1]) * inverse_epsilon  # as if t were T
        most = min(0.5 * (at_kth + np.log(k)), np.log(k))
        if number > k and (tops[k - 1] - tops[k]) * inverse_epsilon < 2 * CEILING[1]:  # else x is only about right
            most = min(most, at_kth - np.log(x) - CEILING[1])
        result += np.ceil(np.exp(most) / quantum)
    return result * quantum


@njit(fastmath=FAST, nogil=True, cache=True)
def plan_lists(starts, classes, scores, potentials, inverse_epsilon, k):
    """The capped softmax of every row at what is listed, (E,)."""
    longest = _longest(starts)
    u, e = np.empty((2, longest), potentials.dtype)
    tops, plan = np.empty(k + 1, potentials.dtype), np.empty(classes.size, potentials.dtype)
    for i in range(starts.size - 1):
        number = _sums(starts, classes, scores, potentials, i, u)
        x = _capped(u, number, k, inverse_epsilon, tops, e)
        for at in range(number):
            plan[starts[i] + at] = e[at] / (e[at] + x)
    return plan
