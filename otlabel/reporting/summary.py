"""The figures of a report, all computed by the library's own functions or from one pass over scores or features."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.special import entr

from otlabel import metrics, sweep
from otlabel.certificate import certify
from otlabel.curation import k_means, nearest
from otlabel.errors import OtlabelWarning
from otlabel.path import BalancePath, balance_path
from otlabel.ranks.rowset import RowSet
from otlabel.reporting.confusion import Confusion, confusion_of
from otlabel.reporting.keywords import key_words
from otlabel.reporting.scatter import Scatter, scatter_of
from otlabel.reporting.sources import Subject
from otlabel.solver.outcome import Certificate
from otlabel.solver.posing import check_finite
from otlabel.sources import (
    Opened,
    by_row,
    cached,
    closeness,
    in_one_order,
    open_scores,
)
from otlabel.storage.label_files import check_not_absurd
from otlabel.validate import check_labels, class_numbers

PATH_ENTRIES = 10_000_000  # scores up to which the price of balance is drawn: ten solves
OF_ONE_LABEL = ("scores", "features", "images", "texts", "truth", "history")  # what is shown by the label of a sample
COMMONEST = 3  # true classes that are named for each class


@dataclass(frozen=True, eq=False)
class Fit:
    """How well each sample fits its class, by scores."""

    best: np.ndarray  # (N,) class with the largest score, the first of equal ones
    other: np.ndarray  # (N,) class with the largest score but the sample's own
    margin: np.ndarray  # (N,) own score less that of `other`; below zero: another class fits better; NaN: unlabelled
    confidence: np.ndarray  # (N,) softmax of the scores at the label; NaN: unlabelled


@dataclass(frozen=True, eq=False)
class Truth:
    """The true classes of the samples in each class."""

    purity: np.ndarray  # (K,) share of the commonest; NaN where none is known
    entropy: np.ndarray  # (K,) in nats; NaN likewise
    commonest: list[list[tuple[int, float]]]  # (K,) up to three true classes with their shares


@dataclass(frozen=True, eq=False)
class Row:
    """A line of the table of classes."""

    number: int
    name: str
    size: int
    best_size: int | None  # if each sample had its best class
    confidence: float | None  # mean
    purity: float | None
    entropy: float | None
    commonest: list[tuple[str, float]]
    words: list[str]  # that its texts are about


@dataclass(frozen=True, eq=False)
class Summary:
    """All that a report tells."""

    labels: np.ndarray  # (N,) int64, or (N, k) where a sample has several: then there are sizes and the proof alone
    n_classes: int
    sizes: np.ndarray  # (K,) int64
    names: Any  # (K,) or None
    true_names: Any
    proof: Certificate | None
    fit: Fit | None  # by scores
    closeness: Fit | None  # by features, where there are no scores
    k_means_sizes: np.ndarray | None
    path: BalancePath | None
    true_classes: np.ndarray | None  # (N,) int64
    truth: Truth | None
    agreement: dict[str, float] | None
    confusion: Confusion | None
    images: Any
    texts: Any
    key_words: list[list[str]] | None  # (K,), of texts
    scatter: Scatter | None  # of features
    epochs: list[dict[str, Any]]  # lines of epochs
    relabellings: list[dict[str, Any]]  # records of the relabellings of the labels' head
    about: tuple[str, ...]
    notes: list[str]

    @property
    def n_unlabelled(self) -> int:
        """Samples without a label."""
        return int((self.labels < 0).sum())

    @property
    def sizes_by_method(self) -> dict[str, np.ndarray]:
        """(K,) sizes, by who made them."""
        found = {"these labels": self.sizes}
        if self.fit is not None:
            found["best class of each sample"] = np.bincount(self.fit.best, minlength=self.n_classes)
        if self.k_means_sizes is not None:
            found["k-means"] = self.k_means_sizes
        return found

    @property
    def own_price(self) -> tuple[float, float] | None:
        """Imbalance and what the mean score has lost, of these labels, as `path` measures them."""
        if self.path is None or self.proof is None or self.n_unlabelled:
            return None
        imbalance = float(np.abs(self.sizes / len(self.labels) - 1 / self.n_classes).sum())
        return imbalance, float(self.path.value[0]) - self.proof.value

    @property
    def confidences(self) -> np.ndarray | None:
        """(K,) mean confidence of each class, NaN where it is empty."""
        if self.fit is None:
            return None
        known = self.labels >= 0
        sums = np.bincount(self.labels[known], self.fit.confidence[known], self.n_classes)
        return sums / np.where(self.sizes, self.sizes, np.nan)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The table of classes."""
        best = self.sizes_by_method.get("best class of each sample")
        confidences, truth = self.confidences, self.truth

        def number(values: np.ndarray | None, k: int) -> float | None:
            return None if values is None or np.isnan(values[k]) else float(values[k])

        return [
            Row(
                k,
                self.name(k),
                int(self.sizes[k]),
                None if best is None else int(best[k]),
                number(confidences, k),
                None if truth is None else number(truth.purity, k),
                None if truth is None else number(truth.entropy, k),
                [] if truth is None else [(self.true_name(c), share) for c, share in truth.commonest[k]],
                [] if self.key_words is None else self.key_words[k],
            )
            for k in range(self.n_classes)
        ]

    def name(self, k: int) -> str:
        """A class's name for people."""
        return str(k) if self.names is None else str(self.names[k])

    def true_name(self, c: int) -> str:
        """A true class's name for people."""
        known = self.true_names is not None and 0 <= c < len(self.true_names)
        return str(self.true_names[c]) if known else str(c)


