"""Soft assignments of a batch: against the plain iterations in float64, by invariance, and over two processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks

from otlabel import soft_assign
from otlabel.errors import InvalidMassError, InvalidScoresError


def plain_iterations(logits: np.ndarray, epsilon: float, n_iterations: int, class_mass: Any = None) -> np.ndarray:
    """As SwAV states them: columns to 1/K, then rows to 1/B; in extended precision, which does not overflow here."""
    plan = np.exp(logits.astype(np.longdouble) / epsilon)
    n_rows, n_classes = plan.shape
    plan /= plan.sum()
    for _ in range(n_iterations):
        plan *= (1 / n_classes if class_mass is None else class_mass) / plan.sum(0, keepdims=True)
        plan /= plan.sum(1, keepdims=True) * n_rows
    return (plan * n_rows).astype(np.float64)


def cosines(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    epsilon=st.sampled_from([0.01, 0.05, 1.0]),
    n_iterations=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_as_the_plain_iterations(there, shape, epsilon, n_iterations, dtype) -> None:
    logits = torch.from_numpy(cosines(shape)).to(dtype)
    found = np.asarray(there(soft_assign, logits, epsilon, n_iterations))
    assert found.dtype == np.float32
    exact = plain_iterations(logits.numpy(), epsilon, n_iterations)
    np.testing.assert_allclose(found, exact, atol=4e-7 / epsilon)  # a rounding of a logit, divided by epsilon
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def dinos(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """As DINOv2, SwAV and lightly have it: (K, B), classes then rows, scaled by the number of rows at the end."""
    plan = torch.exp(logits / epsilon).t()
    n_classes, n_rows = plan.shape
    plan /= plan.sum()
    for _ in range(n_iterations):
        plan /= plan.sum(1, keepdim=True)
        plan /= n_classes
        plan /= plan.sum(0, keepdim=True)
        plan /= n_rows
    return (plan * n_rows).t()


def capis(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """As CAPI has it, for each position: shifted by the largest logit of each class, with a little in each divisor."""
    plan = logits / epsilon
    plan = torch.exp(plan + 50 - plan.amax(-2, keepdim=True))
    for _ in range(n_iterations):
        plan /= plan.sum(-2, keepdim=True) + 1e-8
        plan /= plan.sum(-1, keepdim=True) + 1e-8
    return plan


@pytest.mark.parametrize("loop", [dinos, capis])
@pytest.mark.parametrize(("epsilon", "dim"), [(0.05, 16), (0.06, 64), (0.1, 16)])
def test_as_the_published_loops(loop, epsilon: float, dim: int, there) -> None:
    """Of cosines in float32; theirs in float64, for their own rounding is as large as what is allowed."""
    generator = torch.Generator().manual_seed(0)
    views, prototypes = (torch.nn.functional.normalize(torch.randn(n, dim, generator=generator)) for n in (2048, 300))
    logits = views @ prototypes.T
    found = there(soft_assign, logits, epsilon)
    np.testing.assert_allclose(np.asarray(found), loop(logits.double(), epsilon, 3).numpy(), atol=1e-6, rtol=0)
    if loop is capis:
        positions = logits.reshape(8, 256, 300)
        found = there(soft_assign, positions, epsilon)
        np.testing.assert_allclose(np.asarray(found), capis(positions.double(), epsilon, 3).numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_leading_dimensions_are_batches_of_their_own(scale: float, there) -> None:
    """Also where one of them forbids a class, and another one has a row with NaN."""
    logits = torch.from_numpy(scale * np.stack([[cosines((20, 6), 3 * i + j) for j in range(3)] for i in range(2)]))
    logits[0, 1, :, 2], logits[1, 0, 5, 1] = -torch.inf, torch.nan
    found = np.asarray(there(soft_assign, logits, 0.05))
    assert found.shape == logits.shape
    assert found.dtype == np.float32
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(found[i, j], soft_assign(logits[i, j], 0.05), atol=1e-6)
    np.testing.assert_array_equal(soft_assign(logits.numpy(), 0.05), soft_assign(logits, 0.05).numpy())
    assert soft_assign(torch.zeros(2, 0, 5), 0.05).shape == (2, 0, 5)


@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.005])
def test_class_masses(epsilon: float, there) -> None:
    """By the plain iterations; in the limit masses are met, and equal ones are the default."""
    logits, mass = cosines((40, 5)), np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    logits[3, :4] = -np.inf  # of its classes only the last, which takes nothing
    allowed = np.delete(logits, 3, 0)[:, :4]
    for kind in (np.asarray, torch.tensor):
        found = np.asarray(there(soft_assign, torch.from_numpy(logits), epsilon, class_mass=kind(mass)))
        assert (found[3] == 0).all()
        assert (found[:, 4] == 0).all()
        exact = plain_iterations(allowed, epsilon, 3, mass[:4])
        np.testing.assert_allclose(np.delete(found, 3, 0)[:, :4], exact, atol=1e-6)
    long = soft_assign(np.delete(logits, 3, 0), 0.5, 200, class_mass=mass)
    np.testing.assert_allclose(long.mean(0), mass, atol=1e-6)
    counted = soft_assign(logits, epsilon, class_mass=(40 * mass).astype(int))
    np.testing.assert_allclose(counted, soft_assign(logits, epsilon, class_mass=mass), atol=1e-7)
    equal = soft_assign(cosines((40, 5)), epsilon, class_mass=[0.2] * 5)
    np.testing.assert_allclose(equal, soft_assign(cosines((40, 5)), epsilon), atol=1e-6)


def test_class_masses_in_a_compiled_step() -> None:
    compiled = torch.compile(soft_assign, fullgraph=True, backend="aot_eager")
    logits, mass = torch.from_numpy(cosines((20, 3))), torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(compiled(logits, 0.05, class_mass=mass), soft_assign(logits, 0.05, class_mass=mass))


@pytest.mark.parametrize(
    ("mass", "said"),
    [([0.5, 0.5], r"shape \(2,\)"), ([0.5, 0.4, 0.2], "sums to 1.1"), ([1.2, -0.2, 0], r"class_mass\[1\] is -0.2")],
)
def test_bad_class_masses(mass: list[float], said: str) -> None:
    for kind in (list, np.asarray, torch.tensor):
        with pytest.raises(InvalidMassError, match=said):
            soft_assign(np.zeros((4, 3)), 0.05, class_mass=kind(mass))


def test_no_iterations_are_the_softmax(there) -> None:
    logits = torch.from_numpy(cosines((2, 10, 4)))
    logits[0, 3], logits[1, 2, 1] = -torch.inf, torch.nan
    expected = torch.softmax(logits / 0.05, -1).float()
    expected[0, 3] = 0
    np.testing.assert_allclose(np.asarray(there(soft_assign, logits, 0.05, 0)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_read_exactly(dtype, there) -> None:
    logits = torch.from_numpy(cosines((60, 11))).to(dtype)
    np.testing.assert_array_equal(*(there(soft_assign, numbers, 0.05) for numbers in (logits, logits.float())))


def test_more_iterations_bring_class_masses_to_their_share() -> None:
    logits = torch.from_numpy(cosines((500, 20)) + np.linspace(0, 1, 20)).double()
    errors = [(soft_assign(logits, 0.1, n).sum(0) / 500 - 1 / 20).abs().sum().item() for n in (1, 3, 10, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_one_constant_changes_nothing() -> None:
    logits = torch.from_numpy(cosines((50, 9)))
    torch.testing.assert_close(soft_assign(logits + 1000, 0.05), soft_assign(logits, 0.05), atol=1e-6, rtol=0)


def test_constants_in_rows_change_nothing_in_the_limit() -> None:
    logits = torch.from_numpy(cosines((50, 9)))
    shifted = logits + 1000 * torch.from_numpy(cosines((50, 1)))
    limits = [soft_assign(rows, 0.5, 200) for rows in (shifted, logits)]
    torch.testing.assert_close(*limits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_do_not_overflow(dtype, scale: float, there) -> None:
    logits = (scale * torch.from_numpy(cosines((64, 12)))).to(dtype)
    found = np.asarray(there(soft_assign, logits, 0.01))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6, atol=1e-5)
    constant = np.asarray(there(soft_assign, torch.full((4, 8), scale).to(dtype), 0.01))
    np.testing.assert_allclose(constant, 1 / 8, rtol=1e-6, atol=1e-5)


def test_forbidden_pairs_get_nothing(there) -> None:
    logits = torch.from_numpy(cosines((30, 6)))
    logits[:, 2] = -torch.inf
    logits[3, :5] = -torch.inf
    logits[7] = -torch.inf
    found = np.asarray(there(soft_assign, logits, 0.05))
    assert np.isfinite(found).all()
    assert (found[:, 2] == 0).all()
    assert found[3, 5] == 1
    assert (found[7] == 0).all()


def test_there_is_no_gradient_and_the_logits_are_unchanged() -> None:
    logits = torch.from_numpy(cosines((10, 4))).requires_grad_()
    before = logits.detach().clone()
    assert not soft_assign(logits, 0.05).requires_grad
    assert torch.equal(logits, before)


def test_compiled_in_one_graph() -> None:
    """aot_eager traces as the compilers do, without the time that they take."""
    compiled = torch.compile(soft_assign, fullgraph=True, backend="aot_eager")
    logits = torch.from_numpy(cosines((20, 5)))
    torch.testing.assert_close(compiled(logits, 0.05), soft_assign(logits, 0.05))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [float, np.float64, torch.tensor], ids=["float", "numpy", "tensor"])
def test_compiled_once_for_a_schedule(backend: str, kind) -> None:
    """A first number is taken for a constant, a second one shows that it is none; then nothing is compiled any more."""
    from torch._dynamo.testing import CompileCounterWithBackend  # a second or two

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(lambda logits, epsilon: soft_assign(logits, epsilon), fullgraph=True, backend=counter)
    logits = torch.from_numpy(cosines((24, 6))).float()
    for epsilon in np.linspace(0.04, 0.07, 7):
        torch.testing.assert_close(step(logits, kind(epsilon)), soft_assign(logits, epsilon), atol=1e-6, rtol=0)
    assert counter.frame_count <= 2
    logits[3, 1] = torch.nan
    assert step(logits, kind(0.07)).isnan().all(1).tolist() == [row == 3 for row in range(24)]


def test_epsilon_in_a_tensor() -> None:
    logits = torch.from_numpy(cosines((20, 5)))
    expected = soft_assign(logits, 0.0625)
    for number in (torch.tensor(0.0625), torch.tensor([0.0625]), torch.tensor(0.0625, dtype=torch.bfloat16)):
        torch.testing.assert_close(soft_assign(logits, number.requires_grad_()), expected)
    for wrong in (0.0, -0.1, float("nan"), float("inf")):
        assert soft_assign(logits, torch.tensor(wrong)).isnan().all()
    with pytest.raises(ValueError, match="epsilon is a tensor of shape"):
        soft_assign(logits, torch.ones(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(dtype, value: float, there) -> None:
    logits = torch.from_numpy(cosines((64, 16))).to(dtype)
    logits[5, 2], logits[40] = value, value
    logits[7] = -torch.inf
    others = torch.tensor([row not in (5, 40) for row in range(64)])
    found = torch.as_tensor(np.asarray(there(soft_assign, logits, 0.05)))
    assert found[~others].isnan().all()
    without = torch.as_tensor(np.asarray(there(soft_assign, logits[others], 0.05)))
    torch.testing.assert_close(found[others], without, atol=2e-6, rtol=0)
    assert soft_assign(torch.full((3, 4), torch.nan), 0.05).isnan().all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_numpy_out(dtype: type) -> None:
    logits = cosines((20, 5)).astype(dtype)
    expected = soft_assign(torch.from_numpy(logits), 0.05).numpy()
    for batch in (logits, logits.tolist()) if dtype is np.float64 else (logits,):
        found = soft_assign(batch, 0.05)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected)
    mask = logits > 0.9
    forbidden = torch.from_numpy(logits).masked_fill(torch.from_numpy(mask), -torch.inf)
    found = soft_assign(np.ma.array(logits, mask=mask), 0.05)
    np.testing.assert_array_equal(found, soft_assign(forbidden, 0.05).numpy())


def test_bad_arguments() -> None:
    logits = torch.zeros(4, 3)
    for epsilon in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon is"):
            soft_assign(logits, epsilon)
    with pytest.raises(ValueError, match="n_iterations is -1"):
        soft_assign(logits, 0.05, -1)
    for wrong in (torch.zeros(3), torch.zeros(4, 3, dtype=torch.int64), np.zeros(3), np.zeros((4, 3), np.int64)):
        with pytest.raises(InvalidScoresError, match="logits have shape"):
            soft_assign(wrong, 0.05)
    for wrong, said in (({"logits": logits}, "type dict"), (None, "are None"), (logits.to_sparse(), "sparse tensor")):
        with pytest.raises(InvalidScoresError, match=f"logits.*{said}"):
            soft_assign(wrong, 0.05)


def on_its_part(group: Any, logits: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    return soft_assign(torch.from_numpy(logits).split(list(sizes))[group.rank()], 0.05, 3, group).numpy()


@pytest.mark.parametrize("sizes", [(21, 12), (33, 0)])
def test_processes_share_a_batch(sizes: tuple[int, int]) -> None:
    """Shares of the batch of any size; none at all, too."""
    logits = 30 * cosines((sum(sizes), 7))
    found = np.concatenate(on_ranks(on_its_part, 2, logits, sizes))
    np.testing.assert_allclose(found, soft_assign(logits, 0.05), atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_without_waiting_for_it() -> None:
    logits = torch.from_numpy(cosines((256, 300))).float().cuda()
    shares = np.arange(300) / (300 * 299 / 2)
    for mass in (None, shares, torch.from_numpy(shares).cuda()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = soft_assign(logits, 0.05, class_mass=mass)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = soft_assign(logits.cpu(), 0.05, class_mass=None if mass is None else shares)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)


def test_an_array_of_epsilons_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon is an array of shape \(2,\)"):
        soft_assign(np.zeros((3, 2)), np.array([0.05, 0.1]))
