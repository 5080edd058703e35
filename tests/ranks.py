"""Real processes over gloo, for tests: each calls a function with its rank; what they return comes back in order."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

SECONDS = 60.0  # that a group waits, where a test says nothing else
KILLED = "killed"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "otlabel.assign", "otlabel.sweep.cpu"])


def on_ranks(function: Callable[..., Any], number: int, *arguments: Any, timeout: float = SECONDS) -> list[Any]:
    """function(group, *arguments) on so many processes; KILLED for one that died, an exception for one that raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = []
    for rank in range(number):
        here, there = _context.Pipe(duplex=False)
        process = _context.Process(target=_run, args=(there, function, rank, number, port, timeout, arguments))
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


def _run(answer: Any, function: Callable[..., Any], rank: int, number: int, port: int, timeout: float, given: Any):
    import torch.distributed as dist

    os.environ["OTLABEL_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=number, timeout=timedelta(seconds=timeout)
    )
    try:
        answer.send(function(dist.group.WORLD, *given))
    except Exception as error:
        traceback.print_exc()
        answer.send(error)
    os._exit(0)  # whatever hangs in threads
