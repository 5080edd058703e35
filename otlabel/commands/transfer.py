"""`otlabel transfer`: train a fresh model on labels that a run has left."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from otlabel.commands import options
from otlabel.commands.train import CONFIG_HELP, add_run, changed, settings, train_by


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "transfer",
        run,
        help="train a fresh model on labels that a run has left",
        description="Train a fresh model, of any architecture, on the labels that an earlier run has written.",
        epilog="example: otlabel transfer digits runs/digits/labels.h5 -o runs/transfer "
        "--set model.backbone=small_resnet --set model.options={}",
    )
    parser.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument("labels", metavar="LABELS", type=options.path, help="labels.h5 of a run on the same data")
    add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train by a config, with the labels fixed."""
    if not arguments.labels.is_file():
        raise FileNotFoundError(f"{arguments.labels} does not exist; a run of `otlabel train` writes labels.h5")
    config = settings(arguments.config, shown=options.is_watched(arguments))
    given: Any = {"method": "fixed", "file": str(arguments.labels.resolve())}
    # Whatever else the config says of labels is about how they would be made.
    config = dataclasses.replace(config, labels=type(config.labels)(**given))
    return train_by(arguments, changed(config, arguments.set))
