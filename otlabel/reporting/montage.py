"""Examples of each class: those most typical of it, those on its border, and those that another class would fit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otlabel.reporting.painter import Painter
from otlabel.reporting.strips import PICTURES as PICTURES_OF_ALL
from otlabel.reporting.strips import Strips, strips_of
from otlabel.reporting.words import NAME_LENGTH, TEXT_LENGTH, shown

if TYPE_CHECKING:
    from otlabel.reporting.summary import Summary

ALL_CLASSES, FIRST_CLASSES, RANDOM_CLASSES = 24, 16, 8  # with more than the first, so many of the best and at random
PICTURES, LINES = (10, 6, 6), (5, 3, 3)  # typical, borderline and moved examples of a class
COARSE = 32  # pixels of a side up to which they are not blurred
GROUPS = ("typical", "borderline", "moved")


@dataclass(frozen=True)
class Example:
    """One sample as it is shown."""

    index: int
    picture: str | None  # a data URI
    text: str | None
    other: str | None  # the class that it might also be in
    true: str | None  # its true class
    odd: bool  # whether that is not the commonest of its class


@dataclass(frozen=True)
class ShownClass:
    """Examples of one class, by group."""

    name: str
    size: int
    fact: str  # what classes are sorted by
    groups: dict[str, list[Example]]


@dataclass(frozen=True)
class Part:
    """Classes under one heading."""

    title: str
    told: str
    classes: list[ShownClass]


@dataclass(frozen=True)
class Montage:
    """The classes that are shown, and in which order."""

    parts: list[Part]
    titles: dict[str, str]  # what is written over the groups
    coarse: bool  # whether pictures have so few pixels that these are to be seen
    strips: Strips | None  # of all classes, where not all are above


def montage(summary: Summary, seed: int) -> Montage | None:
    """Examples of all classes, or of some where there are many; None where there is nothing to show of a sample."""
    if summary.images is None and summary.texts is None:
        return None
    rng = np.random.default_rng(seed)
    chosen = _chosen(summary, rng)
    members = members_of(summary)
    samples = {int(k): picked(summary, members[k], rng) for _, _, classes in chosen for k in classes}
    painter = None if summary.images is None else Painter(summary.images, [i for g in samples.values() for i in g])
    coarse = painter is not None and painter.side <= COARSE
    parts = [
        Part(title, told, [_shown_class(summary, int(k), samples[int(k)], painter) for k in classes])
        for title, told, classes in chosen
    ]
    strips = None
    if len(parts) > 1:
        first = [list(picked(summary, one, rng))[:PICTURES_OF_ALL] for one in members]
        strips = strips_of(first, summary.texts, painter)
    return Montage(parts, _titles(summary), coarse, strips)


def members_of(summary: Summary) -> list[np.ndarray]:
    """The samples of each class."""
    by_class = np.argsort(summary.labels, kind="stable")
    starts = np.searchsorted(summary.labels[by_class], np.arange(summary.n_classes + 1))
    return [by_class[start:stop] for start, stop in itertools.pairwise(starts)]


def _chosen(summary: Summary, rng: np.random.Generator) -> list[tuple[str, str, np.ndarray]]:
    """A heading, a sentence, and classes in their order: all that are not empty, or the best and some of the others.

    The best are those of lowest entropy, the others are drawn, as in the appendix of Asano, Rupprecht, Vedaldi,
    "Self-labelling via simultaneous clustering and representation learning", ICLR 2020.
    """
    there, order = np.flatnonzero(summary.sizes), ""
    best = by = -np.arange(summary.n_classes, dtype=np.float64)
    of = "lowest number"
    if summary.truth is not None:
        best, by, of, order = -summary.truth.entropy, summary.truth.purity, "lowest entropy", ", sorted by purity"
    elif (confidences := summary.confidences) is not None:
        best, by, of, order = confidences, confidences, "highest confidence", ", sorted by confidence"

    def ranked(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The largest value first; of equal ones the larger class, then the one with the lower number."""
        known = np.nan_to_num(values[classes], nan=-np.inf)
        return classes[np.lexsort((classes, -summary.sizes[classes], -known))]

    if len(there) <= ALL_CLASSES:
        return [("Examples of classes", f"All {len(there)} classes{order}.", ranked(by, there))]
    first, others = np.split(ranked(best, there), [FIRST_CLASSES])
    drawn = rng.choice(others, RANDOM_CLASSES, replace=False)
    return [
        (f"Classes of {of}", f"{FIRST_CLASSES} of {len(there):,} classes{order}.", ranked(by, first)),
        ("Classes at random", f"{RANDOM_CLASSES} of the other {len(others):,} classes{order}.", ranked(by, drawn)),
    ]


