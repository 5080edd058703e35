"""What a user gets for input that cannot be right: an error or warning that says what, where, and what to do."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from problems import normal
from scipy.special import softmax

from otlabel import KL, certify, lp_assign, sinkhorn_assign
from otlabel.errors import DegenerateScoresWarning, InfeasibleError, InvalidMassError, InvalidScoresError, OtlabelError


def plain(n_samples: int = 30, n_classes: int = 4) -> np.ndarray:
    return normal(np.random.default_rng(0), n_samples, n_classes)


def assert_names(message: str, *numbers: object) -> None:
    """Each number stands in the message as a word of its own."""
    for number in numbers:
        assert re.search(rf"(?<![\d.]){number}(?![\d])", message), f"{number} is not in: {message}"


@pytest.mark.parametrize("solve", [sinkhorn_assign, lp_assign, lambda s: certify(s, np.zeros(len(s), np.int64))])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_counted_and_located(solve, value: float, dtype: torch.dtype, there) -> None:
    scores = torch.from_numpy(plain(90, 13)).to(dtype)
    scores[57, 11], scores[58, 2], scores[89, 12] = value, np.nan, value
    with pytest.raises(InvalidScoresError) as caught:
        there(solve, scores if dtype is torch.bfloat16 else scores.numpy())
    assert_names(str(caught.value), 3, 57, 11)


def test_nan_far_into_the_data_is_located(there) -> None:
    scores = plain(60_000, 30)
    scores[50_003, 17] = np.nan
    with pytest.raises(InvalidScoresError) as caught:
        there(sinkhorn_assign, scores)
    assert_names(str(caught.value), 1, 50003, 17)


def test_nan_in_scores_to_predict() -> None:
    scores = plain()
    result = sinkhorn_assign(scores)
    scores[7, 3] = np.nan
    for method in (result.predict, result.plan, result.soft_labels):
        with pytest.raises(InvalidScoresError) as caught:
            method(scores)
        assert_names(str(caught.value), 1, 7, 3)


@pytest.mark.parametrize("shape", [(), (5,), (5, 4, 3)])
def test_wrong_number_of_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidScoresError, match=re.escape(str(shape))):
        sinkhorn_assign(np.zeros(shape))
    with pytest.raises(InvalidScoresError, match=re.escape(str(shape))):
        sinkhorn_assign(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    with pytest.raises(InvalidScoresError, match=re.escape(str(shape))):
        sinkhorn_assign(np.zeros(shape))


@pytest.mark.parametrize(
    "scores",
    [
        np.ones((3, 2), dtype=complex),
        np.array([["a", "b"], ["c", "d"]]),
        np.array([[object(), 1], [2, 3]]),
        np.zeros((3, 2), dtype="datetime64[s]"),
        torch.ones((3, 2), dtype=torch.complex64),
    ],
    ids=lambda scores: str(scores.dtype),
)
def test_dtype_that_is_no_number(scores) -> None:
    with pytest.raises(InvalidScoresError, match="dtype"):
        sinkhorn_assign(scores)


@pytest.mark.parametrize("length", [3, 5, 1])
def test_class_mass_of_wrong_length(length: int) -> None:
    with pytest.raises(InvalidMassError, match="4") as caught:
        sinkhorn_assign(plain(), class_mass=np.full(length, 1 / length))
    assert_names(str(caught.value), length)


def test_class_mass_of_wrong_dimension() -> None:
    with pytest.raises(InvalidMassError, match=r"\(2, 2\)"):
        sinkhorn_assign(plain(), class_mass=np.full((2, 2), 0.25))


@pytest.mark.parametrize("mass", [[0.5, 0.75, -0.25, 0.0], [20, 15, -5, 0]])
def test_negative_class_mass(mass: list[float]) -> None:
    with pytest.raises(InvalidMassError, match=r"-0\.25|-5"):
        sinkhorn_assign(plain(), class_mass=mass)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_class_mass_that_is_not_finite(bad: float) -> None:
    with pytest.raises(InvalidMassError, match=r"nan|inf|finite"):
        sinkhorn_assign(plain(), class_mass=[0.5, bad, 0.25, 0.25])


@pytest.mark.parametrize(
    ("mass", "total"),
    [([0.5, 0.5, 0.5, 0.5], "2"), ([0.1, 0.1, 0.1, 0.1], "0.4"), ([8, 8, 8, 8], "32"), ([0] * 4, "0")],
)
def test_sum_of_class_mass_is_shown_with_the_remedy(mass: list[float], total: str) -> None:
    with pytest.raises(InvalidMassError, match=r"/ *\w*\.?sum\(\)|class_mass *\.sum\(\)") as caught:
        sinkhorn_assign(plain(), class_mass=mass)
    assert_names(str(caught.value), total, 30)


@pytest.mark.parametrize("mass", [np.array(["a", "b", "c", "d"]), np.ones(4, dtype=complex) / 4])
def test_class_mass_that_is_no_number(mass: np.ndarray) -> None:
    with pytest.raises(InvalidMassError, match="dtype"):
        sinkhorn_assign(plain(), class_mass=mass)


def test_transposed_matrix() -> None:
    with pytest.raises(InvalidMassError, match=r"\.T\b"):
        sinkhorn_assign(plain(300, 4).T, class_mass=np.full(4, 0.25))


def test_row_wholly_forbidden(there) -> None:
    scores = plain()
    scores[[11, 23]] = -np.inf
    with pytest.raises(InfeasibleError, match="row") as caught:
        there(sinkhorn_assign, scores)
    assert_names(str(caught.value), 2, 11)


def test_class_wholly_forbidden(there) -> None:
    scores = plain()
    scores[:, 2] = -np.inf
    with pytest.raises(InfeasibleError, match="class") as caught:
        there(sinkhorn_assign, scores)
    assert_names(str(caught.value), 2)
    assert there(sinkhorn_assign, scores, class_mass=[10, 10, 0, 10]).counts.tolist() == [10, 10, 0, 10]


def test_row_with_empty_classes_only() -> None:
    scores = plain()
    scores[5, [0, 1, 3]] = -np.inf
    with pytest.raises(InfeasibleError):
        sinkhorn_assign(scores, class_mass=[10, 10, 0, 10])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_too_few_choices_for_a_set_of_classes(dtype: type, there) -> None:
    """Hall's condition: 16 of 30 rows may only go to classes 0 and 1, which take 15 together."""
    scores = plain(30, 4).astype(dtype)
    scores[:16, 2:] = -np.inf
    with pytest.raises(InfeasibleError, match="class"):
        there(sinkhorn_assign, scores, class_mass=[8, 7, 8, 7])
    assert there(sinkhorn_assign, scores, class_mass=[8, 8, 7, 7]).counts.tolist() == [8, 8, 7, 7]


