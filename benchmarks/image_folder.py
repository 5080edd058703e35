"""A folder of JPEGs as ImageNet is laid out, of made pictures: `python benchmarks/image_folder.py FOLDER --classes 20`.

Each class has two colours and a pattern; sizes, aspect ratios, where the pattern lies and how light it is differ from
picture to picture. train/ and val/ hold a folder a class.
"""

from __future__ import annotations

import argparse
import colorsys
from pathlib import Path

import numpy as np

SIDES = (180, 640)  # pixels
N_PATTERNS = 4


def picture(k: int, n_classes: int, rng: np.random.Generator, sides: tuple[int, int] = SIDES) -> np.ndarray:
    """(H, W, 3) uint8 of a class."""
    width, height = np.exp(rng.uniform(*np.log(sides), 2)).astype(int)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    x, y = (
        (x - rng.uniform(-0.3, 0.3)) * width / min(width, height),
        (y - rng.uniform(-0.3, 0.3)) * height / min(width, height),
    )
    pattern = (
        np.sin(9 * x),
        np.sin(9 * y),
        np.sin(9 * np.hypot(x, y)),
        np.sin(7 * x) * np.sin(7 * y),
    )[k % N_PATTERNS]
    hue = k / n_classes
    one, other = (np.array(colorsys.hsv_to_rgb((hue + turn) % 1, 0.8, 0.9)) for turn in (0.0, 0.35))
    share = (pattern[:, :, None] + 1) / 2
    image = (share * one + (1 - share) * other) * rng.uniform(0.6, 1.1) + rng.normal(0, 0.04, (height, width, 3))
    return (image.clip(0, 1) * 255).astype(np.uint8)


def make(
    folder: Path, n_classes: int, n_train: int, n_val: int, *, seed: int = 0, sides: tuple[int, int] = SIDES
) -> None:
    """Write so many pictures of each class."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for part, count in (("train", n_train), ("val", n_val)):
        for k in range(n_classes):
            place = folder / part / f"n{k:08d}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = Image.fromarray(picture(k, n_classes, rng, sides))
                image.save(place / f"{number:06d}.JPEG", quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--train", type=int, default=90, help="pictures of each class")
    parser.add_argument("--val", type=int, default=10, help="pictures of each class")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.classes, arguments.train, arguments.val, seed=arguments.seed)


if __name__ == "__main__":
    main()
