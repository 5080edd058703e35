"""Writing a file whole or not at all, one process a folder, and clearing up after whoever could not."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from otlabel.system import NO_LINKS, lock_now

if TYPE_CHECKING:
    import numpy as np

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NAMELESS = (*NO_ROOM, errno.EFBIG, errno.EIO)  # the system tells these without the file they are about
NO_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
LOCK, LOCK_LENGTH = ".otlabel-lock", 200  # characters of it that are shown
ATTEMPTS = 100  # to lock a folder that others come to and leave
DESCRIPTORS = "/proc/"  # where links lead to what a process has open, such as /dev/stdout


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A new file beside `path` to write to; flushed to the disk and renamed at the end, removed after an error.

    Where `path` is a link, this happens beside the file that it leads to, and the link stays.

    Raises:
        FileExistsError: a pipe, a device or a socket is there, which must not be replaced.
    """
    target = destination(path)
    clear_leftovers(target)
    try:
        with _new_beside(target) as (file, temporary):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)  # while it is locked, so that nobody takes it for a leftover
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename is None and error.errno in NAMELESS:
            error.filename = str(path)
        raise


def destination(path: str | os.PathLike[str]) -> Path:
    """The file that is made or replaced by writing to `path`: what a link leads to, even if nothing is there yet.

    Raises:
        FileExistsError: something else is there than a file: a pipe, a device, a socket.
        IsADirectoryError: a folder is there.
        OSError: links that lead in a circle, or a folder on the way that may not be entered.
    """
    place = Path(path)
    with contextlib.suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{place} is a folder; name a file in it")
        if not stat.S_ISREG(mode):
            kind = NO_FILES.get(stat.S_IFMT(mode), "no file")
            raise FileExistsError(f"{place} is {kind}, which no file can take the place of; write elsewhere")
    while place.is_symlink():
        if os.path.realpath(place.parent).startswith(DESCRIPTORS):
            raise FileExistsError(f"{path} is what a process has open, which cannot be replaced; write elsewhere")
        place = place.parent / os.readlink(place)
    return place


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
    target = destination(path)
    clear_leftovers(target)
    with _new_beside(target):
        pass


def identity(path: str | os.PathLike[str]) -> str | tuple[int, int]:
    """What two names of one file have in common."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)  # of what is not there yet, or cannot be looked at
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """A folder that no other process works in meanwhile, made if need be, and gone again at the end if it is empty.

    A file in it is locked, which says who works there; the lock ends with the process, however that ends. Where the
    file system has no locks, nobody is kept out.

    Raises:
        BlockingIOError: another process works in it.
        NotADirectoryError: the path leads to a file, or over one.
    """
    absolute = folder.absolute()  # the working folder may be another at the end
    made = [place for place in (absolute, *absolute.parents) if not place.exists()]
    try:
        with _locked(folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # what holds something stays
            for place in made:
                place.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import socket

    lock = folder.absolute() / LOCK
    for n_left in reversed(range(ATTEMPTS)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
        except (FileExistsError, FileNotFoundError) as error:
            if n_left and (folder.is_dir() or not os.path.lexists(folder)):
                continue  # another process has just removed or made it
            raise NotADirectoryError(f"{folder} is no folder and cannot be made one; give another") from error
        except NotADirectoryError as error:
            raise NotADirectoryError(f"{folder} lies below a file; give another folder") from error
        with open(descriptor, "r+", encoding="utf-8", errors="replace") as file:
            try:
                lock_now(file)
            except BlockingIOError:
                raise BlockingIOError(
                    f"{folder} is in use by {file.read(LOCK_LENGTH).strip() or 'another process'}; wait until that "
                    "has ended, or give another folder"
                ) from None
            except OSError:
                pass  # no locks here
            status = os.fstat(descriptor)
            if identity(lock) != (status.st_dev, status.st_ino):
                continue  # it was removed by who had it before
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
    raise BlockingIOError(f"{folder} is in use by other processes; wait until they have ended, or give another folder")


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
            lock_now(file)
            os.unlink(leftover)


@contextlib.contextmanager
def _new_beside(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A new locked file in the target's folder, and its name, which is free again at the end, whatever happens."""
    while True:
        temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        try:
            with temporary.open("xb") as file:  # open(), not mkstemp(), so that the user's umask decides who may read
                with contextlib.suppress(OSError):  # where there are no locks, leftovers are never removed
                    lock_now(file)
                if temporary.exists():  # else taken for a leftover in the moment before it was locked
                    yield file, temporary
                    return
        finally:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut, where the file system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
