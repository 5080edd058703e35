"""Two processes that train one model: the labels of one process, on both; and nobody waits for one that has failed."""

from __future__ import annotations

import json
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from otlabel.selflabel import FeatureStore, HeadView, KMeans, MultiHead, NewLabels, OptimalTransport, SelfLabeler

N, D, HEADS, BATCH, SECONDS = 61, 5, [3, 5], 8, 60


def make_model() -> MultiHead:
    torch.manual_seed(0)
    return MultiHead(nn.ReLU(), D, HEADS)  # a product's last bits would depend on what else is in a batch


def make_inputs() -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(1))


def shard(rank: int, n_ranks: int, *, shift: int = 0) -> list[tuple[Tensor, Tensor]]:
    """As a DistributedSampler deals them out, some samples twice to make parts equal; then one part is cut shorter."""
    inputs = make_inputs()
    sampler = DistributedSampler(range(N), num_replicas=n_ranks, rank=rank, shuffle=n_ranks > 1, seed=shift)
    index = torch.tensor(list(sampler))
    if n_ranks > 1 and rank == 0:  # what it leaves out, the other one has
        index = index[:20]
    if n_ranks > 1 and rank == 1:
        rest = torch.tensor(list(DistributedSampler(range(N), num_replicas=n_ranks, rank=0, shuffle=True, seed=shift)))
        index = torch.cat([index, rest[20:]])
    return [(part, inputs[part]) for part in index.split(BATCH)]


def failing(head: HeadView) -> NewLabels:
    raise RuntimeError("the labeling failed")


def spoilt(what: str, batches: list[tuple[Tensor, Tensor]]) -> Any:
    index, rows = batches[1]
    if what == "bad index":
        return [batches[0], (index + N, rows), *batches[2:]]
    if what == "nan":
        return [batches[0], (index, rows * torch.nan), *batches[2:]]
    if what == "missing":
        return batches[:1]
    if what == "no index":
        return [rows]
    return batches


CASES = {
    "memory": {},
    "file": {"store": True},
    "file float16": {"store": "float16"},
    "wrapped": {"wrap": True},
    "kmeans": {"labeling": KMeans(), "wrap": True},
    "bad index": {"spoils": 1},
    "nan": {"spoils": 1},
    "missing": {"spoils": 1},
    "no index": {"spoils": 0},
    "labeling": {"labeling": failing},
    "recorded": {"recorded": True},
    "foreign store": {"store": True},
    "again": {},
}


def run_case(name: str, folder: Path, rank: int, n_ranks: int) -> dict[str, Any]:
    """Two updates, as a training with new weights in between; labels, or the error that was raised."""
    options = dict(CASES[name])
    kind = options.get("store")
    store = FeatureStore(folder / f"{name} {n_ranks}.h5", dtype=kind if isinstance(kind, str) else "float32")
    if name == "foreign store" and rank == 0:
        (folder / f"{name} {n_ranks}.h5").write_bytes(b"not ours")
    model = make_model()
    used: nn.Module = DistributedDataParallel(model) if options.get("wrap") and n_ranks > 1 else model
    labeler = SelfLabeler(N, HEADS, labeling=options.get("labeling", OptimalTransport()), store=store if kind else None)
    first = labeler.labels.clone()
    started = time.monotonic()
    try:
        for number in range(2):
            batches = shard(rank, n_ranks, shift=number)
            if options.get("spoils") == rank:
                batches = spoilt(name, batches)
            labeler.update(used, None if options.get("recorded") else batches)
            with torch.no_grad():
                for weight in model.heads.parameters():
                    weight.mul_(-2)
    except Exception as error:
        assert torch.equal(labeler.labels, first)
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}
    weights = [weight.tolist() for weight in model.parameters()]
    states = [{key: value.tolist() for key, value in state.items()} for state in labeler._states]
    return {"labels": labeler.labels.tolist(), "weights": weights, "states": states, "history": len(labeler.history)}


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=SECONDS), world_size=2, rank=rank)
    found = {name: run_case(name, Path(folder), rank, 2) for name in CASES}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has come to, and one alone."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, port, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a process waits for the other"
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    healthy = [name for name in CASES if name in ("memory", "file", "file float16", "wrapped", "kmeans", "again")]
    return [*results, {name: run_case(name, folder, 0, 1) for name in healthy}]


@pytest.mark.parametrize("case", ["memory", "file", "file float16", "wrapped", "kmeans", "again"])
def test_two_processes_label_as_one(case: str, found: list[dict[str, Any]]) -> None:
    first, second, alone = (one[case] for one in found)
    for key in ("labels", "weights", "states"):
        assert first[key] == second[key] == alone[key]
    assert (first["history"], second["history"]) == (2 * len(HEADS), 0)  # the first process keeps it
    assert np.array(first["labels"]).min() >= 0


@pytest.mark.parametrize(
    ("case", "rank", "message"),
    [
        ("bad index", 1, "ValueError: index"),
        ("nan", 0, "InvalidScoresError: nan"),  # the first process stores, and looks
        ("missing", 0, "ValueError: 33 of 61 samples never came"),
        ("no index", 0, "TypeError: the loader yields Tensor"),
        ("labeling", 0, "RuntimeError: the labeling failed"),
        ("foreign store", 0, "FileFormatError"),
    ],
)
def test_a_failure_of_one_is_one_of_all(case: str, rank: int, message: str, found: list[dict[str, Any]]) -> None:
    own, other = found[rank][case], found[1 - rank][case]
    assert own["error"].startswith(message)
    assert other["error"].startswith("RuntimeError: another process failed")
    assert max(own["seconds"], other["seconds"]) < SECONDS / 4


def test_recorded_batches_are_of_one_process(found: list[dict[str, Any]]) -> None:
    for one in found[:2]:
        assert one["recorded"]["error"].startswith("ValueError: recorded batches are of one process only")
