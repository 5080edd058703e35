"""The documentation is true: its code runs, its commands print what it shows, its links lead somewhere, it builds.

Of each page, blocks marked `python` and `console` run in order, in one namespace and one empty folder. A `text` block
right after one of `python` is what that printed; what follows a command is what the command prints. Words must agree;
numbers to one percent, but for times, memory and training, which are nobody's to promise. Blocks marked `py` and `sh`
are not run: other packages that are not installed here, and commands that install or take minutes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose

import otlabel
from otlabel import errors
from otlabel.commands.main import build_parser
from otlabel.storage.atomic import working_in
from otlabel.storage.outputs import Output, check_outputs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
NEEDED = {
    "ot": "POT",
    "faiss": "faiss",
    "sklearn": "scikit-learn",
    "transformers": "transformers",
    "wordllama": "wordllama",
}
UNPROMISED = re.compile(r"^(work|memory|time|reading|disk) .*\n(?: +.*\n)*", re.MULTILINE)
TRAINING = re.compile(r"otlabel (train|transfer|probe|curate|cluster) ")  # or k-means


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str


class Shown(NamedTuple):
    """What one block or command printed, beside what the page says it does; None: it says nothing."""

    what: str
    printed: str
    expected: str | None


def blocks_of(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def run(page: Path) -> Iterator[Shown]:
    """Run a page in the current folder."""
    names: dict[str, Any] = {}
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks[1:], Block("", "")], strict=True):
        if block.kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, str(page), "exec"), names)
            told = following.kind == "text" and printed.getvalue()
            yield Shown(block.text, printed.getvalue(), following.text if told else None)
        elif block.kind == "console":
            for command, expected in COMMAND.findall(block.text):
                yield Shown(command, output_of(command), expected)


def output_of(command: str) -> str:
    """What `otlabel ...` prints in a terminal of 80 columns."""
    from otlabel.commands.main import main

    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "otlabel", command
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(arguments)
    assert code == 0, f"{command}: {printed.getvalue()}"
    return printed.getvalue()


def check(shown: Shown) -> None:
    """Compare line by line what was printed with what the page shows."""
    assert shown.expected is not None
    printed, expected = (UNPROMISED.sub("", text).splitlines() for text in (shown.printed, shown.expected))
    if expected[-1] == "...":
        expected.pop()
        printed = printed[: len(expected)]
    assert len(printed) == len(expected), shown
    for ours, theirs in zip(printed, expected, strict=True):
        assert words(ours) == words(theirs), shown.what
        if not TRAINING.match(shown.what):
            assert_allclose(numbers(ours), numbers(theirs), rtol=1e-2, atol=1e-9, err_msg=f"{shown.what}: {ours}")
        assert len(ours) <= 80 or not shown.what.startswith("otlabel "), ours


def words(line: str) -> list[str]:
    return NUMBER.sub("#", line).split()


def numbers(line: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(line)]


def needs(page: Path) -> None:
    """Skip where a package that the page is about is not installed."""
    code = "\n".join(block.text for block in blocks_of(page) if block.kind == "python")
    for module in re.findall(r"^\s*(?:from|import) (\w+)", code, re.MULTILINE):
        if module in NEEDED and importlib.util.find_spec(module) is None:
            pytest.skip(f"{page.name} needs {NEEDED[module]}")
    if "trainer_callback" in code and importlib.util.find_spec("transformers") is None:
        pytest.skip(f"{page.name} needs transformers")


RUNNABLE = [page for page in PAGES if any(block.kind in ("python", "console") for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.OtlabelWarning)
        for shown in run(page):
            if shown.expected is not None:
                check(shown)


def test_every_shown_text_belongs_to_something_that_runs() -> None:
    for page in RUNNABLE:
        if page.stem != "how" and page.stem != "troubleshooting":  # equations; messages, which are tested below
            kinds = [block.kind for block in blocks_of(page)]
            assert all(kinds[k - 1] == "python" for k, kind in enumerate(kinds) if kind == "text"), page


# ---- messages ----


def scores() -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(1000, 10))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def with_value(where: Any, value: float) -> np.ndarray:
    changed = scores()
    changed[where] = value
    return changed


def cut_file() -> None:
    np.save("s.npy", scores())
    Path("cut.npy").write_bytes(Path("s.npy").read_bytes()[:5000])
    otlabel.sinkhorn_assign("cut.npy")


def absent_name() -> None:
    import h5py

    with h5py.File("s.h5", "w") as file:
        file["log_probs"] = scores()
    otlabel.sinkhorn_assign("s.h5::/scores")


def state_of_others() -> None:
    otlabel.SelfLabeler(1000, 10).load_state_dict(otlabel.SelfLabeler(999, 10).state_dict())


def two_faiss() -> None:
    from otlabel.selflabel import kmeans

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "_installed", lambda: {"faiss-cpu", "faiss-gpu-cu12"})
        kmeans.k_means(np.zeros((4, 2), np.float32), 2, 1, 0, "auto")


def no_pot() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ot", None)
        otlabel.lp_assign(scores())


def same_file() -> None:
    np.save("scores.npy", scores())
    check_outputs([Output("--output", Path("scores.npy"), (".npy",))], {"SCORES": "scores.npy"}, force=True)


def many_classes() -> None:
    arguments = build_parser().parse_args(["assign", "scores.npy", "-o", "labels.npy"])
    np.save("scores.npy", np.zeros((10, 50_000), np.float16))
    arguments.command(arguments)


def in_use() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getpid", lambda: 4711)
        patch.setattr("socket.gethostname", lambda: "host")
        with working_in(Path("runs/digits")), working_in(Path("runs/digits")):
            pass


def read_only() -> None:
    from otlabel import compiling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "_NOT_TOLD", threading.Lock())
        compiling._tell(OSError(errno.EROFS, "Read-only file system", "/app/cache"))


def assign(*arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: otlabel.sinkhorn_assign(*arguments, **options)


CASES: dict[str, tuple[type, Callable[[], Any]]] = {
    "nan": (errors.InvalidScoresError, assign(with_value((3, 2), np.nan))),
    "dict": (errors.InvalidScoresError, assign({"loss": 0.5, "logits": scores()})),
    "candidates": (
        errors.InvalidScoresError,
        lambda: otlabel.top_scores([[4, 4], [0, 2]], [[0.9, 0.8], [0.7, 0.1]], 10),
    ),
    "names": (errors.InvalidMassError, assign(scores()[:, :3], class_mass={0: 500, 1: 500})),
    "sum": (errors.InvalidMassError, assign(scores(), class_mass=[1] * 9 + [2])),
    "transposed": (errors.InvalidMassError, assign(scores().T, class_mass=[100] * 10)),
    "closed class": (errors.InfeasibleError, assign(with_value((slice(None), 4), -np.inf))),
    "too few choices": (errors.InfeasibleError, assign(with_value((slice(50, None), 4), -np.inf))),
    "range": (errors.InfeasibleError, assign(scores(), classes=otlabel.Range(0.2, 0.3))),
    "cut": (errors.FileFormatError, cut_file),
    "absent": (errors.FileFormatError, absent_name),
    "fingerprint": (errors.FingerprintError, state_of_others),
    "extraction": (errors.ExtractionError, lambda: otlabel.TensorStore().source()),
    "same file": (ValueError, same_file),
    "many classes": (ValueError, many_classes),
    "in use": (BlockingIOError, in_use),
    "package": (errors.MissingPackageError, no_pot),
    "faiss": (errors.OtlabelError, two_faiss),
    "limit": (ValueError, lambda: otlabel.lp_assign(np.zeros((10_000, 2000), np.float16))),
    "converged": (errors.ConvergenceWarning, assign(scores(), method="sinkhorn", max_sweeps=3)),
    "probabilities": (errors.DegenerateScoresWarning, assign(np.exp(scores()))),
    "constant": (errors.DegenerateScoresWarning, assign(np.zeros((100, 5)))),
    "read-only": (errors.OtlabelWarning, read_only),
    "few": (errors.FewSamplesWarning, assign(scores()[:5])),
}


@pytest.mark.parametrize("case", CASES)
def test_messages_are_those_of_the_page(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, call = CASES[case]
    monkeypatch.chdir(tmp_path)
    if issubclass(kind, Warning):
        with pytest.warns(kind) as caught:
            call()
        message = str(caught[0].message)
    else:
        with pytest.raises(kind) as raised:
            call()
        message = str(raised.value)
    assert f"```text\n{message}\n```" in (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


def test_every_error_and_warning_is_on_the_page() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    for name, kind in vars(errors).items():
        if isinstance(kind, type):
            assert name in text, name


def test_a_class_that_nobody_wants_is_noted_as_the_page_says() -> None:
    summary = otlabel.sinkhorn_assign(with_value((slice(None), 0), -1e4)).summary()
    assert summary.splitlines()[-1] in (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


# ---- figures quoted, links, names ----


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith("https://") or path.startswith(("gallery/", "notebooks/")):  # made by the build
            continue
        file = DOCS / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page and of what it includes, as MyST makes them."""
    text = page.read_text(encoding="utf-8")
    found = set(re.findall(r"^\((.+)\)=$", text, re.MULTILINE))
    for included in re.findall(r"^```\{include\} (.+)$", text, re.MULTILINE):
        found |= anchors(page.parent / included)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


