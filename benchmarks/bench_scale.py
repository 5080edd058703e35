"""Beyond memory, at ImageNet's size: time, peak memory and passes, each measurement in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, failure_text, machine_line, number, read_json, table, write_json
from scale_one import EPSILON, TOL
from synthetic import default_cache, parse_size

HERE = Path(__file__).resolve().parent
PACKAGES = ("otlabel", "numpy", "scipy", "numba", "h5py", "threadpoolctl")
WARM_UP = (20_000, 600)  # rows, classes: large enough that every compiled function is called
PART_BYTES = 2e9  # of a matrix in memory that a single pass is timed on
PROVEN = 1e-9  # relative gap that is rounding error
SIZES = {"size": "1281167x3000", "factored_size": "1281167x128x1000"}
SIZES |= {"growth_sizes": "10000,31623,100000,316228,1000000", "growth_classes": 1000}
QUICK = {"size": "20000x300", "factored_size": "20000x128x300", "growth_sizes": "3162,10000,31623"}
QUICK |= {"growth_classes": 100}


# ---------------------------------------------------------------------------- the runs and what they must reach


class NoDataError(Exception):
    """The scores could not be written."""


class Bench:
    """The data on the disk, made when first asked for, and processes that measure."""

    def __init__(self, arguments: argparse.Namespace, earlier: dict, folder: Path) -> None:
        self.arguments, self.earlier, self.folder = arguments, earlier, folder
        self.files: dict[tuple[str, str], str] = {}

    def data(self, form: str, size: str) -> str:
        """The file of such scores or features; in another process, since a child starts with its parent's peak."""
        if (form, size) in self.files:
            return self.files[form, size]
        command = [sys.executable, str(HERE / "synthetic.py"), size, "--form", form, "--cache"]
        command += [str(self.arguments.cache), "--seed", str(self.arguments.seed)]
        command += ["--fletcher32"] if self.arguments.fletcher32 else []
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise NoDataError(failure_text(process))
        self.files[form, size] = process.stdout.strip()
        return self.files[form, size]

    def measure(self, name: str, **job: Any) -> dict:
        """One row; a limit, a crash or a missing feature is a row as well."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "scale_one.py"), json.dumps(job), str(result)]
        limit = self.arguments.time_limit
        try:
            process = subprocess.run(command, timeout=limit, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            row = {"status": f"stopped after {limit:g} s"}
        else:
            row = {"status": "ok"} | read_json(result) if process.returncode == 0 else {"status": failure_text(process)}
        print(f"{name:24s} {number(row.get('seconds'), '10.3f')}  {row['status']}", flush=True)
        return row

    def solve(self, name: str, kind: str, path: str, rows: int | None = None, **options: Any) -> dict:
        """A row of labels made."""
        d = parse_size(self.arguments.factored_size)[1]
        n, k = WARM_UP
        warm_up = self.data("features", f"{n}x{d}x{k}") if kind == "features" else self.data("hdf5", f"{n}x{k}")
        labels = str(self.folder / f"{name}.npy")
        job = {"job": "solve", "kind": kind, "path": path, "warm_up": warm_up, "rows": rows, "labels": labels}
        return self.measure(name, **job, options=options)

    def scores(self) -> str:
        """The file of scores that most runs use."""
        return self.data("hdf5", self.arguments.size)


def check(what: str, target: str, rows: list[dict], judge: Callable[[], tuple[str, bool]]) -> dict:
    """One line of the first table; without the rows that it needs a target is missed, and the line says why."""
    failed = [row["status"] for row in rows if row["status"] != "ok"]
    reached, met = (failed[0], False) if failed else judge()
    return {"what": what, "target": target, "reached": reached, "met": bool(met)}


def at_most(what: str, row: dict, key: str, limit: float, unit: str, text: str | None = None) -> dict:
    """A figure of a row that must not pass a limit."""
    form = "d" if key == "passes" else ".3g"
    told = text or f"at most {limit:g} {unit}".strip()
    return check(what, told, [row], lambda: (f"{row[key]:{form}} {unit}".strip(), row[key] <= limit))


def exact(what: str, row: dict) -> dict:
    """Class sizes as asked for, and labels that no others beat."""

    def judge() -> tuple[str, bool]:
        sizes = f"{row['size_min']} to {row['size_max']}"
        return f"{sizes}, gap {row['gap']:.1e}", row["counts_exact"] and row["gap"] <= PROVEN * max(
            1, abs(row["value"])
        )

    return check(f"{what}: sizes exact, proven", "gap 0 to rounding", [row], judge)


def run_memory(bench: Bench) -> dict:
    """Exact labels from an array."""
    n, k = parse_size(bench.arguments.size)
    row = bench.solve("memory", "array", bench.scores())
    limit = 2 * n * k / 1e9 + 2
    checks = [
        at_most("exact labels in memory: time", row, "seconds", 90, "s"),
        at_most("exact labels in memory: peak", row, "peak_gb", limit, "GB", f"matrix + 2 GB = {limit:.3g} GB"),
        at_most("exact labels in memory: passes", row, "passes", 20, "passes"),
        exact("exact labels in memory", row),
    ]
    return {"size": bench.arguments.size, "rows": {"memory": row}, "checks": checks}


def run_hdf5(bench: Bench) -> dict:
    """Exact labels from the file, of which memory holds no copy."""
    row = bench.solve("hdf5", "file", bench.scores(), memory_limit=0)
    before = bench.earlier.get("memory", {})
    same_data = (before.get("size"), before.get("seed")) == (bench.arguments.size, bench.arguments.seed)
    other = before["rows"]["memory"] if same_data else {"status": "not compared: no run `memory` of this size"}

    def judge() -> tuple[str, bool]:
        if row["labels_sha256"] == other["labels_sha256"]:
            return f"the same, those of {before['machine']['date']}", True
        files = [bench.folder / f"{name}.npy" for name in ("memory", "hdf5")]
        different = "" if not files[0].exists() else f" of {np.count_nonzero(np.load(files[0]) != np.load(files[1])):,}"
        return f"not the same{different}", False

    checks = [
        at_most("exact labels from HDF5: time", row, "seconds", 180, "s"),
        at_most("exact labels from HDF5: peak", row, "peak_gb", 3, "GB"),
        check("exact labels from HDF5: labels", "those of `memory`", [row, other], judge),
    ]
    return {"size": bench.arguments.size, "rows": {"hdf5": row}, "checks": checks}


def run_entropic(bench: Bench) -> dict:
    """The plan's best classes, from an array."""
    row = bench.solve("entropic", "array", bench.scores(), rounding="argmax")
    checks = [
        at_most("entropic plan in memory: time", row, "seconds", 40, "s"),
        at_most("entropic plan in memory: passes", row, "passes", 12, "passes"),
        at_most("entropic plan in memory: class error", row, "class_error", TOL, ""),
    ]
    return {"size": bench.arguments.size, "rows": {"entropic": row}, "checks": checks}


