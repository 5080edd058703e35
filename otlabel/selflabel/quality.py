"""How good labels are, told without the truth: signs to read off a model, its labels and views of its samples.

A view is a sample under a mild augmentation, the same for all runs whatever they train with, so that their figures can
be compared. A model that has learned what a class looks like gives a view the label of its sample; one that knows its
samples by heart, that was trained too fast, or whose labels are noise, does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional

from otlabel import metrics
from otlabel.selflabel.calibration import averages_kept
from otlabel.selflabel.model import ModelReader, NoRowsError, joined, n_bytes, taken, tensors, to_device

LEAST, SHARE, MOST = 256, 12, 4096  # samples looked at: one in twelve, within these numbers
AT_ONCE, VIEW_BYTES = 256, 1 << 22  # views that go through the model together; of samples that they are made of
MOST_BYTES = 1 << 27  # of samples that are kept to be looked at: of photographs as bytes some 900 of 224 x 224
MakeView = Callable[[Any, torch.Generator], Any]

AREA, TURN = 0.35, 10.0  # of images: least share of the area that a crop keeps; degrees to either side
JITTER, GREY = 0.4, 0.2  # change of brightness (in standard deviations), contrast, saturation; share without colours
SWAPPED = 0.5  # share of a vector's numbers that are those of other samples


# ---- views ----


def common_view(inputs: Any, generator: torch.Generator, strength: float = 1.0) -> Any:
    """A random view of each sample, for inputs of any nesting that hold images or vectors; None for others.

    Images (B, C, H, W) of any scale are cropped to 35 % to 100 % of their area, turned by up to 10 degrees, changed in
    brightness and contrast by up to 40 %, those of three channels in saturation too, and 20 % of them lose their
    colours. Of vectors (B, D), half of the numbers are those of other samples. Both are floating point; where there
    are images, vectors beside them stay as they are.

    Args:
        inputs: of a batch, as a model takes them.
        generator: where all random numbers come from.
        strength: 0 (nothing changes) to 1, a factor of all that is said above.
    """
    for n_dimensions, change in ((4, _image_view), (2, _vector_view)):
        if _has(inputs, n_dimensions):
            return _changed(inputs, n_dimensions, partial(change, generator=generator, strength=strength))
    return None


def _has(inputs: Any, n_dimensions: int) -> bool:
    """Whether there are numbers of so many dimensions that can be changed."""
    return any(tensor.ndim == n_dimensions and tensor.is_floating_point() for tensor in tensors(inputs))


def _changed(inputs: Any, n_dimensions: int, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(inputs, Tensor):
        return change(inputs) if inputs.ndim == n_dimensions and inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: _changed(value, n_dimensions, change) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [_changed(value, n_dimensions, change) for value in inputs]
    return inputs


def _image_view(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    def drawn(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(len(images), generator=generator, device=generator.device)).to(images)

    def about_one() -> Tensor:
        return drawn(1 - JITTER * strength, 1 + JITTER * strength)[:, None, None, None]

    aspect = images.shape[3] / images.shape[2]
    side = drawn(1 - (1 - AREA) * strength, 1).sqrt()
    angle = torch.deg2rad(drawn(-TURN * strength, TURN * strength))
    cosine, sine = side * torch.cos(angle), side * torch.sin(angle)
    across = torch.stack([cosine, -sine / aspect, (1 - side) * drawn(-1, 1)], 1)
    down = torch.stack([sine * aspect, cosine, (1 - side) * drawn(-1, 1)], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    views = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if images.shape[1] == 3:
        grey = views.mean(1, keepdim=True)
        kept = drawn(0, 1)[:, None, None, None] >= GREY * strength
        views = grey + about_one() * kept * (views - grey)
    middle = views.mean((1, 2, 3), keepdim=True)
    light = (about_one() - 1) * images.std(correction=0)
    return middle + about_one() * (views - middle) + light


def _vector_view(vectors: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    others = torch.randint(len(vectors), vectors.shape, generator=generator, device=generator.device)
    drawn = torch.rand(vectors.shape, generator=generator, device=generator.device).to(vectors.device)
    return torch.where(drawn < SWAPPED * strength, vectors.gather(0, others.to(vectors.device)), vectors)


# ---- samples that are looked at ----


class Looks:
    """Rows that a model gives for views of some samples: always the same samples and views, in the order of indices.

    Args:
        n_samples: N.
        seed: of samples and views.
        make_view: takes a batch of inputs and a generator to views of them, or to None where it knows of none.
    """

    def __init__(self, n_samples: int, seed: int, make_view: MakeView) -> None:
        rng = np.random.default_rng((seed, 0))
        self._place = np.empty(n_samples, np.int64)
        self._place[rng.permutation(n_samples)] = np.arange(n_samples)
        self._most = min(MOST, max(LEAST, n_samples // SHARE))
        self._generator = torch.Generator().manual_seed(seed)
        self._make_view = make_view
        self._kept: list[tuple[np.ndarray, Any]] = []
        self.index = np.empty(0, np.int64)  # (n,) samples that were looked at
        self.rows: np.ndarray | None = None  # (n, D) of their views; None: there are none
        self.of_vectors = False  # whether they are the common views, of vectors

    def keep(self, index: np.ndarray, inputs: Any) -> None:
        """Keep those of a batch that are to be looked at."""
        if not self._kept and len(index):  # large samples are too many bytes, which nobody knew before
            self._most = min(self._most, max(1, MOST_BYTES * len(index) // max(1, n_bytes(inputs))))
        rows = np.flatnonzero(self._place[index] < self._most)
        if len(rows):
            self.of_vectors = self._make_view is common_view and not _has(inputs, 4)
            self._kept.append((index[rows], taken(inputs, rows, len(index))))

    def see(self, reader: ModelReader, device: torch.device, precision: Any) -> None:
        """Let the model see views of what was kept; it is in its mode, without gradients."""
        if not self._kept:
            return
        found, indices = [], []
        devices = [device.index] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), averages_kept(reader.model):
            for index, inputs in self._parts():
                views = self._make_view(inputs, self._generator)
                if views is None:
                    return
                with precision:
                    found.append(reader.rows(to_device(views, device)).float().cpu().numpy())
                indices.append(index)
        self.index, self.rows = np.concatenate(indices), np.concatenate(found)

    def _parts(self) -> Iterator[tuple[np.ndarray, Any]]:
        """Batches in the order of indices, where inputs can be put together; else as they came. Nothing is kept on."""
        kept, self._kept = self._kept, []
        indices = [index for index, _ in kept]
        try:
            whole = joined([inputs for _, inputs in kept], [len(index) for index in indices])
        except NoRowsError:
            yield from kept
            return
        del kept
        index = np.concatenate(indices)
        order = np.unique(index, return_index=True)[1]
        # On its way a view takes several times the bytes of its sample.
        at_once = min(AT_ONCE, max(1, VIEW_BYTES * len(index) // max(1, n_bytes(whole))))
        n_parts = -(-len(order) // at_once)
        for part in np.array_split(order, n_parts):
            yield index[part], taken(whole, part, len(index))


# ---- signs ----


def heads_foresee(classes: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of each head, how far another head tells its labels from views of the samples: what `quality` is.

        quality_t = max(0, AMI(labels_t, argmax_k scores_{t+1},k(view)))      t = 1 ... T, the first after the last

    AMI is the mutual information, adjusted for chance and normalised: 0 for guesses, whatever K, and 1 where the one
    tells the other. So heads have to have found the same, and views have to show it. One head alone is asked itself.

    Args:
        classes: (T, n) best class of each view by each head, with the potentials that labels were made with, if any.
        labels: (T, n) of the samples, -1 for none.
    """
    return [
        max(0.0, metrics.ami(mine, classes[(head + 1) % len(labels)])) if (mine >= 0).any() else 0.0
        for head, mine in enumerate(labels)
    ]


