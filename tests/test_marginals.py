"""What classes and samples may take: exact labels against linear programs, plans against POT, limits named."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import pot
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from otlabel import KL, Assignment, Exact, Range, certify, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

CLOSE = {"rel": 1e-8, "abs": 1e-9}


def highs(scores: np.ndarray, lo, hi, *, mass=None, n_abstain: int = 0, charge=None) -> float | None:
    """The largest total score of the linear program, or None if there is none; `charge` (K, N) prices each place."""
    n_rows, n_classes = scores.shape
    mass = np.ones(n_rows) if mass is None else mass
    entries = np.arange(n_rows * n_classes)
    ones = np.ones(len(entries))
    rows = csr_array((ones, (entries // n_classes, entries)), shape=(n_rows, len(entries)))
    classes = csr_array((ones, (entries % n_classes, entries)), shape=(n_classes, len(entries)))
    cost = np.where(np.isfinite(scores), -scores, 0).ravel()
    upper = np.where(np.isfinite(scores), np.inf, 0).ravel()
    equal, total = csr_array(ones[None]), [mass.sum() - n_abstain]
    if charge is not None:  # convex: places are filled from the cheapest on
        n_places = charge.size
        places = csr_array(
            (np.ones(n_places), (np.repeat(np.arange(n_classes), n_rows), np.arange(n_places))),
            shape=(n_classes, n_places),
        )
        empty = csr_array((n_rows, n_places))
        filled = vstack([classes.T, -1 * places.T]).T
        below, above = [vstack([rows.T, empty.T]).T, filled, -1 * filled], [mass, *np.zeros((2, n_classes))]
        cost, upper = np.append(cost, charge.ravel()), np.append(upper, np.ones(n_places))
        equal = csr_array(np.append(ones, np.zeros(n_places))[None])
    else:
        below, above = [rows, classes, -1 * classes], [mass, hi, -np.asarray(lo)]
    found = linprog(
        cost, vstack(below), np.concatenate(above), equal, total, np.stack([np.zeros(len(cost)), upper], 1), "highs"
    )
    return -found.fun if found.status == 0 else None


def drawn(seed: int) -> tuple[np.random.Generator, np.ndarray]:
    """Small scores: smooth, tied, forbidden in part, or with repeated rows."""
    rng = np.random.default_rng(seed)
    n_rows, n_classes = int(rng.integers(5, 45)), int(rng.integers(2, 8))
    scores = rng.standard_normal((n_rows, n_classes)) * rng.choice([0.1, 1.0, 10.0])
    if seed % 4 == 1:
        scores = np.round(scores)
    if seed % 4 == 2:
        scores[rng.random(scores.shape) < 0.3] = -np.inf
        scores[np.arange(n_rows), rng.integers(0, n_classes, n_rows)] = 0.5
    if seed % 4 == 3:
        scores = scores[rng.integers(0, max(1, n_rows // 5), n_rows)]
    return rng, scores


def drawn_bounds(rng: np.random.Generator, n_rows: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that some sizes meet; some classes exact, some shut."""
    sizes = rng.multinomial(n_rows, rng.dirichlet(np.ones(n_classes)))
    lo, hi = sizes - rng.integers(0, 4, n_classes), sizes + rng.integers(0, 4, n_classes)
    return np.maximum(lo, 0), hi


@pytest.mark.parametrize("seed", range(120))
def test_range_is_the_linear_program(seed: int) -> None:
    rng, scores = drawn(seed)
    n_rows, n_classes = scores.shape
    lo, hi = drawn_bounds(rng, n_rows, n_classes)
    best = highs(scores, lo, hi)
    if best is None:
        with pytest.raises(InfeasibleError):
            sinkhorn_assign(scores, classes=Range(lo, hi))
        return
    result = sinkhorn_assign(scores, classes=Range(lo, hi))
    assert ((result.counts >= lo) & (result.counts <= hi)).all()
    assert n_rows * result.value == pytest.approx(best, **CLOSE)
    assert abs(result.gap) <= 1e-12 * max(1, np.abs(scores[np.isfinite(scores)]).max())
    g, room = result.potentials, 1e-9
    wanted = hi > 0
    assert (g[wanted & (result.counts > lo)] <= room).all()
    assert (g[wanted & (result.counts < hi)] >= -room).all()


