"""The kernels for CUDA devices: through Triton's interpreter where there is no card, compiled where there is one."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import KINDS, draw
from scipy.special import logsumexp, softmax

from otlabel import certify, linear_scores, sinkhorn_assign, sweep
from otlabel.ranks.rowset import RowSet
from otlabel.sources import DeviceSource, Opened, TensorSource, open_scores
from otlabel.sweep import reference
from otlabel.sweep.contract import Immediate
from otlabel.sweep.running import device_blocks

HAS_CARD = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if HAS_CARD and not INTERPRETED else "cpu"
kernels = pytest.mark.skipif(
    not HAS_TRITON or (DEVICE == "cpu" and not INTERPRETED),
    reason="no CUDA device; test_kernels_through_the_interpreter runs this"
    if HAS_TRITON
    else "triton is not installed",
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1, 1), (1, 7), (5, 1), (2, 2), (33, 3), (57, 17), (70, 31), (33, 130), (3, 1025), (9, 640)]
NO_WEIGHTS = np.empty(0)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED or HAS_CARD, reason="this is the interpreter, or a machine with a card")
@pytest.mark.skipif(HAS_TRITON and version("triton") < "3.9", reason="its interpreter fails with NumPy from 2.4 on")
def test_kernels_through_the_interpreter() -> None:
    """In a process of its own: whether kernels are compiled is settled when Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def cuda_module() -> Any:
    from otlabel.sweep import cuda

    return cuda


