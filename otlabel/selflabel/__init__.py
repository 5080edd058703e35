"""Self-labelling for any model: SeLa, DeepCluster and UIC as one alternation. The training loop stays the user's."""

from __future__ import annotations

from otlabel.selflabel.labeler import SelfLabeler
from otlabel.selflabel.methods import Argmax, HeadView, KMeans, NewLabels, OptimalTransport
from otlabel.selflabel.model import MultiHead
from otlabel.selflabel.sampler import ClassUniformSampler, IndexedDataset
from otlabel.selflabel.schedule import (
    AtTimes,
    EveryEpochs,
    EverySteps,
    LinearSchedule,
    LogarithmicSchedule,
    QuadraticSchedule,
)
from otlabel.selflabel.stores import FeatureStore, TensorStore
from otlabel.selflabel.stores.head_labels import HeadLabels, load_labels, save_labels

__all__ = [
    "Argmax", "AtTimes", "ClassUniformSampler", "EveryEpochs", "EverySteps", "FeatureStore", "HeadLabels", "HeadView",
    "IndexedDataset", "KMeans", "LinearSchedule", "LogarithmicSchedule", "MultiHead", "NewLabels", "OptimalTransport",
    "QuadraticSchedule", "SelfLabeler", "TensorStore", "load_labels", "save_labels",
]  # fmt: skip
