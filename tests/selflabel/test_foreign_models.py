"""Models that nobody made for otlabel: each trains a few steps on its own labels, which must help and be balanced."""

from __future__ import annotations

import io
import math
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from otlabel.selflabel import EverySteps, IndexedDataset, MultiHead, SelfLabeler
from otlabel.selflabel.model import unwrapped

N, BATCH, STEPS = 64, 16, 32
HEADS = [4, 3]

# An untrained model would give most samples one class: the labeler says so, and is right.
pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.SelfLabelWarning")


def first_part(output: Any) -> Tensor:
    """Mean over tokens of the last hidden states."""
    return output.last_hidden_state.mean(1)


def called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (list, tuple)) else model(inputs)


def train(model: nn.Module, items: list[Any], n_classes: int | list[int], *, rate: float = 0.01, **given: Any) -> None:
    """Relabel at steps 0 and 16; then labels are balanced, and the loss on fixed labels falls from log K."""
    labeler = SelfLabeler(len(items), n_classes, schedule=EverySteps(STEPS // 2), **given)
    data = IndexedDataset(items, inputs=lambda item: item)
    full, loader = DataLoader(data, 30), DataLoader(data, BATCH, shuffle=True, generator=torch.Generator())
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    modes = [module.training for module in model.modules()]
    losses: list[float] = []
    for step, (index, inputs) in zip(range(STEPS), chain.from_iterable(repeat(loader)), strict=False):
        if labeler.due(step=step):
            labeler.update(model, full)
            assert [module.training for module in model.modules()] == modes
        loss = labeler.loss(called(model, inputs), index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert labeler.n_updates == 2
    for labels, k in zip(labeler.labels, labeler.n_classes, strict=True):
        counts = np.bincount(labels.numpy(), minlength=k)
        assert counts.min() >= len(items) // k
        assert counts.max() <= math.ceil(len(items) / k)
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    assert np.mean(losses[-4:]) < 0.7 * np.mean(np.log(labeler.n_classes))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- what is labelled ----


def sentences() -> list[dict[str, Tensor]]:
    """Tokens of which most tell one of four groups; every third sentence is padded."""
    tokens = torch.randint(5, 40, (N, 8))
    tokens[:, :5] = (torch.arange(N) % 4 + 1)[:, None]
    mask = torch.ones_like(tokens)
    mask[::3, 6:] = 0
    return [{"input_ids": one, "attention_mask": other} for one, other in zip(tokens, mask, strict=True)]


def images(size: int = 16) -> list[Tensor]:
    """Four stripes patterns in noise."""
    waves = torch.stack([torch.sin(torch.arange(size) * (k + 1) * 0.7) for k in range(4)])
    return list(torch.randn(N, 3, size, size) * 0.3 + waves[torch.arange(N) % 4][:, None, None, :])


def table() -> list[Tensor]:
    """Flowers, standardised."""
    rows = pytest.importorskip("sklearn.datasets").load_iris().data
    return list(torch.from_numpy((rows - rows.mean(0)) / rows.std(0)).float())


# ---- Hugging Face ----


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def tiny(transformers: Any, **given: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8, **given,
    )  # fmt: skip


def test_bert_as_backbone(transformers: Any) -> None:
    """Its pooler's output is found without being told."""
    train(MultiHead(transformers.BertModel(tiny(transformers)), 16, HEADS), sentences(), HEADS)


def test_distilbert_as_backbone(transformers: Any) -> None:
    config = transformers.DistilBertConfig(
        vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=8
    )
    backbone = transformers.DistilBertModel(config)
    with pytest.raises(TypeError, match="pass pool="):
        MultiHead(backbone, 16, HEADS)(**{name: value[None] for name, value in sentences()[0].items()})
    train(MultiHead(backbone, 16, HEADS, pool=first_part), sentences(), HEADS)


def test_bert_by_its_logits(transformers: Any) -> None:
    train(transformers.BertForSequenceClassification(tiny(transformers, num_labels=4)), sentences(), 4)


def test_bert_by_features_and_heads(transformers: Any) -> None:
    """Its own classifier is the head, so that only features are stored."""
    model = transformers.BertForSequenceClassification(tiny(transformers, num_labels=4))
    train(
        model, sentences(), 4,
        features=lambda model, inputs: model.bert(**inputs).pooler_output, heads=lambda model: [model.classifier],
    )  # fmt: skip


def tiny_resnet(transformers: Any) -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )


def test_resnet_as_backbone(transformers: Any) -> None:
    """Its pooled output is (B, D, 1, 1)."""
    train(MultiHead(transformers.ResNetModel(tiny_resnet(transformers)), 16, HEADS), images(), HEADS)


def test_resnet_by_its_logits(transformers: Any) -> None:
    train(transformers.ResNetForImageClassification(tiny_resnet(transformers)), images(), 4)


# ---- timm ----


@pytest.mark.parametrize("as_backbone", [True, False])
def test_timm(as_backbone: bool) -> None:
    timm = pytest.importorskip("timm")
    if as_backbone:
        backbone = timm.create_model("resnet10t", pretrained=False, num_classes=0)
        train(MultiHead(backbone, backbone.num_features, HEADS), images(32), HEADS, rate=0.003)
    else:
        train(timm.create_model("resnet10t", pretrained=False, num_classes=4), images(32), 4, rate=0.003)


# ---- scikit-learn's data, and models of other makes ----


def test_mlp_on_a_table() -> None:
    train(MultiHead(nn.Sequential(nn.Linear(4, 32), nn.ReLU()), 32, [3, 5]), table(), [3, 5])


def test_heads_with_a_hidden_layer() -> None:
    train(MultiHead(nn.Sequential(nn.Linear(4, 32), nn.ReLU()), 32, [3, 5], hidden=16), table(), [3, 5])


def test_numbers_that_numpy_counted() -> None:
    """They are whole numbers like others, also where a state is saved."""
    n, k = np.int64(len(table())), np.unique(np.arange(9) % 3).size
    train(nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)), table(), np.int64(k))
    image = io.BytesIO()
    torch.save(SelfLabeler(n, np.array([k, 5])).state_dict(), image)
    image.seek(0)
    SelfLabeler(150, [3, 5]).load_state_dict(torch.load(image, weights_only=True))


