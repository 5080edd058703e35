"""Potentials from the cheapest moves of each two classes: the optimum, and what is kept of moves while rows change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from families import FAMILIES, RULES, draw
from ranks import on_ranks
from scipy.sparse import csr_array
from verdicts import check

from otlabel import KL, BalancedKMeans, Range, linear_scores, sinkhorn_assign
from otlabel.solver import far_moves, small
from otlabel.solver.cheapest import Cheapest, add_rows, forget, join, no_moves, take_out
from otlabel.sources import ArraySource, Opened, closeness
from otlabel.sources.opened import AnyRows

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")


LIMITS = (far_moves, "FEWEST_SCORES"), (far_moves, "FEW_NEAR"), (far_moves, "MOST_NEAR"), (small, "MOST_SCORES")


def any_rows(opened: Opened) -> AnyRows:
    """Of stored scores, too, which the library leaves out."""
    return opened.by_row or AnyRows(opened.source)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Far looks wherever one repair leaves a surplus, of stored scores too; how many classes each had."""
    for module, name in LIMITS:
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(far_moves, "any_rows_of", any_rows)
    made, look = list[int](), far_moves.far_potentials

    def far(problem: Any, *rest: Any) -> np.ndarray:
        made.append(problem.n_classes)
        return look(problem, *rest)

    monkeypatch.setattr(far_moves, "far_potentials", far)
    return made


