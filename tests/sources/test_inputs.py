"""What users hand over: numbers with names, masks, batches, types that NumPy lacks, and what is no matrix at all."""

from __future__ import annotations

import collections
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from problems import normal

from otlabel import (
    Assignment,
    BalancedKMeans,
    Range,
    balance_path,
    certify,
    curate,
    diagnose,
    linear_scores,
    lp_assign,
    metrics,
    sinkhorn_assign,
)
from otlabel.errors import InvalidMassError, InvalidScoresError
from otlabel.sources import open_scores, read_rows
from otlabel.sources.base import as_float
from otlabel.sources.parts import Parts

NAMES = ["cat", "dog", "fish"]
COUNTS = {"fish": 10, "cat": 30, "dog": 20}


def plain(n_samples: int = 60, n_classes: int = 3) -> np.ndarray:
    return normal(np.random.default_rng(0), n_samples, n_classes)


def rows_of(source: Any) -> np.ndarray:
    opened = open_scores(source)
    return as_float(read_rows(opened.source, 0, opened.shape[0]), opened.dtype)


# ---- numbers with names ----


@pytest.fixture(name="pd")
def _pd() -> Any:
    return pytest.importorskip("pandas")


@pytest.fixture(name="frame")
def _frame(pd) -> Any:
    return pd.DataFrame(plain(), columns=NAMES, index=[f"image-{number}" for number in range(60)])


def test_a_series_is_read_by_its_names(pd, frame) -> None:
    counts = pd.Series(COUNTS)
    expected = sinkhorn_assign(plain(), class_mass=[30, 20, 10])
    for mass in (counts, counts / 60, counts.astype("Int64"), COUNTS, pd.Series({2: 10, 0: 30, 1: 20})):
        found = sinkhorn_assign(frame, class_mass=mass)
        np.testing.assert_array_equal(found.labels, expected.labels)
    for rule in (Range(counts, counts), Range(COUNTS, 60)):
        np.testing.assert_array_equal(sinkhorn_assign(frame, classes=rule).labels, expected.labels)
    assert lp_assign(frame, class_mass=counts).counts.tolist() == [30, 20, 10]
    assert balance_path(frame, class_mass=counts, n_steps=3).sizes[-1].tolist() == [30, 20, 10]
    assert diagnose(frame, class_mass=counts).balanced_sizes == (30, 20, 10)
    potentials = pd.Series(expected.potentials, NAMES)[::-1]
    assert certify(frame, expected.labels, potentials=potentials, class_mass=counts).gap == pytest.approx(0, abs=1e-12)
    assert sinkhorn_assign(frame, class_mass=counts, init=potentials).n_sweeps <= expected.n_sweeps


def test_a_series_of_class_numbers_needs_no_frame(pd) -> None:
    counts = pd.Series([2] * 10 + [0] * 30 + [1] * 20).value_counts()[::-1]
    assert counts.index.tolist() != [0, 1, 2]
    assert sinkhorn_assign(plain(), class_mass=counts).counts.tolist() == [30, 20, 10]
    assert BalancedKMeans(3, sizes=counts, random_state=0).fit(plain()).sizes_.tolist() == [30, 20, 10]
    head = linear_scores(plain(), np.eye(3), pd.Series({2: 9.0, 0: 0.0, 1: 0.0}), normalize=False)
    np.testing.assert_allclose(read_rows(head.source, 0, 60), plain() + np.array([0, 0, 9.0]), rtol=1e-12)


