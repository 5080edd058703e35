"""What comes back: an Assignment. Results never hold the scores."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, overload

import numpy as np
from scipy.sparse import csr_array

from otlabel import sweep
from otlabel.errors import InfeasibleError, InvalidScoresError
from otlabel.interrupts import interruptible
from otlabel.pictures import require_matplotlib, sizes_figure, summary_html
from otlabel.ranks.rowset import RowSet
from otlabel.solver.outcome import ArrayT, Certificate, Status
from otlabel.solver.posing import check_finite
from otlabel.sources import (
    Opened,
    as_array,
    home_of,
    in_order_of,
    open_scores,
    plain_names,
    sample_mass_of,
    with_column,
)
from otlabel.storage.archives import reading_archive, save_archive
from otlabel.text import bytes_text, printable
from otlabel.validate import check_different, check_vector

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

FORMAT = "otlabel.Assignment"
FORMAT_VERSION = 2
ARRAYS = ("labels", "counts", "class_mass", "potentials", "plan_potentials", "label_mass")
FLOATS = ("value", "bound", "epsilon", "marginal_error", "seconds", "threshold", "plan_threshold", "sample_rho")
LATER_FLOATS = ("gap", "rounding", "size_error")  # that files of earlier releases lack
WHOLES = ("n_sweeps", "n_readings", "bytes_read", "bytes_sent", "peak_memory", "n_samples")


@dataclass(frozen=True, eq=False, repr=False)
class Assignment(Generic[ArrayT]):
    """Labels for every sample, their proof, and the entropic plan behind them as K numbers.

    `labels` are the argmax of scores + `potentials` (ties aside), and `potentials` prove them; the soft plan is
    softmax((scores + `plan_potentials`) / `epsilon`). With rounding="argmax" the two are the same.
    Arrays are torch tensors on the scores' device where the scores were, else NumPy arrays.
    """

    labels: ArrayT  # (N,) int64; -1 for a sample left unlabelled. (N, k) where samples have several, best score first
    counts: ArrayT  # (K,) int64: class sizes of the labels
    class_mass: ArrayT  # (K,) float64: share of each class in the entropic plan
    potentials: ArrayT  # (K,) float64: prove the labels; -inf for a class that was to stay empty. A class that has no
    # sample, though it may take some, has the potential at which a first one would just not enter
    plan_potentials: ArrayT  # (K,) float64: of the entropic plan
    label_mass: ArrayT  # (K,) float64: share of the sample mass that has each label
    value: float  # mean score of the labels, zero for a sample left unlabelled
    bound: float  # no labels that the class rule allows have a larger value; of KL, less what their sizes cost more
    epsilon: float  # of the entropic plan, in the units of the scores
    marginal_error: float  # sum_k |class_mass_k - what class k asks for at these potentials|
    status: Status  # of the entropic solve; exact labels are exact whatever it says
    n_sweeps: int  # passes over all rows, the first look and the proof included
    history: tuple[dict[str, Any], ...]  # one record a pass: stage, rows, epsilon, error, seconds since the start
    seconds: float
    n_readings: int = 0  # of these, passes that read all scores; others had lists of classes, or a copy in the cache
    bytes_read: int = 0  # from files
    bytes_sent: int = 0  # to other ranks
    peak_memory: int = 0  # the most bytes that the process has held up to the end of the solve
    threshold: float = -math.inf  # a sample whose best score + potential is below it is left unlabelled
    plan_threshold: float = -math.inf  # potential of staying unlabelled in the entropic plan, where the score is zero
    sample_rho: float = math.inf  # price at which samples may leave their mass; inf where they may not
    n_samples: int = 0  # of all ranks, with a group; 0: as many as there are labels
    notes: tuple[str, ...] = ()  # what was noticed on the way, in plain sentences
    gap: float = math.nan  # bound - value, as the mean of differences: zero up to rounding where labels are optimal
    rounding: float = math.nan  # a gap up to this is rounding: see `Certificate`
    size_error: float = 0.0  # share of the sample mass that class sizes are off, where weighted samples cannot be split
    weighted: bool = False  # whether samples had masses of their own
    class_names: tuple[str | int, ...] | None = None  # columns of a data frame: texts or whole numbers

    def __post_init__(self) -> None:
        if math.isnan(self.gap):
            object.__setattr__(self, "gap", self.bound - self.value)

    @property
    def proof(self) -> Certificate[ArrayT]:
        """Value, bound and gap with what they prove; `proof.proven` says whether the labels are optimal."""
        of_labels = self.gap, self.rounding, self.size_error, self.labels_per_sample
        return Certificate(self.value, self.bound, self.counts, *of_labels)

    @property
    def labels_per_sample(self) -> int:
        """How many different classes each sample has."""
        return 1 if self.labels.ndim == 1 else int(self.labels.shape[1])

    @overload
    def predict(self, scores: Tensor | Sequence[Tensor]) -> Tensor: ...
    @overload
    def predict(self, scores: Any) -> np.ndarray: ...
    @interruptible
    def predict(self, scores: Any) -> Any:
        """Labels of new samples, argmax_k (scores + potentials): sizes are balanced only as far as the data is alike.

        Where samples have several labels, the largest so many of scores + potentials, in the order of their scores.

        Args:
            scores: (M, K), anything that `sinkhorn_assign` takes. Columns of a data frame go by their names where
                the solve was of one, whatever order they are in; so they do for `plan` and `soft_labels`.

        Returns:
            (M,) int64, or (M, k); a torch tensor if scores is one. -1 for samples that fit worse than those left
            unlabelled.

        Raises:
            InvalidScoresError: scores that do not have K columns, or other names, or with NaN.
            InfeasibleError: a sample that is allowed no class, or only such as are to stay empty (potential -inf),
                where none may stay unlabelled.
        """
        g, several = as_array(self.potentials), self.labels_per_sample
        return predict(scores, g, self.threshold, self.class_names, labels_per_sample=several)

    @overload
    def plan(self, scores: Tensor | Sequence[Tensor], *, sample_mass: Any = None) -> Tensor: ...
    @overload
    def plan(self, scores: Any, *, sample_mass: Any = None) -> np.ndarray: ...
    @interruptible
    def plan(self, scores: Any, *, sample_mass: Any = None) -> Any:
        """The entropic plan Q_ik = a_i softmax_k((s_ik + g_k) / epsilon), which sums to 1 as in POT.

        Where samples are left unlabelled, it sums to the share of those that are not. Where samples may leave their
        mass, row i is a_i exp(L_i / (rho + epsilon)) times the softmax, with L_i = epsilon logsumexp_k((s_ik + g_k) /
        epsilon). Where samples have k labels each, the capped softmax, divided by k, is in place of the softmax.

        Args:
            scores: (M, K); for the plan that was solved, the same scores again.
            sample_mass: (M,) a, as shares, or integers, which stand for their shares of their sum. None: 1/M each;
                after a solve with sample masses they are to be given.

        Returns:
            (M, K) float64; of sparse scores a CSR matrix (csr_array, or a sparse tensor) with the same entries.

        Raises:
            ValueError: sample_mass is missing or of another length.
            InvalidScoresError: as for `predict`, or rows whose mass is beyond all numbers.
            InfeasibleError: as for `predict`.
        """
        if sample_mass is None and self.weighted:
            raise ValueError(
                "the plan was solved for samples with masses of their own: pass them as sample_mass, or "
                "np.full(M, 1 / M) for equal ones"
            )
        opened, may_be_closed = _open_for(scores, len(self.potentials), self.class_names)
        mass = sample_mass_of(sample_mass, opened)
        if mass is None:
            mass = np.full(opened.shape[0], 1 / opened.shape[0])
        if mass.shape != (opened.shape[0],) or mass.dtype.kind not in "iuf":
            raise ValueError(f"sample_mass has shape {mass.shape} of {mass.dtype}; pass one number for each row")
        if mass.dtype.kind != "f":
            mass = mass / max(int(mass.sum()), 1)
        weights = mass.astype(np.float64) / self.labels_per_sample
        rows = _scaled(self._softmax(opened, may_be_closed=may_be_closed), weights)
        if math.isfinite(self.sample_rho):
            choices, g = self._choices(opened)
            exponent = 1.0 / (self.sample_rho + self.epsilon)
            with np.errstate(over="ignore", invalid="ignore"):
                rows = _scaled(rows, sweep.sweep(choices.fine, g, self.epsilon, row_exponent=exponent).row_mass)
            if not np.isfinite(rows.data).all():
                raise InvalidScoresError(
                    f"these scores ask for rows of more mass than numbers can hold, at rho={self.sample_rho:g}: they "
                    "are much larger than those of the solve; solve with these, or add the same constant as there"
                )
        return like(rows, scores)

    @overload
    def soft_labels(self, scores: Tensor | Sequence[Tensor]) -> Tensor: ...
    @overload
    def soft_labels(self, scores: Any) -> np.ndarray: ...
    @interruptible
    def soft_labels(self, scores: Any) -> Any:
        """The plan's rows normalised to sum 1, (M, K) float64: a distribution over classes for each sample.

        Where samples have k labels each they sum to k: the capped softmax 1 / (1 + exp((t_i - s_ik - g_k) / epsilon)).
        Where samples are left unlabelled, what a row lacks of 1 is the share of that choice. Raises InfeasibleError as
        `predict` does.
        """
        opened, may_be_closed = _open_for(scores, len(self.potentials), self.class_names)
        return like(self._softmax(opened, may_be_closed=may_be_closed), scores)

    def _softmax(self, opened: Opened, *, may_be_closed: bool) -> np.ndarray | csr_array:
        """softmax_k((s_ik + g_k) / epsilon), with staying unlabelled among the choices where there is that."""
        n_classes, several = opened.shape[1], self.labels_per_sample
        choices, g = self._choices(opened)
        if self.plan_threshold == -math.inf and (may_be_closed or np.isfinite(g).sum() < several):
            _refuse_closed(opened, sweep.label(RowSet(opened).taking(several), g)[1])
        rows = sweep.plan(choices.fine, g, self.epsilon)
        return rows if len(g) == n_classes else rows[:, :n_classes].copy()

    def _choices(self, opened: Opened) -> tuple[RowSet, np.ndarray]:
        """Scores and plan potentials of all that a sample may choose from: after the classes, staying unlabelled."""
        g = as_array(self.plan_potentials)
        if self.plan_threshold == -math.inf:
            rows = RowSet(opened.stripped if math.isinf(self.sample_rho) else opened)
            return rows.taking(self.labels_per_sample), g
        return RowSet(opened).over(with_column(opened)), np.append(g, self.plan_threshold)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one .npz file without pickle; the file is whole or absent."""
        header: dict[str, Any] = {"history": list(self.history), "notes": list(self.notes)}
        for name in FLOATS + LATER_FLOATS + WHOLES:
            header[name] = getattr(self, name)
        header["weighted"] = self.weighted
        if self.class_names is not None:
            header["class_names"] = list(self.class_names)
        header["status"] = self.status.value
        arrays: dict[str, Any] = {name: as_array(getattr(self, name)) for name in ARRAYS}
        save_archive(path, FORMAT, FORMAT_VERSION, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Assignment[np.ndarray]:
        """Read what `save` wrote, as NumPy arrays; nothing is unpickled.

        Raises:
            FileFormatError: the file is damaged, of another kind or of a newer version.
        """
        with reading_archive(path, FORMAT, FORMAT_VERSION) as (header, stored):
            arrays: dict[str, Any] = {name: stored[name] for name in ARRAYS}
            header["status"] = Status(header["status"])
            header["history"] = tuple(map(dict, header["history"]))
            header["notes"] = _texts(header["notes"])
            header |= {name: float(_number(name, header[name], (int, float))) for name in FLOATS}
            header |= {
                name: float(_number(name, header[name], (int, float))) for name in LATER_FLOATS if name in header
            }
            header |= {name: _number(name, header.get(name, 0), (int,)) for name in WHOLES}
            header["weighted"] = bool(header.get("weighted", False))
            if (names := header.get("class_names")) is not None:
                header["class_names"] = plain_names(names)
                if header["class_names"] is None or len(names) != len(arrays["counts"]):
                    raise ValueError(f"it has class names {names!r:.60} for {len(arrays['counts'])} classes")
            loaded: Assignment[np.ndarray] = Assignment(**arrays, **header)
            if not (loaded.threshold < math.inf and loaded.plan_threshold < math.inf):  # nor is NaN
                raise ValueError(f"its thresholds are {loaded.threshold} and {loaded.plan_threshold}")
            _check_arrays(arrays, is_part=loaded.n_samples not in (0, len(loaded.labels)))
        return loaded

    def summary(self) -> str:
        """What came out, in a few lines of at most 80 columns."""
        sizes = as_array(self.counts)
        lines = self.proof.summary().split("\n")
        n_samples = self.n_samples or len(self.labels)
        if unlabelled := n_samples - int(sizes.sum()) // self.labels_per_sample:
            lines[0] += f"; {unlabelled:,} left unlabelled"
        passes = f"{self.n_sweeps} passes over {n_samples:,} x {len(sizes):,} scores"
        if 0 < self.n_readings < self.n_sweeps:
            passes += f" ({self.n_readings} read them all)"
        lines += [
            f"plan      epsilon {self.epsilon:g}, class-mass error {self.marginal_error:.2g}, {self.status.value}",
            f"work      {passes}, {self.seconds:.2f} s",
            f"memory    {bytes_text(self.peak_memory)} at its peak, {bytes_text(self.bytes_read)} read from files",
        ]
        if n_samples != len(self.labels):
            lines.append(f"ranks     {len(self.labels):,} rows here, {bytes_text(self.bytes_sent)} sent to other ranks")
        if self.status in (Status.MAX_SWEEPS, Status.STALLED):
            lines.append(f"to do     {self.status.remedy}")
        lines += [f"note      {note}" for note in self.notes]
        return "\n".join(textwrap.fill(line, 80, subsequent_indent=" " * 10) for line in "\n".join(lines).split("\n"))

    @interruptible
    def plot(self, scores: Any = None) -> Figure:
        """Class sizes, from large to small; with the scores of the samples, also those of the best class alone.

        Args:
            scores: (N, K), the same again, of which a pass counts the best classes. None: only sizes of the labels.

        Returns:
            A matplotlib figure, which a notebook shows; `figure.savefig("sizes.png")`.

        Raises:
            MissingPackageError: matplotlib is not installed.
            InvalidScoresError: as for `predict`.
        """
        require_matplotlib()
        before, n_classes = None, len(self.counts)
        if scores is not None:
            opened, _ = _open_for(scores, n_classes, self.class_names)
            best, _, _ = sweep.label(RowSet(opened).taking(self.labels_per_sample), np.zeros(n_classes))
            before = np.bincount(best.ravel(), minlength=n_classes)
        return sizes_figure(before, as_array(self.counts))

    def _repr_html_(self) -> str:
        return summary_html(self.summary())

    def __repr__(self) -> str:
        return (
            f"Assignment({len(self.labels)} samples, {len(self.counts)} classes, value={self.value:.6g}, "
            f"gap={self.gap:.1e}, {self.status.value})"
        )


def predict(
    scores: Any,
    potentials: np.ndarray,
    threshold: float = -math.inf,
    names: Sequence[Any] | None = None,
    *,
    labels_per_sample: int = 1,
) -> Any:
    """Labels argmax_k (scores + potentials) of any samples, (M,) int64; see `Assignment.predict`."""
    opened, _ = _open_for(scores, len(potentials), names)
    without = threshold == -math.inf
    rows = RowSet(opened.stripped if without else opened).taking(labels_per_sample)
    labels, best, _ = sweep.label(rows, potentials)
    if without:
        _refuse_closed(opened, best)
    return like(np.where(best >= threshold, labels, -1).astype(np.int64), scores)


def _refuse_closed(opened: Opened, best: np.ndarray) -> None:
    """Raise InfeasibleError where the best class of a row is one that it may not take."""
    several = best.ndim > 1
    closed = np.flatnonzero((best == -np.inf).any(1) if several else best == -np.inf)
    if len(closed):
        allowed = f"fewer than {best.shape[1]} classes that take" if several else "no class that takes"
        raise InfeasibleError(
            f"{len(closed)} rows are allowed {allowed} samples (scores or potentials of -inf), the first is "
            f"{opened.place(int(closed[0]))}; leave these rows out{'' if several else ', or solve with abstain'}"
        )


def _open_for(scores: Any, n_classes: int, names: Sequence[Any] | None) -> tuple[Opened, bool]:
    """Scores that have the right columns, in the order of the classes, and no NaN; and whether a pair is forbidden."""
    opened = open_scores(scores)
    if opened.shape[1] != n_classes:
        raise InvalidScoresError(f"scores have {opened.shape[1]} columns, this assignment has {n_classes} classes")
    opened = in_order_of(opened, names)
    rows = RowSet(opened)
    inspection = sweep.inspect(rows)
    check_finite(rows, inspection)
    return opened, inspection.n_forbidden > 0


def _scaled(rows: Any, factors: np.ndarray) -> Any:
    """Each row of a matrix, full or CSR, times its factor, in place."""
    if isinstance(rows, csr_array):
        rows.data *= np.repeat(factors, np.diff(rows.indptr))
    else:
        rows *= factors[:, None]
    return rows


def like(array: Any, scores: Any) -> Any:
    """The array as a torch tensor on the device of scores where these are tensors (or a list), else as it is."""
    device = home_of(scores)
    if device is None:
        return array
    import torch

    if isinstance(array, csr_array):
        starts, classes = (torch.from_numpy(part.astype(np.int64)) for part in (array.indptr, array.indices))
        data = torch.from_numpy(array.data)
        return torch.sparse_csr_tensor(starts, classes, data, array.shape, device=device, check_invariants=False)
    return torch.from_numpy(array).to(device)


def _number(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """A number as JSON holds it."""
    is_none = name in ("value", "bound") and value != value  # NaN
    if not isinstance(value, kinds) or isinstance(value, bool) or is_none:
        raise ValueError(f"its {name} is {printable(repr(value))[:80]}, no {'number' if float in kinds else 'count'}")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"its notes are {printable(repr(values))[:80]}, no list of texts")
    return tuple(values)


def _check_arrays(arrays: dict[str, np.ndarray], *, is_part: bool) -> None:
    """Raise ValueError unless labels, sizes and potentials belong together; a rank's labels are only a part."""
    labels, counts = arrays["labels"], arrays["counts"]
    n_classes = len(counts)
    for name, array in arrays.items():
        kinds = "iu" if name in ("labels", "counts") else "f"
        is_flat = array.ndim == 1 or (name == "labels" and array.ndim == 2 and array.shape[1] > 1)
        if not is_flat or array.dtype.kind not in kinds or (name != "labels" and len(array) != n_classes):
            raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, for {n_classes} classes")
        if kinds == "f":
            check_vector(array, n_classes, name)
    if (len(labels) == 0 and not is_part) or labels.min(initial=0) < -1 or labels.max(initial=0) >= n_classes:
        raise ValueError(f"labels are not from 0 to {n_classes - 1}, or -1")
    if labels.ndim > 1:
        check_different(labels)
    if not is_part and not np.array_equal(np.bincount(labels[labels >= 0], minlength=n_classes), counts):
        raise ValueError("counts are not those of the labels")
