"""What users hand over, as NumPy arrays: every kind is known by what it can do, so that none of them is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError, OtlabelError

if TYPE_CHECKING:
    import torch

_ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "float8_e4m3": 2**-4, "float8_e5m2": 2**-3}  # relative
MOST_SHOWN = 6  # names that a message lists


def is_tensor(value: Any) -> bool:
    """Whether value is a torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_series(value: Any) -> bool:
    """Whether value has a name for each of its numbers, as a Series of pandas has."""
    return hasattr(value, "iloc") and getattr(value, "ndim", 0) == 1


def is_frame(value: Any) -> bool:
    """Whether value is a matrix with names for its columns, as a DataFrame of pandas or polars."""
    return n_dimensions(value) == 2 and hasattr(value, "columns")


def n_dimensions(value: Any) -> int | None:
    """Of an array of any kind; None for anything else."""
    if getattr(value, "is_nested", False):  # tensors of any shapes in a row, which have none in common
        return None
    shape = getattr(value, "shape", None)
    return len(shape) if isinstance(shape, tuple) else None


def shown(names: Iterable[Any]) -> str:
    """A few names for a message, as a programmer writes them."""
    texts = [repr(name.item() if isinstance(name, np.generic) else name) for name in names]
    return ", ".join(texts[:MOST_SHOWN]) + (f", ... ({len(texts)} in all)" if len(texts) > MOST_SHOWN else "")


