"""Labels of a run as a table: of each sample its file, and for each head its label and how sure the network is."""

from __future__ import annotations

import csv
import io
import os

import torch
from torch import Tensor

from otlabel.errors import FingerprintError
from otlabel.selflabel.model import MultiHead
from otlabel.selflabel.stores.head_labels import load_labels
from otlabel.storage.atomic import replacing
from otlabel.training.data import Images
from otlabel.training.evaluate import features_of
from otlabel.training.loaders import worker_count


def write_table(
    path: str | os.PathLike[str],
    labels_file: str | os.PathLike[str],
    images: Images,
    model: MultiHead,
    *,
    workers: int | None = None,
) -> int:
    """Write a CSV file, whole or not at all; returns how many samples it has.

    Columns: sample, file (of images from a folder), and for each head t label_t (-1: none) and confidence_t, the
    network's probability of that label.

    Args:
        path: of the table.
        labels_file: what the run has written.
        images: the run's.
        model: the run's, on any device.
        workers: processes that read image files. None: by their number.

    Raises:
        FileNotFoundError, FileFormatError: as `load_labels`.
        FingerprintError: the labels are of other samples, or of other heads than the model's.
        OSError: the table cannot be written.
    """
    stored = load_labels(labels_file)
    shape = stored.labels.shape
    if shape != (len(model.heads), len(images.train)) or stored.data != images.identity:
        raise FingerprintError(
            f"{os.fspath(labels_file)} holds labels of {shape[1]:,} samples and {shape[0]} heads, of data "
            f"{stored.data}; the run has {len(images.train):,} and {len(model.heads)}, of {images.identity}"
        )
    device = next(model.parameters()).device
    known = torch.from_numpy(stored.labels)

    def chances_of(index: Tensor, features: Tensor) -> Tensor:
        """(B, T) probabilities of the labels; 0 where there is none."""
        found = []
        for head, own in zip(model.heads, known[:, index].to(device), strict=True):
            chances = head(features).softmax(1).gather(1, own.clamp(min=0)[:, None])[:, 0]
            found.append(chances.where(own >= 0, 0))
        return torch.stack(found, 1)

    chances = features_of(model, images.train, device, worker_count(workers, images.train), chances_of)
    files = images.files
    with replacing(path) as file:
        # Names of files are bytes, which need not be text of any encoding.
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        heads = [name for t in range(shape[0]) for name in (f"label_{t}", f"confidence_{t}")]
        writer.writerow(["sample", *([] if files is None else ["file"]), *heads])
        for sample, (labels, sure) in enumerate(zip(stored.labels.T, chances, strict=True)):
            each = [one for label, chance in zip(labels, sure, strict=True) for one in (label, f"{chance:.4f}")]
            writer.writerow([sample, *([] if files is None else [files[sample]]), *each])
        text.flush()
        text.detach()
    return int(shape[1])
