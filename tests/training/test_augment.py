"""Augmentation: each part alone against what it must do to the pixels, and repeatable from its generator alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from otlabel.training.augment import (
    Augmentation,
    _affine,
    _colour_maps,
    _gray,
    _resampled,
    four_turns,
    plain,
    with_channels,
)

EVERYTHING = Augmentation(crop=(0.3, 1.0), flip=True, jitter=0.5, grayscale=0.2, rotate=20, zoom=(0.7, 1.3), shift=0.2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=seeded(seed))


def smooth(n_images: int, side: int) -> torch.Tensor:
    """Images whose pixels are a plane over the image, which bilinear interpolation reproduces."""
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    slopes = torch.rand(n_images, 2, generator=seeded(5)) - 0.5
    return 0.5 + 0.4 * (slopes[:, :1, None] * places + slopes[:, 1:, None] * places[:, None])[:, None]


def parts(**changes: float) -> torch.Tensor:
    """The map of one image from (scale, angle in degrees, mirrored, centre)."""
    numbers = {"scale": 1.0, "angle": 0.0, "mirrored": 1.0, "x": 0.0, "y": 0.0, "aspect": 1.0} | changes
    return _affine(
        torch.tensor([[numbers["scale"]] * 2]),
        torch.deg2rad(torch.tensor([numbers["angle"]])),
        torch.tensor([numbers["mirrored"]]),
        torch.tensor([[numbers["x"], numbers["y"]]]),
        numbers["aspect"],
    )


def test_plain_is_a_scale_from_minus_two_to_two() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = (np.arange(256) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(plain(images).numpy().ravel(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"crop": (1, 1)}, {"zoom": (1, 1)}])
def test_settings_that_change_nothing(settings: dict) -> None:
    images = noise(6, 3, 9, 7)
    torch.testing.assert_close(Augmentation(**settings)(images, seeded()), plain(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_at_once_keeps_shape_type_and_range(channels: int) -> None:
    images = noise(64, channels, 12, 10)
    untouched = images.clone()
    views = EVERYTHING(images, seeded())
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert views.min() >= -2
    assert views.max() <= 2
    assert torch.equal(images, untouched)


def test_the_generator_alone_decides() -> None:
    images = noise(16, 3, 8, 8)
    before = torch.random.get_rng_state()
    first = EVERYTHING(images, seeded(3))
    torch.rand(5)
    assert torch.equal(first, EVERYTHING(images, seeded(3)))
    assert not torch.equal(first, EVERYTHING(images, seeded(4)))
    torch.random.set_rng_state(before)
    EVERYTHING(images, seeded(3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_images_of_a_batch_are_changed_independently() -> None:
    views = EVERYTHING(noise(1, 3, 16, 16).expand(32, -1, -1, -1), seeded())
    assert (torch.cdist(views.flatten(1), views.flatten(1)) + 1e9 * torch.eye(32)).min() > 0.1


@given(st.integers(0, 255), st.integers(0, 2**31), st.integers(2, 9), st.integers(2, 9))
def test_a_constant_image_stays_one_under_every_move(value: int, seed: int, height: int, width: int) -> None:
    moves = Augmentation(crop=(0.1, 1), flip=True, rotate=180, zoom=(0.3, 3), shift=0.5)
    images = torch.full((3, 2, height, width), value, dtype=torch.uint8)
    torch.testing.assert_close(moves(images, seeded(seed)), plain(images), rtol=0, atol=1e-5)


def test_flips_mirror_about_half_of_the_images_and_nothing_else() -> None:
    images = noise(400, 1, 5, 6)
    views, straight = Augmentation(flip=True)(images, seeded()), plain(images)
    mirrored = (views - straight.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    same = (views - straight).abs().amax((1, 2, 3)) < 1e-4
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_a_flip_twice_is_none() -> None:
    images = noise(4, 2, 7, 5) / 255
    flip = parts(mirrored=-1.0, aspect=5 / 7).expand(4, -1, -1)
    once = _resampled(images, flip)
    torch.testing.assert_close(once, images.flip(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(_resampled(once, flip), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turn", [-1, 1, 2, 3])
def test_a_right_angle_is_rot90(turn: int) -> None:
    images = noise(1, 3, 8, 8) / 255
    turned = _resampled(images, parts(angle=90.0 * turn))
    torch.testing.assert_close(turned, torch.rot90(images, turn, (2, 3)), rtol=0, atol=1e-5)


def test_angles_are_in_pixels_where_images_are_not_square() -> None:
    """A turn keeps distances from the centre: a disc stays a disc, also in a wide image."""
    height, width = 20, 40
    y, x = torch.meshgrid(torch.arange(height) - 9.5, torch.arange(width) - 19.5, indexing="ij")
    disc = torch.sigmoid(6 - torch.hypot(x, y))[None, None]
    turned = _resampled(disc, parts(angle=33.0, aspect=width / height))
    torch.testing.assert_close(turned, disc, rtol=0, atol=0.05)
    stretched = _resampled(disc, parts(angle=33.0))
    assert (stretched - disc).abs().max() > 0.3


def test_zoom_and_shift_of_a_plane_are_the_formula() -> None:
    images = smooth(1, 16)
    inner = slice(5, 11)  # whose places in the image lie within it
    views = _resampled(images, parts(scale=0.5, x=0.2, y=-0.1))
    places = (torch.arange(16) + 0.5) / 16 * 2 - 1
    across, down = (
        (images[0, 0, 0, -1] - images[0, 0, 0, 0]) / 1.875,
        (images[0, 0, -1, 0] - images[0, 0, 0, 0]) / 1.875,
    )
    expected = 0.5 + across * (0.5 * places + 0.2) + down * (0.5 * places[:, None] - 0.1)
    torch.testing.assert_close(views[0, 0, inner, inner], expected[inner, inner], rtol=0, atol=1e-5)


def test_crops_are_squares_within_the_image_of_the_share_asked_for() -> None:
    """On an image whose pixels tell their place, the corners of a view tell the crop."""
    side = 64
    ramp = (torch.arange(side) * 3).to(torch.uint8)
    images = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])[None].expand(200, -1, -1, -1)
    views = (Augmentation(crop=(0.3, 0.6))(images, seeded()) * 0.25 + 0.5) * 255 / 3
    inner = (1, side - 2)  # beside the border, where interpolation is not cut off
    widths = (views[:, 0, 32, inner[1]] - views[:, 0, 32, inner[0]]) / (inner[1] - inner[0])
    heights = (views[:, 1, inner[1], 32] - views[:, 1, inner[0], 32]) / (inner[1] - inner[0])
    torch.testing.assert_close(widths, heights, rtol=0, atol=1e-3)
    assert (widths**2).min() == pytest.approx(0.3, abs=0.02)
    assert (widths**2).max() == pytest.approx(0.6, abs=0.02)
    middle = views[:, :, 31:33, 31:33].mean((2, 3)) - (side - 1) / 2
    assert (middle.abs() <= (1 - widths[:, None]) / 2 * side + 0.1).all()
    assert middle.abs().max() > 10


def test_crops_of_an_aspect_have_it_and_lie_within_the_image() -> None:
    augment = Augmentation(crop=(0.2, 0.4), aspect=(0.5, 2.0))
    maps = augment._maps(torch.zeros(2000, 1, 8, 8), seeded(0))
    across, down, centre = maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2].abs()
    assert (across * down >= 0.2 - 1e-6).all()
    assert (across * down <= 0.4 + 1e-6).all()
    ratios = (across / down).log() / math.log(2)
    assert ratios.abs().max() <= 1 + 1e-5
    np.testing.assert_allclose(np.quantile(ratios, (0.25, 0.5, 0.75)), (-0.5, 0, 0.5), atol=0.08)  # uniform
    assert (centre[:, 0] <= 1 - across + 1e-6).all()
    assert (centre[:, 1] <= 1 - down + 1e-6).all()


def test_blur_is_a_gaussian_of_some_images_and_keeps_their_mean() -> None:
    points = torch.zeros(400, 1, 33, 33, dtype=torch.uint8)
    points[:, :, 16, 16] = 255
    views = (Augmentation(blur=0.5)(points, seeded(0)) + 2) / 4
    torch.testing.assert_close(views.sum((1, 2, 3)), torch.ones(400))
    is_blurred = views[:, 0, 16, 16] < 0.99
    assert 0.3 < is_blurred.float().mean() < 0.5  # the least of them spread too little to be seen
    spread = (views * (torch.arange(33) - 16.0) ** 2).sum((1, 2, 3)).sqrt()
    assert spread.max() < 1.6  # 2 pixels, on a kernel of 5


def test_gray_takes_colour_from_the_share_asked_for() -> None:
    images = noise(1000, 3, 2, 2)
    views = Augmentation(grayscale=0.2)(images, seeded())
    gray = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-6
    assert 140 < gray.sum() < 260
    torch.testing.assert_close(views[~gray], plain(images)[~gray])
    luma = torch.tensor([0.299, 0.587, 0.114])
    expected = torch.einsum("c,bchw->bhw", luma, plain(images)[gray])
    torch.testing.assert_close(views[gray][:, 1], expected, rtol=0, atol=1e-5)


def test_colour_maps_keep_brightness_and_greys() -> None:
    maps = _colour_maps(torch.tensor([0.0, 0.3, 1.0, 1.8]), torch.tensor([0.5, -1.0, 3.0, 0.1]))
    colours = torch.rand(3, 50, generator=seeded())
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(luma @ (maps @ colours), (luma @ colours).expand(4, -1), rtol=0, atol=2e-3)
    grey = torch.full((3, 1), 0.7)
    torch.testing.assert_close(maps @ grey, grey.expand(4, 3, 1), rtol=0, atol=2e-3)
    torch.testing.assert_close(maps[0] @ colours, (luma @ colours).expand(3, -1), rtol=0, atol=2e-3)


def test_hues_turned_all_the_way_are_as_they_were() -> None:
    one = _colour_maps(torch.ones(1), torch.full((1,), 2 * math.pi / 3))[0]
    torch.testing.assert_close(one @ one @ one, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_changes_light_within_its_reach(channels: int) -> None:
    images = torch.full((500, channels, 4, 4), 100, dtype=torch.uint8)
    views = Augmentation(jitter=0.5)(images, seeded()) * 0.25 + 0.5
    light = _gray(views).mean((1, 2, 3)) * 255
    assert light.min() == pytest.approx(60, abs=2)
    assert light.max() == pytest.approx(140, abs=2)
    torch.testing.assert_close(views, views[:, :, :1, :1].expand_as(views))


def test_four_turns_are_rot90_of_each_image_the_upright_ones_first() -> None:
    images = noise(20, 3, 6, 6)
    result, turns = four_turns(images)
    assert result.shape == (80, 3, 6, 6)
    assert torch.equal(result[:20], images)
    assert turns.tolist() == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20
    for place, (found, turn) in enumerate(zip(result, turns.tolist(), strict=True)):
        assert torch.equal(found, torch.rot90(images[place % 20], turn, (1, 2)))


def test_channels_are_repeated_or_made_grey() -> None:
    colours = noise(5, 3, 4, 4)
    assert with_channels(colours, 3) is colours
    red, green, blue = colours.double().unbind(1)
    wanted = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]  # ITU-R BT.601
    made = with_channels(colours, 1)
    assert made.dtype == torch.uint8
    assert (made.double() - wanted).abs().max() <= 0.501
    assert torch.equal(with_channels(made, 3), torch.cat([made] * 3, 1))
    with pytest.raises(ValueError, match="2 channels"):
        with_channels(colours[:, :2], 3)


def test_quarter_turns_need_squares() -> None:
    with pytest.raises(ValueError, match="square"):
        four_turns(noise(2, 1, 4, 5))


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)])
def test_only_batches_of_bytes_are_images(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="give uint8"):
        plain(images)
    with pytest.raises(ValueError, match="give uint8"):
        EVERYTHING(images, seeded())


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": (0, 1)}, {"crop": (0.5, 0.4)}, {"crop": (0.5, 1.1)}, {"zoom": (0, 1)}, {"zoom": (2, 1)},
        {"zoom": (1, float("inf"))}, {"jitter": -0.1}, {"jitter": 2}, {"grayscale": 1.1}, {"rotate": 200},
        {"shift": float("nan")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_device_gives_what_the_cpu_gives() -> None:
    images = noise(32, 3, 16, 16)
    there = EVERYTHING(images.cuda(), seeded(2))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), EVERYTHING(images, seeded(2)), rtol=0, atol=1e-4)
    assert EVERYTHING(images.cuda(), torch.Generator("cuda")).is_cuda
    result, turns = four_turns(images.cuda())
    assert torch.equal(result.cpu(), four_turns(images)[0])
    assert turns.is_cuda


def test_resampling_is_bilinear() -> None:
    """Against the definition: half a pixel to the right is the mean of neighbours."""
    images = noise(1, 1, 6, 8) / 255
    views = _resampled(images, parts(x=1 / 8))
    expected = functional.avg_pool2d(functional.pad(images, (0, 1, 0, 0), mode="replicate"), (1, 2), 1)
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-5)