def summarise(subject: Subject, seed: int = 0) -> Summary:
    """Find out all that a report tells."""
    scores = None if subject.scores is None else cached(open_scores(subject.scores))
    features = None if subject.features is None else open_scores(subject.features, what="features")
    subject = _in_order(subject, scores or features)
    labels = _checked_labels(subject)
    truth = None if subject.truth is None else class_numbers(subject.truth, "truth")
    n_samples = len(labels)
    n_classes = _n_classes(subject, labels, scores)
    _check_lengths(subject, n_samples, n_classes, scores, features)
    sizes = np.bincount(labels[labels >= 0], minlength=n_classes)
    notes = list(subject.notes)
    fit = path = closeness = k_means = scatter = None
    proof = subject.proof
    if scores is not None:
        proof = _proof(subject, scores, labels, proof)
        fit = look(RowSet(scores), labels)
        if n_samples * n_classes <= PATH_ENTRIES and n_classes > 1:
            with warnings.catch_warnings():  # told of when the labels were made, if it concerns them
                warnings.simplefilter("ignore", OtlabelWarning)
                path = balance_path(scores, seed=seed)
        elif n_classes > 1:
            notes.append(f"The price of balance is drawn for up to {PATH_ENTRIES:,} scores; these are more.")
    if features is not None:
        if n_samples >= n_classes:
            k_means, n_rows = _k_means_sizes(features, n_classes, seed)
            if n_rows < n_samples:
                notes.append(f"k-means found its centres from {n_rows:,} samples drawn at random.")
        scatter = scatter_of(RowSet(features), labels, n_classes, seed)
        if scores is None and (subject.images is not None or subject.texts is not None):
            closeness = _closeness(features, labels, n_classes)
    history = [] if subject.history is None else [dict(line) for line in subject.history]
    return Summary(
        labels=labels,
        n_classes=n_classes,
        sizes=sizes,
        names=subject.names,
        true_names=subject.true_names,
        proof=proof,
        fit=fit,
        closeness=closeness,
        k_means_sizes=k_means,
        path=path,
        true_classes=truth,
        truth=None if truth is None else _truth(truth, labels, n_classes),
        agreement=None if truth is None else metrics.compare(truth, labels),
        confusion=None if truth is None else confusion_of(truth, labels, n_classes),
        images=subject.images,
        texts=subject.texts,
        key_words=None if subject.texts is None else key_words(subject.texts, labels, n_classes, seed),
        scatter=scatter,
        epochs=[line for line in history if "update" not in line],
        relabellings=_relabellings(history, subject.head, truth),
        about=subject.about,
        notes=notes,
    )


