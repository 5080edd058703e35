"""One measurement of bench_scale.py, in a process of its own: a solve, or a single pass to compare it with."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import others_cores, others_cpu_seconds, peak_memory_mb, write_json
from peers import balanced_counts

EPSILON, TOL = 0.04, 1e-2
REPEAT_BELOW = 5.0  # seconds; longer solves are timed once
REPEATS = 3
PIECE = 8 << 20  # bytes read at once
SOME_ROWS = 20_000  # enough for potentials near those of all rows
BLOCK_SCORES, LARGE_BLOCK_SCORES = 1 << 19, 1 << 23  # of one thread's product, of one that BLAS shares out


def solve_job(job: dict) -> dict:
    """Labels from an array, a file or a file of features: time, memory and what the result says of itself."""
    from otlabel import sinkhorn_assign

    def timed(source: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        result = sinkhorn_assign(source, epsilon=EPSILON, tol=TOL, **job["options"])
        return result, time.perf_counter() - start

    timed(open_source(job["kind"], job["warm_up"]))
    if job["kind"] != "array":
        read_through(job["path"])  # so that every run finds the file where the one before left it
    source = open_source(job["kind"], job["path"], job.get("rows"))
    before = time.perf_counter(), others_cpu_seconds()
    result, first = timed(source)
    after = time.perf_counter(), others_cpu_seconds()
    peak = peak_memory_mb()
    seconds = [first]
    while first < REPEAT_BELOW and len(seconds) < REPEATS:
        if job["kind"] != "array":
            source = open_source(job["kind"], job["path"])  # the last one may have kept what it read
        result, again = timed(source)
        seconds.append(again)

    n, k = len(result.labels), len(result.counts)
    counts = np.bincount(result.labels, minlength=k)
    if "labels" in job:
        np.save(job["labels"], result.labels)
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_gb": None if peak is None else peak / 1000,
        "n": n,
        "k": k,
        "passes": result.n_sweeps,
        "counts_exact": bool((counts == balanced_counts(n, k)).all()),
        "size_min": int(counts.min()),
        "size_max": int(counts.max()),
        "gap": float(result.gap),
        "value": float(result.value),
        "class_error": float(result.marginal_error),
        "plan": result.status.value,
        "bytes_read": getattr(result, "bytes_read", None),
        "cached": None if job["kind"] == "array" else cached_share(job["path"]),
        "stages": stage_seconds(result.history, n, seconds[-1]),
        "labels_sha256": hashlib.sha256(result.labels.astype(np.int64).tobytes()).hexdigest(),
        "others_cores": others_cores(before, after),
    }


def stage_seconds(history: tuple[dict, ...], n: int, total: float) -> dict[str, float]:
    """How long each stage took, from the end of the pass before it to the end of its own."""
    spent: dict[str, float] = {}
    last = 0.0
    for record in history:
        stage = record["stage"] + (" on samples" if record["rows"] < n else "")
        spent[stage] = spent.get(stage, 0.0) + record["seconds"] - last
        last = record["seconds"]
    return spent | {"rest": total - last}


def read_job(job: dict) -> dict:
    """Plain sequential reading of the whole dataset, which is the least that a streamed pass must take."""

    def read() -> None:
        for _ in pieces(job["path"]):
            pass

    return timed_passes(read) | {"cached": cached_share(job["path"])}


def sweep_job(job: dict) -> dict:
    """One pass of the solver's own sweep, in memory on a part of the rows or streamed over all of them."""
    from otlabel import sinkhorn_assign
    from otlabel.ranks.rowset import RowSet
    from otlabel.sources import open_scores
    from otlabel.sweep import sweep

    # A sweep's time depends on how sharp the plan is, so the potentials are those of a solve, of some of the rows.
    some = open_source("array", job["path"], SOME_ROWS)
    potentials = sinkhorn_assign(some, epsilon=EPSILON, tol=TOL, rounding="argmax").plan_potentials
    if job["kind"] == "array":
        source = open_source("array", job["path"], job["rows"])
    else:
        source = open_source("file", job["path"])
    passes = timed_passes(lambda: sweep(RowSet(open_scores(source)), potentials, EPSILON, None, np.float32))
    return passes | {"cached": None if job["kind"] == "array" else cached_share(job["path"])}


