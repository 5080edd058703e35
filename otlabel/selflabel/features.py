"""Running a model over all samples and leaving what it gives in a store, whatever the loader's order."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from otlabel.errors import FingerprintError
from otlabel.progress import progress
from otlabel.ranks.communicator import SINGLE_PROCESS, Communicator
from otlabel.selflabel.batches import Parted, check_range, described
from otlabel.selflabel.model import LOGITS, ModelReader, forward_only, to_device, unwrapped
from otlabel.selflabel.ranks import Batch, Holders, gathered, in_step
from otlabel.selflabel.weights import weights_hash

if TYPE_CHECKING:
    from otlabel.selflabel.calibration import BatchNorms
    from otlabel.selflabel.quality import Looks
    from otlabel.selflabel.stores import Store

MISSING_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Keeping:
    """Where rows go: all to the store of the first process, or those of each process to a part of its own."""

    store: Any  # a Store, or where each has its own a Part
    communicator: Communicator = SINGLE_PROCESS  # of those who share the work, each with a loader of its own
    group: Any = None  # torch.distributed's, of those who keep a part each; None: the first keeps all

    @property
    def is_here(self) -> bool:
        """Whether this process keeps any."""
        return self.group is not None or self.communicator.rank == 0


def keeping_of(store: Store, over_ranks: bool, communicator: Communicator, group: Any) -> Keeping:
    """Each process keeps its own where there are several, the labeling can do with that, and the store has parts."""
    part = getattr(store, "part", None)
    if communicator.world_size == 1 or part is None or not over_ranks:
        return Keeping(store, communicator)
    return Keeping(part(communicator.rank, communicator.world_size), communicator, group)


@dataclass(eq=False)
class Extractor:
    """Brings the rows that a model gives for all samples to a store: from a loader, or as training records them."""

    n_samples: int  # N
    data: str | None  # what tells this data set from others
    parted: Parted  # takes what the loader yields to index and input
    mode: str  # "train" as SeLa's authors do (batch statistics; running averages move), else evaluation
    amp: torch.dtype | None  # of automatic mixed precision; None: none
    progress: bool  # whether to show a bar on stderr
    came: np.ndarray | None = None  # (N,) samples whose rows were recorded in training; None: none were
    recording: dict[str, str] = field(default_factory=dict)  # what the store knows these rows by

    def calibrated(
        self, norms: BatchNorms, loader: Iterable[Any], seed: int
    ) -> contextlib.AbstractContextManager[Iterable[Any]]:
        """BatchNorm's averages as the mode wants them, until rows and heads were read; the loader to extract with."""
        if self.mode != "calibrated":
            return contextlib.nullcontext(loader)
        return norms.calibrated(loader, self.n_samples, self.parted, seed=seed, amp=self.amp)

    def extract(
        self, reader: ModelReader, loader: Iterable[Any], keeping: Keeping, looks: Looks | None = None
    ) -> Holders | None:
        """Store the model's rows for all samples, in place of what may have been recorded.

        Each index is to come exactly once; where several processes share the work, at least once. Then what a
        distributed sampler repeats to make its parts equal counts once: the first of them keeps the row. The mode of
        every module is put back. An extraction that was interrupted goes on where it was, if data, weights and
        settings are the same.

        Args:
            reader: of the model.
            loader: goes through all samples, in any order.
            keeping: takes the rows.
            looks: takes what some samples look like under augmentation. None: nobody asks.

        Returns:
            Which rank holds which sample, where each keeps its own.

        Raises:
            TypeError: no index and input in what the loader yields; no tensor in what the model gives.
            ValueError: an index out of range, seen twice, or missing at the end.
            InvalidScoresError: NaN or infinity, named by sample.
            FingerprintError: the store holds features of other data.
        """
        store, communicator = keeping.store, keeping.communicator
        about = self._about(reader.kind, f"{weights_hash(unwrapped(reader.model))} mode={self.mode} amp={self.amp}")
        if keeping.is_here:
            _check_data(store, about)
        self.came = None
        several, parts = communicator.world_size > 1, keeping.group is not None
        present = np.zeros(self.n_samples, bool)  # rows that an interrupted extraction has left, once the store tells
        with _extracting(reader, self.mode, store):
            shown = _counted(loader, self.progress and communicator.rank == 0)
            batches = _rows(reader, map(self.parted, shown), self.amp, present, looks)
            if parts:
                batches = in_step(batches, communicator)
            elif several:  # who only sends does not know what is there, and sends all
                batches, present = gathered(batches, communicator), np.zeros(self.n_samples, bool)
            came, n_columns = _fill(store, batches, about, present, several)
            if parts:
                return self._share_out(keeping, about, came, n_columns)
            if communicator.rank == 0:
                _check_any(n_columns)
                check_complete(came)
                store.finish()
        return None

    def _share_out(self, keeping: Keeping, about: dict[str, str], came: np.ndarray, n_columns: int) -> Holders:
        """Who keeps what; of a sample that several have extracted, the first of them keeps the row."""
        holders = Holders.settled(keeping.communicator, keeping.group, came, n_columns)
        _check_any(holders.n_columns)
        assert holders.owner is not None
        check_complete(holders.owner < keeping.communicator.world_size)
        if not n_columns:
            keeping.store.begin(self.n_samples, holders.n_columns, about)
        keeping.store.finish(holders.index)
        return holders

    def record(self, store: Store, index: np.ndarray, rows: np.ndarray) -> None:
        """Keep rows that a training step has made."""
        if self.came is None:
            # Under a name of its own: of rows that a run before has recorded, nobody knows what weights made them.
            about = self._about("features recorded while training", secrets.token_hex(8))
            _check_data(store, about)
            store.begin(self.n_samples, rows.shape[1], about)
            self.came, self.recording = np.zeros(self.n_samples, bool), about
        store.write(index, rows)
        self.came[index] = True

    def finish_recording(self, keeping: Keeping, reader: ModelReader, *, has_classes: bool) -> None:
        """Let the rows that were recorded take the place of the old ones; there may be none where best classes were."""
        if self.came is None and has_classes:
            return
        if keeping.communicator.world_size > 1:
            raise ValueError("recorded features are of one process only; pass a loader where several train together")
        if self.came is None:
            raise ValueError("nothing was recorded since the last update; pass a loader, or call record while training")
        if reader.kind == LOGITS:
            raise ValueError("features were recorded, but the model shows no heads to apply to them; pass heads=")
        check_complete(self.came, recorded=True)
        if keeping.store.about != self.recording:  # else an update has failed after this
            keeping.store.finish()

    def _about(self, kind: str, weights: str) -> dict[str, str]:
        data = f"{self.n_samples} samples" if self.data is None else self.data
        return {"data": data, "kind": kind, "weights": weights}


