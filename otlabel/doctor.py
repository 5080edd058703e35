"""A look at scores before any label is made: are they usable, what will balance do to them, which epsilon fits.

Two passes over all rows; what needs more than that is done on a stated random sample of the rows.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from otlabel import sweep
from otlabel.assign import sinkhorn_assign
from otlabel.errors import InfeasibleError, MissingPackageError, OtlabelWarning
from otlabel.interrupts import interruptible
from otlabel.marginals import class_sizes
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment
from otlabel.sources import cached, class_mass_of, draw_rows, open_scores
from otlabel.validate import check_mass

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Severity = Literal["ok", "note", "problem"]
Kind = Literal["probabilities", "log-probabilities", "similarities", "non-positive", "non-negative", "logits"]

ASSESSED_ENTRIES = 100_000_000  # scores up to which all rows are balanced to see what it costs: a few seconds
LOOK_ENTRIES = 2_000_000  # scores that a closer look takes
LOOK_ROWS = 4096  # and no more rows than these
SEED = 0  # of both samples, so that two looks at one matrix say the same
SHARPNESS = 0.9  # what the suggested epsilon leaves on the best class of a sample, in the mean
GREEDY = 4.0  # times its mass: a class that is best for so many samples swallows others
MOST_ALIKE = 0.5  # share of duplicate rows from which on labels are mostly a matter of chance
MANY_CHANGES = 0.5  # share of labels from which on equal sizes are probably not what the data has
FAR_WIDER = 10  # times more columns than rows: hardly ever meant
RESCALING = 4.0  # epsilon within this factor of the default is left alone
DEFAULT_EPSILON = 0.04


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed, and what to do about it; nothing where all is well."""

    severity: Severity
    topic: str
    sentence: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What a look at a score matrix shows, as plain numbers; None where the scores do not let it be told."""

    n_rows: int
    n_classes: int
    dtype: str
    n_nan: int
    n_plus_inf: int
    n_minus_inf: int  # forbidden pairs
    n_bad_rows: int  # rows with NaN or +inf; left out of everything below
    n_closed_rows: int  # rows where every pair is forbidden; left out too
    duplicate_share: float = 0.0  # share of rows that repeat an earlier one
    n_constant_rows: int = 0  # rows whose scores are all equal
    kind: Kind | None = None  # what the scores look like
    transposed: bool = False  # whether the columns look like what rows should be
    spread: float | None = None  # median over rows of largest minus smallest finite score
    margin_low: float | None = None  # best minus second best score of a row: the 10 % quantile over rows,
    margin_median: float | None = None  # the median
    margin_high: float | None = None  # and the 90 % quantile
    argmax_sizes: tuple[int, ...] = ()  # how many samples each class is the best of
    balanced_sizes: tuple[int, ...] = ()  # how many it is to get
    dead_classes: tuple[int, ...] = ()  # to get samples, but the best of none
    greedy_classes: tuple[int, ...] = ()  # the best of far more samples than they are to get
    effective_classes: float | None = (
        None  # exp of the entropy of the argmax sizes: K if even, 1 if one class takes all
    )
    epsilon: float | None = None  # suggested: leaves nine tenths of a sample on its best class, in the mean
    changed_share: float | None = None  # share of the labels that exact balance changes, against the argmax
    score_lost: float | None = None  # mean score that it costs
    n_assessed: int = 0  # rows that the last three were found on: all usable ones, or a random sample
    findings: tuple[Finding, ...] = ()

    @property
    def severity(self) -> Severity:
        """The worst of all findings."""
        found = {finding.severity for finding in self.findings}
        return "problem" if "problem" in found else "note" if "note" in found else "ok"

    def summary(self) -> str:
        """The findings in plain sentences, at most 80 columns."""
        lines = [f"scores   {self.n_rows:,} samples x {self.n_classes:,} classes, {self.dtype}"]
        for finding in self.findings:
            lines.append(f"{finding.severity:<8} {finding.sentence}")
            if finding.remedy:
                lines.append(f"{'':<8} To do: {finding.remedy}")
        return "\n".join(textwrap.fill(line, 80, subsequent_indent=" " * 9) for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON: numbers, strings, lists and None."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return values | {"severity": self.severity}


@dataclass(frozen=True, eq=False)
class _Usable:
    """The rows that can be looked at, and what the first pass said of every row."""

    rows: np.ndarray  # (R,) int64, sorted
    sampled: np.ndarray  # (S,) int64, sorted: those of them that are in memory
    n_nan: int
    n_plus_inf: int
    n_minus_inf: int
    n_bad_rows: int
    n_closed_rows: int
    inspection: sweep.Inspection


@interruptible
def diagnose(scores: Any, *, class_mass: Any = None) -> Diagnosis:
    """Look at scores without labelling them: usable or not, what balance will change, which epsilon fits.

    The suggested epsilon solves  mean_i max_k softmax_k((s_ik + g_k) / epsilon) = 0.9  at the potentials g of the
    exactly balanced labels: nine tenths of a typical sample stay on its best class and one tenth tells where else it
    might go. It scales with the scores, and constants added to rows or classes do not change it.

    Args:
        scores: (N, K), anything that `sinkhorn_assign` takes. NaN and inf are counted, not refused.
        class_mass: (K,) what each class is to take, as for `sinkhorn_assign`. None: 1/K each.

    Returns:
        Diagnosis with the numbers and the findings made of them; `summary()` for people, `to_dict()` for machines.

    Raises:
        InvalidScoresError: no matrix of real numbers.
        InvalidMassError: class_mass of wrong length, sign or sum.
    """
    opened = open_scores(scores).refined
    n_rows, n_classes = opened.shape
    shares = check_mass(class_mass_of(class_mass, opened), n_rows, n_classes)
    n_sampled = max(LOOK_ROWS, ASSESSED_ENTRIES // n_classes)
    sampled = draw_rows(n_rows, n_sampled, np.random.default_rng(SEED))
    rows = RowSet(cached(opened, 0, sampled))
    usable = _usable_rows(rows, sampled)
    bare = Diagnosis(
        n_rows=n_rows,
        n_classes=n_classes,
        dtype=opened.dtype,
        n_nan=usable.n_nan,
        n_plus_inf=usable.n_plus_inf,
        n_minus_inf=usable.n_minus_inf,
        n_bad_rows=usable.n_bad_rows,
        n_closed_rows=usable.n_closed_rows,
        balanced_sizes=tuple(class_sizes(shares, n_rows).tolist()),
    )
    if not len(usable.rows):
        return replace(bare, findings=tuple(_findings_of_input(bare)))
    looked = _with_looks(bare, rows, usable, shares)
    assessed, findings = _with_assessment(looked, rows, usable, shares)
    everything = [*_findings_of_input(assessed), *_findings_of_classes(assessed, shares), *findings]
    return replace(assessed, findings=tuple(everything))


# ---- looking ----


def _usable_rows(scores: RowSet, sampled: np.ndarray) -> _Usable:
    """The first pass; only where it met NaN or +inf does a second one tell them apart."""
    inspection = sweep.inspect(scores)
    good = np.ones(scores.shape[0], bool)
    n_nan = n_plus_inf = 0
    n_minus_inf = inspection.n_forbidden
    if inspection.n_bad:
        n_minus_inf = 0  # the compiled look, which assumes no NaN, may take one for a forbidden pair
        for (start, stop), values in scores.blocks():
            nan, plus_inf = np.isnan(values), values == np.inf
            n_nan, n_plus_inf = n_nan + int(nan.sum()), n_plus_inf + int(plus_inf.sum())
            n_minus_inf += int((values == -np.inf).sum())
            good[start:stop] = ~(nan | plus_inf).any(1)
    open_ = inspection.tops > -np.inf
    rows = np.flatnonzero(good & open_)
    return _Usable(
        rows=rows,
        sampled=sampled if len(rows) == len(good) else np.intersect1d(sampled, rows),
        n_nan=n_nan,
        n_plus_inf=n_plus_inf,
        n_minus_inf=n_minus_inf,
        n_bad_rows=int((~good).sum()),
        n_closed_rows=int((good & ~open_).sum()),
        inspection=inspection,
    )


def _with_looks(bare: Diagnosis, scores: RowSet, usable: _Usable, shares: np.ndarray) -> Diagnosis:
    """What all rows and a sample of them show without solving anything."""
    rows, inspection = usable.rows, usable.inspection
    labels, _, _ = sweep.label(scores, np.zeros(bare.n_classes))
    sizes = np.bincount(labels[rows], minlength=bare.n_classes)
    # A class may be called greedy at four times its mass, or half way from its mass to everything if that is less.
    greedy = sizes > np.minimum(GREEDY * shares, (shares + 1) / 2) * len(rows)
    taken = sizes[sizes > 0] / len(rows)
    extents = inspection.tops[rows].astype(np.float64) - inspection.bottoms[rows]
    sample = scores.taken(_some(usable.sampled, min(LOOK_ROWS, max(1, LOOK_ENTRIES // bare.n_classes))))
    values = np.concatenate([block for _, block in sample.blocks()]).astype(np.float64)  # (R, K)
    low, median, high = _margins(values)
    return replace(
        bare,
        duplicate_share=1.0 - len(np.unique(inspection.hashes[rows])) / len(rows),
        n_constant_rows=_count_constant(scores, rows[extents == 0], inspection) if bare.n_classes > 1 else 0,
        kind=_kind(values, scores.source.dtype),
        transposed=bare.n_classes > bare.n_rows and _columns_are_distributions(scores),
        spread=float(np.median(extents)),
        margin_low=low,
        margin_median=median,
        margin_high=high,
        argmax_sizes=tuple(sizes.tolist()),
        dead_classes=tuple(np.flatnonzero((sizes == 0) & (shares > 0)).tolist()),
        greedy_classes=tuple(np.flatnonzero(greedy)[np.argsort(-sizes[greedy], kind="stable")].tolist()),
        effective_classes=float(np.exp(-(taken * np.log(taken)).sum())),
    )


def _some(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[draw_rows(len(rows), size, np.random.default_rng(SEED))]


def _margins(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Quantiles of best minus second best, over the rows that have a choice."""
    if values.shape[1] < 2:
        return None, None, None
    second, best = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:].T
    margins = (best - second)[second > -np.inf]
    if not len(margins):
        return None, None, None
    low, median, high = np.quantile(margins, (0.1, 0.5, 0.9))
    return float(low), float(median), float(high)


