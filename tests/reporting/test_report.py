"""The report: its figures are the library's, whatever is given or missing; text is shown and never run."""

from __future__ import annotations

import html
import json
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
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
from otlabel.commands.main import main
from otlabel.errors import FileFormatError, FingerprintError, MissingPackageError
from otlabel.ranks.rowset import RowSet
from otlabel.reporting import summary as summaries
from otlabel.reporting.sources import Subject, find
from otlabel.reporting.words import shown
from otlabel.selflabel import load_labels, save_labels
from otlabel.sources import open_scores

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
    fit = summaries.look(RowSet(open_scores(given)), labels)
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


@pytest.mark.parametrize("known", ["truth", "scores", "nothing"])
def test_of_many_classes_some_are_shown_and_all_are_listed(known: str) -> None:
    rng = np.random.default_rng(0)
    n_classes = 100
    labels = np.repeat(np.arange(n_classes), rng.integers(5, 60, n_classes))
    truth = np.where(rng.random(len(labels)) < labels / n_classes, labels, rng.integers(0, n_classes, len(labels)))
    scores = rng.normal(size=(len(labels), n_classes)) + 3 * np.eye(n_classes)[labels]
    given: dict[str, Any] = {"truth": {"truth": truth}, "scores": {"scores": scores}, "nothing": {}}[known]
    page = Page(report(labels, texts=[str(i) for i in range(len(labels))], **given))
    assert page.count("section") == 24
    assert len(page.column("size")) == n_classes

    best, by = -np.arange(n_classes), -np.arange(n_classes)
    if known == "truth":
        best, by = -metrics.class_entropy(truth, labels).entropy, np.zeros(n_classes)
        for k in range(n_classes):
            by[k] = np.bincount(truth[labels == k]).max() / (labels == k).sum()
    elif known == "scores":
        confidence = softmax(scores, 1)[np.arange(len(labels)), labels]
        best = by = np.bincount(labels, confidence) / np.bincount(labels)
    title = {"truth": "lowest entropy", "scores": "highest confidence", "nothing": "lowest number"}[known]
    first, drawn = (
        [int(k) for k in re.findall(r"<h3>Class <bdi>(\d+)<", part)]
        for part in page.text.split(f"<h2>Classes of {title}</h2>")[1].split("<h2>Classes at random</h2>")
    )
    assert set(first) == set(np.argsort(-best, kind="stable")[:16])
    assert not set(first) & set(drawn)
    for part in (first, drawn):
        assert [by[k] for k in part] == sorted(by[part], reverse=True)
    assert "8 of the other 84 classes" in page.shown


def test_of_equally_pure_classes_the_larger_come_first() -> None:
    labels = np.repeat(np.arange(30), np.arange(1, 31))
    page = report(labels, truth=labels, texts=[""] * len(labels))
    first = page.split("<h2>Classes of lowest entropy</h2>")[1].split("<h2>")[0]
    assert re.findall(r"<h3>Class <bdi>(\d+)<", first) == [str(k) for k in range(29, 13, -1)]


def test_broken_histories_are_drawn_as_far_as_they_go(data) -> None:
    lines = [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 1.5}, {"loss": 3}, {}, {"epoch": 3, "loss": "x"}]
    assert "1.5 after 2 epochs." in report(data["labels"], history=lines)
    assert "Training" not in report(data["labels"], history=[])


def drawn(figure: str) -> list[tuple[float, float]]:
    """The points of the curve of a figure, in the units of its drawing."""
    (path,) = re.findall(r'<path class="line own" d="M(.*?)"', figure)
    return points(path)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split() for point in path.split("L"))]