@pytest.mark.parametrize(
    ("mass", "said"),
    [
        ({"fish": 30, "cat": 30}, r"nothing for 'dog'; use \.reindex\(scores\.columns, fill_value=0\)"),
        ({"fish": 10, "cat": 30, "Dog": 20}, r"'fish', 'cat', 'Dog', but the columns .* are 'cat', 'dog', 'fish'"),
        ({0: 10, 1: 20, 3: 30}, "the columns of scores are 'cat', 'dog', 'fish'"),
    ],
)
def test_names_that_do_not_fit_are_refused(pd, frame, mass: dict[Any, int], said: str) -> None:
    for given in (mass, pd.Series(mass)):
        with pytest.raises(InvalidMassError, match=said):
            sinkhorn_assign(frame, class_mass=given)
        with pytest.raises(InvalidMassError, match=said):
            sinkhorn_assign(frame, classes=Range(given, 60))


def test_names_that_may_mean_two_things_are_refused(pd) -> None:
    shuffled = pd.DataFrame(plain(), columns=["2", "0", "1"])  # is 0 a column's name, or its place?
    with pytest.raises(InvalidMassError, match="the columns of scores are '2', '0', '1'"):
        sinkhorn_assign(shuffled, class_mass=pd.Series({0: 30, 1: 20, 2: 10}))
    in_order = pd.DataFrame(plain(), columns=["0", "1", "2"])
    assert sinkhorn_assign(in_order, class_mass=pd.Series({2: 10, 0: 30, 1: 20})).counts.tolist() == [30, 20, 10]
    with pytest.raises(InvalidMassError, match="not distinct: 'cat'"):
        sinkhorn_assign(in_order, class_mass=pd.Series([10, 20, 30], ["cat", "cat", "dog"]))


def test_without_names_a_series_needs_class_numbers(pd) -> None:
    with pytest.raises(InvalidMassError, match=r"'fish', 'cat', 'dog', but the classes are 0, 1, 2"):
        sinkhorn_assign(plain(), class_mass=pd.Series(COUNTS))
    with pytest.raises(InvalidMassError, match=r"nothing for 2; use \.reindex\(range\(3\), fill_value=0\)"):
        sinkhorn_assign(plain(), class_mass=pd.Series([0, 1, 1] * 20).value_counts())


def test_a_series_of_rows_is_read_by_the_frame_s_index(pd, frame) -> None:
    weights = pd.Series(np.random.default_rng(0).integers(1, 9, 60), frame.index)
    expected = sinkhorn_assign(plain(), sample_mass=weights.to_numpy())
    np.testing.assert_array_equal(sinkhorn_assign(frame, sample_mass=weights[::-1]).labels, expected.labels)
    shares = weights / weights.sum()
    np.testing.assert_allclose(expected.plan(frame, sample_mass=shares[::-1]).sum(1), shares)
    labels = pd.Series(expected.labels, frame.index)
    for given in (labels, labels[::-1], labels.to_numpy(), labels.reset_index(drop=True)):
        assert certify(frame, given, potentials=expected.potentials).value == pytest.approx(
            certify(plain(), expected.labels, potentials=expected.potentials).value, abs=1e-12
        )
    pairs = sinkhorn_assign(plain(), labels_per_sample=2)
    several = pd.DataFrame(pairs.labels, frame.index)
    for given in (several, several[::-1]):
        assert certify(frame, given, potentials=pairs.potentials).value == pytest.approx(pairs.value, abs=1e-12)
    with pytest.raises(ValueError, match=r"index of labels.*labels\.to_numpy\(\)"):
        certify(plain(), several)
    assert metrics.nmi(labels, labels[::-1]) == pytest.approx(1)
    assert metrics.knn_accuracy(frame, labels[::-1], frame, labels, k=1) == 1


def test_rows_that_may_be_in_another_order_are_refused(pd, frame) -> None:
    labels = pd.Series(np.arange(60) % 3)
    for wrong in (labels[::-1], labels.set_axis(frame.index), labels.set_axis(range(1, 61))):
        with pytest.raises(ValueError, match=r"index of labels.*labels\.to_numpy\(\)"):
            certify(plain(), wrong)
        with pytest.raises(ValueError, match=r"index of labels.*labels\.to_numpy\(\)"):
            metrics.nmi(labels.to_numpy(), wrong)
    numbered = frame.set_axis(range(5, 65))
    with pytest.raises(InvalidMassError, match=r"index of sample_mass, 0, 1, 2, .* rows of scores, 5, 6, 7"):
        sinkhorn_assign(numbered, sample_mass=labels + 1)


