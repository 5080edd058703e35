"""Plain files as the system has them: bytes at a place, a lock that one process holds, errors that name the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otlabel.errors import ExtractionError
from otlabel.system import BYTES, NOT_INHERITED, lock_now, read_some, write_some


def open_raw(path: Path) -> Any:
    """A file for reading and writing, made if it is not there, without a buffer."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | NOT_INHERITED | BYTES, 0o666), "r+b", buffering=0)


def open_locked(path: Path) -> Any:
    """The journal, which one extraction at a time may hold."""
    while True:
        file = open_raw(path)
        if not _is_free(file):
            file.close()
            raise ExtractionError(
                f"another extraction holds {path}, in another process (or a worker that it left behind) or another "
                "store; wait for it, close it, or write elsewhere"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()  # removed by the one that held it, in the moment before it was locked


def _is_free(file: Any) -> bool:
    """Lock a file unless somebody else has; where there are no locks, nobody has."""
    try:
        lock_now(file)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def write_at(descriptor: int, content: Any, place: int) -> None:
    """All of the bytes: the system may take a part of them, and tells why at the next."""
    view = memoryview(content)
    while len(view):
        n_written = write_some(descriptor, view, place)
        view, place = view[n_written:], place + n_written


def read_at(descriptor: int, content: memoryview, place: int) -> int:
    """Fill the memory; returns how many bytes there were."""
    n_read = 0
    while n_read < len(content):
        n_more = read_some(descriptor, content[n_read:], place + n_read)
        if not n_more:
            break
        n_read += n_more
    return n_read


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system say which file they are about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
