"""Samples as small pictures, all on one scale of brightness."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from otlabel.errors import MissingPackageError
from otlabel.reporting.image_files import SIDE
from otlabel.sources import as_array

SMALL_FILE = 1500  # bytes up to which a picture stays without loss
QUALITY = 80  # of one that is not
SMALL_QUALITY = 60  # of one in a table


class Painter:
    """Samples as small pictures, all on one scale of brightness."""

    def __init__(self, images: Any, indexes: list[int]) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise MissingPackageError("Pillow", "report") from error
        self._new, self._smaller = Image.fromarray, Image.Resampling.BOX
        self._images, self._read = images, dict[int, np.ndarray]()
        # Of a list only those that are shown become arrays.
        shape = tuple(images.shape) if hasattr(images, "shape") else (len(images), *self._shape_of(indexes))
        if len(shape) not in (3, 4) or 0 in shape:
            raise ValueError(f"images have shape {shape}; pass (N, H, W), (N, C, H, W) or (N, H, W, C)")
        self._channels_first = len(shape) == 4 and shape[1] in (1, 3, 4)
        if len(shape) == 4 and not self._channels_first and shape[3] not in (1, 3, 4):
            raise ValueError(f"images have shape {shape}, but none of 1, 3 or 4 channels, first or last")
        self.side = max(shape[2:] if self._channels_first else shape[1:3])
        self._low, self._high = self._range(indexes)

    def _shape_of(self, indexes: list[int]) -> tuple[int, ...]:
        """Of each image of a list."""
        self._read = {i: as_array(self._images[i]) for i in indexes}
        shapes = sorted({one.shape for one in self._read.values()})
        if len(shapes) > 1:
            raise ValueError(f"images have shapes {' and '.join(map(str, shapes))}; pass images of one shape")
        return shapes[0]

    def _array(self, index: int) -> np.ndarray:
        found = self._read.get(index)
        return as_array(self._images[index]) if found is None else found

    def _range(self, indexes: list[int]) -> tuple[float, float]:
        """What is black and what is white: of bytes 0 and 255, of others 0 and 1, or what occurs."""
        some = self._array(indexes[0])
        if some.dtype.kind not in "fiub":
            raise ValueError(f"images have dtype {some.dtype}; pass real numbers")
        if some.dtype == np.uint8:
            return 0.0, 255.0
        drawn = (self._array(i).astype(np.float64) for i in indexes)
        finite = [one[np.isfinite(one)] for one in drawn]
        low = min(float(one.min(initial=np.inf)) for one in finite)
        high = max(float(one.max(initial=-np.inf)) for one in finite)
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    def data_uri(self, index: int) -> str:
        """PNG, or JPEG where that is much smaller."""
        picture = self._picture(index, SIDE)
        kind, content = "png", _encoded(picture, "PNG", optimize=True)
        if len(content) > SMALL_FILE:
            kind, content = "jpeg", _encoded(picture, "JPEG", quality=QUALITY)
        return _data_uri(kind, content)

    def thumbnail(self, index: int, side: int) -> str:
        """As small as it gets: of so many pixels a side, and of what WebP makes of it, with loss or without."""
        picture = self._picture(index, side)
        made = (_encoded(picture, "WEBP", lossless=lossless, quality=SMALL_QUALITY) for lossless in (True, False))
        return _data_uri("webp", min(made, key=len))

    def _picture(self, index: int, side: int) -> Any:
        pixels = self._array(index)
        if self._channels_first:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3:
            pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]
        if pixels.dtype != np.uint8:
            scaled = (np.nan_to_num(pixels.astype(np.float64)) - self._low) / ((self._high - self._low) or 1.0)
            pixels = np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
        picture = self._new(np.ascontiguousarray(pixels))
        height, width = pixels.shape[:2]
        if max(height, width) > side:
            shrink = side / max(height, width)
            size = max(1, round(width * shrink)), max(1, round(height * shrink))
            picture = picture.resize(size, self._smaller)
        return picture


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(picture: Any, kind: str, **options: Any) -> bytes:
    image = io.BytesIO()
    picture.save(image, kind, **options)
    return image.getvalue()
