"""One pass over rows: the compiled kernels against plain torch, and plain torch against the formulas in float64."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numba import float32, njit, uint16, vectorize
from scipy.sparse import csr_array
from scipy.special import logsumexp, softmax
from threadpoolctl import threadpool_info

from otlabel import sweep
from otlabel.ranks.rowset import RowSet
from otlabel.sources import Source, open_scores, read_rows
from otlabel.sweep import cpu, numerics, reference
from otlabel.sweep.blocks import partition
from otlabel.sweep.contract import Immediate
from otlabel.sweep.pool import blas_on_one_thread, run_tasks, thread_count

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REDUCED_IN = [(dtype, np.float64) for dtype in DTYPES] + [(dtype, np.float32) for dtype in DTYPES[:3]]
SHAPES = [(1, 1), (1, 7), (5, 1), (2, 2), (33, 3), (257, 17), (700, 31), (513, 130), (3, 1025)]
NO_WEIGHTS = np.empty(0)


class Sums(NamedTuple):
    linear: float
    entropic: float
    mass: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


def stored(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0, forbidden: float = 0.0) -> torch.Tensor:
    """Scores as stored; a share of them forbidden, never a whole row."""
    rng = np.random.default_rng([seed, *shape])
    scores = 2.0 * rng.standard_normal(shape)
    shut = rng.random(shape) < forbidden
    shut[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = False
    scores[shut] = -np.inf
    return torch.from_numpy(scores).to(dtype)


def run(module: Any, scores: torch.Tensor, potentials: np.ndarray, epsilon: float, weights=NO_WEIGHTS) -> Sums:
    block = read_rows(open_scores(scores).source, 0, len(scores)) if module is cpu else scores
    n_rows, n_classes = scores.shape
    labels, mass, counts = np.empty(n_rows, np.int32), np.zeros(n_classes), np.zeros(n_classes, np.int64)
    inverse = potentials.dtype.type(1 / epsilon)
    sums = module.sweep_block(block, potentials, inverse, weights, 0.0, labels, np.empty(0), mass, counts)
    return Sums(*sums, mass, labels, counts)


def formula(scores: torch.Tensor, potentials: np.ndarray, epsilon: float, weights=NO_WEIGHTS) -> Sums:
    """The definition in float64 NumPy and SciPy."""
    u = scores.double().numpy() + potentials.astype(np.float64)
    weights = weights if weights.size else np.ones(len(u))
    soft_max = logsumexp(u / epsilon, axis=1) - u.max(1) / epsilon
    labels = u.argmax(1)
    counts = np.bincount(labels, weights, u.shape[1])
    return Sums(weights @ u.max(1), weights @ soft_max, weights @ softmax(u / epsilon, axis=1), labels, counts)


def assert_same(found: Sums, exact: Sums, relative: float, largest: float) -> None:
    """Sums within `relative` of the mass they add up; label differences only where float32 cannot tell."""
    rows = exact.mass.sum()
    assert abs(found.linear - exact.linear) <= relative * rows * largest
    assert abs(found.entropic - exact.entropic) <= relative * (rows + exact.entropic)
    assert np.abs(found.mass - exact.mass).sum() <= relative * rows
    np.testing.assert_array_equal(found.labels, exact.labels)
    np.testing.assert_array_equal(found.counts, exact.counts)


def rounding_error(precision: type, largest: float, epsilon: float) -> float:
    """Of a softmax weight: u is rounded three times and divided by epsilon; 1e-6 (or 1e-15) for the exponential."""
    exponential = 1e-6 if precision is np.float32 else 1e-15
    return 3 * float(np.finfo(precision).eps) * largest / epsilon + exponential


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "precision"), REDUCED_IN, ids=str)
def test_sweep_is_the_formula(module, shape, dtype, precision) -> None:
    potentials = np.random.default_rng(1).standard_normal(shape[1]).astype(precision)
    for epsilon in (1.0, 0.04):
        scores = stored(shape, dtype)
        exact = formula(scores, potentials, epsilon)
        largest = float(scores.abs().max()) + float(np.abs(potentials).max())
        relative = rounding_error(precision, largest, epsilon)
        assert_same(run(module, scores, potentials, epsilon), exact, relative, largest)


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forbidden_pairs(module, dtype) -> None:
    scores = stored((300, 23), dtype, forbidden=0.6)
    potentials = np.random.default_rng(2).standard_normal(23)
    assert_same(run(module, scores, potentials, 0.1), formula(scores, potentials, 0.1), 1e-12, 12.0)


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
def test_class_without_mass_has_potential_minus_infinity(module) -> None:
    scores, potentials = stored((50, 4), torch.float32), np.array([0.0, -np.inf, 1.0, -np.inf])
    found = run(module, scores, potentials, 0.1)
    assert_same(found, formula(scores, potentials, 0.1), 1e-12, 12.0)
    assert found.counts[1] == found.counts[3] == 0
    assert found.mass[[1, 3]].max() <= 1e-300


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_weights_stand_for_repeated_rows(module, dtype) -> None:
    scores = stored((60, 9), dtype)
    weights = np.random.default_rng(3).integers(1, 6, 60)
    potentials = np.random.default_rng(4).standard_normal(9)
    weighted = run(module, scores, potentials, 0.2, weights.astype(np.float64))
    repeated = formula(scores.repeat_interleave(torch.from_numpy(weights), 0), potentials, 0.2)
    assert_same(weighted._replace(labels=np.repeat(weighted.labels, weights)), repeated, 1e-12, 12.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_class(dtype) -> None:
    scores = torch.randint(0, 2, (400, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = scores.double().numpy().argmax(1)
    for module in (cpu, reference):
        np.testing.assert_array_equal(run(module, scores, np.zeros(40), 1.0).labels, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_read_exactly(dtype) -> None:
    """All 65536 bit patterns but NaN and +inf, subnormals and both zeros included."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[~values.isnan() & (values != torch.inf)]
    scores = torch.stack([values, torch.full_like(values, -torch.inf)], 1)
    finite = torch.isfinite(values).numpy()
    source = open_scores(scores)
    labels, best, own = sweep.label(RowSet(source), np.zeros(2))
    np.testing.assert_array_equal(best, values.double().numpy())
    np.testing.assert_array_equal(labels[finite], 0)
    np.testing.assert_array_equal(own, best)


@pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="compiled code is switched off")
def test_halves_are_read_exactly_by_bits() -> None:
    """As where a processor has no instruction for them."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    numbers = halves.view(np.float16).astype(np.float32)
    halves, numbers = halves[~np.isnan(numbers) & (numbers < np.inf)], numbers[~np.isnan(numbers) & (numbers < np.inf)]
    np.testing.assert_array_equal(vectorize([float32(uint16)])(numerics.half_by_bits)(halves), numbers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_plan_is_the_softmax(dtype, precision) -> None:
    scores, potentials = stored((130, 19), dtype, forbidden=0.3), np.random.default_rng(5).standard_normal(19)
    exact = softmax((scores.double().numpy() + potentials) / 0.1, axis=1)
    relative = rounding_error(precision, 10.0, 0.1)
    for module in (cpu, reference):
        plan = np.empty((130, 19), precision)
        block = read_rows(open_scores(scores).source, 0, 130) if module is cpu else scores
        module.plan_block(block, potentials.astype(precision), precision(10.0), plan)
        np.testing.assert_allclose(plan, exact, rtol=relative, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.5])
def test_sparse_plan_keeps_what_is_above_the_share(dtype, share: float) -> None:
    scores, potentials = stored((130, 19), dtype, forbidden=0.3), np.random.default_rng(11).standard_normal(19)
    rows = np.array([0, 3, 64, 65, 129])
    exact = softmax((scores.double().numpy() + potentials) / 0.7, axis=1)[rows]
    kept = exact > np.maximum(share * exact.max(1, keepdims=True), 1e-300)
    for module in (cpu, reference):
        block = read_rows(open_scores(scores).source, 0, 130) if module is cpu else scores
        sizes, classes, values = module.sparse_plan_block(block, rows, potentials, 1 / 0.7, max(share, 1e-300))
        np.testing.assert_array_equal(sizes, kept.sum(1))
        np.testing.assert_array_equal(classes, np.nonzero(kept)[1])
        np.testing.assert_allclose(values, exact[kept], rtol=2e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_and_what_they_fall_short_of(dtype) -> None:
    scores, potentials = stored((200, 13), dtype), np.random.default_rng(6).standard_normal(13)
    u = scores.double().numpy() + potentials
    given = np.random.default_rng(7).integers(-1, 13, 200).astype(np.int32)
    expected = np.where(given < 0, u.argmax(1), given)
    for module in (cpu, reference):
        labels, best, own = given.copy(), np.empty(200), np.empty(200)
        module.label_block(
            read_rows(open_scores(scores).source, 0, 200) if module is cpu else scores, potentials, labels, best, own
        )
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(best, u.max(1))
        np.testing.assert_array_equal(own, u[np.arange(200), expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slack", [0.0, 0.5, 100.0])
def test_candidates_are_all_classes_within_the_slack(dtype, slack: float) -> None:
    scores = stored((150, 11), dtype, forbidden=0.2)
    potentials = np.random.default_rng(8).standard_normal(11)
    values = scores.double().numpy()
    u = values + potentials
    given = np.where(np.arange(150) % 2, u.argmax(1), -1).astype(np.int32)
    given[::10] = 3  # short of the best, by more than the tie in most rows
    short = u.max(1) - u[np.arange(150), given] > 0.25
    expected = np.where((given < 0) | short, u.argmax(1), given)
    near = u >= u[np.arange(150), expected][:, None] - slack
    moving = near.sum(1) > 1
    for module in (cpu, reference):
        labels = given.copy()
        block = read_rows(open_scores(scores).source, 0, 150) if module is cpu else scores
        rows, sizes, classes, kept = module.candidates_block(block, potentials, labels, slack, 0.25)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(rows, np.flatnonzero(moving))
        np.testing.assert_array_equal(sizes, near.sum(1)[moving])
        row, column = np.nonzero(near & moving[:, None])
        np.testing.assert_array_equal(classes, column)
        np.testing.assert_array_equal(kept, values[row, column])


def inspect(module: Any, scores: torch.Tensor) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """(how many are NaN or +inf, how many -inf), and each row's largest and smallest finite score."""
    n_rows, n_classes = scores.shape
    number = np.float64 if scores.dtype is torch.float64 else np.float32
    hashes, tops, bottoms = np.empty(n_rows, np.uint64), np.empty(n_rows, number), np.empty(n_rows, number)
    block = read_rows(open_scores(scores).source, 0, n_rows) if module is cpu else scores
    multipliers = np.random.default_rng(9).integers(0, 2**64, n_classes, dtype=np.uint64) | np.uint64(1)
    return tuple(module.inspect_block(block, multipliers, 1, hashes, tops, bottoms)), tops, bottoms


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inspection_counts_what_is_no_score(dtype) -> None:
    scores = stored((90, 12), dtype)
    scores[5, :3] = -torch.inf
    finite = scores.double().masked_fill(scores == -torch.inf, torch.inf)
    for module in (cpu, reference):
        found, tops, bottoms = inspect(module, scores)
        assert found == (0, 3)
        np.testing.assert_array_equal(tops, scores.double().amax(1).numpy())
        np.testing.assert_array_equal(bottoms, finite.amin(1).numpy())
    scores[3, 4], scores[70, 0], scores[71, 11] = torch.nan, torch.inf, -torch.nan
    for module in (cpu, reference):
        assert inspect(module, scores)[0][0] == 3