@pytest.mark.parametrize("rule", ["equal", "range_counts", "counts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_after_a_far_look_are_right(family: str, rule: str, looks: list[int]) -> None:
    """Against Hungarian and HiGHS."""
    assert rule in RULES
    for seed in range(2):
        assert not check(draw(family, rule, seed)).wrong


def on_a_line() -> tuple[np.ndarray, np.ndarray]:
    """Places of rows, most of them near one end, and of classes: rows must pass from each to the next."""
    return np.random.default_rng(0).random((900, 1)) ** 4, np.linspace(0, 1, 30)[:, None]


def test_far_looks_happen(looks: list[int]) -> None:
    """Sizes that are stated, and sizes within bounds, whose free places take part."""
    places, ends = on_a_line()
    scores = -np.abs(places - ends.T) * 3
    for classes in ({}, {"classes": Range(0.02, 0.05)}):
        found = sinkhorn_assign(scores, epsilon=1.0, tol=0.5, **classes)
        assert found.gap <= 1e-12
        assert looks.pop() == 30


def test_what_far_looks_are_not_for(looks: list[int]) -> None:
    """Sparse rows, which list all that they have; rows that weigh differently; classes with prices, not sizes."""
    places, ends = on_a_line()
    scores = 2 - np.abs(places - ends.T)
    weights = np.random.default_rng(1).integers(1, 4, 900)
    for rows, how in ((csr_array(scores), {}), (scores, {"sample_mass": weights}), (scores, {"classes": KL(0.1)})):
        sinkhorn_assign(rows, epsilon=1.0, tol=0.5, **how)
    assert not looks


def test_far_looks_where_rows_or_classes_are_left_out(looks: list[int]) -> None:
    """Samples that may stay unlabelled are one class more; a class of no rows is nobody's."""
    places, ends = on_a_line()
    scores = -np.abs(places - ends.T) * 3
    for how in ({"abstain": 0.1}, {"class_mass": np.append(np.full(29, 1 / 29), 0.0)}):
        found = sinkhorn_assign(scores, epsilon=1.0, tol=0.5, **how)
        assert found.gap <= 1e-12
        assert looks.pop() == 30 + ("abstain" in how)


def cheapest_of(scores: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Cheapest:
    found = no_moves(scores.shape[1])
    add_rows(found, scores[rows], np.zeros(scores.shape[1]), rows, labels[rows], best=False)
    return found


def agrees(cheapest: Cheapest, scores: np.ndarray, labels: np.ndarray) -> None:
    """What is kept of each pair are the cheapest of its moves, in order, and the bound is no more than the rest."""
    for label in range(scores.shape[1]):
        members = np.flatnonzero(labels == label)
        for other in set(range(scores.shape[1])) - {label}:
            losses = (scores[members, label] - scores[members, other]).astype(np.float32)
            number = cheapest.numbers[label, other]
            expected = np.sort(losses)
            kept, rows = cheapest.losses[label, other, :number], cheapest.rows[label, other, :number]
            np.testing.assert_array_equal(kept, expected[:number])
            np.testing.assert_array_equal(kept, losses[np.searchsorted(members, rows)])
            assert cheapest.bounds[label, other] <= expected[number:].min(initial=np.inf)
            assert cheapest.least[label, other] == (kept[0] if number else cheapest.bounds[label, other])


def test_moves_are_kept_while_rows_change() -> None:
    """Rows come, leave and are looked at anew, in an order at random."""
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((400, 5)), rng.integers(0, 5, 400)
    found = cheapest_of(scores, labels, np.arange(400))
    agrees(found, scores, labels)
    for _ in range(300):
        row = int(rng.integers(400))
        take_out(found, labels[row], row)
        labels[row] = (labels[row] + rng.integers(1, 5)) % 5
        add_rows(found, scores[[row]], np.zeros(5), np.array([row]), labels[[row]], best=False)
    agrees(found, scores, labels)
    members = np.flatnonzero(labels == 2)
    forget(found, 2)
    add_rows(found, scores[members], np.zeros(5), members, labels[members], best=False)
    agrees(found, scores, labels)
    assert (found.numbers[2, [0, 1, 3, 4]] > 0).all()


def test_joined_moves_are_those_of_all_rows() -> None:
    """Of ties the first rows are kept, whoever brings them."""
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 30, (900, 4)) / 4.0, rng.integers(0, 4, 900)
    whole = cheapest_of(scores, labels, np.arange(900))
    joined = no_moves(4)
    for rows in np.split(np.arange(900), [100, 150, 700]):
        join(joined, cheapest_of(scores, labels, rows))
    for one, other in zip(whole, joined, strict=True):
        kept = np.arange(one.shape[-1]) < whole.numbers[..., None] if one.ndim == 3 else slice(None)
        np.testing.assert_array_equal(one[kept], other[kept])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scores_of_some_rows_have_the_same_bits_among_others(dtype: str) -> None:
    """Of a head, which makes them, and close to what a pass reads."""
    rng = np.random.default_rng(2)
    features = rng.standard_normal((300, 7)).astype(dtype)
    stored = features.view(np.uint16) if dtype == "float16" else features
    scores = closeness(Opened.of(ArraySource(stored, dtype)), rng.standard_normal((9, 7)))
    all_rows = any_rows(scores).of(np.arange(300))
    for rows in (np.array([5]), np.array([0, 17, 299]), np.arange(100, 171), np.array([], np.int64)):
        np.testing.assert_array_equal(any_rows(scores).of(rows), all_rows[rows])
    (block,) = (next(iter(scores.source.read([(0, 300)]))),)
    np.testing.assert_allclose(all_rows, block, atol=1e-4 if dtype != "float64" else 1e-12)


def solve_line(group: Any) -> list[np.ndarray]:
    """The line's labels and potentials for this rank's rows, of stored scores and of a head's."""
    for module, name in LIMITS:
        setattr(module, name, 0)
    far_moves.any_rows_of = any_rows
    places, ends = on_a_line()
    ends_of = np.array([0, 250, 250, 900])
    rows = slice(0, 900) if group is None else slice(*ends_of[group.rank() : group.rank() + 2])
    found = []
    for scores in (
        -np.abs(places - ends.T)[rows] * 3,
        linear_scores(places[rows].astype(np.float32), ends, -(ends[:, 0] ** 2)),
    ):
        answer = sinkhorn_assign(scores, epsilon=1.0, tol=0.5, group=group)
        found += [answer.labels, answer.potentials, np.array(answer.gap)]
    return found


def test_ranks_look_far_as_one_process_does(looks: list[int]) -> None:
    """The same potentials bit by bit: one of the ranks has no rows."""
    expected = solve_line(None)
    assert len(looks) == 2
    found = on_ranks(solve_line, 3)
    for of_rank in found:
        assert not isinstance(of_rank, Exception), of_rank
        for at in (1, 2, 4, 5):
            np.testing.assert_array_equal(of_rank[at], expected[at])
    for at in (0, 3):
        np.testing.assert_array_equal(np.concatenate([of_rank[at] for of_rank in found]), expected[at])


def test_clusters_over_far_moves(looks: list[int]) -> None:
    """Balanced k-means that looks far at each step ends as one that does not."""
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.standard_normal((40, 3)) * s + rng.standard_normal(3) * 9 for s in (0.2, 1, 5) * 5])
    with pytest.MonkeyPatch.context() as near:
        near.setattr(far_moves, "MOST_CLASSES", 0)
        expected = BalancedKMeans(20, random_state=0, n_init=1).fit(rows)
        assert not looks
    found = BalancedKMeans(20, random_state=0, n_init=1).fit(rows)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
