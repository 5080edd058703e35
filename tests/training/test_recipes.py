"""The papers' recipes: each trains two epochs on a small folder, of which `--set` only shrinks it; what they state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import make_images

from otlabel.commands.main import main
from otlabel.commands.train import changed
from otlabel.selflabel import load_labels, save_labels
from otlabel.training.config import RECIPES, read_config
from otlabel.training.data import Images, load_images
from otlabel.training.entry import Entry, entry_of, slopes
from otlabel.training.networks import network
from otlabel.training.timetable import Timetable

pytest.importorskip("PIL.Image")
OURS = ("digits", "fashion_mnist", "cifar10")
OF_PAPERS = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem not in OURS)
# DeepCluster's whitening of 4096 features alone takes a minute.
SMALL = {"alexnet": "{ widths = [8, 8, 8, 8, 8], hidden = 64 }", "resnet50": "{ width = 4 }"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_images(tmp_path_factory.mktemp("images"), 4, 1, (64, 120))
    save_labels(made / "labels.h5", np.arange(80)[None] % 20, [20], data=load_images(made).identity)
    return made


def test_there_are_all_of_them() -> None:
    of_sela = ("imagenet_alexnet", "imagenet_resnet50", "rot", "cifar10", "cifar100", "svhn")
    others = ("label_transfer", "deepcluster_imagenet", "uic_imagenet", "uic_strong_aug")
    assert sorted([*(f"sela_{name}" for name in of_sela), *others]) == OF_PAPERS


@pytest.mark.parametrize("name", OF_PAPERS)
def test_a_recipe_trains_on_a_small_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = read_config(name)
    options = SMALL[config.model.backbone]
    changes = [f"data.name={folder}", "data.size=64", f"model.options={options}", "train.epochs=2", "train.threads=1"]
    changes += ["train.batch_size=40", "evaluation.probe=false"]
    if config.labels.method == "fixed":
        changes += [f"labels.file={folder / 'labels.h5'}"]
    else:
        changes += [f"model.heads={[5] * len(config.model.heads)}"]
    if config.labels.method in ("sinkhorn", "kmeans"):
        changes += ["labels.n_relabels=3"]
    if config.labels.fixed_epochs:
        changes += ["labels.fixed_epochs=1"]
    words = [word for change in changes for word in ("--set", change)]
    with pytest.MonkeyPatch.context() as patch:  # of a recipe for a few images, nothing is said of what they learn
        patch.setattr("otlabel.selflabel.alarms.raised", lambda *given: {})
        assert main(["train", name, "-o", str(tmp_path), *words]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out.replace(str(tmp_path), "")
    assert max(map(len, printed.splitlines())) <= 80
    labels = load_labels(tmp_path / "labels.h5").labels
    assert labels.shape == (1 if config.labels.method == "fixed" else len(config.model.heads), 80)
    assert labels.min() >= 0


def test_every_setting_of_a_paper_says_whose_it_is() -> None:
    for name in OF_PAPERS:
        for line in (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines():
            if " = " in line and not line.startswith("#") and "drops = " not in line and "schedule" not in line:
                is_data = line.startswith("name = ") and "imagenet" not in line
                assert "# " in line or is_data or "method" in line, (name, line)


PAGE = Path(__file__).parents[2] / "docs" / "papers.md"
COMMANDS = re.findall(r"`((?:train|transfer) [^`]+)`", PAGE.read_text(encoding="utf-8")) if PAGE.exists() else []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_papers_tables_are_accepted(command: str) -> None:
    """Every one names a recipe, settings that fit together, and a network that there is."""
    words = command.split()
    config = changed(read_config(words[1]), words[3::2] if words[0] == "train" else words[4::2])
    assert set(words[2 if words[0] == "train" else 3 :: 2]) <= {"--set"}
    Timetable(config)
    given = config.model
    with torch.device("meta"):
        network(given.backbone, 2 if given.sobel else 3, **given.options)


def test_slopes_are_those_of_sobel() -> None:
    plane = torch.arange(6.0)[None, :] * 0.5 + torch.arange(5.0)[:, None] * 2.0
    found = slopes(plane.expand(2, 3, 5, 6))
    assert found.shape == (2, 2, 5, 6)
    torch.testing.assert_close(found[:, 0, 1:-1, 1:-1].abs(), torch.full((2, 3, 4), 8 * 0.5))
    torch.testing.assert_close(found[:, 1, 1:-1, 1:-1].abs(), torch.full((2, 3, 4), 8 * 2.0))
    assert not slopes(torch.full((1, 3, 4, 4), 7.0)).any()  # nor at the border


@pytest.mark.parametrize("normalise", ["imagenet", "data"])
def test_the_input_of_a_network_has_the_constants_asked_for(normalise: str) -> None:
    from otlabel.training.augment import plain

    pixels = torch.randint(256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels[:, 1] //= 2
    entry = entry_of(normalise, False, pixels)
    assert isinstance(entry, Entry)
    (found,) = entry(torch.nn.Identity(), (plain(pixels),))
    if normalise == "data":
        torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    else:
        mean, spread = (torch.tensor(one)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        torch.testing.assert_close(found, (pixels / 255 - mean) / spread, atol=1e-4, rtol=1e-4)
    assert entry_of("half", False, pixels) is None
    with pytest.raises(ValueError, match="of 3 channels; these images have 1"):
        entry_of("imagenet", False, pixels[:, :1])


def test_labels_are_told_by_the_names_of_files_in_whatever_size_and_format(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    images: Images = load_images(folder)
    for name in images.files.tolist():  # type: ignore[union-attr]
        path = (tmp_path / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(path)
    other = load_images(tmp_path, size=9)
    assert other.identity == images.identity
    assert other.fingerprint != images.fingerprint
    changed: dict[str, Any] = {"n_samples": 79}
    assert load_images(folder, **changed).identity != images.identity