def same_label(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose label is the best class of their view.

        1/n sum_i [argmax_k scores_ik = labels_i]

    Args:
        scores: (n, K) of the views: log-probabilities, with the potentials that the labels were made with, if any.
        labels: (n,) of the samples, -1 for none.
    """
    labelled = labels >= 0
    return float((scores.argmax(1) == labels)[labelled].mean()) if labelled.any() else 0.0


def label_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """The cross-entropy of the labels on the views.

        -1/n sum_i log softmax(scores_i)[labels_i]

    Args:
        scores: (n, K) as for `same_label`, without potentials.
        labels: (n,) as there.
    """
    labelled = np.flatnonzero(labels >= 0)
    wide = scores[labelled].astype(np.float64)
    return float((logsumexp(wide, 1) - wide[np.arange(len(labelled)), labels[labelled]]).mean())


def heads_agree(labels: Sequence[np.ndarray]) -> float:
    """The mean over pairs of heads of the normalised mutual information between their labels; NaN for one head."""
    pairs = [metrics.nmi(one, other) for one, other in itertools.combinations(labels, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def neighbours_agree(features: np.ndarray, labels: np.ndarray, k: int = 10, batch: int = 1024) -> float:
    """Share of samples whose label is the commonest among the k samples nearest by cosine, themselves left out.

    Args:
        features: (N, D).
        labels: (N,).
        k: neighbours.
        batch: samples compared with all at once.
    """
    unit = torch.from_numpy(np.asarray(features, np.float32))
    unit = functional.normalize(unit - unit.mean(0), dim=1)
    given = torch.from_numpy(np.asarray(labels, np.int64))
    right = 0
    for start in range(0, len(unit), batch):
        cosines = unit[start : start + batch] @ unit.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -2
        votes = functional.one_hot(given[cosines.topk(k).indices], int(given.max()) + 1).sum(1)
        right += int((votes.argmax(1) == given[start : start + batch]).sum())
    return right / len(unit)
