"""Ways to quantize one model, each judged; and how those that lose too much are mended."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends.client import WorkerError
from kdbench.errors import UserError
from kdbench.progress import Progress, silent
from kdbench.proofs.layers import FLOAT_KERNELS
from kdbench.quantization.bias import Shifts, bias_corrected, bias_shifts
from kdbench.quantization.calibration import Observed, Ranges, observe
from kdbench.quantization.equalization import equalized
from kdbench.quantization.judging import Judge, Loss
from kdbench.quantization.running import Runner
from kdbench.quantization.samples import Samples
from kdbench.quantization.sensitivity import (
    SAMPLES,
    Layer,
    Sensitivity,
    int8_share,
    layers_of,
    names_of,
    sensitivities,
    sqnr_db,
    work_of,
)
from kdbench.quantization.static import quantizable, static_int8
from kdbench.records import Quantize
from kdbench.records.budget import CandidateRecord, CurvePoint, Estimate, LayerNoise
from kdbench.search.int8_budget import ROUNDING, Tried, Verdict, smallest_float_set
from kdbench.stats import Interval

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


@dataclass(frozen=True)
class Ground:
    """What all candidates start from."""

    graph: "onnx.ModelProto"
    """In fp32, prepared to be quantized."""
    calibration: Samples
    judge: Judge
    runner: Runner
    observed: Observed
    max_drop: float | None
    """As a share; None for no bound."""
    progress: Progress = silent


@dataclass(frozen=True)
class Candidate:
    """A way to quantize a model, and how it did."""

    name: str
    options: Quantize
    graph: "onnx.ModelProto"
    """In fp32: the prepared one, or what equalisation has made of it."""
    ranges: Ranges
    layers: tuple[Layer, ...]
    left: frozenset[str] = frozenset()
    """Layers in float, by name."""
    loss: Loss | None = None
    error: str | None = None
    shifts: Shifts = field(default_factory=dict)
    """Of the biases that are corrected."""
    equalized: bool = False
    tried: tuple[Tried, ...] = ()
    noise: tuple[Sensitivity, ...] = ()

    def model(self, left: Collection[str] | None = None) -> "onnx.ModelProto":
        """The int8 model with these layers in float, or with those that it has itself."""
        chosen = self.left if left is None else left
        return self.without(names_of([layer for layer in self.layers if layer.name in chosen]))

    def without(self, nodes: Collection[str]) -> "onnx.ModelProto":
        """The int8 model with these nodes in float; the fp32 one where none is left to quantize."""
        if set(names_of(self.layers)) <= set(nodes):
            return self.graph
        graph = bias_corrected(self.graph, self.shifts, nodes) if self.shifts else self.graph
        return static_int8(graph, self.ranges, self.options, nodes)

    @property
    def drop(self) -> float:
        """Infinite where it can't run."""
        return math.inf if self.loss is None else self.loss.drop.value

    @property
    def record(self) -> CandidateRecord:
        left = tuple(layer.name for layer in self.layers if layer.name in self.left)
        sqnr = None if self.loss is None else sqnr_db(self.loss.noise)
        return CandidateRecord(
            name=self.name,
            options=self.options.model_dump(mode="json"),
            left_in_float=left,
            bias_correction=bool(self.shifts),
            equalization=self.equalized,
            drop=None if self.loss is None else estimate(self.loss.drop),
            sqnr_db=sqnr if sqnr is not None and math.isfinite(sqnr) else None,
            int8_macs=int8_share(self.layers, self.left),
            curve=tuple(
                CurvePoint(
                    left_in_float=tuple(layer.name for layer in self.layers if layer.name in point.left_in_float),
                    drop=estimate(point.drop),
                    int8_macs=int8_share(self.layers, point.left_in_float),
                )
                for point in self.tried
            ),
            layers=tuple(
                LayerNoise(
                    layer=one.layer.name,
                    nodes=one.layer.nodes,
                    operator=one.layer.operator,
                    macs=one.layer.macs,
                    noise=one.noise if math.isfinite(one.noise) else None,
                    left_in_float=one.layer.name in self.left,
                )
                for one in self.noise
            ),
            error=self.error,
        )


