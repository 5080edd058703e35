"""The example for several processes, under torchrun as by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import otlabel
from otlabel.selflabel import load_labels


def test_the_example_labels_alike_under_torchrun(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    example = Path(__file__).parents[2] / "examples" / "selflabel_ddp.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(otlabel.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    labels = []
    for name, before in (("one", []), ("two", torchrun)):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, *before, str(example), "0"],
            cwd=tmp_path / name, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        labels.append(load_labels(tmp_path / name / "labels.h5").labels)
    assert "2 processes: class sizes [180" in done.stdout
    np.testing.assert_array_equal(*labels)
