"""Several labels a sample: the optimum of HiGHS with a proof, the capped softmax, and what does not go with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit
from several import best_total, draw, faults

import otlabel.assign
from otlabel import KL, Assignment, Range, certify, linear_scores, sinkhorn_assign, sweep
from otlabel.errors import InfeasibleError, InvalidMassError
from otlabel.ranks.rowset import RowSet
from otlabel.solver import first_look, samples, shortlist
from otlabel.sources import Opened, TensorSource, open_scores

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")
BATCHES = range(0, 80, 20)  # of problems


def wrong_of(seeds: range) -> dict[int, list[str]]:
    """What is wrong with answers, by seed; an error where HiGHS finds no assignment is right."""
    wrong = {}
    for seed in seeds:
        drawn = draw(seed)
        try:
            result = sinkhorn_assign(drawn.scores, labels_per_sample=drawn.k, **drawn.arguments)
        except InfeasibleError:
            if best_total(drawn.scores, drawn.k, drawn.lo, drawn.hi) is not None:
                wrong[seed] = ["called infeasible"]
            continue
        if found := faults(drawn, result):
            wrong[seed] = found
    return wrong


# ---- labels ----


@pytest.mark.parametrize("first", BATCHES)
def test_optimum_of_highs(first: int) -> None:
    assert not wrong_of(range(first, first + 20))


@pytest.fixture
def lists_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An item for each time that lists are made, of however few scores."""
    for name, value in (("FEWEST_ROWS", 4), ("COARSE_ROWS", 2)):
        monkeypatch.setattr(samples, name, value)
    for name, value in (("FEWEST_SCORES", 0), ("FEWEST_CLASSES", 2), ("MOST_LISTED", 1.0)):
        monkeypatch.setattr(shortlist, name, value)
    made: list[int] = []
    listing = shortlist.list_rows
    monkeypatch.setattr(first_look, "list_rows", lambda *given, **how: made.append(1) or listing(*given, **how))
    return made


