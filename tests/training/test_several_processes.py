"""Runs of several processes, as torchrun starts them: one folder, one writer, labels of one process, resumed alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ranks import as_torchrun
from small_runs import config
from test_training import StoppedError, stop_at

from otlabel.selflabel import load_labels
from otlabel.training.run import Run, train

ONCE: dict[str, Any] = {"labels__n_relabels": 1, "train__epochs": 1, "labels__store": "hdf5"}
RECORDED: dict[str, Any] = {"labels__method": "argmax", "model__heads": [6], "train__epochs": 3}


def trained(rank: int, folder: str) -> dict[str, Any]:
    """What each of the processes has in the end: of a run, of one that is stopped, and of the same resumed."""
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    lines: list[dict[str, Any]] = []
    once = train(config(**ONCE), Path(folder) / "once", report=lines.append)
    whole = train(config(**RECORDED))
    part = Run(config(**RECORDED), Path(folder) / "part")
    part.resume()
    stop_at(part, 1.5)
    try:
        part.fit()
    except StoppedError:
        part.close()
    resumed = train(config(**RECORDED), Path(folder) / "part")
    weights = [float(sum(one.double().abs().sum() for one in run.model.parameters())) for run in (whole, resumed)]
    return {
        "once": once.labeler.labels.numpy(),
        "whole": whole.labeler.labels.numpy(),
        "resumed": resumed.labeler.labels.numpy(),
        "weights": weights,
        "lines": len(lines),
        "judged": bool(once.result),
        "epoch": resumed.epoch,
    }


def test_two_processes_train_one_model_and_label_as_one_does(tmp_path: Path) -> None:
    first, second = as_torchrun(trained, 2, str(tmp_path))
    assert isinstance(first, dict), first
    assert isinstance(second, dict), second
    for name in ("once", "whole", "resumed", "weights"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(first["whole"], first["resumed"])
    assert first["weights"][0] == first["weights"][1]
    assert first["epoch"] == second["epoch"] == 3
    # Labels of the same features: those of the untrained network.
    alone = train(config(**ONCE), tmp_path / "alone")
    np.testing.assert_array_equal(first["once"], alone.labeler.labels)
    np.testing.assert_array_equal(first["once"], load_labels(tmp_path / "once" / "labels.h5").labels)
    assert (first["lines"], first["judged"]) == (1, True)
    assert (second["lines"], second["judged"]) == (0, False)
