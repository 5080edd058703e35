"""Exact labels where many units, ties or long chains of classes made the repair endless or slow."""

from __future__ import annotations

import time

import numpy as np
import pytest
from families import FAMILIES, Drawn, draw
from scipy.optimize import linear_sum_assignment
from verdicts import check

from otlabel import sinkhorn_assign
from otlabel.solver.board import UNCAPPED, Board
from otlabel.solver.repair import repair

MASSES = {
    "tenths": lambda rng, n: rng.integers(1, 8, n) / 10.0,
    "thirds": lambda rng, n: rng.integers(1, 5, n) / 3.0,
    "powers of two": lambda rng, n: 2.0 ** -rng.integers(0, 12, n),
    "one huge": lambda rng, n: np.where(np.arange(n) == n // 2, 1e6, 1.0),
    "random": lambda rng, n: rng.random(n),
    "wide": lambda rng, n: rng.lognormal(0, 2, n),
    "some none": lambda rng, n: np.append(1.0, rng.integers(0, 2, n - 1) * rng.random(n - 1)),
}
TIED = ("permuted_identity", "quantised", "duplicate_rows", "capped", "line_distances", "constant_rows")


@pytest.mark.parametrize("masses", MASSES)
@pytest.mark.parametrize("family", TIED)
def test_real_masses_in_ties(family: str, masses: str) -> None:
    """A share of mass is some 2**40 units, and ties let a few of them pass to and fro; the optimum is that of HiGHS."""
    for seed in range(3):
        rng = np.random.default_rng([seed, *family.encode(), *masses.encode()])
        n_rows, n_classes = int(rng.integers(5, 40)), int(rng.integers(2, 10))
        scores = FAMILIES[family](rng, n_rows, n_classes, rng.integers(0, n_classes, n_rows))
        weights = MASSES[masses](rng, n_rows)
        weights = weights / weights.sum()
        sizes = np.full(n_classes, n_rows / n_classes)
        arguments, units = {"sample_mass": weights}, n_rows * weights
        drawn = Drawn(family, "equal", seed, scores, arguments, units, n_rows, 0, sizes, sizes, sizes)
        assert not check(drawn).wrong


@pytest.mark.parametrize(
    ("family", "rule", "seed"),
    [("permuted_identity", "equal", 4), ("far_offsets", "range_counts", 2), ("constant_rows", "kl", 7)],
)
def test_problems_that_did_not_end(family: str, rule: str, seed: int) -> None:
    """Kept from the generator; the last has prices of places beside scores of nothing."""
    assert not check(draw(family, rule, seed)).wrong


def _board(
    rng: np.random.Generator, n_rows: int, n_classes: int, weights: np.ndarray, levels: int, bias: float = 0.0,
    per_row: int = 1,
) -> Board:  # fmt: skip
    """All rows may take all classes, at scores of a few levels, the later the better; each has its best one, or more.

    Of several, entries hold one unit at most.
    """
    scores = rng.integers(0, levels, (n_rows, n_classes)) / levels + np.linspace(0, bias, n_classes)
    labels = np.argsort(-scores, 1, kind="stable")[:, :per_row]
    units = np.where((labels[:, :, None] == np.arange(n_classes)).any(1), weights[:, None], 0)
    share, rest = divmod(int(units.sum()), n_classes)
    return Board(
        start=np.arange(n_rows + 1) * n_classes,
        row_of=np.repeat(np.arange(n_rows), n_classes),
        caps=np.full(n_rows, UNCAPPED if per_row == 1 else 1),
        classes=np.tile(np.arange(n_classes, dtype=np.int32), n_rows),
        scores=scores.ravel(),
        units=units.ravel(),
        potentials=np.zeros(n_classes),
        counts=units.sum(0),
        targets=share + (np.arange(n_classes) < rest),
    )


@pytest.mark.parametrize("levels", [1, 3, 10**6])
@pytest.mark.parametrize("per_row", [2, 5, 11])
def test_rows_of_several_capped_units(per_row: int, levels: int) -> None:
    """Each row keeps as many units, one an entry, and what it has is as good as what it has not."""
    for seed in range(5):
        rng = np.random.default_rng([per_row, seed])
        board = _board(rng, 150, 12, np.ones(150, np.int64), levels, bias=seed, per_row=per_row)
        repair(board, np.inf, 1e-15, np.zeros(1, bool))
        units = board.units.reshape(150, 12)
        assert np.array_equal(board.counts, board.targets)
        assert np.array_equal(units.sum(0), board.targets)
        assert set(units.ravel()) == {0, 1}
        assert set(units.sum(1)) == {per_row}
        worth = (board.scores + board.potentials[board.classes]).reshape(units.shape)
        least, most = np.where(units > 0, worth, np.inf).min(1), np.where(units > 0, -np.inf, worth).max(1)
        assert (most - least).max() <= 4e-15 * (1 + np.abs(board.potentials).max())


@pytest.mark.parametrize("patience", [0, np.inf], ids=["heaps", "lists"])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_paths_do_not_grow_with_units(levels: int, patience: float) -> None:
    """Units of 1, of 2**20 and of 2**40, and odd ones of all sizes: about as many paths, and all rows at their best.

    Where each row is split between many classes, heaps lack places for all moves, and lists take over again.
    """
    n_rows, n_classes = 200, 12
    for make in (
        lambda rng: np.ones(n_rows, np.int64),
        lambda rng: np.full(n_rows, 2**20),
        lambda rng: rng.integers(1, 2**40, n_rows),
        lambda rng: 2 ** rng.integers(0, 45, n_rows) + rng.integers(0, 3, n_rows),
    ):
        rng = np.random.default_rng(levels)
        board = _board(rng, n_rows, n_classes, make(rng), levels)
        weights = np.bincount(board.row_of, board.units)
        done = repair(board, np.inf, 1e-15, np.zeros(1, bool), patience)
        assert done.n_paths <= 3 * n_rows
        assert np.array_equal(board.counts, board.targets)
        assert np.array_equal(np.bincount(board.classes, board.units).astype(np.int64), board.targets)
        assert np.array_equal(np.bincount(board.row_of, board.units), weights)
        worth = (board.scores + board.potentials[board.classes]).reshape(n_rows, n_classes)
        assert (worth.max(1, keepdims=True) - worth)[board.units.reshape(worth.shape) > 0].max() <= 4e-15


@pytest.mark.parametrize("patience", [0, np.inf], ids=["heaps", "lists"])
def test_no_potential_falls_further_than_the_slack(patience: float) -> None:
    """What is no entry lies that far below and must not become the better one."""
    rng = np.random.default_rng(0)
    board = _board(rng, 200, 12, np.ones(200, np.int64), 10**6)
    repair(board, 0.01, 1e-15, np.zeros(1, bool), patience)
    assert -0.01 <= board.potentials.min() < 0


@pytest.mark.parametrize("places", [0.5, 1.3, 2.0], ids=["too few places", "few places", "places"])
@pytest.mark.parametrize("n_classes", [2, 5, 20])
def test_heaps_move_units_as_well_as_hungarian(n_classes: int, places: float) -> None:
    """Many paths with units of one, so that moves come, go and come back: the value of an independent solver."""
    for seed in range(20):
        rng = np.random.default_rng([seed, n_classes])
        n_rows = 12 * n_classes
        board = _board(rng, n_rows, n_classes, np.ones(n_rows, np.int64), 10**6, bias=3.0)
        repair(board, np.inf, 1e-15, np.zeros(1, bool), 0, places)
        scores = board.scores.reshape(n_rows, n_classes)
        rows, seats = linear_sum_assignment(np.repeat(scores, board.targets, 1), maximize=True)
        best = np.repeat(scores, board.targets, 1)[rows, seats].sum()
        assert np.array_equal(board.counts, board.targets)
        assert (board.scores * board.units).sum() == pytest.approx(best, abs=1e-12)


@pytest.mark.usefixtures("long_way")
@pytest.mark.parametrize("power", [1, 3])
def test_chains_of_classes_take_no_longer(power: int) -> None:
    """Distances in one dimension shift rows through hundreds of classes that are all alike to them."""
    rng = np.random.default_rng(0)
    normal, line = rng.standard_normal((1500, 500)), rng.standard_normal((1500, 1))
    distances = -np.abs(line**power - np.linspace(-2, 2, 500))

    def seconds(scores: np.ndarray) -> float:
        least = np.inf
        for _ in range(2):
            begun = time.process_time()
            assert sinkhorn_assign(scores).gap < 1e-13
            least = min(least, time.process_time() - begun)
        return least

    assert seconds(distances) < 10 * seconds(normal) + 0.02
