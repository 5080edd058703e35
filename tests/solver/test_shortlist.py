"""Lists of the classes near each row's best: the answers that all scores give, and no proof that lists cannot give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from families import FAMILIES, RULES, draw
from hypothesis import given
from hypothesis import strategies as st
from problems import KINDS
from problems import draw as draw_kind
from scipy.special import log_softmax, softmax
from verdicts import check

from otlabel import KL, Range, Status, linear_scores, sinkhorn_assign, sweep
from otlabel.ranks.rowset import RowSet
from otlabel.solver import aiming, first_look, samples, shortlist
from otlabel.solver.asking import ask
from otlabel.solver.monitor import Monitor
from otlabel.solver.posing import pose
from otlabel.solver.problem import Demand, Solver
from otlabel.sources import open_scores
from otlabel.sweep.packed import PackedLists

pytestmark = [
    pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning"),
    pytest.mark.usefixtures("long_way"),
]


class Made:
    """What was listed, and how often lists were enough."""

    def __init__(self) -> None:
        self.reaches: list[np.ndarray] = []
        self.n_listed = 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Lists whatever the size of a problem, and a record of them."""
    record = Made()
    monkeypatch.setattr(samples, "FEWEST_ROWS", 4)
    monkeypatch.setattr(samples, "COARSE_ROWS", 2)
    for name, value in (("FEWEST_SCORES", 0), ("FEWEST_CLASSES", 2), ("MOST_LISTED", 1.0)):
        monkeypatch.setattr(shortlist, name, value)

    listing = shortlist.list_rows

    def list_rows(rows: RowSet, potentials: np.ndarray, reach: np.ndarray, *rest: Any, **how: Any) -> Any:
        lists = listing(rows, potentials, reach, *rest, **how)
        record.reaches.append(reach)
        record.n_listed = 0 if lists is None else lists.rows.source.n_listed
        return lists

    for module in (first_look, shortlist):
        monkeypatch.setattr(module, "list_rows", list_rows)
    return record


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_from_lists_are_right(family: str, rule: str, made: Made) -> None:
    """Against Hungarian and HiGHS, as answers from all scores are."""
    assert not check(draw(family, rule, len(family))).wrong


RULES_OF_LISTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "range": {"classes": Range(0.02, 0.2)},
    "kl": {"classes": KL(2.0)},
    "abstain": {"abstain": 0.25},
    "weights": {"sample_mass": np.random.default_rng(1).integers(1, 4, 2400)},
}


