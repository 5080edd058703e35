"""Rules on masses that cannot be: refused by what is wrong."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from problems import normal

from otlabel import KL, Exact, Range, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


def plain(n_samples: int = 30, n_classes: int = 4) -> np.ndarray:
    return normal(np.random.default_rng(0), n_samples, n_classes)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Range(8, 30), r"at least 32, 2 too many, of 30"),
        (Range(0.3, 1.0), r"at least 36, 6 too many, of 30"),
        (Range(0, 7), r"at most 28, 2 too few, of 30"),
        (Range(0.0, [0.1, 0.1, 0.2, 0.2]), r"at most 18, 12 too few, of 30"),
    ],
)
def test_bounds_that_do_not_add_up(rule: Range, said: str) -> None:
    with pytest.raises(InfeasibleError, match=said):
        sinkhorn_assign(plain(), classes=rule)


def test_bounds_that_do_not_add_up_with_the_unlabelled() -> None:
    with pytest.raises(InfeasibleError, match="of 30 samples"):
        sinkhorn_assign(plain(), classes=Range(7, 30), abstain=0.2)
    with pytest.raises(InfeasibleError, match="of 30 samples"):
        sinkhorn_assign(plain(), classes=Range(0, 5), abstain=0.2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Range(0.5, 0.25), r"lo is above hi for class 0"),
        (Range([0, 0, 9, 0], [9, 9, 8, 9]), r"lo is above hi for class 2"),
        (Range([0.1, 0.1]), r"\(2,\).*4"),
        (Range(0.0, np.full((4, 1), 0.5)), r"\(4, 1\)"),
        (Range(0.0, 1.5), r"hi is 1\.5 for class 0"),
        (Range([0.0, 1.5, 0.0, 0.0], 1.0), r"lo is 1\.5 for class 1"),
        (Range(-0.1, 1.0), r"lo is -0\.1"),
        (Range(0, [5, 5, -1, 50]), r"hi is -.* for class 2"),
        (Range(np.nan, 1.0), r"lo is nan"),
        (Range(np.inf, 1.0), r"lo is above hi for class 0"),
        (Range("few", "many"), r"lo is the text 'few'"),
    ],
)
def test_ranges_that_cannot_be(rule: Range, said: str) -> None:
    with pytest.raises(InvalidMassError, match=said):
        sinkhorn_assign(plain(), classes=rule)


@pytest.mark.parametrize("rho", [0, 0.0, -1.0, math.inf, math.nan])
def test_price_must_be_positive(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        KL(rho)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_share_of_the_unlabelled_must_be_one(share: float) -> None:
    with pytest.raises(ValueError, match=f"abstain is {re.escape(str(share))}"):
        sinkhorn_assign(plain(), abstain=share)


@pytest.mark.parametrize("rule", ["exact", None, KL, 0.5, Exact])
def test_rules_of_no_known_kind(rule) -> None:
    with pytest.raises(TypeError, match="classes is"):
        sinkhorn_assign(plain(), classes=rule)
    with pytest.raises(TypeError, match="samples is"):
        sinkhorn_assign(plain(), samples=rule)


def test_range_is_no_rule_for_samples() -> None:
    with pytest.raises(TypeError, match="samples is"):
        sinkhorn_assign(plain(), samples=Range())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mass", "said"),
    [
        (np.full(30, 0.1) + 0.01 * np.arange(30), r"sums to 7\.35"),
        (np.full(29, 1 / 29), r"\(29,\)"),
        (np.r_[-1, np.ones(29, int)], r"sample_mass\[0\] is -1"),
        (np.r_[np.ones(29) / 29, np.nan], r"sample_mass\[29\] is nan"),
        (np.zeros(30), r"not all 0"),
        (["a"] * 30, r"sample_mass has"),
    ],
)
def test_sample_masses_that_cannot_be(mass, said: str) -> None:
    with pytest.raises(InvalidMassError, match=said):
        sinkhorn_assign(plain(), sample_mass=mass)


def test_uniform_shares_of_a_wrong_sum_are_refused() -> None:
    with pytest.raises(InvalidMassError, match=r"sums to 15"):
        sinkhorn_assign(plain(), sample_mass=np.full(30, 0.5))


def test_range_whose_scores_are_all_forbidden() -> None:
    scores = plain()
    scores[:, 2] = -np.inf
    with pytest.raises(InfeasibleError, match="class 2 is to take 3 samples"):
        sinkhorn_assign(scores, classes=Range(3, 20))
    assert sinkhorn_assign(scores, classes=Range(0, 20)).counts[2] == 0
    with pytest.raises(InfeasibleError):
        sinkhorn_assign(np.full((30, 4), -np.inf), classes=Range())


def test_too_few_choices_for_ranges() -> None:
    """16 of 30 rows may only go to classes 0 and 1, which take at most 15; class 3 cannot get its 12 of 11."""
    scores = plain()
    scores[:16, 2:] = -np.inf
    with pytest.raises(InfeasibleError, match=r"16 samples may only go to the 2 classes 0, 1, which are to take 15"):
        sinkhorn_assign(scores, classes=Range(0, [8, 7, 30, 30]))
    scores = plain()
    scores[:19, 3] = -np.inf
    with pytest.raises(InfeasibleError, match=r"only 11 samples may go to the 1 classes 3, which are to take 12"):
        sinkhorn_assign(scores, classes=Range([0, 0, 0, 12], 30))
