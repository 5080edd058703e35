"""One relabelling: from stored rows and a model's heads to new labels for every head."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otlabel import metrics
from otlabel.errors import InvalidScoresError
from otlabel.scores import Scores, draw_rows, free_memory, linear_scores, open_scores, row_blocks
from otlabel.selflabel.labelings import HeadView, Labeling, NewLabels
from otlabel.selflabel.model import FEATURES, Modes, View, linear_parts

LOOKED_AT = 4096  # rows that tell whether features or classes have collapsed
MATRIX_SHARE = 0.25  # of the free memory may hold one head's (N, K) scores, where they are not made block by block


@dataclass(frozen=True, eq=False)
class Relabelled:
    """What came of one head."""

    labels: np.ndarray  # (N,) int64
    state: Mapping[str, np.ndarray]
    new_classes: bool
    record: dict[str, Any]  # for the history


def relabel(
    labeling: Labeling,
    seen: View,
    rows: Any,
    n_classes: list[int],
    before: np.ndarray,
    states: list[Mapping[str, np.ndarray]],
    seed: int,
    *,
    recorded: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> list[Relabelled]:
    """New labels of all heads from one read of the stored rows; nothing of the old ones is touched.

    Args:
        labeling: makes labels of one head.
        seen: the model's heads.
        rows: (N, D) features or (N, sum of K) logits, as they were stored; None if only `recorded` is there.
        n_classes: K of each head.
        before: (T, N) labels up to now.
        states: what the labeling has left for itself, one a head.
        seed: of this relabelling; each head draws its own from it.
        recorded: (T, N) best classes that were seen in training.
        truth: (N,) true classes to compare with.
    """
    source = None if rows is None else open_scores(rows)
    found = []
    with _scores_of_heads(seen, source, n_classes) as makers:
        for head, k in enumerate(n_classes):
            started = time.perf_counter()
            seeds = np.random.SeedSequence((seed, head)).generate_state(1)
            shown = HeadView(
                number=head,
                n_classes=k,
                n_samples=before.shape[1],
                before=before[head],
                state=states[head],
                seed=int(seeds[0]),
                rows=rows,
                make_scores=makers[head],
                recorded=None if recorded is None else recorded[head],
            )
            new = labeling(shown)
            labels = _checked(new, shown)
            facts = {name: float(value) for name, value in new.facts.items()}
            record = _described(labels, shown, truth, new) | facts | {"seconds": time.perf_counter() - started}
            if source is not None:
                record |= {"best_class_share": _best_class_share(shown)}
            found.append(Relabelled(labels, dict(new.state), new.new_classes, record))
    return found


def feature_alignment(rows: Any) -> float:
    """Length of the mean of rows scaled to length 1: near 1 where all samples look the same to the model."""
    sample = _sample(open_scores(rows))
    lengths = np.linalg.norm(sample, axis=1, keepdims=True)
    return float(np.linalg.norm((sample / np.where(lengths > 0, lengths, 1)).mean(0)))


def _sample(source: Scores) -> np.ndarray:
    drawn = draw_rows(source.shape[0], min(source.shape[0], LOOKED_AT), np.random.default_rng(0))
    return np.concatenate([block for _, block in row_blocks(source.take(drawn))]).astype(np.float64)


def _best_class_share(head: HeadView) -> float:
    """Share of samples whose best class is the most common one, before any balance."""
    best = _sample(open_scores(head.scores())).argmax(1)
    return float(np.bincount(best).max() / len(best))


def _checked(new: NewLabels, head: HeadView) -> np.ndarray:
    """The labels, if they are labels: a user's own labeling may return anything."""
    labels = np.asarray(new.labels)
    if labels.shape != (head.n_samples,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"the labeling gave {labels.dtype} of shape {labels.shape} for head {head.number}; it must give "
            f"({head.n_samples},) whole numbers"
        )
    if labels.min() < -1 or labels.max() >= head.n_classes:
        raise ValueError(
            f"the labeling gave labels from {labels.min()} to {labels.max()} for head {head.number}; they must be from "
            f"0 to {head.n_classes - 1}, or -1"
        )
    return labels.astype(np.int64)


