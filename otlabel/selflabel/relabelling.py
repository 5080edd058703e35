"""One relabelling: from stored rows and a model's heads to new labels for every head."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from otlabel import metrics
from otlabel.errors import InvalidScoresError
from otlabel.ranks.communicator import SINGLE_PROCESS, Communicator
from otlabel.selflabel.methods import HeadView, Labeling, NewLabels, in_memory
from otlabel.selflabel.model import FEATURES, View, forward_only, linear_parts
from otlabel.selflabel.ranks import Holders
from otlabel.sources import Source, cached, draw_rows, free_memory, linear_scores, open_scores, row_blocks
from otlabel.sweep.pool import run_tasks

LOOKED_AT = 4096  # rows that tell whether features or classes have collapsed
MATRIX_SHARE = 0.25  # of the free memory may hold one head's (N, K) scores


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
    holders: Holders | None = None,
) -> list[Relabelled]:
    """New labels of all heads from one read of the stored rows; nothing of the old ones is touched.

    Args:
        labeling: makes labels of one head. If it has a `device` other than "auto" and "cpu", scores of linear heads are
            made there, block by block. If it has a `memory_limit`, so many bytes may hold a copy of rows that lie in a
            file, and so many one head's scores; what does not fit is read or made again in each pass. None: half of
            the free memory, and a quarter.
        seen: the model's heads.
        rows: (N, D) features or (N, sum of K) logits, as they were stored; None if only `recorded` is there.
        n_classes: K of each head.
        before: (T, N) labels up to now.
        states: what the labeling has left for itself, one a head.
        seed: of this relabelling; each head draws its own from it.
        recorded: (T, N) best classes that were seen in training.
        truth: (N,) true classes to compare with.
        holders: which rank has which samples, where several do and call this together; rows are then of those here.
            Everything else, and what is returned but for the seconds, is of all samples. None: all are here.
    """
    limit: int | None = getattr(labeling, "memory_limit", None)
    on_host = getattr(labeling, "device", "auto") in ("auto", "cpu")
    source = None if rows is None else cached(open_scores(rows, may_be_empty=True), limit)
    everybody = Holders(before.shape[1]) if holders is None else holders
    found = []
    shared: dict[str, Any] = {}
    scores = _scores_of_heads(seen, source, n_classes, limit, kept=on_host, communicator=everybody.communicator)
    for head, make_scores in enumerate(scores):
        started = time.perf_counter()
        shown = HeadView(
            number=head,
            n_classes=n_classes[head],
            n_samples=len(everybody.index),
            before=before[head, everybody.index],
            state=states[head],
            seed=int(np.random.SeedSequence((seed, head)).generate_state(1)[0]),
            rows=source,
            make_scores=make_scores,
            recorded=None if recorded is None else recorded[head],
            shared=shared,
            holders=holders,
        )
        new = labeling(shown)
        labels = everybody.joined("labels", _checked(new, shown).astype(np.int32)).astype(np.int64)
        facts = {name: float(value) for name, value in new.facts.items()}
        record = _described(labels, before[head], shown, truth, new) | facts
        record["seconds"] = time.perf_counter() - started
        found.append(Relabelled(labels, dict(new.state), new.new_classes, record))
    if source is not None:
        _look(seen, source, n_classes, found, everybody)
    return found


def _look(seen: View, source: Source, n_classes: list[int], found: list[Relabelled], holders: Holders) -> None:
    """Add to the records what tells a collapse, from a sample of the rows.

    best_class_share: share of samples whose best class is the most common one, before any balance.
    feature_alignment: length of the mean of features scaled to length 1, near 1 where all samples look the same.
    """
    n_drawn = min(holders.n_samples, LOOKED_AT)
    drawn = draw_rows(holders.n_samples, n_drawn, np.random.default_rng(0))
    here = np.flatnonzero(np.isin(holders.index, drawn))
    sums = [np.zeros(source.shape[1]), *(np.zeros(k, np.int64) for k in n_classes)]
    if len(here):
        sample = source.take(here)
        if seen.kind == FEATURES:
            rows = in_memory(sample).astype(np.float64)
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            sums[0] = (rows / np.where(lengths > 0, lengths, 1)).sum(0)
        for head, make_scores in enumerate(_scores_of_heads(seen, sample, n_classes)):
            sums[1 + head] = np.bincount(in_memory(open_scores(make_scores())).argmax(1), minlength=n_classes[head])
    total, *counts = holders.communicator.allreduce("look", *sums)
    for one, sizes in zip(found, counts, strict=True):
        if seen.kind == FEATURES:
            one.record["feature_alignment"] = float(np.linalg.norm(total / n_drawn))
        one.record["best_class_share"] = float(sizes.max() / n_drawn)


def classes_of(
    seen: View, rows: np.ndarray, n_classes: list[int], states: list[Mapping[str, np.ndarray]]
) -> np.ndarray:
    """(T, n) best class of each row by each head, with the potentials that its labels were made with, if it has any."""
    found = []
    for head, make_scores in enumerate(_scores_of_heads(seen, open_scores(rows, may_be_empty=True), n_classes)):
        scores = in_memory(open_scores(make_scores()))
        potentials = states[head].get("potentials")
        if potentials is not None and potentials.shape == scores.shape[1:]:
            scores = scores + np.where(np.isnan(potentials), -np.inf, potentials)
        found.append(scores.argmax(1))
    return np.stack(found)


def _checked(new: NewLabels, head: HeadView) -> np.ndarray:
    """The labels, if they are labels: a user's own labeling may return anything."""
    labels = np.asarray(new.labels)
    if labels.shape != (head.n_samples,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"the labeling gave {labels.dtype} of shape {labels.shape} for head {head.number}; it must give "
            f"({head.n_samples},) whole numbers"
        )
    if len(labels) and (labels.min() < -1 or labels.max() >= head.n_classes):
        raise ValueError(
            f"the labeling gave labels from {labels.min()} to {labels.max()} for head {head.number}; they must be from "
            f"0 to {head.n_classes - 1}, or -1"
        )
    return labels.astype(np.int64)


