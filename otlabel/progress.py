"""One form of progress: what is being done in words, how far it is and since when, in a line on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

Told = Callable[..., None]  # takes how many are done, of those that are counted, and a few words
TICK = 0.5  # seconds between two looks at the clock
FORM = "{desc} {n_fmt}{unit} [{elapsed}]{postfix}"
COUNTED = "{desc} {n_fmt}/{total_fmt}{unit} |{bar:20}| [{elapsed}]{postfix}"
UNCOUNTED = "{desc} [{elapsed}]{postfix}"


@contextlib.contextmanager
def progress(
    what: str, total: int | None = None, unit: str = "", *, shown: bool = True, delay: float = 0
) -> Iterator[Told]:
    """A line that lives as long as the work: its clock goes on while nothing is told.

    Args:
        what: is being done.
        total: how many of the unit there are, as far as is known; more than that is shown as it comes.
        unit: passes, epochs, files; nothing where nothing is counted.
        shown: whether anybody looks.
        delay: seconds after which it is worth telling.

    Yields:
        A function `told(n, note)`: so many are done, and what is done now.
    """
    if not shown:
        yield lambda n, note="": None
        return
    from tqdm.auto import tqdm

    form = COUNTED if total else FORM if unit else UNCOUNTED
    ended = threading.Event()
    with tqdm(desc=what, total=total, unit=f" {unit}", bar_format=form, leave=False, delay=delay) as bar:

        def tell(n: int, note: str = "") -> None:
            if total and n > bar.total:
                bar.total = n
            bar.set_postfix_str(note, refresh=False)
            bar.update(n - bar.n)

        def tick() -> None:
            if not ended.wait(delay):
                bar.delay = 0  # from now on there is a line, which tqdm else takes away only where numbers were told
                bar.refresh()
            while not ended.wait(TICK):
                bar.refresh()

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield tell
        finally:
            ended.set()
            ticking.join()
            if not delay:
                bar.refresh()  # what was told last, however quick it was


def say(text: str, file: TextIO | None = None) -> None:
    """A line on stderr, or another place, above a line of progress where there is one."""
    file = sys.stderr if file is None else file
    tqdm: Any = sys.modules.get("tqdm")
    if tqdm is None or not getattr(tqdm.tqdm, "_instances", None):
        print(text, file=file, flush=True)
    else:
        tqdm.tqdm.write(text, file=file)
