"""What the SeLa paper found, again at the scale of a small machine: every run on record, tables made from the records.

    python benchmarks/selflabel/study.py                       # all of it; goes on where it was interrupted
    python benchmarks/selflabel/study.py --only labels,heads   # some of the questions
    python benchmarks/selflabel/study.py --tables              # nothing is run: the page from the records

A record is a line of `results/selflabel.jsonl`: all settings with the seed, what came out, the seconds, the machine.
`results/selflabel.md` is made from these lines alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import describe_machine, machine_line

RESULTS = Path(__file__).parent.parent / "results"
RECORDS, PAGE = RESULTS / "selflabel.jsonl", RESULTS / "selflabel.md"
LABELS = Path(__file__).parent / "labels"  # of finished runs, for rows that train on them; not kept in git
RECIPE = "fashion_mnist"
PACKAGES = ("otlabel", "torch", "numpy", "faiss-cpu")
MEASURES = ("knn", "probe", "nmi", "ari", "accuracy")


class Row(NamedTuple):
    """One line of a table: what is changed, and from which row's labels it is trained, if from any."""

    name: str
    changes: dict[str, Any]
    labels_of: str = ""


METHODS = {
    "Sinkhorn": {},
    "k-means": {"labels__method": "kmeans"},
    "argmax": {"labels__method": "argmax"},
}
RULES = {
    "Sinkhorn, Range(1/2, 2)": {"labels__range": (0.5, 2.0)},
    "Sinkhorn, KL(1)": {"labels__kl": 1.0},
}


def _imbalanced(kind: str) -> list[Row]:
    return [Row(name, changes | {"data__imbalance": kind}) for name, changes in (METHODS | RULES).items()]


QUESTIONS: dict[str, tuple[str, list[Row]]] = {
    "labels": (
        "Where labels come from",
        [Row(name, changes) for name, changes in METHODS.items()]
        + [Row("random, fixed", {"labels__method": "random"}), Row("true classes", {"labels__method": "truth"})],
    ),
    "light": ("Half of one class is missing", _imbalanced("light")),
    "heavy": ("Classes keep 10 % to 100 % of their images", _imbalanced("heavy")),
    "heads": (
        "How many classes, how many heads",
        [Row(f"K={k}, T={t}", {"model__heads": [k] * t}) for k in (10, 64, 128, 512) for t in (1, 4, 10)],
    ),
    "relabellings": (
        "How often labels are made anew",
        [Row(f"{n} relabellings", {"labels__n_relabels": n}) for n in (0, 10, 40, 80, 160)],
    ),
    "transfer": (
        "A fresh network on the labels of another",
        [
            Row("small_convnet, own labels", {}),
            Row("small_convnet, on the labels of another", {}, "small_convnet, own labels"),
            Row(
                "small_resnet, on the labels of another",
                {"model__backbone": "small_resnet", "model__options": {"width": 8}},
                "small_convnet, own labels",
            ),
        ],
    ),
    "rotation": (
        "With the rotation task beside (SeLa + Rot)",
        [Row("labels alone", {}), Row("labels + rotation", {"train__rotation": 1.0})],
    ),
}


def settings(row: Row, seed: int, samples: int, epochs: int) -> dict[str, Any]:
    """The whole config of a row's run, which together with whose labels it takes is what a run is known by."""
    from otlabel.training.config import read_config

    values = {"train__threads": 1, "train__seed": seed, "data__n_samples": samples, "train__epochs": epochs}
    if row.labels_of:
        values |= {"labels__method": "fixed"}
    return read_config(RECIPE).with_values(**(values | row.changes)).to_dict() | {"labels_of": row.labels_of}


def key_of(known_by: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(known_by, sort_keys=True).encode()).hexdigest()[:16]


def measure(known_by: dict[str, Any], folder: str) -> dict[str, Any]:
    """One run, in a process of its own; its labels stay in the folder, for rows that train on them."""
    from otlabel.training.config import config_of
    from otlabel.training.run import train

    warnings.simplefilter("ignore")
    sections = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in known_by.items()
        if name != "labels_of"
    }
    if known_by["labels_of"]:
        source = settings(by_name(known_by["labels_of"]), *_scale(known_by))
        sections["labels"]["file"] = f"{folder}/{key_of(source)}.h5"
    started = time.perf_counter()
    run = train(config_of(sections))
    seconds = time.perf_counter() - started
    run.labeler.save_labels(f"{folder}/{key_of(known_by)}.h5")
    return {
        "key": key_of(known_by),
        "settings": known_by,
        "result": run.result,
        "seconds": seconds,
        "machine": describe_machine(PACKAGES),
    }


