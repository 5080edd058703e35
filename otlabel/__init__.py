"""Optimal-transport pseudo-labels: the best total score with exact class sizes, and a proof of it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otlabel import metrics as metrics
    from otlabel.assign import sinkhorn_assign as sinkhorn_assign
    from otlabel.batch import BatchAssignment as BatchAssignment
    from otlabel.batch import sinkhorn_assign_batch as sinkhorn_assign_batch
    from otlabel.certificate import certify as certify
    from otlabel.cluster import BalancedKMeans as BalancedKMeans
    from otlabel.cluster import ResidualBalancedKMeans as ResidualBalancedKMeans
    from otlabel.curation import Curated as Curated
    from otlabel.curation import curate as curate
    from otlabel.doctor import diagnose as diagnose
    from otlabel.lp import lp_assign as lp_assign
    from otlabel.marginals import KL as KL
    from otlabel.marginals import Exact as Exact
    from otlabel.marginals import Range as Range
    from otlabel.path import balance_path as balance_path
    from otlabel.reporting.page import report as report
    from otlabel.result import Assignment as Assignment
    from otlabel.selflabel import Argmax as Argmax
    from otlabel.selflabel import ClassUniformSampler as ClassUniformSampler
    from otlabel.selflabel import EveryEpochs as EveryEpochs
    from otlabel.selflabel import EverySteps as EverySteps
    from otlabel.selflabel import FeatureStore as FeatureStore
    from otlabel.selflabel import IndexedDataset as IndexedDataset
    from otlabel.selflabel import KMeans as KMeans
    from otlabel.selflabel import LinearSchedule as LinearSchedule
    from otlabel.selflabel import LogarithmicSchedule as LogarithmicSchedule
    from otlabel.selflabel import MultiHead as MultiHead
    from otlabel.selflabel import OptimalTransport as OptimalTransport
    from otlabel.selflabel import QuadraticSchedule as QuadraticSchedule
    from otlabel.selflabel import SelfLabeler as SelfLabeler
    from otlabel.selflabel import TensorStore as TensorStore
    from otlabel.selflabel import load_labels as load_labels
    from otlabel.soft import soft_assign as soft_assign
    from otlabel.solver.outcome import Certificate as Certificate
    from otlabel.solver.outcome import Status as Status
    from otlabel.sources import linear_scores as linear_scores
    from otlabel.sources.sparse import top_scores as top_scores
    from otlabel.storage.label_files import read_labels as read_labels
    from otlabel.training.probes import Probe as Probe
    from otlabel.training.probes import linear_probes as linear_probes

__version__ = "0.1.0"

# Each public name is imported when it is first used, so that `otlabel --help` need not load SciPy and numba.
_HOMES = {
    "Argmax": "selflabel",
    "Assignment": "result",
    "BalancedKMeans": "cluster",
    "BatchAssignment": "batch",
    "Certificate": "solver.outcome",
    "ClassUniformSampler": "selflabel",
    "EveryEpochs": "selflabel",
    "EverySteps": "selflabel",
    "Curated": "curation",
    "Exact": "marginals",
    "FeatureStore": "selflabel",
    "IndexedDataset": "selflabel",
    "KL": "marginals",
    "KMeans": "selflabel",
    "LinearSchedule": "selflabel",
    "LogarithmicSchedule": "selflabel",
    "MultiHead": "selflabel",
    "OptimalTransport": "selflabel",
    "Probe": "training.probes",
    "QuadraticSchedule": "selflabel",
    "Range": "marginals",
    "ResidualBalancedKMeans": "cluster",
    "SelfLabeler": "selflabel",
    "Status": "solver.outcome",
    "TensorStore": "selflabel",
    "balance_path": "path",
    "certify": "certificate",
    "curate": "curation",
    "diagnose": "doctor",
    "linear_probes": "training.probes",
    "linear_scores": "sources",
    "load_labels": "selflabel",
    "lp_assign": "lp",
    "metrics": "metrics",
    "read_labels": "storage.label_files",
    "report": "reporting.page",
    "sinkhorn_assign": "assign",
    "sinkhorn_assign_batch": "batch",
    "soft_assign": "soft",
    "top_scores": "sources.sparse",
}
_NEEDED = {
    "BalancedKMeans": "sklearn",
    "ResidualBalancedKMeans": "sklearn",
}  # where this is not installed, `import *` and `help` must not ask for the name
__all__ = [name for name in _HOMES if name not in _NEEDED or importlib.util.find_spec(_NEEDED[name])]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'otlabel' has no attribute {name!r}")
    module = importlib.import_module(f"otlabel.{_HOMES[name]}")
    value = module if _HOMES[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
