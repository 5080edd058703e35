"""Damage files of all kinds that otlabel reads, at random, and see what reading them does: `python mutations.py`.

Each mutation is read in a child process, so that one that ends the process is seen, and its seed told. What a reader
may do: give what it gave before (the bytes mattered to nobody), or refuse in a message. What it may not do: end the
process, raise anything but an error with a message, take memory or time for what a damaged file claims, or, where a
checksum covers the bytes, give other values.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ruff: noqa: E402
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # children are forked: there may be no threads by then

import h5py
import numpy as np
import torch
from machine import describe_machine, machine_line, table, write_json

from otlabel import Assignment, FeatureStore, load_labels, sinkhorn_assign
from otlabel.commands.main import main as command
from otlabel.selflabel import save_labels
from otlabel.sources import load_array, open_scores, read_rows
from otlabel.storage.label_files import Receipt, StoredLabels, read_labels, write_labels
from otlabel.training.config import read_config

N, K = 396, 5
BATCH = 50  # mutations that one child reads
ROOM = 3 << 30  # bytes of address space that a child may take beyond what it starts with
COMMAND_EVERY = 25  # which mutations of a kind the command reads, too
SECONDS = 5  # that reading one file may take
OUTCOMES = ("unchanged", "refused", "warned", "silent", "traceback", "memory", "hang", "killed")
BAD = ("traceback", "memory", "hang", "killed")


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is made, how it is read, and whether checksums cover all that is read."""

    make: Callable[[Path], str]  # fills a folder; returns the name of the file that is mutated
    read: Callable[[Path], Any]  # everything that it holds, through otlabel
    summed: bool


# ---- what is read ----


def scores() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)


def read_scores(path: Path, inner: str = "") -> Any:
    opened = open_scores(f"{path}{inner}")
    return opened.dtype, read_rows(opened.source, 0, opened.shape[0])


def npy(folder: Path) -> str:
    np.save(folder / "scores.npy", scores())
    return "scores.npy"


def npz(folder: Path) -> str:
    np.savez_compressed(folder / "scores.npz", scores=scores(), other=np.arange(7))
    return "scores.npz"


