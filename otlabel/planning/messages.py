"""What ranks tell each other in a solve: a few kinds of rounds, each with its bytes.

In a round each other rank sends to rank 0, which answers each: O(ranks K) there, O(K) elsewhere. Most rounds are of
passes. Once in a solve, hashes of some rows travel, and with exact labels the candidates to move, which are O(N): each
rank gets all of them from rank 0, and repairs them like all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otlabel.planning.part import MOVE_BYTES, ROW_ENTRIES, Part, blocks

PLAN_PASSES = 4  # over all rows, for the plan
LEVELS = 3  # of epsilon on all rows
FIRST_PASSES, EACH_PASSES = 8, 2  # over the smallest sample, and over each larger one
NEWTON_STEPS = 4  # half of them on the first sample

LEAST_BYTES, HEADER_BYTES = 1 << 13, 200  # of a message; sizes and names of its arrays
MESSAGE_SECONDS = 3e-4  # of each other rank, to be heard and answered by rank 0: measured with gloo on one machine
LAYOUT_BYTES = 100  # of each rank, that all are told
SPREAD_ROUNDS, SPREAD_BYTES = 9, 194_400  # a median, found by its digits
HASHED_ROWS, HASH_BYTES = 1 << 17, 8
ENTRY_BYTES = 8 + 8 / ROW_ENTRIES  # of the curvature as it travels, with its share of what a row takes


@dataclass(frozen=True)
class Step:
    """One kind of step at which ranks tell each other something."""

    name: str
    times: int
    first: float  # bytes that rank 0 sends in all of them
    others: float  # bytes that each other rank sends
    rounds: int = 1  # of messages, each time; 0: ranks send at the same time, without a word from rank 0

    def seconds(self, n_ranks: int, network: float) -> float:
        """What all of it takes at so many bytes a second and direction."""
        if not self.rounds:
            return max(self.first, self.others) / network
        latency = self.times * self.rounds * MESSAGE_SECONDS * (n_ranks - 1)
        return latency + (self.first + (n_ranks - 1) * self.others) / network


def conversation(
    part: Part, *, passes: int | None = None, newton_steps: int = NEWTON_STEPS, repairs: int = 1
) -> list[Step]:
    """What ranks tell each other in a solve of rows that are mostly distinct and allow all pairs.

    Args:
        part: what is solved.
        passes: over all rows for the plan, and over samples. None: as many as usual.
        newton_steps: that make a curvature.
        repairs: passes that look for candidates; more where the first ones do not suffice.

    Returns:
        Steps of one kind each, with bytes sent by rank 0 and by each other rank, headers and least size of messages
        included; nothing for one rank. What a card's curvature adds up by `all_reduce` is stated as sent, though
        `bytes_sent` leaves it out.
    """
    n_ranks, k, samples = part.n_ranks, part.n_classes, part.samples
    if n_ranks == 1:
        return []
    if passes is None:
        passes = PLAN_PASSES + (FIRST_PASSES + EACH_PASSES * (len(samples) - 1) if samples else LEVELS - 1)

    def step(name: str, times: int, told: float, answer: float, rounds: int = 1) -> Step:
        """A rank tells so many bytes in all rounds of one time, and gets so many."""
        down, up = (rounds * max(LEAST_BYTES, HEADER_BYTES + size / rounds) for size in (answer, told))
        return Step(name, times, times * (n_ranks - 1) * down, times * up, rounds)

    def joined(name: str, times: int, size: float, rounds: int = 1) -> Step:
        """Every rank has a part of it, and gets the whole."""
        return step(name, times, size / n_ranks, size, rounds)

    n_layouts = 2 + len(samples) + (LEVELS + len(samples) if part.has_probes else 0)  # one is of arguments
    edges = sum(_edge_rows(size, k, n_ranks) for size in ([] if part.card else [part.n_rows]) + samples)
    steps = [
        joined("layout", n_layouts, LAYOUT_BYTES * n_ranks, 2),
        Step("rows of shared blocks", 1, 0.0, part.row_bytes * edges, 0),
        step("spread", 1, SPREAD_BYTES, SPREAD_BYTES, SPREAD_ROUNDS),
        joined("hashes", 1, HASH_BYTES * min(part.n_rows, HASHED_ROWS)),
        step("sweeps", passes, 24 * k, 16 * k),
    ]
    if part.has_probes:
        steps.append(step("probes", passes, 16, 16))
    if part.dense_on_card:
        added = newton_steps * 16.0 * k**2 * (n_ranks - 1) / n_ranks  # as a ring does it
        steps += [step("masses", newton_steps, 16 * k, 16 * k, 3), Step("curvature", newton_steps, added, added, 0)]
    else:
        steps.append(joined("curvature", newton_steps, ENTRY_BYTES * part.curvature_entries, 2))
    if part.rounding == "exact":
        steps.append(joined("candidates", repairs, MOVE_BYTES * part.moves, 3))
    return [*steps, step("proof", 1, 16 * k, 16 * k, 2)]


def _edge_rows(n_rows: int, n_classes: int, n_ranks: int) -> float:
    """Rows at its beginning that a rank sends to the one which works on their block, if all have as many."""
    _, block = blocks(n_rows, n_classes)
    begins = np.arange(1, n_ranks) * n_rows // n_ranks
    return float(np.minimum(-begins % block, n_rows / n_ranks).mean())
