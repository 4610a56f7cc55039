"""Augmentation of whole batches of raw images, seeded by the caller's generator."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def shift(images: NDArray[Any], pixels: int, generator: np.random.Generator) -> NDArray[Any]:
    """Moves each image [N, C, H, W] by its own −pixels … pixels both ways; what comes in from outside is 0."""
    if not pixels:
        return images
    n, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    top, left = generator.integers(0, 2 * pixels + 1, size=(2, n))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    channels = np.arange(images.shape[1])
    moved: NDArray[Any] = padded[
        np.arange(n)[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]
    return moved
