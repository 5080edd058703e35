"""Random problems of 22 families under every rule on class sizes, against independent oracles; and time outliers.

    python benchmarks/bench_families.py                       # 20,000 small problems, then times at larger sizes
    python benchmarks/bench_families.py --problems 500 --sizes
    python benchmarks/bench_families.py --families tiny,huge --rules kl --seed 7

Problems are those of tests/families.py, answers are judged by tests/verdicts.py: every seventh problem is solved by
HiGHS as well.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import describe_machine, machine_line, table, write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import FAMILIES, RULES, draw, draw_large  # noqa: E402
from synthetic import parse_size  # noqa: E402
from verdicts import Finding, check, solve  # noqa: E402

PACKAGES = ("otlabel", "numpy", "scipy", "torch")
SIZES = ("25000x20", "5000x200", "1500x1500")
EXTRAS = ({}, {"abstain": 0.3}, {"weigh": "whole"})  # beside the rule, of problems that are timed
OUTLIER = 10.0  # times the median time of the size
RETRIES = 3  # of what seems an outlier: machines have other work to do


class Cell(NamedTuple):
    """All problems of one family and rule."""

    findings: list[Finding]
    wrong: list[str]


def run_small(arguments: argparse.Namespace) -> tuple[dict[tuple[str, str], Cell], float]:
    """Small problems of every family and rule in turn, and their usual time."""
    cells: dict[tuple[str, str], Cell] = defaultdict(lambda: Cell([], []))
    kinds = itertools.cycle(itertools.product(arguments.families, arguments.rules))
    check(draw("gaussian", "equal", 0))  # compiles
    for number in range(arguments.problems):
        family, rule = next(kinds)
        seed = arguments.seed + number // (len(arguments.families) * len(arguments.rules))
        drawn = draw(family, rule, seed, arguments.max_rows, arguments.max_classes)
        finding = check(drawn)
        cell = cells[family, rule]
        cell.findings.append(finding)
        if finding.wrong:
            cell.wrong.append(f"{drawn.name}: {'; '.join(finding.wrong)}")
            print(cell.wrong[-1], flush=True)
    usual = float(np.median([finding.seconds for cell in cells.values() for finding in cell.findings]))
    return cells, usual


def small_table(cells: dict[tuple[str, str], Cell], usual: float) -> list[str]:
    """One line for each family and rule."""
    header, rows = ["family", "rule", "problems", "wrong", "worst relative difference", "slowest / usual"], []
    for (family, rule), (findings, wrong) in sorted(cells.items()):
        worst, slowest = max(f.relative for f in findings), max(f.seconds for f in findings)
        rows.append([family, rule, f"{len(findings)}", f"{len(wrong)}", f"{worst:.1e}", f"{slowest / usual:.1f}"])
    return table(header, rows)


def run_large(arguments: argparse.Namespace, size: tuple[int, int]) -> list[dict]:
    """The time of every family under every rule at one size, least of a few where it stands out."""
    found = []
    for family, rule, extra in itertools.product(arguments.families, arguments.rules, EXTRAS):
        _, error, _, seconds = solve(draw_large(family, rule, arguments.seed, *size, **extra))
        found.append({"family": family, "rule": rule, **extra, "seconds": seconds, "error": str(error or "")})
    usual = float(np.median([row["seconds"] for row in found]))
    for row in found:
        if row["seconds"] > OUTLIER * usual:
            extra = {key: row[key] for key in ("abstain", "weigh") if key in row}
            drawn = draw_large(row["family"], row["rule"], arguments.seed, *size, **extra)
            row["seconds"] = min([row["seconds"], *(solve(drawn)[3] for _ in range(RETRIES))])
        row["over_usual"] = row["seconds"] / usual
    return found


def main() -> None:
    """Both parts, as tables; exits with 1 where anything is wrong or stands out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20_000, help="small problems (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; families and rules have their own")
    parser.add_argument("--max-rows", type=int, default=60, help="of small problems (default: %(default)s)")
    parser.add_argument("--max-classes", type=int, default=12, help="of small problems (default: %(default)s)")
    parser.add_argument("--sizes", nargs="*", default=SIZES, help="rows x classes to time (default: %(default)s)")
    parser.add_argument("--families", type=lambda text: text.split(","), default=list(FAMILIES), help="a,b,...")
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(RULES), help="a,b,...")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()

    machine = describe_machine(PACKAGES)
    print(machine_line(machine))
    begun = time.perf_counter()
    cells, usual = run_small(arguments) if arguments.problems else ({}, 0.0)
    seconds = time.perf_counter() - begun
    n_wrong = sum(len(cell.wrong) for cell in cells.values())
    if cells:
        print(*small_table(cells, usual), sep="\n")
        print(f"{arguments.problems} problems in {seconds:.0f} s, usually {1e3 * usual:.1f} ms each: {n_wrong} wrong")
    times, outliers = {}, []
    for name in arguments.sizes:
        rows = sorted(run_large(arguments, parse_size(name)), key=lambda row: -row["seconds"])
        times[name] = rows
        header, lines = ["family", "rule", "beside it", "seconds", "times usual"], []
        for row in rows[:8]:
            beside = ", ".join(f"{key} {row[key]}" for key in ("abstain", "weigh") if key in row)
            lines.append([row["family"], row["rule"], beside, f"{row['seconds']:.3f}", f"{row['over_usual']:.1f}"])
        usual_there = rows[0]["seconds"] / rows[0]["over_usual"]
        print(f"\n{name}: usually {usual_there:.3f} s; the slowest of {len(rows)}:", *table(header, lines), sep="\n")
        outliers += [row for row in rows if row["over_usual"] > OUTLIER]
        sys.stdout.flush()
    print(f"{len(outliers)} above {OUTLIER:.0f} times the usual time of their size")
    if arguments.out:
        small = [dict(zip(("family", "rule"), key, strict=True), wrong=cell.wrong) for key, cell in cells.items()]
        write_json(arguments.out, {"machine": machine, "problems": arguments.problems, "small": small, "times": times})
    sys.exit(bool(n_wrong or outliers))


if __name__ == "__main__":
    main()
