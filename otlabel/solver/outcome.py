"""How a solve ends, and what proves its labels: Status and Certificate."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from otlabel.pictures import summary_html
from otlabel.sources import as_array
from otlabel.text import range_text

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeVar  # which type checkers know without it being installed

    ArrayT = TypeVar("ArrayT", bound=np.ndarray | torch.Tensor, default=Any)
else:
    from typing import TypeVar

    ArrayT = TypeVar("ArrayT")  # torch.Tensor where the scores are one (or a list of them), else np.ndarray


class Status(enum.Enum):
    """How the entropic solve ended; `remedy` says what to change where something should be."""

    CONVERGED = "converged"
    MAX_SWEEPS = "max_sweeps"
    STALLED = "stalled"
    NOT_RUN = "not_run"

    @property
    def remedy(self) -> str:
        """What to do about it, in one sentence."""
        return _REMEDIES[self]


_REMEDIES = {
    Status.CONVERGED: "Nothing to do.",
    Status.MAX_SWEEPS: "Raise max_sweeps, tol or epsilon; method='auto' needs far fewer sweeps than 'sinkhorn'.",
    Status.STALLED: "More passes bring little: raise tol or epsilon, pass the scores as float64, or try for all of "
    "max_sweeps with rounding='argmax'.",
    Status.NOT_RUN: "No entropic plan was asked for; the labels come from the linear program.",
}


@dataclass(frozen=True, eq=False)
class Certificate(Generic[ArrayT]):
    """How good labels are, and a bound that no assignment with the same class sizes can pass.

        value = mean_i s[i, labels_i] <= bound = mean_i max_k (s_ik + g_k) - <sizes / N, g>

    Where a sample has several labels, their scores are summed, and in place of the maximum are the largest so many.
    Both are sums in float64, whatever the scores are stored in. A gap at rounding error proves the labels optimal.
    Source: weak duality of the transport problem; Peyre, Cuturi, "Computational Optimal Transport" (2019), section 2.5.
    """

    value: float  # mean score of the labels; of several a sample, the mean over samples of their sum
    bound: float  # upper bound on the value of every assignment with these class sizes
    counts: ArrayT  # (K,) int64: class sizes of the labels
    gap: float = math.nan  # bound - value, as the mean of differences; NaN stands for that difference itself
    rounding: float = math.nan  # how much of the gap float64 may have rounded, row by row; NaN: not known
    size_error: float = 0.0  # share of the mass that would have to move for the sizes to be those of the bound
    labels_per_sample: int = 1

    def __post_init__(self) -> None:
        if math.isnan(self.gap):
            object.__setattr__(self, "gap", self.bound - self.value)

    @property
    def relative_gap(self) -> float:
        """The gap relative to the size of the value, which constants in rows change; `proven` does not go by it."""
        return self.gap / max(abs(self.value), float(np.finfo(np.float64).tiny))

    @property
    def proven(self) -> bool:
        """Whether the labels have the sizes that the bound is for, and the gap is nothing but rounding.

        `rounding` is what of the gap is below 64 times the rounding of the numbers that are added in its row, less what
        a whole row has in common: no constant in a row changes it, what is large in other rows does not count, and it
        is so small that nothing to be won is taken for it. Where it is not known, only a gap of exactly zero will do.
        """
        return not self.size_error and abs(self.gap) <= (self.rounding if self.rounding > 0 else 0.0)

    @property
    def verdict(self) -> str:
        """What the gap says, in words."""
        if self.proven:
            return "rounding error: proven optimal"
        if math.isinf(self.gap):
            return "some labels are on forbidden pairs"
        off = f"sizes are off by {self.size_error:.2%} of the mass" if self.size_error else ""
        if self.gap < 0:
            return f"{off or 'sizes are not those asked for'}, so this is no proof"
        return "at most this much better is possible" + (f"; {off}" if off else "")

    def summary(self) -> str:
        """A few lines for people, at most 80 columns."""
        sizes = as_array(self.counts)
        samples = f"{sizes.sum() // self.labels_per_sample:,} samples in "
        if self.labels_per_sample > 1:
            samples += f"{self.labels_per_sample} each of "
        return "\n".join(
            (
                f"labels    {samples}{len(sizes):,} classes of {range_text(sizes)}",
                f"value     {self.value:.9g} (mean score a sample)",
                f"bound     {self.bound:.9g} (no labels with these class sizes exceed it)",
                f"gap       {self.gap:.1e} ({self.verdict})",
            )
        )

    def _repr_html_(self) -> str:
        return summary_html(self.summary())
