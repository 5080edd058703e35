"""All samples in a plane, as a picture: near where their features are, in the colour of their class."""

from __future__ import annotations

import base64
import colorsys
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otlabel.sources import draw_rows

if TYPE_CHECKING:
    from otlabel.ranks.rowset import RowSet

MOST_SAMPLES = 20_000  # drawn
WIDTH, HEIGHT = 900, 560  # pixels, of which two are one of the page where it is sharp
FEW_CLASSES = 20  # up to here each has a colour that can be told from the others'
OUTLIERS = 0.002  # share of the samples at each end of an axis that lie on the picture's edge
SPREAD = 0.618034  # of hues, so that neighbours in number are far apart


@dataclass(frozen=True)
class Scatter:
    """The picture, and what is said of it."""

    picture: str  # a data URI
    told: str
    legend: tuple[tuple[int, str], ...]  # class and colour, where classes are few


def scatter_of(features: RowSet, labels: np.ndarray, n_classes: int, seed: int) -> Scatter | None:
    """The plane of the first two principal components; None without Pillow, or where there is nothing to draw."""
    try:
        from PIL import Image
    except ImportError:
        return None
    drawn = draw_rows(len(labels), MOST_SAMPLES, np.random.default_rng(seed))
    drawn = drawn[labels[drawn] >= 0]
    rows = features.gathered(drawn).astype(np.float64)
    if len(drawn) < 3 or not np.isfinite(rows).all():
        return None
    places, how = _places(rows)
    colours = [_colour(k) for k in range(n_classes)]
    pixels = _drawn(places, np.array(colours, np.uint8)[labels[drawn]])
    image = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(image, "PNG", optimize=True)
    some = f"{len(drawn):,} of {len(labels):,} samples" if len(drawn) < len(labels) else f"{len(drawn):,} samples"
    named = range(n_classes if n_classes <= FEW_CLASSES else 0)
    return Scatter(
        f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}",
        f"{some} by their features: {how}.",
        tuple((k, f"#{bytes(colours[k]).hex()}") for k in named),
    )


def _places(rows: np.ndarray) -> tuple[np.ndarray, str]:
    """(n, 2), and where they are from."""
    scale = float(np.abs(rows).max()) or 1.0
    centred = rows / scale - (rows / scale).mean(0)
    small = centred.T @ centred if centred.shape[1] <= len(rows) else centred @ centred.T
    values, vectors = np.linalg.eigh(small)
    share = float(values[-2:].sum() / max(values.sum(), np.finfo(float).tiny))
    axes = vectors[:, ::-1][:, :2]
    places = centred @ axes if centred.shape[1] <= len(rows) else axes * np.sqrt(np.maximum(values[::-1][:2], 0))
    if places.shape[1] < 2:
        places = np.column_stack([places, np.zeros(len(places))])
    return places, f"the first two principal components, which have {share:.0%} of the variance"


def _colour(k: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb((0.48 + SPREAD * k) % 1.0, 0.5 if k % 2 else 0.42, 0.62)
    return round(255 * red), round(255 * green), round(255 * blue)


def _drawn(places: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(HEIGHT, WIDTH, 4) uint8 with nothing between the samples; the later ones lie above the earlier."""
    low, high = np.quantile(places, (OUTLIERS, 1 - OUTLIERS), axis=0)
    size = 7 if len(places) < 1_000 else 5 if len(places) < 6_000 else 3
    room = np.array([WIDTH - 2 * size, HEIGHT - 2 * size])
    shares = ((places - low) / np.where(high > low, high - low, 1.0)).clip(0, 1)
    x, y = np.rint(size + shares * (room - 1)).astype(np.int64).T
    y = HEIGHT - 1 - y
    pixels, reach = np.zeros((HEIGHT, WIDTH, 4), np.uint8), size // 2
    for right in range(-reach, reach + 1):
        for down in range(-reach, reach + 1):
            if right * right + down * down <= (reach + 0.4) ** 2:
                pixels[y + down, x + right, :3] = colours
                pixels[y + down, x + right, 3] = 235
    return pixels
