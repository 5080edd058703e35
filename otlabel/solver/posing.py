"""A first look at every score: the problem that rows and demands make, or why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from otlabel import sweep
from otlabel.errors import DegenerateScoresWarning, FewSamplesWarning, InfeasibleError, InvalidScoresError, warn
from otlabel.marginals import Exact, Rule, counted
from otlabel.ranks.rowset import RowSet
from otlabel.solver.asking import Asked
from otlabel.solver.monitor import Monitor
from otlabel.solver.problem import LARGEST_SCORE, Problem, Solver
from otlabel.sources import Opened, as_float, cached, draw_rows, made_once, moved, with_column
from otlabel.sources.listed import ListedSource

FAR = 1e3  # times the usual spread of a row: scores as large hide from sums what tells classes apart
LOOK_ROWS = 1024  # rows that are looked at for signs of probabilities
RESOLVED = 1e5  # times epsilon: products up to here have errors far below it in float32
SMALLEST, LARGEST = 1e-30, 1e30  # products of which float32 loses neither these nor their differences


@dataclass(frozen=True, eq=False)
class Size:
    """How large the scores of the rows here are, and of all."""

    tops: np.ndarray  # (N,) largest score of each row, -inf where none is allowed
    bottoms: np.ndarray  # (N,) smallest finite score
    extents: np.ndarray  # (N,) float64, how far these are apart
    magnitude: float  # the largest top of all, by size
    extent: float  # the widest row of all
    spread: float  # of a typical row
    lowered: float = 0.0  # by how much scores were moved, in the mean over units

    @property
    def is_open(self) -> np.ndarray:
        """(N,) whether a row may have a class."""
        return self.tops > -np.inf


def pose(
    rows: RowSet,
    asked: Asked,
    solver: Solver,
    sampled: np.ndarray,
    monitor: Monitor,
    inspection: sweep.Inspection | None = None,
) -> tuple[Problem, np.ndarray]:
    """The problem, after a first look at every score; and a hash of each row. Samples will be taken from `sampled`.

    Scores that float32 makes too coarsely for epsilon give way to float64's, and such as are far from zero are moved
    there.
    """
    rule, abstain, n_rows, n_classes = asked.rule, asked.abstain, rows.n_rows, rows.shape[1]
    several = rows.labels_per_row
    rows, inspection = _inspected(rows, sampled, solver.epsilon, monitor, inspection)
    if inspection.n_forbidden:
        rule = _check_forbidden(rows, inspection, asked, monitor)
    size, top, below = measured(rows, inspection)
    stored_magnitude = size.magnitude
    if asked.exact_rows and is_far(size):
        if abstain > 0:  # whether a sample is labelled then depends on how its row compares with others
            rows, size = _moved_together(rows, size)
        else:
            rows, size = _moved_one_by_one(rows, size, asked.weights, sampled, monitor)
    if asked.n_units < n_classes and asked.demand.class_mass is None and isinstance(asked.demand.classes, Exact):
        each = "" if several == 1 else f" of {several} labels each"
        warn(FewSamplesWarning, f"{n_rows} samples{each} for {n_classes} classes: sizes are 0 or 1")
    if n_classes > 1:
        _warn_of_scores(rows, sampled, all_equal=not inspection.n_forbidden and not size.extent, top=top, below=below)
    extent, spread = size.extent, size.spread
    if abstain > 0:  # staying unlabelled has a score of zero
        tops, bottoms = np.maximum(size.tops, 0), np.minimum(size.bottoms, 0)
        wide = np.where(size.is_open, np.subtract(tops, bottoms, dtype=np.float64), tops)
        rows, (extent,) = rows.over(with_column(rows.opened)), rows.max("extents", wide.max(initial=0.0))
        spread = rows.median("spread of all", wide)
    problem = Problem(
        rows=rows,
        rule=rule,
        n_units=asked.n_units,
        spread=spread,
        extent=extent,
        magnitude=size.magnitude,
        top=max(top, 0.0) if abstain > 0 else top,
        sampled=sampled,
        weights=asked.weights,
        row_rho=asked.row_rho,
        for_new=asked.for_new,
        weighted=asked.weights is not None,
        stored_magnitude=stored_magnitude,
        lowered=size.lowered,
        room=solver.room,
    )
    return problem, inspection.hashes


def _inspected(
    rows: RowSet, sampled: np.ndarray, epsilon: float, monitor: Monitor, inspection: sweep.Inspection | None
) -> tuple[RowSet, sweep.Inspection]:
    """Rows whose numbers are fine enough for epsilon, and what they show; InvalidScoresError where one is none."""
    if inspection is None:
        inspection = sweep.inspect(rows)
        monitor.record("inspect", rows.n_rows)
    if too_coarse(rows, inspection, epsilon):
        rows = _sampling_from(rows, rows.opened.refined, sampled)
        inspection = sweep.inspect(rows)
        monitor.record("inspect", rows.n_rows)
    check_finite(rows, inspection)
    return rows, inspection


def _sampling_from(rows: RowSet, form: Opened, sampled: np.ndarray) -> RowSet:
    """The rows in another form, the ones that samples are taken from in memory."""
    return rows.over(cached(form, 0, rows.local(sampled)))


def measured(rows: RowSet, inspection: sweep.Inspection) -> tuple[Size, float, float]:
    """How large scores are, the largest of all, and minus the smallest."""
    tops, bottoms = inspection.tops, inspection.bottoms
    is_open = tops > -np.inf
    extents = np.zeros(len(tops))
    with np.errstate(over="ignore"):  # what is beyond numbers is refused below
        np.subtract(tops, bottoms, out=extents, where=is_open, dtype=np.float64)
    magnitude, extent, top, below = rows.max(
        "extents",
        max(abs(float(tops.max(where=is_open, initial=0.0))), abs(float(tops.min(where=is_open, initial=0.0)))),
        extents.max(initial=0.0),
        float(tops.max(initial=-np.inf)),
        -float(bottoms.min(initial=np.inf)),
    )
    check_reach(max(magnitude, extent))
    return Size(tops, bottoms, extents, magnitude, extent, rows.median("spread", extents)), top, below


def is_far(size: Size) -> bool:
    """Whether scores are so far from zero that sums would lose what tells classes apart."""
    return size.magnitude > FAR * size.spread


def _moved_together(rows: RowSet, size: Size) -> tuple[RowSet, Size]:
    """All scores less one number, so that most of the largest are near zero."""
    is_open, tops = size.is_open, size.tops.astype(np.float64)
    lowered = middle(rows, tops[is_open])
    tops = np.where(is_open, tops - lowered, tops)
    (magnitude,) = rows.max("far", np.abs(tops[is_open]).max(initial=0.0))
    resized = replace(size, tops=tops, bottoms=tops - size.extents, magnitude=magnitude, lowered=lowered)
    return rows.over(made_once(moved(rows.opened, lowered))), resized


def _moved_one_by_one(
    rows: RowSet, size: Size, weights: np.ndarray | None, sampled: np.ndarray, monitor: Monitor
) -> tuple[RowSet, Size]:
    """Each row less its largest score; of a head, the products without what normalises them."""
    before, is_open = size.tops.astype(np.float64), size.is_open
    if rows.opened.bare is not rows.source:
        before = sweep.inspect(rows.fine).tops
        monitor.record("inspect", rows.n_rows)
        rows = _sampling_from(rows, rows.opened.stripped, sampled)
    rows = rows.over(made_once(moved(rows.opened)))
    shown = sweep.inspect(rows)
    monitor.record("inspect", rows.n_rows)
    units = is_open.astype(np.float64) if weights is None else np.where(is_open, weights, 0.0)
    by = np.where(is_open, before, 0.0) - np.where(is_open, shown.tops, 0.0)
    total, of_all = rows.sum("far", by @ units, units.sum())
    lowered = float(total) / max(float(of_all), 1.0)
    tops, bottoms = shown.tops, shown.bottoms
    extents = np.where(is_open, np.where(is_open, tops, 0.0) - bottoms, 0.0)
    (extent,) = rows.max("extents", extents.max(initial=0.0))
    spread = rows.median("spread", extents)
    (magnitude,) = rows.max("far", np.abs(tops[is_open]).max(initial=0.0))
    return rows, Size(tops, bottoms, extents, magnitude, extent, spread, lowered)


def too_coarse(rows: RowSet, inspection: sweep.Inspection, epsilon: float) -> bool:
    """Whether float32 does not tell apart what epsilon does, or has scores that overflow or vanish."""
    if rows.fine is rows:
        return False
    is_open = inspection.tops > -np.inf
    tops = inspection.tops[is_open].astype(np.float64)
    largest, widest = rows.max(
        "coarse", np.abs(tops).max(initial=0.0), (tops - inspection.bottoms[is_open]).max(initial=0.0)
    )
    return bool(inspection.n_bad) or not (SMALLEST < largest < min(LARGEST, RESOLVED * epsilon) and widest)


def middle(rows: RowSet, values: np.ndarray) -> float:
    """The median of values of all ranks: where most are, which a mean that follows a few far away is not."""
    return rows.median("middle", np.maximum(values, 0.0)) - rows.median("middle", np.maximum(-values, 0.0))


def check_reach(size: float) -> None:
    """Refuse scores that are too large, or too far apart, for their sums to be numbers."""
    if size > LARGEST_SCORE:
        raise InvalidScoresError(
            f"scores reach {size:.3g}, or lie as far apart, above {LARGEST_SCORE:g}: their sums may be beyond what "
            "float64 can hold; divide them by a constant, or use -inf to forbid a pair"
        )


def _check_forbidden(rows: RowSet, inspection: sweep.Inspection, asked: Asked, monitor: Monitor) -> Rule:
    """Refuse rows without any class, and classes that must have samples but may have none; others of these are shut.

    Which classes must or may take any is told by their sizes, fewest and most, or by shares where there are none.
    """
    n_classes, rule, sizes, weights, n_units = rows.shape[1], asked.rule, asked.sizes, asked.weights, asked.n_units
    fewest, most = (rule.lo, np.where(rule.wanted, rule.hi, 0.0)) if sizes is None else sizes
    _check_closed(
        inspection.tops == -np.inf, rows, weights, asked.n_unlabelled, "have no class allowed (all scores are -inf)",
        "leave these rows out or allow at least one class",
    )  # fmt: skip
    takers = (most > 0)[:n_classes]
    if not takers.all() or rows.labels_per_row > 1:
        check_open_rows(rows, takers, weights, asked.n_unlabelled, by_size=sizes is not None)
        monitor.record("inspect", rows.n_rows)
    n_allowing, n_read = allowing(rows)
    monitor.record("inspect", n_read)
    shut = np.zeros(len(rule.mass), bool)  # staying unlabelled is open to all
    shut[:n_classes] = n_allowing == 0
    closed = np.flatnonzero(shut & (fewest > 0))
    if len(closed):
        least = float(fewest[closed[0]]) / (1 if sizes is None else n_units)
        told = (
            f"{counted(least * rows.n_rows * rows.labels_per_row)} samples"
            if weights is None
            else f"{least:.6g} of the sample mass"
        )
        raise InfeasibleError(
            f"class {closed[0]} is to take {told}, but its scores are all -inf ({len(closed)} such classes); give it "
            "mass 0 or allow some pairs"
        )
    if sizes is None:
        return replace(rule, hi=np.where(shut, 0.0, rule.hi))
    return rule.without(shut, sizes[0], n_classes)


def allowing(rows: RowSet) -> tuple[np.ndarray, int]:
    """(K,) on how many ranks each class may have some of the rows that were read, and how many rows these are."""
    allowed, n_read = np.zeros(rows.shape[1], bool), 0
    if isinstance(rows.source, ListedSource):
        dtype = rows.source.dtype
        for (_, stop), lists in zip(rows.spans, rows.source.read(rows.spans), strict=True):
            here = slice(lists.starts[0], lists.starts[-1])
            allowed[lists.classes[here][as_float(lists.scores[here], dtype) > -np.inf]] = True
            n_read = stop
            if allowed.all():
                break
    else:
        for (_, stop), block in rows.blocks([span] for span in rows.spans):
            allowed |= (block > -np.inf).any(0)
            n_read = stop
            if allowed.all():
                break
    n_allowing, read = rows.sum("allowed", allowed.astype(np.int64), np.array(n_read))
    return n_allowing, int(read)


def check_open_rows(
    rows: RowSet,
    takers: np.ndarray,
    weights: np.ndarray | None = None,
    n_unlabelled: int = 0,
    *,
    by_size: bool = False,
) -> None:
    """Refuse rows whose allowed classes are all among those that take nothing; `takers` (K,) says which take some.

    So many units may stay unlabelled.
    """
    several = rows.labels_per_row
    if takers.all() and several == 1:
        return
    _, best, _ = sweep.label(rows, np.where(takers, 0.0, -np.inf))
    if several > 1:
        of_takers = "" if takers.all() else " among those that take any"
        _check_closed(
            best.min(1) == -np.inf, rows, None, 0, f"are allowed fewer than {several} classes{of_takers}",
            "allow more pairs, leave these rows out, or take fewer labels_per_sample",
        )  # fmt: skip
        return
    shut = np.flatnonzero(~takers)
    shown = ", ".join(map(str, shut[:10])) + (", ..." if len(shut) > 10 else "")
    why = "whose size is 0, by their mass or because their share rounds to it" if by_size else "which take nothing"
    mass = "mass (whole sizes as class_mass, or classes=Range(0.0, 1.0))" if by_size else "mass"
    _check_closed(
        best == -np.inf, rows, weights, n_unlabelled, f"are only allowed classes among {shown}, {why}",
        f"give those classes {mass} or allow other pairs",
    )  # fmt: skip


def _check_closed(
    closed: np.ndarray, rows: RowSet, weights: np.ndarray | None, n_unlabelled: int, finding: str, remedy: str
) -> None:
    """Refuse rows of no class, unless all of them may stay unlabelled."""
    n_closed, first = _counted(closed, rows)
    if not n_closed:
        return
    n_units, in_all = n_closed, rows.n_rows
    if weights is not None:
        n_units, in_all = (int(units) for units in rows.sum("closed", weights[closed].sum(), weights.sum()))
    if n_units == in_all:
        raise InfeasibleError(f"{n_closed} rows {finding}, the first is row {first}; {remedy}")
    if not n_unlabelled:
        raise InfeasibleError(
            f"{n_closed} rows {finding}, the first is row {first}; {remedy}"
            + ("" if rows.labels_per_row > 1 else f", or leave them unlabelled by abstain={n_units / in_all!r}")
        )
    if n_units > n_unlabelled:
        left = f"room for {n_unlabelled} of them" if weights is None else "less mass than theirs"
        raise InfeasibleError(
            f"{n_closed} rows {finding}, the first is row {first}; abstain leaves {left}: raise it to "
            f"abstain={n_units / in_all!r}, or {remedy}"
        )


def _counted(chosen: np.ndarray, rows: RowSet) -> tuple[int, int]:
    """How many rows of all ranks are chosen, and the first of them."""
    here = np.flatnonzero(chosen) + rows.first
    (number,) = rows.sum("rows", np.array(len(here)))
    first = -rows.max("rows", -float(here[0]) if len(here) else -math.inf)[0]
    return int(number), int(first) if number else -1


def _warn_of_scores(rows: RowSet, sampled: np.ndarray, *, all_equal: bool, top: float, below: float) -> None:
    """Say so where scores carry no information, or are within [0, 1] and look like probabilities."""
    if all_equal:
        warn(DegenerateScoresWarning, "every row's scores are all equal: they carry no information, labels are random")
    elif top <= 1 and below <= 0 and not isinstance(rows.source, ListedSource):  # rows of -inf have no sum
        _warn_of_probabilities(rows, sampled)


def _warn_of_probabilities(rows: RowSet, sampled: np.ndarray) -> None:
    """Say so if a few rows, all within [0, 1], sum to 1; of votes, one class a row, there is nothing to say."""
    chosen = sampled[draw_rows(len(sampled), LOOK_ROWS, np.random.default_rng(0))]
    dtype, sample = rows.source.dtype, rows.taken(chosen)
    any_other, any_zero, any_share = 0.0, 0.0, 0.0
    for _, block in sample.blocks():
        numbers = block.astype(np.float64)
        any_other = max(any_other, float(not sum_to_one(numbers.sum(1), dtype)))
        any_zero = max(any_zero, float((numbers == 0).any()))
        any_share = max(any_share, float(has_shares(numbers)))
    any_other, any_zero, any_share = rows.max("look", any_other, any_zero, any_share)
    if any_other or not any_share:
        return
    told = "rows are in [0, 1] and sum to 1, like probabilities: pass the logarithm of them"
    if any_zero:
        told += ", np.log(np.maximum(p, 1e-9)), as some are 0: without a least value those pairs would be forbidden"
    warn(DegenerateScoresWarning, told)


def sum_to_one(sums: np.ndarray, dtype: str, *, of_logarithms: bool = False) -> bool:
    """Whether all sums are 1 up to what their storage type rounds away, of probabilities or of exponentials of logs."""
    # In halves a logarithm of -10 is rounded by up to 0.02, and all of a row may be rounded to the same side.
    rounded = 5e-2 if of_logarithms else 2e-2
    near = 1e-3 if dtype in ("float32", "float64") else rounded
    return bool((np.abs(sums - 1) < near).all())


def has_shares(numbers: np.ndarray) -> bool:
    """Whether any is between 0 and 1; of votes, which have none, the logarithm is not meant."""
    return bool(((numbers > 0) & (numbers < 1)).any())


def _first_bad(rows: RowSet) -> tuple[int, int, float] | None:
    """Row here, class and value of the first NaN or +inf."""
    if isinstance(rows.source, ListedSource):
        lists = rows.source.lists
        at = np.flatnonzero(~(lists.scores < np.inf))[:1].tolist()
        return next(
            ((lists.row_at(entry), int(lists.classes[entry]), float(lists.scores[entry])) for entry in at), None
        )
    for (start, _), values in rows.blocks([span] for span in rows.spans):
        bad = ~(values < np.inf)
        if bad.any():
            row, cls = np.argwhere(bad)[0].tolist()
            return start + row, cls, values[row, cls]
    return None


def check_finite(rows: RowSet, inspection: sweep.Inspection, what: str = "scores") -> None:
    """Raise InvalidScoresError that names the first NaN or +inf, if there is one."""
    if not inspection.n_bad:
        return
    rows, found = rows.fine, ""
    if (place := _first_bad(rows)) is not None:
        row, cls, value = place
        found = f"{rows.opened.place(row)}, {'class' if what == 'scores' else 'column'} {cls} ({value})"
    where = rows.communicator.first_text("bad scores", found)
    remedy = "mend them, or use -inf to forbid a pair" if what == "scores" else "mend them, or leave these rows out"
    raise InvalidScoresError(
        f"{inspection.n_bad} of {rows.n_rows * rows.shape[1]} {what} are NaN or +inf, the first at {where}; {remedy}"
    )