def test_frames_of_other_types(pd, frame) -> None:
    np.testing.assert_array_equal(rows_of(frame.astype("Float64")), plain())
    mixed = frame.assign(cat=np.arange(60, dtype=np.int16), dog=frame["dog"].astype("float32"))
    np.testing.assert_array_equal(rows_of(mixed), mixed.to_numpy())
    with pytest.raises(InvalidScoresError, match="columns that hold no numbers: 'file'; leave these out"):
        sinkhorn_assign(frame.assign(file="a.png"))
    with pytest.raises(InvalidScoresError, match=r"NaN.*row 7, class 1"):
        sinkhorn_assign(frame.astype("Float64").mask(np.arange(180).reshape(60, 3) == 22))


def test_columns_of_features_meet_those_of_weights_and_centres(pd, frame) -> None:
    weight = pd.DataFrame(normal(np.random.default_rng(1), 4, 3), index=list("abcd"), columns=NAMES)
    turned = weight[["fish", "cat", "dog"]]
    bias = pd.Series({"d": 1.0, "a": 2.0, "c": 3.0, "b": 4.0})
    mass = pd.Series({"d": 30, "a": 12, "b": 8, "c": 10})
    expected = sinkhorn_assign(linear_scores(plain(), weight.to_numpy(), [2, 4, 3, 1]), class_mass=[12, 8, 10, 30])
    found = sinkhorn_assign(linear_scores(frame, turned, bias), class_mass=mass)
    np.testing.assert_array_equal(found.labels, expected.labels)
    with pytest.raises(InvalidScoresError, match="weight has the columns 'x', 'dog', 'fish'"):
        linear_scores(frame, weight.rename(columns={"cat": "x"}))
    centres = [BalancedKMeans(4, init=init).fit(frame).cluster_centers_ for init in (weight, turned)]
    np.testing.assert_array_equal(*centres)


def test_frames_of_polars() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(plain(), schema=NAMES)
    assert sinkhorn_assign(frame, class_mass=COUNTS).counts.tolist() == [30, 20, 10]
    assert sinkhorn_assign(frame, class_mass=pl.Series([30, 20, 10])).counts.tolist() == [30, 20, 10]
    with pytest.raises(InvalidScoresError, match="columns that hold no numbers: 'file'"):
        sinkhorn_assign(frame.with_columns(file=pl.lit("a")))


def test_a_dictionary_needs_a_number_for_each_class() -> None:
    scores = plain()
    assert sinkhorn_assign(scores, class_mass={2: 10, 0: 30, 1: 20}).counts.tolist() == [30, 20, 10]
    with pytest.raises(InvalidMassError, match="nothing for 1"):
        sinkhorn_assign(scores, class_mass={0: 30, 2: 30})


# ---- masks ----


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_masked_pairs_are_forbidden(dtype: type, tmp_path, device: str) -> None:
    scores = (10 * plain()).astype(dtype)
    mask = (scores > 8) & (np.arange(3) > 0)
    scores[mask] = 12345
    filled = np.where(mask, -np.inf, scores.astype(np.float64))
    expected = sinkhorn_assign(filled)
    mapped = np.memmap(tmp_path / "scores", dtype, "w+", shape=scores.shape)
    mapped[:] = scores
    for given in (np.ma.array(scores, mask=mask), np.ma.array(mapped, mask=mask), [np.ma.array(scores, mask=mask)]):
        found = sinkhorn_assign(given, device=device)
        assert not mask[np.arange(60), found.labels].any()
        assert found.value == pytest.approx(expected.value, abs=1e-12)
        np.testing.assert_array_equal(sinkhorn_assign(scores[:, :1]).predict(np.ma.array(scores[:, :1])), 0)
        assert certify(given, found.labels).value == pytest.approx(expected.value, abs=1e-12)
    np.testing.assert_array_equal(rows_of(list(np.ma.array(scores, mask=mask))), filled)
    assert (scores[mask] == 12345).all()


