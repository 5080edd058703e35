"""What every source of scores has in common. A source only moves bytes: it knows nothing of what they are for."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import InvalidScoresError

if TYPE_CHECKING:
    import torch

BLOCK_ENTRIES = 1 << 16, 1 << 19  # fewest and most scores a block: a call's cost is hidden, the last one waits little
FEW_BLOCKS = 16  # what threads need to share small matrices out evenly
MANY_BLOCKS = 2048  # from which on larger blocks spare more calls than smaller ones spare memory ...
LARGEST_BLOCK = 1 << 24  # ... up to so many scores
STRETCHES, STRETCH_ROWS = 16, 16  # of the rows that are looked at here and there
MOST_WHOLE = 1 << 53  # up to here float64 holds all whole numbers
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

Batch = list[tuple[int, int]]  # consecutive blocks, each from row `start` up to row `stop`


def block_rows(n_rows: int, n_classes: int) -> int:
    """Rows of a block: up to half a million scores, more where there would be very many blocks."""
    entries = min(max(n_rows * n_classes // FEW_BLOCKS, BLOCK_ENTRIES[0]), BLOCK_ENTRIES[1])
    return max(1, entries // n_classes, min(-(-n_rows // MANY_BLOCKS), LARGEST_BLOCK // n_classes))


def partition(n_rows: int, n_classes: int) -> Batch:
    """All rows in blocks."""
    return cut(n_rows, block_rows(n_rows, n_classes))


def cut(n_rows: int, size: int) -> Batch:
    """Rows in blocks of one size; the last may be smaller."""
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def grouped(blocks: Batch, n_rows: int) -> list[Batch]:
    """Consecutive blocks in groups of up to so many rows, but of one block at least."""
    groups: list[Batch] = []
    for block in blocks:
        if groups and block[1] - groups[-1][0][0] <= n_rows:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


class Source(ABC):
    """An opened (N, K) matrix of scores; of several ranks, the rows that this one works on.

    Blocks are what a sweep reduces one at a time; they depend on (N, K) alone, so that sums have the same bits
    wherever the scores are. Batches are blocks that are read together.
    """

    shape: tuple[int, int]
    dtype: str  # "float16", "bfloat16", "float32" or "float64"
    on_cpu = True  # whether blocks are NumPy arrays, else tensors on `device`
    device: torch.device  # of the blocks, where they are tensors
    whole: torch.Tensor | None = None  # all scores, where they are one tensor there
    most_rows: int | None = (
        None  # of a block that is reduced on a device, once its memory has proved too small for more
    )
    random_access = False  # whether a few rows cost less than a pass over all
    reads_files = False  # whether the next pass will wait for files
    keeps_all = False  # whether the first pass leaves all scores in memory
    bytes_read = 0  # from files, so far
    all_rows: int | None = None  # of the whole matrix, where other ranks have rows of it, too
    class_names: Sequence[Any] | None = None  # where they came with some: the columns of a data frame
    row_names: Any = None  # likewise: its index

    @property
    def partitioned_rows(self) -> int:
        """Rows of the whole matrix, which says how large blocks are."""
        return self.all_rows or self.shape[0]

    @property
    def fine(self) -> Source:
        """The same scores as float64 makes them of what is stored, for what decides; itself where it is stored."""
        return self

    @property
    def bare(self) -> Source:
        """The same scores up to a constant in each row, where these are known to more digits; else itself."""
        return self

    @property
    def block_columns(self) -> int:
        """The classes that blocks are made for."""
        return self.shape[1]

    @property
    def n_bytes(self) -> int:
        """What all scores take in storage form."""
        return self.shape[0] * self.shape[1] * ITEM_BYTES[self.dtype]

    def blocks(self) -> Batch:
        """The partition of the rows; ranks have whole blocks of the partition of all rows."""
        return cut(self.shape[0], block_rows(self.partitioned_rows, self.block_columns))

    def batches(self) -> list[Batch]:
        """The blocks in the groups that are read together, in order."""
        return [[block] for block in self.blocks()]

    def device_batches(self) -> list[Batch]:
        """The same for a pass on a device, where blocks may be larger."""
        return self.batches()

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """To be entered around a pass: what must hold while it lasts."""
        return contextlib.nullcontext()

    @abstractmethod
    def read(self, start: int, stop: int) -> Any:
        """Rows start to stop, contiguous, in storage form: float16 as uint16 bits, bfloat16 as int16 bits."""

    def read_blocks(self, batch: Batch) -> Iterator[Any]:
        """The blocks of one batch, one after the other; each is to be used before the next is asked for."""
        first = batch[0][0]
        rows = self.read(first, batch[-1][1])
        for start, stop in batch:
            yield rows[start - first : stop - first]

    @abstractmethod
    def take(self, rows: np.ndarray) -> Source:
        """The given rows (sorted) as a source of their own, in memory."""

    def place(self, row: int) -> str:
        """A row's name for people."""
        return f"row {row}"


class WrappedSource(Source):
    """A source made of another one, which moves the bytes."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.shape, self.dtype, self.on_cpu = source.shape, source.dtype, source.on_cpu
        if not source.on_cpu:
            self.device = source.device

    @property
    def random_access(self) -> bool:  # type: ignore[override]
        """As the source."""
        return self.source.random_access

    @property
    def reads_files(self) -> bool:  # type: ignore[override]
        """If the source does."""
        return self.source.reads_files

    @property
    def keeps_all(self) -> bool:  # type: ignore[override]
        """If the source does."""
        return self.source.keeps_all

    @property
    def bytes_read(self) -> int:  # type: ignore[override]
        """By the source."""
        return self.source.bytes_read

    @property
    def partitioned_rows(self) -> int:
        """As the source has it."""
        return self.all_rows or self.source.partitioned_rows

    @property
    def block_columns(self) -> int:
        """As the source."""
        return self.source.block_columns

    def blocks(self) -> Batch:
        """Those of the source."""
        return self.source.blocks()

    def batches(self) -> list[Batch]:
        """As the source reads them."""
        return self.source.batches()

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """The source's own."""
        return self.source.reading()

    def place(self, row: int) -> str:
        """As the source names it."""
        return self.source.place(row)


class ChangedSource(WrappedSource):
    """A source each of whose blocks is changed, row by row; a subclass says how, and what stands for another source."""

    @abstractmethod
    def _changed(self, block: Any) -> Any:
        """A block, or rows, after the change."""

    @abstractmethod
    def _of(self, source: Source) -> Source:
        """Another source with the same change."""

    @property
    def fine(self) -> Source:
        """The fine source, changed."""
        return self._likewise(self.source.fine)

    def _likewise(self, source: Source) -> Source:
        """The same rows of the source in another form, changed."""
        if source is self.source:
            return self
        changed = self._of(source)
        changed.all_rows = self.all_rows
        return changed

    def read(self, start: int, stop: int) -> Any:
        """The source's rows, changed."""
        return self._changed(self.source.read(start, stop))

    def read_blocks(self, batch: Batch) -> Iterator[Any]:
        """The source's blocks, changed one by one."""
        return map(self._changed, self.source.read_blocks(batch))

    def take(self, rows: np.ndarray) -> Source:
        """The given rows of the source, to be changed."""
        return self._of(self.source.take(rows))


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


def row_blocks(source: Source, batches: list[Batch] | None = None) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Each block of rows with its place, as float32 or float64 numbers; of the given batches, or of all rows."""
    for batch in source.batches() if batches is None else batches:
        for place, block in zip(batch, source.read_blocks(batch), strict=True):
            yield place, as_float(block, source.dtype)
