"""BatchNorm's averages, made anew of samples as they are: what `mode="calibrated"` labels by.

In training, a layer of batch normalisation uses the mean and variance of each batch; in evaluation its running
averages, which lag behind the weights and are of augmented samples. So a network in evaluation mode gives features that
it has never trained on. Here these layers see some batches of samples without augmentation, drawn evenly from all of
them whatever their order, and average over these; in the end everything is as it was.

Untrained layers have mean 0 and variance 1, and are left alone. So random filters pass on what varies most in the
samples; were each of them normalised, it would count like any other, and the first labels, which all later ones grow
from, would be nearer to chance (`benchmarks/selflabel/modes.py`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from otlabel.ranks.communicator import SINGLE_PROCESS, Communicator
from otlabel.selflabel.batches import Parted
from otlabel.selflabel.model import ModelReader, NoRowsError, forward_only, joined, n_bytes, taken, to_device

UNTRAINED = 20  # batches; with the usual momentum, an eighth of what a layer began with is left by then
N_BATCHES, BATCH = 40, 64  # of samples that the averages are made of, over all processes
MOST_BYTES = 1 << 30  # of samples that are kept until batches are mixed from them, where a loader only goes through all


class BatchNorms:
    """A model's layers of BatchNorm, as they are now: their age, which all processes that share the work agree on.

    Args:
        reader: of the model.
        communicator: processes that share the work; one of them may be a batch ahead.
    """

    def __init__(self, reader: ModelReader, communicator: Communicator = SINGLE_PROCESS) -> None:
        self._reader, self._communicator = reader, communicator
        layers = _layers(reader.model)
        batches = communicator.allreduce_max("batches trained", *(float(layer.num_batches_tracked) for layer in layers))
        self._trained = [layer for layer, count in zip(layers, batches, strict=True) if count >= UNTRAINED]
        self.all_trained = len(self._trained) == len(layers)  # else averages are of an untrained network, not for long

    @contextlib.contextmanager
    def calibrated(
        self, loader: Iterable[Any], n_samples: int, parted: Parted, *, seed: int, amp: torch.dtype | None = None
    ) -> Iterator[Iterable[Any]]:
        """For the time being, layers have averages of samples of the loader, as the weights are now.

            mean = 1/B sum_b mean_b,   variance = 1/B sum_b variance_b      over B batches, about 40 of 64 samples

        A layer that is in evaluation mode while the model is in training mode is frozen, and stays as it is; so does
        one that has been trained on fewer than 20 batches. Averages, their counts, modes and random states are put
        back. Of processes that share the work each runs its part of the batches, and all have the averages of all.

        Args:
            loader: as for `Extractor`. Of a DataLoader that can be asked for single samples only those that are needed
                are loaded; any other is gone through once more. Of an iterator, which cannot be, the first samples are
                taken.
            n_samples: N.
            parted: takes what the loader yields to index and input.
            seed: of the draw, the same on all processes.
            amp: as for `Extractor`.

        Yields:
            The loader to extract with: an iterator is given back whole.
        """
        layers, communicator = self._trained, self._communicator
        if not layers:
            yield loader
            return
        before = [_state(layer) for layer in layers]
        try:
            with _same_random_numbers(self._reader.model, loader):
                batches, loader = _batches(loader, n_samples, parted, np.random.default_rng(seed), communicator)
                n_batches = len(batches)
                if any(isinstance(layer, nn.SyncBatchNorm) for layer in layers):  # they wait for each other each time
                    n_batches = int(-communicator.allreduce_max("batches", -n_batches)[0])
                _average(self._reader, layers, itertools.islice(batches, n_batches), amp)
            _settle(layers, before, communicator)
            yield loader
        finally:
            for layer, state in zip(layers, before, strict=True):
                _put_back(layer, state)


@contextlib.contextmanager
def averages_kept(model: nn.Module) -> Iterator[None]:
    """Whatever goes through the model meanwhile, BatchNorm's averages are as before in the end."""
    layers = _layers(model)
    before = [_state(layer) for layer in layers]
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            _put_back(layer, state)


