"""Rows over several processes: the bits of one process, and nobody waits for one that has failed."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from problems import KINDS, draw
from ranks import KILLED, on_ranks

import otlabel.sweep.blocks
from otlabel import KL, Assignment, Range, certify, linear_scores, sinkhorn_assign
from otlabel.errors import InfeasibleError, InvalidMassError, InvalidScoresError, RankError
from otlabel.ranks.communicator import SINGLE_PROCESS, ProcessGroup, SingleProcess
from otlabel.ranks.redistribution import Redistribution
from otlabel.ranks.rowset import RowSet
from otlabel.sources import TensorSource

RULES: list[dict[str, Any]] = [
    {"classes": "range"},
    {"classes": KL(0.5)},
    {"abstain": 0.2},
    {"rounding": "argmax"},
    {"classes": KL(1.0), "samples": KL(1.0)},
    {"sample_mass": "whole"},
    {"sample_mass": "real"},
    {"method": "sinkhorn", "max_sweeps": 30},
    {"labels_per_sample": 2},
]
SMALL_BLOCKS = (16, 64)  # scores: so that small problems have many blocks, which ranks share

pytestmark = pytest.mark.filterwarnings("ignore::otlabel.errors.OtlabelWarning")


# ---- the same bits ----


def problem(number: int, kind: str) -> tuple[Any, list[dict[str, Any]]]:
    """Scores of a kind, and the calls to make with them."""
    drawn = draw(kind, 0)
    n_samples, n_classes = np.shape(drawn.scores)
    rng = np.random.default_rng(number)
    rule = dict(RULES[number % len(RULES)])
    if rule.get("classes") == "range":
        rule["classes"] = Range(0.5 / n_classes, 2 / n_classes)
    masses = {"whole": rng.integers(1, 4, n_samples), "real": rng.dirichlet(np.ones(n_samples))}
    if "sample_mass" in rule:
        rule["sample_mass"] = masses[rule["sample_mass"]]
    return drawn.scores, [{"class_mass": drawn.class_mass}, rule]


def ends_of(n_samples: int, n_ranks: int, number: int) -> np.ndarray:
    """Where ranks' rows begin: even, at random (empty ranks among them), or all at the last."""
    rng = np.random.default_rng(number)
    ways = [
        np.arange(1, n_ranks) * n_samples // n_ranks,
        np.sort(rng.integers(0, n_samples + 1, n_ranks - 1)),
        np.zeros(n_ranks - 1, int),
    ]
    return np.concatenate([[0], ways[number % len(ways)], [n_samples]])