@pytest.mark.filterwarnings("ignore::otlabel.errors.SelfLabelWarning")
def test_course_of_relabellings_is_that_of_the_metrics(data) -> None:
    """Labels of each time are kept here, to be judged by the metrics; the report sees only the history."""
    from otlabel.selflabel import SelfLabeler

    torch.manual_seed(0)
    features = torch.from_numpy(data["features"]).float()
    model = torch.nn.Linear(D, K)
    labeler = SelfLabeler(N, [K], truth=data["truth"], features=lambda _, x: x, heads=lambda m: [m])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    wanted, quartiles = [], []
    for _ in range(8):
        labeler.update(model, [(torch.arange(N), features)])
        wanted.append(metrics.mean_class_entropy(data["truth"], labeler.labels[0]))
        of_classes = metrics.class_entropy(data["truth"], labeler.labels[0]).entropy
        quartiles.append(statistics.quantiles(of_classes, method="inclusive")[::2])
        for index in torch.arange(N).split(40):
            optimizer.zero_grad()
            labeler.loss(model(features[index]), index).backward()
            optimizer.step()
    # Histories of earlier versions have neither the entropy nor its quartiles; the mean follows from what they have.
    old = [{name: line[name] for name in line if "class_entropy" not in name} for line in labeler.history]
    for lines in (labeler.history, old):
        found = summaries.summarise(Subject(labeler.labels[0].numpy(), truth=data["truth"], history=lines))
        np.testing.assert_allclose([line["class_entropy"] for line in found.relabellings], wanted, atol=1e-12)
        text = report(labeler.labels[0], truth=data["truth"], history=lines)
        (figure,) = re.findall(r"<figure>\s*<figcaption><h3>Entropy of true classes.*?</figure>", text, re.DOTALL)
        assert f"{wanted[-1]:.3g} after 7 epochs" in figure
        x, y = np.array(drawn(figure)).T
        assert np.corrcoef(x, np.arange(8))[0, 1] > 0.999
        assert np.corrcoef(y, wanted)[0, 1] < -0.999  # upwards is less
        band = [points(path) for path in re.findall(r'<path class="fill band own" d="M(.*?)Z"', figure)]
        assert len(band) == (lines is not old)
        if band:
            around = np.array(band[0])
            lower, upper = np.array(quartiles).T
            np.testing.assert_allclose(around[:, 0], [*x, *x[::-1]], atol=0.06)
            slope, start = np.polyfit(wanted, y, 1)
            np.testing.assert_allclose(around[:, 1], start + slope * np.array([*upper, *lower[::-1]]), atol=0.2)
            assert f"; the middle half of the classes {lower[-1]:.3g} to {upper[-1]:.3g}." in figure
    (marks,) = re.findall(r'<path class="mark other" d="(.*?)"', figure)
    assert [float(mark.split()[0]) for mark in marks.split("M")[1:]] == x.tolist()
    for title in ("Loss", "Churn", "NMI with the truth"):
        assert f"<h3>{title}" in text
    # Where a sample has no label or no true class, it does not follow.
    unknown = data["truth"].copy()
    unknown[0] = -1
    assert "Entropy of true classes" not in report(labeler.labels[0], truth=unknown, history=old)
    left_out = [{**record, "unlabelled": 1} for record in old]
    assert "Entropy of true classes" not in report(labeler.labels[0], truth=data["truth"], history=left_out)


def test_numbers_of_true_classes_may_be_any_and_take_no_memory(data) -> None:
    """A name of a class is not a number of classes; (0, 1, ...) and names far apart tell the same."""
    history = [{"update": 0, "head": 0, "time": 1.0, "nmi": 0.5, "entropy": 1.0, "unlabelled": 0}]
    truth = np.arange(N) % 3
    courses = []
    for names in (np.arange(3), np.array([0, 7, 1 << 60])):
        found = summaries.summarise(Subject(data["labels"], history=history, truth=names[truth]))
        courses.append(found.relabellings[0]["class_entropy"])
    assert courses[0] == courses[1] > 0


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", ">i8", ">u8"])
def test_labels_of_every_integer_type(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "labels.npy", (np.arange(12) % 3).astype(kind))
    assert "12 samples" in report(tmp_path / "labels.npy", truth=tmp_path / "labels.npy")