def peaked(seed: int, n_rows: int = 2400, n_classes: int = 12, dtype: str = "float32") -> np.ndarray:
    """Scores whose rows have few good classes, some of which are wanted by most rows."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n_rows, n_classes)) * 2 + rng.standard_normal(n_classes)
    return (scores - np.log(np.exp(scores).sum(1, keepdims=True))).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rule", RULES_OF_LISTS)
def test_lists_give_what_all_scores_give(rule: str, dtype: str, made: Made, monkeypatch) -> None:
    """Value and bound within rounding, the plan within its tolerance; scores are read once, not at every pass."""
    scores = peaked(0, dtype=dtype)
    monkeypatch.setattr(samples, "COARSE_ROWS", 40)
    from_lists = sinkhorn_assign(scores, **RULES_OF_LISTS[rule])
    assert made.reaches
    assert made.n_listed < scores.size
    monkeypatch.setattr(shortlist, "FEWEST_SCORES", 1 << 40)
    expected = sinkhorn_assign(scores, **RULES_OF_LISTS[rule])
    assert from_lists.n_readings == (2 if rule == "abstain" else 1)  # staying unlabelled is one more column, later
    assert from_lists.n_readings < expected.n_readings
    assert from_lists.status is Status.CONVERGED
    assert from_lists.bound == pytest.approx(expected.bound, abs=1e-13)
    assert from_lists.value == pytest.approx(expected.value, abs=1e-13 if rule != "weights" else 1e-3)
    assert np.abs(from_lists.class_mass - expected.class_mass).sum() < 0.02


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[PackedLists]:
    """All lists that there was too little room for in one piece."""
    found: list[PackedLists] = []
    listing = sweep.listed_within

    def listed_within(*given: Any) -> sweep.Listing:
        found.append((made := listing(*given)).source)
        return made

    monkeypatch.setattr(sweep, "listed_within", listed_within)
    monkeypatch.setattr(samples, "COARSE_ROWS", 40)
    monkeypatch.setattr(shortlist, "LEAST_STATED_ROOM", 0)
    return found


@pytest.mark.parametrize("limit", [0, 10_000])
@pytest.mark.parametrize("rule", [*RULES_OF_LISTS, "two labels"])
def test_lists_obey_a_limit(rule: str, limit: int, made: Made, packed: list, monkeypatch) -> None:
    """Narrower ones, of which some are kept or none, prove the same value."""
    options = {**RULES_OF_LISTS, "two labels": {"labels_per_sample": 2}}[rule]
    scores = peaked(7)
    expected = sinkhorn_assign(scores, **options)
    assert not packed
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (768, 768))  # of which some fit, and others do not
    found = sinkhorn_assign(scores, memory_limit=limit, **options)
    assert packed
    assert all(lists.n_listed < scores.size for lists in packed)
    assert {fits is not None for lists in packed for fits in lists._kept.values()} == (
        {True, False} if limit else {False}
    )
    assert found.value == pytest.approx(expected.value, abs=1e-13 if rule != "weights" else 1e-3)
    assert found.bound == pytest.approx(expected.bound, abs=1e-13)
    assert found.gap == pytest.approx(expected.gap, abs=1e-13 if rule != "weights" else 1e-3)


def test_lists_of_a_head_obey_a_limit(made: Made, packed: list) -> None:
    """Which classes are near is found in float32, and what is listed made in float64, anew in every pass."""
    rng = np.random.default_rng(8)
    features, weight = rng.standard_normal((2400, 16)).astype("float32"), rng.standard_normal((12, 16))
    head = linear_scores(features, weight, normalize=False)
    found = sinkhorn_assign(head, memory_limit=0)
    assert packed
    assert packed[0].rounding > 0
    scores = features.astype(np.float64) @ weight.T
    bound = (scores + found.potentials).max(1).mean() - found.potentials.mean()
    assert found.value == pytest.approx(scores[np.arange(2400), found.labels].mean(), abs=1e-12)
    assert bound == pytest.approx(found.value, abs=1e-12)
    assert (found.counts == 200).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_lists_of_a_head_hold_what_float64_makes_of_it(normalize: bool, made: Made, monkeypatch) -> None:
    """Features times weights are made in float32 in passes; what lists hold, and the proof with it, is of float64."""
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((2400, 16)).astype("float32"), rng.standard_normal((12, 16))
    bias = rng.standard_normal(12) + 100
    monkeypatch.setattr(samples, "COARSE_ROWS", 40)
    result = sinkhorn_assign(linear_scores(features, weight, bias, normalize=normalize))
    assert made.reaches
    assert result.n_readings < result.n_sweeps
    scores = features.astype(np.float64) @ weight.T + bias
    if normalize:
        scores = log_softmax(scores, 1)
    value = scores[np.arange(2400), result.labels].mean()
    bound = (scores + result.potentials).max(1).mean() - result.potentials.mean()
    assert result.value == pytest.approx(value, abs=1e-12)
    assert bound == pytest.approx(value, abs=1e-12)
    assert (result.counts == 200).all()


@pytest.mark.parametrize("seed", range(8))
def test_what_lists_leave_out_of_the_plan_is_bounded(seed: int) -> None:
    """Against the plan of all scores, at potentials here and there."""
    rng = np.random.default_rng(seed)
    scores, origin = peaked(seed, 300, 12, "float64"), 0.3 * rng.standard_normal(12)
    epsilon, reach = 0.2, rng.uniform(0.2, 1.5) * rng.uniform(0.2 if seed % 2 else 1.0, 1.0, 12)
    rows = RowSet(open_scores(scores))
    asked = ask(rows, Demand(), Solver())
    problem, _ = pose(rows, asked, Solver(), np.arange(300), Monitor(300))
    listed = sweep.listed(rows, origin, reach, 2.0**-60).source
    lists = shortlist.Shortlist(replace(problem, rows=RowSet(listed)), origin, reach, rows)
    in_lists = scores + origin + reach >= (scores + origin - reach).max(1, keepdims=True)
    assert listed.n_listed == in_lists.sum()
    for spread in (0.0, 0.05, 0.5):
        g = origin + spread * rng.standard_normal(12)
        plan = softmax((scores + g) / epsilon, axis=1)
        assert np.where(in_lists, 0, plan).sum() / 300 <= lists.left_out(g, epsilon) * (1 + 1e-12)


@given(st.integers(0, 10**6))
def test_what_lists_speak_for(seed: int) -> None:
    """Wherever potentials lie within reach but for a shift of all, each row's best class is listed; else lists say so.

    Against all scores; and against all shifts, of which one that is good lies where some class is at its end.
    """
    rng = np.random.default_rng(seed)
    scores, origin = peaked(seed % 5, 60, 5, "float64"), rng.standard_normal(5)
    reach = rng.uniform(0.05, 2.0, 5)
    origin[2] = -np.inf if seed % 3 == 0 else origin[2]
    rows = RowSet(open_scores(scores))
    source = sweep.listed(rows, origin, reach, 2.0**-60).source
    lists = shortlist.Shortlist(problem=None, origin=origin, reach=reach, probe=rows)  # type: ignore[arg-type]
    g = origin + rng.standard_normal() * 5 + rng.uniform(0, 1.4) * reach * rng.uniform(-1, 1, 5)
    if rng.random() < 0.05:
        g[2] = -np.inf
    if not np.array_equal(np.isfinite(g), np.isfinite(origin)):
        assert not lists.covers(g)  # a class that is closed since kept others out
        return
    moved = g[np.isfinite(g)] - origin[np.isfinite(g)]
    near = reach[np.isfinite(g)]
    shifts = np.concatenate([moved - near, moved + near])
    covered = (np.abs(moved - shifts[:, None]) <= near + 1e-12).all(1).any()
    assert lists.covers(g) == covered
    if covered:
        starts, classes, *_ = source.lists
        for row, best in enumerate((scores + g).argmax(1)):
            assert best in classes[starts[row] : starts[row + 1]]


@pytest.mark.parametrize("far", [False, True])
def test_lists_allow_for_what_float32_rounds_in_a_head(far: bool, made: Made, monkeypatch) -> None:
    """Classes whose products differ by less than float32 tells: labels and proof are those of float64."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((2400, 8)).astype("float32") + (1000 if far else 0)
    weight = np.repeat(rng.standard_normal((6, 8)), 2, axis=0)
    weight[1::2] += 1e-9 * rng.standard_normal((6, 8))  # six pairs of classes that are all but the same
    monkeypatch.setattr(samples, "COARSE_ROWS", 40)
    result = sinkhorn_assign(linear_scores(features, weight, normalize=False))
    assert made.reaches
    scores = features.astype(np.float64) @ weight.T
    bound = (scores + result.potentials).max(1).mean() - result.potentials.mean()
    assert bound - scores[np.arange(2400), result.labels].mean() == pytest.approx(0, abs=1e-14 * np.abs(scores).max())


