"""Collective operations over the processes of a torch.distributed group; one alone has them too, at no cost.

Rank 0 hears all others, adds up or joins what they send in the order of their ranks, and sends the result to all: so
every rank goes on with the same bits, whoever has which rows. Every message bears the number and the name of the step,
so that ranks on different ways notice it; who fails says so in place of its next message, who is lost or silent for
half of the group's timeout is named by rank 0 to the rest. Messages travel on a thread of their own, so that who waits
for one hears an interrupt, and tells the others at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from otlabel import errors
from otlabel.errors import OtlabelError, RankError
from otlabel.interrupts import came_of_interrupt
from otlabel.ranks.wire import Arrays, Listener, Message, Sending, Wire

if TYPE_CHECKING:
    import torch

OfRanks = list[tuple[int, np.ndarray]]  # other ranks, and an array that goes there or comes from there

PATIENCE_SHARE = 0.5  # of the group's timeout, after which rank 0 gives up a silent rank and can still tell the others
FEW_NUMBERS = 1 << 14  # that are joined to find the one in the middle
MOST_SHOWN = 8  # numbers of a setting in an error
LEAVE_SECONDS = 5.0  # that an interrupted rank takes at most to tell the others; who is told later finds it gone
DIGIT_BITS = 12  # of a number, found in one round when ranks look for the one in the middle


class SingleProcess:
    """One process that has all rows: nothing is sent."""

    world_size, rank = 1, 0
    bytes_sent = 0
    n_rounds = 0

    def __enter__(self) -> SingleProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def allgather_by_rank(self, name: str, arrays: Arrays) -> list[Arrays]:
        """The same arrays of every rank, in the order of ranks."""
        return [arrays]

    def allgather(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each array followed by those of the ranks after, along the first axis."""
        return arrays

    def allreduce(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums of each array over ranks."""
        return arrays

    def allreduce_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The same of a tensor, which stays where it is."""
        return tensor

    def broadcast(self, name: str, arrays: Arrays) -> Arrays:
        """The arrays of rank 0, on all ranks."""
        return arrays

    def barrier(self, name: str) -> None:
        """Wait until all ranks are here, and well."""

    def allreduce_max(self, name: str, *numbers: float) -> tuple[float, ...]:
        """The largest of each number over ranks."""
        return tuple(map(float, numbers))

    def allreduce_min(self, name: str, array: np.ndarray) -> np.ndarray:
        """The smallest of each number over ranks."""
        return array

    def first_text(self, name: str, text: str) -> str:
        """What the first rank that has something to tell says."""
        return text

    def median(self, name: str, values: np.ndarray) -> float:
        """The median of all values (float64, not negative) of all ranks."""
        return float(np.median(values))

    def allreduce_with(self, name: str, arrays: Arrays, merge: Callable[[list[Arrays]], Arrays]) -> Arrays:
        """What one rank makes of all ranks' arrays, on all ranks."""
        return merge([arrays])

    def check_alike(self, **settings: Any) -> None:
        """Raise RankError where ranks were called with different settings."""

    def exchange(self, name: str, outgoing: OfRanks, incoming: OfRanks) -> None:
        """Send arrays to other ranks, and fill others with what these send."""


SINGLE_PROCESS = SingleProcess()
Communicator: TypeAlias = "SingleProcess | ProcessGroup"

_ALL_GROUPS = threading.Lock()
_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # who works with a group now: a lock for each


def communicator_of(group: Any) -> Communicator:
    """The processes of a torch.distributed group; None: this one alone, and torch.distributed is not touched."""
    return SINGLE_PROCESS if group is None else ProcessGroup(group)


class ProcessGroup:
    """The processes of a group, to be entered while they work together: an error of one then ends the work of all."""

    def __init__(self, group: Any) -> None:
        import torch
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise RankError("a group was passed, but torch.distributed has no process group; call init_process_group")
        self._group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RankError("this process is no member of the group that was passed")
        self._device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        self._wire = Wire(group, self._device)
        self._patience = _timeout(group, self._device)
        self._step = 0
        self._ended = False  # whether the others know of the trouble
        self._listener: Listener | None = None
        self._unheard = set(range(1, self.world_size))  # on rank 0, whose next message nobody has asked for yet
        self.n_rounds = 0

    @property
    def bytes_sent(self) -> int:
        """By this process, so far."""
        return self._wire.bytes_sent

    # ---- what is sent ----

    def allgather_by_rank(self, name: str, arrays: Arrays) -> list[Arrays]:
        """The same arrays of every rank, in the order of ranks."""

        def merge(parts: list[Arrays]) -> Arrays:
            return {f"{number}/{key}": array for number, part in enumerate(parts) for key, array in part.items()}

        merged = self.allreduce_with(name, arrays, merge)
        return [{key: merged[f"{number}/{key}"] for key in arrays} for number in range(self.world_size)]

    def allgather(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each array followed by those of the ranks after, along the first axis."""
        return self._merged(name, arrays, np.concatenate)

    def allreduce(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums of each array over ranks."""
        return self._merged(name, arrays, lambda parts: np.asarray(np.sum(parts, 0)))

    def allreduce_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The same of a tensor, which stays where it is."""
        import torch.distributed as dist

        self.barrier(name)
        summed = tensor.to(self._device)
        dist.all_reduce(summed, group=self._group)
        return summed.to(tensor.device)

    def broadcast(self, name: str, arrays: Arrays) -> Arrays:
        """The arrays of rank 0, on all ranks."""
        return self.allreduce_with(name, arrays, lambda of_ranks: of_ranks[0])

    def barrier(self, name: str) -> None:
        """Wait until all ranks are here, and well."""
        self.allreduce_with(name, {}, lambda of_ranks: {})

    def allreduce_max(self, name: str, *numbers: float) -> tuple[float, ...]:
        """The largest of each number over ranks."""
        (found,) = self._merged(name, (np.array(numbers, np.float64),), lambda parts: np.max(parts, 0))
        return tuple(map(float, found))

    def allreduce_min(self, name: str, array: np.ndarray) -> np.ndarray:
        """The smallest of each number over ranks."""
        return self._merged(name, (array,), lambda parts: np.min(parts, 0))[0]

    def first_text(self, name: str, text: str) -> str:
        """What the first rank that has something to tell says."""
        of_ranks = self.allgather_by_rank(name, {"text": np.frombuffer(text.encode(), np.uint8)})
        texts = [of_rank["text"].tobytes().decode() for of_rank in of_ranks]
        return next(filter(None, texts), "")

    def median(self, name: str, values: np.ndarray) -> float:
        """The median of all values (float64, not negative) of all ranks, digit by digit of what stands for them."""
        number = int(self.allreduce(name, np.array(len(values)))[0])
        if number <= FEW_NUMBERS:
            return float(np.median(self.allgather(name, values)[0]))
        keys = np.sort(values + 0.0).view(np.uint64)  # of the same order as the numbers, -0 being 0
        below, behind, bits = 0, (number - 1) // 2, 63  # what the digits so far make, and how many are before it there
        while bits:
            width = min(DIGIT_BITS, bits)
            bits -= width
            edges = below + (np.arange((1 << width) + 1, dtype=np.uint64) << np.uint64(bits))
            (counts,) = self.allreduce(name, np.diff(np.searchsorted(keys, edges)))
            digit = int(np.searchsorted(np.cumsum(counts), behind, "right"))
            behind -= int(counts[:digit].sum())
            below = int(edges[digit])
        low = float(np.array([below], np.uint64).view(np.float64)[0])
        if number % 2:
            return low
        at = np.searchsorted(keys, np.uint64(below), "right")
        (equal,) = self.allreduce(name, np.array(at - np.searchsorted(keys, np.uint64(below))))
        above = float(keys[at : at + 1].view(np.float64)[0]) if at < len(keys) else math.inf
        following = -self.allreduce_max(name, -above)[0]
        return low if behind + 1 < int(equal) else (low + following) / 2

    def check_alike(self, **settings: Any) -> None:
        """Raise RankError where ranks were called with different settings."""
        own = np.frombuffer(json.dumps({key: _text(value) for key, value in settings.items()}).encode(), np.uint8)
        of_ranks = self.allgather_by_rank("settings", {"settings": own})
        first, *others = [json.loads(of_rank["settings"].tobytes()) for of_rank in of_ranks]
        for rank, other in enumerate(others, 1):
            for key, value in first.items():
                if other[key] != value:
                    raise RankError(
                        f"rank {rank} was called with {key}={other[key]}, rank 0 with {key}={value}; pass the same to "
                        "all ranks"
                    )

    def exchange(self, name: str, outgoing: OfRanks, incoming: OfRanks) -> None:
        """Send arrays to other ranks, and fill others with what these send."""
        self.barrier(name)
        sending = [self._wire.send_bytes(other, array.tobytes()) for other, array in outgoing if array.size]
        for other, array in incoming:
            if array.size:
                try:
                    body = self._wire.receive_bytes(other, array.nbytes)
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

        told = self.allreduce_with(name, {str(at): np.asarray(array) for at, array in enumerate(arrays)}, merge_each)
        return tuple(told[str(at)] for at in range(len(arrays)))

    # ---- how ----

    def allreduce_with(self, name: str, arrays: Arrays, merge: Callable[[list[Arrays]], Arrays]) -> Arrays:
        """What rank 0 makes of all ranks' arrays, on all ranks."""
        self._step += 1
        self.n_rounds += 1
        own = Message(self._step, name, arrays)
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
        self._aside(lambda: self._answer(heard, Message(self._step, name, merged)))
        return merged

    def _ask(self, own: Message) -> Message:
        """Tell rank 0, and hear what it makes of it."""
        self._wire.send(0, own.packed())
        return self._wire.receive(0)

    def _end(self, heard: list[Message], trouble: Message) -> None:
        self._aside(lambda: self._answer(heard, trouble))
        self._ended = True

    def _failure(self, error: BaseException) -> Message:
        kind, text = type(error).__name__, f": {error}"
        if came_of_interrupt(error):
            kind, text = KeyboardInterrupt.__name__, ""
        told = f"rank {self.rank} failed: {kind}{text}"
        return Message(self._step + 1, "failure", {}, told, kind, gone=True)

    def _heard(self, own: Message) -> list[Message]:
        """On rank 0, what everybody says at this step; of a rank that is lost or silent, that it is."""
        heard = [own]
        for other in range(1, self.world_size):
            self._unheard.discard(other)
            try:
                heard.append(self._aside(partial(self._wire.receive, other), self._patience))
            except (RuntimeError, TimeoutError) as error:
                heard.append(Message(own.step, own.name, {}, _lost(other, own.name, error), "RankError", gone=True))
        return heard

    def _answer(self, heard: list[Message], answer: Message) -> None:
        """Tell everybody who still listens."""
        self._unheard = {other for other, said in enumerate(heard) if other and not said.gone}
        body, sending = answer.packed(), list[Sending]()
        for other, said in enumerate(heard[1:], 1):
            if not said.gone:
                with contextlib.suppress(RuntimeError):  # who is lost now is found out at the next step
                    sending += self._wire.begin(other, body)
        for one in sending:
            with contextlib.suppress(RuntimeError):
                one.wait()

    def _take_leave(self, said: Message) -> None:
        """After an interrupt, tell the others at once: whatever else is on its way, this is what they hear next."""
        calls: list[Callable[[], Any]] = [lambda: self._wire.send(0, said.packed())]
        if self.rank == 0:
            body = said.packed()
            listening = sorted(self._unheard)  # each waits until it is heard; one was being listened to already
            calls = [partial(self._wire.send, other, body) for other in range(1, self.world_size)]
            calls += [partial(self._wire.receive, other) for other in listening]
        threads = [threading.Thread(target=_quietly, args=(call,), daemon=True) for call in calls]
        deadline = time.monotonic() + LEAVE_SECONDS
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def __enter__(self) -> ProcessGroup:
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
                    self._wire.send(0, said.packed())
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
            self._listener = Listener()
        return self._listener.result(wanted, seconds)


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


def _astray(own: Message, heard: list[Message]) -> Message | None:
    """What to say where ranks are not at the same step."""
    for rank, said in enumerate(heard):
        if (said.step, said.name) != (own.step, own.name):
            told = (
                f"rank {rank} is at step {said.step} ({said.name}), rank 0 at step {own.step} ({own.name}); call the "
                "same functions with the same arguments on all ranks"
            )
            return Message(own.step, own.name, {}, told, "RankError")
    return None


def _raised(said: Message) -> Exception:
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
