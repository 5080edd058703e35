"""Several labels a sample, as a router takes experts: exact labels against one dual step of "quantile balancing"."""

from __future__ import annotations

import warnings
from typing import Any

import torch

import otlabel
from card.checking import Check, median_of, wait
from card.right import apart_and_allowed
from card.scores import router_logits
from card.solves import solve_row
from otlabel.errors import OtlabelWarning
from otlabel.sources import TensorSource

ON_CARD = "exact, of it on the card"


def time_routing(check: Check) -> None:
    """A router's logits: exact labels, what of their time the card takes, and one dual step, which is not exact."""
    plan, (n_rows, n_classes, k) = check.plan, check.plan.routed
    warnings.simplefilter("ignore", OtlabelWarning)
    settings: dict[str, Any] = {"labels_per_sample": k}
    small = router_logits((n_rows // 50, n_classes), plan.device)
    check.keep("shape", [n_rows, n_classes, k])
    check.row("against the CPU", lambda: _compared(small, settings))
    check.row("compiling", lambda: solve_row(small, plan, settings)["seconds"])
    logits = router_logits((n_rows, n_classes), plan.device)
    exact = check.row("exact", lambda: solve_row(logits, plan, settings), 5)
    if plan.device == "cuda":
        check.row(ON_CARD, lambda: _card_seconds(logits, settings), 5)
    step = check.row("one dual step", lambda: median_of(lambda: dual_step(logits, k), plan))
    check.row("its largest load, in fair shares", lambda: _largest_load(logits, k))
    if exact and step:
        check.keep("exact over one dual step", exact["seconds"] / step)


def _compared(logits: torch.Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    found = otlabel.sinkhorn_assign(TensorSource(logits), **settings)
    expected = otlabel.sinkhorn_assign(logits.cpu().numpy(), **settings)
    apart, allowed = apart_and_allowed(found, expected)
    wrong = [] if apart <= allowed else [f"{found.value!r} on the card, {expected.value!r} here"]
    return {"value": found.value, "cpu_value": expected.value, "apart": apart, "allowed": allowed, "wrong": wrong}


def _card_seconds(logits: torch.Tensor, settings: dict[str, Any]) -> float:
    """All kernels and copies together."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CUDA]) as seen:
        otlabel.sinkhorn_assign(logits, **settings)
        wait("cuda")
    return float(sum(event.self_device_time_total for event in seen.key_averages())) / 1e6


def dual_step(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Biases (K,) at which as many tokens as each expert has room for choose it, were the others to stay at zero."""
    n_rows, n_classes = logits.shape
    u = logits.float()
    ranked = u.topk(k + 1, 1).values
    last, first_out = ranked[:, -2:-1], ranked[:, -1:]
    ahead = u - torch.where(u >= last, first_out, last)  # of the last of the other experts that a token takes
    return ahead.neg_().T.contiguous().kthvalue(n_rows * k // n_classes, 1).values


def _largest_load(logits: torch.Tensor, k: int) -> float:
    chosen = (logits + dual_step(logits, k)).topk(k, 1).indices
    return float(chosen.flatten().bincount().max()) * logits.shape[1] / chosen.numel()
