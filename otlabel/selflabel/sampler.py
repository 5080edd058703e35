"""Which samples a loader draws, and data sets that tell which sample each item is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from otlabel.sources import as_array

if TYPE_CHECKING:
    from otlabel.selflabel.labeler import SelfLabeler


class IndexedDataset(Dataset):
    """A data set whose items are (index, input), as `SelfLabeler.update` and `loss` want them.

    Args:
        dataset: any data set with a length; items of any kind.
        inputs: takes an item to what the model is given. None: the item itself, or its first part where it is a pair
            or longer tuple, as in (image, label).
    """

    def __init__(self, dataset: Any, inputs: Callable[[Any], Any] | None = None) -> None:
        if not isinstance(dataset, Sized):
            raise TypeError(f"{type(dataset).__name__} has no length; self-labelling needs a data set of known size")
        self.dataset: Any = dataset
        self._inputs = _first if inputs is None else inputs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self._inputs(self.dataset[index])


def _first(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) else item


class ClassUniformSampler(Sampler[int]):
    """Draw from every class equally often, however large it is; an epoch is as long as the data set.

    Each class gives N / K samples, rounded up: without repetition where it has more; where it has fewer, all of them
    come equally often, but for a rest that is drawn. DeepCluster and UIC train this way, so that a large cluster does
    not take over the loss. Of several heads, each draws its part of the epoch by its own classes, which balances none
    of them fully: `SelfLabeler.loss(..., weight="balanced")` does.

    Where the labeler relabels within an epoch, what is still to come of it is drawn anew, by the new labels. What a
    loader has asked for by then (its next batch, and those that workers prepare) is not: relabel before an epoch
    begins where that matters.

    Args:
        labels: (N,) of one head, (T, N) of several, or a `SelfLabeler`, whose labels are looked up as they are needed.
        head: which head alone. None: all of them.
        seed: with the epoch (see `set_epoch`) and the labels it decides what is drawn, whatever happened before.
        n_ranks, rank: where several processes share an epoch: each draws its part.

    Raises:
        ValueError: when drawn from: no sample has a label.

    Source: Caron, Bojanowski, Joulin, Douze, "Deep clustering for unsupervised learning of visual features", ECCV 2018,
        section 3.3, for one head.
    """

    def __init__(
        self, labels: Any | SelfLabeler, *, head: int | None = None, seed: int = 0, n_ranks: int = 1, rank: int = 0
    ) -> None:
        self._labels, self._head, self._seed = labels, head, seed
        self._n_ranks, self._rank, self._epoch = n_ranks, rank, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins: what is drawn depends on it, the seed and the labels alone."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._current().shape[1] // self._n_ranks)

    def __iter__(self) -> Iterator[int]:
        drawn_by, drawn = -1, np.empty(0, np.int64)
        for place in range(len(self)):
            n_updates = getattr(self._labels, "n_updates", 0)
            if drawn_by != n_updates:
                drawn_by, drawn = n_updates, self._draw()
            yield int(drawn[place])

    def _draw(self) -> np.ndarray:
        """An epoch of this rank; labels that have not changed give the same again."""
        rng, labels = np.random.default_rng((self._seed, self._epoch)), self._current()
        parts = [_uniform(one, -(-labels.shape[1] // len(labels)), rng) for one in labels]
        total = self._n_ranks * len(self)
        # Repeats a few where ranks could not share them equally.
        return np.resize(rng.permutation(np.concatenate(parts)), total)[self._rank :: self._n_ranks]

    def _current(self) -> np.ndarray:
        """Labels, (T, N)."""
        labels = np.atleast_2d(as_array(getattr(self._labels, "labels", self._labels)))
        return labels if self._head is None else labels[self._head, None]


def _uniform(labels: np.ndarray, n_drawn: int, rng: np.random.Generator) -> np.ndarray:
    """Samples of which each class has n_drawn / K, rounded up."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    members = [part for k, part in zip(classes, np.split(order, starts[1:]), strict=True) if k >= 0]
    if not members:
        raise ValueError("no sample has a label; all of them are -1")
    each = -(-n_drawn // len(members))
    whole = [np.tile(part, each // len(part)) for part in members]
    rest = [rng.choice(part, each % len(part), replace=False) for part in members]
    return np.concatenate(whole + rest)
