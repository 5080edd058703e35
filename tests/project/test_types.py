"""Type checkers see what comes out: of arrays arrays, of tensors tensors; `user_script.py` is a user's own code."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import otlabel
from otlabel import assign, curation

ROOT = Path(otlabel.__file__).parents[1]
SCRIPT = Path(__file__).with_name("user_script.py")
WRONG = {number for number, line in enumerate(SCRIPT.read_text().splitlines(), 1) if line.endswith("# error")}


def check_errors(*command: str) -> None:
    """A checker finds what is wrong in the script, and nothing else."""
    done = subprocess.run(
        [*command, str(SCRIPT)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    told = done.stdout + done.stderr
    found = {int(line) for line in re.findall(rf"{SCRIPT.name}:(\d+)(?::\d+ -)?:? error", told)}
    assert found == WRONG, told


def test_mypy_sees_what_a_user_means() -> None:
    pytest.importorskip("mypy")
    cache = str(ROOT / ".mypy_cache" / "user")  # of torch too, which takes ten seconds to read the first time
    check_errors(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache)


def test_pyright_sees_the_same() -> None:
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("no pyright: pip install pyright")
    check_errors(pyright, "--pythonpath", sys.executable)


@pytest.mark.parametrize(("module", "name"), [(assign, "sinkhorn_assign"), (curation, "curate")])
def test_options_that_checkers_see_are_those_of_the_function(module: Any, name: str) -> None:
    function = getattr(module, name)
    parameters = [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    options = {name: one.__forward_arg__ for name, one in module._Options.__annotations__.items()}
    assert options == {one.name: one.annotation for one in parameters}
    assert typing.get_overloads(function.__wrapped__)
