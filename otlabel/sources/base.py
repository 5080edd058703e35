"""What every source of rows has in common, and how numbers are stored. A source only moves bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError

if TYPE_CHECKING:
    import torch

STRETCHES, STRETCH_ROWS = 16, 16  # of the rows that are looked at here and there
MOST_WHOLE = 1 << 53  # up to here float64 holds all whole numbers
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

Span = tuple[int, int]  # rows from `start` up to `stop`


class Source(ABC):
    """An (N, K) matrix of which rows can be read, in storage form; of several ranks, the rows that this one has.

    It knows nothing of what it is read for: cutting into blocks, ranks, names and proofs are the affair of others.
    """

    shape: tuple[int, int]
    dtype: str  # of numbers: "float16", "bfloat16", "float32" or "float64"
    device: torch.device | None = None  # where what is read is a tensor there; None: it is a NumPy array
    grain: int = 1  # rows that are read together; 1 where any few rows cost less than a pass over all
    reads_files: bool = False  # whether the next pass will wait for files

    @abstractmethod
    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """The rows of each of several consecutive spans; each is to be used before the next one is asked for.

        In storage form, (n, K): float16 as uint16 bits, bfloat16 as int16 bits; a row has the same bits in every span.
        A source that has a backend of its own may give anything else that this one takes.
        """

    @abstractmethod
    def take(self, rows: np.ndarray) -> Source:
        """The given rows (sorted) as a source of their own, in memory."""

    def close(self) -> None:  # noqa: B027  # nothing, where nothing is held
        """Give back what is held for the next read; a pass begins and ends so."""


def read_rows(source: Source, start: int, stop: int) -> Any:
    """Rows start to stop in storage form."""
    return next(iter(source.read([(start, stop)])))


def n_bytes(source: Source) -> int:
    """What all rows take in storage form."""
    return source.shape[0] * source.shape[1] * ITEM_BYTES[source.dtype]


def draw_rows(n_rows: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows, one at random from each of `size` equal stretches: data in any order is covered evenly."""
    if size >= n_rows:
        return np.arange(n_rows)
    ends = np.arange(size + 1) * n_rows // size
    return rng.integers(ends[:-1], ends[1:])


def few_rows(n_rows: int) -> np.ndarray:
    """Sorted rows in a few stretches that are spread over all: so few reads that files do not mind."""
    starts = np.arange(STRETCHES) * n_rows // STRETCHES
    return np.unique(np.minimum(starts[:, None] + np.arange(STRETCH_ROWS), n_rows - 1))


def check_shape(shape: tuple[int, ...], what: str = "scores") -> tuple[int, int]:
    """The shape of a matrix with something in it, or InvalidScoresError."""
    column = "class" if what.startswith("scores") else "feature"
    if len(shape) != 2:
        wanted = f"pass a matrix ({'N, K' if column == 'class' else 'N, D'}): one row a sample, one column a {column}"
        if len(shape) > 2:
            wanted += ", and of batches one after the other: np.concatenate or torch.cat"
            wanted += "; of several heads, sinkhorn_assign_batch labels each by itself" if column == "class" else ""
        raise InvalidScoresError(f"{what} have shape {shape}; {wanted}")
    if 0 in shape:
        raise InvalidScoresError(f"{what} have shape {shape}; at least one sample and one {column} are needed")
    return int(shape[0]), int(shape[1])


def storage_type(dtype: np.dtype, what: str = "scores") -> str:
    """The type that numbers of a NumPy type are read as, or InvalidScoresError."""
    if dtype.kind not in "fiub":
        raise InvalidScoresError(f"{what} have dtype {dtype}; pass real numbers (float16, float32, float64)")
    if dtype.kind != "f":  # whole numbers up to 2**24 are exact in float32
        return "float32" if dtype.itemsize <= 2 else "float64"
    return f"float{8 * min(dtype.itemsize, 8)}"


def check_whole(numbers: np.ndarray, what: str = "scores", first_row: int = 0) -> None:
    """Refuse whole numbers that would be others in float64; they are of the rows from the first one on."""
    if numbers.dtype.kind not in "iu" or numbers.dtype.itemsize < 8 or not numbers.size:
        return
    if int(numbers.min()) >= -MOST_WHOLE and int(numbers.max()) <= MOST_WHOLE:
        return
    wide = numbers.astype(np.float64)
    inside = wide < float(np.iinfo(numbers.dtype).max)  # or it may be no whole number of this type any more
    lost = ~inside | (np.where(inside, wide, 0.0).astype(numbers.dtype) != numbers)
    if lost.any():
        row, column = np.argwhere(lost)[0]
        raise InvalidScoresError(
            f"{what} are whole numbers that float64 does not tell from their neighbours, the first is "
            f"{numbers[row, column]} at row {row + first_row}, column {column}; subtract a constant first, such as "
            "their largest one, so that they lie within 2**53 of 0"
        )


def storage_array(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An empty array in storage form."""
    return np.empty(shape, {"float16": np.uint16, "bfloat16": np.int16}.get(dtype, dtype))


def as_stored(tensor: torch.Tensor) -> np.ndarray:
    """A view of a tensor in host memory in storage form."""
    import torch

    if tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor.numpy()
    bits = tensor.view(torch.int16).numpy()
    return bits.view(np.uint16) if tensor.dtype == torch.float16 else bits


def as_numbers(stored: np.ndarray, dtype: str) -> np.ndarray:
    """A view of an array in storage form as the type it stands for; bfloat16, which NumPy lacks, stays as it is."""
    return stored.view(np.float16) if dtype == "float16" else stored


def as_float(block: Any, dtype: str) -> np.ndarray:
    """A block in storage form as float32 or float64 numbers, for the rare looks that no compiled sweep is for."""
    if not isinstance(block, np.ndarray):
        return block.double().cpu().numpy()
    if dtype == "bfloat16":
        return (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return as_numbers(block, dtype).astype(np.float32) if dtype == "float16" else block
