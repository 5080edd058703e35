"""Whether answers are right: sweeps and passes against float64 and plain torch, problems against the CPU and HiGHS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import several
import torch
from problems import KINDS, draw

import otlabel
from card.checking import EPSILON, BrokenCardError, Check, Plan, answers, wait
from otlabel import sweep
from otlabel.errors import InfeasibleError
from otlabel.ranks.rowset import RowSet
from otlabel.sources import TensorSource
from otlabel.sweep import reference, running
from otlabel.sweep.contract import Immediate

PASSES = [("float16", 7), ("float16", 130), ("float16", 1000), ("float16", 10_000)] + [
    (name, 3001) for name in ("float16", "float32", "float64")
]  # that labels, candidates and first looks are checked for: each is compiled
SEVERAL = 20  # problems of several labels a sample


def on_card(scores: Any, plan: Plan) -> TensorSource:
    """Scores of any kind as a device has them."""
    tensor = scores if isinstance(scores, torch.Tensor) else torch.from_numpy(_native(np.asarray(scores)))
    if not tensor.is_floating_point():
        tensor = tensor.double()
    return TensorSource(tensor.to(plan.device))


def _native(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))


def check_problems(check: Check) -> None:
    """Every kind of problem of the tests, against the CPU; those of several labels a sample, against HiGHS."""
    check.found = {"problems": 0, "of several labels": 0, "wrong": [], "largest_relative_difference": 0.0}
    problems = {f"{kind}/{seed}": (_solve_as_cpu, kind, seed) for seed in range(check.plan.seeds) for kind in KINDS}
    problems |= {f"several labels/{number}": (_solve_several, number) for number in range(SEVERAL)}
    for name, (solve, *drawn) in problems.items():
        if check.left < 0:
            check.keep("failure", f"out of time before {name}")
            return
        _tried(check, name, lambda solve=solve, drawn=drawn: solve(check, *drawn))
        check.write()


def _tried(check: Check, name: str, call: Callable[[], str]) -> None:
    """What the call says is wrong, or that it failed, is kept; where the card answers no more, others are to go on."""
    try:
        told = call()
        wait(check.plan.device)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        if not answers(check.plan.device):
            check.found["wrong"].append(f"{name}: {told}"[:300])
            raise BrokenCardError(name) from error
    if told:
        check.found["wrong"].append(f"{name}: {told}"[:300])


def _solve_as_cpu(check: Check, kind: str, seed: int) -> str:
    """Class sizes, and values within both gaps."""
    drawn = draw(kind, seed)
    expected = otlabel.sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)
    found = otlabel.sinkhorn_assign(on_card(drawn.scores, check.plan), class_mass=drawn.class_mass)
    apart, allowed = apart_and_allowed(found, expected)
    relative = apart / max(1.0, abs(expected.value))
    check.found["problems"] += 1
    check.found["largest_relative_difference"] = max(check.found["largest_relative_difference"], relative)
    if np.array_equal(found.counts, drawn.counts) and apart <= allowed and found.gap >= -1e-12:
        return ""
    return f"values {found.value!r} {expected.value!r}, gap {found.gap:.3g}"


def _solve_several(check: Check, number: int) -> str:
    """All that an answer claims, anew from the scores."""
    drawn = several.draw(number)
    check.found["of several labels"] += 1
    try:
        found = otlabel.sinkhorn_assign(on_card(drawn.scores, check.plan), labels_per_sample=drawn.k, **drawn.arguments)
    except InfeasibleError:
        there_is_one = several.best_total(drawn.scores, drawn.k, drawn.lo, drawn.hi) is not None
        return "called infeasible" if there_is_one else ""
    return "; ".join(several.faults(drawn, found))


def apart_and_allowed(found: Any, expected: Any) -> tuple[float, float]:
    """How far two values of one problem are apart, and how far they may be: both gaps, and rounding."""
    noise = 1e-12 * max(1.0, abs(expected.value))
    return abs(found.value - expected.value), max(found.gap, 0.0) + max(expected.gap, 0.0) + noise


def check_sweeps(check: Check) -> None:
    """Sweeps of larger blocks against float64 formulas, in every type; and twice, for the same bits."""
    generator = torch.Generator(check.plan.device).manual_seed(0)
    rows = 3001 if check.plan.device == "cuda" else 101
    check.found = {"sweeps": 0, "wrong": [], "same_bits": True, "errors": {}}
    for n_classes in (7, 130, 1000, 3000, 3001, 8192, 10_000, 65_536) if rows > 1000 else (7, 130):
        for name in ("float16", "bfloat16", "float32", "float64"):
            numbers = 2 * torch.randn(rows, n_classes, device=check.plan.device, generator=generator)
            scores = numbers.to(getattr(torch, name))
            g = np.random.default_rng(n_classes).standard_normal(n_classes)
            for precision in (np.float32, np.float64) if name in ("float16", "float64") else (np.float32,):
                key = f"{n_classes} {name} {np.dtype(precision).name}"
                if check.left < 0:
                    check.found["not_checked"] = f"{key} and what follows: out of time"
                    return
                _tried(check, key, lambda s=scores, g=g, p=precision, k=key: _check_sweep(check.found, k, s, g, p))
                if precision is np.float32 and (name, n_classes) in PASSES:
                    _tried(check, key, lambda s=scores, g=g: _check_passes(check.found, s, g))
                check.write()


def _check_sweep(found: dict, key: str, scores: torch.Tensor, g: np.ndarray, precision: type) -> str:
    source, rows = TensorSource(scores), len(scores)
    first, second = (sweep.sweep(RowSet(source), g, EPSILON, None, precision) for _ in range(2))
    bare = first
    if scores.dtype in (torch.float16, torch.float32):  # without labels: a kernel of its own
        bare = sweep.sweep(RowSet(source), g, EPSILON, None, precision, with_labels=False)
    same = [first.mass.tobytes() == other.mass.tobytes() for other in (second, bare)]
    found["same_bits"] &= all(same) and first.entropic == second.entropic
    u = scores.double() + torch.from_numpy(g.astype(precision)).double().to(scores.device)
    mass = torch.softmax(u / EPSILON, 1).sum(0).cpu().numpy() / rows
    rounding = 3 * np.finfo(precision).eps * float(u.abs().max()) / EPSILON + 2e-6
    error = max(float(np.abs(one.mass - mass).sum()) for one in (first, bare))
    linear = max(abs(one.linear - float(u.amax(1).mean())) for one in (first, bare))
    agreeing = float((u.argmax(1).cpu().numpy() == first.labels).mean())
    found["errors"][key] = {"mass": error, "linear": linear, "labels_agreeing": agreeing}
    found["sweeps"] += 1
    return "" if error <= rounding and linear <= rounding and agreeing > 0.999 else str(found["errors"][key])


def _check_passes(found: dict, scores: torch.Tensor, g: np.ndarray) -> str:
    """Labels, candidates and the first look: each number as plain torch has it."""
    scores = scores[:1001].clone()
    scores[::7, ::3] = -torch.inf
    scores[5], scores[6] = 1.5, scores[8]
    source, none = TensorSource(scores), np.full(len(scores), -1, np.int32)
    calls: dict[str, Callable[[], Any]] = {
        "label": lambda: sweep.label(RowSet(source), g),
        "candidates": lambda: list(vars(sweep.candidates(RowSet(source), g, none.copy(), 0.3, 1e-12)).values()),
        "inspect": lambda: list(vars(sweep.inspect(RowSet(source))).values()),
        "inspect all": lambda: list(vars(sweep.inspect(RowSet(source), every_score=True)).values()),
    }
    chosen, wrong = running.backend_of, []
    for name, call in calls.items():
        there = call()
        running.backend_of = lambda _: Immediate(reference)
        try:
            expected = call()
        finally:
            running.backend_of = chosen
        if not all(np.array_equal(one, other) for one, other in zip(there, expected, strict=True)):
            wrong.append(f"{name} is not what plain torch makes of it")
        found["passes"] = found.get("passes", 0) + 1
    return ", ".join(wrong)
