"""Settings that every test shares, and the devices that answers are compared on."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from command import Ran
from hypothesis import settings
from threadpoolctl import threadpool_limits

from otlabel.commands.main import main
from otlabel.solver import small

settings.register_profile("otlabel", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("otlabel")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where torch sees none")
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in its background so; processes that tests interrupt would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config.option, "numprocesses", None):
        # The threads of torch and of linear algebra spin while they wait, those of several processes for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Devices differ in what runs there, not in what seeds draw: of several seeds a card gets the first."""
    further = [item for item in items if _is_further_seed_of_card(item)]
    if further:
        config.hook.pytest_deselected(items=further)
        items[:] = [item for item in items if not _is_further_seed_of_card(item)]


def _is_further_seed_of_card(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("device") == "cuda" and parameters.get("seed", 0) != 0


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """No problem counts as small: a few rows go through passes, samples and lists as many do."""
    monkeypatch.setattr(small, "MOST_SCORES", 0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A function that runs the command in this process."""

    def run(*argv: Any) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def library_threads() -> Iterator[None]:
    """Linear algebra works on several threads, as it does for users."""
    with threadpool_limits(max(2, os.cpu_count() or 1)):
        yield


@pytest.fixture
def num_threads(monkeypatch: pytest.MonkeyPatch, library_threads: None) -> Callable[[int], None]:
    """A function that sets the thread count of the calls that follow."""
    return lambda count: monkeypatch.setenv("OTLABEL_NUM_THREADS", str(count))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device, of which there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(scope="module")
def there(device: str) -> Callable[..., Any]:
    """A function that calls another one with its scores moved to a device, and brings the answer back.

    there(function, scores, ...) is function(scores, ...), scores as they are on the CPU and a tensor on a card. Arrays
    of an answer from there must all be on the card, and become NumPy.
    """

    def call(function: Callable[..., Any], scores: Any, *arguments: Any, **settings: Any) -> Any:
        if device == "cpu":
            return function(scores, *arguments, **settings)
        moved = as_tensor(scores).to(device)
        return _brought_back(function(moved, *arguments, **settings), moved.device)

    return call


def as_tensor(scores: Any) -> torch.Tensor:
    """Scores of any kind as a tensor, in the order in memory that they have where torch knows it."""
    if isinstance(scores, torch.Tensor):
        return scores
    array = np.asanyarray(scores)
    assert not np.ma.isMaskedArray(array), "no tensor has a mask: pass the array itself, and the device's name"
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(array if min(array.strides) > 0 else array.copy())


def _brought_back(answer: Any, device: torch.device) -> Any:
    """In NumPy: a tensor, or all tensors of a result; anything else as it is."""
    if isinstance(answer, torch.Tensor):
        assert answer.device == device
        return answer.cpu().numpy()
    if not dataclasses.is_dataclass(answer) or isinstance(answer, type):
        return answer
    values = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    assert not any(isinstance(value, np.ndarray) for value in values.values())
    arrays = {name: _brought_back(value, device) for name, value in values.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(answer, **arrays)
