"""Configs and commands of training: mistakes told by place, recipes that can be read, and code only where allowed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SMALL, config

from otlabel.commands.main import main
from otlabel.errors import FileFormatError, FingerprintError, MissingPackageError
from otlabel.selflabel import load_labels
from otlabel.training.config import config_of, read_config
from otlabel.training.module import LabelModule
from otlabel.training.run import train

ROOT = Path(__file__).parents[2]


# ---- configs ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, r"section \[trian\], which is not known; did you mean 'train'"),
        ({"train": {"epoch": 3}}, "key 'epoch', which is not known; did you mean 'epochs'"),
        ({"train": {"epochs": "many"}}, "epochs is 'many'; give an int"),
        ({"train": {"epochs": True}}, "epochs is True; give an int"),
        ({"labels": {"method": "sinkhorm"}}, "choose one of 'sinkhorn'"),
        ({"model": {"heads": [10, "ten"]}}, "heads is 'ten'; give an int"),
        ({"augment": {"crop": [0.3]}}, "list of two numbers"),
        ({"augment": {"crop": [0.9, 0.3]}}, r"crop is \(0.9, 0.3\)"),
        ({"train": 3}, r"must be a section, \[train\]"),
        ({"train": {"batch_size": 1}}, r"\[train\]: batch_size is 1; a batch needs 2"),
        ({"train": {"threads": 0}}, "threads is 0; give at least 1"),
        ({"train": {"seed": -1}}, "seed is -1; give a whole number from 0 up"),
        ({"train": {"lr": float("nan")}}, "lr is nan; give a number from 0 up"),
        ({"data": {"name": "digits", "seed": -1}}, r"\[data\]: seed is -1"),
        ({"model": {"hidden": 0}}, "hidden is 0"),
        ({"labels": {"epsilon": 0}}, "epsilon is 0.0; give a positive number"),
        ({"labels": {"kl": -1}}, "kl is -1.0"),
        ({"labels": {"range": [2, 3]}}, r"range is \[2.0, 3.0\]"),
        ({"labels": {"abstain": 1}}, "abstain is 1.0"),
        ({"labels": {"method": "fixed"}}, "'fixed', but no file is given"),
        ({"evaluation": {"knn": -1}}, "knn is -1"),
    ],
)
def test_mistakes_in_a_config_are_told_by_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        config_of(SMALL | change)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["model.backbone=mlp", "model.options={}"], "; for images there is small_convnet, small_resnet, resnet18"),
        (["data.name=vectors.npy"], "'small_convnet' cannot take data of shape ('N', 5): "),
        (["data.name=vectors.npy"], "; for feature vectors there is mlp"),
        (["model.backbone=small_resnet"], "small_resnet has no option 'widths'; its options are width"),
        (["model.options={widths=3}"], "small_convnet cannot be made with the options {'widths': 3}"),
        (["model.options={channels=3}"], "options has a key 'channels', which is no option"),
        (["model.options={allow_code=true}"], "options has a key 'allow_code', which is no option"),
        (["model.backbone=alexnet", "model.options={widths=[4,4]}"], "AlexNet has five convolutions"),
        (["trainer.accelerator=abacus"], "[trainer] is not accepted by Lightning"),
        (["trainer.devises=2"], "no argument of Lightning's Trainer; did you mean 'devices'?"),
        (["labels.range=[0,0]"], "widen the range"),
        (["labels.method=fixed", "labels.file=absent.h5"], "absent.h5 does not exist"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line_and_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", np.random.default_rng(0).normal(size=(120, 5)))
    lines = ['[data]\nname = "digits"\nn_samples = 100\n[model]\nheads = [4]\nbackbone = "small_convnet"']
    Path("recipe.toml").write_text("\n".join([*lines, "options = { widths = [4], strides = [2] }"]))
    assert main(["train", "recipe.toml", "-o", "runs/a", *(w for change in changes for w in ("--set", change))]) == 2
    ran = capsys.readouterr()
    assert ran.out == ""
    assert ran.err.startswith("otlabel: error: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert sorted(os.listdir()) == ["recipe.toml", "vectors.npy"]


def test_config_needs_data_and_an_existing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no section \[data\]"):
        config_of({})
    with pytest.raises(FileNotFoundError, match=r"the recipes are .*digits"):
        read_config("digitz")
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(FileFormatError, match="is no TOML"):
        read_config(str(tmp_path / "bad.toml"))


def test_every_recipe_can_be_read() -> None:
    recipes = sorted((ROOT / "otlabel" / "training" / "recipes").glob("*.toml"))
    assert len(recipes) >= 3
    for recipe in recipes:
        assert read_config(recipe.stem).data.name


# ---- commands ----


def test_train_and_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        '[data]\nname = "digits"\nn_samples = 300\n[model]\nbackbone = "small_convnet"\nheads = [10]\n'
        "[labels]\naugmented = true\n[train]\nepochs = 2\nthreads = 1\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", str(path), "-o", str(first), "--set", "train.lr=0.1"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.replace(str(first), "").splitlines())) <= 80
    assert printed.count("\n") >= 6
    labels = load_labels(first / "labels.h5")
    np.testing.assert_array_equal(np.bincount(labels.labels[0]), [30] * 10)

    change = ["--set", "model.backbone=small_resnet", "--set", "model.options={width=4}"]
    assert main(["transfer", str(path), str(first / "labels.h5"), "-o", str(second), "--json", *change]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["knn"] <= 1
    np.testing.assert_array_equal(load_labels(second / "labels.h5").labels, labels.labels)

    assert main(["train", str(path), "-o", str(first), "--set", "train.lr=0.2"]) == 2
    assert "lr = 0.1, now it is 0.2" in capsys.readouterr().err
    assert main(["train", str(path), "-o", str(first), "--set", "lr=0.2"]) == 2
    assert "SECTION.KEY=VALUE" in capsys.readouterr().err
    assert main(["transfer", str(path), str(tmp_path / "none.h5"), "-o", str(second)]) == 2
    assert "none.h5 does not exist" in capsys.readouterr().err


CODE = """
from torch import nn
open("mark", "w").close()
def tiny(channels, n):
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, n))
    model.feature_dim = n
    return model
