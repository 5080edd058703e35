"""What each process of `ranks` has at once, as the server that forks them imports this: packages, compiled code."""

from __future__ import annotations

import contextlib
import os

import h5py  # noqa: F401
import numpy as np
import pytest  # noqa: F401
import torch.distributed  # noqa: F401

from otlabel import KL, Range, sinkhorn_assign
from otlabel.selflabel import SelfLabeler  # noqa: F401

with contextlib.suppress(ImportError):
    import otlabel.training.module  # noqa: F401
with contextlib.suppress(ImportError):
    import sklearn.cluster
    import sklearn.metrics  # noqa: F401

os.environ["OTLABEL_NUM_THREADS"] = "1"  # a process that has threads must not be forked
for dtype in (np.float32, np.float64):
    scores = np.random.default_rng(0).standard_normal((40, 4)).astype(dtype)
    for rule in ({}, {"classes": Range(5, 20)}, {"classes": KL(1.0), "samples": KL(1.0)}, {"abstain": 0.1}):
        sinkhorn_assign(scores, **rule)  # type: ignore[arg-type]