def test_masked_pairs_of_bfloat16_are_forbidden() -> None:
    scores, mask = foreign("bfloat16")(plain()), plain() > 1
    filled = np.where(mask, -np.inf, scores.astype(np.float32))
    np.testing.assert_array_equal(rows_of(np.ma.array(scores, mask=mask)), filled)


def test_what_is_masked_is_no_number_elsewhere() -> None:
    scores = plain()
    with pytest.raises(InvalidMassError, match=r"class_mass\[1\] is masked"):
        sinkhorn_assign(scores, class_mass=np.ma.masked_equal([30, 20, 10], 20))
    with pytest.raises(InvalidMassError, match=r"sample_mass\[4\] is masked \(1 of 60"):
        sinkhorn_assign(scores, sample_mass=np.ma.masked_equal(np.arange(60), 4))
    with pytest.raises(ValueError, match=r"labels\[1\] is masked"):
        certify(scores, np.ma.masked_equal(np.arange(60) % 3, 1))
    features = np.ma.masked_equal(np.where(np.arange(180).reshape(60, 3) == 22, 0, scores), 0)
    for use in (BalancedKMeans(3).fit, lambda rows: linear_scores(rows, np.eye(3)), lambda rows: curate(rows, 5)):
        with pytest.raises(InvalidScoresError, match=r"features.*masked"):
            use(features)


# ---- batches ----


def batches(kind: str, rows: np.ndarray) -> list[Any]:
    cuts = [rows[:32], rows[32:40], rows[40:40], rows[40:]]
    if kind == "tensors":
        return [torch.from_numpy(part).requires_grad_() for part in cuts]
    if kind == "frames":
        pd = pytest.importorskip("pandas")
        return [pd.DataFrame(part, columns=NAMES) for part in cuts]
    return cuts if kind == "arrays" else [cuts[0], torch.from_numpy(cuts[1]), cuts[3].tolist()]


@pytest.mark.parametrize("kind", ["arrays", "tensors", "frames", "mixed"])
def test_batches_are_joined(kind: str) -> None:
    rows, weight = plain(), normal(np.random.default_rng(1), 4, 3)
    parts = batches(kind, rows)
    expected = sinkhorn_assign(rows)
    for limit in (0, None):
        found = sinkhorn_assign(parts, memory_limit=limit)
        assert torch.is_tensor(found.labels) == (kind == "tensors")
        np.testing.assert_array_equal(np.asarray(found.labels), expected.labels)
        assert (found.value, found.bound, found.bytes_read) == (expected.value, expected.bound, 0)
    np.testing.assert_array_equal(np.asarray(expected.predict(parts)), expected.predict(rows))
    assert certify(parts, expected.labels).value == pytest.approx(expected.value, abs=1e-12)
    heads = [sinkhorn_assign(linear_scores(features, weight)).labels for features in (parts, rows)]
    np.testing.assert_array_equal(*map(np.asarray, heads))
    models = [BalancedKMeans(3, random_state=0).fit(features) for features in (parts, rows)]
    np.testing.assert_array_equal(models[0].labels_, models[1].labels_)
    np.testing.assert_array_equal(models[0].predict(parts), models[1].predict(rows))
    np.testing.assert_array_equal(np.asarray(curate(parts, 9).indices), curate(rows, 9).indices)


