"""The command line under torchrun: each process takes its share of the rows, all label together, each writes its part.

    labels/part-00000-of-00002.h5    the first rows' labels, and the potentials that prove all of them

`labels_file.read_labels` takes the folder for one file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.files import check_writable
from otlabel.labels_file import PART_NAME, part_path

if TYPE_CHECKING:
    from otlabel.distributed import Alone
    from otlabel.scores import Scores


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Any]:
    """The group of all processes that torchrun has started, or None where it has not, or only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield None
        return
    import torch
    import torch.distributed as dist

    if device.startswith("cuda"):
        torch.cuda.set_device(own_device(device))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """Each process of a machine has a card of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def share_of_rows(scores: Scores, team: Alone) -> tuple[int, int]:
    """From which row to which this process labels: whole blocks, so that none has to travel."""
    blocks = scores.blocks()
    first, stop = (len(blocks) * rank // team.number for rank in (team.rank, team.rank + 1))
    starts = [start for start, _ in blocks] + [scores.shape[0]]
    return starts[first], starts[stop]


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that parts could not be written to, before any work is done for it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder for the parts, or a file that ends in .npy or .h5")
    folder.mkdir(exist_ok=True)
    if not force and any(PART_NAME.fullmatch(entry.name) for entry in folder.iterdir()):
        raise FileExistsError(f"{folder} holds parts already; pass --force to overwrite them")
    check_writable(folder / "part")


def write_part(folder: Path, team: Alone, write: Callable[[Path, Callable[[], None]], None]) -> Path:
    """Write this process's part; parts take their names once all are written, and those of another run go then."""
    path = part_path(folder, team.rank, team.number)

    def meet() -> None:
        team.total("output")

    write(path, meet)
    meet()
    if team.rank == 0:
        for entry in folder.iterdir():
            found = PART_NAME.fullmatch(entry.name)
            if found and int(found[2]) != team.number:
                entry.unlink()
    return path
