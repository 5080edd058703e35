"""The confusion of classes, key words of texts, and all samples in a plane."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from pages import HOSTILE, Page, assert_alone

pytest.importorskip("jinja2")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from PIL import Image
from scipy.optimize import linear_sum_assignment

from otlabel import report
from otlabel.ranks.rowset import RowSet
from otlabel.reporting.confusion import confusion_of
from otlabel.reporting.keywords import key_words
from otlabel.reporting.painter import Painter
from otlabel.reporting.scatter import scatter_of
from otlabel.reporting.strips import ROOM, strips_of
from otlabel.sources import open_scores

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 4, 200)
LABELS = np.where(RNG.random(200) < 0.7, (TRUTH + 1) % 4, RNG.integers(0, 4, 200))


def test_confusion_has_the_best_match_on_its_diagonal() -> None:
    truth, labels = 10 * TRUTH, LABELS.copy()  # numbers of true classes may be any
    truth[:5], labels[5:9] = -1, -1
    found = confusion_of(truth, labels, 4)
    assert found is not None
    table = np.array([[((truth == 10 * c) & (labels == k)).sum() for k in range(4)] for c in range(4)])
    assert found.true_classes.tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(found.counts, table[:, found.classes])
    assert np.trace(found.counts) == table[linear_sum_assignment(-table)].sum()
    np.testing.assert_allclose(found.shares.sum(1), 1)


def test_confusion_and_accuracy_are_of_as_many_classes_as_there_are_true_ones() -> None:
    page = assert_alone(report(LABELS, truth=TRUTH, true_names=list(HOSTILE[:4])))
    assert "accuracy" in page.shown
    assert 'class="confusion"' in page.text
    for labels, truth in ((LABELS + (np.arange(200) % 2) * 4, TRUTH), (LABELS, np.minimum(TRUTH, 2))):
        page = Page(report(labels, truth=truth))
        assert "accuracy" not in page.shown
        assert "purity" in page.shown
        assert 'class="confusion"' not in page.text


def test_key_words_are_frequent_in_the_class_and_rare_elsewhere() -> None:
    own = [["sailing", "harbour"], ["violin", "orchestra"], ["bakery", "oven"], ["tennis", "racket"]]
    texts = [f"the common thing is {RNG.choice(own[k])} {RNG.choice(['today', 'again'])}" for k in LABELS]
    found = key_words(texts, LABELS, 5, seed=0)
    assert [sorted(words[:2]) for words in found[:4]] == [sorted(words) for words in own]
    assert found[4] == []
    page = assert_alone(report(LABELS, texts=texts))
    for k in range(4):
        assert set(own[k]) <= set(re.sub("<.*?>", "", page.column("key words")[k]).split(", "))
    some = LABELS.copy()
    some[::2] = -1
    assert sorted(key_words(texts, some, 4, seed=0)[0][:2]) == sorted(own[0])


@pytest.mark.parametrize("texts", [[""] * 200, ["1 2 3"] * 200, list(HOSTILE) * 28 + list(HOSTILE[:4]), [None] * 200])
def test_texts_without_words_are_no_error(texts: list[str]) -> None:
    assert len(key_words(texts, LABELS, 4, seed=0)) == 4
    assert_alone(report(LABELS, texts=texts))


def drawn(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    found = scatter_of(RowSet(open_scores(features)), labels, int(labels.max()) + 1, seed=0)
    assert found is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found.picture.partition(",")[2]))).convert("RGBA"))


def colours(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(one[:3]) for one in pixels[pixels[..., 3] > 0].tolist()}


def test_samples_lie_in_the_plane_in_which_they_differ_most() -> None:
    centres = np.array([[9, 0], [-9, 0], [0, 3], [0, -3]])
    plane = np.linalg.qr(RNG.normal(size=(6, 2)))[0].T
    features = (centres[TRUTH] + 0.1 * RNG.normal(size=(200, 2))) @ plane + 50
    pixels = drawn(features, TRUTH)
    assert len(colours(pixels)) == 4
    middles = []
    for colour in sorted(colours(pixels)):
        at = np.argwhere((pixels[..., :3] == colour).all(2) & (pixels[..., 3] > 0))
        assert at.std(0).max() < 30  # each class in one place
        middles.append(at.mean(0))
    apart = np.ptp(np.array(middles), axis=0)
    assert apart[1] > 700  # the widest direction lies along the picture
    assert apart[0] > 350


@pytest.mark.parametrize("shape", [(200, 1), (200, 2), (200, 500), (3, 5)])
def test_features_of_all_shapes_can_be_drawn(shape: tuple[int, int]) -> None:
    for features in (RNG.normal(size=shape), np.zeros(shape), 1e-200 * RNG.normal(size=shape)):
        assert colours(drawn(features.astype(np.float64), np.arange(shape[0]) % 2))


def test_the_picture_stays_small_and_says_how_many_it_shows() -> None:
    features, labels = RNG.normal(size=(60_000, 3)).astype(np.float32), RNG.integers(0, 300, 60_000)
    found = scatter_of(RowSet(open_scores(features)), labels, 300, seed=0)
    assert found is not None
    assert len(found.picture) < 400_000
    assert found.told.startswith("20,000 of 60,000 samples by their features: the first two principal components")
    assert found.legend == ()


@pytest.mark.parametrize(
    ("n_classes", "n_pictures", "told"),
    [
        (30, 4, "With 4 small pictures of each."),
        (1200, 2, "With 2 small pictures of each: a page has room for 2,400."),
        (5000, 1, "With a small picture of the first "),
    ],
)
def test_all_classes_have_pictures_as_there_is_room(n_classes: int, n_pictures: int, told: str) -> None:
    noise = RNG.integers(0, 256, (40, 32, 32), dtype=np.uint8)  # nothing is larger
    painter = Painter(noise, [0])
    uri = painter.thumbnail(0, 32)
    painter.thumbnail = lambda index, side: uri  # type: ignore[method-assign]  # quick
    samples = [[], *([4 * k % 40 + i for i in range(4)] for k in range(n_classes))]
    strips = strips_of(samples, None, painter)
    numbers = [len(one.pictures) for one in strips.of_class]
    assert strips.told.startswith(told)
    assert numbers[:2] == [0, n_pictures]
    assert set(numbers[1:]) <= {n_pictures, 0}
    assert 0.5 * ROOM < sum(len(u) for one in strips.of_class for _, u in one.pictures) < ROOM or n_classes == 30
    assert [i for i, _ in strips.of_class[3].pictures] == samples[3][:n_pictures]


def test_small_pictures_are_those_of_the_samples_and_of_one_shape() -> None:
    shades = np.arange(120, dtype=np.uint8).repeat(64).reshape(120, 8, 8)  # flat: none is changed by its coding
    labels = np.arange(120) // 4
    page = report(labels, images=shades)
    cells = re.findall(r'<td class="plain coarse">(.*?)</td>', page)
    assert len(cells) == 30
    for k, cell in enumerate(cells):
        shown = re.findall(r'base64,([^"]+)" alt="sample (\d+)"', cell)
        assert {int(i) // 4 for _, i in shown} == {k}
        for code, i in shown:
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"))
            assert abs(pixels.astype(int) - int(i)).max() <= 1
    ragged = [*shades[:119], np.zeros((8, 9), np.uint8)]
    assert "small pictures of each" in report(labels, images=list(shades))
    with pytest.raises(ValueError, match="of one shape"):
        report(labels[::-1].copy(), images=ragged)
