"""Files that are damaged, absurd, hostile, or change while they are read: refused by name, with nothing written."""

from __future__ import annotations

import collections
import ctypes
import errno
import io
import os
import re
import signal
import struct
import subprocess
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command import COMMAND, NOBODY, Ran, assert_interrupted_at_once, assert_refused, names, python
from kept_as import WAYS, chunked, hdf5_file, npy

from otlabel import certify, linear_scores, lp_assign, sinkhorn_assign
from otlabel.commands.main import main
from otlabel.doctor import diagnose
from otlabel.errors import FileFormatError, InvalidScoresError
from otlabel.solver.monitor import Monitor
from otlabel.sources import load_array, open_scores, read_rows
from otlabel.sources.hdf5 import HDF5Source

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")

MOST_SECONDS, MOST_BYTES = 1.0, 8 << 20  # that a refusal may take


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((120, 5))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """A function that sees `otlabel assign` refuse scores in one line and write nothing."""

    def refused(scores: Any, *words: str, code: int = 2) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        capsys.readouterr()
        ended = main(["assign", str(scores), "-o", str(folder / "labels.h5"), "--memory-limit", "0"])
        out, err = capsys.readouterr()
        assert_refused(Ran(ended, out, err), *words, code=code)
        assert names(folder) == []
        folder.rmdir()

    return refused


# ---- files that are not what they claim ----


def with_bytes(name: str, change: Callable[[bytes], bytes] = bytes) -> Callable[[Path, np.ndarray], str]:
    """A file of that ending, well made, then changed."""

    def make(folder: Path, array: np.ndarray) -> str:
        path = folder / name
        if path.suffix == ".npy":
            np.save(path, array)
        elif path.suffix == ".npz":
            np.savez_compressed(path, scores=array)
        elif path.suffix == ".pt":
            torch.save(torch.from_numpy(array), path)
        else:
            with h5py.File(path, "w") as handle:
                handle["scores"] = array
        path.write_bytes(change(path.read_bytes()))
        return str(path)

    return make


def in_hdf5(fill: Callable[[h5py.File], Any], inner: str = "::/x") -> Callable[[Path, np.ndarray], str]:
    """An HDF5 file that a function fills."""

    def make(folder: Path, _: np.ndarray) -> str:
        with h5py.File(folder / "scores.h5", "w") as handle:
            fill(handle)
        return f"{folder / 'scores.h5'}{inner}"

    return make


def npy_header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue()


