"""`otlabel predict`: label new samples by what assign has learned."""

from __future__ import annotations

import argparse
from typing import Any

from otlabel.commands import options
from otlabel.commands.labels import check_space, labels_outputs, read_potentials, versions, write
from otlabel.commands.printing import print_json
from otlabel.storage.outputs import check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "predict",
        run,
        help="label new samples by what assign has learned",
        description="Label new samples: the best class of scores + potentials, as balanced as they are like the old.",
        epilog="example: otlabel predict new.npy --potentials result.npz -o new-labels.npy",
    )
    options.scores(parser)
    potentials_help = "what assign wrote: result.npz, labels.h5 or its folder"
    parser.add_argument("--potentials", metavar="FILE", type=options.path, required=True, help=potentials_help)
    options.output(parser, "LABELS", options.OUTPUT_HELP)
    options.receipt(parser)
    options.progress(parser)
    options.force(parser)
    options.as_json(parser, "the class sizes")


def run(arguments: argparse.Namespace) -> int:
    """Label, then write: every path is tried before the work starts."""
    inputs = {"SCORES": arguments.scores, "--potentials": arguments.potentials}
    check_outputs(labels_outputs(arguments), inputs, force=arguments.force)

    from otlabel.result import predict
    from otlabel.sources import as_array, open_scores
    from otlabel.storage.label_files import Receipt, StoredLabels, fingerprint, sizes_of, stored_bytes

    potentials, threshold, several = read_potentials(arguments.potentials)
    scores = open_scores(arguments.scores)
    check_space(arguments.output, stored_bytes(arguments.output, several * scores.shape[0], scores.shape[1]))
    receipt = Receipt(
        input=fingerprint(scores, arguments.scores),
        parameters={"potentials": str(arguments.potentials)},
        versions=versions(),
        status="predicted",
    )
    with options.doing(arguments, "labelling by the potentials"):
        labels = as_array(predict(scores, potentials, threshold, labels_per_sample=several))
    counts = sizes_of(labels, len(potentials))
    write(arguments, StoredLabels(labels, counts, potentials, receipt, threshold))
    if arguments.json:
        print_json(labels=str(arguments.output), n_samples=len(labels), n_classes=len(potentials), counts=counts)
    else:
        each = "" if several == 1 else f"{several} each of "
        print(f"{len(labels):,} samples in {each}{len(counts):,} classes of {counts.min():,} to {counts.max():,}")
        print(f"Labels written to {arguments.output}")
    return 0
