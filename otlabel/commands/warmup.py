"""`otlabel warmup`: compile what the first solve or clustering would else compile while somebody waits for it."""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from typing import Any

from otlabel.commands import options
from otlabel.text import duration

N_ROWS, N_CLASSES = 40_000, 128  # large enough for every way that a solve may go
DTYPES = "float16", "float32", "float64"


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "warmup",
        run,
        help="compile for this machine now, not in the first solve",
        description="Compile for this machine now what the first solve of each type of scores would compile, and keep "
        "it: in NUMBA_CACHE_DIR, beside the package, or in your cache. Run it where an image for containers is built.",
        epilog="example: otlabel warmup",
    )
    options.progress(parser)


def run(arguments: argparse.Namespace) -> int:
    """Small problems that go every way."""
    import numpy as np

    from otlabel import certify, curate, linear_scores, sinkhorn_assign
    from otlabel.errors import MissingPackageError

    begun, rng = time.perf_counter(), np.random.default_rng(0)
    features = rng.standard_normal((N_ROWS, 16)).astype("float32")
    with (
        options.doing(arguments, "compiling for this machine, once", len(DTYPES) + 2, "kinds of problems") as tell,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for number, dtype in enumerate(DTYPES):
            tell(number, dtype)
            scores = (3 * rng.standard_normal((N_ROWS, N_CLASSES))).astype(dtype)
            result = sinkhorn_assign(scores)
            result.soft_labels(scores[:10])
            certify(scores, result.labels)
        sinkhorn_assign(scores[:1000])  # of any type, what fits the cache
        tell(len(DTYPES), "features times a head")
        sinkhorn_assign(linear_scores(features, rng.standard_normal((N_CLASSES, 16)), normalize=True))
        tell(len(DTYPES) + 1, "clusters")
        with contextlib.suppress(MissingPackageError):  # scikit-learn's part of this
            from otlabel import BalancedKMeans

            wide = rng.standard_normal((N_ROWS // 4, N_CLASSES)).astype("float32")
            BalancedKMeans(10, max_iter=2).fit(wide)  # large clusters: many moves between two of them
            curate(features, N_CLASSES)
    print(f"compiled for this machine in {duration(time.perf_counter() - begun)}")
    return 0
