"""Each example runs in its short form and finds what its text says."""

from __future__ import annotations

import math
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = Path(__file__).parents[2] / "docs"
NAMES = {
    "arrays", "balanced_clustering", "curation", "expert_routing", "few_labels", "hdf5", "index_lists", "own_loop",
    "progressive_mass", "reviewers", "selflabel_ddp", "selflabel_images", "semantic_ids", "sparse_neighbours",
    "swav_batches", "text", "voc_classification", "zero_shot",
}  # fmt: skip
CODE_LINES = 40  # that the shortest loop may take

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs an example in an empty folder."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    return lambda name, **options: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**options)


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_examples_begin_with_a_title(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    found = re.match(r'"""\n(.+)\n(=+)\n\n\S', text)
    assert found is not None
    assert len(found[1]) == len(found[2])
    assert f"Run: python examples/{name}.py" in text


def test_the_gallery_has_an_output_and_a_picture_of_each() -> None:
    for folder, ending in (("outputs", "txt"), ("images/examples", "png")):
        assert {path.stem for path in (DOCS / folder).glob(f"*.{ending}")} == NAMES - {"voc_classification"}
        assert all(0 < path.stat().st_size < 60_000 for path in (DOCS / folder).iterdir())


def test_arrays(run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("arrays")
    assert found["equal sizes"] > found["best class of each"] + 0.01
    assert found["the surest 80 %"] > found["equal sizes"] + 0.03
    assert found["new, predicted"] > found["new, best class"]
    for name in ("best class of each", "equal sizes", "the true sizes", "between 8 % and 12 %", "the surest 80 %"):
        assert abs(found[f"{name}: gap"]) < 1e-12
    assert found["nearest centre: gap"] > 1e-3
    assert found["passes, warm"] < found["passes, cold"]
    assert "140 each" in capsys.readouterr().out


def test_sparse_neighbours(run) -> None:
    n, n_centres = 8000, 400
    found = run("sparse_neighbours", n=n, n_centres=n_centres)
    assert found["longest, nearest"] > 2 * n / n_centres
    assert found["gap, 3"] > found["gap, 5"] > found["gap, 10"] >= -1e-12
    for m in (3, 5, 10):
        assert found[f"longest, {m}"] <= 1.2 * n / n_centres
        better = found[f"distance, {m}"] - found["distance, 10"]
        assert -1e-12 <= better <= found[f"gap, {m}"] + 1e-12


def test_hdf5(run, tmp_path: Path) -> None:
    n = 24_000
    found = run("hdf5", n=n)
    assert (found["smallest"], found["largest"]) == (n // 200, n // 200)
    assert found["bytes read, cached"] < n * 200 * 2 * 1.2 < 3 * n * 200 * 2 < found["bytes read, streamed"]
    assert found["same labels"] == 1
    assert found["same labels from features"] > 0.99
    assert abs(found["gap"]) < 1e-12
    assert found["new, class error"] < 0.3
    assert list(tmp_path.iterdir()) == []


def test_balanced_clustering(run) -> None:
    found = run("balanced_clustering", n_starts=4)
    assert (found["equal sizes: smallest"], found["equal sizes: largest"]) == (150, 150)
    assert found["120 to 180: smallest"] >= 120
    assert found["120 to 180: largest"] <= 180
    assert found["k-means: smallest"] < 100
    assert found["k-means: least inertia"] < found["120 to 180: least inertia"] < found["equal sizes: least inertia"]
    assert found["equal sizes: accuracy"] > found["k-means: accuracy"] + 0.02
    assert found["same labels from the file"] == 1
    assert abs(found["gap"]) < 1e-6
    assert found["new, accuracy"] > 0.65


def test_curation(run) -> None:
    found = run("curation", n_seeds=4)
    assert found["200 clusters"] < found["curated"] < found["random"] - 0.05
    assert found["curated: rarer half"] > found["random: rarer half"] + 0.03
    assert abs(found["random"] - found["all"]) < 0.05


def test_expert_routing(run) -> None:
    found = run("expert_routing", every=2)
    ways = ["exact", "five dual steps", "one dual step", "top two"]
    for name in ("load", "turned away"):
        assert sorted(ways, key=lambda way: found[f"{way}: {name}"]) == ways
    assert found["exact: load"] < 1.001
    assert found["exact: turned away"] == 0 < 0.02 < found["Sinkhorn, 20 iterations: turned away"]
    assert 0 == found["top two: lost"] < found["one dual step: lost"] < found["exact: lost"] < 0.2
    assert found["proven"]
    assert found["new: load"] < 1.2


def test_reviewers(run) -> None:
    found = run("reviewers")
    assert found["proven"]
    assert (found["least load"], found["largest load"]) == (2, 6)
    assert found["all at once: unfilled"] == 0
    assert found["all at once: total"] > found["one after the other: total"] + 20
    assert found["all at once: worst"] > found["one after the other: worst"] + 0.1
    assert found["by hand: gap"] > 0.1


def test_index_lists(run) -> None:
    pytest.importorskip("faiss", reason='no faiss: pip install "otlabel[kmeans]"')
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(5000, 1 / np.arange(1, 41) / (1 / np.arange(1, 41)).sum())
    x = np.repeat(4 * rng.normal(size=(40, 8)), sizes, axis=0) + rng.normal(size=(5000, 8))
    found = run("index_lists", x=x, n_lists=32, n_queries=500)
    assert found["balanced: longest"] <= 142 < 0.7 * found["faiss: longest"]
    assert found["balanced, 4: most"] < 0.7 * found["faiss, 4: most"]
    for n_probes in (4, 16):
        assert found[f"balanced, {n_probes}: recall"] > found[f"faiss, {n_probes}: recall"] - 0.05
    assert found["balanced, 16: recall"] > 0.95
    assert found["two lists: longest"] <= 2 * 142  # 4,500 vectors twice in 32 lists
    assert found["two lists, 1: recall"] > found["balanced, 1: recall"] + 0.05


def test_own_loop(run) -> None:
    assert run("own_loop", epochs=12)["nmi"] > 0.65
    code = (EXAMPLES / "own_loop.py").read_text(encoding="utf-8").split('"""', 2)[2]
    assert sum(bool(line.strip()) for line in code.split("\n")) < CODE_LINES


def test_progressive_mass(run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("progressive_mass")
    assert found["exact sizes"] + 0.1 < found["ramped mass, KL"] <= 1
    assert "class sizes" in capsys.readouterr().out


def test_selflabel_ddp(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one process; on several it is run by another test."""
    assert run("selflabel_ddp", epochs=12)["nmi"] > 0.65
    assert "180, 179, 179, 179]" in capsys.readouterr().out
    assert (tmp_path / "labels.h5").exists()


def test_selflabel_images(run, tmp_path: Path) -> None:
    assert run("selflabel_images", epochs=8)["accuracy"] > 0.6
    assert (tmp_path / "labels.h5").exists()


def test_swav_batches(run) -> None:
    found = run("swav_batches", epochs=8)
    assert math.isnan(found["none: untrained: loss"])
    assert found["softmax alone: loss"] < found["balanced: loss"]
    assert found["softmax alone: in use"] < 10 < 25 < found["balanced: in use"]
    assert found["balanced: NMI"] > found["softmax alone: NMI"] + 0.1
    assert found["balanced: kNN"] > found["softmax alone: kNN"] + 0.02


@pytest.fixture
def wordnet() -> None:
    """Needed, and the package that makes vectors of its texts."""
    pytest.importorskip("wordllama", reason='no wordllama: pip install "otlabel[examples]"')
    places = (Path(os.environ.get("OTLABEL_DATA", "/nowhere")) / "wordnet", Path("/usr/share/wordnet"))
    if not any((place / "data.noun").is_file() for place in places):
        pytest.skip("no WordNet: apt-get install wordnet-base, or set OTLABEL_DATA (see examples/text.py)")


def test_semantic_ids(run, wordnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does: it takes its texts from another example
    found = run("semantic_ids", n=4000, levels=(16, 16, 16))
    assert found["k-means: shared"] > found["balanced: shared"] > 0.3
    assert found["k-means: most"] > found["balanced: most"] > found["balanced, unique: most"] == 1
    assert found["balanced, unique: shared"] == 0
    assert found["k-means: left"] < found["balanced: left"] < found["balanced, unique: left"]
    assert found["balanced: smallest"] == found["balanced, unique: largest"] == 250
    assert abs(found["gap"]) < 1e-9


def test_few_labels(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTLABEL_DATA", str(tmp_path))  # digits, wherever clothes are installed
    monkeypatch.setattr("otlabel.training.formats.FASHION_FOLDER", tmp_path)
    found = run("few_labels", n_seeds=2)
    for m in (1, 2, 5):
        assert found["pseudo-labels: equal sizes"][m] > found["few labels alone"][m]
        assert found["the same, surest 60 %"][m] > found["pseudo-labels: best class"][m]


def test_zero_shot(run, wordnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    accuracy = {name: one["accuracy"] for name, one in run("zero_shot", n=20_000).items()}
    assert accuracy["equal sizes"] < accuracy["best name of each"] < accuracy["100 labelled: half to twice"]
    assert accuracy["half to twice true"] < accuracy["the true sizes"]
    assert abs(accuracy["... on half, then each alone"] - accuracy["100 labelled: sizes"]) < 0.02


def test_text(run, wordnet, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    found = run("text", n=20_000, page="page.html")
    accuracy = {name: one["accuracy"] for name, one in found.items()}
    order = ["equal sizes", "KL to equal, rho .05", "best class of each", "KL to true, rho .05", "true sizes"]
    assert sorted(order, key=accuracy.__getitem__) == order
    assert accuracy["best class of each"] < accuracy["half to twice true"] < accuracy["true sizes"]
    assert found["true sizes"]["mean of classes"] < found["best class of each"]["mean of classes"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<section") == 24


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A folder in VOC's format: three classes, each of which colours a third of an image where it is there."""
    image = pytest.importorskip("PIL.Image")
    rng, folder = np.random.default_rng(0), tmp_path / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets/Main").mkdir(parents=True)
    lists: dict[str, list[str]] = {}
    for split, n_images in (("trainval", 48), ("test", 20)):
        for number in range(n_images):
            name, there = f"{split}{number:06d}", rng.random(3) < 0.4
            pixels = rng.integers(0, 60, (60, 75, 3), dtype=np.uint8)
            for k in np.flatnonzero(there):
                pixels[:, 25 * k : 25 * k + 25, k] += 150
            image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=90)
            for k, kind in enumerate(("cat", "dog", "sofa")):
                mark = 0 if number % 9 == 8 else 1 if there[k] else -1
                lists.setdefault(f"{kind}_{split}", []).append(f"{name} {mark:2d}")
    for name, lines in lists.items():
        (folder / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_voc_classification(run, voc: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from otlabel import MultiHead
    from otlabel.training.config import config_of
    from otlabel.training.exporting import export
    from otlabel.training.networks import network

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    given = {"backbone": "resnet18", "options": {"width": 4}}
    model = MultiHead(network("resnet18", 3, width=4), 32, 3)
    export(model, tmp_path / "backbone.safetensors", config_of({"data": {"name": "any"}, "model": given}))
    options = {"iterations": 50, "size": 32, "workers": 0, "weights": tmp_path / "backbone.safetensors"}
    found = run("voc_classification", folder=voc, layers="all", lr=0.03, **options)
    assert set(found) == {"mAP, 11 points", "mAP, all points"}
    assert all(0.8 < value <= 1 for value in found.values())
    slopes = {"data": {"name": "any"}, "model": given | {"sobel": True}, "augment": {"normalise": "imagenet"}}
    model = MultiHead(network("resnet18", 2, width=4), 32, 3)
    export(model, options["weights"], config_of(slopes))
    head = run("voc_classification", folder=voc, layers="head", lr=0.03, **options | {"iterations": 20})
    assert all(0.3 < value < 1 for value in head.values())


@pytest.mark.parametrize("eleven", [True, False])
def test_average_precision_of_voc(eleven: bool) -> None:
    """Against VOC's own loops, written out; and by hand."""
    pytest.importorskip("safetensors")
    precision_of = runpy.run_path(str(EXAMPLES / "voc_classification.py"))["average_precision"]
    assert precision_of(np.array([1, 0, 1, 0]), np.array([4.0, 3, 2, 1]), False) == pytest.approx((1 + 2 / 3) / 2)
    assert precision_of(np.array([1, 0, 1, 0]), np.array([4.0, 3, 2, 1]), True) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert math.isnan(precision_of(np.array([0, -1]), np.array([0.0, 1]), eleven))
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, scores = rng.integers(-1, 2, 40), rng.normal(size=40)
        ranked = [int(truth[i]) for i in sorted(range(40), key=lambda i: -scores[i]) if truth[i] >= 0]
        n_right, points = sum(ranked), []
        for n in range(1, len(ranked) + 1):
            points.append((sum(ranked[:n]) / n_right, sum(ranked[:n]) / n))
        best = lambda recall, points=points: max((p for r, p in points if r >= recall - 1e-12), default=0.0)  # noqa: E731
        if eleven:
            wanted = sum(best(t / 10) for t in range(11)) / 11
        else:
            wanted = sum(best(number / n_right) for number in range(1, n_right + 1)) / n_right
        assert precision_of(truth, scores, eleven) == pytest.approx(wanted, abs=1e-12)


def test_text_says_how_to_get_its_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    monkeypatch.setenv("OTLABEL_DATA", str(tmp_path))
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    glosses = runpy.run_path(str(EXAMPLES / "text.py"))["glosses"]
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base") as caught:
        glosses(10)
    assert f"{tmp_path}/wordnet or /usr/share/wordnet" in str(caught.value)