@pytest.mark.parametrize("first", BATCHES)
def test_optimum_from_lists(first: int, lists_made: list[int]) -> None:
    assert not wrong_of(range(first + 1000, first + 1020))
    assert lists_made


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are on a device, which is the processor."""

    def open_on_device(scores, **options: Any) -> Opened:
        return Opened.of(TensorSource(torch.as_tensor(scores)))

    monkeypatch.setattr(otlabel.assign, "open_scores", open_on_device)


@pytest.mark.parametrize("first", BATCHES[:1])
@pytest.mark.usefixtures("tensors")
def test_optimum_on_tensors_of_a_device(first: int) -> None:
    assert not wrong_of(range(first + 2000, first + 2020))


@pytest.mark.usefixtures("tensors")
def test_optimum_from_lists_that_a_device_makes(lists_made: list[int]) -> None:
    """Of tensors of every type; they leave the device in storage form."""
    assert not wrong_of(range(3000, 3010))
    rng = np.random.default_rng(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        scores = torch.from_numpy(rng.standard_normal((300, 12))).to(dtype)
        before = len(lists_made)
        result = sinkhorn_assign(scores, labels_per_sample=3)
        assert len(lists_made) == before + 1
        assert result.n_readings == 1
        best = best_total(scores.double().numpy(), 3, np.full(12, 75), np.full(12, 75))
        assert result.value * 300 == pytest.approx(best, abs=1e-9)
        assert result.proof.proven


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("listed", [False, True])
def test_optimum_on_a_card(listed: bool, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue("lists_made") if listed else []
    rng = np.random.default_rng(1)
    for shape, k, dtype in (((300, 12), 3, np.float16), ((90, 40), 2, np.float32), ((64, 8), 4, np.float64)):
        scores = rng.standard_normal(shape).astype(dtype)
        size = shape[0] * k // shape[1]
        sizes = np.full(shape[1], size), np.full(shape[1], size + (shape[0] * k % shape[1] > 0))
        for given, options in ((torch.from_numpy(scores).cuda(), {}), (scores, {"device": "cuda"})):
            result = sinkhorn_assign(given, labels_per_sample=k, **options)
            assert isinstance(result.labels, type(given))
            best = best_total(scores.astype(np.float64), k, *sizes)
            assert result.value * shape[0] == pytest.approx(best, abs=1e-9)
            assert result.proof.proven
    assert bool(made) == listed


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_prices_of_sizes(k: int, rho: float) -> None:
    """Of KL, against HiGHS with one column for each place of a class, which costs what that place does."""
    rng = np.random.default_rng(k)
    scores = rng.standard_normal((15, 6)) + np.arange(6) / 2
    result = sinkhorn_assign(scores, labels_per_sample=k, classes=KL(rho))
    n_units, mass = 15 * k, 1 / 6

    def charge(sizes: np.ndarray) -> np.ndarray:
        shares = sizes / n_units
        return rho * n_units * (shares * np.log(np.maximum(shares, 1e-300) / mass) - shares + mass)

    prices = np.diff(charge(np.arange(16)))
    best = _best_with_prices(scores, k, prices) - 6 * charge(np.zeros(1))[0]
    worth = result.value * 15 - charge(np.asarray(result.counts)).sum()
    assert worth == pytest.approx(best, abs=1e-9)
    assert result.proof.proven
    assert np.ptp(result.counts) > 0
    assert max(result.counts) <= 15


def _best_with_prices(scores: np.ndarray, k: int, prices: np.ndarray) -> float:
    """The best total score less the price of every place that is filled; these rise."""
    from scipy.optimize import linprog

    n_rows, n_classes = scores.shape
    n_pairs = scores.size
    of_rows = np.kron(np.eye(n_rows), np.ones(n_classes))
    of_classes = np.kron(np.ones(n_rows), np.eye(n_classes))
    places = np.kron(np.eye(n_classes), np.ones(len(prices)))
    found = linprog(
        np.concatenate([-scores.ravel(), np.tile(prices, n_classes)]),
        A_eq=np.block([[of_rows, np.zeros((n_rows, places.shape[1]))], [of_classes, -places]]),
        b_eq=np.concatenate([np.full(n_rows, k), np.zeros(n_classes)]), bounds=(0, 1), method="highs",
    )  # fmt: skip
    assert n_pairs + places.shape[1] == len(found.x)
    return -float(found.fun)


def test_one_label_is_what_it_was() -> None:
    scores = np.random.default_rng(0).standard_normal((300, 7))
    with_it, without = sinkhorn_assign(scores, labels_per_sample=1), sinkhorn_assign(scores)
    for name in ("labels", "potentials", "plan_potentials", "class_mass"):
        np.testing.assert_array_equal(getattr(with_it, name), getattr(without, name))
    assert with_it.labels.shape == (300,)
    assert with_it.labels_per_sample == 1


def test_as_many_labels_as_classes() -> None:
    scores = np.random.default_rng(0).standard_normal((30, 4))
    result = sinkhorn_assign(scores, labels_per_sample=4)
    np.testing.assert_array_equal(result.labels, np.argsort(-scores, 1))
    assert result.value == pytest.approx(scores.sum(1).mean(), abs=1e-12)
    assert result.proof.proven


def test_two_labels_are_better_than_two_solves() -> None:
    scores = np.random.default_rng(1).standard_normal((400, 8)) + np.arange(8) / 4
    both = sinkhorn_assign(scores, labels_per_sample=2)
    first = sinkhorn_assign(scores)
    left = scores.copy()
    left[np.arange(400), first.labels] = -np.inf
    assert both.value > first.value + sinkhorn_assign(left).value + 1e-6
    assert set(both.counts) == {100}


# ---- from where scores may come ----


@pytest.fixture(scope="module")
def halves() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.standard_normal((9000, 33)) + rng.standard_normal(33)).astype(np.float16)


def test_files_streamed(halves: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "FEWEST_SCORES", 1 << 16)
    expected = sinkhorn_assign(halves, labels_per_sample=3)
    np.save(tmp_path / "scores.npy", halves)
    with h5py.File(tmp_path / "scores.h5", "w") as file:
        file.create_dataset("scores", data=halves, chunks=(512, 33))
    for scores in (f"{tmp_path}/scores.npy", f"{tmp_path}/scores.h5::/scores", [halves[:5000], halves[5000:]]):
        found = sinkhorn_assign(scores, labels_per_sample=3, memory_limit=0)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.value == expected.value
        assert found.proof.proven
    assert expected.proof.proven
    assert set(expected.counts) <= {818, 819}


@pytest.mark.parametrize("normalize", [True, False])
def test_factored_scores(normalize: bool) -> None:
    rng = np.random.default_rng(0)
    features, weight = (rng.standard_normal((n, 6)).astype(np.float32) for n in (2000, 12))
    head = linear_scores(features, weight, normalize=normalize)
    found = sinkhorn_assign(head, labels_per_sample=2)
    scores = features.astype(np.float64) @ weight.astype(np.float64).T
    if normalize:
        scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    expected = sinkhorn_assign(scores, labels_per_sample=2)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert found.proof.proven
    assert certify(head, found.labels, potentials=found.potentials).proven


def test_rows_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    near = np.round(rng.standard_normal((300, 9)) * 1024) / 1024
    far = near + np.round(1e6 * rng.standard_normal((300, 1)))
    found, expected = (sinkhorn_assign(scores, labels_per_sample=3) for scores in (far, near))
    of_labels = np.take_along_axis(near, found.labels, 1).sum(1).mean()
    assert of_labels == pytest.approx(expected.value, abs=1e-9)
    assert found.value == pytest.approx(np.take_along_axis(far, found.labels, 1).sum(1).mean(), rel=1e-12)
    assert found.proof.proven


# ---- the plan ----


def capped_softmax(u: np.ndarray, k: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """1 / (1 + exp((t - u) / epsilon)), and k t + epsilon sum log(1 + exp((u - t) / epsilon)); rows sum to k."""
    plan, values = np.empty_like(u), np.empty(len(u))
    for i, row in enumerate(u):
        t = brentq(lambda t, row=row: expit((row - t) / epsilon).sum() - k, row.min() - 50, row.max() + 50, xtol=1e-15)
        plan[i] = expit((row - t) / epsilon)
        values[i] = k * t + epsilon * np.logaddexp(0, (row - t) / epsilon).sum()
    return plan, values


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n_classes", "k", "epsilon"), [(9, 3, 0.3), (40, 5, 0.04), (120, 50, 0.1), (60, 7, 3.0), (12, 2, 1e-3)]
)
def test_sweeps_sum_the_capped_softmax(n_classes: int, k: int, epsilon: float, precision: type) -> None:
    rng = np.random.default_rng(n_classes)
    scores = rng.standard_normal((40, n_classes)).astype(precision)
    scores[:3] = np.round(scores[:3])
    g = rng.standard_normal(n_classes)
    found = sweep.sweep(RowSet(open_scores(scores)).taking(k), g, epsilon, precision=precision)
    u = scores.astype(np.float64) + g
    plan, values = capped_softmax(u, k, epsilon)
    near = 1e-13 if precision is np.float64 else 3e-6
    np.testing.assert_allclose(found.mass, plan.mean(0) / k, rtol=0, atol=near)
    assert found.linear + epsilon * found.entropic == pytest.approx(values.mean() / k, abs=10 * near)
    best = np.argsort(-u if precision is np.float64 else -(scores + g.astype(precision)), 1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.counts, np.bincount(best.ravel(), minlength=n_classes))


def test_the_curvature_is_that_of_the_capped_softmax() -> None:
    """Rows r of `sparse_plan`: the diagonal of r sum(r) less r r^T is the second derivative of a row's part over k."""
    rng = np.random.default_rng(0)
    u, k, epsilon, h = rng.standard_normal((1, 7)), 3, 0.5, 1e-4
    rows = RowSet(open_scores(u)).taking(k)
    r = sweep.sparse_plan(rows, np.arange(1), np.zeros(7), epsilon, 0.0).toarray()[0].astype(np.float64)
    numeric = np.stack(
        [(capped_softmax(u + s, k, epsilon)[0] - capped_softmax(u - s, k, epsilon)[0])[0] for s in h * np.eye(7)]
    ) / (2 * h * k)
    np.testing.assert_allclose(np.diag(r * r.sum()) - np.outer(r, r), epsilon * numeric, atol=1e-6)


