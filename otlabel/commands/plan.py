"""`otlabel plan`: what assign will take, before it starts."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from otlabel.commands import options
from otlabel.commands.labels import folder_of
from otlabel.commands.printing import print_json
from otlabel.storage.outputs import LABEL_ENDINGS, Output, check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "plan",
        run,
        help="what assign will take: passes, memory, time, disk",
        description="Tell what assign will take before it starts; reads only the beginning of the scores, or nothing "
        "where sizes are stated.",
        epilog="example: otlabel plan scores.npy -o labels.npy; or, with no file yet: "
        "otlabel plan --rows 1e9 --classes 1e5 --dim 256 --ranks 64 --device h200",
    )
    options.scores(parser, nargs="?")
    add = parser.add_argument
    add("--rows", type=options.large_count, metavar="N", help="samples, in place of a file: 1e9")
    add("--classes", type=options.large_count, metavar="K", help="classes, in place of a file")
    add("--dim", type=options.large_count, metavar="D", help="scores are made of features so long by a linear head")
    add("--dtype", choices=("float16", "bfloat16", "float32", "float64"), help="in place of a file: default float16")
    add("--ranks", type=options.large_count, default=1, metavar="R", help="processes that share the rows (%(default)s)")
    add("--device", choices=("cpu", "h200", "h100", "a100"), default="cpu", help="of each rank: processors like these, "
        "measured now, or a card by its data sheet (%(default)s)")  # fmt: skip
    add("--network", type=options.byte_count, metavar="BYTES", help="a second and direction between ranks (25GB)")
    add("-o", "--output", metavar="LABELS", type=options.path, help="see whether there is room for these labels")
    options.rounding(parser, "as for assign (%(default)s)")
    options.memory_limit(parser)
    options.as_json(parser, "all numbers")


def run(arguments: argparse.Namespace) -> int:
    """Room that is missing is told, not a failure: assign is what refuses to start."""
    stated = arguments.rows, arguments.classes
    if (arguments.scores is None) == (None in stated) or (arguments.scores is not None and any(stated)):
        raise ValueError("plan needs SCORES, or both --rows and --classes in place of a file")
    if arguments.scores is not None and (arguments.dim or arguments.dtype):
        raise ValueError("--dim and --dtype are for sizes stated by --rows and --classes; a file says them itself")

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
    if disk:
        room = "there is room" if disk["disk_suffices"] else "TOO LITTLE ROOM, write elsewhere"
        print(f"disk      labels take {disk['output_bytes']:,} bytes of {disk['disk_free']:,} free: {room}")
    return 0


def _disk(arguments: argparse.Namespace, shape: tuple[int, int]) -> dict[str, Any]:
    """What the labels take there, and what there is; nothing where no place is known."""
    if arguments.scores is None and arguments.output is None:
        return {}
    from otlabel.storage.label_files import stored_bytes

    output = Path("labels.npy") if arguments.output is None else arguments.output
    needed, free = stored_bytes(output, *shape), shutil.disk_usage(folder_of(output)).free
    return {"output_bytes": needed, "disk_free": free, "disk_suffices": needed <= free}