def round_numbers(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Scores whose bits are nearly all zeros, forbidden pairs among them, so that careless hashes meet."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(-4, 5, shape, generator=generator).to(dtype)
    return scores.masked_fill(torch.rand(shape, generator=generator) < 0.2, -torch.inf)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_classes", [1, 2, 3, 8])
def test_hashes_are_equal_for_equal_rows_only(n_classes: int, dtype: torch.dtype) -> None:
    """Only rows that are all one number may share a hash: they are tied everywhere, whatever the number."""
    scores = round_numbers((2000, n_classes), dtype)
    hashes = sweep.inspect(RowSet(open_scores(scores)), every_score=True).hashes
    values = scores.double().numpy()
    uninformative = (values == values[:, :1]).all(1)
    for number in np.unique(hashes):
        alike = values[hashes == number]
        assert (alike == alike[0]).all() or uninformative[hashes == number].all()
    assert len(np.unique(hashes)) == len(np.unique(values[~uninformative], axis=0)) + uninformative.any()


@njit
def _apply_exp(x, out):
    for i in range(x.size):
        out[i] = numerics.exp(x[i])


@pytest.mark.parametrize(("precision", "least", "relative"), [(np.float32, -87.0, 1e-6), (np.float64, -708.0, 1e-15)])
def test_exponential(precision: type, least: float, relative: float) -> None:
    """Against extended precision over the whole range, and at the powers of two where the exponent changes."""
    steps = np.arange(0, -int(least / np.log(2)) - 1) * -np.log(2)
    near = np.concatenate([steps + d for d in (-1e-6, 0.0, 1e-6)])
    x = np.concatenate([np.linspace(least, 0, 400_001), near, -np.geomspace(1e-30, 1, 10_000)])
    x = np.clip(x, least, 0.0).astype(precision)
    found = np.empty_like(x)
    _apply_exp(x, found)
    exact = np.exp(x.astype(np.longdouble))
    assert float(np.abs(found / exact - 1).max()) <= relative


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_exponential_far_below_the_range_is_nothing(precision: type) -> None:
    x = np.array([-np.inf, -1e30, -1e4, -800.0], precision)
    found = np.empty_like(x)
    _apply_exp(x, found)
    assert (found >= 0).all()
    assert found.max() <= (2e-38 if precision is np.float32 else 1e-307)


@pytest.mark.parametrize("shape", [(1, 1), (10, 3), (20_000, 50), (3, 2_000_000), (5_000_000, 10)])
def test_blocks_cover_every_row_once(shape: tuple[int, int]) -> None:
    blocks = partition(*shape)
    assert blocks[0][0] == 0
    assert blocks[-1][1] == shape[0]
    assert all(left[1] == right[0] for left, right in itertools.pairwise(blocks))
    assert all(start < stop for start, stop in blocks)


class Listed(Source):
    """Scores of some classes of each row, in CSR; those of all others are -inf."""

    dtype = "float64"

    def __init__(self, scores: csr_array) -> None:
        self.scores, self.shape = scores, scores.shape

    def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[csr_array]:
        return (self.scores[start:stop] for start, stop in spans)

    def take(self, rows: np.ndarray) -> Listed:
        return Listed(self.scores[rows])


def in_full(function: Any) -> Any:
    """A function of the compiled backend, of a block in CSR."""

    def of_listed(block: csr_array, *rest: Any) -> Any:
        full = np.full(block.shape, -np.inf)
        full[np.repeat(np.arange(len(full)), np.diff(block.indptr)), block.indices] = block.data
        return function(full, *rest)

    return of_listed


def test_blocks_may_be_sparse(monkeypatch) -> None:
    """A sweep only hands blocks on to the backend; they are cut by as many columns as a row lists."""
    scores, potentials = stored((600, 40), torch.float64, forbidden=0.8).numpy(), np.linspace(0, 1, 40)
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (320, 320))
    dense = RowSet(open_scores(scores))
    expected, (labels, best, _) = sweep.sweep(dense, potentials, 0.3), sweep.label(dense, potentials)
    is_listed = scores > -np.inf
    ends = np.concatenate([[0], np.cumsum(is_listed.sum(1))])
    listed = csr_array((scores[is_listed], np.nonzero(is_listed)[1], ends), scores.shape)
    backend = SimpleNamespace(sweep_block=in_full(cpu.sweep_block), label_block=in_full(cpu.label_block))
    monkeypatch.setattr("otlabel.sweep.running.backend_of", lambda source: Immediate(backend))
    rows = RowSet(Listed(listed), columns=8)
    assert (len(rows.spans), len(dense.spans)) == (15, 75)
    found = sweep.sweep(rows, potentials, 0.3)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-13)
    assert (found.linear, found.entropic) == pytest.approx((expected.linear, expected.entropic), rel=1e-13)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for array, known in zip(sweep.label(rows.taken(np.arange(3, 50)), potentials), (labels, best), strict=False):
        np.testing.assert_array_equal(array, known[3:50])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_sweep_is_the_formula_over_blocks(dtype, num_threads) -> None:
    scores = stored((30_000, 41), dtype)
    potentials = np.random.default_rng(10).standard_normal(41)
    exact = formula(scores, potentials, 0.3)
    found = []
    for count in (1, 2):
        num_threads(count)
        found.append(sweep.sweep(RowSet(open_scores(scores)), potentials, 0.3))
    assert len(partition(30_000, 41)) > 2
    np.testing.assert_allclose(found[0].mass, exact.mass / 30_000, rtol=1e-12)
    assert found[0].linear == pytest.approx(exact.linear / 30_000, rel=1e-12)
    assert found[0].entropic == pytest.approx(exact.entropic / 30_000, rel=1e-12)
    np.testing.assert_array_equal(found[0].labels, exact.labels)
    np.testing.assert_array_equal(found[0].counts, exact.counts)
    assert found[0].mass.tobytes() == found[1].mass.tobytes()
    assert (found[0].linear, found[0].entropic) == (found[1].linear, found[1].entropic)


