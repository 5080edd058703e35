"""The passes over the scores that a diagnosis is made of."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from otlabel import sweep
from otlabel.assign import sinkhorn_assign
from otlabel.doctor.diagnosis import Diagnosis, Finding, Kind
from otlabel.doctor.findings import (
    SHARPNESS,
    findings_of_balance,
    findings_of_classes,
    findings_of_epsilon,
    findings_of_input,
)
from otlabel.errors import InfeasibleError, OtlabelWarning
from otlabel.interrupts import interruptible
from otlabel.marginals import class_sizes
from otlabel.ranks.rowset import RowSet
from otlabel.solver.posing import has_shares, sum_to_one
from otlabel.sources import cached, class_mass_of, draw_rows, open_scores
from otlabel.sources.listed import ListedSource
from otlabel.validate import check_mass

ASSESSED_ENTRIES = 100_000_000  # scores up to which all rows are balanced to see what it costs: a few seconds
LOOK_ENTRIES = 2_000_000  # scores that a closer look takes
LOOK_ROWS = 4096  # and no more rows than these
SEED = 0  # of both samples, so that two looks at one matrix say the same
GREEDY = 4.0  # times its mass: a class that is best for so many samples swallows others


@dataclass(frozen=True, eq=False)
class _Usable:
    """The rows that can be looked at, and what the first pass said of every row."""

    rows: np.ndarray  # (R,) int64, sorted
    sampled: np.ndarray  # (S,) int64, sorted: those of them that are in memory
    n_nan: int
    n_plus_inf: int
    n_minus_inf: int
    n_bad_rows: int
    n_closed_rows: int
    inspection: sweep.Inspection


@interruptible
def diagnose(scores: Any, *, class_mass: Any = None) -> Diagnosis:
    """Look at scores without labelling them: usable or not, what balance will change, which epsilon fits.

    The suggested epsilon solves  mean_i max_k softmax_k((s_ik + g_k) / epsilon) = 0.9  at the potentials g of the
    exactly balanced labels: nine tenths of a typical sample stay on its best class and one tenth tells where else it
    might go. It scales with the scores, and constants added to rows or classes do not change it.

    Args:
        scores: (N, K), anything that `sinkhorn_assign` takes. NaN and inf are counted, not refused.
        class_mass: (K,) what each class is to take, as for `sinkhorn_assign`. None: 1/K each.

    Returns:
        Diagnosis with the numbers and the findings made of them; `summary()` for people, `to_dict()` for machines.

    Raises:
        InvalidScoresError: no matrix of real numbers.
        InvalidMassError: class_mass of wrong length, sign or sum.
    """
    opened = open_scores(scores).refined
    n_rows, n_classes = opened.shape
    shares = check_mass(class_mass_of(class_mass, opened), n_rows, n_classes)
    n_sampled = max(LOOK_ROWS, ASSESSED_ENTRIES // n_classes)
    sampled = draw_rows(n_rows, n_sampled, np.random.default_rng(SEED))
    rows = RowSet(cached(opened, 0, sampled))
    usable = _usable_rows(rows, sampled)
    bare = Diagnosis(
        n_rows=n_rows,
        n_classes=n_classes,
        dtype=opened.dtype,
        n_nan=usable.n_nan,
        n_plus_inf=usable.n_plus_inf,
        n_minus_inf=usable.n_minus_inf,
        n_bad_rows=usable.n_bad_rows,
        n_closed_rows=usable.n_closed_rows,
        balanced_sizes=tuple(class_sizes(shares, n_rows).tolist()),
    )
    if not len(usable.rows):
        return replace(bare, findings=tuple(findings_of_input(bare)))
    looked = _with_looks(bare, rows, usable, shares)
    assessed, findings = _with_assessment(looked, rows, usable, shares)
    everything = [*findings_of_input(assessed), *findings_of_classes(assessed, shares), *findings]
    return replace(assessed, findings=tuple(everything))


# ---- looking ----


def _usable_rows(scores: RowSet, sampled: np.ndarray) -> _Usable:
    """The first pass; only where it met NaN or +inf does a second one tell them apart."""
    inspection = sweep.inspect(scores)
    good = np.ones(scores.shape[0], bool)
    n_nan = n_plus_inf = 0
    n_minus_inf = inspection.n_forbidden
    if inspection.n_bad:
        n_minus_inf = 0  # the compiled look, which assumes no NaN, may take one for a forbidden pair
        for (start, stop), values in scores.blocks():
            nan, plus_inf = np.isnan(values), values == np.inf
            n_nan, n_plus_inf = n_nan + int(nan.sum()), n_plus_inf + int(plus_inf.sum())
            n_minus_inf += int((values == -np.inf).sum())
            good[start:stop] = ~(nan | plus_inf).any(1)
    open_ = inspection.tops > -np.inf
    rows = np.flatnonzero(good & open_)
    return _Usable(
        rows=rows,
        sampled=sampled if len(rows) == len(good) else np.intersect1d(sampled, rows),
        n_nan=n_nan,
        n_plus_inf=n_plus_inf,
        n_minus_inf=n_minus_inf,
        n_bad_rows=int((~good).sum()),
        n_closed_rows=int((good & ~open_).sum()),
        inspection=inspection,
    )


def _with_looks(bare: Diagnosis, scores: RowSet, usable: _Usable, shares: np.ndarray) -> Diagnosis:
    """What all rows and a sample of them show without solving anything."""
    rows, inspection = usable.rows, usable.inspection
    labels, _, _ = sweep.label(scores, np.zeros(bare.n_classes))
    sizes = np.bincount(labels[rows], minlength=bare.n_classes)
    # A class may be called greedy at four times its mass, or half way from its mass to everything if that is less.
    greedy = sizes > np.minimum(GREEDY * shares, (shares + 1) / 2) * len(rows)
    taken = sizes[sizes > 0] / len(rows)
    extents = inspection.tops[rows].astype(np.float64) - inspection.bottoms[rows]
    sample = scores.taken(_some(usable.sampled, min(LOOK_ROWS, max(1, LOOK_ENTRIES // bare.n_classes))))
    values = np.concatenate([block for _, block in sample.blocks()]).astype(np.float64)  # (R, K)
    low, median, high = _margins(values)
    return replace(
        bare,
        duplicate_share=1.0 - len(np.unique(inspection.hashes[rows])) / len(rows),
        n_constant_rows=_count_constant(scores, rows[extents == 0], inspection) if bare.n_classes > 1 else 0,
        kind=_kind(values, scores.source.dtype),
        transposed=bare.n_classes > bare.n_rows and _columns_are_distributions(scores),
        spread=float(np.median(extents)),
        margin_low=low,
        margin_median=median,
        margin_high=high,
        argmax_sizes=tuple(sizes.tolist()),
        dead_classes=tuple(np.flatnonzero((sizes == 0) & (shares > 0)).tolist()),
        greedy_classes=tuple(np.flatnonzero(greedy)[np.argsort(-sizes[greedy], kind="stable")].tolist()),
        effective_classes=float(np.exp(-(taken * np.log(taken)).sum())),
    )


def _some(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[draw_rows(len(rows), size, np.random.default_rng(SEED))]


def _margins(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Quantiles of best minus second best, over the rows that have a choice."""
    if values.shape[1] < 2:
        return None, None, None
    second, best = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:].T
    margins = (best - second)[second > -np.inf]
    if not len(margins):
        return None, None, None
    low, median, high = np.quantile(margins, (0.1, 0.5, 0.9))
    return float(low), float(median), float(high)


