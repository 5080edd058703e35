"""One rank's share of all rows: those of its own that begin in its blocks, and the few that complete its last block."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from otlabel.errors import InvalidMassError, InvalidScoresError, RankError
from otlabel.ranks.communicator import Alone, Layout, Share
from otlabel.scores.base import Batch, Scores, WrappedScores, as_float, block_rows, grouped, storage_array
from otlabel.scores.factored import LinearScores
from otlabel.scores.given import as_array
from otlabel.scores.memory import ArrayScores
from otlabel.scores.unit import UnitRows


class ShardedScores(WrappedScores):
    """Rows of a source from `skip` on, followed by some that are in memory."""

    def __init__(self, source: Scores, tail: np.ndarray, layout: Layout) -> None:
        super().__init__(source)
        self._layout, self._skip, self._tail, self.own_share = layout, layout.skip, tail, layout.share
        self.shape = (layout.share.stop - layout.share.first, source.shape[1])
        self._n_own = self.shape[0] - len(tail)

    def blocks(self) -> Batch:
        """Those of all rows that are here."""
        return Scores.blocks(self)

    def batches(self) -> list[Batch]:
        """Blocks in groups as large as the source's."""
        rows = max((batch[-1][1] - batch[0][0] for batch in self.source.batches()), default=1)
        return grouped(self.blocks(), rows)

    def read(self, start: int, stop: int) -> Any:
        """From the source, or from memory."""
        end = min(stop, self._n_own)
        if start >= end:
            return self._tail[start - self._n_own : stop - self._n_own]
        rows = self.source.read(self._skip + start, self._skip + end)
        return rows if stop == end else np.concatenate([rows, self._tail[: stop - end]])

    def take(self, rows: np.ndarray) -> Scores:
        """A copy of the given rows."""
        number = int(np.searchsorted(rows, self._n_own))
        out = storage_array((len(rows), self.shape[1]), self.dtype)
        if number:
            out[:number] = self.source.take(rows[:number] + self._skip).read(0, number)
        out[number:] = self._tail[rows[number:] - self._n_own]
        return ArrayScores(out, self.dtype)

    def place(self, row: int) -> str:
        """The row's number in its rank."""
        rank, there = self._layout.origin(self.share.first + row)
        return f"{self.source.place(there) if row < self._n_own else f'row {there}'} of rank {rank}"


class Shards:
    """How the ranks' rows of one matrix lie, and how they are worked on."""

    def __init__(self, scores: Scores, team: Alone, n_classes: int | None = None) -> None:
        told = {"shape": np.array(scores.shape), "dtype": np.frombuffer(scores.dtype.encode().ljust(8), np.uint8)}
        parts = team.parts("shards", told)
        counts = np.array([part["shape"][0] for part in parts])
        filled = [rank for rank, count in enumerate(counts) if count] or [0]
        kinds = [(int(part["shape"][1]), part["dtype"].tobytes().decode().strip()) for part in parts]
        for rank, kind in enumerate(kinds):
            expected = kinds[filled[0]]
            if kind[0] != expected[0] or (counts[rank] and kind != expected):
                raise RankError(
                    f"rank {filled[0]} has {expected[1]} scores of {expected[0]} columns, rank {rank} {kind[1]} of "
                    f"{kind[0]}; pass the same to all ranks"
                )
        self.dtype, self._team = kinds[filled[0]][1], team
        _check_any(counts)
        total = int(counts.sum())
        self.layout = Layout(team, counts, block_rows(total, n_classes or scores.block_columns))

    def sharded(self, scores: Scores) -> Scores:
        """This rank's share of the rows."""
        if not scores.on_cpu:  # blocks are those of the device, and sums depend on them a little
            return _with_share(scores, Share(self._team, self.layout.first, self.layout.stop, self.layout.share.n_rows))
        if not scores.shape[0]:
            scores = ArrayScores(storage_array(scores.shape, self.dtype), self.dtype)
        tail = self.layout.moved("shards", np.ascontiguousarray(scores.read(0, self.layout.skip)))
        return ShardedScores(scores, tail, self.layout)


def _check_any(counts: np.ndarray) -> None:
    if not counts.any():
        raise InvalidScoresError(f"none of the {len(counts)} ranks has a row; some may be without, but not all")


def part_of_all(scores: Scores, team: Alone) -> Scores:
    """A rank's rows, all of them and no others, that know which rows of all they are."""
    if team.number == 1:
        return scores
    (counts,) = team.joined("rows", np.array([scores.shape[0]]))
    _check_any(counts)
    first = int(counts[: team.rank].sum())
    return _with_share(scores, Share(team, first, first + scores.shape[0], int(counts.sum())))


def _with_share(scores: Scores, share: Share) -> Scores:
    part = copy.copy(scores)  # the caller's may be of use elsewhere
    part.own_share = share
    return part


def gathered(scores: Scores, rows: np.ndarray) -> np.ndarray:
    """The given rows (sorted) of all ranks' as float32 or float64 numbers, on all ranks."""
    taken = scores.take(scores.share.within(rows))
    return scores.share.team.joined("gathered", as_float(taken.read(0, taken.shape[0]), taken.dtype))[0]


def take_rows(scores: Scores, rows: np.ndarray) -> Scores:
    """The given rows (sorted) of all ranks' as a source of their own, of which each rank again has a share."""
    share = scores.share
    taken = scores.take(share.within(rows))
    return taken if share.team.number == 1 else Shards(taken, share.team).sharded(taken)


class Rows:
    """A caller's rows: what of all ranks' rows is worked on here, and the way back."""

    def __init__(self, scores: Scores, team: Alone) -> None:
        self.scores, self._team, self._n_given, self._shards = scores, team, scores.shape[0], None
        if team.number == 1:
            return
        if isinstance(scores, LinearScores):  # features travel, so that a block's products are made as one
            features = scores.features.source
            stored = features.source if isinstance(features, UnitRows) else features
            self._shards = Shards(stored, team, scores.shape[1])
            sharded = self._shards.sharded(stored)
            self.scores = scores.with_rows(sharded if stored is features else UnitRows(sharded))
        else:
            self._shards = Shards(scores, team)
            self.scores = self._shards.sharded(scores)

    def returned(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the rows worked on here, as those of the caller's rows."""
        if self._shards is None or not self.scores.on_cpu:
            return labels
        return self._shards.layout.returned("labels", labels)

    def of_all(self, name: str, values: Any) -> Any:
        """One number for each of the caller's rows, as those of all ranks' rows."""
        if self._shards is None or values is None:
            return values
        given = as_array(values)
        if given.shape != (self._n_given,):
            raise InvalidMassError(f"{name} has shape {given.shape}; pass one number for each of {self._n_given} rows")
        return self._team.joined(name, given)[0]