def _count_constant(scores: RowSet, rows: np.ndarray, inspection: sweep.Inspection) -> int:
    """How many of the rows whose finite scores are all equal forbid nothing."""
    if not inspection.n_forbidden:
        return len(rows)
    free = 0
    for (start, stop), values in scores.blocks():
        members = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if len(members):
            free += int((values[members] > -np.inf).all(1).sum())
    return free


def _kind(values: np.ndarray, dtype: str) -> Kind:
    """What the scores of some rows look like."""
    finite = values[values > -np.inf]
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 1 and _sum_to_one(values.sum(1), dtype):
        return "probabilities"
    if high <= 0 and _sum_to_one(np.exp(values).sum(1), dtype):
        return "log-probabilities"
    if -1.001 <= low < 0 < high <= 1.001:
        return "similarities"
    return "non-positive" if high <= 0 else "non-negative" if low >= 0 else "logits"


def _sum_to_one(sums: np.ndarray, dtype: str) -> bool:
    """Whether all sums are 1 up to what the storage type rounds away."""
    return bool((np.abs(sums - 1) < (1e-3 if dtype in ("float32", "float64") else 5e-2)).all())


def _columns_are_distributions(scores: RowSet) -> bool:
    """Whether every column sums to 1, as it is or exponentiated; for matrices of few rows."""
    plain, exponentiated = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for _, block in scores.blocks():
        values = block.astype(np.float64)
        plain += values.sum(0)
        exponentiated += np.exp(np.minimum(values, 1.0)).sum(0)  # anything above 0 is no logarithm of a probability
    return _sum_to_one(plain, scores.source.dtype) or _sum_to_one(exponentiated, scores.source.dtype)


