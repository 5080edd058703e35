"""Tables, safetensors, zarr, and paths with ~ or file://: the numbers of the array that was stored, and its names."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kept_as import all_rows, npy, safetensors

from otlabel import sinkhorn_assign
from otlabel.errors import FileFormatError, InvalidScoresError
from otlabel.sources import load_array, open_scores

SCORES = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
NAMES = ("a", "b", "c", "d")


def same(text: str, expected: np.ndarray = SCORES) -> None:
    """Read as scores and as an array."""
    np.testing.assert_array_equal(all_rows(open_scores(text)), expected)
    np.testing.assert_array_equal(load_array(text), expected)


# ---- paths as people write them ----


@pytest.mark.parametrize("spelled", ["~/a b.npy", "file://{home}/a%20b.npy", "file://localhost{home}/a%20b.npy"])
def test_home_and_addresses_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    npy(tmp_path / "a b", SCORES)
    same(spelled.format(home=tmp_path))


def test_home_in_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, part in enumerate(np.split(SCORES, [7, 30])):
        npy(tmp_path / f"part-{number}", part)
    np.testing.assert_array_equal(all_rows(open_scores("~/part-*.npy")), SCORES)


@pytest.mark.parametrize("text", ["https://example.org/scores.npy", "s3://bucket/scores.h5::/x", "file://host/a.npy"])
def test_addresses_elsewhere_are_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"is an address of another place; download"):
        open_scores(text)


# ---- safetensors ----


def test_safetensors_of_the_package_itself(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.torch")
    import torch

    halves = torch.from_numpy(SCORES).bfloat16()
    package.save_file(
        {"half": halves, "whole": torch.arange(60), "full": torch.from_numpy(SCORES)}, tmp_path / "a.safetensors"
    )
    same(f"{tmp_path}/a.safetensors::full")
    same(f"{tmp_path}/a.safetensors::half", halves.float().numpy())
    assert open_scores(f"{tmp_path}/a.safetensors::half").dtype == "bfloat16"
    assert load_array(f"{tmp_path}/a.safetensors::whole").tolist() == list(range(60))
    with pytest.raises(FileFormatError, match=r"more than one array; name one as FILE::NAME. It holds: .*half"):
        open_scores(f"{tmp_path}/a.safetensors")


def header(described: object) -> Callable[[bytes], bytes]:
    text = json.dumps(described).encode()
    return lambda _: struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b[:5], "not a usable"),
        (lambda b: b[:-1], r"claims to hold F32 of shape \(60, 4\) .* cut short"),
        (lambda b: struct.pack("<Q", 1 << 60) + b[8:], "does not end within"),
        (lambda b: b[:8] + b"[" + b[9:], "not a usable"),
        (header([1]), "not a usable"),
        (header({"scores": 3}), "not a usable"),
        (header({"scores": {"dtype": "F32", "shape": [-1, 2], "data_offsets": [0, 8]}}), "describe no tensor"),
        (header({"scores": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}), "claims to hold"),
        (header({"scores": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]}}), "claims to hold"),
        (header({"scores": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}), "save it as float16"),
        (header({"other": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}), "no 'scores'"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, change: Callable[[bytes], bytes], told: str) -> None:
    text = safetensors(tmp_path / "a", SCORES)
    file = tmp_path / "a.safetensors"
    file.write_bytes(change(file.read_bytes()))
    for read in (open_scores, load_array):
        with pytest.raises(FileFormatError, match=told):
            read(text)


# ---- CSV ----


def csv(tmp_path: Path, text: str, name: str = "a.csv") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def rows(numbers: np.ndarray, delimiter: str = ",") -> str:
    return "".join(delimiter.join(map(repr, row)) + "\n" for row in numbers.astype(float).tolist())


def test_csv_with_and_without_names(tmp_path: Path) -> None:
    same(csv(tmp_path, rows(SCORES)))
    named = csv(tmp_path, "\ufeffa,b,c,d\r\n" + rows(SCORES))
    same(named)
    assert open_scores(named).class_names == list(NAMES)
    same(f"{named}::b,d", SCORES[:, [1, 3]])
    same(csv(tmp_path, "a;b;c;d\n" + rows(SCORES, ";")))
    same(csv(tmp_path, "a\tb\tc\td\n" + rows(SCORES, "\t"), "a.tsv"))


def test_csv_of_pandas_with_its_index_and_a_column_of_texts(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(SCORES.astype(float), columns=[f"f{name}" for name in NAMES])
    frame.to_csv(tmp_path / "a.csv")
    same(str(tmp_path / "a.csv"))
    frame.insert(1, "who, and where", ['a "friend", here'] * 60)
    frame.to_csv(tmp_path / "a.csv")
    same(f"{tmp_path}/a.csv::f*")
    with pytest.raises(FileFormatError, match=r"columns that are no numbers: who, and where \(text\).*Name those"):
        open_scores(str(tmp_path / "a.csv"))


def test_csv_of_labels(tmp_path: Path) -> None:
    labels = load_array(csv(tmp_path, "id,label\nx,3\ny,0\n") + "::label")
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty"),
        ("a,b\n", "no numbers|not a usable"),
        ("a,b\n1,2\n3\n", "not a usable"),
        ("a,b\n1,2\n3,x\n", "could not convert string 'x'"),
        ("a,b\n1,2\n3,\n", "could not convert string ''"),
        ("a,a\n1,2\n", "two columns have the same name"),
        ("a\x00,b\n1,2\n3,\xff", "not a usable"),
    ],
)
def test_damaged_csv(tmp_path: Path, text: str, told: str) -> None:
    for read in (open_scores, load_array):
        with pytest.raises(FileFormatError, match=told):
            read(csv(tmp_path, text))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"has no column 'g\*'. It has: a, b"):
        open_scores(csv(tmp_path, "a,b\n1,2\n") + "::g*")


# ---- Parquet and Feather ----


def tables(tmp_path: Path, **columns: object) -> list[str]:
    """The same table as Parquet and as Feather."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    feather.write_feather(table, tmp_path / "a.feather")
    return [str(tmp_path / "a.parquet"), str(tmp_path / "a.feather")]


