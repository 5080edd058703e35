"""Where the time of solves goes: kernels by their time, host functions by theirs."""

from __future__ import annotations

import cProfile
import io
import math
import pstats
from collections.abc import Callable
from typing import Any

import torch

import otlabel
from card.checking import Check, wait
from card.scores import zipf_problem
from card.solves import how


def profile(check: Check) -> None:
    """Where a solve's time goes: kernels by their time, host functions by theirs, as text files beside the report."""
    plan = check.plan
    problem = zipf_problem(plan.solves[-1], plan.device)
    _, n_rows, dim, n_classes = plan.factored
    features = torch.randn(n_rows // 8, dim, device=plan.device).half()
    head = otlabel.linear_scores(features, torch.randn(n_classes, dim, device=plan.device) / math.sqrt(dim))
    for name, scores, rounding in (
        ("argmax", problem.scores, "argmax"), ("exact", problem.scores, "exact"), ("head", head, "argmax"),
    ):  # fmt: skip
        if name not in plan.profiled:
            continue
        settings = how(rounding)
        check.row(
            name, lambda n=name, s=scores, o=settings: _profiled(check, n, lambda: otlabel.sinkhorn_assign(s, **o)), 8
        )
    if "k-means" not in plan.profiled:
        return
    n_rows, dim, n_clusters = plan.clusters
    features = torch.randn(n_rows // 4, dim, device=plan.device)
    model = otlabel.BalancedKMeans(n_clusters, init=features[:n_clusters].cpu().numpy(), max_iter=1, random_state=0)
    check.row("k-means", lambda: _profiled(check, "k-means", lambda: model.fit(features)), 8)


def _profiled(check: Check, name: str, work: Callable[[], Any]) -> str:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    def solve() -> None:
        work()
        wait(check.plan.device)

    solve()
    host = cProfile.Profile()
    host.runcall(solve)
    text = io.StringIO()
    pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(30)
    on_card = check.plan.device == "cuda"
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_card else [ProfilerActivity.CPU]
    with torch_profile(activities=kinds) as seen:
        solve()
    kernels = seen.key_averages().table(
        sort_by="cuda_time_total" if on_card else "cpu_time_total", row_limit=40, max_name_column_width=60
    )
    file = check.out / f"profile-{name}.txt"
    file.write_text(f"{text.getvalue()}\n{kernels}\n", encoding="utf-8")
    return file.name
