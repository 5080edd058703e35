"""Entropic plans where masses are soft, bounded or left out: against POT and plain scaling in float64."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import float64, pot
from problems import clusters, normal
from scipy.special import kl_div, logsumexp, xlogy

import otlabel.assign
import otlabel.result
from otlabel import KL, Assignment, Exact, Range, Status, sinkhorn_assign
from otlabel.sources import Opened, TensorSource

pytestmark = pytest.mark.filterwarnings(
    "ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning", "ignore::DeprecationWarning:ot"
)

PRICES = [0.01, 0.1, 1.0, 10.0, 100.0]
EPSILONS = [1.0, 0.1, 0.04]
RULES = {
    "kl": dict(classes=KL(0.5)),
    "cheap": dict(classes=KL(0.02)),
    "range": dict(classes=Range(0.1, 0.3)),
    "mixed_range": dict(classes=Range([0.0, 0.25, 0.1, 0.05, 0.0], [0.1, 0.25, 1.0, 0.4, 0.3])),
    "both": dict(classes=KL(0.5), samples=KL(0.3)),
    "rows": dict(samples=KL(0.3)),
    "rows_range": dict(classes=Range(0.1, 0.3), samples=KL(2.0)),
    "abstain": dict(abstain=0.3),
    "abstain_kl": dict(abstain=0.3, classes=KL(0.5)),
    "abstain_range": dict(abstain=0.2, classes=Range(0.05, 0.25)),
    "abstain_rows": dict(abstain=0.2, samples=KL(0.5)),
}


def scaling(scores, mass, epsilon: float, *, classes=None, samples=None, abstain=0.0, weights=None, steps=200_000):
    """The plan (N, K) of plain alternating scaling, and its potentials; the unlabelled are one more exact class.

    Chizat et al. (2018): each side is scaled by the proximal step of its charge, which for KL is a power of the mass
    to be had, and for a range a clip.
    """
    u = float64(scores)
    n_samples, n_classes = u.shape
    a = np.full(n_samples, 1 / n_samples) if weights is None else np.asarray(weights) / np.sum(weights)
    b, lo, hi = np.asarray(mass) * (1 - abstain), np.asarray(mass) * (1 - abstain), np.asarray(mass) * (1 - abstain)
    if isinstance(classes, Range):
        lo, hi = (np.broadcast_to(bound, n_classes).astype(float) for bound in (classes.lo, classes.hi))
    if abstain:
        u = np.hstack([u, np.zeros((n_samples, 1))])
        b, lo, hi = (np.append(part, abstain) for part in (b, lo, hi))
    soft = np.arange(len(b)) < (n_classes if isinstance(classes, KL) else 0)
    power = np.where(soft, classes.rho / (classes.rho + epsilon) if isinstance(classes, KL) else 1.0, 1.0)
    row_power = samples.rho / (samples.rho + epsilon) if isinstance(samples, KL) else 1.0
    g = np.zeros(len(b))
    for _ in range(steps):
        f = -row_power * epsilon * logsumexp((u + g) / epsilon + np.log(b), axis=1)
        had = b * np.exp(logsumexp((u + f[:, None]) / epsilon + np.log(a)[:, None], axis=0))
        asked = np.where(soft, had * (b / had) ** power, np.clip(had, lo, hi))
        before, g = g, epsilon * np.log(asked / had)
        if np.abs(g - before).max() < 1e-13 * max(1.0, np.abs(g).max()) * (1 - min(row_power, power.min()) ** 2 or 1):
            break
    f = -row_power * epsilon * logsumexp((u + g) / epsilon + np.log(b), axis=1)
    plan = a[:, None] * b * np.exp((u + g + f[:, None]) / epsilon)
    return plan[:, :n_classes], (g + epsilon * np.log(b))[:n_classes]


def objective(plan, scores, a, b, epsilon: float, rho_rows: float, rho_classes: float) -> float:
    """<Q, s> - epsilon KL(Q | a b^T) - the charges, in float64; exact sides (rho inf) are charged nothing."""
    value = float((plan * float64(scores)).sum()) - epsilon * float(kl_div(plan, np.outer(a, b)).sum())
    if math.isfinite(rho_rows):
        value -= rho_rows * float(kl_div(plan.sum(1), a).sum())
    return value - (rho_classes * float(kl_div(plan.sum(0), b).sum()) if math.isfinite(rho_classes) else 0.0)


def uniform(n_samples: int) -> np.ndarray:
    return np.full(n_samples, 1 / n_samples)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("rho", PRICES)
def test_fully_unbalanced_plan_of_pot(rho: float, epsilon: float, there) -> None:
    rng = np.random.default_rng(0)
    scores, mass, a = rng.random((20, 4)), rng.dirichlet(np.full(4, 2.0)), uniform(20)
    result = there(
        sinkhorn_assign, scores, class_mass=mass, classes=KL(rho), samples=KL(rho), epsilon=epsilon, tol=1e-12,
        rounding="argmax",
    )  # fmt: skip
    ours = there(result.plan, scores)
    theirs = pot().unbalanced.sinkhorn_unbalanced(
        a, mass, -scores, epsilon, rho, reg_type="kl", numItermax=200_000, stopThr=1e-14
    )
    np.testing.assert_allclose(20 * ours, 20 * theirs, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.class_mass, ours.sum(0), rtol=1e-9, atol=0)
    best = objective(theirs, scores, a, mass, epsilon, rho, rho)
    assert objective(ours, scores, a, mass, epsilon, rho, rho) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("rho", PRICES)
def test_semi_unbalanced_plan_of_pot(rho: float, epsilon: float, there) -> None:
    rng = np.random.default_rng(1)
    scores, mass, a = rng.random((20, 4)), rng.dirichlet(np.full(4, 2.0)), uniform(20)
    result = there(sinkhorn_assign, scores, class_mass=mass, classes=KL(rho), epsilon=epsilon, tol=1e-12)
    ours = there(result.plan, scores)
    theirs = pot().unbalanced.sinkhorn_unbalanced(
        a, mass, -scores, epsilon, (math.inf, rho), reg_type="kl", numItermax=200_000, stopThr=1e-14
    )
    np.testing.assert_allclose(ours.sum(1), a, rtol=1e-12)
    np.testing.assert_allclose(20 * ours, 20 * theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("rho", "epsilon"), list(itertools.product([0.1, 1.0, 10.0], [1.0, 0.1])))
def test_no_plan_of_bfgs_is_better(rho: float, epsilon: float) -> None:
    """POT's L-BFGS-B works on the plan itself: it comes near to the same value, from below."""
    rng = np.random.default_rng(2)
    scores, mass, a = rng.random((15, 3)), rng.dirichlet(np.full(3, 2.0)), uniform(15)
    result = sinkhorn_assign(
        scores, class_mass=mass, classes=KL(rho), samples=KL(rho), epsilon=epsilon, tol=1e-12, rounding="argmax"
    )
    theirs = pot().unbalanced.lbfgsb_unbalanced(
        a, mass, -scores, epsilon, rho, reg_div="kl", regm_div="kl", numItermax=20_000, stopThr=1e-15
    )
    best, other = (objective(q, scores, a, mass, epsilon, rho, rho) for q in (result.plan(scores), theirs))
    assert best - 1e-5 * max(1.0, abs(best)) <= other <= best + 1e-12
    np.testing.assert_allclose(result.plan(scores), theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
@pytest.mark.parametrize("rule", RULES)
def test_plan_of_plain_scaling(rule: str, epsilon: float, there) -> None:
    rng = np.random.default_rng(3)
    scores, mass = normal(rng, 40, 5), rng.dirichlet(np.full(5, 3.0))
    result = there(
        sinkhorn_assign, scores, class_mass=mass, epsilon=epsilon, tol=1e-11, rounding="argmax", max_sweeps=3000,
        **RULES[rule],
    )  # fmt: skip
    theirs, _ = scaling(scores, mass, epsilon, **RULES[rule])
    np.testing.assert_allclose(40 * there(result.plan, scores), 40 * theirs, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(result.class_mass, theirs.sum(0), rtol=1e-7, atol=1e-10)
    assert result.status is Status.CONVERGED


@pytest.mark.parametrize("rule", ["kl", "mixed_range", "both", "abstain", "abstain_rows"])
def test_plan_with_sample_masses(rule: str, there) -> None:
    rng = np.random.default_rng(4)
    scores, mass, weights = normal(rng, 30, 5), rng.dirichlet(np.full(5, 3.0)), rng.dirichlet(np.full(30, 0.7))
    result = there(
        sinkhorn_assign, scores, class_mass=mass, sample_mass=weights, epsilon=0.2, tol=1e-11, rounding="argmax",
        **RULES[rule],
    )  # fmt: skip
    theirs, _ = scaling(scores, mass, 0.2, weights=weights, **RULES[rule])
    np.testing.assert_allclose(there(result.plan, scores, sample_mass=weights), theirs, rtol=1e-6, atol=1e-9)


def test_unlabelled_are_partial_transport_of_pot(there) -> None:
    """POT moves a given mass between capped masses: samples up to 1/N, classes up to theirs, all of which is used."""
    rng = np.random.default_rng(5)
    scores, share = rng.random((30, 4)), 0.3
    result = there(sinkhorn_assign, scores, abstain=share, epsilon=0.1, tol=1e-12)
    theirs = pot().partial.entropic_partial_wasserstein(
        uniform(30), np.full(4, (1 - share) / 4), -scores, 0.1, m=1 - share, numItermax=100_000, stopThr=1e-15
    )
    np.testing.assert_allclose(theirs.sum(), 0.7, rtol=1e-9)
    np.testing.assert_allclose(there(result.plan, scores).sum(0), 0.175, rtol=1e-9)
    assert there(result.plan, scores).sum(1).max() <= 1 / 30 + 1e-15
    dense, _ = scaling(scores, np.full(4, 0.25), 0.1, abstain=share)
    np.testing.assert_allclose(30 * there(result.plan, scores), 30 * dense, rtol=1e-7, atol=1e-10)

    def entropic(plan: np.ndarray) -> float:  # of labelled mass alone, as POT has it
        return float((plan * scores).sum() - 0.1 * (xlogy(plan, plan) - plan).sum())

    assert entropic(there(result.plan, scores)) <= entropic(theirs) + 1e-9  # theirs has no entropy for the rest
    exact = pot().partial.partial_wasserstein(uniform(30), np.full(4, 0.175), 1 - scores, m=0.7)
    result = there(sinkhorn_assign, scores, class_mass=[0.25] * 4, abstain=share, epsilon=1e-3)
    assert float((there(result.plan, scores) * scores).sum()) == pytest.approx(float((exact * scores).sum()), abs=5e-3)


@pytest.mark.parametrize("rule", RULES)
def test_class_error_is_the_gradient_of_the_semidual(rule: str, there) -> None:
    """Stopped early: marginal_error is the class masses' distance from what the classes ask for at these potentials."""
    rng = np.random.default_rng(6)
    scores, mass, epsilon = normal(rng, 300, 5), rng.dirichlet(np.full(5, 3.0)), 0.3
    settings = RULES[rule]
    result = there(
        sinkhorn_assign, scores, class_mass=mass, epsilon=epsilon, tol=0.2, method="sinkhorn", rounding="argmax",
        **settings,
    )  # fmt: skip
    share, classes, samples = settings.get("abstain", 0.0), settings.get("classes", Exact()), settings.get("samples")
    b = mass * (1 - share)
    plan, taken = there(result.plan, scores), result.class_mass
    np.testing.assert_allclose(plan.sum(0), taken, rtol=1e-6)
    g = result.plan_potentials - (0.0 if isinstance(classes, Exact) else epsilon * np.log(b))
    if isinstance(classes, KL):
        asked = b * np.exp(-g / classes.rho)
    elif isinstance(classes, Range):
        lo, hi = (np.broadcast_to(bound, 5) for bound in (classes.lo, classes.hi))
        room = 1e-12  # potentials are stored with epsilon log b added
        asked = np.where(g > room, lo, np.where(g < -room, hi, np.clip(taken, lo, hi)))
    else:
        asked = b
    total, error = float(taken.sum()), float(np.abs(asked - taken).sum())
    if share:
        u = np.hstack([scores + result.plan_potentials, np.full((300, 1), result.plan_threshold)]) / epsilon
        left = np.exp(u[:, -1] - logsumexp(u, axis=1))
        if samples is not None:
            left = np.exp(u[:, -1] - logsumexp(u, axis=1) + logsumexp(u, axis=1) * epsilon / (samples.rho + epsilon))
        total, error = total + left.mean(), error + abs(left.mean() - share)
    assert result.marginal_error == pytest.approx(error / total, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_plain_iterations_reach_the_same_plan(rule: str) -> None:
    rng = np.random.default_rng(7)
    scores, mass = normal(rng, 60, 5), rng.dirichlet(np.full(5, 3.0))
    newton, plain = (
        sinkhorn_assign(
            scores, class_mass=mass, epsilon=0.3, tol=1e-9, max_sweeps=20_000, rounding="argmax", method=method,
            **RULES[rule],
        )
        for method in ("auto", "sinkhorn")
    )  # fmt: skip
    assert newton.status is plain.status is Status.CONVERGED
    np.testing.assert_allclose(newton.plan(scores), plain.plan(scores), rtol=0, atol=1e-8)


@pytest.mark.parametrize("n_samples", [300, 20_000])
@pytest.mark.parametrize("epsilon", [0.5, 0.04])
@pytest.mark.parametrize("rule", RULES)
def test_solve_converges_in_few_passes(rule: str, epsilon: float, n_samples: int, there) -> None:
    scores = clusters(np.random.default_rng(8), n_samples, 5).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = there(sinkhorn_assign, scores, epsilon=epsilon, rounding="argmax", **RULES[rule])
    assert result.status is Status.CONVERGED
    assert result.marginal_error <= 1e-2
    assert sum(record["rows"] == n_samples for record in result.history) <= 60


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize("rule", RULES)
def test_warm_start_takes_fewer_sweeps(rule: str, method: str) -> None:
    scores = clusters(np.random.default_rng(9), 3000, 5)
    settings: dict[str, Any] = dict(epsilon=0.2, rounding="argmax", method=method, tol=1e-4, **RULES[rule])
    cold = sinkhorn_assign(scores, **settings)
    warm = sinkhorn_assign(scores, init=cold, **settings)
    assert warm.n_sweeps < cold.n_sweeps
    assert sum(record["stage"] == "solve" for record in warm.history) <= 2
    np.testing.assert_allclose(warm.plan_potentials, cold.plan_potentials, rtol=0, atol=1e-2)


@pytest.mark.parametrize("rounding", ["exact", "argmax"])
@pytest.mark.parametrize("rule", RULES)
def test_file_read_in_passes_gives_the_same_bits(rule: str, rounding: str, tmp_path) -> None:
    scores = clusters(np.random.default_rng(10), 9000, 5).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    settings: dict[str, Any] = dict(epsilon=0.2, rounding=rounding, **RULES[rule])
    memory = sinkhorn_assign(scores, **settings)
    streamed = sinkhorn_assign(tmp_path / "scores.npy", memory_limit=0, **settings)
    for name in ("labels", "counts", "class_mass", "potentials", "plan_potentials", "label_mass"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(memory, name), strict=True)
    names = ("value", "bound", "threshold", "plan_threshold", "marginal_error")
    assert [getattr(streamed, name) for name in names] == [getattr(memory, name) for name in names]
    assert streamed.bytes_read > 2 * scores.nbytes
    np.testing.assert_array_equal(streamed.plan(tmp_path / "scores.npy"), memory.plan(scores))


@pytest.mark.parametrize("rule", RULES)
def test_torch_in_torch_out(rule: str) -> None:
    scores = clusters(np.random.default_rng(11), 400, 5)
    array = sinkhorn_assign(scores, **RULES[rule])
    tensor = sinkhorn_assign(torch.from_numpy(scores), sample_mass=torch.full((400,), 1 / 400), **RULES[rule])
    for name in ("labels", "counts", "class_mass", "potentials", "plan_potentials", "label_mass"):
        assert isinstance(getattr(tensor, name), torch.Tensor)
        np.testing.assert_array_equal(getattr(tensor, name).numpy(), getattr(array, name))
    for answer in (tensor.plan(torch.from_numpy(scores)), tensor.soft_labels(torch.from_numpy(scores))):
        assert isinstance(answer, torch.Tensor)
        assert answer.dtype == torch.float64
    np.testing.assert_array_equal(tensor.predict(torch.from_numpy(scores)).numpy(), array.predict(scores))


@pytest.mark.parametrize("rounding", ["exact", "argmax"])
@pytest.mark.parametrize("rule", RULES)
def test_reference_path_agrees(rule: str, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a device without a compiled sweep, with the CPU's memory standing in for it."""
    scores = torch.from_numpy(clusters(np.random.default_rng(12), 2000, 5))
    settings: dict[str, Any] = dict(epsilon=0.2, tol=1e-8, rounding=rounding, **RULES[rule])
    compiled = sinkhorn_assign(scores, **settings)
    plan = compiled.plan(scores)
    for module in (otlabel.assign, otlabel.result):
        monkeypatch.setattr(module, "open_scores", lambda s, **options: Opened.of(TensorSource(torch.as_tensor(s))))
    reference = sinkhorn_assign(scores, **settings)
    assert torch.equal(reference.labels, compiled.labels)
    assert reference.value == pytest.approx(compiled.value, abs=1e-12)
    assert reference.bound == pytest.approx(compiled.bound, abs=1e-7 if rounding == "argmax" else 1e-12)
    np.testing.assert_allclose(2000 * reference.plan(scores), 2000 * plan, rtol=0, atol=1e-6)
    np.testing.assert_allclose(reference.soft_labels(scores), compiled.soft_labels(scores), rtol=0, atol=1e-6)


def test_rows_that_leave_their_mass_have_labels_of_the_plan() -> None:
    scores = normal(np.random.default_rng(13), 200, 4)
    exact = sinkhorn_assign(scores, samples=KL(0.5), rounding="exact")
    argmax = sinkhorn_assign(scores, samples=KL(0.5), rounding="argmax")
    np.testing.assert_array_equal(exact.labels, argmax.labels)
    np.testing.assert_array_equal(exact.labels, exact.plan(scores).argmax(1))
    assert exact.sample_rho == 0.5


def test_rows_that_fit_nowhere_give_up_their_mass() -> None:
    """An outlier of score -9 keeps the share exp(-9 / (rho + epsilon)) or so of its mass."""
    scores = normal(np.random.default_rng(14), 200, 4)
    scores[:20] -= 9.0
    plan = sinkhorn_assign(scores, classes=KL(1.0), samples=KL(1.0), epsilon=0.1).plan(scores)
    assert plan[:20].sum(1).max() < 0.01 * plan[20:].sum(1).mean()


@pytest.mark.parametrize("rule", RULES)
def test_dear_prices_are_exact_masses(rule: str) -> None:
    """Prices towards infinity give the balanced plan; a range from b to b is the balanced plan itself."""
    rng = np.random.default_rng(15)
    scores, mass = normal(rng, 50, 5), rng.dirichlet(np.full(5, 3.0))
    settings: dict[str, Any] = {"abstain": RULES[rule].get("abstain", 0.0)}
    exact = sinkhorn_assign(scores, class_mass=mass, epsilon=0.3, tol=1e-10, rounding="argmax", **settings)
    share = 1 - settings["abstain"]
    for name in ("classes", "samples"):
        if name in RULES[rule]:
            is_range = isinstance(RULES[rule][name], Range)
            settings[name] = Range(mass * share, mass * share) if is_range else KL(1e7)
    dear = sinkhorn_assign(scores, class_mass=mass, epsilon=0.3, tol=1e-10, rounding="argmax", **settings)
    np.testing.assert_allclose(50 * dear.plan(scores), 50 * exact.plan(scores), rtol=0, atol=1e-5)


@pytest.mark.parametrize("abstain", [0.0, 0.3])
@pytest.mark.parametrize("size", [10.0, 30.0, -30.0])
def test_prices_far_below_the_scores(size: float, abstain: float, there) -> None:
    """Rows that would take exp(size / rho) of their mass on the way, near or beyond what float32 holds."""
    for seed in range(4):
        scores = size * normal(np.random.default_rng(seed), 40, 4) + min(size, 0.0)
        result = there(sinkhorn_assign, scores, classes=KL(0.5), samples=KL(0.5), abstain=abstain, tol=1e-6)
        assert result.status is Status.CONVERGED
        np.testing.assert_allclose(there(result.plan, scores).sum(0), result.class_mass, rtol=1e-6, atol=1e-300)


problems = st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 40), st.integers(2, 6))
rules = st.sampled_from(
    [
        dict(classes=KL(0.3)),
        dict(classes=Range(0.05, 0.6)),
        dict(classes=KL(0.3), samples=KL(1.0)),
        dict(abstain=0.25),
        dict(abstain=0.25, classes=KL(0.3)),
    ]
)


def planned(scores, **settings) -> Assignment:
    return sinkhorn_assign(scores, rounding="argmax", tol=1e-10, **settings)


@given(problems, rules)
def test_permutations_permute_the_plan(problem, rule) -> None:
    seed, n_samples, n_classes = problem
    rng = np.random.default_rng(seed)
    scores, mass = normal(rng, n_samples, n_classes), rng.dirichlet(np.full(n_classes, 3.0))
    rows, columns = rng.permutation(n_samples), rng.permutation(n_classes)
    shuffled = scores[rows][:, columns]
    plan = planned(scores, class_mass=mass, epsilon=0.3, **rule).plan(scores)
    other = planned(shuffled, class_mass=mass[columns], epsilon=0.3, **rule).plan(shuffled)
    np.testing.assert_allclose(n_samples * other, n_samples * plan[rows][:, columns], rtol=0, atol=1e-6)


@given(problems, st.sampled_from([KL(0.3), Range(0.05, 0.6), Exact()]))
def test_row_shifts_change_no_plan_of_exact_rows(problem, rule) -> None:
    seed, n_samples, n_classes = problem
    rng = np.random.default_rng(seed)
    scores = normal(rng, n_samples, n_classes)
    shifted = scores + 50.0 * normal(rng, n_samples, 1)
    plan, other = (planned(s, classes=rule, epsilon=0.3).plan(s) for s in (scores, shifted))
    np.testing.assert_allclose(n_samples * other, n_samples * plan, rtol=0, atol=1e-6)


@given(problems, rules, st.integers(-10, 10))
def test_other_units_of_scores_epsilon_and_prices(problem, rule, power: int) -> None:
    seed, n_samples, n_classes = problem
    scores, scale = normal(np.random.default_rng(seed), n_samples, n_classes), 2.0**power
    dearer = {name: KL(scale * part.rho) if isinstance(part, KL) else part for name, part in rule.items()}
    plan = planned(scores, epsilon=0.3, **rule).plan(scores)
    other = planned(scale * scores, epsilon=scale * 0.3, **dearer).plan(scale * scores)
    np.testing.assert_allclose(n_samples * other, n_samples * plan, rtol=0, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 1.0, 20.0]))
