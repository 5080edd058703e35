"""Images of a folder, of a list of paths, and of files of arrays: those of the samples, in their order."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("PIL")

from PIL import Image

from otlabel import report
from otlabel.commands.main import main
from otlabel.reporting.image_files import read_images

COLOURS = np.random.default_rng(0).integers(40, 256, (12, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3


def file_of(folder: Path, name: str, colour: np.ndarray, size: tuple[int, int] = (40, 90)) -> Path:
    """A square of one colour in the middle of black."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    pixels[top : top + side, left : left + side] = colour
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def shown(page: str) -> list[tuple[int, int, int]]:
    """The colour in the middle of each picture of a page."""
    encoded = re.findall(r"data:image/(?:png|jpeg);base64,([^\"]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB").getpixel((32, 32)) for one in encoded]


@pytest.mark.parametrize("by", ["flat", "classes", "list", "zarr", "pt"])
def test_pictures_are_of_the_samples(tmp_path: Path, by: str) -> None:
    sizes = [(40, 90), (90, 40), (200, 200)]
    if by == "pt":
        import torch

        torch.save(torch.from_numpy(np.broadcast_to(COLOURS[:, None, None], (12, 64, 64, 3)).copy()), tmp_path / "a.pt")
        images = tmp_path / "a.pt"
    elif by == "zarr":
        zarr = pytest.importorskip("zarr")
        images = tmp_path / "a.zarr"
        zarr.create_array(str(images), data=np.broadcast_to(COLOURS[:, None, None], (12, 64, 64, 3)))
    elif by == "list":
        paths = [file_of(tmp_path / "in", f"{11 - k}.png", COLOURS[k], sizes[k % 3]) for k in range(12)]
        images = tmp_path / "files.txt"
        images.write_text("\n".join([*(f"in/{path.name}" for path in paths[:6]), *map(str, paths[6:])]) + "\n")
    else:
        images = tmp_path / "in"
        for k in range(12):
            folder = images / f"class {k // 4}" if by == "classes" else images
            file_of(folder, f"{k:02}.png", COLOURS[k], sizes[k % 3])
    found = read_images(str(images))
    assert len(found) == 12
    for k in range(12):
        np.testing.assert_allclose(np.asarray(found[k])[32, 32], COLOURS[k], atol=1)
    order = [k for label in range(3) for k in np.flatnonzero(label == LABELS)]
    for page in (report(LABELS, images=str(images)), report(LABELS, images=images)):
        np.testing.assert_allclose(shown(page), COLOURS[order], atol=4)


def test_the_square_in_the_middle_fills_a_picture(tmp_path: Path) -> None:
    file_of(tmp_path / "in", "0.png", COLOURS[0])
    picture = read_images(str(tmp_path / "in"))[0]
    assert picture.shape == (64, 64, 3)
    np.testing.assert_allclose(picture, np.broadcast_to(COLOURS[0], (64, 64, 3)), atol=2)


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "empty").mkdir()
    for k in range(11):
        file_of(tmp_path / "few", f"{k}.png", COLOURS[k])
    (tmp_path / "files.txt").write_text("few/0.png\n" * 11 + "few/none.png\n")
    for name, told in [
        ("empty", "empty holds no images (.png, .jpg"),
        ("few", "there are 12 labels, but 11 images"),
        ("files.txt", "none.png"),
        ("none", "none does not exist"),
    ]:
        code = main(["report", f"{tmp_path}/labels.npy", "--images", f"{tmp_path}/{name}", "-o", f"{tmp_path}/a.html"])
        assert code == 2, name
        assert told in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()
