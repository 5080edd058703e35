"""Small pieces, so that small matrices have many; an array, and a command that refuses what is in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ran, assert_refused, names
from kept_as import set_pieces

from otlabel.commands.main import main


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    set_pieces(monkeypatch, (300, 300), 3000)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((120, 5))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """A function that sees `otlabel assign` refuse scores in one line and write nothing."""

    def refused(scores: Any, *words: str, code: int = 2) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        capsys.readouterr()
        ended = main(["assign", str(scores), "-o", str(folder / "labels.h5"), "--memory-limit", "0"])
        out, err = capsys.readouterr()
        assert_refused(Ran(ended, out, err), *words, code=code)
        assert names(folder) == []
        folder.rmdir()

    return refused
