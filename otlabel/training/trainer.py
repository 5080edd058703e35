"""Lightning's Trainer as a run has it: which settings a config may have, what it writes, and what it keeps quiet.

Everything here imports Lightning, which takes seconds: import this file where a run begins.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from otlabel.errors import MissingPackageError
from otlabel.selflabel.callbacks import lightning
from otlabel.sources.paths import load_plain
from otlabel.storage.atomic import replacing

try:
    pl: Any = lightning()
except MissingPackageError as error:
    raise MissingPackageError("pytorch-lightning", "training") from error

# What the other sections say, or what would end an epoch before all samples have come.
OURS = {
    "max_epochs": "[train] epochs says how long a run is",
    "min_epochs": "[train] epochs says how long a run is",
    "default_root_dir": "a run's files go to its own folder",
    "enable_checkpointing": "a run writes one checkpoint after each epoch",
    "use_distributed_sampler": "a run shares its samples out itself",
    "callbacks": "they are no plain values; build a Trainer of your own with otlabel.selflabel.callbacks",
    **dict.fromkeys(
        ("max_steps", "min_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run", "barebones"),
        "an epoch of a run is all of its samples",
    ),
    "reload_dataloaders_every_n_epochs": "a run makes its loaders itself",
}
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # dtypes that the extraction takes over


def trainer_of(asked: dict[str, Any], epochs: int, folder: Path | None, callbacks: list[Any], progress: bool) -> Any:
    """A Trainer by a config's [trainer] section.

    Args:
        asked: arguments of Lightning's Trainer. `accelerator` is "gpu" where there is CUDA, else "cpu", if nothing
            else is said; `devices` as many as torchrun has started processes here; `logger` true, false, the name of a
            class of `lightning.pytorch.loggers`, or a table of `name` and its arguments, and if nothing is said,
            TensorBoard's where that is installed.
        epochs: of the run, all in all.
        folder: of the run.
        callbacks: of the run.
        progress: whether to show Lightning's bar, if nothing else is said.

    Raises:
        ValueError: an argument that a Trainer does not have, that is not the config's to say, or a value that Lightning
            does not accept here.
    """
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    for name in asked:
        if name in OURS:
            raise ValueError(f"[trainer] has a key {name!r}, but {OURS[name]}; leave it out")
        if name not in known:
            (near,) = difflib.get_close_matches(name, known, 1) or [""]
            told = f"; {OURS[near]}" if near in OURS else f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"[trainer] has a key {name!r}, which is no argument of Lightning's Trainer{told}")
    settings = {
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        **asked,
    }
    if "LOCAL_WORLD_SIZE" in os.environ:
        settings.setdefault("devices", int(os.environ["LOCAL_WORLD_SIZE"]))
    elif settings["accelerator"] == "cpu":
        settings.setdefault("devices", 1)
    plugins = settings.pop("plugins", None) or []
    try:
        return pl.Trainer(
            max_epochs=epochs,
            default_root_dir=folder,
            callbacks=[*callbacks, *([_bar()] if settings["enable_progress_bar"] else [])],
            logger=_logger(settings.pop("logger", None), folder),
            enable_checkpointing=False,
            use_distributed_sampler=False,
            plugins=[*(plugins if isinstance(plugins, list) else [plugins]), WholeFiles()],
            **settings,
        )
    except MissingPackageError:
        raise
    except Exception as error:  # Lightning's own type is no ValueError
        told = " ".join(str(error).split())
        raise ValueError(f"[trainer] is not accepted by Lightning: {told}") from error


def _logger(asked: Any, folder: Path | None) -> Any:
    if asked is False or (asked is None and folder is None):
        return False
    if asked in (None, True):
        try:
            return pl.loggers.TensorBoardLogger(folder, name="tensorboard", version="")
        except ModuleNotFoundError:  # metrics.jsonl has the same figures
            if asked is None:
                return False
            raise
    given = {"name": asked} if isinstance(asked, str) else dict(asked)
    kind = getattr(pl.loggers, str(given.pop("name", "")), None)
    if not (isinstance(kind, type) and issubclass(kind, pl.loggers.Logger)):
        known = ", ".join(name for name in pl.loggers.__all__ if name != "Logger")
        raise ValueError(f"logger is {asked!r}; give true, false, one of {known}, or a table with such a name")
    if "save_dir" in inspect.signature(kind).parameters:
        given.setdefault("save_dir", "." if folder is None else str(folder))
    return kind(**given)


def _bar() -> Any:
    """Lightning's bar on stderr, gone at the end: what is printed on stdout stays readable for programs."""
    from tqdm.auto import tqdm

    class Bar(pl.callbacks.TQDMProgressBar):
        def init_train_tqdm(self) -> Any:
            return tqdm(disable=self.is_disabled, leave=False, dynamic_ncols=True, file=sys.stderr, smoothing=0)

        def get_metrics(self, *given: Any) -> dict[str, Any]:
            return {name: value for name, value in super().get_metrics(*given).items() if name != "v_num"}

    return Bar()


class WholeFiles(pl.plugins.io.TorchCheckpointIO):
    """Checkpoints that are whole or absent, and hold no code.

    Lightning's own go through a temporary file that may lie on another file system, from which they are copied: whoever
    is killed meanwhile leaves half a file. They are also not flushed to the disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it beside its place, flush it, and rename it."""
        image = io.BytesIO()  # an error on the way to the disk is then Python's, not inside torch
        torch.save(checkpoint, image)
        with replacing(path) as file:
            file.write(image.getbuffer())

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Tensors and plain values alone."""
        return dict(load_plain(Path(path)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning says what goes wrong, and nothing else."""
    loggers = [
        logging.getLogger(name)
        for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
    ]
    before = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=pl.utilities.warnings.PossibleUserWarning)
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities|lightning\.pytorch\.utilities")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, before, strict=True):
                one.setLevel(level)


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """An interrupt comes out of Lightning as such: it makes a SystemExit of it, and ignores those to come."""
    in_main = threading.current_thread() is threading.main_thread()
    usual = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, usual)
