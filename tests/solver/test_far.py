"""Features far from zero, or of very different scales: what is proven is about the numbers that are stored.

Scores, values and bounds are recomputed here in float64 (or wider) from the rows, weights and centres as they are.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from oracles import FLOAT64_EPS, can_gain, float64, hungarian_labels
from ranks import on_ranks
from sklearn.exceptions import ConvergenceWarning

from otlabel import BalancedKMeans, certify, curate, linear_scores, lp_assign, sinkhorn_assign
from otlabel.curation import nearest
from otlabel.errors import InvalidScoresError
from otlabel.reporting.summary import _closeness
from otlabel.selflabel.methods import whitened
from otlabel.sources import LinearScores, as_array, closeness, open_scores, read_rows, unit_rows
from otlabel.sources.device import on_device

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::sklearn.exceptions.ConvergenceWarning")

DTYPES = ["float16", "bfloat16", "float32", "float64", "int32", "int64"]
OFFSETS = [1e0, 1e3, 2.04e7, 1.7e9, 1e10]


def far_rows(offset: float, dtype: str, n: int = 90, d: int = 3, *, scale: float = 1.0, seed: int = 0) -> Any:
    """Rows of noise and a column of 30 days, all at an offset; as tensors where NumPy has no such type."""
    rng = np.random.default_rng(seed)
    rows = offset + scale * np.c_[rng.normal(size=(n, d)), rng.integers(0, 30, n)]
    if dtype == "bfloat16":
        return torch.from_numpy(rows).bfloat16()
    if dtype.startswith("int"):
        rows = np.clip(rows.round(), -2e9, 2e9) if dtype == "int32" else rows.round()
    return (np.clip(rows, -6e4, 6e4) if dtype == "float16" else rows).astype(dtype)


def by_distance(rows: Any, centres: np.ndarray) -> np.ndarray:
    """-||x - mu||^2, (N, K)."""
    return -np.square(float64(rows)[:, None] - centres.astype(np.float64)).sum(2)


def by_cosine(rows: Any, centres: np.ndarray) -> np.ndarray:
    """-||x - mu||^2 / 2 of unit rows, which is <x, mu> up to what rounding makes of the length of mu."""
    wide = float64(rows)
    return by_distance(wide / np.linalg.norm(wide, axis=1, keepdims=True), centres) / 2


def check_clustering(model: BalancedKMeans, rows: Any, scores: np.ndarray) -> None:
    """Labels are the best for the stored centres, gap_ is by how much they are not, and predict gives them back."""
    n = len(scores)
    spread = float(np.median(np.ptp(scores, axis=1)))
    room = n * (1e-9 * spread + 16 * FLOAT64_EPS * float(np.abs(scores - scores.max(1, keepdims=True)).max()))
    best = hungarian_labels(scores, model.sizes_)
    short = float((scores[np.arange(n), best] - scores[np.arange(n), model.labels_]).sum())
    assert abs(model.gap_ - short) <= room
    assert short <= room
    predicted = model.predict(rows)
    totals = scores + model.potentials_
    away = np.flatnonzero(predicted != model.labels_)  # only rows that are as good there
    assert (np.abs(totals[away, predicted[away]] - totals[away, model.labels_[away]]) <= room).all()


# ---- k-means ----


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_and_gap_are_those_of_the_rows_as_stored(dtype: str, offset: float) -> None:
    rows = far_rows(offset, dtype)
    model = BalancedKMeans(6, size_max=20, max_iter=8, random_state=0).fit(rows)
    scores = by_distance(rows, model.cluster_centers_)
    check_clustering(model, rows, scores)
    assert model.inertia_ == pytest.approx(-scores[np.arange(len(scores)), model.labels_].sum(), rel=1e-9)
    np.testing.assert_allclose(model.transform(rows), np.sqrt(-scores), rtol=1e-5, atol=1e-7 * np.sqrt(-scores.min()))


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_the_same_of_unit_rows_that_lie_close_together(dtype: str, offset: float) -> None:
    rows = far_rows(offset, dtype, scale=1.0 if dtype == "int64" else offset**0.5)
    model = BalancedKMeans(5, metric="cosine", random_state=0).fit(rows)
    check_clustering(model, rows, by_cosine(rows, model.cluster_centers_))


@pytest.mark.parametrize("seed", range(4))
def test_float32_rows_are_clustered_as_well_as_the_same_in_float64(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.c_[rng.normal(size=(1000, 3)), 20240400 + rng.integers(1, 31, 1000)].astype(np.float32)
    narrow, wide = (BalancedKMeans(10, random_state=0).fit(x) for x in (rows, rows.astype(np.float64)))
    assert narrow.inertia_ == pytest.approx(wide.inertia_, rel=0.02)
    assert narrow.cluster_centers_.dtype == np.float64  # float32 would move them by a day
    near = BalancedKMeans(10, random_state=0).fit(rows - np.float32([0, 0, 0, 20240400]))
    assert near.cluster_centers_.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_squares_beyond_float32(scale: float) -> None:
    rows = (scale * far_rows(3.0, "float64")).astype(np.float32)
    model = BalancedKMeans(4, random_state=0).fit(rows)
    check_clustering(model, rows, by_distance(rows, model.cluster_centers_))


def test_one_huge_column_among_small_ones() -> None:
    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(size=(120, 3)), 1e6 * rng.integers(0, 2, 120)].astype(np.float32)
    model = BalancedKMeans(4, random_state=0).fit(rows)
    check_clustering(model, rows, by_distance(rows, model.cluster_centers_))


@pytest.mark.parametrize(("dtype", "offset"), [("float32", 2e3), ("float64", 1e8), ("float64", 1e9)])
def test_directions_that_lie_close_together(dtype: str, offset: float) -> None:
    """Where no bound binds, each row is with the nearest centre, and inertia_ is about the same distances."""
    rows = (offset + np.random.default_rng(0).normal(size=(300, 4))).astype(dtype)
    model = BalancedKMeans(5, metric="cosine", random_state=0, size_max=300).fit(rows)
    wide, centres = rows.astype(np.longdouble), model.cluster_centers_.astype(np.longdouble)
    unit = wide / np.sqrt(np.square(wide).sum(1, keepdims=True))
    halves = np.square(unit[:, None] - centres).sum(2) / 2
    least, own = halves.min(1), halves[np.arange(300), model.labels_]
    spacing = np.finfo(np.float64).eps * np.sqrt(least.mean())  # of a unit row, times its distance
    assert (own - least).max() <= 8 * spacing
    assert model.inertia_ == pytest.approx(float(least.sum()), rel=1e-5)
    assert -model.score(rows) == pytest.approx(model.inertia_, rel=1e-9)
    np.testing.assert_allclose(model.transform(rows), halves.astype(np.float64), atol=1e-5 * float(halves.max()))
    assert model.n_iter_ < 100
    fair = BalancedKMeans(5, metric="cosine", random_state=0).fit(rows)
    assert model.inertia_ <= 1.05 * fair.inertia_
    if dtype == "float32":
        ones = (1 - (unit * centres[model.labels_]).sum(1)).sum()
        assert model.inertia_ == pytest.approx(float(ones), rel=1e-6)


def test_rows_without_direction_fit_anywhere() -> None:
    rows = np.r_[np.zeros((4, 2)), np.eye(2), -np.eye(2)]
    model = BalancedKMeans(3, metric="cosine", size_max=8, init=[[0, 0], [1, 0], [0, 1]], max_iter=1).fit(rows)
    np.testing.assert_allclose(model.transform(rows)[:4], 1)
    length = np.linalg.norm(model.cluster_centers_, axis=1)
    np.testing.assert_allclose(model.transform(rows)[:, length == 0], 1)
    own = 1 - (rows * model.cluster_centers_[model.labels_]).sum(1)
    assert model.gap_ == pytest.approx((own - model.transform(rows).min(1)).sum(), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e160, 1e307])
def test_directions_of_rows_of_any_length(scale: float) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 4))
    usual, model = (BalancedKMeans(4, metric="cosine", random_state=0).fit(rows * s) for s in (1.0, scale))
    assert model.inertia_ == pytest.approx(usual.inertia_, rel=1e-9)
    np.testing.assert_array_equal(model.labels_, usual.labels_)
    mixed = rows * np.where(np.arange(120) % 2, scale, 1.0)[:, None]
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    stored = open_scores(mixed)
    for opened in (stored, stored.only(on_device(stored.source, torch.device("cpu")))):
        found = as_array(read_rows(unit_rows(opened).source, 0, 120))
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-170, 1e-110, 1e110, 1e160, 1e307])
def test_squares_beyond_float64_are_refused(scale: float) -> None:
    rows = scale * np.random.default_rng(0).normal(size=(60, 4))
    with pytest.raises(InvalidScoresError, match=r"features .*; (multiply|divide) them by a constant"):
        BalancedKMeans(4, random_state=0).fit(rows)
    equal = BalancedKMeans(4, random_state=0).fit(np.full((60, 4), min(scale, 1e90)))
    assert equal.inertia_ == 0


def test_directions_that_differ_too_little_for_float64_are_refused() -> None:
    rows = np.c_[np.ones(20), 1e-120 * np.arange(20)]
    with pytest.raises(InvalidScoresError, match="features of length 1 differ by so little"):
        BalancedKMeans(4, metric="cosine", random_state=0).fit(rows)


@pytest.mark.parametrize("scale", [2.0**-130, 2.0**60, 2.0**83, 2.0**123])
def test_the_scale_of_float32_features_does_not_matter(scale: float) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32).round(3)
    scaled = (rows.astype(np.float64) * scale).astype(np.float32)
    model = BalancedKMeans(4, random_state=0).fit(scaled)
    check_clustering(model, scaled, by_distance(scaled, model.cluster_centers_))
    usual = BalancedKMeans(4, random_state=0).fit(rows)
    assert model.inertia_ == pytest.approx(scale**2 * usual.inertia_, rel=1e-2)
    if scale > 1:
        np.testing.assert_array_equal(curate(scaled, 20).indices, curate(rows, 20).indices)


@pytest.mark.parametrize("scale", [2.0**-900, 2.0**-560, 2.0**560])
def test_a_subset_does_not_depend_on_the_scale(scale: float) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 4))
    np.testing.assert_array_equal(curate(rows * scale, 20).indices, curate(rows, 20).indices)
    with pytest.raises(InvalidScoresError, match="features are so large"):
        curate(rows * 1e305, 20)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("far", [1e12, 1e22, 1e60])
def test_centres_that_come_from_far_away_end_at_the_means(far: float, dtype: str) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(dtype)
    model = BalancedKMeans(5, init=rows[:5].astype(np.float64) + far).fit(rows)
    means = np.stack([rows[model.labels_ == k].mean(0, dtype=np.float64) for k in range(5)])
    np.testing.assert_allclose(model.cluster_centers_, means, atol=0.03)
    assert model.inertia_ <= 1.1 * BalancedKMeans(5, random_state=0).fit(rows).inertia_
    with pytest.raises(ValueError, match="init holds numbers of up to 1e\\+140"):
        BalancedKMeans(5, init=np.full((5, 4), 1e140)).fit(rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("far", [1e6, 1e8, 1e12])
def test_a_row_far_away_leaves_the_others_with_the_nearest_centre(far: float, dtype: str) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4))
    rows[5] *= far
    rows = rows.astype(dtype)
    model = BalancedKMeans(5, random_state=0, size_max=300).fit(rows)
    squares = np.square(rows.astype(np.longdouble)[:, None] - model.cluster_centers_).sum(2).astype(np.float64)
    own, least = squares[np.arange(300), model.labels_], squares.min(1)
    assert (own - least).max() <= 1e-9
    assert model.inertia_ == pytest.approx(least.sum(), rel=1e-9)
    others = np.arange(300) != 5
    near = np.argsort(squares[others].max(0))[:4]  # all centres but the one at that row
    found = model.transform(rows)[others][:, near]
    np.testing.assert_allclose(found, np.sqrt(squares[others][:, near]), atol=1e-6)


def exact_squares(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """-||x - mu||^2 without any rounding, (N, K)."""
    wide, means = (np.vectorize(Fraction, otypes=[object])(x.astype(np.float64)) for x in (rows, centres))
    return -np.square(wide[:, None] - means).sum(2)


@pytest.mark.parametrize("limits", [{}, {"size_max": 20}])
@pytest.mark.parametrize("far", [1e5, 1e8, 1e12])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_row_far_away_takes_no_digits_from_the_others(dtype: str, far: float, limits: dict) -> None:
    rows = np.random.default_rng(3).normal(size=(60, 4))
    rows[5] *= far
    rows = rows.astype(dtype)
    model = BalancedKMeans(5, random_state=0, **limits).fit(rows)
    assert can_gain(exact_squares(rows, model.cluster_centers_), model.labels_) == 0
    assert model.proof_.proven
    swapped = model.labels_.copy()
    first, second = (np.flatnonzero((swapped == k) & (np.arange(60) != 5))[0] for k in np.unique(swapped[:5])[:2])
    swapped[[first, second]] = swapped[[second, first]]
    proof = certify(closeness(open_scores(rows), model.cluster_centers_), swapped, potentials=model.potentials_)
    assert proof.gap > 1e-3
    assert not proof.proven


METRICS = {"euclidean": by_distance, "cosine": by_cosine}
WITH_ONE_FAR_AWAY = 2.04e7 + np.array([[0, 0, 0, 0], [0, 0, 0, 15], [0, 0, 0, 30], [1e9, 0, 0, 0]])


def fit_part(group: Any) -> tuple[Any, ...]:
    rows = far_rows(2.04e7, "float32", n=600)[group.rank() :: group.size()]
    models = [BalancedKMeans(7, metric=one, max_iter=5, random_state=0).fit(rows, group=group) for one in METRICS]
    models.append(BalancedKMeans(4, size_max=400, init=WITH_ONE_FAR_AWAY).fit(rows, group=group))
    weight = np.random.default_rng(1).normal(size=(6, 4))
    head = sinkhorn_assign(linear_scores(rows, weight), group=group)
    return [(model.labels_, model.cluster_centers_, model.gap_) for model in models], head.labels, head.value, head.gap


def test_ranks_prove_the_same() -> None:
    parts = on_ranks(fit_part, 2)
    for part in parts:
        assert not isinstance(part, Exception), part
    order = np.argsort(np.concatenate([np.arange(600)[rank::2] for rank in range(2)]))
    rows = far_rows(2.04e7, "float32", n=600)
    for at, make in enumerate([*METRICS.values(), by_distance]):
        _, centres, gap = parts[0][0][at]
        scores = make(rows, centres)
        proof = certify(scores, np.concatenate([part[0][at][0] for part in parts])[order])
        room = 1e-9 * float(np.ptp(scores, axis=1).max())
        assert abs(proof.gap) <= room
        assert abs(gap / 600 - proof.gap) <= room
        assert np.asarray(proof.counts).min() > 0  # the last one's far cluster is filled
    dense = rows.astype(np.float64) @ np.random.default_rng(1).normal(size=(6, 4)).T
    dense -= np.logaddexp.reduce(dense, axis=1, keepdims=True)
    proof = certify(dense, np.concatenate([part[1] for part in parts])[order])
    assert parts[0][2] == pytest.approx(proof.value, rel=1e-12)
    assert max(abs(parts[0][3]), abs(proof.gap)) <= 1e-9 * float(np.ptp(dense, axis=1).max())


# ---- empty clusters ----


def test_an_empty_cluster_is_filled() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(c, 0.1, (100, 2)) for c in ((0, 0), (3, 0), (0, 3), (3, 3))])
    for far in (90.0, 1e9):
        init = [[0, 0], [3, 0], [0, 3], [far, far]]
        model = BalancedKMeans(4, size_max=250, init=init, random_state=0).fit(rows)
        np.testing.assert_array_equal(model.sizes_, [100] * 4)
        np.testing.assert_array_equal(model.predict(rows), model.labels_)
    several = BalancedKMeans(4, size_min=0, size_max=250, init=[[0, 0], [80, 0], [0, 80], [90, 90]]).fit(rows)
    assert several.sizes_.min() > 0


def test_an_empty_cluster_that_cannot_be_filled_is_told_of() -> None:
    rows = np.repeat([[0.0, 0.0], [1.0, 1.0]], [7, 3], axis=0)
    with pytest.warns(ConvergenceWarning, match="1 of 3 clusters are empty"):
        model = BalancedKMeans(3, size_max=10, random_state=0).fit(rows)
    assert model.inertia_ == 0
    assert model.n_iter_ < 10


def test_a_cluster_that_is_to_be_empty_stays_so() -> None:
    rows = far_rows(0.0, "float64")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = BalancedKMeans(3, sizes=[0, 45, 45], random_state=0, tol=1.0).fit(rows)
    np.testing.assert_array_equal(model.sizes_, [0, 45, 45])


# ---- features times weights ----


def wide_scores(features: Any, weight: Any, bias: Any, normalize: bool) -> np.ndarray:
    """In more than float64."""
    logits = float64(features).astype(np.longdouble) @ float64(weight).T.astype(np.longdouble) + float64(bias)
    if normalize:
        top = logits.max(1, keepdims=True)
        logits = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return logits.astype(np.float64)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_on_far_features(dtype: str, offset: float, normalize: bool) -> None:
    features = far_rows(offset, dtype, n=60)
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(5, 4)).astype(np.float32)
    bias = rng.normal(size=5) - weight @ float64(features).mean(0)  # as a head that was trained on them has it
    head = linear_scores(features, weight, bias, normalize=normalize)
    dense = wide_scores(features, weight, bias, normalize)
    size = (np.abs(float64(features)) @ np.abs(weight).T + np.abs(bias)).max()
    room = 1e-9 * float(np.median(np.ptp(dense, axis=1))) + 16 * FLOAT64_EPS * size
    result = sinkhorn_assign(head)
    best = dense[np.arange(60), hungarian_labels(dense, result.counts)].mean()
    own = dense[np.arange(60), np.asarray(result.labels)].mean()
    assert abs(result.value - own) <= room
    assert abs(result.gap - (best - own)) <= room
    assert best - own <= room
    shuffled = rng.permutation(np.asarray(result.labels))
    proof = certify(head, shuffled)
    assert abs(proof.gap - (best - dense[np.arange(60), shuffled].mean())) <= room
    assert lp_assign(head).value == pytest.approx(best, abs=room)
    totals = dense + float64(result.potentials)
    predicted = np.asarray(result.predict(head))
    assert (totals.max(1) - totals[np.arange(60), predicted] <= 2 * room).all()
    shown = np.asarray(result.soft_labels(head))
    expected = np.exp((dense + float64(result.plan_potentials)) / result.epsilon)
    if room < 1e-6:
        np.testing.assert_allclose(shown, expected / expected.sum(1, keepdims=True), atol=100 * room)


@pytest.mark.filterwarnings("error::otlabel.errors.DegenerateScoresWarning")
@pytest.mark.parametrize("scale", [1e-6, 1e-13, 1e-17, 1e-120])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_normaliser_of_small_logits_hides_no_digits(dtype: str, scale: float) -> None:
    """Labels and gap go by the logits, the value by log-probabilities."""
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(60, 5)).astype(dtype), scale * rng.normal(size=(4, 5))
    logits = features.astype(np.float64) @ weight.T
    head, rows = linear_scores(features, weight), np.arange(60)
    result = sinkhorn_assign(head)
    best = hungarian_labels(logits / scale, [15] * 4)
    assert (logits[rows, best] - logits[rows, result.labels]).mean() <= 1e-14 * scale
    assert result.proof.proven
    assert result.value == pytest.approx(wide_scores(features, weight, np.zeros(4), True)[rows, best].mean(), rel=1e-14)
    loss = (logits[rows, best] - logits[rows, rows % 4]).mean()
    for potentials in (None, result.potentials):
        assert certify(head, result.labels, potentials=potentials).proven
        arbitrary = certify(head, rows % 4, potentials=potentials)
        assert arbitrary.gap == pytest.approx(loss, rel=1e-9)
        assert not arbitrary.proven
    totals = logits + result.potentials
    assert (totals.max(1) - totals[rows, result.predict(head)] <= 1e-14 * scale).all()
    exact = lp_assign(head)
    assert logits[rows, exact.labels].mean() == pytest.approx(logits[rows, best].mean(), rel=1e-9)
    assert exact.proof.proven


@pytest.mark.filterwarnings("error::otlabel.errors.DegenerateScoresWarning")
def test_rows_that_float32_makes_alike_are_not_merged() -> None:
    """Most rows repeat others up to what float32 loses of their products."""
    rng = np.random.default_rng(0)
    features = np.c_[1e6 * rng.integers(0, 2, 200), rng.normal(size=(200, 2))].astype(np.float32)
    weight = np.c_[np.full(4, 1e3), rng.normal(size=(4, 2))]
    result = sinkhorn_assign(linear_scores(features, weight, normalize=False), epsilon=1e5)
    dense = wide_scores(features, weight, np.zeros(4), normalize=False)
    best = dense[np.arange(200), hungarian_labels(dense, result.counts)].mean()
    assert best - dense[np.arange(200), result.labels].mean() <= 1e-6
    assert abs(result.gap) <= 1e-6


def test_products_that_overflow_float32() -> None:
    features = (1e25 * np.random.default_rng(0).normal(size=(40, 3))).astype(np.float32)
    weight = 1e20 * np.eye(3)
    result = sinkhorn_assign(linear_scores(features, weight, normalize=False), epsilon=1e44)
    dense = wide_scores(features, weight, np.zeros(3), normalize=False)
    np.testing.assert_array_equal(result.labels, hungarian_labels(dense, result.counts))
    predicted = result.predict(linear_scores(features, weight, normalize=False))
    totals = dense + result.potentials  # some rows are on the border of two classes, as float64 multiplies
    known = 8 * np.finfo(np.float64).eps * (np.abs(dense).max(1) + np.abs(result.potentials).max())
    assert (totals[np.arange(40), predicted] >= totals.max(1) - known).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_made_on_a_device(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reference sweep, on a device whose memory is the host's."""

    def moved(source: Any, device: Any) -> Any:
        return on_device(source, torch.device("cpu"))

    monkeypatch.setattr("otlabel.sources.opening._checked_device", torch.device)
    monkeypatch.setattr("otlabel.sources.linear.on_device", moved)
    features = far_rows(2.04e7, "float32", n=200)
    weight = np.random.default_rng(1).normal(size=(5, 4))
    bias = -weight @ features.mean(0, dtype=np.float64)
    there = open_scores(linear_scores(features, weight, bias, normalize=normalize), device="cuda")
    assert isinstance(there, LinearScores)
    assert there.source.device is not None
    dense = wide_scores(features, weight, bias, normalize)
    result = sinkhorn_assign(there)
    best = dense[np.arange(200), hungarian_labels(dense, result.counts)].mean()
    assert result.value == pytest.approx(dense[np.arange(200), result.labels].mean(), abs=1e-6)
    assert result.value == pytest.approx(best, abs=1e-6)
    assert abs(result.gap) <= 1e-6
    centres = features[:4].astype(np.float64)
    by_centre = closeness(open_scores(torch.from_numpy(features)), centres).on(torch.device("cuda"))
    distances = by_distance(features, centres)
    expected = distances - distances[:, :1]
    found = read_rows(by_centre.fine, 0, 200).numpy()
    np.testing.assert_allclose(found - found[:, :1], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_in_halves(dtype: torch.dtype) -> None:
    head = torch.nn.Linear(16, 5).to(dtype)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 16))).to(dtype)
    result = sinkhorn_assign(linear_scores(features, head.weight, head.bias))
    assert result.counts.tolist() == [40] * 5
    dense = wide_scores(features, head.weight, head.bias, normalize=True)
    assert result.value == pytest.approx(dense[np.arange(200), result.labels.numpy()].mean(), rel=1e-12)


