"""Models with several heads on one backbone, and how any other model is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FEATURES, LOGITS = "features", "logits"


class MultiHead(nn.Module):
    """A backbone with T heads on its features, each with classes of its own.

        logits_t(x) = head_t(backbone(x))        t = 1 ... T

    Args:
        backbone: any module; gives features (B, D) for a batch of inputs. More dimensions are flattened. A mapping as
            input is passed as keywords, a tuple as arguments.
        feature_dim: D.
        n_classes: K for one head, or one K a head: `[128] * 10` is ten heads of 128.
        hidden: width of a hidden layer (with ReLU) in each head. None: heads are linear, whose (N, K) scores need not
            exist in full: where memory has no room for them they are made block by block from the stored features.
        pool: takes what the backbone returns to (B, D), for backbones that return more than that. None: the output
            itself, or its `pooler_output` where it is a mapping or an object that has one.

    Source: several heads with labels of their own: Asano, Rupprecht, Vedaldi, ICLR 2020, section 3.5.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        n_classes: int | Sequence[int],
        *,
        hidden: int | None = None,
        pool: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.feature_dim, self._pool = backbone, feature_dim, pool
        self.heads = nn.ModuleList(_head(feature_dim, k, hidden) for k in class_counts(n_classes))

    def features(self, *args: Any, **kwargs: Any) -> Tensor:
        """(B, D) of a batch of inputs."""
        output = self.backbone(*args, **kwargs)
        features = _pooled(output) if self._pool is None else self._pool(output)
        features = features.flatten(1)
        if features.shape[1] != self.feature_dim:
            raise ValueError(f"the backbone gives {features.shape[1]} features, feature_dim says {self.feature_dim}")
        return features

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """A list of T logits (B, K_t)."""
        features = self.features(*args, **kwargs)
        return [head(features) for head in self.heads]

    def reset_head(self, number: int) -> None:
        """Draw the weights of one head anew, where its classes have lost their meaning."""
        for module in self.heads[number].modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


def _head(feature_dim: int, n_classes: int, hidden: int | None) -> nn.Module:
    if hidden is None:
        return nn.Linear(feature_dim, n_classes)
    return nn.Sequential(nn.Linear(feature_dim, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))


def _pooled(output: Any) -> Tensor:
    """The one tensor in what a backbone returns."""
    found = _entry(output, "pooler_output")
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the backbone returns {type(output).__name__}, from which no features can be told; pass pool=, a function "
            "that takes it to a tensor (B, D)"
        )
    return found


def class_counts(n_classes: int | Sequence[int]) -> list[int]:
    """One K a head."""
    counts: list[int] = []
    with contextlib.suppress(TypeError):  # what is no whole number
        counts = [index(k) for k in (n_classes if isinstance(n_classes, Iterable) else [n_classes])]
    if not counts or min(counts) < 1:
        raise ValueError(f"n_classes is {n_classes!r}; pass a whole number, or a list of them, one a head")
    return counts


# ---- any model ----


@dataclass(frozen=True)
class ModelReader:
    """How the plug-in sees a model: what is stored for a sample, and how scores come from that.

    `kind` is "features" where heads are known, and "logits" of all heads, side by side, where only these are.
    """

    model: nn.Module
    kind: str
    rows: Callable[[Any], Tensor]  # a batch of inputs -> (B, D) features, or (B, sum of K) logits
    heads: list[Any]  # modules, or pairs of weight (K, D) and bias (K,)
    remedy: str = ""  # what to do where rows are none


def reader_of(
    model: nn.Module,
    n_classes: list[int],
    features: Callable[[nn.Module, Any], Tensor] | None,
    heads: Callable[[nn.Module], Sequence[Any]] | None,
) -> ModelReader:
    """How to read a model: by the two functions, by its own `features` and `heads`, or by its logits."""
    inner = unwrapped(model)
    if features is not None and heads is not None:
        remedy = "features= may pool and flatten what it returns"
        return ModelReader(model, FEATURES, lambda inputs: features(inner, inputs), _listed(heads(inner)), remedy)
    own: Any = getattr(inner, "heads", None)
    own_features: Any = getattr(inner, "features", None)
    if callable(own_features) and isinstance(own, (nn.ModuleList, list, tuple)):
        remedy = (
            f"{type(inner).__name__} has features and heads of its own; pass features= and heads= if others are meant"
        )
        return ModelReader(model, FEATURES, lambda inputs: call(own_features, inputs), list(own), remedy)
    return ModelReader(model, LOGITS, lambda inputs: _side_by_side(call(inner, inputs), n_classes), [])


