"""Compare otlabel with other solvers: same scores, same tolerance, same run, each solver in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from machine import describe_machine, failure_text, line, machine_line, number, read_json, write_json
from peers import METHODS, Settings
from synthetic import default_cache, parse_size

HERE = Path(__file__).resolve().parent
SIZES = [(n, k) for n in (10_000, 100_000) for k in (100, 300, 1000)]
QUICK_SIZES = [(10_000, 100)]
PACKAGES = ("otlabel", "numpy", "scipy", "numba", "torch", "pot", "jax", "ott-jax")


def run_method(name: str, scores: Path, settings: Settings, *, repeats: int, time_limit: float) -> dict:
    """One row of the table; a limit, a crash or a missing package is a row as well."""
    job = json.dumps({"method": name, "scores": str(scores), "settings": asdict(settings), "repeats": repeats})
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / "run_one.py"), job, str(result)]
        try:
            process = subprocess.run(command, timeout=time_limit, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            now = time.time()
            started = read_json(result).get("started", now)
            return {"status": "time limit", "failure": f"stopped after {time_limit:g} s", "seconds_over": now - started}
        if process.returncode == 0:
            return read_json(result)
        return {"status": "failed", "failure": failure_text(process)}


def fill_gaps(rows: list[dict]) -> None:
    """Give every row with exact class sizes its distance from the certified bound for the same scores."""
    for row in rows:
        bounds = [
            other["bound"] for other in rows if other["method"] == "otlabel-exact" and other.get("bound") is not None
        ]
        if bounds and row.get("counts_exact"):
            row["gap"] = bounds[0] - row["value"]


def to_markdown(report: dict) -> str:
    """The report as a page: one table for each size, then what each solver's row means."""
    settings = report["settings"]
    lines = [
        "# Solvers compared",
        "",
        machine_line(report["machine"]),
        "",
        f"Log-softmax scores in float32 with Zipf-distributed clusters, epsilon = {settings['epsilon']:g}, class error "
        f"(L1) at most {settings['tol']:g}, at most {settings['max_iterations']} iterations. Exact solvers give each "
        "class floor or ceil of N / K samples.",
    ]
    for size in dict.fromkeys((row["n"], row["k"]) for row in report["rows"]):
        rows = [row for row in report["rows"] if (row["n"], row["k"]) == size]
        lines += ["", f"## N = {size[0]:,}, K = {size[1]:,}", "", *_table(rows)]
    lines += ["", "## Notes", "", *NOTES]
    lines += [f"- **{name}**: {METHODS[name].note}." for name in dict.fromkeys(row["method"] for row in report["rows"])]
    return "\n".join(lines) + "\n"


NOTES = [
    "- **x otlabel**: time divided by that of otlabel-exact (exact solvers) or otlabel-entropic (all others).",
    "- **seconds**: from scores to hard labels, after a warm-up on a small problem; compilation has its own column.",
    "- **class error**: L1 distance of the plan's class masses (exact solvers: of the class sizes) from what was asked "
    "for, recomputed in float64 from the answer, not taken from the solver.",
    "- **sizes**: smallest and largest class among the hard labels. **value**: mean score of the hard labels.",
    "- **gap**: certified bound of otlabel-exact minus value; only for labels whose class sizes are exactly right.",
    "- **memory**: peak of the process during the first timed run, above its peak once the scores were loaded and the "
    "warm-up done; a solver's own copies of the scores count.",
    "- **others' CPU**: cores kept busy by other processes meanwhile. Above about 0.2 do not trust the row: solvers on "
    "two or more threads lose far more than that share, because each of their steps waits for the slowest thread.",
    "- **time limit**: covers the whole process; `>` gives how long the timed call had been running by then.",
]

HEADER = (
    "method",
    "seconds",
    "x otlabel",
    "compile s",
    "iterations",
    "class error",
    "sizes",
    "value",
    "gap",
    "memory MB",
    "others' CPU",
    "status",
)


def _table(rows: list[dict]) -> list[str]:
    seconds = {row["method"]: row.get("seconds") for row in rows}
    lines = [line(HEADER), line("---" if name in ("method", "status") else "---:" for name in HEADER)]
    for row in rows:
        ours = seconds.get("otlabel-exact" if METHODS[row["method"]].exact else "otlabel-entropic")
        over = row.get("seconds_over")
        spent, mark = (row.get("seconds"), "") if over is None else (over, "> ")
        sizes = f"{row['size_min']}-{row['size_max']}" if "size_min" in row else ""
        status = row["status"] + (f": {row['failure']}" if row.get("failure") else "")
        lines.append(
            line(
                (
                    row["method"],
                    mark + number(spent, ".3g") if spent else "",
                    mark + number(spent / ours, ".1f") if spent and ours else "",
                    number(row.get("compile_seconds"), ".2g"),
                    number(row.get("iterations"), "d"),
                    number(row.get("class_error"), ".1e"),
                    sizes,
                    number(row.get("value"), ".6f"),
                    number(row.get("gap"), ".1e"),
                    number(row.get("peak_mb"), ".0f"),
                    number(row.get("others_cores"), ".1f"),
                    status.replace("|", "\\|"),
                )
            )
        )
    return lines


def save(report: dict, out: Path) -> None:
    """Write solvers.json and solvers.md."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "solvers.json", report)
    (out / "solvers.md").write_text(to_markdown(report))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only N=10000, K=100")
    parser.add_argument("--sizes", help="comma-separated, such as 10000x100,100000x300")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=3, help="runs under 5 s are repeated; the median counts")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for each method's process")
    parser.add_argument("--epsilon", type=float, default=Settings.epsilon)
    parser.add_argument("--tol", type=float, default=Settings.tol, help="L1 error of the class masses")
    parser.add_argument("--max-iterations", type=int, default=Settings.max_iterations)
    parser.add_argument("--seed", type=int, default=0, help="of the scores")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for the score matrices")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    unknown = set(arguments.methods.split(",")) - set(METHODS)
    if unknown:
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    return arguments


def main() -> None:
    """Run every method on every size and keep the tables up to date after each row."""
    arguments = parse_arguments()
    settings = Settings(epsilon=arguments.epsilon, tol=arguments.tol, max_iterations=arguments.max_iterations)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if arguments.sizes:
        sizes = [parse_size(text) for text in arguments.sizes.split(",")]
    limits = {"repeats": arguments.repeats, "time_limit": arguments.time_limit}
    report = {"machine": describe_machine(PACKAGES), "settings": asdict(settings) | limits | {"seed": arguments.seed}}
    finished: list[dict] = []
    for n, k in sizes:
        # In another process: on Linux a child starts with its parent's memory as its peak, so this one stays small.
        make = [sys.executable, str(HERE / "synthetic.py"), f"{n}x{k}"]
        make += ["--seed", str(arguments.seed), "--cache", str(arguments.cache)]
        scores = Path(subprocess.run(make, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        rows: list[dict] = []
        for name in arguments.methods.split(","):
            rows.append({"method": name, "n": n, "k": k} | run_method(name, scores, settings, **limits))
            print(f"{n} x {k}  {name:18s} {number(rows[-1].get('seconds'), '8.3f')}  {rows[-1]['status']}", flush=True)
            fill_gaps(rows)
            save(report | {"rows": finished + rows}, arguments.out)
        finished += rows


if __name__ == "__main__":
    main()