def test_kl_of_equal_masses_treats_classes_alike(seed: int, rho: float) -> None:
    """Scores whose classes differ by a cyclic shift of the rows: equal masses come out, whatever the price."""
    n_classes = 4
    block = normal(np.random.default_rng(seed), 6, n_classes)
    scores = np.vstack([np.roll(block, shift, axis=1) for shift in range(n_classes)])
    result = planned(scores, classes=KL(rho), epsilon=0.2)
    np.testing.assert_allclose(result.class_mass, 1 / n_classes, rtol=1e-8)
    np.testing.assert_allclose(result.plan_potentials, result.plan_potentials[0], rtol=0, atol=1e-7)


def test_kl_between_the_softmax_and_the_balanced_plan() -> None:
    scores = normal(np.random.default_rng(16), 100, 4) + np.array([1.0, 0.0, 0.0, -1.0])
    softmax = np.exp(scores / 0.5 - logsumexp(scores / 0.5, axis=1)[:, None]) / 100
    cheap = planned(scores, classes=KL(1e-6), epsilon=0.5)
    np.testing.assert_allclose(100 * cheap.plan(scores), 100 * softmax, rtol=0, atol=1e-4)
    far = [np.abs(planned(scores, classes=KL(rho), epsilon=0.5).class_mass - 0.25).sum() for rho in PRICES]
    assert far == sorted(far, reverse=True)


