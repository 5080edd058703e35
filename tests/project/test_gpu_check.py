"""The check of a machine with a card, at tiny sizes on the CPU: every part of it runs, and its report is complete."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PARTS = [
    "copy", "sweeps right", "problems right", "one sweep", "solves", "against the CPU", "soft_assign", "k labels",
    "k-means", "factored", "peers", "streaming", "shapes of the kernel", "profile",
]  # fmt: skip


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A function that gives a module of the check by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"card.{name}")


def main_of(script: str, monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    """Run a script of the benchmarks in this process; what it starts are processes of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    return importlib.import_module(script).main()


def test_quick_check(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"of": "2026-01-02T03:04:05", "seconds": 1.0, "found": {"an old figure": 7.0}}
    (tmp_path / "old.json").write_text(
        json.dumps({"machine": {"date": ""}, "tests": "3 passed", "parts": {"an old part": old, "copy": old}})
    )
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setattr(card("running"), "PARTS", parts := dict(card("running").PARTS))
    monkeypatch.setattr("gpu_check.PARTS", parts)  # whose times it raises
    words = ("--quick", "--out", tmp_path, "--earlier", tmp_path / "old.json")
    assert main_of("gpu_check", monkeypatch, *words) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(report["parts"]) == ["an old part", *PARTS]
    assert "an old figure" not in report["parts"]["copy"]["found"]
    assert not any("failure" in part for part in report["parts"].values())
    parts = {name: part["found"] for name, part in report["parts"].items()}
    assert parts["problems right"]["wrong"] == parts["sweeps right"]["wrong"] == parts["streaming"]["wrong"] == []
    assert parts["sweeps right"]["same_bits"]
    assert [parts["against the CPU"][rounding]["wrong"] for rounding in ("exact", "argmax")] == [[], []]
    assert len(parts["factored"]["heads"]) == 2
    assert parts["problems right"]["of several labels"] == 20
    assert parts["k labels"]["against the CPU"]["wrong"] == []
    assert parts["k labels"]["exact"]["sizes"] == [750, 750]
    assert parts["k labels"]["its largest load, in fair shares"] > 1
    assert parts["k-means"]["step"]["size_spread"] == 0
    exact = [row for name, row in parts["solves"].items() if name.startswith("otlabel exact")]
    assert [row["sizes"][1] - row["sizes"][0] for row in exact] == [0, 0]
    assert all(abs(row["gap"]) < 1e-12 for row in exact)
    assert parts["solves"]["otlabel argmax from features, 3000 x 30"]["class_error"] <= 1e-2
    assert parts["peers"]["SeLa's loop, 3000 x 30"]["class_error"] <= 1e-2
    apart = {name: row for name, row in parts["peers"].items() if name.startswith(("OTT-JAX", "flash-sinkhorn"))}
    assert len(apart) == 4
    for row in apart.values():
        assert "class_error" in row or row["status"].startswith(("not installed", "RuntimeError"))
    for shape in ("32 x 30", "48 x 64"):
        assert parts["soft_assign"][f"difference, {shape}"] < 1e-5
    verdicts = {target.split(",")[0]: verdict for target, _, verdict in report["targets"]}
    assert len(verdicts) == 8
    assert verdicts["values of the CPU within both gaps: no problem apart"] == "pass"
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| SeLa's loop, 3000 x 30 |" in page
    assert "3 passed" in page
    assert "## an old part (1.0 s, 2026-01-02 03:04)" in page
    assert "| values of the CPU within both gaps: no problem apart | 0 | pass |" in page
    assert "sinkhorn_assign" in (tmp_path / parts["profile"]["exact"]).read_text()


