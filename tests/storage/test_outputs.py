"""Files of labels: what they hold, what readers refuse, and that no fault on the way leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import COMMAND, NOBODY, assert_interrupted_at_once, names, python

import otlabel
from otlabel import Assignment, report, sinkhorn_assign
from otlabel.errors import FileFormatError, FingerprintError, OtlabelWarning
from otlabel.sources import ArraySource, Opened, open_scores
from otlabel.storage.atomic import replacing
from otlabel.storage.label_files import Receipt, StoredLabels, fingerprint, read_labels, stored_bytes, write_labels

N_SAMPLES, N_CLASSES = 60, 5


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(N_SAMPLES, N_CLASSES))


@pytest.fixture
def file(tmp_path: Path, scores: np.ndarray) -> Path:
    np.save(tmp_path / "scores.npy", scores)
    return tmp_path / "scores.npy"


# ---- what is written ----


@pytest.mark.parametrize("ending", ["h5", "hdf5", "H5"])
def test_hdf5_holds_all_that_was_found(run, file, scores, ending) -> None:
    output = file.with_name(f"labels.{ending}")
    assert run("assign", file, "-o", output, "--epsilon", ".1", "--seed", "7").code == 0
    expected = sinkhorn_assign(scores, epsilon=0.1, seed=7)
    with h5py.File(output, "r") as handle:
        assert set(handle) == {"labels", "counts", "potentials"}
        assert handle["labels"].dtype == np.int8
        assert handle["labels"].fletcher32
        np.testing.assert_array_equal(handle["labels"][:], expected.labels)
        np.testing.assert_array_equal(handle["counts"][:], expected.counts)
        np.testing.assert_array_equal(handle["potentials"][:], expected.potentials)
        told = {name: one.decode() if isinstance(one, bytes) else one for name, one in handle.attrs.items()}
    assert (told["format"], told["format_version"], bool(told["complete"])) == ("otlabel.labels", 1, True)
    assert (told["value"], told["bound"], told["gap"]) == (expected.value, expected.bound, expected.gap)
    assert (told["seed"], told["status"]) == (7, "converged")
    assert json.loads(told["parameters"])["epsilon"] == 0.1
    assert json.loads(told["versions"])["otlabel"] == otlabel.__version__
    assert json.loads(told["input"])["shape"] == [N_SAMPLES, N_CLASSES]
    assert names(file.parent) == sorted([output.name, "scores.npy"])


@pytest.mark.parametrize(("n_classes", "kind"), [(128, np.int8), (129, np.int16), (32768, np.int16), (32769, np.int32)])
def test_labels_take_the_smallest_type_that_holds_them(tmp_path, n_classes, kind) -> None:
    labels = np.array([n_classes - 1, 0, n_classes - 1])
    counts = np.bincount(labels, minlength=n_classes)
    write_labels(tmp_path / "labels.h5", StoredLabels(labels, counts, np.zeros(n_classes)))
    with h5py.File(tmp_path / "labels.h5", "r") as handle:
        assert handle["labels"].dtype == kind
    read = read_labels(tmp_path / "labels.h5").labels
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize(("n_rows", "n_classes"), [(1, 1), (10, 3), (3_000_000, 300)])
@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_room_that_is_asked_for_is_enough_and_not_far_more(tmp_path, name, n_rows, n_classes) -> None:
    labels = np.arange(n_rows) % n_classes
    receipt = Receipt(input={"source": "a" * 500}, versions={"python": "3"}, value=0.0)
    write_labels(
        tmp_path / name, StoredLabels(labels, np.bincount(labels, minlength=n_classes), np.zeros(n_classes), receipt)
    )
    taken = (tmp_path / name).stat().st_size
    assert taken <= stored_bytes(tmp_path / name, n_rows, n_classes) <= 1.001 * taken + 20_000


def test_receipt_of_npy_lies_beside_it_only_on_request(run, file) -> None:
    output = file.with_name("labels.npy")
    assert run("assign", file, "-o", output).code == 0
    assert names(file.parent) == ["labels.npy", "scores.npy"]
    assert read_labels(output).receipt is None
    assert run("assign", file, "-o", output, "--receipt", "--force").code == 0
    assert names(file.parent) == ["labels.npy", "labels.npy.json", "scores.npy"]
    receipt = read_labels(output).receipt
    assert receipt is not None
    assert receipt.input["source"] == str(file)
    assert receipt.gap == pytest.approx(0, abs=1e-12)
    ran = run("assign", file, "-o", file.with_name("labels.npy"), "--receipt")
    assert (ran.code, ran.out) == (2, "")


def test_receipt_of_other_labels_is_not_taken_for_theirs(run, file) -> None:
    output = file.with_name("labels.npy")
    assert run("assign", file, "-o", output, "--receipt").code == 0
    assert run("assign", file, "-o", output, "--force", "--class-mass", "20,10,10,10,10").code == 0
    assert read_labels(output).receipt is None


def test_existing_receipt_survives_unless_forced(run, file) -> None:
    output = file.with_name("labels.npy")
    file.with_name("labels.npy.json").write_text("precious")
    ran = run("assign", file, "-o", output, "--receipt")
    assert (ran.code, ran.out) == (2, "")
    assert "labels.npy.json exists already" in ran.err
    assert names(file.parent) == ["labels.npy.json", "scores.npy"]


def test_existing_hdf5_survives_unless_forced(run, file) -> None:
    output = file.with_name("labels.h5")
    output.write_bytes(b"precious")
    assert run("assign", file, "-o", output).code == 2
    assert output.read_bytes() == b"precious"
    assert run("assign", file, "-o", output, "--force").code == 0
    assert read_labels(output).counts.tolist() == [12] * 5


def test_fingerprints_tell_inputs_apart(tmp_path, scores) -> None:
    def of(array: Any, name: str = "a.npy") -> dict[str, Any]:
        np.save(tmp_path / name, np.asarray(array))
        os.utime(tmp_path / name, ns=(0, 0))
        return fingerprint(open_scores(array), str(tmp_path / name))

    changed = scores.copy()
    changed[17, 3] += 1e-9
    assert of(scores) == of(scores.copy())
    assert of(scores)["sha256"] == of(np.asfortranarray(scores))["sha256"]
    assert of(scores)["sha256"] != of(changed)["sha256"]
    assert of(scores)["dtype"] != of(scores.astype(np.float32))["dtype"]
    assert (of(scores)["bytes"], of(scores)["modified_ns"]) == (scores.nbytes + 128, 0)
    assert fingerprint(open_scores(torch.from_numpy(scores)), "")["sha256"] == of(scores)["sha256"]


def test_fingerprint_reads_little(scores) -> None:
    class Watched(ArraySource):
        shape = 1_000_000, N_CLASSES
        rows_read = 0

        def __init__(self) -> None:
            self.dtype = "float64"

        def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
            self.rows_read += sum(stop - start for start, stop in spans)
            return iter([scores[:1]])

    watched = Watched()
    told = fingerprint(Opened.of(watched), "memory")
    assert watched.rows_read == told["rows_hashed"] == 64


# ---- predict and certify ----


@pytest.mark.parametrize("saved", ["result.npz", "labels.h5"])
@pytest.mark.parametrize("output", ["new.npy", "new.h5"])
def test_predict_applies_saved_potentials(run, file, scores, saved, output) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels, "--potentials", file.with_name("result.npz")).code == 0
    new = np.random.default_rng(8).normal(size=(33, N_CLASSES))
    np.save(file.with_name("new-scores.npy"), new)
    ran = run(
        "predict", file.with_name("new-scores.npy"), "--potentials", file.with_name(saved), "-o", file.with_name(output)
    )
    assert (ran.code, ran.err) == (0, "")
    expected = Assignment.load(file.with_name("result.npz")).predict(new)
    np.testing.assert_array_equal(read_labels(file.with_name(output)).labels, expected)
    np.testing.assert_array_equal(expected, (new + read_labels(labels).potentials).argmax(1))


def test_predict_refuses_other_classes_and_writes_nothing(run, file) -> None:
    assert run("assign", file, "-o", file.with_name("labels.h5")).code == 0
    np.save(file.with_name("narrow.npy"), np.zeros((4, 3)))
    words = ("--potentials", file.with_name("labels.h5"), "-o", file.with_name("new.npy"))
    ran = run("predict", file.with_name("narrow.npy"), *words)
    assert (ran.code, ran.out) == (2, "")
    assert "3 columns" in ran.err
    assert not file.with_name("new.npy").exists()


def test_certify_takes_hdf5_labels_and_potentials(run, file) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels).code == 0
    told = json.loads(run("certify", file, labels, "--potentials", labels, "--json").out)
    assert abs(told["gap"]) <= 1e-12
    assert told == json.loads(run("certify", file, f"{labels}::/labels", "--potentials", labels, "--json").out)


def test_predict_json(run, file) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels).code == 0
    ran = run("predict", file, "--potentials", labels, "-o", file.with_name("new.npy"), "--json")
    assert json.loads(ran.out)["counts"] == [12] * 5


# ---- what readers refuse ----


def _edit(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as handle:
            change(handle)

    return spoil


def _flip(path: Path) -> None:
    """One bit of the labels, which end in a run of one class."""
    data = bytearray(path.read_bytes())
    place = data.find(b"\x04" * 500)
    assert place > 0
    data[place + 100] ^= 1
    path.write_bytes(data)


def _replaced(name: str, value: Any) -> Callable[[Path], None]:
    def change(handle: h5py.File) -> None:
        del handle[name]
        handle[name] = value

    return _edit(change)


def _absurd(handle: h5py.File) -> None:
    del handle["labels"]
    handle.create_dataset("labels", (1 << 50,), np.int8, chunks=(1 << 20,))


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "no usable file"),
    "empty": (lambda path: os.truncate(path, 0), "no usable file"),
    "flipped bit": (_flip, "/labels is damaged in chunk 0"),
    "unfinished": (_edit(lambda handle: handle.attrs.update(complete=False)), "never finished"),
    "newer": (_edit(lambda handle: handle.attrs.update(format_version=2)), "version 1"),
    "foreign": (_edit(lambda handle: handle.attrs.pop("format")), "no otlabel.labels"),
    "missing": (_edit(lambda handle: handle.pop("counts")), "holds no '/counts'"),
    "soft link": (_replaced("labels", h5py.SoftLink("/counts")), "a soft link at 'labels'"),
    "external link": (_replaced("labels", h5py.ExternalLink("other.h5", "/labels")), "an external link at 'labels'"),
    "absurd shape": (_edit(_absurd), "/labels claims"),
    "other counts": (_edit(lambda handle: handle["counts"].write_direct(np.arange(5))), "not those of its labels"),
    "short potentials": (_replaced("potentials", np.zeros(3)), "3 potentials for 5 classes"),
    "NaN": (_replaced("potentials", np.array([0, 1, np.nan, 3, np.nan])), "/potentials is nan for class 2 .2 such"),
    "threshold": (_edit(lambda handle: handle.attrs.update(threshold=np.nan)), "threshold is nan"),
    "floats": (_replaced("labels", np.zeros(1000)), "/labels claims to be float64"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_spoiled_files_are_refused_by_name(tmp_path, fault) -> None:
    path = tmp_path / "labels.h5"
    labels = np.sort(np.arange(5000) % 5)
    write_labels(path, StoredLabels(labels, np.bincount(labels), np.zeros(5)))
    spoil, told = SPOILED[fault]
    spoil(path)
    with pytest.raises(FileFormatError, match=told) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((2, 2), int), np.array([0, -2]), np.zeros(0, int)])
def test_npy_that_holds_no_labels(tmp_path, array) -> None:
    np.save(tmp_path / "labels.npy", array)
    with pytest.raises(FileFormatError, match=r"labels\.npy is no usable"):
        read_labels(tmp_path / "labels.npy")


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


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_disk_that_fills_up_keeps_the_old_labels(small_disk, long_file, name) -> None:
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


WRITER = """
import sys
from pathlib import Path
import numpy as np
from otlabel.storage.label_files import StoredLabels, write_labels
path = Path(sys.argv[1])
versions = [np.full(1_000_000, k) for k in range(4)]
print("ready", flush=True)
while True:
    for labels in versions:
        write_labels(path, StoredLabels(labels, np.bincount(labels, minlength=4), np.zeros(4)))
