"""What commands do to files: inputs are never outputs, links are written through, nothing is left of who is stopped."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command import python

import otlabel
from otlabel import Assignment, FeatureStore, sinkhorn_assign
from otlabel.commands import assign
from otlabel.commands.main import main
from otlabel.errors import OtlabelError
from otlabel.selflabel.stores.head_labels import save_labels
from otlabel.storage.atomic import LOCK, destination, replacing, save_array, working_in
from otlabel.storage.label_files import StoredLabels, read_labels, write_labels
from otlabel.storage.outputs import check_apart

N, K = 60, 4


def tree(folder: Path) -> dict[str, bytes | str]:
    """All that lies there: contents of files, and where links lead to."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs of all kinds, some under several names, as the working folder."""
    monkeypatch.chdir(tmp_path)
    scores = np.random.default_rng(0).normal(size=(N, K))
    result = sinkhorn_assign(scores)
    np.save("s.npy", scores)
    np.save("mass.npy", np.full(K, 1 / K))
    np.save("labels.npy", result.labels)
    np.savez("all.npz", a=scores)
    result.save("result.npz")
    with h5py.File("s.h5", "w") as file:
        file["a"], file["b"] = scores, scores
    write_labels(Path("labels.h5"), StoredLabels(result.labels, result.counts, result.potentials))
    for part in range(2):
        np.save(f"s-{part}.npy", scores[part::2])
    Path("words.html").write_text("word\n" * N)
    Path("there").mkdir()
    Path("link.npy").symlink_to("s.npy")
    Path("there/link.html").symlink_to("../labels.npy")
    Path("there/link.npy").symlink_to("../link.npy")
    Path("picture.png").symlink_to("s.npy")
    os.link("s.npy", "hard.npy")
    return tmp_path


# ---- what is read is not written over ----


@pytest.mark.parametrize(
    ("words", "output", "source"),
    [
        ("assign s.npy -o s.npy", "--output s.npy", "SCORES s.npy"),
        ("assign s.npy -o there/../s.npy", "--output there/../s.npy", "SCORES s.npy"),
        ("assign s.npy -o {place}/s.npy", "--output {place}/s.npy", "SCORES s.npy"),
        ("assign s.npy -o there/link.npy", "--output there/link.npy", "SCORES s.npy"),
        ("assign there/link.npy -o s.npy", "--output s.npy", "SCORES there/link.npy"),
        ("assign s.npy -o hard.npy", "--output hard.npy", "SCORES s.npy"),
        ("assign s.h5::/a -o s.h5", "--output s.h5", "SCORES s.h5::/a"),
        ("assign all.npz::a -o l.npy --potentials all.npz", "--potentials all.npz", "SCORES all.npz::a"),
        ("assign 's-*.npy' -o s-1.npy", "--output s-1.npy", "SCORES s-*.npy"),
        ("assign s.npy -o l.npy --class-mass mass.npy --checkpoint mass.npy", "--checkpoint mass.npy", "--class-mass"),
        ("assign s.npy -o mass.npy --class-mass mass.npy", "--output mass.npy", "--class-mass mass.npy"),
        ("assign s.npy -o l.npy --checkpoint link.npy", "--checkpoint link.npy", "SCORES s.npy"),
        ("plan s.npy -o s.npy", "--output s.npy", "SCORES s.npy"),
        ("doctor s.npy --plot picture.png", "--plot picture.png", "SCORES s.npy"),
        ("cluster s.npy -k 3 -o link.npy", "--output link.npy", "FEATURES s.npy"),
        ("cluster s.npy -k 3 -o l.npy --centres hard.npy", "--centres hard.npy", "FEATURES s.npy"),
        ("curate s.npy -n 9 -o s.npy", "--output s.npy", "FEATURES s.npy"),
        ("predict s.npy --potentials labels.h5 -o labels.h5", "--output labels.h5", "--potentials labels.h5"),
        ("predict s.npy --potentials labels.h5 -o s.npy", "--output s.npy", "SCORES s.npy"),
        ("report labels.npy --texts words.html -o words.html", "--output words.html", "--texts words.html"),
        ("report labels.npy -o there/link.html", "--output there/link.html", "RUN_OR_LABELS labels.npy"),
        ("report there -o there/link.html", "--output there/link.html", "RUN_OR_LABELS there"),
    ],
)
@pytest.mark.parametrize("force", [True, False])
def test_an_input_is_no_output(
    place: Path, capsys: pytest.CaptureFixture[str], words: str, output: str, source: str, force: bool
) -> None:
    before = tree(place)
    command = shlex.split(words.format(place=place))
    assert main(command + ["--force"] * (force and command[0] != "plan")) == 2
    ran = capsys.readouterr()
    assert (ran.out, ran.err.count("\n")) == ("", 1)
    assert f"{output.format(place=place)} and {source}" in ran.err
    assert "are the same file" in ran.err
    assert tree(place) == before


