"""`otlabel demo`: a network labels real images for itself, and is told honestly apart from k-means.

The data are scikit-learn's scanned digits. Their true labels are used to judge the result, never to make it.
"""

from __future__ import annotations

import os
import textwrap
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel import report
from otlabel.errors import FileFormatError, MissingPackageError, SelfLabelWarning
from otlabel.storage.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from otlabel.training.config import Config
    from otlabel.training.data import Images

K = 10
SEEDS = range(5)
RECIPE = "digits"
CLOTHES, N_CLOTHES, CLOTHES_EPOCHS = "fashion-mnist", 1000, 15  # what the time of one more run allows
TITLE = "# otlabel demo: a network labels handwritten digits for itself"
FILES = ("demo.png", "labels.npy", "report.html", "summary.md")
METHODS = ("k-means on pixels", "self-labelled")
PACKAGES = {"sklearn": "scikit-learn"}  # by the name of the module


@dataclass(frozen=True, eq=False)
class Labelled:
    """What one start of one method has come to."""

    method: str
    seed: int
    labels: np.ndarray  # (N,) int64
    nmi: float
    accuracy: float
    seconds: float
    quality: float | None = None  # of the labels of all heads, told without the truth
    alarms: tuple[str, ...] = ()  # of all relabellings
    scores: np.ndarray | None = None  # (N, K) log-probabilities of the network
    course: tuple[tuple[float, float], ...] = ()  # NMI and accuracy of the labels after each epoch
    gap: float = 0.0  # how much better labels of these sizes could be; the last relabelling's

    @property
    def sureness(self) -> np.ndarray:
        """(N,) probability that the network gives to each label."""
        assert self.scores is not None
        return np.exp(self.scores[np.arange(len(self.labels)), self.labels])

    @property
    def sizes(self) -> np.ndarray:
        """(K,) samples in each class."""
        return np.bincount(self.labels, minlength=K)