def test_course_is_that_of_the_head(data) -> None:
    records = [
        {"update": u, "head": h, "epochs_trained": u, "nmi": (u + 5 * h) / 10, "loss": 1.0}
        for u in range(4)
        for h in (0, 1)
    ]
    for head, value in ((0, "0.3"), (1, "0.8")):
        assert f"{value} after 3 epochs." in report(data["labels"], history=records, head=head)
    both = report(data["labels"], history=[*history(), *records])
    assert "0.333 after 6 epochs." in both  # the loss by epoch
    assert "0.3 after 3 epochs." in both


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
        page = Page(report(name, head=int(name == "heads.h5"), scores="scores.npy"))
        assert page.column("size by best class") == [str(n) for n in np.bincount(data["scores"].argmax(1))]
        assert f"The mean score is {result.value:.9g}." in page.shown
    assert "their gap to the best labels of these sizes was 0.12" in report("heads.h5", head=1)
    assert f"The bound is {result.bound:.9g}." in report("labels.h5")
    with pytest.raises(ValueError, match="heads 0 to 1"):
        report("heads.h5", head=2)
    for name, head in (("labels.h5", 3), ("labels.npy", -1), (result, 1), (result.labels, -1)):
        with pytest.raises(ValueError, match=f"head is {head}, but these are the labels of one head"):
            report(name, head=head)
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
    assert "Entropy of true classes" in page.shown
    records = [
        one for one in torch.load(run / "checkpoint.pt", weights_only=True)["labeler"]["history"] if not one["head"]
    ]
    assert page.text.count('<path class="mark other"') == 5  # in each figure
    assert f"{records[-1]['churn']:.3g} after {records[-1]['epochs_trained']:.4g} epochs." in page.shown
    best = torch.load(run / "checkpoint.pt", weights_only=True)["labeler"]["best"]["update"]  # its labels are stored
    [labelled] = [one for one in records if one["update"] == best - 1]
    assert metrics.nmi(find(run).truth, stored.labels[0]) == pytest.approx(labelled["nmi"])
    assert page.count("img") > 50
    assert len(Page(report(run, head=1)).column("size")) == 4
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert main(["report", str(run), "-o", str(tmp_path / "run.html")]) == 0
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == page.text


def test_scores_of_a_run_are_those_of_its_network(run: Path) -> None:
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
    (copy / "config.json").write_text(re.sub(r'"widths": \[\s*4', '"widths": [5', config))
    with pytest.raises(FileFormatError, match="another network"):
        report(copy)
    (copy / "config.json").write_text(config)
    for damage in (b"damaged", None):
        (copy / "checkpoint.pt").write_bytes(damage or b"")
        if damage is None:
            torch.save({"weights": {}}, copy / "checkpoint.pt")
        with pytest.raises(FileFormatError, match="is damaged"):
            report(copy)
    (copy / "checkpoint.pt").unlink()
    text = report(copy)
    assert "epochs with a relabelling" in text
    assert "Confidence" not in text
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
        ({"truth": [0, 1]}, "2 true classes (truth)"),
        ({"truth": [0.0, 1.0, 2.0]}, "integers"),
        ({"truth": [0, 1, -2]}, "truth[2] is -2"),
        ({"truth": np.array([0, (1 << 63) + 5, 2], np.uint64)}, "truth[1] is 9223372036854775813"),
        ({"labels": np.array([0, (1 << 63) + 5, 2], np.uint64)}, "labels[1] is 9223372036854775813"),
        ({"truth": np.zeros(0, int)}, "3 labels, but 0 true classes (truth)"),
        ({"names": ["a"]}, "1 names"),
        ({"features": np.zeros((4, 2))}, "4 features"),
        ({"images": np.zeros((3, 2))}, "shape"),
        ({"images": np.zeros((3, 5, 5, 5))}, "channels"),
        ({"images": np.zeros((3, 5, 5), complex)}, "real"),
        ({"images": [np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 3))]}, "shapes (2, 2) and (2, 3)"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        report(**({"labels": [0, 1, 1]} | given))


