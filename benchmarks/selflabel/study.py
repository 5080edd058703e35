"""What the SeLa paper found, again at the scale of a small machine: every run on record, tables made from the records.

    python benchmarks/selflabel/study.py                       # all of it; goes on where it was interrupted
    python benchmarks/selflabel/study.py --only labels,heads   # some of the questions
    python benchmarks/selflabel/study.py --tables              # nothing is run: the page from the records

A record is a line of `results/selflabel.jsonl`: the question, the row, the seed, the whole config, what came out, the
seconds, the machine. `results/selflabel.md` is made from these lines alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
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
SEEDS = (0, 1, 2)
RECIPE = "fashion_mnist"
# Small enough that all of it takes an hour on two cores.
BASE: dict[str, Any] = {
    "train__threads": 1,
    "evaluation__baseline": True,
}
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
            Row("small_convnet, on these", {}, "small_convnet, own labels"),
            Row(
                "small_resnet, on these",
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


def measure(question: str, row: Row, seed: int, folder: str, samples: int, epochs: int) -> dict[str, Any]:
    """One run, in a process of its own; labels that later rows need stay in the folder."""
    from otlabel.training.config import read_config
    from otlabel.training.run import train

    warnings.simplefilter("ignore")
    values = BASE | {"train__seed": seed, "data__n_samples": samples, "train__epochs": epochs} | row.changes
    if row.labels_of:
        values |= {"labels__method": "fixed", "labels__file": str(_labels(folder, question, row.labels_of, seed))}
    config = read_config(RECIPE).with_values(**values)
    started = time.perf_counter()
    run = train(config)
    seconds = time.perf_counter() - started
    run.labeler.save_labels(_labels(folder, question, row.name, seed))
    settings = config.to_dict()
    settings["labels"]["file"] = ""  # a path of this run only
    return {
        "question": question,
        "row": row.name,
        "seed": seed,
        "result": run.result,
        "seconds": seconds,
        "config": settings,
        "machine": describe_machine(PACKAGES),
    }


def _labels(folder: str, question: str, row: str, seed: int) -> Path:
    return Path(folder) / f"{question}-{''.join(c if c.isalnum() else '_' for c in row)}-{seed}.h5"


# ---- records and tables ----


def read_records() -> list[dict[str, Any]]:
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]


def figure(record: dict[str, Any], name: str) -> float | None:
    result = record["result"]
    return result.get(name, result.get("labels", {}).get(name))


def table(question: str, records: list[dict[str, Any]]) -> str:
    """One question's rows: mean and standard deviation over seeds."""
    title, rows = QUESTIONS[question]
    lines = [f"## {title}", "", f"| | {' | '.join(MEASURES)} | seeds | s |", "|:--|" + "--:|" * (len(MEASURES) + 2)]
    untrained = []
    for row in rows:
        found = [one for one in records if one["question"] == question and one["row"] == row.name]
        if not found:
            continue
        untrained += [one["result"]["untrained"] for one in found if "untrained" in one["result"]]
        cells = [_spread([value for one in found if (value := figure(one, name)) is not None]) for name in MEASURES]
        seconds = float(np.mean([one["seconds"] for one in found]))
        lines.append(f"| {row.name} | {' | '.join(cells)} | {len(found)} | {seconds:.0f} |")
    if untrained:
        cells = [_spread([one[name] for one in untrained if name in one]) for name in MEASURES]
        lines.append(f"| *untrained network* | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def page(records: list[dict[str, Any]]) -> str:
    config = records[-1]["config"]
    sizes = sorted({record["config"]["data"]["n_samples"] for record in records})
    epochs = sorted({record["config"]["train"]["epochs"] for record in records})
    asked = [question for question in QUESTIONS if any(record["question"] == question for record in records)]
    tables = "\n\n".join(table(question, records) for question in asked)
    return f"""# Self-labelling: what the paper found, in small

{config["data"]["name"]}, {", ".join(map(str, sizes))} training images, {", ".join(map(str, epochs))} epochs,
{config["model"]["backbone"]} {json.dumps(config["model"]["options"])}, unless a row says otherwise. Mean ± standard
deviation over seeds. `knn` (weighted, k = 50) and `probe` (linear) are accuracies on the 10,000 test images with
features frozen; `nmi`, `ari` and `accuracy` compare labels with the true classes of the training images, as means over
heads. The paper trains 400 epochs and more; what holds there need not show here, nor the other way round.
{machine_line(records[-1]["machine"])} One thread a run.
Made by `python benchmarks/selflabel/study.py` from `selflabel.jsonl`.

{tables}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions, parted by commas (all)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if not arguments.tables:
        _run(arguments)
    PAGE.write_text(page(read_records()), encoding="utf-8")
    print(f"Written: {PAGE}")


def _run(arguments: argparse.Namespace) -> None:
    done = {(record["question"], record["row"], record["seed"]) for record in read_records()}
    with tempfile.TemporaryDirectory() as folder:
        for first in (True, False):  # rows that others take their labels from go first
            jobs = [
                (question, row, seed, folder, arguments.samples, arguments.epochs)
                for question in arguments.only.split(",")
                for seed in range(arguments.seeds)
                for row in QUESTIONS[question][1]
                if bool(row.labels_of) != first and (question, row.name, seed) not in done
            ]
            with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
                for number, future in enumerate(as_completed([pool.submit(measure, *job) for job in jobs]), 1):
                    record = future.result()
                    with RECORDS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    told = f"{record['question']}, {record['row']}, seed {record['seed']}"
                    print(f"{number}/{len(jobs)}  {told}: {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
