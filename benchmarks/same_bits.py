"""Bits of many solves, to be compared between two versions: `python same_bits.py OUT.json [--compare OLD.json]`.

Every kind of small problem (tests/problems.py) under every rule from every kind of source, larger problems of many
blocks, rows over three processes, self-labelling and balanced k-means. Of each solve a digest of labels, potentials,
value, bound and all else that is to stay is written, of an error its words. Only public names are used, so that the
script runs on older versions too: PYTHONPATH=/path/to/old python same_bits.py OLD.json
"""

# ruff: noqa: B023, E731 - every function made in a loop is called before the loop goes on

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from problems import KINDS, draw
from ranks import on_ranks
from torch import nn

import otlabel
from otlabel import KL, Range, certify, linear_scores, sinkhorn_assign
from otlabel.errors import OtlabelError
from otlabel.selflabel import Argmax, MultiHead, OptimalTransport, SelfLabeler

RULES = (
    "sizes", "range", "kl", "abstain", "argmax", "unbalanced", "whole_masses", "real_masses", "sinkhorn"
)  # fmt: skip
RESULT = (
    "labels", "counts", "class_mass", "potentials", "plan_potentials", "label_mass", "value", "bound", "gap",
    "rounding", "size_error", "threshold", "plan_threshold", "marginal_error", "status", "n_sweeps", "n_samples",
    "notes",
)  # fmt: skip
PROOF = ("value", "bound", "gap", "rounding", "size_error", "counts")
QUICK = 4  # with --quick, one in so many kinds and rules, and one of the larger problems
N_RANKS = 3

Bits = Iterator[tuple[str, str]]


# ---- digests ----


def digest(*values: Any) -> str:
    """A hash of the bits and types of arrays, numbers, texts and lists of them."""
    summed = hashlib.sha256()
    for value in values:
        if isinstance(value, (list, tuple)):
            summed.update(digest(*value).encode())
        elif isinstance(value, (np.ndarray, torch.Tensor)):
            array = np.ascontiguousarray(value.numpy() if isinstance(value, torch.Tensor) else value)
            summed.update(f"{type(value).__name__} {array.dtype} {array.shape}".encode() + array.tobytes())
        else:
            summed.update(repr(value).encode())
    return summed.hexdigest()[:24]


def bits(call: Callable[[], Any], names: tuple[str, ...] = RESULT) -> tuple[str, Any]:
    """The digest of what a call returns, and that itself; of an error its kind and words, and None."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = call()
        except (OtlabelError, ValueError, TypeError) as error:
            words = str(error).replace(tempfile.gettempdir(), "TMP")
            return f"{type(error).__name__}: {words}"[:200], None
    warned = sorted(str(one.message) for one in said if "otlabel" in one.category.__module__)
    return digest(*(getattr(found, name) for name in names), warned), found


# ---- what is solved ----


def rule_of(name: str, class_mass: Any, n_samples: int, n_classes: int) -> dict[str, Any]:
    """The arguments that a rule stands for."""
    rng = np.random.default_rng(len(name) + n_samples)
    return {
        "sizes": {"class_mass": class_mass},
        "range": {"classes": Range(0.5 / n_classes, 2 / n_classes)},
        "kl": {"classes": KL(0.5)},
        "abstain": {"abstain": 0.2},
        "argmax": {"rounding": "argmax", "class_mass": class_mass},
        "unbalanced": {"classes": KL(1.0), "samples": KL(1.0)},
        "whole_masses": {"sample_mass": rng.integers(1, 4, n_samples)},
        "real_masses": {"sample_mass": rng.dirichlet(np.ones(n_samples))},
        "sinkhorn": {"method": "sinkhorn", "max_sweeps": 30},
    }[name]


def sources_of(scores: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """The same scores from six kinds of places; files are written at once, and hold bfloat16 as float32."""
    is_tensor = isinstance(scores, torch.Tensor)
    tensor = (
        scores if is_tensor else torch.from_numpy(np.ascontiguousarray(scores).astype(scores.dtype.newbyteorder("=")))
    )
    array = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    np.save(folder / "scores.npy", np.ascontiguousarray(array))
    third = -(-len(array) // 3)
    with h5py.File(folder / "scores.h5", "w") as file:
        file.create_dataset("scores", data=array, chunks=(max(1, len(array) // 4), array.shape[1]), fletcher32=True)
    for part in range(3):
        if len(rows := array[part * third : (part + 1) * third]):
            with h5py.File(folder / f"part-{part}.h5", "w") as file:
                file["scores"] = rows
    n_classes = array.shape[1]
    return {
        "numpy": lambda: array if is_tensor else scores,
        "torch": lambda: tensor,
        "npy": lambda: str(folder / "scores.npy"),
        "hdf5": lambda: f"{folder}/scores.h5::/scores",
        "parts": lambda: f"{folder}/part-*.h5::/scores",
        "linear": lambda: linear_scores(np.asarray(array), np.eye(n_classes, dtype=np.float32), np.zeros(n_classes)),
    }


def small_problems(every: int) -> Bits:
    """Each kind under each rule from each source, certified and predicted."""
    for number, kind in list(enumerate(KINDS))[::every]:
        drawn = draw(kind, 0)
        n_samples, n_classes = np.shape(drawn.scores)
        with tempfile.TemporaryDirectory() as folder:
            for at, (source, scores) in enumerate(sources_of(drawn.scores, Path(folder)).items()):
                for rule_number, rule in enumerate(RULES):
                    if every > 1 and (number + at + rule_number) % every:
                        continue
                    options = rule_of(rule, drawn.class_mass, n_samples, n_classes)
                    if source in ("hdf5", "parts") and rule_number % 2:
                        options["memory_limit"] = 0
                    key = f"{kind}/{source}/{rule}"
                    found, result = bits(lambda: sinkhorn_assign(scores(), seed=number, **options))
                    yield key, found.replace(folder, "FOLDER")
                    if result is not None and rule in ("sizes", "abstain", "range"):
                        yield f"{key}/predict", digest(result.predict(scores()), result.plan(scores()))
                        for name, more in (("", {}), ("/potentials", {"potentials": result.potentials})):
                            proof = bits(lambda: certify(scores(), result.labels, **more), PROOF)[0]
                            yield f"{key}/certify{name}", proof


def large_scores(number: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Problems of many blocks, and how they are solved."""
    rng = np.random.default_rng(number)
    shapes = [(9000, 40), (3000, 150), (20_000, 12), (4000, 600)]
    n_samples, n_classes = shapes[number]
    scores = rng.standard_normal((n_samples, n_classes)) - np.log(np.arange(1, n_classes + 1))
    options = [{}, {"classes": Range(0.4 / n_classes, 3 / n_classes)}, {"abstain": 0.1}, {"classes": KL(0.3)}]
    return scores.astype([np.float32, np.float64, np.float16, np.float32][number]), options[number]


