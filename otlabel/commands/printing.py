"""Results for programs to read."""

from __future__ import annotations

import math
from typing import Any


def print_json(**values: Any) -> None:
    """Print a result, by name."""
    import json

    print(json.dumps({name: _plain(value) for name, value in values.items()}, indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, null for numbers that are not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value
