"""Sinkhorn iterations of one batch on a CUDA device, by Triton: each pass reads the logits once, and writes a vector.

Plain torch makes a matrix of each step of a logarithm of sums of exponentials. Here a pass over the columns or rows
keeps a running maximum and the sum below it, and the last one writes the assignments. Nothing is added by atomic
operations: results have the same bits from run to run.

Source: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

TILE = 1024  # logits that a program of four warps works on at a time
NARROWEST = 16  # columns of a tile
COLUMNS = 32, 128  # of a program that goes down the rows: few classes are cut finer, so that there are enough programs
MANY_PROGRAMS = 256
LONGEST = 4096  # rows that such a program goes through
STAGES = 3  # tiles on their way from memory, the present one counted


def column_logs(logits, tops, log_rows, inverse):
    """Logarithms of the sums over rows of exp((s - top) * inverse + log_rows), (K,); -inf where nothing is added.

    Args:
        logits: (B, K) of any floating type.
        tops: (B,) largest logit of each row; NaN, inf or -inf where the row is to be left out.
        log_rows: (B,) in the working precision; -inf where the row is to be left out.
        inverse: one number in a tensor, 1 / epsilon.
    """
    logits = _readable(logits)
    n_rows, n_classes = logits.shape
    width = COLUMNS[triton.cdiv(n_classes, COLUMNS[1]) >= MANY_PROGRAMS]
    n_parts = max(1, triton.cdiv(n_rows, LONGEST))
    found = torch.empty((n_parts, n_classes), dtype=log_rows.dtype, device=logits.device)
    with _on(logits.device):
        _column_logs[(triton.cdiv(n_classes, width), n_parts)](
            logits, tops, log_rows, inverse, found, n_rows, n_classes, logits.stride(0), triton.cdiv(n_rows, n_parts),
            ROWS=TILE // width, WIDTH=width, STAGES=STAGES,
        )  # fmt: skip
    return found[0] if n_parts == 1 else torch.logsumexp(found, 0)


def row_logs(logits, tops, log_columns, inverse):
    """Minus the logarithms of the sums over classes of exp((s - top) * inverse - log_columns), (B,), -inf of none.

    Arguments are as above; a class of log_columns -inf is one that all rows forbid.
    """
    found = torch.empty_like(tops, dtype=log_columns.dtype)
    _rows(logits, tops, log_columns, inverse, found, writes=False)
    return found


def assignments(logits, tops, log_columns, inverse):
    """(B, K) float32: exp((s - top) * inverse - log_columns), divided by its sum in each row.

    Zeros in a row whose top is -inf, NaN where it is NaN or inf.
    """
    found = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _rows(logits, tops, log_columns, inverse, found, writes=True)
    return found


def _rows(logits, tops, log_columns, inverse, found, *, writes):
    logits = _readable(logits)
    n_rows, n_classes = logits.shape
    width = min(max(triton.next_power_of_2(n_classes), NARROWEST), TILE)
    rows = TILE // width
    with _on(logits.device):
        _row_logs[(triton.cdiv(n_rows, rows),)](
            logits, tops, log_columns, inverse, found, n_rows, n_classes, logits.stride(0),
            ROWS=rows, WIDTH=width, STAGES=STAGES, WRITES=writes,
        )  # fmt: skip


def _readable(logits):
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _on(device):
    """Kernels run on the current device: the batch's."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@triton.jit
def _grown(highest, total, x):
    """Running maxima and sums of exp(x - maximum), with one more x each."""
    higher = tl.maximum(highest, x)
    base = tl.where(higher == -float("inf"), 0.0, higher).to(x.dtype)  # or nothing but -inf would give NaN
    return higher, total * tl.exp(highest - base) + tl.exp(x - base)


@triton.jit
def _gathered(highest, total, axis: tl.constexpr):
    """Over one axis: the maximum, 0 where that is -inf, and the sum of exp(x - maximum)."""
    top = tl.max(highest, axis)
    base = tl.where(top == -float("inf"), 0.0, top).to(total.dtype)
    return base, tl.sum(total * tl.exp(highest - tl.expand_dims(base, axis)), axis)


