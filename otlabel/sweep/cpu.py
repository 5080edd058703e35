"""One block of rows on the CPU, compiled by numba: how a row is reduced stands here and nowhere else.

Every function takes one block in its storage form and releases the GIL; the caller runs blocks on threads.
Halves are read in place: float16 travels as uint16 and bfloat16 as int16, so that the type alone says how
to widen a number.
"""

from __future__ import annotations

import math

import numpy as np

from otlabel.compiling import njit
from otlabel.sweep.numerics import (
    FAST,
    FLAGS,
    LOWEST,
    STRICT,
    append_near,
    bits_of,
    exp,
    grown,
    infinity,
    larger,
    magnitude,
    smaller,
    widen,
)

PLAN_REACH = 20.0  # in units of epsilon: of a plan's rows, nothing farther below the best need be looked at
MANY = 16  # one of so many classes within reach, and all are done at once, which is quicker
PRODUCT_ROWS, PRODUCT_TERMS = 2, 4  # that a product takes at once, so that what is loaded serves several sums
FLUSH_ROWS = 256  # rows added up in working precision before the sum moves to float64


@njit(cache=True, nogil=True)
def add_up(rows):
    """Sums of columns, (M, L), and what their rounding left over, as (2, L): rounded once, whatever the order of rows.

    Source: Ogita, Rump, Oishi, "Accurate sum and dot product", SIAM Journal on Scientific Computing 26 (2005).
    """
    result = np.empty((2, rows.shape[1]))
    sums, rests = result
    for at in range(rows.shape[1]):
        sums[at], rests[at] = 0.0, 0.0
    for row in range(rows.shape[0]):
        for at in range(rows.shape[1]):
            more = rows[row, at]
            total = sums[at] + more
            if math.isfinite(total):
                shown = total - sums[at]
                rests[at] += (sums[at] - (total - shown)) + (more - shown)
            sums[at] = total
    for at in range(rows.shape[1]):
        total = sums[at] + rests[at]
        rests[at] = rests[at] - (total - sums[at]) if math.isfinite(total) else 0.0
        sums[at] = total
    return result


@njit(fastmath=FAST, nogil=True, cache=True)
def sweep_block(scores, potentials, inverse_epsilon, weights, row_exponent, labels, row_mass, mass, counts):
    """Reduce one block in the precision of `potentials` (float32 or float64; 1/epsilon is of the same type).

    Adds to mass (K,) float64 and counts (K,) int64, writes labels (n,), and returns the sums over rows of
    weight * max_k u_k and weight * log sum_k exp((u_k - max u) / epsilon), where u = scores + potentials. Where
    row_exponent is not zero, a row's mass is its weight times exp(row_exponent * epsilon * logsumexp(u / epsilon)), as
    it is where rows may leave their mass; it is written to row_mass (n,).
    """
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, potentials.dtype)
    partial = np.empty(n_classes, potentials.dtype)
    for k in range(n_classes):
        partial[k] = 0
    scale = np.empty(1, potentials.dtype)  # an array, so that the product below stays in working precision
    weighted = weights.size > 0
    linear, entropic, weight, pending = 0.0, 0.0, 1.0, 0
    for i in range(n_rows):
        top = np.float32(-np.inf)
        for k in range(n_classes):
            value = widen(scores[i, k]) + potentials[k]
            u[k] = value
            top = larger(top, value)
        total = np.float32(0)
        label = np.int32(n_classes - 1)
        for k in range(n_classes):
            label = min(label, np.int32(k) if u[k] == top else np.int32(n_classes - 1))
        for k in range(n_classes):
            e = exp((u[k] - top) * inverse_epsilon)
            u[k] = e
            total += e
        if weighted:
            weight = weights[i]
        own_mass = weight
        if row_exponent != 0.0:
            own_mass *= np.exp(row_exponent * (np.float64(top) + np.log(np.float64(total)) / inverse_epsilon))
            row_mass[i] = own_mass
        scale[0] = own_mass / total
        for k in range(n_classes):
            partial[k] += u[k] * scale[0]
        labels[i] = label
        counts[label] += np.int64(weight)
        linear += weight * top
        entropic += weight * np.log(np.float64(total))
        pending += 1
        if pending == FLUSH_ROWS or i == n_rows - 1:
            pending = 0
            for k in range(n_classes):
                mass[k] += partial[k]
                partial[k] = 0
    return linear, entropic


@njit(fastmath=STRICT, nogil=True, cache=True)
def centre_block(stored, centre, numbers):
    """Write a block in storage form, less `centre` (D,), as numbers (n, at least D) of the centre's precision."""
    n_rows, n_columns = stored.shape
    for i in range(n_rows):
        for k in range(n_columns):
            numbers[i, k] = widen(stored[i, k]) - centre[k]


