"""What must not change the answer: order, row offsets, repetition, threads, precision, the seed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import even_counts, loss_of, prove, tolerance, value_of
from problems import clusters, normal, ties

from otlabel import Assignment, sinkhorn_assign

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

problems = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9))


def drawn(problem: tuple[int, int, int], make=normal) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A generator, scores, and random counts, empty classes among them."""
    seed, n_samples, n_classes = problem
    rng = np.random.default_rng(seed)
    return rng, make(rng, n_samples, n_classes), rng.multinomial(n_samples, rng.dirichlet(np.ones(n_classes)))


@given(problems)
def test_permuting_rows_permutes_labels(there, problem) -> None:
    rng, scores, counts = drawn(problem)
    order = rng.permutation(len(scores))
    plain, permuted = (there(sinkhorn_assign, rows, class_mass=counts) for rows in (scores, scores[order]))
    np.testing.assert_array_equal(permuted.labels, plain.labels[order])


@given(problems)
def test_permuting_classes_permutes_labels(there, problem) -> None:
    rng, scores, counts = drawn(problem)
    order = rng.permutation(scores.shape[1])
    plain = there(sinkhorn_assign, scores, class_mass=counts)
    permuted = there(sinkhorn_assign, scores[:, order], class_mass=counts[order])
    np.testing.assert_array_equal(order[permuted.labels], plain.labels)


@given(problems)
def test_permuting_tied_problems_keeps_the_value(problem) -> None:
    rng, scores, counts = drawn(problem, ties)
    rows, classes = rng.permutation(len(scores)), rng.permutation(scores.shape[1])
    plain = sinkhorn_assign(scores, class_mass=counts)
    permuted = sinkhorn_assign(scores[rows][:, classes], class_mass=counts[classes])
    assert value_of(scores[rows][:, classes], permuted.labels) == value_of(scores, plain.labels)


@given(problems, st.floats(-1e3, 1e3))
def test_shifting_rows_keeps_labels(there, problem, size: float) -> None:
    rng, scores, counts = drawn(problem)
    shift = size * rng.standard_normal((len(scores), 1))
    plain, shifted = (there(sinkhorn_assign, rows, class_mass=counts) for rows in (scores, scores + shift))
    np.testing.assert_array_equal(shifted.labels, plain.labels)
    assert shifted.value == pytest.approx(plain.value + shift.mean(), abs=1e-9)


@given(problems, st.floats(-1e3, 1e3))
def test_shifting_classes_keeps_labels_of_exact_sizes(problem, size: float) -> None:
    rng, scores, counts = drawn(problem)
    shift = size * rng.standard_normal(scores.shape[1])
    plain, shifted = sinkhorn_assign(scores, class_mass=counts), sinkhorn_assign(scores + shift, class_mass=counts)
    np.testing.assert_array_equal(shifted.labels, plain.labels)


@given(problems, st.integers(1, 40))
def test_scaling_scores_and_epsilon_together(problem, power: int) -> None:
    """Powers of two: the same problem in other units, to the last bit of the scores."""
    _, scores, counts = drawn(problem)
    scale = 2.0 ** (power - 20)
    plain = sinkhorn_assign(scores, class_mass=counts)
    scaled = sinkhorn_assign(scale * scores, class_mass=counts, epsilon=scale * 0.04)
    np.testing.assert_array_equal(scaled.labels, plain.labels)
    np.testing.assert_allclose(scaled.class_mass, plain.class_mass, rtol=0, atol=2e-2)


@given(problems, st.integers(2, 5))
def test_repeating_rows_is_scaling_counts(there, problem, times: int) -> None:
    _, scores, counts = drawn(problem)
    plain = there(sinkhorn_assign, scores, class_mass=counts)
    repeated_scores = np.repeat(scores, times, axis=0)
    repeated = there(sinkhorn_assign, repeated_scores, class_mass=times * counts)
    np.testing.assert_array_equal(repeated.counts, times * counts)
    assert value_of(repeated_scores, repeated.labels) == pytest.approx(value_of(scores, plain.labels), abs=1e-12)


