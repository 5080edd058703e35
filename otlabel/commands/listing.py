"""`otlabel labels`: labels of a run as a table."""

from __future__ import annotations

import argparse
from typing import Any

from otlabel.commands import options
from otlabel.storage.outputs import Output, check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "labels",
        run,
        help="labels of a run as a table: files, labels of all heads, confidence",
        description="Write a line for each sample of a run: its file, and of each head its label and the network's "
        "probability of it. Programs may read the labels from the run's labels.h5 as well.",
        epilog="example: otlabel labels runs/digits -o labels.csv",
    )
    parser.add_argument("run", metavar="RUN", type=options.path, help="folder of otlabel train, at its end")
    options.allow_code(parser)
    options.output(parser, "FILE.csv", "where the table goes")
    options.force(parser)
    options.progress(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write, once the path is tried."""
    check_outputs([Output("--output", arguments.output, (".csv",))], {"RUN": str(arguments.run)}, force=arguments.force)

    with options.doing(arguments, "asking the network how sure it is"):
        from otlabel.training.listing import write_table
        from otlabel.training.saved import SavedRun

        saved = SavedRun(arguments.run)
        labels = saved.folder / "labels.h5"
        if not labels.is_file():
            raise FileNotFoundError(f"{saved.folder} has no labels.h5; let the run come to its end first")
        images = saved.images()
        model = saved.model(best=None, allow_code=arguments.allow_code)
        n_samples = write_table(arguments.output, labels, images, model, workers=saved.config.data.workers)
    print(f"Labels of {n_samples:,} samples written to {arguments.output}")
    return 0