@pytest.mark.parametrize("order", ["any", "by class"])
def test_a_file_is_read_once(order: str, made: Made, monkeypatch, tmp_path: Path) -> None:
    """After a sample of whole stretches; where these are all of one kind, it is more, and the answer the same."""
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (768, 768))
    monkeypatch.setattr("otlabel.sources.files.BATCH_BYTES", 64 * 12 * 4)
    scores = peaked(4, 6400)
    if order == "by class":
        scores = scores[np.argsort(scores.argmax(1))]
    with h5py.File(tmp_path / "scores.h5", "w") as file:
        file.create_dataset("scores", data=scores, chunks=(64, 12), compression="gzip")
        n_stored = file["scores"].id.get_storage_size()
    result = sinkhorn_assign(tmp_path / "scores.h5", memory_limit=0)
    expected = sinkhorn_assign(scores)
    assert result.bound == pytest.approx(expected.bound, abs=1e-13)
    assert result.value == pytest.approx(expected.value, abs=1e-13)
    if order == "any":
        assert result.n_readings == 1
        assert result.bytes_read < 1.3 * n_stored


@pytest.mark.parametrize("rule", RULES_OF_LISTS)
def test_labelling_anew_is_one_reading(rule: str, made: Made, monkeypatch) -> None:
    """From the potentials of scores that were a little different; no sample is solved."""
    monkeypatch.setattr(samples, "COARSE_ROWS", 40)
    rng = np.random.default_rng(5)
    scores = peaked(5, dtype="float64")
    before = sinkhorn_assign(scores, **RULES_OF_LISTS[rule])
    scores += 0.01 * rng.standard_normal(scores.shape)
    again = sinkhorn_assign(scores, init=before, **RULES_OF_LISTS[rule])
    assert again.n_readings == (2 if rule == "abstain" else 1)
    assert again.n_sweeps <= before.n_sweeps
    monkeypatch.setattr(shortlist, "FEWEST_SCORES", 1 << 40)
    assert again.bound == pytest.approx(sinkhorn_assign(scores, **RULES_OF_LISTS[rule]).bound, abs=1e-13)


