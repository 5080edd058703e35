"""Stores of each kind, a path for one, and a journal that marks every write."""

from __future__ import annotations

from pathlib import Path

import pytest
from extractions import KINDS, make

from otlabel.selflabel.stores import Store, extraction


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return make(request.param, tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


@pytest.fixture
def eager_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write is marked in the journal at once."""
    monkeypatch.setattr(extraction, "MARK_BYTES", 0)
