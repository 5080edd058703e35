"""One block of rows on the CPU, compiled by numba: how a row is reduced stands here and nowhere else.

Every function takes one block in its storage form and releases the GIL; the caller runs blocks on threads.
Halves are read in place: float16 travels as uint16 and bfloat16 as int16, so that the type alone says how
to widen a number. Widening by bits vectorises where the hardware's half conversion does not. What is compiled by the
type of its argument says in plain Python what it means, which is what runs under NUMBA_DISABLE_JIT.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from otlabel.compiling import njit

# NaN is refused before any sweep, so comparisons may assume there is none; -inf (a forbidden pair) stays legal.
FAST = {"nnan", "nsz", "contract", "reassoc", "arcp"}
STRICT = {"contract"}  # where re-association would fold a rounding trick away

LOWEST = -float(np.finfo(np.float64).max)  # above it everything is a legal score
INFINITY = {"uint16": 0x7C00, "int16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}  # by storage type
_part = functools.partial(
    njit, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # of what Python calls: kept with that
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


def _bitcast(source, target, llvm_type):
    @intrinsic
    def cast(typing_context, value):
        def codegen(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], llvm_type)

        return target(source), codegen

    return cast


_bits_to_f32 = _bitcast(types.int32, types.float32, ir.FloatType())
_bits_to_f64 = _bitcast(types.int64, types.float64, ir.DoubleType())


def _widen(stored):
    """A stored score as a number (compiled per storage type below)."""
    if isinstance(stored, np.uint16):
        return np.float32(stored.view(np.float16))
    return (np.uint32(stored.view(np.uint16)) << np.uint32(16)).view(np.float32) if stored.itemsize == 2 else stored


@overload(_widen)
def _widen_by_type(stored):
    if stored == types.uint16:  # float16: shift the fields into place, then correct the exponent's bias

        def widen(stored):
            half = np.uint32(stored)
            bits = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
            value = _bits_to_f32(bits) * np.float32(2.0**112)
            return np.float32(-np.inf) if value <= np.float32(-65536.0) else value  # the pattern of -inf

        return widen
    if stored == types.int16:  # bfloat16: the upper half of a float32
        return lambda stored: _bits_to_f32(np.uint32(stored) << np.uint32(16))
    return lambda stored: stored


def _bits(value):
    """The bits of a float as an integer of its size."""
    return value.view(np.int32 if value.itemsize == 4 else np.int64)


@intrinsic
def _as_integer(typing_context, value):
    integer, llvm_type = (types.int32, ir.IntType(32)) if value == types.float32 else (types.int64, ir.IntType(64))

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], llvm_type)

    return integer(value), codegen


@overload(_bits)
def _bits_by_type(value):
    return lambda value: _as_integer(value)


def _magnitude(stored):
    """The bits of a stored score without its sign, as an integer: larger than those of infinity for NaN."""
    integer = {2: np.int16, 4: np.int32, 8: np.int64}[stored.itemsize]
    return stored.view(integer) & np.iinfo(integer).max


def _infinity(stored):
    """The bits of infinity in the type of a stored score."""
    return INFINITY[stored.dtype.name]


@overload(_magnitude)
def _magnitude_by_type(stored):
    if stored in (types.uint16, types.int16):
        return lambda stored: np.int32(stored) & np.int32(0x7FFF)
    if stored == types.float32:
        return lambda stored: _bits(stored) & np.int32(0x7FFFFFFF)
    return lambda stored: _bits(stored) & np.int64(0x7FFFFFFFFFFFFFFF)


@overload(_infinity)
def _infinity_by_type(stored):
    pattern = INFINITY[stored.name]
    return lambda stored: pattern


def _larger(one, other):
    """The larger of two numbers, neither of them NaN."""
    return max(one, other)


def _smaller(one, other):
    """The smaller of two numbers, neither of them NaN."""
    return min(one, other)


def _extreme(name):
    """A function of LLVM: unlike a comparison and a choice, a loop of it runs on all lanes of the processor."""

    @intrinsic
    def of_two(typing_context, one, other):
        number = typing_context.unify_types(one, other)
        llvm_type = ir.FloatType() if number == types.float32 else ir.DoubleType()

        def codegen(context, builder, signature, arguments):
            both = [context.cast(builder, *pair, number) for pair in zip(arguments, signature.args, strict=True)]
            function_type = ir.FunctionType(llvm_type, [llvm_type, llvm_type])
            function = builder.module.declare_intrinsic(f"llvm.{name}", [llvm_type], function_type)
            return builder.call(function, both, fastmath=("nnan", "nsz"))

        return number(one, other), codegen

    return of_two


_maxnum, _minnum = _extreme("maxnum"), _extreme("minnum")


@overload(_larger)
def _larger_by_type(one, other):
    return lambda one, other: _maxnum(one, other)


@overload(_smaller)
def _smaller_by_type(one, other):
    return lambda one, other: _minnum(one, other)


# exp(x) for x <= 0: x = n ln 2 + f with |f| <= ln 2 / 2, ln 2 split so that n * LN2_HIGH is exact.
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.121944400546905827679e-4
TAYLOR = tuple(1.0 / math.factorial(n) for n in range(14))
LOWEST_F32, LOWEST_F64 = -87.0, -708.0  # exponents; below them the result would be no normal number
ROUND_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits


def _exp(x):
    """exp(x) for x <= 0, to 2e-7 (float32) or 4e-16 (float64); zero where that would be no normal number."""
    return np.exp(x) if x >= (LOWEST_F32 if x.itemsize == 4 else LOWEST_F64) else x.dtype.type(0)


@njit(fastmath=STRICT, inline="always")
def _exp_f32(x):
    clipped = max(x, np.float32(LOWEST_F32))
    n = np.floor(clipped * np.float32(LOG2_E) + np.float32(0.5))
    f = clipped - n * np.float32(LN2_HIGH) - n * np.float32(LN2_LOW)
    p = np.float32(TAYLOR[7])
    p = p * f + np.float32(TAYLOR[6])
    p = p * f + np.float32(TAYLOR[5])
    p = p * f + np.float32(TAYLOR[4])
    p = p * f + np.float32(TAYLOR[3])
    p = p * f + np.float32(TAYLOR[2])
    p = p * f + np.float32(1.0)
    p = p * f + np.float32(1.0)
    value = p * _bits_to_f32((np.int32(n) + np.int32(127)) << np.int32(23))
    return value if x == clipped else np.float32(0.0)


@njit(fastmath=STRICT)
def _exp_f64(x):
    clipped = max(x, LOWEST_F64)
    shifted = clipped * LOG2_E + ROUND_MAGIC
    n = shifted - ROUND_MAGIC
    f = clipped - n * LN2_HIGH - n * LN2_LOW
    p = TAYLOR[13]
    p = p * f + TAYLOR[12]
    p = p * f + TAYLOR[11]
    p = p * f + TAYLOR[10]
    p = p * f + TAYLOR[9]
    p = p * f + TAYLOR[8]
    p = p * f + TAYLOR[7]
    p = p * f + TAYLOR[6]
    p = p * f + TAYLOR[5]
    p = p * f + TAYLOR[4]
    p = p * f + TAYLOR[3]
    p = p * f + TAYLOR[2]
    p = p * f + 1.0
    p = p * f + 1.0
    value = p * _bits_to_f64((_bits(shifted) + np.int64(1023)) << np.int64(52))
    return value if x == clipped else 0.0


@overload(_exp)
def _exp_by_type(x):
    if x == types.float32:
        return lambda x: _exp_f32(x)
    return lambda x: _exp_f64(x)


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
            value = _widen(scores[i, k]) + potentials[k]
            u[k] = value
            top = _larger(top, value)
        total = np.float32(0)
        label = np.int32(n_classes - 1)
        for k in range(n_classes):
            label = min(label, np.int32(k) if u[k] == top else np.int32(n_classes - 1))
        for k in range(n_classes):
            e = _exp((u[k] - top) * inverse_epsilon)
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
            numbers[i, k] = _widen(stored[i, k]) - centre[k]


@njit(fastmath=FAST, nogil=True, cache=True)
def log_sum_exp_block(scores, result):
    """Write log sum_k exp(scores) of every row; 0 for a row of nothing but -inf."""
    n_rows, n_classes = scores.shape
    for i in range(n_rows):
        top = np.float32(-np.inf)
        for k in range(n_classes):
            top = _larger(top, scores[i, k])
        total = 0.0
        if top > -np.inf:
            part = np.float32(0)
            for k in range(n_classes):
                part += _exp(scores[i, k] - top)
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
            value = _widen(scores[i, k]) + potentials[k]
            u[k] = value
            top = _larger(top, value)
        total = np.float32(0)
        for k in range(n_classes):
            e = _exp((u[k] - top) * inverse_epsilon)
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
            value = np.float64(_widen(scores[i, k])) + potentials[k]
            u[k] = value
            top = _larger(top, value)
        if labels[i] < 0:
            label = np.int32(n_classes - 1)
            for k in range(n_classes):
                label = min(label, np.int32(k) if u[k] == top else np.int32(n_classes - 1))
            labels[i] = label
        best[i] = top
        own[i] = u[labels[i]]


@_part()
def _grown(array):
    larger = np.empty(2 * array.size, array.dtype)
    for at in range(array.size):  # a slice would bring seconds of compiling: the message of shapes that differ
        larger[at] = array[at]
    return larger


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
            value = np.float64(_widen(scores[i, k])) + potentials[k]
            u[k] = value
            top = _larger(top, value)
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
            classes, values = _grown(classes), _grown(values)
        for k in range(n_classes):
            if u[k] >= floor:
                classes[n_entries] = k
                values[n_entries] = _widen(scores[i, k])
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
            value = _widen(scores[i, k])
            largest = max(largest, _magnitude(scores[i, k]))
            u[k] = value
            top = _larger(top, value)
            bottom = _smaller(bottom, value)
        if largest >= _infinity(scores[i, 0]):  # by bits, because compiled comparisons assume that there is no NaN
            top, bottom = np.float32(-np.inf), np.float32(np.inf)
            for k in range(n_classes):
                if _magnitude(scores[i, k]) < _infinity(scores[i, k]):
                    top, bottom = max(top, u[k]), min(bottom, u[k])
                elif _magnitude(scores[i, k]) == _infinity(scores[i, k]) and u[k] < 0:
                    forbidden += 1
                else:
                    n_bad += 1
            n_forbidden += forbidden
        digest = np.uint64(0)
        for k in range(0, n_classes, step):
            bits = np.uint64(_bits(u[k]))  # a round number has zeros below, which a product would keep there
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

    Returns how many each row keeps, and their classes and values of softmax_k((scores + potentials) / epsilon).
    """
    n_classes = scores.shape[1]
    u = np.empty(n_classes, potentials.dtype)
    sizes, n_entries = np.empty(rows.size, np.int64), 0
    classes, values = np.empty(8 * rows.size + n_classes, np.int32), np.empty(8 * rows.size + n_classes, np.float32)
    for number in range(rows.size):
        top = np.float32(-np.inf)
        for k in range(n_classes):
            value = _widen(scores[rows[number], k]) + potentials[k]
            u[k] = value
            top = _larger(top, value)
        total = np.float32(0)
        for k in range(n_classes):
            e = _exp((u[k] - top) * inverse_epsilon)
            u[k] = e
            total += e
        while n_entries + n_classes > classes.size:
            classes, values = _grown(classes), _grown(values)
        before = n_entries
        for k in range(n_classes):
            if u[k] > share:
                classes[n_entries], values[n_entries] = k, u[k] / total
                n_entries += 1
        sizes[number] = n_entries - before
    return sizes, classes[:n_entries], values[:n_entries]
