"""The command `otlabel`: assign to curate; train, transfer, cluster and report are in files of their own.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from otlabel import __version__
from otlabel.arguments import seed_below
from otlabel.clustering_command import add_cluster
from otlabel.errors import FileFormatError, InvalidMassError, OtlabelWarning, RankError
from otlabel.files import Output, check_apart, check_outputs, destination, replacing, save_array
from otlabel.interrupts import interruptible
from otlabel.reporting.command import add_report
from otlabel.text import one_line
from otlabel.training.command import add_train, add_transfer

if TYPE_CHECKING:
    import numpy as np

    from otlabel import Assignment
    from otlabel.labels_file import Receipt
    from otlabel.ranks.communicator import Communicator
    from otlabel.sources import Source

USAGE, FAILURE, BROKEN_PIPE = 2, 1, 141  # the last as a shell reports SIGPIPE
SIGNALLED, SIGNALS = 128, {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
MANY_CLASSES = 4  # times as many as there are samples: equal sizes would then be 0 for most, by their number alone
CHECKPOINT_SECONDS = 1.0  # between two writes of the potentials
CHECKPOINT = [("otlabel.checkpoint", "<f8")]  # the type of its numbers, by which a .npy file is known as one
REPEAT_SECONDS = 0.3  # after which an interrupt that was not heard is raised again

_SCORES_HELP = (
    "(N, K) matrix, higher is better: FILE.npy, FILE.npz::NAME, FILE.h5::/NAME, FILE.pt (plain tensors), "
    "or a quoted pattern for the parts of one matrix: 'part-*.h5::/NAME'"
)
_RANGE_HELP = "class sizes between these, shares (0.005 0.02) or counts (50 200)"
_MEMORY_HELP = "for keeping scores in memory (4e9, 4GB); default half of the free; beyond it they are streamed"
_MASS_HELP = "shares (sum 1) or counts (sum N): 10,20,30 or a file; default equal"
_OUTPUT_HELP = "FILE.npy (int64), or FILE.h5 with class sizes, potentials and a receipt"
_RECEIPT_HELP = "beside FILE.npy, write where its labels come from to FILE.npy.json"
_LABELS_ENDINGS = (".npy", ".h5", ".hdf5")
_BAD_PATHS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (failed), 2 (bad usage or input), 130 (interrupted), ..."""
    ended = [signal.SIGINT]
    with _one_line_warnings():
        try:
            with _heard_signals(ended):
                code = _run(argv)
                sys.stdout.flush()
        except BrokenPipeError:
            # The reader left, as `head` does; nothing more can reach it, nor may Python try at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except KeyboardInterrupt:
            return _complain(SIGNALS[ended[-1]], SIGNALLED + ended[-1])
        except (ImportError, RankError) as error:  # a package that is missing, or the module that a recipe names
            return _complain(error, FAILURE)
        except MemoryError as error:
            return _complain(f"not enough memory: {error}" if str(error) else "not enough memory", FAILURE)
        except OSError as error:
            return _complain(_told(error), USAGE if isinstance(error, _BAD_PATHS) else FAILURE)
        except ValueError as error:  # every OtlabelError about an input is one, and so is a bad argument
            return _complain(error, USAGE)
        except RuntimeError as error:
            # Torch's, told by name so as not to import torch; on a CPU it has none of its own.
            if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
                raise
            return _complain(f"not enough memory on the device: {error}", FAILURE)
    return code


