"""Drawings of a report as inline SVG, whose colours the page's style decides, so that they suit light and dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from otlabel.text import range_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from otlabel.path import BalancePath

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 14, 42  # margins, where ticks and titles are
BARS = 40  # classes up to which sizes are drawn as bars, else as curves
POINTS = 400  # of a curve, at most
N_TICKS = 4
STYLES = ("own", "other", "third")  # classes of the style sheet, in the order of the series
COURSES = {
    "loss": "Loss",
    "churn": "Churn: share of labels that changed",
    "quality": "Quality: how far heads foresee labels from views",
    "nmi": "NMI with the truth",
    "class_entropy": "Entropy of true classes in a class, nats",
}


@dataclass(frozen=True)
class Figure:
    """A drawing with its words; `legend` has pairs of style and name."""

    title: str
    told: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Axis:
    """From numbers to places."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, about four."""
        low, high = sorted((self.low, self.high))
        rough = (high - low) / N_TICKS
        if not rough > 0:
            return [low]
        power = 10 ** math.floor(math.log10(rough))
        step = power * min((1, 2, 5, 10), key=lambda times: abs(math.log(times * power / rough)))
        return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def sizes(by_method: dict[str, np.ndarray]) -> Figure:
    """Class sizes from the largest to the smallest: bars where classes are few, else curves."""
    ranked = [np.sort(one)[::-1] for one in by_method.values()]
    n_classes = len(ranked[0])
    y = _Axis(0, max(float(one.max()) for one in ranked) * 1.05, HEIGHT - BOTTOM, TOP)
    x = _Axis(0.5, n_classes + 0.5, LEFT, WIDTH - RIGHT)
    parts = [_frame(x, y, "classes, from the largest to the smallest", "samples")]
    for number, (style, counts) in enumerate(zip(STYLES, ranked, strict=False)):
        if n_classes <= BARS:
            width = 0.8 / len(ranked)
            for place, count in enumerate(counts.tolist()):
                left, top = x.at(place + 0.6 + number * width), y.at(count)
                right = x.at(place + 0.6 + (number + 1) * width)
                parts.append(
                    f'<rect class="fill {style}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                    f'height="{y.start - top:.1f}"><title>{count:,}</title></rect>'
                )
        else:
            places = np.unique(np.linspace(0, n_classes - 1, POINTS).astype(int))
            parts.append(_line([(x.at(place + 1), y.at(float(counts[place]))) for place in places], style))
    told = "; ".join(f"{name}: {range_text(one)}" for name, one in zip(by_method, ranked, strict=True))
    return Figure(
        "Class sizes", f"{_capital(told)}.", _svg(parts, "Class sizes"), tuple(zip(STYLES, by_method, strict=False))
    )


def price(path: BalancePath, own: tuple[float, float] | None) -> Figure:
    """Mean score lost against imbalance, from the best class of each sample to equal sizes; where these labels are."""
    lost, imbalance, knee = path.lost, path.imbalance, path.knee
    most = float(imbalance.max()), float(lost.max())
    if own is not None:
        most = max(most[0], own[0]), max(most[1], own[1])
    x = _Axis((most[0] or 1.0) * 1.03, 0, LEFT, WIDTH - RIGHT)  # equal sizes are on the right
    y = _Axis(0, (most[1] or 1.0) * 1.08, HEIGHT - BOTTOM, TOP)
    points = [(x.at(float(a)), y.at(float(b))) for a, b in zip(imbalance, lost, strict=True)]
    parts = [_frame(x, y, "imbalance of class sizes (0: equal)", "mean score lost"), _line(points, "own")]
    parts += [_dot(point, 3.2, "fill own") for point in points]
    parts.append(_dot(points[knee], 8, "ring other"))
    legend = [("own", "from no balance to equal sizes"), ("other", "knee")]
    if own is not None:
        at = x.at(own[0]), y.at(max(own[1], 0.0))
        parts.append(f'<path class="fill third" d="M{at[0]:.1f} {at[1] - 6:.1f}l6 6l-6 6l-6 -6z"/>')
        legend.append(("third", "these labels"))
    where = "at equal sizes" if math.isinf(path.rho[knee]) else f"at rho = {path.rho[knee]:.3g}"
    told = (
        f"Equal sizes cost {lost[-1]:.3g} of the mean score and change {path.changed[-1]:.1%} of the labels. The knee, "
        f"from where balance begins to cost more than it brings, is {where}, which costs {lost[knee]:.3g}."
    )
    return Figure("The price of balance", told, _svg(parts, "The price of balance"), tuple(legend))


