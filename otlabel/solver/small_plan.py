"""The smooth solve of scores that stay in the cache, compiled as a whole: potentials g through falling epsilon.

The mathematics is that of `newton.py` and `objective.py` for exact masses, with conjugate gradients on the plan's
larger entries.
"""

from __future__ import annotations

import math

import numpy as np

from otlabel.solver.small_blocks import LANES, part, whole
from otlabel.sweep.numerics import exp, larger, smaller

# Columns of `rungs`, (R, 6) float64: what is asked for at each epsilon.
EPSILON, TOLERANCE, LEAST, BLOCKS, ROWS, MOST_PASSES = 0, 1, 2, 3, 4, 5

FACTORS = 64  # sums from 1 to K that are multiplied before a logarithm is taken: no more than numbers can hold
SHARE = 1e-2  # of a row's largest plan entry; smaller ones do not matter to the curvature
CURVED_ROWS = 80  # rows a class that the curvature is taken from, twice as many after each step that it led astray
NEAR = 0.25  # class error from which on Newton needs no plain steps before it
SINKHORN_STEPS = 2
SLOW_STEP = 0.4  # a step that leaves more of the error than this
RIDGE = 1e-3  # of the class mass, added to the curvature
LONGEST_STEP, TRUST_STEP = 8.0, 4.0  # in units of epsilon, and how much farther after such a step that held
SHORTER, SHORTEST = 0.4, 0.02  # of a step that does not lead down; the shortest gives way to a plain one
PRODUCTS, ACCURACY = 40, 0.15  # of conjugate gradients: how many, and the share of the residual that may be left
TINY = float(np.finfo(np.float32).tiny)
NOISE = 8 * float(np.finfo(np.float32).eps)


@part()
def _pass(blocks, weights, n_blocks, g, epsilon, single, mass, lanes, tops, totals, kept, kept_at, ends, n_curved):
    """F's sum over the rows of some blocks at potentials g, their mass, and what matters of the first ones' plan."""
    n_classes, inverse, sums, n_kept = blocks.shape[1], np.float32(1.0 / epsilon), 0.0, 0
    for k in range(n_classes):
        mass[k], single[k] = 0.0, g[k]
    for block in range(n_blocks):
        for lane in range(LANES):
            tops[lane], totals[lane] = np.float32(-np.inf), np.float32(0)
        for k in range(n_classes):
            for lane in range(LANES):
                value = blocks[block, k, lane] + single[k]
                lanes[k, lane] = value
                tops[lane] = larger(tops[lane], value)
        for k in range(n_classes):
            for lane in range(LANES):
                value = exp((lanes[k, lane] - tops[lane]) * inverse)
                lanes[k, lane] = value
                totals[lane] += value
        product = 1.0  # of a few sums from 1 to K each: one logarithm for all
        for lane in range(LANES):
            weight = weights[block, lane]
            product *= np.float64(totals[lane]) if weight > 0 else 1.0
            sums += np.float64(weight * tops[lane])
            totals[lane] = weight / totals[lane]
            if lane % FACTORS == FACTORS - 1:
                sums += epsilon * math.log(product)
                product = 1.0
        for k in range(n_classes):
            taken, n_near = np.float32(0), np.int32(0)
            for lane in range(LANES):
                taken += lanes[k, lane] * totals[lane]
                n_near += np.int32(lanes[k, lane] > np.float32(SHARE))
            mass[k] += np.float64(taken)
            if block < n_curved and n_near > 0:
                for lane in range(LANES):
                    kept[n_kept, lane] = lanes[k, lane] * totals[lane]
                kept_at[n_kept] = k
                n_kept += 1
        if block < n_curved:
            ends[block] = n_kept
    return sums


@part()
def _product(y, out, kept, kept_at, ends, n_curved, totals):
    """Into `out` the sums over some rows of q <q, y>."""
    begin = 0
    for k in range(out.size):
        out[k] = 0.0
    for block in range(n_curved):
        for lane in range(LANES):
            totals[lane] = np.float32(0)
        for at in range(begin, ends[block]):
            factor = y[kept_at[at]]
            for lane in range(LANES):
                totals[lane] += kept[at, lane] * factor
        for at in range(begin, ends[block]):
            total = np.float32(0)
            for lane in range(LANES):
                total += kept[at, lane] * totals[lane]
            out[kept_at[at]] += np.float64(total)
        begin = ends[block]


