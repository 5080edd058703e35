"""The tests that need a card, as many as time allows: those known to be quick first, then the others.

    python benchmarks/gpu_tests.py --limit 360 --out results

Every outcome is in results/gpu_tests.jsonl as soon as it is known. A process whose card answers no more, or whose test
hangs, is given up, and the tests that are left go on in a new one. At the end: how many passed, failed, did not run.
What an earlier run took (--known results/gpu_tests.jsonl) says what is quick.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LOG, NOT_LOADED = "gpu_tests.log", "did not load"
LONGEST = 90.0  # seconds without a test that ends, its process's start included, after which that process is ended


class Recorder:
    """A pytest plugin: tests in order of what they are known to take, until time is up; outcomes on disk."""

    def __init__(self, out: Path, known: dict[str, float], until: float) -> None:
        self.out, self.known, self.until = out, known, until
        self.lines: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what has been run, and sort; the names of all go to disk first."""
        done = {line["test"] for line in outcomes(self.out)}
        names = self.out.with_suffix(".all")
        if not names.exists():
            names.write_text("".join(f"{item.nodeid}\n" for item in items))
        alike = Counter(_function(item) for item in items)
        left = [item for item in items if item.nodeid not in done]
        items[:] = sorted(left, key=lambda item: (self.known.get(item.nodeid, LONGEST), alike[_function(item)]))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that does not load has tests that nobody sees."""
        if report.failed:
            self._write(test=report.nodeid, outcome=NOT_LOADED, seconds=0.0, why=str(report.longrepr)[-1500:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Should it be the last one of this process, this line tells which test it was."""
        self._write(test=nodeid, outcome="begun", seconds=0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Put together what setup, call and teardown say."""
        line = self.lines.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": 0.0})
        line["seconds"] += report.duration
        if report.outcome != "passed":
            line["outcome"], line["why"] = report.outcome, str(report.longrepr)[-1500:]
        if report.when == "teardown":
            self._write(**line)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Stop where time is up."""
        if time.time() > self.until:
            item.session.shouldstop = "time is up"

    def _write(self, **line: Any) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def outcomes(file: Path) -> list[dict[str, Any]]:
    """The last line of each test; of one that only began, its process has ended within it."""
    last: dict[str, dict[str, Any]] = {}
    for text in file.read_text().splitlines() if file.exists() else []:
        line = json.loads(text)
        last[line["test"]] = line
    return list(last.values())


def card_answers() -> bool:
    """Whether the card still does anything in this process."""
    import torch

    try:
        return not torch.cuda.is_available() or bool(torch.ones(1, device="cuda").item() == 1)
    except RuntimeError:
        return False


def _function(item: pytest.Item) -> str:
    """What one or many tests are cases of: where nothing is known, functions of few cases come first."""
    return item.nodeid.split("[")[0]


class Stopper:
    """A pytest plugin that ends a process whose card answers no more: all further tests would fail with it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Look after each failure."""
        if report.failed and not card_answers():
            pytest.exit("the card answers no more", returncode=pytest.ExitCode.INTERNAL_ERROR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=360.0, help="seconds (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the results (%(default)s)")
    parser.add_argument("--known", type=Path, help="outcomes of an earlier run, by which tests are sorted")
    parser.add_argument("--marked", default="gpu", help="which tests (%(default)s)")
    parser.add_argument("--only", nargs="*", default=["tests"], help="files or folders of tests (%(default)s)")
    parser.add_argument("--until", type=float, help="run them here until this time, in seconds since the epoch")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = (arguments.out / "gpu_tests.jsonl").absolute()
    if arguments.until is not None:
        known = {line["test"]: line["seconds"] for line in outcomes(arguments.known)} if arguments.known else {}
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-m", arguments.marked, *arguments.only]
        options += ["--continue-on-collection-errors"]  # of tests that need what is not installed
        return int(pytest.main(options, [Recorder(file, known, arguments.until), Stopper()]))
    for old in (file, file.with_suffix(".all"), file.with_name(LOG)):
        old.unlink(missing_ok=True)
    _supervise(arguments, file)
    print(_summary(file))
    ran = outcomes(file)
    return int(not ran or any(line["outcome"] not in ("passed", "skipped") for line in ran))


def _supervise(arguments: argparse.Namespace, file: Path) -> None:
    """Processes one after the other, until all tests have run or time is up."""
    until = time.time() + arguments.limit
    command = [sys.executable, __file__, "--out", str(arguments.out), "--until", str(until)]
    command += ["--marked", arguments.marked, "--only", *arguments.only]
    command += ["--known", str(arguments.known)] if arguments.known else []
    before = -1
    while time.time() < until and len(outcomes(file)) > before:
        before = len(outcomes(file))
        with file.with_name(LOG).open("a") as log:
            worker = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            size, changed = -1, time.time()
            while worker.poll() is None:
                now = file.stat().st_size if file.exists() else 0
                size, changed = (now, time.time()) if now != size else (size, changed)
                if time.time() > min(changed + LONGEST, until + LONGEST / 3):
                    worker.kill()
                    worker.wait()
                time.sleep(0.2)
        if worker.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return


def _summary(file: Path) -> str:
    """What a reader wants to know first."""
    lines, names = outcomes(file), file.with_suffix(".all")
    n_all = len(names.read_text().splitlines()) if names.exists() else len(lines)
    numbers = Counter("broke its process" if line["outcome"] == "begun" else line["outcome"] for line in lines)
    if not lines:
        return f"nothing ran:\n{file.with_name(LOG).read_text()[-2000:]}"
    told = [", ".join(f"{number} {outcome}" for outcome, number in numbers.items())]
    n_ran, seconds = len(lines) - numbers[NOT_LOADED], sum(line["seconds"] for line in lines)
    told[0] += f"; {n_ran} of {n_all} tests ran in {seconds:.0f} s"
    for line in lines:
        if line["outcome"] not in ("passed", "skipped"):
            told.append(f"{line['outcome']}: {line['test']}\n{line.get('why', '')[-700:]}")
    return "\n".join(told)


if __name__ == "__main__":
    sys.exit(main())
