"""Two processes that train one model: the labels of one, on both; rows stay where they are; nobody waits in vain."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import KILLED, SECONDS, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from otlabel.errors import RankError
from otlabel.ranks.wire import Wire
from otlabel.selflabel import (
    Argmax,
    FeatureStore,
    HeadView,
    KMeans,
    MultiHead,
    NewLabels,
    OptimalTransport,
    SelfLabeler,
    TensorStore,
)
from otlabel.selflabel import ranks as selflabel_ranks

N, D, WIDE, HEADS, BATCH = 61, 5, 700, [3, 5], 8


class Bare(nn.Module):
    """A model that shows its logits only."""

    def __init__(self, inner: MultiHead) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return self.inner(inputs)


class Plain:
    """A store of one's own, which knows of no parts."""

    def __init__(self) -> None:
        self._store = TensorStore()

    def __getattr__(self, name: str) -> Any:
        if name == "part":
            raise AttributeError(name)
        return getattr(self._store, name)


def make_model(*, hidden: int | None = None, wide: bool = False) -> MultiHead:
    torch.manual_seed(0)
    model = MultiHead(nn.ReLU(), D, HEADS, hidden=hidden)  # a product's last bits would depend on what is in a batch
    if wide:  # by columns of zeros
        for number, head in enumerate(model.heads):
            padded = nn.Linear(WIDE, HEADS[number])
            padded.weight.data = nn.functional.pad(head.weight.data, (0, WIDE - D))
            padded.bias.data = head.bias.data
            model.heads[number] = padded
        model.feature_dim = WIDE
    return model


def make_inputs(*, wide: bool = False, equal: bool = False) -> Tensor:
    inputs = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    if equal:
        inputs[1::2] = inputs[:-1:2]
    return nn.functional.pad(inputs, (0, WIDE - D)) if wide else inputs


def shuffled(rank: int, shift: int) -> list[int]:
    """As a DistributedSampler deals them out, some samples twice to make parts equal; then one part is cut shorter."""
    first, second = (
        list(DistributedSampler(range(N), num_replicas=2, rank=one, shuffle=True, seed=shift)) for one in range(2)
    )
    return second + first[20:] if rank else first[:20]


SHARDS: dict[str, Callable[[int, int], list[int]]] = {
    "shuffled": shuffled,
    "all twice": lambda rank, shift: list(range(N)),
    "second has all": lambda rank, shift: list(range(N)) if rank else [],
    "first has all": lambda rank, shift: [] if rank else list(range(N)),
    "ranges": lambda rank, shift: list(range(40, N)) if rank else list(range(40)),
}


