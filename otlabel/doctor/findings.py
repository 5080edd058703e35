"""Sentences for the numbers of a diagnosis, and what to do about each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from otlabel.doctor.diagnosis import Diagnosis, Finding, Kind, Severity
from otlabel.solver.problem import Solver
from otlabel.text import percent, with_noun

SHARPNESS = 0.9  # what the suggested epsilon leaves on the best class of a sample, in the mean
MOST_ALIKE = 0.5  # share of duplicate rows from which on labels are mostly a matter of chance
MANY_CHANGES = 0.5  # share of labels from which on equal sizes are probably not what the data has
FAR_WIDER = 10  # times more columns than rows: hardly ever meant
RESCALING = 4.0  # epsilon within this factor of the default is left alone


def findings_of_input(found: Diagnosis) -> list[Finding]:
    """Whether every score is one."""
    findings = []
    if found.n_nan or found.n_plus_inf:
        rows = with_noun(found.n_bad_rows, "row")
        findings.append(
            Finding(
                "problem",
                "finite",
                f"{with_noun(found.n_nan, 'score')} NaN and {with_noun(found.n_plus_inf, 'score')} +inf, in {rows}, "
                "which the rest of this page leaves out.",
                "mend or leave out these rows; assign refuses them. Use -inf to forbid a pair.",
            )
        )
    else:
        findings.append(Finding("ok", "finite", "No score is NaN or +inf."))
    if found.n_closed_rows:
        sentence = f"No class is allowed in {with_noun(found.n_closed_rows, 'row')}: all scores are -inf."
        findings.append(Finding("problem", "forbidden", sentence, "leave these rows out or allow at least one class."))
    if found.n_minus_inf:
        share = found.n_minus_inf / (found.n_rows * found.n_classes)
        sentence = f"Forbidden by a score of -inf: {with_noun(found.n_minus_inf, 'pair')} ({percent(share)})."
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


def findings_of_classes(found: Diagnosis, shares: np.ndarray) -> list[Finding]:
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
        largest = [f"{k} ({percent(found.argmax_sizes[k] / n_rows)})" for k in found.greedy_classes[:3]]
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
        sentence = f"{percent(found.duplicate_share)} of the rows repeat an earlier row; the seed tells them apart."
        findings.append(Finding(severity, "duplicates", sentence, "look for samples that are there twice."))
    else:
        findings.append(Finding("ok", "duplicates", "No two rows are equal."))
    if found.n_constant_rows:
        severity = "problem" if found.n_constant_rows >= MOST_ALIKE * n_rows else "note"
        sentence = f"All classes have the same score in {with_noun(found.n_constant_rows, 'row')}: chance labels them."
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


def findings_of_balance(found: Diagnosis, notes: Sequence[str], n_usable: int) -> list[Finding]:
    """What exact balance costs, and what was noticed on the way."""
    assert found.changed_share is not None  # it was just set
    assert found.score_lost is not None
    where = "" if found.n_assessed == n_usable else f" (from a random sample of {found.n_assessed:,} rows)"
    told = (
        f"Exact balance changes {percent(found.changed_share)} of the labels against the best class and lowers "
        f"the mean score by {found.score_lost:.3g}{where}."
    )
    many = found.changed_share > MANY_CHANGES
    remedy = "see that the classes should be of these sizes; --class-mass sets others." if many else ""
    findings = [Finding("note" if many else "ok", "balance", told, remedy)]
    for note in notes:
        remedy = "give such classes mass 0 with --class-mass if they should stay empty."
        findings.append(Finding("note", "unwanted", f"{note[0].upper()}{note[1:]}.", remedy))
    return findings


def findings_of_epsilon(found: Diagnosis) -> list[Finding]:
    """Which epsilon fits, and whether the usual one does."""
    if found.epsilon is None:
        return [Finding("ok", "epsilon", "Epsilon makes no difference here.")]
    told = (
        f"Suggested epsilon: {found.epsilon:g}. A balanced plan then leaves about {percent(SHARPNESS)} of a sample on "
        "its best class; exact labels do not depend on it."
    )
    fits = 1 / RESCALING <= found.epsilon / Solver.epsilon <= RESCALING
    remedy = "" if fits else f"pass --epsilon {found.epsilon:g} where soft labels or the plan matter."
    return [Finding("ok" if fits else "note", "epsilon", told, remedy)]
