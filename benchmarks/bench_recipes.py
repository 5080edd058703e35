"""Every recipe for two epochs on JPEGs of varied sizes, of which `--set` only shrinks network, images and classes.

    python benchmarks/bench_recipes.py              # 2000 images in 20 classes, minutes
    python benchmarks/bench_recipes.py --small      # 80 images: all code in a minute or two; nothing is kept

Each recipe is a process of its own, `otlabel train`, or `otlabel transfer` on the labels of SeLa's run where a recipe
trains on given ones. Told are its exit code, seconds of its epochs, images a second (those that are trained on; what is
read for labels is within the same seconds), the process' peak memory, and NMI and adjusted NMI of its labels with the
classes: after two epochs of a network of a few channels they say that labels are made, and no more. Figures go to
results/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from image_folder import make
from machine import describe_machine, failure_text, machine_line, number, read_json, table, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
FIRST = "sela_imagenet_alexnet"  # whose labels others are trained on
N_CLASSES, EPOCHS, SIZE, SIDES, SHARE_TO_TRAIN = 20, 2, 64, (80, 240), 0.9
OPTIONS = {"alexnet": "{ widths = [16, 16, 16, 16, 16], hidden = 64 }", "resnet50": "{ width = 8 }"}


def changes(name: str, folder: Path) -> list[str]:
    """What is shrunk of a recipe."""
    from otlabel.training.config import read_config

    config = read_config(name)
    found = [f"data.name={folder}", f"data.size={SIZE}", f"train.epochs={EPOCHS}", "train.batch_size=50"]
    found += ["train.threads=1"]
    if config.model.backbone in OPTIONS:
        found.append(f"model.options={OPTIONS[config.model.backbone]}")
    if config.labels.method != "fixed":
        found.append(f"model.heads={[N_CLASSES] * len(config.model.heads)}")
    if config.labels.method in ("sinkhorn", "kmeans"):
        found.append("labels.n_relabels=4")
    if config.labels.fixed_epochs:
        found.append("labels.fixed_epochs=1")
    if config.data.n_samples is not None:
        found.append(f"data.n_samples={sum(1 for _ in (folder / 'train').rglob('*.JPEG'))}")
    return found


def measured(name: str, folder: Path, place: Path) -> dict[str, Any]:
    """One recipe, in a process of its own."""
    from otlabel.training.config import read_config

    is_fixed = read_config(name).labels.method == "fixed"
    command = ["transfer", name, str(place / FIRST / "labels.h5")] if is_fixed else ["train", name]
    words = [word for change in changes(name, folder) for word in ("--set", change)]
    command = [sys.executable, "-W", "ignore", "-m", "otlabel", *command, "-o", str(place / name), "--json", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        failure = failure_text(subprocess.CompletedProcess(command, process.returncode, "", told.read()))
    row = {
        "recipe": name,
        "exit": process.returncode,
        "wall_s": time.perf_counter() - begun,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }
    if process.returncode:
        return row | {"failure": failure}
    lines = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(line["seconds"] for line in lines)
    n_images = sum(1 for _ in (folder / "train").rglob("*.JPEG"))
    result = read_json(place / name / "result.json")
    row |= {"epochs_s": seconds, "images_per_s": len(lines) * n_images / seconds}
    row |= {name: result["labels"][name] for name in ("nmi", "ami")}
    return row | {"relabellings": sum(line["relabellings"] for line in lines)}


def page(result: dict[str, Any]) -> Iterator[str]:
    yield "# Every recipe on a small folder of images\n"
    yield (
        f"{result['images']:,} JPEGs in {N_CLASSES} classes, of {SIDES[0]} to {SIDES[1]} pixels a side, "
        f"{SHARE_TO_TRAIN:.0%} of them to train on; {EPOCHS} epochs of each recipe, each a process of one thread. "
        f"Shrunk by `--set` alone: images to {SIZE} pixels, networks to a few channels, heads to {N_CLASSES} classes, "
        "batches to 50. `images/s` are those that are trained on; relabellings are within the same seconds. NMI and "
        "adjusted NMI are of the labels with the classes, mean over heads: after two epochs of so small a network they "
        "show that labels are made, and not what a recipe reaches. Made by `python benchmarks/bench_recipes.py`.\n"
    )
    yield f"{machine_line(result['machine'])}\n"
    header = [
        "recipe",
        "exit",
        "epochs, s",
        "images/s",
        "relabellings",
        "peak, MB",
        "NMI",
        "adj. NMI",
        "wall, s",
        "CPU, s",
    ]
    forms = {
        "epochs_s": ".1f",
        "images_per_s": ".0f",
        "relabellings": "d",
        "peak_mb": ".0f",
        "nmi": ".3f",
        "ami": ".3f",
    }
    forms |= {"wall_s": ".0f", "cpu_s": ".0f"}
    rows = []
    for row in result["rows"]:
        ended = f"{row['exit']} {row.get('failure', '')}".strip()
        rows.append([f"`{row['recipe']}`", ended, *(number(row.get(name), form) for name, form in forms.items())])
    yield from table(header, rows)


def main() -> None:
    from otlabel.training.config import RECIPES

    recipes = sorted(path.stem for path in RECIPES.glob("*.toml"))
    recipes.sort(key=lambda name: name != FIRST)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--recipes", default=",".join(recipes), help=f"names; {FIRST} is run first in any case")
    parser.add_argument("--small", action="store_true", help="80 images; nothing is kept")
    arguments = parser.parse_args()
    n_images = 80 if arguments.small else arguments.images
    each = n_images // N_CLASSES
    n_train = min(each - 1, round(SHARE_TO_TRAIN * each))
    wanted = [name for name in recipes if name in {FIRST, *arguments.recipes.split(",")}]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        make(Path(place, "images"), N_CLASSES, n_train, each - n_train, sides=SIDES)
        for name in wanted:
            rows.append(measured(name, Path(place, "images"), Path(place)))
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
            sys.stdout.flush()
    machine = describe_machine(("otlabel", "torch", "pytorch-lightning", "pillow", "numpy"))
    result = {"machine": machine, "images": each * N_CLASSES, "rows": rows}
    text = "\n".join(page(result)) + "\n"
    print(text)
    if not arguments.small:
        write_json(RESULTS / "recipes.json", result)
        (RESULTS / "recipes.md").write_text(text, encoding="utf-8")
    sys.exit(int(np.any([row["exit"] for row in rows])))


if __name__ == "__main__":
    main()
