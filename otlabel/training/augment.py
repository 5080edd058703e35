"""Augmentation of whole batches, where they are: one resampling of the pixels, then colours by arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn import functional

from otlabel.training.images import Crop

MEAN, SPREAD = 0.5, 0.25  # of pixels between 0 and 1, roughly, in any data set
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)
JITTER_LIGHT, JITTER_HUE = 0.8, 0.2  # of the strength: change of brightness, contrast, saturation; of hue, in turns
AT_ONCE = 1 << 22  # numbers of images that are changed together on a CPU
BLUR_SIDE, BLUR_SIGMA = 0.1, (0.1, 2.0)  # of a kernel, as a share of the image's; of the Gaussian, in pixels


@dataclass(frozen=True)
class Augmentation:
    """A random view of each image of a batch; all choices are independent and uniform. The default changes nothing.

    Args:
        crop: (lo, hi), the share of the area that a crop keeps, within 0 and 1; it is then enlarged to the whole. Image
            files are cropped as they are read, and keep whatever else their pixels have. None: no crop.
        aspect: (lo, hi), a crop's width divided by its height, uniform in the logarithm. The default is square.
        flip: whether half of the images are mirrored, left to right.
        jitter: strength, 0 to 1: brightness, contrast and saturation are multiplied by 1 +- 0.8 jitter, hues turned
            by +- 0.2 jitter of the circle. Saturation and hue are of images with 3 channels.
        hue: turn of the hues to either side, as a share of the circle, in place of what jitter says. None: that.
        grayscale: share of the images that lose their colours; of images with 3 channels.
        blur: share of the images that are blurred by a Gaussian of 0.1 to 2 pixels, on a square of a tenth of the side.
        rotate: largest angle, in degrees, to either side.
        zoom: (lo, hi), by what images are enlarged about their centre. None: they are not.
        shift: largest move up, down, left and right, as a share of the side.
        swap: of vectors, the share of the numbers that are those of other samples of the batch. All else is of images.
        normalise: by which mean and standard deviation the network's input is standardised, of views and of images as
            they are: "half": 0.5 and 0.25; "imagenet": ImageNet's; "data": those of the data, by channel.

    What lies beyond the border of an image is the border, continued.

    Raises:
        ValueError: a setting outside of its range.

    Source: Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning", ICML 2020, appendix A, for
        the mixture of crop, colour, grey and blur and the shares of the strength.
    """

    crop: tuple[float, float] | None = None
    aspect: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    jitter: float = 0.0
    hue: float | None = None
    grayscale: float = 0.0
    blur: float = 0.0
    rotate: float = 0.0
    zoom: tuple[float, float] | None = None
    shift: float = 0.0
    swap: float = 0.0
    normalise: Literal["half", "imagenet", "data"] = "half"

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {self.crop}: give shares (lo, hi) of the area, 0 < lo <= hi <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(f"aspect is {self.aspect}: give ratios (lo, hi) of width to height, 0 < lo <= hi")
        if self.hue is not None and not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}: give a share of the circle, 0 to 0.5")
        if self.zoom is not None and not 0 < self.zoom[0] <= self.zoom[1] < math.inf:
            raise ValueError(f"zoom is {self.zoom}: give factors (lo, hi), 0 < lo <= hi")
        for name, most in (("jitter", 1), ("grayscale", 1), ("blur", 1), ("rotate", 180), ("shift", 1), ("swap", 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}: give 0 to {most}")

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A view of each image, standardised as `plain` does it.

        Args:
            images: (B, C, H, W) uint8, or (B, D) vectors, on any device.
            generator: where all random numbers come from. On the device of the images nothing need be copied.

        Returns:
            (B, C, H, W) float32 on the same device; vectors as they came but for what was swapped.
        """
        if images.ndim == 2:
            return _swapped(images, self.swap, generator) if self.swap else images
        few = max(1, AT_ONCE // max(1, images[:1].numel()))
        if len(images) > few and images.device.type == "cpu":  # where what comes in between would fill the memory
            return torch.cat([self._views(part, generator) for part in images.split(few)])
        return self._views(images, generator)

    def _views(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        views = _unit(images)
        if self.crop or self.flip or self.rotate or self.zoom or self.shift:
            views = _resampled(views, self._maps(views, generator))
        if self.jitter or self.hue:
            turn = JITTER_HUE * self.jitter if self.hue is None else self.hue
            views = _jittered(views, JITTER_LIGHT * self.jitter, turn, generator)
        if self.grayscale and views.shape[1] == 3:
            views = _where(self.grayscale, _gray(views), views, generator)
        if self.blur:
            views = _where(self.blur, _blurred(views, generator), views, generator)
        return _standardised(views)

    @property
    def cut(self) -> Crop:
        """The part of an image file that is read."""
        return Crop(self.crop, self.aspect, self.flip)

    def uncut(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A view of each image that was cut out of its file, and mirrored, when it was read."""
        return replace(self, crop=None, flip=False)(images, generator)

    def _maps(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B, 2, 3): from a place in the view to the place in the image, both in -1 ... 1 from border to border."""
        scale = torch.ones(len(images), 2, device=images.device)  # across and down
        centre = torch.zeros(len(images), 2, device=images.device)
        if self.crop:
            side = _uniform(images, generator, *self.crop).sqrt()
            scale = side[:, None].expand(-1, 2)
            if self.aspect != (1.0, 1.0):
                low, high = map(math.log, self.aspect)
                stretch = (0.5 * _uniform(images, generator, low, high)).exp()
                scale = (side[:, None] * torch.stack([stretch, 1 / stretch], 1)).clamp(max=1)
            centre = (1 - scale) * torch.stack([_uniform(images, generator, -1, 1) for _ in range(2)], 1)
        if self.zoom:
            scale = scale / _uniform(images, generator, *self.zoom)[:, None]
        if self.shift:
            moves = [_uniform(images, generator, -2 * self.shift, 2 * self.shift) for _ in range(2)]
            centre = centre + torch.stack(moves, 1)
        angle = torch.deg2rad(_uniform(images, generator, -self.rotate, self.rotate))
        mirrored = 1.0 - 2 * (_uniform(images, generator, 0, 1) < 0.5) if self.flip else torch.ones_like(angle)
        return _affine(scale, angle, mirrored, centre, images.shape[3] / images.shape[2])


def plain(images: torch.Tensor) -> torch.Tensor:
    """Images as they are, standardised: (x / 255 - 0.5) / 0.25, from -2 to 2.

    Args:
        images: (B, C, H, W) uint8.

    Returns:
        (B, C, H, W) float32 on the same device.
    """
    return _standardised(_unit(images))


def with_channels(images: torch.Tensor, n_channels: int) -> torch.Tensor:
    """Images (N, C, H, W) uint8 in as many channels as a network wants: grey repeated, or colours made grey.

    Raises:
        ValueError: other numbers of channels than 1 and 3.
    """
    found = images.shape[1]
    if found == n_channels:
        return images
    if (found, n_channels) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    if (found, n_channels) == (3, 1):
        return _gray(images.float()).round().to(images.dtype)
    raise ValueError(f"images of {found} channels cannot be shown to a network of {n_channels}")


def four_turns(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image turned by 0, 90, 180 and 270 degrees, counter-clockwise, and by how many quarter turns.

    Args:
        images: (B, C, H, H), of any type.

    Returns:
        (4 B, C, H, H), the B upright images first, and (4 B,) int64 turns from 0 to 3, the labels of the task.

    Raises:
        ValueError: images that are not square.

    Source: Gidaris, Singh, Komodakis, "Unsupervised representation learning by predicting image rotations", ICLR 2018.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images have shape {tuple(images.shape)}: quarter turns are of square images (B, C, H, H)")
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    return turned, torch.arange(4, device=images.device).repeat_interleave(len(images))


def _unit(images: torch.Tensor) -> torch.Tensor:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}: give uint8, (B, C, H, W)")
    return images.to(torch.float32).div_(255)


def _standardised(images: torch.Tensor) -> torch.Tensor:
    return (images - MEAN).div_(SPREAD)


def _uniform(images: torch.Tensor, generator: torch.Generator, lo: float, hi: float) -> torch.Tensor:
    """A number for each image, between lo and hi."""
    drawn = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
    return lo + (hi - lo) * drawn


def _affine(
    scale: torch.Tensor, angle: torch.Tensor, mirrored: torch.Tensor, centre: torch.Tensor, aspect: float
) -> torch.Tensor:
    """Maps that turn by an angle counter-clockwise, in pixels also where width / height is not 1, after mirroring."""
    wide, high = scale.unbind(1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    across = torch.stack([mirrored * wide * cosine, -mirrored * high * sine / aspect, centre[:, 0]], 1)
    down = torch.stack([wide * sine * aspect, high * cosine, centre[:, 1]], 1)
    return torch.stack([across, down], 1)


def _resampled(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _where(share: float, changed: torch.Tensor, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A share of the images in their changed form."""
    chosen = _uniform(images, generator, 0, 1) < share
    return torch.where(chosen[:, None, None, None], changed, images)


def _jittered(images: torch.Tensor, reach: float, turns: float, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, in this order, then what leaves 0 ... 1 is cut off."""
    brightness, contrast = (_uniform(images, generator, 1 - reach, 1 + reach)[:, None, None, None] for _ in range(2))
    images = images * brightness
    middle = _gray(images).mean((1, 2, 3), keepdim=True)
    images = middle + contrast * (images - middle)
    if images.shape[1] == 3:
        saturation = _uniform(images, generator, 1 - reach, 1 + reach)
        turn = 2 * math.pi * _uniform(images, generator, -turns, turns)
        images = torch.einsum("bij,bjhw->bihw", _colour_maps(saturation, turn), images)
    return images.clamp(0, 1)


def _blurred(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image under a Gaussian of its own width, across and then down."""
    n_images, n_channels = images.shape[:2]
    reach = max(1, round(BLUR_SIDE * min(images.shape[2:]) / 2))
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    width = _uniform(images, generator, *BLUR_SIGMA)
    kernel = functional.softmax(-0.5 * (places / width[:, None]) ** 2, 1).repeat_interleave(n_channels, 0)
    rows = images.reshape(1, n_images * n_channels, *images.shape[2:])
    for weight, pad in (
        (kernel[:, None, None], (reach, reach, 0, 0)),
        (kernel[:, None, :, None], (0, 0, reach, reach)),
    ):
        padded = functional.pad(rows, pad, "replicate")
        rows = functional.conv2d(padded, weight, groups=n_images * n_channels)
    return rows.reshape(images.shape)


def _colour_maps(saturation: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """(B, 3, 3) on red, green and blue: turn and stretch the plane of colours of the same brightness (YIQ)."""
    to_yiq = saturation.new_tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    change = saturation.new_zeros(len(saturation), 3, 3)
    change[:, 0, 0] = 1
    cosine, sine = saturation * torch.cos(turn), saturation * torch.sin(turn)
    change[:, 1, 1], change[:, 1, 2] = cosine, -sine
    change[:, 2, 1], change[:, 2, 2] = sine, cosine
    return torch.linalg.inv(to_yiq) @ change @ to_yiq


def _swapped(vectors: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    others = torch.randint(len(vectors), vectors.shape, generator=generator, device=generator.device)
    drawn = torch.rand(vectors.shape, generator=generator, device=generator.device).to(vectors.device)
    return torch.where(drawn < share, vectors.gather(0, others.to(vectors.device)), vectors)


def _gray(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W): how bright each pixel looks; the mean of the channels where they are not three."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
