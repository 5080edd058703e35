"""`otlabel cluster`: k-means with exact sizes, of features that have no scores."""

from __future__ import annotations

import argparse
import time
import warnings
from typing import TYPE_CHECKING, Any

from otlabel import __version__
from otlabel.commands import options
from otlabel.commands.labels import stated
from otlabel.storage.atomic import replacing
from otlabel.storage.outputs import LABEL_ENDINGS, Output, check_outputs

if TYPE_CHECKING:
    from otlabel.ranks.communicator import Communicator
    from otlabel.solver.outcome import Certificate
    from otlabel.storage.label_files import Receipt

_SETTINGS = ("clusters", "size_min", "size_max", "metric", "starts", "max_iter")
_SCORES = {"euclidean": "minus squared distances to centres", "cosine": "cosines with the centres, less 1"}


def add(commands: Any) -> None:
    """The command and its arguments; defaults are those of `BalancedKMeans`."""
    parser = options.add_command(
        commands,
        "cluster",
        run,
        is_shared=True,
        help="label features that have no scores: k-means with exact sizes",
        description="Label features by k-means whose clusters have equal sizes, or sizes within bounds, exactly.",
        epilog="example: otlabel cluster features.npy -k 100 -o labels.h5",
    )
    options.features(parser)
    add = parser.add_argument
    add("-k", "--clusters", type=int, required=True, metavar="K", help="number of clusters")
    options.output(parser, "LABELS", "FILE.npy (int64), or FILE.h5 with cluster sizes and the proof that report shows")
    add("--size-min", type=int, metavar="N", help="fewest samples of a cluster; with no bound, all are of one size")
    add("--size-max", type=int, metavar="N", help="most samples of a cluster")
    add("--metric", choices=("euclidean", "cosine"), default="euclidean", help="default: %(default)s")
    add("--starts", type=int, default=1, metavar="N", help="start so often, the best wins (%(default)s)")
    add("--max-iter", type=int, default=300, metavar="N", help="iterations of a start, at most (%(default)s)")
    options.seed(parser, "of the first centres, and between equal choices")
    add("--centres", metavar="OUT.npy", type=options.path, help="save the centres too, (K, D)")
    options.memory_limit(parser, "for keeping features in memory (4e9, 4GB)")
    options.progress(parser)
    options.force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Label, then write: every path is tried before the work starts. Under torchrun, each process does its share."""
    from otlabel.commands.torchrun import process_group
    from otlabel.ranks.communicator import communicator_of

    with process_group("auto") as group, communicator_of(group) as communicator:
        if communicator.rank:
            warnings.simplefilter("ignore")  # rank 0 says it
        else:
            _check_outputs(arguments)
        _cluster_share(arguments, communicator, group)
        communicator.barrier("output")  # nobody is content before all has been written
    return 0


def _cluster_share(arguments: argparse.Namespace, communicator: Communicator, group: Any) -> None:
    import numpy as np

    from otlabel.cluster import BalancedKMeans
    from otlabel.commands.torchrun import rows_of_rank
    from otlabel.sources import open_scores, rows_between
    from otlabel.storage.label_files import StoredLabels, write_labels

    features = open_scores(arguments.features)
    if communicator.world_size > 1:
        features = rows_between(features, *rows_of_rank(features, communicator))
    started = time.perf_counter()
    model = BalancedKMeans(
        arguments.clusters,
        size_min=arguments.size_min,
        size_max=arguments.size_max,
        metric=arguments.metric,
        n_init=arguments.starts,
        max_iter=arguments.max_iter,
        random_state=arguments.seed,
        memory_limit=arguments.memory_limit,
    )
    model.verbose = not communicator.rank and options.is_watched(arguments)
    model.fit(features, group=group)
    seconds, sizes = time.perf_counter() - started, np.asarray(model.sizes_)
    (labels,) = communicator.allgather("labels", np.asarray(model.labels_))
    if communicator.rank:
        return
    proof = model.proof_
    alone = arguments.output.suffix.lower() == ".npy"
    receipt = None if alone else _receipt(arguments, proof)
    write_labels(arguments.output, StoredLabels(labels, sizes, model.potentials_, receipt))
    if arguments.centres is not None:
        with replacing(arguments.centres) as file:
            np.save(file, model.cluster_centers_)
    shape = f"{len(labels):,} x {model.n_features_in_:,}"
    print(proof.summary())
    print(f"scores    {_SCORES[arguments.metric]}; the bound is for these centres")
    print(f"work      {model.n_iter_:,} iterations over {shape} features, {seconds:.2f} s")
    print(f"Labels written to {arguments.output}")
    if arguments.centres is not None:
        print(f"Centres written to {arguments.centres}")


def _check_outputs(arguments: argparse.Namespace) -> None:
    outputs = [Output("--output", arguments.output, LABEL_ENDINGS)]
    if arguments.centres is not None:
        outputs.append(Output("--centres", arguments.centres, (".npy",)))
    check_outputs(outputs, {"FEATURES": arguments.features}, force=arguments.force)


def _receipt(arguments: argparse.Namespace, proof: Certificate) -> Receipt:
    import numpy as np

    from otlabel.sources import open_scores
    from otlabel.storage.label_files import CLUSTERED, Receipt, fingerprint

    source = fingerprint(open_scores(arguments.features), arguments.features)
    parameters = {name: getattr(arguments, name) for name in _SETTINGS}
    made_with = {"otlabel": __version__, "numpy": np.__version__}
    return Receipt(source, parameters, made_with, seed=arguments.seed, status=CLUSTERED, **stated(proof))