NPY = {
    "pickled": (np.array([{}, 1, 2], object), "holds pickled Python objects"),
    "one number": (np.float64(3), "holds float64 of shape \\(\\), no images|truth must be"),
    "nothing": (np.zeros((0, 2, 2)), "of shape \\(0, 2, 2\\), no images|truth must be"),
    "texts": (np.array(["a", "b", "c"]), "images have shape|truth must be"),
    "no header": (b"text" * 9, "is not a usable .npy file"),
    "no bytes": (b"", "is not a usable .npy file"),
    "brackets": (b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"-" * 9000 + b"3, }", "is not a usable .npy"),
    "cut short": (b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, 2), }", "claims to hold"),
}


@pytest.mark.parametrize("name", ["images", "truth"])
@pytest.mark.parametrize("kind", NPY)
def test_arrays_of_all_wrong_kinds_are_told_in_one_line(tmp_path: Path, name: str, kind: str) -> None:
    content, told = NPY[kind]
    if not isinstance(content, bytes):
        np.save(tmp_path / "x.npy", content, allow_pickle=True)
    else:
        head = b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") if content[:1] == b"{" else b""
        (tmp_path / "x.npy").write_bytes(head + content)
    with pytest.raises(ValueError, match=told) as caught:
        report([0, 1, 1], **{name: tmp_path / "x.npy"})
    assert str(caught.value).isprintable()


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
    script = "import otlabel.commands.main, otlabel.commands.report, otlabel; assert callable(otlabel.report)"
    environment = {**os.environ, "PYTHONPATH": str(Path(otlabel.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# ---- size and browser ----


@pytest.mark.parametrize(
    ("n_samples", "n_classes", "megabytes"),
    [(10_000, 200, 5), pytest.param(100_000, 1000, 20, marks=pytest.mark.slow)],
    ids=["10k", "100k"],
)
def test_page_is_small_and_quick(n_samples: int, n_classes: int, megabytes: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, n_classes, n_samples)
    scores = rng.standard_normal((n_samples, n_classes), np.float32)
    scores[np.arange(n_samples), truth] += 3
    noise = rng.integers(0, 256, (1000, 3, 64, 64), dtype=np.uint8)  # nothing is larger
    images = [noise[i % 1000] for i in range(n_samples)]
    result = sinkhorn_assign(scores)
    started = time.perf_counter()
    text = report(result, scores=scores, images=images, truth=truth, names=[f"class {k}" for k in range(n_classes)])
    assert time.perf_counter() - started < 30
    assert len(text.encode()) < megabytes * 1e6


class Browser:
    """Chromium without a window, led by its developer tools' protocol over a pipe: nothing listens on a port."""

    def __init__(self, profile: Path) -> None:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            f"--disable-component-update --disable-sync --remote-debugging-pipe --user-data-dir={profile}"
        )
        theirs_in, self._in = os.pipe()
        self._out, theirs_out = os.pipe()
        # It reads from 3 and writes to 4.
        start = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", start, str(CHROMIUM), *flags.split(), "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._n_sent, self._session = b"", 0, {}
        self._events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for what comes of it."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": parameters, **self._session}
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._out], [], [], 60)[0], "the browser is silent"
            more = os.read(self._out, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int = 1400, scheme: str = "light") -> None:
        """Show a page and wait until it is there."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())

    def value(self, script: str) -> Any:
        """What an expression is on the page."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, selector: str, number: int = 0) -> None:
        """Press and release the mouse in the middle of an element, wherever that is and whatever lies over it."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        box = self.value(f"{element}.scrollIntoView({{block: 'center'}}), {element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, *keys: str) -> None:
        """Type on the keyboard, into whatever has the focus."""
        codes = {"Backspace": 8, "Enter": 13, "Tab": 9}
        for key in keys:
            more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self("Input.dispatchKeyEvent", type="keyDown", key=key, **more, **text)
            self("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, refusals and whatever else the console shows of this page."""
        self.value("0")  # so that all events before it are there
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event for event in self._events if event["method"] in kinds]

    def close(self) -> None:
        """End it."""
        self._session = {}
        self("Browser.close")
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def shown_rows(browser: Browser) -> str:
    """First cells of the rows of the table that are to be seen, from the top."""
    script = """Array.from(document.querySelectorAll("#classes tbody tr"))
        .filter((row) => row.offsetHeight > 0)
        .sort((one, two) => one.getBoundingClientRect().top - two.getBoundingClientRect().top)
        .map((row) => row.cells[0].textContent).join("")"""
    return browser.value(script)


