"""The self-labeller: labels, schedule and potentials. The training loop stays the user's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import operator
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otlabel.errors import FileFormatError, FingerprintError, SelfLabelWarning
from otlabel.interrupts import interruptible
from otlabel.ranks.communicator import Communicator, communicator_of
from otlabel.ranks.wire import Arrays
from otlabel.selflabel import alarms
from otlabel.selflabel.calibration import calibrated, has_untrained
from otlabel.selflabel.features import (
    check_complete,
    check_range,
    extract,
    extract_part,
    parting,
    weights_hash,
    whole_numbers,
)
from otlabel.selflabel.methods import Labeling, OptimalTransport
from otlabel.selflabel.model import LOGITS, View, as_logits, class_counts, unwrapped, view
from otlabel.selflabel.quality import Looks, MakeView, common_view, heads_foresee
from otlabel.selflabel.ranks import Holders, training_group
from otlabel.selflabel.relabelling import Relabelled, classes_of, relabel
from otlabel.selflabel.schedule import Schedule
from otlabel.selflabel.stores import FeatureStore, Store, TensorStore
from otlabel.sources import as_array, by_row

logger = logging.getLogger("otlabel")

STATE_VERSION = 1
NO_LABEL = -1
MODES = ("calibrated", "eval", "train")
FEW = 64  # views whose features are compared with those of the first relabelling


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
        self.store = _opened(store)
        self.data = data
        self.history: list[dict[str, Any]] = []
        self._make_view = common_view if views is None else views
        self._best: _Best | None = None
        self._first_rows: np.ndarray | None = None  # of some views, at the first relabelling that counts
        self._truth = None if truth is None else _checked_truth(truth, n_samples)
        self._features_of, self._heads_of = features, heads
        self._extraction: dict[str, Any] = {"parted": parting(batch), "mode": mode, "amp": amp, "progress": progress}
        self._ranks_group = group
        self._labels = torch.from_numpy(self._first_labels() if labels is None else self._given_labels(labels))
        self._states: list[Mapping[str, np.ndarray]] = [{} for _ in self.n_classes]
        self._n_updates = self._n_passed = 0
        self._progress: float | None = None
        self._recorded: Tensor | None = None  # (T, N) best classes seen in training, -1 for none yet
        self._came: np.ndarray | None = None  # (N,) samples whose features were recorded
        self._recording: dict[str, str] = {}  # what the store knows these features by
        self._loss_sum: Tensor | None = None  # of the losses since the last relabelling, on their device
        self._n_losses = 0
        self._balanced: tuple[int, Tensor, list[Tensor]] | None = None  # weights, and what labels they are of
        self._alarmed: set[str] = set()  # what has been warned of and lasts
        self._n_trained = 0  # samples whose labels were asked for since the beginning

    # ---- labels and loss ----

    @property
    def labels(self) -> Tensor:
        """(T, N) int64, -1 for a sample that has none; on the device that the loss is computed on."""
        return self._labels

    @property
    def quality(self) -> float | None:
        """How good the labels are, told without the truth: 0 to 1, the mean over heads after the last relabelling.

            mean_t AMI(labels_t, argmax_k (log softmax(logits_s(view(x)))_k + g_sk))      s: the head after t

        That is how far each head's labels can be told by another head from random views of the samples (see
        `otlabel.selflabel.quality`), by mutual information adjusted for chance. It is of a twelfth of the samples, from
        256 to 4096, the same ones and the same views each time, and compares relabellings and runs on the same data.
        None where nothing was extracted, or no view is known of these inputs.
        """
        return _mean_quality(self.history[-len(self.n_classes) :])

    @property
    def best_quality(self) -> float | None:
        """The highest `quality` of all relabellings; None where none has any."""
        return None if self._best is None else self._best.quality

    @property
    def best_update(self) -> int | None:
        """After how many relabellings `quality` was highest; None where none has any."""
        return None if self._best is None else self._best.update

    @property
    def best_labels(self) -> Tensor:
        """(T, N) labels of the relabelling whose `quality` was highest; those of now where none has any."""
        return self._labels if self._best is None else self._best.labels.to(self._labels.device)

    @property
    def n_updates(self) -> int:
        """How many relabellings there have been."""
        return self._n_updates

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
        self._n_trained += len(chosen)
        return self._labels[:, chosen.to(self._labels.device)]

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
        parts = as_logits(logits, self.n_classes)
        self._follow(parts[0].device)
        weights: list[Any] = self._weights(weight)
        losses = []
        for one, targets, class_weight in zip(parts, self.targets(index), weights, strict=True):
            one = one.float() if one.dtype.itemsize < 4 else one  # the sum of a batch may be too much for a half
            class_weight = None if class_weight is None else class_weight.to(one)
            total = F.cross_entropy(one, targets, class_weight, ignore_index=NO_LABEL, reduction="sum")
            counted = targets >= 0 if class_weight is None else class_weight[targets.clamp(min=0)] * (targets >= 0)
            # Where nothing is counted the sum is 0, and stays so.
            losses.append(total / counted.sum().clamp(min=torch.finfo(total.dtype).tiny))
        loss = torch.stack(losses).mean()
        self._loss_sum = loss.detach() if self._loss_sum is None else self._loss_sum + loss.detach()
        self._n_losses += 1
        return loss

    def _weights(self, weight: Any) -> list[Any]:
        """Weights of the classes, one a head."""
        if not isinstance(weight, str):
            return list(weight) if isinstance(weight, (list, tuple)) else [weight] * len(self.n_classes)
        if weight != "balanced":
            raise ValueError(f"weight is {weight!r}; pass weights of the classes, 'balanced' or None")
        version = self._labels._version  # rises with each change in place
        if self._balanced is None or self._balanced[0] != version or self._balanced[1] is not self._labels:
            found = [_balanced(labels, k) for labels, k in zip(self._labels, self.n_classes, strict=True)]
            self._balanced = version, self._labels, found
        return self._balanced[2]

    def record(self, index: Any, logits: Any = None, *, features: Tensor | None = None) -> None:
        """Keep what a training step has seen, so that the next `update(model)` needs no loader.

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
            if self._recorded is None:
                self._recorded = torch.full_like(self._labels, NO_LABEL)
            best = torch.stack([one.detach().argmax(1) for one in as_logits(logits, self.n_classes)])
            self._recorded[:, torch.from_numpy(chosen).to(self._recorded.device)] = best.to(self._recorded.device)
        if features is not None:
            rows = features.detach().float().cpu().numpy()
            if self._came is None:
                # Under a name of its own: of rows that a run before has recorded, nobody knows what weights made them.
                about = self._about("features recorded while training", secrets.token_hex(8))
                self._check_store(self.store, about)
                self.store.begin(self.n_samples, rows.shape[1], about)
                self._came, self._recording = np.zeros(self.n_samples, bool), about
            self.store.write(chosen, rows)
            self._came[chosen] = True

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
        self._progress = float(self._time(epoch, step, samples))
        return self.schedule.count(self._progress) > self._n_passed

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
        optimizers = _optimizers(optimizer)
        group = training_group(self._ranks_group)
        with communicator_of(group) as communicator, contextlib.ExitStack() as calibration:
            seen = view(model, self.n_classes, self._features_of, self._heads_of)
            communicator.check_alike(
                n_samples=self.n_samples, n_classes=self.n_classes, n_updates=self._n_updates, seed=self.seed,
                labeling=type(self.labeling).__name__, heads=communicator.world_size > 1 and _heads_hash(seen),
            )  # fmt: skip
            # Else features will change, whether weights learn or not.
            settled = not has_untrained(seen.model, communicator)
            store, over_ranks = self._store_of(communicator)
            started = time.perf_counter()
            holders = looks = None
            if loader is None:
                self._finish_recording(seen, communicator)
            else:
                loader = calibration.enter_context(self._calibrated(seen, loader, communicator))
                looks = Looks(self.n_samples, self.seed, self._make_view)
                holders = self._extract(seen, loader, store, communicator, group if over_ranks else None, looks)
            seconds = time.perf_counter() - started
            found: list[Relabelled] = []
            if over_ranks or communicator.rank == 0:
                found = relabel(
                    self.labeling,
                    seen,
                    store.source() if loader is not None or self._came is not None else None,
                    self.n_classes,
                    as_array(self._labels),
                    self._states,
                    self._seed_of_update(),
                    recorded=None if loader is not None or self._recorded is None else as_array(self._recorded),
                    truth=self._truth,
                    holders=holders,
                )
            if communicator.world_size > 1 and not over_ranks:
                found = _found_by_first(communicator, found, len(self.n_classes))
            if looks is not None:
                for one, value in zip(found, self._qualities(seen, looks, found, communicator), strict=False):
                    one.record["quality"] = value
                self._drift(seen, looks if settled else None, found, communicator)
            seconds, *each = communicator.allreduce_max("seconds", seconds, *(one.record["seconds"] for one in found))
            for one, longest in zip(found, each, strict=True):
                one.record["seconds"] = longest
            training = self._training(communicator)
        views_keep = looks is None or not looks.of_vectors
        return self._commit(seen, optimizers, found, training | {"seconds_extract": seconds}, views_keep)

    def _store_of(self, communicator: Communicator) -> tuple[Store, bool]:
        """Where the rows of this process go, and whether the others keep theirs, too."""
        part = getattr(self.store, "part", None)
        if communicator.world_size == 1 or part is None or not getattr(self.labeling, "over_ranks", False):
            return self.store, False
        return part(communicator.rank, communicator.world_size), True

    def _calibrated(
        self, seen: View, loader: Iterable[Any], communicator: Communicator
    ) -> contextlib.AbstractContextManager[Iterable[Any]]:
        """BatchNorm's averages as this labeler's mode wants them, until rows and heads have been read."""
        if self._extraction["mode"] != "calibrated":
            return contextlib.nullcontext(loader)
        amp = self._extraction["amp"]
        parted = self._extraction["parted"]
        return calibrated(
            seen, loader, self.n_samples, parted, seed=self._seed_of_update(), amp=amp, communicator=communicator
        )

    def _extract(
        self, seen: View, loader: Iterable[Any], store: Any, communicator: Communicator, group: Any, looks: Looks
    ) -> Holders | None:
        """Bring the rows of all samples to stores, in place of what may have been recorded; who holds which.

        Without a group, all go to the store of rank 0.
        """
        how = " ".join(f"{name}={self._extraction[name]}" for name in ("mode", "amp"))
        about = self._about(seen.kind, f"{weights_hash(unwrapped(seen.model))} {how}")
        if communicator.rank == 0 or group is not None:
            self._check_store(store, about)
        self._came = None
        given = seen, loader, store, self.n_samples
        if group is not None:
            return extract_part(
                *given, about=about, **self._extraction, communicator=communicator, group=group, looks=looks
            )
        extract(*given, about=about, **self._extraction, communicator=communicator, looks=looks)
        return None

    def _qualities(self, seen: View, looks: Looks, found: list[Relabelled], communicator: Communicator) -> list[float]:
        """Of each head, by the views of all ranks; nothing where there are none."""
        index, classes = looks.index, np.empty((0, len(found)), np.int64)
        if looks.rows is not None:
            classes = classes_of(seen, looks.rows, self.n_classes, [one.state for one in found]).T
        index, classes = communicator.allgather("quality", index, classes)
        _, first = np.unique(index, return_index=True)
        if not len(first):
            return []
        labels = np.stack([one.labels[index[first]] for one in found])
        return heads_foresee(classes[first].T, labels)

    def _drift(self, seen: View, looks: Looks | None, found: list[Relabelled], communicator: Communicator) -> None:
        """Note how far features have come since the first relabelling, by a few of the views of each rank, if any.

        The first relabelling that counts is one at which BatchNorm's averages are those of a trained network.
        """
        if looks is None:
            self._first_rows = None
            return
        none = looks.rows is None or seen.kind == LOGITS
        rows = np.empty((0, 0), np.float32) if looks.rows is None or none else looks.rows[:FEW]
        change = -1.0
        if self._first_rows is None or self._first_rows.shape != rows.shape:
            self._first_rows = rows
        elif rows.size:
            length = float(np.linalg.norm(self._first_rows))
            change = float(np.linalg.norm(rows - self._first_rows)) / (length or 1.0)
        (change,) = communicator.allreduce_max("drift", change)
        for one in found:
            if change >= 0:
                one.record["feature_drift"] = change

    def _finish_recording(self, seen: View, communicator: Communicator) -> None:
        """Bring what was recorded to the store, if that is features; a sample without a best class keeps its label."""
        if communicator.world_size > 1:
            raise ValueError("recorded batches are of one process only; pass a loader where several train together")
        if self._came is None and self._recorded is None:
            raise ValueError("nothing was recorded since the last update; pass a loader, or call record while training")
        if self._came is not None:
            if seen.kind == LOGITS:
                raise ValueError("features were recorded, but the model shows no heads to apply to them; pass heads=")
            check_complete(self._came, recorded=True)
            if self.store.about != self._recording:  # else an update has failed after this
                self.store.finish()

    def _training(self, communicator: Communicator) -> dict[str, Any]:
        """What the history tells of the training since the last relabelling, on all ranks."""
        loss_sum = 0.0 if self._loss_sum is None else float(self._loss_sum)
        sums = np.array([loss_sum, self._n_losses, self._n_trained])
        loss_sum, n_losses, n_trained = map(float, communicator.allreduce("training", sums)[0])
        return {
            "update": self._n_updates,
            "progress": self._progress,
            "epochs_trained": n_trained / self.n_samples,
            "loss": loss_sum / n_losses if n_losses else None,
        }

    def _commit(
        self, seen: View, optimizers: list[Any], found: list[Relabelled], common: dict[str, Any], views_keep: bool
    ) -> list[dict[str, Any]]:
        """Everything that a relabelling changes, at once."""
        labels = torch.from_numpy(np.stack([one.labels for one in found])).to(self._labels.device)
        states = [{name: np.asarray(value) for name, value in one.state.items()} for one in found]
        records = [common | {"head": head, **one.record} for head, one in enumerate(found)]
        raised = self._renew_heads(seen, optimizers, [head for head, one in enumerate(found) if one.new_classes])
        self._labels, self._states = labels, list(states)
        if self.schedule is not None and self._progress is not None:
            self._n_passed = self.schedule.count(self._progress)
        self._n_updates += 1
        self._recorded = self._came = self._loss_sum = None
        self._n_losses = 0
        self.history += records
        quality = _mean_quality(records)
        if quality is not None and (self._best is None or quality > self._best.quality):
            self._best = _Best(quality, self._n_updates, labels.clone())
        found_wrong = alarms.raised(self.history, self.n_classes, self._share_done(), views_keep)
        for record in records:
            record["alarms"] = raised + list(found_wrong.values())
        for text in raised + [text for kind, text in found_wrong.items() if kind not in self._alarmed]:
            warnings.warn(text, SelfLabelWarning, stacklevel=4)
        self._alarmed = set(found_wrong)
        logger.info("relabelling %d: %s", self._n_updates, alarms.told(records))
        return records

    def _share_done(self) -> float | None:
        """Of the training, where the schedule tells when that ends."""
        times = getattr(self.schedule, "times", None)
        return None if not times or not times[-1] or self._progress is None else min(1.0, self._progress / times[-1])

    def _renew_heads(self, seen: View, optimizers: list[Any], heads: list[int]) -> list[str]:
        """Draw the weights of heads anew, the same on every process; what is to be said where that cannot be done."""
        if not heads:
            return []
        inner = unwrapped(seen.model)
        reset: Any = getattr(inner, "reset_head", None)
        if not callable(reset):
            return [
                f"classes have changed their meaning, but {type(inner).__name__} has no reset_head(number) to draw the "
                "weights of a head anew; training goes on from the old ones"
            ]
        devices = sorted({parameter.device.index for parameter in inner.parameters() if parameter.is_cuda})
        versions = [(parameter, parameter._version) for parameter in inner.parameters()]
        for head in heads:
            with torch.random.fork_rng(devices):
                torch.default_generator.manual_seed(self._seed_of_update() + head)
                for device in devices:
                    torch.cuda.default_generators[device].manual_seed(self._seed_of_update() + head)
                reset(head)
        anew: list[Tensor] = [
            parameter for parameter, version in versions if parameter._version != version
        ]  # changed in place
        anew += [weight for number in heads if seen.heads for weight in _weights(seen.heads[number])]
        for optimizer in optimizers:
            for parameter in anew:
                optimizer.state.pop(parameter, None)
        return []

    # ---- saving ----

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs, in tensors and plain values: `torch.load(..., weights_only=True)` reads it.

        Features that were recorded, and an extraction under way, are the store's and not in here.
        """
        return {
            "version": STATE_VERSION,
            "n_samples": self.n_samples,
            "n_classes": list(self.n_classes),
            "data": self.data,
            "labels": self._labels.detach().cpu().to(torch.int32),
            "states": [{name: torch.from_numpy(np.array(v)) for name, v in state.items()} for state in self._states],
            "n_updates": self._n_updates,
            "n_passed": self._n_passed,
            "progress": self._progress,
            "recorded": None if self._recorded is None else self._recorded.cpu().to(torch.int32),
            "loss_sum": None if self._loss_sum is None else self._loss_sum.detach().cpu(),
            "n_losses": self._n_losses,
            "n_trained": self._n_trained,
            "first_rows": None if self._first_rows is None else torch.from_numpy(self._first_rows.copy()),
            "best": None
            if self._best is None
            else {
                "quality": self._best.quality,
                "update": self._best.update,
                "labels": self._best.labels.detach().cpu().to(torch.int32),
            },
            "history": [dict(record) for record in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; whatever is refused leaves the labeler as it was.

        Args:
            state: as `state_dict` gave it; arrays may be tensors on any device, or NumPy's.

        Raises:
            FingerprintError: it is of other data, or of other numbers of samples or classes; both are shown.
            FileFormatError: it lacks something, or holds what no labeler has: labels that are no classes, NaN
                potentials, other shapes or types; says which and where.
        """
        version = getattr(state, "get", lambda name: type(state).__name__)("version")
        if version != STATE_VERSION:
            raise FingerprintError(f"the state has version {version!r}; this otlabel reads {STATE_VERSION}")
        try:
            for name in ("n_samples", "n_classes", "data"):
                theirs, ours = state[name], getattr(self, name)
                theirs = theirs.tolist() if hasattr(theirs, "tolist") else theirs
                if theirs != ours and not (name == "data" and None in (theirs, ours)):
                    raise FingerprintError(
                        f"the state is of another run: its {name} is {theirs!r}, this labeler's is {ours!r}"
                    )
            loaded = _read_state(state, self.n_samples, self.n_classes, getattr(self.labeling, "check_state", None))
        except FingerprintError:
            raise
        except KeyError as error:
            raise FileFormatError(f"the state holds no {error.args[0]!r}") from error
        except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:  # the last is torch's
            raise FileFormatError(f"the state of the labeler is damaged: {error}") from error
        device = self._labels.device
        recorded, loss_sum = loaded.recorded, loaded.loss_sum
        self._labels = torch.from_numpy(loaded.labels).to(device)
        self._states = list(loaded.states)
        self._n_updates, self._n_passed = loaded.n_updates, loaded.n_passed
        self._progress = loaded.progress
        self._recorded = None if recorded is None else torch.from_numpy(recorded).to(device)
        self._loss_sum = None if loss_sum is None else torch.from_numpy(loss_sum).to(device)
        self._n_losses, self._n_trained = loaded.n_losses, loaded.n_trained
        self._came = None
        self._best, self._first_rows = loaded.best, loaded.first_rows
        self.history = loaded.history

    def save_labels(self, path: str | os.PathLike[str], *, best: bool = False) -> None:
        """Write the labels of all heads to an HDF5 file, with a receipt; laid out as `stores.head_labels` says.

        Args:
            path: where to; ends in .h5 or .hdf5.
            best: whether to write `best_labels` in place of those of the last relabelling.

        Raises:
            OSError: the file cannot be written; an old one of that name is then still whole.
        """
        from otlabel.selflabel.stores.head_labels import save_labels

        n_heads, labels = len(self.n_classes), self._labels
        records = self.history[-n_heads:]
        if best and self._best is not None:
            labels = self._best.labels
            records = self.history[(self._best.update - 1) * n_heads : self._best.update * n_heads]
        save_labels(path, as_array(labels), self.n_classes, data=self.data, seed=self.seed, records=records)

    def load_labels(self, path: str | os.PathLike[str]) -> None:
        """Take over labels that `save_labels` wrote, of this data.

        Raises:
            FileFormatError: the file is damaged or of another kind.
            FingerprintError: it is of other data, or of other numbers of samples or classes.
        """
        from otlabel.selflabel.stores.head_labels import described, load_labels

        theirs = described(path)
        ours = (self.n_samples, self.n_classes, self.data if theirs[2] is not None else None)
        if theirs != ours and not (self.data is None and theirs[:2] == ours[:2]):
            raise FingerprintError(
                f"{os.fspath(path)} holds labels of other data: (samples, classes, data) are {theirs}, here {ours}"
            )
        self._labels = torch.from_numpy(load_labels(path).labels).to(self._labels.device)

    # ---- what the above share ----

    def _first_labels(self) -> np.ndarray:
        """Random labels of equal sizes, (T, N)."""
        rng = np.random.default_rng((self.seed, 0))
        return np.stack([rng.permutation(np.arange(self.n_samples) % k) for k in self.n_classes]).astype(np.int64)

    def _given_labels(self, labels: Any) -> np.ndarray:
        """Labels to start from, (T, N)."""
        given = by_row(labels, self.n_samples, None, "labels")
        shape = (len(self.n_classes), self.n_samples)
        return _read_labels(
            "labels", np.broadcast_to(given, shape) if given.shape == shape[1:] else given, *shape[1:], self.n_classes
        )

    def _seed_of_update(self) -> int:
        return int(np.random.SeedSequence((self.seed, self._n_updates + 1)).generate_state(1)[0])

    def _follow(self, device: torch.device) -> None:
        """Keep the labels where the loss is computed."""
        if self._labels.device != device:
            self._labels = self._labels.to(device)

    def _time(self, epoch: float | None, step: int | None, samples: int | None) -> float:
        """The time in the schedule's unit."""
        assert self.schedule is not None
        if self.schedule.unit == "steps":
            if step is None:
                raise ValueError(f"{self.schedule!r} counts steps; pass due(step=...)")
            return step
        if step is not None:
            if self.steps_per_epoch is None:
                raise ValueError(
                    f"{self.schedule!r} counts epochs; pass due(epoch) or due(samples=...), or make the labeler with "
                    "steps_per_epoch="
                )
            return step / self.steps_per_epoch
        return samples / self.n_samples if samples is not None else epoch  # type: ignore[return-value]

    def _about(self, kind: str, weights: str) -> dict[str, str]:
        data = f"{self.n_samples} samples" if self.data is None else self.data
        return {"data": data, "kind": kind, "weights": weights}

    def _check_store(self, store: Store, about: dict[str, str]) -> None:
        """Refuse to write over features of other data, which another run may need."""
        there = store.about
        if there is not None and there.get("data") != about["data"]:
            raise FingerprintError(
                f"the store holds features of other data ({there.get('data')!r}, these are {about['data']!r}); give "
                "this run a store of its own, or remove the old one"
            )

    def __repr__(self) -> str:
        return (
            f"SelfLabeler({self.n_samples:,} samples, {len(self.n_classes)} heads of {self.n_classes[0]} classes, "
            f"{self._n_updates} relabellings)"
        )


