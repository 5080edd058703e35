"""What features are worth: frozen, judged by their neighbours and by a linear probe on the true classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otlabel import metrics
from otlabel.selflabel.model import MultiHead, forward_only
from otlabel.training.augment import plain
from otlabel.training.config import Evaluation
from otlabel.training.data import Images

BATCH = 512


def evaluate(model: MultiHead, images: Images, wanted: Evaluation, device: torch.device) -> dict[str, float]:
    """Accuracy of weighted k-nearest neighbours and of a linear probe, from the training to the test images.

    Args:
        model: its features are taken in evaluation mode; the mode of every module is put back.
        images: with true classes of both parts; nothing is measured where these are missing. Where there is a bank, it
            takes the place of the training images.
        wanted: what to measure.
        device: where the model is.

    Returns:
        "knn" and "probe", each from 0 to 1, as far as they can be had.
    """
    known, classes = images.train, images.train_labels
    if images.bank is not None:
        known, classes = images.bank, images.bank_labels
    if classes is None or images.test is None or images.test_labels is None:
        return {}
    train, test = (features_of(model, part, device) for part in (known, images.test))
    found = {}
    if wanted.knn:
        found["knn"] = metrics.knn_accuracy(train, classes, test, images.test_labels, k=wanted.knn)
    if wanted.probe:
        found["probe"] = metrics.linear_probe(train, classes, test, images.test_labels)
    return found


def features_of(model: MultiHead, images: Tensor, device: torch.device) -> np.ndarray:
    """(N, D) float32 of images without augmentation."""
    with forward_only(model):
        parts = [batch.to(device) for batch in images.split(BATCH)]
        found = [model.features(part if part.ndim == 2 else plain(part)).float().cpu() for part in parts]
    return torch.cat(found).numpy()
