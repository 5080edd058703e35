"""Self-labelling inside of other people's training loops: PyTorch Lightning and the Trainer of Hugging Face."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from otlabel.errors import FileFormatError, FingerprintError, MissingPackageError
from otlabel.selflabel.labeler import SelfLabeler
from otlabel.selflabel.model import unwrapped
from otlabel.selflabel.weights import weights_hash
from otlabel.sources.paths import load_plain
from otlabel.storage.atomic import replacing

Loader = Iterable[Any] | Callable[[], Iterable[Any]]

STATE_FILE = "otlabel.pt"
FIGURES = "quality", "churn", "entropy", "gap", "loss", "unlabelled", "nmi"  # of a relabelling, for loggers
LIGHTNING = ("lightning.pytorch", "pytorch_lightning")  # two packages with the same contents


def lightning_callback(labeler: SelfLabeler, loader: Loader | None, model: nn.Module | None = None) -> Any:
    """A callback for PyTorch Lightning that relabels when the labeler's schedule says so, and resumes with the trainer.

        trainer = Trainer(callbacks=[lightning_callback(labeler, full_loader)])

        def training_step(self, batch, batch_idx):  # of the LightningModule, whose loader yields (index, input)
            index, x = batch
            return labeler.loss(self(x), index)

    Relabellings come before an epoch begins (a sampler such as `ClassUniformSampler` then draws by the new labels) or
    before the batch at which they are due. Epochs are those of the trainer, steps its `global_step`. The labeler's
    state is part of every checkpoint; one that was taken within an epoch resumes exactly if the loader for training
    has a state too, as Lightning asks. What each relabelling found (`figures_of`) goes to the trainer's loggers.
    Random numbers of the training are left as they are.

    Args:
        labeler: with a schedule.
        loader: yields (index, input) for every sample once, or a function without arguments that makes such a loader,
            called at each relabelling. Where processes share the training, each passes its part. None: what the
            labeler's `record` has kept.
        model: what is labelled by. None: the LightningModule, through its own `features` and `heads`, or its logits.

    Returns:
        A `Callback` of `lightning` or of `pytorch_lightning`: the one that is imported already, else the first there.

    Raises:
        MissingPackageError: neither is installed.
        ValueError: a labeler without a schedule.
    """
    _check_schedule(labeler)
    base: Any = lightning().Callback

    class SelfLabelCallback(base):
        state_key = "otlabel"  # what the state is found by in a checkpoint

        def on_train_epoch_start(self, trainer: Any, pl_module: nn.Module) -> None:
            epoch, step = trainer.current_epoch, trainer.global_step
            self._relabel(trainer, pl_module, epoch, step)

        def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
            epoch = trainer.current_epoch + batch_idx / trainer.num_training_batches  # whole ones if that is infinite
            self._relabel(trainer, pl_module, epoch, trainer.global_step)

        def _relabel(self, trainer: Any, pl_module: nn.Module, epoch: float, step: int) -> None:
            n_updates = labeler.n_updates
            _relabel(labeler, loader, _chosen(model, pl_module), epoch, step, trainer.optimizers)
            if labeler.n_updates > n_updates:
                for logger in trainer.loggers:
                    logger.log_metrics(figures_of(labeler), step=step)

        def state_dict(self) -> dict[str, Any]:
            return labeler.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            labeler.load_state_dict(state_dict)

    return SelfLabelCallback()


def trainer_callback(
    labeler: SelfLabeler,
    loader: Loader | None,
    model: nn.Module | None = None,
    *,
    resume_from: str | os.PathLike[str] | None = None,
) -> Any:
    """A callback for Hugging Face's `Trainer` that relabels when the schedule says so, and resumes with the trainer.

        def collate(items):  # of a data set whose items have their `index`
            batch = default_data_collator(items)
            batch["labels"] = batch.pop("index")  # what Trainer calls labels, and hands to the loss, not to the model
            return batch

        def loss(outputs, index, num_items_in_batch):  # the second factor: right where gradients are accumulated
            return labeler.loss(outputs.logits, index) * len(index) / num_items_in_batch

        trainer = Trainer(
            model, TrainingArguments(..., remove_unused_columns=False), data_collator=collate, train_dataset=dataset,
            compute_loss_func=loss, callbacks=[trainer_callback(labeler, full_loader)],
        )

    Or, in a subclass, without a collator of its own:

        class SelfLabelTrainer(Trainer):
            loss_is_scaled_for_ga = False  # the mean of a batch: Trainer divides it where gradients are accumulated

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                index = inputs.pop("index")
                outputs = model(**inputs)
                loss = labeler.loss(outputs, index)
                return (loss, outputs) if return_outputs else loss

    Relabellings come before an epoch begins or before the step at which they are due. Epochs and steps are those of
    the trainer's state. The labeler's state is written into every checkpoint, as `otlabel.pt`. Random numbers of the
    training are left as they are.

    Args:
        labeler: with a schedule.
        loader: yields (index, input) for every sample once, or a function without arguments that makes such a loader,
            called at each relabelling. Where processes share the training, each passes its part. None: what the
            labeler's `record` has kept.
        model: what is labelled by. None: the trainer's model, through its own `features` and `heads`, or its logits.
        resume_from: the checkpoint that `train(resume_from_checkpoint=...)` is given, which Trainer does not tell its
            callbacks. None: looked for in `args.resume_from_checkpoint` and in `args.output_dir`; the weights must then
            be those that the labels were saved with.

    Returns:
        A `transformers.TrainerCallback`. Where a checkpoint is resumed, its `on_train_begin` raises FileFormatError if
        there is no usable `otlabel.pt`, and FingerprintError if that is of other weights or of another run.

    Raises:
        MissingPackageError: transformers is not installed.
        ValueError: a labeler without a schedule.
    """
    _check_schedule(labeler)
    if find_spec("transformers") is None:
        raise MissingPackageError("transformers", "transformers")
    base: Any = importlib.import_module("transformers").TrainerCallback

    class SelfLabelCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step > 0:
                _resume(labeler, _resumed_folder(args, state, resume_from), None if resume_from else given["model"])

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given.get("optimizer")
            _relabel(labeler, loader, _chosen(model, given["model"]), state.epoch, state.global_step, optimizer)

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given.get("optimizer")
            _relabel(labeler, loader, _chosen(model, given["model"]), state.epoch, state.global_step, optimizer)

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if args.should_save:
                _save(labeler, _saved_folder(args, state), given["model"])

    return SelfLabelCallback()


def figures_of(labeler: SelfLabeler) -> dict[str, float]:
    """What the last relabelling has found, as means over heads, by names for a logger such as "otlabel/quality".

        wandb.log(figures_of(labeler))

    Args:
        labeler: at any time; before its first relabelling there are no figures.

    Returns:
        quality, churn, entropy and gap of the labels, the loss since the relabelling before, the share of samples
        without a label, and NMI where there is truth: those that there are.
    """
    records = labeler.history[-len(labeler.n_classes) :]
    found = {name: [one[name] for one in records if isinstance(one.get(name), (int, float))] for name in FIGURES}
    return {f"otlabel/{name}": float(np.mean(values)) for name, values in found.items() if values}


def lightning() -> Any:
    """The package that is in use, or else the one that is installed.

    Raises:
        MissingPackageError: neither is.
    """
    there = [name for name in LIGHTNING if find_spec(name.partition(".")[0]) is not None]
    if not there:
        raise MissingPackageError("lightning", "lightning")
    return importlib.import_module(min(there, key=lambda name: name not in sys.modules))


def _check_schedule(labeler: SelfLabeler) -> None:
    if labeler.schedule is None:
        raise ValueError("the labeler has no schedule, so no relabelling would ever be due; make it with schedule=")


def _chosen(model: nn.Module | None, own: nn.Module) -> nn.Module:
    return own if model is None else model


def _relabel(
    labeler: SelfLabeler, loader: Loader | None, model: nn.Module, epoch: float, step: int, optimizer: Any = None
) -> None:
    """Relabel if it is time, on a loader made for it where there is a function to make one."""
    by_steps = labeler.schedule is not None and labeler.schedule.unit == "steps"
    if not (labeler.due(step=step) if by_steps else labeler.due(epoch)):
        return
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    # A loader takes its seed from the global generator: the training is not to differ for that, nor the labels by
    # whether it was resumed in between.
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(labeler.seed + labeler.n_updates)
        labeler.update(model, loader() if callable(loader) else loader, optimizer=optimizer)


# ---- Trainer's checkpoints ----


def _saved_folder(args: Any, state: Any) -> Path:
    """Where Trainer puts the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _resumed_folder(args: Any, state: Any, resume_from: str | os.PathLike[str] | None) -> Path:
    """Where the checkpoint is that is resumed, as well as a callback can know."""
    told = resume_from or args.resume_from_checkpoint
    return Path(told) if told and Path(told).is_dir() else _saved_folder(args, state)


