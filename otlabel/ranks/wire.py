"""Messages between two processes of a group: arrays and JSON, in frames of one size; nothing is pickled."""

from __future__ import annotations

import json
import math
import queue
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]

TAG = 20_200_427  # any number: keeps these messages apart from others of the same group
FRAME = 1 << 13  # bytes that are sent at once; most messages need no second part


@dataclass(eq=False)
class Message:
    """What a rank says at a step: arrays, or the trouble that ended its work."""

    step: int
    name: str
    arrays: Arrays = field(default_factory=dict)
    trouble: str = ""
    kind: str = ""  # of error, for the same one to be raised elsewhere
    gone: bool = False  # whether its sender hears no answer any more

    def packed(self) -> bytes:
        """Lengths, what the arrays are, and their bytes."""
        header = [self.step, self.name, self.trouble, self.kind, self.gone]
        kinds = [[key, array.dtype.str, array.shape] for key, array in self.arrays.items()]
        about = json.dumps([header, kinds]).encode()
        body = b"".join([about, *(array.tobytes() for array in self.arrays.values())])
        return struct.pack("<QQ", len(body), len(about)) + body

    @classmethod
    def unpacked(cls, body: bytes, n_about: int) -> Message:
        """The message whose description has so many bytes."""
        header, kinds = json.loads(body[:n_about])
        step, name, trouble, kind, gone = header
        arrays, at = {}, n_about
        for key, dtype, shape in kinds:
            size = math.prod(shape)
            arrays[key] = np.frombuffer(body, dtype, size, at).reshape(shape).copy()  # to be written to, and aligned
            at += arrays[key].nbytes
        return cls(step, name, arrays, trouble, kind, gone)


@dataclass(frozen=True, eq=False)
class Sending:
    """Bytes on their way, kept alive until they are there."""

    work: Any
    tensor: torch.Tensor

    def wait(self) -> None:
        """Until they are there."""
        self.work.wait()


class Wire:
    """Sends and receives within a torch.distributed group, and counts the bytes sent."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group, self._device = group, device
        self._sending = threading.Lock()  # while parts of one message go out
        self.bytes_sent = 0

    def begin(self, other: int, packed: bytes) -> list[Sending]:
        """Begin to send a packed message."""
        with self._sending:
            sending = [self.send_bytes(other, packed[:FRAME].ljust(FRAME, b"\0"))]
            return [*sending, self.send_bytes(other, packed[FRAME:])] if len(packed) > FRAME else sending

    def send(self, other: int, packed: bytes) -> None:
        """Send a packed message, and wait until it is there."""
        for part in self.begin(other, packed):
            part.wait()

    def receive(self, other: int) -> Message:
        """The next message of a rank."""
        frame = self.receive_bytes(other, FRAME)
        n_body, n_about = struct.unpack_from("<QQ", frame)
        body = frame[16 : 16 + n_body]
        if n_body > len(body):
            body += self.receive_bytes(other, n_body - len(body))
        return Message.unpacked(body, n_about)

    def send_bytes(self, other: int, body: bytes) -> Sending:
        """Begin to send bytes as they are."""
        import torch
        import torch.distributed as dist

        self.bytes_sent += len(body)
        tensor = torch.frombuffer(bytearray(body), dtype=torch.uint8).to(self._device)
        return Sending(dist.isend(tensor, self._global(other), group=self._group, tag=TAG), tensor)

    def receive_bytes(self, other: int, number: int) -> bytes:
        """So many bytes, which the other sends as they are."""
        import torch
        import torch.distributed as dist

        tensor = torch.empty(number, dtype=torch.uint8, device=self._device)
        dist.recv(tensor, self._global(other), group=self._group, tag=TAG)
        return tensor.cpu().numpy().tobytes()

    def _global(self, other: int) -> int:
        import torch.distributed as dist

        return dist.get_global_rank(self._group, other)


class Listener:
    """A thread that waits where the main one must not."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.is_stuck = False

    def _listen(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._results.put((call(), None))
            except BaseException as error:
                self._results.put((None, error))

    def result(self, call: Callable[[], Any], seconds: float | None) -> Any:
        """What the call returns or raises, or TimeoutError; the thread is of no use after that, or an interrupt."""
        self.is_stuck = True
        self._calls.put(call)
        try:
            result, error = self._results.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no word from it for {seconds:.3g} s") from None
        self.is_stuck = False
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread once it waits for nothing."""
        self._calls.put(None)
        if not self.is_stuck:
            self._thread.join()
