"""By which averages of BatchNorm labels are best made: modes of extraction side by side, every run on record.

    python benchmarks/selflabel/modes.py              # all runs; goes on where it was interrupted
    python benchmarks/selflabel/modes.py --tables     # nothing is run: the page from the records

Runs have the settings of `otlabel.training.suited`, in short, and some another network. A record is a line of
`results/modes.jsonl`; `results/modes.md` is made from these lines alone. Data are sought as for `quality.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import describe_machine, machine_line
from quality import N_CLASSES, plain_of, write_texts

from otlabel import metrics
from otlabel.selflabel.batches import parted
from otlabel.selflabel.calibration import BatchNorms
from otlabel.selflabel.model import reader_of
from otlabel.training.config import config_of
from otlabel.training.data import Images, load_images, part_of
from otlabel.training.evaluate import evaluate
from otlabel.training.run import Run
from otlabel.training.suited import suited

RESULTS = Path(__file__).parent.parent / "results"
RECORDS, PAGE = RESULTS / "modes.jsonl", RESULTS / "modes.md"
SAMPLES, TEST, EPOCHS, RELABELLINGS = 1000, 2000, 12, 24
LONG = 1_000_000  # batches
MODES = {  # what averages are of
    "eval": "the running averages: of augmented samples, lagging behind the weights",
    "views": "averages made anew of augmented samples",
    "calibrated at once": "averages made anew of samples as they are",
    "calibrated": 'the same, once layers have been trained on 20 batches: `mode="calibrated"`',
}
MIXED = {  # to see when it matters
    "eval in the first epoch": "then calibrated",
    "calibrated in the first epoch": "then eval",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "suited": {},
    "narrow": {  # what quality.py trains on digits
        "model": {"backbone": "small_convnet", "options": {"widths": [16, 32, 64], "strides": [1, 2, 2]}},
        "augment": {"rotate": 20, "zoom": [0.7, 1.3], "shift": 0.1},
        "train": {"lr": 0.05},
    },
    "rate 1": {"train": {"lr": 1.0}},  # ten times that of suited
    "small_resnet": {"model": {"backbone": "small_resnet", "options": {"width": 8}}},
}
CASES = [
    ("digits", "suited"),
    ("fashion-mnist", "suited"),
    ("cifar10", "suited"),
    ("wordnet", "suited"),
    ("digits", "narrow"),
    ("digits", "rate 1"),
    ("wordnet", "rate 1"),
    ("digits", "small_resnet"),
]
FOUND = """What matters most is the first epoch. Layers of an untrained network have mean 0 and variance 1. Labels made
so, without normalisation, are nearer to the classes than labels of normalised ones on digits, clothes and texts (first
NMI), and later ones grow from them: on `narrow` it is enough to calibrate in the first epoch to end as low as by
calibrating always, and to leave the first epoch alone to end as high as by running averages. So `mode="calibrated"`
leaves layers alone that have been trained on fewer than 20 batches. Whether averages are of augmented samples makes no
difference that shows (`views`). Calibrating later on is worth little in runs as short as these, most at a high rate,
where running averages lag behind; no setting loses by it more than seeds differ."""
MEASURES = ("nmi", "quality", "knn", "probe")


def images_for(data: str, folder: Path) -> tuple[Images, np.ndarray]:
    """Few images to train on, few to test on; the texts' classes apart, as vectors have none."""
    if data == "wordnet":
        images = part_of(load_images(str(folder / "wordnet.npy")), SAMPLES)
        rows = part_of(Images("", torch.arange(len(np.load(folder / "wordnet.npy")))[:, None]), SAMPLES).train[:, 0]
        return images, np.load(folder / "wordnet_classes.npy")[rows]
    images = part_of(load_images(data), SAMPLES)
    images = dataclasses.replace(images, test=images.test[:TEST], test_labels=images.test_labels[:TEST])
    return images, images.train_labels.numpy()


def run_one(data: str, network: str, mode: str, seed: int, images: Images, truth: np.ndarray) -> dict[str, Any]:
    started, change = time.process_time(), NETWORKS[network]
    given: dict[str, Any] = suited(tuple(images.train.shape), N_CLASSES[data])
    given["data"] = {"name": images.name, "n_samples": None if data == "wordnet" else SAMPLES}
    given["data"] = {key: value for key, value in given["data"].items() if value is not None}
    given["model"] |= change.get("model", {})
    given["labels"] |= {"n_relabels": RELABELLINGS, "mode": "calibrated" if mode == "calibrated" else "eval"}
    given["train"] |= {"epochs": EPOCHS, "seed": seed, "threads": 1} | change.get("train", {})
    given["augment"] = change.get("augment", given["augment"])
    run = Run(config_of(given, f"{data}, {network}"), None, images=images)
    update, reader = run.labeler.update, reader_of(run.model, run.labeler.n_classes, None, None)
    parts = torch.arange(len(truth)).split(256)
    layers = [one for one in run.model.modules() if isinstance(one, _BatchNorm)]
    as_they_are = [(index, plain_of(images.train[index])) for index in parts]
    course: list[tuple[float, float]] = []

    def updated(model: Any, loader: Any, **more: Any) -> Any:
        drawn = torch.Generator().manual_seed(run.labeler.n_updates)
        shown = as_they_are
        if mode == "views":
            shown = [(index, run.config.augment(images.train[index], drawn)) for index in parts]
        first = mode in MIXED and run.epoch == 0
        anew = mode in ("views", "calibrated at once") or first == (mode == "calibrated in the first epoch")
        around: Any = contextlib.nullcontext()
        if anew and mode not in ("eval", "calibrated"):
            for layer in layers:  # as if it had been trained for long
                layer.num_batches_tracked += LONG
            around = BatchNorms(reader).calibrated(shown, len(truth), parted, seed=run.labeler.n_updates)
        with around:
            records = update(model, loader, **more)
        if anew and mode not in ("eval", "calibrated"):
            for layer in layers:
                layer.num_batches_tracked -= LONG
        course.append((run.epoch, float(np.mean([metrics.nmi(truth, one) for one in run.labeler.labels.numpy()]))))
        return records

    run.labeler.update = updated  # type: ignore[method-assign]
    run.fit()
    run.labeler.schedule = None
    updated(run.model, as_they_are)
    found = {"nmi": course[-1][1], "quality": float(np.mean(run.labeler.quality))}
    if images.test is not None:
        found |= evaluate(run.model, images, run.config.evaluation, run.device)
        with BatchNorms(reader).calibrated(as_they_are, len(truth), parted, seed=0):
            anew = evaluate(run.model, images, run.config.evaluation, run.device)
        found |= {f"{name}, averages of samples as they are": value for name, value in anew.items()}
    return {
        "data": data, "network": network, "mode": mode, "seed": seed, "result": found,
        "course": [nmi for _, nmi in course], "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def wanted(seeds: int) -> Iterator[tuple[str, str, int, str]]:
    for (data, network), seed, mode in itertools.product(CASES, range(seeds), MODES | MIXED):
        if mode in MODES or network == "narrow":
            yield data, network, seed, mode


# ---- the page ----


def interval(values: list[float]) -> str:
    """Mean and half of Student's 95 % interval of it."""
    if len(values) < 2 or any(np.isnan(values)):
        return "-"
    reach = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3f} ± {reach:.3f}"


