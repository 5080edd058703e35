"""`pip install` in ten lines: what it is doing, how long for, and all that it said where it fails.

    .venv/bin/python .ci/install.py "what this is for" ARGUMENTS-OF-PIP-INSTALL

On a terminal the last line follows pip; elsewhere there are only the lines that stay.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

LARGE = 100  # megabytes that a download takes to have a line of its own
UNITS = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}
FETCHED = re.compile(r"\s*(Downloading|Using cached) (\S+?)-\d\S* \(([\d.]+) (kB|MB|GB)\)")


def main(purpose: str, arguments: list[str]) -> int:
    """Run pip, and answer as it does."""
    begun, said, live = time.perf_counter(), list[str](), sys.stdout.isatty()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off", *arguments]

    def tell(text: str, end: str = "\n") -> None:
        clear = "\r\033[K" if live else ""
        print(f"{clear}{time.perf_counter() - begun:5.0f} s  {text}"[:120], end=end, flush=True)

    tell(f"{purpose}: looking for packages")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            said.append(line)
            fetched = FETCHED.match(line)
            if fetched and float(fetched[3]) * UNITS[fetched[4]] >= LARGE:
                tell(f"{fetched[1].lower()} {fetched[2]}, {fetched[3]} {fetched[4]}")
            elif line.startswith("Installing collected packages:"):
                tell(f"installing {line.count(',') + 1} packages")
            elif live and line.strip():
                tell(line.strip(), end="")
    tell("installed" if pip.returncode == 0 else f"pip failed ({pip.returncode}); it said:")
    if pip.returncode:
        print("".join(said), end="")
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
