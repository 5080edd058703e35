"""An interrupt from any front door is a KeyboardInterrupt, whenever it comes and whatever is made of it on the way."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import otlabel
from otlabel import sweep
from otlabel.interrupts import came_of_interrupt, interruptible
from otlabel.solver import small_scores
from otlabel.sweep import cpu

SCORES = np.random.default_rng(0).normal(size=(60, 4))
SOLVED = otlabel.sinkhorn_assign(SCORES)


def _lp() -> None:
    pytest.importorskip("ot")
    otlabel.lp_assign(SCORES)


def _clusters() -> None:
    pytest.importorskip("sklearn")
    otlabel.BalancedKMeans(3).fit(SCORES)


DOORS: dict[str, Callable[[], Any]] = {
    "sinkhorn_assign": lambda: otlabel.sinkhorn_assign(SCORES),
    "certify": lambda: otlabel.certify(SCORES, np.arange(60) % 4),
    "lp_assign": _lp,
    "balance_path": lambda: otlabel.balance_path(SCORES),
    "diagnose": lambda: otlabel.diagnose(SCORES),
    "BalancedKMeans.fit": _clusters,
    "predict": lambda: SOLVED.predict(SCORES),
    "plan": lambda: SOLVED.plan(SCORES),
    "soft_labels": lambda: SOLVED.soft_labels(SCORES),
    "report": lambda: otlabel.report(SOLVED, scores=SCORES),
}


def as_compiled_code_tells_it() -> None:
    """What a function below Python raises that meets an interrupt in a call back to Python."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as interrupt:
        raise SystemError("<built-in function f> returned a result with an exception set") from interrupt


@pytest.mark.parametrize("door", DOORS)
def test_what_compiled_code_makes_of_an_interrupt_is_undone(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kernel in vars(cpu).items():
        if callable(kernel) and (name.endswith("_block") or name == "add_up"):
            monkeypatch.setattr(cpu, name, lambda *_: as_compiled_code_tells_it())
    monkeypatch.setattr(small_scores, "deal_out", lambda *_: as_compiled_code_tells_it())
    with pytest.raises(KeyboardInterrupt) as raised:
        DOORS[door]()
    assert type(raised.value.__cause__) is SystemError


def test_other_errors_stay_what_they_are() -> None:
    for error in (SystemError("of its own"), ImportError("no module"), ValueError("3")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            interruptible(fail)()
        assert raised.value is error

    def of_the_callers_own() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ValueError("stopped by hand") from interrupt

    with pytest.raises(ValueError, match="by hand"):
        interruptible(of_the_callers_own)()
    assert not came_of_interrupt(None)


def test_doors_keep_their_names_and_arguments_and_warn_at_the_caller() -> None:
    assert next(iter(inspect.signature(otlabel.sinkhorn_assign).parameters)) == "scores"
    assert otlabel.sinkhorn_assign.__doc__ is not None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        otlabel.sinkhorn_assign(np.zeros((8, 2)))
    assert told[0].filename == __file__


CHILD = """
import numpy as np
scores = np.random.default_rng(0).normal(size=(3000, 50))
print("ready", flush=True)
try:
    import otlabel
    while True:
        result = otlabel.sinkhorn_assign(scores)
        otlabel.certify(scores, result.labels)
        result.predict(scores)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("seconds", [0.4, 0.9, 1.5])
def test_an_interrupt_while_code_is_loaded_or_runs(seconds: float) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(sweep.__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(seconds)
    while child.poll() is None:  # one that meets a callback from compiled code is lost there
        child.send_signal(signal.SIGINT)
        time.sleep(1)
    out, err = child.communicate()
    assert out == "interrupted\n", err