def test_plan_and_soft_labels() -> None:
    scores = np.random.default_rng(0).standard_normal((200, 9))
    scores[0, :4] = -np.inf
    result = sinkhorn_assign(scores, labels_per_sample=3, epsilon=0.3)
    finite = scores[1:] + result.plan_potentials
    np.testing.assert_allclose(result.soft_labels(scores)[1:], capped_softmax(finite, 3, 0.3)[0], atol=1e-9)
    soft = result.soft_labels(scores)
    assert (soft <= 1).all()
    assert not soft[0, :4].any()
    np.testing.assert_allclose(soft.sum(1), 3, rtol=1e-12)
    plan = result.plan(scores)
    assert plan.sum() == pytest.approx(1)
    np.testing.assert_allclose(plan.sum(0), result.class_mass, atol=1e-9)
    assert np.abs(result.class_mass - 1 / 9).sum() <= 1e-2
    assert result.marginal_error == pytest.approx(np.abs(result.class_mass - 1 / 9).sum(), abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.03, 0.3])
def test_lists_tell_the_most_that_they_lack(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    scores, k = rng.standard_normal((400, 30)), 4
    rows, g = RowSet(open_scores(scores)).taking(k), 0.1 * rng.standard_normal(30)
    plan, _ = capped_softmax(scores + g, k, epsilon)
    for width in (0.1, 0.4, 1.0):
        lists = sweep.listed(rows, np.zeros(30), np.full(30, width / 2), 2.0**-40).source
        told = sweep.left_out(rows.over(Opened.of(lists)), g, np.zeros(30), epsilon, width)
        u = scores
        lacking = u < np.sort(u, 1)[:, [-k]] - width
        true = plan[lacking].sum() / (k * 400)
        assert true <= told <= 1 + 1e-9
        assert told <= 200 * true + 1e-6


@pytest.mark.parametrize("more", [{"method": "sinkhorn"}, {"rounding": "argmax"}, {"tol": 1e-8, "epsilon": 0.5}])
def test_other_settings(more: dict[str, Any]) -> None:
    scores = np.random.default_rng(0).standard_normal((300, 8)) + np.arange(8) / 3
    result = sinkhorn_assign(scores, labels_per_sample=2, **more)
    assert result.status.value == "converged"
    np.testing.assert_allclose(result.plan(scores).sum(0), 1 / 8, atol=more.get("tol", 1e-2))
    if "rounding" in more:
        u = scores + result.potentials
        assert (np.sort(result.labels, 1) == np.sort(np.argsort(-u, 1)[:, :2], 1)).all()


# ---- what is done with the answer ----


def test_predict_and_certify() -> None:
    rng = np.random.default_rng(0)
    scores, new = rng.standard_normal((200, 9)), rng.standard_normal((50, 9))
    result = sinkhorn_assign(scores, labels_per_sample=3, remainder="first")
    u = new + result.potentials
    best = np.argsort(-u, 1)[:, :3]
    by_score = np.take_along_axis(best, np.argsort(-np.take_along_axis(new, best, 1), 1), 1)
    np.testing.assert_array_equal(result.predict(new), by_score)
    proof = certify(scores, result.labels[:, ::-1], potentials=result.potentials)
    assert proof.proven
    assert proof.value == pytest.approx(result.value, abs=1e-12)
    assert certify(scores, result.labels).proven
    for labels in (np.argsort(scores, 1)[:, :3], rng.permuted(np.tile(np.arange(9), (200, 1)), axis=1)[:, :3]):
        told = certify(scores, labels)
        sizes = np.bincount(labels.ravel(), minlength=9)
        assert told.value == pytest.approx(np.take_along_axis(scores, labels, 1).sum(1).mean(), abs=1e-12)
        assert told.bound == pytest.approx(best_total(scores, 3, sizes, sizes) / 200, abs=1e-9)
        assert not told.proven
    other = certify(scores, result.labels, class_mass=np.full(9, 1 / 9))  # of all sizes of 66 and 67
    assert other.bound == pytest.approx(best_total(scores, 3, np.full(9, 66), np.full(9, 67)) / 200, abs=1e-9)
    assert other.size_error == 0


def test_certify_labels_on_forbidden_pairs() -> None:
    scores = np.random.default_rng(0).standard_normal((20, 5))
    labels = np.argsort(-scores, 1)[:, :2]
    scores[3, labels[3, 1]] = -np.inf
    assert certify(scores, labels, potentials=np.zeros(5)).gap == np.inf


def test_saved_and_read_again(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((60, 6))
    result = sinkhorn_assign(torch.from_numpy(scores), labels_per_sample=2)
    assert result.labels.dtype == torch.int64
    result.save(tmp_path / "result.npz")
    again = Assignment.load(tmp_path / "result.npz")
    np.testing.assert_array_equal(again.labels, result.labels)
    np.testing.assert_array_equal(again.predict(scores), result.predict(scores))
    assert again.labels_per_sample == 2
    assert again.proof.proven
    assert "60 samples in 2 each of 6 classes of 20 each" in again.summary()
    assert "unlabelled" not in again.summary()


# ---- what there is no answer to ----


def test_a_class_that_nobody_may_have_is_told_of_with_its_places() -> None:
    scores = np.zeros((20, 5))
    scores[:, 3] = -np.inf
    with pytest.raises(InfeasibleError, match="class 3 is to take 8 samples, but its scores are all -inf"):
        sinkhorn_assign(scores, labels_per_sample=2)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"labels_per_sample": 10}, InfeasibleError, "but there are 9 classes, and none takes a sample twice"),
        ({"labels_per_sample": 0}, ValueError, "labels_per_sample is 0; pass a whole number, at least 1"),
        ({"labels_per_sample": 1.5}, ValueError, "labels_per_sample is 1.5"),
        ({"abstain": 0.1}, ValueError, "abstain is 0.1 with labels_per_sample=2"),
        ({"samples": KL(1.0)}, ValueError, "samples is KL"),
        ({"sample_mass": np.arange(40)}, InvalidMassError, "sample_mass with labels_per_sample=2"),
        ({"class_mass": np.r_[0.6, np.full(8, 0.05)]}, InfeasibleError, "class 0 is to take 48 of the 80 places"),
        ({"class_mass": np.r_[0.6, np.full(8, 0.05)], "rounding": "argmax"}, InfeasibleError, "class 0 is to take 48"),
        ({"class_mass": np.r_[41, 39, np.zeros(7, int)]}, InfeasibleError, "class 0 is to take 41 of the 80 places"),
        ({"class_mass": np.full(9, 5)}, InvalidMassError, "whole sizes that sum to the 40 samples times 2 labels"),
        ({"classes": Range(0, 8)}, InfeasibleError, "at most 72, 8 too few, of 80 places; widen the range$"),
        ({"classes": Range(0.0, 0.2), "rounding": "argmax"}, InfeasibleError, "at most 0.9 of all places"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    scores = np.random.default_rng(0).standard_normal((40, 9))
    with pytest.raises(error, match=told):
        sinkhorn_assign(scores, **{"labels_per_sample": 2, **arguments})


def test_forbidden_pairs_that_leave_no_assignment() -> None:
    scores = np.random.default_rng(0).standard_normal((40, 6))
    few = scores.copy()
    few[7, 2:] = -np.inf
    with pytest.raises(InfeasibleError, match="1 rows are allowed fewer than 3 classes, the first is row 7"):
        sinkhorn_assign(few, labels_per_sample=3)
    scarce = scores.copy()
    scarce[:30, 0] = -np.inf
    with pytest.raises(InfeasibleError, match="110 labels of samples may only go to the 5 classes 1, 2"):
        sinkhorn_assign(scarce, labels_per_sample=3)
    result = sinkhorn_assign(scores, labels_per_sample=3)
    with pytest.raises(InfeasibleError, match="fewer than 3 classes"):
        result.predict(few)
    shut = sinkhorn_assign(scores, labels_per_sample=2, class_mass=np.r_[40, 40, np.zeros(4, int)])
    assert set(shut.counts) == {40, 0}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.zeros((20, 2), int), r"labels\[0\] has class 0 twice \(20 such rows\)"),
        (np.full((20, 2), -1), r"outside of 0 ... 4, the first is labels\[0, 0\] = -1"),
        (np.zeros((10, 2), int), "labels must be 20 integers"),
        (np.zeros((20, 1), int), "labels must be 20 integers"),
    ],
)
def test_labels_that_are_none(labels: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        certify(np.random.default_rng(0).standard_normal((20, 5)), labels)
