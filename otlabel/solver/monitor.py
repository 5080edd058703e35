"""Who counts the passes over the rows, and who is told: no file that computes prints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otlabel.progress import progress
from otlabel.system import peak_memory

if TYPE_CHECKING:
    import numpy as np

WORDS = {  # what follows each stage, or goes on
    "inspect": "looking at the scores",
    "list": "listing the best classes of each sample",
    "solve": "solving the plan",
    "round": "rounding to exact sizes",
    "repair": "moving what is too much",
    "prices": "pricing",
    "certify": "proving",
}
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
        """The most bytes that this process has ever held."""
        return peak_memory()


@contextlib.contextmanager
def observing(shown: bool | Observer, total: int | None = None, delay: float = 0) -> Iterator[Observer | None]:
    """Nobody, the caller's function, or a bar that counts passes, of which there will be about so many in all."""
    if not isinstance(shown, bool):
        yield shown
    elif not shown:
        yield None
    else:
        with progress("labelling", total, "passes", delay=delay) as tell:

            def show(record: dict[str, Any]) -> None:
                error = record["error"]
                off = "" if error is None else f", epsilon {record['epsilon']:.3g}, class-mass error {error:.2g}"
                tell(record["n_sweeps"], WORDS[record["stage"]] + off)

            yield show
