"""When a run labels, and by what: where the schedule's times meet batches, labels that stay, and those of the end."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from otlabel.selflabel import EveryEpochs, LinearSchedule, LogarithmicSchedule, QuadraticSchedule
from otlabel.training.config import Config

SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "quadratic": QuadraticSchedule,
    "logarithmic": LogarithmicSchedule,
    "linear": LinearSchedule,
}
Basis = Literal["recorded", "views", "images"]  # what training has seen; all samples, as views or as they are


class Timetable:
    """The relabellings of a run.

    Args:
        config: of the run.

    Raises:
        ValueError: labels that are to stay for all of the epochs.
    """

    def __init__(self, config: Config) -> None:
        labels, epochs = config.labels, config.train.epochs
        if labels.fixed_epochs >= epochs:
            raise ValueError(f"[labels] fixed_epochs is {labels.fixed_epochs}, of {epochs} epochs in all")
        self.schedule: Any = None
        if labels.method in ("sinkhorn", "kmeans", "argmax") and labels.n_relabels > 0:
            self.schedule = SCHEDULES[labels.schedule](epochs, labels.n_relabels)
            if labels.method == "argmax":  # its labels are those that an epoch has recorded
                self.schedule = EveryEpochs(1)
        self._labels, self._epochs = labels, epochs
        self._settled_at = epochs - labels.fixed_epochs if labels.fixed_epochs else math.inf  # then is the last one

    def at(self, progress: float, is_due: bool) -> Basis | None:
        """By what all is labelled anew at a time in epochs, at which the schedule says so or not."""
        if self.schedule is None or progress > self._settled_at:
            return None
        if progress == self._settled_at:
            return "images"
        if not is_due:
            return None
        if self._labels.recorded:  # the first epoch trains on random labels: nothing has been recorded yet
            return "recorded" if progress >= 1 else None
        return "views" if self._labels.of_views else "images"

    @property
    def at_the_end(self) -> bool:
        """Whether labels of views become those of the samples as they are, once the last epoch is over."""
        return self.schedule is not None and self._labels.of_views and self._epochs < self._settled_at

    def count(self, n_batches: int) -> Counter[Basis]:
        """How many relabellings there are in all, in epochs of so many batches: one at most before each batch."""
        found: Counter[Basis] = Counter(["images"] if self.at_the_end else [])
        schedule, passed = self.schedule, 0
        for epoch in range(0 if schedule is None else int(min(self._epochs, self._settled_at + 1))):

            def reached(batch: int, epoch: int = epoch) -> int:
                return int(schedule.count(epoch + batch / n_batches))

            batch = 0
            while batch < n_batches:
                basis = self.at(epoch + batch / n_batches, reached(batch) > passed)
                if basis is not None:
                    found[basis] += 1
                    passed = reached(batch)
                batch = bisect_right(range(n_batches), passed, batch + 1, key=reached)
        return found
