"""Numbers that come with names, in the order of the classes or rows that they are meant for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from otlabel.errors import InvalidMassError, InvalidScoresError
from otlabel.sources.given import as_array, is_frame, is_series, named_array, shown, with_unit_sum
from otlabel.sources.opened import Opened
from otlabel.sources.wrapped import reordered


def by_class(
    values: Any, n_classes: int, names: Sequence[Any] | None, what: str, error: type[Exception] = ValueError
) -> Any:
    """One number a class as an array in the order of the classes: of a Series or a dict, by its names.

    names: of the classes, where scores came with some (a data frame's columns); else they are 0 ... K - 1, which a
    Series may call them in any case, unless that could mean other columns. None stays None.
    """
    if values is None:
        return None
    if isinstance(values, Mapping):
        keys, numbers = list(values), as_array(list(values.values()), what, error)
    elif is_series(values):
        keys, numbers = values.index.tolist(), as_array(values, what, error)
    else:
        return named_array(values, what, error)
    wanted = list(range(n_classes)) if names is None else list(names)
    for told, several in ((what, _repeated(keys)), ("the columns of scores", _repeated(wanted))):
        if several:
            raise error(f"names in {told} are not distinct: {shown(several)} is there more than once")
    place = {key: at for at, key in enumerate(keys)}
    if set(wanted) != set(keys) and names is not None and set(keys) == set(range(n_classes)) and not _numbered(wanted):
        wanted = list(range(n_classes))
    missing = [name for name in wanted if name not in place]
    unknown = [key for key in keys if key not in set(wanted)]
    if missing or unknown:
        classes = "the classes" if names is None else "the columns of scores"
        lacking = f"; nothing for {shown(missing)}" if missing else ""
        reindexed = f"range({n_classes})" if names is None else "scores.columns"
        remedy = (
            f"use .reindex({reindexed}, fill_value=0) if that is 0"
            if missing and not unknown
            else "name the classes alike, or pass an array in their order"
        )
        raise error(f"{what} has numbers for {shown(keys)}, but {classes} are {shown(wanted)}{lacking}; {remedy}")
    return numbers[[place[name] for name in wanted]]


def plain_names(names: Sequence[Any] | None) -> tuple[str | int, ...] | None:
    """Names of classes that a result can keep, as texts and whole numbers; None where they are anything else."""
    plain: list[str | int] = []
    for name in names if names is not None else ():
        if isinstance(name, str):
            plain.append(str(name))
        elif isinstance(name, (int, np.integer)) and not isinstance(name, bool):
            plain.append(int(name))
        else:
            return None
    return tuple(plain) if plain and not _repeated(plain) else None


def in_order_of(scores: Opened, names: Sequence[Any] | None) -> Opened:
    """Scores with their columns in the order of the classes of these names, where both have names.

    Names that only count, 0 ... K - 1, on one side say nothing where those of the other side are no numbers.
    """
    given = None if scores.class_names is None else list(scores.class_names)
    if names is None or given is None or given == list(names):
        return scores
    if set(given) == set(names) and not _repeated(given):
        return reordered(scores, np.array([given.index(name) for name in names]))
    counting = list(range(len(names)))
    if (given == counting and not _numbered(names)) or (list(names) == counting and not _numbered(given)):
        return scores
    raise InvalidScoresError(
        f"the columns of scores are {shown(given)}, but the classes of this assignment are {shown(names)}; name them "
        "alike, or pass scores.to_numpy() if they are in the same order"
    )


def class_mass_of(values: Any, scores: Opened) -> Any:
    """What each class of scores takes, as an array in their order; shares with the sum that they are to have."""
    mass = by_class(values, scores.shape[1], scores.class_names, "class_mass", InvalidMassError)
    return None if mass is None else with_unit_sum(mass, values)


def sample_mass_of(values: Any, scores: Opened) -> Any:
    """What each row of scores weighs, as an array in their order."""
    mass = by_row(values, scores.shape[0], scores.row_names, "sample_mass", InvalidMassError)
    return None if mass is None else with_unit_sum(mass, values)


def by_column(matrix: Any, names: Sequence[Any] | None, what: str, error: type[Exception] = ValueError) -> np.ndarray:
    """A matrix as an array; columns of a data frame in the order of those of another one, where that has names."""
    numbers = as_array(matrix, what, error)
    if names is None or not is_frame(matrix):
        return numbers
    columns = list(matrix.columns)
    if set(columns) != set(names) or _repeated(columns):
        raise error(f"{what} has the columns {shown(columns)}, features have {shown(names)}; give both the same")
    return numbers[:, [columns.index(name) for name in names]]


def by_row(values: Any, n_rows: int, names: Any, what: str, error: type[Exception] = ValueError) -> Any:
    """What each row has, a number or several, as an array in the order of the rows: of pandas, by the index.

    names: the index of the rows, where they came with one. Else a Series has to count them, 0 ... N - 1: any other
    index may mean that its order is not that of the rows. None stays None.
    """
    if values is None:
        return None
    numbers = named_array(values, what, error)
    is_named = is_series(values) or (is_frame(values) and hasattr(values, "index"))
    if not is_named or len(numbers) != n_rows:  # the latter is told of where lengths are
        return numbers
    index = values.index
    if names is not None:
        if index.equals(names):
            return numbers
        if index.is_unique and names.is_unique:
            at = index.get_indexer(names)
            if (at >= 0).all():
                return numbers[at]
    counts = _kind(index) in "iu" and np.array_equal(np.asarray(index), np.arange(n_rows))
    if counts and (names is None or _kind(names) not in "iuf"):
        return numbers
    rows = f"the rows 0 ... {n_rows - 1}" if names is None else f"the rows of scores, {shown(names[:3])}, ..."
    raise error(
        f"the index of {what}, {shown(index[:3])}, ..., is not that of {rows}; pass {what}.to_numpy() if it is in the "
        "same order"
    )


def in_one_order(first: Any, second: Any, names: tuple[str, str]) -> tuple[np.ndarray, Any]:
    """Two lists of numbers about the same rows as arrays; where both are Series, in the order of the first."""
    index = first.index if is_series(first) and is_series(second) else None
    one = as_array(first, names[0])
    if index is None:
        by_row(first, one.size, None, names[0])  # its order is that of the rows, or this raises
    return one, by_row(second, one.size, index, names[1])


def _repeated(names: Sequence[Any]) -> list[Any]:
    """Names that stand for several."""
    seen: set[Any] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _numbered(names: Sequence[Any]) -> bool:
    """Whether names count, but not from 0 on in order: a number may then mean a name or a place."""
    texts = [str(name) for name in names]
    return any(text.lstrip("-").isdecimal() for text in texts) and texts != list(map(str, range(len(texts))))


def _kind(index: Any) -> str:
    return str(getattr(index.dtype, "kind", "O"))