def test_a_start_that_is_far_off_does_no_harm(made: Made, monkeypatch) -> None:
    """Any potentials may be given."""
    monkeypatch.setattr(samples, "COARSE_ROWS", 40)
    scores = peaked(6)
    expected = sinkhorn_assign(scores)
    for spread in (0.3, 3.0, 30.0):
        init = spread * np.random.default_rng(6).standard_normal(12)
        result = sinkhorn_assign(scores, init=init)
        assert result.status is Status.CONVERGED
        assert result.bound == pytest.approx(expected.bound, abs=1e-13)
        assert result.n_readings <= expected.n_readings + 2


def test_where_a_sample_says_little_nothing_is_lost(made: Made, monkeypatch) -> None:
    """As where each class has its own rows, far from the others': a sample does not say which of these are too few."""
    monkeypatch.setattr(samples, "COARSE_ROWS", 20)
    monkeypatch.setattr(shortlist, "MOST_LISTED", 0.25)
    rng = np.random.default_rng(7)
    own = rng.choice(40, 4000, p=(shares := rng.random(40) + 0.5) / shares.sum())
    scores = rng.standard_normal((4000, 40)) + 15 * (own[:, None] == np.arange(40))
    result = sinkhorn_assign(scores)
    assert (result.counts == 100).all()
    assert abs(result.gap) < 1e-13
    monkeypatch.setattr(shortlist, "FEWEST_SCORES", 1 << 40)
    expected = sinkhorn_assign(scores)
    assert result.n_readings <= expected.n_readings + 2
    assert result.bound == pytest.approx(expected.bound, abs=1e-13)


@pytest.mark.parametrize("rule", RULES_OF_LISTS)
def test_lists_that_are_too_short_are_made_again(rule: str, made: Made, monkeypatch) -> None:
    """A width of next to nothing: more readings, the right answer, and no proof from what was not listed."""
    monkeypatch.setattr(shortlist, "FEW_LISTED", 0.0)
    monkeypatch.setattr(aiming, "reach_for", lambda solver, moves: np.full(len(moves), 1e-3))
    scores = peaked(1)
    result = sinkhorn_assign(scores, **RULES_OF_LISTS[rule])
    assert len(made.reaches) > 1
    assert result.n_readings > 1
    monkeypatch.setattr(shortlist, "FEWEST_SCORES", 1 << 40)
    assert result.bound == pytest.approx(sinkhorn_assign(scores, **RULES_OF_LISTS[rule]).bound, abs=1e-13)


@pytest.mark.parametrize("estimate", [0.0, 1e-6, 0.05])
def test_no_proof_rests_on_the_estimate(estimate: float, made: Made, monkeypatch) -> None:
    """Whatever a sample makes one believe of how far potentials will move, value and bound are those of all scores."""
    monkeypatch.setattr(shortlist, "FEW_LISTED", 0.0)
    monkeypatch.setattr(aiming, "reach_for", lambda solver, moves: np.full(len(moves), estimate + 1e-9))
    for seed in range(5):
        scores = peaked(seed, 600, 6, "float64")
        result = sinkhorn_assign(scores, classes=Range(0.1, 0.3))
        g = result.potentials
        bound = (scores + g).max(1).mean() - np.where(g > 0, 60, 180) @ g / 600
        assert bound - scores[np.arange(600), result.labels].mean() == pytest.approx(0, abs=1e-13)
        assert result.gap == pytest.approx(0, abs=1e-13)


def test_a_class_that_no_list_has(made: Made, monkeypatch) -> None:
    """One that all rows like least, and that must be filled all the same."""
    monkeypatch.setattr(shortlist, "FEW_LISTED", 0.0)
    monkeypatch.setattr(aiming, "reach_for", lambda solver, moves: np.full(len(moves), 0.5))
    scores = peaked(2)
    scores[:, 3] -= 30
    result = sinkhorn_assign(scores, class_mass=np.full(12, 200))
    assert (result.counts == 200).all()
    assert abs(result.gap) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_small_problem(kind: str, made: Made) -> None:
    """Sizes as asked for, and a proof."""
    for seed in range(2):
        drawn = draw_kind(kind, seed)
        result = sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)
        assert np.array_equal(np.asarray(result.counts), drawn.counts)
        assert result.proof.proven


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_rank_without_rows_has_no_lists(dtype: str) -> None:
    """As where there are more ranks than blocks, or where none of the rows that are looked at first are here."""
    rows = RowSet(open_scores(peaked(0, dtype=dtype))).taken(np.empty(0, np.int64))
    lists = sweep.listed(
        rows, np.zeros(12, np.float64 if dtype == "float64" else np.float32), np.ones(12, "float32"), 1.0
    ).source
    assert (lists.shape, lists.n_listed) == ((0, 12), 0)
    assert len(sweep.label(RowSet(lists), np.zeros(12))[0]) == 0