def shard(how: str, rank: int, n_ranks: int, shift: int, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    index = torch.tensor(SHARDS[how](rank, shift) if n_ranks > 1 else range(N))
    return [(part, inputs[part]) for part in index.split(BATCH)] if len(index) else []


def failing(head: HeadView) -> NewLabels:
    raise RuntimeError("the labeling failed")


def nearest_mean(head: HeadView) -> NewLabels:
    features = head.read_features()
    means = np.stack([features[head.before == k].mean(0) for k in range(head.n_classes)])
    assert head.group is None
    return NewLabels(((features[:, None] - means) ** 2).sum(2).argmin(1), {"means": means}, {"value": 1.0})


class Halves:
    """Works over ranks: who is above the median of the first feature."""

    over_ranks = True

    def __call__(self, head: HeadView) -> NewLabels:
        own = head.read_features()[:, 0]
        assert len(own) == len(head.before) == head.n_samples == len(head.index)
        assert (head.group is None) == (head.n_samples == N)
        middle = np.median(head.joined(own))
        return NewLabels((own > middle).astype(np.int64), {"middle": np.array([middle])})


def spoilt(what: str, batches: list[tuple[Tensor, Tensor]]) -> Any:
    index, rows = batches[1]
    return {
        "bad index": [batches[0], (index + N, rows), *batches[2:]],
        "nan": [batches[0], (index, rows * torch.nan), *batches[2:]],
        "missing": batches[:1],
        "no index": [rows],
        "other columns": [(index, torch.cat([rows, rows], 1)) for index, rows in batches],
    }.get(what, batches)


CASES: dict[str, dict[str, Any]] = {
    "memory": {},
    "file": {"store": "float32"},
    "file float16": {"store": "float16"},
    "wrapped": {"wrap": True},
    "streamed": {"store": "float32", "labeling": OptimalTransport(memory_limit=0)},
    "hidden": {"hidden": 4},
    "logits": {"bare": True, "store": "float32"},
    "all twice": {"shard": "all twice", "store": "float32"},
    "second has all": {"shard": "second has all", "store": "float32"},
    "first has all": {"shard": "first has all", "labeling": OptimalTransport(memory_limit=0)},
    "ranges": {"shard": "ranges", "equal": True},
    "pulse": {"shard": "second has all", "pulse": 0.0},
    "argmax": {"labeling": Argmax(), "shard": "second has all"},
    "argmax shuffled": {"labeling": Argmax()},
    "kmeans": {"labeling": KMeans(), "wrap": True},
    "kmeans file": {"labeling": KMeans(), "store": "float32"},
    "own": {"labeling": nearest_mean, "shard": "second has all"},
    "own over ranks": {"labeling": Halves()},
    "own store": {"store": "plain"},
    "narrow": {"counted": True},
    "wide": {"counted": True, "wide": True},
    "wide kmeans": {"counted": True, "wide": True, "labeling": KMeans()},
    "again": {},
}
FAULTS: dict[str, dict[str, Any]] = {
    "bad index": {"spoils": 1},
    "nan": {"spoils": 1, "store": "float32"},
    "missing": {"spoils": 1},
    "no index": {"spoils": 0},
    "other columns": {"spoils": 1},
    "nobody has any": {"shard": "nothing"},
    "labeling": {"labeling": failing},
    "kmeans bad index": {"labeling": KMeans(), "spoils": 1},
    "recorded": {"recorded": True},
    "foreign part": {"store": "float32"},
    "full disk": {"store": "float32"},
    "other data": {"store": "float32"},
    "pulse bad index": {"spoils": 1, "shard": "second has all", "pulse": 0.0},
    "other heads": {},
    "other seed": {},
}
SHARDS["nothing"] = SHARDS["first has all"]


def run_case(name: str, folder: Path, rank: int, n_ranks: int) -> dict[str, Any]:
    """Two updates, as a training with new weights in between; labels, or the error that was raised."""
    options = {**CASES, **FAULTS}[name]
    path, kind = folder / f"{name} {n_ranks}.h5", options.get("store", "memory")
    stores = {"memory": lambda: None, "plain": Plain}
    store = stores.get(kind, lambda: FeatureStore(path, dtype=kind))()
    patch = pytest.MonkeyPatch()
    if name == "foreign part" and rank == 1:
        path.with_stem(f"{path.stem}.rank1-of-2").write_bytes(b"not ours")
    if name == "full disk" and rank == 1:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 100))
    if name == "other data" and rank == 1:
        part = store.part(1, 2)
        part.begin(N, D, {"data": "of others"})
        part.finish()
    patch.setattr(selflabel_ranks, "PULSE", options.get("pulse", SECONDS))
    inner = make_model(hidden=options.get("hidden"), wide=options.get("wide", False))
    if name == "other heads" and rank == 1:
        inner.heads[1].bias.data[0] += 1e-3
    if name == "other columns" and rank == 1:
        inner.feature_dim = 2 * D
    model: nn.Module = Bare(inner) if options.get("bare") else inner
    used: nn.Module = DistributedDataParallel(model) if options.get("wrap") and n_ranks > 1 else model
    labeling = options.get("labeling", OptimalTransport())
    seed = 1 if name == "other seed" and rank == 1 else 0
    labeler = SelfLabeler(N, HEADS, labeling=labeling, store=store, seed=seed, truth=np.arange(N) % 3)
    first, sent = labeler.labels.clone(), [0]
    if options.get("counted"):
        plain = Wire.send_bytes

        def counting(self: Any, other: int, body: bytes) -> Any:
            sent[0] += len(body)
            return plain(self, other, body)

        patch.setattr(Wire, "send_bytes", counting)
    inputs = make_inputs(wide=options.get("wide", False), equal=options.get("equal", False))
    started = time.monotonic()
    try:
        for number in range(2):
            batches: Any = shard(options.get("shard", "shuffled"), rank, n_ranks, number, inputs)
            if options.get("spoils") == rank:
                batches = spoilt(name.removeprefix("kmeans ").removeprefix("pulse "), batches)
            labeler.update(used, None if options.get("recorded") else [] if name == "nobody has any" else batches)
            labeler.loss([torch.ones(4, k) for k in HEADS], torch.arange(4))
            with torch.no_grad():
                for weight in inner.heads.parameters():
                    weight.mul_(-2)
    except Exception as error:
        assert torch.equal(labeler.labels, first)
        assert (labeler.n_updates, labeler.history) == (0, [])
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}
    finally:
        patch.undo()
    states = [{key: value.tolist() for key, value in state.items()} for state in labeler._state.states]
    weights = [weight.tolist() for weight in inner.parameters()]
    return {
        "labels": labeler.labels.tolist(), "weights": weights, "states": states, "history": labeler.history,
        "sent": sent[0],
    }  # fmt: skip


