"""Small problems, as a training step has them: otlabel's exact labels against the quickest of its peers, size by size.

    python benchmarks/bench_small.py                     # N in 32 ... 100,000, K in 2 ... 1000: half an hour
    python benchmarks/bench_small.py --quick             # up to 1000 rows, 100 classes
    python benchmarks/bench_small.py --alone             # only otlabel, without its peers

Everybody works in this process on the same scores, each in the form that it is used to (`peers.py`: bringing scores
there is not timed). What counts is the least CPU time of several calls, linear algebra on one thread: it is what a call
costs that comes again and again, and does not depend on who else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe_machine, machine_line, table
from peers import METHODS, Call, Outcome, Settings
from scipy.optimize import linear_sum_assignment
from synthetic import zipf_scores
from threadpoolctl import threadpool_limits

from otlabel import sinkhorn_assign
from otlabel.errors import OtlabelWarning

RESULTS = Path(__file__).parent / "results"
ROWS, CLASSES = (32, 100, 316, 1000, 3162, 10_000, 31_623, 100_000), (2, 10, 32, 100, 316, 1000)
LONGEST = 20.0  # seconds that a peer may be expected to take
GROWTH = 10.0  # of that expectation with each three times as many rows
ENOUGH = 0.4, 25  # seconds, and calls, of which the least time is taken
MOST_COPIES = 3162  # rows for which classes are repeated: N x N scores
Prepare = Callable[[np.ndarray, Settings], Call]


def hungarian(scores: np.ndarray, settings: Settings) -> Call:
    """SciPy's solver of the square problem, each class as often as it is to be taken."""
    n, k = scores.shape
    if n > MOST_COPIES:
        raise MemoryError("N x N scores")
    columns = np.repeat(np.arange(k), n // k + (np.arange(k) < n % k)) if n >= k else np.arange(k)
    copies = np.ascontiguousarray(scores.astype(np.float64)[:, columns])
    return lambda: Outcome(labels=columns[linear_sum_assignment(copies, maximize=True)[1]])


def warm(scores: np.ndarray, settings: Settings) -> Call:
    """otlabel from the result of scores as they were a little before, as in the next step of a training."""
    noise = 0.05 * np.random.default_rng(1).standard_normal(scores.shape).astype(scores.dtype)
    before = sinkhorn_assign(scores + noise, epsilon=settings.epsilon, tol=settings.tol)
    return lambda: Outcome(
        labels=sinkhorn_assign(scores, epsilon=settings.epsilon, tol=settings.tol, init=before).labels
    )


OWN: dict[str, Prepare] = {"otlabel": METHODS["otlabel-exact"].prepare, "otlabel, warm": warm}
PEERS: dict[str, Prepare] = {
    "ot.emd": METHODS["pot-emd"].prepare,
    "linear_sum_assignment": hungarian,
    "SeLa, own stop": METHODS["sela-own-stop"].prepare,
    "SeLa, same stop": METHODS["sela-same-stop"].prepare,
}


def least_seconds(prepare: Prepare, scores: np.ndarray) -> float:
    """The least CPU time of a call; infinity where it fails. Some calls use up their scores, so each gets its own."""
    begun, least, n_calls = time.perf_counter(), math.inf, 0
    while n_calls < ENOUGH[1] and (n_calls < 2 or time.perf_counter() - begun < ENOUGH[0]):
        try:
            call = prepare(scores, Settings())
            start = time.process_time()
            call()
        except (FloatingPointError, MemoryError, RuntimeError):
            return math.inf
        least, n_calls = min(least, time.process_time() - start), n_calls + 1
        if least > 1:
            break
    return least


def normal(n: int, k: int) -> np.ndarray:
    """Scores of no structure."""
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


SCORES: dict[str, Callable[[int, int], np.ndarray]] = {
    "log-softmax of a head on uneven clusters": lambda n, k: zipf_scores(n, k, seed=2)[0],
    "normal": normal,
}


def measure(kind: str, rows: list[int], classes: list[int], most: float, peers: dict[str, Prepare]) -> list[dict]:
    """One record a size, up to so many scores."""
    records = []
    for k in classes:
        expected = dict.fromkeys(peers, 0.0)
        for n in (n for n in rows if n * k <= most):
            scores = SCORES[kind](n, k)
            OWN["otlabel"](scores, Settings())()  # compiles and imports what it needs
            seconds = {name: least_seconds(prepare, scores) for name, prepare in OWN.items()}
            for name, prepare in peers.items():
                seconds[name] = least_seconds(prepare, scores) if expected[name] < LONGEST else math.inf
                expected[name] = GROWTH * seconds[name]
            records.append({"kind": kind, "n": n, "k": k, "seconds": seconds})
            print(kind, n, k, {name: f"{1e3 * each:.3g} ms" for name, each in seconds.items()}, flush=True)
    return records


def shown(records: list[dict]) -> str:
    """A table for each kind of scores: milliseconds, the quickest peer, and how many times its time."""
    texts = []
    for kind in SCORES:
        lines = []
        for record in (record for record in records if record["kind"] == kind):
            seconds = record["seconds"]
            quickest = min((name for name in seconds if name not in OWN), key=seconds.__getitem__, default=None)
            least = seconds[quickest] if quickest else math.inf
            peer = f"{quickest}, {1e3 * least:.3g}" if least < math.inf else "-"
            ratio = f"{seconds['otlabel'] / least:.2f}" if least < math.inf else "-"
            own = [f"{1e3 * seconds[name]:.3g}" for name in OWN]
            lines.append((f"{record['n']:,} x {record['k']:,}", *own, peer, ratio))
        if lines:
            header = "N x K", *(f"{name}, ms" for name in OWN), "quickest, ms", "x"
            texts.append("\n".join([f"## {kind}", "", *table(header, lines)]))
    return "\n\n".join(texts)


def main() -> None:
    """Measure, print, and write results/small.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sizes, and nothing is written")
    parser.add_argument("--alone", action="store_true", help="without the peers; nothing is written")
    parser.add_argument("--most", type=float, default=math.inf, help="scores of the largest problem")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", OtlabelWarning)
    rows = [n for n in ROWS if n <= 1000 or not arguments.quick]
    classes = [k for k in CLASSES if k <= 100 or not arguments.quick]
    peers = {} if arguments.alone else PEERS
    with threadpool_limits(1):
        records = [record for kind in SCORES for record in measure(kind, rows, classes, arguments.most, peers)]
    machine = describe_machine(("otlabel", "numpy", "scipy", "pot"))
    text = f"# Small problems\n\n{machine_line(machine)}\n\n{shown(records)}\n"
    print(text)
    if not (arguments.quick or arguments.alone):
        (RESULTS / "small.md").write_text(text, encoding="utf-8")
        (RESULTS / "small.json").write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
