"""Linear probes after the layers of a frozen network, all trained in one pass over the data an epoch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from otlabel.selflabel.model import call, forward_only, to_device

# The paper's epochs; steps that probes of few samples need to come to their end, within so many epochs.
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 36, 5000, 250
DROPS = (10, 20, 30)  # of 36 epochs; after each the rate is a tenth
WEIGHTS = 0.01  # standard deviation of the first weights
UNKNOWN = -1  # the class of a sample that does not count
Batches = Iterable[tuple[Any, Tensor]]


@dataclass(frozen=True)
class Probe:
    """What one layer's numbers are worth to a linear classifier."""

    layer: str
    n_features: int  # after pooling
    top1: float  # share of the samples in `val` whose class is the best one
    top5: float  # or one of the best five


def linear_probes(
    model: nn.Module,
    layers: Sequence[str] | Mapping[str, str] | None,
    train: Batches,
    val: Batches,
    *,
    epochs: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
    n_features: int = 9600,
    n_classes: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> list[Probe]:
    """Train a linear classifier on the numbers after each layer of a frozen network, and count what it gets right.

        layer -> max-pooling to at most n_features numbers -> batch normalisation without weights -> linear

    The network is in evaluation mode and gets no gradients: its batch norms are frozen, which gives what absorbing them
    into the convolutions gives. Each batch goes through it once for all layers. SGD; the rate falls to a tenth after
    10, 20 and 30 of 36 epochs, or these shares of another number. Modes of modules are put back. On the last layer it
    agrees with `metrics.linear_probe`, which is quicker where features of one layer are there already.

    Args:
        model: any module.
        layers: names of modules, as `model.named_modules()` has them, or what each is called: the module's name. A
            layer gives (B, C, H, W), (B, D), or (B, T, D), which is averaged over T. None: what otlabel's networks say
            of their stages, the features, and the hidden layer of the first head where there is one.
        train: yields (inputs, classes (B,)), anew in each epoch; a DataLoader, say, that augments. Classes are 0 to
            K - 1, -1 for a sample that does not count.
        val: likewise. Inputs of one dimension more than in training are views, (B, V, ...), whose probabilities are
            averaged: ten crops, for instance.
        epochs: over `train`. None: the paper's 36, or up to 250 that make 5000 steps, which few samples need.
        lr: rate in the first epochs.
        momentum: of SGD.
        weight_decay: of SGD.
        n_features: what maps are pooled to at most: to s x s places with s = floor(sqrt(n_features / C)).
        n_classes: K. None: by a reading of `train`.
        seed: of the first weights.
        progress: called after each epoch with its number, and of how many.

    Returns:
        One `Probe` a layer, in the order of `layers`.

    Raises:
        ValueError: a layer that is not there, is not used once in a pass or gives no such numbers, or NaN; no labelled
            sample; `train` that can be read but once.

    Source: Zhang, Isola, Efros, ECCV 2016; the protocol is that of Asano, Rupprecht, Vedaldi, ICLR 2020, whose AlexNet
        gets pools of 6, 4, 3, 3 and 2 to 9600, 9216, 9600, 9600 and 9216 numbers by this rule.
    """
    if (epochs is not None and epochs < 1) or lr <= 0:
        raise ValueError(f"epochs is {epochs} and lr {lr}; both must be positive")
    if n_classes is None:
        n_classes = _n_classes(train)
    names = _named(model, layers)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with forward_only(model), _Taps(model, names, n_features) as taps:
        probes = _Probes(n_classes, seed)
        n_dimensions = epoch = 0
        while epochs is None or epoch < epochs:
            rate = lr * 0.1 ** sum(EPOCHS * epoch >= drop * (epochs or EPOCHS) for drop in DROPS)
            n_batches = 0
            for inputs, classes in _on(device, train):
                n_dimensions = getattr(inputs, "ndim", 0)
                probes.step(taps(inputs), classes, (rate, momentum, weight_decay))
                n_batches += 1
            if not n_batches:
                raise ValueError(
                    "train gave no batch of at least two labelled samples; it must be read again in each epoch, as a "
                    "DataLoader can be"
                )
            epoch += 1
            if epochs is None:
                epochs = min(max(EPOCHS, math.ceil(LEAST_STEPS / n_batches)), MOST_EPOCHS)
            if progress is not None:
                progress(epoch, epochs)
        right = _right(taps, probes, _on(device, val, least=1), n_dimensions)
    return [
        Probe(layer, probes.width(layer), *(float(share) for share in shares))
        for layer, shares in zip(names, right, strict=True)
    ]


def stages_of(model: nn.Module) -> dict[str, str]:
    """The layers of a network that says which they are: what each is called, and the name of its module."""
    found = dict(getattr(model, "stages", {}))
    backbone: Any = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module):
        found |= {stage: f"backbone.{name}" for stage, name in getattr(backbone, "stages", {}).items()}
        found["features"] = "backbone"
    heads: Any = getattr(model, "heads", None)
    if isinstance(heads, nn.ModuleList) and len(heads) and isinstance(heads[0], nn.Sequential):
        found["hidden"] = "heads.0.1"  # after its ReLU
    return found