def _titles(summary: Summary) -> dict[str, str]:
    if summary.fit is not None:
        return {
            "typical": "Most typical",
            "borderline": "Borderline, with the second choice",
            "moved": "Moved in by balance, with the class that scores higher",
        }
    if summary.closeness is not None:
        return {
            "typical": "Most typical, by features",
            "borderline": "Borderline, with the next class",
            "moved": "Nearer to another class",
        }
    return {"typical": "Drawn at random"}


def picked(summary: Summary, members: np.ndarray, rng: np.random.Generator) -> dict[int, str]:
    """Which samples of a class are shown, in order, and in which group."""
    n_typical, n_borderline, n_moved = LINES if summary.images is None else PICTURES
    fit = summary.closeness if summary.fit is None else summary.fit
    if fit is None:
        n_all = min(n_typical + n_borderline, len(members))
        return dict.fromkeys(np.sort(rng.choice(members, n_all, replace=False)).tolist(), "typical")
    members = members[np.argsort(-fit.margin[members], kind="stable")]
    n_fitting = int((fit.margin[members] >= 0).sum())
    typical, rest = members[:n_fitting][:n_typical], members[:n_fitting][n_typical:]
    moved = members[n_fitting:][::-1]  # the farthest first
    picked = dict.fromkeys(typical.tolist(), "typical")
    picked |= dict.fromkeys(rest[::-1][:n_borderline].tolist(), "borderline")
    return picked | dict.fromkeys(moved[:n_moved].tolist(), "moved")


def _shown_class(summary: Summary, k: int, picked: dict[int, str], painter: Painter | None) -> ShownClass:
    row = summary.rows[k]
    if row.purity is not None:
        commonest = shown(row.commonest[0][0], NAME_LENGTH)
        fact = f"purity {row.purity:.2f}, entropy {row.entropy:.2f}, most often {commonest}"
    else:
        fact = "" if row.confidence is None else f"confidence {row.confidence:.2f}"
    if row.words:
        about = " \N{MIDDLE DOT} ".join(row.words)
        fact = f"{fact}, about {about}" if fact else f"about {about}"
    groups: dict[str, list[Example]] = {name: [] for name in GROUPS}
    for index, group in picked.items():
        groups[group].append(_example(summary, k, index, group, painter))
    return ShownClass(row.name, row.size, fact, {name: found for name, found in groups.items() if found})


def _example(summary: Summary, k: int, index: int, group: str, painter: Painter | None) -> Example:
    fit = summary.closeness if summary.fit is None else summary.fit
    true, odd = None, False
    if summary.truth is not None and summary.true_classes is not None and summary.true_classes[index] >= 0:
        true_class = int(summary.true_classes[index])
        true, odd = summary.true_name(true_class), true_class != summary.truth.commonest[k][0][0]
    return Example(
        index,
        None if painter is None else painter.data_uri(index),
        None if summary.texts is None else shown(summary.texts[index], TEXT_LENGTH),
        None if fit is None or group == "typical" else summary.name(int(fit.other[index])),
        true,
        odd,
    )