def test_too_few_choices_in_lp_assign_and_certify() -> None:
    scores = plain(30, 4)
    scores[:16, 2:] = -np.inf
    with pytest.raises(InfeasibleError):
        lp_assign(scores, class_mass=[8, 7, 8, 7])
    with pytest.raises(InfeasibleError):
        certify(scores, np.repeat([0, 1, 2, 3], [8, 8, 7, 7]), class_mass=[8, 7, 8, 7])


def test_too_few_choices_by_one_among_many(there) -> None:
    """A staircase in which every sample has two choices, yet the last class can be reached by one sample too few."""
    scores = np.full((40, 20), -np.inf)
    for i in range(40):
        scores[i, i // 2], scores[i, max(i // 2 - 1, 0)] = 0.0, 1.0
    assert there(sinkhorn_assign, scores).counts.tolist() == [2] * 20
    scores[39, 19] = -np.inf
    with pytest.raises(InfeasibleError):
        there(sinkhorn_assign, scores)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_probabilities_are_noticed(dtype: type) -> None:
    probabilities = softmax(3 * plain(200, 5), axis=1).astype(dtype)
    with pytest.warns(DegenerateScoresWarning, match="logarithm") as caught:
        result = sinkhorn_assign(probabilities)
    assert caught[0].filename == __file__
    assert result.counts.tolist() == [40] * 5


@pytest.mark.parametrize(
    "scores", [plain(), np.log(softmax(plain(), axis=1)), softmax(plain(), axis=1) * 1.5, np.eye(4)[[0, 1, 2, 3]] * 2.0]
)
def test_other_scores_are_not_taken_for_probabilities(scores: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DegenerateScoresWarning)
        assert np.ptp(sinkhorn_assign(scores).counts) <= 1


@pytest.mark.parametrize("value", [0.0, -7.25, 3e4])
def test_all_equal_scores_are_noticed(value: float, there) -> None:
    with pytest.warns(DegenerateScoresWarning, match="equal"):
        result = there(sinkhorn_assign, np.full((103, 5), value))
    assert sorted(result.counts.tolist()) == [20, 20, 21, 21, 21]
    assert result.value == pytest.approx(value, abs=1e-9)


@pytest.mark.filterwarnings("ignore::otlabel.errors.DegenerateScoresWarning")
def test_fewer_samples_than_classes_are_noticed() -> None:
    with pytest.warns(UserWarning, match="5") as caught:
        result = sinkhorn_assign(plain(5, 9))
    assert any("9" in str(warning.message) for warning in caught)
    assert sorted(set(result.counts.tolist())) == [0, 1]


@pytest.mark.parametrize("epsilon", [0, 0.0, -1.0, np.nan, np.inf])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn_assign(plain(), epsilon=epsilon)


@pytest.mark.parametrize("tol", [0, -1e-3, np.nan])
def test_tol_must_be_positive(tol: float) -> None:
    with pytest.raises(ValueError, match="tol"):
        sinkhorn_assign(plain(), tol=tol)


@pytest.mark.parametrize("max_sweeps", [0, 1.5, "10", np.inf])
def test_max_sweeps_must_be_positive(max_sweeps) -> None:
    with pytest.raises(ValueError, match="max_sweeps"):
        sinkhorn_assign(plain(), max_sweeps=max_sweeps)


@pytest.mark.parametrize("name", ["epsilon", "tol", "abstain", "seed", "max_sweeps", "device"])
@pytest.mark.parametrize("value", [None, "much", np.array([0.05, 0.1]), [0.05], -1, torch.tensor([0.1, 0.2])])
def test_settings_that_are_no_number_are_named(name: str, value) -> None:
    with pytest.raises(ValueError, match=name):
        sinkhorn_assign(plain(), **{name: value})
    if name == "tol":
        with pytest.raises(ValueError, match="rho"):
            KL(value)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.array, torch.tensor])