def run_factored(bench: Bench) -> dict:
    """Exact labels from features and a linear head, against the matrix products alone."""
    path = bench.data("features", bench.arguments.factored_size)
    products = bench.measure("products", job="products", path=path)
    rows = {
        "factored, streamed": bench.solve("factored, streamed", "features", path, memory_limit=0),
        "factored": bench.solve("factored", "features", path),
    }
    checks = []
    for name, row in rows.items():

        def judge(row: dict = row) -> tuple[str, bool]:
            alone = row["passes"] * products["seconds"]
            ratio = row["seconds"] / alone
            return f"{ratio:.2f} x ({row['seconds']:.3g} s; {row['passes']} products take {alone:.3g} s)", ratio <= 2

        checks += [
            at_most(f"{name}: peak", row, "peak_gb", 3, "GB"),
            check(f"{name}: time over products alone", "at most 2 x", [row, products], judge),
            exact(name, row),
        ]
    return {"size": bench.arguments.factored_size, "rows": rows | {"products": products}, "checks": checks}


def run_growth(bench: Bench) -> dict:
    """Exact labels of more and more rows of one file, in memory."""
    sizes = sorted(int(n) for n in bench.arguments.growth_sizes.split(","))
    k = bench.arguments.growth_classes
    path = bench.data("hdf5", f"{sizes[-1]}x{k}")
    rows = {f"growth {n}": bench.solve(f"growth {n}", "array", path, rows=n) for n in sizes}

    def judge() -> tuple[str, bool]:
        slope = np.polyfit(np.log(sizes), np.log([row["seconds"] for row in rows.values()]), 1)[0]
        return f"{slope:.3f}", abs(slope - 1) <= 0.1

    checks = [check("growth with N: slope of log time", "1.0 ± 0.1", list(rows.values()), judge)]
    return {"size": f"{sizes[0]} to {sizes[-1]} x {k}", "rows": rows, "checks": checks}


