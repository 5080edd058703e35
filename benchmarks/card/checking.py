"""What parts are made of: sizes and place, rows that are on disk as they come, time and memory of a device."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import write_json

EPSILON, TOL = 0.04, 1e-2
IMAGENET = 1_281_167
SLOW_END = 15.0  # seconds that a part may go on after its time, before its process is ended


@dataclass(frozen=True)
class Plan:
    """Sizes of everything, and where it runs."""

    device: str
    seeds: int  # of each kind of problem
    sweep: tuple[int, int]
    solves: tuple[tuple[int, int], ...]
    compared: tuple[int, int]  # with the CPU's answer
    factored: tuple[int, int, int, int]  # heads, rows, features, classes
    batches: tuple[tuple[int, int], ...]
    routed: tuple[int, int, int]  # rows, classes, labels a row
    clusters: tuple[int, int, int]  # rows, features, clusters
    streamed: tuple[int, int]
    copy_bytes: int
    repeats: int
    loop_seconds: float  # that a peer's loop may take
    profiled: tuple[str, ...]


CARD = Plan(
    "cuda", 1, (IMAGENET, 3000), ((100_000, 1000), (IMAGENET, 3000)), (100_000, 300), (10, IMAGENET, 2048, 3000),
    ((256, 3000), (4096, 65_536)), (1_000_000, 256, 8), (1_000_000, 128, 1024), (400_000, 3000), 4 << 30, 9, 30.0,
    ("argmax", "exact", "head", "k-means"),
)  # fmt: skip
QUICK = Plan(
    "cpu", 1, (2000, 30), ((2000, 10), (3000, 30)), (2000, 10), (2, 1500, 16, 20), ((32, 30), (48, 64)),
    (4000, 16, 3), (3000, 8, 12), (3000, 16), 1 << 22, 3, 2.0, ("exact",),
)  # fmt: skip


class BrokenCardError(Exception):
    """The card answers no more in this process: what is left needs another one."""


class Check:
    """One part: what it found, row by row, on disk after each of them; and how much time it has left."""

    def __init__(self, plan: Plan, seconds: float, file: Path) -> None:
        self.plan, self.seconds, self.file, self.begun = plan, seconds, file, time.perf_counter()
        self.found: dict[str, Any] = {}

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.file.parent.parent

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.perf_counter() - self.begun)

    def row(self, name: str, call: Callable[[], Any], at_least: float = -SLOW_END / 2) -> Any:
        """What the call gives, or None where it failed, or where so many seconds are not left."""
        if self.left < at_least:
            self.keep(name, {"failure": f"not begun: {self.left:.0f} s were left, {at_least:.0f} s are needed"})
            return None
        try:
            found = call()
            wait(self.plan.device)  # what went wrong on the way is told here
        except Exception as error:  # one row's failure must not take the others with it
            traceback.print_exc()
            self.keep(name, {"failure": f"{type(error).__name__}: {error}"[:500]})
            if not answers(self.plan.device):
                raise BrokenCardError(name) from error
            return None
        self.keep(name, found)
        return found

    def keep(self, name: str, found: Any) -> None:
        """Put it on disk."""
        self.found[name] = found
        self.write()

    def write(self, **more: Any) -> None:
        """All that is known, in one step."""
        part = {"seconds": time.perf_counter() - self.begun, "found": self.found, **more}
        write_json(self.file.with_suffix(".new"), part)
        self.file.with_suffix(".new").replace(self.file)


def answers(device: str) -> bool:
    """Whether the card still does anything in this process: after an illegal access it does not."""
    try:
        wait(device)
        return bool(torch.ones(1, device=device).item() == 1)
    except Exception:
        return False


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], plan: Plan, inner: int = 1, repeats: int | None = None) -> dict[str, float]:
    """Seconds of one call: median and smallest of several, the device waited for at both ends."""
    call()
    seconds = []
    for _ in range(repeats or plan.repeats):
        wait(plan.device)
        begun = time.perf_counter()
        for _ in range(inner):
            call()
        wait(plan.device)
        seconds.append((time.perf_counter() - begun) / inner)
    return {"median": statistics.median(seconds), "least": min(seconds)}


def median_of(call: Callable[[], Any], plan: Plan, inner: int = 1) -> float:
    return timed(call, plan, inner)["median"]


def begin_peak(device: str) -> None:
    wait(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str, of_peer: int | None = None) -> float | None:
    """The most that tensors took since `_begin_peak`, the scores included; with what a peer took beside torch."""
    return (torch.cuda.max_memory_allocated() + (of_peer or 0)) / 1e9 if device == "cuda" else None


def free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