def look(scores: RowSet, labels: np.ndarray) -> Fit:
    """Each sample's best class, best other class, margin and confidence, in one pass."""
    n_samples = len(labels)
    best, other = np.empty(n_samples, np.int64), np.empty(n_samples, np.int64)
    margin, confidence = np.empty(n_samples), np.empty(n_samples)
    with scores.reading(), np.errstate(invalid="ignore", over="ignore"):
        for (start, stop), block in scores.blocks():
            rows, own_class = np.arange(stop - start), labels[start:stop]
            block = block.astype(np.float64)
            best[start:stop] = block.argmax(1)
            own = block[rows, own_class]  # of -1 the last one, which is left out below
            block[rows, own_class] = -np.inf
            other[start:stop] = block.argmax(1)
            top = block[rows, other[start:stop]]
            margin[start:stop] = own - top
            block -= np.where(np.isfinite(top), top, 0.0)[:, None]
            others = np.exp(block, out=block).sum(1)
            confidence[start:stop] = 1 / (1 + others * np.exp(top - own))
    margin[np.isnan(margin)] = np.inf  # nothing else is allowed, nor compared with
    confidence[np.isposinf(margin)] = 1.0
    margin[labels < 0] = confidence[labels < 0] = np.nan
    return Fit(best, other, margin, confidence)


def _closeness(features: Opened, labels: np.ndarray, n_classes: int) -> Fit:
    """The same by squared distances to the means of the classes, less each other."""
    sums = np.zeros((n_classes, features.shape[1]))
    rows = RowSet(features)
    with rows.reading():
        for (start, stop), block in rows.blocks():
            own_class = labels[start:stop]
            known = own_class >= 0
            members = csr_array(
                (np.ones(known.sum()), (own_class[known], np.flatnonzero(known))), (n_classes, stop - start)
            )
            sums += members @ block.astype(np.float64)
    present, compact = np.unique(labels[labels >= 0], return_inverse=True)
    means = sums[present] / np.bincount(compact)[:, None]
    places = np.full(len(labels), -1)
    places[labels >= 0] = compact
    near = look(RowSet(closeness(features, means)).fine, places)
    return Fit(present[near.best], present[near.other], near.margin, near.confidence)


def _k_means_sizes(features: Opened, n_clusters: int, seed: int) -> tuple[np.ndarray, int]:
    """Cluster sizes, from the largest, and from how many rows the centres are."""
    centres, n_rows = k_means(RowSet(features), n_clusters, seed, "report")
    return np.sort(np.bincount(nearest(features, centres), minlength=n_clusters))[::-1], n_rows


def _truth(truth: np.ndarray, labels: np.ndarray, n_classes: int) -> Truth:
    known = (truth >= 0) & (labels >= 0)
    classes, codes = np.unique(truth[known], return_inverse=True)
    table = coo_array((np.ones(len(codes), np.int64), (labels[known], codes)), (n_classes, len(classes))).tocsr()
    purity, entropy = np.full(n_classes, np.nan), np.full(n_classes, np.nan)
    commonest: list[list[tuple[int, float]]] = [[] for _ in range(n_classes)]
    for k in range(n_classes):
        row = slice(table.indptr[k], table.indptr[k + 1])
        counts, codes_here = table.data[row], table.indices[row]
        if len(counts):
            shares = counts / counts.sum()
            order = np.lexsort((codes_here, -counts))[:COMMONEST]
            purity[k] = shares.max()
            commonest[k] = [(int(classes[codes_here[j]]), float(shares[j])) for j in order]
    mixed = metrics.class_entropy(truth, labels)
    entropy[mixed.clusters] = mixed.entropy
    return Truth(purity, entropy, commonest)


# ---- the course of a training ----


