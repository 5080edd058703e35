"""Compiled code on the disk: read where it is whole and of this source, written where it can be, else no matter."""

from __future__ import annotations

import errno
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.bytecode import FunctionIdentity

from otlabel import BalancedKMeans, Range, certify, compiling, sinkhorn_assign
from otlabel.errors import OtlabelWarning

SOURCE = """
from otlabel.compiling import njit

@njit(cache=True, nogil=True)
def twice(x):
    return 2 * x

@njit(cache=True, nogil=True)
def thrice(x):
    return 3 * x
"""


class Place:
    """A source file of compiled functions whose cache is a folder of its own, and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.source, self.cache = folder / "tiny.py", folder / "cache"
        self.source.write_text(SOURCE, encoding="utf-8")
        (folder / "__pycache__").touch()  # no folder, so that nothing can be written into it
        self._numbers = itertools.count()

    def loaded(self, name: str | None = None) -> ModuleType:
        """The module as a new process would have it."""
        spec = importlib.util.spec_from_file_location(name or f"tiny{next(self._numbers)}", self.source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def files(self) -> list[Path]:
        return sorted(path for path in self.cache.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(compiling, "_NOT_TOLD", threading.Lock())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Place(tmp_path)


def was_read(function: Any, times: int = 1) -> bool:
    """Whether compiled code came from the disk."""
    return (sum(function.stats.cache_hits.values()), sum(function.stats.cache_misses.values())) == (times, 0)


def test_what_one_process_has_compiled_the_next_one_reads(place: Place) -> None:
    first = place.loaded()
    assert (first.twice(4), first.twice(0.5), first.thrice(4)) == (8, 1.0, 12)
    assert not was_read(first.twice)
    assert len(place.files()) == 3
    second = place.loaded()
    assert (second.twice(4), second.twice(0.5), second.thrice(4)) == (8, 1.0, 12)
    assert was_read(second.twice, 2)
    assert was_read(second.thrice)


CALLER = (
    """
from otlabel.compiling import njit

@njit(nogil=True)
def part(n):  # too long to be inlined
"""
    + "    n = (n ^ n >> 3) * 31 & 65535\n" * 40
    + """
    return n + {0}

@njit(cache=True, nogil=True)
def whole{0}(n):
    return part(n) + part(n + 1)