def as_array(values: Any, what: str = "numbers", error: type[Exception] = ValueError) -> np.ndarray:
    """Numbers of any kind and in any place as a NumPy array, in a type that NumPy has; none may be masked."""
    array = _array_of(values, what, error)
    if isinstance(array, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(array)
        if masked.any():
            where = ", ".join(map(str, np.argwhere(masked)[0]))
            raise error(
                f"{what}[{where}] is masked ({int(masked.sum())} of {array.size} are): it stands for no number; "
                "put one there, with .filled(value)"
            )
        array = np.ma.getdata(array)
    return widened(np.asarray(array))


def named_array(values: Any, what: str, error: type[Exception] = ValueError) -> np.ndarray:
    """The same, where what is no array of anything is told by its kind."""
    array = as_array(values, what, error)
    if not array.ndim and array.dtype.kind in "OUS":
        raise error(_no_numbers(values, what))
    return array


def as_matrix(given: Any, what: str) -> np.ndarray:
    """The same of what is to be a matrix: one of NumPy, maybe masked, in the type that it came in."""
    check_kind(given, what)
    if isinstance(given, (list, tuple)) and (wrong := _first_without_items(given)) is not None:
        raise InvalidScoresError(
            f"row {wrong} of {what} is {given[wrong]!r:.40}, no list of numbers; pass a matrix, one row a sample"
        )
    array = _array_of(given, what, InvalidScoresError)
    if array.dtype == object and array.ndim == 0:
        raise InvalidScoresError(_unknown(given, what))
    return array


def plain_tensor(tensor: torch.Tensor, what: str, error: type[Exception] = InvalidScoresError) -> torch.Tensor:
    """A tensor without its history, once it is seen to be one number after the other."""
    import torch

    kind, remedy = "", ""
    if tensor.is_nested:
        kind, remedy = "nested tensor", f"a matrix: torch.cat({what}.unbind())"
    elif hasattr(tensor, "get_mask"):
        kind, remedy = "masked tensor", f"a plain one: {what}.to_tensor(value), -inf where a pair is forbidden"
    elif hasattr(tensor, "full_tensor"):
        kind, remedy = "DTensor, of which this process has a part", f"{what}.full_tensor(), or .to_local() with a group"
    elif tensor.layout is not torch.strided:
        kind, remedy = f"sparse tensor ({tensor.layout})", "a full one: .to_dense(), which makes missing entries 0"
    elif tensor.is_quantized:
        kind, remedy = f"quantized tensor ({tensor.dtype})", "its numbers: .dequantize()"
    elif tensor.is_meta:
        kind, remedy = "tensor on the meta device, which holds no numbers", "one on 'cpu' or a card"
    if kind:
        raise error(f"{what}: got a {kind}; pass {remedy}")
    return tensor.detach().resolve_neg()


def tensor_array(tensor: torch.Tensor, what: str, error: type[Exception] = InvalidScoresError) -> np.ndarray:
    """A plain tensor as an array, without a copy where it lies in host memory in a type that NumPy has."""
    import torch

    try:
        if tensor.dtype == torch.bfloat16 or (tensor.is_floating_point() and tensor.itemsize == 1):
            tensor = tensor.float()
        return tensor.cpu().resolve_conj().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as failure:
        raise error(
            f"{what}: got a {type(tensor).__name__} of {tensor.dtype} that cannot be read "
            f"({str(failure).strip().partition(chr(10))[0]}); pass plain numbers, such as {what}.float()"
        ) from failure


def check_kind(given: Any, what: str) -> None:
    """Refuse by its name what can be no matrix; what passes may be one."""
    problem = _no_matrix(given, what)
    if problem:
        raise InvalidScoresError(problem)


def with_unit_sum(shares: np.ndarray, given: Any) -> np.ndarray:
    """Shares that came in a type of few digits with a sum of 1, but for what these leave out, as float64."""
    digits = _ROUNDING.get(str(getattr(given, "dtype", "")).removeprefix("torch.").removesuffix("fn"), 0.0)
    wide = shares.astype(np.float64) if digits else shares
    total = float(wide.sum()) if digits else 0.0
    return wide / total if digits and abs(total - 1) <= digits else shares


def is_foreign(array: Any) -> bool:
    """Whether numbers are of a type that another package has taught NumPy, as JAX does with bfloat16."""
    dtype = getattr(array, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind == "V" and dtype.type is not np.void


def widened(array: np.ndarray) -> np.ndarray:
    """Numbers of such a type as float32, which holds all of them."""
    return array.astype(np.float32) if is_foreign(array) else array


def _array_of(values: Any, what: str, error: type[Exception]) -> np.ndarray:
    """Whatever NumPy makes an array of, and some that it does not; masks stay."""
    if is_tensor(values):
        return tensor_array(plain_tensor(values, what, error), what, error)
    if isinstance(values, np.ndarray):
        return values
    if is_frame(values):
        return _frame_array(values, what, error)
    if is_series(values):
        return _series_array(values)
    try:
        if isinstance(values, (list, tuple)) and any(map(_is_array, values)):
            return _stacked([_array_of(value, f"{what}[{at}]", error) for at, value in enumerate(values)])
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as failure:
        told = _uneven(values)
        if not told and isinstance(failure, OtlabelError):
            raise
        raise error(f"{what} are no matrix or vector: {told or _first_line(failure)}") from failure


def _is_array(value: Any) -> bool:
    plain = isinstance(value, (int, float, np.generic, list, tuple))  # most are: a list may be long
    return not plain and (is_tensor(value) or n_dimensions(value) is not None)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays of one shape as one with a further dimension, masked where one of them is."""
    if any(isinstance(array, np.ma.MaskedArray) for array in arrays):
        return np.ma.stack(arrays)
    return np.stack([widened(array) for array in arrays])


def _series_array(series: Any) -> np.ndarray:
    """Numbers of a Series; those of types that know missing ones would else become objects."""
    array = np.asarray(series)
    kind = getattr(series.dtype, "kind", "O")
    if array.dtype != object or kind not in "fiub":
        return array
    if kind == "f" or series.isna().any():
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(series.to_numpy(dtype={"i": np.int64, "u": np.uint64, "b": np.bool_}[kind]))


def _frame_array(frame: Any, what: str, error: type[Exception]) -> np.ndarray:
    array = np.asarray(frame)
    if array.dtype != object:
        return array
    columns = [
        _series_array(frame.iloc[:, at]) if hasattr(frame, "iloc") else np.asarray(frame[:, at])
        for at in range(array.shape[1])
    ]
    wrong = [name for name, column in zip(frame.columns, columns, strict=True) if column.dtype.kind not in "fiub"]
    if wrong:
        raise error(f"{what} have columns that hold no numbers: {shown(wrong)}; leave these out")
    return np.stack(columns, 1)


def _no_matrix(given: Any, what: str) -> str | None:
    """Why something can be no matrix, in one line; None for what may be one."""
    kind = type(given).__name__
    if given is None or isinstance(given, (Number, bytes, bytearray)):
        said = "None" if given is None else f"the {kind} {given!r}"
        return f"{what} are {said:.60}; pass a matrix, one row a sample"
    if hasattr(given, "todense") and not is_tensor(given):
        told = f"{what} are a sparse matrix ({kind} of shape {given.shape}); pass a full one: {what}.toarray()"
        of_features = (
            f", or if that is too large a few hundred columns that keep most of it: "
            f"sklearn.decomposition.TruncatedSVD(200).fit_transform({what})" * (what == "features")
        )
        return told + of_features
    fields = given if isinstance(given, Mapping) else getattr(given, "_fields", None)
    if fields is not None:
        names = list(fields)
        best = "logits" if "logits" in names else names[0] if names else ""
        item = f"[{best!r}]" if isinstance(given, Mapping) else f".{best}"
        held = f"of {shown(names)}; pass one of these, such as {what}{item}" if names else "with nothing in it"
        return f"{what} are of type {kind}, {held}"
    has_items = hasattr(given, "__getitem__") or hasattr(given, "__array__")
    if isinstance(given, Iterable) and not has_items:
        return (
            f"{what} are of type {kind}, whose items come one after the other, but they are looked at several times; "
            "pass a list of the matrices that it gives, or that a model makes of what it gives"
        )
    if not has_items:
        return _unknown(given, what)
    return None


def _no_numbers(given: Any, what: str) -> str:
    """What was given in place of numbers, and what to pass."""
    kind = type(given).__name__
    if given is None:
        return f"{what} is None; pass an array of numbers"
    if hasattr(given, "todense"):
        return f"{what} is a sparse matrix ({kind} of shape {given.shape}); pass a full one: {what}.toarray()"
    if isinstance(given, Mapping):
        return f"{what} is a {kind}, which has no order here; pass an array, or a Series with the index of the rows"
    said = f"the text {given!r:.40}" if isinstance(given, str) else f"of type {kind}"
    return f"{what} is {said}; pass an array, a list or a tensor of numbers"


def _unknown(given: Any, what: str) -> str:
    return (
        f"{what} are of type {type(given).__name__}; pass an array, a tensor, a data frame, a list of matrices, or the "
        "name of a file"
    )


def _first_without_items(rows: list[Any] | tuple[Any, ...]) -> int | None:
    """The first of several rows that is nothing, or names; numbers make a vector, which is told of later."""
    return next((at for at, row in enumerate(rows) if row is None or isinstance(row, Mapping)), None)


def _uneven(values: Any) -> str:
    """What is wrong with nested lists of different lengths; empty where it is something else."""
    try:
        lengths = [len(value) for value in values]
    except TypeError:
        return ""
    other = next((at for at, length in enumerate(lengths) if length != lengths[0]), None)
    if other is None:
        return ""
    return (
        f"row 0 has {lengths[0]} numbers, row {other} has {lengths[other]}; join what comes in batches with "
        "np.concatenate or torch.cat"
    )


def _first_line(failure: Exception) -> str:
    return str(failure).strip().partition("\n")[0]
