"""The check of a machine with a card, at tiny sizes on the CPU: every part of it runs, and its report is complete."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


def test_quick_check(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    parts = {name: part["found"] for name, part in report["parts"].items()}
    assert not any("failure" in found for found in parts.values())
    assert parts["problems right"]["wrong"] == parts["sweeps right"]["wrong"] == []
    assert parts["sweeps right"]["same_bits"]
    assert len(parts["factored"]["heads"]) == 2
    exact = [row for name, row in parts["solves"].items() if name.startswith("otlabel exact")]
    assert [row["sizes"][1] - row["sizes"][0] for row in exact] == [0, 0]
    assert all(abs(row["gap"]) < 1e-12 for row in exact)
    for peer in ("SeLa's loop", "otlabel argmax from features"):
        assert parts["solves"][f"{peer}, 3000 x 30"]["class_error"] <= 1e-2
    assert {name.split(",")[0] for name in parts["peers"]} == {"OTT-JAX", "flash-sinkhorn"}
    for row in parts["peers"].values():
        assert "class_error" in row or row["status"].startswith(("not installed", "RuntimeError"))
    verdicts = {target.split(",")[0]: verdict for target, _, verdict in report["targets"]}
    assert len(verdicts) == 6
    assert verdicts["values of the CPU within both gaps: no problem apart"] == "pass"
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| SeLa's loop, 3000 x 30 |" in page
    assert "| values of the CPU within both gaps: no problem apart | 0 | pass |" in page


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


def test_a_target_that_is_missed_or_was_not_measured_is_no_pass(gpu_check: Any) -> None:
    plan = gpu_check.QUICK
    size = "3000 x 30"
    solves = {
        f"otlabel argmax, {size}": {"seconds": 0.1, "class_error": 0.02},
        f"otlabel exact, {size}": {"seconds": 9.0, "gap": 1e-15, "value": -2.0},
    }
    parts = {
        "copy": {"found": {"copy_gb_s": 4000.0}},
        "one sweep": {"found": {"gb": 8.0, "sweep": 3.9e-3}},
        "solves": {"found": solves},
        "factored": {"failure": "not begun"},
        "soft_assign": {"found": {"soft_assign": 2e-3}},
        "problems right": {"found": {"wrong": ["ties/0"]}},
    }
    assert [verdict for *_, verdict in gpu_check.targets(parts, plan)] == [
        "pass", "miss", "pass", "miss", "miss", "miss",
    ]  # fmt: skip
    assert [verdict for *_, verdict in gpu_check.targets({}, plan)] == ["miss"] * 6


def test_rows_of_peers_that_fail(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = gpu_check.zipf_problem((200, 5), "cpu")

    def fail_with(error: Exception) -> str:
        def prepare(problem: Any, settings: Any) -> Any:
            raise error

        monkeypatch.setitem(gpu_check.CARD_METHODS, "SeLa's loop", (prepare, "torch"))
        return gpu_check.peer_row("SeLa's loop", problem, gpu_check.QUICK)["status"]

    assert fail_with(torch.cuda.OutOfMemoryError("CUDA out of memory")) == "out of memory"
    assert fail_with(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")) == "out of memory"
    assert fail_with(ModuleNotFoundError("No module named 'ott'")) == "not installed: pip install torch"
    assert fail_with(FloatingPointError("not finite\nhere")) == "FloatingPointError: not finite"