@pytest.mark.parametrize(
    ("words", "pair"),
    [
        ("assign s.npy -o l.npy --checkpoint ./l.npy", "--output and --checkpoint"),
        ("assign s.npy -o l.npy --checkpoint there/new.npy", "--output and --checkpoint"),
        ("cluster s.npy -k 3 -o l.npy --centres {place}/l.npy", "--output and --centres"),
    ],
)
def test_two_outputs_are_two_files(place: Path, capsys: pytest.CaptureFixture[str], words: str, pair: str) -> None:
    Path("there/new.npy").symlink_to("../l.npy")
    before = tree(place)
    assert main([*shlex.split(words.format(place=place)), "--force"]) == 2
    assert f"{pair} name the same file" in capsys.readouterr().err
    assert tree(place) == before


@pytest.mark.parametrize("words", ["'s-*.npy' -o s-2.npy", "'{place}/s-?.npy' -o there/../s-9.npy"])
def test_a_new_output_is_none_of_the_files_of_a_pattern(place: Path, capsys: Any, words: str) -> None:
    before = tree(place)
    assert main(["assign", *shlex.split(words.format(place=place)), "--force"]) == 2
    assert "would be one of the files that SCORES" in capsys.readouterr().err
    assert tree(place) == before


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("kind", ["numbers", "four numbers", "text", "record"])
def test_a_checkpoint_takes_no_other_files_place(place: Path, capsys: Any, kind: str, force: bool) -> None:
    match kind:
        case "numbers":
            np.save("at.npy", np.arange(7))
        case "four numbers":
            np.save("at.npy", np.zeros(K))
        case "text":
            Path("at.npy").write_text("mine")
        case "record":
            np.save("at.npy", np.zeros(K, [("mine", "<f8")]))
    before = tree(place)
    words = "assign s.npy -o new.npy --checkpoint at.npy" + " --force" * force
    assert main(shlex.split(words)) == 2
    assert "at.npy is there already and is no checkpoint of otlabel" in capsys.readouterr().err
    assert tree(place) == before


def test_a_checkpoint_of_our_own_is_gone_on_from(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign, "CHECKPOINT_SECONDS", -1.0)
    kept = []
    monkeypatch.setattr(assign, "save_array", lambda path, array: kept.append(array))
    assert main(shlex.split("assign s.npy -o first.npy --checkpoint at.npy --tol 1e-6")) == 0
    save_array("at.npy", kept[-1])
    assert np.load("at.npy").shape == (K,)
    n_passes = len(kept)
    assert main(shlex.split("assign s.npy -o second.npy --checkpoint at.npy --tol 1e-6")) == 0
    assert len(kept) - n_passes < n_passes
    assert not Path("at.npy").exists()
    save_array("at.npy", kept[-1][:-1])
    assert main(shlex.split("assign s.npy -o third.npy --checkpoint at.npy")) == 2
    assert f"--checkpoint at.npy is of a run with {K - 1} classes, and s.npy has {K}" in capsys.readouterr().err
    assert Path("at.npy").exists()


def test_outputs_beside_inputs_are_fine(place: Path) -> None:
    before = tree(place)
    assert main(shlex.split("assign 's-*.npy' -o there/new.npy --receipt --checkpoint at.npy")) == 0
    assert main(shlex.split("report there/new.npy -o there/page.html --scores s.npy")) == 0
    new = {"there/new.npy", "there/new.npy.json", "there/page.html"}
    assert {name: what for name, what in tree(place).items() if name not in new} == before


def test_a_report_is_none_of_what_it_is_about(place: Path) -> None:
    pytest.importorskip("jinja2")
    before = tree(place)
    for given in ({"labels": "labels.npy", "path": "there/link.html"}, {"labels": LABELS, "path": "words.html"}):
        with pytest.raises(ValueError, match="are the same file"):
            otlabel.report(**given, texts=Path("words.html"))
    assert tree(place) == before