QUOTED = {
    "../README.md": {
        "solvers.md": "0.142 31.3 0.874 3.22 3.36 20.4 0.422 0.357 2.56 71.5",
        "scale.md": "5.8 7.73 8.5 0.9",
        "long_tail.md": "0.519 0.620 0.408 0.367",
        "selflabel.md": "0.773 0.777 0.716 0.796 0.361 0.325 0.305 0.377 0.011 0.012 0.095 0.070 0.451 0.493",
        "gpu.md": "0.273 9.3 0.981 38.8 1.304 39.0 2.871",
    },
    "choose.md": {
        "long_tail.md": "0.519 0.620 0.469 0.458 0.408 0.367 0.413 0.311",
        "balanced_kmeans.md": "0.021 0.247",
        "selflabel.md": "0.773 0.777 0.751 0.716 0.702 0.796 0.361 0.325 0.323 0.305 0.271 0.377 0.029 0.006 0.011 "
        "0.012 0.107 0.046 0.095 0.070 0.451 0.493 0.840 0.826",
    },
    "selflabel.md": {"selflabel.md": "0.773 0.361 0.780 0.339 0.679 0.305"},
    "scale.md": {
        "scale.md": "5.8 7.73 7.26 8.46 8.50 0.90 8.37 0.79 2.16 2.56 0.544 1.68",
        "gpu.md": "0.273 9.3 1.434 10.51 2.871",
    },
    "training.md": {"defaults.md": "0.785 0.978 0.956 0.737 0.689 0.628 0.463 0.288 0.168"},
    "coming_from.md": {"balanced_kmeans.md": "0.247 13.2 626581 626361"},
}