def interrupted(folder: Path, rank: int) -> dict[str, Any]:
    """An update that one process's loader fails in after two batches, and the next, which goes on where it was."""
    inputs, computed = make_inputs(), [0]

    class Counting(nn.ReLU):
        def forward(self, inputs: Tensor) -> Tensor:
            computed[0] += len(inputs)
            return super().forward(inputs)

    model = make_model()
    model.backbone = Counting()
    labeler = SelfLabeler(N, HEADS, store=folder / "interrupted.h5", views=lambda *_: None)
    batches = shard("ranges", rank, 2, 0, inputs)

    def breaking() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches[:2]
        if rank == 1:
            raise OSError("the images are gone")
        yield from batches[2:]

    with pytest.raises((OSError, RankError), match="the images are gone"):
        labeler.update(model, breaking())
    left = sorted(path.name for path in folder.glob(".interrupted*"))
    computed[0] = 0
    labeler.update(model, batches)
    return {"labels": labeler.labels.tolist(), "computed": computed[0], "left": left}


def lost(group: Any) -> dict[str, Any]:
    """An update in which the second process comes to a sudden end."""
    rank = dist.get_rank(group)
    batches = shard("ranges", rank, 2, 0, make_inputs())

    def dying() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches[:1]
        if rank == 1:
            os._exit(0)

    started = time.monotonic()
    with pytest.raises(RankError) as caught:
        SelfLabeler(N, HEADS).update(make_model(), dying())
    return {"error": str(caught.value), "seconds": time.monotonic() - started}


