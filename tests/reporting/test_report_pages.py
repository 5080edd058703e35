"""The report as a page: text is shown and never run, files and runs as subjects, and what is refused."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import HOSTILE, K, N, Page, assert_alone

import otlabel
from otlabel import metrics, report, sinkhorn_assign
from otlabel.commands.main import main
from otlabel.errors import FileFormatError, FingerprintError, MissingPackageError
from otlabel.reporting.sources import find
from otlabel.reporting.words import shown
from otlabel.selflabel import load_labels, save_labels

pytest.importorskip("jinja2")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")


# ---- text from users ----


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_is_shown_and_never_run(data, tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.html"
    plain = Page(report(data["labels"], scores=data["scores"], truth=data["truth"], texts=["a"] * N, names=["a"] * K))
    written = report(
        data["labels"],
        scores=data["scores"],
        truth=data["truth"],
        texts=[text] * N,
        names=[text] * K,
        true_names=[text] * K,
        title=text,
        path=path,
    )
    assert path.read_text(encoding="utf-8") == written
    assert len(written) < 200_000
    page = assert_alone(written)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert shown(text, 280) in page.shown
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", written)


def test_names_of_files_are_shown_as_they_are(data, tmp_path: Path) -> None:
    file = tmp_path / "<b>&'labels'.npy"
    np.save(file, data["labels"])
    assert file.name in assert_alone(report(file)).shown


def test_only_our_script_may_run(data) -> None:
    import base64
    import hashlib

    text = report(data["labels"])
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in html.unescape(policy)


# ---- files ----


def test_files_of_labels_of_every_kind(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = sinkhorn_assign(data["scores"])
    np.save("scores.npy", data["scores"])
    np.save("labels.npy", result.labels)
    result.save("result.npz")
    torch.save(torch.from_numpy(result.labels), "labels.pt")
    save_labels("heads.h5", np.stack([result.labels[::-1], result.labels]), [K, K], records=[{}, {"gap": 0.125}])
    assert main(["assign", "scores.npy", "-o", "labels.h5"]) == 0
    for name in ("labels.npy", "result.npz", "labels.pt", "labels.h5", "heads.h5", "heads.h5::/heads/1/labels"):
        page = Page(report(name, head=int(name == "heads.h5"), scores="scores.npy"))
        assert page.column("size by best class") == [str(n) for n in np.bincount(data["scores"].argmax(1))]
        assert f"The mean score is {result.value:.9g}." in page.shown
    assert "their gap to the best labels of these sizes was 0.12" in report("heads.h5", head=1)
    assert f"The bound is {result.bound:.9g}." in report("labels.h5")
    with pytest.raises(ValueError, match="heads 0 to 1"):
        report("heads.h5", head=2)
    for name, head in (("labels.h5", 3), ("labels.npy", -1), (result, 1), (result.labels, -1)):
        with pytest.raises(ValueError, match=f"head is {head}, but these are the labels of one head"):
            report(name, head=head)
    for missing in ("none.h5", "none.npz", "none.npy", "none"):
        with pytest.raises(FileNotFoundError, match="none"):
            report(missing)


def test_command_does_what_the_function_does(data, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, array in data.items():
        np.save(f"{name}.npy", array)
    texts, names = [f"text {i} \u05d0" for i in range(N)], [f"class {k}" for k in range(K)]
    for name, lines in (("texts", texts), ("names", names)):
        Path(f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = [f"--{name}={name}.npy" for name in ("scores", "images", "features", "truth")]
    options += ["--texts=texts.txt", "--names=names.txt", "--true-names=names.txt", "--seed=2"]
    assert main(["report", "labels.npy", "-o", "page.html", *options]) == 0
    assert capsys.readouterr().out == "Report written to page.html\n"
    given = {name: one for name, one in data.items() if name != "labels"}
    wanted = report(data["labels"], texts=texts, names=names, true_names=names, title="labels.npy", seed=2, **given)
    assert Path("page.html").read_text(encoding="utf-8") == wanted
    assert main(["report", "labels.npy", "-o", "page.html"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["report", "labels.npy", "-o", "page.html", "--force"]) == 0
    assert main(["report", "labels.npy", "-o", "page.pdf"]) == 2
    assert main(["report", "none.npy", "-o", "none.html"]) == 2
    assert not Path("none.html").exists()


def test_folder_of_a_run(run: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    page = assert_alone(report(run))
    stored = load_labels(run / "labels.h5")
    assert page.column("size") == [str(size) for size in np.bincount(stored.labels[0], minlength=10)]
    assert "The labels are those of head 0, of 2 heads." in page.shown
    assert "tiny <run>" in page.shown
    for sign in ("Loss", "Churn", "NMI", "Confidence", "Against the truth", "of the features on test data"):
        assert sign in page.shown
    assert "Entropy of true classes" in page.shown
    labeler = torch.load(run / "checkpoint.pt", weights_only=True)["callbacks"]["otlabel"]["labeler"]
    records = [one for one in labeler["history"] if not one["head"]]
    assert page.text.count('<path class="mark other"') == 5  # in each figure
    assert f"{records[-1]['churn']:.3g} after {records[-1]['epochs_trained']:.4g} epochs." in page.shown
    best = labeler["best"]["update"]  # its labels are stored
    [labelled] = [one for one in records if one["update"] == best - 1]
    assert metrics.nmi(find(run).truth, stored.labels[0]) == pytest.approx(labelled["nmi"])
    assert page.count("img") > 50
    assert len(Page(report(run, head=1)).column("size")) == 4
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert main(["report", str(run), "-o", str(tmp_path / "run.html")]) == 0
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == page.text


def test_scores_of_a_run_are_those_of_its_network(run: Path) -> None:
    from otlabel.training.augment import plain
    from otlabel.training.config import config_of
    from otlabel.training.run import Run

    found = find(run, 1)
    asked = json.loads((run / "config.json").read_text())["config"]
    again = Run(config_of({key: {k: v for k, v in one.items() if v is not None} for key, one in asked.items()}), None)
    again.module.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["state_dict"])
    again.model.eval()
    with torch.no_grad():
        logits = again.model(plain(again.images.train))[1]
    np.testing.assert_allclose(found.scores, logits.log_softmax(1), atol=1e-5)
    np.testing.assert_array_equal(found.images, again.images.train)


def test_scores_that_memory_has_no_room_for_go_to_a_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory, page = find(run, 1).scores, report(run)
    assert type(in_memory) is np.ndarray
    monkeypatch.setattr("otlabel.selflabel.head_scores.MATRIX_SHARE", 0.0)
    monkeypatch.setattr("otlabel.sources.caching.CACHE_SHARE", 0.0)
    in_file = find(run, 1).scores
    assert isinstance(in_file, np.memmap)
    np.testing.assert_array_equal(in_file, in_memory)
    assert report(run) == page


def test_run_whose_data_are_gone_or_changed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"name": "digits"', '"name": "/nowhere"'))
    with pytest.raises(FileNotFoundError, match="nothing"):
        report(copy / "nothing")
    text = report(copy)
    assert "the data were not found" in text
    assert "Churn" in text
    (copy / "config.json").write_text(config.replace('"n_samples": 200', '"n_samples": 201'))
    with pytest.raises(FingerprintError, match="other data"):
        report(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(FileFormatError, match="not that of a run"):
        report(copy)
    (copy / "config.json").write_text(config)
    (copy / "config.json").write_text(re.sub(r'"widths": \[\s*4', '"widths": [5', config))
    with pytest.raises(FileFormatError, match="another network"):
        report(copy)
    (copy / "config.json").write_text(config)
    for damage in (b"damaged", None):
        (copy / "checkpoint.pt").write_bytes(damage or b"")
        if damage is None:
            torch.save({"weights": {}}, copy / "checkpoint.pt")
        with pytest.raises(FileFormatError, match="is damaged"):
            report(copy)
    (copy / "checkpoint.pt").unlink()
    text = report(copy)
    assert "epochs with a relabelling" in text
    assert "Confidence" not in text
    (copy / "labels.h5").unlink()
    with pytest.raises(FileNotFoundError, match="come to its end"):
        report(copy)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": []}, "at least one"),
        ({"labels": [[0, 1], [1, 1]]}, "class 1 twice"),
        ({"labels": [[0, 1], [1, 0]], "scores": np.eye(2)}, r"leave out scores, or pass the first ones alone"),
        ({"labels": [[0], [1]]}, "shape"),
        ({"labels": [0.5]}, "integers"),
        ({"labels": [0, -2]}, "-2"),
        ({"labels": [-1, -1]}, "all labels are -1"),
        ({"scores": np.zeros((2, 3))}, "2 scores"),
        ({"scores": np.zeros((3, 1))}, "1 columns"),
        ({"texts": ["a"]}, "1 texts"),
        ({"truth": [0, 1]}, "2 true classes (truth)"),
        ({"truth": [0.0, 1.0, 2.0]}, "integers"),
        ({"truth": [0, 1, -2]}, "truth[2] is -2"),
        ({"truth": np.array([0, (1 << 63) + 5, 2], np.uint64)}, "truth[1] is 9223372036854775813"),
        ({"labels": np.array([0, (1 << 63) + 5, 2], np.uint64)}, "labels[1] is 9223372036854775813"),
        ({"truth": np.zeros(0, int)}, "3 labels, but 0 true classes (truth)"),
        ({"names": ["a"]}, "1 names"),
        ({"features": np.zeros((4, 2))}, "4 features"),
        ({"images": np.zeros((3, 2))}, "shape"),
        ({"images": np.zeros((3, 5, 5, 5))}, "channels"),
        ({"images": np.zeros((3, 5, 5), complex)}, "real"),
        ({"images": [np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 3))]}, "shapes (2, 2) and (2, 3)"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        report(**({"labels": [0, 1, 1]} | given))


NPY = {
    "pickled": (np.array([{}, 1, 2], object), "holds pickled Python objects"),
    "one number": (np.float64(3), "holds float64 of shape \\(\\), no images|truth must be"),
    "nothing": (np.zeros((0, 2, 2)), "of shape \\(0, 2, 2\\), no images|truth must be"),
    "texts": (np.array(["a", "b", "c"]), "images have shape|truth must be"),
    "no header": (b"text" * 9, "is not a usable .npy file"),
    "no bytes": (b"", "is not a usable .npy file"),
    "brackets": (b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"-" * 9000 + b"3, }", "is not a usable .npy"),
    "cut short": (b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, 2), }", "claims to hold"),
}


@pytest.mark.parametrize("name", ["images", "truth"])
@pytest.mark.parametrize("kind", NPY)
def test_arrays_of_all_wrong_kinds_are_told_in_one_line(tmp_path: Path, name: str, kind: str) -> None:
    content, told = NPY[kind]
    if not isinstance(content, bytes):
        np.save(tmp_path / "x.npy", content, allow_pickle=True)
    else:
        head = b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") if content[:1] == b"{" else b""
        (tmp_path / "x.npy").write_bytes(head + content)
    with pytest.raises(ValueError, match=told) as caught:
        report([0, 1, 1], **{name: tmp_path / "x.npy"})
    assert str(caught.value).isprintable()


def test_scores_of_other_classes_than_the_labels_are_refused(data) -> None:
    with pytest.raises(ValueError, match="5 classes, but scores have 6 columns"):
        report(sinkhorn_assign(data["scores"]), scores=np.zeros((N, K + 1)))


@pytest.mark.parametrize("package", ["jinja2", "PIL", "sklearn"])
def test_missing_packages_say_how_to_get_them(data, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r'pip install "jinja2.*"pillow.*otlabel\[report\]'):
        report(data["labels"], images=data["images"], features=data["features"])


def test_nothing_is_left_of_a_page_that_cannot_be_written(data, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        report(data["labels"], path=tmp_path / "missing" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_function_is_not_hidden_by_the_command() -> None:
    script = "import otlabel.commands.main, otlabel.commands.report, otlabel; assert callable(otlabel.report)"
    environment = {**os.environ, "PYTHONPATH": str(Path(otlabel.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
