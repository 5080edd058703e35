"""Balanced k-means against k-means-constrained from the same centres, to the end of all starts, and alone at scale."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import (
    describe_machine,
    failure_text,
    line,
    machine_line,
    number,
    others_cores,
    others_cpu_seconds,
    peak_memory_mb,
    read_json,
    write_json,
)
from synthetic import parse_size

HERE = Path(__file__).resolve().parent
PACKAGES = ("otlabel", "numpy", "scipy", "numba", "scikit-learn", "k-means-constrained", "ortools", "faiss-cpu")
INSTALLED_AS = {"sklearn": "scikit-learn", "k_means_constrained": "k-means-constrained", "faiss": "faiss-cpu"}
REPEAT_BELOW, REPEATS = 20.0, 3  # seconds; longer fits are timed once
WARM_UP = (2_000, 16, 20)  # rows, features, clusters: imports and compilation are over then
LARGE_WARM_UP = (60_000, 16, 100)  # too large for the short way of small problems
BLOCK = 1 << 14  # rows of what is computed here
RATIO = 50.0  # how much quicker an iteration is to be
MOST_GB = 1.0  # of the one from a file
LONGEST, PRODUCTS = 40.0, 3.0  # seconds for the large one, and of a step in those of its matrix product
Fit = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


# ---- in a process of its own ----


def points(n: int, d: int, k: int, seed: int) -> np.ndarray:
    """(n, d) float32 from k / 2 Gaussian clusters of Zipf size, as near to each other as they are wide."""
    random = np.random.default_rng(seed)
    n_clusters = max(1, k // 2)
    centres = random.standard_normal((n_clusters, d), dtype=np.float32)
    shares = 1.0 / np.arange(1, n_clusters + 1)
    x = random.standard_normal((n, d), dtype=np.float32)
    for start in range(0, n, 1 << 16):
        block = x[start : start + (1 << 16)]
        block += centres[random.choice(n_clusters, len(block), p=shares / shares.sum())]
    return x


def fit_otlabel(x: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Equal sizes."""
    from otlabel import BalancedKMeans

    return BalancedKMeans(len(centres), init=centres, max_iter=iterations, tol=0).fit(x).labels_


