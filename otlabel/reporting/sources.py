"""What a report is about: labels from anywhere, with all that their file or their run's folder knows of them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.reporting.image_files import ImageFiles, read_images
from otlabel.result import Assignment
from otlabel.solver.outcome import Certificate
from otlabel.sources import as_array, load_array, open_scores
from otlabel.sources.paths import load_plain
from otlabel.storage import label_files
from otlabel.storage.label_files import CLUSTERED
from otlabel.storage.texts import read_json, read_json_lines, read_lines
from otlabel.text import local_path, one_line

if TYPE_CHECKING:
    from otlabel.selflabel.stores.head_labels import HeadLabels
    from otlabel.training.config import Config
    from otlabel.training.data import Images, Samples


@dataclass(frozen=True, eq=False)
class Subject:
    """Labels, and all that is known of the samples; None for what is not."""

    labels: Any  # (N,) integers
    title: str = "Labels"
    head: int = 0  # whose labels these are, where there are several heads
    n_heads: int | None = None  # of the file or run; None: it knows of none
    n_classes: int | None = None
    proof: Certificate | None = None  # as stated by whoever made the labels
    potentials: Any = None  # (K,) that prove the labels
    scores: Any = None
    images: Any = None
    texts: Any = None
    features: Any = None
    truth: Any = None
    history: Any = None  # dicts: lines of epochs and records of relabellings
    names: Any = None
    true_names: Any = None
    about: tuple[str, ...] = ()  # sentences on where the labels are from
    notes: tuple[str, ...] = ()  # sentences on what is missing, and why


def find(labels: Any, head: int = 0, n_samples: int | None = None) -> Subject:
    """What there is to know of labels, of an Assignment, or of what a path leads to: of so many samples, if known."""
    if isinstance(labels, Assignment):
        subject = _of_assignment(labels)
    elif isinstance(labels, (str, os.PathLike)):
        subject = _of_path(os.fspath(labels), head, n_samples)
    else:
        subject = Subject(labels)
    return dataclasses.replace(subject, head=head)


def number_of(scores: Any, features: Any) -> int | None:
    """How many samples scores or features are of, if there are any."""
    rows = {"scores": scores, "features": features}
    return next((open_scores(one, what=name).shape[0] for name, one in rows.items() if one is not None), None)


def opened(n_samples: int | None, **given: Any) -> dict[str, Any]:
    """What was given, by name, without what was not; paths are opened, lines of texts and names are read.

    n_samples: how many there are; None: not known yet.
    """

    def truth(text: str) -> np.ndarray:
        if n_samples is not None:
            label_files.check_number(text, n_samples)
        return load_array(text)

    def lines(text: str) -> list[str]:
        return read_lines(Path(local_path(text)))

    readers: dict[str, Callable[[str], Any]] = {
        "images": read_images,
        "texts": lines,
        "names": lines,
        "true_names": lines,
        "truth": truth,
        "history": lambda text: read_json_lines(Path(local_path(text))),
    }
    return {
        name: readers[name](os.fspath(one)) if name in readers and isinstance(one, (str, os.PathLike)) else one
        for name, one in given.items()
        if one is not None
    }


def _of_assignment(result: Assignment, title: str = "Labels") -> Subject:
    return Subject(
        as_array(result.labels),
        title,
        n_classes=len(result.counts),
        proof=result.proof,
        potentials=as_array(result.potentials),
    )


def _of_path(text: str, head: int, n_samples: int | None) -> Subject:
    path = Path(local_path(text))
    if n_samples is not None:
        label_files.check_number(text, n_samples)
    if path.is_dir():
        is_run = not label_files.holds_labels(path)
        return _of_run(path, head, n_samples) if is_run else _of_stored(label_files.read_labels(path), path.name)
    match path.suffix.lower() if "::" not in text else "":
        case ".npz":
            return _of_assignment(Assignment.load(path), path.name)
        case ".npy":
            return _of_stored(label_files.read_labels(path), path.name)
        case ".h5" | ".hdf5":
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist")
            if label_files.holds_labels(path):
                return _of_stored(label_files.read_labels(path), path.name)
            return _of_head(_heads(path, n_samples), head, path.name)
    return Subject(load_array(text), path.name)


def _of_stored(stored: label_files.StoredLabels, title: str) -> Subject:
    receipt, about = stored.receipt, []
    if receipt is not None and receipt.status == CLUSTERED:
        about.append("Scores are minus the distances of k-means; the bound is for the centres that k-means came to.")
    return Subject(
        stored.labels,
        title,
        n_classes=None if stored.potentials is None else len(stored.counts),  # .npy may lack the last ones
        proof=_stated(stored),
        potentials=stored.potentials,
        about=tuple(about),
    )


def _stated(stored: label_files.StoredLabels) -> Certificate | None:
    """What a receipt says of the labels that it lies beside."""
    receipt = stored.receipt
    if receipt is None or receipt.value is None or receipt.bound is None:
        return None
    gap, rounding = (math.nan if number is None else number for number in (receipt.gap, receipt.rounding))
    return Certificate(receipt.value, receipt.bound, stored.counts, gap, rounding)


def _heads(path: Path, n_samples: int | None) -> HeadLabels:
    """Labels of all heads."""
    from otlabel.selflabel import load_labels

    if n_samples is not None:
        label_files.check_number(f"{path}::heads/0/labels", n_samples)
    return load_labels(path)


def _of_head(stored: HeadLabels, head: int, title: str) -> Subject:
    n_heads = len(stored.n_classes)
    if not 0 <= head < n_heads:
        raise ValueError(f"head is {head}; {title} has heads 0 to {n_heads - 1}")
    about = []
    if n_heads > 1:
        about.append(f"The labels are those of head {head}, of {n_heads} heads.")
    record = stored.records[head] if head < len(stored.records) else {}
    if "gap" in record:
        about.append(f"When they were made, their gap to the best labels of these sizes was {record['gap']:.2g}.")
    return Subject(stored.labels[head], title, n_heads=n_heads, n_classes=stored.n_classes[head], about=tuple(about))


# ---- a run of otlabel train ----


def _of_run(folder: Path, head: int, n_samples: int | None) -> Subject:
    """Labels, course and data of a run, and the scores of its network."""
    for name in ("config.json", "metrics.jsonl", "labels.h5"):
        if not (folder / name).is_file():
            remedy = "let the run come to its end first" if name == "labels.h5" else "give a folder of `otlabel train`"
            raise FileNotFoundError(f"{folder} has no {name}; {remedy}")

    from otlabel.training.data import images_of
    from otlabel.training.saved import asked_of

    config, fingerprint = asked_of(folder / "config.json")
    stored = _heads(folder / "labels.h5", n_samples)
    subject = _of_head(stored, head, folder.resolve().name)
    weights, relabellings = _checkpoint(folder / "checkpoint.pt")
    subject = dataclasses.replace(subject, history=[*read_json_lines(folder / "metrics.jsonl"), *relabellings])
    about, notes = [*subject.about, *_features_judged(folder)], list(subject.notes)
    try:
        images = images_of(config.data)
    except FileNotFoundError as error:
        told = f"There are no pictures, truth or scores, for the data were not found: {error}"
        return dataclasses.replace(subject, about=tuple(about), notes=(*notes, told))
    if images.fingerprint != fingerprint:
        raise FingerprintError(f"{folder} is a run on other data than {config.data.name} holds now")
    scores = None
    if ":" in config.model.backbone:
        notes.append("There are no scores, for the network is not one of otlabel's: pass them to see more.")
    elif weights is not None:
        scores = _network_scores(config, images, weights, head)
        about.append("Scores are the log-probabilities of the network as last saved, after the labels were made.")
    return dataclasses.replace(
        subject,
        scores=scores,
        images=_pixels(images.train) if images.train.ndim == 4 else None,
        features=_pixels(images.train) if images.train.ndim == 2 else None,
        truth=None if images.train_labels is None else images.train_labels.numpy(),
        about=tuple(about),
        notes=tuple(notes),
    )


def _pixels(samples: Samples) -> Any:
    """In memory what is there already; of files, those that are asked for."""
    from otlabel.training import images

    if isinstance(samples, images.ImageFiles):
        return ImageFiles([samples.path(index) for index in range(len(samples))])
    return samples.numpy()


def _features_judged(folder: Path) -> list[str]:
    """What result.json and search.json say of labels and features, a sentence each."""
    from otlabel.training.search import told as tried_settings

    path = folder / "result.json"
    found = read_json(path) if path.is_file() else {}
    told_without = []
    if isinstance(found.get("quality"), float):
        told_without.append(
            f"Quality, told without the truth, is {found['quality']:.3f} (0: chance, 1: heads foresee each other's "
            "labels from views of the samples)."
        )
    tried = folder / "search.json"
    if tried.is_file():
        told_without += tried_settings(read_json(tried))
    named = {"knn": "nearest neighbours", "probe": "a linear probe"}
    told = [f"{named[key]} {found[key]:.3f}" for key in named if isinstance(found.get(key), float)]
    return told_without + ([f"Accuracy of the features on test data: {', '.join(told)}."] if told else [])


def _checkpoint(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The weights of the network and a record of each relabelling and head; nothing where there is no checkpoint."""
    from otlabel.training.folder import trained_weights

    if not path.is_file():
        return None, []
    try:
        state = load_plain(path, keys=("state_dict", "callbacks"))
        history = state["callbacks"]["otlabel"]["labeler"]["history"]
        return trained_weights(path), [dict(record) for record in history]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileFormatError(f"{path} is damaged, or is no checkpoint of a run: {one_line(error)}") from error


def _network_scores(config: Config, images: Images, weights: dict[str, Any], head: int) -> np.ndarray:
    """(N, K) log-probabilities of one head, in a nameless file where memory has no room for them."""
    import torch

    from otlabel.selflabel.head_scores import room_for
    from otlabel.training.entry import input_of
    from otlabel.training.evaluate import features_of
    from otlabel.training.loaders import worker_count
    from otlabel.training.saved import model_of

    model = model_of(config, weights, input_of(config.augment.normalise, config.model.sobel, images.train))
    workers = worker_count(config.data.workers, images.train)

    def scores(_index: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return model.heads[head](features).log_softmax(1)

    return features_of(model, images.train, torch.device("cpu"), workers, scores, room_for)
