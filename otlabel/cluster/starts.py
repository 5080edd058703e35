"""Where the centres of a start come from, and what becomes of one that is put elsewhere once the rows are clustered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from otlabel.cluster.alternation import Clustering, Fit, alternate, far_rows
from otlabel.cluster.settings import checked_centres
from otlabel.curation import centred
from otlabel.ranks.rowset import RowSet
from otlabel.sources import as_array, draw_rows

INIT_ROWS, INIT_ROWS_A_CLUSTER = 20_000, 20  # sample that k-means++ draws centres from
SWAP_ITERATIONS = 8  # after which a centre that has moved shows what it is worth: three try more for less
LESS = 1e-12  # of the inertia: what counts as less


def first_centres(rows: RowSet, n_clusters: int, init: Any, seed: int) -> np.ndarray:
    """(K, D) of one start; where all rows are looked at for each centre, on a sample if there are many."""
    n_rows = rows.n_rows
    if isinstance(init, str) and init == "random":
        return rows.gathered(draw_rows(n_rows, n_clusters, np.random.default_rng(seed)))
    if not (isinstance(init, str) or callable(init)):
        return init
    size = min(n_rows, max(INIT_ROWS, INIT_ROWS_A_CLUSTER * n_clusters))
    sample = rows.gathered(draw_rows(n_rows, size, np.random.default_rng(seed)))
    if callable(init):
        made = init(sample, n_clusters, random_state=np.random.RandomState(seed))
        centres = checked_centres(made, (n_clusters, sample.shape[1]), None)
        return rows.communicator.broadcast("init", {"centres": centres.astype(np.float64)})["centres"]
    from sklearn.cluster import kmeans_plusplus

    moved, middle, unit = centred(sample)
    centres, _ = kmeans_plusplus(
        moved.astype(np.float64), n_clusters, random_state=seed
    )  # float32 takes 20 times longer
    return centres.astype(np.float64) * unit + middle


def swapped(fit: Fit, found: Clustering, n_swaps: int, seed: int) -> Clustering:
    """The best of what becomes of a clustering where one centre after the other is put at a row, so many times.

    Any centre may go, to a row drawn in proportion to its squared distance from its own: a few iterations tell whether
    the inertia falls, and only then the swap stands. It leads out of local minima that iterations end in.
    """
    random, short = np.random.default_rng(seed), replace(fit, max_iter=min(SWAP_ITERATIONS, fit.max_iter))
    n_iter, best = found.n_iter, found
    for _ in range(n_swaps):
        centres = best.centres.astype(np.float64)
        away = far_rows(fit, as_array(best.assignment.labels), best.centres, 1, random)
        if not len(away):  # all rows are at their centres
            break
        centres[random.integers(len(centres))] = away[0]
        tried = alternate(short, centres, seed)
        n_iter += tried.n_iter
        best = tried if tried.inertia < best.inertia * (1 - LESS) else best
    if best is not found:
        best = alternate(fit, best.centres, seed, best.assignment)
        n_iter += best.n_iter
    return replace(best, n_iter=n_iter)