"""
)


def test_compiled_code_calls_its_own_copies_of_functions(tmp_path: Path, place: Place, monkeypatch) -> None:
    """Not what the process holds by their names, which is optimised for others, or is there in some processes only."""
    read: list[bool] = []
    for number in (1, 2, 2, 1):
        monkeypatch.setattr(FunctionIdentity, "_unique_ids", itertools.count(10**9))  # names as in new processes
        place.source = tmp_path / f"{number}" / "tiny.py"
        place.source.parent.mkdir(exist_ok=True)
        place.source.write_text(CALLER.format(number), encoding="utf-8")
        module = place.loaded("caller")
        whole, part = getattr(module, f"whole{number}"), module.part.py_func
        assert whole(6) == part(6) + part(7)
        read.append(was_read(whole))
    assert read == [False, False, True, True]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "garbage": lambda content: bytes(range(256)) * 8,
    "one bit of the code": lambda content: content[:4000] + bytes([content[4000] ^ 1]) + content[4001:],
    "one bit of the digest": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "of another version": lambda content: b"\x80\x04\x8c\x06" + b"0.99.9\x94." + content[:-32],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_no_code_and_is_mended(place: Place, kind: str) -> None:
    assert place.loaded().twice(4) == 8
    (path,) = place.files()
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    second, third = place.loaded(), place.loaded()
    assert (second.twice(4), was_read(second.twice)) == (8, False)
    assert (third.twice(4), was_read(third.twice)) == (8, True)


def test_a_file_of_another_function_or_type_is_no_code(place: Place) -> None:
    first = place.loaded()
    assert (first.twice(4), first.thrice(4), first.twice(0.5)) == (8, 12, 1.0)
    contents = [path.read_bytes() for path in place.files()]
    for path, content in zip(place.files(), contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    second = place.loaded()
    assert (second.twice(4), second.thrice(4), second.twice(0.5)) == (8, 12, 1.0)


def test_code_of_another_source_or_another_numba_is_no_code(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.loaded().twice(4) == 8
    place.source.write_text(SOURCE.replace("2 * x", "5 * x"), encoding="utf-8")
    compiling._source_digest.cache_clear()
    assert place.loaded().twice(4) == 20
    monkeypatch.setattr(numba, "__version__", "0.1")
    newer = place.loaded()
    assert (newer.twice(4), was_read(newer.twice)) == (20, False)


def test_a_folder_that_goes_away_comes_back(place: Place) -> None:
    module = place.loaded()
    assert module.twice(4) == 8
    for path in place.files():
        path.unlink()
        path.parent.rmdir()
    assert module.thrice(4) == 12
    assert len(place.files()) == 1


def _nowhere(place: Place, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(numba.config, "CACHE_DIR", "/proc/none")
    return "No such file or directory: '/proc/none'"


def _occupied(place: Place, patch: pytest.MonkeyPatch) -> str:
    place.cache.touch()
    return "Not a directory"


def _full(place: Place, patch: pytest.MonkeyPatch) -> str:
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    patch.setattr(Path, "write_bytes", write_half)
    return "No space left on device"


@pytest.mark.parametrize("trouble", [_nowhere, _occupied, _full])
def test_where_nothing_can_be_written_one_warning_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Place, pytest.MonkeyPatch], str]
) -> None:
    reason = trouble(place, monkeypatch)
    module = place.loaded()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert (module.twice(4), module.thrice(4), module.twice(0.5)) == (8, 12, 1.0)
    (warning,) = told
    assert warning.category is OtlabelWarning
    assert reason in str(warning.message)
    assert "NUMBA_CACHE_DIR" in str(warning.message)
    assert place.files() in ([], [place.cache])


def test_what_cannot_be_written_is_read_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.loaded().twice(4) == 8
    kept = place.source.parent / "__pycache__"
    kept.unlink()
    place.files()[0].parent.rename(kept)  # an image that was built with a first call, and is read-only since
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/proc/none")
    module = place.loaded()
    assert (module.twice(4), was_read(module.twice)) == (8, True)


def test_a_home_that_nobody_knows_makes_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert all(folder.is_absolute() for folder in compiling._folders(__file__))


# ---- no compiler ----


def solved() -> list[Any]:
    """Labels, sizes and proofs of small problems in every storage type, as JSON can hold them."""
    import torch

    found: list[Any] = []
    numbers = np.random.default_rng(0).normal(size=(24, 4))
    forbidden = np.where(numbers > 1.3, -np.inf, numbers)
    for scores in (numbers.astype("f4"), numbers.astype("f2"), torch.from_numpy(numbers).bfloat16(), forbidden):
        result = sinkhorn_assign(scores)
        ranged = sinkhorn_assign(scores, classes=Range(0.1, 0.4), abstain=0.1)
        found += [result.labels.tolist(), ranged.labels.tolist(), result.predict(scores).tolist()]
        found.append(round(certify(scores, result.labels).value, 15))  # its potentials are known to fewer digits
    plan = sinkhorn_assign(numbers, epsilon=0.3, tol=1e-6).plan(numbers)
    return [*found, np.round(plan, 8).tolist(), BalancedKMeans(3, random_state=0).fit(numbers).labels_.tolist()]


def test_without_a_compiler_results_are_the_same() -> None:
    script = "import json, test_compiling; print(json.dumps(test_compiling.solved()))"
    folders = [str(Path(compiling.__file__).parents[1]), str(Path(__file__).parent)]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == solved()


@pytest.mark.parametrize("sits_there", [True, False])
def test_who_waits_is_told_once(sits_there: bool, place: Place, monkeypatch) -> None:
    """One line on a terminal, nothing in a log; and nothing where compiled code is read."""
    shown = io.StringIO()
    shown.isatty = lambda: sits_there  # type: ignore[method-assign]
    monkeypatch.setattr(compiling, "_NOT_ANNOUNCED", threading.Lock())
    monkeypatch.setattr(sys, "stderr", shown)
    first = place.loaded()
    assert (first.twice(4), first.thrice(4)) == (8, 12)
    assert shown.getvalue().count("\n") == sits_there
    assert ("otlabel warmup" in shown.getvalue()) == sits_there
    monkeypatch.setattr(compiling, "_NOT_ANNOUNCED", threading.Lock())
    shown.truncate(0)
    assert place.loaded().twice(4) == 8
    assert "otlabel" not in shown.getvalue()
