"""What a trained network is worth: its layers, its features, and the classes that it finds in images new to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from otlabel import metrics
from otlabel.metrics.table import table_of
from otlabel.selflabel.model import MultiHead
from otlabel.training.crops import Batches
from otlabel.training.data import Images, validation
from otlabel.training.evaluate import Made, features_of
from otlabel.training.loaders import worker_count
from otlabel.training.probes import Probe, linear_probes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APART = 0.2  # share of the images that is set apart to judge by where there are no others
NUMBERS = 128  # of a sample, by which its neighbours are told
LOOKED_AT = 1 << 14  # training images that principal components are of
WAYS, SHOTS = 5, (1, 5)
TEST_BATCH = 256


@dataclass(frozen=True)
class Protocol:
    """How probes are trained and judged; the defaults are the paper's but for the size of a batch."""

    layers: list[str] | None = None  # None: all stages
    epochs: int | None = None  # None: 36, or more for few images
    batch_size: int = 64
    n_crops: int = 1  # 1 or 10
    flip: bool = False  # whether images may be mirrored
    neighbours: int = 50
    seed: int = 0
    workers: int | None = None  # processes that read files; None: by their number


@dataclass(frozen=True)
class Judged:
    """What came out."""

    probes: list[Probe]
    knn: float
    knn_numbers: str  # of which the neighbours were told
    few_shot: dict[int, metrics.FewShot]  # by shots; what there are too few samples for is left out
    ways: int  # classes of an episode
    labels: dict[str, float]  # agreement of the heads' classes with the truth, mean over heads
    n_train: int
    n_val: int
    n_heads: int
    is_apart: bool  # whether it was judged by images that were set apart for it

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return dataclasses.asdict(self) | {
            "few_shot": {str(shots): found._asdict() for shots, found in self.few_shot.items()}
        }


def judge(
    model: MultiHead, images: Images, protocol: Protocol, *, progress: Callable[[int, int], Any] | None = None
) -> Judged:
    """Probes of all layers, neighbours, few samples a class, and the heads' classes, on frozen weights.

    Args:
        model: a run's network.
        images: with true classes. Probes are trained on all training images, the bank where there is one, and judged by
            the test images; where there are none, by a fifth of the others, which is left out of the training of the
            probes.
        protocol: how.
        progress: called after each epoch of the probes.

    Raises:
        ValueError: there are no true classes.
    """
    if images.bank is not None:
        images = dataclasses.replace(images, train=images.bank, train_labels=images.bank_labels, bank=None)
    if images.train_labels is None:
        raise ValueError(f"{images.name} has no true classes to judge by")
    is_apart = images.test is None or images.test_labels is None
    if is_apart:
        images = validation(images, APART, protocol.seed)
    assert images.train_labels is not None
    assert images.test is not None
    assert images.test_labels is not None
    parts = (images.train, images.train_labels), (images.test, images.test_labels)
    flip, n_classes = protocol.flip, 1 + max(int(classes.max()) for _, classes in parts)
    workers = worker_count(protocol.workers, images.train)
    probes = linear_probes(
        model,
        protocol.layers,
        Batches(*parts[0], protocol.batch_size, flip=flip, seed=protocol.seed, workers=workers),
        Batches(*parts[1], TEST_BATCH, flip=flip, n_crops=protocol.n_crops, workers=workers),
        epochs=protocol.epochs,
        n_classes=n_classes,
        seed=protocol.seed,
        progress=progress,
    )
    device = next(model.parameters()).device
    truth = [classes.numpy() for _, classes in parts]

    def best(_index: Tensor, features: Tensor) -> Tensor:
        return torch.stack([head(features).argmax(1) for head in model.heads], 1)

    some = np.unique(np.linspace(0, len(images.train) - 1, min(LOOKED_AT, len(images.train))).astype(int))
    made, told = _numbers(model, lambda: features_of(model, images.train[some], device, workers))
    labels, numbers = ([features_of(model, one, device, workers, of) for one, _ in parts] for of in (best, made))
    ways = min(WAYS, n_classes)
    return Judged(
        probes,
        metrics.knn_accuracy(numbers[0], truth[0], numbers[1], truth[1], k=protocol.neighbours),
        told,
        _few_shots(features_of(model, images.test, device, workers), truth[1], ways, protocol.seed),
        ways,
        _agreement(labels, truth),
        len(truth[0]),
        len(truth[1]),
        len(model.heads),
        is_apart,
    )


