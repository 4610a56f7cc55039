"""What an int8 model loses against fp32, on calibration samples that it was not calibrated on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.data.dataset import Labels
from kdbench.evaluation import Answers, Parity, compare
from kdbench.quantization.running import Outputs, Runner
from kdbench.quantization.samples import Samples
from kdbench.quantization.sensitivity import noise_share
from kdbench.records import Task
from kdbench.stats import ROUNDING, Interval

if TYPE_CHECKING:
    import onnx

Metric = Literal["accuracy", "micro F1", "agreement"]

MACS = 1e11
"""Of all judged samples together: larger models are judged on fewer of them."""
FEWEST, MOST = 512, 4096
"""Judged samples, where there are as many."""


@dataclass(frozen=True)
class Loss:
    """What a model loses against the reference."""

    drop: Interval
    """Of the metric, as a share, paired by sample: above 0 where it is worse. Where samples have no label, the share of
    those that it answers otherwise."""
    noise: float
    """Power of the difference of the first outputs, as a share of the reference's."""
    parity: Parity


class Judge:
    """Scores models by the samples' labels, or by the reference's answers where there are none."""

    def __init__(self, samples: Samples, expected: Outputs, task: Task) -> None:
        """`expected` are the reference's outputs. Raises UserError where they are no class scores."""
        self.samples = samples
        self.expected = expected
        self.task: Task = samples.pack.task if samples.labels is not None else task
        self._reference = _answers(expected, self.task)

    @property
    def metric(self) -> Metric:
        if self.samples.labels is None:
            return "agreement"
        return "micro F1" if self.task == "multi_label" else "accuracy"

    @property
    def score(self) -> float:
        """Of the reference: 1 where there are no labels."""
        return _score(self._reference, self.samples.labels, self.task)

    def loss(self, outputs: Outputs) -> Loss:
        drop = _drop(_answers(outputs, self.task), self._reference, self.samples.labels)
        parity = compare(outputs, self.expected, self.task)
        return Loss(drop, noise_share(outputs[0], self.expected[0]), parity)

    def of(self, model: "onnx.ModelProto | Path", runner: Runner) -> Loss:
        """The loss of a model as the runner's backend computes it. Raises WorkerError where it can't run it."""
        return self.loss(runner.outputs(model, self.samples))


def judged_samples(macs: int | None, available: int) -> int:
    """How many of the available samples a verdict is worth, of a model with so many multiply-accumulates a sample."""
    affordable = MOST if macs is None else int(MACS / max(macs, 1))
    return min(available, max(FEWEST, min(MOST, affordable)))


def remarks(loss: Loss, samples: int, max_drop: float | None, metric: Metric) -> list[str]:
    """What so many samples can't tell of a budget, which is a share."""
    said = []
    unit = "samples" if metric != "micro F1" else "samples (all of their labels counted)"
    if max_drop is not None and metric != "micro F1" and 0 < max_drop < 1 / samples:
        said.append(
            f"one of the {samples} judged samples is {100 / samples:.2g} points: a budget of {100 * max_drop:g} allows "
            f"no net loss at all; give {int(np.ceil(1 / max_drop))} or more by --samples"
        )
    if max_drop is not None and loss.drop.value <= max_drop + ROUNDING < loss.drop.high:
        said.append(
            f"{samples} {unit} can't rule out a drop of {100 * loss.drop.high:.2g} points: the budget is kept by the "
            "point estimate; more --samples narrow the interval"
        )
    return said


def _answers(outputs: Outputs, task: Task) -> NDArray[np.int64]:
    named: Mapping[str, NDArray[Any]] = {str(number): values for number, values in enumerate(outputs)}
    return Answers(dict(named), {}, {}).labels(task)


def _drop(ours: NDArray[np.int64], theirs: NDArray[np.int64], labels: Labels | None) -> Interval:
    if labels is None:
        alike = (ours == theirs).reshape(len(ours), -1).all(axis=1)
        found = stats.accuracy_difference(alike, np.ones_like(alike))
    elif labels.ndim == 2:
        found = stats.f1_difference(ours, theirs, labels)
    else:
        found = stats.accuracy_difference(ours == labels, theirs == labels)
    # Without the sign of zero, which would be printed.
    return Interval(0.0 - found.value, 0.0 - found.high, 0.0 - found.low)


def _score(answers: NDArray[np.int64], labels: Labels | None, task: Task) -> float:
    if labels is None:
        return 1.0
    return stats.f1(answers, labels)[0] if task == "multi_label" else float(np.mean(answers == labels))
