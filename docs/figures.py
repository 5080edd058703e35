"""The pictures of these pages, drawn from runs of otlabel.

python docs/figures.py          the figures of how.md and choose.md (20 s on one core)
python docs/figures.py --demo   the README's docs/images/demo.png too: trains five networks (under a minute)
python docs/figures.py --runs   that of is_it_working.md too: trains six networks (under a minute)
make docs FIGURES=1             the same, and then the pages; without FIGURES the pictures stay as they are

All figures are seeded. They have a white ground on purpose: they are read on light and dark pages alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from otlabel import KL, Exact, balance_path, certify, sinkhorn_assign
from otlabel.commands.demo import picture as demo
from otlabel.commands.demo.runs import compare
from otlabel.storage.atomic import replacing
from otlabel.training.augment import Augmentation
from otlabel.training.config import read_config
from otlabel.training.run import train

IMAGES = Path(__file__).parent / "images"
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from synthetic import zipf_scores  # noqa: E402

INK, FAINT, OWN, OTHER, MARK = demo.INK, demo.FAINT, demo.OWN, demo.OTHER, demo.WRONG
DEMO_DPI, DEMO_COLOURS = 110, 64
N_LABELLED = 30


def main() -> None:
    """Draw all figures; the demo's only where asked for."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation from runs of otlabel.")
    parser.add_argument("--demo", action="store_true", help="also the README's picture, which takes a minute")
    parser.add_argument("--runs", action="store_true", help="also good and ruined training runs, which take a minute")
    arguments = parser.parse_args()
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "otlabel",  # the same file from the same figure
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": FAINT,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 11,
        }
    )
    scores, truth = few_labels()
    big, _ = zipf_scores(100_000, 100)
    save(sizes(scores), "sizes.svg")
    save(price(scores, truth), "price.svg")
    save(convergence(big), "convergence.svg")
    save(bound(big), "bound.svg")
    if arguments.demo:
        draw_demo()
    if arguments.runs:
        save(quality(), "quality.svg")


