"""Texts for people: numbers, sizes and times in words, and names out of files as a message shows them."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import numpy as np


def printable(text: str | None) -> str:
    """A name out of a file: what would move a cursor, hide or break a line is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text or "")


def local_path(text: str) -> str:
    """The path that a person wrote, who may have begun it with ~ or as file:///folder/file.

    Raises:
        ValueError: an address of somewhere else than here.
    """
    scheme, _, rest = text.partition("://")
    if not rest or not scheme.isalnum():
        return os.path.expanduser(text)
    if scheme != "file" or urlsplit(text).netloc not in ("", "localhost"):
        raise ValueError(f"{text} is an address of another place; download what is there, and pass the file's path")
    return unquote(rest.removeprefix("localhost"))


def one_line(message: object) -> str:
    """A message for a terminal, in one line."""
    return printable(" ".join(str(message).split()))


def range_text(sizes: np.ndarray, unit: str = "") -> str:
    """From the least to the most of some sizes: 3 to 5; 4 each where all are the same."""
    low, high = sizes.min(), sizes.max()
    return f"{low:,}{unit} each" if low == high else f"{low:,} to {high:,}{unit}"


def bytes_text(number: float) -> str:
    """A number of bytes with three digits."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.3g} {units[0]}"


def duration(seconds: float, minutes: str = "minutes") -> str:
    """A time in two digits."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    number = math.ceil(seconds / 60)
    return f"{number} {minutes}" if number < 90 else f"{number / 60:.1f} hours"


def with_noun(number: int, what: str) -> str:
    """So many of something: 1 row, 2 rows, 2 classes."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}{'es' if what.endswith('s') else 's'}"


def percent(share: float) -> str:
    """A share in words that never call something nothing, or a part the whole."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.3g} %"
