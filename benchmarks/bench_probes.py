"""What each layer of a network is worth, by where its labels came from: CIFAR-10, linear probes after every stage.

    python benchmarks/bench_probes.py               # three seeds, minutes on one core
    python benchmarks/bench_probes.py --samples 50000 --epochs 200 --seeds 3    # a day
    python benchmarks/bench_probes.py --small       # seconds: all code, figures that mean nothing

The rows of the papers' tables of layers: SeLa, k-means (DeepCluster), an untrained network and one that was trained on
the true classes, all of one architecture and the same augmentation. CIFAR-10 is sought in $OTLABEL_DATA, as everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, machine_line, read_json, write_json

RESULTS = Path(__file__).parent / "results"
NETWORK = {"backbone": "small_convnet", "options": {"widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1]}}
LABELS = {"SeLa": "sinkhorn", "k-means": "kmeans", "untrained": "random", "true classes": "truth"}
N_HEADS = {"k-means": 1}  # as DeepCluster; others have four
N_CLASSES = 32  # of each head, but of true classes
PLAIN_EPOCHS, PLAIN_BATCH = 30, 64


def config_of_row(name: str, arguments: argparse.Namespace, seed: int) -> Any:
    from otlabel.training.config import config_of

    epochs = arguments.epochs
    labels = {"method": LABELS[name], "n_relabels": epochs, "schedule": "linear"}
    labels |= {"augmented": True} if name == "SeLa" else {}
    return config_of({
        "data": {"name": "cifar10", "n_samples": arguments.samples},
        "model": {**NETWORK, "heads": [N_CLASSES] * N_HEADS.get(name, 4)},
        "labels": labels,
        "augment": {"crop": [0.3, 1.0], "flip": True, "jitter": 0.5, "grayscale": 0.2},
        "train": {"epochs": epochs, "batch_size": 64, "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "seed": seed},
        "evaluation": {"knn": 0, "probe": False},
    })  # fmt: skip


def measured(name: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    from otlabel.training.data import images_of
    from otlabel.training.judged import Protocol, judge
    from otlabel.training.run import Run

    config = config_of_row(name, arguments, seed)
    images = images_of(config.data)
    n_test = arguments.test
    images = dataclasses.replace(images, test=images.test[:n_test], test_labels=images.test_labels[:n_test])
    started = time.process_time()
    with contextlib.closing(Run(config, None, images=images)) as run:
        if name != "untrained":
            run.fit()
    trained = time.process_time() - started
    judged = judge(run.model, images, Protocol(epochs=arguments.probe_epochs, flip=True, n_crops=10, seed=seed))
    return {
        "network": name,
        "seed": seed,
        "training_cpu_s": trained,
        "probes_cpu_s": time.process_time() - started - trained,
        **last_layer(run, arguments, seed),
        **judged.to_dict(),
    }


def last_layer(run: Any, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Both ways to a linear classifier of the last layer, on more images: how far they are from each other."""
    import torch

    from otlabel import linear_probes, metrics
    from otlabel.training.crops import Batches
    from otlabel.training.data import load_images
    from otlabel.training.evaluate import features_of

    images = load_images("cifar10", n_samples=arguments.plain)
    train, test = (torch.from_numpy(features_of(run.model, part, run.device)) for part in (images.train, images.test))
    batches = Batches(train, images.train_labels, PLAIN_BATCH, flip=False, seed=seed), [(test, images.test_labels)]
    (sgd,) = linear_probes(torch.nn.Identity(), [""], *batches, epochs=PLAIN_EPOCHS, lr=0.03, n_classes=10)
    l_bfgs = metrics.linear_probe(train, images.train_labels, test, images.test_labels)
    return {"sgd": sgd.top1, "l_bfgs": l_bfgs}


def mean_text(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def page(result: dict[str, Any]) -> Iterator[str]:
    rows, scale = result["rows"], result["scale"]
    layers = [probe["layer"] for probe in rows[0]["probes"]]
    n_seeds = len({row["seed"] for row in rows})
    yield "# What each layer is worth\n"
    yield (
        f"CIFAR-10: `{NETWORK['backbone']}` with `{NETWORK['options']}`, on {scale['samples']:,} images for "
        f"{scale['epochs']} epochs, one relabelling an epoch. SeLa: four heads of {N_CLASSES} classes; k-means: one. "
        f"Linear probes on the same images for {scale['probe_epochs']} epochs, top-1 on {scale['test']:,} test images "
        f"by ten crops; {'one seed' if n_seeds == 1 else f'mean and standard deviation of {n_seeds} seeds'}. "
        "Of the last layer, `SGD` is the same probe and `L-BFGS` is `metrics.linear_probe`, on features of "
        f"{scale['plain']:,} plain images to train on and all 10,000 test images: both ways to one classifier. "
        "The scale is a hundredth of the papers': it shows the order of rows, if that, and not their figures. Made by "
        "`python benchmarks/bench_probes.py`.\n"
    )
    yield f"{machine_line(result['machine'])}\n"
    names = [*layers, "SGD", "L-BFGS", "kNN", "5-way 1-shot", "5-shot", "NMI", "CPU s"]
    yield "| network | " + " | ".join(names) + " |"
    yield "|---|" + "--:|" * len(names)
    for name in LABELS:
        own = [row for row in rows if row["network"] == name]
        each = [[row["probes"][place]["top1"] for row in own] for place in range(len(layers))]
        each += [[row["sgd"] for row in own], [row["l_bfgs"] for row in own], [row["knn"] for row in own]]
        each += [[row["few_shot"][shots]["mean"] for row in own] for shots in ("1", "5")]
        nmi = "-" if name == "untrained" else mean_text([row["labels"]["nmi"] for row in own])
        seconds = np.mean([row["training_cpu_s"] + row["probes_cpu_s"] for row in own])
        yield f"| {name} | " + " | ".join([*map(mean_text, each), nmi, f"{seconds:.0f}"]) + " |"


def write_page(result: dict[str, Any]) -> None:
    (RESULTS / "probes.md").write_text("\n".join(page(result)) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--probe-epochs", type=int, default=15)
    parser.add_argument(
        "--plain", type=int, default=10_000, help="images that two probes of the last layer are compared on"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="nothing is run: the page from the record")
    parser.add_argument("--small", action="store_true", help="all code in seconds; nothing is kept")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(read_json(RESULTS / "probes.json"))
        return
    if arguments.small:
        arguments.samples, arguments.test, arguments.epochs, arguments.probe_epochs = 300, 200, 1, 1
        arguments.seeds, arguments.plain = 1, 500
    warnings.simplefilter("ignore")
    rows = []
    for seed in range(arguments.seeds):
        for name in LABELS:
            rows.append(measured(name, arguments, seed))
            tops = ", ".join(f"{probe['layer']} {probe['top1']:.3f}" for probe in rows[-1]["probes"])
            print(f"{name}, seed {seed}: {tops}", flush=True)
    scale = {name: getattr(arguments, name) for name in ("samples", "test", "epochs", "probe_epochs", "plain")}
    result = {"machine": describe_machine(("otlabel", "torch", "numpy")), "scale": scale, "rows": rows}
    print("\n".join(list(page(result))[2:]))
    if not arguments.small:
        write_json(RESULTS / "probes.json", result)
        write_page(result)


if __name__ == "__main__":
    main()
