"""The card's memory, and how near to its speed a pass over all scores comes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from card.checking import EPSILON, IMAGENET, Check, Plan, free, median_of, timed
from card.scores import zipf_problem
from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.sources import TensorSource


def time_copy(check: Check) -> None:
    """What the card's memory moves: a copy (bytes read and written), and a sum (bytes read)."""
    size = check.plan.copy_bytes
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=check.plan.device)
    target = torch.empty_like(source)
    check.row("copy_gb_s", lambda: 2 * size / median_of(lambda: target.copy_(source), check.plan) / 1e9)
    check.row("read_gb_s", lambda: size / median_of(lambda: source.view(torch.int64).sum(), check.plan) / 1e9)


def time_sweep(check: Check) -> None:
    """One sweep of everything against reading the matrix once; and the other passes of a solve."""
    plan, (n_rows, n_classes) = check.plan, check.plan.sweep
    scores = zipf_problem(plan.sweep, plan.device).scores
    source, g = TensorSource(scores), np.random.default_rng(0).standard_normal(n_classes)
    n_bytes = scores.numel() * scores.element_size()
    flat = scores.view(-1)
    check.keep("gb", n_bytes / 1e9)
    read = check.row(
        "read_once", lambda: median_of(lambda: flat[: flat.numel() // 4 * 4].view(torch.int64).sum(), plan)
    )
    passes: dict[str, Callable[[], Any]] = {
        "sweep": lambda: sweep.sweep(RowSet(source), g, EPSILON, None, np.float32, with_labels=False),
        "sweep_with_labels": lambda: sweep.sweep(RowSet(source), g, EPSILON, None, np.float32),
        "sweep_float64": lambda: sweep.sweep(RowSet(source), g, EPSILON, None, np.float64, with_labels=False),
        "label": lambda: sweep.label(RowSet(source), g),
        "candidates": lambda: sweep.candidates(RowSet(source), g, np.full(n_rows, -1, np.int32), 1e-3, 1e-12),
        "inspect": lambda: sweep.inspect(RowSet(source)),
    }
    for name, call in passes.items():
        seconds = check.row(name, lambda call=call: median_of(call, plan))
        if name == "sweep" and read and seconds:
            check.keep("sweep_over_read", seconds / read)


def tune_sweep(check: Check) -> None:
    """The kernel alone at several shapes, with and without labels, in GB/s of what is read; the default comes first."""
    if check.plan.device != "cuda":
        check.keep("note", "only on a card")
        return
    from otlabel.sweep import cuda

    check.keep("fields", list(cuda.Shape._fields))
    for n_classes, labelled in ((3000, False), (1000, False), (300, False), (3000, True), (1000, True)):
        n_rows = IMAGENET // 4 * 3000 // n_classes
        scores = torch.randn(n_rows, n_classes, device="cuda", dtype=torch.float16)
        chosen = cuda.fused_shape(n_classes, torch.float32)
        tried = [(chosen, cuda.ROWS_A_PROGRAM), (chosen._replace(stages=4), cuda.ROWS_A_PROGRAM)]
        tried += [] if labelled else [(chosen, 64), (chosen, 128)]
        for shape, each in tried:
            name = f"{n_classes}{' labelled' if labelled else ''} {tuple(shape)}" + f", {each} rows"
            check.row(name, lambda s=scores, h=shape, e=each, q=labelled: _kernel_gb_s(s, h, e, q, check.plan), 5)
        del scores
        free("cuda")


def _kernel_gb_s(scores: torch.Tensor, shape: Any, rows_a_program: int, labelled: bool, plan: Plan) -> float:
    from otlabel.sweep import cuda

    n_rows, n_classes = scores.shape
    view, constants = cuda._view(scores), torch.randn(n_classes + 1, device=scores.device)
    constants[-1] = math.log2(math.e) / EPSILON
    tops, totals = cuda._per_row(view, torch.float32, 2)
    best = torch.empty(n_rows if labelled else 0, dtype=torch.int32, device=scores.device)
    kept = cuda.fused_shape, cuda.ROWS_A_PROGRAM
    cuda.fused_shape, cuda.ROWS_A_PROGRAM = (lambda *_: shape), rows_a_program
    try:
        seconds = timed(lambda: cuda._reduce_once(view, constants, None, tops, totals, best), plan)
    finally:
        cuda.fused_shape, cuda.ROWS_A_PROGRAM = kept
    return scores.nbytes / seconds["median"] / 1e9
