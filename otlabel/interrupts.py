"""An interrupt is a KeyboardInterrupt, wherever it came: compiled code that is being loaded may make another of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def came_of_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or one that code below Python made of it, as it does of what it cannot pass on.

    That is a SystemError, or from within the import of a package an ImportError; both have what happened as a cause.
    """
    while isinstance(error, (SystemError, ImportError)) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, KeyboardInterrupt)


def interruptible(function: Function) -> Function:
    """The function, out of which an interrupt comes as what it is."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (SystemError, ImportError) as error:
            if not came_of_interrupt(error):
                raise
            interrupt = KeyboardInterrupt()
            interrupt.known_to_ranks = getattr(error, "known_to_ranks", False)  # type: ignore[attr-defined]
            raise interrupt from error

    return called  # type: ignore[return-value]
