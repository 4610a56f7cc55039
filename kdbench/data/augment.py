"""Augmentation of whole batches of raw images [N, C, H, W].

Every draw is a function of sample index, seed and view: the same view of a sample is the same image in any batch, in
any order, so that what a teacher said of it can be kept. What is missing in an image is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.special import betaincinv

from kdbench.errors import UserError
from kdbench.records import Augment

ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Shares of the image and ratios of height to width of what is erased (Zhong et al., 1708.04896)."""

Images = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """Images [N, C, H, W], and for each the sample mixed into it and the share [N] that its own label keeps."""

    images: Images
    partner: NDArray[np.int64]
    share: NDArray[np.float32]


class Draws:
    """Uniform numbers for each sample of a batch, one stream a purpose."""

    def __init__(self, index: NDArray[np.int64], seeds: Sequence[int]) -> None:
        self.state = index.astype(np.uint64)
        for seed in seeds:
            self.state = _scrambled(self.state + _scrambled(np.array([seed], dtype=np.uint64)))

    def uniform(self, stream: int) -> Floats:
        """Numbers [N] from 0 up to 1, the same for the same samples, seeds and `stream`."""
        bits = _scrambled(self.state + _scrambled(np.array([stream + 1], dtype=np.uint64)))
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, stream: int, bound: int) -> NDArray[np.int64]:
        """Numbers [N] from 0 to `bound` − 1."""
        return (self.uniform(stream) * bound).astype(np.int64)


TOP, LEFT, FLIP, ERASE, AREA, ASPECT, Y, X, METHOD, PARTNER, SHARE, BOX_Y, BOX_X = range(13)
"""The streams."""


def view(samples: Images, index: NDArray[np.int64], options: Augment, seeds: Sequence[int]) -> View:
    """The batch `index` of the training set `samples` as one view shows it; `seeds` name the view.

    Images that are mixed are float32 in the units of the samples, others keep their type.
    """
    draws = Draws(index, seeds)
    images = _moved(samples[index], options, draws)
    partner, share = index, np.ones(len(index), dtype=np.float32)
    if options.mixup_alpha or options.cutmix_alpha:
        partner = draws.integers(PARTNER, len(samples))
        others = _moved(samples[partner], options, Draws(partner, seeds))
        images, share = _mixed(images, others, options, draws)
    return View(erase(images, options.erase_probability, draws), partner, share)


def mixed_labels(shown: View, labels: NDArray[np.int64], index: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Shares [N, classes] of the labels of a view of the batch `index`; `labels` are those of the whole set."""
    rows = np.eye(classes, dtype=np.float32)[labels] if labels.ndim == 1 else labels.astype(np.float32)
    share = shown.share[:, None]
    result: NDArray[np.float32] = share * rows[index] + (1 - share) * rows[shown.partner]
    return result


def check(options: Augment, samples: Images) -> None:
    """Raises UserError where the samples are no images, but are to be varied as such."""
    if samples.ndim != 4 and options.model_copy(update={"views": 0}) != Augment():
        raise UserError(
            f"data.augment: varies images [N, C, H, W], not samples of shape {samples.shape[1:]}: leave the section out"
        )


def shift(images: Images, pixels: int, draws: Draws) -> Images:
    """Moves each image by its own −pixels … pixels both ways."""
    if not pixels:
        return images
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    windows = sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    top, left = (draws.integers(stream, 2 * pixels + 1) for stream in (TOP, LEFT))
    moved: Images = windows[np.arange(len(images)), :, top, left]
    return moved


def flip(images: Images, draws: Draws) -> Images:
    """Mirrors half of the images left to right."""
    chosen = draws.uniform(FLIP) < 0.5
    return np.where(chosen[:, None, None, None], images[..., ::-1], images)


def erase(images: Images, probability: float, draws: Draws) -> Images:
    """Sets a box of random area and aspect to 0 in a share of the images."""
    if not probability:
        return images
    chosen = draws.uniform(ERASE) < probability
    area = ERASED_AREA[0] + draws.uniform(AREA) * (ERASED_AREA[1] - ERASED_AREA[0])
    low, high = np.log(ERASED_ASPECT)
    aspect = np.exp(low + draws.uniform(ASPECT) * (high - low))
    height, width = images.shape[2:]
    rows = np.minimum(np.rint(np.sqrt(area * aspect) * height), height).astype(np.int64) * chosen
    columns = np.minimum(np.rint(np.sqrt(area / aspect) * width), width).astype(np.int64)
    top = draws.integers(Y, 1 << 30) % (height - rows + 1)
    left = draws.integers(X, 1 << 30) % (width - columns + 1)
    inside = _boxes(images.shape, top, left, rows, columns)
    return np.where(inside, images.dtype.type(0), images)


def mixup(images: Images, others: Images, share: Floats) -> Images:
    """`share` [N] of each image and the rest of the other one, in float32 (Zhang et al., 1710.09412)."""
    blended = images.astype(np.float32)
    blended -= others
    blended *= share.astype(np.float32)[:, None, None, None]
    blended += others
    return blended


def cutmix(images: Images, others: Images, share: Floats, draws: Draws) -> tuple[Images, Floats]:
    """A box of the other image in each image, and the share [N] of it that is left (Yun et al., 1905.04899).

    The box has the image's aspect and about 1 − `share` of its area, and is cut at the edges.
    """
    height, width = images.shape[2:]
    side = np.sqrt(1 - share)
    rows, columns = (np.rint(side * size).astype(np.int64) for size in (height, width))
    top = draws.integers(BOX_Y, height) - rows // 2
    left = draws.integers(BOX_X, width) - columns // 2
    inside = _boxes(images.shape, top, left, rows, columns)
    return np.where(inside, others, images), 1 - inside.mean(axis=(1, 2, 3))


def _moved(images: Images, options: Augment, draws: Draws) -> Images:
    images = shift(images, options.shift_px, draws)
    return flip(images, draws) if options.flip else images


def _mixed(images: Images, others: Images, options: Augment, draws: Draws) -> tuple[Images, NDArray[np.float32]]:
    """Mixup or cutmix of each image; where both are wanted, one by chance."""
    u = draws.uniform(SHARE)
    if options.mixup_alpha:
        share = betaincinv(options.mixup_alpha, options.mixup_alpha, u)
        blended = mixup(images, others, share)
        if not options.cutmix_alpha:
            return blended, share.astype(np.float32)
    pasted, left = cutmix(images, others, betaincinv(options.cutmix_alpha, options.cutmix_alpha, u), draws)
    if not options.mixup_alpha:
        return pasted.astype(np.float32), left.astype(np.float32)
    cut = draws.uniform(METHOD) < 0.5
    return np.where(cut[:, None, None, None], pasted, blended), np.where(cut, left, share).astype(np.float32)


def _boxes(
    shape: tuple[int, ...],
    top: NDArray[np.int64],
    left: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which pixels [N, 1, H, W] lie in each image's box."""
    y, x = np.arange(shape[2]), np.arange(shape[3])
    in_rows = (y >= top[:, None]) & (y < (top + rows)[:, None])
    in_columns = (x >= left[:, None]) & (x < (left + columns)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the input moves half of the output's."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
