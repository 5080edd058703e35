"""Every recipe, and every command of the tables in docs/papers.md, for two epochs on JPEGs of varied sizes.

    python benchmarks/bench_recipes.py              # 2000 images in 20 classes, 20 minutes of one core
    python benchmarks/bench_recipes.py --small      # 80 images: all code in minutes; nothing is kept
    python benchmarks/bench_recipes.py --only uic   # commands with this in them, and the first, for its labels

`--set` only shrinks them: images, networks and classes. Each is a process of its own, `otlabel train`, or `otlabel
transfer` on the labels of SeLa's run. Told are its exit code, seconds of its epochs, images a second (those that are
trained on; what is read for labels is within the same seconds), the process' peak memory, and NMI and adjusted NMI of
its labels with the classes: after two epochs of a network of a few channels they say that labels are made, and no more.
Figures go to results/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from image_folder import make
from machine import describe_machine, failure_text, machine_line, number, read_json, table, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "papers.md"
FIRST = "train sela_imagenet_alexnet"  # whose labels others are trained on
N_CLASSES, EPOCHS, SIZE, SIDES, SHARE_TO_TRAIN = 20, 2, 64, (80, 240), 0.9
OPTIONS = {
    "alexnet": "{ widths = [16, 16, 16, 16, 16], hidden = 64 }",
    "resnet18": "{ width = 8 }",
    "resnet50": "{ width = 8 }",
    "vgg16_bn": "{ width = 8, hidden = 64 }",
}


def commands() -> list[str]:
    """Those of the tables, and recipes that are in none."""
    from otlabel.training.config import RECIPES

    found = re.findall(r"`((?:train|transfer) [^`]+)`", PAGE.read_text(encoding="utf-8"))
    recipes = {command.split()[1] for command in found}
    found += [f"train {path.stem}" for path in sorted(RECIPES.glob("*.toml")) if path.stem not in recipes]
    return list(dict.fromkeys([FIRST, *found]))


def shrunk(command: str, folder: Path, n_train: int) -> list[str]:
    """A command on these images, all of whose sizes are small."""
    from otlabel.commands.train import changed
    from otlabel.training.config import read_config

    words = command.split()
    config = changed(read_config(words[1]), words[3::2] if words[0] == "train" else words[4::2])
    given = {"data.name": folder, "data.size": SIZE, "train.epochs": EPOCHS, "train.batch_size": 50, "train.threads": 1}
    if config.model.backbone in OPTIONS:
        given["model.options"] = OPTIONS[config.model.backbone]
    if config.labels.method not in ("fixed", "truth"):
        heads = config.model.heads  # of 1000 classes and more a fiftieth
        given["model.heads"] = [min(max(N_CLASSES, k // 50), max(N_CLASSES, n_train // 4)) for k in heads]
    given["labels.n_relabels"] = min(config.labels.n_relabels, 4)
    if config.labels.fixed_epochs:
        given["labels.fixed_epochs"] = 1
    if config.data.n_samples is not None:
        given["data.n_samples"] = n_train
    if config.evaluation.other:
        given["evaluation.other"] = folder
    return [*words, *(word for key, value in given.items() for word in ("--set", f"{key}={value}"))]


def measured(command: str, folder: Path, n_train: int, place: Path) -> dict[str, Any]:
    """One command, in a process of its own."""
    run = place / ("first" if command == FIRST else "run")
    words = [
        str(place / "first" / "labels.h5") if word == "LABELS" else word for word in shrunk(command, folder, n_train)
    ]
    started = [sys.executable, "-W", "ignore", "-m", "otlabel", *words, "-o", str(run), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=told, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        failure = failure_text(subprocess.CompletedProcess(started, process.returncode, "", told.read()))
    row = {
        "command": command,
        "exit": process.returncode,
        "wall_s": time.perf_counter() - begun,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }
    if process.returncode:
        return row | {"failure": failure}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    agreement = read_json(run / "result.json").get("labels", {})  # none where labels are the classes themselves
    if run.name != "first":
        shutil.rmtree(run)
    seconds = sum(line["seconds"] for line in lines)
    row |= {"epochs_s": seconds, "images_per_s": len(lines) * n_train / seconds}
    row |= {name: agreement.get(name) for name in ("nmi", "ami")}
    return row | {"relabellings": sum(line["relabellings"] for line in lines)}


def page(result: dict[str, Any]) -> Iterator[str]:
    yield "# Every command of the papers' tables on a small folder of images\n"
    yield (
        f"{result['images']:,} JPEGs in {N_CLASSES} classes, of {SIDES[0]} to {SIDES[1]} pixels a side, "
        f"{SHARE_TO_TRAIN:.0%} of them to train on; {EPOCHS} epochs of each, each a process of one thread. "
        f"Shrunk by `--set` alone: images to {SIZE} pixels, networks to a few channels, heads of 1000 classes "
        f"and more to a fiftieth and others to {N_CLASSES}, batches to 50. `images/s` are those that are trained on; "
        "relabellings are within the same seconds. Where `wall` is far above `CPU`, other work had the processor. "
        "NMI and adjusted NMI are of the labels with the classes, mean over "
        "heads: after two epochs of so small a network they show that labels are made, and not what a recipe reaches. "
        "Made by `python benchmarks/bench_recipes.py`.\n"
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
        rows.append([f"`{row['command']}`", ended, *(number(row.get(name), form) for name, form in forms.items())])
    yield from table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--only", default="", help="commands with this text in them; the first is run in any case")
    parser.add_argument("--small", action="store_true", help="80 images; nothing is kept")
    arguments = parser.parse_args()
    each = (80 if arguments.small else arguments.images) // N_CLASSES
    n_train = min(each - 1, round(SHARE_TO_TRAIN * each))
    wanted = [command for command in commands() if command == FIRST or arguments.only in command]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        make(folder, N_CLASSES, n_train, each - n_train, sides=SIDES)
        for command in wanted:
            rows.append(measured(command, folder, n_train * N_CLASSES, Path(place)))
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
            sys.stdout.flush()
    machine = describe_machine(("otlabel", "torch", "pytorch-lightning", "pillow", "numpy"))
    result = {"machine": machine, "images": each * N_CLASSES, "rows": rows}
    text = "\n".join(page(result)) + "\n"
    print(text)
    if not (arguments.small or arguments.only):
        write_json(RESULTS / "recipes.json", result)
        (RESULTS / "recipes.md").write_text(text, encoding="utf-8")
    sys.exit(any(row["exit"] for row in rows))


if __name__ == "__main__":
    main()