class OfSeveralInputs(nn.Module):
    """Takes two tensors, and returns what it is told to."""

    def __init__(self, returned: str) -> None:
        super().__init__()
        self.left, self.right, self.returned = nn.Linear(2, 16), nn.Linear(2, 16), returned
        self.first, self.second = nn.Linear(16, 3), nn.Linear(16, 5)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        hidden = (self.left(left) + self.right(right)).relu()
        logits = [self.first(hidden), self.second(hidden)]
        if self.returned == "mapping of heads":
            return {"species": logits[0], "size": logits[1]}
        return {"logits": logits, "hidden": hidden} if self.returned == "mapping" else tuple(logits)


@pytest.mark.parametrize("returned", ["mapping", "mapping of heads", "tuple"])
@pytest.mark.parametrize("given", ["dict", "tuple"])
def test_several_inputs_and_outputs(given: str, returned: str) -> None:
    pairs = [(row[:2], row[2:]) for row in table()]
    items = pairs if given == "tuple" else [{"left": left, "right": right} for left, right in pairs]
    train(OfSeveralInputs(returned), items, [3, 5])


@pytest.mark.parametrize("given", ["dict", "tuple"])
def test_several_inputs_of_a_backbone(given: str) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 16)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.linear(torch.cat([left, right], 1)).relu()

    pairs = [(row[:2], row[2:]) for row in table()]
    items = pairs if given == "tuple" else [{"left": left, "right": right} for left, right in pairs]
    train(MultiHead(Backbone(), 16, [3, 5]), items, [3, 5])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted() -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    train(torch.jit.script(model), table(), 3)


def test_compiled() -> None:
    """Compiled by a backend that needs no C++ compiler; how a compiled model is read does not depend on it."""
    model = MultiHead(nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU()), 32, [3, 5])
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(nn.DataParallel(compiled)) is model
    train(compiled, table(), [3, 5])
