"""From raw samples to what a model takes, the same for training, calibration, evaluation and the benchmark."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.records import Preprocessing


def fit(samples: NDArray[Any], scale: float) -> Preprocessing:
    """Mean and standard deviation of each channel of scaled training samples [N, C, …]."""
    scaled = samples.astype(np.float64) * scale
    axes = (0, *range(2, samples.ndim))
    mean, std = scaled.mean(axis=axes), scaled.std(axis=axes)
    return Preprocessing(
        scale=scale,
        mean=tuple(float(value) for value in np.atleast_1d(mean)),
        std=tuple(float(value) or 1.0 for value in np.atleast_1d(std)),
    )


def apply(samples: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """`(x * scale - mean) / std` in float32, of samples [N, C, …]."""
    shape = (1, -1) + (1,) * (samples.ndim - 2)
    mean = np.asarray(preprocessing.mean, dtype=np.float32).reshape(shape)
    std = np.asarray(preprocessing.std, dtype=np.float32).reshape(shape)
    result: NDArray[np.float32] = (samples.astype(np.float32) * np.float32(preprocessing.scale) - mean) / std
    return result
