"""What came in, looked at once: settings, scores, masses, labels. Everything inside may then trust them."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from otlabel import sweep
from otlabel.distributed import Share
from otlabel.errors import (
    DegenerateScoresWarning,
    FewSamplesWarning,
    InfeasibleError,
    InvalidMassError,
    InvalidScoresError,
)
from otlabel.marginals import (
    KL,
    MASS_TOLERANCE,
    MASS_UNITS,
    Exact,
    Range,
    Rule,
    class_shares,
    class_sizes,
    rule_of,
    with_abstention,
)
from otlabel.monitor import Monitor
from otlabel.problem import EXACT, Method, Problem, Rounding, Solver
from otlabel.scores import Scores, WithColumn, as_array, as_float, draw_rows

LOOK_ROWS = 1024  # rows that are looked at for signs of probabilities


def check_solver(epsilon: float, rounding: Rounding, tol: float, max_sweeps: int, method: Method, seed: int) -> Solver:
    """The settings, once each is seen to make sense."""
    for name, number in (("epsilon", epsilon), ("tol", tol)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number}; it must be a positive number")
    for name, value, choices in (("rounding", rounding, ("exact", "argmax")), ("method", method, ("auto", "sinkhorn"))):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps is {max_sweeps}; at least one pass is needed")
    return Solver(float(epsilon), rounding, float(tol), int(max_sweeps), method, int(seed))


def check_problem(
    scores: Scores,
    sampled: np.ndarray,
    monitor: Monitor,
    *,
    class_mass: Any = None,
    sample_mass: Any = None,
    classes: Exact | KL | Range = EXACT,
    samples: Exact | KL = EXACT,
    abstain: float = 0.0,
) -> tuple[Problem, np.ndarray]:
    """The problem, after a first look at every score; and a hash of each row. Samples will be taken from `sampled`.

    Of several ranks, scores are those worked on here, and sample_mass is of all rows.
    """
    share, team, n_classes = scores.share, scores.share.team, scores.shape[1]
    n_rows = share.n_rows
    shares = check_mass(class_mass, n_rows, n_classes)
    weights, n_units = check_sample_mass(sample_mass, n_rows)
    weights = None if weights is None else weights[share.first : share.stop]
    if not isinstance(samples, (Exact, KL)):
        raise TypeError(f"samples is {samples!r}; pass Exact() or KL(rho)")
    if not 0 <= abstain < 1:
        raise ValueError(f"abstain is {abstain}; pass the share of samples to leave unlabelled, from 0 to below 1")
    if isinstance(samples, Exact):
        abstain = round(abstain * n_units) / n_units  # whole samples first, so that the classes share what they leave
        if abstain == 1:
            raise ValueError(f"abstain leaves none of the {n_rows} samples to be labelled")
    rule = rule_of(classes, shares * (1 - abstain), n_rows)
    inspection = sweep.inspect(scores)
    monitor.saw("inspect", n_rows)
    check_finite(scores, inspection)
    if inspection.n_forbidden:
        rule = _check_forbidden(scores, inspection, rule, monitor, may_abstain=abstain > 0)
    tops, bottoms = inspection.tops.astype(np.float64), inspection.bottoms.astype(np.float64)
    open_rows = tops > -np.inf
    extents = np.where(open_rows, tops - bottoms, 0.0)
    wide = np.where(open_rows, np.maximum(tops, 0) - np.minimum(bottoms, 0), np.maximum(tops, 0))  # with a score of 0
    magnitude, extent, extent_of_all, top, below = team.largest(
        "extents",
        np.abs(tops[open_rows]).max(initial=0.0),
        extents.max(initial=0.0),
        wide.max(initial=0.0),
        tops.max(initial=-np.inf),
        -bottoms.min(initial=np.inf),
    )
    if n_rows < n_classes and class_mass is None and isinstance(classes, Exact):
        warn(FewSamplesWarning, f"{n_rows} samples for {n_classes} classes: sizes are 0 or 1")
    if n_classes > 1 and not inspection.n_forbidden and not extent:
        warn(DegenerateScoresWarning, "every row's scores are all equal: they carry no information, labels are random")
    elif n_classes > 1 and top <= 1 and below <= 0 and _look_like_probabilities(scores, sampled):
        warn(DegenerateScoresWarning, "rows are in [0, 1] and sum to 1, like probabilities: pass the logarithm of them")
    if abstain > 0:
        scores, rule, extents = WithColumn(scores), with_abstention(rule, abstain), wide
        extent = extent_of_all
    problem = Problem(
        scores=scores,
        rule=rule,
        n_units=n_units,
        spread=team.median("spread", extents),
        extent=extent,
        magnitude=magnitude,
        sampled=sampled,
        weights=weights,
        row_rho=samples.rho if isinstance(samples, KL) else math.inf,
    )
    if math.isinf(problem.row_rho):
        rule.unit_bounds(n_units)  # raises where no sizes will do, before anything long begins
    return problem, inspection.hashes


def check_sample_mass(sample_mass: Any, n_rows: int) -> tuple[np.ndarray | None, int]:
    """How many units each row has (None for one each), and their sum."""
    if sample_mass is None:
        return None, n_rows
    given = as_array(sample_mass)
    if given.shape != (n_rows,) or given.dtype.kind not in "iuf":
        raise InvalidMassError(f"sample_mass has shape {given.shape} of {given.dtype}; pass one number for each row")
    mass, whole = given.astype(np.float64), given.dtype.kind in "iu"
    if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
        worst = int(np.argmax(~np.isfinite(mass) | (mass < 0)))
        raise InvalidMassError(f"sample_mass[{worst}] is {mass[worst]}; masses must be finite, not negative, not all 0")
    if not whole and abs(mass.sum() - 1) > MASS_TOLERANCE:
        raise InvalidMassError(
            f"sample_mass sums to {mass.sum():.9g}; pass shares that sum to 1 (sample_mass / sample_mass.sum()) or "
            "integers"
        )
    if (mass == mass[0]).all():
        return None, n_rows
    if whole:
        return mass, int(given.sum())
    return class_sizes(mass / mass.sum(), MASS_UNITS).astype(np.float64), MASS_UNITS


def check_finite(scores: Scores, inspection: sweep.Inspection) -> None:
    """Raise InvalidScoresError that names the first NaN or +inf, if there is one."""
    if not inspection.n_bad:
        return
    share, found = scores.share, ""
    for start, stop in scores.blocks():
        block = scores.read(start, stop)
        values = as_float(block, scores.dtype)
        bad = np.isnan(values) | (values == np.inf)
        if bad.any():
            row, cls = np.argwhere(bad)[0]
            found = f"{scores.place(start + int(row))}, class {cls} ({values[row, cls]})"
            break
    where = share.team.first("bad scores", found)
    raise InvalidScoresError(
        f"{inspection.n_bad} of {share.n_rows * scores.shape[1]} scores are NaN or +inf, the first at {where}; mend "
        "them, or use -inf to forbid a pair"
    )


def check_mass(class_mass: Any, n_rows: int, n_classes: int) -> np.ndarray:
    """Class masses as (K,) shares, from shares, sizes or nothing."""
    return class_shares(None if class_mass is None else as_array(class_mass), n_rows, n_classes)


def _check_forbidden(
    scores: Scores, inspection: sweep.Inspection, rule: Rule, monitor: Monitor, *, may_abstain: bool
) -> Rule:
    """Refuse rows without any class, and classes that must have samples but may have none; others of these are shut."""
    share = scores.share
    n_closed, first = _counted(inspection.tops == -np.inf, share)
    if n_closed and not may_abstain:
        raise InfeasibleError(
            f"{n_closed} rows have no class allowed (all scores are -inf), the first is row {first}; "
            "leave these rows out or allow at least one class"
        )
    if not rule.wanted.all() and not may_abstain:
        check_open_rows(scores, rule.wanted)
        monitor.saw("inspect", share.n_rows)
    allowed, n_read = np.zeros(len(rule.mass), bool), 0
    for start, stop in scores.blocks():
        allowed |= (as_float(scores.read(start, stop), scores.dtype) > -np.inf).any(0)
        n_read = stop
        if allowed.all():
            break
    n_allowing, read = share.team.total("allowed", allowed.astype(np.int64), np.array(n_read))
    allowed = n_allowing > 0
    monitor.saw("inspect", int(read))
    closed = np.flatnonzero(~allowed & (rule.lo > 0))
    if len(closed):
        least = rule.lo[closed[0]] * share.n_rows
        raise InfeasibleError(
            f"class {closed[0]} is to take {least:.6g} samples, but its scores are all -inf "
            f"({len(closed)} such classes); give it mass 0 or allow some pairs"
        )
    return replace(rule, hi=np.where(allowed, rule.hi, 0.0))


def check_open_rows(scores: Scores, takers: np.ndarray) -> None:
    """Refuse rows whose allowed classes are all among those that take nothing; `takers` (K,) says which take some."""
    if takers.all():
        return
    _, best, _ = sweep.label(scores, np.where(takers, 0.0, -np.inf))
    n_closed, first = _counted(best == -np.inf, scores.share)
    if n_closed:
        raise InfeasibleError(
            f"{n_closed} rows are only allowed classes that are to take nothing, the first is row {first}; give "
            "those classes mass or allow other pairs"
        )


def _counted(chosen: np.ndarray, share: Share) -> tuple[int, int]:
    """How many rows of all ranks are chosen, and the first of them."""
    rows = np.flatnonzero(chosen) + share.first
    (number,) = share.team.total("rows", np.array(len(rows)))
    first = -share.team.largest("rows", -float(rows[0]) if len(rows) else -math.inf)[0]
    return int(number), int(first) if number else -1


def _look_like_probabilities(scores: Scores, sampled: np.ndarray) -> bool:
    """Whether a few rows, all within [0, 1], sum to 1."""
    rows = sampled[draw_rows(len(sampled), LOOK_ROWS, np.random.default_rng(0))]
    sample, near = scores.take(scores.share.within(rows)), 1e-3 if scores.dtype in ("float32", "float64") else 2e-2
    farthest = 0.0
    for block in sample.blocks():
        sums = as_float(sample.read(*block), scores.dtype).astype(np.float64).sum(1)
        farthest = max(farthest, float(np.abs(sums - 1).max()))
    return scores.share.team.largest("look", farthest)[0] < near


def check_labels(labels: Any, n_rows: int, n_classes: int) -> np.ndarray:
    """Labels as (N,) int64, each of them a class, or -1 for none."""
    given = as_array(labels)
    if given.shape != (n_rows,) or given.dtype.kind not in "iu":
        raise ValueError(f"labels must be {n_rows} integers, one a row; got shape {given.shape} of {given.dtype}")
    outside = np.flatnonzero((given < -1) | (given >= n_classes))
    if len(outside):
        raise ValueError(
            f"{len(outside)} labels are outside of 0 ... {n_classes - 1} (-1 for none), the first is "
            f"labels[{outside[0]}] = {given[outside[0]]}"
        )
    return given.astype(np.int64)


def check_vector(values: Any, n_classes: int, name: str) -> np.ndarray:
    """One number a class as (K,) float64; -inf is legal, it keeps a class empty."""
    vector = as_array(values).astype(np.float64)
    if vector.shape != (n_classes,) or np.isnan(vector).any() or (vector == np.inf).any():
        raise ValueError(
            f"{name} must be {n_classes} numbers, one a class, and none NaN or +inf; got shape {vector.shape}"
        )
    return vector


def warn(category: type[Warning], message: str) -> None:
    """Warn at the line that called otlabel."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("otlabel."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
