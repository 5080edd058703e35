"""Self-labelling on a card for five minutes: CIFAR-10, ResNet-18, bf16, by Sinkhorn, k-means and argmax labels.

    python benchmarks/gpu_training.py --limit 300 --out results         # CIFAR-10 in $OTLABEL_DATA, or --data
    python benchmarks/gpu_training.py --pack cifar10.npz --train 16000  # a part of CIFAR-10 as one file, to take along
    python benchmarks/gpu_training.py --data cifar10.npz --limit 300 --out results
    python benchmarks/gpu_training.py --quick                           # generated images on the CPU: tests this script

Settings are those of `otlabel train DATA -k 10`, but for the network, the precision, the size of batches, and the
number of epochs, which is what a third of the time allows by the second epoch of a run of two. Each way has a process
of its own: what fails or hangs does not stop the next. Epochs are in results/gpu_training.jsonl as they end. Without
CIFAR-10 generated images stand in, and what comes out says so: speeds mean something then, agreement does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from machine import describe_machine, failure_text, machine_line, number, read_json, table, write_json  # noqa: E402

from otlabel.errors import OtlabelWarning  # noqa: E402
from otlabel.training.config import Config, config_of  # noqa: E402
from otlabel.training.data import Images, load_images, part_of  # noqa: E402
from otlabel.training.run import Run  # noqa: E402
from otlabel.training.suited import suited  # noqa: E402

PACKAGES = ["otlabel", "torch", "pytorch-lightning", "numba", "numpy", "scipy", "scikit-learn"]
WAYS = "sinkhorn", "kmeans", "argmax"
K = 10
PLANNED = 0.8  # of what is left, for the epochs: labels and features are judged after them
LATE = 30.0  # seconds after its time that a process is ended
STAND_IN = "generated images, for CIFAR-10 was not found: agreement with the truth means nothing"


def images_at(name: str, n_samples: int) -> tuple[Images, str]:
    """The data, and what they are; generated ones where there is no CIFAR-10."""
    try:
        if name.endswith(".npz"):
            with np.load(name, allow_pickle=False) as file:
                parts = [torch.from_numpy(file[key]) for key in ("train", "train_labels", "test", "test_labels")]
            return Images(name, *parts), f"CIFAR-10, {len(parts[0]):,} of its images"
        if name:
            return load_images(name), "CIFAR-10"
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
    return generated(n_samples), STAND_IN


def generated(n_samples: int) -> Images:
    """Images of ten kinds of waves in colour, with noise."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.nn.functional.interpolate(torch.rand(K, 3, 4, 4, generator=generator), 32, mode="bicubic")

    def part(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, K, (size,), generator=generator)
        noise = torch.rand(size, 3, 32, 32, generator=generator)
        return (255 * (0.7 * waves[labels] + 0.3 * noise).clamp(0, 1)).byte(), labels

    return Images("generated", *part(n_samples), *part(max(K, n_samples // 5)))


def config_for(way: str, shape: tuple[int, ...], epochs: int, arguments: argparse.Namespace) -> Config:
    """What suits the data, on a larger network, in the precision that cards are quick in."""
    given = suited(shape, K)
    given["data"] = {"name": "cifar10"}
    given["model"] |= {"backbone": "small_resnet", "options": {"width": arguments.width}}
    given["labels"] |= {"method": way, "n_relabels": epochs}
    if way == "kmeans":
        del given["labels"]["augmented"]
    given["train"] |= {"epochs": epochs, "batch_size": arguments.batch_size}
    given["evaluation"] = {"knn": 50, "probe": False}
    given["trainer"] = {"precision": "bf16-mixed", "logger": False}
    return config_of(given)


def trained(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of as many epochs as there is time for, judged by the truth when all is over."""
    until = time.time() + arguments.limit
    images, what = images_at(arguments.data, arguments.samples)
    shape = tuple(images.train.shape)

    def run_of(epochs: int, purpose: str) -> tuple[Run, list[float]]:
        run, seconds = Run(config_for(way, shape, epochs, arguments), None, images=images), list[float]()

        def report(line: dict[str, Any]) -> None:
            seconds.append(line["seconds"])
            with (arguments.out / "gpu_training.jsonl").open("a") as file:
                file.write(json.dumps({"way": way, "run": purpose, **line}) + "\n")

        run.fit(report)
        return run, seconds

    begun = time.time()
    _, pilot = run_of(2, "to see how long epochs take")
    epochs = min(max(int(PLANNED * (until - time.time()) / pilot[1]), 2), suited(shape, K)["train"]["epochs"])
    run, seconds = run_of(epochs, "measured")
    run.finish()
    history = run.labeler.history
    relabelling = sum(record["seconds"] for record in history)
    relabelling += sum(record["seconds_extract"] for record in history[:: len(run.labeler.n_classes)])
    epoch = sorted(seconds)[len(seconds) // 2]
    return {
        "data": what, "samples": shape[0], "epochs": epochs, "epoch_seconds": epoch,
        "relabelling_seconds": relabelling / max(1, run.labeler.n_updates), "seconds": time.time() - begun,
        "samples_a_second": shape[0] / epoch, "quality": run.result.get("quality"),
        "nmi": run.result["labels"]["nmi"], "accuracy": run.result["labels"]["accuracy"], "knn": run.result.get("knn"),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }  # fmt: skip


def supervise(arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways, each in a process with its share of the time; what is known is on disk after each."""
    until = time.time() + arguments.limit
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    found: dict[str, Any] = {"machine": describe_machine(PACKAGES), "card": card, "ways": {}}
    for position, way in enumerate(arguments.ways):
        share = (until - time.time()) / (len(arguments.ways) - position)
        result = arguments.out / f"gpu_training-{way}.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--way", way, "--limit", f"{share:.1f}", "--out", str(arguments.out)]
        command += ["--data", arguments.data, "--samples", str(arguments.samples)]
        command += ["--width", str(arguments.width), "--batch-size", str(arguments.batch_size)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(share, 0) + LATE)
            why = failure_text(done) if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"out of time: ended after {share + LATE:.0f} s"
        found["ways"][way] = read_json(result) or {"failure": why or "nothing was written"}
        write_json(arguments.out / "gpu_training.json", found)
    return found


def to_markdown(found: dict[str, Any]) -> str:
    """A row for each way."""
    header = (
        "labels", "data", "samples", "epochs", "s an epoch", "samples a second", "s a relabelling", "s in all",
        "peak GB", "quality", "NMI", "accuracy", "50-NN", "failure",
    )  # fmt: skip
    forms = {
        "epoch_seconds": ".2f", "samples_a_second": ",.0f", "relabelling_seconds": ".2f", "seconds": ".0f",
        "peak_gb": ".1f", "quality": ".3f", "nmi": ".3f", "accuracy": ".3f", "knn": ".3f",
    }  # fmt: skip
    rows = [
        (way, *(str(row.get(key, "")) for key in ("data", "samples", "epochs")),
         *(number(row.get(key), form) for key, form in forms.items()), row.get("failure", ""))
        for way, row in found["ways"].items()
    ]  # fmt: skip
    lines = ["# Self-labelling on a card", "", machine_line(found["machine"]), f"Device: {found['card']}.", ""]
    return "\n".join([*lines, *table(header, rows), ""])


def pack(file: Path, name: str, n_train: int, n_test: int) -> None:
    """A part of the images and their labels in one file."""
    images = part_of(load_images(name), n_train)
    assert images.train_labels is not None
    assert images.test is not None
    assert images.test_labels is not None
    parts = images.train, images.train_labels, images.test[:n_test], images.test_labels[:n_test]
    named = dict(zip(("train", "train_labels", "test", "test_labels"), (part.numpy() for part in parts), strict=True))
    np.savez_compressed(file, **named)
    print(f"{file}: {file.stat().st_size / 2**20:.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as for otlabel train, or what --pack wrote (%(default)s)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for all (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the results (%(default)s)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="of making labels (all)")
    parser.add_argument("--batch-size", type=int, default=256, help="a card takes more at once (%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of the network; 64: ResNet-18 (%(default)s)")
    parser.add_argument("--samples", type=int, default=50_000, help="of generated images (%(default)s)")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write a part of the data there, and end")
    parser.add_argument("--train", type=int, default=16_000, help="images to train on in it (%(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="images to test on in it (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few generated images, a narrow network")
    parser.add_argument("--way", choices=WAYS, help="only this one, here, to a file in --out")
    arguments = parser.parse_args()
    if arguments.pack:
        pack(arguments.pack, arguments.data, arguments.train, arguments.test)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", OtlabelWarning)
    if arguments.way:
        found = trained(arguments.way, arguments)
        write_json(arguments.out / f"gpu_training-{arguments.way}.json", found)
        return 0
    if arguments.quick:
        arguments.data, arguments.samples, arguments.width, arguments.batch_size, arguments.limit = "", 200, 4, 32, 3.0
    (arguments.out / "gpu_training.jsonl").unlink(missing_ok=True)
    found = supervise(arguments)
    (arguments.out / "gpu_training.md").write_text(to_markdown(found), encoding="utf-8")
    print(to_markdown(found))
    return int(any("failure" in row for row in found["ways"].values()))


if __name__ == "__main__":
    sys.exit(main())
