"""What a solve will take, told before it starts: bytes, passes, memory, time; in one process, and over several."""

from otlabel.planning.cards import CARDS, NETWORK
from otlabel.planning.messages import Step, conversation
from otlabel.planning.model import Estimate, estimate
from otlabel.planning.rates import measure_read_rate, measure_sweep_rate

__all__ = [
    "CARDS", "NETWORK", "Estimate", "Step", "conversation", "estimate", "measure_read_rate", "measure_sweep_rate",
]  # fmt: skip