def _optimizers(given: Any) -> list[Any]:
    optimizers = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    for one in optimizers:
        if not isinstance(getattr(one, "state", None), Mapping):
            raise TypeError(
                f"optimizer is a {type(one).__name__}; pass the torch.optim.Optimizer that trains the model"
            )
    return optimizers


def _opened(store: Any) -> Store:
    if store is None:
        return TensorStore()
    return FeatureStore(store) if isinstance(store, (str, os.PathLike)) else store


@dataclass(frozen=True, eq=False)
class _Best:
    """The relabelling of the highest quality so far."""

    quality: float
    update: int  # after how many relabellings
    labels: Tensor  # (T, N) int64


def _mean_quality(records: list[dict[str, Any]]) -> float | None:
    values = [record["quality"] for record in records if "quality" in record]
    return float(np.mean(values)) if values else None


@dataclass(frozen=True, eq=False)
class _State:
    """What a saved state holds, checked, in arrays of its own."""

    labels: np.ndarray  # (T, N) int64
    states: list[Mapping[str, np.ndarray]]
    n_updates: int
    n_passed: int
    progress: float | None
    recorded: np.ndarray | None  # (T, N) int64
    loss_sum: np.ndarray | None  # ()
    n_losses: int
    n_trained: int
    best: _Best | None
    first_rows: np.ndarray | None  # (n, D) float32
    history: list[dict[str, Any]]


