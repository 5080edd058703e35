"""The training loop of the README with a network of one's own: five variants of it, and how `quality` ranks them.

    python benchmarks/selflabel/own_loop.py                # digits, and Fashion-MNIST where it is installed
    python benchmarks/selflabel/own_loop.py --samples 500 --epochs 2 --data digits

The network has BatchNorm, the rate falls as a cosine, there are four heads of ten. Nothing of `otlabel train` is used
but its loaders of images and its augmentation. `results/own_loop.json` has the runs, `results/own_loop.md` the table.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import describe_machine, machine_line, table, write_json

from otlabel import IndexedDataset, MultiHead, SelfLabeler, metrics
from otlabel.training.augment import Augmentation, plain
from otlabel.training.data import load_images, part_of

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("otlabel", "torch", "numpy")
AUGMENTATION = Augmentation(rotate=15.0, zoom=(0.75, 1.3), shift=0.1)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    'mode="eval"': {"mode": "eval"},
    "no augmentation": {"augmentation": Augmentation()},
    "rate 100 times smaller": {"rate": 0.0005},
    "features are frozen": {"frozen": True},
}


def network(channels: int) -> nn.Sequential:
    """Four convolutions whose field of view covers the image."""
    layers: list[nn.Module] = []
    for width, stride in ((16, 2), (32, 2), (64, 2), (128, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def run(
    pixels: torch.Tensor,
    truth: np.ndarray,
    epochs: int,
    seed: int,
    mode: str = "calibrated",
    augmentation: Augmentation = AUGMENTATION,
    rate: float = 0.05,
    frozen: bool = False,
) -> dict[str, Any]:
    """One training; NMI with the truth is looked at when all is over."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    dataset, as_they_are = IndexedDataset(TensorDataset(pixels)), IndexedDataset(TensorDataset(plain(pixels)))
    model = MultiHead(network(pixels.shape[1]), 128, [10] * 4)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(not frozen)
    labeler = SelfLabeler(len(dataset), [10] * 4, mode=mode, seed=seed)
    loader = DataLoader(dataset, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    begun = time.process_time()
    for _ in range(epochs):
        labeler.update(model, DataLoader(as_they_are, 256))
        for index, images in loader:
            loss = labeler.loss(model(augmentation(images, generator)), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    labeler.update(model, DataLoader(as_they_are, 256))
    labels, best = labeler.labels.numpy(), np.asarray(labeler.best_labels)
    return {
        "nmi": float(np.mean([metrics.nmi(truth, head) for head in labels])),
        "nmi_of_best": float(np.mean([metrics.nmi(truth, head) for head in best])),
        "quality": float(np.mean(labeler.quality)),
        "first_alarm": next((one["epochs_trained"] for one in labeler.history if one["alarms"]), None),
        "loss": float(loss.detach()),
        "cpu_seconds": time.process_time() - begun,
    }


def to_markdown(report: dict[str, Any]) -> str:
    lines = ["# The README's loop, five variants", "", machine_line(report["machine"]), ""]
    for data, found in report["runs"].items():
        rows = [
            (
                name,
                *(f"{one[key]:.3f}" for key in ("nmi", "nmi_of_best", "quality", "loss")),
                "-" if one["first_alarm"] is None else f"epoch {one['first_alarm']:.0f}",
                f"{one['cpu_seconds']:.0f}",
            )
            for name, one in found.items()
        ]
        order = spearmanr([one["quality"] for one in found.values()], [one["nmi"] for one in found.values()])[0]
        lines += [f"## {data}, {report['samples']} samples at most, {report['epochs']} epochs", ""]
        heads = ("variant", "NMI", "NMI of the best labels", "quality", "last loss", "first alarm", "CPU s")
        lines += table(heads, rows)
        lines += ["", f"Spearman's rank correlation of quality with NMI: {order:.2f}.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits,fashion-mnist")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "own_loop.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = {
        "machine": describe_machine(PACKAGES),
        "samples": arguments.samples,
        "epochs": arguments.epochs,
        "runs": {},
    }
    for data in arguments.data.split(","):
        images = load_images(data)
        images = part_of(images, min(arguments.samples, len(images.train)))
        assert images.train_labels is not None
        truth = images.train_labels.numpy()
        report["runs"][data] = {}
        for name, variant in VARIANTS.items():
            report["runs"][data][name] = run(images.train, truth, arguments.epochs, arguments.seed, **variant)
            print(data, name, report["runs"][data][name], flush=True)
            write_json(arguments.out, report)
            arguments.out.with_suffix(".md").write_text(to_markdown(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
