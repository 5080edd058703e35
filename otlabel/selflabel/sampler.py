"""Which samples a loader draws, and data sets that tell which sample each item is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from otlabel.scores import as_array

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

    Each class gives N / K samples, rounded up: without repetition where it has more, else with. DeepCluster and UIC
    train this way, so that a large cluster does not take over the loss.

    Args:
        labels: (N,) of one head, or a `SelfLabeler`, whose labels are then looked up whenever an epoch begins.
        head: which head of the labeler. None: one after the other, by epoch.
        seed: with the epoch (see `set_epoch`) it decides what is drawn, whatever happened before.
        n_ranks, rank: where several processes share an epoch: each draws its part.

    Source: Caron, Bojanowski, Joulin, Douze, "Deep clustering for unsupervised learning of visual features", ECCV 2018,
        section 3.3.
    """

    def __init__(
        self,
        labels: SelfLabeler | Tensor | np.ndarray,
        *,
        head: int | None = None,
        seed: int = 0,
        n_ranks: int = 1,
        rank: int = 0,
    ) -> None:
        self._labels, self._head, self._seed = labels, head, seed
        self._n_ranks, self._rank, self._epoch = n_ranks, rank, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins: what is drawn depends on it and on the seed alone."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._current()) // self._n_ranks)

    def __iter__(self) -> Iterator[int]:
        labels = self._current()
        rng = np.random.default_rng((self._seed, self._epoch))
        order = np.argsort(labels, kind="stable")
        classes, starts = np.unique(labels[order], return_index=True)
        members = [part for k, part in zip(classes, np.split(order, starts[1:]), strict=True) if k >= 0]
        if not members:
            raise ValueError("no sample has a label; all of them are -1")
        each = -(-len(labels) // len(members))
        drawn = np.concatenate([rng.choice(part, each, replace=len(part) < each) for part in members])
        total = self._n_ranks * len(self)
        drawn = np.resize(rng.permutation(drawn), total)  # repeats a few where ranks could not share them equally
        yield from drawn[self._rank :: self._n_ranks].tolist()

    def _current(self) -> np.ndarray:
        labels: Any = self._labels
        if hasattr(labels, "labels"):
            head = self._epoch % len(labels.labels) if self._head is None else self._head
            labels = labels.labels[head]
        return as_array(labels)
