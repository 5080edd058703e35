"""No fault on the way leaves half of a file: full disks, killed writers, folders that take none, interrupts."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, NOBODY, assert_interrupted_at_once, names, python
from ranks import KILLED, alone

import otlabel
from otlabel.storage.atomic import replacing
from otlabel.storage.label_files import StoredLabels, read_labels, write_labels

# ---- faults while writing ----


# The check before the start is taken out: this is the disk that fills up between it and the end.
UNCHECKED = f"from otlabel.commands import assign; assign.check_space = lambda *_: None; {COMMAND}"
LIMITED = f"""
import resource, otlabel.storage.label_files as label_files
plain = label_files.write_labels
def limited(*words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    plain(*words)
label_files.write_labels = limited
{COMMAND}
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    """Scores whose labels take 160 kB as .npy and 100 kB in HDF5."""
    np.save(tmp_path / "long.npy", np.random.default_rng(0).normal(size=(100_000, 3)).astype(np.float32))
    return tmp_path / "long.npy"


def test_disk_that_fills_up_keeps_the_old_labels(small_disk, long_file) -> None:
    name = "labels.h5"  # of .npy a quota tells as much
    (small_disk / name).write_bytes(b"precious")
    process = python(UNCHECKED, "assign", long_file, "-o", small_disk / name, "--force")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, "")
    assert err == f"otlabel: error: {small_disk / name}: {os.strerror(errno.ENOSPC)}\n"
    assert (small_disk / name).read_bytes() == b"precious"
    assert names(small_disk) == [name]


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_disk_too_small_is_noticed_before_the_work(run, small_disk, long_file, name, monkeypatch) -> None:
    monkeypatch.setattr(otlabel, "sinkhorn_assign", lambda *_, **__: pytest.fail("solved first"))
    ran = run("assign", long_file, "-o", small_disk / name)
    assert (ran.code, ran.out) == (1, "")
    assert f"{name} needs" in ran.err
    assert names(small_disk) == []


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_quota_that_is_hit_keeps_the_old_labels(tmp_path, long_file, name) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_bytes(b"precious")
    process = python(LIMITED, "assign", long_file, "-o", folder / name, "--force")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, "")
    assert err == f"otlabel: error: {folder / name}: {os.strerror(errno.EFBIG)}\n"
    assert (folder / name).read_bytes() == b"precious"
    assert names(folder) == [name]


def write_for_ever(path: Path) -> None:
    versions = [np.full(300_000, k) for k in range(4)]
    while True:
        for labels in versions:
            write_labels(path, StoredLabels(labels, np.bincount(labels, minlength=4), np.zeros(4)))


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_killed_writers_leave_whole_files_and_the_next_run_clears_up(tmp_path, name) -> None:
    path, rng, n_left, n_whole = tmp_path / name, random.Random(1), 0, 0
    for number in range(1, 300):
        writing = alone(write_for_ever, path)
        time.sleep(rng.uniform(0, 0.03 * number))  # later, if a busy machine is not yet done with the first
        writing.process.kill()
        assert writing.answer() == KILLED
        left = [other for other in names(tmp_path) if other != name]
        assert len(left) <= 1  # each writer has cleared up after the one before
        assert all(other.startswith(f".{name}.") and other.endswith(".tmp") for other in left)
        n_left += len(left)
        if path.exists():
            labels = read_labels(path).labels
            assert len(labels) == 300_000
            assert labels.min() == labels.max()
            n_whole += 1
        if min(n_left, n_whole) >= 3:
            break
    assert min(n_left, n_whole) >= 3  # else few were hit while they wrote, and this has shown nothing
    labels = np.zeros(3, np.int64)
    write_labels(path, StoredLabels(labels, np.array([3]), np.zeros(1)))
    assert names(tmp_path) == [name]


