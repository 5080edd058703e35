"""Which sign that needs no truth ranks self-labelling runs as the truth would: every run on record, tables from these.

    python benchmarks/selflabel/quality.py              # all runs; goes on where it was interrupted
    python benchmarks/selflabel/quality.py --tables     # nothing is run: the page from the records

A record is a line of `results/quality.jsonl`: data set, setting, seed, and of some relabellings all signs and the NMI
with the truth. `results/quality.md` is made from these lines alone. Signs are those of `otlabel.selflabel.quality`.
Data are sought in $OTLABEL_DATA, as everywhere; the texts are those of `examples/text.py`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib.util
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
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent.parent))


from machine import describe_machine, machine_line

from otlabel import metrics
from otlabel.selflabel import quality
from otlabel.selflabel.batches import parted
from otlabel.selflabel.calibration import BatchNorms
from otlabel.selflabel.model import forward_only, reader_of
from otlabel.training.augment import Augmentation, plain
from otlabel.training.config import Config, config_of
from otlabel.training.run import Run

RESULTS = Path(__file__).parent.parent / "results"
RECORDS, PAGE = RESULTS / "quality.jsonl", RESULTS / "quality.md"
CHOSEN = "AMI, strong view, other head"  # what `quality` is
LOOKED_AT = 300  # samples that views are made of
COVERING = {"widths": [16, 32, 64, 128], "strides": [2, 2, 2, 1]}  # a field of view of 31 pixels

BASES: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"name": "digits", "n_samples": 1000},
        "model": {"backbone": "small_convnet", "options": {"widths": [16, 32, 64], "strides": [1, 2, 2]}},
        "augment": {"rotate": 20, "zoom": [0.7, 1.3], "shift": 0.1},
    },
    "fashion-mnist": {
        "data": {"name": "fashion-mnist", "n_samples": 1000},
        "model": {"backbone": "small_convnet", "options": COVERING},
        "augment": {"flip": True, "rotate": 10, "zoom": [0.8, 1.3], "shift": 0.08, "jitter": 0.3},
    },
    "cifar10": {
        "data": {"name": "cifar10", "n_samples": 1000},
        "model": {"backbone": "small_convnet", "options": COVERING},
        "augment": {"crop": [0.3, 1.0], "flip": True, "jitter": 0.5, "grayscale": 0.2},
    },
    "wordnet": {
        "data": {"name": "wordnet"},
        "model": {"backbone": "mlp", "options": {"width": 256}},
        "augment": {"swap": 0.3},
    },
}
COMMON = {
    "labels": {"n_relabels": 24, "schedule": "quadratic"},
    "train": {"epochs": 12, "batch_size": 64, "lr": 0.05, "nesterov": True, "weight_decay": 5e-4},
    "evaluation": {"knn": 0, "probe": False},
}
N_CLASSES = {"digits": 10, "fashion-mnist": 10, "cifar10": 10, "wordnet": 26}
N_TEXTS = 1500

SETTINGS: dict[str, dict[str, Any]] = {
    "base": {},
    "small network": {"small": True},
    "no augmentation": {"augment": {}},
    "frozen features": {"frozen": True},
    "rate 2": {"train": {"lr": 2.0}},
    "eval": {"labels": {"mode": "eval"}},
    "half of K": {"classes": 0.5},
    "double K": {"classes": 2},
    "5 relabellings": {"labels": {"n_relabels": 5}},
    "rate .3": {"train": {"lr": 0.3}},
    "rate .002": {"train": {"lr": 0.002}},
    "train": {"labels": {"mode": "train"}},
    "4 epochs": {"train": {"epochs": 4}, "labels": {"n_relabels": 8}},
    "100 relabellings": {"labels": {"n_relabels": 100}},
    "large network": {"large": True},
    "10 heads": {"heads": 10},
}


def config_for(data: str, setting: str, seed: int, folder: Path) -> Config:
    base, change = BASES[data], SETTINGS[setting]
    model = dict(base["model"])
    if change.get("small"):
        small = {"widths": [8, 16], "strides": [1 if data == "digits" else 2, 2]}
        model["options"] = {"width": 32, "depth": 1} if data == "wordnet" else small
    if change.get("large"):
        large = {"widths": [32, 64, 128, 256], "strides": [1 if data == "digits" else 2, 2, 2, 1]}
        model["options"] = {"width": 1024, "depth": 4} if data == "wordnet" else large
    model["heads"] = [round(N_CLASSES[data] * change.get("classes", 1))] * change.get("heads", 4)
    source = dict(base["data"])
    if data == "wordnet":
        source["name"] = str(folder / "wordnet.npy")
    given = {
        "data": source,
        "model": model,
        "labels": COMMON["labels"] | change.get("labels", {}),
        "train": COMMON["train"] | change.get("train", {}) | {"seed": seed, "threads": 1},
        "augment": change.get("augment", base["augment"]),
        "evaluation": COMMON["evaluation"],
    }
    return config_of(given, f"{data}, {setting}")


def truth_of(data: str, folder: Path, run: Run) -> np.ndarray:
    if data == "wordnet":
        return np.load(folder / "wordnet_classes.npy")
    return run.images.train_labels.numpy()


def write_texts(folder: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / "text.py"
    spec = importlib.util.spec_from_file_location("text_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    texts, classes = example.glosses(N_TEXTS)
    np.save(folder / "wordnet.npy", example.embedded(texts).astype(np.float32))
    np.save(folder / "wordnet_classes.npy", classes)


def signs(run: Run, truth: np.ndarray, training: bool) -> dict[str, float]:
    """All signs, and the truth, of the labels that were just made, with the model as it was then."""
    labeler, pixels = run.labeler, run.images.train
    labels = labeler.labels.numpy()
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(pixels))[:LOOKED_AT])
    own = run.config.augment if run.config.augment != Augmentation() else None
    found: dict[str, list[float]] = {}
    features = np.array(labeler.store.source())
    kept = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with forward_only(run.model, training=training):
        generator = torch.Generator().manual_seed(0)
        some = pixels[chosen]
        views = {
            name: run.model.features(quality.common_view(plain_of(some), generator, strength))
            for name, strength in (("mild", 0.5), ("strong", 1.0))
        }
        if own is not None:
            views["own"] = run.model.features(own(some, generator))
        run.model.load_state_dict(kept)  # in training mode averages have moved
        here = labels[:, chosen.numpy()]
        for name, rows in views.items():
            classes = []
            for head, module in enumerate(run.model.heads):
                raw = torch.log_softmax(module(rows), 1).numpy()
                potentials = labeler._state.states[head]["potentials"]
                classes.append((raw + np.where(np.isfinite(potentials), potentials, -1e9)).argmax(1))
                add(found, f"cross-entropy, {name} view", -quality.label_loss(raw, here[head]))
                if name == "mild":
                    near = metrics.knn_predict(features, labels[head], rows.numpy(), k=10)
                    add(found, "same label by a view's neighbours", float((near == here[head]).mean()))
            for one, other in itertools.product(range(len(labels)), repeat=2):
                which = "" if one == other else ", other head"
                if one == other:
                    add(found, f"same label, {name} view", float((here[one] == classes[other]).mean()))
                add(found, f"NMI, {name} view{which}", metrics.nmi(here[one], classes[other]))
                add(found, f"AMI, {name} view{which}", metrics.ami(here[one], classes[other]))
                add(found, f"information, {name} view{which}", information(here[one], classes[other]))
        for head in range(len(labels)):
            add(found, "neighbours agree", quality.neighbours_agree(features, labels[head]))
    told = {name: float(np.mean(values)) for name, values in found.items()}
    told["heads agree"] = quality.heads_agree(labels)
    last = labeler.history[-1]
    told["last loss"] = -last["loss"] if last["loss"] is not None else -float(np.log(labeler.n_classes[0]))
    told["value of the labels"] = float(np.mean([r["value"] for r in labeler.history[-len(labeler.n_classes) :]]))
    told["nmi"] = float(np.mean([metrics.nmi(truth, mine) for mine in labels]))
    told["accuracy"] = float(np.mean([metrics.accuracy(truth, mine) for mine in labels]))
    return told


def information(one: np.ndarray, other: np.ndarray) -> float:
    """Mutual information in nats."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1 / len(one))
    at = table > 0
    return float((table[at] * np.log((table / np.outer(table.sum(1), table.sum(0)))[at])).sum())