def large_problems(numbers: range) -> Bits:
    """The same of larger ones, and of features times weights."""
    for number in numbers:
        scores, options = large_scores(number)
        with tempfile.TemporaryDirectory() as folder:
            for source, opened in sources_of(scores, Path(folder)).items():
                if source == "linear":
                    rng = np.random.default_rng(number)
                    features = rng.standard_normal((len(scores), 16)).astype(np.float32)
                    weight, bias = rng.standard_normal((scores.shape[1], 16)), rng.standard_normal(scores.shape[1])
                    opened = lambda: linear_scores(features, weight, bias)
                limit = {"memory_limit": 0} if source in ("npy", "parts") else {}
                found, result = bits(lambda: sinkhorn_assign(opened(), epsilon=0.1, **options, **limit))
                yield f"large {number}/{source}", found
                if result is not None:
                    yield f"large {number}/{source}/predict", digest(result.predict(opened()))
                    yield f"large {number}/{source}/certify", bits(lambda: certify(opened(), result.labels), PROOF)[0]


# ---- three processes ----


def on_one_of(group: Any, every: int, large: list[int], folder: str) -> list[tuple[str, str]]:
    """What one of several ranks finds."""
    rank, n_ranks = group.rank(), group.size()
    found: list[tuple[str, str]] = []

    def rows_of(n_rows: int, number: int) -> slice:
        ends = [0, *sorted(np.random.default_rng(number).integers(0, n_rows + 1, n_ranks - 1).tolist()), n_rows]
        return slice(ends[rank], ends[rank + 1])

    for number, kind in list(enumerate(KINDS))[::every]:
        drawn = draw(kind, 0)
        n_samples, n_classes = np.shape(drawn.scores)
        rows = rows_of(n_samples, number)
        rule = RULES[number % len(RULES)]
        options = rule_of(rule, drawn.class_mass, n_samples, n_classes)
        if "sample_mass" in options:
            options["sample_mass"] = options["sample_mass"][rows]
        scores = drawn.scores[rows]
        key = f"ranks/{kind}/{rule}/{rank}"
        one, result = bits(lambda: sinkhorn_assign(scores, group=group, **options))
        found.append((key, one))
        if result is not None and number % 3 == 0:
            proof = bits(lambda: certify(scores, result.labels, group=group), PROOF)[0]
            found.append((f"{key}/certify", proof))
    for number in large:
        scores, options = large_scores(number)
        rows = rows_of(len(scores), number)
        file = f"{folder}/{number}-{rank}.h5"
        with h5py.File(file, "w") as handle:
            handle["scores"] = scores[rows]
        rng = np.random.default_rng(number)
        features, weight = rng.standard_normal((len(scores), 16)).astype(np.float32), rng.standard_normal((20, 16))
        calls = {
            "numpy": lambda: sinkhorn_assign(scores[rows], group=group, epsilon=0.1, **options),
            "hdf5": lambda: sinkhorn_assign(f"{file}::/scores", group=group, memory_limit=0, **options),
            "linear": lambda: sinkhorn_assign(linear_scores(features[rows], weight), group=group),
        }
        for source, call in calls.items():
            found.append((f"ranks/large {number}/{source}/{rank}", bits(call)[0]))
    features = np.random.default_rng(3).standard_normal((700, 6)).astype(np.float32)
    rows = rows_of(len(features), 5)
    for metric in ("euclidean", "cosine"):
        model = otlabel.BalancedKMeans(9, metric=metric, random_state=1, size_min=40).fit(features[rows], group=group)
        found.append((f"ranks/kmeans/{metric}/{rank}", digest(model.labels_, model.cluster_centers_, model.inertia_)))
    chosen = otlabel.curate(features[rows], 100, n_clusters=8, seed=2, group=group)
    found.append((f"ranks/curate/{rank}", digest(chosen.indices, chosen.sizes)))
    return found


