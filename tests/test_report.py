"""The report: its figures are the library's, whatever is given or missing; text is shown and never run."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

pytest.importorskip("jinja2")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")

from sklearn.cluster import KMeans

import otlabel
from otlabel import balance_path, certify, curation, metrics, report, sinkhorn_assign
from otlabel.cli import main
from otlabel.errors import FileFormatError, FingerprintError, MissingPackageError
from otlabel.reporting import summary as summaries
from otlabel.reporting.sources import Subject
from otlabel.reporting.words import shown
from otlabel.scores import open_scores
from otlabel.selflabel import load_labels, save_labels

N, K, D = 120, 5, 6
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title></textarea><script>alert(2)</script>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "x" * 10_000,
    "\N{RIGHT-TO-LEFT OVERRIDE}evil\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}",
    "\0\x1b[31m\ud800 line\nbreak",
)


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where elements are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.elements, self.words = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def shown(self) -> str:
        return "".join(self.words)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)

    def table(self) -> list[list[str]]:
        rows = re.findall(r"<tr>(.*?)</tr>", self.text, re.DOTALL)
        return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]

    def column(self, name: str) -> list[str]:
        head, *rows = self.table()
        return [row[head.index(name)] for row in rows]


def assert_alone(text: str) -> Page:
    """A whole page that reaches for nothing and runs only what is ours."""
    page = Page(text)
    assert page.count("script") == 1
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href"))
    assert "url(" not in text
    assert "@import" not in text
    return page


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, K, N)
    features = rng.normal(size=(N, D)) + 2 * rng.normal(size=(K, D))[truth]
    scores = log_softmax(rng.normal(size=(N, K)) + 2 * np.eye(K)[truth], 1)
    return {
        "scores": scores,
        "labels": sinkhorn_assign(scores).labels,
        "truth": truth,
        "features": features,
        "images": rng.integers(0, 256, (N, 9, 7), dtype=np.uint8),
    }


def history() -> list[dict[str, Any]]:
    return [
        {"epoch": e, "loss": 2 / e, "nmi": e / 10, "churn": 0.5**e, "relabellings": int(e in (2, 4))}
        for e in range(1, 7)
    ]


# ---- figures ----


def test_proof_is_that_of_certify(data) -> None:
    labels = np.roll(data["labels"], 1)
    proof = certify(data["scores"], labels)
    text = assert_alone(report(labels, scores=data["scores"])).shown
    assert f"The mean score is {proof.value:.9g}." in text
    assert f"The bound is {proof.bound:.9g}." in text
    assert f"The gap is {proof.gap:.2g}: so much could be won at most." in text


def test_proof_of_an_assignment_needs_no_scores(data) -> None:
    result = sinkhorn_assign(data["scores"])
    text = report(result)
    assert f"The mean score is {result.value:.9g}." in text
    assert "the labels are proven optimal" in text
    assert "confidence" not in text.lower()


def test_sizes_changes_and_confidence(data) -> None:
    labels, best = data["labels"], data["scores"].argmax(1)
    page = Page(report(labels, scores=data["scores"]))
    n_changed = int((labels != best).sum())
    assert n_changed > 5
    assert f"{N} samples in {K} classes." in page.shown
    assert f"Class sizes are {N // K} each." in page.shown
    assert f"Balance changed {n_changed} labels ({n_changed / N:.1%})" in page.shown
    confidence = softmax(data["scores"], 1)[np.arange(N), labels]
    tenth, middle = np.quantile(confidence, (0.1, 0.5))
    assert f"has a median of {middle:.3f}; a tenth of the labels have less than {tenth:.3f}." in page.shown
    assert page.column("size by best class") == [str(size) for size in np.bincount(best, minlength=K)]
    assert page.column("confidence") == [f"{confidence[labels == k].mean():.3f}" for k in range(K)]


def test_sizes_of_uneven_labels() -> None:
    text = report([0] * 1 + [1] * 1234 + [3] * 5 + [-1] * 10)
    assert "1,250 samples in 4 classes." in text
    assert "10 samples are left unlabelled (0.8%)." in text
    assert "Class sizes are 0 to 1,234, with a median of 3." in text
    assert Page(text).column("size") == ["1", "1,234", "0", "5"]


def test_truth_is_judged_by_the_metrics(data) -> None:
    truth, labels = data["truth"].copy(), data["labels"].copy()
    truth[:10], labels[20:30] = -1, -1
    page = Page(report(labels, truth=truth))
    told = metrics.compare(truth, labels)
    for name, shown_as in (("nmi", "NMI"), ("ami", "AMI"), ("ari", "ARI"), ("accuracy",) * 2, ("purity",) * 2):
        assert f"{shown_as} {told[name]:.3f}" in page.shown
    known = (truth >= 0) & (labels >= 0)
    entropy = metrics.class_entropy(truth, labels).entropy
    for k in range(K):
        counts = np.bincount(truth[known & (labels == k)], minlength=K)
        assert page.column("purity")[k] == f"{counts.max() / counts.sum():.3f}"
        assert page.column("entropy, nats")[k] == f"{entropy[k]:.3f}"
        commonest = html.unescape(re.sub("<.*?>", "", page.column("commonest true classes")[k]))
        assert commonest.startswith(f"{counts.argmax()} ({counts.max() / counts.sum():.0%})")


def test_price_is_that_of_balance_path(data) -> None:
    path = balance_path(data["scores"])
    text = report(data["labels"], scores=data["scores"])
    assert f"Equal sizes cost {path.lost[-1]:.3g} of the mean score and change {path.changed[-1]:.1%} of" in text
    assert f"which costs {path.lost[path.knee]:.3g}." in text
    own = summaries.summarise(Subject(data["labels"], scores=data["scores"])).own_price
    assert own == pytest.approx((path.imbalance[-1], path.lost[-1]))


def test_price_is_left_out_where_it_takes_long(data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "PATH_ENTRIES", N * K - 1)
    text = report(data["labels"], scores=data["scores"])
    assert "Equal sizes cost" not in text
    assert "The price of balance is drawn for up to 599 scores; these are more." in text


def test_k_means_is_that_of_scikit_learn(data) -> None:
    found = summaries.summarise(Subject(data["labels"], features=data["features"]), seed=3).k_means_sizes
    model = KMeans(K, n_init=1, max_iter=curation.ITERATIONS, random_state=3).fit(data["features"])
    assert found is not None
    np.testing.assert_array_equal(found, np.sort(np.bincount(model.labels_))[::-1])


def test_k_means_of_many_samples_takes_some(data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curation, "ROWS", 60)
    text = report(data["labels"], features=data["features"])
    assert "k-means found its centres from 60 samples drawn at random." in text
    assert "k-means: " in text


@pytest.mark.parametrize("kind", ["plain", "forbidden", "one class", "unlabelled", "tensor", "half"])
def test_one_pass_sees_best_classes_and_margins(data, kind: str) -> None:
    scores, labels = data["scores"].copy(), data["labels"].copy()
    if kind == "forbidden":
        scores[:, 0] = -np.inf
        scores[:8, :4] = -np.inf
    elif kind == "one class":
        scores, labels = scores[:, :1], np.zeros(N, np.int64)
    elif kind == "unlabelled":
        labels[::3] = -1
    given: Any = {"tensor": torch.from_numpy(scores), "half": scores.astype(np.float16)}.get(kind, scores)
    wide = np.asarray(given).astype(np.float64)
    fit = summaries.look(open_scores(given), labels)
    np.testing.assert_array_equal(fit.best, wide.argmax(1))
    for i in range(N):
        if labels[i] < 0:
            assert np.isnan([fit.margin[i], fit.confidence[i]]).all()
            continue
        others = np.delete(wide[i], labels[i])
        top = others.max(initial=-np.inf)
        if wide[i, labels[i]] == -np.inf:
            assert fit.confidence[i] == 0 or top == -np.inf
        else:
            assert fit.margin[i] == pytest.approx(wide[i, labels[i]] - top)
            assert fit.confidence[i] == pytest.approx(softmax(wide[i])[labels[i]])


# ---- what is given and what is not ----


@pytest.mark.parametrize("name", ["scores", "images", "features", "truth", "texts", "history", "names"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "all but"])
def test_every_argument_may_be_there_or_not(data, name: str, alone: bool) -> None:
    given: dict[str, Any] = {key: one for key, one in data.items() if key != "labels"}
    given |= {"texts": [f"text {i}" for i in range(N)], "history": history(), "names": [f"class {k}" for k in "abcde"]}
    chosen = {key: one for key, one in given.items() if (key == name) == alone}
    page = assert_alone(report(data["labels"], **chosen))
    for key, sign in {
        "scores": "confidence", "features": "k-means", "truth": "entropy, nats", "history": "Churn", "names": "class a",
        "images": "Examples of classes", "texts": "Examples of classes",
    }.items():  # fmt: skip
        if key in chosen:
            assert sign in page.shown
    if not {"images", "texts"} & chosen.keys():
        assert "Examples of classes" not in page.shown
    assert (page.count("img") > 0) == ("images" in chosen)
    if "scores" not in chosen:
        assert "onfidence" not in page.shown
    if "truth" not in chosen:
        assert "purity" not in page.shown


def test_nothing_but_labels(data) -> None:
    for labels in (data["labels"], torch.from_numpy(data["labels"]), data["labels"].tolist()):
        page = assert_alone(report(labels))
        assert page.count("svg") == 1
        assert page.column("size") == [str(N // K)] * K
    assert report(data["labels"]) == report(data["labels"])


@pytest.mark.parametrize("shape", [(N, 8, 8), (N, 1, 8, 8), (N, 3, 8, 6), (N, 8, 6, 3), (N, 4, 90, 70)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_images_of_all_shapes_and_types(data, shape: tuple[int, ...], dtype: type) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    page = assert_alone(report(data["labels"], images=images))
    assert page.count("img") == 16 * K
    assert page.count("img") == page.text.count("data:image/")
    tensor = torch.from_numpy(images)
    assert report(data["labels"], images=tensor) == page.text
    assert report(data["labels"], images=list(images)) == page.text


def test_pixels_are_those_of_the_images(data) -> None:
    import base64
    import io

    from PIL import Image

    page = report(data["labels"], images=data["images"], scores=data["scores"])
    for index, content in re.findall(r'title="sample (\d+)[^>]*><img src="data:image/png;base64,([^"]*)"', page):
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            np.testing.assert_array_equal(np.asarray(picture), data["images"][int(index)])


def test_examples_are_typical_borderline_and_moved(data) -> None:
    texts = [f"sample-{i}." for i in range(N)]
    page = report(data["labels"], scores=data["scores"], texts=texts)
    scores, labels = data["scores"], data["labels"]
    shown_groups = re.findall(r"<h4>(.*?)</h4>(.*?)</ul>", page, re.DOTALL)
    n_moved = 0
    for title, group in shown_groups:
        for index, other in re.findall(r"<bdi>sample-(\d+)\.</bdi>(?: <small>or <bdi>(\d+))?", group):
            row, own = scores[int(index)], labels[int(index)]
            if title.startswith("Most typical"):
                assert row.argmax() == own
                assert other == ""
            elif title.startswith("Borderline"):
                assert row.argmax() == own
                assert int(other) == row.argsort()[-2]
            else:
                n_moved += 1
                assert int(other) == row.argmax() != own
    assert n_moved == sum(min(3, int(((labels == k) & (scores.argmax(1) != k)).sum())) for k in range(K))


def test_without_scores_the_means_of_features_order_examples(data) -> None:
    found = summaries.summarise(Subject(data["labels"], features=data["features"], images=data["images"])).closeness
    assert found is not None
    means = np.stack([data["features"][data["labels"] == k].mean(0) for k in range(K)])
    distances = ((data["features"][:, None] - means) ** 2).sum(2)
    np.testing.assert_array_equal(found.best, distances.argmin(1))
    own = distances[np.arange(N), data["labels"]]
    distances[np.arange(N), data["labels"]] = np.inf
    np.testing.assert_allclose(found.margin, distances.min(1) - own, atol=1e-9)


def test_of_many_classes_some_are_shown_and_all_are_listed() -> None:
    labels = np.arange(3000) % 100
    truth = np.where(np.arange(3000) < 30 * labels, 0, labels)
    page = Page(report(labels, truth=truth, texts=[str(i) for i in range(3000)]))
    assert page.count("section") == 24
    assert "The first 16 of 100 are shown, and 8 of the others at random." in page.shown
    assert len(page.column("size")) == 100
    purities = [float(one) for one in re.findall(r"purity (\d\.\d\d)", page.text.split("Examples of classes")[1])]
    assert purities == sorted(purities, reverse=True)


def test_broken_histories_are_drawn_as_far_as_they_go(data) -> None:
    lines = [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 1.5}, {"loss": 3}, {}, {"epoch": 3, "loss": "x"}]
    assert "1.5 after 2 epochs." in report(data["labels"], history=lines)
    assert "Training" not in report(data["labels"], history=[])


def test_extreme_figures_can_be_drawn(data) -> None:
    for scores in (np.zeros((N, K)), data["scores"] * 1e-12, data["scores"] * 1e12, data["scores"][:, :1]):
        labels = np.zeros(N, np.int64) if scores.shape[1] == 1 else data["labels"]
        text = report(labels, scores=scores, history=[{"epoch": 0, "loss": 0.0, "nmi": 0, "churn": -1e-300}])
        assert "nan" not in "".join(re.findall("<svg.*?</svg>", text))


# ---- text from users ----


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_is_shown_and_never_run(data, tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.html"
    plain = Page(report(data["labels"], scores=data["scores"], truth=data["truth"], texts=["a"] * N, names=["a"] * K))
    written = report(
        data["labels"],
        scores=data["scores"],
        truth=data["truth"],
        texts=[text] * N,
        names=[text] * K,
        true_names=[text] * K,
        title=text,
        path=path,
    )
    assert path.read_text(encoding="utf-8") == written
    assert len(written) < 200_000
    page = assert_alone(written)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert shown(text, 280) in page.shown
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", written)


def test_names_of_files_are_shown_as_they_are(data, tmp_path: Path) -> None:
    file = tmp_path / "<b>&'labels'.npy"
    np.save(file, data["labels"])
    assert file.name in assert_alone(report(file)).shown


def test_only_our_script_may_run(data) -> None:
    import base64
    import hashlib

    text = report(data["labels"])
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in html.unescape(policy)


# ---- files ----


def test_files_of_labels_of_every_kind(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = sinkhorn_assign(data["scores"])
    np.save("scores.npy", data["scores"])
    np.save("labels.npy", result.labels)
    result.save("result.npz")
    torch.save(torch.from_numpy(result.labels), "labels.pt")
    save_labels("heads.h5", np.stack([result.labels[::-1], result.labels]), [K, K], records=[{}, {"gap": 0.125}])
    assert main(["assign", "scores.npy", "-o", "labels.h5"]) == 0
    for name in ("labels.npy", "result.npz", "labels.pt", "labels.h5", "heads.h5", "heads.h5::/heads/1/labels"):
        page = Page(report(name, head=1, scores="scores.npy"))
        assert page.column("size by best class") == [str(n) for n in np.bincount(data["scores"].argmax(1))]
        assert f"The mean score is {result.value:.9g}." in page.shown
    assert "their gap to the best labels of these sizes was 0.12" in report("heads.h5", head=1)
    assert f"The bound is {result.bound:.9g}." in report("labels.h5")
    with pytest.raises(ValueError, match="heads 0 to 1"):
        report("heads.h5", head=2)
    for missing in ("none.h5", "none.npz", "none.npy", "none"):
        with pytest.raises(FileNotFoundError, match="none"):
            report(missing)


def test_command_does_what_the_function_does(data, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, array in data.items():
        np.save(f"{name}.npy", array)
    texts, names = [f"text {i} \u05d0" for i in range(N)], [f"class {k}" for k in range(K)]
    for name, lines in (("texts", texts), ("names", names)):
        Path(f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = [f"--{name}={name}.npy" for name in ("scores", "images", "features", "truth")]
    options += ["--texts=texts.txt", "--names=names.txt", "--true-names=names.txt", "--seed=2"]
    assert main(["report", "labels.npy", "-o", "page.html", *options]) == 0
    assert capsys.readouterr().out == "Report written to page.html\n"
    given = {name: one for name, one in data.items() if name != "labels"}
    wanted = report(data["labels"], texts=texts, names=names, true_names=names, title="labels.npy", seed=2, **given)
    assert Path("page.html").read_text(encoding="utf-8") == wanted
    assert main(["report", "labels.npy", "-o", "page.html"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["report", "labels.npy", "-o", "page.html", "--force"]) == 0
    assert main(["report", "labels.npy", "-o", "page.pdf"]) == 2
    assert main(["report", "none.npy", "-o", "none.html"]) == 2
    assert not Path("none.html").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny training run with two heads."""
    from otlabel.training.config import config_of
    from otlabel.training.run import train

    small: dict[str, Any] = {
        "data": {"name": "digits", "n_samples": 200, "imbalance": "light", "validation": 0.1},
        "model": {"backbone": "small_convnet", "options": {"widths": [4], "strides": [2]}, "heads": [10, 4]},
        "labels": {"n_relabels": 4},
        "train": {"epochs": 3, "batch_size": 50, "threads": 1},
    }
    folder = tmp_path_factory.mktemp("runs") / "tiny <run>"
    train(config_of(small), folder)
    return folder