def few_labels() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a classifier that has seen three of each digit, for the others; and what these are."""
    images, digits = load_digits(return_X_y=True)
    seen = slice(N_LABELLED)
    model = LogisticRegression(max_iter=1000).fit(images[seen] / 16, digits[seen])
    return model.predict_log_proba(images[N_LABELLED:] / 16), digits[N_LABELLED:]


def sizes(scores: np.ndarray) -> Figure:
    """Class sizes of the best class alone and of balanced labels."""
    figure, axes = new_figure("Samples in each class", "", "class")
    free, balanced = np.bincount(scores.argmax(1), minlength=10), sinkhorn_assign(scores).counts
    places = np.arange(10)
    axes.bar(places - 0.2, free, 0.4, color=OTHER, label="best class of each sample")
    axes.bar(places + 0.2, balanced, 0.4, color=OWN, label="sinkhorn_assign")
    axes.set_xticks(places)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=10)
    return figure


def price(scores: np.ndarray, truth: np.ndarray) -> Figure:
    """What balance costs, from none to exact, and what it brings here."""
    path = balance_path(scores)
    figure = Figure(figsize=(8.4, 3.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    left.plot(path.imbalance, path.lost, marker="o", color=OWN)
    knee = path.knee
    left.plot(path.imbalance[knee], path.lost[knee], "o", markersize=13, fillstyle="none", color=MARK)
    left.annotate(
        f"knee: rho = {path.rho[knee]:.2g}", (path.imbalance[knee], path.lost[knee]), (12, -6), ha="left",
        textcoords="offset points", color=MARK,
    )  # fmt: skip
    left.invert_xaxis()
    left.set(xlabel="imbalance of the class sizes", ylabel="mean score lost")
    left.set_title("The price of balance", loc="left", weight="bold", size=12)
    accuracies = [np.mean(scores.argmax(1) == truth)]
    for rho in path.rho[1:]:
        rule = Exact() if np.isinf(rho) else KL(rho)
        accuracies.append(np.mean(sinkhorn_assign(scores, classes=rule).labels == truth))
    right.plot(path.imbalance, accuracies, marker="o", color=OWN)
    right.plot(path.imbalance[knee], accuracies[knee], "o", markersize=13, fillstyle="none", color=MARK)
    right.invert_xaxis()
    right.set(xlabel="imbalance of the class sizes", ylabel="labels that are right")
    right.set_title("What it brings here", loc="left", weight="bold", size=12)
    return figure


def convergence(scores: np.ndarray) -> Figure:
    """The class-mass error after each pass over all rows, by Newton steps and by plain Sinkhorn iterations."""
    figure, axes = new_figure("Class-mass error of the plan", "", "passes over all 100,000 rows")
    for epsilon, line in ((0.04, "-"), (0.01, "--")):
        for method, name, colour in (("auto", "Newton, coarse to fine", OWN), ("sinkhorn", "plain Sinkhorn", OTHER)):
            result = quietly(scores, epsilon=epsilon, method=method, rounding="argmax", tol=1e-4, max_sweeps=400)
            full = [step for step in result.history if step["stage"] == "solve" and step["rows"] == len(scores)]
            passes, errors = [step["n_sweeps"] for step in full], [step["error"] for step in full]
            axes.loglog(passes, errors, line, color=colour, linewidth=2, label=f"{name}, epsilon {epsilon:g}")
    axes.axhline(1e-2, color=FAINT, linewidth=1, linestyle=":")
    axes.text(415, 1.1e-2, "default tol", color=FAINT, size=9.5, ha="right", va="bottom")
    axes.set(xlim=(1.8, 420))
    axes.set_xticks([2, 5, 10, 20, 50, 100, 200, 400], ["2", "5", "10", "20", "50", "100", "200", "400"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0.3, 0.0))
    return figure


def bound(scores: np.ndarray) -> Figure:
    """How far the bound lies above the optimum, by the potentials of plain Sinkhorn, of Newton and of the repair."""
    exact = sinkhorn_assign(scores)
    figure, axes = new_figure("Bound minus the best possible value", "", "passes over all 100,000 rows")
    for epsilon, line in ((0.04, "-"), (0.01, "--")):
        gaps, passes = [], []
        for limit in (3, 5, 9, 17, 33, 65, 129):
            result = quietly(scores, epsilon=epsilon, method="sinkhorn", rounding="argmax", tol=1e-9, max_sweeps=limit)
            passes.append(result.n_sweeps - 1)  # without the one that certifies
            gaps.append(certify(scores, exact.labels, potentials=result.plan_potentials).gap)
        axes.loglog(passes, gaps, line, color=OTHER, linewidth=2, label=f"plain Sinkhorn, epsilon {epsilon:g}")
        result = quietly(scores, epsilon=epsilon, rounding="argmax")
        gap = certify(scores, exact.labels, potentials=result.plan_potentials).gap
        shape, style = ("o", "full") if line == "-" else ("D", "none")
        axes.loglog(
            result.n_sweeps - 1, gap, shape, color=OWN, fillstyle=style, markersize=8, linestyle="none",
            label=f"Newton, epsilon {epsilon:g}, tol 0.01",
        )  # fmt: skip
    floor = 1e-7
    axes.loglog(exact.n_sweeps, floor, "v", color=MARK, markersize=11, linestyle="none")
    axes.text(
        exact.n_sweeps * 1.15, floor, f"after the repair: {exact.gap:.0e}, the rounding of float64", color=MARK,
        va="center", ha="left",
    )  # fmt: skip
    axes.set(xlim=(1.8, 140), ylim=(5e-8, 1))
    axes.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0.33, 0.12))
    return figure


def quality() -> Figure:
    """What can be seen without truth of good and of ruined runs, beside what only the truth tells."""
    recipe = read_config("digits").with_values(
        labels__n_relabels=15, labels__schedule="linear", train__epochs=15, train__threads=1, evaluation__probe=False
    )
    rows = {
        "the recipe": recipe,
        "rate 1": recipe.with_values(train__lr=1.0),
        "rate 0.002": recipe.with_values(train__lr=0.002),
        "small_resnet, eval": recipe.with_values(
            model__backbone="small_resnet", model__options={"width": 8}, labels__mode="eval"
        ),
        "no augmentation": dataclasses.replace(recipe, augment=Augmentation()),
        "network too small": recipe.with_values(model__options={"widths": [4], "strides": [2]}),
    }
    colours = (OWN, OWN, OTHER, OTHER, MARK, MARK)
    figure = Figure(figsize=(8.4, 3.8), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, config) in enumerate(rows.items()):
        labeler = train(config).labeler
        n_heads = len(labeler.n_classes)
        course = {
            key: np.reshape([record[key] for record in labeler.history], (-1, n_heads)).mean(1)
            for key in ("quality", "nmi")
        }
        times = labeler.schedule.times
        for axes, key in ((left, "quality"), (right, "nmi")):
            axes.plot(times, course[key], "-" if number % 2 == 0 else "--", color=colours[number], label=name)
        told = [labeler.history[-1]["loss"], course["quality"][-1], course["nmi"][-1]]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in told)} |")
    left.set_title("Quality, which needs no truth", loc="left", weight="bold", size=12)
    right.set_title("NMI with the truth", loc="left", weight="bold", size=12)
    for axes in (left, right):
        axes.set(xlabel="epoch", ylim=(0, 1))
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=10, loc="outside lower center", ncols=3)
    return figure


def new_figure(title: str, y: str, x: str) -> tuple[Figure, Any]:
    """One set of axes on white."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot(facecolor="white")
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, loc="left", weight="bold", size=12)
    return figure, axes


def quietly(scores: np.ndarray, **options: Any) -> Any:
    """A solve that may end early, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sinkhorn_assign(scores, **options)


def save(figure: Figure, name: str) -> None:
    """One file, whole or absent."""
    with replacing(IMAGES / name) as file:
        figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
    print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


def draw_demo() -> None:
    """The demo's own picture, with fewer pixels and colours."""
    from PIL import Image

    image = io.BytesIO()
    demo.draw(compare()).savefig(image, format="png", dpi=DEMO_DPI)
    small = Image.open(image).convert("RGB").quantize(DEMO_COLOURS, dither=Image.Dither.NONE)
    with replacing(IMAGES / "demo.png") as file:
        small.save(file, format="png", optimize=True)
    print(f"{IMAGES / 'demo.png'}: {(IMAGES / 'demo.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
