"""The demo: what it writes is whole, what it prints is what it measured, and its words follow the figures."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib.image import imread
from ranks import forking
from sklearn.metrics import normalized_mutual_info_score

from otlabel.commands import demo
from otlabel.commands.demo import runs
from otlabel.commands.demo.words import conclusion, table
from otlabel.commands.main import main
from otlabel.errors import MissingPackageError
from otlabel.training import config
from otlabel.training.config import read_config
from otlabel.training.data import load_images

N_SAMPLES = 1297
EPOCHS = 6  # a fifth of the recipe's; the order of the methods is the same


class Run(NamedTuple):
    findings: runs.Findings
    folder: Path
    printed: str


def in_few_epochs(seed: int, self_labelled: Callable[[int], runs.Labelled] = runs.self_labelled) -> runs.Labelled:
    """What a process of the demo calls."""
    recipe = read_config(runs.RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            config, "read_config", lambda name: recipe.with_values(train__epochs=EPOCHS, labels__n_relabels=2 * EPOCHS)
        )
        return self_labelled(seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo") / "otlabel-demo"
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SEEDS", range(2))
        patch.setattr(runs, "self_labelled", in_few_epochs)
        patch.setattr(runs, "get_context", lambda how: forking())
        patch.setattr(runs, "_clothes", lambda: None)  # as where it is not installed
        return Run(demo.run_demo(folder, echo=printed.append), folder, "\n".join(printed))


def test_it_writes_its_files_and_no_more(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(demo.FILES)


def test_labels_are_balanced_exactly_and_proven(run: Run) -> None:
    labels = np.load(run.folder / "labels.npy")
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, run.findings.shown.labels)
    for one in run.findings.runs["self-labelled"]:
        np.testing.assert_array_equal(np.sort(one.sizes), [129] * 3 + [130] * 7)
        assert abs(one.gap) < 1e-9


def test_report_tells_of_the_same_labels(run: Run) -> None:
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    shown = run.findings.shown
    assert "1,297 samples in 10 classes" in page
    assert f"NMI {shown.nmi:.3f}" in page
    assert f"accuracy {shown.accuracy:.3f}" in page


def test_labels_are_better_than_those_of_k_means(run: Run) -> None:
    k_means, own = (run.findings.runs[method] for method in runs.METHODS)
    for measure in ("nmi", "accuracy"):
        assert np.mean([getattr(one, measure) for one in own]) > np.mean([getattr(one, measure) for one in k_means])
    assert own[0].course[-1] == (own[0].nmi, own[0].accuracy)
    assert own[0].course[-1][1] > own[0].course[0][1]


def test_measures_are_right(run: Run) -> None:
    truth = load_images("digits").train_labels
    assert truth is not None
    for one in [*run.findings.runs["self-labelled"], *run.findings.runs["k-means on pixels"]]:
        assert one.nmi == pytest.approx(normalized_mutual_info_score(truth, one.labels), abs=1e-9)
        names = runs.name_classes(one.labels, truth.numpy())
        assert sorted(names) == list(range(10))
        assert one.accuracy == pytest.approx((names[one.labels] == truth.numpy()).mean())


def test_picture_shows_something(run: Run) -> None:
    picture = imread(run.folder / "demo.png")
    assert picture.shape[0] > 800
    assert picture.shape[1] > 1000
    assert 0.03 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.6  # neither blank nor a block of ink


def test_printed_lines_fit_a_terminal(run: Run) -> None:
    shown = run.printed.replace(str(run.folder), "otlabel-demo")
    assert max(map(len, shown.splitlines())) <= 80


def test_page_and_terminal_show_the_same(run: Run) -> None:
    page = (run.folder / "summary.md").read_text()
    for text in (table(run.findings), conclusion(run.findings)):
        assert text in page
        assert text in run.printed
    for one in run.findings.runs["self-labelled"]:
        assert f"| {one.seed} | {one.nmi:.3f} | {one.accuracy:.3f} | 129-130 |" in page


@pytest.mark.parametrize(("accuracy", "words"), [(0.9, "above k-means"), (0.1, "below k-means")])
def test_closing_words_follow_the_figures(run: Run, accuracy: float, words: str) -> None:
    own = [replace(one, accuracy=accuracy) for one in run.findings.runs["self-labelled"]]
    told = conclusion(replace(run.findings, runs=run.findings.runs | {"self-labelled": own}))
    assert words in told
    assert f"{2 if accuracy > 0.5 else 0} of 2 seeds beat" in " ".join(told.split())


def test_words_on_quality_warnings_and_other_data(run: Run) -> None:
    own = [
        replace(one, quality=quality, accuracy=accuracy, alarms=alarms)
        for one, quality, accuracy, alarms in zip(
            run.findings.runs["self-labelled"], (0.31, 0.42), (0.84, 0.93), ((), ("labels have stopped changing",)),
            strict=True,
        )
    ]  # fmt: skip
    findings = replace(run.findings, runs=run.findings.runs | {"self-labelled": own})
    told = " ".join(conclusion(findings).split())
    assert "0.31 to 0.42 here. The run that it prefers has accuracy 0.93, the one that it likes least 0.84." in told
    assert 'warned in 1 of 2 runs, with seed 1: "labels have stopped changing".' in told
    assert "dataset-fashion-mnist" in told
    clothes = (replace(own[0], accuracy=0.51, nmi=0.5), replace(own[1], accuracy=0.62, nmi=0.6, quality=0.66))
    lines = conclusion(replace(findings, clothes=clothes))
    assert max(map(len, lines.splitlines())) <= 80
    told = " ".join(lines.split())
    assert "reach accuracy 0.62 and NMI 0.60; k-means 0.51 and 0.50; quality is 0.66." in told
    assert "dataset-fashion-mnist" not in told


def test_a_second_data_set_is_used_where_there_is_one(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("OTLABEL_DATA", str(tmp_path))
    monkeypatch.setattr("otlabel.training.formats.FASHION_FOLDER", tmp_path)
    assert runs._clothes() is None
    rng = np.random.default_rng(0)
    (tmp_path / "fashion-mnist").mkdir()
    for part, n in (("train", 60), ("t10k", 10)):
        for kind, shape in (("images-idx3", (n, 8, 8)), ("labels-idx1", (n,))):
            values = rng.integers(0, 10, shape, np.uint8)
            header = struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
            path = tmp_path / "fashion-mnist" / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes()))
    monkeypatch.setattr(runs, "N_CLOTHES", 40)
    monkeypatch.setattr(runs, "CLOTHES_EPOCHS", 1)
    found = runs.clothes_labelled()
    assert found.labels.shape == (40,)
    np.testing.assert_array_equal(found.sizes, np.full(10, 4))
    assert found.quality is not None


def test_classes_get_the_naming_that_is_right_most_often() -> None:
    rng = np.random.default_rng(0)
    truth, names = rng.integers(0, 10, 500), rng.permutation(10)
    labels = np.argsort(names)[truth]
    labels[:100] = rng.integers(0, 10, 100)
    np.testing.assert_array_equal(runs.name_classes(labels, truth), names)


def test_second_run_renews_the_files(run: Run, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name in demo.FILES:
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    (tmp_path / "labels.npy").write_bytes(b"old")
    monkeypatch.setattr(runs, "compare", lambda **_: run.findings)
    assert main(["demo", "-o", str(tmp_path)]) == 0
    assert np.load(tmp_path / "labels.npy").shape == (N_SAMPLES,)
    assert "| k-means on pixels " in capsys.readouterr().out


def test_files_of_the_user_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.npy").write_bytes(b"precious")
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "labels.npy" in capsys.readouterr().err
    assert (tmp_path / "labels.npy").read_bytes() == b"precious"


def test_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert main(["demo", "-o", str(tmp_path / "taken")]) == 2
    assert "taken is a file" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_missing_package_is_named(monkeypatch: Any, tmp_path: Path, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"{package} .*otlabel\[report\]"):
        demo.run_demo(tmp_path)
