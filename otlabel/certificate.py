"""A bound for any labels, whoever made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from otlabel import sweep
from otlabel.assign import sinkhorn_assign
from otlabel.interrupts import interruptible
from otlabel.marginals import class_sizes, free_sizes
from otlabel.ranks.communicator import communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import like
from otlabel.solver.outcome import Certificate
from otlabel.solver.posing import FAR, allowing, check_finite, middle
from otlabel.solver.precision import TIE
from otlabel.solver.problem import LARGEST_SCORE, check_listed
from otlabel.solver.proof import shortfall
from otlabel.sources import by_class, by_row, class_mass_of, moved, open_scores
from otlabel.sources.listed import least_of
from otlabel.validate import (
    check_labels,
    check_mass,
    check_number_of_labels,
    check_vector,
)

if TYPE_CHECKING:
    from torch import Tensor


@overload
def certify(
    scores: Tensor | Sequence[Tensor],
    labels: Any,
    *,
    potentials: Any = None,
    class_mass: Any = None,
    group: Any = None,
) -> Certificate[Tensor]: ...
@overload
def certify(
    scores: Any, labels: Any, *, potentials: Any = None, class_mass: Any = None, group: Any = None
) -> Certificate[np.ndarray]: ...
@interruptible
def certify(
    scores: Any, labels: Any, *, potentials: Any = None, class_mass: Any = None, group: Any = None
) -> Certificate[Any]:
    """Prove how good any labels are, whoever made them: their value, and a bound that no labels of these sizes pass.

        gap = mean_i max_k (s_ik + g_k) - <sizes / N, g>  -  mean_i s[i, labels_i]

    Args:
        scores: (N, K), as for `sinkhorn_assign`.
        labels: (N,) integers from 0 to K - 1; -1 for a sample left unlabelled, which the bound then allows for as many.
            Or (N, k), k different classes a sample in any order: value and bound are then of their sums.
        potentials: (K,) g; any will do, good ones make the bound tight. None: the best are found by solving.
        class_mass: (K,) sizes or shares that the bound is to hold for. None: the sizes that the labels have. For
            others, the gap says how far the labels are from the best with those sizes, and may be negative. Shares
            that are no whole sizes stand for all that are their floor or ceiling, as remainder="best" has them.
        group: a torch.distributed group whose ranks call this together, each with its own rows (maybe none) and their
            labels, and otherwise alike. None: this process has all rows.

    Returns:
        Certificate with value, bound, gap, relative_gap and the labels' class sizes; with a group, of all rows.

    Raises:
        InvalidScoresError, InvalidMassError: as for `sinkhorn_assign`.
        ValueError: labels of the wrong length or outside of 0 ... K - 1, a class twice in a row, or potentials of the
            wrong length.
    """
    with communicator_of(group) as communicator:
        opened = open_scores(scores, may_be_empty=communicator.world_size > 1)
        rows = RowSet.as_given(opened, communicator)
        opened, n_rows, n_classes = rows.opened, rows.n_rows, rows.shape[1]
        check_number_of_labels(labels, opened.shape[0])
        given = check_labels(by_row(labels, opened.shape[0], opened.row_names, "labels"), opened.shape[0], n_classes)
        several = 1 if given.ndim == 1 else given.shape[1]
        check_listed(opened, several)
        rows, n_places, labelled = rows.taking(several), several * n_rows, given >= 0
        (sizes,) = rows.sum("sizes", np.bincount(given[labelled], minlength=n_classes))
        n_labelled = int(sizes.sum())
        if not n_labelled:
            raise ValueError("all labels are -1: there is nothing to certify")
        shares = sizes / n_labelled
        if class_mass is not None:
            shares = check_mass(class_mass_of(class_mass, opened), n_labelled // several, n_classes, several)
        is_given = potentials is not None
        if potentials is None:
            abstain = 1 - n_labelled / n_places
            potentials = sinkhorn_assign(
                opened, class_mass=shares, abstain=abstain, labels_per_sample=several, group=group
            ).potentials
        else:
            check_finite(rows, sweep.inspect(rows))
        g = check_vector(by_class(potentials, n_classes, opened.class_names, "potentials"), n_classes, "potentials")
        fewest, most = (sizes, sizes) if class_mass is None else _size_bounds(rows, shares, sizes)
        used = (sizes > 0) | (most > 0)
        g = _bounding(g, used, constant_counts=not is_given or n_labelled < n_places)
        reach = np.abs(g[np.isfinite(g)]).max(initial=0.0)
        given, best, own = sweep.label(rows, g, given)  # several labels in the order of their scores
        of_labels = own[labelled] - g[given[labelled]]
        if reach > FAR * rows.median("value", np.abs(of_labels)):  # the sum has lost what the scores were
            of_labels = sweep.label(rows, np.zeros(n_classes), given)[2][labelled]
        (value,) = rows.sum("value", of_labels.sum())
        near = _near_zero(rows, best, float(np.ptp(g[used])), all_labelled=n_labelled == n_places)
        if near is not rows:
            given, best, own = sweep.label(near, g, given)
        best, own, own_g = sweep.with_unlisted(near, g, best.ravel()), own.ravel(), g[given].ravel()
        if n_labelled < n_places:  # as by one more class of score zero, with the potential that leaves it so many
            threshold = np.partition(rows.concat("best", best)[0], n_rows - n_labelled)[n_rows - n_labelled]
            best = np.maximum(best, threshold)
            own, own_g = np.where(labelled, own, threshold), np.where(labelled, own_g, threshold)
        short, known = shortfall(best, own, own_g, g)
        excused = np.minimum(short, known) if reach else np.zeros(len(short))  # else nothing is added
        total, rounded = rows.sum("short", short.sum(), excused.sum())
        of_classes, off = _of_classes(sizes, fewest, most, g)
        if of_classes.any():  # which a usual row's rounding excuses, unit by unit
            rounded += np.clip(of_classes, 0, np.abs(off) * rows.median("rounding", known)).sum()
        gap, rounding = (float(total) + float(of_classes.sum())) / n_rows, float(rounded) / n_rows
        size_error = max(np.maximum(fewest - sizes, 0).sum(), np.maximum(sizes - most, 0).sum()) / n_places
        mean = float(value) / n_rows
        return Certificate(mean, mean + gap, like(sizes, scores), gap, rounding, float(size_error), several)


def _size_bounds(rows: RowSet, shares: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewest and most samples of each class: what shares come to or, where these are not whole, floor and ceiling."""
    n_labelled = int(sizes.sum())
    free = free_sizes(shares, n_labelled)
    if free is None:
        targets = class_sizes(shares, n_labelled)
        return targets, targets
    fewest, most = free
    forbids = least_of(rows.source) is None
    if forbids and ((sizes == 0) & (most > 0)).any():  # a class that is allowed to nobody takes none of what is over
        open_to_some = np.where(allowing(rows)[0] > 0, most, fewest)
        most = open_to_some if int(open_to_some.sum()) >= n_labelled else most
    return fewest, most


