"""Disks that fail, scores that are none, bytes that rot: named by file and place, with nothing written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command import NOBODY, names
from faults import Once, with_bytes
from kept_as import WAYS, chunked, hdf5_file, npy

from otlabel import certify, lp_assign, sinkhorn_assign
from otlabel.commands.main import main
from otlabel.doctor import diagnose
from otlabel.errors import FileFormatError, InvalidScoresError
from otlabel.sources import load_array

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


@pytest.fixture
def as_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder, which may be written, by a process that is not root."""
    folder = tmp_path / "current"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.chdir(folder)
    yield
    if os.getuid() == 0:
        os.seteuid(0)


@pytest.mark.parametrize("ending", ["npy", "npz", "h5", "pt"])
@pytest.mark.usefixtures("as_nobody")
def test_unreadable_file(array, capsys, ending: str) -> None:
    path = Path(with_bytes(f"scores.{ending}")(Path(), array))
    path.chmod(0)
    if os.getuid() == 0:
        os.seteuid(NOBODY)  # permission bits say nothing to root
    assert main(["assign", str(path), "-o", "labels.npy"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"otlabel: error: scores.{ending}: {os.strerror(errno.EACCES)}\n")
    assert names(Path()) == [f"scores.{ending}"]


def test_failing_disk_names_the_file(tmp_path, array, refused, monkeypatch) -> None:
    text = npy(tmp_path / "scores", array)

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    refused(text, f"{text}: {os.strerror(errno.EIO)}", code=1)


@pytest.mark.parametrize("limit", ["1e400", "-5", "much", "5PB", ""])
def test_memory_limit_that_is_none(tmp_path, array, capsys, limit: str) -> None:
    text = npy(tmp_path / "scores", array)
    assert main(["assign", text, "-o", str(tmp_path / "labels.npy"), f"--memory-limit={limit}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("otlabel: error: argument --memory-limit: ")
    assert err.count("\n") == 1


# ---- scores that are none ----

USES: dict[str, Callable[[Any, int], Any]] = {
    "kept": lambda scores, _: sinkhorn_assign(scores),
    "streamed": lambda scores, _: sinkhorn_assign(scores, memory_limit=0),
    "certify": lambda scores, n_rows: certify(scores, np.zeros(n_rows, np.int64), potentials=np.zeros(5)),
    "lp_assign": lambda scores, _: lp_assign(scores),
    "predict": lambda scores, _: sinkhorn_assign(np.eye(5)).predict(scores),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("way", ["npy", "npy of other byte order", "chunked", "gzip", "h5py.Dataset"])
def test_nan_is_located_in_its_file(tmp_path, array, way: str, value: float) -> None:
    array[[57, 58, 119], [3, 0, 4]] = value, np.nan, value
    source = WAYS[way](tmp_path / "scores", array)
    place = rf"^3 of 600 scores are NaN or \+inf, the first at row 57 of \S*scores\.\S+, class 3 \({value}\); mend"
    for use in USES.values():
        with pytest.raises(InvalidScoresError, match=place):
            use(source, 120)


@pytest.mark.parametrize("use", USES)
def test_nan_is_located_in_its_part(tmp_path, array, use: str) -> None:
    array[57, 3] = np.nan
    files = [npy(tmp_path / "a", array[:1]), chunked(tmp_path / "b", array[1:50]), chunked(tmp_path / "c", array[50:])]
    with pytest.raises(InvalidScoresError, match=r"row 57 \(row 7 of \S*c\.h5::/deep/scores\), class 3 \(nan\)"):
        USES[use](files, 120)


def test_nan_in_a_part_of_a_pattern_on_the_command_line(tmp_path, array, refused) -> None:
    array[57, 3] = np.nan
    for number, part in enumerate(np.split(array, [50])):
        np.save(tmp_path / f"part-{number}.npy", part)
    refused(f"{tmp_path}/part-*.npy", "1 of 600 scores", f"row 57 (row 7 of {tmp_path}/part-1.npy), class 3 (nan)")


def test_nan_is_counted_by_the_doctor(tmp_path, array) -> None:
    array[[57, 58], [3, 0]] = np.nan, np.inf
    told = diagnose(chunked(tmp_path / "scores", array))
    assert (told.n_nan, told.n_plus_inf, told.n_bad_rows) == (1, 1, 2)


# ---- bytes that rot ----


def flip(path: Path, name: str, row: int, column: int) -> None:
    """One bit in the middle of the chunk that holds a score; the file looks as old as before."""
    status = path.stat()
    with h5py.File(path) as handle:
        data = handle[name]
        place = tuple(at - at % step for at, step in zip((row, column), data.chunks, strict=True))
        infos = (data.id.get_chunk_info(number) for number in range(data.id.get_num_chunks()))
        (info,) = [info for info in infos if info.chunk_offset == place]
    with path.open("r+b") as file:
        file.seek(info.byte_offset + info.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("settings", [{"fletcher32": True}, {"compression": "gzip", "fletcher32": True}])
@pytest.mark.parametrize("use", USES)
def test_rotten_chunk_is_named(tmp_path, array, refused, use: str, settings: dict[str, Any]) -> None:
    text = hdf5_file(tmp_path / "scores", array, chunks=(25, 2), **settings)
    flip(tmp_path / "scores.h5", "deep/scores", 80, 3)
    place = r"scores\.h5::/deep/scores is damaged in chunk \(3, 1\), rows 75 to 99: "
    for source in (text, [npy(tmp_path / "good", array), text]):
        with pytest.raises(FileFormatError, match=place):
            USES[use](source, 120 if source is text else 240)
    refused(text, "/deep/scores is damaged in chunk (3, 1), rows 75 to 99: ")


def test_rotten_class_masses_and_labels(tmp_path) -> None:
    text = hdf5_file(tmp_path / "labels", np.arange(50) % 3, chunks=(10,), fletcher32=True)
    flip_of = tmp_path / "labels.h5"
    with h5py.File(flip_of) as handle:
        info = handle["deep/scores"].id.get_chunk_info(2)
    with flip_of.open("r+b") as file:
        file.seek(info.byte_offset)
        file.write(b"\xff")
    with pytest.raises(FileFormatError, match=r"labels\.h5::/deep/scores is damaged"):
        load_array(text)


@pytest.mark.usefixtures("long_way")  # small problems are read once
def test_rot_between_two_passes_is_noticed(tmp_path, refused) -> None:
    """By the checksum alone: size, time and file are those from before."""
    array = np.random.default_rng(0).standard_normal((30_000, 50))  # more than HDF5 keeps of a file in memory
    text = hdf5_file(tmp_path / "scores", array, chunks=(1000, 50), fletcher32=True)
    place = "/deep/scores is damaged in chunk (15, 0), rows 15000 to 15999: "
    rot = Once(lambda: flip(tmp_path / "scores.h5", "deep/scores", 15_500, 3))
    with pytest.raises(FileFormatError, match=re.escape(place)):
        sinkhorn_assign(text, memory_limit=0, progress=rot)
    refused(text, place)
