"""What runs learn and what they learn from: labels balanced, of views, fixed, turned, and kept in the last epochs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import config

from otlabel import metrics
from otlabel.commands.train import _Table
from otlabel.errors import FileFormatError
from otlabel.selflabel import save_labels
from otlabel.selflabel.quality import common_view
from otlabel.training import loaders, setup
from otlabel.training.augment import plain
from otlabel.training.config import Config, config_of
from otlabel.training.data import Images, load_images
from otlabel.training.evaluate import features_of
from otlabel.training.run import Run, train


def test_features_get_better_than_those_of_the_untrained_network() -> None:
    run = train(config(data__n_samples=None, train__epochs=6, evaluation__baseline=True))
    assert run.result["probe"] > run.result["untrained"]["probe"]
    assert run.result["labels"]["nmi"] > 0.4
    assert run.labeler.labels.shape == (2, 1297)
    np.testing.assert_array_equal(np.sort(np.bincount(run.labeler.labels[0])), [129] * 3 + [130] * 7)


def test_nothing_is_read_where_nobody_wants_features_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otlabel.training.evaluate.features_of", None)  # whose features of a million images fill memory
    wanted = config(train__epochs=1, data__n_samples=40, evaluation__knn=0, evaluation__probe=False)
    assert "knn" not in train(wanted).result


def test_features_of_thinned_images_are_judged_by_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on other data, in the channels of the first."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 3, 9, 9)).astype(np.uint8)
    labels = np.arange(60) % 2
    colours[labels == 1, :, :4] //= 4
    other = Images("", *map(torch.from_numpy, (colours[:40], labels[:40], colours[40:], labels[40:])))
    monkeypatch.setattr(setup, "load_images", lambda name, **given: other)
    wanted = config(data__imbalance="heavy", train__epochs=1, evaluation__other="cifar10", evaluation__baseline=True)
    run = train(wanted)
    whole = load_images("digits", n_samples=300)
    assert run.images.test is not None
    known, test = (features_of(run.model, part, torch.device("cpu")) for part in (whole.train, run.images.test))
    assert run.result["knn"] == metrics.knn_accuracy(known, whole.train_labels, test, run.images.test_labels, k=50)
    assert {"other_knn", "other_probe"} <= run.result.keys() & run.result["untrained"].keys()
    assert run.result["other_probe"] > 0.8
    other = Images("", other.train, other.train_labels)
    with pytest.raises(ValueError, match="'cifar10' has no true labels and test images"):
        train(wanted)


Steps = list[tuple[int, np.ndarray, np.ndarray]]  # epoch, samples, and all labels at that time


def watched(wanted: Config) -> tuple[Run, Steps]:
    """A run, and what each of its batches was trained on."""
    run, steps = Run(wanted, None), []
    loss = run.module.loss

    def watching(index: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        steps.append((run.trainer.current_epoch, index.numpy(), run.labeler.labels[0].numpy().copy()))
        return loss(index, samples)

    run.module.loss = watching
    run.fit()
    return run, steps


@pytest.mark.parametrize("changes", [
    {"labels__method": "kmeans"},  # relabelled within epochs, too
    {"labels__method": "argmax"},
    {"labels__method": "truth", "train__uniform": True, "data__imbalance": "heavy"},
    {"labels__range": (0.1, 5.0), "train__uniform": True},
], ids=["k-means", "argmax", "truth", "Sinkhorn"])  # fmt: skip
def test_batches_are_balanced_by_the_labels_they_are_trained_on(changes: dict[str, Any]) -> None:
    _, steps = watched(config(**{"model__heads": [12]} | changes))
    parts: dict[tuple[int, bytes], list[np.ndarray]] = {}
    for epoch, index, labels in steps:
        parts.setdefault((epoch, labels.tobytes()), []).append(index)
    biggest = 0.0
    for (_, stored), batches in parts.items():
        labels = np.frombuffer(stored, np.int64)
        sizes = np.bincount(labels)
        counts = np.bincount(labels[np.concatenate(batches)], minlength=len(sizes))[sizes > 0]
        fair = counts.sum() / len(counts)
        whole = counts.sum() == len(labels)  # else a draw without repetition from an epoch that is balanced
        assert np.abs(counts - fair).max() <= 1 + (not whole) * 4 * np.sqrt(fair), (sizes, counts)
        biggest = max(biggest, sizes.max() / sizes[sizes > 0].min())
    assert biggest > 1.5  # classes of unequal sizes were balanced


def test_fixed_labels_are_balanced_where_that_is_asked_for(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [210, 60, 30])
    save_labels(tmp_path / "labels.h5", labels[None], [3])
    fixed = {"labels__method": "fixed", "labels__file": str(tmp_path / "labels.h5"), "train__epochs": 1}
    drawn = np.concatenate([index for _, index, _ in watched(config(**fixed, train__uniform=True))[1]])
    np.testing.assert_array_equal(np.bincount(labels[drawn]), 100)
    drawn = np.concatenate([index for _, index, _ in watched(config(**fixed))[1]])
    np.testing.assert_array_equal(np.sort(drawn), np.arange(300))


@pytest.mark.parametrize("method", ["kmeans", "argmax", "sinkhorn"])
def test_of_several_heads_each_is_balanced_by_weights(method: str) -> None:
    uniform = True if method == "sinkhorn" else None
    run, steps = watched(config(labels__method=method, train__epochs=1, train__uniform=uniform))
    assert run.module._class_weight == "balanced"
    np.testing.assert_array_equal(np.sort(np.concatenate([index for _, index, _ in steps])), np.arange(300))


def test_rotation_beside_labels_is_judged_on_all_turns_and_labels_on_upright_images_alone() -> None:
    wanted = config(train__rotation=0.5, augment__rotate=0.0, augment__shift=0.0)
    run = Run(wanted, None)
    turn_head = run.module.turn_head
    assert turn_head is not None
    assert isinstance(run.samples, torch.Tensor)
    images = plain(run.samples[:40])
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    run.model.train()
    with torch.no_grad():
        features = run.model.features(turned)
        loss = (
            sum(
                F.cross_entropy(head(features[:40]), run.labeler.labels[t, :40])
                for t, head in enumerate(run.model.heads)
            )
            / 2
        )
        loss = loss + 0.5 * F.cross_entropy(turn_head(features), torch.arange(160) // 40)
    found = run.module.loss(torch.arange(40), run.samples[:40])
    assert float(found) == pytest.approx(float(loss), rel=1e-5)


def test_what_cannot_be_turned_is_refused_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((9, 8, 12), np.uint8))
    np.save(tmp_path / "vectors.npy", np.zeros((9, 12), np.float32))
    for name, told in (("wide", "square"), ("vectors", "feature vectors")):
        given = {"data": {"name": str(tmp_path / f"{name}.npy")}, "train": {"rotation": 1.0}}
        with pytest.raises(ValueError, match=told):
            train(config_of(given), tmp_path / name)


@pytest.mark.parametrize("method", ["argmax", "sinkhorn"])
def test_labels_stay_in_the_last_epochs(method: str) -> None:
    """They are of the weights and images as they are when these epochs begin."""
    run = Run(config(labels__method=method, labels__fixed_epochs=2, model__heads=[4]), None)
    seen: list[list[int]] = []
    update = run.labeler.update

    def watched(model: Any, loader: Any, **given: Any) -> Any:
        seen.append([run.trainer.current_epoch, loader is not None])
        return update(model, loader, **given)

    run.labeler.update = watched  # type: ignore[method-assign]
    labels: list[torch.Tensor] = []
    run.fit(lambda line: labels.append(run.labeler.labels.clone()))
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[1], labels[2])
    assert torch.equal(labels[2], labels[3])
    assert seen[-1] == [2, True]
    if method == "argmax":
        assert seen == [[1, False], [2, True]]
    with pytest.raises(ValueError, match="fixed_epochs is 4, of 4 epochs in all"):
        Run(config(labels__fixed_epochs=4), None)


@pytest.mark.parametrize("fixed", [0, 1])
def test_labels_of_views_and_in_the_end_of_images_as_they_are(fixed: int) -> None:
    """Views are new ones each time; quality looks at views of the images as they are, however they are labelled."""
    run = Run(config(labels__augmented=True, labels__n_relabels=3, train__epochs=3, labels__fixed_epochs=fixed), None)
    as_they_are, seen, update = plain(run.images.train), [], run.labeler.update

    def watched(model: Any, loader: Any, **given: Any) -> Any:
        index, inputs = (list(parts) for parts in zip(*loader, strict=True))
        pairs = [one if isinstance(one, list) else [one, one] for one in inputs]
        views, images = (torch.cat([one[place] for one in pairs]) for place in range(2))
        torch.testing.assert_close(torch.cat(index), torch.arange(300))
        torch.testing.assert_close(images, as_they_are)
        seen.append(views)
        return update(model, loader, **given)

    run.labeler.update = watched  # type: ignore[method-assign]
    run.fit()
    *before, last = seen
    torch.testing.assert_close(last, as_they_are)
    assert len(before) == 2
    for number, views in enumerate(before):
        assert not any(torch.equal(views, other) for other in [*before[:number], as_they_are])
    reading = loaders.Reading(run.config.augment, 3)
    view = reading.common_view([before[0], as_they_are], torch.Generator().manual_seed(1))
    torch.testing.assert_close(view, common_view(as_they_are, torch.Generator().manual_seed(1)))


def test_labels_of_views_are_of_sinkhorn_and_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="augmented is of method = 'sinkhorn' or 'argmax', this is 'kmeans'"):
        config(labels__augmented=True, labels__method="kmeans")
    assert config(labels__augmented=False, labels__method="kmeans").labels.augmented is False
    np.save(tmp_path / "vectors.npy", np.zeros((9, 12), np.float32))
    given = {"data": {"name": str(tmp_path / "vectors.npy")}, "labels": {"augmented": True}}
    with pytest.raises(FileFormatError, match="augmented is for images; these data are feature vectors"):
        train(config_of(given), None)


def test_time_to_go_is_told_once_by_an_epoch_that_labels_as_the_others_do(capsys: pytest.CaptureFixture[str]) -> None:
    table = _Table(config(train__epochs=50, labels__n_relabels=50))
    for epoch, relabellings, seconds in ((1, 7, 40.0), (2, 3, 20.0), (3, 1, 10.0), (4, 1, 10.0)):
        line = {"epoch": epoch, "loss": 1.0, "lr": 0.1, "relabellings": relabellings, "seconds": seconds}
        table(line)
    lines = capsys.readouterr().out.splitlines()
    assert [number for number, text in enumerate(lines) if "to go" in text] == [4]
    assert lines[4] == "About 8 min to go: 50 epochs."
    assert max(map(len, lines)) <= 80


def test_a_rate_that_falls_linearly() -> None:
    run = Run(config(train__decay="linear"), None)
    rates: list[float] = []
    run.fit(lambda line: rates.append(line["lr"]))
    assert rates == pytest.approx([0.1 * (1 - (e + 0.8) / 4) for e in range(4)])


def test_one_head_at_a_time_is_labelled_and_the_others_stay() -> None:
    run = Run(config(labels__in_turn=True, labels__n_relabels=3, labels__schedule="linear", train__epochs=3), None)
    labels = [run.labeler.labels.clone()]
    run.fit(lambda line: labels.append(run.labeler.labels.clone()))
    changed = [[not torch.equal(*both) for both in zip(*pair, strict=True)] for pair in itertools.pairwise(labels)]
    assert changed == [[True, False], [False, True], [True, False]]
    assert [record["churn"] > 0 for record in run.labeler.history] == [True, False, False, True, True, False]


def test_labels_that_do_not_change() -> None:
    for method in ("random", "truth"):
        run = Run(config(labels__method=method, train__epochs=1), None)
        before = run.labeler.labels.clone()
        run.fit()
        assert torch.equal(before, run.labeler.labels)
        assert run.labeler.history == []
    assert run.images.train_labels is not None
    assert torch.equal(before[0], run.images.train_labels)


def test_feature_vectors_need_no_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(5, 12))
    np.save(tmp_path / "x.npy", (centres[rng.integers(5, size=200)] + rng.normal(size=(200, 12))).astype(np.float32))
    given = {
        "data": {"name": str(tmp_path / "x.npy")},
        "model": {"backbone": "mlp", "options": {"width": 16}, "heads": [5]},
        "train": {"epochs": 2, "threads": 1},
    }
    run = train(config_of(given))
    np.testing.assert_array_equal(np.bincount(run.labeler.labels[0]), [40] * 5)
    assert run.result["sizes"] == [[40] * 5]  # what can be told without truth
    assert run.result["churn"] == run.labeler.history[-1]["churn"]
    assert run.result["quality"] == run.labeler.best_quality
    with pytest.raises(FileFormatError, match="feature vectors"):
        train(config_of(given | {"augment": {"flip": True}}))
