"""`otlabel export`: the backbone of a run as a file that other libraries read."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from otlabel.commands import options
from otlabel.storage.outputs import Output, check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "export",
        run,
        help="the backbone of a run for other libraries, as safetensors",
        description="Write the backbone's weights of a run to a .safetensors file. Those of alexnet, vgg16_bn, "
        "resnet18 and resnet50 have the names and shapes of torchvision's, less the last layer.",
        epilog="example: otlabel export runs/digits -o backbone.safetensors",
    )
    options.saved_run(parser)
    options.output(parser, "FILE.safetensors", "where the weights go")
    options.force(parser)
    options.progress(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write, once the path is tried."""
    check_outputs(
        [Output("--output", arguments.output, (".safetensors",))], {"RUN": str(arguments.run)}, force=arguments.force
    )

    with options.doing(arguments, "reading the run"):  # torch, which that needs, takes a while
        from otlabel.training.exporting import export
        from otlabel.training.saved import SavedRun

        saved = SavedRun(arguments.run)
        model = saved.model(best=arguments.best, allow_code=arguments.allow_code)
        exported = export(model, arguments.output, saved.config, saved.input)
    print(textwrap.fill(f"{exported.n_tensors} tensors, {exported.n_numbers:,} numbers: {exported.told}", 80))
    print(f"Weights written to {arguments.output}")
    return 0
