"""`soft_assign` in a training step against the loops of SwAV and of DINOv3."""

from __future__ import annotations

import torch

import otlabel
from card.checking import Check, Plan, free, median_of


def time_batch(check: Check) -> None:
    """soft_assign in a training step against SwAV's and DINO's loops."""
    for shape in check.plan.batches:
        name = "{} x {}".format(*shape)
        generator = torch.Generator(check.plan.device).manual_seed(2)
        rows, prototypes = (
            torch.nn.functional.normalize(torch.randn(size, 128, device=check.plan.device, generator=generator))
            for size in shape
        )
        logits = rows @ prototypes.T
        inner = 50 if check.plan.device == "cuda" and logits.numel() < 1 << 22 else 3
        loops = {"soft_assign": otlabel.soft_assign, "swav": swav_loop, "dino": dino_loop}
        for loop, call in loops.items():
            check.row(
                f"{loop}, {name}",
                lambda c=call, x=logits, n=inner: median_of(lambda: c(x, 0.05, 3), check.plan, inner=n),
            )
        check.row(
            f"difference, {name}",
            lambda x=logits: float((otlabel.soft_assign(x, 0.05) - swav_loop(x, 0.05, 3)).abs().max()),
        )
        if check.plan.device == "cuda":
            check.row(f"soft_assign as a graph, {name}", lambda x=logits, n=inner: _as_graph(x, check.plan, n))
        del rows, prototypes, logits
        free(check.plan.device)


def _as_graph(logits: torch.Tensor, plan: Plan, inner: int) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        otlabel.soft_assign(logits, 0.05)
    return median_of(graph.replay, plan, inner=inner)


def swav_loop(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """The iterations as SwAV states them, for one process."""
    plan = torch.exp(logits / epsilon).T
    n_classes, n_rows = plan.shape
    plan = plan / plan.sum()
    for _ in range(n_iterations):
        plan = plan / plan.sum(1, keepdim=True) / n_classes
        plan = plan / plan.sum(0, keepdim=True) / n_rows
    return (plan * n_rows).T


def dino_loop(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """The same as DINOv2 and DINOv3 do it: every division in place."""
    plan = logits.float().div(epsilon).exp_().T
    n_classes, n_rows = plan.shape
    plan /= plan.sum()
    for _ in range(n_iterations):
        plan /= plan.sum(1, keepdim=True)
        plan /= n_classes
        plan /= plan.sum(0, keepdim=True)
        plan /= n_rows
    plan *= n_rows
    return plan.T