def _count_constant(scores: RowSet, rows: np.ndarray, inspection: sweep.Inspection) -> int:
    """How many of the rows whose finite scores are all equal forbid nothing."""
    if not inspection.n_forbidden:
        return len(rows)
    if isinstance(scores.source, ListedSource):
        return int((scores.source.lists.sizes[rows] == scores.shape[1]).sum())
    free = 0
    for (start, stop), values in scores.blocks():
        members = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if len(members):
            free += int((values[members] > -np.inf).all(1).sum())
    return free


def _kind(values: np.ndarray, dtype: str) -> Kind:
    """What the scores of some rows look like."""
    finite = values[values > -np.inf]
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 1 and has_shares(values) and sum_to_one(values.sum(1), dtype):
        return "probabilities"
    if high <= 0 and sum_to_one(np.exp(values).sum(1), dtype, of_logarithms=True):
        return "log-probabilities"
    if -1.001 <= low < 0 < high <= 1.001:
        return "similarities"
    return "non-positive" if high <= 0 else "non-negative" if low >= 0 else "logits"


def _columns_are_distributions(scores: RowSet) -> bool:
    """Whether every column sums to 1, as it is or exponentiated; for matrices of few rows."""
    plain, exponentiated = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for _, block in scores.blocks():
        values = block.astype(np.float64)
        plain += values.sum(0)
        exponentiated += np.exp(np.minimum(values, 1.0)).sum(0)  # anything above 0 is no logarithm of a probability
    return sum_to_one(plain, scores.source.dtype) or sum_to_one(exponentiated, scores.source.dtype, of_logarithms=True)


