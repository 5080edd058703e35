"""What a solve over several ranks will take: the model of one process, and what travels.

a pass    each rank sends 24 K bytes to rank 0, which answers each with 16 K: O(ranks K) there, O(K) elsewhere
once      hashes of a million rows, the curvature's rows at each Newton step, and with exact labels the candidates to
          move, which are O(N): each rank gets all of them from rank 0, and repairs them like all others
time      the slowest rank's part of a pass; the messages over rank 0's link, one rank after the other; and what is
          not shared out: Newton's equations and the repair
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from otlabel.planning.process import (
    PASSES,
    ROW_BYTES,
    SAMPLE_PASSES,
    blocks,
    memory_parts,
    plain,
)
from otlabel.problem import Rounding
from otlabel.ranks.communicator import DIGIT_BITS, FEW_NUMBERS
from otlabel.ranks.wire import FRAME
from otlabel.result import bytes_text
from otlabel.solver.equal_rows import HASHES
from otlabel.solver.objective import CURVATURE_ENTRIES, CURVATURE_ROWS, DEVICE_CLASSES
from otlabel.solver.samples import COARSE_ROWS, FEWEST_ROWS, LOOK_ROWS, LOOK_ROWS_A_CLASS, sample_sizes
from otlabel.solver.slack import MOVES_A_CLASS, MOVES_A_ROW
from otlabel.sources import ITEM_BYTES, default_limit, free_memory
from otlabel.sources.caching import CACHE_SHARE
from otlabel.sources.device import BLOCK_BYTES, MEMORY_SHARE
from otlabel.sources.linear import DEVICE_ENTRIES
from otlabel.sweep import WAITING_PARTS
from otlabel.sweep.blocks import SPAN_ENTRIES

NETWORK = 25e9  # bytes a second and direction between machines, where none is stated: 200 Gb/s, one InfiniBand HDR port
MESSAGE_SECONDS = 3e-4  # of each other rank, to be heard and answered by rank 0: measured with gloo on one machine
TORCH_BYTES = 250 << 20  # that torch.distributed adds to the interpreter: measured with torch 2 on a CPU
CUDA_BYTES = 3 << 30  # of host memory, for CUDA's libraries: assumed
HEADER_BYTES = 200  # of a message: sizes and names of its arrays
SETTINGS_BYTES = 400  # the arguments that must be alike, as JSON
LADDER_LEVELS = 2  # of epsilon above the one asked for, as a rule
FIRST_SAMPLE_PASSES, SAMPLE_PASSES_EACH = 8, 2  # over the smallest sample, and over each larger one: counted
NEWTON_STEPS = 4  # about half of them on the smallest sample: counted
ENTRIES_A_ROW = (
    3  # of the plan at epsilon .04, above the curvature's threshold: counted, 2 to 4 on clusters of Zipf size
)
ENTRY_BYTES, ENTRY_ROW_BYTES = 8, 8  # of the curvature as it travels
MOVE_BYTES = 52  # a candidate move as it travels: 28 for its row, 12 for each of two classes
SLACK_SHARE = 0.5  # costs told for each row of the sample that the first slack is judged by: counted
REPAIR_SECONDS = (
    1e-6  # a row of all ranks, not shared out: measured, 1.3 s at 1,281,167 x 3000 and .75 s at 10^6 x 1000
)
NEWTON_SECONDS = 1e-6  # an entry of the curvature and Newton step, not shared out: measured at K = 300 to 3000
CARD_SHARE = 0.5  # of a data sheet's rates is counted on: an H200 read 4.2 to 4.5 of its 4.8 TB/s, a sweep 3.1
SCORE_BYTES = 16, 20  # through a card's memory for each score that is made: product, log-softmax, and 1 or 2 reads
FUSED_CLASSES = 8192  # up to here a sweep on a card reads a score once, beyond that twice
CARD_PARTIAL_BYTES = 32  # a class and block on a card: sums that wait in host memory to be added up


@dataclass(frozen=True)
class Card:
    """What a rank computes on, in bytes, bytes a second and operations a second of its maker's data sheet."""

    name: str
    memory: float
    bandwidth: float  # of its memory
    float32: float  # outside of tensor cores: what products of features and weights are made with
    bfloat16: float  # on tensor cores, dense
    link: float  # from host memory, each direction
    host_memory: float  # of a server of eight, an eighth


