"""The independent checker: the same linear program through POT's network simplex."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from otlabel.certificate import certify
from otlabel.errors import InfeasibleError, MissingPackageError
from otlabel.interrupts import interruptible
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment, like
from otlabel.solver.asking import ask
from otlabel.solver.monitor import Monitor
from otlabel.solver.outcome import Status
from otlabel.solver.posing import pose
from otlabel.solver.problem import Demand, Solver
from otlabel.sources import class_mass_of, open_scores

if TYPE_CHECKING:
    from torch import Tensor

MAX_ITERATIONS = 10_000_000  # of the simplex; POT's own default ends early on a few thousand samples


@overload
def lp_assign(
    scores: Tensor | Sequence[Tensor], *, class_mass: Any = None, max_entries: int = 10_000_000
) -> Assignment[Tensor]: ...
@overload
def lp_assign(scores: Any, *, class_mass: Any = None, max_entries: int = 10_000_000) -> Assignment[np.ndarray]: ...
@interruptible
def lp_assign(scores: Any, *, class_mass: Any = None, max_entries: int = 10_000_000) -> Assignment[Any]:
    """Label every sample by solving the transport linear program with POT's network simplex (`ot.emd`).

        max_Q  <Q, s>    subject to    Q 1 = 1,  Q^T 1 = sizes,  Q >= 0

    Nothing of otlabel's own solver is used, so that it can serve as a check of it. Time grows faster than N K.

    Args:
        scores: (N, K), as for `sinkhorn_assign`; a float64 copy of the whole matrix is made.
        class_mass: (K,) shares or sizes, as for `sinkhorn_assign`.
        max_entries: refuse more than so many scores: 10 million take a few minutes and about 1 GB.

    Returns:
        Assignment whose potentials are the simplex's own dual variables.

    Raises:
        ValueError: more than `max_entries` scores.
        MissingPackageError: POT is not installed.

    Source: Bonneel, van de Panne, Paris, Heidrich, "Displacement interpolation using Lagrangian mass transport",
        SIGGRAPH Asia 2011, whose network simplex POT contains.
    """
    opened = open_scores(scores, device="cpu").refined
    n_rows, n_classes = opened.shape
    if n_rows * n_classes > max_entries:
        raise ValueError(
            f"scores have {n_rows} x {n_classes} = {n_rows * n_classes:,} entries, above max_entries={max_entries:,}; "
            "use sinkhorn_assign, which proves its labels too, or raise max_entries"
        )
    try:
        import ot
    except ImportError as error:
        raise MissingPackageError("POT", "exact") from error
    monitor = Monitor(n_rows)
    shares = class_mass_of(class_mass, opened)
    rows, solver = RowSet(opened), Solver(epsilon=math.inf)
    problem, _ = pose(rows, ask(rows, Demand(class_mass=shares), solver), solver, np.arange(n_rows), monitor)
    cost = np.empty(opened.shape)
    for (start, stop), block in RowSet(opened.stripped).blocks():
        cost[start:stop] = -block.astype(np.float64)
    forbidden = np.isinf(cost)
    cost -= cost.min(1, keepdims=True)
    unit = problem.extent or 1.0  # what the simplex takes for zero does not depend on the costs
    cost /= unit
    # It takes finite costs only: one dearer than any whole assignment stands for "never".
    cost[forbidden] = 2.0 * (n_rows + 1)
    fewest, most = problem.bounds
    free = np.flatnonzero(fewest < most)  # a unit more fills one place of each of them, or goes to a hub, at no cost
    wide = np.full((n_rows + len(free), n_classes + 1), 2.0 * (n_rows + 1))
    wide[:n_rows, :n_classes] = cost
    wide[n_rows + np.arange(len(free)), free] = wide[n_rows:, n_classes] = 0.0
    targets = np.append(most, n_rows - fewest.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT would warn of is raised or certified below
        plan, log = ot.emd(np.ones(len(wide)), targets.astype(np.float64), wide, MAX_ITERATIONS, log=True)
    labels = plan[:n_rows].argmax(1)
    counts = np.bincount(labels, minlength=n_classes + 1)[:n_classes]
    if (
        counts.sum() < n_rows
        or (counts < fewest).any()
        or (counts > most).any()
        or forbidden[np.arange(n_rows), labels].any()
    ):
        raise InfeasibleError(f"POT found no assignment with these class sizes: {log['warning'] or 'forbidden pairs'}")
    prices = log["v"][:-1] - (log["v"][-1] if len(free) else 0.0)
    potentials = np.where(most > 0, unit * prices, -np.inf)
    certificate = certify(opened, labels, potentials=potentials)
    share = counts / n_rows
    return Assignment(
        labels=like(labels.astype(np.int64), scores),
        counts=like(counts, scores),
        class_mass=like(share, scores),
        potentials=like(potentials, scores),
        plan_potentials=like(potentials, scores),
        label_mass=like(share, scores),
        value=certificate.value,
        bound=certificate.bound,
        epsilon=0.0,
        marginal_error=float(np.abs(share - problem.rule.mass).sum()),
        status=Status.NOT_RUN,
        n_sweeps=0,
        history=(),
        seconds=monitor.seconds,
        peak_memory=monitor.peak_memory,
        gap=certificate.gap,
        rounding=certificate.rounding,
    )
