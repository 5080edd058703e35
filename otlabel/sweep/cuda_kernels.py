"""The kernels of cuda.py, in Triton: each says what one program does, and where it writes what it found."""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["n_rows", "n_classes", "stride"]  # arguments whose values no kernel is compiled for


@triton.jit(do_not_specialize=[*SIZES, "rows_each"])
def fused_kernel(
    scores, constants, weights, tops, totals, labels, partial, n_rows, n_classes, stride, rows_each,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, STAGES: tl.constexpr,
    WEIGHTED: tl.constexpr, LABELLED: tl.constexpr,
):  # fmt: skip
    """Everything from one read: rows_each rows a program, ROWS at a time, each in PIECES of WIDTH columns.

    Pieces of a row are brought together column by column before threads exchange anything, so that a row takes two
    exchanges, three with its label. Rows past the end are the last one again, without weight; only the last piece needs
    a mask.
    """
    n_classes = n_classes * VECTOR
    precision = constants.dtype.element_ty
    scale = tl.load(constants + n_classes)
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    last: tl.constexpr = (PIECES - 1) * WIDTH
    inside = last + columns < n_classes
    potentials, sums = (), ()
    for piece in tl.static_range(PIECES):
        if piece == PIECES - 1:
            potentials = potentials + (tl.load(constants + piece * WIDTH + columns, mask=inside, other=0.0),)
        else:
            potentials = potentials + (tl.load(constants + piece * WIDTH + columns),)
        sums = sums + (tl.zeros([ROWS, WIDTH], precision),)
    for step in tl.range(0, rows_each, ROWS, num_stages=STAGES):
        numbers = program * rows_each + step + tl.arange(0, ROWS)
        there = numbers < n_rows
        rows = tl.minimum(numbers, n_rows - 1)
        u = ()
        begin = scores + rows[:, None] * stride * VECTOR + columns[None, :]
        for piece in tl.static_range(PIECES):
            if piece == PIECES - 1:
                values = tl.load(begin + piece * WIDTH, mask=inside[None, :], other=-float("inf"))
            else:
                values = tl.load(begin + piece * WIDTH)
            u = u + (values.to(precision) + potentials[piece][None, :],)
        highest = u[0]
        for piece in tl.static_range(1, PIECES):
            highest = tl.maximum(highest, u[piece])
        top = tl.max(highest, 1)
        times = tl.broadcast_to(scale, [ROWS, WIDTH])
        below = tl.broadcast_to((-top * scale)[:, None], [ROWS, WIDTH])
        e = ()
        for piece in tl.static_range(PIECES):
            e = e + (tl.exp2(tl.fma(u[piece], times, below)),)
        added = e[0]
        for piece in tl.static_range(1, PIECES):
            added = added + e[piece]
        total = tl.sum(added, 1)
        share = 1.0 / total
        if WEIGHTED:
            share = (tl.load(weights + rows) / total.to(tl.float64)).to(precision)
        share = tl.where(there, share, 0.0)
        grown = ()
        for piece in tl.static_range(PIECES):
            grown = grown + (tl.fma(e[piece], tl.broadcast_to(share[:, None], [ROWS, WIDTH]), sums[piece]),)
        sums = grown
        tl.store(tops + numbers, top, mask=there)
        tl.store(totals + numbers, total, mask=there)
        if LABELLED:
            lowest = tl.where(u[0] == top[:, None], columns[None, :], n_classes - 1)
            for piece in tl.static_range(1, PIECES):
                at = tl.where(u[piece] == top[:, None], piece * WIDTH + columns[None, :], n_classes - 1)
                lowest = tl.minimum(lowest, at)
            tl.store(labels + numbers, tl.min(lowest, 1).to(tl.int32), mask=there)
    for piece in tl.static_range(PIECES):
        at = partial + program * n_classes + piece * WIDTH + columns
        taken = tl.sum(sums[piece], 0)
        if piece == PIECES - 1:
            tl.store(at, taken, mask=inside)
        else:
            tl.store(at, taken)


