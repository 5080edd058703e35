"""The command line as tests run it: in this process, or in one of its own that can be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import otlabel

COMMAND = "import sys; from otlabel.commands.main import main; sys.exit(main(sys.argv[1:]))"
NOBODY = 65534


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def assert_interrupted_at_once(process: subprocess.Popen[str]) -> None:
    """Ctrl-C ends it within seconds, by one line and the exit code of a shell."""
    assert process.poll() is None
    begun = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.perf_counter() - begun < 3  # a second on an idle machine
    assert (process.returncode, out) == (130, "")
    assert err.endswith("otlabel: error: interrupted\n")
    assert "Traceback" not in err


def python(code: str, *words: Any, **settings: Any) -> subprocess.Popen[str]:
    """A Python of its own that runs code and finds otlabel where this one found it."""
    environment = os.environ | {"PYTHONPATH": str(Path(otlabel.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **settings)


def assert_refused(ran: Ran, *words: str, code: int = 2) -> None:
    """One line that names what is wrong, the right exit code, and nothing on stdout."""
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("otlabel: error: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_only(folder: Path, *names: str) -> None:
    """Nothing else lies there: no half-written labels, no temporary files."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
