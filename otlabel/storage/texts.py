"""Texts in files: lines, JSON, and the format that a file says it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otlabel.errors import FileFormatError
from otlabel.text import one_line


def check_format(told: tuple[Any, Any], name: str, version: int) -> None:
    """Raise ValueError unless a file is, as it says itself, of this format and version."""
    if told != (name, version):
        raise ValueError(f"it is no {name} of version {version}")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, whether or not the last one is ended."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no UTF-8 text: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """What each line that is not empty holds as JSON."""
    return [parsed(path, line) for line in read_lines(path) if line]


def read_json(path: Path) -> Any:
    """What a text holds as JSON."""
    return parsed(path, "\n".join(read_lines(path)))


def parsed(path: Path, text: str) -> Any:
    """JSON out of a file, or FileFormatError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged: {one_line(error)}") from error
