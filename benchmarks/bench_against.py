"""The same solves by two versions of otlabel, in turns on one machine: CPU seconds, and their ratio.

    git worktree add /somewhere/old c82fb61
    python benchmarks/bench_against.py /somewhere/old                     # that version against this one
    python benchmarks/bench_against.py /somewhere/old --works small shapes

Each version is a process of its own that makes the data (the same by its seed), solves once to compile, then tells how
long each solve takes. The two take turns, and of each the least of its times counts: other work only adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, machine_line, table, write_json
from synthetic import duplicates, zipf_scores

ROOT = Path(__file__).resolve().parent.parent
TURNS = 3
Work = tuple[str, Callable[[], Any]]  # its name, and what solves it


def large() -> Iterator[Work]:
    """Scores of the size of a data set, in memory."""
    from otlabel import sinkhorn_assign

    for n, k, dtype in ((100_000, 300, "float32"), (400_000, 1000, "float16")):
        scores, _ = zipf_scores(n, k, seed=1, dtype=dtype)
        yield f"{n:,} x {k} {dtype}", lambda scores=scores: sinkhorn_assign(scores)


def features() -> Iterator[Work]:
    """Features times a head; ten heads that read the same ones."""
    from otlabel import linear_scores, sinkhorn_assign

    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 128))[rng.integers(0, 100, 200_000)] + 1.5 * rng.standard_normal((200_000, 128))
    x, heads = x.astype(np.float32), rng.standard_normal((10, 1000, 128)).astype(np.float32) / 8
    yield "features 200,000 x 128, K = 1000", lambda: sinkhorn_assign(linear_scores(x, heads[0]))
    some = x[:50_000]
    yield "ten heads on 50,000 x 128", lambda: [sinkhorn_assign(linear_scores(some, head)) for head in heads]


def small() -> Iterator[Work]:
    """What a training loop asks for at each batch."""
    from otlabel import sinkhorn_assign

    for n, k in ((256, 100), (1000, 100), (10_000, 10)):
        scores, _ = zipf_scores(n, k, seed=2)
        yield f"{n:,} x {k}, 20 times", lambda scores=scores: [sinkhorn_assign(scores) for _ in range(20)]


def shapes() -> Iterator[Work]:
    """100,000 x 300 scores of other shapes."""
    from otlabel import sinkhorn_assign

    n, k, rng = 100_000, 300, np.random.default_rng(3)
    for temperature in (0.1, 0.3, 3.0, 10.0):
        scores, _ = zipf_scores(n, k, temperature=temperature, seed=3)
        yield f"temperature {temperature:g}", lambda scores=scores: sinkhorn_assign(scores)
    rows = {
        "Cauchy tails": lambda: rng.standard_cauchy((n, k)),
        "rank two": lambda: rng.standard_normal((n, 2)) @ rng.standard_normal((2, k)),
        "500 distinct rows": lambda: duplicates(n, k, 500, seed=3)[0],
        "all equal": lambda: np.zeros((n, k)),
        "one class of 99.9 %": lambda: rng.standard_normal((n, k)) + 8 * (np.arange(k) == 0),
        "whole numbers": lambda: rng.integers(0, 4, (n, k)),
    }
    for name, make in rows.items():
        scores = make().astype(np.float32)
        yield name, lambda scores=scores: sinkhorn_assign(scores)
    square = rng.standard_normal((1500, 1500))
    yield "1500 x 1500", lambda: sinkhorn_assign(square)


WORKS = {work.__name__: work for work in (large, features, small, shapes)}


def measure(work: str) -> None:
    """Print the CPU seconds of each solve as a line of JSON; the first solve of each compiles and is not counted."""
    warnings.simplefilter("ignore")
    for name, solve in WORKS[work]():
        solve()
        begun = time.process_time()
        solve()
        print(json.dumps([name, time.process_time() - begun]), flush=True)


def seconds(version: Path, work: str) -> dict[str, float]:
    """The same of one version."""
    environment = {**os.environ, "PYTHONPATH": str(version)}
    command = [sys.executable, str(Path(__file__).resolve()), str(version), "--measure", work]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the other version")
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--turns", type=int, default=TURNS, help="runs of each version (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--measure", choices=WORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure)
    machine = describe_machine(("numpy", "scipy", "torch"))
    print(machine_line(machine))
    rows: list[list[str]] = []
    figures: dict[str, dict[str, float]] = {}
    for work in arguments.works:
        least: dict[str, list[float]] = {}
        for _ in range(arguments.turns):
            for place, version in enumerate((arguments.old.resolve(), ROOT)):
                for name, taken in seconds(version, work).items():
                    of_both = least.setdefault(name, [np.inf, np.inf])
                    of_both[place] = min(of_both[place], taken)
        for name, (old, new) in least.items():
            rows.append([name, f"{old:.3f}", f"{new:.3f}", f"{old / new:.2f}"])
            figures[name] = {"old": old, "new": new}
    print(*table(("solve", "old, CPU s", "new, CPU s", "times as fast"), rows), sep="\n")
    if arguments.out:
        write_json(arguments.out, {"machine": machine, "seconds": figures})
    return None


if __name__ == "__main__":
    main()
