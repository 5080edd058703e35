"""Labels on disk: `.npy` holds labels alone, HDF5 also class sizes, potentials and a receipt.

The HDF5 layout, version 1:

    /labels      (N,) int8, int16, int32 or int64, the smallest that holds K; in chunks with checksums (fletcher32);
                 (N, k) where a sample has several labels, the best score first
    /counts      (K,) int64: samples in each class
    /potentials  (K,) float64: labels are the argmax of scores + potentials but for ties; -inf: an empty class
                 both in chunks with checksums, too
    attributes   format = "otlabel.labels", format_version = 1, complete = True
                 value, bound, gap (float64), seed (int64), status (text), where they are known
                 input, parameters, versions: JSON texts (see Receipt)
                 texts_crc32 (uint32): of all texts among them, as JSON with sorted names
                 texts are UTF-8 of fixed length; those of variable length that were written before are read, too

Beside a `.npy` file the same receipt may lie as JSON, `labels.npy.json`, with a hash of the labels it is about.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, OtlabelWarning
from otlabel.sources import Opened, load_array, matches, read_rows
from otlabel.sources.hdf5 import stored_shape
from otlabel.sources.hdf5_guard import (
    DAMAGE,
    LIBVER,
    check_complete,
    check_found,
    check_stored,
    check_texts,
    find_dataset,
    open_hdf5,
    read_attribute,
    read_attributes,
    reading_hdf5,
    said,
    write_attributes,
)
from otlabel.sources.listed import Filled, ListedSource
from otlabel.sources.npy import read_header
from otlabel.storage.atomic import replacing, save_array
from otlabel.storage.outputs import LABEL_ENDINGS
from otlabel.storage.texts import check_format
from otlabel.text import local_path, printable
from otlabel.validate import check_different, check_vector, class_numbers

if TYPE_CHECKING:
    import h5py

FORMAT = "otlabel.labels"
FORMAT_VERSION = 1
CLUSTERED = "clustered"  # status of labels whose scores are made of features and centres
PART_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})\.h5")  # in a folder that several processes wrote
FINGERPRINT_ROWS = 64  # rows of the scores that a fingerprint hashes, evenly spaced from the first to the last
CHUNK_BYTES = 1 << 20
NPY_HEADER_BYTES = 128
MOST_CLASSES_A_SAMPLE, FEWEST_CLASSES = 64, 1 << 20  # beyond which a largest label is taken for a mistake
HDF5_HEADER_BYTES = 16 << 10  # more than its structures and a receipt take
_NUMBERS = ("value", "bound", "gap", "rounding", "seed", "status")
_TEXTS = ("input", "parameters", "versions")
ATTRIBUTES = ("format", "format_version", "complete", "threshold", *_NUMBERS, *_TEXTS)


@dataclass(frozen=True)
class Receipt:
    """Where labels come from: enough to check the input and to do it again."""

    input: dict[str, Any]  # what `fingerprint` returns
    parameters: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    value: float | None = None
    bound: float | None = None
    gap: float | None = None
    rounding: float | None = None  # what the gap is judged by: see `Certificate`
    seed: int | None = None
    status: str | None = None


@dataclass(frozen=True, eq=False)
class StoredLabels:
    """What a file of labels holds."""

    labels: np.ndarray  # (N,) int64, -1 for a sample left unlabelled; (N, k) where samples have several
    counts: np.ndarray  # (K,) int64
    potentials: np.ndarray | None  # (K,) float64; None in a .npy file
    receipt: Receipt | None = None  # None where no receipt of these very labels is there
    threshold: float = -math.inf  # a sample whose best score + potential is below it is left unlabelled

    @property
    def labels_per_sample(self) -> int:
        """How many each sample has."""
        return 1 if self.labels.ndim == 1 else self.labels.shape[1]


def fingerprint(scores: Opened, source: str) -> dict[str, Any]:
    """What tells one input from another: shape, dtype, size and time of its files, and a hash of some of its rows.

    The hash is SHA-256 over the stored bytes of 64 rows (fewer if there are no more), evenly spaced from the first
    to the last: row round-down(j (N - 1) / 63) for j = 0 ... 63; of sparse scores with -inf for what is missing.
    """
    n_rows = scores.shape[0]
    rows = np.unique(np.linspace(0, n_rows - 1, FINGERPRINT_ROWS).astype(np.int64))
    digest = hashlib.sha256()
    readable = Filled(scores.source) if isinstance(scores.source, ListedSource) else scores.source
    for row in rows.tolist():
        stored = read_rows(readable, row, row + 1)
        digest.update((stored if isinstance(stored, np.ndarray) else stored.double().cpu().numpy()).tobytes())
    files = [file.stat() for file in matches(source.partition("::")[0]) if file.exists()]
    return {
        "source": source,
        "shape": list(scores.shape),
        "dtype": scores.dtype,
        "files": len(files),
        "bytes": sum(file.st_size for file in files),
        "modified_ns": max((file.st_mtime_ns for file in files), default=None),
        "rows_hashed": len(rows),
        "sha256": digest.hexdigest(),
    }


# ---- writing ----


def stored_bytes(path: Path, n_labels: int, n_classes: int) -> int:
    """How much room the labels will take on the disk, at most."""
    if path.suffix.lower() == ".npy":
        return NPY_HEADER_BYTES + 8 * n_labels
    return HDF5_HEADER_BYTES + _label_type(n_classes).itemsize * n_labels + 16 * n_classes


def write_labels(path: Path, stored: StoredLabels, meet: Callable[[], None] | None = None) -> None:
    """Write labels in the format that the name ends in, whole or not at all.

    Where several processes write, they meet before their files take their names (HDF5 only).
    """
    if path.suffix.lower() == ".npy":
        _write_npy(path, np.ascontiguousarray(stored.labels, np.int64), stored.receipt)
        return
    image = _hdf5_image(stored)
    with replacing(path) as file:
        file.write(image.getbuffer())
        if meet is not None:
            file.flush()
            os.fsync(file.fileno())
            meet()


def part_path(folder: Path, number: int, of: int) -> Path:
    """Where one of several processes writes its labels."""
    return folder / f"part-{number:05d}-of-{of:05d}.h5"


def _write_npy(path: Path, labels: np.ndarray, receipt: Receipt | None) -> None:
    save_array(path, labels)
    if receipt is not None:
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "labels_sha256": _digest(labels)}
        text = json.dumps(about | asdict(receipt), indent=2, allow_nan=False)
        with replacing(receipt_path(path)) as file:
            file.write(f"{text}\n".encode())


def receipt_path(path: Path) -> Path:
    """Where the receipt of a .npy file lies."""
    return path.with_name(f"{path.name}.json")


def _hdf5_image(stored: StoredLabels) -> io.BytesIO:
    assert stored.potentials is not None  # there always are some but in .npy files
    with hdf5_image() as (image, handle):
        create_labels(handle, stored.labels, stored.counts)
        _create_summed(handle, "potentials", stored.potentials.astype(np.float64))
        about: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "complete": True}
        about["threshold"] = stored.threshold
        if stored.receipt is not None:
            known = {name: getattr(stored.receipt, name) for name in _NUMBERS}
            about |= {name: value for name, value in known.items() if value is not None}
            about |= {name: json.dumps(getattr(stored.receipt, name), allow_nan=False) for name in _TEXTS}
        write_attributes(handle, about)
    return image


@contextlib.contextmanager
def hdf5_image() -> Iterator[tuple[io.BytesIO, h5py.File]]:
    """The bytes of a file, made in memory: an error on the way to the disk is then Python's, not inside HDF5."""
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER) as handle:
        yield image, handle


