"""Where rows come from: anything a user hands over becomes a source, which gives row blocks in storage form."""

from otlabel.sources.base import (
    ITEM_BYTES,
    Batch,
    Source,
    WrappedSource,
    as_float,
    block_rows,
    draw_rows,
    partition,
    row_blocks,
)
from otlabel.sources.caching import KeptRows, cached, default_limit
from otlabel.sources.column import WithColumn
from otlabel.sources.device import DeviceSource, on_device
from otlabel.sources.free import free_memory
from otlabel.sources.given import as_array, as_matrix, check_kind, is_foreign, is_tensor, plain_tensor
from otlabel.sources.linear import LinearScores, closeness, cosines
from otlabel.sources.memory import ArraySource, TensorSource
from otlabel.sources.moved import MovedScores
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
from otlabel.sources.opening import home_of, is_list_of_parts, is_stored, linear_scores, open_scores
from otlabel.sources.parts import rows_between
from otlabel.sources.paths import load_array, matches
from otlabel.sources.unit import UnitRows

__all__ = [
    "ITEM_BYTES", "ArraySource", "Batch", "DeviceSource", "KeptRows", "LinearScores", "MovedScores", "Source",
    "TensorSource", "UnitRows", "WithColumn", "WrappedSource", "as_array", "as_float", "as_matrix", "block_rows",
    "by_class", "by_column", "by_row", "cached", "check_kind", "class_mass_of", "closeness", "cosines", "default_limit",
    "draw_rows", "free_memory", "home_of", "in_one_order", "in_order_of", "is_foreign", "is_list_of_parts", "is_stored",
    "is_tensor", "linear_scores", "load_array", "matches", "on_device", "open_scores", "partition", "plain_names",
    "plain_tensor", "row_blocks", "rows_between", "sample_mass_of",
]  # fmt: skip