def work(group: Any, folder: Path) -> dict[str, Any]:
    rank = dist.get_rank(group)
    found: dict[str, Any] = {name: run_case(name, folder, rank, 2) for name in [*FAULTS, *CASES]}
    return found | {"interrupted": interrupted(folder, rank)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes has come to, and one alone."""
    alone = {name: run_case(name, folder, 0, 1) for name in CASES}
    return [*on_ranks(work, 2, folder), alone]


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if not key.startswith("seconds")} for one in history]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_label_as_one(case: str, found: list[dict[str, Any]]) -> None:
    first, second, alone = (one[case] for one in found)
    assert {key: value for key, value in first.items() if key != "sent"} == {
        key: value for key, value in second.items() if key != "sent"
    }
    assert first["labels"] == alone["labels"]
    assert first["weights"] == alone["weights"]
    for ours, theirs in zip(first["states"], alone["states"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():  # solved to where the argmax is known
            np.testing.assert_allclose(values, theirs[name], atol=1e-4)
    ours, theirs = without_seconds(first["history"]), without_seconds(alone["history"])
    assert len(ours) == len(theirs) == 2 * len(HEADS)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        exact = {"head", "update", "progress", "churn", "smallest", "largest", "unlabelled", "entropy", "nmi", "alarms"}
        assert {key: one[key] for key in exact} == {key: other[key] for key in exact}
        for name in {"value", "gap", "best_class_share", "feature_alignment", "loss"} & one.keys():
            assert one[name] == pytest.approx(other[name], abs=1e-6)
        assert one["epochs_trained"] == other["epochs_trained"] * 2  # each has trained on so many


def test_parts_hold_what_is_theirs(folder: Path, found: list[dict[str, Any]]) -> None:
    for case in ("file", "streamed", "all twice", "second has all"):
        shards = [set(SHARDS[CASES[case].get("shard", "shuffled")](rank, 1)) for rank in range(2)]
        owned = [shards[0], shards[1] - shards[0]]  # the first of those that have it
        with h5py.File(folder / f"{case} 1.h5") as handle:
            whole = handle["features"][:]
        for rank in range(2):
            with h5py.File(folder / f"{case} 2.rank{rank}-of-2.h5") as handle:
                index = handle["features_index"][:]
                assert index.tolist() == sorted(owned[rank])
                np.testing.assert_array_equal(handle["features"][:], whole[index])
        assert not (folder / f"{case} 2.h5").exists()
        assert not list(folder.glob(f".{case} 2*"))  # of an extraction under way
    assert (folder / "kmeans file 2.h5").exists()  # which needs all rows in one place
    assert not list(folder.glob("kmeans file 2.rank*"))


def test_rows_are_not_sent(found: list[dict[str, Any]]) -> None:
    """What is sent does not depend on the number of features, but where a labeling needs all rows in one place."""
    for one in found[:2]:
        assert one["wide"]["sent"] == one["narrow"]["sent"] > 0
        assert one["wide"]["labels"] == one["narrow"]["labels"]
    assert found[1]["wide kmeans"]["sent"] > 2 * 4 * (N - 20) * WIDE


@pytest.mark.parametrize(
    ("case", "rank", "message"),
    [
        ("bad index", 1, "ValueError: index"),
        ("nan", 1, "InvalidScoresError: nan in column 0 of sample"),
        ("no index", 0, "TypeError: the loader yields Tensor"),
        ("labeling", 0, "RuntimeError: the labeling failed"),
        ("kmeans bad index", 1, "ValueError: index"),
        ("pulse bad index", 1, "ValueError: index"),
        ("other data", 1, "FingerprintError: the store holds features of other data ('of others'"),
        ("foreign part", 1, "FileFormatError: "),
        ("full disk", 1, "OSError: "),
    ],
)
def test_a_failure_of_one_is_one_of_all(case: str, rank: int, message: str, found: list[dict[str, Any]]) -> None:
    own, other = found[rank][case], found[1 - rank][case]
    assert own["error"].startswith(message)
    assert other["error"].split(": ", 1)[1] == f"rank {rank} failed: {own['error']}"
    assert max(own["seconds"], other["seconds"]) < SECONDS / 4


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "ValueError: 33 of 61 samples never came: "),
        ("nobody has any", "ValueError: the loader is empty"),
        ("other columns", "ValueError: the model gives 10 columns on rank 1, 5 on rank 0"),
        ("recorded", "ValueError: recorded features are of one process only"),
        ("other heads", "RankError: rank 1 was called with heads="),
        ("other seed", "RankError: rank 1 was called with seed=1, rank 0 with seed=0"),
    ],
)
def test_what_is_wrong_with_all_is_told_by_all(case: str, message: str, found: list[dict[str, Any]]) -> None:
    for one in found[:2]:
        assert one[case]["error"].startswith(message)


def test_an_extraction_goes_on_where_each_was(found: list[dict[str, Any]]) -> None:
    first, second = (one["interrupted"] for one in found[:2])
    assert first["labels"] == second["labels"]
    assert second["left"] == [f".interrupted.rank{r}-of-2.h5.{kind}" for r in range(2) for kind in ("journal", "rows")]
    assert first["computed"] == BATCH  # of the first batch, before the store has told what is there
    assert second["computed"] == 21 - BATCH


def test_a_process_that_is_gone_is_missed() -> None:
    first, second = on_ranks(lost, 2)
    assert "rank 1 was lost" in first["error"]
    assert first["seconds"] < SECONDS / 4
    assert second == KILLED
