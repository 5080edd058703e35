"""Relabellings that are told of beforehand are those that happen."""

from __future__ import annotations

from typing import Any

import pytest
from small_runs import config

from otlabel.training.config import config_of
from otlabel.training.loaders import batch_sizes
from otlabel.training.run import train
from otlabel.training.suited import suited
from otlabel.training.timetable import Timetable

TINY = {
    "data__n_samples": 70,
    "model__options": {"widths": [4], "strides": [4]},
    "evaluation__knn": 0,
    "evaluation__probe": False,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "recorded", "views"),
    [
        ({"train__epochs": 3, "labels__n_relabels": 200}, 0, 0),  # more than there are batches
        ({"train__epochs": 5, "labels__n_relabels": 3, "labels__schedule": "linear"}, 0, 0),
        (
            {"train__epochs": 4, "labels__n_relabels": 6, "labels__augmented": True},
            0,
            5,
        ),  # the last time is past the end
        ({"train__epochs": 4, "labels__n_relabels": 40, "labels__augmented": True, "labels__fixed_epochs": 2}, 0, 6),
        ({"train__epochs": 4, "labels__method": "argmax", "labels__fixed_epochs": 1}, 2, 0),
        ({"train__epochs": 3, "labels__method": "random"}, 0, 0),
    ],
)
def test_as_many_as_are_counted(changes: dict[str, Any], recorded: int, views: int) -> None:
    wanted = config(**TINY, train__batch_size=30, **changes)
    counted = Timetable(wanted).count(len(batch_sizes(70, 30)))
    run = train(wanted)
    assert run.labeler.n_updates == counted.total()
    assert (counted["recorded"], counted["views"]) == (recorded, views)


def test_the_papers_numbers() -> None:
    """SeLa: 100 times, of which the last lies past the end, and one of images as they are; UIC: each epoch, and one."""
    of_sela = config_of({"data": {"name": "x"}, "labels": {"augmented": True}})
    assert Timetable(of_sela).count(5005) == {"views": 99, "images": 1}
    of_uic = {"labels": {"method": "argmax", "fixed_epochs": 30}, "train": {"epochs": 530}}
    assert Timetable(config_of({"data": {"name": "x"}} | of_uic)).count(5005) == {"recorded": 499, "images": 1}


def test_settings_that_suit_relabel_by_the_epochs_that_are_asked_for() -> None:
    for shape in ((400, 30), (400, 1, 8, 8), (400, 3, 32, 32)):
        as_suits = suited(shape, 5)
        a_epoch = as_suits["labels"]["n_relabels"] / as_suits["train"]["epochs"]
        assert suited(shape, 5, 3)["labels"]["n_relabels"] == 3 * a_epoch
        assert suited(shape, 5, as_suits["train"]["epochs"]) == as_suits
