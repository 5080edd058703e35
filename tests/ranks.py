"""Real processes for tests, in groups over gloo or alone: each calls a function, and what that returns comes back."""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

SECONDS = 60.0  # that a group waits, where a test says nothing else
KILLED = "killed"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


@functools.cache
def forking() -> Any:
    """What makes the processes; the folder of the tests is among those that their server imports from."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    return _context


def on_ranks(function: Callable[..., Any], number: int, *arguments: Any, timeout: float = SECONDS) -> list[Any]:
    """function(group, *arguments) on so many processes; KILLED for one that died, an exception for one that raised."""
    return _launched(_in_group, number, function, arguments, timeout)


def as_torchrun(function: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
    """function(rank, *arguments) on processes that have the environment which torchrun gives its own, and no group."""
    return _launched(_in_environment, number, function, arguments, SECONDS)


class Started:
    """target(pipe, *arguments) in a process that is forked where all is imported; what is sent is its answer."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._here, there = forking().Pipe(duplex=False)
        self.process = forking().Process(target=target, args=(there, *arguments))
        self.process.start()
        there.close()

    def answer(self) -> Any:
        """KILLED of one that died, an exception of one that raised."""
        try:
            return self._here.recv() if self._here.poll(4 * SECONDS) else TimeoutError("no answer")
        except EOFError:
            return KILLED
        finally:
            self.process.join(SECONDS)
            self.process.kill()


def alone(function: Callable[..., Any], *arguments: Any) -> Started:
    """function(*arguments) in one process."""
    return Started(_answered, function, *arguments)


def _launched(
    run: Callable[..., None], number: int, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float
) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [Started(run, function, rank, number, port, timeout, arguments) for rank in range(number)]
    return [one.answer() for one in started]


def _in_environment(
    answer: Any, function: Callable[..., Any], rank: int, number: int, port: int, timeout: float, given: Any
) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    _answered(answer, function, rank, *given)


def _in_group(
    answer: Any, function: Callable[..., Any], rank: int, number: int, port: int, timeout: float, given: Any
) -> None:
    import torch.distributed as dist

    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=number, timeout=timedelta(seconds=timeout)
    )
    _answered(answer, function, dist.group.WORLD, *given)


def _answered(answer: Any, function: Callable[..., Any], *arguments: Any) -> None:
    os.environ["OTLABEL_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        answer.send(function(*arguments))
    except Exception as error:
        traceback.print_exc()
        answer.send(error)
    os._exit(0)  # whatever hangs in threads
