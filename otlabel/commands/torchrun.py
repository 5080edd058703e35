"""The command line under torchrun: each process takes its share of the rows, all label together, each writes its part.

    labels/part-00000-of-00002.h5    the first rows' labels, and the potentials that prove all of them

`label_files.read_labels` takes the folder for one file.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.errors import OtlabelWarning, RankError
from otlabel.storage.atomic import check_writable
from otlabel.storage.label_files import PART_NAME, part_path
from otlabel.sweep.blocks import partition

if TYPE_CHECKING:
    from otlabel.ranks.communicator import Communicator
    from otlabel.sources import Opened

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # without which processes cannot meet
LARGEST_PORT = 65535
FIRST_PORT, N_PORTS = 20_000, 20_000  # of which a job of Slurm takes one, by its number
PATIENCE = 5.0  # seconds that a process waits for others before it says so


def launched() -> int:
    """How many processes torchrun or srun has started, this one among them; 1 where neither has.

    Raises:
        ValueError: the environment names a number or rank that cannot be.

    Warns:
        OtlabelWarning: it names a number of processes, and not all that they would need to meet.
    """
    _take_slurm()
    number = _number_of("WORLD_SIZE")
    if number is None or number < 2:
        return 1
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        warnings.warn(
            f"WORLD_SIZE is {number}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, as "
            "torchrun would: this process works alone. Start all of them by torchrun, or unset WORLD_SIZE",
            OtlabelWarning,
            stacklevel=2,
        )
        return 1
    port = _number_of("MASTER_PORT")
    if port is None or port > LARGEST_PORT:
        raise ValueError(f"the environment variable MASTER_PORT is {port}, no port; start all processes by torchrun")
    rank = _number_of("RANK")
    if rank is None or rank >= number:
        raise ValueError(f"RANK is {rank}, of {number} processes (WORLD_SIZE); start all of them by torchrun")
    return number


def _take_slurm() -> None:
    """What torchrun would set, of what srun has set; a batch script that starts one process itself has no such step."""
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    number, told = os.environ.get("SLURM_STEP_NUM_TASKS", ""), [os.environ.get(name, "") for name in names]
    if "WORLD_SIZE" in os.environ or not (number.isdecimal() and int(number) > 1 and all(told)):
        return
    rank, local_rank, nodes, job = told
    port = os.environ.get("MASTER_PORT") or str(FIRST_PORT + int(re.sub(r"\D", "", job) or 0) % N_PORTS)
    address = os.environ.get("MASTER_ADDR") or first_host(nodes)
    found = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": number, "MASTER_ADDR": address, "MASTER_PORT": port}
    os.environ |= found


def first_host(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: node[007-009,12],other."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    return "" if found is None else f"{found[1]}{found[2] or ''}{found[3]}"


def check_alone() -> None:
    """Raise ValueError where several processes were started for work that is not shared."""
    number = launched()
    if number > 1:
        raise ValueError(
            f"{number} processes were started (WORLD_SIZE={number}), and each would do all of this work; start one, "
            "without torchrun, or unset WORLD_SIZE"
        )


def _number_of(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} is {text!r}, no number of torchrun's; unset it")
    return int(text)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Any]:
    """The group of all processes that torchrun has started, or None where it has not, or only one."""
    if launched() < 2:
        yield None
        return
    import torch
    import torch.distributed as dist

    if device.startswith("cuda"):
        torch.cuda.set_device(own_device(device))
    _meet("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _meet(backend: str) -> None:
    """Join the group of all processes, and say so where that takes long: some may never come."""
    import torch.distributed as dist

    failed: list[BaseException] = []
    met = threading.Event()

    def join() -> None:
        try:
            dist.init_process_group(backend)
        except BaseException as error:
            failed.append(error)
        finally:
            met.set()

    threading.Thread(target=join, daemon=True).start()  # a wait inside torch would hear no interrupt
    if not met.wait(PATIENCE):
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        warnings.warn(
            f"rank {os.environ['RANK']} waits for the others of {os.environ['WORLD_SIZE']} processes at {place} "
            "(RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); if there are none, unset WORLD_SIZE",
            OtlabelWarning,
            stacklevel=2,
        )
        met.wait()
    for error in failed:
        if isinstance(error, RuntimeError):  # torch's of the network
            raise RankError(f"the processes did not meet: {error}") from error
        raise error


def own_device(device: str) -> str:
    """Each process of a machine has a card of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def rows_of_rank(scores: Opened, communicator: Communicator) -> tuple[int, int]:
    """From which row to which this process labels: whole blocks, so that none has to travel."""
    blocks = partition(*scores.shape)
    first, stop = (len(blocks) * rank // communicator.world_size for rank in (communicator.rank, communicator.rank + 1))
    starts = [start for start, _ in blocks] + [scores.shape[0]]
    return starts[first], starts[stop]


def parts_of(folder: Path, number: int) -> list[Path]:
    """The files that so many processes write to a folder, and those of earlier runs that go then."""
    there = [entry for entry in folder.iterdir() if PART_NAME.fullmatch(entry.name)] if folder.is_dir() else []
    return [*dict.fromkeys([*there, *(part_path(folder, rank, number) for rank in range(number))])]


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that parts could not be written to, before any work is done for it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder for the parts, or a file that ends in .npy or .h5")
    folder.mkdir(exist_ok=True)
    if not force and any(PART_NAME.fullmatch(entry.name) for entry in folder.iterdir()):
        raise FileExistsError(f"{folder} holds parts already; pass --force to overwrite them")
    check_writable(folder / "part")


def write_part(folder: Path, communicator: Communicator, write: Callable[[Path, Callable[[], None]], None]) -> Path:
    """Write this process's part; parts take their names once all are written, and those of another run go then."""
    path = part_path(folder, communicator.rank, communicator.world_size)

    def meet() -> None:
        communicator.barrier("output")

    write(path, meet)
    meet()
    if communicator.rank == 0:
        for entry in folder.iterdir():
            found = PART_NAME.fullmatch(entry.name)
            if found and int(found[2]) != communicator.world_size:
                entry.unlink()
    return path
