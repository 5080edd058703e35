"""What operating systems do differently: locks, reading at a place, signals, memory. Linux's ways come first."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from typing import IO, Any

NO_LINKS, NOT_INHERITED = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_CLOEXEC", 0)  # flags that not all have
BYTES = getattr(os, "O_BINARY", 0)
FAR = 1 << 30  # a byte that is locked, beyond any that somebody reads: Windows lets nobody read what is locked
_MOVING = threading.Lock()  # who moves where a file is read, which is the same place for all


def lock_now(file: IO[Any]) -> None:
    """Lock an open file for this process.

    Raises:
        BlockingIOError: somebody else has it.
        OSError: there are no locks here.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        at = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        os.lseek(file.fileno(), FAR, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except PermissionError as error:
            raise BlockingIOError(error.errno, "locked") from error
        finally:
            os.lseek(file.fileno(), at, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_some(descriptor: int, room: memoryview, at: int) -> int:
    """Some of the bytes from a place on, as many as the system likes to give; returns how many."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [room], at)
    with _MOVING:
        os.lseek(descriptor, at, os.SEEK_SET)
        found = os.read(descriptor, len(room))
    room[: len(found)] = found
    return len(found)


def write_some(descriptor: int, content: memoryview, at: int) -> int:
    """Some of the bytes to a place, as many as the system takes; returns how many."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, at)
    with _MOVING:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.write(descriptor, content)


def peak_memory() -> int:
    """The most bytes that this process has ever held; 0 where nothing tells.

    Where there is /proc, it tells: getrusage counts what the parent held when it started this process, too.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", "rb", buffering=0) as status:
        if told := re.search(rb"^VmHWM:\s*(\d+) kB$", status.read(), re.MULTILINE):
            return 1024 * int(told[1])
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # told in bytes there, in kB elsewhere
    with contextlib.suppress(ImportError):
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return 0


def peak_of_children() -> int:
    """The most bytes that one of the processes held which this one has started and seen end; 0 where nothing tells."""
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 0


def available_memory() -> int | None:
    """Bytes that may still be taken, where /proc does not tell; None where nothing does."""
    with contextlib.suppress(ImportError):
        import psutil

        return int(psutil.virtual_memory().available)
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # of all there is, half
    return None