def member(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


def stored(value: Any) -> bytes:
    image = io.BytesIO()
    torch.save(value, image)
    return image.getvalue()


def saved(array: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    """Garbage in the middle."""
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 16 + content[middle + 16 :]


def partly_written(handle: h5py.File) -> None:
    data = handle.create_dataset("x", (100, 6), "f4", chunks=(10, 3))
    data[:70] = 1.0


def compressed(shape: tuple[int, int], chunks: tuple[int, int]) -> Callable[[h5py.File], None]:
    """A small file whose chunks are large once they are read."""

    def fill(handle: h5py.File) -> None:
        data = handle.create_dataset("x", shape, "f4", maxshape=(None, None), chunks=chunks, compression="gzip")
        for column in range(0, shape[1], chunks[1]):
            data.id.write_direct_chunk((0, column), zlib.compress(b"0"))

    return fill


def behind_unknown_filter(handle: h5py.File) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((3, 4))
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    data = h5py.h5d.create(handle.id, b"x", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((6, 4)), settings)
    for row in (0, 3):
        data.write_direct_chunk((row, 0), bytes(96))


def virtual(handle: h5py.File) -> None:
    layout = h5py.VirtualLayout((10, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (10, 3))
    handle.create_virtual_dataset("x", layout)


def growing_virtual(handle: h5py.File) -> None:
    """Its shape is asked of the other file."""
    layout = h5py.VirtualLayout((10, 3), "f8", maxshape=(None, 3))
    source = h5py.VirtualSource("other.h5", "x", (10, 3), maxshape=(None, 3))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    handle.create_virtual_dataset("x", layout)


def of_type(kind: Any) -> Callable[[h5py.File], Any]:
    return lambda handle: handle.create_dataset("x", (3, 2), dtype=kind)


def of_time(handle: h5py.File) -> None:
    h5py.h5d.create(handle.id, b"x", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4, 3)))


def linked(handle: h5py.File, name: str, link: Any) -> None:
    handle["group/y"] = np.zeros((3, 2))
    handle[name] = link


def shards(*kinds: tuple[int, str]) -> Callable[[Path, np.ndarray], str]:
    def make(folder: Path, _: np.ndarray) -> str:
        for number, (n_classes, kind) in enumerate(kinds):
            hdf5_file(folder / f"part-{number}", np.zeros((4, n_classes), kind))
        return f"{folder}/part-*.h5::/deep/scores"

    return make


def folder_named(name: str) -> Callable[[Path, np.ndarray], str]:
    def make(folder: Path, _: np.ndarray) -> str:
        (folder / name).mkdir()
        return str(folder / name)

    return make


def at(text: str) -> Callable[[Path, np.ndarray], str]:
    return lambda folder, _: f"{folder}/{text}"


HUGE = (10**12, 10**6)
FORMAT, SCORES = FileFormatError, InvalidScoresError
REFUSED: dict[str, tuple[Callable[[Path, np.ndarray], str], type[Exception], str]] = {
    # damaged
    "npy cut short": (with_bytes("scores.npy", half), FORMAT, r"scores\.npy claims .* \(120, 5\).*cut short"),
    "npy without its last byte": (with_bytes("scores.npy", lambda b: b[:-1]), FORMAT, "4,928 bytes, but has 4,927"),
    "hdf5 cut short": (with_bytes("scores.h5", half), FORMAT, r"scores\.h5 is not a readable HDF5 file.*truncated"),
    "npz cut short": (with_bytes("scores.npz", half), FORMAT, r"scores\.npz is not a usable \.npz file"),
    "npz overwritten": (with_bytes("scores.npz", overwritten), FORMAT, r"scores\.npz is not a usable \.npz file"),
    "pt cut short": (with_bytes("scores.pt", half), FORMAT, r"scores\.pt is not a file of plain tensors"),
    **{
        f"empty {ending}": (with_bytes(f"scores.{ending}", lambda _: b""), FORMAT, rf"scores\.{ending} is not a")
        for ending in ("npy", "npz", "h5", "pt")
    },
    **{
        f"text named {ending}": (with_bytes(f"scores.{ending}", lambda _: b"1 2\n" * 99), FORMAT, rf"\.{ending} is not")
        for ending in ("npy", "npz", "h5", "pt")
    },
    "npy named npz": (with_bytes("scores.npz", lambda _: saved(np.eye(3))), FORMAT, r"scores\.npz is not a usable"),
    "npz named npy": (with_bytes("scores.npy", lambda _: member("x.npy", b"")), FORMAT, r"scores\.npy is not a usable"),
    "npy header in pieces": (
        with_bytes("scores.npy", lambda b: b.replace(b"(120, 5)", b"(((((((,")),
        FORMAT,
        r"scores\.npy is not a usable",
    ),
    "npz of other things": (with_bytes("a.npz", lambda _: member("a.txt", b"1")), FORMAT, "no array at all"),
    # absurd
    "absurd npy": (with_bytes("scores.npy", lambda _: npy_header(HUGE) + b"1"), FORMAT, r"scores\.npy claims"),
    "negative npy": (
        with_bytes("scores.npy", lambda _: npy_header((-3, 4)) + b"1" * 99),
        FORMAT,
        r"scores\.npy claims.*\(-3, 4\)",
    ),
    "npy of a truth value": (
        with_bytes("scores.npy", lambda _: npy_header((True, 4)) + b"1" * 99),
        FORMAT,
        r"scores\.npy claims.*\(True, 4\)",
    ),
    "npy header that is long": (
        with_bytes("scores.npy", lambda _: b"\x93NUMPY\x02\x00" + struct.pack("<I", 20_000) + b" " * 30_000),
        FORMAT,
        r"scores\.npy is not a usable \.npy file: its header takes 20,000 bytes, and .* at most 10,000$",
    ),
    "npy header beyond the file": (
        with_bytes("scores.npy", lambda _: b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 32) - 1) + b"{"),
        FORMAT,
        r"scores\.npy is not .*: its header of 4,294,967,295 bytes does not end within the 13 bytes of the file$",
    ),
    "npz header beyond the file": (
        with_bytes("scores.npz", lambda _: member("x.npy", b"\x93NUMPY\x01\x00\xff\xff{")),
        FORMAT,
        r"scores\.npz::x is not .*: its header of 65,535 bytes does not end within the 11 bytes",
    ),
    "pt of a list": (
        with_bytes("a.pt", lambda _: stored([torch.eye(3)])),
        FORMAT,
        r"a\.pt holds a list, not a tensor; save one",
    ),
    "pt of no tensor": (
        with_bytes("a.pt", lambda _: stored({"a": [1]})),
        FORMAT,
        r"a\.pt is a dict without a tensor; save one",
    ),
    "absurd npz": (
        with_bytes("scores.npz", lambda _: member("x.npy", npy_header(HUGE) + b"1")),
        FORMAT,
        r"scores\.npz::x claims",
    ),
    "absurd and chunked": (
        in_hdf5(lambda h: h.create_dataset("x", HUGE, "f4", chunks=(1000, 1000))),
        FORMAT,
        r"scores\.h5::/x claims the shape \(1000000000000, 1000000\), but only 0 of its 1,000,000,000,000 chunks",
    ),
    "absurd and contiguous": (
        in_hdf5(lambda h: h.create_dataset("x", HUGE, "f4")),
        FORMAT,
        "only 0 of its 4,000,000,000,000,000,000 bytes are there: it was never finished",
    ),
    "partly written": (in_hdf5(partly_written), FORMAT, r"scores\.h5::/x .*14 of its 20 chunks.*never finished"),
    "huge chunk": (
        in_hdf5(compressed((10, 10), (30_000, 30_000))),
        FORMAT,
        r"/x is stored in chunks of \(30000, 30000\).*chunks of about 1 MiB",
    ),
    "huge row of chunks": (
        in_hdf5(compressed((1000, 300_000), (1000, 1000))),
        FORMAT,
        r"/x is stored in chunks of \(1000, 1000\).*chunks of about 1 MiB",
    ),
    "unknown filter": (
        in_hdf5(behind_unknown_filter),
        FORMAT,
        r"/x .*filter 32015.*not installed.*pip install hdf5plugin",
    ),
    # elsewhere
    "folder.npy": (folder_named("a.npy"), IsADirectoryError, r"a\.npy"),
    "folder.npz": (folder_named("a.npz"), IsADirectoryError, r"a\.npz"),
    "folder.h5": (folder_named("a.h5"), IsADirectoryError, r"a\.h5"),
    "folder.pt": (folder_named("a.pt"), IsADirectoryError, r"a\.pt"),
    "missing file": (at("absent.npy"), FileNotFoundError, r"absent\.npy does not exist"),
    "pattern without a file": (at("part-*.h5::/x"), FileNotFoundError, r"no file fits the pattern .*part-\*\.h5"),
    "other ending": (with_bytes("scores.csv"), FORMAT, r"scores\.csv ends in '\.csv'; known endings are \.npy"),
    "no ending": (with_bytes("scores"), FORMAT, "scores ends in ''"),
    "missing data set": (
        in_hdf5(lambda h: h.create_dataset("a", (3, 2), "f4")),
        FORMAT,
        r"scores\.h5 holds no '/x'\. It holds: /a \(3, 2\) float32",
    ),
    "missing group": (
        in_hdf5(lambda h: h.create_dataset("a/b", (3, 2), "f4"), "::/c/b"),
        FORMAT,
        "holds no '/c/b'.*/a/b",
    ),
    "below a data set": (in_hdf5(lambda h: h.create_dataset("a", (3, 2), "f4"), "::/a/b"), FORMAT, "no '/a/b'.*/a"),
    "group": (
        in_hdf5(lambda h: h.create_dataset("x/y", (3, 2), "f4")),
        FORMAT,
        r"::/x is no data set\. .*: /x/y \(3, 2\)",
    ),
    "root": (in_hdf5(lambda h: h.create_dataset("x/y", (3, 2), "f4"), "::/"), FORMAT, "is no data set.*: /x/y"),
    "several and none named": (
        in_hdf5(lambda h: [h.create_dataset(name, (3, 2), "f4") for name in "ab"], ""),
        FORMAT,
        r"scores\.h5 holds /a \(3, 2\) float32, /b \(3, 2\) float32; name one as FILE::/NAME",
    ),
    "many and none named": (
        in_hdf5(lambda h: [h.create_dataset(f"n{k}", (1, 1), "f4") for k in range(50)], ""),
        FORMAT,
        "and 30 more",
    ),
    "nothing and none named": (in_hdf5(lambda _: None, ""), FORMAT, "holds no data set at all"),
    "name in npy": (lambda folder, array: npy(folder / "a", array) + "::x", FORMAT, "one array.*leave out '::x'"),
    # no matrix of numbers
    **{
        f"{len(shape)}-D npy {shape}": (
            with_bytes("scores.npy", lambda _, shape=shape: saved(np.zeros(shape))),  # type: ignore[misc]
            SCORES,
            rf"scores\.npy have shape {re.escape(str(shape))}",
        )
        for shape in ((), (5,), (5, 4, 3), (0, 3), (3, 0))
    },
    **{
        f"{len(shape)}-D hdf5 {shape}": (
            in_hdf5(lambda h, shape=shape: h.create_dataset("x", data=np.zeros(shape))),  # type: ignore[misc]
            SCORES,
            rf"scores\.h5::/x have shape {re.escape(str(shape))}",
        )
        for shape in ((), (5,), (5, 4, 3), (0, 3), (3, 0))
    },
    "null": (in_hdf5(lambda h: h.create_dataset("x", data=h5py.Empty("f4"))), SCORES, r"/x have shape \(\)"),
    "text": (in_hdf5(lambda h: h.create_dataset("x", data=np.full((3, 2), b"a"))), SCORES, r"/x have dtype \|S1"),
    "texts": (in_hdf5(of_type(h5py.string_dtype())), SCORES, "/x has dtype object; numbers are needed"),
    "compound": (in_hdf5(lambda h: h.create_dataset("x", data=np.zeros((3, 2), "f4,f4"))), SCORES, "/x have dtype"),
    "complex": (in_hdf5(lambda h: h.create_dataset("x", data=np.zeros((3, 2), complex))), SCORES, "dtype complex128"),
    "references": (in_hdf5(of_type(h5py.ref_dtype)), SCORES, "/x has dtype object"),
    "lists": (in_hdf5(of_type(h5py.vlen_dtype("f4"))), SCORES, "/x has dtype object"),
    "times": (in_hdf5(of_time), SCORES, "/x has dtype unknown"),
    "times beside": (in_hdf5(of_time, "::/y"), FORMAT, r"no '/y'.*/x \(4, 3\) of unknown type"),
    "complex npy": (
        with_bytes("a.npy", lambda _: saved(np.zeros((3, 2), complex))),
        SCORES,
        "a.npy have dtype complex",
    ),
    "text npy": (with_bytes("a.npy", lambda _: saved(np.full((3, 2), "a"))), SCORES, r"a\.npy have dtype <U1"),
    "fields npy": (with_bytes("a.npy", lambda _: saved(np.zeros((3, 2), "f4,f4"))), SCORES, r"a\.npy have dtype"),
    "times npy": (with_bytes("a.npy", lambda _: saved(np.zeros((3, 2), "M8[s]"))), SCORES, "dtype datetime64"),
    "pickled npy": (
        with_bytes("a.npy", lambda _: saved(np.array([[{}], [1]], object), allow_pickle=True)),
        FORMAT,
        r"a\.npy holds pickled Python objects, which are never loaded; save plain numbers",
    ),
    "pt with objects": (
        with_bytes("a.pt", lambda _: stored(collections.deque([1]))),
        FORMAT,
        r"a\.pt is not a file of plain tensors: it holds more than that$",
    ),
    "pt with a flipped bit": (
        with_bytes("a.pt", lambda b: overwritten(b)),
        FORMAT,
        r"a\.pt is damaged: the checksum of '\S*data/0' in it does not hold",
    ),
    **{
        f"pt {what}": (
            with_bytes("a.pt", lambda _, value=value: stored(value)),  # type: ignore[misc]
            FORMAT,
            rf"a\.pt holds a tensor that is {what}; save .*",
        )
        for what, value in {
            "sparse": torch.eye(3).to_sparse_csr(),
            "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged),
            "quantised": torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8),
            "on the device meta, without numbers": torch.empty(3, 4, device="meta"),
        }.items()
    },
    "npy of brackets in brackets": (
        with_bytes("a.npy", lambda _: b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000 + bytes(99)),
        FORMAT,
        r"a\.npy is not a usable \.npy file",
    ),
    "npy of signs before a number": (
        with_bytes("a.npy", lambda _: b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 8999 + b"1" + bytes(99)),
        FORMAT,
        r"a\.npy is not a usable \.npy file: its header is no description of an array",
    ),
    "names for terminals": (
        in_hdf5(lambda h: [h.create_dataset(f"a\x1b[2J\n\u202e{n}", (3, 2), "f4") for n in "bc"], ""),
        FORMAT,
        r"holds /a\\x1b\[2J\\n\\u202eb \(3, 2\) float32, /a\\x1b\[2J\\n\\u202ec .*name one",
    ),
    "names for terminals in an archive": (
        with_bytes("a.npz", lambda _: member("a\x1b[2J.npy", b"") + b""),
        FORMAT,
        r"a\.npz::a\\x1b\[2J is not a usable",
    ),
    "groups in groups without end": (
        in_hdf5(lambda h: h.create_group("/".join(["g"] * 400)).create_dataset("x", (3, 2), "f4"), ""),
        FORMAT,
        "no data set at all",
    ),
    "groups in a circle": (
        in_hdf5(lambda h: h.create_group("a/b").__setitem__("c", h["a"]), ""),
        FORMAT,
        "no data set",
    ),
    "Fortran order": (
        with_bytes("a.npy", lambda _: saved(np.asfortranarray(np.eye(3)[:2]))),
        FORMAT,
        r"a\.npy holds the matrix column by column.*np\.ascontiguousarray.*mmap_mode",
    ),
    # pointing out of the file
    "external link": (
        in_hdf5(lambda h: linked(h, "x", h5py.ExternalLink("other.h5", "/x"))),
        FORMAT,
        r"scores\.h5 has an external link at 'x' of '/x', to '/x'; links are not followed",
    ),
    "external link on the way": (
        in_hdf5(lambda h: linked(h, "x", h5py.ExternalLink("other.h5", "/")), "::/x/x"),
        FORMAT,
        "an external link at 'x' of '/x/x'",
    ),
    "soft link": (in_hdf5(lambda h: linked(h, "x", h5py.SoftLink("/group/y"))), FORMAT, "a soft link at 'x' of '/x'"),
    "soft link on the way": (
        in_hdf5(lambda h: linked(h, "x", h5py.SoftLink("/group")), "::x/y"),
        FORMAT,
        "a soft link at 'x' of 'x/y', to '/group'",
    ),
    "link in a circle": (in_hdf5(lambda h: linked(h, "x", h5py.SoftLink("/x"))), FORMAT, "a soft link at 'x'"),
    "virtual": (in_hdf5(virtual), FORMAT, r"scores\.h5::/x lies in other files"),
    "growing virtual": (in_hdf5(growing_virtual), FORMAT, r"scores\.h5::/x lies in other files"),
    "external storage": (
        in_hdf5(lambda h: h.create_dataset("x", (10, 3), dtype="f8", external=[("other.h5", 0, 240)])),
        FORMAT,
        r"scores\.h5::/x lies in other files",
    ),
    # parts that do not fit together
    "parts of other classes": (
        shards((3, "f4"), (3, "f4"), (4, "f4")),
        SCORES,
        r"parts differ: .*part-0\.h5::/deep/scores holds float32 scores of 3 classes, "
        r".*part-2\.h5::/deep/scores float32 of 4",
    ),
    "parts of other types": (
        shards((3, "f4"), (3, "f8")),
        SCORES,
        r"part-0\.h5\S* holds float32 scores of 3 classes, \S*part-1\.h5\S* float64 of 3; store all parts alike",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_matrix_is_refused_at_once(tmp_path, array, refused, fault: str) -> None:
    make, error, told = REFUSED[fault]
    (tmp_path / "in").mkdir()
    text = make(tmp_path / "in", array)
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(error, match=re.compile(told, re.DOTALL)):
        open_scores(text)
    assert time.perf_counter() - begun < MOST_SECONDS
    assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    tracemalloc.stop()
    refused(text)


def test_torch_says_nothing_of_its_own(tmp_path, array) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(FileFormatError, match="quantised"):
            open_scores(REFUSED["pt quantised"][0](tmp_path, array))
    assert not told


@pytest.mark.parametrize(
    "fault", ["external link", "external link on the way", "virtual", "growing virtual", "external storage"]
)
def test_no_other_file_is_opened(tmp_path, array, monkeypatch, fault: str) -> None:
    """The kernel is asked to tell of every opening."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as handle:
        handle.create_dataset("x", data=array[:10, :3], maxshape=(None, 3))
    make, error, _ = REFUSED[fault]
    text = make(tmp_path, array)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    opened = 0x20
    assert libc.inotify_add_watch(watch, bytes(other), opened) > 0
    try:
        for use in (open_scores, load_array):
            with pytest.raises(error):
                use(text)
            with pytest.raises(error):
                use(text.partition("::")[0] + "::/missing")
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        other.read_bytes()
        assert os.read(watch, 4096)  # it would have told
    finally:
        os.close(watch)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_headers_are_never_anything_else(tmp_path, array) -> None:
    """Whatever a few wrong bytes make of the header: scores of some shape and type, or an error of ours."""
    whole, path, rng = npy_header(array.shape) + array.tobytes(), tmp_path / "scores.npy", np.random.default_rng(0)
    told = []
    for _ in range(500):
        content = bytearray(whole)
        for place in rng.integers(0, 128, rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            opened = open_scores(str(path))
        except (FileFormatError, InvalidScoresError) as error:
            told.append(str(error))
        else:
            read_rows(opened.source, 0, opened.shape[0])
    assert len(told) > 300
    assert all(str(path) in message for message in told)


def test_hdf5_that_is_being_written(tmp_path, refused) -> None:
    code = """
import sys, h5py
with h5py.File(sys.argv[1], "w") as handle:
    handle["x"] = [[1.0, 2.0]] * 99
    handle.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""
    writer = python(code, tmp_path / "scores.h5", stdin=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    refused(tmp_path / "scores.h5", "scores.h5 is open for writing elsewhere")
    writer.communicate(timeout=100)
    assert open_scores(tmp_path / "scores.h5").shape == (99, 2)


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


class Once:
    """A function for `progress` that does something after the first pass."""

    def __init__(self, change: Callable[[], Any]) -> None:
        self.change, self.n_calls = change, 0

    def __call__(self, _: dict[str, Any]) -> None:
        self.n_calls += 1
        if self.n_calls == 1:
            self.change()


def test_rot_between_two_passes_is_noticed(tmp_path, refused, monkeypatch) -> None:
    """By the checksum alone: size, time and file are those from before."""
    array = np.random.default_rng(0).standard_normal((30_000, 50))  # more than HDF5 keeps of a file in memory
    text = hdf5_file(tmp_path / "scores", array, chunks=(1000, 50), fletcher32=True)
    place = "/deep/scores is damaged in chunk (15, 0), rows 15000 to 15999: "
    rot = Once(lambda: flip(tmp_path / "scores.h5", "deep/scores", 15_500, 3))
    with pytest.raises(FileFormatError, match=re.escape(place)):
        sinkhorn_assign(text, memory_limit=0, progress=rot)
    refused(text, place)


# ---- files that change while they are read ----


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def rewrite(path: Path) -> None:
    """The same bytes again, as a writer that is still at work leaves them."""
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path: Path) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(path.read_bytes())
    status = path.stat()
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns))
    beside.rename(path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "grows": grow,
    "shrinks": lambda path: os.truncate(path, path.stat().st_size - 500),
    "is emptied": lambda path: os.truncate(path, 0),
    "is rewritten": rewrite,
    "is replaced": replace,
    "is removed": lambda path: path.unlink(),
}
READ_ANEW = ["npy", "contiguous", "chunked", "gzip", "h5py.Dataset"]


