"""One command on a machine with a card: is everything right there, and how fast is it. JSON and Markdown come out.

    python benchmarks/gpu_check.py --out results        # on a card, under eight minutes
    python benchmarks/gpu_check.py --quick              # tiny sizes on the CPU: tests this script itself

Needs neither POT nor faiss. Parts run one after the other in one process beside this one. Where a part breaks the
card's context, ends its process or hangs, that process is given up and the next parts get a new one; every row that is
known is on disk by then. A part or row that fails, or for which no time is left, says so; the others go on. At the end
stands what was to be reached, and whether it was. Peers run where they are installed:
pip install ott-jax 'jax[cuda12]' flash-sinkhorn.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import io
import math
import os
import pstats
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from machine import describe_machine, failure_text, machine_line, number, read_json, table, write_json  # noqa: E402
from peers import CARD_METHODS, CardOutcome, CardProblem, Settings  # noqa: E402
from problems import KINDS, draw  # noqa: E402

import otlabel  # noqa: E402
from otlabel import sweep  # noqa: E402
from otlabel.ranks.rowset import RowSet  # noqa: E402
from otlabel.sources import TensorSource  # noqa: E402
from otlabel.sweep import reference, running  # noqa: E402
from otlabel.sweep.contract import Immediate  # noqa: E402

PACKAGES = ["torch", "triton", "numba", "numpy", "scipy", "scikit-learn", "jax", "ott-jax", "flash-sinkhorn"]
EPSILON, TOL = 0.04, 1e-2
SETTINGS = Settings(EPSILON, TOL, max_iterations=3000)
IMAGENET = 1_281_167
PASSES = [("float16", 7), ("float16", 130), ("float16", 1000), ("float16", 10_000)] + [
    (name, 3001) for name in ("float16", "float32", "float64")
]  # that labels, candidates and first looks are checked for: each is compiled
APART = ("OTT-JAX", "flash-sinkhorn")  # in processes of their own: what they break or keep is theirs
BROKEN = 3  # exit status of a process whose card answers no more
SLOW_END = 15.0  # seconds that a part may go on after its time, before its process is ended
START_SECONDS = 60.0  # until a process has begun its first part
POLLS = 0.1  # seconds between two looks at that process


@dataclass(frozen=True)
class Plan:
    """Sizes of everything, and where it runs."""

    device: str
    seeds: int  # of each kind of problem
    sweep: tuple[int, int]
    solves: tuple[tuple[int, int], ...]
    compared: tuple[int, int]  # with the CPU's answer
    factored: tuple[int, int, int, int]  # heads, rows, features, classes
    batches: tuple[tuple[int, int], ...]
    clusters: tuple[int, int, int]  # rows, features, clusters
    streamed: tuple[int, int]
    copy_bytes: int
    repeats: int
    loop_seconds: float  # that a peer's loop may take
    profiled: tuple[str, ...]


CARD = Plan(
    "cuda", 1, (IMAGENET, 3000), ((100_000, 1000), (IMAGENET, 3000)), (100_000, 300), (10, IMAGENET, 2048, 3000),
    ((256, 3000), (4096, 65_536)), (1_000_000, 128, 1024), (400_000, 3000), 4 << 30, 9, 30.0,
    ("argmax", "exact", "head", "k-means"),
)  # fmt: skip
QUICK = Plan(
    "cpu", 1, (2000, 30), ((2000, 10), (3000, 30)), (2000, 10), (2, 1500, 16, 20), ((32, 30), (48, 64)),
    (3000, 8, 12), (3000, 16), 1 << 22, 3, 2.0, ("exact",),
)  # fmt: skip


class BrokenCardError(Exception):
    """The card answers no more in this process: what is left needs another one."""


class Check:
    """One part: what it found, row by row, on disk after each of them; and how much time it has left."""

    def __init__(self, plan: Plan, seconds: float, file: Path) -> None:
        self.plan, self.seconds, self.file, self.begun = plan, seconds, file, time.perf_counter()
        self.found: dict[str, Any] = {}

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.file.parent.parent

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.perf_counter() - self.begun)

    def row(self, name: str, call: Callable[[], Any], at_least: float = -SLOW_END / 2) -> Any:
        """What the call gives, or None where it failed, or where so many seconds are not left."""
        if self.left < at_least:
            self.keep(name, {"failure": f"not begun: {self.left:.0f} s were left, {at_least:.0f} s are needed"})
            return None
        try:
            found = call()
            wait(self.plan.device)  # what went wrong on the way is told here
        except Exception as error:  # one row's failure must not take the others with it
            traceback.print_exc()
            self.keep(name, {"failure": f"{type(error).__name__}: {error}"[:500]})
            if not _answers(self.plan.device):
                raise BrokenCardError(name) from error
            return None
        self.keep(name, found)
        return found

    def keep(self, name: str, found: Any) -> None:
        """Put it on disk."""
        self.found[name] = found
        self.write()

    def write(self, **more: Any) -> None:
        """All that is known, in one step."""
        part = {"seconds": time.perf_counter() - self.begun, "found": self.found, **more}
        write_json(self.file.with_suffix(".new"), part)
        self.file.with_suffix(".new").replace(self.file)


def _answers(device: str) -> bool:
    """Whether the card still does anything in this process: after an illegal access it does not."""
    try:
        wait(device)
        return bool(torch.ones(1, device=device).item() == 1)
    except Exception:
        return False


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], plan: Plan, inner: int = 1, repeats: int | None = None) -> dict[str, float]:
    """Seconds of one call: median and smallest of several, the device waited for at both ends."""
    call()
    seconds = []
    for _ in range(repeats or plan.repeats):
        wait(plan.device)
        begun = time.perf_counter()
        for _ in range(inner):
            call()
        wait(plan.device)
        seconds.append((time.perf_counter() - begun) / inner)
    return {"median": statistics.median(seconds), "least": min(seconds)}


def median_of(call: Callable[[], Any], plan: Plan, inner: int = 1) -> float:
    return timed(call, plan, inner)["median"]


# ------------------------------------------------------------------------------------------------- correctness


def on_card(scores: Any, plan: Plan) -> TensorSource:
    """Scores of any kind as a device has them."""
    tensor = scores if isinstance(scores, torch.Tensor) else torch.from_numpy(_native(np.asarray(scores)))
    if not tensor.is_floating_point():
        tensor = tensor.double()
    return TensorSource(tensor.to(plan.device))


def _native(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))


def check_problems(check: Check) -> None:
    """Every kind of problem of the tests, against the CPU: class sizes, and values within both gaps."""
    wrong, worst, n_checked = [], 0.0, 0
    for kind in KINDS:
        for seed in range(check.plan.seeds):
            if check.left < 0:
                check.keep("failure", f"out of time after {n_checked} problems")
                return
            drawn = draw(kind, seed)
            expected = otlabel.sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)
            found = otlabel.sinkhorn_assign(on_card(drawn.scores, check.plan), class_mass=drawn.class_mass)
            apart, allowed = apart_and_allowed(found, expected)
            sizes = torch.as_tensor(found.counts).cpu().numpy()
            worst, n_checked = max(worst, apart / max(1.0, abs(expected.value))), n_checked + 1
            if not np.array_equal(sizes, drawn.counts) or apart > allowed or found.gap < -1e-12:
                wrong.append(f"{kind}/{seed}: values {found.value!r} {expected.value!r}, gap {found.gap:.3g}")
            check.found = {"problems": n_checked, "wrong": wrong, "largest_relative_difference": worst}
        check.write()


def apart_and_allowed(found: Any, expected: Any) -> tuple[float, float]:
    """How far two values of one problem are apart, and how far they may be: both gaps, and rounding."""
    noise = 1e-12 * max(1.0, abs(expected.value))
    return abs(found.value - expected.value), max(found.gap, 0.0) + max(expected.gap, 0.0) + noise


def check_sweeps(check: Check) -> None:
    """Sweeps of larger blocks against float64 formulas, in every type; and twice, for the same bits."""
    generator = torch.Generator(check.plan.device).manual_seed(0)
    rows = 3001 if check.plan.device == "cuda" else 101
    check.found = {"sweeps": 0, "wrong": [], "same_bits": True, "errors": {}}
    for n_classes in (7, 130, 1000, 3000, 3001, 8192, 10_000, 65_536) if rows > 1000 else (7, 130):
        for name in ("float16", "bfloat16", "float32", "float64"):
            numbers = 2 * torch.randn(rows, n_classes, device=check.plan.device, generator=generator)
            scores = numbers.to(getattr(torch, name))
            g = np.random.default_rng(n_classes).standard_normal(n_classes)
            for precision in (np.float32, np.float64) if name in ("float16", "float64") else (np.float32,):
                key = f"{n_classes} {name} {np.dtype(precision).name}"
                if check.left < 0:
                    check.found["not_checked"] = f"{key} and what follows: out of time"
                    return
                try:
                    _check_sweep(check.found, key, scores, g, precision)
                    if precision is np.float32 and (name, n_classes) in PASSES:
                        _check_passes(check.found, f"{n_classes} {name}", scores, g)
                except Exception as error:
                    check.found["wrong"].append(f"{key}: {type(error).__name__}: {error}"[:300])
                    if not _answers(check.plan.device):
                        raise BrokenCardError(key) from error
                check.write()


def _check_sweep(found: dict, key: str, scores: torch.Tensor, g: np.ndarray, precision: type) -> None:
    source, rows = TensorSource(scores), len(scores)
    first, second = (sweep.sweep(RowSet(source), g, EPSILON, None, precision) for _ in range(2))
    bare = first
    if scores.dtype in (torch.float16, torch.float32):  # without labels: a kernel of its own
        bare = sweep.sweep(RowSet(source), g, EPSILON, None, precision, with_labels=False)
    same = [first.mass.tobytes() == other.mass.tobytes() for other in (second, bare)]
    found["same_bits"] &= all(same) and first.entropic == second.entropic
    u = scores.double() + torch.from_numpy(g.astype(precision)).double().to(scores.device)
    mass = torch.softmax(u / EPSILON, 1).sum(0).cpu().numpy() / rows
    rounding = 3 * np.finfo(precision).eps * float(u.abs().max()) / EPSILON + 2e-6
    error = max(float(np.abs(one.mass - mass).sum()) for one in (first, bare))
    linear = max(abs(one.linear - float(u.amax(1).mean())) for one in (first, bare))
    agreeing = float((u.argmax(1).cpu().numpy() == first.labels).mean())
    found["errors"][key] = {"mass": error, "linear": linear, "labels_agreeing": agreeing}
    found["sweeps"] += 1
    if not (error <= rounding and linear <= rounding and agreeing > 0.999):
        found["wrong"].append(f"{key}: {found['errors'][key]}")


def _check_passes(found: dict, key: str, scores: torch.Tensor, g: np.ndarray) -> None:
    """Labels, candidates and the first look: each number as plain torch has it."""
    scores = scores[:1001].clone()
    scores[::7, ::3] = -torch.inf
    scores[5], scores[6] = 1.5, scores[8]
    source, none = TensorSource(scores), np.full(len(scores), -1, np.int32)
    calls: dict[str, Callable[[], Any]] = {
        "label": lambda: sweep.label(RowSet(source), g),
        "candidates": lambda: list(vars(sweep.candidates(RowSet(source), g, none.copy(), 0.3, 1e-12)).values()),
        "inspect": lambda: list(vars(sweep.inspect(RowSet(source))).values()),
        "inspect all": lambda: list(vars(sweep.inspect(RowSet(source), every_score=True)).values()),
    }
    chosen = running.backend_of
    for name, call in calls.items():
        there = call()
        running.backend_of = lambda _: Immediate(reference)
        try:
            expected = call()
        finally:
            running.backend_of = chosen
        if not all(np.array_equal(one, other) for one, other in zip(there, expected, strict=True)):
            found["wrong"].append(f"{key}: {name} is not what plain torch makes of it")
        found["passes"] = found.get("passes", 0) + 1


# ------------------------------------------------------------------------------------------------- time


def time_copy(check: Check) -> None:
    """What the card's memory moves: a copy (bytes read and written), and a sum (bytes read)."""
    size = check.plan.copy_bytes
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=check.plan.device)
    target = torch.empty_like(source)
    check.row("copy_gb_s", lambda: 2 * size / median_of(lambda: target.copy_(source), check.plan) / 1e9)
    check.row("read_gb_s", lambda: size / median_of(lambda: source.view(torch.int64).sum(), check.plan) / 1e9)


