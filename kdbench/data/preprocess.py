"""From raw samples to what a model takes, the same for training, calibration, evaluation and the benchmark."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.dataset import check_samples
from kdbench.errors import UserError
from kdbench.records import Preprocessing

CHUNK = 4096
"""Samples that are widened to float64 at a time: a training set of 150 MB would need 1.2 GB at once."""


def fit(samples: NDArray[Any], scale: float) -> Preprocessing:
    """Mean and standard deviation of each channel of scaled training samples [N, C, …].

    Raises UserError where there are none, or some are not finite.
    """
    check_samples(samples, None, "x_train")
    axes = (0, *range(2, samples.ndim))
    count = samples.size / samples.shape[1]

    def chunks() -> Iterator[NDArray[np.float64]]:
        return (samples[i : i + CHUNK].astype(np.float64) * scale for i in range(0, len(samples), CHUNK))

    mean = sum(chunk.sum(axis=axes) for chunk in chunks()) / count
    shape = (1, -1) + (1,) * (samples.ndim - 2)
    squares = sum(np.square(chunk - np.reshape(mean, shape)).sum(axis=axes) for chunk in chunks())
    std = np.sqrt(squares / count)
    return Preprocessing(
        scale=scale,
        mean=tuple(float(value) for value in np.atleast_1d(mean)),
        std=tuple(float(value) or 1.0 for value in np.atleast_1d(std)),
    )


def apply(samples: NDArray[Any], preprocessing: Preprocessing | None, name: str = "preprocessing") -> NDArray[Any]:
    """`(x * scale - mean) / std` in float32, of samples [N, C, …]; the samples themselves without preprocessing.
    Of one channel, such as grey images, they become as many as there are means.

    Raises UserError that begins with `name` where there are means or deviations of another number of channels.
    """
    if preprocessing is None:
        return samples
    means, stds, channels = len(preprocessing.mean), len(preprocessing.std), samples.shape[1]
    if len({means, stds, channels} - {1}) > 1:
        raise UserError(
            f"{name}: mean has {means} and std {stds} values, but samples of shape {samples.shape[1:]} have {channels} "
            "channels, their first axis: give one value, or one a channel"
        )
    shape = (1, -1) + (1,) * (samples.ndim - 2)
    mean = np.asarray(preprocessing.mean, dtype=np.float32).reshape(shape)
    std = np.asarray(preprocessing.std, dtype=np.float32).reshape(shape)
    result: NDArray[np.float32] = (samples.astype(np.float32) * np.float32(preprocessing.scale) - mean) / std
    return result
