"""Small pieces, so that small matrices have many of them."""

from __future__ import annotations

import pytest
from kept_as import set_pieces


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    set_pieces(monkeypatch, (300, 300), 3000)