@given(problems)
def test_repeating_rows_keeps_the_entropic_plan(problem) -> None:
    _, scores, counts = drawn(problem)
    plain = sinkhorn_assign(scores, class_mass=counts, epsilon=0.2, tol=1e-10)
    tripled = np.repeat(scores, 3, axis=0)
    repeated = sinkhorn_assign(tripled, class_mass=3 * counts, epsilon=0.2, tol=1e-10)
    np.testing.assert_allclose(repeated.soft_labels(tripled)[::3], plain.soft_labels(scores), rtol=0, atol=1e-6)


@given(problems)
def test_float32_is_the_same_problem_in_float64(there, problem) -> None:
    """The labels are exact for the scores as stored, so widening them changes nothing."""
    _, scores, counts = drawn(problem)
    single = scores.astype(np.float32)
    narrow, wide = (there(sinkhorn_assign, rows, class_mass=counts) for rows in (single, np.float64(single)))
    room = tolerance(single, loss_of(single, wide.labels))
    assert abs(loss_of(single, narrow.labels) - loss_of(single, wide.labels)) <= room


@given(problems)
def test_rounding_scores_to_float32_costs_no_more_than_the_rounding(problem) -> None:
    _, scores, counts = drawn(problem)
    single = scores.astype(np.float32)
    narrow, wide = sinkhorn_assign(single, class_mass=counts), sinkhorn_assign(scores, class_mass=counts)
    moved = np.abs(scores - single).max()
    assert wide.value - value_of(scores, narrow.labels) + 1e-12 >= 0
    assert wide.value - value_of(scores, narrow.labels) <= 2 * moved + 1e-12


@given(problems, st.integers(0, 2**31))
def test_seed_moves_ties_only(problem, seed: int) -> None:
    _, scores, counts = drawn(problem)
    plain, seeded = sinkhorn_assign(scores, class_mass=counts), sinkhorn_assign(scores, class_mass=counts, seed=seed)
    np.testing.assert_array_equal(seeded.labels, plain.labels)


def assert_same_bits(one: Assignment, two: Assignment) -> None:
    for name in ("labels", "counts", "potentials", "plan_potentials", "class_mass"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name
    assert (one.value, one.bound, one.marginal_error) == (two.value, two.bound, two.marginal_error)
    assert one.n_sweeps == two.n_sweeps


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("make", [clusters, ties])
def test_thread_count_changes_no_bit(make, dtype: type, num_threads) -> None:
    scores = make(np.random.default_rng(0), 30_000, 50).astype(dtype)
    results = []
    for count in (1, 2, 3):
        num_threads(count)
        results.append(sinkhorn_assign(scores))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])
    assert results[0].counts.tolist() == [600] * 50


@pytest.mark.parametrize("make", [clusters, ties])
def test_same_seed_same_bits(make, there) -> None:
    scores = make(np.random.default_rng(1), 30_000, 12).astype(np.float32)
    assert_same_bits(there(sinkhorn_assign, scores, seed=7), there(sinkhorn_assign, scores, seed=7))


def test_memory_layout_changes_no_bit() -> None:
    scores = clusters(np.random.default_rng(2), 20_000, 40)
    padded = np.zeros((40_000, 41))
    padded[::2, 1:] = scores
    plain = sinkhorn_assign(scores)
    assert_same_bits(plain, sinkhorn_assign(np.asfortranarray(scores)))
    assert_same_bits(plain, sinkhorn_assign(padded[::2, 1:]))


def test_ties_are_broken_by_the_seed(there) -> None:
    scores = np.zeros((200, 4))
    labels = [there(sinkhorn_assign, scores, seed=seed).labels for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (labels[0] != labels[2]).any()


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    sinkhorn_assign(clusters(np.random.default_rng(3), 30_000, 6))
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


def test_optimum_falls_as_sizes_move_from_free_choice() -> None:
    """Concavity of the optimal value in the class sizes, on the way from free choice to equal sizes."""
    scores = clusters(np.random.default_rng(4), 240, 4)
    free = np.bincount(scores.argmax(1), minlength=4)
    steps = [np.round(free + t * (even_counts(240, 4) - free)).astype(int) for t in np.linspace(0, 1, 6)]
    steps = [np.append(step[:-1], 240 - step[:-1].sum()) for step in steps]
    values = [sinkhorn_assign(scores, class_mass=step).value for step in steps]
    assert values[0] == pytest.approx(math.fsum(scores.max(1)) / 240, abs=1e-12)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    assert prove(scores, sinkhorn_assign(scores).labels, sinkhorn_assign(scores).potentials).gap <= 1e-9
