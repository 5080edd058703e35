"""`otlabel curate`: choose samples that are spread evenly over all there is."""

from __future__ import annotations

import argparse
from typing import Any

from otlabel.commands import options
from otlabel.storage.atomic import replacing
from otlabel.storage.outputs import Output, check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "curate",
        run,
        help="choose samples that are spread evenly over all there is",
        description="Choose samples evenly over the clusters of their features; writes their indices, ascending.",
        epilog="example: otlabel curate features.h5::/features -n 50000 -o chosen.npy",
    )
    options.features(parser)
    parser.add_argument("-n", type=options.count, required=True, metavar="COUNT", help="samples to choose")
    options.output(parser, "OUT.npy", "their indices (int64), ascending")
    parser.add_argument("--clusters", type=options.count, metavar="K", help="default: sqrt(N), but no more than COUNT")
    add = parser.add_argument
    add("--levels", type=options.count, nargs="+", metavar="K", help="instead: clusters, groups of these, ...")
    again = "cluster so often anew from as many samples of each cluster; 5 to 10 where density differs (%(default)s)"
    add("--resample", type=options.whole_below(1000), default=0, metavar="TIMES", help=again)
    options.seed(parser, "of k-means and of the draws")
    options.memory_limit(parser, "for keeping features in memory (4e9, 4GB)")
    options.progress(parser)
    options.force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Choose, then write."""
    output = Output("--output", arguments.output, (".npy",))
    check_outputs([output], {"FEATURES": arguments.features}, force=arguments.force)

    import numpy as np

    from otlabel import curate
    from otlabel.sources import as_array

    with options.doing(arguments, "choosing samples, spread evenly over clusters"):
        chosen = curate(
            arguments.features,
            arguments.n,
            n_clusters=arguments.clusters,
            levels=arguments.levels,
            resample=arguments.resample,
            seed=arguments.seed,
            memory_limit=arguments.memory_limit,
        )
    with replacing(arguments.output) as file:
        np.save(file, as_array(chosen.indices))
    print(chosen.summary())
    print(f"Indices written to {arguments.output}")
    return 0