def test_a_target_that_is_missed_or_was_not_measured_is_no_pass(card: Any) -> None:
    plan, targets = card("checking").QUICK, card("report").targets
    size = "3000 x 30"
    solves = {
        f"otlabel argmax, {size}": {"seconds": 0.1, "class_error": 0.02},
        f"otlabel exact, {size}": {"seconds": 9.0, "gap": 1e-15, "value": -2.0},
    }
    parts = {
        "one sweep": {"found": {"sweep_over_read": 1.9}},
        "solves": {"found": solves},
        "factored": {"failure": "not begun", "found": {}},
        "soft_assign": {"found": {"soft_assign, 32 x 30": {"failure": "out of memory"}}},
        "k-means": {"found": {"step_over_product": 2.5}},
        "k labels": {"found": {"exact, of it on the card": 0.01}},
        "problems right": {"found": {"wrong": ["ties/0"]}},
        "streaming": {"found": {"wrong": []}},
    }
    assert [verdict for *_, verdict in targets(parts, plan)] == [
        "pass", "miss", "miss", "miss", "miss", "pass", "pass", "miss",
    ]  # fmt: skip
    assert [verdict for *_, verdict in targets({}, plan)] == ["miss"] * 8


def test_rows_are_kept_when_a_later_one_fails(card: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failing row, a failing part, a part that has no time, and one that leaves the card in ruins."""
    running, checking = card("running"), card("checking")

    def rows(check: Any) -> None:
        check.row("first", lambda: 1.0)
        check.row("second", lambda: 1 // 0)
        check.row("third", lambda: 3.0)
        check.row("fourth", lambda: 4.0, at_least=1e9)
        raise ValueError("at the end")

    def ruin(check: Any) -> None:
        check.row("before", lambda: 1.0)
        for module in (running, checking):
            monkeypatch.setattr(module, "answers", lambda device: False)
        check.row("ruin", lambda: 1 // 0)
        check.row("after", lambda: 2.0)

    parts = {"rows": (rows, 0, 9), "late": (rows, 1e9, 1e9), "ruin": (ruin, 0, 9), "not begun": (rows, 0, 9)}
    monkeypatch.setattr(running, "PARTS", parts)
    assert running.run_parts(list(parts), checking.QUICK, 60.0, tmp_path) == running.BROKEN
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {"rows", "late", "ruin"}
    assert all(part["ended"] for part in found.values())
    assert found["rows"]["failure"] == "ValueError: at the end"
    assert found["rows"]["found"]["first"] == 1.0
    assert found["rows"]["found"]["second"]["failure"].startswith("ZeroDivisionError")
    assert found["rows"]["found"]["third"] == 3.0
    assert found["rows"]["found"]["fourth"]["failure"].startswith("not begun")
    assert found["late"]["failure"].startswith("not begun")
    assert set(found["ruin"]["found"]) == {"before", "ruin"}


@pytest.mark.parametrize(
    ("script", "left", "failed"),
    [
        ("done('a'); sys.exit(3)", ["b", "c"], {}),
        ("done('a'); begun('b'); os._exit(7)", ["c"], {"b": "its process ended with status 7"}),
        ("sys.exit(1)", ["b", "c"], {"a": "its process ended with status 1"}),
        ("done('a'); begun('b'); time.sleep(60)", ["c"], {"b": "out of time: its process was ended"}),
        ("done('a'); done('b'); done('c')", [], {}),
    ],
)
def test_processes_that_break_are_given_up(
    script: str, left: list, failed: dict, card: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was done stays, what was under way has failed, what was not begun is left for the next process."""
    running = card("running")
    monkeypatch.setattr(running, "PARTS", dict.fromkeys("abc", (None, 0, 0.5)))
    monkeypatch.setattr(running, "SLOW_END", 0.1)
    monkeypatch.setattr(running, "START_SECONDS", 20.0)
    told = """
import json, os, sys, time
def write(name, **more):
    open(name + ".new", "w").write(json.dumps({"seconds": 1, "found": {"row": 1}, **more}))
    os.replace(name + ".new", name + ".json")
def begun(name): write(name)
def done(name): write(name, ended=True)
"""
    worker = subprocess.Popen([sys.executable, "-c", told + script], cwd=tmp_path)
    assert running._followed(worker, ["a", "b", "c"], tmp_path, 60.0, lambda: None) == left
    for name in set("abc") - set(left):
        part = json.loads((tmp_path / f"{name}.json").read_text())
        assert part.get("failure") == failed.get(name)
        assert part["ended"]


def test_tests_that_need_a_card_go_on_after_one_that_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how many ran, of how many, is what is said last."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half of the time of a process
    (tmp_path / "test_some.py").write_text(
        "import os\n"
        "def test_good(): pass\n"
        "def test_fatal(): os._exit(9)\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_after(): pass\n"
    )
    (tmp_path / "test_other.py").write_text("import what_is_not_there\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_tests.py"), "--out", str(tmp_path), "--limit", "60"]
    command += ["--marked", "not gpu", "--only", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "; 4 of 4 tests ran" in done.stdout
    assert "2 passed" in done.stdout
    assert "1 failed" in done.stdout
    assert "1 broke its process" in done.stdout
    assert "did not load: test_other.py" in done.stdout.replace(f"{tmp_path}/", "")
    assert "assert 1 == 2" in done.stdout


def test_no_tests_at_all_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where pytest does not begin, for a plugin or an import that is not there: what it said is told."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu_tests")
    monkeypatch.setattr(module, "_supervise", lambda *_: (tmp_path / "gpu_tests.log").write_text("no such plugin"))
    monkeypatch.setattr(sys, "argv", ["gpu_tests.py", "--out", str(tmp_path)])
    assert module.main() == 1
    assert capsys.readouterr().out == "nothing ran:\nno such plugin\n"