# ---- whatever else looks at distances ----


def test_unit_rows_are_rounded_once() -> None:
    rows = far_rows(1e7, "float32")
    unit = unit_rows(open_scores(rows))
    exact = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_array_equal(read_rows(unit.source, 0, len(rows)), exact.astype(np.float32), strict=True)
    np.testing.assert_allclose(read_rows(unit.fine, 0, len(rows)), exact, rtol=1e-15)


@pytest.mark.parametrize("offset", [2.04e7, 1.7e9])
def test_nearest_centres_of_far_rows(offset: float) -> None:
    rows = far_rows(offset, "float32", n=300, scale=offset / 1e6)
    centres = rows[:20].astype(np.float64)
    distances = by_distance(rows, centres)
    found = nearest(open_scores(rows), centres)
    np.testing.assert_array_equal(distances[np.arange(300), found], distances.max(1))
    labels = np.arange(300) % 5
    means = np.stack([rows[labels == k].mean(0, dtype=np.float64) for k in range(5)])
    fit = _closeness(open_scores(rows), labels, 5)
    distances = by_distance(rows, means)
    np.testing.assert_allclose(distances[np.arange(300), fit.best], distances.max(1), rtol=1e-12)


def test_a_subset_of_far_rows_is_as_even_as_that_of_near_ones() -> None:
    rng = np.random.default_rng(0)
    near = np.concatenate([rng.normal(100 * k, 1, (n, 2)) for k, n in enumerate((400, 40, 40, 40))]).round()
    sizes = [np.sort(curate(near.astype(np.float32) + np.float32(at), 80, n_clusters=4).quotas) for at in (0, 8e6)]
    np.testing.assert_array_equal(sizes[0], sizes[1])


def test_whitened_rows_do_not_depend_on_where_they_lie() -> None:
    near = np.random.default_rng(0).integers(0, 30, (300, 4)).astype(np.float32)
    expected = whitened(open_scores(near), 4)
    found = whitened(open_scores(near.astype(np.float64) + 1.7e9), 4)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_a_class_far_from_all_samples_is_brought_in_at_once() -> None:
    """Its potential is thousands of usual differences away: passes that look ever farther would take a dozen."""
    rng = np.random.default_rng(0)
    rows, centres = rng.normal(size=(2000, 8)), rng.normal(size=(20, 8))
    centres[-1] += 300
    scores = -((rows[:, None] - centres) ** 2).sum(2)
    with pytest.warns(UserWarning, match="class-mass error"):
        result = sinkhorn_assign(scores, method="sinkhorn", max_sweeps=1, epsilon=50.0)
    np.testing.assert_array_equal(result.labels, hungarian_labels(scores, np.full(20, 100)))
    assert result.proof.proven
    assert [step["stage"] for step in result.history].count("repair") <= 8
