"""How much each class may take: what a user says, and the one rule on K numbers that the solver makes of it.

A rule charges for class masses c. Its conjugate is a term of the semi-dual in the potentials g:

    hard bounds    charge 0 for lo <= c <= hi, else infinite      term -(lo max(g, 0) + hi min(g, 0))
    soft           charge rho KL(c | b)                           term rho b (exp(-g / rho) - 1)

and minus the term's gradient is the mass that the class asks for. Exact masses are bounds with lo = hi = b.
Source: Chizat, Peyre, Schmitzer, Vialard, "Scaling algorithms for unbalanced optimal transport problems",
Mathematics of Computation 87 (2018), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from otlabel.errors import InfeasibleError, InvalidMassError

MASS_TOLERANCE = 1e-6  # how far from 1 the sum of shares may be: float32 rounding of a thousand classes
MASS_UNITS = 1 << 40  # whole numbers that stand for real sample masses: exact labels move units
LEAST_RHO = 1e-200
LEVEL_STEPS = 50  # of Newton's; rounding ends it after a handful
MOST_WHOLE_TOLERANCE = 1e-3  # absolute: far below the half that would round anything
ONE_SAMPLE = "write 1.0 for all samples, a float, or both as integers for sizes"
SUM_ROUNDING = 1e-12  # what adding up shares may leave over; a unit too many of fewer than 1e12 is more
WHOLE_TOLERANCE = 1e-9  # relative: a share times N this near to a whole number was meant to be it


def one_number(given: Any, name: str) -> float:
    """A setting as a float, of whatever kind of number it is (one of NumPy's, a tensor of one), or ValueError."""
    try:
        if isinstance(given, (str, bytes)) or getattr(given, "ndim", False):
            raise TypeError
        return float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = "" if given is None else f", of type {type(given).__name__}"
        raise ValueError(f"{name} is {given!r:.60}{kind}; pass one number") from None


@dataclass(frozen=True)
class Exact:
    """Every class takes exactly its mass b: charge 0 at c = b and infinite elsewhere, term -<b, g>.

    Source: Asano, Rupprecht, Vedaldi, "Self-labelling via simultaneous clustering and representation learning",
    ICLR 2020, section 3.1 (the transport polytope).
    """


@dataclass(frozen=True)
class KL:
    """Prefer the masses b and pay for leaving them: charge rho KL(c | b) = rho sum_k c_k log(c_k / b_k) - c_k + b_k.

    Args:
        rho: price, in the units of the scores. Towards infinity it is `Exact`, towards 0 every class takes what it
            likes. At the optimum c_k = b_k exp(-g_k / rho).

    Source: Chizat, Peyre, Schmitzer, Vialard, "Scaling algorithms for unbalanced optimal transport problems",
    Mathematics of Computation 87 (2018).
    """

    rho: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", one_number(self.rho, "rho"))
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"rho is {self.rho}; it must be a positive number (Exact() stands for infinity)")
        if self.rho < LEAST_RHO:
            raise ValueError(f"rho is {self.rho}; it must be at least {LEAST_RHO:g} (Range() stands for 0)")


@dataclass(frozen=True, eq=False)
class Range:
    """Every class takes between lo and hi, without a charge in between, so that g_k is 0 unless a limit binds.

    Args:
        lo: least share (floats, up to 1) or size (integers); a number, or (K,).
        hi: largest share or size, likewise. Where lo = hi the class is exact.
    """

    lo: Any = 0.0
    hi: Any = 1.0

    @property
    def hi_is_one_sample(self) -> bool:
        """Whether hi is 1 as an integer, which may have been meant as all samples."""
        given = np.asarray(self.hi)
        return given.dtype.kind in "iu" and bool((given == 1).all())


