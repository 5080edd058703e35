"""The command: right labels in whole files, exit codes that scripts can trust, every error in one line."""

from __future__ import annotations

import errno
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import assert_only, assert_refused
from oracles import hungarian_labels

import otlabel
from otlabel import KL, Assignment, Exact, Range, read_labels, sinkhorn_assign
from otlabel.commands.main import build_parser

N_SAMPLES, N_CLASSES = 40, 4


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N_SAMPLES, N_CLASSES))


@pytest.fixture
def file(tmp_path: Path, scores: np.ndarray) -> Path:
    np.save(tmp_path / "scores.npy", scores)
    return tmp_path / "scores.npy"


def best_labels(scores: np.ndarray, counts: list[int]) -> np.ndarray:
    return hungarian_labels(scores, np.array(counts))


# ---- assign ----


def test_assign_writes_the_best_labels_of_equal_sizes(run, file, scores) -> None:
    ran = run("assign", file, "-o", file.with_name("labels.npy"))
    assert (ran.code, ran.err) == (0, "")
    labels = np.load(file.with_name("labels.npy"))
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, best_labels(scores, [10] * 4))
    assert "labels.npy" in ran.out
    assert_only(file.parent, "labels.npy", "scores.npy")


def test_printed_lines_fit_a_terminal(run, file, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(file.parent)
    printed = [run("assign", "scores.npy", "-o", "labels.npy").out, run("certify", "scores.npy", "labels.npy").out]
    printed += [
        run(*words, "--help").out
        for words in ([], ["assign"], ["predict"], ["certify"], ["plan"], ["doctor"], ["demo"])
    ]
    assert max(len(line) for text in printed for line in text.splitlines()) <= 80


def test_every_kind_of_file_gives_the_same_labels(run, tmp_path, scores) -> None:
    np.savez(tmp_path / "a.npz", other=scores[:5], logits=scores)
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle["heads/first"] = scores
    torch.save({"logits": torch.from_numpy(scores)}, tmp_path / "a.pt")
    for n, text in enumerate(("a.npz::logits", "a.h5::/heads/first", "a.pt")):
        output = tmp_path / f"{n}.npy"
        assert run("assign", tmp_path / text, "-o", output).code == 0
        np.testing.assert_array_equal(np.load(output), best_labels(scores, [10] * 4))


@pytest.mark.parametrize("kind", ["counts", "shares", "spaced", "text file", "npy file"])
def test_class_mass_may_be_given_in_every_way(run, file, scores, kind) -> None:
    text, array = file.with_name("mass.txt"), file.with_name("mass.npy")
    text.write_text("20\n10\n10\n0\n")
    np.save(array, np.array([0.5, 0.25, 0.25, 0]))
    mass = {"counts": "20,10,10,0", "shares": "0.5,0.25,0.25,0", "spaced": "20, 10, 10, 0", "text file": text}
    ran = run("assign", file, "-o", file.with_name("labels.npy"), "--class-mass", mass.get(kind, array))
    assert ran.code == 0
    np.testing.assert_array_equal(np.load(file.with_name("labels.npy")), best_labels(scores, [20, 10, 10, 0]))


def test_every_setting_reaches_the_solver(run, file, monkeypatch) -> None:
    seen: dict[str, Any] = {}

    def spy(scores: Any, **settings: Any) -> Assignment:
        seen.update(settings)
        return sinkhorn_assign(scores, **settings)

    monkeypatch.setattr(otlabel, "sinkhorn_assign", spy)
    words = "--epsilon .5 --tol .2 --rounding argmax --method sinkhorn --max-sweeps 77 --seed 3 --device cpu"
    words += " --labels-per-sample 2 --remainder first"
    assert run("assign", file, "-o", file.with_name("labels.npy"), *words.split(), "--memory-limit", "4GB").code == 0
    expected = {"epsilon": 0.5, "tol": 0.2, "rounding": "argmax", "method": "sinkhorn", "max_sweeps": 77, "seed": 3}
    expected |= {"device": "cpu", "class_mass": None, "memory_limit": 4_000_000_000, "init": None, "group": None}
    assert callable(seen.pop("progress"))  # who keeps checkpoints, and shows a bar where one is asked for
    rules = {"classes": Exact(), "abstain": 0.0, "labels_per_sample": 2, "remainder": "first"}
    assert seen == expected | rules


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--range", "5", "30"], Range(5, 30)),
        (["--range", "0.1", "0.5"], Range(0.1, 0.5)),
        (["--kl", "2.5"], KL(2.5)),
        (["--abstain", "0.25"], Exact()),
        (["--labels-per-sample", "2"], Exact()),
        (["--labels-per-sample", "2", "--range", "5", "30"], Range(5, 30)),
    ],
)
def test_rules_give_what_the_function_gives(run, file, scores, words, rule) -> None:
    labels = file.with_name("labels.h5")
    assert run("assign", file, "-o", labels, *words).code == 0
    share = 0.25 if "--abstain" in words else 0.0
    several = 2 if "--labels-per-sample" in words else 1
    expected = sinkhorn_assign(scores, classes=rule, abstain=share, labels_per_sample=several)
    np.testing.assert_array_equal(read_labels(labels).labels, expected.labels)
    again = file.with_name("again.npy")
    assert run("predict", file, "--potentials", labels, "-o", again).code == 0
    np.testing.assert_array_equal(np.load(again), expected.predict(scores))
    told = json.loads(run("certify", file, labels, "--potentials", labels, "--json").out)
    assert abs(told["gap"]) <= 1e-12


@pytest.mark.parametrize("words", [["--range", "5"], ["--range", "-1", "3"], ["--abstain", "2"], ["--kl", "0"]])
def test_rules_that_make_no_sense(run, file, words) -> None:
    assert run("assign", file, "-o", file.with_name("labels.npy"), *words).code == 2


def test_defaults_are_those_of_the_function() -> None:
    settings = vars(build_parser().parse_args(["assign", "scores.npy", "-o", "labels.npy"]))
    parameters = inspect.signature(sinkhorn_assign).parameters
    names = "labels_per_sample epsilon tol rounding method max_sweeps seed device class_mass progress memory_limit"
    for name in names.split():
        assert settings[name] == parameters[name].default, name


def test_json_holds_the_result(run, file, scores) -> None:
    ran = run("assign", file, "-o", file.with_name("labels.npy"), "--json")
    told = json.loads(ran.out)
    result = sinkhorn_assign(scores)
    assert (told["n_samples"], told["n_classes"], told["counts"]) == (N_SAMPLES, N_CLASSES, [10] * 4)
    assert told["value"] == pytest.approx(result.value, rel=1e-12)
    assert abs(told["gap"]) <= 1e-12
    assert told["status"] == result.status.value
    assert told["n_sweeps"] == result.n_sweeps


def test_progress_is_shown_on_stderr_only(run, file) -> None:
    ran = run("assign", file, "-o", file.with_name("labels.npy"), "--progress", "--json")
    assert ran.code == 0
    json.loads(ran.out)


def test_saved_result_predicts_and_certifies(run, file, scores) -> None:
    labels, saved = file.with_name("labels.npy"), file.with_name("result.npz")
    assert run("assign", file, "-o", labels, "--potentials", saved).code == 0
    np.testing.assert_array_equal(Assignment.load(saved).predict(scores), np.load(labels))
    told = json.loads(run("certify", file, labels, "--potentials", saved, "--json").out)
    assert abs(told["gap"]) <= 1e-12


def test_existing_labels_survive_unless_forced(run, file, scores) -> None:
    labels = file.with_name("labels.npy")
    labels.write_bytes(b"precious")
    assert_refused(run("assign", file, "-o", labels), "labels.npy exists already", "--force")
    assert labels.read_bytes() == b"precious"
    assert run("assign", file, "-o", labels, "--force").code == 0
    np.testing.assert_array_equal(np.load(labels), best_labels(scores, [10] * 4))


def test_new_labels_are_as_readable_as_any_new_file(run, file) -> None:
    plain = file.with_name("plain")
    plain.touch()
    assert run("assign", file, "-o", file.with_name("labels.npy")).code == 0
    assert file.with_name("labels.npy").stat().st_mode == plain.stat().st_mode