def solved(scores: Any, call: dict[str, Any], rows: slice, group: Any = None) -> dict[str, Any] | tuple[str, str]:
    """What is to be the same, or the error."""
    mass = call.get("sample_mass")
    call = {**call, "sample_mass": None if mass is None else mass[rows]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = sinkhorn_assign(scores[rows], **call, group=group)
    except (InfeasibleError, InvalidScoresError, InvalidMassError, ValueError) as error:
        return type(error).__name__, str(error)
    names = ("labels", "counts", "class_mass", "potentials", "plan_potentials", "label_mass")
    found = {name: np.asarray(getattr(result, name)) for name in names}
    for name in ("value", "bound", "marginal_error", "threshold", "n_sweeps", "status", "n_samples"):
        found[name] = getattr(result, name)
    return found


def solve_all(group: Any) -> list[Any]:
    """Every kind of problem on this rank's rows, on four ranks every third; some also under one other rule."""
    otlabel.sweep.blocks.BLOCK_ENTRIES = SMALL_BLOCKS
    rank, n_ranks = group.rank(), group.size()
    found = []
    for number, kind in enumerate(KINDS):
        scores, calls = problem(number + n_ranks, kind)
        ends = ends_of(len(scores), n_ranks, number)
        rows = slice(int(ends[rank]), int(ends[rank + 1]))
        if (n_ranks + number) % {1: 1, 2: 2}.get(n_ranks, 8):  # more ranks take longer on few processors
            calls = calls[:1]
        if n_ranks == 4 and (number + number // 3) % 3:  # with all ways of `ends_of`
            calls = []
        found.append([solved(scores, call, rows, group) for call in calls])
    return found


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_ranks_find_what_one_process_finds(n_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    all_solved = on_ranks(solve_all, n_ranks)
    for answer in all_solved:
        assert not isinstance(answer, Exception), answer
    monkeypatch.setattr(otlabel.sweep.blocks, "BLOCK_ENTRIES", SMALL_BLOCKS)
    for number, kind in enumerate(KINDS):
        scores, calls = problem(number + n_ranks, kind)
        of_ranks = [answer[number] for answer in all_solved]
        for call, parts in zip(calls, zip(*of_ranks, strict=True), strict=False):
            try:
                assert_same(parts, solved(scores, call, slice(None)))
            except AssertionError as error:
                error.add_note(f"{kind}, {call}")
                raise


def assert_same(parts: Sequence[Any], expected: Any) -> None:
    """Ranks have the numbers, or the error, of one process."""
    if isinstance(expected, tuple):
        assert all(part[0] == expected[0] for part in parts)
        return
    labels = np.concatenate([part["labels"] for part in parts])
    np.testing.assert_array_equal(labels, expected.pop("labels"))
    for part in parts:
        for name, value in expected.items():
            if name in ("value", "bound"):
                assert part[name] == pytest.approx(value, rel=1e-12, abs=1e-12)
            else:
                np.testing.assert_array_equal(part[name], value, err_msg=name)


def solve_sources(group: Any, folder: str) -> list[np.ndarray]:
    """Features times weights, files that are streamed or kept, and bfloat16."""
    rank, n_ranks = group.rank(), group.size()
    features, weight, bias = drawn_features()
    ends = ends_of(len(features), n_ranks, 1)
    rows = slice(int(ends[rank]), int(ends[rank + 1]))
    heads = linear_scores(features[rows], [weight, -weight], [bias, bias])
    found = [sinkhorn_assign(head, group=group) for head in heads]
    for limit in (0, None):
        file = f"{folder}/part-{rank}.h5"
        with h5py.File(file, "w") as part:
            part["scores"] = (features @ weight.T + bias)[rows].astype(np.float16)
        found.append(sinkhorn_assign(f"{file}::/scores", memory_limit=limit, group=group))
    tensor = torch.from_numpy(features @ weight.T + bias).bfloat16()
    found.append(sinkhorn_assign(tensor[rows], group=group))
    assert isinstance(found[-1].labels, torch.Tensor)
    assert found[2].bytes_read >= found[3].bytes_read > 0
    return [np.asarray(result.labels) for result in found] + [np.array([result.bytes_sent for result in found])]


def drawn_features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((30_000, 8)).astype(np.float32), rng.standard_normal((20, 8)), rng.standard_normal(20)


def test_sources_of_every_kind(tmp_path: Any) -> None:
    features, weight, bias = drawn_features()
    scores = features @ weight.T + bias
    expected = [sinkhorn_assign(head) for head in linear_scores(features, [weight, -weight], [bias, bias])]
    expected += [sinkhorn_assign(scores.astype(np.float16))] * 2
    expected.append(sinkhorn_assign(torch.from_numpy(scores).bfloat16()))
    found = on_ranks(solve_sources, 3, str(tmp_path))
    for answer in found:
        assert not isinstance(answer, Exception), answer
    for at, result in enumerate(expected):
        labels = np.concatenate([answer[at] for answer in found])
        np.testing.assert_array_equal(labels, np.asarray(result.labels))


@pytest.mark.parametrize("block_rows", [1, 3, 7, 50])
@pytest.mark.parametrize("counts", [[5, 0, 9], [1, 1, 1], [0, 0, 20], [20, 0, 0], [6, 7, 8], [0, 2, 1]])
def test_every_block_is_worked_on_by_one_rank(counts: list[int], block_rows: int) -> None:
    class Rank:
        world_size = len(counts)

        def __init__(self, rank: int) -> None:
            self.rank = rank

    all_ranks = [
        Redistribution(Rank(rank), np.array(counts), block_rows)  # type: ignore[arg-type]
        for rank in range(len(counts))
    ]
    assert all_ranks[0].worked[0] == 0
    assert all_ranks[-1].worked[1] == sum(counts)
    for one, following in itertools.pairwise(all_ranks):
        assert one.worked[1] == following.worked[0]
        assert one.worked[1] % block_rows == 0 or one.worked[1] == sum(counts)
    for one in all_ranks:
        kept = max(min(one.given[1], one.worked[1]) - max(one.given[0], one.worked[0]), 0)
        assert kept + one.n_received == one.worked[1] - one.worked[0]
        assert kept + one.n_sent == one.given[1] - one.given[0]


def test_a_caller_s_scores_on_a_device_do_not_learn_of_other_ranks() -> None:
    class Two(SingleProcess):
        world_size = 2

        def allgather_by_rank(self, name: str, arrays: Any) -> list[Any]:
            return [arrays, arrays]

    source = TensorSource(torch.zeros(5, 3))
    rows = RowSet.in_blocks(source, Two())
    assert rows.n_rows == 10
    assert rows.source is source
    assert RowSet(source).n_rows == 5


def test_without_a_group_nothing_is_asked_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: pytest.fail("torch.distributed was asked"))
    result = sinkhorn_assign(np.random.default_rng(0).standard_normal((40, 4)))
    assert result.bytes_sent == SINGLE_PROCESS.bytes_sent == 0


# ---- what is made of it ----


def cluster_rows(group: Any, metric: str, bounds: dict[str, int]) -> dict[str, Any]:
    """Balanced clusters of this rank's rows, which are none for rank 1; also where a rank's rows hold NaN."""
    from otlabel import BalancedKMeans

    ends = np.array([0, 300, 300, 800])
    rows = slice(int(ends[group.rank()]), int(ends[group.rank() + 1]))
    features = drawn_features()[0][:800][rows]
    model = BalancedKMeans(12, metric=metric, random_state=group.rank(), **bounds).fit(features, group=group)
    found = {name: getattr(model, name) for name in ("labels_", "sizes_", "inertia_", "cluster_centers_", "n_iter_")}
    bad = features.copy()
    bad[5:6] = np.nan
    model = BalancedKMeans(12, metric=metric, **bounds)
    try:
        model.fit(torch.from_numpy(bad if group.rank() == 2 else features), group=group)
    except InvalidScoresError as error:
        found["error"] = str(error)
    return found


@pytest.mark.parametrize(
    ("metric", "bounds"),
    [("euclidean", {}), ("cosine", {"size_min": 40, "size_max": 120})],
    ids=["euclidean, equal", "cosine, bounds"],
)
def test_balanced_clusters_over_ranks(metric: str, bounds: dict[str, int]) -> None:
    cluster = pytest.importorskip("otlabel.cluster")
    found = on_ranks(cluster_rows, 3, metric, bounds)
    for answer in found:
        assert not isinstance(answer, Exception), answer
    model = cluster.BalancedKMeans(12, metric=metric, random_state=0, **bounds).fit(drawn_features()[0][:800])
    np.testing.assert_array_equal(np.concatenate([part["labels_"] for part in found]), model.labels_)
    for part in found:
        np.testing.assert_array_equal(part["sizes_"], model.sizes_)
        np.testing.assert_allclose(part["cluster_centers_"], model.cluster_centers_, rtol=1e-5, atol=1e-6)
        assert part["inertia_"] == pytest.approx(model.inertia_, rel=1e-9)
        assert part["n_iter_"] == model.n_iter_
        assert part["error"].startswith("features hold NaN or infinity, the first at row 5")


def code_rows(group: Any) -> dict[str, Any]:
    """Codes of this rank's rows, which are none for rank 1, with no two alike; and starts that all ranks agree on."""
    from otlabel import BalancedKMeans, ResidualBalancedKMeans

    rows = CODED_ROWS[group.rank()]
    features = drawn_features()[0][rows]
    coder = ResidualBalancedKMeans((12, 10, 8), unique=True, max_iter=2, random_state=group.rank()).fit(
        features, group=group
    )
    found = {name: getattr(coder, name) for name in ("codes_", "inertia_", "gap_")}
    for name, init in (("random", "random"), ("function", _first_rows)):
        model = BalancedKMeans(6, init=init, n_init=1, n_swaps=1, max_iter=2, random_state=group.rank())
        found[name] = model.fit(features, group=group).labels_
    return found


CODED_ROWS = slice(0, 300), slice(300, 300), slice(300, 800)


def _first_rows(rows: np.ndarray, n_clusters: int, random_state: Any) -> np.ndarray:
    return rows[random_state.permutation(len(rows))[:n_clusters]]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_codes_and_starts_over_ranks() -> None:
    cluster = pytest.importorskip("otlabel.cluster")
    found = on_ranks(code_rows, 3)
    for answer in found:
        assert not isinstance(answer, Exception), answer
    features = drawn_features()[0][:800]
    coder = cluster.ResidualBalancedKMeans((12, 10, 8), unique=True, max_iter=2, random_state=0).fit(features)
    codes = np.concatenate([part["codes_"] for part in found])
    np.testing.assert_array_equal(codes, coder.codes_)
    assert len(np.unique(codes, axis=0)) == 800
    for name, init in (("random", "random"), ("function", _first_rows)):
        model = cluster.BalancedKMeans(6, init=init, n_init=1, n_swaps=1, max_iter=2, random_state=0).fit(features)
        np.testing.assert_array_equal(np.concatenate([part[name] for part in found]), model.labels_)
    for part in found:
        np.testing.assert_allclose(part["inertia_"], coder.inertia_, rtol=1e-6)
        assert part["gap_"].max() < 1e-6


def curate_rows(group: Any) -> tuple[Any, ...]:
    from otlabel import curate

    rows = [slice(0, 1000), slice(1000, 1000), slice(1000, 6000)][group.rank()]
    found = curate(drawn_features()[0][:6000][rows], 500, levels=(90, 9), resample=1, group=group)
    return found.indices + rows.start, found.clusters, found.sizes, found.quotas, found.summary()


def test_curate_over_ranks() -> None:
    pytest.importorskip("sklearn")
    from otlabel import curate

    found = on_ranks(curate_rows, 3)
    for answer in found:
        assert not isinstance(answer, Exception), answer
    one = curate(drawn_features()[0][:6000], 500, levels=(90, 9), resample=1)
    np.testing.assert_array_equal(np.concatenate([part[0] for part in found]), one.indices)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in found]), one.clusters)
    for _, _, sizes, quotas, summary in found:
        np.testing.assert_array_equal(sizes, one.sizes)
        np.testing.assert_array_equal(quotas, one.quotas)
        assert summary == one.summary()


