"""Rates of machines that nobody can measure here: data sheets of cards, and what is assumed of networks and hosts."""

from __future__ import annotations

from dataclasses import dataclass

NETWORK = 25e9  # bytes a second and direction between machines, where none is stated: 200 Gb/s, one InfiniBand HDR port
HOST_RATE = 1e9  # scores a second that a host sweeps, where that is not measured: two cores
CARD_KEEPS, HOST_KEEPS = 0.75, 0.5  # of a card's memory, or else of its host's, a copy may take
SHARE = 0.5  # of a data sheet's rates is counted on: an H200 read 4.2 to 4.5 of its 4.8 TB/s, a sweep 3.1
SCORE_BYTES = 16, 20  # through a card's memory for each score that is made: product, log-softmax, and 1 or 2 reads
FUSED_CLASSES = 8192  # up to here a sweep on a card reads a score once, beyond that twice; a curvature is K x K there


@dataclass(frozen=True)
class Card:
    """What a rank computes on, in bytes, bytes a second and operations a second of its maker's data sheet."""

    name: str
    memory: float
    bandwidth: float  # of its memory
    float32: float  # outside of tensor cores: what products of features and weights are made with
    bfloat16: float  # on tensor cores, dense
    link: float  # from host memory, each direction
    host_memory: float  # of a server of eight, an eighth

    def sweep_rate(self, n_classes: int, dim: int | None, item: int) -> float:
        """Scores a second that may be counted on, of `item` bytes as they are stored or made of `dim` features."""
        reads = 1 if n_classes <= FUSED_CLASSES else 2
        if dim is None:
            return SHARE * self.bandwidth / (reads * item)
        return SHARE / (2 * dim / self.float32 + SCORE_BYTES[reads - 1] / self.bandwidth)


# NVIDIA's data sheets: H200, H100 and A100 80 GB (all SXM); host memory of DGX H200, H100 and A100: 2 TB for 8 cards.
CARDS = {
    "h200": Card("H200", 141e9, 4.8e12, 67e12, 989e12, 64e9, 250e9),
    "h100": Card("H100", 80e9, 3.35e12, 67e12, 989e12, 64e9, 250e9),
    "a100": Card("A100", 80e9, 2.039e12, 19.5e12, 312e12, 32e9, 250e9),
}
