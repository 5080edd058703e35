"""How labels come from what a model says: SeLa's optimal transport, DeepCluster's k-means, UIC's best class.

A labeling is any function of one head's view of the data that returns labels. A new one is a dozen lines:

    def nearest_mean(head: HeadView) -> NewLabels:
        features = head.read_features()
        means = np.stack([features[head.before == k].mean(0) for k in range(head.n_classes)])
        distances = ((features[:, None] - means) ** 2).sum(2)
        return NewLabels(distances.argmin(1))

    labeler = SelfLabeler(n_samples, 10, labeling=nearest_mean)

Where several processes train, a labeling is called on the first of them with all samples, whose rows are sent there,
unless it has an attribute `over_ranks` that is true: then each process calls it with the samples that it has, and rows
stay where they are. `OptimalTransport` and `Argmax` work so, `KMeans` does not. If it has a method
`check_state(state, n_classes)`, that raises ValueError where a saved state is none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from otlabel.assign import sinkhorn_assign
from otlabel.marginals import KL, Exact, Range
from otlabel.ranks.rowset import RowSet
from otlabel.result import predict
from otlabel.selflabel.kmeans import k_means
from otlabel.selflabel.ranks import Holders
from otlabel.solver.problem import EXACT, Method, Rounding
from otlabel.sources import Opened, as_array, open_scores
from otlabel.validate import check_vector

PCA_FLOOR = 1e-6  # of the largest variance: directions below it are noise, which whitening would blow up


@dataclass(frozen=True, eq=False)
class HeadView:
    """What a labeling may look at for one head; nothing is read before it is asked for.

    Over ranks, it is of the samples that this process has, of which there may be none.
    """

    number: int  # of the head, from 0
    n_classes: int  # K
    n_samples: int  # N, of the samples here
    before: np.ndarray  # (N,) int64: labels up to now, -1 for none
    state: Mapping[str, np.ndarray]  # what this labeling has left for itself last time; empty at first
    seed: int  # changes with the head and from one relabelling to the next
    rows: Any  # (N, D) features, or the logits of all heads where the model shows no features
    make_scores: Callable[[], Any]  # (N, K) log-probabilities of this head
    recorded: np.ndarray | None = None  # (N,) best class of each sample when it was last trained on, -1: it was not
    shared: dict[str, Any] = field(default_factory=dict)  # the same for all heads: what need be worked out only once
    holders: Holders | None = None  # who has which samples, over ranks

    @property
    def group(self) -> Any:
        """The torch.distributed group whose processes have the samples; None where all are here."""
        return None if self.holders is None else self.holders.group

    @property
    def index(self) -> np.ndarray:
        """(N,) which samples are here, in rising order."""
        return np.arange(self.n_samples) if self.holders is None else self.holders.index

    def joined(self, values: np.ndarray) -> np.ndarray:
        """Of one value for each sample here, those of all samples, on all ranks, each of which is to call this."""
        return values if self.holders is None else self.holders.joined("values", values)

    def scores(self) -> Any:
        """(N, K) log-probabilities of this head, as `sinkhorn_assign` takes them; all ranks are to call this."""
        return self.make_scores()

    def read_features(self) -> np.ndarray:
        """(N, D) float32, in memory."""
        return in_memory(open_scores(self.rows, may_be_empty=True)).astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class NewLabels:
    """What a labeling returns for one head."""

    labels: np.ndarray  # (N,) integers from 0 to K - 1; -1 for a sample that the loss is to leave out
    state: Mapping[str, np.ndarray] = field(default_factory=dict)  # to be handed back next time
    facts: Mapping[str, float] = field(default_factory=dict)  # for the history: value, gap, ...
    new_classes: bool = False  # classes do not mean what they did: the head is to be drawn anew


Labeling: TypeAlias = Callable[[HeadView], NewLabels]


@dataclass(frozen=True, eq=False)
class OptimalTransport:
    """SeLa's labels: the best total log-probability under what each class may take.

    Everything is as for `sinkhorn_assign`, which says what each argument means. Each solve starts from the potentials
    of the same head's last one. `rounding="argmax"` gives labels as SeLa's own program does; "exact" sizes are exact.

    Over ranks, labels are those that one process would find, as long as these are the only ones of their value: where
    others are as good, the choice depends on the order of rows, which is that of ranks, and of samples within a rank.
    It is the very same where ranks have one range of samples after the other.

    Args:
        class_mass: for all heads, or a list with one a head.
        classes: for all heads, or a list with one a head.
        abstain: share that stays unlabelled: -1, which the loss leaves out.

    Source: Asano, Rupprecht, Vedaldi, ICLR 2020, section 3.1; epsilon is 1 / lambda, 25 in appendix A.1.
    """

    epsilon: float = 0.04
    class_mass: Any = None
    classes: Exact | KL | Range | Sequence[Exact | KL | Range] = EXACT
    samples: Exact | KL = EXACT
    abstain: float = 0.0
    rounding: Rounding = "exact"
    tol: float = 1e-2
    max_sweeps: int = 1000
    method: Method = "auto"
    device: str = "auto"
    memory_limit: int | None = None

    over_ranks = True

    def __call__(self, head: HeadView) -> NewLabels:
        """Labels of one head."""
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if isinstance(self.classes, Sequence):
            options["classes"] = self.classes[head.number]
        if _is_one_a_head(self.class_mass):
            options["class_mass"] = self.class_mass[head.number]
        options |= {"init": head.state.get("potentials"), "seed": head.seed, "group": head.group}
        options["remainder"] = "first"  # sizes that stay the same from one relabelling to the next
        result = sinkhorn_assign(head.scores(), **options)
        facts = {
            "value": result.value,
            "gap": result.gap,
            "marginal_error": result.marginal_error,
            "n_sweeps": float(result.n_sweeps),
        }
        return NewLabels(as_array(result.labels), {"potentials": as_array(result.plan_potentials)}, facts)

    def check_state(self, state: Mapping[str, np.ndarray], n_classes: int) -> None:
        """Refuse potentials that no solve could start from."""
        if "potentials" in state:
            check_vector(state["potentials"], n_classes, "potentials")


def _is_one_a_head(mass: Any) -> bool:
    return isinstance(mass, Sequence) and len(mass) > 0 and np.ndim(as_array(mass[0])) == 1


@dataclass(frozen=True, eq=False)
class KMeans:
    """DeepCluster's labels: k-means on whitened features, and a fresh head each time, since clusters have no names.

    Features are centred, reduced and whitened by their principal components, and scaled to length 1. faiss does the
    clustering, or scikit-learn where faiss is not installed, or plain torch where that is not either. Where clusters
    stay empty in the end, as with many equal samples, each gets half of the largest one, at random.

    Args:
        n_components: principal components that are kept; fewer where features have fewer.
        n_iter: k-means iterations.
        device: "auto": faiss's GPUs if it has any, else the CPU; "cpu"; or a device of torch's, such as "cuda".

    Raises:
        ValueError: more clusters than samples.
        OtlabelError: faiss-cpu and faiss-gpu are both installed, which breaks either.

    Source: Caron, Bojanowski, Joulin, Douze, ECCV 2018, section 3 and 4.1.
    """

    n_components: int = 256
    n_iter: int = 20
    device: str = "auto"

    def __call__(self, head: HeadView) -> NewLabels:
        """Labels of one head."""
        if head.n_classes > head.n_samples:
            raise ValueError(f"k-means cannot make {head.n_classes} clusters of {head.n_samples} samples; lower K")
        if "whitened" not in head.shared:
            head.shared["whitened"] = whitened(open_scores(head.rows), self.n_components)
        labels, inertia = k_means(head.shared["whitened"], head.n_classes, self.n_iter, head.seed, self.device)
        labels = fill_empty(labels, head.n_classes, np.random.default_rng(head.seed))
        return NewLabels(labels, facts={"value": -inertia / head.n_samples}, new_classes=True)


@dataclass(frozen=True, eq=False)
class Argmax:
    """UIC's labels: each sample's best class; where a class is empty, half of the largest one, at random.

    The best classes are those that `SelfLabeler.record` has seen while training, under augmentation, which costs no
    pass of its own; a sample that has not come keeps its label. Where nothing was recorded, they are read off the
    stored scores.

    Source: Chen, Pu, Xie, Yang, Guo, Lin, "Unsupervised image classification for deep representation learning" (UIC),
        ECCV 2020 workshops, section 3; arXiv:2006.11480.
    """

    over_ranks = True

    def __call__(self, head: HeadView) -> NewLabels:
        """Labels of one head."""
        if head.recorded is not None:
            labels = np.where(head.recorded >= 0, head.recorded, head.before)
        else:
            scores = head.scores()
            labels = as_array(predict(scores, np.zeros(head.n_classes))) if head.n_samples else np.zeros(0, np.int64)
        filled = fill_empty(head.joined(labels), head.n_classes, np.random.default_rng(head.seed))
        return NewLabels(filled[head.index])


def fill_empty(labels: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels in which each empty class has got half of what is then the largest class, as long as that has two."""
    labels = labels.copy()
    sizes = np.bincount(labels[labels >= 0], minlength=n_classes)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        if sizes[largest] < 2:
            break
        moved = rng.choice(np.flatnonzero(labels == largest), sizes[largest] // 2, replace=False)
        labels[moved] = empty
        sizes[largest] -= len(moved)
        sizes[empty] = len(moved)
    return labels


def in_memory(opened: Opened) -> np.ndarray:
    """All rows, of which there may be none, as float32 or float64 numbers."""
    found = np.empty(opened.shape, np.float64 if opened.dtype == "float64" else np.float32)
    for (start, stop), block in RowSet(opened).blocks():
        found[start:stop] = block
    return found


def whitened(opened: Opened, n_components: int) -> np.ndarray:
    """Centred rows on their first principal components, each of variance 1, and then of length 1; (N, d) float32."""
    given, (n_rows, n_columns) = RowSet(opened), opened.shape
    total, products = np.zeros(n_columns), np.zeros((n_columns, n_columns))
    origin: np.ndarray | None = None  # near all rows: nothing cancels below where these are far from zero
    for _, stored in given.blocks():
        block = stored.astype(np.float64)
        origin = block.mean(0) if origin is None else origin
        block -= origin
        total += block.sum(0)
        products += block.T @ block
    assert origin is not None
    shift = total / n_rows
    mean = origin + shift
    variances, directions = np.linalg.eigh(products / n_rows - np.outer(shift, shift))
    kept = np.flatnonzero(variances > PCA_FLOOR * max(variances[-1], 0.0))[::-1][:n_components]
    if not len(kept):
        return np.zeros((n_rows, 1), np.float32)  # all rows are equal
    change = directions[:, kept] / np.sqrt(variances[kept])
    found = np.empty((n_rows, len(kept)), np.float32)
    for (start, stop), block in given.blocks():
        rows = (block - mean) @ change
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        found[start:stop] = rows / np.where(lengths > 0, lengths, 1)
    return found