def test_tables_of_columns(tmp_path: Path) -> None:
    columns = dict(zip(NAMES, SCORES.T, strict=True))
    for text in tables(tmp_path, **columns):
        same(text)
        assert open_scores(text).class_names == list(NAMES)
        same(f"{text}::c,a", SCORES[:, [2, 0]])
    for text in tables(tmp_path, who=["x"] * 60, **columns):
        same(f"{text}::[a-d]")
        with pytest.raises(FileFormatError, match=r"no numbers: who \(string\)"):
            open_scores(text)


def test_tables_with_a_column_of_vectors(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    fixed = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(SCORES.ravel()), 4)
    label = np.arange(60) % 3
    for vectors in (SCORES.tolist(), fixed):
        for text in tables(tmp_path, id=[str(k) for k in range(60)], embedding=vectors, label=label):
            same(text)
            same(f"{text}::embedding")
            assert load_array(f"{text}::label").tolist() == label.tolist()
            assert open_scores(text).class_names is None


def test_tables_of_a_data_frame_with_an_index(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(SCORES, columns=NAMES, index=[f"row {k}" for k in range(60)])
    frame.to_parquet(tmp_path / "a.parquet")
    same(str(tmp_path / "a.parquet"))
    of_frame, of_file = sinkhorn_assign(frame), sinkhorn_assign(str(tmp_path / "a.parquet"))
    np.testing.assert_array_equal(of_frame.labels, of_file.labels)
    assert of_file.class_names == NAMES


@pytest.mark.parametrize(
    ("vectors", "told"),
    [([[1.0, 2.0], [3.0]], "row 1 of .* has 1 numbers, row 0 has 2"), ([[1.0], None], "row 1 of .* is missing")],
)
def test_ragged_vectors_are_told(tmp_path: Path, vectors: list[object], told: str) -> None:
    for text in tables(tmp_path, embedding=vectors):
        with pytest.raises(FileFormatError, match=told):
            open_scores(text)


def test_missing_numbers_of_a_table_are_told_by_their_place(tmp_path: Path) -> None:
    for text in tables(tmp_path, a=[1.0, None], b=[1.0, 2.0]):
        with pytest.raises(InvalidScoresError, match="row 1"):
            sinkhorn_assign(text)


def test_tables_as_parts_of_one_matrix(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet, table

    for number, part in enumerate(np.split(SCORES, [7, 30])):
        parquet.write_table(table(dict(zip(NAMES, part.T, strict=True))), tmp_path / f"part-{number}.parquet")
    opened = open_scores(f"{tmp_path}/part-*.parquet")
    np.testing.assert_array_equal(all_rows(opened), SCORES)
    assert list(opened.class_names or ()) == list(NAMES)


@pytest.mark.parametrize("ending", ["parquet", "feather"])
def test_damaged_tables(tmp_path: Path, ending: str) -> None:
    files = {Path(text).suffix: Path(text) for text in tables(tmp_path, **dict(zip(NAMES, SCORES.T, strict=True)))}
    file = files[f".{ending}"]
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\0" * len(whole)):
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match="is not a usable table"):
            open_scores(str(file))


# ---- zarr ----


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr")
    alone = zarr.create_array(str(tmp_path / "a.zarr"), shape=(60, 4), chunks=(7, 3), dtype="f4", zarr_format=version)
    alone[:] = SCORES
    same(str(tmp_path / "a.zarr"))
    group = zarr.create_group(str(tmp_path / "b.zarr"), zarr_format=version)
    group.create_array("deep/scores", shape=(60, 4), chunks=(60, 4), dtype="f2")[:] = SCORES.astype(np.float16)
    group.create_array("labels", shape=(60,), dtype="i8")[:] = np.arange(60)
    same(f"{tmp_path}/b.zarr::deep/scores", SCORES.astype(np.float16).astype(np.float32))
    assert load_array(f"{tmp_path}/b.zarr::/labels").tolist() == list(range(60))
    with pytest.raises(FileFormatError, match="more than one array; name one"):
        open_scores(str(tmp_path / "b.zarr"))
    result = sinkhorn_assign(str(tmp_path / "a.zarr"), memory_limit=0)
    np.testing.assert_array_equal(result.labels, sinkhorn_assign(SCORES).labels)
    assert result.bytes_read >= SCORES.nbytes


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_zarr_that_would_unpickle_is_refused(tmp_path: Path, place: str) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(60, 4), dtype="f4", zarr_format=2, fill_value=0.0, compressors=None
    )[:] = SCORES
    described = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 2}
    described[place] = [{"id": "shuffle"}, codec] if place == "filters" else codec
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(described))
    with pytest.raises(FileFormatError, match="pickle"):
        open_scores(str(tmp_path / "a.zarr"))


def test_damaged_zarr(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    (tmp_path / "none.zarr").mkdir()
    with pytest.raises(FileFormatError, match="is not a usable zarr folder"):
        open_scores(str(tmp_path / "none.zarr"))
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(60, 4), chunks=(60, 4), dtype="f4")[:] = SCORES
    (chunk,) = [file for file in (tmp_path / "a.zarr").rglob("*") if file.is_file() and file.suffix != ".json"]
    chunk.write_bytes(b"damaged" * 9)
    with pytest.raises(FileFormatError, match=r"a\.zarr cannot be read"):
        sinkhorn_assign(str(tmp_path / "a.zarr"))