def test_batches_of_several_types_are_widened() -> None:
    rows = np.round(4 * plain()) / 4  # exact in all of them
    parts = [rows[:20].astype("f2"), torch.from_numpy(rows[20:40]).bfloat16(), rows[40:50].astype("f4")]
    opened = open_scores(parts)
    assert isinstance(opened.source, Parts)
    assert opened.dtype == "float32"
    np.testing.assert_array_equal(rows_of(parts), rows[:50])
    assert open_scores([*parts, rows[50:]]).dtype == "float64"
    np.testing.assert_array_equal(sinkhorn_assign([*parts, rows[50:]]).labels, sinkhorn_assign(rows).labels)


def test_a_list_of_rows_is_a_matrix() -> None:
    rows = plain().astype(np.float32)
    for given in (list(rows), rows.tolist(), [torch.from_numpy(row).requires_grad_() for row in rows]):
        np.testing.assert_array_equal(rows_of(given), rows)
    halves = [torch.from_numpy(row).bfloat16() for row in rows]
    np.testing.assert_array_equal(rows_of(halves), torch.stack(halves).float().numpy())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            [np.ones((5, 3)), np.ones((5, 4))],
            "part 0 holds float64 scores of 3 classes, part 1 float64 of 4.*torch.cat",
        ),
        ([torch.ones(5, 3), torch.ones(3)], r"part 1 of scores has shape \(3,\).*np\.concatenate or torch\.cat"),
        ([torch.ones(2, 5, 3)], r"part 0 of scores has shape \(2, 5, 3\).*np\.concatenate or torch\.cat"),
        (torch.ones(2, 5, 3), r"\(2, 5, 3\).*np\.concatenate or torch\.cat"),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], r"\(2, 1, 2\).*np\.concatenate or torch\.cat"),
        ([[1.0, 2.0], [3.0]], r"row 0 has 2 numbers, row 1 has 1.*np\.concatenate or torch\.cat"),
        ([np.ones((0, 3))], r"shape \(0, 3\)"),
    ],
)
def test_lists_that_cannot_be_joined(parts: Any, said: str) -> None:
    with pytest.raises(InvalidScoresError, match=said):
        sinkhorn_assign(parts)


def test_a_rank_may_have_empty_batches_only() -> None:
    assert open_scores([np.empty((0, 3)), np.empty((0, 3))], may_be_empty=True).shape == (0, 3)


def test_where_in_a_list_a_number_is_bad() -> None:
    rows = plain()
    rows[45, 2] = np.nan
    with pytest.raises(InvalidScoresError, match=r"row 45 \(row 5 of part 1\), class 2"):
        sinkhorn_assign([rows[:40], rows[40:]])


def test_labels_of_batches_are_to_be_joined() -> None:
    labels = np.arange(60) % 3
    for parts in ([labels[:40], labels[40:]], [labels[:30], labels[30:]]):
        with pytest.raises(ValueError, match=r"np\.concatenate"):
            certify(plain(), parts)


# ---- types that NumPy lacks ----


def foreign(name: str) -> Any:
    """A function that makes numbers of that type, with or without NumPy's help."""
    if name.startswith("torch"):
        return lambda values: torch.as_tensor(values).to(getattr(torch, name.partition(".")[2]))
    if name.startswith("jax"):
        jnp = pytest.importorskip("jax.numpy")
        return lambda values: jnp.asarray(np.asarray(values), getattr(jnp, name.partition(".")[2]))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return lambda values: np.asarray(values).astype(getattr(ml_dtypes, name))


