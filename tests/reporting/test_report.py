"""The figures of the report are the library's, whatever is given or missing."""

from __future__ import annotations

import html
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import D, K, N, Page, assert_alone, history
from scipy.special import softmax

from otlabel import balance_path, certify, curation, metrics, report, sinkhorn_assign
from otlabel.ranks.rowset import RowSet
from otlabel.reporting import summary as summaries
from otlabel.reporting.sources import Subject
from otlabel.sources import open_scores

pytest.importorskip("jinja2")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")


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
    from sklearn.cluster import KMeans

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
    assert (page.count("img") > ("features" in chosen)) == ("images" in chosen)  # one is of all samples
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
    shown = [int(re.sub("<.*?>", "", one)) for one in page.column("example")]  # a text of each class is its sample
    assert labels[shown].tolist() == list(range(n_classes))
    assert "With the beginning of a text of each." in page.shown

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


def test_alarms_of_a_training_are_told_once(data) -> None:
    record = {"update": 1, "head": 0, "epochs_trained": 1.0}
    texts = ["quality has fallen from 0.51 to 0.4", "quality has fallen from 0.51 to 0.3", "<b>odd</b>"]
    lines = [record | {"alarms": [text]} for text in texts] + [record | {"alarms": 3}, record | {"head": 1}]
    page = Page(report(data["labels"], history=lines)).shown
    assert page.count("Training warned: ") == 2
    assert "Training warned: quality has fallen from 0.51 to 0.3." in page
    assert "Training warned: <b>odd</b>." in page


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