def certify_rows(group: Any) -> list[Any]:
    rows = [slice(0, 400), slice(400, 400), slice(400, 2000)][group.rank()]
    features, weight, bias = drawn_features()
    scores = (features @ weight.T + bias)[:2000]
    found = [certify(scores[rows], labels[rows], group=group) for labels in some_labels(scores)]
    found.append(certify(scores[rows], some_labels(scores)[0][rows], potentials=np.zeros(20), group=group))
    return [(one.value, one.bound, one.counts) for one in found]


def some_labels(scores: np.ndarray) -> list[np.ndarray]:
    """The best classes; and fewer, of samples at random."""
    best, rng = scores.argmax(1), np.random.default_rng(0)
    return [best, np.where(rng.random(len(best)) < 0.3, -1, rng.permutation(best))]


def test_certificates_over_ranks() -> None:
    features, weight, bias = drawn_features()
    scores = (features @ weight.T + bias)[:2000]
    expected = [certify(scores, labels) for labels in some_labels(scores)]
    expected.append(certify(scores, some_labels(scores)[0], potentials=np.zeros(20)))
    for answer in on_ranks(certify_rows, 3):
        assert not isinstance(answer, Exception), answer
        for (value, bound, counts), one in zip(answer, expected, strict=True):
            assert value == pytest.approx(one.value, rel=1e-12)
            assert bound == pytest.approx(one.bound, rel=1e-12)
            np.testing.assert_array_equal(counts, one.counts)


