"""Who counts the passes over the rows, and who is told: no file that computes prints."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Observer = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Monitor:
    """Counts passes over the rows, keeps the history, and tells whoever watches."""

    n_rows: int  # a pass over so many rows reads everything
    n_classes: int | None = None  # of which potentials are told
    observer: Observer | None = None
    n_sweeps: int = 0  # passes over all rows
    n_readings: int = 0  # those of them that read all scores, not lists of the best
    history: list[dict[str, Any]] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def record(
        self,
        stage: str,
        rows: int,
        epsilon: float | None = None,
        error: float | None = None,
        potentials: np.ndarray | None = None,
        *,
        listed: bool = False,
    ) -> None:
        """Record one pass over so many rows; potentials are only told to whoever watches."""
        self.n_sweeps += rows == self.n_rows
        self.n_readings += rows == self.n_rows and not listed
        record = {"stage": stage, "rows": rows, "epsilon": epsilon, "error": error, "seconds": self.seconds}
        record["n_sweeps"] = self.n_sweeps
        self.history.append(record)
        if self.observer is not None:
            self.observer(record if potentials is None else {**record, "potentials": potentials[: self.n_classes]})

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.begun

    @property
    def peak_memory(self) -> int:
        """The most bytes that this process has ever held.

        Where there is /proc, it tells: getrusage counts what the parent held when it started this process, too.
        """
        with contextlib.suppress(OSError), open("/proc/self/status", "rb", buffering=0) as status:
            if told := re.search(rb"^VmHWM:\s*(\d+) kB$", status.read(), re.MULTILINE):
                return 1024 * int(told[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # told in bytes there, in kB elsewhere


@contextlib.contextmanager
def observing(progress: bool | Observer) -> Iterator[Observer | None]:
    """Nobody, the caller's function, or a bar that counts passes."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    else:
        from tqdm.auto import tqdm

        with tqdm(unit=" passes", desc="otlabel", leave=False) as bar:

            def show(record: dict[str, Any]) -> None:
                bar.update(record["n_sweeps"] - bar.n)
                error = (
                    "" if record["error"] is None else f" epsilon {record['epsilon']:.3g} error {record['error']:.2g}"
                )
                bar.set_postfix_str(f"{record['stage']}{error}")

            yield show