def _read_state(
    state: Mapping[str, Any], n_samples: int, n_classes: list[int], check: Callable[[Any, int], None] | None
) -> _State:
    """The parts of a state; KeyError, TypeError or ValueError says which of them is none."""
    counts = {name: state[name] for name in ("n_updates", "n_passed", "n_losses", "n_trained")}
    for name, count in counts.items():
        if not hasattr(count, "__index__") or operator.index(count) < 0:
            raise ValueError(f"{name} is {count!r}, no whole number from 0 on")
    progress = state["progress"]
    if progress is not None and not math.isfinite(progress):
        raise ValueError(f"progress is {progress}")
    states = [{str(name): np.array(as_array(value)) for name, value in one.items()} for one in state["states"]]
    if len(states) != len(n_classes):
        raise ValueError(f"it holds {len(states)} states for {len(n_classes)} heads")
    for head, one in enumerate(states):
        for name, value in one.items():
            if value.dtype.kind not in "biufc":
                raise ValueError(f"{name} of head {head} are {value.dtype}, no numbers")
        if check is not None:
            try:
                check(one, n_classes[head])
            except ValueError as error:
                raise ValueError(f"of head {head}, {error}") from error
    loss_sum = None if state["loss_sum"] is None else np.array(as_array(state["loss_sum"]))
    if loss_sum is not None and (loss_sum.shape != () or loss_sum.dtype.kind != "f"):
        raise ValueError(f"loss_sum is {loss_sum.dtype} of shape {loss_sum.shape}, no number")
    history = [dict(record) for record in state["history"]]
    for record in history:  # what the next alarms look at
        if not 0 <= operator.index(record["head"]) < len(n_classes) or float(record["churn"]) < 0:
            raise ValueError(f"its history has a record of head {record['head']} with churn {record['churn']}")
    recorded, best = state["recorded"], state.get("best")  # of states of earlier versions there is none
    if best is not None:
        quality, update = float(best["quality"]), operator.index(best["update"])
        if not (0 <= quality <= 1 and 0 < update <= operator.index(counts["n_updates"])):
            raise ValueError(f"the best labels have quality {quality} after {update} relabellings")
        best_labels = _read_labels("the best labels", best["labels"], n_samples, n_classes)
        best = _Best(quality, update, torch.from_numpy(best_labels))
    return _State(
        labels=_read_labels("labels", state["labels"], n_samples, n_classes),
        states=list(states),
        progress=None if progress is None else float(progress),
        recorded=None if recorded is None else _read_labels("recorded", recorded, n_samples, n_classes),
        loss_sum=loss_sum,
        best=best,
        first_rows=_read_rows(state.get("first_rows")),
        history=history,
        **{name: operator.index(count) for name, count in counts.items()},
    )