# NVIDIA's data sheets: H200, H100 and A100 80 GB (all SXM); host memory of DGX H200, H100 and A100: 2 TB for 8 cards.
CARDS = {
    "h200": Card("H200", 141e9, 4.8e12, 67e12, 989e12, 64e9, 250e9),
    "h100": Card("H100", 80e9, 3.35e12, 67e12, 989e12, 64e9, 250e9),
    "a100": Card("A100", 80e9, 2.039e12, 19.5e12, 312e12, 32e9, 250e9),
}


@dataclass(frozen=True)
class Step:
    """One kind of step at which ranks tell each other something."""

    name: str
    times: int
    first: float  # bytes that rank 0 sends in all of them
    others: float  # bytes that each other rank sends
    rounds: int = 1  # of messages, each time
    at_once: bool = False  # whether ranks send at the same time, else all of it passes rank 0

    def seconds(self, n_ranks: int, network: float) -> float:
        """What all of it takes at so many bytes a second and direction."""
        if self.at_once:
            return max(self.first, self.others) / network
        latency = self.times * self.rounds * MESSAGE_SECONDS * (n_ranks - 1)
        return latency + (self.first + (n_ranks - 1) * self.others) / network


@dataclass(frozen=True)
class RanksEstimate:
    """What solving an (N, K) matrix over several ranks will take; of ranks with different parts, what the most is."""

    n_rows: int
    n_classes: int
    dim: int | None  # of features that scores are made of; None: the scores are given
    dtype: str  # of the scores, or of the features
    rounding: Rounding
    n_ranks: int
    device: str
    rows_a_rank: int  # at most
    passes: int
    most_passes: int
    rounds: int  # of messages
    steps: tuple[Step, ...]  # what is told
    pass_bytes_first: float  # that rank 0 sends in a pass
    pass_bytes_others: float  # and each other rank
    bytes_first: float  # that rank 0 sends in all
    bytes_others: float
    kept: str  # where a rank's part stays between passes: "memory", "card", "host", or "" if each pass reads it anew
    bytes_read: float  # by a rank from its files, in all
    memory: dict[str, int]  # a rank, of its host's, by what it is for
    memory_suffices: bool
    card_memory: dict[str, int]  # the same of its card's
    card_suffices: bool
    operations: float  # of the products in a pass, all ranks together
    sweep_rate: float | None  # scores a second and rank
    read_rate: float | None  # bytes a second and rank; None: no part is read from files, or nobody knows how fast
    network: float  # bytes a second and direction
    pass_seconds: float | None  # None where it does not fit, or a rate is not known
    pass_message_seconds: float
    message_seconds: float  # in all
    serial_seconds: float  # of what is not shared out: Newton's equations, the repair
    seconds: float | None
    least_pass_seconds: float | None  # what the card's peak rates would allow, with products in bfloat16
    findings: tuple[str, ...] = field(default=())  # what does not fit, and what the figures leave out

    def summary(self) -> str:
        """A few lines for people, at most 80 columns."""
        scores = f"{self.n_rows:,} samples x {self.n_classes:,} classes"
        if self.dim is None:
            scores += f", {self.dtype}: {bytes_text(self.n_rows * self.n_classes * ITEM_BYTES[self.dtype])}"
        else:
            features = bytes_text(self.n_rows * self.dim * ITEM_BYTES[self.dtype])
            scores += f", from {self.dim:,} {self.dtype} features: {features}"
        ranks = "1 rank" if self.n_ranks == 1 else f"{self.n_ranks:,} ranks"
        lines = [
            ("scores", scores),
            ("ranks", f"{ranks} on {self.device}, up to {self.rows_a_rank:,} rows each"),
            ("passes", f"about {self.passes}, at most {self.most_passes}, to {self.rounding} labels"),
            ("reading", self._reading()),
            ("memory", self._memory()),
        ]
        if self.n_ranks > 1:
            once = {step.name: step.first for step in self.steps if step.name in ("hashes", "curvature", "candidates")}
            told = ", ".join(f"{name} {bytes_text(number)}" for name, number in once.items())
            lines += [
                ("network", f"in a pass rank 0 sends {bytes_text(self.pass_bytes_first)}, each other rank "
                            f"{bytes_text(self.pass_bytes_others)}; in all {bytes_text(self.bytes_first)} and "
                            f"{bytes_text(self.bytes_others)}, {self.rounds} rounds"),
                ("", f"of which besides passes, by rank 0: {told}"),
            ]  # fmt: skip
        lines.append(("time", self._time()))
        lines += [("note", finding) for finding in self.findings]
        return "\n".join(
            textwrap.fill(f"{name:10s}{told}", 80, subsequent_indent=" " * 10, break_on_hyphens=False)
            for name, told in lines
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON."""
        return asdict(self)

    def _reading(self) -> str:
        read = "" if not self.bytes_read else f": {bytes_text(self.bytes_read)} a rank in all"
        how = {
            "memory": "read once, then kept in memory",
            "card": "read once, then kept in the card's memory",
            "host": "read once, then kept in the host's memory and moved to the card in every pass",
            "": "streamed from files in every pass",
        }
        return how[self.kept] + read

    def _memory(self) -> str:
        host = _memory_text(self.memory, self.memory_suffices)
        card = f"; on the card {_memory_text(self.card_memory, self.card_suffices)}" if self.card_memory else ""
        return f"a rank, at its peak: {host}{card}"

    def _time(self) -> str:
        if self.pass_seconds is None or self.seconds is None:
            what = "this does not fit" if not (self.memory_suffices and self.card_suffices) else "a rate is not known"
            return f"not told, since {what}"
        alone = self.n_ranks == 1
        least, messages = "", "" if alone else f", and {_brief(self.pass_message_seconds)} of messages"
        if self.least_pass_seconds is not None:
            least = f" (its peak rates would allow {_brief(self.least_pass_seconds)})"
        serial = f"{_brief(self.serial_seconds)} on every rank alike"
        shares = (
            f"{_brief(self.serial_seconds)} in the host"
            if alone
            else (f"{_brief(self.message_seconds)} messages and {serial}")
        )
        return (
            f"a pass {_brief(self.pass_seconds)}{least}{messages}; in all about {plain(self.seconds)}, of which "
            f"{shares}"
        )


def estimate_ranks(
    shape: tuple[int, int],
    dtype: str,
    n_ranks: int,
    *,
    dim: int | None = None,
    card: Card | None = None,
    rounding: Rounding = "exact",
    memory_limit: int | None = None,
    sweep_rate: float | None = None,
    read_rate: float | None = None,
    network: float = NETWORK,
) -> RanksEstimate:
    """What solving over several ranks takes, each of them a machine like this one, or one card of a server of eight.

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
        read_rate: bytes a second of a rank's files, as `measure_read_rate` finds. None: reading costs nothing where a
            part is read once; where it is read in every pass, no time is told.
        network: bytes a second, in and out of rank 0.

    Returns:
        RanksEstimate with messages, bytes, memory and time; `summary()` for people, `to_dict()` for machines. No time
        is told for what does not fit.
    """
    n_rows, n_classes = shape
    passes, most = PASSES[rounding]
    width, item = (n_classes if dim is None else dim), ITEM_BYTES[dtype]
    n_blocks, longest = blocks(n_rows, n_classes)
    rows = min(-(-n_blocks // n_ranks) * longest, n_rows) if card is None else -(-n_rows // n_ranks)
    part = rows * width * item
    if memory_limit is None:
        memory_limit = default_limit() if card is None else int(CACHE_SHARE * card.host_memory)
    kept = "memory" if card is None else "host"
    if card is not None and part <= MEMORY_SHARE * card.memory:
        kept = "card"
    elif part > memory_limit:
        kept = ""
    memory, card_memory = _ranks_memory(shape, item, n_ranks, rows, dim, card, rounding, kept)
    host = free_memory() if card is None else card.host_memory
    fits = sum(memory.values()) <= host, card is None or sum(card_memory.values()) <= card.memory
    steps = conversation(shape, width * item, n_ranks, rounding, on_card=card is not None) if n_ranks > 1 else []
    swept = next((step for step in steps if step.name == "sweeps"), Step("sweeps", 1, 0.0, 0.0, 0))
    message_seconds = sum(step.seconds(n_ranks, network) for step in steps)
    least = None
    if card is not None:
        sweep_rate = CARD_SHARE / _card_score_seconds(n_classes, dim, item, card)
        least = max(part / card.bandwidth, 2 * rows * n_classes * (dim or 0) / card.bfloat16)
    read_again = read_rate if kept == "" else card.link if kept == "host" and card is not None else math.inf
    on_host = card is None or n_classes > DEVICE_CLASSES
    serial = NEWTON_STEPS * NEWTON_SECONDS * _curvature_entries(n_rows, n_classes)[0] if on_host else 0.0
    serial += REPAIR_SECONDS * _moves(n_rows, n_classes) / MOVES_A_ROW if rounding == "exact" else 0.0
    pass_seconds = seconds = None
    if sweep_rate is not None and all(fits) and read_again is not None:
        computing = rows * n_classes / sweep_rate
        pass_seconds = max(computing, part / read_again)
        reading = 0.0 if read_rate is None else max(part / read_rate - pass_seconds, 0.0)  # the first pass waits longer
        sampling = SAMPLE_PASSES * sum(sample_sizes(n_rows, n_classes)) * n_classes / n_ranks / sweep_rate
        seconds = passes * pass_seconds + reading + sampling + serial + message_seconds
    return RanksEstimate(
        n_rows=n_rows,
        n_classes=n_classes,
        dim=dim,
        dtype=dtype,
        rounding=rounding,
        n_ranks=n_ranks,
        device="CPUs like these" if card is None else f"{card.name} cards",
        rows_a_rank=rows,
        passes=passes,
        most_passes=most,
        rounds=sum(step.times * step.rounds for step in steps),
        steps=tuple(steps),
        pass_bytes_first=swept.first / swept.times,
        pass_bytes_others=swept.others / swept.times,
        bytes_first=sum(step.first for step in steps),
        bytes_others=sum(step.others for step in steps),
        kept=kept,
        bytes_read=float(part * (1 if kept else passes)),
        memory=memory,
        memory_suffices=fits[0],
        card_memory=card_memory,
        card_suffices=fits[1],
        operations=2.0 * n_rows * n_classes * (dim or 0),
        sweep_rate=sweep_rate,
        read_rate=read_rate,
        network=network,
        pass_seconds=pass_seconds,
        pass_message_seconds=swept.seconds(n_ranks, network) / swept.times,
        message_seconds=message_seconds,
        serial_seconds=serial,
        seconds=seconds,
        least_pass_seconds=least if kept == "card" else None,
        findings=tuple(_findings(shape, n_ranks, rows, memory, host, card_memory, card, kept, n_blocks)),
    )


def conversation(
    shape: tuple[int, int],
    row_bytes: int,
    n_ranks: int,
    rounding: Rounding = "exact",
    *,
    on_card: bool = False,
    solve_passes: int | None = None,
    sample_passes: int | None = None,
    newton_steps: int = NEWTON_STEPS,
    repairs: int = 1,
) -> list[Step]:
    """What ranks tell each other in a solve of rows that are mostly distinct and allow all pairs.

    Args:
        shape: (N, K) of all ranks' scores.
        row_bytes: of a row of scores, or of the features that they are made of.
        n_ranks: how many processes.
        rounding: "exact" or "argmax" labels.
        on_card: whether ranks have cards. Blocks then do not reach over two ranks.
        solve_passes: over all rows, for the plan. None: as many as usual.
        sample_passes: over samples. None: as many as usual.
        newton_steps: that make a curvature.
        repairs: passes that look for candidates; more where the first ones do not suffice.

    Returns:
        Steps of one kind each, with bytes sent by rank 0 and by each other rank, headers and least size of messages
        included. What a card's curvature adds up by `all_reduce` is stated as sent, though `bytes_sent` leaves it out.
    """
    n_rows, n_classes = shape
    samples = sample_sizes(n_rows, n_classes)
    if solve_passes is None:
        solve_passes = PASSES[rounding][0] - (3 if rounding == "exact" else 2)
    if sample_passes is None:
        sample_passes = FIRST_SAMPLE_PASSES + SAMPLE_PASSES_EACH * (len(samples) - 1) if samples else 0
        solve_passes += 0 if samples else LADDER_LEVELS
    others = n_ranks - 1

    def step(name: str, times: int, said: float, answer: float, rounds: int = 1) -> Step:
        return Step(name, times, times * rounds * others * _message(answer), times * rounds * _message(said), rounds)

    dense = on_card and n_classes <= DEVICE_CLASSES
    wanted = min(n_rows, max(FEWEST_ROWS, CURVATURE_ROWS * n_classes))
    probed = wanted * n_classes > CURVATURE_ENTRIES and not dense  # each pass then asks how flat plans are
    levels = 1 + LADDER_LEVELS + len(samples)
    n_layouts = 1 + len(samples) + (levels if probed else 0)
    cut = [*([] if on_card else [n_rows]), *samples]
    edges = row_bytes * sum(_edge_rows(size, n_classes, n_ranks) for size in cut)
    found = [
        step("settings", 1, SETTINGS_BYTES, SETTINGS_BYTES * n_ranks),
        step("layout", n_layouts, 24, (24 + HEADER_BYTES / 2) * n_ranks, 2),
        Step("rows of shared blocks", 1, 0.0, edges, 0, at_once=True),
        step("first look", 2, 64, 64),
        *_spread_steps(n_rows, step, n_ranks),
        step("hashes", 1, 8 * min(n_rows, HASHES) / n_ranks, 8 * min(n_rows, HASHES)),
        step("sweeps", solve_passes + sample_passes, 24 * n_classes, 16 * n_classes, 1),
    ]
    if probed:
        found.append(step("probes", solve_passes + sample_passes, 16, 16))
    found.append(step("curvature, weights", newton_steps, 8, 8))
    if dense:
        reduced = newton_steps * 16.0 * n_classes**2 * others / n_ranks  # as a ring does it
        found.append(step("curvature, mass", newton_steps, 8 * n_classes, 8 * n_classes, 2))
        found.append(Step("curvature", newton_steps, reduced, reduced, 0, at_once=True))
    else:
        entries, rows = _curvature_entries(n_rows, n_classes)
        size = ENTRY_BYTES * entries + ENTRY_ROW_BYTES * rows
        found.append(step("curvature", newton_steps, size / n_ranks, size))
    if rounding == "exact":
        judged = min(max(LOOK_ROWS, LOOK_ROWS_A_CLASS * n_classes), samples[-1] if samples else n_rows)
        costs = 8 * SLACK_SHARE * judged
        moved = MOVE_BYTES * _moves(n_rows, n_classes)
        found += [
            step("slack", 1, costs / n_ranks, costs),
            step("candidates", repairs, moved / n_ranks, moved),
            step("fixed labels", repairs, 8 * n_classes, 8 * n_classes),
        ]
    return [*found, step("proof", 1, 16 * n_classes, 16 * n_classes), step("labels", 1, 0, 0)]


def _spread_steps(n_rows: int, step: Any, n_ranks: int) -> list[Step]:
    """The median of how far apart each row's scores are: joined where rows are few, else found digit by digit."""
    if n_rows <= FEW_NUMBERS:
        return [step("spread", 1, 8, 8), step("spread, rows", 1, 8 * n_rows / n_ranks, 8 * n_rows)]
    digits = 8 << DIGIT_BITS
    return [step("spread", 2 + 2 * (n_rows % 2 == 0), 8, 8), step("spread, digits", 63 // DIGIT_BITS, digits, digits)]


def _edge_rows(n_rows: int, n_classes: int, n_ranks: int) -> float:
    """Rows at its beginning that a rank sends to the one which works on their block, if all have as many."""
    _, block = blocks(n_rows, n_classes)
    begins = np.arange(1, n_ranks) * n_rows // n_ranks
    return float(np.minimum(-begins % block, n_rows / n_ranks).mean()) if n_ranks > 1 else 0.0


def _message(n_bytes: float) -> float:
    """What a message takes."""
    return max(FRAME, HEADER_BYTES + n_bytes)


def _curvature_entries(n_rows: int, n_classes: int) -> tuple[float, float]:
    """Entries and rows of the curvature, on the average over steps on the smallest sample and on all rows."""
    entries, used = 0.0, 0.0
    sizes = [*sample_sizes(n_rows, n_classes)[:1], n_rows]
    for size in sizes:
        rows = min(size, max(FEWEST_ROWS, CURVATURE_ROWS * n_classes), CURVATURE_ENTRIES // ENTRIES_A_ROW)
        entries += ENTRIES_A_ROW * rows / len(sizes)
        used += rows / len(sizes)
    return entries, used


def _moves(n_rows: int, n_classes: int) -> float:
    """Moves that a repair looks at."""
    return max(MOVES_A_ROW * n_rows, MOVES_A_CLASS * n_classes)


def _card_score_seconds(n_classes: int, dim: int | None, item: int, card: Card) -> float:
    """What a score takes at a card's full rates."""
    reads = 1 if n_classes <= FUSED_CLASSES else 2
    if dim is None:
        return reads * item / card.bandwidth
    return 2 * dim / card.float32 + SCORE_BYTES[reads - 1] / card.bandwidth


def _ranks_memory(
    shape: tuple[int, int],
    item: int,
    n_ranks: int,
    rows: int,
    dim: int | None,
    card: Card | None,
    rounding: Rounding,
    kept: str,
) -> tuple[dict[str, int], dict[str, int]]:
    """What a rank takes of its host's memory and of its card's, by what it is for."""
    n_rows, n_classes = shape
    made = item if dim is None else 4  # bytes of a score in flight
    host = memory_parts(n_rows, n_classes, made, rounding, bool(kept) and dim is None, n_ranks)
    host["interpreter"] += TORCH_BYTES
    if n_ranks > 1 and rounding == "exact":
        host["candidates"] += int(MOVE_BYTES * _moves(n_rows, n_classes))  # as they came
    if dim is not None:
        host["features and head"] = (rows * dim * item if kept else 0) + 4 * n_classes * (dim + 1) + 4 * rows
    if card is None:
        return host, {}
    own = "scores that are kept" if dim is None else "features and head"
    on_card = {own: host[own] if kept == "card" else 0, "samples": host.pop("samples")}
    if kept == "card":
        del host[own]
    moved = max(BLOCK_BYTES, blocks(n_rows, n_classes)[1] * (dim or n_classes) * item)  # at a time
    host["blocks in flight"] = 0 if kept == "card" else 2 * moved
    on_card["blocks in flight"] = (0 if kept == "card" else 3 * moved) + (3 * 4 * DEVICE_ENTRIES if dim else 0)
    span = (SPAN_ENTRIES if dim is None else DEVICE_ENTRIES) // n_classes
    if n_classes <= DEVICE_CLASSES:
        on_card["curvature"] = 4 * 8 * n_classes**2
        host["curvature"] = 0
    host["interpreter"] += CUDA_BYTES
    host["rows"] = ROW_BYTES * rows
    host["partial sums"] = CARD_PARTIAL_BYTES * n_classes * min(-(-rows // max(span, 1)), WAITING_PARTS)
    return host, on_card


def _findings(
    shape: tuple[int, int],
    n_ranks: int,
    rows: int,
    memory: dict[str, int],
    host: float,
    card_memory: dict[str, int],
    card: Card | None,
    kept: str,
    n_blocks: int,
) -> list[str]:
    """What does not fit and why, and where the figures are less sure."""
    n_rows, n_classes = shape
    found = []
    for parts, room, where in ((memory, host, "memory"), (card_memory, card.memory if card else 0, "card's memory")):
        if sum(parts.values()) > room and parts:
            name = max(parts, key=parts.__getitem__)
            found.append(
                f"DOES NOT FIT into the {where} of a rank, {bytes_text(room)}: {name} take "
                f"{bytes_text(parts[name])}{_cause(name, shape, rows)}"
            )
    if card is None and n_blocks < n_ranks:
        found.append(f"rows are in {n_blocks:,} blocks, so that {n_ranks - n_blocks:,} ranks have nothing to do")
    if card is not None and kept == "host":
        found.append("a rank's part is more than its card may keep: each pass waits for the host's link to the card")
    if kept == "":
        found.append("a rank's part is more than its memory may keep: each pass reads its files again")
    samples = sample_sizes(n_rows, n_classes)
    if samples and samples[0] < COARSE_ROWS * n_classes:
        found.append(
            f"samples have at most {samples[-1]:,} rows for {n_classes:,} classes, fewer than the {COARSE_ROWS} a "
            "class of all solves whose passes were counted: it may take more passes"
        )
    if card is not None:
        found.append("rates of cards are half of their data sheets'; only an H200 was timed")
    return found


def _cause(name: str, shape: tuple[int, int], rows: int) -> str:
    """What makes a part of the memory as large as it is, where that is not plain."""
    n_rows, n_classes = shape
    if name == "blocks in flight":
        _, longest = blocks(n_rows, n_classes)
        return f", as a block has {longest:,} rows x {n_classes:,} classes"
    if name == "candidates":
        return ", since each rank repairs with those of all; --rounding argmax has none"
    if name == "rows":
        return f", for {rows:,} rows; more ranks would have fewer each"
    return ""


def _memory_text(parts: dict[str, int], suffices: bool) -> str:
    largest = max(parts, key=parts.__getitem__)
    told = f"{bytes_text(sum(parts.values()))}, most of it for {largest} ({bytes_text(parts[largest])})"
    return told if suffices else f"{told}, MORE THAN THERE IS"


def _brief(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else plain(seconds)
