"""What a solve will take, in one process or over several ranks: one model of few stated numbers.

a reading  of all scores takes what a measured sweep of them takes, or what it takes to bring them from where they are
           kept, where that is slower: from files, or through the link to a card. Readings of samples add a share
alike      on every rank: Newton's equations and the repair, which are not shared out
messages   over rank 0's link, one rank after the other (`messages.py`)
memory     the interpreter, the copy that is kept or blocks in flight, some bytes a row, samples of the rows, K vectors
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from otlabel.planning.cards import HOST_KEEPS, HOST_RATE, NETWORK, Card
from otlabel.planning.messages import NEWTON_STEPS, Step, conversation
from otlabel.planning.part import MOVES_A_ROW, Part, blocks
from otlabel.planning.summary import summary
from otlabel.solver.problem import Rounding
from otlabel.sources import ITEM_BYTES, default_limit, free_memory
from otlabel.text import bytes_text

PASSES: dict[Rounding, tuple[int, int]] = {"argmax": (6, 12), "exact": (7, 20)}  # over all scores: usual, largest met
LISTED_READINGS = 1  # of these, where the others go over lists: the first look makes them
SAMPLE_PASSES, FEW_ROWS = 12, 20  # over each sample, with all that is done on it; a class in the first, or more passes
# What could be swept meanwhile, in scores, by the host of each rank alike: for a row of all ranks that is repaired
# (1.3 s at 1,281,167 x 3000), and for an entry of the curvature and Newton step (measured at K = 300 to 3000).
REPAIR_SCORES, NEWTON_SCORES = 1000, 1000


@dataclass(frozen=True, kw_only=True)
class Estimate(Part):
    """What solving an (N, K) matrix will take; of ranks with different parts, what the most is."""

    device: str
    matrix_bytes: int  # of all that is read in a pass, by all ranks together
    passes: int  # over all scores, usually
    most_passes: int  # in the worst case met
    bytes_read: int  # by a rank from its files, with the usual passes
    memory: dict[str, int]  # a rank, of its host's, by what it is for
    peak_memory: int  # bytes of the whole process
    memory_suffices: bool
    card_memory: dict[str, int]  # the same of its card's
    card_suffices: bool
    operations: float  # of the products in a pass, all ranks together
    steps: tuple[Step, ...]  # what ranks tell each other
    rounds: int  # of messages
    pass_bytes_first: float  # that rank 0 sends in a pass
    pass_bytes_others: float  # and each other rank
    bytes_first: float  # that rank 0 sends in all
    bytes_others: float
    sweep_rate: float | None  # scores a second and rank
    read_rate: float | None  # bytes a second and rank; None: no part is read from files, or nobody knows how fast
    network: float  # bytes a second and direction
    pass_seconds: float | None  # None where it does not fit, or a rate is not known
    pass_message_seconds: float
    message_seconds: float  # in all
    serial_seconds: float  # of what is not shared out: Newton's equations, the repair
    seconds: float | None
    least_pass_seconds: float | None  # what the card's peak rates would allow, with products in bfloat16
    findings: tuple[str, ...]  # what does not fit, and what the figures leave out

    @property
    def is_plain(self) -> bool:
        """Whether this is of one process here that is given its scores."""
        return self.n_ranks == 1 and self.dim is None and self.card is None

    @property
    def cached(self) -> bool:
        """Whether what is read stays somewhere between passes."""
        return self.kept != ""

    def summary(self) -> str:
        """A few lines for people, at most 80 columns."""
        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON."""
        return asdict(self) | {name: getattr(self, name) for name in ("rows_a_rank", "kept", "cached")}