def test_warnings_are_one_line_and_no_failure(run, tmp_path) -> None:
    np.save(tmp_path / "scores.npy", np.zeros((8, 2)))
    ran = run("assign", tmp_path / "scores.npy", "-o", tmp_path / "labels.npy")
    assert ran.code == 0
    assert ran.err.startswith("otlabel: warning: ")
    assert ran.err.count("\n") == 1
    np.testing.assert_array_equal(np.bincount(np.load(tmp_path / "labels.npy")), [4, 4])


def test_transposed_scores_are_refused(run, file, scores) -> None:
    np.save(file.with_name("t.npy"), np.ascontiguousarray(scores.T))
    words = ("assign", file.with_name("t.npy"), "-o", file.with_name("labels.npy"))
    for more in ([], ["--kl", "1"], ["--range", "0", "0.5"]):
        assert_refused(run(*words, *more), "4 samples (rows) and 40 classes (columns)", "transposed?", "--range 0 1")
    assert_only(file.parent, "scores.npy", "t.npy")
    assert run(*words, "--range", "0", "1").code == 0  # each class for one sample at most
    expected = sinkhorn_assign(scores.T, classes=Range(0, 1))
    np.testing.assert_array_equal(np.load(file.with_name("labels.npy")), expected.labels)
    mass = ",".join(["1"] * 4 + ["0"] * 36)
    assert run(*words, "--class-mass", mass, "--force").code == 0
    np.save(file.with_name("few.npy"), np.ascontiguousarray(scores.T[:, :10]))
    assert run("assign", file.with_name("few.npy"), "-o", file.with_name("few-labels.npy")).code == 0


# ---- certify ----


def test_certify_known_labels(run, tmp_path) -> None:
    np.save(tmp_path / "scores.npy", np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 4.0]]))
    np.save(tmp_path / "best.npy", np.array([0, 0, 1, 1]))
    np.save(tmp_path / "swapped.npy", np.array([0, 1, 0, 1]))
    best = json.loads(run("certify", tmp_path / "scores.npy", tmp_path / "best.npy", "--json").out)
    swapped = json.loads(run("certify", tmp_path / "scores.npy", tmp_path / "swapped.npy", "--json").out)
    assert best["value"] == pytest.approx(10 / 4)
    assert best["gap"] == pytest.approx(0, abs=1e-12)
    assert swapped["value"] == pytest.approx(7 / 4)
    assert swapped["gap"] == pytest.approx(3 / 4)
    assert swapped["relative_gap"] == pytest.approx((3 / 4) / (7 / 4))
    assert best["counts"] == swapped["counts"] == [2, 2]


def test_bad_labels_still_get_a_certificate(run, tmp_path, file, scores) -> None:
    np.save(tmp_path / "worst.npy", scores.argmin(axis=1))
    ran = run("certify", file, tmp_path / "worst.npy")
    assert (ran.code, ran.err) == (0, "")
    assert "gap" in ran.out


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.full(N_SAMPLES, N_CLASSES), np.zeros(N_SAMPLES)])
def test_certify_refuses_what_are_no_labels(run, file, labels) -> None:
    np.save(file.with_name("labels.npy"), labels)
    ran = run("certify", file, file.with_name("labels.npy"))
    if labels.dtype.kind == "f":
        assert ran.code in (0, 2)  # whole numbers stored as floats may pass
    else:
        assert_refused(ran)


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ("absent.npy", ["absent.npy does not exist"]),
        ("a.npz::nothing", ["a.npz", "'nothing'", "first, second"]),
        ("a.npz", ["a.npz", "first, second"]),
        ("a.h5::/nothing", ["a.h5", "/nothing", "/scores"]),
        ("pickled.npy", ["pickled.npy", "objects"]),
        ("pickled.pt", ["pickled.pt"]),
        ("torn.npy", ["torn.npy"]),
        ("torn.npz::first", ["torn.npz"]),
        ("torn.h5::/scores", ["torn.h5"]),
        ("torn.pt", ["torn.pt"]),
        ("scores.txt", ["scores.txt", "'.txt'"]),
        ("nan.npy", ["NaN", "row 7", "class 2"]),
        ("flat.npy", ["(40,)"]),
        ("forbidden.npy", ["row 3"]),
    ],
)
def test_bad_scores_are_one_line_and_leave_nothing(run, tmp_path, scores, words) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    output.mkdir()
    good = np.random.default_rng(0).normal(size=(N_SAMPLES, N_CLASSES))
    np.savez(inputs / "a.npz", first=good, second=good)
    with h5py.File(inputs / "a.h5", "w") as handle:
        handle["scores"] = good
    np.save(inputs / "pickled.npy", np.array([[{}], [{}]]), allow_pickle=True)
    torch.save(Path("."), inputs / "pickled.pt")
    np.save(inputs / "whole.npy", good)
    for name in ("torn.npy", "torn.npz", "torn.h5", "torn.pt", "scores.txt"):
        (inputs / name).write_bytes((inputs / "whole.npy").read_bytes()[:100])
    for name, row, cls, value in (("nan.npy", 7, 2, np.nan), ("forbidden.npy", 3, slice(None), -np.inf)):
        spoiled = good.copy()
        spoiled[row, cls] = value
        np.save(inputs / name, spoiled)
    np.save(inputs / "flat.npy", good[:, 0])
    assert_refused(run("assign", inputs / scores, "-o", output / "labels.npy"), *words)
    assert_only(output)