def _described(
    labels: np.ndarray, before: np.ndarray, head: HeadView, truth: np.ndarray | None, new: NewLabels
) -> dict[str, Any]:
    sizes = np.bincount(labels[labels >= 0], minlength=head.n_classes)
    shares = sizes[sizes > 0] / max(sizes.sum(), 1)
    labelled = (labels >= 0) & (before >= 0)
    told = {
        "churn": metrics.churn(before[labelled], labels[labelled], matched=new.new_classes) if labelled.any() else 1.0,
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "unlabelled": int((labels < 0).sum()),
        "entropy": float(-(shares * np.log(shares)).sum()),
    }
    if truth is not None:
        mixed = metrics.class_entropy(truth, labels)
        lower, upper = np.quantile(mixed.entropy, (0.25, 0.75)).tolist()
        told["nmi"] = metrics.nmi(truth, labels)
        told |= {"class_entropy": mixed.mean, "class_entropy_lower": lower, "class_entropy_upper": upper}
    return told


# ---- scores ----


def _scores_of_heads(
    seen: View,
    source: Source | None,
    n_classes: list[int],
    limit: int | None = None,
    *,
    kept: bool = True,
    communicator: Communicator = SINGLE_PROCESS,
) -> Iterator[Callable[[], Any]]:
    """For each head a function that gives its (N, K) log-probabilities; forget one before asking for the next."""
    if source is None:
        yield from [_nothing_stored] * len(n_classes)
    elif seen.kind == FEATURES:
        _check_heads(seen, n_classes)
        parts = list(linear_parts(seen.heads))
        linear = [part for part in parts if part is not None]
        ready = iter(linear_scores(source, [w for w, _ in linear], [b for _, b in linear]) if linear else [])
        for head, part in enumerate(parts):
            if part is None:
                yield _Matrix(source, seen.heads[head], head, n_classes[head], limit)
            else:
                scores = next(ready)
                yield partial(_kept, scores, limit if kept else 0, communicator)
    else:
        for head, k in enumerate(n_classes):
            yield _Matrix(source, _columns(head, n_classes), head, k, limit)