# ---- what is sent ----


def count_bytes(group: Any, n_rows: int) -> dict[str, list[int]]:
    """Bytes that this rank sends at each step, by its name."""
    scores = np.random.default_rng([group.rank(), n_rows]).standard_normal((n_rows, 700)).astype(np.float32)
    sent: dict[str, list[int]] = {}
    reduce = ProcessGroup.allreduce_with

    def counted(ranks: ProcessGroup, name: str, arrays: Any, merge: Any) -> Any:
        before = ranks.bytes_sent
        answer = reduce(ranks, name, arrays, merge)
        sent.setdefault(name, []).append(ranks.bytes_sent - before)
        return answer

    ProcessGroup.allreduce_with = counted  # type: ignore[method-assign]
    sinkhorn_assign(scores, group=group)
    return sent


def test_passes_send_what_classes_take_however_many_rows_there_are() -> None:
    few, many = (on_ranks(count_bytes, 2, n_rows)[1] for n_rows in (3000, 12_000))
    numbers = 8 * (2 * 703 + 700)  # sums of K + 3 numbers, what their rounding left, and K counts
    assert all(numbers < sent < numbers + 200 for sent in few["sweep"] + many["sweep"])
    assert max(many["curvature"]) < 2 * max(few["curvature"])


# ---- faults ----


