"""What a solve will take, told before it starts: bytes, passes, memory, time; in one process, and over several."""

from otlabel.planning.process import Estimate, estimate
from otlabel.planning.ranks import CARDS, NETWORK, RanksEstimate, Step, conversation, estimate_ranks
from otlabel.planning.rates import measure_read_rate, measure_sweep_rate

__all__ = [
    "CARDS", "NETWORK", "Estimate", "RanksEstimate", "Step", "conversation", "estimate", "estimate_ranks",
    "measure_read_rate", "measure_sweep_rate",
]  # fmt: skip
