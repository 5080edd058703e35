"""What is asked for, in numbers that do not depend on any score: masses, units, the rule and whole sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from otlabel.errors import InfeasibleError, InvalidMassError
from otlabel.marginals import KL, ONE_SAMPLE, SUM_ROUNDING, Exact, Range, Rule, counted, rule_of, with_abstention
from otlabel.ranks.rowset import RowSet
from otlabel.solver.problem import Demand, Solver
from otlabel.validate import check_mass, check_sample_mass

Sizes = tuple[np.ndarray, np.ndarray]  # fewest and most units of each class


@dataclass(frozen=True, eq=False)
class Asked:
    """What rows and classes are to take; where several ranks have rows, weights are of those here."""

    demand: Demand
    rule: Rule
    n_units: int
    weights: np.ndarray | None  # (N,) units of each row; None for one each
    sizes: Sizes | None  # where whole sizes are asked for, not only shares
    for_new: np.ndarray  # (K,) classes that may take new samples
    abstain: float  # share of the units that stays unlabelled

    @property
    def exact_rows(self) -> bool:
        """Whether each row keeps its mass."""
        return isinstance(self.demand.samples, Exact)

    @property
    def row_rho(self) -> float:
        """Price of leaving a row's mass, KL; inf where rows keep it."""
        return self.demand.samples.rho if isinstance(self.demand.samples, KL) else math.inf

    @property
    def n_unlabelled(self) -> int:
        """Units that stay unlabelled."""
        return round(self.abstain * self.n_units)


def ask(rows: RowSet, demand: Demand, solver: Solver) -> Asked:
    """The demand in whole units, or why no scores at all could meet it.

    Whether there is an assignment is a matter of whole class sizes where rounding is exact, else of shares.
    """
    n_rows, n_classes, of_exact_rows = rows.n_rows, rows.shape[1], isinstance(demand.samples, Exact)
    several = demand.labels_per_sample
    sample_mass = rows.of_all("sample_mass", demand.sample_mass)
    shares = check_mass(demand.class_mass, n_rows, n_classes, several)
    weights, n_units = check_sample_mass(sample_mass, n_rows)
    if several > 1:
        if weights is not None:
            raise InvalidMassError(
                f"sample_mass with labels_per_sample={several}: samples of unequal mass would have to be split, which "
                "labels cannot say; leave it out, or repeat rows"
            )
        n_units = several * n_rows
    weights = None if weights is None else weights[rows.first : rows.stop]
    abstain = demand.abstain
    if of_exact_rows:
        abstain = round(abstain * n_units) / n_units  # whole samples first, so that the classes share what they leave
        if abstain == 1:
            raise ValueError(f"abstain leaves none of the {n_rows} samples to be labelled")
    rule = rule_of(demand.classes, shares * (1 - abstain), n_rows, several)
    for_new = rule.wanted
    if abstain > 0:
        rule = with_abstention(rule, abstain)
    what = "samples" if several == 1 else "places"
    by_size = solver.rounding == "exact" and of_exact_rows
    if by_size and weights is None and demand.remainder == "best" and isinstance(demand.classes, Exact):
        rule = rule.with_free_remainder(n_units)
    sizes = _sizes(rule, demand.classes, n_units, what, weighted=weights is not None) if by_size else None
    if sizes is None:
        rule.check_shares(of_all=of_exact_rows, what=what)
    if several > 1:
        _check_once(rule.lo * n_units if sizes is None else sizes[0], n_rows, several)
    return Asked(demand, rule, n_units, weights, sizes, for_new, abstain)


def _check_once(fewest: np.ndarray, n_rows: int, several: int) -> None:
    """Refuse classes that would have to take some sample twice."""
    too_large = np.flatnonzero(fewest > n_rows * (1 + SUM_ROUNDING))
    if len(too_large):
        k = too_large[0]
        raise InfeasibleError(
            f"class {k} is to take {counted(fewest[k])} of the {several * n_rows} places of {n_rows} samples, but no "
            f"class takes a sample twice ({len(too_large)} such classes); give it a share of at most 1 / "
            f"{several} of all places, the labels_per_sample"
        )


def _sizes(rule: Rule, classes: Exact | KL | Range, n_units: int, what: str, *, weighted: bool) -> Sizes:
    """Fewest and most units of each class, before anything long begins; raises where no sizes will do."""
    try:
        return rule.unit_bounds(n_units, weighted=weighted, what=what)
    except InfeasibleError as error:
        if isinstance(classes, Range) and classes.hi_is_one_sample:
            raise InfeasibleError(f"{error} (hi is the integer 1, which is one sample: {ONE_SAMPLE})") from None
        raise
