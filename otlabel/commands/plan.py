"""`otlabel plan`: what assign will take, or train, before it starts."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import Any

from otlabel.commands import options
from otlabel.commands.labels import folder_of
from otlabel.commands.printing import print_json
from otlabel.storage.outputs import LABEL_ENDINGS, Output, check_outputs

RECIPES = Path(__file__).parents[1] / "training" / "recipes"  # config.py, which has them, loads torch
SECONDS = 60.0
NOT_GIVEN: tuple[Any, ...] = (None, [], False, "cpu", "exact")  # what options are by themselves
OF_TRAINING = "set", "seconds", "allow-code"
OF_ASSIGN = "dim", "dtype", "device", "network", "memory-limit", "rounding"


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "plan",
        run,
        help="what assign will take, or train: passes, memory, time, disk",
        description="Tell what assign will take before it starts; reads only the beginning of the scores, or nothing "
        "where sizes are stated. Of a recipe, a TOML file, or data with -k: what train will take, by a minute of it.",
        epilog="examples: otlabel plan scores.npy -o labels.npy; with no file yet: "
        "otlabel plan --rows 1e9 --classes 1e5 --dim 256 --ranks 64 --device h200; of training: "
        "otlabel plan digits --seconds 2",
    )
    options.scores(parser, nargs="?")
    add = parser.add_argument
    add("--rows", type=options.large_count, metavar="N", help="samples, in place of a file: 1e9; of training, in place "
        "of as many as the data have")  # fmt: skip
    add("-k", "--classes", type=options.large_count, metavar="K", help="classes, in place of a file; with data, those "
        "that train is to find")  # fmt: skip
    add("--dim", type=options.large_count, metavar="D", help="scores are made of features so long by a linear head")
    add("--dtype", choices=("float16", "bfloat16", "float32", "float64"), help="in place of a file: default float16")
    add("--ranks", type=options.large_count, default=1, metavar="R", help="processes that share the rows (%(default)s)")
    add("--device", choices=("cpu", "h200", "h100", "a100"), default="cpu", help="of each rank: processors like these, "
        "measured now, or a card by its data sheet (%(default)s)")  # fmt: skip
    add("--network", type=options.byte_count, metavar="BYTES", help="a second and direction between ranks (25GB)")
    add("-o", "--output", metavar="LABELS", type=options.path, help="see whether there is room for these labels, "
        "or of training for this folder")  # fmt: skip
    options.rounding(parser, "as for assign (%(default)s)")
    options.memory_limit(parser)
    options.changes(parser)
    add("--seconds", type=options.positive, help="of training that is measured (60)")
    options.allow_code(parser)
    options.progress(parser)
    options.as_json(parser, "all numbers")


def run(arguments: argparse.Namespace) -> int:
    """Room that is missing is told, not a failure: assign is what refuses to start."""
    if arguments.scores is not None and (arguments.classes or _is_config(arguments.scores)):
        return _training(arguments)
    stated = arguments.rows, arguments.classes
    if (arguments.scores is None) == (None in stated) or (arguments.scores is not None and any(stated)):
        raise ValueError("plan needs SCORES, or both --rows and --classes in place of a file, or what train is given")
    if arguments.scores is not None and (arguments.dim or arguments.dtype):
        raise ValueError("--dim and --dtype are for sizes stated by --rows and --classes; a file says them itself")
    _refuse(arguments, OF_TRAINING, "training, of a recipe, a TOML file, or data with -k; this is of assign")

    from otlabel import planning
    from otlabel.sources import open_scores
    from otlabel.sources.listed import ListedSource

    if arguments.output is not None:
        check_outputs([Output("--output", arguments.output, LABEL_ENDINGS)], {"SCORES": arguments.scores}, force=True)
    shape, dtype, read_rate = stated, arguments.dtype or "float16", None
    on_card = arguments.device != "cpu"
    if arguments.scores is not None:
        scores = open_scores(arguments.scores)
        if isinstance(scores.source, ListedSource):
            raise ValueError(
                f"{arguments.scores} holds a sparse matrix of {scores.source.n_listed:,} entries, and plan estimates "
                "full ones; a solve takes about 0.2 GB of memory and 4 CPU seconds for each million rows of ten entries"
            )
        shape, dtype = scores.shape, scores.dtype
        read_rate = planning.measure_read_rate(scores)
    sweep_rate = None if on_card else planning.measure_sweep_rate(shape[1], dtype, arguments.dim)
    limits: dict[str, Any] = {"rounding": arguments.rounding, "memory_limit": arguments.memory_limit}
    limits |= {"sweep_rate": sweep_rate, "read_rate": read_rate}
    limits |= {"dim": arguments.dim, "card": planning.CARDS[arguments.device] if on_card else None}
    limits["network"] = arguments.network or planning.NETWORK
    found = planning.estimate(shape, dtype, arguments.ranks, **limits)
    disk = _disk(arguments, shape)
    if arguments.json:
        print_json(**found.to_dict(), **disk)
        return 0
    print(found.summary())
    _tell_room(disk, "labels take")
    return 0


def _is_config(name: str) -> bool:
    """Whether it names what train takes without -k: a TOML file, or a recipe."""
    return name.endswith(".toml") or (not Path(name).exists() and (RECIPES / f"{name}.toml").is_file())


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if getattr(arguments, name.replace("-", "_")) not in NOT_GIVEN:
            raise ValueError(f"--{name} is for {what}; leave it out")


def _training(arguments: argparse.Namespace) -> int:
    """What train will take; it is tried for a while, and nothing is written."""
    _refuse(arguments, OF_ASSIGN, "assign; what training takes is said by its config")
    from otlabel.commands.train import changed, settings, suited_to

    name, watched = arguments.scores, options.is_watched(arguments)
    if arguments.classes:
        config, images, _ = suited_to(name, arguments.classes, arguments.set, shown=watched)
    else:
        config, images = changed(settings(name, shown=watched), arguments.set), None
    with options.doing(arguments, "training for a while"):
        from otlabel.planning.training import estimate_training
        from otlabel.training.setup import loaded

        found = estimate_training(
            config,
            loaded(config) if images is None else images,
            seconds=arguments.seconds or SECONDS,
            n_samples=arguments.rows,
            n_processes=arguments.ranks,
            allow_code=arguments.allow_code,
        )
    room = {} if arguments.output is None else _room(arguments.output, sum(found.disk.values()))
    if arguments.json:
        print_json(**found.to_dict(), **room)
        return 0
    print(found.summary())
    _tell_room(room, "the run's folder takes")
    return 0


def _disk(arguments: argparse.Namespace, shape: tuple[int, int]) -> dict[str, Any]:
    """What the labels take there, and what there is; nothing where no place is known."""
    if arguments.scores is None and arguments.output is None:
        return {}
    from otlabel.storage.label_files import stored_bytes

    output = Path("labels.npy") if arguments.output is None else arguments.output
    return _room(output, stored_bytes(output, *shape))


def _room(output: Path, needed: int) -> dict[str, Any]:
    free = shutil.disk_usage(folder_of(output)).free
    return {"output_bytes": needed, "disk_free": free, "disk_suffices": needed <= free}


def _tell_room(disk: dict[str, Any], what: str) -> None:
    if disk:
        room = "there is room" if disk["disk_suffices"] else "TOO LITTLE ROOM, write elsewhere"
        told = f"disk      {what} {disk['output_bytes']:,} bytes of {disk['disk_free']:,} free: {room}"
        print(textwrap.fill(told, 80, subsequent_indent=" " * 10))