@dataclass(frozen=True, eq=False)
class Rule:
    """What the solver needs to know of all classes; every array is (K,) float64, masses are shares."""

    mass: np.ndarray  # b, what a soft class prefers
    lo: np.ndarray
    hi: np.ndarray
    rho: np.ndarray  # inf where the bounds are hard
    exact: np.ndarray  # bool: lo = hi
    log_mass: np.ndarray  # log b where the plan is regularised relative to b, else 0
    sizes: np.ndarray | None = None  # int64, of exact classes: where masses were changed after they became sizes
    most: np.ndarray | None = None  # int64, likewise: where sizes are the fewest units, and these the most

    @property
    def wanted(self) -> np.ndarray:
        """Which classes may take anything."""
        return (self.hi > 0) & (self.mass > 0)

    @property
    def ranged(self) -> np.ndarray:
        """Which classes have hard bounds with room between them."""
        return ~self.exact & np.isinf(self.rho)

    @property
    def shift_free(self) -> bool:
        """Whether a constant added to all potentials changes nothing."""
        return bool(self.exact.all())

    def term(self, potentials: np.ndarray) -> float:
        """The sum of the classes' terms of the semi-dual."""
        wanted = self.wanted
        g, rho = potentials[wanted], self.rho[wanted]
        hard = -(self.lo[wanted] * np.maximum(g, 0) + self.hi[wanted] * np.minimum(g, 0))
        with np.errstate(over="ignore", invalid="ignore"):
            soft = rho * self.mass[wanted] * np.expm1(-g / rho)
        return float(np.where(np.isinf(rho), hard, soft).sum())

    def demand(self, potentials: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """The masses that classes ask for; one that asks for nothing in particular is content with what it takes."""
        hard = np.where(potentials > 0, self.lo, np.where(potentials < 0, self.hi, np.clip(taken, self.lo, self.hi)))
        with np.errstate(over="ignore", invalid="ignore"):
            soft = self.mass * np.exp(-potentials / self.rho)
        return np.where(self.wanted, np.where(np.isinf(self.rho), hard, soft), 0.0)

    def best_shift(self, potentials: np.ndarray, total: float, row_exponent: float) -> float:
        """The constant t that is best added to all potentials: classes then ask for what rows take in all.

        That is `total` now and total * exp(row_exponent * t) then. What is asked for too much, or taken, grows with t,
        with a jump where the potential of a ranged class passes zero.
        """
        wanted = self.wanted
        ranged, soft = wanted & self.ranged, wanted & np.isfinite(self.rho)
        exact = float(self.mass[wanted & self.exact].sum())
        if not (ranged.any() or soft.any() or row_exponent):
            return 0.0
        order = np.argsort(-potentials[ranged])
        jumps = -potentials[ranged][order]
        fixed = np.append(0.0, np.cumsum((self.lo - self.hi)[ranged][order])) + self.hi[ranged].sum() + exact
        log_soft, rho = np.log(self.mass[soft]) - potentials[soft] / self.rho[soft], self.rho[soft]
        with np.errstate(divide="ignore"):
            log_total, log_fixed = math.log(total), np.log(np.maximum(fixed, 0.0))

        def excess(t: float, passed: int) -> tuple[float, float]:
            """What is taken over what is asked for, in logarithms, and its slope: rising, and bent down only."""
            asked = np.append(log_fixed[passed], log_soft - t / rho)
            log_asked = float(np.logaddexp.reduce(asked))
            slope = row_exponent + float((np.exp(asked[1:] - log_asked) / rho).sum()) if len(rho) else row_exponent
            return log_total + row_exponent * t - log_asked, slope

        low, high = 0, len(jumps)  # the first jump after which too much is taken
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if excess(jumps[middle], middle + 1)[0] >= 0 else (middle + 1, high)
        if low < len(jumps) and excess(jumps[low], low)[0] <= 0:
            return float(jumps[low])
        if not (soft.any() or row_exponent):
            return 0.0  # bounds that do not add up, which unit_bounds tells of
        # Where any one of them alone asks for all that is taken, too little is; from there Newton rises to the root.
        starts = (log_soft - log_total) / (row_exponent + 1 / rho)
        if row_exponent:
            starts = np.append(starts, (log_fixed[low] - log_total) / row_exponent)
        t = float(starts.max(initial=jumps[low - 1] if low else -math.inf))
        for _ in range(LEVEL_STEPS):
            value, slope = excess(t, low)
            if not value < 0:
                break
            t -= value / slope
        return t

    def curvature(self, potentials: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Second derivative of each class's term."""
        return self.demand(potentials, taken) / self.rho

    def step(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Potentials after a step, which may bring those of ranged classes to zero but not beyond in one go."""
        crossed = self.ranged & (np.sign(before) * np.sign(after) < 0)
        return np.where(crossed, 0.0, after)

    def with_units(self, n_units: int) -> Rule:
        """The rule with bounds that whole units can meet."""
        sizes, most = self.unit_bounds(n_units)
        hard = np.isinf(self.rho)
        lo, hi = np.where(hard, sizes / n_units, self.lo), np.where(hard, most / n_units, self.hi)
        return replace(self, lo=lo, hi=hi, exact=hard & (lo == hi), sizes=sizes, most=None)

    def with_free_remainder(self, n_units: int) -> Rule:
        """The rule, all of whose classes are exact, with sizes that are the floor or the ceiling of N b; or as it is.

        Rows being exact as well, as many take the ceiling as units remain: which ones is part of the problem.
        """
        free = free_sizes(self.lo, n_units) if self.exact.all() else None
        return self if free is None else replace(self, sizes=free[0], most=free[1])

    def unit_bounds(
        self, n_units: int, *, weighted: bool = False, what: str = "samples"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fewest and most whole units of each class; raises InfeasibleError where they leave no way to share out all.

        Exact masses become sizes together, by the largest remainder, unless this is free (`with_free_remainder`);
        bounds are rounded inwards one by one, but outwards where units stand for real masses. Where samples are
        weighted, units are parts of their mass, and errors tell shares of it; else `what` they are.
        """
        lo, hi = _near_whole(self.lo * n_units), _near_whole(np.minimum(self.hi, 1.0) * n_units)
        if n_units == MASS_UNITS:  # stand for real masses: a unit is less than the rounding of these
            lo, hi = np.floor(lo).astype(np.int64), np.ceil(hi).astype(np.int64)
        else:
            lo, hi = np.ceil(lo).astype(np.int64), np.floor(hi).astype(np.int64)
        if self.exact.any():
            sizes = class_sizes(self.lo, n_units, self.exact) if self.sizes is None else self.sizes[self.exact]
            lo[self.exact], hi[self.exact] = sizes, sizes if self.most is None else self.most[self.exact]

        def told(units: float) -> str:
            return f"{units / n_units:.6g}" if weighted else counted(units)

        of_all = "of the sample mass of 1" if weighted else f"of {n_units} {what}"
        crossed = np.flatnonzero(lo > hi)
        if len(crossed):
            k = crossed[0]
            raise InfeasibleError(
                f"no whole size of class {k} lies between {told(self.lo[k] * n_units)} and "
                f"{told(self.hi[k] * n_units)} {of_all} ({len(crossed)} such classes); widen the range"
            )
        too_many = int(lo.sum()) > n_units
        asked = int(lo.sum() if too_many else hi.sum())
        if too_many or asked < n_units:
            least, bounds, name = ("least", self.lo, "lo") if too_many else ("most", np.minimum(self.hi, 1.0), "hi")
            off = f"{told(abs(asked - n_units))} too {'many' if too_many else 'few'}"
            remedy = "widen the range"
            rounded = np.flatnonzero((lo if too_many else hi) != bounds * n_units)
            enough = bounds.sum() <= 1 if too_many else bounds.sum() >= 1
            if len(rounded) and enough:
                k = rounded[0]
                whole = (lo if too_many else hi)[k]
                remedy += (
                    f" (shares are rounded inwards to whole samples: {name} of class {k} is "
                    f"{counted(bounds[k] * n_units)} of them, so {whole}), or take "
                    'rounding="argmax", which goes by shares'
                )
            if 0 < asked < n_units and what == "samples":
                remedy += f", or leave {told(n_units - asked)} unlabelled by abstain={(n_units - asked) / n_units!r}"
            raise InfeasibleError(f"the classes' bounds ask for at {least} {told(asked)}, {off}, {of_all}; {remedy}")
        return lo, hi

    def check_shares(self, *, of_all: bool, what: str = "samples") -> None:
        """The same where masses need not be whole, nor even sum to 1 unless they are to be those `of_all` samples."""
        if not self.wanted.any():
            raise InfeasibleError("no class may take anything: all masses or bounds are 0; widen the range")
        if not of_all:
            return
        lo, hi = float(self.lo.sum()), float(np.minimum(self.hi, 1.0).sum())
        if lo > 1 + MASS_TOLERANCE:
            raise InfeasibleError(f"the classes' bounds ask for at least {lo:.6g} of all {what}; widen the range")
        if hi < 1 - MASS_TOLERANCE:
            remedy = f", or leave the rest unlabelled by abstain={1 - hi!r}" if what == "samples" else ""
            raise InfeasibleError(
                f"the classes' bounds ask for at most {hi:.6g} of all {what}; widen the range{remedy}"
            )

    def without(self, closed: np.ndarray, sizes: np.ndarray, n_classes: int) -> Rule:
        """The rule where some classes (bool) turn out to be allowed to nobody; other exact ones share out their mass.

        `sizes` (K,) are those that exact classes have all the same. Staying unlabelled, after the classes, is no other.
        """
        shared = self.exact & ~closed & (np.arange(len(closed)) < n_classes)
        lost, left = float(self.lo[self.exact & closed].sum()), float(self.lo[shared].sum())
        more = np.where(shared, 1 + lost / left, 1.0) if lost and left else np.ones(len(self.lo))
        hi = np.where(closed, 0.0, self.hi * more)
        most = None if self.most is None else np.where(closed, 0, self.most)
        kept = sizes if lost else self.sizes
        return replace(self, mass=self.mass * more, lo=self.lo * more, hi=hi, sizes=kept, most=most)

    def charge(self, taken: np.ndarray) -> float:
        """What soft classes that may take anything are charged for these shares."""
        soft = np.isfinite(self.rho) & self.wanted
        return float((self.rho[soft] * _divergence(taken[soft], self.mass[soft])).sum())

    def prices(self, classes: np.ndarray, levels: np.ndarray, n_units: int, widths: np.ndarray | int = 1) -> np.ndarray:
        """What a unit of each of the classes costs, in units of the scores: its charge times N.

        That is the `levels`-th unit, or the mean of the `widths` ones that end with it.
        """
        mass = self.mass[classes]
        more, less = _divergence(levels / n_units, mass), _divergence((levels - widths) / n_units, mass)
        return np.where(np.isinf(self.rho[classes]), 0.0, self.rho[classes] * (more - less) * (n_units / widths))

    def places_below(self, classes: np.ndarray, limits: np.ndarray, n_units: int) -> np.ndarray:
        """How many units of each of some soft classes cost no more than its limit."""
        with np.errstate(over="ignore"):
            near = np.minimum(n_units * self.mass[classes] * np.exp(limits / self.rho[classes]) + 0.5, n_units)
        places = np.floor(near).astype(np.int64)
        for _ in range(2):  # the guess takes a difference for a derivative
            places -= (places > 0) & (self.prices(classes, np.maximum(places, 1), n_units) > limits)
        for _ in range(2):
            room = places < n_units
            places += room & (self.prices(classes, np.minimum(places + 1, n_units), n_units) <= limits)
        return places

    def shortfall(self, potentials: np.ndarray, sizes: np.ndarray, n_units: int) -> np.ndarray:
        """max_n (-g_k n - N charge_k(n)) + g_k size_k + N charge_k(size_k) of each class, (K,).

        n are the whole sizes that a class may have. So no class adds less than zero, but for hard ones whose size is
        not within their bounds; and one with the best size for its potential adds nothing, not even rounding.
        """
        lo, hi = self.unit_bounds(n_units)
        wanted = self.wanted & (hi > 0)
        hard, soft = wanted & np.isinf(self.rho), wanted & np.isfinite(self.rho)
        result = np.zeros(len(sizes))
        result[hard] = (sizes[hard] - np.where(potentials > 0, lo, hi)[hard]) * potentials[hard]
        g, rho, mass, own = potentials[soft], self.rho[soft], self.mass[soft], sizes[soft]
        with np.errstate(over="ignore"):
            near = np.minimum(n_units * mass * np.exp(-g / rho), n_units)  # where the derivative is zero
        charge, short = _divergence(own / n_units, mass), np.zeros(len(g))
        for offset in (-1, 0, 1, 2):
            n = np.clip(np.floor(near) + offset, 0, n_units)
            short = np.maximum(short, g * (own - n) + rho * (charge - _divergence(n / n_units, mass)) * n_units)
        result[soft] = short
        return result


def rule_of(classes: Exact | KL | Range, mass: np.ndarray, n_rows: int, labels_per_sample: int = 1) -> Rule:
    """What the solver makes of a user's rule and class masses: shares of all samples, less those left unlabelled.

    Where samples take several classes each, they are shares of all places, of which a class has one a sample at most.
    """
    n_classes = len(mass)
    lo, hi, rho = mass, mass, np.full(n_classes, np.inf)
    if isinstance(classes, KL):
        most = 1.0 / labels_per_sample
        lo, hi, rho = np.zeros(n_classes), np.where(mass > 0, most, 0.0), np.full(n_classes, float(classes.rho))
    elif isinstance(classes, Range):
        lo, hi = (
            _shares(bound, name, n_rows, n_classes) / labels_per_sample
            for bound, name in ((classes.lo, "lo"), (classes.hi, "hi"))
        )
        if (lo > hi).any() and classes.hi_is_one_sample and np.asarray(classes.lo).dtype.kind == "f":
            raise InvalidMassError(f"Range: hi is the integer 1, which is one sample, but lo is a share; {ONE_SAMPLE}")
        if (lo == hi).all() and abs(lo.sum() - 1) <= MASS_TOLERANCE and np.asarray(classes.lo).dtype.kind == "f":
            lo = hi = lo / lo.sum()  # shares that sum to 1 but for rounding; sizes are the user's word
        crossed = np.flatnonzero(lo > hi)
        if len(crossed):
            k = crossed[0]
            low, high = lo[k] * labels_per_sample, hi[k] * labels_per_sample
            raise InvalidMassError(f"Range: lo is above hi for class {k}: {low:.6g} > {high:.6g}")
        unwanted = np.flatnonzero((mass == 0) & (lo > 0))
        if len(unwanted):
            raise InvalidMassError(f"Range: lo is {lo[unwanted[0]]:.6g} for class {unwanted[0]}, whose class_mass is 0")
        hi = np.where(mass > 0, hi, 0.0)
    elif not isinstance(classes, Exact):
        raise TypeError(f"classes is {classes!r}; pass Exact(), KL(rho) or Range(lo, hi)")
    relative = not isinstance(classes, Exact)
    with np.errstate(divide="ignore"):
        log_mass = np.log(mass) if relative else np.zeros(n_classes)
    return Rule(mass, lo, hi, rho, np.isinf(rho) & (lo == hi), log_mass)


def with_abstention(rule: Rule, share: float) -> Rule:
    """The rule, whose masses leave room for it, with one more class at the end that takes exactly that share."""
    relative = bool(rule.log_mass.any())
    return Rule(
        np.append(rule.mass, share),
        np.append(rule.lo, share),
        np.append(rule.hi, share),
        np.append(rule.rho, np.inf),
        np.append(rule.exact, True).astype(bool),
        np.append(rule.log_mass, math.log(share) if relative else 0.0),
    )


def _shares(bound: Any, name: str, n_rows: int, n_classes: int) -> np.ndarray:
    """A bound of Range as (K,) shares."""
    given = np.asarray(bound)
    if given.dtype.kind not in "iuf" or given.shape not in ((), (n_classes,)):
        raise InvalidMassError(
            f"Range: {name} has shape {given.shape} of {given.dtype}; pass a number or {n_classes} of them, shares "
            "(floats) or sizes (integers)"
        )
    shares = np.broadcast_to(given / n_rows if given.dtype.kind in "iu" else given, (n_classes,)).astype(np.float64)
    bad = np.flatnonzero(~(shares >= 0) | ((shares > 1) & (given.dtype.kind == "f") & np.isfinite(shares)))
    if len(bad):
        raise InvalidMassError(
            f"Range: {name} is {shares[bad[0]]:.6g} for class {bad[0]}; shares are between 0 and 1, sizes are integers"
        )
    return np.minimum(shares, 1.0) if name == "hi" else shares


def _divergence(taken: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """c log(c / b) - c + b of each class."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(taken > 0, taken * np.log(taken / mass), 0.0) - taken + mass


def counted(units: float) -> str:
    """A number of samples for a message: a whole one in full, however large."""
    return str(int(units)) if float(units).is_integer() else f"{units:.10g}"


def _near_whole(numbers: np.ndarray) -> np.ndarray:
    """Undo the rounding of a whole number that was divided by N and multiplied again."""
    whole = np.rint(numbers)
    near = np.abs(numbers - whole) <= np.clip(WHOLE_TOLERANCE * whole, WHOLE_TOLERANCE, MOST_WHOLE_TOLERANCE)
    return np.where(near, whole, numbers)


def class_shares(class_mass: np.ndarray | None, n_rows: int, n_classes: int, labels_per_sample: int = 1) -> np.ndarray:
    """Class masses as float64 shares of all labels, which sum to 1, from shares, sizes or nothing."""
    if class_mass is None:
        return np.full(n_classes, 1.0 / n_classes)
    if class_mass.shape != (n_classes,):
        hint = ""
        if class_mass.shape == (n_rows,):
            hint = f": one for each of the {n_rows} rows; is the matrix transposed? did you mean scores.T?"
        raise InvalidMassError(f"class_mass has shape {class_mass.shape}, but scores have {n_classes} classes{hint}")
    if class_mass.dtype.kind not in "iuf":
        raise InvalidMassError(f"class_mass has dtype {class_mass.dtype}; pass shares (floats) or sizes (integers)")
    mass = class_mass.astype(np.float64)
    if not np.isfinite(mass).all() or (mass < 0).any():
        worst = int(np.argmax(~np.isfinite(mass) | (mass < 0)))
        raise InvalidMassError(f"class_mass[{worst}] is {mass[worst]}; masses must be finite and not negative")
    total = float(mass.sum())
    if abs(total - 1) <= MASS_TOLERANCE:
        return mass / total
    if total == labels_per_sample * n_rows and (mass == np.floor(mass)).all():
        return mass / (labels_per_sample * n_rows)
    what = "samples" if labels_per_sample == 1 else f"samples times {labels_per_sample} labels"
    raise InvalidMassError(
        f"class_mass sums to {total:.9g}; pass shares that sum to 1 (class_mass / class_mass.sum()) or whole sizes "
        f"that sum to the {n_rows} {what}"
    )


def free_sizes(shares: np.ndarray, n_units: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Floor and ceiling of N b, between which class sizes are free; None where there is only one way to choose them."""
    wanted = _near_whole(shares * n_units)
    fewest, most = np.floor(wanted).astype(np.int64), np.ceil(wanted).astype(np.int64)
    return (fewest, most) if int(fewest.sum()) < n_units < int(most.sum()) else None


def class_sizes(shares: np.ndarray, n_rows: int, among: np.ndarray | None = None) -> np.ndarray:
    """Whole class sizes: the floor of N b, then one more for the largest remainders until their sum is N.

    `among` (bool) asks for some of the classes only: their sizes then sum to what is nearest to N times their shares.
    """
    everything = among is None or (bool(among.all()) and abs(float(shares.sum()) - 1) <= SUM_ROUNDING)
    shares = shares if among is None else shares[among]
    total = n_rows if everything else int(np.rint(shares.sum() * n_rows))
    wanted = _near_whole(shares * n_rows)
    sizes = np.floor(wanted).astype(np.int64)
    remainder = np.where(shares > 0, np.round(wanted - sizes, 9), -1.0)
    order = np.argsort(-remainder, kind="stable")
    missing = int(total - sizes.sum())
    if missing >= 0:
        sizes[order[:missing]] += 1
    else:  # many were taken for the whole number just above
        sizes[np.argsort(-sizes, kind="stable")[:-missing]] -= 1
    return sizes
