"""Cutting rows into blocks, which a sweep reduces one at a time, and grouping those that are read together.

Blocks depend on the rows of all ranks and the columns alone, so that sums have the same bits wherever scores are; on a
device, also on what a read costs there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_ENTRIES = 1 << 16, 1 << 19  # fewest and most scores a block: a call's cost is hidden, the last one waits little
FEW_BLOCKS = 16  # what threads need to share small matrices out evenly
MANY_BLOCKS = 2048  # from which on larger blocks spare more calls than smaller ones spare memory ...
LARGEST_BLOCK = 1 << 24  # ... up to so many scores
DEVICE_BLOCKS = 16  # as large on a device where a block is a copy: it wants much work a call
SPAN_ENTRIES = 1 << 32  # scores that one call reduces in place there: few calls, and partial sums that stay small

Span = tuple[int, int]  # rows from `start` up to `stop`
Batch = list[Span]  # consecutive blocks


@dataclass(eq=False)
class Room:
    """Rows of a block that a device has memory for, once it has proved too small for more."""

    most_rows: int | None = None

    def fitted(self, batches: Iterable[Batch]) -> list[Batch]:
        """The same blocks, but cut into pieces, each read by itself, where one has more rows."""
        if self.most_rows is None:
            return list(batches)
        fitted: list[Batch] = []
        for batch in batches:
            if all(stop - start <= self.most_rows for start, stop in batch):
                fitted.append(batch)
                continue
            for start, stop in batch:
                fitted += [[(start + first, start + last)] for first, last in cut(stop - start, self.most_rows)]
        return fitted


def block_rows(n_rows: int, n_classes: int) -> int:
    """Rows of a block: up to half a million scores, more where there would be very many blocks."""
    entries = min(max(n_rows * n_classes // FEW_BLOCKS, BLOCK_ENTRIES[0]), BLOCK_ENTRIES[1])
    return max(1, entries // n_classes, min(-(-n_rows // MANY_BLOCKS), LARGEST_BLOCK // n_classes))


def device_rows(n_classes: int, *, in_place: bool = False) -> int:
    """The same on a device, where what is read in place may be all in one."""
    return max(1, (SPAN_ENTRIES if in_place else DEVICE_BLOCKS * BLOCK_ENTRIES[1]) // n_classes)


def partition(n_rows: int, n_classes: int) -> Batch:
    """All rows in blocks."""
    return cut(n_rows, block_rows(n_rows, n_classes))


def cut(n_rows: int, size: int) -> Batch:
    """Rows in blocks of one size; the last may be smaller."""
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def grouped(blocks: Batch, n_rows: int) -> list[Batch]:
    """Consecutive blocks in groups of up to so many rows, but of one block at least."""
    groups: list[Batch] = []
    for block in blocks:
        if groups and block[1] - groups[-1][0][0] <= n_rows:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups
