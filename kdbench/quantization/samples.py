"""Calibration samples as a model takes them, a batch at a time: memory grows with their number only by what the samples
take as they are stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.dataset import SPLIT_SEED, Labels
from kdbench.data.generated import batch_size
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.records import Preprocessing, TensorSpec
from kdbench.store import Arrays

BATCH = 32


@dataclass(frozen=True)
class Samples:
    """Raw samples [N, …] of a pack, preprocessed when a batch of them is asked for."""

    pack: EvalPack
    """Whose calibration samples these are, and no others."""
    inputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    """The model's own; the pack's without."""

    def __len__(self) -> int:
        assert self.pack.x_calibration is not None
        return len(self.pack.x_calibration)

    @property
    def labels(self) -> Labels | None:
        return self.pack.y_calibration

    @property
    def batch(self) -> int:
        return batch_size(self.inputs) or BATCH

    @property
    def sizes(self) -> list[int]:
        """Of the batches, in order."""
        fixed = batch_size(self.inputs)
        return [fixed or min(self.batch, len(self) - start) for start in range(0, len(self), self.batch)]

    def batches(self) -> Iterator[Arrays]:
        """All samples in order; a model of a fixed batch gets the last one filled up with the first samples."""
        for number, size in enumerate(self.sizes):
            yield self._at((number * self.batch + np.arange(size)) % len(self)).feed()

    def feed(self) -> Arrays:
        """All samples at once: for a batch of them, or for few."""
        return self.pack.calibration_inputs(self.inputs, self.preprocessing)

    def first(self, count: int) -> "Samples":
        return self._at(np.arange(min(count, len(self))))

    def spread(self, count: int) -> "Samples":
        """So many, or all where there are no more, in even steps: of all classes where samples lie in their order."""
        count = min(count, len(self))
        return self._at(np.arange(count) * len(self) // count)

    def _at(self, index: NDArray[Any]) -> "Samples":
        x, y = self.pack.x_calibration, self.pack.y_calibration
        assert x is not None
        return replace(
            self, pack=replace(self.pack, x_calibration=x[index], y_calibration=None if y is None else y[index])
        )


def samples_of(pack: EvalPack, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None) -> Samples:
    """The pack's calibration samples; raises UserError where it has none, or they don't fit the model."""
    if pack.x_calibration is None:
        raise UserError(f"{pack.name}: no array 'x_calibration' in it: add training samples by that name")
    found = Samples(pack, tuple(inputs), preprocessing)
    found.first(1).feed()
    return found


def halved(samples: Samples, judged: int) -> tuple[Samples, Samples]:
    """Samples to calibrate on, and `judged` others, of each class its share, to judge by.

    Both come in the order that they were drawn in: data often lies in the order of its classes, and the first of either
    part stand for all of it. Raises UserError where that leaves nothing to calibrate on.
    """
    if not 0 < judged < len(samples):
        raise UserError(
            f"{samples.pack.name}: {len(samples)} calibration samples, to be parted into some to calibrate on and some "
            "to judge by: give more of them"
        )
    total, labels = len(samples), samples.labels
    drawn = np.random.default_rng(SPLIT_SEED).permutation(total)
    by_class = drawn
    if labels is not None and labels.ndim == 1:
        by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    chosen = np.isin(drawn, by_class[np.arange(judged) * total // judged])
    return samples._at(drawn[~chosen]), samples._at(drawn[chosen])
