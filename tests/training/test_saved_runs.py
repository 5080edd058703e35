"""What is made of a run's folder afterwards: probes, exported weights, lists of labels."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_weights
from small_runs import config
from torch import nn

from otlabel import MultiHead, metrics
from otlabel.commands.main import main
from otlabel.errors import FileFormatError, FingerprintError
from otlabel.selflabel import load_labels
from otlabel.selflabel.model import forward_only
from otlabel.training.augment import plain
from otlabel.training.entry import Entry, Input
from otlabel.training.evaluate import features_of
from otlabel.training.exporting import backbone_weights, export
from otlabel.training.judged import Protocol, _majority, _numbers, judge
from otlabel.training.networks import alexnet, network
from otlabel.training.networks.common import absorbed
from otlabel.training.run import Run, train
from otlabel.training.saved import SavedRun

QUICK = ["--epochs", "3"]

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.SelfLabelWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A run on digits, with hidden layers in its heads."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(config(model__hidden=12, train__epochs=2), folder)


# ---- reading a run ----


def test_a_saved_network_is_the_runs(finished: tuple[Path, Run]) -> None:
    folder, run = finished
    saved = SavedRun(folder)
    weights = run.model.state_dict()
    assert all(torch.equal(weights[name], one) for name, one in saved.model().state_dict().items())
    assert run.best is not None
    assert all(torch.equal(run.best[name], one) for name, one in saved.model(best=True).state_dict().items())
    assert saved.images().fingerprint == run.images.fingerprint
    assert saved.config == run.config


def test_folders_that_are_no_runs(finished: tuple[Path, Run], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json; give a folder of `otlabel train`"):
        SavedRun(tmp_path)
    folder = shutil.copytree(finished[0], tmp_path / "run")
    asked = json.loads((folder / "config.json").read_text())
    for damaged in ("{", "[]", '{"config": {"data": 1}, "data": ""}'):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(FileFormatError, match=r"config.json"):
            SavedRun(folder)
    (folder / "config.json").write_text(json.dumps(asked | {"data": "0" * 64}))
    with pytest.raises(FingerprintError, match="is a run on other data than digits holds now"):
        SavedRun(folder).images()
    asked["config"]["model"]["options"] = {"widths": [8, 17], "strides": [2, 2]}
    (folder / "config.json").write_text(json.dumps(asked))
    with pytest.raises(FileFormatError, match="weights are of another network"):
        SavedRun(folder).model()
    none = {"otlabel": {"best": None}}
    for weights in ({"model.heads.0.weight": torch.zeros(2, 2)}, {"model.x": 3}, {}):
        torch.save({"state_dict": weights, "callbacks": none}, folder / "checkpoint.pt")
        with pytest.raises(FileFormatError):
            SavedRun(folder).model()
    with pytest.raises(ValueError, match="no weights of a best relabelling"):
        SavedRun(folder).model(best=True)


def test_what_a_network_is_given_is_in_the_checkpoint(finished: tuple[Path, Run], tmp_path: Path) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    assert SavedRun(folder).input == Input((1, 8, 8))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    own = state["callbacks"]["otlabel"]
    wrong: list[Any] = [3, {}, {"shape": [1, 8], "entry": None}, {"shape": ["x", 8, 8], "entry": None}]
    entry = {"mean": [0.5], "spread": [0.2], "sobel": False}
    wrong += [
        {"shape": [1, 8, 8], "entry": entry | change} for change in ({"mean": [0, 1]}, {"spread": [0]}, {"mean": 1})
    ]
    for damaged in wrong:
        own["input"] = damaged
        torch.save(state, folder / "checkpoint.pt")
        with pytest.raises(FileFormatError, match="is damaged"):
            SavedRun(folder).model()
    own["input"] = {"shape": [1, 8, 8], "entry": entry}
    torch.save(state, folder / "checkpoint.pt")
    assert SavedRun(folder).input == Input((1, 8, 8), Entry((0.5,), (0.2,)))
    del own["input"]  # as of earlier versions: then its data tell it
    torch.save(state, folder / "checkpoint.pt")
    assert SavedRun(folder).input == Input((1, 8, 8))


# ---- probes of a run ----


def test_probes_of_a_run(finished: tuple[Path, Run], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder, run = finished
    picture = tmp_path / "probes.png"
    assert main(["probe", str(folder), "--plot", str(picture), "--progress", *QUICK]) == 0
    told = capsys.readouterr().out
    assert all(len(line) <= 80 for line in told.splitlines() if str(tmp_path) not in line)
    assert [line.split()[0] for line in told.splitlines()[2:6]] == ["conv1", "conv2", "features", "hidden"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["probe", str(folder), "--plot", str(picture), *QUICK]) == 2
    assert main(["probe", str(folder), "--json", "--layers", "features", "--crops", "10", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_train"], found["n_val"], found["n_heads"], found["is_apart"]) == (300, 500, 2, False)
    assert [one["layer"] for one in found["probes"]] == ["features"]
    assert found["knn"] == pytest.approx(run.result["knn"])
    with forward_only(run.model):
        logits = run.model(plain(run.images.test))
    wanted = [metrics.compare(run.images.test_labels, one.argmax(1)) for one in logits]
    for name in ("nmi", "ami", "ari", "accuracy"):
        assert found["labels"][name] == pytest.approx(np.mean([one[name] for one in wanted]))
    assert found["few_shot"]["1"]["mean"] < found["few_shot"]["5"]["mean"] < 1
    assert main(["probe", str(folder), "--layers", "conv7"]) == 2
    assert "has no layer 'conv7'; there are conv1, conv2, features, hidden" in capsys.readouterr().err


def test_a_run_is_probed_on_other_images(
    finished: tuple[Path, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, light in (("dark", 0), ("light", 150)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(light, light + 100, (9, 9, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    assert main(["probe", str(finished[0]), "--data", str(tmp_path / "images"), "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_train"], found["n_val"], found["is_apart"]) == (48, 12, True)
    assert found["few_shot"] == {}, "twelve images are too few"
    np.save(tmp_path / "vectors.npy", rng.normal(size=(20, 3)))
    assert main(["probe", str(finished[0]), "--data", str(tmp_path / "vectors.npy")]) == 2
    assert "holds vectors, which the run's network cannot take" in capsys.readouterr().err
    np.save(tmp_path / "unlabelled.npy", rng.integers(0, 255, (20, 8, 8), dtype=np.uint8))
    assert main(["probe", str(finished[0]), "--data", str(tmp_path / "unlabelled.npy")]) == 2
    assert "has no true classes to judge by" in capsys.readouterr().err


def test_a_run_on_image_files_is_probed_by_its_own_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slopes of grey images, standardised by the data's own constants; test images in val/."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, n_images in (("train", 24), ("val", 8)):
        for axis, name in enumerate(("across", "down")):
            (folder := tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(n_images):
                stripes = 120 * (np.indices((20, 26))[axis] // 3 % 2) + rng.integers(0, 90, (20, 26))
                image.fromarray(np.repeat(stripes.astype(np.uint8)[:, :, None], 3, 2)).save(folder / f"{number}.png")
    own = {"model__sobel": True, "augment__normalise": "data", "data__size": 16, "data__n_samples": None}
    run = train(of_folder(tmp_path / "images", **own), tmp_path / "run")
    saved = SavedRun(tmp_path / "run")
    images = saved.images()
    device = torch.device("cpu")
    np.testing.assert_array_equal(
        features_of(saved.model(), images.train, device), features_of(run.model, images.train, device)
    )
    assert main(["probe", str(tmp_path / "run"), "--json", "--epochs", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_train"], found["n_val"], found["is_apart"]) == (48, 16, False)
    assert max(one["top1"] for one in found["probes"]) > 0.9
    values = torch.stack(list(images.train.all())).transpose(0, 1).flatten(1).double() / 255
    # With other images named, the run's own need not be there: the checkpoint knows what they were standardised by.
    images_moved = (tmp_path / "images").rename(tmp_path / "elsewhere")
    command = ["probe", str(tmp_path / "run"), "--json", "--epochs", "12"]
    assert main([*command, "--data", str(images_moved)]) == 0
    elsewhere = json.loads(capsys.readouterr().out)
    assert [one["top1"] for one in elsewhere["probes"]] == [one["top1"] for one in found["probes"]]
    assert main(command) == 2
    assert "images" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "x.safetensors")]) == 0
    told = capsys.readouterr().out
    assert all(len(line) <= 80 for line in told.splitlines() if str(tmp_path) not in line)
    mean, spread = (", ".join(f"{one:.4f}" for one in of.tolist()) for of in (values.mean(1), values.std(1)))
    assert f"own mean {mean} and deviation {spread}; slopes of grey" in " ".join(told.split())


def test_clusters_are_called_by_the_majority_of_those_that_are_known() -> None:
    known, clusters = np.array([0, 0, 1, 1, 1, -1]), np.array([5, 5, 5, 7, 7, 8])
    truth, labels = np.array([0, 1, 1, 0, 1, -1]), np.array([5, 5, 7, 7, 8, 5])
    assert _majority(known, clusters, truth, labels) == 2 / 5  # 5 is 0, 7 is 1, 8 is unknown


def test_numbers_by_which_neighbours_are_told() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 200)).astype(np.float32) for n in (300, 50))

    def numbers(width: int, n_classes: int, index: Any = None) -> tuple[torch.Tensor, str]:
        made, told = _numbers(MultiHead(nn.Identity(), width, n_classes), lambda: train)
        return made(index, torch.from_numpy(test[:, :width])), told

    found, told = numbers(40, 10)
    assert (found.tolist(), told) == (test[:, :40].tolist(), "40 features")
    found, told = numbers(200, 128)
    assert (found.shape, told) == ((50, 128), "128 scores of the first head")
    found, told = numbers(200, 10)
    assert told == "128 principal components of 200 features"
    wanted = torch.from_numpy(decomposition.PCA(128, svd_solver="full").fit(train).transform(test))
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, rtol=1e-3, atol=1e-3)


def test_judging_leaves_the_network_as_it_was(finished: tuple[Path, Run]) -> None:
    model = SavedRun(finished[0]).model()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    first, second = (judge(model, finished[1].images, Protocol(epochs=2, seed=seed)) for seed in (0, 0))
    assert first == second
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


# ---- exported weights ----


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn", "resnet18", "resnet50"])
def test_exported_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        layers = network(name, 3).layers
    layers = absorbed(layers)
    assert {key: tuple(one.shape) for key, one in layers.state_dict().items()} == getattr(torchvision_weights, name)()


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn", "resnet18", "resnet50"])
def test_torchvision_loads_them_strictly_less_the_last_layer(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours, theirs = network(name, 3).eval(), models.get_model(name, weights=None).eval()
    if name.startswith("resnet"):
        theirs.fc = nn.Identity()
    else:
        theirs.classifier[6] = nn.Identity()
    theirs.load_state_dict(backbone_weights(ours), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours.layers(images), rtol=1e-4, atol=1e-5)


def test_a_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: tuple[Path, Run]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder, run = finished
    path = tmp_path / "backbone.safetensors"
    assert main(["export", str(folder), "-o", str(path)]) == 0
    assert "the layers of small_convnet" in capsys.readouterr().out
    weights = safetensors.load_file(path)
    wanted = run.model.backbone.layers.state_dict()
    assert all(torch.equal(wanted[name], weights.pop(name)) for name in wanted)
    assert weights == {}
    assert main(["export", str(folder), "-o", str(path)]) == 2
    assert main(["export", str(folder), "-o", str(path), "--best", "--force"]) == 0
    assert main(["export", str(folder), "-o", str(tmp_path / "backbone.pt")]) == 2
    assert run.best is not None
    assert torch.equal(safetensors.load_file(path)["0.0.weight"], run.best["backbone.layers.0.0.weight"])


@pytest.mark.parametrize(("changes", "channels", "told"), [
    ({}, 3, r"^torchvision\.models\.alexnet\(\), less classifier\.6$"),
    ({}, 1, r"less classifier\.6, with a first convolution of 1 channels in place of 3$"),
    ({"widths": [64, 192, 384, 256, 256], "size": 64}, 3, r"^torchvision\.models\.alexnet\(\), less classifier\.6$"),
    ({"widths": [96, 256, 384, 384, 256]}, 3, r"^alexnet with the options .* other widths$"),
])  # fmt: skip
def test_what_is_told_of_exported_weights(changes: dict[str, Any], channels: int, told: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    model = MultiHead(alexnet(channels, (2, 3, 4, 3, 2), hidden=5), 5, 3)
    config_of = config(model__backbone="alexnet", model__options=changes)
    found = export(model, tmp_path / "x.safetensors", config_of)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        names, about = set(file.keys()), file.metadata()
    assert names == set(torchvision_weights.alexnet())
    assert found.n_tensors == len(names)
    assert found.told == about["read_by"]
    assert re.search(told, found.told)


# ---- labels out, and to other networks ----


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_table_of_labels(finished: tuple[Path, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = finished
    path = tmp_path / "labels.csv"
    assert main(["labels", str(folder), "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"Labels of 300 samples written to {path}\n"
    rows, labels = table(path), load_labels(folder / "labels.h5").labels
    assert list(rows[0]) == ["sample", "label_0", "confidence_0", "label_1", "confidence_1"]
    assert [int(row["sample"]) for row in rows] == list(range(300))
    model = SavedRun(folder).model(best=True)
    with forward_only(model):
        chances = [logits.softmax(1) for logits in model(plain(run.images.train))]
    for t in range(2):
        np.testing.assert_array_equal([int(row[f"label_{t}"]) for row in rows], labels[t])
        wanted = chances[t][torch.arange(300), torch.from_numpy(labels[t])]
        np.testing.assert_allclose([float(row[f"confidence_{t}"]) for row in rows], wanted, atol=1e-4)
    (unfinished := shutil.copytree(folder, tmp_path / "unfinished")).joinpath("labels.h5").unlink()
    for other, message in ((folder, "exists already"), (unfinished, "come to its end first")):
        options = [] if other == folder else ["--force"]
        assert main(["labels", str(other), "-o", str(path), *options]) == 2
        assert message in capsys.readouterr().err
    assert table(path) == rows


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of images of many sizes; a name that a table has to quote."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, hue in (("red", 0), ("green, or so", 1)):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 90, (*rng.integers(9, 30, 2), 3), dtype=np.uint8)
            pixels[:, :, hue] += 150
            image.fromarray(pixels).save(tmp_path / "photographs" / name / f"{number}.png")
    return tmp_path / "photographs"


def of_folder(folder: Path, **changes: Any) -> Any:
    values = {"data__name": str(folder), "data__n_samples": 20, "data__size": 8, "model__heads": [2]}
    values |= {"train__epochs": 1, "labels__n_relabels": 1, "train__batch_size": 10, "evaluation__probe": False}
    return config(**values | changes)


def test_labels_go_to_other_sizes_formats_and_networks(photographs: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    train(of_folder(photographs), tmp_path / "run")
    assert main(["labels", str(tmp_path / "run"), "-o", str(tmp_path / "labels.csv")]) == 0
    files = [row["file"] for row in table(tmp_path / "labels.csv")]
    assert len(set(files)) == 20
    assert all((photographs / file).is_file() for file in files)
    smaller = tmp_path / "smaller"
    for path in photographs.glob("*/*"):
        (smaller / path.parent.name).mkdir(parents=True, exist_ok=True)
        image.open(path).resize((16, 16)).save(smaller / path.parent.name / f"{path.stem}.bmp")
    stored = {"labels__method": "fixed", "labels__file": str(tmp_path / "run/labels.h5")}
    other = {"model__backbone": "small_resnet", "model__options": {"width": 2}, "data__size": 12}
    fresh = train(of_folder(smaller, **stored, **other), tmp_path / "fresh")
    np.testing.assert_array_equal(fresh.labeler.labels, load_labels(tmp_path / "run/labels.h5").labels)
    assert fresh.images.train.shape[2:] == (12, 12)
    # Others of these files, or other files, are other data.
    with pytest.raises(FingerprintError, match="labels of other data"):
        train(of_folder(smaller, **stored, data__seed=1))
    (smaller / "red/3.bmp").rename(smaller / "red/33.bmp")
    with pytest.raises(FingerprintError, match="labels of other data"):
        train(of_folder(smaller, **stored, data__n_samples=None))


def test_what_labels_are_told_by_does_not_depend_on_pixels(photographs: Path) -> None:
    images = [Run(of_folder(photographs, data__size=size), None).images for size in (8, 9)]
    assert images[0].identity == images[1].identity
    assert images[0].identity != images[0].fingerprint, "a run goes on with the same files alone"
    assert images[0].files is not None
    assert [Path(file).parts[0] == "red" for file in images[0].files] == images[0].train_labels.bool().tolist()
    digits = Run(config(), None).images
    assert digits.identity == digits.fingerprint