def test_first_write_that_is_killed_leaves_no_file(tmp_path) -> None:
    code = """
import os, signal, sys
from otlabel.storage.atomic import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = python(code, tmp_path / "labels.npy")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "labels.npy").exists()
    (left,) = names(tmp_path)
    assert left.startswith(".labels.npy.")
    with replacing(tmp_path / "labels.npy") as file:
        file.write(b"whole")
    assert names(tmp_path) == ["labels.npy"]


def test_files_being_written_are_not_taken_for_leftovers(tmp_path) -> None:
    path = tmp_path / "labels.npy"
    with replacing(path) as slow:
        slow.write(b"slow")
        with replacing(path) as fast:
            fast.write(b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == ["labels.npy"]


def test_files_of_others_are_never_cleared_up(tmp_path) -> None:
    mine = ["labels.npy.tmp", ".labels.npy.tmp", ".labels.npy.notes.tmp", ".other.npy.0123abcd.tmp"]
    for name in mine:
        (tmp_path / name).touch()
    with replacing(tmp_path / "labels.npy") as file:
        file.write(b"whole")
    assert names(tmp_path) == sorted([*mine, "labels.npy"])


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder, where this process may not write for now."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    monkeypatch.chdir(folder)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)  # permission bits say nothing to root
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
@pytest.mark.usefixtures("unwritable")
def test_unwritable_folder_is_noticed_before_the_scores_are_read(run, name) -> None:
    ran = run("assign", "absent.npy", "-o", name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"otlabel: error: cannot write in the folder .: {os.strerror(errno.EACCES)}\n"


# ---- interrupts ----

# Neither comes to an end by itself, however quick solving becomes: moving units goes on until it is told to stop.
LONG_WORK = {
    "solve": (COMMAND, "--method sinkhorn --epsilon .001 --tol 1e-300 --max-sweeps 100000000"),
    "round": (
        f"""
import otlabel.solver.rounding as rounding
repair = rounding.repair
def repeated(board, slack, tie, stop):
    while not stop[0]:
        done = repair(board, slack, tie, stop)
    return done
rounding.repair = repeated
{COMMAND}
""",
        "--epsilon 5",
    ),
}


def test_interrupt_that_is_lost_in_a_callback_is_repeated(tmp_path) -> None:
    code = f"""
import ctypes, os, signal, time, otlabel.commands.demo
def lose(_):
    callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))
    callback()
    print("lost", flush=True)
    time.sleep(60)
otlabel.commands.demo.run = lose
{COMMAND}
"""
    process = python(code, "demo")
    begun = time.perf_counter()
    out, err = process.communicate(timeout=100)
    assert time.perf_counter() - begun < 10
    assert (process.returncode, out, err) == (130, "lost\n", "otlabel: error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_exit_code_is_that_of_the_signal_wherever_it_came(number: signal.Signals) -> None:
    """Python takes any end for one by SIGINT after a KeyboardInterrupt in text that is run, as imports have it."""
    code = f"""
import signal
from otlabel.commands import demo
if signal.getsignal({int(number)}) is signal.SIG_IGN:  # as these tests may have been started, by nohup
    signal.signal({int(number)}, signal.SIG_DFL)
demo.run = lambda _: exec("import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(60)", {{}})
{COMMAND}
"""
    process = python(code, "demo")
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err.count("\n")) == (128 + number, 1)


@pytest.mark.parametrize(("work", "delay"), [("solve", 0.05), ("round", 0.6)])
def test_interrupt_ends_at_once_and_leaves_nothing(tmp_path, work, delay) -> None:
    code, settings = LONG_WORK[work]
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).standard_normal((20_000, 200), np.float32))
    folder = tmp_path / "out"
    folder.mkdir()
    process = python(
        code, "assign", tmp_path / "scores.npy", "-o", folder / "labels.h5", "--progress", *settings.split()
    )
    assert process.stderr is not None
    process.stderr.read(1)  # the bar shows up with the first pass
    time.sleep(delay)
    assert_interrupted_at_once(process)
    assert names(folder) == []
