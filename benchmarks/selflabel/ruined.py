"""How early alarms tell of a ruined training, and whether good ones raise any: every run on record.

    python benchmarks/selflabel/ruined.py              # all runs; goes on where it was interrupted
    python benchmarks/selflabel/ruined.py --tables     # nothing is run: the page from the records

Runs have the settings of `otlabel.training.suited` but for what ruins them. Only their first third is trained, in which
an alarm is to come, and half of what is not ruined. A record is a line of `results/ruined.jsonl`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import describe_machine, machine_line
from modes import SAMPLES, images_for
from quality import N_CLASSES, write_texts

from otlabel import metrics
from otlabel.training.config import config_of
from otlabel.training.data import Images
from otlabel.training.run import Run
from otlabel.training.suited import suited

RESULTS = Path(__file__).parent.parent / "results"
RECORDS, PAGE = RESULTS / "ruined.jsonl", RESULTS / "ruined.md"
EPOCHS = 18
SETTINGS: dict[str, dict[str, Any]] = {
    "as suited": {},
    "rate 30": {"train": {"lr": 30.0}},
    "rate 3": {"train": {"lr": 3.0}},
    "features are frozen": {"frozen": True},
    "no augmentation": {"augment": {}},
}
DATA = ("digits", "fashion-mnist", "cifar10", "wordnet")


def run_one(data: str, setting: str, seed: int, images: Images, truth: np.ndarray) -> dict[str, Any]:
    started, change = time.process_time(), SETTINGS[setting]
    given: dict[str, Any] = suited(tuple(images.train.shape), N_CLASSES[data])
    given["data"] = {"name": images.name} | ({} if data == "wordnet" else {"n_samples": SAMPLES})
    given["labels"]["n_relabels"] = 2 * EPOCHS
    given["train"] |= {"epochs": EPOCHS, "seed": seed, "threads": 1} | change.get("train", {})
    given["augment"] = change.get("augment", given["augment"])
    if change.get("frozen"):
        given["train"]["weight_decay"] = 0.0
    run = Run(config_of(given, f"{data}, {setting}"), None, images=images)
    if change.get("frozen"):
        run.model.backbone.requires_grad_(False)
    course, diverged = [], ""
    update = run.labeler.update

    def updated(*given: Any, **more: Any) -> Any:
        records = update(*given, **more)
        of_all = {name: records[0].get(name) for name in ("loss", "epochs_trained", "feature_drift", "alarms")}
        labels = run.labeler.labels.numpy()
        means = {"nmi": float(np.mean([metrics.nmi(truth, one) for one in labels])), "quality": run.labeler.quality}
        course.append(of_all | means | {"churn": float(np.mean([one["churn"] for one in records]))})
        return records

    run.labeler.update = updated  # type: ignore[method-assign]

    def end_early(line: dict[str, Any]) -> None:
        run.trainer.should_stop = line["epoch"] >= (EPOCHS // 3 if change else EPOCHS // 2)

    try:
        run.fit(end_early)
    except ValueError as error:
        diverged = str(error)[:100]
        course.append({"epochs_trained": run.labeler.history[-1]["epochs_trained"], "alarms": [diverged]})
    return {
        "data": data, "setting": setting, "seed": seed, "epochs": EPOCHS, "course": course, "diverged": diverged,
        "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.exists() else []


def tables(lines: list[dict[str, Any]]) -> str:
    rows = ["| data | setting | first alarm, epoch | NMI then | what it says |", "|---|---|--:|--:|---|"]
    for data, setting in itertools.product(DATA, SETTINGS):
        for line in lines:
            if (line["data"], line["setting"]) != (data, setting):
                continue
            alarm = next((at for at in line["course"] if at["alarms"]), None)
            if alarm is None:
                rows.append(f"| {data} | {setting} | - | {line['course'][-1]['nmi']:.2f} | |")
                continue
            nmi = f"{alarm['nmi']:.2f}" if "nmi" in alarm else "-"
            said = "; ".join(text.partition(":")[0] for text in alarm["alarms"])
            rows.append(f"| {data} | {setting} | {alarm['epochs_trained']:.1f} | {nmi} | {said} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    lines = read()
    if not arguments.tables:
        done = {(one["data"], one["setting"], one["seed"]) for one in lines}
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as made:
            folder, loaded = Path(made), {}
            write_texts(folder)
            for seed, setting, data in itertools.product(range(arguments.seeds), SETTINGS, DATA):
                if (data, setting, seed) in done:
                    continue
                if data not in loaded:
                    loaded[data] = images_for(data, folder)
                record = run_one(data, setting, seed, *loaded[data])
                lines.append(record | {"machine": describe_machine(("otlabel", "torch", "numpy"))})
                with RECORDS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(data, setting, seed, f"{record['cpu_seconds']:.0f} s", flush=True)
    PAGE.write_text(
        f"""# How early alarms tell of a ruined training

Runs of {EPOCHS} epochs on {SAMPLES} samples with the settings of `otlabel.training.suited`, but for what ruins them;
made by `python benchmarks/selflabel/ruined.py`. Of each run the epoch of its first alarm and the NMI with the truth
then; of those without any, the NMI at the end. That is after a third, {EPOCHS // 3} epochs; of runs as suited, after
half.

{tables(lines)}

{machine_line(lines[-1]["machine"])}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