def several_processes(every: int) -> Bits:
    """Rows over three ranks, one of them maybe without any."""
    with tempfile.TemporaryDirectory() as folder:
        answers = on_ranks(on_one_of, N_RANKS, every, [0, 2] if every == 1 else [0], folder)
    for answer in answers:
        if isinstance(answer, (Exception, str)):
            raise RuntimeError(f"a rank gave {answer!r}")
        yield from answer


# ---- what is made of it ----


def clusters() -> Bits:
    """Balanced k-means, the curated subset, the price of balance."""
    rng = np.random.default_rng(7)
    features = rng.standard_normal((900, 8)) + 3 * rng.integers(0, 4, (900, 1))
    cases: dict[str, dict[str, Any]] = {
        "even": {}, "cosine": {"metric": "cosine"}, "bounds": {"size_min": 10, "size_max": 200}, "two": {"n_init": 2}
    }  # fmt: skip
    for name, options in cases.items():
        model = otlabel.BalancedKMeans(12, random_state=0, **options).fit(features)
        made = model.labels_, model.cluster_centers_, model.inertia_, model.potentials_, model.gap_, model.n_iter_
        yield f"kmeans/{name}", digest(*made, model.predict(features), model.transform(features[:20]))
    chosen = otlabel.curate(features, 120, n_clusters=10, seed=1)
    yield "curate", digest(chosen.indices, chosen.sizes, chosen.quotas)


class Backbone(nn.Module):
    """Small, with what training mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def self_labelling() -> Bits:
    """Two rounds of labelling and training, from memory and from a file."""
    torch.set_num_threads(1)
    inputs = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    loader = [(index, inputs[index]) for index in torch.arange(300).split(50)]
    labelings = {"transport": OptimalTransport(epsilon=0.04), "argmax": Argmax()}
    for name, labeling in labelings.items():
        for place in ("memory", "file"):
            if name == "argmax" and place == "file":
                continue
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(0)
                model = MultiHead(Backbone(), 6, [7, 12])
                store = {"store": f"{folder}/features.h5"} if place == "file" else {}
                labeler = SelfLabeler(300, [7, 12], labeling=labeling, views=lambda inputs, generator: None, **store)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for turn in range(2):
                    if not isinstance(labeling, Argmax):
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            labeler.update(model, loader)
                    yield f"selflabel/{name}/{place}/{turn}", digest(labeler.labels)
                    model.train()
                    for index, batch in loader:
                        optimizer.zero_grad()
                        labeler.loss(model(batch), index).backward()
                        optimizer.step()


def main() -> int:
    """Write the digests; with an older file, list what is not the same, and exit with 1 if anything is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--compare", type=Path, help="an older file of digests")
    parser.add_argument("--quick", action="store_true", help="a part of it, some of which every change should keep")
    arguments = parser.parse_args()
    os.environ.setdefault("OTLABEL_NUM_THREADS", "2")
    every, found = QUICK if arguments.quick else 1, dict[str, str]()
    for part in (
        lambda: small_problems(every),
        lambda: large_problems(range(1 if arguments.quick else 4)),
        lambda: several_processes(every),
        clusters,
        self_labelling,
    ):
        begun, before = time.process_time(), len(found)
        found |= part()
        print(f"{len(found) - before} solves, {time.process_time() - begun:.1f} s of CPU", file=sys.stderr)
    arguments.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if arguments.compare is None:
        return 0
    old = json.loads(arguments.compare.read_text(encoding="utf-8"))
    both = [key for key in found if key in old]
    changed = [key for key in both if found[key] != old[key]]
    for key in changed:
        print(f"{key}\n  was {old[key]}\n  is  {found[key]}")
    print(f"{len(both)} compared, {len(changed)} differ, {len(found) - len(both)} only here")
    return int(bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
