"""`otlabel doctor`: look at scores without labelling them."""

from __future__ import annotations

import argparse
from typing import Any

from otlabel.commands import options
from otlabel.commands.labels import read_class_mass
from otlabel.commands.printing import print_json
from otlabel.storage.atomic import replacing
from otlabel.storage.outputs import Output, check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "doctor",
        run,
        help="look at scores: usable? what will balance do? which epsilon?",
        description="Look at scores without labelling them: are they usable, what will balance change, which epsilon.",
        epilog="example: otlabel doctor scores.npy --plot sizes.png",
    )
    options.scores(parser)
    options.class_mass(parser)
    parser.add_argument(
        "--plot", metavar="OUT.png", type=options.path, help="draw class sizes before and after balance"
    )
    options.force(parser, "an existing picture")
    options.progress(parser)
    options.as_json(parser, "all numbers and findings")


def run(arguments: argparse.Namespace) -> int:
    """Findings, however bad, are no failure; only what cannot be read is."""
    if arguments.plot is not None:
        inputs = {"SCORES": arguments.scores, "--class-mass": arguments.class_mass}
        check_outputs([Output("--plot", arguments.plot, (".png",))], inputs, force=arguments.force)

    from otlabel import doctor

    if arguments.plot is not None:
        doctor.require_matplotlib()
    with options.doing(arguments, "looking at the scores, and at what balance does to them"):
        diagnosis = doctor.diagnose(arguments.scores, class_mass=read_class_mass(arguments.class_mass))
    if arguments.json:
        print_json(**diagnosis.to_dict())
    else:
        print(diagnosis.summary())
    if arguments.plot is not None and diagnosis.argmax_sizes:  # without a usable row there is nothing to draw
        figure = doctor.draw(diagnosis)
        with replacing(arguments.plot) as file:
            figure.savefig(file, format="png", dpi=130)
        if not arguments.json:
            print(f"Picture written to {arguments.plot}")
    return 0
