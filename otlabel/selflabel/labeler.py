"""The self-labeller: labels, schedule and potentials. The training loop stays the user's."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from otlabel.errors import SelfLabelWarning
from otlabel.interrupts import interruptible
from otlabel.ranks.communicator import communicator_of
from otlabel.selflabel import alarms
from otlabel.selflabel.batches import check_range, parting, whole_numbers
from otlabel.selflabel.calibration import BatchNorms
from otlabel.selflabel.features import Extractor, keeping_of
from otlabel.selflabel.loss import ClassWeights, cross_entropy
from otlabel.selflabel.methods import Labeling, OptimalTransport
from otlabel.selflabel.model import as_logits, class_counts, reader_of
from otlabel.selflabel.quality import Looks, MakeView, common_view
from otlabel.selflabel.ranks import training_group
from otlabel.selflabel.relabelling import Relabelled, Relabelling
from otlabel.selflabel.schedule import Schedule, share_done, time_of
from otlabel.selflabel.state import VERSION, State, checked_truth, first_labels, read_state
from otlabel.selflabel.stores import Store, opened
from otlabel.selflabel.weights import checked_optimizers, heads_hash, renew_heads
from otlabel.sources import as_array

logger = logging.getLogger("otlabel")

MODES = ("calibrated", "eval", "train")


class SelfLabeler:
    """Labels that a model makes for itself: train on them, then label everything anew, and so on.

        labels_t = argmax over balanced labels of  sum_i log softmax(logits_t(x_i))[labels_ti]      each so often
        loss     = mean_t cross-entropy(logits_t(x_i), labels_ti)                                   each step

    for heads t = 1 ... T. Labels start as random balanced ones.

    Where several processes train together, as under DistributedDataParallel, each extracts and stores the samples of
    its own loader, and all of them label together (see `otlabel.selflabel.methods` for what else is done where a
    labeling cannot): labels, states and history are the same on all. An error of one is raised by all, which names it.
    BatchNorm's averages are then of the samples of all. With `mode="eval"` they are each process's own; SyncBatchNorm
    keeps them alike.

    Args:
        n_samples: N. Every sample has an index from 0 to N - 1, which the loaders yield with it.
        n_classes: K for one head, or a list with one K a head.
        labeling: how labels are made: `OptimalTransport` (SeLa), `KMeans` (DeepCluster), `Argmax` (UIC), or a function
            of your own (see `otlabel.selflabel.methods`).
        schedule: when `due` says yes. None: it never does; the user decides when to call `update`.
        store: where features go: a path for HDF5, a `FeatureStore`, a `TensorStore`. None: memory. Of several
            processes, each has a part, `store.part(rank, n_ranks)`: features.rank0-of-2.h5 beside features.h5.
        features: takes (model, input) to features (B, D). With `heads`, for models that are no `MultiHead`.
        heads: takes a model to its list of heads on these features: modules, or pairs (weight, bias). Without the two,
            a model that is no `MultiHead` is read by its logits: a tensor, a list of them, or `logits` in what it
            returns.
        batch: where index and input are in what loaders yield: two keys or positions, as ("index", "image") or (2, 0),
            the second maybe a list of them, which the model is given as keywords or arguments; or a function that takes
            what they yield to (index, input). None: they yield (index, input).
        labels: to start from: (T, N), or (N,) for all heads; -1 for none. None: random ones of equal sizes.
        data: what tells this data set from others, any text; a change is then refused on resume. None: only N tells.
        views: takes a batch of inputs and a torch.Generator to a random view of each sample, of the same kind in all
            runs that are compared; `quality` is measured with them. None: `common_view` of `otlabel.selflabel.quality`,
            which knows what to do with images and vectors; for other inputs there is no quality then.
        truth: (N,) true classes, if there are any: the history then has the NMI of each labelling. Never used else.
        mode: of the model while features are extracted. "calibrated": in evaluation mode, but layers of BatchNorm have
            averages made anew of about 40 batches of 64 samples of the loader, once trained on 20 batches; for other
            models the same as "eval". That costs as much as to extract 2560 samples, all of them where there are fewer.
            "eval": with the running averages as training has left them, which lag behind the weights and are of
            augmented samples. "train": as SeLa's authors do it, with the averages of each batch.
        amp: dtype of automatic mixed precision for the extraction, such as torch.bfloat16. None: none.
        in_turn: label one head at a time, each relabelling the next of them, as SeLa's program for CIFAR does.
        steps_per_epoch: lets `due(step=...)` serve a schedule in epochs. None: not needed.
        seed: of the first labels and of all that labelings draw.
        progress: show a bar while features are extracted.
        group: torch.distributed group of the processes that train together. None: the default one, that is, all of
            them, where torch.distributed is initialised by the time of an update.

    Raises:
        ValueError: numbers that make no sense; labels that are none of its classes.
        TypeError: a `batch` that names no parts.

    Source: Asano, Rupprecht, Vedaldi, "Self-labelling via simultaneous clustering and representation learning", ICLR
        2020, section 3.
    """

    def __init__(
        self,
        n_samples: int,
        n_classes: int | Sequence[int],
        *,
        labeling: Labeling | None = None,
        schedule: Schedule | None = None,
        store: str | os.PathLike[str] | Store | None = None,
        features: Callable[[nn.Module, Any], Tensor] | None = None,
        heads: Callable[[nn.Module], Sequence[Any]] | None = None,
        batch: Callable[[Any], tuple[Any, Any]] | Sequence[Any] | None = None,
        labels: Any = None,
        data: str | None = None,
        views: MakeView | None = None,
        truth: Any = None,
        mode: str = "calibrated",
        amp: torch.dtype | None = None,
        in_turn: bool = False,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        progress: bool = False,
        group: Any = None,
    ) -> None:
        n_samples = operator.index(n_samples)  # whatever counts, as a plain whole number
        if n_samples < 1:
            raise ValueError(f"n_samples is {n_samples!r}; pass the number of samples, len(dataset)")
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(map(repr, MODES))}")
        if (features is None) != (heads is None):
            raise ValueError("features and heads belong together; pass both, or neither")
        self.n_samples, self.n_classes = n_samples, class_counts(n_classes)
        self.labeling = OptimalTransport() if labeling is None else labeling
        self.schedule, self.steps_per_epoch, self.seed = schedule, steps_per_epoch, seed
        self.store = opened(store)
        self.data = data
        self._in_turn = in_turn
        self._make_view = common_view if views is None else views
        self._truth = None if truth is None else checked_truth(truth, n_samples)
        self._features_of, self._heads_of = features, heads
        self._extractor = Extractor(n_samples, data, parting(batch), mode, amp, progress)
        self._ranks_group = group
        labels = first_labels(labels, n_samples, self.n_classes, seed)
        self._state = State(labels, [{} for _ in self.n_classes])
        self._class_weights = ClassWeights()
        self._alarmed: set[str] = set()  # what has been warned of and lasts

    # ---- labels and loss ----

    @property
    def labels(self) -> Tensor:
        """(T, N) int64, -1 for a sample that has none; on the device that the loss is computed on."""
        return self._state.labels

    @property
    def history(self) -> list[dict[str, Any]]:
        """A record of each head and relabelling, in their order."""
        return self._state.history

    @property
    def quality(self) -> float | None:
        """How good the labels are, told without the truth: 0 to 1, the mean over heads after the last relabelling.

            mean_t AMI(labels_t, argmax_k (log softmax(logits_s(view(x)))_k + g_sk))      s: the head after t

        That is how far each head's labels can be told by another head from random views of the samples (see
        `otlabel.selflabel.quality`), by mutual information adjusted for chance. It is of a twelfth of the samples, from
        256 to 4096, the same ones and the same views each time, and compares relabellings and runs on the same data.
        None where nothing was extracted, or no view is known of these inputs.
        """
        return alarms.mean_of(self.history[-len(self.n_classes) :], "quality")

    @property
    def best_quality(self) -> float | None:
        """The highest `quality` of all relabellings; None where none has any."""
        return None if self._state.best is None else self._state.best.quality

    @property
    def best_update(self) -> int | None:
        """After how many relabellings `quality` was highest; None where none has any."""
        return None if self._state.best is None else self._state.best.update

    @property
    def best_labels(self) -> Tensor:
        """(T, N) labels of the relabelling whose `quality` was highest; those of now where none has any."""
        best = self._state.best
        return self.labels if best is None else best.labels.to(self.labels.device)

    @property
    def n_updates(self) -> int:
        """How many relabellings there have been."""
        return self._state.n_updates

    def targets(self, index: Any) -> Tensor:
        """(T, B) labels of the samples of a batch.

        Args:
            index: (B,) which samples these are, 0 to N - 1, as the loader yields it.

        Raises:
            ValueError: an index out of range.
        """
        chosen = torch.as_tensor(index)
        if chosen.device.type == "cpu":  # elsewhere a look would wait for the device, which checks for itself
            check_range(whole_numbers(chosen), self.n_samples)
        self._state.n_trained += len(chosen)
        return self.labels[:, chosen.to(self.labels.device)]

    def loss(self, logits: Any, index: Any, *, weight: Tensor | Sequence[Tensor] | str | None = None) -> Tensor:
        """The mean over heads of the cross-entropy with the labels of the batch.

            mean_t mean_i -log softmax(logits_ti)[labels_ti]

        Args:
            logits: of the model: a list of T tensors (B, K_t), one tensor if T = 1, or an output that has `logits`.
            index: (B,) which samples these are.
            weight: (K,) weights of the classes, or a list of them, one a head; "balanced": N_t / (K n_k), by the
                n_k samples that now have class k of the N_t with a label, so that every class of every head counts the
                same, as `ClassUniformSampler` does for one head. None: all 1.

        Returns:
            A scalar. Samples with label -1 are left out; zero where there are no others.

        Raises:
            ValueError: logits of another number of heads or classes, an index out of range, another text as weight.
        """
        scores, state = as_logits(logits, self.n_classes), self._state
        state.labels = state.labels.to(scores[0].device)  # they stay where the loss is computed
        weights = self._class_weights.of(weight, state.labels, self.n_classes)
        loss = cross_entropy(scores, self.targets(index), weights)
        state.loss_sum = loss.detach() if state.loss_sum is None else state.loss_sum + loss.detach()
        state.n_losses += 1
        return loss

    def record(self, index: Any, logits: Any = None, *, features: Tensor | None = None) -> None:
        """Keep what a training step gave, so that the next `update(model)` needs no loader.

        Best classes are saved with `state_dict`; features are not: leave off where none are pending.

        Args:
            index: (B,) which samples these are.
            logits: as for `loss`. Only each sample's best class is kept: enough for `Argmax`.
            features: (B, D) that the heads were given: enough for `OptimalTransport` and `KMeans` too. They are of the
                weights as they were at each step, which is cheaper and a little stale.

        Raises:
            ValueError: an index out of range, or one whose features were recorded since the last update already.
            FingerprintError: the store holds features of other data.
        """
        chosen = whole_numbers(index)
        check_range(chosen, self.n_samples)
        if logits is not None:
            self._state.record(torch.from_numpy(chosen), as_logits(logits, self.n_classes))
        if features is not None:
            self._extractor.record(self.store, chosen, features.detach().float().cpu().numpy())

    def share_recorded(self) -> None:
        """Let all processes that train together have the best classes that each has recorded, for `state_dict`."""
        with communicator_of(training_group(self._ranks_group)) as ranks:
            self._state.share_recorded(ranks)

    # ---- relabelling ----

    def due(self, epoch: float | None = None, *, step: int | None = None, samples: int | None = None) -> bool:
        """Whether the schedule has a relabelling that has not been done yet. Pass one of the three.

        Args:
            epoch: epochs since the training began, with parts: 3.5 is in the middle of the fourth.
            step: training steps since then.
            samples: samples trained on since then.

        Raises:
            ValueError: a time that this schedule cannot be told in.
        """
        given = [value for value in (epoch, step, samples) if value is not None]
        if len(given) != 1:
            raise ValueError("pass exactly one of epoch, step= and samples=")
        if self.schedule is None:
            return False
        self._state.progress = time_of(self.schedule, epoch, step, samples, self.n_samples, self.steps_per_epoch)
        return self.schedule.count(self._state.progress) > self._state.n_passed

    @interruptible
    def update(
        self,
        model: nn.Module,
        loader: Iterable[Any] | None = None,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    ) -> list[dict[str, Any]]:
        """Label all samples anew with every head: all heads change, or none if anything goes wrong.

        torch's random numbers go on as if nothing had happened, but for what a DataLoader draws whenever it is
        iterated (a seed for its workers, and an order if it shuffles) and a model in training mode.

        Args:
            model: as it is now. Its weights, and the mode of its modules, are left as they are; a labeling whose
                classes have no names from one time to the next (`KMeans`) has the heads drawn anew.
            loader: yields (index, input), or what `batch` says, for every sample once, in any order; without random
                augmentation, as a rule.
                Where processes share the work, each passes its part: any samples, as long as each comes somewhere
                (what a DistributedSampler repeats counts once). None: use what `record` has kept.
            optimizer: that trains the model, or several: what it has gathered about heads that are drawn anew, such as
                momentum, is forgotten. None: it stays, and pulls the new heads where the old ones went.

        Returns:
            The history's new records, one a head.

        Raises:
            TypeError: a loader that does not yield (index, input) or what `batch` says; a model that returns neither
                logits nor features; an optimizer that is none.
            ValueError: indices missing, twice or out of range; heads that are not those the labeler was made for.
            InvalidScoresError: NaN features, named by sample.
            FingerprintError: the store holds features of other data.
            OSError: no room on the disk. The labels are still the old ones, and training on them may go on.
            RankError: another process has failed, or is lost, or has other heads or is elsewhere in its training.

        Warns:
            SelfLabelWarning: signs that the training goes wrong, in plain words.
        """
        optimizers, state = checked_optimizers(optimizer), self._state
        group = training_group(self._ranks_group)
        with communicator_of(group) as communicator, contextlib.ExitStack() as calibration:
            reader = reader_of(model, self.n_classes, self._features_of, self._heads_of)
            communicator.check_alike(
                n_samples=self.n_samples, n_classes=self.n_classes, n_updates=state.n_updates, seed=self.seed,
                labeling=type(self.labeling).__name__, heads=communicator.world_size > 1 and heads_hash(reader),
            )  # fmt: skip
            norms = BatchNorms(reader, communicator)
            keeping = keeping_of(self.store, getattr(self.labeling, "over_ranks", False), communicator, group)
            started = time.perf_counter()
            holders = looks = None
            if loader is None:
                state.share_recorded(communicator)
                self._extractor.finish_recording(keeping, reader, has_classes=state.recorded is not None)
            else:
                loader = calibration.enter_context(self._extractor.calibrated(norms, loader, self._seed_of_update()))
                looks = Looks(self.n_samples, self.seed, self._make_view)
                holders = self._extractor.extract(reader, loader, keeping, looks)
            seconds = time.perf_counter() - started
            relabelling = Relabelling(
                self.labeling,
                reader,
                self.n_classes,
                as_array(state.labels),
                state.states,
                self._seed_of_update(),
                recorded=None if loader is not None or state.recorded is None else as_array(state.recorded),
                truth=self._truth,
                only=state.n_updates % len(self.n_classes) if self._in_turn else None,
            )
            has_rows = loader is not None or self._extractor.came is not None
            found = relabelling.run_over(keeping, holders, has_rows=has_rows)
            if looks is not None:
                relabelling.judge(found, looks, communicator)
                # Else features will change, whether weights learn or not.
                first = relabelling.drift(found, looks, state.first_rows, communicator) if norms.all_trained else None
                state.first_rows = first
            seconds, *each = communicator.allreduce_max("seconds", seconds, *(one.record["seconds"] for one in found))
            for one, longest in zip(found, each, strict=True):
                one.record["seconds"] = longest
            training = state.training(communicator)
        views_keep = looks is None or not looks.of_vectors
        raised = renew_heads(
            reader, [t for t, one in enumerate(found) if one.new_classes], optimizers, self._seed_of_update()
        )
        return self._commit(found, training | {"seconds_extract": seconds}, raised, views_keep)

    def _commit(
        self, found: list[Relabelled], common: dict[str, Any], raised: list[str], views_keep: bool
    ) -> list[dict[str, Any]]:
        """Everything that a relabelling changes but the model, at once; `raised` is what heads have to say to it."""
        state = self._state
        records = [common | {"head": head, **one.record} for head, one in enumerate(found)]
        if self.schedule is not None and state.progress is not None:
            state.n_passed = self.schedule.count(state.progress)
        self._extractor.came = None
        labels = torch.from_numpy(np.stack([one.labels for one in found])).to(state.labels.device)
        state.advance(labels, [one.state for one in found], records, alarms.mean_of(records, "quality"))
        wrong = alarms.raised(self.history, self.n_classes, share_done(self.schedule, state.progress), views_keep)
        for record in records:
            record["alarms"] = raised + list(wrong.values())
        for text in raised + [text for kind, text in wrong.items() if kind not in self._alarmed]:
            warnings.warn(text, SelfLabelWarning, stacklevel=4)
        self._alarmed = set(wrong)
        logger.info("relabelling %d: %s", state.n_updates, alarms.told(records))
        return records

    def _seed_of_update(self) -> int:
        return int(np.random.SeedSequence((self.seed, self._state.n_updates + 1)).generate_state(1)[0])

    # ---- saving ----

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs, in tensors and plain values: `torch.load(..., weights_only=True)` reads it.

        Features that were recorded, and an extraction under way, are the store's and not in here.
        """
        return {"version": VERSION, **self._identity(), **self._state.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; whatever is refused leaves the labeler as it was.

        Args:
            state: as `state_dict` gave it; arrays may be tensors on any device, or NumPy's.

        Raises:
            FingerprintError: it is of other data, or of other numbers of samples or classes; both are shown.
            FileFormatError: it lacks something, or holds what no labeler has: labels that are no classes, NaN
                potentials, other shapes or types; says which and where.
        """
        check = getattr(self.labeling, "check_state", None)
        self._state = read_state(state, self._identity(), check, self.labels.device)
        self._extractor.came = None

    def _identity(self) -> dict[str, Any]:
        """What a state of another run differs in."""
        return {"n_samples": self.n_samples, "n_classes": list(self.n_classes), "data": self.data}

    def save_labels(self, path: str | os.PathLike[str], *, best: bool = False) -> None:
        """Write the labels of all heads to an HDF5 file, with a receipt; laid out as `stores.head_labels` says.

        Args:
            path: where to; ends in .h5 or .hdf5.
            best: whether to write `best_labels` in place of those of the last relabelling.

        Raises:
            OSError: the file cannot be written; an old one of that name is then still whole.
        """
        from otlabel.selflabel.stores.head_labels import save_labels

        n_heads, state = len(self.n_classes), self._state
        labels, records = state.labels, state.history[-n_heads:]
        if best and state.best is not None:
            labels = state.best.labels
            records = state.history[(state.best.update - 1) * n_heads : state.best.update * n_heads]
        save_labels(path, as_array(labels), self.n_classes, data=self.data, seed=self.seed, records=records)

    def load_labels(self, path: str | os.PathLike[str]) -> None:
        """Take over labels that `save_labels` wrote, of this data.

        Raises:
            FileFormatError: the file is damaged or of another kind.
            FingerprintError: it is of other data, or of other numbers of samples or classes.
        """
        from otlabel.selflabel.stores.head_labels import load_labels_of

        labels = load_labels_of(path, self.n_samples, self.n_classes, self.data)
        self._state.labels = torch.from_numpy(labels).to(self.labels.device)

    def __repr__(self) -> str:
        return (
            f"SelfLabeler({self.n_samples:,} samples, {len(self.n_classes)} heads of {self.n_classes[0]} classes, "
            f"{self.n_updates} relabellings)"
        )