@dataclass(frozen=True, eq=False)
class Findings:
    """All that the demo found out."""

    images: np.ndarray  # (N, 8, 8)
    truth: np.ndarray  # (N,)
    runs: dict[str, list[Labelled]]  # by method, a run a seed
    clothes: tuple[Labelled, Labelled] | None = None  # of a second data set, by method, where it is installed

    @property
    def shown(self) -> Labelled:
        """The self-labelled run whose accuracy is the median: neither the best nor the worst."""
        runs = sorted(self.runs[METHODS[1]], key=lambda run: run.accuracy)
        return runs[len(runs) // 2]


def run_demo(folder: Path, *, echo: Callable[[str], None] = print) -> Findings:
    """Run it all, tell about it through `echo` and write the picture, the page and the labels to `folder`."""
    _check_folder(folder)
    _check_packages()
    started = time.perf_counter()
    echo(_what_is_done())
    findings = compare()
    echo(f"\n{table(findings)}\n\n{conclusion(findings)}")
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(findings)
    with replacing(folder / "demo.png") as file:
        figure.savefig(file, format="png", dpi=130)
    with replacing(folder / "labels.npy") as file:
        np.save(file, findings.shown.labels)
    shown = findings.shown
    report(
        shown.labels,
        scores=shown.scores,
        images=findings.images,
        truth=findings.truth,
        title="The labels of the otlabel demo",
        path=folder / "report.html",
    )
    with replacing(folder / "summary.md") as file:
        file.write(page(findings).encode())
    echo(f"\nWritten to {folder}: {', '.join(FILES)}.\nAll of this took {time.perf_counter() - started:.1f} s.")
    return findings


def _check_packages() -> None:
    """Asked for now, not after the work."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(PACKAGES.get(error.name or "", error.name or ""), "report") from error


def compare() -> Findings:
    """Every method from every seed; the networks in processes side by side, each on one thread."""
    from otlabel.training.data import load_images

    images = load_images(RECIPE)
    truth, pixels = _truth(images), images.train.numpy()[:, 0]
    other = _clothes()
    n_processes = min(len(SEEDS), os.cpu_count() or 1)
    others = active_children()
    with ProcessPoolExecutor(n_processes, get_context("spawn")) as pool:
        try:
            second = None if other is None else pool.submit(clothes_labelled)  # first, as it takes longest
            trained = pool.map(self_labelled, SEEDS)
            clustered = [_k_means(images, seed) for seed in SEEDS]
            runs = {METHODS[0]: clustered, METHODS[1]: list(trained)}
            clothes = None if other is None or second is None else (_k_means(other, 0), second.result())
            return Findings(pixels, truth, runs, clothes)
        except KeyboardInterrupt:
            for worker in set(active_children()).difference(others):
                worker.terminate()  # else the pool waits until it is done
            raise


def _truth(images: Images) -> np.ndarray:
    assert images.train_labels is not None
    return images.train_labels.numpy()


def _clothes() -> Images | None:
    """Some of a second data set, where it is installed."""
    from otlabel.training.data import load_images

    try:
        return load_images(CLOTHES, n_samples=N_CLOTHES)
    except (FileNotFoundError, FileFormatError):
        return None


def _k_means(images: Images, seed: int) -> Labelled:
    from sklearn.cluster import KMeans

    started = time.perf_counter()
    rows = images.train.numpy().reshape(len(images.train), -1) / 255.0
    labels = KMeans(K, n_init=1, random_state=seed).fit_predict(rows)
    return _judged(METHODS[0], seed, labels.astype(np.int64), _truth(images), time.perf_counter() - started)


def self_labelled(seed: int) -> Labelled:
    """One run of the recipe."""
    from otlabel.training.config import read_config
    from otlabel.training.data import load_images

    return _trained(read_config(RECIPE), load_images(RECIPE), seed)


def clothes_labelled() -> Labelled:
    """One run on the second data set, by the settings that any data get without a recipe."""
    from otlabel.training.config import config_of
    from otlabel.training.suited import suited

    images = _clothes()
    assert images is not None
    config = config_of({"data": {"name": CLOTHES, "n_samples": N_CLOTHES}} | suited(tuple(images.train.shape), K))
    return _trained(config.with_values(train__epochs=CLOTHES_EPOCHS, labels__n_relabels=CLOTHES_EPOCHS), images, seed=0)


def _trained(config: Config, images: Images, seed: int) -> Labelled:
    """One run; of its heads, the one whose labels the network is surest of."""
    from otlabel.selflabel.model import forward_only
    from otlabel.training.augment import plain
    from otlabel.training.run import Run

    started = time.perf_counter()
    config = config.with_values(train__seed=seed, train__threads=1, train__device="cpu")
    run = Run(config, None, images=images)
    truth, courses = _truth(images), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SelfLabelWarning)  # they are told in the end, by their texts
        while run.epoch < config.train.epochs:
            run.train_epoch()
            courses.append([_agreement(truth, labels.numpy()) for labels in run.labeler.labels])
    with forward_only(run.model):
        logits = run.model(plain(images.train))
    scores = [one.double().log_softmax(1) for one in logits]
    fit = [float(one.gather(1, own[:, None]).mean()) for one, own in zip(scores, run.labeler.labels, strict=True)]
    head = int(np.argmax(fit))  # the one that fits its labels best, which takes no truth to see
    alarms = [text for record in run.labeler.history for text in record["alarms"]]
    return _judged(
        METHODS[1],
        seed,
        run.labeler.labels[head].numpy(),
        truth,
        time.perf_counter() - started,
        quality=run.labeler.quality,
        alarms=tuple(dict.fromkeys(alarms)),
        scores=scores[head].numpy(),
        course=tuple(course[head] for course in courses),
        gap=run.labeler.history[head - len(logits)]["gap"],
    )


def _judged(method: str, seed: int, labels: np.ndarray, truth: np.ndarray, seconds: float, **more: Any) -> Labelled:
    nmi, accuracy = _agreement(truth, labels)
    return Labelled(method, seed, labels, nmi, accuracy, seconds, **more)


def _agreement(truth: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    from otlabel import metrics

    return metrics.nmi(truth, labels), metrics.accuracy(truth, labels)


def name_classes(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The digit that each class stands for: the one-to-one naming that gets most samples right."""
    from scipy.optimize import linear_sum_assignment

    both = np.zeros((K, K), dtype=np.int64)
    np.add.at(both, (labels, truth), 1)
    return linear_sum_assignment(both, maximize=True)[1]


# ---- words ----


def table(findings: Findings) -> str:
    """One line a method, in aligned columns, which Markdown shows as a table too."""
    head = f"| {'mean (worst-best)':<18} | {'NMI':<17} | {'accuracy':<17} | {'sizes':<7} |"
    rule = f"|:{'-' * 19}|{'-' * 19}|{'-' * 19}|{'-' * 9}|"
    return "\n".join([head, rule, *(_line(name, runs) for name, runs in findings.runs.items())])


def _line(name: str, runs: list[Labelled]) -> str:
    sizes = np.concatenate([run.sizes for run in runs])
    nmi, accuracy = ([getattr(run, key) for run in runs] for key in ("nmi", "accuracy"))
    return f"| {name:<18} | {_spread(nmi):<17} | {_spread(accuracy):<17} | {f'{sizes.min()}-{sizes.max()}':<7} |"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.2f}-{max(values):.2f})"