# ---- assessing ----


def _with_assessment(
    looked: Diagnosis, scores: RowSet, usable: _Usable, shares: np.ndarray
) -> tuple[Diagnosis, list[Finding]]:
    """What exact balance costs and which epsilon fits, from exactly balanced labels of all rows or of a sample."""
    n_affordable = max(1, ASSESSED_ENTRIES // looked.n_classes)
    rows = _some(usable.sampled, n_affordable)
    whole = len(rows) == looked.n_rows
    assessed = scores if whole and scores.source.grain == 1 else scores.taken(rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtlabelWarning)  # what they say is among the findings
            result = sinkhorn_assign(assessed.opened, class_mass=shares, epsilon=_working_epsilon(looked))
    except InfeasibleError as error:
        where = "" if whole else f" (in a random sample of {len(rows):,} rows)"
        remedy = "allow more pairs or change --class-mass."
        # A sample may be short of pairs that all rows together have.
        finding = Finding("problem" if whole else "note", "balance", f"No exact balance: {error}{where}.", remedy)
        return replace(looked, n_assessed=len(rows)), [finding]
    labels, best, _ = sweep.label(assessed, np.zeros(looked.n_classes))
    found = replace(
        looked,
        epsilon=suggest_epsilon(assessed, np.asarray(result.potentials)),
        changed_share=float(np.mean(labels != result.labels)),
        score_lost=max(0.0, float(best.mean()) - result.value),
        n_assessed=len(rows),
    )
    return found, [*_findings_of_balance(found, result, usable), *_findings_of_epsilon(found)]


def _working_epsilon(looked: Diagnosis) -> float:
    """Anything of the scores' own scale: the exact labels do not depend on it, only how soon they are found."""
    scale = looked.margin_median or looked.spread or 1.0
    return max(scale / 10, float(np.finfo(np.float32).tiny))


def suggest_epsilon(scores: RowSet, potentials: np.ndarray) -> float | None:
    """The epsilon that leaves nine tenths of what a hard label would take on a sample's best class, in the mean.

    None where no epsilon changes anything: one class, or rows that are all equal in every class.
    """
    n_rows, n_classes = scores.shape
    sample = scores.taken(_some(np.arange(n_rows), min(LOOK_ROWS, max(1, LOOK_ENTRIES // n_classes))))
    inspection = sweep.inspect(sample)
    scale = float(np.max(inspection.tops.astype(np.float64) - inspection.bottoms))
    wanted = potentials[np.isfinite(potentials)]
    scale = max(scale, float(np.ptp(wanted)) if len(wanted) else 0.0)
    if not scale > 0:
        return None

    def sharpness(epsilon: float) -> float:
        return float(sweep.plan(sample, potentials, epsilon).max(1).mean())

    low, high = math.log(1e-9 * scale), math.log(1e3 * scale)
    # Rows that must be split between tied classes are blurred at any epsilon: then nine tenths of what is possible.
    target = SHARPNESS * sharpness(math.exp(low))
    if sharpness(math.exp(high)) >= target:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sharpness(math.exp(middle)) > target else (low, middle)
    return float(f"{math.exp(low):.2g}")


# ---- telling ----


def _findings_of_input(found: Diagnosis) -> list[Finding]:
    """Whether every score is one."""
    findings = []
    if found.n_nan or found.n_plus_inf:
        rows = _count(found.n_bad_rows, "row")
        findings.append(
            Finding(
                "problem",
                "finite",
                f"{_count(found.n_nan, 'score')} NaN and {_count(found.n_plus_inf, 'score')} +inf, in {rows}, which "
                "the rest of this page leaves out.",
                "mend or leave out these rows; assign refuses them. Use -inf to forbid a pair.",
            )
        )
    else:
        findings.append(Finding("ok", "finite", "No score is NaN or +inf."))
    if found.n_closed_rows:
        sentence = f"No class is allowed in {_count(found.n_closed_rows, 'row')}: all scores are -inf."
        findings.append(Finding("problem", "forbidden", sentence, "leave these rows out or allow at least one class."))
    if found.n_minus_inf:
        share = found.n_minus_inf / (found.n_rows * found.n_classes)
        sentence = f"Forbidden by a score of -inf: {_count(found.n_minus_inf, 'pair')} ({_percent(share)})."
        findings.append(Finding("note", "forbidden", sentence))
    return findings


_KINDS: dict[Kind, tuple[Severity, str, str]] = {
    "probabilities": (
        "problem",
        "Rows are in [0, 1] and sum to 1, like probabilities: their sum says little where their product is meant.",
        "pass the logarithm of them.",
    ),
    "log-probabilities": ("ok", "Rows look like log-probabilities: the exponentials sum to 1.", ""),
    "similarities": ("ok", "Scores look like similarities: all within [-1, 1].", ""),
    "non-positive": ("ok", "No score is above 0: they look like negative distances or costs.", ""),
    "non-negative": (
        "note",
        "No score is below 0. The larger a score the better it is taken to be.",
        "if these are distances or costs, pass their negative.",
    ),
    "logits": (
        "ok",
        "Scores look like logits: as good as log-probabilities, since only differences in a row matter.",
        "",
    ),
}


def _findings_of_classes(found: Diagnosis, shares: np.ndarray) -> list[Finding]:
    """What the scores look like, and which classes they favour."""
    findings = []
    if found.transposed:
        sentence = f"The {found.n_classes:,} columns sum to 1 where the {found.n_rows:,} rows should: transposed?"
        findings.append(
            Finding("problem", "shape", sentence, "pass the transpose: one row a sample, one column a class.")
        )
    elif found.n_classes > found.n_rows:
        wide = found.n_classes >= FAR_WIDER * found.n_rows
        sentence = f"There are fewer samples ({found.n_rows:,}) than classes ({found.n_classes:,}): sizes are 0 or 1."
        remedy = "if rows are the classes, pass the transpose."
        findings.append(Finding("problem" if wide else "note", "shape", sentence, remedy))
    if found.kind is not None and not found.transposed:
        severity, sentence, remedy = _KINDS[found.kind]
        findings.append(Finding(severity, "kind", sentence, remedy))
    findings += _findings_of_rows(found)
    findings.append(_finding_of_scale(found))
    usual = math.exp(-float((shares[shares > 0] * np.log(shares[shares > 0])).sum()))
    n_wanted = int((shares > 0).sum())
    assert found.effective_classes is not None  # rows were looked at
    n_rows = sum(found.argmax_sizes)
    told = (
        f"The best class alone uses {found.effective_classes:.3g} classes in effect ({usual:.3g} when balanced): "
        + (f"{len(found.dead_classes):,} of {n_wanted:,} get no sample" if found.dead_classes else "each gets some")
    )
    if found.greedy_classes:
        largest = [f"{k} ({_percent(found.argmax_sizes[k] / n_rows)})" for k in found.greedy_classes[:3]]
        told += f", {len(found.greedy_classes):,} far more than their share: {', '.join(largest)}"
        told += ", ..." if len(found.greedy_classes) > 3 else ""
    uneven = bool(found.dead_classes or found.greedy_classes or found.effective_classes < usual / 2)
    remedy = "balance the classes; that is what assign is for." if uneven else ""
    findings.append(Finding("note" if uneven else "ok", "classes", f"{told}.", remedy))
    return findings


def _findings_of_rows(found: Diagnosis) -> list[Finding]:
    findings = []
    n_rows = sum(found.argmax_sizes)
    if found.duplicate_share > 0:
        severity: Severity = "problem" if found.duplicate_share >= MOST_ALIKE else "note"
        sentence = f"{_percent(found.duplicate_share)} of the rows repeat an earlier row; the seed tells them apart."
        findings.append(Finding(severity, "duplicates", sentence, "look for samples that are there twice."))
    else:
        findings.append(Finding("ok", "duplicates", "No two rows are equal."))
    if found.n_constant_rows:
        severity = "problem" if found.n_constant_rows >= MOST_ALIKE * n_rows else "note"
        sentence = f"All classes have the same score in {_count(found.n_constant_rows, 'row')}: chance labels them."
        findings.append(
            Finding(severity, "constant", sentence, "leave them out, or see why they look alike to the model.")
        )
    return findings


def _finding_of_scale(found: Diagnosis) -> Finding:
    told = f"A row's scores lie {found.spread:.3g} apart in the median"
    if found.margin_median is not None:
        told += (
            f"; the best is ahead of the second by {found.margin_median:.2g} "
            f"(10 to 90 % of rows: {found.margin_low:.2g} to {found.margin_high:.2g})"
        )
    return Finding("ok", "scale", f"{told}.")


def _findings_of_balance(found: Diagnosis, result: Assignment, usable: _Usable) -> list[Finding]:
    assert found.changed_share is not None  # it was just set
    assert found.score_lost is not None
    where = "" if found.n_assessed == len(usable.rows) else f" (from a random sample of {found.n_assessed:,} rows)"
    told = (
        f"Exact balance changes {_percent(found.changed_share)} of the labels against the best class and lowers "
        f"the mean score by {found.score_lost:.3g}{where}."
    )
    many = found.changed_share > MANY_CHANGES
    remedy = "see that the classes should be of these sizes; --class-mass sets others." if many else ""
    findings = [Finding("note" if many else "ok", "balance", told, remedy)]
    for note in result.notes:
        remedy = "give such classes mass 0 with --class-mass if they should stay empty."
        findings.append(Finding("note", "unwanted", f"{note[0].upper()}{note[1:]}.", remedy))
    return findings


def _findings_of_epsilon(found: Diagnosis) -> list[Finding]:
    if found.epsilon is None:
        return [Finding("ok", "epsilon", "Epsilon makes no difference here.")]
    told = (
        f"Suggested epsilon: {found.epsilon:g}. A balanced plan then leaves about {_percent(SHARPNESS)} of a sample on "
        "its best class; exact labels do not depend on it."
    )
    fits = 1 / RESCALING <= found.epsilon / DEFAULT_EPSILON <= RESCALING
    remedy = "" if fits else f"pass --epsilon {found.epsilon:g} where soft labels or the plan matter."
    return [Finding("ok" if fits else "note", "epsilon", told, remedy)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}{'es' if what.endswith('s') else 's'}"


def _percent(share: float) -> str:
    """A share in words that never call something nothing, or a part the whole."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.3g} %"


# ---- picture ----

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
BEFORE, AFTER = "#e0a03b", "#1f8a84"
STEEP = 10.0  # times the largest balanced class: from there on a linear scale hides the small ones
FEW_CLASSES = 60  # up to here each class gets a bar of its own


def draw(diagnosis: Diagnosis) -> Figure:
    """Class sizes by the best class alone and after balance, each from large to small.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ValueError: no row of the scores is usable.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not diagnosis.argmax_sizes:
        raise ValueError("no row of the scores is usable: there are no class sizes to draw")
    before = np.sort(diagnosis.argmax_sizes)[::-1]
    after = np.sort(diagnosis.balanced_sizes)[::-1]
    figure = Figure(figsize=(9, 4.8), facecolor=PAPER)
    figure.text(0.075, 0.925, "Class sizes before and after balance", size=16, weight="bold", color=INK)
    empty = int((before == 0).sum())
    told = f"best class alone: {_range(before)}" + (f", {_count(empty, 'class')} empty" if empty else "")
    for height, hue, text in ((0.86, BEFORE, told), (0.81, AFTER, f"balanced: {_range(after)}")):
        figure.text(0.075, height - 0.002, "\N{BLACK SQUARE}", size=13, color=hue)
        figure.text(0.097, height, text, size=10.5, color=INK)
    axes = figure.add_axes((0.075, 0.125, 0.895, 0.635))
    _draw_sizes(axes, before, after)
    return figure


def _range(sizes: np.ndarray) -> str:
    low, high = sizes.min(), sizes.max()
    return f"{low:,} samples each" if low == high else f"{low:,} to {high:,} samples"


def _draw_sizes(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    n_classes = len(before)
    edges = np.arange(n_classes + 1) + 0.5
    if n_classes <= FEW_CLASSES:
        axes.bar(np.arange(1, n_classes + 1), before, width=0.82, color=BEFORE)
    else:
        axes.stairs(before, edges, fill=True, color=BEFORE)
    axes.stairs(after, edges, color=AFTER, linewidth=2.2, baseline=None)
    axes.set_xlim(edges[0] - 0.01 * n_classes, edges[-1] + 0.01 * n_classes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steep = before[0] > STEEP * after[0]
    if steep:
        axes.set_yscale("log")
        axes.set_ylim(0.7, 1.5 * before[0])
    else:
        axes.set_ylim(0, 1.06 * max(before[0], after[0]))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    axes.set_xlabel("classes, from large to small before as after", color=FAINT, size=10)
    axes.set_ylabel("samples (log scale)" if steep else "samples", color=FAINT, size=10)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def require_matplotlib() -> None:
    """Raise now, not after the work, where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("matplotlib", "report") from error
