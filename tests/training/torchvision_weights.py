"""Names and shapes of torchvision's weights, without the last layer, as `model.state_dict()` lists them."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def alexnet() -> Shapes:
    convolutions = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    found: Shapes = {}
    for place, (n_out, n_in, kernel) in convolutions.items():
        found |= {f"features.{place}.weight": (n_out, n_in, kernel, kernel), f"features.{place}.bias": (n_out,)}
    return found | _hidden({1: (4096, 9216), 4: (4096, 4096)})


def vgg16_bn() -> Shapes:
    found: Shapes = {}
    n_in = 3
    widths = {0: 64, 3: 64, 7: 128, 10: 128, 14: 256, 17: 256, 20: 256, 24: 512, 27: 512, 30: 512, 34: 512, 37: 512}
    for place, n_out in (widths | {40: 512}).items():
        found |= {f"features.{place}.weight": (n_out, n_in, 3, 3), f"features.{place}.bias": (n_out,)}
        found |= _norm(f"features.{place + 1}", n_out)
        n_in = n_out
    return found | _hidden({0: (4096, 25088), 3: (4096, 4096)})


def resnet18() -> Shapes:
    return _resnet((2, 2, 2, 2), [("conv1", 1, 3), ("conv2", 1, 3)])


def resnet50() -> Shapes:
    return _resnet((3, 4, 6, 3), [("conv1", 1, 1), ("conv2", 1, 3), ("conv3", 4, 1)])


def _resnet(depths: tuple[int, ...], convolutions: list[tuple[str, int, int]]) -> Shapes:
    """Each convolution of a block: its name, times the stage's width that come out, kernel."""
    found: Shapes = {"conv1.weight": (64, 3, 7, 7)} | _norm("bn1", 64)
    n_block = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            at, n_in = f"layer{stage + 1}.{block}", n_block
            for name, times, kernel in convolutions:
                found[f"{at}.{name}.weight"] = (times * width, n_in, kernel, kernel)
                found |= _norm(f"{at}.{name.replace('conv', 'bn')}", times * width)
                n_in = times * width
            if block == 0 and (stage or n_in != n_block):
                found[f"{at}.downsample.0.weight"] = (n_in, n_block, 1, 1)
                found |= _norm(f"{at}.downsample.1", n_in)
            n_block = n_in
    return found


def _norm(name: str, n: int) -> Shapes:
    each = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{one}": (n,) for one in each} | {f"{name}.num_batches_tracked": ()}


def _hidden(layers: dict[int, tuple[int, int]]) -> Shapes:
    found: Shapes = {}
    for place, shape in layers.items():
        found |= {f"classifier.{place}.weight": shape, f"classifier.{place}.bias": shape[:1]}
    return found
