"""Where an extraction's rows and the labels made of them are kept: in memory, or in HDF5 files that are whole."""

from otlabel.selflabel.stores.hdf5 import FeaturePart, FeatureStore, Part, Store, TensorPart, TensorStore

__all__ = ["FeaturePart", "FeatureStore", "Part", "Store", "TensorPart", "TensorStore"]