@pytest.mark.parametrize("seed", range(80))
def test_abstaining_is_the_linear_program(seed: int) -> None:
    rng, scores = drawn(seed)
    n_rows = len(scores)
    n_abstain = int(rng.integers(1, n_rows))
    try:
        result = sinkhorn_assign(scores, abstain=n_abstain / n_rows)
    except InfeasibleError:
        assert seed % 4 == 2
        return
    sizes = result.counts
    assert (result.labels == -1).sum() == n_abstain
    assert np.ptp(sizes) <= 1
    assert n_rows * result.value == pytest.approx(highs(scores, sizes, sizes, n_abstain=n_abstain), **CLOSE)
    assert abs(result.gap) <= 1e-11
    proof = certify(scores, result.labels, potentials=result.potentials)
    assert (proof.value, proof.gap) == pytest.approx((result.value, 0), abs=1e-11)
    assert certify(scores, result.labels).gap == pytest.approx(0, abs=1e-11)
    best = (scores + result.potentials).max(1)
    assert (best[result.labels == -1] <= result.threshold + 1e-9).all()
    assert (best[result.labels >= 0] >= result.threshold - 1e-9).all()


def test_abstaining_rows_may_be_forbidden_everywhere() -> None:
    scores = np.random.default_rng(0).standard_normal((20, 3))
    scores[[4, 11]] = -np.inf
    result = sinkhorn_assign(scores, abstain=0.25)
    assert set(np.flatnonzero(result.labels == -1)) >= {4, 11}
    assert (result.labels == -1).sum() == 5
    assert abs(result.gap) < 1e-12


def charged(scores: np.ndarray, labels: np.ndarray, mass: np.ndarray, rho: float) -> float:
    shares = np.bincount(labels, minlength=len(mass)) / len(labels)
    divergence = np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300) / mass), 0) - shares + mass
    return float(scores[np.arange(len(labels)), labels].mean() - rho * divergence.sum())


