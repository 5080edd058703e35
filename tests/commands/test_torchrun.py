"""The command line under torchrun: the files of one process, in parts; all of them or none."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ranks import KILLED, alone, as_torchrun

from otlabel import sinkhorn_assign
from otlabel.commands import assign as assign_command
from otlabel.commands import main as cli
from otlabel.commands import torchrun
from otlabel.errors import FileFormatError
from otlabel.storage import label_files

N, K = 9000, 12


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one matrix in three parts."""
    monkeypatch.chdir(tmp_path)
    scores = np.random.default_rng(0).standard_normal((N, K)).astype(np.float16)
    for number, rows in enumerate([slice(0, 1000), slice(1000, 5500), slice(5500, N)]):
        with h5py.File(tmp_path / f"scores-{number}.h5", "w") as file:
            file.create_dataset("x", data=scores[rows], chunks=(500, K))
    np.save(tmp_path / "whole.npy", scores)
    return tmp_path


def command(rank: int, folder: str, *words: str) -> tuple[int, str, str]:
    """Exit code, and what is printed."""
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    return code, out.getvalue(), err.getvalue()


def assign(folder: Path, number: int, *words: str, function: Any = command) -> list[Any]:
    return as_torchrun(function, number, str(folder), "assign", "scores-*.h5::/x", *words)


def test_parts_hold_what_one_process_writes(folder: Path) -> None:
    assert cli.main(["assign", "scores-*.h5::/x", "-o", "one.h5"]) == 0
    (code, out, _), *others = assign(folder, 3, "-o", "labels/")
    assert (code, [other[:2] for other in others]) == (0, [(0, ""), (0, "")])
    assert "9,000 samples in 12 classes of 750 each" in out
    assert "gap" in out
    assert sorted(os.listdir("labels")) == [f"part-0000{rank}-of-00003.h5" for rank in range(3)]
    one, many = label_files.read_labels("one.h5"), label_files.read_labels("labels")
    for name in ("labels", "counts", "potentials"):
        np.testing.assert_array_equal(getattr(many, name), getattr(one, name))
    assert many.receipt is not None
    assert one.receipt is not None
    assert many.receipt.gap == pytest.approx(one.receipt.gap, abs=1e-12)
    assert many.receipt.input["sha256"] == one.receipt.input["sha256"]
    assert cli.main(["certify", "whole.npy", "labels", "--potentials", "labels"]) == 0
    assert cli.main(["predict", "whole.npy", "--potentials", "labels", "-o", "again.npy"]) == 0
    assert (np.load("again.npy") != one.labels).mean() < 0.01  # rows on the border between classes
    pytest.importorskip("jinja2")
    assert cli.main(["report", "labels", "--scores", "whole.npy", "-o", "report.html"]) == 0
    assert "9,000" in Path("report.html").read_text(encoding="utf-8")


def test_one_file_of_all(folder: Path) -> None:
    assert cli.main(["assign", "whole.npy", "-o", "one.npy"]) == 0
    found = assign(folder, 2, "-o", "many.npy", "--potentials", "all.npz", "--json")
    assert [code for code, *_ in found] == [0, 0]
    assert json.loads(found[0][1])["n_samples"] == N
    np.testing.assert_array_equal(np.load("many.npy"), np.load("one.npy"))
    with np.load("all.npz") as saved:
        np.testing.assert_array_equal(saved["labels"], np.load("one.npy"))


def test_parts_of_another_run_are_kept_or_replaced_whole(folder: Path) -> None:
    assert all(code == 0 for code, *_ in assign(folder, 3, "-o", "labels"))
    refused = assign(folder, 2, "-o", "labels")
    assert [code for code, *_ in refused] == [2, 1]
    assert "labels holds parts already; pass --force" in refused[0][2]
    assert "rank 0 failed: FileExistsError: labels holds parts already" in refused[1][2]
    assert len(os.listdir("labels")) == 3
    assert all(code == 0 for code, *_ in assign(folder, 2, "-o", "labels", "--force"))
    assert len(label_files.read_labels("labels").labels) == N
    assert len(os.listdir("labels")) == 2


def test_parts_that_are_read_are_not_written_over(folder: Path) -> None:
    (folder / "labels").mkdir()
    for part in range(2):
        (folder / f"scores-{part}.h5").rename(label_files.part_path(folder / "labels", part, 2))
    before = {path.name: path.read_bytes() for path in (folder / "labels").iterdir()}
    words = ["assign", "labels/*.h5::/x", "-o", "labels", "--force"]
    part = r"the part of --output part-0000\d-of-0000{0}.h5 labels/part-0000\d-of-0000{0}.h5"
    for number, told in (
        (2, part.format(2) + " and SCORES .+ the same file"),
        (3, part.format(3) + " would be one of the files that SCORES .+ stands for"),
    ):
        first, *_ = as_torchrun(command, number, str(folder), *words)
        assert first[0] == 2
        assert re.search(told, first[2])
    assert {path.name: path.read_bytes() for path in (folder / "labels").iterdir()} == before


