"""The report: what was to be reached, whether it was, and all figures as tables."""

from __future__ import annotations

import math
from typing import Any

from machine import machine_line, number, table

from card.checking import TOL, Plan
from card.routing import ON_CARD


def targets(parts: dict[str, Any], plan: Plan) -> list[tuple[str, str, str]]:
    """What was to be reached, what was measured, and "pass" or "miss"."""
    found = {name: part.get("found", {}) for name, part in parts.items()}
    size, swept_size = ("{} x {}".format(*shape) for shape in (plan.solves[-1], plan.sweep))
    solves, heads = found.get("solves", {}), found.get("factored", {}).get("heads", [])
    entropic, exact = (solves.get(f"otlabel {rounding}, {size}", {}) for rounding in ("argmax", "exact"))
    swept, clusters, routed = (found.get(name, {}) for name in ("one sweep", "k-means", "k labels"))
    n_heads, batch = plan.factored[0], found.get("soft_assign", {}).get("soft_assign, {} x {}".format(*plan.batches[0]))
    all_heads = n_heads * sum(head["seconds"] for head in heads) / len(heads) if heads else None
    wrong = [part["wrong"] for part in (found.get("problems right", {}), found.get("streaming", {})) if "wrong" in part]
    compared = *found.get("against the CPU", {}).values(), routed.get("against the CPU", {})
    wrong += [row["wrong"] for row in compared if "wrong" in row]
    gap = abs(exact.get("gap", math.inf)) <= 1e-9 * max(1.0, abs(exact.get("value", 0.0)))
    error = entropic.get("class_error", math.inf) <= TOL
    rows = [
        (f"one sweep, {swept_size} float16: at most 2x reading it once", swept.get("sweep_over_read"), 2.0, True),
        (f"entropic, {size}, class error {TOL:g}: under 0.3 s", entropic.get("seconds"), 0.3, error),
        (f"exact and certified, {size}: under 2 s", exact.get("seconds"), 2.0, gap),
        (f"{n_heads} heads on {plan.factored[1:]}, entropic: under 20 s ({len(heads)} ran)", all_heads, 20.0, True),
        (f"soft_assign of {plan.batches[0]}, 3 iterations: under 1 ms", _seconds(batch), 1e-3, True),
        (f"{plan.routed}, labels a row last, exact: 20 ms of the card", _seconds(routed.get(ON_CARD)), 0.02, True),
        (f"k-means step {plan.clusters}: 3x its product", clusters.get("step_over_product"), 3.0, True),
        ("values of the CPU within both gaps: no problem apart", sum(map(len, wrong)) if wrong else None, 0, True),
    ]
    return [
        (what, "not measured" if value is None else _text(value), "pass" if _reached(value, most, holds) else "miss")
        for what, value, most, holds in rows
    ]


def _seconds(value: Any) -> float | None:
    """None of what failed."""
    return value if isinstance(value, float) else None


def _reached(value: float | None, most: float, holds: bool) -> bool:
    return value is not None and value <= most and holds


def to_markdown(report: dict) -> str:
    """All figures as tables."""
    lines = ["# otlabel on a card", "", machine_line(report["machine"]), f"Device: {report['card']}.", ""]
    if report["targets"]:
        lines += ["## what was to be reached", "", *table(("target", "measured", "verdict"), report["targets"]), ""]
    if "tests" in report:
        lines += ["## tests that need a card", "", report["tests"], ""]
    if "before" in report:
        lines += ["## before the kernels were measured", "", *_figures(report["before"]), ""]
    for name, part in report["parts"].items():
        found = part["found"]
        when = f", {part['of'][:16].replace('T', ' ')}" if "of" in part else ""
        lines += [f"## {name} ({part['seconds']:.1f} s{when})", ""]
        if "failure" in part:
            lines += [f"**Failed**: {part['failure']}", ""]
        if "note" in part:
            lines += [part["note"], ""]
        if name in ("solves", "peers"):
            lines += [*_solve_table(found), ""]
        elif name == "factored":
            heads = {f"head {number}": head for number, head in enumerate(found.get("heads", []))}
            rest = {key: value for key, value in found.items() if key != "heads"}
            lines += [*_figures(rest), "", *_solve_table(heads), ""]
        elif found:
            lines += [*_figures(found), ""]
    return "\n".join(lines)


def _solve_table(rows: dict[str, dict]) -> list[str]:
    header = (
        "solve", "s", "peak GB", "sweeps", "readings", "class error", "value", "gap", "sizes", "status",
        "where the time went, s",
    )  # fmt: skip
    cells = []
    for name, row in rows.items():
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row.get("stages", {}).items())
        status = row.get("status", row.get("failure", ""))
        cells.append((
            name, number(row.get("seconds"), ".3f"), number(row.get("peak_gb"), ".1f"), str(row.get("sweeps", "")),
            str(row.get("readings", "")),
            number(row.get("class_error"), ".2g"), number(row.get("value"), ".6f"), number(row.get("gap"), ".1e"),
            "{} to {}".format(*row["sizes"]) if "sizes" in row else "", status, stages,
        ))  # fmt: skip
    return table(header, cells)


def _figures(found: dict, prefix: str = "") -> list[str]:
    rows = []
    for key, value in found.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{name}: {_text(item)}" for name, item in list(value.items())[:12])
        else:
            shown = _text(value)
        rows.append((f"{prefix}{key}", shown))
    return table(("what", "figure"), rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_wrong(part: dict) -> bool:
    """Whether a part, or a row of it, failed or found what is wrong."""
    rows = [part, part["found"], *(row for row in part["found"].values() if isinstance(row, dict))]
    return any("failure" in row or row.get("wrong") or row.get("same_bits") is False for row in rows)
