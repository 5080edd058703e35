"""`otlabel assign`: label every sample, class sizes exactly as asked."""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.commands import options
from otlabel.commands.labels import check_space, folder_of, labels_outputs, read_class_mass, stated, versions, write
from otlabel.commands.printing import print_json
from otlabel.errors import FileFormatError, OtlabelWarning
from otlabel.storage.atomic import destination, save_array
from otlabel.storage.outputs import LABEL_ENDINGS, Output, check_apart, check_outputs

if TYPE_CHECKING:
    import numpy as np

    from otlabel import KL, Assignment, Exact, Range
    from otlabel.ranks.communicator import Communicator
    from otlabel.sources import Opened
    from otlabel.storage.label_files import Receipt

MANY_CLASSES = 4  # times as many as there are samples: equal sizes would then be 0 for most, by their number alone
CHECKPOINT_SECONDS = 1.0  # between two writes of the potentials
CHECKPOINT = [("otlabel.checkpoint", "<f8")]  # the type of its numbers, by which a .npy file is known as one
SETTINGS = (
    "abstain",
    "labels_per_sample",
    "remainder",
    "epsilon",
    "rounding",
    "tol",
    "max_sweeps",
    "method",
)  # that `sinkhorn_assign` has by these names


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "assign",
        run,
        is_shared=True,
        help="label every sample, class sizes exactly as asked",
        description="Label every sample: the best total score under the class sizes asked for.",
        epilog="example: otlabel assign scores.npy -o labels.npy",
    )
    options.scores(parser)
    options.output(parser, "LABELS", options.OUTPUT_HELP + "; under torchrun also FOLDER/")
    options.class_mass(parser)
    rules, add = parser.add_mutually_exclusive_group(), parser.add_argument
    positive, count = options.positive, options.count
    range_help = "class sizes between these, shares (0.005 0.02) or counts (50 200)"
    rules.add_argument("--range", nargs=2, type=options.bound, metavar=("LO", "HI"), help=range_help)
    rules.add_argument("--kl", type=positive, metavar="RHO", help="prefer the masses, pay RHO x KL for leaving them")
    add("--abstain", type=options.share, default=0.0, metavar="SHARE", help="leave those that fit worst unlabelled: -1")
    several_help = "different classes for each sample (%(default)s)"
    add("--labels-per-sample", type=count, default=1, metavar="K", help=several_help)
    remainder_help = "classes that get one sample more where shares are no whole sizes: best (default) or first"
    add("--remainder", choices=("best", "first"), default="best", help=remainder_help)
    add(
        "--epsilon",
        type=positive,
        default=0.04,
        help="entropic regularisation, in units of the scores (%(default)s)",
    )
    add("--tol", type=positive, default=1e-2, help="L1 class-mass error of the entropic plan (%(default)s)")
    options.rounding(parser, "exact sizes, or best class of the plan")
    add("--method", choices=("auto", "sinkhorn"), default="auto", help="auto: Newton; sinkhorn: plain iterations")
    add(
        "--max-sweeps",
        type=count,
        default=1000,
        metavar="N",
        help="passes over the scores at most (%(default)s)",
    )
    options.seed(parser, "decides between equal choices", 1 << 63)
    add("--device", default="auto", help="auto, cpu or cuda; auto: where the scores are (%(default)s)")
    options.memory_limit(parser)
    add("--potentials", metavar="OUT.npz", type=options.path, help="save the whole result too, for certify and predict")
    add("--checkpoint", metavar="FILE.npy", type=options.path, help="keep potentials there; go on from them if killed")
    options.progress(parser)
    options.receipt(parser)
    options.force(parser)
    options.as_json(parser, "the result")


def run(arguments: argparse.Namespace) -> int:
    """Label, then write: every path is tried before the work starts. Under torchrun, each process does its share."""
    from otlabel.commands.torchrun import process_group
    from otlabel.ranks.communicator import communicator_of

    with process_group(arguments.device) as group, communicator_of(group) as communicator:
        in_parts = communicator.world_size > 1 and arguments.output.suffix.lower() not in LABEL_ENDINGS
        if communicator.rank:
            warnings.simplefilter("ignore", OtlabelWarning)  # rank 0 says it
        else:
            _check_outputs(arguments, communicator.world_size if in_parts else 0)
            if arguments.checkpoint is not None:
                _read_checkpoint(arguments.checkpoint)  # refuses what is none
        result, receipt = _labelled(arguments, communicator, group, in_parts=in_parts)
        _write_all(arguments, communicator, result, receipt, in_parts=in_parts)
        communicator.barrier("output")  # nobody is content before all has been written
    if communicator.rank == 0:
        if arguments.checkpoint is not None and _read_checkpoint(arguments.checkpoint) is not None:
            destination(arguments.checkpoint).unlink(missing_ok=True)
        _tell(arguments, result)
    return 0


