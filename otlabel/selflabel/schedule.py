"""When to label anew: times on a scale of epochs, or of steps. What to do then is the labeler's."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

ROUNDING = 1e-9  # 0.3 / 0.1 is a little less than 3


class Schedule(Protocol):
    """How many relabellings are to have begun by a time."""

    @property
    def unit(self) -> str:
        """Of the time: "epochs" or "steps"."""
        ...

    def count(self, time: float) -> int:
        """How many of the schedule's times have come."""
        ...


def time_of(
    schedule: Schedule,
    epoch: float | None,
    step: int | None,
    samples: int | None,
    samples_per_epoch: int,
    steps_per_epoch: int | None,
) -> float:
    """The time in the schedule's unit, told in one of the three ways.

    Raises:
        ValueError: a time that this schedule cannot be told in.
    """
    if schedule.unit == "steps":
        if step is None:
            raise ValueError(f"{schedule!r} counts steps; pass due(step=...)")
        return float(step)
    if step is None:
        return float(samples / samples_per_epoch if samples is not None else epoch)  # type: ignore[arg-type]
    if steps_per_epoch is None:
        raise ValueError(
            f"{schedule!r} counts epochs; pass due(epoch) or due(samples=...), or make the labeler with "
            "steps_per_epoch="
        )
    return float(step / steps_per_epoch)


def share_done(schedule: Schedule | None, time: float | None) -> float | None:
    """Of the training, where the schedule tells when that ends."""
    times = getattr(schedule, "times", None)
    return None if not times or not times[-1] or time is None else min(1.0, time / times[-1])


class AtTimes:
    """Relabel at the given times, in epochs."""

    unit = "epochs"

    def __init__(self, times: Iterable[float]) -> None:
        self.times = tuple(sorted(float(time) for time in times))
        if not self.times or not all(0 <= time < math.inf for time in self.times):
            raise ValueError("a schedule needs at least one time, and all of them in epochs from 0 on")

    def count(self, time: float) -> int:
        """How many of the times have come."""
        return bisect_right(self.times, time)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.times)} times, {self.times[0]:g} to {self.times[-1]:g} epochs)"


class QuadraticSchedule(AtTimes):
    """SeLa's times, dense early.

        t_j = (epochs + 1.01) (j / (n - 1))^2        j = 0 ... n - 1

    Args:
        epochs: of the training. The last time lies past its end: SeLa's loop runs an epoch more, in which it comes if
            the last batch of each epoch counts as a whole one, as it does there.
        n_relabels: n.

    Source: Asano, Rupprecht, Vedaldi, ICLR 2020, appendix A.1; the constants are those of the authors' program.
    """

    def __init__(self, epochs: float, n_relabels: int) -> None:
        _check(epochs, n_relabels)
        super().__init__((epochs + 1.01) * np.linspace(0, 1, n_relabels) ** 2)


class LogarithmicSchedule(AtTimes):
    """Times that are ever further apart, by the same factor: denser early than the quadratic ones.

    t_j = (1 + epochs)^(j / n) - 1        j = 0 ... n - 1
    """

    def __init__(self, epochs: float, n_relabels: int) -> None:
        _check(epochs, n_relabels)
        super().__init__(np.expm1(math.log1p(epochs) * np.arange(n_relabels) / n_relabels))


class LinearSchedule(AtTimes):
    """Times at equal distances.

    t_j = epochs j / n        j = 0 ... n - 1
    """

    def __init__(self, epochs: float, n_relabels: int) -> None:
        _check(epochs, n_relabels)
        super().__init__(epochs * np.arange(n_relabels) / n_relabels)


@dataclass(frozen=True)
class _Every:
    every: float
    unit = ""

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise ValueError(f"every {self.every!r} {self.unit} is no schedule; pass a number above 0")

    def count(self, time: float) -> int:
        """How many of the times have come, the one at 0 among them."""
        return math.floor(time / self.every + ROUNDING) + 1


class EveryEpochs(_Every):
    """At epoch 0, and each so many epochs (also parts of one) from then on, without an end."""

    unit = "epochs"


class EverySteps(_Every):
    """At step 0, and each so many steps from then on, without an end."""

    unit = "steps"


def _check(epochs: float, n_relabels: int) -> None:
    if not (math.isfinite(epochs) and epochs > 0 and n_relabels >= 1):
        raise ValueError(f"epochs={epochs!r} and n_relabels={n_relabels!r}; both must be above 0")
