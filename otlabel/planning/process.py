"""What a solve in one process will take: a small model, each term of it stated.

passes    those that were counted on problems of many kinds: the usual number and the largest
reading   the matrix once if it fits into the memory limit, else once a pass
memory    the interpreter, the cache or the blocks in flight, some bytes a row, samples of the rows, K vectors
time      a pass takes what a measured sweep of its scores takes, or reading them where that is slower; samples
          and the algebra on them add a share
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from otlabel.solver.curvature import DENSE_CLASSES
from otlabel.solver.objective import CURVATURE_ENTRIES
from otlabel.solver.problem import Rounding
from otlabel.solver.samples import sample_sizes
from otlabel.sources import ITEM_BYTES, default_limit
from otlabel.sweep import WAITING_PARTS
from otlabel.sweep.blocks import block_rows
from otlabel.sweep.pool import thread_count
from otlabel.text import bytes_text

PASSES: dict[Rounding, tuple[int, int]] = {"argmax": (6, 12), "exact": (7, 20)}  # the usual number, the largest

INTERPRETER_BYTES = 300 << 20  # Python, NumPy, SciPy and the compiled sweep
ROW_BYTES = 64  # hashes, labels, bests
CANDIDATE_BYTES = 96  # a row, with exact labels: the candidates to move, and the arcs between classes that they make
BLOCKS_A_THREAD = 3  # one that is reduced, and some that are read ahead
CURVATURE_BYTES = 24 * CURVATURE_ENTRIES  # the sampled plan and its transpose
SAMPLE_PASSES = 12  # over each sample of the rows
ALGEBRA = 1.25  # what Newton's equations and the moves of the rounding add to the time of the passes


@dataclass(frozen=True)
class Estimate:
    """What solving an (N, K) matrix will take."""

    n_rows: int
    n_classes: int
    dtype: str
    rounding: Rounding
    matrix_bytes: int
    passes: int  # over all scores, usually
    most_passes: int  # in the worst case met
    cached: bool  # whether the scores stay in memory after the first pass
    memory_limit: int  # bytes that a cache may take
    bytes_read: int  # from the file, with the usual passes
    peak_memory: int  # bytes of the whole process
    sweep_rate: float | None  # scores a second
    read_rate: float | None  # bytes a second; None: nothing to read
    seconds: float | None

    def summary(self) -> str:
        """A few lines for people, at most 80 columns."""
        how = "read once, then kept in memory" if self.cached else "streamed from the file in every pass"
        size = f"{self.dtype}: {bytes_text(self.matrix_bytes)}"
        lines = [
            f"scores    {self.n_rows:,} samples x {self.n_classes:,} classes, {size}",
            f"passes    about {self.passes}, at most {self.most_passes}, to {self.rounding} labels",
            f"reading   {how}: {bytes_text(self.bytes_read)} in all (memory limit {bytes_text(self.memory_limit)})",
            f"memory    {bytes_text(self.peak_memory)} at its peak, of the whole process",
        ]
        if self.seconds is not None and self.sweep_rate is not None:
            read = "" if self.read_rate is None else f", the file reads at {bytes_text(self.read_rate)}/s"
            told = f"{_duration(self.seconds)}; measured just now: {self.sweep_rate:.2g} scores/s{read}"
            lines.append(f"time      {told}")
        return "\n".join(textwrap.fill(line, 80, subsequent_indent=" " * 10) for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON."""
        return asdict(self)


def estimate(
    shape: tuple[int, int],
    dtype: str,
    *,
    rounding: Rounding = "exact",
    memory_limit: int | None = None,
    sweep_rate: float | None = None,
    read_rate: float | None = None,
) -> Estimate:
    """What solving takes, from the size of the scores and two rates.

    Args:
        shape: (N, K) of the scores.
        dtype: "float16", "bfloat16", "float32" or "float64".
        rounding: "exact" or "argmax" labels.
        memory_limit: bytes that may hold a copy of the scores. None: half of what is free.
        sweep_rate: scores a second, as `measure_sweep_rate` finds. None: no time is told.
        read_rate: bytes a second from the file, as `measure_read_rate` finds. None: reading costs nothing.

    Returns:
        Estimate with passes, bytes, peak memory and time; `summary()` for people, `to_dict()` for machines.
    """
    n_rows, n_classes = shape
    matrix = n_rows * n_classes * ITEM_BYTES[dtype]
    limit = default_limit() if memory_limit is None else memory_limit
    passes, most = PASSES[rounding]
    cached = matrix <= limit
    seconds = None
    if sweep_rate is not None:
        one_pass = n_rows * n_classes / sweep_rate
        one_read = 0.0 if read_rate is None else matrix / read_rate
        in_memory, streamed = (passes - 1, 1) if cached else (0, passes)
        on_samples = SAMPLE_PASSES * sum(sample_sizes(n_rows, n_classes)) * n_classes / sweep_rate
        seconds = streamed * max(one_pass, one_read) + ALGEBRA * (in_memory * one_pass + on_samples)
    return Estimate(
        n_rows=n_rows,
        n_classes=n_classes,
        dtype=dtype,
        rounding=rounding,
        matrix_bytes=matrix,
        passes=passes,
        most_passes=most,
        cached=cached,
        memory_limit=limit,
        bytes_read=matrix * (1 if cached else passes),
        peak_memory=sum(memory_parts(n_rows, n_classes, ITEM_BYTES[dtype], rounding, cached).values()),
        sweep_rate=sweep_rate,
        read_rate=read_rate,
        seconds=seconds,
    )


def blocks(n_rows: int, n_classes: int) -> tuple[int, int]:
    """How many blocks the rows are in, and the rows of the longest."""
    size = block_rows(n_rows, n_classes)
    return -(-n_rows // size), min(size, n_rows)


def memory_parts(
    n_rows: int, n_classes: int, item: int, rounding: Rounding, cached: bool, n_ranks: int = 1
) -> dict[str, int]:
    """What a process takes of its memory, by what it is for; of several ranks, the one with most rows."""
    n_blocks, longest = blocks(n_rows, n_classes)
    here = -(-n_blocks // n_ranks)
    rows = min(here * longest, n_rows)
    return {
        "interpreter": INTERPRETER_BYTES,
        "scores that are kept": rows * n_classes * item if cached else 0,
        "blocks in flight": BLOCKS_A_THREAD * thread_count() * longest * n_classes * item,
        "rows": ROW_BYTES * rows,
        "candidates": CANDIDATE_BYTES * n_rows if rounding == "exact" else 0,
        "samples": -(-sum(sample_sizes(n_rows, n_classes)) // n_ranks) * n_classes * item,
        "curvature": min(CURVATURE_BYTES, 24 * n_rows * n_classes)
        + (24 * n_classes**2 if n_classes <= DENSE_CLASSES else 0),
        "partial sums": 16 * min(here, WAITING_PARTS) * n_classes,  # that wait to be added up
    }


def _duration(seconds: float) -> str:
    return "under a second" if seconds < 1 else f"about {plain(seconds)}"  # less than what a process takes to start


def plain(seconds: float) -> str:
    """A time in two digits."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