def stored(shape: tuple[int, int], dtype: torch.dtype, forbidden: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Scores as stored; a share of them forbidden, never a whole row."""
    rng = np.random.default_rng([seed, *shape])
    scores = 2.0 * rng.standard_normal(shape)
    shut = rng.random(shape) < forbidden
    shut[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = False
    scores[shut] = -np.inf
    return torch.from_numpy(scores).to(dtype).to(DEVICE)


class Found:
    """What a sweep of one block gives, in order."""

    def __init__(self, scores, potentials, epsilon, weights=NO_WEIGHTS, row_exponent=0.0):
        n_rows, n_classes = scores.shape
        self.labels, self.counts = np.full(n_rows, -7, np.int32), np.zeros(n_classes, np.int64)
        self.mass, self.row_mass = np.zeros(n_classes), np.full(n_rows if row_exponent else 0, np.nan)
        inverse = potentials.dtype.type(1 / epsilon)
        handle = cuda_module().sweep_block(
            scores, potentials, inverse, weights, row_exponent, self.labels, self.row_mass, self.mass, self.counts
        )
        self.linear, self.entropic = handle.result()

    def assert_is_formula(self, scores, potentials, epsilon, weights=NO_WEIGHTS, row_exponent=0.0):
        """The definition in float64; float32 rounds u three times, and divides that by epsilon."""
        u = scores.double().cpu().numpy() + potentials.astype(np.float64)
        w = weights if weights.size else np.ones(len(u))
        top = u.max(1)
        soft = logsumexp(u / epsilon, axis=1) - top / epsilon
        own = w * np.exp(row_exponent * epsilon * logsumexp(u / epsilon, axis=1))
        largest = np.abs(u[np.isfinite(u)]).max()
        relative = 3 * float(np.finfo(potentials.dtype).eps) * largest / epsilon
        relative += 2e-6 if potentials.dtype == np.float32 else 1e-14
        tolerance = relative * max(w.sum(), 1)
        assert abs(self.linear - w @ top) <= tolerance * max(largest, 1)
        assert abs(self.entropic - w @ soft) <= tolerance * (1 + soft.max())
        assert np.abs(self.mass - own @ softmax(u / epsilon, axis=1)).sum() <= relative * (own.sum() + 1)
        np.testing.assert_array_equal(
            self.labels, (scores.to(_torch(potentials.dtype)).cpu().numpy() + potentials).argmax(1)
        )
        np.testing.assert_array_equal(self.counts, np.bincount(self.labels, w, u.shape[1]))
        if row_exponent:
            np.testing.assert_allclose(self.row_mass, own, rtol=relative * (1 + row_exponent * largest), atol=1e-300)


def _torch(dtype: np.dtype) -> torch.dtype:
    return torch.float32 if dtype == np.float32 else torch.float64


def potentials_of(n_classes: int, precision: type) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(n_classes).astype(precision)


@kernels
@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sweep_is_the_formula(shape, dtype, precision) -> None:
    g = potentials_of(shape[1], precision)
    for epsilon, forbidden in ((1.0, 0.0), (0.04, 0.3)):
        scores = stored(shape, dtype, forbidden)
        Found(scores, g, epsilon).assert_is_formula(scores, g, epsilon)


@kernels
@pytest.mark.parametrize("row_exponent", [0.0, 0.4])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (45, 6), (20, 150)], ids=str)
def test_weights_and_rows_that_leave_their_mass(shape, precision, row_exponent) -> None:
    scores, g = stored(shape, torch.float16, 0.2), potentials_of(shape[1], precision)
    weights = np.random.default_rng(2).integers(0, 5, shape[0]).astype(np.float64)
    for given in (weights, NO_WEIGHTS):
        Found(scores, g, 0.3, given, row_exponent).assert_is_formula(scores, g, 0.3, given, row_exponent)


@kernels
@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes_are_read_in_pieces(dtype, precision, monkeypatch) -> None:
    """The online kernels, at a number of classes that the interpreter manages."""
    module = cuda_module()
    monkeypatch.setattr(module, "FUSED_CLASSES", {torch.float32: 8, torch.float64: 8})
    monkeypatch.setattr(module, "TILE", 32)
    for shape in ((1, 9), (3, 75), (2, 160), (21, 33)):
        scores, g = stored(shape, dtype, 0.5), potentials_of(shape[1], precision)
        Found(scores, g, 0.1).assert_is_formula(scores, g, 0.1)


@kernels
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("n_classes", [1, 12, 40])
def test_sums_of_many_programs(n_classes: int, weighted: bool, monkeypatch) -> None:
    """Rows and programs that are no multiple of what is added at a time; labels counted first, or added one by one."""
    module = cuda_module()
    monkeypatch.setattr(module, "ADDED", (256, 16))
    monkeypatch.setattr(module, "COUNTED_CLASSES", 20)
    monkeypatch.setattr(module, "ROWS_A_PROGRAM", 16)
    scores, g = stored((1300, n_classes), torch.float32), potentials_of(n_classes, np.float32)
    weights = np.random.default_rng(3).integers(0, 5, 1300).astype(np.float64) if weighted else NO_WEIGHTS
    for precision in (np.float32, np.float64):
        Found(scores, g.astype(precision), 0.1, weights).assert_is_formula(scores, g.astype(precision), 0.1, weights)


@kernels
def test_65536_classes() -> None:
    scores, g = stored((3, 65536), torch.float16), potentials_of(65536, np.float32)
    Found(scores, g, 0.5).assert_is_formula(scores, g, 0.5)


@kernels
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_class(dtype, fused, monkeypatch) -> None:
    if not fused:
        monkeypatch.setattr(cuda_module(), "FUSED_CLASSES", {torch.float32: 1, torch.float64: 1})
        monkeypatch.setattr(cuda_module(), "TILE", 64)
    scores = torch.randint(0, 2, (24, 70), generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    for precision in (np.float32, np.float64):
        found = Found(scores, np.zeros(70, precision), 1.0)
        np.testing.assert_array_equal(found.labels, scores.double().cpu().numpy().argmax(1))


@kernels
def test_class_without_mass_has_potential_minus_infinity() -> None:
    scores, g = stored((50, 4), torch.float32), np.array([0.0, -np.inf, 1.0, -np.inf])
    found = Found(scores, g, 0.1)
    found.assert_is_formula(scores, g, 0.1)
    assert found.mass[[1, 3]].max() == 0


@kernels
def test_same_bits_from_run_to_run_and_labels_only_where_asked_for() -> None:
    scores, g = stored((3000, 20), torch.float16), potentials_of(20, np.float32)
    first, second = (Found(scores, g, 0.1) for _ in range(2))
    assert first.mass.tobytes() == second.mass.tobytes()
    assert (first.linear, first.entropic) == (second.linear, second.entropic)
    mass, counts, none = np.zeros(20), np.zeros(20, np.int64), np.empty(0)
    cuda_module().sweep_block(scores, g, np.float32(10), none, 0.0, np.empty(0, np.int32), none, mass, counts).result()
    assert mass.tobytes() == first.mass.tobytes()
    np.testing.assert_array_equal(counts, first.counts)


@kernels
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_without_labels_are_those_with_labels(fused: bool, weighted: bool, monkeypatch) -> None:
    if not fused:
        monkeypatch.setattr(cuda_module(), "FUSED_CLASSES", {torch.float32: 1, torch.float64: 1})
    scores, g = stored((90, 20), torch.float16, 0.2), potentials_of(20, np.float32)
    weights = np.random.default_rng(3).integers(0, 5, 90).astype(np.float64) if weighted else NO_WEIGHTS
    full = Found(scores, g, 0.1, weights)
    full.assert_is_formula(scores, g, 0.1, weights)
    mass, none = np.zeros(20), np.empty(0, np.int64)
    handle = cuda_module().sweep_block(
        scores, g, np.float32(10), weights, 0.0, none.astype(np.int32), none.astype(float), mass, none
    )
    assert handle.result() == (full.linear, full.entropic)
    assert mass.tobytes() == full.mass.tobytes()


@kernels
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("pieces", [1, 3])
def test_shapes_of_the_kernel(pieces: int, rows: int, monkeypatch) -> None:
    """Rows at a time, and pieces of a row, change no more than rounding."""
    n_classes = 64 * pieces - 24
    shape = cuda_module().Shape(64, pieces, rows, 4, 1)
    monkeypatch.setattr(cuda_module(), "fused_shape", lambda *_: shape)
    scores, g = stored((71, n_classes), torch.float16, 0.2), potentials_of(n_classes, np.float32)
    Found(scores, g, 0.1).assert_is_formula(scores, g, 0.1)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_threads_hold_no_more_of_a_row_than_registers_have_room_for() -> None:
    """At any number of classes that is read once; the shapes that were the quickest on a card are chosen."""
    cuda = cuda_module()
    for precision, most in ((torch.float32, 48), (torch.float64, 16)):
        for n_classes in [*range(1, 700), *range(700, cuda.FUSED_CLASSES[precision] + 1, 61), 3072, 4096]:
            shape = cuda.fused_shape(n_classes, precision)
            columns = shape.width * shape.pieces
            assert columns - shape.width < n_classes <= columns
            assert columns * shape.rows <= most * 32 * shape.warps
            assert shape.stages * columns * shape.rows * 8 <= 200_000  # of memory that a program shares
    half = [cuda.fused_shape(n_classes, torch.float32) for n_classes in (3000, 1000, 300)]
    assert half == [(512, 6, 1, 2, 3), (256, 4, 1, 1, 3), (128, 3, 4, 1, 3)]


def arguments_of(name: str, n_rows: int, n_classes: int) -> tuple[Any, ...]:
    """What a block is reduced with."""
    g, none, labels = np.zeros(n_classes, np.float32), np.empty(0), np.full(n_rows, -1, np.int32)
    hashes, tops = np.empty(n_rows, np.uint64), np.empty((2, n_rows), np.float32)
    return {
        "sweep_block": (g, np.float32(10), none, 0.0, labels, none, np.zeros(n_classes), np.zeros(n_classes, np.int64)),
        "label_block": (g, labels, np.empty(n_rows), np.empty(n_rows)),
        "candidates_block": (g, labels, 0.5, 1e-12),
        "inspect_block": (np.ones(n_classes, np.uint64), 1, hashes, *tops),
    }[name]


@kernels
@pytest.mark.parametrize("name", ["sweep_block", "label_block", "candidates_block", "inspect_block"])
def test_who_waits_for_a_block_does_not_keep_its_scores(name: str) -> None:
    """Else all blocks that stream to a device would stay there until the last of them."""
    scores = stored((60, 20), torch.float16).clone()
    seen = weakref.ref(scores)
    handle = getattr(cuda_module(), name)(scores, *arguments_of(name, 60, 20))
    del scores
    gc.collect()
    assert seen() is None
    handle.result()


@kernels
@pytest.mark.parametrize("layout", ["columns", "strided", "reversed rows", "one row", "repeated row"])
def test_any_layout_of_a_tensor(layout: str) -> None:
    whole = stored((24, 34), torch.float16)
    scores = {
        "columns": whole.T.contiguous().T,
        "strided": whole[::2, ::2],
        "reversed rows": whole.flip(0)[3:],
        "one row": whole[5:6, 1:],
        "repeated row": whole[:1].expand(9, 34),
    }[layout]
    g = potentials_of(scores.shape[1], np.float32)
    Found(scores, g, 0.2).assert_is_formula(scores, g, 0.2)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (31, 6), (8, 130)], ids=str)
def test_labels_and_candidates_as_the_reference(shape, dtype, monkeypatch) -> None:
    monkeypatch.setattr(cuda_module(), "TILE", 64)
    monkeypatch.setattr(cuda_module(), "CHUNK_ENTRIES", 600)
    scores, g = stored(shape, dtype, 0.3), potentials_of(shape[1], np.float64)
    open_class = (scores > -torch.inf).int().argmax(1).int().cpu().numpy()
    given = np.where(np.arange(shape[0]) % 3 == 0, -1, open_class).astype(np.int32)
    labels = [(given.copy(), np.empty(shape[0]), np.empty(shape[0])) for _ in range(2)]
    cuda_module().label_block(scores, g, *labels[0]).result()
    reference.label_block(scores, g, *labels[1])
    for found, exact in zip(*labels, strict=True):
        np.testing.assert_array_equal(found, exact)
    for slack, tie in ((0.0, 0.0), (0.7, 0.25), (np.inf, 1e-9)):
        both = [given.copy(), given.copy()]
        pairs = [
            module.candidates_block(scores, g, chosen, slack, tie).result()
            for module, chosen in zip((cuda_module(), Immediate(reference)), both, strict=True)
        ]
        np.testing.assert_array_equal(*both)
        for found, exact in zip(*pairs, strict=True):
            assert found.dtype == exact.dtype
            np.testing.assert_array_equal(found, exact)


@kernels
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inspection_as_the_reference(dtype, step: int, monkeypatch) -> None:
    monkeypatch.setattr(cuda_module(), "TILE", 16)
    for shape in ((24, 12), (9, 1), (5, 50)):
        scores = stored(shape, dtype, 0.3)
        scores[3] = 1.5
        scores[4] = -torch.inf
        multipliers = np.random.default_rng(9).integers(0, 2**64, shape[1], dtype=np.uint64) | np.uint64(1)
        number = np.float64 if dtype == torch.float64 else np.float32
        looks = []
        for module in (cuda_module(), Immediate(reference)):
            arrays = np.empty(shape[0], np.uint64), np.empty(shape[0], number), np.empty(shape[0], number)
            counts = module.inspect_block(scores, multipliers, step, *arrays).result()
            looks.append((*counts, *arrays))
        for found, exact in zip(*looks, strict=True):
            np.testing.assert_array_equal(found, exact)
        scores[0, 0], scores[1, -1], scores[2, 0] = torch.nan, torch.inf, -torch.nan
        arrays = np.empty(shape[0], np.uint64), np.empty(shape[0], number), np.empty(shape[0], number)
        assert cuda_module().inspect_block(scores, multipliers, step, *arrays).result()[0] == 3


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_batch_by_kernels_is_as_in_plain_torch(dtype, monkeypatch) -> None:
    """Forbidden pairs, rows and classes, rows that are no numbers, few logits and many, rows in parts, any layout."""
    from otlabel import soft
    from otlabel.sweep import batch

    monkeypatch.setattr(batch, "COLUMNS", (16, 64))
    monkeypatch.setattr(batch, "MANY_PROGRAMS", 2)
    monkeypatch.setattr(batch, "LONGEST", 24)
    for shape, epsilon, uneven in (
        ((1, 1), 0.05, False), ((12, 20), 0.0001, False), ((35, 90), 0.05, False), ((35, 90), 0.05, True),
    ):  # fmt: skip
        logits, mass = stored(shape, dtype, 0.2) / 2, None
        if uneven:
            mass = soft._checked_mass(np.arange(90) / (90 * 89 / 2), logits)
            logits[:, 0] = -torch.inf
        found, exact = (way(logits, epsilon, 2, None, mass) for way in (soft._by_kernels, soft._in_plain_torch))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, atol=4e-7 / epsilon, rtol=0)
        torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]), atol=1e-5, rtol=0)
    logits[:, 4], logits[3], logits[5, 2], logits[9] = -torch.inf, -torch.inf, torch.nan, torch.inf
    for given, epsilon in ((logits.T.contiguous().T, torch.tensor(0.05, device=DEVICE)), (logits[1::2, ::5], 0.05)):
        found, exact = (way(given, epsilon, 2, None, None) for way in (soft._by_kernels, soft._in_plain_torch))
        torch.testing.assert_close(found, exact, atol=2e-5, rtol=0, equal_nan=True)
    assert soft._by_kernels(given, torch.tensor(torch.nan), 1, None, None)[0].isnan().all()


@kernels
@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factors_of_the_curvature_as_the_reference(dtype, precision, monkeypatch) -> None:
    """Of some rows, in any order, with forbidden pairs and a forbidden class; halves round them."""
    monkeypatch.setattr(cuda_module(), "TILE", 64)
    for shape in ((1, 1), (31, 6), (23, 150)):
        scores, g = stored(shape, dtype, 0.3), potentials_of(shape[1], precision)
        g[:1] = -np.inf if shape[1] > 1 else 0.0
        scores[:, -1] = 0.5
        rows = torch.from_numpy(np.random.default_rng(4).choice(shape[0], shape[0] // 2 + 1, replace=False)).to(DEVICE)
        roots = torch.linspace(0.1, 1, len(rows), dtype=_torch(g.dtype), device=DEVICE)
        for epsilon in (0.05, 1.0):
            found = cuda_module().factors_block(scores, rows, g, precision(1 / epsilon), roots).result()
            exact = reference.factors_block(scores, rows, g, precision(1 / epsilon), roots)
            assert found.dtype == torch.half
            torch.testing.assert_close(found.double(), exact.double(), rtol=1e-3, atol=1e-7)


@kernels
def test_plans_are_made_some_rows_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(cuda_module(), "CHUNK_ENTRIES", 100)
    scores, g, inverse = stored((37, 13), torch.float16, 0.2), potentials_of(13, np.float64), np.float64(4.0)
    plans = [np.empty((37, 13)) for _ in range(2)]
    for module, plan in zip((cuda_module(), reference), plans, strict=True):
        module.plan_block(scores, g, inverse, plan)
    np.testing.assert_array_equal(*plans)
    for rows in (np.arange(0, 37, 2), np.empty(0, np.int64)):
        found, exact = (
            module.sparse_plan_block(scores, rows, g, inverse, 0.1).result()
            for module in (cuda_module(), Immediate(reference))
        )
        for part, other in zip(found, exact, strict=True):
            np.testing.assert_array_equal(part, other)


@kernels
@pytest.mark.parametrize("kind", ["ordinary", "forbidden", "ties_counts", "float16", "bfloat16_counts"])
def test_problems_are_solved_through_the_kernels(kind: str, monkeypatch) -> None:
    """All the way from the front door: where there is no card, tensors on the CPU take the card's way."""
    from otlabel import assign

    monkeypatch.setattr("otlabel.sweep.running.backend_of", lambda scores: cuda_module())
    drawn = draw(kind, 0)
    expected = sinkhorn_on_cpu(drawn, monkeypatch)
    tensor = torch.as_tensor(drawn.scores).to(DEVICE)
    monkeypatch.setattr(assign, "open_scores", lambda scores, **options: Opened.of(TensorSource(scores)))
    assert_same_answer(sinkhorn_assign(tensor, class_mass=drawn.class_mass), expected, drawn)


def sinkhorn_on_cpu(drawn: Any, monkeypatch: Any) -> Any:
    with monkeypatch.context() as patch:
        from otlabel.sweep import cpu

        patch.setattr("otlabel.sweep.running.backend_of", lambda scores: Immediate(cpu))
        return sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)


