"""Every solver of the comparison behind one interface: otlabel first, then its peers.

A solver is a function `prepare(scores, settings)` that brings the scores into the form it is used to (not timed) and
returns the call that is timed. That call ends with hard labels, because labels are what everybody wants in the end.
Packages are imported inside `prepare`, so that a missing one costs only its own rows.

`CARD_METHODS` are the same for a card, on tensors that are there: prepare(problem, settings) gives the call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Settings:
    """What all solvers are asked for."""

    epsilon: float = 0.04
    tol: float = 1e-2  # L1 error of the class masses
    max_iterations: int = 10_000


@dataclass(frozen=True)
class Outcome:
    """What a solver hands back, in NumPy; an entropic one tells its plan by `potentials` or by `class_mass`."""

    labels: np.ndarray  # (N,)
    iterations: int | None = None
    potentials: np.ndarray | None = None  # (K,) g of the row form softmax((s + g) / epsilon)
    class_mass: np.ndarray | None = None  # (K,) column sums of the plan, total 1
    bound: float | None = None  # certified upper bound on the mean score of any labels with these class sizes
    compile_seconds: float | None = None


Call = Callable[[], Outcome]


@dataclass(frozen=True)
class Method:
    """One line of the comparison."""

    prepare: Callable[[np.ndarray, Settings], Call]
    exact: bool  # solves the linear program with integer class sizes, not the entropic problem
    note: str


def balanced_counts(n: int, k: int) -> np.ndarray:
    """Class sizes that differ by at most one, the larger ones first."""
    return n // k + (np.arange(k) < n % k).astype(np.int64)


# ------------------------------------------------------------------------------------------------- otlabel


def otlabel_entropic(scores: np.ndarray, settings: Settings) -> Call:
    """Continuation and Newton on the class potentials; labels by argmax."""
    return _otlabel(scores, settings, rounding="argmax", method="auto")


def otlabel_plain(scores: np.ndarray, settings: Settings) -> Call:
    """Plain Sinkhorn iterations in otlabel's fused sweep; labels by argmax."""
    return _otlabel(scores, settings, rounding="argmax", method="sinkhorn")


def otlabel_exact(scores: np.ndarray, settings: Settings) -> Call:
    """The optimum of the linear program with exact class sizes."""
    return _otlabel(scores, settings, rounding="exact", method="auto")


def _otlabel(scores: np.ndarray, settings: Settings, *, rounding: str, method: str) -> Call:
    from otlabel import sinkhorn_assign

    def call() -> Outcome:
        result = sinkhorn_assign(
            scores,
            epsilon=settings.epsilon,
            tol=settings.tol,
            rounding=rounding,
            method=method,
            max_sweeps=settings.max_iterations,
            device="cpu",
        )
        return Outcome(
            labels=np.asarray(result.labels),
            iterations=int(result.n_sweeps),
            potentials=np.asarray(result.potentials),
            bound=float(result.bound),
        )

    return call


# ----------------------------------------------------------------------------------- POT: Python Optimal Transport


def pot_emd(scores: np.ndarray, settings: Settings) -> Call:
    """Network simplex on the full cost matrix."""
    import ot

    n, k = scores.shape
    cost = -scores.astype(np.float64)
    # Whole numbers as masses: the simplex then ends in a plan that splits no row, in exact arithmetic.
    row_mass, class_count = np.ones(n), balanced_counts(n, k).astype(np.float64)

    def call() -> Outcome:
        plan, log = ot.emd(row_mass, class_count, cost, numItermax=10**9, log=True)
        if log["warning"]:
            raise RuntimeError(f"ot.emd: {log['warning']}")
        return Outcome(labels=plan.argmax(axis=1))

    return call


def pot_sinkhorn_log(scores: np.ndarray, settings: Settings) -> Call:
    """Log-domain Sinkhorn on torch tensors, float32."""
    import ot
    import torch
    from ot.backend import TorchBackend

    n, k = scores.shape
    cost = torch.from_numpy(-scores)
    row_mass, class_mass = torch.full((n,), 1.0 / n), torch.full((k,), 1.0 / k)

    def l1_norm(backend: TorchBackend, vector: torch.Tensor) -> torch.Tensor:
        return vector.abs().sum()

    def call() -> Outcome:
        # POT stops on the L2 norm of the class error, and no threshold on L2 is a threshold on L1. Its loop takes
        # the norm from the backend and nowhere else, so an L1 norm there stops it exactly where the others stop.
        with mock.patch.object(TorchBackend, "norm", l1_norm):
            plan, log = ot.bregman.sinkhorn_log(
                row_mass,
                class_mass,
                cost,
                settings.epsilon,
                numItermax=settings.max_iterations,
                stopThr=settings.tol,
                log=True,
                warn=False,
            )
        return Outcome(
            labels=plan.argmax(dim=1).numpy(),
            iterations=log["niter"] + 1,
            potentials=settings.epsilon * log["log_v"].numpy(),
        )

    return call