def _save(labeler: SelfLabeler, folder: Path, model: nn.Module) -> None:
    image = io.BytesIO()  # an error on the way to the disk is then Python's, not inside torch
    torch.save({"labeler": labeler.state_dict(), "weights": weights_hash(unwrapped(model))}, image)
    with replacing(folder / STATE_FILE) as file:
        file.write(image.getbuffer())


def _resume(labeler: SelfLabeler, folder: Path, model: nn.Module | None) -> None:
    """Take over what was saved; with a model, only if it was saved with the same weights."""
    path = folder / STATE_FILE
    if not path.exists():
        raise FileFormatError(
            f"{path} is missing, the labels of the checkpoint that is resumed. If the checkpoint is elsewhere, pass "
            "resume_from= to trainer_callback; if it was made without this callback, or ended while it was written, "
            "resume an older one"
        )
    try:
        saved = load_plain(path, keys=("labeler", "weights"))
    except FileFormatError as error:
        raise FileFormatError(f"{path} is no usable state of a labeler: {error}") from error
    state, weights = saved["labeler"], saved["weights"]
    if model is not None and weights != weights_hash(unwrapped(model)):
        raise FingerprintError(
            f"the labels in {path} were saved with other weights than those that were resumed; pass resume_from= to "
            "trainer_callback, the checkpoint that train(resume_from_checkpoint=...) is given"
        )
    labeler.load_state_dict(state)