def create_labels(group: h5py.Group, labels: np.ndarray, counts: np.ndarray) -> None:
    """Labels and class sizes."""
    _create_summed(group, "labels", labels.astype(_label_type(len(counts))))
    _create_summed(group, "counts", counts.astype(np.int64))


def _create_summed(group: h5py.Group, name: str, stored: np.ndarray) -> None:
    """An array in chunks with checksums."""
    n_chunks = max(1, -(-stored.nbytes // CHUNK_BYTES))  # of equal size: a chunk is stored in full
    chunks = (-(-len(stored) // n_chunks), *stored.shape[1:])
    chunked = {"chunks": chunks, "fletcher32": True} if len(stored) else {}
    group.create_dataset(name, data=stored, **chunked)


def sizes_of(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Samples in each class, (K,) int64."""
    return np.bincount(labels[labels >= 0], minlength=n_classes)


def _label_type(n_classes: int) -> np.dtype:
    """Signed, so that every framework knows the type."""
    return np.dtype(np.min_scalar_type(-n_classes))


def _digest(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.data).hexdigest()


# ---- reading ----


def holds_labels(path: str | os.PathLike[str]) -> bool:
    """Whether an HDF5 file, or a folder of parts, was made by `write_labels`; others hold labels in their own way."""
    if os.path.isdir(path):
        return any(PART_NAME.fullmatch(name) for name in os.listdir(path))
    try:
        with reading_hdf5(Path(path)) as handle:
            return "format" in handle.attrs and read_attribute(handle, "format") == FORMAT
    except (OSError, FileFormatError):
        return False


def read_labels(path: str | os.PathLike[str]) -> StoredLabels:
    """Read what `otlabel assign` or `otlabel predict` wrote: `.npy`, HDF5, or a folder of parts.

    Nothing is unpickled, no link followed.

    Raises:
        FileFormatError: a file that is unfinished, damaged, of another kind or of a newer version.
    """
    file = Path(local_path(os.fspath(path)))
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if file.is_dir():
        return _read_parts(file)
    if file.suffix.lower() not in LABEL_ENDINGS:
        raise FileFormatError(
            f"{file} ends in {file.suffix!r}; labels are in files that end in {', '.join(LABEL_ENDINGS)}"
        )
    try:
        return _read_npy(file) if file.suffix.lower() == ".npy" else _read_hdf5(file)
    except FileFormatError as error:
        if file.suffix.lower() == ".npy" and str(file) in str(error):
            raise
        raise FileFormatError(f"{file} is no usable file of labels: {error}") from error
    except (*DAMAGE, EOFError, AttributeError, RecursionError) as error:  # a receipt may hold anything
        if isinstance(error, PermissionError):
            raise
        raise FileFormatError(f"{file} is no usable file of labels: {said(error)}") from error


def check_number(text: str, n_samples: int) -> None:
    """Refuse a file or folder of labels, of any kind, that holds them of other samples, before so many are read.

    Where headers do not tell, reading will.
    """
    shape = None
    with contextlib.suppress(FileFormatError):  # told by who reads it
        shape = _stored_shape(text)
    if shape is not None and shape[:1] != (n_samples,):
        what = f"{shape[0]:,} labels" if len(shape) == 1 else f"labels of shape {shape}"
        raise ValueError(f"{text} holds {what}, but there are {n_samples:,} samples; one label a sample is needed")


def _stored_shape(text: str) -> tuple[int, ...] | None:
    """The shape of labels, by headers alone."""
    place, _, name = text.partition("::")
    file = Path(local_path(place))
    if file.is_dir():
        found = [number for entry in os.listdir(file) if (number := PART_NAME.fullmatch(entry))]
        parts = [_stored_shape(str(file / number[0])) for number in found]
        whole = found and len(found) == int(found[0][2])
        return (sum(part[0] for part in parts if part), *(parts[0] or ())[1:]) if whole else None
    if file.is_file() and file.suffix.lower() == ".npy":
        return read_header(file)[0]
    if file.is_file() and file.suffix.lower() in LABEL_ENDINGS:
        return stored_shape(file, name or ("labels" if holds_labels(file) else ""))
    return None


def _read_npy(file: Path) -> StoredLabels:
    stored = load_array(str(file))
    several = stored.ndim == 2 and stored.shape[1] > 1
    if (stored.ndim != 1 and not several) or stored.dtype.kind not in "iu" or not len(stored):
        raise ValueError(f"it holds {stored.dtype} of shape {stored.shape}, not (N,) whole numbers from 0 up, or -1")
    labels = class_numbers(stored.ravel(), "labels").reshape(stored.shape)
    check_not_absurd(labels)
    _check_several(labels)
    receipt = _receipt_of(file, _digest(labels)) if receipt_path(file).exists() else None
    return StoredLabels(labels, np.bincount(labels[labels >= 0]), None, receipt)


def check_not_absurd(labels: np.ndarray) -> None:
    """Refuse a label that no number of classes explains, before memory is taken for so many classes.

    Classes may be empty, so that more of them than samples are no mistake; many times more are.
    """
    largest = int(labels.max(initial=-1))
    if largest >= max(MOST_CLASSES_A_SAMPLE * len(labels), FEWEST_CLASSES):
        at = int(labels.argmax()) // max(1, labels[:1].size)
        raise ValueError(
            f"label {largest:,} of sample {at:,} is far beyond the number of samples, {len(labels):,}: damaged, or no "
            "class label"
        )


def _check_several(labels: np.ndarray) -> None:
    """Refuse (N, k) of which a row has no label somewhere, or one twice."""
    if labels.ndim > 1:
        if labels.min(initial=0) < 0:
            raise ValueError("a sample of several labels lacks some: -1 is among them")
        check_different(labels)


def _receipt_of(file: Path, digest: str) -> Receipt | None:
    """What the receipt beside labels tells, if it is of these labels."""
    path = receipt_path(file)
    if not path.is_file():  # a pipe would be waited for
        raise FileFormatError(f"{file} has a receipt, {path.name}, that is no regular file; remove or rename it")
    told = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        raise FileFormatError(f"{file} has a receipt, {path.name}, that is none: it holds a {type(told).__name__}")
    if told.get("labels_sha256") != digest:
        warnings.warn(
            f"{path} is a receipt of other labels than {file.name} holds now, and is left out: the labels were written "
            "anew without one, or are damaged; if neither is known, label again",
            OtlabelWarning,
            stacklevel=4,
        )
        return None
    if (told.get("format"), told.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise FileFormatError(f"{file} has a receipt, {path.name}, that is none of {FORMAT} version {FORMAT_VERSION}")
    return checked_receipt({name: told.get(name) for name in (*_TEXTS, *_NUMBERS)})


def checked_receipt(told: dict[str, Any]) -> Receipt:
    """A receipt of values as they were read, each of its kind."""
    for name, value in told.items():
        kind = {"status": str, "seed": int}.get(name, dict if name in _TEXTS else (int, float))
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise FileFormatError(
                f"the {name} of its receipt is a {type(value).__name__}, {printable(repr(value))[:80]}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise FileFormatError(f"the {name} of its receipt is {value}")
    if told.get("input") is None:
        raise FileFormatError("its receipt does not say what the input was")
    return Receipt(**{name: value for name, value in told.items() if name in _NUMBERS or value is not None})


def _read_parts(folder: Path) -> StoredLabels:
    """All parts of one run, in order."""
    names = sorted((found for entry in folder.iterdir() if (found := PART_NAME.fullmatch(entry.name))), key=_number)
    if not names:
        raise FileFormatError(f"{folder} holds no parts of labels (part-00000-of-...)")
    number = int(names[0][2])
    paths = [part_path(folder, part, number) for part in range(number)]
    missing = [path.name for path in paths if not path.exists()]
    if missing or len(names) != number:
        what = f"{missing[0]} is missing" if missing else "it holds parts of several runs"
        raise FileFormatError(f"{folder} is no whole set of labels: {what}; label again, with --force")
    parts = [read_labels(path) for path in paths]
    first, stop = parts[0], 0
    for path, part in zip(paths, parts, strict=True):
        rows = [] if part.receipt is None else part.receipt.input.get("rows", [])
        alike = np.array_equal(part.potentials, first.potentials)  # type: ignore[arg-type]
        if rows != [stop, stop + len(part.labels)] or not alike:
            raise FileFormatError(f"{path} is of another run than {paths[0].name}; label again, with --force")
        stop += len(part.labels)
    counts = np.sum([part.counts for part in parts], 0)
    labels = np.concatenate([part.labels for part in parts])
    return StoredLabels(labels, counts, first.potentials, first.receipt, first.threshold)


def _number(found: re.Match[str]) -> int:
    return int(found[1])


def _read_hdf5(file: Path) -> StoredLabels:
    with open_hdf5(file) as handle:
        about = read_attributes(handle, ATTRIBUTES)
        check_format((about.get("format"), about.get("format_version")), FORMAT, FORMAT_VERSION)
        check_complete(about)
        check_texts(handle, about)
        room = file.stat().st_size
        labels = read_dataset(handle, "labels", "i", room, most_dimensions=2).astype(np.int64)
        counts = read_dataset(handle, "counts", "i", room).astype(np.int64)
        potentials = read_dataset(handle, "potentials", "f", room).astype(np.float64)
    within = labels.min(initial=0) >= -1 and labels.max(initial=-1) < len(counts)
    if not within or not np.array_equal(sizes_of(labels, len(counts)), counts):
        raise ValueError("its counts are not those of its labels")
    _check_several(labels)
    if len(potentials) != len(counts):
        raise ValueError(f"it holds {len(potentials)} potentials for {len(counts)} classes")
    check_vector(potentials, len(counts), "/potentials")
    receipt = None
    if "input" in about:
        known = {name: np.asarray(about[name]).item() for name in _NUMBERS if name in about}
        receipt = checked_receipt({name: json.loads(about[name]) for name in _TEXTS} | known)
    threshold = float(about.get("threshold", -math.inf))
    if not threshold < math.inf:  # nor is NaN
        raise ValueError(f"its threshold is {threshold}")
    return StoredLabels(labels, counts, potentials, receipt, threshold)


def read_dataset(handle: h5py.File, name: str, kind: str, room: int, *, most_dimensions: int = 1) -> np.ndarray:
    """One array, chunk by chunk, so that damage can be told by its place; a header's claim is checked first."""
    dataset = find_dataset(handle, Path(handle.filename), f"/{name}")
    if dataset.dtype.kind != kind:
        wanted = "whole numbers (int8 to int64)" if kind == "i" else "floating-point numbers"
        raise ValueError(f"/{name} claims to be {dataset.dtype}, and {wanted} are wanted")
    if not 1 <= dataset.ndim <= most_dimensions or dataset.size * dataset.dtype.itemsize > room:
        raise ValueError(f"/{name} claims to be {dataset.dtype} of shape {dataset.shape}, in a file of {room:,} bytes")
    place = f"{handle.filename}::/{name}"
    check_stored(dataset, place)
    step = dataset.chunks[0] if dataset.chunks else max(1, dataset.size)
    parts = []
    for start in range(0, len(dataset), step):
        try:
            parts.append(dataset[start : start + step])
        except DAMAGE as error:
            told = f"{place} is damaged in chunk {start // step} (from item {start}): {said(error)}"
            raise FileFormatError(told) from error
        check_found(dataset, parts[-1], start, place)
    return np.concatenate(parts) if parts else np.empty(dataset.shape, dataset.dtype)
