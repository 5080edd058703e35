"""Running a model over all samples and leaving what it gives in a store, whatever the loader's order."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from otlabel.selflabel.model import View, forward_only, to_device
from otlabel.selflabel.ranks import Batch, Ranks

if TYPE_CHECKING:
    from otlabel.selflabel.store import Store

MISSING_SHOWN = 5


def extract(
    seen: View,
    loader: Iterable[Any],
    store: Store,
    n_samples: int,
    *,
    about: dict[str, str],
    mode: str = "eval",
    amp: torch.dtype | None = None,
    progress: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """Store the model's rows for all samples; each index is to come exactly once.

    Args:
        seen: the model, as `view` sees it.
        loader: yields (index, input), in any order.
        store: takes the rows; an extraction that was interrupted goes on where it was, if `about` is the same.
        n_samples: N.
        about: what tells these rows from others: of the data and of the weights.
        mode: "eval", or "train" as SeLa's authors do (batch statistics; running averages move). The mode of every
            module is put back.
        amp: dtype of automatic mixed precision. None: none.
        progress: show a bar on stderr.
        ranks: processes that share the work, each with a loader of its own; what a distributed sampler repeats to
            make its parts equal counts once.

    Raises:
        TypeError: the loader does not yield (index, input).
        ValueError: an index out of range, seen twice, or missing at the end.
        InvalidScoresError: NaN or infinity, named by sample.
    """
    ranks = ranks or Ranks()
    present = np.zeros(n_samples, bool)  # rows that an interrupted extraction has left, once the store has told
    try:
        with forward_only(seen.model, training=mode == "train"), ranks.together():
            parts = _rows(seen, _bar(loader, progress and ranks.is_first), amp, present)
            _fill(store, ranks.gathered(parts), about, present, ranks)
    finally:
        store.close()


def _fill(store: Store, batches: Iterator[Batch], about: dict[str, str], present: np.ndarray, ranks: Ranks) -> None:
    """Write what is not there yet; on the ranks that only send there is nothing to write."""
    first = next(batches, None)
    if first is None:
        if ranks.is_first:
            raise ValueError("the loader is empty; it must yield (index, input) for every sample")
        return
    begun = store.begin(len(present), first[1].shape[1], about)
    if ranks.number == 1:  # of several, the others do not know what is there and send all
        present |= begun
    came = np.zeros(len(present), bool)
    for index, rows in chain([first], batches):
        fresh = _fresh(index, came, several=ranks.number > 1)
        came[index] = True
        wanted = fresh[~begun[index[fresh]]]
        if len(wanted):
            store.write(index[wanted], rows[wanted])
    check_complete(came)
    store.finish()


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


def check_range(index: np.ndarray, n_samples: int) -> None:
    """Raise ValueError for an index that is no sample's."""
    if len(index) and (index.min() < 0 or index.max() >= n_samples):
        wrong = int(index[(index < 0) | (index >= n_samples)][0])
        raise ValueError(f"index {wrong} is out of range; the labeler was made for {n_samples} samples, 0 to N - 1")


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


def _rows(seen: View, loader: Iterable[Any], amp: torch.dtype | None, present: np.ndarray) -> Iterator[Batch]:
    """What the model gives for each batch; nothing for one whose rows are all there already."""
    device = next((p.device for p in seen.model.parameters()), torch.device("cpu"))
    precision: Any = contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)
    for item in loader:
        index, inputs = parted(item)
        check_range(index, len(present))
        if len(index) and present[index].all():
            yield index, np.empty((0, 0), np.float32)
            continue
        with precision:
            rows = seen.rows(to_device(inputs, device))
        if rows.ndim != 2 or len(rows) != len(index):
            raise ValueError(f"the model gives {tuple(rows.shape)} for a batch of {len(index)}; (B, D) is needed")
        yield index, rows.float().cpu().numpy()


def parted(item: Any) -> tuple[np.ndarray, Any]:
    """Index and input of what a loader yields."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        told = f"a tuple of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
        raise TypeError(f"the loader yields {told}, not (index, input); wrap the data set in otlabel.IndexedDataset")
    return whole_numbers(item[0]), item[1]


def whole_numbers(index: Any) -> np.ndarray:
    """Indices of samples, (B,) int64."""
    array = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"the first of what the loader yields is {array.dtype} of shape {array.shape}, no indices of samples; "
            "wrap the data set in otlabel.IndexedDataset"
        )
    return array.astype(np.int64)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights: features of two hashes must not be mixed."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _bar(loader: Iterable[Any], shown: bool) -> Iterable[Any]:
    if not shown:
        return loader
    from tqdm import tqdm

    return tqdm(loader, desc="features", leave=False)
