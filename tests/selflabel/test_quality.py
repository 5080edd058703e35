"""Signs of quality that need no truth: against their definitions, and what a labeler keeps by them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from sklearn.metrics import adjusted_mutual_info_score, log_loss, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from otlabel.errors import FileFormatError, SelfLabelWarning
from otlabel.selflabel import Argmax, AtTimes, IndexedDataset, KMeans, MultiHead, SelfLabeler, alarms, quality

N, D, K = 600, 24, 4
MEANS = torch.eye(K).repeat_interleave(D // K, 1)  # (K, D): six numbers tell each class


def clusters(n: int = N, spread: float = 0.3) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % K
    return 2 * MEANS[truth] + spread * torch.randn(n, D, generator=generator), truth.numpy()


def knowing(n_heads: int = 2) -> MultiHead:
    """Heads that tell the clusters apart."""
    model = MultiHead(nn.Identity(), D, [K] * n_heads)
    with torch.no_grad():
        for head in model.heads:
            head.weight.copy_(MEANS)
            head.bias.zero_()
    return model


def guessing() -> MultiHead:
    """Heads whose classes have nothing to do with the clusters, cut where any view crosses."""
    torch.manual_seed(3)
    model = MultiHead(nn.Sequential(nn.Linear(D, 64), nn.Tanh(), nn.Linear(64, D)), D, [K, K])
    with torch.no_grad():
        model.backbone[0].weight.mul_(20)
    return model


def batches(inputs: Tensor, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    return [(index, inputs[index]) for index in torch.arange(len(inputs)).split(size)]


def test_signs_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(80, K)), rng.integers(-1, K, 80)
    labelled = labels >= 0
    assert quality.same_label(scores, labels) == np.mean(scores.argmax(1)[labelled] == labels[labelled])
    chances = torch.softmax(torch.from_numpy(scores), 1).numpy()[labelled]
    assert quality.label_loss(scores, labels) == pytest.approx(log_loss(labels[labelled], chances))
    heads = [rng.integers(0, K, 80) for _ in range(3)]
    pairs = [normalized_mutual_info_score(heads[i], heads[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert quality.heads_agree(heads) == pytest.approx(np.mean(pairs))
    assert np.isnan(quality.heads_agree(heads[:1]))
    assert quality.same_label(scores, np.full(80, -1)) == 0.0
    labels, classes = rng.integers(0, K, (3, 80)), rng.integers(0, K, (3, 80))
    labels[0] = 3 - classes[1]  # under other names
    labels[1, :40] = classes[2, :40]
    foreseen = quality.heads_foresee(classes, labels)
    wanted = [adjusted_mutual_info_score(labels[head], classes[(head + 1) % 3]) for head in range(3)]
    assert foreseen == pytest.approx(np.maximum(wanted, 0), abs=1e-9)
    assert foreseen[0] == pytest.approx(1)
    assert quality.heads_foresee(classes[:1], classes[:1]) == pytest.approx([1.0])
    assert quality.heads_foresee(classes[:1], np.full((1, 80), -1)) == [0.0]


def test_neighbours_leave_the_sample_out() -> None:
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(60, D)), rng.integers(0, 2, 60)
    unit = features - features.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    right = 0
    for row in range(60):
        others = np.arange(60) != row
        fitted = KNeighborsClassifier(9, metric="cosine").fit(unit[others], labels[others])
        right += fitted.predict(unit[row : row + 1])[0] == labels[row]
    assert quality.neighbours_agree(features, labels, k=9, batch=7) == pytest.approx(right / 60)


def test_views_are_mild_random_and_by_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(40, 3, 12, 20, generator=generator)
    vectors = torch.rand(40, 8, generator=generator)

    def view(inputs: Any, seed: int = 0) -> Any:
        return quality.common_view(inputs, torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(view(images), view(images))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(view(images), view(images, 1))
    for scale in (1.0, 255.0):  # of any scale
        torch.testing.assert_close(view(images * scale), view(images) * scale, rtol=1e-4, atol=1e-4 * scale)
    flat = torch.full((50, 1, 9, 9), 3.0)
    torch.testing.assert_close(view(flat), flat)  # what has no contrast stays
    swapped = view(vectors)
    changed = swapped != vectors
    assert 0.4 < changed.float().mean() < 0.55
    for column in range(8):
        assert set(swapped[:, column].tolist()) <= set(vectors[:, column].tolist())
    for inputs in (images, vectors):
        torch.testing.assert_close(quality.common_view(inputs, torch.Generator(), 0.0), inputs, rtol=1e-5, atol=1e-5)
    coloured = images.mean(1, keepdim=True) + torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    spread = (view(coloured.repeat(20, 1, 1, 1)).std(1).mean((1, 2)) / coloured[0].std(0).mean()).numpy()
    assert 0.1 < np.mean(spread < 1e-3) < 0.3  # without colours
    both = view({"pixel_values": images, "extra": vectors, "ids": torch.arange(40)})
    assert torch.equal(both["extra"], vectors)
    assert torch.equal(both["pixel_values"], view(images))
    assert view(torch.arange(40)) is None
    assert view({"input_ids": torch.ones(40, 9, dtype=torch.long)}) is None


def test_quality_is_high_where_labels_mean_something() -> None:
    inputs, _ = clusters()
    good, bad = (SelfLabeler(N, [K, K]) for _ in range(2))
    assert good.quality is None
    assert torch.equal(good.best_labels, good.labels)
    good.update(knowing(), batches(inputs))
    bad.update(guessing(), batches(inputs))
    assert good.quality is not None
    assert bad.quality is not None
    assert good.quality > 0.6 > 0.3 > bad.quality
    assert good.quality == np.mean([record["quality"] for record in good.history])


def test_quality_is_by_hand_and_in_any_order() -> None:
    inputs, _ = clusters(spread=2.0)
    model = guessing()
    found = []
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1)).split(70)
    for loader in (batches(inputs), [(index, inputs[index]) for index in shuffled], iter(batches(inputs, 7))):
        labeler = SelfLabeler(N, [K, K], seed=4)
        labeler.update(model, loader)
        found.append([record["quality"] for record in labeler.history])
    assert found[0] == found[1] == found[2]

    chosen: list[Tensor] = []

    def as_it_is(some: Tensor, generator: torch.Generator) -> Tensor:
        chosen.append(some)
        return some

    labeler = SelfLabeler(N, [K, K], seed=4, views=as_it_is)
    model.heads[1].load_state_dict(model.heads[0].state_dict())
    labeler.update(model, batches(inputs))
    assert labeler.quality == pytest.approx(1.0, abs=0.05)  # but for what exact sizes have moved
    looked_at = torch.cat(chosen)
    assert len(looked_at) == quality.LEAST
    assert len(set(map(tuple, looked_at.tolist())) - set(map(tuple, inputs.tolist()))) == 0


def test_potentials_count_and_classes_that_no_head_knows() -> None:
    inputs, truth = clusters()
    model = knowing()
    with torch.no_grad():
        model.heads[0].bias[0] += 100.0  # a class that would take all
    labeler = SelfLabeler(N, [K, K])
    labeler.update(model, batches(inputs))
    assert labeler.history[0]["quality"] == pytest.approx(labeler.history[1]["quality"], abs=0.05)
    labeler = SelfLabeler(N, [K, K], labeling=KMeans(n_components=3))
    labeler.update(drawn := knowing(), batches(inputs))
    assert labeler.quality is not None
    assert labeler.quality > 0.6  # the head of before knew these clusters by other names
    assert normalized_mutual_info_score(truth, labeler.labels[0]) > 0.95
    assert drawn.heads[0].weight.abs().max() < 1  # drawn anew


def test_no_quality_where_nothing_can_be_looked_at() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, D), nn.Linear(D, K))
    labeler = SelfLabeler(N, K)
    tokens = torch.randint(9, (N, 5))
    labeler.update(model, batches(tokens))
    assert labeler.quality is None
    assert "quality" not in labeler.history[0]
    labeler = SelfLabeler(N, K, views=lambda x, generator: x.flip(1))
    labeler.update(model, batches(tokens))
    assert labeler.quality == pytest.approx(1.0, abs=0.1)
    recorded = SelfLabeler(N, [K, K], labeling=Argmax())
    recorded.record(torch.arange(N), [torch.randn(N, K)] * 2)
    recorded.update(knowing())
    assert recorded.quality is None


def ruined() -> Iterator[tuple[MultiHead, bool]]:
    yield knowing(), True
    yield guessing(), False
    yield guessing(), False


def test_the_best_labels_are_kept_and_saved() -> None:
    inputs, truth = clusters()
    labeler = SelfLabeler(N, [K, K])
    for model, _ in ruined():
        labeler.update(model, batches(inputs))
    assert labeler.best_update == 1
    assert labeler.best_quality == np.mean([record["quality"] for record in labeler.history[:2]])
    assert normalized_mutual_info_score(truth, labeler.best_labels[0]) > 0.95
    assert normalized_mutual_info_score(truth, labeler.labels[0]) < 0.7
    image = io.BytesIO()
    torch.save(labeler.state_dict(), image)
    image.seek(0)
    state = torch.load(image, weights_only=True)
    other = SelfLabeler(N, [K, K])
    other.load_state_dict(state)
    assert torch.equal(other.best_labels, labeler.best_labels)
    assert (other.best_update, other.best_quality, other.quality) == (1, labeler.best_quality, labeler.quality)
    for change in ({"update": 9}, {"quality": 1.5}, {"labels": state["best"]["labels"] + K}):
        with pytest.raises(FileFormatError, match="best labels"):
            other.load_state_dict(state | {"best": state["best"] | change})
    del state["best"]  # of an earlier version
    other.load_state_dict(state)
    assert other.best_update is None


def test_views_leave_modes_averages_and_random_numbers() -> None:
    inputs, _ = clusters()
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(0.5))
    backbone[0].num_batches_tracked += 3
    for mode in ("calibrated", "eval", "train"):
        model = MultiHead(backbone, D, [K, K]).train()
        with_views = SelfLabeler(N, [K, K], mode=mode)
        without = SelfLabeler(N, [K, K], mode=mode, views=lambda inputs, generator: None)
        states = []
        for labeler in (with_views, without):
            before = [tensor.clone() for tensor in model.state_dict().values()]
            torch.manual_seed(1)
            labeler.update(model, batches(inputs))
            states.append([torch.get_rng_state(), *(tensor.clone() for tensor in model.state_dict().values())])
            for tensor, old in zip(model.state_dict().values(), before, strict=True):
                tensor.copy_(old)
        assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
        assert with_views.quality is not None
        assert model.training


def on_two(group: Any, how: str) -> tuple[float | None, list[Any]]:
    import torch.distributed as dist

    inputs, _ = clusters(spread=2.0)
    data = IndexedDataset(TensorDataset(inputs))
    loader = DataLoader(data, 50, sampler=DistributedSampler(data, 2, dist.get_rank(group)))
    labeler = SelfLabeler(N, [K, K], labeling=KMeans() if how == "kmeans" else None, views=lambda x, generator: x * 1.5)
    labeler.update(knowing(), loader)
    return labeler.quality, labeler.best_labels.tolist()


def test_processes_have_the_quality_of_all() -> None:
    one, other = on_ranks(on_two, 2, "transport")
    assert one == other
    inputs, _ = clusters(spread=2.0)
    labeler = SelfLabeler(N, [K, K], views=lambda x, generator: x * 1.5)
    labeler.update(knowing(), batches(inputs))
    assert one[0] == pytest.approx(labeler.quality)


# ---- alarms ----


def course(*qualities: float, loss: float = 1.0, epochs: float = 3.0) -> list[dict[str, Any]]:
    """A history of one head of ten classes, its quality at each relabelling."""
    return [
        {"update": number, "head": 0, "churn": 0.2, "loss": loss, "epochs_trained": epochs * number, "quality": value}
        for number, value in enumerate(qualities)
    ]


@pytest.mark.parametrize(
    ("history", "share_done", "kind", "said"),
    [
        (course(0.1, 0.3, 0.6, 0.7), 0.9, "", ""),
        (course(0.01, 0.02, 0.03, 0.03), 0.2, "", ""),  # too early to tell
        (course(0.01, 0.02, 0.03, 0.03), 0.25, "poor", "quality is 0.03.*field of view"),
        (course(0.01, 0.02, 0.03, 0.03), None, "", ""),
        (course(0.01, 0.02, 0.03, 0.03, 0.04), None, "poor", "quality is 0.04"),
        (course(0.05, 0.1, 0.13, 0.12), 0.9, "", ""),  # little, but no guess
        (course(0.02, 0.05, 0.2, 0.2, loss=0.05), 0.1, "by heart", "loss is 0.05.*by heart.*Augment"),
        (course(0.1, 0.5, 0.6, 0.7, loss=0.05), 0.5, "", ""),
        (course(0.02, 0.05, 0.2, 0.2, loss=0.05, epochs=0.5), 0.2, "", ""),  # an epoch and a half, of many
        (course(0.02, 0.05, 0.2, 0.2, loss=0.05, epochs=0.5), 0.3, "by heart", "by heart"),  # of five
        (course(0.02, 0.05, 0.2, 0.2, loss=0.05, epochs=0.3), 0.3, "", ""),  # less than one tells nothing
        (course(0.02, 0.05, 0.2, 0.2, 0.2, loss=0.05, epochs=1.23), None, "by heart", "by heart"),
        (course(0.1, 0.55, 0.4, 0.27), 0.9, "ruined", "fallen from 0.55, after relabelling 2, to 0.27.*best_labels"),
        (course(0.1, 0.55, 0.5, 0.27), 0.2, "", ""),  # once may be chance
        (course(0.1, 0.55, 0.2, 0.5), 0.9, "", ""),  # it has recovered
        (course(0.1, 0.55, 0.2, 0.2), 0.2, "ruined", "fallen"),  # at any time
    ],
)
def test_runs_that_go_wrong_are_told(
    history: list[dict[str, Any]], share_done: float | None, kind: str, said: str
) -> None:
    found = alarms.raised(history, [10], share_done)
    assert set(found) == ({kind} if kind else set())
    if kind:
        assert re.search(said, found[kind])


def test_histories_without_quality_say_nothing_of_it() -> None:
    history = [{key: value for key, value in line.items() if key != "quality"} for line in course(0.1, 0.1, 0.1, 0.1)]
    assert alarms.raised(history, [10], 0.9) == {}


def test_views_that_may_be_of_no_class_say_little_of_learning_by_heart() -> None:
    history = course(0.02, 0.05, 0.2, 0.2, loss=0.05)
    assert set(alarms.raised(history, [10], 0.1)) == {"by heart"}
    assert alarms.raised(history, [10], 0.1, views_keep=False) == {}
    nearly_chance = course(0.02, 0.05, 0.06, 0.06, loss=0.05)
    assert set(alarms.raised(nearly_chance, [10], 0.1, views_keep=False)) == {"by heart"}


def test_features_that_stay_are_told() -> None:
    inputs, _ = clusters()
    model = MultiHead(nn.Linear(D, D), D, [K, K])
    for moves in (False, True):
        labeler, said = SelfLabeler(N, [K, K], views=lambda x, generator: x + 0.1), []
        for _ in range(4):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                labeler.update(model, batches(inputs))
            said += [str(one.message) for one in caught]
            for _ in range(2):
                labeler.loss([torch.zeros(N, K)] * 2, torch.arange(N))
            with torch.no_grad():
                model.heads[0].weight.normal_()
                if moves:
                    model.backbone.weight.normal_()
            state = labeler.state_dict()
            labeler = SelfLabeler(N, [K, K], views=lambda x, generator: x + 0.1)
            labeler.load_state_dict(state)
        assert any("only the heads learn" in text for text in said) != moves
        assert all((record["feature_drift"] > 0.5) == moves for record in labeler.history[2:])


@pytest.mark.parametrize("mode", ["calibrated", "train"])
def test_features_of_frozen_weights_stay_while_averages_of_new_layers_settle(mode: str) -> None:
    inputs, _ = clusters()
    model = MultiHead(nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.ReLU(), nn.BatchNorm1d(D)), D, [K, K])
    labeler = SelfLabeler(N, [K, K], mode=mode, views=lambda x, generator: x + 0.1)
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labeler.update(model.train(), batches(inputs))
        for index, shown in batches(inputs) * 3:  # averages move, weights do not
            labeler.loss([torch.zeros(len(index), K)] * 2, index)
            model(shown)
    drifts = [record.get("feature_drift") for record in labeler.history[::2]]
    known = [drift for drift in drifts if drift is not None]
    assert len(known) >= 2
    assert max(known) < alarms.STILL
    assert any("only the heads learn" in text for text in labeler.history[-1]["alarms"])


def test_a_ruined_run_is_told_as_it_trains() -> None:
    inputs, _ = clusters()
    labeler = SelfLabeler(N, [K, K], schedule=AtTimes([0, 1, 2, 3, 4, 30]))
    said: list[str] = []
    for epoch, model in enumerate([guessing(), knowing(), knowing(), guessing(), guessing()]):
        assert labeler.due(epoch)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            labeler.update(model, batches(inputs))
        said += [str(one.message) for one in caught if issubclass(one.category, SelfLabelWarning)]
        for _ in range(3):
            labeler.loss([torch.zeros(N, K)] * 2, torch.arange(N))
    assert any("quality has fallen" in text for text in said)