@pytest.mark.parametrize(
    "name", ["torch.bfloat16", "torch.float8_e4m3fn", "bfloat16", "float8_e4m3fn", "jax.bfloat16", "torch.float16"]
)
def test_numbers_of_few_digits_wherever_numbers_may_be(name: str) -> None:
    make = foreign(name)
    scores = np.clip(np.round(4 * plain()) / 4, -3, 3)
    scores = np.asarray(torch.as_tensor(scores).to(torch.float8_e4m3fn).double())  # exact in all types
    expected = sinkhorn_assign(scores)
    np.testing.assert_array_equal(np.asarray(sinkhorn_assign(make(scores)).labels), expected.labels)
    np.testing.assert_array_equal(np.asarray(sinkhorn_assign([make(scores)]).labels), expected.labels)
    assert sinkhorn_assign(scores, class_mass=make([0.5, 0.25, 0.25])).counts.tolist() == [30, 15, 15]
    assert sinkhorn_assign(scores, class_mass=make([1 / 3] * 3)).counts.tolist() == [20, 20, 20]
    assert sinkhorn_assign(scores, class_mass=list(make([0.5, 0.25, 0.25]))).counts.tolist() == [30, 15, 15]
    assert sinkhorn_assign(scores, classes=Range(make([0.25] * 3), make([0.5] * 3))).counts.sum() == 60
    weights = np.where(np.arange(60) % 15, 1 / 64, 1 / 32)  # sum to 1, and exact in all types
    weighted = [sinkhorn_assign(scores, sample_mass=mass).labels for mass in (weights, make(weights))]
    np.testing.assert_array_equal(*weighted)
    potentials = [0.5, 0.25, 0.0]
    assert sinkhorn_assign(scores, init=make(potentials)).gap == pytest.approx(0, abs=1e-12)
    bounds = [certify(scores, expected.labels, potentials=g).bound for g in (potentials, make(potentials))]
    assert bounds[0] == bounds[1]
    heads = [linear_scores(kind(scores), kind(np.eye(3)), kind(potentials)) for kind in (np.float32, make)]
    np.testing.assert_allclose(rows_of(heads[1]), rows_of(heads[0]), rtol=1e-6)
    models = [BalancedKMeans(3, init=kind(scores[:3])).fit(kind(scores)) for kind in (np.float32, make)]
    np.testing.assert_array_equal(models[0].labels_, models[1].labels_)


def test_shares_of_full_digits_are_still_to_sum_to_one() -> None:
    with pytest.raises(InvalidMassError, match="sums to"):
        sinkhorn_assign(plain(), class_mass=torch.full((3,), 0.3325))
    with pytest.raises(InvalidMassError, match="sums to"):
        sinkhorn_assign(plain(), class_mass=torch.full((3,), 0.25).bfloat16())


def test_views_and_histories_of_tensors() -> None:
    rows = torch.from_numpy(plain())
    negative = torch.complex(torch.zeros_like(rows), rows).conj().imag
    assert negative.is_neg()
    np.testing.assert_array_equal(rows_of(negative), -rows.numpy())
    mass = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
    assert sinkhorn_assign(rows.clone().requires_grad_(), class_mass=mass).counts.tolist() == [30, 15, 15]


# ---- what is no matrix ----