def _of_classes(
    sizes: np.ndarray, fewest: np.ndarray, most: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What classes add to the gap, (K,), and how many units they are off for that.

    In all that is max_n <sizes - n, g> over n from the fewest to the most with the same sum: the units that are free go
    to the classes below a level, and no class whose size is between its two adds less than zero.
    """
    free, n_free = most > fewest, int((sizes - fewest).sum())
    level = np.partition(g[free], n_free - 1)[n_free - 1] if free.any() else 0.0
    off = sizes - np.where(g > level, fewest, most)
    return off * np.where(off != 0, g - level, 0.0), off


def _bounding(potentials: np.ndarray, used: np.ndarray, *, constant_counts: bool) -> np.ndarray:
    """Potentials that make a bound: finite for the classes in use and, where no constant counts, less their median."""
    finite = np.isfinite(potentials)
    g = np.where(used & np.isneginf(potentials), potentials[finite].min(initial=0.0), potentials)  # any finite one will
    largest = np.abs(g[np.isfinite(g)]).max(initial=0.0)
    if largest > LARGEST_SCORE:
        raise ValueError(f"potentials reach {largest:.3g}; above {LARGEST_SCORE:g} sums with them are no numbers")
    if constant_counts:
        return g
    middle_one = np.median(g[used])
    moved = g - middle_one
    if np.abs(middle_one) <= FAR * np.median(np.abs(moved[used])):
        return g  # a constant that is no larger than what tells classes apart takes no digits, and to take it off may
    return np.where(np.abs(moved) <= TIE * np.abs(middle_one), 0.0, moved)


def _near_zero(rows: RowSet, best: np.ndarray, differ: float, *, all_labelled: bool) -> RowSet:
    """The rows less what would hide from sums what tells classes apart: constants, while potentials differ by little.

    Where some stay unlabelled, rows are compared, and all are moved alike.
    """
    is_open = best > -np.inf
    (farthest,) = rows.max("far", np.abs(best[is_open]).max(initial=0.0))
    opened = rows.opened
    if not farthest > FAR * differ or not (differ > 0 or opened.bare is not opened.fine):
        return rows
    return rows.over(moved(opened.stripped) if all_labelled else moved(opened, middle(rows, best[is_open])))
