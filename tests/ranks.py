"""Real processes over gloo, for tests: each calls a function with its rank; what they return comes back in order."""

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
def _start_server() -> None:
    """With the folder of the tests among those that it imports from."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def on_ranks(function: Callable[..., Any], number: int, *arguments: Any, timeout: float = SECONDS) -> list[Any]:
    """function(group, *arguments) on so many processes; KILLED for one that died, an exception for one that raised."""
    return _launched(_in_group, number, function, arguments, timeout)


def as_torchrun(function: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
    """function(rank, *arguments) on processes that have the environment which torchrun gives its own, and no group."""
    return _launched(_in_environment, number, function, arguments, SECONDS)


def _launched(
    run: Callable[..., None], number: int, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float
) -> list[Any]:
    _start_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = []
    for rank in range(number):
        here, there = _context.Pipe(duplex=False)
        process = _context.Process(target=run, args=(there, function, rank, number, port, timeout, arguments))
        process.start()
        there.close()
        ends.append((process, here))
    found = []
    for process, here in ends:
        try:
            found.append(here.recv() if here.poll(4 * SECONDS) else TimeoutError("no answer"))
        except EOFError:
            found.append(KILLED)
        process.join(SECONDS)
        process.kill()
    return found


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