@triton.jit(do_not_specialize=["n_rows", "rows_each"])
def _column_logs(
    logits, tops, log_rows, inverse, found, n_rows, n_classes, stride, rows_each,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of rows_each rows, ROWS at a time."""
    precision = log_rows.dtype.element_ty
    scale = tl.load(inverse)
    columns = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = (columns < n_classes)[None, :]
    begin = tl.program_id(1) * rows_each
    end = tl.minimum(begin + rows_each, n_rows)
    highest = tl.full([ROWS, WIDTH], -float("inf"), precision)
    total = tl.zeros([ROWS, WIDTH], precision)
    for start in tl.range(begin, end, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        there = rows < end
        top = tl.load(tops + rows, mask=there, other=-float("inf"))
        log_row = tl.load(log_rows + rows, mask=there, other=-float("inf"))
        at = logits + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        numbers = tl.load(at, mask=there[:, None] & inside, other=-float("inf")).to(precision)
        x = (numbers - top[:, None]) * scale + log_row[:, None]
        x = tl.where((log_row > -float("inf"))[:, None] | (log_row != log_row)[:, None], x, -float("inf"))
        highest, total = _grown(highest, total, x)
    base, added = _gathered(highest, total, 0)
    at = found + tl.program_id(1).to(tl.int64) * n_classes + columns
    tl.store(at, base + tl.log(added), mask=columns < n_classes)


@triton.jit(do_not_specialize=["n_rows"])
def _row_logs(
    logits, tops, log_columns, inverse, found, n_rows, n_classes, stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, WRITES: tl.constexpr,
):  # fmt: skip
    """ROWS rows, WIDTH columns at a time; if WRITES, a second read writes them as they are to be."""
    precision = log_columns.dtype.element_ty
    scale = tl.load(inverse)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < n_rows
    begin = logits + rows.to(tl.int64)[:, None] * stride
    top = tl.load(tops + rows, mask=there, other=-float("inf"))
    good = (top > -float("inf")) & (top < float("inf"))
    shift = tl.where(good, top, 0.0).to(precision)
    highest = tl.full([ROWS, WIDTH], -float("inf"), precision)
    total = tl.zeros([ROWS, WIDTH], precision)
    for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
        x = _shifted(begin, log_columns, start + tl.arange(0, WIDTH), n_classes, shift, scale, good)
        highest, total = _grown(highest, total, x)
    base, added = _gathered(highest, total, 1)
    if not WRITES:
        tl.store(found + rows, tl.where(added == 0, -float("inf"), -base - tl.log(added)), mask=there)
    else:
        missing = tl.where(top == -float("inf"), 0.0, float("nan"))
        for start in tl.range(0, n_classes, WIDTH, num_stages=STAGES):
            columns = start + tl.arange(0, WIDTH)
            x = _shifted(begin, log_columns, columns, n_classes, shift, scale, good)
            share = tl.exp(x - base[:, None]) / added[:, None]
            share = tl.where(good[:, None], share.to(tl.float32), missing[:, None])
            at = found + rows.to(tl.int64)[:, None] * n_classes + columns[None, :]
            tl.store(at, share, mask=there[:, None] & (columns < n_classes)[None, :])


@triton.jit
def _shifted(begin, log_columns, columns, n_classes, shift, scale, good):
    """Exponents of a tile, -inf past the last column and in rows that are left out."""
    precision = log_columns.dtype.element_ty
    inside = columns < n_classes
    numbers = tl.load(begin + columns[None, :], mask=good[:, None] & inside[None, :], other=-float("inf"))
    log_column = tl.load(log_columns + columns, mask=inside, other=0.0)
    log_column = tl.where(log_column == -float("inf"), 0.0, log_column).to(precision)  # of a class that all rows forbid
    moved = numbers.to(precision) - shift[:, None]
    times, less = tl.broadcast_to(scale, moved.shape), tl.broadcast_to(-log_column[None, :], moved.shape)
    return tl.fma(moved, times, less)  # the same bits in both reads
