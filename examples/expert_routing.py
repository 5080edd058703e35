"""
Two experts for each token
==========================

A mixture of experts sends each token to the two experts whose logits are the largest. Some experts then get several
times their share, and what is beyond their room is dropped or waited for. One option more makes it even, with the best
total score of all ways to do so and a proof of it::

    result = sinkhorn_assign(logits, labels_per_sample=2)     # labels (N, 2), each expert exactly 2 N / K tokens

What training code does in place of it comes near to even loads, from one side or the other: a bias for each expert,
moved to where its quota of tokens would choose it (one dual step, "quantile balancing", or five of them), or the best
two of a Sinkhorn plan. Where a load is above its share, tokens are turned away: so their scores are to be compared at
what they turn away.

Tokens are the 4 x 4 patches of scikit-learn's digits, logits are minus the squared distances to centres that k-means
has found.

Run: python examples/expert_routing.py    (needs scikit-learn; a few seconds)
"""

import time
from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits

from otlabel import sinkhorn_assign

K, EACH = 32, 2  # experts, and how many of them a token takes


def router_logits() -> np.ndarray:
    """(44925, 32) of all patches of all digits."""
    images = load_digits().images / 16
    patches = np.lib.stride_tricks.sliding_window_view(images, (4, 4), axis=(1, 2)).reshape(-1, 16)
    centres = MiniBatchKMeans(K, n_init=1, random_state=0).fit(patches).cluster_centers_
    return 2 * patches @ centres.T - (centres**2).sum(1)  # |x|^2, the same for all experts, decides nothing


def top(scores: np.ndarray) -> np.ndarray:
    """(N, 2) the best experts of each token."""
    return np.argpartition(-scores, EACH - 1, axis=1)[:, :EACH]


def dual_steps(logits: np.ndarray, n_steps: int) -> np.ndarray:
    """Each time every bias goes to where as many tokens as the expert has room for choose it, as the others are."""
    bias, room = np.zeros(K), EACH * len(logits) // K
    for _ in range(n_steps):
        u = logits + bias
        ranked = -np.partition(-u, (EACH - 1, EACH), axis=1)
        last, first_out = ranked[:, [EACH - 1]], ranked[:, [EACH]]
        ahead = logits - np.where(u >= last, first_out, last)  # of the last of the other experts that a token takes
        bias = np.partition(-ahead, room, axis=0)[room]
    return top(logits + bias)


def sinkhorn(logits: np.ndarray, epsilon: float = 0.05, n_iterations: int = 20) -> np.ndarray:
    """The best two of a plan with even rows and columns."""
    g = np.zeros(K)
    for _ in range(n_iterations):
        rows = -logsumexp((logits + g) / epsilon, axis=1)[:, None]
        g = -epsilon * logsumexp(logits / epsilon + rows, axis=0)
    return top(logits + g)


def main(every: int = 1) -> dict[str, float]:
    """Route all tokens, or every so many, in each way."""
    logits = router_logits()[::every]
    ways: dict[str, Callable[[], np.ndarray]] = {
        "top two": lambda: top(logits),
        "one dual step": lambda: dual_steps(logits, 1),
        "five dual steps": lambda: dual_steps(logits, 5),
        "Sinkhorn, 20 iterations": lambda: sinkhorn(logits),
        "exact": lambda: sinkhorn_assign(logits, labels_per_sample=EACH).labels,
    }
    sinkhorn_assign(logits[:1000], labels_per_sample=EACH)  # compiles
    share, found = EACH * len(logits) / K, {}
    free = np.take_along_axis(logits, top(logits), 1).sum(1).mean()
    print("way                      largest load  turned away  lost score  seconds")
    for name, route in ways.items():
        begun = time.perf_counter()
        experts = route()
        seconds = time.perf_counter() - begun
        load = np.bincount(experts.ravel(), minlength=K)
        found[f"{name}: load"] = load.max() / share
        found[f"{name}: turned away"] = np.maximum(load - np.ceil(share), 0).sum() / (EACH * len(logits))
        found[f"{name}: lost"] = free - np.take_along_axis(logits, experts, 1).sum(1).mean()
        told = (
            f"{found[f'{name}: load']:>7.3f} x {found[f'{name}: turned away']:>15.2%} {found[f'{name}: lost']:>11.4f}"
        )
        print(f"{name:<24} {told} {seconds:>8.3f}")
    result = sinkhorn_assign(logits, labels_per_sample=EACH)
    print(result.proof.summary())
    new = logits[::7] + 0.01 * np.random.default_rng(0).normal(size=logits[::7].shape)
    load = np.bincount(result.predict(new).ravel(), minlength=K) / (EACH * len(new) / K)
    print(f"the same potentials for other tokens: loads from {load.min():.2f} to {load.max():.2f} of their share")
    found |= {"gap": result.gap, "proven": result.proof.proven, "new: load": load.max()}
    return found


if __name__ == "__main__":
    main()
