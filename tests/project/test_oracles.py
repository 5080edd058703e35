"""The oracles agree with one another, so that a disagreement with otlabel is otlabel's."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import emd_loss, even_counts, highs_loss, hungarian_labels, loss_of, prove, round_shares, tolerance
from problems import KINDS, draw


@pytest.mark.parametrize("kind", KINDS)
def test_three_solvers_agree(kind: str) -> None:
    drawn = draw(kind, seed=0)
    labels = hungarian_labels(drawn.scores, drawn.counts)
    loss = loss_of(drawn.scores, labels)
    np.testing.assert_array_equal(np.bincount(labels, minlength=len(drawn.counts)), drawn.counts)
    assert abs(emd_loss(drawn.scores, drawn.counts) - loss) <= tolerance(drawn.scores, loss)
    assert abs(highs_loss(drawn.scores, drawn.counts) - loss) <= tolerance(drawn.scores, loss)


def test_proof_bounds_every_labelling_of_its_sizes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((7, 3))
    for _ in range(50):
        labels, potentials = rng.integers(0, 3, 7), rng.standard_normal(3)
        best = hungarian_labels(scores, np.bincount(labels, minlength=3))
        assert prove(scores, best, potentials).gap >= -1e-12


def test_rounding_of_known_shares() -> None:
    assert round_shares(10, [0.25, 0.25, 0.5]).tolist() == [3, 2, 5]
    assert round_shares(7, [0.5, 0.5]).tolist() == [4, 3]
    assert round_shares(3, [0.25] * 4).tolist() == [1, 1, 1, 0]
    assert even_counts(7, 3).tolist() == [3, 2, 2]
