"""A plan in a few lines for people."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from otlabel.sources import ITEM_BYTES
from otlabel.text import bytes_text, duration

if TYPE_CHECKING:
    from otlabel.planning.model import Estimate

HOW = {
    "memory": "read once, then kept in memory",
    "card": "read once, then kept in the card's memory",
    "host": "read once, then kept in the host's memory and moved to the card in every pass",
    "": "streamed from files in every pass",
}
TOLD = "hashes", "curvature", "candidates"  # what travels besides passes


def summary(plan: Estimate) -> str:
    """At most 80 columns; of one process that is given its scores, without what only ranks and cards have."""
    scores = f"{plan.n_rows:,} samples x {plan.n_classes:,} classes, "
    size = bytes_text(plan.n_rows * (plan.dim or plan.n_classes) * ITEM_BYTES[plan.dtype])
    scores += f"{plan.dtype}: {size}" if plan.dim is None else f"from {plan.dim:,} {plan.dtype} features: {size}"
    passes = f"about {plan.passes}, at most {plan.most_passes}, to {plan.rounding} labels"
    lines = [("scores", scores), ("passes", passes), *(_alone(plan) if plan.is_plain else _ranks(plan))]
    if not plan.is_plain:
        ranks = "1 rank" if plan.n_ranks == 1 else f"{plan.n_ranks:,} ranks"
        lines.insert(1, ("ranks", f"{ranks} on {plan.device}, up to {plan.rows_a_rank:,} rows each"))
    lines += [("note", finding) for finding in plan.findings]
    return "\n".join(
        textwrap.fill(f"{name:10s}{text}", 80, subsequent_indent=" " * 10, break_on_hyphens=False)
        for name, text in lines
    )


def _alone(plan: Estimate) -> list[tuple[str, str]]:
    passes = "in one of the passes" if plan.is_listed else "in every pass"
    how = HOW["memory"] if plan.cached else f"streamed from the file {passes}"
    limit = f"(memory limit {bytes_text(plan.memory_limit)})"
    lines = [
        ("reading", f"{how}: {bytes_text(plan.bytes_read)} in all {limit}"),
        ("memory", f"{bytes_text(plan.peak_memory)} at its peak, of the whole process"),
    ]
    if plan.seconds is not None and plan.sweep_rate is not None:
        read = "" if plan.read_rate is None else f", the file reads at {bytes_text(plan.read_rate)}/s"
        # Less than a second is less than what a process takes to start.
        seconds = "under a second" if plan.seconds < 1 else f"about {duration(plan.seconds)}"
        lines.append(("time", f"{seconds}; measured just now: {plan.sweep_rate:.2g} scores/s{read}"))
    return lines


def _ranks(plan: Estimate) -> list[tuple[str, str]]:
    read = "" if not plan.bytes_read else f": {bytes_text(plan.bytes_read)} a rank in all"
    card = f"; on the card {_room(plan.card_memory, plan.card_suffices)}" if plan.card_memory else ""
    lines = [
        ("reading", HOW[plan.kept] + read),
        ("memory", f"a rank, at its peak: {_room(plan.memory, plan.memory_suffices)}{card}"),
    ]
    if plan.n_ranks > 1:
        once = ", ".join(f"{step.name} {bytes_text(step.first)}" for step in plan.steps if step.name in TOLD)
        lines += [
            ("network", f"in a pass rank 0 sends {bytes_text(plan.pass_bytes_first)}, each other rank "
                        f"{bytes_text(plan.pass_bytes_others)}; in all {bytes_text(plan.bytes_first)} and "
                        f"{bytes_text(plan.bytes_others)}, {plan.rounds} rounds"),
            ("", f"of which besides passes, by rank 0: {once}"),
        ]  # fmt: skip
    return [*lines, ("time", _time(plan))]


def _time(plan: Estimate) -> str:
    if plan.pass_seconds is None or plan.seconds is None:
        fits = plan.memory_suffices and plan.card_suffices
        return f"not told, since {'a rate is not known' if fits else 'this does not fit'}"
    least = messages = ""
    if plan.least_pass_seconds is not None:
        least = f" (its peak rates would allow {_brief(plan.least_pass_seconds)})"
    alike = f"{_brief(plan.serial_seconds)} in the host"
    if plan.n_ranks > 1:
        messages = f", and {_brief(plan.pass_message_seconds)} of messages"
        alike = f"{_brief(plan.message_seconds)} messages and {_brief(plan.serial_seconds)} on every rank alike"
    return (
        f"a pass {_brief(plan.pass_seconds)}{least}{messages}; in all about {duration(plan.seconds)}, of which {alike}"
    )


def _room(parts: dict[str, int], suffices: bool) -> str:
    largest = max(parts, key=parts.__getitem__)
    text = f"{bytes_text(sum(parts.values()))}, most of it for {largest} ({bytes_text(parts[largest])})"
    return text if suffices else f"{text}, MORE THAN THERE IS"


def _brief(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else duration(seconds)
