"""What every benchmark needs: the machine described, a process measured, a result as JSON or as a table's row."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def describe_machine(packages: Iterable[str]) -> dict:
    """What the figures depend on besides the code."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def machine_line(machine: dict) -> str:
    """The same as one sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    memory = f"{machine['memory_gb']:.0f} GB, " if machine.get("memory_gb") else ""
    return (
        f"{machine['date']}, {machine['cpu_count']} CPUs ({machine['processor']}), {memory}Python {machine['python']}; "
        f"{versions}."
    )


def peak_memory_mb() -> float | None:
    """The most memory this process has held so far, where the platform tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def others_cpu_seconds() -> float | None:
    """CPU time the machine has spent so far on anything but this process, to 0.01 s, where the platform tells."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except FileNotFoundError:  # not Linux
        return None
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def others_cores(before: tuple[float, float | None], after: tuple[float, float | None]) -> float | None:
    """How many processors others kept busy between two readings of the clock and of `others_cpu_seconds`."""
    if before[1] is None or after[1] is None:
        return None
    return max(0.0, after[1] - before[1]) / (after[0] - before[0])


def failure_text(process: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended without a result."""
    if process.returncode < 0:
        return f"ended by signal {-process.returncode}" + (" (memory?)" if process.returncode == -9 else "")
    lines = process.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {process.returncode}"


def read_json(path: Path) -> dict:
    """What a file holds; nothing where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def write_json(path: Path, content: dict) -> None:
    """The content, with null for NaN and infinities, which JSON does not know."""
    path.write_text(json.dumps(_finite(content), indent=1) + "\n")


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [line(header), line("---" for _ in header), *map(line, cells)]


def number(value: float | None, form: str) -> str:
    """The number as text, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
