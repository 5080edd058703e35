"""Several labels a sample: random problems against HiGHS, and a router's size exact and proven.

    python benchmarks/bench_k_labels.py                       # 2,000 small problems, then 1,000,000 x 256 with 8 labels
    python benchmarks/bench_k_labels.py --problems 200 --sizes 100000x256
    python benchmarks/bench_k_labels.py --problems 0 --labels 2

Problems and what is right about an answer are those of tests/several.py: value, sizes, bound and gap are computed from
the scores anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from machine import describe_machine, machine_line, peak_memory_mb, table, write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from several import best_total, draw, faults  # noqa: E402
from synthetic import parse_size  # noqa: E402

from otlabel import sinkhorn_assign  # noqa: E402
from otlabel.errors import InfeasibleError, OtlabelWarning  # noqa: E402

PACKAGES = ("otlabel", "numpy", "scipy")
ROWS_AT_ONCE, RANK = 50_000, 32


def run_small(n_problems: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many problems there were of each number of labels, and what is wrong with the answers."""
    found, wrong = Counter[str](), []
    for number in range(seed, seed + n_problems):
        drawn = draw(number)
        found[f"{drawn.k} labels"] += 1
        try:
            result = sinkhorn_assign(drawn.scores, labels_per_sample=drawn.k, **drawn.arguments)
        except InfeasibleError:
            found["infeasible"] += 1
            told = [] if best_total(drawn.scores, drawn.k, drawn.lo, drawn.hi) is None else ["called infeasible"]
        else:
            told = faults(drawn, result)
        if told:
            wrong.append(f"draw({number}): {'; '.join(told)}")
            print(wrong[-1], flush=True)
    return found, wrong


def router_scores(n_rows: int, n_classes: int) -> np.ndarray:
    """Logits of a router in float16: some experts are wanted by most tokens, and tokens differ in few directions."""
    rng = np.random.default_rng(0)
    favour, weight = rng.standard_normal(n_classes), rng.standard_normal((RANK, n_classes)) * 1.5 / RANK**0.5
    scores = np.empty((n_rows, n_classes), np.float16)
    for start in range(0, n_rows, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, n_rows - start)
        noise = 0.5 * rng.standard_normal((size, n_classes), np.float32)
        hidden = rng.standard_normal((size, RANK), np.float32)
        scores[start : start + size] = hidden @ weight.astype(np.float32) + favour.astype(np.float32) + noise
    return scores


def run_large(size: tuple[int, int], k: int) -> dict:
    """Exact labels of one router, checked in float64 against their own bound."""
    scores = router_scores(*size)
    sinkhorn_assign(scores[:20_000], labels_per_sample=k)  # compiles
    clock, processor = time.perf_counter(), time.process_time()
    result = sinkhorn_assign(scores, labels_per_sample=k)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    value = bound = 0.0
    for start in range(0, size[0], ROWS_AT_ONCE):
        block, labels = scores[start : start + ROWS_AT_ONCE].astype(np.float64), result.labels[start:][:ROWS_AT_ONCE]
        value += np.take_along_axis(block, labels, 1).sum()
        bound += np.partition(block + result.potentials, -k, 1)[:, -k:].sum()
    gap = (bound - result.counts @ result.potentials - value) / size[0]
    again = np.bincount(result.labels.ravel(), minlength=size[1])
    return {
        "rows": size[0], "classes": size[1], "labels": k, "seconds": clock, "cpu_seconds": processor,
        "readings": result.n_readings, "passes": result.n_sweeps, "gap": result.gap, "gap_in_float64": float(gap),
        "proven": result.proof.proven, "smallest": int(again.min()), "largest": int(again.max()),
        "class_mass_error": result.marginal_error, "peak_memory_mb": peak_memory_mb(),
    }  # fmt: skip


def main() -> None:
    """Both parts, as tables; exits with 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000, help="small problems (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--sizes", nargs="*", default=["1000000x256"], help="rows x classes (default: %(default)s)")
    parser.add_argument("--labels", type=int, nargs="*", default=[8], help="a sample, at these sizes (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()

    import warnings

    warnings.simplefilter("ignore", OtlabelWarning)
    machine = describe_machine(PACKAGES)
    print(machine_line(machine))
    found, wrong = run_small(arguments.problems, arguments.seed)
    told = ", ".join(f"{number} of {name}" for name, number in sorted(found.items()))
    print(f"{arguments.problems} problems ({told}): {len(wrong)} wrong", flush=True)
    large = [run_large(parse_size(size), k) for size in arguments.sizes for k in arguments.labels]
    rows = [
        [f"{one['rows']:,} x {one['classes']}", f"{one['labels']}", f"{one['seconds']:.1f}",
         f"{one['cpu_seconds']:.1f}", f"{one['readings']}", f"{one['passes']}",
         f"{one['gap']:.1e}", f"{one['gap_in_float64']:.1e}",
         f"{one['smallest']:,} to {one['largest']:,}", f"{one['peak_memory_mb'] or 0:,.0f}"]
        for one in large
    ]  # fmt: skip
    header = ["size", "labels", "seconds", "CPU seconds", "readings", "passes", "gap", "gap anew", "sizes", "peak MB"]
    print(*table(header, rows), sep="\n")
    if arguments.out:
        content = {"machine": machine, "problems": arguments.problems, "found": dict(found), "wrong": wrong}
        write_json(arguments.out, {**content, "large": large})
    sys.exit(bool(wrong) or not all(one["proven"] for one in large))


if __name__ == "__main__":
    main()