class _Times(NamedTuple):
    """What all courses have in common: when they end, and what is marked on the way."""

    last: float
    marked: list[float]
    marks: str


def courses(epochs: list[dict[str, Any]], relabellings: list[dict[str, Any]]) -> list[Figure]:
    """The loss by epoch, what is known of the labels by relabelling, else by epoch; the times of relabelling marked."""
    marked, marks = _values(relabellings, "epochs_trained", "epochs_trained"), "relabellings"
    if not marked:
        anew = [line for line in epochs if line.get("relabellings")]
        marked, marks = _values(anew, "epoch", "epoch"), "epochs with a relabelling"
    at = [time for time, _ in marked]
    last = max([*at, *(time for time, _ in _values(epochs, "epoch", "epoch")), 1.0])
    found = []
    for key, title in COURSES.items():
        by_epoch, by_relabelling = _values(epochs, "epoch", key), _values(relabellings, "epochs_trained", key)
        points = by_epoch or by_relabelling if key == "loss" else by_relabelling or by_epoch
        if points:
            found.append(_course(key, title, points, _quartiles(relabellings, key), _Times(last, at, marks)))
    return found


def _values(lines: list[dict[str, Any]], at: str, key: str) -> list[tuple[float, float]]:
    """Times and values of those lines that have both."""
    return [(float(line[at]), float(line[key])) for line in lines if _finite(line.get(at)) and _finite(line.get(key))]


def _quartiles(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float, float]]:
    """Times, lower and upper quartiles over the classes; histories of earlier versions have none."""
    lower, upper = (dict(_values(lines, "epochs_trained", f"{key}_{side}")) for side in ("lower", "upper"))
    return [(at, lower[at], upper[at]) for at in lower if at in upper]


def _course(
    key: str,
    title: str,
    points: list[tuple[float, float]],
    quartiles: list[tuple[float, float, float]],
    times: _Times,
) -> Figure:
    epochs, values = zip(*points, strict=True)
    high = 1.0 if key in ("nmi", "quality") else max(*values, *(upper for *_, upper in quartiles), 0.0) * 1.08 or 1.0
    x = _Axis(min(0.0, *epochs, *times.marked), times.last, LEFT, WIDTH - RIGHT)
    y = _Axis(min(0.0, *values), high, HEIGHT - BOTTOM, TOP)
    places = [(x.at(epoch), y.at(value)) for epoch, value in points]
    ticks = "".join(f"M{x.at(epoch):.1f} {y.start:.1f}v5" for epoch in times.marked)  # below the axis: curves end on it
    parts = [
        _frame(x, y, "epoch", ""),
        f'<path class="mark other" d="{ticks}"/>',
    ]
    told = f"{values[-1]:.3g} after {epochs[-1]:.4g} epochs"
    legend = [("other", times.marks)] if times.marked else []
    if quartiles:
        around = [(at, upper) for at, _, upper in quartiles] + [(at, lower) for at, lower, _ in reversed(quartiles)]
        parts.append(_band([(x.at(at), y.at(value)) for at, value in around], "own"))
        told += f"; the middle half of the classes {quartiles[-1][1]:.3g} to {quartiles[-1][2]:.3g}"
        legend.insert(0, ("own", "mean; shaded: the middle half of the classes"))
    parts.append(_line(places, "own"))
    if len(places) < BARS:
        parts += [_dot(place, 2.6, "fill own") for place in places]
    return Figure(title, f"{told}.", _svg(parts, title), tuple(legend))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _frame(x: _Axis, y: _Axis, x_title: str, y_title: str) -> str:
    """Grid lines, ticks and titles."""
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in x.ticks():
        parts.append(
            f'<text x="{x.at(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{x_title}</text>')
    if y_title:
        centre = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text transform="translate(13 {centre:.0f}) rotate(-90)" text-anchor="middle">{y_title}</text>')
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line(points: list[tuple[float, float]], style: str) -> str:
    return f'<path class="line {style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def _band(points: list[tuple[float, float]], style: str) -> str:
    """The area that points go around."""
    return f'<path class="fill band {style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}Z"/>'


def _dot(point: tuple[float, float], radius: float, style: str) -> str:
    return f'<circle class="{style}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="{radius}"/>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _svg(parts: list[str], title: str) -> Markup:
    """One drawing; everything in it is numbers and words of our own."""
    from markupsafe import Markup

    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    return Markup("".join([head, *parts, "</svg>"]))