"""


@pytest.mark.parametrize("name", ["labels.npy", "labels.h5"])
def test_killed_writers_leave_whole_files_and_the_next_run_clears_up(tmp_path, name) -> None:
    path, rng, n_left, n_whole = tmp_path / name, random.Random(1), 0, 0
    for number in range(1, 300):
        process = python(WRITER, path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.03 * number))  # later, if a busy machine is not yet done with the first
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
        left = [other for other in names(tmp_path) if other != name]
        assert len(left) <= 1  # each writer has cleared up after the one before
        assert all(other.startswith(f".{name}.") and other.endswith(".tmp") for other in left)
        n_left += len(left)
        if path.exists():
            labels = read_labels(path).labels
            assert len(labels) == 1_000_000
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

# Each of them takes many seconds when left alone.
LONG_WORK = {
    "solve": ((20_000, 200), "--method sinkhorn --epsilon .001 --tol 1e-12 --max-sweeps 1000000"),
    "round": ((60_000, 600), "--epsilon 5"),
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


@pytest.mark.parametrize("work", LONG_WORK)
@pytest.mark.parametrize("delay", [0.05, 0.6])
def test_interrupt_ends_at_once_and_leaves_nothing(tmp_path, work, delay) -> None:
    shape, settings = LONG_WORK[work]
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).standard_normal(shape, np.float32))
    folder = tmp_path / "out"
    folder.mkdir()
    process = python(
        COMMAND, "assign", tmp_path / "scores.npy", "-o", folder / "labels.h5", "--progress", *settings.split()
    )
    assert process.stderr is not None
    process.stderr.read(1)  # the bar shows up with the first pass
    time.sleep(delay)
    assert_interrupted_at_once(process)
    assert names(folder) == []


# ---- receipts and texts that are none ----


def _labels_with_receipt(path: Path) -> Path:
    labels = np.arange(20) % 4
    receipt = Receipt({"source": "scores.npy"}, {"epsilon": 0.04}, {"otlabel": "1"}, value=0.5)
    write_labels(path, StoredLabels(labels, np.bincount(labels), np.zeros(4), receipt))
    return path


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "[" * 100_000, "{", "\udcff", '{"labels_sha256": HASH}'])
def test_receipts_that_are_none(tmp_path: Path, text: str) -> None:
    path = _labels_with_receipt(tmp_path / "labels.npy")
    receipt = path.with_name("labels.npy.json")
    digest = json.dumps(json.loads(receipt.read_text())["labels_sha256"])
    receipt.write_bytes(text.replace("HASH", digest).encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=r"labels\.npy is no usable file of labels|labels\.npy has a receipt"):
        read_labels(path)


def test_labels_of_another_receipt_are_told(tmp_path: Path) -> None:
    """A checksum can tell, so nothing changes silently."""
    path = _labels_with_receipt(tmp_path / "labels.npy")
    np.save(path, np.arange(20) % 3)
    with pytest.warns(OtlabelWarning, match=r"labels\.npy\.json is a receipt of other labels"):
        assert read_labels(path).receipt is None


ATTRIBUTES = ["value", "bound", "gap", "rounding", "seed", "threshold", "complete", "texts_crc32", "format", "input"]


@pytest.mark.parametrize("name", [*ATTRIBUTES, "format_version"])
@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.zeros(1), h5py.Empty("f8"), np.nan])
def test_attributes_that_are_no_number_are_named(tmp_path: Path, name: str, value: Any) -> None:
    path = _labels_with_receipt(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as handle:
        handle.attrs[name] = value
    told = name if isinstance(value, (np.ndarray, h5py.Empty)) or name in ATTRIBUTES[:4] else ""
    if (name, told) == ("seed", ""):
        told = "seed"
    with pytest.raises(FileFormatError, match=rf"labels\.h5 .*{told}") as caught:
        read_labels(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["value", "bound", "gap", "rounding", "seed"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_of_a_receipt_that_are_none(tmp_path: Path, name: str, value: float) -> None:
    path = _labels_with_receipt(tmp_path / "labels.npy")
    receipt = path.with_name("labels.npy.json")
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {name: value}))
    with pytest.raises(FileFormatError, match=rf"labels\.npy is no usable file of labels: the {name} of its receipt"):
        read_labels(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "newer"])
def test_receipts_of_other_kinds(tmp_path: Path, kind: str) -> None:
    path = _labels_with_receipt(tmp_path / "labels.npy")
    receipt = path.with_name("labels.npy.json")
    told = json.loads(receipt.read_text())
    receipt.unlink()
    match kind:
        case "pipe":
            os.mkfifo(receipt)
        case "folder":
            receipt.mkdir()
        case "newer":
            receipt.write_text(json.dumps(told | {"format_version": 2}))
    with pytest.raises(FileFormatError, match=r"labels\.npy has a receipt, labels\.npy\.json, that is no"):
        read_labels(path)


@pytest.mark.parametrize("stored", [np.zeros(20), np.array([b"1"] * 20)])
def test_labels_that_are_no_whole_numbers(tmp_path: Path, stored: np.ndarray) -> None:
    path = _labels_with_receipt(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as handle:
        del handle["labels"]
        handle["labels"] = stored
    with pytest.raises(FileFormatError, match=r"labels\.h5 .*/labels claims to be .*, and whole numbers .* are wanted"):
        read_labels(path)


@pytest.mark.parametrize("name", ["value", "seed", "threshold", "input", "status", "complete"])
@pytest.mark.parametrize("value", ["text", b"text", [1, 2], "[1]", '{"a": 1}'])
def test_attributes_of_other_kinds(tmp_path: Path, name: str, value: Any) -> None:
    """An error of ours or a file that reads, never a traceback of another kind."""
    path = _labels_with_receipt(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as handle:
        handle.attrs[name] = value
        del handle.attrs["texts_crc32"]  # as if made by others
    with contextlib.suppress(FileFormatError):
        found = read_labels(path)
        assert isinstance(found.threshold, float)
        assert found.receipt is not None
        assert isinstance(found.receipt.value, float)
        assert isinstance(found.receipt.input, dict)


def test_texts_of_labels_have_a_checksum(tmp_path: Path) -> None:
    """HDF5's own; and ours, where it has none: in the heap that held texts before."""
    path = _labels_with_receipt(tmp_path / "labels.h5")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"scores.npy", b"scores.npz"))
    with pytest.raises(FileFormatError, match=r"labels\.h5 is no usable file of labels: .* checksum"):
        read_labels(path)
    path.write_bytes(good)
    with h5py.File(path, "r+") as handle:
        text = handle.attrs["input"].decode()
        del handle.attrs["input"]
        handle.attrs["input"] = text
    assert read_labels(path).receipt is not None
    good = path.read_bytes()
    path.write_bytes(good[: good.index(b"GCOL")] + good[good.index(b"GCOL") :].replace(b"scores.npy", b"scores.npz"))
    with pytest.raises(FileFormatError, match=r"labels\.h5 is damaged: the texts among its attributes"):
        read_labels(path)