@interruptible
def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse's way to end --help, --version and bad usage
        return stop.code if isinstance(stop.code, int) else USAGE
    command: Callable[[argparse.Namespace], int] | None = arguments.command
    if command is None:
        parser.print_help(sys.stderr)
        return USAGE
    if not arguments.is_shared:
        from otlabel.torchrun import check_alone

        check_alone()
    return command(arguments)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message} (see '{self.prog} --help')", USAGE))


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command; defaults are those of the functions behind them."""
    parser = _Parser(
        prog="otlabel",
        description="Label samples with exact class sizes and a proof of optimality.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"otlabel {__version__}")
    parser.set_defaults(command=None, is_shared=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_assign(commands)
    add_cluster(commands)
    _add_predict(commands)
    _add_certify(commands)
    _add_plan(commands)
    _add_doctor(commands)
    _add_demo(commands)
    _add_curate(commands)
    add_report(commands)
    add_train(commands)
    add_transfer(commands)
    return parser


def _add_assign(commands: Any) -> None:
    parser = commands.add_parser(
        "assign",
        help="label every sample, class sizes exactly as asked",
        description="Label every sample: the best total score under the class sizes asked for.",
        epilog="example: otlabel assign scores.npy -o labels.npy",
        allow_abbrev=False,
    )
    parser.add_argument("scores", metavar="SCORES", help=_SCORES_HELP)
    add = parser.add_argument
    add(
        "-o",
        "--output",
        metavar="LABELS",
        type=Path,
        required=True,
        help=_OUTPUT_HELP + "; under torchrun also FOLDER/",
    )
    add("--class-mass", metavar="MASS", help=_MASS_HELP)
    rules = parser.add_mutually_exclusive_group()
    rules.add_argument("--range", nargs=2, type=_bound, metavar=("LO", "HI"), help=_RANGE_HELP)
    rules.add_argument("--kl", type=_positive, metavar="RHO", help="prefer the masses, pay RHO x KL for leaving them")
    add("--abstain", type=_share, default=0.0, metavar="SHARE", help="leave those that fit worst unlabelled: -1")
    add("--epsilon", type=_positive, default=0.04, help="entropic regularisation, in units of the scores (%(default)s)")
    add("--tol", type=_positive, default=1e-2, help="L1 class-mass error of the entropic plan (%(default)s)")
    add("--rounding", choices=("exact", "argmax"), default="exact", help="exact sizes, or best class of the plan")
    add("--method", choices=("auto", "sinkhorn"), default="auto", help="auto: Newton; sinkhorn: plain iterations")
    add("--max-sweeps", type=_count, default=1000, metavar="N", help="passes over the scores at most (%(default)s)")
    add("--seed", type=seed_below(1 << 63), default=0, help="decides between equal choices (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda; auto: where the scores are (%(default)s)")
    add("--memory-limit", type=_byte_count, metavar="BYTES", help=_MEMORY_HELP)
    add("--potentials", metavar="OUT.npz", type=Path, help="save the whole result too, for certify and predict")
    add("--checkpoint", metavar="FILE.npy", type=Path, help="keep potentials there; go on from them if killed")
    add("--progress", action="store_true", help="show a progress bar on stderr")
    add("--receipt", action="store_true", help=_RECEIPT_HELP)
    add("--force", action="store_true", help="overwrite existing output")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=_assign, is_shared=True)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="label new samples by what assign has learned",
        description="Label new samples: the best class of scores + potentials, as balanced as they are like the old.",
        epilog="example: otlabel predict new.npy --potentials result.npz -o new-labels.npy",
        allow_abbrev=False,
    )
    parser.add_argument("scores", metavar="SCORES", help=_SCORES_HELP)
    add = parser.add_argument
    add(
        "--potentials",
        metavar="FILE",
        type=Path,
        required=True,
        help="what assign wrote: result.npz, labels.h5 or its folder",
    )
    add("-o", "--output", metavar="LABELS", type=Path, required=True, help=_OUTPUT_HELP)
    add("--receipt", action="store_true", help=_RECEIPT_HELP)
    add("--force", action="store_true", help="overwrite existing output")
    add("--json", action="store_true", help="print the class sizes as JSON")
    parser.set_defaults(command=_predict)


def _add_certify(commands: Any) -> None:
    parser = commands.add_parser(
        "certify",
        help="bound how far given labels are from the best possible",
        description="Bound how far any labels are from the best ones with the same class sizes.",
        epilog="example: otlabel certify scores.npy labels.npy",
        allow_abbrev=False,
    )
    parser.add_argument("scores", metavar="SCORES", help=_SCORES_HELP)
    parser.add_argument("labels", metavar="LABELS", help="(N,) whole numbers from 0 to K-1, in such a file too")
    parser.add_argument(
        "--potentials", metavar="FILE", type=Path, help="result.npz or labels.h5 of assign: its bound, no solving"
    )
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")
    parser.set_defaults(command=_certify)


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="what assign will take: passes, memory, time, disk",
        description="Tell what assign will take before it starts; reads only the beginning of the scores, or nothing "
        "where sizes are stated.",
        epilog="example: otlabel plan scores.npy -o labels.npy; or, with no file yet: "
        "otlabel plan --rows 1e9 --classes 1e5 --dim 256 --ranks 64 --device h200",
        allow_abbrev=False,
    )
    parser.add_argument("scores", metavar="SCORES", nargs="?", help=_SCORES_HELP)
    add = parser.add_argument
    add("--rows", type=_large_count, metavar="N", help="samples, in place of a file: 1e9")
    add("--classes", type=_large_count, metavar="K", help="classes, in place of a file")
    add("--dim", type=_large_count, metavar="D", help="scores are made of features so long by a linear head")
    add("--dtype", choices=("float16", "bfloat16", "float32", "float64"), help="in place of a file: default float16")
    add("--ranks", type=_large_count, default=1, metavar="R", help="processes that share the rows (%(default)s)")
    add("--device", choices=("cpu", "h200", "h100", "a100"), default="cpu", help="of each rank: processors like these, "
        "measured now, or a card by its data sheet (%(default)s)")  # fmt: skip
    add("--network", type=_byte_count, metavar="BYTES", help="a second and direction between ranks (25GB)")
    add("-o", "--output", metavar="LABELS", type=Path, help="see whether there is room for these labels")
    add("--rounding", choices=("exact", "argmax"), default="exact", help="as for assign (%(default)s)")
    add("--memory-limit", type=_byte_count, metavar="BYTES", help=_MEMORY_HELP)
    add("--json", action="store_true", help="print all numbers as JSON")
    parser.set_defaults(command=_plan)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="look at scores: usable? what will balance do? which epsilon?",
        description="Look at scores without labelling them: are they usable, what will balance change, which epsilon.",
        epilog="example: otlabel doctor scores.npy --plot sizes.png",
        allow_abbrev=False,
    )
    parser.add_argument("scores", metavar="SCORES", help=_SCORES_HELP)
    add = parser.add_argument
    add("--class-mass", metavar="MASS", help=_MASS_HELP)
    add("--plot", metavar="OUT.png", type=Path, help="draw class sizes before and after balance")
    add("--force", action="store_true", help="overwrite an existing picture")
    add("--json", action="store_true", help="print all numbers and findings as JSON")
    parser.set_defaults(command=_doctor)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="label real images; writes a picture and a page",
        description="Label scikit-learn's digits with and without balance; writes a picture and a page.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("otlabel-demo"), help="default: %(default)s"
    )
    parser.set_defaults(command=_demo)


def _add_curate(commands: Any) -> None:
    parser = commands.add_parser(
        "curate",
        help="choose samples that are spread evenly over all there is",
        description="Choose samples evenly over the clusters of their features; writes their indices, ascending.",
        epilog="example: otlabel curate features.h5::/features -n 50000 -o chosen.npy",
        allow_abbrev=False,
    )
    parser.add_argument("features", metavar="FEATURES", help="(N, D) matrix, in such files as scores may be in")
    add = parser.add_argument
    add("-n", type=_count, required=True, metavar="COUNT", help="samples to choose")
    add("-o", "--output", metavar="OUT.npy", type=Path, required=True, help="their indices (int64), ascending")
    add("--clusters", type=_count, metavar="K", help="default: sqrt(N), but no more than COUNT")
    add("--seed", type=seed_below(1 << 32), default=0, help="of k-means and of the draws (%(default)s)")
    add("--memory-limit", type=_byte_count, metavar="BYTES", help="for keeping features in memory (4e9, 4GB)")
    add("--force", action="store_true", help="overwrite existing output")
    parser.set_defaults(command=_curate)


def _assign(arguments: argparse.Namespace) -> int:
    """Label, then write: every path is tried before the work starts. Under torchrun, each process does its share."""
    from otlabel.torchrun import process_group

    with process_group(arguments.device) as group:
        return _assign_share(arguments, group)


def _assign_share(arguments: argparse.Namespace, group: Any) -> int:
    from otlabel.ranks.communicator import communicator_of

    with communicator_of(group) as communicator:
        in_parts = communicator.world_size > 1 and arguments.output.suffix.lower() not in _LABELS_ENDINGS
        if communicator.rank:
            warnings.simplefilter("ignore", OtlabelWarning)  # rank 0 says it
        else:
            _check_assign_outputs(arguments, communicator.world_size if in_parts else 0)
            if arguments.checkpoint is not None:
                _read_checkpoint(arguments.checkpoint)  # refuses what is none

        from otlabel import KL, Exact, Range, labels_file, sinkhorn_assign
        from otlabel.sources import open_scores, rows_between
        from otlabel.torchrun import own_device, rows_of_rank, write_part

        rule: Exact | KL | Range = Exact()
        if arguments.range is not None:
            rule = Range(*arguments.range)
        elif arguments.kl is not None:
            rule = KL(arguments.kl)

        class_mass = None if arguments.class_mass is None else read_class_mass(arguments.class_mass)
        scores = open_scores(arguments.scores)
        n_rows, n_classes = scores.shape
        _check_not_transposed(arguments, n_rows, n_classes)
        if communicator.rank == 0:
            _check_assign_space(arguments, scores)
        origin = labels_file.fingerprint(scores, arguments.scores)
        if communicator.world_size > 1:
            first, stop = rows_of_rank(scores, communicator)
            scores = rows_between(scores, first, stop)
            origin |= {"rows": [first, stop]} if in_parts else {}
        with _watched(arguments, communicator, n_classes) as (start, watch):
            result = sinkhorn_assign(
                scores,
                class_mass=class_mass,
                classes=rule,
                abstain=arguments.abstain,
                epsilon=arguments.epsilon,
                rounding=arguments.rounding,
                tol=arguments.tol,
                max_sweeps=arguments.max_sweeps,
                method=arguments.method,
                init=start,
                device=own_device(arguments.device),
                seed=arguments.seed,
                progress=watch,
                memory_limit=arguments.memory_limit,
                group=group,
            )
        names = ("class_mass", "range", "kl", "abstain", "epsilon", "rounding", "tol", "max_sweeps", "method", "device")
        receipt = labels_file.Receipt(
            input=origin,
            parameters={name: getattr(arguments, name) for name in names},
            versions=_versions(),
            value=result.value,
            bound=result.bound,
            gap=result.gap,
            rounding=result.rounding,
            seed=arguments.seed,
            status=result.status.value,
        )
        labels, counts, potentials = map(_as_numpy, (result.labels, result.counts, result.potentials))
        if in_parts:

            def write(path: Path, meet: Callable[[], None]) -> None:
                own = labels_file.sizes_of(labels, n_classes)
                labels_file.write_labels(path, labels, own, potentials, receipt, result.threshold, meet)

            write_part(arguments.output, communicator, write)
        else:
            (labels,) = communicator.allgather("labels", labels)
            if communicator.rank == 0:
                _write(arguments, labels, counts, potentials, result.threshold, receipt)
        if arguments.potentials is not None and communicator.rank == 0:
            replace(result, labels=labels).save(arguments.potentials)
        communicator.barrier("output")  # nobody is content before all has been written
    if communicator.rank == 0:
        if arguments.checkpoint is not None and _read_checkpoint(arguments.checkpoint) is not None:
            destination(arguments.checkpoint).unlink(missing_ok=True)
        _tell_assignment(arguments, result, n_rows)
    return 0


def _check_assign_outputs(arguments: argparse.Namespace, n_parts: int) -> None:
    """Every path that will be written to; labels go to so many parts, 0: to one file."""
    others = []
    if arguments.potentials is not None:
        others.append(Output("--potentials", arguments.potentials, (".npz",)))
    if arguments.checkpoint is not None:
        others.append(Output("--checkpoint", arguments.checkpoint, (".npy",), is_kept=True))
    inputs = {"SCORES": arguments.scores, "--class-mass": arguments.class_mass}
    if not n_parts:
        check_outputs([*_labels_outputs(arguments), *others], inputs, force=arguments.force)
        return
    from otlabel.torchrun import check_folder, parts_of

    parts = {f"the part of --output {path.name}": path for path in parts_of(arguments.output, n_parts)}
    check_apart(parts | {output.name: output.path for output in others}, inputs)
    check_folder(arguments.output, force=arguments.force)
    check_outputs(others, inputs, force=arguments.force)


def _check_not_transposed(arguments: argparse.Namespace, n_rows: int, n_classes: int) -> None:
    """Refuse far more classes than samples, unless somebody has said how many samples a class may take."""
    counts = arguments.range is not None and any(isinstance(bound, int) and bound for bound in arguments.range)
    if n_classes >= MANY_CLASSES * n_rows and arguments.class_mass is None and not counts:
        raise ValueError(
            f"{arguments.scores} holds {n_rows:,} samples (rows) and {n_classes:,} classes (columns); is the matrix "
            "transposed? then save np.ascontiguousarray(scores.T); if not, say what a class may take: --range 0 1, or "
            "--class-mass"
        )


def _check_assign_space(arguments: argparse.Namespace, scores: Source) -> None:
    from otlabel.labels_file import stored_bytes

    n_rows, n_classes = scores.shape
    size = stored_bytes(arguments.output, n_rows, n_classes)
    _check_space(arguments.output, size)
    if arguments.potentials is not None:
        disks = {_folder_of(path).stat().st_dev for path in (arguments.potentials, arguments.output)}
        shared = size if len(disks) == 1 else 0
        _check_space(arguments.potentials, 8 * n_rows + 32 * n_classes + shared)


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

    from otlabel.monitor import observing

    path, last_saved = arguments.checkpoint, -math.inf
    start = None if path is None else _read_checkpoint(path)
    if start is not None and len(start) != n_classes:
        raise ValueError(
            f"--checkpoint {path} is of a run with {len(start):,} classes, and {arguments.scores} has {n_classes:,}; "
            "give another name, or remove it"
        )
    with observing(arguments.progress and communicator.rank == 0) as bar:

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


def _tell_assignment(arguments: argparse.Namespace, result: Assignment, n_rows: int) -> None:
    if arguments.json:
        _print_json(
            labels=str(arguments.output),
            n_samples=n_rows,
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


def _predict(arguments: argparse.Namespace) -> int:
    inputs = {"SCORES": arguments.scores, "--potentials": arguments.potentials}
    check_outputs(_labels_outputs(arguments), inputs, force=arguments.force)

    import numpy as np

    from otlabel import labels_file
    from otlabel.result import predict
    from otlabel.sources import open_scores

    potentials, threshold = _read_potentials(arguments.potentials)
    scores = open_scores(arguments.scores)
    _check_space(arguments.output, labels_file.stored_bytes(arguments.output, *scores.shape))
    receipt = labels_file.Receipt(
        input=labels_file.fingerprint(scores, arguments.scores),
        parameters={"potentials": str(arguments.potentials)},
        versions=_versions(),
        status="predicted",
    )
    labels = _as_numpy(predict(scores, potentials, threshold))
    counts = np.bincount(labels[labels >= 0], minlength=len(potentials))
    _write(arguments, labels, counts, potentials, threshold, receipt)
    if arguments.json:
        _print_json(labels=str(arguments.output), n_samples=len(labels), n_classes=len(potentials), counts=counts)
    else:
        print(f"{len(labels):,} samples in {len(counts):,} classes of {counts.min():,} to {counts.max():,}")
        print(f"Labels written to {arguments.output}")
    return 0


def _certify(arguments: argparse.Namespace) -> int:
    from otlabel import certify
    from otlabel.labels_file import check_number
    from otlabel.sources import open_scores

    potentials = None if arguments.potentials is None else _read_potentials(arguments.potentials)[0]
    scores = open_scores(arguments.scores)
    check_number(arguments.labels, scores.shape[0])
    certificate = certify(scores, _read_labels(arguments.labels), potentials=potentials)
    if arguments.json:
        _print_json(
            value=certificate.value,
            bound=certificate.bound,
            gap=certificate.gap,
            relative_gap=certificate.relative_gap,
            proven=certificate.proven,
            counts=certificate.counts,
        )
    else:
        print(certificate.summary())
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    """Room that is missing is told, not a failure: assign is what refuses to start."""
    stated = arguments.rows, arguments.classes
    if (arguments.scores is None) == (None in stated) or (arguments.scores is not None and any(stated)):
        raise ValueError("plan needs SCORES, or both --rows and --classes in place of a file")
    if arguments.scores is not None and (arguments.dim or arguments.dtype):
        raise ValueError("--dim and --dtype are for sizes stated by --rows and --classes; a file says them itself")

    from otlabel import planning
    from otlabel.labels_file import stored_bytes
    from otlabel.sources import open_scores

    if arguments.output is not None:
        check_outputs([Output("--output", arguments.output, _LABELS_ENDINGS)], {"SCORES": arguments.scores}, force=True)
    shape, dtype, read_rate = stated, arguments.dtype or "float16", None
    on_card = arguments.device != "cpu"
    if arguments.scores is not None:
        scores = open_scores(arguments.scores)
        shape, dtype = scores.shape, scores.dtype
        read_rate = planning.measure_read_rate(scores)
    sweep_rate = None if on_card else planning.measure_sweep_rate(shape[1], dtype, arguments.dim)
    limits: dict[str, Any] = {"rounding": arguments.rounding, "memory_limit": arguments.memory_limit}
    limits |= {"sweep_rate": sweep_rate, "read_rate": read_rate}
    limits |= {"dim": arguments.dim, "card": planning.CARDS[arguments.device] if on_card else None}
    limits["network"] = arguments.network or planning.NETWORK
    found = planning.estimate(shape, dtype, arguments.ranks, **limits)
    disk: dict[str, Any] = {}
    if arguments.scores is not None or arguments.output is not None:
        output = Path("labels.npy") if arguments.output is None else arguments.output
        needed, free = stored_bytes(output, *shape), shutil.disk_usage(_folder_of(output)).free
        disk = {"output_bytes": needed, "disk_free": free, "disk_suffices": needed <= free}
    if arguments.json:
        _print_json(**found.to_dict(), **disk)
        return 0
    print(found.summary())
    if disk:
        room = "there is room" if disk["disk_suffices"] else "TOO LITTLE ROOM, write elsewhere"
        print(f"disk      labels take {needed:,} bytes of {free:,} free: {room}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    """Findings, however bad, are no failure; only what cannot be read is."""
    if arguments.plot is not None:
        inputs = {"SCORES": arguments.scores, "--class-mass": arguments.class_mass}
        check_outputs([Output("--plot", arguments.plot, (".png",))], inputs, force=arguments.force)

    from otlabel import doctor

    if arguments.plot is not None:
        doctor.require_matplotlib()
    class_mass = None if arguments.class_mass is None else read_class_mass(arguments.class_mass)
    diagnosis = doctor.diagnose(arguments.scores, class_mass=class_mass)
    if arguments.json:
        _print_json(**diagnosis.to_dict())
    else:
        print(diagnosis.summary())
    if arguments.plot is not None and diagnosis.argmax_sizes:  # without a usable row there is nothing to draw
        figure = doctor.draw(diagnosis)
        with replacing(arguments.plot) as file:
            figure.savefig(file, format="png", dpi=130)
        if not arguments.json:
            print(f"Picture written to {arguments.plot}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from otlabel.demo import run_demo

    run_demo(arguments.output)
    return 0


def _curate(arguments: argparse.Namespace) -> int:
    output = Output("--output", arguments.output, (".npy",))
    check_outputs([output], {"FEATURES": arguments.features}, force=arguments.force)

    import numpy as np

    from otlabel import curate

    chosen = curate(
        arguments.features,
        arguments.n,
        n_clusters=arguments.clusters,
        seed=arguments.seed,
        memory_limit=arguments.memory_limit,
    )
    with replacing(arguments.output) as file:
        np.save(file, _as_numpy(chosen.indices))
    print(chosen.summary())
    print(f"Indices written to {arguments.output}")
    return 0


def read_class_mass(text: str) -> np.ndarray:
    """Shares or counts from a comma list, a .npy file or a text file of numbers; whole numbers come back as int64."""
    if text.lower().endswith(".npy"):
        from otlabel.sources import load_array

        return load_array(text)
    try:
        return _numbers(text)
    except ValueError:
        if not Path(text).is_file():
            raise InvalidMassError(
                f"class mass {text!r} is neither a list of numbers such as 10,20,30 nor a file that exists"
            ) from None
    try:
        return _numbers(Path(text).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(
            f"{text} is no list of class masses: {error}; it should hold numbers parted by commas or line breaks"
        ) from None


def _numbers(text: str) -> np.ndarray:
    import numpy as np

    words = text.replace(",", " ").split()
    if not words:
        raise ValueError("it holds no number")
    try:
        return np.array([int(word) for word in words], dtype=np.int64)  # counts stay counts
    except (ValueError, OverflowError):  # shares, or counts beyond int64, which are refused where all are summed
        return np.array([float(word) for word in words])


def _read_potentials(path: Path) -> tuple[np.ndarray, float]:
    """Potentials, and the threshold of staying unlabelled, from a saved result, or an HDF5 file or folder of labels."""
    if path.suffix.lower() not in (".h5", ".hdf5") and not path.is_dir():
        from otlabel import Assignment

        saved = Assignment.load(path)
        return _as_numpy(saved.potentials), saved.threshold
    from otlabel.labels_file import read_labels

    stored = read_labels(path)
    assert stored.potentials is not None  # HDF5 always holds them
    return stored.potentials, stored.threshold


def _read_labels(text: str) -> np.ndarray:
    """Labels from a file or folder of our own, or any array in a file of the kinds that scores may be in."""
    from otlabel import labels_file

    if Path(text).is_dir() or (text.lower().endswith((".h5", ".hdf5")) and labels_file.holds_labels(text)):
        return labels_file.read_labels(text).labels
    if text.lower().endswith(".npy") and labels_file.receipt_path(Path(text)).exists():
        return labels_file.read_labels(text).labels  # which tells where labels are not those of the receipt
    from otlabel.sources import load_array

    return load_array(text)


def _write(
    arguments: argparse.Namespace,
    labels: np.ndarray,
    counts: np.ndarray,
    potentials: np.ndarray,
    threshold: float,
    receipt: Receipt,
) -> None:
    """Labels to the output; a receipt of .npy only where it was asked for."""
    from otlabel.labels_file import write_labels

    alone = arguments.output.suffix.lower() == ".npy" and not arguments.receipt
    write_labels(arguments.output, labels, counts, potentials, None if alone else receipt, threshold)


def _versions() -> dict[str, str]:
    """What the labels were made with."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("numpy", "numba", "scipy", "h5py", "torch")}
    return {"otlabel": __version__, "python": sys.version.split()[0]} | packages