def by_name(name: str) -> Row:
    return next(row for _, rows in QUESTIONS.values() for row in rows if row.name == name)


def _scale(known_by: dict[str, Any]) -> tuple[int, int, int]:
    return known_by["train"]["seed"], known_by["data"]["n_samples"], known_by["train"]["epochs"]


# ---- records and tables ----


def read_records() -> dict[str, dict[str, Any]]:
    """Every run on record, by its key."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def figure(record: dict[str, Any], name: str) -> float | None:
    result = record["result"]
    return result.get(name, result.get("labels", {}).get(name))


def table(question: str, records: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    """One question's rows: mean and standard deviation over seeds."""
    title, rows = QUESTIONS[question]
    lines = [f"## {title}", "", f"| | {' | '.join(MEASURES)} | seeds | s |", "|:--|" + "--:|" * (len(MEASURES) + 2)]
    for row in rows:
        keys = [key_of(settings(row, seed, arguments.samples, arguments.epochs)) for seed in range(arguments.seeds)]
        found = [records[key] for key in keys if key in records]
        if not found:
            continue
        cells = [_spread([value for one in found if (value := figure(one, name)) is not None]) for name in MEASURES]
        seconds = float(np.mean([one["seconds"] for one in found]))
        lines.append(f"| {row.name} | {' | '.join(cells)} | {len(found)} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def page(records: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    base = [settings(Row("", {}), seed, arguments.samples, arguments.epochs) for seed in range(arguments.seeds)]
    untrained = [records[key_of(one)]["result"]["untrained"] for one in base if key_of(one) in records]
    before = ", ".join(f"{name} {_spread([one[name] for one in untrained])}" for name in MEASURES[:2])
    tables = "\n\n".join(table(question, records, arguments) for question in QUESTIONS)
    heads = base[0]["model"]["heads"]
    return f"""# Self-labelling: what the paper found, in small

{arguments.samples} training images of {base[0]["data"]["name"]}, {arguments.epochs} epochs,
{base[0]["model"]["backbone"]}
{json.dumps(base[0]["model"]["options"])}, {len(heads)} heads of {heads[0]} classes, {base[0]["labels"]["n_relabels"]}
relabellings, unless a row says otherwise. Mean ± standard deviation over seeds. `knn` (weighted, k = 50) and `probe`
(linear) are accuracies on the 10,000 test images with features frozen; `nmi`, `ari` and `accuracy` compare labels with
the true classes of the training images, as means over heads. Settings were chosen for Sinkhorn labels, on a validation
part of other training images. The paper trains for 400 epochs and more; what holds there need not show here, nor the
other way round. The same network before training: {before}.

{machine_line(next(iter(records.values()))["machine"])} One thread a run; seconds with two runs or more side by side.
Made by `python benchmarks/selflabel/study.py` from `selflabel.jsonl`.

{tables}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions, parted by commas (all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if not arguments.tables:
        _run(arguments)
    PAGE.write_text(page(read_records(), arguments), encoding="utf-8")
    print(f"Written: {PAGE}")


def _run(arguments: argparse.Namespace) -> None:
    """All runs that there is no record of; those whose labels others take go first, and are kept beside the records."""
    rows = [row for question in arguments.only.split(",") for row in QUESTIONS[question][1]]
    LABELS.mkdir(exist_ok=True)
    for first in (True, False):
        jobs: dict[str, dict[str, Any]] = {}
        for seed in range(arguments.seeds):
            for row in rows:
                known_by = settings(row, seed, arguments.samples, arguments.epochs)
                if bool(row.labels_of) != first:
                    jobs[key_of(known_by)] = known_by
        for key in read_records():
            jobs.pop(key, None)
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            futures = [pool.submit(measure, known_by, str(LABELS)) for known_by in jobs.values()]
            for number, future in enumerate(as_completed(futures), 1):
                record = future.result()
                with RECORDS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"{number}/{len(jobs)}  {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
