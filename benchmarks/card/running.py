"""Parts one after the other in processes beside the one that reports, a new process after each that breaks or hangs."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from machine import read_json, write_json

from card import SCRIPT
from card.batches import time_batch
from card.checking import SLOW_END, Check, Plan, answers, free, wait
from card.clusters import time_clusters
from card.others import run_peers
from card.passes import time_copy, time_sweep, tune_sweep
from card.profiles import profile
from card.right import check_problems, check_sweeps
from card.routing import time_routing
from card.solves import compare_with_cpu, stream, time_factored, time_solves

BROKEN = 3  # exit status of a process whose card answers no more
START_SECONDS = 60.0  # until a process has begun its first part
POLLS = 0.1  # seconds between two looks at that process

PARTS: dict[str, tuple[Callable[[Check], None], float, float]] = {  # in order; fewest and most seconds of each
    "copy": (time_copy, 2, 10),
    "sweeps right": (check_sweeps, 15, 60),
    "problems right": (check_problems, 20, 50),
    "one sweep": (time_sweep, 5, 25),
    "solves": (time_solves, 10, 50),
    "against the CPU": (compare_with_cpu, 15, 40),
    "soft_assign": (time_batch, 2, 15),
    "k labels": (time_routing, 10, 40),
    "k-means": (time_clusters, 10, 60),
    "factored": (time_factored, 10, 40),
    "peers": (run_peers, 15, 60),
    "streaming": (stream, 10, 30),
    "shapes of the kernel": (tune_sweep, 5, 30),
    "profile": (profile, 10, 40),
}


def run_parts(names: list[str], plan: Plan, budget: float, folder: Path) -> int:
    """Parts in this process, one after the other; the status with which it is to end."""
    begun = time.perf_counter()
    for name in names:
        part, least, most = PARTS[name]
        left = budget - (time.perf_counter() - begun)
        check = Check(plan, min(most, left), file_of(folder, name))
        if left < least:
            check.write(failure=f"not begun: {left:.0f} s were left, {least:.0f} s are needed", ended=True)
            continue
        check.write()  # which says that it has begun
        failure = {}
        try:
            free(plan.device)  # of what the part before has left
            part(check)
            wait(plan.device)
        except Exception as error:  # one part's failure must not take the others with it
            traceback.print_exc()
            failure = {"failure": f"{type(error).__name__}: {error}"[:500]}
        check.write(**failure, ended=True)
        print(f"{name}: {time.perf_counter() - check.begun:.1f} s", flush=True)
        if failure and not answers(plan.device):
            return BROKEN
    return 0


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.json"


def supervise(names: list[str], arguments: argparse.Namespace, report: Callable[[], None]) -> None:
    """All parts in processes of their own, a new one after each that broke, hung or ended; report() after each part."""
    folder, begun = arguments.out / "parts", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        file_of(folder, name).unlink(missing_ok=True)
    waiting = list(names)
    while waiting:
        left = arguments.budget - (time.perf_counter() - begun)
        command = [sys.executable, str(SCRIPT), "--out", str(arguments.out), "--budget", f"{left:.1f}", "--here"]
        command += ["--quick"] if arguments.quick else []
        command += ["--rows", str(arguments.rows)] if arguments.rows else []
        with (arguments.out / "log.txt").open("a") as log:
            worker = subprocess.Popen([*command, "--parts", *waiting], stdout=log, stderr=subprocess.STDOUT)
            waiting = _followed(worker, waiting, folder, left, report)


def _followed(
    worker: subprocess.Popen, waiting: list[str], folder: Path, left: float, report: Callable[[], None]
) -> list[str]:
    """The parts that are left when the process has ended, or was ended because its part took far too long."""
    changed, until = time.perf_counter(), time.perf_counter() + max(left, 0) + SLOW_END
    given = len(waiting)
    while True:
        ended = worker.poll() is not None
        while waiting and read_json(file_of(folder, waiting[0])).get("ended"):
            print(f"{waiting.pop(0)}: done", flush=True)
            changed = time.perf_counter()
            report()
        if ended and not waiting:
            return []
        begun = bool(waiting) and file_of(folder, waiting[0]).exists()
        most = PARTS[waiting[0]][2] + SLOW_END if begun else START_SECONDS
        late = time.perf_counter() > min(changed + most, until)
        if not ended and waiting and late:
            worker.kill()
            worker.wait()
            ended = True
        if ended and not begun and len(waiting) < given:  # it broke in the part before
            return waiting
        if ended:
            part = read_json(file_of(folder, waiting[0]))
            why = "out of time: its process was ended" if late else f"its process ended with status {worker.returncode}"
            write_json(
                file_of(folder, waiting[0]), {"seconds": 0.0, "found": {}, **part, "failure": why, "ended": True}
            )
            report()
            return waiting[1:]
        time.sleep(POLLS)