# ---- assessing ----


def _with_assessment(
    looked: Diagnosis, scores: RowSet, usable: _Usable, shares: np.ndarray
) -> tuple[Diagnosis, list[Finding]]:
    """What exact balance costs and which epsilon fits, from exactly balanced labels of all rows or of a sample."""
    n_affordable = max(1, ASSESSED_ENTRIES // looked.n_classes)
    rows = _some(usable.sampled, n_affordable)
    whole = len(rows) == looked.n_rows
    assessed = scores if whole and scores.source.grain == 1 else scores.taken(rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtlabelWarning)  # what they say is among the findings
            result = sinkhorn_assign(assessed.opened, class_mass=shares, epsilon=_working_epsilon(looked))
    except InfeasibleError as error:
        where = "" if whole else f" (in a random sample of {len(rows):,} rows)"
        remedy = "allow more pairs or change --class-mass."
        # A sample may be short of pairs that all rows together have.
        finding = Finding("problem" if whole else "note", "balance", f"No exact balance: {error}{where}.", remedy)
        return replace(looked, n_assessed=len(rows)), [finding]
    labels, best, _ = sweep.label(assessed, np.zeros(looked.n_classes))
    found = replace(
        looked,
        epsilon=suggest_epsilon(assessed, np.asarray(result.potentials)),
        changed_share=float(np.mean(labels != result.labels)),
        score_lost=max(0.0, float(best.mean()) - result.value),
        n_assessed=len(rows),
    )
    return found, [*findings_of_balance(found, result.notes, len(usable.rows)), *findings_of_epsilon(found)]


def _working_epsilon(looked: Diagnosis) -> float:
    """Anything of the scores' own scale: the exact labels do not depend on it, only how soon they are found."""
    scale = looked.margin_median or looked.spread or 1.0
    return max(scale / 10, float(np.finfo(np.float32).tiny))


def suggest_epsilon(scores: RowSet, potentials: np.ndarray) -> float | None:
    """The epsilon that leaves nine tenths of what a hard label would take on a sample's best class, in the mean.

    None where no epsilon changes anything: one class, or rows that are all equal in every class.
    """
    n_rows, n_classes = scores.shape
    sample = scores.taken(_some(np.arange(n_rows), min(LOOK_ROWS, max(1, LOOK_ENTRIES // n_classes))))
    inspection = sweep.inspect(sample)
    scale = float(np.max(inspection.tops.astype(np.float64) - inspection.bottoms))
    wanted = potentials[np.isfinite(potentials)]
    scale = max(scale, float(np.ptp(wanted)) if len(wanted) else 0.0)
    if not scale > 0:
        return None

    def sharpness(epsilon: float) -> float:
        return float(sweep.plan(sample, potentials, epsilon).max(1).mean())

    low, high = math.log(1e-9 * scale), math.log(1e3 * scale)
    # Rows that must be split between tied classes are blurred at any epsilon: then nine tenths of what is possible.
    target = SHARPNESS * sharpness(math.exp(low))
    if sharpness(math.exp(high)) >= target:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sharpness(math.exp(middle)) > target else (low, middle)
    return float(f"{math.exp(low):.2g}")
