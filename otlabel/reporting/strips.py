"""What the table of all classes shows of each: a few small pictures, or the beginning of a text, as there is room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from otlabel.reporting.painter import Painter
from otlabel.reporting.words import shown

PICTURES = 4  # of a class, at most
SIDE = 32  # pixels of one, at most
LENGTH = 100  # characters of a text, at most
ROOM = 3_000_000  # characters that all of them may take
AROUND = 90  # characters of the page that a picture takes besides
TRIED = 40  # pictures that tell how large the others are


@dataclass(frozen=True)
class Strip:
    """Of one class."""

    pictures: list[tuple[int, str]]  # samples, and data URIs
    text: str


@dataclass(frozen=True)
class Strips:
    """Of all classes, and how much that is."""

    of_class: list[Strip]  # (K,)
    told: str


def strips_of(samples: list[list[int]], texts: Any, painter: Painter | None) -> Strips:
    """As much of each class as fits; where one picture a class does not, the classes with the lowest numbers have one.

    Args:
        samples: of each class, the best first.
        texts: of all samples, for where there are no images.
        painter: of their images.
    """
    there = [one for one in samples if one]
    if painter is None:
        length = min(LENGTH, ROOM // len(there))
        if length < 10:
            return Strips([Strip([], "")] * len(samples), "There are too many to show a text of each.")
        found = [Strip([], shown(texts[one[0]], length) if one else "") for one in samples]
        return Strips(found, "With the beginning of a text of each.")

    tried = [one[0] for one in there[:: -(-len(there) // TRIED)]]
    size = AROUND + sum(len(painter.thumbnail(i, SIDE)) for i in tried) / len(tried)
    n_pictures = int(min(PICTURES, max(1, ROOM // (size * len(there)))))
    n_classes = min(len(there), int(ROOM // size))
    found, left = list[Strip](), n_classes
    for one in samples:
        some = one[:n_pictures] if left else []
        left -= bool(some)
        found.append(Strip([(i, painter.thumbnail(i, SIDE)) for i in some], ""))
    told = f"With {n_pictures} small picture{'s' if n_pictures > 1 else ''} of each"
    less = f": a page has room for {n_pictures * n_classes:,}" if n_pictures < PICTURES else ""
    if n_classes < len(there):
        told, less = f"With a small picture of the first {n_classes:,}", ": a page has no room for more"
    return Strips(found, f"{told}{less}.")
