"""What a solve comes to, whichever way it went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otlabel.solver.newton import Solution
from otlabel.solver.outcome import Certificate
from otlabel.solver.problem import Problem


@dataclass(frozen=True, eq=False)
class Answer:
    """Plan and labels of a problem, and what proves them; rows are those here, as they were given."""

    problem: Problem
    solution: Solution
    labels: np.ndarray  # (N,) whole numbers; the class after the last one stands for staying unlabelled
    proof: Certificate
    label_units: np.ndarray  # (K,) units of each class
    potentials: np.ndarray  # (K,) that prove the labels