def fit_constrained(x: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Equal sizes, by a minimum cost flow in every iteration."""
    from k_means_constrained import KMeansConstrained

    n, k = len(x), len(centres)
    bounds = {"size_min": n // k, "size_max": -(-n // k)}
    return KMeansConstrained(k, init=centres, n_init=1, max_iter=iterations, tol=0, **bounds).fit(x).labels_


def fit_sklearn(x: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Any sizes."""
    from sklearn.cluster import KMeans

    return KMeans(len(centres), init=centres, n_init=1, max_iter=iterations, tol=0).fit(x).labels_


def fit_faiss(x: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Any sizes."""
    import faiss

    k = len(centres)
    model = faiss.Kmeans(x.shape[1], k, niter=iterations, max_points_per_centroid=len(x), min_points_per_centroid=1)
    model.train(x, init_centroids=centres)
    return model.index.search(x, 1)[1][:, 0]


FITS: dict[str, Fit] = {
    "otlabel": fit_otlabel,
    "k-means-constrained": fit_constrained,
    "scikit-learn, free sizes": fit_sklearn,
    "faiss, free sizes": fit_faiss,
}
EXACT_FITS = "otlabel", "k-means-constrained"


def compare_job(job: dict) -> dict:
    """One method from given centres: every one of them makes so many iterations and then labels once more."""
    from sklearn.cluster import kmeans_plusplus

    fit, (n, d, k), iterations = FITS[job["method"]], job["size"], job["iterations"]
    small = points(*WARM_UP, job["seed"])
    fit(small, small[: WARM_UP[2]].copy(), 2)
    x = points(n, d, k, job["seed"])
    centres, _ = kmeans_plusplus(x, k, random_state=job["seed"])
    seconds: list[float] = []
    before = time.perf_counter(), others_cpu_seconds()
    while not seconds or (seconds[0] < REPEAT_BELOW and len(seconds) < REPEATS):
        start = time.perf_counter()
        labels = fit(x, centres.copy(), iterations)
        seconds.append(time.perf_counter() - start)
    after = time.perf_counter(), others_cpu_seconds()
    np.save(job["labels"], labels)
    return judged(x, labels, k) | {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "seconds_a_step": statistics.median(seconds) / (iterations + 1),
        "others_cores": others_cores(before, after),
    }


def large_job(job: dict) -> dict:
    """otlabel from nothing but the rows, in memory or in a file: k-means++ on a sample is in the time."""
    import h5py

    from otlabel import BalancedKMeans

    n, d, k = job["size"]
    small = points(*LARGE_WARM_UP, job["seed"])
    small = small if job.get("file") is None else small.astype(np.float16)
    BalancedKMeans(LARGE_WARM_UP[2], max_iter=2, random_state=0).fit(small)
    file, features = job.get("file"), None
    if file is None:
        features = points(n, d, k, job["seed"])
    elif job["write"]:  # a process of its own: what it holds is none of the fit's memory
        with h5py.File(file, "w") as opened:
            opened["features"] = points(n, d, k, job["seed"]).astype(np.float16)
        return {}
    before = time.perf_counter(), others_cpu_seconds()
    limit = None if file is None else 0  # of a file nothing stays in memory
    model = BalancedKMeans(k, max_iter=job["iterations"], random_state=job["seed"], memory_limit=limit)
    model.fit(f"{file}::/features" if features is None else features)
    after = time.perf_counter(), others_cpu_seconds()
    peak, seconds = peak_memory_mb(), after[0] - before[0]
    if features is None:
        with h5py.File(file) as opened:
            features = opened["features"][:]
    return judged(features, model.labels_, k) | {
        "seconds": seconds,
        "seconds_a_step": seconds / (model.n_iter_ + 1),
        "product_seconds": product_seconds(features, model.cluster_centers_),
        "iterations": model.n_iter_,
        "gap": model.gap_,
        "peak_gb": None if peak is None else peak / 1000,
        "data_gb": features.nbytes / 1e9,
        "others_cores": others_cores(before, after),
    }


def product_seconds(x: np.ndarray, centres: np.ndarray) -> float:
    """Of all rows with all centres in float32, block by block, with as many threads as the library likes."""
    factor = np.ascontiguousarray(centres.T, np.float32)
    out = np.empty((BLOCK, len(centres)), np.float32)
    begun = time.perf_counter()
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK].astype(np.float32)
        np.matmul(block, factor, out=out[: len(block)])
    return time.perf_counter() - begun


def judged(x: np.ndarray, labels: np.ndarray, k: int) -> dict:
    """Sizes, and the inertia about the labels' own means, in float64 whatever a solver says of itself."""
    counts = np.bincount(labels, minlength=k)
    sums = np.stack([np.bincount(labels, column, k) for column in x.T], axis=1)
    means = sums / np.maximum(counts, 1)[:, None]
    inertia = sum(
        float(np.square(x[start : start + BLOCK] - means[labels[start : start + BLOCK]]).sum())
        for start in range(0, len(x), BLOCK)
    )
    return {"inertia": inertia, "size_min": int(counts.min()), "size_max": int(counts.max())}


def to_the_end(x: np.ndarray, k: int, seed: int, **options: Any) -> np.ndarray:
    """Equal sizes, from k-means++ until no label changes."""
    from otlabel import BalancedKMeans

    return BalancedKMeans(k, tol=0, max_iter=1000, random_state=seed, **options).fit(x).labels_


def constrained_to_the_end(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The same by k-means-constrained, one start."""
    from k_means_constrained import KMeansConstrained

    bounds = {"size_min": len(x) // k, "size_max": -(-len(x) // k)}
    return KMeansConstrained(k, n_init=1, tol=0, max_iter=1000, random_state=seed, **bounds).fit(x).labels_


def hungarian_to_the_end(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The same by steps of SciPy's linear_sum_assignment, with as many columns as rows."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import kmeans_plusplus

    centres, labels = kmeans_plusplus(x, k, random_state=seed)[0].astype(np.float64), np.full(len(x), -1)
    column_of = np.arange(len(x)) % k
    while True:
        costs = np.square(centres).sum(1) - 2 * (x.astype(np.float64) @ centres.T)
        before, labels = labels, column_of[linear_sum_assignment(costs[:, column_of])[1]]
        if np.array_equal(before, labels):
            return labels
        centres = np.stack([x[labels == one].mean(0, dtype=np.float64) for one in range(k)])


ENDS: dict[str, Callable[..., np.ndarray]] = {
    "otlabel": to_the_end,
    "otlabel, n_init=10": lambda x, k, seed: to_the_end(x, k, seed, n_init=10),
    "otlabel, n_swaps=K": lambda x, k, seed: to_the_end(x, k, seed, n_swaps=k),
    "k-means-constrained": constrained_to_the_end,
    "Hungarian steps": hungarian_to_the_end,
}


def optima_job(job: dict) -> dict:
    """One method from many seeds: what inertia it ends with, and the CPU seconds of a run."""
    (n, d, k), run = job["size"], ENDS[job["method"]]
    run(points(n // 4, d, k, 1), k, 0)
    x = points(n, d, k, 0)
    begun = time.process_time()
    ends = [judged(x, run(x, k, seed), k)["inertia"] for seed in range(job["seeds"])]
    seconds = (time.process_time() - begun) / job["seeds"]
    return {"mean": statistics.mean(ends), "least": min(ends), "most": max(ends), "cpu_seconds": seconds}


JOBS = {"compare": compare_job, "large": large_job, "optima": optima_job}


# ---- the runs ----


def measure(name: str, job: dict, time_limit: float) -> dict:
    """One row; a package that is missing, a limit or a crash is a row as well."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / "bench_balanced_kmeans.py"), "--job", json.dumps(job), str(result)]
        try:
            process = subprocess.run(command, timeout=time_limit, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            row = {"status": f"stopped after {time_limit:g} s"}
        else:
            row = {"status": failure_text(process)} if process.returncode else {"status": "ok"} | read_json(result)
    print(f"{name:26s} {number(row.get('seconds'), '10.3f')}  {row['status']}", flush=True)
    return row


def run_compare(arguments: argparse.Namespace) -> dict:
    """Everybody from the same centres, for as many iterations."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.npy" for number, name in enumerate(FITS)}
        for name, file in files.items():
            job = {"job": "compare", "method": name, "size": parse_size(arguments.size), "labels": str(file)}
            job |= {"seed": arguments.seed, "iterations": arguments.iterations}
            rows[name] = measure(name, job, arguments.time_limit)
        ours, theirs = (files[name] for name in ("otlabel", "k-means-constrained"))
        if ours.exists() and theirs.exists():
            rows["k-means-constrained"]["same_labels"] = float((np.load(ours) == np.load(theirs)).mean())
    return {"size": arguments.size, "iterations": arguments.iterations, "rows": rows}


def run_large(arguments: argparse.Namespace) -> dict:
    """otlabel alone."""
    job = {"job": "large", "size": parse_size(arguments.large_size), "seed": arguments.seed}
    row = measure("large", job | {"iterations": arguments.large_iterations}, arguments.time_limit)
    return {"size": arguments.large_size, "iterations": arguments.large_iterations, "rows": {"otlabel": row}}


def run_file(arguments: argparse.Namespace) -> dict:
    """otlabel alone, from half precision in HDF5."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"job": "large", "size": parse_size(arguments.file_size), "seed": arguments.seed}
        job |= {"file": str(Path(folder) / "features.h5"), "iterations": arguments.file_iterations}
        measure("writing", job | {"write": True}, arguments.time_limit)
        row = measure("file", job | {"write": False}, arguments.time_limit)
    return {"size": arguments.file_size, "iterations": arguments.file_iterations, "rows": {"otlabel": row}}


def run_optima(arguments: argparse.Namespace) -> dict:
    """Everybody to the end, from many seeds, on each of some sizes."""
    rows = {}
    for size in arguments.optima_sizes.split(","):
        job = {"job": "optima", "size": parse_size(size), "seeds": arguments.seeds}
        rows[size] = {name: measure(name, job | {"method": name}, arguments.time_limit) for name in ENDS}
    return {"seeds": arguments.seeds, "rows": rows}


def run_seeds(arguments: argparse.Namespace) -> dict:
    """The two with exact sizes from the same centres, on other rows for each seed."""
    rows: dict[str, list[dict]] = {name: [] for name in EXACT_FITS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.compare_seeds):
            for name, of_seeds in rows.items():
                job = {"job": "compare", "method": name, "size": parse_size(arguments.size), "seed": seed}
                job |= {"iterations": arguments.iterations, "labels": str(Path(folder) / "labels.npy")}
                of_seeds.append(measure(f"{name}, seed {seed}", job, arguments.time_limit))
    return {"size": arguments.size, "iterations": arguments.iterations, "rows": rows}


RUNS = {"compare": run_compare, "seeds": run_seeds, "large": run_large, "file": run_file, "optima": run_optima}


# ---- the report ----


HEADER = ("method", "seconds", "a step", "x otlabel", "inertia", "sizes", "labels as otlabel", "others' CPU", "status")
LARGE_HEADER = (
    "iterations",
    "seconds",
    "a step",
    "its product",
    "peak GB",
    "of it the rows",
    "inertia",
    "gap",
    "sizes",
)
LARGE_HEADER += ("others' CPU", "status")
OPTIMA_HEADER = ("method", "mean", "least", "most", "CPU seconds a seed", "status")


LARGE = (
    (
        "large", "in memory", f"at most {LONGEST:g} s, a step at most {PRODUCTS:g} times its product",
        lambda row: row["seconds"] <= LONGEST and row["seconds_a_step"] <= PRODUCTS * row["product_seconds"],
    ),
    ("file", "float16 in HDF5, memory_limit=0", f"less than {MOST_GB:g} GB", lambda row: row["peak_gb"] < MOST_GB),
)  # fmt: skip


def to_markdown(parts: dict[str, dict]) -> str:
    """The page."""
    lines = ["# Balanced k-means", ""]
    if "compare" in parts:
        part = parts["compare"]
        ours = part["rows"]["otlabel"]
        lines += [
            f"## {part['size']} (rows x features x clusters), {part['iterations']} iterations from the same centres",
            "",
            verdict(ours, part["rows"]["k-means-constrained"]),
            "",
            *table(HEADER, [_cells(name, row, ours) for name, row in part["rows"].items()]),
            "",
        ]
    if "seeds" in parts:
        lines += [*_of_seeds(parts["seeds"]), ""]
    for name, where, target, is_met in LARGE:
        if name not in parts:
            continue
        part = parts[name]
        row = part["rows"]["otlabel"]
        met = row["status"] == "ok" and is_met(row)
        lines += [
            f"## {part['size']}, {where}, at most {part['iterations']} iterations, otlabel alone",
            "",
            f"Target: {target}. {'Met' if met else '**Not met**'}.",
            "",
            *table(LARGE_HEADER, [_large_cells(row)]),
            "",
        ]
    if "optima" in parts:
        part = parts["optima"]
        lines += [f"## Until no label changes, {part['seeds']} seeds", ""]
        for size, rows in part["rows"].items():
            best = min(row["least"] for row in rows.values() if row["status"] == "ok")
            lines += [f"{size}: inertia above the least that anybody found ({best:.8g})", ""]
            lines += [*table(OPTIMA_HEADER, [_optima_cells(name, row, best) for name, row in rows.items()]), ""]
    lines += [*NOTES, "", *(f"- **{name}**: {machine_line(part['machine'])}" for name, part in parts.items())]
    return "\n".join(lines) + "\n"


NOTES = [
    "- **seconds**: one fit, the median of three below 20 s. **a step**: that over the number of assignment steps, "
    "which is one more than iterations: k-means-constrained and otlabel both label once more for the last centres.",
    "- **inertia** is about the means of the labels, in float64, recomputed here for everybody.",
    "- **labels as otlabel**: k-means-constrained's steps minimise the sum of distances, not of squares, rounded to "
    "thousandths; so the two take different ways from the first step on.",
    "- **x otlabel**: seconds over otlabel's. Free sizes solve an easier problem: they show what balance costs.",
    "- **Until no label changes**: from k-means++ with the same seeds, which each package draws with in its own way. "
    "otlabel and Hungarian steps take the same steps; k-means-constrained's lower the sum of distances, rounded.",
    "- **its product**: seconds of all rows times all centres in float32, block by block, in the same process.",
    "- **peak GB**: the whole process, interpreter, imports and the rows in memory included.",
    "- **others' CPU**: cores kept busy by other processes meanwhile. Above about 0.2 do not trust the row.",
]


def verdict(ours: dict, theirs: dict) -> str:
    """The targets in a sentence."""
    target = f"Target: at least {RATIO:g} times quicker than k-means-constrained, inertia no worse."
    failed = next((row["status"] for row in (ours, theirs) if row["status"] != "ok"), None)
    if failed is not None:
        return f"{target} Not compared: {failed}."
    ratio, excess = theirs["seconds"] / ours["seconds"], ours["inertia"] / theirs["inertia"] - 1
    met = ratio >= RATIO and excess <= 1e-6
    return f"{target} {'Met' if met else '**Not met**'}: {ratio:.0f} times, inertia {excess:+.1e} relative to theirs."


def _cells(name: str, row: dict, ours: dict) -> tuple[str, ...]:
    if row["status"] != "ok":
        return name, *[""] * 7, row["status"]
    ratio = row["seconds"] / ours["seconds"] if ours["status"] == "ok" else None
    same = number(row.get("same_labels"), ".2%")
    figures = number(row["seconds"], ".3g"), number(row["seconds_a_step"], ".3g"), number(ratio, ".1f")
    sizes = f"{row['size_min']}-{row['size_max']}"
    return name, *figures, f"{row['inertia']:.8g}", sizes, same, number(row["others_cores"], ".1f"), "ok"


def _of_seeds(part: dict) -> Iterator[str]:
    """How the inertia of equal steps compares, seed by seed."""
    pairs = list(zip(*(part["rows"][name] for name in EXACT_FITS), strict=True))
    yield f"{part['size']}, {part['iterations']} iterations, rows and centres of {len(pairs)} seeds:"
    pairs = [pair for pair in pairs if all(row["status"] == "ok" for row in pair)]
    if not pairs:
        yield "not compared."
        return
    excess = np.array([ours["inertia"] / theirs["inertia"] - 1 for ours, theirs in pairs])
    ratios = np.array([theirs["seconds"] / ours["seconds"] for ours, theirs in pairs])
    yield f"otlabel's inertia relative to that of k-means-constrained is {excess.mean():+.1e} in the mean"
    yield f"({excess.min():+.1e} to {excess.max():+.1e}, lower for {int((excess < 0).sum())} of {len(pairs)}),"
    yield f"and it is {ratios.min():.0f} to {ratios.max():.0f} times as quick."


def _large_cells(row: dict) -> tuple[str, ...]:
    if row["status"] != "ok":
        return *[""] * 10, row["status"]
    seconds = (number(row[key], ".3g") for key in ("seconds", "seconds_a_step", "product_seconds"))
    figures = str(row["iterations"]), *seconds
    memory = number(row["peak_gb"], ".2f"), number(row["data_gb"], ".2g")
    found = f"{row['inertia']:.8g}", number(row["gap"], ".1e"), f"{row['size_min']}-{row['size_max']}"
    return *figures, *memory, *found, number(row["others_cores"], ".1f"), "ok"


def _optima_cells(name: str, row: dict, best: float) -> tuple[str, ...]:
    if row["status"] != "ok":
        return name, *[""] * 4, row["status"]
    above = [f"{row[key] / best - 1:.2%}" for key in ("mean", "least", "most")]
    return name, *above, number(row["cpu_seconds"], ".3g"), "ok"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    return [line(header), line("---" for _ in header), *map(line, rows)]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default=",".join(RUNS), help="comma-separated; '' only writes the page anew")
    parser.add_argument("--size", default="20000x32x100", help="rows x features x clusters, compared")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--compare-seeds", type=int, default=10)
    parser.add_argument("--large-size", default="1000000x64x1000")
    parser.add_argument("--large-iterations", type=int, default=10, help="at most")
    parser.add_argument("--file-size", default="10000000x32x1000", help="in HDF5, as float16")
    parser.add_argument("--file-iterations", type=int, default=3, help="at most")
    parser.add_argument("--optima-sizes", default="2000x8x20,2000x32x50", help="until no label changes")
    parser.add_argument("--seeds", type=int, default=20, help="until no label changes")
    parser.add_argument("--seed", type=int, default=0, help="of the rows, and of k-means++")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds for each process")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for the page")
    parser.add_argument("--job", nargs=2, metavar=("JSON", "RESULT"), help="one measurement; for this script's own use")
    return parser.parse_args()


def main() -> None:
    """Make the runs asked for and bring the page up to date after each; what is not run again stays in it."""
    arguments = parse_arguments()
    if arguments.job:
        job, result = json.loads(arguments.job[0]), Path(arguments.job[1])
        try:
            row: dict[str, Any] = JOBS[job["job"]](job)
        except ModuleNotFoundError as error:
            sys.exit(f"not installed: pip install {INSTALLED_AS.get(error.name or '', error.name)}")
        write_json(result, row)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = arguments.output / "balanced_kmeans"
    parts = read_json(report.with_suffix(".json"))
    for name in filter(None, arguments.runs.split(",")):
        parts[name] = {"machine": describe_machine(PACKAGES), "seed": arguments.seed} | RUNS[name](arguments)
        write_json(report.with_suffix(".json"), parts)
    report.with_suffix(".md").write_text(to_markdown(parts))
    print(f"written: {report.with_suffix('.md')}")


if __name__ == "__main__":
    main()