# --------------------------------------------------------------------------------------------------- OTT-JAX


def ott_lse(scores: np.ndarray, settings: Settings) -> Call:
    """OTT's Sinkhorn as it comes: log-sum-exp updates."""
    return _ott(scores, settings, lse_mode=True)


def ott_kernel(scores: np.ndarray, settings: Settings) -> Call:
    """OTT's Sinkhorn on scalings of the kernel matrix."""
    return _ott(scores, settings, lse_mode=False)


def _ott(scores: np.ndarray, settings: Settings, *, lse_mode: bool) -> Call:
    import jax

    jax.config.update("jax_platforms", "cpu")
    import jax.numpy as jnp

    # Cost 0 at a row's best class: a row shift changes no plan, and without it kernel mode underflows at once.
    cost = jnp.asarray(scores.max(axis=1, keepdims=True) - scores)
    solve = _ott_solver(settings, lse_mode=lse_mode)
    start = time.perf_counter()
    compiled = jax.jit(solve).lower(cost).compile()
    compile_seconds = time.perf_counter() - start

    def call() -> Outcome:
        labels, potentials, iterations = jax.block_until_ready(compiled(cost))
        return Outcome(
            labels=np.asarray(labels),
            iterations=int(iterations),
            potentials=np.asarray(potentials),
            compile_seconds=compile_seconds,
        )

    return call


def _ott_solver(settings: Settings, *, lse_mode: bool) -> Callable[[Any], tuple[Any, Any, Any]]:
    """A function from costs to labels, class potentials and the number of iterations, to be compiled."""
    import jax.numpy as jnp
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(
        lse_mode=lse_mode, threshold=settings.tol, norm_error=1, max_iterations=settings.max_iterations
    )

    def solve(cost: Any) -> tuple[Any, Any, Any]:
        problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=settings.epsilon))
        solution = solver(problem)
        return jnp.argmax(solution.g - cost, axis=1), solution.g, jnp.asarray(solution.n_iters)

    return solve


# ------------------------------------------------------------------------- the loops people copy from papers


def sela_own_stop(scores: np.ndarray, settings: Settings) -> Call:
    """SeLa's loop stopped as its authors do: change of the row scalings, summed over rows, under 0.1."""
    return _sela(scores, settings, own_stop=True)


def sela_same_stop(scores: np.ndarray, settings: Settings) -> Call:
    """SeLa's loop stopped at the class error everybody else stops at."""
    return _sela(scores, settings, own_stop=False)


def _sela(scores: np.ndarray, settings: Settings, *, own_stop: bool) -> Call:
    n, k = scores.shape
    plan = np.exp(scores, dtype=np.float64)  # (N, K) the loop starts from softmax probabilities

    def finished(iteration: int, row: np.ndarray, new_row: np.ndarray, taken: np.ndarray) -> bool:
        if own_stop:
            return iteration % 10 == 1 and float(np.abs(row / new_row - 1).sum()) < 0.1
        return float(np.abs(taken - 1.0 / k).sum()) < settings.tol

    def call() -> Outcome:
        with np.errstate(all="ignore"):
            np.power(plan, 1.0 / settings.epsilon, out=plan)
            row = np.full(n, 1.0 / n)
            mass = row @ plan  # (K,) class masses before scaling
            for iteration in range(1, settings.max_iterations + 1):
                scale = 1.0 / (k * mass)
                new_row = 1.0 / (n * (plan @ scale))
                if not np.isfinite(new_row).all():
                    raise FloatingPointError(f"not finite in iteration {iteration}: softmax ** (1/epsilon) underflowed")
                mass = new_row @ plan  # what the next iteration needs anyway, so the class error costs nothing
                stop = finished(iteration, row, new_row, scale * mass)
                row = new_row
                if stop:
                    break
            np.multiply(plan, row[:, None], out=plan)
            np.multiply(plan, scale, out=plan)
            return Outcome(
                labels=plan.argmax(axis=1), iterations=iteration, potentials=settings.epsilon * np.log(scale)
            )

    return call


def swav_three(scores: np.ndarray, settings: Settings) -> Call:
    """SwAV's loop: three Sinkhorn iterations in float32, no stopping test."""
    import torch

    matrix = torch.from_numpy(scores)

    def call() -> Outcome:
        plan = _swav_plan(matrix, settings.epsilon)
        return Outcome(
            labels=plan.argmax(dim=1).numpy(),
            iterations=3,
            class_mass=plan.sum(dim=0, dtype=torch.float64).numpy(),
        )

    return call