def _check_data(store: Store, about: dict[str, str]) -> None:
    """Refuse to write over features of other data, which another run may need."""
    there = store.about
    if there is not None and there.get("data") != about["data"]:
        raise FingerprintError(
            f"the store holds features of other data ({there.get('data')!r}, these are {about['data']!r}); give "
            "this run a store of its own, or remove the old one"
        )


@contextlib.contextmanager
def _extracting(reader: ModelReader, mode: str, store: Store) -> Iterator[None]:
    """The model in its mode, without gradients; in the end its modules are as they were, and the store is closed."""
    try:
        with forward_only(reader.model, training=mode == "train"):
            yield
    finally:
        store.close()


def _fill(
    store: Store, batches: Iterator[Batch], about: dict[str, str], present: np.ndarray, several: bool
) -> tuple[np.ndarray, int]:
    """Write what is not there yet; returns which samples came (N,), and the columns of their rows, 0 if none came.

    Once the store has told which rows are there, `present` has them.
    """
    came, n_columns = np.zeros(len(present), bool), 0
    for index, rows in batches:
        if not n_columns:
            n_columns = rows.shape[1]
            present |= store.begin(len(present), n_columns, about)
        fresh = _fresh(index, came, several=several)
        came[index] = True
        wanted = fresh[~present[index[fresh]]]
        if len(wanted):
            store.write(index[wanted], rows[wanted])
    return came, n_columns


def _check_any(n_columns: int) -> None:
    if not n_columns:
        raise ValueError("the loader is empty; it must yield (index, input) for every sample")


def _fresh(index: np.ndarray, came: np.ndarray, *, several: bool) -> np.ndarray:
    """Places in a batch of what has not come before; with one process alone, a sample that has is an error."""
    _, first = np.unique(index, return_index=True)
    fresh = np.sort(first[~came[index[first]]])
    if len(fresh) < len(index) and not several:
        again = np.setdiff1d(np.arange(len(index)), fresh)[0]
        raise ValueError(
            f"sample {index[again]} came twice; the loader for labelling must yield every index exactly once "
            "(no sampler that repeats, drop_last=False)"
        )
    return fresh


def check_complete(came: np.ndarray, *, recorded: bool = False) -> None:
    """Raise ValueError for samples that never came."""
    if came.all():
        return
    missing = np.flatnonzero(~came)
    shown = ", ".join(map(str, missing[:MISSING_SHOWN])) + (", ..." if len(missing) > MISSING_SHOWN else "")
    remedy = "the loader for labelling must yield every index once (drop_last=False, no sampler that leaves any out)"
    if recorded:
        remedy = "record every sample before an update without a loader (drop_last=False), or pass a loader"
    raise ValueError(f"{len(missing):,} of {len(came):,} samples never came: {shown}; {remedy}")


def _rows(
    reader: ModelReader,
    batches: Iterable[tuple[np.ndarray, Any]],
    amp: torch.dtype | None,
    present: np.ndarray,
    looks: Looks | None,
) -> Iterator[Batch]:
    """What the model gives for each batch; nothing for one whose rows are all there already."""
    device = next((p.device for p in reader.model.parameters()), torch.device("cpu"))
    precision: Any = contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)
    for index, inputs in batches:
        check_range(index, len(present))
        if looks is not None:
            looks.keep(index, inputs)
        if len(index) and present[index].all():
            yield index, np.empty((0, 0), np.float32)
            continue
        with precision:
            rows = reader.rows(to_device(inputs, device))
        if not isinstance(rows, Tensor):
            raise TypeError(f"features of the model are {described(rows)}; a tensor (B, D) is needed: {reader.remedy}")
        if rows.ndim != 2 or len(rows) != len(index):
            told = f"the model gives {tuple(rows.shape)} for a batch of {len(index)}; (B, D) is needed"
            raise ValueError(f"{told}: {reader.remedy}" if reader.remedy else told)
        yield index, rows.float().cpu().numpy()
    if looks is not None:
        looks.see(reader, device, precision)


def _counted(loader: Iterable[Any], shown: bool) -> Iterator[Any]:
    """The loader's batches, and a bar that counts them."""
    total = len(loader) if isinstance(loader, Sized) else None
    with progress("features", total, "batches", shown=shown) as tell:
        for number, batch in enumerate(loader):
            tell(number)
            yield batch
