"""Refusing what could not be written at the end, or is what is read, before any work is done for it."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

from otlabel.storage.atomic import check_writable, destination, identity
from otlabel.text import local_path

LABEL_ENDINGS = (".npy", ".h5", ".hdf5")  # of files of labels


class Output(NamedTuple):
    """A file that a command will write."""

    name: str  # of the argument that tells its path
    path: Path
    endings: tuple[str, ...]
    is_kept: bool = False  # whether it may be there already without --force


def check_outputs(
    outputs: Iterable[Output], inputs: Mapping[str, str | os.PathLike[str] | None], *, force: bool
) -> None:
    """Refuse outputs that could not be written at the end, or that are inputs, before any work is done for them.

    Args:
        outputs: files that will be written.
        inputs: what is read, by the argument that tells it: FILE, FILE::NAME, a pattern or a folder; None: nothing.
        force: whether files that are there may be overwritten. What is read is never overwritten.
    """
    outputs = list(outputs)
    for _, path, endings, _ in outputs:
        if path.suffix.lower() not in endings:
            raise ValueError(f"{path} does not end in {' or '.join(endings)}, which is what is written; name it so")
    check_apart({output.name: output.path for output in outputs}, inputs)
    for output in outputs:
        _check_output(output.path, force=force or output.is_kept)


def _check_output(path: Path, *, force: bool) -> None:
    """Refuse a path that could not be written to at the end."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it or write elsewhere")
    target = destination(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} is a link into {target.parent}, which does not exist; create it")
    if target.exists() and not force:
        raise FileExistsError(f"{path} exists already; pass --force to overwrite it")
    try:
        check_writable(target)
    except OSError as error:
        raise PermissionError(f"cannot write in the folder {target.parent}: {error.strerror}") from error


def check_apart(
    outputs: Mapping[str, str | os.PathLike[str]], inputs: Mapping[str, str | os.PathLike[str] | None]
) -> None:
    """Raise ValueError where a file that will be written is one that is read, or two of them are one.

    Files are told by what they are, not by how they are spelled: links lead to one and the same. Of an input that is
    FILE::NAME, the whole file counts; of a pattern and of a folder, all files there.
    """
    taken: dict[object, str] = {}
    for name, path in outputs.items():
        other = taken.setdefault(identity(path), name)
        if other != name:
            raise ValueError(f"{other} and {name} name the same file; give each its own")
    for name, source in inputs.items():
        for argument, path in outputs.items():
            if _would_fit(path, source):
                raise ValueError(
                    f"{argument} {path} would be one of the files that {name} {source} stands for; write elsewhere"
                )
        for file in _files_of(source):
            output = taken.get(identity(file))
            if output is not None:
                raise ValueError(
                    f"{output} {outputs[output]} and {name} {source} are the same file, which would be lost; write "
                    "elsewhere"
                )


def _would_fit(path: str | os.PathLike[str], source: str | os.PathLike[str] | None) -> bool:
    """Whether an output that is not there yet is a part of an input that is a pattern, once it is written."""
    pattern = _pattern(source)
    if os.path.exists(path) or os.path.exists(pattern) or not glob.has_magic(pattern):
        return False
    place = os.path.abspath(path)
    real = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
    return any(PurePath(one).match(os.path.abspath(pattern)) for one in (place, real))


def _files_of(source: str | os.PathLike[str] | None) -> list[str]:
    """All files that an input is read from, as far as they are there."""
    text = _pattern(source)
    if not text:
        return []
    names = [text] if os.path.exists(text) or not glob.has_magic(text) else glob.glob(text)
    for name in tuple(names):
        with contextlib.suppress(OSError):  # no folder, as a rule
            names += [entry.path for entry in os.scandir(name)]
    return names


def _pattern(source: str | os.PathLike[str] | None) -> str:
    """The file, folder or pattern that an input names; nothing where there is none."""
    return "" if source is None else local_path(os.fspath(source).partition("::")[0])
