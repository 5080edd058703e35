"""Runs on JPEGs that stay in their files: memory at several numbers of them, and images a second beside torch alone.

    python benchmarks/bench_image_files.py --images 50000 --folder jpegs

makes the folder (once), reads it with 1 and 2 workers beside a plain DataLoader that decodes, crops and resizes with
Pillow's usual calls, and trains an epoch with 2 workers, all in processes of their own, whose peak memory is told.
Figures go to results/image_files.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "image_files.md"
SIZE, CLASSES, READ = 224, 100, 2000
CROP: dict[str, Any] = {"crop": [0.08, 1.0], "aspect": [0.75, 1.333], "flip": True}


def of_torch(folder: Path, workers: int, count: int) -> Any:
    """What most write: decode all of it, convert, crop, resize."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from otlabel.training.images import Crop

    paths = sorted(path for place in (folder / "train").iterdir() for path in place.glob("*.JPEG"))
    crop = Crop((0.08, 1.0), (0.75, 1.333), flip=True)

    class Plain(Dataset):
        def __len__(self) -> int:
            return min(count, len(paths))

        def __getitem__(self, index: int) -> Any:
            rng = np.random.default_rng(index)
            with Image.open(paths[index * len(paths) // len(self)]) as opened:
                image = opened.convert("RGB")
            box, mirrored = crop.draw(*image.size, rng, 1.0)
            image = image.crop(tuple(round(place) for place in box)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return index, torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return DataLoader(Plain(), batch_size=128, num_workers=workers)


def of_ours(folder: Path, workers: int, count: int) -> Any:
    """The batches of a run."""
    import numpy as np

    from otlabel.training.data import load_images
    from otlabel.training.images import Crop
    from otlabel.training.loaders import TrainingBatches

    files = load_images(folder, size=SIZE).train
    order = np.arange(min(count, len(files))) * len(files) // min(count, len(files))
    return TrainingBatches(
        files[order], 128, order=lambda epoch: range(len(order)), epoch=lambda: 0, version=lambda: 0,
        crop=Crop((0.08, 1.0), (0.75, 1.333), flip=True), seed=0, workers=workers, share=(0, 1),
    )  # fmt: skip


def epoch(folder: Path, workers: int) -> dict[str, Any]:
    """One epoch of SeLa, labels of views among it; features go to a file, as in the recipes for many images."""
    from otlabel.training.config import config_of
    from otlabel.training.run import train

    given = {
        "data": {"name": str(folder), "size": SIZE, "workers": workers},
        "model": {"backbone": "small_convnet", "options": {"widths": [8, 16], "strides": [4, 4]}, "heads": [100]},
        "labels": {"n_relabels": 2, "schedule": "linear", "augmented": True, "store": "hdf5"},
        "augment": CROP | {"jitter": 0.5, "grayscale": 0.2},
        "train": {"epochs": 1, "batch_size": 128, "threads": 1},
        "evaluation": {"knn": 0, "probe": False},
    }
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as run:
        train(config_of(given), run, report=lines.append)
    return {"seconds": lines[0]["seconds"]}


def child(arguments: argparse.Namespace) -> None:
    """One measurement, in a process of its own."""
    started = time.perf_counter()
    if arguments.child == "epoch":
        found = epoch(arguments.folder, arguments.workers)
    else:
        loader = {"torch": of_torch, "otlabel": of_ours}[arguments.child](arguments.folder, arguments.workers, READ)
        started, count = time.perf_counter(), 0
        for index, _ in loader:
            count += len(index)
        found = {"images_per_second": count / (time.perf_counter() - started)}
        if arguments.child == "otlabel":
            loader.close()  # so that its processes end, and can be asked for
    found["wall"] = time.perf_counter() - started
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["worker_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps(found))


def measured(folder: Path, what: str, workers: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--folder", str(folder), "--child", what, "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = {"what": what, "workers": workers, **json.loads(done.stdout.splitlines()[-1])}
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--write", action="store_true", help=f"to {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    if not (arguments.folder / "train").is_dir():
        from image_folder import make

        make(arguments.folder, CLASSES, arguments.images // CLASSES, 1)
    rows = [measured(arguments.folder, what, workers) for workers in (1, 2) for what in ("torch", "otlabel")]
    rows.append(measured(arguments.folder, "epoch", 2))
    lines = [
        "# Images that stay in their files",
        "",
        f"{arguments.images:,} JPEGs of 180 to 640 pixels a side, cut to {SIZE}; `benchmarks/bench_image_files.py`. "
        f"Reading is of {min(READ, arguments.images):,} of them, random resized crops and flips; the epoch is of all, "
        "with two labellings of views and one of the images as they are.",
        "",
        "| | workers | images a second | peak of the process, MB | of each worker, MB |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        rate = f"{row['images_per_second']:.0f}" if "images_per_second" in row else f"(epoch {row['seconds']:.0f} s)"
        lines.append(f"| {row['what']} | {row['workers']} | {rate} | {row['peak_mb']:.0f} | {row['worker_mb']:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
