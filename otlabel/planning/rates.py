"""Measured on the spot: how fast this machine sweeps scores, and how fast a file comes."""

from __future__ import annotations

import time

import numpy as np

from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.sources import ITEM_BYTES, ArraySource, Opened, linear_scores, read_rows

PROBE_ENTRIES = 1 << 21  # scores of the block that the sweep is measured on
PROBE_WEIGHTS = 1 << 24  # and at most so many weights, where scores are made of features
PROBE_SECONDS = 0.2
READ_BYTES = 32 << 20  # and of the file at most so much is read to see how fast it comes


def measure_sweep_rate(n_classes: int, dtype: str, dim: int | None = None) -> float:
    """Scores a second of one pass in memory on all threads, from a fraction of a second on random scores.

    With `dim` they are made of random features of that length, of the type, by a head of at most so many classes.
    """
    random = np.random.default_rng(0)
    if dim is not None:
        n_classes = min(n_classes, max(1, PROBE_WEIGHTS // dim))
    rows = max(1, PROBE_ENTRIES // n_classes)
    numbers = random.standard_normal((rows, dim or n_classes), np.float32)
    if dtype == "bfloat16":
        source = ArraySource((numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.int16), dtype)
    else:
        stored = numbers.astype(dtype)
        source = ArraySource(stored.view(np.uint16) if dtype == "float16" else stored, dtype)
    probe = Opened.of(source)
    if dim is not None:
        probe = linear_scores(probe, random.standard_normal((n_classes, dim), np.float32))
    precision = np.float64 if dtype == "float64" else np.float32
    g = np.zeros(n_classes)
    sweep.sweep(RowSet(probe), g, 0.1, None, precision)  # compiled, if that was still to do
    begun, n_sweeps = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < PROBE_SECONDS:
        sweep.sweep(RowSet(probe), g, 0.1, None, precision)
        n_sweeps += 1
    return n_sweeps * rows * n_classes / passed


def measure_read_rate(scores: Opened) -> float:
    """Bytes a second that the first blocks come at; what the system still holds in memory comes faster than later."""
    row_bytes = scores.shape[1] * ITEM_BYTES[scores.dtype]
    n_bytes, begun = 0, time.perf_counter()
    for start, stop in RowSet(scores).spans:
        stop = min(stop, start + max(1, (READ_BYTES - n_bytes) // row_bytes))
        block = read_rows(scores.source, start, stop)
        if isinstance(block, np.ndarray):
            block.reshape(-1)[:: 4096 // block.itemsize].max()  # a mapped file is read where it is touched
        n_bytes += (stop - start) * row_bytes
        if n_bytes + row_bytes > READ_BYTES:
            break
    return n_bytes / max(time.perf_counter() - begun, 1e-9)