def test_rows_of_peers_that_fail(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others, plan = card("others"), card("checking").QUICK
    problem = card("scores").zipf_problem((200, 5), "cpu")

    def fail_with(error: Exception) -> str:
        def prepare(problem: Any, settings: Any) -> Any:
            raise error

        monkeypatch.setitem(others.CARD_METHODS, "SeLa's loop", (prepare, "torch"))
        return others.peer_row("SeLa's loop", problem, plan)["status"]

    assert fail_with(torch.cuda.OutOfMemoryError("CUDA out of memory")) == "out of memory"
    assert fail_with(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")) == "out of memory"
    assert fail_with(ModuleNotFoundError("No module named 'ott'")) == "not installed: pip install torch"
    assert fail_with(FloatingPointError("not finite\nhere")) == "FloatingPointError: not finite"


def test_nothing_for_a_card_imports_what_is_not_there() -> None:
    """Machines with a card have neither POT nor faiss: tests and checks import these where they use them, or skip."""
    for file in (*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"ot", "faiss", "k_means_constrained"}, file


def test_self_labelling_on_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In small, by one of its ways; the others' settings are settings, too; a part of data can be taken along."""
    words = ("--quick", "--ways", "argmax", "--out", tmp_path)
    assert main_of("gpu_training", monkeypatch, *words) == 0, (tmp_path / "gpu_training.json").read_text()
    row = json.loads((tmp_path / "gpu_training.json").read_text())["ways"]["argmax"]
    assert row["epochs"] >= 2
    assert 0 <= row["nmi"] <= 1
    assert row["data"].startswith("generated images, for CIFAR-10 was not found")
    assert "| argmax | generated images" in capsys.readouterr().out
    told = (tmp_path / "gpu_training.jsonl").read_text().splitlines()
    assert len(told) == 2 + row["epochs"]

    module = importlib.import_module("gpu_training")
    for way in module.WAYS:
        config = module.config_for(way, (500, 3, 32, 32), 3, SimpleNamespace(width=64, batch_size=256))
        assert (config.labels.method, config.trainer["precision"]) == (way, "bf16-mixed")
    made = module.generated(30)
    monkeypatch.setattr(module, "load_images", lambda name: made)
    module.pack(tmp_path / "part.npz", "cifar10", 12, 5)
    images, what = module.images_at(str(tmp_path / "part.npz"), 0)
    assert what == "CIFAR-10, 12 of its images"
    assert images.train.shape == (12, 3, 32, 32)
    assert torch.equal(images.test, made.test[:5])
    assert torch.equal(images.test_labels, made.test_labels[:5])