@part()
def _direction(
    demand, mass, step, left, search, curved, scale, diagonal, own, single, kept, kept_at, ends, n_curved, weight,
    totals, longest,
):  # fmt: skip
    """Solve (diag(c) - sum_i a_i q_i q_i^T) y = demand - c about, in units of epsilon; returns how F falls along y.

    The second term is of some rows: scaling both its sides makes its diagonal agree with all of them.
    """
    n_classes, size, before, slope = mass.size, 0.0, 0.0, 0.0
    for k in range(n_classes):
        single[k] = np.float32(1)
        own[k] = 0.0
    _product(single, scale, kept, kept_at, ends, n_curved, totals)
    for at in range(ends[n_curved - 1]):
        square = np.float32(0)
        for lane in range(LANES):
            square += kept[at, lane] * kept[at, lane]
        own[kept_at[at]] += np.float64(square)
    for k in range(n_classes):
        sampled = weight * scale[k]
        factor = mass[k] / larger(sampled, 0.1 * mass[k] + 1e-300)
        diagonal[k] = sampled * factor + RIDGE * (mass[k] + 1.0 / n_classes)
        own[k] = 1.0 / (diagonal[k] - weight * factor * own[k])
        scale[k] = math.sqrt(factor)
        step[k], left[k], search[k] = 0.0, demand[k] - mass[k], 0.0
        size += left[k] * left[k] * own[k]
    enough = ACCURACY * ACCURACY * size
    for _ in range(PRODUCTS):
        bend, further = 0.0, size / before if before > 0.0 else 0.0
        for k in range(n_classes):
            search[k] = left[k] * own[k] + further * search[k]
            single[k] = np.float32(scale[k] * search[k])
        _product(single, curved, kept, kept_at, ends, n_curved, totals)
        for k in range(n_classes):
            curved[k] = diagonal[k] * search[k] - weight * scale[k] * curved[k]
            bend += search[k] * curved[k]
        length, before, size = size / bend, size, 0.0
        for k in range(n_classes):
            step[k] += length * search[k]
            left[k] -= length * curved[k]
            size += left[k] * left[k] * own[k]
        if not size > enough:
            break
    for k in range(n_classes):
        step[k] = smaller(larger(step[k], -longest), longest)
        slope -= (demand[k] - mass[k]) * step[k]
    return slope


@whole(cache=True)
def descend(
    blocks, weights, rungs, demand, g, mass, tried, tried_mass, step, left, search, curved, scale, diagonal,
    own, single, lanes, tops, totals, kept, kept_at, ends, trail, errors,
):  # fmt: skip
    """From potentials g (K,) through the rungs, in place; returns how many passes it took, and whether all is met.

    Of each pass its potentials go into trail (P, K), its rung and class error into errors (P, 2). Classes that demand
    nothing have potentials of -inf.
    """
    n_classes, n_passes, met = g.size, 0, False
    for rung in range(rungs.shape[0]):
        epsilon, tol, least = rungs[rung, EPSILON], rungs[rung, TOLERANCE], rungs[rung, LEAST]
        n_blocks, last = int(rungs[rung, BLOCKS]), n_passes + int(rungs[rung, MOST_PASSES])
        n_used = rungs[rung, ROWS]
        n_curved, longest, opening, newton = CURVED_ROWS * n_classes // LANES + 1, LONGEST_STEP, SINKHORN_STEPS, False
        value, error, slope, length, met = np.inf, np.inf, 0.0, 1.0, False
        for k in range(n_classes):
            tried[k] = g[k]
        while n_passes < last and n_passes < trail.shape[0] and not met:
            if n_curved > n_blocks:
                n_curved = n_blocks
            sums = _pass(
                blocks, weights, n_blocks, tried, epsilon, single, tried_mass, lanes, tops, totals, kept, kept_at, ends,
                n_curved,
            )  # fmt: skip
            tried_value, tried_error, met = sums / n_used, 0.0, True
            for k in range(n_classes):
                tried_mass[k] /= n_used
                if demand[k] > 0.0:
                    tried_value -= demand[k] * tried[k]
                    tried_error += math.fabs(demand[k] - tried_mass[k])
                    met &= tried_mass[k] + tol / n_classes >= least * demand[k]
            met &= tried_error <= tol
            errors[n_passes, 0], errors[n_passes, 1] = rung, tried_error
            for k in range(n_classes):
                trail[n_passes, k] = tried[k]
            n_passes += 1
            noise = NOISE * larger(epsilon, math.fabs(tried_value))
            is_lower = tried_value <= value + 1e-4 * length * slope
            if newton and not (is_lower or (tried_value <= value + noise and tried_error < error)) and not met:
                length *= SHORTER
                newton = length > SHORTEST
            else:
                if newton:
                    longest = longest * TRUST_STEP if length == 1.0 else LONGEST_STEP
                for k in range(n_classes):
                    g[k], mass[k] = tried[k], tried_mass[k]
                n_seen = n_curved
                if newton and tried_error > SLOW_STEP * error:
                    n_curved *= 2
                opening = -1 if tried_error < NEAR and error == np.inf else opening - 1
                value, error, newton, length = tried_value, tried_error, opening < 0, 1.0
                if newton:
                    weight = 1.0 / smaller(n_used, float(n_seen * LANES))
                    slope = epsilon * _direction(
                        demand, mass, step, left, search, curved, scale, diagonal, own, single, kept, kept_at, ends,
                        n_seen, weight, totals, longest,
                    )  # fmt: skip
                    newton = slope < 0.0
            if not newton:
                length, slope = 1.0, 0.0
                for k in range(n_classes):
                    step[k] = math.log(larger(demand[k], TINY) / larger(mass[k], TINY))
            for k in range(n_classes):
                tried[k] = g[k] + length * epsilon * step[k] if demand[k] > 0.0 else -np.inf
    return n_passes, met
