"""`otlabel report`: one HTML page about labels."""

from __future__ import annotations

import argparse
from typing import Any

from otlabel.commands import options
from otlabel.storage.outputs import Output, check_outputs

FILES = {  # options that name a file, and what is in it
    "--scores": ("FILE", "(N, K): proof, confidence, the price of balance; as for assign"),
    "--images": ("IMAGES", "folder, in the order of names; FILE.npy, (N, H, W, C), say; FILE.txt, a path a line"),
    "--texts": ("FILE.txt", "N lines, UTF-8: examples of each class"),
    "--features": ("FILE", "(N, D): k-means to compare with"),
    "--truth": ("FILE", "(N,) true classes, -1 where unknown: purity and agreement"),
    "--names": ("FILE.txt", "K lines: names of the classes"),
    "--true-names": ("FILE.txt", "a line a true class: their names"),
}


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "report",
        run,
        help="one HTML page about labels: sizes, proof, examples",
        description="Write one HTML page about labels, which needs nothing but itself to be read.",
        epilog="example: otlabel report runs/digits -o report.html",
    )
    add = parser.add_argument
    add("labels", metavar="RUN_OR_LABELS", help="folder of otlabel train, a file of labels, or result.npz of assign")
    options.output(parser, "PAGE.html", "where the page goes")
    for option, (metavar, help) in FILES.items():
        add(option, metavar=metavar, help=help)
    add("--head", type=int, default=0, help="which head's labels, where there are several (%(default)s)")
    add("--title", help="of the page")
    options.seed(parser, "of what is drawn at random")
    options.progress(parser)
    options.force(parser, "an existing page")


def run(arguments: argparse.Namespace) -> int:
    """Write the page, once its path is tried."""
    given = vars(arguments)
    files = {option: given[option.removeprefix("--").replace("-", "_")] for option in FILES}
    inputs = {"RUN_OR_LABELS": arguments.labels, "the receipt": f"{arguments.labels}.json", **files}
    output = Output("--output", arguments.output, (".html", ".htm"))
    check_outputs([output], inputs, force=arguments.force)

    from otlabel.reporting.page import report

    own = ("command", "is_shared", "output", "force", "quiet", "progress")
    more = {name: value for name, value in given.items() if name not in own}
    with options.doing(arguments, "looking at the labels, and drawing the page"):
        report(more.pop("labels"), path=arguments.output, **more)
    print(f"Report written to {arguments.output}")
    return 0