def _listed(heads: Any) -> list[Any]:
    """One entry a head, of what the function `heads` returns: a list, or one head alone."""
    if isinstance(heads, nn.Module) and not isinstance(heads, nn.ModuleList):
        return [heads]
    if isinstance(heads, tuple) and len(heads) == 2 and isinstance(heads[0], Tensor):  # weight and bias
        return [heads]
    if not isinstance(heads, (nn.ModuleList, list, tuple)):
        raise TypeError(
            f"heads= returns a {type(heads).__name__}; it must return a list of heads, modules or pairs (weight, bias)"
        )
    return list(heads)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model, inside of what distributes or compiles it."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner: Any = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def call(function: Callable[..., Any], inputs: Any) -> Any:
    """Inputs as a model takes them: a mapping as keywords, a tuple as arguments."""
    if isinstance(inputs, Mapping):
        return function(**inputs)
    if isinstance(inputs, (tuple, list)):
        return function(*inputs)
    return function(inputs)


def to_device(inputs: Any, device: torch.device) -> Any:
    """Every tensor in inputs of any nesting, moved."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {name: to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [to_device(value, device) for value in inputs]
    return inputs


class NoRowsError(Exception):
    """Inputs that cannot be taken apart into samples, or not put together again."""


def tensors(inputs: Any) -> Iterator[Tensor]:
    """Every tensor in inputs of any nesting."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, (Mapping, tuple, list)):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors(value)


def n_bytes(inputs: Any) -> int:
    """Of all tensors in inputs of any nesting."""
    return sum(tensor.nbytes for tensor in tensors(inputs))


def taken(inputs: Any, rows: np.ndarray, size: int) -> Any:
    """Some samples of a batch of inputs of any nesting; what is not one a sample stays as it is."""
    if isinstance(inputs, Tensor):
        return inputs[torch.from_numpy(rows)] if inputs.ndim and len(inputs) == size else inputs
    if isinstance(inputs, Mapping):
        return {name: taken(value, rows, size) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [taken(value, rows, size) for value in inputs]
    if inputs is None or isinstance(inputs, (bool, int, float, str)):
        return inputs
    raise NoRowsError


def joined(pieces: list[Any], sizes: list[int]) -> Any:
    """Samples of several batches, as one."""
    first = pieces[0]
    if isinstance(first, Tensor):
        if not all(piece.ndim and len(piece) == size for piece, size in zip(pieces, sizes, strict=True)):
            return first  # the same for all samples
        try:
            return torch.cat(pieces)
        except RuntimeError as error:
            raise NoRowsError from error
    if isinstance(first, Mapping):
        return {name: joined([piece[name] for piece in pieces], sizes) for name in first}
    if isinstance(first, list):
        return [joined([piece[number] for piece in pieces], sizes) for number in range(len(first))]
    return first


def as_logits(output: Any, n_classes: list[int]) -> list[Tensor]:
    """What a model returns, as one tensor (B, K) a head.

    Raises:
        TypeError: what is returned holds no tensors.
        ValueError: another number of heads, or of classes.
    """
    found = _entry(output, "logits")
    if isinstance(found, Mapping):
        found = list(found.values())
    logits = list(found) if isinstance(found, (tuple, list)) else [found]
    if not all(isinstance(one, Tensor) for one in logits):
        raise TypeError(
            f"the model returns {type(output).__name__}, in which no logits are found; return a tensor (B, K), a list "
            "of them, one a head, or either as `logits`"
        )
    if len(logits) != len(n_classes):
        raise ValueError(f"the model gives logits of {len(logits)} heads; the labeler was made for {len(n_classes)}")
    for number, (one, k) in enumerate(zip(logits, n_classes, strict=True)):
        if one.ndim != 2 or one.shape[1] != k:
            raise ValueError(f"logits of head {number} are {tuple(one.shape)}; the labeler was made for (B, {k})")
    return logits


def _entry(output: Any, name: str) -> Any:
    """A named part of what a model returns, where it has that name; else all of it."""
    if isinstance(output, Mapping):
        return output.get(name, output)
    return output if isinstance(output, (Tensor, tuple, list)) else getattr(output, name, output)


def _side_by_side(output: Any, n_classes: list[int]) -> Tensor:
    """Logits of all heads in one row, each less its largest: what matters then survives a store in float16."""
    try:
        logits = as_logits(output, n_classes)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error}. A model is read by its logits unless it is a MultiHead: wrap its backbone in one, or pass "
            "features= and heads= to SelfLabeler"
        ) from error
    return torch.cat([(one - one.amax(1, keepdim=True)).float() for one in logits], 1)


@contextlib.contextmanager
def forward_only(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """No gradients, and all modules in evaluation or training mode; at the end each goes back to its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def linear_parts(heads: list[Any]) -> Iterator[tuple[Tensor, Tensor | None] | None]:
    """Weight and bias of each head that is linear, in float32; None for one that is not, or does more than that."""
    for head in heads:
        if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward:
            yield _as_numbers(head.weight, head.bias)
        elif isinstance(head, (tuple, list)) and len(head) == 2:
            yield _as_numbers(*head)
        else:
            yield None


def _as_numbers(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.detach().float(), None if bias is None else bias.detach().float()
