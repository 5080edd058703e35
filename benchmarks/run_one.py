"""One solver on one score matrix, in a process of its own: what it took and how good the answer is."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import others_cores, others_cpu_seconds, peak_memory_mb
from peers import METHODS, Call, Outcome, Settings, balanced_counts
from synthetic import zipf_scores

PACKAGES = {"otlabel": "-e .", "ot": "pot", "torch": "torch", "jax": "jax", "ott": "ott-jax"}
WARM_UP = (4000, 50)  # rows, classes: large enough that every compiled function is compiled
WARM_UP_ITERATIONS = 100
REPEAT_BELOW = 5.0  # seconds; longer runs are timed once
CHUNK_ROWS = 4096


def measure(job: dict, result_path: Path) -> dict:
    """Time the solver and judge its answer."""
    settings = Settings(**job["settings"])
    method = METHODS[job["method"]]
    scores = np.load(job["scores"])  # read, not mapped: mapped pages would count twice in the peak
    warm_up = zipf_scores(min(WARM_UP[0], scores.shape[0]), min(WARM_UP[1], scores.shape[1]), seed=1)[0]
    method.prepare(warm_up, replace(settings, max_iterations=min(WARM_UP_ITERATIONS, settings.max_iterations)))()
    gc.collect()

    baseline = peak_memory_mb()
    call = method.prepare(scores, settings)
    _write(result_path, {"started": time.time()})  # a run that is cut off later still proves how long it took
    before = time.perf_counter(), others_cpu_seconds()
    outcome, first = _timed(call)
    peak = peak_memory_mb()
    seconds = [first]
    while first < REPEAT_BELOW and len(seconds) < job["repeats"]:
        del call  # some solvers work in place: each run gets its own input, and only one at a time
        call = method.prepare(scores, settings)
        seconds.append(_timed(call)[1])
    after = time.perf_counter(), others_cpu_seconds()

    row: dict[str, Any] = {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "others_cores": others_cores(before, after),
        "compile_seconds": outcome.compile_seconds,
        "iterations": outcome.iterations,
        "peak_mb": None if peak is None or baseline is None else peak - baseline,
        "baseline_mb": baseline,
    }
    row.update(judge(scores, outcome, settings.epsilon, exact=method.exact))
    row["status"] = "ok" if row["class_error"] <= settings.tol * 1.01 else "above tolerance"  # 1 %: float32 sums
    return row


def judge(scores: np.ndarray, outcome: Outcome, epsilon: float, *, exact: bool) -> dict:
    """Sizes, value and class error of an answer, computed here in float64 whatever the solver says of itself."""
    n, k = scores.shape
    counts = np.bincount(outcome.labels, minlength=k)
    if exact:
        error = np.abs(counts - balanced_counts(n, k)).sum() / n
    elif outcome.potentials is not None:
        error = np.abs(class_mass(scores, outcome.potentials, epsilon) - 1 / k).sum()
    else:
        error = np.abs(outcome.class_mass - 1 / k).sum()
    chosen = np.take_along_axis(scores, outcome.labels[:, None], axis=1)
    return {
        "class_error": float(error),
        "size_min": int(counts.min()),
        "size_max": int(counts.max()),
        "counts_exact": bool((counts == balanced_counts(n, k)).all()),
        "value": float(chosen.mean(dtype=np.float64)),
        "bound": outcome.bound,
    }


def class_mass(scores: np.ndarray, potentials: np.ndarray, epsilon: float) -> np.ndarray:
    """Column sums (K,) of the plan softmax((s + g) / epsilon) / N, in float64."""
    n, k = scores.shape
    total = np.zeros(k)
    for start in range(0, n, CHUNK_ROWS):
        block = (scores[start : start + CHUNK_ROWS].astype(np.float64) + potentials) / epsilon
        block = np.exp(block - block.max(axis=1, keepdims=True))
        total += (block / block.sum(axis=1, keepdims=True)).sum(axis=0)
    return total / n


def _timed(call: Call) -> tuple[Outcome, float]:
    start = time.perf_counter()
    outcome = call()
    return outcome, time.perf_counter() - start


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))


def main() -> None:
    """Run one job and write what came of it, failure included, as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("job", type=json.loads, help="JSON: method, scores (.npy), settings, repeats")
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    try:
        row = measure(arguments.job, arguments.result)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        row = {"status": "not installed", "failure": f"pip install {PACKAGES[error.name]}"}
    except MemoryError as error:
        row = {"status": "out of memory", "failure": str(error)}
    _write(arguments.result, row)


if __name__ == "__main__":
    main()
