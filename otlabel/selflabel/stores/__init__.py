"""Where the rows that a model gives, one a sample, are kept: in memory, or in one HDF5 file; and labels on disk.

An extraction writes rows in any order and shows them once all are there; until then what was extracted before stays as
it is. A new kind of store follows `contract.py`.
"""

from __future__ import annotations

import os

from otlabel.selflabel.stores.contract import Part, Store
from otlabel.selflabel.stores.hdf5 import FeaturePart, FeatureStore
from otlabel.selflabel.stores.memory import TensorPart, TensorStore

__all__ = ["FeaturePart", "FeatureStore", "Part", "Store", "TensorPart", "TensorStore", "opened"]


def opened(store: str | os.PathLike[str] | Store | None) -> Store:
    """The store itself, one in memory for None, or an HDF5 file for its path."""
    if store is None:
        return TensorStore()
    return FeatureStore(store) if isinstance(store, (str, os.PathLike)) else store
