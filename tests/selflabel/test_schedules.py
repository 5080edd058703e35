"""When labels are made anew, and which samples a loader draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from otlabel.selflabel import (
    AtTimes,
    ClassUniformSampler,
    EveryEpochs,
    EverySteps,
    HeadView,
    IndexedDataset,
    LinearSchedule,
    LogarithmicSchedule,
    NewLabels,
    QuadraticSchedule,
    SelfLabeler,
)

MODEL = torch.nn.Linear(1, 2)


def as_before(head: HeadView) -> NewLabels:
    return NewLabels(head.before)


def labeler_with(schedule, n_samples: int = 4, **options) -> SelfLabeler:
    return SelfLabeler(n_samples, 2, labeling=as_before, schedule=schedule, **options)


def update(labeler: SelfLabeler) -> None:
    index = torch.arange(labeler.n_samples)
    labeler.update(MODEL, [(index, torch.zeros(len(index), 1))])


@pytest.mark.filterwarnings("ignore:labels have stopped changing")
@pytest.mark.parametrize(("epochs", "n_relabels"), [(400, 100), (200, 100)])
def test_quadratic_schedule_relabels_at_the_batches_of_selas_loop(epochs: int, n_relabels: int) -> None:
    n_samples, batch_size = 50_000, 256
    batches_an_epoch = math.ceil(n_samples / batch_size)
    times = (epochs + 1.01) * np.linspace(0, 1, n_relabels) ** 2
    np.testing.assert_array_equal(QuadraticSchedule(epochs, n_relabels).times, times)

    # Their loop: a stack of times in samples, of which one is taken a batch, as soon as it has come.
    waiting = ((epochs + 1.01) * n_samples * (np.linspace(0, 1, n_relabels) ** 2)[::-1]).tolist()
    theirs = []
    for step in range((epochs + 1) * batches_an_epoch):
        if waiting and step * batch_size >= waiting[-1]:
            waiting.pop()
            theirs.append(step)
    assert np.diff(times).min() * n_samples > 3 * batch_size  # so that no two fall into one batch

    labeler, ours = labeler_with(QuadraticSchedule(epochs, n_relabels), n_samples), []
    for step in range((epochs + 1) * batches_an_epoch):
        if labeler.due(samples=step * batch_size):
            update(labeler)
            ours.append(step)
    assert ours == theirs
    assert len(theirs) == n_relabels  # 196 batches of 256 are a little more than an epoch: the last time comes


@given(epochs=st.floats(0.5, 1000), n=st.integers(1, 200))
def test_schedules_start_at_once_rise_and_have_as_many_times_as_asked(epochs: float, n: int) -> None:
    for schedule in (QuadraticSchedule(epochs, n), LogarithmicSchedule(epochs, n), LinearSchedule(epochs, n)):
        times = np.array(schedule.times)
        assert len(times) == n
        assert times[0] == 0
        assert (np.diff(times) > 0).all()
        assert [schedule.count(time) for time in times] == list(range(1, n + 1))
        assert schedule.count(np.nextafter(times[-1], 0)) == max(n - 1, times[-1] == 0)
    assert LinearSchedule(epochs, n).times[-1] < epochs
    assert LogarithmicSchedule(epochs, n).times[-1] < epochs


def test_times_of_the_other_schedules() -> None:
    np.testing.assert_allclose(LinearSchedule(8, 4).times, [0, 2, 4, 6])
    np.testing.assert_allclose(LogarithmicSchedule(15, 4).times, [0, 1, 3, 7])
    assert AtTimes([3, 1, 2]).times == (1, 2, 3)


@given(every=st.sampled_from([0.1, 0.3, 0.7, 1, 2.5]), n=st.integers(0, 10_000))
def test_every_counts_its_multiples(every: float, n: int) -> None:
    """Also where the quotient is rounded to just below a whole number, as 0.3 / 0.1 is."""
    assert EveryEpochs(every).count(n * every) == n + 1
    assert EveryEpochs(every).count((n + 0.5) * every) == n + 1


def test_due_until_done_and_once_for_several_missed_times() -> None:
    labeler = labeler_with(AtTimes([0, 1, 2, 5]))
    assert labeler.due(0)
    assert labeler.due(0.1)  # still
    update(labeler)
    assert not labeler.due(0.9)
    assert labeler.due(2.5)
    update(labeler)
    assert not labeler.due(3)
    assert labeler.due(samples=20)
    assert not labeler_with(None).due(10)


def test_time_in_steps_and_samples() -> None:
    labeler = labeler_with(EverySteps(10))
    assert labeler.due(step=0)
    update(labeler)
    assert [labeler.due(step=step) for step in (9, 10, 11)] == [False, True, True]
    with pytest.raises(ValueError, match="counts steps"):
        labeler.due(1.0)
    with pytest.raises(ValueError, match="exactly one"):
        labeler.due()
    with pytest.raises(ValueError, match="exactly one"):
        labeler.due(1.0, step=3)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        labeler_with(EveryEpochs(1)).due(step=3)
    labeler = labeler_with(EveryEpochs(2), steps_per_epoch=5)
    update(labeler)
    assert labeler.due(step=0)  # update() without due() before it does not count for the schedule
    update(labeler)
    assert [labeler.due(step=step) for step in (9, 10)] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: AtTimes([]), lambda: AtTimes([math.nan]), lambda: AtTimes([-1.0, 2.0]), lambda: EveryEpochs(0),
        lambda: EverySteps(-1), lambda: EverySteps(math.nan), lambda: QuadraticSchedule(0, 3),
        lambda: LinearSchedule(3, 0), lambda: LogarithmicSchedule(math.inf, 3),
    ],
)  # fmt: skip
def test_schedules_that_make_no_sense(wrong) -> None:
    with pytest.raises(ValueError, match=r"schedule|above 0"):
        wrong()


# ---- which samples ----


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    unlabelled=st.integers(0, 5),
    n_ranks=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_classes_are_drawn_equally_often(sizes: list[int], unlabelled: int, n_ranks: int, seed: int) -> None:
    labels = np.repeat(np.arange(-1, len(sizes)), [unlabelled, *sizes])
    np.random.default_rng(seed).shuffle(labels)
    parts = [list(ClassUniformSampler(labels, seed=seed, n_ranks=n_ranks, rank=rank)) for rank in range(n_ranks)]
    samplers = [ClassUniformSampler(labels, seed=seed, n_ranks=n_ranks, rank=rank) for rank in range(n_ranks)]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    assert len({len(part) for part in parts}) == 1

    n_present = np.count_nonzero(sizes)
    each = math.ceil(len(labels) / n_present)
    drawn = np.concatenate(parts).astype(int)
    assert len(drawn) == n_ranks * math.ceil(len(labels) / n_ranks)
    counts = np.bincount(labels[drawn], minlength=len(sizes))
    assert (counts[np.array(sizes) == 0] == 0).all()
    extra = max(0, len(drawn) - n_present * each)  # to make the parts of ranks equally long
    missing = max(0, n_present * each - len(drawn))  # N / K rounded up is a little more than N in all
    present = counts[np.array(sizes) > 0]
    assert (present >= each - missing).all()
    assert (present <= each + extra).all()
    repeats = np.bincount(drawn, minlength=len(labels))
    for k, size in enumerate(sizes):
        if size >= each and not extra:
            assert repeats[labels == k].max() <= 1  # without repetition where the class has enough


def test_what_is_drawn_depends_on_seed_and_epoch_alone() -> None:
    labels = torch.arange(60) % 7
    sampler = ClassUniformSampler(labels, seed=5)
    first = list(sampler)
    torch.rand(3), np.random.default_rng().random()
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ClassUniformSampler(labels, seed=6)) != first


def test_a_sampler_follows_the_labelers_heads() -> None:
    """All heads at once: of an epoch of 1200, 600 are drawn by each of two heads, whose classes are unlike in size."""
    labeler = SelfLabeler(1200, [2, 5])
    labeler.labels[0] = (torch.arange(1200) % 10 == 0).long()
    labeler.labels[1] = (torch.arange(1200) % 24).clamp(max=4)
    sampler = ClassUniformSampler(labeler)
    drawn = list(sampler)
    assert len(drawn) == 1200
    fair = [np.array([0.5 + 0.5 * 0.9, 0.5 + 0.5 * 0.1]) / 2, None]  # half by the first head, half by nearly all of it
    first = np.bincount(labeler.labels[0][drawn], minlength=2) / 1200
    assert first[1] == pytest.approx(fair[0][1], abs=0.04)  # by the data alone .1
    second = np.bincount(labeler.labels[1][drawn], minlength=5) / 1200
    assert (second[:4] > 0.09).all()  # by the data alone .042, by the second head alone .2
    one = ClassUniformSampler(labeler, head=1, n_ranks=2, rank=1)
    assert len(one) == len(list(one)) == 600
    for head in range(2):
        counts = np.bincount(labeler.labels[head][list(ClassUniformSampler(labeler, head=head))])
        np.testing.assert_array_equal(counts, 1200 // labeler.n_classes[head])
    loader = DataLoader(IndexedDataset(TensorDataset(torch.arange(1200.0))), batch_size=8, sampler=sampler)
    assert sum(len(index) for index, _ in loader) == 1200
    with pytest.raises(ValueError, match="no sample has a label"):
        list(ClassUniformSampler(np.full(5, -1)))


def test_a_small_class_comes_whole_before_any_of_it_comes_again() -> None:
    labels = np.repeat([0, 1, 2], [7, 20, 63])  # thirty of each: 4 or 5 times each of the first, 1 or 2 of the second
    drawn = np.bincount(list(ClassUniformSampler(labels, seed=1)), minlength=90)
    assert set(drawn[:7]) <= {4, 5}
    assert set(drawn[7:27]) <= {1, 2}
    assert set(drawn[27:]) <= {0, 1}
    assert [drawn[labels == k].sum() for k in range(3)] == [30, 30, 30]


def test_what_is_still_to_come_is_drawn_by_new_labels_also_after_a_resume() -> None:
    labeler = SelfLabeler(300, 3)
    sampler = ClassUniformSampler(labeler, seed=2)
    labeler.labels[0] = (torch.arange(300) >= 20).long() + (torch.arange(300) >= 60).long()
    drawn = iter(sampler)
    for _ in range(100):
        next(drawn)
    labeler._state.n_updates += 1
    labeler.labels[0] = labeler.labels[0].flip(0)
    rest = list(drawn)
    assert len(rest) == 200
    counts = np.bincount(labeler.labels[0][rest], minlength=3)
    assert abs(counts - 200 / 3).max() < 25  # by the old labels 140 or so would be of the largest class
    assert list(sampler)[100:] == rest  # begun anew in the middle of the epoch, by who skips what has been
