"""Scores as they are measured on, made on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from peers import CardProblem

RANK = 32  # of a router's logits


def zipf_problem(shape: tuple[int, int], device: str, seconds: float = math.inf, seed: int = 0) -> CardProblem:
    """Log-probabilities (float16) of a random linear head on Zipf-distributed clusters, made on the device."""
    n_rows, n_classes = shape
    generator = torch.Generator(device).manual_seed(seed)
    n_clusters, dim = max(1, n_classes // 2), 64
    centres = torch.randn(n_clusters, dim, device=device, generator=generator)
    shares = 1.0 / torch.arange(1, n_clusters + 1, device=device, dtype=torch.float64)
    weight = torch.randn(dim, n_classes, device=device, generator=generator) / math.sqrt(dim)
    offset = 0.5 * torch.randn(n_classes, device=device, generator=generator)
    scores = torch.empty(shape, dtype=torch.float16, device=device)
    features = torch.empty(n_rows, dim, device=device)
    for part in parts_of(n_rows, max(1, (1 << 28) // n_classes)):
        size = part.stop - part.start
        clusters = torch.multinomial(shares, size, replacement=True, generator=generator)
        noise = torch.randn(size, dim, device=device, generator=generator)
        features[part] = centres[clusters] + 0.5 * noise
        scores[part] = torch.log_softmax(features[part] @ weight + offset, 1)
    return CardProblem(scores, features, weight, offset, seconds)


def parts_of(n_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def router_logits(shape: tuple[int, int], device: str, seed: int = 5) -> torch.Tensor:
    """Logits of a router in float16: some experts are wanted by most tokens, and tokens differ in few directions."""
    n_rows, n_classes = shape
    generator = torch.Generator(device).manual_seed(seed)
    favour = torch.randn(n_classes, device=device, generator=generator)
    weight = torch.randn(RANK, n_classes, device=device, generator=generator) * 1.5 / math.sqrt(RANK)
    hidden = torch.randn(n_rows, RANK, device=device, generator=generator)
    noise = 0.5 * torch.randn(shape, device=device, generator=generator)
    return (noise.add_(favour).addmm_(hidden, weight)).half()
