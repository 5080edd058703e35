"""One command on a machine with a card: is everything right there, and how fast is it. JSON and Markdown come out.

    python benchmarks/gpu_check.py --out results        # on a card, under eight minutes
    python benchmarks/gpu_check.py --quick              # tiny sizes on the CPU: tests this script itself

Needs neither POT nor faiss. A part that fails, or for which no time is left, says so in its row; the others go on.
At the end stands what was to be reached, and whether it was. Peers run where they are installed:
pip install ott-jax 'jax[cuda12]' flash-sinkhorn.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
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
from otlabel.scores import TensorScores  # noqa: E402

PACKAGES = ["torch", "triton", "numba", "numpy", "scipy", "jax", "ott-jax", "flash-sinkhorn"]
EPSILON, TOL = 0.04, 1e-2
SETTINGS = Settings(EPSILON, TOL, max_iterations=3000)
IMAGENET = 1_281_167
APART = ("OTT-JAX", "flash-sinkhorn")  # in processes of their own: what they break or keep is theirs


@dataclass(frozen=True)
class Plan:
    """Sizes of everything, and where it runs."""

    device: str
    seeds: int  # of each kind of problem
    sweep: tuple[int, int]
    solves: tuple[tuple[int, int], ...]
    factored: tuple[int, int, int, int]  # heads, rows, features, classes
    batch: tuple[int, int]
    copy_bytes: int
    repeats: int
    loop_seconds: float  # that a peer's loop may take


CARD = Plan(
    "cuda", 1, (IMAGENET, 3000), ((100_000, 1000), (IMAGENET, 3000)), (10, IMAGENET, 2048, 3000), (256, 3000),
    4 << 30, 9, 30.0,
)  # fmt: skip
QUICK = Plan("cpu", 1, (2000, 30), ((2000, 10), (3000, 30)), (2, 1500, 16, 20), (32, 30), 1 << 22, 3, 2.0)


class Check:
    """Runs parts one after the other within a budget of time, and keeps what they found."""

    def __init__(self, plan: Plan, budget: float, out: Path) -> None:
        self.plan, self.budget, self.out, self.begun = plan, budget, out, time.perf_counter()
        self.parts: dict[str, Any] = {}

    @property
    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.begun)

    def run(self, name: str, part: Callable[[Check], Any], at_least: float) -> None:
        """A part that is begun only if so many seconds are left."""
        if self.left < at_least:
            self.parts[name] = {"failure": f"not begun: {self.left:.0f} s were left, {at_least:.0f} s are needed"}
            return
        begun = time.perf_counter()
        try:
            found = part(self)
        except Exception as error:  # one part's failure must not take the others with it
            traceback.print_exc()
            found = {"failure": f"{type(error).__name__}: {error}"[:500]}
        self.parts[name] = {"seconds": time.perf_counter() - begun, "found": found}
        print(f"{name}: {time.perf_counter() - begun:.1f} s, {self.left:.0f} s left", flush=True)
        _free(self.plan.device)


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


# ------------------------------------------------------------------------------------------------- correctness


def on_card(scores: Any, plan: Plan) -> TensorScores:
    """Scores of any kind as a device has them."""
    tensor = scores if isinstance(scores, torch.Tensor) else torch.from_numpy(_native(np.asarray(scores)))
    if not tensor.is_floating_point():
        tensor = tensor.double()
    return TensorScores(tensor.to(plan.device))


def _native(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))


def check_problems(check: Check) -> dict:
    """Every kind of problem of the tests, against the CPU: class sizes, and values within both gaps."""
    wrong, worst = [], 0.0
    for kind in KINDS:
        for seed in range(check.plan.seeds):
            drawn = draw(kind, seed)
            expected = otlabel.sinkhorn_assign(drawn.scores, class_mass=drawn.class_mass)
            found = otlabel.sinkhorn_assign(on_card(drawn.scores, check.plan), class_mass=drawn.class_mass)
            noise = 1e-12 * max(1.0, abs(expected.value))
            apart = abs(found.value - expected.value)
            allowed = max(found.gap, 0.0) + max(expected.gap, 0.0) + noise
            sizes = torch.as_tensor(found.counts).cpu().numpy()
            worst = max(worst, apart / max(1.0, abs(expected.value)))
            if not np.array_equal(sizes, drawn.counts) or apart > allowed or found.gap < -noise:
                wrong.append(f"{kind}/{seed}: values {found.value!r} {expected.value!r}, gap {found.gap:.3g}")
    return {"problems": len(KINDS) * check.plan.seeds, "wrong": wrong, "largest_relative_difference": worst}


def check_sweeps(check: Check) -> dict:
    """Sweeps of larger blocks against float64 formulas, in every type; and twice, for the same bits."""
    generator = torch.Generator(check.plan.device).manual_seed(0)
    rows, wrong, same_bits, errors = 3001 if check.plan.device == "cuda" else 101, [], True, {}
    for n_classes in (7, 130, 1000, 3000, 3001, 8192, 10_000, 65_536) if rows > 1000 else (7, 130):
        for name in ("float16", "bfloat16", "float32", "float64"):
            numbers = 2 * torch.randn(rows, n_classes, device=check.plan.device, generator=generator)
            scores = numbers.to(getattr(torch, name))
            g = np.random.default_rng(n_classes).standard_normal(n_classes)
            for precision in (np.float32, np.float64) if name in ("float16", "float64") else (np.float32,):
                source = TensorScores(scores)
                first, second = (sweep.sweep(source, g, EPSILON, None, precision) for _ in range(2))
                same_bits &= first.mass.tobytes() == second.mass.tobytes() and first.entropic == second.entropic
                u = scores.double() + torch.from_numpy(g.astype(precision)).double().to(scores.device)
                mass = torch.softmax(u / EPSILON, 1).sum(0).cpu().numpy() / rows
                rounding = 3 * np.finfo(precision).eps * float(u.abs().max()) / EPSILON + 2e-6
                error = float(np.abs(first.mass - mass).sum())
                linear = abs(first.linear - float(u.amax(1).mean()))
                agreeing = float((u.argmax(1).cpu().numpy() == first.labels).mean())
                key = f"{n_classes} {name} {np.dtype(precision).name}"
                errors[key] = {"mass": error, "linear": linear, "labels_agreeing": agreeing}
                if not (error <= rounding and linear <= rounding and agreeing > 0.999):
                    wrong.append(f"{key}: {errors[key]}")
    return {"sweeps": len(errors), "wrong": wrong, "same_bits": bool(same_bits), "errors": errors}


# ------------------------------------------------------------------------------------------------- time


def time_copy(check: Check) -> dict:
    """What the card's memory moves: a copy (bytes read and written), and a sum (bytes read)."""
    size = check.plan.copy_bytes
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=check.plan.device)
    target = torch.empty_like(source)
    copy, read = (
        timed(lambda: target.copy_(source), check.plan),
        timed(lambda: source.view(torch.int64).sum(), check.plan),
    )
    return {"copy_gb_s": 2 * size / copy["median"] / 1e9, "read_gb_s": size / read["median"] / 1e9}


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


