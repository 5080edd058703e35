"""The weights of a model: told apart from others, and those of heads drawn anew where classes lost their meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from otlabel.selflabel.model import ModelReader, unwrapped


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights: features of two hashes must not be mixed."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def heads_hash(reader: ModelReader) -> str:
    """A digest of the heads' weights, where there are heads."""
    digest = hashlib.sha256()
    for head in reader.heads:
        for weight in _weights(head):
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def renew_heads(reader: ModelReader, heads: list[int], optimizers: list[Any], seed: int) -> list[str]:
    """Draw the weights of heads anew, the same on every process, and forget what optimisers have gathered about them.

    Returns:
        What is to be said where that cannot be done.
    """
    if not heads:
        return []
    inner = unwrapped(reader.model)
    reset: Any = getattr(inner, "reset_head", None)
    if not callable(reset):
        return [
            f"classes have changed their meaning, but {type(inner).__name__} has no reset_head(number) to draw the "
            "weights of a head anew; training goes on from the old ones"
        ]
    devices = sorted({parameter.device.index for parameter in inner.parameters() if parameter.is_cuda})
    versions = [(parameter, parameter._version) for parameter in inner.parameters()]
    for head in heads:
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed + head)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed + head)
            reset(head)
    anew: list[Tensor] = [parameter for parameter, version in versions if parameter._version != version]  # in place
    anew += [weight for number in heads if reader.heads for weight in _weights(reader.heads[number])]
    for optimizer in optimizers:
        for parameter in anew:
            optimizer.state.pop(parameter, None)
    return []


def checked_optimizers(optimizer: Any) -> list[Any]:
    """Of one optimiser, several or None, a list."""
    optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [] if optimizer is None else [optimizer]
    for one in optimizers:
        if not isinstance(getattr(one, "state", None), Mapping):
            raise TypeError(
                f"optimizer is a {type(one).__name__}; pass the torch.optim.Optimizer that trains the model"
            )
    return optimizers


def _weights(head: Any) -> list[Tensor]:
    """Of a head that is a module, or a pair of weight and bias."""
    if isinstance(head, nn.Module):
        return list(head.parameters())
    return [weight for weight in head if weight is not None] if isinstance(head, (tuple, list)) else []