@pytest.mark.parametrize(("page", "source"), [(page, source) for page in QUOTED for source in QUOTED[page]])
def test_figures_quoted_are_those_measured(page: str, source: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    measured = (ROOT / "benchmarks" / "results" / source).read_text(encoding="utf-8")
    for figure in QUOTED[page][source].split():
        assert figure in text, f"{figure} is no longer quoted"
        assert figure in measured, f"{figure} is no longer what was measured"


def test_every_public_name_is_in_the_reference() -> None:
    listed = set(re.findall(r"^   ~?([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed >= {*otlabel.__all__} - {"metrics"}
    assert listed >= {f"metrics.{name}" for name in otlabel.metrics.__all__}
    assert listed >= {f"errors.{name}" for name in dir(errors) if name.endswith(("Error", "Warning"))}


def test_figures_are_small() -> None:
    images = list((DOCS / "images").iterdir())
    assert images
    assert all(image.stat().st_size < 60_000 for image in images)


def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser", "sphinx_gallery", "sklearn", "matplotlib", "PIL", "wordllama"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (make docs installs it)")
    for name in ("benchmarks", "examples", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    pages, built = tmp_path / "docs", tmp_path / "html"
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("_build", "api", "gallery", "notebooks"))
    finished = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(pages), str(built)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for page in PAGES:
        assert (built / f"{page.stem}.html").exists() == (page.stem != "description")  # which is for a package index
    page = re.sub(r"<[^>]+>", "", (built / "api" / "otlabel.sinkhorn_assign.html").read_text(encoding="utf-8"))
    assert "max_labels  mean_i s[i, labels_i]" in page
    assert "epsilon: float = 0.04," in page  # its types
    assert "epsilon" in (built / "_static" / "excerpts.js").read_text(encoding="utf-8")