Output = collections.namedtuple("Output", "logits hidden")
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 3)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of them prototypes
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda rows: {"loss": 1.0, "logits": rows}, r"type dict, of 'loss', 'logits'.*\['logits'\]"),
        (lambda rows: {}, "type dict, with nothing in it"),
        (lambda rows: Output(rows, rows), r"type Output, of 'logits', 'hidden'.*\.logits"),
        (lambda rows: (row for row in rows), "type generator.*list of the matrices"),
        (lambda rows: LOADER, "type DataLoader.*list of the matrices"),
        (lambda rows: {1, 2}, "type set"),
        (lambda rows: torch.nn.Linear(2, 2), "type Linear; pass an array"),
        (lambda rows: object(), "type object; pass an array"),
        (lambda rows: None, "are None"),
        (lambda rows: 3.5, r"the float 3\.5"),
        (lambda rows: b"abc", "the bytes"),
        (lambda rows: torch.tensor(rows, device="meta"), "meta device"),
        (lambda rows: torch.nested.nested_tensor([torch.tensor(rows)]), r"nested tensor.*torch\.cat"),
        (lambda rows: torch.nested.nested_tensor([torch.tensor(rows)], layout=torch.jagged), "nested tensor"),
        (lambda rows: torch.masked.masked_tensor(torch.tensor(rows), torch.tensor(rows > 1)), "masked tensor"),
        (lambda rows: torch._empty_affine_quantized((6, 3), scale=1, zero_point=0, dtype=torch.qint8), "quantized"),
    ],
)
@pytest.mark.parametrize("what", ["scores", "features"])
def test_kinds_are_refused_by_their_names(make, said: str, what: str) -> None:
    given = make(np.arange(18.0).reshape(6, 3))
    uses = [sinkhorn_assign, partial(open_scores, may_be_empty=True)]
    assert_refused(given, FEATURES if what == "features" else uses, said, what)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (scipy.sparse.csr_array, r"a sparse matrix \(csr_array of shape \(6, 3\)\).*\.toarray\(\)"),
        (scipy.sparse.dok_array, r"a sparse matrix \(dok_array"),  # a dictionary, too
        (scipy.sparse.coo_matrix, r"a sparse matrix \(coo_matrix of shape \(6, 3\)\).*\.toarray\(\)"),
        (lambda rows: torch.tensor(rows).to_sparse(), r"sparse tensor \(torch\.sparse_coo\).*\.to_dense\(\)"),
        (lambda rows: torch.tensor(rows).to_sparse_csr(), r"sparse tensor \(torch\.sparse_csr\)"),
    ],
)
def test_features_are_not_sparse(make, said: str) -> None:
    assert_refused(make(np.arange(18.0).reshape(6, 3)), FEATURES, said, "features")


FEATURES = [BalancedKMeans(2).fit, lambda rows: linear_scores(rows, np.eye(3)), lambda rows: curate(rows, 2)]


def assert_refused(given, uses, said: str, what: str) -> None:
    for use in uses:
        with pytest.raises(InvalidScoresError, match=said) as caught:
            use(given)
        assert str(caught.value).startswith(what)
        assert "\n" not in str(caught.value)


def test_features_are_called_features() -> None:
    rows = plain()
    for use in (lambda given: linear_scores(given, np.eye(3)), lambda given: curate(given, 2)):
        with pytest.raises(InvalidScoresError, match=r"features have shape \(60,\); pass a matrix \(N, D\).*a feature"):
            use(rows[:, 0])
    rows[3, 1] = np.nan
    with pytest.raises(InvalidScoresError, match=r"1 of 180 features are NaN or \+inf, the first at row 3, column 1"):
        curate(rows, 5)


def test_files_without_an_array_are_not_said_to_hold_several(tmp_path) -> None:
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"holds no array at all$"):
        open_scores(str(tmp_path / "none.npz"))


@pytest.mark.parametrize("form", ["array", "swapped", "tensor", "list", "npy", "h5"])
@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_whole_numbers_beyond_float64(form: str, dtype: str, tmp_path) -> None:
    def formed(scores: np.ndarray, name: str) -> Any:
        if form == "h5":
            with pytest.importorskip("h5py").File(tmp_path / f"{name}.h5", "w") as file:
                file["scores"] = scores
            return f"{tmp_path}/{name}.h5::/scores"
        np.save(tmp_path / f"{name}.npy", scores)
        forms = {"array": scores, "swapped": scores.astype(f">{dtype}"), "npy": tmp_path / f"{name}.npy"}
        return (forms | {"tensor": torch.from_numpy(scores), "list": [scores[:10], scores[10:]]})[form]

    small = np.random.default_rng(0).integers(0, 100, (40, 4))
    small[0] = [0, 1, 2, 3]
    with pytest.raises(InvalidScoresError, match="row 0, column 1; subtract a constant"):
        sinkhorn_assign(formed(small.astype(dtype) + np.array(2**62, dtype), "large"))
    even = (small * 1024).astype(dtype) + np.array(2**62, dtype)  # which float64 holds
    labels = np.asarray(sinkhorn_assign(formed(even, "even")).labels)
    reached = small[np.arange(40), labels].sum()
    assert reached / 40 == pytest.approx(sinkhorn_assign(small).value, rel=1e-12)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63) + 1, 2**53 + 1])