def _what_is_done() -> str:
    return f"""\
1297 scanned digits (scikit-learn), {K} classes, no labels. A small convolutional
network starts from random weights and random labels, {len(SEEDS)} times. In turn it trains
on its labels, and all images are labelled anew: the best total log-probability
with exactly equal class sizes. k-means on the pixels is there to compare with.
NMI and accuracy judge by the true digits, which nothing else sees."""


def conclusion(findings: Findings) -> str:
    """What the table shows, whichever way it went; what can be told without the truth; how other data did."""
    parts = (_against_k_means(findings), _without_truth(findings), _on_clothes(findings))
    return "\n\n".join(textwrap.fill(part, 80) for part in parts)


def _against_k_means(findings: Findings) -> str:
    k_means, own = (findings.runs[method] for method in METHODS)
    difference = float(np.mean([run.accuracy for run in own]) - np.mean([run.accuracy for run in k_means]))
    seconds = float(np.median([run.seconds for run in own]))
    better = sum(run.accuracy > max(other.accuracy for other in k_means) for run in own)
    way = "above" if difference > 0 else "below"
    return (
        f"Self-labelling ends {abs(difference):.3f} {way} k-means in mean accuracy; {better} of {len(own)} seeds beat "
        "the best k-means. It knows more than k-means does: that turned, zoomed and shifted images show the same "
        "digit, since it trains on such; and that digits are equally frequent, which is true here to within 3 %. Its "
        "settings were chosen on other seeds by the truth, which your own data may not have. A run took "
        f"{seconds:.0f} s."
    )


def _without_truth(findings: Findings) -> str:
    """What `quality` says of the runs, and what the labeler has warned of."""
    ranked = sorted(findings.runs[METHODS[1]], key=lambda run: run.quality or 0.0)
    worst, best = ranked[0], ranked[-1]
    told = (
        f"Without the truth there is `quality`, from 0 to 1: {worst.quality:.2f} to {best.quality:.2f} here. The run "
        f"that it prefers has accuracy {best.accuracy:.2f}, the one that it likes least {worst.accuracy:.2f}."
    )
    warned = [run for run in ranked if run.alarms]
    if warned:
        alarm = f'with seed {warned[0].seed}: "{warned[0].alarms[0]}"'
        told += f" otlabel warned in {len(warned)} of {len(ranked)} runs, {alarm}."
    return told


def _on_clothes(findings: Findings) -> str:
    if findings.clothes is None:
        return (
            "Other data need no recipe: `otlabel train my-images/ -k 10 -o run`. Were Fashion-MNIST installed "
            "(Debian's package dataset-fashion-mnist), you would see here how that does on it."
        )
    k_means, own = findings.clothes
    return (
        f"Other data need no recipe. On {N_CLOTHES} images of clothes (Fashion-MNIST), the settings that "
        f"`otlabel train DATA -k 10` takes for any images, cut to {CLOTHES_EPOCHS} epochs, reach accuracy "
        f"{own.accuracy:.2f} and NMI {own.nmi:.2f}; k-means {k_means.accuracy:.2f} and {k_means.nmi:.2f}; "
        f"quality is {own.quality:.2f}."
    )


def page(findings: Findings) -> str:
    """The one-page summary, in Markdown."""
    lines = "\n".join(
        f"| {run.seed} | {run.nmi:.3f} | {run.accuracy:.3f} | {run.sizes.min()}-{run.sizes.max()} | {run.gap:.0e} | "
        f"{run.seconds:.1f} |"
        for run in findings.runs[METHODS[1]]
    )
    return f"""{TITLE}

{_what_is_done()}

{table(findings)}

{conclusion(findings)}

![How labels improve, and images of every class](demo.png)

## Every seed

| seed | NMI | accuracy | class sizes | gap | seconds |
|---:|---:|---:|---:|---:|---:|
{lines}

The gap bounds how much better any labels of equal sizes could be under the network's last log-probabilities: zero up to
rounding is the proof that there are none.

## Files

- `demo.png`: above, the labels' accuracy after each epoch; below, every class of the seed whose accuracy is the median.
- `report.html`: the same labels looked at from all sides; `otlabel report` makes one of any labels.
- `labels.npy`: the labels of that seed, int64, in the order of `otlabel.training.data.load_images("digits").train`.

## Your own data

The same with figures, checkpoints and resume, for images in a folder or an array, from one TOML file:

    otlabel train digits -o runs/digits
    otlabel train digits -o runs/mine --set data.name=my-images/ --set 'model.heads=[20]'

or in your own training loop, with any model:

    from otlabel import MultiHead, OptimalTransport, QuadraticSchedule, SelfLabeler
"""


# ---- picture ----

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
OWN, OTHER = "#1f8a84", "#e0a03b"
WRONG = "#d0583f"
TYPICAL, DOUBTFUL = 13, 7  # images a row
DOUBTFUL_FROM = TYPICAL + 0.6