def _read_labels(name: str, values: Any, n_samples: int, n_classes: list[int]) -> np.ndarray:
    """(T, N) int64, each from 0 to its head's K - 1, or -1."""
    array, shape = as_array(values), (len(n_classes), n_samples)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(f"{name} are {array.dtype} of shape {array.shape}; labels are whole numbers of shape {shape}")
    wrong = (array < NO_LABEL) | (array >= np.array(n_classes)[:, None])
    if wrong.any():
        head, sample = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} of head {head} have {array[head, sample]} at sample {sample} ({np.count_nonzero(wrong)} such "
            f"labels); they are from 0 to {n_classes[head] - 1}, or {NO_LABEL}"
        )
    return array.astype(np.int64)


def _balanced(labels: Tensor, n_classes: int) -> Tensor:
    """(K,) by which every class that has samples counts the same, and a labelled sample 1 in the mean."""
    sizes = torch.bincount(labels[labels >= 0], minlength=n_classes)
    return sizes.sum() / ((sizes > 0).sum().clamp(min=1) * sizes.clamp(min=1))


def _read_rows(values: Any) -> np.ndarray | None:
    if values is None:
        return None
    rows = np.array(as_array(values))
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"first_rows are {rows.dtype} of shape {rows.shape}, no features")
    return rows.astype(np.float32)


