"""What is right about an answer to a problem of `families`.

The optimum comes from `linear_sum_assignment` on one column a place, and from HiGHS; bound, gap and sizes are computed
here, from the user's own numbers in float64. Nothing of the package but its front door is used.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
from families import Drawn, spread_of
from oracles import FLOAT64_EPS, float64
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import kl_div

from otlabel import Assignment, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidScoresError, OtlabelWarning

LARGEST_SCORE = 1e200  # and differences of scores: what is beyond is refused
HIGHS_EVERY = 7  # problems of which one is solved by HiGHS as well


@dataclass(frozen=True)
class Finding:
    """What is wrong with one answer, how far its value is from the optimum in units of the spread, and its time."""

    wrong: list[str] = field(default_factory=list)
    relative: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Transport:
    """Losses of putting a unit of a row into a column, and how many units rows have and columns take.

    The classes come first; of the rule "kl", a class has one column for each unit that it may take, which costs what
    that unit does. At the end there is a column for those who are left unlabelled.
    """

    losses: np.ndarray  # (N, C), from each row's best; inf where forbidden
    units: np.ndarray  # (N,)
    lo: np.ndarray  # (C,)
    hi: np.ndarray


def transport_of(drawn: Drawn) -> Transport:
    """The linear program that exact labels are to solve, in whole powers of two of the user's units."""
    s, n_rows = float64(drawn.scores), len(drawn.scores)
    units = np.ones(n_rows, int) if drawn.weights is None else drawn.weights
    tops = _row_tops(drawn)[:, None]
    blocks, lo, hi = [tops - s], drawn.lo, drawn.hi
    if drawn.rule == "kl":
        takers = np.flatnonzero(drawn.hi > 0)
        price = prices(drawn)[takers]
        blocks, lo = [blocks[0][:, takers, None] + price], np.zeros(price.size)
        blocks = [blocks[0].reshape(n_rows, -1)]
        hi = np.ones(price.size)
    if drawn.unlabelled:
        blocks.append(tops)
        lo, hi = np.append(lo, drawn.unlabelled), np.append(hi, drawn.unlabelled)
    return Transport(np.hstack(blocks), units, lo, hi)


def _row_tops(drawn: Drawn) -> np.ndarray:
    """(N,) the best score of each row: the offset that losses are counted from."""
    tops = float64(drawn.scores).max(1)
    return np.where(np.isfinite(tops), tops, 0.0)


def prices(drawn: Drawn) -> np.ndarray:
    """(K, n_units): what the first, second, ... unit of each class adds to N rho KL(c | b)."""
    levels = np.arange(drawn.n_units + 1) / drawn.n_units
    takers = drawn.mass > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        charge = drawn.rho * drawn.n_units * kl_div(levels, drawn.mass[:, None])
        return np.where(takers[:, None], np.diff(charge, axis=1), np.inf)


def least_loss(transport: Transport) -> float:
    """The optimum by the Hungarian method, one column a place; inf where there is none."""
    lo, hi, losses = transport.lo.astype(int), transport.hi.astype(int), transport.losses
    n_units = int(transport.units.sum())
    if (lo > hi).any() or lo.sum() > n_units or hi.sum() < n_units:
        return math.inf
    hi = np.minimum(hi, n_units - lo.sum() + lo)
    rows = np.repeat(losses, transport.units, axis=0)
    must, may = np.repeat(np.arange(len(lo)), lo), np.repeat(np.arange(len(lo)), hi - lo)
    n_spare = len(must) + len(may) - n_units if len(must) else 0  # rows that may fill what need not be filled
    finite = rows[np.isfinite(rows)]
    _, exponent = math.frexp(float(np.abs(finite).max(initial=0.0)))
    spare = np.hstack([np.full((n_spare, len(must)), np.inf), np.zeros((n_spare, len(may)))])
    cost = np.vstack([np.ldexp(rows[:, np.concatenate([must, may])], -exponent), spare])
    try:
        chosen = linear_sum_assignment(cost)
    except ValueError:  # "cost matrix is infeasible"
        return math.inf
    return math.ldexp(math.fsum(cost[chosen].tolist()), exponent)


