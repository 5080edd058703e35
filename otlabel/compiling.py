"""Functions compiled by numba, here and nowhere else: what becomes of its files on the disk decides nothing.

Compiled code is kept where numba itself looks for it: in NUMBA_CACHE_DIR, else in `__pycache__` beside the source, else
in the user's cache. It is read from whichever of these has it and written to the first that takes it; where none does,
each process compiles anew and says so once. Each file ends in a digest of the code and of all that it was made from
(the function, its source file, the types, the processor, the versions), so that one that is damaged, cut short, of
another version or half replaced by another process is no code at all, and is written anew. A function and the compiled
ones that it calls stand in one folder: the digest sees all its source files that have any.

What a process compiles and what the next one reads compute the same bits: compiled code runs its own copies of the
functions that it calls, never another's that the process happens to hold by the same name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np
from llvmlite.binding import Linkage
from numba.core import serialize
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult

from otlabel.errors import OtlabelWarning
from otlabel.progress import say

Function = TypeVar("Function", bound=Callable[..., Any])

DIGEST_BYTES = 32
_NOT_TOLD = threading.Lock()  # taken for good by who warns first
_NOT_ANNOUNCED = threading.Lock()  # likewise by who says that compiling begins


def njit(*, cache: bool = False, **options: Any) -> Callable[[Function], Function]:
    """numba's decorator of that name, with a cache that never fails."""

    def compiled(function: Function) -> Function:
        dispatcher = numba.njit(pipeline_class=_Compiler, **options)(function)
        if dispatcher is function:
            return _uncompiled(function)
        if cache:
            try:
                dispatcher._cache = _Cache(function)
            except OSError as error:  # there is no source file to tell old code from new by
                _tell(error)
        return dispatcher

    return compiled


def _uncompiled(function: Function) -> Function:
    """Plain Python, under NUMBA_DISABLE_JIT: its numbers overflow as silently as compiled ones."""

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return called  # type: ignore[return-value]


class _Library(JITCodeLibrary):
    """Object code whose calls stay within it.

    numba leaves the copies of called functions in it to be merged, by name, with those of whatever the process has
    compiled or read before. They are optimised for their callers and differ in their last bits, so that results would
    depend on what else has run.
    """

    def _finalize_final_module(self) -> None:
        self._finalized = True  # all but its object code, for which the linkage of the copies is about to change
        self._shared_module = self._get_module_for_linking()  # a copy
        for function in self._final_module.functions:
            if function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal
        super()._finalize_final_module()


class _Compiler(Compiler):
    """numba's compiler, which writes into such a library."""

    def compile_extra(self, function: Callable[..., Any]) -> CompileResult:
        self.state.library = _Library(self.state.targetctx.codegen(), function.__qualname__)
        self.state.library.enable_object_caching()  # so that it can be written
        return super().compile_extra(function)


class _Cache:
    """Compiled code of one function; numba asks for it and hands it over here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self._source = code.co_filename
        self._name = f"{Path(self._source).stem}.{function.__qualname__}-{code.co_firstlineno}"
        self._versions = numba.__version__, llvmlite.__version__, _source_digest(self._source)

    @property
    def cache_path(self) -> str:
        """Where numba's statistics say that the files are."""
        return str(_folders(self._source)[0])

    def flush(self) -> None:
        """Forget nothing: a file is written over when its function is compiled anew."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The function for arguments of these types, or None where it is to be compiled."""
        context.refresh()  # what numba's own cache does first
        made_from = self._made_from(signature, context.codegen())
        for path in self._paths(made_from):
            try:
                stored = path.read_bytes()
            except OSError:
                continue
            code = stored[:-DIGEST_BYTES]
            if stored[-DIGEST_BYTES:] == self._digest(made_from, code):
                return CompileResult._rebuild(context, *serialize.loads(code))
        _announce()
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write what was compiled to the first place that takes it."""
        if compiled.library.has_dynamic_globals:
            return  # code that holds addresses of this process
        made_from = self._made_from(signature, compiled.codegen)
        code = serialize.dumps(compiled._reduce())
        stored, reasons = code + self._digest(made_from, code), list[OSError]()
        for path in self._paths(made_from):
            try:
                _replace(path, stored)
            except OSError as error:
                reasons.append(error)
            else:
                return
        _tell(reasons[0])

    def _made_from(self, signature: Any, codegen: Any) -> str:
        return repr((tuple(getattr(signature, "args", signature)), codegen.magic_tuple()))

    def _paths(self, made_from: str) -> Iterator[Path]:
        version = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
        name = f"{self._name}.{version}.{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.nbc"
        for folder in _folders(self._source):
            yield folder / name

    def _digest(self, made_from: str, code: bytes) -> bytes:
        return hashlib.sha256(repr((self._name, self._versions, made_from)).encode() + code).digest()


def _folders(source: str) -> list[Path]:
    """Where compiled code of a source file may be, in the order in which places are tried."""
    folder = os.path.dirname(os.path.abspath(source))
    own = f"{os.path.basename(folder)}_{hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()}"
    given = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    of_user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [*([Path(given, own)] if given else []), Path(folder, "__pycache__"), Path(of_user, "numba", own)]
    return [place for place in places if place.is_absolute()]  # who has no home has "~"


@functools.cache
def _source_digest(source: str) -> str:
    own = Path(source)
    beside = (path.read_bytes() for path in sorted(own.parent.glob("*.py")) if path != own)
    texts = [Path(__file__).read_bytes(), own.read_bytes(), *(text for text in beside if b"njit" in text)]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it need not outlast a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _announce() -> None:
    """Say to somebody who sits there what they wait for, once in a process."""
    waits = (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules
    if waits and _NOT_ANNOUNCED.acquire(blocking=False):
        say("otlabel compiles for this machine, once: about ten seconds (`otlabel warmup` does it ahead)")


def _tell(reason: object) -> None:
    """Warn that nothing is kept, once in a process."""
    if _NOT_TOLD.acquire(blocking=False):
        warnings.warn(
            f"compiled code cannot be kept ({reason}), so that each process compiles anew, which takes ten seconds or "
            "more; set NUMBA_CACHE_DIR to a folder that can be written to",
            OtlabelWarning,
            stacklevel=2,
        )
