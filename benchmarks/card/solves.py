"""Whole solves, from scores in the device's memory to labels in its memory: their time, and the CPU's answers."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

import otlabel
from card.checking import EPSILON, TOL, Check, Plan, begin_peak, free, median_of, peak_gb, wait
from card.right import apart_and_allowed
from card.scores import parts_of, zipf_problem
from otlabel.sources import TensorSource


def how(rounding: str) -> dict[str, Any]:
    """The settings of every solve that is compared."""
    return {"epsilon": EPSILON, "tol": TOL, "rounding": rounding}


def solve_row(scores: Any, plan: Plan, settings: dict[str, Any]) -> dict:
    """One solve from scores in the device's memory to labels in its memory, and where its time went."""
    begin_peak(plan.device)
    begun = time.perf_counter()
    found = otlabel.sinkhorn_assign(scores, **settings)
    wait(plan.device)
    seconds = time.perf_counter() - begun
    stages: dict[str, float] = {}
    before = 0.0
    for record in found.history:
        name = record["stage"] if record["rows"] in (0, found.labels.shape[0]) else f"{record['stage']} (samples)"
        stages[name] = stages.get(name, 0.0) + record["seconds"] - before
        before = record["seconds"]
    counts = np.asarray(found.counts.cpu() if isinstance(found.counts, torch.Tensor) else found.counts)
    return {
        "seconds": seconds,
        "peak_gb": peak_gb(plan.device),
        "sweeps": found.n_sweeps,
        "readings": found.n_readings,
        "class_error": found.marginal_error,
        "value": found.value,
        "gap": found.gap,
        "sizes": [int(counts.min()), int(counts.max())],
        "status": found.status.name,
        "stages": stages,
    }


def time_solves(check: Check) -> None:
    """Entropic and exact at two sizes, each twice, all compiled before."""
    plan = check.plan
    for shape in reversed(plan.solves):
        check.row(f"compiling, {shape[1]} classes", lambda n=shape[1]: _compile(n, plan))
        problem = zipf_problem(shape, plan.device, plan.loop_seconds)
        name = f"{shape[0]} x {shape[1]}"
        made = otlabel.linear_scores(problem.features, problem.weight.T, problem.offset)
        for rounding, origin, scores in (
            ("argmax", "", problem.scores), ("exact", "", problem.scores), ("argmax", " from features", made),
        ):  # fmt: skip
            check.row(f"otlabel {rounding}{origin}, {name}", lambda s=scores, r=rounding: _solved_twice(check, s, r), 5)
        del problem, made, scores
        free(plan.device)


def _compile(n_classes: int, plan: Plan) -> dict:
    """Solve a small problem of so many classes in each way that is measured, which compiles what these need."""
    begun = time.perf_counter()
    problem = zipf_problem((4 * n_classes, n_classes), plan.device)
    for rounding in ("exact", "argmax"):
        solve_row(problem.scores, plan, how(rounding))
    solve_row(otlabel.linear_scores(problem.features, problem.weight.T, problem.offset), plan, how("argmax"))
    return {"seconds": time.perf_counter() - begun, "status": "not a solve"}


def _solved_twice(check: Check, scores: Any, rounding: str) -> dict:
    first = solve_row(scores, check.plan, how(rounding))
    again = solve_row(scores, check.plan, how(rounding)) if first["seconds"] < 0.2 * check.left else first
    return again | {"first_seconds": first["seconds"]}


def compare_with_cpu(check: Check) -> None:
    """The same scores on the card and on the CPU: values within both gaps, class errors within the tolerance."""
    plan = check.plan
    scores = zipf_problem(plan.compared, plan.device).scores
    there = scores.cpu().numpy()
    for rounding in ("exact", "argmax"):
        check.row(rounding, lambda r=rounding: _compared(scores, there, r, plan), 15)


def _compared(scores: torch.Tensor, there: np.ndarray, rounding: Any, plan: Plan) -> dict:
    found = otlabel.sinkhorn_assign(TensorSource(scores), **how(rounding))
    begun = time.perf_counter()
    expected = otlabel.sinkhorn_assign(there, **how(rounding))
    row = {"shape": list(plan.compared), "cpu_seconds_compiled_or_not": time.perf_counter() - begun}
    apart, allowed = apart_and_allowed(found, expected)
    errors = [found.marginal_error, expected.marginal_error]
    row |= {"value": found.value, "cpu_value": expected.value, "apart": apart, "allowed": allowed, "errors": errors}
    # Labels by argmax are of plans that meet the tolerance, each with sizes and a value of its own.
    right = apart <= allowed if rounding == "exact" else max(errors) <= TOL
    return row | {"wrong": [] if right else [f"{rounding}: {found.value!r} on the card, {expected.value!r} here"]}


def stream(check: Check) -> None:
    """A matrix in host memory that the card may not hold: the value of one that it may, in a fraction of the memory."""
    from otlabel.sources import device

    plan = check.plan
    scores = zipf_problem(plan.streamed, plan.device).scores.cpu().numpy()
    free(plan.device)
    shares = {"whole": device.MEMORY_SHARE, "streamed": 0.0}

    def solved(share: float) -> dict:
        free(plan.device)
        begin_peak(plan.device)
        begun, kept = time.perf_counter(), device.MEMORY_SHARE
        device.MEMORY_SHARE = share
        try:
            found = otlabel.sinkhorn_assign(scores, epsilon=EPSILON, tol=TOL, device=plan.device)
        finally:
            device.MEMORY_SHARE = kept
        row = {"seconds": time.perf_counter() - begun, "peak_gb": peak_gb(plan.device), "gb": scores.nbytes / 1e9}
        return row | {"value": found.value, "gap": found.gap, "readings": found.n_readings}

    check.keep("shape", list(plan.streamed))
    rows = [check.row(name, lambda s=share: solved(s), 10) for name, share in shares.items()]
    if all(rows):
        whole, streamed = rows
        allowed = max(whole["gap"], 0) + max(streamed["gap"], 0) + 1e-12 * max(1, abs(whole["value"]))
        right = abs(whole["value"] - streamed["value"]) <= allowed
        check.keep("wrong", [] if right else [f"{whole['value']!r} whole, {streamed['value']!r} streamed"])


def time_factored(check: Check) -> None:
    """Heads on shared features, one after the other, as long as time lasts."""
    n_heads, n_rows, dim, n_classes = check.plan.factored
    device = check.plan.device
    generator = torch.Generator(device).manual_seed(1)
    features = torch.empty(n_rows, dim, dtype=torch.float16, device=device)
    for part in parts_of(n_rows, 1 << 17):
        features[part] = torch.randn(part.stop - part.start, dim, device=device, generator=generator)
    weights = [torch.randn(n_classes, dim, device=device, generator=generator) / math.sqrt(dim) for _ in range(n_heads)]
    some = features[: 1 << 17].float()
    check.found = {"heads_asked": n_heads, "shape": [n_rows, dim, n_classes], "heads": []}
    check.row("product", lambda x=some: median_of(lambda: x @ weights[0].T, check.plan) * n_rows / len(x))
    del some
    longest = 0.0
    for head in otlabel.linear_scores(features, weights):
        if check.left < 1.5 * longest:
            break
        longest = max(longest, (row := solve_row(head, check.plan, how("argmax")))["seconds"])
        check.found["heads"].append(row)
        check.write()
