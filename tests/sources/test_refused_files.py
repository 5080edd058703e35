"""Files that are damaged, absurd or hostile: refused by name at once, with nothing written."""

from __future__ import annotations

import collections
import ctypes
import os
import re
import struct
import subprocess
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import python
from faults import (
    FORMAT,
    HUGE,
    MOST_BYTES,
    MOST_SECONDS,
    SCORES,
    at,
    behind_unknown_filter,
    compressed,
    folder_named,
    growing_virtual,
    half,
    in_hdf5,
    linked,
    member,
    npy_header,
    of_time,
    of_type,
    overwritten,
    partly_written,
    saved,
    shards,
    stored,
    virtual,
    with_bytes,
)
from kept_as import npy

from otlabel import sinkhorn_assign
from otlabel.errors import FileFormatError, InvalidScoresError
from otlabel.sources import load_array, open_scores, read_rows

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning", "error::RuntimeWarning")


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
    "other ending": (with_bytes("scores.txt"), FORMAT, r"scores\.txt ends in '\.txt'; known endings are \.npy"),
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


def test_a_pipe_is_refused_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "scores.npy")
    with pytest.raises(FileFormatError, match=r"scores\.npy is no regular file"):
        sinkhorn_assign(tmp_path / "scores.npy")
