"""Writing a file whole or not at all, and clearing up after whoever could not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the system tells these without the file they are about


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A new file beside `path` to write to; flushed to the disk and renamed at the end, removed after an error."""
    target = Path(path)
    clear_leftovers(target)
    file, temporary = _new_beside(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)  # while it is locked, so that nobody takes it for a leftover
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a .npy file by plain writes, whose errors say what is wrong, where np.save only counts the items."""
    import numpy as np

    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file beside `path` can be made: trying is the one sure test.

    Permission bits say little to root or on a network.
    """
    target = Path(path)
    clear_leftovers(target)
    file, temporary = _new_beside(target)
    with file:
        temporary.unlink()


def check_output(path: Path, endings: tuple[str, ...], *, force: bool) -> None:
    """Refuse what could not be written at the end, before any work is done for it."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path} does not end in {' or '.join(endings)}, which is what is written; name it so")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it or write elsewhere")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already; pass --force to overwrite it")
    try:
        check_writable(path)
    except OSError as error:
        raise PermissionError(f"cannot write in the folder {path.parent}: {error.strerror}") from error


def clear_leftovers(target: Path) -> None:
    """Remove what processes that were killed while they wrote `target` have left beside it.

    A writer holds a lock on its file for as long as it lives, which tells a leftover from one being written even
    where a process of the same number, or another machine, is at work in the folder.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    try:
        found = [entry.path for entry in os.scandir(target.parent) if pattern.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return  # a folder that may be written but not listed
    for leftover in found:
        with contextlib.suppress(OSError), open(leftover, "rb") as file:  # being written, or not ours to remove
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(leftover)


def _new_beside(target: Path) -> tuple[IO[bytes], Path]:
    """A new locked file in the target's folder, and its name."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")  # open(), not mkstemp(), so that the user's umask decides who may read
        with contextlib.suppress(OSError):  # where there are no locks, leftovers are never removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():
            return file, temporary
        file.close()  # taken for a leftover in the moment before it was locked


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut, where the file system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