def run_streaming(bench: Bench) -> dict:
    """A streamed pass against reading and sweeping one after the other."""
    path = bench.scores()
    n, k = parse_size(bench.arguments.size)
    part = max(1, min(n, int(PART_BYTES / (2 * k))))
    rows = {
        "reading alone": bench.measure("reading alone", job="read", path=path),
        "sweep in memory": bench.measure("sweep in memory", job="sweep", kind="array", path=path, rows=part),
        "sweep streamed": bench.measure("sweep streamed", job="sweep", kind="file", path=path),
    }
    if rows["sweep in memory"]["status"] == "ok":
        rows["sweep in memory"]["seconds"] *= n / part

    def judge() -> tuple[str, bool]:
        reading, sweeping, streamed = (row["seconds"] for row in rows.values())
        ratio = (reading + sweeping) / streamed
        return f"{ratio:.2f} = ({reading:.3g} s + {sweeping:.3g} s) / {streamed:.3g} s", ratio >= 0.7

    checks = [check("streaming: (read + sweep) / streamed pass", "at least 0.7", list(rows.values()), judge)]
    return {"size": bench.arguments.size, "rows": rows, "checks": checks}


RUNS = {
    "memory": run_memory,
    "hdf5": run_hdf5,
    "entropic": run_entropic,
    "factored": run_factored,
    "growth": run_growth,
    "streaming": run_streaming,
}


# ------------------------------------------------------------------------------------------------- the report


def to_markdown(parts: dict[str, dict], plot: bool) -> str:
    """The page: targets first, then what every process measured."""
    lines = ["# Beyond memory, at ImageNet's size", "", f"Scores in float16, epsilon {EPSILON:g}, tol {TOL:g}.", ""]
    lines += table(
        ("what", "N x K", "target", "reached", "met"),
        [
            (check["what"], part["size"], check["target"], check["reached"], "yes" if check["met"] else "**no**")
            for part in parts.values()
            for check in part["checks"]
        ],
    )
    rows = {name: row for part in parts.values() for name, row in part["rows"].items()}
    lines += ["", "## Labels made", "", *table(SOLVE_HEADER, [_solve_cells(*item) for item in _of(rows, "passes")])]
    stages = {name: row["stages"] for name, row in _of(rows, "passes")}
    names = sorted(dict.fromkeys(stage for spent in stages.values() for stage in spent), key="rest".__eq__)
    cells = [(run, *(number(spent.get(name), ".3g") for name in names)) for run, spent in stages.items()]
    lines += ["", "## Seconds by stage", "", *table(("run", *names), cells)]
    if "growth" in parts:
        growth = [row for _, row in _of(parts["growth"]["rows"], "passes")]
        lines += ["", "## Growth with N", "", *table(GROWTH_HEADER, [_growth_cells(row) for row in growth])]
        lines += ["", "![Seconds against number of samples](growth.png)"] if plot else []
    passes = [(run, row) for run, row in rows.items() if row["status"] == "ok" and "passes" not in row]
    lines += ["", "## Single passes", "", *table(PASS_HEADER, [_pass_cells(*item) for item in passes])]
    failed = [f"- **{run}**: {row['status']}" for run, row in rows.items() if row["status"] != "ok"]
    lines += ["", "## Failed", "", *failed] if failed else []
    lines += ["", "## Notes", "", *NOTES, "", "## When and where", ""]
    lines += [f"- **{name}**: {machine_line(part['machine'])}" for name, part in parts.items()]
    return "\n".join(lines) + "\n"


NOTES = [
    "- **peak**: resident memory of the whole process at its highest up to the end of the first solve, interpreter, "
    "imports, warm-up and scores included. **read**: from the file during one solve.",
    "- **file cached**: how much of the file was in the page cache; every file was read through once just before.",
    "- **Seconds by stage**, of the last solve: from the end of the pass before to the end of a stage's own passes.",
    "- **Single passes**: the median of three after a first one. The sweep in memory runs on what 2 GB hold and is "
    "scaled to all rows. `products` are those of one pass, in float32, in the faster way to use all processors.",
    f"- **Targets** are for {SIZES['size']}, {SIZES['factored_size']} (rows x features x classes) and growth to a "
    "million rows of 1000 classes; at other sizes they say little.",
    "- **others' CPU**: cores kept busy by other processes meanwhile. Above about 0.2 do not trust the row.",
]
SOLVE_HEADER = ("run", "N x K", "seconds", "peak GB", "passes", "sizes", "gap", "class error", "plan", "read GB")
SOLVE_HEADER += ("file cached", "others' CPU")
GROWTH_HEADER = ("N", "seconds", "passes", "ns a score")
PASS_HEADER = ("what", "seconds", "the first", "file cached", "others' CPU", "remark")


def _of(rows: dict[str, dict], key: str) -> list[tuple[str, dict]]:
    return [(name, row) for name, row in rows.items() if key in row]


