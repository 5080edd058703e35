"""Balanced k-means: the assignment step is the exact one, each cluster takes as many rows as it is asked to.

An iteration labels all rows by `sinkhorn_assign`, from where the last one ended, and moves each centre to the mean of
its rows in one further pass. Neither step raises the inertia, so it falls until nothing moves any more. Rows are only
ever looked at block by block: they may lie in files and need not fit into memory.
"""

from __future__ import annotations

from otlabel.cluster.estimator import BalancedKMeans
from otlabel.cluster.residual import ResidualBalancedKMeans

__all__ = ["BalancedKMeans", "ResidualBalancedKMeans"]
