"""Scores on devices: what is moved and how, what is asked for in vain, and memory that does not suffice.

A tensor on the CPU stands for one on a device here: it takes the same way, but for pinned memory and streams.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.special import softmax

from otlabel import linear_scores, sinkhorn_assign, sweep
from otlabel.errors import InvalidScoresError
from otlabel.ranks.rowset import RowSet
from otlabel.solver.curvature import DenseCurvature, DeviceCurvature
from otlabel.sources import DeviceSource, TensorSource, cached, device, on_device, open_scores, read_rows
from otlabel.sources.linear import LinearScores, Products
from otlabel.sweep import reference, running
from otlabel.sweep.contract import Ready

CPU = torch.device("cpu")
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def drawn(shape: tuple[int, int], dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    numbers = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return torch.from_numpy(numbers).to(getattr(torch, dtype))


def no_room(*arguments: Any, **options: Any) -> Any:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def streamed(scores: torch.Tensor) -> DeviceSource:
    return DeviceSource(open_scores(scores).source, CPU)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, of sources as on devices."""
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (64, 256))
    monkeypatch.setattr("otlabel.sources.device.BLOCK_BYTES", 1000)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device called cuda whose memory is the host's."""
    monkeypatch.setattr("otlabel.sources.opening._checked_device", lambda device: torch.device(device))
    monkeypatch.setattr("otlabel.sources.opening.on_device", lambda source, device: on_device(source, CPU))
    monkeypatch.setattr("otlabel.sources.linear.on_device", lambda source, device: on_device(source, CPU))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_moved_as_they_are(dtype: str) -> None:
    scores = drawn((211, 7), dtype)
    source = streamed(scores)
    blocks = running.device_blocks(source)
    assert len(blocks) > 2
    found = [block.clone() for block in source.read(blocks)]
    assert torch.equal(torch.cat(found), scores)
    assert [len(block) for block in found] == [stop - start for start, stop in blocks]
    assert torch.equal(read_rows(source, 30, 101), scores[30:101])
    rows = np.array([0, 5, 6, 210])
    assert torch.equal(source.take(rows).tensor, scores[rows])


@pytest.mark.usefixtures("small_blocks")
def test_blocks_that_are_kept_may_be_used_after_the_next_one() -> None:
    """The buffers are used again, the blocks are not."""
    scores = drawn((300, 9), "float16")
    source = streamed(scores)
    assert torch.equal(torch.cat(list(source.read(running.device_blocks(source)))), scores)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_that_were_used_leave_the_device() -> None:
    """Scores that do not fit there whole are not to pile up there either: one block in use, and one on its way."""
    source = streamed(drawn((3000, 9)))
    blocks = running.device_blocks(source)
    assert len(blocks) > 9
    seen = list[weakref.ref[torch.Tensor]]()
    for block in source.read(blocks):
        seen.append(weakref.ref(block))
        assert sum(reference() is not None for reference in seen) == 1


