"""The command `otlabel`: which commands there are, how each ends, and what is said of errors, warnings and signals.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from otlabel import __version__
from otlabel.commands import (
    assign,
    certify,
    cluster,
    curate,
    demo,
    doctor,
    export,
    listing,
    plan,
    predict,
    probe,
    report,
    train,
    transfer,
    warmup,
)
from otlabel.errors import OtlabelWarning, RankError
from otlabel.interrupts import interruptible
from otlabel.progress import say
from otlabel.text import one_line

COMMANDS = (
    assign, cluster, predict, certify, plan, doctor, demo, curate, report,
    train, transfer, probe, listing, export, warmup,
)  # fmt: skip
USAGE, FAILURE, BROKEN_PIPE = 2, 1, 141  # the last as a shell reports SIGPIPE
WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
SIGNALLED, SIGNALS = 128, {signal.Signals[one]: told for one, told in WORDS.items() if hasattr(signal, one)}
REPEAT_SECONDS = 0.3  # after which an interrupt that was not heard is raised again
_BAD_PATHS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (failed), 2 (bad usage or input), 130 (interrupted), ..."""
    ended = [signal.SIGINT]
    with _one_line_warnings():
        try:
            with _heard_signals(ended):
                code = _run(argv)
                sys.stdout.flush()
        except BrokenPipeError:
            # The reader left, as `head` does; nothing more can reach it, nor may Python try at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except KeyboardInterrupt:
            return _complain(SIGNALS[ended[-1]], SIGNALLED + ended[-1])
        except (ImportError, RankError) as error:  # a package that is missing, or the module that a recipe names
            return _complain(_missing(error), FAILURE)
        except MemoryError as error:
            return _complain(f"not enough memory: {error}" if str(error) else "not enough memory", FAILURE)
        except OSError as error:
            return _complain(_told(error), USAGE if isinstance(error, _BAD_PATHS) else FAILURE)
        except ValueError as error:  # every OtlabelError about an input is one, and so is a bad argument
            return _complain(error, USAGE)
        except RuntimeError as error:
            # Torch's, told by name so as not to import torch; on a CPU it has none of its own.
            if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
                raise
            return _complain(f"not enough memory on the device: {error}", FAILURE)
    return code


@interruptible
def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse's way to end --help, --version and bad usage
        return stop.code if isinstance(stop.code, int) else USAGE
    command: Callable[[argparse.Namespace], int] | None = arguments.command
    if command is None:
        parser.print_help(sys.stderr)
        return USAGE
    if not arguments.is_shared:
        from otlabel.commands.torchrun import check_alone

        check_alone()
    return command(arguments)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message} (see '{self.prog} --help')", USAGE))


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command; defaults are those of the functions behind them."""
    parser = _Parser(
        prog="otlabel",
        description="Label samples with exact class sizes and a proof of optimality.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"otlabel {__version__}")
    parser.set_defaults(command=None, is_shared=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _missing(error: Exception) -> object:
    """The error itself, but of torch, which only training needs: how it is to be had."""
    is_torch = isinstance(error, ModuleNotFoundError) and error.name == "torch"
    return (
        'torch is needed for this: pip install "torch>=2.7" (the README has the line for CPUs)' if is_torch else error
    )


def _told(error: OSError) -> str:
    """Our own message, or the system's with the file it is about."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


class _Ended(KeyboardInterrupt):
    """An interrupt by a signal.

    A class of its own, for Python remembers a plain KeyboardInterrupt that met an exec() of text, as imports have them,
    and ends the process as if by SIGINT then, whatever the exit code.
    """


def _complain(message: object, code: int) -> int:
    with suppress(OSError):  # of a terminal that has hung up
        print(f"otlabel: error: {one_line(message)}", file=sys.stderr)
    return code


@contextmanager
def _heard_signals(ended: list[signal.Signals]) -> Iterator[None]:
    """End the command by a KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP, so that it clears up; tell which it was.

    It is repeated until the command ends: one that meets a callback from compiled code is lost there.
    """
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    # A program that runs this command may deal with them in its own way, and nohup ignores some.
    heard = [number for number in SIGNALS if usual[number] in (signal.SIG_DFL, signal.default_int_handler)]
    if not heard or threading.current_thread() is not threading.main_thread():
        yield
        return

    has_alarm = hasattr(signal, "setitimer")  # elsewhere an interrupt is heard once

    def end(number: int, _: Any) -> None:
        if number in SIGNALS:
            ended.append(signal.Signals(number))
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS)
        raise _Ended

    def tell(lost: Any) -> None:
        if lost.exc_type is not _Ended:
            hook(lost)

    hook, alarm = sys.unraisablehook, signal.signal(signal.SIGALRM, end) if has_alarm else None
    sys.unraisablehook = tell
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        for number in heard:
            signal.signal(number, usual[number])
        sys.unraisablehook = hook


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show warnings as lines of this command, without the place in the library that gave them."""

    def show(message: Warning | str, *_: Any) -> None:
        say(f"otlabel: warning: {one_line(message)}")

    with warnings.catch_warnings():
        # A file mapped into memory is read-only, which torch takes for a danger; scores are never written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        warnings.simplefilter("always", OtlabelWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # it is called by position, never by name
        yield