def time_sweep(check: Check) -> dict:
    """One sweep of everything against reading the matrix once; and the other passes of a solve."""
    plan, (n_rows, n_classes) = check.plan, check.plan.sweep
    scores = zipf_problem(plan.sweep, plan.device).scores
    source, g = TensorScores(scores), np.random.default_rng(0).standard_normal(n_classes)
    n_bytes = scores.numel() * scores.element_size()
    flat = scores.view(-1)
    read = timed(lambda: flat[: flat.numel() // 4 * 4].view(torch.int64).sum(), plan)["median"]
    found: dict[str, Any] = {"gb": n_bytes / 1e9, "read_once": read, "read_gb_s": n_bytes / read / 1e9}
    passes: dict[str, Callable[[], Any]] = {
        "sweep": lambda: sweep.sweep(source, g, EPSILON, None, np.float32, with_labels=False),
        "sweep_with_labels": lambda: sweep.sweep(source, g, EPSILON, None, np.float32),
        "sweep_float64": lambda: sweep.sweep(source, g, EPSILON, None, np.float64, with_labels=False),
        "label": lambda: sweep.label(source, g),
        "candidates": lambda: sweep.candidates(source, g, np.full(n_rows, -1, np.int32), 1e-3, 1e-12),
        "inspect": lambda: sweep.inspect(source),
    }
    for name, call in passes.items():
        found[name] = timed(call, plan)["median"]
    found["sweep_over_read"] = found["sweep"] / read
    return found


def tune_sweep(check: Check) -> dict:
    """The kernel alone at several shapes: rows at a time, warps, stages; the default is the first."""
    if check.plan.device != "cuda":
        return {"note": "only on a card"}
    from otlabel.sweep import cuda

    n_rows, n_classes = IMAGENET // 4, 3000
    scores = torch.randn(n_rows, n_classes, device="cuda").half()
    default = cuda.fused_shape(n_classes, torch.float32)
    shapes = [default]
    shapes += [default._replace(stages=stages) for stages in (1, 2, 4) if stages != default.stages]
    shapes += [default._replace(rows=2), default._replace(warps=8)]
    shapes += [default._replace(width=512, pieces=6, rows=2), default._replace(width=512, pieces=6, warps=2)]
    shapes += [default._replace(width=2048, pieces=2, warps=8), default._replace(warps=8, rows=2)]
    view, constants = cuda._view(scores), torch.randn(n_classes + 1, device="cuda")
    constants[-1] = math.log2(math.e) / EPSILON
    tops, totals = cuda._per_row(view, torch.float32, 2)
    best = torch.empty(n_rows, dtype=torch.int32, device="cuda")
    original, found = cuda.fused_shape, {}
    try:
        for shape in shapes:
            cuda.fused_shape = lambda *_, shape=shape: shape
            try:
                seconds = timed(lambda: cuda._reduce_once(view, constants, None, tops, totals, best), check.plan)
                found[str(tuple(shape))] = scores.nbytes / seconds["median"] / 1e9
            except Exception as error:  # a shape that does not compile
                found[str(tuple(shape))] = f"{type(error).__name__}: {error}"[:200]
    finally:
        cuda.fused_shape = original
    return {"fields": list(default._fields), "gb_s": found}


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


def time_solves(check: Check) -> dict:
    """Entropic and exact at two sizes, each twice: compiled before the second; then the peers that are torch alone."""
    found = {}
    for shape in check.plan.solves:
        problem = zipf_problem(shape, check.plan.device, check.plan.loop_seconds)
        name = f"{shape[0]} x {shape[1]}"
        made = otlabel.linear_scores(problem.features, problem.weight.T, problem.offset)
        for how, scores in (("argmax", problem.scores), ("exact", problem.scores), ("argmax from features", made)):
            rounding = how.split()[0]
            first = solve_row(scores, check.plan, rounding)
            again = solve_row(scores, check.plan, rounding) if first["seconds"] < 0.1 * check.left else first
            found[f"otlabel {how}, {name}"] = again | {"first_seconds": first["seconds"]}
        for peer in (peer for peer in CARD_METHODS if peer not in APART):
            found[f"{peer}, {name}"] = peer_row(peer, problem, check.plan)
        del problem
        _free(check.plan.device)
    return found


def run_peers(check: Check) -> dict:
    """The peers that bring their own ways to take the card's memory."""
    found = {}
    for position, peer in enumerate(APART):
        room = (check.left - 10) / (len(APART) - position)
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
            found[name] = known.get(name, {"status": ended or "nothing was written"})
    return found


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


def time_factored(check: Check) -> dict:
    """Heads on shared features, one after the other, as long as time lasts."""
    n_heads, n_rows, dim, n_classes = check.plan.factored
    device = check.plan.device
    generator = torch.Generator(device).manual_seed(1)
    features = torch.empty(n_rows, dim, dtype=torch.float16, device=device)
    for part in _parts(n_rows, 1 << 17):
        features[part] = torch.randn(part.stop - part.start, dim, device=device, generator=generator)
    weights = [torch.randn(n_classes, dim, device=device, generator=generator) / math.sqrt(dim) for _ in range(n_heads)]
    heads = otlabel.linear_scores(features, weights)
    until, rows = 0.4 * check.left, []
    begun = time.perf_counter()
    for head in heads:
        rows.append(solve_row(head, check.plan, "argmax"))
        if time.perf_counter() - begun + rows[-1]["seconds"] > until:
            break
    return {"heads_asked": n_heads, "heads": rows, "shape": [n_rows, dim, n_classes]}


def swav_loop(logits: torch.Tensor, epsilon: float, n_iterations: int) -> torch.Tensor:
    """The iterations as SwAV states them, for one process."""
    plan = torch.exp(logits / epsilon).T
    n_classes, n_rows = plan.shape
    plan = plan / plan.sum()
    for _ in range(n_iterations):
        plan = plan / plan.sum(1, keepdim=True) / n_classes
        plan = plan / plan.sum(0, keepdim=True) / n_rows
    return (plan * n_rows).T


def time_batch(check: Check) -> dict:
    """soft_assign in a training step against SwAV's loop."""
    plan = check.plan
    generator = torch.Generator(plan.device).manual_seed(2)
    rows = torch.nn.functional.normalize(torch.randn(plan.batch[0], 128, device=plan.device, generator=generator))
    prototypes = torch.nn.functional.normalize(torch.randn(plan.batch[1], 128, device=plan.device, generator=generator))
    logits = rows @ prototypes.T
    ours, theirs = otlabel.soft_assign(logits, 0.05), swav_loop(logits, 0.05, 3)
    found = {
        "difference": float((ours - theirs).abs().max()),
        "soft_assign": timed(lambda: otlabel.soft_assign(logits, 0.05), plan, inner=50)["median"],
        "swav": timed(lambda: swav_loop(logits, 0.05, 3), plan, inner=50)["median"],
    }
    if plan.device == "cuda":
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                otlabel.soft_assign(logits, 0.05)
            found["soft_assign_as_graph"] = timed(graph.replay, plan, inner=50)["median"]
        except RuntimeError as error:
            found["soft_assign_as_graph"] = str(error)[:200]
    return found


# ------------------------------------------------------------------------------------------------- the report

PARTS: dict[str, tuple[Callable[[Check], Any], float]] = {  # in order; seconds that must be left to begin one
    "copy": (time_copy, 5),
    "sweeps right": (check_sweeps, 20),
    "problems right": (check_problems, 30),
    "one sweep": (time_sweep, 20),
    "soft_assign": (time_batch, 5),
    "shapes of the kernel": (tune_sweep, 15),
    "solves": (time_solves, 60),
    "factored": (time_factored, 30),
    "peers": (run_peers, 30),
}


def targets(parts: dict[str, Any], plan: Plan) -> list[tuple[str, str, str]]:
    """What was to be reached, what was measured, and "pass" or "miss"."""
    found = {name: part.get("found", {}) for name, part in parts.items()}
    size, swept_size = ("{} x {}".format(*shape) for shape in (plan.solves[-1], plan.sweep))
    solves, heads = found.get("solves", {}), found.get("factored", {}).get("heads", [])
    entropic, exact = (solves.get(f"otlabel {rounding}, {size}", {}) for rounding in ("argmax", "exact"))
    copied, swept = found.get("copy", {}).get("copy_gb_s"), found.get("one sweep", {})
    n_heads, batch = plan.factored[0], found.get("soft_assign", {}).get("soft_assign")
    ratio = swept["sweep"] * copied / swept["gb"] if swept.get("sweep") and copied else None
    all_heads = n_heads * sum(head["seconds"] for head in heads) / len(heads) if heads else None
    wrong = found.get("problems right", {}).get("wrong")
    gap = abs(exact.get("gap", math.inf)) <= 1e-9 * max(1.0, abs(exact.get("value", 0.0)))
    error = entropic.get("class_error", math.inf) <= TOL
    rows = [
        (f"one sweep, {swept_size} float16: at most 2x reading it once at the copy's bandwidth", ratio, 2.0, True),
        (f"entropic, {size}, class error {TOL:g}: under 0.5 s", entropic.get("seconds"), 0.5, error),
        (f"exact and certified, {size}: under 10 s", exact.get("seconds"), 10.0, gap),
        (f"{n_heads} heads on {plan.factored[1:]}, entropic: under 20 s ({len(heads)} ran)", all_heads, 20.0, True),
        (f"soft_assign of {plan.batch[0]} x {plan.batch[1]}, 3 iterations: under 1 ms", batch, 1e-3, True),
        ("values of the CPU within both gaps: no problem apart", None if wrong is None else len(wrong), 0, True),
    ]
    return [
        (what, "not measured" if value is None else _text(value), "pass" if _reached(value, most, holds) else "miss")
        for what, value, most, holds in rows
    ]


def _reached(value: float | None, most: float, holds: bool) -> bool:
    return value is not None and value <= most and holds


def to_markdown(report: dict) -> str:
    """All figures as tables."""
    lines = ["# otlabel on a card", "", machine_line(report["machine"]), f"Device: {report['card']}.", ""]
    for name, part in report["parts"].items():
        found = part.get("found", part)
        lines += [f"## {name}" + (f" ({part['seconds']:.1f} s)" if "seconds" in part else ""), ""]
        if "failure" in found:
            lines += [f"**Failed**: {found['failure']}", ""]
        elif name in ("solves", "peers"):
            lines += [*_solve_table(found), ""]
        elif name == "factored":
            heads = {f"head {number}": head for number, head in enumerate(found["heads"])}
            lines += [f"{found['shape']}, {len(heads)} of {found['heads_asked']} heads", "", *_solve_table(heads), ""]
        else:
            lines += [*_figures(found), ""]
    if report["targets"]:
        lines += ["## what was to be reached", "", *table(("target", "measured", "verdict"), report["targets"]), ""]
    return "\n".join(lines)


def _solve_table(rows: dict[str, dict]) -> list[str]:
    header = (
        "solve", "s", "peak GB", "sweeps", "class error", "value", "gap", "sizes", "status", "where the time went, s",
    )  # fmt: skip
    cells = []
    for name, row in rows.items():
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row.get("stages", {}).items())
        cells.append((
            name, number(row.get("seconds"), ".3f"), number(row.get("peak_gb"), ".1f"), str(row.get("sweeps", "")),
            number(row.get("class_error"), ".2g"), number(row.get("value"), ".6f"), number(row.get("gap"), ".1e"),
            "{} to {}".format(*row["sizes"]) if "sizes" in row else "", row["status"], stages,
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
    parser.add_argument("--peer", choices=APART, help="only the rows of this one, to the file that --out names")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    plan = QUICK if arguments.quick else CARD
    if arguments.rows:
        heads, _, dim, n_classes = plan.factored
        largest = arguments.rows, plan.sweep[1]
        plan = replace(
            plan, sweep=largest, solves=(plan.solves[0], largest), factored=(heads, arguments.rows, dim, n_classes)
        )
    if plan.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no card here; --quick runs tiny sizes on the CPU", file=sys.stderr)
        return 2
    if arguments.peer:
        run_peer(arguments.peer, plan, arguments.out)
        return 0
    check = Check(plan, arguments.budget, arguments.out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if plan.device == "cuda" else "none (--quick)"
    report = {"machine": describe_machine(PACKAGES), "card": card, "plan": asdict(plan), "parts": check.parts}
    for name in arguments.parts or PARTS:
        check.run(name, *PARTS[name])
        report["targets"] = targets(check.parts, plan)
        write_json(arguments.out / "gpu_check.json", report)  # what is known so far, should this process be ended
        (arguments.out / "gpu_check.md").write_text(to_markdown(report), encoding="utf-8")
    print(to_markdown(report))
    found = [part.get("found", part) for part in check.parts.values()]
    return int(any("failure" in part or part.get("wrong") or part.get("same_bits") is False for part in found))


if __name__ == "__main__":
    sys.exit(main())