def test_thread_count_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLABEL_NUM_THREADS", "3")
    assert thread_count() == 3
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("OTLABEL_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match="OTLABEL_NUM_THREADS"):
            thread_count()


def test_every_task_runs_once_and_errors_surface(num_threads) -> None:
    num_threads(4)
    done = np.zeros(500, np.int64)

    def task(number: int) -> None:
        done[number] += 1
        if number == 300:
            raise KeyError("task 300")

    run_tasks(lambda number: done.__setitem__(number, done[number] + 1), 500)
    np.testing.assert_array_equal(done, 1)
    with pytest.raises(KeyError, match="task 300"):
        run_tasks(task, 500)


def test_an_interrupt_ends_no_call_before_its_threads(num_threads) -> None:
    """One that went on would read a file, or write into an array, that its caller has left."""
    num_threads(3)
    at_work = list[int]()

    def task(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            while len(at_work) < 2:
                time.sleep(0.001)
            signal.setitimer(signal.ITIMER_REAL, 0.02)  # while this thread waits for the others
        else:
            at_work.append(number)
            time.sleep(0.1)
            at_work.remove(number)

    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                run_tasks(task, 3)
            assert at_work == []
    finally:
        signal.signal(signal.SIGALRM, usual)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_on_the_device(dtype) -> None:
    scores, potentials = stored((257, 17), dtype), np.random.default_rng(1).standard_normal(17)
    assert_same(run(reference, scores.cuda(), potentials, 0.1), formula(scores, potentials, 0.1), 1e-12, 12.0)


@pytest.mark.parametrize("n_blocks", [1, 62, 63, 64, 126, 127, 128, 300])
def test_any_number_of_blocks_adds_up(n_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (5, 5))
    scores = np.random.default_rng(n_blocks).standard_normal((n_blocks, 5))
    rows = RowSet(open_scores(scores))
    assert len(rows.spans) == n_blocks
    found = sweep.sweep(rows, np.zeros(5), 0.5)
    plan = softmax(scores / 0.5, axis=1)
    expected = [math.fsum(column) / n_blocks for column in plan.T]
    np.testing.assert_allclose(found.mass, expected, rtol=1e-15)
    assert found.counts.sum() == n_blocks


@pytest.mark.usefixtures("library_threads")
def test_one_thread_of_linear_algebra_until_the_last_has_left() -> None:
    """Passes of several threads overlap: the first to end is not to set the others' products free."""

    def at_work() -> set[int]:
        """Of NumPy's; what other packages bring along later is not ours to limit."""
        ours = (library for library in threadpool_info() if "numpy" in library["filepath"])
        return {library["num_threads"] for library in ours if library["user_api"] == "blas"}

    usual, first, second = at_work(), contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(blas_on_one_thread())
    second.enter_context(blas_on_one_thread())
    first.close()
    assert at_work() == {1}
    second.close()
    assert at_work() == usual != {1}