def _swav_plan(matrix: torch.Tensor, epsilon: float) -> torch.Tensor:
    """After three iterations, (N, K), sum 1."""
    n, k = matrix.shape
    # SwAV's own scores are cosines; on log-probabilities its bare exp() underflows, hence the row maximum.
    plan = (matrix.float() - matrix.float().amax(dim=1, keepdim=True)).div_(epsilon).exp_()
    plan /= plan.sum()
    for _ in range(3):
        plan /= plan.sum(dim=0, keepdim=True) * k
        plan /= plan.sum(dim=1, keepdim=True) * n
    return plan


METHODS: dict[str, Method] = {
    "otlabel-exact": Method(
        otlabel_exact, True, "iterations are passes over all the scores, the first look and the proof included"
    ),
    "otlabel-entropic": Method(
        otlabel_entropic, False, "iterations are passes over all the scores, the first look and the proof included"
    ),
    "otlabel-plain": Method(
        otlabel_plain, False, "iterations are passes over all the scores, the first look and the proof included"
    ),
    "pot-emd": Method(
        pot_emd, True, "`ot.emd`, float64, masses as whole numbers; the conversion to float64 is not timed"
    ),
    "pot-sinkhorn-log": Method(
        pot_sinkhorn_log,
        False,
        "`ot.bregman.sinkhorn_log` on float32 torch tensors; it looks at its error in iterations 1, 11, 21, ...; its "
        "`stopThr` is an L2 norm of the class error, replaced by the L1 norm for this run, so that it stops at the "
        "same error as the others",
    ),
    "ott-lse": Method(
        ott_lse,
        False,
        "OTT-JAX, `threshold` = the tolerance with `norm_error=1` (L1 on the class masses), looked at every 10 "
        "iterations; compiled ahead of time for these shapes, compilation reported apart",
    ),
    "ott-kernel": Method(ott_kernel, False, "as ott-lse with `lse_mode=False`; costs shifted to 0 at each row's best"),
    "sela-own-stop": Method(
        sela_own_stop,
        False,
        "NumPy float64, softmax ** (1/epsilon), stopped on SeLa's own error (summed relative change of the row "
        "scalings < 0.1), looked at every 10 iterations; starts from probabilities, the power is timed",
    ),
    "sela-same-stop": Method(
        sela_same_stop, False, "the same loop, stopped at the class error of the others, looked at in every iteration"
    ),
    "swav-3": Method(
        swav_three,
        False,
        "torch float32, always three iterations, so it does not reach the tolerance; rows shifted by their maximum, "
        "without which it underflows",
    ),
}


# ------------------------------------------------------------------------------------------------- on a card


CARD_CHUNK = 1 << 26  # scores at a time where an answer is judged