def _labelled(
    arguments: argparse.Namespace, communicator: Communicator, group: Any, *, in_parts: bool
) -> tuple[Assignment, Receipt]:
    """The labels of the rows of this process, and where they come from."""
    from otlabel import sinkhorn_assign
    from otlabel.commands.torchrun import own_device, rows_of_rank
    from otlabel.sources import open_scores, rows_between
    from otlabel.storage.label_files import Receipt, fingerprint

    rule, class_mass = _rule(arguments), read_class_mass(arguments.class_mass)
    scores = open_scores(arguments.scores)
    n_rows, n_classes = scores.shape
    _check_not_transposed(arguments, n_rows, n_classes)
    if communicator.rank == 0:
        _check_space(arguments, scores)
    origin = fingerprint(scores, arguments.scores)
    if communicator.world_size > 1:
        first, stop = rows_of_rank(scores, communicator)
        scores = rows_between(scores, first, stop)
        origin |= {"rows": [first, stop]} if in_parts else {}
    with _watched(arguments, communicator, n_classes) as (start, watch):
        result = sinkhorn_assign(
            scores,
            class_mass=class_mass,
            classes=rule,
            init=start,
            device=own_device(arguments.device),
            seed=arguments.seed,
            progress=watch,
            memory_limit=arguments.memory_limit,
            group=group,
            **{name: getattr(arguments, name) for name in SETTINGS},
        )
    parameters = {name: getattr(arguments, name) for name in ("class_mass", "range", "kl", *SETTINGS, "device")}
    told = {"seed": arguments.seed, "status": result.status.value} | stated(result.proof)
    return result, Receipt(origin, parameters, versions(), **told)


def _rule(arguments: argparse.Namespace) -> Exact | KL | Range:
    from otlabel import KL, Exact, Range

    if arguments.range is not None:
        return Range(*arguments.range)
    return Exact() if arguments.kl is None else KL(arguments.kl)


def _write_all(
    arguments: argparse.Namespace, communicator: Communicator, result: Assignment, receipt: Receipt, *, in_parts: bool
) -> None:
    """Labels, in a part of each process or all in one file, and the whole result where it is asked for."""
    from dataclasses import replace

    from otlabel.commands.torchrun import write_part
    from otlabel.sources import as_array
    from otlabel.storage.label_files import StoredLabels, sizes_of, write_labels

    labels, counts, potentials = map(as_array, (result.labels, result.counts, result.potentials))
    stored = StoredLabels(labels, counts, potentials, receipt, result.threshold)
    if in_parts:

        def write_own(path: Path, meet: Callable[[], None]) -> None:
            write_labels(path, replace(stored, counts=sizes_of(labels, len(counts))), meet)

        write_part(arguments.output, communicator, write_own)
    else:
        (labels,) = communicator.allgather("labels", labels)
        if communicator.rank == 0:
            write(arguments, replace(stored, labels=labels))
    if arguments.potentials is not None and communicator.rank == 0:
        replace(result, labels=labels).save(arguments.potentials)


def _check_outputs(arguments: argparse.Namespace, n_parts: int) -> None:
    """Every path that will be written to; labels go to so many parts, 0: to one file."""
    others = []
    if arguments.potentials is not None:
        others.append(Output("--potentials", arguments.potentials, (".npz",)))
    if arguments.checkpoint is not None:
        others.append(Output("--checkpoint", arguments.checkpoint, (".npy",), is_kept=True))
    inputs = {"SCORES": arguments.scores, "--class-mass": arguments.class_mass}
    if not n_parts:
        if not arguments.output.suffix:
            raise ValueError(
                f"--output {arguments.output} has no ending: name a file, {arguments.output}.npy or "
                f"{arguments.output}.h5; a folder of parts is written by several processes (torchrun, srun)"
            )
        check_outputs([*labels_outputs(arguments), *others], inputs, force=arguments.force)
        return
    from otlabel.commands.torchrun import check_folder, parts_of

    parts = {f"the part of --output {path.name}": path for path in parts_of(arguments.output, n_parts)}
    check_apart(parts | {output.name: output.path for output in others}, inputs)
    check_folder(arguments.output, force=arguments.force)
    check_outputs(others, inputs, force=arguments.force)


