"""Problems that fit the cache, solved in a few compiled calls: the answers of the long way, or its errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import KINDS
from problems import draw as draw_kind
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax
from verdicts import check

from otlabel import Assignment, Status, assign, certify, linear_scores, sinkhorn_assign
from otlabel.errors import DegenerateScoresWarning, FewSamplesWarning, InfeasibleError, InvalidScoresError
from otlabel.ranks.rowset import RowSet
from otlabel.solver import small
from otlabel.sources import Features, as_opened, closeness
from otlabel.sources.memory import open_array

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")
SHAPES = [(32, 2), (100, 10), (256, 100), (60, 60), (32, 100), (3000, 10), (129, 7)]


@pytest.fixture
def by_long_way(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that solves as if no problem were small."""

    def solve(*arguments: Any, **options: Any) -> Assignment:
        with monkeypatch.context() as patched:
            patched.setattr(small, "MOST_SCORES", 0)
            return sinkhorn_assign(*arguments, **options)

    return solve


@pytest.fixture
def short_way_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not solved as a small problem is none of these tests' affair."""
    monkeypatch.setattr(assign, "_solve", lambda *_: pytest.fail("it went the long way"))


def logits(seed: int, n_rows: int, n_classes: int, scale: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return log_softmax(scale * rng.standard_normal((n_rows, n_classes)) + rng.standard_normal(n_classes), axis=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_long_way_is_right_for_small_problems_too(family: str, monkeypatch) -> None:
    """As test_families.py has it of both ways together: most of its small problems of exact sizes go the short one."""
    monkeypatch.setattr(small, "MOST_SCORES", 0)
    wrong = [check(draw(family, rule, seed)).wrong for rule in ("equal", "shares", "counts") for seed in (0, 7)]
    assert not any(wrong), wrong


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_agree_on_every_kind_of_input(kind: str, by_long_way) -> None:
    for seed in range(2):
        drawn = draw_kind(kind, seed)
        one = sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)
        other = by_long_way(drawn.scores, class_mass=drawn.class_mass)
        np.testing.assert_array_equal(np.asarray(one.counts), np.asarray(other.counts))
        scale = max(1.0, abs(other.value))
        assert abs(one.value - other.value) <= 1e-12 * scale
        assert one.proof.proven == other.proof.proven


@pytest.mark.usefixtures("short_way_only")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_and_plan(shape: tuple[int, int], dtype: str, by_long_way, monkeypatch) -> None:
    """Exact sizes and the optimum, proven; a plan that is as near to its class masses in float64 as it says."""
    monkeypatch.undo()
    scores = logits(1, *shape).astype(dtype)
    other = by_long_way(scores)
    monkeypatch.setattr(assign, "_solve", lambda *_: pytest.fail("it went the long way"))
    result = sinkhorn_assign(scores)
    assert abs(result.value - other.value) <= 1e-12
    assert result.proof.proven
    np.testing.assert_array_equal(result.counts, other.counts)
    np.testing.assert_array_equal(result.counts, np.bincount(result.labels, minlength=shape[1]))
    if dtype == "float64":  # else some classes may be tied
        np.testing.assert_array_equal(result.predict(scores), result.labels)
    mass = result.plan(scores).sum(0)
    error = np.abs(mass - 1 / shape[1]).sum()
    assert error <= 0.01
    assert abs(error - result.marginal_error) < 1e-4
    np.testing.assert_allclose(result.class_mass, mass, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.plan_potentials[np.isfinite(result.potentials)].mean(), 0, atol=1)
    assert result.status is Status.CONVERGED


@pytest.mark.parametrize("shape", SHAPES)
def test_class_masses_and_argmax(shape: tuple[int, int], by_long_way) -> None:
    """Uneven sizes, classes of none; labels of the plan alone."""
    rng = np.random.default_rng(2)
    scores, sizes = logits(2, *shape), rng.multinomial(shape[0], rng.dirichlet(np.ones(shape[1])))
    one, other = sinkhorn_assign(scores, class_mass=sizes), by_long_way(scores, class_mass=sizes)
    np.testing.assert_array_equal(one.counts, sizes)
    assert abs(one.value - other.value) <= 1e-12
    np.testing.assert_array_equal(np.isfinite(one.potentials), np.isfinite(other.potentials))
    argmax = sinkhorn_assign(scores, rounding="argmax")
    np.testing.assert_array_equal(argmax.labels, (scores + argmax.plan_potentials).argmax(1))
    np.testing.assert_array_equal(argmax.labels, argmax.predict(scores))
    assert argmax.proof.proven


@pytest.mark.usefixtures("short_way_only")
def test_forbidden_pairs_and_empty_classes() -> None:
    scores = logits(3, 200, 20)
    shut = np.random.default_rng(3).random(scores.shape) < 0.5
    shut[np.arange(200), np.arange(200) % 20] = False
    scores[shut] = -np.inf
    result = sinkhorn_assign(scores)
    np.testing.assert_array_equal(result.counts, 10)
    assert result.proof.proven
    assert not shut[np.arange(200), result.labels].any()


def test_products_of_features_are_read_once_as_float64_makes_them(by_long_way) -> None:
    """Of heads that are not normalised: those of k-means; others leave digits out."""
    rng = np.random.default_rng(6)
    features, weight, bias = rng.standard_normal((900, 16)), rng.standard_normal((30, 16)), rng.standard_normal(30)
    features = features.astype(np.float32)
    result = sinkhorn_assign(linear_scores(features, weight, bias, normalize=False))
    scores = features.astype(np.float64) @ weight.T + bias
    proof = certify(scores, result.labels, potentials=result.potentials)
    assert proof.proven
    assert result.n_readings == 1
    assert abs(result.value - proof.value) <= 1e-12
    np.testing.assert_array_equal(result.counts, 30)
    assert abs(by_long_way(scores).value - result.value) <= 1e-12


@pytest.mark.usefixtures("short_way_only")
@given(seed=st.integers(0, 10**6), n_rows=st.integers(40, 300), n_classes=st.integers(2, 12), step=st.floats(0.0, 2.0))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_of_a_sequence_of_warm_solves_is_the_optimum(seed: int, n_rows: int, n_classes: int, step: float) -> None:
    """Of heads that move, over features that are dealt out once: SciPy's value, as one from nothing has it."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n_rows, 4)) + 3 * rng.standard_normal((5, 4))[rng.integers(5, size=n_rows)]
    features, centres = (
        Features(as_opened(open_array(rows.astype(np.float32), "features")), fixed=True),
        rows[:n_classes].copy(),
    )
    column_of, init = np.arange(n_rows) % n_classes, None
    for _ in range(3):
        scores = closeness(features, centres)
        init = sinkhorn_assign(scores, remainder="first", epsilon=0.3, init=init)
        assert init.proof.proven
        cold = sinkhorn_assign(closeness(features.opened, centres), remainder="first", epsilon=0.3)
        dense = np.concatenate([block for _, block in RowSet(scores).fine.blocks()])
        best = dense[:, column_of][linear_sum_assignment(dense[:, column_of], maximize=True)].mean()
        np.testing.assert_allclose([init.value, cold.value], best, rtol=0, atol=1e-12 * np.abs(dense).max())
        np.testing.assert_array_equal(init.counts, np.bincount(column_of))
        centres = centres + step * rng.standard_normal(centres.shape)
    assert features.dealt is not None


@pytest.mark.usefixtures("short_way_only")
def test_float64_decides_between_classes_that_float32_takes_for_equal() -> None:
    """Pairs of classes whose scores differ by less than float32 knows of products."""
    rng = np.random.default_rng(3)
    features, weight = rng.standard_normal((600, 8)).astype(np.float32), 3 * rng.standard_normal((10, 8))
    weight[5:] = weight[:5] + 1e-8 * rng.standard_normal((5, 8))
    result = sinkhorn_assign(linear_scores(features, weight, normalize=False))
    scores = features.astype(np.float64) @ weight.T
    columns = np.arange(600) % 10
    rows, places = linear_sum_assignment(scores[:, columns], maximize=True)
    assert result.proof.proven
    assert abs(result.value - scores[rows, columns[places]].mean()) <= 1e-14
    single = np.float64(np.float32(scores))  # what it would be if scores were rounded
    _, rough = linear_sum_assignment(single[:, columns], maximize=True)
    assert scores[rows, columns[rough]].mean() < result.value - 1e-11


@pytest.mark.usefixtures("short_way_only")
def test_a_start_whose_labels_say_nothing_of_these_scores_does_no_harm() -> None:
    scores = logits(10, 400, 20)
    cold = sinkhorn_assign(scores)
    rng = np.random.default_rng(0)
    odd = replace(cold, potentials=cold.plan_potentials + 100 * rng.standard_normal(20))
    again = sinkhorn_assign(scores, init=odd)
    assert again.proof.proven
    np.testing.assert_array_equal(again.labels, cold.labels)
    assert sum(record["stage"] == "repair" for record in sinkhorn_assign(scores, init=cold).history) == 1


def test_what_is_unusual_goes_the_long_way() -> None:
    """With its errors, warnings and choices by chance."""
    scores = logits(4, 64, 8)
    scores[5, 3] = np.nan
    with pytest.raises(InvalidScoresError, match="row 5, class 3"):
        sinkhorn_assign(scores)
    scores[5], scores[:, 2] = 0.0, -np.inf
    with pytest.raises(InfeasibleError, match="class 2 is to take 8 samples"):
        sinkhorn_assign(scores)
    with pytest.warns(DegenerateScoresWarning, match="all equal"):
        sinkhorn_assign(np.zeros((64, 8)))
    with pytest.warns(DegenerateScoresWarning, match="logarithm"):
        sinkhorn_assign(np.exp(logits(4, 64, 8)))
    with pytest.warns(FewSamplesWarning):
        sinkhorn_assign(logits(4, 8, 64))
    tied = np.repeat(np.eye(4), 25, axis=0)[:, [0, 0, 1, 1, 2, 3]] * 5 - 1
    assert len({tuple(sinkhorn_assign(tied, seed=seed).labels) for seed in range(4)}) > 1


@pytest.mark.usefixtures("short_way_only")
def test_which_of_equal_rows_gets_which_label_is_drawn_by_the_seed() -> None:
    scores = np.repeat(logits(9, 100, 5), 3, axis=0)
    sizes = [61, 58, 62, 59, 60]  # so that some of the equal rows part
    several = [sinkhorn_assign(scores, class_mass=sizes, seed=seed) for seed in range(8)]
    np.testing.assert_allclose([result.value for result in several], several[0].value, rtol=1e-14)
    assert len({tuple(result.labels) for result in several}) > 1
    np.testing.assert_array_equal(sinkhorn_assign(scores, class_mass=sizes, seed=3).labels, several[3].labels)


def test_history_tells_of_one_reading() -> None:
    """Passes are those that were made, and whoever watches hears of each, with potentials to start from."""
    scores, heard = logits(5, 500, 10), []
    result = sinkhorn_assign(scores, progress=heard.append)
    plain = sinkhorn_assign(scores)
    assert result.n_readings == 1
    assert result.n_sweeps == plain.n_sweeps == sum(record["rows"] == 500 for record in result.history)
    assert [record["stage"] for record in result.history[-3:]] == ["round", "repair", "certify"]
    solves = [record for record in heard if record["stage"] == "solve"]
    assert solves[-1]["error"] == pytest.approx(result.marginal_error, abs=1e-12)
    np.testing.assert_allclose(np.ptp(solves[-1]["potentials"] - result.plan_potentials), 0, atol=1e-12)
    again = sinkhorn_assign(scores, init=solves[-1]["potentials"])
    assert sum(record["stage"] == "solve" for record in again.history) == 1


@pytest.mark.usefixtures("short_way_only")
def test_warm_start_takes_fewer_passes_and_a_bad_one_does_no_harm() -> None:
    scores = logits(6, 256, 100)
    cold = sinkhorn_assign(scores)
    near = sinkhorn_assign(scores + 0.01 * np.random.default_rng(0).standard_normal(scores.shape), init=cold)
    assert near.n_sweeps < cold.n_sweeps
    far = sinkhorn_assign(scores, init=1e3 * np.random.default_rng(1).standard_normal(100))
    assert far.proof.proven
    assert abs(far.value - cold.value) <= 1e-12


@pytest.mark.usefixtures("short_way_only")
def test_adding_to_rows_and_the_order_of_rows_change_nothing() -> None:
    scores = logits(7, 300, 12)
    order = np.random.default_rng(0).permutation(300)
    one, other = sinkhorn_assign(scores), sinkhorn_assign((scores + np.linspace(-50, 50, 300)[:, None])[order])
    np.testing.assert_array_equal(one.labels[order], other.labels)


def test_large_epsilon_is_sharpened_before_labels_move(by_long_way) -> None:
    """Plans whose best classes are mostly those of wide scores: a smaller epsilon comes first, the plan stays."""
    scores = 0.3 * np.random.default_rng(8).standard_normal((2000, 10)) * np.linspace(0.2, 2, 10)
    result = sinkhorn_assign(scores, epsilon=1.0)
    assert min(record["epsilon"] for record in result.history if record["epsilon"]) < 1.0
    assert abs(result.value - by_long_way(scores, epsilon=1.0).value) <= 1e-12
    assert np.abs(result.plan(scores).sum(0) - 0.1).sum() <= 0.01
