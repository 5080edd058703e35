"""How good labels are, told without the truth: signs to read off a model, its labels and views of its samples.

A view is a sample under a mild augmentation, the same for all runs whatever they train with, so that their figures can
be compared. A model that has learned what a class looks like gives a view the label of its sample; one that knows its
samples by heart, that was trained too fast, or whose labels are noise, does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional

from otlabel import metrics

TURN, ZOOM, SHIFT = 15.0, 1.2, 0.08  # of images: degrees, factor, share of the side; at most, to either side
CONTRAST, LIGHT = 0.2, 0.2  # change of contrast; of brightness, in standard deviations of the pixels
SWAPPED = 0.3  # share of a vector's numbers that are those of another sample


# ---- views ----


def common_view(inputs: Any, generator: torch.Generator) -> Any:
    """A mild random view of each sample, for inputs of any nesting that hold images or vectors; None for others.

    Images (B, C, H, W) of any scale are turned by up to 15 degrees, enlarged or made smaller by up to 1.2, moved by up
    to 8 % of a side, and changed in contrast and brightness by up to 20 %. Of vectors (B, D), 30 % of the numbers are
    those of another sample. Both are floating point; where there are images, vectors beside them stay as they are.

    Args:
        inputs: of a batch, as a model takes them.
        generator: where all random numbers come from.
    """
    for n_dimensions, change in ((4, _image_view), (2, _vector_view)):
        if any(tensor.ndim == n_dimensions and tensor.is_floating_point() for tensor in _tensors(inputs)):
            return _changed(inputs, n_dimensions, lambda tensor, change=change: change(tensor, generator))
    return None


def _changed(inputs: Any, n_dimensions: int, change: Any) -> Any:
    if isinstance(inputs, Tensor):
        return change(inputs) if inputs.ndim == n_dimensions and inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: _changed(value, n_dimensions, change) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [_changed(value, n_dimensions, change) for value in inputs]
    return inputs


def _image_view(images: Tensor, generator: torch.Generator) -> Tensor:
    def drawn(reach: float) -> Tensor:
        return reach * (2 * torch.rand(len(images), generator=generator, device=generator.device) - 1).to(images)

    aspect = images.shape[3] / images.shape[2]
    angle, scale = torch.deg2rad(drawn(TURN)), ZOOM ** drawn(1)
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    across = torch.stack([cosine, -sine / aspect, drawn(2 * SHIFT)], 1)
    down = torch.stack([sine * aspect, cosine, drawn(2 * SHIFT)], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    middle = moved.mean((1, 2, 3), keepdim=True)
    contrast, light = 1 + drawn(CONTRAST), drawn(LIGHT) * images.std(correction=0)
    return middle + contrast[:, None, None, None] * (moved - middle) + light[:, None, None, None]


def _vector_view(vectors: Tensor, generator: torch.Generator) -> Tensor:
    others = torch.randperm(len(vectors), generator=generator, device=generator.device).to(vectors.device)
    drawn = torch.rand(vectors.shape, generator=generator, device=generator.device).to(vectors.device)
    return torch.where(drawn < SWAPPED, vectors[others], vectors)


def _tensors(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, (Mapping, tuple, list)):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from _tensors(value)


# ---- signs ----


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
        scores, labels: as for `same_label`.
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
