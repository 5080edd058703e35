"""The picture: class sizes before and after balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from otlabel.doctor.diagnosis import Diagnosis
from otlabel.errors import MissingPackageError
from otlabel.text import range_text, with_noun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
BEFORE, AFTER = "#e0a03b", "#1f8a84"
STEEP = 10.0  # times the largest balanced class: from there on a linear scale hides the small ones
FEW_CLASSES = 60  # up to here each class gets a bar of its own


def draw(diagnosis: Diagnosis) -> Figure:
    """Class sizes by the best class alone and after balance, each from large to small.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ValueError: no row of the scores is usable.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not diagnosis.argmax_sizes:
        raise ValueError("no row of the scores is usable: there are no class sizes to draw")
    before = np.sort(diagnosis.argmax_sizes)[::-1]
    after = np.sort(diagnosis.balanced_sizes)[::-1]
    figure = Figure(figsize=(9, 4.8), facecolor=PAPER)
    figure.text(0.075, 0.925, "Class sizes before and after balance", size=16, weight="bold", color=INK)
    empty = int((before == 0).sum())
    told, balanced = (range_text(sizes, " samples") for sizes in (before, after))
    told = f"best class alone: {told}" + (f", {with_noun(empty, 'class')} empty" if empty else "")
    for height, hue, text in ((0.86, BEFORE, told), (0.81, AFTER, f"balanced: {balanced}")):
        figure.text(0.075, height - 0.002, "\N{BLACK SQUARE}", size=13, color=hue)
        figure.text(0.097, height, text, size=10.5, color=INK)
    axes = figure.add_axes((0.075, 0.125, 0.895, 0.635))
    _draw_sizes(axes, before, after)
    return figure


def _draw_sizes(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    n_classes = len(before)
    edges = np.arange(n_classes + 1) + 0.5
    if n_classes <= FEW_CLASSES:
        axes.bar(np.arange(1, n_classes + 1), before, width=0.82, color=BEFORE)
    else:
        axes.stairs(before, edges, fill=True, color=BEFORE)
    axes.stairs(after, edges, color=AFTER, linewidth=2.2, baseline=None)
    axes.set_xlim(edges[0] - 0.01 * n_classes, edges[-1] + 0.01 * n_classes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steep = before[0] > STEEP * after[0]
    if steep:
        axes.set_yscale("log")
        axes.set_ylim(0.7, 1.5 * before[0])
    else:
        axes.set_ylim(0, 1.06 * max(before[0], after[0]))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    axes.set_xlabel("classes, from large to small before as after", color=FAINT, size=10)
    axes.set_ylabel("samples (log scale)" if steep else "samples", color=FAINT, size=10)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def require_matplotlib() -> None:
    """Raise now, not after the work, where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("matplotlib", "report") from error
