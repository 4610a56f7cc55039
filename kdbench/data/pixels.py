"""From the bytes of an image file to an array of one size."""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdbench.errors import UserError, first_line

Color = Literal["rgb", "grey"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

DEEPEST = 65535
"""White in 16 bits; 255 · 257."""


def decode(content: bytes, size_px: int, color: Color, where: str) -> NDArray[np.uint8]:
    """An image file as [3 or 1, size_px, size_px]; raises UserError that names `where` for one that can't be read."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return fit(image, size_px, color)
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them meet
        raise UserError(f"{where}: not a readable image: {first_line(error, 80)}: mend it, or skip_broken") from None


def fit(image: Image.Image, size_px: int, color: Color) -> NDArray[np.uint8]:
    """[3 or 1, size_px, size_px]: the shorter side is scaled to `size_px`, what is too long cut off on both ends."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, DEEPEST) // 257).astype(np.uint8))
    converted = image.convert("RGB" if color == "rgb" else "L")
    if converted.size != (size_px, size_px):
        side = min(converted.size)
        left, top = ((length - side) / 2 for length in converted.size)
        converted = converted.resize(
            (size_px, size_px), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    pixels = np.asarray(converted, dtype=np.uint8).reshape(size_px, size_px, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