def _checked_truth(truth: Any, n_samples: int) -> np.ndarray:
    array = by_row(truth, n_samples, None, "truth")
    if array.shape != (n_samples,):
        raise ValueError(
            f"truth has shape {array.shape}; pass ({n_samples},) true classes, in the order of the indices"
        )
    return array


def _weights(head: Any) -> list[Tensor]:
    """Of a head that is a module, or a pair of weight and bias."""
    if isinstance(head, nn.Module):
        return list(head.parameters())
    return [weight for weight in head if weight is not None] if isinstance(head, (tuple, list)) else []


def _heads_hash(seen: View) -> str:
    """A digest of the heads' weights, where there are heads."""
    digest = hashlib.sha256()
    for head in seen.heads:
        for weight in _weights(head):
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def _found_by_first(communicator: Communicator, found: list[Relabelled], n_heads: int) -> list[Relabelled]:
    """What rank 0 has found, on all ranks."""
    arrays: Arrays = {}
    if communicator.rank == 0:
        arrays = {
            "labels": np.stack([one.labels for one in found]).astype(np.int32),
            "new_classes": np.array([one.new_classes for one in found]),
            "records": np.frombuffer(json.dumps([one.record for one in found]).encode(), np.uint8),
        }
        for head, one in enumerate(found):
            arrays |= {f"{head}/{name}": np.asarray(value) for name, value in one.state.items()}
    arrays = communicator.broadcast("labels", arrays)
    states: list[Arrays] = [{} for _ in range(n_heads)]
    for key, value in arrays.items():
        head_text, _, name = key.partition("/")
        if name:
            states[int(head_text)][name] = value
    labels, records = arrays["labels"].astype(np.int64), json.loads(arrays["records"].tobytes())
    return [Relabelled(*one) for one in zip(labels, states, arrays["new_classes"].tolist(), records, strict=True)]
