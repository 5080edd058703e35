"""What was found: numbers, and the findings made of them in plain sentences."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from otlabel.pictures import summary_html

Severity = Literal["ok", "note", "problem"]
Kind = Literal["probabilities", "log-probabilities", "similarities", "non-positive", "non-negative", "logits"]


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

    def _repr_html_(self) -> str:
        return summary_html(self.summary())

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON: numbers, strings, lists and None."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return values | {"severity": self.severity}
