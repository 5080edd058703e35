"""The oldest packages that pyproject.toml allows, as pip constraints: each `>=` is a `==`. `make floors` tests them.

All but torch, which is what constraints.txt says: another version is some gigabytes more, and brings CUDA with it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def requirements() -> dict[str, set[str]]:
    """The floors that pyproject.toml gives each package, whatever extra needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, set[str]] = {}
    for needed in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in needed:
            if requirement.startswith("otlabel["):
                continue
            name, floor = re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)", requirement).groups()
            found.setdefault(name, set()).add(floor)
    return found


def pinned() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def floors() -> dict[str, str]:
    """The version of each package that `make floors` installs."""
    return {name: max(versions) for name, versions in requirements().items()} | {"torch": pinned()["torch"]}


if __name__ == "__main__":
    for package, version in sorted(floors().items()):
        print(f"{package}=={version}")