# ---- the layers ----


def _layers(model: nn.Module) -> list[Any]:
    """BatchNorm layers with averages of their own that move in training."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm)
        and (layer.training or not model.training)
        and layer.running_mean is not None
        and layer.running_var is not None
        and layer.num_batches_tracked is not None
        and not is_lazy(layer.running_mean)
    ]


def _state(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone(), layer.num_batches_tracked.clone()


def _put_back(layer: Any, state: tuple[Tensor, Tensor, Tensor]) -> None:
    for tensor, value in zip((layer.running_mean, layer.running_var, layer.num_batches_tracked), state, strict=True):
        tensor.copy_(value)


def _average(reader: ModelReader, layers: list[Any], batches: Iterable[Any], amp: torch.dtype | None) -> None:
    """Leave in the layers the averages over batches, and how many there were; all else is in evaluation mode."""
    device = next((p.device for p in reader.model.parameters()), torch.device("cpu"))
    heads: list[Any] = [head for head in reader.heads if isinstance(head, nn.Module)]
    heads = [head for head in heads if any(module in layers for module in head.modules())]
    momenta = [layer.momentum for layer in layers]
    with forward_only(reader.model):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean of all batches
                layer.training = True
            for inputs in batches:
                precision: Any = contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)
                with precision:
                    rows = reader.rows(to_device(inputs, device))
                for head in heads:
                    head(rows.to(next(head.parameters()).dtype))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def _settle(layers: list[Any], before: list[tuple[Tensor, Tensor, Tensor]], communicator: Communicator) -> None:
    """Averages over all processes. A layer that no batch came to, or that is not finite then, has its own again.

    What is wrong with a sample is told by the extraction, which knows its number.
    """
    sums = []
    for layer in layers:
        count = float(layer.num_batches_tracked)
        both = torch.stack([layer.running_mean, layer.running_var]).double().cpu().numpy()
        sums.append(np.append(both.ravel() * count if count else np.zeros(both.size), count))
    for layer, state, found in zip(layers, before, communicator.allreduce("averages", *sums), strict=True):
        count = found[-1]
        means = found[:-1].reshape(2, -1) / max(count, 1)
        if not count or not np.isfinite(means).all():
            _put_back(layer, state)
            continue
        for tensor, value in zip((layer.running_mean, layer.running_var), means, strict=True):
            tensor.copy_(torch.from_numpy(value))


@contextlib.contextmanager
def _same_random_numbers(model: nn.Module, loader: Any) -> Iterator[None]:
    """torch's random numbers, of a loader's own generator too, go on as if nothing had happened."""
    generators = {id(one): one for one in (getattr(loader, "generator", None), _sampler_generator(loader))}
    states = [(one, one.get_state()) for one in generators.values() if isinstance(one, torch.Generator)]
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _sampler_generator(loader: Any) -> Any:
    return getattr(getattr(loader, "sampler", None), "generator", None)


# ---- the samples ----


def _batches(
    loader: Iterable[Any], n_samples: int, parted: Parted, rng: np.random.Generator, communicator: Communicator
) -> tuple[Any, Iterable[Any]]:
    """Inputs of this process's batches (with a length), and the loader to go on with."""
    if isinstance(loader, DataLoader) and _gives_single_samples(loader):
        return _Loaded(loader, parted, rng, communicator.world_size), loader
    if iter(loader) is loader:
        held = list(_first(loader, parted))
        there = np.concatenate([parted(item)[0] for item in held]) if held else np.empty(0, np.int64)
        return _mixed(held, parted, rng.permutation(np.unique(there))), itertools.chain(held, loader)
    # The same samples whatever the loader's order; of several processes, each has its part of them.
    return _mixed(loader, parted, rng.permutation(n_samples)), loader