@pytest.mark.parametrize("largest", [1 << 60, 1_500_000_000])
def test_one_large_label_takes_no_memory(tmp_path: Path, largest: int) -> None:
    labels = np.arange(60) % 4
    labels[7] = largest
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(FileFormatError, match=rf"label {largest:,} of sample 7 is far beyond"):
        read_labels(tmp_path / "labels.npy")
    with pytest.raises(ValueError, match="far beyond"):
        report(labels, path=tmp_path / "page.html")


# ---- the number of labels is known before they are read ----


MANY = 1_000_000_000  # in files with a hole in place of them


def _many_labels(path: Path, form: str) -> str:
    """Labels of a thousand million samples, of which the file has the size."""
    if form == "npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|i1", "fortran_order": False, "shape": (MANY,)})
            file.truncate(file.tell() + MANY)
        return str(path)
    name = {"labels": "labels", "heads": "heads/0/labels", "foreign": "deep/y"}[form]
    with h5py.File(path, "w") as handle:
        handle.create_dataset(name, (MANY,), np.int8)[-1] = 1
        if form != "foreign":
            handle.attrs.update(format=f"otlabel.{form}", format_version=1, complete=True, n_classes="[3]", seed=0)
    return f"{path}::/{name}" if form == "foreign" else str(path)


