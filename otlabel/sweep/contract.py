"""The contract of a backend: what it finds in a block of rows, N of them here, and how it hands that over.

A block is (N, K) scores in storage form: a NumPy array for the compiled backend (float16 as its uint16 bits, bfloat16
as its int16 bits), a tensor for the others. Sweeps only hand it on, so that a backend may take anything else that a
source of its own reads, such as pieces in CSR, whose missing pairs are -inf. u = scores + potentials, in the precision
of the potentials (K,). Every call returns a handle at once; `result()` waits, and the arrays that were passed are
filled by then, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Arrays = tuple[np.ndarray, ...]


class Handle(Protocol[T_co]):
    """What a block will give. It keeps neither the block nor its memory."""

    def result(self) -> T_co:
        """What the block gives, once it is there."""


@dataclass(frozen=True, eq=False)
class Ready(Generic[T]):
    """A handle of what is there already."""

    value: T

    def result(self) -> T:
        """It."""
        return self.value


@dataclass(frozen=True, eq=False)
class Waiting(Generic[T]):
    """A handle of what a call waits for."""

    wait: Callable[[], T]

    def result(self) -> T:
        """What the call gives."""
        return self.wait()


class Backend(Protocol):
    """One block of rows, reduced in six ways."""

    def sweep_block(
        self,
        block: Any,
        potentials: np.ndarray,
        inverse_epsilon: Any,
        weights: np.ndarray,
        row_exponent: float,
        labels: np.ndarray,
        row_mass: np.ndarray,
        mass: np.ndarray,
        counts: np.ndarray,
    ) -> Handle[tuple[float, float]]:
        """Sums over rows of weight * max u and of weight * log sum exp((u - max u) / epsilon).

        Args:
            block: (N, K).
            potentials: (K,) float32 or float64.
            inverse_epsilon: 1 / epsilon in that precision.
            weights: (N,) float64; empty: one each.
            row_exponent: 0, or rows take weight * exp(row_exponent * epsilon * logsumexp(u / epsilon)).
            labels: (N,) int32, set to the lowest best class; a device leaves them where it is empty.
            row_mass: (N,) float64, set to what each row takes; not touched if row_exponent is 0.
            mass: (K,) float64, to which is added what each class takes.
            counts: (K,) int64, to which is added how many units have each label; a device does not where it is empty.
        """

    def inspect_block(
        self,
        block: Any,
        multipliers: np.ndarray,
        step: int,
        hashes: np.ndarray,
        tops: np.ndarray,
        bottoms: np.ndarray,
    ) -> Handle[tuple[int, int]]:
        """How many scores are NaN or +inf, and how many -inf.

        Args:
            block: (N, K).
            multipliers: (K,) uint64, odd.
            step: every which score of a row is hashed.
            hashes: (N,) uint64, set; 0 for a row of one number.
            tops: (N,) float32 or float64, set to the largest score of each row.
            bottoms: (N,) of the same type, set to the smallest finite one.
        """

    def label_block(
        self, block: Any, potentials: np.ndarray, labels: np.ndarray, best: np.ndarray, own: np.ndarray
    ) -> Handle[None]:
        """In float64: sets best (N,) to max u, labels (N,) int32 that are -1 to its class, own (N,) to u there."""

    def candidates_block(
        self, block: Any, potentials: np.ndarray, labels: np.ndarray, slack: float, tie: float
    ) -> Handle[Arrays]:
        """In float64: the rows with more than one class within `slack` of their label.

        Labels (N,) int32 that are -1, or short of the best class by more than `tie`, are set to it first. Gives rows
        (R,), how many classes each has (R,), and, row after row, classes int32 and scores float64 (E,).
        """

    def plan_block(self, block: Any, potentials: np.ndarray, inverse_epsilon: Any, plan: np.ndarray) -> Handle[None]:
        """Sets plan (N, K) to softmax(u / epsilon)."""

    def sparse_plan_block(
        self, block: Any, rows: np.ndarray, potentials: np.ndarray, inverse_epsilon: Any, share: float
    ) -> Handle[Arrays]:
        """Of the given rows (R,) of the block, plan entries above `share` of their row's largest.

        Gives how many each row has (R,), and, row after row, classes int32 and values float32 (E,).
        """


class DeviceBackend(Backend, Protocol):
    """One block of rows on a device, and what stays there."""

    def factors_block(
        self, block: Any, rows: Any, potentials: np.ndarray, inverse_epsilon: Any, roots: Any
    ) -> Handle[Any]:
        """The given rows (R,) of the plan times roots (R,) of up to 1, (R, K); all of them tensors there."""


class Immediate:
    """The backend that plain functions of a module are, whose work is done when they return."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Callable[..., Handle[Any]]:
        function = getattr(self._functions, name)
        return lambda *arguments: Ready(function(*arguments))