def told_of(change: str) -> str:
    return r" was removed while it was being read" if change == "is removed" else r" was changed or replaced while"


def main_file(folder: Path) -> Path:
    """The file that holds the scores, or the last of its parts."""
    return sorted(folder.glob("scores*.*"))[-1]


@pytest.mark.parametrize("way", [*READ_ANEW, "pattern"])
@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changes_between_passes(tmp_path, array, way: str, change: str) -> None:
    source = WAYS[way](tmp_path / "scores", array)
    path = main_file(tmp_path)
    fault = Once(lambda: CHANGES[change](path))
    with pytest.raises(FileFormatError, match=re.escape(str(path)) + told_of(change)):
        sinkhorn_assign(source, memory_limit=0, progress=fault)
    assert fault.n_calls == 1


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_in_memory_needs_no_file(tmp_path, array, change: str) -> None:
    text = npy(tmp_path / "scores", array)
    result = sinkhorn_assign(text, progress=Once(lambda: CHANGES[change](tmp_path / "scores.npy")))
    np.testing.assert_array_equal(result.labels, sinkhorn_assign(array).labels)


@pytest.mark.parametrize("way", ["npy", "chunked", "pattern"])
@pytest.mark.parametrize("change", CHANGES)
def test_command_on_a_file_that_changes(tmp_path, array, refused, monkeypatch, way: str, change: str) -> None:
    text, saw = WAYS[way](tmp_path / "scores", array), Monitor.saw
    path = main_file(tmp_path)
    fault = Once(lambda: CHANGES[change](path))

    def spoil(self: Monitor, *words: Any, **settings: Any) -> None:
        saw(self, *words, **settings)
        fault({})

    monkeypatch.setattr(Monitor, "saw", spoil)
    refused(text, f"{path} was", "while it was being read")
    assert fault.n_calls == 1


