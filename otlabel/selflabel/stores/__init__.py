"""Where the rows that a model gives, one a sample, are kept: in memory, or in one HDF5 file; and labels on disk.

An extraction writes rows in any order and shows them once all are there; until then what was extracted before stays as
it is. A new kind of store follows `contract.py`.
"""

from otlabel.selflabel.stores.contract import Part, Store
from otlabel.selflabel.stores.hdf5 import FeaturePart, FeatureStore
from otlabel.selflabel.stores.memory import TensorPart, TensorStore

__all__ = ["FeaturePart", "FeatureStore", "Part", "Store", "TensorPart", "TensorStore"]