@pytest.mark.parametrize("rho", [0.01, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("seed", range(8))
def test_kl_labels_are_the_best_of_all(seed: int, rho: float) -> None:
    rng = np.random.default_rng(seed)
    n_rows, n_classes = int(rng.integers(3, 9)), int(rng.integers(2, 4))
    scores, mass = rng.standard_normal((n_rows, n_classes)), rng.dirichlet(np.full(n_classes, 3.0))
    every = itertools.product(range(n_classes), repeat=n_rows)
    best = max(charged(scores, np.array(labels), mass, rho) for labels in every)
    result = sinkhorn_assign(scores, class_mass=mass, classes=KL(rho))
    assert charged(scores, result.labels, mass, rho) == pytest.approx(best, abs=1e-12)
    assert abs(result.gap) < 1e-12 * max(1, rho)


@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_kl_labels_of_middle_size_are_the_convex_flow(seed: int, rho: float) -> None:
    rng = np.random.default_rng(seed)
    n_rows, n_classes = 60, 6
    scores, mass = rng.standard_normal((n_rows, n_classes)), rng.dirichlet(np.full(n_classes, 3.0))
    shares = np.arange(n_rows + 1) / n_rows
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(shares > 0, shares * np.log(shares / mass[:, None]), 0) - shares + mass[:, None]
    best = highs(scores, None, None, charge=n_rows * rho * np.diff(divergence, axis=1))
    assert best is not None
    result = sinkhorn_assign(scores, class_mass=mass, classes=KL(rho))
    reached = n_rows * charged(scores, result.labels, mass, rho)
    assert reached == pytest.approx(best - n_rows * rho * mass.sum(), rel=1e-8, abs=1e-8)
    assert abs(result.gap) < 1e-11


@pytest.mark.parametrize("seed", range(60))
def test_weighted_samples_have_the_linear_programs_bound(seed: int) -> None:
    rng, scores = drawn(4 * seed)
    n_rows, n_classes = scores.shape
    mass, share = rng.random(n_rows) ** 2 + 1e-3, rng.dirichlet(np.ones(n_classes))
    mass /= mass.sum()
    result = sinkhorn_assign(scores, sample_mass=mass, class_mass=share)
    assert result.bound == pytest.approx(highs(scores, share, share, mass=mass), abs=1e-9)
    np.testing.assert_allclose(result.label_mass, np.bincount(result.labels, mass, n_classes), atol=1e-11)
    assert np.abs(result.label_mass - share).sum() <= 2 * np.sort(mass)[-(n_classes - 1) :].sum() + 1e-9


def test_whole_sample_masses_stand_for_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    scores, times = rng.standard_normal((40, 4)), rng.integers(0, 4, 40)
    total = int(times.sum())
    sizes = np.bincount(np.arange(total) % 4)
    repeated = np.repeat(scores, times, axis=0)
    result = sinkhorn_assign(scores, sample_mass=times)
    assert result.bound == pytest.approx(sinkhorn_assign(repeated, class_mass=sizes).value, abs=1e-12)
    np.testing.assert_array_equal(
        sinkhorn_assign(scores, sample_mass=np.full(40, 3)).labels, sinkhorn_assign(scores).labels
    )


# ---- plans ----


@pytest.mark.parametrize("rows_too", [True, False])
@pytest.mark.parametrize(("rho", "epsilon"), [(0.01, 0.04), (1.0, 1.0), (100.0, 0.1)])
def test_unbalanced_plan_is_pots(rho: float, epsilon: float, rows_too: bool) -> None:
    rng = np.random.default_rng(1)
    scores, mass = rng.standard_normal((40, 7)) - 2, rng.dirichlet(np.full(7, 3.0))
    rules = {"classes": KL(rho), "samples": KL(rho) if rows_too else Exact()}
    result = sinkhorn_assign(scores, class_mass=mass, epsilon=epsilon, tol=1e-9, **rules)
    assert result.status.value == "converged"
    even = np.full(40, 1 / 40)
    price = rho if rows_too else (math.inf, rho)
    theirs = pot().unbalanced.sinkhorn_unbalanced(
        even, mass, -scores, epsilon, price, reg_type="kl", numItermax=200_000, stopThr=1e-13
    )
    ours = result.plan(scores)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7 * theirs.max())
    np.testing.assert_allclose(ours.sum(0), result.class_mass, rtol=1e-8)


def test_unbalanced_value_is_that_of_another_solver() -> None:
    rng = np.random.default_rng(0)
    scores, mass, even = rng.standard_normal((12, 5)) - 2, rng.dirichlet(np.full(5, 3.0)), np.full(12, 1 / 12)
    ours = sinkhorn_assign(scores, class_mass=mass, samples=KL(1.0), classes=KL(1.0), epsilon=0.1, tol=1e-9)

    def objective(plan: np.ndarray) -> float:
        def divergence(p: np.ndarray, q: np.ndarray) -> float:
            return float((p * np.log(np.maximum(p, 1e-300) / q) - p + q).sum())

        taken = divergence(plan.sum(1), even) + divergence(plan.sum(0), mass)
        return float((plan * scores).sum()) - 0.1 * divergence(plan, np.outer(even, mass)) - taken

    descent = pot().unbalanced.lbfgsb_unbalanced(
        even, mass, -scores, 0.1, 1.0, reg_div="kl", regm_div="kl", numItermax=10_000, stopThr=1e-15
    )
    scaling = pot().unbalanced.sinkhorn_unbalanced(
        even, mass, -scores, 0.1, 1.0, reg_type="kl", numItermax=200_000, stopThr=1e-15
    )
    reached = objective(ours.plan(scores))
    assert reached >= objective(descent) - 1e-10  # which stops 1e-4 short of it, on some processors more
    assert reached == pytest.approx(objective(scaling), rel=1e-8)


def reference_plan(scores: np.ndarray, lo: np.ndarray, hi: np.ndarray, epsilon: float) -> np.ndarray:
    """Alternating scaling for bounded class masses, relative to a b^T: each class takes the nearest mass allowed."""
    n_rows, n_classes = scores.shape
    kernel = np.exp((scores - scores.max()) / epsilon) / (n_rows * n_classes)
    right = np.ones(n_classes)
    for _ in range(20_000):
        left = (1 / n_rows) / (kernel @ right)
        free = kernel.T @ left
        right = np.clip(1.0, lo / free, hi / free)
    return left[:, None] * kernel * right


@pytest.mark.parametrize("seed", range(6))
def test_range_plan_is_that_of_alternating_scaling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((30, 5)) + rng.standard_normal(5)
    lo, hi = np.full(5, 0.12), np.array([0.3, 0.3, 0.3, 0.2, 0.2])
    result = sinkhorn_assign(scores, classes=Range(lo, hi), epsilon=0.3, tol=1e-9)
    np.testing.assert_allclose(result.plan(scores), reference_plan(scores, lo, hi, 0.3), rtol=1e-5, atol=1e-9)


RULES = {
    "range": {"classes": Range(0.05, 0.3)},
    "kl": {"classes": KL(0.7)},
    "both": {"classes": KL(0.7), "samples": KL(2.0)},
    "abstain": {"abstain": 0.3},
    "abstain_kl": {"abstain": 0.3, "classes": KL(0.7)},
    "abstain_range": {"abstain": 0.2, "classes": Range(0.02, 0.2)},
}


@pytest.mark.parametrize("rule", RULES)
def test_files_warm_starts_tensors_and_saving(rule: str, tmp_path) -> None:
    rng = np.random.default_rng(0)
    scores = (rng.standard_normal((30_000, 9)) + 0.8 * rng.standard_normal(9)).astype(np.float32)
    result = sinkhorn_assign(scores, **RULES[rule])
    assert result.status.value == "converged"
    assert abs(result.gap) < 1e-11
    np.save(tmp_path / "scores.npy", scores)
    streamed = sinkhorn_assign(str(tmp_path / "scores.npy"), memory_limit=0, **RULES[rule])
    np.testing.assert_array_equal(streamed.labels, result.labels)
    np.testing.assert_array_equal(streamed.plan_potentials, result.plan_potentials)
    again = sinkhorn_assign(scores, init=result, **RULES[rule])
    assert again.n_sweeps < result.n_sweeps
    assert again.value == pytest.approx(result.value, abs=1e-12 if "both" not in rule else 1e-3)
    plain = sinkhorn_assign(scores, method="sinkhorn", **RULES[rule])
    np.testing.assert_allclose(plain.class_mass, result.class_mass, atol=2e-2)
    tensors = sinkhorn_assign(torch.from_numpy(scores), **RULES[rule])
    assert isinstance(tensors.labels, torch.Tensor)
    np.testing.assert_array_equal(tensors.labels.numpy(), result.labels)
    result.save(tmp_path / "result.npz")
    loaded = Assignment.load(tmp_path / "result.npz")
    np.testing.assert_array_equal(loaded.predict(scores), result.predict(scores))
    np.testing.assert_array_equal(loaded.plan(scores[:50]), result.plan(scores[:50]))
    if rule != "both":
        assert np.mean(result.predict(scores) == result.labels) > 0.999


# ---- the ends of each rule ----


def test_rules_meet_at_their_ends() -> None:
    scores = np.random.default_rng(0).standard_normal((300, 6))
    exact = sinkhorn_assign(scores)
    for rule in (Range(1 / 6, 1 / 6), Range(50, 50), KL(1e6)):
        assert sinkhorn_assign(scores, classes=rule).value == pytest.approx(exact.value, abs=1e-12)
    for rule in (Range(), Range(0, 300), KL(1e-9)):
        np.testing.assert_array_equal(sinkhorn_assign(scores, classes=rule).labels, scores.argmax(1))
    np.testing.assert_array_equal(sinkhorn_assign(scores, abstain=0.0).labels, exact.labels)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"classes": Range(6, 9)}, InfeasibleError, "at least 24, 4 too many, of 20"),
        ({"classes": Range(0, 4)}, InfeasibleError, "at most 16, 4 too few, of 20"),
        ({"classes": Range(0.3, 0.2)}, InvalidMassError, "lo is above hi for class 0"),
        ({"classes": Range([1, 2], 9)}, InvalidMassError, r"lo has shape \(2,\)"),
        ({"classes": Range(0.0, 1.5)}, InvalidMassError, "hi is 1.5"),
        ({"classes": Range(0.26, 0.29)}, InfeasibleError, "no whole size of class 0 lies between 5.2 and 5.8"),
        ({"classes": "exact"}, TypeError, "classes is 'exact'"),
        ({"samples": Range(0, 1)}, TypeError, "samples is Range"),
        ({"abstain": 1.0}, ValueError, "abstain is 1.0"),
        ({"abstain": -0.1}, ValueError, "abstain is -0.1"),
        ({"sample_mass": np.ones(3)}, InvalidMassError, r"sample_mass has shape \(3,\)"),
        ({"sample_mass": np.linspace(0.1, 2, 20)}, InvalidMassError, "sample_mass sums to 21"),
        ({"sample_mass": np.linspace(-1, 2, 20)}, InvalidMassError, r"sample_mass\[0\] is -1"),
    ],
)
def test_rules_that_cannot_be_met_are_named(settings: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sinkhorn_assign(np.random.default_rng(0).standard_normal((20, 4)), **settings)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf, math.nan])
def test_prices_that_are_none(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        KL(rho)


def test_a_class_that_must_take_but_may_not() -> None:
    scores = np.random.default_rng(0).standard_normal((20, 4))
    scores[:, 2] = -np.inf
    with pytest.raises(InfeasibleError, match="class 2 is to take 2 samples"):
        sinkhorn_assign(scores, classes=Range(2, 20))
    assert sinkhorn_assign(scores, classes=Range(0, 20)).counts[2] == 0
    assert sinkhorn_assign(scores, classes=KL(1.0)).counts[2] == 0