def scores_of(group: Any, n_rows: int = 9000) -> np.ndarray:
    return np.random.default_rng(group.rank()).standard_normal((n_rows, 6))


def complain(group: Any) -> list[tuple[str, str]]:
    """One fault after the other, each of one rank: the group stays usable."""
    rank, found = group.rank(), []
    scores = scores_of(group)
    bad = scores.copy()
    bad[17, 2] = np.nan

    def boom(record: dict[str, Any]) -> None:
        if rank == 2 and record["stage"] == "round":
            raise RuntimeError("boom")

    calls: list[tuple[Any, dict[str, Any]]] = [
        (bad if rank == 1 else scores, {}),
        (scores, {"epsilon": 0.05 if rank == 2 else 0.04}),
        (scores, {"class_mass": np.full(6, 1 / 6) if rank == 1 else None}),
        (scores[:, :5] if rank == 1 else scores, {}),
        (scores.astype(np.float32) if rank == 0 else scores, {}),
        (scores, {"progress": boom}),
        (scores, {"tol": -1.0 if rank == 0 else 0.01}),
        (scores, {"sample_mass": np.ones(3) if rank == 2 else np.ones(9000)}),
        (f"missing-{rank}.npy" if rank == 1 else scores, {}),
        (np.full_like(scores, -np.inf) if rank == 0 else scores, {}),
    ]
    for given, call in calls:
        try:
            sinkhorn_assign(given, **call, group=group)
            found.append(("none", ""))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    labels = sinkhorn_assign(scores, group=group).counts
    assert labels.tolist() == [4500] * 6
    return found


