"""The price of balance: what exact class sizes cost, step by step from none to exact."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel import sweep
from otlabel.assign import sinkhorn_assign
from otlabel.interrupts import interruptible
from otlabel.marginals import KL, Exact
from otlabel.pictures import columns_html, new_figure
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment
from otlabel.sources import class_mass_of, open_scores
from otlabel.validate import check_mass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = "The knee is where balance begins to cost more than it brings: classes=KL(rho) with its rho stays there."
SOFTEST, HARDEST = 1 / 64, 16.0  # first and last price, in units of how far exact sizes spread the potentials


@dataclass(frozen=True, eq=False)
class BalancePath:
    """Labels from the best class of each sample (rho = 0) to exact class sizes (rho = inf), one step a price."""

    rho: np.ndarray  # (P,) price of imbalance, in the units of the scores
    value: np.ndarray  # (P,) mean score of the labels; falls along the path
    changed: np.ndarray  # (P,) share of labels that differ from the best class
    imbalance: np.ndarray  # (P,) sum_k |size_k / N - b_k|, from 0 to below 2; falls along the path
    sizes: np.ndarray  # (P, K) class sizes

    @property
    def lost(self) -> np.ndarray:
        """(P,) what the mean score has lost against the best class."""
        return np.where(self.changed > 0, self.value[0] - self.value, 0.0)  # the same labels lose not even rounding

    @property
    def knee(self) -> int:
        """The step from which on a little more balance costs much: farthest below the straight line from end to end.

        Source: Satopaa, Albrecht, Irwin, Raghavan, "Finding a kneedle in a haystack", ICDCS Workshops 2011.
        """
        balance, cost = self.imbalance[0] - self.imbalance, self.lost
        if not (balance[-1] > 0 and cost[-1] > 0):
            return len(self.rho) - 1
        return int(np.argmax(balance / balance[-1] - cost / cost[-1]))

    def summary(self) -> str:
        """A table of at most 80 columns; the knee is marked."""
        lines = ["      rho  mean score      lost   changed  imbalance  class sizes"]
        for step, cells in enumerate(self._cells()):
            rho, value, lost, changed, imbalance, sizes = cells
            numbers = f"{rho:>9}  {value:>10}  {lost:>8}  {changed:>8}  {imbalance:>9}"
            lines.append(f"{numbers}  {sizes}{'  <- knee' * (step == self.knee)}")
        return "\n".join([*lines, textwrap.fill(NOTE, 80)])

    def _cells(self) -> list[list[str]]:
        """What is told of each step."""
        return [
            [
                f"{self.rho[step]:.3g}",
                f"{self.value[step]:.5g}",
                f"{self.lost[step]:.3g}",
                f"{self.changed[step]:.1%}",
                f"{self.imbalance[step]:.3g}",
                f"{sizes.min():,} to {sizes.max():,}",
            ]
            for step, sizes in enumerate(self.sizes)
        ]

    def _repr_html_(self) -> str:
        head = ["rho", "mean score", "lost", "changed", "imbalance", "class sizes"]
        return columns_html(head, self._cells(), self.knee, f"{NOTE} In bold: the knee.")

    def plot(self) -> Figure:
        """Mean score lost against balance won, with the knee marked.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        figure = new_figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.imbalance, self.lost, marker="o", color="#1f5f8b")
        knee = self.knee
        axes.plot(self.imbalance[knee], self.lost[knee], marker="o", markersize=13, fillstyle="none", color="#c8553d")
        told = "exact" if np.isinf(self.rho[knee]) else f"rho = {self.rho[knee]:.3g}"
        at = self.imbalance[knee], self.lost[knee]
        axes.annotate(f"knee: {told}", at, (-14, 14), textcoords="offset points", ha="right", color="#c8553d")
        axes.invert_xaxis()
        axes.set_xlabel("imbalance: how far class sizes are from those wanted (none: 0)")
        axes.set_ylabel("mean score lost")
        axes.set_title("The price of balance", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        return figure


@interruptible
def balance_path(
    scores: Any,
    *,
    class_mass: Any = None,
    n_steps: int = 10,
    epsilon: float = 0.04,
    seed: int = 0,
    memory_limit: int | None = None,
) -> BalancePath:
    """Label with more and more balance, to see what it costs and where it begins to cost too much.

    Each step solves

        max_labels  mean_i s[i, labels_i] - rho KL(sizes / N | b)

    exactly, for prices rho from 0 (the best class of each sample) to infinity (exact sizes), each started from the one
    before. Where it is not known how balanced the classes really are, the knee of the curve is a price to begin with:
    `sinkhorn_assign(scores, classes=KL(path.rho[path.knee]))`.

    Args:
        scores: (N, K), anything that `sinkhorn_assign` takes.
        class_mass: (K,) b, shares or sizes. None: 1/K each.
        n_steps: prices in all, both ends included; at least 3.
        epsilon: of the entropic solve; the labels do not depend on it.
        seed: as for `sinkhorn_assign`.
        memory_limit: as for `sinkhorn_assign`.

    Returns:
        BalancePath with a row for each price: value, labels changed, imbalance, sizes; `summary()` and `plot()`.

    Raises:
        InvalidScoresError, InvalidMassError, InfeasibleError: as for `sinkhorn_assign`.
    """
    if n_steps < 3:
        raise ValueError(f"n_steps is {n_steps}; the path has two ends and something between them, at least 3")
    opened = open_scores(scores)
    mass = check_mass(class_mass_of(class_mass, opened), *opened.shape)

    def solved(classes: Exact | KL, init: Assignment | None) -> Assignment:
        return sinkhorn_assign(
            opened,
            class_mass=mass,
            classes=classes,
            epsilon=epsilon,
            init=init,
            seed=seed,
            memory_limit=memory_limit,
        )

    results = [solved(Exact(), None)]
    potentials = np.asarray(results[0].potentials)
    spread = float(np.ptp(potentials[np.isfinite(potentials)])) or 1.0
    prices = [0.0, *spread * np.geomspace(SOFTEST, HARDEST, n_steps - 2), np.inf]
    for rho in prices[-2:0:-1]:  # from exact sizes outwards: each start is then near
        results.append(solved(KL(rho), results[-1]))
    best, tops, _ = sweep.label(RowSet(opened), np.where(mass > 0, 0.0, -np.inf))
    labels = [best, *(np.asarray(result.labels) for result in results[::-1])]
    sizes = np.array([np.bincount(step, minlength=len(mass)) for step in labels])
    return BalancePath(
        rho=np.array(prices),
        value=np.array([tops.mean(), *(result.value for result in results[::-1])]),
        changed=np.array([np.mean(step != best) for step in labels]),
        imbalance=np.abs(sizes / len(best) - mass).sum(1),
        sizes=sizes,
    )
