"""What features are worth: frozen, judged by their neighbours and by a linear probe on the true classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from otlabel import metrics
from otlabel.selflabel.model import MultiHead, forward_only
from otlabel.training.config import Evaluation
from otlabel.training.data import Images, Samples
from otlabel.training.loaders import in_order, standardised

Made = Callable[[Tensor, Tensor], Tensor]  # of the indices and the features of a batch, a row a sample


def evaluate(
    model: MultiHead, images: Images, wanted: Evaluation, device: torch.device, workers: int = 0
) -> dict[str, float]:
    """Accuracy of weighted k-nearest neighbours and of a linear probe, from the training to the test images.

    Args:
        model: its features are taken in evaluation mode; the mode of every module is put back.
        images: with true classes of both parts; nothing is measured where these are missing. Where there is a bank, it
            takes the place of the training images.
        wanted: what to measure.
        device: where the model is.
        workers: processes that read image files.

    Returns:
        "knn" and "probe", each from 0 to 1, as far as they can be had.
    """
    if not (wanted.knn or wanted.probe):
        return {}
    known, classes = images.train, images.train_labels
    if images.bank is not None:
        known, classes = images.bank, images.bank_labels
    if classes is None or images.test is None or images.test_labels is None:
        return {}
    train, test = (features_of(model, part, device, workers) for part in (known, images.test))
    found = {}
    if wanted.knn:
        found["knn"] = metrics.knn_accuracy(train, classes, test, images.test_labels, k=wanted.knn)
    if wanted.probe:
        found["probe"] = metrics.linear_probe(train, classes, test, images.test_labels)
    return found


def features_of(
    model: MultiHead,
    samples: Samples,
    device: torch.device,
    workers: int = 0,
    made: Made | None = None,
    room: Callable[[tuple[int, int]], np.ndarray] | None = None,
) -> np.ndarray:
    """(N, D) float32 of samples as they are, in their order; or what is made of each batch, while they are let go.

    The features of a million images, and more so the scores of several heads, may not fit into memory: `room` makes an
    array of a shape elsewhere.
    """
    found: np.ndarray | None = None
    with forward_only(model):
        dtype = next((one.dtype for one in model.parameters()), torch.float32)
        for index, part in in_order(samples, workers=workers):
            index, features = torch.as_tensor(index), model.features(standardised(part.to(device)).to(dtype)).float()
            rows = (features if made is None else made(index, features)).cpu().numpy()
            if found is None:
                shape = (len(samples), *rows.shape[1:])
                found = np.empty(shape, rows.dtype) if room is None else room(shape)
            found[index.numpy()] = rows
    assert found is not None
    return found
