"""Several processes on one machine: what they tell each other, against the plan; and processes against threads."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
from machine import (
    describe_machine,
    machine_line,
    number,
    others_cores,
    others_cpu_seconds,
    peak_memory_mb,
    read_json,
    table,
    write_json,
)
from synthetic import ZipfHead, parse_size

HERE = Path(__file__).resolve().parent
PACKAGES = ("otlabel", "numpy", "scipy", "numba", "torch")
WARM_UP = (20_000, 600)  # rows, classes: large enough that every compiled function is called
LIMIT = timedelta(minutes=20)
TARGET = 1.3  # times the time of one process with as many threads
LATENCY_ROUNDS = 200
STEPS = {  # what the plan calls a step, and under which names it is counted
    "layout": ("layout",),
    "spread": ("spread",),
    "hashes": ("hashes",),
    "sweep": ("sweeps",),
    "probe": ("probes",),
    "curvature": ("curvature",),
    "candidates": ("candidates",),
    "proof": ("proof",),
    "rows sent": ("rows of shared blocks",),
}
COUNTED_AS = {
    "shards": "layout", "settings": "layout", "inspect": "layout", "extents": "layout", "look": "layout",
    "slack": "candidates", "round": "candidates", "certify": "proof", "labels": "proof",
}  # fmt: skip


# ---------------------------------------------------------------------------- one process of a run


def own_scores(n: int, k: int, start: int, stop: int, seed: int, dtype: str) -> np.ndarray:
    """Rows start to stop of `zipf_scores(n, k)`, made without the others."""
    head = ZipfHead.draw(n, k, seed=seed)
    scores = np.empty((stop - start, k), dtype)
    for rows, features in head.features():
        low, high = max(rows.start, start), min(rows.start + len(features), stop)
        if low < high:
            logits = features @ head.weight + head.offset
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            scores[low - start : high - start] = logits[low - rows.start : high - rows.start]
    return scores


def work(job: dict) -> dict:
    """One rank's part of one solve, after one on a small problem."""
    import torch
    import torch.distributed as dist

    from otlabel import sinkhorn_assign
    from otlabel.ranks.communicator import ProcessGroup

    torch.set_num_threads(1)
    rank, n_ranks, group = job["rank"], job["n_ranks"], None
    if job["grouped"]:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{job['port']}", LIMIT, world_size=n_ranks, rank=rank)
        group = dist.group.WORLD
    rounds, sent = collections.Counter(), collections.Counter()
    reduce = ProcessGroup.allreduce_with

    def counted(communicator, name, arrays, merge):
        before = communicator.bytes_sent
        answer = reduce(communicator, name, arrays, merge)
        rounds[name] += 1
        sent[name] += communicator.bytes_sent - before
        return answer

    def part(n: int, k: int) -> np.ndarray:
        return own_scores(n, k, rank * n // n_ranks, (rank + 1) * n // n_ranks, job["seed"], job["dtype"])

    ProcessGroup.allreduce_with = counted
    n, k = job["size"]
    sinkhorn_assign(part(*WARM_UP), group=group)
    base = peak_memory_mb()
    scores = part(n, k)
    rounds.clear()
    sent.clear()
    if group is not None:
        dist.barrier()
    before = time.perf_counter(), others_cpu_seconds()
    result = sinkhorn_assign(scores, group=group)
    seconds = time.perf_counter() - before[0]
    after = time.perf_counter(), others_cpu_seconds()
    np.save(f"{job['result']}.npy", result.labels)
    solve = [record for record in result.history if record["stage"] == "solve"]
    found = {
        "seconds": seconds,
        "rows": len(scores),
        "base_mb": base,
        "peak_mb": peak_memory_mb(),
        "passes": result.n_sweeps,
        "solve_passes": sum(record["rows"] == n for record in solve),
        "sample_passes": sum(record["rows"] < n for record in solve),
        "repairs": sum(record["stage"] == "round" for record in result.history),
        "newton_steps": rounds["curvature"] // 2,
        "value": result.value,
        "gap": result.gap,
        "potentials_sha256": hashlib.sha256(result.potentials.tobytes()).hexdigest(),
        "bytes_sent": result.bytes_sent,
        "rounds": dict(rounds),
        "sent": dict(sent),
        "others_cores": others_cores(before, after) if n_ranks == 1 else None,
    }
    if group is not None:
        found["round_seconds"] = round_seconds(group)
        dist.barrier()
        dist.destroy_process_group()
    return found


def round_seconds(group) -> float:
    """The median of rounds in which nothing is told."""
    from otlabel.ranks.communicator import ProcessGroup

    seconds = []
    with ProcessGroup(group) as communicator:
        for _ in range(LATENCY_ROUNDS):
            begun = time.perf_counter()
            communicator.allreduce("nothing", np.zeros(0))
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


# ---------------------------------------------------------------------------- runs


def run(arguments: argparse.Namespace, n_ranks: int, threads: int, *, grouped: bool = True) -> list[dict]:
    """What each process of one solve has to tell, in the order of ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Threads of the linear algebra would change the last bits of the scores that are drawn; the solver uses one.
    environment = os.environ | {"OTLABEL_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(n_ranks):
            job = {"rank": rank, "n_ranks": n_ranks, "port": port, "grouped": grouped, "seed": arguments.seed}
            job |= {"size": parse_size(arguments.size), "dtype": arguments.dtype, "result": f"{folder}/{rank}"}
            command = [sys.executable, str(HERE / "bench_ranks.py"), "--job", json.dumps(job)]
            processes.append(subprocess.Popen(command, env=environment))
        if any([process.wait(LIMIT.total_seconds()) for process in processes]):
            sys.exit(f"a process of {n_ranks} failed")
        found = [read_json(Path(folder) / f"{rank}.json") for rank in range(n_ranks)]
        labels = np.concatenate([np.load(f"{folder}/{rank}.npy") for rank in range(n_ranks)])
    found[0]["labels_sha256"] = hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest()
    seconds = max(one["seconds"] for one in found)
    print(f"{n_ranks} x {threads} threads: {seconds:.2f} s, {found[0]['passes']} passes", flush=True)
    return found


def measure(arguments: argparse.Namespace) -> dict:
    """All runs."""
    ranks = {str(n_ranks): run(arguments, n_ranks, 1) for n_ranks in arguments.ranks}
    processes, threads = [], []
    for _ in range(arguments.repeats):
        threads.append(run(arguments, 1, 2, grouped=False))
        processes.append(run(arguments, 2, 1))
    return {
        "machine": describe_machine(PACKAGES),
        "size": arguments.size,
        "dtype": arguments.dtype,
        "seed": arguments.seed,
        "ranks": ranks,
        "threads": threads,
        "processes": processes,
    }


# ---------------------------------------------------------------------------- tables


def planned(results: dict, n_ranks: int, first: dict) -> dict:
    """Rounds and bytes of the plan for the passes that were counted, by the names that are counted."""
    from otlabel.planning import conversation
    from otlabel.planning.part import Part

    part = Part(*parse_size(results["size"]), results["dtype"], n_ranks)
    passes = first["solve_passes"] + first["sample_passes"]
    steps = conversation(part, passes=passes, newton_steps=first["newton_steps"], repairs=first["repairs"])
    found = {}
    for name, parts in STEPS.items():
        own = [step for step in steps if step.name in parts]
        totals = sum(step.times * step.rounds for step in own), sum(step.first for step in own)
        found[name] = (*totals, sum(step.others for step in own))
    return found


def counted(one: dict) -> dict:
    """Rounds and bytes of a process by the names of the table; rows that are sent make no rounds of their own."""
    rounds, sent = collections.Counter(), collections.Counter()
    for name in one["rounds"]:
        rounds[COUNTED_AS.get(name, name)] += one["rounds"][name]
        sent[COUNTED_AS.get(name, name)] += one["sent"][name]
    sent["rows sent"] = one["bytes_sent"] - sum(one["sent"].values())
    return {name: (rounds[name], sent[name]) for name in STEPS}


def step_rows(results: dict, n_ranks: str) -> list[list[str]]:
    """Each kind of step: counted and planned."""
    processes = results["ranks"][n_ranks]
    first, others = counted(processes[0]), [counted(one) for one in processes[1:]]
    plan = planned(results, int(n_ranks), processes[0])
    rows = []
    for name in STEPS:
        mean = statistics.mean(other[name][1] for other in others)
        rounds, of_first, of_others = plan[name]
        figures = (first[name][1], of_first, mean, of_others)
        rows.append([name, str(first[name][0]), str(rounds), *(f"{figure:,.0f}" for figure in figures)])
    totals = [sum(first[name][0] for name in STEPS), sum(plan[name][0] for name in STEPS)]
    sums = [processes[0]["bytes_sent"], sum(plan[name][1] for name in STEPS)]
    sums += [statistics.mean(one["bytes_sent"] for one in processes[1:]), sum(plan[name][2] for name in STEPS)]
    return [*rows, ["all", *map(str, totals), *(f"{figure:,.0f}" for figure in sums)]]


def kb_a_row(one: dict) -> float:
    """Memory that the rows have added to the process after its warm-up, in kB a row."""
    return 1e3 * (one["peak_mb"] - one["base_mb"]) / one["rows"]


def sameness(results: dict) -> str:
    """Whether all runs came to the same bits."""
    runs = [*results["ranks"].values(), *results["threads"], *results["processes"]]
    labels = {processes[0]["labels_sha256"] for processes in runs}
    potentials = {one["potentials_sha256"] for processes in runs for one in processes}
    same = [what for what, found in (("labels", labels), ("potentials", potentials)) if len(found) == 1]
    different = [what for what, found in (("labels", labels), ("potentials", potentials)) if len(found) > 1]
    told = f"The same bits in all {len(runs)} runs: {' and '.join(same) or 'nothing'}."
    return told + (f" NOT the same: {' and '.join(different)}." if different else "")


def markdown(results: dict) -> str:
    """Everything as tables."""
    n, k = parse_size(results["size"])
    told = [f"# Several processes on one machine\n\n{machine_line(results['machine'])}\n"]
    told.append(
        f"Exact labels of {n:,} x {k:,} {results['dtype']} scores of Zipf clusters, gloo over loopback, one thread a "
        "process. Each draws its own rows. Time: the slowest process, scores in memory. Other work may have kept the "
        "processors busy meanwhile: times are no more than a first impression unless the machine was quiet.\n"
    )
    rows = []
    for n_ranks, processes in results["ranks"].items():
        first = processes[0]
        sweep, other = (one["sent"].get("sweep", 0) / one["rounds"].get("sweep", 1) for one in (first, processes[-1]))
        rows.append([
            n_ranks, number(max(one["seconds"] for one in processes), ".2f"), str(first["passes"]),
            str(sum(first["rounds"].values())), f"{sweep:,.0f}", f"{other:,.0f}" if len(processes) > 1 else "-",
            f"{first['bytes_sent'] / 1e6:.2f} MB",
            f"{processes[-1]['bytes_sent'] / 1e6:.2f} MB" if len(processes) > 1 else "-",
            f"{first['value']:.9f}", f"{first['gap']:.0e}", f"{max(one['peak_mb'] for one in processes):.0f} MB",
            f"{1e3 * first['round_seconds']:.2f} ms",
        ])  # fmt: skip
    head = ["ranks", "seconds", "passes", "rounds", "bytes a sweep, rank 0", "another rank", "bytes in all, rank 0"]
    head += ["another rank", "value", "gap", "peak memory", "an empty round"]
    told += table(head, rows)
    told.append(f"\n{sameness(results)}")
    for n_ranks in results["ranks"]:
        if n_ranks != "1":
            told.append(f"\n## {n_ranks} ranks: counted and planned\n\nThe plan is told how many passes there were.\n")
            head = ["step", "rounds", "planned", "bytes of rank 0", "planned", "of another rank", "planned"]
            told += table(head, step_rows(results, n_ranks))
    told.append("\n## Two processes of one thread against one process of two\n")
    rows, medians = [], []
    for name, runs in (("1 process, 2 threads", results["threads"]), ("2 processes, 1 thread", results["processes"])):
        seconds = [max(one["seconds"] for one in processes) for processes in runs]
        medians.append(statistics.median(seconds))
        peaks = [max(one["peak_mb"] for one in processes) for processes in runs]
        added = statistics.median(kb_a_row(one) for processes in runs for one in processes)
        rows.append([
            name, number(medians[-1], ".2f"), ", ".join(f"{one:.2f}" for one in seconds), f"{max(peaks):.0f} MB",
            f"{added:.2f} kB",
        ])  # fmt: skip
    told += table(["run", "median seconds", "each", "peak of a process", "added by a row"], rows)
    ratio = medians[1] / medians[0]
    verdict = "within" if ratio <= TARGET else "NOT within"
    told.append(f"\nProcesses take {ratio:.2f} times as long, {verdict} the target of {TARGET}.")
    busy = [processes[0]["others_cores"] for processes in results["threads"]]
    told.append(
        f"Others kept {number(statistics.median(busy), '.2f')} processors busy during runs of one process (median)."
        if None not in busy
        else ""
    )
    return "\n".join(told) + "\n"


def main() -> None:
    """Measure, then write the results as JSON and as tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="400000x1000", help="rows x classes (%(default)s)")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--ranks", type=lambda text: [*map(int, text.split(","))], default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3, help="of processes against threads (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20000x100, once; writes nothing")
    parser.add_argument("--tables", action="store_true", help="nothing measured: ranks.md from ranks.json")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        write_json(Path(f"{arguments.job['result']}.json"), work(arguments.job))
        return
    if arguments.quick:
        arguments.size, arguments.repeats = "20000x100", 1
    stored = HERE / "results" / "ranks.json"
    results = read_json(stored) if arguments.tables else measure(arguments)
    if arguments.quick:
        print(markdown(results))
        return
    write_json(stored, results)
    stored.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
