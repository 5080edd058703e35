"""Other solvers on the same problems; those that take the card's memory in their own way in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import failure_text, read_json, write_json
from peers import CARD_METHODS, CardOutcome, CardProblem, Settings

from card import SCRIPT
from card.checking import EPSILON, TOL, Check, Plan, begin_peak, free, peak_gb, wait
from card.scores import zipf_problem

SETTINGS = Settings(EPSILON, TOL, max_iterations=3000)
APART = {"OTT-JAX": "ott", "flash-sinkhorn": "flash_sinkhorn"}  # in processes of their own: what they break is theirs


def run_peers(check: Check) -> None:
    """Peers that are torch alone, then, each in a process, those that take the card's memory in a way of their own."""
    for shape in check.plan.solves:
        problem, name = zipf_problem(shape, check.plan.device, check.plan.loop_seconds), "{} x {}".format(*shape)
        for peer in (peer for peer in CARD_METHODS if peer not in APART):
            check.row(f"{peer}, {name}", lambda p=peer, q=problem: peer_row(p, q, check.plan), 5)
        del problem
        free(check.plan.device)
    for position, (peer, module) in enumerate(APART.items()):
        if importlib.util.find_spec(module) is None:  # a process would find no more
            for shape in check.plan.solves:
                check.keep(f"{peer}, {shape[0]} x {shape[1]}", _absent(peer))
            continue
        room = (check.left - 5) / (len(APART) - position)
        result = check.out / f"peer-{position}.json"
        result.unlink(missing_ok=True)
        rows = str(check.plan.solves[-1][0])
        command = [sys.executable, str(SCRIPT), "--peer", peer, "--rows", rows, "--out", str(result)]
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
        free(plan.device)


def peer_row(peer: str, problem: CardProblem, plan: Plan) -> dict:
    """Time, peak memory and quality of a peer's answer, or why there is none."""
    prepare, _ = CARD_METHODS[peer]
    try:
        call = prepare(problem, SETTINGS)
        begin_peak(plan.device)
        begun = time.perf_counter()
        outcome = call()
        wait(plan.device)
        row = {"seconds": time.perf_counter() - begun, "peak_gb": peak_gb(plan.device, outcome.peak_bytes)}
        return row | judge(outcome, problem)
    except ModuleNotFoundError:
        return _absent(peer)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        is_memory = isinstance(error, torch.cuda.OutOfMemoryError) or "RESOURCE_EXHAUSTED" in lines[0]
        return {"status": "out of memory" if is_memory else f"{type(error).__name__}: {lines[0]}"[:200]}


def _absent(peer: str) -> dict:
    """In place of a row."""
    return {"status": f"not installed: pip install {CARD_METHODS[peer][1]}"}


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
