"""What a solve is of, and how much of everything it then has: rows, bytes, entries, moves; counted, and stated."""

from __future__ import annotations

from dataclasses import dataclass

from otlabel.planning.cards import CARD_KEEPS, FUSED_CLASSES, Card
from otlabel.solver.problem import Rounding
from otlabel.solver.samples import sample_sizes
from otlabel.solver.shortlist import FEWEST_CLASSES, FEWEST_SCORES
from otlabel.sources import ITEM_BYTES
from otlabel.sweep.blocks import block_rows
from otlabel.sweep.pool import thread_count

FIRST_ROWS, CURVATURE_ROWS, CURVATURE_ENTRIES = 4096, 80, 8_000_000  # at least; a class; at most
ROW_ENTRIES = 3  # of the curvature from a row, where plans are not flat
MOVES_A_ROW, MOVES_A_CLASS, MOVE_BYTES = 0.25, 16, 52  # that a repair looks at; of one as it travels

INTERPRETER_BYTES = 300 << 20  # Python, NumPy, SciPy and the compiled sweep
TORCH_BYTES, CUDA_BYTES = 250 << 20, 3 << 30  # that torch.distributed adds (measured), and CUDA's libraries (assumed)
BLOCKS_A_THREAD = 3  # one that is reduced, and some that are read ahead
ROW_BYTES, CANDIDATE_BYTES = 64, 96  # hashes, labels, bests; with exact labels, moves and the arcs that they make
ENTRY_BYTES, DENSE_CLASSES = 24, 512  # of the curvature and its transpose; up to here there are K x K equations
MOVED_BYTES, MADE_BYTES = 256 << 20, 3 << 28  # that go to a card at a time; that scores made there take
WAITING, SUM_BYTES = 64, 16  # sums of blocks that wait to be added, of so many bytes a class; twice so on a card


def blocks(n_rows: int, n_classes: int) -> tuple[int, int]:
    """How many blocks the rows are in, and the rows of the longest."""
    size = block_rows(n_rows, n_classes)
    return -(-n_rows // size), min(size, n_rows)


@dataclass(frozen=True)
class Part:
    """The part of a solve of the rank that has most rows."""

    n_rows: int  # of all ranks
    n_classes: int
    dtype: str  # of the scores, or of the features
    n_ranks: int = 1
    dim: int | None = None  # of features that scores are made of; None: the scores are given
    card: Card | None = None  # None: CPUs
    rounding: Rounding = "exact"
    memory_limit: int = 0  # bytes that a copy may take in the host's memory

    @property
    def rows_a_rank(self) -> int:
        """At most; a block is one rank's, but cards have blocks of their own."""
        n_blocks, longest = blocks(self.n_rows, self.n_classes)
        return (
            min(-(-n_blocks // self.n_ranks) * longest, self.n_rows) if self.card is None else self._even(self.n_rows)
        )

    @property
    def row_bytes(self) -> int:
        """Of a row as it is read."""
        return (self.dim or self.n_classes) * ITEM_BYTES[self.dtype]

    @property
    def n_bytes(self) -> int:
        """That are read in a pass."""
        return self.rows_a_rank * self.row_bytes

    @property
    def kept(self) -> str:
        """Where they stay between passes: "memory", "card", "host", or "" if each pass reads files."""
        if self.card is not None and self.n_bytes <= CARD_KEEPS * self.card.memory:
            return "card"
        return "" if self.n_bytes > self.memory_limit else "memory" if self.card is None else "host"

    @property
    def samples(self) -> list[int]:
        """Rows of each sample."""
        return sample_sizes(self.n_rows, self.n_classes)

    @property
    def is_listed(self) -> bool:
        """Whether passes go over lists of the best classes, once these are made: of large problems on processors."""
        large = self.n_classes >= FEWEST_CLASSES and self.n_rows * self.n_classes >= FEWEST_SCORES
        return self.card is None and self.rounding == "exact" and large and len(self.samples) > 0

    @property
    def has_probes(self) -> bool:
        """Whether each pass asks how flat plans are: the curvature might else have too many entries."""
        rows = min(self.n_rows, max(FIRST_ROWS, CURVATURE_ROWS * self.n_classes))
        return rows * self.n_classes > CURVATURE_ENTRIES and not self.dense_on_card

    @property
    def dense_on_card(self) -> bool:
        """Whether the curvature is a K x K matrix on a card."""
        return self.card is not None and self.n_classes <= FUSED_CLASSES

    @property
    def curvature_entries(self) -> float:
        """At a Newton step, on the average over steps on the first sample and on all rows."""
        sizes = [*self.samples[:1], self.n_rows]
        most = min(max(FIRST_ROWS, CURVATURE_ROWS * self.n_classes), CURVATURE_ENTRIES // ROW_ENTRIES)
        return ROW_ENTRIES * sum(min(size, most) for size in sizes) / len(sizes)

    @property
    def moves(self) -> float:
        """That a repair looks at, of all ranks."""
        return max(MOVES_A_ROW * self.n_rows, MOVES_A_CLASS * self.n_classes) if self.rounding == "exact" else 0.0

    def memory_parts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes of the host's memory and of the card's, by what they are for."""
        n_classes, card, kept = self.n_classes, self.card, self.kept
        n_blocks, longest = blocks(self.n_rows, n_classes)
        made = ITEM_BYTES[self.dtype] if self.dim is None else 4  # bytes of a score in flight
        own, own_bytes = "scores that are kept", self.n_bytes if kept else 0
        if self.dim is not None:
            own, own_bytes = "features and head", own_bytes + 4 * n_classes * (self.dim + 1) + 4 * self.rows_a_rank
        samples = self._even(sum(self.samples)) * n_classes * made
        dense = n_classes**2 if n_classes <= DENSE_CLASSES else 0
        candidates = CANDIDATE_BYTES * self.n_rows if self.rounding == "exact" else 0
        host = {
            "interpreter": INTERPRETER_BYTES + (TORCH_BYTES if card or self.n_ranks > 1 else 0),
            own: own_bytes,
            "blocks in flight": BLOCKS_A_THREAD * thread_count() * longest * n_classes * made,
            "rows": ROW_BYTES * self.rows_a_rank,
            "candidates": candidates + (int(MOVE_BYTES * self.moves) if self.n_ranks > 1 else 0),  # as they came
            "samples": samples,
            "curvature": ENTRY_BYTES * (min(CURVATURE_ENTRIES, self.n_rows * n_classes) + dense),
            "partial sums": SUM_BYTES * min(self._even(n_blocks), WAITING) * n_classes,
        }
        if card is None:
            return host, {}
        there = kept == "card"
        moved = 0 if there else max(MOVED_BYTES, longest * self.row_bytes)
        host["interpreter"] += CUDA_BYTES
        host |= {own: 0 if there else own_bytes, "blocks in flight": 2 * moved, "samples": 0}
        host |= {"partial sums": 2 * SUM_BYTES * WAITING * n_classes}
        host |= {"curvature": 0} if self.dense_on_card else {}
        return host, {
            own: own_bytes if there else 0,
            "samples": samples,
            "blocks in flight": 3 * moved + (MADE_BYTES if self.dim else 0),
            "curvature": 4 * 8 * n_classes**2 if self.dense_on_card else 0,
        }

    def _even(self, number: int) -> int:
        """A rank's share of what is shared out evenly."""
        return -(-number // self.n_ranks)