@njit(fastmath=FAST, nogil=True, cache=True)
def few_products(rows, weights, sizes, classes, products):
    """Write <row_i, weight_k> for the classes k of each row; row i has sizes[i] of them, row after row. All float64.

    Returns the square of the longest row's length.
    """
    n_rows, n_features = rows.shape
    entry, longest = 0, 0.0
    for i in range(n_rows):
        square = 0.0
        for j in range(n_features):
            square += rows[i, j] * rows[i, j]
        longest = max(longest, square)
        for _ in range(sizes[i]):
            k, total = classes[entry], 0.0
            for j in range(n_features):
                total += rows[i, j] * weights[k, j]
            products[entry] = total
            entry += 1
    return longest


@njit(fastmath=STRICT, nogil=True, cache=True)
def row_products(rows, factor, products):
    """Write rows @ factor, each row's in the same order whatever the others; (n, D) and (D, K), n and D of whole parts.

    Half as quick as a library's, whose sums depend on where in a matrix a row is.
    """
    n_rows, n_terms = rows.shape
    for i in range(0, n_rows, PRODUCT_ROWS):
        for k in range(factor.shape[1]):
            products[i, k], products[i + 1, k] = 0, 0
        for j in range(0, n_terms, PRODUCT_TERMS):
            a0, a1, a2, a3 = rows[i, j], rows[i, j + 1], rows[i, j + 2], rows[i, j + 3]
            b0, b1, b2, b3 = rows[i + 1, j], rows[i + 1, j + 1], rows[i + 1, j + 2], rows[i + 1, j + 3]
            for k in range(factor.shape[1]):
                f0, f1, f2, f3 = factor[j, k], factor[j + 1, k], factor[j + 2, k], factor[j + 3, k]
                products[i, k] = products[i, k] + a0 * f0 + a1 * f1 + a2 * f2 + a3 * f3
                products[i + 1, k] = products[i + 1, k] + b0 * f0 + b1 * f1 + b2 * f2 + b3 * f3


@njit(fastmath=FAST, nogil=True, cache=True)
def log_sum_exp_block(scores, result):
    """Write log sum_k exp(scores) of every row; 0 for a row of nothing but -inf."""
    n_rows, n_classes = scores.shape
    for i in range(n_rows):
        top = np.float32(-np.inf)
        for k in range(n_classes):
            top = larger(top, scores[i, k])
        total = 0.0
        if top > -np.inf:
            part = np.float32(0)
            for k in range(n_classes):
                part += exp(scores[i, k] - top)
            total = np.log(np.float64(part)) + top
        result[i] = total


@njit(fastmath=FAST, nogil=True, cache=True)
def plan_block(scores, potentials, inverse_epsilon, plan):
    """Write softmax_k((scores + potentials) / epsilon) of every row into plan (n, K)."""
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, potentials.dtype)
    scale = np.empty(1, potentials.dtype)
    for i in range(n_rows):
        top = np.float32(-np.inf)
        for k in range(n_classes):
            value = widen(scores[i, k]) + potentials[k]
            u[k] = value
            top = larger(top, value)
        total = np.float32(0)
        for k in range(n_classes):
            e = exp((u[k] - top) * inverse_epsilon)
            u[k] = e
            total += e
        scale[0] = 1.0 / total
        for k in range(n_classes):
            plan[i, k] = u[k] * scale[0]


@njit(fastmath=FAST, nogil=True, cache=True)
def label_block(scores, potentials, labels, best, own):
    """In float64: write the best class of u = scores + potentials where labels are -1, and max u and u at the label.

    `best - own` is what a row's label falls short of optimal; `own - potentials[label]` is its score.
    """
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, potentials.dtype)
    for i in range(n_rows):
        top = -np.inf
        for k in range(n_classes):
            value = np.float64(widen(scores[i, k])) + potentials[k]
            u[k] = value
            top = larger(top, value)
        if labels[i] < 0:
            label = np.int32(n_classes - 1)
            for k in range(n_classes):
                label = min(label, np.int32(k) if u[k] == top else np.int32(n_classes - 1))
            labels[i] = label
        best[i] = top
        own[i] = u[labels[i]]


