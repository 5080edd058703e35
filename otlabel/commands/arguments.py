"""Kinds of arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def seed_below(limit: int) -> Callable[[str], int]:
    """What makes a seed of a text: a whole number from 0 to below the limit."""

    def seed(text: str) -> int:
        if not (text.isdecimal() and int(text) < limit):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {limit - 1:,}")
        return int(text)

    return seed
