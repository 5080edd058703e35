"""What a text names: `FILE`, `FILE::NAME`, or a pattern such as `part-*.h5::/NAME` for several files as one."""

from __future__ import annotations

import glob
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from otlabel.errors import FileFormatError
from otlabel.scores.base import Scores
from otlabel.scores.given import as_array
from otlabel.scores.hdf5 import load_dataset, open_hdf5_scores
from otlabel.scores.memory import open_array, open_tensor
from otlabel.scores.npy import NpyScores, parse_header, read_header
from otlabel.scores.parts import Parts

ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".pt")


def open_path(text: str) -> Scores:
    """The scores that a text names."""
    pattern, _, name = text.partition("::")
    files = matches(pattern)
    sources = [_open_file(file, name) for file in files]
    return sources[0] if len(sources) == 1 else Parts(sources, text)


def matches(pattern: str) -> list[Path]:
    """The file of that name, or all files that a pattern fits, in the order of their names and of numbers in them."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [Path(pattern)]
    found = [Path(file) for file in glob.glob(pattern)]
    if not found:
        raise FileNotFoundError(f"no file fits the pattern {pattern}")
    return sorted(found, key=_natural)


def _natural(file: Path) -> list[tuple[int, str]]:
    """part-2 before part-10, as their writer counted them."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", str(file))]


def load_array(text: str) -> np.ndarray:
    """A whole array of any dimension: labels, class masses."""
    file_text, _, name = text.partition("::")
    file = Path(file_text)
    if _ending(file) == ".npy":
        _check_nameless(file, name)
        read_header(file)
        return np.load(file, allow_pickle=False)
    readers: dict[str, Callable[[Path, str], Any]] = {".npz": _load_npz, ".pt": _load_torch}
    return as_array(readers.get(_ending(file), load_dataset)(file, name))


def _open_file(file: Path, name: str) -> Scores:
    match _ending(file):
        case ".npy":
            _check_nameless(file, name)
            return NpyScores(file)
        case ".npz":
            return open_array(_load_npz(file, name), f"scores in {file}")
        case ".pt":
            return open_tensor(_load_torch(file, name), f"scores in {file}")
        case _:
            return open_hdf5_scores(file, name)


def _ending(file: Path) -> str:
    """What a file says that it is, once it is seen to exist."""
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if not file.is_file() and not file.is_dir():  # a folder is told by whoever opens it; a pipe would be waited for
        raise FileFormatError(f"{file} is no regular file; scores are read more than once")
    if file.suffix.lower() not in ENDINGS:
        raise FileFormatError(f"{file} ends in {file.suffix!r}; known endings are {', '.join(ENDINGS)}")
    return file.suffix.lower()


def _check_nameless(file: Path, name: str) -> None:
    if name:
        raise FileFormatError(f"{file} holds one array and no names; leave out '::{name}'")


def _load_npz(file: Path, name: str) -> np.ndarray:
    """One array of an archive, its header checked before memory is taken for what it claims."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
            member = members[_chosen(file, name, list(members))]
            with archive.open(member) as stream:
                parse_header(stream, member.file_size, f"{file}::{member.filename.removesuffix('.npy')}")
            with archive.open(member) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
    except FileFormatError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise FileFormatError(f"{file} is not a usable .npz file: {error}") from error


def _load_torch(file: Path, name: str) -> Any:
    import torch

    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damage may show up as nearly any of them
        told = str(error).partition("\n")[0]
        # torch advises to unpickle what was refused, which is never to be done with a stranger's file.
        why = (
            "it holds more than that"
            if "eights only" in told or "weights_only" in told
            else told or type(error).__name__
        )
        raise FileFormatError(f"{file} is not a file of plain tensors: {why}") from error
    if isinstance(loaded, dict):
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
        loaded = tensors[_chosen(file, name, list(tensors))]
    elif name:
        raise FileFormatError(f"{file} holds one tensor and no names; leave out '::{name}'")
    if not isinstance(loaded, torch.Tensor):
        raise FileFormatError(f"{file} holds a {type(loaded).__name__}, not a tensor")
    return loaded


def _chosen(file: Path, name: str, found: list[str]) -> str:
    """The array asked for, or the only one there is."""
    if not name and len(found) == 1:
        return found[0]
    if name in found:
        return name
    if not found:
        raise FileFormatError(f"{file} holds no array at all")
    wanted = f"no {name!r}" if name else "more than one array; name one as FILE::NAME"
    raise FileFormatError(f"{file} holds {wanted}. It holds: {', '.join(found)}")