def zipf_problem(shape: tuple[int, int], device: str, seconds: float = math.inf, seed: int = 0) -> CardProblem:
    """Log-probabilities (float16) of a random linear head on Zipf-distributed clusters, made on the device."""
    n_rows, n_classes = shape
    generator = torch.Generator(device).manual_seed(seed)
    n_clusters, dim = max(1, n_classes // 2), 64
    centres = torch.randn(n_clusters, dim, device=device, generator=generator)
    shares = 1.0 / torch.arange(1, n_clusters + 1, device=device, dtype=torch.float64)
    weight = torch.randn(dim, n_classes, device=device, generator=generator) / math.sqrt(dim)
    offset = 0.5 * torch.randn(n_classes, device=device, generator=generator)
    scores = torch.empty(shape, dtype=torch.float16, device=device)
    features = torch.empty(n_rows, dim, device=device)
    for part in _parts(n_rows, max(1, (1 << 28) // n_classes)):
        size = part.stop - part.start
        clusters = torch.multinomial(shares, size, replacement=True, generator=generator)
        noise = torch.randn(size, dim, device=device, generator=generator)
        features[part] = centres[clusters] + 0.5 * noise
        scores[part] = torch.log_softmax(features[part] @ weight + offset, 1)
    return CardProblem(scores, features, weight, offset, seconds)


def _parts(n_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def time_sweep(check: Check) -> None:
    """One sweep of everything against reading the matrix once; and the other passes of a solve."""
    plan, (n_rows, n_classes) = check.plan, check.plan.sweep
    scores = zipf_problem(plan.sweep, plan.device).scores
    source, g = TensorSource(scores), np.random.default_rng(0).standard_normal(n_classes)
    n_bytes = scores.numel() * scores.element_size()
    flat = scores.view(-1)
    check.keep("gb", n_bytes / 1e9)
    read = check.row(
        "read_once", lambda: median_of(lambda: flat[: flat.numel() // 4 * 4].view(torch.int64).sum(), plan)
    )
    passes: dict[str, Callable[[], Any]] = {
        "sweep": lambda: sweep.sweep(RowSet(source), g, EPSILON, None, np.float32, with_labels=False),
        "sweep_with_labels": lambda: sweep.sweep(RowSet(source), g, EPSILON, None, np.float32),
        "sweep_float64": lambda: sweep.sweep(RowSet(source), g, EPSILON, None, np.float64, with_labels=False),
        "label": lambda: sweep.label(RowSet(source), g),
        "candidates": lambda: sweep.candidates(RowSet(source), g, np.full(n_rows, -1, np.int32), 1e-3, 1e-12),
        "inspect": lambda: sweep.inspect(RowSet(source)),
    }
    for name, call in passes.items():
        seconds = check.row(name, lambda call=call: median_of(call, plan))
        if name == "sweep" and read and seconds:
            check.keep("sweep_over_read", seconds / read)


def tune_sweep(check: Check) -> None:
    """The kernel alone at several shapes, with and without labels, in GB/s of what is read; the default comes first."""
    if check.plan.device != "cuda":
        check.keep("note", "only on a card")
        return
    from otlabel.sweep import cuda

    check.keep("fields", list(cuda.Shape._fields))
    for n_classes, labelled in ((3000, False), (1000, False), (300, False), (3000, True), (1000, True)):
        n_rows = IMAGENET // 4 * 3000 // n_classes
        scores = torch.randn(n_rows, n_classes, device="cuda", dtype=torch.float16)
        chosen = cuda.fused_shape(n_classes, torch.float32)
        tried = [(chosen, cuda.ROWS_A_PROGRAM), (chosen._replace(stages=4), cuda.ROWS_A_PROGRAM)]
        tried += [] if labelled else [(chosen, 64), (chosen, 128)]
        for shape, each in tried:
            name = f"{n_classes}{' labelled' if labelled else ''} {tuple(shape)}" + f", {each} rows"
            check.row(name, lambda s=scores, h=shape, e=each, q=labelled: _kernel_gb_s(s, h, e, q, check.plan), 5)
        del scores
        _free("cuda")


def _kernel_gb_s(scores: torch.Tensor, shape: Any, rows_a_program: int, labelled: bool, plan: Plan) -> float:
    from otlabel.sweep import cuda

    n_rows, n_classes = scores.shape
    view, constants = cuda._view(scores), torch.randn(n_classes + 1, device=scores.device)
    constants[-1] = math.log2(math.e) / EPSILON
    tops, totals = cuda._per_row(view, torch.float32, 2)
    best = torch.empty(n_rows if labelled else 0, dtype=torch.int32, device=scores.device)
    kept = cuda.fused_shape, cuda.ROWS_A_PROGRAM
    cuda.fused_shape, cuda.ROWS_A_PROGRAM = (lambda *_: shape), rows_a_program
    try:
        seconds = timed(lambda: cuda._reduce_once(view, constants, None, tops, totals, best), plan)
    finally:
        cuda.fused_shape, cuda.ROWS_A_PROGRAM = kept
    return scores.nbytes / seconds["median"] / 1e9


def solve_row(scores: Any, plan: Plan, rounding: str) -> dict:
    """One solve from scores in the device's memory to labels in its memory, and where its time went."""
    _begin_peak(plan.device)
    begun = time.perf_counter()
    found = otlabel.sinkhorn_assign(scores, epsilon=EPSILON, tol=TOL, rounding=rounding)
    wait(plan.device)
    seconds = time.perf_counter() - begun
    stages: dict[str, float] = {}
    before = 0.0
    for record in found.history:
        name = record["stage"] if record["rows"] in (0, found.labels.shape[0]) else f"{record['stage']} (samples)"
        stages[name] = stages.get(name, 0.0) + record["seconds"] - before
        before = record["seconds"]
    counts = np.asarray(found.counts.cpu() if isinstance(found.counts, torch.Tensor) else found.counts)
    return {
        "seconds": seconds,
        "peak_gb": _peak_gb(plan.device),
        "sweeps": found.n_sweeps,
        "class_error": found.marginal_error,
        "value": found.value,
        "gap": found.gap,
        "sizes": [int(counts.min()), int(counts.max())],
        "status": found.status.name,
        "stages": stages,
    }


def time_solves(check: Check) -> None:
    """Entropic and exact at two sizes, each twice, all compiled before; then the peers that are torch alone."""
    plan = check.plan
    for shape in reversed(plan.solves):
        check.row(f"compiling, {shape[1]} classes", lambda n=shape[1]: _compile(n, plan))
        problem = zipf_problem(shape, plan.device, plan.loop_seconds)
        name = f"{shape[0]} x {shape[1]}"
        made = otlabel.linear_scores(problem.features, problem.weight.T, problem.offset)
        for how, origin, scores in (
            ("argmax", "", problem.scores), ("exact", "", problem.scores), ("argmax", " from features", made),
        ):  # fmt: skip
            check.row(f"otlabel {how}{origin}, {name}", lambda s=scores, r=how: _solved_twice(check, s, r), 5)
        for peer in (peer for peer in CARD_METHODS if peer not in APART):
            check.row(f"{peer}, {name}", lambda p=peer, q=problem: peer_row(p, q, plan), 5)
        del problem, made, scores
        _free(plan.device)


def _compile(n_classes: int, plan: Plan) -> dict:
    """Solve a small problem of so many classes in each way that is measured, which compiles what these need."""
    begun = time.perf_counter()
    problem = zipf_problem((4 * n_classes, n_classes), plan.device)
    for rounding in ("exact", "argmax"):
        solve_row(problem.scores, plan, rounding)
    solve_row(otlabel.linear_scores(problem.features, problem.weight.T, problem.offset), plan, "argmax")
    return {"seconds": time.perf_counter() - begun, "status": "not a solve"}


def _solved_twice(check: Check, scores: Any, rounding: str) -> dict:
    first = solve_row(scores, check.plan, rounding)
    again = solve_row(scores, check.plan, rounding) if first["seconds"] < 0.2 * check.left else first
    return again | {"first_seconds": first["seconds"]}


def compare_with_cpu(check: Check) -> None:
    """The same scores on the card and on the CPU: values within both gaps, class errors within the tolerance."""
    plan = check.plan
    scores = zipf_problem(plan.compared, plan.device).scores
    there = scores.cpu().numpy()
    for rounding in ("exact", "argmax"):
        check.row(rounding, lambda r=rounding: _compared(scores, there, r, plan), 15)


def _compared(scores: torch.Tensor, there: np.ndarray, rounding: Any, plan: Plan) -> dict:
    found = otlabel.sinkhorn_assign(TensorSource(scores), epsilon=EPSILON, tol=TOL, rounding=rounding)
    begun = time.perf_counter()
    expected = otlabel.sinkhorn_assign(there, epsilon=EPSILON, tol=TOL, rounding=rounding)
    row = {"shape": list(plan.compared), "cpu_seconds_compiled_or_not": time.perf_counter() - begun}
    apart, allowed = apart_and_allowed(found, expected)
    errors = [found.marginal_error, expected.marginal_error]
    row |= {"value": found.value, "cpu_value": expected.value, "apart": apart, "allowed": allowed, "errors": errors}
    # Labels by argmax are of plans that meet the tolerance, each with sizes and a value of its own.
    right = apart <= allowed if rounding == "exact" else max(errors) <= TOL
    return row | {"wrong": [] if right else [f"{rounding}: {found.value!r} on the card, {expected.value!r} here"]}


def profile(check: Check) -> None:
    """Where a solve's time goes: kernels by their time, host functions by theirs, as text files beside the report."""
    plan = check.plan
    problem = zipf_problem(plan.solves[-1], plan.device)
    _, n_rows, dim, n_classes = plan.factored
    features = torch.randn(n_rows // 8, dim, device=plan.device).half()
    head = otlabel.linear_scores(features, torch.randn(n_classes, dim, device=plan.device) / math.sqrt(dim))
    for name, scores, rounding in (
        ("argmax", problem.scores, "argmax"), ("exact", problem.scores, "exact"), ("head", head, "argmax"),
    ):  # fmt: skip
        if name not in plan.profiled:
            continue
        settings: dict[str, Any] = {"epsilon": EPSILON, "tol": TOL, "rounding": rounding}
        check.row(
            name, lambda n=name, s=scores, o=settings: _profiled(check, n, lambda: otlabel.sinkhorn_assign(s, **o)), 8
        )
    if "k-means" not in plan.profiled:
        return
    n_rows, dim, n_clusters = plan.clusters
    features = torch.randn(n_rows // 4, dim, device=plan.device)
    model = otlabel.BalancedKMeans(n_clusters, init=features[:n_clusters].cpu().numpy(), max_iter=1, random_state=0)
    check.row("k-means", lambda: _profiled(check, "k-means", lambda: model.fit(features)), 8)


def _profiled(check: Check, name: str, work: Callable[[], Any]) -> str:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    def solve() -> None:
        work()
        wait(check.plan.device)

    solve()
    host = cProfile.Profile()
    host.runcall(solve)
    text = io.StringIO()
    pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(30)
    on_card = check.plan.device == "cuda"
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_card else [ProfilerActivity.CPU]
    with torch_profile(activities=kinds) as seen:
        solve()
    kernels = seen.key_averages().table(
        sort_by="cuda_time_total" if on_card else "cpu_time_total", row_limit=40, max_name_column_width=60
    )
    file = check.out / f"profile-{name}.txt"
    file.write_text(f"{text.getvalue()}\n{kernels}\n", encoding="utf-8")
    return file.name


def time_clusters(check: Check) -> None:
    """Balanced k-means on the card: an iteration, assignment, repair and means, against its product.

    The repair takes far longer than the product, and grows faster than the number of rows does: so fewer rows come
    first, and more of them where time is left. Centres are random rows: the first assignments have most to repair.
    """
    from otlabel import BalancedKMeans

    plan, (n_rows, dim, n_clusters) = check.plan, check.plan.clusters
    generator = torch.Generator(plan.device).manual_seed(4)
    features = torch.randn(n_rows, dim, device=plan.device, generator=generator)
    features += (
        2
        * torch.randn(64, dim, device=plan.device, generator=generator)[
            torch.randint(0, 64, (n_rows,), device=plan.device, generator=generator)
        ]
    )
    centres = features[torch.randperm(n_rows, device=plan.device, generator=generator)[:n_clusters]]
    check.keep("shape", list(plan.clusters))
    product = check.row("product", lambda: median_of(lambda: features @ centres.T, plan))
    from otlabel.cluster.alternation import PLAN_TOLERANCE
    from otlabel.cluster.moments import EPSILON_SHARE, moments

    labels = torch.randint(0, n_clusters, (n_rows,)).numpy()
    source, start = TensorSource(features), centres.cpu().numpy()
    check.row("means", lambda: timed(lambda: moments(RowSet(source), labels, start), plan, repeats=2)["median"])

    closeness, epsilon = otlabel.sources.closeness(source, start), EPSILON_SHARE * float(features.var(0).sum())
    entropic: dict[str, Any] = {"epsilon": epsilon, "tol": PLAN_TOLERANCE, "rounding": "argmax"}
    check.row(
        "assignment, entropic", lambda: timed(lambda: otlabel.sinkhorn_assign(closeness, **entropic), plan, repeats=2)
    )

    def fitted(rows: torch.Tensor, n_iterations: int) -> tuple[float, int]:
        begun = time.perf_counter()
        model = BalancedKMeans(n_clusters, init=start, max_iter=n_iterations, tol=0.0, random_state=0)
        model.fit(rows)
        return time.perf_counter() - begun, int(np.ptp(model.sizes_))

    def iteration(rows: torch.Tensor) -> dict:
        one, (two, spread) = fitted(rows, 1)[0], fitted(rows, 2)
        return {"first_and_one_seconds": one, "seconds": max(two - one, 0.0), "size_spread": spread}

    check.row("compiling", lambda: fitted(features[: 4 * n_clusters], 1)[0])
    last = 0.0
    for share in (16, 4, 1):
        rows = features[: n_rows // share]
        name = "iteration" if share == 1 else f"iteration of {len(rows)} rows"
        begun = time.perf_counter()
        found = check.row(name, lambda rows=rows: iteration(rows), 8 * last)
        last = time.perf_counter() - begun
        if share == 1 and found and product:
            check.keep("iteration_over_product", found["seconds"] / product)


def stream(check: Check) -> None:
    """A matrix in host memory that the card may not hold: the value of one that it may, in a fraction of the memory."""
    from otlabel.sources import device

    plan = check.plan
    scores = zipf_problem(plan.streamed, plan.device).scores.cpu().numpy()
    _free(plan.device)
    shares = {"whole": device.MEMORY_SHARE, "streamed": 0.0}

    def solved(share: float) -> dict:
        _free(plan.device)
        _begin_peak(plan.device)
        begun, kept = time.perf_counter(), device.MEMORY_SHARE
        device.MEMORY_SHARE = share
        try:
            found = otlabel.sinkhorn_assign(scores, epsilon=EPSILON, tol=TOL, device=plan.device)
        finally:
            device.MEMORY_SHARE = kept
        row = {"seconds": time.perf_counter() - begun, "peak_gb": _peak_gb(plan.device), "gb": scores.nbytes / 1e9}
        return row | {"value": found.value, "gap": found.gap, "sweeps": found.n_sweeps}

    check.keep("shape", list(plan.streamed))
    rows = [check.row(name, lambda s=share: solved(s), 10) for name, share in shares.items()]
    if all(rows):
        whole, streamed = rows
        allowed = max(whole["gap"], 0) + max(streamed["gap"], 0) + 1e-12 * max(1, abs(whole["value"]))
        right = abs(whole["value"] - streamed["value"]) <= allowed
        check.keep("wrong", [] if right else [f"{whole['value']!r} whole, {streamed['value']!r} streamed"])


def run_peers(check: Check) -> None:
    """The peers that bring their own ways to take the card's memory."""
    for position, peer in enumerate(APART):
        room = (check.left - 5) / (len(APART) - position)
        result = check.out / f"peer-{position}.json"
        result.unlink(missing_ok=True)
        rows = str(check.plan.solves[-1][0])
        command = [sys.executable, __file__, "--peer", peer, "--rows", rows, "--out", str(result)]
        command += ["--quick"] if check.plan.device == "cpu" else []
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=room)
            ended = failure_text(done) if done.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"out of time: ended after {room:.0f} s"
        known = read_json(result)
        for shape in check.plan.solves:
            name = f"{peer}, {shape[0]} x {shape[1]}"
            check.keep(name, known.get(name, {"status": ended or "nothing was written"}))


def run_peer(peer: str, plan: Plan, result: Path) -> None:
    """Rows of one peer at all sizes, written as they come."""
    rows = {}
    for shape in plan.solves:
        rows[f"{peer}, {shape[0]} x {shape[1]}"] = peer_row(
            peer, zipf_problem(shape, plan.device, plan.loop_seconds), plan
        )
        write_json(result, rows)
        _free(plan.device)


def peer_row(peer: str, problem: CardProblem, plan: Plan) -> dict:
    """Time, peak memory and quality of a peer's answer, or why there is none."""
    prepare, packages = CARD_METHODS[peer]
    try:
        call = prepare(problem, SETTINGS)
        _begin_peak(plan.device)
        begun = time.perf_counter()
        outcome = call()
        wait(plan.device)
        row = {"seconds": time.perf_counter() - begun, "peak_gb": _peak_gb(plan.device, outcome.peak_bytes)}
        return row | judge(outcome, problem)
    except ModuleNotFoundError:
        return {"status": f"not installed: pip install {packages}"}
    except Exception as error:
        lines = str(error).splitlines() or [""]
        is_memory = isinstance(error, torch.cuda.OutOfMemoryError) or "RESOURCE_EXHAUSTED" in lines[0]
        return {"status": "out of memory" if is_memory else f"{type(error).__name__}: {lines[0]}"[:200]}


def judge(outcome: CardOutcome, problem: CardProblem) -> dict:
    """Sizes, value and class error of a peer's answer, computed here whatever it says of itself."""
    n_classes = problem.scores.shape[1]
    mass = outcome.class_mass
    if outcome.potentials is not None:
        mass = problem.class_mass(outcome.potentials, EPSILON, factored=outcome.factored)
    error = float((mass - 1 / n_classes).abs().sum())
    value = float(problem.scores.gather(1, outcome.labels[:, None]).mean(dtype=torch.float64))
    counts = torch.bincount(outcome.labels, minlength=n_classes)
    return {
        "sweeps": outcome.iterations,
        "class_error": error,
        "value": value,
        "sizes": [int(counts.min()), int(counts.max())],
        "status": "CONVERGED" if error <= 1.01 * TOL else "above tolerance",
    }


def _begin_peak(device: str) -> None:
    wait(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gb(device: str, of_peer: int | None = None) -> float | None:
    """The most that tensors took since `_begin_peak`, the scores included; with what a peer took beside torch."""
    return (torch.cuda.max_memory_allocated() + (of_peer or 0)) / 1e9 if device == "cuda" else None


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def time_factored(check: Check) -> None:
    """Heads on shared features, one after the other, as long as time lasts."""
    n_heads, n_rows, dim, n_classes = check.plan.factored
    device = check.plan.device
    generator = torch.Generator(device).manual_seed(1)
    features = torch.empty(n_rows, dim, dtype=torch.float16, device=device)
    for part in _parts(n_rows, 1 << 17):
        features[part] = torch.randn(part.stop - part.start, dim, device=device, generator=generator)
    weights = [torch.randn(n_classes, dim, device=device, generator=generator) / math.sqrt(dim) for _ in range(n_heads)]
    some = features[: 1 << 17].float()
    check.found = {"heads_asked": n_heads, "shape": [n_rows, dim, n_classes], "heads": []}
    check.row("product", lambda x=some: median_of(lambda: x @ weights[0].T, check.plan) * n_rows / len(x))
    del some
    longest = 0.0
    for head in otlabel.linear_scores(features, weights):
        if check.left < 1.5 * longest:
            break
        longest = max(longest, (row := solve_row(head, check.plan, "argmax"))["seconds"])
        check.found["heads"].append(row)
        check.write()


def swav_loop(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """The iterations as SwAV states them, for one process."""
    plan = torch.exp(logits / epsilon).T
    n_classes, n_rows = plan.shape
    plan = plan / plan.sum()
    for _ in range(n_iterations):
        plan = plan / plan.sum(1, keepdim=True) / n_classes
        plan = plan / plan.sum(0, keepdim=True) / n_rows
    return (plan * n_rows).T


def dino_loop(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """The same as DINOv2 and DINOv3 do it: every division in place."""
    plan = logits.float().div(epsilon).exp_().T
    n_classes, n_rows = plan.shape
    plan /= plan.sum()
    for _ in range(n_iterations):
        plan /= plan.sum(1, keepdim=True)
        plan /= n_classes
        plan /= plan.sum(0, keepdim=True)
        plan /= n_rows
    plan *= n_rows
    return plan.T


def time_batch(check: Check) -> None:
    """soft_assign in a training step against SwAV's and DINO's loops."""
    for shape in check.plan.batches:
        name = "{} x {}".format(*shape)
        generator = torch.Generator(check.plan.device).manual_seed(2)
        rows, prototypes = (
            torch.nn.functional.normalize(torch.randn(size, 128, device=check.plan.device, generator=generator))
            for size in shape
        )
        logits = rows @ prototypes.T
        inner = 50 if check.plan.device == "cuda" and logits.numel() < 1 << 22 else 3
        loops = {"soft_assign": otlabel.soft_assign, "swav": swav_loop, "dino": dino_loop}
        for loop, call in loops.items():
            check.row(
                f"{loop}, {name}",
                lambda c=call, x=logits, n=inner: median_of(lambda: c(x, 0.05, 3), check.plan, inner=n),
            )
        check.row(
            f"difference, {name}",
            lambda x=logits: float((otlabel.soft_assign(x, 0.05) - swav_loop(x, 0.05, 3)).abs().max()),
        )
        if check.plan.device == "cuda":
            check.row(f"soft_assign as a graph, {name}", lambda x=logits, n=inner: _as_graph(x, check.plan, n))
        del rows, prototypes, logits
        _free(check.plan.device)


def _as_graph(logits: torch.Tensor, plan: Plan, inner: int) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        otlabel.soft_assign(logits, 0.05)
    return median_of(graph.replay, plan, inner=inner)


# ------------------------------------------------------------------------------------------------- the report

PARTS: dict[str, tuple[Callable[[Check], None], float, float]] = {  # in order; fewest and most seconds of each
    "copy": (time_copy, 2, 10),
    "one sweep": (time_sweep, 5, 25),
    "sweeps right": (check_sweeps, 15, 60),
    "solves": (time_solves, 10, 60),
    "against the CPU": (compare_with_cpu, 15, 60),
    "soft_assign": (time_batch, 2, 15),
    "k-means": (time_clusters, 10, 60),
    "factored": (time_factored, 10, 45),
    "streaming": (stream, 10, 40),
    "peers": (run_peers, 15, 70),
    "shapes of the kernel": (tune_sweep, 5, 60),
    "profile": (profile, 10, 40),
    "problems right": (check_problems, 20, 70),
}


def run_parts(names: list[str], plan: Plan, budget: float, folder: Path) -> int:
    """Parts in this process, one after the other; the status with which it is to end."""
    begun = time.perf_counter()
    for name in names:
        part, least, most = PARTS[name]
        left = budget - (time.perf_counter() - begun)
        check = Check(plan, min(most, left), _file_of(folder, name))
        if left < least:
            check.write(failure=f"not begun: {left:.0f} s were left, {least:.0f} s are needed", ended=True)
            continue
        check.write()  # which says that it has begun
        failure = {}
        try:
            part(check)
            wait(plan.device)
        except Exception as error:  # one part's failure must not take the others with it
            traceback.print_exc()
            failure = {"failure": f"{type(error).__name__}: {error}"[:500]}
        check.write(**failure, ended=True)
        print(f"{name}: {time.perf_counter() - check.begun:.1f} s", flush=True)
        if failure and not _answers(plan.device):
            return BROKEN
        _free(plan.device)
    return 0


def _file_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.json"


def supervise(names: list[str], arguments: argparse.Namespace, report: Callable[[], None]) -> None:
    """All parts in processes of their own, a new one after each that broke, hung or ended; report() after each part."""
    folder, begun = arguments.out / "parts", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        _file_of(folder, name).unlink(missing_ok=True)
    waiting = list(names)
    while waiting:
        left = arguments.budget - (time.perf_counter() - begun)
        command = [sys.executable, __file__, "--out", str(arguments.out), "--budget", f"{left:.1f}", "--here"]
        command += ["--quick"] if arguments.quick else []
        command += ["--rows", str(arguments.rows)] if arguments.rows else []
        with (arguments.out / "log.txt").open("a") as log:
            worker = subprocess.Popen([*command, "--parts", *waiting], stdout=log, stderr=subprocess.STDOUT)
            waiting = _followed(worker, waiting, folder, left, report)


def _followed(
    worker: subprocess.Popen, waiting: list[str], folder: Path, left: float, report: Callable[[], None]
) -> list[str]:
    """The parts that are left when the process has ended, or was ended because its part took far too long."""
    changed, until = time.perf_counter(), time.perf_counter() + max(left, 0) + SLOW_END
    given = len(waiting)
    while True:
        ended = worker.poll() is not None
        while waiting and read_json(_file_of(folder, waiting[0])).get("ended"):
            print(f"{waiting.pop(0)}: done", flush=True)
            changed = time.perf_counter()
            report()
        if ended and not waiting:
            return []
        begun = bool(waiting) and _file_of(folder, waiting[0]).exists()
        most = PARTS[waiting[0]][2] + SLOW_END if begun else START_SECONDS
        late = time.perf_counter() > min(changed + most, until)
        if not ended and waiting and late:
            worker.kill()
            worker.wait()
            ended = True
        if ended and not begun and len(waiting) < given:  # it broke in the part before
            return waiting
        if ended:
            part = read_json(_file_of(folder, waiting[0]))
            why = "out of time: its process was ended" if late else f"its process ended with status {worker.returncode}"
            write_json(
                _file_of(folder, waiting[0]), {"seconds": 0.0, "found": {}, **part, "failure": why, "ended": True}
            )
            report()
            return waiting[1:]
        time.sleep(POLLS)


def targets(parts: dict[str, Any], plan: Plan) -> list[tuple[str, str, str]]:
    """What was to be reached, what was measured, and "pass" or "miss"."""
    found = {name: part.get("found", {}) for name, part in parts.items()}
    size, swept_size = ("{} x {}".format(*shape) for shape in (plan.solves[-1], plan.sweep))
    solves, heads = found.get("solves", {}), found.get("factored", {}).get("heads", [])
    entropic, exact = (solves.get(f"otlabel {rounding}, {size}", {}) for rounding in ("argmax", "exact"))
    swept, clusters = found.get("one sweep", {}), found.get("k-means", {})
    n_heads, batch = plan.factored[0], found.get("soft_assign", {}).get("soft_assign, {} x {}".format(*plan.batches[0]))
    all_heads = n_heads * sum(head["seconds"] for head in heads) / len(heads) if heads else None
    wrong = [part["wrong"] for part in (found.get("problems right", {}), found.get("streaming", {})) if "wrong" in part]
    wrong += [row["wrong"] for row in found.get("against the CPU", {}).values() if "wrong" in row]
    gap = abs(exact.get("gap", math.inf)) <= 1e-9 * max(1.0, abs(exact.get("value", 0.0)))
    error = entropic.get("class_error", math.inf) <= TOL
    rows = [
        (f"one sweep, {swept_size} float16: at most 2x reading it once", swept.get("sweep_over_read"), 2.0, True),
        (f"entropic, {size}, class error {TOL:g}: under 0.3 s", entropic.get("seconds"), 0.3, error),
        (f"exact and certified, {size}: under 2 s", exact.get("seconds"), 2.0, gap),
        (f"{n_heads} heads on {plan.factored[1:]}, entropic: under 20 s ({len(heads)} ran)", all_heads, 20.0, True),
        (f"soft_assign of {plan.batches[0]}, 3 iterations: under 1 ms", _seconds(batch), 1e-3, True),
        (f"k-means step {plan.clusters}: 3x its product", clusters.get("iteration_over_product"), 3.0, True),
        ("values of the CPU within both gaps: no problem apart", sum(map(len, wrong)) if wrong else None, 0, True),
    ]
    return [
        (what, "not measured" if value is None else _text(value), "pass" if _reached(value, most, holds) else "miss")
        for what, value, most, holds in rows
    ]


def _seconds(value: Any) -> float | None:
    """None of what failed."""
    return value if isinstance(value, float) else None


def _reached(value: float | None, most: float, holds: bool) -> bool:
    return value is not None and value <= most and holds


def to_markdown(report: dict) -> str:
    """All figures as tables."""
    lines = ["# otlabel on a card", "", machine_line(report["machine"]), f"Device: {report['card']}.", ""]
    if report["targets"]:
        lines += ["## what was to be reached", "", *table(("target", "measured", "verdict"), report["targets"]), ""]
    if "tests" in report:
        lines += ["## tests that need a card", "", report["tests"], ""]
    if "before" in report:
        lines += ["## before the kernels were measured", "", *_figures(report["before"]), ""]
    for name, part in report["parts"].items():
        found = part["found"]
        when = f", {part['of'][:16].replace('T', ' ')}" if "of" in part else ""
        lines += [f"## {name} ({part['seconds']:.1f} s{when})", ""]
        if "failure" in part:
            lines += [f"**Failed**: {part['failure']}", ""]
        if "note" in part:
            lines += [part["note"], ""]
        if name in ("solves", "peers"):
            lines += [*_solve_table(found), ""]
        elif name == "factored":
            heads = {f"head {number}": head for number, head in enumerate(found.get("heads", []))}
            rest = {key: value for key, value in found.items() if key != "heads"}
            lines += [*_figures(rest), "", *_solve_table(heads), ""]
        elif found:
            lines += [*_figures(found), ""]
    return "\n".join(lines)


def _solve_table(rows: dict[str, dict]) -> list[str]:
    header = (
        "solve", "s", "peak GB", "sweeps", "class error", "value", "gap", "sizes", "status", "where the time went, s",
    )  # fmt: skip
    cells = []
    for name, row in rows.items():
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row.get("stages", {}).items())
        status = row.get("status", row.get("failure", ""))
        cells.append((
            name, number(row.get("seconds"), ".3f"), number(row.get("peak_gb"), ".1f"), str(row.get("sweeps", "")),
            number(row.get("class_error"), ".2g"), number(row.get("value"), ".6f"), number(row.get("gap"), ".1e"),
            "{} to {}".format(*row["sizes"]) if "sizes" in row else "", status, stages,
        ))  # fmt: skip
    return table(header, cells)


def _figures(found: dict, prefix: str = "") -> list[str]:
    rows = []
    for key, value in found.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{name}: {_text(item)}" for name, item in list(value.items())[:12])
        else:
            shown = _text(value)
        rows.append((f"{prefix}{key}", shown))
    return table(("what", "figure"), rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--rows", type=int, help="rows of the largest problems (1281167)")
    parser.add_argument("--budget", type=float, default=440.0, help="seconds (%(default)s)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the results (%(default)s)")
    parser.add_argument("--earlier", type=Path, help="a report, of which parts that do not run now are kept")
    parser.add_argument("--peer", choices=APART, help="only the rows of this one, to the file that --out names")
    parser.add_argument("--here", action="store_true", help="in this process, without a report")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    plan = QUICK if arguments.quick else CARD
    if arguments.quick:  # processors may be shared, and nothing is measured
        PARTS.update({name: (part, least, 5 * most) for name, (part, least, most) in PARTS.items()})
    if arguments.rows:
        heads, _, dim, n_classes = plan.factored
        largest = arguments.rows, plan.sweep[1]
        plan = replace(
            plan, sweep=largest, solves=(plan.solves[0], largest), factored=(heads, arguments.rows, dim, n_classes)
        )
    names = list(arguments.parts or PARTS)
    if arguments.peer:
        run_peer(arguments.peer, plan, arguments.out)
        return 0
    if arguments.here:
        return run_parts(names, plan, arguments.budget, arguments.out / "parts")
    if plan.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no card here; --quick runs tiny sizes on the CPU", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if plan.device == "cuda" else "none (--quick)"
    machine, earlier = describe_machine(PACKAGES), read_json(arguments.earlier) if arguments.earlier else {}
    parts = {
        name: {"of": earlier["machine"]["date"], **part}
        for name, part in earlier.get("parts", {}).items()
        if name not in names
    }

    def report() -> None:
        """What is known so far, should this process be ended."""
        for name in names:
            if part := read_json(_file_of(arguments.out / "parts", name)):
                parts[name] = part
        found = {
            **earlier,
            "machine": machine,
            "card": card,
            "plan": asdict(plan),
            "parts": parts,
            "targets": targets(parts, plan),
        }  # of the earlier report what was written into it by hand stays, too: "tests" and "before"
        write_json(arguments.out / "gpu_check.json", found)
        (arguments.out / "gpu_check.md").write_text(to_markdown(found), encoding="utf-8")

    supervise(names, arguments, report)
    report()
    print((arguments.out / "gpu_check.md").read_text(encoding="utf-8"))
    return int(any(_is_wrong(part) for part in parts.values()))


def _is_wrong(part: dict) -> bool:
    """Whether a part, or a row of it, failed or found what is wrong."""
    rows = [part, part["found"], *(row for row in part["found"].values() if isinstance(row, dict))]
    return any("failure" in row or row.get("wrong") or row.get("same_bits") is False for row in rows)


if __name__ == "__main__":
    sys.exit(main())