@pytest.mark.parametrize("page", ["plain", "hostile"])
def test_browser_shows_the_page_and_runs_only_our_script(browser, data, tmp_path: Path, page: str) -> None:
    names = [f"class {k}" for k in range(K)] if page == "plain" else list(HOSTILE[:K])
    report(
        data["labels"], scores=data["scores"], truth=data["truth"], texts=names * (N // K), names=names,
        title=names[0].replace("alert(1)", "document.title = 'overrun'"), path=tmp_path / "page.html",
    )  # fmt: skip
    browser.open(tmp_path / "page.html")
    assert browser.value("document.querySelectorAll('th button').length") == 8  # what the script adds
    assert browser.value("document.getElementById('search').offsetHeight > 0")
    assert browser.value("document.title !== 'overrun'")
    assert browser.complaints == []


def test_browser_refuses_any_other_script(browser, data, tmp_path: Path) -> None:
    """So that no complaints mean something."""
    page = report(data["labels"]).replace("</body>", "<script>document.title = 'overrun'</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.open(tmp_path / "page.html")
    assert browser.value("document.title") == "Labels"
    assert "Content Security Policy" in json.dumps(browser.complaints)


@pytest.mark.parametrize("width", [1400, 400])
def test_page_fits_in_light_and_dark(browser, run: Path, tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    report(run, names=[f"a name of a class that is rather long {k}" for k in range(10)], path=path)
    colours = {}
    for scheme in ("light", "dark"):
        browser.open(path, width, scheme)
        assert browser.value("innerWidth") == width
        assert browser.value("document.documentElement.scrollWidth") <= width
        wide = """Array.from(document.querySelectorAll("body *:not(.scroll *):not(svg *)"))
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"""
        assert browser.value(wide) == []
        style = "getComputedStyle(document.body)"
        colours[scheme] = [
            sum(map(int, re.findall(r"\d+", browser.value(f"{style}.{name}"))[:3]))
            for name in ("backgroundColor", "color")
        ]
        assert browser.complaints == []
    assert colours["light"][0] > 600 > 200 > colours["light"][1]  # dark on bright
    assert colours["dark"][0] < 100 < 600 < colours["dark"][1]


def test_table_is_sorted_by_clicks_and_searched_by_typing(browser, data, tmp_path: Path) -> None:
    names = ["one", "two", "three", "two and a half", "five"]
    report(data["labels"], scores=data["scores"], names=names, path=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    confidence = summaries.summarise(Subject(data["labels"], scores=data["scores"])).confidences
    assert confidence is not None
    upward = "".join(map(str, np.argsort(confidence)))
    assert shown_rows(browser) == "01234"
    browser.click("th button", 4)
    assert shown_rows(browser) == upward[::-1]
    browser.click("th button", 4)
    assert shown_rows(browser) == upward
    assert browser.value("document.querySelectorAll('th')[4].getAttribute('aria-sort')") == "ascending"
    browser.click("th button", 1)
    browser.press("Enter")  # the button has the focus: the keyboard does as well
    assert shown_rows(browser) == "40213"
    browser.click("#search")
    browser.press(*"TWO")
    assert shown_rows(browser) == "13"
    browser.click("th button", 0)
    assert shown_rows(browser) == "31"
    browser.click("#search")
    browser.press(*" a")
    assert shown_rows(browser) == "3"
    browser.press(*["Backspace"] * 5)
    assert shown_rows(browser) == "43210"
    browser.press(*"zz")
    assert shown_rows(browser) == ""
    assert browser.complaints == []
