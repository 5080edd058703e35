"""Random problems of 22 families of scores under every rule on class sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from oracles import float64
from scipy.special import log_softmax

from otlabel import KL, Range

RULES = ("equal", "shares", "counts", "range_shares", "range_counts", "kl")
WHOLE = 1e-9  # a share times N this near to a whole number is meant to be it
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
    if weights is None and rule in ("equal", "shares", "counts"):  # one sample more where that is worth most
        exact = [(n_units - unlabelled) * share for share in shares]
        lo, hi = np.array([math.floor(size) for size in exact]), np.array([math.ceil(size) for size in exact])
    if abstain:
        arguments["abstain"] = abstain
    if sample_mass is not None:
        arguments["sample_mass"] = sample_mass
    scores = FAMILIES[family](rng, n_rows, n_classes, _some_labelling(rng, n_rows, lo, hi, unlabelled))
    mass, rho = np.array([float(share) for share in shares]) * (1 - unlabelled / n_units), math.inf
    if rule == "kl":
        rho = float(max(spread_of(scores, bool(abstain)), 1e-12) * rng.choice([0.01, 0.1, 1.0, 10.0]))
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


def spread_of(scores: Any, with_zero: bool = False) -> float:
    """How far apart a row's scores typically are."""
    s = float64(scores)
    allowed = np.isfinite(s)
    top, bottom = np.where(allowed, s, -np.inf).max(1), np.where(allowed, s, np.inf).min(1)
    if with_zero:
        top, bottom = np.maximum(top, 0), np.minimum(bottom, 0)
    return float(np.median(np.where(np.isfinite(top), top - bottom, 0.0)))
