"""Threads over a fixed number of independent tasks; who runs a task never changes what it gives."""

from __future__ import annotations

import _thread
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable

from threadpoolctl import ThreadpoolController


def thread_count() -> int:
    """The environment's OTLABEL_NUM_THREADS if set, else the processors this process may use."""
    stated = os.environ.get("OTLABEL_NUM_THREADS", "")
    if stated:
        if not stated.isdigit() or int(stated) < 1:
            raise ValueError(f"OTLABEL_NUM_THREADS is {stated!r}; set it to a whole number of at least 1, or unset it")
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(task: Callable[[int], None], n_tasks: int, extra_threads: int = 0) -> None:
    """Call task(0), ..., task(n_tasks - 1) on all threads; the first error stops the rest and is raised here.

    Threads are started without waiting for them, which `threading` would do: an idle processor may take milliseconds
    to wake up, as long as a whole pass. One that comes too late finds the gate shut and is not waited for either.
    """
    numbers, errors = itertools.count(), list[BaseException]()
    gate, entered, shut = _thread.allocate_lock(), list[_thread.LockType](), False

    def work() -> None:
        try:
            while not errors and (number := next(numbers)) < n_tasks:
                task(number)
        except BaseException as error:  # an interrupt here must stop the other threads too
            errors.append(error)

    def help_out() -> None:
        at_work = _thread.allocate_lock()
        with gate:
            if shut:
                return
            at_work.acquire()
            entered.append(at_work)
        work()
        at_work.release()

    try:
        for _ in range(min(thread_count() + extra_threads, n_tasks) - 1):
            _thread.start_new_thread(help_out, ())
        work()
    except BaseException as error:
        errors.append(error)
    while not shut or entered:
        try:
            with gate:
                shut = True
            while entered:
                with entered[-1]:
                    entered.pop()
        except KeyboardInterrupt as error:  # one that waits hears it, too, and goes on waiting: for the task under way
            errors.append(error)
    if errors:
        raise errors[0]


class _OneThread(contextlib.AbstractContextManager[None]):
    """A limit of the whole process, which the first that enters sets and the last that leaves takes away."""

    def __init__(self) -> None:
        self._lock, self._n_within = threading.RLock(), 0  # again by one thread: where a generator goes amid all this
        self._libraries, self._limit = ThreadpoolController(), contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_within:
                self._limit.enter_context(self._libraries.limit(limits=1, user_api="blas"))
            self._n_within += 1

    def __exit__(self, *failure: object) -> None:
        with self._lock:
            self._n_within -= 1
            if not self._n_within:
                self._limit.close()


@functools.cache
def blas_on_one_thread() -> contextlib.AbstractContextManager[None]:
    """One thread gives the same bits on every machine, and does not spin where other work wants the cores."""
    return _OneThread()
