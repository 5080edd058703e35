"""Small problems of every kind that a user may bring, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax


class Drawn(NamedTuple):
    """Scores, the class_mass argument to pass, and the counts that it stands for."""

    scores: Any
    class_mass: Any
    counts: np.ndarray


def even(n_samples: int, n_classes: int) -> np.ndarray:
    return np.bincount(np.arange(n_samples) % n_classes, minlength=n_classes)


def _sizes(rng: np.random.Generator) -> tuple[int, int]:
    n_classes = int(rng.integers(2, 11))
    return int(rng.integers(n_classes + 1, 91)), n_classes


def _random_counts(rng: np.random.Generator, n_samples: int, n_classes: int, concentration: float = 0.5) -> np.ndarray:
    return rng.multinomial(n_samples, rng.dirichlet(np.full(n_classes, concentration)))


def _balanced(make: Callable[[np.random.Generator, int, int], Any]) -> Callable[[np.random.Generator], Drawn]:
    """A kind with default class sizes from a function (rng, N, K) -> scores."""

    def draw(rng: np.random.Generator) -> Drawn:
        n_samples, n_classes = _sizes(rng)
        return Drawn(make(rng, n_samples, n_classes), None, even(n_samples, n_classes))

    return draw


def _counted(make: Callable[[np.random.Generator, int, int], Any]) -> Callable[[np.random.Generator], Drawn]:
    """A kind with random class sizes, zeros among them, from a function (rng, N, K) -> scores."""

    def draw(rng: np.random.Generator) -> Drawn:
        n_samples, n_classes = _sizes(rng)
        counts = _random_counts(rng, n_samples, n_classes)
        return Drawn(make(rng, n_samples, n_classes), counts, counts)

    return draw


def _shaped(choose: Callable[[np.random.Generator], tuple[int, int]]) -> Callable[[np.random.Generator], Drawn]:
    """Ordinary scores of a special shape."""

    def draw(rng: np.random.Generator) -> Drawn:
        n_samples, n_classes = choose(rng)
        return Drawn(normal(rng, n_samples, n_classes), None, even(n_samples, n_classes))

    return draw


def normal(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    return rng.standard_normal((n_samples, n_classes))


def ties(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    return rng.integers(-2, 3, (n_samples, n_classes)).astype(np.float64)


def duplicates(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    distinct = normal(rng, max(1, n_samples // 6), n_classes)
    return distinct[rng.integers(0, len(distinct), n_samples)]


def clusters(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    """Log-probabilities of samples from clusters of very unequal size."""
    sizes = 1.0 / np.arange(1, n_classes + 1)
    centre = rng.choice(n_classes, n_samples, p=sizes / sizes.sum())
    scores = normal(rng, n_samples, n_classes)
    scores[np.arange(n_samples), centre] += 4.0
    return log_softmax(scores, axis=1)


def dead_class(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    scores = normal(rng, n_samples, n_classes)
    scores[:, rng.integers(n_classes)] = -1e4
    return scores


def dominant_class(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    scores = normal(rng, n_samples, n_classes)
    scores[:, rng.integers(n_classes)] += 50.0
    return scores


def rounds_alike(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    """Rows that differ, but whose differences between classes are all the same once rounded to float32."""
    scores = np.ones((n_samples, n_classes), dtype=np.float32)
    scores[:, 0] = 2.9e-8 * rng.random(n_samples)
    return scores


def _forbidden(rng: np.random.Generator) -> Drawn:
    """Two pairs in five forbidden, yet a hidden assignment of the wanted sizes left open."""
    n_samples, n_classes = _sizes(rng)
    counts = _random_counts(rng, n_samples, n_classes, 3.0)
    hidden = rng.permutation(np.repeat(np.arange(n_classes), counts))
    scores = normal(rng, n_samples, n_classes)
    shut = rng.random(scores.shape) < 0.4
    shut[np.arange(n_samples), hidden] = False
    scores[shut] = -np.inf
    return Drawn(scores, counts, counts)


def _tightly_forbidden(rng: np.random.Generator) -> Drawn:
    """A staircase of forbidden pairs that leaves few assignments, so that long chains of moves are forced."""
    n_classes = int(rng.integers(3, 9))
    n_samples = n_classes * int(rng.integers(2, 8))
    home = np.arange(n_samples) % n_classes
    offset = (np.arange(n_classes)[None, :] - home[:, None]) % n_classes
    scores = np.where(
        offset <= 1, normal(rng, n_samples, n_classes) + 5.0 * (offset == 1) * (home[:, None] > 0), -np.inf
    )
    return Drawn(rng.permutation(scores), None, even(n_samples, n_classes))


def _few_choices(rng: np.random.Generator) -> Drawn:
    """Most samples may go to one class only, whatever their score there; the others to any at the same score."""
    n_samples, n_classes = _sizes(rng)
    home = rng.integers(0, n_classes, n_samples)
    scores = np.full((n_samples, n_classes), -np.inf)
    scores[np.arange(n_samples), home] = rng.choice([0.0, 0.5], n_samples)
    free = rng.random(n_samples) < 0.3
    scores[free] = rng.choice([0.0, 0.5], n_samples)[free, None]
    counts = np.bincount(np.where(free, rng.integers(0, n_classes, n_samples), home), minlength=n_classes)
    return Drawn(scores, counts, counts)


def signed_zeros(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    return rng.choice([0.0, -0.0, 1.0], (n_samples, n_classes))


def powers_of_two(rng: np.random.Generator, n_samples: int, n_classes: int) -> np.ndarray:
    """Round numbers, many rows alike: their bits are nearly all zeros."""
    scores = 2.0 ** rng.integers(-3, 3, (n_samples, n_classes)) * rng.choice([-1, 1], (n_samples, n_classes))
    return scores[rng.integers(0, max(2, n_samples // 4), n_samples)]


def _shares(rng: np.random.Generator) -> Drawn:
    """Skewed shares that are multiples of 1/64, so that rounding them is free of float noise."""
    n_samples, n_classes = _sizes(rng)
    parts = 1 + rng.multinomial(64 - n_classes, rng.dirichlet(np.full(n_classes, 0.4)))
    whole, left = divmod(n_samples * parts, 64)
    order = np.lexsort((np.arange(n_classes), -left))
    whole[order[: n_samples - whole.sum()]] += 1
    return Drawn(normal(rng, n_samples, n_classes), parts / 64.0, whole)


def _zero_targets(rng: np.random.Generator) -> Drawn:
    """Classes of no mass at all that the scores like best."""
    n_samples, n_classes = _sizes(rng)
    wanted = rng.random(n_classes) < 0.5
    wanted[rng.integers(n_classes)] = True
    counts = np.zeros(n_classes, dtype=np.int64)
    counts[wanted] = even(n_samples, int(wanted.sum()))
    return Drawn(normal(rng, n_samples, n_classes) + 3.0 * ~wanted, counts, counts)


def _one_class_takes_all(rng: np.random.Generator) -> Drawn:
    n_samples, n_classes = _sizes(rng)
    counts = np.zeros(n_classes, dtype=np.int64)
    counts[rng.integers(n_classes)] = n_samples
    return Drawn(normal(rng, n_samples, n_classes), counts, counts)


KINDS: dict[str, Callable[[np.random.Generator], Drawn]] = {
    "ordinary": _balanced(normal),
    "ordinary_counts": _counted(normal),
    "peaked": _balanced(lambda *a: 10.0 * normal(*a)),
    "very_peaked": _balanced(lambda *a: 1e3 * normal(*a)),
    "very_peaked_counts": _counted(lambda *a: 1e3 * normal(*a)),
    "flat": _balanced(lambda *a: 1e-3 * normal(*a)),
    "very_flat_counts": _counted(lambda *a: 1e-6 * normal(*a)),
    "ties": _balanced(ties),
    "ties_counts": _counted(ties),
    "two_values": _counted(lambda rng, n, k: rng.integers(0, 2, (n, k)).astype(np.float64)),
    "duplicates": _balanced(duplicates),
    "duplicates_counts": _counted(duplicates),
    "duplicate_classes": _balanced(lambda rng, n, k: np.repeat(normal(rng, n, (k + 1) // 2), 2, axis=1)[:, :k]),
    "all_equal": _balanced(lambda rng, n, k: np.full((n, k), rng.choice([0.0, -3.5, 1e5]))),
    "all_equal_counts": _counted(lambda rng, n, k: np.zeros((n, k))),
    "same_row": _counted(lambda rng, n, k: np.tile(normal(rng, 1, k), (n, 1))),
    "clusters": _balanced(clusters),
    "log_probabilities": _balanced(lambda rng, n, k: log_softmax(3.0 * normal(rng, n, k), axis=1)),
    "negative_distances": _balanced(
        lambda rng, n, k: -((normal(rng, n, 1)[:, :, None] - normal(rng, 1, k)[:, None, :]) ** 2).sum(1)
    ),
    "skewed_shares": _shares,
    "zero_targets": _zero_targets,
    "one_class_takes_all": _one_class_takes_all,
    "fewer_samples_than_classes": _shaped(lambda rng: (int(rng.integers(1, 9)), int(rng.integers(9, 30)))),
    "as_many_samples_as_classes": _shaped(lambda rng: (int(rng.integers(2, 25)),) * 2),
    "one_class": _shaped(lambda rng: (int(rng.integers(1, 40)), 1)),
    "two_classes": _shaped(lambda rng: (int(rng.integers(2, 90)), 2)),
    "one_sample": _shaped(lambda rng: (1, int(rng.integers(1, 12)))),
    "dead_class": _balanced(dead_class),
    "dominant_class": _balanced(dominant_class),
    "dominant_class_counts": _counted(dominant_class),
    "forbidden": _forbidden,
    "few_choices": _few_choices,
    "signed_zeros": _counted(signed_zeros),
    "powers_of_two": _counted(powers_of_two),
    "tightly_forbidden": _tightly_forbidden,
    "row_offset": _balanced(lambda rng, n, k: normal(rng, n, k) + 1e6 * normal(rng, n, 1)),
    "class_offset": _balanced(lambda rng, n, k: normal(rng, n, k) + 1e3 * normal(rng, 1, k)),
    "float32": _balanced(lambda *a: normal(*a).astype(np.float32)),
    "float32_row_offset": _balanced(lambda rng, n, k: (normal(rng, n, k) + 1e4).astype(np.float32)),
    "float32_rounds_alike": _balanced(rounds_alike),
    "float16": _balanced(lambda *a: (5.0 * normal(*a)).astype(np.float16)),
    "float16_counts": _counted(lambda *a: (1e-6 * normal(*a)).astype(np.float16)),
    "bfloat16": _balanced(lambda *a: torch.from_numpy(normal(*a)).bfloat16()),
    "bfloat16_counts": _counted(lambda *a: torch.from_numpy(300.0 * normal(*a)).bfloat16()),
    "torch_float64": _counted(lambda *a: torch.from_numpy(normal(*a))),
    "torch_float16": _balanced(lambda *a: torch.from_numpy(normal(*a)).half()),
    "int64": _balanced(lambda rng, n, k: rng.integers(-1000, 1000, (n, k))),
    "uint8": _counted(lambda rng, n, k: rng.integers(0, 255, (n, k)).astype(np.uint8)),
    "fortran_order": _balanced(lambda *a: np.asfortranarray(normal(*a))),
    "float32_fortran_order": _counted(lambda *a: np.asfortranarray(normal(*a).astype(np.float32))),
    "strided": _balanced(lambda rng, n, k: normal(rng, 2 * n, 3 * k)[::2, 1::3]),
    "reversed": _balanced(lambda *a: normal(*a)[::-1, ::-1]),
    "torch_transposed": _balanced(lambda rng, n, k: torch.from_numpy(normal(rng, k, n)).T),
    "big_endian": _balanced(lambda *a: normal(*a).astype(">f8")),
}


def draw(kind: str, seed: int) -> Drawn:
    """Where shares times N are no whole numbers, counts are passed: else they would not be what shares stand for."""
    drawn = KINDS[kind](np.random.default_rng([seed, *kind.encode()]))
    n_samples, n_classes = len(drawn.scores), len(drawn.counts)
    shares = np.full(n_classes, 1 / n_classes) if drawn.class_mass is None else drawn.counts / n_samples
    given = shares if kind != "skewed_shares" else drawn.class_mass
    is_whole = np.abs(n_samples * given - drawn.counts).max() < 1e-6
    return drawn if is_whole else drawn._replace(class_mass=drawn.counts)
