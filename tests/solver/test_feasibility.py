"""Is there an assignment at all? Barely feasible patterns of -inf under every rule against HiGHS, and what is said."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
from oracles import round_shares
from scipy.optimize import linprog

from otlabel import KL, Assignment, Range, certify, sinkhorn_assign
from otlabel.errors import InfeasibleError

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


def best_total(scores: np.ndarray, lo: np.ndarray, hi: np.ndarray, units: np.ndarray, unlabelled: int) -> float | None:
    """The largest total score of plans within the bounds, by HiGHS; None where there is no plan."""
    n_rows, n_classes = scores.shape
    u = np.hstack([scores, np.zeros((n_rows, 1))])
    rows, columns = np.nonzero(np.isfinite(u))
    pairs = np.arange(len(rows))
    of_rows = scipy.sparse.csr_array((np.ones(len(rows)), (rows, pairs)), shape=(n_rows, len(rows)))
    of_classes = scipy.sparse.csr_array((np.ones(len(rows)), (columns, pairs)), shape=(n_classes + 1, len(rows)))
    unit = max(np.abs(u[rows, columns]).max(initial=0.0), 1e-300)  # HiGHS' tolerances are absolute
    found = linprog(
        -u[rows, columns] / unit,
        A_ub=scipy.sparse.vstack([of_classes, -of_classes]),
        b_ub=np.concatenate([np.append(hi, unlabelled), -np.append(lo, unlabelled)]),
        A_eq=of_rows,
        b_eq=units,
        bounds=(0, None),
        method="highs",
    )
    assert found.status in (0, 2), found.message
    return None if found.status == 2 else -found.fun * unit


class Drawn(NamedTuple):
    """A small problem, most of them barely feasible or barely not."""

    scores: np.ndarray
    units: np.ndarray  # (N,) what each row counts
    lo: np.ndarray  # (K,) whole sizes
    hi: np.ndarray
    wanted: np.ndarray  # (K,) bool: classes that the user lets take any
    unlabelled: int
    settings: dict[str, Any]
    what: str


SCALES = {"normal": 1.0, "whole": 1.0, "large": 1e6, "small": 1e-12, "far": 1.0, "equal": 0.0}


def drawn(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    n_rows, n_classes = rng.integers(1, 13, 2)
    kind = str(rng.choice(list(SCALES)))
    scores = SCALES[kind] * rng.standard_normal((n_rows, n_classes))
    scores = np.round(scores) if kind == "whole" else scores + 1e8 * rng.standard_normal((n_rows, 1)) * (kind == "far")
    hidden = rng.integers(0, n_classes, n_rows)
    shut = rng.random(scores.shape) < rng.choice([0.0, 0.3, 0.6, 0.85])
    if rng.random() < 0.7:
        shut[np.arange(n_rows), hidden] = False
    if rng.random() < 0.2:
        shut[:, rng.integers(n_classes)] = True
    scores = np.where(shut, -np.inf, scores).astype(rng.choice(["f8", "f4"]))
    units, settings = np.ones(n_rows, np.int64), dict[str, Any]()
    if rng.random() < 0.25:
        given = rng.integers(0, 4, n_rows) + (rng.random() < 0.5)
        given[0] += not given.any()
        settings["sample_mass"] = given
        units = units if (given == given[0]).all() else given
    total = int(units.sum())
    abstain = float(rng.integers(0, n_rows) / n_rows) if rng.random() < 0.3 else 0.0
    unlabelled = round(abstain * total)
    if unlabelled == total:
        abstain = unlabelled = 0
    settings["abstain"] = abstain
    sizes = np.bincount(hidden, units, n_classes).astype(np.int64)
    form = rng.choice(["even", "skewed", "hidden", "zeros"])
    mass = np.full(n_classes, 1 / n_classes)
    if form != "even":
        mass = sizes / total if form == "hidden" else rng.dirichlet(np.full(n_classes, 0.4))
        if form == "zeros":
            mass = np.where((rng.random(n_classes) < 0.4) & (mass < mass.max()), 0.0, mass)
        mass = mass / mass.sum()
        settings["class_mass"] = mass
    rule, wanted = str(rng.choice(["exact", "range", "kl"])), mass > 0
    lo, hi = np.zeros(n_classes, np.int64), np.where(wanted, total, 0)
    if rule == "exact":
        exact = np.round(mass * (total - unlabelled), 9)
        lo, hi = np.floor(exact).astype(np.int64), np.ceil(exact).astype(np.int64)
        if len(set(units.tolist())) > 1:
            lo = hi = round_shares(total - unlabelled, exact / (total - unlabelled))
    elif rule == "range":
        lo = np.where(wanted, np.maximum(sizes - rng.integers(0, 3, n_classes), 0), 0)
        most = np.minimum(sizes + rng.integers(0, 3, n_classes), total)
        settings["classes"] = Range(lo, most) if "sample_mass" not in settings else Range(lo / total, most / total)
        wanted = wanted & (most > 0)
        hi = np.where(wanted, most, 0)
    else:
        settings["classes"] = KL(float(rng.choice([0.01, 1.0, 100.0])))
    what = f"seed {seed}: {kind}, {rule}, {n_rows} x {n_classes}, {unlabelled} unlabelled, {form}, {list(settings)}"
    return Drawn(scores, units, lo, hi, wanted, unlabelled, settings, what)


def check(problem: Drawn) -> Assignment | None:
    """The answer, seen to be right in every respect, or None where refusing was right."""
    scores, units, lo, hi, wanted, unlabelled, settings, what = problem
    wide, weighted = scores.astype(np.float64), "sample_mass" in settings and bool((units != 1).any())
    best = best_total(wide, lo, hi, units, unlabelled)
    nowhere = ~np.isfinite(wide[:, hi > 0]).any(1)
    try:
        result = sinkhorn_assign(scores, **settings)
    except InfeasibleError:
        result = None
    if result is None:  # rows without mass are labelled too: one that no class may take is named
        assert best is None or (nowhere & (units == 0)).any(), what
        return None
    assert best is not None, what
    labels = np.asarray(result.labels)
    labelled = np.flatnonzero(labels >= 0)
    size = max(1e-300, float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)))
    assert np.isfinite(wide[labelled, labels[labelled]]).all(), what
    assert math.isfinite(result.gap), what
    assert result.gap == pytest.approx(result.bound - result.value, abs=1e-14 * size), what
    if weighted:
        sizes = np.bincount(labels[labelled], units[labelled], len(lo))
        met = (lo <= sizes).all() and (sizes <= hi).all() and units[labels < 0].sum() == unlabelled
        assert met or not result.proof.proven, what
        if not isinstance(settings.get("classes"), KL):
            assert abs(result.bound * units.sum() - best) <= 1e-6 * size * units.sum(), what
    else:
        assert ((lo <= result.counts) & (result.counts <= hi)).all(), what
        assert len(labels) - len(labelled) == unlabelled, what
        if isinstance(settings.get("classes"), KL):
            assert result.gap <= 1e-13 * (size + settings["classes"].rho), what
        else:
            assert result.proof.proven, f"{what}: {result.summary()}"
            assert certify(scores, labels).proven, what
            assert abs(float(wide[labelled, labels[labelled]].sum()) - best) <= 1e-7 * size * len(labels), what
    np.testing.assert_array_equal(np.isfinite(result.potentials), wanted, what)
    predicted = np.asarray(result.predict(scores))
    some = np.flatnonzero(predicted >= 0)
    assert np.isfinite(wide[some, predicted[some]]).all(), what
    plan = result.plan(scores, sample_mass=settings.get("sample_mass"))
    assert np.isfinite(plan).all(), what
    assert not plan[np.isneginf(wide)].any(), what
    return result


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_barely_feasible_problems_against_highs(first: int) -> None:
    answers = [check(drawn(seed)) for seed in range(first, first + 25)]
    assert any(answer is None for answer in answers)
    assert any(answer is not None for answer in answers)


def test_samples_with_masses_are_told_by_shares() -> None:
    """Row 0 has half of the mass and may go to class 0 only, which takes a quarter."""
    scores = np.zeros((5, 4))
    scores[0, 1:] = -np.inf
    with pytest.raises(InfeasibleError, match=r"samples of 0\.5 of the mass .* classes 0, .* take 0\.25;"):
        sinkhorn_assign(scores, sample_mass=[4, 1, 1, 1, 1])
    with pytest.raises(InfeasibleError, match=r"class 3 is to take 0\.25 of the sample mass"):
        sinkhorn_assign(np.where(np.arange(4) == 3, -np.inf, scores), sample_mass=[4, 1, 1, 1, 1])


def test_a_class_without_scores_leaves_its_mass_to_other_classes_alone() -> None:
    """Not to those who stay unlabelled."""
    scores = np.random.default_rng(0).normal(size=(4, 6))
    scores[:, 1] = -np.inf
    result = sinkhorn_assign(scores, abstain=0.5, tol=1e-4)
    assert result.plan(scores).sum() == pytest.approx(0.5, abs=1e-3)


def test_too_many_rows_to_leave_unlabelled() -> None:
    scores = np.zeros((20, 4))
    scores[:8] = -np.inf
    assert (sinkhorn_assign(scores, abstain=0.4).labels[:8] == -1).all()
    with pytest.raises(InfeasibleError, match=r"8 rows .* row 0; abstain leaves room for 6 of them"):
        sinkhorn_assign(scores, abstain=0.3)
    with pytest.raises(InfeasibleError, match=r"8 rows .* or leave them unlabelled by abstain"):
        sinkhorn_assign(scores)


def test_a_class_that_nobody_may_take_and_whose_size_is_zero() -> None:
    """Its share is not asked of anybody, in the plan neither, and sizes stay what they were."""
    scores = np.random.default_rng(0).standard_normal((12, 30))
    plain = sinkhorn_assign(scores)
    scores[:, 20] = -np.inf
    result = sinkhorn_assign(scores)
    np.testing.assert_array_equal(result.counts, plain.counts)
    assert result.status.value == "converged"
    assert result.proof.proven
    assert np.isfinite(result.potentials).all()
