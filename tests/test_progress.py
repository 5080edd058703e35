"""A line of progress: words, numbers and a clock that goes on; nothing where nobody looks."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from otlabel import sinkhorn_assign
from otlabel.commands.main import main
from otlabel.progress import progress, say


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    return capsys


def test_a_line_has_words_numbers_and_a_clock(terminal: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 4, "files") as tell:
        tell(1, "a.npy")
        time.sleep(0.7)  # a tick
        tell(6, "f.npy")
        time.sleep(0.6)
    told = lines(terminal.readouterr().err)
    assert any(line.startswith("reading 1/4 files |") and line.endswith("[00:00], a.npy") for line in told), told
    assert any(line.startswith("reading 6/6 files |") and line.endswith(", f.npy") for line in told), told


def test_the_clock_goes_on_while_nothing_is_told(terminal: pytest.CaptureFixture[str]) -> None:
    with progress("thinking"):
        time.sleep(1.3)
    assert lines(terminal.readouterr().err)[-1] == "thinking [00:01]"


def test_what_is_quick_or_not_watched_shows_nothing(terminal: pytest.CaptureFixture[str]) -> None:
    with progress("thinking", 3, "steps", delay=5) as tell:
        tell(1)
    with progress("thinking", 3, "steps", shown=False) as tell:
        tell(1)
    assert lines(terminal.readouterr().err) == []


def test_a_line_that_came_late_goes_away(terminal: pytest.CaptureFixture[str]) -> None:
    with progress("thinking", delay=0.1):
        time.sleep(0.3)
    err = terminal.readouterr().err
    assert "thinking" in err
    assert err.endswith("\r")
    assert not err.rstrip("\r").rsplit("\r", 1)[-1].strip()  # spaces over what was there


def test_lines_are_said_above_a_bar(terminal: pytest.CaptureFixture[str]) -> None:
    say("before")
    with progress("thinking", 3, "steps"):
        say("meanwhile")
        say("to stdout", sys.stdout)
    out, err = terminal.readouterr()
    assert out.strip("\r\n ") == "to stdout"
    assert "\rmeanwhile\n" in err or "\nmeanwhile\n" in err
    assert err.startswith("before\n")


def test_errors_and_warnings_come_through(terminal: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress("thinking"):
        raise ZeroDivisionError


@pytest.mark.parametrize("watched", ["terminal", "quiet", "progress", "nobody"])
def test_commands_show_progress_on_a_terminal(
    watched: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("jinja2")
    if watched in ("terminal", "quiet"):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("otlabel.commands.options.WORTH_SHOWING", 0)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("scores.npy", rng.normal(size=(300, 5)))
    np.save("features.npy", rng.normal(size=(300, 5)))
    shown = {
        "assign scores.npy -o labels.npy": "labelling 0/7 passes",
        "cluster features.npy -k 3 -o clusters.h5": "clustering 0 iterations",
        "curate features.npy -n 9 -o chosen.npy": "choosing samples",
        "certify scores.npy labels.npy": "proving",
        "doctor scores.npy": "looking at the scores",
        "report labels.npy -o page.html": "looking at the labels",
    }
    more = {"quiet": ["--quiet"], "progress": ["--progress"]}.get(watched, [])
    for command, told in shown.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main([*command.split(), *more]) == 0
        err = capsys.readouterr().err
        assert (told in err) == (watched in ("terminal", "progress")), err


def test_a_bar_of_python_tells_in_words(terminal: pytest.CaptureFixture[str]) -> None:
    sinkhorn_assign(np.random.default_rng(0).normal(size=(3000, 5)), progress=True)
    assert "labelling" in terminal.readouterr().err
