"""What a fit tells of itself after each iteration: to a function, or to a bar."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from otlabel.progress import progress


class Progress:
    """Counts starts and iterations; each record goes to whoever watches."""

    def __init__(self, observer: Callable[[dict[str, Any]], None] | None) -> None:
        self._observer, self._begun = observer, time.perf_counter()
        self.start = self.iteration = 0

    def begin(self) -> None:
        """Of another start."""
        self.start, self.iteration = self.start + 1, 0

    def tell(self, inertia: float, moved: float) -> None:
        """After an iteration: the inertia that it began with, and the squared distances that centres moved."""
        self.iteration += 1
        if self._observer is not None:
            record = {"start": self.start, "iteration": self.iteration, "inertia": inertia, "moved": moved}
            self._observer({**record, "seconds": time.perf_counter() - self._begun})


@contextlib.contextmanager
def watched(verbose: Any, n_starts: int) -> Iterator[Progress]:
    """Progress of which nobody hears, the caller's function, or a bar that counts iterations."""
    if callable(verbose) or not verbose:
        yield Progress(verbose if callable(verbose) else None)
        return
    with progress("clustering", unit="iterations") as tell:
        told = itertools.count(1)
        tell(0, "finding first centres")

        def show(record: dict[str, Any]) -> None:
            of_starts = f"start {record['start']} of {n_starts}, " * (n_starts > 1)
            tell(next(told), f"{of_starts}inertia {record['inertia']:.6g}")

        yield Progress(show)