def test_faults_of_one_rank_end_the_work_of_all() -> None:
    found = on_ranks(complain, 3)
    for answer in found:
        assert not isinstance(answer, Exception), answer
    for rank, answer in enumerate(found):
        said = dict(enumerate(answer))
        assert said[0] == ("InvalidScoresError", found[0][0][1])
        assert "1 of 162000 scores are NaN or +inf, the first at row 17 of rank 1, class 2 (nan)" in said[0][1]
        assert said[1][0] == said[3][0] == "RankError"
        assert said[1][1].startswith("rank 2 was called with epsilon=0.05, rank 0 with epsilon=0.04; pass the same to")
        assert "rank 1 was called with class_mass=[" in said[2][1]
        assert said[3][1].startswith("rank 0 has float64 scores of 6 columns, rank 1 float64 of 5; pass the same to")
        assert "rank 0 has float32 scores of 6 columns, rank 1 float64 of 6" in said[4][1]
        assert said[5] == (
            ("RuntimeError", "boom") if rank == 2 else ("RankError", "rank 2 failed: RuntimeError: boom")
        )
        assert said[6][0] == ("ValueError" if rank == 0 else "RankError")
        assert "tol is -1.0; it must be a positive number" in said[6][1]
        assert said[7][0] == "InvalidMassError"
        assert ("rank 2 failed" in said[7][1]) == (rank != 2)
        assert "missing-1.npy" in said[8][1]
        assert said[9] == ("InfeasibleError", found[0][9][1])
        assert said[9][1].startswith("9000 rows have no class allowed (all scores are -inf), the first is row 0")


def die(group: Any, victim: int, stage: str, all_rows: bool, how: str, folder: str) -> tuple[float, str]:
    """One rank dies, or falls silent, at a stage of the work; how long it takes the others to say so, and what."""
    scores, seen = scores_of(group, 20_000), [time.monotonic()]

    def watch(record: dict[str, Any]) -> None:
        seen[0] = time.monotonic()
        if group.rank() == 0 and "potentials" in record:
            np.save(f"{folder}/potentials.npy", record["potentials"])
        if group.rank() == victim and record["stage"] == stage and (record["rows"] == 60_000) == all_rows:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(4.5)

    try:
        sinkhorn_assign(scores, group=group, progress=watch, tol=1e-9)
    except RankError as error:
        return time.monotonic() - seen[0], str(error)
    return -1.0, "nothing was noticed"


@pytest.mark.parametrize(
    ("victim", "stage", "all_rows"),
    [(1, "solve", False), (2, "solve", True), (1, "round", True), (0, "solve", True), (2, "certify", True)],
)
def test_killed_rank_is_named_by_the_others(victim: int, stage: str, all_rows: bool, tmp_path: Any) -> None:
    found = on_ranks(die, 3, victim, stage, all_rows, "kill", str(tmp_path))
    assert found.pop(victim) == KILLED
    for answer in found:
        assert not isinstance(answer, Exception), answer
    for seconds, said in found:
        assert 0 <= seconds < 20
        assert said.startswith(f"rank {victim} was lost at")
    if stage == "certify":  # a new run goes on from the last potentials
        fresh = np.concatenate([scores_of(FakeGroup(rank), 20_000) for rank in range(3)])
        resumed = sinkhorn_assign(fresh, init=np.load(tmp_path / "potentials.npy"), tol=1e-9)
        assert resumed.n_sweeps < sinkhorn_assign(fresh, tol=1e-9).n_sweeps


class FakeGroup:
    """Knows its rank."""

    def __init__(self, rank: int) -> None:
        self.rank = lambda: rank


@pytest.mark.parametrize("victim", [1, 0])
def test_silent_rank_is_named_by_the_others(victim: int, tmp_path: Any) -> None:
    found = on_ranks(die, 3, victim, "solve", True, "sleep", str(tmp_path), timeout=3.0)
    found.pop(victim)
    for answer in found:
        assert not isinstance(answer, Exception), answer
    for seconds, said in found:
        assert 0 <= seconds < 12
        assert said.startswith(f"rank {victim} was lost at")


