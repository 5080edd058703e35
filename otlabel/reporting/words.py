"""Text from users, made fit to be shown: short, on one line, without what no page can hold. Escaping is jinja2's."""

from __future__ import annotations

import unicodedata
from typing import Any

TITLE_LENGTH, NAME_LENGTH, TEXT_LENGTH = 120, 60, 280
UNSEEN = "\N{REPLACEMENT CHARACTER}"


def shown(text: Any, length: int) -> str:
    """At most so many characters; control characters and halves of surrogate pairs are replaced."""
    start = " ".join(str(text)[: 4 * length].split())
    cut = start if len(start) <= length and len(str(text)) <= 4 * length else start[: length - 1] + "\u2026"
    return "".join(UNSEEN if unicodedata.category(one) in ("Cc", "Cs") else one for one in cut)
