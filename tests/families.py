"""Random problems of 22 families of scores under every rule on class sizes, and what is right about an answer.

The optimum comes from `linear_sum_assignment` on one column a place, and from HiGHS; bound, gap and sizes are computed
here, from the user's own numbers in float64. Nothing of the package but its front door is used.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse
import torch
from oracles import FLOAT64_EPS, float64
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import kl_div, log_softmax

from otlabel import KL, Assignment, Range, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidScoresError, OtlabelWarning

RULES = ("equal", "shares", "counts", "range_shares", "range_counts", "kl")
WHOLE = 1e-9  # a share times N this near to a whole number is meant to be it
LARGEST_SCORE = 1e200  # and differences of scores: what is beyond is refused
HIGHS_EVERY = 7  # problems of which one is solved by HiGHS as well
NORMAL = np.random.Generator.standard_normal
Family = Callable[[np.random.Generator, int, int, np.ndarray], Any]


@dataclass(frozen=True, eq=False)
class Drawn:
    """One problem: the scores, the arguments beside them, and what these mean in units of mass."""

    family: str
    rule: str
    seed: int
    scores: Any  # (N, K)
    arguments: dict[str, Any]
    weights: np.ndarray | None  # (N,) units of each row; None for one each
    n_units: int
    unlabelled: int
    lo: np.ndarray  # (K,) fewest and most units of each class
    hi: np.ndarray
    mass: np.ndarray  # (K,) what classes of the rule "kl" prefer, as shares
    rho: float = math.inf

    @property
    def name(self) -> str:
        """What draws it again."""
        return f"draw({self.family!r}, {self.rule!r}, {self.seed})"


@dataclass(frozen=True)
class Finding:
    """What is wrong with one answer, how far its value is from the optimum in units of the spread, and its time."""

    wrong: list[str] = field(default_factory=list)
    relative: float = 0.0
    seconds: float = 0.0


# ---- the families: (rng, N, K, an allowed labelling) -> scores ----


def _gaussian(rng, n, k, hidden):
    return NORMAL(rng, (n, k)) * rng.choice([1e-3, 1.0, 30.0])


def _heavy_tails(rng, n, k, hidden):
    shape = [rng.standard_cauchy, lambda size: rng.standard_t(1.5, size), lambda size: rng.lognormal(0, 3, size)]
    return shape[rng.integers(3)]((n, k))


def _quantised(rng, n, k, hidden):
    levels = int(rng.integers(2, 9))
    return np.round(rng.random((n, k)) * levels) / levels


def _capped(rng, n, k, hidden):
    return np.minimum(NORMAL(rng, (n, k)), rng.choice([np.arange(k) / k, np.full(k, -0.5), NORMAL(rng, k)]))


def _low_rank(rng, n, k, hidden):
    rank = int(rng.integers(1, 4))
    return NORMAL(rng, (n, rank)) @ NORMAL(rng, (rank, k))


def _near_duplicate_rows(rng, n, k, hidden):
    rows = NORMAL(rng, (max(1, n // 8), k))
    return rows[rng.integers(0, len(rows), n)] + 10.0 ** -rng.integers(4, 15) * NORMAL(rng, (n, k))


def _duplicate_rows(rng, n, k, hidden):
    rows = NORMAL(rng, (max(1, n // int(rng.integers(2, 12))), k))
    return rows[rng.integers(0, len(rows), n)]


def _far_offsets(rng, n, k, hidden):
    offset = 1e8 * rng.choice([1.0, -1.0])
    scores = rng.choice([1.0, 1e3]) * NORMAL(rng, (n, k))
    kind = rng.integers(5)
    if kind == 0:
        return (scores + 6e4 * np.sign(offset)).astype(np.float16)
    if kind == 1:
        return torch.from_numpy(scores + offset).bfloat16()
    if kind == 2:
        return (scores + offset).astype(np.int64)
    return (scores + offset * rng.choice([1.0, 1.0 + rng.random()], (n, 1))).astype([np.float32, np.float64][kind - 3])


def _constant_rows(rng, n, k, hidden):
    constant = rng.random(n) < rng.choice([0.2, 0.7, 1.0])
    return np.where(constant[:, None], rng.choice([0.0, -3.0, 2.0], (n, 1)), NORMAL(rng, (n, k)))


def _log_probabilities(rng, n, k, hidden):
    likely = 1.0 / np.arange(1, k + 1)
    logits = NORMAL(rng, (n, k))
    logits[np.arange(n), rng.choice(k, n, p=likely / likely.sum())] += rng.choice([1.0, 4.0, 20.0])
    return log_softmax(logits, axis=1)


def _forbidden(rng, n, k, hidden):
    scores = NORMAL(rng, (n, k)) if rng.random() < 0.6 else rng.integers(-2, 3, (n, k)).astype(np.float64)
    shut = rng.random((n, k)) < rng.choice([0.2, 0.6, 0.9, 0.98])
    if rng.random() < 0.7:  # else nobody knows whether there is an assignment
        labelled = np.flatnonzero(hidden >= 0)
        shut[labelled, hidden[labelled]] = False
    if rng.random() < 0.2:
        shut[rng.random(n) < 0.5, rng.integers(k)] = True
    return np.where(shut, -np.inf, scores)


def _many_classes(rng, n, k, hidden):
    return NORMAL(rng, (n, k)) + rng.choice([0.0, 3.0]) * NORMAL(rng, k)


def _dominant_class(rng, n, k, hidden):
    return NORMAL(rng, (n, k)) + rng.choice([3.0, 50.0, 1e4]) * (np.arange(k) == rng.integers(k))


def _tiny(rng, n, k, hidden):
    scale, kind = [(1e-40, "f4"), (1e-7, "f2"), (1e-12, "f8"), (1e-40, "f8"), (1e-300, "f8"), (1e-320, "f8")][
        rng.integers(6)
    ]
    return (scale * NORMAL(rng, (n, k))).astype(kind)


def _huge(rng, n, k, hidden):
    scale, kind = [(1e30, "f4"), (1e12, "f4"), (1e4, "f2"), (1e30, "f8"), (1e200, "f8"), (1e300, "f8")][rng.integers(6)]
    return (scale * NORMAL(rng, (n, k))).astype(kind)


def _line_distances(rng, n, k, hidden):
    x, centres = NORMAL(rng, (n, 1)) ** rng.choice([1, 3]), rng.choice([np.linspace(-2, 2, k), NORMAL(rng, k)])
    return -(np.abs(x - centres) ** rng.choice([1.0, 2.0]))


def _row_scales(rng, n, k, hidden):
    return NORMAL(rng, (n, k)) * rng.lognormal(0, rng.choice([1.0, 3.0, 6.0]), (n, 1))


def _class_offsets(rng, n, k, hidden):
    return NORMAL(rng, (n, k)) + 10.0 ** rng.integers(0, 7) * NORMAL(rng, k)


def _permuted_identity(rng, n, k, hidden):
    home = rng.permutation(np.arange(n) % k)
    return rng.choice([1.0, 1e3]) * (home[:, None] == np.arange(k)) + rng.choice([0.0, 1e-6]) * NORMAL(rng, (n, k))


def _blocks(rng, n, k, hidden):
    n_blocks = int(rng.integers(1, 5))
    inside = rng.integers(0, n_blocks, n)[:, None] == np.arange(k) % n_blocks
    return np.where(inside, NORMAL(rng, (n, k)), rng.choice([-10.0, -1e6]))


def _integers(rng, n, k, hidden):
    low, high, kind = [(-1000, 1000, np.int64), (0, 255, np.uint8), (-3, 4, np.int8), (-30000, 30000, np.int32)][
        rng.integers(4)
    ]
    return rng.integers(low, high, (n, k)).astype(kind)


def _halves(rng, n, k, hidden):
    scores = rng.choice([1e-6, 1.0, 300.0]) * NORMAL(rng, (n, k))
    return scores.astype(np.float16) if rng.random() < 0.5 else torch.from_numpy(scores).bfloat16()


FAMILIES: dict[str, Family] = {
    "gaussian": _gaussian,
    "heavy_tails": _heavy_tails,
    "quantised": _quantised,
    "capped": _capped,
    "low_rank": _low_rank,
    "near_duplicate_rows": _near_duplicate_rows,
    "duplicate_rows": _duplicate_rows,
    "far_offsets": _far_offsets,
    "constant_rows": _constant_rows,
    "log_probabilities": _log_probabilities,
    "forbidden": _forbidden,
    "many_classes": _many_classes,
    "dominant_class": _dominant_class,
    "tiny": _tiny,
    "huge": _huge,
    "line_distances": _line_distances,
    "row_scales": _row_scales,
    "class_offsets": _class_offsets,
    "permuted_identity": _permuted_identity,
    "blocks": _blocks,
    "integers": _integers,
    "halves": _halves,
}


# ---- drawing ----


def draw(family: str, rule: str, seed: int, max_rows: int = 60, max_classes: int = 12) -> Drawn:
    """A small problem of the family; samples may be weighted or left unlabelled."""
    rng = np.random.default_rng([seed, *family.encode(), *rule.encode()])
    n_rows, n_classes = int(rng.integers(1, max_rows + 1)), int(rng.integers(1, max_classes + 1))
    if family == "many_classes":
        n_rows, n_classes = int(rng.integers(1, max_classes)), int(rng.integers(max_classes, 3 * max_classes))
    abstain = float(rng.choice([0.05, 0.3, 0.8])) if rng.random() < 0.3 else 0.0
    weigh = ["", "", "", "", "whole", "shares"][rng.integers(6)]
    return _drawn(rng, family, rule, seed, n_rows, n_classes, abstain, weigh)


def draw_large(
    family: str, rule: str, seed: int, n_rows: int, n_classes: int, *, abstain: float = 0.0, weigh: str = ""
) -> Drawn:
    """A problem of a given size, to be timed."""
    rng = np.random.default_rng([seed, *family.encode(), *rule.encode()])
    return _drawn(rng, family, rule, seed, n_rows, n_classes, abstain, weigh)


def _drawn(
    rng: np.random.Generator,
    family: str,
    rule: str,
    seed: int,
    n_rows: int,
    n_classes: int,
    abstain: float,
    weigh: str,
) -> Drawn:
    weights, sample_mass, n_units = None, None, n_rows
    if weigh and not (weigh == "shares" and rule == "kl"):  # places of 1e12 units are more than an oracle can try
        drawn_units = rng.integers(0, 4, n_rows)
        drawn_units[rng.integers(n_rows)] += 1
        sample_mass = drawn_units if weigh == "whole" else drawn_units / drawn_units.sum()
        if len(set(drawn_units.tolist())) > 1:
            weights, n_units = drawn_units, int(drawn_units.sum())
    real = weights is not None and weigh == "shares"  # then sizes are whole numbers of 2**-40: as good as real ones
    abstain = 0.0 if round(abstain * n_units) >= n_units else abstain
    unlabelled = abstain * n_units if real else round(abstain * n_units)
    arguments, shares, lo, hi = _class_rule(rng, rule, n_rows, n_classes, n_units, unlabelled, real)
    if abstain:
        arguments["abstain"] = abstain
    if sample_mass is not None:
        arguments["sample_mass"] = sample_mass
    scores = FAMILIES[family](rng, n_rows, n_classes, _some_labelling(rng, n_rows, lo, hi, unlabelled))
    mass, rho = np.array([float(share) for share in shares]) * (1 - unlabelled / n_units), math.inf
    if rule == "kl":
        rho = float(max(_spread(scores, bool(abstain)), 1e-12) * rng.choice([0.01, 0.1, 1.0, 10.0]))
        arguments["classes"] = KL(rho)
    return Drawn(family, rule, seed, scores, arguments, weights, n_units, unlabelled, lo, hi, mass, rho)


def _class_rule(
    rng: np.random.Generator, rule: str, n_rows: int, n_classes: int, n_units: int, unlabelled: float, real: bool
) -> tuple[dict[str, Any], list[Fraction], np.ndarray, np.ndarray]:
    """Arguments, shares of the classes, and the fewest and most units of each."""
    arguments: dict[str, Any] = {}
    shares = [Fraction(1, n_classes)] * n_classes
    if rule == "shares" or (rule == "kl" and rng.random() < 0.5):
        parts = rng.multinomial(1000, rng.dirichlet(np.full(n_classes, rng.choice([0.1, 1.0]))))
        shares = [Fraction(int(part), 1000) for part in parts]
        arguments["class_mass"] = parts / 1000
    elif rule == "counts":
        counts = rng.multinomial(n_rows, rng.dirichlet(np.full(n_classes, 0.5)))
        shares = [Fraction(int(count), n_rows) for count in counts]
        arguments["class_mass"] = counts
    if rule in ("equal", "shares", "counts"):
        left = n_units - unlabelled
        sizes = np.array([float(share) * left for share in shares]) if real else largest_remainder(left, left, shares)
        return arguments, shares, sizes, sizes
    if rule == "kl":
        return arguments, shares, np.zeros(n_classes), np.where([share > 0 for share in shares], n_units, 0)
    fair, width = 1 / n_classes, rng.choice([0.0, 0.3, 1.0])
    low, high = fair * (1 - width * rng.random(n_classes)), fair * (1 + width * rng.random(n_classes) + 0.02)
    if rng.random() < 0.2:
        low = np.zeros(n_classes)
    if rng.random() < 0.1:  # what may not be feasible at all
        high *= 0.98
    if rule == "range_counts":
        low, high = np.floor(low * n_rows).astype(int), np.ceil(high * n_rows).astype(int)
        least, most = [Fraction(int(x), n_rows) for x in low], [Fraction(int(x), n_rows) for x in high]
    else:
        high = np.minimum(high, 1.0)
        low, high = np.minimum(np.round(low, 3), np.round(high, 3)), np.round(high, 3)
        least, most = ([Fraction(round(1000 * x), 1000) for x in bound] for bound in (low, high))
    arguments["classes"] = Range(low, high)
    most = [min(share, Fraction(1)) for share in most]
    if real:
        lo, hi = (np.array([float(x) for x in bounds]) * n_units for bounds in (least, most))
        return arguments, shares, lo, hi
    lo, hi = [math.ceil(x * n_units) for x in least], [math.floor(x * n_units) for x in most]
    exact = [k for k in range(n_classes) if least[k] == most[k]]  # these become sizes together, as shares do
    sizes = largest_remainder(round(n_units * sum(least[k] for k in exact)), n_units, [least[k] for k in exact])
    for k, size in zip(exact, sizes, strict=True):
        lo[k] = hi[k] = size
    return arguments, shares, np.array(lo), np.array(hi)


def largest_remainder(total: int, n_units: int, shares: list[Fraction]) -> np.ndarray:
    """Whole sizes near the shares of `n_units` that sum to `total`, in exact arithmetic; ties to the lower class."""
    exact = [n_units * share for share in shares]
    sizes = [math.floor(size) for size in exact]
    order = sorted(range(len(sizes)), key=lambda k: (sizes[k] - exact[k], k))
    for k in order[: total - sum(sizes)]:
        sizes[k] += 1
    return np.array(sizes)


def _some_labelling(
    rng: np.random.Generator, n_rows: int, lo: np.ndarray, hi: np.ndarray, unlabelled: float
) -> np.ndarray:
    """Labels (N,) whose sizes obey the rule where samples weigh one each and it can be obeyed; -1 for none."""
    sizes = lo.astype(int)
    for k in rng.permutation(len(lo)):
        sizes[k] += max(0, min(int(hi[k]) - sizes[k], n_rows - int(unlabelled) - sizes.sum()))
    labels = np.append(np.repeat(np.arange(len(lo)), np.maximum(sizes, 0)), np.full(n_rows, -1))[:n_rows]
    return rng.permutation(labels)


def _spread(scores: Any, with_zero: bool = False) -> float:
    """How far apart a row's scores typically are."""
    s = float64(scores)
    allowed = np.isfinite(s)
    top, bottom = np.where(allowed, s, -np.inf).max(1), np.where(allowed, s, np.inf).min(1)
    if with_zero:
        top, bottom = np.maximum(top, 0), np.minimum(bottom, 0)
    return float(np.median(np.where(np.isfinite(top), top - bottom, 0.0)))


# ---- the optimum ----


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


# ---- what is right ----


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
    spread = _spread(drawn.scores, may_abstain)
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