def test_what_is_there_no_more_or_not_yet_is_compared_by_its_name(place: Path) -> None:
    Path("there/later").symlink_to("later")
    with pytest.raises(ValueError, match="a and b name the same file"):
        check_apart({"a": "there/later", "b": place / "there" / ".." / "there" / "later"}, {})
    check_apart({"a": "new.npy"}, {"b": "no-*.npy", "c": None, "d": "0.5,0.5", "e": "s.h5::/a"})
    assert not Path("new.npy").exists()


# ---- links, and what is no file ----


def store(path: Path) -> None:
    opened = FeatureStore(path)
    opened.begin(3, 2, {"data": "some"})
    opened.write(np.arange(3), np.eye(3, 2))
    opened.finish()


LABELS = np.arange(N) % K
WRITERS: dict[str, Callable[[Path], Any]] = {
    "l.npy": lambda path: write_labels(path, StoredLabels(LABELS, np.bincount(LABELS), np.zeros(K))),
    "l.h5": lambda path: write_labels(path, StoredLabels(LABELS, np.bincount(LABELS), np.zeros(K))),
    "heads.h5": lambda path: save_labels(path, LABELS[None], [K]),
    "result.npz": lambda path: sinkhorn_assign(np.eye(8, 2)).save(path),
    "at.npy": lambda path: save_array(path, np.zeros(K)),
    "page.html": lambda path: otlabel.report(LABELS, path=path),
    "features.h5": store,
}


@pytest.mark.parametrize(
    ("name", "there"),
    [(name, there) for name in WRITERS for there in (True, False) if there or name != "features.h5"],  # refused
)
def test_links_are_written_through(tmp_path: Path, name: str, there: bool) -> None:
    if name == "page.html":
        pytest.importorskip("jinja2")
    links, files = tmp_path / "links", tmp_path / "files"
    links.mkdir()
    files.mkdir()
    (links / "first").symlink_to(f"../files/{name}")
    (links / name).symlink_to("first")
    if there:
        WRITERS[name](files / name)
        old = (files / name).stat().st_ino
    WRITERS[name](links / name)
    assert (links / name).is_symlink()
    assert (links / "first").is_symlink()
    assert sorted(os.listdir(links)) == sorted(["first", name])
    assert os.listdir(files) == [name]
    assert not there or (files / name).stat().st_ino != old  # replaced whole
    assert (files / name).stat().st_size > 100


