"""Steps of balanced k-means."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

import otlabel
from card.checking import Check, median_of, timed
from otlabel.cluster.alternation import PLAN_TOLERANCE
from otlabel.cluster.moments import EPSILON_SHARE, moments
from otlabel.ranks.rowset import RowSet
from otlabel.sources import TensorSource


def time_clusters(check: Check) -> None:
    """Balanced k-means on the card: a step, which is assignment, repair and means, against its product.

    The repair takes far longer than the product, and grows faster than the number of rows does: so fewer rows come
    first, and more of them where time is left. Centres are random rows: the first assignments have most to repair.
    """
    plan, (n_rows, _, n_clusters) = check.plan, check.plan.clusters
    features, centres = _drawn(check)
    start = centres.cpu().numpy()
    check.keep("shape", list(plan.clusters))
    product = check.row("product", lambda: median_of(lambda: features @ centres.T, plan))
    labels, source = torch.randint(0, n_clusters, (n_rows,)).numpy(), TensorSource(features)
    check.row("means", lambda: timed(lambda: moments(RowSet(source), labels, start), plan, repeats=2)["median"])
    closeness, epsilon = otlabel.sources.closeness(source, start), EPSILON_SHARE * float(features.var(0).sum())
    entropic: dict[str, Any] = {"epsilon": epsilon, "tol": PLAN_TOLERANCE, "rounding": "argmax"}
    check.row(
        "assignment, entropic", lambda: timed(lambda: otlabel.sinkhorn_assign(closeness, **entropic), plan, repeats=2)
    )

    def step(rows: torch.Tensor) -> dict[str, float]:
        """Of a fit with one iteration, which labels twice."""
        begun = time.perf_counter()
        model = otlabel.BalancedKMeans(n_clusters, init=start, max_iter=1, tol=0.0, random_state=0).fit(rows)
        return {"seconds": (time.perf_counter() - begun) / 2, "size_spread": int(np.ptp(model.sizes_))}

    check.row("compiling", lambda: step(features[: 4 * n_clusters])["seconds"])
    seconds = 0.0
    for share in (16, 4, 1):
        rows = features[: n_rows // share]
        found = check.row("step" if share == 1 else f"step of {len(rows)} rows", lambda r=rows: step(r), 12 * seconds)
        if not found:
            break
        seconds = found["seconds"]
        if share == 1 and product:
            check.keep("step_over_product", seconds / product)


def _drawn(check: Check) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around 64 places, and some of them to be centres."""
    device, (n_rows, dim, n_clusters) = check.plan.device, check.plan.clusters
    generator = torch.Generator(device).manual_seed(4)
    features = torch.randn(n_rows, dim, device=device, generator=generator)
    places = 2 * torch.randn(64, dim, device=device, generator=generator)
    features += places[torch.randint(0, 64, (n_rows,), device=device, generator=generator)]
    return features, features[torch.randperm(n_rows, device=device, generator=generator)[:n_clusters]]