@pytest.mark.usefixtures("small_blocks")
def test_a_sample_is_moved_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers are those of blocks, not of the sample, which may be gigabytes."""
    shapes = []
    original = device._Mover.__init__

    def watched(self: device._Mover, place: torch.device, shape: tuple[int, int], dtype: torch.dtype) -> None:
        shapes.append(shape)
        original(self, place, shape, dtype)

    monkeypatch.setattr(device._Mover, "__init__", watched)
    scores = drawn((2000, 9))
    rows = np.arange(0, 2000, 2)
    assert torch.equal(streamed(scores).take(rows).tensor, scores[rows])
    assert 0 < shapes[0][0] < 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_blocks")
def test_what_fits_is_copied_whole(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = drawn((100, 6), dtype)
    whole = on_device(open_scores(scores).source, CPU)
    assert isinstance(whole, TensorSource)
    assert torch.equal(whole.tensor, scores)
    assert whole.tensor.data_ptr() != scores.data_ptr()
    n_bytes = scores.nbytes
    monkeypatch.setattr("otlabel.sources.device._free_memory", lambda device: n_bytes)
    assert isinstance(on_device(open_scores(scores).source, CPU), DeviceSource)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.usefixtures("card", "long_way")
def test_what_streams_is_read_once_where_lists_of_it_do(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each pass would move all of it again; labels, value and proof are those of rows in host memory."""
    monkeypatch.setattr("otlabel.sources.device._free_memory", lambda device: 0)
    monkeypatch.setattr("otlabel.sources.device.BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (1 << 12, 1 << 14))
    monkeypatch.setattr("otlabel.solver.shortlist.FEWEST_SCORES", 1 << 18)
    scores = 3 * drawn((24_000, 32), "float64")
    scores[::50, :4] = -torch.inf
    scores = scores.to(getattr(torch, dtype))
    expected, found = sinkhorn_assign(scores), sinkhorn_assign(scores, device="cuda")
    assert found.n_readings == 1
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert abs(found.value - expected.value) <= max(found.gap, 0) + max(expected.gap, 0) + 1e-12
    assert found.proof.proven


def write(path: Path, scores: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["scores"] = scores
    return f"{path}::/scores"


@pytest.mark.parametrize("memory_limit", [None, 0])
@pytest.mark.usefixtures("small_blocks", "card")
def test_files_stream_to_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: int | None) -> None:
    """The same sizes and the same optimum; a file that host memory may hold is read once."""
    monkeypatch.setattr("otlabel.sources.device._free_memory", lambda device: 0)
    scores = drawn((900, 8)).numpy()
    name = write(tmp_path / "scores.h5", scores)
    expected = sinkhorn_assign(scores)
    found = sinkhorn_assign(name, device="cuda", memory_limit=memory_limit)
    assert isinstance(found.labels, np.ndarray)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert abs(found.gap) <= 1e-12
    passes = found.bytes_read / scores.nbytes
    assert passes == pytest.approx(1, abs=0.01) if memory_limit is None else passes > 2


@pytest.mark.usefixtures("small_blocks")
def test_rows_to_sample_from_stay_in_host_memory(tmp_path: Path) -> None:
    name = write(tmp_path / "scores.h5", drawn((500, 8)).numpy())
    rows = np.arange(0, 500, 7)
    opened = open_scores(name)
    kept = cached(opened.only(DeviceSource(opened.source, CPU)), 0, rows)
    sweep.sweep(RowSet(kept), np.zeros(8), 0.1)
    before = kept.bytes_read
    assert before > 0
    assert torch.equal(kept.source.take(rows).tensor, drawn((500, 8))[rows])
    assert kept.bytes_read == before


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("room", [0, 1 << 40])
@pytest.mark.usefixtures("small_blocks", "card")
def test_features_are_moved_and_scores_made_there(normalize: bool, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otlabel.sources.device._free_memory", lambda device: room)
    monkeypatch.setattr("otlabel.sources.linear.DEVICE_ENTRIES", 300)
    features, weights = drawn((400, 5)).numpy(), [drawn((6, 5), seed=1).numpy(), drawn((9, 5), seed=2).numpy()]
    biases = [np.linspace(0, 1, 6), np.zeros(9)]
    heads = linear_scores(features, weights, biases, normalize=normalize)
    moved = [open_scores(head, device="cuda") for head in heads]
    for head, there, weight, bias in zip(heads, moved, weights, biases, strict=True):
        assert isinstance(there, LinearScores)
        assert there.source.device == CPU
        logits = torch.from_numpy(features.astype(np.float64) @ weight.T + bias)
        exact = torch.log_softmax(logits, 1) if normalize else logits
        torch.testing.assert_close(read_rows(there.source, 0, 400).double(), exact, atol=1e-5, rtol=0)
        rows = np.array([3, 100, 399])
        torch.testing.assert_close(there.source.take(rows).tensor.double(), exact[rows], atol=1e-5, rtol=0)
        found, expected = sinkhorn_assign(head, device="cuda"), sinkhorn_assign(head)
        np.testing.assert_array_equal(found.counts, expected.counts)
        assert found.value == pytest.approx(expected.value, abs=1e-6)
    assert moved[0].features is moved[1].features


@pytest.mark.parametrize("room", [0, 1 << 40])
@pytest.mark.usefixtures("small_blocks", "card")
def test_scores_that_fit_there_are_made_once(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as block by block, from one product of all rows; the head that was given keeps none of it."""
    monkeypatch.setattr("otlabel.sources.device._free_memory", lambda device: room)
    monkeypatch.setattr("otlabel.sources.linear.DEVICE_ENTRIES", 300)
    made = []
    original = Products._on_device
    monkeypatch.setattr(Products, "_on_device", lambda self, rows: (made.append(len(rows)), original(self, rows))[1])
    head = open_scores(linear_scores(drawn((400, 5)), drawn((6, 5), seed=1)), device="cuda")
    kept = cached(head, rows=np.arange(0, 400, 9))
    assert (kept.source.grain == 1) == (room > 0)
    for _ in range(3):
        sweep.sweep(RowSet(kept), np.zeros(6), 0.1)
    assert sum(made) == (400 if room else 3 * 400)
    blocks = running.device_blocks(head.source)
    whole = torch.cat(list(kept.source.read(blocks)))
    assert torch.equal(whole, torch.cat(list(head.source.read(blocks))))
    rows = np.array([3, 100, 399])
    torch.testing.assert_close(kept.source.take(rows).tensor, whole[rows], atol=1e-5, rtol=0)
    assert head.source.grain > 1
    assert kept.fine.dtype == "float64"
    assert kept.fine.grain > 1


@pytest.mark.usefixtures("card")
def test_scores_that_do_not_fit_after_all_are_made_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    head = open_scores(linear_scores(drawn((40, 5)), drawn((6, 5), seed=1)), device="cuda")
    monkeypatch.setattr(torch, "empty", no_room)
    assert cached(head, rows=np.arange(4)) is head


class Short:
    """A backend whose device holds only so many rows of scores at once."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows, self.longest, self.n_refused = most_rows, 0, 0

    def __getattr__(self, name: str) -> Any:
        from otlabel.sweep import reference

        function = getattr(reference, name)

        def reduce(block: torch.Tensor, *rest: Any) -> Any:
            if len(block) > self.most_rows:
                self.n_refused += 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            self.longest = max(self.longest, len(block))
            return Ready(function(block, *rest))

        return reduce


@pytest.mark.parametrize("kind", ["tensor", "streamed", "factored"])
@pytest.mark.usefixtures("card")
def test_blocks_are_halved_where_memory_is_short(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Short(40)
    values = drawn((333, 6), "float64")
    sources = {
        "tensor": lambda: TensorSource(values),
        "streamed": lambda: streamed(values),
        "factored": lambda: open_scores(
            linear_scores(values, np.eye(6), normalize=False), device="cuda"
        ),
    }  # fmt: skip
    rows = RowSet(sources[kind]())
    expected = sweep.sweep(RowSet(open_scores(values)), np.arange(6.0), 0.1)
    monkeypatch.setattr("otlabel.sweep.running.backend_of", lambda scores: backend)
    found = sweep.sweep(rows, np.arange(6.0), 0.1)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-12)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.linear == pytest.approx(expected.linear, rel=1e-12)
    assert 20 <= backend.longest <= 40
    refused = backend.n_refused
    assert 1 <= refused <= 6
    labels, best, _ = sweep.label(rows, np.arange(6.0))
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(best, (values.numpy() + np.arange(6.0)).max(1), rtol=1e-14)
    assert backend.n_refused == refused  # the size that fits is remembered


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_that_do_not_fit_are_streamed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scores that fill the device nearly: a sample of their rows goes to the host, and comes back in blocks."""
    scores, rows = drawn((500, 8), dtype), np.arange(0, 500, 3)
    original = TensorSource._gathered

    def short_of_memory(source: TensorSource, rows: np.ndarray) -> torch.Tensor:
        if len(rows) > 20:
            raise RuntimeError("CUDA out of memory")
        return original(source, rows)

    monkeypatch.setattr(TensorSource, "_gathered", short_of_memory)
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (10, 10))
    taken = TensorSource(scores).take(rows)
    assert isinstance(taken, DeviceSource)
    assert (taken.dtype, taken.shape) == (dtype, (167, 8))
    assert torch.equal(read_rows(taken, 0, 167), scores[rows])

    for refuse in ((torch, "empty"), (device._Mover, "send")):  # room for all rows; for a block beside them
        with monkeypatch.context() as patch:
            patch.setattr(*refuse, no_room)
            again = streamed(scores).take(rows)
        assert isinstance(again, DeviceSource)
        assert torch.equal(read_rows(again, 0, 167), scores[rows])


@pytest.mark.usefixtures("card")
def test_samples_of_a_head_that_do_not_fit_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part goes to the host, and all of them come back in blocks."""
    head = open_scores(linear_scores(drawn((400, 5)), drawn((6, 5), seed=1)), device="cuda")
    whole, rows = read_rows(head.source, 0, 400), np.arange(0, 400, 3)
    original = Products._on_device

    def short_of_memory(source: Products, features: torch.Tensor) -> torch.Tensor:
        return original(source, features) if len(features) <= 20 else no_room()

    monkeypatch.setattr(Products, "_on_device", short_of_memory)
    monkeypatch.setattr("otlabel.sweep.blocks.BLOCK_ENTRIES", (7, 7))
    taken = head.source.take(rows)
    assert isinstance(taken, DeviceSource)
    torch.testing.assert_close(read_rows(taken, 0, len(rows)), whole[rows])


@pytest.mark.parametrize("n_classes", [6, 40])
@pytest.mark.parametrize("refused", [(torch, "zeros"), (DeviceCurvature, "apply"), (torch.linalg, "cholesky_ex")])
@pytest.mark.usefixtures("long_way")
def test_curvatures_that_do_not_fit_are_the_hosts(
    refused: tuple[Any, str], n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for products, for what is made of them, or for solving: the plan is as near, and labels are proven."""
    monkeypatch.setattr("otlabel.solver.newton.DENSE_CLASSES", 20)
    scores, n_refused = 3 * drawn((2000, n_classes)), []

    def short_of_memory(*arguments: Any, **options: Any) -> Any:
        n_refused.append(1)
        no_room()

    expected = sinkhorn_assign(TensorSource(scores), tol=1e-4)
    monkeypatch.setattr(*refused, short_of_memory)
    found = sinkhorn_assign(TensorSource(scores), tol=1e-4)
    assert n_refused
    assert found.marginal_error <= 1e-4
    assert found.n_sweeps <= expected.n_sweeps + 3
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert abs(found.value - expected.value) <= max(found.gap, 0) + max(expected.gap, 0) + 1e-12


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otlabel.sweep.running.backend_of", lambda scores: Short(0))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sweep.sweep(RowSet(TensorSource(drawn((9, 3)))), np.zeros(3), 0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there() -> None:
    for scores in (np.eye(4), torch.eye(4)):
        with pytest.raises(ValueError, match=r"'cuda' was asked for, but .*; use device='auto' or 'cpu'"):
            sinkhorn_assign(scores, device="cuda")


def test_devices_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'gpu' is not one that torch knows; use 'auto', 'cpu' or 'cuda'"):
        sinkhorn_assign(np.eye(4), device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:2' was asked for, but the last card is 'cuda:1'"):
        sinkhorn_assign(np.eye(4), device="cuda:2")


def test_parts_in_different_places() -> None:
    """The meta device has a place, but no numbers: that is all that is looked at."""
    there = torch.empty(5, 3, device="meta")
    with pytest.raises(InvalidScoresError, match="part 0 is on cpu, part 1 on meta; move all parts"):
        open_scores([torch.zeros(5, 3), there])
    with pytest.raises(InvalidScoresError, match="part 0 is on meta, part 1 on cpu; move all parts"):
        open_scores([there, "scores.npy"])
    with pytest.raises(InvalidScoresError, match=r"2 parts are tensors on meta; pass one: torch.cat\(parts\)"):
        open_scores([there, there])


def test_masses_and_potentials_may_be_elsewhere() -> None:
    """NumPy or tensors, whatever the scores are."""
    scores, shares = drawn((60, 4)), np.array([0.1, 0.2, 0.3, 0.4])
    first = sinkhorn_assign(scores, class_mass=shares)
    second = sinkhorn_assign(scores.numpy(), class_mass=torch.from_numpy(shares), init=first.plan_potentials)
    np.testing.assert_array_equal(first.labels.numpy(), second.labels)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_curvature_made_on_a_device(precision: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of outer products against NumPy, in several parts; then the same steps as the curvature on the CPU gives."""
    monkeypatch.setattr(sweep, "PRODUCT_ROWS", 17)
    scores, g = drawn((200, 12), "float16"), np.random.default_rng(0).standard_normal(12)
    rows, weights = np.arange(0, 200, 3), np.random.default_rng(1).uniform(0, 0.1, 67)
    q = softmax((scores.double().numpy() + g)[rows] / 0.2, axis=1)
    products = sweep.products(RowSet(TensorSource(scores)), rows, weights, g, 0.2, precision)
    mass = products.sum(1).numpy()
    tolerance = 1e-5 if precision is np.float32 else 1e-12
    np.testing.assert_allclose(products.numpy(), (q.T * weights) @ q, atol=tolerance)
    np.testing.assert_allclose(mass, weights @ q, atol=tolerance)

    original, refused = reference.factors_block, []

    def short_of_memory(block: torch.Tensor, rows: torch.Tensor, *rest: Any) -> Any:
        if len(rows) > 5:
            refused.append(len(rows))
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return original(block, rows, *rest)

    monkeypatch.setattr(reference, "factors_block", short_of_memory)
    for source in (TensorSource(scores), streamed(scores)):
        refused.clear()
        again = sweep.products(RowSet(source), rows, weights, g, 0.2, precision)
        assert refused == [17, 9]
        np.testing.assert_allclose(again.numpy(), products.numpy(), atol=tolerance)

    plan = csr_array(q * np.sqrt(weights)[:, None])
    scale, diagonal = np.linspace(0.5, 1, 12), 1.1 * mass
    there, here = DeviceCurvature(products, scale, diagonal), DenseCurvature(plan, scale, diagonal)
    y = np.linspace(-1, 1, 12)
    np.testing.assert_allclose(there.apply(y), here.apply(y), atol=10 * tolerance)
    assert not there.apply(np.zeros(12)).any()
    for free in (np.ones(12, bool), np.arange(12) % 3 > 0):
        found, expected = (one.solve(y[free], free, y[free]) for one in (there, here))
        np.testing.assert_allclose(found, expected, rtol=1e-3 if precision is np.float32 else 1e-9)
    indefinite = DeviceCurvature(products, 100 * scale, diagonal)
    np.testing.assert_array_equal(indefinite.solve(y, y < 2, y), y / diagonal)


@pytest.mark.parametrize("kind", ["whole", "streamed"])
@pytest.mark.parametrize("n_clusters", [1, 7])
@pytest.mark.usefixtures("small_blocks")
def test_moments_of_clusters_are_summed_where_the_rows_are(
    kind: str, n_clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from zero, in chunks, with a cluster of no rows: what NumPy gives in float64, the same bits each time."""
    pytest.importorskip("sklearn")
    from otlabel.cluster import moments

    monkeypatch.setattr(moments, "DEVICE_ENTRIES", 100)
    rows = 1000 + drawn((211, 5), "float16")
    centres = 1000 + drawn((n_clusters + 1, 5), "float32", seed=3).numpy()
    labels = np.random.default_rng(0).integers(0, n_clusters, 211).astype(np.int32)
    source = TensorSource(rows) if kind == "whole" else streamed(rows)
    monkeypatch.setattr(RowSet, "blocks", None)  # which brings rows to the host
    first, second = (moments.moments(RowSet(source), labels, centres) for _ in range(2))
    differences = rows.double().numpy() - centres[labels].astype(np.float64)
    sums = np.stack([differences[labels == k].sum(0) for k in range(n_clusters + 1)])
    np.testing.assert_allclose(first[0], sums, rtol=0, atol=1e-10)
    assert first[1] == pytest.approx(np.square(differences).sum(), rel=1e-13)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1] == second[1]
    monkeypatch.undo()
    monkeypatch.setattr(torch, "zeros_like", no_room)  # then the host adds, block by block
    third = moments.moments(RowSet(source), labels, centres)
    np.testing.assert_allclose(third[0], sums, rtol=0, atol=1e-10)
    assert third[1] == pytest.approx(first[1], rel=1e-13)


def test_a_triton_that_is_too_old_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler refuses the kernels: plain torch takes their place."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for installed, usable in (("3.2.0", False), ("3.3.0", True), ("3.10.1+git1234", True), ("4.0", True)):
        monkeypatch.setattr("importlib.metadata.version", lambda name, installed=installed: installed)
        assert running.has_triton.__wrapped__() is usable


def test_memory_that_libraries_lack_is_told_apart_from_other_failures() -> None:
    assert running.is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert running.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert running.is_out_of_memory(RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling"))
    assert not running.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
