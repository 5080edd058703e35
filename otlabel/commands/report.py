"""The command `otlabel report`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from otlabel.commands.arguments import seed_below
from otlabel.storage.atomic import Output, check_outputs


def add_report(commands: Any) -> None:
    """The arguments of `otlabel report`."""
    parser = commands.add_parser(
        "report",
        help="one HTML page about labels: sizes, proof, examples",
        description="Write one HTML page about labels, which needs nothing but itself to be read.",
        epilog="example: otlabel report runs/digits -o report.html",
        allow_abbrev=False,
    )
    parser.add_argument(
        "labels", metavar="RUN_OR_LABELS", help="folder of otlabel train, a file of labels, or result.npz of assign"
    )
    add = parser.add_argument
    add("-o", "--output", metavar="PAGE.html", type=Path, required=True, help="where the page goes")
    add("--scores", metavar="FILE", help="(N, K): proof, confidence, the price of balance; as for assign")
    add("--images", metavar="FILE.npy", help="(N, H, W), (N, C, H, W) or (N, H, W, C): examples of each class")
    add("--texts", metavar="FILE.txt", help="N lines, UTF-8: examples of each class")
    add("--features", metavar="FILE", help="(N, D): k-means to compare with")
    add("--truth", metavar="FILE", help="(N,) true classes, -1 where unknown: purity and agreement")
    add("--names", metavar="FILE.txt", help="K lines: names of the classes")
    add("--true-names", metavar="FILE.txt", help="a line a true class: their names")
    add("--head", type=int, default=0, help="which head's labels, where there are several (%(default)s)")
    add("--title", help="of the page")
    add("--seed", type=seed_below(1 << 32), default=0, help="of what is drawn at random (%(default)s)")
    add("--force", action="store_true", help="overwrite an existing page")
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    files = ("scores", "images", "texts", "features", "truth", "names", "true_names")
    inputs = {"RUN_OR_LABELS": arguments.labels, "the receipt": f"{arguments.labels}.json"}
    inputs |= {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in files}
    output = Output("--output", arguments.output, (".html", ".htm"))
    check_outputs([output], inputs, force=arguments.force)

    from otlabel.reporting.page import report

    options = (*files, "head", "title", "seed")
    report(arguments.labels, path=arguments.output, **{name: getattr(arguments, name) for name in options})
    print(f"Report written to {arguments.output}")
    return 0
