"""The page itself: what was found out, laid out by a template that escapes whatever comes from a user."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel import __version__
from otlabel.errors import MissingPackageError
from otlabel.interrupts import interruptible
from otlabel.reporting import figures
from otlabel.reporting.montage import montage
from otlabel.reporting.sources import find, number_of, opened
from otlabel.reporting.summary import Summary, summarise
from otlabel.reporting.words import NAME_LENGTH, TITLE_LENGTH, shown
from otlabel.storage.atomic import replacing
from otlabel.storage.outputs import check_apart
from otlabel.text import range_text

if TYPE_CHECKING:
    from otlabel.result import Assignment
    from otlabel.solver.outcome import Certificate

HERE = Path(__file__).parent
FRAME = "width: 100%; height: 640px; box-sizing: border-box; border: 1px solid #8a97a3"  # of a page in a notebook


class Page(str):
    """A page, as text; in a notebook, a frame of its own, whose style and script stay inside."""

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self)}" style="{FRAME}" title="report"></iframe>'

    def __repr__(self) -> str:
        return f"<report of {len(self):,} characters>"  # a notebook keeps it beside the page


@interruptible
def report(
    labels: Assignment | Any,
    *,
    scores: Any = None,
    images: Any = None,
    texts: Any = None,
    features: Any = None,
    truth: Any = None,
    history: Any = None,
    names: Any = None,
    true_names: Any = None,
    head: int = 0,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Page:
    """Write one HTML page about labels: sizes and proof, the price of balance, examples and figures of classes.

    The page needs no network, no script and no other file; what is known only from an argument that is not given is
    left out. Text from arguments is shown, never run. Every argument about samples or classes may be a path as well: of
    a matrix as `sinkhorn_assign` takes it, of a folder of images or an array of them, of a text with a line for each.

    Args:
        labels: an Assignment; (N,) integers, -1 for a sample left unlabelled; (N, k), several a sample, of which sizes
            and proof alone are told; or the path of a file of labels, of a saved Assignment (.npz) or of the folder of
            a run of `otlabel train`, which brings history, images, truth and the scores of the network as last saved.
        scores: (N, K), anything that `sinkhorn_assign` takes: the proof, what balance changed, confidence (the softmax
            of the scores) and the order of the examples. The price of balance is drawn up to ten million scores.
        images: (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or real numbers: examples of each class; beyond 24
            classes of some, and in the table of all classes up to four small ones of each, as many as a page of a few
            megabytes has room for.
        texts: N texts, shown in place of images, and the key words of each class.
        features: (N, D): all samples in the plane of their first two principal components, sizes of k-means with as
            many clusters, and the order of the examples if there are no scores.
        truth: (N,) integers, the true classes, -1 where unknown: agreement, purity and entropy of each class, and where
            there are as many of them as classes, accuracy and who is taken for whom.
        history: dicts, one an epoch, as in a run's metrics.jsonl: what "loss", "nmi" and "churn" have been by "epoch",
            and in which of them "relabellings" happened; or `SelfLabeler.history`, a record for each relabelling and
            head; or both in one list. With truth, the entropy of the true classes within classes follows from records.
        names: (K,) names of the classes. None: their numbers.
        true_names: names of the true classes, by their number. None: their numbers.
        head: which head's labels, where a file or a run has several.
        title: of the page. None: what the labels are from.
        path: where to write the page, whole or not at all. None: it is only returned.
        seed: of the examples that are drawn at random, and of k-means.

    Returns:
        The page, a str that shows itself where it ends a cell of a notebook.

    Raises:
        ValueError: arguments that are not about the same N samples or K classes, or a path that is one of theirs.
        FileFormatError, FileNotFoundError: a path that cannot be read.
        MissingPackageError: Jinja2, Pillow (for images) or scikit-learn (for features) is not installed.

    Source: the price of balance: `balance_path`; agreement: `metrics.compare`; the proof: `certify`.
    """
    template = _template()  # asked for now, not after the work
    sources = {
        "scores": scores,
        "images": images,
        "texts": texts,
        "features": features,
        "truth": truth,
        "history": history,
        "names": names,
        "true_names": true_names,
    }
    if path is not None:
        read = {"labels": labels} | sources
        check_apart({"path": path}, {name: one for name, one in read.items() if isinstance(one, (str, os.PathLike))})
    n_samples = number_of(scores, features) if isinstance(labels, (str, os.PathLike)) or truth is not None else None
    given = opened(n_samples, **sources)
    subject = dataclasses.replace(find(labels, head, n_samples), **given)
    if head < 0 or (head and subject.n_heads is None and subject.history is None):
        raise ValueError(f"head is {head}, but these are the labels of one head; leave it out")
    summary = summarise(subject, seed)
    written = template.render(
        title=shown(subject.title if title is None else title, TITLE_LENGTH),
        sentences=sentences(summary),
        notes=summary.notes,
        sizes=figures.sizes(summary.sizes_by_method),
        price=None if summary.path is None else figures.price(summary.path, summary.own_price),
        courses=figures.courses(summary.epochs, summary.relabellings),
        montage=montage(summary, seed),
        summary=summary,
        version=__version__,
        **_parts(),
    )
    if path is not None:
        with replacing(path) as file:
            file.write(written.encode())
    return Page(written)


def sentences(summary: Summary) -> list[str]:
    """What is to be known first, one sentence each."""
    n_samples, sizes = len(summary.labels), summary.sizes
    each = f"{summary.labels.shape[1]} each of " if summary.labels.ndim > 1 else ""
    found = [f"{n_samples:,} samples in {each}{summary.n_classes:,} classes."]
    if summary.n_unlabelled:
        found.append(f"{summary.n_unlabelled:,} samples are left unlabelled ({summary.n_unlabelled / n_samples:.1%}).")
    median = f", with a median of {float(np.median(sizes)):,.10g}" if np.ptp(sizes) else ""
    found.append(f"Class sizes are {range_text(sizes)}{median}.")
    if summary.proof is not None:
        found += _proof(summary.proof)
    fit = summary.fit
    if fit is not None:
        n_moved = int((fit.margin < 0).sum())
        share = f" ({n_moved / n_samples:.1%}), for which another class has a larger score" if n_moved else ""
        found.append(f"Balance changed {n_moved:,} labels{share}.")
        tenth, middle = np.quantile(fit.confidence[summary.labels >= 0], (0.1, 0.5))
        found.append(
            f"Confidence, the softmax of the scores, has a median of {middle:.3f}; a tenth of the labels have less "
            f"than {tenth:.3f}."
        )
    if summary.agreement is not None and summary.true_classes is not None:
        told = summary.agreement
        alike = len(np.unique(summary.true_classes[summary.true_classes >= 0])) == summary.n_classes
        accuracy = f"accuracy {told['accuracy']:.3f}, " if alike else ""  # else no class goes with each true one
        found.append(
            f"Against the truth: NMI {told['nmi']:.3f}, AMI {told['ami']:.3f}, ARI {told['ari']:.3f}, "
            f"{accuracy}purity {told['purity']:.3f} ({told['n_samples']:,} samples)."
        )
    return [*found, *summary.about, *(f"Training warned: {text}." for text in _alarms(summary.relabellings))]


def _alarms(records: list[dict[str, Any]]) -> list[str]:
    """Each once, with its last figures."""
    given = [one["alarms"] for one in records if isinstance(one.get("alarms"), list)]
    return list({re.sub(r"\d+(\.\d+)?", "", text): text for texts in given for text in map(str, texts)}.values())


def _proof(proof: Certificate) -> list[str]:
    told = "rounding, so that the labels are proven optimal"
    if not proof.proven:
        told = proof.verdict.replace("at most this much better is possible", "so much could be won at most")
    return [
        f"The mean score is {proof.value:.9g}.",
        f"The bound is {proof.bound:.9g}.",
        f"The gap is {proof.gap:.2g}: {told}.",
    ]


def _template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("Jinja2", "report") from error
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["name"] = lambda text: shown(text, NAME_LENGTH)
    return environment.get_template("page.html.jinja")


def _parts() -> dict[str, Any]:
    """Style and script, and the hash by which the browser tells this script, the only one that may run."""
    from markupsafe import Markup

    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": f"sha256-{digest}"}
