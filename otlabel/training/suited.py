"""Settings that suit data nobody has tuned anything for: one rule from the shape and number of samples to a run.

What it reaches on scanned digits, clothes and photographs is in the documentation.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from otlabel.text import with_noun

if TYPE_CHECKING:
    from otlabel.training.config import Config

SMALL_SIDE = 16  # pixels; images up to this keep their size in the first block
LEAST_MAP = 4  # pixels of a side that halving goes down to
FIRST_WIDTH, LAST_WIDTH = 32, 256
N_HEADS = 4
HIDDEN = 256  # width of a layer in each head, where labels are made of views
SEEN, EPOCHS, PER_EPOCH = 200_000, (15, 60), 2  # samples in all, within these numbers of epochs; relabellings
SEEN_OF_VIEWS, EPOCHS_OF_VIEWS, PER_EPOCH_OF_VIEWS = 300_000, (15, 200), 1  # labels that vary are learned more slowly
MLP_WIDTH = 256


def suited(shape: tuple[int, ...], n_classes: int, epochs: int | None = None) -> dict[str, Any]:
    """All sections of a config but [data], for data of a shape, as a TOML file would have them.

    Images: a convolutional network that halves them until its field of view covers all of an image; random crops, small
    turns, and changes of light; of colours also hue and grey. Only images in colour, which are taken for photographs,
    are mirrored: left and right may matter in others, as in letters and digits. Of images of more than 16 pixels labels
    are made of such views, too, by heads with a hidden layer. Vectors: two hidden layers; numbers of other samples put
    in place of some.

    Args:
        shape: (N, C, H, W) or (N, D).
        n_classes: K of each head.
        epochs: how many there are to be; relabellings go by them. None: as many as suit.

    Raises:
        ValueError: fewer than two classes, or no epoch.
    """
    if n_classes < 2:
        raise ValueError(f"{n_classes} classes: give at least 2")
    vectors = len(shape) == 2
    of_views = not vectors and min(shape[2:]) > SMALL_SIDE
    seen, (low, high), per_epoch = SEEN, EPOCHS, PER_EPOCH
    if of_views:
        seen, (low, high), per_epoch = SEEN_OF_VIEWS, EPOCHS_OF_VIEWS, PER_EPOCH_OF_VIEWS
    if epochs is None:
        epochs = min(max(round(seen / shape[0]), low), high)
    model = _perceptron() if vectors else _covering(min(shape[2:]))
    return {
        "model": {**model, "heads": [n_classes] * N_HEADS, **({"hidden": HIDDEN} if of_views else {})},
        "labels": {"n_relabels": per_epoch * epochs, "schedule": "quadratic", "augmented": of_views},
        "augment": {"swap": 0.3} if vectors else _views(shape[1]),
        "train": {"epochs": epochs, "batch_size": 64, "lr": 0.1, "nesterov": True, "weight_decay": 5e-4},
    }


def _perceptron() -> dict[str, Any]:
    return {"backbone": "mlp", "options": {"width": MLP_WIDTH}}


def _covering(side: int) -> dict[str, Any]:
    """3 x 3 convolutions that halve the image until 4 pixels are left, and one more, which then sees all of it."""
    strides = [1] if side <= SMALL_SIDE else []  # where each pixel counts
    strides += [2] * (max(1, math.ceil(math.log2(side / LEAST_MAP))) + 1)
    widths = [min(FIRST_WIDTH << number, LAST_WIDTH) for number in range(len(strides))]
    return {"backbone": "small_convnet", "options": {"widths": widths, "strides": strides}}


def _views(channels: int) -> dict[str, Any]:
    if channels == 3:
        return {"crop": [0.3, 1.0], "flip": True, "jitter": 0.5, "grayscale": 0.2}
    return {"rotate": 15, "zoom": [0.8, 1.25], "shift": 0.1, "jitter": 0.3}


def told(shape: tuple[int, ...], config: Config, *, timed: bool = False) -> str:
    """What is assumed of the data, in a few lines; if the run is timed, the epochs are not known yet."""
    from otlabel.training.loaders import batch_sizes
    from otlabel.training.timetable import Timetable

    model, epochs = config.model, config.train.epochs
    n_relabels = Timetable(config).count(len(batch_sizes(shape[0], config.train.batch_size))).total()
    vectors = len(shape) == 2
    if vectors:
        data = f"{shape[0]:,} vectors of {shape[1]} numbers"
    else:
        kind = {1: "in grey", 3: "in colour"}.get(shape[1], f"of {shape[1]} channels")
        data = f"{shape[0]:,} images of {shape[2]} x {shape[3]} pixels, {kind}"
    lines = [f"{data}, in {model.heads[0]} classes: {model.backbone} {model.options}, {len(model.heads)} heads"]
    lines[0] += "." if timed else f", {with_noun(epochs, 'epoch')}, {with_noun(n_relabels, 'relabelling')}."
    if not vectors:
        mirrored, other = ("are mirrored", "false") if config.augment.flip else ("are not mirrored", "true")
        lines.append(f"Images {mirrored}; if that does not suit them, --set augment.flip={other}.")
    return "\n".join(textwrap.fill(line, 80) for line in lines)