def _labels_outputs(arguments: argparse.Namespace) -> list[Output]:
    """The file of labels, and what goes beside it."""
    outputs = [Output("--output", arguments.output, _LABELS_ENDINGS)]
    if arguments.receipt and arguments.output.suffix.lower() == ".npy":
        beside = arguments.output.with_name(f"{arguments.output.name}.json")
        outputs.append(Output("--receipt", beside, (".json",)))
    return outputs


def _folder_of(path: Path) -> Path:
    """Where the bytes of an output go: a link may lead to another disk."""
    return path if path.is_dir() else destination(path).parent


def _check_space(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(_folder_of(path)).free
    if free < n_bytes:
        raise OSError(f"{path} needs {n_bytes:,} bytes and its disk has {free:,} free; make room or write elsewhere")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _bound(text: str) -> int | float:
    """A size where it is a whole number, else a share."""
    if text.isdecimal():
        return int(text)
    return _share(text)


def _share(text: str) -> float:
    value = float(text) if re.fullmatch(r"\d*\.?\d+(e-?\d+)?", text.lower()) else math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def _byte_count(text: str) -> int:
    """A whole number, or one with a unit: 4e9, 4GB, 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 4e9, 4GB or 500MB")
    number = float(found[1]) * 1000 ** " kmgt".index(found[2] or " ")
    if number == math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is more bytes than there are")
    return int(number)


def _as_numpy(value: Any) -> np.ndarray:
    """The array itself, or that of a tensor on any device."""
    import numpy as np

    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _large_count(text: str) -> int:
    """The same, also as 1e9."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value < 1e15 and value == int(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1, such as 1000000 or 1e6")
    return int(value)


