"""The command line as tests run it: in this process, or in one of its own that can be interrupted."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import NamedTuple


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
