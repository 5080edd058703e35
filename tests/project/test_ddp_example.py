"""The example for several processes, under torchrun as by itself."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import otlabel
from otlabel.selflabel import load_labels


def test_the_example_labels_alike_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    example = Path(__file__).parents[2] / "examples" / "selflabel_ddp.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example))["main"](0)
    alone = load_labels("labels.h5").labels
    environment = {**os.environ, "PYTHONPATH": str(Path(otlabel.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "labels.h5").unlink()
    done = subprocess.run(
        [sys.executable, *torchrun, str(example), "0"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes: class sizes [180" in done.stdout
    np.testing.assert_array_equal(load_labels("labels.h5").labels, alone)