def _print_json(**values: Any) -> None:
    print(json.dumps({name: _plain(value) for name, value in values.items()}, indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, null for numbers that are not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(error: OSError) -> str:
    """Our own message, or the system's with the file it is about."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


class _Ended(KeyboardInterrupt):
    """An interrupt by a signal.

    A class of its own, for Python remembers a plain KeyboardInterrupt that met an exec() of text, as imports have them,
    and ends the process as if by SIGINT then, whatever the exit code.
    """


def _complain(message: object, code: int) -> int:
    with suppress(OSError):  # of a terminal that has hung up
        print(f"otlabel: error: {one_line(message)}", file=sys.stderr)
    return code


@contextmanager
def _heard_signals(ended: list[signal.Signals]) -> Iterator[None]:
    """End the command by a KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP, so that it clears up; tell which it was.

    It is repeated until the command ends: one that meets a callback from compiled code is lost there.
    """
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    # A program that runs this command may deal with them in its own way, and nohup ignores some.
    heard = [number for number in SIGNALS if usual[number] in (signal.SIG_DFL, signal.default_int_handler)]
    if not heard or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: Any) -> None:
        if number != signal.SIGALRM:
            ended.append(signal.Signals(number))
        signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS)
        raise _Ended

    def tell(lost: Any) -> None:
        if lost.exc_type is not _Ended:
            hook(lost)

    hook, alarm = sys.unraisablehook, signal.signal(signal.SIGALRM, end)
    sys.unraisablehook = tell
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in heard:
            signal.signal(number, usual[number])
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show warnings as lines of this command, without the place in the library that gave them."""

    def show(message: Warning | str, *_: Any) -> None:
        print(f"otlabel: warning: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        # A file mapped into memory is read-only, which torch takes for a danger; scores are never written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        warnings.simplefilter("always", OtlabelWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # it is called by position, never by name
        yield