@pytest.mark.parametrize(
    ("mass", "words"),
    [
        ("10,10,10", ["(3,)", "4 classes"]),
        ("10,10,10,11", ["sums to 41"]),
        ("0.5,0.5,0.5,-0.5", ["-0.5"]),
        ("absent.txt", ["'absent.txt'"]),
        ("99999999999999999999999,1,1,1", ["sums to 1e+23"]),
        ("9" * 5000 + ",1,1,1", ["inf"]),
        ("10;30", ["'10;30'"]),
    ],
)
def test_bad_class_mass(run, file, mass, words) -> None:
    assert_refused(run("assign", file, "-o", file.with_name("labels.npy"), "--class-mass", mass), *words)


def test_class_mass_file_that_holds_no_numbers(run, file) -> None:
    file.with_name("mass.txt").write_text("ten, twenty")
    ran = run("assign", file, "-o", file.with_name("labels.npy"), "--class-mass", file.with_name("mass.txt"))
    assert_refused(ran, "mass.txt", "'ten'")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("no/labels.npy", ["no does not exist"]),
        ("labels.csv", ["labels.csv", ".npy"]),
        ("scores.npy/labels.npy", ["does not exist"]),
        ("folder.npy", ["folder.npy is a folder"]),
    ],
)
def test_output_is_checked_before_the_scores_are_read(run, file, output, words) -> None:
    file.with_name("folder.npy").mkdir()
    absent = file.with_name("absent.npy")  # had the scores been read first, this would be the complaint
    assert_refused(run("assign", absent, "-o", file.parent / output), *words)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody may write, not even root")
def test_output_folder_that_cannot_be_written(run, file) -> None:
    assert_refused(run("assign", file, "-o", "/proc/labels.npy"), "cannot write in the folder /proc")


def test_labels_and_potentials_need_two_files(run, file) -> None:
    ran = run("assign", file, "-o", file.with_name("a.npy"), "--potentials", file.with_name("a.npy"))
    assert_refused(ran, "a.npy", ".npz")


def test_potentials_file_of_another_kind(run, file) -> None:
    np.savez(file.with_name("a.npz"), something=np.zeros(3))
    np.save(file.with_name("labels.npy"), np.arange(N_SAMPLES) % N_CLASSES)
    ran = run("certify", file, file.with_name("labels.npy"), "--potentials", file.with_name("a.npz"))
    assert_refused(ran, "a.npz")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["assign"], "SCORES"),
        (["assign", "a.npy"], "--output"),
        (["assing", "a.npy"], "'assing'"),
        (["assign", "a.npy", "-o", "b.npy", "--epsilon", "0"], "'0' is not a positive number"),
        (["assign", "a.npy", "-o", "b.npy", "--tol", "small"], "'small' is not a positive number"),
        (["assign", "a.npy", "-o", "b.npy", "--max-sweeps", "0"], "'0' is not a whole number"),
        (["assign", "a.npy", "-o", "b.npy", "--rounding", "soft"], "'soft'"),
        (["assign", "a.npy", "-o", "b.npy", "--nonsense"], "--nonsense"),
        (["assign", "a.npy", "-o", "b.npy", "--seed", "-1"], "--seed: '-1' is not a whole number from 0 to"),
        (["assign", "a.npy", "-o", "b.npy", "--seed", str(1 << 63)], "is not a whole number from 0 to"),
        (["curate", "a.npy", "-o", "b.npy", "-n", "3", "--seed", "-1"], "--seed: '-1' is not a whole number from 0"),
        (["report", "a.npy", "-o", "b.html", "--seed", "x"], "--seed: 'x' is not a whole number from 0"),
    ],
)
def test_bad_usage_is_one_line(run, words, told) -> None:
    assert_refused(run(*words), told)


