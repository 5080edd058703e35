"""Texts for people: what a name out of a file looks like in a message."""

from __future__ import annotations


def printable(text: str | None) -> str:
    """A name out of a file: what would move a cursor, hide or break a line is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text or "")


def one_line(message: object) -> str:
    """A message for a terminal, in one line."""
    return printable(" ".join(str(message).split()))
