"""What all networks are made of: features of one scale at the end, images that are enlarged, batch norms to absorb."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn


class Backbone(nn.Module):
    """Layers that end in (B, feature_dim), and a batch normalisation without weights after them.

    Features of one scale suit linear heads, whose scores are then on one scale as well from the first labelling on.

    Args:
        layers: from a batch to (B, feature_dim).
        feature_dim: how many features they give.
        stages: after which of the layers linear probes are put: the name of a stage, and of its module in `layers`.
    """

    def __init__(self, layers: nn.Module, feature_dim: int, stages: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.layers = layers
        self.standardise = nn.BatchNorm1d(feature_dim, affine=False)
        self.stages = {stage: f"layers.{name}" for stage, name in (stages or {}).items()}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, feature_dim) of a batch. In training mode a batch has at least two samples."""
        features: torch.Tensor = self.standardise(self.layers(images))
        return features


class NormedConv(nn.Conv2d):
    """A convolution and the batch normalisation after it, as one layer: others keep the numbers that they have without.

    It has no offset of its own, which the normalisation would take away.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(n_in, n_out, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(n_out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, n_out, H, W) of a batch."""
        normed: torch.Tensor = self.norm(super().forward(images))
        return normed

    def absorbed(self) -> nn.Conv2d:
        """A plain convolution with an offset that gives what this one does in evaluation mode.

        w' = w gamma / sqrt(var + eps),  b' = beta - mean gamma / sqrt(var + eps)
        """
        shape = self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding
        plain = nn.utils.skip_init(nn.Conv2d, *shape, device=self.weight.device)
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            plain.weight.copy_(self.weight.double() * scale[:, None, None, None])
            assert plain.bias is not None
            plain.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
        return plain


def absorbed(module: nn.Module) -> nn.Module:
    """A copy of a module whose `NormedConv` are plain convolutions: in evaluation mode it gives the same."""
    made = copy.deepcopy(module)
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NormedConv):
                setattr(parent, name, child.absorbed())
    return made


class Enlarged(nn.Module):
    """Images of at least some size: smaller ones are resized, bilinearly.

    Args:
        size: images with a smaller side are resized to size x size. None: 224, for those of a side below `least`.
        least: the smallest side that the network's strides leave something of.
    """

    def __init__(self, size: int | None, least: int) -> None:
        super().__init__()
        if size is not None and size < least:
            raise ValueError(f"size is {size}: of less than {least} pixels the strides leave nothing")
        self.below, self.size = (least, 224) if size is None else (size, size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) of a batch."""
        if min(images.shape[2:]) >= self.below:
            return images
        return nn.functional.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)


def draw_as_the_papers(model: nn.Module) -> None:
    """Weights of a variance that ReLUs keep, by the outputs of each convolution; small ones of linear layers.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015; as torchvision has it.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
