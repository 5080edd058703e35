"""`otlabel certify`: bound how far any labels are from the best ones with the same class sizes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.commands import options
from otlabel.commands.labels import read_potentials
from otlabel.commands.printing import print_json
from otlabel.text import local_path

if TYPE_CHECKING:
    import numpy as np


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "certify",
        run,
        help="bound how far given labels are from the best possible",
        description="Bound how far any labels are from the best ones with the same class sizes.",
        epilog="example: otlabel certify scores.npy labels.npy",
    )
    options.scores(parser)
    parser.add_argument("labels", metavar="LABELS", help="(N,) or (N, k) whole numbers from 0 to K-1, in a file too")
    parser.add_argument(
        "--potentials",
        metavar="FILE",
        type=options.path,
        help="result.npz or labels.h5 of assign: its bound, no solving",
    )
    options.progress(parser)
    options.as_json(parser, "the certificate")


def run(arguments: argparse.Namespace) -> int:
    """Certify, and tell."""
    from otlabel import certify
    from otlabel.sources import open_scores
    from otlabel.storage.label_files import check_number

    potentials = None if arguments.potentials is None else read_potentials(arguments.potentials)[0]
    scores = open_scores(arguments.scores)
    check_number(arguments.labels, scores.shape[0])
    with options.doing(arguments, "proving: the best labels of these sizes" if potentials is None else "proving"):
        certificate = certify(scores, _read_labels(arguments.labels), potentials=potentials)
    if arguments.json:
        names = ("value", "bound", "gap", "relative_gap", "proven", "counts")
        print_json(**{name: getattr(certificate, name) for name in names})
    else:
        print(certificate.summary())
    return 0


def _read_labels(text: str) -> np.ndarray:
    """Labels from a file or folder of our own, or any array in a file of the kinds that scores may be in."""
    from otlabel.storage import label_files

    text = local_path(text)
    if (Path(text).is_dir() and not text.endswith(".zarr")) or (
        text.lower().endswith((".h5", ".hdf5")) and label_files.holds_labels(text)
    ):
        return label_files.read_labels(text).labels
    if text.lower().endswith(".npy") and label_files.receipt_path(Path(text)).exists():
        return label_files.read_labels(text).labels  # which tells where labels are not those of the receipt
    from otlabel.sources import load_array

    return load_array(text)