def plain_of(pixels: torch.Tensor) -> torch.Tensor:
    return pixels if pixels.ndim == 2 else plain(pixels)


def add(found: dict[str, list[float]], name: str, value: float) -> None:
    found.setdefault(name, []).append(value)


def run_one(data: str, setting: str, seed: int, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    is_frozen = SETTINGS[setting].get("frozen")
    config = config_for(data, setting, seed, folder)
    run = Run(config.with_values(train__weight_decay=0.0) if is_frozen else config, None)
    truth = truth_of(data, folder, run)
    if is_frozen:
        run.model.backbone.requires_grad_(False)
    relabellings: list[dict[str, Any]] = []
    every, mode = max(1, run.config.labels.n_relabels // 5), run.config.labels.mode
    update, reader = run.labeler.update, reader_of(run.model, run.labeler.n_classes, None, None)
    if mode == "calibrated":  # once for labels and signs
        run.labeler._extractor.mode = "eval"

    def updated(model: Any, loader: Any, last: bool = False, **_: Any) -> Any:
        around = BatchNorms(reader).calibrated(loader, len(truth), parted, seed=run.labeler.n_updates)
        with around if mode == "calibrated" else contextlib.nullcontext(loader) as whole:
            records = update(model, whole)
            if last or (run.labeler.n_updates - 1) % every == 0:
                relabellings.append({"progress": run.epoch} | signs(run, truth, mode == "train"))
        return records

    run.labeler.update = updated  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run.fit()
        except ValueError as error:  # NaN: a run that has diverged ends here
            relabellings.append({"progress": run.epoch, "diverged": str(error)[:80]})
        if "diverged" not in relabellings[-1]:
            run.labeler.schedule = None
            parts = torch.arange(len(truth)).split(500)
            updated(run.model, [(index, plain_of(run.images.train[index])) for index in parts], last=True)
    packed = base64.b85encode(run.labeler.labels[0].to(torch.int8).numpy().tobytes()).decode()
    return {
        "data": data, "setting": setting, "seed": seed, "seconds": time.perf_counter() - started,
        "relabellings": relabellings, "labels": packed,
    }  # fmt: skip


def wanted() -> Iterator[tuple[str, str, int]]:
    for seed, setting in itertools.product((0, 1), SETTINGS):
        for data in BASES:
            yield data, setting, seed


# ---- the page ----


def correlation(pairs: list[tuple[float, float]]) -> float:
    x = np.array(pairs)
    if len(x) < 4 or np.ptp(x[:, 0]) == 0 or np.ptp(x[:, 1]) == 0:
        return float("nan")
    return float(spearmanr(*x.T)[0])


def judged(lines: list[dict[str, Any]], sign: str) -> tuple[float, float, float]:
    """Rank correlation over runs, NMI lost by choosing with the sign, mean rank correlation within runs over time."""
    ends = [line["relabellings"][-1] for line in lines]
    pairs = [(end[sign], end["nmi"]) for end in ends if sign in end]
    if not pairs:
        return float("nan"), float("nan"), float("nan")
    lost = max(nmi for _, nmi in pairs) - max(pairs)[1]
    courses = [[(at[sign], at["nmi"]) for at in line["relabellings"] if sign in at] for line in lines]
    within = [found for course in courses if not np.isnan(found := correlation(course))]
    return correlation(pairs), lost, float(np.mean(within)) if within else float("nan")


def table_of(lines: list[dict[str, Any]]) -> str:
    groups = {data: [line for line in lines if line["data"] == data] for data in BASES}
    names = sorted({name for line in lines for name in line["relabellings"][-1]} - {"nmi", "accuracy", "progress"})
    figures = {name: [judged(group, name) for group in groups.values()] for name in names}
    order = sorted(names, key=lambda name: -np.nanmean([one[0] for one in figures[name]]))
    head = " | ".join(f"{data} ({len(group)})" for data, group in groups.items())
    rows = [f"| {name} | {' | '.join(f'{a:.2f}, {b:.3f}, {c:.2f}' for a, b, c in figures[name])} |" for name in order]
    return "\n".join([f"| sign | {head} |", "|---" * (len(groups) + 1) + "|", *rows])


def tables(lines: list[dict[str, Any]]) -> str:
    kept = [line for line in lines if "nmi" in line["relabellings"][-1]]
    same = [line for line in kept if "classes" not in SETTINGS[line["setting"]]]
    parts = [
        "# Signs of quality that need no truth",
        f"{len(lines)} runs of {len(SETTINGS)} settings, made by `benchmarks/selflabel/quality.py`. In each cell: "
        "Spearman's rank correlation of the sign with the NMI with the truth over the runs of one data set; the NMI "
        "lost by choosing the run with the sign against choosing with the truth; and the mean over runs of the rank "
        "correlation over time. Seeds of one setting count as runs of their own; a run that has diverged is left out, "
        "and views of a run's own augmentation are lacking where it has none. Losses are negated. "
        f"`quality` is *{CHOSEN}*.",
        "## Runs with the same number of classes",
        table_of(same),
        "## All runs, those with half and twice the classes too",
        table_of(kept),
        "## The runs",
        "NMI with the truth / quality at the end, one seed after the other.",
    ]
    rows = [f"| setting | {' | '.join(BASES)} |", "|---" * (len(BASES) + 1) + "|"]
    for setting in SETTINGS:
        cells = []
        for data in BASES:
            ends = [line["relabellings"][-1] for line in kept if (line["data"], line["setting"]) == (data, setting)]
            cells.append("; ".join(f"{end['nmi']:.3f} / {end[CHOSEN]:.2f}" for end in ends))
        rows.append(f"| {setting} | {' | '.join(cells)} |")
    parts.append("\n".join(rows))
    seeds = two_seeds(kept)
    if seeds:
        told = "Rank correlation of the NMI between two seeds' labels with their mean NMI with the truth, over settings"
        parts += ["## Agreement of two seeds", f"{told}: {'; '.join(seeds)}."]
    parts.append(machine_line(describe_machine(["otlabel", "torch", "numpy"])))
    return "\n\n".join(parts) + "\n"


def two_seeds(lines: list[dict[str, Any]]) -> list[str]:
    found = []
    for data in BASES:
        pairs = []
        for setting in SETTINGS:
            both = [line for line in lines if (line["data"], line["setting"]) == (data, setting)]
            if len(both) == 2:
                labels = [np.frombuffer(base64.b85decode(line["labels"]), np.int8) for line in both]
                truth = float(np.mean([line["relabellings"][-1]["nmi"] for line in both]))
                pairs.append((metrics.nmi(*labels), truth))
        if len(pairs) >= 4:
            found.append(f"{data} {correlation(pairs):.2f} ({len(pairs)} settings)")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    if not arguments.tables:
        torch.set_num_threads(1)
        lines = read(arguments.records)
        done = {(line["data"], line["setting"], line["seed"]) for line in lines}
        with tempfile.TemporaryDirectory() as name:
            write_texts(Path(name))
            for data, setting, seed in wanted():
                if (data, setting, seed) in done:
                    continue
                record = run_one(data, setting, seed, Path(name))
                with arguments.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                last = record["relabellings"][-1]
                told = " ".join(f"{last.get(k, float('nan')):.3f}" for k in ("nmi", "same label on a common view"))
                print(f"{data} {setting} {seed}: {told} {record['seconds']:.0f} s", flush=True)

    arguments.page.write_text(tables(read(arguments.records)), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
