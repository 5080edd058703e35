"""A run in Lightning's terms: the module that is trained, the data module, and the callback that labels and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otlabel.selflabel import MultiHead, SelfLabeler
from otlabel.training.augment import four_turns
from otlabel.training.config import Config
from otlabel.training.loaders import seed_of
from otlabel.training.setup import learning_rate
from otlabel.training.trainer import pl

if TYPE_CHECKING:
    from otlabel.training.run import Run

Report = Callable[[dict[str, Any]], None]


class LabelModule(pl.LightningModule):
    """Backbone, heads and losses.

    Args:
        config: of the run.
        model: what is trained.
        turn_head: tells by how many quarter turns an image is turned; None: nobody asks.
        labeler: has the labels.
        augment: makes views of a batch.
        class_weight: of the classes in the loss, as `SelfLabeler.loss` takes it.
    """

    def __init__(
        self,
        config: Config,
        model: MultiHead,
        turn_head: nn.Module | None,
        labeler: SelfLabeler,
        augment: Callable[[Tensor, torch.Generator], Tensor],
        class_weight: str | None,
    ) -> None:
        super().__init__()
        self.model, self.turn_head, self._labeler = model, turn_head, labeler
        self._config, self._augment, self._class_weight = config, augment, class_weight
        self.generator = torch.Generator()
        self.total = torch.zeros(())  # of the losses of an epoch

    def begin(self, epoch: int, rank: int) -> None:
        """What is random in an epoch follows from the seed and its number."""
        own = [rank] if rank else []  # processes see other views
        torch.manual_seed(seed_of(self._config.train.seed, epoch, 1, *own))  # for layers that draw, such as dropout
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(seed_of(self._config.train.seed, epoch, 2, *own))
        self.total = torch.zeros((), device=self.device)
        self.train()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, at the rate of its time."""
        progress = self.trainer.current_epoch + batch_idx / self.trainer.num_training_batches
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate(self._config, progress)
        loss = self.loss(*batch)
        self.total += loss.detach()
        self.log("loss", loss, prog_bar=True, logger=False)
        return loss

    def loss(self, index: Tensor, samples: Tensor) -> Tensor:
        """Of these samples: that of their labels, and of their turns where these are asked for."""
        views = self._augment(samples, self.generator).to(self.dtype)
        if self.turn_head is not None:
            views, turns = four_turns(views)
        features = self.model.features(views)
        upright = features[: len(index)]  # labels are of images as they are; the turned ones have but their turn
        logits = [head(upright) for head in self.model.heads]
        loss = self._labeler.loss(logits, index, weight=self._class_weight)
        if self.turn_head is not None:
            loss = loss + self._config.train.rotation * F.cross_entropy(self.turn_head(features), turns)
        if self._config.labels.recorded:
            self._labeler.record(index, logits)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, as the papers have it."""
        train = self._config.train
        return torch.optim.SGD(
            self.parameters(),
            train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
        )


class SampleData(pl.LightningDataModule):
    """The batches to train on.

    Args:
        batches: of an epoch, each time anew.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        super().__init__()
        self._batches = batches

    def train_dataloader(self) -> Iterable[Any]:
        """Not a DataLoader: batches are drawn after the labels that they are trained on were made."""
        return self._batches


class Labelling(pl.Callback):
    """Labels anew where it is time, always before the next batch is drawn; tells of each epoch, and saves after it."""

    state_key = "otlabel"  # what its state is found by in a checkpoint

    def __init__(self, run: Run) -> None:
        self._run = run
        self.report: Report | None = None
        self._started, self._before = 0.0, 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The first labels of an epoch."""
        self._started, self._before = time.perf_counter(), self._run.labeler.n_updates
        pl_module.begin(trainer.current_epoch, trainer.global_rank)
        self._run.relabel(float(trainer.current_epoch), trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Those of the next batch."""
        done, n_batches = batch_idx + 1, trainer.num_training_batches
        if done < n_batches:
            self._run.relabel(trainer.current_epoch + done / n_batches, trainer.optimizers)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The line of the epoch, and the checkpoint."""
        run = self._run
        run.epoch = trainer.current_epoch + 1
        run.relabel_at_the_end(trainer.optimizers)
        loss = trainer.strategy.reduce(pl_module.total / trainer.num_training_batches, reduce_op="mean")
        line = {
            "epoch": run.epoch,
            "loss": float(loss),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "relabellings": run.labeler.n_updates - self._before,
            **run.last_labels(),
            "seconds": time.perf_counter() - self._started,
        }
        run.save(line)
        for logger in trainer.loggers:
            logger.log_metrics(line, step=run.epoch)
            logger.save()
        if self.report is not None and trainer.is_global_zero:
            self.report(line)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights, optimiser and loops."""
        run = self._run
        labeler, taken = run.labeler.state_dict(), run.input.to_plain()
        return {"labeler": labeler, "best": run.best, "untrained": run.untrained, "input": taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Taken over before by `Run.resume`, which looks at it."""
