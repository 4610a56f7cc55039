"""How int8 candidates that lose too much are mended: equalised, their biases corrected, or layers left in float."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends.client import WorkerError
from kdbench.pipeline.candidates import Candidate, Ground, judged, keeps, kind_of
from kdbench.proofs.layers import FLOAT_KERNELS
from kdbench.quantization.bias import bias_shifts
from kdbench.quantization.calibration import observe
from kdbench.quantization.equalization import equalized
from kdbench.quantization.judging import Loss
from kdbench.quantization.sensitivity import SAMPLES, Layer, int8_share, names_of, sensitivities, work_of
from kdbench.quantization.static import static_int8
from kdbench.search.int8_budget import Tried, Verdict, smallest_float_set
from kdbench.stats import ROUNDING, Interval

if TYPE_CHECKING:
    import onnx

BIAS_SAMPLES = 128
"""On which the means of channels are taken."""

WHY_NOT: Mapping[Verdict, str] = {
    "even float misses": "even with every layer in float it misses the budget",
    "all in float": "every layer would have to stay in float",
}

MENDED = 2
"""Candidates whose layers are looked at, where none keeps the accuracy with all of them in int8."""


def contenders(
    ground: Ground, found: Sequence[Candidate], bias_correction: bool | None, equalization: bool | None
) -> list[Candidate]:
    """Those that are worth timing: of each kind of int8 the calibration that loses least, if it keeps the accuracy.

    Where none does, the `MENDED` best kinds come mended, which `keeps` tells of. Bias correction and equalisation are
    asked for, refused, or, where nothing is said, taken where they mend a candidate.
    """
    able = sorted((one for one in found if one.loss is not None), key=lambda one: kind_of(one.options))
    best = [min(group, key=_merit) for _, group in groupby(able, key=lambda one: kind_of(one.options))]
    if equalization:
        best = [_equalized(ground, one) for one in best]
    if bias_correction:
        best = [_corrected(ground, one) for one in best]
    within = [one for one in best if keeps(ground, one)]
    if within:
        return within
    return [_mended(ground, one, bias_correction, equalization) for one in sorted(best, key=_merit)[:MENDED]]


def _merit(candidate: Candidate) -> tuple[float, float]:
    """The smaller the better: the drop, and of equal ones the noise."""
    return candidate.drop, math.inf if candidate.loss is None else candidate.loss.noise


def _equalized(ground: Ground, candidate: Candidate) -> Candidate:
    """With the ranges of neighbouring layers made alike; itself where there are no such neighbours."""
    graph, pairs = equalized(candidate.graph)
    if not pairs:
        return candidate
    counted = candidate.options.calibration != "minmax"
    samples = ground.calibration
    observed = observe(graph, samples.batches, ground.observed.histograms, counted, ground.progress, len(samples))
    ranges = observed.ranges(candidate.options)
    return judged(ground, replace(candidate, graph=graph, ranges=ranges, equalized=True))


def _corrected(ground: Ground, candidate: Candidate) -> Candidate:
    """With biases that make up for what int8 adds on average with these layers in float; itself where no layer has
    one."""
    options = candidate.options.model_copy(update={"format": "qdq"})
    left = names_of([layer for layer in candidate.layers if layer.name in candidate.left])
    try:
        shifts = bias_shifts(
            candidate.graph,
            lambda model: static_int8(model, candidate.ranges, options, left),
            partial(ground.runner.batches, samples=ground.calibration.first(BIAS_SAMPLES)),
            set(names_of(candidate.layers)) - set(left),
            ground.progress,
        )
    except WorkerError:  # the backend refuses what is added to the graph to tell the means
        return candidate
    return judged(ground, replace(candidate, shifts=shifts)) if shifts else candidate


def _mended(ground: Ground, candidate: Candidate, bias_correction: bool | None, equalization: bool | None) -> Candidate:
    """With equalisation if that lowers its noise, then with bias correction if that is enough, else with as few layers
    in float as keep the accuracy.

    Biases are corrected for a set of layers in int8: with others in float they would make up for what isn't there.
    """
    if candidate.shifts:
        candidate = judged(ground, replace(candidate, shifts={}))
    if equalization is None:
        candidate = min(candidate, _equalized(ground, candidate), key=_noise)
    if bias_correction is not False and not keeps(ground, candidate):
        corrected = _corrected(ground, candidate)
        candidate = corrected if keeps(ground, corrected) else candidate
    if not keeps(ground, candidate):
        candidate = _searched(ground, candidate)
        if bias_correction and keeps(ground, candidate):
            corrected = _corrected(ground, candidate)
            candidate = corrected if keeps(ground, corrected) else candidate
    return candidate


def _noise(candidate: Candidate) -> float:
    return math.inf if candidate.loss is None else candidate.loss.noise


def _searched(ground: Ground, candidate: Candidate) -> Candidate:
    """With the smallest set of layers in float that was found to keep the accuracy, or that comes closest to it."""
    assert ground.max_drop is not None and candidate.loss is not None
    few = ground.judge.samples.first(SAMPLES)
    expected = ground.judge.expected[0][: len(few)]

    def output(model: "onnx.ModelProto") -> NDArray[Any]:
        try:
            return ground.runner.outputs(model, few)[0]
        except WorkerError:  # a mixture of layers that the backend refuses is not to be chosen
            return np.full_like(expected, np.nan, dtype=np.float32)

    noise = sensitivities(candidate.layers, candidate.without, output, expected, ground.progress)
    losses: dict[frozenset[str], Loss | None] = {frozenset(): candidate.loss}

    def drop(left: frozenset[str]) -> Interval:
        if left not in losses:
            ground.progress("layers in float", len(losses), len(candidate.layers))
            losses[left] = judged(ground, replace(candidate, left=left)).loss
        loss = losses[left]
        return Interval(1.0, 1.0, 1.0) if loss is None else loss.drop

    order = [one.layer.name for one in noise]
    heavy = {layer.name for layer in candidate.layers if layer.operator in FLOAT_KERNELS}
    left, error = _chosen(ground.max_drop, candidate.layers, order, heavy, drop)
    tried = tuple(Tried(tested, drop(tested)) for tested in losses)
    return replace(candidate, left=left, loss=losses[left], tried=tried, noise=tuple(noise), error=error)


def _chosen(
    max_drop: float,
    layers: Sequence[Layer],
    order: Sequence[str],
    heavy: Collection[str],
    drop: Callable[[frozenset[str]], Interval],
) -> tuple[frozenset[str], str | None]:
    """The layers to leave in float, of those in `order`, and why they do not do where they don't.

    Products of matrices and convolutions are what int8 is fast at: if they keep the accuracy where all that is light
    is in float, as in transformers, only light layers are looked at. Else the search goes over all layers, and over
    the heavy ones beside the light ones in float; of both ends, that with more multiply-accumulates in int8 is taken.
    """
    light = frozenset(name for name in order if name not in heavy)
    heavy_order, work = [name for name in order if name in heavy], work_of(layers)

    def beside(base: frozenset[str], names: Sequence[str]) -> tuple[frozenset[str], Verdict]:
        found = smallest_float_set(names, lambda left: drop(left | base), max_drop, work)
        return found.kept.left_in_float | base, found.verdict

    if light and heavy_order and drop(light).value <= max_drop + ROUNDING:
        return beside(frozenset(), [name for name in order if name in light])[0], None
    ends = [beside(frozenset(), order)]
    if light and heavy_order:
        ends.append(beside(light, heavy_order))
    within = [left for left, verdict in ends if verdict == "within"]
    if within:
        return max(within, key=lambda left: (int8_share(layers, left) or 0.0, -len(left))), None
    return ends[0][0], WHY_NOT[ends[0][1]]