def test_cluster_shares_its_work(folder: Path) -> None:
    np.save("features.npy", np.random.default_rng(1).normal(size=(5000, 3)))
    words = ["cluster", "features.npy", "-k", "7", "--max-iter", "5"]
    assert cli.main([*words, "-o", "one.h5"]) == 0
    (code, out, _), *others = as_torchrun(command, 3, str(folder), *words, "-o", "many.h5", "--centres", "centres.npy")
    assert (code, others) == (0, [(0, "", ""), (0, "", "")])
    assert "5,000 samples in 7 classes of 714 to 715" in out
    one, many = label_files.read_labels("one.h5"), label_files.read_labels("many.h5")
    assert (many.labels == one.labels).mean() > 0.99  # sums are rounded in another order
    np.testing.assert_array_equal(many.counts, one.counts)
    assert many.receipt is not None
    assert one.receipt is not None
    assert many.receipt.value == pytest.approx(one.receipt.value, rel=1e-3)
    assert abs(many.receipt.gap or 0) < 1e-9
    assert np.load("centres.npy").shape == (7, 3)
    found = as_torchrun(command, 2, str(folder), *words, "-o", "many.h5")
    assert [code for code, *_ in found] == [2, 1]
    assert "many.h5 exists already" in found[0][2]


def test_commands_that_share_no_work_are_refused(folder: Path) -> None:
    for words in (["certify", "whole.npy", "one.npy"], ["curate", "whole.npy", "-n", "9", "-o", "chosen.npy"]):
        for code, out, err in as_torchrun(command, 2, str(folder), *words):
            assert (code, out) == (2, "")
            assert "2 processes were started (WORLD_SIZE=2), and each would do all of this work" in err
    assert not Path("chosen.npy").exists()


def killed_while_writing(rank: int, folder: str, *words: str) -> tuple[int, str, str]:
    write = label_files.write_labels

    def dying(*arguments: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    label_files.write_labels = dying  # type: ignore[assignment]
    return command(rank, folder, *words)


def test_nothing_is_left_of_a_run_whose_rank_was_killed_while_writing(folder: Path) -> None:
    first, second, third = assign(folder, 3, "-o", "labels", function=killed_while_writing)
    assert second == KILLED
    for code, _, err in (first, third):
        assert code == 1
        assert "rank 1 was lost at 'output'" in err
    assert os.listdir("labels") == []
    assert all(code == 0 for code, *_ in assign(folder, 3, "-o", "labels"))


def killed_while_solving(rank: int, folder: str, *words: str) -> tuple[int, str, str]:
    from otlabel.solver.monitor import Monitor

    record = Monitor.record

    def dying(monitor: Monitor, stage: str, *arguments: Any, **options: Any) -> None:
        record(monitor, stage, *arguments, **options)
        if rank == 1 and stage == "round":
            os.kill(os.getpid(), signal.SIGKILL)

    Monitor.record = dying  # type: ignore[assignment, method-assign]
    assign_command.CHECKPOINT_SECONDS = -1.0
    return command(rank, folder, *words)


def test_killed_run_goes_on_from_its_checkpoint(folder: Path) -> None:
    words = ["-o", "labels", "--checkpoint", "at.npy", "--tol", "1e-8"]
    found = assign(folder, 2, *words, function=killed_while_solving)
    assert found[1] == KILLED
    assert np.load("at.npy").shape == (K,)
    whole, fresh = assign(folder, 1, "-o", "fresh.npy", "--tol", "1e-8", "--json"), "fresh.npy"
    resumed = assign(folder, 2, *words, "--json")
    assert [code for code, *_ in resumed] == [0, 0]
    assert json.loads(resumed[0][1])["n_sweeps"] < json.loads(whole[0][1])["n_sweeps"]
    assert not Path("at.npy").exists()
    np.testing.assert_array_equal(label_files.read_labels("labels").labels, np.load(fresh))


@pytest.mark.parametrize("damage", ["missing", "foreign", "empty"])
def test_folder_that_is_no_whole_set_is_refused(folder: Path, damage: str) -> None:
    potentials, labels = np.zeros(2), np.array([0, 1, 1])
    (folder / "labels").mkdir()
    for part in range(2 if damage != "empty" else 0):
        receipt = label_files.Receipt({"rows": [3 * part, 3 * part + 3]})
        path = label_files.part_path(folder / "labels", part, 2)
        label_files.write_labels(path, label_files.StoredLabels(labels, np.array([1, 2]), potentials, receipt))
    if damage == "missing":
        label_files.part_path(folder / "labels", 1, 2).unlink()
    if damage == "foreign":
        label_files.write_labels(path, label_files.StoredLabels(labels, np.array([1, 2]), potentials + 1, receipt))
    said = {"missing": "part-00001-of-00002.h5 is missing", "foreign": "is of another run", "empty": "holds no parts"}
    with pytest.raises(FileFormatError, match=said[damage]):
        label_files.read_labels(folder / "labels")


def stray(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in (*torchrun.VARIABLES, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"WORLD_SIZE": "4"}, "RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ""}, "MASTER_PORT is not set"),
    ],
)
def test_variables_left_over_are_told_and_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: Any, missing: str
) -> None:
    stray(monkeypatch, **variables)
    assert cli.main(["assign", "whole.npy", "-o", "labels.npy"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"otlabel: warning: WORLD_SIZE is {variables['WORLD_SIZE']}, but {missing}")
    assert err.count("\n") == 1
    assert len(np.load("labels.npy")) == N
    assert cli.main(["certify", "whole.npy", "labels.npy"]) == 0
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 2, of 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    ],
)
def test_variables_that_cannot_be(folder: Path, monkeypatch, capsys, variables: Any, told: str) -> None:
    stray(monkeypatch, **variables)
    assert cli.main(["assign", "whole.npy", "-o", "labels.npy"]) == 2
    assert told in capsys.readouterr().err