def interrupted(group: Any, victim: int, stage: str, waiting: bool) -> tuple[str, str, float, list[int]]:
    """One rank is interrupted at a stage, or while it waits for another; what each raises, and how long that takes."""
    rank, scores, struck, seen = group.rank(), scores_of(group, 20_000), [False], [time.monotonic()]

    def interrupt() -> None:
        seen[0] = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    def watch(record: dict[str, Any]) -> None:
        if struck[0] or record["stage"] != stage:
            return
        struck[0], seen[0] = True, time.monotonic()
        if rank == victim:
            threading.Timer(0.3, interrupt).start() if waiting else interrupt()
        elif waiting and rank == (victim + 1) % group.size():
            time.sleep(1.5)
            seen[0] = time.monotonic()

    try:
        sinkhorn_assign(scores, group=group, progress=watch, tol=1e-9)
        told = "none", ""
    except (RankError, KeyboardInterrupt) as error:
        told = type(error).__name__, str(error)
    seconds = time.monotonic() - seen[0]
    return *told, seconds, sinkhorn_assign(scores, group=group).counts.tolist()


@pytest.mark.parametrize(
    ("victim", "stage", "waiting"),
    [(0, "solve", False), (1, "certify", False), (0, "solve", True), (2, "solve", True)],
)
def test_an_interrupt_of_one_rank_ends_the_work_of_all_at_once(victim: int, stage: str, waiting: bool) -> None:
    for rank, answer in enumerate(on_ranks(interrupted, 3, victim, stage, waiting)):
        assert not isinstance(answer, Exception), answer
        kind, told, seconds, counts = answer
        if rank == victim:
            assert (kind, told) == ("KeyboardInterrupt", "")
            assert seconds < 4.0
        else:
            assert (kind, told) == ("RankError", f"rank {victim} failed: KeyboardInterrupt")
            assert seconds < 2.5
        assert counts == [10_000] * 6  # the group is as good as before


def in_two_threads(group: Any) -> list[str]:
    """A second thread asks for a group that the first one works with."""
    found, scores, asked = list[str](), scores_of(group), [False]

    def solve() -> None:
        try:
            sinkhorn_assign(scores, group=group)
        except RankError as error:
            found.append(str(error))

    def watch(record: dict[str, Any]) -> None:
        if not asked[0]:
            asked[0] = True
            second = threading.Thread(target=solve)
            second.start()
            second.join()

    counts = sinkhorn_assign(scores, group=group, progress=watch).counts.tolist()
    assert counts == sinkhorn_assign(scores, group=group).counts.tolist() == [3000] * 6
    return found


def test_a_group_in_two_threads_is_an_error() -> None:
    for answer in on_ranks(in_two_threads, 2):
        assert not isinstance(answer, Exception), answer
        (told,) = answer
        assert told.startswith("another thread works with this group now")


def without_rows(group: Any) -> list[tuple[str, str]]:
    """Nobody has a row."""
    import otlabel

    nothing, found = np.zeros((0, 6)), []
    calls: list[Any] = [
        lambda: sinkhorn_assign(nothing, group=group),
        lambda: sinkhorn_assign(linear_scores(nothing, np.ones((3, 6))), classes=Range(0, 1), group=group),
        lambda: certify(nothing, np.zeros(0, int), group=group),
        lambda: otlabel.BalancedKMeans(3).fit(nothing, group=group),
        lambda: otlabel.curate(nothing, 2, group=group),
    ]
    for call in calls:
        try:
            call()
            found.append(("none", ""))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_where_no_rank_has_a_row_all_say_so() -> None:
    found = on_ranks(without_rows, 2)
    for answer in found:
        assert not isinstance(answer, Exception), answer
        assert answer == [("InvalidScoresError", "none of the 2 ranks has a row; some may be without, but not all")] * 5


def test_saved_part_of_an_assignment(tmp_path: Any) -> None:
    parts = on_ranks(save_part, 2, str(tmp_path))
    for rank, summary in enumerate(parts):
        loaded = Assignment.load(tmp_path / f"{rank}.npz")
        assert loaded.n_samples == 18_000
        assert len(loaded.labels) == 9000
        assert loaded.summary() == summary
        assert "18,000 x 6 scores" in summary
        assert "ranks     9,000 rows here" in summary


def save_part(group: Any, folder: str) -> str:
    result = sinkhorn_assign(scores_of(group), group=group)
    result.save(f"{folder}/{group.rank()}.npz")
    return result.summary()