def test_folder_of_a_run(run: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    page = assert_alone(report(run))
    stored = load_labels(run / "labels.h5")
    assert page.column("size") == [str(size) for size in np.bincount(stored.labels[0], minlength=10)]
    assert "The labels are those of head 0, of 2 heads." in page.shown
    assert "tiny <run>" in page.shown
    for sign in ("Loss", "Churn", "NMI", "Confidence", "Against the truth", "of the features on test data"):
        assert sign in page.shown
    assert page.count("img") > 50
    assert len(Page(report(run, head=1)).column("size")) == 4
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert main(["report", str(run), "-o", str(tmp_path / "run.html")]) == 0
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == page.text


def test_scores_of_a_run_are_those_of_its_network(run: Path) -> None:
    import json

    from otlabel.reporting.sources import find
    from otlabel.training.augment import plain
    from otlabel.training.config import config_of
    from otlabel.training.run import Run

    found = find(run, 1)
    asked = json.loads((run / "config.json").read_text())["config"]
    again = Run(config_of({key: {k: v for k, v in one.items() if v is not None} for key, one in asked.items()}), None)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    again._trained.load_state_dict(state["weights"])
    again.model.eval()
    with torch.no_grad():
        logits = again.model(plain(again.images.train))[1]
    np.testing.assert_allclose(found.scores, logits.log_softmax(1), atol=1e-5)
    np.testing.assert_array_equal(found.images, again.images.train)


def test_run_whose_data_are_gone_or_changed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"name": "digits"', '"name": "/nowhere"'))
    with pytest.raises(FileNotFoundError, match="nothing"):
        report(copy / "nothing")
    text = report(copy)
    assert "the data were not found" in text
    assert "Churn" in text
    (copy / "config.json").write_text(config.replace('"n_samples": 200', '"n_samples": 201'))
    with pytest.raises(FingerprintError, match="other data"):
        report(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(FileFormatError, match="not that of a run"):
        report(copy)
    (copy / "config.json").write_text(config)
    (copy / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(FileFormatError, match="is damaged"):
        report(copy)
    (copy / "labels.h5").unlink()
    with pytest.raises(FileNotFoundError, match="come to its end"):
        report(copy)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": []}, "at least one"),
        ({"labels": [[0, 1]]}, "shape"),
        ({"labels": [0.5]}, "integers"),
        ({"labels": [0, -2]}, "-2"),
        ({"labels": [-1, -1]}, "all labels are -1"),
        ({"scores": np.zeros((2, 3))}, "2 scores"),
        ({"scores": np.zeros((3, 1))}, "1 columns"),
        ({"texts": ["a"]}, "1 texts"),
        ({"truth": [0, 1]}, "2 truth"),
        ({"truth": [0.0, 1.0, 2.0]}, "integers"),
        ({"names": ["a"]}, "1 names"),
        ({"features": np.zeros((4, 2))}, "4 features"),
        ({"images": np.zeros((3, 2))}, "shape"),
        ({"images": np.zeros((3, 5, 5, 5))}, "channels"),
        ({"images": np.zeros((3, 5, 5), complex)}, "real"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        report(**({"labels": [0, 1, 1]} | given))


def test_scores_of_other_classes_than_the_labels_are_refused(data) -> None:
    with pytest.raises(ValueError, match="5 classes, but scores have 6 columns"):
        report(sinkhorn_assign(data["scores"]), scores=np.zeros((N, K + 1)))


@pytest.mark.parametrize("package", ["jinja2", "PIL", "sklearn"])
def test_missing_packages_say_how_to_get_them(data, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=re.escape('pip install "otlabel[report]"')):
        report(data["labels"], images=data["images"], features=data["features"])


def test_nothing_is_left_of_a_page_that_cannot_be_written(data, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        report(data["labels"], path=tmp_path / "missing" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_function_is_not_hidden_by_the_command() -> None:
    script = "import otlabel.cli, otlabel.reporting.command, otlabel; assert callable(otlabel.report)"
    environment = {**os.environ, "PYTHONPATH": str(Path(otlabel.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# ---- size and browser ----


def test_page_is_small_and_quick() -> None:
    rng = np.random.default_rng(0)
    n_samples, n_classes = 10_000, 200
    truth = rng.integers(0, n_classes, n_samples)
    scores = rng.normal(size=(n_samples, n_classes)).astype(np.float32)
    scores[np.arange(n_samples), truth] += 3
    images = rng.integers(0, 256, (n_samples, 3, 64, 64), dtype=np.uint8)  # noise: nothing is larger
    started = time.perf_counter()
    text = report(sinkhorn_assign(scores), scores=scores, images=images, truth=truth)
    assert time.perf_counter() - started < 30
    assert len(text.encode()) < 5e6


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("page", ["plain", "hostile"])
def test_browser_shows_the_page_and_runs_only_our_script(data, tmp_path: Path, page: str) -> None:
    assert CHROMIUM is not None
    names = [f"class {k}" for k in range(K)] if page == "plain" else list(HOSTILE[:K])
    report(
        data["labels"], scores=data["scores"], truth=data["truth"], texts=names * (N // K), names=names,
        title=names[0].replace("alert(1)", "document.title = 'overrun'"), path=tmp_path / "page.html",
    )  # fmt: skip
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    url = (tmp_path / "page.html").as_uri()
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, timeout=60, check=True)
    dom = done.stdout.decode()
    assert dom.count("<button") == 8  # what the script adds: to sort each column
    assert re.search(r'<p class="tools"><input id="search"', dom)
    assert "<title>overrun" not in dom
    assert "Refused" not in done.stderr.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_table_can_be_sorted_and_searched(data, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    names = ["one", "two", "three", "two and a half", "five"]
    page = report(data["labels"], scores=data["scores"], names=names)
    user = """<script>
        const press = (column) => document.querySelectorAll("th button")[column].click();
        const show = (id) => {
          const rows = Array.from(document.querySelectorAll("#classes tbody tr")).filter((row) => !row.hidden);
          document.body.append(id + "=" + rows.map((row) => row.cells[0].textContent).join("") + ";");
        };
        press(4); show("downward"); press(4); show("upward"); press(1); press(1); show("names");
        document.getElementById("search").value = "TWO";
        document.getElementById("search").dispatchEvent(new Event("input")); show("search");
    </script>"""
    page = re.sub("<meta http-equiv.*?>", "", page).replace("</body>", f"{user}</body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, timeout=60, check=True
    )
    dom = done.stdout.decode()
    confidence = summaries.summarise(Subject(data["labels"], scores=data["scores"])).confidences
    upward = "".join(map(str, np.argsort(confidence)))
    assert f"downward={upward[::-1]};" in dom
    assert f"upward={upward};" in dom
    assert "names=40213;" in dom
    assert "search=13;" in dom