def _described(labels: np.ndarray, head: HeadView, truth: np.ndarray | None, new: NewLabels) -> dict[str, Any]:
    sizes = np.bincount(labels[labels >= 0], minlength=head.n_classes)
    shares = sizes[sizes > 0] / max(sizes.sum(), 1)
    labelled = (labels >= 0) & (head.before >= 0)
    told = {
        "churn": metrics.churn(head.before[labelled], labels[labelled], matched=new.new_classes)
        if labelled.any()
        else 1.0,
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "unlabelled": int((labels < 0).sum()),
        "entropy": float(-(shares * np.log(shares)).sum()),
    }
    if truth is not None:
        told["nmi"] = metrics.nmi(truth, labels)
    return told


# ---- scores ----


@contextmanager
def _scores_of_heads(seen: View, source: Scores | None, n_classes: list[int]) -> Iterator[list[Callable[[], Any]]]:
    """For each head a function that gives its (N, K) log-probabilities; what lies on the disk goes away after."""
    if source is None:
        yield [_nothing_stored] * len(n_classes)
        return
    if seen.kind == FEATURES:
        _check_heads(seen, source, n_classes)
        parts = list(linear_parts(seen.heads))
        linear = [part for part in parts if part is not None]
        ready = iter(linear_scores(source, [w for w, _ in linear], [b for _, b in linear]) if linear else [])
    else:
        parts, ready = [None] * len(n_classes), iter(())
    with tempfile.TemporaryDirectory(prefix="otlabel-") as folder:
        makers: list[Callable[[], Any]] = []
        for head, k in enumerate(n_classes):
            if parts[head] is not None:
                scores = next(ready)
                makers.append(lambda scores=scores: scores)  # type: ignore[misc]
            else:
                logits = _columns(head, n_classes) if seen.kind != FEATURES else seen.heads[head]
                makers.append(_Matrix(source, logits, k, Path(folder) / f"{head}.npy"))
        yield makers


def _nothing_stored() -> Any:
    raise RuntimeError("nothing but best classes was recorded; pass a loader to update for a labeling that needs more")


def _check_heads(seen: View, source: Scores, n_classes: list[int]) -> None:
    if len(seen.heads) != len(n_classes):
        raise ValueError(f"the model has {len(seen.heads)} heads; the labeler was made for {len(n_classes)}")
    for head, (part, k) in enumerate(zip(linear_parts(seen.heads), n_classes, strict=True)):
        if part is not None and part[0].shape[0] != k:
            raise ValueError(f"head {head} of the model has {part[0].shape[0]} classes; the labeler was made for {k}")
        if part is not None and not all(bool(p.isfinite().all()) for p in part if p is not None):
            raise InvalidScoresError(f"weights of head {head} hold NaN or infinity; training has diverged")


def _columns(head: int, n_classes: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    start = sum(n_classes[:head])
    return lambda rows: rows[:, start : start + n_classes[head]]


class _Matrix:
    """Scores of a head that is no linear one, made once when first asked for: in memory, or in a file if too large."""

    def __init__(self, source: Scores, head: Callable[[torch.Tensor], torch.Tensor], k: int, path: Path) -> None:
        self._source, self._head, self._k, self._path = source, head, k, path
        self._made: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._made is None:
            shape = (self._source.shape[0], self._k)
            if 4 * shape[0] * shape[1] <= MATRIX_SHARE * free_memory():
                made = np.empty(shape, np.float32)
            else:
                made = np.lib.format.open_memmap(self._path, mode="w+", dtype=np.float32, shape=shape)
            with _evaluated(self._head) as device:
                for (start, stop), block in row_blocks(self._source):
                    logits = self._head(torch.from_numpy(np.array(block, np.float32)).to(device))
                    made[start:stop] = torch.log_softmax(logits.float(), 1).cpu().numpy()
            self._made = made
        return self._made


@contextmanager
def _evaluated(head: Any) -> Iterator[torch.device]:
    """A head in evaluation mode, and where it is; a function has neither mode nor place."""
    if not isinstance(head, torch.nn.Module):
        yield torch.device("cpu")
        return
    modes = Modes(head)
    head.eval()
    try:
        with torch.no_grad():
            yield next((p.device for p in head.parameters()), torch.device("cpu"))
    finally:
        modes.restore()
