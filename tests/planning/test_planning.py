"""The plan against what really happens: counted passes, bytes that were read, memory that was taken."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from command import Ran
from problems import clusters, normal
from ranks import on_ranks
from scipy.special import log_softmax

import otlabel
from otlabel import sinkhorn_assign
from otlabel.planning import (
    CARDS,
    conversation,
    estimate,
    measure_read_rate,
    measure_sweep_rate,
    rates,
)
from otlabel.planning.model import PASSES
from otlabel.planning.part import Part
from otlabel.ranks.communicator import ProcessGroup
from otlabel.solver import samples, small
from otlabel.solver.problem import Problem, Rounding
from otlabel.sources import ITEM_BYTES, ArraySource, Opened, free_memory, open_scores

GB = 10**9


# ---- against measured runs ----


@functools.lru_cache(maxsize=1)
def _problem(kind: str, n_rows: int, n_classes: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    made = {
        "clusters": lambda: clusters(rng, n_rows, n_classes),
        "noise": lambda: normal(rng, n_rows, n_classes),
        "sharp": lambda: log_softmax(8 * normal(rng, n_rows, n_classes), axis=1),
        "similarities": lambda: np.tanh(normal(rng, n_rows, n_classes) / 3),
    }[kind]()
    return made.astype(np.float32)


@pytest.mark.parametrize("rounding", ["argmax", "exact"])
@pytest.mark.parametrize("kind", ["clusters", "noise", "sharp", "similarities"])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(2_000, 20), (40_000, 50), (60_000, 10)])
def test_passes_are_as_many_as_planned(rounding: Rounding, kind, n_rows, n_classes) -> None:
    planned = estimate((n_rows, n_classes), "float32", rounding=rounding)
    counted = sinkhorn_assign(_problem(kind, n_rows, n_classes), rounding=rounding).n_sweeps
    assert counted <= planned.most_passes


@pytest.mark.parametrize("rounding", ["argmax", "exact"])
def test_the_usual_number_of_passes_is_usual(rounding: Rounding) -> None:
    shapes = [(2_000, 20), (40_000, 50), (100_000, 30)]
    counted = [
        sinkhorn_assign(_problem(kind, *shape), rounding=rounding).n_sweeps
        for kind in ("clusters", "noise", "sharp")
        for shape in shapes
    ]
    assert abs(np.mean(counted) - estimate((2_000, 20), "float32", rounding=rounding).passes) <= 2


@pytest.mark.parametrize(("n_rows", "n_classes"), [(1000, 10), (9000, 10), (100_000, 10), (500_000, 2), (300_000, 700)])
def test_samples_are_those_that_the_solver_draws(n_rows, n_classes) -> None:
    class Nothing:
        shape = (n_rows, n_classes)

        def __init__(self) -> None:
            self.n_rows, self.columns = n_rows, n_classes

        def subset(self, rows: np.ndarray) -> int:
            return len(rows)

    shares = np.full(n_classes, 1 / n_classes)
    sampled = samples.draw_sampled(n_rows, n_classes, 0)
    problem = Problem(Nothing(), shares, shares, 1.0, 1.0, 1.0, sampled)  # type: ignore[arg-type]
    drawn = [sample.rows for sample in samples.samples_of(problem, np.random.default_rng(0))]
    assert samples.sample_sizes(n_rows, n_classes) == drawn
    assert max([0, *drawn]) <= len(sampled) <= n_rows


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from otlabel import sinkhorn_assign
sinkhorn_assign(sys.argv[1], rounding=sys.argv[2], memory_limit=1 << 40)
status = Path("/proc/self/status").read_text()  # getrusage would tell this test's own peak, inherited by the fork
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is told by Linux alone")
@pytest.mark.parametrize(
    ("n_rows", "n_classes", "rounding"),
    [(5_000, 20, "argmax"), (300_000, 100, "argmax"), (300_000, 100, "exact"), (40_000, 800, "exact")],
)
def test_memory_stays_under_the_planned_peak_but_not_far(tmp_path, n_rows, n_classes, rounding: Rounding) -> None:
    np.save(tmp_path / "scores.npy", _problem("clusters", n_rows, n_classes))
    environment = os.environ | {"PYTHONPATH": str(Path(otlabel.__file__).parents[1])}
    environment.pop("OMP_NUM_THREADS", None)  # each thread of a library has memory of its own
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "scores.npy"), rounding]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, env=environment)
    peak = estimate((n_rows, n_classes), "float32", rounding=rounding, memory_limit=100 * GB).peak_memory
    assert 0.25 * peak <= int(done.stdout) <= peak


# ---- against what ranks told each other ----

RANKED = {"few": (30_000, 100, "exact"), "probed": (20_000, 500, "exact"), "argmax": (30_000, 40, "argmax")}


def _count_messages(group: Any) -> dict[str, dict[str, int]]:
    """Rounds and bytes of each problem on two ranks, and of one on one rank."""
    small.MOST_SCORES = 0  # as if these were too many for one reading
    rank = group.rank()
    rounds: collections.Counter[str] = collections.Counter()
    reduce = ProcessGroup.allreduce_with

    def counted(self: ProcessGroup, name: str, *rest: Any) -> Any:
        rounds[name] += 1
        return reduce(self, name, *rest)

    ProcessGroup.allreduce_with = counted  # type: ignore[method-assign]
    found = {}
    alone = dist.new_group([0])
    for name, (n_rows, n_classes, rounding) in RANKED.items():
        rounds.clear()
        part = slice(rank * n_rows // 2, (rank + 1) * n_rows // 2)
        result = sinkhorn_assign(_problem("clusters", n_rows, n_classes)[part], rounding=rounding, group=group)
        found[name] = {
            "bytes": result.bytes_sent,
            "rounds": rounds.total(),
            "solves": sum(seen["stage"] == "solve" and seen["rows"] == n_rows for seen in result.history),
            "samples": sum(seen["stage"] == "solve" and seen["rows"] < n_rows for seen in result.history),
            "repairs": sum(seen["stage"] == "round" for seen in result.history),
            "steps": rounds["curvature"] // 2,
        }
    if rank == 0:
        found["alone"] = {"bytes": sinkhorn_assign(_problem("clusters", 500, 5), group=alone).bytes_sent}
    return found


@pytest.fixture(scope="module")
def told() -> list[dict[str, dict[str, int]]]:
    """What was counted on each of two ranks."""
    found = on_ranks(_count_messages, 2)
    for answer in found:
        assert not isinstance(answer, Exception), answer
    return found


@pytest.mark.parametrize("case", RANKED)
def test_bytes_and_rounds_are_as_planned(case: str, told) -> None:
    n_rows, n_classes, rounding = RANKED[case]
    first, other = told[0][case], told[1][case]
    planned = estimate((n_rows, n_classes), "float32", 2, rounding=rounding)  # type: ignore[arg-type]
    assert first["rounds"] == other["rounds"]
    assert 1 / 1.5 <= planned.rounds / first["rounds"] <= 1.5
    assert 1 / 1.6 <= planned.bytes_first / first["bytes"] <= 1.6
    assert 1 / 1.6 <= planned.bytes_others / other["bytes"] <= 1.6


@pytest.mark.parametrize("case", RANKED)
def test_messages_follow_from_the_passes(case: str, told) -> None:
    n_rows, n_classes, rounding = RANKED[case]
    first, other = told[0][case], told[1][case]
    part = Part(n_rows, n_classes, "float32", 2, rounding=rounding)  # type: ignore[arg-type]
    passes = first["solves"] + first["samples"]
    steps = conversation(part, passes=passes, newton_steps=first["steps"], repairs=first["repairs"])
    assert sum(step.times * step.rounds for step in steps) == pytest.approx(first["rounds"], abs=4)
    assert sum(step.first for step in steps) == pytest.approx(first["bytes"], rel=0.3)
    assert sum(step.others for step in steps) == pytest.approx(other["bytes"], rel=0.3)


def test_one_rank_sends_nothing(told) -> None:
    planned = estimate((500, 5), "float32", 1)
    assert told[0]["alone"]["bytes"] == planned.bytes_first == planned.bytes_others == 0


# ---- the model ----


def test_a_card_s_pass_is_of_its_data_sheet() -> None:
    card = CARDS["h200"]
    given = estimate((64 * 10**6, 1000), "float16", 64, card=card)
    assert given.pass_seconds == pytest.approx(10**9 * 2 / (card.bandwidth / 2))  # reads each score once, at half speed
    made = estimate((64 * 10**6, 1000), "float16", 64, card=card, dim=4096)
    assert made.operations == 2 * 64 * 10**9 * 4096
    assert made.pass_seconds == pytest.approx(made.operations / 64 / (card.float32 / 2), rel=0.1)
    assert made.least_pass_seconds == pytest.approx(made.operations / 64 / card.bfloat16)
    assert given.card_suffices
    assert made.card_suffices


def test_rank_0_sends_in_proportion_to_ranks_and_classes() -> None:
    sent = [estimate((10**8, k), "float16", r) for k, r in ((10**4, 8), (10**4, 57), (4 * 10**4, 8))]
    first, others = [one.pass_bytes_first for one in sent], [one.pass_bytes_others for one in sent]
    assert first[1] / first[0] == pytest.approx(8)
    assert first[2] / first[0] == pytest.approx(4, rel=0.01)
    assert others[1] == others[0] == pytest.approx(24 * 10**4, rel=0.01)


def test_more_ranks_take_less_time_and_memory_each(monkeypatch) -> None:
    monkeypatch.setattr("otlabel.planning.model.free_memory", lambda: 100 * GB)
    settings: dict[str, Any] = {"sweep_rate": 1e9, "memory_limit": 10**12, "dim": 128}
    few, many = (estimate((10**8, 1000), "float16", n_ranks, **settings) for n_ranks in (2, 64))
    assert few.pass_seconds == pytest.approx(32 * many.pass_seconds, rel=0.05)
    assert many.seconds < few.seconds
    assert sum(many.memory.values()) < sum(few.memory.values())


@pytest.mark.parametrize("read_rate", [None, 1e8])
@pytest.mark.parametrize("memory_limit", [0, 10**12])
def test_one_rank_and_two_answer_by_the_same_rule(memory_limit: int, read_rate: float | None) -> None:
    settings: dict[str, Any] = {"sweep_rate": 1e9, "read_rate": read_rate, "memory_limit": memory_limit}
    shape = 1 << 20, 128  # whole blocks for each rank
    one, two = (estimate(shape, "float16", n_ranks, **settings) for n_ranks in (1, 2))
    assert one.bytes_read == 2 * two.bytes_read
    assert one.pass_seconds == 2 * two.pass_seconds
    assert one.serial_seconds == two.serial_seconds
    assert one.seconds - one.serial_seconds == pytest.approx(
        2 * (two.seconds - two.serial_seconds - two.message_seconds)
    )
    assert (one.message_seconds, one.rounds, one.bytes_first) == (0, 0, 0)


def test_one_process_that_does_not_fit_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr("otlabel.planning.model.free_memory", lambda: GB)
    told = estimate((10**8, 100), "float32", sweep_rate=1e9).summary()
    assert "DOES NOT FIT into the memory of a rank, 1 GB: candidates take 9.6 GB" in " ".join(told.split())


def test_what_does_not_fit_is_said_and_has_no_time(monkeypatch) -> None:
    monkeypatch.setattr("otlabel.planning.model.free_memory", lambda: 100 * GB)
    planned = estimate((10**10, 10**5), "float16", 64, dim=256, sweep_rate=1e9)
    assert not planned.memory_suffices
    assert planned.pass_seconds is planned.seconds is None
    assert "candidates take" in " ".join(planned.findings)
    assert "--rounding argmax has none" in " ".join(planned.findings)
    told = planned.summary()
    assert "DOES NOT FIT" in told
    assert "not told" in told


def test_what_is_left_out_is_said() -> None:
    idle = estimate((1000, 10), "float32", 400).findings
    assert any("ranks have nothing to do" in finding for finding in idle)
    coarse = estimate((10**9, 10**5), "float16", 64, dim=256, card=CARDS["h200"]).findings
    assert any("it may take more passes" in finding for finding in coarse)
    moved = estimate((4 * 10**8, 1000), "float16", 8, card=CARDS["a100"], rounding="argmax")
    assert moved.pass_seconds == pytest.approx(4 * 10**11 * 2 / 8 / CARDS["a100"].link)
    assert any("host's link" in finding for finding in moved.findings)
    read = estimate((10**9, 1000), "float16", 8, card=CARDS["a100"], rounding="argmax")
    assert read.pass_seconds is None  # nobody knows how fast its files are
    assert "a rate is not known" in read.summary()
    assert any("reads its files again" in finding for finding in read.findings)


def test_matrices_that_do_not_fit_are_read_once_where_lists_will_do() -> None:
    fits = estimate((1_281_167, 3000), "float16", memory_limit=8 * GB)
    streams = estimate((1_281_167, 3000), "float16", memory_limit=4 * GB)
    assert fits.matrix_bytes == streams.matrix_bytes == 2 * 1_281_167 * 3000
    assert (fits.cached, fits.bytes_read) == (True, fits.matrix_bytes)
    assert (streams.cached, streams.bytes_read) == (False, streams.matrix_bytes)  # the others go over lists
    argmax = estimate((1_281_167, 3000), "float16", memory_limit=4 * GB, rounding="argmax")
    assert argmax.bytes_read == argmax.passes * argmax.matrix_bytes
    assert "in one of the passes" in streams.summary()
    assert fits.peak_memory - streams.peak_memory == fits.matrix_bytes
    assert streams.peak_memory < 3 * GB  # what is promised for streaming at this size


def test_time_is_the_slower_of_reading_and_computing() -> None:
    settings: dict[str, Any] = {"rounding": "argmax", "memory_limit": 0}
    computing = estimate((1_000_000, 1000), "float16", sweep_rate=1e9, read_rate=1e15, **settings).seconds
    reading = estimate((1_000_000, 1000), "float16", sweep_rate=1e15, read_rate=1e9, **settings).seconds
    both = estimate((1_000_000, 1000), "float16", sweep_rate=1e9, read_rate=1e9, **settings).seconds
    passes = PASSES["argmax"][0]
    assert reading == pytest.approx(2 * passes, rel=1e-3)
    assert passes <= computing <= 2.5 * passes
    assert max(reading, computing) <= both <= reading + computing
    assert estimate((10, 3), "float32").seconds is None


def test_time_grows_with_the_rows() -> None:
    seconds = [estimate((n, 100), "float32", sweep_rate=1e9, memory_limit=GB).seconds for n in (10**6, 10**7, 10**8)]
    assert None not in seconds
    assert seconds == sorted(seconds)
    assert 5 <= seconds[2] / seconds[1] <= 12


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0008, "under a second"),
        (1.44, "about 1.4 s"),
        (71.8, "about 72 s"),
        (90, "about 2 minutes"),
        (9e3, "about 2.5 h"),
    ],
)
def test_time_is_told_in_words_that_promise_no_more_than_is_known(seconds: float, told: str) -> None:
    plan = dataclasses.replace(estimate((10**6, 100), "float32", sweep_rate=1e9), seconds=seconds)
    (line,) = (line for line in plan.summary().splitlines() if line.startswith("time"))
    assert line.startswith(f"time      {told}")


@pytest.mark.parametrize(
    ("n_classes", "dtype", "dim"),
    [
        (1, "float16", None), (4000, "float16", 16), (7, "bfloat16", None), (1, "bfloat16", 16),
        (4000, "float32", None), (7, "float32", 16), (4000, "float64", None), (1, "float64", 16),
    ],
)  # fmt: skip
def test_sweep_rate_is_that_of_real_sweeps(n_classes: int, dtype: str, dim: int | None) -> None:
    assert 1e5 < measure_sweep_rate(n_classes, dtype, dim) < 1e12


class Watched(ArraySource):
    """Counts the rows that are read."""

    rows_read = 0

    def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
        self.rows_read += spans[-1][1] - spans[0][0]
        return super().read(spans)


def test_read_rate_reads_a_small_part_of_the_file(tmp_path) -> None:
    shape = (4_000_000, 100)  # 1.6 GB on paper, nothing on the disk
    np.lib.format.open_memmap(tmp_path / "scores.npy", "w+", np.float32, shape).flush()
    watched = Watched(np.load(tmp_path / "scores.npy", mmap_mode="r"), "float32")
    assert measure_read_rate(Opened.of(watched)) > 0
    assert 0 < watched.rows_read * 400 <= rates.READ_BYTES


def test_one_huge_block_is_not_read_whole(monkeypatch) -> None:
    monkeypatch.setattr(rates, "READ_BYTES", 4000)
    watched = Watched(np.zeros((100_000, 10), np.float32), "float32")
    measure_read_rate(Opened.of(watched))
    assert watched.rows_read <= 100


def test_free_memory_is_a_sensible_number() -> None:
    assert 10**7 < free_memory() < 10**14
    assert estimate((10, 3), "float32").memory_limit <= free_memory()


# ---- the command ----


@pytest.fixture
def run(run: Callable[..., Ran]) -> Callable[..., Ran]:
    """A function that runs `otlabel plan` in this process."""
    return functools.partial(run, "plan")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "scores.npy", normal(np.random.default_rng(0), 500, 6).astype(np.float32))
    return tmp_path / "scores.npy"


def test_command_tells_all_and_writes_nothing(run, file) -> None:
    ran = run(file, "-o", file.with_name("labels.npy"))
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    for word in ("500 samples x 6 classes", "12 kB", "passes", "memory", "time", "there is room"):
        assert word in ran.out
    assert [path.name for path in file.parent.iterdir()] == ["scores.npy"]


def test_json_holds_the_estimate_and_the_disk(run, file) -> None:
    told = json.loads(run(file, "--json", "--rounding", "argmax", "--memory-limit", "1000").out)
    assert (told["n_rows"], told["matrix_bytes"], told["rounding"]) == (500, 12_000, "argmax")
    assert (told["cached"], told["bytes_read"]) == (False, 12_000 * told["passes"])
    assert told["disk_suffices"]
    assert told["output_bytes"] >= 8 * 500


def test_too_little_room_is_told(run, file, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    ran = run(file, "-o", file.with_name("labels.h5"))
    assert ran.code == 0
    assert "TOO LITTLE ROOM" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


BILLION = ("--rows", "1e9", "--classes", "1e5", "--dim", "256", "--ranks", "64", "--device", "h200")


def test_sizes_without_a_file(run) -> None:
    ran = run(*BILLION)
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    for words in (
        "1,000,000,000 samples x 100,000 classes",
        "64 ranks on H200 cards",
        "rank 0 sends",
        "rounds",
        "a pass",
    ):
        assert words in ran.out
    told = json.loads(run(*BILLION, "--json", "--network", "1GB").out)
    assert (told["n_ranks"], told["network"], told["dim"]) == (64, 10**9, 256)
    assert {step["name"] for step in told["steps"]} >= {"sweeps", "curvature", "candidates", "proof"}
    assert json.loads(run("--rows", 1e6, "--classes", 10, "--json").out)["n_rows"] == 10**6


def test_ranks_of_a_file(run, file) -> None:
    told = json.loads(run(file, "--ranks", 2, "--json").out)
    assert (told["n_rows"], told["n_ranks"], told["kept"]) == (500, 2, "memory")
    assert told["bytes_first"] > 0
    assert told["seconds"] > 0
    assert told["disk_suffices"]


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--rows", "5"),
        ("scores.npy", "--rows", "5", "--classes", "2"),
        ("scores.npy", "--dim", "5"),
        ("--rows", "1.5", "--classes", "2"),
        ("--rows", "0", "--classes", "2"),
        ("--rows", "9", "--classes", "2", "--device", "abacus"),
    ],
)
def test_sizes_that_make_no_sense(run, argv) -> None:
    ran = run(*argv)
    assert ran.code == 2
    assert ran.err.startswith("otlabel: error: ")


def test_scores_that_are_no_matrix(run, file) -> None:
    np.save(file, np.zeros(5))
    assert run(file).code == 2


def test_planned_scores_are_opened_like_any_others() -> None:
    assert open_scores(np.zeros((3, 2), np.float16)).dtype in ITEM_BYTES
