"""Callbacks for PyTorch Lightning and Hugging Face's Trainer: relabellings at their steps, and exact resumes."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from otlabel.errors import FileFormatError, FingerprintError, MissingPackageError
from otlabel.selflabel import (
    AtTimes,
    ClassUniformSampler,
    EverySteps,
    IndexedDataset,
    MultiHead,
    SelfLabeler,
    TensorStore,
    callbacks,
)
from otlabel.selflabel.callbacks import figures_of, lightning_callback, trainer_callback

N, K, BATCH, EPOCHS = 60, 4, 12, 4
STEPS = N // BATCH  # an epoch
TIMES = (0, 0.4, 1, 2.6, 3)  # epochs: before steps 0, 2, 5, 13 and 15
DUE = [round(time * STEPS) for time in TIMES]


def points() -> torch.Tensor:
    """Blobs, so that there is something to find."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 8, generator=generator) + 4 * torch.eye(8)[torch.arange(N) % K]


class Watching(SelfLabeler):
    """Notes before which of the steps it labelled, and whether the mode of the model was left alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_losses_given, self.updated_at, self.optimizers = 0, [], list[Any]()

    def loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.n_losses_given += 1
        return super().loss(*args, **kwargs)

    def update(self, model: nn.Module, loader: Any = None, *, optimizer: Any = None) -> list[dict[str, Any]]:
        self.updated_at.append(self.n_losses_given)
        self.optimizers += optimizer if isinstance(optimizer, list) else [optimizer]
        return super().update(model, loader, optimizer=optimizer)


class Fetched(Dataset):
    """Items of another data set; notes after how many relabellings each of them was fetched."""

    def __init__(self, data: Any, labeler: SelfLabeler) -> None:
        self.data, self.labeler, self.after = data, labeler, []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.after.append(self.labeler.n_updates)
        return self.data[index]

    def first_of_epochs(self) -> list[int]:
        return self.after[::N]


def check_balanced(labeler: SelfLabeler) -> None:
    for labels, k in zip(labeler.labels, labeler.n_classes, strict=True):
        counts = np.bincount(labels.numpy(), minlength=k)
        assert counts.min() >= N // k
        assert counts.max() <= math.ceil(N / k)


def check_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def check_same_course(straight: SelfLabeler, resumed: SelfLabeler) -> None:
    """Labels, and what was noted of every relabelling, to the last bit; only the clock may differ."""
    assert torch.equal(straight.labels, resumed.labels)
    assert len(straight.history) == len(resumed.history)
    for one, other in zip(straight.history, resumed.history, strict=True):
        for name in one:
            assert name.startswith("seconds") or one[name] == other[name], name


# ---- PyTorch Lightning ----


@pytest.fixture(scope="module")
def lightning() -> Any:
    try:
        return callbacks.lightning()
    except MissingPackageError:
        pytest.skip("neither lightning nor pytorch_lightning is installed")


def lightning_module(lightning: Any) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
            self.net = MultiHead(backbone, 16, [K, 3])
            self.labeler: Any = None
            self.modes: list[bool] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            index, x = batch
            self.modes.append(self.net.training)
            return self.labeler.loss(self.net(x), index)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Module()


class StatefulLoader(DataLoader):
    """Goes on within an epoch, as Lightning asks of loaders where checkpoints are taken there."""

    given = skipped = 0

    def __iter__(self) -> Any:
        self.given, self.skipped = self.skipped, 0
        for batch in islice(super().__iter__(), self.given, None):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % STEPS}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["given"]


def run_lightning(
    lightning: Any, folder: Path, epochs: int, schedule: Any, checkpoint: Path | None = None, logger: Any = False
) -> Any:
    """One training; the loader for it draws by the labels, the loader for labelling is made anew each time."""
    data = IndexedDataset(TensorDataset(points()))
    labeler = Watching(N, [K, 3], schedule=schedule)
    module = lightning_module(lightning)
    module.labeler = labeler
    callback = lightning_callback(labeler, lambda: DataLoader(data, 25), module.net)
    saving = lightning.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logger, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback, saving],
    )  # fmt: skip
    fetched = Fetched(data, labeler)
    loader = StatefulLoader(fetched, BATCH, sampler=ClassUniformSampler(labeler, head=0, seed=3))
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return labeler, module, fetched


lightnings_own_warnings = pytest.mark.filterwarnings(
    "ignore:.*num_workers", "ignore:The dirpath has changed", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@lightnings_own_warnings
def test_lightning_relabels_in_time_and_resumes_exactly(lightning: Any, tmp_path: Path) -> None:
    straight, module, fetched = run_lightning(lightning, tmp_path / "straight", EPOCHS, AtTimes(TIMES))
    assert straight.updated_at == DUE
    assert fetched.first_of_epochs()[1:] == [3, 3, 5]  # a sampler draws after the relabelling at an epoch's begin
    assert module.modes == [True] * EPOCHS * STEPS
    check_balanced(straight)

    for step in (STEPS + 2, 2 * STEPS, 3 * STEPS):  # within an epoch, after one, where a relabelling is due next
        checkpoint = tmp_path / "straight" / f"step={step}.ckpt"
        saved = torch.load(checkpoint, weights_only=True)["callbacks"]["otlabel"]
        assert saved["n_updates"] == sum(at < step for at in DUE)
        resumed, other, _ = run_lightning(lightning, tmp_path / f"{step}", EPOCHS, AtTimes(TIMES), checkpoint)
        assert resumed.updated_at == [at - step for at in DUE if at >= step]
        check_same_course(straight, resumed)
        check_same(module, other)


@lightnings_own_warnings
def test_lightning_with_a_schedule_in_steps(lightning: Any, tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path, name="", version="")
    labeler, *_ = run_lightning(lightning, tmp_path, 2, EverySteps(3), logger=logger)
    assert labeler.updated_at == [0, 3, 6, 9]
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["otlabel/churn"]]
    assert [int(row["step"]) for row in rows] == [0, 3, 6, 9]
    for number, row in enumerate(rows):
        of_heads = [record["churn"] for record in labeler.history if record["update"] == number]
        assert float(row["otlabel/churn"]) == pytest.approx(np.mean(of_heads))
    assert all(isinstance(one, torch.optim.SGD) for one in labeler.optimizers)  # told what trains the heads


# ---- Hugging Face's Trainer ----


class Sentences(Dataset):
    """Tokens of which the first half tells the group; each item has its index."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(1, 40, (N, 8), generator=generator)
        self.tokens[:, :4] = (torch.arange(N) % K + 1)[:, None]
        self.mask = torch.ones_like(self.tokens)
        self.mask[::3, 6:] = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "input_ids": self.tokens[index], "attention_mask": self.mask[index]}