def _check_not_transposed(arguments: argparse.Namespace, n_rows: int, n_classes: int) -> None:
    """Refuse far more classes than samples, unless somebody has said how many samples a class may take."""
    counts = arguments.range is not None and any(isinstance(bound, int) and bound for bound in arguments.range)
    n_labels = arguments.labels_per_sample * n_rows
    if n_classes >= MANY_CLASSES * n_labels and arguments.class_mass is None and not counts:
        raise ValueError(
            f"{arguments.scores} holds {n_rows:,} samples (rows) and {n_classes:,} classes (columns); is the matrix "
            "transposed? then save np.ascontiguousarray(scores.T); if not, say what a class may take: --range 0 1, or "
            "--class-mass"
        )


def _check_space(arguments: argparse.Namespace, scores: Opened) -> None:
    from otlabel.storage.label_files import stored_bytes

    n_labels, n_classes = arguments.labels_per_sample * scores.shape[0], scores.shape[1]
    size = stored_bytes(arguments.output, n_labels, n_classes)
    check_space(arguments.output, size)
    if arguments.potentials is not None:
        disks = {folder_of(path).stat().st_dev for path in (arguments.potentials, arguments.output)}
        shared = size if len(disks) == 1 else 0
        check_space(arguments.potentials, 8 * n_labels + 32 * n_classes + shared)


def _read_checkpoint(path: Path) -> np.ndarray | None:
    """The potentials that are kept there; None where nothing is.

    Raises:
        FileExistsError: a file that `_watched` did not write, which is neither read nor overwritten nor removed.
    """
    from otlabel.sources import load_array

    if not path.is_file():
        return None  # a folder, a pipe: told by whoever tries to write there
    kept = None
    with suppress(FileFormatError):
        kept = load_array(str(path))
    if kept is None or kept.dtype != CHECKPOINT or kept.ndim != 1:
        raise FileExistsError(
            f"--checkpoint {path} is there already and is no checkpoint of otlabel, so that it is left as it is; give "
            "another name"
        )
    return kept[CHECKPOINT[0][0]]


@contextmanager
def _watched(
    arguments: argparse.Namespace, communicator: Communicator, n_classes: int
) -> Iterator[tuple[np.ndarray | None, Callable[..., None]]]:
    """Where to start from, and who is told of each pass: a bar, and a checkpoint that is kept."""
    import numpy as np

    from otlabel.planning.model import PASSES
    from otlabel.solver.monitor import observing

    path, last_saved = arguments.checkpoint, -math.inf
    start = None if path is None else _read_checkpoint(path)
    if start is not None and len(start) != n_classes:
        raise ValueError(
            f"--checkpoint {path} is of a run with {len(start):,} classes, and {arguments.scores} has {n_classes:,}; "
            "give another name, or remove it"
        )
    shown, usual = options.is_watched(arguments) and communicator.rank == 0, PASSES[arguments.rounding][0]
    with observing(shown, usual, options.WORTH_SHOWING) as bar:

        def watch(record: dict[str, Any]) -> None:
            nonlocal last_saved
            if bar is not None:
                bar(record)
            potentials = record.get("potentials")
            if path is not None and communicator.rank == 0 and potentials is not None:
                now = time.monotonic()
                if now - last_saved > CHECKPOINT_SECONDS:
                    last_saved = now
                    save_array(path, np.asarray(potentials, np.float64).view(CHECKPOINT))

        yield start, watch


def _tell(arguments: argparse.Namespace, result: Assignment) -> None:
    if arguments.json:
        print_json(
            labels=str(arguments.output),
            n_samples=result.n_samples,
            n_classes=len(result.counts),
            counts=result.counts,
            value=result.value,
            bound=result.bound,
            gap=result.gap,
            proven=result.proof.proven,
            epsilon=result.epsilon,
            marginal_error=result.marginal_error,
            status=result.status.value,
            n_sweeps=result.n_sweeps,
            seconds=result.seconds,
        )
    else:
        print(result.summary())
        print(f"Labels written to {arguments.output}")
        if arguments.potentials is not None:
            print(f"Potentials written to {arguments.potentials}")