@triton.jit(do_not_specialize=["n_programs", "n_classes"])
def add_up_kernel(
    partial, sums, n_programs, n_classes, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """WIDTH columns of all programs' sums, ROWS of them at a time."""
    columns = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    added = tl.zeros([ROWS, WIDTH], tl.float64)
    for start in tl.range(0, n_programs, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < n_programs)[:, None] & (columns < n_classes)[None, :]
        at = partial + rows.to(tl.int64)[:, None] * n_classes + columns[None, :]
        added += tl.load(at, mask=inside, other=0.0).to(tl.float64)
    tl.store(sums + columns, tl.sum(added, 0), mask=columns < n_classes)


@triton.jit(do_not_specialize=["n_rows", "n_classes"])
def total_kernel(
    tops, totals, labels, weights, sums, counts, n_rows, n_classes,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, WEIGHTED: tl.constexpr, LABELLED: tl.constexpr,
):  # fmt: skip
    """Sums of ROWS rows' maxima and logarithms, one pair a program, and units of each label, added to the counts."""
    program = tl.program_id(0).to(tl.int64)
    rows = program * ROWS + tl.arange(0, ROWS)
    there = rows < n_rows
    linear = tl.load(tops + rows, mask=there, other=0.0).to(tl.float64)
    entropic = tl.log(tl.load(totals + rows, mask=there, other=1.0).to(tl.float64))
    units = there.to(tl.int64)
    if WEIGHTED:
        weight = tl.load(weights + rows, mask=there, other=0.0)
        linear, entropic, units = linear * weight, entropic * weight, weight.to(tl.int64)
    tl.store(sums + 2 * program, tl.sum(linear, 0))
    tl.store(sums + 2 * program + 1, tl.sum(entropic, 0))
    if LABELLED:
        label = tl.load(labels + rows, mask=there, other=-1)
        if CLASSES > 0:
            classes = tl.arange(0, CLASSES)
            taken = tl.histogram(tl.where(there, label, 0), CLASSES)
            taken -= tl.where(classes == 0, ROWS - tl.sum(there.to(tl.int32), 0), 0)  # rows that are not there
            tl.atomic_add(counts + classes, taken.to(tl.int64), mask=taken > 0, sem="relaxed")
        else:
            tl.atomic_add(counts + label, units, mask=there, sem="relaxed")


@triton.jit
def _read(scores, constants, rows, columns, inside, stride, VECTOR: tl.constexpr):
    """u = scores + potentials of a tile, -inf past the last column."""
    precision = constants.dtype.element_ty
    at = scores + rows[:, None] * stride * VECTOR + columns[None, :]
    values = tl.load(at, mask=inside[None, :], other=-float("inf")).to(precision)
    return values + tl.load(constants + columns, mask=inside, other=0.0)[None, :]


@triton.jit(do_not_specialize=SIZES)
def online_kernel(
    scores, constants, tops, totals, labels, n_rows, n_classes, stride,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, LABELLED: tl.constexpr,
):  # fmt: skip
    """Maximum, its class and sum of exponentials of each row, tile by tile: what was added up shrinks as it rises."""
    n_classes = n_classes * VECTOR
    precision = constants.dtype.element_ty
    scale = tl.load(constants + n_classes)
    numbers = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = numbers < n_rows
    rows = tl.minimum(numbers, n_rows - 1)
    top = tl.full([ROWS], -float("inf"), precision)
    total = tl.zeros([ROWS], precision)
    label = tl.zeros([ROWS], tl.int32)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        u = _read(scores, constants, rows, columns, columns < n_classes, stride, VECTOR)
        highest = tl.max(u, 1)
        if LABELLED:
            found = tl.min(tl.where(u == highest[:, None], columns[None, :], n_classes - 1), 1)
            label = tl.where(highest > top, found, label)
        higher = tl.maximum(top, highest)
        base = tl.where(higher == -float("inf"), 0.0, higher).to(precision)  # or nothing but -inf would give NaN
        total = total * tl.exp2((top - base) * scale) + tl.sum(tl.exp2((u - base[:, None]) * scale), 1)
        top = higher
    tl.store(tops + numbers, top, mask=there)
    tl.store(totals + numbers, total, mask=there)
    if LABELLED:
        tl.store(labels + numbers, label, mask=there)


@triton.jit(do_not_specialize=[*SIZES, "rows_each"])
def columns_kernel(
    scores, constants, tops, shares, partial, n_rows, n_classes, stride, rows_each,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Column sums of rows_each rows in WIDTH columns, from the maxima and shares of the rows."""
    n_classes = n_classes * VECTOR
    scale = tl.load(constants + n_classes)
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < n_classes
    precision = constants.dtype.element_ty
    potentials = tl.load(constants + columns, mask=inside, other=0.0)
    sums = tl.zeros([ROWS, WIDTH], precision)
    for step in tl.range(0, rows_each, ROWS, num_stages=STAGES):
        numbers = program * rows_each + step + tl.arange(0, ROWS)
        rows = tl.minimum(numbers, n_rows - 1)
        at = scores + rows[:, None] * stride * VECTOR + columns[None, :]
        u = tl.load(at, mask=inside[None, :], other=-float("inf")).to(precision) + potentials[None, :]
        share = tl.load(shares + numbers, mask=numbers < n_rows, other=0.0)
        sums += tl.exp2((u - tl.load(tops + rows)[:, None]) * scale) * share[:, None]
    tl.store(partial + program * n_classes + columns, tl.sum(sums, 0), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def label_kernel(
    scores, constants, labels, best, own, sizes, n_rows, n_classes, stride,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, CORRECT: tl.constexpr,
):  # fmt: skip
    """In float64: the best class where labels are -1 (or, if CORRECT, fall short), max u and u at the label.

    Threads keep the best of their own columns, and exchange it once a row. If CORRECT, a second read counts the classes
    within the slack of the label. Behind the potentials stand slack and tie.
    """
    n_classes = n_classes * VECTOR
    numbers = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = numbers < n_rows
    rows = tl.minimum(numbers, n_rows - 1)
    given = tl.load(labels + rows)
    highest = tl.full([ROWS, WIDTH], -float("inf"), tl.float64)
    at = tl.zeros([ROWS, WIDTH], tl.int32)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        u = _read(scores, constants, rows, columns, columns < n_classes, stride, VECTOR)
        higher = u > highest  # of equal ones the first stays
        highest = tl.where(higher, u, highest)
        at = tl.where(higher, columns[None, :], at)
    top = tl.max(highest, 1)
    found = tl.min(tl.where(highest == top[:, None], at, n_classes - 1), 1)
    known = tl.maximum(given, 0)
    held = tl.load(scores + rows * stride * VECTOR + known).to(tl.float64) + tl.load(constants + known)
    renew = given < 0
    if CORRECT:
        renew = renew | (held < top - tl.load(constants + n_classes + 1))
    held = tl.where(renew, top, held)
    tl.store(labels + numbers, tl.where(renew, found, given), mask=there)
    tl.store(best + numbers, top, mask=there)
    tl.store(own + numbers, held, mask=there)
    if CORRECT:
        floor = held - tl.load(constants + n_classes)
        near = tl.zeros([ROWS, WIDTH], tl.int32)
        for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
            columns = start + tl.arange(0, WIDTH)
            u = _read(scores, constants, rows, columns, columns < n_classes, stride, VECTOR)
            near += ((u >= floor[:, None]) & (u > -float("inf"))).to(tl.int32)
        tl.store(sizes + numbers, tl.sum(near, 1), mask=there)


@triton.jit(do_not_specialize=["n_listed", *SIZES[1:]])
def collect_kernel(
    scores, constants, listed, own, starts, classes, values, n_listed, n_classes, stride,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Classes, and their scores in float64, within the slack of u at the label (own) of the rows listed, in order."""
    n_classes = n_classes * VECTOR
    numbers = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = numbers < n_listed
    rows = tl.load(listed + numbers, mask=there, other=0)
    floor = tl.load(own + rows) - tl.load(constants + n_classes)
    begin = tl.load(starts + numbers, mask=there, other=0)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        inside = columns < n_classes
        at = scores + rows[:, None] * stride * VECTOR + columns[None, :]
        score = tl.load(at, mask=inside[None, :], other=-float("inf")).to(tl.float64)
        u = score + tl.load(constants + columns, mask=inside, other=0.0)[None, :]
        near = (u >= floor[:, None]) & (u > -float("inf")) & there[:, None]
        places = begin[:, None] + tl.cumsum(near.to(tl.int32), 1) - 1
        tl.store(classes + places, tl.broadcast_to(columns[None, :], [ROWS, WIDTH]), mask=near)
        tl.store(values + places, score, mask=near)
        begin += tl.sum(near.to(tl.int32), 1)


@triton.jit(do_not_specialize=["n_listed", *SIZES[1:]])
def factors_kernel(
    scores, constants, listed, roots, factors, n_listed, n_classes, stride,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Roots times the plan's rows that are listed, as halves; the second and third read of a row is from the cache."""
    n_classes = n_classes * VECTOR
    precision = constants.dtype.element_ty
    scale = tl.load(constants + n_classes)
    numbers = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = numbers < n_listed
    rows = tl.load(listed + numbers, mask=there, other=0)
    highest = tl.full([ROWS, WIDTH], -float("inf"), precision)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        u = _read(scores, constants, rows, columns, columns < n_classes, stride, VECTOR)
        highest = tl.maximum(highest, u)
    top = tl.max(highest, 1)[:, None]
    added = tl.zeros([ROWS, WIDTH], precision)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        u = _read(scores, constants, rows, columns, columns < n_classes, stride, VECTOR)
        added += tl.exp2((u - top) * scale)
    share = tl.load(roots + numbers, mask=there, other=0.0) / tl.sum(added, 1)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        u = _read(scores, constants, rows, columns, columns < n_classes, stride, VECTOR)
        factor = tl.exp2((u - top) * scale) * share[:, None]
        at = factors + numbers[:, None] * n_classes + columns[None, :]
        tl.store(at, factor.to(tl.float16), mask=there[:, None] & (columns < n_classes)[None, :])


@triton.jit(do_not_specialize=[*SIZES, "n_hashed", "step"])
def inspect_kernel(
    scores, multipliers, hashes, tops, bottoms, bad, forbidden, n_rows, n_classes, stride, n_hashed, step,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, HASHED: tl.constexpr, STAGES: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """A hash of each row, 0 where all its scores are equal; its extremes; how many scores are none, or -inf.

    Threads keep what their own columns show, and exchange it once a row. Hashes are of every step-th score.
    """
    n_classes = n_classes * VECTOR
    number: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    numbers = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = numbers < n_rows
    rows = tl.minimum(numbers, n_rows - 1)
    begin = scores + rows[:, None] * stride * VECTOR
    infinity = float("inf")
    highest = tl.full([ROWS, WIDTH], -infinity, number)
    lowest = tl.full([ROWS, WIDTH], infinity, number)
    n_bad, n_forbidden = tl.zeros([ROWS, WIDTH], tl.int32), tl.zeros([ROWS, WIDTH], tl.int32)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        columns = start + tl.arange(0, WIDTH)
        inside = (columns < n_classes)[None, :]
        u = tl.load(begin + columns[None, :], mask=inside, other=0.0).to(number)
        highest = tl.where((u > highest) & inside, u, highest)  # which no NaN is
        lowest = tl.where((u < lowest) & (u > -infinity) & inside, u, lowest)
        n_bad += ((u != u) | (u == infinity)).to(tl.int32)  # of which zeros past the end are none
        n_forbidden += (u == -infinity).to(tl.int32)
    top, bottom, n_shut = tl.max(highest, 1), tl.min(lowest, 1), tl.sum(n_forbidden, 1)
    digest = tl.zeros([ROWS], tl.int64)
    for start in range(0, n_hashed, HASHED):
        places = start + tl.arange(0, HASHED)
        inside = places < n_hashed
        u = tl.load(begin + (places * step)[None, :], mask=inside[None, :], other=0.0).to(number)
        if DOUBLE:
            bits = u.to(tl.uint64, bitcast=True)
        else:
            bits = u.to(tl.int32, bitcast=True).to(tl.int64).to(tl.uint64, bitcast=True)  # its sign fills the rest
        bits = bits ^ (bits >> 32)
        bits = bits ^ (bits >> 16)
        times = tl.load(multipliers + places, mask=inside, other=0)
        digest += tl.sum(bits.to(tl.int64, bitcast=True) * times[None, :], 1)
    constant = tl.where(n_shut == 0, top == bottom, n_shut == n_classes)
    tl.store(hashes + numbers, tl.where(constant, 0, digest), mask=there)
    tl.store(tops + numbers, top, mask=there)
    tl.store(bottoms + numbers, bottom, mask=there)
    tl.store(bad + numbers, tl.sum(n_bad, 1), mask=there)
    tl.store(forbidden + numbers, n_shut, mask=there)