def draw(findings: Findings) -> Figure:
    """How labels improve over the epochs, above a montage of the classes of one run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.9), facecolor=PAPER)
    figure.text(0.05, 0.945, "A network that labels digits for itself", size=18, weight="bold", color=INK)
    grid = figure.add_gridspec(1, 2, left=0.06, right=0.975, top=0.865, bottom=0.655, wspace=0.14)
    for place, (measure, title) in enumerate((("nmi", "NMI with the true digits"), ("accuracy", "Accuracy"))):
        _draw_course(figure.add_subplot(grid[place]), findings, measure, title, place)
    _draw_montage(figure, findings)
    return figure


def _draw_course(axes: Axes, findings: Findings, measure: str, title: str, place: int) -> None:
    own, k_means = findings.runs[METHODS[1]], findings.runs[METHODS[0]]
    for run in own:
        values = [step[place] for step in run.course]
        strong = run is findings.shown
        axes.plot(
            range(1, len(values) + 1), values, color=OWN, linewidth=2.2 if strong else 1.0, alpha=1 if strong else 0.55
        )
    level = float(np.mean([getattr(run, measure) for run in k_means]))
    axes.axhline(level, color=OTHER, linewidth=1.6, linestyle=(0, (4, 2)))
    where = axes.get_yaxis_transform()
    axes.text(
        0.985, level - 0.02, "k-means on pixels, mean", transform=where, color=OTHER, size=10, ha="right", va="top"
    )
    axes.set(xlim=(0, len(own[0].course)), ylim=(0, 1))
    axes.set_xticks(range(0, len(own[0].course) + 1, 10))
    axes.set_xlabel("epoch", color=FAINT)
    axes.text(0, 1.05, f"{title}, {len(own)} seeds", size=11.5, weight="bold", color=INK, transform=axes.transAxes)
    axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)


def _draw_montage(figure: Figure, findings: Findings) -> None:
    """One row a class: the images that the network is surest of, then those that it doubts most."""
    run = findings.shown
    names = name_classes(run.labels, findings.truth)
    axes = figure.add_axes((0.035, 0.045, 0.95, 0.515))
    for line, k in enumerate(np.argsort(names)):
        members = np.flatnonzero(run.labels == k)
        members = members[np.argsort(-run.sureness[members], kind="stable")]
        axes.text(-1.0, line, str(names[k]), size=15, weight="bold", color=INK, ha="center", va="center")
        for column, i in enumerate(members[:TYPICAL]):
            _draw_image(axes, findings.images[i], column, line, findings.truth[i] == names[k])
        for column, i in enumerate(members[-DOUBTFUL:]):
            _draw_image(axes, findings.images[i], DOUBTFUL_FROM + column, line, findings.truth[i] == names[k])
        right = int((findings.truth[members] == names[k]).sum())
        told = f"{right} of {len(members)}\nare a {names[k]}"
        axes.text(DOUBTFUL_FROM + DOUBTFUL - 0.25, line, told, size=9, color=INK, va="center", linespacing=1.35)
    axes.set(xlim=(-1.35, DOUBTFUL_FROM + DOUBTFUL + 2.0), ylim=(K - 0.5, -1.1), aspect="equal", anchor="N")
    axes.axis("off")
    heading: dict[str, Any] = {"size": 11.5, "weight": "bold", "color": INK, "va": "bottom"}
    axes.text(-0.45, -0.68, "Classes it has found: images it is surest of", **heading)
    axes.text(DOUBTFUL_FROM - 0.45, -0.68, "images it doubts most", **heading)
    note = f"Seed {run.seed}, of median accuracy {run.accuracy:.2f} (thick lines). Classes are named by what fits best."
    figure.text(0.05, 0.02, note, size=10, color=FAINT)
    figure.text(0.80, 0.02, "Red frame: another digit.", size=10, color=WRONG)


def _draw_image(axes: Axes, image: np.ndarray, x: float, y: float, right: bool) -> None:
    from matplotlib.patches import Rectangle

    half = 0.44
    axes.imshow(image, cmap="gray_r", extent=(x - half, x + half, y + half, y - half), interpolation="nearest")
    edge, width = ("#d8dee4", 0.8) if right else (WRONG, 2.2)
    axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, edgecolor=edge, linewidth=width))


# ---- files ----


def _check_folder(folder: Path) -> None:
    """A folder that is new, empty or an earlier demo's; anything else might hold files of the user's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder with -o")
    taken = [name for name in FILES if (folder / name).exists()]
    summary = folder / "summary.md"
    if taken and not (summary.is_file() and summary.read_text(encoding="utf-8", errors="replace").startswith(TITLE)):
        raise FileExistsError(f"{folder} holds {', '.join(taken)}, not of an earlier demo; name another folder with -o")
