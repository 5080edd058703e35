"""Where torch is not installed, all that labels, proves and shows works the same; what trains says what it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from otlabel import read_labels

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")

# What a fresh interpreter runs: as if no torch were installed, neither the module nor what is known of it.
WITHOUT = """
import importlib.metadata, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def version(name, known=importlib.metadata.version):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

sys.meta_path.insert(0, Absent())
importlib.metadata.version = version
from otlabel.commands.main import main
codes = [main(line.split()) for line in sys.stdin.read().splitlines()]
assert "torch" not in sys.modules
print(codes)
"""
COMMANDS = """\
assign scores.npy -o labels.h5 --receipt
certify scores.npy labels.h5
predict scores.npy --potentials labels.h5 -o again.npy
cluster features.npy -k 4 -o clusters.h5
curate features.npy -n 20 -o some.npy
plan scores.npy
doctor scores.npy
report labels.h5 --scores scores.npy --features features.npy --truth truth.npy -o page.html
report clusters.h5 -o clusters.html
report absent.h5 -o absent.html
train digits -o run"""


def test_commands_work_without_torch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "scores.npy", features @ rng.normal(size=(6, 4)).astype(np.float32))
    np.save(tmp_path / "truth.npy", rng.integers(0, 4, 400))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=COMMANDS, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1:] == [str([0] * 9 + [2, 1])], done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if "error" in line]
    assert told[0] == "otlabel: error: absent.h5 does not exist"
    assert 'torch is needed for this: pip install "torch' in told[1]
    labels = read_labels(tmp_path / "labels.h5")
    assert labels.counts.tolist() == [100] * 4
    assert np.mean(np.load(tmp_path / "again.npy") == labels.labels) > 0.99  # but for ties
