"""How good labels are: against the truth, against earlier labels, and by what features are worth without fine-tuning.

Measures of agreement all come from one table of how many samples have which class and which cluster. It holds only the
pairs that occur and is built in chunks: ten million samples in thousands of clusters are no matter. Labels are whole
numbers of any kind, in arrays, tensors or lists; a sample with the label -1 on either side is unlabelled and left out.
"""

from __future__ import annotations

from otlabel.metrics.agreement import (
    ClassEntropy,
    accuracy,
    ami,
    ari,
    churn,
    class_entropy,
    compare,
    mean_class_entropy,
    nmi,
    purity,
)
from otlabel.metrics.few_shot import FewShot, few_shot
from otlabel.metrics.neighbours import knn_accuracy, knn_predict
from otlabel.metrics.probe import linear_probe

__all__ = [
    "ClassEntropy",
    "FewShot",
    "accuracy",
    "ami",
    "ari",
    "churn",
    "class_entropy",
    "compare",
    "few_shot",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "mean_class_entropy",
    "nmi",
    "purity",
]