def products_job(job: dict) -> dict:
    """The matrix products of one pass and nothing else, in the faster of two ways to use all processors."""
    from threadpoolctl import threadpool_limits

    from otlabel.sweep.pool import thread_count

    weight = np.ascontiguousarray(np.load(Path(job["path"]).with_suffix(".npz"))["weight"].T)  # (D, K)
    features = np.concatenate([piece.astype(np.float32) for piece in pieces(job["path"])])
    n, k = len(features), weight.shape[1]
    rooms = threading.local()

    def product(start: int, rows: int) -> None:
        if not hasattr(rooms, "room"):
            rooms.room = np.empty((rows, k), np.float32)
        block = features[start : start + rows]
        np.matmul(block, weight, out=rooms.room[: len(block)])

    small, large = max(1, BLOCK_SCORES // k), max(1, LARGE_BLOCK_SCORES // k)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(thread_count()) as pool:
        threads = timed_passes(lambda: list(pool.map(lambda start: product(start, small), range(0, n, small))))
    blas = timed_passes(lambda: [product(start, large) for start in range(0, n, large)])
    ways = {"threads of one BLAS thread each": threads["seconds"], "BLAS's own threads": blas["seconds"]}
    fastest = min(ways, key=ways.__getitem__)
    return {"seconds": ways[fastest], "ways": ways, "fastest": fastest, "others_cores": blas["others_cores"]}


JOBS = {"solve": solve_job, "read": read_job, "sweep": sweep_job, "products": products_job}


def timed_passes(run_pass: Callable[[], Any]) -> dict:
    """The median of three passes, after one that warms up and brings the file into the page cache."""
    seconds = []
    before = time.perf_counter(), others_cpu_seconds()
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        run_pass()
        seconds.append(time.perf_counter() - start)
    after = time.perf_counter(), others_cpu_seconds()
    busy = others_cores(before, after)
    return {"seconds": statistics.median(seconds[1:]), "first_seconds": seconds[0], "others_cores": busy}


def open_source(kind: str, path: str, rows: int | None = None) -> Any:
    """What sinkhorn_assign is given: the first rows in memory, the file's name, or features with their head."""
    if kind == "array":
        return read_array(path, rows)
    import otlabel

    if "memory_limit" not in inspect.signature(otlabel.sinkhorn_assign).parameters:
        sys.exit("this otlabel does not read scores from files")
    if kind == "file":
        return f"{path}::/log_probs"
    if not hasattr(otlabel, "linear_scores"):
        sys.exit("this otlabel has no linear_scores")
    head = np.load(Path(path).with_suffix(".npz"))
    return otlabel.linear_scores(f"{path}::/features", head["weight"], head["bias"])


def read_array(path: str, rows: int | None) -> np.ndarray:
    """The first rows of the scores, read straight into place: no second copy at any time."""
    import h5py

    with h5py.File(path) as file:
        dataset = file["log_probs"]
        array = np.empty((min(rows or len(dataset), len(dataset)), dataset.shape[1]), dataset.dtype)
        dataset.read_direct(array, np.s_[: len(array)])
    return array


def pieces(path: str) -> Iterator[np.ndarray]:
    """The file's only dataset in pieces of whole chunks, each in the memory of the one before."""
    import h5py

    with h5py.File(path) as file:
        (dataset,) = file.values()
        step = dataset.chunks[0] * max(1, round(PIECE / (dataset.chunks[0] * dataset[0].nbytes)))
        room = np.empty((step, dataset.shape[1]), dataset.dtype)
        for start in range(0, len(dataset), step):
            piece = room[: min(step, len(dataset) - start)]
            dataset.read_direct(piece, np.s_[start : start + len(piece)])
            yield piece


def read_through(path: str) -> None:
    """Bring the file into the page cache, as far as that has room for it."""
    with open(path, "rb", buffering=0) as file:
        room = bytearray(PIECE)
        while file.readinto(room):
            pass


def cached_share(path: str) -> float | None:
    """How much of the file is in the page cache, judged by one byte of each piece, where the platform tells."""
    hits = []
    with open(path, "rb") as file:
        for start in range(0, Path(path).stat().st_size, PIECE):
            try:
                hits.append(os.preadv(file.fileno(), [bytearray(1)], start, os.RWF_NOWAIT))
            except BlockingIOError:  # it would have to be fetched
                hits.append(0)
            except (AttributeError, OSError):
                return None
    return statistics.mean(hits)


def main() -> None:
    """Run one job and write what came of it; a failure is this process's last line and exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("job", type=json.loads, help="JSON: job, path, and what the job's function reads")
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    write_json(arguments.result, JOBS[arguments.job["job"]](arguments.job))


if __name__ == "__main__":
    main()