@pytest.mark.parametrize("change", ["grows", "is rewritten", "is replaced", "is removed"])
@pytest.mark.parametrize("way", ["npy", "chunked"])
def test_change_during_the_last_read_is_noticed(tmp_path, array, monkeypatch, way: str, change: str) -> None:
    """A file that changes after it was looked at and before its bytes came."""
    source = open_scores(WAYS[way](tmp_path / "scores", array))
    path, preadv, fetch = main_file(tmp_path), os.preadv, HDF5Source._fetch
    fault = Once(lambda: CHANGES[change](path))

    def late_preadv(*words: Any) -> int:
        n_read = preadv(*words)
        fault({})
        return n_read

    def late_fetch(self: HDF5Source, *words: Any) -> None:
        fetch(self, *words)
        fault({})

    monkeypatch.setattr(os, "preadv", late_preadv)
    monkeypatch.setattr(HDF5Source, "_fetch", late_fetch)
    with pytest.raises(FileFormatError, match=told_of(change)):
        read_rows(source.source, 0, 120)


def test_file_that_shrinks_within_a_read(tmp_path, array, monkeypatch) -> None:
    """The system gives fewer bytes, then none: no endless loop, no stale memory."""
    source, preadv = open_scores(npy(tmp_path / "scores", array)), os.preadv

    def short(number: int, rooms: list[memoryview], place: int) -> int:
        os.truncate(tmp_path / "scores.npy", 1000)
        return preadv(number, [rooms[0][:300]], place)

    monkeypatch.setattr(os, "preadv", short)
    with pytest.raises(FileFormatError, match=r"scores\.npy ended before row 120: it shrank while it was being read"):
        read_rows(source.source, 0, 120)


