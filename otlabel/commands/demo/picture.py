"""The picture: how labels improve over the epochs, above images of every class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.commands.demo.runs import METHODS, Findings, K, name_classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
OWN, OTHER = "#1f8a84", "#e0a03b"
WRONG = "#d0583f"
TYPICAL, DOUBTFUL = 13, 7  # images a row
DOUBTFUL_FROM = TYPICAL + 0.6


def draw(findings: Findings) -> Figure:
    """How labels improve over the epochs, above a montage of the classes of one run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.9), facecolor=PAPER)
    figure.text(0.05, 0.945, "A network that labels digits for itself", size=18, weight="bold", color=INK)
    grid = figure.add_gridspec(1, 2, left=0.06, right=0.975, top=0.865, bottom=0.655, wspace=0.14)
    for place, (measure, title) in enumerate((("nmi", "NMI with the true digits"), ("accuracy", "Accuracy"))):
        _draw_course(figure.add_subplot(grid[place]), findings, measure, title, place)
    _draw_montage(figure, findings)
    return figure


def _draw_course(axes: Axes, findings: Findings, measure: str, title: str, place: int) -> None:
    own, k_means = findings.runs[METHODS[1]], findings.runs[METHODS[0]]
    for run in own:
        values = [step[place] for step in run.course]
        strong = run is findings.shown
        axes.plot(
            range(1, len(values) + 1), values, color=OWN, linewidth=2.2 if strong else 1.0, alpha=1 if strong else 0.55
        )
    level = float(np.mean([getattr(run, measure) for run in k_means]))
    axes.axhline(level, color=OTHER, linewidth=1.6, linestyle=(0, (4, 2)))
    where = axes.get_yaxis_transform()
    axes.text(
        0.985, level - 0.02, "k-means on pixels, mean", transform=where, color=OTHER, size=10, ha="right", va="top"
    )
    axes.set(xlim=(0, len(own[0].course)), ylim=(0, 1))
    axes.set_xticks(range(0, len(own[0].course) + 1, 10))
    axes.set_xlabel("epoch", color=FAINT)
    axes.text(0, 1.05, f"{title}, {len(own)} seeds", size=11.5, weight="bold", color=INK, transform=axes.transAxes)
    axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)


def _draw_montage(figure: Figure, findings: Findings) -> None:
    """One row a class: the images that the network is surest of, then those that it doubts most."""
    run = findings.shown
    names = name_classes(run.labels, findings.truth)
    axes = figure.add_axes((0.035, 0.045, 0.95, 0.515))
    for line, k in enumerate(np.argsort(names)):
        members = np.flatnonzero(run.labels == k)
        members = members[np.argsort(-run.sureness[members], kind="stable")]
        axes.text(-1.0, line, str(names[k]), size=15, weight="bold", color=INK, ha="center", va="center")
        for column, i in enumerate(members[:TYPICAL]):
            _draw_image(axes, findings.images[i], column, line, findings.truth[i] == names[k])
        for column, i in enumerate(members[-DOUBTFUL:]):
            _draw_image(axes, findings.images[i], DOUBTFUL_FROM + column, line, findings.truth[i] == names[k])
        right = int((findings.truth[members] == names[k]).sum())
        told = f"{right} of {len(members)}\nare a {names[k]}"
        axes.text(DOUBTFUL_FROM + DOUBTFUL - 0.25, line, told, size=9, color=INK, va="center", linespacing=1.35)
    axes.set(xlim=(-1.35, DOUBTFUL_FROM + DOUBTFUL + 2.0), ylim=(K - 0.5, -1.1), aspect="equal", anchor="N")
    axes.axis("off")
    heading: dict[str, Any] = {"size": 11.5, "weight": "bold", "color": INK, "va": "bottom"}
    axes.text(-0.45, -0.68, "Classes it has found: images it is surest of", **heading)
    axes.text(DOUBTFUL_FROM - 0.45, -0.68, "images it doubts most", **heading)
    note = f"Seed {run.seed}, of median accuracy {run.accuracy:.2f} (thick lines). Classes are named by what fits best."
    figure.text(0.05, 0.02, note, size=10, color=FAINT)
    figure.text(0.80, 0.02, "Red frame: another digit.", size=10, color=WRONG)


def _draw_image(axes: Axes, image: np.ndarray, x: float, y: float, right: bool) -> None:
    from matplotlib.patches import Rectangle

    half = 0.44
    axes.imshow(image, cmap="gray_r", extent=(x - half, x + half, y + half, y - half), interpolation="nearest")
    edge, width = ("#d8dee4", 0.8) if right else (WRONG, 2.2)
    axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, edgecolor=edge, linewidth=width))