def assert_same_answer(found: Any, expected: Any, drawn: Any) -> None:
    """Exact sizes, and values that differ by no more than both gaps."""
    np.testing.assert_array_equal(torch.as_tensor(found.counts).cpu().numpy(), drawn.counts)
    noise = 1e-12 * max(1.0, abs(expected.value))
    assert found.gap >= -noise
    assert abs(found.value - expected.value) <= max(found.gap, 0) + max(expected.gap, 0) + noise


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_problems_on_a_card(kind: str) -> None:
    drawn = draw(kind, 1)
    expected = sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)
    found = sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass, device="cuda")
    assert_same_answer(found, expected, drawn)
    if not isinstance(drawn.scores, torch.Tensor):
        assert isinstance(found.labels, np.ndarray)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
def test_tensors_on_a_card_stay_there() -> None:
    scores = torch.randn(400, 7, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = sinkhorn_assign(scores, class_mass=torch.full((7,), 1 / 7, dtype=torch.float64))
    assert found.labels.device == found.potentials.device == scores.device
    proof = certify(scores, found.labels, potentials=found.potentials.cpu())
    assert abs(proof.gap) <= 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
@pytest.mark.parametrize("name", ["sweep_block", "label_block", "inspect_block"])
def test_a_block_waits_once(name: str) -> None:
    """Nothing but fetching what was found may wait for the card."""
    reduce, scores = getattr(cuda_module(), name), torch.randn(5000, 300, device="cuda").half()
    reduce(scores, *arguments_of(name, 5000, 300)).result()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        handle = reduce(scores, *arguments_of(name, 5000, 300))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    handle.result()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
def test_products_of_plans_are_added_up_in_float32() -> None:
    """Halves round each factor, by 5e-4 at most; sums of 20,000 of them round to no more than that."""
    scores, g = torch.randn(20_000, 64, device="cuda").half(), potentials_of(64, np.float64)
    rows, weights = np.arange(20_000), np.full(20_000, 1 / 20_000)
    products = sweep.products(RowSet(TensorSource(scores)), rows, weights, g, 0.5, np.float32)
    q = softmax((scores.double().cpu().numpy() + g) / 0.5, axis=1)
    exact = (q.T * weights) @ q
    assert np.abs(products.cpu().numpy() - exact).sum() < 2e-4 * exact.sum()
    np.testing.assert_allclose(products.sum(1).cpu().numpy(), weights @ q, rtol=1e-4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = sweep.products(RowSet(TensorSource(scores)), rows, weights, g, 0.5, np.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, products)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
def test_a_head_on_a_card_is_made_once(monkeypatch) -> None:
    features, weight = torch.randn(5000, 32, device="cuda").half(), torch.randn(40, 32, device="cuda") / 6
    whole = sinkhorn_assign(linear_scores(features, weight))
    monkeypatch.setattr("otlabel.sources.linear.MADE_SHARE", 0.0)
    again = sinkhorn_assign(linear_scores(features, weight))
    assert abs(again.value - whole.value) <= max(again.gap, 0) + max(whole.gap, 0) + 1e-12
    assert whole.labels.is_cuda


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
def test_streamed_scores_give_what_whole_ones_give(monkeypatch) -> None:
    scores = np.random.default_rng(0).standard_normal((120_000, 40)).astype(np.float16)  # enough for lists
    whole = sinkhorn_assign(scores, device="cuda")
    monkeypatch.setattr("otlabel.sources.device.MEMORY_SHARE", 0.0)
    monkeypatch.setattr("otlabel.sources.device.BLOCK_BYTES", 1 << 19)
    assert isinstance(open_scores(scores, device="cuda").source, DeviceSource)
    streamed = sinkhorn_assign(scores, device="cuda")
    assert abs(streamed.value - whole.value) <= max(streamed.gap, 0) + max(whole.gap, 0) + 1e-12
    assert streamed.n_readings <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
def test_streaming_takes_a_few_blocks_of_the_card(monkeypatch) -> None:
    """However many there are: one in use, one on its way, one that the allocator has not yet seen leave."""
    scores = np.random.default_rng(0).standard_normal((200_000, 64)).astype(np.float16)
    monkeypatch.setattr("otlabel.sources.device.BLOCK_BYTES", 1 << 20)
    device, g = torch.device("cuda", torch.cuda.current_device()), np.zeros(64)
    source = DeviceSource(open_scores(scores).source, device)
    assert len(device_blocks(source)) > 20
    sweep.sweep(RowSet(source), g, 0.1, with_labels=False)  # compiled
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sweep.sweep(RowSet(source), g, 0.1, with_labels=False)
    assert torch.cuda.max_memory_allocated() - before < 8 << 20


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_a_card_that_is_not_the_current_one() -> None:
    scores = np.random.default_rng(0).standard_normal((3000, 20)).astype(np.float32)
    expected = sinkhorn_assign(scores)
    for found in (sinkhorn_assign(torch.from_numpy(scores).to("cuda:1")), sinkhorn_assign(scores, device="cuda:1")):
        assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert torch.cuda.current_device() == 0