def test_commands_write_through_links(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.npy").symlink_to("there/out.npy")
    Path("at.npy").symlink_to("there/at.npy")
    words = ["assign", "s.npy", "-o", "out.npy", "--checkpoint", "at.npy"]
    assert main(words) == 0
    np.testing.assert_array_equal(np.load("there/out.npy"), np.load("labels.npy"))
    assert Path("at.npy").is_symlink()
    assert not Path("there/at.npy").exists()
    assert main(words) == 2
    assert "out.npy exists already; pass --force" in capsys.readouterr().err
    assert main([*words, "--force", "--class-mass", "30,10,10,10"]) == 0
    assert read_labels("there/out.npy").counts.tolist() == [30, 10, 10, 10]
    assert Path("out.npy").is_symlink()
    Path("lost.npy").symlink_to("nowhere/lost.npy")
    assert main(["assign", "s.npy", "-o", "lost.npy"]) == 2
    assert "lost.npy is a link into nowhere, which does not exist" in capsys.readouterr().err


def test_pipes_sockets_and_devices_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.npy")
    Path("device.npy").symlink_to("/dev/null")
    Path("out.npy").symlink_to("/dev/stdout")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.npy")
        for name, told in [("pipe", "a pipe"), ("device", "a device"), ("socket", "a socket")]:
            kind = os.stat(f"{name}.npy").st_mode
            assert main(["assign", "s.npy", "-o", f"{name}.npy", "--force"]) == 2
            assert f"{name}.npy is {told}" in capsys.readouterr().err
            with pytest.raises(FileExistsError, match=told):
                Assignment.load("result.npz").save(f"{name}.npy")
            assert os.stat(f"{name}.npy").st_mode == kind
    for name in ("out.npy", "/dev/stdout", "/dev/null", f"/proc/self/fd/{os.open('s.npy', os.O_RDONLY)}"):
        with pytest.raises(FileExistsError):
            destination(name)


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.npy").symlink_to("b.npy")
    (tmp_path / "b.npy").symlink_to("a.npy")
    with pytest.raises(OSError, match="symbolic links"), replacing(tmp_path / "a.npy"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "b.npy"]


# ---- nothing is left of what was stopped ----


def test_an_interrupt_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    """KeyboardInterrupt raised at the n-th line that `replacing` runs, for each n until it runs through."""
    path, n_stopped = tmp_path / "labels.npy", 0

    def stopped_at(last: int) -> bool:
        lines = 0

        def trace(frame: types.FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != replacing.__wrapped__.__code__.co_filename:  # type: ignore[attr-defined]
                return None
            lines += event == "line"
            if lines == last and event == "line":
                raise KeyboardInterrupt
            return trace

        usual = sys.gettrace()
        try:
            sys.settrace(trace)
            save_array(path, np.zeros(9))
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(usual)
        return False

    np.save(path, np.ones(9))
    n_left = 0
    while stopped_at(n_stopped + 1):
        n_stopped += 1
        assert set(np.load(path)) in ({0.0}, {1.0})
        n_left += len(os.listdir(tmp_path)) > 1
        for leftover in tmp_path.glob(".*"):
            leftover.unlink()
    assert n_stopped > 20
    assert n_left <= 1  # at the very line that removes it
    assert os.listdir(tmp_path) == [path.name]


WAITING = """
import signal, sys, time, otlabel.commands.main
for number in (signal.SIGTERM, signal.SIGHUP):  # that these tests were started to ignore, as by nohup
    signal.signal(number, signal.SIG_DFL)
from otlabel.storage.atomic import replacing, working_in
def wait(arguments):
    with working_in(arguments.output), replacing(arguments.output / "labels.npy") as file:
        file.write(b"half")
        print("ready", flush=True)
        time.sleep(60)
otlabel.commands.demo.run = wait
sys.exit(otlabel.commands.main.main(["demo", "-o", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")]
)
def test_signals_end_the_command_and_leave_nothing(tmp_path: Path, number: signal.Signals, told: str) -> None:
    process = python(WAITING, tmp_path / "out")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(os.listdir(tmp_path / "out")) == 2
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", f"otlabel: error: {told}\n")
    assert os.listdir(tmp_path) == []


def test_signals_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup, which ignores SIGHUP, and in a program that deals with SIGTERM itself."""
    seen = {}

    def look(_: Any) -> int:
        seen.update({number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)})
        return 0

    def own(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("otlabel.commands.demo.run", look)
    usual = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, own),
    }
    try:
        assert main(["demo"]) == 0
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    assert seen[signal.SIGHUP] is signal.SIG_IGN
    assert seen[signal.SIGTERM] is own
    assert seen[signal.SIGINT] is not signal.default_int_handler


# ---- a folder for one process at a time ----


def test_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with working_in(folder):
        told = rf"{folder} is in use by process {os.getpid()} on .+; wait"
        with pytest.raises(BlockingIOError, match=told), working_in(folder):
            pytest.fail("let in")
        with working_in(tmp_path / "runs" / "b"):
            assert sorted(os.listdir(tmp_path / "runs")) == ["a", "b"]
        (folder / "kept").touch()
    assert os.listdir(folder) == ["kept"]
    with working_in(folder):  # again
        pass
    assert os.listdir(folder) == ["kept"]
    assert os.listdir(tmp_path / "runs") == ["a"]


def test_folders_that_were_made_in_vain_are_gone(tmp_path: Path) -> None:
    with pytest.raises(OtlabelError), working_in(tmp_path / "a" / "b"):
        raise OtlabelError
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    for path, told in ((tmp_path / "file", "is no folder"), (tmp_path / "file" / "below", "lies below a file")):
        with pytest.raises(NotADirectoryError, match=told), working_in(path):
            pass


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = WAITING.replace("sys.exit(", "import signal; signal.signal(signal.SIGTERM, lambda *_: None); sys.exit(")
    process = python(code, tmp_path / "out")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(BlockingIOError, match=f"in use by process {process.pid} on"), working_in(tmp_path / "out"):
        pass
    process.kill()
    process.communicate(timeout=60)
    assert LOCK in os.listdir(tmp_path / "out")
    with working_in(tmp_path / "out"):
        pass
    assert LOCK not in os.listdir(tmp_path / "out")


def test_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(OSError, match=LOCK), working_in(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_threads_meet_one_lock(tmp_path: Path) -> None:
    """Many at once in a folder that comes and goes: never two of them in it."""
    inside, most, entered = 0, 0, 0
    guard, troubles = threading.Lock(), []

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(30):
            try:
                with working_in(tmp_path / "out"):
                    with guard:
                        inside, entered = inside + 1, entered + 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except BlockingIOError:
                pass
            except OSError as error:
                troubles.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, troubles) == (1, [])
    assert entered >= 30
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])