def inputs_of(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "index"}


def collate_with_index_as_labels(items: list[dict[str, Any]]) -> dict[str, Any]:
    from transformers import default_data_collator

    batch = default_data_collator(items)
    batch["labels"] = batch.pop("index")
    return batch


def tiny_bert(transformers: Any) -> nn.Module:
    """With dropout, so that a resume is exact only if the random numbers are."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8, num_labels=K,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def run_trainer(
    folder: Path, *, epochs: float = EPOCHS, resume: Path | None = None, accumulate: int = 1, **given: Any
) -> Any:
    """One training that stops after `epochs`, of EPOCHS that its learning rate is planned for."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            control.should_training_stop = control.should_training_stop or state.epoch >= epochs

    labeler = Watching(N, K, schedule=AtTimes(TIMES))
    full = DataLoader(IndexedDataset(Sentences(), inputs_of), 25)

    def loss(outputs: Any, index: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return labeler.loss(outputs.logits, index) * len(index) / num_items_in_batch

    class Logging(transformers.Trainer):  # as the documentation has it
        def log(self, logs: Any, *more: Any) -> None:
            super().log(logs | figures_of(labeler), *more)

    trainer = Logging(
        tiny_bert(transformers),
        transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=BATCH // accumulate, num_train_epochs=EPOCHS,
            gradient_accumulation_steps=accumulate, learning_rate=0.01, save_strategy="steps", save_steps=1,
            report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False, seed=5,
            dataloader_pin_memory=False,
        ),
        data_collator=collate_with_index_as_labels, train_dataset=Fetched(Sentences(), labeler), compute_loss_func=loss,
        callbacks=[trainer_callback(labeler, full, **given), Stop()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return labeler, trainer.model, trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training that nothing has interrupted, and its checkpoints, one a step."""
    folder = tmp_path_factory.mktemp("straight")
    return *run_trainer(folder), folder


def test_trainer_relabels_in_time(straight: Any) -> None:
    labeler, model, trainer, _ = straight
    assert labeler.updated_at == DUE
    assert all(hasattr(one, "state") for one in labeler.optimizers)  # told what trains the heads
    assert trainer.train_dataset.first_of_epochs() == [1, 3, 3, 5]
    assert model.training
    assert trainer.state.global_step == EPOCHS * STEPS
    check_balanced(labeler)
    told = trainer.state.log_history[-1]
    assert {name: told[name] for name in figures_of(labeler)} == figures_of(labeler)


def test_figures_are_means_over_heads() -> None:
    labeler = SelfLabeler(40, [4, 2], features=lambda _, x: x, heads=lambda model: list(model))
    assert figures_of(labeler) == {}
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    labeler.update(nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 2)]), [(torch.arange(40), x)])
    figures = figures_of(labeler)
    assert {"otlabel/churn", "otlabel/entropy", "otlabel/gap"} <= figures.keys()
    assert figures["otlabel/entropy"] == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert all(type(value) is float for value in figures.values())


@pytest.mark.parametrize("step", [STEPS + 2, 3 * STEPS])  # within an epoch; where an epoch and a relabelling begin
def test_trainer_resumes_exactly(straight: Any, tmp_path: Path, step: int) -> None:
    run_trainer(tmp_path, epochs=step / STEPS)
    checkpoint = tmp_path / f"checkpoint-{step}"
    assert (checkpoint / callbacks.STATE_FILE).exists()
    assert not list(checkpoint.glob(".*.tmp"))
    resumed, model, _ = run_trainer(tmp_path, resume=checkpoint)
    assert resumed.updated_at == [at - step for at in DUE if at >= step]
    check_same_course(straight[0], resumed)
    check_same(straight[1], model)


def test_a_checkpoint_that_was_moved(straight: Any, tmp_path: Path) -> None:
    *_, folder = straight
    moved = tmp_path / "elsewhere" / "best"
    shutil.copytree(folder / f"checkpoint-{2 * STEPS}", moved)
    with pytest.raises(FileFormatError, match="resume_from="):
        run_trainer(tmp_path / "new", resume=moved)
    resumed, model, _ = run_trainer(tmp_path / "new", resume=moved, resume_from=moved)
    check_same_course(straight[0], resumed)
    check_same(straight[1], model)


def test_labels_of_another_run_are_refused(straight: Any, tmp_path: Path) -> None:
    """The folder has a checkpoint of the same step, but of other weights than the one that is resumed."""
    *_, folder = straight
    right, wrong = folder / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}"
    wrong.mkdir()
    shutil.copy(folder / f"checkpoint-{2 * STEPS}" / callbacks.STATE_FILE, wrong)
    with pytest.raises(FingerprintError, match="other weights"):
        run_trainer(tmp_path, resume=right)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_state_that_cannot_be_read(straight: Any, tmp_path: Path, content: bytes | None) -> None:
    *_, folder = straight
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    shutil.copytree(folder / checkpoint.name, checkpoint)
    path = checkpoint / callbacks.STATE_FILE
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(FileFormatError, match="no usable state"):
        run_trainer(tmp_path, resume=checkpoint)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Three parts of a batch, weighed as the docstring says, are the batch; relabellings come at the same steps."""
    whole, _, one = run_trainer(tmp_path / "whole", epochs=1 / STEPS)
    parts, _, other = run_trainer(tmp_path / "parts", epochs=1 / STEPS, accumulate=3)
    assert torch.equal(whole.labels, parts.labels)
    assert parts.n_losses_given == 3 * whole.n_losses_given
    # Dropout draws other numbers for parts: losses are near, and would be 3 times apart if they were weighed wrong.
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_subclass_with_a_loss_of_its_own(tmp_path: Path) -> None:
    """The other way that the docstring shows, with a model that is no transformer and has two heads."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    labeler = Watching(N, [K, 3], schedule=EverySteps(4), store=TensorStore())
    data = [{"index": i, "x": x} for i, x in enumerate(points())]

    class SelfLabelTrainer(transformers.Trainer):
        loss_is_scaled_for_ga = False

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            index = inputs.pop("index")
            outputs = model(**inputs)
            loss = labeler.loss(outputs, index)
            return (loss, outputs) if return_outputs else loss

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).relu()

    def full_loader() -> DataLoader:
        return DataLoader(IndexedDataset(data, inputs_of), 25)

    trainer = SelfLabelTrainer(
        MultiHead(Backbone(), 16, [K, 3]),
        transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=BATCH, max_steps=10, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=data, callbacks=[trainer_callback(labeler, full_loader)],
    )  # fmt: skip
    trainer.train()
    assert labeler.updated_at == [0, 4, 8]
    check_balanced(labeler)


# ---- without the frameworks ----


def test_import_needs_no_framework() -> None:
    """A fresh process that could not import them, and has not tried."""
    frameworks = ("transformers", "lightning", "pytorch_lightning", "accelerate")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({frameworks!r}))\n"
        "import otlabel.selflabel.callbacks\n"
        f"assert all(sys.modules[name] is None for name in {frameworks!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    labeler = SelfLabeler(N, K, schedule=EverySteps(1))
    with pytest.raises(MissingPackageError, match=r"lightning is needed .*otlabel\[lightning\]"):
        lightning_callback(labeler, [])
    with pytest.raises(MissingPackageError, match=r"transformers is needed .*otlabel\[transformers\]"):
        trainer_callback(labeler, [])


@pytest.mark.parametrize("make", [lightning_callback, trainer_callback])
def test_a_labeler_without_a_schedule_would_never_relabel(make: Any) -> None:
    with pytest.raises(ValueError, match="schedule="):
        make(SelfLabeler(N, K), [])


def test_relabelling_leaves_the_random_numbers_of_the_training_alone() -> None:
    data = DataLoader(IndexedDataset(TensorDataset(points())), 25, shuffle=True)
    labeler, model = SelfLabeler(N, K, schedule=EverySteps(1)), nn.Linear(8, K)
    before = torch.random.get_rng_state()
    callbacks._relabel(labeler, data, model, 0.0, 0)
    assert labeler.n_updates == 1
    assert torch.equal(torch.random.get_rng_state(), before)
