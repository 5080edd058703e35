"""Where rows come from: anything a user hands over is opened as a source, which reads rows in storage form."""

from otlabel.sources.base import ITEM_BYTES, Source, as_float, draw_rows, read_rows
from otlabel.sources.caching import cached, default_limit, made_once
from otlabel.sources.device import DeviceSource, on_device
from otlabel.sources.free import free_memory
from otlabel.sources.given import as_array, as_matrix, check_kind, is_foreign, is_series, is_tensor, plain_tensor
from otlabel.sources.linear import Features, LinearScores, Products, closeness, cosines
from otlabel.sources.memory import ArraySource, TensorSource
from otlabel.sources.names import (
    by_class,
    by_column,
    by_row,
    class_mass_of,
    in_one_order,
    in_order_of,
    plain_names,
    sample_mass_of,
)
from otlabel.sources.opened import Opened, as_opened
from otlabel.sources.opening import home_of, is_list_of_parts, is_stored, linear_scores, open_scores
from otlabel.sources.parts import rows_between
from otlabel.sources.paths import load_array, matches
from otlabel.sources.wrapped import moved, unit_rows, with_column

__all__ = [
    "ITEM_BYTES",
    "ArraySource",
    "DeviceSource",
    "Features",
    "LinearScores",
    "Opened",
    "Products",
    "Source",
    "TensorSource",
    "as_array",
    "as_float",
    "as_matrix",
    "as_opened",
    "by_class",
    "by_column",
    "by_row",
    "cached",
    "check_kind",
    "class_mass_of",
    "closeness",
    "cosines",
    "default_limit",
    "draw_rows",
    "free_memory",
    "home_of",
    "in_one_order",
    "in_order_of",
    "is_foreign",
    "is_list_of_parts",
    "is_series",
    "is_stored",
    "is_tensor",
    "linear_scores",
    "load_array",
    "made_once",
    "matches",
    "moved",
    "on_device",
    "open_scores",
    "plain_names",
    "plain_tensor",
    "read_rows",
    "rows_between",
    "sample_mass_of",
    "unit_rows",
    "with_column",
]  # fmt: skip