@njit(fastmath=FAST, nogil=True, cache=True)
def candidates_block(scores, potentials, labels, slack, tie):
    """The classes that a row may still move to: those within `slack` of its label, by u = scores + potentials.

    A label that is -1 or falls short of the row's best by more than `tie` is replaced by the best class first.
    Returns, for the rows with more than one such class only: row, how many, and each class with its score (float64).
    """
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, potentials.dtype)
    rows, sizes, n_found = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64), 0
    classes, values, n_entries = np.empty(4 * n_rows + 64, labels.dtype), np.empty(4 * n_rows + 64, u.dtype), 0
    for i in range(n_rows):
        top = -np.inf
        for k in range(n_classes):
            value = np.float64(widen(scores[i, k])) + potentials[k]
            u[k] = value
            top = larger(top, value)
        if labels[i] < 0 or u[labels[i]] < top - tie:
            label = np.int32(n_classes - 1)
            for k in range(n_classes):
                label = min(label, np.int32(k) if u[k] == top else np.int32(n_classes - 1))
            labels[i] = label
        floor = max(u[labels[i]] - slack, LOWEST)
        size = 0
        for k in range(n_classes):
            size += 1 if u[k] >= floor else 0
        if size < 2:
            continue
        while n_entries + size > classes.size:
            classes, values = grown(classes), grown(values)
        for k in range(n_classes):
            if u[k] >= floor:
                classes[n_entries] = k
                values[n_entries] = widen(scores[i, k])
                n_entries += 1
        rows[n_found], sizes[n_found] = i, size
        n_found += 1
    return rows[:n_found], sizes[:n_found], classes[:n_entries], values[:n_entries]


@njit(fastmath=FAST, nogil=True, cache=True)
def inspect_block(scores, multipliers, step, hashes, tops, bottoms):
    """Look at one block before anything trusts it.

    Writes of each row a hash of every `step`-th score (multiply-adds modulo 2**64; 0 if all scores are equal), its
    largest score and its smallest finite one. Returns how many scores are no score (NaN, +inf) and how many are -inf.
    """
    n_rows, n_classes = scores.shape
    u = np.empty(n_classes, tops.dtype)
    n_bad, n_forbidden = 0, 0
    for i in range(n_rows):
        top, bottom, largest, forbidden = np.float32(-np.inf), np.float32(np.inf), np.int32(0), 0
        for k in range(n_classes):
            value = widen(scores[i, k])
            largest = max(largest, magnitude(scores[i, k]))
            u[k] = value
            top = larger(top, value)
            bottom = smaller(bottom, value)
        if largest >= infinity(scores[i, 0]):  # by bits, because compiled comparisons assume that there is no NaN
            top, bottom = np.float32(-np.inf), np.float32(np.inf)
            for k in range(n_classes):
                if magnitude(scores[i, k]) < infinity(scores[i, k]):
                    top, bottom = max(top, u[k]), min(bottom, u[k])
                elif magnitude(scores[i, k]) == infinity(scores[i, k]) and u[k] < 0:
                    forbidden += 1
                else:
                    n_bad += 1
            n_forbidden += forbidden
        digest = np.uint64(0)
        for k in range(0, n_classes, step):
            bits = np.uint64(bits_of(u[k]))  # a round number has zeros below, which a product would keep there
            bits ^= bits >> np.uint64(32)
            bits ^= bits >> np.uint64(16)
            digest += bits * multipliers[k]
        constant = top == bottom if forbidden == 0 else forbidden == n_classes
        hashes[i] = np.uint64(0) if constant else digest
        tops[i], bottoms[i] = top, bottom
    return n_bad, n_forbidden


@njit(fastmath=FAST, nogil=True, cache=True)
def sparse_plan_block(scores, rows, potentials, inverse_epsilon, share):
    """The plan's entries above `share` of their row's largest, for the given rows of a block.

    Returns how many each row keeps, and their classes and values of softmax_k((scores + potentials) / epsilon); what is
    far below is not added up.
    """
    n_classes = scores.shape[1]
    u = np.empty(n_classes, potentials.dtype)
    near = np.zeros(-(-n_classes // FLAGS) * FLAGS, np.uint8)
    words = near.view(np.uint64)
    reach = np.empty(1, potentials.dtype)
    reach[0] = PLAN_REACH / inverse_epsilon
    sizes, n_entries = np.empty(rows.size, np.int64), 0
    room = 8 * rows.size + 2 * n_classes + FLAGS
    classes, values = np.empty(room, np.int32), np.empty(room, np.float32)
    for number in range(rows.size):
        row, top = scores[rows[number]], np.float32(-np.inf)
        for k in range(n_classes):
            value = widen(row[k]) + potentials[k]
            u[k] = value
            top = larger(top, value)
        while n_entries + n_classes + FLAGS > classes.size:
            classes, values = grown(classes), grown(values)
        before = n_entries
        end = append_near(u, top - reach[0], near, words, classes, n_entries)
        total = np.float32(0)
        if end - before > n_classes // MANY:
            for k in range(n_classes):
                u[k] = exp((u[k] - top) * inverse_epsilon)
                total += u[k]
        else:
            for entry in range(before, end):
                k = classes[entry]
                u[k] = exp((u[k] - top) * inverse_epsilon)
                total += u[k]
        for entry in range(before, end):
            e = u[classes[entry]]
            if e > share:
                classes[n_entries], values[n_entries] = classes[entry], e
                n_entries += 1
        for entry in range(before, n_entries):
            values[entry] /= total
        sizes[number] = n_entries - before
    return sizes, classes[:n_entries], values[:n_entries]
