"""What the processes of a torch.distributed group tell each other; one alone tells itself, at no cost.

Rank 0 hears all others, adds up or joins what they say in the order of their ranks, and tells the result to all: so
every rank goes on with the same bits, whoever has which rows. Every message bears the number and the name of the step,
so that ranks on different ways notice it; who fails says so in place of its next message, who is lost or silent for
half of the group's timeout is named by rank 0 to the rest. Messages travel on a thread of their own, so that who waits
for one hears an interrupt, and tells the others at once. Messages are arrays and JSON; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from otlabel import errors
from otlabel.errors import OtlabelError, RankError
from otlabel.interrupts import came_of_interrupt

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]

TAG = 20_200_427  # any number: keeps these messages apart from others of the same group
FRAME = 1 << 13  # bytes that are sent at once; most messages need no second part
PATIENCE_SHARE = 0.5  # of the group's timeout, after which rank 0 gives up a silent rank and can still tell the others
FEW_NUMBERS = 1 << 14  # that are joined to find the one in the middle
MOST_SHOWN = 8  # numbers of a setting in an error
LEAVE_SECONDS = 5.0  # that an interrupted rank takes at most to tell the others; who is told later finds it gone
DIGIT_BITS = 12  # of a number, found in one round when ranks look for the one in the middle


class Alone:
    """One process that has all rows: nothing is sent."""

    number, rank = 1, 0
    bytes_sent = 0
    n_rounds = 0

    def __enter__(self) -> Alone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def parts(self, name: str, arrays: Arrays) -> list[Arrays]:
        """The same arrays of every rank, in the order of ranks."""
        return [arrays]

    def joined(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each array followed by those of the ranks after, along the first axis."""
        return arrays

    def total(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums of each array over ranks."""
        return arrays

    def total_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The same of a tensor, which stays where it is."""
        return tensor

    def largest(self, name: str, *numbers: float) -> tuple[float, ...]:
        """The largest of each number over ranks."""
        return tuple(map(float, numbers))

    def least(self, name: str, array: np.ndarray) -> np.ndarray:
        """The smallest of each number over ranks."""
        return array

    def first(self, name: str, text: str) -> str:
        """What the first rank that has something to tell says."""
        return text

    def median(self, name: str, values: np.ndarray) -> float:
        """The median of all values (float64, not negative) of all ranks."""
        return float(np.median(values))

    def agree(self, name: str, arrays: Arrays, merge: Callable[[list[Arrays]], Arrays]) -> Arrays:
        """What one rank makes of all ranks' arrays, on all ranks."""
        return merge([arrays])

    def check_alike(self, **settings: Any) -> None:
        """Raise RankError where ranks were called with different settings."""

    def swap(self, name: str, outgoing: list[tuple[int, np.ndarray]], incoming: list[tuple[int, np.ndarray]]) -> None:
        """Send arrays to other ranks, and fill others with what these send."""


ALONE = Alone()

_ALL_GROUPS = threading.Lock()
_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # who works with a group now: a lock for each


def ranks_of(group: Any) -> Alone:
    """The processes of a torch.distributed group; None: this one alone, and torch.distributed is not touched."""
    return ALONE if group is None else Ranks(group)


@dataclass(eq=False)
class _Message:
    """What a rank says at a step: arrays, or the trouble that ended its work."""

    step: int
    name: str
    arrays: Arrays = field(default_factory=dict)
    trouble: str = ""
    kind: str = ""  # of error, for the same one to be raised elsewhere
    gone: bool = False  # whether its sender hears no answer any more

    def packed(self) -> bytes:
        header = [self.step, self.name, self.trouble, self.kind, self.gone]
        kinds = [[key, array.dtype.str, array.shape] for key, array in self.arrays.items()]
        told = json.dumps([header, kinds]).encode()
        body = b"".join([told, *(array.tobytes() for array in self.arrays.values())])
        return struct.pack("<QQ", len(body), len(told)) + body

    @classmethod
    def unpacked(cls, body: bytes, n_told: int) -> _Message:
        header, kinds = json.loads(body[:n_told])
        step, name, trouble, kind, gone = header
        arrays, at = {}, n_told
        for key, dtype, shape in kinds:
            size = math.prod(shape)
            arrays[key] = np.frombuffer(body, dtype, size, at).reshape(shape).copy()  # to be written to, and aligned
            at += arrays[key].nbytes
        return cls(step, name, arrays, trouble, kind, gone)


class Ranks(Alone):
    """The processes of a group, to be entered while they work together: an error of one then ends the work of all."""

    def __init__(self, group: Any) -> None:
        import torch
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise RankError("a group was passed, but torch.distributed has no process group; call init_process_group")
        self._group = group
        self.rank, self.number = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RankError("this process is no member of the group that was passed")
        self._device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        self._patience = _timeout(group, self._device)
        self._step = 0
        self._ended = False  # whether the others know of the trouble
        self._listener: _Listener | None = None
        self._unheard = set(range(1, self.number))  # on rank 0, whose next message nobody has asked for yet
        self._sending = threading.Lock()  # while parts of one message go out
        self.bytes_sent = self.n_rounds = 0

    # ---- what is told ----

    def parts(self, name: str, arrays: Arrays) -> list[Arrays]:
        """The same arrays of every rank, in the order of ranks."""

        def merge(parts: list[Arrays]) -> Arrays:
            return {f"{number}/{key}": array for number, part in enumerate(parts) for key, array in part.items()}

        told = self.agree(name, arrays, merge)
        return [{key: told[f"{number}/{key}"] for key in arrays} for number in range(self.number)]

    def joined(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each array followed by those of the ranks after, along the first axis."""
        return self._merged(name, arrays, np.concatenate)

    def total(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums of each array over ranks."""
        return self._merged(name, arrays, lambda parts: np.asarray(np.sum(parts, 0)))

    def total_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The same of a tensor, which stays where it is."""
        import torch.distributed as dist

        self.total(name)  # all are here, and well
        summed = tensor.to(self._device)
        dist.all_reduce(summed, group=self._group)
        return summed.to(tensor.device)

    def largest(self, name: str, *numbers: float) -> tuple[float, ...]:
        """The largest of each number over ranks."""
        (found,) = self._merged(name, (np.array(numbers, np.float64),), lambda parts: np.max(parts, 0))
        return tuple(map(float, found))

    def least(self, name: str, array: np.ndarray) -> np.ndarray:
        """The smallest of each number over ranks."""
        return self._merged(name, (array,), lambda parts: np.min(parts, 0))[0]

    def first(self, name: str, text: str) -> str:
        """What the first rank that has something to tell says."""
        told = self.parts(name, {"text": np.frombuffer(text.encode(), np.uint8)})
        texts = [part["text"].tobytes().decode() for part in told]
        return next(filter(None, texts), "")

    def median(self, name: str, values: np.ndarray) -> float:
        """The median of all values (float64, not negative) of all ranks, digit by digit of what stands for them."""
        number = int(self.total(name, np.array(len(values)))[0])
        if number <= FEW_NUMBERS:
            return float(np.median(self.joined(name, values)[0]))
        keys = np.sort(values + 0.0).view(np.uint64)  # of the same order as the numbers, -0 being 0
        below, behind, bits = 0, (number - 1) // 2, 63  # what the digits so far make, and how many are before it there
        while bits:
            width = min(DIGIT_BITS, bits)
            bits -= width
            edges = below + (np.arange((1 << width) + 1, dtype=np.uint64) << np.uint64(bits))
            (counts,) = self.total(name, np.diff(np.searchsorted(keys, edges)))
            digit = int(np.searchsorted(np.cumsum(counts), behind, "right"))
            behind -= int(counts[:digit].sum())
            below = int(edges[digit])
        low = float(np.array([below], np.uint64).view(np.float64)[0])
        if number % 2:
            return low
        at = np.searchsorted(keys, np.uint64(below), "right")
        (equal,) = self.total(name, np.array(at - np.searchsorted(keys, np.uint64(below))))
        above = float(keys[at : at + 1].view(np.float64)[0]) if at < len(keys) else math.inf
        following = -self.largest(name, -above)[0]
        return low if behind + 1 < int(equal) else (low + following) / 2

    def check_alike(self, **settings: Any) -> None:
        """Raise RankError where ranks were called with different settings."""
        told = np.frombuffer(json.dumps({key: _text(value) for key, value in settings.items()}).encode(), np.uint8)
        first, *others = [json.loads(part["settings"].tobytes()) for part in self.parts("settings", {"settings": told})]
        for rank, other in enumerate(others, 1):
            for key, value in first.items():
                if other[key] != value:
                    raise RankError(
                        f"rank {rank} was called with {key}={other[key]}, rank 0 with {key}={value}; pass the same to "
                        "all ranks"
                    )

    def swap(self, name: str, outgoing: list[tuple[int, np.ndarray]], incoming: list[tuple[int, np.ndarray]]) -> None:
        """Send arrays to other ranks, and fill others with what these send."""
        self.total(name)  # all are here, and well
        sending = [self._send_bytes(other, array.tobytes()) for other, array in outgoing if array.size]
        for other, array in incoming:
            if array.size:
                try:
                    body = self._receive_bytes(other, array.nbytes)
                except RuntimeError as error:
                    raise RankError(_lost(other, name, error)) from error
                array[...] = np.frombuffer(body, array.dtype).reshape(array.shape)
        for work in sending:
            work.wait()

    def _merged(
        self, name: str, arrays: tuple[np.ndarray, ...], merge: Callable[[list[np.ndarray]], np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        def merge_each(parts: list[Arrays]) -> Arrays:
            return {key: merge([part[key] for part in parts]) for key in parts[0]}

        told = self.agree(name, {str(at): np.asarray(array) for at, array in enumerate(arrays)}, merge_each)
        return tuple(told[str(at)] for at in range(len(arrays)))

    # ---- how ----

    def agree(self, name: str, arrays: Arrays, merge: Callable[[list[Arrays]], Arrays]) -> Arrays:
        """What rank 0 makes of all ranks' arrays, on all ranks."""
        self._step += 1
        self.n_rounds += 1
        own = _Message(self._step, name, arrays)
        if self.rank:
            try:
                answer = self._aside(lambda: self._ask(own))
            except RuntimeError as error:
                self._ended = True
                raise RankError(_lost(0, name, error)) from error
            if answer.trouble:
                self._ended = True
                raise _raised(answer)
            return answer.arrays
        heard = self._heard(own)
        trouble = next((said for said in heard if said.trouble), None) or _astray(own, heard)
        if trouble is not None:
            self._end(heard, trouble)
            raise _raised(trouble)
        try:
            merged = merge([said.arrays for said in heard])
        except Exception as error:
            self._end(heard, self._failure(error))
            raise
        self._aside(lambda: self._answer(heard, _Message(self._step, name, merged)))
        return merged

    def _ask(self, own: _Message) -> _Message:
        """Tell rank 0, and hear what it makes of it."""
        self._send(own)
        return self._receive(0)

    def _end(self, heard: list[_Message], trouble: _Message) -> None:
        self._aside(lambda: self._answer(heard, trouble))
        self._ended = True

    def _failure(self, error: BaseException) -> _Message:
        kind, text = type(error).__name__, f": {error}"
        if came_of_interrupt(error):
            kind, text = KeyboardInterrupt.__name__, ""
        told = f"rank {self.rank} failed: {kind}{text}"
        return _Message(self._step + 1, "failure", {}, told, kind, gone=True)

    def _heard(self, own: _Message) -> list[_Message]:
        """On rank 0, what everybody says at this step; of a rank that is lost or silent, that it is."""
        heard = [own]
        for other in range(1, self.number):
            self._unheard.discard(other)
            try:
                heard.append(self._aside(partial(self._receive, other), self._patience))
            except (RuntimeError, TimeoutError) as error:
                heard.append(_Message(own.step, own.name, {}, _lost(other, own.name, error), "RankError", gone=True))
        return heard

    def _answer(self, heard: list[_Message], answer: _Message) -> None:
        """Tell everybody who still listens."""
        self._unheard = {other for other, said in enumerate(heard) if other and not said.gone}
        body, sending = answer.packed(), list[_Sent]()
        for other, said in enumerate(heard[1:], 1):
            if not said.gone:
                with contextlib.suppress(RuntimeError):  # who is lost now is found out at the next step
                    sending += self._begin(other, body)
        for one in sending:
            with contextlib.suppress(RuntimeError):
                one.wait()

    def _take_leave(self, said: _Message) -> None:
        """After an interrupt, tell the others at once: whatever else is on its way, this is what they hear next."""
        calls: list[Callable[[], Any]] = [lambda: self._send(said)]
        if self.rank == 0:
            body = said.packed()
            listening = sorted(self._unheard)  # each waits until it is heard; one was being listened to already
            calls = [partial(self._tell, other, body) for other in range(1, self.number)]
            calls += [partial(self._receive, other) for other in listening]
        threads = [threading.Thread(target=_quietly, args=(call,), daemon=True) for call in calls]
        deadline = time.monotonic() + LEAVE_SECONDS
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _tell(self, other: int, body: bytes) -> None:
        for one in self._begin(other, body):
            one.wait()

    def __enter__(self) -> Ranks:
        with _ALL_GROUPS:
            self._in_use = _GROUPS.setdefault(self._group, threading.RLock())  # a command and its solve use one group
        if not self._in_use.acquire(blocking=False):
            raise RankError(
                "another thread works with this group now, and messages of the two would mix; let one end before the "
                "other begins, or give each a group of its own (torch.distributed.new_group)"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An error that the others do not know of yet is told in place of the next message."""
        try:
            self._leave(error)
        finally:
            self._in_use.release()

    def _leave(self, error: BaseException | None) -> None:
        if error is not None and not self._ended and not getattr(error, "known_to_ranks", False):
            said = self._failure(error)
            with contextlib.suppress(RuntimeError):
                if not isinstance(error, Exception) or came_of_interrupt(error):
                    self._take_leave(said)
                elif self.rank:
                    self._send(said)
                else:
                    self._answer(self._heard(said), said)
        if error is not None:
            with contextlib.suppress(AttributeError):
                error.known_to_ranks = True  # type: ignore[attr-defined]
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _aside(self, wanted: Callable[[], Any], seconds: float | None = None) -> Any:
        """What a call returns that sends or receives, or TimeoutError while the others can still be told.

        A wait that times out within gloo closes the connections to all ranks, and one within it hears no interrupt, so
        it goes on in a thread of its own.
        """
        if self._listener is None or self._listener.is_stuck:
            self._listener = _Listener()
        return self._listener.result(wanted, seconds)

    def _send(self, message: _Message) -> None:
        """To rank 0."""
        for one in self._begin(0, message.packed()):
            one.wait()

    def _begin(self, other: int, body: bytes) -> list[_Sent]:
        with self._sending:
            sending = [self._send_bytes(other, body[:FRAME].ljust(FRAME, b"\0"))]
            return [*sending, self._send_bytes(other, body[FRAME:])] if len(body) > FRAME else sending

    def _receive(self, other: int) -> _Message:
        frame = self._receive_bytes(other, FRAME)
        n_body, n_told = struct.unpack_from("<QQ", frame)
        body = frame[16 : 16 + n_body]
        if n_body > len(body):
            body += self._receive_bytes(other, n_body - len(body))
        return _Message.unpacked(body, n_told)

    def _send_bytes(self, other: int, body: bytes) -> _Sent:
        import torch
        import torch.distributed as dist

        self.bytes_sent += len(body)
        tensor = torch.frombuffer(bytearray(body), dtype=torch.uint8).to(self._device)
        work = dist.isend(tensor, self._global(other), group=self._group, tag=TAG)
        return _Sent(work, tensor)

    def _receive_bytes(self, other: int, number: int) -> bytes:
        import torch
        import torch.distributed as dist

        tensor = torch.empty(number, dtype=torch.uint8, device=self._device)
        dist.recv(tensor, self._global(other), group=self._group, tag=TAG)
        return tensor.cpu().numpy().tobytes()

    def _global(self, other: int) -> int:
        import torch.distributed as dist

        return dist.get_global_rank(self._group, other)


@dataclass(frozen=True, eq=False)
class _Sent:
    """A message on its way, kept alive until it is there."""

    work: Any
    tensor: torch.Tensor

    def wait(self) -> None:
        self.work.wait()


class _Listener:
    """A thread that waits where the main one must not."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.is_stuck = False

    def _listen(self) -> None:
        while (wanted := self._asked.get()) is not None:
            try:
                self._told.put((wanted(), None))
            except BaseException as error:
                self._told.put((None, error))

    def result(self, wanted: Callable[[], Any], seconds: float | None) -> Any:
        """What the call returns or raises, or TimeoutError; the thread is of no use after that, or an interrupt."""
        self.is_stuck = True
        self._asked.put(wanted)
        try:
            found, error = self._told.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no word from it for {seconds:.3g} s") from None
        self.is_stuck = False
        if error is not None:
            raise error
        return found

    def close(self) -> None:
        self._asked.put(None)
        if not self.is_stuck:
            self._thread.join()


@dataclass(frozen=True, eq=False)
class Share:
    """Which rows of all ranks' this process works on: `first` up to `stop` of `n_rows`."""

    team: Alone
    first: int
    stop: int
    n_rows: int

    def within(self, rows: np.ndarray) -> np.ndarray:
        """Those of the sorted rows of all that are here, counted from the first here."""
        low, high = np.searchsorted(rows, (self.first, self.stop))
        return rows[low:high] - self.first


class Layout:
    """Who has which rows, in the order of ranks, and who works on which: whole blocks, so that sums have the same bits.

    A block belongs to the rank where it begins; the few rows of it that other ranks have are sent there.
    """

    def __init__(self, team: Alone, counts: np.ndarray, block_rows: int) -> None:
        self._team = team
        self._ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        total = int(self._ends[-1])
        begun = np.minimum(-(-self._ends // block_rows) * block_rows, total)
        begun[0], begun[-1] = 0, total
        self._begun = begun
        rank = team.rank
        self.share = Share(team, int(begun[rank]), int(begun[rank + 1]), total)
        self.first, self.stop = int(self._ends[rank]), int(self._ends[rank + 1])  # what this rank has
        self.skip = min(self.share.first, self.stop) - self.first  # rows at its beginning that another works on
        self.n_more = max(self.share.stop - max(self.stop, self.share.first), 0)  # that come from others

    def origin(self, row: int) -> tuple[int, int]:
        """The rank that has a row of all, and its number there."""
        rank = int(np.searchsorted(self._ends, row, side="right")) - 1
        return rank, row - int(self._ends[rank])

    def moved(self, name: str, head: np.ndarray) -> np.ndarray:
        """The rows that come from others, once they have been sent, for the `skip` first rows here."""
        outgoing = [(rank, head[low - self.first : high - self.first]) for rank, low, high in self._of_others()]
        tail = np.empty((self.n_more, *head.shape[1:]), head.dtype)
        at = max(self.stop, self.share.first)
        incoming = [(rank, tail[low - at : high - at]) for rank, low, high in self._from_others()]
        self._team.swap(name, outgoing, incoming)
        return tail

    def returned(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Of something for each row worked on here, (M, ...), what belongs to each row that this rank has."""
        head = np.empty((self.skip, *rows.shape[1:]), rows.dtype)
        at = self.share.first
        outgoing = [(rank, rows[low - at : high - at]) for rank, low, high in self._from_others()]
        incoming = [(rank, head[low - self.first : high - self.first]) for rank, low, high in self._of_others()]
        self._team.swap(name, outgoing, incoming)
        kept = min(self.stop, self.share.stop) - self.share.first
        return np.concatenate([head, rows[: max(kept, 0)]])

    def _of_others(self) -> Iterator[tuple[int, int, int]]:
        """Ranks that work on rows of this one, and from which row to which."""
        for rank in range(self._team.number):
            low, high = max(self.first, int(self._begun[rank])), min(self.stop, int(self._begun[rank + 1]))
            if rank != self._team.rank and low < high:
                yield rank, low, high

    def _from_others(self) -> Iterator[tuple[int, int, int]]:
        """Ranks that have rows which this one works on."""
        for rank in range(self._team.number):
            low, high = max(self.share.first, int(self._ends[rank])), min(self.share.stop, int(self._ends[rank + 1]))
            if rank != self._team.rank and low < high:
                yield rank, low, high


def _quietly(call: Callable[[], Any]) -> None:
    """To who may be gone."""
    with contextlib.suppress(Exception):
        call()


def _timeout(group: Any, device: torch.device) -> float | None:
    """Seconds that rank 0 waits for a rank; None where the group does not tell its timeout."""
    try:
        return PATIENCE_SHARE * group._get_backend(device).options._timeout.total_seconds()
    except (AttributeError, RuntimeError):
        return None


def _astray(own: _Message, heard: list[_Message]) -> _Message | None:
    """What to say where ranks are not at the same step."""
    for rank, said in enumerate(heard):
        if (said.step, said.name) != (own.step, own.name):
            told = (
                f"rank {rank} is at step {said.step} ({said.name}), rank 0 at step {own.step} ({own.name}); call the "
                "same functions with the same arguments on all ranks"
            )
            return _Message(own.step, own.name, {}, told, "RankError")
    return None


def _raised(said: _Message) -> Exception:
    """The error to raise here for another rank's."""
    kind = getattr(errors, said.kind, RankError)
    if not (isinstance(kind, type) and issubclass(kind, OtlabelError)):
        kind = RankError
    return kind(said.trouble)


def _lost(rank: int, name: str, error: BaseException) -> str:
    return f"rank {rank} was lost at {name!r}: " + str(error).strip().partition("\n")[0]


def _text(value: Any) -> str:
    """A setting in a few words; large arrays by their shape and a digest."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.size > MOST_SHOWN:
        return f"array {array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()[:12]}"
    return str(array.tolist() if array.dtype.kind in "iuf" else value)