def estimate(
    shape: tuple[int, int],
    dtype: str,
    n_ranks: int = 1,
    *,
    dim: int | None = None,
    card: Card | None = None,
    rounding: Rounding = "exact",
    memory_limit: int | None = None,
    sweep_rate: float | None = None,
    read_rate: float | None = None,
    network: float = NETWORK,
) -> Estimate:
    """What solving takes, each rank a machine like this one, or one card of a server of eight.

    Args:
        shape: (N, K) of all ranks' scores, which share the rows evenly.
        dtype: "float16", "bfloat16", "float32" or "float64": of the scores, or with `dim` of the features.
        n_ranks: how many processes.
        dim: length D of features that a linear head makes the scores of, 2 N K D operations a pass in float32. None:
            the scores themselves are given.
        card: what each rank computes on, of `CARDS`. None: the CPUs of a machine like this one.
        rounding: "exact" or "argmax" labels.
        memory_limit: bytes of a rank's memory that may hold a copy of what it reads, with a card if that has too little
            of its own. None: half of this machine's free memory, or of that of a card's host.
        sweep_rate: scores a second of a CPU rank, as `measure_sweep_rate` finds. None: no time is told. A card's is
            half of what its data sheet allows.
        read_rate: bytes a second of a rank's files, as `measure_read_rate` finds. None: reading costs nothing, but to
            cards, which would wait for it: where they read in every pass, no time is told.
        network: bytes a second, in and out of rank 0.

    Returns:
        Estimate with passes, bytes, memory, messages and time; `summary()` for people, `to_dict()` for machines. No
        time is told for what does not fit into what is to be had for it; one process here takes what it finds.
    """
    if memory_limit is None:
        memory_limit = default_limit() if card is None else int(HOST_KEEPS * card.host_memory)
    part = Part(*shape, dtype, n_ranks, dim, card, rounding, memory_limit)
    (memory, card_memory), (passes, most), kept = part.memory_parts(), PASSES[rounding], part.kept
    rooms = free_memory() if card is None else card.host_memory, math.inf if card is None else card.memory
    fits = sum(memory.values()) <= rooms[0], sum(card_memory.values()) <= rooms[1]
    steps = conversation(part)
    swept = next((step for step in steps if step.name == "sweeps"), Step("sweeps", 1, 0.0, 0.0))
    message_seconds = sum(step.seconds(n_ranks, network) for step in steps)
    host_rate = sweep_rate if sweep_rate and dim is None and card is None else HOST_RATE
    if card is not None:
        sweep_rate = card.sweep_rate(part.n_classes, dim, ITEM_BYTES[dtype])
    entries = 0.0 if part.dense_on_card else part.curvature_entries
    serial = (NEWTON_SCORES * NEWTON_STEPS * entries + REPAIR_SCORES * part.moves / MOVES_A_ROW) / host_rate
    is_told = all(fits) or (n_ranks == 1 and card is None)
    pass_seconds, seconds = _reading(part, sweep_rate, read_rate) if is_told else (None, None)
    return Estimate(
        **vars(part),
        device="CPUs like these" if card is None else f"{card.name} cards",
        matrix_bytes=part.n_rows * part.row_bytes,
        passes=passes,
        most_passes=most,
        bytes_read=part.n_bytes * (1 if kept else _readings(part)),
        memory=memory,
        peak_memory=sum(memory.values()),
        memory_suffices=fits[0],
        card_memory=card_memory,
        card_suffices=fits[1],
        operations=2.0 * part.n_rows * part.n_classes * (dim or 0),
        steps=tuple(steps),
        rounds=sum(step.times * step.rounds for step in steps),
        pass_bytes_first=swept.first / swept.times,
        pass_bytes_others=swept.others / swept.times,
        bytes_first=sum(step.first for step in steps),
        bytes_others=sum(step.others for step in steps),
        sweep_rate=sweep_rate,
        read_rate=read_rate,
        network=network,
        pass_seconds=pass_seconds,
        pass_message_seconds=swept.seconds(n_ranks, network) / swept.times,
        message_seconds=message_seconds,
        serial_seconds=serial,
        seconds=None if seconds is None else seconds + serial + message_seconds,
        least_pass_seconds=_least_pass_seconds(part),
        findings=tuple(_findings(part, memory, card_memory, rooms)),
    )


def _readings(part: Part) -> int:
    """Passes that read all scores."""
    return LISTED_READINGS if part.is_listed else PASSES[part.rounding][0]


def _reading(part: Part, sweep_rate: float | None, read_rate: float | None) -> tuple[float | None, float | None]:
    """Seconds of a pass, and of all passes and samples; None where a rate is not known that decides."""
    card, kept = part.card, part.kept
    if sweep_rate is None or (card is not None and kept == "" and read_rate is None):
        return None, None
    reading = 0.0 if read_rate is None else part.n_bytes / read_rate
    moving = part.n_bytes / card.link if card is not None and kept == "host" else 0.0 if kept else reading
    a_pass = max(part.rows_a_rank * part.n_classes / sweep_rate, moving)
    first = max(reading - a_pass, 0.0)  # that the first pass takes longer
    solved = part.samples[:1] if part.is_listed else part.samples
    on_samples = SAMPLE_PASSES * sum(solved) * part.n_classes / part.n_ranks / sweep_rate
    computed = part.rows_a_rank * part.n_classes / sweep_rate  # by lists, less; by the samples' halves, more
    on_lists = (PASSES[part.rounding][0] - _readings(part)) * min(a_pass, computed)
    return a_pass, _readings(part) * a_pass + on_lists + first + on_samples


def _least_pass_seconds(part: Part) -> float | None:
    if part.card is None or part.kept != "card":
        return None
    flops = 2.0 * part.rows_a_rank * part.n_classes * (part.dim or 0)
    return max(part.n_bytes / part.card.bandwidth, flops / part.card.bfloat16)


def _findings(part: Part, memory: dict[str, int], card_memory: dict[str, int], rooms: tuple[float, float]) -> list[str]:
    """What does not fit and why, and where the figures are less sure."""
    n_classes, n_ranks, card, samples = part.n_classes, part.n_ranks, part.card, part.samples
    n_blocks, longest = blocks(part.n_rows, n_classes)
    causes = {
        "blocks in flight": f", as a block has {longest:,} rows x {n_classes:,} classes",
        "candidates": ", since each rank repairs with those of all; --rounding argmax has none",
        "rows": f", for {part.rows_a_rank:,} rows; more ranks would have fewer each",
    }
    found = []
    for parts, room, where in ((memory, rooms[0], "memory"), (card_memory, rooms[1], "card's memory")):
        if sum(parts.values()) > room:
            name = max(parts, key=parts.__getitem__)
            found.append(
                f"DOES NOT FIT into the {where} of a rank, {bytes_text(room)}: {name} take "
                f"{bytes_text(parts[name])}{causes.get(name, '')}"
            )
    if card is None and n_blocks < n_ranks:
        found.append(f"rows are in {n_blocks:,} blocks, so that {n_ranks - n_blocks:,} ranks have nothing to do")
    if part.kept == "host":
        found.append("a rank's part is more than its card may keep: each pass waits for the host's link to the card")
    if part.kept == "" and (card is not None or n_ranks > 1):
        found.append("a rank's part is more than its memory may keep: each pass reads its files again")
    if samples and samples[0] < FEW_ROWS * n_classes:
        found.append(
            f"samples have at most {samples[-1]:,} rows for {n_classes:,} classes, fewer than the {FEW_ROWS} a "
            "class of all solves whose passes were counted: it may take more passes"
        )
    if card is not None:
        found.append("rates of cards are half of their data sheets'; only an H200 was timed")
    return found