"""


def test_code_in_a_recipe_runs_only_where_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny_networks.py").write_text(CODE)
    Path("r.toml").write_text(
        '[data]\nname = "digits"\nn_samples = 64\n[model]\nbackbone = "tiny_networks:tiny"\noptions = { n = 5 }\n'
        "heads = [4]\n[train]\nepochs = 1\nthreads = 1\n"
    )
    for command in (["train", "r.toml"], ["train", "digits", "--set", "model.backbone=tiny_networks:tiny"]):
        assert main([*command, "-o", "run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "'tiny_networks:tiny' would import" in line
        assert "--allow-code" in line
    assert not Path("mark").exists()
    assert not Path("run").exists()
    with pytest.raises(ValueError, match="allow_code=True"):
        train(read_config("r.toml"))
    assert main(["train", "r.toml", "-o", "run", "--allow-code"]) == 0
    assert Path("mark").exists()
    capsys.readouterr()
    assert main(["train", "r.toml", "-o", "run"]) == 2  # to go on takes the same trust
    assert main(["transfer", "r.toml", "run/labels.h5", "-o", "other"]) == 2
    assert main(["transfer", "r.toml", "run/labels.h5", "-o", "other", "--allow-code"]) == 0
    assert main(["train", "digits", "-o", "none", "--set", "model.backbone=no_such:f", "--allow-code"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "otlabel: error: No module named 'no_such'"


MISTAKES = {
    "options of another": (["model.backbone=mlp"], "mlp has no option 'widths'; its options are width, depth"),
    "images for vectors": (["model.backbone=mlp", "model.options={}"], "backbone = 'mlp' cannot take data of shape"),
    "too small": (["model.backbone=alexnet", "model.options={size=20}"], "size is 20: of less than 63 pixels"),
    "a wrong type": (["model.options={widths=[1.5], strides=[1]}"], "cannot be made with the options"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_failed_start_is_one_line_and_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    changes, told = MISTAKES[mistake]
    words = ["train", "digits", "-o", str(tmp_path / "run"), "--set", "train.epochs=1", "--set", "data.n_samples=64"]
    assert main([*words, *(word for change in changes for word in ("--set", change))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_start_that_trained_nothing_does_not_occupy_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(module: Any, index: Any, *_: Any) -> None:
        raise RuntimeError("the first step")

    with monkeypatch.context() as patch:
        patch.setattr(LabelModule, "loss", fail)
        with pytest.raises(RuntimeError, match="first step"):
            train(config(train__epochs=1), tmp_path)
    run = train(config(train__epochs=1, train__lr=0.2), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["train"]["lr"] == 0.2
    assert run.epoch == 1


def test_vectors_for_a_network_of_images_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32))
    given = {"data": {"name": str(tmp_path / "x.npy")}, "model": {"heads": [4]}}
    with pytest.raises(ValueError, match=r"'small_resnet' cannot take data of shape \('N', 12\)") as raised:
        train(config_of(given), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_labels_of_other_data_are_refused(tmp_path: Path) -> None:
    train(config(train__epochs=1), tmp_path)
    other = config(data__n_samples=299, labels__method="fixed", labels__file=str(tmp_path / "labels.h5"))
    with pytest.raises(FingerprintError, match="labels of other data"):
        train(other)


def test_the_page_about_configs_names_every_key_and_default() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, section in config_of({"data": {"name": "digits"}}).to_dict().items():
        part = page.partition(f"| `[{name}]` |")[2].partition("\n\n")[0]
        assert part, name
        for key in section:
            assert f"`{key}`" in part, (name, key)


def test_without_lightning_the_line_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MissingPackageError("lightning", "lightning")

    monkeypatch.setattr("otlabel.selflabel.callbacks.lightning", missing)
    for name in ("trainer", "module"):
        monkeypatch.delitem(sys.modules, f"otlabel.training.{name}", raising=False)
    with pytest.raises(MissingPackageError, match=r"pytorch-lightning is needed for this: pip install .*training"):
        train(config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
