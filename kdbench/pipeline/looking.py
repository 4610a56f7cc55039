"""A teacher looked at: what it makes of some training samples under several normalisations, in which order of classes.

The test split is never looked at.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter as now
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from kdbench.data import augment, preprocess
from kdbench.data.dataset import Dataset, Labels
from kdbench.errors import UserError
from kdbench.pipeline.checking import drawn
from kdbench.records import Augment, Preprocessing, Task
from kdbench.teachers import Candidate
from kdbench.training import metrics

PUBLISHED = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's, of batches": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST's": ((0.1307,), (0.3081,)),
    "0 … 1": ((0.0,), (1.0,)),
    "0 … 255": ((0.0,), (1 / 255,)),
    "−1 … 1": ((0.5,), (0.5,)),
}
"""Mean and deviation of pixels from 0 to 1, by channel or for all; the first are those of the data sets' papers and
libraries, the second of CIFAR-10 a mean of the deviations of batches, which many training scripts have."""

OWN, STATED = "the data's own", "as the teacher states"

SAMPLES = 2000
"""Training samples that a teacher answers at most."""
TRIED = 250
"""Of these for each normalisation."""
PATIENCE_S = 30.0
"""For all answers together: fewer samples where they would take longer."""
FEWEST = 64
BATCH = 50

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
TINY = 1e-8
CLEARLY = 2
"""How many times less strange than the data's own another normalisation must be."""

GAIN, BELIEVED = 0.2, 0.6
"""Another order of classes is believed in where it gives so much more accuracy, and so much at all."""


@dataclass(frozen=True)
class Tried:
    """A normalisation, and how the teacher did under it."""

    name: str
    preprocessing: Preprocessing
    accuracy: float
    """Classes in the best order; with several labels a sample the micro-averaged F1."""
    loss: float
    """Mean cross-entropy in nats, in this order."""
    strangeness: float | None
    """How far what its first batch norm sees is from what that has learnt; see `strangeness`."""


@dataclass(frozen=True)
class Look:
    """What a teacher made of training samples."""

    samples: int
    accuracy: float
    """With its classes as they are; micro-averaged F1 where a sample has several."""
    chance: float
    """Of who always says the most frequent class; 0 with several labels a sample."""
    preprocessing: Preprocessing | None
    normalisation: str
    tried: tuple[Tried, ...] = ()
    """The best first; empty where the teacher says itself what it wants."""
    order: tuple[int, ...] = ()
    """The data's class of each output, where another order than theirs is believed in."""
    ordered: float = 0.0
    """Accuracy in the best order, believed in or not."""


def images(dataset: Dataset) -> bool:
    """Whether samples are pixels [N, C, H, W]: bytes, or numbers from 0 to 1; spectrograms are not."""
    x = dataset.x_train
    return x.ndim == 4 and (x.dtype == np.uint8 or (x[:FEWEST].min() >= 0 and x[:FEWEST].max() <= 1))


def normalisations(dataset: Dataset) -> dict[str, Preprocessing]:
    """What a teacher of such data may have been trained under; images have more of them than other samples."""
    own = dataset.preprocessing
    assert own is not None
    found = {OWN: own}
    if images(dataset):
        channels = dataset.x_train.shape[1]
        found |= {
            name: Preprocessing(scale=own.scale, mean=mean, std=std)
            for name, (mean, std) in PUBLISHED.items()
            if len(mean) in (1, channels) and not (name == "MNIST's" and channels > 1)
        }
    raw = Preprocessing()
    if not any(same(raw, known) for known in found.values()):
        found["as stored"] = raw
    return found