def _named(model: nn.Module, layers: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Names of modules by what they are called; a stage may be given by its name."""
    stages = stages_of(model)
    if layers is None:
        layers = stages
    if isinstance(layers, str):
        raise ValueError(f"layers is {layers!r}; pass a list of names")
    if not layers:
        raise ValueError(f"{type(model).__name__} does not say which its stages are; pass layers, names of modules")
    if not isinstance(layers, Mapping):
        layers = {layer: stages.get(layer, layer) for layer in layers}
    known = dict(model.named_modules())
    for name in layers.values():
        if name not in known:
            there = ", ".join(stages) or ", ".join(sorted(filter(None, known))[:20])
            raise ValueError(f"{type(model).__name__} has no layer {name!r}; there are {there}")
    return dict(layers)


def _n_classes(train: Batches) -> int:
    most = max((int(classes.max()) for _, classes in _on(torch.device("cpu"), train, least=1)), default=UNKNOWN)
    if most == UNKNOWN:
        raise ValueError("train has no sample with a class")
    return most + 1


def _on(device: torch.device, batches: Batches, least: int = 2) -> Iterator[tuple[Any, Tensor]]:
    """Batches on a device, without samples of no class; those that are left with too few for a variance are not."""
    for batch in batches:
        inputs, classes = _pair(batch)
        classes = torch.as_tensor(classes)
        if classes.ndim != 1 or classes.dtype.is_floating_point or classes.dtype.is_complex:
            raise ValueError(f"classes are {classes.dtype} of shape {tuple(classes.shape)}; they must be (B,) integers")
        known = classes != UNKNOWN
        if not known.all():
            if not isinstance(inputs, Tensor):
                raise ValueError("samples of class -1 can be left out of one tensor alone; leave them out of the data")
            inputs, classes = inputs[known], classes[known]
        if len(classes) >= least:
            yield to_device(inputs, device), classes.to(device, torch.int64)


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(f"a batch is a {type(batch).__name__}; it must be a pair (inputs, classes)")


class _Taps:
    """Runs the network, and gives what came out of some of its layers, pooled to vectors.

    Args:
        model: the network.
        names: of its modules, by what they are called.
        n_features: numbers of a layer that are kept, at most.
    """

    def __init__(self, model: nn.Module, names: dict[str, str], n_features: int) -> None:
        self._model, self._names, self._n_features = model, names, n_features
        self._found: dict[str, Tensor] = {}
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> _Taps:
        for layer, name in self._names.items():
            hook = self._model.get_submodule(name).register_forward_hook(self._keep(layer))
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def __call__(self, inputs: Any) -> dict[str, Tensor]:
        """(B, D) of each layer."""
        self._found = {}
        call(self._model, inputs)
        missing = [layer for layer in self._names if layer not in self._found]
        if missing:
            raise ValueError(f"layer {missing[0]!r} was not used when the model was called")
        return self._found

    def _keep(self, layer: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _given: Any, result: Any) -> None:
            if layer in self._found:
                raise ValueError(f"layer {layer!r} is used twice in one pass; name a module that is used once")
            if not (isinstance(result, Tensor) and result.ndim in (2, 3, 4)):
                what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
                raise ValueError(f"layer {layer!r} gives {what}, not (B, C, H, W), (B, T, D) or (B, D)")
            self._found[layer] = pooled(result, self._n_features)

        return keep


def pooled(maps: Tensor, n_features: int) -> Tensor:
    """(B, D) float32 with D up to n_features, of maps (B, C, H, W) by their maxima; tokens (B, T, D) are averaged.

    A copy, for later layers may work in place.
    """
    if maps.ndim == 3:
        maps = maps.mean(1)
    if maps.ndim == 4:
        side = max(1, math.isqrt(n_features // maps.shape[1]))
        shape = [_window(length, side) for length in maps.shape[2:]]
        if None in shape:
            maps = functional.adaptive_max_pool2d(maps, [min(side, length) for length in maps.shape[2:]])
        else:
            kernel, padding = zip(*(one for one in shape if one is not None), strict=True)
            maps = functional.max_pool2d(maps, kernel, kernel, padding)
    return maps.flatten(1).to(torch.float32, copy=True)


def _window(length: int, places: int) -> tuple[int, int] | None:
    """Kernel and padding of windows that do not overlap; None where no such windows make so many places."""
    if length <= places:
        return 1, 0
    kernel = round(length / places)
    padding = max(0, math.ceil((kernel * places - length) / 2))
    fits = 2 * padding <= kernel and (length + 2 * padding - kernel) // kernel + 1 == places
    return (kernel, padding) if fits else None


class _Probes:
    """A batch norm and a linear layer for each layer that is probed, made when its numbers are first seen."""

    def __init__(self, n_classes: int, seed: int) -> None:
        self.n_classes, self._seed = n_classes, seed
        self._heads: dict[str, nn.Sequential] = {}
        self._optimizer: torch.optim.SGD | None = None

    @property
    def layers(self) -> list[str]:
        """Their names."""
        return list(self._heads)

    def width(self, layer: str) -> int:
        """How many numbers it takes."""
        return int(self._heads[layer][0].num_features)  # type: ignore[arg-type]

    def step(self, found: dict[str, Tensor], classes: Tensor, rates: tuple[float, float, float]) -> None:
        """One step of all probes, with rate, momentum and weight decay."""
        highest = int(classes.max())
        if highest >= self.n_classes or int(classes.min()) < 0:
            raise ValueError(f"train has classes {int(classes.min())} to {highest}; n_classes is {self.n_classes}")
        lr, momentum, weight_decay = rates
        if self._optimizer is None:
            self._heads = {layer: self._head(numbers) for layer, numbers in found.items()}
            weights = [weight for head in self._heads.values() for weight in head.parameters()]
            self._optimizer = torch.optim.SGD(weights, lr, momentum=momentum, weight_decay=weight_decay)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with torch.enable_grad():
            losses = [functional.cross_entropy(logits, classes) for logits in self(found, training=True)]
            self._optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()  # each probe's own: they share no weight
        self._optimizer.step()

    def __call__(self, found: dict[str, Tensor], *, training: bool = False) -> list[Tensor]:
        """(B, K) logits of each layer."""
        logits = []
        for layer, head in self._heads.items():
            if found[layer].shape[1] != self.width(layer):
                raise ValueError(
                    f"layer {layer!r} gave {self.width(layer)} numbers at first and {found[layer].shape[1]} now: show "
                    "inputs of one size in `train` and `val`"
                )
            logits.append(head.train(training)(found[layer]))
        return logits

    def _head(self, numbers: Tensor) -> nn.Sequential:
        width = numbers.shape[1]
        linear = nn.utils.skip_init(nn.Linear, width, self.n_classes)
        generator = torch.Generator().manual_seed(self._seed)  # whichever other layers are probed
        with torch.no_grad():
            linear.weight.normal_(0, WEIGHTS, generator=generator)
            linear.bias.zero_()
        return nn.Sequential(nn.BatchNorm1d(width, affine=False), linear).to(numbers.device)


def _right(taps: _Taps, probes: _Probes, val: Batches, n_dimensions: int) -> Tensor:
    """(layers, 2): shares of the samples whose class is the best, and one of the best five."""
    counts, n_samples = torch.zeros((), dtype=torch.float64), 0
    for inputs, classes in val:
        n_views = 1
        if isinstance(inputs, Tensor) and inputs.ndim == n_dimensions + 1:
            n_views, inputs = inputs.shape[1], inputs.flatten(0, 1)
        chances = torch.stack([logits.softmax(1) for logits in probes(taps(inputs))])
        lost = (~chances.isfinite()).any(2).any(1)
        if lost.any():
            layer = probes.layers[int(lost.nonzero()[0])]
            raise ValueError(
                f"the probe of layer {layer!r} gives NaN: the layer gives NaN or infinity, or lr is too high"
            )
        chances = chances.unflatten(1, (-1, n_views)).mean(2)
        best = chances.topk(min(5, probes.n_classes), 2).indices == classes[:, None]
        counts = counts + torch.stack([best[..., 0].sum(1), best.any(2).sum(1)], 1).cpu()
        n_samples += len(classes)
    if not n_samples:
        raise ValueError("val has no sample with a class")
    return counts / n_samples
