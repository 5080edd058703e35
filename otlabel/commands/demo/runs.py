"""The runs of the demo: k-means and self-labelling of digits, and of clothes where they are installed."""

from __future__ import annotations

import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.errors import FileFormatError, SelfLabelWarning
from otlabel.progress import progress

if TYPE_CHECKING:
    from otlabel.training.config import Config
    from otlabel.training.data import Images

K = 10
SEEDS = range(5)
RECIPE = "digits"
CLOTHES, N_CLOTHES, CLOTHES_EPOCHS = "fashion-mnist", 1000, 15  # what the time of one more run allows
METHODS = ("k-means on pixels", "self-labelled")


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


def compare(*, watched: bool = False) -> Findings:
    """Every method from every seed; the networks in processes side by side, each on one thread."""
    from otlabel.training.data import load_images

    images = load_images(RECIPE)
    truth, pixels = _truth(images), images.train.numpy()[:, 0]
    other = _clothes()
    n_processes = min(len(SEEDS), os.cpu_count() or 1)
    others = active_children()
    what, n_runs = f"training networks, {n_processes} side by side", len(SEEDS) + (other is not None)
    with (
        progress(what, n_runs, "runs", shown=watched) as tell,
        ProcessPoolExecutor(n_processes, get_context("spawn")) as pool,
    ):
        try:
            second = None if other is None else pool.submit(clothes_labelled)  # first, as it takes longest
            trained = [pool.submit(self_labelled, seed) for seed in SEEDS]
            waiting = [*trained, *([] if second is None else [second])]
            for one in waiting:
                one.add_done_callback(lambda _: tell(sum(other.done() for other in waiting)))
            clustered = [_k_means(images, seed) for seed in SEEDS]
            runs = {METHODS[0]: clustered, METHODS[1]: [one.result() for one in trained]}
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
    config = config.with_values(train__seed=seed, train__threads=1, trainer__accelerator="cpu")
    run = Run(config, None, images=images)
    truth, courses = _truth(images), []

    def note(_: dict[str, Any]) -> None:
        courses.append([_agreement(truth, labels.numpy()) for labels in run.labeler.labels])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SelfLabelWarning)  # they are told in the end, by their texts
        run.fit(note)
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