def hdf5(**settings: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        libver, fill = settings.get("libver", "earliest"), {k: v for k, v in settings.items() if k != "libver"}
        with h5py.File(folder / "scores.h5", "w", libver=libver) as handle:
            handle.create_dataset("deep/scores", data=scores(), **fill)
        return "scores.h5"

    return make


def anndata(folder: Path) -> str:
    """As `AnnData.write_h5ad` lays it out: groups with attributes, texts and categories beside the matrix."""
    with h5py.File(folder / "cells.h5", "w") as handle:
        handle.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = handle.create_dataset("X", data=scores(), chunks=(50, K), compression="gzip")
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for name, length in (("obs", N), ("var", K)):
            group = handle.create_group(name)
            group.attrs.update({"encoding-type": "dataframe", "_index": "_index", "column-order": ["kind"]})
            group.create_dataset("_index", data=[f"{name}-{row}" for row in range(length)], dtype=h5py.string_dtype())
            group["kind/codes"] = np.arange(length, dtype=np.int8) % 3
        handle.create_group("uns")
    return "cells.h5"


def tensors(folder: Path) -> str:
    torch.save({"scores": torch.from_numpy(scores()), "bias": torch.zeros(3)}, folder / "scores.pt")
    return "scores.pt"


def _labelled() -> tuple[Any, ...]:
    result = sinkhorn_assign(scores())
    receipt = Receipt({"source": "scores.npy", "shape": [N, K]}, {"epsilon": 0.04}, {"otlabel": "1"}, result.value)
    return result, result.labels, result.counts, result.potentials, receipt


def labels_of(name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        _, labels, counts, potentials, receipt = _labelled()
        write_labels(folder / name, StoredLabels(labels, counts, potentials, receipt))
        return name

    return make


def receipt_of_npy(folder: Path) -> str:
    return f"{labels_of('labels.npy')(folder)}.json"


def old_labels(folder: Path) -> str:
    """Labels as they were written before: in HDF5's oldest format."""
    _, labels, counts, potentials, receipt = _labelled()
    texts = {name: json.dumps(getattr(receipt, name)) for name in ("input", "parameters", "versions")}
    with h5py.File(folder / "labels.h5", "w") as handle:
        handle.create_dataset("labels", data=labels.astype(np.int8), chunks=(N,), fletcher32=True)
        handle["counts"], handle["potentials"] = counts, potentials
        handle.attrs.update(format="otlabel.labels", format_version=1, complete=True, threshold=-np.inf)
        handle.attrs.update(texts)  # of variable length, in a heap
    return "labels.h5"


def all_of_labels(path: Path) -> Any:
    found = read_labels(path.with_name("labels.npy") if path.suffix == ".json" else path)
    return found.labels, found.counts, found.potentials, found.threshold, repr(found.receipt)


def head_labels(folder: Path) -> str:
    labels = np.stack([np.arange(N) % 3, np.arange(N) % K])
    save_labels(folder / "labels.h5", labels, [3, K], data="digits", seed=1, records=[{"nmi": 0.5}, {"nmi": 0.25}])
    return "labels.h5"


def all_of_heads(path: Path) -> Any:
    found = load_labels(path)
    return found.labels, found.n_classes, found.data, found.seed, found.records


def assignment(folder: Path) -> str:
    _labelled()[0].save(folder / "result.npz")
    return "result.npz"


def all_of_assignment(path: Path) -> Any:
    found = Assignment.load(path)
    return {name: value for name, value in vars(found).items()}


def store(folder: Path) -> str:
    made = FeatureStore(folder / "features.h5", dtype="float32")
    made.begin(N, K, {"data": "digits", "model": "abc"})
    made.write(np.arange(N), scores())
    made.finish()
    return "features.h5"


def all_of_store(path: Path) -> Any:
    made = FeatureStore(path, dtype="float32")
    opened = open_scores(made.source())
    return made.about, opened.dtype, read_rows(opened.source, 0, opened.shape[0])


def checkpoint(folder: Path) -> str:
    from otlabel import SelfLabeler
    from otlabel.selflabel.callbacks import STATE_FILE, _save

    _save(SelfLabeler(N, [3, K], data="digits"), folder, torch.nn.Linear(3, 2))
    return STATE_FILE


def all_of_checkpoint(path: Path) -> Any:
    from otlabel import SelfLabeler
    from otlabel.selflabel.callbacks import _resume

    labeler = SelfLabeler(N, [3, K], data="digits", seed=5)
    _resume(labeler, path.parent, None)
    return {name: repr(value) for name, value in labeler.state_dict().items()} | {"labels": labeler.labels.numpy()}


def recipe(folder: Path) -> str:
    text = Path(sys.modules["otlabel.training.config"].__file__).parent.joinpath("recipes/digits.toml").read_text()
    (folder / "recipe.toml").write_text(text)
    return "recipe.toml"


DATA_SET = "::/deep/scores"
KINDS = {
    "scores .npy": Kind(npy, read_scores, False),
    "scores .npz": Kind(npz, lambda path: read_scores(path, "::scores"), True),
    "scores .pt": Kind(tensors, lambda path: read_scores(path, "::scores"), True),
    "scores .h5, contiguous": Kind(hdf5(), lambda path: read_scores(path, DATA_SET), False),
    "scores .h5, chunks": Kind(hdf5(chunks=(4, K)), lambda path: read_scores(path, DATA_SET), False),
    "scores .h5, fletcher32": Kind(
        hdf5(chunks=(4, K), fletcher32=True), lambda path: read_scores(path, DATA_SET), False
    ),
    "scores .h5, gzip": Kind(hdf5(chunks=(4, 3), compression="gzip"), lambda path: read_scores(path, DATA_SET), False),
    "scores .h5, latest": Kind(
        hdf5(chunks=(4, K), fletcher32=True, libver="latest"), lambda path: read_scores(path, DATA_SET), True
    ),
    "scores .h5, latest, may grow": Kind(
        hdf5(chunks=(4, K), fletcher32=True, libver="latest", maxshape=(None, K)),
        lambda path: load_array(f"{path}{DATA_SET}"),
        True,
    ),
    "anndata .h5": Kind(anndata, lambda path: read_scores(path, "::/X"), False),
    "labels.h5": Kind(labels_of("labels.h5"), all_of_labels, True),
    "labels.h5 of before": Kind(old_labels, all_of_labels, False),
    "labels.npy with receipt": Kind(labels_of("labels.npy"), all_of_labels, True),
    "receipt of labels.npy": Kind(receipt_of_npy, all_of_labels, False),
    "labels.h5 of heads": Kind(head_labels, all_of_heads, True),
    "saved Assignment": Kind(assignment, all_of_assignment, True),
    "feature store": Kind(store, all_of_store, True),
    "checkpoint": Kind(checkpoint, all_of_checkpoint, True),
    "recipe .toml": Kind(recipe, lambda path: read_config(str(path)).to_dict(), False),
}
COMMANDS: dict[str, list[str]] = {  # of which kinds are read by the command, too
    "scores .npy": ["doctor", "FILE"],
    "scores .h5, chunks": ["doctor", f"FILE{DATA_SET}"],
    "scores .h5, gzip": ["certify", f"FILE{DATA_SET}", "LABELS"],
    "scores .pt": ["plan", "FILE::scores"],
    "labels.h5": ["certify", "SCORES", "FILE"],
    "labels.h5 of before": ["report", "FILE", "--scores", "SCORES", "-o", "OUT.html", "--force"],
    "labels.npy with receipt": ["certify", "SCORES", "FILE"],
    "labels.h5 of heads": ["report", "FILE", "-o", "OUT.html", "--force"],
    "saved Assignment": ["predict", "SCORES", "--potentials", "FILE", "-o", "OUT.npy", "--force"],
}


# ---- damage ----


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with damage of one of many sorts."""
    changed, size = bytearray(data), len(data)
    at = int(rng.integers(size))
    if rng.random() < 0.4:  # headers and indices are at the beginning, or at the end
        at = int(min(rng.exponential(300), size - 1)) if rng.random() < 0.6 else size - 1 - at % min(size, 400)
    match int(rng.integers(9)):
        case 0 | 1:
            changed[at] ^= 1 << int(rng.integers(8))
        case 2:
            for place in rng.integers(0, size, int(rng.integers(2, 9))).tolist():
                changed[place] ^= 1 << int(rng.integers(8))
        case 3:
            changed[at : at + 4] = [rng.bytes(4), b"\xff" * 4, bytes(4)][int(rng.integers(3))][: size - at]
        case 4:
            run = min(int(rng.integers(1, 64)), size - at)
            changed[at : at + run] = rng.bytes(run)
        case 5:
            run = min(int(rng.integers(1, 512)), size - at)
            changed[at : at + run] = bytes(run)
        case 6:
            del changed[at:]
        case 7:
            changed += rng.bytes(int(rng.integers(1, 300)))
        case 8:
            run, other = int(rng.integers(1, 64)), int(rng.integers(size))
            changed[at : at + run] = data[other : other + run]
    return bytes(changed)


# ---- reading ----


def digest(value: Any) -> str:
    """The same for equal values of equal types, NaN included."""
    found = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, np.ndarray):
            found.update(f"{one.dtype}{one.shape}".encode() + np.ascontiguousarray(one).tobytes())
        elif isinstance(one, dict):
            for key in sorted(one):
                found.update(str(key).encode())
                add(one[key])
        elif isinstance(one, (list, tuple)):
            found.update(f"[{len(one)}".encode())
            for part in one:
                add(part)
        else:
            found.update(repr(one).encode())

    add(value)
    return found.hexdigest()


def look(kind: Kind, path: Path, before: str) -> tuple[str, str]:
    """What reading a file does, and what was told."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            now = digest(kind.read(path))
    except (ValueError, OSError) as error:  # every OtlabelError about a file is one
        text = str(error)
        if type(error).__name__ == "UnicodeDecodeError" or not text or "Traceback" in text:
            return "traceback", traceback.format_exc()
        return "refused", f"{type(error).__name__}: {text}"
    except MemoryError as error:
        return "memory", f"{error}\n{traceback.format_exc()}"
    except Exception:
        return "traceback", traceback.format_exc()
    if now == before:
        return "unchanged", ""
    return ("warned", str(told[0].message)) if told else ("silent", "other values")


def look_by_command(arguments: list[str]) -> tuple[str, str]:
    """The same of the command, of whose output only the end is known."""
    out = os.memfd_create("output")
    kept = os.dup(1), os.dup(2)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        code = command(arguments)
        outcome = "unchanged" if code == 0 else "refused"
    except BaseException:
        traceback.print_exc()
        outcome = "traceback"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for one in kept:
            os.close(one)
    with os.fdopen(out, "rb") as file:
        file.seek(0)
        text = file.read().decode(errors="replace")
    if outcome == "refused" and ("Traceback" in text or "not enough memory" in text):
        outcome = "memory" if "not enough memory" in text else "traceback"
    return outcome, text


def read_batch(kind: str, folder: Path, name: str, good: bytes, before: str, seeds: range, log: Path) -> None:
    """In a child: mutate and read, one line of the log for what is begun and one for what came of it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the child even where a library loops without end
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    path = folder / name
    names = {"FILE": path, "SCORES": folder / "good.npy", "LABELS": folder / "good-labels.npy", "OUT": folder / "out"}
    with log.open("a") as lines:
        for seed in seeds:
            lines.write(json.dumps([seed]) + "\n")
            lines.flush()
            path.write_bytes(mutated(good, np.random.default_rng((seed, *kind.encode()))))
            signal.alarm(SECONDS)
            outcome, told = look(KINDS[kind], path, before)
            if kind in COMMANDS and seed % COMMAND_EVERY == 0 and outcome not in BAD:
                arguments = list(COMMANDS[kind])
                for word, real in names.items():
                    arguments = [one.replace(word, str(real)) for one in arguments]
                by_command, said = look_by_command(arguments)
                if by_command in BAD:
                    outcome, told = by_command, said
            signal.alarm(0)
            lines.write(json.dumps([seed, outcome, told]) + "\n")
            lines.flush()


def in_child(work: Callable[[], None]) -> int:
    """Run it in a forked process; returns how that ended."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def outcomes(kind: str, seeds: range, folder: Path) -> Iterator[tuple[int, str, str]]:
    """Seed, outcome and what was told, of each mutation of one kind of file."""
    np.save(folder / "good.npy", scores())
    np.save(folder / "good-labels.npy", np.arange(N) % K)
    name = KINDS[kind].make(folder)
    good = (folder / name).read_bytes()
    before = digest(KINDS[kind].read(folder / name))
    if look(KINDS[kind], folder / name, before)[0] != "unchanged":
        raise RuntimeError(f"{kind}: a good file does not read the same twice")
    log, at = folder / "log", seeds.start
    while at < seeds.stop:
        log.unlink(missing_ok=True)
        batch = range(at, min(at + BATCH, seeds.stop))
        ended = in_child(lambda b=batch: read_batch(kind, folder, name, good, before, b, log))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        yield from (tuple(line) for line in lines if len(line) == 3)
        begun, done = [{line[0] for line in lines if len(line) == n} for n in (1, 3)]
        for seed in begun - done:
            yield seed, "hang" if ended == -signal.SIGALRM else "killed", f"the child ended with {ended}"
        at = max(begun) + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=5000, help="mutations in all (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--kinds", nargs="*", help="parts of the names of kinds; default all")
    parser.add_argument("--show", action="store_true", help="show what each bad outcome told")
    parser.add_argument("--output", type=Path, help="write mutations.json and mutations.md to this folder")
    arguments = parser.parse_args()
    chosen = [kind for kind in KINDS if not arguments.kinds or any(part in kind for part in arguments.kinds)]
    each = -(-arguments.number // len(chosen))
    counts: dict[str, Counter[str]] = {}
    begun, n_wrong = time.time(), 0
    for kind in chosen:
        counts[kind] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            for seed, outcome, told in outcomes(kind, range(arguments.first, arguments.first + each), Path(folder)):
                wrong = outcome in BAD or (outcome == "silent" and KINDS[kind].summed)
                counts[kind][outcome] += 1
                n_wrong += wrong
                if wrong and arguments.show:
                    print(f"--- {kind}, seed {seed}: {outcome}\n{told}", flush=True)
        row = "  ".join(f"{outcome} {counts[kind][outcome]}" for outcome in OUTCOMES if counts[kind][outcome])
        print(f"{kind:30} {'checksums' if KINDS[kind].summed else '-':10} {row}", flush=True)
    total = sum(counts.values(), Counter())
    print(f"{sum(total.values()):,} mutations in {time.time() - begun:.0f} s: {dict(total)}; {n_wrong} wrong")
    if arguments.output is not None:
        results = {"machine": describe_machine(("numpy", "h5py", "torch")), "first": arguments.first, "each": each}
        results |= {"seconds": time.time() - begun, "wrong": n_wrong, "counts": counts}
        write_json(arguments.output / "mutations.json", results)
        (arguments.output / "mutations.md").write_text(markdown(results))
    return bool(n_wrong)


def markdown(results: dict[str, Any]) -> str:
    """The counts as a table."""
    total = sum(map(Counter, results["counts"].values()), Counter())
    rows = [
        [kind, "yes" if KINDS[kind].summed else "", *(f"{counts[outcome] or ''}" for outcome in OUTCOMES)]
        for kind, counts in results["counts"].items()
    ]
    rows.append(["all", "", *(f"{total[outcome]}" for outcome in OUTCOMES)])
    told = [f"# Damaged files\n\n{machine_line(results['machine'])}\n"]
    told.append(
        f"{total.total():,} mutations, {results['each']} of each kind of file from seed {results['first']} on, in "
        f"{results['seconds']:.0f} s: {results['wrong']} wrong. Other values without a word (silent) are wrong only "
        "where checksums cover all that is read: bare numbers, such as those of a .npy file, have none.\n"
    )
    return "\n".join([*told, *table(["file", "checksums", *OUTCOMES], rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