def _gives_single_samples(loader: DataLoader[Any]) -> bool:
    """Whether single samples can be loaded as the loader itself would do it."""
    return (
        type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


class _Loaded:
    """Batches of samples drawn from all that a DataLoader may give, by a DataLoader like it.

    Processes that share a data set by a DistributedSampler draw from the whole of it, all the same: their averages are
    those of one process.
    """

    def __init__(self, loader: DataLoader[Any], parted: Parted, rng: np.random.Generator, n_ranks: int) -> None:
        dataset: Any = loader.dataset
        sampler: Any = loader.sampler
        wanted = N_BATCHES * BATCH
        if type(loader.batch_sampler) is not BatchSampler:
            places = sorted({place for batch in loader.batch_sampler or () for place in batch})
        elif type(sampler) in (SequentialSampler, RandomSampler, DistributedSampler):
            places = list(range(len(dataset)))
        else:
            places = sorted(set(sampler))
        if type(sampler) is not DistributedSampler:
            wanted = -(-wanted // n_ranks)
        drawn = rng.permutation(len(places))[:wanted]
        self._parted = parted
        self._parts = [[places[number] for number in part] for part in _split(drawn)]
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._parts,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Any]:
        for item in self._loader:
            yield self._parted(item)[1]


def _split(drawn: np.ndarray) -> list[np.ndarray]:
    """Parts of about one size; none of a single sample, which has no variance."""
    return np.array_split(drawn, max(1, len(drawn) // BATCH)) if len(drawn) > 1 else []


def _first(loader: Iterable[Any], parted: Parted) -> Iterator[Any]:
    """The first items of an iterator, as many as averages need and memory may hold."""
    n_samples = size = 0
    for item in loader:
        yield item
        index, inputs = parted(item)
        n_samples, size = n_samples + len(index), size + n_bytes(inputs)
        if n_samples >= N_BATCHES * BATCH or size >= MOST_BYTES:
            return


def _mixed(loader: Iterable[Any], parted: Parted, order: np.ndarray) -> list[Any]:
    """Batches of the samples that come first in `order`, put together from all that the loader yields.

    Samples in the order of their classes would otherwise come in batches of one class, of too small a variance. Where
    inputs are of no form that can be taken apart, or of different sizes, whole batches of the loader's are taken.
    """
    place = np.full(int(order.max(initial=0)) + 1, len(order))  # of each sample in the order
    place[order] = np.arange(len(order))
    most, places = N_BATCHES * BATCH, list[np.ndarray]()
    pieces: list[Any] = []
    try:
        for item in loader:
            index, inputs = parted(item)
            if not pieces and len(index):
                most = min(most, max(2, MOST_BYTES * len(index) // max(1, n_bytes(inputs))))
            known = (index >= 0) & (index < len(place))  # the extraction tells of others
            found = np.where(known, place[np.where(known, index, 0)], most)
            rows = np.flatnonzero(found < min(most, len(order)))
            if len(rows):
                places.append(found[rows])
                pieces.append(taken(inputs, rows, len(index)))
        if not pieces:
            return []
        whole = joined(pieces, [len(part) for part in places])
    except NoRowsError:
        return _spread(loader, parted)
    drawn = np.argsort(np.concatenate(places), kind="stable")
    return [taken(whole, part, len(drawn)) for part in _split(drawn)]


def _spread(loader: Iterable[Any], parted: Parted) -> list[Any]:
    """Whole batches of a loader, evenly from all of them, as many as averages need."""
    kept: list[tuple[int, Any]] = []
    every = 1
    for number, item in enumerate(loader):
        index, inputs = parted(item)
        if number % every == 0 and len(index) > 1:
            kept.append((len(index), inputs))
        while len(kept) > 2 and sum(size for size, _ in kept) >= 2 * N_BATCHES * BATCH:
            kept, every = kept[::2], 2 * every
    return [inputs for _, inputs in kept]
