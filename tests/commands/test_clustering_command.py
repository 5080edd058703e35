"""`otlabel cluster`: the labels of the estimator in whole files, with a proof that `certify` confirms."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

pytest.importorskip("sklearn")

from otlabel import BalancedKMeans, certify, read_labels
from otlabel.commands.main import build_parser, main

N, D, K = 300, 5, 7


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Blobs of uneven sizes, in the current folder too."""
    rng = np.random.default_rng(0)
    blobs = np.concatenate([rng.normal(3 * k, 1.0, (20 + 20 * k, D)) for k in range(5)])
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", blobs)
    return blobs


def cluster(*words: Any) -> int:
    return main(["cluster", "features.npy", "-k", str(K), *map(str, words)])


@pytest.mark.parametrize(
    ("metric", "bounds"), [("euclidean", {}), ("cosine", {}), ("euclidean", {"size_min": 20, "size_max": 60})]
)
def test_labels_are_the_best_for_the_centres(features: np.ndarray, capsys, metric: str, bounds: dict[str, int]) -> None:
    words = [word for name, value in bounds.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert cluster("-o", "labels.h5", "--centres", "centres.npy", "--metric", metric, "--seed", 3, *words) == 0
    stored, centres = read_labels("labels.h5"), np.load("centres.npy")
    wanted = BalancedKMeans(K, metric=metric, random_state=3, **bounds).fit(features)
    np.testing.assert_array_equal(stored.labels, wanted.labels_)
    np.testing.assert_array_equal(centres, wanted.cluster_centers_)
    low, high = bounds.get("size_min", N // K), bounds.get("size_max", -(-N // K))
    assert low <= stored.counts.min() <= stored.counts.max() <= high
    scores = -cdist(features, centres, "sqeuclidean") if metric == "euclidean" else -cdist(features, centres, "cosine")
    proof = certify(scores, stored.labels)
    assert stored.receipt is not None
    assert stored.receipt.value == pytest.approx(proof.value, rel=1e-9)
    assert abs(stored.receipt.gap) < 1e-9 * abs(proof.value)
    assert proof.gap >= stored.receipt.gap - 1e-9
    assert stored.receipt.parameters["metric"] == metric
    out = capsys.readouterr().out
    assert f"value     {stored.receipt.value:.9g} " in out
    assert max(map(len, out.splitlines())) <= 80


def test_labels_alone(features: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster("-o", "labels.npy", "--starts", 2, "--max-iter", 50) == 0
    wanted = BalancedKMeans(K, n_init=2, max_iter=50, random_state=0).fit(features)
    np.testing.assert_array_equal(np.load("labels.npy"), wanted.labels_)
    assert {path.name for path in tmp_path.iterdir()} == {"features.npy", "labels.npy"}
    assert "Labels written to labels.npy\n" in capsys.readouterr().out


def test_report_of_the_labels_has_the_proof(features: np.ndarray) -> None:
    pytest.importorskip("jinja2")
    assert cluster("-o", "labels.h5") == 0
    assert main(["report", "labels.h5", "--features", "features.npy", "-o", "report.html"]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "proven optimal" in text
    assert "for the centres that k-means came to" in text
    assert re.search(r"These labels: 42 to 43; k-means: \d+ to \d+\.", text)


def test_defaults_are_those_of_the_estimator() -> None:
    settings = vars(build_parser().parse_args(["cluster", "features.npy", "-k", "7", "-o", "labels.npy"]))
    defaults = inspect.signature(BalancedKMeans).parameters
    names = {
        "size_min": "size_min",
        "size_max": "size_max",
        "metric": "metric",
        "max_iter": "max_iter",
    }
    for ours, theirs in names.items():
        assert settings[ours] == defaults[theirs].default
    assert (settings["starts"], defaults["n_init"].default) == (1, "auto")  # which is once for its k-means++


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "labels.txt"], "does not end in .npy or .h5"),
        (["-o", "old.npy"], "exists already; pass --force"),
        (["-o", "features.npy"], "--output features.npy and FEATURES features.npy are the same file"),
        (["-o", "labels.h5", "--seed", "-1"], "--seed: '-1' is not a whole number from 0 to 4,294,967,295"),
        (["-o", "labels.h5", "--centres", "centres.txt"], "does not end in .npy"),
        (["-o", "labels.npy", "--centres", "labels.npy"], "name the same file"),
        (["-o", "labels.h5", "--size-max", "42"], "6 fewer than the 300 there are; at least 43 is needed"),
        (["-o", "labels.h5", "--starts", "0"], "n_init is 0"),
    ],
)
def test_refused_in_one_line_before_anything_is_written(
    features: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    before = Path("features.npy").read_bytes()
    Path("old.npy").write_bytes(b"precious")
    assert cluster(*words) == 2
    ran = capsys.readouterr()
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npy", "old.npy"]
    assert Path("features.npy").read_bytes() == before
    assert Path("old.npy").read_bytes() == b"precious"


def test_features_that_are_not_finite_are_told_by_their_place(features: np.ndarray, capsys) -> None:
    features[17, 2] = np.nan
    np.save("features.npy", features)
    assert cluster("-o", "labels.h5") == 2
    assert "row 17" in capsys.readouterr().err


def test_without_scikit_learn_it_says_what_to_install(features: np.ndarray, monkeypatch, capsys) -> None:
    for name in ("otlabel.cluster", "otlabel.cluster.estimator"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    assert cluster("-o", "labels.h5") == 1
    assert 'pip install "scikit-learn>=' in capsys.readouterr().err