def same(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether both make the same of every sample."""

    (slope, offset), (other_slope, other_offset) = ((_slope(of), _offset(of)) for of in (one, other))
    return bool(np.allclose(slope, other_slope, rtol=1e-6) and np.allclose(offset, other_offset, atol=1e-6))


def _slope(of: Preprocessing) -> NDArray[np.float64]:
    return np.asarray(of.scale / np.asarray(of.std))


def _offset(of: Preprocessing) -> NDArray[np.float64]:
    return np.asarray(np.asarray(of.mean) / np.asarray(of.std))


def look(candidate: Candidate, dataset: Dataset, stated: bool) -> Look:
    """Shows the teacher training samples; where nothing is `stated` of its normalisation, under several ones.

    Of a teacher that knows a part of the classes only their samples tell anything. Raises UserError where the training
    set has no labels, or no sample of a class that the teacher knows.
    """
    dataset, labels = _known(dataset, dataset.train_labels("looking at a teacher"), candidate.class_map.known)
    fixed = stated or dataset.preprocessing is None
    options = {} if fixed else normalisations(dataset)
    share = _share(candidate, dataset, len(options) * TRIED + SAMPLES)
    tried = _tries(candidate, dataset, options, max(FEWEST, int(share * TRIED)))
    name, way = (tried[0].name, tried[0].preprocessing) if tried else (STATED, candidate.preprocessing)
    places = drawn(labels, len(labels), max(FEWEST, int(share * SAMPLES)))
    logits, labels = logits_of(candidate, dataset.x_train[places], way), labels[places]
    accuracy = metrics.judge(torch.from_numpy(logits), torch.from_numpy(labels), dataset.task)
    if dataset.task == "multi_label":
        return Look(len(labels), accuracy, 0.0, way, name, tried)
    order = best_order(logits, labels)
    ordered = float(np.mean(order[logits.argmax(axis=1)] == labels))
    mapped = not candidate.class_map.whole(len(dataset.classes))
    believed = ordered - accuracy >= GAIN and ordered >= BELIEVED and not mapped
    chance = float(np.bincount(labels).max() / len(labels))
    meant = tuple(int(place) for place in order) if believed else ()
    return Look(len(labels), accuracy, chance, way, name, tried, meant, ordered)


def _known(dataset: Dataset, labels: Labels, known: tuple[int, ...]) -> tuple[Dataset, Labels]:
    """The dataset with those samples to train on whose class is one of the `known`, and their labels, as places among
    these; where samples have several labels all samples, with these labels alone."""
    if len(known) == len(dataset.classes):
        return dataset, labels
    x_train = dataset.x_train
    if dataset.task == "multi_label":
        labels = labels[:, list(known)]
    else:
        places = np.flatnonzero(np.isin(labels, known))
        if not len(places):
            raise UserError("teacher.class_map: the training set has no sample of a class that the teacher knows")
        x_train, labels = x_train[places], np.searchsorted(known, labels[places])
    return replace(dataset, x_train=x_train, y_train=labels), labels


def _share(candidate: Candidate, dataset: Dataset, samples: int) -> float:
    """Which part of so many samples the teacher answers within PATIENCE_S, 1 at most."""
    few = dataset.x_train[:FEWEST]
    logits_of(candidate, few, candidate.preprocessing)  # the first call warms up
    start = now()
    logits_of(candidate, few, candidate.preprocessing)
    return min(1.0, PATIENCE_S * len(few) / (samples * (now() - start)))


def _tries(
    candidate: Candidate, dataset: Dataset, options: Mapping[str, Preprocessing], samples: int
) -> tuple[Tried, ...]:
    """How the teacher does under each, the best first.

    On samples that it was trained on, it is often right under several. Of those that are right as often within noise,
    the first is the one that is least strange to its first batch norm; where there is none, the data's own.
    """
    if len(options) < 2:
        return ()
    assert dataset.y_train is not None
    places = drawn(dataset.y_train, len(dataset.y_train), samples)
    labels, views = dataset.y_train[places], _views(dataset, places)
    tries = []
    for name, way in options.items():
        strange = strangeness(candidate.model, [preprocess.apply(view, way) for view in views])
        logits = logits_of(candidate, views[0], way)
        tries.append(Tried(name, way, *_judged(logits, labels, dataset.task), strange))
    top = max(found.accuracy for found in tries)
    noise = 2 * float(np.sqrt(max(top * (1 - top), 1 / len(labels)) / len(labels)))
    own = next(found for found in tries if found.name == OWN)

    def place(found: Tried) -> tuple[bool, float, float]:
        wrong = found.accuracy < top - noise
        if found.strangeness is None or own.strangeness is None:
            return wrong, 0.0 if found is own else 1.0, found.loss
        near = found is own or found.strangeness < own.strangeness / CLEARLY
        return wrong, 0.0 if near else 1.0, found.strangeness

    return tuple(sorted(tries, key=place))


def _views(dataset: Dataset, places: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Samples as they are, and images also moved and mirrored, as most were in their teacher's training."""
    plain = dataset.x_train[places]
    if not images(dataset):
        return [plain]
    usual = Augment(shift_px=max(1, dataset.x_train.shape[-1] // 8), flip=True)
    return [plain, augment.view(dataset.x_train, places, usual, (0, 0)).images]


def _judged(logits: NDArray[np.float32], labels: Labels, task: Task) -> tuple[float, float]:
    """How good logits are with classes in the best order, and their loss."""
    if task == "multi_label":
        said, target = torch.from_numpy(logits), torch.from_numpy(labels)
        return metrics.judge(said, target, task), float(binary_cross_entropy_with_logits(said, target.float()))
    order = best_order(logits, labels)
    scores = np.empty_like(logits)
    scores[:, order] = logits
    loss = cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels))
    return float(np.mean(scores.argmax(axis=1) == labels)), float(loss)


class _EnoughError(Exception):
    """The first batch norm was reached."""


def strangeness(model: object, views: Sequence[NDArray[Any]]) -> float | None:
    """How far samples are from those that a model was trained on, by the first batch norm that they meet: the mean over
    channels of (μ − μ')² / σ'² + log²(σ² / σ'²), where μ', σ'² are its running statistics; the least of all `views`.

    None for a model without one.
    """
    if not isinstance(model, nn.Module):
        return None
    met: list[float] = []

    def see(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [0, *range(2, inputs[0].ndim)]
        mean, var = inputs[0].mean(axes), inputs[0].var(axes)
        known, spread = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var) + TINY
        met.append(float(((mean - known) ** 2 / spread + torch.log((var + TINY) / spread) ** 2).mean()))
        raise _EnoughError

    norms = [part for part in model.modules() if isinstance(part, NORMS) and part.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        for view in views if hooks else ():
            with torch.no_grad(), suppress(_EnoughError):
                model(torch.from_numpy(view))
    finally:
        for hook in hooks:
            hook.remove()
    return min(met, default=None)


def best_order(logits: NDArray[np.float32], labels: Labels) -> NDArray[np.int64]:
    """For each output the class that it most likely means: the one-to-one map with most right answers."""
    classes = logits.shape[1]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (logits.argmax(axis=1), labels), 1)
    # Where nothing tells an output that is never given from another, each keeps its own place.
    confusion += 1e-3 * np.eye(classes)
    return np.asarray(linear_sum_assignment(confusion, maximize=True)[1], dtype=np.int64)


def logits_of(candidate: Candidate, samples: NDArray[np.generic], way: Preprocessing | None) -> NDArray[np.float32]:
    """Logits [N, known classes] of raw samples [N, …], by the data's classes as the candidate's map has them."""
    parts = []
    for start in range(0, len(samples), BATCH):
        x = torch.from_numpy(preprocess.apply(samples[start : start + BATCH], way))
        with torch.no_grad():
            parts.append(candidate.class_map(candidate.model(x)).float().numpy())
    return np.concatenate(parts)