@dataclass(frozen=True)
class CardProblem:
    """One problem in two forms, all of it on the device: the matrix, and the linear head that it came from."""

    scores: torch.Tensor  # (N, K) float16: log_softmax(features @ weight + offset)
    features: torch.Tensor  # (N, D) float32
    weight: torch.Tensor  # (D, K) float32
    offset: torch.Tensor  # (K,) float32
    seconds: float  # that a loop without a limit of its own may take

    def class_mass(self, potentials: torch.Tensor, epsilon: float, *, factored: bool) -> torch.Tensor:
        """Column sums (K,) of the plan softmax((s + g) / epsilon) / N in float64, s rounded as stored or not at all."""
        import torch

        n, k = self.scores.shape
        total = torch.zeros(k, dtype=torch.float64, device=self.scores.device)
        for start in range(0, n, size := max(1, CARD_CHUNK // k)):
            part = slice(start, start + size)
            rows = self.features[part] @ self.weight + self.offset if factored else self.scores[part]
            total += torch.softmax((rows.double() + potentials) / epsilon, 1).sum(0)
        return total / n


@dataclass(frozen=True)
class CardOutcome:
    """What comes back, on the device; the plan is told by `potentials` or by `class_mass`, as in Outcome."""

    labels: torch.Tensor  # (N,)
    iterations: int
    potentials: torch.Tensor | None = None
    class_mass: torch.Tensor | None = None
    peak_bytes: int | None = None  # where it was not torch that took the memory
    factored: bool = False  # whether the problem was solved for unrounded scores, from the features


CardCall = Callable[[], CardOutcome]


def sela_on_card(problem: CardProblem, settings: Settings) -> CardCall:
    """SeLa's iterations on softmax ** (1 / epsilon) in float64, stopped at our class error; then the argmax."""
    import torch

    scores = problem.scores
    n, k = scores.shape

    def call() -> CardOutcome:
        begun = time.perf_counter()
        plan = scores.double().div_(settings.epsilon).exp_()
        rows = torch.full((n,), 1.0 / n, dtype=torch.float64, device=scores.device)
        iterations, error = 0, math.inf
        mass = rows @ plan
        while error > settings.tol and time.perf_counter() - begun < problem.seconds:
            for _ in range(10):
                columns = 1.0 / (k * mass)
                rows = 1.0 / (n * (plan @ columns))
                mass = rows @ plan
            iterations += 10
            error = float((columns * mass - 1.0 / k).abs().sum())
            if math.isnan(error):
                raise FloatingPointError(f"not finite in iteration {iterations}: softmax ** (1/epsilon) underflowed")
        plan *= columns
        return CardOutcome(plan.argmax(1), iterations, potentials=settings.epsilon * columns.log())

    return call


def swav_on_card(problem: CardProblem, settings: Settings) -> CardCall:
    """SwAV's loop: three iterations in float32, no stopping test."""
    import torch

    def call() -> CardOutcome:
        plan = _swav_plan(problem.scores, settings.epsilon)
        return CardOutcome(plan.argmax(1), 3, class_mass=plan.sum(0, dtype=torch.float64))

    return call


def ott_on_card(problem: CardProblem, settings: Settings) -> CardCall:
    """OTT's Sinkhorn by log-sum-exp updates in float32, compiled ahead of time; the costs are handed over in place."""
    import jax
    import torch

    device = jax.devices()[0]
    if (device.platform == "gpu") != problem.scores.is_cuda:
        raise RuntimeError(f"JAX computes on {device.platform}: pip install 'jax[cuda12]'")
    cost = problem.scores.float().neg_()
    cost -= cost.amin(1, keepdim=True)
    costs = jax.numpy.from_dlpack(cost)
    compiled = jax.jit(_ott_solver(settings, lse_mode=True)).lower(costs).compile()

    def call() -> CardOutcome:
        labels, potentials, iterations = jax.block_until_ready(compiled(costs))
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        back = [torch.from_numpy(np.array(part)).to(cost.device) for part in (labels, potentials)]
        return CardOutcome(back[0].long(), int(iterations), potentials=back[1], peak_bytes=peak)

    return call


def flash_sinkhorn_on_card(problem: CardProblem, settings: Settings) -> CardCall:
    """Streaming Sinkhorn for squared distances, on the features: half the squared distance is minus the product.

        -||x_i - w_k||^2 / 2 = <x_i, w_k> - ||x_i||^2 / 2 - ||w_k||^2 / 2

    The last two terms, the offset and the normalisation are constant in a row or a class, so that the balanced plan is
    that of the scores. It takes no other costs. It stops where potentials no longer change, which is later than asked
    for here: the fewest tens of iterations that reach the class error are looked for first, and these are timed.
    """
    import torch
    from flash_sinkhorn.sinkhorn_solvers import sinkhorn_flashstyle_alternating

    if not problem.features.is_cuda:
        raise RuntimeError("flash-sinkhorn computes on cards only")
    x, w = problem.features, problem.weight.T.contiguous()
    masses = [torch.full((len(points),), 1.0 / len(points), device=x.device) for points in (x, w)]

    def solve(n_iterations: int) -> torch.Tensor:
        _, potentials = sinkhorn_flashstyle_alternating(
            x, w, *masses, eps=settings.epsilon, n_iters=n_iterations, cost_scale=0.5, allow_tf32=False
        )
        return potentials - 0.5 * w.square().sum(1) - problem.offset

    def reached(n_iterations: int) -> bool:
        mass = problem.class_mass(solve(n_iterations), settings.epsilon, factored=True)
        return float((mass - 1 / len(w)).abs().sum()) <= settings.tol

    tens = _fewest(lambda tens: reached(10 * tens), settings.max_iterations // 10, problem.seconds)

    def call() -> CardOutcome:
        potentials = solve(10 * tens)
        shift = potentials + problem.offset
        labels = torch.cat([(part @ problem.weight + shift).argmax(1) for part in x.split(CARD_CHUNK // len(w))])
        return CardOutcome(labels, 10 * tens, potentials=potentials, factored=True)

    return call


def _fewest(is_enough: Callable[[int], bool], most: int, seconds: float) -> int:
    """The least number that is enough, by doubling and halving; the largest one tried where time runs out."""
    begun, low, high = time.perf_counter(), 0, 1
    while not is_enough(high):
        if high >= most or time.perf_counter() - begun > seconds:
            return high
        low, high = high, min(2 * high, most)
    while high - low > 1 and time.perf_counter() - begun < seconds:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


CARD_METHODS: dict[str, tuple[Callable[[CardProblem, Settings], CardCall], str]] = {  # and what to install
    "SeLa's loop": (sela_on_card, "torch"),
    "SwAV's three iterations": (swav_on_card, "torch"),
    "OTT-JAX": (ott_on_card, "ott-jax 'jax[cuda12]'"),
    "flash-sinkhorn": (flash_sinkhorn_on_card, "flash-sinkhorn"),
}
