"""Networks that give features, by name: those of the papers, with torchvision's names of weights, and small ones."""

from __future__ import annotations

from otlabel.training.networks.alexnet import alexnet
from otlabel.training.networks.common import Backbone
from otlabel.training.networks.naming import NAMES, network
from otlabel.training.networks.resnet import resnet18, resnet50, small_resnet
from otlabel.training.networks.small import mlp, small_convnet
from otlabel.training.networks.vgg import vgg16_bn

__all__ = [
    "NAMES",
    "Backbone",
    "alexnet",
    "mlp",
    "network",
    "resnet18",
    "resnet50",
    "small_convnet",
    "small_resnet",
    "vgg16_bn",
]
