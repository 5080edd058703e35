"""One relabelling, from stored rows and a model's heads to new labels of every head, and what is told of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from otlabel import metrics
from otlabel.ranks.communicator import Communicator
from otlabel.ranks.wire import Arrays
from otlabel.selflabel.features import Keeping
from otlabel.selflabel.head_scores import scores_of_heads
from otlabel.selflabel.methods import HeadView, Labeling, NewLabels, in_memory
from otlabel.selflabel.model import FEATURES, ModelReader
from otlabel.selflabel.quality import Looks, heads_foresee
from otlabel.selflabel.ranks import Holders
from otlabel.sources import Opened, as_opened, cached, draw_rows, open_scores

LOOKED_AT = 4096  # rows that tell whether features or classes have collapsed
FEW = 64  # views whose features are compared with those of the first relabelling


@dataclass(frozen=True, eq=False)
class Relabelled:
    """What came of one head."""

    labels: np.ndarray  # (N,) int64
    state: Mapping[str, np.ndarray]
    new_classes: bool
    record: dict[str, Any]  # for the history


@dataclass(frozen=True, eq=False)
class Relabelling:
    """All that a relabelling starts from, but the rows."""

    labeling: Labeling  # of its attributes, `device` and `memory_limit` are looked at: see `run`
    reader: ModelReader  # the model's heads
    n_classes: list[int]  # K of each head
    before: np.ndarray  # (T, N) labels up to now
    states: list[Mapping[str, np.ndarray]]  # what the labeling has left for itself, one a head
    seed: int  # of this relabelling; each head draws its own from it
    recorded: np.ndarray | None = None  # (T, N) best classes that were seen in training
    truth: np.ndarray | None = None  # (N,) true classes to compare with
    only: int | None = None  # the one head that is labelled anew; the others stay. None: all are

    def run(self, rows: Any, holders: Holders | None = None) -> list[Relabelled]:
        """New labels of all heads from one read of the stored rows; nothing of the old ones is touched.

        If the labeling has a `device` other than "auto" and "cpu", scores of linear heads are made there, block by
        block. If it has a `memory_limit`, so many bytes may hold a copy of rows that lie in a file, and so many one
        head's scores; what does not fit is read or made again in each pass. None: half of the free memory, and a
        quarter.

        Args:
            rows: (N, D) features or (N, sum of K) logits, as they were stored; None if only `recorded` is there.
            holders: which rank has which samples, where several do and call this together; rows are then of those
                here. Everything else, and what is returned but for the seconds, is of all samples. None: all are here.
        """
        limit: int | None = getattr(self.labeling, "memory_limit", None)
        on_host = getattr(self.labeling, "device", "auto") in ("auto", "cpu")
        source = None if rows is None else cached(open_scores(rows, may_be_empty=True), limit)
        everybody = Holders(self.before.shape[1]) if holders is None else holders
        found = []
        shared: dict[str, Any] = {}
        scores = scores_of_heads(
            self.reader, source, self.n_classes, limit, kept=on_host, communicator=everybody.communicator
        )
        for head, make_scores in enumerate(scores):
            started = time.perf_counter()
            shown = HeadView(
                number=head,
                n_classes=self.n_classes[head],
                n_samples=len(everybody.index),
                before=self.before[head, everybody.index],
                state=self.states[head],
                seed=int(np.random.SeedSequence((self.seed, head)).generate_state(1)[0]),
                rows=source,
                make_scores=make_scores,
                recorded=None if self.recorded is None else self.recorded[head],
                shared=shared,
                holders=holders,
            )
            stays = self.only not in (None, head)
            new = NewLabels(shown.before, shown.state) if stays else self.labeling(shown)
            labels = everybody.joined("labels", _checked(new, shown).astype(np.int32)).astype(np.int64)
            facts = {name: float(value) for name, value in new.facts.items()}
            record = self._described(head, labels, new) | facts
            record["seconds"] = time.perf_counter() - started
            found.append(Relabelled(labels, dict(new.state), new.new_classes, record))
        if source is not None:
            self._look(source, found, everybody)
        return found

    def run_over(self, keeping: Keeping, holders: Holders | None, *, has_rows: bool) -> list[Relabelled]:
        """As `run`, by those who keep rows, which all of `keeping.store` are; what came of it, on all ranks."""
        found: list[Relabelled] = []
        if keeping.is_here:
            found = self.run(keeping.store.source() if has_rows else None, holders)
        if keeping.communicator.world_size > 1 and keeping.group is None:
            found = self._from_first(found, keeping.communicator)
        return found

    def _from_first(self, found: list[Relabelled], communicator: Communicator) -> list[Relabelled]:
        """What rank 0 has found, on all ranks."""
        arrays: Arrays = {}
        if communicator.rank == 0:
            arrays = {
                "labels": np.stack([one.labels for one in found]).astype(np.int32),
                "new_classes": np.array([one.new_classes for one in found]),
                "records": np.frombuffer(json.dumps([one.record for one in found]).encode(), np.uint8),
            }
            for head, one in enumerate(found):
                arrays |= {f"{head}/{name}": np.asarray(value) for name, value in one.state.items()}
        arrays = communicator.broadcast("labels", arrays)
        states: list[Arrays] = [{} for _ in self.n_classes]
        for key, value in arrays.items():
            head_text, _, name = key.partition("/")
            if name:
                states[int(head_text)][name] = value
        labels, records = arrays["labels"].astype(np.int64), json.loads(arrays["records"].tobytes())
        return [Relabelled(*one) for one in zip(labels, states, arrays["new_classes"].tolist(), records, strict=True)]

    def _look(self, opened: Opened, found: list[Relabelled], holders: Holders) -> None:
        """Add to the records what tells a collapse, from a sample of the rows.

        best_class_share: share of samples whose best class is the most common one, before any balance.
        feature_alignment: length of the mean of features scaled to length 1, near 1 where all samples look the same.
        """
        of_features = self.reader.kind == FEATURES
        n_drawn = min(holders.n_samples, LOOKED_AT)
        drawn = draw_rows(holders.n_samples, n_drawn, np.random.default_rng(0))
        here = np.flatnonzero(np.isin(holders.index, drawn))
        sums = [np.zeros(opened.shape[1]), *(np.zeros(k, np.int64) for k in self.n_classes)]
        if len(here):
            sample = as_opened(opened.source.take(here))
            if of_features:
                rows = in_memory(sample).astype(np.float64)
                lengths = np.linalg.norm(rows, axis=1, keepdims=True)
                sums[0] = (rows / np.where(lengths > 0, lengths, 1)).sum(0)
            for head, make_scores in enumerate(scores_of_heads(self.reader, sample, self.n_classes)):
                best = in_memory(open_scores(make_scores())).argmax(1)
                sums[1 + head] = np.bincount(best, minlength=self.n_classes[head])
        total, *counts = holders.communicator.allreduce("look", *sums)
        for one, sizes in zip(found, counts, strict=True):
            if of_features:
                one.record["feature_alignment"] = float(np.linalg.norm(total / n_drawn))
            one.record["best_class_share"] = float(sizes.max() / n_drawn)

    def _described(self, head: int, labels: np.ndarray, new: NewLabels) -> dict[str, Any]:
        """Sizes of a head's classes, how many labels have changed, and how they compare with the truth."""
        before = self.before[head]
        sizes = np.bincount(labels[labels >= 0], minlength=self.n_classes[head])
        shares = sizes[sizes > 0] / max(sizes.sum(), 1)
        both = (labels >= 0) & (before >= 0)
        record = {
            "churn": metrics.churn(before[both], labels[both], matched=new.new_classes) if both.any() else 1.0,
            "smallest": int(sizes.min()),
            "largest": int(sizes.max()),
            "unlabelled": int((labels < 0).sum()),
            "entropy": float(-(shares * np.log(shares)).sum()),
        }
        if self.truth is not None:
            mixed = metrics.class_entropy(self.truth, labels)
            lower, upper = np.quantile(mixed.entropy, (0.25, 0.75)).tolist()
            record["nmi"] = metrics.nmi(self.truth, labels)
            record |= {"class_entropy": mixed.mean, "class_entropy_lower": lower, "class_entropy_upper": upper}
        return record

    def judge(self, found: list[Relabelled], looks: Looks, communicator: Communicator) -> None:
        """Add to the records the quality of labels, by the views of all ranks; nothing where there are none."""
        index, classes = looks.index, np.empty((0, len(found)), np.int64)
        if looks.rows is not None:
            classes = self._best_classes(looks.rows, found).T
        index, classes = communicator.allgather("quality", index, classes)
        _, first = np.unique(index, return_index=True)
        if len(first):
            labels = np.stack([one.labels[index[first]] for one in found])
            for one, value in zip(found, heads_foresee(classes[first].T, labels), strict=True):
                one.record["quality"] = value

    def drift(
        self, found: list[Relabelled], looks: Looks, first: np.ndarray | None, communicator: Communicator
    ) -> np.ndarray:
        """Add to the records how far features have come since the first relabelling that counts, by a few views.

        Args:
            found: what the labels are now.
            looks: of this rank, which may have none.
            first: rows of its views at the first relabelling that counts. None: this is the first.
            communicator: of the ranks; the farthest counts.

        Returns:
            The rows to compare with next time.
        """
        rows = np.empty((0, 0), np.float32)
        if looks.rows is not None and self.reader.kind == FEATURES:
            rows = looks.rows[:FEW]
        change = -1.0
        if first is None or first.shape != rows.shape:
            first = rows
        elif rows.size:
            change = float(np.linalg.norm(rows - first)) / (float(np.linalg.norm(first)) or 1.0)
        (change,) = communicator.allreduce_max("drift", change)
        for one in found:
            if change >= 0:
                one.record["feature_drift"] = change
        return first

    def _best_classes(self, rows: np.ndarray, found: list[Relabelled]) -> np.ndarray:
        """(T, n) best class of each row, with the potentials that new labels were made with, where there are any."""
        best = []
        heads = scores_of_heads(self.reader, open_scores(rows, may_be_empty=True), self.n_classes)
        for one, make_scores in zip(found, heads, strict=True):
            scores = in_memory(open_scores(make_scores()))
            potentials = one.state.get("potentials")
            if potentials is not None and potentials.shape == scores.shape[1:]:
                scores = scores + np.where(np.isnan(potentials), -np.inf, potentials)
            best.append(scores.argmax(1))
        return np.stack(best)


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
