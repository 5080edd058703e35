"""What kernels share: how stored scores widen, the larger of two numbers, the exponential.

What is compiled by the type of its argument says in plain Python what it means, which is what runs under
NUMBA_DISABLE_JIT.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from otlabel.compiling import njit

# NaN is refused before any sweep, so comparisons may assume there is none; -inf (a forbidden pair) stays legal.
FAST = {"nnan", "nsz", "contract", "reassoc", "arcp"}
STRICT = {"contract"}  # where re-association would fold a rounding trick away

LOWEST = -float(np.finfo(np.float64).max)  # above it everything is a legal score
INFINITY = {"uint16": 0x7C00, "int16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}  # by storage type
FLAGS = 8  # of a byte each, that are looked at together
part = functools.partial(
    njit, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # of what Python calls: kept with that


def _bitcast(source, target, llvm_type):
    @intrinsic
    def cast(typing_context, value):
        def codegen(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], llvm_type)

        return target(source), codegen

    return cast


_bits_to_f32 = _bitcast(types.int32, types.float32, ir.FloatType())
_bits_to_f64 = _bitcast(types.int64, types.float64, ir.DoubleType())


@intrinsic
def _half_to_f32(typing_context, stored):
    def codegen(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(stored), codegen


def widen(stored):
    """A stored score as a number (compiled per storage type below)."""
    if isinstance(stored, np.uint16):
        return np.float32(stored.view(np.float16))
    return (np.uint32(stored.view(np.uint16)) << np.uint32(16)).view(np.float32) if stored.itemsize == 2 else stored


def half_by_bits(stored):
    """A float16 where the processor has no instruction for it: fields shifted into place, then the exponent's bias."""
    half = np.uint32(stored)
    bits = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
    value = _bits_to_f32(bits) * np.float32(2.0**112)
    return np.float32(-np.inf) if value <= np.float32(-65536.0) else value  # the pattern of -inf


@overload(widen)
def _widen_by_type(stored):
    if stored == types.uint16:
        has_instruction = "+f16c" in cpu_target.target_context.codegen().magic_tuple()[2]
        return (lambda stored: _half_to_f32(stored)) if has_instruction else half_by_bits
    if stored == types.int16:  # bfloat16: the upper half of a float32
        return lambda stored: _bits_to_f32(np.uint32(stored) << np.uint32(16))
    return lambda stored: stored


def bits_of(value):
    """The bits of a float as an integer of its size."""
    return value.view(np.int32 if value.itemsize == 4 else np.int64)


@intrinsic
def _as_integer(typing_context, value):
    integer, llvm_type = (types.int32, ir.IntType(32)) if value == types.float32 else (types.int64, ir.IntType(64))

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], llvm_type)

    return integer(value), codegen


@overload(bits_of)
def _bits_by_type(value):
    return lambda value: _as_integer(value)


def magnitude(stored):
    """The bits of a stored score without its sign, as an integer: larger than those of infinity for NaN."""
    integer = {2: np.int16, 4: np.int32, 8: np.int64}[stored.itemsize]
    return stored.view(integer) & np.iinfo(integer).max


def infinity(stored):
    """The bits of infinity in the type of a stored score."""
    return INFINITY[stored.dtype.name]


@overload(magnitude)
def _magnitude_by_type(stored):
    if stored in (types.uint16, types.int16):
        return lambda stored: np.int32(stored) & np.int32(0x7FFF)
    if stored == types.float32:
        return lambda stored: bits_of(stored) & np.int32(0x7FFFFFFF)
    return lambda stored: bits_of(stored) & np.int64(0x7FFFFFFFFFFFFFFF)


@overload(infinity)
def _infinity_by_type(stored):
    pattern = INFINITY[stored.name]
    return lambda stored: pattern


def larger(one, other):
    """The larger of two numbers, neither of them NaN."""
    return max(one, other)


def smaller(one, other):
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


@overload(larger)
def _larger_by_type(one, other):
    return lambda one, other: _maxnum(one, other)


@overload(smaller)
def _smaller_by_type(one, other):
    return lambda one, other: _minnum(one, other)


# exp(x) for x <= 0: x = n ln 2 + f with |f| <= ln 2 / 2, ln 2 split so that n * LN2_HIGH is exact.
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.121944400546905827679e-4
TAYLOR = tuple(1.0 / math.factorial(n) for n in range(14))
LOWEST_F32, LOWEST_F64 = -87.0, -708.0  # exponents; below them the result would be no normal number
ROUND_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits


def exp(x):
    """The exponential of x <= 0, to 2e-7 (float32) or 4e-16 (float64); zero where that would be no normal number."""
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
    value = p * _bits_to_f64((bits_of(shifted) + np.int64(1023)) << np.int64(52))
    return value if x == clipped else 0.0


@overload(exp)
def _exp_by_type(x):
    if x == types.float32:
        return lambda x: _exp_f32(x)
    return lambda x: _exp_f64(x)


@part()
def grown(array):
    """An array of twice the size that begins as this one."""
    twice = np.empty(2 * array.size, array.dtype)
    for at in range(array.size):  # a slice would bring seconds of compiling: the message of shapes that differ
        twice[at] = array[at]
    return twice


@part()
def append_near(u, floor, near, words, classes, n_entries):
    """Append to `classes` those of u that are not below a floor; returns how many entries there are then.

    `near` has a byte for each of u, and `words` are its bytes eight at a time: most have none.
    """
    for k in range(u.size):
        near[k] = u[k] >= floor
    for word in range(words.size):
        if words[word]:
            for k in range(word * FLAGS, word * FLAGS + FLAGS):
                classes[n_entries] = k
                n_entries += near[k]
    return n_entries