def test_one_process_of_torchrun_works_alone(folder: Path, monkeypatch, capsys) -> None:
    stray(monkeypatch, WORLD_SIZE="1", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert cli.main(["certify", "whole.npy", "absent.npy"]) == 2
    assert "absent.npy does not exist" in capsys.readouterr().err


def test_process_that_waits_for_others_says_so_and_can_be_interrupted(folder: Path) -> None:
    code = (
        "import sys; from otlabel.commands import main as m, torchrun as t; t.PATIENCE = .3; "
        "sys.exit(m.main(sys.argv[1:]))"
    )
    told = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    environment = os.environ | told | {"PYTHONPATH": str(Path(torchrun.__file__).parents[2])}
    words = [sys.executable, "-c", code, "assign", "whole.npy", "-o", "labels.npy"]
    with subprocess.Popen(words, text=True, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("otlabel:"))  # torch may say more
        assert line.startswith("otlabel: warning: rank 1 waits for the others of 2 processes at 127.0.0.1:1 (RANK, ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.endswith("otlabel: error: interrupted\n")
    assert not Path("labels.npy").exists()


def test_without_torchrun_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun.process_group("auto") as group:
        assert group is None
    assert torchrun.own_device("cuda") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert torchrun.own_device("cuda") == "cuda:3"
    assert torchrun.own_device("auto") == "auto"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node007", "node007"), ("node[007-009,12],other", "node007"), ("a,b", "a"), ("gpu-[3,5-9]", "gpu-3"),
        ("rack[1-2]n", "rack1n"), ("n1.cluster.org,n2.cluster.org", "n1.cluster.org"),
    ],
)  # fmt: skip
def test_first_host_of_slurms_lists(nodes: str, first: str) -> None:
    assert torchrun.first_host(nodes) == first


SLURM = {
    "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "1234567",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({}, 3),
        ({"SLURM_STEP_NUM_TASKS": ""}, 1),  # a batch script, which starts one process itself
        ({"SLURM_STEP_NUM_TASKS": "1"}, 1),  # srun --pty bash
        ({"WORLD_SIZE": "1"}, 1),  # torchrun inside of a step knows better
    ],
)
def test_what_srun_sets_is_taken(monkeypatch: pytest.MonkeyPatch, change: dict[str, str], number: int) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    monkeypatch.setattr(os, "environ", {name: one for name, one in os.environ.items() if name not in names})
    os.environ |= SLURM | change  # a plain dict for now
    assert torchrun.launched() == number
    if number == 3:
        told = [os.environ[name] for name in names]
        assert told == ["1", "0", "3", "localhost", str(20_000 + 1_234_567 % 20_000)]


def of_srun(rank: int, folder: str, job: int, *words: str) -> tuple[int, str, str]:
    """The command with the variables that srun would set."""
    for name in ("WORLD_SIZE", "RANK"):
        os.environ.pop(name, None)
    own = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": str(job)}
    os.environ.update(SLURM | own)
    return command(rank, folder, *words)


def test_two_processes_of_srun_label_together(folder: Path) -> None:
    words = (str(folder), os.getpid(), "assign", "whole.npy", "-o", "parts")
    told = [one.answer() for one in [alone(of_srun, rank, *words) for rank in range(2)]]
    assert [code for code, *_ in told] == [0, 0], told
    np.testing.assert_array_equal(
        label_files.read_labels(folder / "parts").labels, sinkhorn_assign(np.load(folder / "whole.npy")).labels
    )


def test_an_output_without_an_ending_is_told_of_ranks(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["assign", "whole.npy", "-o", "labels"]) == 2
    assert "labels.npy or labels.h5; a folder of parts is written by several processes" in capsys.readouterr().err
