"""What several commands ask for: how a command is added, options that are alike, and the kinds of numbers in them."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otlabel.progress import Told
from otlabel.progress import progress as shown_progress
from otlabel.text import local_path

SCORES_HELP = (
    "(N, K) matrix, higher is better: FILE.npy, FILE.npz::NAME, FILE.h5::/NAME, .zarr and .safetensors alike, FILE.pt "
    "or .pth (plain tensors), FILE.parquet, .feather or .csv (columns of numbers; ::NAME,NAME for some), a sparse one "
    "(FILE.h5::/GROUP, FILE.npz), or a quoted pattern for the parts of one matrix: 'part-*.h5::/NAME'"
)
OUTPUT_HELP = "FILE.npy (int64), or FILE.h5 with class sizes, potentials and a receipt"
WORTH_SHOWING = 0.5  # seconds that something takes
MEMORY_HELP = "for keeping scores in memory (4e9, 4GB); default half of the free; beyond it they are streamed"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, is_shared: bool = False, **texts: str
) -> argparse.ArgumentParser:
    """The parser of a command, whose texts are `help`, `description` and `epilog`.

    `run` takes the arguments and gives the exit code; `is_shared` says whether processes of torchrun share its work.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False, **texts)
    parser.set_defaults(command=run, is_shared=is_shared)
    return parser


def scores(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """The matrix of scores."""
    parser.add_argument("scores", metavar="SCORES", nargs=nargs, help=SCORES_HELP)


def features(parser: argparse.ArgumentParser) -> None:
    """The matrix of features."""
    parser.add_argument("features", metavar="FEATURES", help="(N, D) matrix, in such files as scores may be in")


def saved_run(parser: argparse.ArgumentParser) -> None:
    """The folder of a run that has been trained, and which of its weights are meant."""
    parser.add_argument("run", metavar="RUN", type=path, help="folder of otlabel train")
    parser.add_argument("--best", action="store_true", help="weights of the relabelling of the highest quality")
    allow_code(parser)


def changes(parser: argparse.ArgumentParser) -> None:
    """What is changed of a config."""
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="change the config: train.epochs=40"
    )


def allow_code(parser: argparse.ArgumentParser) -> None:
    """Whether a config may name code."""
    parser.add_argument(
        "--allow-code", action="store_true", help="let backbone = module:function of the config run: trust its author"
    )


def output(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """Where the result goes; it has to be said."""
    parser.add_argument("-o", "--output", metavar=metavar, type=path, required=True, help=help)


def class_mass(parser: argparse.ArgumentParser) -> None:
    """What each class takes."""
    parser.add_argument(
        "--class-mass", metavar="MASS", help="shares (sum 1) or counts (sum N): 10,20,30 or a file; default equal"
    )


def rounding(parser: argparse.ArgumentParser, help: str) -> None:
    """Which labels the plan becomes."""
    parser.add_argument("--rounding", choices=("exact", "argmax"), default="exact", help=help)


def memory_limit(parser: argparse.ArgumentParser, help: str = MEMORY_HELP) -> None:
    """How much of the input may be kept."""
    parser.add_argument("--memory-limit", type=byte_count, metavar="BYTES", help=help)


def seed(parser: argparse.ArgumentParser, what: str, limit: int = 1 << 32) -> None:
    """What is drawn at random, or between equal choices."""
    parser.add_argument("--seed", type=whole_below(limit), default=0, help=f"{what} (%(default)s)")


def receipt(parser: argparse.ArgumentParser) -> None:
    """Whether labels alone get a receipt too."""
    parser.add_argument(
        "--receipt", action="store_true", help="beside FILE.npy, write where its labels come from to FILE.npy.json"
    )


def force(parser: argparse.ArgumentParser, what: str = "existing output") -> None:
    """Whether files that are there may be overwritten."""
    parser.add_argument("--force", action="store_true", help=f"overwrite {what}")


def progress(parser: argparse.ArgumentParser) -> None:
    """Whether to show what is being done; `is_watched` tells what came of it."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--quiet", action="store_true", help="show no progress; else a terminal's stderr has it")
    choice.add_argument(
        "--progress", action="store_true", help="show progress on stderr where that is no terminal, too"
    )


def is_watched(arguments: argparse.Namespace) -> bool:
    """Whether somebody is to see what is being done."""
    return arguments.progress or (not arguments.quiet and sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def doing(arguments: argparse.Namespace, what: str, total: int | None = None, unit: str = "") -> Iterator[Told]:
    """A line of progress while this is done, once it takes longer than it takes to read the line."""
    with shown_progress(what, total, unit, shown=is_watched(arguments), delay=WORTH_SHOWING) as tell:
        yield tell


def as_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Whether programs are to read the result."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


# ---- kinds of numbers, and paths ----


def path(text: str) -> Path:
    """Where a file is or will be; a shell leaves the ~ of --output=~/labels.h5 as it is."""
    try:
        return Path(local_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole_below(limit: int) -> Callable[[str], int]:
    """What makes a number of a text: a whole one from 0 to below the limit."""

    def number(text: str) -> int:
        if not (text.isdecimal() and int(text) < limit):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {limit - 1:,}")
        return int(text)

    return number


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def bound(text: str) -> int | float:
    """A size where it is a whole number, else a share."""
    if text.isdecimal():
        return int(text)
    return share(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text) if re.fullmatch(r"\d*\.?\d+(e-?\d+)?", text.lower()) else math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def byte_count(text: str) -> int:
    """A whole number, or one with a unit: 4e9, 4GB, 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 4e9, 4GB or 500MB")
    number = float(found[1]) * 1000 ** " kmgt".index(found[2] or " ")
    if number == math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is more bytes than there are")
    return int(number)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def large_count(text: str) -> int:
    """The same, also as 1e9."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value < 1e15 and value == int(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1, such as 1000000 or 1e6")
    return int(value)
