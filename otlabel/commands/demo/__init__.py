"""`otlabel demo`: a network labels real images for itself, and is told honestly apart from k-means.

The data are scikit-learn's scanned digits. Their true labels are used to judge the result, never to make it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.commands import options
from otlabel.errors import MissingPackageError
from otlabel.progress import progress
from otlabel.storage.atomic import replacing, save_array

if TYPE_CHECKING:
    from otlabel.commands.demo.runs import Findings

FILES = ("demo.png", "labels.npy", "report.html", "summary.md")
PACKAGES = {"sklearn": "scikit-learn"}  # by the name of the module


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "demo",
        run,
        help="label real images; writes a picture and a page",
        description="Label scikit-learn's digits with and without balance; writes a picture and a page.",
    )
    options.progress(parser)
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("otlabel-demo"), help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run it into a folder."""
    run_demo(arguments.output, watched=options.is_watched(arguments))
    return 0


def run_demo(folder: Path, *, echo: Callable[[str], None] = print, watched: bool = False) -> Findings:
    """Run it all, tell about it through `echo` and write the picture, the page and the labels to `folder`."""
    started = time.perf_counter()
    with progress("starting", shown=watched):  # torch and matplotlib take a while
        from otlabel import report
        from otlabel.commands.demo.picture import draw
        from otlabel.commands.demo.runs import compare
        from otlabel.commands.demo.words import conclusion, page, table, what_is_done

        _check_folder(folder)
        _check_packages()
    echo(what_is_done())
    findings = compare(watched=watched)
    echo(f"\n{table(findings)}\n\n{conclusion(findings)}")
    folder.mkdir(parents=True, exist_ok=True)
    figure, shown = draw(findings), findings.shown
    with replacing(folder / "demo.png") as file:
        figure.savefig(file, format="png", dpi=130)
    save_array(folder / "labels.npy", shown.labels)
    report(
        shown.labels,
        scores=shown.scores,
        images=findings.images,
        truth=findings.truth,
        title="The labels of the otlabel demo",
        path=folder / "report.html",
    )
    with replacing(folder / "summary.md") as file:
        file.write(page(findings).encode())
    echo(f"\nWritten to {folder}: {', '.join(FILES)}.\nAll of this took {time.perf_counter() - started:.1f} s.")
    return findings


def _check_packages() -> None:
    """Asked for now, not after the work."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(PACKAGES.get(error.name or "", error.name or ""), "report") from error


def _check_folder(folder: Path) -> None:
    """A folder that is new, empty or an earlier demo's; anything else might hold files of the user's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder with -o")
    from otlabel.commands.demo.words import TITLE

    taken = [name for name in FILES if (folder / name).exists()]
    summary = folder / "summary.md"
    if taken and not (summary.is_file() and summary.read_text(encoding="utf-8", errors="replace").startswith(TITLE)):
        raise FileExistsError(f"{folder} holds {', '.join(taken)}, not of an earlier demo; name another folder with -o")
