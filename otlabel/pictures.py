"""What a notebook shows: pictures of matplotlib that show themselves, and summaries as tables."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

from otlabel.errors import MissingPackageError
from otlabel.text import range_text, with_noun

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
BEFORE, AFTER = "#e0a03b", "#1f8a84"
STEEP = 10.0  # times the largest balanced class: from there on a linear scale hides the small ones
FEW_CLASSES = 60  # up to here each class gets a bar of its own
DPI = 100  # of a picture in a notebook
CELL = "text-align: left; vertical-align: top; white-space: pre-line; max-width: 48em"  # colours are the notebook's


def require_matplotlib() -> None:
    """Raise now, not after the work, where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("matplotlib", "report") from error


def new_figure(**options: Any) -> Figure:
    """A figure that a notebook shows, whether or not pyplot is there; nothing stays open.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            image = io.BytesIO()
            self.savefig(image, format="png", dpi=DPI)
            return image.getvalue()

    return Shown(facecolor=PAPER, **options)


def sizes_figure(before: np.ndarray | None, after: np.ndarray) -> Figure:
    """Class sizes by the best class alone, where these are known, and after balance, each from large to small."""
    import numpy as np

    figure = new_figure(figsize=(9, 4.8))
    after = np.sort(after)[::-1]
    told = [(0.81, AFTER, f"balanced: {range_text(after, ' samples')}")]
    if before is not None:
        before = np.sort(before)[::-1]
        empty = int((before == 0).sum())
        more = f", {with_noun(empty, 'class')} empty" if empty else ""
        told.insert(0, (0.86, BEFORE, f"best class alone: {range_text(before, ' samples')}{more}"))
    title = "Class sizes" if before is None else "Class sizes before and after balance"
    figure.text(0.075, 0.925, title, size=16, weight="bold", color=INK)
    for height, hue, text in told:
        figure.text(0.075, height - 0.002, "\N{BLACK SQUARE}", size=13, color=hue)
        figure.text(0.097, height, text, size=10.5, color=INK)
    _draw_sizes(figure.add_axes((0.075, 0.125, 0.895, 0.635)), before, after)
    return figure


def _draw_sizes(axes: Axes, before: np.ndarray | None, after: np.ndarray) -> None:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    n_classes = len(after)
    edges = np.arange(n_classes + 1) + 0.5
    if before is None:
        largest = after[0]
        axes.stairs(after, edges, fill=True, color=AFTER, alpha=0.25)
    else:
        largest = max(before[0], after[0])
        if n_classes <= FEW_CLASSES:
            axes.bar(np.arange(1, n_classes + 1), before, width=0.82, color=BEFORE)
        else:
            axes.stairs(before, edges, fill=True, color=BEFORE)
    axes.stairs(after, edges, color=AFTER, linewidth=2.2, baseline=None)
    axes.set_xlim(edges[0] - 0.01 * n_classes, edges[-1] + 0.01 * n_classes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steep = largest > STEEP * after[0]
    if steep:
        axes.set_yscale("log")
        axes.set_ylim(0.7, 1.5 * largest)
    else:
        axes.set_ylim(0, 1.06 * max(largest, 1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    order = "classes, from large to small" + (" before as after" if before is not None else "")
    axes.set_xlabel(order, color=FAINT, size=10)
    axes.set_ylabel("samples (log scale)" if steep else "samples", color=FAINT, size=10)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


# ---- tables ----


def summary_html(summary: str) -> str:
    """A summary whose lines are a word and what is told of it, as a table; lines that are indented go on."""
    rows = list[list[str]]()
    for line in summary.split("\n"):
        word, _, told = line.partition(" ")
        if word:
            rows.append([word, told.strip()])
        else:
            rows[-1][1] += f" {told.strip()}"
    cells = "".join(f"<tr><th>{html.escape(word)}</th><td>{html.escape(told)}</td></tr>" for word, told in rows)
    return _table(cells)


def columns_html(head: list[str], lines: list[list[str]], marked: int | None = None, note: str = "") -> str:
    """Columns of numbers under their names; one line may stand out."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    rows = ""
    for number, line in enumerate(lines):
        weight = ' style="font-weight: bold"' if number == marked else ""
        rows += f"<tr{weight}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>"
    below = f"<p>{html.escape(note)}</p>" if note else ""
    return _table(f"<tr>{names}</tr>{rows}") + below


def _table(rows: str) -> str:
    styled = re.sub(r"<(t[hd])>", rf'<\1 style="{CELL}">', rows)
    return f'<table class="otlabel">{styled}</table>'