@pytest.mark.parametrize("change", ["grows", "is removed"])
def test_features_that_change(tmp_path, array, change: str) -> None:
    scores = linear_scores(chunked(tmp_path / "scores", array), np.eye(5)[:3])
    with pytest.raises(FileFormatError, match=told_of(change)):
        sinkhorn_assign(scores, memory_limit=0, progress=Once(lambda: CHANGES[change](tmp_path / "scores.h5")))


# ---- interrupts ----


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("way", ["npy", "chunked", "list"])
def test_interrupt_between_passes_leaves_no_thread_and_a_usable_source(tmp_path, array, way: str) -> None:
    source = open_scores(WAYS[way](tmp_path / "scores", array))
    expected = sinkhorn_assign(source, memory_limit=0)
    before = n_threads()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sinkhorn_assign(source, memory_limit=0, progress=Once(interrupt))
    deadline = time.perf_counter() + 2
    while n_threads() > before and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert n_threads() <= before
    np.testing.assert_array_equal(sinkhorn_assign(source, memory_limit=0).labels, expected.labels)


@pytest.mark.parametrize("kind", ["f4", "bool"])
def test_interrupt_during_a_read_is_raised_after_it(tmp_path, kind: str) -> None:
    """One interrupt, not repeated: Python would lose it in any callback between the read and our own code."""
    array = np.random.default_rng(0).standard_normal((20_000, 200), np.float32)
    array = array > 0 if kind == "bool" else array
    source = open_scores(hdf5_file(tmp_path / "scores", array, chunks=(7, 134), compression="gzip"))
    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # by far most of the time is spent in the library
            with pytest.raises(KeyboardInterrupt):
                read_rows(source.source, 0, 20_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    np.testing.assert_array_equal(read_rows(source.source, 0, 20_000), array)


@pytest.mark.parametrize("way", ["npy", "gzip"])
def test_interrupt_while_streaming_ends_at_once_and_leaves_nothing(tmp_path, way: str) -> None:
    array = np.random.default_rng(0).standard_normal((20_000, 200), np.float32)
    text, folder = WAYS[way](tmp_path / "scores", array), tmp_path / "out"
    folder.mkdir()
    settings = "--memory-limit 0 --method sinkhorn --epsilon .001 --tol 1e-12 --max-sweeps 1000000 --progress"
    process = python(COMMAND, "assign", text, "-o", folder / "labels.h5", *settings.split())
    assert process.stderr is not None
    process.stderr.read(1)  # the bar shows up with the first pass
    time.sleep(0.3)
    assert_interrupted_at_once(process)
    assert names(folder) == []


def test_a_pipe_is_refused_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "scores.npy")
    with pytest.raises(FileFormatError, match=r"scores\.npy is no regular file"):
        sinkhorn_assign(tmp_path / "scores.npy")