@pytest.mark.filterwarnings("error")
def test_settings_of_any_kind_of_number(kind) -> None:
    plainly = sinkhorn_assign(plain(), epsilon=0.0625, tol=0.125, abstain=0.5, classes=KL(0.25), seed=3, max_sweeps=50)
    whole = np.int64 if kind in (np.float16, np.float32, np.float64) else kind
    given = sinkhorn_assign(
        plain(),
        epsilon=kind(0.0625),
        tol=kind(0.125),
        abstain=kind(0.5),
        classes=KL(kind(0.25)),
        seed=whole(3),
        max_sweeps=whole(50),
    )
    np.testing.assert_array_equal(given.labels, plainly.labels)
    assert given.value == plainly.value
    assert type(given.epsilon) is float


def test_unknown_rounding_and_method_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"'nearest'.*exact.*argmax"):
        sinkhorn_assign(plain(), rounding="nearest")
    with pytest.raises(ValueError, match=r"'newton'.*auto.*sinkhorn"):
        sinkhorn_assign(plain(), method="newton")


@pytest.mark.parametrize("init", [np.zeros(3), np.zeros((4, 1)), np.full(4, np.nan), [0.0, np.inf, 0.0, 0.0]])
def test_init_of_wrong_length_or_content(init) -> None:
    with pytest.raises(ValueError, match="init"):
        sinkhorn_assign(plain(), init=init)


def test_init_from_another_number_of_classes() -> None:
    with pytest.raises(ValueError, match="init"):
        sinkhorn_assign(plain(30, 4), init=sinkhorn_assign(plain(30, 5)))


def test_scores_to_predict_with_other_classes() -> None:
    with pytest.raises(InvalidScoresError, match=r"5.*4|4.*5"):
        sinkhorn_assign(plain(30, 4)).predict(plain(30, 5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("scores", [plain(), torch.from_numpy(plain())], ids=["numpy", "torch"])
def test_cuda_without_a_device(scores) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"CUDA.*device='auto'"):
        sinkhorn_assign(scores, device="cuda")


def test_unknown_device() -> None:
    with pytest.raises(ValueError, match="abacus"):
        sinkhorn_assign(plain(), device="abacus")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(29, np.int64), "29"),
        (np.full(30, 4), r"labels\[0\] = 4"),
        (np.full(30, -1), "-1"),
        (np.zeros(30), "float64"),
        (np.zeros((30, 1), np.int64), r"\(30, 1\)"),
    ],
)
def test_labels_that_cannot_be_certified(labels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        certify(plain(), labels)


def test_potentials_that_cannot_certify() -> None:
    with pytest.raises(ValueError, match="potentials"):
        certify(plain(), np.zeros(30, np.int64), potentials=np.zeros(5))


def test_errors_are_one_family_and_built_in_errors_too() -> None:
    for kind in (InvalidScoresError, InvalidMassError, InfeasibleError):
        assert issubclass(kind, OtlabelError)
        assert issubclass(kind, ValueError)


@pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_inputs_are_never_modified(dtype: type, order: str) -> None:
    scores = np.asarray(10 * plain(300, 4), dtype=dtype, order=order)
    mass, init = np.array([0.4, 0.3, 0.3, 0.0]), np.array([0.0, 1.0, 2.0, 3.0])
    for array in (scores, mass, init):
        array.flags.writeable = False  # a write would raise
    before = scores.copy()
    result = sinkhorn_assign(scores, class_mass=mass, init=init)
    labels = result.labels.copy()
    certify(scores, labels, potentials=result.potentials, class_mass=mass)
    result.plan(scores), result.predict(scores), lp_assign(scores, class_mass=mass)
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_tensors_are_never_modified(dtype: torch.dtype) -> None:
    scores = torch.from_numpy(10 * plain(300, 4)).to(dtype)
    before, version = scores.clone(), scores._version
    result = sinkhorn_assign(scores)
    result.plan(scores), result.predict(scores), certify(scores, result.labels)
    assert torch.equal(scores, before)
    assert scores._version == version
