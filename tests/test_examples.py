"""Each example runs as it stands and says something sensible."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"progressive_mass.py", "selflabel_images.py"}


def test_progressive_mass(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    found = runpy.run_path(str(EXAMPLES / "progressive_mass.py"))["main"]()
    assert 0.5 < found["ramped mass, KL"] <= 1
    assert "class sizes" in capsys.readouterr().out


def test_selflabel_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(EXAMPLES / "selflabel_images.py"))["main"]()
    assert found["accuracy"] > 0.6
    assert (tmp_path / "labels.h5").exists()