def _solve_cells(name: str, row: dict) -> tuple[str, ...]:
    read = None if row["bytes_read"] is None else row["bytes_read"] / 1e9
    return (
        *(name, f"{row['n']:,} x {row['k']:,}", number(row["seconds"], ".3g"), number(row["peak_gb"], ".2f")),
        *(str(row["passes"]), f"{row['size_min']}-{row['size_max']}", number(row["gap"], ".1e")),
        *(number(row["class_error"], ".1e"), row["plan"], number(read, ".3g"), number(row["cached"], ".0%")),
        number(row["others_cores"], ".1f"),
    )


def _growth_cells(row: dict) -> tuple[str, ...]:
    n, seconds = row["n"], row["seconds"]
    return f"{n:,}", number(seconds, ".3g"), str(row["passes"]), number(1e9 * seconds / (n * row["k"]), ".2f")


def _pass_cells(name: str, row: dict) -> tuple[str, ...]:
    remark = "; ".join(f"{way}: {seconds:.3g} s" for way, seconds in row.get("ways", {}).items())
    figures = number(row["seconds"], ".3g"), number(row.get("first_seconds"), ".3g"), number(row.get("cached"), ".0%")
    return name, *figures, number(row["others_cores"], ".1f"), remark


def draw_growth(part: dict, path: Path) -> None:
    """Time against rows on two logarithmic axes, beside a line of slope one."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        path.unlink(missing_ok=True)  # an earlier plot would belong to other figures
        print("matplotlib is not installed, so there is no growth.png; --runs '' draws it from scale.json later")
        return
    rows = [row for _, row in _of(part["rows"], "seconds")]
    n, seconds = np.array([row["n"] for row in rows]), np.array([row["seconds"] for row in rows])
    if not len(n):
        return
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    reference = n * np.exp(np.mean(np.log(seconds / n)))
    axes.loglog(n, reference, color="#8a8a8a", linestyle=(0, (4, 3)), linewidth=1.2, label="slope 1")
    axes.loglog(n, seconds, color="#1f5f8b", marker="o", linewidth=2, label="otlabel, exact labels")
    for x, y in zip(n, seconds, strict=True):
        axes.annotate(f"{y:.3g} s", (x, y), textcoords="offset points", xytext=(-6, 7), ha="right", size=9)
    axes.set(xlabel="samples N", ylabel="seconds", title=f"Exact labels of N x {rows[0]['k']:,} scores in memory")
    axes.set_xticks(n, [f"{value:,}" for value in n])
    axes.xaxis.minorticks_off()
    axes.set_xlim(n[0] / 2.2, n[-1] * 1.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def save(parts: dict[str, dict], output: Path) -> None:
    """Write scale.json and scale.md."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "scale.json", parts)
    (output / "scale.md").write_text(to_markdown(parts, (output / "growth.png").exists()))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default=",".join(RUNS), help="comma-separated; '' only writes the report anew")
    parser.add_argument("--quick", action="store_true", help="small sizes; the report goes to the cache folder")
    parser.add_argument("--size", help="rows x classes")
    parser.add_argument("--factored-size", help="rows x length of features x classes")
    parser.add_argument("--growth-sizes", help="comma-separated numbers of rows")
    parser.add_argument("--growth-classes", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the scores")
    parser.add_argument("--fletcher32", action="store_true", help="checksums in the HDF5 file of the scores")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds for each process")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for the data, 11 GB in full size")
    parser.add_argument("--output", type=Path, help="folder for the report (default: results beside this file)")
    arguments = parser.parse_args()
    for name, value in (SIZES | QUICK if arguments.quick else SIZES).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.output is None:
        arguments.output = arguments.cache / "quick-results" if arguments.quick else HERE / "results"
    arguments.runs = [name for name in arguments.runs.split(",") if name]
    unknown = set(arguments.runs) - set(RUNS)
    if unknown:
        parser.error(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    return arguments


def main() -> None:
    """Make the runs asked for and bring the report up to date after each; what is not run again stays in it."""
    arguments = parse_arguments()
    parts = read_json(arguments.output / "scale.json")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, parts, Path(folder))
        for name in (name for name in RUNS if name in arguments.runs):
            about = {"machine": describe_machine(PACKAGES), "seed": arguments.seed, "fletcher32": arguments.fletcher32}
            try:
                parts[name] = about | RUNS[name](bench)
            except NoDataError as error:
                missed = {"what": name, "target": "", "reached": f"no data: {error}", "met": False}
                parts[name] = about | {"size": "", "rows": {}, "checks": [missed]}
                print(f"{name:24s} no data: {error}")
            save({name: parts[name] for name in RUNS if name in parts}, arguments.output)
    if "growth" in parts and ("growth" in arguments.runs or not arguments.runs):
        draw_growth(parts["growth"], arguments.output / "growth.png")
    save({name: parts[name] for name in RUNS if name in parts}, arguments.output)
    print(f"written: {arguments.output / 'scale.md'}")


if __name__ == "__main__":
    main()