def test_one_whole_number_beyond_float64(number: int) -> None:
    scores = np.zeros((4, 2), np.int64)
    scores[2, 1] = number
    with pytest.raises(InvalidScoresError, match=f"the first is {number} at row 2, column 1"):
        sinkhorn_assign(scores)
    with pytest.raises(InvalidScoresError, match=f"the first is {number} at row 2, column 1"):
        sinkhorn_assign(torch.from_numpy(scores))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("class_mass", scipy.sparse.coo_array(np.full((1, 3), 1 / 3)), r"class_mass is a sparse matrix.*\.toarray\(\)"),
        ("class_mass", (1 / 3 for _ in range(3)), "class_mass is of type generator; pass an array"),
        ("class_mass", "abcd", "class_mass is the text 'abcd'; pass an array"),
        ("sample_mass", {0: 0.5, 1: 0.5}, "sample_mass is a dict, which has no order here"),
        ("sample_mass", "abcd", "sample_mass is the text 'abcd'"),
        ("init", {1, 2, 3}, "init is of type set"),
    ],
)
def test_what_is_no_vector_is_told_by_its_kind(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sinkhorn_assign(plain(), **{name: value})


def test_labels_that_are_none_are_told_by_their_kind() -> None:
    for labels, said in (
        (None, "labels is None; pass 60"),
        ({0: 1}, "labels is a dict"),
        ("all", "labels is the text"),
    ):
        with pytest.raises(ValueError, match=said):
            certify(plain(), labels)


@pytest.mark.parametrize("rows", [[None], [None, None], [None, [1.0, 2.0]], [{}]])
def test_rows_that_are_no_lists_are_refused(rows: list[Any]) -> None:
    with pytest.raises(InvalidScoresError, match=r"row 0 of scores is"):
        sinkhorn_assign(rows)


def test_predictions_go_by_the_names_of_columns(tmp_path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(plain(), columns=NAMES)
    result = sinkhorn_assign(frame)
    assert result.class_names == tuple(NAMES)
    result.save(tmp_path / "result.npz")
    for one in (result, Assignment.load(tmp_path / "result.npz")):
        assert one.class_names == tuple(NAMES)
        turned = frame[NAMES[::-1]]
        for given in (turned, [turned[:20], turned[20:]]):
            np.testing.assert_array_equal(one.predict(given), one.predict(frame.to_numpy()))
            np.testing.assert_array_equal(one.soft_labels(given), one.soft_labels(frame.to_numpy()))
            np.testing.assert_array_equal(one.plan(given), one.plan(frame.to_numpy()))
        with pytest.raises(InvalidScoresError, match="columns of scores are 'cat', 'dog', 'bird', but the classes"):
            one.predict(frame.rename(columns={"fish": "bird"}))
        np.testing.assert_array_equal(one.predict(pd.DataFrame(plain())), one.predict(plain()))  # names that count
    numbered = sinkhorn_assign(pd.DataFrame(plain()))
    assert numbered.class_names == (0, 1, 2)
    np.testing.assert_array_equal(numbered.predict(pd.DataFrame(plain())[[2, 0, 1]]), numbered.predict(plain()))
    np.testing.assert_array_equal(numbered.predict(frame), numbered.predict(plain()))
    assert sinkhorn_assign(pd.DataFrame(plain(), columns=[("a", 0), ("a", 1), ("b", 0)])).class_names is None
    assert sinkhorn_assign(plain()).class_names is None


def test_predictions_of_a_head_go_by_its_names() -> None:
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((60, 5)).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    head = pd.DataFrame(weight, index=NAMES)
    result = sinkhorn_assign(linear_scores(features, head))
    expected = result.predict(linear_scores(features, weight))
    np.testing.assert_array_equal(result.predict(linear_scores(features, head[::-1])), expected)
