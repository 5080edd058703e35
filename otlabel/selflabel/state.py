"""All of a self-labeller that changes while it is used: what resuming needs, written as plain values and read back.

Whatever is read is checked, since a state may come from a file: what is no state of a labeler names its fault.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otlabel.errors import FileFormatError, FingerprintError
from otlabel.ranks.communicator import Communicator
from otlabel.sources import as_array, by_row

VERSION = 1
NO_LABEL = -1
COUNTS = ("n_updates", "n_passed", "n_losses", "n_trained")

CheckState = Callable[[Mapping[str, np.ndarray], int], None]  # of a labeling: raises ValueError


@dataclass(frozen=True, eq=False)
class Best:
    """The relabelling of the highest quality so far."""

    quality: float
    update: int  # after how many relabellings
    labels: Tensor  # (T, N) int64


@dataclass(eq=False)
class State:
    """Labels of all samples by all heads, and what has happened until now."""

    labels: Tensor  # (T, N) int64, -1 for none; on the device that the loss is computed on
    states: list[Mapping[str, np.ndarray]]  # what the labeling has left for itself, one a head
    n_updates: int = 0
    n_passed: int = 0  # of the schedule's times
    progress: float | None = None  # in the schedule's unit
    recorded: Tensor | None = None  # (T, N) best classes seen in training, -1 for none yet
    loss_sum: Tensor | None = None  # () of the losses since the last relabelling, on their device
    n_losses: int = 0
    n_trained: int = 0  # samples whose labels were asked for since the beginning
    first_rows: np.ndarray | None = None  # (n, D) float32 of some views, at the first relabelling that counts
    best: Best | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def record(self, chosen: Tensor, logits: list[Tensor]) -> None:
        """Keep the best classes of some samples."""
        if self.recorded is None:
            self.recorded = torch.full_like(self.labels, NO_LABEL)
        best = torch.stack([one.detach().argmax(1) for one in logits])
        self.recorded[:, chosen.to(self.recorded.device)] = best.to(self.recorded.device)

    def share_recorded(self, communicator: Communicator) -> None:
        """What each process has recorded, on all of them; of a sample that several have, the highest class."""
        if not communicator.allreduce_max("has recorded", self.recorded is not None)[0]:
            return
        own = torch.full_like(self.labels, NO_LABEL) if self.recorded is None else self.recorded
        found = -communicator.allreduce_min("recorded", -as_array(own))
        self.recorded = torch.from_numpy(found).to(own.device)

    def advance(
        self,
        labels: Tensor,
        states: list[Mapping[str, np.ndarray]],
        records: list[dict[str, Any]],
        quality: float | None,
    ) -> None:
        """Everything that a relabelling changes, at once."""
        self.labels = labels
        self.states = [{name: np.asarray(value) for name, value in state.items()} for state in states]
        self.history += records
        self.n_updates += 1
        self.recorded, self.loss_sum, self.n_losses = None, None, 0
        if quality is not None and (self.best is None or quality > self.best.quality):
            self.best = Best(quality, self.n_updates, labels.clone())

    def training(self, communicator: Communicator) -> dict[str, Any]:
        """What the history tells of the training since the last relabelling, on all ranks."""
        loss_sum = 0.0 if self.loss_sum is None else float(self.loss_sum)
        sums = np.array([loss_sum, self.n_losses, self.n_trained])
        loss_sum, n_losses, n_trained = map(float, communicator.allreduce("training", sums)[0])
        return {
            "update": self.n_updates,
            "progress": self.progress,
            "epochs_trained": n_trained / self.labels.shape[1],
            "loss": loss_sum / n_losses if n_losses else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """In tensors and plain values."""
        best = self.best
        return {
            "labels": self.labels.detach().cpu().to(torch.int32),
            "states": [{name: torch.from_numpy(np.array(v)) for name, v in state.items()} for state in self.states],
            "n_updates": self.n_updates,
            "n_passed": self.n_passed,
            "progress": self.progress,
            "recorded": None if self.recorded is None else self.recorded.cpu().to(torch.int32),
            "loss_sum": None if self.loss_sum is None else self.loss_sum.detach().cpu(),
            "n_losses": self.n_losses,
            "n_trained": self.n_trained,
            "first_rows": None if self.first_rows is None else torch.from_numpy(self.first_rows.copy()),
            "best": best
            and {"quality": best.quality, "update": best.update, "labels": best.labels.detach().cpu().to(torch.int32)},
            "history": [dict(record) for record in self.history],
        }


def read_state(
    state: Mapping[str, Any], identity: dict[str, Any], check: CheckState | None, device: torch.device
) -> State:
    """What `State.to_dict` gave, with its version and identity, in arrays and tensors of its own.

    Args:
        state: arrays may be tensors on any device, or NumPy's.
        identity: n_samples, n_classes and data of the labeler that is to go on with it.
        check: refuses what is no state of the labeling of one head.
        device: of labels and losses.

    Raises:
        FingerprintError: it is of another version or another run.
        FileFormatError: it lacks something, or holds what no labeler has.
    """
    version = getattr(state, "get", lambda name: type(state).__name__)("version")
    if version != VERSION:
        raise FingerprintError(f"the state has version {version!r}; this otlabel reads {VERSION}")
    try:
        for name, ours in identity.items():
            theirs = state[name]
            theirs = theirs.tolist() if hasattr(theirs, "tolist") else theirs
            if theirs != ours and not (name == "data" and None in (theirs, ours)):
                raise FingerprintError(
                    f"the state is of another run: its {name} is {theirs!r}, this labeler's is {ours!r}"
                )
        return _checked(state, identity["n_samples"], identity["n_classes"], check, device)
    except FingerprintError:
        raise
    except KeyError as error:
        raise FileFormatError(f"the state holds no {error.args[0]!r}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:  # the last is torch's
        raise FileFormatError(f"the state of the labeler is damaged: {error}") from error


def _checked(
    state: Mapping[str, Any], n_samples: int, n_classes: list[int], check: CheckState | None, device: torch.device
) -> State:
    """The parts of a state; KeyError, TypeError or ValueError says which of them is none."""
    counts = {name: state[name] for name in COUNTS}
    for name, count in counts.items():
        if not hasattr(count, "__index__") or operator.index(count) < 0:
            raise ValueError(f"{name} is {count!r}, no whole number from 0 on")
    progress = state["progress"]
    if progress is not None and not math.isfinite(progress):
        raise ValueError(f"progress is {progress}")
    states = _labeling_states(state["states"], n_classes, check)
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
        best = Best(quality, update, checked_labels("the best labels", best["labels"], n_samples, n_classes))
    labels = checked_labels("labels", state["labels"], n_samples, n_classes)
    if recorded is not None:
        recorded = checked_labels("recorded", recorded, n_samples, n_classes).to(device)
    return State(
        labels=labels.to(device),
        states=states,
        progress=None if progress is None else float(progress),
        recorded=recorded,
        loss_sum=None if loss_sum is None else torch.from_numpy(loss_sum).to(device),
        first_rows=_checked_rows(state.get("first_rows")),
        best=best,
        history=history,
        **{name: operator.index(count) for name, count in counts.items()},
    )


def _labeling_states(states: Any, n_classes: list[int], check: CheckState | None) -> list[Mapping[str, np.ndarray]]:
    found: list[Mapping[str, np.ndarray]] = [
        {str(name): np.array(as_array(value)) for name, value in state.items()} for state in states
    ]
    if len(found) != len(n_classes):
        raise ValueError(f"it holds {len(found)} states for {len(n_classes)} heads")
    for head, state in enumerate(found):
        for name, value in state.items():
            if value.dtype.kind not in "biufc":
                raise ValueError(f"{name} of head {head} are {value.dtype}, no numbers")
        if check is not None:
            try:
                check(state, n_classes[head])
            except ValueError as error:
                raise ValueError(f"of head {head}, {error}") from error
    return found


def _checked_rows(values: Any) -> np.ndarray | None:
    if values is None:
        return None
    rows = np.array(as_array(values))
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"first_rows are {rows.dtype} of shape {rows.shape}, no features")
    return rows.astype(np.float32)


# ---- labels ----


def checked_labels(name: str, values: Any, n_samples: int, n_classes: list[int]) -> Tensor:
    """(T, N) int64, each from 0 to its head's K - 1, or -1.

    Raises:
        ValueError: another type or shape, or a number that is no class, with its head and sample.
    """
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
    return torch.from_numpy(array.astype(np.int64))


def first_labels(labels: Any, n_samples: int, n_classes: list[int], seed: int) -> Tensor:
    """Labels to start from, (T, N): those given, (N,) for all heads or (T, N); None: random ones of equal sizes."""
    if labels is None:
        rng = np.random.default_rng((seed, 0))
        drawn = [rng.permutation(np.arange(n_samples) % k) for k in n_classes]
        return torch.from_numpy(np.stack(drawn).astype(np.int64))
    array = by_row(labels, n_samples, None, "labels")
    for_all = array.shape == (n_samples,)
    return checked_labels(
        "labels", np.broadcast_to(array, (len(n_classes), n_samples)) if for_all else array, n_samples, n_classes
    )


def checked_truth(truth: Any, n_samples: int) -> np.ndarray:
    """(N,) true classes."""
    array = by_row(truth, n_samples, None, "truth")
    if array.shape != (n_samples,):
        raise ValueError(
            f"truth has shape {array.shape}; pass ({n_samples},) true classes, in the order of the indices"
        )
    return array
