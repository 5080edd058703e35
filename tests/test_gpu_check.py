"""The check of a machine with a card, at tiny sizes on the CPU: every part of it runs, and its report is complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
    assert "| SeLa's loop, 3000 x 30 |" in (tmp_path / "gpu_check.md").read_text()