def _relabellings(history: list[dict[str, Any]], head: int, truth: np.ndarray | None) -> list[dict[str, Any]]:
    """The records of one head, with the mean entropy of the true classes in a class where it follows from them.

        H(truth | labels) = H(truth) - I(truth; labels),    I = NMI (H(truth) + H(labels)) / 2

    which holds where all samples have a label and a true class.
    """
    records = [line for line in history if "update" in line and line.get("head") == head]
    if truth is None or truth.min(initial=0) < 0:
        return records
    shares = np.unique(truth, return_counts=True)[1] / len(truth)  # a class's number may be any
    entropy = float(entr(shares).sum())
    for record in records:
        numbers = [record.get(name) for name in ("nmi", "entropy", "unlabelled")]
        if all(isinstance(one, (int, float)) for one in numbers) and record["unlabelled"] == 0:
            shared = record["nmi"] * (entropy + record["entropy"]) / 2
            record.setdefault("class_entropy", max(entropy - shared, 0.0))
    return records


# ---- the proof ----


def _proof(subject: Subject, scores: Opened, labels: np.ndarray, stated: Certificate | None) -> Certificate:
    """As stated by whoever made the labels, else found."""
    if stated is not None:
        rows = RowSet(scores)
        check_finite(rows, sweep.inspect(rows))
        return stated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OtlabelWarning)
        return certify(scores, labels, potentials=subject.potentials)


# ---- what fits together ----


def _in_order(subject: Subject, rows: Opened | None) -> Subject:
    """The same with labels and truth as arrays, in the order of the rows that they are about."""
    if rows is None:
        labels, truth = in_one_order(subject.labels, subject.truth, ("labels", "truth"))
    else:
        labels, truth = (
            by_row(values, rows.shape[0], rows.row_names, name)
            for values, name in ((subject.labels, "labels"), (subject.truth, "truth"))
        )
    return replace(subject, labels=labels, truth=truth)


def _checked_labels(subject: Subject) -> np.ndarray:
    labels = subject.labels
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iu" and len(labels):
        given = [name for name in OF_ONE_LABEL if getattr(subject, name) is not None]
        if given:
            raise ValueError(
                f"labels are several a sample, (N, {labels.shape[1]}), of which a report tells sizes and proof; leave "
                f"out {' and '.join(given)}, or pass the first ones alone, labels[:, 0]"
            )
        return check_labels(labels, len(labels), max(int(labels.max()) + 1, 1))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(f"labels must be (N,) integers, at least one; got {labels.dtype} of shape {labels.shape}")
    checked = class_numbers(labels, "labels")
    if checked.max() < 0:
        raise ValueError("all labels are -1: there is nothing to report on")
    return checked


def _n_classes(subject: Subject, labels: np.ndarray, scores: Opened | None) -> int:
    """As scores have it, else as whoever made the labels said, else as many as names or labels show."""
    needed = int(labels.max()) + 1
    if scores is not None:
        if scores.shape[1] < needed:
            raise ValueError(f"labels go up to {needed - 1}, but scores have {scores.shape[1]} columns")
        if subject.n_classes not in (None, scores.shape[1]):
            raise ValueError(
                f"the labels are of {subject.n_classes} classes, but scores have {scores.shape[1]} columns"
            )
        return scores.shape[1]
    if subject.n_classes is None:
        check_not_absurd(labels)
    named = 0 if subject.names is None else len(subject.names)
    return max(needed, subject.n_classes or named)


def _check_lengths(
    subject: Subject, n_samples: int, n_classes: int, scores: Opened | None, features: Opened | None
) -> None:
    found: dict[str, int] = {}
    for name, source in (("scores", scores), ("features", features)):
        if source is not None:
            found[name] = source.shape[0]
    for name in ("images", "texts", "truth"):
        if (value := getattr(subject, name)) is not None:
            found[name] = len(value)
    for name, length in found.items():
        if length != n_samples:
            told = "true classes (truth)" if name == "truth" else name
            raise ValueError(f"there are {n_samples:,} labels, but {length:,} {told}; give one of each for a sample")
    if subject.names is not None and len(subject.names) != n_classes:
        raise ValueError(f"there are {n_classes:,} classes, but {len(subject.names):,} names")
