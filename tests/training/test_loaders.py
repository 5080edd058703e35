"""How samples come: the same whoever reads them, each once, in shares, anew where labels are; runs on image files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import assert_same, make_images

from otlabel.errors import FileFormatError
from otlabel.training.augment import Augmentation, plain
from otlabel.training.config import Config, config_of
from otlabel.training.data import Images, Streamed, load_images
from otlabel.training.images import Crop
from otlabel.training.loaders import Reading, TrainingBatches, as_views, batch_sizes, in_order
from otlabel.training.run import train

pytest.importorskip("PIL.Image")
CPU = torch.device("cpu")
CROP = Crop((0.3, 1.0), (0.75, 4 / 3), flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), 8, 2, (30, 90))


def batches_of(samples: Any, size: int = 12, **given: Any) -> TrainingBatches:
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    usual = {"order": lambda epoch: order, "epoch": lambda: 3, "version": lambda: 0, "crop": CROP, "seed": 5}
    return TrainingBatches(samples, size, **usual | {"workers": 0, "share": (0, 1)} | given)


def test_views_of_files_are_the_same_whoever_reads_them(folder: Path) -> None:
    files = load_images(folder, size=24).train
    alone, helped = batches_of(files), batches_of(files, workers=2)
    for _ in range(2):  # the second time by the same processes
        for one, other in zip(alone, helped, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    other_epoch = next(iter(batches_of(files, epoch=lambda: 4)))
    first = next(iter(alone))
    assert torch.equal(other_epoch[0], first[0])
    assert not torch.equal(other_epoch[1], first[1])
    helped.close()


def test_what_was_read_ahead_is_read_anew_once_the_order_has_changed(folder: Path) -> None:
    files = load_images(folder, size=8).train
    orders = [list(range(160)), list(reversed(range(160)))]
    version, seen = 0, []
    batches = batches_of(
        files,
        16,
        order=lambda epoch: (orders[version][place] for place in range(160)),
        version=lambda: version,
        workers=2,
    )
    for number, (index, _) in enumerate(batches):
        seen.append(index.tolist())
        version = int(number >= 3)
    assert [number for batch in seen[:4] for number in batch] == orders[0][:64]
    assert [number for batch in seen[4:] for number in batch] == orders[1][64:]
    batches.close()


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_shares_of_batches_and_of_all_samples_make_the_whole(folder: Path, kind: str) -> None:
    samples: Any = load_images(folder, size=8).train[:157]
    samples = samples if kind == "files" else samples.all()
    whole = [index for index, _ in batches_of(samples, 12)]
    parts = [[index for index, _ in batches_of(samples, 12, share=(rank, 2))] for rank in range(2)]
    for index, one, other in zip(whole, *parts, strict=True):
        assert len(one) == len(other)
        assert set(index.tolist()) == {*one.tolist(), *other.tolist()}
    found = [np.concatenate([index for index, _ in in_order(samples, share=(rank, 3))]) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(157))


@pytest.mark.parametrize("n_samples", [1, 2, 11, 12, 13, 24, 25, 26, 27, 36])
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_no_process_gets_a_batch_of_one_sample(n_samples: int, n_ranks: int) -> None:
    sizes = batch_sizes(n_samples, 12, n_ranks)
    assert sum(sizes) == n_samples
    assert n_samples < 2 * n_ranks or min(sizes) >= min(2 * n_ranks, n_samples)


def test_views_to_label_come_with_the_images_as_they_are(folder: Path) -> None:
    files = load_images(folder, size=16).train[:40]
    augment = Augmentation(crop=(0.3, 0.6), jitter=0.5, grayscale=0.5, blur=0.5)
    reading, seen = Reading(augment, 7), []
    for draw in (0, 0, 1):
        (index, inputs), *_ = as_views(files, augment, 7, draw, CPU)
        assert torch.equal(index, torch.arange(40))
        assert torch.equal(inputs[1], files.all())
        seen.append(reading.seen(inputs))
        view = reading.common_view(inputs, torch.Generator().manual_seed(1))
        assert torch.equal(view, reading.common_view(plain(files.all()), torch.Generator().manual_seed(1)))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


# ---- runs ----


def wanted(folder: Path, **changes: Any) -> Config:
    given = {
        "data": {"name": str(folder), "size": 16},
        "model": {"backbone": "small_convnet", "options": {"widths": [8, 16], "strides": [2, 2]}, "heads": [20, 10]},
        "labels": {"n_relabels": 4, "schedule": "linear"},
        "augment": {"crop": [0.3, 1.0], "aspect": [0.75, 1.33], "flip": True, "jitter": 0.3, "normalise": "imagenet"},
        "train": {"epochs": 2, "batch_size": 32, "threads": 1},
        "evaluation": {"probe": False},
    }
    return config_of(given).with_values(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels__augmented": True},
        {"labels__method": "kmeans", "model__heads": [12], "model__sobel": True},
        {"labels__method": "argmax", "model__heads": [12], "augment__normalise": "data"},
    ],
    ids=["views", "k-means", "argmax"],
)
def test_a_run_on_image_files_is_the_same_with_and_without_processes_that_read(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    alone = train(wanted(folder, **changes))
    helped = train(wanted(folder, data__workers=2, **changes), tmp_path)
    assert_same(alone, helped)
    assert alone.result == helped.result
    assert 0 < alone.result["knn"] <= 1
    assert json.loads((tmp_path / "config.json").read_text())["data"] == helped.images.train.fingerprint


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_a_run_in_one_line(tmp_path: Path, folder: Path, workers: int) -> None:
    for path in sorted((folder / "val").rglob("*.JPEG")):
        (tmp_path / f"{path.parent.name}-{path.name}").symlink_to(path)
    broken = tmp_path / "n00000003-broken.JPEG"
    broken.write_bytes(next((folder / "val").rglob("*.JPEG")).read_bytes()[:300])
    with pytest.raises(FileFormatError, match=r"^\S+n00000003-broken\.JPEG cannot be read as an image: .+") as caught:
        train(wanted(tmp_path, data__workers=workers))
    assert str(caught.value).isprintable()


def test_samples_that_only_pass_by_are_trained_on_and_labelled() -> None:
    """As a DataLoader of one's own yields them: in any order, in batches of any size."""
    whole = load_images("digits", n_samples=150)
    assert isinstance(whole.train, torch.Tensor)

    class Passing:
        def __iter__(self) -> Iterator[tuple[list[int], torch.Tensor]]:
            order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
            for index in order.split(23):
                yield index.tolist(), whole.train[index]

    images = Images("mine", Streamed(Passing(), (150, 1, 8, 8)), whole.train_labels, whole.test, whole.test_labels)
    changes = {"data__name": "mine", "augment__normalise": "half", "model__heads": [10]}
    run = train(wanted(Path(), **changes, labels__augmented=True), images=images)
    np.testing.assert_array_equal(np.bincount(run.labeler.labels[0]), [15] * 10)
    assert run.result["labels"]["nmi"] > 0
    assert 0 < run.result["knn"] <= 1
    for shape, told in (((151, 1, 8, 8), "samples never came"), ((149, 1, 8, 8), "out of range")):
        wrong = Images("mine", Streamed(Passing(), shape))
        with pytest.raises(ValueError, match=told):
            train(wanted(Path(), **changes), images=wrong)