@pytest.mark.parametrize("size", [100.0, 250.0, 600.0])
def test_masses_beyond_float32(size: float) -> None:
    scores = size * np.random.default_rng(0).random((40, 4))
    rules = dict(classes=KL(1.0), samples=KL(1.0))
    result = sinkhorn_assign(scores, **rules, epsilon=1.0, tol=1e-8)
    assert result.status is Status.CONVERGED
    expected, _ = scaling(scores, np.full(4, 1 / 4), 1.0, **rules)
    np.testing.assert_allclose(result.plan(scores) / expected.sum(), expected / expected.sum(), atol=1e-8)


def test_masses_beyond_all_numbers_are_refused() -> None:
    scores = 3000 * np.random.default_rng(0).random((40, 4))
    with pytest.raises(otlabel.errors.InvalidScoresError, match="more mass than numbers can hold; raise rho"):
        sinkhorn_assign(scores, classes=KL(1.0), samples=KL(1.0))


@pytest.mark.parametrize("below", [20.0, 100.0])
def test_scores_far_below_zero(below: float) -> None:
    scores, rules = np.random.default_rng(0).standard_normal((30, 4)) - below, dict(classes=KL(0.1), samples=KL(0.1))
    result = sinkhorn_assign(scores, **rules, epsilon=0.04, tol=1e-8)
    assert result.status is Status.CONVERGED
    # All three charges are c log(c / b) - c + b: with scores less a constant the best plan is the same, scaled.
    expected, _ = scaling(scores + below, np.full(4, 1 / 4), 0.04, **rules)
    plan = result.plan(scores)
    np.testing.assert_allclose(plan / plan.sum(), expected / expected.sum(), atol=1e-7)
    log_scale = np.log(plan.sum() / expected.sum())
    assert log_scale == pytest.approx(-below / (0.1 + 0.1 + 0.04), rel=1e-9)
    near = sinkhorn_assign(scores + below, **rules, epsilon=0.04, tol=1e-8)
    np.testing.assert_array_equal(result.labels, near.labels)


def test_masses_below_and_beyond_all_numbers_are_refused() -> None:
    scores, rules = np.random.default_rng(0).standard_normal((30, 4)), dict(classes=KL(0.1), samples=KL(0.1))
    with pytest.raises(otlabel.errors.InvalidScoresError, match="less mass than numbers can hold; raise rho"):
        sinkhorn_assign(scores - 1000, **rules)
    result = sinkhorn_assign(scores, **rules)
    with pytest.raises(otlabel.errors.InvalidScoresError, match="more mass than numbers can hold"):
        result.plan(scores + 1e10)


def test_exact_classes_have_their_mass_however_low_scores_are() -> None:
    scores = np.random.default_rng(0).standard_normal((30, 4))
    far, near = (sinkhorn_assign(scores - by, samples=KL(0.1), tol=1e-8) for by in (1000, 0))
    np.testing.assert_allclose(far.class_mass, np.full(4, 1 / 4), atol=1e-8)
    np.testing.assert_allclose(far.plan(scores - 1000), near.plan(scores), atol=1e-7)