def _numbers(model: MultiHead, some: Callable[[], np.ndarray]) -> tuple[Made, str]:
    """What makes 128 numbers a sample: the scores of a head of 128 classes, as the paper has them, or else features.

    `some` gives the features that principal components are of.
    """
    head, width = model.heads[0], model.feature_dim
    *_, offsets = head.parameters()
    if len(offsets) == NUMBERS:
        return lambda _, features: head(features), f"{NUMBERS} scores of the first head"
    if width <= NUMBERS:
        return lambda _, features: features, f"{width} features"
    train = torch.from_numpy(some()).double()
    mean = train.mean(0)
    _, directions = torch.linalg.eigh((train - mean).T @ (train - mean))  # the largest last

    def projected(_index: Tensor, features: Tensor) -> Tensor:
        return ((features.cpu().double() - mean) @ directions[:, -NUMBERS:]).float()

    return projected, f"{NUMBERS} principal components of {width:,} features"


def _few_shots(features: np.ndarray, truth: np.ndarray, ways: int, seed: int) -> dict[int, metrics.FewShot]:
    found = {}
    for shots in SHOTS:
        try:
            found[shots] = metrics.few_shot(features, truth, ways=ways, shots=shots, seed=seed)
        except ValueError:  # too few samples of too few classes
            continue
    return found


def _agreement(labels: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, float]:
    """Of each head's best class, (N, T) of either part, with the truth, mean over heads."""
    heads = []
    for train, val in zip(labels[0].T, labels[1].T, strict=True):
        found = metrics.compare(truth[1], val)
        found["majority"] = _majority(truth[0], train, truth[1], val)
        heads.append(found)
    names = ("nmi", "ami", "ari", "accuracy", "majority")
    return {name: float(np.mean([head[name] for head in heads])) for name in names}


def _majority(known: np.ndarray, clusters: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> float:
    """Share of new samples that are right if each cluster is called by the class that most known members have."""
    table = table_of(known, clusters)
    name = dict(zip(table.clusters.tolist(), table.classes[table.counts.toarray().argmax(0)].tolist(), strict=True))
    counts = truth >= 0
    return float(np.mean([name.get(label) == true for label, true in zip(labels[counts], truth[counts], strict=True)]))


def told(judged: Judged) -> str:
    """A table of the probes, and lines of the rest, in 80 columns."""
    lines = [f"{'layer':<12}{'numbers':>9}{'top-1':>8}{'top-5':>8}"]
    lines += [f"{one.layer:<12}{one.n_features:9,}{one.top1:8.3f}{one.top5:8.3f}" for one in judged.probes]
    lines.append(f"neighbours  {judged.knn:.3f}, by {judged.knn_numbers}")
    if judged.few_shot:
        each = [f"{shots}-shot {one.mean:.3f} +- {one.interval:.3f}" for shots, one in judged.few_shot.items()]
        lines.append(f"few shots   {judged.ways}-way {', '.join(each)}")
    agreement = [f"{name} {value:.3f}" for name, value in judged.labels.items()]
    lines.append(f"classes     {'  '.join(agreement)}")
    return "\n".join(lines)


def draw(judged: Judged, title: str) -> Figure:
    """Accuracy of the probe after each layer.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    from otlabel.pictures import AFTER, BEFORE, FAINT, INK, new_figure

    figure = new_figure(figsize=(8, 4.2))
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.7))
    names = [one.layer for one in judged.probes]
    top5, top1 = ([getattr(one, name) for one in judged.probes] for name in ("top5", "top1"))
    for values, hue, name, above in ((top5, BEFORE, "top-5", 8), (top1, AFTER, "top-1", -16)):
        axes.plot(names, values, color=hue, marker="o", linewidth=2, label=name)
        for place, value in enumerate(values):
            where: dict[str, Any] = {"xytext": (0, above), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{value:.3f}", (place, value), size=9, color=INK, **where)
    axes.set_ylim(0, 1.08)
    axes.set_title(title, loc="left", size=12, weight="bold", color=INK, pad=14)
    axes.set_ylabel("accuracy of a linear probe", color=FAINT)
    axes.legend(frameon=False, loc="lower right", labelcolor=INK)
    axes.tick_params(length=0, labelcolor=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