def least_loss_by_highs(transport: Transport) -> float:
    """The same by HiGHS, for whole and for real units."""
    losses, (n_rows, n_columns) = transport.losses, transport.losses.shape
    if (transport.lo > transport.hi).any():
        return math.inf
    row, column = np.nonzero(np.isfinite(losses))
    pairs, cost = np.arange(len(row)), losses[row, column]
    _, exponent = math.frexp(float(np.median(np.abs(cost))) if len(cost) else 1.0)
    cost = np.ldexp(cost, -exponent)
    by_row = scipy.sparse.coo_array((np.ones(len(row)), (row, pairs)), shape=(n_rows, len(row)))
    by_column = scipy.sparse.coo_array((np.ones(len(row)), (column, pairs)), shape=(n_columns, len(row)))
    blocks = [[by_row, None], [by_column, -scipy.sparse.eye_array(n_columns)]]
    solved = linprog(
        np.concatenate([cost, np.zeros(n_columns)]),
        A_eq=scipy.sparse.block_array(blocks, format="csr"),
        b_eq=np.concatenate([transport.units, np.zeros(n_columns)]),
        bounds=np.concatenate([np.tile([0.0, np.inf], (len(row), 1)), np.stack([transport.lo, transport.hi], 1)]),
        method="highs-ds",
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    if solved.status == 2:
        return math.inf
    assert solved.success, solved.message
    plan = solved.x[: len(row)]
    if not np.issubdtype(transport.lo.dtype, np.floating) and np.abs(plan - np.rint(plan)).max(initial=0) < 1e-6:
        plan = np.rint(plan)  # a vertex
    return math.ldexp(math.fsum((plan * cost).tolist()), exponent)


def check(drawn: Drawn, with_highs: bool | None = None) -> Finding:
    """Solve and compare with what is right; `with_highs` asks a second oracle (None: every seventh seed)."""
    result, error, told, seconds = solve(drawn)
    wrong = [f"{kind.__name__} leaked: {text}" for kind, text in told if not issubclass(kind, OtlabelWarning)]
    transport = transport_of(drawn)
    real = not np.array_equal(transport.lo, np.rint(transport.lo)) or drawn.n_units != int(transport.units.sum())
    real |= "sample_mass" in drawn.arguments and np.asarray(drawn.arguments["sample_mass"]).dtype.kind == "f"
    best = math.nan if real else least_loss(transport)
    if real or (drawn.seed % HIGHS_EVERY == 0 if with_highs is None else with_highs):
        other = least_loss_by_highs(transport)
        best = other if real else best
        if not (other == best or abs(other - best) <= 1e-7 * max(abs(best), _scale_of(transport))):
            wrong.append(f"the oracles differ: {best} and {other}")
    if error is not None:
        if isinstance(error, InvalidScoresError) and max(_scale_of(transport), _largest(drawn)) > LARGEST_SCORE:
            return Finding(wrong, 0.0, seconds)  # sums of these may be no numbers, which it says
        if not isinstance(error, InfeasibleError):
            wrong.append(f"{type(error).__name__}: {error}")
        elif best < math.inf:
            wrong.append(f"refused though feasible: {error}")
        return Finding(wrong, 0.0, seconds)
    if best == math.inf:
        return Finding([*wrong, "solved though infeasible"], math.inf, seconds)
    assert result is not None
    more, relative = _faults(drawn, result, best)
    return Finding(wrong + more, relative, seconds)


def solve(drawn: Drawn) -> tuple[Assignment | None, Exception | None, list[tuple[type[Warning], str]], float]:
    """The answer or what was raised instead, the warnings, and the seconds of all processors that it took."""
    result, error = None, None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begun = time.process_time()
        try:
            result = sinkhorn_assign(drawn.scores, **drawn.arguments)
        except Exception as raised:  # what is foreign among these is a finding
            error = raised
        seconds = time.process_time() - begun
    return result, error, [(warning.category, str(warning.message)) for warning in told], seconds


def _scale_of(transport: Transport) -> float:
    finite = transport.losses[np.isfinite(transport.losses)]
    return float(np.abs(finite).max(initial=0.0))


def _largest(drawn: Drawn) -> float:
    """The largest score, by size."""
    s = float64(drawn.scores)
    return float(np.abs(s[np.isfinite(s)]).max(initial=0.0))


def _relative(apart: float, spread: float, room: float) -> float:
    """Of the spread of scores; where they have none, what rounding explains is nothing."""
    return abs(apart) / spread if spread else 0.0 if abs(apart) <= room else math.inf


def _faults(drawn: Drawn, result: Assignment, best: float) -> tuple[list[str], float]:
    """What is wrong with an answer to a feasible problem whose least loss is `best`."""
    s, labels, wrong = float64(drawn.scores), np.asarray(result.labels), []
    g, threshold = float64(result.potentials), float(result.threshold)
    n_rows, n_classes = s.shape
    if labels.shape != (n_rows,) or labels.dtype != np.int64 or labels.min() < -1 or labels.max() >= n_classes:
        return [f"labels are {labels.dtype} {labels.shape} from {labels.min()} to {labels.max()}"], math.inf
    units = np.ones(n_rows, int) if drawn.weights is None else drawn.weights
    n_units, may_abstain = drawn.n_units, drawn.unlabelled > 0
    labelled = labels >= 0
    own = np.where(labelled, s[np.arange(n_rows), labels], 0.0)
    if not np.isfinite(own).all():
        return [f"{int((~np.isfinite(own)).sum())} labels on forbidden pairs"], math.inf
    sizes = np.bincount(labels[labelled], units[labelled], n_classes)
    if not np.array_equal(np.asarray(result.counts), np.bincount(labels[labelled], minlength=n_classes)):
        wrong.append("counts are not those of the labels")

    # How much is certain: 1e-9 of the spread, and the rounding of sums of the sizes that there are.
    spread = spread_of(drawn.scores, may_abstain)
    largest = _largest(drawn) + float(np.abs(g[np.isfinite(g)]).max(initial=0.0))
    if may_abstain and math.isfinite(threshold):
        largest += abs(threshold)
    if drawn.rule == "kl":
        largest += 4 * drawn.rho
    real = "sample_mass" in drawn.arguments and np.asarray(drawn.arguments["sample_mass"]).dtype.kind == "f"
    rounding = FLOAT64_EPS * 16 + (n_rows * 2.0**-40 if real and drawn.weights is not None else 0.0)
    room = 1e-9 * max(spread, best / n_units) + rounding * largest + 1e-322

    # Value and bound, anew.
    value = _mean(units * own, n_units)
    loss = _mean(units * (_row_tops(drawn) - own), n_units)
    u = s + g
    tops = u.max(1)
    bound = _mean(units * (np.maximum(tops, threshold) if may_abstain else tops), n_units)
    charge = _charge(drawn, sizes)
    bound += _class_terms(drawn, g, threshold) / n_units
    optimum = _mean(units * _row_tops(drawn), n_units) - best / n_units
    relative = _relative(loss + charge - best / n_units, spread, room)
    whole = drawn.weights is None
    if whole:
        if not ((drawn.lo <= sizes).all() and (sizes <= drawn.hi).all()):
            wrong.append(f"sizes {sizes.tolist()} are not within {drawn.lo.tolist()} and {drawn.hi.tolist()}")
        if int((~labelled).sum()) != drawn.unlabelled:
            wrong.append(f"{int((~labelled).sum())} left unlabelled, not {drawn.unlabelled}")
        if not abs(loss + charge - best / n_units) <= room:
            wrong.append(f"value is {loss + charge - best / n_units:.3g} from the optimum, of a spread of {spread:.3g}")
        if not abs(bound - (value - charge)) <= room:
            wrong.append(f"the gap of its potentials is {bound - (value - charge):.3g}, of a spread of {spread:.3g}")
        if not abs(result.gap - (bound - (value - charge))) <= room:
            wrong.append(f"gap is {bound - (value - charge):.3g}, said {result.gap:.3g}")
    else:
        most = np.sort(units)[::-1][: n_classes + may_abstain].sum() + 1e-9 * n_units
        if (sizes > drawn.hi + most).any() or (sizes < drawn.lo - most).any():
            wrong.append(f"sizes {sizes.tolist()} are far from {drawn.lo.tolist()} to {drawn.hi.tolist()}")
        if not abs(bound - optimum) <= room:
            wrong.append(f"bound is {bound - optimum:.3g} from the optimum, of a spread of {spread:.3g}")
        chosen = np.where(labelled, u[np.arange(n_rows), labels], threshold)
        short = (np.maximum(tops, threshold) if may_abstain else tops) - chosen
        if not short.max() <= n_rows * room:
            wrong.append(f"a label is {short.max():.3g} worse than its row's best at the potentials")
        relative = _relative(bound - optimum, spread, room)
    if not abs(result.value - value) <= room:
        wrong.append(f"value is {value:.17g}, said {result.value:.17g}")
    if not abs(result.bound - charge - bound) <= room:
        wrong.append(f"bound is {bound + charge:.17g}, said {result.bound:.17g}")
    text = result.summary()
    obeyed = (drawn.lo - 1e-9 * n_units <= sizes).all() and (sizes <= drawn.hi + 1e-9 * n_units).all()
    if (
        "proven optimal" in text
        and "not proven optimal" not in text
        and not (obeyed or abs(bound - value + charge) <= room)
    ):
        wrong.append(f"claimed as proven, with a gap of {bound - value + charge:.3g} of a spread of {spread:.3g}")
    return wrong, relative


def _mean(numbers: np.ndarray, n_units: int) -> float:
    return math.fsum(np.asarray(numbers, dtype=np.float64).tolist()) / n_units


def _charge(drawn: Drawn, sizes: np.ndarray) -> float:
    """What the rule "kl" charges for sizes, beyond what it charges for none at all."""
    if drawn.rule != "kl":
        return 0.0
    price = prices(drawn)
    return math.fsum(math.fsum(price[k, : int(size)].tolist()) for k, size in enumerate(sizes)) / drawn.n_units


def _class_terms(drawn: Drawn, g: np.ndarray, threshold: float) -> float:
    """sum_k max_n (-g_k n - charge(n)) over the sizes n that the rule allows."""
    total = -threshold * drawn.unlabelled if drawn.unlabelled else 0.0
    allowed = (float64(drawn.scores) > -np.inf).any(0)  # others can take nothing, whatever the rule allows
    if drawn.rule != "kl":
        sizes = np.where(g > 0, drawn.lo, np.where(allowed, drawn.hi, 0))
        taken = sizes > 0
        return total - math.fsum((g[taken] * sizes[taken]).tolist())
    price = prices(drawn)
    for k in np.flatnonzero((drawn.hi > 0) & allowed):
        total += math.fsum(np.maximum(0.0, -g[k] - price[k]).tolist())  # prices rise, so the best are the first
    return total