def test_unknown_device(run, file) -> None:
    assert_refused(run("assign", file, "-o", file.with_name("labels.npy"), "--device", "abacus"), "abacus")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 8.00 GiB"), 1, "not enough memory: Unable to allocate 8.00 GiB"),
        (otlabel.errors.MissingPackageError("pot", "exact"), 1, 'pip install "pot>='),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
            1,
            "on the device: CUDA out of memory. Tried",
        ),
        (OSError(errno.EIO, os.strerror(errno.EIO), "scores.npy"), 1, f"scores.npy: {os.strerror(errno.EIO)}"),
    ],
)
def test_failures_on_the_way_leave_nothing(run, file, monkeypatch, error, code, told) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(otlabel, "sinkhorn_assign", fail)
    assert_refused(run("assign", file, "-o", file.with_name("labels.npy")), told, code=code)
    assert_only(file.parent, "scores.npy")


def test_full_disk_keeps_the_old_labels(run, file, monkeypatch) -> None:
    labels = file.with_name("labels.npy")
    labels.write_bytes(b"precious")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    assert_refused(run("assign", file, "-o", labels, "--force"), os.strerror(errno.ENOSPC), code=1)
    assert labels.read_bytes() == b"precious"
    assert_only(file.parent, "labels.npy", "scores.npy")


def test_too_small_a_disk_is_noticed_before_solving(run, file, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    monkeypatch.setattr(otlabel, "sinkhorn_assign", lambda *_, **__: pytest.fail("solved first"))
    ran = run("assign", file, "-o", file.with_name("labels.npy"))
    assert_refused(ran, "labels.npy needs 448 bytes", "100 free", code=1)


# ---- as a process ----


def python(*words: Any, stdout: int = subprocess.PIPE, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python of its own, which finds otlabel where this one found it."""
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(Path(otlabel.__file__).parents[1])}
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120, cwd=cwd, env=environment
    )


def test_module_and_command_are_one(file) -> None:
    ran = python("-m", "otlabel", "assign", file.name, "-o", "labels.npy", cwd=file.parent)
    assert (ran.returncode, ran.stderr) == (0, "")
    ran = python("-m", "otlabel", "certify", "scores.npy", "absent.npy", cwd=file.parent)
    assert (ran.returncode, ran.stderr) == (2, "otlabel: error: absent.npy does not exist\n")


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from otlabel.commands.main import main; main(['--help']); print('LOADED', *sys.modules)"
    ran = python("-c", code)
    assert "assign" in ran.stdout
    loaded = ran.stdout.partition("LOADED")[2].split()
    assert not {"torch", "numba", "scipy", "h5py"} & set(loaded)


def test_no_command_shows_the_help(run) -> None:
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("usage: otlabel")


def test_version(run) -> None:
    assert run("--version") == (0, f"otlabel {otlabel.__version__}\n", "")


def test_reader_that_leaves_early_causes_no_traceback(file) -> None:
    np.save(file.with_name("labels.npy"), np.arange(N_SAMPLES) % N_CLASSES)
    read, write = os.pipe()
    os.close(read)
    try:
        certified = python("-m", "otlabel", "certify", file, file.with_name("labels.npy"), stdout=write)
        helped = python("-m", "otlabel", "--help", stdout=write)
    finally:
        os.close(write)
    assert (certified.returncode, certified.stderr) == (141, "")
    assert helped.stderr == ""