def together(lines: list[dict[str, Any]], one: str, other: str) -> str:
    """The difference over all pairs of runs that differ in the mode alone."""
    runs = {(r["data"], r["network"], r["seed"], r["mode"]): r["result"] for r in lines}
    pairs = [
        (result, runs[*key[:3], other]) for key, result in runs.items() if key[3] == one and (*key[:3], other) in runs
    ]
    cells = []
    for name in MEASURES:
        cells.append(interval([a[name] - b[name] for a, b in pairs if name in a]))
    return f"| *{one} less {other}* | {' | '.join(cells)} | {len(pairs)} |"


def tables(lines: list[dict[str, Any]]) -> str:
    names = ("first NMI", "NMI", "quality", "knn", "probe")
    parts = []
    for data, network in CASES:
        runs: dict[str, dict[int, list[float]]] = {}
        for line in lines:
            if (line["data"], line["network"]) == (data, network):
                figures = [line["course"][0], *(line["result"].get(name, float("nan")) for name in MEASURES)]
                runs.setdefault(line["mode"], {})[line["seed"]] = figures
        if not runs:
            continue
        rows = [f"## {data}, {network}", "", f"| averages | {' | '.join(names)} | seeds |", "|---" * 7 + "|"]
        for mode in (*MODES, *MIXED):
            if mode in runs:
                columns = [interval(list(column)) for column in zip(*runs[mode].values(), strict=True)]
                rows.append(f"| {mode} | {' | '.join(columns)} | {len(runs[mode])} |")
        for one, other in (("calibrated", "eval"), ("calibrated at once", "eval"), ("views", "calibrated at once")):
            seeds = sorted(runs.get(one, {}).keys() & runs.get(other, {}).keys())
            pairs = [np.subtract(runs[one][seed], runs[other][seed]).tolist() for seed in seeds]
            if len(pairs) > 1:
                columns = [interval(list(column)) for column in zip(*pairs, strict=True)]
                rows.append(f"| *{one} less {other}* | {' | '.join(columns)} | {len(pairs)} |")
        parts.append("\n".join(rows))
    told = "\n".join(f"- {mode}: {what}" for mode, what in (MODES | MIXED).items())
    return "\n\n".join(
        [
            "# By which averages of BatchNorm labels are best made",
            f"Runs of {EPOCHS} epochs and {RELABELLINGS} relabellings on {SAMPLES} samples, with the settings of "
            "`otlabel.training.suited`; `narrow` and `small_resnet` are other networks. Mean over seeds with half of "
            "Student's 95 % interval; of differences, over pairs of the same seed. The NMI is of labels and truth, "
            "of the first labels and at the end; `knn` and `probe` are accuracies of the frozen features, in "
            f"evaluation mode, on {TEST} test images. Made by `python benchmarks/selflabel/modes.py`.",
            told,
            FOUND,
            "\n".join(
                [
                    f"| all pairs of runs | {' | '.join(names[1:])} | pairs |",
                    "|---" * 6 + "|",
                    together(lines, "calibrated", "eval"),
                    together(lines, "calibrated", "calibrated at once"),
                    together(lines, "views", "calibrated at once"),
                ]
            ),
            *parts,
            machine_line(lines[-1]["machine"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="a data set")
    parser.add_argument("--modes", default=",".join(MODES | MIXED), help="parted by commas")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    lines = read()
    if not arguments.tables:
        done = {(one["data"], one["network"], one["seed"], one["mode"]) for one in lines}
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as made:
            folder, loaded = Path(made), {}
            write_texts(folder)
            for data, network, seed, mode in wanted(arguments.seeds):
                if (data, network, seed, mode) in done or arguments.only not in ("", data):
                    continue
                if mode not in arguments.modes.split(","):
                    continue
                if data not in loaded:
                    loaded[data] = images_for(data, folder)
                record = run_one(data, network, mode, seed, *loaded[data])
                lines.append(record | {"machine": describe_machine(("otlabel", "torch", "numpy"))})
                with RECORDS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(data, network, mode, seed, record["result"], f"{record['cpu_seconds']:.0f} s", flush=True)
    PAGE.write_text(tables(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
