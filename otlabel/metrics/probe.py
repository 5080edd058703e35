"""What features are worth to a linear head on top of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otlabel.metrics.features import features_of, labels_of

if TYPE_CHECKING:
    import torch

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # that linear_probe chooses from; of equally good ones the first
GRADIENT_TOLERANCE = 1e-5  # largest entry of the gradient at which the linear probe is fitted
RIDGE = 1e-4  # of the mean curvature, at least: features that hang together can be solved for in float32


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    l2: float | None = 1e-3,
    max_iter: int = 200,
    seed: int = 0,
) -> float:
    """Accuracy of multinomial logistic regression on frozen features, by a recipe without anything left to choose.

        min_{W, b}  mean_i -log softmax(W x_i + b)_{label_i}  +  l2 / 2 ||W||^2

    Features are standardised by the mean and the standard deviation of the training rows (a constant one becomes 0).
    L-BFGS starts from zero, with ten pairs and a strong Wolfe search, in coordinates of the weights in which the
    curvature at the start is about the identity. It stops when no entry of the gradient in them is larger than 1e-5,
    after max_iter iterations, or when a step changes next to nothing. Numbers are float32, or float64 where features
    on either side are. Memory holds a few copies of the training rows.

    Args:
        train_features: (N, D), from any of the places that `sinkhorn_assign` takes scores from.
        train_labels: (N,) classes; rows with -1 are left out.
        test_features: (M, D), likewise.
        test_labels: (M,) classes; rows with -1 do not count, classes that training rows do not have are always wrong.
        l2: weight of the penalty; scikit-learn's C is 1 / (l2 N). None: of .1, .01, ..., 1e-5 the one that is most
            accurate on a fifth of the training rows after fitting to the others, the larger of equally good ones.
        max_iter: most iterations of one fit.
        seed: of the draw of that fifth; without a meaning where l2 is given.

    Raises:
        ValueError: shapes that do not fit together, no labelled row on either side, a negative l2, max_iter below 1;
            fewer than two labelled training rows where l2 is None.
        InvalidScoresError: features that are no matrix, or a row with NaN or infinity.

    Source: Zhang, Isola, Efros, "Colorful image colorization", ECCV 2016, section 3.2, for the idea of the test; Liu,
        Nocedal, "On the limited memory BFGS method", Mathematical Programming 45, 1989, for the optimiser.
    """
    if l2 is not None and not 0 <= l2 < np.inf:
        raise ValueError(f"l2 is {l2}; pass a number from 0 up, or None to choose one on held-out training rows")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}; it must be at least 1")
    train, test = features_of(train_features, test_features)
    train_truth, labelled = labels_of(train, train_labels)
    truth, known = labels_of(test, test_labels)
    classes, codes = np.unique(train_truth[labelled], return_inverse=True)
    import torch

    x, y = train.rows(labelled), torch.from_numpy(codes).to(train.device)
    if l2 is None:
        l2 = _chosen_l2(x, y, len(classes), max_iter, seed)
    predicted = _fitted(x, y, len(classes), l2, max_iter).predict(test.rows(known))
    return float((classes[predicted] == truth[known]).mean())


@dataclass(frozen=True, eq=False)
class _Probe:
    """A linear head on standardised features."""

    mean: torch.Tensor  # (D,)
    deviation: torch.Tensor  # (D,)
    weight: torch.Tensor  # (C, D)
    bias: torch.Tensor  # (C,)

    def predict(self, x: torch.Tensor) -> np.ndarray:
        """The class of each row, (M,) int64."""
        logits = (x - self.mean) / self.deviation @ self.weight.T + self.bias
        return logits.argmax(1).cpu().numpy()


def _chosen_l2(x: torch.Tensor, y: torch.Tensor, n_classes: int, max_iter: int, seed: int) -> float:
    """The penalty of the grid that is most accurate on a fifth of the rows."""
    import torch

    if len(x) < 2:
        raise ValueError("l2=None needs at least two labelled training rows; pass a number")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))).to(x.device)
    held, rest = order[: max(len(x) // 5, 1)], order[max(len(x) // 5, 1) :]
    truth = y[held].cpu().numpy()

    def right(l2: float) -> int:
        return int((_fitted(x[rest], y[rest], n_classes, l2, max_iter).predict(x[held]) == truth).sum())

    return max(L2_GRID, key=right)


def _fitted(x: torch.Tensor, y: torch.Tensor, n_classes: int, l2: float, max_iter: int) -> _Probe:
    """The head with the smallest penalised loss."""
    import torch

    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    centred = x - mean
    deviation = torch.linalg.vector_norm(centred, dim=0, dtype=torch.float64) / len(x) ** 0.5
    # What is left of a constant feature is rounding.
    deviation = deviation.where(deviation > 10 * torch.finfo(x.dtype).eps * mean.abs(), 1).to(x.dtype)
    standard = centred.div_(deviation)
    # In coordinates in which the curvature at the start is about the identity, far fewer iterations are needed.
    curvature = (standard.T @ standard).double() / (len(x) * n_classes)
    curvature.diagonal().add_(max(l2, RIDGE * float(curvature.diagonal().mean())) or 1.0)  # 0: nothing but constants
    factor = torch.linalg.cholesky(curvature)
    change = torch.linalg.solve_triangular(factor.T, torch.eye(len(factor)).to(factor), upper=True).to(x.dtype)
    eased = standard @ change
    # (C, D), not (D, C): the product that is its gradient then takes a tenth of the time.
    eased_weight = x.new_zeros((n_classes, x.shape[1]), requires_grad=True)
    bias = x.new_zeros(n_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [eased_weight, bias],
        max_iter=max_iter,
        max_eval=25 * max_iter,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=torch.finfo(x.dtype).eps,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        fit = torch.nn.functional.cross_entropy(torch.nn.functional.linear(eased, eased_weight, bias), y)
        value = fit + l2 / 2 * (eased_weight @ change.T).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return _Probe(mean, deviation, eased_weight.detach() @ change.T, bias.detach())