@pytest.mark.parametrize(
    ("command", "form"),
    [("certify", "npy"), ("certify", "labels"), ("certify", "foreign"), ("report", "npy"), ("report", "labels"),
     ("report", "heads"), ("report", "foreign"), ("truth", "npy")],
)  # fmt: skip
def test_labels_of_other_samples_are_not_read(run, file, command: str, form: str) -> None:
    ending = ".npy" if form == "npy" else ".h5"
    many = _many_labels(file.with_name(f"many{ending}"), form)
    page = file.with_name("page.html")
    few = file.with_name("few.npy")
    np.save(few, np.arange(N_SAMPLES) % N_CLASSES)
    begun = time.monotonic()
    ran = {
        "certify": lambda: run("certify", file, many),
        "report": lambda: run("report", many, "--scores", file, "-o", page),
        "truth": lambda: run("report", few, "--scores", file, "--truth", many, "-o", page),
    }[command]()
    assert ran.code == 2
    assert f"holds {MANY:,} labels, but there are {N_SAMPLES:,} samples" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert time.monotonic() - begun < 20  # a dozen times what it takes


def test_parts_of_labels_of_other_samples_are_not_read(run, file) -> None:
    folder = file.with_name("parts")
    folder.mkdir()
    for number in range(2):
        _many_labels(folder / f"part-0000{number}-of-00002.h5", "labels")
    ran = run("certify", file, folder)
    assert ran.code == 2
    assert f"parts holds {2 * MANY:,} labels, but there are {N_SAMPLES:,} samples" in ran.err


def test_a_data_set_of_other_samples_is_not_read(file) -> None:
    told = rf"labels must be {N_SAMPLES} integers, .* got shape \({MANY},\)"
    with h5py.File(_many_labels(file.with_name("many.h5"), "heads")) as handle, pytest.raises(ValueError, match=told):
        otlabel.certify(np.load(file), handle["heads/0/labels"])
    labeler = otlabel.SelfLabeler(n_samples=N_SAMPLES, n_classes=[3], labeling=otlabel.Argmax())
    with pytest.raises(FingerprintError, match=rf"are \({MANY}, \[3\], None\), here \({N_SAMPLES}, \[3\], None\)"):
        labeler.load_labels(file.with_name("many.h5"))
