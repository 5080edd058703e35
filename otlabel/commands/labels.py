"""Labels, potentials and class masses as commands read and write them: files tried first, and room enough."""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from otlabel import __version__
from otlabel.errors import FileFormatError, InvalidMassError
from otlabel.storage.atomic import destination
from otlabel.storage.outputs import LABEL_ENDINGS, Output
from otlabel.text import local_path

if TYPE_CHECKING:
    import numpy as np

    from otlabel.solver.outcome import Certificate
    from otlabel.storage.label_files import StoredLabels


def read_class_mass(text: str | None) -> np.ndarray | None:
    """Shares or counts from a comma list, a file of an array or a text of numbers; whole numbers come back as int64."""
    if text is None:
        return None
    from otlabel.sources.paths import ENDINGS, load_array

    text = local_path(text)
    if text.partition("::")[0].lower().endswith(tuple(one for one in ENDINGS if one != ".csv")):
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


def read_potentials(path: Path) -> tuple[np.ndarray, float, int]:
    """Potentials, the threshold of staying unlabelled, and how many labels a sample has.

    From a saved result, or an HDF5 file or folder of labels.
    """
    if path.suffix.lower() not in (".h5", ".hdf5") and not path.is_dir():
        from otlabel import Assignment
        from otlabel.sources import as_array

        saved = Assignment.load(path)
        return as_array(saved.potentials), saved.threshold, saved.labels_per_sample
    from otlabel.storage.label_files import read_labels

    stored = read_labels(path)
    assert stored.potentials is not None  # HDF5 always holds them
    return stored.potentials, stored.threshold, stored.labels_per_sample


def write(arguments: argparse.Namespace, stored: StoredLabels) -> None:
    """Labels to the output; a receipt of .npy only where it was asked for."""
    from dataclasses import replace

    from otlabel.storage.label_files import write_labels

    alone = arguments.output.suffix.lower() == ".npy" and not arguments.receipt
    write_labels(arguments.output, replace(stored, receipt=None) if alone else stored)


def stated(proof: Certificate) -> dict[str, float]:
    """What a receipt says of value and bound."""
    return {name: getattr(proof, name) for name in ("value", "bound", "gap", "rounding")}


def versions() -> dict[str, str]:
    """What the labels were made with."""
    from importlib.metadata import PackageNotFoundError, version

    made_with = {"otlabel": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "numba", "scipy", "h5py", "torch"):
        with suppress(PackageNotFoundError):  # solves need no torch
            made_with[name] = version(name)
    return made_with


def labels_outputs(arguments: argparse.Namespace) -> list[Output]:
    """The file of labels, and what goes beside it."""
    outputs = [Output("--output", arguments.output, LABEL_ENDINGS)]
    if arguments.receipt and arguments.output.suffix.lower() == ".npy":
        beside = arguments.output.with_name(f"{arguments.output.name}.json")
        outputs.append(Output("--receipt", beside, (".json",)))
    return outputs


def folder_of(path: Path) -> Path:
    """Where the bytes of an output go: a link may lead to another disk."""
    return path if path.is_dir() else destination(path).parent


def check_space(path: Path, n_bytes: int) -> None:
    """Refuse to start where there is too little room."""
    free = shutil.disk_usage(folder_of(path)).free
    if free < n_bytes:
        raise OSError(f"{path} needs {n_bytes:,} bytes and its disk has {free:,} free; make room or write elsewhere")