def estimate(interval: Interval) -> Estimate:
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def attempts(ground: Ground, ways: Sequence[Quantize]) -> list[Candidate]:
    """Every way, with all layers in int8, judged; one that can't be made or run has its error."""
    found = []
    for number, options in enumerate(ways):
        ground.progress("candidates", number, len(ways))
        layers = tuple(layers_of(ground.graph, _wanted(ground.graph, options)))
        candidate = Candidate(described(options), options, ground.graph, ground.observed.ranges(options), layers)
        if layers:
            found.append(_judged(ground, candidate))
        else:
            kinds = ", ".join(sorted({node.op_type for node in ground.graph.graph.node})[:8])
            found.append(replace(candidate, error=f"nothing in it can be quantized (operators: {kinds})"))
    ground.progress("candidates", len(ways), len(ways))
    return found


def contenders(
    ground: Ground, found: Sequence[Candidate], bias_correction: bool | None, equalization: bool | None
) -> list[Candidate]:
    """Those that are worth timing: of each kind of int8 the calibration that loses least, if it keeps the accuracy.

    Where none does, the `MENDED` best kinds come mended, which `keeps` tells of. Bias correction and equalisation are
    asked for, refused, or, where nothing is said, taken where they mend a candidate.
    """
    able = sorted((one for one in found if one.loss is not None), key=lambda one: _kind(one.options))
    best = [min(group, key=_merit) for _, group in groupby(able, key=lambda one: _kind(one.options))]
    if equalization:
        best = [_equalized(ground, one) for one in best]
    if bias_correction:
        best = [_corrected(ground, one) for one in best]
    within = [one for one in best if keeps(ground, one)]
    if within:
        return within
    return [_mended(ground, one, bias_correction, equalization) for one in sorted(best, key=_merit)[:MENDED]]


def keeps(ground: Ground, candidate: Candidate) -> bool:
    """Whether it was judged to be within the budget, with some layers in int8."""
    if candidate.error is not None:
        return False
    return ground.max_drop is None or candidate.drop <= ground.max_drop + ROUNDING


def described(options: Quantize) -> str:
    """`x86-vnni, mse`, or without a target `u8s8 per tensor qoperator, minmax`: what tells one way from another."""
    return f"{_kind(options)}, {options.calibration}"


def _kind(options: Quantize) -> str:
    """What decides the speed: all but the calibration."""
    if options.target is not None:
        return options.target
    types = "".join(f"{'u' if kind == 'uint8' else 's'}8" for kind in (options.activations, options.weights))
    parts = [
        types,
        "symmetric" if options.symmetric else "",
        "" if options.per_channel else "per tensor",
        "" if options.format == "qdq" else options.format,
    ]
    return " ".join(filter(None, parts))


def _wanted(graph: "onnx.ModelProto", options: Quantize) -> list[str]:
    """The nodes that these options quantize."""
    return [
        name
        for name in quantizable(graph, options.operators)
        if (not options.nodes or name in options.nodes) and name not in options.exclude
    ]


def _merit(candidate: Candidate) -> tuple[float, float]:
    """The smaller the better: the drop, and of equal ones the noise."""
    return candidate.drop, math.inf if candidate.loss is None else candidate.loss.noise


def _judged(ground: Ground, candidate: Candidate) -> Candidate:
    """With its loss, or the reason why it has none."""
    try:
        loss = ground.judge.of(candidate.model(), ground.runner)
    except (UserError, WorkerError) as error:
        return replace(candidate, loss=None, error=str(error))
    if not math.isfinite(loss.noise):
        return replace(candidate, loss=None, error="its outputs, or those in fp32, are NaN or infinite")
    return replace(candidate, loss=loss)


def _equalized(ground: Ground, candidate: Candidate) -> Candidate:
    """With the ranges of neighbouring layers made alike; itself where there are no such neighbours."""
    graph, pairs = equalized(candidate.graph)
    if not pairs:
        return candidate
    counted = candidate.options.calibration != "minmax"
    samples = ground.calibration
    observed = observe(graph, samples.batches, ground.observed.histograms, counted, ground.progress, len(samples))
    ranges = observed.ranges(candidate.options)
    return _judged(ground, replace(candidate, graph=graph, ranges=ranges, equalized=True))


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
    return _judged(ground, replace(candidate, shifts=shifts)) if shifts else candidate


def _mended(ground: Ground, candidate: Candidate, bias_correction: bool | None, equalization: bool | None) -> Candidate:
    """With equalisation if that lowers its noise, then with bias correction if that is enough, else with as few layers
    in float as keep the accuracy.

    Biases are corrected for a set of layers in int8: with others in float they would make up for what isn't there.
    """
    if candidate.shifts:
        candidate = _judged(ground, replace(candidate, shifts={}))
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
            losses[left] = _judged(ground, replace(candidate, left=left)).loss
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