def _nothing_stored() -> Any:
    raise RuntimeError("nothing but best classes was recorded; pass a loader to update for a labeling that needs more")


def _check_heads(seen: View, n_classes: list[int]) -> None:
    if len(seen.heads) != len(n_classes):
        raise ValueError(
            f"the model has {len(seen.heads)} heads; the labeler was made for {len(n_classes)}. It takes them from "
            "model.heads, or from heads= where that is passed"
        )
    for number, (head, part, k) in enumerate(zip(seen.heads, linear_parts(seen.heads), n_classes, strict=True)):
        if part is not None and part[0].shape[0] != k:
            raise ValueError(f"head {number} of the model has {part[0].shape[0]} classes; the labeler was made for {k}")
        weights = head.parameters() if isinstance(head, torch.nn.Module) else part or ()
        if not all(bool(weight.isfinite().all()) for weight in weights if weight is not None):
            raise InvalidScoresError(f"weights of head {number} hold NaN or infinity; training has diverged")


def _columns(head: int, n_classes: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    start = sum(n_classes[:head])
    return lambda rows: rows[:, start : start + n_classes[head]]


def _kept(scores: Source, limit: int | None, communicator: Communicator) -> Any:
    """A linear head's scores, all in memory if they fit: to read them costs far less than a product in each pass.

    Ranks do the same: scores travel between them, or else features.
    """
    if communicator.allreduce_max("room", not _fits(scores.shape, limit))[0]:
        return scores
    made = np.empty(scores.shape, scores.dtype)
    batches = scores.batches()

    def make(number: int) -> None:
        for (start, stop), block in zip(batches[number], scores.read_blocks(batches[number]), strict=True):
            made[start:stop] = block

    with scores.reading():
        run_tasks(make, len(batches))
    return made


def _fits(shape: tuple[int, int], limit: int | None) -> bool:
    free = int(MATRIX_SHARE * free_memory())
    return 4 * shape[0] * shape[1] <= (free if limit is None else min(limit, free))


class _Matrix:
    """Scores of a head that is no linear one, made once when first asked for: in memory, or in a file if too large."""

    def __init__(
        self, source: Source, head: Callable[[torch.Tensor], torch.Tensor], number: int, k: int, limit: int | None
    ) -> None:
        self._source, self._head, self._number, self._limit = source, head, number, limit
        self._shape = (source.shape[0], k)
        self._made: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._made is None:
            made = np.empty(self._shape, np.float32) if _fits(self._shape, self._limit) else _on_disk(self._shape)
            with _evaluated(self._head) as where:
                for (start, stop), block in row_blocks(self._source):
                    logits = self._head(torch.from_numpy(np.array(block)).to(**where))
                    if logits.shape != (stop - start, self._shape[1]):
                        raise ValueError(
                            f"head {self._number} of the model gives {tuple(logits.shape)} for {stop - start} samples; "
                            f"the labeler was made for {self._shape[1]} classes"
                        )
                    made[start:stop] = torch.log_softmax(logits.float(), 1).cpu().numpy()
            self._made = made
        return self._made


def _on_disk(shape: tuple[int, int]) -> np.ndarray:
    """An empty float32 matrix in a nameless file, which goes away with it."""
    with tempfile.TemporaryFile(prefix="otlabel-") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])  # a full disk is an error here, later a crash
        return np.memmap(file, np.float32, "r+", shape=shape)


@contextmanager
def _evaluated(head: Any) -> Iterator[dict[str, Any]]:
    """A head in evaluation mode, and the device and type of its weights; a function has no mode."""
    if not isinstance(head, torch.nn.Module):
        yield {"dtype": torch.float32}
        return
    with forward_only(head):
        weight = next(head.parameters(), torch.empty(0))
        yield {"device": weight.device, "dtype": weight.dtype}
